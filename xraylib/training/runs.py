"""Finished runs: the one store that training writes and everything after it reads.

A run lies in `reports/<dataset>/runs/<recipe>/<protocol>-<seed>/`. The folder's name gets endings
such as `-quick`, `-mixed_bfloat16`, `-jax` or `-init-random` where a run differs from a full run in
float32 under TensorFlow from the recipe's own initial weights. It holds

`run.json`
    What the run was made from and on, its frozen `threshold`, and a `checksum` of all this.
`history.csv`
    One row per epoch, or per penalty of the linear probe.
`scores.csv`
    The scores table of its validation and test images.
the model
    `model.weights.h5` or `head.json`, ignored by git.
"""

import importlib
import importlib.metadata
import json
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from xraylib import paths
from xraylib.errors import InvalidDataError
from xraylib.storage import atomic_folder, digest, sha256_bytes, write_table
from xraylib.storage import sha256 as file_sha256
from xraylib.training.recipes import RECIPES, Recipe
from xraylib.training.thresholds import thresholds

# Raised by hand when a change of the code changes what training gives; older runs are stale.
# 2: patients follow the authors' own numbering, so that `strict` divides other groups of images.
TRAINING_VERSION = 2

# The file of a run to predict with, by the recipe's `fit`; `run.json` holds its SHA-256.
MODEL_FILES = {
    "network": "model.weights.h5",
    "linear-probe": "head.json",
    "single-feature": "head.json",
}

# Data sets whose runs are in git: such a run is replaced only with `overwrite`.
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
# Columns of a scores table that stay text: names made of digits, or of the letters NA.
_TEXT = ["recipe", "protocol", "split", "image_id", "patient", "kind", "model"]
# Columns of whole numbers. All others hold numbers in [0, 1].
_WHOLE = ("seed", "label")

# Labels of initial weights whose origin is known, by the SHA-256 of their file.
KNOWN_WEIGHTS = {
    "c9e9872133be71e5612b6745b9c045c04992d6a665951d016d9843024f588b31": (
        "imagenet (recovered MobileNetV2)"
    ),
}


# What `run.json` must say, with its type, to be a run's; and what its `choices` must say.
_TYPES: dict[str, type | tuple[type, ...]] = {
    "dataset": str,
    "recipe": str,
    "protocol": str,
    "seed": int,
    "init": str,
    "threshold": (float, int),
    "model_sha256": str,
}
_CHOICE_TYPES: dict[str, type | tuple[type, ...]] = {
    "fit": str,
    "network": str,
    "size": int,
    "head": str,
    "augmentation": (str, type(None)),
}
# No image of a recipe is larger, and a larger one could need all memory.
_LARGEST_SIZE = 1024


class Identity(NamedTuple):
    """What decides the numbers of a run, besides its seed; averages are over one identity."""

    recipe: str
    protocol: str
    budget: str
    backend: str
    precision: str
    init: str
    training_version: int


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes
    ----------
    recipe, protocol, seed
        The protocol is `published`, `strict` or a split strategy.
    folder
        Where its files are.
    settings
        The content of its `run.json`, without the checksum.
    """

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
    def choices(self) -> dict[str, Any]:
        """The recipe's settings, see `Recipe.settings`."""
        return self.settings["choices"]

    @property
    def model_file(self) -> Path:
        """Where its model is, or was on the machine that trained it."""
        return self.folder / MODEL_FILES[self.choices["fit"]]

    @property
    def model_state(self) -> str:
        """`present`; `missing` from this machine; or `damaged`: not the file that the run wrote."""
        if not self.model_file.is_file():
            return "missing"
        same = file_sha256(self.model_file) == self.settings["model_sha256"]
        return "present" if same else "damaged"

    @property
    def has_model(self) -> bool:
        """Whether its model is on this machine; `InvalidDataError` if the file is damaged."""
        state = self.model_state
        if state == "damaged":
            raise InvalidDataError(
                f"{self.model_file} is not the model that the run wrote. "
                f"Fix: restore the file, or delete it and train again: {self.command}"
            )
        return state == "present"

    @property
    def command(self) -> str:
        """The command that trains it again."""
        return train_command(self.settings["dataset"], self.recipe, self.protocol, self.seed)

    @cached_property
    def history(self) -> pd.DataFrame:
        """Its learning curves.

        Columns of a network: `epoch`, `phase`, `loss`, `accuracy`, `val_loss`, `val_accuracy`,
        `seconds`, and a `val_auc_` column per swapped view where the recipe chooses its epoch by
        these. Columns of a probe: see `probe.fit`.
        """
        return pd.read_csv(self.folder / "history.csv")

    @cached_property
    def scores(self) -> pd.DataFrame:
        """The scores table of its validation and test images."""
        return read_scores(self.folder / "scores.csv")


