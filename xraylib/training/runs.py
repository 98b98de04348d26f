"""Finished runs: the one store that training writes and everything after it reads.

A run lies in `reports/<dataset>/runs/<recipe>/<protocol>-<seed>/`: `run.json` (what it was made from and on, and its
frozen `threshold`), `history.csv` (a row an epoch, or a penalty of the linear probe), `scores.csv` (its scores table)
and, ignored by git, its model.
"""

import hashlib
import importlib
import importlib.metadata
import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from xraylib import paths
from xraylib.errors import InvalidDataError
from xraylib.storage import atomic_folder, atomic_write
from xraylib.training.recipes import RECIPES
from xraylib.training.thresholds import thresholds

# Raised by hand when a change of the code changes what training gives; runs of another version are stale.
# 2: patients follow the authors' own numbering, so that `strict` divides other groups of images.
TRAINING_VERSION = 2

# What a run leaves to predict with, by the recipe's `fit`; `run.json` holds its SHA-256.
MODEL_FILES = {
    "network": "model.weights.h5",
    "linear-probe": "head.json",
    "single-feature": "head.json",
}

# Data sets whose runs are in git: none is replaced unless that was asked for.
COMMITTED = ("kermany",)

SCORE_COLUMNS = (
    "recipe",
    "protocol",
    "seed",
    "split",
    "image_id",
    "patient",
    "kind",
    "label",
    "score",
)


@dataclass(frozen=True)
class Run:
    """A finished run; `protocol` is `published`, `strict` or a split strategy, `settings` its `run.json`."""

    recipe: str
    protocol: str
    seed: int
    folder: Path
    settings: dict[str, Any]

    @property
    def threshold(self) -> float:
        """The frozen threshold: at or above it an image is classified as pneumonia."""
        return float(self.settings["threshold"])

    @property
    def model_file(self) -> Path:
        """Where its model is, or was on the machine that trained it."""
        return self.folder / MODEL_FILES[self.settings["choices"]["fit"]]

    @property
    def has_model(self) -> bool:
        """Whether its model is on this machine, as it was written."""
        file = self.model_file
        return file.exists() and file_sha256(file) == self.settings["model_sha256"]

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row an epoch: `epoch, phase, loss, accuracy, val_loss, val_accuracy, val_auc_…, seconds`."""
        return pd.read_csv(self.folder / "history.csv")

    @cached_property
    def scores(self) -> pd.DataFrame:
        """The scores table of its validation and test images."""
        return read_scores(self.folder / "scores.csv")


def run_folder(dataset: str, recipe: str, protocol: str, seed: int) -> Path:
    """Where a run lies."""
    return paths.REPORTS / dataset / "runs" / recipe / f"{protocol}-{seed}"


def get_run(dataset: str, recipe: str, protocol: str = "strict", seed: int = 0) -> Run | None:
    """Return one finished run, or None."""
    place = run_folder(dataset, recipe, protocol, seed)
    return read_run(place) if (place / "run.json").exists() else None


def list_runs(dataset: str, recipe: str | None = None, protocol: str | None = None) -> list[Run]:
    """Return the finished runs of a data set in the order of `RECIPES`, protocol and seed."""
    files = (paths.REPORTS / dataset / "runs").glob(f"{recipe or '*'}/*/run.json")
    found = [
        run
        for run in map(read_run, (file.parent for file in files))
        if protocol in (None, run.protocol)
    ]
    return sorted(found, key=lambda run: (rank(run.recipe), run.protocol, run.seed))


def rank(recipe: str) -> tuple[int, str]:
    """Key to sort by: the order of `RECIPES`, then what is not among them by name."""
    return (list(RECIPES).index(recipe) if recipe in RECIPES else len(RECIPES)), recipe


def read_run(folder: Path) -> Run:
    """Read a finished run from its folder."""
    try:
        about = json.loads((folder / "run.json").read_text())
        return Run(about["recipe"], about["protocol"], about["seed"], folder, about)
    except (ValueError, KeyError) as error:
        raise InvalidDataError(
            f"{folder / 'run.json'} is no run ({error}). Fix: delete it, train again."
        ) from error


def write_run(
    settings: dict[str, Any],
    history: pd.DataFrame,
    scores: pd.DataFrame,
    rule: str | float,
    model: Path,
) -> Run:
    """Write a run, its threshold chosen by `rule`; it replaces another as a whole or not at all."""
    place = run_folder(*(settings[name] for name in ("dataset", "recipe", "protocol", "seed")))
    with atomic_folder(place) as new:
        history.to_csv(new / "history.csv", index=False, float_format="%.7g")
        write_scores(scores, new / "scores.csv")
        # From the scores as they are read back, so that whoever recomputes the threshold finds this one.
        chosen = thresholds(read_scores(new / "scores.csv"), rule).loc[settings["seed"]]
        shutil.copyfile(model, new / model.name)
        about = settings | {
            "train_seconds": round(settings["train_seconds"], 1),
            "model_sha256": file_sha256(model),
            "threshold": float(chosen),
        }
        (new / "run.json").write_text(json.dumps(about, indent=1) + "\n")
    return read_run(place)


def write_scores(scores: pd.DataFrame, file: Path) -> None:
    """Write a scores table; nine digits bring every float32 back exactly."""
    with atomic_write(file) as temporary:
        scores.to_csv(temporary, index=False, float_format="%.9g")


def read_scores(file: Path) -> pd.DataFrame:
    """Read a scores table; names made of digits, or of the letters NA, stay names."""
    try:
        table = pd.read_csv(file, dtype="str", keep_default_na=False)[list(SCORE_COLUMNS)]
    except (ValueError, KeyError) as error:
        why = str(error).strip()
        raise InvalidDataError(
            f"{file} is not a scores table ({why}). Fix: delete it and train again."
        ) from error
    for column in ("seed", "label", "score"):
        numbers = pd.to_numeric(table[column], errors="coerce")
        bad = ~np.isfinite(numbers) | ((numbers % 1 != 0) & (column != "score"))
        if bad.any():
            row = table[bad].iloc[0]
            raise InvalidDataError(
                f"{file}: {row['image_id']} has {row[column]!r} as {column}, which is no number "
                f"({int(bad.sum())} rows, the first in line {bad.idxmax() + 2}). Fix: delete it, and run the "
                "command that wrote it again."
            )
        table[column] = numbers
    return table.astype({"seed": "int64", "label": "int64", "score": "float64"})


def plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as JSON gives them back, so that read and fresh ones compare equal."""
    return json.loads(json.dumps(settings))


def digest(settings: dict[str, Any], digits: int = 12) -> str:
    """Name some settings by hex digits of their SHA-256."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:digits]


def file_sha256(file: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def split_fingerprint(assigned: pd.DataFrame) -> str:
    """Name images, patients, labels and splits by 16 hex digits."""
    columns = ["image_id", "sha256", "patient", "kind", "label", "split"]
    rows = assigned[columns].astype(str).agg("|".join, axis=1)
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]


def versions(backend: str) -> dict[str, str]:
    """Versions of the libraries that decide the scores; `backend` is Keras's."""
    found = {name: importlib.metadata.version(name) for name in ("keras", "scikit-learn", "numpy")}
    return found | {backend: importlib.import_module(backend).__version__}
