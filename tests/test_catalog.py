import hashlib
import logging
import os
import sys
import types
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from local_host import BODY, md5, serving, special, zipped
from PIL import Image

from xraylib import paths
from xraylib.datasets import catalog, images
from xraylib.datasets import manifest as naming
from xraylib.datasets.phantom import PhantomSettings
from xraylib.datasets.records import Expected, RemoteFile
from xraylib.storage import DataInvalid, Failed, NotFound

COLUMNS = ["image_id", "path", "label", "patient", "kind", "split", "sha256"]
FILES = (
    "train/NORMAL/IM-0115-0001.jpeg",
    "train/NORMAL/NORMAL2-IM-0383-0001.jpeg",
    "train/PNEUMONIA/person1_virus_6.jpeg",
    "train/PNEUMONIA/person1_bacteria_1.jpeg",
    "test/NORMAL/IM-0001-0001.jpeg",
    "test/PNEUMONIA/person100_bacteria_475.jpeg",
)
COUNTS = {"train": (2, 2), "test": (1, 1)}


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", tmp_path / "data")
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")


@pytest.fixture
def host():
    with serving() as server:
        yield server


def plant(root, files=FILES):
    for number, file in enumerate(files):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number).save(root / file)
    return root


@pytest.fixture
def kermany():
    return plant(paths.DATA / "chest_xray")


@pytest.mark.parametrize(
    ("name", "patient", "kind", "number"),
    [
        ("person100_bacteria_475.jpeg", "person100_bacteria", "bacteria", "person100"),
        ("train/PNEUMONIA/person1_virus_6.jpeg", "person1_virus", "virus", "person1"),
        ("person1_virus_6_1.jpeg", "person1_virus", "virus", "person1"),
        ("IM-0115-0001.jpeg", "IM-0115", "normal", "IM-0115"),
        ("IM-0115-0001-0002.jpeg", "IM-0115", "normal", "IM-0115"),
        ("NORMAL2-IM-1427-0001.jpeg", "NORMAL2-IM-1427", "normal", "NORMAL2-IM-1427"),
        ("person100_bacteria_475_jpeg.rf.0a1B2c.jpg", "person100_bacteria", "bacteria", "person100"),
        ("NORMAL2-IM-1427-0001_jpeg.rf.ff00.jpg", "NORMAL2-IM-1427", "normal", "NORMAL2-IM-1427"),
        ("person7_fungus_3.jpeg", "person7_fungus_3", "unknown", "person7_fungus_3"),
        ("00001280_004.jpeg", "00001280_004", "unknown", "00001280_004"),
        ("scan.v2.PNG", "scan.v2", "unknown", "scan.v2"),
    ],
)
def test_names_tell_patient_and_kind(name, patient, kind, number):
    assert catalog.patient_and_kind(name) == (patient, kind)
    assert catalog.person_number(patient) == number


def test_nih_names_tell_the_patient():
    assert naming.nih_patient_and_kind("NORMAL/00001280_004.jpeg") == ("nih00001280", "unknown")
    assert catalog.person_number("nih00001280") == "nih00001280"


@given(st.text())
def test_any_name_is_read(name):
    patient, kind = catalog.patient_and_kind(name)
    assert kind in ("normal", "bacteria", "virus", "unknown")
    assert patient in name


@given(
    st.integers(0, 99_999),
    st.sampled_from(["bacteria", "virus"]),
    st.lists(st.integers(0, 9999), min_size=1, max_size=3),
    st.sampled_from([".jpeg", ".jpg", ".PNG", "_jpeg.rf.0123abcd.jpg", ""]),
)
def test_what_a_name_was_made_of_is_read_from_it(number, kind, films, suffix):
    name = "_".join([f"person{number}", kind, *map(str, films)]) + suffix
    assert catalog.patient_and_kind(name) == (f"person{number}_{kind}", kind)
    assert catalog.person_number(f"person{number}_{kind}") == f"person{number}"


