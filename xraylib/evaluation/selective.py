"""Selective prediction: prediction sets of a promised coverage, and the error among the surest images."""

import numpy as np
import pandas as pd

from xraylib.evaluation.calibration import logit
from xraylib.evaluation.resampling import bootstrap_weights, share_interval
from xraylib.storage import DataInvalid
from xraylib.training.thresholds import thresholds

KINDS = ("normal", "pneumonia")


def prediction_sets(scores: pd.DataFrame, *, coverage: float = 0.9) -> pd.DataFrame:
    """The set of classes that cannot be ruled out for each image, of one recipe and protocol.

    The rows that are not `val`, with bool columns `normal` and `pneumonia`. Split-conformal, per class
    (Mondrian), calibrated on each seed's validation (Vovk et al. 2005): of each class a share of `coverage`
    is promised to have it in their set, for images like those of validation.
    """
    parts = []
    for seed, one in scores.groupby("seed"):
        val, rest = one[one["split"] == "val"], one[~one["split"].isin(["val", "swapped"])]
        if val.empty:
            raise DataInvalid(f"seed {seed} has no val scores to calibrate on. Fix: train it again.")
        sets = {}
        for label, kind in enumerate(KINDS):
            # How badly an image fits the class: 1 - P(class).
            own, misfit = (
                1 - (p if label else 1 - p) for p in (part["score"].to_numpy(float) for part in (val, rest))
            )
            own = np.sort(own[val["label"] == label])
            # The share of calibration images, the new one included, that fit as badly or worse.
            share = (len(own) - np.searchsorted(own, misfit) + 1) / (len(own) + 1)
            sets[kind] = share >= 1 - coverage
        parts.append(rest.assign(**sets))
    return pd.concat(parts)


def coverage(sets: pd.DataFrame) -> pd.DataFrame:
    """How often the sets of `prediction_sets` hold the true class, and how large they are.

    `split, kind` (normal, pneumonia or all)`, images, covered, low, high`, and `empty, single, both`: the
    shares of sets of no, one and two classes; over all seeds.
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
            covered, low, high = share_interval(part["covered"].to_numpy(), part["patient"].to_numpy())
            sizes = part["size"].value_counts(normalize=True).reindex([0, 1, 2], fill_value=0.0)
            rows.append(
                {"split": split, "kind": kind, "images": part["image_id"].nunique()}
                | {"covered": covered, "low": low, "high": high}
                | dict(zip(("empty", "single", "both"), sizes, strict=True))
            )
    return pd.DataFrame(rows)


def risk_coverage(scores: pd.DataFrame) -> pd.DataFrame:
    """Error among the test images that are answered when the least sure are left out first.

    Of one recipe and protocol; how sure a score is: the distance of its log odds from the threshold's.
    `answered` (0.05 to 1)`, error, low, high`: mean over seeds. Images equally sure are answered in any
    order, so the error is the expected one.
    """
    points = thresholds(scores, "frozen")
    own = scores[scores["split"] == "test"]
    names = np.unique(own["patient"])
    weights = np.vstack([np.ones(len(names)), bootstrap_weights(len(names), 500)])
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
            np.cumsum(np.add.reduceat(x[:, order], first, axis=1), axis=1) for x in (each, each * wrong)
        )
        found = []
        for n, missed in zip(count, errors, strict=True):
            shares = answered * n[-1]
            found.append(np.interp(shares, np.r_[0.0, n], np.r_[0.0, missed]) / shares)
        by_seed.append(np.stack(found))
    mean = np.mean(by_seed, axis=0)
    low, high = np.percentile(mean[1:], [2.5, 97.5], axis=0)
    return pd.DataFrame({"answered": answered, "error": mean[0], "low": low, "high": high})
