"""Who is trained on, who is validated on, who is tested: the protocols.

`strict`
    Validation is cut from the official training and validation folders by patient, stratified by kind;
    the official test folder is the test. Refused when a patient or a copy of an image crosses.
`published`
    What a published system did, by the name of its split strategy in `SPLIT_STRATEGIES`.
Any split strategy's own name
    A recipe as under `strict`, but for the split: what the protocol comparison compares.
"""

import logging
from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold, train_test_split

from xraylib.datasets.manifest import series_and_number
from xraylib.errors import InvalidDataError, NotFoundError

_log = logging.getLogger(__name__)

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
    """Give every image of a manifest its split; `seed` decides which patients or images validate.

    `protocol` is strict, published, or a key of `SPLIT_STRATEGIES`, which then is the split strategy. Returns the rows
    in use with their new `split`; the index still counts rows of `manifest`, so that it picks rows of the array from
    `images.load_pixels`. Where a system validated on images it trained or tested on, these have a row for each split.
    `InvalidDataError` when a split would be empty or hold one class only and, under strict, when a patient or a
    byte-identical image is in two splits.
    """
    if protocol not in PROTOCOLS and protocol not in SPLIT_STRATEGIES:
        known = ", ".join((*PROTOCOLS, *SPLIT_STRATEGIES))
        raise NotFoundError(f"there is no protocol {protocol!r}. Fix: choose one of {known}.")
    split_strategy = protocol if protocol in SPLIT_STRATEGIES else split_strategy
    if protocol == "strict" and split_strategy not in BY_PATIENT:
        fix = f"under strict choose one of {', '.join(BY_PATIENT)}"
        raise InvalidDataError(
            f"the split strategy {split_strategy} splits images, not patients. Fix: {fix}."
        )
    assigned = SPLIT_STRATEGIES[split_strategy](manifest.reset_index(drop=True), seed)
    for split in ("train", "val", "test"):
        classes = assigned.loc[assigned["split"] == split, "label"].nunique()
        if classes < 2:
            found = "no images" if classes == 0 else "one class only"
            fix = "put NORMAL and PNEUMONIA images into its folder"
            raise InvalidDataError(f"the {split} split has {found}. Fix: {fix}.")
    if protocol == "strict":
        check_disjoint(assigned)
    return assigned


def check_disjoint(manifest: pd.DataFrame) -> None:
    """Refuse a manifest in which a patient, or a byte-identical image, is in two splits."""
    for column, what in (("patient", "patients"), ("sha256", "byte-identical images")):
        crossing = manifest[manifest.groupby(column)["split"].transform("nunique") > 1]
        if len(crossing):
            first = ", ".join(crossing["image_id"].head(4))
            fix = "move all images of one patient, and all copies of one image, to one split"
            raise InvalidDataError(
                f"{crossing[column].nunique()} {what} are in two splits: {first}. Fix: {fix}."
            )


def _patient_grouped(manifest: pd.DataFrame, seed: int) -> pd.DataFrame:
    pool = manifest[manifest["split"] != "test"]
    groups = _inseparable(pool) if len(pool) else pool["label"]
    folds = min(VALIDATION_FOLDS, groups.groupby(pool["label"]).nunique().min() if len(pool) else 0)
    if folds < 2:
        lacking = (
            "fewer than two patients of a class outside the test folder: no validation can be cut"
        )
        raise InvalidDataError(f"{lacking}. Fix: add patients to the train folder.")
    folder = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    strata = pool["kind"].astype(str) + pool["label"].astype(str)
    cut = [rows for _, rows in folder.split(pool, strata, groups)]
    # Of few patients a fold can hold one class only: the first that holds both validates.
    both = (rows for rows in cut if pool["label"].iloc[rows].nunique() == 2)
    validation = next(both, cut[0])
    return _with_splits(manifest, {"train": pool.index, "val": pool.index[validation]})


def _inseparable(manifest: pd.DataFrame) -> pd.Series:
    """Number the groups of images that must stay in one split.

    Two images are linked if they show the same patient or have the same bytes. A group holds all images that can be
    reached from one another through such links.
    """
    images = len(manifest)
    patients = pd.factorize(manifest["patient"])[0]
    contents = pd.factorize(manifest["sha256"])[0]
    # The nodes of the graph are the images, then the patients, then the contents.
    first_patient = images
    first_content = first_patient + images
    sources = np.tile(np.arange(images), 2)
    targets = np.concatenate([first_patient + patients, first_content + contents])
    nodes = 3 * images
    links = coo_array((np.ones(len(sources)), (sources, targets)), shape=(nodes, nodes))
    groups = connected_components(links, directed=False)[1]
    return pd.Series(groups[:images], index=manifest.index)


