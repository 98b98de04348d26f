"""Figures of the evaluation: calibration, decisions, subgroups, other hospitals, corruptions."""

import numpy as np
import pandas as pd
from matplotlib.ticker import FuncFormatter

from xraylib.canvas import (
    FAINT,
    QUIET,
    SIDE_COLOURS,
    Figure,
    bare,
    beside,
    blank,
    head,
    need,
    percents,
    recipe_looks,
    records,
    styled,
)


@styled
def reliability(
    tables: dict[str, pd.DataFrame], title: str = "Does a score of .8 mean four in five?", columns: int = 4
) -> Figure:
    """Observed share of pneumonia by score, with intervals; the diagonal is perfect calibration.

    Parameters
    ----------
    tables
        By name, each from `calibration.reliability`: `score, share, low, high, images`.
    columns
        Panels a row.

    Raises
    ------
    DataInvalid
        When a column is missing or there is no row.
    """
    for name, table in tables.items():
        need(table, ("score", "share", "low", "high", "images"), f"{name}'s calibration")
    columns = min(columns, len(tables))
    rows = -(-len(tables) // columns)
    fig, axes = blank(max(4.0, 2.6 * columns), 0.9 + 2.6 * rows, rows, columns, sharex=True, sharey=True)
    looks = recipe_looks(tables)
    for ax in axes.flat[len(tables) :]:
        ax.remove()
    for place, (ax, (name, table)) in enumerate(zip(axes.flat, tables.items(), strict=False)):
        colour = looks[name][0]
        ax.plot([0, 1], [0, 1], color=FAINT, linewidth=1, zorder=0)
        ax.vlines(table["score"], table["low"], table["high"], color=colour, linewidth=1.6)
        sizes = 14 + 160 * table["images"] / table["images"].sum()
        ax.scatter(table["score"], table["share"], s=sizes, color=colour, zorder=3)
        ax.set_title(name, fontsize=9)
        ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        if place % columns == 0:
            ax.set_ylabel("share with pneumonia")
        if place + columns >= len(tables):
            ax.set_xlabel("mean score of the bin")
    head(fig, title, "Ten bins of equal width; dot size: images. Lines: 95% intervals, patients resampled.")
    return fig


@styled
def decision_curve(
    tables: dict[str, pd.DataFrame], title: str = "Is acting on the score worth it?"
) -> Figure:
    """Net benefit over threshold probability, against treating everybody and nobody.

    Parameters
    ----------
    tables
        By recipe, each from `calibration.decision_curve`: `cut, benefit, low, high, all`.

    Raises
    ------
    DataInvalid
        When a column is missing or there is no row.
    """
    for name, table in tables.items():
        need(table, ("cut", "benefit", "low", "high", "all"), f"{name}'s decision curve")
    fig, ((ax,),) = blank(8, 4.2)
    looks, first = recipe_looks(tables), next(iter(tables.values()))
    for name, table in tables.items():
        colour, dash = looks[name]
        ax.plot(table["cut"], table["benefit"], dash, color=colour, linewidth=1.8, label=name)
        ax.fill_between(table["cut"], table["low"], table["high"], color=colour, alpha=0.12, linewidth=0)
    ax.plot(first["cut"], first["all"], color=QUIET, linestyle=":", linewidth=1.4, label="everybody")
    ax.axhline(0, color=QUIET, linewidth=1, label="nobody")
    ax.set(xlabel="threshold probability", ylabel="net benefit (true positives per image)")
    ax.set_ylim(-0.1, float(first["all"].max()) + 0.05)
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    head(fig, title, "Bands: 95% intervals, patients resampled.")
    return fig


@styled
def subgroups(table: pd.DataFrame, title: str = "Who is called rightly, and who is not?") -> Figure:
    """Share of each subgroup called rightly, by recipe, with intervals.

    Parameters
    ----------
    table
        From `subgroups.table`, of one or more recipes: `recipe, subgroup, images, right, right_low,
        right_high`.

    Raises
    ------
    DataInvalid
        When a column is missing or there is no row.
    """
    need(table, ("recipe", "subgroup", "images", "right", "right_low", "right_high"), "subgroups")
    groups, recipes = list(dict.fromkeys(table["subgroup"])), list(dict.fromkeys(table["recipe"]))
    fig, ((ax,),) = blank(9, 1.4 + 0.22 * len(groups) * (len(recipes) + 1))
    looks = recipe_looks(recipes)
    for row in records(table):
        shift = (recipes.index(row["recipe"]) - (len(recipes) - 1) / 2) * 0.8 / len(recipes)
        y = groups.index(row["subgroup"]) + shift
        colour = looks[row["recipe"]][0]
        ax.plot([row["right_low"], row["right_high"]], [y, y], color=colour, linewidth=1.8)
        ax.plot(row["right"], y, "o", color=colour, markersize=5)
    sizes = table.groupby("subgroup")["images"].max()
    ax.set_yticks(range(len(groups)), [f"{group}\nn = {sizes[group]:,}" for group in groups])
    ax.set(ylim=(len(groups) - 0.5, -0.5), xlabel="called rightly (sensitivity or specificity)")
    ax.xaxis.set_major_formatter(FuncFormatter(percents))
    for name in recipes:
        ax.plot([], [], "o-", color=looks[name][0], label=name)
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    bare(ax, "bottom")
    head(fig, title, "At the threshold chosen on validation. Lines: 95% intervals, patients resampled.")
    return fig


@styled
def drop(table: pd.DataFrame, title: str = "What is left in another hospital?") -> Figure:
    """AUC and balanced accuracy on the official test and on another data set, with intervals.

    Parameters
    ----------
    table
        From `trials.drop`.

    Raises
    ------
    DataInvalid
        When a column is missing or there is no row.
    """
    need(table, ("recipe", "metric", "test", "test_low", "external", "external_high"), "the external test")
    panels = {"auc": "AUC", "balanced_accuracy": "balanced accuracy"}
    recipes = list(dict.fromkeys(table["recipe"]))
    fig, axes = blank(9.5, 1.5 + 0.5 * len(recipes), 1, len(panels), sharey=True)
    for ax, (metric, label) in zip(axes[0], panels.items(), strict=True):
        for row in records(table[table["metric"] == metric]):
            y = recipes.index(row["recipe"])
            for side, shift in (("test", -0.13), ("external", 0.13)):
                colour = SIDE_COLOURS[side]
                ax.plot([row[f"{side}_low"], row[f"{side}_high"]], [y + shift] * 2, color=colour, linewidth=2)
                ax.plot(row[side], y + shift, "o", color=colour, markersize=6)
                beside(ax, f"{row[side]:.2f}", row[f"{side}_high"], y + shift, fontsize=8, color=colour)
        ax.axvline(0.5, color=QUIET, linestyle=":", linewidth=1.2, zorder=0)
        ax.set(xlabel=label, ylim=(len(recipes) - 0.5, -0.5), xlim=(min(0.4, _least(table, metric)), 1.02))
        bare(ax, "bottom")
    axes[0, 0].set_yticks(range(len(recipes)), recipes)
    note = "Black: official test; red: the other data set, at the same threshold. Dotted: chance. "
    head(fig, title, note + "Lines: 95% intervals, patients resampled.")
    return fig


def _least(table: pd.DataFrame, metric: str) -> float:
    part = table[table["metric"] == metric]
    return float(part[["test_low", "external_low"]].min().min()) - 0.03


@styled
def robustness(table: pd.DataFrame, title: str = "What does a worse image do to the score?") -> Figure:
    """AUC of each recipe under every corruption, by severity.

    Parameters
    ----------
    table
        From `trials.robustness`, of one or more recipes: `recipe, corruption, severity, auc`.

    Raises
    ------
    DataInvalid
        When a column is missing or there is no row.
    """
    need(table, ("recipe", "corruption", "severity", "auc"), "robustness")
    clean = table[table["severity"] == 0].set_index("recipe")["auc"]
    worse = table[table["severity"] > 0]
    names, recipes = list(dict.fromkeys(worse["corruption"])), list(dict.fromkeys(table["recipe"]))
    columns = min(6, len(names))
    rows = -(-len(names) // columns)
    fig, axes = blank(10, 1.0 + 1.75 * rows, rows, columns, sharex=True, sharey=True)
    looks = recipe_looks(recipes)
    for ax in axes.flat[len(names) :]:
        ax.remove()
    for place, (ax, name) in enumerate(zip(axes.flat, names, strict=False)):
        for recipe in recipes:
            part = worse[(worse["corruption"] == name) & (worse["recipe"] == recipe)].sort_values("severity")
            x = np.r_[0, part["severity"]]
            ax.plot(
                x, np.r_[clean.get(recipe, np.nan), part["auc"]], "o-", color=looks[recipe][0], ms=3, lw=1.3
            )
        ax.axhline(0.5, color=QUIET, linestyle=":", linewidth=1)
        ax.set_title(name, fontsize=9, fontweight="normal")
        ax.set_xticks(range(6))
        if place % columns == 0:
            ax.set_ylabel("AUC")
        if place + columns >= len(names):
            ax.set_xlabel("severity")
    for recipe in recipes:
        axes[0, 0].plot([], [], "o-", color=looks[recipe][0], label=recipe)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize=8.5)
    first = table.iloc[0]
    n = f"n = {first['n']:,} test images, one seed. " if "n" in table else ""
    head(fig, title, f"{n}Severity 0: as it is. Dotted: chance.")
    return fig
