"""Data sets as strangers have them: every layout is understood, or refused with the fix."""

import os
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_images import dicom
from test_manifest import places  # noqa: F401

from xraylib import cli, paths
from xraylib.datasets import audit, catalog, images, manifest, splits, verify
from xraylib.errors import InvalidDataError, NotFoundError

CLASSES = ("NORMAL", "PNEUMONIA")
NAMES = tuple(f"{split}/{name}" for split in ("train", "test") for name in CLASSES)


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (12, 12), dtype=np.uint8)


def plant(root, files):
    """Write small images, each of its own content, in the format of its suffix (PNG without)."""
    for number, name in enumerate(files):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        kind = {".jpg": "JPEG", ".jfif": "JPEG", ".tif": "TIFF"}.get(file.suffix.lower(), "PNG")
        Image.fromarray(picture(number)).save(file, kind)
    return root


def usual(folders=NAMES, count=4, suffix=".png"):
    """So many files in each folder, with names that do not recur."""
    return [
        f"{folder}/{place}-{n}{suffix}"
        for place, folder in enumerate(folders)
        for n in range(count)
    ]


def counts(table):
    return table.groupby(["split", "label"])["images"].sum().to_dict()


USUAL = {("train", 0): 4, ("train", 1): 4, ("test", 0): 4, ("test", 1): 4}


def of_folders(*names):
    return [f"{split}/{name}" for split in ("train", "test") for name in names]


@pytest.mark.parametrize(
    "files",
    [
        usual(),
        [f"chest_xray/{file}" for file in usual()],
        [f"a/b/{file}" for file in usual()],
        [f"archive/{file}" for file in usual()] + ["docs/a.png"],
        usual() + [f"chest_xray/{file}" for file in usual()],
        *(usual(suffix=suffix) for suffix in (".JPG", ".jfif", ".tif", "", ".1.2.840")),
        usual(of_folders("normal", "pneumonia")),
        usual(of_folders("1_normal", "0_pneumonia")),
        usual(of_folders("Normals", "Pneumonias ")),
        usual([f"{split}/{name}" for split in ("Training", "testing") for name in CLASSES]),
        [*usual(), "train/extra/.hidden.png", "train/labels.png", "README.png"],
        usual(
            ["ü 胸/train/NORMAL", "ü 胸/train/PNEUMONIA", "ü 胸/test/NORMAL", "ü 胸/test/PNEUMONIA"]
        ),
    ],
)
def test_a_layout_is_understood(tmp_path, files):
    table = verify.verify(plant(tmp_path / "mine", files))
    assert counts(table) == USUAL
    assert table.attrs["problem"] == ""


def test_bacteria_and_virus_are_pneumonias_of_that_kind(tmp_path):
    files = usual(of_folders("NORMAL", "BACTERIA", "VIRUS"))
    table = manifest.load(plant(tmp_path / "mine", files))
    assert pd.crosstab(table["label"], table["kind"]).to_dict("index") == {
        0: {"normal": 8, "bacteria": 0, "virus": 0},
        1: {"normal": 0, "bacteria": 8, "virus": 8},
    }


def test_ids_and_split_do_not_depend_on_the_folder_that_is_named(tmp_path):
    plant(tmp_path / "outer/inner", usual(CLASSES, count=10))
    drop = ["path"]
    outer = manifest.load(tmp_path / "outer").drop(columns=drop)
    pd.testing.assert_frame_equal(outer, manifest.load(tmp_path / "outer/inner").drop(columns=drop))


@pytest.mark.parametrize("folders", [CLASSES, ("train/NORMAL", "train/PNEUMONIA")])
def test_without_a_test_one_is_made_by_patient_and_said(tmp_path, folders, caplog):
    files = [f"{folder}/p{folder[-3:]}{n // 2}_{n}.png" for folder in folders for n in range(20)]
    plant(tmp_path / "mine", files)
    (tmp_path / "mine.toml").write_text("images = 'mine'\npatient_regex = '(p[^_]+)_'\n")
    table = manifest.load(tmp_path / "mine.toml")
    assert table["patient"].nunique() == 20
    assert table.groupby("patient")["split"].nunique().eq(1).all()
    assert table.groupby(["split", "label"]).size().to_dict() == {
        ("test", 0): 4, ("test", 1): 4, ("train", 0): 16, ("train", 1): 16,
    }  # fmt: skip
    assert "8 of 40 images" in caplog.text
    pd.testing.assert_frame_equal(table, manifest.load(tmp_path / "mine.toml"))
    assert set(splits.assign(table, "strict", 0)["split"]) == {"train", "val", "test"}


