"""Intervals over patients: the bootstrap that draws them with all their images, and what it cannot say."""

from functools import lru_cache

import numpy as np
from statsmodels.stats.proportion import proportion_confint

RESAMPLES = 2000


@lru_cache(maxsize=8)
def patient_draws(patients: int, resamples: int) -> np.ndarray:
    """How often each patient is drawn in each resample, `(resamples, patients)`; the same on every call."""
    chances = np.full(patients, 1 / patients)
    draws = np.random.default_rng(0).multinomial(patients, chances, resamples).astype(np.float64)
    draws.flags.writeable = False
    return draws


def interval(resampled: np.ndarray) -> tuple[float, float]:
    """Percentile interval; resamples without a value are left out, and without any there is none."""
    known = resampled[np.isfinite(resampled)]
    if not len(known):
        return np.nan, np.nan
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def unvaried(share: float, low: float, high: float, patients: int) -> tuple[float, float]:
    """Give the interval of a share; where all or none are counted, Wilson's over so many patients.

    No resample of such images varies, which is not to say that the next patient could not.
    """
    if share not in (0.0, 1.0) or not patients:
        return low, high
    low, high = proportion_confint(share * patients, patients, method="wilson")
    return float(low), float(high)


def share_interval(values: np.ndarray, patients: np.ndarray) -> tuple[float, float, float]:
    """Mean of a share an image, in [0, 1], and its 95 % interval over patients.

    Parameters
    ----------
    values
        bool or float `(n,)`.
    patients
        Whose image it is `(n,)`.

    Returns
    -------
    tuple
        Mean, lower and upper end.
    """
    names, own = np.unique(patients, return_inverse=True)
    weights, share = patient_draws(len(names), RESAMPLES)[:, own], float(np.mean(values))
    with np.errstate(invalid="ignore"):
        found = interval(weights @ np.asarray(values, dtype=np.float64) / weights.sum(axis=1))
    return share, *unvaried(share, *found, len(names))
