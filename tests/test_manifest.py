import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from conftest import REAL_DATA
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from xraylib import paths
from xraylib.datasets import audit, catalog, manifest, splits, verify
from xraylib.datasets.phantom import PhantomSettings
from xraylib.errors import InvalidDataError, NotFoundError

COLUMNS = ["image_id", "path", "label", "patient", "kind", "split", "sha256"]
CLASSES = ("NORMAL", "PNEUMONIA")
FILES = (
    "train/NORMAL/IM-0115-0001.jpeg",
    "train/NORMAL/NORMAL2-IM-0383-0001.jpeg",
    "train/PNEUMONIA/person300_virus_6.jpeg",
    "train/PNEUMONIA/person300_bacteria_1.jpeg",
    "test/NORMAL/IM-0001-0001.jpeg",
    "test/PNEUMONIA/person100_bacteria_475.jpeg",
)


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("XRAYLIB_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XRAYLIB_CACHE", str(tmp_path / "cache"))


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
        ("person100_bacteria_475.jpeg", "test-person100", "bacteria", "person100"),
        ("person77_bacteria_229.jpeg", "person77", "bacteria", "person77"),
        ("person77_virus_140.jpeg", "test-person77", "virus", "person77"),
        ("person1609_virus_2790.jpeg", "person1609", "virus", "person1609"),
        ("person1608_virus_2786.jpeg", "test-person1608", "virus", "person1608"),
        ("train/PNEUMONIA/person300_virus_6.jpeg", "person300", "virus", "person300"),
        ("person300_bacteria_6_1.jpeg", "person300", "bacteria", "person300"),
        ("IM-0115-0001-0002.jpeg", "IM-0115", "normal", "IM-0115"),
        ("IM-0111-0001.jpeg", "test-IM-0111", "normal", "IM-0111"),
        ("NORMAL2-IM-0111-0001.jpeg", "test-NORMAL2-IM-0111", "normal", "IM-0111"),
        ("NORMAL2-IM-0381-0001.jpeg", "test-NORMAL2-IM-0381", "normal", "IM-0381"),
        ("NORMAL2-IM-0383-0001.jpeg", "IM-0383", "normal", "IM-0383"),
        ("IM-0383-0001.jpeg", "IM-0383", "normal", "IM-0383"),
        ("person100_bacteria_475_jpeg.rf.0a1B2c.jpg", "test-person100", "bacteria", "person100"),
        ("NORMAL2-IM-1427-0001_jpeg.rf.ff00.jpg", "IM-1427", "normal", "IM-1427"),
        ("person7_fungus_3.jpeg", "person7_fungus_3", "unknown", "person7_fungus_3"),
        ("scan.v2.PNG", "scan.v2", "unknown", "scan.v2"),
        ("NORMAL-1110860-0001.jpeg", "patient1110860", "normal", "1110860"),
        ("BACTERIA-1008087-0001.jpeg", "patient1008087", "bacteria", "1008087"),
        ("VIRUS-1008087-0002.jpeg", "patient1008087", "virus", "1008087"),
    ],
)
def test_names_tell_patient_and_kind(name, patient, kind, number):
    assert manifest.patient_and_kind(name) == (patient, kind)
    assert manifest.other_readings(name)["same number"] == number


@given(st.text())
def test_any_name_is_read(name):
    patient, kind = manifest.patient_and_kind(name)
    assert kind in ("normal", "bacteria", "virus", "unknown")
    assert patient in name or kind != "unknown"


@given(
    st.integers(1946, 99_999),
    st.sampled_from(["bacteria", "virus"]),
    st.lists(st.integers(0, 9999), min_size=1, max_size=3),
    st.sampled_from([".jpeg", ".jpg", ".PNG", "_jpeg.rf.0123abcd.jpg", ""]),
)
def test_what_a_name_was_made_of_is_read_from_it(number, kind, images, suffix):
    name = "_".join([f"person{number}", kind, *map(str, images)]) + suffix
    assert manifest.patient_and_kind(name) == (f"person{number}", kind)
    assert manifest.other_readings(name)["same number and kind"] == f"{kind}-{number}"