def test_a_manifest_has_the_agreed_columns_types_and_order(kermany):
    manifest = catalog.load("kermany")
    assert list(manifest.columns) == COLUMNS
    assert manifest["image_id"].tolist() == sorted(Path(f).stem for f in FILES)
    assert manifest["label"].dtype.kind == "i"
    row = manifest.set_index("image_id").loc["person1_virus_6"]
    file = kermany / "train/PNEUMONIA/person1_virus_6.jpeg"
    assert row.to_dict() == {
        "path": str(file),
        "label": 1,
        "patient": "person1_virus",
        "kind": "virus",
        "split": "train",
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    assert manifest.attrs == {"dataset": "kermany", "patients_known": True}


def test_ids_do_not_depend_on_where_the_data_lies(kermany, tmp_path):
    here = catalog.load("kermany")
    kermany.rename(tmp_path / "elsewhere")
    there = catalog.load(tmp_path / "elsewhere")
    pd.testing.assert_frame_equal(here.drop(columns="path"), there.drop(columns="path"))
    assert there.attrs["dataset"].startswith("folder-elsewhere-")


def test_junk_is_passed_over(kermany, caplog):
    before = catalog.load("kermany")
    for junk in (
        ".DS_Store",
        "__MACOSX/train/NORMAL/._IM-0115-0001.jpeg",
        "train/NORMAL/._IM-0115-0001.jpeg",
    ):
        (kermany / junk).parent.mkdir(parents=True, exist_ok=True)
        (kermany / junk).write_bytes(b"junk")
    assert not caplog.records
    pd.testing.assert_frame_equal(catalog.load("kermany"), before)


def test_files_that_are_not_images_are_left_out_loudly(kermany, caplog):
    (kermany / "train/NORMAL/notes.txt").write_text("x")
    assert len(catalog.load("kermany")) == len(FILES)
    assert "notes.txt" in caplog.text


def test_split_and_class_folders_may_be_written_otherwise(tmp_path):
    files = [f"{s}/{c}/{s}{c}.png" for s in ("Train", "valid", "TEST") for c in ("normal", "Pneumonia")]
    manifest = catalog.load(str(plant(tmp_path / "mine", files)))
    assert manifest.groupby("split")["label"].agg(sorted).to_dict() == {
        s: [0, 1] for s in ("train", "val", "test")
    }


def test_nih_is_for_testing_only_and_groups_follow_ups():
    files = ("NORMAL/00000001_000.jpeg", "NORMAL/00000001_001.jpeg", "PNEUMONIA/00000002_000.jpeg")
    plant(paths.DATA / "nih_external", files)
    manifest = catalog.load("nih")
    assert set(manifest["split"]) == {"test"}
    assert manifest["patient"].tolist() == ["nih00000001", "nih00000001", "nih00000002"]
    assert manifest["kind"].tolist() == ["normal", "normal", "unknown"]


def test_names_without_a_patient_are_said(tmp_path, caplog):
    files = [f"train/{c}/{c}{i}.png" for c in ("NORMAL", "PNEUMONIA") for i in range(2)]
    manifest = catalog.load(plant(tmp_path / "mine", files))
    assert manifest["patient"].tolist() == manifest["image_id"].tolist()
    assert manifest.attrs["patients_known"] is False
    assert "each image counts as its own" in caplog.text


def test_the_phantom_is_written_on_first_use():
    small = replace(catalog.DATASETS["phantom"], phantom=PhantomSettings(images=24, size=32))
    manifest = catalog.load(small)
    assert len(manifest) == 24
    assert {"train", "test"} <= set(manifest["split"])
    assert manifest.attrs["dataset"] == "phantom"
    assert set(manifest[manifest["label"] == 1]["kind"]) <= {"bacteria", "virus"}
    assert manifest["path"].str.startswith(str(paths.CACHE / f"phantom-{small.phantom.key}")).all()


@pytest.mark.parametrize("name", ["kermany", "kermany-roboflow", "pneumoniamnist", "pneumoniamnist-224"])
def test_missing_data_names_the_place_and_the_command(name):
    with pytest.raises(NotFound) as failure:
        catalog.load(name)
    assert str(catalog.find(name).root) in str(failure.value)
    assert f"python -m xraylib data fetch {name}`" in str(failure.value)
    assert "XRAYLIB_DATA" in str(failure.value)


def test_missing_nih_data_names_its_publisher_and_not_a_command():
    with pytest.raises(NotFound, match="nihcc") as failure:
        catalog.load("nih")
    assert "data fetch" not in str(failure.value)


def test_a_misspelt_name_gets_a_hint():
    with pytest.raises(NotFound, match="Did you mean 'kermany'"):
        catalog.load("kermani")


def test_a_folder_that_does_not_exist_is_missing(tmp_path):
    with pytest.raises(NotFound, match="nowhere"):
        catalog.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (("train/NORMAL/a.txt.d/x.png",), "no JPEG or PNG"),
        (("train/NORMAL/a.png", "train/NORMAL/b.png"), "train split holds normals only"),
        (
            ("train/NORMAL/a.png", "train/PNEUMONIA/b.png", "test/PNEUMONIA/c.png"),
            "test split holds pneumonias",
        ),
        (("train/NORMAL/a.png", "train/COVID/b.png"), "COVID is neither NORMAL nor PNEUMONIA"),
        (("NORMAL/a.png", "PNEUMONIA/b.png"), "neither train nor val nor test but: NORMAL, PNEUMONIA"),
        (("train/NORMAL/a.png", "train/PNEUMONIA/a.jpg"), "same name 'a'"),
        (("train/NORMAL/person1_virus_2.png", "train/PNEUMONIA/a.jpg"), "among the normals"),
    ],
)
def test_a_folder_that_cannot_be_used_says_why(tmp_path, files, said):
    with pytest.raises(DataInvalid, match=said) as failure:
        catalog.load(plant(tmp_path / "mine", files))
    assert "mine" in str(failure.value)
    assert "Mend" in str(failure.value)


