"""Framing and rendering: how much of the chest an image shows, and with which grey levels."""

import functools
from collections.abc import Callable

import numpy as np
from PIL import Image

from xraylib.datasets.corruptions import corrupt

# Kermany's training normals show the whole film (median aspect ratio 1.21), its pneumonias are cut to the chest (1.49),
# so a network can tell the classes by framing alone. Validation therefore also shows each class framed and rendered as
# the other. The share of rows that leaves a normal the aspect ratio of a pneumonia, and of columns the other way:
SWAP = 1.21 / 1.49


def crop(pixels: np.ndarray, rows: float = 1.0, columns: float = 1.0) -> np.ndarray:
    """Keep the central share of rows and columns of uint8 `(n, size, size, 1)`, resized to `size` again."""
    size = pixels.shape[1]
    top, left = size * (1 - rows) / 2, size * (1 - columns) / 2
    box = (left, top, size - left, size - top)
    films = (Image.fromarray(film[..., 0]) for film in pixels)
    found = [
        np.asarray(film.resize((size, size), Image.Resampling.BILINEAR, box)) for film in films
    ]
    return np.stack(found)[..., None]


def swap_framing(pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Frame normals as tight as pneumonias (rows crop) and pneumonias as wide as normals (columns crop)."""
    swapped = np.empty_like(pixels)
    for label, shares in ((0, {"rows": SWAP}), (1, {"columns": SWAP})):
        if (labels == label).any():
            swapped[labels == label] = crop(pixels[labels == label], **shares)
    return swapped


def swap_rendering(pixels: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """Give each film mean and standard deviation of the intensity of some film of the other class."""
    rng, values = np.random.default_rng(seed), pixels.reshape(len(pixels), -1)
    mean = values.mean(axis=1, dtype=np.float64)
    spread = np.maximum(values.std(axis=1, dtype=np.float64), 1.0)
    model = np.empty(len(labels), int)
    for label in (0, 1):
        own, other = np.flatnonzero(labels == label), np.flatnonzero(labels != label)
        model[own] = rng.choice(other, len(own))
    gain = (spread[model] / spread)[:, None, None, None]
    changed = (pixels - mean[:, None, None, None]) * gain + mean[model][:, None, None, None]
    return np.clip(np.rint(changed), 0, 255).astype(np.uint8)


def swaps(pixels: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """The three swapped views of some films, uint8 as the films: `framing`, `rendering` and `both`."""
    framed = swap_framing(pixels, labels)
    return {
        "framing": framed,
        "rendering": swap_rendering(pixels, labels, seed),
        "both": swap_rendering(framed, labels, seed),
    }


def _bars(pixels: np.ndarray, rows: float) -> np.ndarray:
    """Black out what `cut` would take away, without stretching the rest."""
    edge, changed = round(pixels.shape[1] * (1 - rows) / 2), pixels.copy()
    changed[:, :edge] = changed[:, pixels.shape[1] - edge :] = 0
    return changed


# The framing experiment: shares of the rows (or columns) kept. Of the rows of a film of aspect ratio 1.21 they leave
# 1.30, 1.40, 1.49 and 1.60. Then the controls: the same area without the change of aspect, black bars in the place of
# what is crop, compression, blur and brightness.
SHARES = (0.93, 0.86, 0.81, 0.76)

FRAMING_VIEWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    **{f"rows {share}": functools.partial(crop, rows=share) for share in SHARES},
    **{f"columns {share}": functools.partial(crop, columns=share) for share in SHARES},
    "area 0.81": functools.partial(crop, rows=0.9, columns=0.9),
    "bars 0.81": functools.partial(_bars, rows=0.81),
    **{
        f"{name} {severity}": functools.partial(corrupt, name=name, severity=severity)
        for name, severity in (
            ("jpeg", 2),
            ("gaussian blur", 2),
            ("brightness up", 2),
            ("brightness down", 2),
        )
    },
}
