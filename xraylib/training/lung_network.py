"""A small network that finds the lungs in an image, and the box around them.

It is trained on lung masks that people drew or reviewed (`v7labs/covid-19-xray-dataset`, CC BY 4.0),
joined to the images of the training folder. It sees no label of pneumonia. A classifier that gets
only the box of the lungs cannot use how an image is framed.
"""

import logging
from collections.abc import Iterator

import keras
import numpy as np
from keras import layers
from scipy import ndimage

from xraylib.datasets.lung_finder import SIZE, resize

log = logging.getLogger(__name__)


def build() -> keras.Model:
    """Build the network: a U-Net of separable convolutions with 84,000 weights.

    Returns
    -------
    keras.Model
        From float32 `(batch, 112, 112, 1)` in 0…255 to the probability of lung, of the same shape.
    """
    inputs = keras.Input((SIZE, SIZE, 1), name="image")
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    skips = []
    for filters in (16, 32, 64, 96):
        skips.append(x)
        x = layers.MaxPooling2D()(x)
        x = _block(x, filters)
    for skip, filters in zip(reversed(skips), (64, 32, 16, 8), strict=True):
        x = layers.UpSampling2D(interpolation="bilinear")(x)
        x = layers.Concatenate()([x, skip])
        x = _block(x, filters)
    outputs = layers.Conv2D(1, 1, activation="sigmoid", dtype="float32", name="lung")(x)
    return keras.Model(inputs, outputs, name="lung_finder")


def _block(x: keras.KerasTensor, filters: int) -> keras.KerasTensor:
    for _ in range(2):
        x = layers.SeparableConv2D(filters, 3, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization(momentum=0.9)(x)
        x = layers.ReLU()(x)
    return x


def fit(pixels: np.ndarray, masks: np.ndarray, *, epochs: int = 10, seed: int = 0) -> keras.Model:
    """Train the network on images and their lung masks.

    Parameters
    ----------
    pixels : numpy.ndarray
        uint8 `(n, size, size, 1)`.
    masks : numpy.ndarray
        bool `(n, 112, 112)`, lung = True.
    epochs : int
        Passes over the images. Every pass sees each image in another framing and rendering.
    seed : int
        Draws the initial weights, the order of the images and their changes.

    Returns
    -------
    keras.Model
        The trained network.
    """
    keras.utils.set_random_seed(seed)
    model = build()
    steps = max(1, len(pixels) // 32)
    rate = keras.optimizers.schedules.CosineDecay(2e-3, steps * epochs, alpha=0.01)
    model.compile(keras.optimizers.Adam(rate), _overlap_loss)
    images = resize(pixels)
    for epoch in range(epochs):
        rng = np.random.default_rng([seed, epoch])
        losses = [
            float(model.train_on_batch(*batch)) for batch in _batches(images, masks, rng, size=32)
        ]
        log.info("lung finder, epoch %d: loss %.4f", epoch + 1, np.mean(losses[-20:]))
    return model


def _overlap_loss(truth: keras.KerasTensor, probability: keras.KerasTensor) -> keras.KerasTensor:
    """Cross-entropy of the pixels plus one minus the Dice overlap of the masks."""
    ops = keras.ops
    entropy = ops.mean(keras.losses.binary_crossentropy(truth, probability))
    both = ops.sum(truth * probability, axis=(1, 2, 3))
    total = ops.sum(truth, axis=(1, 2, 3)) + ops.sum(probability, axis=(1, 2, 3))
    return entropy + 1.0 - ops.mean(2.0 * both / (total + 1.0))


def _batches(
    images: np.ndarray, masks: np.ndarray, rng: np.random.Generator, size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield batches of changed images and masks in random order; an incomplete last one is dropped."""
    order = rng.permutation(len(images))
    for start in range(0, len(order) - size + 1, size):
        rows = order[start : start + size]
        changed = [_change(images[row, ..., 0], masks[row], rng) for row in rows]
        yield (
            np.stack([image for image, _ in changed])[..., None],
            np.stack([mask for _, mask in changed])[..., None].astype(np.float32),
        )


def _change(
    image: np.ndarray, mask: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Frame, turn and render an image at random, and its mask in the same way."""
    height, width = rng.uniform(0.7, 1.25, 2)
    angle = np.deg2rad(rng.normal(0, 5))
    mirrored = -1.0 if rng.random() < 0.5 else 1.0
    # Maps a pixel of the changed image to one of the original, both counted from the centre.
    matrix = np.array(
        [
            [height * np.cos(angle), -width * np.sin(angle)],
            [height * np.sin(angle), mirrored * width * np.cos(angle)],
        ]
    )
    centre = (SIZE - 1) / 2
    moved = centre + rng.uniform(-0.5, 0.5, 2) * np.abs(1 - np.array([height, width])) * SIZE
    offset = moved - matrix @ np.full(2, centre)
    image = ndimage.affine_transform(image, matrix, offset, order=1, mode="constant", cval=0)
    mask = ndimage.affine_transform(mask.astype(np.uint8), matrix, offset, order=0) > 0
    rendered = np.clip(image / 255, 1e-4, 1) ** np.exp(rng.uniform(-0.5, 0.5))
    rendered = (rendered - 0.5) * rng.uniform(0.7, 1.3) + 0.5 + rng.uniform(-0.15, 0.15)
    if rng.random() < 0.3:
        rendered = ndimage.gaussian_filter(rendered, rng.uniform(0, 1.5))
    if rng.random() < 0.4:
        rendered = rendered + rng.normal(0, rng.uniform(0, 0.1), rendered.shape)
    return (255 * np.clip(rendered, 0, 1)).astype(np.float32), mask


def to_litert(model: keras.Model) -> bytes:
    """Convert a trained network to LiteRT in half precision, for one image at a time."""
    import tensorflow as tf

    image = keras.Input((SIZE, SIZE, 1), batch_size=1, name="image")
    exported = keras.Model(image, {"lung": model(image)})
    converter = tf.lite.TFLiteConverter.from_keras_model(exported)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]
    return converter.convert()
