"""The errors a user can fix, and writing files so that a reader sees the old one or the whole new one."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class XraylibError(Exception):
    """Something the user can fix; the message names the thing and the fix. The command line exits with 1."""


class NotFound(XraylibError):
    """A name, data set, file of weights or device that is not there."""


class DataInvalid(XraylibError):
    """It is there and cannot be used: corrupt, mislabelled, of one class only, a patient in two splits."""


class Failed(XraylibError):
    """A download, a training or a write did not come to its end; nothing half-written is left."""


_FIXES = {
    errno.ENOSPC: "free some disk space, or move the folder with its XRAYLIB_ variable",
    errno.EDQUOT: "free some of your disk quota, or move the folder with its XRAYLIB_ variable",
    errno.EACCES: "make the folder writable, or move it with its XRAYLIB_ variable",
    errno.EPERM: "make the folder writable, or move it with its XRAYLIB_ variable",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
    errno.EROFS: "the disk is read-only: move the folder with its XRAYLIB_ variable",
    errno.ENOTDIR: "a file stands where a folder is needed: move it away",
    errno.EEXIST: "a file stands where a folder is needed: move it away",
}


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or an unwritable folder into `Failed` that names `path` and the mend."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FIXES:
            raise
        raise Failed(f"cannot write {path}: {error.strerror}. Fix: {_FIXES[error.errno]}.") from error


@contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Give a temporary file beside `path`; on success it takes `path`'s place, on failure it is removed.

    The temporary name keeps the suffix of `path`, because writers choose their format by it.

    Raises
    ------
    Failed
        When the folder cannot be written or the disk is full.
    """
    path = Path(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".partial-", suffix=f"-{path.name}")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Like `atomic` for a folder; an existing `path` is replaced only once the new one is complete."""
    path = Path(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=".partial-", suffix=f"-{path.name}"))
        try:
            yield temporary
            temporary.chmod(0o755)
            if path.exists():
                retired = temporary.with_name(temporary.name + "-old")
                path.replace(retired)
                try:
                    temporary.replace(path)
                except BaseException:
                    retired.replace(path)
                    raise
                shutil.rmtree(retired)
            else:
                temporary.replace(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
