"""What a network is fed: batches of one length, an imbalance remedy, and scoring."""

import keras
import numpy as np

from xraylib.training import models

IMBALANCE_METHODS = ("class_weight", "oversample", "undersample")


class Batches(keras.utils.PyDataset):
    """Batches of one length from the memory-mapped pixels; what fills no batch waits for another epoch."""

    def __init__(
        self, pixels: np.ndarray, labels: np.ndarray, rows: np.ndarray, weights: np.ndarray, size: int
    ):
        super().__init__()
        self.pixels, self.labels, self.weights = pixels, labels, weights
        self.size = min(size, len(rows))
        self.rows = rows[: len(rows) // self.size * self.size].reshape(-1, self.size)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows = self.rows[index]
        return self.pixels[rows], self.labels[rows], self.weights[rows]


def predict(
    model: keras.Model, head: str, pixels: np.ndarray, rows: np.ndarray, batch_size: int
) -> np.ndarray:
    """P(pneumonia) of some rows of the pixels.

    Parameters
    ----------
    model
        From `models.build`.
    head
        Its key in `models.HEADS`.
    pixels
        uint8 `(n, size, size, 1)`.
    rows
        Which of them, integers.
    batch_size
        Images at a time; the last batch is filled up, so that one shape is compiled.

    Returns
    -------
    numpy.ndarray
        float64 `(len(rows),)` in [0, 1].
    """
    found = []
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        filled = np.resize(part, batch_size)
        outputs = np.asarray(model.predict_on_batch(pixels[filled]), dtype=np.float64)
        found.append(models.HEADS[head].probability(outputs)[: len(part)])
    return np.concatenate(found)


def balance(
    rows: np.ndarray, labels: np.ndarray, remedy: str | None, draw: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Apply an imbalance remedy to the rows of one epoch.

    Parameters
    ----------
    rows
        Training rows, integers.
    labels
        0/1 of every row of the data set.
    remedy
        One of `IMBALANCE_METHODS`, or None. Over- and undersampling draw anew each epoch.
    draw
        Random generator.

    Returns
    -------
    tuple
        The rows of the epoch, and a float32 weight for every row of the data set (mean 1 over `rows`).
    """
    weights = np.ones(len(labels), np.float32)
    sides = [rows[labels[rows] == value] for value in (0, 1)]
    if remedy == "class_weight":
        for side in sides:
            weights[side] = len(rows) / (2 * len(side))
    elif remedy in ("oversample", "undersample"):
        length = (max if remedy == "oversample" else min)(len(side) for side in sides)
        drawn = [draw.choice(side, length, replace=len(side) < length) for side in sides]
        rows = np.concatenate(drawn)
    return rows, weights
