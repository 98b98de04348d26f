"""What published figures come to: one network split five ways, thresholds, single draws.

Everything here is a pure function of scores, like `metrics`.
"""

from collections.abc import Iterable

import pandas as pd

from xraylib.datasets.splits import PROTOCOLS
from xraylib.evaluation import metrics
from xraylib.evaluation.operating import RULES, thresholds
from xraylib.evaluation.scores import check_scores
from xraylib.storage import DataInvalid
from xraylib.training.recipes import RECIPES

# Those that the story figure tells, and the ways of splitting that only it needs.
STORY = ("tiny-cnn-28", "scratch-cnn", "mobilenetv2-frozen")
OTHER_SPLITS = ("random-per-image", "per-image-validation")
# Five ways to split and score one network: what it is called, protocol, side, operating point.
WAYS = (
    ("random re-split per image", "random-per-image", "test", 0.5),
    ("validation per image, from train", "per-image-validation", "val", 0.5),
    ("validation by patient, from train", "strict", "val", 0.5),
    ("official test, threshold .5", "strict", "test", 0.5),
    ("official test, threshold of validation", "strict", "test", "validation"),
)


def operating_point(recipe: str, protocol: str) -> str | float:
    """Return the rule of a recipe's threshold under a protocol (see `metrics.thresholds`)."""
    return RECIPES[recipe].under(protocol).threshold if recipe in RECIPES else "validation"


def threshold_of(scores: pd.DataFrame, recipe: str, protocol: str, seed: int) -> float:
    """Return the operating point that a run's own validation chose, or its recipe names."""
    own = scores[(scores["recipe"] == recipe) & (scores["protocol"] == protocol) & (scores["seed"] == seed)]
    return float(thresholds(own, operating_point(recipe, protocol))[seed])


def of_protocols(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the scores of `published` and `strict`, without those of other ways of splitting."""
    return scores[scores["protocol"].isin(PROTOCOLS)]


def story(scores: pd.DataFrame, recipes: Iterable[str]) -> pd.DataFrame:
    """Score one network five ways (`WAYS`), for each of some recipes.

    Parameters
    ----------
    scores
        The whole scores table, with the protocols that `WAYS` names.
    recipes
        Whose; one that lacks a way has no row for it.

    Returns
    -------
    pandas.DataFrame
        `recipe, way, protocol, split, rule, seeds, n` (images a seed), then accuracy, sensitivity and
        specificity with their 95 % intervals: `accuracy, accuracy_low, accuracy_high, …`.

    Raises
    ------
    DataInvalid
        What `scores.check_scores` refuses.
    """
    rows = []
    for recipe in recipes:
        for way, protocol, split, rule in WAYS:
            part = scores[(scores["recipe"] == recipe) & (scores["protocol"] == protocol)]
            if part.empty:
                continue
            figures = metrics.evaluate(part, split=split, rule=rule, ranking=False)
            side = part[part["split"] == split]
            row: dict[str, object] = {
                "recipe": recipe,
                "way": way,
                "protocol": protocol,
                "split": split,
                "rule": str(rule),
                "seeds": side["seed"].nunique(),
                "n": round(len(side) / side["seed"].nunique()),
            }
            for metric in ("accuracy", "sensitivity", "specificity"):
                row[metric] = figures.loc[metric, "value"]
                row[f"{metric}_low"], row[f"{metric}_high"] = figures.loc[metric, ["low", "high"]]
            rows.append(row)
    return pd.DataFrame(rows)


def operating_points(scores: pd.DataFrame, rules: Iterable[str | float] = RULES) -> pd.DataFrame:
    """What each rule for a threshold, applied to validation, gives on validation and on the test.

    Parameters
    ----------
    scores
        Scores of one protocol, of any recipes.
    rules
        See `operating`.

    Returns
    -------
    pandas.DataFrame
        `recipe, rule, threshold` (mean over seeds)`, val_sensitivity, val_specificity`, then on the test
        sensitivity, specificity and accuracy with their 95 % intervals: `sensitivity, sensitivity_low, …`.

    Raises
    ------
    DataInvalid
        What `scores.check_scores` refuses.
    """
    rows = []
    for recipe, part in scores.groupby("recipe", sort=False):
        for rule in rules:
            row: dict[str, object] = {"recipe": recipe, "rule": str(rule)}
            row["threshold"] = thresholds(part, rule).mean()
            found = {
                side: metrics.evaluate(part, split=side, rule=rule, ranking=False) for side in ("val", "test")
            }
            for metric in ("sensitivity", "specificity"):
                row[f"val_{metric}"] = found["val"].loc[metric, "value"]
            for metric in ("sensitivity", "specificity", "accuracy"):
                row[metric] = found["test"].loc[metric, "value"]
                row[f"{metric}_low"], row[f"{metric}_high"] = found["test"].loc[metric, ["low", "high"]]
            rows.append(row)
    return pd.DataFrame(rows)


def draws(scores: pd.DataFrame, recipes: Iterable[str], protocol: str = "strict") -> pd.DataFrame:
    """Figures of every single draw (seed) of some recipes, on its own validation and on the test.

    Parameters
    ----------
    scores
        The whole scores table.
    recipes
        Whose draws.
    protocol
        Of which protocol.

    Returns
    -------
    pandas.DataFrame
        `recipe, seed, n_val, n_test, val_accuracy` (at .5: what a README of such a experiment would state), and
        on the test at .5 `accuracy, balanced_accuracy, sensitivity, specificity, auc`.

    Raises
    ------
    DataInvalid
        When a recipe has no scores of the protocol, or a draw none of its validation or test; and what
        `scores.check_scores` refuses.
    """
    rows = []
    for recipe in recipes:
        part = scores[(scores["recipe"] == recipe) & (scores["protocol"] == protocol)]
        if part.empty:
            raise DataInvalid(f"there are no {protocol} scores of {recipe}. Fix: train it first.")
        check_scores(part)
        for seed, one in part.groupby("seed"):
            sides = {split: one[one["split"] == split] for split in ("val", "test")}
            if lacking := [split for split, side in sides.items() if side.empty]:
                raise DataInvalid(
                    f"{recipe}, seed {seed}: no scores of the {lacking[0]} side. Fix: train it again."
                )
            found = {
                split: metrics.point_metrics(side["label"].to_numpy(), side["score"].to_numpy(), 0.5)
                for split, side in sides.items()
            }
            test = {name: float(value[0]) for name, value in found["test"].items()}
            balanced = (test["sensitivity"] + test["specificity"]) / 2
            rows.append(
                {"recipe": recipe, "seed": seed, "n_val": len(sides["val"]), "n_test": len(sides["test"])}
                | {"val_accuracy": float(found["val"]["accuracy"][0]), "balanced_accuracy": balanced}
                | {name: test[name] for name in ("accuracy", "sensitivity", "specificity", "auc")}
            )
    return pd.DataFrame(rows)
