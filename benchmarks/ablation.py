"""What each part of the flagship's training does: one change at a time, on a smaller and shorter training.

Usage: ablation.py [VARIANT ...] [--seeds N]. Needs the data set `kermany` (XRAYLIB_DATA) and MobileNetV2's ImageNet
weights (XRAYLIB_WEIGHTS or Keras's own). Goes on where it stopped. Writes to reports/kermany/ablation: the scores of
the official test, `scores.csv`, of each run validation and cost, `runs.csv`, and the table, `table.csv`.

The base is MobileNetV2 on 96 px, one epoch of the head at 1e-3, then two of all layers from 2e-4 down along a cosine,
batches of 32, random framing; the last epoch is scored. Validation is the flagship's: one seventh of the patients of
the training folder, another for each seed, AUC in three views.
"""

import argparse
import io
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter
from sklearn.metrics import roc_auc_score

from xraylib import devices, paths, storage
from xraylib.datasets import framing, images, manifest, splits
from xraylib.evaluation import resampling

HERE = devices.use()
import keras  # noqa: E402
from keras import layers  # noqa: E402

from xraylib.training import networks  # noqa: E402

FOLDER = paths.REPORTS / "kermany" / "ablation"
SIZE, BATCH, VIEWS = 224, 32, 8
ABOUT = ["image_id", "label", "patient"]


def random_framing() -> list[layers.Layer]:
    """Random framing, the augmentation of the base."""
    return [networks.RandomFraming()]


def mix(
    films: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Mixup (Zhang et al. 2018) with alpha .2."""
    share, other = rng.beta(0.2, 0.2), rng.permutation(len(films))
    return share * films + (1 - share) * films[other], share * labels + (1 - share) * labels[other]


def degrade(
    films: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Half of the films blurred (by up to 1.5 px), with noise (by up to 8 of 255), as JPEG of quality 30 to 90."""
    films = films.copy()
    for index in np.flatnonzero(rng.random(len(films)) < 0.5):
        film = Image.fromarray(films[index, ..., 0]).filter(
            ImageFilter.GaussianBlur(rng.uniform(0, 1.5))
        )
        noisy = np.asarray(film) + rng.normal(0, rng.uniform(0, 8), film.size[::-1])
        stream = io.BytesIO()
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(
            stream, "JPEG", quality=int(rng.integers(30, 91))
        )
        films[index, ..., 0] = np.asarray(Image.open(stream))
    return films, labels


@dataclass(frozen=True)
class Variant:
    """What differs from the base; `batch` changes films and labels of a batch before the network's layers do.

    `freeze` is a class of layers of the backbone that stay frozen throughout.
    """

    words: str
    augment: Callable[[], list[layers.Layer]] = random_framing
    batch: Callable | None = None
    size: int = 96
    init: str = "imagenet"
    epochs: tuple[int, int] = (1, 2)
    freeze: str = ""
    optimizer: dict = field(default_factory=dict)


VARIANTS = {
    "reframed": Variant("the base: random framing alone"),
    "none": Variant("no augmentation", augment=list),
    "rendered": Variant("random rendering alone", augment=lambda: [networks.RandomRendering()]),
    "reframed, rendered": Variant(
        "+ random gamma, contrast, brightness (the flagship's)",
        augment=lambda: [*random_framing(), networks.RandomRendering()],
    ),
    "blur, noise, JPEG": Variant("+ blur, noise, JPEG", batch=degrade),
    "erased": Variant(
        "+ random erasing",
        augment=lambda: [
            *random_framing(),
            layers.RandomErasing(factor=0.5, scale=(0.02, 0.2), value_range=(0, 255)),
        ],
    ),
    "mixup": Variant("+ mixup", batch=mix),
    "averaged weights": Variant(
        "+ exponential moving average of the weights",
        optimizer={"use_ema": True, "ema_momentum": 0.99},
    ),
    "frozen batch norm": Variant(
        "batch norm keeps its weights and statistics", freeze="BatchNormalization"
    ),
    "head only": Variant("the backbone stays frozen", epochs=(3, 0)),
    "no head first": Variant("all layers at once, no epoch of the head", epochs=(0, 3)),
    "random weights": Variant(
        "random weights, all layers at once; in so few steps batch norm's statistics stay behind",
        init="random",
        epochs=(0, 3),
    ),
    "64 px": Variant("64 px", size=64),
    "128 px": Variant("128 px", size=128),
}


class Batches(keras.utils.PyDataset):
    """Batches in the order of `rows`."""

    def __init__(
        self,
        films: np.ndarray,
        labels: np.ndarray,
        rows: np.ndarray,
        change: Callable | None,
        seed: int,
    ):
        super().__init__()
        self.films, self.labels, self.change, self.seed = films, labels, change, seed
        self.rows = rows.reshape(-1, BATCH)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        films, labels = (
            self.films[self.rows[index]],
            self.labels[self.rows[index]].astype("float32"),
        )
        if self.change:
            films, labels = self.change(films, labels, np.random.default_rng([self.seed, index]))
        return films.astype("float32"), labels


def network(variant: Variant) -> keras.Model:
    """The classifier, with the backbone as one layer of that name."""
    weights = networks.get_weights("mobilenetv2", variant.init)
    inputs = keras.Input((SIZE, SIZE, 1))
    x = inputs
    for layer in variant.augment():
        x = layer(x)
    x = layers.Resizing(variant.size, variant.size, antialias=True)(x)
    x = networks.backbone(x, "mobilenetv2", variant.size, weights)
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Dense(1, "sigmoid")(x))


