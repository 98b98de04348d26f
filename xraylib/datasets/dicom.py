"""DICOM files: one frame as 8-bit grey, and what the header says of the examination."""

import hashlib
import io
import logging
import secrets
import warnings
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from filelock import FileLock
from PIL import Image
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

from xraylib import paths
from xraylib.datasets import headers
from xraylib.datasets.headers import RefusedError
from xraylib.storage import atomic_write, storage_errors

# The range of an image without a window: all pixels but for this share at either end ...
_TAIL = 0.005
# ... and this share of that range beyond it, as far as values occur. With it one hot pixel or a
# burned-in letter no longer decides the contrast. On 25 Kermany originals, stored as a half or a
# quarter of 12 bits beside letters at 4095, the mean error against the original is 9 grey levels
# (61 between the lowest and the highest value), and 3.5 on the originals themselves (21 without
# the reserve).
_RESERVE = 0.2

_log = logging.getLogger(__name__)
# What pydicom complains of is either of no account here or refused with a message of our own.
logging.getLogger("pydicom").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", category=UserWarning, module="pydicom")

# A small file of this kind can unfold to any size.
_DEFLATED = b"1.2.840.10008.1.2.1.99"

_NEEDED = ("Rows", "Columns", "BitsAllocated", "BitsStored", "PhotometricInterpretation")
_GREY = ("MONOCHROME1", "MONOCHROME2")
# All of them become RGB when they are decoded.
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")

_CHECKED_COMPRESSIONS = (
    RLELossless,
    *JPEGTransferSyntaxes,
    *JPEGLSTransferSyntaxes,
    *JPEG2000TransferSyntaxes,
)

# Values beyond this are no calibration of an image.
_LARGEST = 1e9

# So much of a file is read for its header.
_HEADER_BYTES = 1_000_000
_HEADER_TAGS = {
    "modality": "Modality",
    "body_part": "BodyPartExamined",
    "view_position": "ViewPosition",
    "patient_age": "PatientAge",
    "presentation_intent": "PresentationIntentType",
}
_UNITS_PER_YEAR = {"Y": 1.0, "M": 12.0, "W": 52.18, "D": 365.25}

# Computed and digital radiography, and the older name of radiographic imaging.
_RADIOGRAPHS = ("CR", "DX", "RG")
_CHEST = {"CHEST", "THORAX", "LUNG"}
_LATERAL = ("LATERAL", "LL", "RL", "LLD", "RLD", "LLO", "RLO")


def read_dicom(data: bytes) -> Image.Image:
    """Read the content `data` of a DICOM file as 8-bit grey.

    The values are rescaled and windowed as the file says (its first window, or its lookup table),
    then inverted for MONOCHROME1 or a presentation shape INVERSE. Without a window, plain 8-bit
    values stay, and others are stretched between their lowest and highest, apart from padding
    (which becomes black) and from outliers. The size that a compressed stream announces must be
    that of the header, which is checked before anything is decoded. Nothing of the file but its
    pixels is kept or repeated in a message.

    Raises
    ------
    RefusedError
        The file is damaged, holds no single grey or RGB frame, or cannot be decoded here.
    """
    try:
        dataset = _parse(data)
        _check_kind(dataset)
        _check_compression(dataset)
        return Image.fromarray(_to_grey(dataset, _decode(dataset))).convert("L")
    except (RefusedError, MemoryError):
        raise
    except Exception as error:  # pydicom and its decoders raise anything on damaged content
        _log.debug("%r", error)
        raise RefusedError("a damaged or incomplete DICOM file") from error


def _parse(data: bytes) -> pydicom.FileDataset:
    """Parse the file; where the transfer syntax is missing, take the one pydicom recognised."""
    if _DEFLATED in data:
        raise RefusedError("a deflated DICOM file")
    dataset = pydicom.dcmread(io.BytesIO(data), force=True)
    if "EncryptedAttributesSequence" in dataset or "PixelData" not in dataset:
        raise RefusedError("a DICOM file that is encrypted or holds no image")
    if "TransferSyntaxUID" not in dataset.file_meta:
        if dataset["PixelData"].is_undefined_length:
            raise RefusedError("a compressed DICOM file that does not say how (transfer syntax)")
        implicit, little_endian = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little_endian else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return dataset


