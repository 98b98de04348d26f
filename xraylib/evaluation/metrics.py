"""Figures from the scores table: point metrics, operating points, and intervals that resample patients.

Everything here is a pure function of scores: `recipe, protocol, seed, split, image_id, patient, kind,
label, score`, one row an image, recipe and seed, with `score` = P(pneumonia).
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from xraylib.evaluation.operating import thresholds
from xraylib.evaluation.ranking import delong_interval, weighted_auc, weighted_ranking
from xraylib.evaluation.resampling import RESAMPLES, interval, patient_draws, unvaried
from xraylib.evaluation.scores import check_scores
from xraylib.storage import DataInvalid

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
    """Metrics of one set of scores under many weightings at once.

    Parameters
    ----------
    labels
        0/1 `(n,)`.
    scores
        P(pneumonia) `(n,)`.
    threshold
        At or above it an image is called pneumonia.
    weights
        Non-negative `(resamples, n)`, how often each image was drawn; one row of ones by default.
    ranking
        Whether `auc` and `average_precision` are wanted, which take most of the time; else they are NaN.

    Returns
    -------
    dict
        `METRICS`, each `(resamples,)` in [0, 1] (`mcc` in [-1, 1]); NaN where a denominator is zero.
        `precision` and `npv` hold at the prevalence of these images, see `predictive_values`.
    """
    weights = np.ones((1, len(labels))) if weights is None else weights
    positive, called = labels == 1, scores >= threshold
    tp, fn = _sum(weights, positive & called), _sum(weights, positive & ~called)
    fp, tn = _sum(weights, ~positive & called), _sum(weights, ~positive & ~called)
    total = tp + tn + fp + fn
    auc = precision = total * np.nan
    if ranking:
        auc, precision = weighted_ranking(positive, scores, weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        sensitivity, specificity = tp / (tp + fn), tn / (tn + fp)
        return {
            "auc": auc,
            "average_precision": precision,
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


def predictive_values(
    sensitivity: np.ndarray | float, specificity: np.ndarray | float, prevalence: float
) -> tuple[np.ndarray, np.ndarray]:
    """PPV and NPV at a stated prevalence in (0, 1), by Bayes' rule; NaN where nothing is called so."""
    sensitivity, specificity = np.asarray(sensitivity, float), np.asarray(specificity, float)
    ill, well = prevalence, 1 - prevalence
    with np.errstate(invalid="ignore", divide="ignore"):
        ppv = sensitivity * ill / (sensitivity * ill + (1 - specificity) * well)
        npv = specificity * well / (specificity * well + (1 - sensitivity) * ill)
    return ppv, npv


def evaluate(
    scores: pd.DataFrame,
    *,
    split: str = "test",
    rule: str | float = "validation",
    resamples: int = RESAMPLES,
    ranking: bool = True,
) -> pd.DataFrame:
    """Metrics of one recipe and protocol, averaged over its seeds, with 95 % intervals.

    The interval is the percentile interval of a bootstrap that draws patients, with all their images and
    the scores of every seed, from those of the split; it is the same on every call, and holds the operating
    point as it was chosen. Accuracy, sensitivity and specificity of exactly 0 or 1 have Wilson's interval
    (`unvaried`). The spread over seeds is another thing, and stands beside it.

    Parameters
    ----------
    scores
        Of one recipe and protocol.
    split
        The side to evaluate.
    rule
        Operating point, see `thresholds`.
    resamples
        Bootstrap resamples.
    ranking
        See `point_metrics`.

    Returns
    -------
    pandas.DataFrame
        One row a metric (index): `value, low, high, seed_sd`.

    Raises
    ------
    DataInvalid
        What `scores.check_scores` refuses.
    """
    by_seed, resampled = _by_seed(scores, split, rule, resamples, ranking)
    figures = {metric: _summary(by_seed[metric], resampled[metric]) for metric in METRICS}
    side = scores[scores["split"] == split]
    for metric, label in (("accuracy", None), ("sensitivity", 1), ("specificity", 0)):
        row, own = figures[metric], side if label is None else side[side["label"] == label]
        row["low"], row["high"] = unvaried(row["value"], row["low"], row["high"], own["patient"].nunique())
    return pd.DataFrame.from_dict(figures, orient="index")


def predictive(
    scores: pd.DataFrame,
    prevalences: Sequence[float],
    *,
    split: str = "test",
    rule: str | float = "validation",
) -> pd.DataFrame:
    """PPV and NPV of one recipe and protocol at stated prevalences, with intervals as those of `evaluate`.

    Parameters
    ----------
    scores, split, rule
        See `evaluate`.
    prevalences
        Shares of pneumonia, each in (0, 1).

    Returns
    -------
    pandas.DataFrame
        One row a prevalence and metric (`ppv` or `npv`): `prevalence, metric, value, low, high, seed_sd`.
    """
    by_seed, resampled = _by_seed(scores, split, rule, RESAMPLES, ranking=False)
    rows = []
    for prevalence in prevalences:
        whole, drawn = (
            predictive_values(found["sensitivity"], found["specificity"], prevalence)
            for found in (by_seed, resampled)
        )
        for metric, value, others in zip(("ppv", "npv"), whole, drawn, strict=True):
            rows.append({"prevalence": prevalence, "metric": metric} | _summary(value, others))
    return pd.DataFrame(rows)


