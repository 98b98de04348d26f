"""`make bench`: measure speed and memory against peers in one run; write benchmarks/results.md, reports/benchmarks.*.

Usage: run.py [--quick] [GROUP ...]. Each group runs in a process of its own with a cache of its own; Keras
is imported inside the groups that need it, because elsewhere it would count as memory. The numbers of
`--quick` show that everything runs; they are printed, not kept.
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

Written by `make bench`. Every line is measured in one run on one machine, ours and the other in turn; the
ratio says how many times better ours is (below 1: worse), the median of the pairs with the least and the
highest. Files are in the operating system's cache for both.
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
    """From a folder to a uint8 array in memory, and to the batches of later epochs, against Keras's own reader."""
    import keras

    from xraylib.training import train

    def read(batches: Any) -> np.ndarray:
        return np.concatenate([np.asarray(batch).astype(np.uint8) for batch in batches])

    options = {"labels": None, "color_mode": "grayscale", "shuffle": False, "verbose": False}
    rows, repeats = [], 2 if quick else 5
    for name, folder in (("of 224 px", films), large(films, quick)):
        prepared = keras.utils.image_dataset_from_directory(
            folder, image_size=(SIZE, SIZE), **options
        )
        table = manifest.load(folder)
        if images.load_pixels(table, SIZE).shape != read(prepared).shape:
            raise AssertionError("the readers found different images")
        what = f"{len(table)} images {name}"

        def decode(table=table) -> np.ndarray:
            shutil.rmtree(paths.CACHE / "pixels", ignore_errors=True)
            return images.load_pixels(table, SIZE)

        def fresh(folder=folder) -> np.ndarray:
            return np.array(images.load_pixels(manifest.load(folder), SIZE))

        def peer(prepared=prepared) -> np.ndarray:
            return read(prepared)

        labels = table["label"].to_numpy()
        epoch = train.Batches(
            images.load_pixels(table, SIZE), labels, np.arange(len(table)), labels, 32
        )

        def later(epoch=epoch) -> None:
            for number in range(len(epoch)):
                epoch[number]

        for title, which, mine, count in (
            ("First pass (check, decode, write the cache)", "one pass", decode, len(table)),
            ("A pass of another process (find the cache, copy it)", "a pass", fresh, len(table)),
            (
                "A later epoch, batches of 32",
                "a later epoch, the same batches",
                later,
                epoch.rows.size,
            ),
        ):
            times = alternate(mine, peer, repeats)
            rows.append(
                row(
                    f"{title}, {what}",
                    f"`image_dataset_from_directory`, {which}",
                    "images/s",
                    times,
                    count,
                )
            )
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
    if not np.allclose(auc()[1:], ends, atol=0.01) or not np.isclose(
        auc()[0], whole().loc["auc", "value"]
    ):
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
        model.compile(
            keras.optimizers.Adam(1e-3), networks.HEADS[recipe.head].loss(), metrics=["accuracy"]
        )
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
                fed = train.Batches(
                    pixels, labels, rng.permutation(some), weights, recipe.batch_size
                )
                mine.fit(fed, epochs=1, verbose=0, shuffle=False)

        def peer(recipe=recipe, in_memory=in_memory, theirs=theirs) -> None:
            theirs.fit(*in_memory, batch_size=recipe.batch_size, epochs=epochs, verbose=0)

        ours(), peer()
        times = alternate(ours, peer, 2 if quick else 5)
        title = f"Training `{name}`, {recipe.size} px, batches of {recipe.batch_size}"
        rows.append(
            row(title, "`model.fit` on arrays in memory", "images/s", times, epochs * len(chosen))
        )
    return rows


