"""The scores table as a file: one row an image, recipe and seed, without pixels.

`recipe, protocol, seed, split, image_id, patient, kind, label, score`, with `score` = P(pneumonia).
"""

from pathlib import Path

import numpy as np
import pandas as pd

from xraylib.storage import DataInvalid, atomic

COLUMNS = ("recipe", "protocol", "seed", "split", "image_id", "patient", "kind", "label", "score")

# The baseline that gives every image the same score.
SEES_NOTHING = "majority-class"

# `swapped`: validation films framed as the other class (`framing.swap_framing`).
SIDES = ("train", "val", "swapped", "test", "external")
_NUMBERS = {"seed": "int64", "label": "int64", "score": "float64"}


def write(scores: pd.DataFrame, file: Path) -> None:
    """Write a scores table; nine digits bring every float32 back exactly."""
    with atomic(file) as temporary:
        scores.to_csv(temporary, index=False, float_format="%.9g")


def read(file: Path) -> pd.DataFrame:
    """Read a scores table; names made of digits, or of the letters NA, stay names.

    Raises
    ------
    DataInvalid
        When the file is not a scores table.
    """
    try:
        table = pd.read_csv(file, dtype="str", keep_default_na=False)[list(COLUMNS)]
    except (ValueError, KeyError) as error:
        why = str(error).strip()
        raise DataInvalid(f"{file} is not a scores table ({why}). Fix: delete it and train again.") from error
    for column, kind in _NUMBERS.items():
        table[column] = numbers(table, column, kind, file)
    return table


def numbers(table: pd.DataFrame, column: str, kind: str, file: Path) -> pd.Series:
    """A column of text as numbers; raises `DataInvalid` with the first image whose entry is none."""
    found = pd.to_numeric(table[column], errors="coerce")
    bad = found.isna() | ~np.isfinite(found) | ((found % 1 != 0) & (kind == "int64"))
    if bad.any():
        row = table[bad].iloc[0]
        raise DataInvalid(
            f"{file}: {row['image_id']} has {row[column]!r} as {column}, which is no number "
            f"({int(bad.sum())} rows, the first in line {bad.idxmax() + 2}). Fix: delete it, and run the "
            "command that wrote it again."
        )
    return found.astype("int64" if kind == "int64" else "float64")


def check_scores(scores: pd.DataFrame) -> None:
    """Refuse a scores table that would give wrong figures.

    Raises
    ------
    DataInvalid
        Naming the first row that is missing, doubled, not a number, outside [0, 1], without a patient or
        of another than elsewhere, labelled otherwise than elsewhere or than its kind, or of a side that does
        not exist; the image or patient on both sides under `strict`; the seed tested on other images; or the
        seed and side that holds one class only, or one score for all its images, unless its recipe is to see
        nothing.
    """
    missing = [column for column in COLUMNS if column not in scores]
    if missing:
        raise DataInvalid(f"the scores table lacks the columns {', '.join(missing)}. Fix: write it anew.")
    if scores.empty:
        raise DataInvalid("the scores table is empty. Fix: train a recipe first.")
    # Another hospital may give its patients the same names.
    inside = scores.assign(
        split=scores["split"].where(scores["split"] != "external").replace("swapped", "val")
    )
    strict = scores["protocol"] == "strict"
    run = ["recipe", "protocol", "seed"]
    kind = scores["kind"].map({"normal": 0, "bacteria": 1, "virus": 1})
    bad = {
        "is of a side that does not exist": ~scores["split"].isin(SIDES),
        "has no patient": scores["patient"].isna() | (scores["patient"] == ""),
        "has no number as score": scores["score"].isna(),
        "has a score outside [0, 1]": (scores["score"] < 0) | (scores["score"] > 1),
        "has a label that is not 0 or 1": ~scores["label"].isin([0, 1]),
        "stands there twice": scores.duplicated([*run, "split", "image_id"]),
        "has two labels": _outvoted(scores),
        "has a label that its kind contradicts": kind.notna() & (kind != scores["label"]),
        "has two patients": _differing(scores, ["split", "image_id"], "patient"),
        "stands on two sides": strict & _differing(inside, [*run, "image_id"], "split"),
        "is of a patient who stands on two sides": strict & _differing(inside, [*run, "patient"], "split"),
        "is not among the images of its other seeds": strict
        & scores["split"].isin(["test", "external"])
        & _not_everywhere(scores),
    }
    for what, rows in bad.items():
        if rows.any():
            row = scores[rows].iloc[0]
            raise DataInvalid(
                f"{row['recipe']}, {row['protocol']}, seed {row['seed']}: {row['image_id']} {what} "
                f"({int(rows.sum())} rows). Fix: delete the table and run the command that wrote it again."
            )
    for key, part in scores.groupby(["recipe", "protocol", "seed", "split"]):
        where = ", ".join(map(str, key))
        if part["label"].nunique() < 2:
            raise DataInvalid(f"{where}: one class only. Fix: score images of both classes.")
        if part["score"].nunique() < 2 and key[0] != SEES_NOTHING:
            raise DataInvalid(
                f"{where}: all {len(part)} scores are {part['score'].iloc[0]:.6g}, which ranks nothing. "
                "Fix: train with another seed or a lower learning rate."
            )


def tested_alike(scores: pd.DataFrame, others: pd.DataFrame) -> bool:
    """Whether two tables have one set of images, patients and labels as test of `strict`, or one has none."""
    sides = [part[(part["protocol"] == "strict") & (part["split"] == "test")] for part in (scores, others)]
    first, second = (set(zip(s["image_id"], s["patient"], s["label"], strict=True)) for s in sides)
    return not first or not second or first == second


def _outvoted(scores: pd.DataFrame) -> pd.Series:
    """Rows whose label most other rows of the image contradict."""
    differing = _differing(scores, ["split", "image_id"], "label")
    if not differing.any():
        return differing
    usual = scores.groupby(["split", "image_id"])["label"].transform("median").round()
    return differing & (scores["label"] != usual)


def _not_everywhere(scores: pd.DataFrame) -> pd.Series:
    """Rows of an image that not every seed of the recipe has scored on that side."""
    side = scores.groupby(["recipe", "protocol", "split"])["seed"].transform("nunique")
    return scores.groupby(["recipe", "protocol", "split", "image_id"])["seed"].transform("nunique") < side


def _differing(scores: pd.DataFrame, by: list[str], column: str) -> pd.Series:
    """Rows of a group whose column holds more than one value."""
    return scores.groupby(by)[column].transform("nunique") > 1
