"""Evaluation protocols: how images are assigned to training, validation and test.

`strict`
    Validation patients are drawn from the official training and validation folders, stratified by
    kind; the official test folder is the test. Refused when a patient, or a copy of an image, is in
    two splits.
`published`
    What a published system did, by the name of its split strategy in `SPLIT_STRATEGIES`.
The name of a split strategy
    A recipe as under `strict`, except for the split: what the protocol comparison compares.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, train_test_split

from xraylib.datasets.manifest import inseparable, series_and_number
from xraylib.errors import InvalidDataError, NotFoundError

_log = logging.getLogger(__name__)

Labels = pd.Index | np.ndarray[Any, Any]  # of rows, in the index of a manifest

PROTOCOLS = ("published", "strict")

# One seventh of the training patients validate: 745 of Kermany's 5,216 images.
VALIDATION_FOLDS = 7
# Images of the small experiment, train and validation.
SMALL = {"train": 136, "val": 40}
# Split strategies under which `strict` holds.
BY_PATIENT = ("patient-grouped", "patient-grouped-176", "number-blocks")


def assign(
    manifest: pd.DataFrame, protocol: str, seed: int, *, split_strategy: str = "patient-grouped"
) -> pd.DataFrame:
    """Give every image of a manifest its split.

    Parameters
    ----------
    manifest : pandas.DataFrame
        Of a whole data set.
    protocol : str
        `strict`, `published`, or a key of `SPLIT_STRATEGIES`, which then is the split strategy.
    seed : int
        Decides which patients or images validate.
    split_strategy : str
        A key of `SPLIT_STRATEGIES`.

    Returns
    -------
    pandas.DataFrame
        The rows in use with their new `split`. The index still counts rows of `manifest`, so that
        it picks rows of the array from `images.load_pixels`. Where a system validated on images
        that it trained or tested on, these have one row for each split.

    Raises
    ------
    InvalidDataError
        If a split would be empty or hold one class only; under `strict` also if the split strategy
        ignores patients, or a patient or a byte-identical image is in two splits.
    """
    if protocol not in PROTOCOLS and protocol not in SPLIT_STRATEGIES:
        names = ", ".join((*PROTOCOLS, *SPLIT_STRATEGIES))
        raise NotFoundError(f"there is no protocol {protocol!r}. Fix: choose one of {names}.")
    if protocol in SPLIT_STRATEGIES:
        split_strategy = protocol
    if protocol == "strict" and split_strategy not in BY_PATIENT:
        fix = f"under strict choose one of {', '.join(BY_PATIENT)}"
        raise InvalidDataError(
            f"the split strategy {split_strategy} splits images, not patients. Fix: {fix}."
        )
    assigned = SPLIT_STRATEGIES[split_strategy](manifest.reset_index(drop=True), seed)
    for split in ("train", "val", "test"):
        classes = assigned.loc[assigned["split"] == split, "label"].nunique()
        if classes < 2:
            content = "no images" if classes == 0 else "one class only"
            fix = "put NORMAL and PNEUMONIA images into its folder"
            raise InvalidDataError(f"the {split} split has {content}. Fix: {fix}.")
    if protocol == "strict":
        check_disjoint(assigned)
    return assigned


def check_disjoint(manifest: pd.DataFrame) -> None:
    """Refuse a manifest in which a patient, or a byte-identical image, is in two splits."""
    names = {"patient": "patients", "sha256": "byte-identical images"}
    for column, units in names.items():
        crossing = manifest[manifest.groupby(column)["split"].transform("nunique") > 1]
        if len(crossing):
            first = ", ".join(crossing["image_id"].head(4))
            count = crossing[column].nunique()
            fix = (
                "move all images of one patient, and all copies of one image, to one split; of "
                "your own images let a split be made (`data verify PATH --split new`)"
            )
            raise InvalidDataError(f"{count} {units} are in two splits: {first}. Fix: {fix}.")


def _outside_test(manifest: pd.DataFrame) -> pd.DataFrame:
    return manifest[manifest["split"] != "test"]


def _patient_grouped(manifest: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Validate on one seventh of the patients outside the test folder, stratified by kind."""
    pool = _outside_test(manifest)
    groups = inseparable(pool)
    groups_per_class = groups.groupby(pool["label"]).nunique()
    folds = min(VALIDATION_FOLDS, groups_per_class.min()) if len(pool) else 0
    if folds < 2:
        raise InvalidDataError(
            "fewer than two patients of a class outside the test folder: no validation can be "
            "drawn. Fix: add patients to the train folder."
        )
    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    strata = pool["kind"].astype(str) + pool["label"].astype(str)
    candidates = [rows for _, rows in splitter.split(pool, strata, groups)]
    # Of few patients a fold can hold one class only: the first that holds both validates.
    validation = max(candidates, key=lambda rows: pool["label"].iloc[rows].nunique())
    return _with_splits(manifest, {"train": pool.index, "val": pool.index[validation]})


