"""Boxes around the lungs: read them from files, check them, and crop images to them.

A box is four shares of the image, ``top, bottom, left, right``. Each is the distance from that
edge of the image to the box: ``0, 0, 0, 0`` is the whole image, and the box is
``1 - top - bottom`` of the image high and ``1 - left - right`` wide.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from xraylib.errors import InvalidDataError, NotFoundError, UnusableImageError

_log = logging.getLogger(__name__)

BOX_COLUMNS = ["top", "bottom", "left", "right"]

OUTLINE_COLUMNS = ["image_id", "width", "height", *BOX_COLUMNS, "lung_height", "lung_area"]

# How far outside the image an outline may lie, as a share of the image: annotators overshoot.
_OVERSHOOT = 0.01

_Points = np.ndarray
_Item = tuple[Path, str, float, float, list[_Points]]


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
    boxes = np.asarray(boxes, dtype=float)
    if boxes.shape != (len(pixels), 4):
        raise InvalidDataError(
            f"{len(pixels)} images and boxes of shape {boxes.shape} do not match. "
            "Fix: pass one box (top, bottom, left, right) per image."
        )
    crops = np.empty((len(pixels), size, size, 1), np.uint8)
    for index, (image, box) in enumerate(zip(pixels, boxes, strict=True)):
        corners = _corners(box, margin, *image.shape[:2])
        crop = Image.fromarray(np.ascontiguousarray(image[..., 0])).resize(
            (size, size),
            Image.Resampling.BILINEAR,
            box=corners,
        )
        crops[index, ..., 0] = np.asarray(crop)
    return crops


def _corners(
    box: np.ndarray,
    margin: float,
    height: int,
    width: int,
) -> tuple[float, float, float, float]:
    """Pixel coordinates (left, upper, right, lower) of an enlarged box, within the image."""
    top, bottom, left, right = box
    vertical = margin * (1 - top - bottom)
    horizontal = margin * (1 - left - right)
    return (
        width * max(left - horizontal, 0.0),
        height * max(top - vertical, 0.0),
        width * (1 - max(right - horizontal, 0.0)),
        height * (1 - max(bottom - vertical, 0.0)),
    )


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
    missing = [name for name in ("image_id", *BOX_COLUMNS) if name not in table]
    if missing:
        raise InvalidDataError(
            f"{path} has no column {', '.join(missing)}. "
            f"Fix: name the columns image_id, {', '.join(BOX_COLUMNS)}."
        )
    _check_ids(path, table["image_id"])
    for name in BOX_COLUMNS:
        table[name] = pd.to_numeric(table[name], errors="coerce").astype(float)
    _check_boxes(path, table)
    return table


def _check_ids(path: Path, ids: pd.Series) -> None:
    if ids.isna().any():
        raise InvalidDataError(
            f"{path}, row {_first_row(ids.isna())}: image_id is empty. Fix: name the image."
        )
    if ids.duplicated().any():
        row = _first_row(ids.duplicated())
        raise InvalidDataError(
            f"{path}, row {row}: {ids[row - 2]} occurs twice. Fix: keep one box per image."
        )


def _check_boxes(path: Path, table: pd.DataFrame) -> None:
    boxes = table[BOX_COLUMNS].to_numpy()
    # Written so that a value that is not a number fails, too.
    inside = ((boxes >= 0) & (boxes < 1)).all(axis=1)
    inside &= (boxes[:, 0] + boxes[:, 1] < 1) & (boxes[:, 2] + boxes[:, 3] < 1)
    if not inside.all():
        row = _first_row(~inside)
        values = ", ".join(f"{name} {table[name][row - 2]:g}" for name in BOX_COLUMNS)
        raise InvalidDataError(
            f"{path}, row {row}: {values} is no box inside the image. Fix: give the distances "
            "from the image's edges as shares from 0 to 1, with top + bottom < 1 and "
            "left + right < 1."
        )


def _first_row(wrong: pd.Series | np.ndarray) -> int:
    """Line of the first wrong row in the file, where line 1 holds the column names."""
    return int(np.flatnonzero(np.asarray(wrong))[0]) + 2


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
    if path.is_dir():
        items = _darwin_items(path)
    elif path.is_file():
        items = _coco_items(path)
    else:
        raise NotFoundError(f"{path}: no such file or folder. Fix: check the path.")
    table = _outline_table(path, items)
    twice = table["image_id"].duplicated()
    if twice.any():
        raise InvalidDataError(
            f"{path}: {table['image_id'][twice].iloc[0]} is outlined twice. "
            "Fix: keep one annotation per image."
        )
    return table


def _outline_table(path: Path, items: Iterable[_Item]) -> pd.DataFrame:
    """One row per image with lungs; images without are counted in the log."""
    rows: list[dict[str, Any]] = []
    without = 0
    for source, name, width, height, polygons in items:
        if polygons:
            rows.append(_outline_row(source, name, width, height, polygons))
        else:
            without += 1
    if not rows:
        raise InvalidDataError(
            f'{path}: none of {without} images has a polygon named like "lung". '
            "Fix: give the folder or file that holds the outlines."
        )
    if without:
        _log.warning("%s: no lungs are outlined in %d images", path, without)
    return pd.DataFrame(rows, columns=OUTLINE_COLUMNS).sort_values("image_id", ignore_index=True)


def _darwin_items(folder: Path) -> Iterator[_Item]:
    """File, image, width, height and lung polygons of each Darwin JSON below a folder."""
    files = sorted(folder.rglob("*.json"))
    if not files:
        raise NotFoundError(f"{folder}: no JSON file. Fix: give the folder of the annotations.")
    for file in files:
        content = _read_json(file)
        polygons: list[_Points] = []
        with _format_errors(file, "Darwin"):
            name, width, height = _darwin_image(content)
            for annotation in content["annotations"]:
                if "lung" in annotation["name"].lower():
                    polygons += _darwin_polygons(annotation)
        yield file, name, width, height, polygons


def _darwin_image(content: Mapping[str, Any]) -> tuple[str, float, float]:
    """Name, width and height of the image, as version 1 or 2 of the format says them."""
    if "item" in content:
        slot = content["item"]["slots"][0]
        return content["item"]["name"], slot["width"], slot["height"]
    image = content["image"]
    return image["filename"], image["width"], image["height"]


def _darwin_polygons(annotation: Mapping[str, Any]) -> list[_Points]:
    """Polygons of one annotation; version 1 has `path`, or several in `complex_polygon`."""
    shape = annotation.get("polygon") or annotation.get("complex_polygon") or {}
    paths = shape.get("paths") or shape.get("path") or []
    if paths and isinstance(paths[0], Mapping):
        paths = [paths]
    return [np.array([(point["x"], point["y"]) for point in path], float) for path in paths]


def _coco_items(file: Path) -> Iterator[_Item]:
    """File, image, width, height and lung polygons of each image of a COCO JSON."""
    content = _read_json(file)
    with _format_errors(file, "COCO"):
        names = {category["id"]: category["name"].lower() for category in content["categories"]}
        polygons: dict[Any, list[_Points]] = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            if "lung" in names[annotation["category_id"]]:
                for flat in annotation["segmentation"]:
                    points = np.array(flat, float).reshape(-1, 2)
                    polygons[annotation["image_id"]].append(points)
        items = [
            (file, image["file_name"], image["width"], image["height"], polygons[image["id"]])
            for image in content["images"]
        ]
    yield from items


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidDataError(
            f"{file} cannot be read as JSON ({error}). Fix: download the annotations again."
        ) from error


@contextmanager
def _format_errors(file: Path, kind: str) -> Iterator[None]:
    """Turn a missing key or a value of the wrong type into an error that names the file."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise InvalidDataError(
            f"{file} is no {kind} file ({type(error).__name__}: {error}). "
            "Fix: give a folder of Darwin JSON files or one COCO JSON file, with polygons."
        ) from error