@pytest.mark.parametrize(
    ("series", "in_test", "in_train"),
    [
        ("person{}_bacteria_1", (78, 175), (1, 77, 176, 1945)),
        ("person{}_virus_1", (1, 79, 1608, 1610, 1685), (80, 1607, 1609, 1686)),
        ("IM-{:04d}-0001", (1, 111), (112, 115, 769)),
        ("NORMAL2-IM-{:04d}-0001", (1, 381), (382, 383, 1440)),
    ],
)
def test_the_numbers_of_the_test_folder_start_anew(series, in_test, in_train):
    for number in in_test:
        assert manifest.patient_and_kind(series.format(number))[0].startswith("test-")
    for number in in_train:
        assert not manifest.patient_and_kind(series.format(number))[0].startswith("test-")


def test_series_and_numbers_are_read_from_names_and_else_from_patients():
    table = pd.DataFrame(
        {
            "image_id": ["person7_virus_3", "train/NORMAL/NORMAL2-IM-0400-0001", "scan", "note"],
            "patient": ["test-person7", "IM-0400", "nih00012", "alice"],
        },
        index=[4, 5, 6, 7],
    )
    result = manifest.series_and_number(table)
    assert result["series"].tolist() == ["virus", "NORMAL2-IM", "nih", ""]
    assert result["number"].tolist()[:3] == [7, 400, 12]
    assert pd.isna(result["number"][7])


