"""An audit from files to its findings, its table and its page."""

import io
import re

import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image
from test_images import manifest_row, texture

from xraylib import cli
from xraylib.datasets import catalog, image_features
from xraylib.datasets.phantom import PhantomSettings, write
from xraylib.errors import InvalidDataError
from xraylib.evaluation import shortcuts
from xraylib.paths import ROOT
from xraylib.report import audit_page, dataset_audit


def save(folder, name, seed, quality=80, side=64):
    folder.mkdir(parents=True, exist_ok=True)
    encoded = io.BytesIO()
    Image.fromarray(texture(seed, side)).save(encoded, "JPEG", quality=quality)
    (folder / name).write_bytes(encoded.getvalue())


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    """A data set whose pneumonias were saved at another quality, with one of each problem."""
    root = tmp_path_factory.mktemp("user") / "films"
    for split, first, count in (("train", 400, 24), ("test", 7, 3)):
        for number in range(count):
            normal = f"IM-{first + number:04d}-0001.jpeg"
            save(root / split / "NORMAL", normal, first + number, quality=95)
            person = f"person{300 + first + number}_virus_1.jpeg"
            save(root / split / "PNEUMONIA", person, 1000 + first + number, quality=60)
    # A patient, and a darker copy of a training image, in the test; one image under two labels.
    save(root / "test" / "PNEUMONIA", "person700_virus_2.jpeg", 5000, quality=60)
    training = Image.open(root / "train" / "NORMAL" / "IM-0401-0001.jpeg")
    training.point(lambda value: value * 0.8).save(root / "test" / "NORMAL" / "<b>copy.jpeg")
    twin = (root / "train" / "NORMAL" / "IM-0402-0001.jpeg").read_bytes()
    (root / "train" / "PNEUMONIA" / "person900_virus_1.jpeg").write_bytes(twin)
    (root / "train" / "NORMAL" / "IM-0500-0001.jpeg").write_bytes(twin[: len(twin) // 2])
    return root


@pytest.fixture(scope="module")
def audited(spoilt):
    return dataset_audit.audit_dataset(catalog.get_dataset(spoilt))


def test_the_findings_are_ranked_and_name_what_was_planted(audited):
    table = audited.findings
    ranks = table["level"].map(dataset_audit.LEVELS.index)
    assert ranks.is_monotonic_increasing
    for _, part in table.groupby("level"):
        assert part["effect"].is_monotonic_decreasing
    texts = table.groupby("level")["finding"].agg(" | ".join)
    assert "First quantiser: AUC 1.000" in texts["leak"]
    assert "1 patient in train and test (1 image" in texts["leak"]
    assert "2 images in 1 group that look like copies, in two splits" in texts["leak"]
    assert "1 file: truncated" in texts["fault"] and "2 files: conflict" in texts["fault"]
    assert audited.has("leak") and audited.has("note")
    assert (table["meaning"].str.len() > 0).all() and (table["fix"].str.len() > 0).all()
    assert audited.total == len(audited.images) + 3


def test_the_terminal_has_one_table_of_its_width(audited):
    text = audit_page.terminal_table(audited.findings, 100)
    assert max(map(len, text.splitlines())) <= 100
    words = re.sub(r"\s+", " ", text)
    for number, row in enumerate(audited.findings.itertuples(), start=1):
        assert f"{number} {row.level}" in re.sub(r" +", " ", text)
    assert "as above" in words


def test_the_page_stands_alone_and_shows_no_pixel(audited, tmp_path):
    file = tmp_path / "page.html"
    audit_page.write_page(audited, file)
    page = file.read_text(encoding="utf-8")
    assert not re.search(r"<script|<link|@import|https?://", page)
    assert set(re.findall(r'src="(data:[^;]*)', page)) == {"data:image/svg+xml"}
    assert "<b>copy" not in page and "&lt;b&gt;copy" in page
    assert page.count("<tr><td>") > len(audited.findings)
    audit_page.write_page(audited, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page


def test_the_command_fails_on_what_it_is_told(spoilt, tmp_path, capfd, monkeypatch):
    # So wide that no finding is broken into lines beside the other columns.
    monkeypatch.setenv("COLUMNS", "400")
    scores = tmp_path / "scores.csv"
    labels = {"NORMAL": 0.2, "PNEUMONIA": 0.7}
    rows = [(str(path), labels[path.parent.name]) for path in spoilt.glob("test/*/*.jpeg")]
    pd.DataFrame(rows, columns=["path", "score"]).to_csv(scores, index=False)
    page = tmp_path / "page.html"
    before = sorted((path, path.stat().st_mtime_ns) for path in spoilt.rglob("*"))
    options = ["audit", str(spoilt), "--fail-on", "leak", "--scores", str(scores)]
    assert cli.main([*options, "--html", str(page)]) == 1
    out = capfd.readouterr().out
    assert "The model's AUC is 1.000" in re.sub(r"\s+", " ", out)
    assert "<h2>The model's scores</h2>" in page.read_text(encoding="utf-8")
    assert sorted((path, path.stat().st_mtime_ns) for path in spoilt.rglob("*")) == before


def test_one_class_in_a_split_and_both_labels_of_a_patient_are_listed(tmp_path):
    for number in range(3):
        save(tmp_path / "train" / "NORMAL", f"a{number}.jpeg", number)
        save(tmp_path / "train" / "PNEUMONIA", f"b{number}.jpeg", 10 + number)
        save(tmp_path / "test" / "PNEUMONIA", f"c{number}.jpeg", 20 + number)
    (tmp_path / "train" / "NORMAL" / "empty.jpeg").write_bytes(b"")
    audit = dataset_audit.audit_dataset(catalog.get_dataset(tmp_path))
    texts = " | ".join(audit.findings["finding"])
    assert "The test split has no normal images" in texts
    assert "1 file: unreadable (such as empty)" in texts
    assert "too few" not in texts and "fewer than 20 patients" in texts
    assert audit.features.empty and audit.has("fault") and not audit.has("leak")
    both = audit.images.assign(patient="p", label=[0, 1] * 4 + [0])
    found = [row.finding for row in dataset_audit._of_patients(both)]
    assert any("1 patient with images of both" in finding for finding in found)


def test_a_folder_without_a_usable_image_is_named(tmp_path):
    for split, name in (("NORMAL", "a"), ("PNEUMONIA", "b")):
        (tmp_path / "train" / split).mkdir(parents=True)
        (tmp_path / "train" / split / f"{name}.jpeg").write_bytes(b"no image")
    with pytest.raises(InvalidDataError, match=r"none of 2 files.*a\.jpeg.*Fix: "):
        dataset_audit.audit_dataset(catalog.get_dataset(tmp_path))


def test_a_fall_of_specificity_with_tight_framing_is_a_shortcut():
    rows = [("normal", "0–0.72", 0.95, 0.9, 0.99), ("normal", "0.84–1", 0.5, 0.4, 0.6)]
    columns = ["diagnosis", "lung_height", "correct", "correct_low", "correct_high"]
    response = pd.DataFrame(rows, columns=columns)
    assert next(dataset_audit._of_framing(response)).level == "shortcut"
    assert next(dataset_audit._of_framing(response.iloc[::-1])).level == "note"
    assert list(dataset_audit._of_framing(response.iloc[:0])) == []


def test_a_phantom_without_a_shift_gives_no_warning(tmp_path):
    settings = PhantomSettings(images=160, size=64, seed=3, framing_shift=False)
    audit = dataset_audit.audit_dataset(catalog.get_dataset(write(tmp_path / "plain", settings)))
    assert not audit.has("shortcut"), audit.findings["finding"].tolist()
    assert len(audit.features) > 5


def test_tags_of_the_acquisition_are_measured_and_never_shown(tmp_path):
    example = pydicom.dcmread(ROOT / "data" / "examples" / "pneumonia.dcm")
    rows = []
    for number in range(48):
        label = number % 2
        example.Manufacturer = ("MAKER-ONE", "MAKER-TWO")[label]
        example.PatientName = "SECRET^NAME"
        example.PatientID = f"ID-{number}"
        path = tmp_path / f"{number}.dcm"
        example.save_as(path)
        rows.append(manifest_row(path, label))
    files, features = image_features.read(pd.DataFrame(rows))
    assert "Manufacturer" in features.values
    assert not {"PatientName", "PatientID"} & set(features.values)
    table, _ = shortcuts.measure(features.images, features.values)
    row = table.set_index("feature").loc["Manufacturer"]
    assert row["level"] == "acquisition" and row["auc"] == 1 and row["warns"]
    rows = list(dataset_audit._of_features(table.assign(of="files")))
    assert rows[0].level == "leak" and "DICOM tag Manufacturer" in rows[0].finding
    assert not re.search("SECRET|ID-|MAKER", str(rows) + str(files))


def test_features_of_files_are_what_their_names_say(tmp_path):
    rows = []
    for number, (size, mode, quality) in enumerate(
        [((80, 40), "L", 95), ((40, 40), "RGB", 50), ((60, 30), "I;16", None)]
    ):
        path = tmp_path / f"{number}.{'png' if quality is None else 'jpeg'}"
        values = np.random.default_rng(number).integers(9000, 65535, size[::-1], dtype=np.uint16)
        image = Image.fromarray(values)
        if quality is not None:
            image = Image.fromarray((values >> 8).astype(np.uint8)).convert(mode)
        image.save(path, quality=quality or 0)
        rows.append(manifest_row(path, number % 2))
    files, features = image_features.read(pd.DataFrame(rows))
    assert files.empty and len(features.images) == 3
    values = {name: value[:, 0].tolist() for name, value in features.values.items()}
    assert values["width"] == [80, 40, 60] and values["aspect ratio"] == [2, 1, 2]
    assert values["bit depth"] == [8, 8, 16] and values["channels"] == [1, 3, 1]
    assert values["first quantiser"][0] < values["first quantiser"][1]
    assert np.isnan(values["first quantiser"][2])
    sizes = [(tmp_path / name).stat().st_size for name in ("0.jpeg", "1.jpeg", "2.png")]
    assert values["file size"] == sizes
    np.testing.assert_allclose(values["bits a pixel"], 8 * np.divide(sizes, [3200, 1600, 1800]))
    assert values["compression"][0] > values["compression"][1]


def test_features_of_pixels_see_the_regions_that_they_name():
    pixels = np.full((1, image_features.SIZE, image_features.SIZE, 1), 90, np.uint8)
    plain = image_features.pixel_values(pixels)
    letter = pixels.copy()
    letter[0, 2:9, 2:9] = 255
    lung = pixels.copy()
    lung[0, 30:80, 30:80] = 10
    in_corner = image_features.pixel_values(letter)
    in_centre = image_features.pixel_values(lung)

    def changed(values):
        return {name for name in plain if not np.array_equal(values[name], plain[name])}

    assert {"corners", "border", "image without its centre"} <= changed(in_corner)
    assert not {"corners", "border", "image without its centre"} & changed(in_centre)
    assert {"mean intensity", "spectrum", "8 × 8 thumbnail"} <= changed(in_centre)
