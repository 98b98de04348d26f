"""The scores table as a file: one row an image, recipe and seed, without pixels.

`recipe, protocol, seed, split, image_id, patient, kind, label, score`, with `score` = P(pneumonia).
"""

from pathlib import Path

import pandas as pd

from xraylib.errors import DataInvalid
from xraylib.storage import atomic

COLUMNS = ("recipe", "protocol", "seed", "split", "image_id", "patient", "kind", "label", "score")

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
