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

import hashlib
import importlib
import importlib.metadata
import json
import math
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from xraylib import paths
from xraylib.errors import InvalidDataError
from xraylib.storage import atomic_folder, atomic_write
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

# Labels of initial weights whose origin is known, by the SHA-256 of their file.
KNOWN_WEIGHTS = {
    "c9e9872133be71e5612b6745b9c045c04992d6a665951d016d9843024f588b31": (
        "imagenet (recovered MobileNetV2)"
    ),
}


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
    def model_file(self) -> Path:
        """Where its model is, or was on the machine that trained it."""
        fit = self.settings["choices"].get("fit")
        if fit not in MODEL_FILES:
            raise InvalidDataError(
                f"{self.folder / 'run.json'} names no known kind of model ({fit!r}). "
                "Fix: give the folder of a run that this version of xraylib trained."
            )
        return self.folder / MODEL_FILES[fit]

    @property
    def model_state(self) -> str:
        """`present`; `missing` from this machine; or `damaged`: not the file that the run wrote."""
        if not self.model_file.is_file():
            return "missing"
        same = file_sha256(self.model_file) == self.settings.get("model_sha256")
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
        dataset = self.settings.get("dataset", "DATASET")
        overwrite = " --overwrite" if dataset in COMMITTED else ""
        return (
            f"python -m xraylib train {self.recipe} --dataset {dataset} "
            f"--protocol {self.protocol} --seed {self.seed}{overwrite}"
        )

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


def identity(run: Run) -> Identity:
    """Return what decides the numbers of a run, besides its seed.

    A run that an older version wrote without budget, backend and precision was a full run; its
    line `hardware` names the other two.
    """
    settings = run.settings
    hardware = settings.get("hardware", "").split(" · ")
    backend, precision = hardware[1:3] if len(hardware) >= 3 else ("tensorflow", "float32")
    return Identity(
        recipe=run.recipe,
        protocol=run.protocol,
        budget=settings.get("budget", "full"),
        backend=settings.get("backend", backend),
        precision=settings.get("precision", precision),
        init=settings.get("init", "random"),
        training_version=int(settings.get("training_version", 1)),
    )


def group_by_identity(runs: Iterable[Run]) -> dict[Identity, list[Run]]:
    """Group runs by what decides their numbers, each group in the order of its seeds."""
    groups: dict[Identity, list[Run]] = {}
    for run in sorted(runs, key=_order):
        groups.setdefault(identity(run), []).append(run)
    return groups


def run_folder(dataset: str, recipe: str, protocol: str, seed: int) -> Path:
    """Return the folder of a full run in float32 under TensorFlow."""
    return paths.REPORTS / dataset / "runs" / recipe / f"{protocol}-{seed}"


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
    dataset: str,
    recipe: str | None = None,
    protocol: str | None = None,
    *,
    budget: str | None = None,
    backend: str | None = None,
    precision: str | None = None,
    init: str | None = None,
) -> list[Run]:
    """Return finished runs, of one identity per recipe and protocol.

    Where runs of several identities fit, those of a full budget come before others, then those of
    the newest training code, of the recipe's own initial weights, in float32, and under TensorFlow.

    Parameters
    ----------
    dataset
        The name of a report.
    recipe, protocol, budget, backend, precision
        Return runs of these alone; None accepts all.
    init
        Initial weights, as `init_matches` compares them.

    Returns
    -------
    list of Run
        In the order of `RECIPES`, then of protocol and seed.
    """
    asked = {"budget": budget, "backend": backend, "precision": precision}
    asked = {name: value for name, value in asked.items() if value is not None}
    groups: dict[tuple[str, str], list[list[Run]]] = {}
    for key, members in group_by_identity(all_runs(dataset, recipe, protocol)).items():
        fits = all(getattr(key, name) == value for name, value in asked.items())
        if fits and init_matches(members[0], init):
            groups.setdefault((key.recipe, key.protocol), []).append(members)
    return [run for several in groups.values() for run in max(several, key=_preference)]


def all_runs(dataset: str, recipe: str | None = None, protocol: str | None = None) -> list[Run]:
    """Return the finished runs of every identity, in the order of `list_runs`."""
    files = (paths.REPORTS / dataset / "runs").glob(f"{recipe or '*'}/*/run.json")
    runs = [read_run(file.parent) for file in files]
    return sorted((run for run in runs if protocol in (None, run.protocol)), key=_order)


