"""`make bench`: measure speed and memory against peers in the same run, and write benchmarks/results.md.

Usage: run.py [--quick] [GROUP FOLDER]. Each group runs in a process of its own with a cache of its own; Keras
is imported inside the groups that need it, because elsewhere it would count as memory. The numbers of
`--quick` show that everything runs; they are printed, not kept.
"""

import argparse
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
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from xraylib import devices, paths, storage
from xraylib.datasets import images, manifest, phantom

SIZE = 224
ABOUT = """# Speed and memory

Written by `make bench`. Every line is measured in one run on one machine, ours and the other in turn; the
ratio says how many times better ours is (below 1: worse), the median of the pairs with the least and the
highest. Files are in the operating system's cache for both.
"""


def alternate(ours: Callable[[], Any], peer: Callable[[], Any], repeats: int) -> dict[str, list[float]]:
    """Time two calls in turn, so that a change of the machine's load meets both."""
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(repeats):
        for name, work in (("ours", ours), ("peer", peer)):
            start = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - start)
    return times


def row(what: str, against: str, unit: str, times: dict[str, list[float]], count: float = 0) -> dict:
    """One line of the table; with `count`, seconds become `count` a second, and more is better."""
    if count:
        times = {name: [count / value for value in values] for name, values in times.items()}
    return {"what": what, "against": against, "unit": unit, "more_is_better": bool(count), **times}


def read_folder(films: Path, quick: bool) -> list[dict]:
    """From a folder to a uint8 array in memory, against Keras's own reader."""
    import keras

    def ours() -> np.ndarray:
        return np.array(images.load_pixels(manifest.load(films), SIZE))

    def read(batches: Any) -> np.ndarray:
        return np.concatenate([np.asarray(batch).astype(np.uint8) for batch in batches])

    options = {"labels": None, "color_mode": "grayscale", "shuffle": False, "verbose": False}
    prepared = keras.utils.image_dataset_from_directory(films, image_size=(SIZE, SIZE), **options)
    table = manifest.load(films)
    if ours().shape != read(prepared).shape:
        raise AssertionError("the readers found different images")

    def decode() -> np.ndarray:
        shutil.rmtree(paths.CACHE / "pixels", ignore_errors=True)
        return images.load_pixels(table, SIZE)

    rows = []
    for title, which, mine in (
        ("`load_pixels`, first time (check, decode, write the cache)", "one pass", decode),
        ("Folder to array, again (cache)", "second pass", ours),
    ):
        times = alternate(mine, lambda: read(prepared), 2 if quick else 5)
        title, against = (f"{title}, {len(table)} images of {SIZE} px", f"`image_dataset_from_directory`, {which}")
        rows.append(row(title, against, "images/s", times, len(table)))
    return rows


def bootstrap(films: Path, quick: bool) -> list[dict]:
    """Intervals that resample patients, against scikit-learn's AUC in a loop."""
    from sklearn.metrics import roc_auc_score

    from xraylib.evaluation import metrics, resampling

    size, resamples, looped = 624, resampling.RESAMPLES, 40 if quick else 200
    rng = np.random.default_rng(0)
    labels, patients = rng.permutation([0] * 234 + [1] * 390), rng.integers(0, 400, size)
    score = 1 / (1 + np.exp(-(rng.normal(size=size) + 2.2 * labels - 1.1)))
    table = pd.DataFrame({"label": labels, "score": score, "patient": patients.astype(str)})
    table["image_id"] = table.index.astype(str)
    table[["recipe", "protocol", "seed", "split", "kind"]] = ["any", "strict", 0, "test", "unknown"]
    own = [np.flatnonzero(patients == patient) for patient in np.unique(patients)]

    def loop() -> list[float]:
        chosen = np.random.default_rng(0).integers(0, len(own), (looped, len(own)))
        rows = (np.concatenate([own[patient] for patient in some]) for some in chosen)
        return [roc_auc_score(labels[some], score[some]) for some in rows]

    auc = partial(metrics.auc_interval, labels, score, patients)
    whole = partial(metrics.evaluate, table, rule=0.5)
    ends = np.percentile(loop(), [2.5, 97.5])
    if not np.allclose(auc()[1:], ends, atol=0.01) or not np.isclose(auc()[0], whole().loc["auc", "value"]):
        raise AssertionError(f"the intervals differ: {auc()}, {whole().loc['auc']}, {ends}")
    rows, against = [], f"`roc_auc_score` in a loop, AUC alone ({looped} resamples, scaled)"
    for what, work in (("`auc_interval`", auc), ("`evaluate`, six metrics", whole)):
        times = alternate(work, loop, 2 if quick else 5)
        times["peer"] = [value * resamples / looped for value in times["peer"]]
        title = f"{what}: {size} images, {len(own)} patients, {resamples} resamples"
        rows.append(row(title, against, "s", times))
    return rows


