"""Train the small network that finds the lungs, measure it, and put it into the package.

Usage: train_lung_finder.py [--dataset NAME|PATH] [--masks FOLDER]. FOLDER holds one black and white
image per image of the data set, `<image_id>.png`, the lungs white; by default `DATASET_lungs` in
the data folder. Writes `xraylib/weights/lungs.tflite` and the table `lung_finder` of the report.

The packaged network is trained on lung masks that people drew or reviewed
(`v7labs/covid-19-xray-dataset`, CC BY 4.0), joined to the images of the training folder. It sees no
label of pneumonia. A classifier that gets only the box of the lungs cannot use how an image is
framed.
"""

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy import ndimage
from sklearn.model_selection import GroupKFold

from xraylib import devices, paths
from xraylib.datasets import catalog, images, lungs
from xraylib.datasets import manifest as manifests
from xraylib.datasets.lung_finder import SIZE, boxes_of
from xraylib.errors import NotFoundError

HARDWARE = devices.use()
import keras  # noqa: E402
from keras import layers  # noqa: E402

from xraylib import export  # noqa: E402
from xraylib.report import tables  # noqa: E402

log = logging.getLogger(__name__)


def build() -> keras.Model:
    """Build the network: a U-Net of separable convolutions with 53,000 weights.

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
    size = min(32, len(pixels))
    steps = len(pixels) // size
    rate = keras.optimizers.schedules.CosineDecay(2e-3, steps * epochs, alpha=0.01)
    model.compile(keras.optimizers.Adam(rate), _overlap_loss)
    inputs = _resize(pixels)
    for epoch in range(epochs):
        rng = np.random.default_rng([seed, epoch])
        losses = [
            float(model.train_on_batch(*batch)) for batch in _batches(inputs, masks, rng, size)
        ]
        log.info("lung finder, epoch %d: loss %.4f", epoch + 1, np.mean(losses[-20:]))
    return model


def _resize(pixels: np.ndarray) -> np.ndarray:
    """Resize images to the network's input, float32 `(n, 112, 112, 1)`."""
    return images.resize(pixels, SIZE).astype(np.float32)


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
    """Yield changed images and masks in random order; an incomplete last batch is dropped."""
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


def load_masks(manifest: pd.DataFrame, folder: Path) -> dict[int, np.ndarray]:
    """Read the lung masks of a manifest's images.

    Parameters
    ----------
    manifest : pandas.DataFrame
        From `manifest.load`.
    folder : pathlib.Path
        Holds one black and white image of 112 × 112 pixels per image, `<image_id>.png`.

    Returns
    -------
    dict of int to numpy.ndarray
        bool `(112, 112)` by row number of the manifest; images without a mask are left out.

    Raises
    ------
    NotFoundError
        The folder holds no mask of these images.
    """
    masks = {}
    for row, name in enumerate(manifest["image_id"]):
        file = folder / f"{name}.png"
        if file.is_file():
            with Image.open(file) as image:
                mask = np.asarray(image.convert("L").resize((SIZE, SIZE))) > 0
            if mask.any():
                masks[row] = mask
    if not masks:
        raise NotFoundError(
            f"{folder} holds no lung mask of these images. Fix: put <image_id>.png there."
        )
    return masks


