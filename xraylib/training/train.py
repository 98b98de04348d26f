"""One function that trains any recipe: seeded, resumable, and never the same thing twice."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from filelock import FileLock
from sklearn.metrics import log_loss, roc_auc_score

from xraylib import paths
from xraylib.datasets import audit, framing, images, splits
from xraylib.devices import Accelerator
from xraylib.evaluation.scores import COLUMNS
from xraylib.storage import DataInvalid, Failed, storage_errors
from xraylib.training import features, heads, models
from xraylib.training.batches import Batches, balance, predict
from xraylib.training.checkpoints import Progress
from xraylib.training.runs import (
    MODEL_FILES,
    TRAINING_VERSION,
    Run,
    digest,
    model_sha256,
    plain,
    read,
    split_fingerprint,
    versions,
    write,
)
from xraylib.training.systems import Phase, Recipe, get_budget

log = logging.getLogger(__name__)


def train(
    recipe: Recipe,
    manifest: pd.DataFrame,
    accelerator: Accelerator,
    *,
    protocol: str = "strict",
    seed: int = 0,
    budget: str = "full",
    init: str | None = None,
    runs: Path = paths.RUNS,
) -> Run:
    """Train a recipe, go on with a training that was cut, or read back one that is finished.

    Parameters
    ----------
    recipe
        From `recipes.RECIPES`.
    manifest
        From `catalog.load`, whole: the protocol splits it.
    accelerator
        From `accelerators.use`.
    protocol
        `published`, `strict`, or the name of a way of splitting (see `splits.assign`).
    seed
        Draws the split, the initial weights, the order of images and dropout.
    budget
        A key of `recipes.BUDGETS`.
    init
        Initial weights instead of the recipe's (see `models.get_weights`).
    runs
        Folder of the runs.

    Returns
    -------
    Run
        Whose scores were made by the best epoch on validation, or by the last where the recipe has no
        patience. Killed at any moment and called again, it ends with the same scores on the same machine.

    Raises
    ------
    XraylibError
        What `splits.assign`, `images.load_pixels` and `models.get_weights` raise.
    """
    chosen = recipe.under(protocol, budget)
    get_budget(budget)
    weights = models.get_weights(chosen.network, init or chosen.init)
    assigned = splits.assign(manifest, protocol, seed, split_strategy=chosen.split_strategy)
    _check_batches(chosen, assigned, accelerator)
    settings = {
        "dataset": manifest.attrs.get("dataset", "unnamed"),
        "recipe": recipe.name,
        "protocol": protocol,
        "seed": seed,
        "choices": plain(chosen.settings()),
        "init": weights.label,
        "split": split_fingerprint(assigned),
    }
    settings["training_version"] = TRAINING_VERSION
    settings["key"] = digest(settings)
    settings["hardware"] = str(accelerator)
    settings["versions"] = versions(keras.backend.backend())
    folder = runs / f"{recipe.name}-{settings['key']}"
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if not (folder / "run.json").exists():
            log.info("training %s, %s, seed %d on %s", recipe.name, protocol, seed, accelerator)
            fit = _fit_network if chosen.fit == "network" else _fit_linear_head
            history, scored, extra = fit(chosen, manifest, assigned, weights, seed, folder)
            extra["model_sha256"] = model_sha256(folder / MODEL_FILES[chosen.fit])
            write(folder, settings | extra, history, _table(settings, scored))
    return read(folder)


def _fit_network(
    recipe: Recipe,
    manifest: pd.DataFrame,
    assigned: pd.DataFrame,
    weights: models.Weights,
    seed: int,
    folder: Path,
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    pixels = images.load_pixels(manifest, recipe.size)
    labels = manifest["label"].to_numpy()
    sides = {side: rows.index.to_numpy() for side, rows in assigned.groupby("split")}
    keras.utils.set_random_seed(seed)
    model = models.build(
        recipe.network, recipe.size, recipe.head, weights=weights, augmentation=recipe.augmentation
    )
    val = sides["val"]
    swapped = {}
    if recipe.validation != "plain":
        swapped = framing.swaps(np.asarray(pixels[val]), labels[val], seed)
        if recipe.validation == "framing":
            swapped = {"framing": swapped["framing"]}
    progress = Progress.resume(folder, model)
    for number, phase in enumerate(recipe.phases):
        if progress.phase > number:
            continue
        weighted = balance(sides["train"], labels, recipe.imbalance, np.random.default_rng(seed))[0]
        _prepare(model, recipe, phase, steps=len(weighted) // recipe.batch_size)
        progress.begin_phase(number)
        while not progress.phase_over(phase.epochs, recipe.patience):
            started = time.perf_counter()
            rows, row_weights = balance(
                sides["train"], labels, recipe.imbalance, np.random.default_rng([seed, progress.epoch])
            )
            order = np.random.default_rng([seed, progress.epoch, 1]).permutation(rows)
            batches = Batches(pixels, labels, order, row_weights, recipe.batch_size)
            seen = model.fit(batches, epochs=1, verbose=0, shuffle=False).history
            validated = _finite(predict(model, recipe.head, pixels, sides["val"], recipe.batch_size), recipe)
            rows_seen = np.arange(len(val))
            worst = {
                f"val_auc_{view}": roc_auc_score(
                    labels[val], predict(model, recipe.head, films, rows_seen, recipe.batch_size)
                )
                for view, films in swapped.items()
            }
            progress.end_epoch(
                **worst,
                loss=seen["loss"][0],
                accuracy=seen["accuracy"][0],
                val_loss=log_loss(labels[sides["val"]], validated, labels=[0, 1]),
                val_accuracy=np.mean((validated > 0.5) == labels[sides["val"]]),
                seconds=time.perf_counter() - started,
            )
        progress.end_phase(keep_best=recipe.patience is not None)
    rows = assigned.index.to_numpy()
    scored = np.full(len(rows), np.nan)
    wanted = assigned["split"].isin(["val", "test"]).to_numpy()
    scored[wanted] = _finite(predict(model, recipe.head, pixels, rows[wanted], recipe.batch_size), recipe)
    table = assigned.assign(score=scored)
    if swapped:
        again = predict(model, recipe.head, swapped["framing"], np.arange(len(val)), recipe.batch_size)
        films = assigned[assigned["split"] == "val"].assign(split="swapped", score=again)
        table = pd.concat([table, films])
    models.save_weights(model, folder / MODEL_FILES["network"])
    history = pd.DataFrame(progress.history)
    kept = len(history) if recipe.patience is None else progress.best_epoch + 1
    return history, table, {"train_seconds": progress.seconds, "epochs": len(history), "kept_epoch": kept}


def _prepare(model: keras.Model, recipe: Recipe, phase: Phase, steps: int) -> None:
    rate: Any = phase.learning_rate
    if phase.decay:
        rate = keras.optimizers.schedules.CosineDecay(rate, max(1, steps) * phase.epochs, alpha=0.01)
    for layer in model.layers:
        if layer.name == "backbone":
            layer.trainable = not phase.freeze_backbone
    head = models.HEADS[recipe.head]
    accuracy: Callable[..., keras.metrics.Metric] = (
        keras.metrics.BinaryAccuracy if head.units == 1 else keras.metrics.SparseCategoricalAccuracy
    )
    model.compile(
        optimizer=keras.optimizers.Adam(rate), loss=head.loss(), metrics=[accuracy(name="accuracy")]
    )
    model.optimizer.build(model.trainable_variables)


def _fit_linear_head(
    recipe: Recipe,
    manifest: pd.DataFrame,
    assigned: pd.DataFrame,
    weights: models.Weights,
    seed: int,
    folder: Path,
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    started = time.perf_counter()
    if recipe.fit == "single-feature":
        table = audit.number(manifest, recipe.network, recipe.size)
    else:
        table = features.pooled(manifest, recipe.network, recipe.size, weights, seed)
    head, history = heads.fit(
        table[assigned.index],
        assigned["label"].to_numpy(),
        assigned["split"].to_numpy(),
    )
    scored = assigned.assign(score=heads.predict(head, table[assigned.index]))
    heads.save(head, folder / MODEL_FILES["linear-probe"])
    seconds = time.perf_counter() - started
    return history, scored, {"train_seconds": seconds, "epochs": 0}


def _check_batches(recipe: Recipe, assigned: pd.DataFrame, accelerator: Accelerator) -> None:
    batch = min(recipe.batch_size, int((assigned["split"] == "train").sum()))
    if batch % accelerator.count:
        raise DataInvalid(
            f"a batch of {batch} images cannot be divided among {accelerator.count} devices. Fix: use one "
            "device, or a number of devices that divides the batch."
        )


def _finite(scored: np.ndarray, recipe: Recipe) -> np.ndarray:
    if not np.isfinite(scored).all():
        raise Failed(
            f"{recipe.name}: the network's scores are not numbers, its training diverged. Fix: a lower "
            "learning rate in xraylib/recipes.py, or another seed."
        )
    return scored


def _table(settings: dict[str, Any], table: pd.DataFrame) -> pd.DataFrame:
    for name in ("recipe", "protocol", "seed"):
        table[name] = settings[name]
    return table.loc[table["split"] != "train", list(COLUMNS)].sort_values(["split", "image_id"])
