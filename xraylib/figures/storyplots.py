"""Figures of comparisons: one network split and scored five ways, and imbalance remedies draw by draw."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from xraylib.figures.style import (
    FAINT,
    INK,
    QUIET,
    Figure,
    bare,
    blank,
    head,
    need,
    percents,
    recipe_looks,
    records,
    styled,
)

_PANELS = {
    "val_accuracy": "accuracy, own {n_val} validation images",
    "accuracy": "accuracy, {n_test} test images",
    "auc": "AUC, {n_test} test images",
}


@styled
def story(
    table: pd.DataFrame, title: str = "One network, five ways of splitting and scoring: how accurate is it?"
) -> Figure:
    """Accuracy of each recipe by way of splitting and scoring, with intervals.

    Parameters
    ----------
    table
        From `comparisons.story`: `recipe, way, n, seeds, accuracy, accuracy_low, accuracy_high`.

    Raises
    ------
    DataInvalid
        When a column is missing or there is no row.
    """
    need(
        table,
        ("recipe", "way", "n", "seeds", "accuracy", "accuracy_low", "accuracy_high"),
        "the five ways",
    )
    recipes, ways = list(dict.fromkeys(table["recipe"])), list(dict.fromkeys(table["way"]))
    fig, axes = blank(3.4 + 2.3 * len(recipes), 1.5 + 0.5 * len(ways), 1, len(recipes), sharex=True)
    looks, sizes = recipe_looks(recipes), table.groupby("way")["n"].max()
    seeds = table.groupby("way")["seeds"].max()
    labels = [f"{way}\nn = {sizes[way]:,}{' a seed' if seeds[way] > 1 else ''}" for way in ways]
    low = float(table["accuracy_low"].min())
    for place, (ax, recipe) in enumerate(zip(axes[0], recipes, strict=True)):
        part = table[table["recipe"] == recipe]
        _ways(ax, part, ways, looks[recipe][0])
        ax.set_title(recipe)
        ax.set(xlabel="accuracy", xlim=(min(0.7, low - 0.02), 1.01), ylim=(len(ways) - 0.5, -0.7))
        ax.xaxis.set_major_formatter(FuncFormatter(percents))
        ax.set_yticks(range(len(ways)), labels if place == 0 else [])
        bare(ax, "bottom")
    head(fig, title, "Mean over seeds. Lines: 95% intervals, patients resampled.")
    return fig


def _ways(ax: Axes, part: pd.DataFrame, ways: list[str], colour: str) -> None:
    ax.plot(part["accuracy"], part["way"].map(ways.index), color=FAINT, linewidth=1.2, zorder=0)
    for row in records(part):
        y = ways.index(row["way"])
        ax.plot([row["accuracy_low"], row["accuracy_high"]], [y, y], color=colour, linewidth=2)
        ax.plot(row["accuracy"], y, "o", color=colour, markersize=7)
        above: dict[str, Any] = {
            "xytext": (0, 7),
            "textcoords": "offset points",
            "ha": "center",
            "fontsize": 8.5,
        }
        ax.annotate(f"{row['accuracy']:.1%}", (row["accuracy"], y), color=INK, **above)


@styled
def draws(
    table: pd.DataFrame,
    names: dict[str, str] | None = None,
    title: str = "Which remedy for imbalance is best? It depends on the draw",
) -> Figure:
    """Every draw of some recipes as a dot: accuracy on its own validation, accuracy and AUC on the test.

    Parameters
    ----------
    table
        From `comparisons.draws`: `recipe, seed, n_val, n_test, val_accuracy, accuracy, auc`.
    names
        What to call a recipe; its own name by default.

    Raises
    ------
    DataInvalid
        When a column is missing or there is no row.
    """
    need(table, ("recipe", "seed", "n_val", "n_test", *_PANELS), "draws")
    recipes, names = list(dict.fromkeys(table["recipe"])), names or {}
    fig, axes = blank(10, 1.5 + 0.55 * len(recipes), 1, len(_PANELS), sharey=True)
    for ax, (column, label) in zip(axes[0], _PANELS.items(), strict=True):
        for y, recipe in enumerate(recipes):
            _dots(ax, table.loc[table["recipe"] == recipe, column].to_numpy(dtype=float), y)
        sizes = {size: f"{table[size].iloc[0]:,}" for size in ("n_val", "n_test")}
        ax.set(xlabel=label.format(**sizes), ylim=(len(recipes) - 0.4, -0.6))
        ax.xaxis.set_major_formatter(FuncFormatter(percents if "accuracy" in column else _share))
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5]))
        bare(ax, "bottom")
    axes[0, 0].set_yticks(range(len(recipes)), [names.get(recipe, recipe) for recipe in recipes])
    many = table.groupby("recipe")["seed"].nunique().max()
    head(fig, title, f"Dots: {many} draws each, threshold .5. Bar and figures: mean (lowest–highest).")
    return fig


def _share(value: float, _: float) -> str:
    return f"{value:.2f}"


def _dots(ax: Axes, values: np.ndarray, y: int) -> None:
    values = values[np.isfinite(values)]
    if not len(values):
        return
    # Equal values stand beside each other, not on each other.
    order = np.argsort(values, kind="stable")
    shifts = np.empty(len(values))
    shifts[order] = np.resize([0.0, 0.1, -0.1, 0.2, -0.2], len(values))
    ax.plot(values, y + shifts, "o", color=QUIET, markersize=5, alpha=0.6, markeredgewidth=0)
    mean = values.mean()
    ax.plot([mean, mean], [y - 0.28, y + 0.28], color=INK, linewidth=2)
    text = f"{mean:.2f} ({values.min():.2f}–{values.max():.2f})"
    ax.annotate(
        text, (mean, y - 0.3), (0, 2), textcoords="offset points", ha="center", va="bottom", fontsize=8
    )