def fit_and_measure(
    manifest: pd.DataFrame, folder: Path, *, folds: int = 3, epochs: int = 7
) -> tuple[keras.Model, pd.DataFrame]:
    """Train the network that comes with the package and measure it on images it has not seen.

    That network is trained on all patients of the training folder and measured on the test folder.
    For the training folder, `folds` further networks are each measured on the patients that they
    were not trained on.

    Parameters
    ----------
    manifest : pandas.DataFrame
        From `manifest.load`.
    folder : pathlib.Path
        The lung masks, see `load_masks`.
    folds, epochs : int
        How many networks measure the training folder, and how long each network is trained.

    Returns
    -------
    network : keras.Model
        The network to package.
    table : pandas.DataFrame
        One row per part of the data:

        - `part`: `train, out of fold` or `test`.
        - `images`, `patients`: how many were measured.
        - `mean_overlap`: intersection over union of found and drawn box, mean.
        - `share_above_085`: share of images with an overlap of at least 0.85.
        - `not_found`: images in which no lungs were found.
    """
    masks = load_masks(manifest, folder)
    pixels = images.load_pixels(manifest, 224)
    rows = np.array(sorted(masks))
    in_test = (manifest["split"] == "test").to_numpy()[rows]
    patients = manifest["patient"].to_numpy()[rows]
    train = rows[~in_test]
    test = rows[in_test]
    overlaps = np.full(len(manifest), np.nan)
    divided = GroupKFold(folds, shuffle=True, random_state=0).split(
        train, groups=patients[~in_test]
    )
    for seed, (learn, measure) in enumerate(divided):
        network = _fit_rows(pixels, masks, train[learn], epochs, seed)
        overlaps[train[measure]] = _overlaps(network, pixels, masks, train[measure])
    network = _fit_rows(pixels, masks, train, epochs, seed=folds)
    overlaps[test] = _overlaps(network, pixels, masks, test)
    parts = {"train, out of fold": train, "test": test}
    table = [_measured(part, overlaps[of], manifest.iloc[of]) for part, of in parts.items()]
    return network, pd.DataFrame(table)


def _fit_rows(
    pixels: np.ndarray, masks: dict[int, np.ndarray], rows: np.ndarray, epochs: int, seed: int
) -> keras.Model:
    return fit(pixels[rows], np.stack([masks[row] for row in rows]), epochs=epochs, seed=seed)


def _overlaps(
    network: keras.Model, pixels: np.ndarray, masks: dict[int, np.ndarray], rows: np.ndarray
) -> np.ndarray:
    """Overlap of found and drawn boxes, 0 where no lungs are found."""
    probability = network.predict(_resize(pixels[rows]), batch_size=64, verbose=0)[..., 0]
    drawn = np.stack([lungs.box_of_mask(masks[row]) for row in rows])
    return np.nan_to_num(overlap(boxes_of(probability).boxes, drawn))


def _measured(part: str, overlaps: np.ndarray, images_of_part: pd.DataFrame) -> dict[str, object]:
    return {
        "part": part,
        "images": len(overlaps),
        "patients": images_of_part["patient"].nunique(),
        "mean_overlap": overlaps.mean(),
        "share_above_085": (overlaps >= 0.85).mean(),
        "not_found": int((overlaps == 0).sum()),
    }


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes, row by row.

    Parameters
    ----------
    a, b
        Boxes, ``(n, 4)``, as shares of the image.

    Returns
    -------
    numpy.ndarray
        ``(n,)``, from 0 (apart) to 1 (equal).
    """
    a = np.asarray(a, dtype=float)
    b = np.asarray(b, dtype=float)
    shared = _areas(np.maximum(a, b))
    return shared / (_areas(a) + _areas(b) - shared)


def _areas(boxes: np.ndarray) -> np.ndarray:
    heights = np.clip(1 - boxes[:, 0] - boxes[:, 1], 0, None)
    widths = np.clip(1 - boxes[:, 2] - boxes[:, 3], 0, None)
    return heights * widths


def main(arguments: list[str] | None = None) -> None:
    """Train, measure and package the network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="kermany")
    parser.add_argument("--masks", type=Path)
    options = parser.parse_args(arguments)
    name = catalog.get_dataset(options.dataset).name
    masks = options.masks or paths.DATA / f"{name}_lungs"
    network, table = fit_and_measure(manifests.load(options.dataset), masks)
    print(table.to_string(index=False, float_format="{:.3f}".format))
    tables.save_table(table, name, "lung_finder")
    export.package_lung_finder(network)
    print(paths.SHIPPED / "lungs.tflite")


if __name__ == "__main__":
    main()
