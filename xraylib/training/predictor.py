"""A finished run's model, loaded to predict with."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from xraylib.errors import InvalidDataError, NotFoundError
from xraylib.training import networks, probe
from xraylib.training.runs import Run


@dataclass(frozen=True)
class Predictor:
    """A run's model: a Keras network, or a frozen one with the arrays of its linear `head` on top."""

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
        """Of its model's file."""
        return self.run.settings["model_sha256"]

    @property
    def size(self) -> int:
        """Height and width of its films in pixels."""
        return self.run.settings["choices"]["size"]

    def answer(self, films: np.ndarray) -> list[dict[str, Any]]:
        """What `xraylib.predict` asks of a model: the score of each film, uncalibrated."""
        return [{"probability": score} for score in self.score(films)]

    def score(self, pixels: np.ndarray) -> np.ndarray:
        """P(pneumonia) float64 `(n,)` of uint8 pixels `(n, size, size, 1)`."""
        if self.head is not None:
            return probe.predict_probability(self.head, probe.describe(self.model, pixels))
        head = self.run.settings["choices"]["head"]
        return networks.predict_rows(self.model, head, pixels, np.arange(len(pixels)), 32)


def load_predictor(run: Run) -> Predictor:
    """Rebuild the model in code and load its verified weights; no stored code is ever executed."""
    choices, settings = run.settings["choices"], run.settings
    if choices["fit"] == "single-feature":
        raise NotFoundError(f"{run.recipe} sees no image. Fix: predict with another recipe.")
    if not run.has_model:
        raise InvalidDataError(
            f"{run.model_file} is missing or is not what the run wrote. Fix: train it again on this "
            f"machine: python -m xraylib train {run.recipe} --dataset {settings['dataset']} --overwrite"
        )
    if choices["fit"] == "network":
        model = networks.build(
            choices["network"],
            choices["size"],
            choices["head"],
            augmentation=choices["augmentation"],
        )
        model.load_weights(run.model_file)
        return Predictor(run, model, None)
    init = "random" if settings["init"] == "random" else "imagenet"
    weights = networks.get_weights(choices["network"], init)
    if weights.label != settings["init"]:
        fix = "set XRAYLIB_WEIGHTS to the weights it was fitted on, or train again"
        raise InvalidDataError(
            f"the run was fitted on {settings['init']}, found are {weights.label}. Fix: {fix}."
        )
    frozen = probe.extractor(choices["network"], choices["size"], weights, run.seed)
    return Predictor(run, frozen, probe.load_head(run.model_file))
