"""The figure of an explanation: one image, its answer, and what would change it."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle

from xraylib.figures import plots, style

# As in notebook 08: the colour of each class, and of no decision.
COLOURS = {
    "looks normal": "#0072B2",
    "looks like pneumonia": "#D55E00",
    "undecided": "#666666",
    "no answer": "#999999",
}

_LEGEND = "Blue: looks normal. Orange: looks like pneumonia. Grey: undecided."


@style.styled
def explanation(explained: Any, title: str, note: str) -> style.Figure:
    """Draw an image with its box, its heat map beside it, and three tables about its answer.

    Parameters
    ----------
    explained
        An `explanation.Explanation`; each of its tables may have no rows.
    title
        The file and its answer.
    note
        Below the figure.
    """
    fig = style.Figure(
        figsize=(9, 6.4),
        dpi=style.DPI,
        layout=ConstrainedLayoutEngine(h_pad=0.06, w_pad=0.06),
    )
    halves = fig.subfigures(2, 1, squeeze=False)
    image, heat_map, margins = halves[0, 0].subplots(1, 3)
    measures, changes = halves[1, 0].subplots(1, 2)
    _draw_image(image, explained.image, explained.box)
    _draw_heat_map(heat_map, explained.heat_map)
    shown_note = note
    if explained.margins.empty:  # no answer
        margins.remove()
        changes.remove()
    else:
        shown_note = f"{_LEGEND} {note}"
        _draw_margins(margins, explained.margins)
        _draw_changes(changes, explained.changes)
    if explained.measures["normal"].isna().all():  # no lungs, or nothing to compare with
        measures.remove()
    else:
        _draw_measures(measures, explained.measures)
    fig = plots.head(fig, title, shown_note)
    fig.caption = f"{title}. {note}"
    return fig


def _draw_image(ax: Axes, image: np.ndarray, box: np.ndarray | None) -> None:
    ax.imshow(image, cmap="gray", vmin=0, vmax=255)
    ax.set_axis_off()
    ax.set_title("Image and lungs' box" if box is not None else "Image")
    if box is None:
        return
    height, width = image.shape
    top, bottom, left, right = box
    ax.add_patch(
        Rectangle(
            (left * width, top * height),
            (1 - left - right) * width,
            (1 - top - bottom) * height,
            fill=False,
            edgecolor="#F0E442",
            linewidth=1.8,
            clip_on=False,
        )
    )


def _draw_heat_map(ax: Axes, heat_map: np.ndarray | None) -> None:
    ax.set_axis_off()
    if heat_map is None or not heat_map.any():
        return
    ax.imshow(heat_map, cmap="inferno", vmin=0, vmax=1)
    ax.set_title("Heat map")


def _draw_margins(ax: Axes, margins: pd.DataFrame) -> None:
    percent = margins["margin"] * 100
    ax.plot(percent, margins["probability"], color=style.FAINT, zorder=1)
    colours = [COLOURS[answer] for answer in margins["answer"]]
    ax.scatter(percent, margins["probability"], s=14, c=colours, zorder=2)
    ax.set(ylim=(-0.03, 1.03), xlabel="box enlarged by (%)", ylabel="P(pneumonia)")
    ax.set_title("The answer with another box")


def _draw_measures(ax: Axes, measures: pd.DataFrame) -> None:
    rows = np.arange(len(measures))[::-1]
    ax.hlines(rows, 0, 100, color=style.FAINT, linewidth=1)
    colours = {
        "normal": COLOURS["looks normal"],
        "pneumonia": COLOURS["looks like pneumonia"],
    }
    for class_name, colour in colours.items():
        ax.scatter(measures[class_name] * 100, rows, s=34, color=colour, label=class_name)
    ax.set_yticks(rows, measures["measure"].str.replace("_", " "))
    ax.set(xlim=(-4, 104), ylim=(-0.6, len(rows) - 0.2))
    ax.set_xlabel("training images with less (%)")
    ax.set_title("Compared with the training images")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2)


def _draw_changes(ax: Axes, changes: pd.DataFrame) -> None:
    rows = np.arange(len(changes))[::-1]
    colours = [COLOURS[answer] for answer in changes["answer"]]
    ax.hlines(rows, 0, 1, color=style.FAINT, linewidth=0.8)
    ax.scatter(changes["probability"], rows, s=26, c=colours, zorder=2)
    for row in rows[changes["probability"].isna()]:
        ax.text(
            0.5,
            row,
            "no answer",
            ha="center",
            va="center",
            fontsize=8,
            color=style.QUIET,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    ax.set_yticks(rows, changes["change"], fontsize=8)
    ax.set(xlim=(-0.03, 1.03), xlabel="P(pneumonia)")
    ax.set_title("The answer after a small change")
