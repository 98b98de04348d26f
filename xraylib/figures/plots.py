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
    STYLE,
    Figure,
    recipe_colours,
    recipe_label,
)
from xraylib.training.runs import TRAINING_VERSION

OVER_PATIENTS = "Lines: 95% intervals over patients, and over runs if there are three or more."
# Runs above which their lines are thin and their median is drawn.
MANY = 5
_LEGEND_COLUMNS = 4


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
    fig = Figure(
        figsize=(width, height),
        dpi=DPI,
        layout=layout,
    )
    axes = fig.subplots(rows, columns, squeeze=False, **options)
    # Ticks are made while drawing, when the style of `styled` is no longer in force.
    for ax in axes.flat:
        ax.tick_params(labelsize=STYLE["xtick.labelsize"], color=STYLE["axes.edgecolor"])
    return fig, axes


def panels(
    tables: dict[str, Any],
    height: float,
    labels: tuple[str, str],
    columns: int = 4,
    **options: Any,
) -> tuple[Figure, list[tuple[Axes, Any, str]]]:
    """Return a figure with one titled panel for each recipe.

    Parameters
    ----------
    tables
        Anything by the name of a recipe.
    height, columns
        Height of a panel in inches; how many panels side by side at most.
    labels
        Labels of the x and the y axis.
    options
        Passed to `Figure.subplots`.

    Returns
    -------
    Figure, list
        The figure, and for each recipe its axes, its value in `tables` and its colour.
    """
    columns = min(columns, len(tables))
    rows = math.ceil(len(tables) / columns)
    width = max(4.5, min(10, 2.5 * columns))
    fig, axes = blank(
        width,
        0.9 + height * rows,
        rows,
        columns,
        **options,
    )
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
        handles = [
            Line2D(
                [],
                [],
                color=colour,
                marker="o",
                markersize=4,
            )
            for colour in colours.values()
        ]
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
    fig.suptitle(
        text,
        fontsize=12,
        fontweight="bold",
        color=INK,
        x=0.008,
        ha="left",
    )
    if note:
        note = textwrap.fill(note, int(width * 15), break_on_hyphens=False)
        fig.supxlabel(
            note,
            fontsize=8.5,
            color=QUIET,
            x=0.008,
            ha="left",
        )
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
    histories = {name: history.sort_values("epoch") for name, history in named.items()}
    fig, (axes,) = blank(9.5, 3.8, 1, 2)
    for ax, measure in zip(axes, ("loss", "accuracy"), strict=True):
        _curves(ax, list(histories.values()), measure)
    return head(fig, title, _curves_note(histories, last_kept))


def _curves(ax: Axes, runs: list[pd.DataFrame], measure: str) -> None:
    """Draw a measure of training (gray) and validation (black) of each run."""
    _curve_lines(ax, runs, measure, "#999999")
    _curve_lines(ax, runs, f"val_{measure}", "#000000")
    for run in runs if len(runs) <= MANY else ():
        best = run.iloc[_best_epoch(run)]
        ax.plot(
            best["epoch"],
            best[f"val_{measure}"],
            "o",
            color=INK,
            markerfacecolor="white",
            markersize=6,
            zorder=5,
        )
    if measure == "loss":
        _loss_scale(ax, runs)
    _words_above(ax, 0.72, "train ", QUIET, "right")
    _words_above(ax, 0.72, "validation", "#000000", "left")
    last_epoch = max(run["epoch"].max() for run in runs)
    ax.set(xlabel="epoch", xlim=(0.5, last_epoch + 0.5))
    ax.set_ylabel("cross-entropy loss" if measure == "loss" else measure)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for start in _phase_starts(runs):
        ax.axvline(
            start,
            color=QUIET,
            linewidth=1,
            linestyle=":",
            zorder=0,
        )


def _curve_lines(ax: Axes, runs: list[pd.DataFrame], column: str, colour: str) -> None:
    """Draw one column of each run; of many runs thinly, with their median in bold."""
    many = len(runs) > MANY
    for run, dash in zip(runs, _dashes(len(runs)), strict=True):
        ax.plot(
            run["epoch"],
            run[column],
            linestyle=dash,
            color=colour,
            linewidth=0.6 if many else 1.2,
            alpha=0.3 if many else 1,
            marker="o" if len(run) < 8 and not many else None,
            markersize=4,
        )
    if many:
        median = pd.concat(runs).groupby("epoch")[column].median()
        ax.plot(median.index, median, color=colour, linewidth=2.2)


