"""Where a network looks: Grad-CAM on any recipe and backend, and the checks that tell whether to believe it.

A map that looks sensible proves nothing (Adebayo et al. 2018): it must change when the weights are random,
fall on the lesion where that is known, and mark what the score depends on.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pandas as pd
from keras import layers
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr

from xraylib.evaluation.resampling import share_interval
from xraylib.predict import Predictor
from xraylib.storage import DataInvalid

BATCH = 32


def heat_maps(predictor: Predictor, pixels: np.ndarray) -> np.ndarray:
    """Grad-CAM of the log odds of pneumonia at the last feature maps (Selvaraju et al. 2017).

    Parameters
    ----------
    predictor
        From `predict.load`.
    pixels
        uint8 `(n, size, size, 1)` at the recipe's size.

    Returns
    -------
    numpy.ndarray
        float32 `(n, size, size)` in [0, 1], the largest value of each 1; zeros where nothing speaks for
        pneumonia.
    """
    below, above = _split(predictor.model)
    log_odds = _log_odds(predictor, above)
    found = []
    for start in range(0, len(pixels), BATCH):
        features = below(keras.ops.convert_to_tensor(pixels[start : start + BATCH]), training=False)
        slopes = np.asarray(_gradient(log_odds, features), dtype=np.float32)
        weights = slopes.mean(axis=(1, 2), keepdims=True)
        found.append(np.maximum((np.asarray(features, dtype=np.float32) * weights).sum(axis=-1), 0))
    size = pixels.shape[1]
    return np.stack([_scaled(cam, size) for cam in np.concatenate(found)])


def _split(model: keras.Model) -> tuple[keras.Model, keras.Model]:
    """The model up to its last feature maps, and from there to the input of its last layer."""
    convolutions = (layers.Conv2D, layers.SeparableConv2D)
    chain = model.layers
    found = [i for i, x in enumerate(chain) if isinstance(x, convolutions) or x.name == "backbone"]
    if not found:
        raise DataInvalid(
            f"{model.name} has no feature maps to look at. Fix: explain a convolutional network."
        )
    pools = (layers.MaxPooling2D, layers.GlobalAveragePooling2D, layers.Flatten)
    pool = next((layer for layer in chain[found[-1] :] if isinstance(layer, pools)), None)
    if pool is None:
        raise DataInvalid(
            f"{model.name} ends without pooling. Fix: explain a network that pools or flattens."
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


def _scaled(cam: np.ndarray, size: int) -> np.ndarray:
    large = np.asarray(Image.fromarray(cam).resize((size, size), Image.Resampling.BILINEAR))
    return large / large.max() if large.max() > 0 else np.zeros_like(large)


def randomised(predictor: Predictor, seed: int = 0) -> Predictor:
    """Return the predictor with the values of each of its weights dealt anew, those of its head as well."""
    model = keras.models.clone_model(predictor.model)
    draw = np.random.default_rng(seed)
    for mine, theirs in zip(model.weights, predictor.model.weights, strict=True):
        values = np.asarray(theirs)
        fresh = (
            draw.permutation(values.ravel()).reshape(values.shape) if "float" in str(values.dtype) else values
        )
        mine.assign(fresh)
    head = predictor.head
    if head is not None:
        head = head | {"coefficients": draw.permutation(head["coefficients"])}
    return Predictor(predictor.run, model, head, predictor.threshold)


def agreement(maps: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Rank correlation of two maps of each image `(n,)`; NaN where one of them is flat."""
    found = []
    for one, other in zip(maps, others, strict=True):
        flat = np.ptp(one) == 0 or np.ptp(other) == 0
        found.append(np.nan if flat else float(spearmanr(one.ravel(), other.ravel()).statistic))
    return np.array(found)