def test_copies_stay_on_one_side_of_a_split_that_is_made(tmp_path):
    root = plant(tmp_path / "mine", usual(CLASSES, count=15))
    for n in range(15):
        (root / f"NORMAL/copy-{n}.png").write_bytes((root / f"NORMAL/0-{n}.png").read_bytes())
    table = manifest.load(root)
    assert table.groupby("sha256")["split"].nunique().eq(1).all()
    assert set(table["split"]) == {"train", "test"}


def test_images_of_the_test_alone_are_for_external_validation(tmp_path):
    root = plant(tmp_path / "mine", usual(["test/NORMAL", "test/PNEUMONIA"]))
    table = verify.verify(root)
    assert set(table["split"]) == {"test"} and table.attrs["problem"] == ""
    root = plant(tmp_path / "other", usual(CLASSES))
    (tmp_path / "other.toml").write_text("images = 'other'\nsplit = 'test'\n")
    assert set(manifest.load(tmp_path / "other.toml")["split"]) == {"test"}


def test_a_new_split_mends_a_patient_in_two_splits(tmp_path):
    files = usual(count=6)
    root = plant(tmp_path / "mine", files)
    (tmp_path / "mine.toml").write_text("images = 'mine'\npatient_regex = '-([0-9])'\n")
    problem = verify.verify(tmp_path / "mine.toml").attrs["problem"]
    assert "6 patients are in two splits" in problem and "--split new" in problem
    dataset = catalog.understand(catalog.get_dataset(root), split="new")
    assert verify.verify(dataset).attrs["problem"] == ""


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            usual(of_folders(*CLASSES, "COVID")),
            r'4 images are neither.*: COVID \(4\).*--classes "NORMAL=0,PNEUMONIA=1"',
        ),
        (
            usual(of_folders("abnormal", "healthy")),
            r"8 images are neither.*: abnormal \(4\), healthy \(4\).*"
            r'--classes "abnormal=\?,healthy=\?"` with 0 for normal, 1 for pneumonia in place',
        ),
        (usual(["ill", "well"]), r'ill, well.*--classes "ill=\?,well=\?"'),
        (
            usual(of_folders("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")),
            r'COVID \(4\), Lung_Opacity \(4\).*--classes "Normal=0,Viral Pneumonia=1"`;',
        ),
        (
            usual(["Lung Opacity", "Normal", "Not Normal"]),
            r'--classes "Normal=0,Lung Opacity=\?,Not Normal=\?"',
        ),
        (usual(of_folders("Bacteria", "clear")), '--classes "Bacteria=1,clear=0"'),
        (["a.png", "b.png"], "2 images and no folder of a class or split; its folders: none.*CSV"),
        (
            [f"{split}/{n}.png" for split in ("train", "valid", "test") for n in range(3)],
            r"9 images lie in test, train, valid, in no class folder.*<split>/<class>/<image>",
        ),
        (
            [*usual(["train/NORMAL", "train/PNEUMONIA"]), "test/a.png"],
            "test holds no image in a class folder.*take it away",
        ),
        (
            [f"stage_2_{split}_images/{n}.png" for split in ("train", "test") for n in range(3)],
            "6 images and no folder of a class or split.*<split>/<class>/<image>",
        ),
    ],
)
def test_what_is_not_understood_is_refused_with_the_command_that_helps(tmp_path, files, said):
    with pytest.raises(InvalidDataError, match=rf"(?s)mine.*{said}.*"):
        verify.verify(plant(tmp_path / "mine", files))


@pytest.mark.parametrize("label_folder", ["Lung_Opacity", "ILL"])
def test_the_proposed_command_is_taken_where_one_class_is_recognised(tmp_path, label_folder):
    root = plant(tmp_path / "mine", usual(of_folders(label_folder, "NORMAL")))
    with pytest.raises(InvalidDataError) as failure:
        verify.verify(root)
    proposed = str(failure.value).split("`")[1].split("xraylib ")[1]
    assert f'"NORMAL=0,{label_folder}=1"' in proposed
    assert cli.main(shlex.split(proposed)) == 0


