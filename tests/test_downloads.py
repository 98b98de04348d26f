import errno
import hashlib
import io
import socket
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest
from local_host import BODY, md5, serving, special, zipped

from xraylib.datasets import archives, fetch
from xraylib.datasets.records import RemoteFile
from xraylib.storage import Failed


@pytest.fixture
def host():
    with serving() as server:
        server.files["film.bin"] = BODY
        yield server


def get(host, folder, digest=None, **options):
    file = RemoteFile(f"{host.url}/film.bin", "film.bin", digest)
    return fetch.download(file, folder, progress=False, wait=0.01, **options)


def seen(folder: Path):
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


def test_a_published_checksum_is_checked_and_nothing_else_is_left(host, tmp_path):
    path = get(host, tmp_path, md5(BODY))
    assert path.read_bytes() == BODY
    assert seen(tmp_path) == ["film.bin"]


def test_a_file_that_is_there_is_not_asked_for_again(host, tmp_path):
    get(host, tmp_path, md5(BODY))
    get(host, tmp_path, md5(BODY))
    assert len(host.asked) == 1


def test_without_a_published_checksum_that_of_the_first_download_is_kept_and_holds(host, tmp_path):
    path = get(host, tmp_path)
    assert (tmp_path / "film.bin.sha256").read_text().split() == [
        hashlib.sha256(BODY).hexdigest(),
        "film.bin",
    ]
    path.unlink()
    host.files["film.bin"] = BODY[::-1]
    with pytest.raises(Failed, match=r"first download.*film\.bin\.sha256"):
        get(host, tmp_path)


def test_a_mirror_is_asked_when_given(host, tmp_path):
    file = RemoteFile("http://nowhere.invalid/a?b=c", "film.bin", md5(BODY))
    path = fetch.download(file, tmp_path, base_url=host.url + "/", progress=False)
    assert path.read_bytes() == BODY


def test_a_cut_is_mended_by_asking_for_the_rest(host, tmp_path):
    host.cut, host.cuts = 2 * 65_536, 2
    assert get(host, tmp_path, md5(BODY)).read_bytes() == BODY
    assert host.asked == [None, "bytes=131072-", "bytes=262144-"]


def test_a_later_call_goes_on_where_an_earlier_one_gave_up(host, tmp_path):
    host.cut, host.cuts = 70_000, 1
    with pytest.raises(Failed, match="cut before the end"):
        get(host, tmp_path, md5(BODY), attempts=1)
    assert seen(tmp_path) == ["film.bin.part"]
    assert get(host, tmp_path, md5(BODY)).read_bytes() == BODY
    assert host.asked[-1] == "bytes=65536-"
    assert seen(tmp_path) == ["film.bin"]


def test_a_server_without_ranges_is_asked_for_the_whole_again(host, tmp_path):
    host.ranges, host.cut, host.cuts = False, 50_000, 2
    assert get(host, tmp_path, md5(BODY)).read_bytes() == BODY


def test_a_server_that_always_cuts_at_the_same_byte_is_given_up(host, tmp_path):
    host.ranges, host.cut, host.cuts = False, 50_000, 99
    with pytest.raises(Failed, match="cut before the end"):
        get(host, tmp_path, md5(BODY), attempts=3)
    assert len(host.asked) <= 4


def test_a_whole_part_of_an_earlier_run_is_taken(host, tmp_path):
    (tmp_path / "film.bin.part").write_bytes(BODY)
    assert get(host, tmp_path, md5(BODY)).read_bytes() == BODY


def test_a_part_longer_than_the_file_is_dropped(host, tmp_path):
    (tmp_path / "film.bin.part").write_bytes(BODY + b"more")
    assert get(host, tmp_path, md5(BODY)).read_bytes() == BODY


def test_a_wrong_checksum_names_file_expected_and_got_and_leaves_nothing(host, tmp_path):
    with pytest.raises(Failed) as failure:
        get(host, tmp_path, md5(b"other"))
    for said in ("film.bin", md5(b"other"), md5(BODY).removeprefix("md5:")):
        assert said in str(failure.value)
    assert seen(tmp_path) == []


def test_a_busy_server_is_asked_again(host, tmp_path):
    host.statuses = [503, 429]
    assert get(host, tmp_path, md5(BODY)).read_bytes() == BODY


@pytest.mark.parametrize("status", [403, 404])
def test_a_refusal_is_not_asked_again(host, tmp_path, status):
    host.statuses = [status] * 5
    with pytest.raises(Failed, match=f"status {status}"):
        get(host, tmp_path)
    assert len(host.asked) == 1
    assert seen(tmp_path) == []


