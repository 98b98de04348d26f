import pandas as pd
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian
from test_manifest import places  # noqa: F401

from xraylib import paths
from xraylib.datasets import challenges, images, manifest, verify
from xraylib.datasets.images import read_gray
from xraylib.errors import InvalidDataError, NotFoundError


def write_dicom(file):
    """A gray DICOM image of 8 pixels."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    image = FileDataset(file, {}, file_meta=meta, preamble=b"\0" * 128)
    image.PatientName = "somebody"
    image.Rows = image.Columns = 8
    image.SamplesPerPixel = 1
    image.PhotometricInterpretation = "MONOCHROME2"
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit = 7
    image.PixelRepresentation = 0
    image.PixelData = bytes(range(64))
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save_as(file, enforce_file_format=True)


@pytest.fixture
def rsna(tmp_path):
    """A download in Kaggle's layout, of three images."""
    folder = tmp_path / "download"
    folder.mkdir()
    rows = [
        ("b", 512, 256, 256, 512, 1),
        ("b", 0, 0, 1024, 102.4, 1),
        ("a", "", "", "", "", 0),
        ("c", "", "", "", "", 0),
    ]
    columns = ["patientId", "x", "y", "width", "height", "Target"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / challenges.RSNA_LABELS, index=False)
    # As in the original, one row per box.
    classes = [("b", "Lung Opacity")] * 2
    classes += [("c", "No Lung Opacity / Not Normal"), ("a", "Normal")]
    table = pd.DataFrame(classes, columns=["patientId", "class"])
    table.to_csv(folder / challenges.RSNA_CLASSES, index=False)
    for name in "abc":
        write_dicom(folder / challenges.RSNA_IMAGES / f"{name}.dcm")
    return folder


def read(name, download):
    """The manifest of a download that lies where the catalog looks for it."""
    root = paths.DATA / name
    root.parent.mkdir(parents=True, exist_ok=True)
    download.rename(root)
    return manifest.load(name).set_index("image_id")


def test_the_challenge_becomes_a_manifest(rsna):
    table = read("rsna", rsna)
    assert table.index.tolist() == ["a", "b", "c"]
    assert table["label"].tolist() == [0, 1, 0]
    # The middle class stays, as a negative.
    assert table["kind"].tolist() == ["normal", "unknown", "unknown"]
    assert set(table["split"]) == {"test"}
    assert table["patient"].tolist() == ["a", "b", "c"]
    assert read_gray(table["path"]["a"], 8).shape == (8, 8)


def change(folder, file, row, column, value):
    table = pd.read_csv(folder / file, dtype=str, keep_default_na=False)
    table.loc[row, column] = value
    table.to_csv(folder / file, index=False)


@pytest.mark.parametrize(
    ("file", "row", "column", "value", "image"),
    [
        (challenges.RSNA_LABELS, 2, "Target", "1", "a"),
        (challenges.RSNA_LABELS, 3, "patientId", "x", "c"),
        (challenges.RSNA_CLASSES, 0, "class", "Normal", "b"),
        (challenges.RSNA_CLASSES, 3, "class", "Edema", "a"),
    ],
)
def test_lists_of_the_challenge_that_contradict_are_refused(rsna, file, row, column, value, image):
    change(rsna, file, row, column, value)
    with pytest.raises(InvalidDataError, match=rf"say of {image} is .*Fix: "):
        challenges.read_rsna(rsna)


def test_what_a_download_lacks_is_named(rsna):
    (rsna / challenges.RSNA_IMAGES / "b.dcm").unlink()
    with pytest.raises(NotFoundError, match=r"b\.dcm is missing\. Fix: "):
        challenges.read_rsna(rsna)
    (rsna / challenges.RSNA_CLASSES).write_text("patientId,kind\n")
    with pytest.raises(InvalidDataError, match=r"lacks the columns class\. Fix: "):
        challenges.read_rsna(rsna)
    (rsna / challenges.RSNA_CLASSES).unlink()
    with pytest.raises(NotFoundError, match=r"detailed_class_info\.csv is missing\. Fix: "):
        challenges.read_rsna(rsna)


FINDINGS = ["No finding", "Bronchitis", "Brocho-pneumonia", "Pneumonia", "Pleuro-pneumonia"]


@pytest.fixture
def vindr(tmp_path):
    """A download of VinDr-PCXR, of five images."""
    folder = tmp_path / "download"
    folder.mkdir()
    train = [("n", 1, 0, 0, 0, 0), ("p", 0, 0, 1, 0, 0), ("o", 0, 1, 0, 0, 0)]
    test = [("q", 0, 1, 0, 0, 0), ("q", 0, 0, 0, 0, 1), ("m", 1, 0, 0, 0, 0)]
    for split, rows in (("train", train), ("test", test)):
        table = pd.DataFrame(rows, columns=["image_id", *FINDINGS])
        table.to_csv(folder / f"image_labels_{split}.csv", index=False)
        for name in table["image_id"].unique():
            write_dicom(folder / split / f"{name}.dicom")
    return folder


def test_images_of_children_become_a_manifest(vindr):
    table = read("vindr-pcxr", vindr)
    assert table["label"].tolist() == [0, 0, 0, 1, 1]
    assert table["kind"].tolist() == ["normal", "normal", "unknown", "unknown", "unknown"]
    assert set(table["split"]) == {"test"}
    assert read_gray(table["path"]["q"], 8).shape == (8, 8)


@pytest.mark.parametrize(
    ("row", "column", "value", "image"),
    [
        (0, "Pneumonia", "1", "n"),
        (0, "No finding", "0", "n"),
        (1, "Bronchitis", "2", "p"),
        (1, "Bronchitis", "", "p"),
        (2, "image_id", "m", "m"),
    ],
)
def test_findings_that_contradict_are_refused(vindr, row, column, value, image):
    change(vindr, "image_labels_train.csv", row, column, value)
    with pytest.raises(InvalidDataError, match=rf"say of {image} is .*Fix: "):
        challenges.read_vindr_pcxr(vindr)


def test_the_catalog_reads_a_download_where_it_lies(rsna, monkeypatch):
    table = read("rsna", rsna).reset_index()
    assert table["sha256"].str.len().tolist() == [64] * 3
    assert images.load_pixels(table, 8).shape == (3, 8, 8, 1)
    listed = verify.describe().set_index("name").loc["rsna"]
    assert listed["present"] and listed["images"] == 3


def test_a_missing_download_is_named_with_the_way_to_get_it():
    with pytest.raises(NotFoundError, match="Fix: sign the data use agreement on PhysioNet"):
        manifest.load("vindr-pcxr")
