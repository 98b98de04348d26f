"""Readers of two collections with radiologists' labels, for external validation.

Each reader lists the images of a user's download. Nobody may train, tune or choose a threshold on
these images (`reports/protocol_external.md`).
"""

from pathlib import Path

import numpy as np
import pandas as pd

from xraylib.datasets.layouts import Layout
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


def read_rsna(folder: Path) -> Layout:
    """Read a download of the RSNA Pneumonia Challenge in Kaggle's layout.

    Parameters
    ----------
    folder : pathlib.Path
        Contains `stage_2_train_images/<patientId>.dcm`, `stage_2_train_labels.csv` (`patientId`,
        `Target` and a box) and `stage_2_detailed_class_info.csv` (`patientId`, `class`).

    Returns
    -------
    Layout
        The label is 1 for lung opacity; the middle class (not normal, no opacity) stays, as a
        negative of the kind unknown. The collection names no patients. The split is test.

    Raises
    ------
    NotFoundError
        The folder lacks a list or an image.
    InvalidDataError
        The lists contradict each other, or name a class that is not known.
    """
    labels = _read(folder / RSNA_LABELS, ["patientId", "Target"])
    rows = _read(folder / RSNA_CLASSES, ["patientId", "class"]).drop_duplicates()
    classes = rows.set_index("patientId")["class"]
    target = labels.groupby("patientId")["Target"].agg(["min", "max"]).reindex(classes.index)
    expected = (classes == RSNA_OPACITY).map({True: "1", False: "0"})
    agrees = (target["min"] == expected) & (target["max"] == expected)
    agrees &= classes.isin(RSNA_CLASS_NAMES) & ~classes.index.duplicated()
    _refuse(agrees, folder)
    files = [f"{RSNA_IMAGES}/{name}.dcm" for name in classes.index]
    return _layout(folder, files, classes == RSNA_OPACITY, classes == RSNA_NORMAL)


def read_vindr_pcxr(folder: Path) -> Layout:
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
    Layout
        The label is 1 for any of `VINDR_PNEUMONIA`. The collection names no patients. The split is
        test.

    Raises
    ------
    NotFoundError
        The folder lacks a list or an image.
    InvalidDataError
        An image has no finding at all, pneumonia and `No finding` at once, or is in both folders.
    """
    parts = []
    for split in ("train", "test"):
        findings = _read(
            folder / f"image_labels_{split}.csv",
            ["image_id", VINDR_NORMAL, *VINDR_PNEUMONIA],
        )
        findings = findings.drop(columns=["rad_ID", "rad_id"], errors="ignore")
        values = findings.set_index("image_id").apply(pd.to_numeric, errors="coerce")
        is_valid = values.isin([0, 1]).all(axis=1).groupby("image_id").all()
        # An image has a finding if any of its readers saw it.
        values = values.groupby("image_id").max()
        is_normal = values[VINDR_NORMAL] == 1
        is_pneumonia = values[VINDR_PNEUMONIA].any(axis=1)
        agrees = is_valid & values.any(axis=1) & ~(is_normal & is_pneumonia)
        part = pd.DataFrame({"normal": is_normal, "pneumonia": is_pneumonia, "agrees": agrees})
        parts.append(part.assign(file=split + "/" + part.index + ".dicom"))
    table = pd.concat(parts)
    _refuse(table["agrees"] & ~table.index.duplicated(), folder)
    return _layout(folder, table["file"].tolist(), table["pneumonia"], table["normal"])


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


def _refuse(agrees: pd.Series, folder: Path) -> None:
    """Refuse lists that contradict each other or themselves; name the first such image."""
    if not agrees.all():
        raise InvalidDataError(
            f"{folder}: what the lists say of {agrees.idxmin()} is unknown or contradictory. "
            "Fix: download the lists again."
        )


def _layout(folder: Path, files: list[str], positive: pd.Series, normal: pd.Series) -> Layout:
    """List the images of a download, all of which must be there."""
    missing = [file for file in files if not (folder / file).exists()]
    if missing:
        fix = "download the images into that folder"
        raise NotFoundError(f"{folder / missing[0]} is missing. Fix: {fix}.")
    columns = {
        "relative": files,
        "split": "test",
        "label": positive.to_numpy(dtype="int64"),
        "kind": np.where(normal, "normal", "unknown"),
        "patient": "",
        "folder": "",
    }
    return Layout(folder, pd.DataFrame(columns), [])
