"""Two linear layers on a trained network's features, which say what image they are of.

The *gate* recognises upright, complete, frontal chest images, and says what is wrong with others.
The *domain* separates the images of training from those of another hospital. Both learn from
changes that cost no label and from pixels alone: no label and no score of the classifier is used.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from xraylib.datasets import alterations
from xraylib.errors import InvalidDataError
from xraylib.packaged import GATE, OK, find_lungs, has_lungs, two_views
from xraylib.progress import tqdm

# From images, float32 `(n, side, side, 1)` in 0…255, to the features that its head reads, `(n, k)`.
Network = Callable[[np.ndarray], np.ndarray]

# So many images are changed in each way, slight changes included. Twice as many stay unchanged.
TAKEN = 600
_CHUNK = 256
# Inverse strength of the penalty on standardised features.
_PENALTY = 0.01


@dataclass(frozen=True)
class Linear:
    """A linear layer: `kernel`, float32 `(features, outputs)`, and `bias`, float32 `(outputs,)`."""

    kernel: np.ndarray
    bias: np.ndarray


def teach(
    describe: Callable[[np.ndarray], np.ndarray],
    training: np.ndarray,
    others: np.ndarray,
) -> tuple[Linear, Linear]:
    """Fit the gate and the domain.

    Parameters
    ----------
    describe : callable
        From images, uint8 `(n, size, size, 1)`, to what the layers see, float32 `(n, features)`,
        see `describe_lungs`; an image for which that is missing (NaN) is left out.
    training : numpy.ndarray
        Images of the run's training patients.
    others : numpy.ndarray
        Images of another population, likewise. They are good images to the gate.

    Returns
    -------
    gate, domain : Linear
        Log odds of each entry of `GATE`, and one output that is large for other populations.

    Raises
    ------
    InvalidDataError
        If one of the two populations cannot be described.
    """
    names = list(GATE)
    features: list[np.ndarray] = []
    classes: list[int] = []
    is_other: list[bool] = []
    for kind, from_others, pixels in tqdm(_examples(training, others), desc="gate", unit="kind"):
        chunks = range(0, len(pixels), _CHUNK)
        described = np.concatenate([describe(pixels[at : at + _CHUNK]) for at in chunks])
        described = described[~np.isnan(described).any(axis=1)]
        features.append(described)
        classes += [names.index(kind)] * len(described)
        is_other += [from_others] * len(described)
    table = np.concatenate(features)
    gate = _fit(table, np.array(classes), len(GATE))
    is_good = np.array(classes) == names.index(OK)
    populations = np.array(is_other)[is_good].astype(int)
    if len(np.unique(populations)) < 2:
        raise InvalidDataError(
            "no lungs are found in the training images, or in those of the other population. "
            "Fix: give other images with --others, or none."
        )
    domain = _fit(table[is_good], populations, 2)
    difference = Linear(
        domain.kernel[:, 1:] - domain.kernel[:, :1],
        domain.bias[1:] - domain.bias[:1],
    )
    return gate, difference


def taught_half(others: pd.DataFrame) -> np.ndarray:
    """Say which images of another population belong to the patients that the gate learns from.

    Returns
    -------
    numpy.ndarray
        bool `(n,)`, true for all images of a random half of the patients.
    """
    patients = np.sort(others["patient"].unique())
    shuffled = np.random.default_rng(0).permutation(patients)
    half = shuffled[: len(patients) // 2]
    return others["patient"].isin(half).to_numpy()


def describe_lungs(
    pixels: np.ndarray,
    network: Network,
    side: int,
) -> np.ndarray:
    """Describe images for a network that sees the box of the lungs.

    Parameters
    ----------
    pixels : numpy.ndarray
        uint8 `(n, 224, 224, 1)`.
    network : callable
        The trained network without its head.
    side : int
        Height and width of its input in pixels.

    Returns
    -------
    numpy.ndarray
        float32 `(n, 2 k + 6)`: the features of both views, then the row of `find_lungs`; missing
        (NaN) where no lungs are found.
    """
    lung_rows = find_lungs(pixels)
    boxes = np.nan_to_num(lung_rows[:, 2:])
    views = two_views(pixels, boxes, side)
    features = network(views.reshape(-1, side, side, 1))
    described = np.column_stack([features.reshape(len(pixels), -1), lung_rows])
    without_lungs = [not has_lungs(row) for row in lung_rows]
    described[without_lungs] = np.nan
    return described.astype(np.float32)


def _examples(
    training: np.ndarray,
    others: np.ndarray,
) -> Iterator[tuple[str, bool, np.ndarray]]:
    """Yield kinds of examples: their entry of `GATE`, whether they are of others, and pixels."""
    rng = np.random.default_rng(0)
    for from_others, pixels in ((False, training), (True, others)):
        order = rng.permutation(len(pixels))
        unchanged = pixels[np.sort(order[: 2 * TAKEN])]
        yield OK, from_others, unchanged
        some = pixels[np.sort(order[:TAKEN])]
        yield OK, from_others, alterations.change_each(some, alterations.slightly)
        for kind in alterations.REFUSED:
            order = rng.permutation(len(pixels))
            some = pixels[np.sort(order[:TAKEN])]
            change = partial(alterations.refused, kind=kind)
            yield kind, from_others, alterations.change_each(some, change)
    yield "other", False, alterations.unusual_images(TAKEN, training.shape[1])


def _fit(
    features: np.ndarray,
    classes: np.ndarray,
    count: int,
) -> Linear:
    """Fit a multinomial logistic regression; a class without examples is never likely."""
    scaler = StandardScaler().fit(features)
    model = LogisticRegression(C=_PENALTY, class_weight="balanced", max_iter=300)
    model.fit(scaler.transform(features), classes)
    # Of features as they are: the scaling is taken into the layer.
    coefficients = model.coef_ / scaler.scale_
    intercepts = model.intercept_ - model.coef_ @ (scaler.mean_ / scaler.scale_)
    if len(model.classes_) == 2:  # scikit-learn gives one line for two classes
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercepts = np.concatenate([-intercepts, intercepts]) / 2
    kernel = np.zeros((features.shape[1], count), np.float32)
    bias = np.full(count, -100.0, np.float32)
    kernel[:, model.classes_] = coefficients.T
    bias[model.classes_] = intercepts
    return Linear(kernel, bias)
