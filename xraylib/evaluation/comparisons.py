"""One network, split and scored in several ways."""

from collections.abc import Iterable, Sequence

import pandas as pd

from xraylib.evaluation import metrics
from xraylib.evaluation.resampling import over

# Name, protocol, split and threshold rule.
Evaluation = tuple[str, str, str, str | float]

COMPARED = ("tiny-cnn-28", "scratch-cnn", "mobilenetv2-frozen")
COMPARISONS: tuple[Evaluation, ...] = (
    ("image-level random split", "random-per-image", "test", 0.5),
    ("image-level validation", "per-image-validation", "val", 0.5),
    ("patient-grouped validation", "strict", "val", 0.5),
    ("official test, threshold 0.5", "strict", "test", 0.5),
    ("official test, threshold from validation", "strict", "test", "frozen"),
)


def protocol_comparison(
    scores: pd.DataFrame,
    recipes: Iterable[str] = COMPARED,
    evaluations: Iterable[Evaluation] = COMPARISONS,
    names: Sequence[str] = ("accuracy", "sensitivity", "specificity"),
) -> pd.DataFrame:
    """Evaluate recipes under protocols, splits and threshold rules, where there are scores.

    Parameters
    ----------
    scores : DataFrame
        From `scores.load`.
    recipes : iterable of str
        The recipes, in the order of the rows.
    evaluations : iterable of Evaluation
        By default the five ways of splitting and scoring one network.
    names : sequence of str
        Of `metrics.METRICS`.

    Returns
    -------
    One row per recipe and evaluation with the columns
        recipe, comparison, protocol, split, rule : what was evaluated, at which threshold.
        seeds, n : number of runs, and of images per run.
        the metrics, each with _low and _high : see `metrics.evaluate`.
        over : what the intervals are over.
    """
    rows = []
    for recipe in recipes:
        for comparison, protocol, split, rule in evaluations:
            part = scores[(scores["recipe"] == recipe) & (scores["protocol"] == protocol)]
            evaluated = part[part["split"] == split]
            if evaluated.empty:
                continue
            seeds = evaluated["seed"].nunique()
            row: dict[str, object] = {
                "recipe": recipe,
                "comparison": comparison,
                "protocol": protocol,
                "split": split,
                "rule": str(rule),
                "seeds": seeds,
                "n": round(len(evaluated) / seeds),
            }
            values = metrics.evaluate(part, split=split, rule=rule, ranking="auc" in names)
            rows.append(row | metrics.ends(values, *names) | {"over": over(seeds)})
    return pd.DataFrame(rows)
