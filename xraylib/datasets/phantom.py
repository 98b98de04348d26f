"""The embedded data set: simulated chest X-rays of children with a known lesion mask.

The files have the layout and the names of the Kermany data, so that the same code reads both, and
their shift of framing: training normals show the whole image, pneumonias are cropped to the chest,
the test's normals lie between. A score on them shows that the code works and says nothing about
real images.

Underneath is a parametric thorax with its lesion, projected to centimetres of water along each ray:
every organ adds the length of the ray inside it, in closed form. Its frame is the child's, in
centimetres: x runs to the image's right (the child's left), y down, from the midline at the level
of the first rib.
"""

import json
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from xraylib.errors import InvalidDataError
from xraylib.storage import atomic_folder, digest, storage_errors

# Part of every key: raise it whenever the same settings would give other bytes.
VERSION = 4

_MU = 0.2  # attenuation of water per cm at the mean energy of a child's chest X-ray
_WORKERS = 2

# How one image of a child differs from the next.
_EXPOSURE = {
    "zoom": (0.93, 1.08),  # factor
    "angle": (-0.08, 0.08),  # radians
    "dx": (-0.9, 0.9),  # cm
    "dy": (-0.9, 0.9),  # cm
    "turn": (-0.9, 0.9),  # cm by which what lies in front shifts when the child is turned
    "haze": (-1.2, 1.4),  # cm of water over the lung bases
    "scatter": (0.1, 0.35),  # factor
    "photons": (3.1, 4.0),  # power of ten per pixel
    "blur": (0.02, 0.075),  # cm
    "dark": (0.12, 0.28),  # grey level, 0 to 1
    "bright": (0.84, 0.98),  # grey level, 0 to 1
    "gamma": (-0.25, 0.25),  # logarithm
}

# Strokes of the side markers: x0, y0, x1, y1 in cm.
_LETTERS: dict[str, list[tuple[float, float, float, float]]] = {
    "": [],
    "L": [
        (-0.4, -0.5, -0.4, 0.5),
        (-0.4, 0.5, 0.4, 0.5),
    ],
    "R": [
        (-0.4, 0.5, -0.4, -0.5),
        (-0.4, -0.5, 0.3, -0.5),
        (0.3, -0.5, 0.3, 0.0),
        (0.3, 0.0, -0.4, 0.0),
        (-0.1, 0.0, 0.4, 0.5),
    ],
}


@dataclass(frozen=True)
class PhantomSettings:
    """What is simulated: 20 or more `images` over all splits, squares of 28 or more pixels.

    `framing_shift` crops the images at top and bottom as Kermany's are (`ASPECTS`); without it none
    is cropped.
    """

    images: int = 600
    size: int = 224
    seed: int = 0
    framing_shift: bool = True

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits that name these settings and the simulator's version."""
        return digest(asdict(self) | {"version": VERSION})


_KINDS = ("normal", "bacteria", "virus")

# Probabilities that a patient has 1, 2, … images.
_IMAGES_PER_PATIENT = (0.5, 0.24, 0.13, 0.08, 0.05)

# Mean aspect ratio (width by height) of a class in a split, where an uncropped image has 1:
# Kermany's medians divided by 1.21, that of its training normals. The standard deviation is 0.07,
# and none is below 1.
ASPECTS = {"normal": 1.02, "test normal": 1.12, "pneumonia": 1.25}

Floats = NDArray[np.floating[Any]]  # float32 throughout
Strokes = NDArray[np.float64]  # rows of x0, y0, x1, y1, width, thickness in cm
Mask = NDArray[np.uint8]
Seed = int | Sequence[int]

_CENTRE = 7.2j  # the middle of a well centred image, as x + iy
_VIEW_CM = 20.5
_BONE = 2.8  # cm of water that attenuate like what a cm of a child's bone adds to soft tissue

