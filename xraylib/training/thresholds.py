"""From a score to a decision: rules that choose a threshold on validation, never on the test.

A rule is one of

a number
    A fixed threshold.
`youden`
    The highest sum of sensitivity and specificity (Youden 1950).
`sensitivity 0.95`
    The highest threshold that finds this share of the positives.
`cost 5`
    The lowest cost, where a missed pneumonia costs as much as five false alarms.
a function `(labels, scores) -> threshold`
    A rule of your own.
`frozen`
    For a table from `scores.load`: the threshold that each run chose when it was trained.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from sklearn.metrics import roc_curve

from xraylib.errors import InvalidDataError, NotFoundError

Rule = str | float | Callable[[np.ndarray, np.ndarray], float]


def threshold(labels: np.ndarray, scores: np.ndarray, rule: Rule) -> float:
    """Choose a threshold by a rule; at or above it an image is classified as pneumonia.

    Parameters
    ----------
    labels, scores
        Validation labels (0/1) and P(pneumonia), both `(n,)`.
    rule
        A rule of this module, except `frozen`; another one is refused with `NotFoundError`.

    Returns
    -------
    float
        Half-way between two neighbouring scores, so that rounding a score does not cross it.
    """
    if callable(rule):
        chosen = float(rule(labels, scores))
        if not np.isfinite(chosen):
            raise InvalidDataError(
                f"the rule {getattr(rule, '__name__', rule)} gives the threshold {chosen}. "
                "Fix: let it return a finite number."
            )
        return chosen
    if not isinstance(rule, str):
        return float(rule)
    name, _, number = rule.partition(" ")
    try:
        value = float(number or "nan")
    except ValueError:
        value = np.nan
    fpr, tpr, cuts = roc_curve(labels, scores, drop_intermediate=False)
    # The first cut is infinite: no image is positive at it, and no score compares with it.
    fpr = fpr[1:]
    tpr = tpr[1:]
    cuts = cuts[1:]
    if rule == "youden":
        place = np.argmax(tpr - fpr)
    elif name == "sensitivity" and 0 < value <= 1:
        place = np.argmax(tpr >= value - 1e-12)
    elif name == "cost" and 0 < value < np.inf:
        positives = labels.sum()
        negatives = len(labels) - positives
        place = np.argmin(value * positives * (1 - tpr) + negatives * fpr)
    else:
        raise NotFoundError(
            f"there is no rule {rule!r} for a threshold. "
            "Fix: a number, `youden`, `sensitivity 0.95` or `cost 5`."
        )
    cut = float(cuts[place])
    lower_scores = scores[scores < cut]
    return (cut + float(lower_scores.max())) / 2 if len(lower_scores) else cut


def thresholds(scores: pd.DataFrame, rule: Rule) -> pd.Series:
    """Choose a threshold for every seed.

    Parameters
    ----------
    scores
        The scores table of one recipe and protocol.
    rule
        A rule of this module. It is applied to the `swapped` rows where the table has some,
        otherwise to `val`.

    Returns
    -------
    Series
        Thresholds by seed.

    Raises
    ------
    InvalidDataError
        If a seed has no validation scores.
    """
    seeds = sorted(scores["seed"].unique())
    if isinstance(rule, int | float):
        return pd.Series(float(rule), index=seeds)
    if rule == "frozen":
        return scores.groupby("seed")["threshold"].first()
    validation = scores[scores["split"] == validation_split(scores)]
    missing = sorted(set(seeds) - set(validation["seed"]))
    if missing:
        raise InvalidDataError(
            f"seed {missing[0]} has no scores of validation to choose a threshold on. "
            "Fix: train it again, or give a fixed threshold."
        )
    chosen = {}
    for seed, rows in validation.groupby("seed"):
        chosen[seed] = threshold(rows["label"].to_numpy(), rows["score"].to_numpy(), rule)
    return pd.Series(chosen)


def validation_split(scores: pd.DataFrame) -> str:
    """Return the split that chooses thresholds: `swapped` where a recipe has it, else `val`."""
    return "swapped" if (scores["split"] == "swapped").any() else "val"
