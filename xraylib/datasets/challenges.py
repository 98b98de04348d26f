"""Readers of two collections with radiologists' labels, for external validation.

Each reader turns a user's download into a table like a manifest, with more columns. Nobody may
train, tune or choose a threshold on these images (`reports/protocol_external.md`).
"""

import logging
import warnings
from pathlib import Path

import pandas as pd

from xraylib.errors import InvalidDataError, NotFoundError

# RSNA Pneumonia Challenge, Kaggle edition: 26,684 labelled DICOM files.
RSNA_LABELS = "stage_2_train_labels.csv"
RSNA_CLASSES = "stage_2_detailed_class_info.csv"
RSNA_IMAGES = "stage_2_train_images"
RSNA_OPACITY = "Lung Opacity"
RSNA_CLASS_NAMES = (RSNA_OPACITY, "Normal", "No Lung Opacity / Not Normal")
# The boxes are in pixels of images of this height and width.
RSNA_SIZE = 1024

# VinDr-PCXR (PhysioNet, children): the findings that count as pneumonia, as its table spells them.
VINDR_PNEUMONIA = ("Pneumonia", "Brocho-pneumonia", "Pleuro-pneumonia")
VINDR_NORMAL = "No finding"

COLUMNS = ("image_id", "path", "label", "patient", "kind", "split")


