"""Which region of its images a recipe sees: the whole, the box of the lungs, or a control.

All regions are cut from the cached copy of `SOURCE_SIZE` pixels, so that they differ in the region
alone.
"""

import logging
from pathlib import Path

import numpy as np
import pandas as pd

from xraylib import paths, storage
from xraylib.datasets import catalog, images, lung_finder, lungs
from xraylib.errors import NotFoundError

log = logging.getLogger(__name__)

# Regions are cut from images of this height and width in pixels.
SOURCE_SIZE = 224
# The box is enlarged by this share of its height and width on each side.
MARGIN = 0.05
REGIONS = ("whole", "lungs", "annotated lungs", "lungs of another image", "outside the lungs")


def load(
    manifest: pd.DataFrame,
    size: int,
    region: str = "whole",
) -> np.ndarray:
    """Return one region of every image of a manifest.

    Parameters
    ----------
    manifest : pandas.DataFrame
        A whole manifest, from `manifest.load`.
    size : int
        Height and width of the result in pixels.
    region : str
        `whole`
            The whole image.
        `lungs`
            The box of the lungs as the packaged network finds it, enlarged by `MARGIN`.
        `annotated lungs`
            The same with the boxes that people drew, from the data set's list.
        `lungs of another image`
            A control: the box of another image of the same class and split.
        `outside the lungs`
            A control: the whole image with the box blackened.

    Returns
    -------
    numpy.ndarray
        uint8 `(n, size, size, 1)` in manifest order, a read-only memory map.
    """
    if region not in REGIONS:
        raise NotFoundError(
            f"there is no region {region!r}. Fix: choose one of {', '.join(REGIONS)}."
        )
    if region == "whole":
        return images.load_pixels(manifest, size)
    boxes = load_boxes(manifest, annotated=region == "annotated lungs")
    if region == "lungs of another image":
        boxes = _boxes_of_others(manifest, boxes)
    digest = storage.sha256_bytes(np.round(boxes, 4).tobytes())[:8]
    shown = region.replace(" ", "-")
    name = f"{images.fingerprint(manifest)}-{shown}-{digest}-{size}px.npy"

    def cut_all() -> np.ndarray:
        pixels = images.load_pixels(manifest, SOURCE_SIZE)
        if region == "outside the lungs":
            return _outside(pixels, boxes, size)
        return lungs.crop_boxes(pixels, boxes, size, margin=MARGIN)

    return storage.cached_array(paths.CACHE / "regions" / name, cut_all)


def cut(
    pixels: np.ndarray,
    size: int,
    region: str = "lungs",
) -> np.ndarray:
    """Cut one region from images of any kind, whose lungs are found anew.

    Parameters
    ----------
    pixels : numpy.ndarray
        uint8 `(n, height, width, 1)`.
    size : int
        Height and width of the result in pixels.
    region : str
        `lungs`, see `load`. The other regions need the boxes of a manifest.

    Returns
    -------
    numpy.ndarray
        uint8 `(n, size, size, 1)`.
    """
    if region != "lungs":
        raise NotFoundError(
            f"{region!r} cannot be cut from changed images. Fix: take region `lungs`."
        )
    boxes = np.nan_to_num(lung_finder.find(pixels).boxes)
    return lungs.crop_boxes(pixels, boxes, size, margin=MARGIN)


def sources(dataset: str, region: str) -> dict[str, str]:
    """Name what the boxes of a region come from, by 12 hex digits of each file's SHA-256.

    Parameters
    ----------
    dataset : str
        A name in the catalog.
    region : str
        One of `REGIONS`.

    Returns
    -------
    dict
        Empty for `whole`. Otherwise `lung_finder` and, for `annotated lungs`, `lung_annotations`.
    """
    if region == "whole":
        return {}
    files = {"lung_finder": paths.SHIPPED / lung_finder.MODEL_FILE}
    if region == "annotated lungs":
        files["lung_annotations"] = annotations_file(dataset)
    digests = {}
    for name, file in files.items():
        if file.is_file():
            digests[name] = storage.sha256(file)[:12]
    return digests


def load_boxes(manifest: pd.DataFrame, *, annotated: bool = False) -> np.ndarray:
    """Return the box of the lungs of every image of a manifest.

    Parameters
    ----------
    manifest : pandas.DataFrame
        A whole manifest, from `manifest.load`.
    annotated : bool
        Take the boxes that people drew, and found ones only for images that have none.

    Returns
    -------
    numpy.ndarray
        float64 `(n, 4)`: top, bottom, left, right as shares (see `lungs.crop_boxes`). An image in
        which no lungs are found gets the box of the whole image.
    """
    boxes = _found_boxes(manifest)
    lost = np.isnan(boxes).any(axis=1)
    if lost.any():
        log.warning(
            "no lungs are found in %d of %d images: they are kept whole", lost.sum(), len(lost)
        )
        boxes[lost] = 0.0
    if not annotated:
        return boxes
    listed = lungs.read_boxes(annotations_file(manifest.attrs["dataset"]))
    listed = listed.set_index("image_id")[lungs.BOX_COLUMNS]
    drawn = listed.reindex(manifest["image_id"]).to_numpy(dtype=float)
    missing = np.isnan(drawn).any(axis=1)
    if missing.any():
        log.warning("%d images have no drawn box: theirs is found by the network", missing.sum())
    return np.where(missing[:, None], boxes, drawn)


def annotations_file(dataset: str) -> Path:
    """Return where the list of drawn boxes of a data set belongs; it need not exist."""
    return paths.DATA / f"{catalog.get_dataset(dataset).name}_lungs.csv"


def _found_boxes(manifest: pd.DataFrame) -> np.ndarray:
    """Find the lungs once, and keep a writable copy of the boxes."""
    finder = storage.sha256(paths.SHIPPED / lung_finder.MODEL_FILE)[:8]
    name = f"{images.fingerprint(manifest)}-boxes-{finder}.npy"

    def find_all() -> np.ndarray:
        pixels = images.load_pixels(manifest, SOURCE_SIZE)
        return lung_finder.find(pixels).boxes

    return np.array(storage.cached_array(paths.CACHE / "regions" / name, find_all))


def _boxes_of_others(manifest: pd.DataFrame, boxes: np.ndarray) -> np.ndarray:
    """Give each image the box of a random other image of its class and split."""
    rng = np.random.default_rng(0)
    exchanged = boxes.copy()
    groups = manifest.groupby(["split", "label"]).indices
    for rows in groups.values():
        order = rng.permutation(rows)
        exchanged[order] = boxes[np.roll(order, 1)]
    return exchanged


def _outside(
    pixels: np.ndarray,
    boxes: np.ndarray,
    size: int,
) -> np.ndarray:
    """Blacken the box of the lungs, then resize."""
    hidden = np.array(pixels)
    height, width = pixels.shape[1:3]
    edges = np.round(boxes * [height, height, width, width]).astype(int)
    for image, (top, bottom, left, right) in zip(hidden, edges, strict=True):
        rows = slice(top, height - bottom)
        columns = slice(left, width - right)
        image[rows, columns] = 0
    return images.resize(hidden, size)
