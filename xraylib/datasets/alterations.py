"""Images as they should not be: turned, tilted, inverted, cut, or no chest at all.

They cost no label. Those of `REFUSED`, and `unusual_images`, teach the packaged model what it
should not answer; `KEPT` are slight changes, which it should. `strangers` are pictures that teach
nothing and measure only.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.random import Generator, default_rng
from PIL import Image, ImageDraw, ImageFont, ImageOps
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_sample_image

from xraylib.datasets.corruptions import TAUGHT, corrupt_one

Change = Callable[[Image.Image, Generator], Image.Image]


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
    changed = np.empty(pixels.shape, np.uint8)
    height, width = pixels.shape[1:3]
    for index, image in enumerate(pixels):
        rng = default_rng([seed, index])
        picture = change(Image.fromarray(image[..., 0]), rng)
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        changed[index, ..., 0] = np.asarray(picture)
    return changed


def degrade(image: Image.Image, rng: Generator) -> Image.Image:
    """Change an image with one of the degradations on which the flagship was trained."""
    return corrupt_one(image, TAUGHT, default_rng(int(rng.integers(2**31))))


def frame(image: Image.Image, rng: Generator) -> Image.Image:
    """Add a border of up to 10% to all sides or to two opposite ones, or hide them under one."""
    horizontal = round(rng.uniform(0, 0.1) * image.width)
    vertical = round(rng.uniform(0, 0.1) * image.height)
    sides = rng.integers(3)
    border = ((0, vertical), (horizontal, 0), (horizontal, vertical))[sides]
    shade = 255 if rng.random() < 0.3 else 0
    if rng.random() >= 0.5:
        image = ImageOps.crop(image, border)
    return ImageOps.expand(image, border, shade)


def trim(image: Image.Image, rng: Generator) -> Image.Image:
    """Lose up to 5% of each side."""
    left, top, right, bottom = rng.uniform(0, 0.05, 4)
    return _crop(image, left, top, 1 - right, 1 - bottom)


def _crop(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    """Crop to a box in shares of the width and height."""
    width, height = image.size
    return image.crop((left * width, top * height, right * width, bottom * height))


def lean(image: Image.Image, rng: Generator) -> Image.Image:
    """Turn by up to 7°."""
    return image.rotate(rng.uniform(-7, 7), Image.Resampling.BILINEAR)


def tilt(image: Image.Image, rng: Generator) -> Image.Image:
    """Turn by 14° to 60° in either direction; the corners are black."""
    angle = rng.uniform(14, 60) * rng.choice([-1, 1])
    return image.rotate(angle, Image.Resampling.BILINEAR, expand=rng.random() < 0.5)


def turn_over(image: Image.Image, rng: Generator) -> Image.Image:
    """Turn by 180°, mirrored or not."""
    return ImageOps.flip(image) if rng.random() < 0.5 else image.rotate(180)


def cut(image: Image.Image, rng: Generator) -> Image.Image:
    """Keep about one half, or a tight detail."""
    return halve(image, rng) if rng.random() < 0.6 else _detail(image, rng, 0.25, 0.55)


def halve(image: Image.Image, rng: Generator) -> Image.Image:
    """Keep 45 to 55% of an image: its left, right, upper or lower half."""
    share = rng.uniform(0.45, 0.55)
    boxes = ((0, 0, share, 1), (1 - share, 0, 1, 1), (0, 0, 1, share), (0, 1 - share, 1, 1))
    return _crop(image, *boxes[rng.integers(4)])


def _detail(image: Image.Image, rng: Generator, low: float, high: float) -> Image.Image:
    """Keep a box anywhere, of `low` to `high` of the width and of the height."""
    width, height = rng.uniform(low, high, 2)
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


def slightly(image: Image.Image, rng: Generator) -> Image.Image:
    """Apply one of `KEPT`, or two of them one after the other."""
    for number in rng.choice(len(KEPT), size=rng.integers(1, 3), replace=False):
        image = KEPT[number](image, rng)
    return image


def refused(image: Image.Image, rng: Generator, kind: str) -> Image.Image:
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
    photograph = _photograph("china.jpg")
    kinds = (_gradient, _noise, _clouds, _shapes, photograph, photograph)
    pictures = (kinds[index % len(kinds)](default_rng([0, index]), size) for index in range(count))
    return _stack(pictures, size)


def _stack(pictures: Iterable[Image.Image], size: int) -> np.ndarray:
    """Stretch pictures to one size, uint8 ``(n, size, size, 1)``."""
    return np.stack([np.asarray(picture.resize((size, size))) for picture in pictures])[..., None]


def _photograph(name: str) -> Callable[[Generator, int], Image.Image]:
    """Return what makes details of a photograph of scikit-learn, turned or inverted at random."""
    photograph = Image.fromarray(load_sample_image(name)).convert("L")

    def make(rng: Generator, size: int) -> Image.Image:
        detail = _detail(photograph, rng, 0.3, 0.95)
        detail = detail.rotate(90 * int(rng.integers(4)), expand=True)
        return ImageOps.invert(detail) if rng.random() < 0.3 else detail

    return make


def _gradient(rng: Generator, size: int) -> Image.Image:
    """A blank in one case of four, otherwise a slope."""
    steep = 0.0 if rng.random() < 0.25 else rng.uniform(0, 255)
    direction = rng.uniform(-1, 1, 2)
    line = np.linspace(0, 1, size)
    slope = steep * np.add.outer(direction[0] * line, direction[1] * line)
    noise = rng.normal(0, rng.choice([0, 3]), (size, size))
    return _picture(slope + rng.uniform(0, 255) + noise)


def _noise(rng: Generator, size: int) -> Image.Image:
    side = int(rng.integers(4, size))
    return _picture(rng.integers(0, 256, (side, side)))


def _clouds(rng: Generator, size: int) -> Image.Image:
    """Smooth noise over the whole range, or darker at the edges like a chest."""
    cloud = gaussian_filter(rng.normal(size=(size, size)), rng.uniform(2, size / 6))
    cloud = (cloud - cloud.min()) / np.ptp(cloud)
    if rng.random() < 0.5:
        line = np.linspace(-1, 1, size)
        cloud = cloud * np.exp(-2 * np.add.outer(line**2, line**2))
    return _picture(255 * cloud)


def _shapes(rng: Generator, size: int) -> Image.Image:
    picture = Image.new("L", (size, size), int(rng.integers(256)))
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(1, 12))):
        corners = np.sort(rng.uniform(0, size, (2, 2)), axis=0).ravel().tolist()
        shape = (draw.ellipse, draw.rectangle, draw.line)[rng.integers(3)]
        shape(corners, fill=int(rng.integers(256)))
    return _picture(_blurred(picture, rng.uniform(0, 4)))


def _picture(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def _blurred(picture: Image.Image, sigma: float) -> np.ndarray:
    return gaussian_filter(np.asarray(picture, float), sigma)


def strangers(size: int, count: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield families of pictures that nothing is learnt from, as a name and uint8 pixels.

    The families are details of the photograph `flower.jpg` of scikit-learn, pages of text, and
    drawings like radiographs of hands, skulls and long bones.
    """
    families = {
        "photograph": _photograph("flower.jpg"),
        "page of text": _page,
        "drawn hand": _hand,
        "drawn skull": _skull,
        "drawn long bones": _long_bones,
    }
    for number, (name, make) in enumerate(families.items()):
        rngs = (default_rng([1, number, index]) for index in range(count))
        yield name, _stack((make(rng, size) for rng in rngs), size)


