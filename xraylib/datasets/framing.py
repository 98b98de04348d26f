"""Framing and rendering, the two properties of an image that betray its class without any lung.

*Framing* is how much of the body an image shows around the lungs: its field of view, as set by
collimation and by later cropping. *Rendering* is its grey-scale processing: the brightness and
contrast with which the detector's values are shown.

Kermany's training normals show the whole chest (median aspect ratio 1.21), its pneumonias are
cropped to the lungs (1.49), so that a network can separate the classes by framing alone. The
functions here show each class framed or rendered as the other, or crop all images by degrees.
"""

from functools import partial

import numpy as np

from xraylib.datasets import lungs
from xraylib.datasets.corruptions import corrupt

# The share of rows that leaves a normal the aspect ratio of a pneumonia, and the share of columns
# that does the opposite.
SWAP = 1.21 / 1.49


def crop(
    pixels: np.ndarray,
    rows: float = 1.0,
    columns: float = 1.0,
) -> np.ndarray:
    """Crop images to their centre and stretch the crop to the old size.

    Parameters
    ----------
    pixels
        uint8 ``(n, size, size, 1)``.
    rows, columns
        Shares of the rows and columns to keep, above 0 and at most 1.

    Returns
    -------
    numpy.ndarray
        As `pixels`.
    """
    vertical = (1 - rows) / 2
    horizontal = (1 - columns) / 2
    box = [vertical, vertical, horizontal, horizontal]
    boxes = np.tile(box, (len(pixels), 1))
    return lungs.crop_boxes(pixels, boxes, size=pixels.shape[1])


def swap_framing(pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Frame each class as the other: normals lose rows, pneumonias lose columns.

    Parameters
    ----------
    pixels
        uint8 ``(n, size, size, 1)``.
    labels
        ``(n,)``, 0 for normal and 1 for pneumonia.

    Returns
    -------
    numpy.ndarray
        As `pixels`.
    """
    framed = np.empty_like(pixels)
    framed[labels == 0] = crop(pixels[labels == 0], rows=SWAP)
    framed[labels == 1] = crop(pixels[labels == 1], columns=SWAP)
    return framed


def swap_rendering(
    pixels: np.ndarray,
    labels: np.ndarray,
    seed: int,
) -> np.ndarray:
    """Give each image the mean and standard deviation of a random image of the other class.

    Parameters
    ----------
    pixels
        uint8 ``(n, size, size, 1)``.
    labels
        ``(n,)``, 0 for normal and 1 for pneumonia.
    seed
        Chooses the images of the other class.

    Returns
    -------
    numpy.ndarray
        As `pixels`.
    """
    rng = np.random.default_rng(seed)
    values = pixels.reshape(len(pixels), -1)
    mean = values.mean(axis=1, dtype=np.float64, keepdims=True)
    spread = values.std(axis=1, dtype=np.float64, keepdims=True)
    spread = np.maximum(spread, 1.0)
    other = np.empty(len(labels), int)
    for label in (0, 1):
        is_class = labels == label
        candidates = np.flatnonzero(~is_class)
        other[is_class] = rng.choice(candidates, is_class.sum())
    gain = spread[other] / spread
    changed = (values - mean) * gain + mean[other]
    rounded = np.rint(changed).clip(0, 255)
    return rounded.astype(np.uint8).reshape(pixels.shape)


def swaps(
    pixels: np.ndarray,
    labels: np.ndarray,
    seed: int,
) -> dict[str, np.ndarray]:
    """Three views of some images: `framing`, `rendering` and `both` swapped between the classes.

    Parameters and values are those of `swap_framing` and `swap_rendering`.
    """
    framed = swap_framing(pixels, labels)
    return {
        "framing": framed,
        "rendering": swap_rendering(pixels, labels, seed),
        "both": swap_rendering(framed, labels, seed),
    }


def _blacken(pixels: np.ndarray, rows: float) -> np.ndarray:
    """Blacken the rows that `crop` takes away, without stretching the rest."""
    size = pixels.shape[1]
    edge = round(size * (1 - rows) / 2)
    blackened = pixels.copy()
    blackened[:, :edge] = 0
    blackened[:, size - edge :] = 0
    return blackened


# Shares of the rows or columns kept in the framing experiment. As rows of an image of aspect
# ratio 1.21 they give the ratios 1.30, 1.40, 1.49 and 1.60.
SHARES = (0.93, 0.86, 0.81, 0.76)
# The views of the framing experiment: crops of rows and of columns, then its controls. These are
# the same area without a change of aspect, black bars in place of the cropped rows, compression,
# blur and brightness.
FRAMING_VIEWS = {
    **{f"rows {share}": partial(crop, rows=share) for share in SHARES},
    **{f"columns {share}": partial(crop, columns=share) for share in SHARES},
    "area 0.81": partial(crop, rows=0.9, columns=0.9),
    "bars 0.81": partial(_blacken, rows=0.81),
    "jpeg 2": partial(corrupt, name="jpeg", severity=2),
    "gaussian blur 2": partial(corrupt, name="gaussian blur", severity=2),
    "brightness up 2": partial(corrupt, name="brightness up", severity=2),
    "brightness down 2": partial(corrupt, name="brightness down", severity=2),
}
