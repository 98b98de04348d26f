"""A finished run's model, loaded to predict with."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from xraylib.datasets import regions
from xraylib.errors import InvalidDataError, NotFoundError
from xraylib.training import networks, probe
from xraylib.training.runs import Run


@dataclass(frozen=True)
class Predictor:
    """A run's model.

    Attributes
    ----------
    run
        The run.
    model
        A Keras network: the whole, or for a linear probe the frozen one that gives its features.
    head
        The arrays of the linear probe, or None.
    """

    run: Run
    model: Any
    head: dict[str, np.ndarray] | None

    @property
    def threshold(self) -> float:
        """The run's frozen threshold."""
        return self.run.threshold

    @property
    def name(self) -> str:
        """Recipe, data set and seed."""
        return f"{self.run.recipe} {self.run.settings['dataset']} {self.run.seed}"

    @property
    def sha256(self) -> str:
        """The SHA-256 of the model's file."""
        return self.run.settings["model_sha256"]

    @property
    def size(self) -> int:
        """Height and width in pixels of the images that `answer` takes."""
        if self.region != "whole":
            return regions.SOURCE_SIZE
        return self.run.settings["choices"]["size"]

    @property
    def region(self) -> str:
        """The region of its images that the network sees, see `regions.load`."""
        return self.run.settings["choices"].get("region", "whole")

    def answer(self, pixels: np.ndarray) -> list[dict[str, Any]]:
        """Return the uncalibrated score of each image, in the form that `xraylib.predict` asks."""
        if self.region != "whole":
            pixels = regions.cut(pixels, self.run.settings["choices"]["size"], self.region)
        return [{"probability": score} for score in self.score(pixels)]

    def score(self, pixels: np.ndarray) -> np.ndarray:
        """Return P(pneumonia), float64 `(n,)`, of uint8 pixels of the recipe's size and region."""
        if self.head is not None:
            return probe.predict_probability(self.head, probe.describe(self.model, pixels))
        head = self.run.settings["choices"]["head"]
        return networks.predict_rows(self.model, head, pixels, np.arange(len(pixels)), 32)


# What a model is built from, with its type in `run.json`.
_CHOICES: dict[str, type | tuple[type, ...]] = {
    "fit": str,
    "network": str,
    "size": int,
    "head": str,
    "augmentation": (str, type(None)),
}
# No image of a recipe is larger, and a larger one could need all memory.
_LARGEST_SIZE = 1024


def load_predictor(run: Run) -> Predictor:
    """Build the model of a run in code and load its verified weights; no stored code is executed.

    Raises
    ------
    NotFoundError
        If the run sees no image, or needs a network or initial weights that are not here.
    InvalidDataError
        If the model is missing or damaged, or the run is not one of this version of xraylib.
    """
    choices = _checked_choices(run)
    if choices["fit"] == "single-feature":
        raise NotFoundError(f"{run.recipe} sees no image. Fix: predict with another recipe.")
    if not run.has_model:
        raise InvalidDataError(
            f"{run.model_file} is missing. Fix: train it again on this machine: {run.command}"
        )
    if choices["fit"] == "linear-probe":
        return _load_probe(run)
    try:
        model = networks.build(
            choices["network"],
            choices["size"],
            choices["head"],
            augmentation=choices["augmentation"],
        )
        networks.load_weights(model, run.model_file)
    except ValueError as error:
        raise _unreadable(run, error) from error
    return Predictor(run, model, None)


def _load_probe(run: Run) -> Predictor:
    """Load a linear probe with the frozen network that it was fitted on."""
    choices = run.settings["choices"]
    weights = networks.find_weights(
        choices["network"],
        run.settings["init"],
        run.settings.get("init_file"),
    )
    try:
        frozen = probe.extractor(choices["network"], choices["size"], weights, run.seed)
        head = probe.load_head(run.model_file)
    except (ValueError, AttributeError, TypeError) as error:
        raise _unreadable(run, error) from error
    expected = {"coefficients": (frozen.output.shape[-1],), "intercept": ()}
    if {name: value.shape for name, value in head.items()} != expected:
        raise _unreadable(run, ValueError("its arrays have other names or shapes"))
    return Predictor(run, frozen, head)


def _checked_choices(run: Run) -> dict[str, Any]:
    """Return the choices of a run after a check that a model can be built from them."""
    file = run.folder / "run.json"
    choices = run.settings["choices"]
    wrong = [name for name, kind in _CHOICES.items() if not _is_of(choices, name, kind)]
    others = {"dataset": str, "init": str, "model_sha256": str}
    wrong += [name for name, kind in others.items() if not _is_of(run.settings, name, kind)]
    if not wrong and not 0 < choices["size"] <= _LARGEST_SIZE:
        wrong = ["size"]
    if wrong:
        raise InvalidDataError(
            f"{file} has no usable {', '.join(wrong)}. "
            "Fix: give the folder of a run that this version of xraylib trained."
        )
    return choices


def _is_of(values: dict[str, Any], name: str, kind: type | tuple[type, ...]) -> bool:
    return name in values and isinstance(values[name], kind)


def _unreadable(run: Run, error: Exception) -> InvalidDataError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return InvalidDataError(
        f"{run.model_file} does not fit the network of its run ({reason}). "
        f"Fix: train it again: {run.command}"
    )