@pytest.mark.parametrize(
    "files",
    [
        [f"stage_2_{split}_images/{n}.png" for split in ("test", "train") for n in range(12)],
        [f"{split}/images/{n}.png" for split in ("test", "train") for n in range(12)],
        [f"{split}/{n}.png" for split in ("test", "train") for n in range(12)],
        [f"images/{n}.png" for n in range(12)],
        [f"{n}.png" for n in range(12)],
    ],
)
def test_a_table_in_the_folder_is_proposed_by_its_path(tmp_path, files):
    root = plant(tmp_path / "my images", files)
    rows = [f"{file},{n % 2}" for n, file in enumerate(files)]
    (root / "labels.csv").write_text("\n".join(["path,label", *rows]))
    (root / "a_classes.csv").write_text("path,class\n0.png,Not Normal\n1.png,normal\n")
    (root / "submission.csv").write_text("path,PredictionString\n0.png,\n")
    with pytest.raises(InvalidDataError, match=r"^[^\n]*give the table by its path") as failure:
        verify.verify(root)
    assert "--classes" not in str(failure.value)
    proposed = str(failure.value).split("`")[1].split("xraylib ")[1]
    assert shlex.split(proposed)[-1] == str(root / "labels.csv")
    assert cli.main(shlex.split(proposed)) == 0


def test_a_table_without_the_columns_is_named_so_that_it_can_say_so(tmp_path):
    root = plant(tmp_path / "mine", ["0.png", "1.png"])
    (root / "labels.csv").write_text("id,finding\n0.png,0\n")
    with pytest.raises(InvalidDataError, match=r"table by its path, `[^`]*labels\.csv`"):
        verify.verify(root)
    root = plant(tmp_path / "other", usual(of_folders("abnormal", "healthy")))
    (root / "metadata.csv").write_text("patient,age\n1,2\n")
    (root / "test/metadata.csv").write_text("patient,age\n1,2\n")
    with pytest.raises(InvalidDataError, match=r'--classes "abnormal=\?,healthy=\?"'):
        verify.verify(root)


@pytest.mark.parametrize("name", ["_", "---"])
def test_a_class_folder_whose_name_has_no_letter_is_refused(tmp_path, name):
    root = plant(tmp_path / "mine", usual([*CLASSES, name], count=3))
    with pytest.raises(InvalidDataError, match=r"neither normal nor pneumonia.*Fix: "):
        manifest.read(catalog.get_dataset(root))


def test_classes_of_ones_own_leave_out_the_others_and_name_them(tmp_path):
    root = plant(tmp_path / "mine", usual(["ill", "well", "unsure"], count=6))
    classes = {"well": 0, "ILL": 1}
    reading = manifest.read(catalog.understand(catalog.get_dataset(root), classes))
    assert reading.manifest.groupby("label")["path"].first().str.contains("well").tolist() == [
        True,
        False,
    ]
    assert {reason for _, reason in reading.passed_over} == {
        "of the class unsure, which is not named"
    }
    assert len(reading.passed_over) == 6


def test_masks_beside_images_are_passed_over_and_the_folder_of_images_is_no_patient(tmp_path):
    folders = [f"{name}/{below}" for name in CLASSES for below in ("images", "masks")]
    reading = manifest.read(catalog.get_dataset(plant(tmp_path / "mine", usual(folders, count=5))))
    assert len(reading.manifest) == 10 and reading.manifest["patient"].nunique() == 10
    assert [reason for _, reason in reading.passed_over] == ["in a folder of masks"] * 10


def test_every_file_that_is_passed_over_is_named_with_its_reason(tmp_path):
    root = plant(tmp_path / "mine", usual())
    contents = {"e.bmp": b"BM..", "n.txt": b"words", "nothing": b"", "a.zip": b"PK\x03\x04"}
    for name, content in contents.items():
        (root / "train/NORMAL" / name).write_bytes(content)
    (root / "train/NORMAL/gone.jpg").symlink_to("/nowhere.jpg")
    os.mkfifo(root / "train/NORMAL/pipe")
    reasons = verify.verify(root).attrs["passed_over"]
    assert {reason: [Path(p).name for p in files] for reason, files in reasons.items()} == {
        "no JPEG, PNG, TIFF or DICOM image": ["a.zip", "e.bmp", "n.txt"],
        "the file is empty": ["nothing"],
        "a broken link": ["gone.jpg"],
        "not a regular file": ["pipe"],
    }


