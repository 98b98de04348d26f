"""The scores table: one row per image, recipe and training run, with one reader and one check.

Its columns are `recipe, protocol, seed, split, image_id, patient, kind, label, score`. `score` is
P(pneumonia). Everything after training is a function of this table. A table from `load` also
contains `threshold`, the frozen threshold of the run (an image with this score or a higher one is
classified as pneumonia), and `training_version`.
"""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import logit

from xraylib import paths
from xraylib.datasets import catalog
from xraylib.errors import InvalidDataError, NotFoundError
from xraylib.training import runs

# `swapped`: validation images framed as the other class (`framing.swap_framing`).
SPLITS = ("train", "val", "swapped", "test", "external")
# Baselines that may give every image the same score: on few images regularisation leaves no slope.
CAN_BE_CONSTANT = ("majority-class", "file-size", "mean-intensity", "lung-box")
# Scores are clipped to [EDGE, 1 - EDGE] before their log odds: float32 outputs reach 0 and 1.
EDGE = 1e-6
_RUN = ["recipe", "protocol", "seed"]
_IMAGE = ["split", "image_id"]
_KIND_LABELS = {"normal": 0, "bacteria": 1, "virus": 1}


def log_odds(scores: np.ndarray | float) -> np.ndarray:
    """Log odds of P(pneumonia), of scores clipped to [`EDGE`, 1 - `EDGE`]."""
    return logit(np.clip(np.asarray(scores, dtype=np.float64), EDGE, 1 - EDGE))


def load(dataset: str, recipes: Collection[str] | None = None) -> pd.DataFrame:
    """Load the scores of a report's runs.

    Parameters
    ----------
    dataset : str
        Name of a report.
    recipes : collection of str, optional
        By default all.

    Returns
    -------
    The checked scores table with the further columns `threshold` (the run's frozen threshold) and
    `training_version` (see `runs.TRAINING_VERSION`; runs of an earlier version are stale).

    Raises
    ------
    NotFoundError
        There are no such runs.
    InvalidDataError
        A table is damaged.
    """
    chosen = [run for run in runs.list_runs(dataset) if recipes is None or run.recipe in recipes]
    if not chosen:
        folder = paths.REPORTS / dataset / "runs"
        raise NotFoundError(
            f"no runs in {folder}. Fix: `make reproduce DATASET={catalog.reference(dataset)}`."
        )
    parts = []
    for run in chosen:
        version = runs.identity(run.settings).training_version
        parts.append(run.scores.assign(threshold=run.threshold, training_version=version))
    table = pd.concat(parts, ignore_index=True)
    check(table)
    return table


def load_external(dataset: str, other: str) -> pd.DataFrame:
    """Load the checked scores that `external.external` wrote for another data set, by its name.

    `NotFoundError` where there are none, `InvalidDataError` where recipes scored other images.
    """
    folder = paths.REPORTS / dataset / "external" / other
    command = f"python -m xraylib external RECIPE --dataset {dataset} --on {other}"
    table = read_recipes(folder, command, runs.SCORE_COLUMNS)
    check(table)
    recipes = table.groupby("image_id")["recipe"].transform("nunique")
    incomplete = recipes < table["recipe"].nunique()
    if incomplete.any():
        row = table[incomplete].iloc[0]
        raise InvalidDataError(
            f"{folder}: {row['image_id']} was scored by {row['recipe']} and not by all. "
            "Fix: run `external` for every recipe again."
        )
    return table


def read_recipes(folder: Path, command: str, columns: Collection[str]) -> pd.DataFrame:
    """Read the files of a folder that hold one recipe each, in the order of the recipes.

    `NotFoundError` where there are none names the `command` that writes them.
    """
    files = sorted(folder.glob("*.csv"), key=lambda file: runs.rank(file.stem))
    if not files:
        raise NotFoundError(f"no scores in {folder}. Fix: `{command}`.")
    tables = [runs.read_scores(file, columns) for file in files]
    return pd.concat(tables, ignore_index=True)


def check(scores: pd.DataFrame) -> None:
    """Refuse a scores table that would give wrong numbers.

    `InvalidDataError` names the first bad row, or the run whose scores of a split hold one class or
    one value only.
    """
    if scores.empty:
        raise InvalidDataError("the scores table is empty. Fix: train a recipe first.")
    for problem, bad in (_bad_values(scores) | _contradictions(scores)).items():
        if bad.any():
            row = scores[bad].iloc[0]
            raise InvalidDataError(
                f"{row['recipe']}, {row['protocol']}, seed {row['seed']}: {row['image_id']} "
                f"{problem} ({int(bad.sum())} rows). Fix: delete the file and run the command that "
                "wrote it again."
            )
    for key, part in scores.groupby([*_RUN, "split"]):
        where = ", ".join(map(str, key))
        if part["label"].nunique() < 2:
            raise InvalidDataError(f"{where}: one class only. Fix: score images of both classes.")
        if part["score"].nunique() < 2 and key[0] not in CAN_BE_CONSTANT:
            raise InvalidDataError(
                f"{where}: all {len(part)} scores are {part['score'].iloc[0]:.6g}, which ranks "
                "nothing. Fix: train with another seed or a lower learning rate."
            )


def _bad_values(scores: pd.DataFrame) -> dict[str, pd.Series]:
    """Which rows are wrong by themselves, by what is wrong with them."""
    return {
        "is of a split that does not exist": ~scores["split"].isin(SPLITS),
        "has no patient": scores["patient"].isna() | (scores["patient"] == ""),
        "has no number as score": scores["score"].isna(),
        "has a score outside [0, 1]": (scores["score"] < 0) | (scores["score"] > 1),
        "has a label that is not 0 or 1": ~scores["label"].isin([0, 1]),
        "is there twice": scores.duplicated([*_RUN, *_IMAGE]),
    }


def _contradictions(scores: pd.DataFrame) -> dict[str, pd.Series]:
    """Which rows contradict others or their own kind, by what is wrong with them."""
    label_of_kind = scores["kind"].map(_KIND_LABELS)
    strict = scores["protocol"] == "strict"
    # Another data set may use the same patient names; swapped images are validation's.
    unnamed = scores["split"].where(scores["split"] != "external")
    comparable = scores.assign(split=unnamed.replace("swapped", "val"))
    labels = scores.groupby(_IMAGE)["label"]
    # Of contradicting rows, the one that most others contradict is named.
    minority = scores["label"] != labels.transform("median").round()
    tested = scores["split"].isin(["test", "external"])
    seeds_of_image = scores.groupby(["recipe", "protocol", *_IMAGE])["seed"].transform("nunique")
    seeds_of_split = scores.groupby(["recipe", "protocol", "split"])["seed"].transform("nunique")
    return {
        "has two labels": (labels.transform("nunique") > 1) & minority,
        "has a label that its kind contradicts": label_of_kind.notna()
        & (label_of_kind != scores["label"]),
        "has two patients": _differs(scores, _IMAGE, "patient"),
        "is in two splits": strict & _differs(comparable, [*_RUN, "image_id"], "split"),
        "is of a patient who is in two splits": strict
        & _differs(comparable, [*_RUN, "patient"], "split"),
        "is not among the images of its other seeds": strict
        & tested
        & (seeds_of_image < seeds_of_split),
    }


def _differs(scores: pd.DataFrame, by: list[str], column: str) -> pd.Series:
    """Whether each row's group holds several values of a column."""
    return scores.groupby(by)[column].transform("nunique") > 1
