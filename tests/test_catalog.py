import os

import pytest
from test_manifest import places  # noqa: F401

from xraylib import paths
from xraylib.datasets import audit, catalog, manifest, verify
from xraylib.errors import NotFoundError


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("kermani", "Did you mean 'kermany'"),
        ("kermany/", "Did you mean 'kermany'"),
        ("data/nowhere", "data/nowhere"),
        ("gs://bucket/images", "gcsfuse"),
    ],
)
def test_what_is_neither_a_data_set_nor_a_folder_is_refused(name, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFoundError, match="Fix: ") as failure:
        catalog.get_dataset(name)
    assert said in str(failure.value)
    with pytest.raises(NotFoundError, match="nowhere"):
        manifest.load(tmp_path / "nowhere")


def test_two_folders_of_one_name_are_two_data_sets(tmp_path):
    folders = [tmp_path / parent / "images" for parent in ("a", "b")]
    for folder in folders:
        folder.mkdir(parents=True)
    names = [catalog.get_dataset(folder).name for folder in folders]
    assert len(set(names)) == 2 and all(name.startswith("folder-images-") for name in names)
    assert catalog.get_dataset(f"{folders[0]}{os.sep}").name == names[0]
    # What an Experiment asks for by the name of its report.
    assert audit.originals(names[0]) is None
    assert catalog.get_dataset(names[0]).root == folders[0].resolve()
    assert catalog.reference(names[1]) == str(folders[1].resolve())
    assert catalog.reference("kermany") == "kermany"


def test_a_folder_of_any_name_gives_a_name_that_files_can_have(tmp_path):
    long = tmp_path / ("ü" * 120)
    raw = tmp_path / os.fsdecode(b"caf\xe9")
    for folder in (long, raw):
        folder.mkdir()
        name = catalog.get_dataset(folder).name
        assert len(name.encode()) < 150
        (tmp_path / f"index-{name}.csv").write_text("written")


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
