"""Figures of the evaluation: calibration, decisions, subgroups, other hospitals, corruptions."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from xraylib.figures.style import (
    FAINT,
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
    fig, panels = panels_of(tables, columns, 2.6, ("mean score of the bin", "share with pneumonia"))
    for ax, table, colour in panels:
        ax.plot([0, 1], [0, 1], color=FAINT, linewidth=1, zorder=0)
        ax.vlines(table["score"], table["low"], table["high"], color=colour, linewidth=1.6)
        sizes = 14 + 160 * table["images"] / table["images"].sum()
        ax.scatter(table["score"], table["share"], s=sizes, color=colour, zorder=3)
        ax.set(xlim=(-0.06, 1.06), ylim=(-0.06, 1.06), aspect="equal")
    head(fig, title, "Ten bins of equal width; dot size: images. Lines: 95% intervals, patients resampled.")
    return fig


@styled
def decision_curve(
    tables: dict[str, pd.DataFrame], title: str = "Is acting on the score worth it?", columns: int = 4
) -> Figure:
    """Net benefit over threshold probability, less that of the better of treating everybody and nobody.

    Parameters
    ----------
    tables
        By recipe, each from `calibration.decision_curve`: `cut, gain, gain_low, gain_high`.
    columns
        Panels a row.

    Raises
    ------
    DataInvalid
        When a column is missing or there is no row.
    """
    for name, table in tables.items():
        need(table, ("cut", "gain", "gain_low", "gain_high"), f"{name}'s decision curve")
    fig, panels = panels_of(tables, columns, 2.3, ("threshold probability", "net benefit gained"))
    least = min(float(table["gain"].min()) for table in tables.values())
    for ax, table, colour in panels:
        ax.fill_between(table["cut"], table["gain_low"], table["gain_high"], color=colour, alpha=0.2, lw=0)
        ax.plot(table["cut"], table["gain"], color=colour, linewidth=1.8)
        ax.axhline(0, color=QUIET, linewidth=1)
        ax.set_ylim(bottom=max(-0.3, least - 0.05))
    note = "True positives an image, less false ones at the threshold's odds, against the better of treating "
    head(fig, title, note + "everybody and nobody (0). Bands: 95% intervals, patients resampled.")
    return fig


@styled
def subgroups(
    table: pd.DataFrame,
    title: str = "Who is called rightly, and who is not?",
    at: str = "the threshold chosen on validation",
) -> Figure:
    """Share of each subgroup called rightly, by recipe, with intervals.

    Parameters
    ----------
    table
        From `subgroups.table`, of one or more recipes: `recipe, subgroup, images, right, right_low,
        right_high`.
    at
        Which operating point, for the note below.

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
    head(fig, title, f"At {at}. Lines: 95% intervals, patients resampled.")
    return fig


@styled
def drop(
    table: pd.DataFrame,
    other: str = "the other data set",
    title: str = "What is left in another hospital?",
) -> Figure:
    """AUC and balanced accuracy on the official test and on another data set, with intervals.

    Parameters
    ----------
    table
        From `trials.drop`.
    other
        What the other data set is called.

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
                ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
                said = {"fontsize": 8, "color": colour, "bbox": ground}
                beside(ax, f"{row[side]:.2f}", row[f"{side}_high"], y + shift, **said)
        ax.axvline(0.5, color=QUIET, linestyle=":", linewidth=1.2, zorder=0)
        ax.set(xlabel=label, ylim=(len(recipes) - 0.5, -0.5), xlim=(min(0.4, _least(table, metric)), 1.02))
        bare(ax, "bottom")
    axes[0, 0].set_yticks(range(len(recipes)), recipes)
    note = f"Black: official test; magenta: {other}, at the same threshold. Dotted: chance. "
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
        From `robustness.losses`, of one or more recipes: `recipe, corruption, severity, auc`.

    Raises
    ------
    DataInvalid
        When a column is missing or there is no row.
    """
    need(table, ("recipe", "corruption", "severity", "auc"), "robustness")
    clean = table[table["severity"] == 0].set_index("recipe")["auc"]
    worse = table[table["severity"] > 0]
    need(worse, (), "corruptions")
    names, recipes = list(dict.fromkeys(worse["corruption"])), list(dict.fromkeys(table["recipe"]))
    columns = min(6, len(names))
    rows = -(-len(names) // columns)
    fig, axes = blank(10, 1.0 + 1.75 * rows, rows, columns, sharex=True)
    looks, steps = recipe_looks(recipes), worse.groupby("corruption")["severity"].nunique()
    # What has one severity only, and overturns the image, would flatten all the others.
    usual = table[table["corruption"].map(steps).fillna(2) > 1]["auc"]
    bottom, top = min(0.48, float(usual.min()) - 0.02), max(0.52, float(usual.max()) + 0.02)
    for ax in axes.flat[len(names) :]:
        ax.remove()
    for place, (ax, name) in enumerate(zip(axes.flat, names, strict=False)):
        ax.set_ylim(*((0, 1) if steps[name] == 1 else (bottom, top)))
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
        elif steps[name] > 1:
            ax.set_yticklabels([])
        if place + columns >= len(names):
            ax.set_xlabel("severity")
    for recipe in recipes:
        axes[0, 0].plot([], [], "o-", color=looks[recipe][0], label=recipe)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize=8.5)
    first = table.iloc[0]
    n = f"n = {first['n']:,} test images, one seed. " if "n" in table else ""
    head(fig, title, f"{n}Severity 0: as it is. Dotted: chance.")
    return fig


