"""Boxes around the lungs: read them from files, check them, and crop images to them.

A box is four shares of the image, ``top, bottom, left, right``. Each is the distance from that
edge of the image to the box: ``0, 0, 0, 0`` is the whole image, and the box is
``1 - top - bottom`` of the image high and ``1 - left - right`` wide.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from xraylib.datasets import images
from xraylib.errors import InvalidDataError, NotFoundError

BOX_COLUMNS = ["top", "bottom", "left", "right"]


def enlarge(boxes: np.ndarray, margin: float) -> np.ndarray:
    """Move every side of boxes outwards, beyond the image perhaps.

    Parameters
    ----------
    boxes
        One box or several, ``(4,)`` or ``(n, 4)``, as shares of the image.
    margin
        How far the sides move, as a share of the box's own height or width.

    Returns
    -------
    numpy.ndarray
        As `boxes`.
    """
    top, bottom, left, right = boxes.T
    vertical = margin * (1 - top - bottom)
    horizontal = margin * (1 - left - right)
    sides = [top - vertical, bottom - vertical, left - horizontal, right - horizontal]
    return np.stack(sides, axis=-1)


def crop_boxes(
    pixels: np.ndarray,
    boxes: np.ndarray,
    size: int,
    margin: float = 0.0,
) -> np.ndarray:
    """Crop each image to its box and stretch the crop to a square.

    Parameters
    ----------
    pixels
        Images, uint8 ``(n, height, width, 1)``.
    boxes
        One box per image, ``(n, 4)``, as shares of the image.
    size
        Side of the returned images in pixels.
    margin
        The box is first enlarged on every side by this share of its own height or width, but not
        beyond the image.

    Returns
    -------
    numpy.ndarray
        Crops, uint8 ``(n, size, size, 1)``, see `images.resize`.
    """
    height, width = pixels.shape[1:3]
    top, bottom, left, right = np.maximum(enlarge(boxes, margin), 0).T
    corners = [
        width * left,
        height * top,
        width * (1 - right),
        height * (1 - bottom),
    ]
    return images.resize(pixels, size, np.stack(corners, axis=1))


def box_of_mask(mask: np.ndarray) -> np.ndarray:
    """Smallest box around the true pixels of a boolean mask ``(height, width)``, float ``(4,)``."""
    places = np.argwhere(mask)
    top, left = places.min(axis=0) / mask.shape
    bottom, right = 1 - (places.max(axis=0) + 1) / mask.shape
    return np.array([top, bottom, left, right])


def read_boxes(path: Path | str) -> pd.DataFrame:
    """Read and check a CSV of boxes.

    Parameters
    ----------
    path
        A CSV with at least the columns ``image_id, top, bottom, left, right``.

    Returns
    -------
    pandas.DataFrame
        One row per image, with all columns of the file: ``image_id`` is text, the box's columns
        are float shares of the image.

    Raises
    ------
    NotFoundError
        There is no such file.
    InvalidDataError
        The file is no such table, an image occurs twice, or a box is not inside its image.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"{path}: no such file. Fix: put the lung boxes there.")
    columns = ["image_id", *BOX_COLUMNS]
    try:
        table = pd.read_csv(path, dtype={"image_id": str}, encoding="utf-8")
        cells = table[columns]
    except (ValueError, KeyError) as error:
        raise InvalidDataError(
            f"{path} is not a CSV of lung boxes ({error}). Fix: write it in UTF-8 with the columns "
            f"{', '.join(columns)}."
        ) from error
    boxes = cells[BOX_COLUMNS].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float)
    table[BOX_COLUMNS] = boxes
    # Written so that a value that is not a number fails, too.
    top, bottom, left, right = boxes.T
    is_inside = (boxes >= 0).all(axis=1) & (top + bottom < 1) & (left + right < 1)
    problems = {
        "the image is not named": cells["image_id"].isna(),
        "the image occurs twice": cells["image_id"].duplicated(),
        "the box is not inside the image": ~is_inside,
    }
    for problem, is_wrong in problems.items():
        if is_wrong.any():
            row = int(np.flatnonzero(is_wrong)[0])
            shown = ", ".join(f"{name} {value}" for name, value in cells.iloc[row].items())
            raise InvalidDataError(
                f"{path}, line {row + 2} ({shown}): {problem}. Fix: give one box per image, as "
                "distances from its edges in shares from 0 to 1, with top + bottom < 1 and "
                "left + right < 1."
            )
    return table
