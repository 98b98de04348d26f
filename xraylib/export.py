"""Make trained networks those of the package: LiteRT in half precision.

The packaged model comes with the limits of its answers; beside it lies the network that finds the
lungs. Everything that its answers need is chosen on validation images, whose patients the run did
not train on; what is reported of the test is measured after that.
"""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from keras import layers, ops
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold

from xraylib import explanation, gate, measurements, paths
from xraylib.datasets import images, lung_finder, regions, splits
from xraylib.datasets.framing import swap_framing
from xraylib.errors import InvalidDataError, NotFoundError
from xraylib.packaged import OK, PackagedModel, build_packaged, load_packaged, write_packaged
from xraylib.storage import write_verified
from xraylib.training import networks, runs
from xraylib.training.predictor import load_predictor

# Of each class, the share of validation images that may lie beyond the limit of the other.
WRONG = 0.01
# Of validation, the share that the gate refuses, and the share that counts as another population.
REFUSED = 0.02
OUTSIDE = 0.01

_FOLDS = 5
_LICENCES = {"data": "CC BY 4.0 (Kermany et al. 2018)", "initial weights": "Apache-2.0"}

# What an answer is without any limit: the network's own probability.
_NO_LIMITS = {
    "calibration": {"method": "raw", "slope": 1.0, "intercept": 0.0},
    "prevalence": 0.5,
    "normal_up_to": 0.0,
    "pneumonia_from": 0.0,
    "gate_limit": 0.0,
    "domain_limit": 0.0,
}

_log = logging.getLogger(__name__)


def best_run(candidates: Sequence[runs.Run]) -> runs.Run:
    """Choose the run with the highest validation AUC in its worst view, at its best epoch.

    This is the criterion of a recipe's validation `robust`, by which its epochs are chosen too.
    """

    def worst_view_auc(run: runs.Run) -> float:
        return run.history.filter(like="val_auc_").min(axis=1).max()

    return max(candidates, key=worst_view_auc)


def package(
    run: runs.Run,
    manifest: pd.DataFrame,
    others: pd.DataFrame,
    radiologists_list: Path | None = None,
) -> PackagedModel:
    """Make a run of the flagship the packaged model, in `paths.SHIPPED`.

    Its `run.json` has, as `answers`, what `limits_of` chooses, and what answers mention: how often
    each was `right` on the official test, what is known `elsewhere`, and the `reference` that
    explanations compare with. They are measured when all limits are chosen.

    Parameters
    ----------
    run
        Its model must be on this machine.
    manifest
        Of the data set that it was trained on.
    others
        Of another population, whose upright, complete chest images the gate lets pass. It learns
        from the pixels of `gate.taught_half`; nothing else is used.
    radiologists_list
        See `measurements.agreement_with_radiologists`; by default nothing is known elsewhere.

    Raises
    ------
    NotFoundError
        If the run is of another network.
    """
    choices = run.settings["choices"]
    expected = ("mobilenetv2_standardized", "sigmoid", "lungs")
    if (choices["network"], choices["head"], choices.get("region")) != expected:
        raise NotFoundError(
            f"{run.recipe} is another network. Fix: package the flagship, or export yours with "
            "xraylib/export.py."
        )
    strategy = choices["split_strategy"]
    assigned = splits.assign(manifest, run.protocol, run.seed, split_strategy=strategy)
    pixels = images.load_pixels(manifest, regions.SOURCE_SIZE)
    training = pixels[np.flatnonzero(assigned["split"] == "train")]
    validation_rows = np.flatnonzero(assigned["split"] == "val")
    foreign = images.load_pixels(others, regions.SOURCE_SIZE)[gate.taught_half(others)]

    network = load_predictor(run).model
    content = to_litert(
        network, *gate.teach(_features(network), choices["size"], training, foreign)
    )
    settings = _settings(run, content)
    validation = assigned.iloc[validation_rows]
    settings["answers"] |= limits_of(
        build_packaged(settings, content),
        pixels[validation_rows],
        validation["label"].to_numpy(),
        validation["patient"].to_numpy(),
    )
    frozen = build_packaged(settings, content)
    test = np.flatnonzero(assigned["split"] == "test")
    settings["answers"]["right"] = measurements.right_answers(
        frozen.answer(pixels[test]),
        assigned["label"].to_numpy()[test],
    )
    settings["answers"]["reference"] = explanation.reference(assigned)
    if radiologists_list is not None:
        settings["answers"]["elsewhere"] = measurements.agreement_with_radiologists(
            frozen, others, radiologists_list
        )
    write_packaged(paths.SHIPPED, settings, content)
    return load_packaged(paths.SHIPPED)


