"""Pictures that are no chest radiographs and taught the packaged model nothing.

benchmarks/packaged_model.py asks how many of them its gate refuses. What taught the gate are other
pictures, `xraylib.datasets.alterations.unusual_images`.
"""

from collections.abc import Iterator

import numpy as np
from numpy.random import Generator, default_rng
from PIL import Image, ImageDraw, ImageFont, ImageOps
from scipy.ndimage import gaussian_filter

from xraylib.datasets.alterations import load_photograph, random_detail
from xraylib.datasets.corruptions import to_image, to_pixels


def unrelated_images(size: int, count: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield families of pictures, as a name and uint8 pixels `(count, size, size, 1)`.

    The families are details of the photograph `flower.jpg` of scikit-learn, pages of text, and
    drawings like radiographs of hands, skulls and long bones.
    """
    photograph = load_photograph("flower.jpg")
    families = {
        "photograph": lambda rng: random_detail(photograph, rng),
        "page of text": _page,
        "drawn hand": _hand,
        "drawn skull": _skull,
        "drawn long bones": _long_bones,
    }
    for number, (name, draw) in enumerate(families.items()):
        pictures = [draw(default_rng([1, number, index])) for index in range(count)]
        yield name, to_pixels([picture.resize((size, size)) for picture in pictures])


def _page(rng: Generator) -> Image.Image:
    """Lines of random letters, one page in three white on black."""
    page = Image.new("L", (850, 1100), 255)
    draw = ImageDraw.Draw(page)
    height = int(rng.integers(12, 40))
    font = ImageFont.load_default(height)
    for y in range(40, 1060, int(height * 1.4)):
        letters = rng.choice(list("etaoinshrdlu "), 90)
        draw.text((40, y), "".join(letters), fill=0, font=font)
    return ImageOps.invert(page) if rng.random() < 0.3 else page


def _hand(rng: Generator) -> Image.Image:
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


def _skull(rng: Generator) -> Image.Image:
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


def _long_bones(rng: Generator) -> Image.Image:
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
    return to_image(values + rng.normal(0, 3, values.shape))


def _blurred(picture: Image.Image, sigma: float) -> np.ndarray:
    return gaussian_filter(np.asarray(picture, float), sigma)
