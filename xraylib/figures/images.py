"""Figures that show radiographs."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from scipy.ndimage import binary_fill_holes

from xraylib.figures.style import (
    ALARM,
    CLASS_COLOURS,
    CLASSES,
    FAINT,
    INK,
    QUIET,
    Figure,
    bare,
    blank,
    equally_many,
    head,
    radiographs,
    styled,
    wrapped,
)
from xraylib.storage import DataInvalid

_WIDTH = 10.0
_SMALL = 8


@styled
def gallery(pixels: np.ndarray, titles: Sequence[str], columns: int = 6, title: str | None = None) -> Figure:
    """Radiographs in a grid, all on one gray scale.

    Parameters
    ----------
    pixels
        uint8 `(n, h, w)` or `(n, h, w, 1)`; 0 is drawn black and 255 white in every image.
    titles
        One above each image.
    columns
        Images a row.
    title
        Of the whole figure.

    Raises
    ------
    DataInvalid
        For other pixels, none, or another number of titles.
    """
    fig, _ = _grid(pixels, titles, columns, extra=0.4 if title else 0.0)
    if title:
        head(fig, title)
    return fig


@styled
def lesion_gallery(
    pixels: np.ndarray,
    masks: np.ndarray,
    titles: Sequence[str],
    columns: int = 6,
    title: str = "Where is the lesion?",
    maps: np.ndarray | None = None,
) -> Figure:
    """Radiographs in a grid with the outer outline of each lesion, under a heat map where one is given.

    Parameters
    ----------
    pixels
        uint8 `(n, h, w)` or `(n, h, w, 1)`.
    masks
        `(n, h, w)` or `(n, h, w, 1)`, not zero inside the lesion; a mask of zeros draws no outline.
    titles, columns, title
        As for `gallery`.
    maps
        float `(n, h, w)` in [0, 1], as `explain.heat_maps` gives them.

    Raises
    ------
    DataInvalid
        For other pixels, none, or masks or maps of another shape.
    """
    grays, inside = radiographs(pixels), np.asarray(masks) > 0
    inside = inside[..., 0] if inside.ndim == 4 else inside
    if inside.shape != grays.shape or (maps is not None and maps.shape != grays.shape):
        raise DataInvalid(
            f"masks of shape {inside.shape}, or the maps, do not fit radiographs of shape {grays.shape}. "
            "Fix: scale them to the size of the radiographs."
        )
    fig, axes = _grid(grays, titles, columns, extra=0.6)
    for place, (ax, mask) in enumerate(zip(axes, inside, strict=True)):
        if maps is not None:
            ax.imshow(maps[place], cmap="magma", vmin=0, vmax=1, alpha=0.45)
        if mask.any():
            height, width = mask.shape
            # A border of zeros closes the outline of a lesion that touches the edge of the film.
            padded = np.pad(binary_fill_holes(mask), 1).astype(float)
            where = (np.arange(-1, width + 1), np.arange(-1, height + 1))
            ax.contour(*where, padded, levels=[0.5], colors="#F0E442", linewidths=1.0)
            ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    head(fig, title, f"Yellow: outline of the lesion. n = {len(grays)} radiographs.")
    return fig


@styled
def steps(
    images: Sequence[np.ndarray], titles: Sequence[str], title: str = "What the network gets to see"
) -> Figure:
    """One radiograph after each step of preprocessing, over the histogram of its intensities.

    Parameters
    ----------
    images
        Each `(h, w)`, `(h, w, 1)` or `(h, w, 3)`, of which the first channel is drawn. uint8 is drawn
        from 0 to 255, floats from their lowest to their highest value.
    titles
        One an image.

    Raises
    ------
    DataInvalid
        When there is no image, another number of titles, or an image of another shape or with NaN.
    """
    equally_many(images=len(images), titles=len(titles))
    planes = [_plane(image) for image in images]
    if not planes:
        raise DataInvalid("no image to draw the steps of. Fix: pass at least one.")
    width = min(_WIDTH, max(4.0, 2.5 * len(planes)))
    side = width / len(planes)
    fig, axes = blank(width, side * 1.7 + 0.7, 2, len(planes), height_ratios=(2.4, 1))
    for (above, below), plane, name in zip(axes.T, planes, titles, strict=True):
        low, high = (0.0, 255.0) if plane.dtype == np.uint8 else (float(plane.min()), float(plane.max()))
        high = high if high > low else low + 1
        above.imshow(plane, cmap="gray", vmin=low, vmax=high)
        above.set_title(wrapped(name, side - 0.2, 10.5), fontsize=9)
        size = f"{plane.shape[0]} × {plane.shape[1]} pixels, {plane.dtype}"
        above.set_xlabel(size, color=QUIET, fontsize=_SMALL)
        above.set(xticks=[], yticks=[])
        bare(above)
        share = np.full(plane.size, 1 / plane.size)
        below.hist(plane.ravel(), bins=64, range=(low, high), weights=share, color=QUIET)
        middle = (low + high) / 2
        below.set_xticks([low, middle, high], [f"{low:.3g}", f"{middle:.3g}", f"{high:.3g}"])
        below.set(xlabel="intensity", yticks=[], xlim=(low, high))
        bare(below, "bottom")
    axes[1, 0].set_ylabel("share of pixels")
    head(fig, title)
    return fig


@styled
def predictions(
    pixels: np.ndarray,
    truth: np.ndarray,
    scores: np.ndarray,
    threshold: float,
    columns: int = 6,
    title: str = "What the model calls test radiographs",
) -> Figure:
    """Radiographs with true and predicted class under each; wrong ones have a frame and a word.

    Parameters
    ----------
    pixels
        uint8 `(n, h, w)` or `(n, h, w, 1)`.
    truth
        0/1 `(n,)`.
    scores
        P(pneumonia) `(n,)`, in [0, 1].
    threshold
        At or above it a radiograph is called pneumonia.
    columns, title
        As for `gallery`.

    Raises
    ------
    DataInvalid
        For other pixels, none, or another number of labels or scores.
    """
    grays, truth, scores = radiographs(pixels), np.asarray(truth, dtype=int), np.asarray(scores, dtype=float)
    equally_many(images=len(grays), labels=len(truth), scores=len(scores))
    rows = -(-len(grays) // max(1, columns))
    fig, axes = _grid(grays, [""] * len(grays), columns, extra=0.6 + 0.45 * rows)
    called = (scores >= threshold).astype(int)
    for ax, true, call, score in zip(axes, truth, called, scores, strict=True):
        wrong = true != call
        verdict = "correct" if not wrong else "WRONG: missed" if true else "WRONG: false alarm"
        text = f"true {CLASSES[true]}\ncalled {CLASSES[call]} ({score:.2f})\n{verdict}"
        ax.set_xlabel(text, fontsize=_SMALL, color=ALARM if wrong else INK, labelpad=4)
        for spine in ax.spines.values():
            spine.set(visible=True, color=ALARM if wrong else FAINT, linewidth=3.5 if wrong else 0.8)
    note = (
        f"{int((called != truth).sum())} of the {len(truth)} shown are wrong. "
        f"In brackets: P(pneumonia); at {threshold:.3g} or above it is called pneumonia."
    )
    head(fig, title, note)
    return fig


@styled
def prediction(pixels: np.ndarray, score: float, threshold: float, name: str) -> Figure:
    """One radiograph beside its score on the scale from normal to pneumonia.

    Parameters
    ----------
    pixels
        uint8 `(h, w)` or `(h, w, 1)`.
    score
        P(pneumonia), in [0, 1].
    threshold
        At or above it the radiograph is called pneumonia.
    name
        Of the radiograph.

    Raises
    ------
    DataInvalid
        For other pixels, or a score outside [0, 1].
    """
    gray = radiographs(np.asarray(pixels)[None])[0]
    if not 0 <= score <= 1:
        raise DataInvalid(f"{name}: a score of {score} is outside [0, 1]. Fix: pass P(pneumonia).")
    call = CLASSES[int(score >= threshold)]
    fig, ((film, scale),) = blank(8, 3.6, 1, 2, width_ratios=(1, 1.4))
    film.imshow(gray, cmap="gray", vmin=0, vmax=255)
    film.set(xticks=[], yticks=[])
    film.set_xlabel(wrapped(name, 3.2, 9), fontsize=9)
    bare(film)
    for left, right, side, align in ((0, threshold, "normal", "left"), (threshold, 1, "pneumonia", "right")):
        own, colour = side == call, CLASS_COLOURS[side]
        scale.barh(0, right - left, left=left, height=0.3, color=colour, alpha=1 if own else 0.25)
        x, weight = float(align == "right"), "bold" if own else "normal"
        scale.text(x, -0.2, side, ha=align, va="top", color=colour, fontsize=10, fontweight=weight)
    scale.plot([threshold] * 2, [-0.17, 0.17], color=INK, linewidth=1.5)
    edge = _towards_middle(threshold)
    scale.text(threshold, -0.36, f"threshold {threshold:.2f}", ha=edge, va="top", fontsize=9, color=INK)
    scale.plot(score, 0.22, marker="v", markersize=11, color=INK, clip_on=False)
    answer = {"fontsize": 11, "fontweight": "bold", "color": INK, "va": "bottom"}
    scale.text(score, 0.33, f"P(pneumonia) = {score:.2f}", ha=_towards_middle(score), **answer)
    scale.set(xlim=(0, 1), ylim=(-0.65, 0.65), xlabel="P(pneumonia)", yticks=[], xticks=np.linspace(0, 1, 6))
    bare(scale, "bottom")
    head(fig, f"Called {call}", "Not a medical device; for research and teaching only.")
    return fig


def _towards_middle(x: float) -> str:
    return "left" if x < 0.2 else "right" if x > 0.8 else "center"


def _plane(image: np.ndarray) -> np.ndarray:
    image = np.asarray(image)
    plane = image[..., 0] if image.ndim == 3 else image
    if plane.ndim != 2 or plane.size == 0 or not np.isfinite(plane).all():
        raise DataInvalid(
            f"an image of shape {image.shape} cannot be drawn. "
            "Fix: pass (h, w), (h, w, 1) or (h, w, 3) without NaN."
        )
    return plane


def _grid(pixels: np.ndarray, titles: Sequence[str], columns: int, extra: float) -> tuple[Figure, list[Axes]]:
    """Draw radiographs with their titles; `extra` inches of height are for what else the figure holds."""
    grays = radiographs(pixels)
    equally_many(images=len(grays), titles=len(titles))
    columns = max(1, min(columns, len(grays)))
    rows = -(-len(grays) // columns)
    side = min(_WIDTH, max(4.0, 2.4 * columns)) / columns
    names = [wrapped(name, side, _SMALL) for name in titles]
    lines = max(name.count("\n") + 1 if name else 0 for name in names)
    tall = side * grays.shape[1] / grays.shape[2] + 0.14 * lines + 0.12
    fig, axes = blank(side * columns, rows * tall + extra, rows, columns)
    for ax in axes.flat[len(grays) :]:
        ax.remove()
    used = list(axes.flat[: len(grays)])
    for ax, gray, name in zip(used, grays, names, strict=True):
        ax.imshow(gray, cmap="gray", vmin=0, vmax=255)
        ax.set(xticks=[], yticks=[])
        ax.set_title(name, fontsize=_SMALL, fontweight="normal", loc="left")
        bare(ax)
    return fig, used
