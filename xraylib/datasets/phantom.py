"""The embedded data set: simulated chest radiographs of children with a known lesion mask.

The files stand in the layout and carry the names of the Kermany data, so that they walk the same road as
real ones. A score on them shows that the road works and says nothing about real radiographs.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from xraylib.datasets.thorax import CENTRE, KINDS, Floats, Seed, Strokes, View, draw, project, strokes_between
from xraylib.storage import DataInvalid, NotFound, atomic_folder, storage_errors

# Part of every key: raise it whenever the same settings would give other bytes.
VERSION = 2

_SPLITS = ("train", "val", "test")
_MU = 0.2  # attenuation of water per cm at the mean energy of a child's film
_QUALITY = 92
_WORKERS = 2

# How one film differs from the next: pose as `thorax.project` takes it; `scatter` a fraction, `photons` a
# power of ten a pixel, `blur` in cm, `dark` and `bright` grey levels of 0 to 1, `gamma` a logarithm.
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
    """What is simulated.

    Parameters
    ----------
    images
        Number of images over all splits, 20 or more.
    size
        Side of the square images in pixels, 28 or more.
    seed
        Seed of everything.
    marker_follows_label
        Plant a shortcut: an "R" marker on every pneumonia and none on any normal film. Otherwise side markers
        are drawn by chance, alike in both classes.
    """

    images: int = 600
    size: int = 224
    seed: int = 0
    marker_follows_label: bool = False

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits that name these settings and the simulator's version."""
        text = json.dumps(asdict(self) | {"version": VERSION}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def _devices(rng: np.random.Generator, marker: str) -> Strokes:
    """Side marker, stomach tube and monitoring leads, in cm of the film's own frame."""
    x, y = (1 if marker == "L" else -1) * rng.uniform(7.0, 8.8), rng.uniform(-1.8, 0.5)
    p, tube, leads = rng.uniform(-1, 1, (3, 5)).tolist(), rng.random() < 0.12, rng.random() < 0.18
    letter = [(x + a, y + b, x + c, y + d, 0.24, 12.0) for a, b, c, d in _LETTERS[marker]]
    parts = [np.array(letter).reshape(-1, 6)]
    t = np.linspace(0, 1, 25)
    if tube:
        curve = 0.25 * p[0][0] + 0.3 * np.sin(3 * t + p[0][1]) + 1j * ((9 if p[0][2] < 0 else 18) * t - 5)
        parts.append(strokes_between(curve[:-1], curve[1:], 0.16, 1.2))
    for a, b, c, d, e in p[1:] if leads else []:
        curve = 6 * a + 6 * b * t + 2 * c * np.sin(3 * t) + 1j * (2 + 4 * d + (14 + 3 * e) * t)
        parts.append(strokes_between(curve[:-1], curve[1:], 0.14, 2.5))
    return np.concatenate(parts)


def _expose(water: Floats, film: SimpleNamespace, cm: float, rng: np.random.Generator) -> NDArray[np.uint8]:
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
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Simulate one AP chest radiograph of a child.

    Parameters
    ----------
    kind
        `"normal"`, `"bacteria"` (focal lobar consolidation) or `"virus"` (diffuse bilateral interstitial
        pattern).
    patient_seed, image_seed
        Seeds as `numpy.random.SeedSequence` takes them. The first fixes anatomy and lesion, the second
        exposure, position and devices: one `patient_seed` with several `image_seed` gives several films of
        one child.
    size
        Side in pixels.
    marker
        The side marker: `"L"`, `"R"`, `""` for none, or None to leave it to chance whatever the kind.

    Returns
    -------
    image, mask
        Both uint8 of shape (size, size): grey values 0-255, and 255 where the lesion is, 0 elsewhere (all 0
        for a normal child).

    Raises
    ------
    NotFound
        `kind` or `marker` is none of those.

    Examples
    --------
    >>> image, mask = simulate("bacteria", patient_seed=1, image_seed=2, size=64)
    >>> image.shape, bool(mask.any())
    ((64, 64), True)
    """
    if kind not in KINDS:
        raise NotFound(f"no kind of radiograph is named {kind!r}. Fix: use one of {', '.join(KINDS)}.")
    if marker not in (None, *_LETTERS):
        raise NotFound(f"no side marker is named {marker!r}. Fix: use L, R, an empty text or None.")
    rng = np.random.default_rng(image_seed)
    film = draw(rng, _FILM)
    by_chance = "LR"[rng.integers(2)] if rng.random() < 0.6 else ""
    water, mask, cm = project(kind, patient_seed, film, size)
    water += View(size, cm, 0.0, CENTRE).strokes(_devices(rng, by_chance if marker is None else marker))
    return _expose(water, film, cm, rng), mask


@dataclass(frozen=True)
class _Planned:
    image: str
    mask: str
    kind: str
    patient: tuple[int, ...]
    number: int


def _patients(rng: np.random.Generator, images: int) -> Iterator[int]:
    """Cut `images` into patients with one to five films each."""
    while images > 0:
        films = min(images, int(rng.choice(5, p=(0.5, 0.24, 0.13, 0.08, 0.05))) + 1)
        images -= films
        yield films


def _counts(images: int) -> dict[tuple[str, str], int]:
    """Images of each split and kind, in about the proportions of the Kermany data."""
    val, test = max(2, min(16, 2 * round(images / 75))), round(images * 154 / 600)
    counts = {}
    for split, total, normal in (
        ("train", images - val - test, 0.26),
        ("val", val, 0.5),
        ("test", test, 0.38),
    ):
        counts[split, "normal"] = round(total * normal)
        sick = total - counts[split, "normal"]
        counts[split, "virus"] = round(0.35 * sick)
        counts[split, "bacteria"] = sick - counts[split, "virus"]
    return counts


def _plan(settings: PhantomSettings) -> Iterator[_Planned]:
    """Name every image as the Kermany data does.

    Bacterial and viral patients are numbered apart, in no order of split: so a bare person number of the test
    folder may stand in train as well, for another child.
    """
    rng = np.random.default_rng([settings.seed, 1])
    counts = _counts(settings.images)
    for k, kind in enumerate(KINDS):
        groups = [(split, films) for split in _SPLITS for films in _patients(rng, counts[split, kind])]
        persons, number = rng.permutation(len(groups)) + 1, 0
        for order, ((split, films), person) in enumerate(zip(groups, persons, strict=True)):
            series = "NORMAL2-IM" if rng.random() < 0.55 else "IM"
            for film in range(1, films + 1):
                number += 1
                stem = f"person{person}_{kind}_{number}"
                if kind == "normal":
                    stem = f"{series}-{114 + person:04d}-{film:04d}"
                image = f"{split}/{'NORMAL' if kind == 'normal' else 'PNEUMONIA'}/{stem}.jpeg"
                yield _Planned(image, f"masks/{split}/{stem}.png", kind, (settings.seed, k, order), film)


def _render(planned: _Planned, folder: Path, settings: PhantomSettings) -> None:
    marker = None
    if settings.marker_follows_label:
        marker = "" if planned.kind == "normal" else "R"
    seeds = planned.patient, (*planned.patient, planned.number)
    image, mask = simulate(planned.kind, *seeds, settings.size, marker)
    Image.fromarray(image).save(folder / planned.image, quality=_QUALITY)
    if planned.kind != "normal":
        Image.fromarray(mask).save(folder / planned.mask)


def _complete(folder: Path, note: str, images: int) -> bool:
    stamp = folder / "phantom.json"
    return stamp.is_file() and stamp.read_text() == note and sum(1 for _ in folder.rglob("*.jpeg")) == images


def write(folder: Path | str, settings: PhantomSettings | None = None) -> Path:
    """Write a phantom data set as image files in the layout and naming of the Kermany data.

    Images are `<folder>/{train,val,test}/{NORMAL,PNEUMONIA}/*.jpeg`, the masks of the pneumonias
    `<folder>/masks/<split>/<image stem>.png`, the settings `<folder>/phantom.json`. A folder that holds these
    settings already is left as it is, one that holds other settings is replaced. The same settings give the
    same bytes with the same versions of the libraries.

    Raises
    ------
    DataInvalid
        Fewer than 20 images or a side under 28 pixels are asked for, or `folder` holds something else.
    Failed
        The folder cannot be written or the disk is full.
    """
    folder, settings = Path(folder), settings or PhantomSettings()
    if settings.images < 20 or settings.size < 28:
        raise DataInvalid(f"{settings} is too small. Fix: ask for 20 or more images of 28 or more pixels.")
    note = json.dumps(asdict(settings) | {"version": VERSION, "key": settings.key}, indent=1)
    if _complete(folder, note, settings.images):
        return folder
    with storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if not _complete(folder, note, settings.images):
                _write_all(folder, settings, note)
    return folder


def read_masks(paths: Iterable[Path | str], size: int) -> np.ndarray:
    """Read the lesion masks of phantom images, uint8 `(n, size, size)`, zeros for those without a lesion."""
    found = []
    for path in map(Path, paths):
        mask = path.parents[2] / "masks" / path.parents[1].name / f"{path.stem}.png"
        if mask.exists():
            with Image.open(mask, formats=("PNG",)) as image:
                found.append(np.asarray(image.resize((size, size), Image.Resampling.NEAREST)))
        else:
            found.append(np.zeros((size, size), np.uint8))
    return np.stack(found)


def _write_all(folder: Path, settings: PhantomSettings, note: str) -> None:
    if folder.exists() and not (folder / "phantom.json").exists() and any(folder.iterdir()):
        raise DataInvalid(f"{folder} holds other files. Fix: name a new or an empty folder.")
    films = list(_plan(settings))
    with atomic_folder(folder) as fresh:
        for parent in {(fresh / name).parent for film in films for name in (film.image, film.mask)}:
            parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(_WORKERS) as pool:
            for _ in pool.map(lambda film: _render(film, fresh, settings), films):
                pass
        (fresh / "phantom.json").write_text(note)
