"""`make bench`: measure speed and memory against peers in one run.

Usage: run.py [--quick] [GROUP ...]. Writes benchmarks/results.md and reports/benchmarks.json and
.png. Each group runs in a process of its own with a cache of its own. Keras is imported inside the
groups that need it, because elsewhere it would count as memory. The numbers of `--quick` show that
everything runs; they are printed, not kept.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from PIL import Image

from xraylib import devices, errors, paths, storage
from xraylib.datasets import images, manifest, phantom, shards

SIZE = 224
ABOUT = """# Speed and memory

Written by `make bench`. Every line is measured in one run on one machine, ours and the other in
turn. The ratio says how many times better ours is (below 1: worse): the median of the pairs, with
the least and the highest. Files are in the operating system's cache for both.
"""


def alternate(
    ours: Callable[[], Any], peer: Callable[[], Any], repeats: int
) -> dict[str, list[float]]:
    """Time two calls in turn, so that a change of the machine's load meets both."""
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(repeats):
        for name, work in (("ours", ours), ("peer", peer)):
            start = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - start)
    return times


def row(
    what: str, against: str, unit: str, times: dict[str, list[float]], count: float = 0
) -> dict:
    """One line of the table; with `count`, seconds become `count` a second, and more is better."""
    if count:
        times = {name: [count / value for value in values] for name, values in times.items()}
    return {"what": what, "against": against, "unit": unit, "more_is_better": bool(count), **times}


def read_folder(films: Path, quick: bool) -> list[dict]:
    """Compare decoding a folder, and the batches of later epochs, with Keras's own reader."""
    rows = read_images(films, "of 224 px", quick)
    name, folder = large(films, quick)
    return rows + read_images(folder, name, quick)


def read_images(folder: Path, name: str, quick: bool) -> list[dict]:
    """Compare three ways of reading one folder with Keras's own reader."""
    import keras

    from xraylib.training import train

    prepared = keras.utils.image_dataset_from_directory(
        folder,
        image_size=(SIZE, SIZE),
        labels=None,
        color_mode="grayscale",
        shuffle=False,
        verbose=False,
    )
    table = manifest.load(folder)

    def peer() -> np.ndarray:
        return np.concatenate([np.asarray(batch).astype(np.uint8) for batch in prepared])

    def decode() -> np.ndarray:
        shutil.rmtree(paths.CACHE / "pixels", ignore_errors=True)
        return images.load_pixels(table, SIZE)

    def fresh() -> np.ndarray:
        return np.array(images.load_pixels(manifest.load(folder), SIZE))

    if images.load_pixels(table, SIZE).shape != peer().shape:
        raise AssertionError("the readers found different images")
    labels = table["label"].to_numpy()
    epoch = train.Batches(
        images.load_pixels(table, SIZE), labels, np.arange(len(table)), labels, 32
    )

    def later() -> None:
        for number in range(len(epoch)):
            epoch[number]

    what = f"{len(table)} images {name}"
    ways = [
        ("First pass (check, decode, write the cache)", "one pass", decode, len(table)),
        ("A pass of another process (find the cache, copy it)", "a pass", fresh, len(table)),
        (
            "A later epoch, batches of 32",
            "a later epoch, the same batches",
            later,
            epoch.rows.size,
        ),
    ]
    rows = []
    for title, which, ours, count in ways:
        times = alternate(ours, peer, 2 if quick else 5)
        against = f"`image_dataset_from_directory`, {which}"
        rows.append(row(f"{title}, {what}", against, "images/s", times, count))
    return rows


def large(films: Path, quick: bool) -> tuple[str, Path]:
    """Large JPEGs: Kermany's originals where they lie, otherwise films of the phantom, enlarged."""
    originals = paths.DATA / "kermany_originals"
    if originals.is_dir():
        return "of Kermany's originals", originals
    made = films.parent / "large"
    for number, file in enumerate(sorted(films.rglob("*.jpeg"))[: 20 if quick else 100]):
        target = made / "train" / ("NORMAL", "PNEUMONIA")[number % 2] / f"film-{number}.jpeg"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(file).resize((1400, 1000)).save(target, quality=90)
    return "of 1,400 × 1,000 px", made


