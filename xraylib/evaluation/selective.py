"""When not to answer: prediction sets of a promised coverage, confidence, images unlike those trained on."""

import numpy as np
import pandas as pd
from crepes import ConformalClassifier
from crepes.extras import hinge
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA

from xraylib.evaluation import metrics
from xraylib.evaluation.calibration import logit
from xraylib.evaluation.operating import thresholds
from xraylib.evaluation.resampling import patient_draws, share_interval
from xraylib.storage import DataInvalid

CLASSES = np.array([0, 1])


def prediction_sets(scores: pd.DataFrame, *, coverage: float = 0.9) -> pd.DataFrame:
    """Give each image the set of classes that cannot be ruled out, calibrated on validation class by class.

    Split-conformal with the hinge score (Vovk et al. 2005; crepes), per class (Mondrian): of each class a
    share of `coverage` is promised to lie in its set, for images drawn as validation was.

    Parameters
    ----------
    scores
        Of one recipe and protocol, with their `val` side.
    coverage
        The promise, in (0, 1).

    Returns
    -------
    pandas.DataFrame
        The rows that are not `val`, with bool columns `normal` and `pneumonia`: what the set holds.

    Raises
    ------
    DataInvalid
        When a seed has no validation scores of both classes.
    """
    parts = []
    for seed, one in scores.groupby("seed"):
        val, rest = one[one["split"] == "val"], one[one["split"] != "val"]
        if val["label"].nunique() < 2:
            raise DataInvalid(
                f"seed {seed} has no val scores of both classes to calibrate on. Fix: train it again."
            )
        labels = val["label"].to_numpy()
        fitted = ConformalClassifier()
        fitted.fit(hinge(_both(val), CLASSES, labels), bins=labels)
        sets = np.stack(
            [
                fitted.predict_set(
                    hinge(_both(rest)), bins=np.full(len(rest), label), confidence=coverage, smoothing=False
                )[:, label]
                for label in CLASSES
            ],
            axis=1,
        ).astype(bool)
        parts.append(rest.assign(normal=sets[:, 0], pneumonia=sets[:, 1]))
    return pd.concat(parts)


def _both(part: pd.DataFrame) -> np.ndarray:
    p = part["score"].to_numpy(dtype=np.float64)
    return np.stack([1 - p, p], axis=1)


def coverage(sets: pd.DataFrame) -> pd.DataFrame:
    """How often the sets hold the true class, and how large they are, by split and class.

    Parameters
    ----------
    sets
        From `prediction_sets`.

    Returns
    -------
    pandas.DataFrame
        `split, kind` (normal, pneumonia or all)`, images, covered, low, high` (95 % over patients)`, empty,
        single, both` (shares of sets of no, one and two classes): means over seeds.
    """
    sets = sets.assign(
        covered=np.where(sets["label"] == 1, sets["pneumonia"], sets["normal"]),
        size=sets["normal"].astype(int) + sets["pneumonia"],
    )
    rows = []
    for split, side in sets.groupby("split"):
        for kind, part in (
            ("normal", side[side["label"] == 0]),
            ("pneumonia", side[side["label"] == 1]),
            ("all", side),
        ):
            if part.empty:
                continue
            covered, low, high = share_interval(part["covered"].to_numpy(), part["patient"].to_numpy())
            sizes = part["size"].value_counts(normalize=True).reindex([0, 1, 2], fill_value=0.0)
            rows.append(
                {"split": split, "kind": kind, "images": part["image_id"].nunique()}
                | {"covered": covered, "low": low, "high": high}
                | dict(zip(("empty", "single", "both"), sizes, strict=True))
            )
    return pd.DataFrame(rows)


