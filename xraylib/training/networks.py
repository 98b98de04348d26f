"""The networks in plain Keras 3, alike on TensorFlow and JAX: bodies, heads, augmentation, initial weights.

Every network takes uint8 grayscale radiographs `(batch, size, size, 1)` in 0…255 and rescales them on the device. A
body is from rescaling to the last features; `build` adds input and head. Every head ends in float32.
"""

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers
from scipy.special import expit

from xraylib import devices, paths
from xraylib.errors import NotFoundError


@dataclass(frozen=True)
class Weights:
    """Initial weights: their name in tables, and the file, or None for random or Keras's own."""

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
    """Features of a Keras application without its top, which is one layer `backbone`, to freeze or free.

    Its input is in -1…1, or in 0…255 where it is not `scaled`. While it is frozen, batch norm uses its own statistics;
    while it is free they learn as well: `fit` overrides a `training=False` of the call (Keras 3.15).
    """
    if scaled:
        x = layers.Rescaling(1 / 127.5, offset=-1.0)(x)
    x = layers.Concatenate()([x, x, x])
    application = BACKBONES[network](
        input_shape=(size, size, 3),
        include_top=False,
        weights="imagenet" if weights.label == "imagenet (Keras)" else None,
        name="backbone",
    )
    if weights.file is not None:
        load_weights(application, weights.file)
    return application(x)


def mobilenetv2(x: Any, size: int, weights: Weights) -> Any:
    """MobileNetV2 (1,280 channels), averaged over the image."""
    x = backbone(x, "mobilenetv2", size, weights)
    return layers.GlobalAveragePooling2D()(x)


def mobilenetv2_160(x: Any, size: int, weights: Weights) -> Any:
    """MobileNetV2 on 160 × 160 pixels of a larger film, so that what is cut from it loses no detail."""
    x = layers.Resizing(160, 160, antialias=True)(x)
    x = backbone(x, "mobilenetv2_160", 160, weights)
    x = layers.GlobalAveragePooling2D()(x)
    return layers.Dropout(0.2)(x)


def mobilenetv2_small(x: Any, size: int, weights: Weights) -> Any:
    """MobileNetV2, then max pooling and flattening, as the 176-image system publishes it."""
    x = backbone(x, "mobilenetv2_small", size, weights)
    x = layers.MaxPooling2D()(x)
    return layers.Flatten()(x)


def resnet50v2(x: Any, size: int, weights: Weights) -> Any:
    """ResNet50V2 (2,048 channels), the whole of it trained, averaged over the image."""
    return layers.GlobalAveragePooling2D()(backbone(x, "resnet50v2", size, weights))


class FlipAlways(layers.RandomFlip):
    """Flips at random whether the model trains or scores: a model in scoring overrides `training=True`."""

    def call(self, inputs: Any, training: bool = True) -> Any:
        """Flip half of the images, float `(batch, size, size, channels)`."""
        return super().call(inputs, training=True)


def resnet50v2_raw(x: Any, size: int, weights: Weights) -> Any:
    """ResNet50V2 as published: pixels of 0…255 unscaled, and flips at random in scoring as in training."""
    x = FlipAlways("horizontal")(x)
    return layers.GlobalAveragePooling2D()(
        backbone(x, "resnet50v2_raw", size, weights, scaled=False)
    )


def inceptionv3(x: Any, size: int, weights: Weights) -> Any:
    """InceptionV3 (2,048 channels), averaged, with a dense layer of its own on top."""
    x = layers.GlobalAveragePooling2D()(backbone(x, "inceptionv3", size, weights))
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


_BODIES = (
    tiny_cnn,
    scratch_cnn,
    mobilenetv2,
    mobilenetv2_160,
    mobilenetv2_small,
    resnet50v2,
    resnet50v2_raw,
)
NETWORKS: dict[str, Callable[[Any, int, Weights], Any]] = {
    body.__name__: body for body in (*_BODIES, inceptionv3, separable_cnn)
}

# Networks on a backbone: initial weights are the backbone's; those of the others are the whole network's.
_MOBILENETS, _RESNETS = (
    [name for name in NETWORKS if "mobile" in name],
    ("resnet50v2", "resnet50v2_raw"),
)
BACKBONES: dict[str, Callable[..., keras.Model]] = {
    **dict.fromkeys(_MOBILENETS, keras.applications.MobileNetV2),
    **dict.fromkeys(_RESNETS, keras.applications.ResNet50V2),
    "inceptionv3": keras.applications.InceptionV3,
}


