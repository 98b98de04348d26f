"""How well scores rank: AUC and average precision under many weightings, and DeLong's covariance.

DeLong's covariance is taken over patients (Obuchowski 1997), so that several images of one child are not
counted as so many children; with one image a patient it is DeLong's own (1988).
"""

import numpy as np
from scipy.stats import norm, rankdata


def weighted_auc(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted Mann-Whitney statistic, ties counted half.

    Parameters
    ----------
    positive
        bool `(n,)`.
    scores
        Higher for the positive `(n,)`; any range.
    weights
        Non-negative `(resamples, n)`.

    Returns
    -------
    numpy.ndarray
        `(resamples,)` in [0, 1]; NaN where a class has no weight.
    """
    return _auc(*_cumulated(positive, scores, weights))


def weighted_ranking(
    positive: np.ndarray, scores: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`weighted_auc` and, in the same pass, the mean precision over the steps of recall.

    Parameters and results as those of `weighted_auc`; the average precision, as scikit-learn's
    `average_precision_score` defines it, is NaN where no positive has weight.
    """
    cumulated = _cumulated(positive, scores, weights)
    return _auc(*cumulated), _average_precision(*cumulated)


def _cumulated(
    positive: np.ndarray, scores: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weight of the ill and of the well from the highest score down, `(distinct scores, resamples)`."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    drawn = weights.T[order]
    of_ill = np.cumsum(drawn * positive[order, None], axis=0)[ends]
    return of_ill, np.cumsum(drawn, axis=0)[ends] - of_ill


def _auc(of_ill: np.ndarray, of_well: np.ndarray) -> np.ndarray:
    # A healthy one is below all the ill that come before it, and beside half of those in its tie.
    well = np.diff(of_well, axis=0, prepend=0.0)
    below = (well * (of_ill - np.diff(of_ill, axis=0, prepend=0.0) / 2)).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return below / (of_ill[-1] * of_well[-1])


def _average_precision(of_ill: np.ndarray, of_well: np.ndarray) -> np.ndarray:
    called = of_ill + of_well
    # Where nothing has been drawn yet, no recall is gained either.
    precision = np.divide(of_ill, called, out=np.zeros_like(called), where=called > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (precision * np.diff(of_ill, axis=0, prepend=0.0)).sum(axis=0) / of_ill[-1]


def delong(labels: np.ndarray, scores: np.ndarray, patients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUC of several scores of the same images, and the covariance of these AUCs over patients.

    Parameters
    ----------
    labels
        0/1 `(n,)`, both present.
    scores
        `(k, n)`, one row a classifier, higher for the ill.
    patients
        Whose image it is `(n,)`.

    Returns
    -------
    tuple
        AUCs `(k,)` and their covariance `(k, k)`; NaN where a class has one patient only.
    """
    ill, well = scores[:, labels == 1], scores[:, labels == 0]
    m, n = ill.shape[1], well.shape[1]
    ranks = rankdata(np.concatenate([ill, well], axis=1), axis=1)
    # Share of the well below each ill image, and of the ill above each well one.
    over = (ranks[:, :m] - rankdata(ill, axis=1)) / n
    under = 1 - (ranks[:, m:] - rankdata(well, axis=1)) / m
    aucs = over.mean(axis=1)
    names, own = np.unique(patients, return_inverse=True)
    sums = []
    for side, of in ((over, own[labels == 1]), (under, own[labels == 0])):
        by_patient = np.zeros((len(scores), len(names)))
        np.add.at(by_patient.T, of, (side - aucs[:, None]).T)
        sums.append((by_patient, len(np.unique(of))))
    (of_ill, k_ill), (of_well, k_well) = sums
    if min(k_ill, k_well) < 2:
        return aucs, np.full((len(scores), len(scores)), np.nan)
    covariance = of_ill @ of_ill.T * k_ill / (k_ill - 1) / m**2
    covariance += of_well @ of_well.T * k_well / (k_well - 1) / n**2
    both = of_ill @ of_well.T * len(names) / (len(names) - 1) / (m * n)
    return aucs, covariance + both + both.T


def delong_interval(
    labels: np.ndarray, scores: np.ndarray, patients: np.ndarray, level: float = 0.95
) -> tuple[float, float, float]:
    """AUC averaged over the rows of `scores`, with DeLong's interval, cut at 0 and 1.

    Parameters as those of `delong`; `level` is the interval's coverage.

    Returns
    -------
    tuple
        AUC, lower and upper end.
    """
    aucs, covariance = delong(labels, scores, patients)
    # Rounding can leave a spread of nothing just below 0.
    half = norm.ppf((1 + level) / 2) * np.sqrt(np.maximum(covariance.mean(), 0.0))
    middle = float(aucs.mean())
    low, high = np.clip([middle - half, middle + half], 0.0, 1.0)
    return middle, float(low), float(high)
