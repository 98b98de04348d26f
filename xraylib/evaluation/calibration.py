"""Whether a score of .8 means four in five: calibration, recalibration on validation, decision curves."""

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted

from xraylib.evaluation.resampling import interval, patient_draws, unvaried
from xraylib.storage import DataInvalid, NotFound

# Scores are cut here before their logit is taken: float32 outputs reach 0 and 1.
EDGE = 1e-6
METHODS = {"temperature": "temperature", "platt": "sigmoid", "isotonic": "isotonic"}
BINS = 10


def logit(scores: np.ndarray) -> np.ndarray:
    """Log odds of P(pneumonia), cut at `EDGE`."""
    cut = np.clip(np.asarray(scores, dtype=np.float64), EDGE, 1 - EDGE)
    return np.log(cut / (1 - cut))


def line(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Calibration slope and intercept: logistic regression of the label on the score's log odds.

    The slope is 1 for a calibrated score and below 1 for one too extreme. The intercept is that of a model
    whose slope is held at 1 (calibration in the large): 0 when the mean is right, below 0 when scores are
    too high. Cox 1958; Van Calster et al. 2019.

    Parameters
    ----------
    labels
        0/1 `(n,)`.
    scores
        P(pneumonia) `(n,)`.
    weights
        Non-negative `(resamples, n)`; one row of ones by default.

    Returns
    -------
    dict
        `slope, intercept`, each `(resamples,)`; NaN where a class is missing or the classes are parted.
    """
    weights = np.ones((1, len(labels))) if weights is None else weights
    x = logit(scores)
    slope = _newton(labels, np.stack([np.ones_like(x), x]), np.zeros_like(x), weights)[:, 1]
    total = weights.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = weights @ x**2 / total - (weights @ x / total) ** 2
    slope = np.where(spread > 1e-9, slope, np.nan)
    intercept = _newton(labels, np.ones((1, len(x))), x, weights)[:, 0]
    return {"slope": slope, "intercept": intercept}


def _newton(labels: np.ndarray, design: np.ndarray, offset: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Coefficients `(resamples, k)` of logistic regressions with an offset, all resamples at once."""
    beta = np.zeros((len(weights), len(design)))
    with np.errstate(all="ignore"):
        for _ in range(50):
            p = 1 / (1 + np.exp(-(beta @ design + offset)))
            gradient = (weights * (labels - p)) @ design.T
            curvature = np.einsum("bn,in,jn->bij", weights * p * (1 - p), design, design, optimize=True)
            # Keeps a resample with one score for all solvable; it has no slope, see below.
            curvature += (1e-9 + 1e-9 * curvature[:, :1, :1]) * np.eye(len(design))
            step = np.linalg.solve(curvature, gradient[..., None])[..., 0]
            step = np.clip(step, -2, 2)
            beta += step
            if np.nanmax(np.abs(step)) < 1e-10:
                break
    # Classes that a cut parts have no finite answer; nor has a resample of one class.
    ill = weights @ labels
    settled = (np.abs(step) < 1e-6).all(axis=1) & (ill > 0) & (ill < weights.sum(axis=1))
    return np.where(settled[:, None], beta, np.nan)


def expected_error(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Expected calibration error: mean distance of score and share, over `BINS` bins of equal width.

    Parameters as those of `line`; the result is `(resamples,)` in [0, 1].
    """
    weights = np.ones((1, len(labels))) if weights is None else weights
    member = _bins(scores)[:, None] == np.arange(BINS)
    gap = weights @ (member * (np.asarray(scores, dtype=np.float64) - labels)[:, None])
    return np.abs(gap).sum(axis=1) / weights.sum(axis=1)


def figures(part: pd.DataFrame, *, resamples: int = 1000) -> pd.DataFrame:
    """Calibration of one recipe and protocol on one side, mean over seeds, with 95 % intervals over patients.

    Parameters
    ----------
    part
        Scores of one recipe, protocol and split.
    resamples
        Bootstrap resamples.

    Returns
    -------
    pandas.DataFrame
        Index `brier, slope, intercept, ece`; columns `value, low, high`.
    """
    names, _ = np.unique(part["patient"], return_inverse=True)
    draws = np.vstack([np.ones(len(names)), patient_draws(len(names), resamples)])
    found: dict[str, list[np.ndarray]] = {name: [] for name in ("brier", "slope", "intercept", "ece")}
    for _, one in part.groupby("seed"):
        labels, scores = one["label"].to_numpy(), one["score"].to_numpy()
        weights = draws[:, np.searchsorted(names, one["patient"])]
        found["brier"].append(weights @ (scores - labels) ** 2 / weights.sum(axis=1))
        fitted = line(labels, scores, weights)
        found["slope"].append(fitted["slope"])
        found["intercept"].append(fitted["intercept"])
        found["ece"].append(expected_error(labels, scores, weights))
    rows = {}
    for name, values in found.items():
        mean = np.mean(values, axis=0)
        low, high = interval(mean[1:]) if np.isfinite(mean[0]) else (np.nan, np.nan)
        rows[name] = {"value": mean[0], "low": low, "high": high}
    return pd.DataFrame.from_dict(rows, orient="index")


def recalibrate(scores: pd.DataFrame, method: str) -> pd.DataFrame:
    """Return the scores table with every score recalibrated by what its own validation teaches.

    Parameters
    ----------
    scores
        With the `val` side of every recipe, protocol and seed.
    method
        `temperature`, `platt` or `isotonic`.

    Raises
    ------
    NotFound
        For a method that does not exist.
    DataInvalid
        When a seed has no validation scores of both classes.
    """
    if method not in METHODS:
        raise NotFound(f"there is no method {method!r}. Fix: choose one of {', '.join(METHODS)}.")
    parts = []
    table = scores.reset_index(drop=True)
    for key, one in table.groupby(["recipe", "protocol", "seed"], sort=False):
        val = one[one["split"] == "val"]
        if val["label"].nunique() < 2:
            raise DataInvalid(f"{', '.join(map(str, key))}: validation lacks a class. Fix: train it again.")
        fitted = CalibratedClassifierCV(FrozenEstimator(_LogOdds().fit()), method=METHODS[method])
        fitted.fit(logit(val["score"].to_numpy())[:, None], val["label"].to_numpy())
        calibrated = fitted.predict_proba(logit(one["score"].to_numpy())[:, None])[:, 1]
        parts.append(one.assign(score=np.clip(calibrated, 0, 1)))
    return pd.concat(parts).sort_index().set_index(scores.index)


class _LogOdds(ClassifierMixin, BaseEstimator):
    """What scikit-learn needs to see a score that is already there as a classifier."""

    def fit(self, X: object = None, y: object = None) -> "_LogOdds":
        self.classes_ = np.array([0, 1])
        return self

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        check_is_fitted(self)
        return np.asarray(X)[:, 0]

    def predict(self, X: np.ndarray) -> np.ndarray:
        return (self.decision_function(X) > 0).astype(int)


def reliability(part: pd.DataFrame, *, resamples: int = 1000) -> pd.DataFrame:
    """Observed share of pneumonia by score, in `BINS` bins of equal width, all seeds together.

    Parameters
    ----------
    part
        Scores of one recipe, protocol and split.
    resamples
        Bootstrap resamples of patients.

    Returns
    -------
    pandas.DataFrame
        One row a bin that holds an image: `score` (mean), `share`, `low`, `high` (95 %), `images` (a seed).
    """
    labels, scores = part["label"].to_numpy(), part["score"].to_numpy()
    names, own = np.unique(part["patient"], return_inverse=True)
    weights, bins, rows = patient_draws(len(names), resamples)[:, own], _bins(scores), []
    for number in np.unique(bins):
        inside = bins == number
        with np.errstate(invalid="ignore"):
            shares = weights[:, inside] @ labels[inside] / weights[:, inside].sum(axis=1)
        share = float(labels[inside].mean())
        low, high = unvaried(share, *interval(shares), len(np.unique(own[inside])))
        row = {"score": scores[inside].mean(), "share": share, "low": low, "high": high}
        rows.append(row | {"images": inside.sum() / part["seed"].nunique()})
    return pd.DataFrame(rows)


def decision_curve(
    part: pd.DataFrame, cuts: np.ndarray | None = None, *, resamples: int = 500
) -> pd.DataFrame:
    """Net benefit of acting on a score at each threshold probability (Vickers and Elkin 2006).

    Parameters
    ----------
    part
        Scores of one recipe, protocol and split; a mean over its seeds.
    cuts
        Threshold probabilities in (0, 1); .05 to .95 by default.
    resamples
        Bootstrap resamples of patients.

    Returns
    -------
    pandas.DataFrame
        `cut, benefit, low, high, all` (everybody is treated); treating nobody is 0. Then `gain, gain_low,
        gain_high`: the benefit less that of the better of these two, paired by patient.
    """
    cuts = np.linspace(0.05, 0.95, 19) if cuts is None else cuts
    names = np.unique(part["patient"])
    draws = np.vstack([np.ones(len(names)), patient_draws(len(names), resamples)])
    by_seed, odds = [], cuts / (1 - cuts)
    for _, one in part.groupby("seed"):
        weights = draws[:, np.searchsorted(names, one["patient"])]
        ill = one["label"].to_numpy() == 1
        called = one["score"].to_numpy()[:, None] >= cuts
        hits, alarms = weights @ (called & ill[:, None]), weights @ (called & ~ill[:, None])
        by_seed.append((hits - alarms * odds) / weights.sum(axis=1, keepdims=True))
    mean = np.mean(by_seed, axis=0)
    images = part.drop_duplicates("image_id")
    weights = draws[:, np.searchsorted(names, images["patient"])]
    share = (weights @ images["label"].to_numpy() / weights.sum(axis=1))[:, None]
    everybody = share - (1 - share) * odds
    # Which of the two is the better is asked once, of the side as it is.
    gain = mean - np.where(everybody[0] > 0, everybody, 0.0)
    table = {"cut": cuts, "benefit": mean[0], "all": everybody[0], "gain": gain[0]}
    for name, drawn in (("", mean), ("gain_", gain)):
        table[f"{name}low"], table[f"{name}high"] = np.percentile(drawn[1:], [2.5, 97.5], axis=0)
    return pd.DataFrame(table)


def _bins(scores: np.ndarray) -> np.ndarray:
    return np.minimum((np.asarray(scores, dtype=np.float64) * BINS).astype(int), BINS - 1)