@dataclass(frozen=True)
class Head:
    """The last layer, its loss, and how its output becomes P(pneumonia)."""

    units: int
    activation: str
    loss: Callable[[], keras.losses.Loss]

    def probability(self, outputs: np.ndarray) -> np.ndarray:
        """P(pneumonia) `(n,)` in [0, 1] of outputs `(n, units)`; of two logits the softmax, as in a loss."""
        outputs = np.asarray(outputs, dtype=np.float64)
        if self.units == 1:
            return outputs[:, 0]
        return expit(outputs[:, 1] - outputs[:, 0])


HEADS = {
    "sigmoid": Head(1, "sigmoid", keras.losses.BinaryCrossentropy),
    "two-logits": Head(
        2,
        "linear",
        lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True, name="loss"),
    ),
}


class RandomFraming(layers.Layer):
    """Frames each film anew in training: a box of random height, width and place, stretched to the whole.

    Height and width are independent, from `low` to 1 of the film's and alike for both classes, so that the aspect ratio
    says nothing of the class. Resampling is bilinear and separable: two products with matrices of weights, of static
    shape, which a TPU runs as it runs a dense layer.
    """

    def __init__(self, low: float = 0.62, **options: Any):
        super().__init__(**options)
        self.low = low
        self.seeds = keras.random.SeedGenerator()

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Frame float films `(batch, size, size, 1)`, each by a box of its own."""
        if not training:
            return inputs
        rows, columns = (self._weights(inputs, inputs.shape[axis]) for axis in (1, 2))
        films = keras.ops.matmul(rows, inputs[..., 0])
        return keras.ops.matmul(films, keras.ops.swapaxes(columns, 1, 2))[..., None]

    def _weights(self, inputs: Any, size: int) -> Any:
        """What each of `size` old lines gives to each new one, `(batch, size, size)`, rows that sum to 1."""
        ops, shape = keras.ops, (keras.ops.shape(inputs)[0], 1, 1)
        length = keras.random.uniform(shape, self.low, 1.0, seed=self.seeds) * size
        start = keras.random.uniform(shape, seed=self.seeds) * (size - length)
        lines = ops.arange(size, dtype="float32") + 0.5
        wanted = start + lines[None, :, None] * (length / size)
        weights = ops.relu(1.0 - ops.abs(wanted - lines[None, None, :]))
        return ops.cast(weights / ops.sum(weights, axis=-1, keepdims=True), inputs.dtype)


class RandomRendering(layers.Layer):
    """Renders each film anew in training: random gamma, contrast and brightness, alike for both classes.

    Gamma from 1 / `gamma` to `gamma` (evenly in its logarithm), then contrast about mid-grey by 1 ± `contrast` and
    brightness by ± `brightness` of the range 0…255; what leaves the range is clipped.
    """

    def __init__(
        self, gamma: float = 1.6, contrast: float = 0.3, brightness: float = 0.15, **options: Any
    ):
        super().__init__(**options)
        self.ranges = (float(np.log(gamma)), contrast, brightness)
        self.seeds = keras.random.SeedGenerator()

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Render float films `(batch, size, size, 1)` in 0…255."""
        if not training:
            return inputs
        ops, shape = keras.ops, (keras.ops.shape(inputs)[0], 1, 1, 1)
        gamma, contrast, brightness = (
            keras.random.uniform(shape, -limit, limit, seed=self.seeds, dtype="float32")
            for limit in self.ranges
        )
        films = ops.clip(ops.cast(inputs, "float32") / 255.0, 1e-4, 1.0) ** ops.exp(gamma)
        films = (films - 0.5) * (1.0 + contrast) + 0.5 + brightness
        return ops.cast(255.0 * ops.clip(films, 0.0, 1.0), inputs.dtype)


def _geometric() -> list[layers.Layer]:
    return [
        layers.RandomRotation(0.03, fill_mode="constant"),
        layers.RandomTranslation(0.05, 0.05, fill_mode="constant"),
        layers.RandomZoom(0.1, fill_mode="constant"),
    ]


AUGMENTATIONS: dict[str, Callable[[], keras.Sequential]] = {
    "flip": lambda: keras.Sequential([layers.RandomFlip("horizontal")], name="flip"),
    "geometric": lambda: keras.Sequential(_geometric(), name="geometric"),
    "reframe": lambda: keras.Sequential([RandomFraming()], name="reframe"),
    "reframe-geometric": lambda: keras.Sequential(
        [RandomFraming(), *_geometric()], name="reframe_geometric"
    ),
    "reframe-render": lambda: keras.Sequential(
        [RandomFraming(), RandomRendering()], name="reframe_render"
    ),
}


