"""Corruptions of images: thirteen published ones in five severities, and five of handling.

The thirteen are those that MedMNIST-C (Di Salvo et al. 2024) names for PneumoniaMNIST, with its
parameters, written anew with Pillow and SciPy. Their parameters were set for images of 224 pixels.
The other five are our own: what happens when an image is turned, squeezed, inverted or labelled.
"""

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.random import Generator, default_rng
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps
from PIL.Image import Resampling
from scipy.ndimage import gaussian_filter

from xraylib.errors import InvalidDataError

# Pillow's image of mode L: 8-bit grey values.
GrayImage = Image.Image
# From an image to another one, of another size perhaps.
Change = Callable[[GrayImage, Generator], GrayImage]
# From an image and a parameter to another image of the same size.
Corruption = Callable[[GrayImage, Any, Generator], GrayImage]


def to_images(pixels: np.ndarray) -> list[GrayImage]:
    """Convert uint8 ``(n, height, width, 1)`` to Pillow's images."""
    return [Image.fromarray(values[..., 0]) for values in pixels]


def to_pixels(images: Sequence[GrayImage]) -> np.ndarray:
    """Convert Pillow's images of one size to uint8 ``(n, height, width, 1)``."""
    return np.stack([np.asarray(image) for image in images])[..., np.newaxis]


def to_image(values: np.ndarray) -> GrayImage:
    """Make grey values ``(height, width)`` an image: clipped to 0…255, fractions cut off."""
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def _pixelate(image: GrayImage, share: float, rng: Generator) -> GrayImage:
    size = (int(image.width * share), int(image.height * share))
    coarse = image.resize(size, Resampling.BOX)
    return coarse.resize(image.size, Resampling.BOX)


def jpeg(image: GrayImage, quality: int, rng: Generator) -> GrayImage:
    """Compress an image."""
    packed = io.BytesIO()
    image.save(packed, "JPEG", quality=quality)
    return Image.open(packed)


def gaussian_noise(image: GrayImage, spread: float, rng: Generator) -> GrayImage:
    """Add noise of a standard deviation, as a share of white."""
    shares = _shares(image)
    noise = rng.normal(scale=spread, size=shares.shape)
    return to_image(255 * (shares + noise))


def _speckle_noise(image: GrayImage, spread: float, rng: Generator) -> GrayImage:
    shares = _shares(image)
    noise = rng.normal(scale=spread, size=shares.shape)
    return to_image(255 * (shares * (1 + noise)))


def _impulse_noise(image: GrayImage, share: float, rng: Generator) -> GrayImage:
    values = np.array(image)
    is_hit = rng.random(values.shape) < share
    is_white = rng.random(values.shape) < 0.5
    values[is_hit] = 0
    values[is_hit & is_white] = 255
    return Image.fromarray(values)


def _shot_noise(image: GrayImage, photons: float, rng: Generator) -> GrayImage:
    counts = rng.poisson(_shares(image) * photons)
    return to_image(255 * (counts / photons))


