"""Images as they should not be: turned, tilted, inverted, cut, or no radiograph at all.

They cost no label. Those of `REFUSED`, and `unusual_images`, teach the packaged model what it
should not answer; `KEPT` are slight changes, which it should.
"""

import numpy as np
from numpy.random import Generator, default_rng
from PIL import Image, ImageDraw, ImageOps
from PIL.Image import Resampling
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_sample_image

from xraylib.datasets.corruptions import (
    TAUGHT,
    Change,
    GrayImage,
    corrupt_one,
    to_image,
    to_images,
    to_pixels,
)


def change_each(pixels: np.ndarray, change: Change, seed: int = 0) -> np.ndarray:
    """Change images one by one.

    Parameters
    ----------
    pixels
        uint8 ``(n, size, size, 1)``.
    change
        From an image (mode L) of any size and a random generator to another image.
    seed
        The same seed gives the same pixels.

    Returns
    -------
    numpy.ndarray
        As `pixels`; the changed images are stretched to the old size.
    """
    changed = []
    for index, image in enumerate(to_images(pixels)):
        other = change(image, default_rng([seed, index]))
        changed.append(other.resize(image.size, Resampling.BILINEAR))
    return to_pixels(changed)


def degrade(image: GrayImage, rng: Generator) -> GrayImage:
    """Change an image with one of the degradations on which the flagship was trained."""
    seed = int(rng.integers(2**31))
    return corrupt_one(image, TAUGHT, default_rng(seed))


def frame(image: GrayImage, rng: Generator) -> GrayImage:
    """Add a border of up to 10% to all sides or to two opposite ones, or hide them under one."""
    horizontal = round(rng.uniform(0, 0.1) * image.width)
    vertical = round(rng.uniform(0, 0.1) * image.height)
    borders = ((0, vertical), (horizontal, 0), (horizontal, vertical))
    border = borders[rng.integers(3)]
    shade = 255 if rng.random() < 0.3 else 0
    if rng.random() >= 0.5:
        image = ImageOps.crop(image, border)
    return ImageOps.expand(image, border, shade)


def trim(image: GrayImage, rng: Generator) -> GrayImage:
    """Lose up to 5% of each side."""
    left, top, right, bottom = rng.uniform(0, 0.05, 4)
    return _crop(image, left, top, 1 - right, 1 - bottom)


def _crop(
    image: GrayImage,
    left: float,
    top: float,
    right: float,
    bottom: float,
) -> GrayImage:
    """Crop to a box in shares of the width and height."""
    width, height = image.size
    return image.crop((left * width, top * height, right * width, bottom * height))


def lean(image: GrayImage, rng: Generator) -> GrayImage:
    """Turn by up to 7°."""
    angle = rng.uniform(-7, 7)
    return image.rotate(angle, Resampling.BILINEAR)


def tilt(image: GrayImage, rng: Generator) -> GrayImage:
    """Turn by 14° to 60° in either direction; the corners are black."""
    angle = rng.uniform(14, 60) * rng.choice([-1, 1])
    is_enlarged = rng.random() < 0.5
    return image.rotate(angle, Resampling.BILINEAR, expand=is_enlarged)


def turn_over(image: GrayImage, rng: Generator) -> GrayImage:
    """Turn by 180°, mirrored or not."""
    if rng.random() < 0.5:
        return ImageOps.flip(image)
    return image.rotate(180)


def cut(image: GrayImage, rng: Generator) -> GrayImage:
    """Keep about one half, or a tight detail."""
    if rng.random() < 0.6:
        return halve(image, rng)
    return _detail(image, rng, 0.25, 0.55)


def halve(image: GrayImage, rng: Generator) -> GrayImage:
    """Keep 45 to 55% of an image: its left, right, upper or lower half."""
    share = rng.uniform(0.45, 0.55)
    boxes = (
        (0, 0, share, 1),
        (1 - share, 0, 1, 1),
        (0, 0, 1, share),
        (0, 1 - share, 1, 1),
    )
    return _crop(image, *boxes[rng.integers(4)])


def _detail(
    image: GrayImage,
    rng: Generator,
    smallest: float,
    largest: float,
) -> GrayImage:
    """Keep a box anywhere, its width and height between two shares of the image's."""
    width, height = rng.uniform(smallest, largest, 2)
    left = rng.uniform(0, 1 - width)
    top = rng.uniform(0, 1 - height)
    return _crop(image, left, top, left + width, top + height)


