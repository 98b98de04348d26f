"""Calibration, decision curves, prediction sets and selective prediction.

A `part` is the scores of one recipe, protocol and split. Values are means over its runs.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import statsmodels.api as sm
from scipy.optimize import brentq, minimize_scalar
from scipy.special import expit
from scipy.stats import norm
from sklearn.isotonic import IsotonicRegression

from xraylib.errors import InvalidDataError
from xraylib.evaluation import metrics
from xraylib.evaluation.resampling import (
    bootstrap_weights,
    half_width,
    interval,
    over,
    resampled_covariance,
    weights_with_original,
    wilson_if_degenerate,
)
from xraylib.evaluation.scores import log_odds
from xraylib.training.thresholds import thresholds

BINS = 10
KINDS = ("normal", "pneumonia")
# A recalibration takes and gives log odds.
Recalibration = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Line:
    """A coefficient of one run's calibration line, and each patient's influence `(patients,)`.

    The sum of squared influences is the coefficient's variance over patients.
    """

    value: float
    influence: np.ndarray


def slope_intercept(
    labels: np.ndarray, scores: np.ndarray, patients: np.ndarray
) -> dict[str, Line]:
    """Fit the calibration slope and intercept: logistic regressions of labels on log odds.

    The slope is 1 for a calibrated score and below 1 for a score that is too extreme. The intercept
    is that of a model whose slope is fixed at 1 (calibration in the large). It is 0 when the mean
    score is right and below 0 when scores are too high. Cox 1958; Van Calster et al. 2019.

    Parameters
    ----------
    labels, scores : (n,) arrays
    patients : (n,) array
        Influences are in the order of its sorted names.

    Returns
    -------
    `slope` and `intercept`. The slope is NaN where all scores are equal or where a threshold
    separates the classes.
    """
    odds = log_odds(scores)
    ones = np.ones((len(odds), 1))
    with_offset = sm.GLM(labels, ones, family=sm.families.Binomial(), offset=odds)
    # The mean error falls with the intercept. Its root is found where statsmodels' steps diverge,
    # which they do for scores of 0 and 1.
    root = brentq(lambda intercept: (labels - expit(odds + intercept)).sum(), -60, 60, xtol=1e-12)
    intercept = _coefficient(with_offset, np.array([root]), patients)
    if np.ptp(odds) < 1e-6 or _separated(labels, odds):
        slope = Line(np.nan, np.full(len(intercept.influence), np.nan))
    else:
        model = sm.GLM(labels, np.column_stack([odds, ones]), family=sm.families.Binomial())
        slope = _coefficient(model, model.fit(tol=1e-12).params, patients)
    return {"slope": slope, "intercept": intercept}


def _coefficient(model: sm.GLM, fitted: np.ndarray, patients: np.ndarray) -> Line:
    """The coefficient of a fitted model's first column."""
    by_image = model.score_obs(fitted) @ np.linalg.inv(-model.hessian(fitted))
    by_patient = pd.DataFrame(by_image).groupby(np.asarray(patients)).sum()[0].to_numpy()
    # The small-sample factor of statsmodels' cluster-robust covariance.
    images = len(by_image)
    count = len(by_patient)
    factor = count / max(1, count - 1) * (images - 1) / (images - len(fitted))
    return Line(float(fitted[0]), by_patient * np.sqrt(factor))


def _separated(labels: np.ndarray, odds: np.ndarray) -> bool:
    """Whether a threshold separates the classes, so that no slope is the best."""
    positive = odds[labels == 1]
    negative = odds[labels == 0]
    return positive.min() >= negative.max() or negative.min() >= positive.max()


