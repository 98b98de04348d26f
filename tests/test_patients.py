"""Who is one patient: counts under our reading and under the authors' numbering of version 3."""

import pandas as pd
import pytest
from notebook_code import definitions
from test_manifest import places, plant  # noqa: F401
from test_splits import named

from xraylib import paths
from xraylib.datasets import audit, manifest

notebook = definitions("09_kermany_forensics")

# The same 12 images, as version 2 and as version 3 might name them.
VERSION_2 = {
    "train/PNEUMONIA": (
        *("person300_bacteria_1", "person300_virus_2", "person301_bacteria_3"),
        *("person301_bacteria_4", "person302_virus_5"),
    ),
    "train/NORMAL": ("IM-0400-0001", "NORMAL2-IM-0400-0001", "IM-0401-0001"),
    "val/NORMAL": ("IM-0402-0001",),
    "val/PNEUMONIA": ("person303_virus_6",),
    "test/NORMAL": ("IM-0007-0001",),
    "test/PNEUMONIA": ("person100_bacteria_7",),
}
VERSION_3 = {
    "train/PNEUMONIA": (
        *("BACTERIA-11-0001", "VIRUS-11-0002", "BACTERIA-12-0001"),
        *("BACTERIA-12-0002", "VIRUS-13-0001", "VIRUS-14-0001"),
    ),
    "train/NORMAL": (*("NORMAL-21-0001", "NORMAL-21-0002", "NORMAL-22-0001", "NORMAL-23-0001"),),
    "test/NORMAL": ("NORMAL-31-0001",),
    "test/PNEUMONIA": ("BACTERIA-41-0001",),
}


def files(version):
    return [f"{folder}/{name}.jpeg" for folder, names in version.items() for name in names]


def table(version, digests):
    """A manifest of one version, with one digest per image in the order of its names."""
    parts = [named(folder.split("/")[0], *names) for folder, names in version.items()]
    images = pd.concat(parts, ignore_index=True)
    return images.assign(sha256=[digests[name] for name in images["image_id"]])


@pytest.fixture
def both():
    """Manifests of both versions whose equal images have equal digests."""
    pairs = {
        "person300_bacteria_1": "BACTERIA-11-0001",
        "person300_virus_2": "VIRUS-11-0002",
        "person301_bacteria_3": "BACTERIA-12-0001",
        "person301_bacteria_4": "BACTERIA-12-0002",
        "person302_virus_5": "VIRUS-13-0001",
        "person303_virus_6": "VIRUS-14-0001",
        "IM-0400-0001": "NORMAL-21-0001",
        "NORMAL2-IM-0400-0001": "NORMAL-21-0002",
        "IM-0401-0001": "NORMAL-22-0001",
        "IM-0402-0001": "NORMAL-23-0001",
        "IM-0007-0001": "NORMAL-31-0001",
        "person100_bacteria_7": "BACTERIA-41-0001",
    }
    version_2 = table(VERSION_2, {name: name for name in pairs})
    version_3 = table(VERSION_3, {new: old for old, new in pairs.items()})
    return version_2, version_3


def test_patients_are_counted_by_split_and_class(both):
    counts = notebook.patient_counts(both[0])
    assert counts.to_dict("records") == [
        dict(zip(counts.columns, row, strict=True))
        for row in [
            ("train", "NORMAL", 3, 2, 0, "1: 1, 2: 1"),
            ("train", "PNEUMONIA", 5, 3, 1, "1: 1, 2: 2"),
            ("val", "NORMAL", 1, 1, 0, "1: 1"),
            ("val", "PNEUMONIA", 1, 1, 0, "1: 1"),
            ("test", "NORMAL", 1, 1, 0, "1: 1"),
            ("test", "PNEUMONIA", 1, 1, 0, "1: 1"),
        ]
    ]


def test_the_evidence_sets_our_counts_beside_those_of_version_3(both):
    rows = [(*folder.split("/"), name) for folder, names in VERSION_3.items() for name in names]
    listed = pd.DataFrame(rows, columns=["split", "class", "name"])
    evidence = notebook.patient_evidence(both[0], listed)
    assert evidence["numbering"].tolist() == ["file names", "version 3"] * 4
    assert evidence["split"].tolist() == ["train"] * 4 + ["test"] * 4
    # The images of our validation folder are training images of version 3.
    columns = ["images", "patients", "both_kinds", "sizes"]
    assert evidence[columns].to_numpy().tolist() == [
        *[[4, 3, 0, "1: 2, 2: 1"]] * 2,
        *[[6, 4, 1, "1: 2, 2: 2"]] * 2,
        *[[1, 1, 0, "1: 1"]] * 4,
    ]


def test_versions_that_agree_and_versions_that_do_not(both):
    version_2, version_3 = both
    agree = notebook.compare_numberings(version_2, version_3).set_index("split")
    assert agree.loc["train"].to_dict() == {"images": 10, "divided": 0, "merged": 0}
    apart = version_3.copy()
    # Version 3 takes 300's virus for another child, and 302 for the same child as 303.
    apart.loc[apart["image_id"] == "VIRUS-11-0002", "patient"] = "patient19"
    apart.loc[apart["image_id"] == "VIRUS-14-0001", "patient"] = "patient13"
    differ = notebook.compare_numberings(version_2, apart).set_index("split")
    assert differ.loc["train", ["divided", "merged"]].tolist() == [1, 1]
    assert differ.loc["test", ["divided", "merged"]].tolist() == [0, 0]


def test_bytes_that_a_version_has_twice_are_not_joined(both):
    version_2, version_3 = both
    twice = version_2.copy()
    twice.loc[twice["image_id"] == "IM-0401-0001", "sha256"] = "IM-0402-0001"
    joined = notebook.compare_numberings(twice, version_3).set_index("split")
    assert joined.loc["train", "images"] == 8


def test_no_patient_is_in_two_splits_under_the_names_of_either_version(both):
    for images in both:
        pooled = images.replace({"split": {"val": "train"}})
        assert pooled.groupby("patient")["split"].nunique().eq(1).all()
    plant(paths.DATA / "chest_xray_v3", files(VERSION_3))
    crossing = audit.leakage(manifest.load("kermany-v3")).set_index("check")["images"]
    assert crossing["same patient"] == 0
