"""The figures: blank ones for notebooks, learning curves, and dots with their intervals."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from xraylib.figures import style
from xraylib.figures.style import (
    DASHES,
    DPI,
    FAINT,
    INK,
    QUIET,
    SPLIT_COLOURS,
    TICKS,
    Figure,
    recipe_colours,
    recipe_label,
)
from xraylib.training.runs import TRAINING_VERSION

OVER_PATIENTS = "Lines: 95% intervals over patients, and over runs if there are three or more."
# Runs above which their lines are thin and their median is drawn.
MANY = 4
# Runs up to which a circle marks the best epoch of each.
CIRCLED = 5
_LEGEND_COLUMNS = 4
_PANELS_IN_A_ROW = 4


def blank(
    width: float, height: float, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, np.ndarray]:
    """Return an empty figure and its axes.

    Parameters
    ----------
    width, height
        Size in inches.
    rows, columns
        How many axes.
    options
        Passed to `Figure.subplots`.

    Returns
    -------
    Figure, numpy.ndarray
        The figure, and an object array `(rows, columns)` of its axes.
    """
    layout = ConstrainedLayoutEngine(h_pad=0.06, w_pad=0.06)
    fig = Figure(figsize=(width, height), dpi=DPI, layout=layout)
    axes = fig.subplots(rows, columns, squeeze=False, **options)
    for ax in axes.flat:
        ax.tick_params(**TICKS)
    return fig, axes


def panels(
    tables: dict[str, Any], height: float, labels: tuple[str, str]
) -> tuple[Figure, list[tuple[Axes, Any, str]]]:
    """Return a figure with one titled panel for each recipe.

    Parameters
    ----------
    tables
        Anything by the name of a recipe.
    height
        Of a panel, in inches.
    labels
        Labels of the x and the y axis.

    Returns
    -------
    Figure, list
        The figure, and for each recipe its axes, its value in `tables` and its colour.
    """
    columns = min(_PANELS_IN_A_ROW, len(tables))
    rows = math.ceil(len(tables) / columns)
    width = max(4.5, 2.5 * columns)
    fig, axes = blank(width, 0.9 + height * rows, rows, columns)
    for ax in axes.flat[len(tables) :]:
        ax.remove()
    colours = recipe_colours(tables)
    drawn = []
    for position, (name, table) in enumerate(tables.items()):
        ax = axes.flat[position]
        ax.set_title(textwrap.fill(recipe_label(name), 24), fontsize=9)
        if position + columns >= len(tables):
            ax.set_xlabel(labels[0])
        if position % columns == 0:
            ax.set_ylabel(labels[1])
        ax.tick_params(labelbottom=True)
        drawn.append((ax, table, colours[name]))
    return fig, drawn


def head(fig: Figure, title: str, note: str = "", recipes: Iterable[str] = ()) -> Figure:
    """Write the message above a figure and a note below it; name the colours of `recipes`."""
    width, height = fig.get_size_inches()
    colours = recipe_colours(recipes)
    text = textwrap.fill(title, int(width * 9.2), break_on_hyphens=False)
    if colours:
        look: dict[str, Any] = {"marker": "o", "markersize": 4}
        handles = [Line2D([], [], color=colour, **look) for colour in colours.values()]
        below_title = 1 - (0.06 + 0.2 * (text.count("\n") + 1)) / height
        fig.legend(
            handles,
            [recipe_label(name) for name in colours],
            loc="upper left",
            bbox_to_anchor=(0, below_title),
            ncols=min(_LEGEND_COLUMNS, len(colours)),
        )
        # Empty lines make room for the legend, which the layout does not know.
        text += "\n" * math.ceil(len(colours) / _LEGEND_COLUMNS)
    fig.suptitle(text, fontsize=12, fontweight="bold", color=INK, x=0.008, ha="left")
    if note:
        note = textwrap.fill(note, int(width * 15), break_on_hyphens=False)
        fig.supxlabel(note, fontsize=8.5, color=QUIET, x=0.008, ha="left")
    return fig


@style.styled
def learning_curves(
    named: Mapping[str, pd.DataFrame], title: str, last_kept: bool = False
) -> Figure:
    """Draw loss and accuracy by epoch.

    Parameters
    ----------
    named
        Each run's history by the run's name. Of more than `MANY` runs the median is bold.
    title
        The message of the figure.
    last_kept
        Whether the last epoch was kept, and not the best.
    """
    runs = [history.sort_values("epoch") for history in named.values()]
    together = pd.concat(runs)
    phases = pd.concat([run.groupby("phase")["epoch"].min().iloc[1:] for run in runs])
    fig, (axes,) = blank(9.5, 3.8, 1, 2)
    for ax, measure in zip(axes, ("loss", "accuracy"), strict=True):
        _curves(ax, runs, measure, "#999999")
        _curves(ax, runs, f"val_{measure}", "#000000")
        ax.set(xlabel="epoch", ylabel=measure, xlim=(0.5, together["epoch"].max() + 0.5))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        for epoch in phases.unique():
            # A phase begins halfway between two epochs.
            ax.axvline(epoch - 0.5, color=QUIET, linewidth=1, linestyle=":", zorder=0)
        above: dict[str, Any] = {"transform": ax.transAxes, "fontweight": "bold"}
        ax.text(0.72, 1.02, "train ", color=QUIET, ha="right", **above)
        ax.text(0.72, 1.02, "validation", color="#000000", **above)
    axes[0].set_ylabel("cross-entropy loss")
    losses = together[["loss", "val_loss"]].to_numpy(dtype=float)
    if np.nanmax(losses) > 10 * np.nanmin(losses) > 0:
        axes[0].set_yscale("log")
        axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes[0].yaxis.set_minor_formatter(NullFormatter())
        axes[0].yaxis.set_major_formatter("{x:g}")
    note = _curves_note(list(named), "val_auc_framing" in together, last_kept)
    return head(fig, title, f"{note} Dotted: a new phase begins." if len(phases) else note)


def _curves(ax: Axes, runs: list[pd.DataFrame], column: str, colour: str) -> None:
    """Draw one column of each run: few runs by dashes, many thinly with their median."""
    many = len(runs) > MANY
    for position, run in enumerate(runs):
        look: dict[str, Any] = {"linewidth": 0.6, "alpha": 0.3}
        if not many:
            marker = "o" if len(run) < 8 else None
            look = {"linewidth": 1.2, "linestyle": DASHES[position], "marker": marker}
        ax.plot(run["epoch"], run[column], color=colour, markersize=4, **look)
        if len(runs) <= CIRCLED and column.startswith("val_"):
            best = run.iloc[_best_epoch(run)]
            ring: dict[str, Any] = {"markerfacecolor": "white", "markersize": 6, "zorder": 5}
            ax.plot(best["epoch"], best[column], "o", color=INK, **ring)
    if many:
        median = pd.concat(runs).groupby("epoch")[column].median()
        ax.plot(median.index, median, color=colour, linewidth=2.2)


def _best_epoch(run: pd.DataFrame) -> int:
    """Find the row whose validation loss is least, or whose worst swapped view is best."""
    views = run.columns[run.columns.str.startswith("val_auc_")]
    if len(views):
        return int(run[views].min(axis=1).argmax())
    return int(run["val_loss"].argmin())


def _curves_note(names: list[str], swapped: bool, last_kept: bool) -> str:
    """Say what dashes and rings mean, and which epoch was kept."""
    rule = "best AUC on changed validation images" if swapped else "lowest validation loss"
    kept = "The last epoch was kept." if last_kept else f"The epoch with the {rule} was kept."
    if len(names) <= CIRCLED:
        kept = f"{kept} Circle: {rule}."
    if len(names) > MANY:
        return f"Bold: median of {len(names)} runs. {kept}"
    if len(names) == 1:
        return kept
    words = zip(names, ("solid", "dashed", "dash-dotted", "dotted"), strict=False)
    return "; ".join(f"{name}: {word}" for name, word in words) + f". {kept}"


def forest(
    axes: Sequence[Axes],
    panels: Sequence[tuple[pd.DataFrame, str, str]],
    row: str,
    labels: Mapping[Any, str],
    *,
    within: str = "recipe",
    start: float | None = None,
    line: float | None = None,
    text: bool = False,
) -> None:
    """Draw a dot and its interval for each line of some tables, as every figure of intervals does.

    Parameters
    ----------
    axes, panels
        The axes, and for each a table, the column of its dots and its x label. The interval is
        `<column>_low` to `<column>_high`, or `low` to `high`.
    row
        The column that names the row of a line.
    labels
        Labels of the rows from top to bottom.
    within
        The column, recipe or split, that gives the colour; lines of one row are drawn below each
        other.
    start
        Left end of a scale that ends at 1, unless an interval reaches beyond it.
    line
        A reference value, dotted.
    text
        Whether `0.85 (0.82–0.88)` is written right of the axes.
    """
    names = panels[0][0][within].unique()
    colours = SPLIT_COLOURS if within == "split" else recipe_colours(names)
    order = [name for name in colours if name in names]
    for ax, (table, value, xlabel) in zip(axes, panels, strict=True):
        several = bool(table.duplicated(row).any())
        prefix = f"{value}_" if f"{value}_low" in table else ""
        size = 4.0 if several and len(order) > 2 else 6.0
        for _, entry in table.iterrows():
            colour = colours[entry[within]]
            height = float(list(labels).index(entry[row]))
            if several:
                # The lines of one row are spread over 70% of its height.
                position = order.index(entry[within]) - (len(order) - 1) / 2
                height += position * 0.7 / len(order)
            ends = [entry[f"{prefix}low"], entry[f"{prefix}high"]]
            ax.plot(ends, [height, height], color=colour, linewidth=1.8, clip_on=False)
            ax.plot(entry[value], height, "o", color=colour, markersize=size, clip_on=False)
            if text:
                written = style.interval(entry[value], ends[0], ends[1], decimals=2)
                beside: dict[str, Any] = {"transform": ax.get_yaxis_transform(), "fontsize": 8}
                ink = colour if several else INK
                ax.text(1.03, height, written, color=ink, va="center", **beside)
        if line is not None:
            ax.axvline(line, color=QUIET, linestyle=":", linewidth=1.2)
        if start is not None:
            ax.set_xlim(max(0.0, min(start, float(table[f"{prefix}low"].min()) - 0.03)), 1.0)
        for edge in range(1, len(labels)):
            ax.axhline(edge - 0.5, color=FAINT, linewidth=0.5, zorder=0)
        ax.set(xlabel=xlabel, ylim=(len(labels) - 0.5, -0.5))
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        ax.spines[["left", "top", "right"]].set_visible(False)
        ax.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(len(labels)), list(labels.values()))


def stale_note(board: pd.DataFrame) -> str:
    """Say what the dagger at some runs means; empty if all are of today's training code.

    Before version 2 patients of Kermany's images were told apart otherwise, which touches `strict`
    alone. `attrs["dataset"]` of the leaderboard is the name of its report.
    """
    is_older = board["training_version"] < TRAINING_VERSION
    if not (is_older & (board["protocol"] == "strict")).any():
        return ""
    note = "† These runs are of an earlier version of the code and have not been repeated yet."
    if str(board.attrs.get("dataset", "")).startswith("kermany"):
        note += " Their validation images share children with their training images."
    return note


@style.styled
def protocol_comparison(table: pd.DataFrame) -> Figure:
    """Draw accuracy by how a network was split and scored, of `comparisons.protocol_comparison`."""
    recipes = table["recipe"].unique()
    labels = {}
    for name, lines in table.groupby("comparison", sort=False):
        a_run = " for each run" if lines["seeds"].max() > 1 else ""
        labels[name] = f"{name}\nn = {lines['n'].max():,}{a_run}"
    width = min(10.0, 3.0 + 2.4 * len(recipes))
    height = 1.5 + 0.45 * len(labels)
    fig, (axes,) = blank(width, height, 1, len(recipes), sharex=True, sharey=True)
    start = min(0.7, float(table["accuracy_low"].min()) - 0.02)
    for ax, recipe in zip(axes, recipes, strict=True):
        lines = table[table["recipe"] == recipe]
        panel = (lines, "accuracy", "accuracy")
        forest([ax], [panel], "comparison", labels, start=start, text=True)
        ax.set_title(recipe_label(recipe))
    note = f"Dots: means over runs. {OVER_PATIENTS}"
    return head(fig, "Accuracy by how images are split and scored", note)
