"""Detecting pneumonia on chest X-rays: data, splits, recipes, training and evaluation.

A research tool, not a medical device.

Examples
--------
Answer the example images with the packaged model, one row per image:

>>> import xraylib
>>> table = xraylib.predict("data/examples")
>>> table["status"].tolist()
['abstained', 'ok', 'ok', 'ok']

Load a model once, and answer at another threshold:

>>> model = xraylib.load_model()
>>> strict = xraylib.predict("data/examples/normal.jpeg", model, threshold=0.5)
>>> strict.loc[0, "status"], strict.loc[0, "threshold"]
('ok', np.float64(0.5))

Look a recipe up; `Experiment` trains recipes and reads their runs (see notebook 03):

>>> xraylib.RECIPES["tiny-cnn-28"].size
28
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xraylib.experiment import Experiment
    from xraylib.explanation import explain
    from xraylib.prediction import load_model, predict
    from xraylib.training.recipes import RECIPES

__version__ = "0.1.0"

__all__ = ["RECIPES", "Experiment", "explain", "load_model", "predict"]

# Imported when first used: Keras must not load before `devices.use` has chosen its backend.
_MODULES = {
    "Experiment": "xraylib.experiment",
    "RECIPES": "xraylib.training.recipes",
    "explain": "xraylib.explanation",
    "load_model": "xraylib.prediction",
    "predict": "xraylib.prediction",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'xraylib' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
