"""What `run.py` measures, one function a group; each group runs in a process of its own.

Usage: measurements.py GROUP FOLDER [--quick]. The rows go to FOLDER/GROUP.json; the group `phantom` comes
first, because it writes the radiographs the others read. Keras is imported inside the groups that need it:
outside them it would count as memory, and `accelerators.use` must come before it.
"""

import argparse
import json
import multiprocessing
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from xraylib import paths
from xraylib.datasets import catalog, images, phantom

SIZE = 224


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def alternate(ours: Callable[[], Any], peer: Callable[[], Any], repeats: int) -> dict[str, list[float]]:
    """Time two calls in turn, so that a change of the machine's load meets both."""
    pairs = [(seconds(ours), seconds(peer)) for _ in range(repeats)]
    return {"ours": [pair[0] for pair in pairs], "peer": [pair[1] for pair in pairs]}


def row(what: str, against: str, unit: str, times: dict[str, list[float]], count: float = 0) -> dict:
    """One line of the table; with `count`, seconds become `count` a second, and more is better."""
    if count:
        times = {side: [count / value for value in values] for side, values in times.items()}
    return {"what": what, "against": against, "unit": unit, "more_is_better": bool(count), **times}


def write_phantom(folder: Path, quick: bool) -> list[dict]:
    """Write the phantom; it has no peer."""
    settings = phantom.PhantomSettings(images=60 if quick else 600, size=SIZE)
    written = [folder / f"phantom-{repeat}" for repeat in range(1 if quick else 3)]
    times = [seconds(lambda to=to: phantom.write(to, settings)) for to in written]
    # The masks stay behind: Keras's reader would take them for radiographs.
    for split in ("train", "val", "test"):
        (folder / "films").mkdir(exist_ok=True)
        (written[-1] / split).rename(folder / "films" / split)
    what = f"`phantom.write`, {settings.images} images of {SIZE} px"
    return [row(what, "", "s", {"ours": times, "peer": []})]


def read_folder(folder: Path, quick: bool) -> list[dict]:
    """From a folder to a uint8 array in memory, against Keras's own reader."""
    import keras

    films = folder / "films"

    def ours() -> np.ndarray:
        return np.array(images.load_pixels(catalog.load(films), SIZE, progress=False))

    def cold() -> np.ndarray:
        shutil.rmtree(paths.CACHE, ignore_errors=True)
        return ours()

    def dataset() -> Any:
        return keras.utils.image_dataset_from_directory(
            films, labels=None, color_mode="grayscale", image_size=(SIZE, SIZE), shuffle=False, verbose=False
        )

    def read(batches: Any) -> np.ndarray:
        return np.concatenate([np.asarray(batch).astype(np.uint8) for batch in batches])

    prepared = dataset()
    shapes = ours().shape, read(prepared).shape
    if shapes[0] != shapes[1]:
        raise AssertionError(f"the readers found {shapes[0]} and {shapes[1]}")
    manifest, count, repeats = catalog.load(films), shapes[0][0], 2 if quick else 5

    def decode() -> np.ndarray:
        shutil.rmtree(paths.CACHE / "pixels", ignore_errors=True)
        return images.load_pixels(manifest, SIZE, progress=False)

    against = "`image_dataset_from_directory`"
    rows = (
        (
            "`load_pixels`, first time (check, decode, write the cache)",
            "one pass",
            decode,
            lambda: read(prepared),
        ),
        (
            "Folder to array, first time (index as well)",
            "from the folder, one pass",
            cold,
            lambda: read(dataset()),
        ),
        ("Folder to array, again (cache)", "second pass", ours, lambda: read(prepared)),
    )
    return [
        row(
            f"{title}, {count} images of {SIZE} px",
            f"{against}, {which}",
            "images/s",
            alternate(mine, theirs, repeats),
            count,
        )
        for title, which, mine, theirs in rows
    ]


def bootstrap(folder: Path, quick: bool) -> list[dict]:
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
        draws = np.random.default_rng(0).integers(0, len(own), (looped, len(own)))
        chosen = (np.concatenate([own[patient] for patient in draw]) for draw in draws)
        return [roc_auc_score(labels[rows], score[rows]) for rows in chosen]

    def auc() -> tuple[float, float, float]:
        return metrics.auc_interval(labels, score, patients)

    def whole() -> pd.DataFrame:
        return metrics.evaluate(table, rule=0.5)

    ends = np.percentile(loop(), [2.5, 97.5])
    if not np.allclose(auc()[1:], ends, atol=0.01) or not np.isclose(auc()[0], whole().loc["auc", "value"]):
        raise AssertionError(f"the intervals differ: {auc()}, {whole().loc['auc']}, {ends}")
    rows, against = [], f"`roc_auc_score` in a loop, AUC alone ({looped} resamples, scaled)"
    for what, work in (("`auc_interval`", auc), ("`evaluate`, six metrics", whole)):
        times = alternate(work, loop, 2 if quick else 5)
        times["peer"] = [value * resamples / looped for value in times["peer"]]
        title = f"{what}: interval of {size} images, {len(own)} patients, {resamples} resamples"
        rows.append(row(title, against, "s", times))
    return rows


