"""One function that trains any recipe: seeded, resumable, and never the same run twice."""

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from filelock import FileLock
from sklearn.metrics import log_loss, roc_auc_score

from xraylib import devices, paths
from xraylib.datasets import audit, framing, images, regions, splits
from xraylib.datasets.corruptions import TAUGHT, corrupt_each
from xraylib.devices import Accelerator
from xraylib.errors import InvalidDataError, NotFoundError, OperationFailedError
from xraylib.progress import tqdm
from xraylib.storage import atomic_write, storage_errors
from xraylib.training import networks, probe, recipes, runs
from xraylib.training.progress import Progress
from xraylib.training.recipes import Phase, Recipe

log = logging.getLogger(__name__)

# Batches between two checkpoints within an epoch, so that a preemption never costs an hour.
CHECKPOINT_STEPS = 2000
IMBALANCE_METHODS = ("class_weight", "oversample", "undersample")
VALIDATIONS = ("plain", "framing", "robust")
LUNG_BOX = "lung box"
SINGLE_FEATURES = ("majority class", "file size", "mean intensity", LUNG_BOX)


@dataclass(frozen=True)
class Job:
    """What one run is trained from.

    Attributes
    ----------
    recipe
        The recipe as it runs under the protocol and the budget.
    manifest
        The whole manifest, whose index counts rows of pixels.
    assigned
        The manifest as the protocol splits it.
    weights
        The initial weights.
    settings
        The content of `run.json` as far as it is known before training.
    """

    recipe: Recipe
    manifest: pd.DataFrame
    assigned: pd.DataFrame
    weights: networks.Weights
    settings: dict[str, Any]

    @property
    def seed(self) -> int:
        """The seed of the split, the initial weights, the order of images and dropout."""
        return self.settings["seed"]

    @property
    def title(self) -> str:
        """The recipe's name and the seed, for messages."""
        return f"{self.settings['recipe']}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        """Where its checkpoint lies until the run has finished."""
        names = [self.settings[name] for name in ("dataset", "recipe", "protocol")]
        # The key tells apart names that were shortened.
        shortened = [name[:60] for name in names]
        return paths.RUNS / "-".join([*shortened, str(self.seed), self.settings["key"]])

    @cached_property
    def labels(self) -> np.ndarray:
        """0/1 of every row of the manifest."""
        return self.manifest["label"].to_numpy()

    def rows(self, split: str) -> np.ndarray:
        """Return the rows of the manifest in a split."""
        return self.assigned.index[self.assigned["split"] == split].to_numpy()

    def with_swapped(self, scored: pd.DataFrame, scores: np.ndarray) -> pd.DataFrame:
        """Add the scores of validation images framed as the other class, as a split `swapped`."""
        validation = self.assigned[self.assigned["split"] == "val"]
        return pd.concat([scored, validation.assign(split="swapped", score=scores)])

    def pixels(self) -> np.ndarray:
        """Return the pixels of every row, uint8 `(n, size, size, 1)`."""
        return regions.load(self.manifest, self.recipe.size, self.recipe.region)


@dataclass(frozen=True)
class Fitted:
    """What training gives, besides the model's file.

    Attributes
    ----------
    history
        The learning curves.
    scores
        Rows of the manifest with `split` and `score`.
    measured
        Entries for `run.json`.
    """

    history: pd.DataFrame
    scores: pd.DataFrame
    measured: dict[str, Any]


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
    """Train a recipe, continue an interrupted run, or read back a finished one.

    A run that is killed at any moment and started again ends with the same scores on the same
    machine. Runs of another budget, precision or backend, or from other initial weights, are kept
    beside each other.

    Parameters
    ----------
    recipe
        What to train; it may hold functions, see `recipes.part_name`.
    manifest
        The whole manifest from `manifest.load`.
    accelerator
        What `devices.use` returned.
    protocol, seed
        See `splits.assign`. The seed also draws initial weights, order of images and dropout.
    budget
        A key of `recipes.BUDGETS`.
    init
        Initial weights in place of the recipe's own, see `networks.get_weights`.
    overwrite
        Whether a committed run may be replaced; otherwise `InvalidDataError`.

    Returns
    -------
    Run
        With scores of the best epoch on validation, or of the last if the recipe has no patience.
    """
    job = _plan(recipe, manifest, accelerator, protocol, seed, budget, init)
    finished = _finished(job.settings, overwrite) if accelerator.processes == 1 else None
    return finished or _train_once(job, accelerator, overwrite)


def _train_once(job: Job, accelerator: Accelerator, overwrite: bool) -> runs.Run:
    """Train a run under a lock, unless another process has finished it meanwhile."""
    with storage_errors(job.folder):
        job.folder.mkdir(parents=True, exist_ok=True)
    # Of several processes the first writes, and the others read the same folder.
    first = devices.process()[0] == 0
    # The lock is beside the folder, which is removed while others may wait.
    with FileLock(f"{job.folder}.lock") if first else nullcontext():
        if accelerator.processes > 1:
            _check_shared(job.folder, first)
        # The second of two calls at once finds the run of the first.
        run = _finished(job.settings, overwrite)
        devices.agree(f"{job.folder.name}, {'to be trained' if run is None else 'finished'}")
        if run is None:
            log.info("training %s, %s on %s", job.title, job.settings["protocol"], accelerator)
            run = _fit_and_write(job, first)
        if first:
            shutil.rmtree(job.folder, ignore_errors=True)
    return run


def _plan(
    recipe: Recipe,
    manifest: pd.DataFrame,
    accelerator: Accelerator,
    protocol: str,
    seed: int,
    budget: str,
    init: str | None,
) -> Job:
    """Settle everything that decides a run, and refuse what cannot be trained."""
    if not 0 <= seed < 2**32:
        raise InvalidDataError(
            f"the seed {seed} cannot be used. Fix: give one of 0 to {2**32 - 1}."
        )
    chosen = recipe.under(protocol, budget)
    _check_names(chosen)
    weights = networks.get_weights(chosen.network, init or chosen.init)
    assigned = _assign_splits(chosen, manifest, protocol, seed)
    _check_devices(chosen, assigned, accelerator)
    settings = {
        "dataset": manifest.attrs.get("dataset", "unnamed"),
        "recipe": recipe.name,
        "protocol": protocol,
        "seed": seed,
        "budget": budget,
        "backend": accelerator.backend,
        "precision": accelerator.precision,
        "choices": chosen.settings(),
        "init": weights.label,
        "split": runs.split_fingerprint(assigned),
        "training_version": runs.TRAINING_VERSION,
    }
    region = "lungs" if chosen.network == LUNG_BOX else chosen.region
    settings |= regions.sources(settings["dataset"], region)
    # Without hardware and versions, so that an interrupted run can continue elsewhere.
    settings["key"] = runs.digest(settings)
    settings["hardware"] = str(accelerator)
    settings["versions"] = runs.versions(keras.backend.backend())
    if weights.file is not None:
        settings["init_file"] = {"sha256": runs.file_sha256(weights.file)}
        if init is not None and init.endswith(".weights.h5"):
            settings["init_file"]["path"] = init
    return Job(chosen, manifest, assigned, weights, settings)


def _check_names(recipe: Recipe) -> None:
    """Refuse a recipe whose fields name something that does not exist."""
    if recipe.augmentation is not None:
        networks.find_part(networks.AUGMENTATIONS, recipe.augmentation)
    choices: dict[str, Collection[str | None]] = {
        "fit": runs.MODEL_FILES,
        "head": networks.HEADS,
        "imbalance": (None, *IMBALANCE_METHODS),
        "validation": VALIDATIONS,
    }
    if recipe.fit == "single-feature":
        choices["network"] = SINGLE_FEATURES
    else:
        networks.find_part(networks.NETWORKS, recipe.network)
    for name, allowed in choices.items():
        value = getattr(recipe, name)
        if value not in allowed:
            raise NotFoundError(
                f"{recipe.name}: there is no {name} {value!r}. "
                f"Fix: choose one of {', '.join(map(str, allowed))}."
            )


def _assign_splits(
    recipe: Recipe,
    manifest: pd.DataFrame,
    protocol: str,
    seed: int,
) -> pd.DataFrame:
    """Split the manifest, by a function of the user's own where the recipe holds one."""
    strategy = recipe.split_strategy
    if strategy not in recipes.OWN_PARTS:
        return splits.assign(manifest, protocol, seed, split_strategy=strategy)
    splits.SPLIT_STRATEGIES.setdefault(strategy, recipes.OWN_PARTS[strategy])
    assigned = splits.assign(manifest, strategy, seed)
    if protocol == "strict":
        splits.check_disjoint(assigned)
    return assigned