def test_no_network_names_host_and_mend(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    file = RemoteFile(f"http://{place}/film.bin", "film.bin")
    with pytest.raises(Failed) as failure:
        fetch.download(file, tmp_path, progress=False, attempts=2, wait=0.01)
    assert place in str(failure.value)
    assert str(tmp_path / "film.bin") in str(failure.value)
    assert seen(tmp_path) == []


def test_a_full_disk_is_named_and_leaves_nothing(host, tmp_path, monkeypatch):
    def full(path, *arguments, **options):
        file = opened(path, *arguments, **options)
        if path.suffix != ".part":
            return file

        class Full(io.BufferedIOBase):
            def write(self, block):
                file.write(block[:1000])
                raise OSError(errno.ENOSPC, "No space left on device")

            def close(self):
                file.close()

        return Full()

    opened = Path.open
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(Failed, match="No space left"):
        get(host, tmp_path, md5(BODY))
    assert seen(tmp_path) == []


def test_unpacking_leaves_out_what_macos_adds(tmp_path):
    members = {"a/x.jpeg": b"1", "__MACOSX/a/._x.jpeg": b"2", "a/.DS_Store": b"3", "a/._x.jpeg": b"4"}
    archives.unpack(zipped(tmp_path / "z.zip", members), tmp_path / "out")
    assert [p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")] == [
        "a/x.jpeg"
    ]


@pytest.mark.parametrize(
    "name",
    ["../evil.jpeg", "a/../../evil.jpeg", "/evil.jpeg", "C:\\evil.jpeg", "a\\..\\..\\evil", "\\\\h\\s\\e"],
)
def test_a_path_that_leads_out_is_refused(tmp_path, name):
    inside = tmp_path / "in"
    inside.mkdir()
    archive = zipped(inside / "z.zip", {"good.jpeg": b"1", name: b"2"})
    with pytest.raises(Failed, match="outside its folder"):
        archives.unpack(archive, inside / "out")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["in", "z.zip"]


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_special_files_are_refused(tmp_path, kind):
    archive = zipped(tmp_path / "z.zip", {special("link", kind | 0o777): b"/etc/passwd"})
    with pytest.raises(Failed, match="link or a special file"):
        archives.unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (archives.Limits(files=1), "2 files"),
        (archives.Limits(total_bytes=1000, ratio=1e9), "more than 1000"),
        (archives.Limits(), "100 times"),
    ],
)
def test_a_bomb_is_refused_before_anything_is_written(tmp_path, limits, said):
    members = {"a.jpeg": b"\0" * 1_000_000, "b.jpeg": b"1"}
    archive = zipped(tmp_path / "z.zip", members, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(Failed, match=said):
        archives.unpack(archive, tmp_path / "out", limits)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("where", [0, 40, 200, -30])
def test_a_damaged_archive_is_named(tmp_path, where):
    archive = zipped(tmp_path / "z.zip", {"a.jpeg": BODY[:1000]}, compression=zipfile.ZIP_DEFLATED)
    content = bytearray(archive.read_bytes())
    content[where : where + 8 if where >= 0 else None] = b"\xff" * (8 if where >= 0 else -where)
    archive.write_bytes(content)
    with pytest.raises(Failed, match=r"z\.zip"):
        archives.unpack(archive, tmp_path / "out")


def test_the_folder_nearest_to_the_root_is_found(tmp_path):
    for folder in (
        "deep/er/train",
        "deep/er/test",
        "wrap/Train",
        "wrap/TEST",
        "wrap/again/train",
        "wrap/again/test",
    ):
        (tmp_path / folder).mkdir(parents=True)
    assert archives.folder_holding(tmp_path, {"train", "test"}) == tmp_path / "wrap"
    assert archives.folder_holding(tmp_path, {"nothing"}) is None


@pytest.mark.parametrize(
    "damage",
    [
        {"val_labels": np.array([[0], [7], [1]])},
        {"test_images": np.zeros((3, 4, 4), np.float32)},
        {"train_images": np.array([{}, {}, {}], dtype=object)},
        {"train_labels": None},
    ],
)
def test_arrays_of_another_kind_are_refused(tmp_path, damage):
    arrays = {}
    for split in ("train", "val", "test"):
        arrays |= {
            f"{split}_images": np.zeros((3, 4, 4), np.uint8),
            f"{split}_labels": np.array([[0], [1], [1]]),
        }
    arrays = {name: value for name, value in (arrays | damage).items() if value is not None}
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(Failed, match=r"a\.npz"):
        archives.unpack_arrays(tmp_path / "a.npz", tmp_path / "out")
