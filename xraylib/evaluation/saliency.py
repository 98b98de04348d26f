"""Where a network looks: Grad-CAM for any recipe and backend, and checks of the heat maps.

A map that looks sensible proves nothing (Adebayo et al. 2018). It must change when the weights are
random, and lie on the lesion where the lesion is known.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pandas as pd
from keras import layers
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr

from xraylib.datasets import images
from xraylib.errors import InvalidDataError
from xraylib.evaluation.resampling import share_interval
from xraylib.training.predictor import Predictor

BATCH = 32


def heat_maps(predictor: Predictor, pixels: np.ndarray) -> np.ndarray:
    """Grad-CAM of the log odds of pneumonia at the last feature maps (Selvaraju et al. 2017).

    Parameters
    ----------
    predictor : Predictor
        A trained network.
    pixels : numpy.ndarray
        uint8 `(n, size, size, 1)` at the recipe's size.

    Returns
    -------
    numpy.ndarray
        float32 `(n, size, size)` in [0, 1], the largest value of each map 1; all 0 where nothing
        speaks for pneumonia.
    """
    below, above = _split(predictor.model)
    log_odds = _log_odds(predictor, above)
    maps = []
    for start in range(0, len(pixels), BATCH):
        batch = keras.ops.convert_to_tensor(pixels[start : start + BATCH])
        features = below(batch, training=False)
        slopes = np.asarray(_gradient(log_odds, features), dtype=np.float32)
        weights = slopes.mean(axis=(1, 2), keepdims=True)
        maps.append((np.asarray(features, dtype=np.float32) * weights).sum(axis=-1))
    return np.stack([images.heat_map(cam, pixels.shape[1]) for cam in np.concatenate(maps)])


def _split(model: keras.Model) -> tuple[keras.Model, keras.Model]:
    """The model up to its last feature maps, and from there to the input of its last layer."""
    convolutions = (layers.Conv2D, layers.SeparableConv2D)
    pools = (layers.MaxPooling2D, layers.GlobalAveragePooling2D, layers.Flatten)
    pool = None
    convolved = False
    for layer in model.layers:
        if isinstance(layer, convolutions) or layer.name == "backbone":
            convolved = True
            pool = None
        elif convolved and pool is None and isinstance(layer, pools):
            pool = layer
    if pool is None:
        what = f"{model.name} has no feature maps to look at"
        raise InvalidDataError(f"{what}. Fix: explain a convolutional network.")
    last = model.layers[-1]
    end = model.output if isinstance(last, pools) else last.input
    return keras.Model(model.input, pool.input), keras.Model(pool.input, end)


def _log_odds(predictor: Predictor, above: keras.Model) -> Callable[[Any], Any]:
    """A function of the feature maps: the sum of the images' log odds, before any sigmoid."""
    if predictor.head is not None:
        direction = predictor.head["coefficients"].astype(np.float32)
    else:
        kernel = np.asarray(predictor.model.layers[-1].kernel, dtype=np.float32)
        direction = kernel[:, 0] if kernel.shape[1] == 1 else kernel[:, 1] - kernel[:, 0]

    def log_odds(features: Any) -> Any:
        described = above(features, training=False)
        return keras.ops.sum(keras.ops.matmul(described, direction[:, None]))

    return log_odds


def _gradient(function: Callable[[Any], Any], at: Any) -> Any:
    """Gradient of a scalar function, under TensorFlow or JAX."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.grad(function)(at)
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(at)
        value = function(at)
    return tape.gradient(value, at)


def parameter_randomisation(predictor: Predictor, seed: int = 0) -> Predictor:
    """Return the predictor with the values of each of its weights permuted, also of its head."""
    model = keras.models.clone_model(predictor.model)
    rng = np.random.default_rng(seed)
    for permuted, original in zip(model.weights, predictor.model.weights, strict=True):
        values = np.asarray(original)
        # The states of random generators are integers.
        if "float" in str(values.dtype):
            values = rng.permutation(values.ravel()).reshape(values.shape)
        permuted.assign(values)
    head = predictor.head
    if head is not None:
        head = head | {"coefficients": rng.permutation(head["coefficients"])}
    return Predictor(predictor.run, model, head)


def rank_correlation(maps: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the rank correlation of two maps of each image, missing where one is flat.

    Parameters
    ----------
    maps, others : numpy.ndarray
        `(n, h, w)` each.

    Returns
    -------
    numpy.ndarray
        float `(n,)` in [-1, 1].
    """
    correlations = np.full(len(maps), np.nan)
    for row, (first, second) in enumerate(zip(maps, others, strict=True)):
        if np.ptp(first) > 0 and np.ptp(second) > 0:
            correlations[row] = spearmanr(first.ravel(), second.ravel()).statistic
    return correlations


