"""What every figure shares: size, fonts, the colours of classes and recipes, and how a number is written."""

import io
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib as mpl
import matplotlib.figure
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from xraylib.training.recipes import IMBALANCE_RECIPES, RECIPES

DPI = 150
STYLE: Any = {
    "font.family": "DejaVu Sans", "font.size": 9, "text.usetex": False,
    "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.labelsize": 9, "axes.edgecolor": "#555555", "axes.grid": False,
    "axes.spines.top": False, "axes.spines.right": False, "xtick.labelsize": 8.5, "ytick.labelsize": 8.5,
    "legend.frameon": False, "legend.fontsize": 8.5,
}  # fmt: skip
styled = mpl.rc_context(STYLE)

INK, QUIET, FAINT = "#222222", "#666666", "#CCCCCC"
# Of neither class nor kind: misclassified images, leaks, external data.
ALARM = "#A3195B"

# Okabe and Ito's palette, told apart by colour-blind readers; bacteria and virus are shades of pneumonia.
KIND_COLOURS = {"normal": "#0072B2", "bacteria": "#B34700", "virus": "#E69F00", "unknown": "#888888"}
CLASS_COLOURS = {"normal": "#0072B2", "pneumonia": "#D55E00"}
CLASSES, KINDS = tuple(CLASS_COLOURS), tuple(KIND_COLOURS)
SPLIT_COLOURS = {"train": "#888888", "val": "#6699CC", "test": INK, "external": ALARM}
SPLITS = tuple(SPLIT_COLOURS)

# Paul Tol's "muted" palette and a gold, neighbours far apart: recipes share no colour with classes.
RECIPE_PALETTE = (
    "#332288", "#44AA99", "#882255", "#999933", "#6699CC", "#117733", "#DDAA33", "#AA4499", "#CC6677",
)  # fmt: skip
DASHES = ("-", "--", "-.", ":")


class Figure(matplotlib.figure.Figure):
    """A figure that a notebook shows though pyplot does not hold it, so that none leaks or shows twice."""

    caption = ""

    def _repr_png_(self) -> tuple[bytes, dict[str, str]]:
        text = self.caption or self.get_suptitle() or "figure"
        return png(self, text), {"alt": text}


def png(figure: matplotlib.figure.Figure, caption: str) -> bytes:
    """Draw a figure as a PNG file with its caption inside; a palette makes it a third as large."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI, bbox_inches="tight")
    about = PngInfo()
    about.add_itxt("Description", caption)
    with Image.open(drawn) as image:
        palette = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    palette.save(small, "PNG", optimize=True, pnginfo=about, dpi=(DPI, DPI))
    return small.getvalue()


def blank(
    width: float, height: float, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, np.ndarray]:
    """Return an empty figure of some inches and its axes `(rows, columns)`; `options` go to `subplots`."""
    fig = Figure(figsize=(width, height), dpi=DPI, layout=ConstrainedLayoutEngine(h_pad=0.06, w_pad=0.06))
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
    fig, axes = blank(max(4.5, min(10, 2.5 * columns)), 0.9 + height * rows, rows, columns, **options)
    for ax in axes.flat[len(tables) :]:
        ax.remove()
    for place, (ax, name) in enumerate(zip(axes.flat, tables, strict=False)):
        ax.set_title(name, fontsize=9)
        ax.set_xlabel(labels[0] if place + columns >= len(tables) else "")
        ax.set_ylabel(labels[1] if place % columns == 0 else "")
        ax.tick_params(labelbottom=True)
    return fig, list(zip(axes.flat, tables.values(), recipe_colours(tables).values(), strict=False))


def head(fig: Figure, title: str, note: str = "", colours: Mapping[str, str] | None = None) -> Figure:
    """Return the figure with its message above, what a reader must know below, and its colours named."""
    width, height = fig.get_size_inches()
    text, at = textwrap.fill(title, int(width * 9.2)), {"x": 0.008, "ha": "left"}
    if colours:
        lines = [Line2D([], [], color=colour, marker="o", markersize=4) for colour in colours.values()]
        place = (0, 1 - (0.06 + 0.2 * (text.count("\n") + 1)) / height)
        fig.legend(lines, list(colours), loc="upper left", bbox_to_anchor=place, ncols=min(5, len(colours)))
        # Empty lines keep the place of the legend, which the layout does not know.
        text += "\n" * -(-len(colours) // 5)
    fig.suptitle(text, fontsize=12, fontweight="bold", color=INK, **at)
    if note:
        fig.supxlabel(textwrap.fill(note, int(width * 15)), fontsize=8.5, color=QUIET, **at)
    return fig


def bare(ax: Axes, keep: str = "") -> None:
    """Take away the spines but those named, and the ticks of those taken."""
    for place, spine in ax.spines.items():
        spine.set_visible(place in keep.split())
    if "bottom" not in keep:
        ax.set_xticks([])
    if "left" not in keep:
        ax.tick_params(axis="y", length=0)


def recipe_looks(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return colour and dash of each recipe, in every figure the same; unknown ones take what is left."""
    # Baselines are gray; a recipe with an imbalance method has the colour of the one without.
    baselines = [name for name, recipe in RECIPES.items() if recipe.fit == "single-feature"]
    own = [name for name in RECIPES if name not in (*baselines, *IMBALANCE_RECIPES[1:])]
    free = [(colour, dash) for dash in DASHES for colour in RECIPE_PALETTE]
    looks = dict(zip(own, free, strict=False))
    base = looks[IMBALANCE_RECIPES[0]][0]
    looks |= dict(zip(IMBALANCE_RECIPES[1:], [(base, dash) for dash in DASHES[1:]], strict=True))
    looks |= dict(zip(baselines, [("#888888", dash) for dash in DASHES], strict=False))
    free = [look for look in free if look not in looks.values()]
    unknown = enumerate(sorted(set(names) - set(RECIPES)))
    return looks | {name: free[place % len(free)] for place, name in unknown}


def recipe_colours(names: Iterable[str]) -> dict[str, str]:
    """Return the colour of each of these recipes, in this order, each once."""
    looks, once = recipe_looks(names), dict.fromkeys(names)
    return {name: looks[name][0] for name in once}


def present(values: pd.Series, order: Iterable[str]) -> list[str]:
    """Return those of `order` that occur, then any others in alphabetical order."""
    found, known = set(values.astype(str)), list(order)
    return [name for name in known if name in found] + sorted(found - set(known))


def estimate(value: float, low: float, high: float) -> str:
    """Write a value with its interval, as everywhere in the repository."""
    return f"{value:.2f} ({low:.2f}–{high:.2f})"


def beside(ax: Axes, text: str, x: float, y: float, **options: Any) -> None:
    """Write a text just right of a point; the layout makes room for what reaches over the axes."""
    merged: dict[str, Any] = {"va": "center", "fontsize": 8.5, "color": INK} | options
    ax.annotate(text, (x, y), (5, 0), textcoords="offset points", annotation_clip=False, **merged)
