"""External validation by radiologists' labels and boxes, on the NIH images that RSNA re-read.

NIH's own labels were text-mined from reports. For some of these images the radiologists of the RSNA
Pneumonia Challenge gave a class and drew boxes (the terms of RSNA: research and education, with
attribution). Most of the patients are adults, and the networks were trained on children. Nothing is
trained, tuned or chosen on these images.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from xraylib.errors import InvalidDataError, NotFoundError
from xraylib.evaluation import metrics
from xraylib.evaluation.resampling import Z, delong, two_level
from xraylib.evaluation.saliency import center_prior, localisation

COLUMNS = ("image_id", "nih_label", "age", "sex", "view", "rsna_class", "boxes")
OPACITY = "Lung Opacity"
NORMAL = "Normal"
ABNORMAL = "No Lung Opacity / Not Normal"
CLASSES = ("", OPACITY, NORMAL, ABNORMAL)
VIEWS = ("AP", "PA")
ADULT = 19  # years; NIH gives ages in whole years
LIST_FIX = "use the list that was made for these images"


def read_labels(file: Path, manifest: pd.DataFrame) -> pd.DataFrame:
    """Read the list of radiologists' classes and boxes of a manifest's images, checked.

    Parameters
    ----------
    file : pathlib.Path
        CSV file with the columns `COLUMNS`; `boxes` are `x,y,width,height` in shares of the image,
        several divided by blanks.
    manifest : pandas.DataFrame
        `image_id` and the text-mined `label` of the images that are listed.

    Returns
    -------
    pandas.DataFrame
        One row per image, in the order of the manifest.

        - `image_id`; `nih_label`: 0 or 1, text-mined; `age` in years; `sex`; `view` (AP or PA).
        - `rsna_class`: one of `CLASSES`, empty where no radiologist re-read the image.
        - `boxes`: float array `(k, 4)` of x, y, width and height in [0, 1].

    Raises
    ------
    NotFoundError
        There is no such file.
    InvalidDataError
        The list is of other images or labels, or has a value that cannot be.
    """
    if not file.exists():
        raise NotFoundError(f"{file} is missing. Fix: put the radiologists' list there.")
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        what = f"{file} lacks the columns {', '.join(missing)}"
        raise InvalidDataError(f"{what}. Fix: {LIST_FIX}.")
    others = set(table["image_id"]) ^ set(manifest["image_id"])
    if others or table["image_id"].duplicated().any():
        what = f"{file} lists other images than these ({len(others)} differ)"
        raise InvalidDataError(f"{what}. Fix: {LIST_FIX}.")
    table = table.set_index("image_id").loc[manifest["image_id"]].reset_index()
    table["nih_label"] = pd.to_numeric(table["nih_label"], errors="coerce")
    table["age"] = pd.to_numeric(table["age"], errors="coerce")
    bad = {
        "has another label than its folder": table["nih_label"].to_numpy() != manifest["label"],
        "has no age in years": ~table["age"].between(0, 120),
        "has neither the view AP nor PA": ~table["view"].isin(VIEWS),
        "has an unknown class": ~table["rsna_class"].isin(CLASSES),
        "has a box without opacity": (table["boxes"] != "") & (table["rsna_class"] != OPACITY),
    }
    for what, rows in bad.items():
        if np.any(rows):
            image = table.loc[np.asarray(rows), "image_id"].iloc[0]
            raise InvalidDataError(f"{file}: {image} {what}. Fix: {LIST_FIX}.")
    pairs = zip(table["image_id"], table["boxes"], strict=True)
    boxes = [_boxes(text, f"{file}: {image}") for image, text in pairs]
    table = table.assign(boxes=pd.Series(boxes, index=table.index, dtype=object))
    return table[list(COLUMNS)].astype({"nih_label": "int64"})


def _boxes(text: str, where: str) -> np.ndarray:
    """Parse the boxes of one image, float `(k, 4)`; `where` names it in an error."""
    try:
        boxes = np.array([[float(number) for number in box.split(",")] for box in text.split()])
        boxes = boxes.reshape(-1, 4)
    except ValueError as error:
        what = f"{where} has the boxes {text!r}, which are no numbers x,y,width,height"
        raise InvalidDataError(f"{what}. Fix: {LIST_FIX}.") from error
    ends = boxes[:, :2] + boxes[:, 2:]
    # The list is rounded to five digits.
    inside = (boxes >= 0).all() and (boxes[:, 2:] > 0).all() and (ends <= 1 + 2e-5).all()
    if not inside:
        what = f"{where} has a box outside the image"
        raise InvalidDataError(f"{what}. Fix: give x,y,width,height in shares of the image.")
    return boxes


def describe_patients(labels: pd.DataFrame, patients: pd.Series) -> pd.DataFrame:
    """Count images and patients by age, so that adults are called adults.

    Parameters
    ----------
    labels : pandas.DataFrame
        The table of `read_labels`.
    patients : pandas.Series
        The patient of each row.

    Returns
    -------
    pandas.DataFrame
        One row per age group: `ages`, `images`, `patients`, `re_read` (images with a radiologist's
        class), `opacity` (images among them with opacity).
    """
    groups = pd.cut(labels["age"], [-1, 10, ADULT - 1, 121], labels=["0–10", "11–18", "adults"])
    rows = []
    for name in groups.cat.categories:
        part = labels[groups == name]
        row = {"ages": name, "images": len(part), "patients": patients[part.index].nunique()}
        row["re_read"] = int((part["rsna_class"] != "").sum())
        row["opacity"] = int((part["rsna_class"] == OPACITY).sum())
        rows.append(row)
    return pd.DataFrame(rows)


def baseline_scores(labels: pd.DataFrame, manifest: pd.DataFrame, size: pd.Series) -> pd.DataFrame:
    """Scores that need no network, in the form of external scores: `is AP`, and the file size.

    Parameters
    ----------
    labels, manifest : pandas.DataFrame
        Of the same images in the same order.
    size : pandas.Series
        The bytes of each file. A large file counts as pneumonia, so that an AUC below .5 says that
        images with opacity have smaller files.
    """
    values = {"is AP": (labels["view"] == "AP").astype(float).to_numpy()}
    values["file size"] = size.rank(pct=True).to_numpy()
    about = manifest[["image_id", "patient"]].assign(seed=0)
    return pd.concat([about.assign(recipe=name, score=value) for name, value in values.items()])


def _strata(labels: pd.DataFrame) -> Iterator[tuple[str, np.ndarray]]:
    """Names and masks of the images that are compared."""
    yield "all", np.ones(len(labels), bool)
    for view in VIEWS:
        yield view, (labels["view"] == view).to_numpy()
    # Where the folder cannot give the class away, because it is the same for all.
    yield "text-mined pneumonia", (labels["nih_label"] == 1).to_numpy()


def _contrasts(labels: pd.DataFrame) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Names, masks of the images that take part, and which of all images are positive."""
    rsna = labels["rsna_class"].to_numpy()
    opacity = rsna == OPACITY
    yield "opacity against normal", opacity | (rsna == NORMAL), opacity
    yield "opacity against all others", rsna != "", opacity
    everything = np.ones(len(labels), bool)
    yield "text-mined label", everything, (labels["nih_label"] == 1).to_numpy()