def _loss_scale(ax: Axes, runs: list[pd.DataFrame]) -> None:
    """Choose a logarithmic scale if the loss spans more than a factor of ten."""
    values = pd.concat(runs)[["loss", "val_loss"]].to_numpy(dtype=float)
    if np.nanmax(values) > 10 * np.nanmin(values) > 0:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.yaxis.set_major_formatter("{x:g}")


def _dashes(count: int) -> list[str]:
    """Give each of a few runs a dash of its own."""
    return list(DASHES[:count]) if 1 < count <= len(DASHES) else ["-"] * count


def _best_epoch(run: pd.DataFrame) -> int:
    """Find the row whose validation loss is least, or whose worst swapped view is best."""
    views = run.columns[run.columns.str.startswith("val_auc_")]
    if len(views):
        return int(run[views].min(axis=1).argmax())
    return int(run["val_loss"].argmin())


def _phase_starts(runs: list[pd.DataFrame]) -> set[float]:
    """Find where a phase after the first begins, halfway between two epochs."""
    starts: set[float] = set()
    for run in runs:
        first_epochs = run.groupby("phase")["epoch"].min().iloc[1:]
        starts.update(float(epoch) - 0.5 for epoch in first_epochs)
    return starts


def _curves_note(histories: Mapping[str, pd.DataFrame], last_kept: bool) -> str:
    """Say what dashes, rings and dotted lines mean."""
    runs = list(histories.values())
    swapped = "val_auc_framing" in runs[0]
    rule = "best AUC on re-framed validation" if swapped else "lowest validation loss"
    kept = "The last epoch was kept." if last_kept else f"The epoch with the {rule} was kept."
    sentences = []
    if 1 < len(runs) <= len(DASHES):
        words = zip(histories, ("solid", "dashed", "dash-dotted", "dotted"), strict=False)
        sentences.append("; ".join(f"{name}: {word}" for name, word in words) + ".")
    if len(runs) > MANY:
        sentences.append(f"Bold: median of {len(runs)} runs. {kept}")
    else:
        sentences.append(f"{kept} Circle: {rule}.")
    if _phase_starts(runs):
        sentences.append("Dotted: a new phase begins.")
    return " ".join(sentences)


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
    first = panels[0][0]
    colours = SPLIT_COLOURS if within == "split" else recipe_colours(first[within])
    colours = {name: colour for name, colour in colours.items() if (first[within] == name).any()}
    for ax, (table, value, xlabel) in zip(axes, panels, strict=True):
        _forest_lines(ax, table, value, row, list(labels), within, colours, text)
        if line is not None:
            ax.axvline(line, color=QUIET, linestyle=":", linewidth=1.2)
        if start is not None:
            lowest = float(table[_end_columns(table, value)[0]].min())
            ax.set_xlim(max(0.0, min(start, lowest - 0.03)), 1.0)
        _rows_style(ax, len(labels), xlabel)
    axes[0].set_yticks(range(len(labels)), list(labels.values()))


def _forest_lines(
    ax: Axes,
    table: pd.DataFrame,
    value: str,
    row: str,
    rows: list[Any],
    within: str,
    colours: Mapping[str, str],
    text: bool,
) -> None:
    """Draw the lines of one panel of a forest; see there."""
    several = bool(table.duplicated(row).any())
    size = 4.0 if several and len(colours) > 2 else 6.0
    for _, line in table.iterrows():
        name = line[within]
        height = float(rows.index(line[row]))
        if several:
            height += _shift(list(colours).index(name), len(colours))
        numbers = _numbers(line, value, *_end_columns(table, value))
        _dot(
            ax,
            height,
            numbers,
            colours[name],
            size,
        )
        if text:
            ink = colours[name] if several else INK
            _beside(ax, height, style.interval(*numbers, decimals=2), ink)