def centre_blob(size: int) -> np.ndarray:
    """What a map that knows only where lungs are might be: a blob in the middle, float32 `(size, size)`."""
    blob = np.zeros((size, size), np.float32)
    blob[size // 2, size // 2] = 1
    blob = gaussian_filter(blob, size / 5)
    return blob / blob.max()


def find_lesion(maps: np.ndarray, masks: np.ndarray, patients: np.ndarray) -> pd.DataFrame:
    """How often the peak of a map lies in the lesion, and how much of the map does.

    Parameters
    ----------
    maps
        float `(n, h, w)`, 0 or more.
    masks
        `(n, h, w)`, not zero inside the lesion; each has one.
    patients
        Whose image it is `(n,)`.

    Returns
    -------
    pandas.DataFrame
        Index `pointing` (share of peaks in the lesion) and `energy` (mean share of the map in the lesion);
        columns `value, low, high` (95 % over patients; Wilson's where a value is 0 or 1) and
        `area` (mean share of the image that is lesion: what a uniform map reaches).
    """
    inside = np.asarray(masks) > 0
    if inside.shape != maps.shape or not inside.any(axis=(1, 2)).all():
        raise DataInvalid("every map needs a mask of its size with a lesion. Fix: pass pneumonias only.")
    flat, lesion = maps.reshape(len(maps), -1), inside.reshape(len(maps), -1)
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
    """One row of what the heat maps of a recipe are worth where the lesion is known.

    Parameters
    ----------
    predictor
        From `predict.load`.
    pixels
        uint8 `(n, size, size, 1)` of pneumonias.
    masks
        `(n, size, size)`, their lesions.
    patients
        `(n,)`.

    Returns
    -------
    dict
        `recipe, n`, pointing and energy with intervals, the same of `centre_blob`, the mean `area` of a
        lesion, and `agreement` with the maps of the randomised network (mean rank correlation).
    """
    maps = heat_maps(predictor, pixels)
    blobs = np.repeat(centre_blob(pixels.shape[1])[None], len(pixels), axis=0)
    found, blob = find_lesion(maps, masks, patients), find_lesion(blobs, masks, patients)
    row: dict[str, float | str] = {"recipe": predictor.run.recipe, "n": len(pixels)}
    for name in ("pointing", "energy"):
        row[name], row[f"{name}_blob"] = float(found["value"][name]), float(blob["value"][name])
        row[f"{name}_low"], row[f"{name}_high"] = float(found["low"][name]), float(found["high"][name])
    others = heat_maps(randomised(predictor), pixels)
    return row | {
        "area": float(found["area"].iloc[0]),
        "agreement": float(np.nanmean(agreement(maps, others))),
    }


def deletion(
    predictor: Predictor, pixels: np.ndarray, maps: np.ndarray, instead: np.ndarray, steps: int = 10
) -> pd.DataFrame:
    """How the score falls as pixels are replaced, those the map marks most first (Petsiuk et al. 2018).

    Parameters
    ----------
    predictor
        Whose score.
    pixels
        uint8 `(n, size, size, 1)`.
    maps
        `(n, size, size)`.
    instead
        What stands in their place, 0…255 `(size, size)`: the mean of normal films, say. Not a blur of the
        film, which keeps a lesion that is itself blurred.
    steps
        Shares of the image, from 0 to 1.

    Returns
    -------
    pandas.DataFrame
        `removed` (share of the pixels)`, score` (mean P(pneumonia))`, by_chance` (pixels in random order).
    """
    size = pixels.shape[1]
    draw = np.random.default_rng(0)
    orders = {
        "score": np.argsort(-maps.reshape(len(maps), -1), axis=1, kind="stable"),
        "by_chance": np.stack([draw.permutation(size * size) for _ in pixels]),
    }
    shares = np.linspace(0, 1, steps + 1)
    table = {"removed": shares}
    for name, order in orders.items():
        means = []
        for share in shares:
            gone = np.zeros((len(pixels), size * size), bool)
            np.put_along_axis(gone, order[:, : round(share * size * size)], True, axis=1)
            left = np.where(gone.reshape(-1, size, size), instead, pixels[..., 0]).round().astype(np.uint8)
            means.append(predictor.score(left[..., None]).mean())
        table[name] = np.array(means)
    return pd.DataFrame(table)