# What differs between children: lengths and shifts in cm, factors, `heart_tilt` in radians. Thymus,
# sail sign and stomach bubble are absent at or below 0; the arms are down above -0.4.
_CHILD = {
    "scale": (0.92, 1.06),
    "width": (0.94, 1.06),
    "depth": (5.6, 6.9),
    "fat": (0.7, 1.7),
    "breath": (-1.5, 0.6),
    "heart": (0.9, 1.14),
    "heart_tilt": (0.45, 0.85),
    "mediastinum": (1.35, 2.0),
    "thymus": (-1.2, 1.0),
    "sail": (-2.2, 1.0),
    "rib_gap": (1.22, 1.42),
    "rib_tilt": (1.7, 3.2),
    "bone": (0.75, 1.2),
    "trachea": (-0.25, 0.15),
    "vessels": (0.8, 2.2),
    "stomach": (-0.8, 1.6),
    "arms": (-1.0, 1.0),
    "scapula": (6.6, 8.2),
    "chin": (-7.5, -4.2),
    "air": (0.70, 0.79),
}

# Lobes on a front view: centre x and y, half axes, level of the bounding fissure, and the side of
# it that stays clear (0: none does).
_LOBES = (
    (-3.7, 3.8, 2.2, 2.2, 6.2, -1),
    (-3.4, 8.6, 1.9, 1.6, 6.9, 1),
    (-4.3, 10.6, 2.3, 2.2, 0.0, 0),
    (3.9, 4.0, 2.1, 2.4, 0.0, 0),
    (4.6, 8.6, 1.8, 1.8, 0.0, 0),
    (4.2, 10.9, 2.2, 2.0, 0.0, 0),
)


def _draw(rng: np.random.Generator, ranges: dict[str, tuple[float, float]]) -> SimpleNamespace:
    """Draw every named value uniformly from its range, in the order of the names."""
    values = {name: float(rng.uniform(low, high)) for name, (low, high) in ranges.items()}
    return SimpleNamespace(**values)


class _View:
    """The image's pixel grid in the child's frame, and the way back."""

    def __init__(self, size: int, cm: float, angle: float, centre: complex) -> None:
        self.size = size
        self.cm = cm
        self.centre = centre
        cos = math.cos(angle)
        sin = math.sin(angle)
        self.direction = complex(cos, sin)
        axis = (np.arange(size, dtype=np.float32) + (0.5 - size / 2)) * cm
        self.x: Floats = axis[None, :] * cos - axis[:, None] * sin + centre.real
        self.y: Floats = axis[None, :] * sin + axis[:, None] * cos + centre.imag

    def strokes(self, lines: Strokes) -> Floats:
        """Draw strokes, antialiased, as thickness in cm; where they cross, the last one counts."""
        canvas = Image.new("F", (2 * self.size, 2 * self.size))
        pen = ImageDraw.Draw(canvas)
        ends = lines[:, 0:4:2] + 1j * lines[:, 1:4:2] - self.centre
        ends = ends / self.direction * (2 / self.cm) + (1 + 1j) * self.size
        xy = np.stack([ends.real, ends.imag], axis=-1).reshape(-1, 4)
        widths = np.maximum(1, np.rint(2 * lines[:, 4] / self.cm)).astype(int)
        thickness = lines[:, 5].tolist()
        for line, width, value in zip(xy.tolist(), widths.tolist(), thickness, strict=True):
            pen.line(line, fill=value, width=width)
        return np.asarray(canvas.reduce(2), dtype=np.float32)

    def distance(self, a: complex, b: complex) -> Floats:
        """Distance in cm to the segment from `a` to `b`, points as x + iy."""
        along = b - a
        x = self.x - a.real
        y = self.y - a.imag
        share = np.clip((x * along.real + y * along.imag) / abs(along) ** 2, 0, 1)
        x = x - share * along.real
        y = y - share * along.imag
        return np.sqrt(x * x + y * y)

    def ellipsoid(
        self, x: float, y: float, a: float, b: float, c: float, tilt: float = 0.0
    ) -> Floats:
        """Path through an ellipsoid with half axes `a`, `b` and, along the ray, `c`."""
        dx = self.x - x
        dy = self.y - y
        if tilt:
            cos = math.cos(tilt)
            sin = math.sin(tilt)
            turned = dx * cos + dy * sin
            dy = dy * cos - dx * sin
            dx = turned
        return _chord(dx * dx * (1 / a**2) + dy * dy * (1 / b**2), c)


