"""Figures that show radiographs, uint8 `(n, h, w, 1)`: 0 is drawn black and 255 white in every image."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from scipy.ndimage import binary_fill_holes

from xraylib.figures import style
from xraylib.figures.style import ALARM, CLASS_COLOURS, CLASSES, FAINT, INK, QUIET, Figure

Array = np.ndarray
_WIDTH, _COLUMNS, _SMALL = 10.0, 6, 8


@style.styled
def gallery(pixels: Array, titles: Sequence[str], title: str) -> Figure:
    """Radiographs in a grid, one of `titles` above each."""
    fig, _ = _grid(pixels, titles, extra=0.4)
    return style.head(fig, title)


@style.styled
def lesion_gallery(
    pixels: Array,
    masks: Array,
    titles: Sequence[str],
    title: str = "Where is the lesion?",
    maps: Array | None = None,
) -> Figure:
    """Radiographs with outlines of masks `(n, h, w)`, under heat maps `(n, h, w)` in [0, 1], if any."""
    fig, axes = _grid(pixels, titles, extra=0.6 if maps is None else 1.1)
    for place, (ax, mask) in enumerate(zip(axes, masks.reshape(pixels.shape[:3]) > 0, strict=True)):
        if maps is not None:
            heat = ax.imshow(maps[place], cmap="magma", vmin=0, vmax=1, alpha=0.45)
        if mask.any():
            height, width = mask.shape
            # A border of zeros closes the outline of a lesion that touches the edge of the film.
            padded = np.pad(binary_fill_holes(mask), 1).astype(float)
            where = (np.arange(-1, width + 1), np.arange(-1, height + 1))
            ax.contour(*where, padded, levels=[0.5], colors="#F0E442", linewidths=1.0)
            ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    if maps is not None:
        label = "heat map, share of its maximum"
        fig.colorbar(heat, ax=axes, label=label, orientation="horizontal", shrink=0.4, aspect=40)
    return style.head(fig, title, f"Yellow: outline of the lesion. n = {len(pixels)} radiographs.")


@style.styled
def steps(images: Sequence[Array], titles: Sequence[str]) -> Figure:
    """One radiograph `(h, w)`, uint8 or float, after each step of preprocessing, over its histogram."""
    inches = min(_WIDTH, max(4.0, 2.5 * len(images))) / len(images)
    fig, axes = style.blank(inches * len(images), inches * 1.7 + 0.7, 2, len(images), height_ratios=(2.4, 1))
    for (above, below), image, name in zip(axes.T, images, titles, strict=True):
        low, high = (0.0, 255.0) if image.dtype == np.uint8 else (float(image.min()), float(image.max()))
        above.imshow(image, cmap="gray", vmin=low, vmax=high)
        above.set_title(style.wrapped(name, inches - 0.2, 10.5), fontsize=9)
        size = f"{image.shape[0]} × {image.shape[1]} pixels, {image.dtype}"
        above.set_xlabel(size, color=QUIET, fontsize=_SMALL)
        above.set(xticks=[], yticks=[])
        style.bare(above)
        below.hist(image.ravel(), bins=64, range=(low, high), color=QUIET)
        ticks = [low, (low + high) / 2, high]
        below.set_xticks(ticks, [f"{tick:.0f}" if high > 10 else f"{tick:.2f}" for tick in ticks])
        below.set(xlabel="intensity", yticks=[])
        style.bare(below, "bottom")
    axes[1, 0].set_ylabel("pixels")
    return style.head(fig, "What the network gets to see")


@style.styled
def predictions(pixels: Array, truth: Array, scores: Array, threshold: float, title: str) -> Figure:
    """Radiographs with true (0/1) and predicted class, at or above the threshold 1; errors are framed."""
    fig, axes = _grid(pixels, [""] * len(pixels), extra=0.6 + 0.45 * -(-len(pixels) // _COLUMNS))
    predicted = (np.asarray(scores) >= threshold).astype(int)
    for ax, true, found, score in zip(axes, truth, predicted, scores, strict=True):
        wrong = true != found
        verdict = "correct" if not wrong else "FALSE NEGATIVE" if true else "FALSE POSITIVE"
        text = f"truth: {CLASSES[true]}\nmodel: {CLASSES[found]} ({score:.2f})\n{verdict}"
        ax.set_xlabel(text, fontsize=_SMALL, color=ALARM if wrong else INK, labelpad=4)
        for spine in ax.spines.values():
            spine.set(visible=True, color=ALARM if wrong else FAINT, linewidth=3.5 if wrong else 0.8)
    note = (
        f"Misclassified: {int((predicted != truth).sum())} of {len(truth)} shown. In brackets: P(pneumonia); "
    )
    return style.head(fig, title, note + f"at {threshold:.2f} or above, an image is classified as pneumonia.")


@style.styled
def prediction(pixels: Array, score: float, threshold: float, name: str) -> Figure:
    """One radiograph `(h, w)` of some name beside its score on the scale from normal to pneumonia."""
    found = CLASSES[int(score >= threshold)]
    fig, ((film, scale),) = style.blank(8, 3.6, 1, 2, width_ratios=(1, 1.4))
    film.imshow(pixels, cmap="gray", vmin=0, vmax=255)
    film.set(xticks=[], yticks=[])
    film.set_xlabel(style.wrapped(name, 3.2, 9), fontsize=9)
    style.bare(film)
    for x, (kind, colour) in enumerate(CLASS_COLOURS.items()):
        own, ends = kind == found, sorted((x, threshold))
        scale.barh(0, ends[1] - ends[0], left=ends[0], height=0.3, color=colour, alpha=1 if own else 0.25)
        look = {"color": colour, "fontsize": 10, "fontweight": "bold" if own else "normal"}
        scale.text(x, -0.2, kind, ha=("left", "right")[x], va="top", **look)
    scale.plot([threshold] * 2, [-0.17, 0.17], color=INK, linewidth=1.5)
    at = {"ha": _towards_middle(threshold), "va": "top", "fontsize": 9, "color": INK}
    scale.text(threshold, -0.36, f"threshold {threshold:.2f}", **at)
    scale.plot(score, 0.22, marker="v", markersize=11, color=INK, clip_on=False)
    answer = {"fontsize": 11, "fontweight": "bold", "color": INK, "va": "bottom"}
    scale.text(score, 0.33, f"P(pneumonia) = {score:.2f}", ha=_towards_middle(score), **answer)
    scale.set(xlim=(0, 1), ylim=(-0.65, 0.65), xlabel="P(pneumonia)", yticks=[], xticks=np.linspace(0, 1, 6))
    style.bare(scale, "bottom")
    return style.head(fig, f"Classified as {found}", "Not a medical device; for research and teaching only.")


def _towards_middle(x: float) -> str:
    return "left" if x < 0.2 else "right" if x > 0.8 else "center"


def _grid(pixels: Array, titles: Sequence[str], extra: float) -> tuple[Figure, list[Axes]]:
    """Draw radiographs with their titles; `extra` inches of height are for what else the figure holds."""
    columns = min(_COLUMNS, len(pixels))
    rows = -(-len(pixels) // columns)
    inches = min(_WIDTH, max(4.0, 2.4 * columns)) / columns
    names = [style.wrapped(name, inches, _SMALL) for name in titles]
    lines = max(name.count("\n") + 1 if name else 0 for name in names)
    tall = inches * pixels.shape[1] / pixels.shape[2] + 0.14 * lines + 0.12
    fig, axes = style.blank(inches * columns, rows * tall + extra, rows, columns)
    for ax in axes.flat[len(pixels) :]:
        ax.remove()
    used = list(axes.flat[: len(pixels)])
    for ax, gray, name in zip(used, pixels, names, strict=True):
        ax.imshow(gray.squeeze(), cmap="gray", vmin=0, vmax=255)
        ax.set(xticks=[], yticks=[])
        ax.set_title(name, fontsize=_SMALL, fontweight="normal", loc="left")
        style.bare(ax)
    return fig, used
