"""What published figures come to: claim beside measurement, one network split five ways, single draws.

Everything here is a pure function of scores, like `metrics`.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from statsmodels.stats.proportion import proportion_confint

from xraylib import metrics
from xraylib.errors import DataInvalid
from xraylib.operating import RULES, thresholds
from xraylib.recipes import RECIPES
from xraylib.scores import check_scores
from xraylib.splits import PROTOCOLS
from xraylib.systems import Recipe

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


def of_protocols(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the scores of `published` and `strict`, without those of other ways of splitting."""
    return scores[scores["protocol"].isin(PROTOCOLS)]


def claims(
    scores: pd.DataFrame, recipes: Mapping[str, Recipe] = RECIPES, *, same_data: bool = True
) -> pd.DataFrame:
    """Set each published figure beside what the system gives here.

    Parameters
    ----------
    scores
        The whole scores table.
    recipes
        The systems with their claims.
    same_data
        Whether the scores are of the radiographs that the claims are about; otherwise nothing is said of
        `reproduced`.

    Returns
    -------
    pandas.DataFrame
        One row a system and metric that its claim, or its notebook's stored output, names: `recipe, metric,
        claim` (share, or its word), `own_notebook` (share or NaN), and for `published` and `strict` the
        mean over seeds with its 95 % interval (`published, published_low, published_high, …`, NaN where
        not run), then `claim_low, claim_high`, the claim's own 95 % interval (Wilson, of the images it was
        measured on; accuracy and sensitivity only), and `reproduced`: `yes` where the claim's own interval
        holds the figure of `published`, or that figure's interval the claim; else `no`; empty where either is
        no figure.

    Raises
    ------
    DataInvalid
        What `scores.check_scores` refuses.
    """
    rows = []
    for name, recipe in recipes.items():
        named = [metric for metric in metrics.METRICS if metric in {**recipe.claims, **recipe.shown}]
        ranking = bool({"auc", "average_precision"}.intersection(named))
        found: dict[str, pd.DataFrame] = {
            protocol: metrics.evaluate(part, rule=recipe.under(protocol).threshold, ranking=ranking)
            for protocol in PROTOCOLS
            if named and len(part := scores[(scores["recipe"] == name) & (scores["protocol"] == protocol)])
        }
        for metric in named:
            if found:
                rows.append(_claim(name, metric, recipe, found, _ill(scores[scores["recipe"] == name])))
    table = pd.DataFrame(rows, columns=list(CLAIMS))
    return table if same_data else table.assign(reproduced="")


CLAIMS = (
    *("recipe", "metric", "claim", "own_notebook", "published", "published_low", "published_high"),
    *("strict", "strict_low", "strict_high", "claim_low", "claim_high", "reproduced"),
)


def _ill(scores: pd.DataFrame) -> float:
    """Share of pneumonia among the images tested as published, or else under the first protocol there is."""
    protocol = "published" if "published" in set(scores["protocol"]) else scores["protocol"].iloc[0]
    tested = scores[(scores["protocol"] == protocol) & (scores["split"] == "test")]
    return float(tested["label"].mean())


def _claim(
    name: str, metric: str, recipe: Recipe, found: Mapping[str, pd.DataFrame], ill: float
) -> dict[str, object]:
    claim = recipe.claims.get(metric, np.nan)
    share = np.nan if isinstance(claim, str) else claim
    images = {"accuracy": recipe.claimed_on, "sensitivity": round(recipe.claimed_on * ill)}.get(metric, 0)
    own_low, own_high = np.nan, np.nan
    if images and share == share:
        own_low, own_high = proportion_confint(round(share * images), images, method="wilson")
    row: dict[str, object] = {
        "recipe": name,
        "metric": metric,
        "claim": claim,
        "own_notebook": recipe.shown.get(metric, np.nan),
        "claim_low": own_low,
        "claim_high": own_high,
        "reproduced": "",
    }
    for protocol in PROTOCOLS:
        figures = found[protocol].loc[metric] if protocol in found else pd.Series(dtype=float)
        value, low, high = figures.reindex(["value", "low", "high"]).to_numpy(dtype=float)
        row |= {protocol: value, f"{protocol}_low": low, f"{protocol}_high": high}
        if protocol == "published" and low <= high and share == share:
            held = low <= share <= high or own_low <= value <= own_high
            row["reproduced"] = "yes" if held else "no"
    return row


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
        `recipe, seed, n_val, n_test, val_accuracy` (at .5: what a README of such a study would state), and
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
            raise DataInvalid(f"there are no {protocol} scores of {recipe}. Mend: train it first.")
        check_scores(part)
        for seed, one in part.groupby("seed"):
            sides = {split: one[one["split"] == split] for split in ("val", "test")}
            if lacking := [split for split, side in sides.items() if side.empty]:
                raise DataInvalid(
                    f"{recipe}, seed {seed}: no scores of the {lacking[0]} side. Mend: train it again."
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
