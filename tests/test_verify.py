import logging
from dataclasses import replace

import pytest
from test_manifest import FILES, kermany, places, plant  # noqa: F401

from xraylib import paths
from xraylib.datasets import catalog, verify
from xraylib.errors import InvalidDataError

COUNTS = {"train": (2, 2), "test": (1, 1)}


def kermany_of(*editions):
    return replace(catalog.get_dataset("kermany"), expected=editions)


def test_verify_counts_and_names_the_content(kermany):  # noqa: F811
    table = verify.verify(kermany_of((COUNTS, "")))
    assert table[["split", "label", "images", "expected"]].values.tolist() == [
        ["test", 0, 1, 1],
        ["test", 1, 1, 1],
        ["train", 0, 2, 2],
        ["train", 1, 2, 2],
    ]
    (kermany / FILES[0]).write_bytes(b"another content")
    assert (
        verify.verify(kermany_of((COUNTS, ""))).attrs["fingerprint"] != table.attrs["fingerprint"]
    )


def test_verify_names_what_differs_from_the_nearest_edition(kermany):  # noqa: F811
    far, near = {"train": (900, 900)}, {"train": (2, 3), "val": (1, 1), "test": (1, 1)}
    with pytest.raises(InvalidDataError) as failure:
        verify.verify(kermany_of((far, ""), (near, "")))
    assert "train/PNEUMONIA holds 2 images, not 3" in str(failure.value)
    assert "val/NORMAL holds 0 images, not 1" in str(failure.value)
    assert "test" not in str(failure.value).split(":", 1)[1].split("Fix: ")[0]


def test_an_incomplete_edition_that_is_known_is_a_warning(kermany, caplog):  # noqa: F811
    verify.verify(kermany_of((COUNTS, "the 16 images of the val folder are missing")))
    assert [r.levelno for r in caplog.records] == [logging.WARNING]
    assert "16 images" in caplog.text


def test_where_only_sums_are_published_sums_are_compared(kermany):  # noqa: F811
    assert verify.verify(kermany_of(({"train": 4, "test": 2}, "")))["expected"].isna().all()
    with pytest.raises(InvalidDataError, match="train holds 4 images, not 5"):
        verify.verify(kermany_of(({"train": 5, "test": 2}, "")))


def test_version_3_may_lack_the_image_that_its_public_list_lacks(caplog):
    expected = catalog.DATASETS["kermany-v3"].expected
    assert [counts["test"] for counts, _ in expected] == [(234, 390), (233, 390)]
    assert [bool(remark) for _, remark in expected] == [False, True]
    assert all(counts["train"] == (1349, 3883) for counts, _ in expected)


def test_describe_counts_what_is_there(kermany):  # noqa: F811
    (paths.DATA / "nih_external" / "COVID").mkdir(parents=True)
    table = verify.describe().set_index("name")
    assert table.loc["kermany", ["present", "images"]].tolist() == [True, len(FILES)]
    assert table.loc["nih", ["present", "images"]].tolist() == [False, 0]
