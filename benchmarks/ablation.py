"""What each part of the flagship's training does: one change at a time, on a shorter training.

Usage: ablation.py [VARIANT ...] [--seeds N]. Needs the data set `kermany` (XRAYLIB_DATA) and
MobileNetV2's ImageNet weights (XRAYLIB_WEIGHTS or Keras's own). An interrupted run is continued by
the same command. Writes to reports/kermany/ablation: `scores.csv`, the scores of the official test,
`runs.csv`, validation and cost of each run, and `table.csv`.

The base is MobileNetV2 on 96 px, one epoch of the head at 1e-3, then two of all layers from 2e-4
down along a cosine, batches of 32, random framing; the last epoch is scored. Validation is the
flagship's: one seventh of the patients of the training folder, another for each seed, AUC in three
views.
"""

import argparse
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter
from sklearn.metrics import roc_auc_score

from xraylib import devices, paths, storage
from xraylib.datasets import framing, images, manifest, splits
from xraylib.evaluation import resampling

HARDWARE = devices.use()
import keras  # noqa: E402
from keras import layers  # noqa: E402

from xraylib.training import networks  # noqa: E402

FOLDER = paths.REPORTS / "kermany" / "ablation"
SIZE = 224
BATCH = 32
SCORED_AT_ONCE = 64
# Random framings that the variant `8 views` averages.
VIEWS = 8
IMAGE_COLUMNS = ["image_id", "label", "patient"]


def random_framing() -> list[layers.Layer]:
    """Random framing, the augmentation of the base."""
    return [networks.RandomFraming()]