def _by_seed(
    scores: pd.DataFrame, split: str, rule: str | float, resamples: int, ranking: bool
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Metrics of each seed `(seeds,)`, and of each under the same draws of patients `(seeds, draws)`."""
    check_scores(scores)
    if len(scores[["recipe", "protocol"]].drop_duplicates()) > 1:
        raise DataInvalid("scores of several recipes or protocols cannot be averaged. Fix: pass one of them.")
    points = thresholds(scores, rule)
    side = scores[scores["split"] == split]
    if side.empty:
        raise DataInvalid(f"there are no scores of the {split} side. Fix: train the recipe again.")
    patients = np.unique(side["patient"])
    # The first row is the side as it is.
    draws = np.vstack([np.ones(len(patients)), patient_draws(len(patients), resamples)])
    found = []
    for seed, part in side.groupby("seed"):
        labels, score = part["label"].to_numpy(), part["score"].to_numpy()
        weights = draws[:, np.searchsorted(patients, part["patient"])]
        found.append(point_metrics(labels, score, points[seed], weights, ranking=ranking))
    stacked = {metric: np.stack([one[metric] for one in found]) for metric in METRICS}
    return {m: v[:, 0] for m, v in stacked.items()}, {m: v[:, 1:] for m, v in stacked.items()}


def _summary(by_seed: np.ndarray, resampled: np.ndarray) -> dict[str, float]:
    low, high = interval(resampled.mean(axis=0))
    spread = float(by_seed.std(ddof=1)) if len(by_seed) > 1 else np.nan
    return {"value": float(by_seed.mean()), "low": low, "high": high, "seed_sd": spread}


def confusion(scores: pd.DataFrame, *, split: str = "test", rule: str | float = "validation") -> np.ndarray:
    """Mean confusion matrix over seeds, float `(2, 2)`: rows truth, columns call, normal before pneumonia."""
    points = thresholds(scores, rule)
    side = scores[scores["split"] == split]
    called = side["score"].to_numpy() >= side["seed"].map(points).to_numpy()
    counts = pd.crosstab(side["label"].to_numpy(), called.astype(int))
    return counts.reindex(index=[0, 1], columns=[0, 1], fill_value=0).to_numpy() / side["seed"].nunique()


def auc_interval(
    labels: np.ndarray, values: np.ndarray, patients: np.ndarray, *, resamples: int = RESAMPLES
) -> tuple[float, float, float]:
    """AUC of any number an image, with its 95 % interval over patients.

    Parameters
    ----------
    labels
        0/1 `(n,)`.
    values
        Higher for pneumonia `(n,)`; any range.
    patients
        Whose image it is `(n,)`.

    Returns
    -------
    tuple
        AUC, lower and upper end.
    """
    whole = float(weighted_auc(labels == 1, values, np.ones((1, len(labels))))[0])
    names, own = np.unique(patients, return_inverse=True)
    resampled = weighted_auc(labels == 1, values, patient_draws(len(names), resamples)[:, own])
    return whole, *interval(resampled)


def table(
    scores: pd.DataFrame, rules: Callable[[str, str], str | float], *, split: str = "test"
) -> pd.DataFrame:
    """One row a recipe and protocol: the figures of `evaluate` as `metric, metric_low, metric_high`.

    `metric_seed_sd` is the spread over seeds; `auc_delong_low, auc_delong_high` is DeLong's interval over
    patients beside that of the bootstrap.

    Parameters
    ----------
    scores
        The whole scores table.
    rules
        Gives the operating point's rule for a recipe and protocol.
    split
        The side to evaluate.
    """
    rows = []
    for (recipe, protocol), part in scores.groupby(["recipe", "protocol"], sort=False):
        rule = rules(str(recipe), str(protocol))
        figures = evaluate(part, split=split, rule=rule)
        side = part[part["split"] == split]
        row: dict[str, object] = {"recipe": recipe, "protocol": protocol, "seeds": side["seed"].nunique()}
        row[f"n_{split}"] = round(len(side) / side["seed"].nunique())
        for metric in METRICS:
            row[metric] = figures.loc[metric, "value"]
            row[f"{metric}_low"], row[f"{metric}_high"] = figures.loc[metric, ["low", "high"]]
            row[f"{metric}_seed_sd"] = figures.loc[metric, "seed_sd"]
        row["threshold"] = thresholds(part, rule).mean()
        row["auc_delong_low"], row["auc_delong_high"] = _delong(side)
        rows.append(row)
    return pd.DataFrame(rows)


def _delong(side: pd.DataFrame) -> tuple[float, float]:
    """DeLong's interval of the seeds' mean AUC, over patients; none where seeds tested other images."""
    by_image = side.pivot(index=["image_id", "label", "patient"], columns="seed", values="score")
    if by_image.isna().any(axis=None):
        return np.nan, np.nan
    labels, patients = (by_image.index.get_level_values(name).to_numpy() for name in ("label", "patient"))
    return delong_interval(labels, by_image.to_numpy().T, patients)[1:]


def _sum(weights: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    return weights @ chosen.astype(np.float64)
