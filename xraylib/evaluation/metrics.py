"""Metrics from the scores table, averaged over runs, with intervals over runs and patients.

`rule` says which threshold: `frozen` (that of each run), a rule applied to validation, or a number; see
`training.thresholds`.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from xraylib.errors import InvalidDataError
from xraylib.evaluation.resampling import (
    RESAMPLES,
    bootstrap_weights,
    delong,
    interval,
    two_level,
    weighted_ranking,
    wilson_if_degenerate,
)
from xraylib.training.thresholds import thresholds

# Fewer runs tell too little of their spread: their intervals are over patients only.
MIN_RUNS = 3
METRICS = (
    *(
        "auc",
        "average_precision",
        "accuracy",
        "balanced_accuracy",
        "sensitivity",
        "specificity",
        "precision",
    ),
    *("npv", "f1", "mcc", "brier"),
)


def point_metrics(
    labels: np.ndarray,
    scores: np.ndarray,
    threshold: float,
    weights: np.ndarray | None = None,
    *,
    ranking: bool = True,
) -> dict[str, np.ndarray]:
    """`METRICS` of labels and scores `(n,)` under many weights `(resamples, n)` at once, each `(resamples,)`.

    NaN where a denominator is zero, and for the AUC and the average precision without `ranking`, which takes most of
    the time. `precision` and `npv` hold at the prevalence of these images.
    """
    weights = np.ones((1, len(labels))) if weights is None else weights
    positive, classified = labels == 1, scores >= threshold
    tp, fn, fp, tn = (
        weights @ chosen.astype(np.float64)
        for chosen in (
            positive & classified,
            positive & ~classified,
            ~positive & classified,
            ~positive & ~classified,
        )
    )
    total = tp + tn + fp + fn
    auc = average_precision = total * np.nan
    if ranking:
        auc, average_precision = weighted_ranking(positive, scores, weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        sensitivity, specificity = tp / (tp + fn), tn / (tn + fp)
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
            "mcc": (tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)),
            "brier": weights @ (scores - positive) ** 2 / total,
        }


def evaluate(
    scores: pd.DataFrame,
    *,
    split: str = "test",
    rule: str | float = "frozen",
    resamples: int = RESAMPLES,
    ranking: bool = True,
) -> pd.DataFrame:
    """`METRICS` (index) of one recipe and protocol: `value, low, high, patients_low, patients_high, seed_sd`.

    Means over runs (seeds). `low` to `high` is the interval over runs and patients (`resampling.two_level`); of fewer
    than `MIN_RUNS` it is that over patients, which always stands beside it. Both hold the thresholds fixed; `seed_sd`
    is the spread over runs. Accuracy, sensitivity and specificity that are exactly 0 or 1 have Wilson's interval.
    """
    by_seed, resampled = _by_seed(scores, split, rule, resamples, ranking)
    part = scores[scores["split"] == split]
    rows = {metric: _summary(by_seed[metric], resampled[metric]) for metric in METRICS}
    for metric, label in (("accuracy", None), ("sensitivity", 1), ("specificity", 0)):
        row, own = rows[metric], part if label is None else part[part["label"] == label]
        for ends in (("low", "high"), ("patients_low", "patients_high")):
            low, high = (row[end] for end in ends)
            found = wilson_if_degenerate(row["value"], low, high, own["patient"].nunique())
            row |= dict(zip(ends, found, strict=True))
    return pd.DataFrame.from_dict(rows, orient="index")


def ends(found: pd.DataFrame, *names: str) -> dict[str, object]:
    """Rows of `evaluate` as `metric, metric_low, metric_high`."""
    columns = (("value", ""), ("low", "_low"), ("high", "_high"))
    return {f"{name}{end}": found.loc[name, column] for name in names for column, end in columns}


def predictive(scores: pd.DataFrame, prevalences: Sequence[float]) -> pd.DataFrame:
    """PPV and NPV on the test at stated prevalences in (0, 1), by Bayes' rule, at the frozen thresholds.

    One row a prevalence and metric (`ppv`, `npv`): `prevalence, metric, value, low, high, seed_sd`, as `evaluate` gives
    them; NaN where no image is classified so.
    """
    found = _by_seed(scores, "test", "frozen", RESAMPLES, ranking=False)
    rows: list[dict[str, object]] = []
    for p in prevalences:
        pairs = []
        for sensitivity, specificity in ((one["sensitivity"], one["specificity"]) for one in found):
            with np.errstate(invalid="ignore", divide="ignore"):
                ppv = sensitivity * p / (sensitivity * p + (1 - specificity) * (1 - p))
                npv = specificity * (1 - p) / (specificity * (1 - p) + (1 - sensitivity) * p)
            pairs.append((ppv, npv))
        for metric, value, resampled in zip(("ppv", "npv"), *pairs, strict=True):
            rows.append({"prevalence": p, "metric": metric} | _summary(value, resampled))
    return pd.DataFrame(rows)


def _by_seed(
    scores: pd.DataFrame, split: str, rule: str | float, resamples: int, ranking: bool
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Metrics of each seed `(seeds,)`, and under the same resamples of patients `(seeds, resamples)`."""
    if len(scores[["recipe", "protocol"]].drop_duplicates()) > 1:
        raise InvalidDataError(
            "scores of several recipes or protocols cannot be averaged. Fix: pass one of them."
        )
    part = scores[scores["split"] == split]
    if part.empty:
        raise InvalidDataError(
            f"there are no scores of the {split} split. Fix: train the recipe again."
        )
    points, patients = thresholds(scores, rule), np.unique(part["patient"])
    # The first row is the split as it is.
    weights = np.vstack([np.ones(len(patients)), bootstrap_weights(len(patients), resamples)])
    found = [
        point_metrics(
            one["label"].to_numpy(),
            one["score"].to_numpy(),
            points[seed],
            weights[:, np.searchsorted(patients, one["patient"])],
            ranking=ranking,
        )
        for seed, one in part.groupby("seed")
    ]
    stacked = {metric: np.stack([one[metric] for one in found]) for metric in METRICS}
    return {m: v[:, 0] for m, v in stacked.items()}, {m: v[:, 1:] for m, v in stacked.items()}


