"""Which files of a folder are images: told by suffix or content, with all below it."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from xraylib.datasets import headers

# Files are taken for images by these names; others by how their content begins.
SUFFIXES = (".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".dcm", ".dicom", ".ima")

# What operating systems, file servers and notebooks leave in folders of images.
_LITTER = re.compile(
    r"\.|__MACOSX$|@eaDir$|#recycle$|\$RECYCLE|SYNOPHOTO_THUMB|(Thumbs\.db|desktop\.ini)$",
    re.IGNORECASE,
)

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

    def note_closed(error: OSError) -> None:
        listing.closed.append(error.filename)

    for current, folders, files in os.walk(folder, followlinks=True, onerror=note_closed):
        entries = [(name, str(Path(current, name))) for name in sorted(folders)]
        folders.clear()
        for name, path in entries:
            if is_litter(name):
                listing.passed_over.append(PassedOver(path + os.sep, HIDDEN))
            elif _is_read_elsewhere(path, home, entered):
                reason = "a link to a folder that is read already"
                listing.passed_over.append(PassedOver(path + os.sep, reason))
            else:
                folders.append(name)
        for name in files:
            _sort_file(Path(current, name), listing)
    listing.images.sort()
    listing.passed_over.sort()
    return listing


def _is_read_elsewhere(path: str, home: str, entered: set[str]) -> bool:
    """Whether a folder was entered before, or is a link into, or to above, the folder `home`."""
    target = os.path.realpath(path)
    is_link = Path(path).is_symlink()
    if target in entered or (is_link and os.path.commonpath([target, home]) in (target, home)):
        return True
    entered.add(target)
    return False


def _sort_file(path: Path, listing: Listing) -> None:
    """Put a file into the list where it belongs."""
    if is_litter(path.name):
        reason = HIDDEN
    elif path.is_symlink() and not path.exists():
        listing.broken.append(str(path))
        return
    elif not path.is_file():  # to open a pipe would wait for its writer
        reason = "not a regular file"
    else:
        reason = "" if path.suffix.lower() in SUFFIXES else why_no_image(path)
    if reason:
        listing.passed_over.append(PassedOver(str(path), reason))
    else:
        listing.images.append(str(path))


def why_no_image(path: str | Path) -> str:
    """Say why a file is no image, by how its content begins; empty for an image."""
    try:
        with Path(path).open("rb") as stream:
            return headers.why_no_image(stream.read(headers.START))
    except OSError as error:
        return f"cannot be read ({error.strerror})"
