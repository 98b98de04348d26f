"""Comparing a data set on this machine with what was published."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from xraylib.datasets import images
from xraylib.datasets.catalog import DATASETS, Counts, Dataset, _log, get_dataset
from xraylib.errors import InvalidDataError


def describe() -> pd.DataFrame:
    """List the data sets: name, title, licence, present (bool), images (int, files there), source."""
    from xraylib.datasets import manifest  # which finds its data set here

    rows = []
    for dataset in DATASETS.values():
        try:
            there = manifest.count(dataset)
        except InvalidDataError as error:
            _log.warning("%s", error)
            there = 0
        rows.append(
            (dataset.name, dataset.title, dataset.licence, there > 0, there, dataset.source)
        )
    return pd.DataFrame(rows, columns=["name", "title", "licence", "present", "images", "source"])


def verify(name: str | Path | Dataset) -> pd.DataFrame:
    """Count the images of a data set against the published numbers; `InvalidDataError` when they differ.

    The columns are split, label (0 normal, 1 pneumonia), images and expected (Int64, missing where nothing is
    published). `attrs["fingerprint"]` names the content, as `images.fingerprint` does.
    """
    from xraylib.datasets import manifest

    dataset = get_dataset(name)
    indexed = manifest.index(dataset)
    manifest.check_classes(dataset, indexed)
    table = indexed.groupby(["split", "label"]).size().rename("images").reset_index()
    table.attrs.update(dataset=dataset.name, fingerprint=images.fingerprint(indexed))
    counts: Counts = _nearest_edition(dataset, table) if dataset.expected else {}
    due = [
        (counts.get(split), label)
        for split, label in zip(table["split"], table["label"], strict=True)
    ]
    known = [both[label] if isinstance(both, tuple) else None for both, label in due]
    return table.assign(expected=pd.array(known, dtype="Int64"))


def _nearest_edition(dataset: Dataset, table: pd.DataFrame) -> Counts:
    found = {str(split): tuple(part["images"]) for split, part in table.groupby("split")}
    compared = [
        (_differences(counts, found), counts, remark) for counts, remark in dataset.expected
    ]
    wrong, counts, remark = min(
        compared, key=lambda one: sum(abs(there - due) for _, there, due in one[0])
    )
    if wrong:
        said = "; ".join(f"{where} holds {there} images, not {due}" for where, there, due in wrong)
        raise InvalidDataError(
            f"{dataset.root} is not as published: {said}. Fix: remove it and {dataset.fix}."
        )
    if remark:
        _log.warning("%s: %s", dataset.root, remark)
    return counts


def _differences(
    counts: Counts, found: Mapping[str, tuple[int, ...]]
) -> list[tuple[str, int, int]]:
    """Where, images found, images expected."""
    rows = []
    for split in dict.fromkeys((*counts, *found)):
        there, due = found.get(split, (0, 0)), counts.get(split, (0, 0))
        if isinstance(due, int):
            rows.append((split, sum(there), due))
        else:
            rows += [
                (f"{split}/NORMAL", there[0], due[0]),
                (f"{split}/PNEUMONIA", there[1], due[1]),
            ]
    return [row for row in rows if row[1] != row[2]]
