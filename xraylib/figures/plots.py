"""The figures: blank ones for notebooks, learning curves, and dots with their intervals."""

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
)

OVER_PATIENTS = "Lines: 95% intervals over patients, and over runs where there are three."
# Runs above which their lines are thin and their median is drawn.
MANY = 5


def blank(
    width: float, height: float, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, np.ndarray]:
    """Return an empty figure of some inches and its axes `(rows, columns)`; `options` go to `subplots`."""
    fig = Figure(
        figsize=(width, height), dpi=DPI, layout=ConstrainedLayoutEngine(h_pad=0.06, w_pad=0.06)
    )
    axes = fig.subplots(rows, columns, squeeze=False, **options)
    # Ticks are made while drawing, when the style of `styled` is no longer in force.
    for ax in axes.flat:
        ax.tick_params(labelsize=STYLE["xtick.labelsize"], color=STYLE["axes.edgecolor"])
    return fig, axes


def panels(
    tables: dict[str, Any], height: float, labels: tuple[str, str], columns: int = 4, **options: Any
) -> tuple[Figure, list[tuple[Axes, Any, str]]]:
    """Return a figure with a titled panel a recipe, `height` inches high: axes, table, colour of each."""
    columns = min(columns, len(tables))
    rows = -(-len(tables) // columns)
    fig, axes = blank(
        max(4.5, min(10, 2.5 * columns)), 0.9 + height * rows, rows, columns, **options
    )
    for ax in axes.flat[len(tables) :]:
        ax.remove()
    for place, (ax, name) in enumerate(zip(axes.flat, tables, strict=False)):
        ax.set_title(name, fontsize=9)
        ax.set_xlabel(labels[0] if place + columns >= len(tables) else "")
        ax.set_ylabel(labels[1] if place % columns == 0 else "")
        ax.tick_params(labelbottom=True)
    return fig, list(zip(axes.flat, tables.values(), recipe_colours(tables).values(), strict=False))


def head(fig: Figure, title: str, note: str = "", recipes: Iterable[str] = ()) -> Figure:
    """Return the figure with its message above, what a reader must know below, and the recipes' colours named."""
    width, height = fig.get_size_inches()
    colours = recipe_colours(list(recipes))
    text, at = textwrap.fill(title, int(width * 9.2)), {"x": 0.008, "ha": "left"}
    if colours:
        lines = [
            Line2D([], [], color=colour, marker="o", markersize=4) for colour in colours.values()
        ]
        place = (0, 1 - (0.06 + 0.2 * (text.count("\n") + 1)) / height)
        fig.legend(
            lines, list(colours), loc="upper left", bbox_to_anchor=place, ncols=min(5, len(colours))
        )
        # Empty lines keep the place of the legend, which the layout does not know.
        text += "\n" * -(-len(colours) // 5)
    fig.suptitle(text, fontsize=12, fontweight="bold", color=INK, **at)
    if note:
        fig.supxlabel(textwrap.fill(note, int(width * 15)), fontsize=8.5, color=QUIET, **at)
    return fig


@style.styled
def learning_curves(
    named: Mapping[str, pd.DataFrame], title: str, last_kept: bool = False
) -> Figure:
    """Loss and accuracy by epoch of each run by name; of more than `MANY`, the median is bold."""
    runs = [run.sort_values("epoch") for run in named.values()]
    many, dashed = len(runs) > MANY, 1 < len(runs) <= len(DASHES)
    fig, (axes,) = blank(9.5, 3.8, 1, 2)
    starts = {float(v) - 0.5 for run in runs for v in run.groupby("phase")["epoch"].min().iloc[1:]}
    for ax, measure in zip(axes, ("loss", "accuracy"), strict=True):
        for prefix, colour in (("", "#999999"), ("val_", "#000000")):
            for run, dash in zip(runs, DASHES if dashed else ["-"] * len(runs), strict=False):
                look = (
                    {"lw": 0.6, "alpha": 0.3}
                    if many
                    else {"lw": 1.2, "marker": "o" * (len(run) < 8)}
                )
                ax.plot(
                    run["epoch"], run[prefix + measure], linestyle=dash, color=colour, ms=4, **look
                )
            if many:
                middle = pd.concat(runs).groupby("epoch")[prefix + measure].median()
                ax.plot(middle.index, middle, color=colour, linewidth=2.2)
        for run in [] if many else runs:
            views = run.columns[run.columns.str.startswith("val_auc_")]
            best = run.iloc[
                int((-run[views].min(axis=1) if len(views) else run["val_loss"]).argmin())
            ]
            ring = {"color": INK, "markerfacecolor": "white", "markersize": 6, "zorder": 5}
            ax.plot(best["epoch"], best[f"val_{measure}"], "o", **ring)
        values = pd.concat(runs)[[measure, f"val_{measure}"]].to_numpy(dtype=float)
        if measure == "loss" and np.nanmax(values) > 10 * np.nanmin(values) > 0:
            ax.set_yscale("log")
            ax.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), minor_formatter=NullFormatter())
            ax.yaxis.set_major_formatter("{x:g}")
        ax.text(
            0.8, 1.02, "train ", color=QUIET, transform=ax.transAxes, ha="right", fontweight="bold"
        )
        ax.text(0.8, 1.02, "validation", transform=ax.transAxes, ha="left", fontweight="bold")
        label = "cross-entropy loss" if measure == "loss" else measure
        ax.set(
            xlabel="epoch", ylabel=label, xlim=(0.5, max(run["epoch"].max() for run in runs) + 0.5)
        )
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        for start in starts:
            ax.axvline(start, color=QUIET, linewidth=1, linestyle=":", zorder=0)
    words = zip(named, ("solid", "dashed", "dash-dotted", "dotted"), strict=False)
    note = "; ".join(f"{name}: {word}" for name, word in words) + ". " if dashed else ""
    rule = (
        "best AUC on re-framed validation"
        if "val_auc_framing" in runs[0]
        else "lowest validation loss"
    )
    kept = "The last epoch was kept." if last_kept else f"The epoch with the {rule} was kept."
    note += f"Bold: median of {len(runs)} runs. {kept}" if many else f"{kept} Circle: {rule}."
    return head(fig, title, note + (" Dotted: a new phase begins." if starts else ""))


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

    A panel is a table, the column of its dots (intervals: `<column>_low` to `<column>_high`, or `low` to `high`) and
    its x label. The column `row` names the row of a line, `labels` the rows from top to bottom; the column `within`,
    recipe or split, gives the colour, and those of one row stand below each other. `start` is the left end of a scale
    that ends at 1, unless an interval reaches beyond it; `line` is a reference value, dotted; with `text`, `0.85
    (0.82–0.88)` stands right of the axes.
    """
    colours = SPLIT_COLOURS if within == "split" else recipe_colours(panels[0][0][within])
    rows, names = list(labels), [name for name in colours if (panels[0][0][within] == name).any()]
    for ax, (table, value, xlabel) in zip(axes, panels, strict=True):
        low, high = (
            (f"{value}_low", f"{value}_high") if f"{value}_low" in table else ("low", "high")
        )
        several = table.duplicated(row).any()
        for _, one in table.iterrows():
            shift = (
                (names.index(one[within]) - (len(names) - 1) / 2) * 0.7 / len(names)
                if several
                else 0.0
            )
            y, colour = rows.index(one[row]) + shift, colours[one[within]]
            ax.plot([one[low], one[high]], [y, y], color=colour, linewidth=1.8, clip_on=False)
            ax.plot(
                one[value],
                y,
                "o",
                color=colour,
                ms=4 if several and len(names) > 2 else 6,
                clip_on=False,
            )
            if text:
                place: dict[str, Any] = {
                    "transform": ax.get_yaxis_transform(),
                    "va": "center",
                    "fontsize": 8,
                }
                said = f"{one[value]:.2f} ({one[low]:.2f}–{one[high]:.2f})"
                ink = colour if several else INK
                ax.text(1.03, y, said, color=ink, **place)
        if line is not None:
            ax.axvline(line, color=QUIET, linestyle=":", linewidth=1.2, zorder=0)
        for edge in range(1, len(rows)):
            ax.axhline(edge - 0.5, color=FAINT, linewidth=0.5, zorder=0)
        if start is not None:
            ax.set_xlim(max(0.0, min(start, float(table[low].min()) - 0.03)), 1.0)
        ax.set(xlabel=xlabel, ylim=(len(rows) - 0.5, -0.5))
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        ax.spines[["left", "top", "right"]].set_visible(False)
        ax.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(len(rows)), list(labels.values()))


@style.styled
def leaderboard(table: pd.DataFrame) -> Figure:
    """AUC and accuracy of every recipe and protocol with intervals, of the leaderboard, best AUC first."""
    table = table.assign(best=-table.groupby("recipe")["auc"].transform("max"))
    table = table.sort_values(["best", "recipe", "protocol", "init"]).reset_index(drop=True)
    table["row"] = table.index
    labels = {}
    for place, one in table.iterrows():
        init = "no network" if one["init"] == "none" else f"{str(one['init']).split(' (')[0]} init"
        seeds = f"{one['seeds']} seed{'' if one['seeds'] == 1 else 's'}"
        labels[place] = (
            f"{one['recipe']}, {one['protocol']}\n{init}, {seeds}, n = {one['n_test']:,}"
        )
    fig, (axes,) = blank(10, 1.2 + 0.44 * len(table), 1, 2, sharey=True)
    panels = [(table, "auc", "AUC"), (table, "accuracy", "accuracy")]
    forest(axes, panels, "row", labels, start=0.6, text=True)
    # Under another protocol other images are tested than those of the claim.
    claimed = table[table["claimed_accuracy"].notna() & (table["protocol"] == "published")]
    look: dict[str, Any] = {
        "color": INK,
        "markerfacecolor": "none",
        "markersize": 8,
        "clip_on": False,
    }
    # An empty line without clipping has no extent, and the layout would collapse.
    if len(claimed):
        axes[1].plot(claimed["claimed_accuracy"], claimed["row"], "D", **look)
    note = f"Test images, best AUC first. {OVER_PATIENTS}" + " Diamond: claimed accuracy." * bool(
        len(claimed)
    )
    return head(fig, "How good are the recipes, and what was claimed?", note)


@style.styled
def protocol_comparison(table: pd.DataFrame) -> Figure:
    """Accuracy of each recipe by how it was split and scored, of `comparisons.protocol_comparison`."""
    recipes, labels = table["recipe"].unique(), {}
    for name, part in table.groupby("comparison", sort=False):
        labels[name] = (
            f"{name}\nn = {part['n'].max():,}{' a seed' if part['seeds'].max() > 1 else ''}"
        )
    size = (min(10.0, 3.0 + 2.4 * len(recipes)), 1.5 + 0.45 * len(labels))
    fig, (axes,) = blank(*size, 1, len(recipes), sharex=True, sharey=True)
    start = min(0.7, float(table["accuracy_low"].min()) - 0.02)
    for ax, recipe in zip(axes, recipes, strict=True):
        part = table[table["recipe"] == recipe]
        forest([ax], [(part, "accuracy", "accuracy")], "comparison", labels, start=start, text=True)
        ax.set_title(recipe)
    note = f"Mean over seeds. {OVER_PATIENTS}"
    return head(fig, "How accurate is a network, by how it is split and scored?", note)


@style.styled
def framing(comparison: pd.DataFrame, response: pd.DataFrame, board: pd.DataFrame) -> Figure:
    """The fall and its cause: accuracy by protocol, and specificity by the share of its rows a normal keeps.

    `comparison` is of `comparisons.protocol_comparison` (its first recipe is drawn), `response` of
    `views.framing_response`, `board` the leaderboard, whose strict rows are the official test's.
    """
    colours, first = recipe_colours(response["recipe"]), comparison["recipe"].iloc[0]
    one = comparison[comparison["recipe"] == first]
    labels = {name: textwrap.fill(name, 22) for name in one["comparison"]}
    fig, ((left, right),) = blank(10, 4.4, 1, 2, width_ratios=(1, 1.5))
    forest([left], [(one, "accuracy", "accuracy")], "comparison", labels, start=0.6)
    left.set_title(f"{first}, split and scored five ways")
    views = ["as it is", *response.loc[response["view"].str.startswith("rows"), "view"].unique()]
    tests = board[board["protocol"] == "strict"].set_index("recipe")
    for number, (name, colour) in enumerate(colours.items()):
        part = response[response["recipe"] == name].set_index("view").loc[views]
        places = np.arange(len(views)) + 0.04 * number
        ends = np.abs(
            part[["specificity_low", "specificity_high"]].T.to_numpy()
            - part["specificity"].to_numpy()
        )
        right.errorbar(
            places,
            part["specificity"],
            ends,
            color=colour,
            marker="o",
            ms=3.5,
            lw=1.4,
            elinewidth=0.7,
        )
        row = tests.loc[name, ["specificity", "specificity_low", "specificity_high"]].to_numpy(
            dtype=float
        )
        look: dict[str, Any] = {"color": colour, "marker": "D", "ms": 5, "elinewidth": 0.7}
        right.errorbar(len(views) + 0.08 * number, row[0], np.abs(row[1:, None] - row[0]), **look)
    right.axvspan(len(views) - 0.4, len(views) + 0.9, color=FAINT, alpha=0.35, linewidth=0)
    kept = [
        "whole",
        *(f"{float(view.split()[1]):.0%}" for view in views[1:]),
        "official test,\nas it is",
    ]
    right.set_xticks(range(len(kept)), kept)
    right.set(
        ylim=(-0.02, 1.02),
        xlabel="share of a normal's rows that is kept, then stretched",
        ylabel="specificity",
    )
    right.set_title("validation normals, cut at top and bottom")
    note = "Left: the threshold is 0.5 but in the last row. Right: the frozen one. Lines: 95% intervals."
    return head(
        fig,
        "Why do good networks fall on the official test? In part they read the framing.",
        note,
        list(colours),
    )


@style.styled
def subgroups(table: pd.DataFrame, title: str, at: str = "the frozen threshold") -> Figure:
    """Share correctly classified at the threshold `at`, of `comparisons.subgroups` or `by_folder`."""
    sizes = table.groupby("subgroup", sort=False)["images"].max()
    labels = {name: f"{name}\nn = {images:,}" for name, images in sizes.items()}
    fig, (axes,) = blank(9, 1.7 + (0.25 + 0.13 * table["recipe"].nunique()) * len(labels))
    label = "correctly classified (sensitivity or specificity)"
    forest(axes, [(table, "right", label)], "subgroup", labels, start=1.0)
    return head(fig, title, f"At {at}. {OVER_PATIENTS}", table["recipe"])
