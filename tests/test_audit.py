import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from notebook_code import definitions
from PIL import Image
from test_images import announcing, encoded, folder, manifest_row, texture
from test_splits import named

from xraylib.datasets import audit, images
from xraylib.datasets.manifest import read_quarantine
from xraylib.datasets.splits import assign
from xraylib.errors import InvalidDataError

single_features = definitions("01_eda").single_features


@pytest.fixture
def bad_files(tmp_path):
    """Twelve good files and one of each problem."""
    where = tmp_path / "images"
    good_ones = folder(where, 12)
    good = Path(good_ones["path"][0]).read_bytes()
    extra = {
        "broken": (b"no image", 0, "normal"),
        "cut": (good[:-200], 0, "normal"),
        "large": (announcing(8000, 7000), 0, "normal"),
        "person1_bacteria_1": (encoded(texture(90)), 0, "bacteria"),
        "twin_a": (encoded(texture(91)), 0, "normal"),
        "twin_b": (encoded(texture(91)), 1, "virus"),
        "copy": (good, 0, "normal"),
        "gone": (encoded(texture(92)), 0, "normal"),
        "changed": (encoded(texture(93)), 0, "normal"),
    }
    rows = []
    for name, (content, label, kind) in extra.items():
        path = where / f"{name}.png"
        path.write_bytes(content)
        rows.append(manifest_row(path, label, kind))
    (where / "gone.png").unlink()
    (where / "changed.png").write_bytes(encoded(texture(94)))
    return pd.concat([good_ones, pd.DataFrame(rows)], ignore_index=True)


def test_an_audit_finds_every_problem_and_the_quarantine_leaves_plain_duplicates_in(
    bad_files, tmp_path
):
    findings = audit.audit_files(bad_files)
    assert dict(zip(findings["image_id"], findings["problem"], strict=True)) == {
        "broken": "unreadable",
        "cut": "truncated",
        "large": "oversized",
        "person1_bacteria_1": "mislabelled",
        "twin_a": "conflict",
        "twin_b": "conflict",
        "copy": "duplicate",
        "gone": "missing",
        "changed": "changed",
    }
    of = findings.set_index("image_id")["of"]
    assert (of["copy"], of["twin_a"], of["twin_b"], of["cut"]) == ("0000", "twin_b", "twin_a", "")
    listed = tmp_path / "quarantine.csv"
    refused = r"8 of 21 images.*2 conflict.*broken\.png.*Fix: .*--max-bad"
    with pytest.raises(InvalidDataError, match=refused):
        audit.write_quarantine(findings, len(bad_files), listed, max_bad_fraction=0.3)
    assert not listed.exists()
    audit.write_quarantine(findings, len(bad_files), listed, max_bad_fraction=8 / 21)
    assert read_quarantine(listed) == set(findings["image_id"]) - {"copy"}


def test_a_clean_folder_gives_an_empty_list_that_passes(tmp_path):
    findings = audit.audit_files(folder(tmp_path / "images", 3))
    audit.write_quarantine(findings, 3, tmp_path / "quarantine.csv", max_bad_fraction=0)
    assert read_quarantine(tmp_path / "quarantine.csv") == set()


@settings(max_examples=25, deadline=None)
@given(
    pixels=hnp.arrays(np.uint8, st.tuples(st.integers(2, 9), st.just(32), st.just(32), st.just(1))),
    threshold=st.floats(-0.9, 0.9),
)
def test_near_duplicates_are_the_pairs_that_correlate(pixels, threshold):
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = np.nan_to_num(np.corrcoef(pixels.reshape(len(pixels), -1)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audit, "COPY_CORRELATION", threshold)
        patch.setattr(audit, "DETAIL_CORRELATION", -2)
        found = audit.near_duplicates(pixels)
    pairs = set(map(tuple, found))
    for a, b in zip(*np.triu_indices(len(pixels), 1), strict=True):
        if abs(expected[a, b] - threshold) > 1e-4:
            assert ((a, b) in pairs) == (expected[a, b] >= threshold)


def test_altered_copies_are_found_among_many_and_others_are_not():
    images = np.stack([texture(seed, 64) for seed in range(1200)])
    images[1150] = np.asarray(Image.open(io.BytesIO(encoded(images[7], "JPEG", quality=40))))
    images[1190] = (images[1100] * 0.6 + 30).astype(np.uint8)
    images[[3, 4]] = 128
    found = audit.near_duplicates(images[..., None])
    assert found.tolist() == [[7, 1150], [1100, 1190]]


def test_images_that_differ_in_their_details_alone_are_no_copies():
    smooth = np.add.outer(np.arange(64.0), np.arange(64.0))
    rng = np.random.default_rng(0)
    images = np.stack([smooth + rng.normal(0, 8, (8, 8)).repeat(8, 0).repeat(8, 1)] * 2 + [smooth])
    images = np.clip(images + 30, 0, 255).astype(np.uint8)[..., None]
    values = images[..., 0].reshape(3, -1)
    assert np.corrcoef(values)[0, 2] > 0.95
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audit, "COPY_CORRELATION", 0.95)
        found = audit.near_duplicates(images)
    assert found.tolist() == [[0, 1]]
    assert len(audit.near_duplicates(images[:1])) == 0


