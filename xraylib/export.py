"""Make trained networks those of the package: LiteRT in half precision.

The packaged model comes with the limits of its answers; beside it lies the network that finds the
lungs. Everything that its answers need is chosen on validation images, whose patients the run did
not train on.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import pandas as pd
from keras import layers, ops
from scipy.special import expit, logit
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from xraylib import paths
from xraylib.datasets import images, lung_finder, splits
from xraylib.datasets.framing import SWAP, swap_framing
from xraylib.errors import NotFoundError
from xraylib.packaged import PackagedModel, build_packaged, load_packaged, write_packaged
from xraylib.storage import write_verified
from xraylib.training import runs
from xraylib.training.predictor import load_predictor

# Shares of rows and columns kept: the image itself, cropped as pneumonias are, and the other way.
VIEWS = ((1.0, 1.0), (SWAP, 1.0), (1.0, SWAP))

# Of validation, the share that may be out of distribution, and the share whose answer may depend
# on the framing.
REFUSED = 0.01

COVERAGE = 0.95
COMPONENTS = 50

# What an answer is without any limit: the network's own probability.
_NO_LIMITS = {
    "calibration": [1.0, 0.0],
    "ood_limit": np.inf,
    "framing_limit": 1.0,
    "normal_up_to": 1.0,
    "pneumonia_from": 0.0,
    "threshold": 0.5,
}

_LICENCES = {"data": "CC BY 4.0 (Kermany et al. 2018)", "initial weights": "Apache-2.0"}


def best_run(candidates: Sequence[runs.Run]) -> runs.Run:
    """Choose the run with the highest validation AUC in its worst view, at its best epoch.

    This is the criterion of a recipe's validation `worst`, by which its epochs are chosen too.
    """

    def worst_view_auc(run: runs.Run) -> float:
        return run.history.filter(like="val_auc_").min(axis=1).max()

    return max(candidates, key=worst_view_auc)


def package(run: runs.Run, manifest: pd.DataFrame) -> PackagedModel:
    """Make a run of the network `mobilenetv2_160` the packaged model, in `paths.SHIPPED`.

    Its `run.json` has, as `answers`: the views, the calibration of the log odds (Platt, on
    validation as it is and framed as the other class), the threshold on the calibrated
    probability, the class-conditional prediction set, and the limits beyond which it abstains.

    Parameters
    ----------
    run
        Its model must be on this machine.
    manifest
        Of the data set that it was trained on.

    Raises
    ------
    NotFoundError
        If the run is of another network.
    """
    choices = run.settings["choices"]
    if choices["network"] != "mobilenetv2_160" or choices["head"] != "sigmoid":
        raise NotFoundError(
            f"{run.recipe} is another network. Fix: package the flagship, or export yours with "
            "xraylib/export.py."
        )
    assigned = splits.assign(
        manifest,
        run.protocol,
        run.seed,
        split_strategy=choices["split_strategy"],
    )
    pixels = images.load_pixels(manifest, choices["size"])
    training = pixels[assigned.index[assigned["split"] == "train"]]
    is_validation = assigned["split"] == "val"
    validation = pixels[assigned.index[is_validation]]
    labels = assigned.loc[is_validation, "label"].to_numpy()

    network = load_predictor(run).model
    model = to_litert(network, training)
    settings = _settings(run)
    settings["answers"] = _NO_LIMITS | {
        "framings": VIEWS,
        "input": network.get_layer("backbone").input_shape[1],
        "sha256": hashlib.sha256(model).hexdigest(),
    }
    settings["answers"] |= _choose_limits(settings, model, validation, labels, run.threshold)
    write_packaged(paths.SHIPPED, settings, model)
    return load_packaged(paths.SHIPPED)


def _settings(run: runs.Run) -> dict[str, Any]:
    """Give the run's settings as those of the packaged model, which has no Keras weights."""
    settings = {name: value for name, value in run.settings.items() if name != "model_sha256"}
    return settings | {
        "trained_model_sha256": run.settings["model_sha256"],
        "weights": "float16",
        "licences": _LICENCES,
    }


