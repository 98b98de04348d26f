import hashlib
import http.server
import shutil
import sys
import threading
import types
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from test_manifest import FILES, kermany, places, plant  # noqa: F401

from xraylib import paths
from xraylib.datasets import catalog, fetch, images, manifest
from xraylib.errors import NotFoundError, OperationFailedError


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files, from a byte on if asked to; `cut_after` bytes the line goes dead."""

    cut_after = None
    asked: ClassVar[list] = []

    def log_message(self, *_):
        pass

    def do_GET(self):
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return self.send_error(404)
        content = path.read_bytes()
        asked = self.headers.get("Range")
        self.asked.append(asked)
        start = int(asked.split("=")[1].rstrip("-")) if asked else 0
        if asked and start >= len(content):
            return self.send_error(416)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : self.cut_after])


@pytest.fixture
def host(tmp_path):
    """A folder, and the address under which this machine serves it."""
    folder = tmp_path / "host"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Quiet, directory=folder)
    ) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def kermany_on(host, members=None):
    """The data set, served as a zip archive with the publisher's wrapping and what macOS adds."""
    folder, url = host
    members = members or {f"chest_xray/{file}": bytes([i]) * 500 for i, file in enumerate(FILES)}
    members |= {"__MACOSX/chest_xray/train/NORMAL/._x.jpeg": b"x", "chest_xray/.DS_Store": b"x"}
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for name, content in members.items():
            # Of a fixed date, so that the same members give the same bytes.
            archive.writestr(zipfile.ZipInfo(name) if isinstance(name, str) else name, content)
    return replace(catalog.get_dataset("kermany"), url=f"{url}/images.zip")


def left():
    return sorted(p.name for p in paths.DATA.rglob("*"))


def test_what_is_fetched_is_what_load_reads_and_is_not_fetched_again(host):
    dataset = kermany_on(host)
    root = fetch.fetch(dataset)
    assert root == paths.DATA / "chest_xray"
    assert sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()) == sorted(
        FILES
    )
    assert len(manifest.load("kermany")) == len(FILES)
    assert [p.name for p in (paths.DATA / "downloads").iterdir()] == ["ChestXRay2017.zip.sha256"]
    (host[0] / "images.zip").unlink()
    assert fetch.fetch(dataset) == root


def test_the_checksum_of_the_first_download_holds_for_every_later_one(host):
    shutil.rmtree(fetch.fetch(kermany_on(host)))
    other = kermany_on(host, {f"chest_xray/{file}": b"other" for file in FILES})
    with pytest.raises(
        OperationFailedError, match=r"first download.*ChestXRay2017\.zip\.sha256.*Fix: "
    ):
        fetch.fetch(other)
    assert left() == ["ChestXRay2017.zip.sha256", "downloads"]
    fetch.fetch(kermany_on(host))


def test_a_file_saved_by_hand_is_only_checked_and_unpacked(host):
    dataset = kermany_on(host)
    (paths.DATA / "downloads").mkdir(parents=True)
    shutil.move(host[0] / "images.zip", paths.DATA / "downloads" / "ChestXRay2017.zip")
    assert len(list(fetch.fetch(dataset).rglob("*.jpeg"))) == len(FILES)


def test_a_file_that_is_not_there_and_a_host_out_of_reach_are_named(host):
    for url in (f"{host[1]}/gone.zip", "http://127.0.0.1:9/images.zip"):
        with pytest.raises(
            OperationFailedError, match=rf"cannot download {url}.*Fix: .*ChestXRay2017\.zip"
        ):
            fetch.fetch(replace(catalog.get_dataset("kermany"), url=url))
    assert "chest_xray" not in left() and "ChestXRay2017.zip" not in left()


def special(name, mode):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def test_what_an_archive_would_write_elsewhere_stays_inside(host, tmp_path):
    members = {f"chest_xray/{file}": b"1" for file in FILES}
    members |= {"../../evil": b"1", "/tmp-evil": b"1", "a\\..\\evil": b"1"}
    members[special("chest_xray/train/NORMAL/link.jpeg", 0o120777)] = b"/etc/passwd"
    root = fetch.fetch(kermany_on(host, members))
    link = root / "train/NORMAL/link.jpeg"
    assert not link.is_symlink() and link.read_bytes() == b"/etc/passwd"
    assert not [path for path in tmp_path.rglob("*") if "evil" in path.name]
    assert sorted(path.name for path in root.iterdir()) == ["test", "train"]


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"../../evil": b"1"}, "no folders train and test"),
        ({f"chest_xray/{FILES[0]}": b"1"}, "no folders train and test"),
        ({f"chest_xray/{FILES[0]}": bytes(9000)}, "more than 8,000 bytes"),
    ],
)
def test_an_archive_that_cannot_be_trusted_leaves_nothing_in_the_way(
    host, members, said, monkeypatch
):
    monkeypatch.setattr(fetch, "MAX_UNPACKED", 8000)
    with pytest.raises(OperationFailedError, match=f"{said}.*Fix: "):
        fetch.fetch(kermany_on(host, members))
    assert left() == ["ChestXRay2017.zip", "downloads"]
    (paths.DATA / "downloads" / "ChestXRay2017.zip").unlink()
    fetch.fetch(kermany_on(host))
    assert len(manifest.load("kermany")) == len(FILES)