def test_a_manifest_has_the_agreed_columns_types_and_order(kermany):
    table = manifest.load("kermany")
    assert list(table.columns) == COLUMNS
    assert table["image_id"].tolist() == sorted(Path(f).stem for f in FILES)
    assert table["label"].dtype.kind == "i"
    file = kermany / "train/PNEUMONIA/person300_virus_6.jpeg"
    assert table.set_index("image_id").loc["person300_virus_6"].to_dict() == {
        "path": str(file),
        "label": 1,
        "patient": "person300",
        "kind": "virus",
        "split": "train",
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    assert table.attrs == {"dataset": "kermany"}


def test_ids_do_not_depend_on_where_the_data_lies(kermany, tmp_path):
    here = manifest.load("kermany")
    kermany.rename(tmp_path / "elsewhere")
    there = manifest.load(tmp_path / "elsewhere")
    pd.testing.assert_frame_equal(here.drop(columns="path"), there.drop(columns="path"))
    assert there.attrs["dataset"].startswith("folder-elsewhere-")


def test_litter_is_passed_over_and_other_files_are_left_out_loudly(kermany, caplog):
    before = manifest.load("kermany")
    litter = (
        ".DS_Store",
        "__MACOSX/train/NORMAL/._IM-0115-0001.jpeg",
        "train/NORMAL/._IM-0115-0001.jpeg",
        "train/NORMAL/Thumbs.db",
        "train/NORMAL/@eaDir/IM-0115-0001.jpeg/SYNOPHOTO_THUMB_M.jpg",
        "train/@eaDir/NORMAL/a.jpg",
        "train/NORMAL/.ipynb_checkpoints/a-checkpoint.jpeg",
        "@eaDir/x.jpg",
    )
    for name in (*litter, "train/NORMAL/notes.txt", "more/NORMAL/a.jpeg"):
        (kermany / name).parent.mkdir(parents=True, exist_ok=True)
        (kermany / name).write_bytes(b"litter")
    pd.testing.assert_frame_equal(manifest.load("kermany"), before)
    (record,) = caplog.records
    assert "2 files are passed over, first" in record.getMessage()
    passed_over = {
        Path(path).name: reason
        for path, reason in manifest.read(catalog.get_dataset("kermany")).passed_over
    }
    assert passed_over["notes.txt"] == "no JPEG, PNG, TIFF or DICOM image"
    assert passed_over["more"] == "outside the folders that are read, with 1 images"
    assert set(passed_over) - {"notes.txt", "more"} == {
        ".DS_Store", "__MACOSX", "._IM-0115-0001.jpeg", "Thumbs.db", "@eaDir", ".ipynb_checkpoints",
    }  # fmt: skip
    assert manifest.count(catalog.get_dataset("kermany")) == len(FILES)


def test_one_file_name_in_two_folders_is_two_images_and_two_patients(tmp_path):
    files = [f"{s}/{c}/000{i}.png" for s in ("train", "test") for c in CLASSES for i in range(2)]
    table = manifest.load(plant(tmp_path / "mine", [*files, "train/NORMAL/other.png"]))
    assert table["image_id"].tolist() == sorted([f.removesuffix(".png") for f in files] + ["other"])
    assert table["patient"].tolist() == table["image_id"].tolist()
    crossing = audit.leakage(table).query("check.str.contains('same')")
    assert crossing["images"].eq(0).all()


def test_a_recurring_name_of_kermanys_family_still_tells_the_patient(tmp_path):
    files = ["train/NORMAL/IM-0400-0001.png", "val/NORMAL/IM-0400-0001.png"]
    files += ["train/PNEUMONIA/person300_virus_1.png", "val/PNEUMONIA/person301_virus_1.png"]
    files += ["test/NORMAL/a.png", "test/PNEUMONIA/b.png"]
    table = manifest.load(plant(tmp_path / "mine", files)).query("split != 'test'")
    assert table["image_id"].tolist()[2:] == [
        "train/NORMAL/IM-0400-0001",
        "val/NORMAL/IM-0400-0001",
    ]
    assert table["patient"].tolist() == ["person300", "person301", "IM-0400", "IM-0400"]


def test_a_folder_below_the_class_folder_is_a_patient(tmp_path, caplog):
    files = [f"train/{c}/{c}{n}/study1/view{i}.png" for c in CLASSES for n in "12" for i in "ab"]
    table = manifest.load(plant(tmp_path / "mine", files))
    assert table["patient"].value_counts().to_dict() == {
        "NORMAL1": 2, "NORMAL2": 2, "PNEUMONIA1": 2, "PNEUMONIA2": 2,
    }  # fmt: skip
    assert "the patient of 8 images is read from the folder below the class folder" in caplog.text


def test_a_linked_folder_is_named_and_not_entered(kermany, caplog):
    (kermany / "train/NORMAL/again").symlink_to(kermany / "train/NORMAL")
    assert len(manifest.load("kermany")) == len(FILES)
    assert "again/ (a link to a folder that is read already)" in caplog.text


def test_a_name_that_is_not_utf_8_is_read_audited_and_quarantined(tmp_path, kermany):
    raw = os.fsencode(kermany / "train/NORMAL") + b"/caf\xe9.jpeg"
    Path(os.fsdecode(raw)).write_bytes(b"no image")
    for _ in ("hashed", "from the cache"):
        table = manifest.index(catalog.get_dataset("kermany"))
        assert "caf&#56553;" in set(table["image_id"])
    findings = audit.audit_files(table)
    listed = manifest.quarantine_path("kermany")
    audit.write_quarantine(findings, len(table), listed, max_bad_fraction=0.5)
    assert manifest.read_quarantine(listed) == {"caf&#56553;"}
    assert len(manifest.load("kermany")) == len(FILES)
    verify.verify(replace(catalog.get_dataset("kermany"), expected=()))


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00garbage", b'{"a 1 2": [', b"[1, 2]"])
def test_a_damaged_index_is_made_anew_and_said(kermany, caplog, content):
    before = manifest.load("kermany")
    remembered = paths.CACHE / "kermany" / "index.json"
    whole = remembered.read_bytes()
    remembered.write_bytes(content)
    pd.testing.assert_frame_equal(manifest.load("kermany"), before)
    assert f"{remembered.name} is damaged" in caplog.text
    assert remembered.read_bytes() == whole


def test_version_3_is_read_by_its_numbers_and_keeps_every_patient_in_one_split():
    files = [f"train/NORMAL/NORMAL-{n}-000{i}.jpeg" for n in range(100, 130) for i in (1, 2)]
    for n in range(200, 240):
        files += [f"train/PNEUMONIA/{kind}-{n}-0001.jpeg" for kind in ("BACTERIA", "VIRUS")]
    files += ["test/NORMAL/NORMAL-300-0001.jpeg", "test/PNEUMONIA/VIRUS-301-0001.jpeg"]
    plant(paths.DATA / "chest_xray_v3", files)
    table = manifest.load("kermany-v3").set_index("image_id")
    assert table.loc["BACTERIA-200-0001", "patient"] == table.loc["VIRUS-200-0001", "patient"]
    assert table.loc["VIRUS-200-0001", "kind"] == "virus"
    assigned = splits.assign(table.reset_index(), "strict", 0)
    assert assigned.groupby("patient")["split"].nunique().eq(1).all()
    assert set(assigned["split"]) == {"train", "val", "test"}


def test_split_and_class_folders_may_be_written_otherwise(tmp_path):
    files = [
        f"{s}/{c}/{s}{c}.png" for s in ("Train", "valid", "TEST") for c in ("normal", "Pneumonia")
    ]
    labels = (
        manifest.load(str(plant(tmp_path / "mine", files))).groupby("split")["label"].agg(sorted)
    )
    assert labels.to_dict() == {s: [0, 1] for s in ("train", "val", "test")}


def test_nih_is_for_testing_only_and_groups_follow_ups():
    files = ("NORMAL/00000001_000.jpeg", "NORMAL/00000001_001.jpeg", "PNEUMONIA/00000002_000.jpeg")
    plant(paths.DATA / "nih_external", files)
    table = manifest.load("nih")
    assert set(table["split"]) == {"test"}
    assert table["patient"].tolist() == ["nih00000001", "nih00000001", "nih00000002"]
    assert table["kind"].tolist() == ["normal", "normal", "unknown"]


def test_names_without_a_patient_are_said(tmp_path, caplog):
    files = [f"train/{c}/{c}{i}.png" for c in ("NORMAL", "PNEUMONIA") for i in range(2)]
    table = manifest.load(plant(tmp_path / "mine", files))
    assert table["patient"].tolist() == table["image_id"].tolist()
    assert "the patient of 4 images is read from nothing" in caplog.text


def test_the_phantom_is_written_on_first_use_and_says_nothing(caplog):
    small = replace(catalog.DATASETS["phantom"], phantom=PhantomSettings(images=24, size=32))
    table = manifest.load(small)
    assert len(table) == 24 and table.attrs["dataset"] == "phantom"
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert set(table[table["label"] == 1]["kind"]) <= {"bacteria", "virus"}
    assert table["path"].str.startswith(str(paths.CACHE / f"phantom-{small.phantom.key}")).all()


def test_missing_data_names_the_place_and_how_to_get_it():
    with pytest.raises(
        NotFoundError,
        match=r"chest_xray\. Fix: run `python -m xraylib data fetch kermany`.*XRAYLIB_DATA",
    ):
        manifest.load("kermany")
    by_hand = {"nih": "nihcc", "kermany-roboflow": "huggingface", "kermany-v3": "rscbjbr9sj/3"}
    for name, publisher in by_hand.items():
        with pytest.raises(NotFoundError, match=publisher) as failure:
            manifest.load(name)
        assert "data fetch" not in str(failure.value)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ((), "0 images and no folder of a class"),
        (("a.png", "b.png"), "2 images and no folder of a class"),
        (("train/NORMAL/.hidden.png",), "no JPEG, PNG, TIFF or DICOM"),
        (("train/NORMAL/a.png", "train/NORMAL/b.png"), "train split holds normals only"),
        (
            ("train/NORMAL/a.png", "train/PNEUMONIA/b.png", "test/PNEUMONIA/c.png"),
            "test split holds pneumonias",
        ),
        (
            ("train/NORMAL/a.png", "train/COVID/b.png"),
            "train: the classes of 1 images are neither normal nor pneumonia: COVID (1)",
        ),
        (("ill/a.png", "well/b.png"), "no folder of a class or split; its folders: ill, well"),
        (("train/NORMAL/a.png", "train/PNEUMONIA/b.png", "test/.x.png"), "test holds no image"),
        (("train/NORMAL/person1_virus_2.png", "train/PNEUMONIA/a.jpg"), "among the normals"),
        (
            ("train/NORMAL/IM-0400-0001.jpeg", "train/PNEUMONIA/VIRUS-1008087-0002.jpeg"),
            "version 2 (IM-0400-0001) and of version 3 (VIRUS-1008087-0002)",
        ),
    ],
)
def test_a_folder_that_cannot_be_used_says_why(tmp_path, files, said):
    (tmp_path / "mine").mkdir()
    with pytest.raises(InvalidDataError, match=r"mine.*Fix: ") as failure:
        manifest.load(plant(tmp_path / "mine", files))
    assert said in str(failure.value)


