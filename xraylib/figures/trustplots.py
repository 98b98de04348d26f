"""Figures of trust: when a model should not answer, and what its heat maps are worth."""

from typing import Any

import pandas as pd
from matplotlib.ticker import FuncFormatter

from xraylib.figures.style import (
    ALARM,
    FAINT,
    INK,
    QUIET,
    SIDE_COLOURS,
    Figure,
    bare,
    beside,
    blank,
    head,
    need,
    panels_of,
    percents,
    present,
    recipe_looks,
    records,
    styled,
)


@styled
def risk_coverage(
    tables: dict[str, pd.DataFrame], title: str = "Are the sure calls the right ones?", columns: int = 4
) -> Figure:
    """Share of wrong calls among the images answered, the least sure left out first.

    Parameters
    ----------
    tables
        By recipe, each from `abstention.risk_coverage`: `answered, error, low, high`.
    columns
        Panels a row.

    Raises
    ------
    DataInvalid
        When a column is missing or there is no row.
    """
    for name, table in tables.items():
        need(table, ("answered", "error", "low", "high"), f"{name}'s risk and coverage")
    fig, panels = panels_of(tables, columns, 2.3, ("images answered", "of these called wrongly"))
    for ax, own, colour in panels:
        for other in tables.values():
            ax.plot(other["answered"], other["error"], color=FAINT, linewidth=0.9, zorder=0)
        ax.fill_between(own["answered"], own["low"], own["high"], color=colour, alpha=0.2, linewidth=0)
        ax.plot(own["answered"], own["error"], color=colour, linewidth=1.8)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(FuncFormatter(percents))
        ax.set(xlim=(0, 1.02))
        ax.set_ylim(bottom=0)
    note = "The surest answered first; equally sure ones in any order. Grey: the other networks. "
    head(fig, title, note + "Bands: 95% intervals, patients resampled.")
    return fig


@styled
def coverage(
    table: pd.DataFrame,
    promised: float,
    other: str = "the other data set",
    title: str = "Do prediction sets keep their promise?",
) -> Figure:
    """Share of images whose prediction set holds the true class, by recipe, class and side.

    Parameters
    ----------
    table
        From `abstention.coverage`, of one or more recipes: `recipe, split, kind, covered, low, high`.
    promised
        The promise, drawn as a line.
    other
        What the other data set is called.

    Raises
    ------
    DataInvalid
        When a column is missing or there is no row.
    """
    need(table, ("recipe", "split", "kind", "covered", "low", "high"), "coverage")
    recipes, sides = list(dict.fromkeys(table["recipe"])), present(table["split"], SIDE_COLOURS)
    kinds = [kind for kind in ("normal", "pneumonia") if kind in set(table["kind"])]
    fig, axes = blank(9.5, 1.4 + 0.45 * len(recipes), 1, len(kinds), sharey=True, sharex=True)
    for ax, kind in zip(axes[0], kinds, strict=True):
        for row in records(table[table["kind"] == kind]):
            shift = (sides.index(row["split"]) - (len(sides) - 1) / 2) * 0.3
            y, colour = recipes.index(row["recipe"]) + shift, SIDE_COLOURS.get(row["split"], INK)
            ax.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=2)
            ax.plot(row["covered"], y, "o", color=colour, markersize=6)
        ax.axvline(promised, color=QUIET, linestyle="--", linewidth=1.2, zorder=0)
        ax.set_title(kind)
        ax.set(xlabel="true class in the set", xlim=(0, 1.02), ylim=(len(recipes) - 0.5, -0.5))
        ax.xaxis.set_major_formatter(FuncFormatter(percents))
        bare(ax, "bottom")
    axes[0, 0].set_yticks(range(len(recipes)), recipes)
    names: dict[str, Any] = {"test": "black: official test", "external": f"magenta: {other}"}
    sides_said = ", ".join(names.get(side, side) for side in sides)
    head(fig, title, f"Dashed: promised; {sides_said}. Lines: 95% intervals, patients resampled.")
    return fig


@styled
def strangeness(
    table: pd.DataFrame, flagged: pd.DataFrame, title: str = "Which images are unlike those trained on?"
) -> Figure:
    """Distance from the training images, by group of images.

    Parameters
    ----------
    table
        From `trials.strangeness`: `group, strangeness`.
    flagged
        From `abstention.flagged` of the same table: `group, images, flagged, low, high, limit`.

    Raises
    ------
    DataInvalid
        When a column is missing or there is no row.
    """
    need(table, ("group", "strangeness"), "strangeness")
    need(flagged, ("group", "images", "flagged", "low", "high", "limit"), "flagged images")
    groups = list(flagged["group"])
    fig, ((ax,),) = blank(9, 1.2 + 0.5 * len(groups))
    for y, row in enumerate(records(flagged)):
        values = table.loc[table["group"] == row["group"], "strangeness"]
        low, first, middle, third, high = values.quantile([0.05, 0.25, 0.5, 0.75, 0.95])
        ax.plot([low, high], [y, y], color=QUIET, linewidth=1.2)
        ax.plot([first, third], [y, y], color=INK, linewidth=7, solid_capstyle="butt")
        ax.plot(middle, y, "o", color="white", markersize=4, zorder=3)
        said = f"{row['flagged']:.0%} flagged ({row['low']:.0%}–{row['high']:.0%})"
        beside(ax, said, max(high, row["limit"]) if middle < row["limit"] else high, y)
    ax.axvline(flagged["limit"].iloc[0], color=ALARM, linestyle="--", linewidth=1.2, zorder=0)
    ax.set_yticks(range(len(groups)), [f"{row['group']}, n = {row['images']:,}" for row in records(flagged)])
    ax.set(xlabel="distance from the training images", ylim=(len(groups) - 0.5, -0.6))
    bare(ax, "bottom")
    note = "Bar: middle half; line: 5th to 95th percentile. Dashed: limit that flags 5% of validation. "
    head(fig, title, note + "In brackets: 95% intervals, patients resampled.")
    return fig


@styled
def deletion(
    tables: dict[str, pd.DataFrame], title: str = "Does the score fall when the marked pixels go?"
) -> Figure:
    """Mean score as pixels are replaced: those that the heat map marks first, and others by chance.

    Parameters
    ----------
    tables
        By recipe, each from `explain.deletion`: `removed, score, by_chance`.

    Raises
    ------
    DataInvalid
        When a column is missing or there is no row.
    """
    fig, axes = blank(max(4.0, 3.0 * len(tables)), 3.0, 1, len(tables), sharex=True, sharey=True)
    looks = recipe_looks(tables)
    for ax, (name, table) in zip(axes[0], tables.items(), strict=True):
        need(table, ("removed", "score", "by_chance"), f"{name}'s deletion")
        ax.plot(table["removed"], table["by_chance"], "--", color=QUIET, linewidth=1.4)
        ax.plot(table["removed"], table["score"], "-", color=looks[name][0], linewidth=2)
        ax.set_title(name)
        ax.set(xlabel="pixels replaced", xlim=(0, 1), ylim=(-0.02, 1.02))
        ax.xaxis.set_major_formatter(FuncFormatter(percents))
        ax.grid(axis="y", color=FAINT, linewidth=0.5)
    axes[0, 0].set_ylabel("mean score")
    head(fig, title, "Line: the pixels that the map marks most go first. Dashed: pixels in random order.")
    return fig
