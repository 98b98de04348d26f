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

from xraylib.datasets import images
from xraylib.errors import InvalidDataError, NotFoundError
from xraylib.paths import SHIPPED
from xraylib.storage import read_verified, write_verified

MODEL_FILE = "model.tflite"
SETTINGS_FILE = "run.json"


@dataclass(frozen=True)
class PackagedModel:
    """The packaged network with the limits that validation set.

    Its probability is calibrated on validation, where `threshold` and the limits were chosen.

    Attributes
    ----------
    name : str
        Recipe, data set and seed.
    sha256 : str
        Of the file `model.tflite`.
    size : int
        Height and width of its images in pixels.
    threshold : float
        At or above this probability an image is classified as pneumonia.
    limits : dict
        The entry `answers` of `run.json`: views, calibration and the limits of an answer.
    network : callable
        Takes `views`, float32 `(3, input, input, 1)`; returns `log_odds`, `heat` and `ood`.
    """

    name: str
    sha256: str
    size: int
    threshold: float
    limits: dict[str, Any]
    network: Callable[..., dict[str, np.ndarray]]

    def answer(self, pixels: np.ndarray) -> list[dict[str, Any]]:
        """Answer images one by one, each as it is and in two further framings.

        Parameters
        ----------
        pixels : numpy.ndarray
            uint8 `(n, size, size, 1)`, bone bright.

        Returns
        -------
        list of dict
            One for each image: `probability` of pneumonia, `lowest` and `highest` over the
            framings, `ood_score`, `prediction_set`, `heat_map` (float32 `(size, size)` in
            [0, 1]); and, where no answer should be given, `status` and `message`.
        """
        return [self._answer_image(image) for image in pixels]

    def _answer_image(self, image: np.ndarray) -> dict[str, Any]:
        outputs = self.network(views=self._views(image))
        probabilities = self._calibrated(outputs["log_odds"])
        lowest = probabilities.min()
        highest = probabilities.max()
        ood_score = float(outputs["ood"].item())
        answer = {
            "probability": probabilities[0],
            "lowest": lowest,
            "highest": highest,
            "ood_score": ood_score,
            "prediction_set": self._prediction_set(probabilities[0]),
            "heat_map": images.heat_map(outputs["heat"][0], self.size),
        }
        refusal = self._refusal(ood_score, lowest, highest)
        if refusal:
            answer |= {"status": "abstained", "message": refusal}
        return answer

    def _views(self, image: np.ndarray) -> np.ndarray:
        """Give the network's input: the image in each framing, which keeps a share of each side."""
        gray = Image.fromarray(image[..., 0].astype(np.float32))
        side = self.limits["input"]
        views = []
        for row_share, column_share in self.limits["framings"]:
            top = (1 - row_share) / 2 * self.size
            left = (1 - column_share) / 2 * self.size
            box = (left, top, self.size - left, self.size - top)
            view = gray.resize((side, side), Image.Resampling.BILINEAR, box=box)
            views.append(np.asarray(view))
        return np.stack(views)[..., None]

    def _calibrated(self, log_odds: np.ndarray) -> np.ndarray:
        slope, intercept = self.limits["calibration"]
        return 1 / (1 + np.exp(-(log_odds.astype(np.float64).ravel() * slope + intercept)))

    def _prediction_set(self, probability: float) -> str:
        """Name the classes in whose range on validation the probability lies."""
        classes = []
        if probability <= self.limits["normal_up_to"]:
            classes.append("normal")
        if probability >= self.limits["pneumonia_from"]:
            classes.append("pneumonia")
        return " or ".join(classes) or "neither"

    def _refusal(self, ood_score: float, lowest: float, highest: float) -> str:
        """Say why the image gets no answer; empty where it gets one."""
        limit = self.limits["ood_limit"]
        if ood_score > limit:
            return (
                "unlike the images it was trained on "
                f"(OOD score {ood_score:.1f}, limit {limit:.1f})"
            )
        if highest - lowest > self.limits["framing_limit"]:
            return f"the answer depends on the framing ({lowest:.2f} to {highest:.2f})"
        return ""


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
        size=settings["choices"]["size"],
        threshold=limits["threshold"],
        limits=limits,
        network=_load_network(model),
    )


def write_packaged(folder: Path, settings: dict[str, Any], model: bytes) -> None:
    """Write the two files of a packaged model, and their checksums."""
    settings_text = json.dumps(settings, indent=1) + "\n"
    write_verified(folder, {MODEL_FILE: model, SETTINGS_FILE: settings_text.encode()})


def _load_network(model: bytes) -> Callable[..., dict[str, np.ndarray]]:
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
