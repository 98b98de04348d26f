"""95% intervals over patients, and over training runs and patients.

An interval over patients tells what other patients would give. Models and thresholds are held
fixed. It is a percentile interval of a bootstrap that draws a patient with all images, or DeLong's
interval where the name says so. Both are the same on every call.

An interval over runs and patients tells what the mean over other runs of the same recipe would be
on other patients. See `two_level`.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.stats import norm, rankdata, t
from statsmodels.stats.proportion import proportion_confint

RESAMPLES = 2000
# The normal quantile of every 95% interval.
Z = float(norm.ppf(0.975))
# The spread of fewer runs is not known well enough: their intervals are over patients only.
MIN_RUNS = 3


def student_quantile(runs: int) -> float:
    """Student's quantile of a 95% interval of a mean over so many runs."""
    return float(t.ppf(0.975, runs - 1))


def over(runs: int) -> str:
    """What an interval of a mean over so many runs is over, as tables say it in a column `over`."""
    return "runs and patients" if runs >= MIN_RUNS else "patients"


@lru_cache(maxsize=8)
def bootstrap_weights(patients: int, resamples: int) -> np.ndarray:
    """Count how often each resample draws each patient, `(resamples, patients)`.

    Metrics that are compared share these weights, so that their differences are paired.
    """
    chances = np.full(patients, 1 / patients)
    weights = np.random.default_rng(0).multinomial(patients, chances, resamples).astype(np.float64)
    weights.flags.writeable = False
    return weights


def patient_weights(patients: np.ndarray, resamples: int) -> np.ndarray:
    """Weigh images by how often their patient is drawn, `(1 + resamples, images)`.

    Row 0 is 1 for every image, so that what is computed under all weights at once begins with the
    value itself. Images of the same patients have the same weights on every call.
    """
    names, owner = np.unique(patients, return_inverse=True)
    drawn = bootstrap_weights(len(names), resamples)
    return np.vstack([np.ones(len(names)), drawn])[:, owner]


def interval(resampled: np.ndarray) -> tuple[float, float]:
    """Return the percentile interval of the finite resampled values, or NaN if there are none."""
    finite = resampled[np.isfinite(resampled)]
    if not len(finite):
        return np.nan, np.nan
    low, high = np.percentile(finite, [2.5, 97.5])
    return float(low), float(high)


def wilson_if_degenerate(
    share: float, low: float, high: float, patients: int
) -> tuple[float, float]:
    """Replace the interval of a share of 0 or 1, which no resample varies, by Wilson's.

    Wilson's interval takes each patient as one observation.
    """
    if share not in (0.0, 1.0) or not patients:
        return low, high
    low, high = proportion_confint(share * patients, patients, method="wilson")
    return float(low), float(high)


def two_level(by_run: np.ndarray, covariance: np.ndarray, second: int = 0) -> float:
    """Half width of the interval over runs and patients of a mean over runs, or of a difference.

    Runs and patients are crossed random effects. The variance of a mean is the part that the runs
    share through the patients, plus the spread of the runs divided by their number k. The spread of
    few runs is known poorly, so its part is multiplied by the square of Student's t with k - 1
    degrees of freedom. The shared part is multiplied by the square of the normal quantile.

    Parameters
    ----------
    by_run : (k,) array
        One value per run.
    covariance : (k, k) array
        Covariance of these values over patients.
    second : int
        How many of the last runs belong to the mean that is subtracted; 0 for a single mean. Each
        mean needs two runs or more.
    """
    first = len(by_run) - second
    groups = [slice(0, first), slice(first, None)] if second else [slice(0, first)]
    shared = 0.0
    spread = 0.0
    for group in groups:
        values = by_run[group]
        block = covariance[group, group]
        k = len(values)
        shared += (block.sum() - np.trace(block)) / (k * (k - 1))
        spread += student_quantile(k) ** 2 * values.var(ddof=1) / k
    if second:
        shared -= 2 * covariance[:first, first:].mean()
    return float(np.sqrt(spread + Z**2 * max(0.0, shared)))


class Mean(NamedTuple):
    """A mean over runs, or a difference of two: the value with its 95% interval.

    `over` says what the interval is over (`over`), and `p` is the two-sided p of no difference,
    which belongs to this interval.
    """

    value: float
    low: float
    high: float
    over: str
    p: float


def mean_over_runs(by_run: np.ndarray, covariance: np.ndarray, second: int = 0) -> Mean:
    """Mean of one value per run, or the difference of two such means, with its interval.

    The interval is over runs and patients where each mean is over `MIN_RUNS` or more runs, and
    otherwise over patients. It is never narrower than over patients.

    Parameters
    ----------
    by_run, covariance, second
        As in `two_level`; the covariance of one run may be a number.
    """
    covariance = np.atleast_2d(covariance)
    first = len(by_run) - second
    fewest = min(first, second or first)
    contrast = np.full(len(by_run), 1 / first)
    contrast[first:] = -1 / max(second, 1)
    value = float(contrast @ by_run)
    # Rounding can leave a variance of zero just below it; it is NaN where a class has one patient.
    half = Z * float(np.sqrt(np.maximum(0.0, contrast @ covariance @ contrast)))
    if fewest >= MIN_RUNS:
        half = max(half, two_level(by_run, covariance, second))
    return Mean(value, value - half, value + half, over(fewest), _p_value(value, half))