KEPT: tuple[Change, ...] = (degrade, frame, trim, lean)
REFUSED: dict[str, Change] = {
    "upside down": turn_over,
    "turned left": lambda image, rng: image.rotate(90, expand=True),
    "turned right": lambda image, rng: image.rotate(-90, expand=True),
    "tilted": tilt,
    "inverted": lambda image, rng: ImageOps.invert(image),
    "cut": cut,
}


def slightly(image: GrayImage, rng: Generator) -> GrayImage:
    """Apply one of `KEPT`, or two of them one after the other."""
    count = rng.integers(1, 3)
    for number in rng.choice(len(KEPT), size=count, replace=False):
        image = KEPT[number](image, rng)
    return image


def refused(image: GrayImage, rng: Generator, kind: str) -> GrayImage:
    """Change an image as a kind of `REFUSED` says, and one of two slightly as well."""
    if rng.random() < 0.5:
        image = slightly(image, rng)
    return REFUSED[kind](image, rng)


def unusual_images(count: int, size: int) -> np.ndarray:
    """Make pictures that are no radiographs, to learn from.

    Parameters
    ----------
    count, size
        How many, and their height and width in pixels.

    Returns
    -------
    numpy.ndarray
        uint8 ``(count, size, size, 1)``, the same at each call: blanks, gradients, noise of several
        grains, shapes, and details of the photograph `china.jpg` of scikit-learn.
    """
    photograph = load_photograph("china.jpg")

    def detail(rng: Generator, size: int) -> GrayImage:
        return random_detail(photograph, rng)

    kinds = (_gradient, _noise, _clouds, _shapes, detail, detail)
    pictures = []
    for index in range(count):
        draw = kinds[index % len(kinds)]
        picture = draw(default_rng([0, index]), size)
        pictures.append(picture.resize((size, size)))
    return to_pixels(pictures)


def load_photograph(name: str) -> GrayImage:
    """Load a photograph of scikit-learn in grey."""
    return Image.fromarray(load_sample_image(name)).convert("L")


def random_detail(photograph: GrayImage, rng: Generator) -> GrayImage:
    """Crop to a detail, turn it by a multiple of 90°, and invert it or not."""
    detail = _detail(photograph, rng, 0.3, 0.95)
    detail = detail.rotate(90 * int(rng.integers(4)), expand=True)
    if rng.random() < 0.3:
        return ImageOps.invert(detail)
    return detail


def _gradient(rng: Generator, size: int) -> GrayImage:
    """A blank in one case of four, otherwise a slope."""
    steepness = 0.0 if rng.random() < 0.25 else rng.uniform(0, 255)
    down, across = rng.uniform(-1, 1, 2)
    line = np.linspace(0, 1, size)
    slope = steepness * np.add.outer(down * line, across * line)
    noise = rng.normal(0, rng.choice([0, 3]), (size, size))
    level = rng.uniform(0, 255)
    return to_image(slope + level + noise)


def _noise(rng: Generator, size: int) -> GrayImage:
    side = int(rng.integers(4, size))
    return to_image(rng.integers(0, 256, (side, side)))


def _clouds(rng: Generator, size: int) -> GrayImage:
    """Smooth noise over the whole range, or darker at the edges like a chest."""
    noise = rng.normal(size=(size, size))
    cloud = gaussian_filter(noise, rng.uniform(2, size / 6))
    cloud = (cloud - cloud.min()) / np.ptp(cloud)
    if rng.random() < 0.5:
        squares = np.linspace(-1, 1, size) ** 2
        cloud *= np.exp(-2 * np.add.outer(squares, squares))
    return to_image(255 * cloud)


def _shapes(rng: Generator, size: int) -> GrayImage:
    """One to eleven ellipses, rectangles and lines, blurred."""
    picture = Image.new("L", (size, size), int(rng.integers(256)))
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(1, 12))):
        corners = np.sort(rng.uniform(0, size, (2, 2)), axis=0)
        draw_shape = (draw.ellipse, draw.rectangle, draw.line)[rng.integers(3)]
        draw_shape(corners.ravel().tolist(), fill=int(rng.integers(256)))
    values = np.asarray(picture, float)
    return to_image(gaussian_filter(values, rng.uniform(0, 4)))
