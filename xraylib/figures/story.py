"""The figures of a report's findings: small enough that a phone shows them in readable letters."""

import textwrap
from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes

from xraylib.figures import plots
from xraylib.figures.style import (
    DASHES,
    SPLIT_COLOURS,
    Figure,
    recipe_colours,
    recipe_label,
    styled,
)

# Inches. The page shows a figure about as wide as it is on a phone.
_WIDTH = 4.6
_MARKERS = ("o", "s", "D", "^")
# The line of another split than the test, beside that of the same recipe on the test.
_OTHER_SPLIT = "#888888"
_SPLIT_NAMES = {"train": "training", "val": "validation"}
# Letters that fit above the axes, and beside the end of a line.
_TITLE_LETTERS = 56
_LABEL_LETTERS = 15


@styled
def lines(
    table: pd.DataFrame,
    x: str,
    value: str,
    labels: Mapping[str, str],
    title: str,
    xlabel: str,
    ylabel: str,
) -> Figure:
    """Draw a line for each recipe and split, its name beside the line's end.

    Parameters
    ----------
    table
        One row for each recipe, split and place: `recipe`, the columns `x` and `value`, and the
        ends of the interval as `<value>_low` and `<value>_high`; `split` too, if not all is of the
        test.
    x
        The column that names the place of a row.
    value
        The column of the points, a share.
    labels
        What is written below each place, from left to right; other places are left out.
    title
        The message, above the axes.
    xlabel, ylabel
        What the places are, and what the points are.
    """
    fig, ((ax,),) = plots.blank(_WIDTH, 3.4)
    ends = []
    places = pd.Series(range(len(labels)), index=list(labels))
    colours = recipe_colours(table["recipe"])
    if "split" not in table:
        table = table.assign(split="test")
    pairs = table[["recipe", "split"]].drop_duplicates().to_numpy()
    for position, (recipe, name) in enumerate(pairs):
        rows = table[(table["recipe"] == recipe) & (table["split"] == name)]
        shown = rows.set_index(x).loc[places.index]
        colour = colours[recipe] if name == "test" else _OTHER_SPLIT
        across = places.to_numpy() + 0.04 * (position - 1)
        ax.plot(
            across,
            shown[value],
            color=colour,
            marker=_MARKERS[position % len(_MARKERS)],
            linestyle=DASHES[position % len(DASHES)],
            markersize=5,
        )
        ax.vlines(
            across, shown[f"{value}_low"], shown[f"{value}_high"], color=colour, linewidth=0.9
        )
        label = recipe_label(recipe) + ("" if name == "test" else f", {_SPLIT_NAMES[name]}")
        ends.append((float(shown[value].iloc[-1]), label, colour))
    _label_ends(ax, ends, len(labels) - 0.8)
    ax.set_xticks(places, list(labels.values()))
    ax.set(ylim=(-0.02, 1.02), xlim=(-0.2, len(labels) - 0.85))
    ax.set(xlabel=xlabel, ylabel=ylabel)
    _title(fig, title)
    return fig


def _title(fig: Figure, text: str) -> None:
    """Write the message above a figure, from its left edge."""
    wrapped = textwrap.fill(text, _TITLE_LETTERS)
    fig.suptitle(wrapped, x=0.01, ha="left", fontsize=10, fontweight="bold")


def _label_ends(ax: Axes, ends: list[tuple[float, str, str]], place: float) -> None:
    """Write names beside the ends of lines, the lowest first, without overlap."""
    lowest = 0.0
    for value, name, colour in sorted(ends):
        # A number stays with its unit.
        joined = name.replace(" px", "\u00a0px")
        text = textwrap.fill(joined, _LABEL_LETTERS, break_on_hyphens=False)
        half = 0.035 * (text.count("\n") + 1)
        height = max(value, lowest + half)
        lowest = height + half
        ax.text(place, height, text, color=colour, va="center", fontsize=8, fontweight="bold")


@styled
def dots(
    table: pd.DataFrame,
    row: str,
    value: str,
    labels: Mapping[str, str],
    title: str,
    xlabel: str,
    within: str = "recipe",
    names: Mapping[str, str] | None = None,
    line: float | None = None,
    start: float = 0.5,
) -> Figure:
    """Draw a dot and its interval for each row, and write both beside it.

    Parameters
    ----------
    table
        The columns `row`, `value` and `within`, and the ends of the interval as `<value>_low` and
        `<value>_high`, or as `low` and `high`.
    row
        The column that names the row of a dot.
    value
        The column of the dots.
    labels
        What is written beside each row, from top to bottom; other rows are left out.
    title
        The message, above the axes.
    xlabel
        What the dots are.
    within
        The column that gives the colour: `recipe`, `split`, or another.
    names
        What each colour is, written above the axes in this colour.
    line
        A reference value, dotted.
    start
        Left end of the scale, unless an interval reaches beyond it.
    """
    shown = table[table[row].isin(list(labels))]
    several = int(shown.groupby(row).size().max())
    fig, (axes,) = plots.blank(_WIDTH, 1.2 + (0.22 + 0.2 * several) * len(labels))
    written = {name: textwrap.fill(label, 22) for name, label in labels.items()}
    plots.forest(
        axes,
        [(shown, value, xlabel)],
        row,
        written,
        within=within,
        start=start,
        line=line,
        text=True,
    )
    _title(fig, title)
    colours = SPLIT_COLOURS if within == "split" else recipe_colours(shown[within])
    for position, (name, text) in enumerate((names or {}).items()):
        axes[0].text(
            position / 2,
            1.02,
            text,
            color=colours[name],
            fontweight="bold",
            transform=axes[0].transAxes,
        )
    return fig
