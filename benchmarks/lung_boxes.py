"""Write the list of lung boxes of a data set, from the outlines that people drew.

    .venv/bin/python benchmarks/lung_boxes.py ANNOTATIONS data/kermany_lungs.csv

ANNOTATIONS is a folder of Darwin JSON files, one per image, or one COCO JSON file. The outlines of
Kermany's images are published in the first format (`v7labs/covid-19-xray-dataset`, CC BY 4.0).
Recipes on annotated boxes, and notebook 09, read the list.
"""

import argparse
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from xraylib.errors import InvalidDataError, NotFoundError
from xraylib.storage import atomic_write

log = logging.getLogger(__name__)

# How far outside the image an outline may lie, as a share of the image: annotators overshoot.
_OVERSHOOT = 0.01

# An image's file name, width, height, and the polygons of its lungs, `(points, 2)` in pixels.
_Outlined = tuple[str, float, float, list[np.ndarray]]


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
        log.warning("%s: no lungs are outlined in %d images", path, without)
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


def main(arguments: list[str] | None = None) -> None:
    """Read the outlines, and write the list of boxes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("annotations", type=Path, help="folder of Darwin JSON, or a COCO JSON file")
    parser.add_argument("boxes", type=Path, help="the CSV to write")
    options = parser.parse_args(arguments)
    table = read_outlines(options.annotations)
    with atomic_write(options.boxes) as temporary:
        table.to_csv(temporary, index=False)
    print(f"{options.boxes}: {len(table)} images")


if __name__ == "__main__":
    main()