def test_leakage_counts_a_known_answer():
    names = {
        "train": (
            *("person1_bacteria_1", "person1_bacteria_2", "person1_bacteria_3"),
            *("person90_virus_4", "IM-0300-0001", "NORMAL2-IM-0400-0001"),
        ),
        # 90 is a bacterial number of the test folder; 90 of viruses and IM-0300 are not.
        "test": ("person1_bacteria_9", "person90_bacteria_5", "IM-0007-0001", "IM-0300-0002"),
        "val": ("IM-0400-0001",),
    }
    images = pd.concat([named(split, *files) for split, files in names.items()], ignore_index=True)
    images.loc[9, "sha256"] = images["sha256"][4]
    pixels = np.random.default_rng(0).integers(60, 200, (len(images), 32, 32, 1), dtype=np.uint8)
    # A darker copy of a training image in test, and one of a test image in val.
    pixels[8] = pixels[3] * 0.7
    pixels[10] = pixels[6] + 20
    table = audit.leakage(images, pixels).set_index(["check", "splits"])
    assert table.columns.tolist() == ["patients_or_images", "images", "share"]
    expected = {
        ("same patient", "train and val"): (1, 1, 1 / 1),
        ("same patient", "train and test"): (2, 2, 2 / 4),
        ("same patient", "val and test"): (0, 0, 0),
        ("same number and kind", "train and val"): (0, 0, 0),
        ("same number and kind", "train and test"): (2, 2, 2 / 4),
        ("same number and kind", "val and test"): (0, 0, 0),
        ("same number", "train and val"): (1, 1, 1 / 1),
        ("same number", "train and test"): (3, 3, 3 / 4),
        ("same number", "val and test"): (0, 0, 0),
        ("byte-identical", "train and val"): (0, 0, 0),
        ("byte-identical", "train and test"): (1, 1, 1 / 4),
        ("byte-identical", "val and test"): (0, 0, 0),
        ("near-identical", "train and val"): (0, 0, 0),
        ("near-identical", "train and test"): (1, 1, 1 / 4),
        ("near-identical", "val and test"): (1, 1, 1 / 4),
    }
    rows = zip(table.index, table.to_numpy(), strict=True)
    assert {key: tuple(row) for key, row in rows} == expected


def test_one_split_alone_has_no_border_to_cross(phantom):
    table = audit.leakage(phantom[phantom["split"] == "train"])
    assert table.empty and "images" in table


def test_a_patient_grouped_split_audits_clean(phantom):
    table = audit.leakage(assign(phantom, "strict", 0))
    checks = {"same patient", "same number and kind", "same number", "byte-identical"}
    assert set(table["check"]) == checks
    assert table.query("splits == 'train and val'")["images"].sum() == 0


def test_the_list_of_original_files_tells_image_and_patient(tmp_path, monkeypatch):
    monkeypatch.setenv("XRAYLIB_DATA", str(tmp_path))
    assert audit.originals("kermany") is None, "the list is not here"
    columns = "path,label,width,height,bytes\n"
    rows = (
        "train/NORMAL/NORMAL2-IM-0400-0001.jpeg,0,1800,1500,90000\n"
        "train/PNEUMONIA/person300_virus_2.jpeg,1,1200,800,40000\n"
    )
    (tmp_path / "kermany_originals.csv").write_text(columns + rows)
    listed = audit.originals("kermany")
    assert listed["image_id"].tolist() == ["NORMAL2-IM-0400-0001", "person300_virus_2"]
    assert listed["patient"].tolist() == ["IM-0400", "person300"]
    features = audit.file_features(listed)
    np.testing.assert_allclose(features["aspect ratio"], [1.2, 1.5])
    assert audit.originals("phantom") is None


def test_single_features_are_what_their_names_say(tmp_path):
    rows, pixels = [], []
    for number, (width, height, value) in enumerate(
        [(40, 30, 0), (16, 16, 255), (20, 10, 100), (8, 8, 250)]
    ):
        path = tmp_path / f"{number}.png"
        Image.new("L", (width, height), value).save(path)
        rows.append({"path": str(path), "image_id": path.stem, "label": number % 2})
        image = np.full((16, 16, 1), value, np.uint8)
        image[4:12, 4:12] = 7
        pixels.append(image)
    images = pd.DataFrame(rows, index=[3, 5, 7, 9]).assign(split="train", patient="p")
    table = audit.file_properties(images)
    assert table[["width", "height"]].to_numpy().tolist() == [[40, 30], [16, 16], [20, 10], [8, 8]]
    assert table.index.tolist() == [3, 5, 7, 9]
    assert (table["bytes"] > 0).all()
    table = single_features(images, np.stack(pixels))
    assert table["aspect ratio"].tolist() == [40 / 30, 1, 2, 1] and table["width"].tolist() == [
        40,
        16,
        20,
        8,
    ]
    np.testing.assert_allclose(table["bits a pixel"], 8 * table["file size"] / [1200, 256, 200, 64])
    alike = single_features(images.iloc[[1, 1]], np.stack(pixels)[[1, 1]])
    assert "width" not in alike, "the same in all files"
    assert table["border intensity"].tolist() == [0, 255, 100, 250]
    np.testing.assert_allclose(table["mean intensity"], [1.75, 193, 76.75, 189.25])
    np.testing.assert_allclose(table["saturated pixels"], [0, 0.75, 0, 0.75])


def test_a_single_feature_baseline_sees_that_feature_alone(phantom):
    table = single_features(phantom, images.load_pixels(phantom, 32))
    assert not audit.single_feature(phantom, "majority class", 32).any()
    for name in ("file size", "mean intensity"):
        np.testing.assert_allclose(audit.single_feature(phantom, name, 32)[:, 0], table[name])
