"""Where a score becomes a call: rules that choose a threshold on validation, never on the test.

A rule is a number (a fixed threshold) or a text: `validation` (Youden's index), `sensitivity .95` (the
highest threshold that finds so many of the ill) or `cost 5` (a missed pneumonia costs five false alarms).
"""

import numpy as np
import pandas as pd
from sklearn.metrics import roc_curve

from xraylib.storage import DataInvalid, NotFound

# What the table of operating points sets beside each other; the first is the recipes' own.
RULES: tuple[str | float, ...] = ("validation", "sensitivity .95", "sensitivity .98", "cost 5", 0.5)


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
    false_alarms, found, cuts = _curve(labels, scores)
    return _half_way(float(cuts[np.argmax(found - false_alarms)]), scores)


def sensitivity_threshold(labels: np.ndarray, scores: np.ndarray, target: float) -> float:
    """Highest threshold at which at least `target` of the ill are found; parameters as `youden_threshold`."""
    _, found, cuts = _curve(labels, scores)
    return _half_way(float(cuts[np.argmax(found >= target - 1e-12)]), scores)


def cost_threshold(labels: np.ndarray, scores: np.ndarray, ratio: float) -> float:
    """Threshold of the lowest cost when a miss costs `ratio` false alarms; else as `youden_threshold`."""
    false_alarms, found, cuts = _curve(labels, scores)
    ill = labels.sum()
    cost = ratio * ill * (1 - found) + (len(labels) - ill) * false_alarms
    return _half_way(float(cuts[np.argmin(cost)]), scores)


def threshold(labels: np.ndarray, scores: np.ndarray, rule: str | float) -> float:
    """Apply a rule to validation scores.

    Raises
    ------
    NotFound
        For a rule that does not exist.
    """
    if not isinstance(rule, str):
        return float(rule)
    name, _, value = rule.partition(" ")
    try:
        if rule == "validation":
            return youden_threshold(labels, scores)
        if name == "sensitivity" and 0 < float(value) <= 1:
            return sensitivity_threshold(labels, scores, float(value))
        if name == "cost" and 0 < float(value) < np.inf:
            return cost_threshold(labels, scores, float(value))
    except ValueError:
        pass
    raise NotFound(
        f"there is no rule {rule!r} for a threshold. Fix: a number, `validation`, `sensitivity .95` "
        "or `cost 5`."
    )


def thresholds(scores: pd.DataFrame, rule: str | float) -> pd.Series:
    """Operating point of each seed of one recipe and protocol.

    Parameters
    ----------
    scores
        Of one recipe and protocol, with the `val` side unless `rule` is a number.
    rule
        See the module.

    Returns
    -------
    pandas.Series
        Threshold by seed; an image whose score is above or equal is called pneumonia.

    Raises
    ------
    DataInvalid
        When the rule needs validation and a seed has no scores of the `val` side.
    NotFound
        For a rule that does not exist.
    """
    seeds = sorted(scores["seed"].unique())
    if not isinstance(rule, str):
        return pd.Series(float(rule), index=seeds)
    # Where validation films were re-framed as well, these choose.
    reframed = (scores["split"] == "swapped").any()
    val = scores[scores["split"] == ("swapped" if reframed else "val")]
    if without := sorted(set(seeds) - set(val["seed"])):
        raise DataInvalid(
            f"seed {without[0]} has no scores of the val side to choose a threshold on. "
            "Fix: train it again, or give a fixed threshold."
        )
    parts = (val[val["seed"] == seed] for seed in seeds)
    chosen = [threshold(part["label"].to_numpy(), part["score"].to_numpy(), rule) for part in parts]
    return pd.Series(chosen, index=seeds)


def _curve(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # The first threshold is infinite: it calls nothing, and no image can be compared with it.
    false_alarms, found, cuts = roc_curve(labels, scores, drop_intermediate=False)
    return false_alarms[1:], found[1:], cuts[1:]


def _half_way(best: float, scores: np.ndarray) -> float:
    below = scores[scores < best]
    return (best + float(below.max())) / 2 if len(below) else best
