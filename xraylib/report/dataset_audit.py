"""What an audit of a data set found, worst first, each with what it means and what to do."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

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
        "This property of the file predicts the class without the lungs. A network may infer the "
        "property from the pixels.",
        "Prepare both classes alike, from the same kind of originals. Until then report the "
        "leak-adjusted AUC (--scores).",
    ),
    "acquisition": (
        "The images of the two classes were acquired in different ways. A network can recognise "
        "the acquisition instead of the disease.",
        "Compare images that were acquired alike, or sample both classes evenly over the values of "
        "this tag.",
    ),
    "surround": (
        "The image around the lungs predicts the class, for example by framing, text or devices.",
        "Crop every image to its lungs, or train with random framing. Then report specificity by "
        "framing (--scores).",
    ),
    "content": (
        "This feature sees the lungs as well, so it may predict the class for the right reason. "
        "By itself this is not a leak.",
        "No fix is needed. A network should have a higher AUC.",
    ),
}
_PROBLEMS = {
    "conflict": (
        "One of two labels is wrong.",
        "Decide which label is right, and remove the other file.",
    ),
    "mislabelled": (
        "The kind in the name contradicts the label.",
        "Move the file to its class, or correct its label.",
    ),
}
_UNREADABLE = (
    "Training would stop at these files.",
    "Replace them, or leave them out with `python -m xraylib data audit`.",
)


class Finding(NamedTuple):
    """What was found, and how bad it is.

    Attributes
    ----------
    level : str
        One of `LEVELS`.
    finding, meaning, fix : str
        What was found, what it means and what to do.
    effect : float
        From 0 to 1; findings of one level are ordered by it.
    """

    level: str
    finding: str
    meaning: str
    fix: str
    effect: float = 0.0


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
        Worst first, with the columns of `Finding`.
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
    images = read.images
    measured, held_out = _measured_features(dataset, read)
    findings = [
        *_of_files(files, len(table)),
        *_of_classes(table),
        *_of_patients(images),
        *_of_copies(images, audit.copy_groups(read.thumbnails)),
        *_of_features(measured),
    ]
    judged = None
    if scores is not None:
        judged = _judge_scores(scores, read, measured, held_out)
        findings += [*_of_scores(judged), *_of_framing(judged.response)]
    findings.sort(key=lambda row: (LEVELS.index(row.level), -row.effect))
    return Audit(
        name=dataset.name,
        images=images,
        total=len(table),
        findings=pd.DataFrame(findings),
        features=measured,
        files=files,
        scores=judged,
    )


def _count(number: int, noun: str) -> str:
    """Write a number of things, such as `1 image` or `1,234 images`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _of_files(files: pd.DataFrame, total: int) -> Iterator[Finding]:
    """Files that cannot be used, or whose labels contradict each other."""
    # Plain duplicates are among the copies.
    problems = files[files["problem"] != "duplicate"].groupby("problem")["image_id"]
    for problem, names in problems:
        finding = f"{_count(len(names), 'file')}: {problem} (such as {names.iloc[0]})"
        meaning, fix = _PROBLEMS.get(str(problem), _UNREADABLE)
        yield Finding("fault", finding, meaning, fix, len(names) / total)


def class_counts(images: pd.DataFrame) -> pd.DataFrame:
    """Count images and patients of each split: `split, normal, pneumonia, share, patients`."""
    by_split = images.groupby(pd.CategoricalIndex(images["split"], audit.SPLITS), observed=True)
    counts = by_split.agg(
        normal=("label", lambda labels: (labels == 0).sum()),
        pneumonia=("label", "sum"),
        share=("label", "mean"),
        patients=("patient", "nunique"),
    )
    return counts.rename_axis("split").reset_index()


