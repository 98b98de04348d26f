"""Unpacking a downloaded archive without trusting it."""

import shutil
import stat
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from PIL import Image

from xraylib.storage import Failed

_BLOCK = 1 << 20
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    FileExistsError,
    NotADirectoryError,
)


@dataclass(frozen=True)
class Limits:
    """What an archive may hold: bytes unpacked, files, and bytes unpacked a byte packed."""

    total_bytes: int = 8 << 30
    files: int = 50_000
    ratio: float = 100.0


def unpack(archive: Path, folder: Path, limits: Limits | None = None) -> None:
    """Unpack a zip archive into an empty folder, leaving out hidden files and `__MACOSX`.

    Parameters
    ----------
    archive
        The zip file.
    folder
        Where to; give a folder aside (`storage.atomic_folder`), since a failure leaves what came before it.
    limits
        Bounds against archives made to fill the disk.

    Raises
    ------
    Failed
        When the archive is damaged, exceeds a limit, or holds an absolute path, a `..`, a link or a
        special file; nothing is written then, except by a damage found in the course of unpacking.
    """
    limits = limits or Limits()
    try:
        with zipfile.ZipFile(archive) as source:
            members = [m for m in source.infolist() if not m.is_dir()]
            _check(archive, members, limits)
            for member in members:
                path = PurePosixPath(member.filename)
                if any(p.startswith((".", "__MACOSX")) for p in path.parts):
                    continue
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with source.open(member) as packed, target.open("xb") as output:
                    shutil.copyfileobj(packed, output, _BLOCK)
    except _DAMAGE as error:
        raise Failed(f"{archive} cannot be unpacked: {error}. Fix: remove it and fetch again.") from error


def _check(archive: Path, members: list[zipfile.ZipInfo], limits: Limits) -> None:
    total = sum(m.file_size for m in members)
    if len(members) > limits.files:
        raise Failed(_refusal(archive, f"holds {len(members)} files, more than {limits.files}"))
    if total > limits.total_bytes:
        raise Failed(_refusal(archive, f"unpacks to {total} bytes, more than {limits.total_bytes}"))
    if total > limits.ratio * archive.stat().st_size:
        raise Failed(_refusal(archive, f"unpacks to more than {limits.ratio:g} times its size"))
    for member in members:
        name = member.filename
        parts = PureWindowsPath(name).parts
        mode = member.external_attr >> 16
        if not parts or PureWindowsPath(name).anchor or PurePosixPath(name).is_absolute() or ".." in parts:
            raise Failed(_refusal(archive, f"holds {name!r}, which would be written outside its folder"))
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise Failed(_refusal(archive, f"holds {name!r}, which is a link or a special file"))


def _refusal(archive: Path, reason: str) -> str:
    return f"{archive} is not unpacked: it {reason}. Fix: remove it and get the data from its publisher."


def folder_holding(root: Path, names: set[str]) -> Path | None:
    """Find the folder nearest to `root` whose subfolders include all `names`, whatever their case."""
    level = [root]
    while level:
        for folder in level:
            if names <= {p.name.lower() for p in folder.iterdir() if p.is_dir()}:
                return folder
        level = [p for folder in level for p in sorted(folder.iterdir()) if p.is_dir()]
    return None


def unpack_arrays(archive: Path, folder: Path) -> None:
    """Write the arrays of a MedMNIST file as PNG images into `folder`/split/class.

    Parameters
    ----------
    archive
        An ``.npz`` file with, for each split, `<split>_images` (n, height, width) uint8 and `<split>_labels`
        (n, 1), 0 normal and 1 pneumonia.
    folder
        Where to; the images are named ``<split>-<row>.png``.

    Raises
    ------
    Failed
        When the file is damaged or holds something else.
    """
    try:
        with np.load(archive, allow_pickle=False) as arrays:
            for split in ("train", "val", "test"):
                pixels, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"].reshape(-1)
                if pixels.dtype != np.uint8 or pixels.ndim != 3 or len(pixels) != len(labels):
                    raise ValueError(f"{split}_images is {pixels.dtype} of shape {pixels.shape}")
                if not np.isin(labels, (0, 1)).all():
                    raise ValueError(f"{split}_labels holds other values than 0 and 1")
                _write_images(folder / split, split, pixels, labels)
    except (ValueError, KeyError, *_DAMAGE) as error:
        raise Failed(f"{archive} is not a MedMNIST file: {error}. Fix: remove it and fetch again.") from error


def _write_images(folder: Path, split: str, pixels: np.ndarray, labels: np.ndarray) -> None:
    for label, name in enumerate(("NORMAL", "PNEUMONIA")):
        (folder / name).mkdir(parents=True)
        for row in np.flatnonzero(labels == label):
            Image.fromarray(pixels[row]).save(folder / name / f"{split}-{row:05d}.png")