def train_command(dataset: str, recipe: str, protocol: str = "strict", seed: int = 0) -> str:
    """Return the command that trains a run, anew if it is a committed one."""
    command = f"python -m xraylib train {recipe} --dataset {dataset} --protocol {protocol}"
    overwrite = " --overwrite" if dataset in COMMITTED else ""
    return f"{command} --seed {seed}{overwrite}"


def identity(settings: Mapping[str, Any]) -> Identity:
    """Return what decides the numbers of a run, besides its seed, from the content of `run.json`.

    A run that an older version wrote without budget, backend and precision was a full run; its
    line `hardware` names the other two.
    """
    hardware = settings.get("hardware", "").split(" · ")
    backend, precision = hardware[1:3] if len(hardware) >= 3 else ("tensorflow", "float32")
    return Identity(
        recipe=settings["recipe"],
        protocol=settings["protocol"],
        budget=settings.get("budget", "full"),
        backend=settings.get("backend", backend),
        precision=settings.get("precision", precision),
        init=settings["init"],
        training_version=int(settings.get("training_version", 1)),
    )


def get_run(
    dataset: str,
    recipe: str,
    protocol: str = "strict",
    seed: int = 0,
    **wanted: str | None,
) -> Run | None:
    """Return a finished run or None, with the options and the preference of `list_runs`."""
    candidates = list_runs(dataset, recipe, protocol, **wanted)
    return next((run for run in candidates if run.seed == seed), None)


def list_runs(
    dataset: str, recipe: str | None = None, protocol: str | None = None, **wanted: str | None
) -> list[Run]:
    """Return finished runs, of one identity per recipe and protocol.

    Where runs of several identities fit, those of a full budget come before others, then those of
    the newest training code, of the recipe's own initial weights, in float32, and under TensorFlow.

    Parameters
    ----------
    dataset
        The name of a report.
    recipe, protocol
        Return runs of these alone; None accepts all.
    wanted
        `budget`, `backend`, `precision`: return runs of these alone. `init`: initial weights, as
        `init_matches` compares them.

    Returns
    -------
    list of Run
        In the order of `RECIPES`, then of protocol and seed.
    """
    init = wanted.pop("init", None)
    groups: dict[Identity, list[Run]] = {}
    for run in all_runs(dataset, recipe, protocol):
        key = identity(run.settings)
        fits = all(value in (None, getattr(key, name)) for name, value in wanted.items())
        if fits and init_matches(run, init):
            groups.setdefault(key, []).append(run)
    alternatives: dict[tuple[str, str], list[list[Run]]] = {}
    for key, members in groups.items():
        alternatives.setdefault((key.recipe, key.protocol), []).append(members)
    return [run for several in alternatives.values() for run in max(several, key=_preference)]


def all_runs(dataset: str, recipe: str | None = None, protocol: str | None = None) -> list[Run]:
    """Return the finished runs of every identity, in the order of `list_runs`."""
    files = (paths.REPORTS / dataset / "runs").glob(f"{recipe or '*'}/*/run.json")
    runs = [read_run(file.parent) for file in files]
    return sorted((run for run in runs if protocol in (None, run.protocol)), key=_order)


def matches(run: Run, recipe: Recipe, budget: str, init: str | None = None) -> bool:
    """Whether a run is what `train` would give for a recipe, a budget and initial weights.

    Parameters
    ----------
    run
        A finished run.
    recipe, budget
        The run's protocol says which fields of the recipe count. Under another budget a run matches
        only if the budget changes nothing for the recipe.
    init
        As `init_matches` compares them.
    """
    asked = recipe.under(run.protocol, budget).settings()
    return run.choices == asked and init_matches(run, init)


