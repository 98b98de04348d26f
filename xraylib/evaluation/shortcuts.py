"""What features without the lungs know of the class, and what AUC is left without them.

A feature is judged by a model that sees nothing else: boosted trees, fitted on some patients and
scored on others. A warning is corrected for the number of features, so that on a data set without
shortcuts all of them together warn in at most 5% of cases.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm, rankdata
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedGroupKFold

from xraylib.datasets import audit
from xraylib.datasets.image_features import FILE, level_of
from xraylib.errors import InvalidDataError, NotFoundError
from xraylib.evaluation.lung_height import framing_by_lung_height
from xraylib.evaluation.resampling import (
    Z,
    delong,
    interval,
    patient_weights,
    weighted_ranking,
)

# A feature is reported as a shortcut where its AUC is surely above this value.
LEVEL = 0.6
# Fewer patients of a class than this cannot show what a feature knows.
MIN_PATIENTS = 20
# Levels that need no lung: features of these are warned of.
WARNED = ("file", "acquisition", "surround")
# Quantiles of the strongest feature within which images are compared.
STRATA = 10
# Fewer pairs of a normal and a pneumonia than this within strata give no adjusted AUC.
MIN_PAIRS = 100

_FOLDS = 5
_ALPHA = 0.05
_RESAMPLES = 1000
_THRESHOLD = 0.5


def enough_patients(images: pd.DataFrame) -> bool:
    """Whether both classes have `MIN_PATIENTS` patients or more."""
    patients = images.groupby("label")["patient"].nunique()
    return len(patients) == 2 and bool((patients >= MIN_PATIENTS).all())


def measure(
    images: pd.DataFrame, values: Mapping[str, np.ndarray]
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Measure how well each feature, and all of a level together, predicts the class.

    Models are fitted and judged on the images outside the test split, by five folds of patients.
    Then they are fitted on all of these and judged on the test. Where there is only a test split,
    it takes the place of the others.

    Parameters
    ----------
    images : pandas.DataFrame
        `label`, `patient` and `split` of n images of `enough_patients`.
    values : mapping of str to numpy.ndarray
        Features `(n, k)` by name. Those that do not vary, or rank the images as an earlier one
        does, are left out.

    Returns
    -------
    pandas.DataFrame
        One row per feature, highest `auc` first.

        - `feature`, `level` (see `image_features.level_of`).
        - `auc`, `low`, `high`: on held-out patients, with DeLong's 95% interval over patients.
        - `bound`: the lower limit corrected for the number of features that could be warned of
          (Bonferroni, one-sided 5% for all of them together).
        - `warns`: bool, whether `bound` is above `LEVEL` and the feature needs no lung.
        - `test_auc`: on the test split; NaN without one.
    dict of str to numpy.ndarray
        Each feature's held-out score `(n,)`. Of the test, scores of the model fitted on the rest.
    """
    test = (images["split"] == "test").to_numpy()
    if not enough_patients(images[~test]):
        test = np.zeros(len(images), bool)
    groups = _with_groups(_distinct(values), values)
    labels = images["label"].to_numpy()
    patients = images["patient"].to_numpy()
    rows = []
    scores = {}
    for name, (level, features) in groups.items():
        scores[name] = _held_out_scores(features, labels, patients, test)
        auc, spread = _auc(labels, scores[name], patients, ~test)
        test_auc, _ = _auc(labels, scores[name], patients, test)
        rows.append((name, level, auc, spread, test_auc))
    table = pd.DataFrame(rows, columns=["feature", "level", "auc", "spread", "test_auc"])
    return _with_limits(table), scores


def _auc(
    labels: np.ndarray, scores: np.ndarray, patients: np.ndarray, members: np.ndarray
) -> tuple[float, float]:
    """AUC of some images and its standard error over patients; NaN for one class."""
    if len(np.unique(labels[members])) < 2:
        return np.nan, np.nan
    aucs, covariance = delong(labels[members], scores[None, members], patients[members])
    return float(aucs[0]), float(np.sqrt(max(0.0, covariance[0, 0])))


