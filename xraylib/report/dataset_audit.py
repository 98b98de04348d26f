"""What an audit of a data set found, worst first, each with what it means and what to do."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from xraylib.datasets import audit, image_features, manifest
from xraylib.datasets.catalog import Dataset
from xraylib.errors import InvalidDataError
from xraylib.evaluation import shortcuts
from xraylib.figures import style

# From worst to least. A leak makes results too good, a fault spoils labels or stops training, a
# shortcut can be learnt instead of the disease, a check needs a decision, a note needs none.
LEVELS = ("leak", "fault", "shortcut", "check", "note")

LUNG_HEIGHT = "share of the height that the lungs fill"
# Tags of the patient: the classes may differ in them by nature.
_OF_PATIENTS = ("PatientSex", "PatientAge")

# What a feature of each level means, and what to do.
_FEATURES = {
    "file": (
        "The file betrays the class without any lung. A network can infer this from the pixels.",
        "Prepare both classes alike, from the same kind of originals. Until then report the "
        "leak-adjusted AUC (--scores).",
    ),
    "acquisition": (
        "The classes were taken in different ways. A network can recognise the way instead of the "
        "disease.",
        "Compare images that were taken alike, or draw both classes evenly over this tag.",
    ),
    "surround": (
        "The image around the lungs betrays the class: its framing, text or devices.",
        "Crop every image to its lungs, or train with random framing. Then report specificity by "
        "framing (--scores).",
    ),
    "content": (
        "This feature sees the lungs as well, so it may predict the class for the right reason. "
        "By itself it is no leak.",
        "Nothing. A network should exceed this value.",
    ),
}
_PROBLEMS = {
    "conflict": ("One of two labels is wrong.", "Decide which, and remove the other file."),
    "mislabelled": (
        "The kind in the name contradicts the label.",
        "Move the file to its class, or correct its label.",
    ),
}
_UNREADABLE = (
    "Training would stop at these files.",
    "Replace them, or leave them out with `python -m xraylib data audit`.",
)


@dataclass(frozen=True)
class ModelScores:
    """What scores of a model are worth on this data set.

    Attributes
    ----------
    images : int
        How many images were scored.
    threshold : float
        From this score on an image counts as pneumonia.
    feature : str
        The feature within whose strata the AUC is adjusted.
    auc : dict of str to float
        See `shortcuts.adjusted_auc`.
    response : pandas.DataFrame
        See `shortcuts.framing_response`; empty where no lungs were found.
    """

    images: int
    threshold: float
    feature: str
    auc: dict[str, float]
    response: pd.DataFrame


@dataclass(frozen=True)
class Audit:
    """An audit of one data set.

    Attributes
    ----------
    name : str
        The data set.
    images : pandas.DataFrame
        The manifest of the images that can be used.
    total : int
        How many files were read.
    findings : pandas.DataFrame
        Worst first: `level` (see `LEVELS`), `finding`, `meaning`, `fix`, and `effect`, from 0 to 1,
        by which findings of one level are ordered.
    features : pandas.DataFrame
        See `shortcuts.measure`; rows of listed original files have `of` = "originals". Empty where
        there are too few patients.
    files : pandas.DataFrame
        See `audit.audit_files`.
    scores : ModelScores or None
        Where scores were given.
    """

    name: str
    images: pd.DataFrame
    total: int
    findings: pd.DataFrame
    features: pd.DataFrame
    files: pd.DataFrame
    scores: ModelScores | None

    def has(self, level: str) -> bool:
        """Whether there is a finding of this level or a worse one."""
        worse = LEVELS[: LEVELS.index(level) + 1]
        return bool(self.findings["level"].isin(worse).any())


def audit_dataset(dataset: Dataset, scores: Path | None = None) -> Audit:
    """Audit every image of a data set; nothing of it is changed.

    Parameters
    ----------
    dataset : Dataset
        From `catalog.get_dataset`.
    scores : Path, optional
        Scores of a model, see `shortcuts.read_scores`.

    Returns
    -------
    Audit

    Raises
    ------
    InvalidDataError
        If there is no image, or none that can be read.
    """
    table = manifest.index(dataset)
    if table.empty:
        raise InvalidDataError(f"{dataset.root} holds no image. Fix: {dataset.fix}.")
    files, read = image_features.read(table)
    if read.images.empty:
        raise InvalidDataError(
            f"{dataset.root}: none of {len(table)} files can be used; the first is "
            f"{files['path'].iloc[0]} ({files['detail'].iloc[0]}). Fix: {dataset.fix}."
        )
    images = read.images
    rows = [*_of_files(files, len(table)), *_of_classes(table), *_of_patients(images)]
    rows += _of_copies(images, audit.copy_groups(read.thumbnails))
    measured, held_out = _measured_features(dataset, read)
    rows += _of_features(measured)
    if measured.empty:
        detail = f"A class has fewer than {shortcuts.MIN_PATIENTS} patients"
        rows.append(
            _row(
                "check",
                f"{detail}, so that no feature was judged",
                "Whether something else than the lungs predicts the class cannot be seen yet.",
                "Add images of further patients, and audit again.",
            )
        )
    judged = None
    if scores is not None:
        judged = _judge_scores(scores, read, measured, held_out)
        rows += _of_scores(judged)
    findings = pd.DataFrame(rows, columns=["level", "finding", "meaning", "fix", "effect"])
    findings["rank"] = findings["level"].map(LEVELS.index)
    findings = findings.sort_values(["rank", "effect"], ascending=[True, False], kind="stable")
    return Audit(
        name=dataset.name,
        images=images,
        total=len(table),
        findings=findings.drop(columns="rank").reset_index(drop=True),
        features=measured,
        files=files,
        scores=judged,
    )


def _row(level: str, finding: str, meaning: str, fix: str, effect: float = 0.0) -> dict[str, Any]:
    return {
        "level": level,
        "finding": finding,
        "meaning": meaning,
        "fix": fix,
        "effect": float(effect),
    }


def _count(number: int, noun: str) -> str:
    """Write a number of things, such as `1 image` or `1,234 images`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _of_files(files: pd.DataFrame, total: int) -> list[dict[str, Any]]:
    """Files that cannot be used, or whose labels contradict each other."""
    rows = []
    # Plain duplicates are among the copies.
    problems = files[files["problem"] != "duplicate"].groupby("problem")["image_id"]
    for problem, names in problems:
        finding = f"{_count(len(names), 'file')}: {problem} (such as {names.iloc[0]})"
        meaning, fix = _PROBLEMS.get(str(problem), _UNREADABLE)
        rows.append(_row("fault", finding, meaning, fix, len(names) / total))
    return rows