def step(films: Path, quick: bool) -> list[dict]:
    """What of a training step is input, and what augmentation: the flagship's, and Keras's own layers for the same."""
    devices.use()
    import keras
    from keras import layers

    from xraylib.training import networks, recipes, train

    recipe, table = recipes.get_recipe("flagship"), manifest.load(films)
    labels = table["label"].to_numpy()
    # Zoom and shift of rows and columns by themselves, gamma left out: there is no such layer.
    same = [layers.RandomZoom((-0.38, 0.0), (-0.38, 0.0)), layers.RandomTranslation(0.19, 0.19)]
    same += [
        layers.RandomContrast(0.3, value_range=(0, 255)),
        layers.RandomBrightness(0.15, value_range=(0, 255)),
    ]
    keras_own = keras.Sequential(
        [keras.Input((recipe.size, recipe.size, 1)), layers.Rescaling(1.0), *same]
    )
    models = {}
    for name, augmentation in (("none", None), ("ours", recipe.augmentation)):
        model = networks.build(recipe.network, recipe.size, recipe.head, augmentation=augmentation)
        models[name] = model
    inputs = keras.Input((recipe.size, recipe.size, 1))
    models["keras"] = keras.Model(inputs, models["none"](keras_own(inputs)))
    rows, repeats, steps = [], 2 if quick else 5, 1 if quick else 4
    pixels = images.load_pixels(table, recipe.size)
    fed = train.Batches(
        pixels, labels, np.arange(len(table)), np.ones(len(table), np.float32), recipe.batch_size
    )
    films_of_a_step, truth, _ = fed[0]

    def trained(
        model: Any, films: Any = films_of_a_step, truth: Any = truth, steps: int = steps
    ) -> Callable[[], None]:
        def run() -> None:
            for _ in range(steps):
                model.train_on_batch(films, truth)

        return run

    for model in models.values():
        model.compile(keras.optimizers.Adam(1e-3), "binary_crossentropy")
        trained(model, steps=1)()
    for name, words in (
        ("ours", "its random framing and rendering"),
        ("keras", "Keras's random layers instead"),
    ):
        times = alternate(trained(models[name]), trained(models["none"]), repeats)
        what = f"Training step of `flagship`, 160 px, batches of {recipe.batch_size}, with {words}"
        rows.append(row(what, "without augmentation", "images/s", times, steps * recipe.batch_size))
    for name in ("tiny-cnn-28", "scratch-cnn", "flagship"):
        other = recipes.get_recipe(name)
        fed = train.Batches(
            images.load_pixels(table, other.size), labels, np.arange(len(table)), labels, 32
        )
        model = networks.build(
            other.network, other.size, other.head, augmentation=other.augmentation
        )
        model.compile(keras.optimizers.Adam(1e-3), networks.HEADS[other.head].loss())
        batch, truth, _ = fed[0]
        trained(model, batch, truth, 1)()
        times = alternate(partial(fed.__getitem__, 1), trained(model, batch, truth, 1), repeats)
        rows.append(
            row(f"Batch of 32 of `{name}` from the cache", "the training step it feeds", "s", times)
        )
    return rows


def allocator(films: Path, quick: bool) -> list[dict]:
    """CPU-seconds of training with `devices.steady_memory` and without, each in a fresh process."""
    spent: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(1 if quick else 3):
        for steady, values in spent.items():
            values.append(_alone(_cpu_seconds, films, steady, 8 if quick else 40))
    what = "CPU-seconds of 40 steps of `scratch-cnn`, batches of 32, memory kept (`devices.steady_memory`)"
    return [row(what, "glibc's own settings", "s", {"ours": spent[True], "peer": spent[False]})]


def _cpu_seconds(films: Path, steady: bool, steps: int) -> float:
    if not steady:
        devices.steady_memory = lambda: None
    devices.use()
    import keras

    from xraylib.training import networks

    table = manifest.load(films)
    pixels, labels = images.load_pixels(table, 128)[:32], table["label"].to_numpy()[:32]
    model = networks.build("scratch_cnn", 128, "sigmoid")
    model.compile(keras.optimizers.Adam(1e-3), "binary_crossentropy")
    model.train_on_batch(pixels, labels)
    start = time.process_time()
    for _ in range(steps):
        model.train_on_batch(pixels, labels)
    return time.process_time() - start


def tutorial(films: Path, quick: bool) -> list[dict]:
    """CPU-seconds from Kermany's files to the accuracy that the keras.io example claims, against its own training.

    Ours: decoding into an empty cache, then `tiny-cnn-28-reframed` for five epochs. The example: the steps of the
    epochs that `kerasio-tpu` took under `strict`, scaled from a few, its decoding left out.
    """
    try:
        table = manifest.load("kermany")
    except errors.NotFoundError:
        return []
    start = time.process_time()
    accelerator = devices.use()

    from xraylib.training import networks, recipes, runs, train

    cheap = recipes.get_recipe("tiny-cnn-28-reframed")
    cheap = dataclasses.replace(
        cheap, name="cheap", phases=(recipes.Phase(1 if quick else 5, 1e-3, decay=True),)
    )
    paths.REPORTS, paths.RUNS = paths.CACHE / "reports", paths.CACHE / "runs"
    begun, spent, accuracy = time.process_time() - start, [], []
    for seed in range(1 if quick else 3):
        shutil.rmtree(paths.CACHE / "pixels", ignore_errors=True)
        start = time.process_time()
        run = train.train(cheap, table.assign(), accelerator, seed=seed)
        spent.append(begun + time.process_time() - start)
        test = run.scores[run.scores["split"] == "test"]
        accuracy.append(((test["score"] >= run.threshold) == test["label"]).mean())
    import keras

    peer = recipes.get_recipe("kerasio-tpu")
    model = networks.build(peer.network, peer.size, peer.head)
    model.compile(keras.optimizers.Adam(1e-3), "binary_crossentropy")
    batch = (
        np.zeros((peer.batch_size, peer.size, peer.size, 1), np.uint8),
        np.arange(peer.batch_size) % 2,
    )
    model.train_on_batch(*batch)
    paths.REPORTS = paths.ROOT / "reports"
    published = runs.list_runs("kermany", peer.name, "strict")
    epochs = statistics.mean(run.settings["epochs"] for run in published)
    steps, cost, some = (
        epochs * (len(table) - len(published[0].scores)) / peer.batch_size,
        [],
        1 if quick else 2,
    )
    for _ in spent:
        start = time.process_time()
        for _ in range(some):
            model.train_on_batch(*batch)
        cost.append((time.process_time() - start) / some * steps)
    reached = ", ".join(f"{value:.3f}" for value in accuracy)
    what = f"CPU-seconds from Kermany's files: five epochs of `{cheap.network}`, re-framed (test accuracy {reached})"
    against = f"all {epochs:.0f} epochs of `kerasio-tpu`, which claims 0.814, from two steps of each repeat"
    return [row(what, against, "s", {"ours": spent, "peer": cost})]