def _of_classes(table: pd.DataFrame) -> Iterator[Finding]:
    """A class that is missing from a split, and the balance of the classes."""
    counts = class_counts(table)
    texts = []
    for row in counts.to_dict("records"):
        for name in ("normal", "pneumonia"):
            if row[name] == 0:
                yield Finding(
                    "fault",
                    f"The {row['split']} split has no {name} images",
                    "Neither training nor evaluation is possible with one class.",
                    "Add images of this class.",
                    1.0,
                )
        texts.append(
            f"{row['split']} {row['normal']:,} normal, {row['pneumonia']:,} pneumonia "
            f"({row['share']:.0%} pneumonia)"
        )
    unequal = float(np.ptp(counts["share"]))
    meaning = "Accuracy depends on this balance."
    if unequal > 0.1:
        meaning += " The splits differ in it, so accuracy and predictive values will differ too."
    fix = "Report sensitivity, specificity and AUC as well."
    yield Finding("note", f"Classes: {'; '.join(texts)}", meaning, fix, unequal)


def _of_patients(images: pd.DataFrame) -> Iterator[Finding]:
    """Patients in two splits or in both classes, under each reading of the names."""
    crossing = audit.leakage(images)
    for row in crossing[crossing["images"] > 0].to_dict("records"):
        number = row["patients_or_images"]
        share = row["share"]
        text = f"{row['splits']} ({_count(row['images'], 'image')}, {share:.0%} of the latter)"
        if row["check"] == "same patient":
            yield Finding(
                "leak",
                f"{_count(number, 'patient')} in {text}",
                "Images of patients from training may be easier, so results may be too good.",
                "Split again by patient.",
                share,
            )
        elif row["check"] != "byte-identical":  # those are among the copies
            yield Finding(
                "check",
                f'Read as "{row["check"]}", {_count(number, "number")} in {text}',
                "If images with one number showed one patient, patients would be in two splits. "
                "The authors' own numbering contradicts this reading.",
                "Say which reading of the names you use.",
                share,
            )
    labels = images.groupby("patient")["label"].nunique()
    both = int((labels > 1).sum())
    if both:
        finding = f"{_count(both, 'patient')} with images of both classes"
        meaning = "The patients may have had two examinations, or some labels are wrong."
        yield Finding("check", finding, meaning, "Look at these images.", both / len(labels))
    if len(images) > 1 and (images["patient"] == images["image_id"]).all():
        yield Finding(
            "check",
            "Each image counts as a patient of its own",
            "If patients have several images, a patient in two splits is not found, and intervals "
            "are too narrow.",
            "Check with `data verify`, and name patients by --patient-regex or a column `patient`.",
            1.0,
        )


def _of_copies(images: pd.DataFrame, groups: np.ndarray) -> Iterator[Finding]:
    """Copies, byte-identical or nearly so, across splits, across labels and within both."""
    by_group = images.groupby(groups).agg(
        {"image_id": list, "split": "nunique", "label": "nunique"}
    )
    several = by_group[by_group["image_id"].str.len() > 1]
    crosses_splits = several["split"] > 1
    crosses_labels = several["label"] > 1
    kinds = {
        "leak": (
            crosses_splits,
            "in two splits",
            "An image that was used for training is no test.",
            "Keep one copy, or keep all of them in one split.",
        ),
        "fault": (
            crosses_labels,
            "under two labels",
            "If the copies show one examination, one of two labels is wrong.",
            "Look at these images, and correct the label.",
        ),
        "check": (
            ~crosses_splits & ~crosses_labels,
            "within one split and class",
            "Copies count several times in training and in every result.",
            "Keep one of each, or keep them with one patient.",
        ),
    }
    for level, (chosen, where, meaning, fix) in kinds.items():
        copied = several.loc[chosen, "image_id"]
        if len(copied):
            count = int(copied.str.len().sum())
            finding = (
                f"{_count(count, 'image')} in {_count(len(copied), 'group')} that look like "
                f"copies, {where} (such as {' and '.join(copied.iloc[0][:2])})"
            )
            yield Finding(level, finding, meaning, fix, count / len(images))