def _numbers(row: Any, *names: str) -> tuple[float, float, float]:
    """Read a value and the ends of its interval from a row of a table."""
    value, low, high = (float(row[name]) for name in names)
    return value, low, high


def _end_columns(table: pd.DataFrame, value: str) -> tuple[str, str]:
    """Name the columns that hold the interval of a value."""
    return (f"{value}_low", f"{value}_high") if f"{value}_low" in table else ("low", "high")


def _shift(position: int, count: int) -> float:
    """Spread the lines of one row over 70% of its height."""
    return (position - (count - 1) / 2) * 0.7 / count


def _dot(
    ax: Axes, height: float, numbers: tuple[float, float, float], colour: str, size: float = 6.0
) -> None:
    """Draw a value with its interval; both may reach beyond the axes."""
    value, low, high = numbers
    ax.plot(
        [low, high],
        [height, height],
        color=colour,
        linewidth=1.8,
        clip_on=False,
    )
    ax.plot(
        value,
        height,
        "o",
        color=colour,
        markersize=size,
        clip_on=False,
    )


def _beside(ax: Axes, height: float, text: str, colour: str) -> None:
    """Write a text right of the axes, on the height of a row."""
    transform = ax.get_yaxis_transform()
    ax.text(
        1.03,
        height,
        text,
        color=colour,
        transform=transform,
        va="center",
        fontsize=8,
    )


def _rows_style(ax: Axes, count: int, xlabel: str) -> None:
    """Draw faint lines between the rows, and no axis at their left."""
    for edge in range(1, count):
        ax.axhline(
            edge - 0.5,
            color=FAINT,
            linewidth=0.5,
            zorder=0,
        )
    ax.set(xlabel=xlabel, ylim=(count - 0.5, -0.5))
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    ax.spines[["left", "top", "right"]].set_visible(False)
    ax.tick_params(axis="y", length=0)


def stale_note(board: pd.DataFrame) -> str:
    """Say what the dagger at some runs means; empty if all are of today's training code.

    Before version 2 patients of Kermany's images were told apart otherwise, which touches `strict`
    alone. `attrs["dataset"]` of the leaderboard is the name of its report.
    """
    versions = board.get("training_version", pd.Series(TRAINING_VERSION, index=board.index))
    if not ((versions < TRAINING_VERSION) & (board["protocol"] == "strict")).any():
        return ""
    note = "† Not trained again yet: an earlier version of the code"
    if str(board.attrs.get("dataset", "")).startswith("kermany"):
        note += ", whose validation images share children with the training images"
    return f"{note}."


@style.styled
def leaderboard(table: pd.DataFrame) -> Figure:
    """Draw AUC and accuracy of each row of `tables.leaderboard`, best AUC first."""
    table = table.assign(best=-table.groupby("recipe")["auc"].transform("max"))
    table = table.sort_values(["best", "recipe", "protocol", "init"]).reset_index(drop=True)
    table["row"] = table.index
    labels = {position: _leaderboard_label(row) for position, row in table.iterrows()}
    fig, (axes,) = blank(
        10,
        1.2 + 0.44 * len(table),
        1,
        2,
        sharey=True,
    )
    panels = [(table, "auc", "AUC"), (table, "accuracy", "accuracy")]
    forest(
        axes,
        panels,
        "row",
        labels,
        start=0.6,
        text=True,
    )
    sentences = ["Official test, the recipe of the best AUC first.", OVER_PATIENTS]
    # Under another protocol other images are tested than those of the claim.
    claimed = table[table["claimed_accuracy"].notna() & (table["protocol"] == "published")]
    # An empty line without clipping has no extent, and the layout would collapse.
    if len(claimed):
        look = {
            "color": INK,
            "markerfacecolor": "none",
            "markersize": 8,
            "clip_on": False,
        }
        axes[1].plot(claimed["claimed_accuracy"], claimed["row"], "D", **look)
        sentences.append("Diamond: claimed accuracy.")
    sentences.append(stale_note(table))
    title = "How good are the recipes, and what was claimed?"
    return head(fig, title, " ".join(sentences).strip())