def read_rsna(folder: Path) -> pd.DataFrame:
    """Read a download of the RSNA Pneumonia Challenge in Kaggle's layout.

    Parameters
    ----------
    folder : pathlib.Path
        Contains `stage_2_train_images/<patientId>.dcm`, `stage_2_train_labels.csv` (`patientId`,
        `x`, `y`, `width`, `height`, `Target`) and `stage_2_detailed_class_info.csv` (`patientId`,
        `class`).

    Returns
    -------
    pandas.DataFrame
        One row per image, sorted by `image_id`.

        - `image_id`, `path`, `label` (1: lung opacity), `patient`, `kind` (normal or unknown),
          `split` (test). Kaggle's identifier names an image, so an image counts as a patient.
        - `rsna_class`: the radiologists' class.
        - `view` (AP, PA, or empty), `age` in years: from the header of the image.
        - `boxes`: tuple of (x, y, width, height) in shares of the image.

    Raises
    ------
    NotFoundError
        The folder lacks a list or an image.
    InvalidDataError
        The lists contradict each other, or a box lies outside its image.
    """
    labels = _read(folder / RSNA_LABELS, ("patientId", "x", "y", "width", "height", "Target"))
    classes = _read(folder / RSNA_CLASSES, ("patientId", "class")).drop_duplicates()
    _refuse(classes["patientId"].duplicated(), classes["patientId"], "has two classes", folder)
    unknown = ~classes["class"].isin(RSNA_CLASS_NAMES)
    _refuse(unknown, classes["patientId"], "has an unknown class", folder)
    table = classes.rename(columns={"patientId": "image_id", "class": "rsna_class"})
    target = labels.groupby("patientId")["Target"].agg(["min", "max"])
    target = target.reindex(table["image_id"]).reset_index(drop=True)
    table = table.reset_index(drop=True)
    expected = (table["rsna_class"] == RSNA_OPACITY).map({True: "1", False: "0"})
    contradicted = (target["min"] != expected) | (target["max"] != expected)
    what = "has a class that its label contradicts"
    _refuse(contradicted, table["image_id"], what, folder)
    table["label"] = expected.astype("int64")
    boxes = _rsna_boxes(labels[labels["Target"] == "1"], folder)
    table["boxes"] = table["image_id"].map(lambda name: boxes.get(name, ()))
    table["path"] = [str(folder / RSNA_IMAGES / f"{name}.dcm") for name in table["image_id"]]
    headers = pd.DataFrame([_header(Path(path)) for path in table["path"]], index=table.index)
    table = table.join(headers)
    table["kind"] = table["rsna_class"].map({"Normal": "normal"}).fillna("unknown")
    return _like_a_manifest(table, ["rsna_class", "view", "age", "boxes"])


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
        One row per image, sorted by `image_id`.

        - `image_id`, `path`, `label` (1: any of `VINDR_PNEUMONIA`), `patient` (the collection
          names none, so each image counts as a patient), `kind`, `split` (test).
        - `finding`: pneumonia, normal (no finding), or other.
        - `their_split`: train or test.
        - `view` (AP, PA, or empty), `age` in years: from the header of the image.

    Raises
    ------
    NotFoundError
        The folder lacks a list or an image.
    InvalidDataError
        An image has no finding at all, or pneumonia and `No finding` at once.
    """
    parts = []
    for split in ("train", "test"):
        file = folder / f"image_labels_{split}.csv"
        findings = _read(file, ("image_id", VINDR_NORMAL, *VINDR_PNEUMONIA))
        findings = findings.drop(columns=["rad_ID", "rad_id"], errors="ignore")
        values = findings.set_index("image_id").apply(pd.to_numeric, errors="coerce")
        damaged = ~values.isin([0, 1]).all(axis=1)
        _refuse(damaged, damaged.index, "has a finding that is not 0 or 1", file)
        # An image has a finding if any of its readers saw it.
        values = values.groupby("image_id").max()
        pneumonia = values[list(VINDR_PNEUMONIA)].max(axis=1) == 1
        contradicted = pneumonia & (values[VINDR_NORMAL] == 1)
        _refuse(contradicted, values.index, f"has pneumonia and {VINDR_NORMAL!r}", file)
        nothing = values.max(axis=1) == 0
        _refuse(nothing, values.index, "has neither a finding nor none", file)
        finding = pd.Series("other", index=values.index)
        finding[values[VINDR_NORMAL] == 1] = "normal"
        finding[pneumonia] = "pneumonia"
        part = finding.rename("finding").reset_index()
        part["path"] = [str(folder / split / f"{name}.dicom") for name in part["image_id"]]
        parts.append(part.assign(their_split=split))
    table = pd.concat(parts, ignore_index=True)
    _refuse(table["image_id"].duplicated(), table["image_id"], "is in both folders", folder)
    table["label"] = (table["finding"] == "pneumonia").astype("int64")
    headers = pd.DataFrame([_header(Path(path)) for path in table["path"]], index=table.index)
    table = table.join(headers)
    table["kind"] = table["finding"].map({"normal": "normal"}).fillna("unknown")
    return _like_a_manifest(table, ["finding", "their_split", "view", "age"])


# By `catalog.Dataset.reader`.
READERS = {"rsna": read_rsna, "vindr-pcxr": read_vindr_pcxr}


def _read(file: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """Read a list as text, with the columns that are needed."""
    if not file.exists():
        raise NotFoundError(f"{file} is missing. Fix: download the list into that folder.")
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    missing = [name for name in columns if name not in table]
    if missing:
        what = f"{file} lacks the columns {', '.join(missing)}"
        raise InvalidDataError(f"{what}. Fix: download the list again.")
    return table


def _refuse(bad: pd.Series, names: pd.Series | pd.Index, what: str, where: Path) -> None:
    """Raise `InvalidDataError` that names the first bad image."""
    if bad.any():
        first = next(iter(names[bad.to_numpy()]))
        raise InvalidDataError(f"{where}: {first} {what}. Fix: download the lists again.")


def _rsna_boxes(
    rows: pd.DataFrame, folder: Path
) -> dict[str, tuple[tuple[float, float, float, float], ...]]:
    """Boxes by image in shares of its height and width."""
    sides = ["x", "y", "width", "height"]
    pixels = rows[sides].apply(pd.to_numeric, errors="coerce") / RSNA_SIZE
    outside = pixels.isna().any(axis=1) | (pixels < 0).any(axis=1)
    outside |= (pixels["x"] + pixels["width"] > 1) | (pixels["y"] + pixels["height"] > 1)
    _refuse(outside, rows["patientId"], "has a box outside the image", folder / RSNA_LABELS)
    shares = pixels.assign(image=rows["patientId"])
    boxes = {}
    for image, part in shares.groupby("image"):
        boxes[str(image)] = tuple(part[sides].itertuples(index=False, name=None))
    return boxes


def _header(file: Path) -> dict[str, object]:
    """View and age from a DICOM header; nothing else of it is kept."""
    import pydicom

    if not file.exists():
        raise NotFoundError(f"{file} is missing. Fix: download the images into that folder.")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about ages in plain years
            header = pydicom.dcmread(file, stop_before_pixels=True)
            view = str(header.get("ViewPosition") or "")
            age = str(header.get("PatientAge") or "").upper()
    except pydicom.errors.InvalidDicomError as error:
        raise InvalidDataError(f"{file} is no DICOM file. Fix: download it again.") from error
    # Either `034Y`, `006M` and so on, or plain years as in the challenge's files.
    per_year = {"Y": 1, "M": 12, "W": 52, "D": 365}.get(age[-1:], 1)
    digits = age.rstrip("YMWD")
    years = int(digits) / per_year if digits.isdigit() else float("nan")
    return {"view": view if view in ("AP", "PA") else "", "age": years}


def _like_a_manifest(table: pd.DataFrame, more: list[str]) -> pd.DataFrame:
    """The manifest's columns, then more, sorted by image."""
    table = table.assign(patient=table["image_id"], split="test")
    return table.sort_values("image_id", ignore_index=True)[[*COLUMNS, *more]]
