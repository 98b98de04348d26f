"""Metrics from the scores table, averaged over seeds, with intervals over patients.

`rule` says which threshold: `frozen` (that of each run), a rule applied to validation, or a number; see
`training.thresholds`.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from xraylib.evaluation.resampling import (
    RESAMPLES,
    bootstrap_weights,
    delong_interval,
    interval,
    weighted_auc,
    weighted_ranking,
    wilson_if_degenerate,
)
from xraylib.storage import DataInvalid
from xraylib.training.thresholds import thresholds

METRICS = (
    *("auc", "average_precision", "accuracy", "balanced_accuracy", "sensitivity", "specificity", "precision"),
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

    NaN where a denominator is zero, and for the AUC and the average precision without `ranking`, which takes
    most of the time. `precision` and `npv` hold at the prevalence of these images.
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
    """`METRICS` (index) of one recipe and protocol: `value, low, high, seed_sd`.

    The interval is that of the mean over seeds and holds the thresholds fixed; `seed_sd` is the spread over
    seeds. Accuracy, sensitivity and specificity of exactly 0 or 1 have Wilson's interval.
    """
    by_seed, resampled = _by_seed(scores, split, rule, resamples, ranking)
    rows = {metric: _summary(by_seed[metric], resampled[metric]) for metric in METRICS}
    part = scores[scores["split"] == split]
    for metric, label in (("accuracy", None), ("sensitivity", 1), ("specificity", 0)):
        row, own = rows[metric], part if label is None else part[part["label"] == label]
        patients = own["patient"].nunique()
        row["low"], row["high"] = wilson_if_degenerate(row["value"], row["low"], row["high"], patients)
    return pd.DataFrame.from_dict(rows, orient="index")


def predictive(scores: pd.DataFrame, prevalences: Sequence[float]) -> pd.DataFrame:
    """PPV and NPV on the test at stated prevalences in (0, 1), by Bayes' rule, at the frozen thresholds.

    One row a prevalence and metric (`ppv`, `npv`): `prevalence, metric, value, low, high, seed_sd`, as
    `evaluate` gives them; NaN where no image is classified so.
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
        raise DataInvalid("scores of several recipes or protocols cannot be averaged. Fix: pass one of them.")
    part = scores[scores["split"] == split]
    if part.empty:
        raise DataInvalid(f"there are no scores of the {split} split. Fix: train the recipe again.")
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
    low, high = interval(resampled.mean(axis=0))
    spread = float(by_seed.std(ddof=1)) if len(by_seed) > 1 else np.nan
    return {"value": float(by_seed.mean()), "low": low, "high": high, "seed_sd": spread}


def auc_interval(
    labels: np.ndarray, values: np.ndarray, patients: np.ndarray, *, resamples: int = RESAMPLES
) -> tuple[float, float, float]:
    """AUC of one value an image `(n,)`, in any range and higher for positives, with its interval."""
    whole = float(weighted_auc(labels == 1, values, np.ones((1, len(labels))))[0])
    names, own = np.unique(patients, return_inverse=True)
    return whole, *interval(
        weighted_auc(labels == 1, values, bootstrap_weights(len(names), resamples)[:, own])
    )


def table(scores: pd.DataFrame, *, split: str = "test", rule: str | float = "frozen") -> pd.DataFrame:
    """`evaluate` of every recipe and protocol, one row each.

    `recipe, protocol, seeds, n_<split>` (images a seed)`, metric, metric_low, metric_high, metric_seed_sd`,
    …, the mean `threshold`, and DeLong's interval of the AUC, `auc_delong_low, auc_delong_high`, NaN where
    seeds were tested on different images.
    """
    rows = []
    for (recipe, protocol), part in scores.groupby(["recipe", "protocol"], sort=False):
        found, own = evaluate(part, split=split, rule=rule), part[part["split"] == split]
        row: dict[str, object] = {"recipe": recipe, "protocol": protocol, "seeds": own["seed"].nunique()}
        row[f"n_{split}"] = round(len(own) / own["seed"].nunique())
        for metric in METRICS:
            row[metric] = found.loc[metric, "value"]
            row |= {f"{metric}_{end}": found.loc[metric, end] for end in ("low", "high", "seed_sd")}
        row["threshold"] = thresholds(part, rule).mean()
        wide = own.pivot(index=["image_id", "label", "patient"], columns="seed", values="score")
        low, high = np.nan, np.nan
        if not wide.isna().any(axis=None):
            labels, patients = (wide.index.get_level_values(name).to_numpy() for name in ("label", "patient"))
            _, low, high = delong_interval(labels, wide.to_numpy().T, patients)
        rows.append(row | {"auc_delong_low": low, "auc_delong_high": high})
    return pd.DataFrame(rows)
