import errno
import os
import resource
import signal
import threading
from pathlib import Path

import pytest
from conftest import run_python, start_python

from xraylib.storage import Failed, atomic, atomic_folder

pytestmark = pytest.mark.filterwarnings("error")


def test_a_file_appears_whole_with_its_folders_and_is_readable_by_others(tmp_path):
    path = tmp_path / "a" / "b" / "table.csv"
    with atomic(path) as temporary:
        temporary.write_text("new")
        assert temporary.suffix == ".csv"
        assert not path.exists()
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "failure", [ValueError("no"), KeyboardInterrupt(), SystemExit(1), OSError(errno.EIO, "bad disk")]
)
@pytest.mark.parametrize("before", [None, "old"])
def test_a_failed_write_leaves_what_was_there_and_nothing_more(tmp_path, failure, before):
    path = tmp_path / "table.csv"
    if before:
        path.write_text(before)
    with pytest.raises(type(failure)), atomic(path) as temporary:
        temporary.write_text("half")
        raise failure
    assert [p.read_text() for p in tmp_path.iterdir()] == ([before] if before else [])


def test_a_reader_never_sees_half_a_file(tmp_path):
    path, writing = tmp_path / "table.csv", threading.Event()
    contents = {letter * 300_000 for letter in "ab"}

    def write():
        for number in range(60):
            with atomic(path) as temporary:
                temporary.write_text("ab"[number % 2] * 300_000)
            writing.set()
        writing.clear()

    writer = threading.Thread(target=write)
    writer.start()
    assert writing.wait(10)
    seen = set()
    while writer.is_alive():
        seen.add(path.read_text())
    writer.join()
    assert seen and seen <= contents


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    script = """
import os, signal, sys
from xraylib.storage import atomic
with atomic(sys.argv[1]) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    process = start_python(script, path)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_named_with_the_mend(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("old")
    with pytest.raises(Failed, match=r"scores\.csv: No space left.*free some disk space"):  # noqa: SIM117
        with atomic(path) as temporary:
            temporary.unlink()
            temporary.symlink_to("/dev/full")
            temporary.write_text("new")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


WRITE = """
import os, sys
from xraylib.storage import Failed
from xraylib.storage import atomic
if len(sys.argv) > 2:
    os.setuid(int(sys.argv[2]))
try:
    with atomic(sys.argv[1]) as temporary:
        temporary.write_bytes(bytes(100_000))
except Failed as error:
    print(error)
"""


def test_a_limit_on_file_sizes_is_named_with_the_mend(tmp_path):
    path = tmp_path / "pixels.npy"

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    said = run_python(WRITE, path, preexec_fn=limited)
    assert f"cannot write {path}: File too large" in said
    assert "ulimit -f" in said
    assert not list(tmp_path.iterdir())


def test_a_folder_of_another_user_is_named_with_the_mend(tmp_path):
    tmp_path.chmod(0o500)
    nobody = [65534] if os.geteuid() == 0 else []
    said = run_python(WRITE, tmp_path / "scores.csv", *nobody)
    assert f"cannot write {tmp_path / 'scores.csv'}: Permission denied. Fix: make the folder writable" in said
    assert "XRAYLIB_" in said


def test_a_file_where_a_folder_is_needed_is_named(tmp_path):
    (tmp_path / "runs").write_text("mine")
    for path in (tmp_path / "runs" / "a.csv", tmp_path / "runs" / "deeper" / "a.csv"):
        with (
            pytest.raises(Failed, match=r"a\.csv.*a file stands where a folder is needed"),
            atomic(path),
        ):
            pass
    assert (tmp_path / "runs").read_text() == "mine"


def test_an_error_that_is_not_about_storage_comes_through(tmp_path):
    with pytest.raises(OSError, match="bad disk"), atomic(tmp_path / "a"):
        raise OSError(errno.EIO, "bad disk")


def filled(folder, text):
    folder.mkdir(exist_ok=True)
    (folder / "film.txt").write_text(text)
    return folder


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_a_folder_takes_the_place_of_the_old_one(tmp_path):
    filled(tmp_path / "films", "old")
    (tmp_path / "films" / "more.txt").write_text("old")
    with atomic_folder(tmp_path / "films") as fresh:
        filled(fresh, "new")
        assert contents(tmp_path / "films") == {"film.txt": "old", "more.txt": "old"}
    assert contents(tmp_path) == {"films/film.txt": "new"}
    assert (tmp_path / "films").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("failure", [ValueError("no"), KeyboardInterrupt(), OSError(errno.EIO, "bad disk")])
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
    with pytest.raises(Failed, match="films"), atomic_folder(films) as fresh:
        (fresh / "fresh").touch()
    assert contents(tmp_path) == {"films/film.txt": "old"}
    assert [p.name for p in tmp_path.iterdir()] == ["films"]
