"""Every figure of the repository: one function each, which takes tables or arrays and returns a `Figure`.

No figure is held by pyplot. A notebook shows one that ends a cell; `figure.savefig(path)` writes it at 150
dpi. A class, a kind and a recipe have one colour in all of them.
"""

from xraylib.figures.curves import learning_curves, penalty_path, precision_recall, roc
from xraylib.figures.data import (
    balance,
    file_statistics,
    intensities,
    label_distribution,
    leakage,
    mean_images,
)
from xraylib.figures.evalplots import decision_curve, drop, losses, reliability, robustness, subgroups
from xraylib.figures.images import gallery, lesion_gallery, prediction, predictions, steps
from xraylib.figures.intervals import confusion, leaderboard, score_distribution, shortcuts
from xraylib.figures.storyplots import draws, story
from xraylib.figures.style import CLASS_COLOURS, KIND_COLOURS, Figure, recipe_looks
from xraylib.figures.trustplots import coverage, deletion, risk_coverage, strangeness

__all__ = [
    "CLASS_COLOURS",
    "KIND_COLOURS",
    "Figure",
    "balance",
    "confusion",
    "coverage",
    "decision_curve",
    "deletion",
    "draws",
    "drop",
    "file_statistics",
    "gallery",
    "intensities",
    "label_distribution",
    "leaderboard",
    "leakage",
    "learning_curves",
    "lesion_gallery",
    "losses",
    "mean_images",
    "penalty_path",
    "precision_recall",
    "prediction",
    "predictions",
    "recipe_looks",
    "reliability",
    "risk_coverage",
    "robustness",
    "roc",
    "score_distribution",
    "shortcuts",
    "steps",
    "story",
    "strangeness",
    "subgroups",
]
