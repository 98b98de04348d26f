"""Make trained networks LiteRT models: that of the package, or one in a folder of its own.

Everything that answers need is chosen on validation images, whose patients the run did not train
on. What is reported of the test is measured after that. A part that cannot be set from the data of
the run is left out and named; none is taken from other data.
"""

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from keras import layers, ops
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

from xraylib import explanation, gate, paths
from xraylib.datasets import images, lung_finder, splits
from xraylib.datasets.framing import swap_framing
from xraylib.errors import InvalidDataError, NotFoundError
from xraylib.packaged import (
    MODEL_FILE,
    NORMAL,
    OK,
    PNEUMONIA,
    SETTINGS_FILE,
    Answer,
    PackagedModel,
    build_packaged,
    load_packaged,
    write_packaged,
)
from xraylib.storage import CHECKSUM_FILE, sha256_bytes, storage_errors, write_verified
from xraylib.training import runs
from xraylib.training.predictor import Predictor, load_predictor

# Of each class, the share of validation images that may lie beyond the limit of the other.
WRONG = 0.01
# Of validation, the share that the gate refuses, and the share that counts as another population.
REFUSED = 0.02
OUTSIDE = 0.01

_FOLDS = 5
_LICENCES = {"data": "CC BY 4.0 (Kermany et al. 2018)", "initial weights": "Apache-2.0"}
# Data sets of children, of whose models answers say that adults are unlike the training images.
_OF_CHILDREN = ("kermany", "kermany-v3")

_log = logging.getLogger(__name__)


def best_run(candidates: Sequence[runs.Run]) -> runs.Run:
    """Choose the run with the best validation at its best epoch.

    The criterion is the one that chose its epoch: the AUC in the worst swapped view where there are
    some, otherwise the loss.
    """

    def criterion(run: runs.Run) -> float:
        aucs = run.history.filter(like="val_auc_")
        losses = run.history["val_loss"] if aucs.empty else 1 - aucs.min(axis=1)
        return losses.min()

    return min(candidates, key=criterion)


def package(
    run: runs.Run,
    manifest: pd.DataFrame,
    others: pd.DataFrame,
    radiologists_list: Path | None = None,
) -> PackagedModel:
    """Make a run of the flagship the packaged model, in `paths.SHIPPED`.

    Parameters
    ----------
    run, manifest, others
        As in `export_run`.
    radiologists_list
        See `agreement_with_radiologists`; by default nothing is known elsewhere.

    Raises
    ------
    NotFoundError
        If the run is of another network.
    InvalidDataError
        If a part of the model cannot be set.
    """
    expected = {"network": "mobilenetv2_standardized", "head": "sigmoid", "region": "lungs"}
    if not expected.items() <= run.choices.items():
        raise NotFoundError(
            f"{run.recipe} is another network than the packaged one. Fix: export it with --to "
            "FOLDER."
        )
    settings, content = _convert_run(run, manifest, others, half_precision=True)
    answers = settings["answers"]
    for part, reason in answers.pop("left_out").items():
        raise InvalidDataError(f"no {part}: {reason}. Fix: package a model of a larger data set.")
    answers["reference"] |= explanation.localisation(settings["dataset"])
    settings |= {"weights": "float16", "licences": _LICENCES}
    if radiologists_list is not None:
        answers["elsewhere"] = agreement_with_radiologists(
            build_packaged(settings, content), others, radiologists_list
        )
    write_packaged(paths.SHIPPED, settings, content)
    return load_packaged(paths.SHIPPED)