def bootstrap(films: Path, quick: bool) -> list[dict]:
    """Intervals that resample patients, against scikit-learn's AUC in a loop."""
    from sklearn.metrics import roc_auc_score

    from xraylib.evaluation import metrics, resampling

    size = 624
    resamples = resampling.RESAMPLES
    looped = 40 if quick else 200
    rng = np.random.default_rng(0)
    labels = rng.permutation([0] * 234 + [1] * 390)
    patients = rng.integers(0, 400, size)
    score = 1 / (1 + np.exp(-(rng.normal(size=size) + 2.2 * labels - 1.1)))
    table = pd.DataFrame({"label": labels, "score": score, "patient": patients.astype(str)})
    table["image_id"] = table.index.astype(str)
    table[["recipe", "protocol", "seed", "split", "kind"]] = ["any", "strict", 0, "test", "unknown"]
    images_of = [np.flatnonzero(patients == patient) for patient in np.unique(patients)]

    def loop() -> list[float]:
        rng = np.random.default_rng(0)
        aucs = []
        for chosen in rng.integers(0, len(images_of), (looped, len(images_of))):
            rows = np.concatenate([images_of[patient] for patient in chosen])
            aucs.append(roc_auc_score(labels[rows], score[rows]))
        return aucs

    auc = partial(metrics.auc_interval, labels, score, patients)
    whole = partial(metrics.evaluate, table, rule=0.5)
    ends = np.percentile(loop(), [2.5, 97.5])
    same_interval = np.allclose(auc()[1:], ends, atol=0.01)
    if not same_interval or not np.isclose(auc()[0], whole().loc["auc", "value"]):
        raise AssertionError(f"the intervals differ: {auc()}, {whole().loc['auc']}, {ends}")
    rows = []
    against = f"`roc_auc_score` in a loop, AUC alone ({looped} resamples, scaled)"
    for what, work in (("`auc_interval`", auc), ("`evaluate`, six metrics", whole)):
        times = alternate(work, loop, 2 if quick else 5)
        times["peer"] = [value * resamples / looped for value in times["peer"]]
        title = f"{what}: {size} images, {len(images_of)} patients, {resamples} resamples"
        rows.append(row(title, against, "s", times))
    return rows