def _summary(by_seed: np.ndarray, resampled: np.ndarray) -> dict[str, float]:
    mean, (low, high) = float(by_seed.mean()), interval(resampled.mean(axis=0))
    row = {"value": mean, "low": low, "high": high, "patients_low": low, "patients_high": high}
    if len(by_seed) < MIN_RUNS:
        return row | {"seed_sd": float(by_seed.std(ddof=1)) if len(by_seed) > 1 else np.nan}
    known = resampled[:, np.isfinite(resampled).all(axis=0)]
    if np.isfinite(mean) and known.shape[1] > 1:
        half = two_level(by_seed, np.cov(known))
        ends = mean - half, mean + half
        if known.min() >= 0 and 0 < mean < 1:
            # A share is skewed near 0 and 1: the same width in its log odds.
            ends = tuple(expit(logit(mean) + side * half / (mean * (1 - mean))) for side in (-1, 1))
        # Never narrower than over patients alone.
        row["low"], row["high"] = min(low, ends[0]), max(high, ends[1])
    return row | {"seed_sd": float(by_seed.std(ddof=1))}


def auc_interval(
    labels: np.ndarray, values: np.ndarray, patients: np.ndarray, *, resamples: int = RESAMPLES
) -> tuple[float, float, float]:
    """AUC of one value an image `(n,)`, in any range and higher for positives, with its interval."""
    names, own = np.unique(patients, return_inverse=True)
    weights = np.vstack([np.ones(len(names)), bootstrap_weights(len(names), resamples)])
    aucs, _ = weighted_ranking(labels == 1, values, weights[:, own])
    return float(aucs[0]), *interval(aucs[1:])


def effective_size(part: pd.DataFrame) -> float:
    """How many images, one a patient, would tell the mean AUC of `part` as well: n over the design effect.

    The effect is DeLong's variance over patients by that over images; NaN where seeds have other images.
    """
    by_seed = part.pivot(index="image_id", columns="seed", values="score")
    about = part.drop_duplicates("image_id").set_index("image_id").loc[by_seed.index]
    if by_seed.isna().any(axis=None):
        return np.nan
    units = (about["patient"].to_numpy(), by_seed.index.to_numpy())
    over = [
        delong(about["label"].to_numpy(), by_seed.T.to_numpy(), unit)[1].mean() for unit in units
    ]
    return len(by_seed) * float(over[1] / over[0]) if over[0] > 0 else np.nan