def shared(films: Path, quick: bool) -> list[dict]:
    """What sharing a batch costs: the same steps under JAX on one device and on four simulated ones."""
    spent: dict[int, list[float]] = {4: [], 1: []}
    for _ in range(1 if quick else 3):
        for count, values in spent.items():
            values.append(_alone(_shared_steps, films, count, 2 if quick else 10))
    what = "Training step of `scratch-cnn` under JAX, batches of 32 shared by 4 simulated devices"
    times = {"ours": spent[4], "peer": spent[1]}
    return [row(what, "one device, the same cores", "s", times)]


def _shared_steps(films: Path, count: int, steps: int) -> float:
    devices.use("cpu", "jax", count)
    import keras

    from xraylib.training import networks, train

    table = manifest.load(films)
    pixels, labels = images.load_pixels(table, 128), table["label"].to_numpy()
    model = networks.build("scratch_cnn", 128, "sigmoid")
    model.compile(keras.optimizers.Adam(1e-3), "binary_crossentropy")
    rows, weights = np.resize(np.arange(len(table)), 32 * steps), np.ones(len(table), np.float32)
    fed = train.Batches(pixels, labels, rows, weights, 32)
    model.fit(fed, verbose=0)
    start = time.perf_counter()
    model.fit(fed, verbose=0)
    return (time.perf_counter() - start) / steps


def memory(films: Path, quick: bool) -> list[dict]:
    """Peak memory of decoding, each in a fresh process."""
    few, many = (30, 300) if quick else (300, 3000)
    asked = {"few": ("load_pixels", few), "many": ("load_pixels", many), "stacked": ("stack", many)}
    peaks: dict[str, list[float]] = {name: [] for name in asked}
    for _ in range(1 if quick else 3):
        for name, (how, count) in asked.items():
            peaks[name].append(_alone(_peak, films, how, count))
    what, stacked = (
        f"Peak memory of `load_pixels`, {many} images of {SIZE} px",
        "Pillow and `np.stack`, the same images",
    )
    against = {f"the same, {few} images": "few", stacked: "stacked"}
    rows = [
        row(what, name, "MB", {"ours": peaks["many"], "peer": peaks[key]})
        for name, key in against.items()
    ]
    sharded: dict[int, list[float]] = {few: [], 20 * few: []}
    for count, values in sharded.items():
        _alone(_write_shards, films, count)
        values += [_alone(_peak, films, "shards", count) for _ in range(1 if quick else 3)]
    what = f"Peak memory of an epoch read from shards, {20 * few} images of {SIZE} px"
    return [
        *rows,
        row(
            what, f"the same, {few} images", "MB", {"ours": sharded[20 * few], "peer": sharded[few]}
        ),
    ]


