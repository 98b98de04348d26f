"""The model that comes with the package, on LiteRT: neither TensorFlow, JAX nor Keras is loaded."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.special import expit, logit, softmax

from xraylib.datasets import images, lung_finder, lungs, regions
from xraylib.errors import InvalidDataError, NotFoundError
from xraylib.paths import SHIPPED
from xraylib.storage import read_verified, write_verified

MODEL_FILE = "model.tflite"
SETTINGS_FILE = "run.json"

NORMAL = "looks normal"
UNDECIDED = "undecided"
PNEUMONIA = "looks like pneumonia"
ANSWERS = (NORMAL, UNDECIDED, PNEUMONIA)

OK = "ok"
# What the gate recognises, and what to say of it. The order is that of the network's output.
GATE = {
    OK: "no frontal chest radiograph as those that the model knows. Fix: give another image",
    "upside down": "upside down. Fix: turn it by 180°",
    "turned left": "turned to the left. Fix: turn it by 90° to the right",
    "turned right": "turned to the right. Fix: turn it by 90° to the left",
    "tilted": "tilted. Fix: turn it upright",
    "inverted": "inverted, bones are dark. Fix: invert it",
    "cut": "a part of the chest is missing. Fix: give the whole image",
    "other": "no frontal chest radiograph. Fix: give one",
}

# Lungs of which the box or the area is smaller, as a share of the image, are no lungs. In 5,840
# radiographs of children the smallest box is 0.47 high and 0.53 wide, the smallest area is 0.17.
_SMALLEST_SIDE = 0.3
_SMALLEST_AREA = 0.05


@dataclass(frozen=True)
class PackagedModel:
    """The packaged network with the limits that validation set.

    Attributes
    ----------
    name : str
        Recipe, data set and seed.
    sha256 : str
        Of the file `model.tflite`.
    limits : dict
        The entry `answers` of `run.json`.
    network : callable
        Takes `views`, float32 `(2, side, side, 1)`, and `lungs`, float32 `(6,)`; see
        `export.to_litert`.
    prevalence : float
        The share of pneumonias, in (0, 1), where the images come from. By default that of the
        images on which the probability was calibrated.
    strict_domain : bool
        Give no answer for images of another population than that of training.
    """

    name: str
    sha256: str
    limits: dict[str, Any]
    network: Callable[..., dict[str, np.ndarray]]
    prevalence: float
    strict_domain: bool = False

    # Height and width of the images that it takes, in pixels.
    size = regions.SOURCE_SIZE
    # It has limits instead.
    threshold = None

    def answer(self, pixels: np.ndarray) -> list[dict[str, Any]]:
        """Answer images one by one.

        Parameters
        ----------
        pixels : numpy.ndarray
            uint8 `(n, 224, 224, 1)`, bone bright.

        Returns
        -------
        list of dict
            One for each image:

            status : `ok` or `abstained`
            reason : the key of `GATE` for which there is no answer, else empty
            message : the same in words
            answer : one of `ANSWERS`
            probability : of pneumonia, calibrated, at `prevalence`
            log_odds : the same before the shift to `prevalence`; the limits lie on it
            is_outside : whether the image is of another population than that of training
            domain : how far beyond the limit of that it lies; at most 0 within
            gate : probability of each entry of `GATE`
            box : of the lungs, `(4,)`: top, bottom, left, right as shares of the image
            heat_map : float32 `(224, 224)` in [0, 1], of the whole image

            Where no lungs are found there are `status`, `reason`, `message` and an empty
            `heat_map` only.
        """
        found = lung_finder.find(pixels)
        rows = zip(pixels, found.boxes, found.area, found.certainty, strict=True)
        return [self._answer_image(*row) for row in rows]

    def answer_in_boxes(self, image: np.ndarray, boxes: np.ndarray) -> list[dict[str, Any]]:
        """Answer one image, uint8 `(224, 224, 1)`, as if its lungs lay in other boxes, `(n, 4)`.

        Returns what `answer` does, one dict for each box.
        """
        found = lung_finder.find(image[None])
        area = found.area[0]
        certainty = found.certainty[0]
        return [self._answer_image(image, box, area, certainty) for box in boxes]

    def _answer_image(
        self,
        image: np.ndarray,
        box: np.ndarray,
        area: float,
        certainty: float,
    ) -> dict[str, Any]:
        if not has_lungs(box, area):
            message = f"no lungs are found: {GATE['other']}"
            return {
                "status": "abstained",
                "reason": "other",
                "message": message,
                "heat_map": np.zeros((self.size, self.size), np.float32),
            }
        outputs = self.network(
            views=two_views(image[None], box[None], self.limits["input"])[0],
            lungs=np.array([area, certainty, *box], np.float32),
        )
        raw_log_odds = outputs["log_odds"].item()
        log_odds = self._calibrated(raw_log_odds)
        # The head's bias is shared out evenly, so that the map's mean is the image's log odds.
        cam = outputs["heat"][0]
        cam = cam - cam.mean() + raw_log_odds
        gate = dict(zip(GATE, softmax(outputs["gate"].ravel()), strict=True))
        domain = outputs["domain"].item() - self.limits["domain_limit"]
        reason = self._reason_to_refuse(gate)
        return {
            "status": "abstained" if reason else "ok",
            "reason": reason,
            "message": GATE[reason] if reason else "",
            "answer": self._decide(log_odds),
            "probability": float(expit(self._shifted(log_odds))),
            "log_odds": log_odds,
            "is_outside": domain > 0,
            "domain": domain,
            "gate": gate,
            "box": box,
            "heat_map": _in_whole(cam, box, self.size),
        }

    def _calibrated(self, log_odds: float) -> float:
        calibration = self.limits["calibration"]
        return log_odds * calibration["slope"] + calibration["intercept"]

    def _shifted(self, log_odds: float) -> float:
        """Move log odds from the prevalence of the calibration to that of the images."""
        return log_odds + logit(self.prevalence) - logit(self.limits["prevalence"])

    def _decide(self, log_odds: float) -> str:
        """Choose the answer: the limits lie on the evidence, and no answer contradicts P."""
        shifted = self._shifted(log_odds)
        if log_odds < self.limits["normal_up_to"] and shifted < 0:
            return NORMAL
        if log_odds > self.limits["pneumonia_from"] and shifted > 0:
            return PNEUMONIA
        return UNDECIDED

    def _reason_to_refuse(self, gate: dict[str, float]) -> str:
        """Name the entry of `GATE` for which the image gets no answer; empty where it gets one."""
        if gate[OK] >= self.limits["gate_limit"]:
            return ""
        return max(gate, key=gate.__getitem__)

    @property
    def elsewhere(self) -> str:
        """What is known of images of another population."""
        measured = self.limits.get("elsewhere")
        text = "the limits were not set on such images"
        if measured:
            text += (
                f"; against radiologists on {measured['images']} images of adults of another "
                f"hospital its AUC is {measured['all']:.2f} (AP {measured['AP']:.2f}, "
                f"PA {measured['PA']:.2f})"
            )
        return text

    @property
    def record(self) -> str:
        """How often each answer was right on the official test, in one line."""
        rates = self.limits.get("right") or {}
        shares = [
            f"{name!r} {rate['share']:.1%} of {rate['n']}"
            for name, rate in rates.items()
            if rate["share"] is not None
        ]
        return f"right on the official test: {', '.join(shares)}" if shares else ""


def has_lungs(box: np.ndarray, area: float) -> bool:
    """Whether a box `(4,)` and an area of `lung_finder.find` can be those of lungs."""
    height = 1 - box[0] - box[1]
    width = 1 - box[2] - box[3]
    return bool(min(height, width) >= _SMALLEST_SIDE and area >= _SMALLEST_AREA)


def two_views(pixels: np.ndarray, boxes: np.ndarray, side: int) -> np.ndarray:
    """Give the network's input: the box of the lungs and the whole image.

    Parameters
    ----------
    pixels : numpy.ndarray
        uint8 `(n, size, size, 1)`.
    boxes : numpy.ndarray
        Of the lungs, float `(n, 4)`.
    side : int
        Height and width of the views in pixels.

    Returns
    -------
    numpy.ndarray
        float32 `(n, 2, side, side, 1)`.
    """
    crops = lungs.crop_boxes(pixels, boxes, side, margin=regions.MARGIN)
    wholes = lungs.crop_boxes(pixels, np.zeros_like(boxes), side, margin=0.0)
    return np.stack([crops, wholes], axis=1).astype(np.float32)


def _in_whole(cam: np.ndarray, box: np.ndarray, size: int) -> np.ndarray:
    """Put the class activation map of the lungs' box into the whole image, `(size, size)`."""
    top, bottom, left, right = box
    vertical = regions.MARGIN * (1 - top - bottom)
    horizontal = regions.MARGIN * (1 - left - right)
    rows = _span(top - vertical, bottom - vertical, size)
    columns = _span(left - horizontal, right - horizontal, size)
    small = Image.fromarray(np.maximum(cam, 0).astype(np.float32))
    extent = (columns.stop - columns.start, rows.stop - rows.start)
    whole = np.zeros((size, size), np.float32)
    whole[rows, columns] = np.asarray(small.resize(extent, Image.Resampling.BILINEAR))
    return images.heat_map(whole, size)


