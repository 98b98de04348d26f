"""Models from networks, heads and augmentation, in plain Keras 3: the same code under TensorFlow and JAX.

Every network takes uint8 grayscale radiographs `(batch, size, size, 1)` in 0…255 as
`images.load_pixels` gives them, and rescales them on the device. Every head ends in float32.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from keras import layers
from scipy.special import expit

from xraylib import paths
from xraylib.storage import NotFound, atomic
from xraylib.training.networks import (
    BACKBONES,
    NETWORKS,
    RandomFraming,
    RandomRendering,
    Weights,
    load_weights,
)


@dataclass(frozen=True)
class Head:
    """The last layer, its loss, and how its output becomes P(pneumonia)."""

    units: int
    activation: str
    loss: Callable[[], keras.losses.Loss]

    def probability(self, outputs: np.ndarray) -> np.ndarray:
        """P(pneumonia) `(n,)` in [0, 1] from the network's outputs `(n, units)`.

        Two outputs are compared as the loss compares them (softmax), so that a score above .5
        is the same decision as the larger output.
        """
        outputs = np.asarray(outputs, dtype=np.float64)
        if self.units == 1:
            return outputs[:, 0]
        return expit(outputs[:, 1] - outputs[:, 0])


HEADS = {
    "sigmoid": Head(1, "sigmoid", keras.losses.BinaryCrossentropy),
    "two-logits": Head(
        2, "linear", lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True, name="loss")
    ),
}

# SHA-256 of weight files whose origin is known; a row names other files by their own hash.
KNOWN_WEIGHTS = {
    "c9e9872133be71e5612b6745b9c045c04992d6a665951d016d9843024f588b31": "imagenet (recovered MobileNetV2)",
}


def build(
    network: str, size: int, head: str, *, weights: Weights | None = None, augmentation: str | None = None
) -> keras.Model:
    """Build a network with its head.

    Parameters
    ----------
    network
        A key of `NETWORKS`.
    size
        Height and width of the input in pixels.
    head
        A key of `HEADS`.
    weights
        Initial weights from `get_weights`; random by default.
    augmentation
        A key of `AUGMENTATIONS`, active in training only.

    Returns
    -------
    keras.Model
        From uint8 `(batch, size, size, 1)` to float32 `(batch, head.units)`; its layer `backbone`,
        where there is one, is what fine-tuning freezes and frees.
    """
    for name, table in ((network, NETWORKS), (head, HEADS), (augmentation, AUGMENTATIONS)):
        if name is not None and name not in table:
            raise NotFound(f"there is no {name!r}. Fix: choose one of {', '.join(table)}.")
    inputs = keras.Input((size, size, 1), dtype="uint8", name="radiograph")
    x = layers.Rescaling(1.0)(inputs)
    if augmentation is not None:
        x = AUGMENTATIONS[augmentation]()(x)
    x = NETWORKS[network](x, size, weights or Weights("random"))
    end = HEADS[head]
    outputs = layers.Dense(
        end.units, end.activation, dtype="float32", name="L6" if network == "tiny_cnn" else "output"
    )(x)
    model = keras.Model(inputs, outputs, name=network)
    if weights is not None and weights.file is not None and network not in BACKBONES:
        load_weights(model, weights.file)
    return model


AUGMENTATIONS: dict[str, Callable[[], keras.Sequential]] = {
    "flip": lambda: keras.Sequential([layers.RandomFlip("horizontal")], name="flip"),
    "geometric": lambda: keras.Sequential(
        [
            layers.RandomRotation(0.03, fill_mode="constant"),
            layers.RandomTranslation(0.05, 0.05, fill_mode="constant"),
            layers.RandomZoom(0.1, fill_mode="constant"),
        ],
        name="geometric",
    ),
    "reframe": lambda: keras.Sequential([RandomFraming()], name="reframe"),
    "reframe-render": lambda: keras.Sequential([RandomFraming(), RandomRendering()], name="reframe_render"),
    "exposure": lambda: keras.Sequential(
        [layers.RandomBrightness(0.15), layers.RandomContrast(0.2)], name="exposure"
    ),
}


def get_weights(network: str, init: str) -> Weights:
    """Find the initial weights a row asks for; never others in their place.

    Parameters
    ----------
    network
        A key of `NETWORKS`.
    init
        `random`; `imagenet`: the file `<backbone>_imagenet_notop.weights.h5` in the folder `XRAYLIB_WEIGHTS`
        where that is set, otherwise Keras's own download; the path of a `.weights.h5` file; or `none`, of a
        recipe that has no network.

    Raises
    ------
    NotFound
        When they can neither be found nor downloaded.
    NotFound
        When `init` is none of these.
    """
    if init in ("random", "none"):
        return Weights(init)
    if init == "imagenet" and network not in BACKBONES:
        raise NotFound(f"there are no ImageNet weights for {network}. Fix: ask for init=random.")
    if init == "imagenet":
        name = f"{BACKBONES[network].__name__.lower()}_imagenet_notop.weights.h5"
        return _from_keras(network, name) if paths.WEIGHTS is None else _from_file(paths.WEIGHTS / name)
    if init.endswith(".weights.h5"):
        return _from_file(Path(init))
    raise NotFound(
        f"there is no initialisation {init!r}. Fix: random, imagenet, or the path of a .weights.h5 file."
    )


def _from_file(file: Path) -> Weights:
    if not file.is_file():
        raise NotFound(
            f"no weights at {file}. Fix: put them there, unset XRAYLIB_WEIGHTS to let Keras download its "
            "own, or ask for init=random."
        )
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return Weights(KNOWN_WEIGHTS.get(digest, f"file {digest[:12]}"), file)


def _from_keras(network: str, name: str) -> Weights:
    """Check that Keras's weights are in its cache or can be fetched, before a training is begun."""
    try:
        BACKBONES[network](include_top=False, weights="imagenet", input_shape=(224, 224, 3))
    except Exception as error:
        raise NotFound(
            f"the ImageNet weights of {network} could not be downloaded ({error}). Fix: connect to the "
            f"network, set XRAYLIB_WEIGHTS to a folder that holds {name}, or ask for init=random."
        ) from error
    return Weights("imagenet (Keras)")


def save_weights(model: keras.Model, file: Path) -> None:
    """Write a network's weights so that a reader sees the whole file or the old one."""
    with atomic(file) as temporary:
        model.save_weights(temporary)
