"""Intervals over patients: a bootstrap that takes a patient with all images, and DeLong's covariance.

An interval over patients says what other patients would give, with models and thresholds held fixed: percentiles of a
bootstrap unless DeLong is named; the same on every call. An interval over runs and patients (`two_level`) says what
other runs of the same recipe on other patients would give on average. All are 95% intervals.
"""

from functools import lru_cache

import numpy as np
from scipy.stats import norm, rankdata, t
from statsmodels.stats.proportion import proportion_confint

RESAMPLES = 2000
Z = 1.959964  # the normal quantile of a 95% interval


@lru_cache(maxsize=8)
def bootstrap_weights(patients: int, resamples: int) -> np.ndarray:
    """How often each patient is in each resample, `(resamples, patients)`; one set serves all metrics."""
    chances = np.full(patients, 1 / patients)
    weights = np.random.default_rng(0).multinomial(patients, chances, resamples).astype(np.float64)
    weights.flags.writeable = False
    return weights


def interval(resampled: np.ndarray) -> tuple[float, float]:
    """Percentile interval; resamples without a value are left out, and without any there is none."""
    known = resampled[np.isfinite(resampled)]
    if not len(known):
        return np.nan, np.nan
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def wilson_if_degenerate(
    share: float, low: float, high: float, patients: int
) -> tuple[float, float]:
    """Wilson's interval over patients for a share of 0 or 1, which no resample varies; else as given."""
    if share not in (0.0, 1.0) or not patients:
        return low, high
    low, high = proportion_confint(share * patients, patients, method="wilson")
    return float(low), float(high)


def two_level(by_run: np.ndarray, covariance: np.ndarray, second: int = 0) -> float:
    """Half width of the interval over runs and patients of a mean over runs, or of a difference of two.

    `by_run` `(k,)` are the values of two or more runs, `covariance` `(k, k)` theirs over patients; the last `second` of
    them, two or more, are those whose mean is subtracted. Runs and patients are crossed random effects: the variance of
    a mean is what the runs share through the patients, plus the runs' spread divided by k. The spread of so few runs is
    known poorly, so its part is multiplied by Student's t with k - 1 degrees of freedom, the shared part by the normal
    quantile.
    """
    first, shared, spread = len(by_run) - second, 0.0, 0.0
    for own in (slice(first), slice(first, None)) if second else (slice(None),):
        values, block = by_run[own], covariance[own, own]
        k = len(values)
        shared += (block.sum() - np.trace(block)) / (k * (k - 1))
        spread += t.ppf(0.975, k - 1) ** 2 * values.var(ddof=1) / k
    if second:
        shared -= 2 * covariance[:first, first:].mean()
    return float(np.sqrt(spread + Z**2 * max(0.0, shared)))


def share_interval(values: np.ndarray, patients: np.ndarray) -> tuple[float, float, float]:
    """Mean of one value an image in [0, 1] `(n,)`, with its interval over `patients` `(n,)`."""
    names, own = np.unique(patients, return_inverse=True)
    weights, share = bootstrap_weights(len(names), RESAMPLES)[:, own], float(np.mean(values))
    with np.errstate(invalid="ignore"):
        found = interval(weights @ np.asarray(values, dtype=np.float64) / weights.sum(axis=1))
    return share, *wilson_if_degenerate(share, *found, len(names))


def weighted_ranking(
    positive: np.ndarray, scores: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """AUC and average precision, as scikit-learn defines them, of scores in any range, each `(resamples,)`.

    Under weights `(resamples, n)`; NaN without both classes.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    ordered = weights.T[order]
    # Weight of positives and negatives from the highest score down, each `(distinct scores, resamples)`.
    true = np.cumsum(ordered * positive[order, None], axis=0)[ends]
    classified = np.cumsum(ordered, axis=0)[ends]
    false = classified - true
    # Where nothing has weight yet, no recall is gained either.
    precision = np.divide(true, classified, out=np.zeros_like(classified), where=classified > 0)
    gained, negative = np.diff(true, axis=0, prepend=0.0), np.diff(false, axis=0, prepend=0.0)
    # A negative is below all positives that come before it, and beside half of those in its tie.
    below = (negative * (true - gained / 2)).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return below / (true[-1] * false[-1]), (precision * gained).sum(axis=0) / true[-1]


def delong(
    labels: np.ndarray, scores: np.ndarray, patients: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """AUCs `(k,)` of scores `(k, n)` of the same images, and their covariance `(k, k)` over patients.

    Obuchowski 1997, so that several images of a child do not count as so many children; with one image a patient it is
    DeLong et al. 1988. NaN where a class has one patient only.
    """
    positive, negative = scores[:, labels == 1], scores[:, labels == 0]
    m, n = positive.shape[1], negative.shape[1]
    ranks = rankdata(np.concatenate([positive, negative], axis=1), axis=1)
    # Share of the negatives below each positive, and of the positives above each negative.
    over = (ranks[:, :m] - rankdata(positive, axis=1)) / n
    under = 1 - (ranks[:, m:] - rankdata(negative, axis=1)) / m
    aucs = over.mean(axis=1)
    names, own = np.unique(patients, return_inverse=True)
    sums, counts = [], []
    for shares, whose in ((over, own[labels == 1]), (under, own[labels == 0])):
        by_patient = np.zeros((len(scores), len(names)))
        np.add.at(by_patient.T, whose, (shares - aucs[:, None]).T)
        sums.append(by_patient)
        counts.append(len(np.unique(whose)))
    if min(counts) < 2:
        return aucs, np.full((len(scores), len(scores)), np.nan)
    covariance = sums[0] @ sums[0].T * counts[0] / (counts[0] - 1) / m**2
    covariance += sums[1] @ sums[1].T * counts[1] / (counts[1] - 1) / n**2
    both = sums[0] @ sums[1].T * len(names) / (len(names) - 1) / (m * n)
    return aucs, covariance + both + both.T


def delong_interval(
    labels: np.ndarray, scores: np.ndarray, patients: np.ndarray
) -> tuple[float, float, float]:
    """Mean AUC over the rows of `scores` `(k, n)`, with DeLong's interval over patients, cut at 0 and 1."""
    aucs, covariance = delong(labels, scores, patients)
    # Rounding can leave a spread of nothing just below 0.
    half = norm.ppf(0.975) * np.sqrt(np.maximum(covariance.mean(), 0.0))
    mean = float(aucs.mean())
    low, high = np.clip([mean - half, mean + half], 0.0, 1.0)
    return mean, float(low), float(high)