def _leaderboard_label(row: pd.Series) -> str:
    """Name a row of the leaderboard in two lines; a dagger marks an older training version."""
    init = str(row["init"]).split(" (")[0]
    weights = f"{init.replace('imagenet', 'ImageNet')} weights" if init != "none" else "no network"
    plural = "" if row["seeds"] == 1 else "s"
    older = row.get("training_version", TRAINING_VERSION) < TRAINING_VERSION
    older = older and row["protocol"] == "strict"
    dagger = " †" if older else ""
    first = f"{recipe_label(row['recipe'])}, {row['protocol']}{dagger}"
    return f"{first}\n{weights}, {row['seeds']} run{plural}, n = {row['n_test']:,}"


@style.styled
def protocol_comparison(table: pd.DataFrame) -> Figure:
    """Draw accuracy by how a network was split and scored, of `comparisons.protocol_comparison`."""
    recipes = table["recipe"].unique()
    labels = {}
    for name, lines in table.groupby("comparison", sort=False):
        a_run = " for each run" if lines["seeds"].max() > 1 else ""
        labels[name] = f"{name}\nn = {lines['n'].max():,}{a_run}"
    width = min(10.0, 3.0 + 2.4 * len(recipes))
    fig, (axes,) = blank(
        width,
        1.5 + 0.45 * len(labels),
        1,
        len(recipes),
        sharex=True,
        sharey=True,
    )
    start = min(0.7, float(table["accuracy_low"].min()) - 0.02)
    for ax, recipe in zip(axes, recipes, strict=True):
        lines = table[table["recipe"] == recipe]
        panel = (lines, "accuracy", "accuracy")
        forest(
            [ax],
            [panel],
            "comparison",
            labels,
            start=start,
            text=True,
        )
        ax.set_title(recipe_label(recipe))
    note = f"Mean over runs. {OVER_PATIENTS}"
    return head(fig, "How accurate is a network, by how it is split and scored?", note)


@style.styled
def framing(comparison: pd.DataFrame, response: pd.DataFrame, board: pd.DataFrame) -> Figure:
    """Draw accuracy by protocol, and specificity by how far normal images are cropped.

    Parameters
    ----------
    comparison
        Of `comparisons.protocol_comparison`; its first recipe is drawn.
    response
        Of `views.framing_response`.
    board
        The leaderboard; its strict rows are the official test's.
    """
    first = comparison["recipe"].iloc[0]
    lines = comparison[comparison["recipe"] == first]
    labels = {name: textwrap.fill(name, 22) for name in lines["comparison"]}
    fig, ((left, right),) = blank(
        10,
        4.6,
        1,
        2,
        width_ratios=(1, 1.5),
    )
    forest(
        [left],
        [(lines, "accuracy", "accuracy")],
        "comparison",
        labels,
        start=0.6,
    )
    left.set_title(f"{recipe_label(first)}, split and scored five ways")
    views = _dose_response(right, response)
    colours = recipe_colours(response["recipe"])
    _test_points(right, board, colours, len(views))
    right.axvspan(
        len(views) - 0.4,
        len(views) + 0.9,
        color=FAINT,
        alpha=0.35,
        linewidth=0,
    )
    right.set_xticks(range(len(views) + 1), [*views, "official test,\nuncropped"])
    right.set_title("Validation normals, cropped at top and bottom")
    note = "Left: the threshold is 0.5 except in the last row. Right: the frozen threshold. "
    title = "What do evaluation and cropping change?"
    return head(fig, title, f"{note}Lines: 95% intervals.", colours)


def _test_points(ax: Axes, board: pd.DataFrame, colours: Mapping[str, str], place: int) -> None:
    """Draw the specificity of each recipe on the official test, right of the doses."""
    tests = board[board["protocol"] == "strict"]
    # Of several rows of a recipe, the newest code's.
    order = [name for name in ("training_version", "seeds") if name in tests]
    tests = tests.sort_values(order).drop_duplicates("recipe", keep="last").set_index("recipe")
    for position, (name, colour) in enumerate(colours.items()):
        row = tests.loc[name]
        numbers = _numbers(row, "specificity", "specificity_low", "specificity_high")
        _point(ax, place + 0.08 * position, numbers, colour)


