"""Boxes around the lungs: read them from files, check them, and crop images to them.

A box is four shares of the image, ``top, bottom, left, right``. Each is the distance from that
edge of the image to the box: ``0, 0, 0, 0`` is the whole image, and the box is
``1 - top - bottom`` of the image high and ``1 - left - right`` wide.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from xraylib.errors import InvalidDataError, NotFoundError

BOX_COLUMNS = ["top", "bottom", "left", "right"]


def crop_boxes(
    pixels: np.ndarray,
    boxes: np.ndarray,
    size: int,
    margin: float = 0.05,
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
        Crops, uint8 ``(n, size, size, 1)``, resized with Pillow's antialiased bilinear filter.
    """
    height, width = pixels.shape[1:3]
    crops = np.empty((len(pixels), size, size, 1), np.uint8)
    for index, (top, bottom, left, right) in enumerate(boxes):
        vertical = margin * (1 - top - bottom)
        horizontal = margin * (1 - left - right)
        corners = (
            width * max(left - horizontal, 0.0),
            height * max(top - vertical, 0.0),
            width * (1 - max(right - horizontal, 0.0)),
            height * (1 - max(bottom - vertical, 0.0)),
        )
        image = Image.fromarray(np.ascontiguousarray(pixels[index, ..., 0]))
        crop = image.resize((size, size), Image.Resampling.BILINEAR, box=corners)
        crops[index, ..., 0] = np.asarray(crop)
    return crops


def box_of_mask(mask: np.ndarray) -> np.ndarray:
    """Smallest box around the true pixels of a boolean mask ``(height, width)``, float ``(4,)``."""
    rows = np.flatnonzero(mask.any(axis=1))
    columns = np.flatnonzero(mask.any(axis=0))
    height, width = mask.shape
    return np.array(
        [
            rows[0] / height,
            1 - (rows[-1] + 1) / height,
            columns[0] / width,
            1 - (columns[-1] + 1) / width,
        ]
    )


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
    try:
        table = pd.read_csv(path, dtype={"image_id": str}, encoding="utf-8")
    except (ValueError, pd.errors.ParserError) as error:
        raise InvalidDataError(
            f"{path} is not a CSV ({error}). Fix: export it as comma-separated UTF-8 text."
        ) from error
    missing = {"image_id", *BOX_COLUMNS} - set(table)
    if missing:
        raise InvalidDataError(
            f"{path} has no column {', '.join(sorted(missing))}. "
            f"Fix: name the columns image_id, {', '.join(BOX_COLUMNS)}."
        )
    for name in BOX_COLUMNS:
        table[name] = pd.to_numeric(table[name], errors="coerce").astype(float)
    ids = table["image_id"]
    top, bottom, left, right = (table[name] for name in BOX_COLUMNS)
    # Written so that a value that is not a number fails, too.
    inside = (table[BOX_COLUMNS] >= 0).all(axis=1) & (top + bottom < 1) & (left + right < 1)
    share = "give the distances from the image's edges as shares from 0 to 1"
    _refuse(path, table, ids.isna(), "has no image_id", "name the image")
    _refuse(path, table, ids.duplicated(), "occurs twice", "keep one box per image")
    _refuse(path, table, ~inside, "is no box inside the image", share)
    return table


def _refuse(path: Path, table: pd.DataFrame, wrong: pd.Series, problem: str, fix: str) -> None:
    """Name the first wrong row, by its line in the file."""
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        values = ", ".join(f"{name} {table[name][row]}" for name in ("image_id", *BOX_COLUMNS))
        raise InvalidDataError(f"{path}, row {row + 2}: {values} {problem}. Fix: {fix}.")
