"""Corruptions of images: thirteen published ones in five severities, and five of handling.

The thirteen are those that MedMNIST-C (Di Salvo et al. 2024) names for PneumoniaMNIST, with its
parameters, written anew with Pillow and SciPy. Their parameters were set for images of 224 pixels.
The other five are our own: what happens when an image is turned, squeezed, inverted or labelled.
Each private function takes and returns one image, uint8 ``(height, width)``.
"""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps
from scipy.ndimage import gaussian_filter

from xraylib.errors import InvalidDataError

Corruption = Callable[[np.ndarray, Any, np.random.Generator], np.ndarray]


def _pixelate(image: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    height, width = image.shape
    size = (int(width * share), int(height * share))
    small = Image.fromarray(image).resize(size, Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BOX))


def _jpeg(image: np.ndarray, quality: int, rng: np.random.Generator) -> np.ndarray:
    packed = io.BytesIO()
    Image.fromarray(image).save(packed, "JPEG", quality=quality)
    return np.asarray(Image.open(packed))


def _gaussian_noise(image: np.ndarray, spread: float, rng: np.random.Generator) -> np.ndarray:
    return _to_bytes(image / 255 + rng.normal(scale=spread, size=image.shape))


def _speckle_noise(image: np.ndarray, spread: float, rng: np.random.Generator) -> np.ndarray:
    return _to_bytes(image / 255 * (1 + rng.normal(scale=spread, size=image.shape)))


def _impulse_noise(image: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    is_hit = rng.random(image.shape) < share
    is_white = rng.random(image.shape) < 0.5
    return np.where(is_hit, 255 * is_white, image).astype(np.uint8)


def _shot_noise(image: np.ndarray, photons: float, rng: np.random.Generator) -> np.ndarray:
    return _to_bytes(rng.poisson(image / 255 * photons) / photons)


def _gaussian_blur(image: np.ndarray, kernel: int, rng: np.random.Generator) -> np.ndarray:
    # The standard deviation that OpenCV, and so the original, takes for a kernel of this size.
    spread = 0.3 * ((kernel - 1) * 0.5 - 1) + 0.8
    exact = image.astype(np.float64)
    blurred = gaussian_filter(exact, spread, radius=kernel // 2, mode="mirror")
    return blurred.round().astype(np.uint8)


def _brightness(image: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(ImageEnhance.Brightness(Image.fromarray(image)).enhance(factor))


def _contrast(image: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(ImageEnhance.Contrast(Image.fromarray(image)).enhance(factor))


def _gamma(image: np.ndarray, power: float, rng: np.random.Generator) -> np.ndarray:
    return _to_bytes((image / 255) ** power)


def _aspect(image: np.ndarray, stretch: float, rng: np.random.Generator) -> np.ndarray:
    """Squeeze the width and fill the sides with black."""
    height, width = image.shape
    size = (round(width * stretch), height)
    narrow = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
    frame = Image.new("L", (width, height))
    frame.paste(narrow, ((width - narrow.width) // 2, 0))
    return np.asarray(frame)


def _rotation(image: np.ndarray, degrees: float, rng: np.random.Generator) -> np.ndarray:
    turn = degrees if rng.random() < 0.5 else -degrees
    return np.asarray(Image.fromarray(image).rotate(turn, Image.Resampling.BILINEAR))


def _inversion(image: np.ndarray, degree: float, rng: np.random.Generator) -> np.ndarray:
    return 255 - image


def _border(image: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Black frame, as collimation leaves it."""
    height, width = image.shape
    border = (round(width * share), round(height * share))
    inner = ImageOps.crop(Image.fromarray(image), border)
    return np.asarray(ImageOps.expand(inner, border))


def _marker(image: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """White letter of that share of the height, in an upper corner."""
    height, width = image.shape
    size = max(4, round(height * share))
    edge = round(width * 0.04)
    x = edge if rng.random() < 0.5 else width - edge - size
    font = ImageFont.load_default(size)
    marked = Image.fromarray(image)
    ImageDraw.Draw(marked).text((x, round(height * 0.04)), "R", fill=255, font=font)
    return np.asarray(marked)


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
        rng = np.random.default_rng([seed, number, severity, index])
        corrupted[index, ..., 0] = function(image[..., 0], parameters[severity - 1], rng)
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
    rng = np.random.default_rng(seed)
    corrupted = np.empty(pixels.shape, np.uint8)
    for index, image in enumerate(pixels):
        function, parameters = CORRUPTIONS[names[rng.integers(len(names))]]
        parameter = parameters[rng.integers(len(parameters))]
        corrupted[index, ..., 0] = function(image[..., 0], parameter, rng)
    return corrupted


def _to_bytes(shares: np.ndarray) -> np.ndarray:
    """Shares of white, clipped to [0, 1], as uint8."""
    return (np.clip(shares, 0, 1) * 255).astype(np.uint8)