def test_linked_files_and_folders_elsewhere_are_read(tmp_path):
    root = plant(tmp_path / "mine", usual())
    for name in ("train/NORMAL", "test/PNEUMONIA/3-0.png"):
        (root / name).rename(tmp_path / Path(name).name)
        (root / name).symlink_to(tmp_path / Path(name).name)
    assert counts(verify.verify(root)) == USUAL


def test_a_link_into_the_data_or_above_it_is_not_entered(tmp_path):
    root = plant(tmp_path / "mine", usual())
    (root / "train/NORMAL/loop").symlink_to(root / "train/NORMAL")
    (root / "train/NORMAL/above").symlink_to(tmp_path)
    table = verify.verify(root)
    assert counts(table) == USUAL
    (linked,) = table.attrs["passed_over"].values()
    assert [Path(path).name for path in linked] == ["above", "loop"]


def test_two_files_of_one_name_are_two_images_of_one_patient(tmp_path):
    files = [*usual(), "train/NORMAL/0-0.jpg", "train/NORMAL/0-1.PNG"]
    table = manifest.load(plant(tmp_path / "mine", files)).set_index("image_id")
    pair = table.loc[["train/NORMAL/0-0.jpg", "train/NORMAL/0-0.png"]]
    assert pair["patient"].nunique() == 1 and pair["sha256"].nunique() == 2
    assert table["patient"].nunique() == 16


def test_a_folder_of_unreadable_rights_is_named(tmp_path, monkeypatch):
    root = plant(tmp_path / "mine", [*usual(), "train/NORMAL/shut/a.png"])
    scan = os.scandir

    def guarded(path="."):
        if "shut" in os.fspath(path):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(InvalidDataError, match=r"cannot read .*shut\. Fix: "):
        manifest.load(root)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "the file is empty"), (b"<html>", "no JPEG, PNG, TIFF or DICOM image")],
)
def test_a_file_that_is_no_image_is_found_before_anything_runs(tmp_path, content, said):
    root = plant(tmp_path / "mine", usual())
    (root / "train/NORMAL/0-0.png").write_bytes(content)
    problem = verify.verify(root).attrs["problem"]
    assert f"1 images cannot be read, first {root}/train/NORMAL/0-0.png ({said})" in problem
    assert "--max-bad" in problem.split("Fix: ")[1]
    dataset = catalog.get_dataset(root)
    findings = audit.audit_files(manifest.index(dataset))
    audit.write_quarantine(findings, 16, manifest.quarantine_path(dataset), 1)
    assert verify.verify(root).attrs["problem"] == ""


def test_both_labels_of_a_patient_and_of_one_content_are_listed(tmp_path):
    files = [f"{folder}/p{n}-{place}.png" for place, folder in enumerate(NAMES) for n in range(4)]
    root = plant(tmp_path / "mine", files)
    (root / "train/PNEUMONIA/copy.png").write_bytes((root / "train/NORMAL/p0-0.png").read_bytes())
    dataset = catalog.understand(catalog.get_dataset(root), patient_regex=r"^[^/]+/[^/]+/(p\d)")
    notes = "\n".join(verify.verify(dataset).attrs["notes"])
    assert "4 patients have images of both classes: p0, p1, p2, p3" in notes
    assert "2 of these have copies of the other class" in notes
    assert "the patient of 16 images is read from the regular expression" in notes
    assert "the patient of 1 images is read from nothing" in notes


def study(root, patients, folders=CLASSES, name="IM{}", **tags):
    """DICOM files, two per patient, each of its own content."""
    number = 0
    for place, folder in enumerate(folders):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for patient in range(patients):
            for _ in range(2):
                number += 1
                given = {"PatientID": f"ID-{place}-{patient}"} | tags
                content = dicom(picture(number), **given)
                (root / folder / name.format(number)).write_bytes(content)
    return root