def _chord(q: Floats, radius: float) -> Floats:
    """Path through a sphere or rod at the squared distance `q`, in radii, from its centre."""
    return 2 * radius * np.sqrt(np.maximum(1 - q, 0))


def _step(value: Floats, softness: float) -> Floats:
    """Rise from 0 to 1 around zero, over about four times `softness`."""
    return 0.5 + 0.5 * np.tanh(value * (0.5 / softness))


def _shaft(distance: Floats, radius: float) -> Floats:
    """Path through a long bone: a dense cortex around a lighter core."""
    q = distance * distance * (1 / radius**2)
    return _chord(q, radius) - 0.5 * _chord(q * 2.2, 0.67 * radius)


def _body(view: _View, child: SimpleNamespace) -> Floats:
    """Soft tissue of trunk, neck, chin, shoulders and arms, with the bone of the arms."""
    half = 2.7 + (8.3 * child.width + child.fat - 2.7) * _step(view.y + 0.7, 0.55)
    q = np.square(view.x / half)
    depth = 3.4 + (child.depth - 3.4) * _step(view.y - 0.5, 1.2)
    chin = view.ellipsoid(0, child.chin, 4.2, 3.6, 4.5)
    trunk = np.maximum(_chord(0.5 * q * (q + 1), 1.0) * depth, chin)
    for side in (-1, 1):
        trunk = np.maximum(trunk, view.ellipsoid(side * 7.4, 0.9, 3.0, 2.3, 2.8))
        arm_is_down = child.arms + 0.3 * side > -0.4
        hand = complex(side * 12.6, 11) if arm_is_down else complex(side * 11.5, -7)
        arm = view.distance(complex(side * 9.2, 0.8), hand)
        trunk = np.maximum(trunk, _chord(np.square(arm / (1.6 + 0.3 * child.fat)), 1.9))
        trunk += child.bone * _shaft(arm, 0.55)
    return trunk


def _cavity(view: _View, child: SimpleNamespace) -> tuple[Floats, Floats]:
    """Path through the pleural cavity above the diaphragm, and the rib cage's half width, in cm."""
    level = np.clip(view.y / 12, -0.2, 1.12)
    top = np.abs(np.minimum(level - 1, 0)) ** 3
    centre = (2.9 + 1.15 * level) * child.width
    half = (2.95 + 1.3 * level) * child.width
    q = np.square((np.abs(view.x) - centre) / half) + top
    cage = centre + half * np.sqrt(np.maximum(1 - top, 0.05))
    dome = 11.9 + child.breath + 0.45 * _step(view.x, 0.8)
    reach = np.abs(view.x) / child.width - 3.4 - 0.05 * view.x
    lateral = 1 + 0.55 * (reach > 0).astype(np.float32)
    below = view.y - dome - 0.11 * reach * reach * lateral
    # The recess behind the dome holds a little lung and fades out lower down.
    aerated = 0.88 * _step(-below, 0.09) + 0.12 * _step(0.7 - below, 0.3)
    return _chord(q * q, 0.84 * child.depth) * aerated, cage


def _mediastinum(view: _View, child: SimpleNamespace, turn: float) -> Floats:
    """Heart, great vessels, thymus and hila: what takes the place of lung around the midline."""
    low = 0.75 * child.breath
    k = child.heart
    hilum = 6.3 + low / 2
    # Centre, half axes (the last along the ray) and tilt, as `_View.ellipsoid` takes them.
    organs: list[tuple[float, ...]] = [
        (1.25 + turn, 9.3 + low, 4.5 * k, 3.3 * k, 3.8, child.heart_tilt),
        (-0.7 + turn, 9.0 + low, 2.2 * k, 3.2 * k, 3.4),
        (turn / 2, 5.5, child.mediastinum, 9.5, 3.8),
        (1.0 + turn, 4.4, 1.2, 1.5, 2.2),
        (-2.1 + turn / 2, hilum, 0.9, 1.5, 1.0),
        (2.1 + turn / 2, hilum, 0.9, 1.5, 1.0),
    ]
    if child.thymus > 0:
        organs.append((turn, 3.6, 2.1 + 1.3 * child.thymus, 3.0, 2.3))
    path = np.maximum.reduce([view.ellipsoid(*organ) for organ in organs])
    if child.sail > 0:
        x = view.x - turn
        sail = _step(np.minimum(view.y - 1.2, 5.6 - view.y + 0.12 * x), 0.15)
        edge = _step(x + (2.6 + 1.6 * child.sail), 0.2)
        sail *= edge * _step(view.y - 1.0 + 1.1 * x, 0.25)
        path = np.maximum(path, 2.6 * sail * (x < 1))
    return path


