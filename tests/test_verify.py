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
    assert table[["split", "label", "images"]].values.tolist() == [
        ["test", 0, 1],
        ["test", 1, 1],
        ["train", 0, 2],
        ["train", 1, 2],
    ]
    notes = table.attrs["notes"]
    assert notes[0] == "there are as many images as published (train 2 + 2, test 1 + 1)"
    assert "no image was decoded" in notes[-1] and "data audit kermany" in notes[-1]
    (kermany / FILES[0]).write_bytes(b"another content")
    assert (
        verify.verify(kermany_of((COUNTS, ""))).attrs["fingerprint"] != table.attrs["fingerprint"]
    )


def test_verify_refuses_other_numbers_than_published_and_names_both(kermany):  # noqa: F811
    other = {"train": (2, 3), "val": (1, 1), "test": (1, 1)}
    with pytest.raises(InvalidDataError, match=r"not as published.*Fix: ") as failure:
        verify.verify(kermany_of(({"train": (9, 9)}, ""), (other, "")))
    said = str(failure.value)
    assert "holds test 1 + 1, train 2 + 2 images" in said
    assert "not train 9 + 9 or train 2 + 3, val 1 + 1, test 1 + 1" in said


def test_an_incomplete_edition_that_is_known_is_said(kermany):  # noqa: F811
    table = verify.verify(kermany_of((COUNTS, "the 16 images of the val folder are missing")))
    assert "the 16 images of the val folder are missing" in table.attrs["notes"]


def test_where_only_sums_are_published_sums_are_compared(kermany):  # noqa: F811
    sums = {"train": (4,), "test": (2,)}
    assert "(train 4, test 2)" in verify.verify(kermany_of((sums, ""))).attrs["notes"][0]
    with pytest.raises(InvalidDataError, match="not as published"):
        verify.verify(kermany_of((sums | {"train": (5,)}, "")))


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
