"""Radiographs from files: reading one, and decoding a data set once into a cache.

One intensity range everywhere: uint8, 0 = black (air), 255 = white (most attenuating); networks rescale themselves.
"""

import errno
import hashlib
import io
import logging
import math
import os
import shutil
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
from tqdm.auto import tqdm

from xraylib import paths, storage
from xraylib.datasets import shards
from xraylib.datasets.dicom import MAX_PIXELS, read_dicom
from xraylib.errors import InvalidDataError, NotFoundError, UnusableImageError

_log = logging.getLogger(__name__)

MAX_BYTES = 200_000_000

# Part of the cache's name: raise it whenever `read_gray` gives other pixels for the same file.
DECODER_VERSION = 1

warnings.filterwarnings(
    "ignore", category=UserWarning, module=r"PIL|pydicom"
)  # of tags that are not needed

CHANGED = "other bytes than when the data set was indexed"
_CHUNK = 256
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*")
_PNG_END = b"IEND\xaeB`\x82"


def read_gray(path: Path | str, size: int | None = None) -> np.ndarray:
    """Read one radiograph (JPEG, PNG, TIFF or DICOM, told by content) as uint8 (height, width), or (size, size).

    Colour becomes ITU-R 601 luma, transparency is laid over black, EXIF orientation is applied, and 16-bit values are
    divided by 257. An inverted radiograph cannot be told from its file and stays inverted. `size` does not keep the
    aspect ratio, as in the published systems: libjpeg scales a JPEG down to at least twice `size` while decoding, then
    Pillow's antialiased bilinear filter resizes. A JPEG damaged inside but properly ended decodes without a complaint
    from libjpeg: only its checksum tells.
    """
    return decode(Path(path), read_bytes(Path(path)), size)


def read_bytes(path: Path) -> bytes:
    """Read a regular file of at most `MAX_BYTES`; `NotFoundError` or `UnusableImageError` otherwise."""
    try:
        if not path.is_file():
            if path.exists():
                raise UnusableImageError(
                    path, "unreadable", "not a regular file", "give the path of an image"
                )
            raise NotFoundError(
                f"{path}: no such file. Fix: check the path, or fetch the data set again."
            )
        if (length := path.stat().st_size) > MAX_BYTES:
            raise UnusableImageError(
                path, "oversized", f"{length:,} bytes, more than {MAX_BYTES:,}"
            )
        return path.read_bytes()
    except OSError as error:
        fix = "make the file readable for this user"
        raise UnusableImageError(
            path, "unreadable", f"cannot be read ({error.strerror})", fix
        ) from error


def decode(path: Path, data: bytes, size: int | None) -> np.ndarray:
    """Decode the content `data` of the file `path` as `read_gray` does."""
    if data[128:132] == b"DICM":
        image = read_dicom(path, data)
    elif data.startswith(_MAGIC):
        image = _open(path, data, size)
    else:
        what = "no JPEG, PNG, TIFF or DICOM file" if data else "the file is empty"
        raise UnusableImageError(path, "unreadable", what)
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0)
    return np.array(image, dtype=np.uint8)


def _open(path: Path, data: bytes, size: int | None) -> Image.Image:
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        fix = "set PIL.ImageFile.LOAD_TRUNCATED_IMAGES back to False"
        raise UnusableImageError(
            path, "unreadable", "Pillow was told to guess what truncated files lack", fix
        )
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "TIFF")) as image:
            # Not through Image.MAX_IMAGE_PIXELS, which all threads share and which at first only warns.
            if image.width * image.height > MAX_PIXELS:
                detail = f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}"
                raise UnusableImageError(path, "oversized", detail)
            if getattr(image, "n_frames", 1) > 1 and image.format in ("PNG", "TIFF"):
                raise UnusableImageError(
                    path, "unreadable", "several pages or frames, not one radiograph"
                )
            if image.format == "PNG" and _PNG_END not in data:
                raise UnusableImageError(path, "truncated", "the end of the PNG is missing")
            image.draft("L", (2 * size, 2 * size) if size else None)
            ImageOps.exif_transpose(image, in_place=True)
            return _to_gray(path, image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnusableImageError(path, "oversized", f"more than {MAX_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        raise UnusableImageError(
            path, "unreadable", "damaged: its header cannot be read"
        ) from error
    except UnusableImageError:
        raise
    except Exception as error:  # what Pillow's parsers let through on damaged content
        problem = "truncated" if "truncated" in str(error).lower() else "unreadable"
        raise UnusableImageError(path, problem, f"damaged ({error})") from error


def _to_gray(path: Path, image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise UnusableImageError(path, "unreadable", "its values are fractions, of no known range")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int32)
        if values.min() < 0 or values.max() > 65535:
            raise UnusableImageError(path, "unreadable", "its values leave 0..65535")
        if (
            getattr(image, "tag_v2", {}).get(262) == 0
        ):  # a TIFF whose 0 is white; Pillow inverts 8 bits only
            values = 65535 - values
        if 0 < values.max() < 4096:
            detail = f"its 16-bit values end at {values.max()} of 65535 and would turn black"
            raise UnusableImageError(
                path, "unreadable", detail, "rescale them to 0..65535 or export as 8-bit PNG"
            )
        values += 128
        values //= 257
        return Image.fromarray(values.astype(np.uint8))
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(opaque, image.convert("RGBA")).convert("L")
    return image.convert("RGB").convert("L") if image.mode == "CMYK" else image.convert("L")


def heat_map(cam: np.ndarray, size: int) -> np.ndarray:
    """A class activation map `(h, w)` as float32 `(size, size)` in [0, 1]: the largest value 1, or zeros throughout."""
    large = Image.fromarray(np.maximum(cam, 0).astype(np.float32)).resize(
        (size, size), Image.Resampling.BILINEAR
    )
    heat = np.asarray(large)
    return heat / heat.max() if heat.max() > 0 else np.zeros_like(heat)


def decoded(manifest: pd.DataFrame, size: int) -> Iterator[list[np.ndarray]]:
    """Decode the films of a manifest, a chunk of uint8 `(size, size)` at a time."""
    return map_rows(lambda row: checked(row, size), manifest, "decoding")


def map_rows(
    function: Callable[[Any], Any], manifest: pd.DataFrame, title: str
) -> Iterator[list[Any]]:
    """Apply `function` to the rows in parallel (Pillow releases the GIL); yields chunks of results."""
    workers, total = os.cpu_count() or 1, len(manifest)
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=total, desc=title, unit="image", disable="TQDM_DISABLE" in os.environ) as bar,
    ):
        for start in range(0, total, _CHUNK):
            rows = list(manifest.iloc[start : start + _CHUNK].itertuples(index=False))
            yield list(pool.map(function, rows))
            bar.update(len(rows))


