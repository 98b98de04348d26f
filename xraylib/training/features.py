"""Pooled features of a frozen network: computed once for a data set and size, then read back."""

import hashlib
import json
import logging

import keras
import numpy as np
import pandas as pd
from filelock import FileLock
from tqdm.auto import tqdm

from xraylib import paths
from xraylib.datasets import images
from xraylib.storage import atomic, storage_errors
from xraylib.training import models
from xraylib.training.runs import TRAINING_VERSION, versions

log = logging.getLogger(__name__)

BATCH = 32


def pooled(manifest: pd.DataFrame, network: str, size: int, weights: models.Weights, seed: int) -> np.ndarray:
    """Features of every image, in the manifest's row order.

    Parameters
    ----------
    manifest
        Images to describe, as `catalog.load` gives them.
    network
        A key of `models.NETWORKS`.
    size
        Input height and width in pixels.
    weights
        Initial weights from `models.get_weights`.
    seed
        Draws the weights when they are random; not read otherwise.

    Returns
    -------
    numpy.ndarray
        float32 `(n, features)`, cached under `paths.CACHE` by data, network, weights and size.
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
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    file = paths.CACHE / "features" / f"{network}-{size}-{key}.npy"
    with storage_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        if not file.exists():
            features = describe(extractor(network, size, weights, seed), images.load_pixels(manifest, size))
            with atomic(file) as temporary:
                np.save(temporary, features)
    return np.load(file)


def extractor(network: str, size: int, weights: models.Weights, seed: int) -> keras.Model:
    """Return the frozen network: uint8 `(batch, size, size, 1)` to float32 `(batch, features)`."""
    keras.utils.set_random_seed(seed)
    whole = models.build(network, size, "sigmoid", weights=weights)
    return keras.Model(whole.input, whole.layers[-1].input)


def describe(frozen: keras.Model, pixels: np.ndarray) -> np.ndarray:
    """Features, float32 `(n, features)`, of uint8 pixels `(n, size, size, 1)`."""
    found = []
    for start in tqdm(range(0, len(pixels), BATCH), desc="features", unit="batch", leave=False):
        # A last batch of another length would be compiled anew: it is filled up and cut again.
        batch = np.zeros((BATCH, *pixels.shape[1:]), np.uint8)
        part = pixels[start : start + BATCH]
        batch[: len(part)] = part
        found.append(np.asarray(frozen.predict_on_batch(batch), dtype=np.float32)[: len(part)])
    return np.concatenate(found)
