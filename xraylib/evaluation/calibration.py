"""What a score is worth: calibration, recalibration, decision curves, prediction sets, risk–coverage.

A `part` is the scores of one recipe, protocol and split; values are means over its seeds.
"""

import numpy as np
import pandas as pd
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from xraylib.errors import InvalidDataError
from xraylib.evaluation.resampling import (
    bootstrap_weights,
    interval,
    share_interval,
    wilson_if_degenerate,
)
from xraylib.training.thresholds import thresholds

# Scores are cut here before their logit is taken: float32 outputs reach 0 and 1.
EDGE = 1e-6
METHODS = {"temperature": "temperature", "platt": "sigmoid", "isotonic": "isotonic"}
BINS = 10
KINDS = ("normal", "pneumonia")


def logit(scores: np.ndarray | float) -> np.ndarray:
    """Log odds of P(pneumonia), cut at `EDGE`."""
    cut = np.clip(np.asarray(scores, dtype=np.float64), EDGE, 1 - EDGE)
    return np.log(cut / (1 - cut))


def slope_intercept(
    labels: np.ndarray, scores: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Calibration slope and intercept: logistic regressions of labels `(n,)` on the scores' log odds `(n,)`.

    The slope is 1 for a calibrated score and below 1 for one too extreme. The intercept is that of a model with slope 1
    (calibration in the large): 0 when the mean is right, below 0 when scores are too high. Under weights `(resamples,
    n)` each is `(resamples,)`; NaN where a class is missing or a cut separates the classes. Cox 1958; Van Calster et
    al. 2019.
    """
    x = logit(scores)
    slope = _newton(labels, np.stack([np.ones_like(x), x]), np.zeros_like(x), weights)[:, 1]
    total = weights.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = weights @ x**2 / total - (weights @ x / total) ** 2
    slope = np.where(spread > 1e-9, slope, np.nan)
    return {"slope": slope, "intercept": _newton(labels, np.ones((1, len(x))), x, weights)[:, 0]}


def _newton(
    labels: np.ndarray, design: np.ndarray, offset: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Coefficients `(resamples, k)` of logistic regressions with an offset, all resamples at once."""
    beta = np.zeros((len(weights), len(design)))
    with np.errstate(all="ignore"):
        for _ in range(25):
            p = 1 / (1 + np.exp(-(beta @ design + offset)))
            gradient = (weights * (labels - p)) @ design.T
            curvature = np.einsum(
                "bn,in,jn->bij", weights * p * (1 - p), design, design, optimize=True
            )
            # Keeps a resample with one score for all solvable; its slope is set to NaN.
            curvature += (1e-9 + 1e-9 * curvature[:, :1, :1]) * np.eye(len(design))
            step = np.clip(np.linalg.solve(curvature, gradient[..., None])[..., 0], -2, 2)
            beta += step
            if np.nanmax(np.abs(step)) < 1e-10:
                break
    # Separated classes have no finite answer; nor has a resample of one class.
    positive = weights @ labels
    settled = (np.abs(step) < 1e-6).all(axis=1) & (positive > 0) & (positive < weights.sum(axis=1))
    return np.where(settled[:, None], beta, np.nan)


def expected_error(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Expected calibration error `(resamples,)`: mean distance of score and share over `BINS` equal bins."""
    member = _bins(scores)[:, None] == np.arange(BINS)
    gap = weights @ (member * (np.asarray(scores, dtype=np.float64) - labels)[:, None])
    return np.abs(gap).sum(axis=1) / weights.sum(axis=1)


def summary(part: pd.DataFrame, *, resamples: int = 1000) -> pd.DataFrame:
    """Calibration of a part: index `brier, slope, intercept, ece`, columns `value, low, high`.

    NaN where a seed's scores could not be recalibrated.
    """
    if part["score"].isna().any():
        return pd.DataFrame(
            np.nan, ["brier", "slope", "intercept", "ece"], ["value", "low", "high"]
        )
    names, weights = _weights(part, resamples)
    by_seed = []
    for _, one in part.groupby("seed"):
        labels, scores = one["label"].to_numpy(), one["score"].to_numpy()
        own = weights[:, np.searchsorted(names, one["patient"])]
        brier = own @ (scores - labels) ** 2 / own.sum(axis=1)
        line = slope_intercept(labels, scores, own)
        by_seed.append({"brier": brier, **line, "ece": expected_error(labels, scores, own)})
    rows = {}
    for name in by_seed[0]:
        mean = np.mean([found[name] for found in by_seed], axis=0)
        low, high = interval(mean[1:]) if np.isfinite(mean[0]) else (np.nan, np.nan)
        rows[name] = {"value": mean[0], "low": low, "high": high}
    return pd.DataFrame.from_dict(rows, orient="index")


def recalibrate(scores: pd.DataFrame, method: str) -> pd.DataFrame:
    """The scores table with every score recalibrated on its own run's validation, by a key of `METHODS`.

    Where validation is perfectly separated no temperature is the best: these scores become NaN.
    """
    parts = []
    table = scores.reset_index(drop=True)
    # To scikit-learn, log odds that are already there are those of a regression with slope 1.
    plain = LogisticRegression()
    plain.classes_, plain.coef_, plain.intercept_ = np.array([0, 1]), np.ones((1, 1)), np.zeros(1)
    for _, one in table.groupby(["recipe", "protocol", "seed"], sort=False):
        val = one[one["split"] == "val"]
        classes = val.groupby("label")["score"]
        if method == "temperature" and classes.min()[1] > classes.max()[0]:
            parts.append(one.assign(score=np.nan))
            continue
        fitted = CalibratedClassifierCV(FrozenEstimator(plain), method=METHODS[method])
        fitted.fit(logit(val["score"].to_numpy())[:, None], val["label"].to_numpy())
        calibrated = fitted.predict_proba(logit(one["score"].to_numpy())[:, None])[:, 1]
        parts.append(one.assign(score=np.clip(calibrated, 0, 1)))
    return pd.concat(parts).sort_index().set_index(scores.index)


def reliability(part: pd.DataFrame, *, resamples: int = 1000) -> pd.DataFrame:
    """Observed share of pneumonia by score, in `BINS` equal bins, all seeds together.

    One row a bin that holds an image: `score` (mean)`, share, low, high, images` (a seed).
    """
    labels, scores = part["label"].to_numpy(), part["score"].to_numpy()
    names, own = np.unique(part["patient"], return_inverse=True)
    weights, bins, rows = bootstrap_weights(len(names), resamples)[:, own], _bins(scores), []
    for number in np.unique(bins):
        inside = bins == number
        with np.errstate(invalid="ignore"):
            shares = weights[:, inside] @ labels[inside] / weights[:, inside].sum(axis=1)
        share = float(labels[inside].mean())
        low, high = wilson_if_degenerate(share, *interval(shares), len(np.unique(own[inside])))
        row = {"score": scores[inside].mean(), "share": share, "low": low, "high": high}
        rows.append(row | {"images": inside.sum() / part["seed"].nunique()})
    return pd.DataFrame(rows)


def decision_curve(
    part: pd.DataFrame, prevalence: float | None = None, base: float | None = None
) -> pd.DataFrame:
    """Net benefit of acting on a score at threshold probabilities 0.05 to 0.95 (Vickers and Elkin 2006).

    `cut, all` (all are treated; none is 0)`, benefit, low, high, gain, gain_low, gain_high`: gain is over the better
    of these two, paired by patient. At a stated `prevalence` in (0, 1) the scores' odds are multiplied as Bayes'
    rule asks, from `base`, at which they are probabilities (by default that of these images).
    """
    cuts = np.linspace(0.05, 0.95, 19)
    names, weights = _weights(part, 500)
    by_seed, odds = [], cuts / (1 - cuts)
    moved = 0.0 if prevalence is None else logit(prevalence) - logit(base or part["label"].mean())
    for _, one in part.groupby("seed"):
        own, positive = (
            weights[:, np.searchsorted(names, one["patient"])],
            one["label"].to_numpy() == 1,
        )
        classified = logit(one["score"].to_numpy())[:, None] + moved >= logit(cuts)
        ill, well = ((own @ side)[:, None] for side in (positive, ~positive))
        hits, alarms = (
            own @ (classified & positive[:, None]),
            own @ (classified & ~positive[:, None]),
        )
        sick = ill / (ill + well) if prevalence is None else prevalence
        by_seed.append(sick * hits / ill - (1 - sick) * odds * alarms / well)
    mean, everybody = np.mean(by_seed, axis=0), np.atleast_2d(sick - (1 - sick) * odds)
    # Which of the two is the better is decided once, on the split as it is.
    gain = mean - np.where(everybody[0] > 0, everybody, 0.0)
    table = {"cut": cuts, "all": everybody[0]}
    for name, end, resampled in (("benefit", "", mean), ("gain", "gain_", gain)):
        low, high = np.percentile(resampled[1:], [2.5, 97.5], axis=0)
        table |= {name: resampled[0], f"{end}low": low, f"{end}high": high}
    return pd.DataFrame(table)


def prediction_sets(scores: pd.DataFrame, *, coverage: float = 0.9) -> pd.DataFrame:
    """The set of classes that cannot be ruled out for each image, of one recipe and protocol.

    The rows that are not `val`, with bool columns `normal` and `pneumonia`. Split-conformal, per class (Mondrian),
    calibrated on each seed's validation (Vovk et al. 2005): of each class a share of `coverage` is promised to have it
    in their set, for images like those of validation.
    """
    parts = []
    for seed, one in scores.groupby("seed"):
        val, rest = one[one["split"] == "val"], one[~one["split"].isin(["val", "swapped"])]
        if val.empty:
            raise InvalidDataError(
                f"seed {seed} has no val scores to calibrate on. Fix: train it again."
            )
        sets = {}
        for label, kind in enumerate(KINDS):
            # How badly an image fits the class: 1 - P(class).
            own, misfit = (
                1 - (p if label else 1 - p)
                for p in (part["score"].to_numpy(float) for part in (val, rest))
            )
            own = np.sort(own[val["label"] == label])
            # The share of calibration images, the new one included, that fit as badly or worse.
            share = (len(own) - np.searchsorted(own, misfit) + 1) / (len(own) + 1)
            sets[kind] = share >= 1 - coverage
        parts.append(rest.assign(**sets))
    return pd.concat(parts)


def coverage(sets: pd.DataFrame) -> pd.DataFrame:
    """How often the sets of `prediction_sets` hold the true class, and how large they are.

    `split, kind` (normal, pneumonia or all)`, images, covered, low, high`, and `empty, single, both`: the shares of
    sets of no, one and two classes; over all seeds.
    """
    sets = sets.assign(
        covered=np.where(sets["label"] == 1, sets["pneumonia"], sets["normal"]),
        size=sets["normal"].astype(int) + sets["pneumonia"],
    )
    rows = []
    for split, own in sets.groupby("split"):
        for kind in (*KINDS, "all"):
            part = own if kind == "all" else own[own["label"] == KINDS.index(kind)]
            if part.empty:
                continue
            covered, low, high = share_interval(
                part["covered"].to_numpy(), part["patient"].to_numpy()
            )
            sizes = part["size"].value_counts(normalize=True).reindex([0, 1, 2], fill_value=0.0)
            rows.append(
                {"split": split, "kind": kind, "images": part["image_id"].nunique()}
                | {"covered": covered, "low": low, "high": high}
                | dict(zip(("empty", "single", "both"), sizes, strict=True))
            )
    return pd.DataFrame(rows)


def risk_coverage(scores: pd.DataFrame) -> pd.DataFrame:
    """Error among the test images that are answered when the least sure are left out first.

    Of one recipe and protocol; how sure a score is: the distance of its log odds from the threshold's. `answered` (0.05
    to 1)`, error, low, high`: mean over seeds. Of ties, the mean over their orders.
    """
    points = thresholds(scores, "frozen")
    own = scores[scores["split"] == "test"]
    names, weights = _weights(own, 500)
    answered, by_seed = np.linspace(0.05, 1, 20), []
    for seed, part in own.groupby("seed"):
        score, point = part["score"].to_numpy(), float(points[seed])
        wrong = ((score >= point) != (part["label"] == 1)).to_numpy()
        # The surest first; those equally sure are one group.
        sure, group = np.unique(-np.abs(logit(score) - logit(np.array(point))), return_inverse=True)
        each = weights[:, np.searchsorted(names, part["patient"])]
        order = np.argsort(group, kind="stable")
        first = np.searchsorted(group[order], np.arange(len(sure)))
        count, errors = (
            np.cumsum(np.add.reduceat(x[:, order], first, axis=1), axis=1)
            for x in (each, each * wrong)
        )
        found = []
        for n, missed in zip(count, errors, strict=True):
            shares = answered * n[-1]
            found.append(np.interp(shares, np.r_[0.0, n], np.r_[0.0, missed]) / shares)
        by_seed.append(np.stack(found))
    mean = np.mean(by_seed, axis=0)
    low, high = np.percentile(mean[1:], [2.5, 97.5], axis=0)
    return pd.DataFrame({"answered": answered, "error": mean[0], "low": low, "high": high})


def _weights(part: pd.DataFrame, resamples: int) -> tuple[np.ndarray, np.ndarray]:
    """Patients in order, and their weights; the first row is the part as it is."""
    names = np.unique(part["patient"])
    return names, np.vstack([np.ones(len(names)), bootstrap_weights(len(names), resamples)])


def _bins(scores: np.ndarray) -> np.ndarray:
    return np.minimum((np.asarray(scores, dtype=np.float64) * BINS).astype(int), BINS - 1)
