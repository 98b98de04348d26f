"""Trained models where they were not made for: another hospital's images, and how strange images are.

No training, tuning or threshold here: each run is scored as it stands, with the threshold that its own
validation chose.
"""

import logging
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd

from xraylib import paths, predict
from xraylib.datasets import catalog, corruptions, images, splits
from xraylib.evaluation import metrics, selective
from xraylib.evaluation.scores import COLUMNS, check_scores
from xraylib.evaluation.scores import read as read_scores
from xraylib.evaluation.scores import write as write_scores
from xraylib.report import tables
from xraylib.storage import DataInvalid, NotFound
from xraylib.training import models
from xraylib.training.features import describe, pooled
from xraylib.training.runs import Run

log = logging.getLogger(__name__)


def external(recipe: str, dataset: str, other: str, *, runs: Path = paths.RUNS) -> pd.DataFrame:
    """Score every image of another data set by each strict run of a recipe, and keep the scores.

    Parameters
    ----------
    recipe
        Its name.
    dataset
        What it was trained on.
    other
        Name or path of the data set to score, whole, whatever its folders.
    runs
        Folder of the runs.

    Returns
    -------
    pandas.DataFrame
        A scores table with the split `external`, as kept in `external/<other>/<recipe>.csv` of the report.

    Raises
    ------
    NotFound
        When the recipe has no run on this machine.
    """
    manifest = catalog.load(other)
    parts = []
    name = catalog.find(dataset).name
    for run in predict.find_runs(recipe, name, runs=runs):
        check_recorded(run, name)
        predictor = predict.load(run)
        pixels = images.load_pixels(manifest, run.settings["choices"]["size"])
        scored = manifest.assign(
            recipe=recipe, protocol="strict", seed=run.seed, split="external", score=predictor.score(pixels)
        )
        parts.append(scored[list(COLUMNS)])
    table = pd.concat(parts, ignore_index=True).sort_values(["seed", "image_id"], ignore_index=True)
    check_scores(table)
    write_scores(table, _external_folder(name, catalog.find(other).name) / f"{recipe}.csv")
    return table


def load_external(dataset: str, other: str) -> pd.DataFrame:
    """Read the external scores of a report.

    Raises `NotFound` when there are none, and `DataInvalid` for what `scores.check_scores` refuses or when
    recipes were scored on different images.
    """
    known = other in externals(dataset)
    place = _external_folder(dataset, other if known else catalog.find(other).name)
    files = sorted(place.glob("*.csv"), key=lambda file: tables.rank(file.stem))
    if not files:
        raise NotFound(
            f"no scores in {place}. Fix: `python -m xraylib external RECIPE --dataset {dataset} --on "
            f"{other}`."
        )
    table = pd.concat([read_scores(file) for file in files], ignore_index=True)
    check_scores(table)
    scored = table.groupby("image_id")["recipe"].transform("nunique")
    if (scored < len(files)).any():
        row = table[scored < len(files)].iloc[0]
        raise DataInvalid(
            f"{place}: {row['image_id']} was scored by {row['recipe']} and not by all. Fix: run `external` "
            "for every recipe again."
        )
    return table


def externals(dataset: str) -> list[str]:
    """Names of the other data sets whose scores stand in a report."""
    return sorted(path.name for path in (tables.folder(dataset) / "external").glob("*") if path.is_dir())


def drop(scores: pd.DataFrame, outside: pd.DataFrame) -> pd.DataFrame:
    """Set the figures on another data set beside those on the official test.

    Parameters
    ----------
    scores
        Strict scores of a report.
    outside
        From `external`.

    Returns
    -------
    pandas.DataFrame
        `recipe, metric, test, test_low, test_high, external, external_low, external_high`, with the
        threshold of validation on both sides, and `drop, drop_low, drop_high`: how much is lost, its interval
        put together from those of the two sides, which share no patient (Zou and Donner 2008).
    """
    rows = []
    for recipe, there in outside.groupby("recipe", sort=False):
        here = scores[(scores["recipe"] == recipe) & (scores["protocol"] == "strict")]
        both = pd.concat([here, there])
        found = {side: metrics.evaluate(both, split=side) for side in ("test", "external")}
        for metric in ("auc", "accuracy", "balanced_accuracy", "sensitivity", "specificity"):
            row: dict[str, object] = {"recipe": recipe, "metric": metric}
            for side, figures in found.items():
                row |= {side: figures.loc[metric, "value"]}
                row |= {f"{side}_{end}": figures.loc[metric, end] for end in ("low", "high")}
            rows.append(row | _lost(found["test"].loc[[metric]], found["external"].loc[[metric]]))
    return pd.DataFrame(rows)