def fit(films: Path, quick: bool) -> list[dict]:
    """Training as `training.train` feeds it, epoch by epoch, against one call of Keras's `fit` on arrays."""
    devices.use()
    import keras

    from xraylib.training import networks, recipes, train

    def compiled(recipe: recipes.Recipe) -> keras.Model:
        model = networks.build(recipe.network, recipe.size, recipe.head)
        model.compile(keras.optimizers.Adam(1e-3), networks.HEADS[recipe.head].loss(), metrics=["accuracy"])
        return model

    rows, table, epochs = [], manifest.load(films), 2
    labels = table["label"].to_numpy()
    for name, count in (("tiny-cnn-28", 2400), ("scratch-cnn", 320)):
        recipe = recipes.get_recipe(name)
        pixels, count = images.load_pixels(table, recipe.size), count // 4 if quick else count
        chosen = np.resize(np.arange(len(pixels)), count // recipe.batch_size * recipe.batch_size)
        in_memory = np.array(pixels[chosen]), labels[chosen]
        mine, theirs, rng = compiled(recipe), compiled(recipe), np.random.default_rng(0)

        def ours(recipe=recipe, pixels=pixels, chosen=chosen, mine=mine, rng=rng) -> None:
            for _ in range(epochs):
                some, weights = train.balance(chosen, labels, recipe.imbalance, rng)
                fed = train.Batches(pixels, labels, rng.permutation(some), weights, recipe.batch_size)
                mine.fit(fed, epochs=1, verbose=0, shuffle=False)

        def peer(recipe=recipe, in_memory=in_memory, theirs=theirs) -> None:
            theirs.fit(*in_memory, batch_size=recipe.batch_size, epochs=epochs, verbose=0)

        ours(), peer()
        times = alternate(ours, peer, 2 if quick else 5)
        title = f"Training `{name}`, {recipe.size} px, batches of {recipe.batch_size}"
        rows.append(row(title, "`model.fit` on arrays in memory", "images/s", times, epochs * len(chosen)))
    return rows


def memory(films: Path, quick: bool) -> list[dict]:
    """Peak memory of decoding, each in a fresh process."""
    few, many = (30, 300) if quick else (300, 3000)
    asked = {"few": ("load_pixels", few), "many": ("load_pixels", many), "stacked": ("stack", many)}
    peaks: dict[str, list[float]] = {name: [] for name in asked}
    for _ in range(1 if quick else 3):
        for name, (how, count) in asked.items():
            # Spawned, not forked: a fork would begin with this process's peak.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                peaks[name].append(pool.submit(_peak, films, how, count).result())
    what, stacked = (
        f"Peak memory of `load_pixels`, {many} images of {SIZE} px",
        "Pillow and `np.stack`, the same images",
    )
    against = {f"the same, {few} images": "few", stacked: "stacked"}
    return [row(what, name, "MB", {"ours": peaks["many"], "peer": peaks[key]}) for name, key in against.items()]


def _peak(films: Path, how: str, count: int) -> float:
    """MB this process has held at most after reading `count` images; files recur under other names."""
    table = manifest.load(films)
    table = table.iloc[np.resize(np.arange(len(table)), count)].reset_index(drop=True)
    table["image_id"] = [f"film-{number}" for number in range(count)]
    if how == "load_pixels":
        shutil.rmtree(paths.CACHE / "pixels", ignore_errors=True)
        images.load_pixels(table, SIZE)
    else:
        np.stack([np.asarray(Image.open(path).convert("L")) for path in table["path"]])
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1000


GROUPS = {"folder": read_folder, "bootstrap": bootstrap, "fit": fit, "memory": memory}


def line(found: dict[str, Any]) -> str:
    """One row of the Markdown table."""
    unit, pairs = found["unit"], list(zip(found["ours"], found["peer"], strict=True))
    ratios = [mine / other if found["more_is_better"] else other / mine for mine, other in pairs]
    ours, peer, ratio = (_digits(statistics.median(values)) for values in (found["ours"], found["peer"], ratios))
    ratio = f"{ratio} ({_digits(min(ratios))}–{_digits(max(ratios))})"
    return f"| {found['what']} | {ours} {unit} | {found['against']}: {peer} {unit} | {ratio} | {len(pairs)} |"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main(quick: bool) -> None:
    """Measure all groups and write the table."""
    load, rows = os.getloadavg()[0], []
    with tempfile.TemporaryDirectory() as folder:
        written = phantom.write(Path(folder) / "films", phantom.PhantomSettings(images=60 if quick else 600))
        # Keras's reader would take the masks for radiographs.
        shutil.rmtree(written / "masks")
        quiet = {"XRAYLIB_CACHE": f"{folder}/cache", "TQDM_DISABLE": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
        for group in GROUPS:
            command = [sys.executable, __file__, group, str(written), *["--quick"] * quick]
            done = subprocess.run(command, env=os.environ | quiet, stdout=subprocess.PIPE, text=True, check=True)
            rows += json.loads(done.stdout.splitlines()[-1])
    names = ("keras", "scikit-learn", "numpy", "pillow")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    machine = f"{devices.use()}. {platform.system()}, Python {platform.python_version()}, {versions}."
    head = "| what | ours | the other | times better | repeats |\n|---|---|---|---|---|"
    text = "\n".join([f"{ABOUT}\n{machine} Load at the start: {load:.1f}.\n", head, *map(line, rows), ""])
    print(text)
    if not quick:
        with storage.atomic(Path(__file__).with_name("results.md")) as file:
            file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("group", nargs="?", choices=GROUPS)
    parser.add_argument("films", nargs="?", type=Path)
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    if asked.group:
        print(json.dumps(GROUPS[asked.group](asked.films, asked.quick)))
    else:
        main(asked.quick)
