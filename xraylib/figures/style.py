"""What every figure shares: fonts, colours, names of recipes, how a number is written."""

import io
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from xraylib.training.recipes import IMBALANCE_RECIPES, LUNG_REGIONS, RECIPES

DPI = 150
# Dots an inch in a notebook, where a third of the bytes is enough.
NOTEBOOK_DPI = 90
# `plain.mplstyle` beside this module; a notebook takes it with `mpl.style.use`.
PLAIN: Any = mpl.rc_params_from_file(
    Path(__file__).with_name("plain.mplstyle"), use_default_template=False
)
styled = mpl.rc_context(PLAIN)
# Ticks are made while drawing, when the style of `styled` is no longer in force.
TICKS: Any = {"labelsize": PLAIN["xtick.labelsize"], "color": PLAIN["axes.edgecolor"]}

INK = "#222222"
QUIET = "#666666"
FAINT = "#CCCCCC"
# Of neither class nor kind: misclassified images, leaks, external data.
ALARM = "#A3195B"

SPLIT_COLOURS = {"train": "#888888", "val": "#6699CC", "test": INK, "external": ALARM}
DASHES = ("-", "--", "-.", ":")

# Paul Tol's palettes "muted" and "light", ordered so that neighbours differ in lightness as well as
# in hue: three recipes that stand side by side can be told apart in the common kinds of colour
# blindness.
RECIPE_COLOURS = {
    "tiny-cnn-28": "#882255",
    "tiny-cnn-28-reframed": "#44AA99",
    "tiny-cnn-28-reframed-training": "#DDCC77",
    "tiny-cnn-28-reframed-validation": "#AA4499",
    "scratch-cnn": "#332288",
    "scratch-cnn-reframed": "#88CCEE",
    "kerasio-tpu": "#661100",
    "kerasio-tpu-reframed": "#EE8866",
    "mobilenetv2-frozen": "#117733",
    "mobilenetv2-frozen-reframed": "#DDAA33",
    "mobilenetv2-small": "#6699CC",
    "mobilenetv2-small-reframed": "#BBCC33",
    "flagship": "#111111",
    "resnet50v2": "#CC6677",
    "inceptionv3-tpu": "#999933",
    "tiny-cnn-28-lungs": "#0077BB",
    "tiny-cnn-28-lungs-annotated": "#33BBEE",
    "tiny-cnn-28-lungs-exchanged": "#EE7733",
    "tiny-cnn-28-lungs-hidden": "#CCBB44",
    "mobilenetv2-frozen-lungs": "#004488",
    "mobilenetv2-frozen-lungs-annotated": "#77AADD",
    "mobilenetv2-frozen-lungs-exchanged": "#BB5566",
    "mobilenetv2-frozen-lungs-hidden": "#C2A5CF",
    "scratch-cnn-lungs": "#009988",
    "kerasio-tpu-lungs": "#CC3311",
    "mobilenetv2-small-lungs": "#225555",
}
_BASELINE = "#888888"
# For recipes that a user adds, in the order of their names.
_MORE_COLOURS = ("#AA4499", "#CC6677", "#88CCEE", "#999933", "#EE8866", "#332288", "#44AA99")

_LABELS = {
    "tiny-cnn-28": "Tiny CNN, 28 px",
    "scratch-cnn": "Scratch CNN",
    "kerasio-tpu": "Keras tutorial",
    "resnet50v2": "ResNet50V2",
    "inceptionv3-tpu": "InceptionV3",
    "mobilenetv2-small": "MobileNetV2, 136 images",
    "mobilenetv2-small-weighted": "MobileNetV2, 136 images, class weights",
    "mobilenetv2-small-oversampled": "MobileNetV2, 136 images, oversampled",
    "mobilenetv2-small-undersampled": "MobileNetV2, 136 images, undersampled",
    "mobilenetv2-frozen": "Frozen MobileNetV2",
    "flagship": "Flagship",
    "tiny-cnn-28-reframed-validation": "Tiny CNN, 28 px, re-framed validation",
    "tiny-cnn-28-reframed-training": "Tiny CNN, 28 px, re-framed training",
    "majority-class": "Majority class",
    "file-size": "File size",
    "mean-intensity": "Mean intensity",
    "lung-box": "Position of the lungs' box",
}


