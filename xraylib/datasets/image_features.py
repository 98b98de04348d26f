"""One pass over the files: what is wrong with each, and features that could betray its class.

The features are of four levels. Those of the *file* need no pixel, those of the *acquisition* are
tags of DICOM, those of the *surround* see the image without its lungs, and those of the *content*
see the lungs as well, so that they may predict the class for the right reason.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from xraylib.datasets import audit, lung_finder
from xraylib.datasets.dicom import tags_of, years
from xraylib.datasets.headers import kind_of
from xraylib.datasets.images import decode
from xraylib.errors import InvalidDataError

# Features by level, in the order in which tables list them.
FILE = (
    "first quantiser",
    "bit depth",
    "channels",
    "width",
    "height",
    "aspect ratio",
    "compression",
    "file size",
    "bits a pixel",
)
SURROUND = (
    "corners",
    "border",
    "image without its centre",
    "share of the height that the lungs fill",
)
CONTENT = ("mean intensity", "spectrum", "8 × 8 thumbnail")

# Read as text; only their association with the class is ever shown, never a value.
TAGS = (
    "Modality",
    "Manufacturer",
    "ManufacturerModelName",
    "PhotometricInterpretation",
    "ViewPosition",
    "BodyPartExamined",
    "PresentationIntentType",
    "BitsStored",
    "KVP",
    "ImagerPixelSpacing",
    "PatientOrientation",
    "PatientSex",
)
# In years.
_AGE = "PatientAge"

# Pixels of a side at which an image is described: what the lung finder takes.
SIZE = lung_finder.SIZE
# Which takes one image at a time.
_LUNG_FINDER = Lock()
_BANDS = 10
# Of 16 by 16 squares of an image, the two outermost rows and columns.
_NO_CENTRE = np.pad(np.zeros((12, 12), bool), 2, constant_values=True)
_QUALITY = 75
_BITS_OF_MODES = {"1": 1, "I": 16, "I;16": 16, "I;16B": 16, "I;16L": 16}


@dataclass(frozen=True)
class ImageFeatures:
    """Features of the images that can be read.

    Attributes
    ----------
    images : pandas.DataFrame
        Their rows of the manifest, numbered anew.
    values : dict of str to numpy.ndarray
        float32 `(n, k)` for each of `FILE`, `SURROUND` and `CONTENT`, and for each tag of `TAGS`
        and `PatientAge` that some file has. NaN is missing. Texts are numbered, -1 is missing.
    thumbnails : numpy.ndarray
        uint8 `(n, 32, 32, 1)`, for `audit.near_duplicates`.
    """

    images: pd.DataFrame
    values: dict[str, np.ndarray]
    thumbnails: np.ndarray


def read(manifest: pd.DataFrame) -> tuple[pd.DataFrame, ImageFeatures]:
    """Read every file once.

    Parameters
    ----------
    manifest : pandas.DataFrame
        As `manifest.index` returns it.

    Returns
    -------
    pandas.DataFrame, ImageFeatures
        The findings of `audit.audit_files`, and the features of the images without one that would
        quarantine them.

    Raises
    ------
    InvalidDataError
        There is no such image.
    """
    descriptions: dict[str, dict[str, Any]] = {}

    def describe(row: Any, data: bytes) -> None:
        descriptions[row.image_id] = _describe(row, data)

    findings = audit.audit_files(manifest, describe)
    bad = findings.loc[findings["quarantine"], "image_id"]
    images = manifest[~manifest["image_id"].isin(bad)].reset_index(drop=True)
    if images.empty:
        first = findings.iloc[0]
        raise InvalidDataError(
            f"none of {len(manifest)} files can be used; the first is {first['path']} "
            f"({first['detail']}). Fix: replace them by images."
        )
    table = pd.DataFrame([descriptions[name] for name in images["image_id"]])
    values = _header_values(table)
    for name in (*SURROUND, *CONTENT):
        values[name] = np.concatenate(table[name].tolist())
    thumbnails = np.concatenate(table["thumbnail"].tolist())
    return findings, ImageFeatures(images, values, thumbnails)


def _describe(row: Any, data: bytes) -> dict[str, Any]:
    """Describe one file: its header, its size and the features of its pixels."""
    pixels = decode(Path(row.path), data, SIZE)
    if kind_of(data) == "DICOM":
        header = _dicom_header(data)
    else:
        with Image.open(io.BytesIO(data)) as image:  # `decode` has accepted it
            quantisers = getattr(image, "quantization", None)
            header = {
                "first quantiser": quantisers[0][0] if quantisers else np.nan,
                "bit depth": _BITS_OF_MODES.get(image.mode, 8),
                "channels": len(image.getbands()),
                "width": image.width,
                "height": image.height,
            }
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "JPEG", quality=_QUALITY)
    header |= {"bytes": len(data), "encoded": encoded.tell()}
    batch = pixels[None, ..., None]
    with _LUNG_FINDER:
        return header | pixel_values(batch) | {"thumbnail": audit.thumbnails(batch)}


def _dicom_header(data: bytes) -> dict[str, Any]:
    """Read the header of a file that was decoded before; nothing that names the patient."""
    tags = tags_of(data, [*TAGS, _AGE, "Rows", "Columns", "SamplesPerPixel"])
    return tags | {
        _AGE: years(tags.get(_AGE)),
        "first quantiser": np.nan,
        "bit depth": float(tags.get("BitsStored", np.nan)),
        "channels": float(tags.get("SamplesPerPixel", 1)),
        "width": float(tags.get("Columns", np.nan)),
        "height": float(tags.get("Rows", np.nan)),
    }


def _header_values(headers: pd.DataFrame) -> dict[str, np.ndarray]:
    """Features of files from their headers, their size and that of their content encoded anew.

    The size of a compressed file depends on its content, lungs included. `compression` is the
    logarithm of its bits a pixel divided by those of the same content at one size and quality, so
    that it tells how the file was compressed and hardly what it shows. Of Kermany's copies, which
    were all compressed alike, the file size has an AUC of 0.90 and this has 0.61.
    """
    features = headers.assign(**audit.file_features(headers))
    encoded_bits = 8 * headers["encoded"] / SIZE**2
    features["compression"] = np.log2(features["bits a pixel"] / encoded_bits)
    tags = [tag for tag in (*TAGS, _AGE) if tag in headers and headers[tag].notna().any()]
    values = {}
    for name in (*FILE, *tags):
        column = features[name]
        is_number = pd.api.types.is_numeric_dtype(column)
        numbers = column if is_number else pd.factorize(column, sort=True)[0]
        values[name] = np.asarray(numbers, np.float32)[:, None]
    return values


def pixel_values(pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Return the features `SURROUND` and `CONTENT` of uint8 images `(n, 112, 112, 1)`."""
    images = pixels[..., 0].astype(np.float32)
    corner = SIZE // 8
    edge = SIZE // 16
    ends = (slice(None, corner), slice(-corner, None))
    corners = [images[:, rows, columns] for rows in ends for columns in ends]
    border = [
        images[:, :edge],
        images[:, -edge:],
        images[:, :, :edge],
        images[:, :, -edge:],
    ]
    boxes = lung_finder.find(pixels).boxes
    return {
        "corners": _means_and_spreads(corners),
        "border": _means_and_spreads(border),
        "image without its centre": _squares(images, 16)[:, _NO_CENTRE],
        "share of the height that the lungs fill": np.float32(1 - boxes[:, :1] - boxes[:, 1:2]),
        "mean intensity": images.mean(axis=(1, 2))[:, None],
        "spectrum": _spectrum(images),
        "8 × 8 thumbnail": _squares(images, 8).reshape(len(images), -1),
    }


