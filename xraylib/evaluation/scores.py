"""The scores table, one row an image, recipe and seed, and its one check.

`recipe, protocol, seed, split, image_id, patient, kind, label, score`, with `score` = P(pneumonia). Everything after
training is a pure function of it. A table from `load` also holds `threshold`, the frozen threshold of the run: at or
above it an image is classified as pneumonia.
"""

from collections.abc import Collection

import pandas as pd

from xraylib import paths
from xraylib.datasets import catalog
from xraylib.errors import InvalidDataError, NotFoundError
from xraylib.training import runs

# `swapped`: validation images framed as the other class (`framing.swap_framing`).
SPLITS = ("train", "val", "swapped", "test", "external")
# The baseline that gives every image the same score.
CONSTANT = "majority-class"


def load(dataset: str, recipes: Collection[str] | None = None) -> pd.DataFrame:
    """Return the scores of a report's runs, of all recipes or some, checked, with each run's frozen `threshold`."""
    if not (
        found := [
            run for run in runs.list_runs(dataset) if recipes is None or run.recipe in recipes
        ]
    ):
        raise NotFoundError(
            f"no runs in {paths.REPORTS / dataset / 'runs'}. "
            f"Fix: `make reproduce DATASET={catalog.reference(dataset)}`."
        )
    table = pd.concat(
        [run.scores.assign(threshold=run.threshold) for run in found], ignore_index=True
    )
    check(table)
    return table


def load_external(dataset: str, other: str) -> pd.DataFrame:
    """Return the scores that `external.external` wrote for another data set, by its name, checked."""
    place = paths.REPORTS / dataset / "external" / other
    files = sorted(place.glob("*.csv"), key=lambda file: runs.rank(file.stem))
    if not files:
        names = f"--dataset {catalog.reference(dataset)} --on {catalog.reference(other)}"
        command = f"python -m xraylib external RECIPE {names}"
        raise NotFoundError(f"no scores in {place}. Fix: `{command}`.")
    table = pd.concat([runs.read_scores(file) for file in files], ignore_index=True)
    check(table)
    scored = table.groupby("image_id")["recipe"].transform("nunique")
    if (scored < len(files)).any():
        row = table[scored < len(files)].iloc[0]
        what = f"{row['image_id']} was scored by {row['recipe']} and not by all"
        raise InvalidDataError(f"{place}: {what}. Fix: run `external` for every recipe again.")
    return table


def check(scores: pd.DataFrame) -> None:
    """Refuse a scores table that would give wrong numbers, naming the first bad row (`InvalidDataError`)."""
    if missing := [column for column in runs.SCORE_COLUMNS if column not in scores]:
        raise InvalidDataError(
            f"the scores table lacks the columns {', '.join(missing)}. Fix: write it again."
        )
    if scores.empty:
        raise InvalidDataError("the scores table is empty. Fix: train a recipe first.")
    # Another hospital may give its patients the same names.
    inside = scores.assign(
        split=scores["split"].where(scores["split"] != "external").replace("swapped", "val")
    )
    strict, run = scores["protocol"] == "strict", ["recipe", "protocol", "seed"]
    kind = scores["kind"].map({"normal": 0, "bacteria": 1, "virus": 1})
    labels = scores.groupby(["split", "image_id"])["label"]
    bad = {
        "is of a split that does not exist": ~scores["split"].isin(SPLITS),
        "has no patient": scores["patient"].isna() | (scores["patient"] == ""),
        "has no number as score": scores["score"].isna(),
        "has a score outside [0, 1]": (scores["score"] < 0) | (scores["score"] > 1),
        "has a label that is not 0 or 1": ~scores["label"].isin([0, 1]),
        "is there twice": scores.duplicated([*run, "split", "image_id"]),
        # The row that most others contradict is named.
        "has two labels": (labels.transform("nunique") > 1)
        & (scores["label"] != labels.transform("median").round()),
        "has a label that its kind contradicts": kind.notna() & (kind != scores["label"]),
        "has two patients": _differs(scores, ["split", "image_id"], "patient"),
        "is in two splits": strict & _differs(inside, [*run, "image_id"], "split"),
        "is of a patient who is in two splits": strict
        & _differs(inside, [*run, "patient"], "split"),
        "is not among the images of its other seeds": strict
        & scores["split"].isin(["test", "external"])
        & (
            scores.groupby(["recipe", "protocol", "split", "image_id"])["seed"].transform("nunique")
            < scores.groupby(["recipe", "protocol", "split"])["seed"].transform("nunique")
        ),
    }
    for what, rows in bad.items():
        if rows.any():
            row = scores[rows].iloc[0]
            raise InvalidDataError(
                f"{row['recipe']}, {row['protocol']}, seed {row['seed']}: {row['image_id']} {what} "
                f"({int(rows.sum())} rows). Fix: delete the file and run the command that wrote it again."
            )
    for key, part in scores.groupby([*run, "split"]):
        where = ", ".join(map(str, key))
        if part["label"].nunique() < 2:
            raise InvalidDataError(f"{where}: one class only. Fix: score images of both classes.")
        if part["score"].nunique() < 2 and key[0] != CONSTANT:
            what = f"all {len(part)} scores are {part['score'].iloc[0]:.6g}, which ranks nothing"
            raise InvalidDataError(
                f"{where}: {what}. Fix: train with another seed or a lower learning rate."
            )


def _differs(scores: pd.DataFrame, by: list[str], column: str) -> pd.Series:
    return scores.groupby(by)[column].transform("nunique") > 1