def fit(films: Path, quick: bool) -> list[dict]:
    """Compare training as `training.train` feeds it with one call of Keras's `fit` on arrays."""
    devices.use()
    table = manifest.load(films)
    rows = []
    for name, count in (("tiny-cnn-28", 2400), ("scratch-cnn", 320)):
        rows.append(fit_recipe(name, count // 4 if quick else count, table, quick))
    return rows


def fit_recipe(name: str, count: int, table: pd.DataFrame, quick: bool) -> dict:
    """Compare two epochs of one recipe on `count` images."""
    from xraylib.training import recipes, train

    epochs = 2
    recipe = recipes.get_recipe(name)
    labels = table["label"].to_numpy()
    pixels = images.load_pixels(table, recipe.size)
    whole = count // recipe.batch_size * recipe.batch_size
    chosen = np.resize(np.arange(len(pixels)), whole)
    in_memory = (np.array(pixels[chosen]), labels[chosen])
    our_model = compiled(recipe)
    peer_model = compiled(recipe)
    rng = np.random.default_rng(0)

    def ours() -> None:
        for _ in range(epochs):
            order, weights = train.balance(chosen, labels, recipe.imbalance, rng)
            order = rng.permutation(order)
            batches = train.Batches(pixels, labels, order, weights, recipe.batch_size)
            our_model.fit(batches, epochs=1, verbose=0, shuffle=False)

    def peer() -> None:
        peer_model.fit(*in_memory, batch_size=recipe.batch_size, epochs=epochs, verbose=0)

    ours()
    peer()
    times = alternate(ours, peer, 2 if quick else 5)
    title = f"Training `{name}`, {recipe.size} px, batches of {recipe.batch_size}"
    against = "`model.fit` on arrays in memory"
    return row(title, against, "images/s", times, epochs * len(chosen))


def compiled(recipe: Any) -> Any:
    """The network of a recipe, ready to be trained."""
    import keras

    from xraylib.training import networks

    model = networks.build(recipe.network, recipe.size, recipe.head)
    loss = networks.HEADS[recipe.head].loss()
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    return model


def step(films: Path, quick: bool) -> list[dict]:
    """Measure what input and augmentation take of a training step."""
    devices.use()
    table = manifest.load(films)
    names = ("tiny-cnn-28", "scratch-cnn", "flagship")
    return augmentation_rows(table, quick) + [input_row(name, table, quick) for name in names]


def augmentation_rows(table: pd.DataFrame, quick: bool) -> list[dict]:
    """Compare the flagship's augmentation, and Keras's own layers for the same, with none."""
    import keras

    from xraylib.training import networks, recipes, train

    recipe = recipes.get_recipe("flagship")
    size = recipe.size
    labels = table["label"].to_numpy()
    models = {}
    for name, augmentation in (("none", None), ("ours", recipe.augmentation)):
        models[name] = networks.build(recipe.network, size, recipe.head, augmentation=augmentation)
    inputs = keras.Input((size, size, 1))
    models["keras"] = keras.Model(inputs, models["none"](keras_augmentation(size)(inputs)))
    pixels = images.load_pixels(table, size)
    weights = np.ones(len(table), np.float32)
    batches = train.Batches(pixels, labels, np.arange(len(table)), weights, recipe.batch_size)
    batch, truth, _ = batches[0]
    steps = 1 if quick else 4
    for model in models.values():
        model.compile(keras.optimizers.Adam(1e-3), "binary_crossentropy")
        train_steps(model, batch, truth, 1)
    rows = []
    plain = partial(train_steps, models["none"], batch, truth, steps)
    for name, words in (
        ("ours", "its random framing and rendering"),
        ("keras", "Keras's random layers instead"),
    ):
        augmented = partial(train_steps, models[name], batch, truth, steps)
        times = alternate(augmented, plain, 2 if quick else 5)
        what = f"Training step of `flagship`, 160 px, batches of {recipe.batch_size}, with {words}"
        count = steps * recipe.batch_size
        rows.append(row(what, "without augmentation", "images/s", times, count))
    return rows


def keras_augmentation(size: int) -> Any:
    """Keras's own layers for what the flagship's augmentation does.

    They zoom and shift rows and columns by themselves. Gamma is left out: there is no such layer.
    """
    import keras
    from keras import layers

    return keras.Sequential(
        [
            keras.Input((size, size, 1)),
            layers.Rescaling(1.0),
            layers.RandomZoom((-0.38, 0.0), (-0.38, 0.0)),
            layers.RandomTranslation(0.19, 0.19),
            layers.RandomContrast(0.3, value_range=(0, 255)),
            layers.RandomBrightness(0.15, value_range=(0, 255)),
        ]
    )


def train_steps(model: Any, batch: np.ndarray, truth: np.ndarray, steps: int) -> None:
    """Train on the same batch some times."""
    for _ in range(steps):
        model.train_on_batch(batch, truth)


def input_row(name: str, table: pd.DataFrame, quick: bool) -> dict:
    """Compare reading a batch with the training step that it feeds."""
    import keras

    from xraylib.training import networks, recipes, train

    recipe = recipes.get_recipe(name)
    labels = table["label"].to_numpy()
    pixels = images.load_pixels(table, recipe.size)
    batches = train.Batches(pixels, labels, np.arange(len(table)), labels, 32)
    model = networks.build(
        recipe.network, recipe.size, recipe.head, augmentation=recipe.augmentation
    )
    model.compile(keras.optimizers.Adam(1e-3), networks.HEADS[recipe.head].loss())
    batch, truth, _ = batches[0]
    training = partial(train_steps, model, batch, truth, 1)
    training()
    times = alternate(partial(batches.__getitem__, 1), training, 2 if quick else 5)
    return row(f"Batch of 32 of `{name}` from the cache", "the training step it feeds", "s", times)


STEADY_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "2147483647"}


def allocator(films: Path, quick: bool) -> list[dict]:
    """CPU-seconds of training with the Makefile's settings of glibc and without."""
    spent: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(1 if quick else 3):
        for steady, values in spent.items():
            # glibc reads its settings when a process begins.
            for name, setting in STEADY_MEMORY.items():
                os.environ.pop(name, None)
                if steady:
                    os.environ[name] = setting
            values.append(alone(_cpu_seconds, films, 8 if quick else 40))
    what = (
        "CPU-seconds of 40 steps of `scratch-cnn`, batches of 32, memory kept "
        "(`MALLOC_…` as in the Makefile)"
    )
    times = {"ours": spent[True], "peer": spent[False]}
    return [row(what, "glibc's own settings", "s", times)]


def _cpu_seconds(films: Path, steps: int) -> float:
    devices.use()
    import keras

    from xraylib.training import networks

    table = manifest.load(films)
    pixels = images.load_pixels(table, 128)[:32]
    labels = table["label"].to_numpy()[:32]
    model = networks.build("scratch_cnn", 128, "sigmoid")
    model.compile(keras.optimizers.Adam(1e-3), "binary_crossentropy")
    model.train_on_batch(pixels, labels)
    start = time.process_time()
    for _ in range(steps):
        model.train_on_batch(pixels, labels)
    return time.process_time() - start


def tutorial(films: Path, quick: bool) -> list[dict]:
    """CPU-seconds from Kermany's files to the accuracy that the keras.io example claims.

    Ours: decoding into an empty cache, then `tiny-cnn-28-reframed` for five epochs. The example:
    the steps of the epochs that `kerasio-tpu` took under `strict`, scaled from a few, its decoding
    left out.
    """
    try:
        table = manifest.load("kermany")
    except errors.NotFoundError:
        return []
    spent, accuracies = _cheap_training(table, quick)
    from xraylib.training import runs

    paths.REPORTS = paths.ROOT / "reports"
    published = runs.list_runs("kermany", "kerasio-tpu", "strict")
    epochs = statistics.mean(run.settings["epochs"] for run in published)
    images_an_epoch = len(table) - len(published[0].scores)
    cost = _tutorial_seconds(epochs * images_an_epoch, len(spent), 1 if quick else 2)
    reached = ", ".join(f"{value:.3f}" for value in accuracies)
    what = (
        "CPU-seconds from Kermany's files: five epochs of `tiny_cnn`, re-framed "
        f"(test accuracy {reached})"
    )
    against = (
        f"all {epochs:.0f} epochs of `kerasio-tpu`, which claims 0.814, "
        "from two steps of each repeat"
    )
    return [row(what, against, "s", {"ours": spent, "peer": cost})]


def _cheap_training(table: pd.DataFrame, quick: bool) -> tuple[list[float], list[float]]:
    """CPU-seconds and test accuracy of five epochs of the small network, for three seeds."""
    start = time.process_time()
    accelerator = devices.use()

    from xraylib.training import recipes, train

    phase = recipes.Phase(1 if quick else 5, 1e-3, decay=True)
    reframed = recipes.get_recipe("tiny-cnn-28-reframed")
    cheap = dataclasses.replace(reframed, name="cheap", phases=(phase,))
    paths.REPORTS = paths.CACHE / "reports"
    paths.RUNS = paths.CACHE / "runs"
    imports = time.process_time() - start
    spent = []
    accuracies = []
    for seed in range(1 if quick else 3):
        shutil.rmtree(paths.CACHE / "pixels", ignore_errors=True)
        start = time.process_time()
        run = train.train(cheap, table.assign(), accelerator, seed=seed)
        spent.append(imports + time.process_time() - start)
        test = run.scores[run.scores["split"] == "test"]
        accuracies.append(((test["score"] >= run.threshold) == test["label"]).mean())
    return spent, accuracies


def _tutorial_seconds(trained_images: float, repeats: int, steps: int) -> list[float]:
    """CPU-seconds of the example's training on so many images, scaled from a few steps."""
    import keras

    from xraylib.training import networks, recipes

    recipe = recipes.get_recipe("kerasio-tpu")
    model = networks.build(recipe.network, recipe.size, recipe.head)
    model.compile(keras.optimizers.Adam(1e-3), "binary_crossentropy")
    batch = np.zeros((recipe.batch_size, recipe.size, recipe.size, 1), np.uint8)
    truth = np.arange(recipe.batch_size) % 2
    train_steps(model, batch, truth, 1)
    cost = []
    for _ in range(repeats):
        start = time.process_time()
        train_steps(model, batch, truth, steps)
        seconds_a_step = (time.process_time() - start) / steps
        cost.append(seconds_a_step * trained_images / recipe.batch_size)
    return cost


def shared(films: Path, quick: bool) -> list[dict]:
    """What sharing a batch costs: steps under JAX on one device and on four simulated ones."""
    spent: dict[int, list[float]] = {4: [], 1: []}
    for _ in range(1 if quick else 3):
        for count, values in spent.items():
            values.append(alone(_shared_steps, films, count, 2 if quick else 10))
    what = "Training step of `scratch-cnn` under JAX, batches of 32 shared by 4 simulated devices"
    times = {"ours": spent[4], "peer": spent[1]}
    return [row(what, "one device, the same cores", "s", times)]


def _shared_steps(films: Path, count: int, steps: int) -> float:
    devices.use("cpu", "jax", count)
    import keras

    from xraylib.training import networks, train

    table = manifest.load(films)
    pixels = images.load_pixels(table, 128)
    labels = table["label"].to_numpy()
    model = networks.build("scratch_cnn", 128, "sigmoid")
    model.compile(keras.optimizers.Adam(1e-3), "binary_crossentropy")
    rows = np.resize(np.arange(len(table)), 32 * steps)
    weights = np.ones(len(table), np.float32)
    batches = train.Batches(pixels, labels, rows, weights, 32)
    model.fit(batches, verbose=0)
    start = time.perf_counter()
    model.fit(batches, verbose=0)
    return (time.perf_counter() - start) / steps


def memory(films: Path, quick: bool) -> list[dict]:
    """Peak memory of decoding and of reading shards, each in a fresh process."""
    few = 30 if quick else 300
    many = 10 * few
    epoch = 20 * few
    repeats = 1 if quick else 3
    asked = {"few": ("load_pixels", few), "many": ("load_pixels", many), "stacked": ("stack", many)}
    peaks: dict[str, list[float]] = {name: [] for name in asked}
    for _ in range(repeats):
        for name, (how, count) in asked.items():
            peaks[name].append(alone(_peak, films, how, count))
    sharded = {}
    for count in (few, epoch):
        alone(_write_shards, films, count)
        sharded[count] = [alone(_peak, films, "shards", count) for _ in range(repeats)]
    decoding = f"Peak memory of `load_pixels`, {many} images of {SIZE} px"
    reading = f"Peak memory of an epoch read from shards, {epoch} images of {SIZE} px"
    fewer = f"the same, {few} images"
    stacked = "Pillow and `np.stack`, the same images"
    return [
        row(decoding, fewer, "MB", {"ours": peaks["many"], "peer": peaks["few"]}),
        row(decoding, stacked, "MB", {"ours": peaks["many"], "peer": peaks["stacked"]}),
        row(reading, fewer, "MB", {"ours": sharded[epoch], "peer": sharded[few]}),
    ]


def alone(work: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a fresh process: spawned, because a fork begins with our peak."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def _repeated(films: Path, count: int) -> pd.DataFrame:
    """A manifest of `count` films, which recur under other names."""
    table = manifest.load(films)
    table = table.iloc[np.resize(np.arange(len(table)), count)].reset_index(drop=True)
    table["image_id"] = [f"film-{number}" for number in range(count)]
    return table


def _write_shards(films: Path, count: int) -> None:
    """Write shards of `count` images into the cache."""
    folder = paths.CACHE / f"shards-{count}"
    shards.write(_repeated(films, count), SIZE, folder, images.decoded, images_per_shard=512)


def _peak(films: Path, how: str, count: int) -> float:
    """MB that this process has held at most after reading `count` images."""
    table = _repeated(films, count)
    if how == "shards":
        pixels = shards.Shards(paths.CACHE / f"shards-{count}", SIZE)
        rows = np.random.default_rng(0).permutation(count)
        for start in range(0, count, 32):
            pixels[rows[start : start + 32]]
    elif how == "load_pixels":
        shutil.rmtree(paths.CACHE / "pixels", ignore_errors=True)
        images.load_pixels(table, SIZE)
    else:
        decoded = (Image.open(path).convert("L").resize((SIZE, SIZE)) for path in table["path"])
        np.stack([np.asarray(image) for image in decoded])
    return _most_memory()


def _most_memory() -> float:
    """MB that this process has held at most."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1000


def audit(films: Path, quick: bool) -> list[dict]:
    """Time and memory of an audit of 1, 2, 4 and 8 times as many images, in fresh processes."""
    least = 30 if quick else 300
    repeats = 1 if quick else 3
    rates: dict[int, list[float]] = {}
    peaks: dict[int, list[float]] = {}
    for times in (1, 2, 4, 8):
        settings = phantom.PhantomSettings(images=times * least, size=112)
        folder = phantom.write(films.parent / f"audited-{times}", settings)
        measured = [alone(audited, folder) for _ in range(repeats)]
        rates[times] = [times * least / seconds for seconds, _ in measured]
        peaks[times] = [peak for _, peak in measured]
    rows = []
    for times in (2, 4, 8):
        title = f"Audit of {times * least} images of 112 px"
        rate = {"ours": rates[times], "peer": rates[1]}
        fewer = f"the same, {least} images"
        rows.append(
            {"what": title, "against": fewer, "unit": "images/s", "more_is_better": True, **rate}
        )
        peak = {"ours": peaks[times], "peer": peaks[1]}
        rows.append(row(f"Peak memory of the {title[0].lower()}{title[1:]}", fewer, "MB", peak))
    return rows


def audited(folder: Path) -> tuple[float, float]:
    """CPU-seconds of an audit, from the import on, and MB that this process has held at most."""
    from xraylib.datasets import catalog
    from xraylib.report import dataset_audit

    start = time.process_time()
    dataset_audit.audit_dataset(catalog.get_dataset(folder))
    return time.process_time() - start, _most_memory()


GROUPS = {
    "folder": read_folder,
    "bootstrap": bootstrap,
    "fit": fit,
    "step": step,
    "allocator": allocator,
    "memory": memory,
    "audit": audit,
    "shared": shared,
    "tutorial": tutorial,
}


def line(measured: dict[str, Any]) -> str:
    """Write one row of the Markdown table."""
    times = ratios(measured)
    medians = [statistics.median(measured[who]) for who in ("ours", "peer")]
    ours, peer = (f"{_digits(median)} {measured['unit']}" for median in medians)
    span = f"{_digits(min(times))}–{_digits(max(times))}"
    cells = [
        measured["what"],
        ours,
        f"{measured['against']}: {peer}",
        f"{_digits(statistics.median(times))} ({span})",
        f"{len(times)}",
    ]
    return f"| {' | '.join(cells)} |"


def ratios(measured: dict[str, Any]) -> list[float]:
    """How many times better ours is, of each pair."""
    pairs = zip(measured["ours"], measured["peer"], strict=True)
    if measured["more_is_better"]:
        return [ours / peer for ours, peer in pairs]
    return [peer / ours for ours, peer in pairs]


def draw(rows: list[dict], file: Path) -> None:
    """Draw every ratio with its range on one axis."""
    fig, ax = plt.subplots(figsize=(10, 0.5 * len(rows) + 1.2), layout="constrained")
    rows = rows[::-1]
    for height, measured in enumerate(rows):
        values = ratios(measured)
        ax.plot([min(values), max(values)], [height, height], color="#882255")
        ax.plot(statistics.median(values), height, "o", color="#882255")
    names = [f"{measured['what']}, against {measured['against']}" for measured in rows]
    names = [textwrap.fill(name.replace("`", ""), 75) for name in names]
    ax.set_yticks(range(len(rows)), names, fontsize=7.5)
    ax.set_xscale("log")
    ax.set_xlabel("times better than the other (below 1: worse); lines: range of repeats")
    ax.set_title("How fast and how small is it, compared with its peers?", loc="left")
    ax.axvline(1, color="black", linewidth=0.8)
    ax.spines[["top", "right"]].set_visible(False)
    fig.savefig(file, dpi=110, format="png")


def _digits(value: float) -> str:
    """Write three significant digits, or a whole number from 100 on."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main(quick: bool, groups: list[str]) -> None:
    """Measure the groups, keep what was measured of the others, and write the table."""
    kept = paths.ROOT / "reports" / "benchmarks.json"
    measured = json.loads(kept.read_text()) if kept.exists() and not quick else {}
    machine = describe_machine()
    with tempfile.TemporaryDirectory() as folder:
        settings = phantom.PhantomSettings(images=60 if quick else 600)
        written = phantom.write(Path(folder) / "films", settings)
        # Keras's reader would take the masks for images.
        shutil.rmtree(written / "masks")
        for group in groups:
            load = round(os.getloadavg()[0], 1)
            rows = run_group(group, written, Path(folder) / "cache", quick)
            measured[group] = {"machine": machine, "load": load, "rows": rows}
            # After each group, so that one that fails takes none of the others with it.
            if not quick:
                with storage.atomic_write(kept) as file:
                    file.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    measured = {group: measured[group] for group in GROUPS if group in measured}
    text = results_page(measured)
    print(text)
    if not quick:
        with storage.atomic_write(Path(__file__).with_name("results.md")) as file:
            file.write_text(text, encoding="utf-8")
        with storage.atomic_write(kept.with_suffix(".png")) as file:
            draw([row for each in measured.values() for row in each["rows"]], file)


def describe_machine() -> str:
    """Name the processor and the versions of what is compared."""
    names = ("keras", "scikit-learn", "numpy", "pillow")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    return f"{devices.use()}. {platform.system()}, Python {platform.python_version()}, {versions}."


def run_group(group: str, films: Path, cache: Path, quick: bool) -> list[dict]:
    """Measure one group in a fresh process."""
    environment = os.environ | {
        "XRAYLIB_CACHE": str(cache),
        "TQDM_DISABLE": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    command = [sys.executable, __file__, "--one", group, str(films)]
    if quick:
        command.append("--quick")
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def results_page(measured: dict[str, Any]) -> str:
    """Write the page of all groups."""
    machines = " ".join(sorted({each["machine"] for each in measured.values()}))
    loads = ", ".join(f"{group} {each['load']}" for group, each in measured.items())
    lines = [
        f"{ABOUT}\n{machines} Load at the start of each group: {loads}.\n",
        "| what | ours | the other | times better | repeats |",
        "|---|---|---|---|---|",
    ]
    for each in measured.values():
        lines += [line(measured_row) for measured_row in each["rows"]]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("groups", nargs="*", help=f"by default all: {', '.join(GROUPS)}")
    parser.add_argument("--one", nargs=2, metavar=("GROUP", "FILMS"), help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    if asked.one:
        group, films = asked.one
        print(json.dumps(GROUPS[group](Path(films), asked.quick)))
    else:
        main(asked.quick, asked.groups or list(GROUPS))