def class_counts(images: pd.DataFrame) -> pd.DataFrame:
    """Count images and patients of each split: `split, normal, pneumonia, share, patients`."""
    rows = []
    for split in ("train", "val", "test"):
        members = images[images["split"] == split]
        if len(members):
            pneumonia = int(members["label"].sum())
            rows.append(
                {
                    "split": split,
                    "normal": len(members) - pneumonia,
                    "pneumonia": pneumonia,
                    "share": pneumonia / len(members),
                    "patients": members["patient"].nunique(),
                }
            )
    return pd.DataFrame(rows)


def _of_classes(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A class that is missing from a split, and the balance of the classes."""
    rows = []
    counts = class_counts(table)
    for split in counts.itertuples():
        missing = [name for name in ("normal", "pneumonia") if getattr(split, name) == 0]
        if missing:
            finding = f"The {split.split} split has no {missing[0]} images"
            meaning = "Neither training nor evaluation is possible with one class."
            rows.append(_row("fault", finding, meaning, "Add images of this class.", 1.0))
    texts = []
    for split in counts.itertuples():
        share = f"{split.share:.0%} pneumonia"
        texts.append(
            f"{split.split} {split.normal:,} normal, {split.pneumonia:,} pneumonia ({share})"
        )
    unequal = float(counts["share"].max() - counts["share"].min())
    meaning = "Accuracy depends on this balance."
    if unequal > 0.1:
        meaning += " The splits differ in it, and so will accuracy and predictive values."
    fix = "Report sensitivity, specificity and AUC as well."
    rows.append(_row("note", f"Classes: {'; '.join(texts)}", meaning, fix, unequal))
    return rows


def _of_patients(images: pd.DataFrame) -> list[dict[str, Any]]:
    """Patients in two splits or in both classes, under each reading of the names."""
    rows = []
    crossing = audit.leakage(images)
    for check in crossing[crossing["images"] > 0].to_dict("records"):
        text = (
            f"{check['splits']} ({_count(check['images'], 'image')}, "
            f"{check['share']:.0%} of the latter)"
        )
        if check["check"] == "same patient":
            finding = f"{_count(check['patients_or_images'], 'patient')} in {text}"
            meaning = "Images of a known patient are easier, so that results are too good."
            fix = "Split again by patient."
            rows.append(_row("leak", finding, meaning, fix, check["share"]))
        elif check["check"] in ("same number", "same number and kind"):
            counted = _count(check["patients_or_images"], "number")
            finding = f'Read as "{check["check"]}", {counted} in {text}'
            meaning = (
                "If equal numbers in the names were one patient, patients would be in two splits. "
                "The authors' own numbering contradicts this reading."
            )
            fix = "Say which reading of the names you use."
            rows.append(_row("check", finding, meaning, fix, check["share"]))
    both = int((images.groupby("patient")["label"].nunique() > 1).sum())
    if both:
        finding = f"{_count(both, 'patient')} with images of both classes"
        meaning = "These may be two examinations, or wrong labels."
        share = both / images["patient"].nunique()
        rows.append(_row("check", finding, meaning, "Look at these images.", share))
    if len(images) > 1 and (images["patient"] == images["image_id"]).all():
        finding = "The names do not tell the patient: each image counts as its own"
        meaning = "Patients in two splits cannot be found, and intervals may be too narrow."
        rows.append(_row("check", finding, meaning, "Tell the patient of each image.", 1.0))
    return rows


def _of_copies(images: pd.DataFrame, groups: np.ndarray) -> list[dict[str, Any]]:
    """Copies, byte-identical or nearly so, across splits, across labels and within both."""
    marked = images.assign(group=groups)
    by_group = marked.groupby("group").agg(
        images=("image_id", "size"), splits=("split", "nunique"), labels=("label", "nunique")
    )
    several = by_group[by_group["images"] > 1]
    kinds = {
        "leak": several[several["splits"] > 1],
        "fault": several[several["labels"] > 1],
        "check": several[(several["splits"] == 1) & (several["labels"] == 1)],
    }
    texts = {
        "leak": (
            "in two splits",
            "An image that was trained on is no test.",
            "Keep one copy, or keep all of them in one split.",
        ),
        "fault": (
            "under two labels",
            "One of two labels is wrong.",
            "Look at these images, and correct the label.",
        ),
        "check": (
            "within one split and class",
            "They count several times in training and in every result.",
            "Keep one of each, or keep them with one patient.",
        ),
    }
    rows = []
    for level, copied in kinds.items():
        if len(copied):
            where, meaning, fix = texts[level]
            count = int(copied["images"].sum())
            first = marked.loc[marked["group"] == copied.index[0], "image_id"].iloc[:2]
            finding = (
                f"{_count(count, 'image')} in {_count(len(copied), 'group')} of copies {where} "
                f"(such as {' and '.join(first)})"
            )
            rows.append(_row(level, finding, meaning, fix, count / len(images)))
    return rows


def _measured_features(
    dataset: Dataset, read: image_features.ImageFeatures
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Measure the features of the files, and those of their listed originals."""
    if not shortcuts.enough_patients(read.images):
        return pd.DataFrame(), {}
    table, held_out = shortcuts.measure(read.images, shortcuts.all_values(read))
    tables = [table.assign(of="files")]
    originals = shortcuts.measure_originals(dataset.name)
    if originals is not None:
        tables.append(originals.assign(of="originals"))
    return pd.concat(tables, ignore_index=True), held_out


def _of_features(measured: pd.DataFrame) -> list[dict[str, Any]]:
    """Features that predict the class without lungs, and the strongest that sees them."""
    rows: list[dict[str, Any]] = []
    if measured.empty:
        return rows
    together = measured["feature"].str.endswith(" together")
    singles = measured[measured["warns"] & ~together]
    # What several features know together is news only where none of them alone is warned of.
    known = set(zip(singles["of"], singles["level"], strict=True))
    keys = pd.Series(list(zip(measured["of"], measured["level"], strict=True)), measured.index)
    alone = measured[measured["warns"] & together & ~keys.isin(known)]
    content = measured[(measured["level"] == "content") & (measured["low"] > shortcuts.LEVEL)]
    for feature in pd.concat([singles, alone, content.head(1)]).to_dict("records"):
        auc = style.interval(feature["auc"], feature["low"], feature["high"])
        name = feature_label(feature)
        finding = f"{name[0].upper()}{name[1:]}: AUC {auc} on held-out patients"
        if np.isfinite(feature["test_auc"]):
            finding += f", {style.number(feature['test_auc'])} on the test"
        meaning, fix = _FEATURES[feature["level"]]
        level = "note"
        if feature["warns"]:
            needs_pixels = feature["level"] == "surround"
            is_shortcut = needs_pixels or feature["feature"] in _OF_PATIENTS
            level = "shortcut" if is_shortcut else "leak"
        rows.append(_row(level, finding, meaning, fix, 2 * feature["auc"] - 1))
    return rows


def feature_label(feature: Mapping[Any, Any]) -> str:
    """Name a row of the features for a reader."""
    name: str = feature["feature"]
    if feature["of"] == "originals":
        return f"{name} of the original files"
    if feature["level"] == "acquisition" and not name.endswith(" together"):
        return f"DICOM tag {name}"
    return name


def _judge_scores(
    path: Path,
    read: image_features.ImageFeatures,
    measured: pd.DataFrame,
    held_out: Mapping[str, np.ndarray],
) -> ModelScores:
    """Adjust a model's AUC for the strongest feature, and count its errors by framing."""
    scored, threshold = shortcuts.read_scores(path, read.images)
    heights = read.values[LUNG_HEIGHT][scored.index, 0]
    feature = _strongest_feature(measured)
    values = held_out[feature][scored.index] if feature in held_out else np.nan_to_num(heights)
    auc = shortcuts.adjusted_auc(scored, values)
    framed = np.isfinite(heights)
    response = pd.DataFrame()
    if framed.any():
        response = shortcuts.framing_response(scored[framed], heights[framed], threshold)
    return ModelScores(len(scored), threshold, feature, auc, response)


def _strongest_feature(measured: pd.DataFrame) -> str:
    """Of the features that do not see a pixel, and the lung height, the one of the highest AUC.

    Models of many pixels around the lungs see some of the lungs as well.
    """
    for feature in measured.to_dict("records"):
        blind = feature["level"] in ("file", "acquisition") and feature["of"] == "files"
        if blind or feature["feature"] == LUNG_HEIGHT:
            return str(feature["feature"])
    return LUNG_HEIGHT


def _of_scores(judged: ModelScores) -> list[dict[str, Any]]:
    """What is left of a model's AUC, and how its specificity goes with the framing."""
    values = judged.auc
    auc, adjusted, lost = (
        style.interval(values[name], values[f"{name}_low"], values[f"{name}_high"])
        for name in ("auc", "adjusted", "lost")
    )
    finding = f'The model\'s AUC is {auc}. Within strata of "{judged.feature}" it is {adjusted}'
    meaning = f"The leak-adjusted AUC is lower by {lost}."
    is_lower = values["lost_low"] > 0
    if not np.isfinite(values["adjusted"]):
        meaning = (
            "Too few images of the two classes are alike in this feature, so that the AUC without "
            "it is not known."
        )
        is_lower = True
    fix = "Report the leak-adjusted AUC next to the AUC."
    level = "shortcut" if is_lower else "note"
    effect = max(0.0, float(np.nan_to_num(values["lost"])))
    return [_row(level, finding, meaning, fix, effect), *_of_framing(judged.response)]


def _of_framing(response: pd.DataFrame) -> list[dict[str, Any]]:
    """Specificity of the most loosely and the most tightly framed normals."""
    normals = response[response["diagnosis"] == "normal"] if len(response) else response
    if len(normals) < 2:
        return []
    loose = normals.iloc[0]
    tight = normals.iloc[-1]
    texts = [
        style.interval(row["correct"], row["correct_low"], row["correct_high"])
        for row in (loose, tight)
    ]
    finding = (
        f"Specificity is {texts[0]} where the lungs fill {loose['lung_height']} of the height, "
        f"and {texts[1]} where they fill {tight['lung_height']}"
    )
    falls = tight["correct_high"] < loose["correct_low"]
    meaning = "The model does not follow the framing as far as these images show."
    fix = "Nothing."
    if falls:
        meaning = "The model takes normal images that are framed tightly for pneumonia."
        fix = "Crop every image to its lungs, or train with random framing."
    effect = loose["correct"] - tight["correct"]
    return [_row("shortcut" if falls else "note", finding, meaning, fix, max(0.0, effect))]