def with_model(dataset: str, recipe: str, protocol: str = "strict") -> list[Run]:
    """Return the runs whose model is on this machine.

    `InvalidDataError` if the model of one is damaged: another seed never takes its place.
    """
    return [run for run in list_runs(dataset, recipe, protocol) if run.has_model]


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
    return run.settings["choices"] == plain(asked) and init_matches(run, init)


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
    label = identity(run).init
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
    key = identity(runs[0])
    own_init = runs[0].settings["choices"].get("init", key.init)
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
    fix = "Fix: restore it, or delete its folder and train again."
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        checksum = settings.pop("checksum", None)
        run = Run(settings["recipe"], settings["protocol"], settings["seed"], folder, settings)
        valid = isinstance(settings["choices"], dict) and isinstance(run.seed, int)
        valid = valid and isinstance(run.recipe, str) and isinstance(run.protocol, str)
        valid = valid and math.isfinite(run.threshold)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InvalidDataError(f"{file} is no run ({reason}). {fix}") from error
    if not valid:
        raise InvalidDataError(f"{file} is no run (a value has the wrong type). {fix}")
    if checksum not in (None, digest(settings)):
        raise InvalidDataError(f"{file} was changed after its run had written it. {fix}")
    return run


def same_run(settings: Mapping[str, Any]) -> Run | None:
    """Return the finished run of the same seed and identity, of any training version, or None."""
    wanted = Run(
        settings["recipe"],
        settings["protocol"],
        settings["seed"],
        Path(),
        dict(settings),
    )
    key = identity(wanted)._replace(training_version=0)
    for run in all_runs(settings["dataset"], wanted.recipe, wanted.protocol):
        if run.seed == wanted.seed and identity(run)._replace(training_version=0) == key:
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
        content["checksum"] = digest(plain(content))
        (new / "run.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return read_run(folder)


def _writing_folder(settings: Mapping[str, Any]) -> Path:
    """Return the folder of the run of this identity and seed, or a free one."""
    predecessor = same_run(settings)
    if predecessor is not None:
        return predecessor.folder
    usual = run_folder(*(settings[name] for name in ("dataset", "recipe", "protocol", "seed")))
    init = settings.get("init", "random")
    endings = {
        "budget": settings.get("budget", "full"),
        "precision": settings.get("precision", "float32"),
        "backend": settings.get("backend", "tensorflow"),
        "init": f"init-{init}",
    }
    left_out = {"budget": "full", "precision": "float32", "backend": "tensorflow"}
    if init.split(" ")[0] == settings["choices"].get("init"):
        left_out["init"] = endings["init"]
    unusual = [text for name, text in endings.items() if text != left_out.get(name)]
    folder = usual.with_name("-".join([usual.name, *map(_slug, unusual)]))
    if (folder / "run.json").exists():
        # It holds a run of an older version, which left every ending out.
        folder = usual.with_name("-".join([usual.name, *map(_slug, endings.values())]))
    return folder


def _slug(text: str) -> str:
    """Return a text as a part of a folder's name."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-")


def write_scores(scores: pd.DataFrame, file: Path) -> None:
    """Write a scores table; nine digits bring every float32 back exactly."""
    with atomic_write(file) as temporary:
        scores.to_csv(temporary, index=False, float_format="%.9g")


def read_scores(file: Path) -> pd.DataFrame:
    """Read a scores table.

    Returns
    -------
    DataFrame
        The columns `SCORE_COLUMNS`. Names that consist of digits, or read NA, stay text.

    Raises
    ------
    InvalidDataError
        If the file is not a scores table, or holds a seed, label or score that is not a number.
    """
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
                f"({int(bad.sum())} rows, the first in line {bad.idxmax() + 2}). "
                "Fix: delete it, and run the command that wrote it again."
            )
        table[column] = numbers
    return table.astype({"seed": "int64", "label": "int64", "score": "float64"})


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as JSON gives them back, so that read and fresh ones compare equal."""
    return json.loads(json.dumps(settings))


def digest(settings: Mapping[str, Any], digits: int = 12) -> str:
    """Name settings by the first hex digits of their SHA-256."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:digits]


def file_sha256(file: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def weights_label(file: Path) -> str:
    """Name a file of initial weights by its known origin, or 12 digits of its SHA-256."""
    sha256 = file_sha256(file)
    return KNOWN_WEIGHTS.get(sha256, f"file {sha256[:12]}")


def split_fingerprint(assigned: pd.DataFrame) -> str:
    """Name images, patients, labels and splits by 16 hex digits."""
    columns = ["image_id", "sha256", "patient", "kind", "label", "split"]
    rows = assigned[columns].astype(str).agg("|".join, axis=1)
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]


def versions(backend: str) -> dict[str, str]:
    """Return the versions of the libraries that decide the scores; `backend` is Keras's."""
    names = ("keras", "scikit-learn", "numpy")
    installed = {name: importlib.metadata.version(name) for name in names}
    return installed | {backend: importlib.import_module(backend).__version__}
