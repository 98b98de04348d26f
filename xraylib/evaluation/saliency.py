"""Where a network looks: Grad-CAM on any recipe and backend, and the checks of whether to believe it.

A map that looks sensible proves nothing (Adebayo et al. 2018): it must change when the weights are random, and fall on
the lesion where that is known.
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

    Of uint8 `(n, size, size, 1)` at the recipe's size: float32 `(n, size, size)` in [0, 1], the largest value of each
    1; zeros where nothing speaks for pneumonia.
    """
    below, above = _split(predictor.model)
    log_odds = _log_odds(predictor, above)
    found = []
    for start in range(0, len(pixels), BATCH):
        features = below(keras.ops.convert_to_tensor(pixels[start : start + BATCH]), training=False)
        slopes = np.asarray(_gradient(log_odds, features), dtype=np.float32)
        weights = slopes.mean(axis=(1, 2), keepdims=True)
        found.append((np.asarray(features, dtype=np.float32) * weights).sum(axis=-1))
    return np.stack([images.heat_map(cam, pixels.shape[1]) for cam in np.concatenate(found)])


def _split(model: keras.Model) -> tuple[keras.Model, keras.Model]:
    """The model up to its last feature maps, and from there to the input of its last layer."""
    convolutions = (layers.Conv2D, layers.SeparableConv2D)
    pools = (layers.MaxPooling2D, layers.GlobalAveragePooling2D, layers.Flatten)
    chain = model.layers
    found = [i for i, x in enumerate(chain) if isinstance(x, convolutions) or x.name == "backbone"]
    pool = next((x for x in chain[found[-1] :] if isinstance(x, pools)), None) if found else None
    if pool is None:
        raise InvalidDataError(
            f"{model.name} has no feature maps to look at. Fix: explain a convolutional network."
        )
    end = model.output if isinstance(chain[-1], pools) else chain[-1].input
    return keras.Model(model.input, pool.input), keras.Model(pool.input, end)


def _log_odds(predictor: Predictor, above: keras.Model) -> Callable[[Any], Any]:
    """A function of the feature maps: the sum of the images' log odds, before any sigmoid saturates."""
    if predictor.head is not None:
        direction = predictor.head["coefficients"].astype(np.float32)
    else:
        kernel = np.asarray(predictor.model.layers[-1].kernel, dtype=np.float32)
        direction = kernel[:, 0] if kernel.shape[1] == 1 else kernel[:, 1] - kernel[:, 0]
    return lambda features: keras.ops.sum(
        keras.ops.matmul(above(features, training=False), direction[:, None])
    )


def _gradient(function: Callable[[Any], Any], at: Any) -> Any:
    """Gradient of a scalar function under the backend that runs: the one place that needs to know."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.grad(function)(at)
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(at)
        value = function(at)
    return tape.gradient(value, at)


def parameter_randomisation(predictor: Predictor, seed: int = 0) -> Predictor:
    """The predictor with the values of each of its weights permuted, those of its head as well."""
    model, rng = keras.models.clone_model(predictor.model), np.random.default_rng(seed)
    for mine, theirs in zip(model.weights, predictor.model.weights, strict=True):
        values = np.asarray(theirs)
        # The states of random generators are integers.
        if "float" in str(values.dtype):
            values = rng.permutation(values.ravel()).reshape(values.shape)
        mine.assign(values)
    head = predictor.head
    if head is not None:
        head = head | {"coefficients": rng.permutation(head["coefficients"])}
    return Predictor(predictor.run, model, head)


def rank_correlation(maps: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Rank correlation of two maps of each image `(n,)`; NaN where one of them is flat."""
    found = []
    for one, other in zip(maps, others, strict=True):
        flat = np.ptp(one) == 0 or np.ptp(other) == 0
        found.append(np.nan if flat else float(spearmanr(one.ravel(), other.ravel()).statistic))
    return np.array(found)


def center_prior(size: int) -> np.ndarray:
    """A map that knows only where lungs are: a blob in the middle, float32 `(size, size)`."""
    blob = np.zeros((size, size), np.float32)
    blob[size // 2, size // 2] = 1
    blob = gaussian_filter(blob, size / 5)
    return blob / blob.max()


def localisation(maps: np.ndarray, masks: np.ndarray, patients: np.ndarray) -> pd.DataFrame:
    """How often the peak of a map `(n, h, w)` lies in the lesion, which is where its mask is not zero.

    Index `pointing` (share of peaks in the lesion) and `energy` (mean share of the map in it); columns `value, low,
    high` and `area` (mean share of the image that is lesion: what a uniform map reaches).
    """
    lesion = np.asarray(masks).reshape(len(maps), -1) > 0
    if not lesion.any(axis=1).all():
        raise InvalidDataError("a mask has no lesion. Fix: pass pneumonias only.")
    flat = maps.reshape(len(maps), -1)
    pointing = np.take_along_axis(lesion, flat.argmax(axis=1)[:, None], axis=1)[:, 0]
    # A flat map points nowhere.
    pointing = np.where(np.ptp(flat, axis=1) > 0, pointing, False).astype(float)
    energy = (flat * lesion).sum(axis=1) / np.maximum(flat.sum(axis=1), 1e-12)
    rows = {}
    for name, values in (("pointing", pointing), ("energy", energy)):
        share, low, high = share_interval(values, patients)
        rows[name] = {"value": share, "low": low, "high": high, "area": lesion.mean()}
    return pd.DataFrame.from_dict(rows, orient="index")


def checks(
    predictor: Predictor, pixels: np.ndarray, masks: np.ndarray, patients: np.ndarray
) -> dict[str, float | str]:
    """What the heat maps of a recipe are worth on pneumonias whose lesions are known, as one row of a table.

    `recipe, n`, `pointing` and `energy` of `localisation` with intervals, those of `center_prior`, the mean `area` of a
    lesion, and the mean `rank_correlation` with the maps of `parameter_randomisation`.
    """
    maps = heat_maps(predictor, pixels)
    blobs = np.repeat(center_prior(pixels.shape[1])[None], len(pixels), axis=0)
    found, center = localisation(maps, masks, patients), localisation(blobs, masks, patients)
    row: dict[str, float | str] = {"recipe": predictor.run.recipe, "n": len(pixels)}
    for name in ("pointing", "energy"):
        row[name], row[f"{name}_center"] = float(found["value"][name]), float(center["value"][name])
        row[f"{name}_low"], row[f"{name}_high"] = (
            float(found["low"][name]),
            float(found["high"][name]),
        )
    others = heat_maps(parameter_randomisation(predictor), pixels)
    row["area"] = float(found["area"].iloc[0])
    return row | {"rank_correlation": float(pd.Series(rank_correlation(maps, others)).mean())}
