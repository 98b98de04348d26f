"""The embedded data set: simulated chest radiographs of children with a known lesion mask.

The files have the layout and the names of the Kermany data, so that the same code reads both, and their shift of
framing: training normals show the whole film, pneumonias are cut to the chest, the test's normals lie between. A score
on them shows that the code works and says nothing about real radiographs.

Underneath is a parametric thorax with its lesion, projected to centimetres of water along each ray: every organ adds
the length of the ray inside it, in closed form. Its frame is the child's, in centimetres: x runs to the image's right
(the child's left), y down, from the midline at the level of the first rib.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from xraylib.errors import InvalidDataError
from xraylib.storage import atomic_folder, storage_errors

# Part of every key: raise it whenever the same settings would give other bytes.
VERSION = 4

_MU = 0.2  # attenuation of water per cm at the mean energy of a child's film
_WORKERS = 2

# How one film differs from the next: `zoom` and `scatter` factors, `angle` in radians, `dx`, `dy`, `turn` (the shift of
# what lies in front when the child is turned), `haze` (water over the lung bases) and `blur` in cm, `photons` a power
# of ten a pixel, `dark` and `bright` grey levels of 0 to 1, `gamma` a logarithm.
_FILM = {
    "zoom": (0.93, 1.08), "angle": (-0.08, 0.08), "dx": (-0.9, 0.9), "dy": (-0.9, 0.9), "turn": (-0.9, 0.9),
    "haze": (-1.2, 1.4), "scatter": (0.1, 0.35), "photons": (3.1, 4.0), "blur": (0.02, 0.075),
    "dark": (0.12, 0.28), "bright": (0.84, 0.98), "gamma": (-0.25, 0.25),
}  # fmt: skip

# Strokes of the side markers, in cm.
_LETTERS: dict[str, list[tuple[float, float, float, float]]] = {
    "": [],
    "L": [(-0.4, -0.5, -0.4, 0.5), (-0.4, 0.5, 0.4, 0.5)],
    "R": [(-0.4, 0.5, -0.4, -0.5), (-0.4, -0.5, 0.3, -0.5), (0.3, -0.5, 0.3, 0.0), (0.3, 0.0, -0.4, 0.0),
          (-0.1, 0.0, 0.4, 0.5)],
}  # fmt: skip


@dataclass(frozen=True)
class PhantomSettings:
    """What is simulated: 20 or more `images` over all splits, squares of `size` (28 or more) pixels.

    `framing_shift` cuts the films at top and bottom as Kermany's are (`ASPECTS`); without it none is.
    """

    images: int = 600
    size: int = 224
    seed: int = 0
    framing_shift: bool = True

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits that name these settings and the simulator's version."""
        text = json.dumps(asdict(self) | {"version": VERSION}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


_KINDS = ("normal", "bacteria", "virus")

# Mean aspect ratio (width by height) of a class in a split, where a whole film has 1: Kermany's medians divided by
# 1.21, that of its training normals. The standard deviation is 0.07, and none is below 1.
ASPECTS = {"normal": 1.02, "test normal": 1.12, "pneumonia": 1.25}

Floats = NDArray[np.floating[Any]]  # float32 throughout
Strokes = NDArray[np.float64]  # rows of x0, y0, x1, y1, width, thickness in cm
Mask = NDArray[np.uint8]
Seed = int | Sequence[int]

_CENTRE = 7.2j  # what stands in the middle of a well centred film, as x + iy
_VIEW_CM = 20.5
_BONE = 2.8  # cm of water that attenuate like what a cm of a child's bone adds to soft tissue

# What differs between children: lengths and shifts in cm, factors, `heart_tilt` in radians. Thymus, sail sign and
# stomach bubble are absent at or below 0; the arms are down above -0.4.
_CHILD = {
    "scale": (0.92, 1.06), "width": (0.94, 1.06), "depth": (5.6, 6.9), "fat": (0.7, 1.7),
    "breath": (-1.5, 0.6), "heart": (0.9, 1.14), "heart_tilt": (0.45, 0.85), "mediastinum": (1.35, 2.0),
    "thymus": (-1.2, 1.0), "sail": (-2.2, 1.0), "rib_gap": (1.22, 1.42), "rib_tilt": (1.7, 3.2),
    "bone": (0.75, 1.2), "trachea": (-0.25, 0.15), "vessels": (0.8, 2.2), "stomach": (-0.8, 1.6),
    "arms": (-1.0, 1.0), "scapula": (6.6, 8.2), "chin": (-7.5, -4.2), "air": (0.70, 0.79),
}  # fmt: skip

# Lobes on a front view: centre, half axes, level of the bounding fissure and the side of it that stays clear.
_LOBES = (
    (-3.7, 3.8, 2.2, 2.2, 6.2, -1), (-3.4, 8.6, 1.9, 1.6, 6.9, 1), (-4.3, 10.6, 2.3, 2.2, 0.0, 0),
    (3.9, 4.0, 2.1, 2.4, 0.0, 0), (4.6, 8.6, 1.8, 1.8, 0.0, 0), (4.2, 10.9, 2.2, 2.0, 0.0, 0),
)  # fmt: skip


def _draw(rng: np.random.Generator, ranges: dict[str, tuple[float, float]]) -> SimpleNamespace:
    return SimpleNamespace(**{name: float(rng.uniform(*ends)) for name, ends in ranges.items()})


class _View:
    """The film's pixel grid in the child's frame, and the way back."""

    def __init__(self, size: int, cm: float, angle: float, centre: complex) -> None:
        self.size, self.cm, self.centre = size, cm, centre
        self.direction = complex(math.cos(angle), math.sin(angle))
        axis = (np.arange(size, dtype=np.float32) + (0.5 - size / 2)) * cm
        cos, sin = self.direction.real, self.direction.imag
        self.x: Floats = axis[None, :] * cos - axis[:, None] * sin + centre.real
        self.y: Floats = axis[None, :] * sin + axis[:, None] * cos + centre.imag

    def strokes(self, lines: Strokes) -> Floats:
        """Draw strokes, antialiased, as thickness in cm; where they cross, the last one counts."""
        canvas = Image.new("F", (2 * self.size, 2 * self.size))
        pen = ImageDraw.Draw(canvas)
        ends = lines[:, 0:4:2] + 1j * lines[:, 1:4:2] - self.centre
        ends = ends / self.direction * (2 / self.cm) + (1 + 1j) * self.size
        widths = np.maximum(1, np.rint(2 * lines[:, 4] / self.cm)).astype(int)
        for (a, b), width, value in zip(
            ends.tolist(), widths.tolist(), lines[:, 5].tolist(), strict=True
        ):
            pen.line((a.real, a.imag, b.real, b.imag), fill=value, width=width)
        return np.asarray(canvas.reduce(2), dtype=np.float32)

    def distance(self, a: complex, b: complex) -> Floats:
        """Distance in cm to the segment from `a` to `b`, points as x + iy."""
        along, px, py = b - a, self.x - a.real, self.y - a.imag
        part = np.clip((px * along.real + py * along.imag) / abs(along) ** 2, 0, 1)
        px, py = px - part * along.real, py - part * along.imag
        return np.sqrt(px * px + py * py)

    def ellipsoid(
        self, x: float, y: float, a: float, b: float, c: float, tilt: float = 0.0
    ) -> Floats:
        """Path through an ellipsoid with half axes `a`, `b` and, along the ray, `c`; `tilt` in radians."""
        dx, dy = self.x - x, self.y - y
        if tilt:
            cos, sin = math.cos(tilt), math.sin(tilt)
            dx, dy = dx * cos + dy * sin, dy * cos - dx * sin
        return _chord(dx * dx * (1 / a**2) + dy * dy * (1 / b**2), c)


def _chord(q: Floats, radius: float) -> Floats:
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
    trunk = np.maximum(
        _chord(0.5 * q * (q + 1), 1.0) * depth, view.ellipsoid(0, child.chin, 4.2, 3.6, 4.5)
    )
    for side in (-1, 1):
        trunk = np.maximum(trunk, view.ellipsoid(side * 7.4, 0.9, 3.0, 2.3, 2.8))
        hand = (
            complex(side * 12.6, 11) if child.arms + 0.3 * side > -0.4 else complex(side * 11.5, -7)
        )
        arm = view.distance(complex(side * 9.2, 0.8), hand)
        trunk = np.maximum(trunk, _chord(np.square(arm / (1.6 + 0.3 * child.fat)), 1.9))
        trunk += child.bone * _shaft(arm, 0.55)
    return trunk


def _cavity(view: _View, child: SimpleNamespace) -> tuple[Floats, Floats]:
    """Path through the pleural cavity above the diaphragm, and the half width of the rib cage, in cm."""
    level = np.clip(view.y / 12, -0.2, 1.12)
    top = np.abs(np.minimum(level - 1, 0)) ** 3
    centre, half = (2.9 + 1.15 * level) * child.width, (2.95 + 1.3 * level) * child.width
    q = np.square((np.abs(view.x) - centre) / half) + top
    cage = centre + half * np.sqrt(np.maximum(1 - top, 0.05))
    dome = 11.9 + child.breath + 0.45 * _step(view.x, 0.8)
    reach = np.abs(view.x) / child.width - 3.4 - 0.05 * view.x
    below = view.y - dome - 0.11 * reach * reach * (1 + 0.55 * (reach > 0).astype(np.float32))
    # The recess behind the dome holds a little lung and fades out lower down.
    open_ = 0.88 * _step(-below, 0.09) + 0.12 * _step(0.7 - below, 0.3)
    return _chord(q * q, 0.84 * child.depth) * open_, cage


def _mediastinum(view: _View, child: SimpleNamespace, turn: float) -> Floats:
    """Heart, great vessels, thymus and hila: what takes the place of lung around the midline."""
    low, k = 0.75 * child.breath, child.heart
    parts = [
        (1.25 + turn, 9.3 + low, 4.5 * k, 3.3 * k, 3.8, child.heart_tilt),
        (-0.7 + turn, 9.0 + low, 2.2 * k, 3.2 * k, 3.4), (turn / 2, 5.5, child.mediastinum, 9.5, 3.8),
        (1.0 + turn, 4.4, 1.2, 1.5, 2.2), (-2.1 + turn / 2, 6.3 + low / 2, 0.9, 1.5, 1.0),
        (2.1 + turn / 2, 6.3 + low / 2, 0.9, 1.5, 1.0),
    ]  # fmt: skip
    if child.thymus > 0:
        parts.append((turn, 3.6, 2.1 + 1.3 * child.thymus, 3.0, 2.3))
    path = np.maximum.reduce([view.ellipsoid(*part) for part in parts])
    if child.sail > 0:
        x = view.x - turn
        sail = _step(np.minimum(view.y - 1.2, 5.6 - view.y + 0.12 * x), 0.15)
        sail *= _step(x + (2.6 + 1.6 * child.sail), 0.2) * _step(view.y - 1.0 + 1.1 * x, 0.25)
        path = np.maximum(path, 2.6 * sail * (x < 1))
    return path


def _skeleton(view: _View, child: SimpleNamespace, cage: Floats, turn: float) -> Floats:
    """Ribs, spine, clavicles and scapulae as cm of bone."""
    x, y = view.x, view.y
    # Ribs are tilted loops round the cage: the back half arches up, the front half sags into cartilage.
    across = np.minimum(np.square(x / cage), 0.985)
    arch = np.sqrt(1 - across)
    stretch = np.sqrt(1 + across / (1 - across) * (child.rib_tilt / 8) ** 2)
    tilt = child.rib_tilt * (0.75 + 0.035 * y) * arch
    behind = (y + tilt) / child.rib_gap
    before = (y - tilt) / child.rib_gap - 0.3
    back = _shaft((behind - np.clip(np.rint(behind), 1, 10)) * child.rib_gap / stretch, 0.27)
    front = _shaft((before - np.clip(np.rint(before), 1, 6)) * child.rib_gap / stretch, 0.29)
    back *= 0.68 * _step(np.abs(x) - 0.9, 0.1)
    front *= 0.5 * _step(np.abs(x - turn) - cage * 0.52, 0.12)
    bone = (back + front) * (np.abs(x) < cage)
    wave = np.cos(y * (2 * math.pi / 1.28))
    column = np.square(x / (0.95 - 0.07 * wave))
    bone += (0.72 + 0.28 * np.tanh(3 * wave + 1.6)) * _chord(column * column, 0.24)
    for side in (-1, 1):
        bone += 0.6 * _chord(np.square((x - 0.52 * side) / 0.2) + (1 - wave) / 0.72, 0.2)
        run = side * (x - turn) - 0.9
        collar = _shaft(y - 0.75 + 0.2 * run + 0.28 * np.sin(0.95 * run), 0.32)
        bone += 1.3 * collar * _step(run, 0.08) * _step(6.3 - run, 0.1)
        bone += 0.22 * np.minimum(
            view.ellipsoid(side * child.scapula, 3.4, 1.7, 3.4, 0.5, side * 0.2), 0.7
        )
    return bone * child.bone


def _gas(view: _View, child: SimpleNamespace, turn: float) -> Floats:
    """Air in trachea, main bronchi and stomach."""
    middle = child.trachea + 0.5 * turn
    gas = 1.4 * _chord(np.square((view.x - middle) / 0.45), 0.42) * _step(4.6 - view.y, 0.15)
    for side in (-1, 1):
        bronchus = view.distance(complex(middle, 4.5), complex(0.5 * turn + side * 1.9, 6.0))
        gas += 0.8 * _chord(np.square(bronchus / 0.33), 0.33)
    if child.stomach > 0:
        gas += view.ellipsoid(
            4.2, 14.3 + child.breath, 1.4 + child.stomach, 1.1 + 0.4 * child.stomach, 1.6
        )
    return gas


def _strokes_between(start: Any, end: Any, width: Any, thickness: Any) -> Strokes:
    return np.column_stack(
        np.broadcast_arrays(start.real, start.imag, end.real, end.imag, width, thickness)
    )


def _tree(rng: np.random.Generator, roots: int, generations: int, width: float) -> Strokes:
    """Vessels or bronchi that branch from both hila; the finest first, so that wide ones cover them."""
    side = np.repeat([-1.0, 1.0], roots)
    start = side * rng.uniform(1.3, 2.2, 2 * roots) + 1j * rng.uniform(5.6, 7.4, 2 * roots)
    angle = np.tile(np.linspace(-1.35, 1.35, roots), 2) + rng.normal(0, 0.18, 2 * roots)
    found = []
    for generation in range(generations):
        n = len(start)
        step = rng.uniform(0.8, 1.6, n) * 0.9**generation
        end = start + step * (side * np.cos(angle) + 1j * np.sin(angle))
        calibre = width * 0.72**generation * rng.uniform(0.8, 1.2, n)
        found.append(_strokes_between(start, end, calibre, calibre))
        side, start = np.repeat(side, 2), np.repeat(end, 2)
        angle = np.repeat(angle, 2) + np.tile([-1.0, 1.0], n) * rng.uniform(0.1, 0.55, 2 * n)
    return np.concatenate(found[::-1])


def _lumps(view: _View, rng: np.random.Generator) -> Floats:
    """Smooth irregularity around 0 with a standard deviation near 1, fixed to the child."""
    total = np.zeros_like(view.x)
    for wave, turn, phase in rng.uniform((1.6, 0, 0), (5, 6.28, 6.28), (5, 3)).tolist():
        total += np.cos((view.x * math.cos(turn) + view.y * math.sin(turn)) * (6.28 / wave) + phase)
    return 0.63 * total


def _strength(rng: np.random.Generator, faint: float, dense: float) -> float:
    """Most lesions plain to see, a tail of them barely visible."""
    return dense * (faint / dense) ** (rng.random() ** 4)


def _consolidation(view: _View, rng: np.random.Generator, airways: Floats) -> Floats:
    """Fraction of the air that a lobar consolidation has replaced, 0 to 1."""
    x, y, a, b, fissure, side = _LOBES[rng.integers(len(_LOBES))]
    x, y, growth = x + rng.normal(0, 0.5), y + rng.normal(0, 0.6), rng.uniform(1.0, 1.8)
    a, b = a * growth, b * growth
    strength, softness = _strength(rng, 0.15, 1.3), rng.uniform(0.18, 0.5)
    q = np.square((view.x - x) / a) + np.square((view.y - y) / b)
    filled = strength * _step(1 - q + 0.3 * _lumps(view, rng), softness)
    middle = x + rng.normal(0, 0.7 * a, 90) + 1j * (y + rng.normal(0, 0.7 * b, 90))
    half = rng.uniform(0.05, 0.3, 90) * np.exp(1j * rng.uniform(0, math.pi, 90))
    wide, dense = rng.uniform(0.35, 0.85, 90), rng.uniform(0.3, 1.0, 90)
    patches = _strokes_between(middle - half, middle + half, wide, dense)
    filled *= 0.62 + 0.52 * gaussian_filter(view.strokes(patches), 0.14 / view.cm)
    if side and rng.random() < 0.6:
        filled *= _step(side * (view.y - fissure - 0.06 * view.x), 0.1)
    if rng.random() < 0.5:
        filled *= 1 - 0.6 * np.minimum(4 * airways, 1)
    return np.clip(filled, 0, 1)


def _interstitial(view: _View, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Thick bronchi, rings and a reticular net in both lungs (cm), and a perihilar haze (fraction of air)."""
    strength = _strength(rng, 0.55, 3.2)
    bronchi = _tree(rng, 6, 4, 0.36)
    bronchi[:, 5] = rng.uniform(0.25, 0.75, len(bronchi))
    middle = rng.choice([-1, 1], 220) * np.abs(rng.normal(3.0, 1.5, 220)) + 1j * rng.normal(
        7.6, 2.6, 220
    )
    half = rng.uniform(0.15, 0.5, 220) * np.exp(1j * rng.uniform(0, math.pi, 220))
    net = _strokes_between(middle - half, middle + half, 0.12, rng.uniform(0.15, 0.5, 220))
    circle = middle[:12, None] + rng.uniform(0.18, 0.32, (12, 1)) * np.exp(
        2j * np.pi * np.arange(9) / 8
    )
    rings = _strokes_between(circle[:, :-1].ravel(), circle[:, 1:].ravel(), 0.12, 0.6)
    streaks = gaussian_filter(view.strokes(np.concatenate([net, bronchi, rings])), 0.06 / view.cm)
    q = np.square((np.abs(view.x) - 2.6) / 2.6) + np.square((view.y - 7.5) / 3.6)
    haze = 0.13 * strength * np.exp(-q) * (1 + 0.35 * _lumps(view, rng))
    return strength * streaks, np.maximum(haze, 0)


def _devices(rng: np.random.Generator, marker: str) -> Strokes:
    """Side marker, stomach tube and monitoring leads, in cm of the film's own frame."""
    x, y = (1 if marker == "L" else -1) * rng.uniform(7.0, 8.8), rng.uniform(-1.8, 0.5)
    p, tube, leads = rng.uniform(-1, 1, (3, 5)).tolist(), rng.random() < 0.12, rng.random() < 0.18
    letter = [(x + a, y + b, x + c, y + d, 0.24, 12.0) for a, b, c, d in _LETTERS[marker]]
    parts = [np.array(letter).reshape(-1, 6)]
    t = np.linspace(0, 1, 25)
    if tube:
        curve = (
            0.25 * p[0][0]
            + 0.3 * np.sin(3 * t + p[0][1])
            + 1j * ((9 if p[0][2] < 0 else 18) * t - 5)
        )
        parts.append(_strokes_between(curve[:-1], curve[1:], 0.16, 1.2))
    for a, b, c, d, e in p[1:] if leads else []:
        curve = 6 * a + 6 * b * t + 2 * c * np.sin(3 * t) + 1j * (2 + 4 * d + (14 + 3 * e) * t)
        parts.append(_strokes_between(curve[:-1], curve[1:], 0.14, 2.5))
    return np.concatenate(parts)


def _expose(water: Floats, film: SimpleNamespace, cm: float, rng: np.random.Generator) -> Mask:
    """From centimetres of water to grey: attenuation, scatter, photon noise, film curve."""
    height, width = water.shape
    beam = np.exp(-_MU * water)
    coarse = np.asarray(Image.fromarray(beam).reduce(4))
    fog = Image.fromarray(gaussian_filter(coarse, 0.4 / cm, mode="nearest")).resize((width, height))
    beam = gaussian_filter(beam + film.scatter * np.asarray(fog), film.blur / cm)
    photons = 10.0**film.photons / float(beam.mean())
    # With hundreds of photons a pixel the normal law stands for Poisson's.
    beam += np.sqrt(beam / photons) * rng.standard_normal(beam.shape, dtype=np.float32)
    density = -np.log(np.maximum(beam, 1e-4))
    low, high = np.percentile(density[water > 2][::16], (8, 93)).tolist()
    grey = film.dark + (film.bright - film.dark) * (density - low) / (high - low)
    return (255 * np.clip(grey, 0, 1) ** math.exp(film.gamma)).astype(np.uint8)


def simulate(
    kind: str, patient_seed: Seed, image_seed: Seed, size: int = 224, marker: str | None = None
) -> tuple[Mask, Mask]:
    """Simulate one AP chest radiograph of a child: image and lesion mask (0 or 255), both uint8 (size, size).

    `kind` is normal, bacteria (focal lobar consolidation) or virus (diffuse bilateral interstitial pattern).
    `patient_seed` fixes anatomy and lesion, `image_seed` exposure, position and devices, so that one child can have
    several films. `marker` is "L", "R", "" for none, or None to leave it to chance.
    """
    rng = np.random.default_rng(image_seed)
    film = _draw(rng, _FILM)
    by_chance = "LR"[rng.integers(2)] if rng.random() < 0.6 else ""
    anatomy, disease = (
        np.random.default_rng(s) for s in np.random.SeedSequence(patient_seed).spawn(2)
    )
    child, turn = _draw(anatomy, _CHILD), film.turn
    cm = _VIEW_CM * child.scale / film.zoom / size
    view = _View(size, cm, film.angle, complex(film.dx, film.dy) + _CENTRE)
    space, cage = _cavity(view, child)
    lung = np.maximum(space - _mediastinum(view, child, turn), 0)
    inside, air = np.minimum(0.2 * lung, 1), child.air * lung
    airways = _tree(anatomy, 4, 4, 0.2)
    vessels = view.strokes(_tree(anatomy, 5, 5, 0.28 + 0.06 * child.vessels))
    lesion, mask = np.zeros_like(air), np.zeros((size, size), dtype=np.uint8)
    if kind == "bacteria":
        lesion = air * _consolidation(view, disease, view.strokes(airways))
    elif kind == "virus":
        streaks, haze = _interstitial(view, disease)
        lesion = inside * streaks + air * haze
    if kind != "normal":
        seen = gaussian_filter(lesion, 0.25 / cm) * (lung > 0.3)
        mask[seen > 0.3 * seen.max()] = 255
    water = _body(view, child) - air + lesion - _gas(view, child, turn)
    water += _BONE * _skeleton(view, child, cage, turn) + child.vessels * vessels * inside
    water += max(film.haze, 0.0) * inside * np.exp(-np.square((view.y - 12.5) / 3.2))
    water = np.maximum(water * (1 + 0.008 * turn * view.x), 0)
    # Attenuation is in cm of water so far; `cm` is the side of a pixel. Devices lie in the film's own frame.
    water += _View(size, cm, 0.0, _CENTRE).strokes(
        _devices(rng, by_chance if marker is None else marker)
    )
    return _expose(water, film, cm, rng), mask


def _plan(settings: PhantomSettings) -> Iterator[tuple[str, str, str, tuple[int, ...], int]]:
    """Image, mask, kind, patient's seed and number of the film, in about the proportions of Kermany's data.

    Names are as there. Every patient has a number of their own, in no order of split. The numbers lie above those of
    Kermany's test folder, so that a name of a phantom is never taken for one of its patients.
    """
    rng, total = np.random.default_rng([settings.seed, 1]), settings.images
    val, test = max(2, min(16, 2 * round(total / 75))), round(total * 154 / 600)
    counts = {}
    for split, images, normal in (
        ("train", total - val - test, 0.26),
        ("val", val, 0.5),
        ("test", test, 0.38),
    ):
        counts[split, "normal"] = round(images * normal)
        pneumonias = images - counts[split, "normal"]
        counts[split, "virus"] = round(0.35 * pneumonias)
        counts[split, "bacteria"] = pneumonias - counts[split, "virus"]
    first_number = 2001
    for k, kind in enumerate(_KINDS):
        patients = []
        for split in ("train", "val", "test"):
            left = counts[split, kind]
            while left > 0:
                films = min(left, int(rng.choice(5, p=(0.5, 0.24, 0.13, 0.08, 0.05))) + 1)
                left -= films
                patients.append((split, films))
        persons, number = rng.permutation(len(patients)) + 1, 0
        for order, ((split, films), person) in enumerate(zip(patients, persons, strict=True)):
            series = "NORMAL2-IM" if rng.random() < 0.55 else "IM"
            for film in range(1, films + 1):
                number += 1
                stem = f"person{first_number + person}_{kind}_{number}"
                if kind == "normal":
                    stem = f"{series}-{first_number + person:04d}-{film:04d}"
                image = f"{split}/{'NORMAL' if kind == 'normal' else 'PNEUMONIA'}/{stem}.jpeg"
                yield image, f"masks/{split}/{stem}.png", kind, (settings.seed, k, order), film
        first_number += len(patients)


def write(folder: Path | str, settings: PhantomSettings) -> Path:
    """Write a phantom as image files in the layout and naming of the Kermany data, unless it is there.

    The masks of its pneumonias are `masks/<split>/<image stem>.png`, the settings `phantom.json`; other settings are
    replaced. The same settings give the same bytes with the same versions of the libraries.
    """
    folder = Path(folder)
    if settings.images < 20 or settings.size < 28:
        raise InvalidDataError(
            f"{settings} is too small. Fix: ask for 20 or more images of 28 or more pixels."
        )
    note = json.dumps(asdict(settings) | {"version": VERSION, "key": settings.key}, indent=1)
    stamp = folder / "phantom.json"

    def complete() -> bool:
        same = stamp.is_file() and stamp.read_text() == note
        return same and sum(1 for _ in folder.rglob("*.jpeg")) == settings.images

    if complete():
        return folder
    with storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if not complete():
                if folder.exists() and not stamp.exists() and any(folder.iterdir()):
                    raise InvalidDataError(
                        f"{folder} holds other files. Fix: name a new or an empty folder."
                    )
                with atomic_folder(folder) as fresh:
                    _write_films(fresh, settings)
                    (fresh / stamp.name).write_text(note)
    return folder


def _write_films(folder: Path, settings: PhantomSettings) -> None:
    def render(film: tuple[str, str, str, tuple[int, ...], int]) -> None:
        image, mask, kind, patient, number = film
        pixels, lesion = simulate(kind, patient, (*patient, number), settings.size)
        where = (
            "pneumonia"
            if kind != "normal"
            else "test normal"
            if image.startswith("test")
            else "normal"
        )
        aspect = max(1.0, np.random.default_rng([*patient, number, 1]).normal(ASPECTS[where], 0.07))
        cut = round(settings.size * (1 - 1 / aspect) / 2) if settings.framing_shift else 0
        kept = slice(cut, settings.size - cut)
        Image.fromarray(pixels[kept]).save(folder / image, quality=92)
        if kind != "normal":
            Image.fromarray(lesion[kept]).save(folder / mask)

    films = list(_plan(settings))
    for parent in {(folder / name).parent for film in films for name in film[:2]}:
        parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(_WORKERS) as pool:
        list(pool.map(render, films))