def fit(folder: Path, quick: bool) -> list[dict]:
    """Training as `training.train` feeds it, epoch by epoch, against one call of Keras's `fit` on arrays."""
    from xraylib import devices

    devices.use()
    rows = []
    for name, count in (("tiny-cnn-28", 2400), ("scratch-cnn", 320)):
        rows.append(_throughput(name, count // 4 if quick else count, catalog.load(folder / "films"), quick))
    return rows


def _throughput(name: str, count: int, manifest: pd.DataFrame, quick: bool) -> dict:
    import keras

    from xraylib.training import batches, models, recipes

    recipe, epochs = recipes.get_recipe(name), 2
    pixels = images.load_pixels(manifest, recipe.size, progress=False)
    labels = manifest["label"].to_numpy()
    chosen = np.resize(np.arange(len(pixels)), count // recipe.batch_size * recipe.batch_size)
    in_memory = np.array(pixels[chosen]), labels[chosen]

    def network() -> keras.Model:
        model = models.build(recipe.network, recipe.size, recipe.head)
        model.compile(keras.optimizers.Adam(1e-3), models.HEADS[recipe.head].loss(), metrics=["accuracy"])
        return model

    mine, theirs, rng = network(), network(), np.random.default_rng(0)

    def ours() -> None:
        for _ in range(epochs):
            rows, weights = batches.balance(chosen, labels, recipe.imbalance, rng)
            fed = batches.Batches(pixels, labels, rng.permutation(rows), weights, recipe.batch_size)
            mine.fit(fed, epochs=1, verbose=0, shuffle=False)

    def peer() -> None:
        theirs.fit(*in_memory, batch_size=recipe.batch_size, epochs=epochs, verbose=0)

    ours(), peer()
    times = alternate(ours, peer, 2 if quick else 5)
    title = f"Training `{name}`, {recipe.size} px, batches of {recipe.batch_size}"
    return row(title, "`model.fit` on arrays in memory", "images/s", times, epochs * len(chosen))


def memory(folder: Path, quick: bool) -> list[dict]:
    """Peak memory of decoding, each in a fresh process."""
    few, many = (30, 300) if quick else (300, 3000)
    ways = {"few": ("load_pixels", few), "many": ("load_pixels", many), "stacked": ("stack", many)}
    peaks: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(1 if quick else 3):
        for name, way in ways.items():
            # Spawned, not forked: a fork would begin with this process's peak.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                peaks[name].append(pool.submit(_peak, folder, *way).result())
    what = f"Peak memory of `load_pixels`, {many} images of {SIZE} px"
    stacked = "Pillow and `np.stack`, the same images"
    return [
        row(what, f"the same, {few} images", "MB", {"ours": peaks["many"], "peer": peaks["few"]}),
        row(what, stacked, "MB", {"ours": peaks["many"], "peer": peaks["stacked"]}),
    ]


def _peak(folder: Path, way: str, count: int) -> float:
    """MB this process has held at most after reading `count` images; files recur under other names."""
    manifest = catalog.load(folder / "films")
    manifest = manifest.iloc[np.resize(np.arange(len(manifest)), count)].reset_index(drop=True)
    manifest["image_id"] = [f"film-{number}" for number in range(count)]
    if way == "load_pixels":
        shutil.rmtree(paths.CACHE / "pixels", ignore_errors=True)
        kept = images.load_pixels(manifest, SIZE, progress=False)
    else:
        kept = np.stack([np.asarray(Image.open(path).convert("L")) for path in manifest["path"]])
    if len(kept) != count:
        raise AssertionError(f"{way} read {len(kept)} of {count} images")
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1000


def frozen_features(folder: Path, quick: bool) -> list[dict]:
    """Features of a frozen network: computed, against read back."""
    from xraylib import devices

    devices.use()
    from xraylib.training import features, models

    manifest, weights = catalog.load(folder / "films"), models.get_weights("mobilenetv2", "random")
    images.load_pixels(manifest, SIZE, progress=False)

    def read() -> np.ndarray:
        return features.pooled(manifest, "mobilenetv2", SIZE, weights, seed=0)

    def compute() -> np.ndarray:
        shutil.rmtree(paths.CACHE / "features", ignore_errors=True)
        return read()

    times = alternate(compute, read, 1 if quick else 3)
    what = f"`features.pooled`, read back: MobileNetV2, {len(manifest)} images of {SIZE} px"
    return [row(what, "the same, computed", "s", {"ours": times["peer"], "peer": times["ours"]})]


GROUPS = {
    "phantom": write_phantom,
    "folder": read_folder,
    "bootstrap": bootstrap,
    "fit": fit,
    "memory": memory,
    "features": frozen_features,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("group", choices=GROUPS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    found = GROUPS[asked.group](asked.folder, asked.quick)
    (asked.folder / f"{asked.group}.json").write_text(json.dumps(found))