def init_matches(run: Run, init: str | None) -> bool:
    """Whether a run started from the initial weights that `init` asks for.

    Parameters
    ----------
    run
        A finished run.
    init
        `random`, `imagenet` (of any origin), `none`, the path of a weights file, or a label as a
        run's `init` has it. None accepts all.
    """
    label = run.settings["init"]
    if init is None or init in (label, label.split(" ")[0]):
        return True
    file = Path(init)
    return init.endswith(".weights.h5") and file.is_file() and label == weights_label(file)


def rank(recipe: str) -> tuple[int, str]:
    """Key to sort by: the order of `RECIPES`, then other names alphabetically."""
    names = list(RECIPES)
    return (names.index(recipe) if recipe in RECIPES else len(names)), recipe


def _order(run: Run) -> tuple[Any, ...]:
    return rank(run.recipe), run.protocol, run.seed, run.folder.name


def _preference(runs: list[Run]) -> tuple[Any, ...]:
    """Key of the runs of one identity: the largest is what `list_runs` returns."""
    key = identity(runs[0].settings)
    own_init = runs[0].choices.get("init", key.init)
    return (
        key.budget == "full",
        key.training_version,
        init_matches(runs[0], own_init),
        key.precision == "float32",
        key.backend == "tensorflow",
        len(runs),
        key,
    )


def read_run(folder: Path) -> Run:
    """Read a finished run; `InvalidDataError` if its `run.json` is damaged, edited or of no run."""
    file = folder / "run.json"
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        checksum = settings.pop("checksum", None)
        choices = settings["choices"]
        wrong = _wrong_types(settings, _TYPES) + _wrong_types(choices, _CHOICE_TYPES)
        if wrong:
            raise ValueError(f"no usable {', '.join(wrong)}")
        if choices["fit"] not in MODEL_FILES or not 0 < choices["size"] <= _LARGEST_SIZE:
            raise ValueError("no usable fit or size")
        if checksum not in (None, digest(settings)):
            raise ValueError("it was changed after its run had written it")
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise InvalidDataError(
            f"{file} is no run ({error}). Fix: restore it, or delete its folder and train again."
        ) from error
    return Run(settings["recipe"], settings["protocol"], settings["seed"], folder, settings)


def _wrong_types(values: Mapping[str, Any], types: Mapping[str, Any]) -> list[str]:
    """Name the values that are missing or of another type."""
    return [name for name, kind in types.items() if not isinstance(values.get(name, ...), kind)]


def same_run(settings: Mapping[str, Any]) -> Run | None:
    """Return the finished run of the same seed and identity, of any training version, or None."""
    key = identity(settings)
    for run in all_runs(settings["dataset"], key.recipe, key.protocol):
        other = identity(run.settings)._replace(training_version=key.training_version)
        if run.seed == settings["seed"] and other == key:
            return run
    return None


