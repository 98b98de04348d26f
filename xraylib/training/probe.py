"""The linear probe: a calibrated logistic regression on features of a frozen network."""

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss
from sklearn.preprocessing import StandardScaler

from xraylib import paths
from xraylib.datasets import images, regions
from xraylib.progress import tqdm
from xraylib.storage import cached_array, write_text
from xraylib.training import networks
from xraylib.training.runs import TRAINING_VERSION, digest, versions

BATCH = 32

# Augmented copies of each training image.
VIEWS = 4
# Images that are augmented at a time.
AUGMENTED_AT_ONCE = 256

# Inverse strengths of the L2 penalty that validation chooses from.
STRENGTHS = tuple(10.0**power for power in range(-5, 1))


def pooled(
    manifest: pd.DataFrame,
    network: str,
    size: int,
    weights: networks.Weights,
    seed: int,
    *,
    region: str = "whole",
) -> np.ndarray:
    """Compute features of every image of a manifest once, and keep them in the cache.

    Parameters
    ----------
    manifest
        The images.
    network, size, weights
        As for `networks.build`.
    seed
        Draws the weights if they are random, and is not read otherwise.
    region
        Which region of the images the network sees, see `regions.load`.

    Returns
    -------
    ndarray
        float32 `(n, features)`, in the order of the manifest.
    """
    key = {
        "data": images.fingerprint(manifest),
        "network": network,
        "size": size,
        "weights": weights.label,
        "seed": seed if weights.label == "random" else None,
        "precision": keras.config.dtype_policy().name,
        "versions": versions(keras.backend.backend()),
        "training_version": TRAINING_VERSION,
    }
    if region != "whole":
        key["region"] = region
    file = paths.CACHE / "features" / f"{network}-{size}-{digest(key, 16)}.npy"

    def compute() -> np.ndarray:
        frozen = extractor(network, size, weights, seed)
        return describe(frozen, regions.load(manifest, size, region))

    return np.array(cached_array(file, compute))


def extractor(network: str, size: int, weights: networks.Weights, seed: int) -> keras.Model:
    """Return the frozen network: uint8 `(batch, size, size, 1)` to float32 `(batch, features)`."""
    keras.utils.set_random_seed(seed)
    whole = networks.build(network, size, "sigmoid", weights=weights)
    return keras.Model(whole.input, whole.layers[-1].input)


def describe(frozen: keras.Model, pixels: np.ndarray) -> np.ndarray:
    """Return features, float32 `(n, features)`, of uint8 pixels `(n, size, size, 1)`."""
    features = []
    starts = range(0, len(pixels), BATCH)
    for start in tqdm(starts, desc="features", unit="batch", leave=False):
        images_left = pixels[start : start + BATCH]
        # A shorter last batch would be compiled anew, so it is filled up with black images.
        batch = np.zeros((BATCH, *pixels.shape[1:]), np.uint8)
        batch[: len(images_left)] = images_left
        outputs = np.asarray(frozen.predict_on_batch(batch), dtype=np.float32)
        features.append(outputs[: len(images_left)])
    return np.concatenate(features)


def augmented(frozen: keras.Model, pixels: np.ndarray, augmentation: str, seed: int) -> np.ndarray:
    """Return features of `VIEWS` augmented copies of images.

    Parameters
    ----------
    frozen
        A network from `extractor`.
    pixels
        uint8 `(n, size, size, 1)`.
    augmentation
        A key of `networks.AUGMENTATIONS`.
    seed
        Draws the augmentation.

    Returns
    -------
    ndarray
        float32 `(VIEWS * n, features)`: a copy of all images after another.
    """
    keras.utils.set_random_seed(seed)
    change = networks.find_part(networks.AUGMENTATIONS, augmentation)()
    views = [describe(frozen, _augment(change, pixels)) for _ in range(VIEWS)]
    return np.concatenate(views)


def _augment(change: Any, pixels: np.ndarray) -> np.ndarray:
    """Return one augmented copy of uint8 pixels."""
    changed = []
    for start in range(0, len(pixels), AUGMENTED_AT_ONCE):
        batch = np.asarray(pixels[start : start + AUGMENTED_AT_ONCE], np.float32)
        outputs = keras.ops.convert_to_numpy(change(batch, training=True))
        changed.append(np.rint(outputs).astype(np.uint8))
    return np.concatenate(changed)


def fit(
    features: np.ndarray,
    labels: np.ndarray,
    split: np.ndarray,
) -> tuple[dict[str, np.ndarray], pd.DataFrame]:
    """Fit a logistic regression on `train`; `val` chooses its penalty and calibrates it (Platt).

    Parameters
    ----------
    features
        float32 `(n, features)`.
    labels
        0/1, `(n,)`.
    split
        The split of each row; rows of `test` are not looked at.

    Returns
    -------
    head
        The arrays `coefficients` `(features,)` and `intercept` `()`, float64, which include scaling
        and calibration.
    history
        One row per penalty, with the columns `strength`, `loss`, `accuracy`, `val_loss` and
        `val_accuracy`.
    """
    train = split == "train"
    val = split == "val"
    scaler = StandardScaler().fit(features[train])
    scaled = scaler.transform(features)
    models = []
    rows = []
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=3000).fit(scaled[train], labels[train])
        models.append(model)
        row = {"strength": strength}
        for prefix, rows_of_split in (("", train), ("val_", val)):
            probability = model.predict_proba(scaled[rows_of_split])[:, 1]
            row[f"{prefix}loss"] = log_loss(labels[rows_of_split], probability)
            row[f"{prefix}accuracy"] = accuracy_score(labels[rows_of_split], probability > 0.5)
        rows.append(row)
    history = pd.DataFrame(rows)
    best = models[history["val_loss"].argmin()]
    margins = best.decision_function(scaled[val])
    platt = LogisticRegression(C=1e6).fit(margins[:, None], labels[val])
    slope = float(platt.coef_[0, 0])
    coefficients = best.coef_[0] * slope / scaler.scale_
    intercept = slope * float(best.intercept_[0]) + float(platt.intercept_[0])
    intercept -= float(coefficients @ scaler.mean_)
    return {"coefficients": coefficients, "intercept": np.array(intercept)}, history


def predict_probability(head: dict[str, np.ndarray], features: np.ndarray) -> np.ndarray:
    """Return P(pneumonia), float64 `(n,)` in [0, 1], of features `(n, features)`."""
    return expit(features.astype(np.float64) @ head["coefficients"] + head["intercept"])


def save_head(head: dict[str, np.ndarray], file: Path) -> None:
    """Write a head as JSON."""
    write_text(file, json.dumps({name: value.tolist() for name, value in head.items()}))


def load_head(file: Path) -> dict[str, np.ndarray]:
    """Read a head that `save_head` wrote."""
    return {name: np.array(value) for name, value in json.loads(file.read_text()).items()}