def _gaussian_blur(image: GrayImage, kernel: int, rng: Generator) -> GrayImage:
    # The standard deviation that OpenCV, and so the original, takes for a kernel of this size.
    spread = 0.3 * ((kernel - 1) * 0.5 - 1) + 0.8
    values = np.asarray(image, np.float64)
    blurred = gaussian_filter(values, spread, radius=kernel // 2, mode="mirror")
    return to_image(blurred.round())


def _brightness(image: GrayImage, factor: float, rng: Generator) -> GrayImage:
    return ImageEnhance.Brightness(image).enhance(factor)


def contrast(image: GrayImage, factor: float, rng: Generator) -> GrayImage:
    """Multiply the distance of each grey value to their mean."""
    return ImageEnhance.Contrast(image).enhance(factor)


def _gamma(image: GrayImage, power: float, rng: Generator) -> GrayImage:
    return to_image(255 * _shares(image) ** power)


def _aspect(image: GrayImage, stretch: float, rng: Generator) -> GrayImage:
    """Squeeze the width and fill the sides with black."""
    width = round(image.width * stretch)
    narrow = image.resize((width, image.height), Resampling.BILINEAR)
    frame = Image.new("L", image.size)
    frame.paste(narrow, ((image.width - width) // 2, 0))
    return frame


def _rotation(image: GrayImage, degrees: float, rng: Generator) -> GrayImage:
    turn = degrees if rng.random() < 0.5 else -degrees
    return image.rotate(turn, Resampling.BILINEAR)


def _inversion(image: GrayImage, degree: float, rng: Generator) -> GrayImage:
    return ImageOps.invert(image)


def _border(image: GrayImage, share: float, rng: Generator) -> GrayImage:
    """Black frame, as collimation leaves it."""
    border = (round(image.width * share), round(image.height * share))
    cropped = ImageOps.crop(image, border)
    return ImageOps.expand(cropped, border)


def _marker(image: GrayImage, share: float, rng: Generator) -> GrayImage:
    """White letter of that share of the height, in an upper corner."""
    size = max(4, round(image.height * share))
    # The letter keeps a distance of 4% to the edges.
    x = round(image.width * 0.04)
    y = round(image.height * 0.04)
    if rng.random() >= 0.5:
        x = image.width - x - size
    marked = image.copy()
    font = ImageFont.load_default(size)
    ImageDraw.Draw(marked).text((x, y), "R", fill=255, font=font)
    return marked


def _shares(image: GrayImage) -> np.ndarray:
    """Grey values as shares of white."""
    return np.asarray(image) / 255


# Name to function and its parameter at severities 1 to 5; the thirteen published ones come first.
CORRUPTIONS: dict[str, tuple[Corruption, tuple[Any, ...]]] = {
    "pixelate": (_pixelate, (0.8, 0.7, 0.6, 0.5, 0.4)),
    "jpeg": (jpeg, (50, 30, 15, 10, 7)),
    "gaussian noise": (gaussian_noise, (0.04, 0.05, 0.06, 0.07, 0.08)),
    "speckle noise": (_speckle_noise, (0.05, 0.07, 0.10, 0.15, 0.20)),
    "impulse noise": (_impulse_noise, (0.005, 0.01, 0.013, 0.017, 0.02)),
    "shot noise": (_shot_noise, (300, 200, 150, 100, 80)),
    "gaussian blur": (_gaussian_blur, (3, 5, 7, 9, 11)),
    "brightness up": (_brightness, (1.1, 1.2, 1.3, 1.4, 1.5)),
    "brightness down": (_brightness, (0.9, 0.8, 0.7, 0.6, 0.5)),
    "contrast up": (contrast, (1.1, 1.2, 1.3, 1.4, 1.6)),
    "contrast down": (contrast, (0.9, 0.8, 0.7, 0.6, 0.4)),
    "gamma up": (_gamma, (1.1, 1.2, 1.3, 1.4, 1.6)),
    "gamma down": (_gamma, (0.9, 0.8, 0.7, 0.6, 0.4)),
    # Chosen here; inversion has one severity.
    "aspect ratio": (_aspect, (0.95, 0.9, 0.85, 0.8, 0.7)),
    "rotation": (_rotation, (2, 5, 10, 15, 20)),
    "inversion": (_inversion, (1,)),
    "border": (_border, (0.02, 0.04, 0.06, 0.08, 0.10)),
    "marker": (_marker, (0.04, 0.06, 0.08, 0.10, 0.14)),
}
# The kinds that the flagship's augmentation imitates. All others measure what it was not taught.
TAUGHT = (
    "gaussian noise",
    "speckle noise",
    "shot noise",
    "gaussian blur",
    "brightness up",
    "brightness down",
    "contrast up",
    "contrast down",
    "gamma up",
    "gamma down",
)


def corrupt(pixels: np.ndarray, name: str, severity: int, seed: int = 0) -> np.ndarray:
    """Corrupt images.

    Parameters
    ----------
    pixels
        uint8 ``(n, height, width, 1)``.
    name
        A key of `CORRUPTIONS`.
    severity
        From 1 (slight) to 5; inversion has severity 1 only.
    seed
        The same seed gives the same pixels. Each image has its own noise, angle and corner.

    Returns
    -------
    numpy.ndarray
        As `pixels`.

    Raises
    ------
    InvalidDataError
        The corruption has no such severity.
    """
    function, parameters = CORRUPTIONS[name]
    if severity not in range(1, len(parameters) + 1):
        fix = f"give a whole number from 1 to {len(parameters)}"
        raise InvalidDataError(f"{name} has no severity {severity}. Fix: {fix}.")
    parameter = parameters[severity - 1]
    number = list(CORRUPTIONS).index(name)
    corrupted = []
    for index, image in enumerate(to_images(pixels)):
        rng = default_rng([seed, number, severity, index])
        corrupted.append(function(image, parameter, rng))
    return to_pixels(corrupted)


def corrupt_each(pixels: np.ndarray, names: tuple[str, ...], seed: int = 0) -> np.ndarray:
    """Corrupt each image in one of several ways at one of the severities, both drawn at random.

    Parameters
    ----------
    pixels
        uint8 ``(n, height, width, 1)``.
    names
        Keys of `CORRUPTIONS`.
    seed
        The same seed gives the same pixels.

    Returns
    -------
    numpy.ndarray
        As `pixels`.
    """
    rng = default_rng(seed)
    return to_pixels([corrupt_one(image, names, rng) for image in to_images(pixels)])


def corrupt_one(image: GrayImage, names: tuple[str, ...], rng: Generator) -> GrayImage:
    """Corrupt one image as `corrupt_each` does."""
    function, parameters = CORRUPTIONS[names[rng.integers(len(names))]]
    parameter = parameters[rng.integers(len(parameters))]
    return function(image, parameter, rng)