def checked(row: Any, size: int) -> np.ndarray:
    """Decode the film of one row of a manifest, uint8 `(size, size)`; `UnusableImageError` unless it is the one indexed."""
    path = Path(row.path)
    try:
        data = read_bytes(path)
        if hashlib.sha256(data).hexdigest() != row.sha256:
            raise UnusableImageError(path, "changed", CHANGED)
        return decode(path, data, size)
    except UnusableImageError as error:
        fix = "run `python -m xraylib data audit NAME`, which writes a quarantine list"
        raise UnusableImageError(path, error.problem, error.detail, fix) from error


def fingerprint(manifest: pd.DataFrame) -> str:
    """Name a manifest's images by 16 hex digits of their order, ids and content, not of labels or splits."""
    text = "\0".join(manifest["image_id"] + "\0" + manifest["sha256"])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_pixels(manifest: pd.DataFrame, size: int) -> np.ndarray:
    """Decode every image of a manifest once, and read the result from the cache ever after.

    Returns a read-only memory map, uint8 (n, size, size, 1), in manifest order. The cache is keyed by `fingerprint`:
    load the whole manifest of a data set and take subsets by row number, because a subset or another order is decoded
    anew. Of two processes that ask at once the second waits and reads what the first decoded. A manifest of shards
    gives `shards.Shards`, read by row. `InvalidDataError` when a file cannot be used or is not the one that was indexed.
    """
    if "shards" in manifest.attrs:
        films = shards.Shards(Path(manifest.attrs["shards"]), size)
        if len(films) != len(manifest):
            raise InvalidDataError(
                f"{films.folder} holds other films than the manifest. Fix: load the whole manifest."
            )
        return cast(np.ndarray, films)
    if manifest.empty:
        raise InvalidDataError(
            "the manifest is empty. Fix: check the data set's folder and its quarantine list."
        )
    name = f"{fingerprint(manifest)}-{size}px-decoder{DECODER_VERSION}-pillow{PIL.__version__}.npy"
    target, shape = paths.CACHE / "pixels" / name, (len(manifest), int(size), int(size), 1)
    with storage.storage_errors(target):
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{target}.lock"):
                # Of two at once the second finds what the first has written, whole.
                if not target.exists():
                    _write_cache(manifest, shape, target)
        try:
            return np.load(target, mmap_mode="r")
        except (ValueError, EOFError) as error:
            raise InvalidDataError(
                f"{target} is damaged. Fix: delete it; the images are decoded anew."
            ) from error


def _write_cache(manifest: pd.DataFrame, shape: tuple[int, ...], target: Path) -> None:
    for left_by_killed_process in target.parent.glob(f".partial-*-{target.name}"):
        left_by_killed_process.unlink(missing_ok=True)
    needed, free = math.prod(shape), shutil.disk_usage(target.parent).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{needed:,} bytes needed, {free:,} free")
    _log.info("decoding %d images to %s", len(manifest), target)

    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with storage.atomic_write(target) as temporary, temporary.open("wb") as file:
        # Plain writes, because the written pages of a memory map would count as this process's memory.
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in decoded(manifest, shape[1]):
            file.write(np.stack(chunk).data)