def _choose_limits(
    settings: dict[str, Any],
    model: bytes,
    validation: np.ndarray,
    labels: np.ndarray,
    threshold: float,
) -> dict[str, Any]:
    """Choose calibration, threshold and limits on validation images `(n, size, size, 1)`."""
    uncalibrated = build_packaged(settings, model)
    both_framings = np.concatenate([validation, swap_framing(validation, labels)])
    both_labels = np.tile(labels, 2)
    answers = uncalibrated.answer(both_framings)
    log_odds = logit(np.array([answer["probability"] for answer in answers]))
    line = LogisticRegression(C=1e6).fit(log_odds[:, None], both_labels)
    slope = float(line.coef_[0, 0])
    intercept = float(line.intercept_[0])
    probability = expit(slope * log_odds + intercept)
    chosen: dict[str, Any] = {
        "calibration": [slope, intercept],
        "threshold": float(expit(slope * logit(threshold) + intercept)),
        "normal_up_to": _quantile(probability[both_labels == 0], COVERAGE, "higher"),
        "pneumonia_from": _quantile(probability[both_labels == 1], 1 - COVERAGE, "lower"),
    }
    settings = settings | {"answers": settings["answers"] | chosen}
    answers = build_packaged(settings, model).answer(validation)
    ood_scores = [answer["ood_score"] for answer in answers]
    ranges = [answer["highest"] - answer["lowest"] for answer in answers]
    return chosen | {
        "ood_limit": _quantile(ood_scores, 1 - REFUSED, "linear"),
        "framing_limit": _quantile(ranges, 1 - REFUSED, "linear"),
    }


def _quantile(values: Any, share: float, method: Any) -> float:
    return float(np.quantile(values, share, method=method))


class _Answers(layers.Layer):
    """What an answer needs of the network: its log odds, a heat map and an OOD score.

    Parameters
    ----------
    model
        The trained network: a layer `backbone`, global average pooling, a sigmoid unit.
    axes, mean
        Principal components of the training images' features, `(COMPONENTS, f)`, and their mean.
    usual
        Root mean square distance of the training images from those components.
    """

    def __init__(
        self,
        model: keras.Model,
        axes: np.ndarray,
        mean: np.ndarray,
        usual: float,
    ) -> None:
        super().__init__()
        self.backbone = model.get_layer("backbone")
        self.kernel, self.bias = (np.asarray(weight) for weight in model.layers[-1].weights)
        self.axes = axes
        self.mean = mean
        self.usual = usual

    def call(self, views: Any) -> dict[str, Any]:
        """Answer the views of one image, float32 `(3, input, input, 1)` in 0…255."""
        rgb = ops.repeat(views / 127.5 - 1.0, 3, axis=-1)
        feature_maps = self.backbone(rgb, training=False)
        features = ops.mean(feature_maps, axis=(1, 2))
        centred = features[:1] - self.mean
        within = ops.matmul(ops.matmul(centred, self.axes.T), self.axes)
        distance = ops.sqrt(ops.sum((centred - within) ** 2, axis=1))
        return {
            "log_odds": ops.matmul(features, self.kernel)[:, 0] + self.bias,
            "heat": ops.matmul(feature_maps[:1], self.kernel)[..., 0],
            "ood": distance / self.usual,
        }


def to_litert(model: keras.Model, training: np.ndarray) -> bytes:
    """Export a network as a LiteRT model of one image, in half precision.

    Its input are the image's `views`, float32 `(3, input, input, 1)`. It gives `log_odds` `(3,)`;
    `heat` `(1, h, w)` of the first view: the last feature maps, weighted by the head, which is
    Grad-CAM for this network; and `ood` `(1,)`: how far its features lie outside the first
    `COMPONENTS` principal components of those of the training images.

    Parameters
    ----------
    model
        A network `mobilenetv2_160`.
    training
        uint8 `(n, size, size, 1)`; the root mean square of their `ood` is 1.
    """
    pooled = keras.Model(model.input, model.layers[-3].output)
    features = pooled.predict(training, batch_size=32, verbose=0)
    components = PCA(min(COMPONENTS, len(features) // 2), random_state=0).fit(features)
    residuals = features - components.inverse_transform(components.transform(features))
    answers = _Answers(
        model,
        components.components_.astype(np.float32),
        components.mean_.astype(np.float32),
        float(np.sqrt((residuals**2).sum(axis=1).mean())),
    )
    side = model.get_layer("backbone").input_shape[1]
    views = keras.Input((side, side, 1), batch_size=len(VIEWS), name="views")
    return _convert(keras.Model(views, answers(views)))


def package_lung_finder(network: keras.Model) -> None:
    """Make a network of benchmarks/train_lung_finder.py the one that comes with the package.

    Writes `lungs.tflite` and its checksum to `paths.SHIPPED`. The network takes one `image`,
    float32 `(1, 112, 112, 1)` in 0…255, and gives `lung`, the probability of the same shape.
    """
    side = lung_finder.SIZE
    image = keras.Input((side, side, 1), batch_size=1, name="image")
    content = _convert(keras.Model(image, {"lung": network(image)}))
    write_verified(paths.SHIPPED, {lung_finder.MODEL_FILE: content})
    lung_finder.load_network.cache_clear()


def _convert(model: keras.Model) -> bytes:
    """Convert a network to LiteRT in half precision."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]
    return converter.convert()
