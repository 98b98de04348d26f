"""A finished run's model, loaded to predict with."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from xraylib.datasets import regions
from xraylib.errors import InvalidDataError, NotFoundError, XraylibError
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

    # What a packaged or exported model has beside the network, or can be set to.
    left_out = ("limits", "gate", "heat map")
    prevalence = None
    strict_domain = False
    record = ""

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
        return self.run.choices["size"]

    @property
    def region(self) -> str:
        """The region of its images that the network sees, see `regions.load`."""
        return self.run.choices.get("region", "whole")

    def answer(self, pixels: np.ndarray) -> list[dict[str, Any]]:
        """Return the uncalibrated score of each image, in the form that `xraylib.predict` asks."""
        if self.region != "whole":
            pixels = regions.cut(pixels, self.run.choices["size"], self.region)
        return [{"probability": score} for score in self.score(pixels)]

    def score(self, pixels: np.ndarray) -> np.ndarray:
        """Return P(pneumonia), float64 `(n,)`, of uint8 pixels of the recipe's size and region."""
        if self.head is not None:
            return probe.predict_probability(self.head, probe.describe(self.model, pixels))
        head = self.run.choices["head"]
        return networks.predict_rows(self.model, head, pixels, np.arange(len(pixels)), 32)


def load_predictor(run: Run) -> Predictor:
    """Build the model of a run in code and load its verified weights; no stored code is executed.

    Raises
    ------
    NotFoundError
        If the run sees no image, or needs a network or initial weights that are not here.
    InvalidDataError
        If the model is missing or damaged.
    """
    if run.choices["fit"] == "single-feature":
        raise NotFoundError(f"{run.recipe} sees no image. Fix: predict with another recipe.")
    if not run.has_model:
        raise InvalidDataError(
            f"{run.model_file} is missing. Fix: train it again on this machine: {run.command}"
        )
    load = _load_probe if run.choices["fit"] == "linear-probe" else _load_network
    try:
        return load(run)
    except (XraylibError, MemoryError):
        raise
    except Exception as error:  # of many kinds: anybody may have written the files
        raise InvalidDataError(
            f"{run.model_file} does not fit the network of its run ({error!r}). "
            f"Fix: train it again: {run.command}"
        ) from error


def _load_network(run: Run) -> Predictor:
    names = ("network", "size", "head", "augmentation")
    model = networks.build(**{name: run.choices[name] for name in names})
    networks.load_weights(model, run.model_file)
    return Predictor(run, model, None)


def _load_probe(run: Run) -> Predictor:
    """Load a linear probe with the frozen network that it was fitted on."""
    network = run.choices["network"]
    given = run.settings.get("init_file", {}).get("path")
    weights = networks.find_weights(network, run.settings["init"], given)
    frozen = probe.extractor(network, run.choices["size"], weights, run.seed)
    head = probe.load_head(run.model_file)
    expected = {"coefficients": (frozen.output.shape[-1],), "intercept": ()}
    if {name: value.shape for name, value in head.items()} != expected:
        raise ValueError("its arrays have other names or shapes")
    return Predictor(run, frozen, head)
