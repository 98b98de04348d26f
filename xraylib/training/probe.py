"""The linear probe: pooled features of a frozen network, and a calibrated logistic regression on them."""

import json
import os
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from filelock import FileLock
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm

from xraylib import paths
from xraylib.datasets import images, regions
from xraylib.storage import atomic_write, storage_errors
from xraylib.training import networks
from xraylib.training.runs import TRAINING_VERSION, digest, versions

BATCH = 32

# Augmented copies of each training image.
VIEWS = 4

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
    """Features of every image of a manifest, float32 `(n, features)`, computed once and kept in the cache.

    `seed` draws the weights when they are random and is not read otherwise.
    """
    about = {
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
        about["region"] = region
    file = paths.CACHE / "features" / f"{network}-{size}-{digest(about, 16)}.npy"
    with storage_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        if not file.exists():
            features = describe(
                extractor(network, size, weights, seed), regions.load(manifest, size, region)
            )
            with atomic_write(file) as temporary:
                np.save(temporary, features)
    return np.load(file)


def extractor(network: str, size: int, weights: networks.Weights, seed: int) -> keras.Model:
    """Return the frozen network: uint8 `(batch, size, size, 1)` to float32 `(batch, features)`."""
    keras.utils.set_random_seed(seed)
    whole = networks.build(network, size, "sigmoid", weights=weights)
    return keras.Model(whole.input, whole.layers[-1].input)


def describe(frozen: keras.Model, pixels: np.ndarray) -> np.ndarray:
    """Features, float32 `(n, features)`, of uint8 pixels `(n, size, size, 1)`."""
    found = []
    for start in tqdm(
        range(0, len(pixels), BATCH),
        desc="features",
        unit="batch",
        leave=False,
        disable="TQDM_DISABLE" in os.environ,
    ):
        # A last batch of another length would be compiled anew: it is filled up and cut again.
        batch = np.zeros((BATCH, *pixels.shape[1:]), np.uint8)
        part = pixels[start : start + BATCH]
        batch[: len(part)] = part
        found.append(np.asarray(frozen.predict_on_batch(batch), dtype=np.float32)[: len(part)])
    return np.concatenate(found)


def augmented(frozen: keras.Model, pixels: np.ndarray, augmentation: str, seed: int) -> np.ndarray:
    """Features of `VIEWS` augmented copies of uint8 pixels `(n, size, size, 1)`, a copy of all after another."""
    keras.utils.set_random_seed(seed)
    change, views = networks.AUGMENTATIONS[augmentation](), []
    for _ in range(VIEWS):
        parts = [
            np.asarray(pixels[start : start + 256], np.float32)
            for start in range(0, len(pixels), 256)
        ]
        changed = [keras.ops.convert_to_numpy(change(part, training=True)) for part in parts]
        views.append(
            describe(frozen, np.concatenate([np.rint(films).astype(np.uint8) for films in changed]))
        )
    return np.concatenate(views)


def fit(
    features: np.ndarray, labels: np.ndarray, split: np.ndarray
) -> tuple[dict[str, np.ndarray], pd.DataFrame]:
    """Fit on `train`; choose the penalty and calibrate (Platt) on `val`; `test` rows are not looked at.

    Returns the head (`coefficients` and `intercept`, float64, scaling and calibration folded in) and one row a penalty:
    `strength, loss, accuracy, val_loss, val_accuracy`.
    """
    train, val = split == "train", split == "val"
    scaler = StandardScaler().fit(features[train])
    scaled = {"": scaler.transform(features[train]), "val_": scaler.transform(features[val])}
    truth = {"": labels[train], "val_": labels[val]}
    rows, fitted = [], []
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=3000).fit(scaled[""], truth[""])
        row: dict[str, float] = {"strength": strength}
        for prefix, values in scaled.items():
            probability = model.predict_proba(values)[:, 1]
            row[f"{prefix}loss"] = log_loss(truth[prefix], probability)
            row[f"{prefix}accuracy"] = accuracy_score(truth[prefix], probability > 0.5)
        rows.append(row)
        fitted.append(model)
    history = pd.DataFrame(rows)
    best = fitted[int(history["val_loss"].to_numpy().argmin())]
    margins = best.decision_function(scaled["val_"])
    platt = LogisticRegression(C=1e6).fit(margins[:, None], truth["val_"])
    slope, shift = float(platt.coef_[0, 0]), float(platt.intercept_[0])
    coefficients = best.coef_[0] * slope / scaler.scale_
    intercept = slope * float(best.intercept_[0]) + shift - float(coefficients @ scaler.mean_)
    return {"coefficients": coefficients, "intercept": np.array(intercept)}, history


def predict_probability(head: dict[str, np.ndarray], features: np.ndarray) -> np.ndarray:
    """P(pneumonia), float64 `(n,)` in [0, 1], of features `(n, features)`."""
    return expit(features.astype(np.float64) @ head["coefficients"] + head["intercept"])


def save_head(head: dict[str, np.ndarray], file: Path) -> None:
    """Write a head as JSON."""
    with atomic_write(file) as temporary:
        temporary.write_text(json.dumps({name: value.tolist() for name, value in head.items()}))


def load_head(file: Path) -> dict[str, np.ndarray]:
    """Read a head that `save` wrote."""
    return {name: np.array(value) for name, value in json.loads(file.read_text()).items()}