@styled
def losses(table: pd.DataFrame, title: str = "What does a worse image cost?") -> Figure:
    """AUC lost and balanced error gained by each corruption, its severities averaged, with intervals.

    Parameters
    ----------
    table
        From `robustness.losses`, averaged: `recipe, corruption`, and both changes with their intervals.

    Raises
    ------
    DataInvalid
        When a column is missing or there is no row.
    """
    panels = {"auc_lost": "AUC lost", "balanced_error_gained": "balanced error gained"}
    need(table, ("recipe", "corruption", "severity", *panels, *(f"{name}_low" for name in panels)), "losses")
    worse, recipes = table[table["corruption"] != "none"], list(dict.fromkeys(table["recipe"]))
    need(worse, (), "corruptions")
    # What has one severity only, and overturns the image, would flatten all the others: it has its own scale.
    once = worse["severity"] == 1
    parts = [part for part in (worse[~once], worse[once]) if len(part)]
    counts = [part["corruption"].nunique() for part in parts]
    height = 0.9 + 0.6 * len(parts) + (0.14 + 0.07 * len(recipes)) * sum(counts)
    fig, axes = blank(10, height, len(parts), 2, sharey="row", gridspec_kw={"height_ratios": counts})
    for row, part in zip(axes, parts, strict=True):
        for ax, (change, label) in zip(row, panels.items(), strict=True):
            _changes(ax, part, change, recipes)
            ax.set_xlabel(label)
        row[0].set_yticks(range(part["corruption"].nunique()), part["corruption"].unique())
    for recipe in recipes:
        axes[0, 0].plot([], [], "o-", color=recipe_looks(recipes)[recipe][0], markersize=3.5, label=recipe)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize=8.5)
    note = "Severities averaged; dotted: as good as untouched. Lines: 95% intervals over patients, "
    head(fig, title, note + "without width where no call changes.")
    return fig


def _changes(ax: Axes, part: pd.DataFrame, change: str, recipes: list[str]) -> None:
    """One line a corruption, and in it a dot with its interval for each recipe."""
    names, looks, step = list(dict.fromkeys(part["corruption"])), recipe_looks(recipes), 0.8 / len(recipes)
    for row in records(part):
        y = names.index(row["corruption"]) + (recipes.index(row["recipe"]) - (len(recipes) - 1) / 2) * step
        colour = looks[row["recipe"]][0]
        ax.plot([row[f"{change}_low"], row[f"{change}_high"]], [y, y], color=colour, linewidth=1.4)
        ax.plot(row[change], y, "o", color=colour, markersize=3.5)
    ax.axvline(0, color=QUIET, linestyle=":", linewidth=1.2, zorder=0)
    for line in range(1, len(names)):
        ax.axhline(line - 0.5, color=FAINT, linewidth=0.5, zorder=0)
    ax.set_ylim(len(names) - 0.5, -0.5)
    bare(ax, "bottom")