def test_an_empty_folder_is_said(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(DataInvalid, match="no folder at all"):
        catalog.load(tmp_path / "mine")


def test_an_unreadable_file_is_named(kermany, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(catalog, "_sha256", refuse)
    with pytest.raises(DataInvalid, match=r"cannot read .*\.jpeg"):
        catalog.load("kermany")


def test_files_are_hashed_once_until_one_changes(kermany, monkeypatch):
    hashed = []
    sha256 = catalog._sha256
    monkeypatch.setattr(catalog, "_sha256", lambda path: hashed.append(path) or sha256(path))
    first = catalog.load("kermany")
    pd.testing.assert_frame_equal(catalog.load("kermany"), first)
    assert len(hashed) == len(FILES)
    changed = kermany / FILES[0]
    changed.write_bytes(BODY)
    manifest = catalog.load("kermany").set_index("image_id")
    assert manifest.loc["IM-0115-0001", "sha256"] == hashlib.sha256(BODY).hexdigest()


def test_quarantined_images_are_left_out_loudly(kermany, caplog):
    (kermany / FILES[1]).write_bytes(b"no image")
    findings = images.audit(catalog.load("kermany"), progress=False)
    images.write_quarantine(findings, catalog.quarantine_path("kermany"))
    caplog.clear()
    kept = catalog.load("kermany")
    assert sorted(set(catalog.index(catalog.find("kermany"))["image_id"]) - set(kept["image_id"])) == [
        "NORMAL2-IM-0383-0001"
    ]
    assert "1 of 6 images are left out" in caplog.text
    assert kept.index.tolist() == list(range(5))


def kermany_on(host, members=None, **changes):
    members = members or {f"chest_xray/{file}": BODY[i : i + 500] for i, file in enumerate(FILES)}
    members = members | {"__MACOSX/chest_xray/train/NORMAL/._x.jpeg": b"x", "chest_xray/.DS_Store": b"x"}
    host.files["ChestXRay2017.zip"] = zipped(paths.DATA.parent / "made.zip", members).read_bytes()
    return replace(catalog.find("kermany"), expected=(Expected(COUNTS),), **changes)


def left():
    return sorted(p.name for p in paths.DATA.rglob("*") if not p.name.endswith(".lock"))


def test_fetch_unpacks_what_load_then_reads(host):
    dataset = kermany_on(host)
    root = catalog.fetch(dataset, base_url=host.url, progress=False)
    assert root == paths.DATA / "chest_xray"
    assert sorted(p.relative_to(root).as_posix() for p in root.rglob("*.*")) == sorted(FILES)
    assert len(catalog.load("kermany")) == len(FILES)
    assert sorted(p.name for p in (paths.DATA / "downloads").glob("[!.]*")) == ["ChestXRay2017.zip.sha256"]
    assert not list(paths.DATA.glob(".partial*"))


def test_data_that_is_there_is_not_fetched_again(host, kermany):
    assert catalog.fetch(kermany_on(host), base_url=host.url) == kermany
    assert host.asked == []


def test_two_at_once_fetch_once(host):
    dataset = kermany_on(host)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(catalog.fetch, dataset, base_url=host.url, progress=False) for _ in range(2)]
    assert {future.result() for future in both} == {paths.DATA / "chest_xray"}
    assert len(host.asked) == 1


def test_an_empty_folder_is_filled(host):
    (paths.DATA / "chest_xray").mkdir(parents=True)
    root = catalog.fetch(kermany_on(host), base_url=host.url, progress=False)
    assert len(list(root.rglob("*.jpeg"))) == len(FILES)


def test_the_three_archives_of_the_roboflow_export_become_three_splits(host, tmp_path):
    for number, (part, wrap) in enumerate([("train", ""), ("valid", ""), ("test", "test/")]):
        normal = f"{wrap}NORMAL/IM-000{number}-0001_jpeg.rf.0a{number}.jpg"
        pneumonia = f"{wrap}PNEUMONIA/person{number}_bacteria_1_jpeg.rf.0b{number}.jpg"
        archive = zipped(tmp_path / "made.zip", {normal: BODY[:9], pneumonia: BODY[:8]})
        host.files[f"chest-xray-roboflow-{part}.zip"] = archive.read_bytes()
    catalog.fetch("kermany-roboflow", base_url=host.url, progress=False)
    manifest = catalog.load("kermany-roboflow").set_index("image_id")
    assert manifest["split"].value_counts().to_dict() == {"train": 2, "val": 2, "test": 2}
    assert manifest.loc["person1_bacteria_1", ["split", "patient"]].tolist() == ["val", "person1_bacteria"]


def mnist_on(host, tmp_path):
    pixels, arrays = np.random.default_rng(0), {}
    for split, n in (("train", 6), ("val", 3), ("test", 4)):
        arrays[f"{split}_images"] = pixels.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.array([[0], [1]] * n, dtype=np.uint8)[:n]
    np.savez(tmp_path / "made.npz", **arrays)
    body = (tmp_path / "made.npz").read_bytes()
    host.files["pneumoniamnist.npz"] = body
    dataset = catalog.find("pneumoniamnist")
    file = replace(dataset.files[0], hash=md5(body))
    expected = (Expected({"train": (3, 3), "val": (2, 1), "test": (2, 2)}),)
    return replace(dataset, files=(file,), expected=expected), arrays


def test_arrays_become_images_pixel_for_pixel_and_no_patient_is_claimed(host, tmp_path, caplog):
    dataset, arrays = mnist_on(host, tmp_path)
    catalog.fetch(dataset, base_url=host.url, progress=False)
    manifest = catalog.load(dataset)
    assert manifest.attrs == {"dataset": "pneumoniamnist", "patients_known": False}
    assert manifest["patient"].is_unique
    assert manifest.groupby("label")["kind"].unique().str[0].tolist() == ["normal", "unknown"]
    row = manifest.set_index("image_id").loc["val-00001"]
    assert (row["split"], row["label"]) == ("val", 1)
    np.testing.assert_array_equal(images.read_gray(row["path"]), arrays["val_images"][1])
    assert catalog.verify(dataset)["images"].tolist() == [2, 2, 3, 3, 2, 1]


def test_the_published_checksum_guards_the_arrays(host, tmp_path):
    mnist_on(host, tmp_path)
    with pytest.raises(Failed, match="28209eda62fecd6e6a2d98b1501bb15f"):
        catalog.fetch("pneumoniamnist", base_url=host.url, progress=False)
    assert left() == ["downloads"]


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"../../evil": b"1"}, "outside its folder"),
        ({"/evil": b"1"}, "outside its folder"),
        ({special("chest_xray/link", 0o120777): b"/etc"}, "link"),
        ({f"chest_xray/{FILES[0]}": b"1"}, "no folder with test and train"),
    ],
)
def test_an_archive_that_cannot_be_trusted_leaves_nothing(host, members, said):
    with pytest.raises(Failed, match=said):
        catalog.fetch(kermany_on(host, members), base_url=host.url, progress=False)
    assert left() == ["downloads"]
    # What was refused must not stand in the way of the right file.
    catalog.fetch(kermany_on(host), base_url=host.url, progress=False)
    assert len(catalog.load("kermany")) == len(FILES)