def _p_value(value: float, half: float) -> float:
    """Two-sided p of a value whose 95% interval has this half width."""
    # What rounding leaves of two equal recipes is no difference.
    if half <= 1e-9:
        return float(abs(value) < 1e-9)
    return float(2 * norm.sf(Z * abs(value) / half))


def jackknife(without_one: np.ndarray) -> np.ndarray:
    """Half widths over runs `(m,)`, from m values each computed without one of k runs, `(k, m)`.

    They are 0 for fewer than `MIN_RUNS` runs.
    """
    runs = len(without_one)
    if runs < MIN_RUNS:
        return np.zeros(without_one.shape[1])
    return student_quantile(runs) * np.sqrt((runs - 1) * without_one.var(axis=0))


def share_interval(values: np.ndarray, patients: np.ndarray) -> tuple[float, float, float]:
    """Mean of one value in [0, 1] per image `(n,)`, with its interval over `patients` `(n,)`."""
    weights = patient_weights(patients, RESAMPLES)
    # No patient is drawn where there is none.
    with np.errstate(invalid="ignore"):
        shares = weights @ np.asarray(values, dtype=np.float64) / weights.sum(axis=1)
    low, high = interval(shares[1:])
    share = float(shares[0])
    low, high = wilson_if_degenerate(share, low, high, len(np.unique(patients)))
    return share, low, high


def weighted_ranking(
    positive: np.ndarray, scores: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Compute AUC and average precision under many weights at once, as scikit-learn defines them.

    Parameters
    ----------
    positive : (n,) bool array
    scores : (n,) array
        In any range.
    weights : (resamples, n) array

    Returns
    -------
    AUC and average precision, each `(resamples,)`; NaN where a class has no weight.
    """
    order = np.argsort(-scores, kind="stable")
    # The last image of each group of equal scores.
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    ordered = weights.T[order]
    # Weight of positives and negatives from the highest score down, (distinct scores, resamples).
    true = np.cumsum(ordered * positive[order, None], axis=0)[ends]
    classified = np.cumsum(ordered, axis=0)[ends]
    false = classified - true
    # Where nothing has weight yet, no recall is gained either.
    precision = np.divide(true, classified, out=np.zeros_like(classified), where=classified > 0)
    gained = np.diff(true, axis=0, prepend=0.0)
    negative = np.diff(false, axis=0, prepend=0.0)
    # A negative ranks below all positives with higher scores, and ties with half of its group's.
    below = (negative * (true - gained / 2)).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        auc = below / (true[-1] * false[-1])
        average_precision = (precision * gained).sum(axis=0) / true[-1]
    return auc, average_precision


def delong(
    labels: np.ndarray, scores: np.ndarray, patients: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the AUCs of several scores of the same images, and their covariance over patients.

    Obuchowski 1997, which counts several images of a patient as one patient. With one image per
    patient it is DeLong et al. 1988.

    Parameters
    ----------
    labels, patients : (n,) arrays
    scores : (k, n) array

    Returns
    -------
    AUCs `(k,)` and their covariance `(k, k)`, which is NaN where a class has one patient only.
    """
    positive = scores[:, labels == 1]
    negative = scores[:, labels == 0]
    m = positive.shape[1]
    n = negative.shape[1]
    ranks = rankdata(np.concatenate([positive, negative], axis=1), axis=1)
    # Share of the negatives below each positive, and of the positives above each negative.
    share_below = (ranks[:, :m] - rankdata(positive, axis=1)) / n
    share_above = 1 - (ranks[:, m:] - rankdata(negative, axis=1)) / m
    aucs = share_below.mean(axis=1)
    names, owner = np.unique(patients, return_inverse=True)
    positive_owner = owner[labels == 1]
    negative_owner = owner[labels == 0]
    of_positives = _sum_by_patient(share_below - aucs[:, None], positive_owner, len(names))
    of_negatives = _sum_by_patient(share_above - aucs[:, None], negative_owner, len(names))
    with_positives = len(np.unique(positive_owner))
    with_negatives = len(np.unique(negative_owner))
    if min(with_positives, with_negatives) < 2:
        return aucs, np.full((len(scores), len(scores)), np.nan)
    covariance = of_positives @ of_positives.T * with_positives / (with_positives - 1) / m**2
    covariance += of_negatives @ of_negatives.T * with_negatives / (with_negatives - 1) / n**2
    mixed = of_positives @ of_negatives.T * len(names) / (len(names) - 1) / (m * n)
    return aucs, covariance + mixed + mixed.T


def _sum_by_patient(values: np.ndarray, owner: np.ndarray, patients: int) -> np.ndarray:
    """Sum values of images `(k, n)` by the number of each image's patient, `(k, patients)`."""
    sums = np.zeros((len(values), patients))
    np.add.at(sums.T, owner, values.T)
    return sums