def test_dicom_patients_are_read_hashed_and_never_written_out(tmp_path):
    root = study(tmp_path / "mine", 5, name="1.2.840.{}")
    reading = manifest.read(catalog.get_dataset(root))
    table = reading.manifest
    assert set(reading.patient_sources) == {manifest.DICOM_SOURCE}
    assert table["patient"].value_counts().tolist() == [2] * 10
    assert table.groupby("patient")["split"].nunique().eq(1).all()
    assert verify.verify(root).attrs["problem"] == ""
    pd.testing.assert_frame_equal(
        table, manifest.index(catalog.get_dataset(root))
    )  # from the cache
    written = [file for folder in (paths.CACHE, paths.DATA) for file in folder.rglob("*.*")]
    assert written and not any(b"ID-" in file.read_bytes() for file in written if file.is_file())
    assert (paths.DATA / "patients.key").stat().st_mode & 0o077 == 0
    sizes = audit.file_properties(table)
    assert (sizes["width"] == 12).all()
    assert images.load_pixels(table, 8).shape == (20, 8, 8, 1)


def test_one_identifier_for_all_dicom_files_tells_no_patient(tmp_path):
    root = study(tmp_path / "mine", 3, PatientID="ANONYMOUS")
    reading = manifest.read(catalog.get_dataset(root))
    assert set(reading.patient_sources) == {manifest.NO_SOURCE}
    assert reading.manifest["patient"].nunique() == 12


def test_a_roboflow_export_is_read_as_it_comes(tmp_path):
    files = [
        f"{split}/{name}/{name}{place}-{n}_jpeg.rf.{n}a{place}.jpg"
        for place, split in enumerate(("train", "valid", "test"))
        for name in CLASSES
        for n in range(3)
    ]
    root = plant(tmp_path / "mine", files)
    for name in ("README.dataset.txt", "README.roboflow.txt"):
        (root / name).write_text("exported")
    table = verify.verify(root)
    assert set(table["split"]) == {"train", "val", "test"}
    assert table["images"].tolist() == [3] * 6
    assert table.attrs["passed_over"]["outside the class folders"] == [
        str(root / "README.dataset.txt"),
        str(root / "README.roboflow.txt"),
    ]
    assert "NORMAL0-0" in set(manifest.load(root)["image_id"])


@pytest.mark.parametrize("below", ["", "images/"])
def test_a_roboflow_export_with_a_table_per_split_is_read_as_it_comes(tmp_path, below):
    root = tmp_path / "mine"
    splits_of_files = ("train", "valid", "test")
    plant(root, [f"{s}/{below}{s}{n}_jpeg.rf.{n}a.jpg" for s in splits_of_files for n in range(6)])
    for split in splits_of_files:
        rows = [f"{split}{n}_jpeg.rf.{n}a.jpg, {n % 2}, {1 - n % 2}" for n in range(6)]
        header = "filename, PNEUMONIA, NORMAL"
        (root / split / "_classes.csv").write_text("\n".join([header, *rows]))
    table = verify.verify(root)
    assert table.attrs["problem"] == "" and table["images"].tolist() == [3] * 6
    rows = manifest.load(root).set_index("image_id")
    assert rows.loc[["valid0", "valid1"], "label"].tolist() == [0, 1]
    assert set(rows.loc[["valid0", "valid1"], "split"]) == {"val"}
    assert rows.loc["test3", "path"] == str(root / "test" / f"{below}test3_jpeg.rf.3a.jpg")


def test_the_csv_edition_of_the_rsna_challenge_is_read_as_it_comes(tmp_path):
    root = tmp_path / "rsna"
    rows = []
    for n in range(12):
        (root / "stage_2_train_images").mkdir(parents=True, exist_ok=True)
        content = dicom(picture(n), PatientID=f"id{n}")
        (root / "stage_2_train_images" / f"id{n}.dcm").write_bytes(content)
        rows += [f"id{n},1,2,3,4,{n % 2}"] * (1 + n % 2)  # a box each
    (root / "stage_2_train_labels.csv").write_text(
        "\n".join(["patientId,x,y,width,height,Target", *rows])
    )
    table = manifest.load(root / "stage_2_train_labels.csv")
    assert len(table) == 12
    assert table.set_index("image_id").loc[["id0", "id1"], "label"].tolist() == [0, 1]
    assert set(table["patient"]) == {f"id{n}" for n in range(12)}
    assert set(table["split"]) == {"train", "test"}


