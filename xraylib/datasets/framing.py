"""How a radiograph is framed and rendered, changed on purpose: the cuts and swaps that validation uses.

Kermany's training normals show the whole film (median aspect ratio 1.21), its pneumonias are cut to the chest
(1.49), so a network can tell the classes by framing alone. Validation therefore also shows each class framed
and rendered as the other.
"""

import numpy as np
from PIL import Image

# Share of the rows of a normal that leaves it the aspect ratio of a pneumonia, and of columns the other way.
SWAP = 1.21 / 1.49


def cut(pixels: np.ndarray, rows: float = 1.0, columns: float = 1.0) -> np.ndarray:
    """Keep the central share of rows and columns of uint8 `(n, size, size, 1)`, resized to `size` again."""
    size = pixels.shape[1]
    top, left = size * (1 - rows) / 2, size * (1 - columns) / 2
    box = (left, top, size - left, size - top)
    films = (Image.fromarray(film[..., 0]) for film in pixels)
    found = [np.asarray(film.resize((size, size), Image.Resampling.BILINEAR, box)) for film in films]
    return np.stack(found)[..., None]


def swap_framing(pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Frame normals as tight as pneumonias (rows cut) and pneumonias as wide as normals (columns cut)."""
    swapped = np.empty_like(pixels)
    for label, shares in ((0, {"rows": SWAP}), (1, {"columns": SWAP})):
        if (labels == label).any():
            swapped[labels == label] = cut(pixels[labels == label], **shares)
    return swapped


def swap_rendering(pixels: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """Give each film mean and standard deviation of the intensity of a drawn film of the other class."""
    rng = np.random.default_rng(seed)
    values = pixels.reshape(len(pixels), -1)
    mean, spread = (
        values.mean(axis=1, dtype=np.float64),
        np.maximum(values.std(axis=1, dtype=np.float64), 1.0),
    )
    drawn = np.empty(len(labels), int)
    for label in (0, 1):
        own, other = np.flatnonzero(labels == label), np.flatnonzero(labels != label)
        drawn[own] = rng.choice(other, len(own))
    gain = (spread[drawn] / spread)[:, None, None, None]
    changed = (pixels - mean[:, None, None, None]) * gain + mean[drawn][:, None, None, None]
    return np.clip(np.rint(changed), 0, 255).astype(np.uint8)


def swaps(pixels: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """The three swapped views of some films, uint8 as the films: `framing`, `rendering` and `both`."""
    framed = swap_framing(pixels, labels)
    return {
        "framing": framed,
        "rendering": swap_rendering(pixels, labels, seed),
        "both": swap_rendering(framed, labels, seed),
    }
