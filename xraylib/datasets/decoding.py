"""One radiograph file to pixels, safely.

One intensity range everywhere: uint8, 0 = black (air), 255 = white (most attenuating); networks rescale
themselves.
"""

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from xraylib.storage import DataInvalid, NotFound

MAX_PIXELS = 50_000_000
MAX_BYTES = 200_000_000

# Part of the cache's name in `images`: raise it whenever `read_gray` gives other pixels for the same file.
DECODER_VERSION = 1

_SIGNATURES = {"JPEG": (0, b"\xff\xd8\xff"), "PNG": (0, b"\x89PNG\r\n\x1a\n"), "DICOM": (128, b"DICM")}
_SUFFIXES = {".dcm": "DICOM", ".dicom": "DICOM"}
_PNG_END = b"IEND\xaeB`\x82"
_EXPORT = "export it anew from its source as an 8-bit PNG"
# What Pillow's parsers let through on damaged content (its own `open` expects most of these, too).
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, struct.error)


class UnusableImage(DataInvalid):
    """One file cannot be read as a radiograph.

    `problem` is ``unreadable``, ``truncated`` or ``oversized``; `detail` says in words what is wrong.
    """

    def __init__(self, path: Path | str, problem: str, detail: str, mend: str = _EXPORT) -> None:
        super().__init__(f"{path}: {detail}. Fix: {mend}.")
        self.problem, self.detail = problem, detail


def read_gray(path: Path | str, size: int | None = None) -> np.ndarray:
    """Read one radiograph (JPEG or PNG, recognised by content) as 8-bit grayscale.

    Colour becomes ITU-R 601 luma, transparency is laid over black, EXIF orientation is applied, and 16-bit
    values are divided by 257 (0..65535 to 0..255, rounded). An inverted radiograph cannot be told from its
    file and stays inverted. A JPEG damaged inside but properly ended decodes without a complaint from
    libjpeg: only its checksum tells.

    Parameters
    ----------
    path
        The file.
    size
        Side of the square result in pixels; the aspect ratio is not kept, as in the published systems. The
        resize is Pillow's antialiased bilinear filter, which never leaves the range of the input; a JPEG
        is first scaled by libjpeg while decoding, down to at least twice `size`. None keeps the file's size.

    Returns
    -------
    uint8 array of shape (size, size), or (height, width) without a `size`.

    Raises
    ------
    NotFound
        When there is no such file.
    DataInvalid
        When it is not a whole JPEG or PNG, or has more than `MAX_PIXELS` pixels or `MAX_BYTES` bytes.
    """
    return decode(Path(path), read_bytes(Path(path)), size)


def read_bytes(path: Path) -> bytes:
    """Read a regular file of at most `MAX_BYTES`; raises as `read_gray`."""
    try:
        if not path.is_file():
            if path.exists():
                raise UnusableImage(path, "unreadable", "not a regular file", "give the path of an image")
            raise NotFound(f"{path}: no such file. Fix: check the path, or fetch the data set again.")
        if (length := path.stat().st_size) > MAX_BYTES:
            raise UnusableImage(path, "oversized", f"{length:,} bytes, more than {MAX_BYTES:,}")
        return path.read_bytes()
    except OSError as error:
        mend = "make the file readable for this user"
        raise UnusableImage(path, "unreadable", f"cannot be read ({error.strerror})", mend) from error


def decode(path: Path, data: bytes, size: int | None) -> np.ndarray:
    """Decode the content `data` of the file `path` as `read_gray` does."""
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1 pixel, not {size}")
    by_content = [name for name, (at, mark) in _SIGNATURES.items() if data[at : at + len(mark)] == mark]
    kind = by_content[0] if by_content else _SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise UnusableImage(path, "unreadable", "neither JPEG nor PNG" if data else "the file is empty")
    image = _READERS[kind](path, data, size)
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0)
    return np.array(image, dtype=np.uint8)


def _read_with_pillow(path: Path, data: bytes, size: int | None) -> Image.Image:
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        mend = "set PIL.ImageFile.LOAD_TRUNCATED_IMAGES back to False"
        raise UnusableImage(path, "unreadable", "Pillow was told to guess what truncated files lack", mend)
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            # Not through Image.MAX_IMAGE_PIXELS, which all threads share and which at first only warns.
            if image.width * image.height > MAX_PIXELS:
                detail = f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}"
                raise UnusableImage(path, "oversized", detail)
            if image.format == "PNG" and getattr(image, "is_animated", False):
                raise UnusableImage(path, "unreadable", "an animation, not one radiograph")
            if image.format == "PNG" and _PNG_END not in data:
                raise UnusableImage(path, "truncated", "the end of the PNG is missing")
            image.draft("L", (2 * size, 2 * size) if size else None)
            ImageOps.exif_transpose(image, in_place=True)
            return _to_gray(path, image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnusableImage(path, "oversized", f"more than {MAX_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        raise UnusableImage(path, "unreadable", "damaged: its header cannot be read") from error
    except _DAMAGED as error:
        problem = "truncated" if "truncated" in str(error).lower() else "unreadable"
        raise UnusableImage(path, problem, f"damaged ({error})") from error


def _to_gray(path: Path, image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.uint32)
        if 0 < values.max() < 4096:
            detail = f"its 16-bit values end at {values.max()} of 65535 and would turn black"
            raise UnusableImage(path, "unreadable", detail, "rescale them to 0..65535 or export as 8-bit PNG")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(opaque, image.convert("RGBA")).convert("L")
    return image.convert("RGB").convert("L") if image.mode == "CMYK" else image.convert("L")


def _refuse_dicom(path: Path, data: bytes, size: int | None) -> Image.Image:
    raise UnusableImage(path, "unreadable", "DICOM files are not read here", "export it as an 8-bit PNG")


_READERS: dict[str, Callable[[Path, bytes, int | None], Image.Image]] = {
    "JPEG": _read_with_pillow,
    "PNG": _read_with_pillow,
    "DICOM": _refuse_dicom,
}
