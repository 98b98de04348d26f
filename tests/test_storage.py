import errno
import hashlib
import os
import signal
import stat
import threading
from pathlib import Path

import pytest
from conftest import run_python, start_python

from xraylib.errors import OperationFailedError
from xraylib.storage import atomic_folder, atomic_write, sha256, sha256_bytes

FAILURES = [ValueError("no"), KeyboardInterrupt(), OSError(errno.EIO, "bad disk")]


def test_a_file_appears_whole_with_its_folders(tmp_path):
    path = tmp_path / "a" / "b" / "table.csv"
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert temporary.suffix == ".csv"
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_write_leaves_what_was_there_and_nothing_more(tmp_path, failure):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(type(failure)), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise failure
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    script = """
import os, signal, sys
from xraylib.storage import atomic_write
with atomic_write(sys.argv[1]) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    process = start_python(script, path)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_named_with_the_fix(tmp_path):
    path = tmp_path / "scores.csv"
    with (
        pytest.raises(
            OperationFailedError, match=r"scores\.csv: No space left.*Fix: free some disk space"
        ),
        atomic_write(path) as temporary,
    ):
        temporary.unlink()
        temporary.symlink_to("/dev/full")
        temporary.write_text("new")
    assert not list(tmp_path.iterdir())


def test_a_file_where_a_folder_is_needed_is_named(tmp_path):
    (tmp_path / "runs").write_text("mine")
    with (
        pytest.raises(
            OperationFailedError, match=r"a\.csv.*a file stands where a folder is needed"
        ),
        atomic_write(tmp_path / "runs" / "deeper" / "a.csv"),
    ):
        pass
    assert (tmp_path / "runs").read_text() == "mine"


def filled(folder, text):
    folder.mkdir(exist_ok=True)
    (folder / "film.txt").write_text(text)
    return folder


def contents(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()
    }


def test_a_folder_takes_the_place_of_the_old_one(tmp_path):
    filled(tmp_path / "films", "old")
    (tmp_path / "films" / "more.txt").write_text("old")
    with atomic_folder(tmp_path / "films") as fresh:
        filled(fresh, "new")
        assert contents(tmp_path / "films") == {"film.txt": "old", "more.txt": "old"}
    assert contents(tmp_path) == {"films/film.txt": "new"}
    assert [p.name for p in tmp_path.iterdir()] == ["films"]


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("before", [True, False])
def test_a_failed_folder_leaves_what_was_there(tmp_path, failure, before):
    if before:
        filled(tmp_path / "films", "old")
    with pytest.raises(type(failure)), atomic_folder(tmp_path / "films") as fresh:
        filled(fresh, "half")
        raise failure
    assert contents(tmp_path) == ({"films/film.txt": "old"} if before else {})
    assert [p.name for p in tmp_path.iterdir()] == (["films"] if before else [])


def test_a_folder_whose_exchange_fails_comes_back(tmp_path, monkeypatch):
    films, rename = filled(tmp_path / "films", "old"), Path.replace

    def refuse(self, target):
        if (self / "fresh").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OperationFailedError, match="films"), atomic_folder(films) as fresh:
        (fresh / "fresh").touch()
    assert contents(tmp_path) == {"films/film.txt": "old"}


def test_hashes_of_files_and_bytes_agree(tmp_path):
    content = b"chest" * 100_000
    (tmp_path / "film").write_bytes(content)
    expected = hashlib.sha256(content).hexdigest()
    assert sha256(tmp_path / "film") == sha256_bytes(content) == expected


UMASK = """
import os, sys
from xraylib.storage import atomic_folder, atomic_write
os.umask(int(sys.argv[2], 8))
with atomic_write(sys.argv[1] + "/file") as temporary:
    temporary.write_text("")
with atomic_folder(sys.argv[1] + "/folder") as new:
    pass
