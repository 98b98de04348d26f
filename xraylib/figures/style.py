"""What every figure shares: size, fonts, the colours of classes and recipes, and the check of a table."""

import io
import textwrap
from collections.abc import Iterable
from typing import Any

import matplotlib as mpl
import matplotlib.figure
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from xraylib.storage import DataInvalid
from xraylib.training.recipes import IMBALANCE_RECIPES, RECIPES

DPI = 150
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.edgecolor": "#555555",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "text.usetex": False,
}
styled = mpl.rc_context(STYLE)

INK, QUIET, FAINT = "#222222", "#666666", "#CCCCCC"
# Of neither class nor kind: wrong calls and leaks.
ALARM = "#A3195B"

# Okabe and Ito's palette, told apart by colour-blind readers; bacteria and virus are shades of pneumonia.
KIND_COLOURS = {"normal": "#0072B2", "bacteria": "#B34700", "virus": "#E69F00", "unknown": "#888888"}
CLASS_COLOURS = {"normal": "#0072B2", "pneumonia": "#D55E00"}
CLASSES = ("normal", "pneumonia")
KINDS = tuple(KIND_COLOURS)
SPLITS = ("train", "val", "test")

# Paul Tol's "muted" palette and a gold, neighbours far apart: recipes share no colour with classes.
RECIPE_PALETTE = (
    "#332288", "#44AA99", "#882255", "#999933", "#6699CC", "#117733", "#DDAA33", "#AA4499", "#CC6677",
)  # fmt: skip
SIDE_COLOURS = {"test": INK, "external": ALARM}
DASHES = ("-", "--", "-.", ":")


class Figure(matplotlib.figure.Figure):
    """A figure that a notebook shows though pyplot does not hold it, so that none leaks or shows twice."""

    caption = ""

    def _repr_png_(self) -> tuple[bytes, dict[str, str]]:
        """Give the picture and, for pages, what stands for it where it cannot be seen."""
        titles = [ax.get_title(loc="left") for ax in self.axes]
        said = self.caption or self.get_suptitle() or next(filter(None, titles), "figure")
        return png(self, said), {"alt": said}


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
    """Give an empty figure of some inches and its axes as an array `(rows, columns)`."""
    fig = Figure(figsize=(width, height), dpi=DPI, layout=ConstrainedLayoutEngine(h_pad=0.06, w_pad=0.06))
    axes = fig.subplots(rows, columns, squeeze=False, **options)
    # Ticks are made while drawing, when the style of `styled` is no longer in force.
    for ax in axes.flat:
        ax.tick_params(labelsize=STYLE["xtick.labelsize"], color=STYLE["axes.edgecolor"])
    return fig, axes


def head(fig: Figure, title: str, note: str = "") -> None:
    """Write the figure's message above it and what a reader must know, such as n, below it."""
    inches = fig.get_figwidth()
    fig.suptitle(
        textwrap.fill(title, int(inches * 9.2)), x=0.008, ha="left", fontsize=12, fontweight="bold", color=INK
    )
    if note:
        text = textwrap.fill(note, int(inches * 15))
        fig.supxlabel(text, x=0.008, ha="left", fontsize=8.5, color=QUIET)


def bare(ax: Axes, keep: str = "") -> None:
    """Take away the spines but those named, and the ticks of the sides without one."""
    for side, spine in ax.spines.items():
        spine.set_visible(side in keep.split())
    if "bottom" not in keep:
        ax.set_xticks([])
    if "left" not in keep:
        ax.tick_params(axis="y", length=0)


def need(table: pd.DataFrame, columns: Iterable[str], what: str) -> None:
    """Refuse a table that is empty or lacks a column.

    Raises
    ------
    DataInvalid
        Naming the table and what is missing.
    """
    missing = [column for column in columns if column not in table]
    if missing:
        raise DataInvalid(
            f"the table of {what} lacks the columns {', '.join(missing)}. Fix: pass one that has them."
        )
    if table.empty:
        raise DataInvalid(f"the table of {what} is empty, nothing to draw. Fix: pass at least one row.")


