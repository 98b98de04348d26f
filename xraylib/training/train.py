"""One function that trains any recipe: seeded, resumable, and never the same thing twice."""

import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from filelock import FileLock
from sklearn.metrics import log_loss, roc_auc_score
from tqdm.auto import tqdm

from xraylib import devices, paths
from xraylib.datasets import audit, framing, regions, splits
from xraylib.devices import Accelerator
from xraylib.errors import InvalidDataError, OperationFailedError
from xraylib.storage import atomic_write, storage_errors
from xraylib.training import networks, probe, runs
from xraylib.training.recipes import Phase, Recipe

log = logging.getLogger(__name__)

# Batches between two checkpoints within an epoch: an hour of a large data set must not be lost to a preemption.
CHECKPOINT_STEPS = 2000
IMBALANCE_METHODS = ("class_weight", "oversample", "undersample")


def train(
    recipe: Recipe,
    manifest: pd.DataFrame,
    accelerator: Accelerator,
    *,
    protocol: str = "strict",
    seed: int = 0,
    budget: str = "full",
    init: str | None = None,
    overwrite: bool = False,
) -> runs.Run:
    """Train a recipe, go on with a run that was cut, or read back one that is finished.

    `manifest` is whole (from `manifest.load`) and split by `protocol`, see `splits.assign`, and `seed`, which also
    draws initial weights, order of images and dropout. `init` replaces the recipe's initial weights. The scores are of
    the best epoch on validation, or of the last where the recipe has no patience. Killed at any moment and called
    again, it ends with the same scores on the same machine. A committed run is replaced only with `overwrite`.
    """
    chosen = recipe.under(protocol, budget)
    weights = networks.get_weights(chosen.network, init or chosen.init)
    assigned = splits.assign(manifest, protocol, seed, split_strategy=chosen.split_strategy)
    batch = min(chosen.batch_size, int((assigned["split"] == "train").sum()))
    if batch % accelerator.count:
        raise InvalidDataError(
            f"a batch of {batch} images cannot be divided among {accelerator.count} devices. Fix: use one "
            "device, or a number of devices that divides the batch."
        )
    if accelerator.processes > 1 and chosen.fit != "network":
        raise InvalidDataError(
            f"{recipe.name} is fitted by one process. Fix: unset KERAS_DISTRIBUTION_JOB_ADDRESSES."
        )
    settings = {
        "dataset": manifest.attrs.get("dataset", "unnamed"),
        "recipe": recipe.name,
        "protocol": protocol,
        "seed": seed,
        "budget": budget,
        "backend": accelerator.backend,
        "precision": accelerator.precision,
        "choices": runs.plain(chosen.settings()),
        "init": weights.label,
        "split": runs.split_fingerprint(assigned),
        "training_version": runs.TRAINING_VERSION,
    }
    # Without hardware and versions, so that a run that was cut can go on elsewhere.
    settings["key"] = runs.digest(settings)
    settings["hardware"] = str(accelerator)
    settings["versions"] = runs.versions(keras.backend.backend())
    if accelerator.processes == 1 and (run := _finished(settings, overwrite)):
        return run
    folder = paths.RUNS / "{dataset}-{recipe}-{protocol}-{seed}-{key}".format(**settings)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    first = (
        devices.process()[0] == 0
    )  # of a job the one that writes; the others read the same folder
    # Beside the folder, which is removed while others may wait.
    with FileLock(f"{folder}.lock") if first else nullcontext():
        if accelerator.processes > 1:
            _share(folder, first)
        # Of two processes at once the second finds the run of the first.
        run = _finished(settings, overwrite)
        devices.agree(f"{folder.name}, {'to be trained' if run is None else 'finished'}")
        if run is None:
            log.info("training %s, %s, seed %d on %s", recipe.name, protocol, seed, accelerator)
            fit = _fit_network if chosen.fit == "network" else _fit_probe
            history, scored, extra = fit(chosen, manifest, assigned, weights, settings, folder)
            scored = scored.assign(recipe=recipe.name, protocol=protocol, seed=seed)[
                list(runs.SCORE_COLUMNS)
            ]
            scored = scored[scored["split"] != "train"].sort_values(["split", "image_id"])
            model = folder / runs.MODEL_FILES[chosen.fit]
            if first:
                runs.write_run(settings | extra, history, scored, chosen.threshold_rule, model)
            devices.agree("written")
            run = runs.read_run(
                runs.run_folder(
                    *(settings[name] for name in ("dataset", "recipe", "protocol", "seed"))
                )
            )
        if first:
            shutil.rmtree(folder, ignore_errors=True)
    return run