def test_what_is_no_whole_archive_is_kept_and_named_with_what_to_do(host):
    dataset = kermany_on(host)
    archive = paths.DATA / "downloads" / "ChestXRay2017.zip"
    whole = (host[0] / "images.zip").read_bytes()
    for content in (b"<html>busy</html>", whole[:900]):
        (host[0] / "images.zip").write_bytes(content)
        with pytest.raises(
            OperationFailedError, match=r"ChestXRay2017\.zip cannot be unpacked.*Fix: delete.*curl"
        ):
            fetch.fetch(dataset)
        assert archive.read_bytes() == content
        assert left() == ["ChestXRay2017.zip", "downloads"]
        archive.unlink()
    archive.write_bytes(whole)
    assert len(list(fetch.fetch(dataset).rglob("*.jpeg"))) == len(FILES)


def test_a_download_that_was_cut_short_goes_on_where_it_stopped(host, monkeypatch):
    dataset = kermany_on(host)
    whole = (host[0] / "images.zip").read_bytes()
    monkeypatch.setattr(Quiet, "cut_after", 900)
    monkeypatch.setattr(fetch, "_BLOCK", 100)
    with pytest.raises(OperationFailedError, match=r"cannot download.*Fix: try again"):
        fetch.fetch(dataset)
    partial = paths.DATA / "downloads" / "ChestXRay2017.zip.partial"
    assert partial.read_bytes() == whole[:900]
    monkeypatch.setattr(Quiet, "cut_after", None)
    monkeypatch.setattr(Quiet, "asked", [])
    assert len(list(fetch.fetch(dataset).rglob("*.jpeg"))) == len(FILES)
    assert Quiet.asked == ["bytes=900-"]
    assert "ChestXRay2017.zip.partial" not in left()


@pytest.mark.parametrize("excess", [0, 5])
def test_a_part_that_is_whole_or_of_another_file_does_not_stand_in_the_way(host, excess):
    dataset = kermany_on(host)
    partial = paths.DATA / "downloads" / "ChestXRay2017.zip.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes((host[0] / "images.zip").read_bytes() + b"x" * excess)
    assert len(list(fetch.fetch(dataset).rglob("*.jpeg"))) == len(FILES)


def test_a_disk_that_fills_while_unpacking_keeps_the_download_and_no_half_folder(host, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "extractall", full)
    with pytest.raises(OperationFailedError, match="XRAYLIB_"):
        fetch.fetch(kermany_on(host))
    assert left() == ["ChestXRay2017.zip", "ChestXRay2017.zip.sha256", "downloads"]


def test_arrays_become_images_pixel_for_pixel_and_no_patient_is_claimed(host):
    folder, url = host
    rng, arrays = np.random.default_rng(0), {}
    for split, n in (("train", 6), ("val", 3), ("test", 4)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.array([[0], [1]] * n, dtype=np.uint8)[:n]
    np.savez(folder / "made.npz", **arrays)
    dataset = replace(catalog.get_dataset("pneumoniamnist"), url=f"{url}/made.npz", expected=())
    with pytest.raises(OperationFailedError, match="28209eda62fecd6e6a2d98b1501bb15f"):
        fetch.fetch(dataset)
    assert left() == ["downloads"]
    digest = hashlib.md5((folder / "made.npz").read_bytes()).hexdigest()
    dataset = replace(dataset, checksum=f"md5:{digest}")
    fetch.fetch(dataset)
    table = manifest.load(dataset)
    assert table.attrs == {"dataset": "pneumoniamnist"}
    assert table["patient"].is_unique
    assert table.groupby("label")["kind"].unique().str[0].tolist() == ["normal", "unknown"]
    row = table.set_index("image_id").loc["val-00001"]
    assert (row["split"], row["label"]) == ("val", 1)
    np.testing.assert_array_equal(images.read_gray(row["path"]), arrays["val_images"][1])


def test_what_cannot_be_fetched_says_from_where(monkeypatch):
    with pytest.raises(OperationFailedError, match=r"nihcc\.app\.box\.com.*nih_external"):
        fetch.fetch("nih")
    with pytest.raises(NotFoundError, match="default, kaggle"):
        fetch.fetch("kermany", source="gopher")
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(OperationFailedError, match="pip install"):
        fetch.fetch("kermany", source="kaggle")


def test_kaggle_keeps_two_copies_and_one_is_taken(tmp_path, monkeypatch):
    hub = tmp_path / "hub"
    for inner in ("chest_xray", "chest_xray/chest_xray"):
        plant(hub / inner)
    asked = []
    fake = types.SimpleNamespace(dataset_download=lambda slug: asked.append(slug) or str(hub))
    monkeypatch.setitem(sys.modules, "kagglehub", fake)
    root = fetch.fetch("kermany", source="kaggle")
    assert asked == ["paultimothymooney/chest-xray-pneumonia"]
    assert sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()) == sorted(
        FILES
    )


def test_kaggle_out_of_reach_is_a_failed_fetch(monkeypatch):
    def refuse(slug):
        raise ConnectionError("Name or service not known")

    monkeypatch.setitem(sys.modules, "kagglehub", types.SimpleNamespace(dataset_download=refuse))
    with pytest.raises(OperationFailedError, match="kagglehub could not download"):
        fetch.fetch("kermany", source="kaggle")
    assert not (paths.DATA / "chest_xray").exists()
