"""From a user's image file to an answer of a finished run, prepared exactly as its training images were."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from xraylib import paths
from xraylib.datasets import images
from xraylib.evaluation import metrics
from xraylib.evaluation.comparisons import operating_point
from xraylib.report.tables import folder, read_runs
from xraylib.storage import DataInvalid, NotFound, XraylibError
from xraylib.training import features, heads, models
from xraylib.training import train as training
from xraylib.training.runs import MODEL_FILES, Run, model_sha256, read

log = logging.getLogger(__name__)

COLUMNS = ("file", "score", "threshold", "call", "problem")


@dataclass(frozen=True)
class Predictor:
    """A trained model with its operating point.

    Attributes
    ----------
    run : the finished training it comes from
    model : the network, or the frozen backbone of a linear head
    head : arrays of the linear head, None for a network
    threshold : at or above it an image is called pneumonia; chosen on the run's validation
    """

    run: Run
    model: keras.Model
    head: dict[str, np.ndarray] | None
    threshold: float

    def score(self, pixels: np.ndarray) -> np.ndarray:
        """P(pneumonia) float64 `(n,)` of uint8 pixels `(n, size, size, 1)`."""
        if self.head is not None:
            return heads.predict(self.head, features.describe(self.model, pixels))
        choices = self.run.settings["choices"]
        return training.predict(self.model, choices["head"], pixels, np.arange(len(pixels)), 32)


def find_run(recipe: str, dataset: str, *, runs: Path = paths.RUNS) -> Run:
    """Return the newest finished `strict` run of a recipe on a data set, trained on this machine.

    Raises
    ------
    NotFound
        When there is none.
    """
    found = find_runs(recipe, dataset, runs=runs)
    return max(found, key=lambda run: (run.folder / "run.json").stat().st_mtime)


def find_runs(recipe: str, dataset: str, *, runs: Path = paths.RUNS) -> list[Run]:
    """Return a finished `strict` run of each seed: that whose scores stand in the report, or the newest."""
    found: dict[int, Run] = {}
    recorded = {run["model_sha256"] for run in read_runs(folder(dataset), recipe)}
    for file in sorted(runs.glob(f"{recipe}-*/run.json"), key=lambda file: file.stat().st_mtime):
        run = read(file.parent)
        if (run.recipe, run.protocol, run.settings["dataset"]) == (recipe, "strict", dataset):
            standing = run.seed in found and found[run.seed].settings["model_sha256"] in recorded
            if not standing or run.settings["model_sha256"] in recorded:
                found[run.seed] = run
    if found:
        return [found[seed] for seed in sorted(found)]
    raise NotFound(
        f"no finished run of {recipe} on {dataset} in {runs}. Fix: train one with "
        f"`python -m xraylib train {recipe} --dataset {dataset}`."
    )


def load(run: Run) -> Predictor:
    """Rebuild a run's model in code and load its verified weights; no stored code is ever executed.

    Raises
    ------
    NotFound
        For a trivial baseline, which has no model of images.
    DataInvalid
        When the model's file is not the one that the run wrote.
    NotFound
        When the initial weights under a linear head cannot be found, or are others than it was fitted on.
    """
    choices, settings = run.settings["choices"], run.settings
    if choices["fit"] == "single-feature":
        raise NotFound(f"{run.recipe} sees no radiograph. Fix: predict with another recipe.")
    file = run.folder / MODEL_FILES[choices["fit"]]
    if not file.exists() or model_sha256(file) != settings["model_sha256"]:
        raise DataInvalid(
            f"{file} is missing or is not what the run wrote. Fix: delete {run.folder} and train again."
        )
    threshold = metrics.thresholds(run.scores, operating_point(run.recipe, run.protocol)).loc[run.seed]
    if choices["fit"] == "linear-probe":
        weights = models.get_weights(
            choices["network"], "random" if settings["init"] == "random" else "imagenet"
        )
        if weights.label != settings["init"]:
            raise DataInvalid(
                f"the run was fitted on {settings['init']}, found are {weights.label}. Fix: set "
                "XRAYLIB_WEIGHTS to the weights it was fitted on, or train again."
            )
        frozen = features.extractor(choices["network"], choices["size"], weights, run.seed)
        return Predictor(run, frozen, heads.load(file), float(threshold))
    model = models.build(
        choices["network"], choices["size"], choices["head"], augmentation=choices["augmentation"]
    )
    model.load_weights(file)
    return Predictor(run, model, None, float(threshold))


def predict(files: Sequence[Path | str], predictor: Predictor) -> pd.DataFrame:
    """Score radiographs; a bad file gets its problem in its row and the others go on.

    Parameters
    ----------
    files
        JPEG or PNG files, one frontal radiograph each.
    predictor
        From `load`.

    Returns
    -------
    pandas.DataFrame
        One row a file, in order: `file, score` (P(pneumonia), NaN for a bad file), `threshold`, `call`
        (`pneumonia`, `normal` or empty) and `problem` (empty for a good file).
    """
    size = predictor.run.settings["choices"]["size"]
    rows, pixels = [], []
    for file in files:
        row = {
            "file": str(file),
            "score": np.nan,
            "threshold": predictor.threshold,
            "call": "",
            "problem": "",
        }
        try:
            pixels.append(images.read_gray(Path(file), size)[..., None])
        except XraylibError as error:
            row["problem"] = str(error)
        rows.append(row)
    good = [row for row in rows if not row["problem"]]
    if good:
        for row, score in zip(good, predictor.score(np.stack(pixels)), strict=True):
            row["score"] = float(score)
            row["call"] = "pneumonia" if score >= predictor.threshold else "normal"
    return pd.DataFrame(rows, columns=list(COLUMNS))
