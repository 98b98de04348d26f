"""What a data set on this machine holds: as published, or as a user's own was understood."""

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from xraylib.datasets import images, manifest, splits
from xraylib.datasets.catalog import DATASETS, Counts, Dataset, get_dataset
from xraylib.datasets.files import PassedOver, why_no_image
from xraylib.datasets.layouts import first_names
from xraylib.errors import InvalidDataError, XraylibError

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
        except (XraylibError, PermissionError) as error:
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
    """Count the images of a data set, against the published numbers where there are any.

    Parameters
    ----------
    name : str, Path or Dataset
        As for `manifest.load`.

    Returns
    -------
    pandas.DataFrame
        One row per split and class.

        - `split`: train, val or test.
        - `label`: 0 normal, 1 pneumonia.
        - `images`, `patients`: int, on this machine.

        `attrs["fingerprint"]` names the content, as `images.fingerprint` does.
        `attrs["notes"]` is a list of str: how patients were read, and what was decided or is odd.
        `attrs["passed_over"]` is a dict of the reasons why files are not read, each with a list of
        paths.
        `attrs["problem"]` is a str: why a data set of the user's cannot be trained on, or empty.

    Raises
    ------
    InvalidDataError
        If the data set cannot be understood, or differs from every published edition.
    """
    dataset = get_dataset(name)
    reading = manifest.read(dataset)
    rows = reading.manifest
    if dataset.is_own:
        rows = manifest.without_quarantined(dataset, rows)
    manifest.check_classes(dataset, rows)
    by_class = rows.groupby(["split", "label"])
    table = by_class.agg(images=("image_id", "size"), patients=("patient", "nunique"))
    notes = [*_as_published(dataset, table["images"]), *_notes(dataset, reading, rows)]
    passed_over = pd.DataFrame(reading.passed_over, columns=PassedOver._fields)
    table = table.reset_index()
    table.attrs = {
        "dataset": dataset.name,
        "fingerprint": images.fingerprint(rows),
        "notes": notes,
        "passed_over": passed_over.groupby("reason")["path"].agg(list).to_dict(),
        "problem": _problem(dataset, rows) if dataset.is_own else "",
    }
    return table


def _notes(dataset: Dataset, reading: manifest.Reading, rows: pd.DataFrame) -> Iterator[str]:
    """Say how patients were read, what was decided or is odd, and what was not looked at."""
    yield from reading.remarks
    for source, count in Counter(reading.patient_sources).most_common():
        yield f"the patient of {count} images is read from {source}"
    labels = rows.groupby("patient")["label"].nunique()
    both = labels.index[labels > 1]
    if len(both):
        yield f"{len(both)} patients have images of both classes: {first_names(both)}"
    copies = rows[rows["sha256"].duplicated(keep=False)]
    if len(copies):
        names = first_names(copies["image_id"])
        yield f"{len(copies)} images are byte-identical to another: {names}"
    conflicts = copies[copies.groupby("sha256")["label"].transform("nunique") > 1]
    if len(conflicts):
        fix = "`data audit` leaves them out"
        yield f"{len(conflicts)} of these have copies of the other class: {fix}"
    command = f"python -m xraylib data audit {dataset.reference}"
    yield f"no image was decoded: `{command}` decodes each and names the damaged ones"


def _problem(dataset: Dataset, rows: pd.DataFrame) -> str:
    """Say what would stop a training on a user's own images; empty where nothing would."""
    reasons = rows["path"].map(why_no_image)
    unreadable = rows[reasons != ""]
    if len(unreadable):
        fix = f"`python -m xraylib data audit {dataset.reference} --max-bad 1` leaves them out"
        first = f"{unreadable['path'].iloc[0]} ({reasons[unreadable.index[0]]})"
        return f"{len(unreadable)} images cannot be read, first {first}. Fix: {fix}."
    is_test_only = set(rows["split"]) == {"test"}
    try:
        manifest.check_kinds(dataset, rows)
        if not is_test_only:
            splits.assign(rows, "strict", 0)
    except InvalidDataError as error:
        return str(error)
    return ""


def _as_published(dataset: Dataset, images: pd.Series) -> Iterator[str]:
    """Say which published edition the images are, if any is known; refuse what is none of them."""
    counts = {str(split): tuple(numbers) for split, numbers in images.groupby("split")}
    sums = {split: (sum(numbers),) for split, numbers in counts.items()}
    for edition, remark in dataset.expected:
        if edition in (counts, sums):
            yield f"there are as many images as published ({_listed(edition)})"
            if remark:
                yield remark
            return
    if dataset.expected:
        published = " or ".join(_listed(edition) for edition, _ in dataset.expected)
        raise InvalidDataError(
            f"{dataset.root} is not as published: it holds {_listed(counts)} images (normal + "
            f"pneumonia), not {published}. Fix: remove it and {dataset.fix}."
        )


def _listed(counts: Counts) -> str:
    return ", ".join(f"{split} {' + '.join(map(str, n))}" for split, n in counts.items())
