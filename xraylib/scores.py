"""The scores table as a file: one row an image, recipe and seed, without pixels.

`recipe, protocol, seed, split, image_id, patient, kind, label, score`, with `score` = P(pneumonia).
"""

from pathlib import Path

import pandas as pd

from xraylib.errors import DataInvalid
from xraylib.storage import atomic

COLUMNS = ("recipe", "protocol", "seed", "split", "image_id", "patient", "kind", "label", "score")

# The baseline that gives every image the same score.
SEES_NOTHING = "majority-class"

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
    types = {column: _NUMBERS.get(column, "str") for column in COLUMNS}
    try:
        table = pd.read_csv(file, dtype=types, keep_default_na=False, na_values={"score": [""]})
        return table[list(COLUMNS)]
    except (ValueError, KeyError) as error:
        why = str(error).strip()
        raise DataInvalid(
            f"{file} is not a scores table ({why}). Mend: delete it and train again."
        ) from error


def check_scores(scores: pd.DataFrame) -> None:
    """Refuse a scores table that would give wrong figures.

    Raises
    ------
    DataInvalid
        Naming the first row that is missing, doubled, not a number, outside [0, 1], or labelled otherwise
        than elsewhere; the patient who is on both sides under `strict`; or the seed and side that holds one
        class only, or one score for all its images, unless its recipe is to see nothing.
    """
    missing = [column for column in COLUMNS if column not in scores]
    if missing:
        raise DataInvalid(f"the scores table lacks the columns {', '.join(missing)}. Mend: write it anew.")
    if scores.empty:
        raise DataInvalid("the scores table is empty. Mend: train a recipe first.")
    # Another hospital may give its patients the same names.
    inside = scores.assign(split=scores["split"].where(scores["split"] != "external"))
    bad = {
        "has no number as score": scores["score"].isna(),
        "has a score outside [0, 1]": (scores["score"] < 0) | (scores["score"] > 1),
        "has a label that is not 0 or 1": ~scores["label"].isin([0, 1]),
        "stands there twice": scores.duplicated(["recipe", "protocol", "seed", "split", "image_id"]),
        "has two labels": _differing(scores, ["split", "image_id"], "label"),
        "is of a patient who stands on two sides": (scores["protocol"] == "strict")
        & _differing(inside, ["recipe", "protocol", "seed", "patient"], "split"),
    }
    for what, rows in bad.items():
        if rows.any():
            row = scores[rows].iloc[0]
            raise DataInvalid(
                f"{row['recipe']}, {row['protocol']}, seed {row['seed']}: {row['image_id']} {what} "
                f"({int(rows.sum())} rows). Mend: delete the table and train again."
            )
    for key, part in scores.groupby(["recipe", "protocol", "seed", "split"]):
        where = ", ".join(map(str, key))
        if part["label"].nunique() < 2:
            raise DataInvalid(f"{where}: one class only. Mend: score images of both classes.")
        if part["score"].nunique() < 2 and key[0] != SEES_NOTHING:
            raise DataInvalid(
                f"{where}: all {len(part)} scores are {part['score'].iloc[0]:.6g}, which ranks nothing. "
                "Mend: train with another seed or a lower learning rate."
            )


def _differing(scores: pd.DataFrame, by: list[str], column: str) -> pd.Series:
    """Rows of a group whose column holds more than one value."""
    return scores.groupby(by)[column].transform("nunique") > 1