def _number_blocks(manifest: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Validate on the lowest seventh of each series of patient numbers, whatever the seed.

    The official test is such a block: it has the lowest or highest numbers of every series.
    Patients and copies stay together, so that a block can grow beyond a seventh.
    """
    pool = _outside_test(manifest)
    named = pool.join(series_and_number(pool)).dropna(subset=["number"])
    if named.empty:
        raise InvalidDataError(
            "the file names hold no numbers of patients. Fix: choose another split strategy."
        )
    rank = named.groupby("series")["number"].rank(method="average", pct=True)
    lowest = rank.index[rank <= 1 / VALIDATION_FOLDS]
    groups = inseparable(pool)
    validation = groups.index[groups.isin(groups[lowest])]
    return _with_splits(manifest, {"train": pool.index, "val": validation})


def _patient_grouped_176(manifest: pd.DataFrame, seed: int) -> pd.DataFrame:
    """As `patient-grouped`, but 136 images train and 40 validate, stratified by class."""
    assigned = _patient_grouped(manifest, seed)
    used: list[Labels] = [assigned.index[assigned["split"] == "test"]]
    for split, images in SMALL.items():
        rows = assigned[assigned["split"] == split]
        used.append(_stratified_sample(rows, images, seed))
    return assigned.loc[np.sort(np.concatenate(used))]


def _official(manifest: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The folders as published; a copy without the validation folder takes 16 images of train."""
    if (manifest["split"] == "val").any():
        return manifest
    _log.warning(
        "the official validation folder is not in this copy: "
        "16 images of the training folder take its place"
    )
    pool = _outside_test(manifest)
    # Each class keeps an image to train on.
    images = min(8, pool["label"].value_counts().min() - 1)
    validation = pool.groupby("label").sample(images, random_state=seed).index
    return _with_splits(manifest, {"train": pool.index, "val": validation})


def _per_image_validation(manifest: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Validate on a fifth of the images outside the test folder, ignoring patient identity."""
    train, val = _divide(_outside_test(manifest), seed, second=0.2)
    return _with_splits(manifest, {"train": train, "val": val})


def _take_skip(manifest: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Train on four fifths of one shuffle and validate on the last fifth of another.

    This is what `take` and `skip` of a `tf.data` pipeline do that shuffles at every pass.
    """
    pool = _outside_test(manifest).index
    rng = np.random.default_rng(seed)
    # The keras.io example takes 4,200 of 5,232 images.
    taken = round(len(pool) * 4200 / 5232)
    train = rng.permutation(pool)[:taken]
    val = rng.permutation(pool)[taken:]
    test = manifest.index.difference(pool)
    return _rows_per_split(manifest, {"train": train, "val": val, "test": test})


def _random_176(manifest: pd.DataFrame, seed: int) -> pd.DataFrame:
    """136 images of the training folder train; 40 others are both validation and test.

    Patient identity is ignored.
    """
    pool = _outside_test(manifest)
    small = min(sum(SMALL.values()), len(pool))
    val = round(small * SMALL["val"] / sum(SMALL.values()))
    rest, held_out = _divide(pool, seed, second=val)
    train = _stratified_sample(pool.loc[rest], small - val, seed)
    return _rows_per_split(manifest, {"train": train, "val": held_out, "test": held_out})


def _random_per_image(manifest: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Drop exact duplicates, then split all images 70/20/10, ignoring patient identity."""
    unique = manifest.drop_duplicates("sha256")
    train, rest = _divide(unique, seed, second=0.3)
    val, test = _divide(unique.loc[rest], seed, second=1 / 3)
    return _with_splits(unique, {"train": train, "val": val, "test": test})


SPLIT_STRATEGIES: dict[str, Callable[[pd.DataFrame, int], pd.DataFrame]] = {
    "patient-grouped": _patient_grouped,
    "patient-grouped-176": _patient_grouped_176,
    "number-blocks": _number_blocks,
    "official": _official,
    "per-image-validation": _per_image_validation,
    "random-per-image": _random_per_image,
    "take-skip": _take_skip,
    "random-176": _random_176,
}


def _divide(rows: pd.DataFrame, seed: int, second: float | int) -> tuple[Labels, Labels]:
    """Divide rows at random, stratified by class; `second` is the second part's share or size."""
    names = rows.index.to_numpy()
    try:
        first, other = train_test_split(
            names, test_size=second, random_state=seed, stratify=rows["label"]
        )
    except ValueError as error:
        raise InvalidDataError(
            f"{len(rows)} images cannot be divided ({error}). Fix: add images."
        ) from error
    return np.sort(first), np.sort(other)


def _stratified_sample(rows: pd.DataFrame, images: int, seed: int) -> Labels:
    """Draw so many images, stratified by class, or all if there are no more."""
    if len(rows) > images + 1:
        return _divide(rows, seed, second=images)[1]
    return np.sort(rows.sample(min(images, len(rows)), random_state=seed).index)


def _with_splits(manifest: pd.DataFrame, splits: Mapping[str, Labels]) -> pd.DataFrame:
    """Set the split of some rows; a later split overwrites an earlier one."""
    assigned = manifest.copy()
    for split, rows in splits.items():
        assigned.loc[rows, "split"] = split
    return assigned


def _rows_per_split(manifest: pd.DataFrame, splits: Mapping[str, Labels]) -> pd.DataFrame:
    """Collect the rows of every split, where an image can be in several."""
    parts = [manifest.loc[np.sort(rows)].assign(split=split) for split, rows in splits.items()]
    return pd.concat(parts)
