"""What can happen to a radiograph on its way: thirteen corruptions in five severities, and its handling.

The thirteen are those that MedMNIST-C (Di Salvo et al. 2024) names for PneumoniaMNIST, with its parameters, written
anew with Pillow and SciPy; each takes and gives uint8 `(height, width)` in 0…255. They were set for 224 pixels. Five
more are what handling does; and framing and rendering are swapped between the classes.
"""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont
from scipy.ndimage import gaussian_filter

Corruption = Callable[[np.ndarray, Any, np.random.Generator], np.ndarray]


def _pixelate(film: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    height, width = film.shape
    small = Image.fromarray(film).resize(
        (int(width * share), int(height * share)), Image.Resampling.BOX
    )
    return np.asarray(small.resize((width, height), Image.Resampling.BOX))


def _jpeg(film: np.ndarray, quality: int, rng: np.random.Generator) -> np.ndarray:
    packed = io.BytesIO()
    Image.fromarray(film).save(packed, "JPEG", quality=quality)
    return np.asarray(Image.open(packed))


def _gaussian_noise(film: np.ndarray, spread: float, rng: np.random.Generator) -> np.ndarray:
    return _whole(film / 255 + rng.normal(scale=spread, size=film.shape))


def _speckle_noise(film: np.ndarray, spread: float, rng: np.random.Generator) -> np.ndarray:
    return _whole(film / 255 * (1 + rng.normal(scale=spread, size=film.shape)))


def _impulse_noise(film: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    hit, white = rng.random(film.shape) < share, rng.random(film.shape) < 0.5
    return np.where(hit, np.where(white, 255, 0), film).astype(np.uint8)


def _shot_noise(film: np.ndarray, photons: float, rng: np.random.Generator) -> np.ndarray:
    return _whole(rng.poisson(film / 255 * photons) / photons)


def _gaussian_blur(film: np.ndarray, kernel: int, rng: np.random.Generator) -> np.ndarray:
    # The width that goes with a kernel of so many pixels in the original.
    spread, radius = 0.3 * ((kernel - 1) * 0.5 - 1) + 0.8, kernel // 2
    blurred = gaussian_filter(film.astype(np.float64), spread, radius=radius, mode="mirror")
    return blurred.round().astype(np.uint8)


def _brightness(film: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(ImageEnhance.Brightness(Image.fromarray(film)).enhance(factor))


def _contrast(film: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(ImageEnhance.Contrast(Image.fromarray(film)).enhance(factor))


def _gamma(film: np.ndarray, power: float, rng: np.random.Generator) -> np.ndarray:
    return _whole((film / 255) ** power)


def _aspect(film: np.ndarray, stretch: float, rng: np.random.Generator) -> np.ndarray:
    """Squeeze the width, the rest black."""
    height, width = film.shape
    narrow = Image.fromarray(film).resize(
        (round(width * stretch), height), Image.Resampling.BILINEAR
    )
    frame = Image.new("L", (width, height))
    frame.paste(narrow, ((width - narrow.width) // 2, 0))
    return np.asarray(frame)


def _rotation(film: np.ndarray, degrees: float, rng: np.random.Generator) -> np.ndarray:
    turn = degrees if rng.random() < 0.5 else -degrees
    return np.asarray(Image.fromarray(film).rotate(turn, Image.Resampling.BILINEAR))


def _inversion(film: np.ndarray, degree: float, rng: np.random.Generator) -> np.ndarray:
    return 255 - film


def _border(film: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Black frame, as collimation leaves it."""
    height, width = film.shape
    framed = np.zeros_like(film)
    y, x = round(height * share), round(width * share)
    framed[y : height - y, x : width - x] = film[y : height - y, x : width - x]
    return framed


def _marker(film: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """White letter of that share of the height, in an upper corner."""
    height, width = film.shape
    marked, size = Image.fromarray(film.copy()), max(4, round(height * share))
    x = round(width * 0.04) if rng.random() < 0.5 else width - round(width * 0.04) - size
    font = ImageFont.load_default(size)
    ImageDraw.Draw(marked).text((x, round(height * 0.04)), "R", fill=255, font=font)
    return np.asarray(marked)


# Name to function and its parameter at severities 1 to 5.
MEDMNIST_C: dict[str, tuple[Corruption, tuple[Any, ...]]] = {
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
}
# Of our own choosing; inversion has one severity.
HANDLING: dict[str, tuple[Corruption, tuple[Any, ...]]] = {
    "aspect ratio": (_aspect, (0.95, 0.9, 0.85, 0.8, 0.7)),
    "rotation": (_rotation, (2, 5, 10, 15, 20)),
    "inversion": (_inversion, (1,)),
    "border": (_border, (0.02, 0.04, 0.06, 0.08, 0.10)),
    "marker": (_marker, (0.04, 0.06, 0.08, 0.10, 0.14)),
}
CORRUPTIONS = MEDMNIST_C | HANDLING


def corrupt(films: np.ndarray, name: str, severity: int, seed: int = 0) -> np.ndarray:
    """Corrupt uint8 radiographs (n, height, width, 1) by a key of `CORRUPTIONS`, at severity 1 (slight) to 5.

    The same seed gives the same pixels; each image has its own noise, angle and place of the marker.
    """
    function, parameters = CORRUPTIONS[name]
    changed = np.empty_like(films)
    for place, film in enumerate(films):
        rng = np.random.default_rng([seed, list(CORRUPTIONS).index(name), severity, place])
        changed[place, ..., 0] = function(
            np.ascontiguousarray(film[..., 0]), parameters[severity - 1], rng
        )
    return changed


def _whole(film: np.ndarray) -> np.ndarray:
    return (np.clip(film, 0, 1) * 255).astype(np.uint8)