def _measured_features(
    dataset: Dataset, read: image_features.ImageFeatures
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Measure the features of the files, and those of their listed originals."""
    if not shortcuts.enough_patients(read.images):
        return pd.DataFrame(), {}
    table, held_out = shortcuts.measure(read.images, read.values)
    tables = [table.assign(of="files")]
    originals = shortcuts.measure_originals(dataset.name)
    if originals is not None:
        tables.append(originals.assign(of="originals"))
    return pd.concat(tables, ignore_index=True), held_out


def _of_features(measured: pd.DataFrame) -> Iterator[Finding]:
    """Features that predict the class without lungs, and the strongest that sees them."""
    if measured.empty:
        yield Finding(
            "check",
            f"A class has fewer than {shortcuts.MIN_PATIENTS} patients, so no feature was judged",
            "It is not known whether something other than the lungs predicts the class.",
            "Add images of further patients, and audit again.",
        )
        return
    together = measured["feature"].str.endswith(" together")
    singles = measured[measured["warns"] & ~together]
    # What several features know together is news only where none of them alone is warned of.
    source = measured["of"] + measured["level"]
    is_known = source.isin(source[singles.index])
    groups = measured[measured["warns"] & together & ~is_known]
    content = measured[(measured["level"] == "content") & (measured["low"] > shortcuts.LEVEL)]
    for feature in pd.concat([singles, groups, content.head(1)]).to_dict("records"):
        auc = style.interval(feature["auc"], feature["low"], feature["high"])
        name = feature_label(feature)
        finding = f"{name[0].upper()}{name[1:]}: AUC {auc} on held-out patients"
        if np.isfinite(feature["test_auc"]):
            finding += f", {style.number(feature['test_auc'])} on the test"
        level = "note"
        if feature["warns"]:
            needs_pixels = feature["level"] == "surround"
            is_shortcut = needs_pixels or feature["feature"] in _OF_PATIENTS
            level = "shortcut" if is_shortcut else "leak"
        yield Finding(level, finding, *_FEATURES[feature["level"]], 2 * feature["auc"] - 1)


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


def _of_scores(judged: ModelScores) -> Iterator[Finding]:
    """What is left of a model's AUC among images that a feature cannot tell apart."""
    values = judged.auc
    meaning = f"The leak-adjusted AUC is lower by {_interval(values, 'lost')}."
    is_lower = values["lost_low"] > 0
    if not np.isfinite(values["adjusted"]):
        meaning = (
            "Too few images of the two classes are alike in this feature, so the leak-adjusted AUC "
            "is not known."
        )
        is_lower = True
    yield Finding(
        "shortcut" if is_lower else "note",
        f"The model's AUC is {_interval(values, 'auc')}. "
        f'Within strata of "{judged.feature}" the AUC is {_interval(values, "adjusted")}',
        meaning,
        "Report the leak-adjusted AUC next to the AUC.",
        max(0.0, float(np.nan_to_num(values["lost"]))),
    )


def _interval(values: Any, name: str) -> str:
    """Write a value with its interval, `<name>_low` to `<name>_high`."""
    return style.interval(values[name], values[f"{name}_low"], values[f"{name}_high"])


def _of_framing(response: pd.DataFrame) -> Iterator[Finding]:
    """Specificity of the most loosely and the most tightly framed normals."""
    normals = response[response["diagnosis"] == "normal"] if len(response) else response
    if len(normals) < 2:
        return
    loose = normals.iloc[0]
    tight = normals.iloc[-1]
    level = "note"
    meaning = "These images do not show that the model uses the framing."
    fix = "No fix is needed."
    if tight["correct_high"] < loose["correct_low"]:
        level = "shortcut"
        meaning = "The model classifies more normal images as pneumonia if they are tightly framed."
        fix = "Crop every image to its lungs, or train with random framing."
    yield Finding(
        level,
        f"Specificity is {_interval(loose, 'correct')} where the lungs fill "
        f"{loose['lung_height']} of the height, and {_interval(tight, 'correct')} where they fill "
        f"{tight['lung_height']}",
        meaning,
        fix,
        max(0.0, float(loose["correct"] - tight["correct"])),
    )