"""


@pytest.mark.parametrize(
    ("umask", "file", "folder"), [("077", 0o600, 0o700), ("002", 0o664, 0o775)]
)
def test_the_umask_decides_who_may_read(tmp_path, umask, file, folder):
    run_python(UMASK, tmp_path, umask)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == file
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == folder


def test_a_file_is_on_disk_before_it_replaces_another(tmp_path, monkeypatch):
    order = []
    synced, replaced = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("sync"), synced(handle)))
    monkeypatch.setattr(Path, "replace", lambda *a: (order.append("replace"), replaced(*a)))
    with atomic_write(tmp_path / "file") as temporary:
        temporary.write_text("new")
    assert order == ["sync", "replace"]


def test_a_fifo_is_written_to_and_stays_one(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    received = []
    reader = threading.Thread(target=lambda: received.append(fifo.read_text()))
    reader.start()
    with atomic_write(fifo) as temporary:
        temporary.write_text("new")
    reader.join(timeout=30)
    assert received == ["new"] and stat.S_ISFIFO(fifo.stat().st_mode)
    assert list(tmp_path.iterdir()) == [fifo]


def test_devices_are_written_to_and_stay_devices():
    with atomic_write("/dev/null") as temporary:
        temporary.write_text("new")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    script = """
from xraylib.storage import atomic_write
with atomic_write("/dev/stdout") as temporary:
    temporary.write_text("new")
"""
    assert run_python(script) == "new"


def test_standard_output_may_be_a_file(tmp_path):
    script = """
from xraylib.storage import atomic_write
with atomic_write("/dev/stdout") as temporary:
    temporary.write_text("new")
"""
    with (tmp_path / "out").open("w") as out, start_python(script, stdout=out) as process:
        assert process.wait(timeout=60) == 0
    assert (tmp_path / "out").read_text() == "new"


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_is_followed(tmp_path, exists):
    target, link = tmp_path / "target", tmp_path / "link"
    if exists:
        target.write_text("old")
    link.symlink_to(target)
    with atomic_write(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink() and target.read_text() == "new"


def test_a_folder_is_refused_before_anything_is_written(tmp_path):
    with (
        pytest.raises(OperationFailedError, match="a folder stands where a file is needed"),
        atomic_write(tmp_path),
    ):
        pytest.fail("given a file to write")
    assert not list(tmp_path.iterdir())


def test_a_long_name_of_any_script_fits(tmp_path):
    path = tmp_path / ("\u80ba" * 80 + ".png")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert temporary.suffix == ".png"
    assert path.read_text() == "new"


KILLED = """
import os, signal, sys
from pathlib import Path
from xraylib import storage
with getattr(storage, sys.argv[2])(sys.argv[1]) as temporary:
    if sys.argv[2] == "atomic_folder" and len(sys.argv) > 3:
        Path.replace = lambda self, target: os.kill(os.getpid(), signal.SIGKILL)
        os.rename(sys.argv[1], temporary.parent / "old")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    start_python(KILLED, tmp_path / "file", "atomic_write").communicate(timeout=60)
    start_python(KILLED, tmp_path / "folder", "atomic_folder").communicate(timeout=60)
    assert len(list(tmp_path.glob(".partial-*"))) == 2
    # The file of a writer that still runs, and one whose name says nothing of its writer.
    (tmp_path / f".partial-{os.getpid()}-0-file").touch()
    (tmp_path / ".partial-older-file").touch()
    with atomic_write(tmp_path / "file") as temporary:
        temporary.write_text("new")
    with atomic_folder(tmp_path / "folder") as new:
        (new / "film").touch()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"file", "folder", f".partial-{os.getpid()}-0-file", ".partial-older-file"}


def test_a_folder_that_a_killed_writer_had_moved_aside_comes_back(tmp_path):
    folder = filled(tmp_path / "films", "old")
    start_python(KILLED, folder, "atomic_folder", "moved").communicate(timeout=60)
    assert not folder.exists()
    with pytest.raises(ValueError, match="no"), atomic_folder(folder):
        raise ValueError("no")
    assert contents(tmp_path) == {"films/film.txt": "old"}


def test_a_fix_names_the_variable_that_moves_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XRAYLIB_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XRAYLIB_CACHE", str(tmp_path / "data" / "cache"))
    full = OSError(errno.ENOSPC, "No space left on device")
    for path, words in (
        ("data/cache/a", "set XRAYLIB_CACHE to another folder"),
        ("data/a", "set XRAYLIB_DATA to another folder"),
        ("mine.csv", "name a file in another folder"),
    ):
        with pytest.raises(OperationFailedError, match=words), atomic_write(tmp_path / path):
            raise full
