"""Metrics of a scores table: means over runs, with intervals over runs and patients.

`rule` names the threshold: `frozen` is that of each run, a number is a fixed one, and any other
rule is applied to validation; see `training.thresholds`.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from xraylib.errors import InvalidDataError
from xraylib.evaluation.resampling import (
    MIN_RUNS,
    RESAMPLES,
    delong,
    interval,
    over,
    patient_weights,
    two_level,
    weighted_ranking,
    wilson_if_degenerate,
)
from xraylib.training.thresholds import thresholds

METRICS = (
    "auc",
    "average_precision",
    "accuracy",
    "balanced_accuracy",
    "sensitivity",
    "specificity",
    "precision",
    "npv",
    "f1",
    "mcc",
    "brier",
)


def point_metrics(
    labels: np.ndarray,
    scores: np.ndarray,
    threshold: float,
    weights: np.ndarray,
    *,
    ranking: bool = True,
) -> dict[str, np.ndarray]:
    """Compute `METRICS` under many weights of the images at once.

    Parameters
    ----------
    labels, scores : (n,) arrays, of 0 or 1 and of P(pneumonia)
    threshold : float
        From this score on an image is classified as pneumonia.
    weights : (resamples, n) array
    ranking : bool
        Without it the AUC and the average precision, which take most of the time, are NaN.

    Returns
    -------
    One array `(resamples,)` per metric; NaN where a denominator is zero. `precision` and `npv`
    depend on the prevalence of these images.
    """
    positive = labels == 1
    classified = scores >= threshold
    tp = weights @ (positive & classified)
    fp = weights @ (~positive & classified)
    fn = weights @ (positive & ~classified)
    total = weights.sum(axis=1)
    tn = total - tp - fp - fn
    auc = np.full(len(weights), np.nan)
    average_precision = auc
    if ranking:
        auc, average_precision = weighted_ranking(positive, scores, weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        sensitivity = tp / (tp + fn)
        specificity = tn / (tn + fp)
        margins = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
        return {
            "auc": auc,
            "average_precision": average_precision,
            "accuracy": (tp + tn) / total,
            "balanced_accuracy": (sensitivity + specificity) / 2,
            "sensitivity": sensitivity,
            "specificity": specificity,
            "precision": tp / (tp + fp),
            "npv": tn / (tn + fn),
            "f1": 2 * tp / (2 * tp + fp + fn),
            "mcc": (tp * tn - fp * fn) / np.sqrt(margins),
            "brier": weights @ (scores - positive) ** 2 / total,
        }


def resample(
    scores: pd.DataFrame,
    *,
    split: str = "test",
    rule: str | float = "frozen",
    resamples: int = RESAMPLES,
    ranking: bool = True,
) -> dict[str, np.ndarray]:
    """Compute `METRICS` of each run of one recipe and protocol, as they are and resampled.

    Returns one array `(runs, 1 + resamples)` per metric, whose first column is not resampled. Runs
    are in the order of their seeds. Tables with the same patients are resampled alike, so that
    their differences are paired. `InvalidDataError` where the table holds several recipes or
    protocols, or lacks the split.
    """
    if len(scores[["recipe", "protocol"]].drop_duplicates()) > 1:
        raise InvalidDataError(
            "scores of several recipes or protocols cannot be averaged. Fix: pass one of them."
        )
    part = scores[scores["split"] == split]
    if part.empty:
        raise InvalidDataError(
            f"there are no scores of the {split} split. Fix: train the recipe again."
        )
    threshold_of = thresholds(scores, rule)
    patients = np.unique(part["patient"])
    # The runs share the resamples of all patients, whether or not they have images of each.
    weights = patient_weights(patients, resamples)
    measured = []
    for _, run in part.groupby("seed"):
        of_run = point_metrics(
            run["label"].to_numpy(),
            run["score"].to_numpy(),
            threshold_of[run["seed"].iloc[0]],
            weights[:, np.searchsorted(patients, run["patient"])],
            ranking=ranking,
        )
        measured.append(of_run)
    return {metric: np.stack([of_run[metric] for of_run in measured]) for metric in METRICS}


def evaluate(
    scores: pd.DataFrame,
    *,
    split: str = "test",
    rule: str | float = "frozen",
    resamples: int = RESAMPLES,
    ranking: bool = True,
) -> pd.DataFrame:
    """Compute `METRICS` of one recipe and protocol as means over its runs (seeds).

    Returns
    -------
    One row per metric (index) with the columns
        value : mean over runs.
        low, high : interval over runs and patients (`resampling.two_level`), or over patients where
            there are fewer than `MIN_RUNS` runs. Wilson's for an accuracy, sensitivity or
            specificity of exactly 0 or 1.
        patients_low, patients_high : interval over patients.
        seed_sd : standard deviation over runs.
        over : what `low` and `high` are over, `resampling.over`.
    All hold the thresholds fixed.
    """
    runs = resample(scores, split=split, rule=rule, resamples=resamples, ranking=ranking)
    rows = {metric: _summary(values) for metric, values in runs.items()}
    part = scores[scores["split"] == split]
    counted = {
        "accuracy": part,
        "sensitivity": part[part["label"] == 1],
        "specificity": part[part["label"] == 0],
    }
    for metric, images in counted.items():
        row = rows[metric]
        patients = images["patient"].nunique()
        for low, high in (("low", "high"), ("patients_low", "patients_high")):
            share = row["value"]
            row[low], row[high] = wilson_if_degenerate(share, row[low], row[high], patients)
    return pd.DataFrame.from_dict(rows, orient="index").assign(over=over(part["seed"].nunique()))


def ends(evaluated: pd.DataFrame, *names: str) -> dict[str, object]:
    """Spread rows of `evaluate` into the columns `<metric>`, `<metric>_low`, `<metric>_high`."""
    columns: dict[str, object] = {}
    for name in names:
        columns[name] = evaluated.loc[name, "value"]
        columns[f"{name}_low"] = evaluated.loc[name, "low"]
        columns[f"{name}_high"] = evaluated.loc[name, "high"]
    return columns


def predictive(scores: pd.DataFrame, prevalences: Sequence[float]) -> pd.DataFrame:
    """Compute predictive values on the test at stated prevalences in (0, 1), by Bayes' rule.

    Sensitivity and specificity are those at the frozen thresholds.

    Returns
    -------
    One row per prevalence and metric with the columns
        prevalence : as passed.
        metric : `ppv` or `npv`.
        value, low, high, patients_low, patients_high, seed_sd : as `evaluate` gives them; NaN where
            no image is classified so.
    """
    runs = resample(scores, ranking=False)
    rows: list[dict[str, object]] = []
    for prevalence in prevalences:
        for metric, values in _predictive_values(runs, prevalence).items():
            row: dict[str, object] = {"prevalence": prevalence, "metric": metric}
            rows.append(row | _summary(values))
    return pd.DataFrame(rows)


def _predictive_values(shares: dict[str, np.ndarray], prevalence: float) -> dict[str, np.ndarray]:
    """Positive and negative predictive value from sensitivity and specificity of any shape."""
    true_positive = shares["sensitivity"] * prevalence
    false_positive = (1 - shares["specificity"]) * (1 - prevalence)
    true_negative = shares["specificity"] * (1 - prevalence)
    false_negative = (1 - shares["sensitivity"]) * prevalence
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "ppv": true_positive / (true_positive + false_positive),
            "npv": true_negative / (true_negative + false_negative),
        }


def _summary(values: np.ndarray) -> dict[str, float]:
    """One row of `evaluate` from values `(runs, 1 + resamples)`, the first not resampled."""
    by_run = values[:, 0]
    resampled = values[:, 1:]
    mean = float(by_run.mean())
    low, high = interval(resampled.mean(axis=0))
    row = {
        "value": mean,
        "low": low,
        "high": high,
        "patients_low": low,
        "patients_high": high,
        "seed_sd": float(by_run.std(ddof=1)) if len(by_run) > 1 else np.nan,
    }
    complete = np.isfinite(resampled).all(axis=0)
    if len(by_run) < MIN_RUNS or not np.isfinite(mean) or complete.sum() < 2:
        return row
    half = two_level(by_run, np.cov(resampled[:, complete]))
    outer_low = mean - half
    outer_high = mean + half
    if resampled[:, complete].min() >= 0 and 0 < mean < 1:
        # A share is skewed near 0 and 1: the same width in its log odds.
        half /= mean * (1 - mean)
        outer_low = float(expit(logit(mean) - half))
        outer_high = float(expit(logit(mean) + half))
    # Never narrower than over patients alone.
    row["low"] = min(low, outer_low)
    row["high"] = max(high, outer_high)
    return row


def auc_interval(
    labels: np.ndarray, values: np.ndarray, patients: np.ndarray, *, resamples: int = RESAMPLES
) -> tuple[float, float, float]:
    """AUC of one value per image `(n,)`, higher for positives, with its interval over patients."""
    weights = patient_weights(patients, resamples)
    aucs, _ = weighted_ranking(labels == 1, values, weights)
    low, high = interval(aucs[1:])
    return float(aucs[0]), low, high


def effective_size(part: pd.DataFrame) -> float:
    """Effective number of images of the scores of one recipe, protocol and split.

    One patient has several similar images. This is the number of images from different patients
    that would give a mean AUC of the same precision: n divided by the design effect, which is
    DeLong's variance over patients divided by that over images. NaN where runs have different
    images.
    """
    by_seed = part.pivot(index="image_id", columns="seed", values="score")
    if by_seed.isna().any(axis=None):
        return np.nan
    images = part.drop_duplicates("image_id").set_index("image_id").loc[by_seed.index]
    labels = images["label"].to_numpy()
    scores = by_seed.T.to_numpy()
    over_patients = delong(labels, scores, images["patient"].to_numpy())[1].mean()
    over_images = delong(labels, scores, images.index.to_numpy())[1].mean()
    if over_patients <= 0:
        return np.nan
    return len(by_seed) * float(over_images / over_patients)