def expected_error(
    labels: np.ndarray, scores: np.ndarray, weights: np.ndarray, *, debiased: bool = True
) -> np.ndarray:
    """Expected calibration error (ECE): mean distance of score and share over `BINS` equal bins.

    Chance alone moves the share of each bin, so the distance is too large on average. `debiased`
    subtracts from each bin what is expected from a share with binomial variance: E|d + e| - |d|,
    where d is the distance and e is normal. This is the normal debiasing of Kumar, Liang and Ma
    2019 (arXiv 1909.10155), in closed form. It takes off about half of what chance adds for a
    calibrated score and nearly all for others, and it can leave a small number below 0.

    Parameters
    ----------
    labels, scores : (n,) arrays
    weights : (resamples, n) array

    Returns
    -------
    (resamples,) array
    """
    member = (_bins(scores)[:, None] == np.arange(BINS)).astype(np.float64)
    scores = np.asarray(scores, dtype=np.float64)
    images = weights @ member
    excess = weights @ (member * (scores - labels)[:, None])
    distance = np.abs(excess)
    if debiased:
        share = weights @ (member * np.asarray(labels)[:, None]) / np.maximum(images, 1)
        # Of sums over a bin, not of means.
        spread = np.sqrt(images * share * (1 - share))
        distance = 2 * distance - _folded_normal_mean(distance, spread)
    return distance.sum(axis=1) / weights.sum(axis=1)