def auc_by_stratum(scores: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """AUC of each recipe by contrast and stratum, with intervals over runs and patients.

    Parameters
    ----------
    scores : pandas.DataFrame
        `recipe`, `seed`, `image_id`, `patient`, `score`: external scores, and `baseline_scores`.
    labels : pandas.DataFrame
        The table of `read_labels`.

    Returns
    -------
    pandas.DataFrame
        One row per recipe, contrast and stratum that has two patients of each class.

        - `recipe`, `contrast`, `stratum` (all, AP, PA, text-mined pneumonia).
        - `positives`, `negatives` (images), `patients`, `runs`.
        - `auc`: mean over runs; `auc_low`, `auc_high`: its interval over runs and patients (of
          fewer than three runs over patients, `resampling.two_level`).
    """
    rows = []
    for recipe, part in scores.groupby("recipe", sort=False):
        by_seed = part.pivot(index="image_id", columns="seed", values="score")
        by_seed = by_seed.reindex(labels["image_id"])
        if by_seed.isna().any(axis=None):
            what = f"{recipe} did not score every image of the radiologists' list"
            raise InvalidDataError(f"{what}. Fix: run `external` again.")
        patient_of = part.drop_duplicates("image_id").set_index("image_id")["patient"]
        patients = patient_of[labels["image_id"]].to_numpy()
        for contrast, taken, positive in _contrasts(labels):
            for stratum, inside in _strata(labels):
                chosen = taken & inside
                groups = [patients[chosen & side] for side in (positive, ~positive)]
                if min(len(np.unique(group)) for group in groups) < 2:
                    continue
                row = {"recipe": recipe, "contrast": contrast, "stratum": stratum}
                row["positives"] = len(groups[0])
                row["negatives"] = len(groups[1])
                row["patients"] = len(np.unique(patients[chosen]))
                row["runs"] = by_seed.shape[1]
                runs = by_seed.to_numpy()[chosen].T
                rows.append(row | _auc(positive[chosen].astype(int), runs, patients[chosen]))
    return pd.DataFrame(rows)


def _auc(labels: np.ndarray, runs: np.ndarray, patients: np.ndarray) -> dict[str, float]:
    """Mean AUC of runs `(k, n)` with its interval."""
    aucs, covariance = delong(labels, runs, patients)
    half = Z * float(np.sqrt(max(0.0, covariance.mean())))
    if len(runs) >= metrics.MIN_RUNS:
        half = max(half, two_level(aucs, covariance))
    mean = float(aucs.mean())
    return {"auc": mean, "auc_low": max(0.0, mean - half), "auc_high": min(1.0, mean + half)}


def classified_by_class(
    scores: pd.DataFrame, labels: pd.DataFrame, thresholds: pd.Series
) -> pd.DataFrame:
    """Share of images classified as pneumonia by radiologists' class, at the frozen thresholds.

    Parameters
    ----------
    scores : pandas.DataFrame
        External scores of the networks.
    labels : pandas.DataFrame
        The table of `read_labels`.
    thresholds : pandas.Series
        Frozen threshold by `recipe` and `seed`.

    Returns
    -------
    pandas.DataFrame
        One row per recipe and class: `recipe`, `rsna_class`, `images`, `runs`, `positive` with
        `positive_low` and `positive_high`, the interval over runs and patients.
    """
    known = labels.loc[labels["rsna_class"] != "", ["image_id", "rsna_class"]]
    read = scores.merge(known, on="image_id")
    keys = pd.MultiIndex.from_frame(read[["recipe", "seed"]])
    read["threshold"] = thresholds.reindex(keys).to_numpy()
    if read["threshold"].isna().any():
        recipe = read.loc[read["threshold"].isna(), "recipe"].iloc[0]
        what = f"external scores of {recipe} are of other runs"
        raise InvalidDataError(f"{what}. Fix: run `external` again.")
    rows = []
    for (recipe, name), part in read.groupby(["recipe", "rsna_class"], sort=False):
        # The sensitivity is the share that is positive where all count as pneumonia.
        part = part.assign(label=1, protocol="strict", split="external")
        measured = metrics.evaluate(part, split="external", ranking=False)
        row = {"recipe": recipe, "rsna_class": name, "images": part["image_id"].nunique()}
        row["runs"] = part["seed"].nunique()
        share = metrics.ends(measured.rename({"sensitivity": "positive"}), "positive")
        rows.append(row | share)
    return pd.DataFrame(rows)


def box_masks(boxes: list[np.ndarray], size: int) -> np.ndarray:
    """Masks of the radiologists' boxes.

    Parameters
    ----------
    boxes : list of numpy.ndarray
        Per image `(k, 4)`: x, y, width and height in [0, 1].
    size : int
        Height and width of the masks in pixels.

    Returns
    -------
    numpy.ndarray
        bool `(n, size, size)`, true inside a box; a box has at least one pixel.
    """
    masks = np.zeros((len(boxes), size, size), bool)
    for mask, of_image in zip(masks, boxes, strict=True):
        for x, y, width, height in of_image * size:
            left = min(int(x), size - 1)
            top = min(int(y), size - 1)
            right = max(left + 1, round(x + width))
            bottom = max(top + 1, round(y + height))
            mask[top:bottom, left:right] = True
    return masks


def position_prior(masks: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Where the boxes of all *other* patients lie: maps that know positions and no image.

    Parameters
    ----------
    masks : numpy.ndarray
        bool `(n, size, size)`.
    patients : numpy.ndarray
        The patient of each, at least two different ones.

    Returns
    -------
    numpy.ndarray
        float `(n, size, size)`, the mean mask of the other patients' images.
    """
    values = masks.astype(float)
    priors = np.empty_like(values)
    for row, patient in enumerate(patients):
        priors[row] = values[patients != patient].mean(axis=0)
    return priors


def localisation_in_boxes(
    maps: np.ndarray, boxes: list[np.ndarray], patients: np.ndarray
) -> pd.DataFrame:
    """How well heat maps find the radiologists' boxes, against maps that see no image.

    Parameters
    ----------
    maps : numpy.ndarray
        `(n, size, size)`, 0 or more, of images with at least one box each.
    boxes : list of numpy.ndarray
        Per image `(k, 4)`: x, y, width and height in [0, 1].
    patients : numpy.ndarray
        The patient of each image.

    Returns
    -------
    pandas.DataFrame
        One row per map (`heat map`, `position prior`, `centre blob`): `map`, `images`, `boxes`,
        `area` (share of the images in boxes), and `pointing` (share of images whose peak lies in a
        box) and `energy` (mean share of the map in boxes), each with `_low` and `_high`, the
        interval over patients.
    """
    masks = box_masks(boxes, maps.shape[1])
    blob = np.repeat(center_prior(maps.shape[1])[None], len(maps), axis=0)
    compared = {
        "heat map": maps,
        "position prior": position_prior(masks, patients),
        "centre blob": blob,
    }
    rows = []
    for name, each in compared.items():
        measured = localisation(each, masks, patients)
        row: dict[str, object] = {"map": name, "images": len(maps)}
        row["boxes"] = sum(len(of_image) for of_image in boxes)
        row["area"] = float(measured["area"].iloc[0])
        for metric in ("pointing", "energy"):
            row[metric] = float(measured["value"].loc[metric])
            row[f"{metric}_low"] = float(measured["low"].loc[metric])
            row[f"{metric}_high"] = float(measured["high"].loc[metric])
        rows.append(row)
    return pd.DataFrame(rows)