def test_arrays_of_medmnist_are_refused_with_the_step(tmp_path):
    file = tmp_path / "pneumoniamnist.npz"
    np.savez(file, train_images=np.zeros((2, 28, 28), np.uint8))
    with pytest.raises(InvalidDataError, match=r"npz.*Fix: .*data fetch pneumoniamnist"):
        catalog.get_dataset(file)
    # As the `medmnist` package writes images beside a list without a header.
    (tmp_path / "m.csv").write_text("TRAIN,train0_0.png,0\n")
    with pytest.raises(InvalidDataError, match=r"needs the columns path.*Fix: .*first line"):
        manifest.load(tmp_path / "m.csv")


@pytest.fixture
def listed(tmp_path):
    """Twelve images in one folder, and a function that writes a table of them."""
    plant(tmp_path / "mine", [f"x/{n}.png" for n in range(12)])

    def write(header, row, encoding="utf-8", more=""):
        lines = [header, *(row(n) for n in range(12))]
        file = tmp_path / "mine/images.csv"
        file.write_text("\n".join(lines) + more, encoding=encoding)
        return file

    return write


def test_a_table_says_everything_of_an_image(listed):
    def row(n):
        split = ("train", "valid", "test")[n // 4]
        return f"x/{n}.png,{('normal', 'viral')[n % 2]},p{n // 4},{split},AP"

    file = listed("path,label,patient,split,view", row)
    table = manifest.load(file).set_index("image_id")
    assert table.loc["7"].drop(["path", "sha256"]).to_dict() == {
        "label": 1, "patient": "p1", "kind": "virus", "split": "val",
    }  # fmt: skip
    assert table.loc["6", "kind"] == "normal"


@pytest.mark.parametrize(
    ("header", "row", "encoding"),
    [
        ("path,label", "x/{}.png,{}", "utf-8-sig"),
        ("Label;File Name", "{1};x\\{0}.png", "utf-8"),
        ("image_id\ttarget", "{}\t{}.0", "utf-8"),
        ("filename,class", "{}.png,{}", "utf-8"),
    ],
)
def test_tables_are_read_as_programs_write_them(listed, header, row, encoding):
    table = manifest.load(listed(header, lambda n: row.format(n, n % 2), encoding))
    assert table["label"].tolist() == [int(name) % 2 for name in table["image_id"]]


def test_columns_of_0_and_1_are_labels_where_no_column_is(listed):
    marks = ("1,0,0,0", "0,1.0,,0", "0,0,1,-1.0", "0,0,0,0")
    file = listed("file,Normal,Bacteria,Virus,COVID", lambda n: f"{n}.png,{marks[n % 4]}")
    table = manifest.load(file).set_index("image_id")
    assert table.loc[["0", "1", "2"], "label"].tolist() == [0, 1, 1]
    assert table.loc[["0", "1", "2"], "kind"].tolist() == ["normal", "bacteria", "virus"]
    reasons = verify.verify(file).attrs["passed_over"]
    assert reasons == {"the table gives no label": ["3.png", "7.png", "11.png"]}


def test_columns_of_other_classes_are_refused_until_they_are_named(listed):
    file = listed("file,abnormal,healthy", lambda n: f"{n}.png,{n % 2},{(n + 1) % 2}")
    with pytest.raises(InvalidDataError, match=r'--classes "healthy=\?,abnormal=\?"'):
        manifest.load(file)
    dataset = catalog.understand(catalog.get_dataset(file), {"healthy": 0, "abnormal": 1})
    table = manifest.load(dataset)
    assert table["label"].tolist() == [int(name) % 2 for name in table["image_id"]]
    file = listed("file,normal,pneumonia", lambda n: f"{n}.png,{int(n == 1)},1")
    with pytest.raises(InvalidDataError, match=r"1 images have both labels.*x/1\.png"):
        manifest.load(file)
    file = listed("file,pneumonia", lambda n: f"{n}.png,{n % 2}")
    with pytest.raises(InvalidDataError, match="needs the columns path and label but has: file, p"):
        manifest.load(file)


def test_labels_of_the_middle_class_are_proposed_after_the_recognised(listed):
    labels = ("Lung Opacity", "No Lung Opacity / Not Normal", "Normal")
    file = listed("patientId,class", lambda n: f"{n},{labels[n % 3]}")
    proposed = r'"Normal=0,Lung Opacity=\?,No Lung Opacity / Not Normal=\?"'
    with pytest.raises(InvalidDataError, match=proposed):
        manifest.load(file)


def test_missing_files_and_labels_of_a_table_are_counted_and_named(listed):
    more = "\nx/90.png,1\nx/91.png,0\nx/3.png,1\nx/5.png,\n"
    file = listed("path,label", lambda n: f"x/{n}.png,{n % 2}", more=more)
    reasons = verify.verify(file).attrs["passed_over"]
    assert reasons["in the table, but there is no such file"] == ["x/90.png", "x/91.png"]
    assert reasons["the table gives no label"] == ["x/5.png"]


def test_a_table_that_cannot_be_used_says_why(listed, tmp_path):
    cases = {
        r"classes of 6 images.*maybe \(6\).*--classes": lambda n: (
            f"x/{n}.png,{('0', 'maybe')[n % 2]}"
        ),
        r"classes of 6 images.*-1 \(6\)": lambda n: f"x/{n}.png,{('0', '-1')[n % 2]}",
        r"1 images have both labels.*x/2.png": lambda n: (
            f"x/{(n, f'../x/{n - 1}')[n == 3]}.png,{n % 2}"
        ),
        r"none of its 12 images is there.*y/0x.png": lambda n: f"y/{n}x.png,{n % 2}",
        r"1 images have both labels.*x/0.png": lambda n: f"x/{n * (n > 1)}.png,{n % 2}",
    }
    for said, row in cases.items():
        with pytest.raises(InvalidDataError, match=rf"images\.csv.*{said}.*"):
            manifest.load(listed("path,label", row))
    with pytest.raises(InvalidDataError, match=r"12 rows have no split.*'later'.*Fix: "):
        manifest.load(listed("path,label,split", lambda n: f"x/{n}.png,{n % 2},later"))
    with pytest.raises(InvalidDataError, match=r"cannot be read as a table.*UTF-16.*Fix: "):
        manifest.load(listed("path,label", lambda n: f"x/{n}.png,{n % 2}", "utf-16"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("images = 'nowhere'", "images is 'nowhere'"),
        ("classes = {a = 0, b = 2}", "not labels 0 and 1"),
        ("classes = 'a'", "not labels 0 and 1"),
        ("patient_regex = '('", "no regular expression"),
        ("split = 'dev'", "take one of train, val, test, new"),
        ("class = 1", "'class' is no setting"),
        ("images = ", "is no description"),
    ],
)
def test_a_description_that_says_something_else_is_refused(tmp_path, text, said):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises((InvalidDataError, NotFoundError), match=r"Fix: ") as failure:
        catalog.get_dataset(file)
    assert said in str(failure.value)


def test_what_verify_prints_is_a_description_that_reads_the_same(tmp_path, capsys):
    root = plant(
        tmp_path / "mine", [f"{c}/{c}{n // 2}_{n}.png" for c in ("ill", "well") for n in range(12)]
    )
    command = ["data", "verify", str(root), "--classes", "well=0,ill=1"]
    assert cli.main([*command, "--patient-regex", r"(\w+)_\d+\.png"]) == 0
    shown = capsys.readouterr().out
    assert "well" in shown and "12 patients" not in shown
    saved = tmp_path / "described.toml"
    saved.write_text("images = " + shown.split("\nimages = ")[1])
    table = manifest.load(saved)
    assert table["patient"].nunique() == 12
    assert table.set_index("image_id").loc["ill0_0", "label"] == 1
    assert cli.main(["data", "verify", str(saved)]) == 0
    fingerprint = shown.split("fingerprint ")[1][:16]
    assert fingerprint in capsys.readouterr().out


def test_verify_ends_with_the_problem_after_what_it_understood(tmp_path, capsys):
    root = plant(tmp_path / "mine", usual())
    (root / "train/NORMAL/a\nb.txt").write_text("words")
    (root / "test/NORMAL/copy.png").write_bytes((root / "train/NORMAL/0-0.png").read_bytes())
    assert cli.main(["data", "verify", str(root)]) == 1
    out, err = capsys.readouterr()
    assert r"a\nb.txt" in out and "byte-identical" in out
    assert "are in two splits" in err and "Fix: " in err