def radiographs(pixels: np.ndarray) -> np.ndarray:
    """Give uint8 radiographs `(n, h, w)` or `(n, h, w, 1)` as `(n, h, w)`; raise `DataInvalid` for others."""
    pixels = np.asarray(pixels)
    grays = pixels[..., 0] if pixels.ndim == 4 and pixels.shape[-1] == 1 else pixels
    if grays.ndim != 3 or grays.dtype != np.uint8 or 0 in grays.shape:
        raise DataInvalid(
            f"radiographs of shape {pixels.shape}, {pixels.dtype}, cannot be drawn. Fix: pass uint8 "
            "of shape (n, height, width) or (n, height, width, 1) with at least one image."
        )
    return grays


def equally_many(**sizes: int) -> None:
    """Raise `DataInvalid` unless all the named things are equally many."""
    if len(set(sizes.values())) > 1:
        counts = ", ".join(f"{count} {name}" for name, count in sizes.items())
        raise DataInvalid(f"{counts} do not belong together. Fix: pass one of each for every image.")


def recipe_looks(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and dash of each recipe.

    A known recipe has its own in every figure; trivial baselines are gray, and a remedy has the colour of the
    recipe without it. Unknown ones take, in alphabetical order, those that follow.
    """
    trivial = [name for name, recipe in RECIPES.items() if recipe.fit == "single-feature"]
    own = [name for name in RECIPES if name not in (*trivial, *IMBALANCE_RECIPES[1:])]
    free = [(colour, dash) for dash in DASHES for colour in RECIPE_PALETTE]
    looks = dict(zip(own, free, strict=False))
    base = looks[IMBALANCE_RECIPES[0]][0]
    looks |= dict(zip(IMBALANCE_RECIPES[1:], [(base, dash) for dash in DASHES[1:]], strict=True))
    looks |= dict(zip(trivial, [("#888888", dash) for dash in DASHES], strict=False))
    free = [look for look in free if look not in looks.values()]
    unknown = enumerate(sorted(set(names) - set(RECIPES)))
    return looks | {name: free[place % len(free)] for place, name in unknown}


def panels_of(
    tables: dict[str, pd.DataFrame], columns: int, height: float, labels: tuple[str, str]
) -> tuple[Figure, list[tuple[Axes, pd.DataFrame, str]]]:
    """Give a figure with a panel a recipe, so many a row and inches high: axes, table and colour of each."""
    columns = min(columns, len(tables))
    rows = -(-len(tables) // columns)
    fig, axes = blank(max(4.5, 2.6 * columns), 0.9 + height * rows, rows, columns, sharex=True, sharey=True)
    for ax in axes.flat[len(tables) :]:
        ax.remove()
    looks, panels = recipe_looks(tables), []
    for place, (ax, (name, table)) in enumerate(zip(axes.flat, tables.items(), strict=False)):
        ax.set_title(name, fontsize=9)
        if place % columns == 0:
            ax.set_ylabel(labels[1])
        if place + columns >= len(tables):
            ax.set_xlabel(labels[0])
            ax.tick_params(labelbottom=True)
        panels.append((ax, table, looks[name][0]))
    return fig, panels


def present(values: pd.Series, order: Iterable[str]) -> list[str]:
    """Those of `order` that occur, then any others in alphabetical order."""
    found, known = set(values.astype(str)), list(order)
    return [name for name in known if name in found] + sorted(found - set(known))


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table, each by column."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def percents(share: float, _: float) -> str:
    """Write a share as percent."""
    return f"{share:.0%}"


def thousands(count: float, _: float) -> str:
    """Write a count with separators."""
    return f"{count:,.0f}"


def beside(ax: Axes, text: str, x: float, y: float, **options: Any) -> None:
    """Write a text just right of a point; the layout makes room for what reaches over the axes."""
    merged: dict[str, Any] = {"va": "center", "fontsize": 8.5, "color": INK} | options
    ax.annotate(text, (x, y), (5, 0), textcoords="offset points", annotation_clip=False, **merged)


def wrapped(text: str, inches: float, points: float) -> str:
    """Break a text so that it stays within some inches; a name breaks after its underscores."""
    letters = max(6, int(inches * 72 / (points * 0.64)))
    lines = [textwrap.wrap(line.replace("_", "_ "), letters) for line in text.split("\n")]
    return "\n".join(part.replace("_ ", "_") for line in lines for part in line)