def fit(
    variant: Variant, films: np.ndarray, labels: np.ndarray, rows: np.ndarray, seed: int
) -> keras.Model:
    """Train the network of a variant on some rows."""
    keras.utils.set_random_seed(seed)
    model, rng = network(variant), np.random.default_rng(seed)
    for epochs, rate, frozen in ((variant.epochs[0], 1e-3, True), (variant.epochs[1], 2e-4, False)):
        model.get_layer("backbone").trainable = not frozen
        for layer in model.get_layer("backbone").layers if not frozen else ():
            layer.trainable = type(layer).__name__ != variant.freeze
        if not frozen:
            rate = keras.optimizers.schedules.CosineDecay(
                rate, max(1, epochs * (len(rows) // BATCH)), alpha=0.01
            )
        model.compile(keras.optimizers.Adam(rate, **variant.optimizer), "binary_crossentropy")
        if epochs:  # in one go, because an average of weights takes their place when `fit` ends
            order = np.concatenate(
                [rng.permutation(rows)[: len(rows) // BATCH * BATCH] for _ in range(epochs)]
            )
            model.fit(Batches(films, labels, order, variant.batch, seed), verbose=0, shuffle=False)
    return model


def score(model: keras.Model, films: np.ndarray) -> np.ndarray:
    """P(pneumonia) of uint8 films, float64 `(n,)`."""
    parts = (films[start : start + 64].astype("float32") for start in range(0, len(films), 64))
    return np.concatenate(
        [np.asarray(model.predict_on_batch(part))[:, 0] for part in parts]
    ).astype(np.float64)


def score_views(model: keras.Model, films: np.ndarray) -> np.ndarray:
    """The mean log odds over `VIEWS` random framings, as a probability."""
    keras.utils.set_random_seed(0)
    frame, total = networks.RandomFraming(), np.zeros(len(films))
    for _ in range(VIEWS):
        parts = (films[start : start + 64].astype("float32") for start in range(0, len(films), 64))
        framed = np.concatenate([np.asarray(frame(part, training=True)) for part in parts])
        found = np.clip(score(model, framed), 1e-7, 1 - 1e-7)
        total += np.log(found / (1 - found)) / VIEWS
    return 1 / (1 + np.exp(-total))


def run(name: str, seed: int, films: np.ndarray, table: pd.DataFrame) -> None:
    """Train a variant once and append what it scored."""
    labels, started = table["label"].to_numpy(), time.perf_counter()
    assigned = splits.assign(table, "strict", seed, split_strategy="patient-grouped")
    rows = {
        split: assigned.index[assigned["split"] == split].to_numpy()
        for split in ("train", "val", "test")
    }
    model = fit(VARIANTS[name], films, labels, rows["train"], seed)
    seconds = time.perf_counter() - started
    own = films[rows["val"]]
    views = {"as it is": own} | framing.swaps(own, labels[rows["val"]], seed)
    ways = {name: score} | ({"8 views": score_views} if name == "reframed" else {})
    for way, scored in ways.items():
        found = {
            view: roc_auc_score(labels[rows["val"]], scored(model, shown))
            for view, shown in views.items()
        }
        record = (
            {"variant": way, "seed": seed} | found | {"seconds": seconds, "hardware": str(HERE)}
        )
        tests = table.loc[rows["test"], ABOUT].assign(
            **{f"{way}/{seed}": scored(model, films[rows["test"]])}
        )
        keep("scores.csv", lambda old, new=tests: new if old is None else joined(old, new))
        keep("runs.csv", lambda old, new=record: pd.concat([old, pd.DataFrame([new])]))
        print(record, flush=True)


def joined(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """Scores of the same images side by side; a column of a run that was cut is replaced."""
    return old.drop(columns=[c for c in new if c not in ABOUT], errors="ignore").merge(
        new, on=ABOUT
    )


def keep(name: str, change: Callable[[pd.DataFrame | None], pd.DataFrame]) -> None:
    """Replace a file by what `change` makes of it."""
    file = FOLDER / name
    file.parent.mkdir(parents=True, exist_ok=True)
    changed = change(pd.read_csv(file) if file.exists() else None)
    with storage.atomic_write(file) as temporary:
        changed.to_csv(temporary, index=False, float_format="%.7g")


def tabulate(runs: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """The table: of each variant the worst view of validation, the test AUC, and the difference to the base.

    The interval is over patients, with the runs as they are (DeLong), paired by seed.
    """
    labels, patients = scores["label"].to_numpy(), scores["patient"].to_numpy()
    words = {name: variant.words for name, variant in VARIANTS.items()} | {
        "8 views": "mean of 8 random framings"
    }
    found = []
    for name in [name for name in words if name in set(runs["variant"])]:
        own = runs[runs["variant"] == name]
        seeds = own["seed"].tolist()
        pairs = [f"{who}/{seed}" for who in (name, "reframed") for seed in seeds]
        aucs, covariance = resampling.delong(labels, scores[pairs].to_numpy().T, patients)
        k = len(seeds)
        signs = np.repeat([1 / k, -1 / k], k)
        difference, half = (
            signs @ aucs if name != "reframed" else np.nan,
            resampling.Z * np.sqrt(max(0.0, signs @ covariance @ signs)),
        )
        worst = own[["framing", "rendering", "both"]].min(axis=1)
        found.append(
            {
                "variant": name,
                "what": words[name],
                "runs": k,
                "validation_auc": own["as it is"].mean(),
                "validation_worst_view": worst.mean(),
                "test_auc": aucs[:k].mean(),
                "difference": difference,
                "low": difference - half,
                "high": difference + half,
            }
        )
    return pd.DataFrame(found)


def main() -> None:
    """Run what is asked for and not yet done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=", ".join(VARIANTS))
    parser.add_argument("--seeds", type=int, default=2)
    asked = parser.parse_args()
    if unknown := set(asked.variants) - set(VARIANTS):
        parser.error(
            f"no such variant: {', '.join(sorted(unknown))}. Fix: choose of {', '.join(VARIANTS)}."
        )
    table = manifest.load("kermany")
    films = images.load_pixels(table, SIZE)
    file = FOLDER / "runs.csv"
    for seed in range(asked.seeds):
        for name in dict.fromkeys(["reframed", *(asked.variants or VARIANTS)]):
            done = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=["variant", "seed"])
            if not ((done["variant"] == name) & (done["seed"] == seed)).any():
                run(name, seed, films, table)
                keep(
                    "table.csv",
                    lambda old: tabulate(
                        *(pd.read_csv(FOLDER / f"{kind}.csv") for kind in ("runs", "scores"))
                    ),
                )


if __name__ == "__main__":
    main()