def _check_kind(dataset: pydicom.Dataset) -> None:
    """Refuse what is no single image of at most 16 bits, before it is decoded."""
    missing = [name for name in _NEEDED if dataset.get(name) in (None, "")]
    if missing:
        raise RefusedError(f"a DICOM file without {', '.join(missing)}")
    if int(dataset.get("NumberOfFrames") or 1) != 1:
        raise RefusedError("a DICOM file of several frames, not one image")
    headers.check_pixels(dataset.Columns, dataset.Rows)
    if dataset.BitsAllocated > 16:
        raise RefusedError(f"its values have {dataset.BitsAllocated} bits, more than 16")
    if dataset.get("VOILUTFunction") not in (None, "", "LINEAR", "LINEAR_EXACT"):
        raise RefusedError(f"its window is {dataset.VOILUTFunction}, not linear")


def _check_compression(dataset: pydicom.FileDataset) -> None:
    """Hold the stream's own header against Rows and Columns, and keep only the checked frame."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_compressed:
        return
    if syntax not in _CHECKED_COMPRESSIONS:
        raise RefusedError(f"its compression ({syntax.name}) is not supported")
    # Without the offset tables a decoder finds no other frame than the one that is checked.
    for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
        if name in dataset:
            delattr(dataset, name)
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    dataset.PixelData = encapsulate([frame])
    if syntax == RLELossless:
        headers.check_rle(frame, dataset.Rows * dataset.Columns)
    else:
        is_jpeg2000 = syntax in JPEG2000TransferSyntaxes
        read_size = headers.read_jpeg2000 if is_jpeg2000 else headers.read_jpeg
        _check_size(dataset, read_size(frame))


def _check_size(dataset: pydicom.Dataset, header: headers.StreamHeader) -> None:
    expected = (dataset.Columns, dataset.Rows, dataset.get("SamplesPerPixel", 1))
    if header != expected:
        announced = " x ".join(map(str, header))
        said = " x ".join(map(str, expected))
        raise RefusedError(f"its compressed image has {announced} values, its header says {said}")


def _decode(dataset: pydicom.FileDataset) -> np.ndarray:
    """Stored values, ``(height, width)`` or, of a colour image, ``(height, width, 3)``."""
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        raw = dataset.pixel_array
    except MemoryError:
        raise
    except Exception as error:
        if not syntax.is_compressed:
            raise
        detail = (
            f"its compressed image ({syntax.name}, {dataset.BitsStored} bits) is damaged, or of a "
            "kind that no decoder here can read"
        )
        fix = 'pip install "xraylib-pneumonia[dicom-gpl]", or export it as an 8-bit PNG'
        raise RefusedError(detail, fix) from error
    kind = dataset.PhotometricInterpretation
    if (kind in _GREY and raw.ndim == 2) or (kind in _COLOUR and raw.ndim == 3):
        return raw
    raise RefusedError(f"its pixels are {kind} of shape {raw.shape}, neither grey nor RGB")


def _to_grey(dataset: pydicom.Dataset, raw: np.ndarray) -> np.ndarray:
    """Turn stored values into uint8, worked out for each possible level, not for each pixel."""
    lowest = int(raw.min())
    steps = np.subtract(raw, lowest, dtype=np.int32)
    counts = np.bincount(steps.ravel())
    levels = np.arange(lowest, lowest + len(counts))
    if raw.ndim == 3:
        return _stretch(levels, 0, 2**dataset.BitsStored - 1)[steps]
    is_padding = levels == _number(dataset, "PixelPaddingValue", np.inf)
    grey = _render(dataset, levels, np.where(is_padding, 0, counts))
    grey[is_padding] = 0
    return grey[steps]


def _render(
    dataset: pydicom.Dataset,
    levels: np.ndarray,
    counts: np.ndarray,
) -> np.ndarray:
    """Grey (uint8) of each level of a monochrome image, which occurs `counts` times."""
    values = _rescale(dataset, levels)
    width = _number(dataset, "WindowWidth", 0.0)
    centre = _number(dataset, "WindowCenter", None)
    exact = dataset.get("VOILUTFunction") == "LINEAR_EXACT"
    is_plain = dataset.BitsAllocated == dataset.BitsStored == 8 and levels[0] >= 0
    if centre is not None and (width > 0 if exact else width >= 1):
        # PS3.3, C.11.2.1.2.1 and C.11.2.1.3.2: LINEAR counts pixels, LINEAR_EXACT does not.
        if not exact:
            centre -= 0.5
            width -= 1
        grey = _stretch(values, centre - width / 2, centre + width / 2)
    elif table := _voi_table(dataset):
        transformed = apply_voi_lut(np.rint(values).astype(np.int64), dataset)
        grey = _stretch(transformed, 0, 2 ** table.LUTDescriptor[2] - 1)
    elif is_plain and (values == levels).all():
        grey = levels.astype(np.uint8)
    else:
        grey = _stretch(values, *_robust_range(values, counts))
    # Both say that low values are white, and a file with both says it twice (PS3.3, C.8.11.3.1.2).
    inverse = dataset.get("PresentationLUTShape") == "INVERSE"
    if inverse or dataset.PhotometricInterpretation == "MONOCHROME1":
        grey = 255 - grey
    return grey


def _rescale(dataset: pydicom.Dataset, levels: np.ndarray) -> np.ndarray:
    """Apply the modality's lookup table, or its slope and intercept where they are given."""
    if dataset.get("ModalityLUTSequence"):
        return apply_modality_lut(levels, dataset)
    slope = _number(dataset, "RescaleSlope", 1.0)
    intercept = _number(dataset, "RescaleIntercept", 0.0)
    if slope == 0:
        raise RefusedError("its RescaleSlope is 0, so that every pixel is equal")
    return levels * slope + intercept