def _point(ax: Axes, place: float, numbers: tuple[float, float, float], colour: str) -> None:
    """Draw a diamond with its vertical interval."""
    value, low, high = numbers
    ax.plot([place, place], [low, high], color=colour, linewidth=0.9)
    ax.plot(
        place,
        value,
        "D",
        color=colour,
        markersize=5,
    )


def _dose_response(ax: Axes, response: pd.DataFrame) -> list[str]:
    """Draw specificity by the share of the height that is kept; return the doses' labels."""
    doses = response.loc[response["view"].str.startswith("rows"), "view"].unique()
    views = ["as it is", *doses]
    for position, (name, colour) in enumerate(recipe_colours(response["recipe"]).items()):
        lines = response[response["recipe"] == name].set_index("view").loc[views]
        places = np.arange(len(views)) + 0.05 * position
        ax.plot(
            places,
            lines["specificity"],
            color=colour,
            marker="o",
            markersize=4,
            linewidth=1.5,
        )
        ends = (lines["specificity_low"], lines["specificity_high"])
        ax.vlines(places, *ends, color=colour, linewidth=0.9)
    labels = ["whole"]
    labels += [f"{float(view.split()[1]):.0%}" for view in doses]
    ax.set_xticks(range(len(views)), labels)
    ax.set(ylim=(-0.02, 1.02), ylabel="specificity")
    ax.set_xlabel("share of a normal image's height that is kept, then stretched")
    return labels


@style.styled
def lead(by_height: pd.DataFrame, response: pd.DataFrame) -> Figure:
    """Draw the message of the study: networks use how large the lungs are in an image.

    Parameters
    ----------
    by_height
        Normal images of the official test, one row for each recipe and bin of lung height: `recipe,
        bin` (a label, in the order of height), `n, specificity, low, high, runs`.
    response
        Of `views.framing_response`: `recipe, view, specificity, specificity_low, specificity_high,
        n, runs`.

    Returns
    -------
    Figure
        Left, specificity by lung height; right, by how far a normal validation image is cropped. A
        network and its twin that was trained with random framing are labelled beside their lines.
    """
    fig, ((left, right),) = blank(
        10,
        4.4,
        1,
        2,
        sharey=True,
    )
    _height_response(left, by_height)
    left.set_title("Test: normal images by lung height")
    _dose_response(right, response)
    right.set(ylabel="")
    right.set_title("Validation: normal images, cropped by us")
    _label_lines(right, response)
    runs = pd.concat([by_height["runs"], response["runs"]])
    note = (
        f"{runs.min()} runs" if runs.min() == runs.max() else f"{runs.min()} to {runs.max()} runs"
    )
    note = f"{note}, n = {response['n'].max():,} validation images. Lines: 95% intervals."
    title = "Networks use how an image is framed; random framing in training reduces this"
    return head(fig, title, f"Specificity at the frozen threshold. {note}")


def _height_response(ax: Axes, by_height: pd.DataFrame) -> None:
    """Draw specificity by bins of lung height."""
    bins = by_height.drop_duplicates("bin")
    names = list(bins["bin"])
    for position, (name, colour) in enumerate(recipe_colours(by_height["recipe"]).items()):
        lines = by_height[by_height["recipe"] == name]
        places = np.array([names.index(label) for label in lines["bin"]]) + 0.05 * position
        ax.plot(
            places,
            lines["specificity"],
            color=colour,
            marker="o",
            markersize=4,
        )
        ax.vlines(
            places,
            lines["low"],
            lines["high"],
            color=colour,
            linewidth=0.9,
        )
    ticks = [f"{label}\nn = {n:,}" for label, n in zip(names, bins["n"], strict=True)]
    ax.set_xticks(range(len(names)), ticks)
    ax.set(xlabel="height of the lungs, share of the image", ylabel="specificity")


