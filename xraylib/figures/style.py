"""What every figure shares: size, fonts, the colours of classes and recipes, and how a number is written."""

import io
from collections.abc import Iterable
from typing import Any

import matplotlib as mpl
import matplotlib.figure
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

SPLIT_COLOURS = {"train": "#888888", "val": "#6699CC", "test": INK, "external": ALARM}

# Paul Tol's "muted" palette and a gold, neighbours far apart: recipes share no colour with classes.
RECIPE_PALETTE = (
    "#332288", "#44AA99", "#882255", "#999933", "#6699CC", "#117733", "#DDAA33", "#AA4499", "#CC6677",
    "#661100", "#88CCEE", "#111111", "#EE8866",
)  # fmt: skip
DASHES = ("-", "--", "-.", ":")


class Figure(matplotlib.figure.Figure):
    """A figure that a notebook shows though pyplot does not hold it, so that none leaks or shows twice."""

    caption = ""

    def _repr_png_(self) -> tuple[bytes, dict[str, str]]:
        text = self.caption or self.get_suptitle() or "figure"
        # In a notebook a third of the bytes is enough.
        return png(self, text, 90), {"alt": text}


def png(figure: matplotlib.figure.Figure, caption: str, dpi: int = DPI) -> bytes:
    """Draw a figure as a PNG file with its caption inside; a palette makes it a third as large."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi, bbox_inches="tight")
    about = PngInfo()
    about.add_itxt("Description", caption)
    with Image.open(drawn) as image:
        palette = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    palette.save(small, "PNG", optimize=True, pnginfo=about, dpi=(dpi, dpi))
    return small.getvalue()


def recipe_colours(names: Iterable[str]) -> dict[str, str]:
    """Return the colour of each of these recipes, in this order, each once; in every figure the same.

    Baselines are gray; a recipe with an imbalance method has the colour of the one without.
    """
    base = {name: name for name in RECIPES} | dict.fromkeys(IMBALANCE_RECIPES, IMBALANCE_RECIPES[0])
    gray = [name for name, recipe in RECIPES.items() if recipe.fit == "single-feature"]
    own = [
        *dict.fromkeys(base[name] for name in RECIPES if name not in gray),
        *sorted({*names} - {*RECIPES}),
    ]
    colour = dict(zip(own, RECIPE_PALETTE * len(own), strict=False)) | dict.fromkeys(
        gray, "#888888"
    )
    return {name: colour[base.get(name, name)] for name in dict.fromkeys(names)}
