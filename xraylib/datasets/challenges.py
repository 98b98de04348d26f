"""Readers of two collections with radiologists' labels, for external validation.

Each reader turns a user's download into a manifest without hashes. Nobody may train, tune or choose
a threshold on these images (`reports/protocol_external.md`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from xraylib.errors import InvalidDataError, NotFoundError

# RSNA Pneumonia Challenge, Kaggle edition: 26,684 labelled DICOM files.
RSNA_LABELS = "stage_2_train_labels.csv"
RSNA_CLASSES = "stage_2_detailed_class_info.csv"
RSNA_IMAGES = "stage_2_train_images"
RSNA_OPACITY = "Lung Opacity"
RSNA_NORMAL = "Normal"
RSNA_CLASS_NAMES = (RSNA_OPACITY, RSNA_NORMAL, "No Lung Opacity / Not Normal")

# VinDr-PCXR (PhysioNet, children): the findings that count as pneumonia, as its table spells them.
VINDR_PNEUMONIA = ["Pneumonia", "Brocho-pneumonia", "Pleuro-pneumonia"]
VINDR_NORMAL = "No finding"

COLUMNS = ("image_id", "path", "label", "patient", "kind", "split")


def read_rsna(folder: Path) -> pd.DataFrame:
    """Read a download of the RSNA Pneumonia Challenge in Kaggle's layout.

    Parameters
    ----------
    folder : pathlib.Path
        Contains `stage_2_train_images/<patientId>.dcm`, `stage_2_train_labels.csv` (`patientId`,
        `Target` and a box) and `stage_2_detailed_class_info.csv` (`patientId`, `class`).

    Returns
    -------
    pandas.DataFrame
        The columns `COLUMNS`, one row per image, sorted by `image_id`. The label is 1 for lung
        opacity; the middle class (not normal, no opacity) stays, as a negative. Kaggle's identifier
        names an image, so an image counts as a patient. The split is test.

    Raises
    ------
    NotFoundError
        The folder lacks a list or an image.
    InvalidDataError
        The lists contradict each other.
    """
    labels = _read(folder / RSNA_LABELS, ["patientId", "Target"])
    rows = _read(folder / RSNA_CLASSES, ["patientId", "class"]).drop_duplicates()
    classes = rows.set_index("patientId")["class"]
    target = labels.groupby("patientId")["Target"].agg(["min", "max"]).reindex(classes.index)
    expected = (classes == RSNA_OPACITY).map({True: "1", False: "0"})
    contradicted = (target["min"] != expected) | (target["max"] != expected)
    problems: dict[str, Any] = {
        "has two classes": classes.index.duplicated(),
        "has an unknown class": ~classes.isin(RSNA_CLASS_NAMES),
        "has a class that its label contradicts": contradicted,
    }
    _refuse(problems, classes.index, folder)
    files = [folder / RSNA_IMAGES / f"{name}.dcm" for name in classes.index]
    return _manifest(files, classes == RSNA_OPACITY, classes == RSNA_NORMAL)


def read_vindr_pcxr(folder: Path) -> pd.DataFrame:
    """Read a download of VinDr-PCXR, chest X-rays of children read by one radiologist each.

    Both of its folders are read, because nothing here is trained on it.

    Parameters
    ----------
    folder : pathlib.Path
        Contains, for `train` and `test`, `<split>/<image_id>.dicom` and `image_labels_<split>.csv`
        (`image_id`, then a column of 0 and 1 per finding, several rows per image where several
        radiologists read it).

    Returns
    -------
    pandas.DataFrame
        The columns `COLUMNS`, one row per image, sorted by `image_id`. The label is 1 for any of
        `VINDR_PNEUMONIA`. The collection names no patients, so each image counts as one. The split
        is test.

    Raises
    ------
    NotFoundError
        The folder lacks a list or an image.
    InvalidDataError
        An image has no finding at all, pneumonia and `No finding` at once, or is in both folders.
    """
    parts = []
    for split in ("train", "test"):
        file = folder / f"image_labels_{split}.csv"
        findings = _read(file, ["image_id", VINDR_NORMAL, *VINDR_PNEUMONIA])
        findings = findings.drop(columns=["rad_ID", "rad_id"], errors="ignore")
        values = findings.set_index("image_id").apply(pd.to_numeric, errors="coerce")
        damaged = ~values.isin([0, 1]).all(axis=1)
        _refuse({"has a finding that is not 0 or 1": damaged}, values.index, file)
        # An image has a finding if any of its readers saw it.
        values = values.groupby("image_id").max()
        part = pd.DataFrame({"normal": values[VINDR_NORMAL] == 1, "any": values.any(axis=1)})
        part["pneumonia"] = values[VINDR_PNEUMONIA].any(axis=1)
        part["file"] = [str(folder / split / f"{name}.dicom") for name in values.index]
        parts.append(part)
    table = pd.concat(parts)
    problems: dict[str, Any] = {
        f"has pneumonia and {VINDR_NORMAL!r}": table["pneumonia"] & table["normal"],
        "has neither a finding nor none": ~table["any"],
        "is in both folders": table.index.duplicated(),
    }
    _refuse(problems, table.index, folder)
    return _manifest([Path(file) for file in table["file"]], table["pneumonia"], table["normal"])


# By `catalog.Dataset.reader`.
READERS = {"rsna": read_rsna, "vindr-pcxr": read_vindr_pcxr}


def _read(file: Path, columns: list[str]) -> pd.DataFrame:
    """Read a list as text, with the columns that are needed."""
    if not file.exists():
        raise NotFoundError(f"{file} is missing. Fix: download the list into that folder.")
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    missing = [name for name in columns if name not in table]
    if missing:
        raise InvalidDataError(
            f"{file} lacks the columns {', '.join(missing)}. Fix: download the list again."
        )
    return table


def _refuse(problems: Mapping[str, Any], names: pd.Index, where: Path) -> None:
    """Raise `InvalidDataError` that names the first image with a problem."""
    for problem, bad in problems.items():
        if bad.any():
            name = names[int(np.argmax(bad))]
            raise InvalidDataError(f"{where}: {name} {problem}. Fix: download the lists again.")


def _manifest(files: list[Path], positive: pd.Series, normal: pd.Series) -> pd.DataFrame:
    """Return one row per file, sorted by image."""
    missing = [file for file in files if not file.exists()]
    if missing:
        raise NotFoundError(f"{missing[0]} is missing. Fix: download the images into that folder.")
    names = [file.stem for file in files]
    columns = {
        "image_id": names,
        "path": [str(file) for file in files],
        "label": positive.to_numpy(dtype="int64"),
        "patient": names,
        "kind": np.where(normal, "normal", "unknown"),
        "split": "test",
    }
    return pd.DataFrame(columns).sort_values("image_id", ignore_index=True)