def write_run(
    settings: dict[str, Any],
    history: pd.DataFrame,
    scores: pd.DataFrame,
    rule: str | float | Callable[..., float],
    model: Path,
) -> Run:
    """Write a run; it replaces its predecessor, the run of its identity and seed, as a whole.

    Parameters
    ----------
    settings
        The content of `run.json`, without what is measured here.
    history, scores
        The tables of the run.
    rule
        The rule that chooses its threshold, see `thresholds`.
    model
        The file of its model, which is copied.
    """
    folder = _writing_folder(settings)
    with atomic_folder(folder) as new:
        history.to_csv(new / "history.csv", index=False, float_format="%.7g")
        write_scores(scores, new / "scores.csv")
        # From the scores as they are read back: whoever recomputes the threshold gets this one.
        chosen = thresholds(read_scores(new / "scores.csv"), rule).loc[settings["seed"]]
        shutil.copyfile(model, new / model.name)
        content = settings | {
            "train_seconds": round(settings["train_seconds"], 1),
            "model_sha256": file_sha256(model),
            "threshold": float(chosen),
        }
        content["checksum"] = digest(content)
        (new / "run.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return read_run(folder)


def _writing_folder(settings: Mapping[str, Any]) -> Path:
    """Return the folder of the run of this identity and seed, or a free one."""
    predecessor = same_run(settings)
    if predecessor is not None:
        return predecessor.folder
    key = identity(settings)
    own_init = settings["choices"].get("init")
    init = own_init if key.init.split(" ")[0] == own_init else key.init
    usual = ("full", "float32", "tensorflow", f"init-{own_init}")
    endings = [key.budget, key.precision, key.backend, f"init-{init}"]
    name = f"{key.protocol}-{settings['seed']}"
    folder = paths.REPORTS / settings["dataset"] / "runs" / key.recipe
    unusual = [ending for ending in endings if ending not in usual]
    if not (folder / _joined(name, unusual) / "run.json").exists():
        return folder / _joined(name, unusual)
    # It holds a run of an older version, which left every ending out.
    return folder / _joined(name, endings)


def _joined(name: str, endings: list[str]) -> str:
    """Name a folder."""
    return "-".join([name, *(re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-") for text in endings)])


def write_scores(scores: pd.DataFrame, file: Path) -> None:
    """Write a scores table; nine digits bring every float32 back exactly."""
    write_table(file, scores, "%.9g")


def read_scores(file: Path, columns: Collection[str] = SCORE_COLUMNS) -> pd.DataFrame:
    """Read a CSV file of scores: names stay text, and all else is a number.

    Parameters
    ----------
    file
        What `write_scores` wrote, or a file with one column of scores per view of the images.
    columns
        Columns that the file must have. Others, such as those of views, may be empty (NaN) for all
        images of a seed.

    Returns
    -------
    DataFrame
        All columns of the file: `seed` and `label` are int64, text is text even if it consists of
        digits or reads NA, and all else is float64 in [0, 1].

    Raises
    ------
    InvalidDataError
        The file is no such table. The message names file, image and line.
    """
    fix = "Fix: delete it, and run the command that wrote it again."
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
    except ValueError as error:
        raise InvalidDataError(
            f"{file} is not a scores table ({str(error).strip()}). {fix}"
        ) from error
    missing = [name for name in columns if name not in table]
    if missing:
        raise InvalidDataError(
            f"{file} is not a scores table: it lacks the columns {', '.join(missing)}. {fix}"
        )
    for name in table.columns.difference(_TEXT, sort=False):
        values = pd.to_numeric(table[name], errors="coerce")
        bad = values % 1 != 0 if name in _WHOLE else ~values.between(0, 1)
        if name not in columns:
            bad &= ~(table[name] == "").groupby(table["seed"]).transform("all")
        if bad.any():
            row = table[bad].iloc[0]
            kind = "whole number" if name in _WHOLE else "number in [0, 1]"
            raise InvalidDataError(
                f"{file}: {row['image_id']} has {row[name]!r} as {name}, which is no {kind} "
                f"({bad.sum()} rows, the first in line {np.flatnonzero(bad)[0] + 2}). {fix}"
            )
        table[name] = values.astype("int64" if name in _WHOLE else "float64")
    return table


def weights_label(file: Path) -> str:
    """Name a file of initial weights by its known origin, or 12 digits of its SHA-256."""
    sha256 = file_sha256(file)
    return KNOWN_WEIGHTS.get(sha256, f"file {sha256[:12]}")


def split_fingerprint(assigned: pd.DataFrame) -> str:
    """Name images, patients, labels and splits by 16 hex digits."""
    columns = ["image_id", "sha256", "patient", "kind", "label", "split"]
    rows = assigned[columns].astype(str).agg("|".join, axis=1)
    return sha256_bytes("\n".join(rows).encode())[:16]


def versions(backend: str) -> dict[str, str]:
    """Return the versions of the libraries that decide the scores; `backend` is Keras's."""
    names = ("keras", "scikit-learn", "numpy")
    installed = {name: importlib.metadata.version(name) for name in names}
    return installed | {backend: importlib.import_module(backend).__version__}