def _page(rng: Generator, size: int) -> Image.Image:
    page = Image.new("L", (850, 1100), 255)
    draw = ImageDraw.Draw(page)
    height = int(rng.integers(12, 40))
    font = ImageFont.load_default(height)
    for y in range(40, 1060, int(height * 1.4)):
        letters = rng.choice(list("etaoinshrdlu "), 90)
        draw.text((40, y), "".join(letters), fill=0, font=font)
    return ImageOps.invert(page) if rng.random() < 0.3 else page


def _hand(rng: Generator, size: int) -> Image.Image:
    """Five fingers of four bones over a soft palm, on black."""
    soft = Image.new("L", (400, 400))
    bones = Image.new("L", (400, 400))
    draw_soft = ImageDraw.Draw(soft)
    draw_bone = ImageDraw.Draw(bones)
    draw_soft.ellipse((120, 200, 290, 390), fill=90)
    for angle in np.linspace(-0.7, 0.6, 5) + rng.normal(0, 0.04, 5):
        start = np.array([205.0, 330.0])
        direction = np.array([np.sin(angle), -np.cos(angle)])
        for length in rng.uniform(0.8, 1.2) * np.array([90, 60, 45, 30]):
            end = start + length * direction
            draw_soft.line([*start, *end], fill=90, width=34)
            draw_bone.line([*start, *(end - 6 * direction)], fill=140, width=14)
            start = end
    layers = [_blurred(layer, rng.uniform(1, 3)) for layer in (soft, bones)]
    return _grainy(layers[0] + layers[1], rng)


def _skull(rng: Generator, size: int) -> Image.Image:
    """A bright ring with two orbits, a nose and teeth."""
    head = Image.new("L", (400, 400))
    draw = ImageDraw.Draw(head)
    wide = rng.uniform(110, 150)
    draw.ellipse((200 - wide, 20, 200 + wide, 330), fill=210)
    draw.ellipse((212 - wide, 34, 188 + wide, 318), fill=150)
    draw.rectangle((150, 290, 250, 385), fill=150)
    for centre in (145, 255):
        draw.ellipse((centre - 32, 170, centre + 32, 225), fill=70)
    draw.polygon([(200, 215), (180, 265), (220, 265)], fill=60)
    for x in range(155, 250, 12):
        draw.rectangle((x, 300, x + 9, 330), fill=235)
    return _grainy(_blurred(head, rng.uniform(2, 5)) * rng.uniform(0.7, 1.1), rng)


def _long_bones(rng: Generator, size: int) -> Image.Image:
    """Two parallel bones in soft tissue: a forearm or a lower leg."""
    limb = Image.new("L", (400, 400))
    draw = ImageDraw.Draw(limb)
    draw.rectangle((110, 0, 290, 400), fill=80)
    for x in (165, 235):
        width = int(rng.integers(16, 34))
        draw.line((x, 0, x + rng.uniform(-20, 20), 400), fill=190, width=width)
        draw.line((x, 0, x + rng.uniform(-20, 20), 400), fill=140, width=width // 3)
    picture = _grainy(_blurred(limb, rng.uniform(1, 4)), rng)
    return picture.rotate(rng.uniform(-25, 25), Image.Resampling.BILINEAR)


def _grainy(values: np.ndarray, rng: Generator) -> Image.Image:
    return _picture(values + rng.normal(0, 3, values.shape))
