"""Images from files: reading one, and decoding a data set once into a cache.

One intensity range everywhere: uint8, 0 = black (air), 255 = white (most attenuating); networks
rescale themselves.
"""

import errno
import io
import logging
import math
import os
import shutil
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import PIL
from filelock import FileLock
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from xraylib import paths, storage
from xraylib.datasets import headers, shards
from xraylib.datasets.dicom import read_dicom, read_tags
from xraylib.datasets.headers import MAX_PIXELS, RefusedError
from xraylib.errors import InvalidDataError, NotFoundError, UnusableImageError
from xraylib.progress import tqdm

_log = logging.getLogger(__name__)

MAX_BYTES = 200_000_000

# Part of the cache's name: raise it whenever `read_gray` gives other pixels for the same file.
DECODER_VERSION = 2

# Of tags that are not needed.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL|pydicom")

CHANGED = "other bytes than when the data set was indexed"
# Images that are decoded before the first of them is used, and those that a thread takes at once:
# a small file takes hardly longer than handing over a task.
_CHUNK = 256
_BLOCK = 8

# What refuses, in bounded time, a header that Pillow would take minutes to open.
_HEADER_CHECKS: dict[str, Callable[[bytes], Any]] = {
    "JPEG": headers.read_jpeg,
    "PNG": headers.check_png,
    "TIFF": headers.check_tiff,
}
_PNG_END = b"IEND\xaeB`\x82"

# Of 12 bits; a smaller maximum may be of a dark image or of fewer bits.
_SMALLEST_MAXIMUM = 2_048

# A TIFF's tag for the photometric interpretation, and its value for "0 is white".
_PHOTOMETRIC_TAG = 262
_WHITE_IS_ZERO = 0


def read_gray(path: Path | str, size: int | None = None) -> np.ndarray:
    """Read one image (JPEG, PNG, TIFF or DICOM, detected from the content) as grey values.

    Colour becomes ITU-R 601 luma, transparency is composited onto black, and EXIF orientation is
    applied. Values of more than 8 bits in a PNG or TIFF are divided by the largest that the bits
    in use can hold: 65,535 where the maximum needs 16 bits, else 2^b - 1 for the smallest b from
    12 to 15 that holds the maximum; a smaller maximum is refused, because it does not tell the
    range. An inverted image cannot be recognised from its file and stays inverted. A JPEG that is
    damaged inside but properly ended decodes without a complaint from libjpeg: only its checksum
    tells.

    Parameters
    ----------
    path
        A regular file.
    size
        Side of the square to resize to, without keeping the aspect ratio, as in the published
        systems: libjpeg scales a JPEG down to at least twice `size` while it decodes, then
        Pillow's antialiased bilinear filter resizes. By default the image's own size is kept.

    Returns
    -------
    numpy.ndarray
        uint8, ``(height, width)`` or ``(size, size)``.

    Raises
    ------
    NotFoundError
        There is no such file.
    UnusableImageError
        The file is no such image, damaged, too large, or of several pages or frames.
    """
    return decode(Path(path), read_bytes(Path(path)), size)


def read_size(path: Path | str) -> tuple[int, int]:
    """Read width and height of an image from its header, without decoding it.

    Raises
    ------
    UnusableImageError
        The file is no such image.
    """
    tags = read_tags(path, ["Columns", "Rows"])
    if len(tags) == 2:
        return int(tags["Columns"]), int(tags["Rows"])
    try:
        with Image.open(path, formats=list(_HEADER_CHECKS)) as image:
            return image.size
    except (OSError, Image.DecompressionBombError) as error:
        detail = "its size cannot be read from its header"
        raise UnusableImageError(path, "unreadable", detail) from error


def read_bytes(path: Path) -> bytes:
    """Read a regular file of at most `MAX_BYTES`.

    Raises
    ------
    NotFoundError
        There is no such file.
    UnusableImageError
        The path is no regular file, or the file is too large or cannot be read.
    """
    try:
        if not path.exists():
            raise NotFoundError(
                f"{path}: no such file. Fix: check the path, or fetch the data set again."
            )
        if not path.is_file():
            fix = "give the path of an image"
            raise UnusableImageError(path, "unreadable", "not a regular file", fix)
        length = path.stat().st_size
        if length > MAX_BYTES:
            detail = f"{length:,} bytes, more than {MAX_BYTES:,}"
            raise UnusableImageError(path, "oversized", detail)
        return path.read_bytes()
    except OSError as error:
        fix = "make the file readable for this user"
        detail = f"cannot be read ({error.strerror})"
        raise UnusableImageError(path, "unreadable", detail, fix) from error


def decode(path: Path, data: bytes, size: int | None) -> np.ndarray:
    """Decode the content `data` of the file `path` as `read_gray` does."""
    try:
        image = _open(data, size)
    except RefusedError as refusal:
        raise UnusableImageError(path, *refusal.args) from refusal
    except MemoryError as error:
        raise UnusableImageError(path, "oversized", "it does not fit into memory") from error
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0)
    return np.array(image, dtype=np.uint8)