def _number(dataset: pydicom.Dataset, name: str, default: Any) -> Any:
    """First value of an element as a float; the default where the element is empty or missing."""
    value = dataset.get(name)
    if value is None or value == "" or np.size(value) == 0:
        return default
    number = float(np.ravel(value)[0])
    if not abs(number) <= _LARGEST:
        raise RefusedError(f"its {name} is {number:g}")
    return number


def _voi_table(dataset: pydicom.Dataset) -> pydicom.Dataset | None:
    """First lookup table that is not empty."""
    tables = dataset.get("VOILUTSequence") or [None]
    table = tables[0]
    return table if table and table.get("LUTDescriptor") and table.get("LUTData") else None


def _robust_range(values: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Lowest and highest value to be shown, of levels that occur so many times each."""
    order = np.argsort(values)
    order = order[counts[order] > 0]
    if not len(order):
        return 0.0, 1.0
    values = values[order]
    shares = np.cumsum(counts[order]) / counts.sum()
    low = values[np.searchsorted(shares, _TAIL, side="right")]
    high = values[np.searchsorted(shares, 1 - _TAIL)]
    if low == high:
        return float(values[0]), float(values[-1])
    reserve = _RESERVE * (high - low)
    return float(max(low - reserve, values[0])), float(min(high + reserve, values[-1]))


def _stretch(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map low to 0 and high to 255, uint8."""
    shares = (np.asarray(values, np.float64) - low) / max(high - low, 1e-9)
    return np.rint(np.clip(shares, 0, 1) * 255).astype(np.uint8)


def read_header(path: Path | str) -> dict[str, Any]:
    """Read what a DICOM header says of the examination; nothing that names the patient.

    Parameters
    ----------
    path
        Any file.

    Returns
    -------
    dict
        None for what is not said, as of a file that is no readable DICOM file.

        - modality: such as ``DX``, ``CR`` or ``CT``
        - body_part: such as ``CHEST``
        - view_position: such as ``AP``, ``PA`` or ``LATERAL``
        - patient_age: years, float
        - presentation_intent: ``FOR PRESENTATION`` or ``FOR PROCESSING``
    """
    tags = read_tags(path, _HEADER_TAGS.values())
    header = {name: tags.get(tag) for name, tag in _HEADER_TAGS.items()}
    return header | {"patient_age": years(header["patient_age"])}


def read_tags(path: Path | str, names: Iterable[str]) -> dict[str, str]:
    """Read some tags of a DICOM file as text; empty ones, and those of other files, are missing."""
    with Path(path).open("rb") as file:
        data = file.read(headers.START)
        if headers.kind_of(data) == "DICOM":
            data += file.read(_HEADER_BYTES)
    return tags_of(data, names)


def tags_of(data: bytes, names: Iterable[str]) -> dict[str, str]:
    """Read some tags from the content of a DICOM file, or from its beginning, as `read_tags`."""
    if headers.kind_of(data) != "DICOM" or _DEFLATED in data[:_HEADER_BYTES]:
        return {}
    try:
        dataset = pydicom.dcmread(
            io.BytesIO(data),
            force=True,
            stop_before_pixels=True,
            specific_tags=list(names),
        )
        return {name: str(value) for name in names if (value := dataset.get(name))}
    except Exception as error:  # as above
        _log.debug("%r", error)
        return {}


def patient_pseudonym(path: Path | str) -> str:
    """Give a name to the patient of a DICOM file; empty where the file names none.

    It is a keyed hash of the tag PatientID. The key is random and stays on this machine
    (`patients.key` in `XRAYLIB_DATA`), so that nobody else can try identifiers until one fits. The
    identifier itself is written nowhere.
    """
    identifier = read_tags(path, ["PatientID"]).get("PatientID", "").strip()
    if not identifier:
        return ""
    digest = hashlib.blake2b(identifier.encode(), key=_key(paths.DATA), digest_size=6)
    return f"dicom-{digest.hexdigest()}"


@lru_cache
def _key(folder: Path) -> bytes:
    """Read the key of pseudonyms, which is made once."""
    file = folder / "patients.key"
    with storage_errors(file):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):
            if not file.is_file():
                with atomic_write(file) as temporary:
                    temporary.chmod(0o600)
                    temporary.write_text(secrets.token_hex(32))
    return file.read_bytes()[:64]


def years(age: str | None) -> float | None:
    """Years of an age string such as 006M; None where it is no such string."""
    if not age or not age[:-1].isdigit() or age[-1] not in _UNITS_PER_YEAR:
        return None
    return int(age[:-1]) / _UNITS_PER_YEAR[age[-1]]


def not_frontal_chest(header: Mapping[str, Any]) -> str:
    """Say why, by its header, an image is no frontal chest radiograph made for people to look at.

    Parameters
    ----------
    header
        From `read_header`; what it does not say counts for nothing.

    Returns
    -------
    str
        The reason and its fix, or an empty text.
    """
    said = {name: str(value).upper() for name, value in header.items() if value}
    body_part = said.get("body_part", "CHEST").replace("_", " ").split()
    if said.get("modality", "CR") not in _RADIOGRAPHS:
        return "its header names another modality than radiography. Fix: give a radiograph"
    if _CHEST.isdisjoint(body_part):
        return "its header names another body part. Fix: give a chest radiograph"
    if said.get("view_position") in _LATERAL:
        return "its header names a lateral view. Fix: give a frontal one (AP or PA)"
    if said.get("presentation_intent") == "FOR PROCESSING":
        return "its header says raw, for processing. Fix: export it for presentation"
    return ""
