"""From a user's image files to the answers of a finished run, prepared as its training images were."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from xraylib.storage import XraylibError
from xraylib.training.runs import Predictor

COLUMNS = ("path", "score", "threshold", "label", "problem")


def predict(files: Sequence[Path | str], predictor: Predictor) -> pd.DataFrame:
    """Score JPEG or PNG files of one frontal radiograph each; `predictor` is from `Run.predictor`.

    One row a file, in order: `path`, `score` (P(pneumonia), NaN for a file that cannot be read), the run's frozen
    `threshold`, `label` (pneumonia, normal or empty) and `problem` (empty for a good file).
    """
    table = pd.DataFrame({"path": [str(file) for file in files]}, dtype=object).assign(
        score=np.nan, threshold=predictor.threshold, label="", problem=""
    )
    pixels = {}
    for row, file in enumerate(files):
        try:
            pixels[row] = predictor.read(file)
        except XraylibError as error:
            table.loc[row, "problem"] = str(error)
    if pixels:
        scores = predictor.score(np.stack(list(pixels.values())))
        table.loc[list(pixels), "score"] = scores
        table.loc[list(pixels), "label"] = np.where(scores >= predictor.threshold, "pneumonia", "normal")
    return table[list(COLUMNS)]
