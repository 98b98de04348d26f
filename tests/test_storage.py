import errno
import signal
from pathlib import Path

import pytest
from conftest import start_python

from xraylib.errors import OperationFailedError
from xraylib.storage import atomic_folder, atomic_write

FAILURES = [ValueError("no"), KeyboardInterrupt(), OSError(errno.EIO, "bad disk")]


def test_a_file_appears_whole_with_its_folders_and_is_readable_by_others(tmp_path):
    path = tmp_path / "a" / "b" / "table.csv"
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert temporary.suffix == ".csv"
        assert not path.exists()
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o644
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
    assert (tmp_path / "films").stat().st_mode & 0o777 == 0o755


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
