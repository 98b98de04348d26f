"""The networks in plain Keras 3, for TensorFlow and JAX: bodies, heads, augmentation, weights.

Every network takes uint8 grayscale images `(batch, size, size, 1)` in 0…255 and rescales them on
the device. A body reaches from rescaling to the last features; `build` adds input and head. Every
head ends in float32.
"""

import logging
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers
from scipy.special import expit

from xraylib import devices, paths
from xraylib.errors import InvalidDataError, NotFoundError
from xraylib.training.recipes import OWN_PARTS, part_name
from xraylib.training.runs import weights_label

log = logging.getLogger(__name__)

# The label of ImageNet weights that Keras downloads.
KERAS_LABEL = "imagenet (Keras)"


@dataclass(frozen=True)
class Weights:
    """Initial weights.

    Attributes
    ----------
    label
        Their name in tables.
    file
        Their file, or None for random weights and for Keras's own download.
    """

    label: str
    file: Path | None = None


def tiny_cnn(x: Any, size: int, weights: Weights) -> Any:
    """Two convolutions and five dense layers L1…L5, as the 28×28 system publishes them."""
    x = layers.Rescaling(1 / 255)(x)
    for _ in range(2):
        x = layers.Conv2D(64, 3, activation="relu")(x)
        x = layers.MaxPooling2D()(x)
    x = layers.Flatten()(x)
    for number, units in enumerate((256, 128, 64, 32, 16), start=1):
        x = layers.Dense(units, "relu", name=f"L{number}")(x)
    return x


