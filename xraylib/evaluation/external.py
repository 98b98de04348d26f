"""External validation: the images of another data set."""

import numpy as np
import pandas as pd

from xraylib import paths
from xraylib.datasets import catalog, regions, manifest
from xraylib.errors import InvalidDataError
from xraylib.evaluation import metrics
from xraylib.evaluation.scores import check
from xraylib.evaluation.views import strict_runs
from xraylib.training import runs
from xraylib.training.predictor import load_predictor


def external(recipe: str, dataset: str, other: str) -> pd.DataFrame:
    """Score every image of another data set (name or path) by each strict run of a recipe.

    A scores table with the split `external`, written to `external/<other>/<recipe>.csv` of the report.
    """
    name, films, parts = catalog.get_dataset(dataset).name, manifest.load(other), []
    for run in strict_runs(recipe, name):
        score = load_predictor(run).score(
            regions.load(
                films,
                run.settings["choices"]["size"],
                run.settings["choices"].get("region", "whole"),
            )
        )
        scored = films.assign(
            recipe=recipe, protocol="strict", seed=run.seed, split="external", score=score
        )
        parts.append(scored[list(runs.SCORE_COLUMNS)])
    table = pd.concat(parts, ignore_index=True).sort_values(["seed", "image_id"], ignore_index=True)
    check(table)
    file = paths.REPORTS / name / "external" / catalog.get_dataset(other).name / f"{recipe}.csv"
    runs.write_scores(table, file)
    return table


def generalisation_gap(scores: pd.DataFrame, external: pd.DataFrame) -> pd.DataFrame:
    """Set the metrics on another data set beside those on the official test, at the same frozen thresholds.

    `recipe, metric, test, test_low, test_high, external, external_low, external_high`, and `gap, gap_low, gap_high`:
    test minus external, its interval put together from those of the two, which share no patient (Zou and Donner 2008).
    """
    rows = []
    for recipe, there in external.groupby("recipe", sort=False):
        here = scores[(scores["recipe"] == recipe) & (scores["protocol"] == "strict")]
        there = there.assign(threshold=there["seed"].map(here.groupby("seed")["threshold"].first()))
        if there["threshold"].isna().any():
            raise InvalidDataError(
                f"external scores of {recipe} are of other runs. Fix: run `external` again."
            )
        test, outside = metrics.evaluate(here), metrics.evaluate(there, split="external")
        for metric in ("auc", "accuracy", "balanced_accuracy", "sensitivity", "specificity"):
            (a, a_low, a_high), (b, b_low, b_high) = (
                found.loc[metric, ["value", "low", "high"]].to_numpy(dtype=float)
                for found in (test, outside)
            )
            row = {
                "recipe": recipe,
                "metric": metric,
                "test": a,
                "test_low": a_low,
                "test_high": a_high,
            }
            row |= {"external": b, "external_low": b_low, "external_high": b_high}
            row |= {"gap": a - b, "gap_low": a - b - np.hypot(a - a_low, b_high - b)}
            rows.append(row | {"gap_high": a - b + np.hypot(a_high - a, b - b_low)})
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
            f"{len(known)} of the {len(images_of_other)} images of {other} are images of {dataset}, "
            f"the first is {known['path'].iloc[0]}. Fix: name images that no run has seen, or "
            "pass --allow-known-images."
        )