class Figure(matplotlib.figure.Figure):
    """A figure that a notebook shows although pyplot does not hold it: none shows twice."""

    caption = ""

    def _repr_png_(self) -> tuple[bytes, dict[str, str]]:
        text = self.caption or self.get_suptitle() or "figure"
        return png(self, text, NOTEBOOK_DPI), {"alt": text}


def png(
    figure: matplotlib.figure.Figure,
    caption: str,
    dpi: int = DPI,
    facts: Mapping[str, Any] | None = None,
) -> bytes:
    """Draw a figure as a PNG file of 256 colours, which is a third as large as one of all colours.

    Parameters
    ----------
    figure
        The figure.
    caption
        Kept in the file as `Description`, and shown by the report page.
    dpi
        Dots an inch.
    facts
        What the figure was made from, kept in the file as JSON under `Source`.

    Returns
    -------
    bytes
        The file.
    """
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi, bbox_inches="tight")
    texts = PngInfo()
    texts.add_itxt("Description", caption)
    if facts is not None:
        texts.add_itxt("Source", json.dumps(facts))
    with Image.open(drawn) as image:
        palette = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    small = io.BytesIO()
    palette.save(small, "PNG", optimize=True, pnginfo=texts, dpi=(dpi, dpi))
    return small.getvalue()


def recipe_label(name: str) -> str:
    """Return what a reader calls a recipe; an unknown one keeps its name."""
    if name in _LABELS:
        return _LABELS[name]
    if name.endswith("-reframed"):
        return f"{recipe_label(name.removesuffix('-reframed'))}, re-framed"
    for ending, region in LUNG_REGIONS.items():
        if name.endswith(f"-{ending}"):
            return f"{recipe_label(name.removesuffix(f'-{ending}'))}, {region}"
    return name


def recipe_colours(names: Iterable[str]) -> dict[str, str]:
    """Return the colour of each of these recipes, the same in every figure.

    Baselines are gray; a recipe with an imbalance method has the colour of the one without.
    """
    wanted = list(dict.fromkeys(names))
    others = sorted(name for name in wanted if name not in RECIPES)
    colours = {}
    for name in wanted:
        if name in IMBALANCE_RECIPES:
            colours[name] = RECIPE_COLOURS[IMBALANCE_RECIPES[0]]
        elif name in RECIPE_COLOURS:
            colours[name] = RECIPE_COLOURS[name]
        elif name in RECIPES and RECIPES[name].fit == "single-feature":
            colours[name] = _BASELINE
        else:
            position = others.index(name) if name in others else list(RECIPES).index(name)
            colours[name] = _MORE_COLOURS[position % len(_MORE_COLOURS)]
    return colours


def number(value: float, decimals: int = 3) -> str:
    """Write a number with some decimals and a true minus sign; a dash for NaN."""
    if value is None or math.isnan(value):
        return "–"
    text = f"{value:.{decimals}f}"
    # No number is written as minus zero.
    negative = text.startswith("-") and float(text) != 0
    return "−" + text.lstrip("-") if negative else text.lstrip("-")


def span(low: float, high: float, decimals: int = 3) -> str:
    """Write an interval: `0.820–0.880`, `−0.200 to 0.100`, or a dash for NaN."""
    ends = (number(low, decimals), number(high, decimals))
    if "–" in ends:
        return "–"
    between = " to " if "−" in "".join(ends) else "–"
    return between.join(ends)


def interval(value: float, low: float, high: float, decimals: int = 3) -> str:
    """Write a value with its interval, if it has one: `0.850 (0.820–0.880)`."""
    shown = number(value, decimals)
    ends = span(low, high, decimals)
    return shown if "–" in (shown, ends) else f"{shown} ({ends})"
