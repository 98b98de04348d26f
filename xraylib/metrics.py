"""Figures from the scores table: point metrics, operating points, and intervals that resample patients.

Everything here is a pure function of scores: `recipe, protocol, seed, split, image_id, patient, kind,
label, score`, one row an image, recipe and seed, with `score` = P(pneumonia).
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from sklearn.metrics import roc_curve

from xraylib.errors import DataInvalid
from xraylib.scores import COLUMNS

METRICS = ("auc", "accuracy", "sensitivity", "specificity", "precision", "f1")
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


def youden_threshold(labels: np.ndarray, scores: np.ndarray) -> float:
    """Threshold with the highest sensitivity + specificity - 1 (Youden 1950).

    It lies half-way between two neighbouring scores, so that rounding a score does not cross it.

    Parameters
    ----------
    labels
        0/1 `(n,)`, of validation images only.
    scores
        P(pneumonia) `(n,)`.
    """
    false_positive, true_positive, thresholds = roc_curve(labels, scores, drop_intermediate=False)
    # The first threshold is infinite: it calls nothing, and no image can be compared with it.
    best = float(thresholds[1:][np.argmax((true_positive - false_positive)[1:])])
    below = scores[scores < best]
    return (best + float(below.max())) / 2 if len(below) else best


def thresholds(scores: pd.DataFrame, rule: str | float) -> pd.Series:
    """Operating point of each seed of one recipe and protocol.

    Parameters
    ----------
    scores
        Of one recipe and protocol, with the `val` side when `rule` is `validation`.
    rule
        `validation` (Youden's index on each seed's validation) or a fixed number.

    Returns
    -------
    pandas.Series
        Threshold by seed; an image whose score is above or equal is called pneumonia.

    Raises
    ------
    DataInvalid
        When `rule` is `validation` and a seed has no scores of the `val` side.
    """
    seeds = sorted(scores["seed"].unique())
    if rule != "validation":
        return pd.Series(float(rule), index=seeds)
    val = scores[scores["split"] == "val"]
    if without := sorted(set(seeds) - set(val["seed"])):
        raise DataInvalid(
            f"seed {without[0]} has no scores of the val side to choose a threshold on. "
            "Mend: train it again, or give a fixed threshold."
        )
    return pd.Series(
        [
            youden_threshold(part["label"].to_numpy(), part["score"].to_numpy())
            for part in (val[val["seed"] == seed] for seed in seeds)
        ],
        index=seeds,
    )


def point_metrics(
    labels: np.ndarray, scores: np.ndarray, threshold: float, weights: np.ndarray | None = None
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

    Returns
    -------
    dict
        `auc, accuracy, sensitivity, specificity, precision, f1`, each `(resamples,)` in [0, 1]; NaN where
        a denominator is zero.
    """
    weights = np.ones((1, len(labels))) if weights is None else weights
    positive, called = labels == 1, scores >= threshold
    tp, fn = _sum(weights, positive & called), _sum(weights, positive & ~called)
    fp, tn = _sum(weights, ~positive & called), _sum(weights, ~positive & ~called)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "auc": _auc(positive, scores, weights),
            "accuracy": (tp + tn) / (tp + tn + fp + fn),
            "sensitivity": tp / (tp + fn),
            "specificity": tn / (tn + fp),
            "precision": tp / (tp + fp),
            "f1": 2 * tp / (2 * tp + fp + fn),
        }


def evaluate(
    scores: pd.DataFrame, *, split: str = "test", rule: str | float = "validation", resamples: int = RESAMPLES
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
    draws = _draws(len(patients), resamples)
    values, resampled = [], []
    for seed, part in side.groupby("seed"):
        labels, score = part["label"].to_numpy(), part["score"].to_numpy()
        own = np.searchsorted(patients, part["patient"])
        values.append({m: float(v[0]) for m, v in point_metrics(labels, score, points[seed]).items()})
        resampled.append(point_metrics(labels, score, points[seed], draws[:, own]))
    rows = {}
    for metric in METRICS:
        by_seed = np.array([value[metric] for value in values])
        low, high = _interval(np.mean([r[metric] for r in resampled], axis=0))
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
    whole = float(_auc(labels == 1, values, np.ones((1, len(labels))))[0])
    names, own = np.unique(patients, return_inverse=True)
    resampled = _auc(labels == 1, values, _draws(len(names), resamples)[:, own])
    return whole, *_interval(resampled)


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


def _interval(resampled: np.ndarray) -> tuple[float, float]:
    """Percentile interval; resamples without a value are left out, and without any there is none."""
    known = resampled[np.isfinite(resampled)]
    if not len(known):
        return np.nan, np.nan
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def _draws(patients: int, resamples: int) -> np.ndarray:
    """How often each patient is drawn in each resample; the same on every call."""
    chances = np.full(patients, 1 / patients)
    return np.random.default_rng(0).multinomial(patients, chances, resamples).astype(np.float64)


def _sum(weights: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    return weights @ chosen.astype(np.float64)


def _auc(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted Mann-Whitney statistic, ties counted half."""
    order = np.argsort(scores, kind="stable")
    ordered, sick = scores[order], positive[order]
    starts = np.flatnonzero(np.r_[True, np.diff(ordered) > 0])
    weights = weights[:, order]
    ill = np.add.reduceat(weights * sick, starts, axis=1)
    well = np.add.reduceat(weights * ~sick, starts, axis=1)
    below = np.cumsum(well, axis=1) - well / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return (ill * below).sum(axis=1) / (ill.sum(axis=1) * well.sum(axis=1))