def _with_limits(table: pd.DataFrame) -> pd.DataFrame:
    """Add the interval, the corrected bound and whether a feature is warned of."""
    warned = table["level"].isin(WARNED)
    corrected = norm.ppf(1 - _ALPHA / max(1, warned.sum()))
    table["low"] = (table["auc"] - Z * table["spread"]).clip(0, 1)
    table["high"] = (table["auc"] + Z * table["spread"]).clip(0, 1)
    table["bound"] = table["auc"] - corrected * table["spread"]
    table["warns"] = warned & (table["bound"] > LEVEL)
    table = table.sort_values("auc", ascending=False, kind="stable", ignore_index=True)
    return table[["feature", "level", "auc", "low", "high", "bound", "warns", "test_auc"]]


def _distinct(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Leave out what does not vary, and what ranks the images as an earlier feature does."""
    kept = {}
    ranks: list[np.ndarray] = []
    for name, value in values.items():
        rank = rankdata(np.nan_to_num(value, nan=-np.inf), axis=0)
        is_known = any(np.array_equal(rank, other) for other in ranks)
        if (rank != rank[0]).any() and not is_known:
            kept[name] = value
            ranks.append(rank)
    return kept


def _with_groups(
    features: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray]
) -> dict[str, tuple[str, np.ndarray]]:
    """Level and value of each feature, and of all of a level that is warned of together."""
    groups = {name: (level_of(name, values), value) for name, value in features.items()}
    for level in WARNED:
        members = [value for of, value in groups.values() if of == level]
        if len(members) > 1:
            groups[f"all of the {level} together"] = (level, np.concatenate(members, axis=1))
    return groups


def _held_out_scores(
    features: np.ndarray, labels: np.ndarray, patients: np.ndarray, test: np.ndarray
) -> np.ndarray:
    """P(pneumonia) of every image by a model that has not seen its patient, or not the test."""
    scores = np.empty(len(features))
    rest = np.flatnonzero(~test)
    folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=0)
    for fitted, held_out in folds.split(rest, labels[rest], patients[rest]):
        model = _model().fit(features[rest[fitted]], labels[rest[fitted]])
        scores[rest[held_out]] = model.predict_proba(features[rest[held_out]])[:, 1]
    if test.any():
        model = _model().fit(features[rest], labels[rest])
        scores[test] = model.predict_proba(features[test])[:, 1]
    return scores


def _model() -> HistGradientBoostingClassifier:
    return HistGradientBoostingClassifier(
        max_iter=50,
        max_leaf_nodes=8,
        min_samples_leaf=10,
        early_stopping=False,
        random_state=0,
    )


def measure_originals(dataset: str) -> pd.DataFrame | None:
    """Measure the listed original files of a data set (`audit.originals`); None without a list."""
    files = audit.originals(dataset)
    if files is None:
        return None
    table = audit.file_features(files)
    if "jpeg_first_quantiser" in files:
        table["first quantiser"] = files["jpeg_first_quantiser"]
    values = {name: table[[name]].to_numpy(np.float32) for name in FILE if name in table}
    return measure(files.assign(split="train"), values)[0]


def read_scores(path: Path, images: pd.DataFrame) -> tuple[pd.DataFrame, float]:
    """Read a model's scores of some images from a CSV file.

    Parameters
    ----------
    path : Path
        A CSV file with the columns `score` and `image_id` or `path`, or the folder of a run. Where
        it has a column `split`, only the rows of the test are read if there are any. The mean is
        taken of several scores of one image.
    images : pandas.DataFrame
        The manifest.

    Returns
    -------
    pandas.DataFrame, float
        The scored images, numbered as in `images`, with `score`; and the threshold, which is that
        of the run or 0.5.

    Raises
    ------
    NotFoundError
        There is no such file.
    InvalidDataError
        It is no such table, or names none of the images.
    """
    file = path / "scores.csv" if path.is_dir() else path
    if not file.is_file():
        raise NotFoundError(f"{file}: no such file. Fix: give a CSV file, or the folder of a run.")
    try:
        table = pd.read_csv(file, dtype={"image_id": str, "path": str}, keep_default_na=False)
    except ValueError as error:
        raise InvalidDataError(
            f"{file} is not a CSV file ({str(error).strip()}). Fix: write it with the columns "
            "image_id and score."
        ) from error
    key = "image_id" if "image_id" in table else "path"
    if key not in table or "score" not in table:
        raise InvalidDataError(
            f"{file} lacks the columns image_id (or path) and score. Fix: name them so."
        )
    table["score"] = pd.to_numeric(table["score"], errors="coerce")
    is_number = np.isfinite(table["score"])
    if not is_number.all():
        line = int(is_number.argmin()) + 2
        raise InvalidDataError(f"{file}: line {line} has no number as score. Fix: correct it.")
    if "split" in table and (table["split"] == "test").any():
        table = table[table["split"] == "test"]
    names = images[key]
    if key == "path":
        names = names.map(os.path.realpath)
        table["path"] = table["path"].map(os.path.realpath)
    score = names.map(table.groupby(key)["score"].mean())
    scored = images.assign(score=score).dropna(subset="score")
    if scored["label"].nunique() < 2:
        raise InvalidDataError(
            f"{file} has scores of {len(scored)} images of this data set, not of both classes. "
            f"Fix: write each image's own {key}, as `{images[key].iloc[0]}`."
        )
    run = file.with_name("run.json")
    settings = json.loads(run.read_text(encoding="utf-8")) if run.exists() else {}
    return scored, float(settings.get("threshold") or _THRESHOLD)


def adjusted_auc(scored: pd.DataFrame, feature: np.ndarray) -> dict[str, float]:
    """AUC of a model, and what is left of it among images that a feature cannot tell apart.

    The adjusted AUC is the share of pairs of a normal and a pneumonia within one stratum of the
    feature in which the pneumonia has the higher score, pooled over strata (the stratified
    Mann-Whitney statistic). Strata are tenths of the images by the feature.

    Parameters
    ----------
    scored : pandas.DataFrame
        `label`, `patient` and `score` of n images.
    feature : numpy.ndarray
        `(n,)`.

    Returns
    -------
    dict of str to float
        `auc`, `adjusted` and their difference `lost`, each with `_low` and `_high` (percentile
        intervals of a paired bootstrap over patients), and `pairs`, the number of pairs within
        strata. `adjusted` and `lost` are NaN below `MIN_PAIRS` pairs.
    """
    edges = np.unique(np.quantile(feature, np.linspace(0, 1, STRATA + 1)[1:-1]))
    stratum = np.searchsorted(edges, feature, side="right")
    positive = (scored["label"] == 1).to_numpy()
    score = scored["score"].to_numpy()
    weights = patient_weights(scored["patient"].to_numpy(), _RESAMPLES)
    whole = weighted_ranking(positive, score, weights)[0]
    higher = np.zeros(len(weights))
    pairs = np.zeros(len(weights))
    for number in np.unique(stratum):
        members = stratum == number
        within = weights[:, members]
        possible = within @ positive[members] * (within @ ~positive[members])
        auc = weighted_ranking(positive[members], score[members], within)[0]
        higher += np.nan_to_num(auc) * possible
        pairs += possible
    with np.errstate(invalid="ignore"):
        adjusted = higher / pairs
    if pairs[0] < MIN_PAIRS:
        adjusted = np.full(len(weights), np.nan)
    result = {"pairs": float(pairs[0])}
    for name, values in (("auc", whole), ("adjusted", adjusted), ("lost", whole - adjusted)):
        low, high = interval(values[1:])
        result |= {name: float(values[0]), f"{name}_low": low, f"{name}_high": high}
    return result


def framing_response(
    scored: pd.DataFrame, lung_height: np.ndarray, threshold: float
) -> pd.DataFrame:
    """Specificity and sensitivity by the share of the height that the lungs fill.

    See `lung_height.framing_by_lung_height`; the model counts as one run.
    """
    one_run = scored.assign(
        recipe="model", protocol="strict", seed=0, split="test", threshold=threshold
    )
    boxes = pd.DataFrame({"image_id": scored["image_id"], "lung_height": lung_height})
    return framing_by_lung_height(one_run, boxes.dropna())
