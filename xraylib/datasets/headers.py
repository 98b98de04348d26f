"""What the content of a file announces, read before anything is decoded.

A header is easily forged: a file of 1 kB may announce 65,500 x 65,500 pixels, and a decoder
believes it. The functions here read only headers, in bounded time, and raise `ValueError` where
a decoder would have to work without bound.
"""

import itertools
import struct
from typing import NamedTuple

MAX_PIXELS = 40_000_000

# So much of a file tells its kind: DICOM's mark ends here.
START = 132
_STARTS = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "TIFF": (b"II*\0", b"MM\0*"),
}
# The shortest DICOM file, and the longest first element without a value representation, in bytes.
_SHORTEST = 64

# Bounds far above what cameras, scanners and converters write.
_MAX_JPEG_HEADER = 20_000_000
_MAX_JPEG_SEGMENTS = 4_096
_MAX_JPEG_SCANS = 100
_MAX_BOXES = 1_000
_MAX_PNG_CHUNKS = 100_000

# Start of frame: JPEG (not DHT, JPG and DAC, which lie between), JPEG-LS, hierarchical JPEG.
_FRAMES = {*range(0xC0, 0xD0), 0xF7, 0xDE} - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = {0x00, 0x01, *range(0xD0, 0xDA)}
_START_OF_SCAN = 0xDA

_TIFF_TYPE_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}


class RefusedError(Exception):
    """Why content is not read as an image: what `UnusableImageError` takes after the path."""

    def __init__(self, detail: str, *fix: str, problem: str = "unreadable") -> None:
        super().__init__(problem, detail, *fix)


def kind_of(start: bytes) -> str:
    """Name the kind of a file by how its content begins: DICOM, JPEG, PNG, TIFF, or empty.

    DICOM is recognised with its preamble or (as older systems write) without. Without one it starts
    with an element of group 2 or 8, little endian, whose value representation or length makes
    sense.
    """
    if start[128:START] == b"DICM":
        return "DICOM"
    for kind, marks in _STARTS.items():
        if start.startswith(marks):
            return kind
    if len(start) < _SHORTEST:
        return ""
    group, element, length = struct.unpack_from("<HHI", start)
    is_explicit = start[4:6] in (b"UL", b"UI", b"OB", b"CS", b"SH", b"LO", b"DA", b"TM")
    is_element = is_explicit or length <= _SHORTEST
    return "DICOM" if group in (2, 8) and element <= 0x100 and is_element else ""


def why_no_image(start: bytes) -> str:
    """Say why content that begins so is no image; empty for one of the kinds that are read."""
    if kind_of(start):
        return ""
    return "no JPEG, PNG, TIFF or DICOM image" if start else "the file is empty"


def check_pixels(width: int, height: int) -> None:
    """Refuse a size that does not fit into memory."""
    # Not through Image.MAX_IMAGE_PIXELS, which all threads share and which at first only warns.
    if width * height > MAX_PIXELS:
        detail = f"{width} x {height} pixels, more than {MAX_PIXELS:,}"
        raise RefusedError(detail, problem="oversized")


class StreamHeader(NamedTuple):
    """Size that a compressed stream announces: pixels, and samples per pixel."""

    width: int
    height: int
    samples: int


def read_jpeg(stream: bytes) -> StreamHeader:
    """Header of a JPEG or JPEG-LS stream; the largest where several frames are announced."""
    if stream.count(b"\xff\xda") > _MAX_JPEG_SCANS:
        raise ValueError("more scans than a JPEG needs")
    frames: list[StreamHeader] = []
    position = 2
    for _ in range(_MAX_JPEG_SEGMENTS):
        position = stream.find(b"\xff", position, _MAX_JPEG_HEADER)
        if position < 0 or position + 4 > len(stream):
            break
        marker = stream[position + 1]
        if marker == _START_OF_SCAN:
            if frames:
                return max(frames, key=lambda frame: frame.width * frame.height)
            break
        if marker == 0xFF:
            position += 1
        elif marker in _WITHOUT_LENGTH:
            position += 2
        else:
            if marker in _FRAMES:
                height, width, samples = struct.unpack_from(">HHB", stream, position + 5)
                frames.append(StreamHeader(width, height, samples))
            (length,) = struct.unpack_from(">H", stream, position + 2)
            position += 2 + length
    raise ValueError("no header of a JPEG")


def read_jpeg2000(stream: bytes) -> StreamHeader:
    """Header of a JPEG 2000 or HTJ2K codestream, which may be in a JP2 file."""
    start = _find_codestream(stream) if stream[4:8] == b"jP  " else 0
    if stream[start : start + 4] != b"\xff\x4f\xff\x51":
        raise ValueError("no header of a JPEG 2000 image")
    right, lower, left, upper = struct.unpack_from(">4I", stream, start + 8)
    (samples,) = struct.unpack_from(">H", stream, start + 40)
    return StreamHeader(right - left, lower - upper, samples)


def _find_codestream(stream: bytes) -> int:
    """Position of the codestream after the boxes that precede it in a JP2 file."""
    position = 0
    for _ in range(_MAX_BOXES):
        length, kind = struct.unpack_from(">I4s", stream, position)
        if kind == b"jp2c":
            return position + 8
        # Of a box without a length, or with a long one, pydicom would search for ever.
        if length < 8:
            break
        position += length
    raise ValueError("no codestream in a JP2 file")


def check_rle(frame: bytes, pixels: int) -> None:
    """Check that no segment of a DICOM RLE frame unfolds to much more than `pixels` bytes."""
    limit = 2 * pixels + 65_536
    count, *starts = struct.unpack_from("<16I", frame)
    if not 1 <= count <= 15:
        raise ValueError(f"{count} RLE segments")
    bounds = [*starts[:count], len(frame)]
    for start, stop in itertools.pairwise(bounds):
        if _rle_length(frame[start:stop], limit) > limit:
            raise ValueError(f"an RLE segment of more than {limit:,} bytes")


def _rle_length(segment: bytes, limit: int) -> int:
    """Bytes that a segment unfolds to; counting stops once they are more than the limit."""
    if len(segment) > limit:
        return len(segment)
    length = 0
    position = 0
    while position < len(segment) and length <= limit:
        control = segment[position]
        if control < 128:
            length += control + 1
            position += control + 2
        elif control > 128:
            length += 257 - control
            position += 2
        else:
            position += 1
    return length


def check_png(stream: bytes) -> None:
    """Check that a PNG has no absurd number of chunks; what is cut short is left to the decoder."""
    position = 8
    for _ in range(_MAX_PNG_CHUNKS):
        if position + 8 > len(stream):
            return
        length, kind = struct.unpack_from(">I4s", stream, position)
        if kind == b"IEND":
            return
        position += 12 + length
    raise ValueError(f"more than {_MAX_PNG_CHUNKS:,} chunks")


def check_tiff(stream: bytes) -> None:
    """Check that the values of a TIFF's only page are no longer than the file itself.

    Pillow would count all pages to find out whether there is a second one.
    """
    order = "<" if stream[:2] == b"II" else ">"
    (start,) = struct.unpack_from(f"{order}I", stream, 4)
    (count,) = struct.unpack_from(f"{order}H", stream, start)
    length = 0
    for index in range(count):
        _, kind, values = struct.unpack_from(f"{order}HHI", stream, start + 2 + 12 * index)
        length += values * _TIFF_TYPE_BYTES.get(kind, 1)
    if length > len(stream):
        raise ValueError("tags longer than the file")
    (following,) = struct.unpack_from(f"{order}I", stream, start + 2 + 12 * count)
    if following:
        raise RefusedError("several pages, not one image")