def _outline_row(
    source: Path,
    name: str,
    width: float,
    height: float,
    polygons: list[_Points],
) -> dict[str, Any]:
    with _format_errors(source, "Darwin or COCO"):
        if width <= 0 or height <= 0:
            raise ValueError(f"an image of {width} x {height} pixels")
        points = np.concatenate(polygons) / (width, height)
        area = sum(_polygon_area(polygon) for polygon in polygons) / (width * height)
    low = points.min(axis=0)
    high = points.max(axis=0)
    # Written so that a value that is not a number fails, too.
    if not (low >= -_OVERSHOOT).all() or not (high <= 1 + _OVERSHOOT).all():
        raise InvalidDataError(
            f"{source}: an outline of {name} leaves its image of {width} x {height} pixels. "
            "Fix: the annotations belong to images of another size; download both again."
        )
    left, top = np.clip(low, 0, 1)
    right, bottom = 1 - np.clip(high, 0, 1)
    if left + right >= 1 or top + bottom >= 1:
        raise InvalidDataError(
            f"{source}: an outline of {name} has no area. Fix: outline the lungs, or leave it out."
        )
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


def _polygon_area(points: _Points) -> float:
    """Area in pixels, by the shoelace formula."""
    x, y = points.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def check_outlines(outlines: pd.DataFrame, files: Iterable[Path | str]) -> None:
    """Check that outlines and images belong together.

    Parameters
    ----------
    outlines
        The table of `read_outlines`.
    files
        Image files; the name without its suffix is the `image_id`.

    Raises
    ------
    InvalidDataError
        An outlined image is not among the files, or has another size than was annotated.
    """
    images = {Path(file).stem: Path(file) for file in files}
    absent = [name for name in outlines["image_id"] if name not in images]
    if absent:
        raise InvalidDataError(
            f"{len(absent)} of {len(outlines)} outlined images are not there, such as {absent[0]}. "
            "Fix: give the images that the annotations were made on."
        )
    for row in outlines.itertuples(index=False):
        file = images[str(row.image_id)]
        try:
            with Image.open(file) as image:
                width, height = image.size
        except OSError as error:
            raise UnusableImageError(file, "unreadable", f"cannot be read ({error})") from error
        if (width, height) != (row.width, row.height):
            raise InvalidDataError(
                f"{file} has {width} x {height} pixels, but its outline was made on "
                f"{row.width} x {row.height}. Fix: download the annotations and the images that "
                "they were made on again."
            )