def center_prior(size: int) -> np.ndarray:
    """Return a blob in the centre, which knows only where lungs are: float32 `(size, size)`."""
    blob = np.zeros((size, size), np.float32)
    blob[size // 2, size // 2] = 1
    blob = gaussian_filter(blob, size / 5)
    return blob / blob.max()


def localisation(maps: np.ndarray, masks: np.ndarray, patients: np.ndarray) -> pd.DataFrame:
    """Measure how well heat maps find the lesion, which is where its mask is not zero.

    Parameters
    ----------
    maps : numpy.ndarray
        `(n, h, w)`, 0 or more.
    masks : numpy.ndarray
        `(n, h, w)`, each with a lesion.
    patients : numpy.ndarray
        The patient of each image, `(n,)`.

    Returns
    -------
    pandas.DataFrame
        Index `pointing` (share of images whose peak lies in the lesion) and `energy` (mean share
        of the map in the lesion).

        - `value`; `low`, `high`: its interval over patients.
        - `area`: mean share of the image that is lesion, which a uniform map reaches.
    """
    lesion = np.asarray(masks).reshape(len(maps), -1) > 0
    if not lesion.any(axis=1).all():
        raise InvalidDataError("a mask has no lesion. Fix: pass pneumonias only.")
    flat = maps.reshape(len(maps), -1)
    peaks = flat.argmax(axis=1)
    # A flat map points nowhere.
    points = np.ptp(flat, axis=1) > 0
    pointing = (lesion[np.arange(len(flat)), peaks] & points).astype(float)
    energy = (flat * lesion).sum(axis=1) / np.maximum(flat.sum(axis=1), 1e-12)
    rows = {}
    for name, values in (("pointing", pointing), ("energy", energy)):
        share, low, high = share_interval(values, patients)
        rows[name] = {"value": share, "low": low, "high": high, "area": lesion.mean()}
    return pd.DataFrame.from_dict(rows, orient="index")


def checks(
    predictor: Predictor, pixels: np.ndarray, masks: np.ndarray, patients: np.ndarray
) -> dict[str, float | str]:
    """Check the heat maps of a network on pneumonias whose lesions are known.

    Parameters
    ----------
    predictor : Predictor
        A trained network.
    pixels, masks : numpy.ndarray
        uint8 `(n, size, size, 1)` and `(n, size, size)`.
    patients : numpy.ndarray
        The patient of each image, `(n,)`.

    Returns
    -------
    dict
        One row of a table.

        - `recipe`, `n` (images), `area` (mean share of the image that is lesion).
        - `pointing`, `energy`: of `localisation`, each with `_low` and `_high`, and `_center` for
          that of `center_prior`.
        - `rank_correlation`: mean, with the maps of `parameter_randomisation`.
    """
    maps = heat_maps(predictor, pixels)
    blobs = np.repeat(center_prior(pixels.shape[1])[None], len(pixels), axis=0)
    measured = localisation(maps, masks, patients)
    center = localisation(blobs, masks, patients)
    row: dict[str, float | str] = {"recipe": predictor.run.recipe, "n": len(pixels)}
    for name in ("pointing", "energy"):
        row[name] = float(measured["value"].loc[name])
        row[f"{name}_center"] = float(center["value"].loc[name])
        row[f"{name}_low"] = float(measured["low"].loc[name])
        row[f"{name}_high"] = float(measured["high"].loc[name])
    row["area"] = float(measured["area"].iloc[0])
    others = heat_maps(parameter_randomisation(predictor), pixels)
    row["rank_correlation"] = float(pd.Series(rank_correlation(maps, others)).mean())
    return row
