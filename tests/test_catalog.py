import logging
from dataclasses import replace

import pytest
from test_manifest import FILES, kermany, places, plant  # noqa: F401

from xraylib import paths
from xraylib.datasets import catalog, manifest, verify
from xraylib.errors import InvalidDataError, NotFoundError

COUNTS = {"train": (2, 2), "test": (1, 1)}


def kermany_of(*editions):
    return replace(catalog.get_dataset("kermany"), expected=editions)


def test_a_misspelt_name_gets_a_hint_and_a_missing_folder_is_named(tmp_path):
    with pytest.raises(NotFoundError, match="Did you mean 'kermany'"):
        catalog.get_dataset("kermani")
    with pytest.raises(NotFoundError, match="gcsfuse"):
        catalog.get_dataset("gs://bucket/films")
    with pytest.raises(NotFoundError, match="nowhere"):
        manifest.load(tmp_path / "nowhere")


def test_two_folders_of_one_name_are_two_data_sets(tmp_path):
    names = [catalog.get_dataset(tmp_path / place / "films").name for place in ("a", "b")]
    assert len(set(names)) == 2 and all(name.startswith("folder-films-") for name in names)
    assert catalog.get_dataset(str(tmp_path / "a" / "films")).name == names[0]


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


def test_every_data_set_states_source_licence_and_citation_and_how_to_get_it():
    table = verify.describe().set_index("name")
    assert table.index.tolist() == list(catalog.DATASETS)
    assert not table["present"].any()
    assert (table[["title", "licence", "source"]] != "").all(axis=None)
    assert all(d.url or d.by_hand or d.phantom for d in catalog.DATASETS.values())
    assert all(d.url.startswith("https://") and d.file for d in catalog.DATASETS.values() if d.url)
    cited = (paths.ROOT / "data" / "README.md").read_text(encoding="utf-8").split("## Cite")[1]
    assert all(
        f"**{name}**" in cited for name, dataset in catalog.DATASETS.items() if not dataset.phantom
    )


def test_describe_counts_what_is_there(kermany):  # noqa: F811
    (paths.DATA / "nih_external" / "COVID").mkdir(parents=True)
    table = verify.describe().set_index("name")
    assert table.loc["kermany", ["present", "images"]].tolist() == [True, len(FILES)]
    assert table.loc["nih", ["present", "images"]].tolist() == [False, 0]