def risk_coverage(
    scores: pd.DataFrame, *, rule: str | float = "validation", split: str = "test"
) -> pd.DataFrame:
    """Share of wrong calls among the images that are answered, when the least sure are left out first.

    Parameters
    ----------
    scores
        Of one recipe and protocol. How sure a score is: the distance of its log odds from the threshold's.
    rule
        Operating point (see `operating`).
    split
        The side to evaluate.

    Returns
    -------
    pandas.DataFrame
        `answered` (.05 to 1)`, error, low, high`: mean over seeds, 95 % over patients. Images that are
        equally sure are answered in any order: the error is the one expected.
    """
    points = thresholds(scores, rule)
    side = scores[scores["split"] == split]
    names = np.unique(side["patient"])
    draws = np.vstack([np.ones(len(names)), patient_draws(len(names), 500)])
    answered, by_seed = np.linspace(0.05, 1, 20), []
    for seed, part in side.groupby("seed"):
        score, point = part["score"].to_numpy(), float(points[seed])
        wrong = ((score >= point) != (part["label"] == 1)).to_numpy()
        # The surest first; those equally sure are one group.
        sure, group = np.unique(-np.abs(logit(score) - logit(np.array(point))), return_inverse=True)
        own = draws[:, np.searchsorted(names, part["patient"])]
        order = np.argsort(group, kind="stable")
        first = np.searchsorted(group[order], np.arange(len(sure)))
        sums = (np.add.reduceat(each[:, order], first, axis=1) for each in (own, own * wrong))
        kept, missed = (np.cumsum(each, axis=1) for each in sums)
        by_seed.append(np.stack([_errors(answered, *each) for each in zip(kept, missed, strict=True)]))
    mean = np.mean(by_seed, axis=0)
    low, high = np.percentile(mean[1:], [2.5, 97.5], axis=0)
    return pd.DataFrame({"answered": answered, "error": mean[0], "low": low, "high": high})


def _errors(answered: np.ndarray, kept: np.ndarray, missed: np.ndarray) -> np.ndarray:
    """Share of wrong calls at each share answered, from the cumulated images and errors, surest first."""
    shares = answered * kept[-1]
    return np.interp(shares, np.r_[0.0, kept], np.r_[0.0, missed]) / shares


def strangeness(training: np.ndarray, features: np.ndarray) -> np.ndarray:
    """How unlike the training images others are: Mahalanobis distance in their leading components.

    Parameters
    ----------
    training
        Features of the training images `(n, k)`; their first 50 principal components, or fewer, are kept.
    features
        Of the images to judge `(m, k)`.

    Returns
    -------
    numpy.ndarray
        `(m,)`, 0 or more; larger is stranger. Lee et al. 2018, without classes.
    """
    components = PCA(min(50, *training.shape), random_state=0).fit(training)
    spread = LedoitWolf().fit(components.transform(training))
    return np.sqrt(spread.mahalanobis(components.transform(features)))


def flagged(table: pd.DataFrame, *, false_alarms: float = 0.05) -> pd.DataFrame:
    """Share of images that are stranger than a limit which flags a stated share of validation.

    Parameters
    ----------
    table
        From `trials.strangeness`: `group, patient, strangeness`; the groups of validation begin so.
    false_alarms
        Share of validation that the limit flags, in (0, 1).

    Returns
    -------
    pandas.DataFrame
        One row a group, in their order: `group, images, flagged, low, high` (95 % over patients)`, limit`,
        and `auc, auc_low, auc_high`: how well the distance tells the group from validation.

    Raises
    ------
    DataInvalid
        When there is no validation.
    """
    is_usual = table["group"].str.startswith("validation")
    usual = table[is_usual]
    if usual.empty:
        raise DataInvalid("there are no validation images to compare with. Fix: pass them as well.")
    limit, rows = float(usual["strangeness"].quantile(1 - false_alarms)), []
    for group, part in table.groupby("group", sort=False):
        above = (part["strangeness"] > limit).to_numpy()
        share, low, high = share_interval(above, part["patient"].to_numpy())
        row = {"group": group, "images": len(part), "flagged": share, "low": low, "high": high}
        found = (np.nan, np.nan, np.nan)
        if not str(group).startswith("validation"):
            both = pd.concat([usual.assign(other=0), part.assign(other=1)])
            # Another hospital may give its patients the same names.
            patients = (both["other"].astype(str) + both["patient"]).to_numpy()
            other = both["other"].to_numpy()
            found = metrics.auc_interval(other, both["strangeness"].to_numpy(), patients)
        rows.append(row | {"limit": limit} | dict(zip(("auc", "auc_low", "auc_high"), found, strict=True)))
    return pd.DataFrame(rows)
