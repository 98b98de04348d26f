"""The model that comes with the package, and exported ones: a folder with a LiteRT network.

Neither TensorFlow, JAX nor Keras is loaded.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.special import expit, logit, softmax

from xraylib.datasets import images, lung_finder, lungs, regions
from xraylib.devices import litert_interpreter
from xraylib.errors import InvalidDataError
from xraylib.paths import SHIPPED
from xraylib.storage import read_verified, sha256, sha256_bytes, write_verified

MODEL_FILE = "model.tflite"
SETTINGS_FILE = "run.json"

NORMAL = "looks normal"
UNDECIDED = "undecided"
PNEUMONIA = "looks like pneumonia"
ANSWERS = (NORMAL, UNDECIDED, PNEUMONIA)

# What a model answers of one image, see `PackagedModel.answer`.
Answer = dict[str, Any]

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
    """A network with the limits that validation set: the one of the package, or an exported one.

    Attributes
    ----------
    name : str
        Recipe, data set and seed.
    sha256 : str
        Of the file `model.tflite`.
    limits : dict
        The entry `answers` of `run.json`, see `export.export_run`.
    network : callable
        See `export.to_litert`.
    prevalence : float or None
        The share of pneumonias, in (0, 1), where the images come from. By default that of the
        images on which the probability was calibrated; None if it was not.
    strict_domain : bool
        Give no answer for images of another population than that of training.
    """

    name: str
    sha256: str
    limits: dict[str, Any]
    network: Callable[..., dict[str, np.ndarray]]
    prevalence: float | None
    strict_domain: bool = False

    @property
    def sees_lungs(self) -> bool:
        """Whether the network sees the box of the lungs, not the whole image."""
        return self.limits.get("region", "lungs") == "lungs"

    @property
    def size(self) -> int:
        """Height and width of the images that it takes, in pixels."""
        return regions.SOURCE_SIZE if self.sees_lungs else self.limits["input"]

    @property
    def threshold(self) -> float | None:
        """The threshold of its run where it has no limits, which otherwise take its place."""
        return self.limits.get("threshold")

    @property
    def left_out(self) -> dict[str, str]:
        """The parts that could not be set when it was exported, and why."""
        return self.limits.get("left_out", {})

    def answer(self, pixels: np.ndarray) -> list[Answer]:
        """Answer images one by one.

        Parameters
        ----------
        pixels : numpy.ndarray
            uint8 `(n, size, size, 1)`, bone bright.

        Returns
        -------
        list of dict
            One for each image:

            status : `ok` or `abstained`
            reason : the key of `GATE` for which there is no answer, else empty
            message : the same in words
            answer : one of `ANSWERS`; empty without limits
            probability : of pneumonia, calibrated, at `prevalence`
            log_odds : the same before the shift to `prevalence`; the limits lie on it

            Of a model that has these parts:

            is_outside : whether the image is of another population than that of training
            domain : how far beyond the limit of that it lies; at most 0 within
            gate : probability of each entry of `GATE`
            box : of the lungs, `(4,)`: top, bottom, left, right as shares of the image
            heat_map : float32 `(size, size)` in [0, 1], of the whole image

            Where no lungs are found there are `status`, `reason`, `message` and an empty
            `heat_map` only.
        """
        if not self.sees_lungs:
            return [self._answer_image(image, None) for image in pixels]
        pairs = zip(pixels, find_lungs(pixels), strict=True)
        return [self._answer_image(image, lung_row) for image, lung_row in pairs]

    def answer_in_boxes(self, image: np.ndarray, boxes: np.ndarray) -> list[Answer]:
        """Answer one image, uint8 `(224, 224, 1)`, as if its lungs lay in other boxes, `(n, 4)`.

        Returns what `answer` does, one dict for each box.
        """
        area, certainty = find_lungs(image[None])[0, :2]
        return [self._answer_image(image, np.array([area, certainty, *box])) for box in boxes]

    def _answer_image(self, image: np.ndarray, lung_row: np.ndarray | None) -> Answer:
        """Answer an image with its row of `find_lungs`, or as a whole."""
        if lung_row is None:
            box = np.zeros(4)
            outputs = self.network(views=image[None].astype(np.float32))
        elif has_lungs(lung_row):
            box = lung_row[2:]
            outputs = self.network(
                views=two_views(image[None], box[None], self.limits["input"])[0],
                lungs=lung_row.astype(np.float32),
            )
        else:
            return {
                "status": "abstained",
                "reason": "other",
                "message": f"no lungs are found: {GATE['other']}",
                "heat_map": np.zeros((self.size, self.size), np.float32),
            }
        raw_log_odds = outputs["log_odds"].item()
        calibration = self.limits.get("calibration", {"slope": 1.0, "intercept": 0.0})
        log_odds = raw_log_odds * calibration["slope"] + calibration["intercept"]
        answer = {
            "status": "ok",
            "reason": "",
            "message": "",
            "answer": self._decide(log_odds),
            "probability": float(expit(self._shifted(log_odds))),
            "log_odds": log_odds,
        }
        if lung_row is not None:
            answer["box"] = box
        if "heat" in outputs:
            # The head's bias is shared out evenly, so that the map's mean is the log odds.
            cam = outputs["heat"][0]
            answer["heat_map"] = _in_whole(cam - cam.mean() + raw_log_odds, box, self.size)
        if "gate" in outputs:
            answer |= self._judge(outputs)
        return answer

    def _judge(self, outputs: dict[str, np.ndarray]) -> Answer:
        """Give what the gate and the domain say, and the status that follows."""
        gate = dict(zip(GATE, softmax(outputs["gate"].ravel()), strict=True))
        domain = outputs["domain"].item() - self.limits.get("domain_limit", 0.0)
        judged = {"gate": gate, "domain": domain, "is_outside": domain > 0}
        if gate[OK] < self.limits.get("gate_limit", 0.0):
            reason = max(gate, key=gate.__getitem__)
            judged |= {"status": "abstained", "reason": reason, "message": GATE[reason]}
        return judged

    def _shifted(self, log_odds: float) -> float:
        """Move log odds from the prevalence of the calibration to that of the images."""
        if self.prevalence is None:
            return log_odds
        return log_odds + logit(self.prevalence) - logit(self.limits["prevalence"])

    def _decide(self, log_odds: float) -> str:
        """Choose the answer: the limits lie on the evidence, and no answer contradicts P."""
        if "normal_up_to" not in self.limits:
            return ""
        shifted = self._shifted(log_odds)
        if log_odds < self.limits["normal_up_to"] and shifted < 0:
            return NORMAL
        if log_odds > self.limits["pneumonia_from"] and shifted > 0:
            return PNEUMONIA
        return UNDECIDED

    @property
    def elsewhere(self) -> str:
        """What is known of images of another population."""
        measured = self.limits.get("elsewhere")
        text = "the limits were not set on such images"
        if not measured:
            return text
        return (
            f"{text}; against radiologists on {measured['images']} images of adults of another "
            f"hospital its AUC is {measured['all']:.2f} (AP {measured['AP']:.2f}, "
            f"PA {measured['PA']:.2f})"
        )

    @property
    def of_children(self) -> bool:
        """Whether it was trained on Kermany's children; of other data no age is known."""
        return "dataset" not in self.limits

    @property
    def population(self) -> str:
        """What it was trained on, in words."""
        if self.of_children:
            return "children of one hospital"
        return f"the images of {self.limits['dataset']}"

    @property
    def test(self) -> str:
        """The name of the test on which its answers were counted."""
        return "the official test" if self.of_children else f"the test of {self.limits['dataset']}"

    @property
    def record(self) -> str:
        """How often each answer was right on the test, in one line."""
        rates = self.limits.get("right") or {}
        shares = [
            f"{name!r} {rate['share']:.1%} of {rate['n']}"
            for name, rate in rates.items()
            if rate["share"] is not None
        ]
        if not shares:
            return ""
        return f"right on {self.test}, at its prevalence: {', '.join(shares)}"


