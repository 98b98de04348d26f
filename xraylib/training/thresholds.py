"""From a score to a decision: rules that choose a threshold on validation, never on the test.

A rule is a number (a fixed threshold), `youden`, `sensitivity 0.95` (the highest threshold that finds such a share of
the positives), `cost 5` (a missed pneumonia costs five false alarms), or, for a scores table, `frozen`: the threshold
that each run chose when it was trained.
"""

import numpy as np
import pandas as pd
from sklearn.metrics import roc_curve

from xraylib.errors import InvalidDataError, NotFoundError

# What the table of operating points compares; the first is the recipes' default.
RULES: tuple[str | float, ...] = ("sensitivity 0.95", "youden", "sensitivity 0.98", "cost 5", 0.5)


def threshold(labels: np.ndarray, scores: np.ndarray, rule: str | float) -> float:
    """Apply a rule to validation labels (0/1) and scores, both `(n,)`; at or above it is pneumonia.

    It lies half-way between two neighbouring scores, so that rounding a score does not cross it. `youden` maximises
    sensitivity + specificity - 1 (Youden 1950). `NotFoundError` for a rule that does not exist.
    """
    if not isinstance(rule, str):
        return float(rule)
    name, _, given = rule.partition(" ")
    try:
        value = float(given or "nan")
    except ValueError:
        value = np.nan
    curve = roc_curve(labels, scores, drop_intermediate=False)
    # The first threshold is infinite: no image is positive at it, and no score compares with it.
    false_alarms, found, cuts = (values[1:] for values in curve)
    if rule == "youden":
        chosen = np.argmax(found - false_alarms)
    elif name == "sensitivity" and 0 < value <= 1:
        chosen = np.argmax(found >= value - 1e-12)
    elif name == "cost" and 0 < value < np.inf:
        positives = labels.sum()
        cost = value * positives * (1 - found) + (len(labels) - positives) * false_alarms
        chosen = np.argmin(cost)
    else:
        raise NotFoundError(
            f"there is no rule {rule!r} for a threshold. Fix: a number, `youden`, `sensitivity 0.95` or `cost 5`."
        )
    best = float(cuts[chosen])
    below = scores[scores < best]
    return (best + float(below.max())) / 2 if len(below) else best


def thresholds(scores: pd.DataFrame, rule: str | float) -> pd.Series:
    """Threshold by seed of one recipe and protocol, under a rule.

    A rule is applied to the `swapped` rows where there are any, to `val` elsewhere; `InvalidDataError` where a seed has
    none. `frozen` needs a table from `scores.load`.
    """
    seeds = sorted(scores["seed"].unique())
    if not isinstance(rule, str):
        return pd.Series(float(rule), index=seeds)
    if rule == "frozen":
        return scores.groupby("seed")["threshold"].first()
    val = scores[scores["split"] == validation_split(scores)]
    if without := sorted(set(seeds) - set(val["seed"])):
        raise InvalidDataError(
            f"seed {without[0]} has no scores of validation to choose a threshold on. "
            "Fix: train it again, or give a fixed threshold."
        )
    parts = (val[val["seed"] == seed] for seed in seeds)
    chosen = [threshold(part["label"].to_numpy(), part["score"].to_numpy(), rule) for part in parts]
    return pd.Series(chosen, index=seeds)


def validation_split(scores: pd.DataFrame) -> str:
    """The split that chooses thresholds: `swapped` where a recipe has it, else `val`."""
    return "swapped" if (scores["split"] == "swapped").any() else "val"