def scratch_cnn(x: Any, size: int, weights: Weights) -> Any:
    """Four blocks of convolution, batch norm and pooling on RGB, regularised by L2 and dropout."""
    x = layers.Rescaling(1 / 255)(x)
    x = layers.Concatenate()([x, x, x])
    for filters in (16, 32, 64, 128):
        x = layers.Conv2D(
            filters,
            3,
            padding="same",
            use_bias=False,
            kernel_regularizer=keras.regularizers.L2(1e-4),
        )(x)
        x = layers.BatchNormalization(momentum=0.9)(x)
        x = layers.ReLU()(x)
        x = layers.MaxPooling2D()(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(64, "relu", kernel_regularizer=keras.regularizers.L2(1e-4))(x)
    return layers.Dropout(0.3)(x)


def backbone(x: Any, network: str, size: int, weights: Weights, *, scaled: bool = True) -> Any:
    """Return features of a Keras application without its top, as one layer named `backbone`.

    While the layer is frozen, batch norm uses its stored statistics. While it is trained the
    statistics learn as well, because `fit` overrides a `training=False` of the call (Keras 3.15).

    Parameters
    ----------
    x
        Float images `(batch, size, size, 1)` in 0…255.
    network
        A key of `BACKBONES`.
    size
        Height and width in pixels.
    weights
        Initial weights of the backbone.
    scaled
        Whether pixels are scaled to -1…1, as the applications expect.
    """
    if scaled:
        x = layers.Rescaling(1 / 127.5, offset=-1.0)(x)
    x = layers.Concatenate()([x, x, x])
    application = BACKBONES[network](
        input_shape=(size, size, 3),
        include_top=False,
        weights="imagenet" if weights.label == KERAS_LABEL else None,
        name="backbone",
    )
    if weights.file is not None:
        load_weights(application, weights.file)
    return application(x)


def mobilenetv2(x: Any, size: int, weights: Weights) -> Any:
    """MobileNetV2 (1,280 channels), averaged over the image."""
    x = backbone(x, "mobilenetv2", size, weights)
    return layers.GlobalAveragePooling2D()(x)


def mobilenetv2_standardized(x: Any, size: int, weights: Weights) -> Any:
    """MobileNetV2 on images of mean 0 and standard deviation 0.5, averaged over the image.

    Brightness and contrast of an image therefore say nothing about its class.
    """
    x = Standardization()(x)
    x = backbone(x, "mobilenetv2_standardized", size, weights, scaled=False)
    x = layers.GlobalAveragePooling2D()(x)
    return layers.Dropout(0.2)(x)


def mobilenetv2_small(x: Any, size: int, weights: Weights) -> Any:
    """MobileNetV2, then max pooling and flattening, as the 176-image system publishes it."""
    x = backbone(x, "mobilenetv2_small", size, weights)
    x = layers.MaxPooling2D()(x)
    return layers.Flatten()(x)


def resnet50v2(x: Any, size: int, weights: Weights) -> Any:
    """ResNet50V2 (2,048 channels), averaged over the image."""
    x = backbone(x, "resnet50v2", size, weights)
    return layers.GlobalAveragePooling2D()(x)


class Standardization(layers.Layer):
    """Gives each float image `(batch, size, size, 1)` the mean 0 and standard deviation 0.5.

    An image of one grey becomes 0 everywhere.
    """

    def call(self, inputs: Any) -> Any:
        """Standardise images of any range."""
        ops = keras.ops
        pixels = ops.cast(inputs, "float32")
        centred = pixels - ops.mean(pixels, axis=(1, 2, 3), keepdims=True)
        deviation = ops.sqrt(ops.mean(centred**2, axis=(1, 2, 3), keepdims=True))
        return ops.cast(0.5 * centred / (deviation + 1.0), inputs.dtype)


class FlipAlways(layers.RandomFlip):
    """Flips at random in training and in scoring, where a model overrides `training=True`."""

    def call(self, inputs: Any, training: bool = True) -> Any:
        """Flip half of the images, float `(batch, size, size, channels)`."""
        return super().call(inputs, training=True)


def resnet50v2_raw(x: Any, size: int, weights: Weights) -> Any:
    """ResNet50V2 as published: unscaled pixels of 0…255, and random flips in scoring too."""
    x = FlipAlways("horizontal")(x)
    x = backbone(x, "resnet50v2_raw", size, weights, scaled=False)
    return layers.GlobalAveragePooling2D()(x)


def inceptionv3(x: Any, size: int, weights: Weights) -> Any:
    """InceptionV3 (2,048 channels), averaged over the image, then a dense layer."""
    x = backbone(x, "inceptionv3", size, weights)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(256, "relu")(x)
    return layers.Dropout(0.3)(x)


def separable_cnn(x: Any, size: int, weights: Weights) -> Any:
    """Separable convolutions and three dense blocks, as the keras.io example publishes them."""
    x = layers.Rescaling(1 / 255)(x)
    x = layers.Concatenate()([x, x, x])
    for _ in range(2):
        x = layers.Conv2D(16, 3, activation="relu", padding="same")(x)
    x = layers.MaxPooling2D()(x)
    for filters, dropout in ((32, 0.0), (64, 0.0), (128, 0.2), (256, 0.2)):
        for _ in range(2):
            x = layers.SeparableConv2D(filters, 3, activation="relu", padding="same")(x)
        x = layers.BatchNormalization()(x)
        x = layers.MaxPooling2D()(x)
        x = layers.Dropout(dropout)(x)
    x = layers.Flatten()(x)
    for units, dropout in ((512, 0.7), (128, 0.5), (64, 0.3)):
        x = layers.Dense(units, "relu")(x)
        x = layers.BatchNormalization()(x)
        x = layers.Dropout(dropout)(x)
    return x


NETWORKS: dict[str, Callable[[Any, int, Weights], Any]] = {
    "tiny_cnn": tiny_cnn,
    "scratch_cnn": scratch_cnn,
    "mobilenetv2": mobilenetv2,
    "mobilenetv2_standardized": mobilenetv2_standardized,
    "mobilenetv2_small": mobilenetv2_small,
    "resnet50v2": resnet50v2,
    "resnet50v2_raw": resnet50v2_raw,
    "inceptionv3": inceptionv3,
    "separable_cnn": separable_cnn,
}

# Networks with a backbone, to which initial weights belong; elsewhere they are the whole network's.
BACKBONES: dict[str, Callable[..., keras.Model]] = {
    "mobilenetv2": keras.applications.MobileNetV2,
    "mobilenetv2_standardized": keras.applications.MobileNetV2,
    "mobilenetv2_small": keras.applications.MobileNetV2,
    "resnet50v2": keras.applications.ResNet50V2,
    "resnet50v2_raw": keras.applications.ResNet50V2,
    "inceptionv3": keras.applications.InceptionV3,
}


@dataclass(frozen=True)
class Head:
    """The last layer, its loss, and how its output becomes P(pneumonia)."""

    units: int
    activation: str
    loss: Callable[[], keras.losses.Loss]

    def probability(self, outputs: np.ndarray) -> np.ndarray:
        """Return P(pneumonia), float64 `(n,)` in [0, 1], of outputs `(n, units)`.

        Two logits give their softmax, as the loss sees it.
        """
        outputs = np.asarray(outputs, dtype=np.float64)
        if self.units == 1:
            return outputs[:, 0]
        return expit(outputs[:, 1] - outputs[:, 0])


_LOSS_OF_LOGITS = partial(keras.losses.SparseCategoricalCrossentropy, from_logits=True, name="loss")
HEADS = {
    "sigmoid": Head(1, "sigmoid", keras.losses.BinaryCrossentropy),
    "two-logits": Head(2, "linear", _LOSS_OF_LOGITS),
}


class _RandomChange(layers.Layer):
    """Changes float images `(batch, size, size, 1)` in training, each by numbers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.seeds = keras.random.SeedGenerator()

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Change images in 0…255 in training, and leave them unchanged otherwise."""
        return self.change(inputs) if training else inputs

    def change(self, inputs: Any) -> Any:
        """Change every image."""
        raise NotImplementedError

    def draw(self, inputs: Any, low: float = 0.0, high: float = 1.0) -> Any:
        """One number per image, `(batch, 1, 1, 1)`, from `low` to `high`."""
        shape = (keras.ops.shape(inputs)[0], 1, 1, 1)
        return keras.random.uniform(shape, low, high, seed=self.seeds, dtype="float32")


class RandomFraming(_RandomChange):
    """Crops each image at random in training and stretches the crop to the whole.

    Height and width of the crop are independent, from `low` to 1 of the image's, and are drawn
    alike for both classes, so that the aspect ratio says nothing about the class. Resampling is
    bilinear: two products with matrices of weights, whose static shape a TPU needs.
    """

    def __init__(self, low: float = 0.62):
        super().__init__()
        self.low = low

    def change(self, inputs: Any) -> Any:
        """Crop each image by a box of its own."""
        ops = keras.ops
        rows = self._weights(inputs, inputs.shape[1])
        columns = self._weights(inputs, inputs.shape[2])
        cropped = ops.matmul(rows, inputs[..., 0])
        cropped = ops.matmul(cropped, ops.swapaxes(columns, 1, 2))
        return cropped[..., None]

    def _weights(self, inputs: Any, size: int) -> Any:
        """Weights `(batch, new line, old line)` of linear interpolation; each row sums to 1."""
        ops = keras.ops
        length = self.draw(inputs, self.low)[..., 0] * size
        start = self.draw(inputs)[..., 0] * (size - length)
        lines = ops.arange(size, dtype="float32") + 0.5
        wanted = start + lines[None, :, None] * (length / size)
        weights = ops.relu(1.0 - ops.abs(wanted - lines[None, None, :]))
        return ops.cast(weights / ops.sum(weights, axis=-1, keepdims=True), inputs.dtype)


class RandomRendering(_RandomChange):
    """Changes gamma, contrast and brightness of each image at random in training.

    Gamma is from 1 / `gamma` to `gamma`, evenly in its logarithm. Then contrast about mid-grey
    changes by 1 ± `contrast`, and brightness by ± `brightness` of the range 0…255. Values outside
    the range are clipped. Both classes are drawn alike.
    """

    def __init__(self, gamma: float = 1.6, contrast: float = 0.3, brightness: float = 0.15):
        super().__init__()
        self.log_gamma = float(np.log(gamma))
        self.contrast = contrast
        self.brightness = brightness

    def change(self, inputs: Any) -> Any:
        """Render each image anew."""
        ops = keras.ops
        gamma = self.draw(inputs, -self.log_gamma, self.log_gamma)
        contrast = self.draw(inputs, -self.contrast, self.contrast)
        brightness = self.draw(inputs, -self.brightness, self.brightness)
        rendered = ops.clip(ops.cast(inputs, "float32") / 255.0, 1e-4, 1.0) ** ops.exp(gamma)
        rendered = (rendered - 0.5) * (1.0 + contrast) + 0.5 + brightness
        return ops.cast(255.0 * ops.clip(rendered, 0.0, 1.0), inputs.dtype)


class RandomDegradation(_RandomChange):
    """Blurs images and adds noise at random in training, each image differently.

    Of the images 30% are blurred: each is mixed, by a random share, with its average over a window
    of about 5 × 5 pixels. Then 50% get Gaussian noise whose standard deviation is `noise` times
    the square of a number from 0 to 1, and 25% get noise in proportion to each pixel.

    Parameters
    ----------
    noise
        The largest standard deviation of Gaussian noise, in grey levels of 255.
    speckle
        The largest standard deviation of proportional noise, as a share of the pixel.
    """

    def __init__(self, noise: float = 30.0, speckle: float = 0.25):
        super().__init__()
        self.noise = noise
        self.speckle = speckle

    def change(self, inputs: Any) -> Any:
        """Degrade each image."""
        ops = keras.ops
        images = ops.cast(inputs, "float32")
        blurred = images
        for _ in range(2):
            blurred = ops.average_pool(blurred, 3, strides=1, padding="same")
        images = images + self._sometimes(images, 0.3) * (blurred - images)
        noise = keras.random.normal(ops.shape(images), seed=self.seeds)
        additive = self.noise * self._sometimes(images, 0.5) ** 2
        proportional = self.speckle * self._sometimes(images, 0.25)
        images = images + noise * (additive + proportional * images)
        return ops.cast(ops.clip(images, 0.0, 255.0), inputs.dtype)

    def _sometimes(self, images: Any, share: float) -> Any:
        """One number per image: from 0 to 1 for that share of the images, 0 for the others."""
        chosen = self.draw(images) < share
        strength = self.draw(images)
        return keras.ops.where(chosen, strength, 0.0)


def _degrading(low: float) -> list[layers.Layer]:
    return [
        RandomFraming(low),
        layers.RandomRotation(0.02, fill_mode="constant"),
        RandomRendering(gamma=2.2, contrast=0.5, brightness=0.2),
        RandomDegradation(),
    ]


def _geometric() -> list[layers.Layer]:
    return [
        layers.RandomRotation(0.03, fill_mode="constant"),
        layers.RandomTranslation(0.05, 0.05, fill_mode="constant"),
        layers.RandomZoom(0.1, fill_mode="constant"),
    ]


def _augmentation(name: str, *changes: layers.Layer) -> keras.Sequential:
    return keras.Sequential(list(changes), name=name)


AUGMENTATIONS: dict[str, Callable[[], keras.Sequential]] = {
    "flip": lambda: _augmentation("flip", layers.RandomFlip("horizontal")),
    "geometric": lambda: _augmentation("geometric", *_geometric()),
    "reframe": lambda: _augmentation("reframe", RandomFraming()),
    "reframe-geometric": lambda: _augmentation("reframe_geometric", RandomFraming(), *_geometric()),
    "render": lambda: _augmentation("render", RandomRendering()),
    "reframe-render": lambda: _augmentation("reframe_render", RandomFraming(), RandomRendering()),
    "reframe-degrade": lambda: _augmentation("reframe_degrade", *_degrading(0.62)),
    # For images that are cropped to the lungs already.
    "jitter-degrade": lambda: _augmentation("jitter_degrade", *_degrading(0.85)),
}


def find_part(parts: Mapping[str, Callable[..., Any]], part: str | Callable[..., Any]) -> Any:
    """Return a part by its name in `parts` or, for a function of the user's own, by `part_name`.

    Parameters
    ----------
    parts
        `NETWORKS` or `AUGMENTATIONS`.
    part
        A name or a function.

    Raises
    ------
    NotFoundError
        If nothing has that name in this process.
    """
    name = part_name(part)
    if name in parts:
        return parts[name]
    if name not in OWN_PARTS:
        raise NotFoundError(
            f"there is no {name!r} among {', '.join(parts)}. Fix: choose one of them; if it is a "
            "function of your own, import it and call xraylib.training.recipes.part_name on it."
        )
    return OWN_PARTS[name]


def build(
    network: str | Callable[..., Any],
    size: int,
    head: str,
    *,
    weights: Weights | None = None,
    augmentation: str | Callable[..., Any] | None = None,
) -> keras.Model:
    """Build a network with its head.

    Parameters
    ----------
    network
        A key of `NETWORKS`, or a function `(x, size, weights) -> features`.
    size
        Height and width of the input in pixels.
    head
        A key of `HEADS`.
    weights
        Initial weights from `get_weights`, by default random.
    augmentation
        A key of `AUGMENTATIONS`, or a function that returns a layer. It acts in training only.

    Returns
    -------
    keras.Model
        From uint8 `(batch, size, size, 1)` to float32 `(batch, head.units)`.
    """
    weights = weights or Weights("random")
    inputs = keras.Input((size, size, 1), dtype="uint8", name="radiograph")
    x = layers.Rescaling(1.0)(inputs)
    if augmentation is not None:
        x = find_part(AUGMENTATIONS, augmentation)()(x)
    try:
        x = find_part(NETWORKS, network)(x, size, weights)
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise InvalidDataError(
            f"{part_name(network)} cannot be built for {size} pixels ({reason}). "
            "Fix: give a larger size."
        ) from error
    last = HEADS[head]
    last_name = "L6" if network == "tiny_cnn" else "output"
    outputs = layers.Dense(last.units, last.activation, dtype="float32", name=last_name)(x)
    model = keras.Model(inputs, outputs, name=part_name(network))
    if weights.file is not None and network not in BACKBONES:
        load_weights(model, weights.file)
    return model


def load_weights(model: keras.Model, file: Path) -> None:
    """Load a weights file; `NotFoundError` unless it holds all weights of the network."""
    try:
        with warnings.catch_warnings():
            # Keras only warns when it leaves layers unchanged that the file does not hold.
            warnings.simplefilter("error", UserWarning)
            model.load_weights(file)
    except (OSError, ValueError, KeyError, UserWarning) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise NotFoundError(
            f"{file} does not hold weights of {model.name} ({why}). "
            "Fix: give the file that belongs to this network."
        ) from error


def get_weights(network: str, init: str) -> Weights:
    """Find the initial weights that are asked for, never others in their place.

    Parameters
    ----------
    network
        A key of `NETWORKS`.
    init
        `random`; `imagenet`: the file `<backbone>_imagenet_notop.weights.h5` in the folder
        `XRAYLIB_WEIGHTS` if that is set, otherwise Keras's own download; the path of a
        `.weights.h5` file; or `none`, for a recipe without a network.

    Raises
    ------
    NotFoundError
        If there are no such weights.
    """
    if init in ("random", "none"):
        return Weights(init)
    if init == KERAS_LABEL:
        return _from_keras(network)
    if init.endswith(".weights.h5"):
        return _from_file(Path(init))
    if init != "imagenet":
        raise NotFoundError(
            f"there is no initialisation {init!r}. "
            "Fix: random, imagenet, or the path of a .weights.h5 file."
        )
    if network not in BACKBONES:
        raise NotFoundError(
            f"there are no ImageNet weights for {network}. Fix: ask for init=random."
        )
    if paths.WEIGHTS is None:
        return _from_keras(network)
    return _from_file(paths.WEIGHTS / _imagenet_name(network))


def find_weights(network: str, label: str, given: str | None = None) -> Weights:
    """Find the initial weights of a finished run again.

    Parameters
    ----------
    network
        A key of `NETWORKS`.
    label
        The run's `init`, which names the content of a file, see `runs.weights_label`.
    given
        The path of the file that was given for the run, if one was.

    Returns
    -------
    Weights
        Of the given path, or of any file in the folder `XRAYLIB_WEIGHTS`, that has the same label.
        Only weights that Keras had downloaded for the run are downloaded again.

    Raises
    ------
    NotFoundError
        If there is no such file.
    """
    if label in ("random", "none", KERAS_LABEL):
        return get_weights(network, label)
    files = sorted(paths.WEIGHTS.glob("*.weights.h5")) if paths.WEIGHTS else []
    for file in [Path(given or ""), *files]:
        if file.is_file() and weights_label(file) == label:
            return Weights(label, file)
    raise NotFoundError(
        f"the run started from the initial weights {label!r}, which no file here holds. "
        "Fix: set XRAYLIB_WEIGHTS to the folder that holds the file, whatever its name."
    )


def _imagenet_name(network: str) -> str:
    return f"{BACKBONES[network].__name__.lower()}_imagenet_notop.weights.h5"


def _from_file(file: Path) -> Weights:
    if not file.is_file():
        raise NotFoundError(
            f"no weights at {file}. Fix: put them there, unset XRAYLIB_WEIGHTS to let Keras "
            "download its own, or ask for init=random."
        )
    return Weights(weights_label(file), file)


def _from_keras(network: str) -> Weights:
    """Check that Keras's weights are in its cache or can be fetched, before training begins."""
    log.info("ImageNet weights of %s: Keras's own, downloaded unless they are cached", network)
    try:
        BACKBONES[network](include_top=False, weights="imagenet", input_shape=(224, 224, 3))
    except Exception as error:
        raise NotFoundError(
            f"the ImageNet weights of {network} could not be downloaded ({error}). Fix: connect to "
            "the network, set XRAYLIB_WEIGHTS to a folder that holds "
            f"{_imagenet_name(network)}, or ask for init=random."
        ) from error
    return Weights(KERAS_LABEL)


def predict_rows(
    model: keras.Model,
    head: str,
    pixels: np.ndarray,
    rows: np.ndarray,
    batch_size: int,
) -> np.ndarray:
    """Return P(pneumonia) of some rows of pixels.

    Of several processes each scores its share of the rows, and all get the whole.

    Parameters
    ----------
    model
        A network from `build`.
    head
        The key of its head in `HEADS`.
    pixels
        uint8 `(n, size, size, 1)`, or shards of such.
    rows
        Row numbers of `pixels`.
    batch_size
        Images per step.

    Returns
    -------
    ndarray
        float64 `(len(rows),)` in [0, 1].
    """
    process, processes = devices.process()
    # `resize` repeats rows, so that all processes score equally many.
    shares = np.resize(rows, (processes, math.ceil(len(rows) / processes)))
    share = shares[process]
    predict = devices.local_predict(model)
    outputs = []
    for start in range(0, len(share), batch_size):
        batch = share[start : start + batch_size]
        # The last batch is filled up too, so that one shape is compiled.
        filled = np.resize(batch, batch_size)
        outputs.append(np.asarray(predict(pixels[filled]))[: len(batch)])
    gathered = devices.gather(np.concatenate(outputs))
    return HEADS[head].probability(gathered[: len(rows)])
