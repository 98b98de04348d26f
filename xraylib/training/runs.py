"""A finished training on disk: what it was made from, its learning curves, its scores.

A run lives in `paths.RUNS/<recipe>-<key>`, where the key is a hash of everything that decides its
outcome: recipe, images and their split, seed, initial weights and `TRAINING_VERSION`.
"""

import hashlib
import importlib
import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from xraylib.evaluation.scores import read as read_scores
from xraylib.evaluation.scores import write as write_scores
from xraylib.storage import atomic

# Raised by hand when a change of the code changes what a training gives; runs of another version are stale.
TRAINING_VERSION = 1

# What a run leaves to predict with, by the recipe's `fit`; `run.json` holds its SHA-256.
MODEL_FILES = {"network": "model.weights.h5", "linear-probe": "head.json", "single-feature": "head.json"}


@dataclass(frozen=True)
class Run:
    """A finished training.

    Attributes
    ----------
    recipe : name
    protocol : `published`, `strict`, or the name of a way of splitting (`splits.SPLIT_STRATEGIES`)
    seed : int
    folder : where its files are
    settings : what it was made from and on: init, hardware, train_seconds, epochs, versions, …
    history : one row an epoch: `epoch, phase, loss, accuracy, val_loss, val_accuracy`
    scores : the scores table of its validation and test images
    """

    recipe: str
    protocol: str
    seed: int
    folder: Path
    settings: dict[str, Any]
    history: pd.DataFrame
    scores: pd.DataFrame


def read(folder: Path) -> Run:
    """Read a finished run from its folder."""
    settings = json.loads((folder / "run.json").read_text())
    history = pd.read_csv(folder / "history.csv")
    scores = read_scores(folder / "scores.csv")
    return Run(settings["recipe"], settings["protocol"], settings["seed"], folder, settings, history, scores)


def write(folder: Path, settings: dict[str, Any], history: pd.DataFrame, scores: pd.DataFrame) -> None:
    """Write tables first and `run.json` last: its presence says that the run is whole."""
    with atomic(folder / "history.csv") as file:
        history.to_csv(file, index=False, float_format="%.7g")
    write_scores(scores, folder / "scores.csv")
    settings = settings | {"train_seconds": round(settings["train_seconds"], 1)}
    with atomic(folder / "run.json") as file:
        file.write_text(json.dumps(settings, indent=1))
    (folder / "checkpoint.npz").unlink(missing_ok=True)


def plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as JSON gives them back, so that read and fresh ones compare equal."""
    return json.loads(json.dumps(settings))


def digest(settings: dict[str, Any]) -> str:
    """Twelve hex digits of the SHA-256 of some settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def model_sha256(file: Path) -> str:
    """SHA-256 of a model's file, hexadecimal."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def split_fingerprint(assigned: pd.DataFrame) -> str:
    """Name images, patients, labels and sides by 16 hex digits."""
    rows = (
        assigned[["image_id", "sha256", "patient", "kind", "label", "split"]]
        .astype(str)
        .agg("|".join, axis=1)
    )
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]


def versions(backend: str) -> dict[str, str]:
    """Versions of the libraries that decide figures; `backend` is Keras's."""
    found = {name: importlib.metadata.version(name) for name in ("keras", "scikit-learn", "numpy")}
    return found | {backend: importlib.import_module(backend).__version__}
