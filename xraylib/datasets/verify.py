"""Comparing a data set on this machine with what was published."""

import logging
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from xraylib.datasets import images, manifest
from xraylib.datasets.catalog import DATASETS, Counts, Dataset, get_dataset
from xraylib.errors import InvalidDataError

_log = logging.getLogger(__name__)


def describe() -> pd.DataFrame:
    """List the data sets.

    Returns
    -------
    pandas.DataFrame
        `name`, `title`, `licence`.
        `present`: bool, whether its images are on this machine.
        `images`: int, how many.
        `source`: where it was published.
    """
    rows = []
    for dataset in DATASETS.values():
        try:
            images_present = manifest.count(dataset)
        except InvalidDataError as error:
            _log.warning("%s", error)
            images_present = 0
        rows.append(
            {
                "name": dataset.name,
                "title": dataset.title,
                "licence": dataset.licence,
                "present": images_present > 0,
                "images": images_present,
                "source": dataset.source,
            }
        )
    return pd.DataFrame(rows)


def verify(name: str | Path | Dataset) -> pd.DataFrame:
    """Count the images of a data set against the published numbers.

    Returns
    -------
    pandas.DataFrame
        `split`: train, val or test.
        `label`: 0 normal, 1 pneumonia.
        `images`: int, on this machine.
        `expected`: Int64, missing where nothing is published.
        `attrs["fingerprint"]` names the content, as `images.fingerprint` does.

    Raises
    ------
    InvalidDataError
        If the numbers differ from every known edition.
    """
    dataset = get_dataset(name)
    indexed = manifest.index(dataset)
    manifest.check_classes(dataset, indexed)
    table = indexed.groupby(["split", "label"]).size().rename("images").reset_index()
    table.attrs["dataset"] = dataset.name
    table.attrs["fingerprint"] = images.fingerprint(indexed)
    edition = _nearest_edition(dataset, table) if dataset.expected else {}
    expected = []
    for split, label in zip(table["split"], table["label"], strict=True):
        by_class = edition.get(split)
        expected.append(by_class[label] if isinstance(by_class, tuple) else None)
    return table.assign(expected=pd.array(expected, dtype="Int64"))


def _nearest_edition(dataset: Dataset, table: pd.DataFrame) -> Counts:
    """Return the edition that the images are, or refuse them by what differs from the nearest."""
    counts = {str(split): tuple(rows["images"]) for split, rows in table.groupby("split")}

    def distance(edition: tuple[Counts, str]) -> int:
        return sum(abs(present - due) for _, present, due in _differences(edition[0], counts))

    nearest, remark = min(dataset.expected, key=distance)
    differences = _differences(nearest, counts)
    if differences:
        listed = "; ".join(
            f"{folder} holds {present} images, not {due}" for folder, present, due in differences
        )
        raise InvalidDataError(
            f"{dataset.root} is not as published: {listed}. Fix: remove it and {dataset.fix}."
        )
    if remark:
        _log.warning("%s: %s", dataset.root, remark)
    return nearest


def _differences(
    edition: Counts, counts: Mapping[str, tuple[int, ...]]
) -> list[tuple[str, int, int]]:
    """List the folders that differ, with the images there and those expected."""
    rows = []
    for split in dict.fromkeys((*edition, *counts)):
        present = counts.get(split, (0, 0))
        due = edition.get(split, (0, 0))
        if isinstance(due, int):
            rows.append((split, sum(present), due))
        else:
            rows.append((f"{split}/NORMAL", present[0], due[0]))
            rows.append((f"{split}/PNEUMONIA", present[1], due[1]))
    return [row for row in rows if row[1] != row[2]]