def _lost(test: pd.DataFrame, external: pd.DataFrame) -> dict[str, float]:
    """Difference of two figures that have nothing in common, each a row of `metrics.evaluate`."""
    here, here_low, here_high = test[["value", "low", "high"]].to_numpy(dtype=float)[0]
    there, there_low, there_high = external[["value", "low", "high"]].to_numpy(dtype=float)[0]
    down, up = np.hypot(here - here_low, there_high - there), np.hypot(here_high - here, there - there_low)
    return {"drop": here - there, "drop_low": here - there - down, "drop_high": here - there + up}


def strangeness(
    dataset: str, others: Collection[str] = (), *, recipe: str = "mobilenetv2-frozen", runs: Path = paths.RUNS
) -> pd.DataFrame:
    """How unlike the training images others are, by features of a frozen network (`abstention.strangeness`).

    Parameters
    ----------
    dataset
        Whose training images of the recipe's first strict run are the usual ones.
    others
        Names or paths of further data sets to judge, whole.
    recipe
        One with a linear head on a frozen network.
    runs
        Folder of the runs.

    Returns
    -------
    pandas.DataFrame
        `group, image_id, patient, label, strangeness`, kept as `tables/strangeness.csv` of the report. The
        groups: normals and pneumonias of validation and of the official test, the test inverted, the others.

    Raises
    ------
    NotFound
        When the recipe has no run on this machine.
    """
    name, whole = catalog.find(dataset).name, catalog.load(dataset)
    run = predict.find_runs(recipe, name, runs=runs)[0]
    frozen, network, size = (
        predict.load(run).model,
        *(run.settings["choices"][k] for k in ("network", "size")),
    )
    weights = models.get_weights(network, "random" if run.settings["init"] == "random" else "imagenet")
    features = pooled(whole, network, size, weights, run.seed)
    sides = dict(list(splits.assign(whole, "strict", run.seed).groupby("split")))
    val, test = sides["val"], sides["test"]
    inverted = corruptions.corrupt(images.load_pixels(whole, size)[test.index], "inversion", 1)
    judged = [
        (val.assign(group="validation, " + _classes(val)), features[val.index]),
        (test.assign(group="test, " + _classes(test)), features[test.index]),
        (test.assign(group="test, inverted"), describe(frozen, inverted)),
    ]
    for other in others:
        there = catalog.load(other).assign(group=catalog.find(other).name)
        judged.append((there, describe(frozen, images.load_pixels(there, size))))
    usual = features[sides["train"].index]
    table = pd.concat(
        [about.assign(strangeness=selective.strangeness(usual, found)) for about, found in judged]
    )
    table = table[["group", "image_id", "patient", "label", "strangeness"]]
    tables.save_table(table, name, "strangeness")
    return table.reset_index(drop=True)


def _classes(films: pd.DataFrame) -> pd.Series:
    return films["label"].map({0: "normal", 1: "pneumonia"})


def _external_folder(dataset: str, other: str) -> Path:
    return tables.folder(dataset) / "external" / other


def check_recorded(run: Run, dataset: str) -> None:
    """Say aloud when the run on this machine is not the one whose scores stand in the report."""
    found = tables.recorded(dataset, run.recipe, "strict", run.seed)
    if found is None or found[0]["model_sha256"] != run.settings["model_sha256"]:
        log.warning("%s, seed %d: the report's scores were not made by this run", run.recipe, run.seed)
