"""Write files so that a reader sees the old or the whole new one, hash and verify them."""

import errno
import hashlib
import json
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from xraylib import paths
from xraylib.errors import InvalidDataError, OperationFailedError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

log = logging.getLogger(__name__)

_FIXES = {
    errno.ENOSPC: "free some disk space, or {elsewhere}",
    errno.EDQUOT: "free some disk space, or {elsewhere}",
    errno.EACCES: "make the folder writable, or {elsewhere}",
    errno.EPERM: "make the folder writable, or {elsewhere}",
    errno.EROFS: "make the folder writable, or {elsewhere}",
    errno.ENOTDIR: "a file stands where a folder is needed: move it away",
    errno.EEXIST: "a file stands where a folder is needed: move it away",
    errno.EISDIR: "a folder stands where a file is needed: name a file",
    errno.EBUSY: "a disk is mounted here: name a folder in it",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
}

# SHA-256 of the other files in a folder, in the form that `sha256sum --check` reads.
CHECKSUM_FILE = "SHA256SUMS"
_REINSTALL = "install the package again, or delete the folder of the model and export it again"

# Cut, so that the name of a temporary file fits where the file's own name does.
_NAME_LENGTH = 40

# Folders in which this process has removed what killed processes left.
_swept: set[Path] = set()


def sha256(path: Path | str) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_bytes(data: bytes) -> str:
    """SHA-256 of some bytes, as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def digest(settings: Mapping[str, Any], digits: int = 12) -> str:
    """Name settings by the first hexadecimal digits of the SHA-256 of their JSON."""
    return sha256_bytes(json.dumps(settings, sort_keys=True).encode())[:digits]


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or an unwritable folder into an error that names `path` and the fix.

    Raises
    ------
    OperationFailedError
        For the errors of the operating system that a user can fix; others pass.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FIXES:
            raise
        fix = _FIXES[error.errno].format(elsewhere=_elsewhere(path))
        raise OperationFailedError(f"cannot write {path}: {error.strerror}. Fix: {fix}.") from error


def _elsewhere(path: Path) -> str:
    """How the file would be written elsewhere."""
    # The cache and unfinished runs lie in the data folder unless they are moved.
    for name in ("CACHE", "RUNS", "REPORTS", "DATA"):
        if path.absolute().is_relative_to(getattr(paths, name)):
            return f"set XRAYLIB_{name} to another folder"
    return "name a file in another folder"


@contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Give a temporary file to write; on success it replaces `path`.

    The temporary file lies in the same folder and has the same suffix. It is written to disk
    before it replaces `path`, with the permissions that the umask leaves. A symbolic link is
    followed. A device or FIFO is not replaced: the content is copied into it.

    Parameters
    ----------
    path
        File to write; missing folders are made.

    Yields
    ------
    pathlib.Path
        The temporary file, empty.

    Raises
    ------
    OperationFailedError
        `path` is a folder, or cannot be written.
    """
    path = Path(path)
    with storage_errors(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        special = _is_special(path)
        target = path if special else Path(os.path.realpath(path))
        folder = Path(tempfile.gettempdir()) if special else target.parent
        folder.mkdir(parents=True, exist_ok=True)
        if not special:
            _sweep_files(folder)
        temporary = folder / _temporary_name(target)
        # Not with tempfile, whose files nobody else may read, whatever the umask.
        temporary.touch(exist_ok=False)
        try:
            yield temporary
            if special:
                with temporary.open("rb") as source, target.open("wb") as device:
                    shutil.copyfileobj(source, device)
            else:
                with temporary.open("rb") as written:
                    os.fsync(written.fileno())
                temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(file: Path, text: str) -> None:
    """Write a text at once, in UTF-8, see `atomic_write`."""
    with atomic_write(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_table(file: Path, table: "pd.DataFrame", float_format: str) -> None:
    """Write a table without its index as CSV, at once, see `atomic_write`."""
    with atomic_write(file) as temporary:
        table.to_csv(temporary, index=False, float_format=float_format)


def cached_array(file: Path, make: Callable[[], "np.ndarray"]) -> "np.ndarray":
    """Return an array of the cache, memory-mapped; a missing or damaged one is made.

    Of two processes that ask at once, one makes it.
    """
    import numpy as np

    with storage_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):
            try:
                return np.load(file, mmap_mode="r")
            except FileNotFoundError:
                pass
            except (ValueError, EOFError, OSError):
                log.warning("%s is damaged: it is made again", file)
            with atomic_write(file) as temporary:
                np.save(temporary, make())
            return np.load(file, mmap_mode="r")


def _is_special(path: Path) -> bool:
    """Whether a path exists and must be written to, not replaced: /dev/stdout may be a file."""
    if path.is_file():
        return path.is_absolute() and path.parts[1] in ("dev", "proc")
    return path.exists()


def _temporary_name(target: Path) -> str:
    return f".partial-{os.getpid()}-{secrets.token_hex(4)}-{target.name[-_NAME_LENGTH:]}"


def _sweep_files(folder: Path) -> None:
    """Once per process and folder, remove the temporary files of processes that were killed."""
    if folder not in _swept:
        for left in _left_by_killed(folder):
            with suppress(OSError):
                left.unlink()
        _swept.add(folder)


def _left_by_killed(folder: Path) -> list[Path]:
    """List the temporary files and folders whose writers have gone."""
    return [left for left in folder.glob(".partial-*") if not _writer_runs(left)]


def _writer_runs(temporary: Path) -> bool:
    """Whether the process that a temporary file's name gives still runs, as far as is known."""
    pid = temporary.name.split("-")[1]
    if os.name != "posix":  # on Windows, os.kill ends the process
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError, ValueError):  # of another user, or no number
        return True
    return True


@contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Give a temporary folder to fill; on success it replaces `path`.

    Parameters
    ----------
    path
        Folder to write. An existing one is replaced only once the new one is complete.

    Yields
    ------
    pathlib.Path
        The temporary folder, empty.

    Raises
    ------
    OperationFailedError
        The folder cannot be written.
    """
    path = Path(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _recover_folder(path)
        aside = path.parent / _temporary_name(path)
        new = aside / "new"
        old = aside / "old"
        try:
            new.mkdir(parents=True)
            yield new
            if path.exists():
                path.replace(old)
            try:
                new.replace(path)
            except BaseException:
                if old.exists():
                    old.replace(path)
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _recover_folder(path: Path) -> None:
    """Remove what killed writers of this folder left; put the old folder back if it is missing."""
    for aside in _left_by_killed(path.parent):
        if aside.name.endswith(f"-{path.name[-_NAME_LENGTH:]}") and aside.is_dir():
            if (aside / "old").exists() and not path.exists():
                (aside / "old").replace(path)
            shutil.rmtree(aside, ignore_errors=True)


def read_verified(file: Path) -> bytes:
    """Read a file of the package, whose SHA-256 must be the one that the folder notes.

    Raises
    ------
    InvalidDataError
        The file or the folder's `SHA256SUMS` is missing, damaged or another one.
    """
    checksums = _read_checksums(file.parent)
    content = file.read_bytes() if file.is_file() else b""
    if sha256_bytes(content) != checksums.get(file.name):
        raise InvalidDataError(f"{file} is not the file that was written. Fix: {_REINSTALL}.")
    return content


def write_verified(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files of a folder and their checksums at once; its other files stay as they are.

    Parameters
    ----------
    folder
        Need not exist.
    contents
        The content of each file by its name.
    """
    checksums = _read_checksums(folder) if (folder / CHECKSUM_FILE).exists() else {}
    with atomic_folder(folder) as new:
        if folder.is_dir():
            shutil.copytree(folder, new, dirs_exist_ok=True)
        for name, content in contents.items():
            (new / name).write_bytes(content)
            checksums[name] = sha256_bytes(content)
        lines = [f"{digest}  {name}\n" for name, digest in checksums.items()]
        (new / CHECKSUM_FILE).write_text("".join(lines), encoding="ascii", newline="\n")


def _read_checksums(folder: Path) -> dict[str, str]:
    """Read SHA-256 by file name."""
    file = folder / CHECKSUM_FILE
    try:
        lines = file.read_text(encoding="ascii").splitlines()
        pairs = [line.split("  ", 1) for line in lines]
        return {name: digest for digest, name in pairs}
    except (OSError, ValueError) as error:
        raise InvalidDataError(
            f"{file} is missing or damaged ({error}). Fix: {_REINSTALL}."
        ) from error