def test_a_bomb_leaves_nothing(host, tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("chest_xray/train/NORMAL/a.jpeg", b"\0" * 2_000_000)
    dataset = kermany_on(host)
    host.files["ChestXRay2017.zip"] = (tmp_path / "bomb.zip").read_bytes()
    with pytest.raises(Failed, match="100 times"):
        catalog.fetch(dataset, base_url=host.url, progress=False)
    assert left() == ["downloads"]


def test_a_disk_that_fills_while_unpacking_leaves_no_half_folder(host, monkeypatch):
    def full(packed, output, length):
        output.write(packed.read(100))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("xraylib.datasets.archives.shutil.copyfileobj", full)
    with pytest.raises(Failed, match="XRAYLIB_"):
        catalog.fetch(kermany_on(host), base_url=host.url, progress=False)
    assert left() == ["ChestXRay2017.zip", "ChestXRay2017.zip.sha256", "downloads"]


def test_nih_cannot_be_fetched_and_the_message_says_from_where():
    with pytest.raises(Failed, match=r"nihcc\.app\.box\.com.*nih_external"):
        catalog.fetch("nih")


def test_an_unknown_source_is_named():
    with pytest.raises(NotFound, match="default, kaggle"):
        catalog.fetch("kermany", source="gopher")


def test_kaggle_without_kagglehub_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(Failed, match="pip install"):
        catalog.fetch("kermany", source="kaggle")


def test_kaggle_keeps_two_copies_and_one_is_taken(tmp_path, monkeypatch):
    hub = tmp_path / "hub"
    plant(hub / "chest_xray")
    plant(hub / "chest_xray" / "chest_xray")
    (hub / "chest_xray/train/NORMAL/.DS_Store").write_bytes(b"x")
    asked = []
    fake = types.SimpleNamespace(dataset_download=lambda slug: asked.append(slug) or str(hub))
    monkeypatch.setitem(sys.modules, "kagglehub", fake)
    root = catalog.fetch("kermany", source="kaggle")
    assert asked == ["paultimothymooney/chest-xray-pneumonia"]
    assert sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()) == sorted(FILES)