def export_run(
    run: runs.Run,
    manifest: pd.DataFrame,
    folder: Path,
    others: pd.DataFrame | None = None,
) -> PackagedModel:
    """Write a run as a LiteRT model, which `predict --model FOLDER` answers with.

    The folder has `model.tflite`, `run.json` and their `SHA256SUMS`. `run.json` is that of the run
    without its Keras weights, and has as `answers`:

    input, region, sha256
        Side of the network's input in pixels, which region it sees, and its file's SHA-256.
    calibration, prevalence, normal_up_to, pneumonia_from
        See `limits_of`; in their place, where they cannot be set, the run's `threshold`.
    gate_limit, domain_limit
        See `gate_limits`.
    right, reference
        How often each answer was right on the test, and what explanations compare with.
    left_out
        The parts that could not be set, each with its reason.
    dataset
        What it was trained on; missing for Kermany's children.

    Parameters
    ----------
    run
        Its model must be on this machine.
    manifest
        Of the data set that it was trained on.
    folder
        Where to write; it is new, empty, or holds an exported model, which is replaced.
    others
        Of another population, whose upright, complete chest images the gate lets pass. It learns
        from the pixels of `gate.taught_half`; nothing else is used. Without it there is no gate.

    Raises
    ------
    NotFoundError
        If the run sees no image, or a region that new images do not have.
    InvalidDataError
        If the folder holds something else, the run was trained on other images, or `others` are
        too few or among those images.
    OperationFailedError
        If the folder cannot be written.
    """
    folder = folder.resolve()  # a symbolic link stays one
    with storage_errors(folder), suppress(FileNotFoundError):
        names = {file.name for file in folder.iterdir()}
        is_model = names == {MODEL_FILE, SETTINGS_FILE, CHECKSUM_FILE}
        if folder == Path.cwd() or (names and not is_model):
            raise InvalidDataError(
                f"{folder} holds other files, or is the working folder. Fix: name a new folder."
            )
    settings, content = _convert_run(run, manifest, others, half_precision=False)
    write_packaged(folder, settings, content)
    return load_packaged(folder)


def _convert_run(
    run: runs.Run,
    manifest: pd.DataFrame,
    others: pd.DataFrame | None,
    *,
    half_precision: bool,
) -> tuple[dict[str, Any], bytes]:
    """Return the content of the two files of a run as a LiteRT model."""
    assigned = _assign_splits(run, manifest)
    rows = {split: assigned.index[assigned["split"] == split] for split in ("train", "val", "test")}
    predictor = load_predictor(run)
    network = split_network(predictor)
    pixels = images.load_pixels(manifest, predictor.size)
    left_out = {}
    linear = None
    if others is None:
        left_out["gate"] = "no images of another population were given (--others)"
    else:
        _check_others(others, manifest)
        foreign = images.load_pixels(others, predictor.size)[gate.taught_half(others)]
        linear = gate.teach(network.describe, pixels[rows["train"]], foreign)
    if "maps" not in network.model.output:
        left_out["heat map"] = "its last layer does not read means of feature maps"
    content = to_litert(network, linear, half_precision=half_precision)
    settings = _settings(run, network, content)
    answers = settings["answers"]
    limits, not_set = _set_limits(
        build_packaged(settings, content), run, manifest.loc[rows["val"]], pixels[rows["val"]]
    )
    answers |= limits
    left_out |= not_set
    if linear is not None and "gate_limit" not in limits:
        left_out["gate"] = "no lungs are found in validation images"
    if rows["test"].empty or "limits" in left_out:
        reason = left_out.get("limits", "there are no test images")
        left_out["record of right answers"] = reason
    else:
        answers["right"] = right_answers(
            build_packaged(settings, content).answer(pixels[rows["test"]]),
            manifest.loc[rows["test"], "label"].to_numpy(),
        )
    if network.sees_lungs:
        answers["reference"] = explanation.reference(manifest, rows["train"].to_numpy())
    answers["left_out"] = left_out
    return settings, content


def _check_others(others: pd.DataFrame, manifest: pd.DataFrame) -> None:
    """Refuse images that cannot teach the gate what another population is."""
    known = others["sha256"].isin(manifest["sha256"]).sum()
    patients = others["patient"].nunique()
    if known or patients < _FOLDS:
        raise InvalidDataError(
            f"the other population has {patients} patients, and {known} of its images are in "
            f"the data set itself. Fix: with --others give images of {_FOLDS} or more other "
            "patients."
        )


