"""Published values next to what is measured here."""

from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd

from xraylib.datasets.splits import PROTOCOLS
from xraylib.evaluation import metrics
from xraylib.evaluation.resampling import MIN_RUNS, over, student_quantile
from xraylib.training.recipes import RECIPES, Recipe

CLAIMS = (
    "recipe",
    "metric",
    "claim",
    "stored_output",
    "runs",
    "published",
    "published_low",
    "published_high",
    "next_low",
    "next_high",
    "strict",
    "strict_low",
    "strict_high",
    "over",
    "verdict",
)
# The data sets that hold the images which all claims in `RECIPES` are about.
CLAIMED_ON = ("kermany", "kermany-roboflow")
# A prediction interval whose half width is above this is compatible with almost any claim.
WIDEST_HALF_WIDTH = 0.05
REPRODUCED = "reproduced"
NOT_REPRODUCED = "not reproduced"
TOO_WIDE = "compatible, too wide to tell"
UNTESTABLE = "cannot be tested"


def made_on(dataset: str) -> bool:
    """Whether the claims of `RECIPES` were made on the images of this data set, by its name.

    No claim is shown next to results on other images, such as a user's own folder.
    """
    return dataset in CLAIMED_ON


def claims(
    scores: pd.DataFrame, *, same_data: bool = True, other_init: Collection[str] = ()
) -> pd.DataFrame:
    """Set each published value next to what its system gives here.

    Parameters
    ----------
    scores : DataFrame
        From `scores.load`.
    same_data : bool
        Whether these are scores of the images that the claims are about (`made_on`). Otherwise the
        verdicts are empty.
    other_init : collection of str
        Recipes that were trained from other initial weights than the system's.

    Returns
    -------
    One row per system and metric with the columns `CLAIMS`
        recipe, metric, claim, stored_output : a claim is a number or a word; the stored output is
            what the system's own notebook shows.
        runs : number of runs under `published`.
        published, strict, each with _low and _high : see `metrics.evaluate`; NaN where not run.
        next_low, next_high : 95% prediction interval of one more run under `published` (Student's
            t over runs), because a claim is of one run.
        over : what the interval of `published` is over.
        verdict : for a claim that is a number, `NOT_REPRODUCED` where it is outside the prediction
            interval, `TOO_WIDE` where it is inside one with a half width above
            `WIDEST_HALF_WIDTH`, `REPRODUCED` where it is inside a narrower one. `UNTESTABLE` with
            the reason where initial weights or layers are not the system's or where there are
            fewer than three runs.
    """
    rows = []
    for name, recipe in RECIPES.items():
        # Without other split strategies.
        own = scores[(scores["recipe"] == name) & scores["protocol"].isin(PROTOCOLS)]
        stated = {**recipe.claims, **recipe.stored_output}
        names = [metric for metric in metrics.METRICS if metric in stated]
        if own.empty or not names:
            continue
        ranking = "auc" in names or "average_precision" in names
        evaluated = {}
        for protocol, part in own.groupby("protocol"):
            evaluated[str(protocol)] = metrics.evaluate(part, ranking=ranking)
        runs = own.loc[own["protocol"] == "published", "seed"].nunique()
        problem = _problem(recipe, runs, name in other_init)
        rows += [_claim(recipe, metric, evaluated, runs, problem) for metric in names]
    table = pd.DataFrame(rows, columns=list(CLAIMS))
    return table if same_data else table.assign(verdict="")


def _problem(recipe: Recipe, runs: int, other_init: bool) -> str:
    """Why a recipe's claims cannot be tested here, or nothing."""
    if other_init:
        return "other initial weights"
    if recipe.ours:
        return recipe.ours
    return "fewer than three runs" if runs < MIN_RUNS else ""


def _claim(
    recipe: Recipe, metric: str, evaluated: Mapping[str, pd.DataFrame], runs: int, problem: str
) -> dict[str, object]:
    """One row of `claims`."""
    claim = recipe.claims.get(metric, np.nan)
    row: dict[str, object] = {
        "recipe": recipe.name,
        "metric": metric,
        "claim": claim,
        "stored_output": recipe.stored_output.get(metric, np.nan),
        "runs": runs,
        "over": over(runs),
        "verdict": "",
    }
    for protocol, table in evaluated.items():
        row |= metrics.ends(table.rename({metric: protocol}), protocol)
    half = np.nan
    value = np.nan
    if "published" in evaluated and runs > 1:
        over_runs = evaluated["published"].loc[metric].to_dict()
        value = float(over_runs["value"])
        spread = float(over_runs["seed_sd"])
        half = student_quantile(runs) * spread * np.sqrt(1 + 1 / runs)
        row["next_low"] = max(0.0, value - half)
        row["next_high"] = min(1.0, value + half)
    if isinstance(claim, float) and not np.isnan(claim):
        row["verdict"] = f"{UNTESTABLE}: {problem}" if problem else _verdict(claim, value, half)
    return row


def _verdict(claim: float, value: float, half: float) -> str:
    """Judge a claim by the prediction interval of one more run."""
    if not abs(claim - value) <= half:
        return NOT_REPRODUCED
    return TOO_WIDE if half > WIDEST_HALF_WIDTH else REPRODUCED
