"""The errors a user can fix, and writing files so that a reader sees the old one or the whole new one."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xraylib.errors import OperationFailedError

_MOVE = "move it with its XRAYLIB_ variable"
_FIXES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), f"free some disk space, or {_MOVE}"),
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS), f"make the folder writable, or {_MOVE}"
    ),
    **dict.fromkeys(
        (errno.ENOTDIR, errno.EEXIST), "a file stands where a folder is needed: move it away"
    ),
    errno.EISDIR: "a folder stands where a file is needed: name a file",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
}


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or an unwritable folder into `OperationFailedError` that names `path` and the fix."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FIXES:
            raise
        raise OperationFailedError(
            f"cannot write {path}: {error.strerror}. Fix: {_FIXES[error.errno]}."
        ) from error


@contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Give a temporary file beside `path`, with its suffix; on success it takes `path`'s place."""
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
    """Like `atomic_write` for a folder; an existing `path` is replaced only once the new one is complete."""
    path = Path(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=".partial-", suffix=f"-{path.name}"))
        new, old = aside / "new", aside / "old"
        try:
            new.mkdir()
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