def _check_devices(recipe: Recipe, assigned: pd.DataFrame, accelerator: Accelerator) -> None:
    batch = min(recipe.batch_size, int((assigned["split"] == "train").sum()))
    if batch % accelerator.count:
        raise InvalidDataError(
            f"a batch of {batch} images cannot be divided among {accelerator.count} devices. "
            "Fix: use one device, or a number of devices that divides the batch."
        )
    if accelerator.processes > 1 and recipe.fit != "network":
        raise InvalidDataError(
            f"{recipe.name} is fitted by one process. Fix: unset KERAS_DISTRIBUTION_JOB_ADDRESSES."
        )


def _finished(settings: dict[str, Any], overwrite: bool) -> runs.Run | None:
    """Return the finished run of these settings, or None if one is to be trained."""
    run = runs.same_run(settings)
    if run is None:
        return None
    same = run.settings.get("key") == settings["key"]
    state = run.model_state
    if same and state == "present":
        return run
    reason = "it has other settings, images or code"
    if same:
        reason = {
            "missing": "its model is not on this machine",
            "damaged": f"{run.model_file.name} is not what it wrote",
        }[state]
    if settings["dataset"] in runs.COMMITTED and not overwrite:
        raise InvalidDataError(
            f"{run.folder} is in the committed report and would be replaced ({reason}). "
            "Fix: pass --overwrite (overwrite=True) to train it again."
        )
    if not same or state == "damaged":
        log.warning("%s: %s; it is trained again and replaced", run.folder, reason)
    return None


