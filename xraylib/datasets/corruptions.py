"""Corruptions of images: thirteen published ones in five severities, and five of handling.

The thirteen are those that MedMNIST-C (Di Salvo et al. 2024) names for PneumoniaMNIST, with its
parameters, written anew with Pillow and SciPy. Their parameters were set for images of 224 pixels.
The other five are our own: what happens when an image is turned, squeezed, inverted or labelled.
"""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.random import Generator, default_rng
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps
from scipy.ndimage import gaussian_filter

from xraylib.errors import InvalidDataError

# From an image (mode L) and a parameter to another image of the same size.
Corruption = Callable[[Image.Image, Any, Generator], Image.Image]


def _pixelate(image: Image.Image, share: float, rng: Generator) -> Image.Image:
    size = (int(image.width * share), int(image.height * share))
    return image.resize(size, Image.Resampling.BOX).resize(image.size, Image.Resampling.BOX)


def _jpeg(image: Image.Image, quality: int, rng: Generator) -> Image.Image:
    packed = io.BytesIO()
    image.save(packed, "JPEG", quality=quality)
    return Image.open(packed)


def _gaussian_noise(image: Image.Image, spread: float, rng: Generator) -> Image.Image:
    shares = _shares(image)
    return _from_shares(shares + rng.normal(scale=spread, size=shares.shape))


def _speckle_noise(image: Image.Image, spread: float, rng: Generator) -> Image.Image:
    shares = _shares(image)
    return _from_shares(shares * (1 + rng.normal(scale=spread, size=shares.shape)))


def _impulse_noise(image: Image.Image, share: float, rng: Generator) -> Image.Image:
    pixels = np.asarray(image)
    is_hit = rng.random(pixels.shape) < share
    is_white = rng.random(pixels.shape) < 0.5
    return Image.fromarray(np.where(is_hit, 255 * is_white, pixels).astype(np.uint8))


def _shot_noise(image: Image.Image, photons: float, rng: Generator) -> Image.Image:
    return _from_shares(rng.poisson(_shares(image) * photons) / photons)


def _gaussian_blur(image: Image.Image, kernel: int, rng: Generator) -> Image.Image:
    # The standard deviation that OpenCV, and so the original, takes for a kernel of this size.
    spread = 0.3 * ((kernel - 1) * 0.5 - 1) + 0.8
    exact = np.asarray(image, np.float64)
    blurred = gaussian_filter(exact, spread, radius=kernel // 2, mode="mirror")
    return Image.fromarray(blurred.round().astype(np.uint8))


def _brightness(image: Image.Image, factor: float, rng: Generator) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(factor)


def _contrast(image: Image.Image, factor: float, rng: Generator) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(factor)


def _gamma(image: Image.Image, power: float, rng: Generator) -> Image.Image:
    return _from_shares(_shares(image) ** power)


def _aspect(image: Image.Image, stretch: float, rng: Generator) -> Image.Image:
    """Squeeze the width and fill the sides with black."""
    size = (round(image.width * stretch), image.height)
    narrow = image.resize(size, Image.Resampling.BILINEAR)
    frame = Image.new("L", image.size)
    frame.paste(narrow, ((image.width - narrow.width) // 2, 0))
    return frame


def _rotation(image: Image.Image, degrees: float, rng: Generator) -> Image.Image:
    turn = degrees if rng.random() < 0.5 else -degrees
    return image.rotate(turn, Image.Resampling.BILINEAR)


def _inversion(image: Image.Image, degree: float, rng: Generator) -> Image.Image:
    return ImageOps.invert(image)


def _border(image: Image.Image, share: float, rng: Generator) -> Image.Image:
    """Black frame, as collimation leaves it."""
    border = (round(image.width * share), round(image.height * share))
    return ImageOps.expand(ImageOps.crop(image, border), border)


def _marker(image: Image.Image, share: float, rng: Generator) -> Image.Image:
    """White letter of that share of the height, in an upper corner."""
    size = max(4, round(image.height * share))
    edge = round(image.width * 0.04)
    x = edge if rng.random() < 0.5 else image.width - edge - size
    marked = image.copy()
    draw = ImageDraw.Draw(marked)
    font = ImageFont.load_default(size)
    draw.text((x, round(image.height * 0.04)), "R", fill=255, font=font)
    return marked


def _shares(image: Image.Image) -> np.ndarray:
    """Grey values as shares of white."""
    return np.asarray(image) / 255


def _from_shares(shares: np.ndarray) -> Image.Image:
    """Shares of white, clipped to [0, 1], as an image."""
    return Image.fromarray((np.clip(shares, 0, 1) * 255).astype(np.uint8))


# Name to function and its parameter at severities 1 to 5; the thirteen published ones come first.
CORRUPTIONS: dict[str, tuple[Corruption, tuple[Any, ...]]] = {
    "pixelate": (_pixelate, (0.8, 0.7, 0.6, 0.5, 0.4)),
    "jpeg": (_jpeg, (50, 30, 15, 10, 7)),
    "gaussian noise": (_gaussian_noise, (0.04, 0.05, 0.06, 0.07, 0.08)),
    "speckle noise": (_speckle_noise, (0.05, 0.07, 0.10, 0.15, 0.20)),
    "impulse noise": (_impulse_noise, (0.005, 0.01, 0.013, 0.017, 0.02)),
    "shot noise": (_shot_noise, (300, 200, 150, 100, 80)),
    "gaussian blur": (_gaussian_blur, (3, 5, 7, 9, 11)),
    "brightness up": (_brightness, (1.1, 1.2, 1.3, 1.4, 1.5)),
    "brightness down": (_brightness, (0.9, 0.8, 0.7, 0.6, 0.5)),
    "contrast up": (_contrast, (1.1, 1.2, 1.3, 1.4, 1.6)),
    "contrast down": (_contrast, (0.9, 0.8, 0.7, 0.6, 0.4)),
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
    number = list(CORRUPTIONS).index(name)
    corrupted = np.empty(pixels.shape, np.uint8)
    for index, image in enumerate(pixels):
        rng = default_rng([seed, number, severity, index])
        picture = function(Image.fromarray(image[..., 0]), parameters[severity - 1], rng)
        corrupted[index, ..., 0] = np.asarray(picture)
    return corrupted


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
    corrupted = np.empty(pixels.shape, np.uint8)
    for index, image in enumerate(pixels):
        picture = corrupt_one(Image.fromarray(image[..., 0]), names, rng)
        corrupted[index, ..., 0] = np.asarray(picture)
    return corrupted


def corrupt_one(image: Image.Image, names: tuple[str, ...], rng: Generator) -> Image.Image:
    """Corrupt one image (mode L) as `corrupt_each` does."""
    function, parameters = CORRUPTIONS[names[rng.integers(len(names))]]
    return function(image, parameters[rng.integers(len(parameters))], rng)