def _ribs(view: _View, child: SimpleNamespace, cage: Floats, turn: float) -> Floats:
    """Tilted loops round the cage: the back half arches up, the front half sags into cartilage."""
    x = np.abs(view.x)
    gap = child.rib_gap
    across = np.minimum(np.square(view.x / cage), 0.985)
    arch = np.sqrt(1 - across)
    stretch = np.sqrt(1 + across / (1 - across) * (child.rib_tilt / 8) ** 2)
    tilt = child.rib_tilt * (0.75 + 0.035 * view.y) * arch
    behind = (view.y + tilt) / gap
    before = (view.y - tilt) / gap - 0.3
    from_back = behind - np.clip(np.rint(behind), 1, 10)
    from_front = before - np.clip(np.rint(before), 1, 6)
    back = _shaft(from_back * gap / stretch, 0.27)
    front = _shaft(from_front * gap / stretch, 0.29)
    back *= 0.68 * _step(x - 0.9, 0.1)
    front *= 0.5 * _step(np.abs(view.x - turn) - cage * 0.52, 0.12)
    return (back + front) * (x < cage)


def _skeleton(view: _View, child: SimpleNamespace, cage: Floats, turn: float) -> Floats:
    """Ribs, spine, clavicles and scapulae as cm of bone."""
    x = view.x
    y = view.y
    bone = _ribs(view, child, cage, turn)
    wave = np.cos(y * (2 * math.pi / 1.28))
    column = np.square(x / (0.95 - 0.07 * wave))
    bone += (0.72 + 0.28 * np.tanh(3 * wave + 1.6)) * _chord(column * column, 0.24)
    for side in (-1, 1):
        bone += 0.6 * _chord(np.square((x - 0.52 * side) / 0.2) + (1 - wave) / 0.72, 0.2)
        run = side * (x - turn) - 0.9
        collar = _shaft(y - 0.75 + 0.2 * run + 0.28 * np.sin(0.95 * run), 0.32)
        bone += 1.3 * collar * _step(run, 0.08) * _step(6.3 - run, 0.1)
        scapula = view.ellipsoid(side * child.scapula, 3.4, 1.7, 3.4, 0.5, side * 0.2)
        bone += 0.22 * np.minimum(scapula, 0.7)
    return bone * child.bone


def _gas(view: _View, child: SimpleNamespace, turn: float) -> Floats:
    """Air in trachea, main bronchi and stomach."""
    middle = child.trachea + 0.5 * turn
    trachea = 1.4 * _chord(np.square((view.x - middle) / 0.45), 0.42)
    gas = trachea * _step(4.6 - view.y, 0.15)
    for side in (-1, 1):
        bronchus = view.distance(complex(middle, 4.5), complex(0.5 * turn + side * 1.9, 6.0))
        gas += 0.8 * _chord(np.square(bronchus / 0.33), 0.33)
    fill = child.stomach
    if fill > 0:
        gas += view.ellipsoid(4.2, 14.3 + child.breath, 1.4 + fill, 1.1 + 0.4 * fill, 1.6)
    return gas


def _strokes_between(start: Any, end: Any, width: Any, thickness: Any) -> Strokes:
    """Strokes from points to points, given as x + iy."""
    columns = (start.real, start.imag, end.real, end.imag, width, thickness)
    return np.column_stack(np.broadcast_arrays(*columns))


