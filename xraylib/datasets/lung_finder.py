"""Finding the lungs in an image: the box around them, by the network that comes with the package.

The network is a small U-Net, trained by benchmarks/train_lung_finder.py. It runs on LiteRT, so that
neither TensorFlow, JAX nor Keras is loaded.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from scipy import ndimage

from xraylib import paths
from xraylib.datasets import images, lungs
from xraylib.devices import litert_interpreter
from xraylib.storage import read_verified

MODEL_FILE = "lungs.tflite"
# Height and width of the network's input and output in pixels.
SIZE = 112
# A pixel counts as lung from this probability on.
LUNG = 0.5
# A region smaller than this share of the largest one is noise, not a lung.
SMALLEST_REGION = 0.15


@dataclass(frozen=True)
class LungBoxes:
    """The lungs that were found in `n` images.

    Attributes
    ----------
    boxes : numpy.ndarray
        float64 `(n, 4)`: distances of the box from the top, bottom, left and right edge, as shares
        of the image. Missing (NaN) where no lungs were found.
    area : numpy.ndarray
        float64 `(n,)`: share of the image that is lung.
    certainty : numpy.ndarray
        float64 `(n,)`: mean probability of the pixels that count as lung; 0 where there are none.
    """

    boxes: np.ndarray
    area: np.ndarray
    certainty: np.ndarray


@cache
def load_network() -> Any:
    """Load the packaged network.

    Returns
    -------
    callable
        From float32 `(1, 112, 112, 1)` in 0…255, as `image`, to `{"lung": probability}`.

    Raises
    ------
    NotFoundError
        LiteRT is not installed.
    InvalidDataError
        The file is missing or is not the one that the package came with.
    """
    content = read_verified(paths.SHIPPED / MODEL_FILE)
    return litert_interpreter(content, threads=1).get_signature_runner()


def find(pixels: np.ndarray) -> LungBoxes:
    """Find the lungs in images.

    Parameters
    ----------
    pixels : numpy.ndarray
        uint8 `(n, size, size, 1)`.

    Returns
    -------
    LungBoxes
        One box per image.
    """
    network = load_network()
    probability = np.empty((len(pixels), SIZE, SIZE), np.float32)
    for row, image in enumerate(images.resize(pixels, SIZE).astype(np.float32)):
        probability[row] = network(image=image[None])["lung"][0, ..., 0]
    return boxes_of(probability)


def boxes_of(probability: np.ndarray) -> LungBoxes:
    """Read boxes from the network's output, float32 `(n, 112, 112)`."""
    boxes = np.full((len(probability), 4), np.nan)
    area = np.zeros(len(probability))
    certainty = np.zeros(len(probability))
    for row, lung in enumerate(probability):
        mask = _largest_regions(lung >= LUNG)
        if mask.any():
            boxes[row] = lungs.box_of_mask(mask)
            area[row] = mask.mean()
            certainty[row] = lung[mask].mean()
    return LungBoxes(boxes, area, certainty)


def _largest_regions(mask: np.ndarray) -> np.ndarray:
    regions, count = ndimage.label(mask)
    if count == 0:
        return mask
    sizes = np.bincount(regions.ravel())
    sizes[0] = 0  # of all that is not lung
    return (sizes >= SMALLEST_REGION * sizes.max())[regions]