def _open(data: bytes, size: int | None) -> Image.Image:
    """Decode a file's content to 8-bit grey, of at least twice `size` where that saves time."""
    kind = headers.kind_of(data)
    if kind == "DICOM":
        return read_dicom(data)
    if not kind:
        raise RefusedError(headers.why_no_image(data))
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        detail = "Pillow was told to guess what truncated files lack"
        raise RefusedError(detail, "set PIL.ImageFile.LOAD_TRUNCATED_IMAGES back to False")
    try:
        _HEADER_CHECKS[kind](data)
    except (ValueError, struct.error) as error:
        raise RefusedError(f"damaged: its header cannot be read ({error})") from error
    try:
        return _open_raster(kind, data, size)
    except (RefusedError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RefusedError(f"more than {MAX_PIXELS:,} pixels", problem="oversized") from error
    except UnidentifiedImageError as error:
        raise RefusedError("damaged: its header cannot be read") from error
    except Exception as error:  # Pillow raises anything on damaged content
        problem = "truncated" if "truncated" in str(error).lower() else "unreadable"
        raise RefusedError(f"damaged ({error})", problem=problem) from error


def _open_raster(kind: str, data: bytes, size: int | None) -> Image.Image:
    """Decode a JPEG, PNG or TIFF whose header was checked."""
    with Image.open(io.BytesIO(data), formats=[kind]) as image:
        headers.check_pixels(image.width, image.height)
        if kind == "PNG" and getattr(image, "n_frames", 1) > 1:
            raise RefusedError("several frames, not one image")
        if kind == "PNG" and _PNG_END not in data:
            raise RefusedError("the end of the PNG is missing", problem="truncated")
        image.draft("L", (2 * size, 2 * size) if size else None)
        ImageOps.exif_transpose(image, in_place=True)
        return _to_gray(image)


def _to_gray(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise RefusedError("its values are fractions, of no known range")
    if image.mode.startswith("I"):
        return _scale_to_bytes(image)
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(opaque, image.convert("RGBA")).convert("L")
    if image.mode == "CMYK":
        image = image.convert("RGB")
    return image.convert("L")


def _scale_to_bytes(image: Image.Image) -> Image.Image:
    """Scale values of 12 to 16 bits to 8, by the bits that are in use."""
    values = np.asarray(image).astype(np.int32)
    maximum = int(values.max())
    if values.min() < 0 or maximum > 65535:
        raise RefusedError("its values leave 0..65535")
    if 0 < maximum < _SMALLEST_MAXIMUM:
        detail = f"its 16-bit values end at {maximum} of 65535, which does not tell their range"
        raise RefusedError(detail, "rescale them to 0..65535 or export as 8-bit PNG")
    bits = maximum.bit_length() or 16
    largest = 2**bits - 1
    # Pillow inverts such a TIFF of 8 bits, but not of 16.
    if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC_TAG) == _WHITE_IS_ZERO:
        values = largest - values
    return Image.fromarray(((values * 255 + largest // 2) // largest).astype(np.uint8))


def resize(
    pixels: np.ndarray,
    size: int,
    boxes: np.ndarray | None = None,
    filter_: Image.Resampling = Image.Resampling.BILINEAR,
) -> np.ndarray:
    """Resize images, or a box of each, to squares.

    Parameters
    ----------
    pixels
        uint8 ``(n, height, width, 1)``.
    size
        Side of the squares in pixels.
    boxes
        Left, upper, right and lower edge in pixels, float ``(n, 4)``. By default the whole images.
    filter_
        One of Pillow's, by default antialiased bilinear.

    Returns
    -------
    numpy.ndarray
        uint8 ``(n, size, size, 1)``.
    """
    resized = np.empty((len(pixels), size, size, 1), np.uint8)
    for row, image in enumerate(pixels):
        box = None if boxes is None else tuple(boxes[row])
        picture = Image.fromarray(image[..., 0]).resize((size, size), filter_, box)
        resized[row, ..., 0] = np.asarray(picture)
    return resized


def heat_map(cam: np.ndarray, size: int) -> np.ndarray:
    """Resize a class activation map and scale it to [0, 1].

    Parameters
    ----------
    cam
        Class activation map, float ``(h, w)``; negative values count as 0.
    size
        Side of the returned map in pixels.

    Returns
    -------
    numpy.ndarray
        float32 ``(size, size)``; its largest value is 1, or all are 0.
    """
    small = Image.fromarray(np.maximum(cam, 0).astype(np.float32))
    heat = np.asarray(small.resize((size, size), Image.Resampling.BILINEAR))
    return heat / heat.max() if heat.max() > 0 else np.zeros_like(heat)


def decoded(manifest: pd.DataFrame, size: int) -> Iterator[np.ndarray]:
    """Decode the images of a manifest one after the other, uint8 ``(size, size)``."""
    return map_rows(lambda row: checked(row, size), manifest, "decoding")


def map_rows(function: Callable[[Any], Any], manifest: pd.DataFrame, title: str) -> Iterator[Any]:
    """Apply `function` to the rows of a manifest, some at a time, in several threads.

    Pillow releases the interpreter's lock while it decodes.
    """
    threads = os.cpu_count() or 1
    size = max(1, min(_BLOCK, len(manifest) // (4 * threads), _CHUNK // threads))
    stopped = threading.Event()

    def apply(block: pd.DataFrame) -> list[Any]:
        return [function(row) for row in block.itertuples(index=False) if not stopped.is_set()]

    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=len(manifest), desc=title, unit="image") as bar,
    ):
        try:
            for start in range(0, len(manifest), _CHUNK):
                chunk = manifest.iloc[start : start + _CHUNK]
                blocks = [chunk.iloc[first : first + size] for first in range(0, len(chunk), size)]
                for results in pool.map(apply, blocks):
                    yield from results
                    bar.update(len(results))
        finally:
            stopped.set()


def checked(row: Any, size: int) -> np.ndarray:
    """Decode the image of one row of a manifest, if it is the one that was indexed.

    Parameters
    ----------
    row
        Has `path` and `sha256`.
    size
        As in `read_gray`.

    Returns
    -------
    numpy.ndarray
        uint8 ``(size, size)``.

    Raises
    ------
    UnusableImageError
        The file cannot be read, or has other bytes than were indexed.
    """
    path = Path(row.path)
    try:
        data = read_bytes(path)
        if storage.sha256_bytes(data) != row.sha256:
            raise UnusableImageError(path, "changed", CHANGED)
        return decode(path, data, size)
    except UnusableImageError as error:
        fix = "run `python -m xraylib data audit NAME`, which writes a quarantine list"
        raise UnusableImageError(path, error.problem, error.detail, fix) from error


def fingerprint(manifest: pd.DataFrame) -> str:
    """Name a manifest's images by 16 hex digits of order, ids and content, not labels or splits."""
    text = "\0".join(manifest["image_id"] + "\0" + manifest["sha256"])
    return storage.sha256_bytes(text.encode())[:16]


def load_pixels(manifest: pd.DataFrame, size: int) -> np.ndarray:
    """Decode every image of a manifest once, and read the result from the cache ever after.

    The cache is keyed by `fingerprint`: load the whole manifest of a data set and take subsets by
    row number, because a subset or another order is decoded again. Of two processes that ask at
    once the second waits and reads what the first decoded. A damaged cache is built again.

    Parameters
    ----------
    manifest
        As `manifest.load` returns it.
    size
        As in `read_gray`.

    Returns
    -------
    numpy.ndarray
        A read-only memory map, uint8 ``(n, size, size, 1)``, in manifest order. For a manifest of
        shards, `shards.Shards`, which is read by row.

    Raises
    ------
    InvalidDataError
        The manifest is empty, or a file cannot be used or is not the one that was indexed.
    OperationFailedError
        The cache cannot be written.
    """
    if "shards" in manifest.attrs:
        return _open_shards(manifest, size)
    if manifest.empty:
        raise InvalidDataError(
            "the manifest is empty. Fix: check the data set's folder and its quarantine list."
        )
    name = f"{fingerprint(manifest)}-{size}px-decoder{DECODER_VERSION}-pillow{PIL.__version__}.npy"
    target = paths.CACHE / "pixels" / name
    shape = (len(manifest), int(size), int(size), 1)
    with storage.storage_errors(target):
        if not _is_cached(target, shape):
            target.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{target}.lock"):
                # Another process may have written it while this one waited.
                if not _is_cached(target, shape):
                    _write_cache(manifest, shape, target)
        return np.load(target, mmap_mode="r")


def _open_shards(manifest: pd.DataFrame, size: int) -> np.ndarray:
    pixels = shards.Shards(Path(manifest.attrs["shards"]), size)
    if len(pixels) != len(manifest):
        raise InvalidDataError(
            f"{pixels.folder} holds other images than the manifest. Fix: load the whole manifest."
        )
    return cast(np.ndarray, pixels)


def _is_cached(target: Path, shape: tuple[int, ...]) -> bool:
    """Whether the decoded images are in the cache, and whole."""
    try:
        pixels = np.lib.format.open_memmap(target, mode="r")
    except FileNotFoundError:
        return False
    except (ValueError, EOFError) as error:
        _log.warning("%s is damaged (%s) and is built again", target, error)
        return False
    if pixels.shape != shape or pixels.dtype != np.uint8:
        _log.warning("%s has shape %s and is built again", target, pixels.shape)
        return False
    return True


def _write_cache(manifest: pd.DataFrame, shape: tuple[int, ...], target: Path) -> None:
    needed = math.prod(shape)
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{needed:,} bytes needed, {free:,} free")
    _log.info("decoding %d images to %s", len(manifest), target)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with storage.atomic_write(target) as temporary, temporary.open("wb") as file:
        # Plain writes, because the written pages of a memory map count as this process's memory.
        np.lib.format.write_array_header_1_0(file, header)
        for image in decoded(manifest, shape[1]):
            file.write(image.data)