def _folded_normal_mean(mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Expected absolute value of a normal variable; `mean` is at least 0."""
    ratio = np.divide(mean, spread, out=np.full_like(mean, np.inf), where=spread > 0)
    known = np.where(spread > 0, ratio, 0.0)
    folded = 2 * spread * norm.pdf(known) + mean * (1 - 2 * norm.cdf(-known))
    return np.where(spread > 0, folded, mean)


def summary(part: pd.DataFrame, *, resamples: int = 1000) -> pd.DataFrame:
    """Summarise the calibration of a part.

    Returns
    -------
    One row for each of `brier`, `slope`, `intercept` and `ece` (index), with the columns
        value : mean over runs; the ECE is debiased (`expected_error`).
        low, high : interval over runs and patients, or over patients where there are fewer than
            `resampling.MIN_RUNS` runs. Those of slope and intercept are Wald intervals with a
            cluster-robust covariance. That of the ECE is symmetric around the value and cut at 0;
            for a perfectly calibrated score it lies above the truth about one time in five.
        over : what the interval is over.
    NaN where a run's scores could not be recalibrated.
    """
    runs = part["seed"].nunique()
    names = ["brier", "slope", "intercept", "ece"]
    table = pd.DataFrame(np.nan, names, ["value", "low", "high"]).assign(over=over(runs))
    if part["score"].isna().any():
        return table
    split = part["split"].iloc[0]
    evaluated = metrics.evaluate(part, split=split, rule=0.5, resamples=resamples, ranking=False)
    table.loc["brier", ["value", "low", "high"]] = evaluated.loc["brier", ["value", "low", "high"]]
    patients = np.unique(part["patient"])
    lines = []
    for _, run in part.groupby("seed"):
        own_patients = run["patient"].to_numpy()
        line = slope_intercept(run["label"].to_numpy(), run["score"].to_numpy(), own_patients)
        lines.append((np.unique(own_patients), line))
    for name in ("slope", "intercept"):
        influence = np.zeros((runs, len(patients)))
        for row, (own_patients, line) in enumerate(lines):
            influence[row, np.searchsorted(patients, own_patients)] = line[name].influence
        values = np.array([line[name].value for _, line in lines])
        table.loc[name, ["value", "low", "high"]] = _around(values, influence @ influence.T)
    errors = _resampled_errors(part, resamples)
    table.loc["ece", ["value", "low", "high"]] = np.maximum(0.0, _around_resampled(errors))
    return table


def _around(by_run: np.ndarray, covariance: np.ndarray) -> tuple[float, float, float]:
    """Mean over runs with a symmetric interval; NaN without a finite mean."""
    mean = float(by_run.mean())
    if not np.isfinite(mean):
        return np.nan, np.nan, np.nan
    half = half_width(by_run, covariance)
    return mean, mean - half, mean + half


def _around_resampled(values: np.ndarray) -> tuple[float, float, float]:
    """The same from `(runs, 1 + resamples)` values of which the first column is not resampled."""
    if not np.isfinite(values).all():
        return np.nan, np.nan, np.nan
    return _around(values[:, 0], resampled_covariance(values[:, 1:]))


def _resampled_errors(part: pd.DataFrame, resamples: int) -> np.ndarray:
    """ECE of each run, `(runs, 1 + resamples)`; the first column is not resampled."""
    names, weights = weights_with_original(part["patient"].to_numpy(), resamples)
    rows = []
    for _, run in part.groupby("seed"):
        own = weights[:, np.searchsorted(names, run["patient"])]
        rows.append(expected_error(run["label"].to_numpy(), run["score"].to_numpy(), own))
    return np.stack(rows)


def _fit_temperature(labels: np.ndarray, odds: np.ndarray) -> Recalibration | None:
    """Divide log odds by the temperature that fits best (Guo et al. 2017).

    None where the classes are separated, because the best temperature is then 0.
    """
    if _separated(labels, odds):
        return None
    signed = np.where(labels == 1, odds, -odds)

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0, -signed / np.exp(log_temperature)).mean())

    options = {"xatol": 1e-10}
    best = minimize_scalar(loss, bounds=(-10, 10), method="bounded", options=options)
    temperature = np.exp(best.x)
    return lambda new: new / temperature


def _fit_platt(labels: np.ndarray, odds: np.ndarray) -> Recalibration:
    """Fit a line through the log odds, with Platt's targets just inside 0 and 1 (Platt 1999)."""
    positives = labels.sum()
    negatives = len(labels) - positives
    targets = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    design = sm.add_constant(odds, has_constant="add")
    with warnings.catch_warnings():
        # Where two scores only are left, the line meets the targets exactly, which is no harm.
        warnings.simplefilter("ignore")
        fitted = sm.GLM(targets, design, family=sm.families.Binomial()).fit(tol=1e-12)
    constant, slope = fitted.params
    return lambda new: slope * new + constant


def _fit_isotonic(labels: np.ndarray, odds: np.ndarray) -> Recalibration:
    """Fit the monotone steps that are closest to the labels (Zadrozny and Elkan 2002)."""
    steps = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(odds, labels)

    def recalibrated(new: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            share = steps.predict(new)
            return np.log(share) - np.log1p(-share)

    return recalibrated


METHODS: dict[str, Callable[[np.ndarray, np.ndarray], Recalibration | None]] = {
    "temperature": _fit_temperature,
    "platt": _fit_platt,
    "isotonic": _fit_isotonic,
}


def recalibrate(
    scores: pd.DataFrame,
    method: str,
    *,
    fitted_on: tuple[str, ...] = ("val",),
    prevalence: float | None = None,
) -> pd.DataFrame:
    """Recalibrate every score on the validation of its own run.

    Parameters
    ----------
    scores : DataFrame
        A scores table with rows of the splits in `fitted_on`.
    method : str
        A key of `METHODS`.
    fitted_on : tuple of str
        The splits to fit on, such as validation together with re-framed validation ("swapped").
    prevalence : float, optional
        Prior correction: the odds are multiplied so that they hold at this prevalence in (0, 1),
        and no longer at that of the images of the fit (Saerens et al. 2002).

    Returns
    -------
    The same table with new scores. They are NaN for a temperature where validation is perfectly
    separated, because then no temperature is the best.
    """
    recalibrated = []
    table = scores.reset_index(drop=True)
    for _, run in table.groupby(["recipe", "protocol", "seed"], sort=False):
        val = run[run["split"].isin(fitted_on)]
        labels = val["label"].to_numpy()
        recalibration = METHODS[method](labels, log_odds(val["score"].to_numpy()))
        if recalibration is None:
            recalibrated.append(run.assign(score=np.nan))
            continue
        odds = recalibration(log_odds(run["score"].to_numpy()))
        if prevalence is not None:
            odds = odds + log_odds(prevalence) - log_odds(labels.mean())
        recalibrated.append(run.assign(score=expit(odds)))
    return pd.concat(recalibrated).sort_index().set_index(scores.index)


def compare_methods(
    scores: pd.DataFrame, prevalence: float, *, resamples: int = 1000
) -> pd.DataFrame:
    """Compare recalibration methods on the same test images, each with its difference from raw.

    Parameters
    ----------
    scores : DataFrame
        Scores of one recipe and protocol with the splits `val`, `test` and, for the method fitted
        on re-framed validation too, `swapped`.
    prevalence : float
        Stated share of pneumonias in (0, 1) to which "prior-corrected" moves Platt's scores.
    resamples : int

    Returns
    -------
    One row per method with the columns
        recipe, method : `raw`, `temperature`, `platt`, `platt, val and swapped`, `isotonic`,
            `prior-corrected`.
        runs, n : number of runs and of test images.
        ece, ece_low, ece_high : debiased expected calibration error (`expected_error`).
        brier, brier_low, brier_high : Brier score.
        ece_difference, brier_difference, each with _low and _high : method minus raw, paired by run
            and image. Above 0 the method is worse than leaving the score alone.
        over : what the intervals are over.
    Intervals are symmetric, from a bootstrap over patients that all methods share and the spread
    of the runs (`resampling.half_width`). NaN where a method has no answer for a run.
    """
    raw = _resampled_losses(scores, resamples)
    rows = []
    for method, table in _variants(scores, prevalence).items():
        test = table[table["split"] == "test"]
        runs = test["seed"].nunique()
        row: dict[str, object] = {
            "recipe": test["recipe"].iloc[0],
            "method": method,
            "runs": runs,
            "n": test["image_id"].nunique(),
        }
        for name, losses in _resampled_losses(table, resamples).items():
            row |= _columns(name, np.maximum(0.0, _around_resampled(losses)))
            row |= _columns(f"{name}_difference", _around_resampled(losses - raw[name]))
        rows.append(row | {"over": over(runs)})
    return pd.DataFrame(rows)


def _variants(scores: pd.DataFrame, prevalence: float) -> dict[str, pd.DataFrame]:
    """The scores table by recalibration method."""
    variants = {
        "raw": scores,
        "temperature": recalibrate(scores, "temperature"),
        "platt": recalibrate(scores, "platt"),
        "isotonic": recalibrate(scores, "isotonic"),
        "prior-corrected": recalibrate(scores, "platt", prevalence=prevalence),
    }
    if (scores["split"] == "swapped").any():
        both = recalibrate(scores, "platt", fitted_on=("val", "swapped"))
        variants["platt, val and swapped"] = both
    return variants


def _columns(name: str, values: Sequence[float] | np.ndarray) -> dict[str, object]:
    """Value, low and high as three columns."""
    value, low, high = values
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def _resampled_losses(scores: pd.DataFrame, resamples: int) -> dict[str, np.ndarray]:
    """ECE and Brier score on the test of each run, `(runs, 1 + resamples)`, first not resampled."""
    test = scores[scores["split"] == "test"]
    if test["score"].isna().any():
        nothing = np.full((test["seed"].nunique(), 1 + resamples), np.nan)
        return {"ece": nothing, "brier": nothing}
    runs = metrics.resample(test, rule=0.5, resamples=resamples, ranking=False)
    brier = np.column_stack([runs.values["brier"], runs.resampled["brier"]])
    return {"ece": _resampled_errors(test, resamples), "brier": brier}


def reliability(part: pd.DataFrame, *, resamples: int = 1000) -> pd.DataFrame:
    """Observed share of pneumonia by score in `BINS` equal bins, all runs together.

    Returns
    -------
    One row per bin that holds an image, with the columns
        score : mean score in the bin.
        share, low, high : share of pneumonias with its interval over patients.
        images : number of images per run.
    """
    labels = part["label"].to_numpy()
    scores = part["score"].to_numpy()
    names, owner = np.unique(part["patient"], return_inverse=True)
    weights = bootstrap_weights(len(names), resamples)[:, owner]
    bins = _bins(scores)
    rows = []
    for number in np.unique(bins):
        in_bin = bins == number
        with np.errstate(invalid="ignore"):
            shares = weights[:, in_bin] @ labels[in_bin] / weights[:, in_bin].sum(axis=1)
        share = float(labels[in_bin].mean())
        patients = len(np.unique(owner[in_bin]))
        low, high = wilson_if_degenerate(share, *interval(shares), patients)
        rows.append(
            {
                "score": scores[in_bin].mean(),
                "share": share,
                "low": low,
                "high": high,
                "images": in_bin.sum() / part["seed"].nunique(),
            }
        )
    return pd.DataFrame(rows)


def decision_curve(
    part: pd.DataFrame, prevalence: float | None = None, base: float | None = None
) -> pd.DataFrame:
    """Net benefit of acting on a score at threshold probabilities 0.05 to 0.95.

    Scores are taken for probabilities (Vickers and Elkin 2006).

    Parameters
    ----------
    part : DataFrame
    prevalence : float, optional
        A stated prevalence in (0, 1), to which Bayes' rule moves the scores' odds.
    base : float, optional
        The prevalence at which the scores are probabilities; by default that of these images.

    Returns
    -------
    One row per threshold probability with the columns
        cut : the threshold probability.
        all : net benefit of treating everybody; that of treating nobody is 0.
        benefit, low, high : net benefit of the score with its interval over patients.
        gain, gain_low, gain_high : benefit minus the better of `all` and 0, paired by patient.
    """
    cuts = np.linspace(0.05, 0.95, 19)
    names, weights = weights_with_original(part["patient"].to_numpy(), 500)
    base = base or part["label"].mean()
    shift = 0.0 if prevalence is None else log_odds(prevalence) - log_odds(base)
    by_run = []
    for _, run in part.groupby("seed"):
        own = weights[:, np.searchsorted(names, run["patient"])]
        positive = run["label"].to_numpy() == 1
        classified = log_odds(run["score"].to_numpy())[:, None] + shift >= log_odds(cuts)
        positives = (own @ positive)[:, None]
        negatives = (own @ ~positive)[:, None]
        true_positives = own @ (classified & positive[:, None])
        false_positives = own @ (classified & ~positive[:, None])
        share = positives / (positives + negatives) if prevalence is None else prevalence
        harm = cuts / (1 - cuts)
        treat_all = share - (1 - share) * harm
        costs = (1 - share) * harm * false_positives / negatives
        by_run.append(share * true_positives / positives - costs)
    benefit = np.mean(by_run, axis=0)
    everybody = np.atleast_2d(treat_all)
    # Which of the two is the better is decided once, without resampling.
    gain = benefit - np.where(everybody[0] > 0, everybody, 0.0)
    table = pd.DataFrame({"cut": cuts, "all": everybody[0], "benefit": benefit[0]})
    table["low"], table["high"] = np.percentile(benefit[1:], [2.5, 97.5], axis=0)
    table["gain"] = gain[0]
    table["gain_low"], table["gain_high"] = np.percentile(gain[1:], [2.5, 97.5], axis=0)
    return table


def nonconformity(scores: pd.DataFrame, label: int) -> np.ndarray:
    """How badly each image fits a class: 1 - P(label), `(n,)`."""
    p_pneumonia = scores["score"].to_numpy(dtype=np.float64)
    return 1 - p_pneumonia if label == 1 else p_pneumonia


def prediction_sets(scores: pd.DataFrame, *, coverage: float = 0.9) -> pd.DataFrame:
    """Find the set of classes that cannot be ruled out for each image.

    Split-conformal prediction per class (Mondrian), calibrated on the validation of each run (Vovk
    et al. 2005). It promises that of each class a share of `coverage` has it in the set, for images
    like those of validation.

    Parameters
    ----------
    scores : DataFrame
        Of one recipe and protocol.
    coverage : float

    Returns
    -------
    The rows that are neither `val` nor `swapped`, with the bool columns `normal` and `pneumonia`.

    Raises
    ------
    InvalidDataError
        A run has no scores of validation.
    """
    parts = []
    for seed, run in scores.groupby("seed"):
        val = run[run["split"] == "val"]
        rest = run[~run["split"].isin(["val", "swapped"])]
        if val.empty:
            raise InvalidDataError(
                f"seed {seed} has no val scores to calibrate on. Fix: train it again."
            )
        sets = {}
        for label, kind in enumerate(KINDS):
            calibration = np.sort(nonconformity(val[val["label"] == label], label))
            fitting_better = np.searchsorted(calibration, nonconformity(rest, label))
            # The new image itself is one of those that fit as badly or worse.
            fitting_as_badly = len(calibration) - fitting_better + 1
            sets[kind] = fitting_as_badly / (len(calibration) + 1) >= 1 - coverage
        parts.append(rest.assign(**sets))
    return pd.concat(parts)


def coverage(sets: pd.DataFrame) -> pd.DataFrame:
    """Measure how often the sets of `prediction_sets` hold the true class, and their size.

    Returns
    -------
    One row per split and class with the columns
        split, kind : the class is `normal`, `pneumonia` or `all`.
        images : number of different images.
        covered, low, high : share of sets that hold the true class; see `metrics.share`.
        empty, single, both : shares of sets of no, one and two classes, over all runs.
        over : what the interval is over.
    """
    covered = np.where(sets["label"] == 1, sets["pneumonia"], sets["normal"])
    size = sets["normal"].astype(int) + sets["pneumonia"]
    sets = sets.assign(covered=covered, size=size)
    rows = []
    for split, of_split in sets.groupby("split"):
        for kind in (*KINDS, "all"):
            part = of_split
            if kind != "all":
                part = of_split[of_split["label"] == KINDS.index(kind)]
            if part.empty:
                continue
            share = metrics.share(part, "covered")
            rows.append(
                {
                    "split": split,
                    "kind": kind,
                    "images": part["image_id"].nunique(),
                    "covered": share["value"],
                    "low": share["low"],
                    "high": share["high"],
                    "empty": (part["size"] == 0).mean(),
                    "single": (part["size"] == 1).mean(),
                    "both": (part["size"] == 2).mean(),
                    "over": over(part["seed"].nunique()),
                }
            )
    return pd.DataFrame(rows)


def risk_coverage(scores: pd.DataFrame) -> pd.DataFrame:
    """Error among the test images that are answered when the least confident are left out first.

    Confidence is the distance of the log odds of a score from those of the run's threshold. Images
    of equal confidence share their errors.

    Parameters
    ----------
    scores : DataFrame
        Of one recipe and protocol, from `scores.load`.

    Returns
    -------
    One row per share answered, with the columns
        answered : 0.05 to 1.
        error, low, high : mean over runs with its interval over patients.
    """
    threshold_of = thresholds(scores, "frozen")
    test = scores[scores["split"] == "test"]
    names, weights = weights_with_original(test["patient"].to_numpy(), 500)
    answered = np.linspace(0.05, 1, 20)
    by_run = []
    for seed, run in test.groupby("seed"):
        score = run["score"].to_numpy()
        threshold = float(threshold_of[seed])
        wrong = ((score >= threshold) != (run["label"] == 1)).to_numpy()
        confidence = np.abs(log_odds(score) - log_odds(threshold))
        own = weights[:, np.searchsorted(names, run["patient"])]
        images = _cumulate_by_rank(own, -confidence)
        errors = _cumulate_by_rank(own * wrong, -confidence)
        curves = [_error_curve(*counts, answered) for counts in zip(images, errors, strict=True)]
        by_run.append(np.stack(curves))
    mean = np.mean(by_run, axis=0)
    low, high = np.percentile(mean[1:], [2.5, 97.5], axis=0)
    return pd.DataFrame({"answered": answered, "error": mean[0], "low": low, "high": high})


def _cumulate_by_rank(values: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """Cumulate values `(resamples, n)` over the distinct ranks `(n,)` from the lowest one up."""
    order = np.argsort(rank, kind="stable")
    starts = np.flatnonzero(np.diff(rank[order], prepend=-np.inf))
    return np.cumsum(np.add.reduceat(values[:, order], starts, axis=1), axis=1)


def _error_curve(images: np.ndarray, errors: np.ndarray, answered: np.ndarray) -> np.ndarray:
    """Share of errors among each answered share, from cumulated images and errors."""
    counts = answered * images[-1]
    return np.interp(counts, np.append(0.0, images), np.append(0.0, errors)) / counts


def _bins(scores: np.ndarray) -> np.ndarray:
    """Number of each score's bin, 0 to `BINS` - 1."""
    return np.minimum((np.asarray(scores, dtype=np.float64) * BINS).astype(int), BINS - 1)