def _check_shared(folder: Path, first: bool) -> None:
    """Check that all processes see one folder: the first writes a mark, and all read it."""
    mark = folder / "job"
    if first:
        mark.write_text(f"{os.getpid()} {time.time()}")
    devices.agree("marked")
    devices.agree(mark.read_text() if mark.exists() else "the first process's folder is not here")


def _fit_and_write(job: Job, first: bool) -> runs.Run:
    """Train a run; the first process writes it."""
    fitted = NetworkFit(job).fit() if job.recipe.fit == "network" else _fit_probe(job)
    names = {name: job.settings[name] for name in ("recipe", "protocol", "seed")}
    scores = fitted.scores.assign(**names)[list(runs.SCORE_COLUMNS)]
    scores = scores[scores["split"] != "train"].sort_values(["split", "image_id"])
    if first:
        runs.write_run(
            job.settings | fitted.measured,
            fitted.history,
            scores,
            job.recipe.threshold_rule,
            job.folder / runs.MODEL_FILES[job.recipe.fit],
        )
    devices.agree("written")
    run = runs.same_run(job.settings)
    if run is None:
        raise OperationFailedError(
            f"the run of {job.title} was removed while it was written. Fix: train it again."
        )
    return run


class NetworkFit:
    """Training of a network by Keras: phases, epochs, validation and scores."""

    def __init__(self, job: Job):
        self.job = job
        self.pixels = job.pixels()
        self.train_rows = job.rows("train")
        self.val_rows = job.rows("val")
        self.val_labels = job.labels[self.val_rows]
        keras.utils.set_random_seed(job.seed)
        self.model = networks.build(
            job.recipe.network,
            job.recipe.size,
            job.recipe.head,
            weights=job.weights,
            augmentation=job.recipe.augmentation,
        )
        self.swapped = self._swapped_views()
        self.progress = Progress(job.folder, self.model, job.settings["hardware"])
        devices.agree(
            f"{job.title}, after epoch {self.progress.epoch} and {self.progress.step} batches"
        )

    def fit(self) -> Fitted:
        """Train all phases that are left; return scores of the epoch that is kept."""
        recipe = self.job.recipe
        progress = self.progress
        bar = tqdm(
            total=recipe.epochs,
            initial=progress.epoch,
            desc=self.job.title,
            unit="epoch",
        )
        with bar:
            for number, phase in enumerate(recipe.phases):
                if number < progress.phase:
                    continue
                self._begin_phase(number, phase)
                while not progress.phase_over(phase.epochs, recipe.patience):
                    measured = self._fit_epoch()
                    losses = {name: f"{measured[name]:.3f}" for name in ("loss", "val_loss")}
                    bar.set_postfix(losses, refresh=False)
                    bar.update()
                progress.end_phase(keep_best=recipe.patience is not None)
        scores = self._scores()
        self._save_weights()
        history = pd.DataFrame(progress.history)
        kept = len(history) if recipe.patience is None else progress.best_epoch + 1
        measured = {
            # Seconds before an interruption are included.
            "train_seconds": float(history["seconds"].sum()),
            "epochs": len(history),
            "kept_epoch": kept,
        }
        return Fitted(history, scores, measured)

    def _swapped_views(self) -> dict[str, np.ndarray]:
        """Return validation images changed as the recipe's `validation` asks, by view."""
        recipe = self.job.recipe
        if recipe.validation == "plain":
            return {}
        source = self.pixels
        if recipe.region != "whole":
            source = images.load_pixels(self.job.manifest, regions.SOURCE_SIZE)
        pixels = np.asarray(source[self.val_rows])
        if recipe.validation == "framing":
            views = {"framing": framing.swap_framing(pixels, self.val_labels)}
        else:
            views = framing.swaps(pixels, self.val_labels, self.job.seed)
            views["corrupted"] = corrupt_each(pixels, TAUGHT, self.job.seed)
        if recipe.region != "whole":
            # The lungs are found anew in every view.
            for name, view in views.items():
                views[name] = regions.cut(view, recipe.size, recipe.region)
        return views

    def _score(self, pixels: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return P(pneumonia) of some rows of pixels."""
        recipe = self.job.recipe
        scores = networks.predict_rows(self.model, recipe.head, pixels, rows, recipe.batch_size)
        if not np.isfinite(scores).all():
            raise OperationFailedError(
                f"{self.job.title}: the network's scores are not numbers, its training diverged. "
                f"Fix: another seed, or a lower rate: {recipe.name}+learning_rate=1e-4."
            )
        return scores

    def _score_view(self, view: str) -> np.ndarray:
        """Return P(pneumonia) of all validation images as a view shows them."""
        return self._score(self.swapped[view], np.arange(len(self.val_rows)))

    def _begin_phase(self, number: int, phase: Phase) -> None:
        """Compile the model for a phase."""
        recipe = self.job.recipe
        rng = np.random.default_rng(self.job.seed)
        rows = balance(self.train_rows, self.job.labels, recipe.imbalance, rng)[0]
        steps = max(1, len(rows) // recipe.batch_size)
        rate: Any = phase.learning_rate
        if phase.decay:
            rate = keras.optimizers.schedules.CosineDecay(rate, steps * phase.epochs, alpha=0.01)
        for layer in self.model.layers:
            if layer.name == "backbone":
                layer.trainable = not phase.freeze_backbone
        loss = networks.HEADS[recipe.head].loss()
        self.model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
        self.model.optimizer.build(self.model.trainable_variables)
        self.progress.begin_phase(number)

    def _fit_epoch(self) -> dict[str, float]:
        """Train what is left of an epoch, validate, and write the checkpoint."""
        recipe = self.job.recipe
        progress = self.progress
        seed = self.job.seed
        epoch = progress.epoch
        rows, weights = balance(
            self.train_rows,
            self.job.labels,
            recipe.imbalance,
            np.random.default_rng([seed, epoch]),
        )
        order = np.random.default_rng([seed, epoch, 1]).permutation(rows)
        batches = Batches(self.pixels, self.job.labels, order, weights, recipe.batch_size)
        for part in batches.parts(progress.step, CHECKPOINT_STEPS):
            started = time.perf_counter()
            curves = self.model.fit(part, epochs=1, verbose=0, shuffle=False).history
            trained = progress.end_part(
                len(part),
                curves["loss"][0],
                curves["accuracy"][0],
                time.perf_counter() - started,
                # A shorter part ends the epoch, which is saved after validation.
                save=len(part) == CHECKPOINT_STEPS,
            )
        started = time.perf_counter()
        measured = self._validate(trained["loss"], trained["accuracy"])
        measured["seconds"] = trained["seconds"] + time.perf_counter() - started
        progress.end_epoch(**measured)
        return measured

    def _validate(self, loss: float, accuracy: float) -> dict[str, float]:
        """Return the learning curves' row of an epoch with this training loss and accuracy."""
        scores = self._score(self.pixels, self.val_rows)
        measured = {
            f"val_auc_{view}": roc_auc_score(self.val_labels, self._score_view(view))
            for view in self.swapped
        }
        measured |= {"loss": loss, "accuracy": accuracy}
        measured["val_loss"] = log_loss(self.val_labels, scores, labels=[0, 1])
        measured["val_accuracy"] = np.mean((scores > 0.5) == self.val_labels)
        return measured

    def _scores(self) -> pd.DataFrame:
        """Return scores of validation and test, and of swapped validation images if there are."""
        assigned = self.job.assigned
        scored = assigned[assigned["split"] != "train"]
        scored = scored.assign(score=self._score(self.pixels, scored.index.to_numpy()))
        if not self.swapped:
            return scored
        return self.job.with_swapped(scored, self._score_view("framing"))

    def _save_weights(self) -> None:
        """Save the model; every process must call this, and only the first one's file is kept."""
        with tempfile.TemporaryDirectory() as discarded:
            first = devices.process()[0] == 0
            folder = self.job.folder if first else Path(discarded)
            with atomic_write(folder / runs.MODEL_FILES["network"]) as temporary:
                self.model.save_weights(temporary)


def _fit_probe(job: Job) -> Fitted:
    """Fit a linear probe, or a single-feature baseline."""
    started = time.perf_counter()
    recipe = job.recipe
    if recipe.network == LUNG_BOX:
        # Distances from the four edges: where the lungs are and how large, without any pixel.
        features = regions.load_boxes(job.manifest)
    elif recipe.fit == "single-feature":
        features = audit.single_feature(job.manifest, recipe.network, recipe.size)
    else:
        features = probe.pooled(
            job.manifest,
            recipe.network,
            recipe.size,
            job.weights,
            job.seed,
            region=recipe.region,
        )
    features = features[job.assigned.index]
    labels = job.assigned["label"].to_numpy()
    split = job.assigned["split"].to_numpy()
    if recipe.augmentation is None:
        head, history = probe.fit(features, labels, split)
        scores = job.assigned.assign(score=probe.predict_probability(head, features))
    else:
        reframed, labels, split = _reframed_examples(job)
        head, history = probe.fit(reframed, labels, split)
        scores = job.assigned.assign(score=probe.predict_probability(head, features))
        swapped = probe.predict_probability(head, reframed[split == "val"])
        scores = job.with_swapped(scores, swapped)
    probe.save_head(head, job.folder / runs.MODEL_FILES[recipe.fit])
    measured = {"train_seconds": time.perf_counter() - started, "epochs": 0}
    return Fitted(history, scores, measured)


def _reframed_examples(job: Job) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features, labels and splits of augmented training and swapped validation images."""
    recipe = job.recipe
    pixels = job.pixels()
    frozen = probe.extractor(recipe.network, recipe.size, job.weights, job.seed)
    train_pixels = pixels[job.rows("train")]
    train_features = probe.augmented(frozen, train_pixels, str(recipe.augmentation), job.seed)
    val_labels = job.labels[job.rows("val")]
    swapped = framing.swap_framing(pixels[job.rows("val")], val_labels)
    features = [train_features, probe.describe(frozen, swapped)]
    # `resize` repeats the labels for every augmented copy of all images.
    labels = [np.resize(job.labels[job.rows("train")], len(train_features)), val_labels]
    split = np.repeat(["train", "val"], [len(part) for part in labels])
    return np.concatenate(features), np.concatenate(labels), split


class Batches(keras.utils.PyDataset):
    """Batches of one length from memory-mapped pixels; an incomplete last batch is dropped.

    Of several processes each reads its own share of every batch.

    Parameters
    ----------
    pixels
        uint8 `(n, size, size, 1)`, or shards of such.
    labels, weights
        0/1 and a float32 weight for every row of `pixels`.
    rows
        The rows to train on, in their order.
    size
        Rows per batch, at most all of them.
    """

    def __init__(
        self,
        pixels: np.ndarray,
        labels: np.ndarray,
        rows: np.ndarray,
        weights: np.ndarray,
        size: int,
    ):
        # Threads read shards ahead; a memory map is as fast as the step needs.
        super().__init__(workers=1 if isinstance(pixels, np.ndarray) else 4)
        self.pixels = pixels
        self.labels = labels
        self.weights = weights
        self.size = min(size, len(rows))
        whole = len(rows) // self.size * self.size
        self.rows = rows[:whole].reshape(-1, self.size)

    def parts(self, start: int, steps: int) -> Iterator["Batches"]:
        """Yield what is left from batch `start` on, `steps` batches at a time."""
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
    rows: np.ndarray,
    labels: np.ndarray,
    method: str | None,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Apply a class-imbalance method to the training rows of one epoch.

    Parameters
    ----------
    rows
        The training rows.
    labels
        0/1 of every row of the data set.
    method
        One of `IMBALANCE_METHODS`, or None.
    rng
        Draws the rows that are repeated or left out.

    Returns
    -------
    rows
        The rows of the epoch.
    weights
        float32, for every row of the data set, with mean 1 over the rows of the epoch.
    """
    weights = np.ones(len(labels), np.float32)
    classes = [rows[labels[rows] == value] for value in (0, 1)]
    if method == "class_weight":
        for members in classes:
            weights[members] = len(rows) / (2 * len(members))
    elif method is not None:
        sizes = [len(members) for members in classes]
        size = max(sizes) if method == "oversample" else min(sizes)
        chosen = [rng.choice(members, size, replace=len(members) < size) for members in classes]
        rows = np.concatenate(chosen)
    return rows, weights