def _means_and_spreads(regions: list[np.ndarray]) -> np.ndarray:
    """Mean and standard deviation of some regions of images, `(n, 2 * regions)`."""
    columns = [region.mean(axis=(1, 2)) for region in regions]
    columns += [region.std(axis=(1, 2)) for region in regions]
    return np.stack(columns, axis=1)


def _squares(images: np.ndarray, count: int) -> np.ndarray:
    """Means of `count` by `count` squares of images, `(n, count, count)`."""
    side = SIZE // count
    return images.reshape(-1, count, side, count, side).mean(axis=(2, 4))


def _spectrum(images: np.ndarray) -> np.ndarray:
    """Log power in ten bands of spatial frequency, after a Hann window, float32 `(n, 10)`."""
    window = np.hanning(SIZE).astype(np.float32)
    centred = (images - images.mean(axis=(1, 2), keepdims=True)) * np.outer(window, window)
    power = np.abs(np.fft.rfft2(centred)) ** 2
    frequency = np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.rfftfreq(SIZE)[None])
    band = np.minimum((frequency / 0.5 * _BANDS).astype(int), _BANDS)
    bands = [np.log1p(power[:, band == number].mean(axis=1)) for number in range(_BANDS)]
    return np.stack(bands, axis=1).astype(np.float32)


def level_of(name: str, values: Mapping[str, np.ndarray]) -> str:
    """Return the level of a feature: file, acquisition, surround or content.

    Where all files were compressed alike, their sizes can only differ by their content.
    """
    levels = {"file": FILE, "surround": SURROUND, "content": CONTENT}
    level = next((level for level, names in levels.items() if name in names), "acquisition")
    if name in ("compression", "file size", "bits a pixel"):
        settings = [values[key] for key in ("first quantiser", "bit depth") if key in values]
        if all(len(np.unique(setting)) <= 1 for setting in settings):
            return "content"
    return level