def _share(folder: Path, first: bool) -> None:
    """See to it that all processes of a job see one folder: the first writes a mark, and all read it."""
    mark = folder / "job"
    if first:
        mark.write_text(f"{os.getpid()} {time.time()}")
    devices.agree("marked")
    devices.agree(mark.read_text() if mark.exists() else "the first process's folder is not here")


def _finished(settings: dict[str, Any], overwrite: bool) -> runs.Run | None:
    """The finished run of these settings; None where one is to be trained."""
    run = runs.get_run(*(settings[name] for name in ("dataset", "recipe", "protocol", "seed")))
    if run is None:
        return None
    same = run.settings["key"] == settings["key"]
    if same and run.has_model:
        return run
    if settings["dataset"] in runs.COMMITTED and not overwrite:
        why = (
            "its model is not on this machine" if same else "it has other settings, images or code"
        )
        raise InvalidDataError(
            f"{run.folder} stands in the report and would be replaced ({why}). Fix: pass --overwrite "
            "(overwrite=True) to train it again."
        )
    if not same:
        log.warning(
            "%s has other settings, images or code: it is trained again and replaced", run.folder
        )
    return None


def _fit_network(
    recipe: Recipe,
    manifest: pd.DataFrame,
    assigned: pd.DataFrame,
    weights: networks.Weights,
    settings: dict[str, Any],
    folder: Path,
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    seed = settings["seed"]
    pixels = regions.load(manifest, recipe.size, recipe.region)
    labels = manifest["label"].to_numpy()
    train, val = (
        assigned.index[assigned["split"] == split].to_numpy() for split in ("train", "val")
    )
    keras.utils.set_random_seed(seed)
    model = networks.build(
        recipe.network, recipe.size, recipe.head, weights=weights, augmentation=recipe.augmentation
    )

    def score(films: np.ndarray, rows: np.ndarray) -> np.ndarray:
        scored = networks.predict_rows(model, recipe.head, films, rows, recipe.batch_size)
        if not np.isfinite(scored).all():
            raise OperationFailedError(
                f"{recipe.name}: the network's scores are not numbers, its training diverged. Fix: a lower "
                "learning rate in xraylib/training/recipes.py, or another seed."
            )
        return scored

    swapped: dict[str, np.ndarray] = {}
    if recipe.validation != "plain":
        swapped = framing.swaps(np.asarray(pixels[val]), labels[val], seed)
        if recipe.validation == "framing":
            swapped = {"framing": swapped["framing"]}
    all_val = np.arange(len(val))
    progress = Progress(folder, model, settings["hardware"])
    devices.agree(
        f"{recipe.name}, seed {seed}, after epoch {progress.epoch} and {progress.step} batches"
    )
    about = {
        "desc": f"{recipe.name}, seed {seed}",
        "unit": "epoch",
        "disable": "TQDM_DISABLE" in os.environ,
    }
    bar = tqdm(total=recipe.epochs, initial=progress.epoch, **about)
    for number, phase in enumerate(recipe.phases):
        if progress.phase > number:
            continue
        first = balance(train, labels, recipe.imbalance, np.random.default_rng(seed))[0]
        _prepare(model, recipe, phase, steps=len(first) // recipe.batch_size)
        progress.begin_phase(number)
        while not progress.phase_over(phase.epochs, recipe.patience):
            epoch = progress.epoch
            rows, row_weights = balance(
                train, labels, recipe.imbalance, np.random.default_rng([seed, epoch])
            )
            order = np.random.default_rng([seed, epoch, 1]).permutation(rows)
            batches = Batches(pixels, labels, order, row_weights, recipe.batch_size)
            for part in batches.parts(progress.step, CHECKPOINT_STEPS):
                started = time.perf_counter()
                fitted = model.fit(part, epochs=1, verbose=0, shuffle=False).history
                seconds = time.perf_counter() - started
                seen = progress.end_part(
                    len(part), fitted["loss"][0], fitted["accuracy"][0], seconds
                )
            started = time.perf_counter()
            validated = score(pixels, val)
            views = {
                f"val_auc_{view}": roc_auc_score(labels[val], score(films, all_val))
                for view, films in swapped.items()
            }
            val_loss = log_loss(labels[val], validated, labels=[0, 1])
            progress.end_epoch(
                **views,
                loss=seen["loss"],
                accuracy=seen["accuracy"],
                val_loss=val_loss,
                val_accuracy=np.mean((validated > 0.5) == labels[val]),
                seconds=seen["seconds"] + time.perf_counter() - started,
            )
            bar.set_postfix(loss=f"{seen['loss']:.3f}", val_loss=f"{val_loss:.3f}", refresh=False)
            bar.update()
        progress.end_phase(keep_best=recipe.patience is not None)
    bar.close()
    wanted = assigned[assigned["split"].isin(["val", "test"])]
    table = wanted.assign(score=score(pixels, wanted.index.to_numpy()))
    if swapped:
        films = assigned[assigned["split"] == "val"].assign(split="swapped")
        table = pd.concat([table, films.assign(score=score(swapped["framing"], all_val))])
    # Of a job every process must save, or the first would wait for them; its file counts.
    with tempfile.TemporaryDirectory() as aside:
        place = folder if devices.process()[0] == 0 else Path(aside)
        with atomic_write(place / runs.MODEL_FILES["network"]) as temporary:
            model.save_weights(temporary)
    history = pd.DataFrame(progress.history)
    kept = len(history) if recipe.patience is None else progress.best_epoch + 1
    seconds = float(history["seconds"].sum())  # those before a break included
    return history, table, {"train_seconds": seconds, "epochs": len(history), "kept_epoch": kept}


def _prepare(model: keras.Model, recipe: Recipe, phase: Phase, steps: int) -> None:
    rate: Any = phase.learning_rate
    if phase.decay:
        rate = keras.optimizers.schedules.CosineDecay(
            rate, max(1, steps) * phase.epochs, alpha=0.01
        )
    for layer in model.layers:
        if layer.name == "backbone":
            layer.trainable = not phase.freeze_backbone
    model.compile(
        keras.optimizers.Adam(rate), networks.HEADS[recipe.head].loss(), metrics=["accuracy"]
    )
    model.optimizer.build(model.trainable_variables)


def _fit_probe(
    recipe: Recipe,
    manifest: pd.DataFrame,
    assigned: pd.DataFrame,
    weights: networks.Weights,
    settings: dict[str, Any],
    folder: Path,
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    started = time.perf_counter()
    if recipe.fit == "single-feature":
        features = audit.single_feature(manifest, recipe.network, recipe.size)
    else:
        features = probe.pooled(
            manifest, recipe.network, recipe.size, weights, settings["seed"], region=recipe.region
        )
    features = features[assigned.index]
    labels, split = assigned["label"].to_numpy(), assigned["split"].to_numpy()
    fitted, swapped = (features, labels, split), None
    if recipe.augmentation is not None:
        pixels = regions.load(manifest, recipe.size, recipe.region)[assigned.index]
        frozen = probe.extractor(recipe.network, recipe.size, weights, settings["seed"])
        views = probe.augmented(
            frozen, pixels[split == "train"], recipe.augmentation, settings["seed"]
        )
        swapped = probe.describe(
            frozen, framing.swap_framing(pixels[split == "val"], labels[split == "val"])
        )
        names = np.repeat(["train", "val"], [len(views), len(swapped)])
        truth = np.concatenate(
            [np.resize(labels[split == "train"], len(views)), labels[split == "val"]]
        )
        fitted = np.concatenate([views, swapped]), truth, names
    head, history = probe.fit(*fitted)
    probe.save_head(head, folder / runs.MODEL_FILES[recipe.fit])
    scored = assigned.assign(score=probe.predict_probability(head, features))
    if swapped is not None:
        films = assigned[split == "val"].assign(
            split="swapped", score=probe.predict_probability(head, swapped)
        )
        scored = pd.concat([scored, films])
    return history, scored, {"train_seconds": time.perf_counter() - started, "epochs": 0}


class Batches(keras.utils.PyDataset):
    """Batches of one length from the memory-mapped pixels; what fills no batch waits for another epoch.

    Of a job each process reads its own part of each batch.
    """

    def __init__(
        self,
        pixels: np.ndarray,
        labels: np.ndarray,
        rows: np.ndarray,
        weights: np.ndarray,
        size: int,
    ):
        # Shards are read ahead by threads; a memory map is as fast as the step needs.
        super().__init__(workers=1 if isinstance(pixels, np.ndarray) else 4)
        self.pixels, self.labels, self.weights = pixels, labels, weights
        self.size = min(size, len(rows))
        self.rows = rows[: len(rows) // self.size * self.size].reshape(-1, self.size)

    def parts(self, start: int, steps: int) -> Iterator["Batches"]:
        """What is left from batch `start` on, `steps` batches at a time."""
        for first in range(start, len(self), steps):
            rows = self.rows[first : first + steps].ravel()
            yield Batches(self.pixels, self.labels, rows, self.weights, self.size)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        process, processes = devices.process()
        rows = self.rows[index].reshape(processes, -1)[process]
        return self.pixels[rows], self.labels[rows], self.weights[rows]


def balance(
    rows: np.ndarray, labels: np.ndarray, method: str | None, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Apply a class-imbalance method, one of `IMBALANCE_METHODS` or None, to the training rows of one epoch.

    `labels` are 0/1 of every row of the data set. Returns the rows of the epoch, which over- and undersampling choose
    anew each time, and a float32 weight for every row of the data set (mean 1 over `rows`).
    """
    weights = np.ones(len(labels), np.float32)
    classes = [rows[labels[rows] == value] for value in (0, 1)]
    if method == "class_weight":
        for members in classes:
            weights[members] = len(rows) / (2 * len(members))
    elif method is not None:
        length = (max if method == "oversample" else min)(len(members) for members in classes)
        chosen = [rng.choice(members, length, replace=len(members) < length) for members in classes]
        rows = np.concatenate(chosen)
    return rows, weights


class Progress:
    """Where a run stands: phase, epochs done, learning curves, and the best epoch on validation.

    All of it is in one checkpoint in `folder`, taken up where there is one, and written atomically after each epoch and
    after `CHECKPOINT_STEPS` batches of one.
    Keras's `BackupAndRestore` keeps weights and epoch only; early stopping, phases and the learning curves decide the
    outcome as well.
    """

    def __init__(self, folder: Path, model: keras.Model, hardware: str):
        self.file = folder / "checkpoint.npz"
        self.model, self.hardware = model, hardware
        self.phase = 0
        self.history: list[dict[str, float]] = []
        self.parts: list[tuple[int, float, float, float]] = []
        self.best: list[np.ndarray] = []
        self.best_loss = np.inf
        self.best_epoch = -1
        self._optimizer: list[np.ndarray] | None = None
        if self.file.exists():
            self._load()

    @property
    def epoch(self) -> int:
        """Epochs done, in all phases."""
        return len(self.history)

    def begin_phase(self, number: int) -> None:
        """Enter a phase whose optimiser was just made; a resumed one gets its state back."""
        if number == self.phase and self._optimizer is not None:
            _assign(self.model.optimizer.variables, self._optimizer)
        self.phase = number
        self._optimizer = None

    def phase_over(self, epochs: int, patience: int | None) -> bool:
        """Whether the phase has run its epochs or validation has not improved for `patience` of them."""
        done = [row for row in self.history if row["phase"] == self.phase]
        if len(done) >= epochs:
            return True
        since = self.epoch - 1 - max(self.best_epoch, self.epoch - len(done) - 1)
        return patience is not None and since >= patience

    @property
    def step(self) -> int:
        """Batches done of the epoch that is under way."""
        return sum(part[0] for part in self.parts)

    def end_part(
        self, steps: int, loss: float, accuracy: float, seconds: float
    ) -> dict[str, float]:
        """Add some batches to the epoch, write the checkpoint; gives what the epoch has measured so far."""
        self.parts.append((steps, float(loss), float(accuracy), seconds))
        if (
            steps == CHECKPOINT_STEPS
        ):  # a shorter part ends the epoch, which is saved after validation
            self._save()
        counts, losses, accuracies, spent = zip(*self.parts, strict=True)
        seen = {
            "loss": np.average(losses, weights=counts),
            "accuracy": np.average(accuracies, weights=counts),
        }
        return seen | {"seconds": sum(spent)}

    def end_epoch(self, **measured: float) -> None:
        """Add a row to the learning curves, keep the best weights, write the checkpoint."""
        self.parts = []
        row = {"epoch": self.epoch + 1, "phase": self.phase}
        self.history.append(row | {name: float(value) for name, value in measured.items()})
        swapped = [value for name, value in measured.items() if name.startswith("val_auc_")]
        # The lowest is kept: the validation loss, or what the worst swapped view lacks to an AUC of 1.
        criterion = 1 - min(swapped) if swapped else measured["val_loss"]
        if criterion < self.best_loss:
            self.best_loss, self.best_epoch = float(criterion), self.epoch - 1
            self.best = _values(self.model.variables)
        self._save()

    def end_phase(self, keep_best: bool) -> None:
        """Leave a phase with the best weights so far, or with the last."""
        if keep_best and self.best:
            _assign(self.model.variables, self.best)
        self.phase += 1
        self._save(with_optimizer=False)

    def _save(self, with_optimizer: bool = True) -> None:
        if devices.process()[0]:
            return
        state = {name: getattr(self, name) for name in _STATE}
        groups = {"model": _values(self.model.variables), "best": self.best}
        if with_optimizer:
            groups["optimizer"] = _values(self.model.optimizer.variables)
        arrays = {
            f"{group}-{i}": value
            for group, values in groups.items()
            for i, value in enumerate(values)
        }
        with atomic_write(self.file) as temporary, temporary.open("wb") as stream:
            np.savez(stream, state=np.array(json.dumps(state)), **arrays)  # type: ignore[arg-type]

    def _load(self) -> None:
        with np.load(self.file, allow_pickle=False) as saved:
            groups: dict[str, list[np.ndarray]] = {"model": [], "best": [], "optimizer": []}
            for group, values in groups.items():
                names = [name for name in saved.files if name.startswith(f"{group}-")]
                values.extend(saved[f"{group}-{i}"] for i in range(len(names)))
            state = json.loads(str(saved["state"]))
        if (before := state.pop("hardware")) != self.hardware:
            log.warning(
                "%s: begun on %s, goes on on %s", self.file.parent.name, before, self.hardware
            )
        for name, value in state.items():
            setattr(self, name, value)
        self.best, self._optimizer = groups["best"], groups["optimizer"] or None
        log.info("going on after epoch %d", self.epoch)
        _assign(self.model.variables, groups["model"])


_STATE = ("phase", "history", "parts", "best_loss", "best_epoch", "hardware")


def _values(variables: list[Any]) -> list[np.ndarray]:
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]


def _assign(variables: list[Any], values: list[np.ndarray]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