def test_kaggle_out_of_reach_is_a_failed_fetch(monkeypatch):
    def refuse(slug):
        raise ConnectionError("Name or service not known")

    monkeypatch.setitem(sys.modules, "kagglehub", types.SimpleNamespace(dataset_download=refuse))
    with pytest.raises(Failed, match=r"www\.kaggle\.com"):
        catalog.fetch("kermany", source="kaggle")
    assert not (paths.DATA / "chest_xray").exists()


def test_verify_counts_and_names_the_content(kermany):
    dataset = replace(catalog.find("kermany"), expected=(Expected(COUNTS),))
    table = catalog.verify(dataset)
    assert table[["split", "label", "images", "expected"]].values.tolist() == [
        ["test", 0, 1, 1],
        ["test", 1, 1, 1],
        ["train", 0, 2, 2],
        ["train", 1, 2, 2],
    ]
    before = table.attrs["fingerprint"]
    (kermany / FILES[0]).write_bytes(BODY)
    assert catalog.verify(dataset).attrs["fingerprint"] != before


def test_verify_names_what_differs_from_the_nearest_edition(kermany):
    editions = (Expected({"train": (900, 900)}), Expected({"train": (2, 3), "val": (1, 1), "test": (1, 1)}))
    with pytest.raises(DataInvalid) as failure:
        catalog.verify(replace(catalog.find("kermany"), expected=editions))
    assert "train/PNEUMONIA holds 2 images, not 3" in str(failure.value)
    assert "val/NORMAL holds 0 images, not 1" in str(failure.value)
    assert "test" not in str(failure.value).split(":", 1)[1].split("Mend")[0]