def mix(
    pixels: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Mixup (Zhang et al. 2018) with alpha 0.2."""
    share = rng.beta(0.2, 0.2)
    other = rng.permutation(len(pixels))
    mixed = share * pixels + (1 - share) * pixels[other]
    return mixed, share * labels + (1 - share) * labels[other]


def degrade(
    pixels: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Degrade half of the images: blur to 1.5 px, noise to 8 of 255, JPEG quality 30 to 90."""
    pixels = pixels.copy()
    for index in np.flatnonzero(rng.random(len(pixels)) < 0.5):
        blur = ImageFilter.GaussianBlur(rng.uniform(0, 1.5))
        image = Image.fromarray(pixels[index, ..., 0]).filter(blur)
        noisy = np.asarray(image) + rng.normal(0, rng.uniform(0, 8), image.size[::-1])
        stream = io.BytesIO()
        noisy_image = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
        noisy_image.save(stream, "JPEG", quality=int(rng.integers(30, 91)))
        pixels[index, ..., 0] = np.asarray(Image.open(stream))
    return pixels, labels


@dataclass(frozen=True)
class Variant:
    """What differs from the base; `batch` changes pixels and labels before the network sees them.

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
        pixels: np.ndarray,
        labels: np.ndarray,
        rows: np.ndarray,
        change: Callable | None,
        seed: int,
    ):
        super().__init__()
        self.pixels = pixels
        self.labels = labels
        self.change = change
        self.seed = seed
        self.rows = rows.reshape(-1, BATCH)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        rows = self.rows[index]
        pixels = self.pixels[rows]
        labels = self.labels[rows].astype("float32")
        if self.change:
            rng = np.random.default_rng([self.seed, index])
            pixels, labels = self.change(pixels, labels, rng)
        return pixels.astype("float32"), labels


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
    variant: Variant, pixels: np.ndarray, labels: np.ndarray, rows: np.ndarray, seed: int
) -> keras.Model:
    """Train the network of a variant on some rows: first its head, then all layers."""
    keras.utils.set_random_seed(seed)
    model = network(variant)
    rng = np.random.default_rng(seed)
    steps = len(rows) // BATCH
    head_epochs, all_epochs = variant.epochs
    decay = keras.optimizers.schedules.CosineDecay(2e-4, max(1, all_epochs * steps), alpha=0.01)
    for epochs, rate, frozen in ((head_epochs, 1e-3, True), (all_epochs, decay, False)):
        backbone = model.get_layer("backbone")
        backbone.trainable = not frozen
        for layer in backbone.layers if not frozen else ():
            layer.trainable = type(layer).__name__ != variant.freeze
        optimizer = keras.optimizers.Adam(rate, **variant.optimizer)
        model.compile(optimizer, "binary_crossentropy")
        if epochs:
            # In one call, because an average of weights takes their place when `fit` ends.
            order = [rng.permutation(rows)[: steps * BATCH] for _ in range(epochs)]
            batches = Batches(pixels, labels, np.concatenate(order), variant.batch, seed)
            model.fit(batches, verbose=0, shuffle=False)
    return model


def parts(pixels: np.ndarray) -> Iterator[np.ndarray]:
    """Divide images into batches for scoring."""
    for start in range(0, len(pixels), SCORED_AT_ONCE):
        yield pixels[start : start + SCORED_AT_ONCE].astype("float32")


def score(model: keras.Model, pixels: np.ndarray) -> np.ndarray:
    """P(pneumonia) of uint8 images, float64 `(n,)`."""
    scores = [np.asarray(model.predict_on_batch(part))[:, 0] for part in parts(pixels)]
    return np.concatenate(scores).astype(np.float64)


def score_views(model: keras.Model, pixels: np.ndarray) -> np.ndarray:
    """The mean log odds over `VIEWS` random framings, as a probability."""
    keras.utils.set_random_seed(0)
    frame = networks.RandomFraming()
    total = np.zeros(len(pixels))
    for _ in range(VIEWS):
        framed = [np.asarray(frame(part, training=True)) for part in parts(pixels)]
        scores = np.clip(score(model, np.concatenate(framed)), 1e-7, 1 - 1e-7)
        total += np.log(scores / (1 - scores)) / VIEWS
    return 1 / (1 + np.exp(-total))


def run(name: str, seed: int, pixels: np.ndarray, table: pd.DataFrame) -> None:
    """Train a variant once and append what it scored."""
    labels = table["label"].to_numpy()
    started = time.perf_counter()
    assigned = splits.assign(table, "strict", seed, split_strategy="patient-grouped")
    rows = {}
    for split in ("train", "val", "test"):
        rows[split] = assigned.index[assigned["split"] == split].to_numpy()
    model = fit(VARIANTS[name], pixels, labels, rows["train"], seed)
    seconds = time.perf_counter() - started
    val_labels = labels[rows["val"]]
    val_pixels = pixels[rows["val"]]
    views = {"unchanged": val_pixels} | framing.swaps(val_pixels, val_labels, seed)
    scorers = {name: score}
    if name == "reframed":
        scorers["8 views"] = score_views
    for variant, scorer in scorers.items():
        record: dict[str, object] = {"variant": variant, "seed": seed}
        for view, shown in views.items():
            record[view] = roc_auc_score(val_labels, scorer(model, shown))
        record |= {"seconds": seconds, "hardware": str(HARDWARE)}
        tests = table.loc[rows["test"], IMAGE_COLUMNS]
        tests = tests.assign(**{f"{variant}/{seed}": scorer(model, pixels[rows["test"]])})
        write("scores.csv", joined(read("scores.csv"), tests))
        write("runs.csv", pd.concat([read("runs.csv"), pd.DataFrame([record])]))
        print(record, flush=True)


def joined(old: pd.DataFrame | None, new: pd.DataFrame) -> pd.DataFrame:
    """Scores of the same images side by side; a column of an interrupted run is replaced."""
    if old is None:
        return new
    replaced = [column for column in new if column not in IMAGE_COLUMNS]
    return old.drop(columns=replaced, errors="ignore").merge(new, on=IMAGE_COLUMNS)


def read(name: str) -> pd.DataFrame | None:
    """Read a file of the report, if it is there."""
    file = FOLDER / name
    return pd.read_csv(file) if file.exists() else None


def write(name: str, table: pd.DataFrame) -> None:
    """Replace a file of the report."""
    file = FOLDER / name
    file.parent.mkdir(parents=True, exist_ok=True)
    with storage.atomic_write(file) as temporary:
        table.to_csv(temporary, index=False, float_format="%.7g")


def tabulate(runs: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Compare each variant with the base, paired by seed.

    Returns
    -------
    pandas.DataFrame
        `variant, what, runs`; `validation_auc`; `validation_worst_view`, the AUC in the worst of
        three views; `test_auc`; `difference` of the test AUC to the base with `low, high`, an
        interval over patients with the runs as they are (DeLong).
    """
    words = {name: variant.words for name, variant in VARIANTS.items()}
    words["8 views"] = "mean of 8 random framings"
    trained = set(runs["variant"])
    rows = []
    for name in [name for name in words if name in trained]:
        own_runs = runs[runs["variant"] == name]
        worst = own_runs[["framing", "rendering", "both"]].min(axis=1)
        row = {
            "variant": name,
            "what": words[name],
            "runs": len(own_runs),
            "validation_auc": own_runs["unchanged"].mean(),
            "validation_worst_view": worst.mean(),
        }
        rows.append(row | difference(name, own_runs["seed"].tolist(), scores))
    return pd.DataFrame(rows)


def difference(name: str, seeds: list[int], scores: pd.DataFrame) -> dict[str, float]:
    """Test AUC of a variant, and its difference to the base with a 95% interval."""
    labels = scores["label"].to_numpy()
    columns = [f"{variant}/{seed}" for variant in (name, "reframed") for seed in seeds]
    patients = scores["patient"].to_numpy()
    aucs, covariance = resampling.delong(labels, scores[columns].to_numpy().T, patients)
    count = len(seeds)
    signs = np.repeat([1 / count, -1 / count], count)
    mean = signs @ aucs if name != "reframed" else np.nan
    half = resampling.Z * np.sqrt(max(0.0, signs @ covariance @ signs))
    return {
        "test_auc": aucs[:count].mean(),
        "difference": mean,
        "low": mean - half,
        "high": mean + half,
    }


def main() -> None:
    """Run what is asked for and not yet done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=", ".join(VARIANTS))
    parser.add_argument("--seeds", type=int, default=2)
    asked = parser.parse_args()
    unknown = ", ".join(sorted(set(asked.variants) - set(VARIANTS)))
    if unknown:
        parser.error(f"no such variant: {unknown}. Fix: choose of {', '.join(VARIANTS)}.")
    table = manifest.load("kermany")
    pixels = images.load_pixels(table, SIZE)
    for seed in range(asked.seeds):
        for name in dict.fromkeys(["reframed", *(asked.variants or VARIANTS)]):
            if is_done(name, seed):
                continue
            run(name, seed, pixels, table)
            write("table.csv", tabulate(read("runs.csv"), read("scores.csv")))


def is_done(name: str, seed: int) -> bool:
    """Whether a run of a variant is in the report."""
    runs = read("runs.csv")
    if runs is None:
        return False
    return bool(((runs["variant"] == name) & (runs["seed"] == seed)).any())


if __name__ == "__main__":
    main()