def _tree(rng: np.random.Generator, roots: int, generations: int, width: float) -> Strokes:
    """Branch vessels or bronchi from both hila, the finest first: wide ones cover them."""
    n = 2 * roots
    side = np.repeat([-1.0, 1.0], roots)
    start = side * rng.uniform(1.3, 2.2, n) + 1j * rng.uniform(5.6, 7.4, n)
    angle = np.tile(np.linspace(-1.35, 1.35, roots), 2) + rng.normal(0, 0.18, n)
    branches = []
    for generation in range(generations):
        n = len(start)
        step = rng.uniform(0.8, 1.6, n) * 0.9**generation
        end = start + step * (side * np.cos(angle) + 1j * np.sin(angle))
        calibre = width * 0.72**generation * rng.uniform(0.8, 1.2, n)
        branches.append(_strokes_between(start, end, calibre, calibre))
        side = np.repeat(side, 2)
        start = np.repeat(end, 2)
        fork = np.tile([-1.0, 1.0], n) * rng.uniform(0.1, 0.55, 2 * n)
        angle = np.repeat(angle, 2) + fork
    return np.concatenate(branches[::-1])


def _lumps(view: _View, rng: np.random.Generator) -> Floats:
    """Smooth irregularity around 0 with a standard deviation near 1, fixed to the child."""
    total = np.zeros_like(view.x)
    waves = rng.uniform((1.6, 0, 0), (5, 6.28, 6.28), (5, 3))
    for wave, turn, phase in waves.tolist():
        along = view.x * math.cos(turn) + view.y * math.sin(turn)
        total += np.cos(along * (6.28 / wave) + phase)
    return 0.63 * total


def _strength(rng: np.random.Generator, faint: float, dense: float) -> float:
    """Most lesions are plain to see, a tail of them barely visible."""
    return dense * (faint / dense) ** (rng.random() ** 4)


def _directions(rng: np.random.Generator, n: int) -> NDArray[np.complexfloating[Any, Any]]:
    """Unit vectors at random over half a turn, as x + iy."""
    return np.exp(1j * rng.uniform(0, math.pi, n))


def _consolidation(view: _View, rng: np.random.Generator, airways: Floats) -> Floats:
    """Fraction of the air that a lobar consolidation has replaced, 0 to 1."""
    x, y, a, b, fissure, side = _LOBES[rng.integers(len(_LOBES))]
    x += rng.normal(0, 0.5)
    y += rng.normal(0, 0.6)
    growth = rng.uniform(1.0, 1.8)
    a *= growth
    b *= growth
    strength = _strength(rng, 0.15, 1.3)
    softness = rng.uniform(0.18, 0.5)
    q = np.square((view.x - x) / a) + np.square((view.y - y) / b)
    filled = strength * _step(1 - q + 0.3 * _lumps(view, rng), softness)
    n = 90
    across = x + rng.normal(0, 0.7 * a, n)
    down = y + rng.normal(0, 0.7 * b, n)
    middle = across + 1j * down
    half = rng.uniform(0.05, 0.3, n) * _directions(rng, n)
    width = rng.uniform(0.35, 0.85, n)
    density = rng.uniform(0.3, 1.0, n)
    patches = _strokes_between(middle - half, middle + half, width, density)
    filled *= 0.62 + 0.52 * gaussian_filter(view.strokes(patches), 0.14 / view.cm)
    if side and rng.random() < 0.6:
        filled *= _step(side * (view.y - fissure - 0.06 * view.x), 0.1)
    if rng.random() < 0.5:
        filled *= 1 - 0.6 * np.minimum(4 * airways, 1)
    return np.clip(filled, 0, 1)