def _number_blocks(manifest: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Validate on the lowest seventh of each series of patient numbers, whatever the seed.

    The official test is such a block: it has the lowest or highest numbers of every series. Patients and copies stay
    together, so that a block can grow beyond a seventh.
    """
    pool = manifest[manifest["split"] != "test"]
    named = pool.join(series_and_number(pool)).dropna(subset=["number"])
    if named.empty:
        raise InvalidDataError(
            "the file names hold no numbers of patients. Fix: choose another split strategy."
        )
    rank = named.groupby("series")["number"].rank(method="average", pct=True)
    lowest = rank.index[rank <= 1 / VALIDATION_FOLDS]
    groups = _inseparable(pool)
    validation = groups.index[groups.isin(groups[lowest])]
    return _with_splits(manifest, {"train": pool.index, "val": validation})


def _patient_grouped_176(manifest: pd.DataFrame, seed: int) -> pd.DataFrame:
    """As `patient-grouped`, of which 136 images train and 40 validate, in the classes' own shares."""
    assigned = _patient_grouped(manifest, seed)
    used = [assigned.index[assigned["split"] == "test"]]
    used += [
        _some(assigned[assigned["split"] == split], images, seed) for split, images in SMALL.items()
    ]
    return assigned.loc[np.sort(np.concatenate(used))]


def _official(manifest: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The folders as published; where a copy lacks the 16 validation images, 16 of train in their place."""
    if (manifest["split"] == "val").any():
        return manifest
    _log.warning(
        "the official validation folder is not in this copy: 16 images of train stand in its place"
    )
    pool = manifest[manifest["split"] != "test"]
    images = min(8, pool["label"].value_counts().min() - 1)
    validation = pool.groupby("label").sample(max(images, 0), random_state=seed).index
    return _with_splits(manifest, {"train": pool.index, "val": validation})


def _per_image_validation(manifest: pd.DataFrame, seed: int) -> pd.DataFrame:
    train, val = _divide(manifest[manifest["split"] != "test"], seed, second=0.2)
    return _with_splits(manifest, {"train": train, "val": val})


def _take_skip(manifest: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Four fifths of one shuffle train, the last fifth of another validates: take and skip of tf.data."""
    pool = manifest.index[manifest["split"] != "test"]
    rng = np.random.default_rng(seed)
    # The keras.io example takes 4,200 of 5,232 images.
    taken = round(len(pool) * 4200 / 5232)
    train, val = np.sort(rng.permutation(pool)[:taken]), np.sort(rng.permutation(pool)[taken:])
    chosen = manifest.loc[train].assign(split="train"), manifest.loc[val].assign(split="val")
    return pd.concat([*chosen, manifest[manifest["split"] == "test"]])


def _random_176(manifest: pd.DataFrame, seed: int) -> pd.DataFrame:
    """136 and 40 images of the training folder, whoever the patient; the 40 validate and are the test."""
    pool = manifest[manifest["split"] != "test"]
    small = min(sum(SMALL.values()), len(pool))
    val = round(small * SMALL["val"] / sum(SMALL.values()))
    rest, held_out = _divide(pool, seed, second=val)
    train = _some(pool.loc[rest], small - val, seed)
    chosen = {"train": train, "val": held_out, "test": held_out}
    return pd.concat([manifest.loc[rows].assign(split=split) for split, rows in chosen.items()])


def _random_per_image(manifest: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Exact duplicates dropped, then 70/20/10 of all images, whoever the patient."""
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


def _divide(rows: pd.DataFrame, seed: int, second: float | int) -> tuple[pd.Index, pd.Index]:
    if rows["label"].value_counts().reindex([0, 1], fill_value=0).min() < 2:
        raise InvalidDataError(
            "fewer than two images of a class: they cannot be divided. Fix: add images."
        )
    names, labels = rows.index.to_numpy(), rows["label"]
    try:
        first, other = train_test_split(names, test_size=second, random_state=seed, stratify=labels)
    except ValueError as few:
        raise InvalidDataError(
            f"{len(rows)} images cannot be divided ({few}). Fix: add images."
        ) from few
    return pd.Index(np.sort(first)), pd.Index(np.sort(other))


def _some(rows: pd.DataFrame, images: int, seed: int) -> pd.Index:
    """So many images in the classes' own shares, or all where there are no more."""
    if len(rows) > images + 1:
        return _divide(rows, seed, second=images)[1]
    return rows.sample(min(images, len(rows)), random_state=seed).index.sort_values()


def _with_splits(manifest: pd.DataFrame, splits: dict[str, pd.Index]) -> pd.DataFrame:
    assigned = manifest.copy()
    for split, rows in splits.items():
        assigned.loc[rows, "split"] = split
    return assigned