def _label_lines(ax: Axes, response: pd.DataFrame) -> None:
    """Write each recipe's name right of the end of its line, at least 7% of the axis apart."""
    ends = response.groupby("recipe", sort=False)["specificity"].last().sort_values()
    place = len(ax.get_xticks()) - 0.75
    colours = recipe_colours(response["recipe"])
    lowest = 0.0
    for name, value in ends.items():
        height = max(float(value), lowest)
        lowest = height + 0.12
        label = textwrap.fill(recipe_label(str(name)), 18)
        ax.text(
            place,
            height,
            label,
            color=colours[str(name)],
            va="center",
            fontweight="bold",
        )
    ax.set_xlim(-0.3, place - 0.05)


@style.styled
def view_gap(table: pd.DataFrame) -> Figure:
    """Draw validation and test AUC of each recipe for several ways of showing it the images.

    Parameters
    ----------
    table
        One row for each recipe and view (whole image, re-framed, cropped to the lungs): `recipe,
        view, runs, n_val, n_test`, and `val`, `test` and `gap` (validation minus test), each with
        `_low` and `_high`.

    Returns
    -------
    Figure
        A panel for each recipe; the gap is written right of each row.
    """
    recipes = list(table["recipe"].unique())
    views = list(table["view"].unique())
    height = 1.7 + (0.5 + 0.42 * len(views)) * len(recipes)
    fig, axes = blank(
        9,
        height,
        len(recipes),
        1,
        sharex=True,
    )
    for ax, recipe in zip(axes.flat, recipes, strict=True):
        lines = table[table["recipe"] == recipe]
        _gap_rows(ax, lines, views)
        runs = _span_of_counts(lines["runs"], "run")
        images = _span_of_counts(lines["n_val"], "validation image")
        ax.set_title(f"{recipe_label(recipe)}, {runs}, {images}")
    axes.flat[-1].set_xlabel("AUC")
    _words_above(axes.flat[0], 0.88, "validation ", SPLIT_COLOURS["val"], "right")
    _words_above(axes.flat[0], 0.88, "test", SPLIT_COLOURS["test"], "left")
    _words_above(axes.flat[0], 1.03, "gap", INK, "left")
    note = f"{_span_of_counts(table['n_test'], 'test image')}. "
    title = "Does the gap between validation and test close with the framing?"
    return head(fig, title, f"{note}Lines and brackets: 95% intervals.")


def _span_of_counts(counts: pd.Series, thing: str) -> str:
    """Write one count, or the smallest and the largest: `3 to 5 runs`."""
    low = int(counts.min())
    high = int(counts.max())
    number = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return f"{number} {thing}{'' if high == 1 else 's'}"


def _words_above(ax: Axes, place: float, words: str, colour: str, side: str) -> None:
    """Write bold words above some axes, as a legend."""
    above: dict[str, Any] = {"transform": ax.transAxes, "fontweight": "bold"}
    ax.text(place, 1.02, words, color=colour, ha=side, **above)


def _gap_rows(ax: Axes, lines: pd.DataFrame, views: list[str]) -> None:
    """Draw validation above test for each view of one recipe, and write the gap beside them."""
    for _, line in lines.iterrows():
        height = views.index(line["view"])
        for split, shift in (("val", -0.14), ("test", 0.14)):
            numbers = _numbers(line, split, f"{split}_low", f"{split}_high")
            _dot(
                ax,
                height + shift,
                numbers,
                SPLIT_COLOURS[split],
                5.0,
            )
        gap = _numbers(line, "gap", "gap_low", "gap_high")
        _beside(ax, height, style.interval(*gap), INK)
    _rows_style(ax, len(views), "")
    ax.set_yticks(range(len(views)), views)


@style.styled
def subgroups(table: pd.DataFrame, title: str, at: str = "the frozen threshold") -> Figure:
    """Draw the share correctly classified, of `comparisons.subgroups` or `by_folder`."""
    sizes = table.groupby("subgroup", sort=False)["images"].max()
    labels = {name: f"{name}\nn = {images:,}" for name, images in sizes.items()}
    height_of_row = 0.25 + 0.13 * table["recipe"].nunique()
    fig, (axes,) = blank(9, 1.7 + height_of_row * len(labels))
    label = "correctly classified (sensitivity or specificity)"
    forest(
        axes,
        [(table, "right", label)],
        "subgroup",
        labels,
        start=1.0,
    )
    return head(fig, title, f"At {at}. {OVER_PATIENTS}", table["recipe"])
