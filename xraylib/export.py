"""Make a run the model that comes with the package: in half precision, exported to LiteRT, its limits set.

Everything that its answers need is set on validation films of other patients than the run trained on.
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from keras import layers, ops
from scipy.special import expit, logit
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from xraylib import paths
from xraylib.datasets import images, splits
from xraylib.datasets.framing import SWAP, swap_framing
from xraylib.errors import NotFoundError
from xraylib.predict import Shipped
from xraylib.storage import atomic_folder, atomic_write
from xraylib.training import runs
from xraylib.training.predictor import load_predictor

# Shares of rows and columns kept: the film as it is, cut as pneumonias are, and cut the other way.
VIEWS = ((1.0, 1.0), (SWAP, 1.0), (1.0, SWAP))
# Of validation, the share that may be out of distribution, and the share whose answer may hang on the framing.
REFUSED = 0.01
COVERAGE, COMPONENTS = 0.95, 50


def package(run: runs.Run, films: pd.DataFrame) -> runs.Run:
    """Copy a run of `mobilenetv2_160` to `paths.SHIPPED`; `films` is the manifest that it was trained on.

    `model.weights.h5` for Keras; `model.tflite`, what `predict` answers with; and in `run.json`, as `answers`, its
    SHA-256, the calibration of its log odds (Platt, on validation as it is and framed as the other class), the
    threshold on the calibrated probability, the class-conditional prediction set, and the limits beyond which it
    abstains.
    """
    choices = run.settings["choices"]
    if choices["network"] != "mobilenetv2_160" or choices["head"] != "sigmoid":
        raise NotFoundError(
            f"{run.recipe} is another network. Fix: package the flagship, or export yours with xraylib/export.py."
        )
    assigned = splits.assign(
        films, run.protocol, run.seed, split_strategy=choices["split_strategy"]
    )
    pixels = images.load_pixels(films, choices["size"])
    train, val = (pixels[assigned.index[assigned["split"] == name]] for name in ("train", "val"))
    labels = assigned.loc[assigned["split"] == "val", "label"].to_numpy()
    with atomic_folder(paths.SHIPPED) as new:
        model = load_predictor(run).model
        _fold(model)
        model.save_weights(new / "model.weights.h5")
        _halve(new / "model.weights.h5")
        about = {"trained_model_sha256": run.settings["model_sha256"], "weights": "float16"}
        about["licences"] = {
            "data": "CC BY 4.0 (Kermany et al. 2018)",
            "initial weights": "Apache-2.0",
        }
        about = run.settings | about | {"model_sha256": runs.file_sha256(new / "model.weights.h5")}
        model = load_predictor(runs.Run(run.recipe, run.protocol, run.seed, new, about)).model
        (new / "model.tflite").write_bytes(to_litert(model, train))
        raw: dict[str, Any] = {
            "framings": VIEWS,
            "input": model.get_layer("backbone").input_shape[1],
        }
        raw |= {"sha256": runs.file_sha256(new / "model.tflite"), "calibration": [1.0, 0.0]}
        raw |= {
            "ood_limit": np.inf,
            "framing_limit": 1.0,
            "normal_up_to": 1.0,
            "pneumonia_from": 0.0,
            "threshold": 0.5,
        }

        def write(answers: dict[str, Any]) -> Shipped:
            (new / "run.json").write_text(json.dumps(about | {"answers": answers}, indent=1) + "\n")
            return Shipped.load(new)

        plain, both = write(raw), np.tile(labels, 2)
        views = np.concatenate([val, swap_framing(val, labels)])
        odds = logit(np.array([one["probability"] for one in plain.answer(views)]))
        fitted = LogisticRegression(C=1e6).fit(odds[:, None], both)
        slope, intercept = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
        raw |= {
            "calibration": [slope, intercept],
            "threshold": float(expit(slope * logit(run.threshold) + intercept)),
        }
        told = pd.DataFrame(write(raw).answer(val)).drop(columns="heat_map")
        probability = expit(slope * odds + intercept)
        raw["normal_up_to"] = float(np.quantile(probability[both == 0], COVERAGE, method="higher"))
        raw["pneumonia_from"] = float(
            np.quantile(probability[both == 1], 1 - COVERAGE, method="lower")
        )
        raw["ood_limit"] = float(told["ood_score"].quantile(1 - REFUSED))
        raw["framing_limit"] = float((told["highest"] - told["lowest"]).quantile(1 - REFUSED))
        write(raw)
    return runs.read_run(paths.SHIPPED)


def _fold(model: keras.Model) -> None:
    """Put batch norm into the convolutions before it, rounded to half precision.

    LiteRT's converter does the same; done before, Keras and LiteRT compute with the same numbers.
    """
    inside = model.get_layer("backbone").layers
    for convolution, norm in pairwise(inside):
        if isinstance(norm, layers.BatchNormalization):
            (kernel,), (gamma, beta, mean, variance) = convolution.get_weights(), norm.get_weights()
            scale = gamma / np.sqrt(variance + norm.epsilon)
            by_channel = (
                scale[:, None] if isinstance(convolution, layers.DepthwiseConv2D) else scale
            )
            convolution.set_weights([(kernel * by_channel).astype(np.float16)])
            one, shift = np.ones_like(gamma), (beta - mean * scale).astype(np.float16)
            norm.set_weights([one, shift, 0 * one, one - norm.epsilon])


def _halve(file: Path) -> None:
    """Rewrite a weights file in half precision."""
    import h5py  # type: ignore[import-untyped]

    with (
        atomic_write(file) as temporary,
        h5py.File(file) as old,
        h5py.File(temporary, "w") as small,
    ):

        def copy(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                half = (
                    np.float16 if item.ndim > 1 else item.dtype
                )  # a variance of 1 - epsilon needs all its digits
                made = small.create_dataset(name, data=np.asarray(item).astype(half))
            else:
                made = small.require_group(name)
            made.attrs.update(item.attrs)

        old.visititems(copy)
        small.attrs.update(old.attrs)


def to_litert(model: keras.Model, train: np.ndarray) -> bytes:
    """A LiteRT model of one film, in half precision; its input are the film's `views`, float32 `(3, small, small, 1)`.

    It gives `log_odds` `(3,)`; `heat` `(1, h, w)` of the first view: the last feature maps, weighted by the head, which
    is Grad-CAM for this network; and `ood` `(1,)`: how far its features lie outside the first `COMPONENTS` principal
    components of those of the training films, uint8 `(n, size, size, 1)`, whose root mean square is 1.
    """
    import tensorflow as tf

    small = model.get_layer("backbone").input_shape[1]
    kernel, bias = (np.asarray(weight) for weight in model.layers[-1].weights)
    pooled = keras.Model(model.input, model.layers[-3].output)
    features = pooled.predict(train, batch_size=32, verbose=0)
    inside = PCA(min(COMPONENTS, len(features) // 2), random_state=0).fit(features)
    axes, mean = inside.components_.astype(np.float32), inside.mean_.astype(np.float32)
    rest = features - inside.inverse_transform(inside.transform(features))
    usual = float(np.sqrt((rest**2).sum(axis=1).mean()))

    class Answers(layers.Layer):
        def call(self, views: Any) -> dict[str, Any]:
            maps = model.get_layer("backbone")(
                ops.repeat(views / 127.5 - 1.0, 3, axis=-1), training=False
            )
            found = ops.mean(maps, axis=(1, 2))
            far = found[:1] - mean
            rest = far - ops.matmul(ops.matmul(far, axes.T), axes)
            ood = ops.sqrt(ops.sum(rest**2, axis=1)) / usual
            odds = ops.matmul(found, kernel)[:, 0] + bias
            return {"log_odds": odds, "heat": ops.matmul(maps[:1], kernel)[..., 0], "ood": ood}

    views = keras.Input((small, small, 1), batch_size=len(VIEWS), name="views")
    converter = tf.lite.TFLiteConverter.from_keras_model(keras.Model(views, Answers()(views)))
    converter.optimizations, converter.target_spec.supported_types = (
        [tf.lite.Optimize.DEFAULT],
        [tf.float16],
    )
    return converter.convert()