def _interstitial(view: _View, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Thick bronchi, rings and a net in both lungs (cm), and a perihilar haze (fraction of air)."""
    strength = _strength(rng, 0.55, 3.2)
    bronchi = _tree(rng, 6, 4, 0.36)
    bronchi[:, 5] = rng.uniform(0.25, 0.75, len(bronchi))
    n = 220
    x = rng.choice([-1, 1], n) * np.abs(rng.normal(3.0, 1.5, n))
    middle = x + 1j * rng.normal(7.6, 2.6, n)
    half = rng.uniform(0.15, 0.5, n) * _directions(rng, n)
    thickness = rng.uniform(0.15, 0.5, n)
    net = _strokes_between(middle - half, middle + half, 0.12, thickness)
    octagon = np.exp(2j * np.pi * np.arange(9) / 8)
    circle = middle[:12, None] + rng.uniform(0.18, 0.32, (12, 1)) * octagon
    starts = circle[:, :-1].ravel()
    ends = circle[:, 1:].ravel()
    rings = _strokes_between(starts, ends, 0.12, 0.6)
    streaks = gaussian_filter(view.strokes(np.concatenate([net, bronchi, rings])), 0.06 / view.cm)
    q = np.square((np.abs(view.x) - 2.6) / 2.6) + np.square((view.y - 7.5) / 3.6)
    haze = 0.13 * strength * np.exp(-q) * (1 + 0.35 * _lumps(view, rng))
    return strength * streaks, np.maximum(haze, 0)


def _devices(rng: np.random.Generator, marker: str) -> Strokes:
    """Side marker, stomach tube and monitoring leads, in cm of the image's own frame."""
    x = (1 if marker == "L" else -1) * rng.uniform(7.0, 8.8)
    y = rng.uniform(-1.8, 0.5)
    shapes = rng.uniform(-1, 1, (3, 5)).tolist()
    has_tube = rng.random() < 0.12
    has_leads = rng.random() < 0.18
    letter = [(x + a, y + b, x + c, y + d, 0.24, 12.0) for a, b, c, d in _LETTERS[marker]]
    devices = [np.array(letter).reshape(-1, 6)]
    t = np.linspace(0, 1, 25)
    if has_tube:
        shift, phase, end = shapes[0][:3]
        depth = 9 if end < 0 else 18
        across = 0.25 * shift + 0.3 * np.sin(3 * t + phase)
        curve = across + 1j * (depth * t - 5)
        devices.append(_strokes_between(curve[:-1], curve[1:], 0.16, 1.2))
    if has_leads:
        for a, b, c, d, e in shapes[1:]:
            across = 6 * a + 6 * b * t + 2 * c * np.sin(3 * t)
            down = 2 + 4 * d + (14 + 3 * e) * t
            curve = across + 1j * down
            devices.append(_strokes_between(curve[:-1], curve[1:], 0.14, 2.5))
    return np.concatenate(devices)


def _expose(water: Floats, exposure: SimpleNamespace, cm: float, rng: np.random.Generator) -> Mask:
    """From centimetres of water to grey: attenuation, scatter, photon noise, grey-scale curve."""
    height, width = water.shape
    beam = np.exp(-_MU * water)
    coarse = np.asarray(Image.fromarray(beam).reduce(4))
    fog = Image.fromarray(gaussian_filter(coarse, 0.4 / cm, mode="nearest")).resize((width, height))
    beam = gaussian_filter(beam + exposure.scatter * np.asarray(fog), exposure.blur / cm)
    photons = 10.0**exposure.photons / float(beam.mean())
    # With hundreds of photons per pixel the normal distribution approximates Poisson's.
    beam += np.sqrt(beam / photons) * rng.standard_normal(beam.shape, dtype=np.float32)
    density = -np.log(np.maximum(beam, 1e-4))
    low, high = np.percentile(density[water > 2][::16], (8, 93)).tolist()
    contrast = exposure.bright - exposure.dark
    grey = exposure.dark + contrast * (density - low) / (high - low)
    return (255 * np.clip(grey, 0, 1) ** math.exp(exposure.gamma)).astype(np.uint8)


def simulate(kind: str, patient_seed: Seed, image_seed: Seed, size: int = 224) -> tuple[Mask, Mask]:
    """Simulate one AP chest X-ray of a child.

    Parameters
    ----------
    kind : str
        normal, bacteria (focal lobar consolidation) or virus (diffuse bilateral interstitial
        pattern).
    patient_seed : int or sequence of int
        Fixes anatomy and lesion, so that one child can have several images.
    image_seed : int or sequence of int
        Fixes exposure, position and devices.
    size : int
        Height and width in pixels.

    Returns
    -------
    tuple of numpy.ndarray
        The image, and the mask of the lesion (0 or 255), both uint8 (size, size).
    """
    rng = np.random.default_rng(image_seed)
    exposure = _draw(rng, _EXPOSURE)
    marker = "LR"[rng.integers(2)] if rng.random() < 0.6 else ""
    seeds = np.random.SeedSequence(patient_seed).spawn(2)
    anatomy = np.random.default_rng(seeds[0])
    disease = np.random.default_rng(seeds[1])
    child = _draw(anatomy, _CHILD)
    turn = exposure.turn
    cm = _VIEW_CM * child.scale / exposure.zoom / size
    view = _View(size, cm, exposure.angle, complex(exposure.dx, exposure.dy) + _CENTRE)
    space, cage = _cavity(view, child)
    lung = np.maximum(space - _mediastinum(view, child, turn), 0)
    in_lung = np.minimum(0.2 * lung, 1)
    air = child.air * lung
    airways = _tree(anatomy, 4, 4, 0.2)
    vessels = view.strokes(_tree(anatomy, 5, 5, 0.28 + 0.06 * child.vessels))
    lesion = np.zeros_like(air)
    if kind == "bacteria":
        lesion = air * _consolidation(view, disease, view.strokes(airways))
    elif kind == "virus":
        streaks, haze = _interstitial(view, disease)
        lesion = in_lung * streaks + air * haze
    water = _body(view, child) - air + lesion - _gas(view, child, turn)
    water += _BONE * _skeleton(view, child, cage, turn) + child.vessels * vessels * in_lung
    bases = np.exp(-np.square((view.y - 12.5) / 3.2))
    water += max(exposure.haze, 0.0) * in_lung * bases
    water = np.maximum(water * (1 + 0.008 * turn * view.x), 0)
    # Attenuation is in cm of water so far; `cm` is the side of a pixel. Devices lie in the image's
    # own frame.
    devices = _devices(rng, marker)
    water += _View(size, cm, 0.0, _CENTRE).strokes(devices)
    return _expose(water, exposure, cm, rng), _lesion_mask(lesion, lung, cm)


def _lesion_mask(lesion: Floats, lung: Floats, cm: float) -> Mask:
    """Mark where the lesion, a little blurred, has 30% of its largest thickness; 0 or 255."""
    seen = gaussian_filter(lesion, 0.25 / cm) * (lung > 0.3)
    return np.where(seen > 0.3 * seen.max(), 255, 0).astype(np.uint8)


class _PlannedImage(NamedTuple):
    """One image to be simulated: its files, kind, the seed of its patient and its number there."""

    image: str
    mask: str
    kind: str
    patient: tuple[int, ...]
    number: int


def _images_per_kind(total: int) -> dict[tuple[str, str], int]:
    """Share images over splits and kinds in about the proportions of Kermany's data."""
    val = max(2, min(16, 2 * round(total / 75)))
    test = round(total * 154 / 600)
    sizes = {
        "train": (total - val - test, 0.26),
        "val": (val, 0.5),
        "test": (test, 0.38),
    }
    counts = {}
    for split, (images, normal_share) in sizes.items():
        counts[split, "normal"] = round(images * normal_share)
        pneumonias = images - counts[split, "normal"]
        counts[split, "virus"] = round(0.35 * pneumonias)
        counts[split, "bacteria"] = pneumonias - counts[split, "virus"]
    return counts


def _plan(settings: PhantomSettings) -> Iterator[_PlannedImage]:
    """List the images to simulate, named as Kermany's are.

    Every patient has a number of their own, in no order of split. The numbers lie above those of
    Kermany's test folder, so that a name of a phantom is never taken for one of its patients.
    """
    rng = np.random.default_rng([settings.seed, 1])
    counts = _images_per_kind(settings.images)
    first_number = 2001
    for k, kind in enumerate(_KINDS):
        patients = []
        for split in ("train", "val", "test"):
            left = counts[split, kind]
            while left > 0:
                images = min(left, 1 + int(rng.choice(5, p=_IMAGES_PER_PATIENT)))
                left -= images
                patients.append((split, images))
        numbers = rng.permutation(len(patients)) + first_number + 1
        first_number += len(patients)
        images_of_kind = 0
        for order, (split, images) in enumerate(patients):
            series = "NORMAL2-IM" if rng.random() < 0.55 else "IM"
            for image in range(1, images + 1):
                images_of_kind += 1
                class_folder = "PNEUMONIA"
                stem = f"person{numbers[order]}_{kind}_{images_of_kind}"
                if kind == "normal":
                    class_folder = "NORMAL"
                    stem = f"{series}-{numbers[order]:04d}-{image:04d}"
                yield _PlannedImage(
                    f"{split}/{class_folder}/{stem}.jpeg",
                    f"masks/{split}/{stem}.png",
                    kind,
                    (settings.seed, k, order),
                    image,
                )


def write(folder: Path | str, settings: PhantomSettings) -> Path:
    """Write a phantom as image files in the layout and naming of the Kermany data, if missing.

    The masks of its pneumonias are `masks/<split>/<image stem>.png`, the settings `phantom.json`;
    other settings are replaced. The same settings give the same bytes with the same versions of the
    libraries. The folder is returned.
    """
    folder = Path(folder)
    if settings.images < 20 or settings.size < 28:
        raise InvalidDataError(
            f"{settings} is too small. Fix: ask for 20 or more images of 28 or more pixels."
        )
    if _is_complete(folder, settings):
        return folder
    with storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            # Of two processes at once the second finds what the first has written.
            if not _is_complete(folder, settings):
                stamp = folder / "phantom.json"
                if folder.exists() and not stamp.exists() and any(folder.iterdir()):
                    fix = "name a new or an empty folder"
                    raise InvalidDataError(f"{folder} holds other files. Fix: {fix}.")
                with atomic_folder(folder) as fresh:
                    _write_images(fresh, settings)
                    (fresh / stamp.name).write_text(_stamp(settings))
    return folder


def _stamp(settings: PhantomSettings) -> str:
    content = asdict(settings) | {"version": VERSION, "key": settings.key}
    return json.dumps(content, indent=1)


def _is_complete(folder: Path, settings: PhantomSettings) -> bool:
    """Whether the folder holds every image of these settings."""
    stamp = folder / "phantom.json"
    has_stamp = stamp.is_file() and stamp.read_text() == _stamp(settings)
    return has_stamp and len(list(folder.rglob("*.jpeg"))) == settings.images


def _write_images(folder: Path, settings: PhantomSettings) -> None:
    """Simulate and write all images of a phantom."""

    def render(planned: _PlannedImage) -> None:
        seed = (*planned.patient, planned.number)
        pixels, lesion = simulate(planned.kind, planned.patient, seed, settings.size)
        kept = _rows_kept(planned, settings)
        Image.fromarray(pixels[kept]).save(folder / planned.image, quality=92)
        if planned.kind != "normal":
            Image.fromarray(lesion[kept]).save(folder / planned.mask)

    plan = list(_plan(settings))
    for planned in plan:
        (folder / planned.image).parent.mkdir(parents=True, exist_ok=True)
        (folder / planned.mask).parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(_WORKERS) as pool:
        list(pool.map(render, plan))


def _rows_kept(planned: _PlannedImage, settings: PhantomSettings) -> slice:
    """Crop top and bottom to an aspect ratio drawn for the class and split, as in `ASPECTS`."""
    if not settings.framing_shift:
        return slice(0, settings.size)
    group = "pneumonia"
    if planned.kind == "normal":
        group = "test normal" if planned.image.startswith("test") else "normal"
    rng = np.random.default_rng([*planned.patient, planned.number, 1])
    aspect = max(1.0, rng.normal(ASPECTS[group], 0.07))
    cropped = round(settings.size * (1 - 1 / aspect) / 2)
    return slice(cropped, settings.size - cropped)