def _settings(run: runs.Run, content: bytes) -> dict[str, Any]:
    """Give the run's settings as those of the packaged model, without limits and Keras weights."""
    settings = {name: value for name, value in run.settings.items() if name != "model_sha256"}
    answers = {
        "input": run.settings["choices"]["size"],
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    return settings | {
        "trained_model_sha256": run.settings["model_sha256"],
        "weights": "float16",
        "licences": _LICENCES,
        "answers": _NO_LIMITS | answers,
    }


def _features(network: keras.Model) -> gate.Network:
    """From two views of images, float32 `(n, 2, side, side, 1)`, to their features `(n, 2, k)`."""
    pooled = keras.Model(network.input, network.layers[-3].output)

    def features(views: np.ndarray) -> np.ndarray:
        flat = views.reshape(-1, *views.shape[2:])
        return pooled.predict(flat, batch_size=64, verbose=0).reshape(len(views), 2, -1)

    return features


def limits_of(
    model: PackagedModel,
    validation: np.ndarray,
    labels: np.ndarray,
    patients: np.ndarray,
) -> dict[str, Any]:
    """Choose calibration and limits on validation images, plain and framed as the other class.

    Parameters
    ----------
    model
        Without limits.
    validation
        uint8 `(n, 224, 224, 1)`.
    labels, patients
        `(n,)`.

    Returns
    -------
    dict
        calibration : `method`, `slope` and `intercept` of the log odds, and the cross-validated
            log loss of each method
        prevalence : share of pneumonias among these images
        normal_up_to, pneumonia_from : limits of the answers, on the calibrated log odds: beyond
            them lies at most the share `WRONG` of the other class, and none contradicts P = .5
        gate_limit, domain_limit : what the shares `REFUSED` and `OUTSIDE` of the images lie beyond
    """
    plain = model.answer(validation)
    answers = [*plain, *model.answer(swap_framing(validation, labels))]
    with_lungs = np.array(["log_odds" in answer for answer in answers])
    log_odds = np.array([answer["log_odds"] for answer in answers if "log_odds" in answer])
    both_labels = np.tile(labels, 2)[with_lungs]
    both_patients = np.tile(patients, 2)[with_lungs]
    calibration = choose_calibration(log_odds, both_labels, both_patients)
    calibrated = log_odds * calibration["slope"] + calibration["intercept"]
    seen = [answer for answer in plain if "gate" in answer]
    return {
        "calibration": calibration,
        "prevalence": float(both_labels.mean()),
        "normal_up_to": min(0.0, _quantile(calibrated[both_labels == 1], WRONG, "lower")),
        "pneumonia_from": max(0.0, _quantile(calibrated[both_labels == 0], 1 - WRONG, "higher")),
        "gate_limit": _quantile([answer["gate"][OK] for answer in seen], REFUSED, "lower"),
        "domain_limit": _quantile([answer["domain"] for answer in seen], 1 - OUTSIDE, "higher"),
    }


def choose_calibration(
    log_odds: np.ndarray,
    labels: np.ndarray,
    patients: np.ndarray,
) -> dict[str, Any]:
    """Choose among the raw log odds, a temperature and Platt's line, by log loss.

    The loss is that of held-out patients in `_FOLDS` folds; the line chosen is fitted on all.

    Returns
    -------
    dict
        `method` (raw, temperature or platt), `slope`, `intercept`, and `log_loss` by method.

    Raises
    ------
    InvalidDataError
        If a class has fewer patients than there are folds.
    """
    for label in (0, 1):
        count = len(np.unique(patients[labels == label]))
        if count < _FOLDS:
            raise InvalidDataError(
                f"validation has lungs of {count} patients of class {label}, fewer than {_FOLDS}. "
                "Fix: package a model of a larger data set."
            )
    held_out = {name: np.empty(len(log_odds)) for name in _CALIBRATIONS}
    for fit, rest in StratifiedGroupKFold(_FOLDS).split(log_odds, labels, patients):
        for name, calibrate in _CALIBRATIONS.items():
            slope, intercept = calibrate(log_odds[fit], labels[fit])
            held_out[name][rest] = expit(log_odds[rest] * slope + intercept)
    losses = {name: float(log_loss(labels, values)) for name, values in held_out.items()}
    method = min(losses, key=losses.__getitem__)
    slope, intercept = _CALIBRATIONS[method](log_odds, labels)
    _log.info("calibration: %s, cross-validated log loss %s", method, losses)
    return {"method": method, "slope": slope, "intercept": intercept, "log_loss": losses}


def _raw(log_odds: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    return 1.0, 0.0


def _temperature(log_odds: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    model = LogisticRegression(C=1e6, fit_intercept=False).fit(log_odds[:, None], labels)
    return float(model.coef_[0, 0]), 0.0


def _platt(log_odds: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    model = LogisticRegression(C=1e6).fit(log_odds[:, None], labels)
    return float(model.coef_[0, 0]), float(model.intercept_[0])


_CALIBRATIONS = {"raw": _raw, "temperature": _temperature, "platt": _platt}


def _quantile(values: Any, share: float, method: Any) -> float:
    return float(np.quantile(values, share, method=method))


class _Answers(layers.Layer):
    """What an answer needs of the network: log odds, a heat map, the gate and the domain.

    Parameters
    ----------
    model
        The trained network: standardisation, a layer `backbone`, average pooling, a sigmoid unit.
    gate_layer, domain_layer
        From `gate.teach`.
    """

    def __init__(
        self,
        model: keras.Model,
        gate_layer: gate.Linear,
        domain_layer: gate.Linear,
    ) -> None:
        super().__init__()
        self.backbone = model.get_layer("backbone")
        self.kernel, self.bias = (np.asarray(weight) for weight in model.layers[-1].weights)
        self.gate_layer = gate_layer
        self.domain_layer = domain_layer

    def call(self, views: Any, lungs: Any) -> dict[str, Any]:
        """Answer the two views of one image, `(2, side, side, 1)` in 0…255, and its lungs."""
        standardised = networks.Standardization()(views)
        feature_maps = self.backbone(ops.repeat(standardised, 3, axis=-1), training=False)
        features = ops.mean(feature_maps, axis=(1, 2))
        described = ops.concatenate([ops.reshape(features, (1, -1)), ops.reshape(lungs, (1, 6))], 1)
        return {
            "log_odds": ops.matmul(features[:1], self.kernel)[:, 0] + self.bias,
            "heat": ops.sum(feature_maps[:1] * self.kernel[:, 0], axis=-1),
            "gate": ops.matmul(described, self.gate_layer.kernel) + self.gate_layer.bias,
            "domain": ops.matmul(described, self.domain_layer.kernel) + self.domain_layer.bias,
            "features": features,
        }


def to_litert(
    model: keras.Model,
    gate_layer: gate.Linear,
    domain_layer: gate.Linear,
) -> bytes:
    """Export a network as a LiteRT model of one image, in half precision.

    Its input are the image's two `views` (`packaged.two_views`), float32 `(2, side, side, 1)` in
    0…255, and `lungs`, float32 `(6,)`: area, certainty and box of `lung_finder.find`. It gives
    `log_odds` `(1,)` and `heat` `(1, h, w)` of the first view (the last feature maps, weighted by
    the head, which is Grad-CAM for this network); `gate` `(1, 8)`, log odds of the entries of
    `packaged.GATE`; `domain` `(1, 1)`, large for images of other populations; and the pooled
    `features` `(2, k)` of both views.

    Parameters
    ----------
    model
        A network `mobilenetv2_standardized`.
    gate_layer, domain_layer
        From `gate.teach`.
    """
    side = model.input_shape[1]
    views = keras.Input((side, side, 1), batch_size=2, name="views")
    lungs = keras.Input(batch_shape=(6,), name="lungs")
    answers = _Answers(model, gate_layer, domain_layer)(views, lungs)
    return _convert(keras.Model([views, lungs], answers))


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
