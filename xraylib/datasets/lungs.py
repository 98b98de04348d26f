"""Boxes around the lungs: read them from files, check them, and crop images to them.

A box is four shares of the image, ``top, bottom, left, right``. Each is the distance from that
edge of the image to the box: ``0, 0, 0, 0`` is the whole image, and the box is
``1 - top - bottom`` of the image high and ``1 - left - right`` wide.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from xraylib.datasets import images
from xraylib.errors import InvalidDataError, NotFoundError

_log = logging.getLogger(__name__)

BOX_COLUMNS = ["top", "bottom", "left", "right"]

# How far outside the image an outline may lie, as a share of the image: annotators overshoot.
_OVERSHOOT = 0.01

# An image's file name, width, height, and the polygons of its lungs, `(points, 2)` in pixels.
_Outlined = tuple[str, float, float, list[np.ndarray]]


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
        Crops, uint8 ``(n, size, size, 1)``, see `images.resize`.
    """
    height, width = pixels.shape[1:3]
    top, bottom, left, right = np.asarray(boxes, dtype=float).T
    vertical = margin * (1 - top - bottom)
    horizontal = margin * (1 - left - right)
    corners = [
        width * np.maximum(left - horizontal, 0),
        height * np.maximum(top - vertical, 0),
        width * (1 - np.maximum(right - horizontal, 0)),
        height * (1 - np.maximum(bottom - vertical, 0)),
    ]
    return images.resize(pixels, size, np.stack(corners, axis=1))


def box_of_mask(mask: np.ndarray) -> np.ndarray:
    """Smallest box around the true pixels of a boolean mask ``(height, width)``, float ``(4,)``."""
    box = []
    for axis in (0, 1):
        places = np.flatnonzero(mask.any(axis=1 - axis))
        length = mask.shape[axis]
        box += [places[0] / length, 1 - (places[-1] + 1) / length]
    return np.array(box)


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
    is_inside = ((boxes >= 0) & (boxes < 1)).all(axis=1)
    is_inside &= (boxes[:, 0] + boxes[:, 1] < 1) & (boxes[:, 2] + boxes[:, 3] < 1)
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


def read_outlines(path: Path | str) -> pd.DataFrame:
    """Read the lungs' outlines from the annotations' own download.

    Parameters
    ----------
    path
        A folder of Darwin JSON files, one per image (V7's format, in which the outlines of
        ``v7labs/covid-19-xray-dataset`` are published, CC BY 4.0), or one COCO JSON file.
        Polygons whose name contains "lung" count.

    Returns
    -------
    pandas.DataFrame
        One row per image that has an outline, sorted by ``image_id``:

        - image_id: the image's file name without its suffix
        - width, height: size of the annotated image in pixels
        - top, bottom, left, right: box around all of its lungs
        - lung_height: height of that box, as a share of the image's height
        - lung_area: area of the polygons, as a share of the image's area

    Raises
    ------
    NotFoundError
        There is no such file or folder, or no JSON file in it.
    InvalidDataError
        A file is damaged or of another format, an image occurs twice, no polygon is a lung, or an
        outline leaves its image.
    """
    path = Path(path)
    files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    if not files or not path.exists():
        raise NotFoundError(f"{path}: no JSON file. Fix: give the file or folder of annotations.")
    rows = []
    without = 0
    for file in files:
        with _format_errors(file):
            content = json.loads(file.read_text(encoding="utf-8"))
            outlined = _read_coco(content) if "images" in content else [_read_darwin(content)]
            rows += [_outline_row(*image) for image in outlined if image[-1]]
            without += sum(not polygons for *_, polygons in outlined)
    if not rows:
        raise InvalidDataError(
            f'{path}: none of {without} images has a polygon named like "lung". '
            "Fix: give the folder or file that holds the outlines."
        )
    if without:
        _log.warning("%s: no lungs are outlined in %d images", path, without)
    table = pd.DataFrame(rows).sort_values("image_id", ignore_index=True)
    is_repeated = table["image_id"].duplicated()
    if is_repeated.any():
        raise InvalidDataError(
            f"{path}: {table['image_id'][is_repeated].iloc[0]} is outlined twice. "
            "Fix: keep one annotation per image."
        )
    return table


@contextmanager
def _format_errors(file: Path) -> Iterator[None]:
    """Turn whatever is wrong with the content of a file into an error that names the file."""
    try:
        yield
    except (OSError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise InvalidDataError(
            f"{file} cannot be used ({type(error).__name__}: {error}). Fix: give a folder of "
            "Darwin JSON files or one COCO JSON file, with polygons of the lungs."
        ) from error


def _read_darwin(content: Mapping[str, Any]) -> _Outlined:
    """Read one image in version 1 or 2 of Darwin's format."""
    if "item" in content:
        image = {**content["item"]["slots"][0], "filename": content["item"]["name"]}
    else:
        image = content["image"]
    polygons: list[np.ndarray] = []
    for annotation in content["annotations"]:
        if "lung" in annotation["name"].lower():
            shape = annotation.get("polygon") or annotation.get("complex_polygon") or {}
            paths = shape.get("paths") or shape.get("path") or []
            # Version 1 has one path where a polygon is simple.
            if paths and isinstance(paths[0], Mapping):
                paths = [paths]
            polygons += [
                np.array([(point["x"], point["y"]) for point in points], float) for points in paths
            ]
    return image["filename"], image["width"], image["height"], polygons


def _read_coco(content: Mapping[str, Any]) -> list[_Outlined]:
    """Read all images of a COCO file."""
    names = {category["id"]: category["name"].lower() for category in content["categories"]}
    polygons: dict[Any, list[np.ndarray]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        if "lung" in names[annotation["category_id"]]:
            polygons[annotation["image_id"]] += [
                np.array(flat, float).reshape(-1, 2) for flat in annotation["segmentation"]
            ]
    return [
        (image["file_name"], image["width"], image["height"], polygons[image["id"]])
        for image in content["images"]
    ]


def _outline_row(
    name: str, width: float, height: float, polygons: list[np.ndarray]
) -> dict[str, Any]:
    """Describe an image by its lungs' polygons."""
    shape = f"{name}, an image of {width} x {height} pixels"
    if width <= 0 or height <= 0:
        raise ValueError(shape)
    points = np.concatenate(polygons) / (width, height)
    low = points.min(axis=0)
    high = points.max(axis=0)
    # Written so that a value that is not a number fails, too.
    if not (low >= -_OVERSHOOT).all() or not (high <= 1 + _OVERSHOOT).all():
        raise ValueError(f"an outline leaves {shape}")
    left, top = np.clip(low, 0, 1)
    right, bottom = 1 - np.clip(high, 0, 1)
    if left + right >= 1 or top + bottom >= 1:
        raise ValueError(f"an outline without area on {shape}")
    area = sum(_polygon_area(polygon) for polygon in polygons) / (width * height)
    return {
        "image_id": Path(name).stem,
        "width": int(width),
        "height": int(height),
        "top": top,
        "bottom": bottom,
        "left": left,
        "right": right,
        "lung_height": 1 - top - bottom,
        "lung_area": min(area, 1.0),
    }


def _polygon_area(points: np.ndarray) -> float:
    """Area in pixels, by the shoelace formula."""
    x, y = points.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