def _span(before: float, after: float, size: int) -> slice:
    """Pixels between two margins, which are shares of the image."""
    return slice(round(size * max(before, 0)), size - round(size * max(after, 0)))


def load_packaged(folder: Path = SHIPPED) -> PackagedModel:
    """Read the packaged model and check that both of its files are those that were packaged.

    Parameters
    ----------
    folder : Path
        Holds `model.tflite`, `run.json` and their `SHA256SUMS`.

    Raises
    ------
    InvalidDataError
        If a file is missing or its SHA-256 is another one, or if it cannot be used.
    NotFoundError
        If LiteRT is not installed.
    """
    settings_text = read_verified(folder / SETTINGS_FILE)
    model = read_verified(folder / MODEL_FILE)
    try:
        return build_packaged(json.loads(settings_text), model)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        problem = f"{folder} holds no model of this package ({type(error).__name__}: {error})"
        fix = "install the package again, or `git checkout` the folder"
        raise InvalidDataError(f"{problem}. Fix: {fix}.") from error


def build_packaged(settings: dict[str, Any], model: bytes) -> PackagedModel:
    """Make the content of a `run.json` and of a `model.tflite` a model that answers."""
    limits = settings["answers"]
    return PackagedModel(
        name=f"{settings['recipe']} {settings['dataset']} {settings['seed']}",
        sha256=hashlib.sha256(model).hexdigest(),
        limits=limits,
        network=load_network(model),
        prevalence=limits["prevalence"],
    )


def write_packaged(folder: Path, settings: dict[str, Any], model: bytes) -> None:
    """Write the two files of a packaged model, and their checksums."""
    settings_text = json.dumps(settings, indent=1) + "\n"
    write_verified(folder, {MODEL_FILE: model, SETTINGS_FILE: settings_text.encode()})


def load_network(model: bytes) -> Callable[..., dict[str, np.ndarray]]:
    """Make the content of a `model.tflite` a function, see `export.to_litert`."""
    try:
        from ai_edge_litert.interpreter import Interpreter  # type: ignore[import-untyped]
    except ImportError as error:
        raise NotFoundError(
            "LiteRT is not on this machine. Fix: pip install ai-edge-litert; where it has no "
            "build, name a trained run with --model."
        ) from error
    interpreter = Interpreter(model_content=model, num_threads=2)
    with _without_native_stderr():  # where LiteRT says that it chose its usual CPU backend
        interpreter.allocate_tensors()
    return interpreter.get_signature_runner()


@contextmanager
def _without_native_stderr() -> Iterator[None]:
    """Send file descriptor 2 to nowhere; LiteRT's C++ logger has no level that Python could set."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed already
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