def build(
    network: str,
    size: int,
    head: str,
    *,
    weights: Weights | None = None,
    augmentation: str | None = None,
) -> keras.Model:
    """Build a network (a key of `NETWORKS`) with its head (of `HEADS`) and augmentation (of `AUGMENTATIONS`).

    From uint8 `(batch, size, size, 1)` to float32 `(batch, head.units)`. `weights` are from `get_weights`, by default
    random; augmentation acts in training only.
    """
    inputs = keras.Input((size, size, 1), dtype="uint8", name="radiograph")
    x = layers.Rescaling(1.0)(inputs)
    if augmentation is not None:
        x = AUGMENTATIONS[augmentation]()(x)
    x = NETWORKS[network](x, size, weights or Weights("random"))
    end = HEADS[head]
    name = "L6" if network == "tiny_cnn" else "output"
    outputs = layers.Dense(end.units, end.activation, dtype="float32", name=name)(x)
    model = keras.Model(inputs, outputs, name=network)
    if weights is not None and weights.file is not None and network not in BACKBONES:
        load_weights(model, weights.file)
    return model


# SHA-256 of weight files whose origin is known; a row names other files by their own hash.
KNOWN_WEIGHTS = {
    "c9e9872133be71e5612b6745b9c045c04992d6a665951d016d9843024f588b31": "imagenet (recovered MobileNetV2)"
}


def load_weights(model: keras.Model, file: Path) -> None:
    """Load a weights file; raises `NotFoundError` unless it holds all that the network has."""
    try:
        with warnings.catch_warnings():
            # Keras only warns when it leaves layers that the file does not hold as they are.
            warnings.simplefilter("error", UserWarning)
            model.load_weights(file)
    except (OSError, ValueError, KeyError, UserWarning) as error:
        fix, why = (
            "give the file that belongs to this network, or ask for init=random",
            str(error).splitlines()[0],
        )
        raise NotFoundError(
            f"{file} does not hold weights of {model.name} ({why}). Fix: {fix}."
        ) from error


def get_weights(network: str, init: str) -> Weights:
    """Find the initial weights that are asked for, never others in their place; `NotFoundError` otherwise.

    `init` is `random`; `imagenet`: the file `<backbone>_imagenet_notop.weights.h5` in the folder `XRAYLIB_WEIGHTS`
    where that is set, Keras's own download elsewhere; the path of a `.weights.h5` file; or `none`, without a network.
    """
    if init in ("random", "none"):
        return Weights(init)
    if init == "imagenet" and network not in BACKBONES:
        raise NotFoundError(
            f"there are no ImageNet weights for {network}. Fix: ask for init=random."
        )
    if init == "imagenet":
        name = f"{BACKBONES[network].__name__.lower()}_imagenet_notop.weights.h5"
        return (
            _from_keras(network, name)
            if paths.WEIGHTS is None
            else _from_file(paths.WEIGHTS / name)
        )
    if init.endswith(".weights.h5"):
        return _from_file(Path(init))
    raise NotFoundError(
        f"there is no initialisation {init!r}. Fix: random, imagenet, or the path of a .weights.h5 file."
    )


def _from_file(file: Path) -> Weights:
    if not file.is_file():
        fix = "put them there, unset XRAYLIB_WEIGHTS to let Keras download its own, or ask for init=random"
        raise NotFoundError(f"no weights at {file}. Fix: {fix}.")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return Weights(KNOWN_WEIGHTS.get(digest, f"file {digest[:12]}"), file)


def _from_keras(network: str, name: str) -> Weights:
    """Check that Keras's weights are in its cache or can be fetched, before training begins."""
    try:
        BACKBONES[network](include_top=False, weights="imagenet", input_shape=(224, 224, 3))
    except Exception as error:
        raise NotFoundError(
            f"the ImageNet weights of {network} could not be downloaded ({error}). Fix: connect to the "
            f"network, set XRAYLIB_WEIGHTS to a folder that holds {name}, or ask for init=random."
        ) from error
    return Weights("imagenet (Keras)")


def predict_rows(
    model: keras.Model, head: str, pixels: np.ndarray, rows: np.ndarray, batch_size: int
) -> np.ndarray:
    """P(pneumonia), float64 `(len(rows),)`, of some rows of the uint8 pixels `(n, size, size, 1)`.

    Of a job each process scores its part of the rows, and all get the whole.
    """
    process, processes = devices.process()
    own = np.resize(rows, (processes, -(-len(rows) // processes)))[process]
    answer, found = devices.answers(model), []
    for start in range(0, len(own), batch_size):
        part = own[start : start + batch_size]
        filled = np.resize(part, batch_size)  # the last batch too, so that one shape is compiled
        found.append(np.asarray(answer(pixels[filled]))[: len(part)])
    return HEADS[head].probability(devices.gather(np.concatenate(found))[: len(rows)])