def test_an_unreadable_file_is_named(kermany, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(manifest, "sha256", refuse)
    with pytest.raises(InvalidDataError, match=r"cannot read .*\.jpeg"):
        manifest.load("kermany")


def test_files_are_hashed_once_until_one_changes(kermany, monkeypatch):
    hashed, sha256 = [], manifest.sha256
    monkeypatch.setattr(manifest, "sha256", lambda path: hashed.append(path) or sha256(path))
    first = manifest.load("kermany")
    pd.testing.assert_frame_equal(manifest.load("kermany"), first)
    assert len(hashed) == len(FILES)
    (kermany / FILES[0]).write_bytes(b"another content")
    changed = manifest.load("kermany").set_index("image_id")
    assert changed.loc["IM-0115-0001", "sha256"] == hashlib.sha256(b"another content").hexdigest()


def test_quarantined_images_are_left_out_loudly_with_or_without_the_cache(kermany, caplog):
    (kermany / FILES[1]).write_bytes(b"no image")
    listed = manifest.quarantine_path("kermany")
    findings = audit.audit_files(manifest.load("kermany"))
    audit.write_quarantine(findings, len(FILES), listed, max_bad_fraction=0.5)
    assert paths.CACHE not in listed.parents
    table = manifest.load("kermany")
    assert set(manifest.index(catalog.get_dataset("kermany"))["image_id"]) - set(
        table["image_id"]
    ) == {"NORMAL2-IM-0383-0001"}
    assert "1 of 6 images are left out" in caplog.text
    assert table.index.tolist() == list(range(5))
    listed.write_text("image_id,quarantine\na,perhaps\n")
    with pytest.raises(InvalidDataError, match=r"kermany\.csv is not a quarantine list.*Fix: "):
        manifest.load("kermany")


@pytest.mark.skipif(
    not (REAL_DATA / "chest_xray").is_dir(), reason="needs the images in XRAYLIB_DATA"
)
def test_the_real_data_reads_as_published(monkeypatch):
    monkeypatch.setenv("XRAYLIB_DATA", str(REAL_DATA.resolve()))
    assert verify.verify("kermany")["images"].sum() in (5840, 5856)
    table = manifest.load("kermany").query("label == 1")
    assert set(table["kind"]) == {"bacteria", "virus"}
    patients = table.groupby("split")["patient"].agg(set)
    assert len(patients["test"]) == 202 and patients["test"].isdisjoint(patients["train"])
    same_number = table["image_id"].map(lambda name: manifest.other_readings(name)["same number"])
    numbers = same_number.groupby(table["split"]).agg(set)
    assert len(numbers["test"] & numbers["train"]) == 170