def _alone(work: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a fresh process. Spawned, not forked: a fork would begin with this process's peak."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def _repeated(films: Path, count: int) -> pd.DataFrame:
    """A manifest of `count` films, which recur under other names."""
    table = manifest.load(films)
    table = table.iloc[np.resize(np.arange(len(table)), count)].reset_index(drop=True)
    table["image_id"] = [f"film-{number}" for number in range(count)]
    return table


def _write_shards(films: Path, count: int) -> None:
    shards.write(
        _repeated(films, count), SIZE, paths.CACHE / f"shards-{count}", images.decoded, 512
    )


def _peak(films: Path, how: str, count: int) -> float:
    """MB this process has held at most after reading `count` images."""
    table = _repeated(films, count)
    if how == "shards":
        found, rows = (
            shards.Shards(paths.CACHE / f"shards-{count}", SIZE),
            np.random.default_rng(0).permutation(count),
        )
        for start in range(0, count, 32):
            found[rows[start : start + 32]]
    elif how == "load_pixels":
        shutil.rmtree(paths.CACHE / "pixels", ignore_errors=True)
        images.load_pixels(table, SIZE)
    else:
        np.stack(
            [
                np.asarray(Image.open(path).convert("L").resize((SIZE, SIZE)))
                for path in table["path"]
            ]
        )
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1000


GROUPS = {
    **{"folder": read_folder, "bootstrap": bootstrap, "fit": fit, "step": step},
    **{"allocator": allocator, "memory": memory, "shared": shared, "tutorial": tutorial},
}


def line(found: dict[str, Any]) -> str:
    """One row of the Markdown table."""
    unit, times = found["unit"], ratios(found)
    ours, peer, ratio = (
        _digits(statistics.median(values)) for values in (found["ours"], found["peer"], times)
    )
    ratio = f"{ratio} ({_digits(min(times))}–{_digits(max(times))})"
    return f"| {found['what']} | {ours} {unit} | {found['against']}: {peer} {unit} | {ratio} | {len(times)} |"


def ratios(found: dict[str, Any]) -> list[float]:
    """How many times better ours is, of each pair."""
    pairs = zip(found["ours"], found["peer"], strict=True)
    return [mine / other if found["more_is_better"] else other / mine for mine, other in pairs]


def draw(rows: list[dict], file: Path) -> None:
    """Every ratio with its range, on one axis."""
    fig, ax = plt.subplots(figsize=(10, 0.42 * len(rows) + 1), layout="constrained")
    for place, found in enumerate(reversed(rows)):
        values = ratios(found)
        ax.plot([min(values), max(values)], [place] * 2, color="#882255")
        ax.plot(statistics.median(values), place, "o", color="#882255")
    names = [
        textwrap.shorten(found["what"].replace("`", ""), 75, placeholder=" …")
        for found in reversed(rows)
    ]
    ax.set(
        yticks=range(len(rows)),
        yticklabels=names,
        xscale="log",
        xlabel="times better than the other (below 1: worse)",
    )
    ax.axvline(1, color="black", linewidth=0.8)
    ax.spines[["top", "right"]].set_visible(False)
    fig.savefig(file, dpi=110, format="png")


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main(quick: bool, groups: list[str]) -> None:
    """Measure the groups, keep what was measured of the others, and write the table."""
    kept = paths.ROOT / "reports" / "benchmarks.json"
    found = json.loads(kept.read_text()) if kept.exists() and not quick else {}
    names = ("keras", "scikit-learn", "numpy", "pillow")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    machine = (
        f"{devices.use()}. {platform.system()}, Python {platform.python_version()}, {versions}."
    )
    with tempfile.TemporaryDirectory() as folder:
        written = phantom.write(
            Path(folder) / "films", phantom.PhantomSettings(images=60 if quick else 600)
        )
        # Keras's reader would take the masks for radiographs.
        shutil.rmtree(written / "masks")
        quiet = {
            "XRAYLIB_CACHE": f"{folder}/cache",
            "TQDM_DISABLE": "1",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        for group in groups:
            load = round(os.getloadavg()[0], 1)
            command = [sys.executable, __file__, "--one", group, str(written), *["--quick"] * quick]
            done = subprocess.run(
                command, env=os.environ | quiet, stdout=subprocess.PIPE, text=True, check=True
            )
            found[group] = {
                "machine": machine,
                "load": load,
                "rows": json.loads(done.stdout.splitlines()[-1]),
            }
            if not quick:  # so that a group that fails takes none of the others with it
                with storage.atomic_write(kept) as file:
                    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    found = {group: found[group] for group in GROUPS if group in found}
    rows = [one for each in found.values() for one in each["rows"]]
    machines = sorted({each["machine"] for each in found.values()})
    loads = ", ".join(f"{group} {each['load']}" for group, each in found.items())
    head = "| what | ours | the other | times better | repeats |\n|---|---|---|---|---|"
    about = f"{ABOUT}\n{' '.join(machines)} Load at the start of each group: {loads}.\n"
    text = "\n".join([about, head, *map(line, rows), ""])
    print(text)
    if not quick:
        with storage.atomic_write(Path(__file__).with_name("results.md")) as file:
            file.write_text(text, encoding="utf-8")
        with storage.atomic_write(kept.with_suffix(".png")) as file:
            draw(rows, file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("groups", nargs="*", help=f"by default all: {', '.join(GROUPS)}")
    parser.add_argument("--one", nargs=2, metavar=("GROUP", "FILMS"), help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(GROUPS[asked.one[0]](Path(asked.one[1]), asked.quick)))
    else:
        main(asked.quick, asked.groups or list(GROUPS))
