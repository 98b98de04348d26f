"""The bodies of the networks, from rescaling to the last features; `models.build` adds input and head.

Each takes pixels as float `(batch, size, size, 1)` in 0…255. A run depends on its own network's code only,
so a new one here leaves every other run valid.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from xraylib.storage import NotFound


@dataclass(frozen=True)
class Weights:
    """Initial weights: what the table calls them, and the file, or None for random or Keras's own."""

    label: str
    file: Path | None = None


def load_weights(model: keras.Model, file: Path) -> None:
    """Load a weights file; raises `NotFound` unless it holds all that the network has."""
    try:
        with warnings.catch_warnings():
            # Keras only warns when it leaves layers that the file does not hold as they are.
            warnings.simplefilter("error", UserWarning)
            model.load_weights(file)
    except (OSError, ValueError, KeyError, UserWarning) as error:
        raise NotFound(
            f"{file} does not hold weights of {model.name} ({str(error).splitlines()[0]}). Fix: give the "
            "file that belongs to this network, or ask for init=random."
        ) from error


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
            filters, 3, padding="same", use_bias=False, kernel_regularizer=keras.regularizers.L2(1e-4)
        )(x)
        x = layers.BatchNormalization(momentum=0.9)(x)
        x = layers.ReLU()(x)
        x = layers.MaxPooling2D()(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(64, "relu", kernel_regularizer=keras.regularizers.L2(1e-4))(x)
    return layers.Dropout(0.3)(x)


def backbone(network: str, size: int, weights: Weights) -> keras.Model:
    """Return the Keras application under a network, without its top, with its initial weights.

    It is one layer named `backbone`, which fine-tuning freezes and frees.
    """
    found = BACKBONES[network](
        input_shape=(size, size, 3),
        include_top=False,
        weights="imagenet" if weights.label == "imagenet (Keras)" else None,
        name="backbone",
    )
    if weights.file is not None:
        load_weights(found, weights.file)
    return found


def mobilenetv2(x: Any, size: int, weights: Weights) -> Any:
    """MobileNetV2 without its top (1,280 channels, input −1…1), averaged over the image."""
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(x)
    x = layers.Concatenate()([x, x, x])
    # Batch norm stays in inference mode: its statistics belong to the pre-trained weights.
    x = backbone("mobilenetv2", size, weights)(x, training=False)
    return layers.GlobalAveragePooling2D()(x)


def mobilenetv2_160(x: Any, size: int, weights: Weights) -> Any:
    """MobileNetV2 on 160 × 160 pixels of a larger film, so that what is cut from it loses no detail."""
    x = layers.Resizing(160, 160, antialias=True)(x)
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(x)
    x = layers.Concatenate()([x, x, x])
    x = backbone("mobilenetv2_160", 160, weights)(x, training=False)
    x = layers.GlobalAveragePooling2D()(x)
    return layers.Dropout(0.2)(x)


def mobilenetv2_small(x: Any, size: int, weights: Weights) -> Any:
    """MobileNetV2 (input −1…1), then max pooling and flattening, as the 176-image system publishes it."""
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(x)
    x = layers.Concatenate()([x, x, x])
    x = backbone("mobilenetv2_small", size, weights)(x, training=False)
    x = layers.MaxPooling2D()(x)
    return layers.Flatten()(x)


def resnet50v2(x: Any, size: int, weights: Weights) -> Any:
    """ResNet50V2 (2,048 channels, input −1…1), the whole of it trained, averaged over the image."""
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(x)
    x = layers.Concatenate()([x, x, x])
    x = backbone("resnet50v2", size, weights)(x)
    return layers.GlobalAveragePooling2D()(x)


class RandomFraming(layers.Layer):
    """Frames each film anew in training: a box of random height, width and place, stretched to the whole.

    Height and width are drawn independently from `low` to 1 of the film's, alike for both classes, so that
    the aspect ratio says nothing of the class. Resampling is bilinear and separable: two products with
    matrices of weights, of static shape, which a TPU runs as it runs a dense layer.
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
    """Renders each film anew in training: gamma, contrast and brightness drawn alike for both classes.

    Gamma from 1 / `gamma` to `gamma` (evenly in its logarithm), then contrast about mid-grey by
    1 ± `contrast` and brightness by ± `brightness` of the range 0…255; what leaves the range is clipped.
    """

    def __init__(self, gamma: float = 1.6, contrast: float = 0.3, brightness: float = 0.15, **options: Any):
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


class FlipAlways(layers.RandomFlip):
    """Flips at random whether the model trains or scores: a model in scoring overrides `training=True`."""

    def call(self, inputs: Any, training: bool = True) -> Any:
        """Flip half of the images, float `(batch, size, size, channels)`."""
        return super().call(inputs, training=True)


def resnet50v2_raw(x: Any, size: int, weights: Weights) -> Any:
    """ResNet50V2 as published: pixels of 0…255 unscaled, and flips at random in scoring as in training."""
    x = FlipAlways("horizontal")(x)
    x = layers.Concatenate()([x, x, x])
    x = backbone("resnet50v2_raw", size, weights)(x)
    return layers.GlobalAveragePooling2D()(x)


def inceptionv3(x: Any, size: int, weights: Weights) -> Any:
    """InceptionV3 (2,048 channels, input −1…1), averaged, with a dense layer of its own on top."""
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(x)
    x = layers.Concatenate()([x, x, x])
    x = backbone("inceptionv3", size, weights)(x)
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
    function.__name__: function
    for function in (
        tiny_cnn,
        scratch_cnn,
        mobilenetv2,
        mobilenetv2_160,
        mobilenetv2_small,
        resnet50v2,
        resnet50v2_raw,
        inceptionv3,
        separable_cnn,
    )
}

# Networks on a backbone: initial weights are the backbone's; those of the others are the whole network's.
BACKBONES: dict[str, Callable[..., keras.Model]] = {
    "mobilenetv2_160": keras.applications.MobileNetV2,
    "mobilenetv2": keras.applications.MobileNetV2,
    "mobilenetv2_small": keras.applications.MobileNetV2,
    "resnet50v2": keras.applications.ResNet50V2,
    "resnet50v2_raw": keras.applications.ResNet50V2,
    "inceptionv3": keras.applications.InceptionV3,
}
