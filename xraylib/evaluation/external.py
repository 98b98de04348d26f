"""External validation: the images of another data set, and the generalisation gap."""

import numpy as np
import pandas as pd

from xraylib import paths
from xraylib.datasets import catalog, manifest, regions
from xraylib.errors import InvalidDataError
from xraylib.evaluation import metrics
from xraylib.evaluation.scores import check
from xraylib.evaluation.views import strict_runs
from xraylib.training import runs
from xraylib.training.predictor import load_predictor

GAP_METRICS = ("auc", "accuracy", "balanced_accuracy", "sensitivity", "specificity")


def external(recipe: str, dataset: str, other: str) -> pd.DataFrame:
    """Score every image of another data set with each strict run of a recipe.

    Parameters
    ----------
    recipe : str
        A recipe with finished strict runs.
    dataset : str
        Name or path of the data set that the runs were trained on.
    other : str
        Name or path of the data set to score.

    Returns
    -------
    pandas.DataFrame
        A scores table of the split `external`, sorted by seed and image. It is written to
        `external/<other>/<recipe>.csv` of the report.
    """
    name = catalog.get_dataset(dataset).name
    whole = manifest.load(other)
    tables = []
    for run in strict_runs(recipe, name):
        choices = run.settings["choices"]
        pixels = regions.load(whole, choices["size"], choices.get("region", "whole"))
        scored = whole.assign(
            recipe=recipe,
            protocol="strict",
            seed=run.seed,
            split="external",
            score=load_predictor(run).score(pixels),
        )
        tables.append(scored[list(runs.SCORE_COLUMNS)])
    table = pd.concat(tables, ignore_index=True)
    table = table.sort_values(["seed", "image_id"], ignore_index=True)
    check(table)
    folder = paths.REPORTS / name / "external" / catalog.get_dataset(other).name
    runs.write_scores(table, folder / f"{recipe}.csv")
    return table


def generalisation_gap(scores: pd.DataFrame, external: pd.DataFrame) -> pd.DataFrame:
    """Compare the metrics on the official test with those on another data set.

    Both are at the same frozen thresholds.

    Parameters
    ----------
    scores : pandas.DataFrame
        Scores of the report, with `threshold`.
    external : pandas.DataFrame
        External scores of the same strict runs.

    Returns
    -------
    pandas.DataFrame
        One row per recipe and metric.

        - `recipe`, `metric` (one of `GAP_METRICS`).
        - `test`, `external`: the two values; `gap`: test minus external. Each with `_low` and
          `_high`. The interval of the gap joins those of the two sets, which share no patient
          (Zou and Donner 2008).

    Raises
    ------
    InvalidDataError
        The external scores are of other runs than those of the report.
    """
    rows = []
    for recipe, outside in external.groupby("recipe", sort=False):
        inside = scores[(scores["recipe"] == recipe) & (scores["protocol"] == "strict")]
        thresholds = inside.groupby("seed")["threshold"].first()
        outside = outside.assign(threshold=outside["seed"].map(thresholds))
        if outside["threshold"].isna().any():
            what = f"external scores of {recipe} are of other runs"
            raise InvalidDataError(f"{what}. Fix: run `external` again.")
        test_metrics = metrics.evaluate(inside)
        external_metrics = metrics.evaluate(outside, split="external")
        for metric in GAP_METRICS:
            test = test_metrics.loc[metric]
            other = external_metrics.loc[metric]
            gap = test["value"] - other["value"]
            below = np.hypot(test["value"] - test["low"], other["high"] - other["value"])
            above = np.hypot(test["high"] - test["value"], other["value"] - other["low"])
            row: dict[str, object] = {"recipe": recipe, "metric": metric}
            row |= metrics.ends(test_metrics.rename({metric: "test"}), "test")
            row |= metrics.ends(external_metrics.rename({metric: "external"}), "external")
            rows.append(row | {"gap": gap, "gap_low": gap - below, "gap_high": gap + above})
    return pd.DataFrame(rows)


def check_unknown(dataset: str, other: str) -> None:
    """Refuse external validation on images that the data set has as well, byte for byte.

    Raises
    ------
    InvalidDataError
        If there is one. Without the images of `dataset` on this machine nothing is compared.
    """
    if not catalog.get_dataset(dataset).root.is_dir():
        return
    own = set(manifest.load(dataset)["sha256"])
    images_of_other = manifest.load(other)
    known = images_of_other[images_of_other["sha256"].isin(own)]
    if len(known):
        raise InvalidDataError(
            f"{len(known)} of the {len(images_of_other)} images of {other} are images of {dataset}"
            f", the first is {known['path'].iloc[0]}. Fix: name images that no run has seen, or "
            "pass --allow-known-images."
        )
