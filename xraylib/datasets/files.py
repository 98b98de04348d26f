"""Which files of a folder are images: told by suffix or content, with all below it."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from xraylib.datasets.dicom import is_dicom

RASTER_SUFFIXES = {".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff"}
# Files are taken for images by these names; others by how their content begins.
SUFFIXES = RASTER_SUFFIXES | {".dcm", ".dicom", ".ima"}

# What operating systems, file servers and notebooks leave in folders of images.
_LITTER = re.compile(
    r"\.|__MACOSX$|@eaDir$|#recycle$|\$RECYCLE|SYNOPHOTO_THUMB|(Thumbs\.db|desktop\.ini)$",
    re.IGNORECASE,
)

_IMAGE_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*")
_START = 132
# Formats that are not read, by how they begin.
_OTHER_FORMATS = {
    b"BM": "a BMP image",
    b"GIF8": "a GIF image",
    b"RIFF": "a WebP image",
    b"PK\x03\x04": "an archive",
    b"\x1f\x8b": "an archive",
}

HIDDEN = "hidden, or left by a system"


class PassedOver(NamedTuple):
    """A file or folder (with a slash at its end) that is not read, and why."""

    path: str
    reason: str


@dataclass
class Listing:
    """What lies below a folder.

    Attributes
    ----------
    images : list of str
        Paths of images, in the order of their names.
    passed_over : list of PassedOver
        What is hidden, no image, or a link to what is read already.
    closed : list of str
        Folders that cannot be read.
    broken : list of str
        Links to files that do not exist.
    """

    images: list[str] = field(default_factory=list)
    passed_over: list[PassedOver] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


def is_litter(name: str) -> bool:
    """Whether a name is that of a hidden file or folder, a thumbnail, or a system's leftover."""
    return bool(_LITTER.match(name))


def list_folder(folder: str | Path) -> Listing:
    """List the images below a folder, and what is passed over.

    A linked folder is entered once, and only if it lies elsewhere: what lies in `folder` is read
    where it lies.
    """
    listing = Listing()
    home = os.path.realpath(folder)
    entered = {home}
    pending = [os.fspath(folder)]
    while pending:
        current = pending.pop()
        try:
            with os.scandir(current) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError:
            listing.closed.append(current)
            continue
        for entry in entries:
            if not entry.is_dir():
                _sort_file(entry, listing)
            elif is_litter(entry.name):
                listing.passed_over.append(PassedOver(entry.path + os.sep, HIDDEN))
            elif _is_read_elsewhere(entry, home, entered):
                reason = "a link to a folder that is read already"
                listing.passed_over.append(PassedOver(entry.path + os.sep, reason))
            else:
                pending.append(entry.path)
    listing.images.sort()
    listing.passed_over.sort()
    return listing


def _is_read_elsewhere(entry: os.DirEntry[str], home: str, entered: set[str]) -> bool:
    """Whether a folder was entered before, or is a link into, or to above, the folder `home`."""
    target = os.path.realpath(entry.path)
    if target in entered:
        return True
    if entry.is_symlink() and os.path.commonpath([target, home]) in (target, home):
        return True
    entered.add(target)
    return False


def _sort_file(entry: os.DirEntry[str], listing: Listing) -> None:
    """Put a file into the list where it belongs."""
    if is_litter(entry.name):
        listing.passed_over.append(PassedOver(entry.path, HIDDEN))
    elif entry.is_symlink() and not Path(entry.path).exists():
        listing.broken.append(entry.path)
    elif not entry.is_file():  # to open a pipe would wait for its writer
        listing.passed_over.append(PassedOver(entry.path, "not a regular file"))
    elif Path(entry.name).suffix.lower() in SUFFIXES:
        listing.images.append(entry.path)
    elif reason := why_no_image(entry.path):
        listing.passed_over.append(PassedOver(entry.path, reason))
    else:
        listing.images.append(entry.path)


def why_no_image(path: str | Path) -> str:
    """Say why the content of a file is that of no image; empty for JPEG, PNG, TIFF and DICOM."""
    try:
        with Path(path).open("rb") as stream:
            start = stream.read(_START)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if not start:
        return "empty"
    if start.startswith(_IMAGE_STARTS) or is_dicom(start):
        return ""
    for mark, kind in _OTHER_FORMATS.items():
        if start.startswith(mark):
            return f"{kind}, which is not read"
    return "no image"
