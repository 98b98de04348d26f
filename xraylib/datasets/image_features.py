"""One pass over the files: what is wrong with each, and features that could betray its class.

The features are of four levels. Those of the *file* need no pixel, those of the *acquisition* are
tags of DICOM, those of the *surround* see the image without its lungs, and those of the *content*
see the lungs as well, so that they may predict the class for the right reason.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pydicom
from PIL import Image

from xraylib.datasets import audit, lung_finder
from xraylib.datasets.dicom import is_dicom, read_header
from xraylib.datasets.images import decode

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
_AGE = "PatientAge"

# Pixels of a side at which an image is described: what the lung finder takes.
SIZE = lung_finder.SIZE
_BANDS = 10
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
        float32 `(n, k)` for each of `FILE`, `SURROUND` and `CONTENT`; NaN where a file has none.
    tags : pandas.DataFrame
        One column per tag of `TAGS` (text) that some file has, and `PatientAge` (years).
    thumbnails : numpy.ndarray
        uint8 `(n, 32, 32, 1)`, for `audit.near_duplicates`.
    """

    images: pd.DataFrame
    values: dict[str, np.ndarray]
    tags: pd.DataFrame
    thumbnails: np.ndarray


class _Described(NamedTuple):
    """What is kept of one file until its chunk is complete."""

    image_id: str
    numbers: dict[str, float]
    tags: dict[str, Any]
    pixels: np.ndarray


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
    """
    names: list[str] = []
    tags: list[dict[str, Any]] = []
    chunks: list[dict[str, np.ndarray]] = []
    thumbnails: list[np.ndarray] = []

    def keep(described: list[_Described]) -> None:
        if described:
            pixels = np.stack([one.pixels for one in described])[..., None]
            numbers = pd.DataFrame([one.numbers for one in described])
            chunks.append(_file_values(numbers) | pixel_values(pixels))
            thumbnails.append(_thumbnails(pixels))
            names.extend(one.image_id for one in described)
            tags.extend(one.tags for one in described)

    findings = audit.audit_files(manifest, _describe, keep)
    good = ~np.isin(names, findings.loc[findings["quarantine"], "image_id"])
    rows = manifest.set_index("image_id", drop=False).loc[np.array(names, object)[good]]
    values = {}
    for name in (*FILE, *SURROUND, *CONTENT):
        parts = [chunk[name] for chunk in chunks]
        values[name] = np.concatenate(parts)[good] if parts else np.empty((0, 1), np.float32)
    table = pd.DataFrame(tags)[good].dropna(axis=1, how="all") if tags else pd.DataFrame()
    small = np.concatenate(thumbnails)[good] if thumbnails else np.empty((0, 32, 32, 1), np.uint8)
    images = rows.reset_index(drop=True)
    return findings, ImageFeatures(images, values, table.reset_index(drop=True), small)


def _describe(row: Any, data: bytes) -> _Described:
    """Decode one file and read its header."""
    pixels = decode(Path(row.path), data, SIZE)
    tags: dict[str, Any] = {}
    if is_dicom(data):
        numbers, tags = _dicom_numbers_and_tags(Path(row.path), data)
    else:
        with Image.open(io.BytesIO(data)) as image:  # `decode` has accepted it
            quantisers = getattr(image, "quantization", None)
            numbers = {
                "first quantiser": quantisers[0][0] if quantisers else np.nan,
                "bit depth": _BITS_OF_MODES.get(image.mode, 8),
                "channels": len(image.getbands()),
                "width": image.width,
                "height": image.height,
            }
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "JPEG", quality=_QUALITY)
    numbers |= {"bytes": len(data), "encoded": encoded.tell()}
    return _Described(row.image_id, numbers, tags, pixels)


def _dicom_numbers_and_tags(path: Path, data: bytes) -> tuple[dict[str, float], dict[str, Any]]:
    """Read the header of a file that was decoded before; nothing that names the patient."""
    wanted = [*TAGS, "Rows", "Columns", "SamplesPerPixel"]
    header = pydicom.dcmread(
        io.BytesIO(data),
        force=True,
        stop_before_pixels=True,
        specific_tags=list(wanted),
    )
    numbers = {
        "first quantiser": np.nan,
        "bit depth": float(header.get("BitsStored") or np.nan),
        "channels": float(header.get("SamplesPerPixel") or 1),
        "width": float(header.Columns),
        "height": float(header.Rows),
    }
    tags: dict[str, Any] = {tag: str(header.get(tag) or "") or None for tag in TAGS}
    return numbers, tags | {_AGE: read_header(path).get("patient_age")}


def _file_values(numbers: pd.DataFrame) -> dict[str, np.ndarray]:
    """Features of files from their headers, their size and that of their content encoded anew.

    The size of a compressed file depends on its content, lungs included. `compression` is the
    logarithm of its bits a pixel divided by those of the same content at one size and quality, so
    that it tells how the file was compressed and hardly what it shows. Of Kermany's copies, which
    were all compressed alike, the file size has an AUC of 0.90 and this has 0.61.
    """
    pixels = numbers["width"] * numbers["height"]
    bits = 8 * numbers["bytes"] / pixels
    features = numbers.copy()
    features["aspect ratio"] = numbers["width"] / numbers["height"]
    features["file size"] = numbers["bytes"]
    features["bits a pixel"] = bits
    features["compression"] = np.log2(bits / (8 * numbers["encoded"] / SIZE**2))
    return {name: features[[name]].to_numpy(np.float32) for name in FILE}


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
        "image without its centre": _squares(images, 16)[:, audit.border_mask(16, 1 / 8)],
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


def _thumbnails(pixels: np.ndarray) -> np.ndarray:
    """Shrink images `(n, 112, 112, 1)` to uint8 `(n, 32, 32, 1)`."""
    small = [
        Image.fromarray(image[..., 0]).resize((32, 32), Image.Resampling.BOX) for image in pixels
    ]
    return np.stack([np.asarray(image) for image in small])[..., None]


def level_of(name: str, values: Mapping[str, np.ndarray]) -> str:
    """Return the level of a feature: file, acquisition, surround or content.

    Where all files were compressed alike, their sizes can only differ by their content.
    """
    if name in SURROUND:
        return "surround"
    if name in CONTENT:
        return "content"
    if name not in FILE:
        return "acquisition"
    if name in ("compression", "file size", "bits a pixel"):
        settings = [
            values[setting] for setting in ("first quantiser", "bit depth") if setting in values
        ]
        alike = all(len(np.unique(setting)) <= 1 for setting in settings)
        return "content" if alike else "file"
    return "file"
