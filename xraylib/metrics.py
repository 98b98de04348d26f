"""Figures from the scores table: point metrics, operating points, and intervals that resample patients.

Everything here is a pure function of scores: `recipe, protocol, seed, split, image_id, patient, kind,
label, score`, one row an image, recipe and seed, with `score` = P(pneumonia).
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pandas as pd

from xraylib.errors import DataInvalid
from xraylib.operating import thresholds
from xraylib.ranking import weighted_auc, weighted_ranking
from xraylib.scores import COLUMNS

METRICS = (
    *("auc", "average_precision", "accuracy", "balanced_accuracy", "sensitivity", "specificity", "precision"),
    *("npv", "f1", "mcc", "brier"),
)
RESAMPLES = 2000


def check_scores(scores: pd.DataFrame) -> None:
    """Refuse a scores table that would give wrong figures.

    Raises
    ------
    DataInvalid
        Naming the first row that is missing, doubled, not a number, outside [0, 1], or of a side that
        holds one class only.
    """
    missing = [column for column in COLUMNS if column not in scores]
    if missing:
        raise DataInvalid(f"the scores table lacks the columns {', '.join(missing)}. Mend: write it anew.")
    if scores.empty:
        raise DataInvalid("the scores table is empty. Mend: train a recipe first.")
    bad = {
        "has no number as score": scores["score"].isna(),
        "has a score outside [0, 1]": (scores["score"] < 0) | (scores["score"] > 1),
        "has a label that is not 0 or 1": ~scores["label"].isin([0, 1]),
        "stands there twice": scores.duplicated(["recipe", "protocol", "seed", "split", "image_id"]),
    }
    for what, rows in bad.items():
        if rows.any():
            row = scores[rows].iloc[0]
            raise DataInvalid(
                f"{row['recipe']}, {row['protocol']}, seed {row['seed']}: {row['image_id']} {what} "
                f"({int(rows.sum())} rows). Mend: delete the table and train again."
            )
    for key, part in scores.groupby(["recipe", "protocol", "seed", "split"]):
        if part["label"].nunique() < 2:
            raise DataInvalid(
                f"{', '.join(map(str, key))}: one class only. Mend: score images of both classes."
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
    the scores of every seed, from those of the split; it is the same on every call. The spread over seeds
    is another thing, and stands beside it.

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
        What `check_scores` refuses.
    """
    check_scores(scores)
    if len(scores[["recipe", "protocol"]].drop_duplicates()) > 1:
        raise DataInvalid(
            "scores of several recipes or protocols cannot be averaged. Mend: pass one of them."
        )
    points = thresholds(scores, rule)
    side = scores[scores["split"] == split]
    if side.empty:
        raise DataInvalid(f"there are no scores of the {split} side. Mend: train the recipe again.")
    patients = np.unique(side["patient"])
    draws = patient_draws(len(patients), resamples)
    values, resampled = [], []
    for seed, part in side.groupby("seed"):
        labels, score = part["label"].to_numpy(), part["score"].to_numpy()
        own = np.searchsorted(patients, part["patient"])
        whole = point_metrics(labels, score, points[seed], ranking=ranking)
        values.append({m: float(v[0]) for m, v in whole.items()})
        resampled.append(point_metrics(labels, score, points[seed], draws[:, own], ranking=ranking))
    rows = {}
    for metric in METRICS:
        by_seed = np.array([value[metric] for value in values])
        low, high = interval(np.mean([r[metric] for r in resampled], axis=0))
        spread = by_seed.std(ddof=1) if len(by_seed) > 1 else np.nan
        rows[metric] = {"value": by_seed.mean(), "low": low, "high": high, "seed_sd": spread}
    return pd.DataFrame.from_dict(rows, orient="index")


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
        row["threshold"] = thresholds(part, rule).mean()
        rows.append(row)
    return pd.DataFrame(rows)


def interval(resampled: np.ndarray) -> tuple[float, float]:
    """Percentile interval; resamples without a value are left out, and without any there is none."""
    known = resampled[np.isfinite(resampled)]
    if not len(known):
        return np.nan, np.nan
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


@lru_cache(maxsize=8)
def patient_draws(patients: int, resamples: int) -> np.ndarray:
    """How often each patient is drawn in each resample, `(resamples, patients)`; the same on every call."""
    chances = np.full(patients, 1 / patients)
    draws = np.random.default_rng(0).multinomial(patients, chances, resamples).astype(np.float64)
    draws.flags.writeable = False
    return draws


def _sum(weights: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    return weights @ chosen.astype(np.float64)
