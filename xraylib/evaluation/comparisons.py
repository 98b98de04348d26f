"""Comparisons of split strategies, and of single-feature baselines."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from xraylib.datasets import audit
from xraylib.datasets.splits import PROTOCOLS
from xraylib.evaluation import metrics
from xraylib.evaluation.resampling import delong_interval, over

COMPARED = ("tiny-cnn-28", "scratch-cnn", "mobilenetv2-frozen")
# Evaluations of one recipe: name, protocol, split, threshold rule.
COMPARISONS: tuple[tuple[str, str, str, str | float], ...] = (
    ("image-level random split", "random-per-image", "test", 0.5),
    ("image-level validation", "per-image-validation", "val", 0.5),
    ("patient-grouped validation", "strict", "val", 0.5),
    ("official test, threshold 0.5", "strict", "test", 0.5),
    ("official test, threshold from validation", "strict", "test", "frozen"),
)


def of_protocols(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the scores of `published` and `strict`, without those of other split strategies."""
    return scores[scores["protocol"].isin(PROTOCOLS)]


def protocol_comparison(
    scores: pd.DataFrame,
    recipes: Iterable[str] = COMPARED,
    evaluations: Iterable[tuple[str, str, str, str | float]] = COMPARISONS,
    names: Sequence[str] = ("accuracy", "sensitivity", "specificity"),
) -> pd.DataFrame:
    """Evaluate recipes under protocols, splits and threshold rules, where there are scores.

    Parameters
    ----------
    scores : DataFrame
        From `scores.load`.
    recipes : iterable of str
        The recipes, in the order of the rows.
    evaluations : iterable of (name, protocol, split, rule)
        By default the five ways of splitting and scoring one network.
    names : sequence of str
        Of `metrics.METRICS`.

    Returns
    -------
    One row per recipe and evaluation with the columns
        recipe, comparison, protocol, split, rule : what was evaluated, at which threshold.
        seeds, n : number of runs, and of images per run.
        the metrics, each with _low and _high : see `metrics.evaluate`.
        over : what the intervals are over.
    """
    rows = []
    for recipe in recipes:
        for comparison, protocol, split, rule in evaluations:
            part = scores[(scores["recipe"] == recipe) & (scores["protocol"] == protocol)]
            evaluated = part[part["split"] == split]
            if evaluated.empty:
                continue
            seeds = evaluated["seed"].nunique()
            row: dict[str, object] = {
                "recipe": recipe,
                "comparison": comparison,
                "protocol": protocol,
                "split": split,
                "rule": str(rule),
                "seeds": seeds,
                "n": round(len(evaluated) / seeds),
            }
            values = metrics.evaluate(part, split=split, rule=rule, ranking="auc" in names)
            rows.append(row | metrics.ends(values, *names) | {"over": over(seeds)})
    return pd.DataFrame(rows)


def shortcut_baselines(manifest: pd.DataFrame, pixels: np.ndarray) -> pd.DataFrame:
    """AUC of single-feature baselines, and of linear models that see only the image's border.

    Directions and models come from the training images (all that is not test). The training value
    of a model is out of fold, by patient.

    Parameters
    ----------
    manifest : DataFrame
    pixels : (n, size, size, 1) uint8 array
        Images of the manifest's rows; a size of 64 is plenty.

    Returns
    -------
    One row per feature and split with the columns
        feature : name; models are those of `audit.BORDERS`. Where the data set has a list of
            original files, their features follow, of the training files in it.
        split : `train` or `test`.
        n : number of images.
        auc, low, high : DeLong's interval over patients.
    """
    values = audit.single_features(manifest, pixels)
    test = (manifest["split"] == "test").to_numpy()
    labels = manifest["label"].to_numpy()
    patients = manifest["patient"].to_numpy()
    for share in audit.BORDERS:
        mask = audit.border_mask(pixels.shape[1], share)
        border = pixels[:, mask].reshape(len(pixels), -1) / np.float32(255)
        name = f"border of 1/{round(1 / share)}, linear model"
        values[name] = _linear_model_scores(border, labels, patients, test)
    rows = _ranked(values, labels, patients, {"train": ~test, "test": test})
    files = audit.originals(manifest.attrs["dataset"])
    if files is not None:
        of_files = audit.file_features(files).add_suffix(", original file")
        everything = {"train": np.ones(len(files), bool)}
        file_labels = files["label"].to_numpy()
        rows += _ranked(of_files, file_labels, files["patient"].to_numpy(), everything)
    return pd.DataFrame(rows)


def _linear_model_scores(
    features: np.ndarray, labels: np.ndarray, patients: np.ndarray, test: np.ndarray
) -> np.ndarray:
    """Scores of a logistic regression: out of fold for training images, fitted on all for test."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1e-2, max_iter=1000))
    folds = StratifiedGroupKFold(n_splits=5, shuffle=True, random_state=0)
    train = {"X": features[~test], "y": labels[~test]}
    scores = np.empty(len(features))
    scores[~test] = cross_val_predict(
        model, **train, groups=patients[~test], cv=folds, method="predict_proba"
    )[:, 1]
    scores[test] = model.fit(**train).predict_proba(features[test])[:, 1]
    return scores


def _ranked(
    values: pd.DataFrame, labels: np.ndarray, patients: np.ndarray, splits: Mapping[str, np.ndarray]
) -> list[dict[str, object]]:
    """AUC of each feature on each split; its direction comes from the first split."""
    rows: list[dict[str, object]] = []
    first = next(iter(splits.values()))
    for feature in values:
        column = values[feature].to_numpy(dtype=float)[None]
        if delong_interval(labels[first], column[:, first], patients[first])[0] < 0.5:
            column = -column
        for split, members in splits.items():
            auc, low, high = delong_interval(labels[members], column[:, members], patients[members])
            row: dict[str, object] = {"feature": feature, "split": split, "n": int(members.sum())}
            rows.append(row | {"auc": auc, "low": low, "high": high})
    return rows