def test_an_incomplete_edition_that_is_known_is_a_warning(kermany, caplog):
    edition = Expected(COUNTS, note="the 16 images of the val folder are missing")
    catalog.verify(replace(catalog.find("kermany"), expected=(edition,)))
    assert [r.levelno for r in caplog.records] == [logging.WARNING]
    assert "16 images" in caplog.text


def test_where_only_sums_are_published_sums_are_compared(kermany):
    dataset = replace(catalog.find("kermany"), expected=(Expected({"train": 4, "test": 2}),))
    assert catalog.verify(dataset)["expected"].isna().all()
    with pytest.raises(DataInvalid, match="train holds 4 images, not 5"):
        catalog.verify(replace(dataset, expected=(Expected({"train": 5, "test": 2}),)))


def test_a_phantom_that_lost_an_image_is_noticed():
    small = replace(catalog.DATASETS["phantom"], phantom=PhantomSettings(images=24, size=32))
    manifest = catalog.load(small)
    assert catalog.verify(small)["images"].sum() == 24
    Path(manifest["path"][0]).unlink()
    with pytest.raises(DataInvalid, match="23 of 24"):
        catalog.verify(small)


def test_every_data_set_states_source_licence_and_citation():
    table = catalog.describe().set_index("name")
    assert table.index.tolist() == list(catalog.DATASETS)
    assert not table["present"].any()
    assert (table[["title", "licence", "source"]] != "").all(axis=None)
    assert all(d.citation and (d.files or d.by_hand or d.phantom) for d in catalog.DATASETS.values())
    assert all(
        isinstance(f, RemoteFile) and f.url.startswith("https://")
        for d in catalog.DATASETS.values()
        for f in d.files
    )


def test_describe_counts_what_is_there(kermany):
    (paths.DATA / "nih_external" / "COVID").mkdir(parents=True)
    table = catalog.describe().set_index("name")
    assert table.loc["kermany", ["present", "images"]].tolist() == [True, len(FILES)]
    assert table.loc["nih", ["present", "images"]].tolist() == [False, 0]


@pytest.mark.skipif("XRAYLIB_DATA" not in os.environ, reason="needs the real radiographs under XRAYLIB_DATA")
def test_the_real_data_reads_as_published(monkeypatch):
    monkeypatch.setattr(paths, "DATA", paths.ROOT / os.environ["XRAYLIB_DATA"])
    if not catalog.find("kermany").root.is_dir():
        pytest.skip("no chest_xray folder there")
    assert catalog.verify("kermany")["images"].sum() in (5840, 5856)
    manifest = catalog.load("kermany")
    pneumonia = manifest[manifest["label"] == 1]
    assert set(pneumonia["kind"]) == {"bacteria", "virus"}
    groups = pneumonia.groupby("split")["patient"].agg(set)
    assert len(groups["test"]) == 203
    assert groups["test"].isdisjoint(groups["train"])
    numbers = [{catalog.person_number(p) for p in groups[split]} for split in ("test", "train")]
    assert (len(numbers[0]), len(numbers[0] & numbers[1])) == (202, 170)
