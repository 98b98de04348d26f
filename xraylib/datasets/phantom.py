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
from numpy.random import Generator, default_rng
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from xraylib.errors import InvalidDataError
from xraylib.storage import atomic_folder, digest, storage_errors

# Part of every key: raise it whenever the same settings would give other bytes.
VERSION = 4

# The file of the settings, beside the images.
_STAMP = "phantom.json"

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

# The side markers, drawn from point to point, as x + iy in cm.
_LETTERS: dict[str, list[list[complex]]] = {
    "": [],
    "L": [[-0.4 - 0.5j, -0.4 + 0.5j, 0.4 + 0.5j]],
    "R": [
        [-0.4 + 0.5j, -0.4 - 0.5j, 0.3 - 0.5j, 0.3, -0.4],
        [-0.1, 0.4 + 0.5j],
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

Floats = np.ndarray  # float32 throughout, one value per pixel
Strokes = np.ndarray  # complex; columns: start and end as x + iy, width, thickness, all in cm
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


def _draw(rng: Generator, ranges: dict[str, tuple[float, float]]) -> SimpleNamespace:
    """Draw every named value uniformly from its range, in the order of the names."""
    drawn = {}
    for name, (low, high) in ranges.items():
        drawn[name] = rng.uniform(low, high)
    return SimpleNamespace(**drawn)


class _View:
    """The image's pixel grid in the child's frame, and the way back."""

    def __init__(
        self,
        size: int,
        cm: float,
        angle: float,
        centre: complex,
    ) -> None:
        self.size = size
        self.cm = cm
        self.centre = centre
        cos = math.cos(angle)
        sin = math.sin(angle)
        self.direction = complex(cos, sin)
        pixels = np.arange(size, dtype=np.float32) + (0.5 - size / 2)
        across = pixels * cm
        down = across[:, np.newaxis]
        self.x = across * cos - down * sin + centre.real
        self.y = across * sin + down * cos + centre.imag

    def strokes(self, lines: Strokes) -> Floats:
        """Draw strokes, antialiased, as thickness in cm; where they cross, the last one counts."""
        canvas = Image.new("F", (2 * self.size, 2 * self.size))
        pen = ImageDraw.Draw(canvas)
        ends = (lines[:, :2] - self.centre) / self.direction
        ends = ends * (2 / self.cm) + (1 + 1j) * self.size
        corners = ends.view(float).tolist()  # x and y of the start, x and y of the end
        widths = np.rint(2 * lines[:, 2].real / self.cm).clip(1)
        thickness = lines[:, 3].real.tolist()
        for line, width, value in zip(corners, widths, thickness, strict=True):
            pen.line(line, fill=value, width=int(width))
        return np.asarray(canvas.reduce(2), dtype=np.float32)

    def distance(self, a: complex, b: complex) -> Floats:
        """Distance in cm to the segment from `a` to `b`, points as x + iy."""
        along = b - a
        x = self.x - a.real
        y = self.y - a.imag
        share = (x * along.real + y * along.imag) / abs(along) ** 2
        share = share.clip(0, 1)
        x -= share * along.real
        y -= share * along.imag
        return np.sqrt(x * x + y * y)

    def ellipsoid(
        self,
        x: float,
        y: float,
        a: float,
        b: float,
        c: float,
        tilt: float = 0.0,
    ) -> Floats:
        """Path through an ellipsoid with half axes `a`, `b` and, along the ray, `c`."""
        dx = self.x - x
        dy = self.y - y
        cos = math.cos(tilt)
        sin = math.sin(tilt)
        along = dx * cos + dy * sin
        across = dy * cos - dx * sin
        q = along * along * (1 / a**2)
        q += across * across * (1 / b**2)
        return _chord(q, c)


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
    # From the neck to the trunk; `q` is the distance from the midline in half widths, squared.
    wide = 8.3 * child.width + child.fat
    half = 2.7 + (wide - 2.7) * _step(view.y + 0.7, 0.55)
    depth = 3.4 + (child.depth - 3.4) * _step(view.y - 0.5, 1.2)
    q = np.square(view.x / half)
    trunk = _chord(0.5 * q * (q + 1), 1.0) * depth
    chin = view.ellipsoid(0, child.chin, 4.2, 3.6, 4.5)
    trunk = np.maximum(trunk, chin)
    for side in (-1, 1):
        shoulder = view.ellipsoid(side * 7.4, 0.9, 3.0, 2.3, 2.8)
        trunk = np.maximum(trunk, shoulder)
        is_down = child.arms + 0.3 * side > -0.4
        hand = side * 12.6 + 11j if is_down else side * 11.5 - 7j
        arm = view.distance(side * 9.2 + 0.8j, hand)
        radius = 1.6 + 0.3 * child.fat
        flesh = _chord(np.square(arm / radius), 1.9)
        trunk = np.maximum(trunk, flesh)
        trunk += child.bone * _shaft(arm, 0.55)
    return trunk


def _cavity(view: _View, child: SimpleNamespace) -> tuple[Floats, Floats]:
    """Path through the pleural cavity above the diaphragm, and the rib cage's half width, in cm."""
    level = np.clip(view.y / 12, -0.2, 1.12)
    above = np.abs(np.minimum(level - 1, 0))
    top = above**3
    centre = (2.9 + 1.15 * level) * child.width
    half = (2.95 + 1.3 * level) * child.width
    x = np.abs(view.x)
    q = np.square((x - centre) / half) + top
    cage = centre + half * np.sqrt(np.maximum(1 - top, 0.05))
    dome = 11.9 + child.breath + 0.45 * _step(view.x, 0.8)
    reach = x / child.width - 3.4 - 0.05 * view.x
    # The diaphragm falls more steeply towards the side than towards the midline.
    lateral = 1 + 0.55 * np.heaviside(reach, 0)
    fall = 0.11 * reach * reach * lateral
    below = view.y - dome - fall
    # The recess behind the dome holds a little lung and fades out lower down.
    before_dome = 0.88 * _step(-below, 0.09)
    behind_dome = 0.12 * _step(0.7 - below, 0.3)
    space = _chord(q * q, 0.84 * child.depth)
    return space * (before_dome + behind_dome), cage


def _mediastinum(
    view: _View,
    child: SimpleNamespace,
    turn: float,
) -> Floats:
    """Heart, great vessels, thymus and hila: what takes the place of lung around the midline."""
    low = 0.75 * child.breath
    heart = child.heart
    hilum = 6.3 + low / 2
    # Centre, half axes (the last along the ray) and tilt, as `_View.ellipsoid` takes them.
    organs = [
        (1.25 + turn, 9.3 + low, 4.5 * heart, 3.3 * heart, 3.8, child.heart_tilt),
        (-0.7 + turn, 9.0 + low, 2.2 * heart, 3.2 * heart, 3.4),
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
        below_top = view.y - 1.2
        above_base = 5.6 - view.y + 0.12 * x
        sail = _step(np.minimum(below_top, above_base), 0.15)
        lateral_edge = _step(x + (2.6 + 1.6 * child.sail), 0.2)
        slope = _step(view.y - 1.0 + 1.1 * x, 0.25)
        sail *= lateral_edge * slope
        path = np.maximum(path, 2.6 * sail * (x < 1))
    return path


def _ribs(
    view: _View,
    child: SimpleNamespace,
    cage: Floats,
    turn: float,
) -> Floats:
    """Tilted loops round the cage: the back half arches up, the front half sags into cartilage."""
    x = np.abs(view.x)
    gap = child.rib_gap
    across = np.minimum(np.square(view.x / cage), 0.985)
    arch = np.sqrt(1 - across)
    # Across a sloping rib a distance is shorter than along y.
    squared_slope = across / (1 - across) * (child.rib_tilt / 8) ** 2
    stretch = np.sqrt(1 + squared_slope)
    tilt = child.rib_tilt * (0.75 + 0.035 * view.y) * arch
    # Counted in ribs from the first; the distance to the nearest one is drawn as a shaft.
    behind = (view.y + tilt) / gap
    before = (view.y - tilt) / gap - 0.3
    from_back = behind - np.clip(np.rint(behind), 1, 10)
    from_front = before - np.clip(np.rint(before), 1, 6)
    back = _shaft(from_back * gap / stretch, 0.27)
    front = _shaft(from_front * gap / stretch, 0.29)
    back *= 0.68 * _step(x - 0.9, 0.1)
    front *= 0.5 * _step(np.abs(view.x - turn) - cage * 0.52, 0.12)
    return (back + front) * (x < cage)


def _skeleton(
    view: _View,
    child: SimpleNamespace,
    cage: Floats,
    turn: float,
) -> Floats:
    """Ribs, spine, clavicles and scapulae as cm of bone."""
    x = view.x
    y = view.y
    bone = _ribs(view, child, cage, turn)
    # A vertebra is 1.28 cm high.
    wave = np.cos(y * (2 * math.pi / 1.28))
    column = np.square(x / (0.95 - 0.07 * wave))
    density = 0.72 + 0.28 * np.tanh(3 * wave + 1.6)
    bone += density * _chord(column * column, 0.24)
    for side in (-1, 1):
        pedicle = np.square((x - 0.52 * side) / 0.2)
        pedicle += (1 - wave) / 0.72
        bone += 0.6 * _chord(pedicle, 0.2)
        run = side * (x - turn) - 0.9
        bend = 0.28 * np.sin(0.95 * run)
        clavicle = 1.3 * _shaft(y - 0.75 + 0.2 * run + bend, 0.32)
        bone += clavicle * _step(run, 0.08) * _step(6.3 - run, 0.1)
        scapula = view.ellipsoid(side * child.scapula, 3.4, 1.7, 3.4, 0.5, side * 0.2)
        bone += 0.22 * np.minimum(scapula, 0.7)
    return bone * child.bone


def _gas(
    view: _View,
    child: SimpleNamespace,
    turn: float,
) -> Floats:
    """Air in trachea, main bronchi and stomach."""
    middle = child.trachea + 0.5 * turn
    trachea = 1.4 * _chord(np.square((view.x - middle) / 0.45), 0.42)
    gas = trachea * _step(4.6 - view.y, 0.15)
    for side in (-1, 1):
        end = 0.5 * turn + side * 1.9 + 6.0j
        bronchus = view.distance(middle + 4.5j, end)
        gas += 0.8 * _chord(np.square(bronchus / 0.33), 0.33)
    fill = child.stomach
    if fill > 0:
        y = 14.3 + child.breath
        gas += view.ellipsoid(4.2, y, 1.4 + fill, 1.1 + 0.4 * fill, 1.6)
    return gas


def _strokes_between(
    start: Any,
    end: Any,
    width: Any,
    thickness: Any,
) -> Strokes:
    """Strokes from points to points, given as x + iy."""
    return np.column_stack(np.broadcast_arrays(start, end, width, thickness))


def _curve(
    points: np.ndarray,
    width: float,
    thickness: float,
) -> Strokes:
    """Strokes from each point to the next, given as x + iy."""
    return _strokes_between(points[:-1], points[1:], width, thickness)


def _tree(
    rng: Generator,
    roots: int,
    generations: int,
    width: float,
) -> Strokes:
    """Branch vessels or bronchi from both hila, the finest first: wide ones cover them."""
    n = 2 * roots
    side = np.repeat([-1.0, 1.0], roots)
    across = side * rng.uniform(1.3, 2.2, n)
    start = across + 1j * rng.uniform(5.6, 7.4, n)
    fan = np.linspace(-1.35, 1.35, roots)
    angle = np.tile(fan, 2) + rng.normal(0, 0.18, n)
    branches = []
    for generation in range(generations):
        n = len(start)
        length = rng.uniform(0.8, 1.6, n) * 0.9**generation
        direction = side * np.cos(angle) + 1j * np.sin(angle)
        end = start + length * direction
        calibre = width * 0.72**generation * rng.uniform(0.8, 1.2, n)
        branches.append(_strokes_between(start, end, calibre, calibre))
        # Every branch forks into two.
        side = np.repeat(side, 2)
        start = np.repeat(end, 2)
        fork = rng.uniform(0.1, 0.55, 2 * n)
        angle = np.repeat(angle, 2) + np.tile([-1.0, 1.0], n) * fork
    return np.concatenate(branches[::-1])


def _lumps(view: _View, rng: Generator) -> Floats:
    """Smooth irregularity around 0 with a standard deviation near 1, fixed to the child."""
    total = np.zeros_like(view.x)
    waves = rng.uniform((1.6, 0, 0), (5, 6.28, 6.28), (5, 3))
    for wave, turn, phase in waves.tolist():
        along = view.x * math.cos(turn) + view.y * math.sin(turn)
        total += np.cos(along * (6.28 / wave) + phase)
    return 0.63 * total


def _strength(
    rng: Generator,
    faint: float,
    dense: float,
) -> float:
    """Most lesions are plain to see, a tail of them barely visible."""
    faintness = rng.random() ** 4
    return dense * (faint / dense) ** faintness


def _streaks(
    rng: Generator,
    middle: np.ndarray,
    shortest: float,
    longest: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Start and end, as x + iy, of streaks in any direction; `shortest`, `longest`: half length."""
    n = len(middle)
    length = rng.uniform(shortest, longest, n)
    angle = rng.uniform(0, math.pi, n)
    half = length * np.exp(1j * angle)
    return middle - half, middle + half


def _consolidation(
    view: _View,
    rng: Generator,
    airways: Floats,
) -> Floats:
    """Fraction of the air that a lobar consolidation has replaced, 0 to 1."""
    x, y, a, b, fissure, side = _LOBES[rng.integers(len(_LOBES))]
    x += rng.normal(0, 0.5)
    y += rng.normal(0, 0.6)
    growth = rng.uniform(1.0, 1.8)
    a *= growth
    b *= growth
    strength = _strength(rng, 0.15, 1.3)
    softness = rng.uniform(0.18, 0.5)
    q = np.square((view.x - x) / a)
    q += np.square((view.y - y) / b)
    filled = strength * _step(1 - q + 0.3 * _lumps(view, rng), softness)
    n = 90
    across = x + rng.normal(0, 0.7 * a, n)
    down = y + rng.normal(0, 0.7 * b, n)
    start, end = _streaks(rng, across + 1j * down, 0.05, 0.3)
    width = rng.uniform(0.35, 0.85, n)
    density = rng.uniform(0.3, 1.0, n)
    patches = view.strokes(_strokes_between(start, end, width, density))
    filled *= 0.62 + 0.52 * gaussian_filter(patches, 0.14 / view.cm)
    if side and rng.random() < 0.6:
        beyond_fissure = side * (view.y - fissure - 0.06 * view.x)
        filled *= _step(beyond_fissure, 0.1)
    if rng.random() < 0.5:
        # An air bronchogram: the airways stay open.
        filled *= 1 - 0.6 * np.minimum(4 * airways, 1)
    return np.clip(filled, 0, 1)


def _interstitial(view: _View, rng: Generator) -> tuple[Floats, Floats]:
    """Thick bronchi, rings and a net in both lungs (cm), and a perihilar haze (fraction of air)."""
    strength = _strength(rng, 0.55, 3.2)
    bronchi = _tree(rng, 6, 4, 0.36)
    bronchi[:, 3] = rng.uniform(0.25, 0.75, len(bronchi))
    n = 220
    side = rng.choice([-1, 1], n)
    across = side * np.abs(rng.normal(3.0, 1.5, n))
    middle = across + 1j * rng.normal(7.6, 2.6, n)
    start, end = _streaks(rng, middle, 0.15, 0.5)
    net = _strokes_between(start, end, 0.12, rng.uniform(0.15, 0.5, n))
    # Rings are octagons around some of the net's strokes.
    octagon = np.exp(2j * np.pi * np.arange(9) / 8)
    radius = rng.uniform(0.18, 0.32, (12, 1))
    corners = middle[:12, np.newaxis] + radius * octagon
    rings = [_curve(points, 0.12, 0.6) for points in corners]
    drawn = view.strokes(np.concatenate([net, bronchi, *rings]))
    streaks = gaussian_filter(drawn, 0.06 / view.cm)
    from_hilum = np.abs(view.x) - 2.6
    q = np.square(from_hilum / 2.6)
    q += np.square((view.y - 7.5) / 3.6)
    lumps = 1 + 0.35 * _lumps(view, rng)
    haze = 0.13 * strength * np.exp(-q) * lumps
    return strength * streaks, np.maximum(haze, 0)


def _devices(rng: Generator, marker: str) -> Strokes:
    """Side marker, stomach tube and monitoring leads, in cm of the image's own frame."""
    side = 1 if marker == "L" else -1
    x = side * rng.uniform(7.0, 8.8)
    corner = complex(x, rng.uniform(-1.8, 0.5))
    shapes = rng.uniform(-1, 1, (3, 5)).tolist()
    has_tube = rng.random() < 0.12
    has_leads = rng.random() < 0.18
    devices = [np.empty((0, 4))]
    for points in _LETTERS[marker]:
        devices.append(_curve(corner + np.array(points), 0.24, 12.0))
    t = np.linspace(0, 1, 25)
    if has_tube:
        shift, phase, end = shapes[0][:3]
        depth = 9 if end < 0 else 18
        across = 0.25 * shift + 0.3 * np.sin(3 * t + phase)
        down = depth * t - 5
        devices.append(_curve(across + 1j * down, 0.16, 1.2))
    if has_leads:
        for a, b, c, d, e in shapes[1:]:
            across = 6 * a + 6 * b * t + 2 * c * np.sin(3 * t)
            down = 2 + 4 * d + (14 + 3 * e) * t
            devices.append(_curve(across + 1j * down, 0.14, 2.5))
    return np.concatenate(devices)


def _expose(
    water: Floats,
    exposure: SimpleNamespace,
    cm: float,
    rng: Generator,
) -> np.ndarray:
    """From centimetres of water to grey: attenuation, scatter, photon noise, grey-scale curve."""
    beam = np.exp(-_MU * water)
    # Scatter is smooth, so that a quarter of the resolution is enough.
    coarse = np.asarray(Image.fromarray(beam).reduce(4))
    fog = Image.fromarray(gaussian_filter(coarse, 0.4 / cm, mode="nearest"))
    scattered = np.asarray(fog.resize(water.shape[::-1]))
    beam = gaussian_filter(beam + exposure.scatter * scattered, exposure.blur / cm)
    photons = 10.0**exposure.photons / float(beam.mean())
    # With hundreds of photons per pixel the normal distribution approximates Poisson's.
    noise = rng.standard_normal(beam.shape, dtype=np.float32)
    beam += np.sqrt(beam / photons) * noise
    density = -np.log(np.maximum(beam, 1e-4))
    body = density[water > 2]
    low, high = np.percentile(body[::16], (8, 93)).tolist()
    contrast = exposure.bright - exposure.dark
    grey = exposure.dark + contrast * (density - low) / (high - low)
    curved = np.clip(grey, 0, 1) ** math.exp(exposure.gamma)
    return (255 * curved).astype(np.uint8)


def simulate(
    kind: str,
    patient_seed: Seed,
    image_seed: Seed,
    size: int = 224,
) -> tuple[np.ndarray, np.ndarray]:
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
    rng = default_rng(image_seed)
    exposure = _draw(rng, _EXPOSURE)
    marker = ""
    if rng.random() < 0.6:
        marker = "LR"[rng.integers(2)]
    seeds = np.random.SeedSequence(patient_seed).spawn(2)
    anatomy = default_rng(seeds[0])
    disease = default_rng(seeds[1])
    child = _draw(anatomy, _CHILD)
    turn = exposure.turn
    # The side of a pixel.
    cm = _VIEW_CM * child.scale / exposure.zoom / size
    centre = complex(exposure.dx, exposure.dy) + _CENTRE
    view = _View(size, cm, exposure.angle, centre)
    space, cage = _cavity(view, child)
    lung = np.maximum(space - _mediastinum(view, child, turn), 0)
    in_lung = np.minimum(0.2 * lung, 1)
    air = child.air * lung
    airways = view.strokes(_tree(anatomy, 4, 4, 0.2))
    vessels = view.strokes(_tree(anatomy, 5, 5, 0.28 + 0.06 * child.vessels))
    lesion = np.zeros_like(air)
    if kind == "bacteria":
        lesion = air * _consolidation(view, disease, airways)
    elif kind == "virus":
        streaks, haze = _interstitial(view, disease)
        lesion = in_lung * streaks + air * haze
    water = _body(view, child) - air + lesion - _gas(view, child, turn)
    bone = _skeleton(view, child, cage, turn)
    water += _BONE * bone + child.vessels * vessels * in_lung
    from_bases = (view.y - 12.5) / 3.2
    bases = np.exp(-np.square(from_bases))
    water += max(exposure.haze, 0.0) * in_lung * bases
    # A child that is turned is thicker on one side of the image.
    water *= 1 + 0.008 * turn * view.x
    water = np.maximum(water, 0)
    # Devices lie in the image's own frame, which is not turned.
    devices = _devices(rng, marker)
    water += _View(size, cm, 0.0, _CENTRE).strokes(devices)
    image = _expose(water, exposure, cm, rng)
    return image, _lesion_mask(lesion, lung, cm)


def _lesion_mask(
    lesion: Floats,
    lung: Floats,
    cm: float,
) -> np.ndarray:
    """Mark where the lesion, a little blurred, has 30% of its largest thickness; 0 or 255."""
    seen = gaussian_filter(lesion, 0.25 / cm) * (lung > 0.3)
    is_lesion = seen > 0.3 * seen.max()
    return np.where(is_lesion, 255, 0).astype(np.uint8)


class _PlannedImage(NamedTuple):
    """One image to be simulated.

    `seed` is that of its patient, followed by the image's number among the patient's. `framing` is
    a key of `ASPECTS`.
    """

    image: str
    mask: str
    kind: str
    framing: str
    seed: tuple[int, ...]


def _images_per_kind(total: int) -> dict[tuple[str, str], int]:
    """Share images over splits and kinds in about the proportions of Kermany's data."""
    val = max(2, min(16, 2 * round(total / 75)))
    test = round(total * 154 / 600)
    train = total - val - test
    # Images of a split, and the share of normal ones.
    sizes = {"train": (train, 0.26), "val": (val, 0.5), "test": (test, 0.38)}
    counts = {}
    for split, (images, normal_share) in sizes.items():
        normals = round(images * normal_share)
        pneumonias = images - normals
        viral = round(0.35 * pneumonias)
        counts[split, "normal"] = normals
        counts[split, "virus"] = viral
        counts[split, "bacteria"] = pneumonias - viral
    return counts


def _plan(settings: PhantomSettings) -> Iterator[_PlannedImage]:
    """List the images to simulate, named as Kermany's are.

    Every patient has a number of their own, in no order of split. The numbers lie above those of
    Kermany's test folder, so that a name of a phantom is never taken for one of its patients.
    """
    rng = default_rng([settings.seed, 1])
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
                framing = "pneumonia"
                stem = f"person{numbers[order]}_{kind}_{images_of_kind}"
                if kind == "normal":
                    class_folder = "NORMAL"
                    framing = "test normal" if split == "test" else "normal"
                    stem = f"{series}-{numbers[order]:04d}-{image:04d}"
                yield _PlannedImage(
                    f"{split}/{class_folder}/{stem}.jpeg",
                    f"masks/{split}/{stem}.png",
                    kind,
                    framing,
                    (settings.seed, k, order, image),
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
                stamp = folder / _STAMP
                if folder.exists() and not stamp.exists() and any(folder.iterdir()):
                    fix = "name a new or an empty folder"
                    raise InvalidDataError(f"{folder} holds other files. Fix: {fix}.")
                with atomic_folder(folder) as fresh:
                    _write_images(fresh, settings)
                    (fresh / _STAMP).write_text(_stamp(settings))
    return folder


def _stamp(settings: PhantomSettings) -> str:
    """Describe settings, as they are written into the folder."""
    content = asdict(settings) | {"version": VERSION, "key": settings.key}
    return json.dumps(content, indent=1)


def _is_complete(folder: Path, settings: PhantomSettings) -> bool:
    """Whether the folder holds every image of these settings."""
    stamp = folder / _STAMP
    if not stamp.is_file() or stamp.read_text() != _stamp(settings):
        return False
    return len(list(folder.rglob("*.jpeg"))) == settings.images


def _write_images(folder: Path, settings: PhantomSettings) -> None:
    """Simulate and write all images of a phantom."""

    def render(planned: _PlannedImage) -> None:
        pixels, lesion = simulate(planned.kind, planned.seed[:-1], planned.seed, settings.size)
        rows = slice(0, settings.size)
        if settings.framing_shift:
            rows = _rows_kept(planned, settings.size)
        Image.fromarray(pixels[rows]).save(folder / planned.image, quality=92)
        if planned.kind != "normal":
            Image.fromarray(lesion[rows]).save(folder / planned.mask)

    plan = list(_plan(settings))
    for planned in plan:
        for name in (planned.image, planned.mask):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(_WORKERS) as pool:
        list(pool.map(render, plan))


def _rows_kept(planned: _PlannedImage, size: int) -> slice:
    """Crop top and bottom to an aspect ratio drawn for the class and split, as in `ASPECTS`."""
    rng = default_rng([*planned.seed, 1])
    aspect = rng.normal(ASPECTS[planned.framing], 0.07)
    cropped = round(size * (1 - 1 / max(1.0, aspect)) / 2)
    return slice(cropped, size - cropped)