def _set_limits(
    model: PackagedModel,
    run: runs.Run,
    validation: pd.DataFrame,
    pixels: np.ndarray,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the limits that a run's validation images set, and the parts that they do not set."""
    plain = model.answer(pixels)
    limits: dict[str, Any] = gate_limits(plain)
    log_odds = _log_odds(plain, validation)
    if run.choices.get("validation", "plain") != "plain":
        swapped = swap_framing(pixels, validation["label"].to_numpy())
        log_odds = pd.concat([log_odds, _log_odds(model.answer(swapped), validation)])
    too_few = _too_few_patients(log_odds)
    if too_few:
        return limits | {"threshold": run.threshold}, {"limits": too_few}
    return limits | limits_of(log_odds), {}


def _assign_splits(run: runs.Run, manifest: pd.DataFrame) -> pd.DataFrame:
    """Split the manifest as the run did, so that validation has no patient of its training."""
    strategy = run.choices["split_strategy"]
    assigned = splits.assign(manifest, run.protocol, run.seed, split_strategy=strategy)
    if runs.split_fingerprint(assigned) != run.settings["split"]:
        raise InvalidDataError(
            f"{run.folder} was trained on other files or labels than those on this machine. "
            f"Fix: train it again: {run.command}"
        )
    return assigned


def _settings(run: runs.Run, network: "SplitNetwork", content: bytes) -> dict[str, Any]:
    """Return the run's settings, without its Keras weights, as those of a model without limits."""
    settings = {name: value for name, value in run.settings.items() if name != "model_sha256"}
    answers: dict[str, Any] = {
        "input": network.side,
        "region": "lungs" if network.sees_lungs else "whole",
        "sha256": sha256_bytes(content),
    }
    if settings["dataset"] not in _OF_CHILDREN:
        answers["dataset"] = settings["dataset"]
    return settings | {"trained_model_sha256": run.settings["model_sha256"], "answers": answers}


def gate_limits(answers: list[Answer]) -> dict[str, float]:
    """Choose the limits that the shares `REFUSED` and `OUTSIDE` of answers lie beyond.

    Returns
    -------
    dict
        `gate_limit` and `domain_limit`; nothing for a model without a gate.
    """
    judged = [answer for answer in answers if "gate" in answer]
    if not judged:
        return {}
    return {
        "gate_limit": _quantile([answer["gate"][OK] for answer in judged], REFUSED, "lower"),
        "domain_limit": _quantile([answer["domain"] for answer in judged], 1 - OUTSIDE, "higher"),
    }


def _log_odds(answers: list[Answer], manifest: pd.DataFrame) -> pd.DataFrame:
    """Return `log_odds`, `label` and `patient` of the images that have log odds."""
    log_odds = [answer.get("log_odds", np.nan) for answer in answers]
    return manifest[["label", "patient"]].assign(log_odds=log_odds).dropna(subset="log_odds")


def _too_few_patients(log_odds: pd.DataFrame) -> str:
    """Say which class has fewer patients than there are folds; empty if none has."""
    for label in (0, 1):
        count = log_odds.loc[log_odds["label"] == label, "patient"].nunique()
        if count < _FOLDS:
            return f"validation has {count} patients of class {label}, fewer than {_FOLDS}"
    return ""


def limits_of(log_odds: pd.DataFrame) -> dict[str, Any]:
    """Choose calibration and limits on validation images.

    Parameters
    ----------
    log_odds
        `log_odds`, `label` and `patient` of each image. Where a recipe chose its epoch on swapped
        images, each image framed as the other class has a row as well.

    Returns
    -------
    dict
        calibration : see `choose_calibration`
        prevalence : share of pneumonias among these images
        normal_up_to, pneumonia_from : limits of the answers, on the calibrated log odds: beyond
            them lies at most the share `WRONG` of the other class, and none contradicts P = .5
    """
    labels = log_odds["label"].to_numpy()
    raw = log_odds["log_odds"].to_numpy()
    calibration = choose_calibration(raw, labels, log_odds["patient"].to_numpy())
    calibrated = raw * calibration["slope"] + calibration["intercept"]
    return {
        "calibration": calibration,
        "prevalence": float(labels.mean()),
        "normal_up_to": min(0.0, _quantile(calibrated[labels == 1], WRONG, "lower")),
        "pneumonia_from": max(0.0, _quantile(calibrated[labels == 0], 1 - WRONG, "higher")),
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
    """
    losses = {"raw": float(log_loss(labels, expit(log_odds)))}
    lines = {"raw": {"slope": 1.0, "intercept": 0.0}}
    for method in ("temperature", "platt"):
        model = LogisticRegression(C=1e6, fit_intercept=method == "platt")
        held_out = cross_val_predict(
            model,
            log_odds[:, None],
            labels,
            groups=patients,
            cv=StratifiedGroupKFold(_FOLDS),
            method="decision_function",
        )
        losses[method] = float(log_loss(labels, expit(held_out)))
        model.fit(log_odds[:, None], labels)
        slope = float(model.coef_[0, 0])
        lines[method] = {"slope": slope, "intercept": float(model.intercept_[0])}
    best = min(losses, key=losses.__getitem__)
    _log.info("calibration: %s, cross-validated log loss %s", best, losses)
    return {"method": best, **lines[best], "log_loss": losses}


def _quantile(values: Any, share: float, method: Any) -> float:
    return float(np.quantile(values, share, method=method))


def right_answers(answers: list[Answer], labels: np.ndarray) -> dict[str, dict[str, Any]]:
    """Count how often each answer was right.

    Parameters
    ----------
    answers
        From `PackagedModel.answer`.
    labels
        `(n,)`, 0 for normal and 1 for pneumonia.

    Returns
    -------
    dict
        By answer that says a class: `n`, how often it was given, and `share`, how often it was
        right, or None where it was never given.
    """
    rates = {}
    for name, label in ((NORMAL, 0), (PNEUMONIA, 1)):
        given = [answer["status"] == "ok" and answer["answer"] == name for answer in answers]
        right = labels[given] == label
        rates[name] = {"n": len(right), "share": float(right.mean()) if len(right) else None}
    return rates


def agreement_with_radiologists(
    model: PackagedModel,
    others: pd.DataFrame,
    file: Path,
) -> dict[str, Any]:
    """Measure how the model ranks images that radiologists re-read: lung opacity against normal.

    Parameters
    ----------
    model : PackagedModel
    others : pandas.DataFrame
        A manifest. An image without an answer has the log odds 0.
    file : pathlib.Path
        A CSV file with the columns `image_id`, `view` (AP or PA) and `rsna_class`, of which
        `Lung Opacity` and `Normal` are compared.

    Returns
    -------
    dict
        `images`: how many; `all`, `AP` and `PA`: the AUC of all of them and of each view.
    """
    listed = pd.read_csv(file).set_index("image_id").reindex(others["image_id"])
    is_opacity = (listed["rsna_class"] == "Lung Opacity").to_numpy()
    is_compared = is_opacity | (listed["rsna_class"] == "Normal").to_numpy()
    pixels = images.load_pixels(others, model.size)[np.flatnonzero(is_compared)]
    log_odds = np.array([answer.get("log_odds", 0.0) for answer in model.answer(pixels)])
    labels = is_opacity[is_compared]
    views = listed["view"].to_numpy()[is_compared]
    agreement = {"images": len(labels), "all": float(roc_auc_score(labels, log_odds))}
    for view in ("AP", "PA"):
        is_view = views == view
        agreement[view] = float(roc_auc_score(labels[is_view], log_odds[is_view]))
    return agreement


@dataclass(frozen=True)
class SplitNetwork:
    """A run's network, split at its last layer.

    Attributes
    ----------
    model
        From images `(n, side, side, 1)` to `features`, what the last layer reads, `(n, k)`, and
        `maps`, the last feature maps, where the features are their means.
    kernel, bias
        The log odds of pneumonia are `features @ kernel + bias`; float32 `(k,)` and a number.
    side
        Height and width of the input in pixels.
    sees_lungs
        Whether the network sees the box of the lungs, not the whole image.
    """

    model: keras.Model
    kernel: np.ndarray
    bias: float
    side: int
    sees_lungs: bool

    def features(self, views: np.ndarray) -> np.ndarray:
        """Return the features, `(n, k)`, of images in 0…255, `(n, side, side, 1)`."""
        return self.model.predict(views, batch_size=64, verbose=0)["features"]

    def describe(self, pixels: np.ndarray) -> np.ndarray:
        """Describe images for `gate.teach`."""
        if self.sees_lungs:
            return gate.describe_lungs(pixels, self.features, self.side)
        return self.features(pixels)


def split_network(predictor: Predictor) -> SplitNetwork:
    """Split a run's network at its last layer.

    Raises
    ------
    NotFoundError
        If it sees a region that new images do not have.
    """
    if predictor.region not in ("whole", "lungs"):
        raise NotFoundError(
            f"{predictor.run.recipe} sees the region {predictor.region!r}, which new images do not "
            "have. Fix: export a recipe that sees the whole image, or `lungs`."
        )
    model = predictor.model
    body = [layer for layer in model.layers if not isinstance(layer, layers.Dropout)]
    if predictor.head is None:
        last = body.pop()
        features = last.input
        kernel, bias = (np.asarray(weight, np.float32) for weight in last.weights)
        if kernel.shape[1] == 1:
            kernel = kernel[:, 0]
            log_odds_bias = bias[0]
        else:
            kernel = kernel[:, 1] - kernel[:, 0]
            log_odds_bias = bias[1] - bias[0]
    else:
        features = model.output
        kernel = predictor.head["coefficients"].astype(np.float32)
        log_odds_bias = predictor.head["intercept"]
    outputs = {"features": features}
    if isinstance(body[-1], layers.GlobalAveragePooling2D):
        outputs["maps"] = body[-1].input
    return SplitNetwork(
        keras.Model(model.input, outputs),
        kernel,
        float(log_odds_bias),
        model.input_shape[1],
        predictor.region == "lungs",
    )


class _Answers(layers.Layer):
    """What an answer needs of a network, see `to_litert`."""

    def __init__(
        self,
        network: SplitNetwork,
        linear: tuple[gate.Linear, gate.Linear] | None,
    ) -> None:
        super().__init__()
        self.model = network.model
        self.kernel = network.kernel
        self.bias = network.bias
        self.linear = dict(zip(("gate", "domain"), linear or (), strict=False))

    def call(self, views: Any, lungs: Any = None) -> dict[str, Any]:
        """Answer the views of one image."""
        seen = self.model(views, training=False)
        features = seen["features"]
        outputs = {"log_odds": ops.matmul(features[:1], self.kernel[:, None])[:, 0] + self.bias}
        if "maps" in seen:
            outputs["heat"] = ops.sum(seen["maps"][:1] * self.kernel, axis=-1)
        described = ops.reshape(features, (1, -1))
        if lungs is not None:
            described = ops.concatenate([described, ops.reshape(lungs, (1, 6))], axis=1)
        for name, layer in self.linear.items():
            outputs[name] = ops.matmul(described, layer.kernel) + layer.bias
        return outputs


def to_litert(
    network: SplitNetwork,
    linear: tuple[gate.Linear, gate.Linear] | None = None,
    *,
    half_precision: bool = False,
) -> bytes:
    """Convert a network to a LiteRT model of one image.

    Its input `views` is float32 in 0…255: the image, `(1, side, side, 1)`, or for a network that
    sees the lungs `packaged.two_views`, `(2, side, side, 1)`, with the image's row of
    `packaged.find_lungs` as `lungs`, float32 `(6,)`. It gives `log_odds` `(1,)` of the first view
    and, where the network has them:

    heat
        `(1, h, w)`: the last feature maps, weighted by the head, which is Grad-CAM here.
    gate
        `(1, 8)`: log odds of the entries of `packaged.GATE`.
    domain
        `(1, 1)`: large for images of other populations.

    Parameters
    ----------
    network
        From `split_network`.
    linear
        The layers of gate and domain, from `gate.teach`.
    half_precision
        Keep weights in float16, which halves the file.

    Raises
    ------
    NotFoundError
        If LiteRT cannot hold the network.
    """
    shape = (network.side, network.side, 1)
    inputs = [keras.Input(shape, batch_size=2 if network.sees_lungs else 1, name="views")]
    if network.sees_lungs:
        inputs.append(keras.Input(batch_shape=(6,), name="lungs"))
    outputs = _Answers(network, linear)(*inputs)
    try:
        return _convert(keras.Model(inputs, outputs), half_precision=half_precision)
    except Exception as error:  # the converter's own, of whatever it does not know
        reason = " ".join(str(error).split())[:200]
        raise NotFoundError(
            f"LiteRT cannot hold this network ({type(error).__name__}: {reason}). "
            "Fix: predict with the run itself, by `predict --model` and its folder."
        ) from error


def package_lung_finder(network: keras.Model) -> None:
    """Make a network of benchmarks/train_lung_finder.py the one that comes with the package.

    Writes `lungs.tflite` and its checksum to `paths.SHIPPED`. The network takes one `image`,
    float32 `(1, 112, 112, 1)` in 0…255, and gives `lung`, the probability of the same shape.
    """
    side = lung_finder.SIZE
    image = keras.Input((side, side, 1), batch_size=1, name="image")
    model = keras.Model(image, {"lung": network(image)})
    content = _convert(model, half_precision=True)
    write_verified(paths.SHIPPED, {lung_finder.MODEL_FILE: content})
    lung_finder.load_network.cache_clear()


def _convert(model: keras.Model, *, half_precision: bool) -> bytes:
    import tensorflow as tf

    keras.config.disable_interactive_logging()  # which would print the graph
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if half_precision:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]
    return converter.convert()