def find_lungs(pixels: np.ndarray) -> np.ndarray:
    """Find the lungs in uint8 images `(n, size, size, 1)`.

    Returns
    -------
    numpy.ndarray
        `(n, 6)`: area, certainty and the four sides of the box, see `lung_finder.LungBoxes`.
    """
    found = lung_finder.find(pixels)
    return np.column_stack([found.area, found.certainty, found.boxes])


def has_lungs(lung_row: np.ndarray) -> bool:
    """Whether a row of `find_lungs` can be that of lungs."""
    area, _, top, bottom, left, right = lung_row
    smallest_side = min(1 - top - bottom, 1 - left - right)
    return bool(smallest_side >= _SMALLEST_SIDE and area >= _SMALLEST_AREA)


def two_views(pixels: np.ndarray, boxes: np.ndarray, side: int) -> np.ndarray:
    """Give the input of a network that sees the lungs: their box, and the whole image.

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
    """Read the packaged model, or an exported one, and check that its files are those written.

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
        settings = json.loads(settings_text)
        packaged = build_packaged(settings, model)
        _try_out(packaged)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InvalidDataError(
            f"{folder} holds no model of this package ({type(error).__name__}: {error}). "
            "Fix: install the package again, or export the model again."
        ) from error
    finder = SHIPPED / lung_finder.MODEL_FILE
    if folder != SHIPPED and (
        packaged.sees_lungs and settings.get("lung_finder") != sha256(finder)[:12]
    ):
        raise InvalidDataError(
            f"{folder}: its limits were set with another network to find lungs than this "
            "package has. Fix: train and export it again."
        )
    return packaged


def _try_out(model: PackagedModel) -> None:
    """Use everything once, so that what is missing or does not fit fails before any answer."""
    if model.limits["sha256"] != model.sha256:
        raise ValueError("its limits are of another network")
    black = np.zeros((model.size, model.size, 1), np.uint8)
    lung_row = np.array([1.0, 1.0, 0.0, 0.0, 0.0, 0.0]) if model.sees_lungs else None
    answer = model._answer_image(black, lung_row)
    if answer["answer"]:
        float(model.limits["normal_up_to"] + model.limits["pneumonia_from"])
    else:
        float(model.limits["threshold"] + answer["probability"])
    model.left_out.items()
    model.record.join(model.elsewhere)


def build_packaged(settings: dict[str, Any], model: bytes) -> PackagedModel:
    """Make the content of a `run.json` and of a `model.tflite` a model that answers."""
    limits = settings["answers"]
    return PackagedModel(
        name=f"{settings['recipe']} {settings['dataset']} {settings['seed']}",
        sha256=sha256_bytes(model),
        limits=limits,
        network=litert_interpreter(model).get_signature_runner(),
        prevalence=limits.get("prevalence"),
    )


def write_packaged(folder: Path, settings: dict[str, Any], model: bytes) -> None:
    """Write the two files of a packaged model, and their checksums."""
    settings_text = json.dumps(settings, indent=1) + "\n"
    write_verified(folder, {MODEL_FILE: model, SETTINGS_FILE: settings_text.encode()})
