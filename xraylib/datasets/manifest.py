"""The manifest: one row per image, sorted by `image_id`, read from folders or a table.

Its columns are `image_id` (str, unique), `path`, `label` (0 normal, 1 pneumonia), `patient`, `kind`
(normal, bacteria, virus, unknown), `split` (train, val, test) and `sha256` (of the file). The names
of Kermany's files are the only place where the patient is written down, so every patient-grouped
number of this repository on these images rests on `patient_and_kind`.
"""

import json
import logging
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from xraylib import paths
from xraylib.datasets import challenges, phantom, shards
from xraylib.datasets.catalog import Dataset, get_dataset
from xraylib.datasets.dicom import patient_pseudonym
from xraylib.datasets.files import HIDDEN, SUFFIXES, PassedOver
from xraylib.datasets.layouts import Layout, read_layout
from xraylib.errors import InvalidDataError, NotFoundError
from xraylib.progress import tqdm
from xraylib.storage import atomic_write, sha256

_log = logging.getLogger(__name__)

COLUMNS = ("image_id", "path", "label", "patient", "kind", "split", "sha256")
_PNEUMONIA_KINDS = ("bacteria", "virus")

_ROBOFLOW = re.compile(r"_(jpe?g|png|tiff?|bmp|webp)\.rf\.[0-9A-Za-z]+$")

# The names of Kermany's files, of version 2 and (the last) of version 3.
_NAMES = (
    re.compile(r"person(?P<number>[0-9]+)_(?P<series>bacteria|virus)(_[0-9]+)+"),
    re.compile(r"(?P<series>NORMAL2-IM|IM)-(?P<number>[0-9]+)(-[0-9]+)+"),
    re.compile(r"(?P<series>NORMAL|BACTERIA|VIRUS)-(?P<number>[0-9]+)-[0-9]+"),
)
_VERSION_3_SERIES = ("NORMAL", "BACTERIA", "VIRUS")
_NIH = re.compile(r"([0-9]+)_[0-9]+")  # <patient>_<follow-up>
# Of a split that is made here: the share of the test, the seed, and the fewest patients per class
# (one tests, one validates, one trains).
_TEST_SHARE = 0.2
_SPLIT_SEED = 0
_FEWEST_PATIENTS = 3
_LAST_NUMBER = re.compile(r"(.*?)([0-9]+)[^0-9]*")
# The numbers (first, last) that the test folder of version 2 has in each series of names. The
# training folder has none of them, so a name tells its folder even where a copy was split anew.
_TEST_NUMBERS = {
    "bacteria": ((78, 175),),
    "virus": ((1, 79), (1608, 1608), (1610, 1685)),
    "IM": ((1, 111),),
    "NORMAL2-IM": ((1, 381),),
}


def load(name: str | Path | Dataset) -> pd.DataFrame:
    """Return the manifest of a data set, without the images in its quarantine list.

    Nothing is ever downloaded here; the phantom is written where it is missing.

    Parameters
    ----------
    name : str, Path or Dataset
        A key of `catalog.DATASETS`; or the path of a folder with class folders, of a CSV, of a
        description (data/README.md, *Your own radiographs*), or of a folder that `shards.write`
        wrote.

    Returns
    -------
    pandas.DataFrame
        The manifest; `attrs["dataset"]` is the name of the data set.

    Raises
    ------
    InvalidDataError
        If a split holds one class only, a name contradicts its folder, or the folder mixes two
        versions of Kermany's data; see `layouts.read_layout` for what no layout is.
    """
    dataset = get_dataset(name)
    if dataset.phantom:
        phantom.write(dataset.root, dataset.phantom)
    if shards.is_shards(dataset.root):
        manifest = shards.read_manifest(dataset.root)
    else:
        reading = read(dataset)
        manifest = reading.manifest
        _warn(dataset, reading)
    manifest = without_quarantined(dataset, manifest)
    check_classes(dataset, manifest)
    check_kinds(dataset, manifest)
    manifest.attrs["dataset"] = dataset.name
    return manifest


def _warn(dataset: Dataset, reading: "Reading") -> None:
    """Warn of what a reader of results should know of how a data set was understood."""
    remarks = list(reading.remarks)
    for source, images in Counter(reading.patient_sources).items():
        is_expected = source == NO_SOURCE and dataset.names == "none"
        if source in (NO_SOURCE, FOLDER_SOURCE) and not is_expected:
            remarks.append(f"the patient of {images} images is read from {source}")
    named = [file for file in reading.passed_over if file.reason != HIDDEN]
    if named and not dataset.phantom:  # the phantom's masks lie beside its splits
        first = f"{named[0].path} ({named[0].reason})"
        also = "`data verify` names them all"
        remarks.append(f"{len(named)} files are passed over, first {first}; {also}")
    for remark in remarks:
        _log.warning("%s: %s", dataset.name, remark)


def quarantine_path(name: str | Path | Dataset) -> Path:
    """Where the quarantine list of a data set lies; the file need not exist."""
    # Not in the cache: what was left out once must stay out when the cache is removed.
    return paths.DATA / "quarantine" / f"{get_dataset(name).name}.csv"


def read_quarantine(path: Path) -> set[str]:
    """Read the `image_id`s to leave out, from what `audit.write_quarantine` wrote."""
    columns = {"image_id": str, "quarantine": bool}
    try:
        table = pd.read_csv(path, usecols=list(columns), dtype=columns, keep_default_na=False)
    except ValueError as error:
        fix = "delete it and run `python -m xraylib data audit NAME`"
        raise InvalidDataError(f"{path} is not a quarantine list. Fix: {fix}.") from error
    return set(table.loc[table["quarantine"], "image_id"])


def without_quarantined(dataset: Dataset, manifest: pd.DataFrame) -> pd.DataFrame:
    """Drop the images of a data set's quarantine list and say how many they are."""
    path = quarantine_path(dataset)
    if not path.exists():
        return manifest
    bad = manifest["image_id"].isin(read_quarantine(path))
    if bad.any():
        message = "%s: %d of %d images are left out, see %s"
        _log.warning(message, dataset.name, bad.sum(), len(manifest), path)
    return manifest[~bad].reset_index(drop=True)


def check_classes(dataset: Dataset, manifest: pd.DataFrame) -> None:
    """Refuse a data set without images, or with a split of one class only."""
    if manifest.empty:
        raise InvalidDataError(
            f"{dataset.root} holds no JPEG, PNG, TIFF or DICOM image with a label. "
            f"Fix: {dataset.fix}."
        )
    for split, labels in manifest.groupby("split")["label"]:
        if labels.nunique() < 2:
            only = "pneumonias" if labels.iloc[0] else "normals"
            fix = f"put images of both classes there, or take the {split} folder away"
            if dataset.is_own:
                fix += "; or let a split be made (--split new)"
            raise InvalidDataError(
                f"{dataset.root}: the {split} split holds {only} only ({len(labels)}). Fix: {fix}."
            )


def check_kinds(dataset: Dataset, manifest: pd.DataFrame) -> None:
    """Refuse normals whose names say a kind of pneumonia."""
    mislabelled = manifest[(manifest["label"] == 0) & manifest["kind"].isin(_PNEUMONIA_KINDS)]
    if len(mislabelled):
        first = mislabelled.iloc[0]
        fix = f"move it, or run `python -m xraylib data audit {dataset.reference}` to leave it out"
        raise InvalidDataError(
            f"{first['path']} lies among the normals but its name says {first['kind']}. Fix: {fix}."
        )


# Where a patient can be read from, as `Reading.patient_sources` says it.
DICOM_SOURCE = "the DICOM header, hashed"
FOLDER_SOURCE = "the folder below the class folder"
NO_SOURCE = "nothing: the image counts as its own patient"


@dataclass(frozen=True)
class Reading:
    """A data set as it was understood.

    Attributes
    ----------
    manifest : pandas.DataFrame
        All images, quarantined or not.
    patient_sources : list of str
        What the patient of each row was read from.
    passed_over : list of PassedOver
        Files and folders that are not read.
    remarks : list of str
        What was decided here, such as a split that was made.
    """

    manifest: pd.DataFrame
    patient_sources: list[str]
    passed_over: list[PassedOver]
    remarks: list[str]


def index(dataset: Dataset) -> pd.DataFrame:
    """Return the manifest of everything in the folder, quarantined or not.

    `kind` may contradict `label` where a file lies in the wrong folder.
    """
    return read(dataset).manifest


def read(dataset: Dataset) -> Reading:
    """Return the manifest of everything in the folder and how it was understood.

    Hashing reads every file, so hashes and the pseudonyms of DICOM patients are kept in
    `paths.CACHE` for as long as names, sizes and times of change stay the same.
    """
    root = dataset.root
    if not root.is_dir():
        raise NotFoundError(f"{dataset.name}: no folder {root}. Fix: {dataset.fix}.")
    if shards.is_shards(root):
        fix = "name the folder that they were written from"
        raise InvalidDataError(f"{root} holds shards, not image files. Fix: {fix}.")
    try:
        layout = _layout(dataset)
        images = layout.images.join(_contents(dataset, layout))
    except PermissionError as error:
        fix = "allow reading it, or move it away"
        raise InvalidDataError(f"cannot read {error.filename}. Fix: {fix}.") from error
    images["image_id"] = _unique_ids(images["relative"])
    images["path"] = [str(layout.root / file) for file in images["relative"]]
    images = images.sort_values("image_id", ignore_index=True)
    if dataset.names == "kermany":
        _check_one_version(root, images["image_id"])
    read_name = _READERS[dataset.names]
    named = pd.DataFrame(map(read_name, images["image_id"]), columns=["patient", "kind"])
    candidates = _candidate_patients(dataset, images, named["patient"])
    is_known = candidates != ""
    patients = candidates.where(is_known).bfill(axis=1).iloc[:, 0].map(_storable)
    manifest = images.assign(patient=patients, kind=_kinds(images, named["kind"]))[list(COLUMNS)]
    remarks = _make_split(dataset, manifest) if dataset.is_own and len(manifest) else []
    sources = candidates.columns[is_known.to_numpy().argmax(axis=1)].tolist()
    return Reading(manifest, sources, layout.passed_over, remarks)


def _layout(dataset: Dataset) -> Layout:
    """List the images of a data set, by its folders or by the lists of its download."""
    if dataset.reader:
        return challenges.READERS[dataset.reader](dataset.root)
    return read_layout(dataset)


def _unique_ids(files: pd.Series) -> pd.Series:
    """Name each image by its file's name, else by its path, else by its path with the suffix."""
    names = files.map(image_id)
    stems = files.map(_without_suffix)
    stems = stems.mask(stems.duplicated(keep=False), files.map(_storable))
    return names.mask(names.duplicated(keep=False), stems)


def _candidate_patients(dataset: Dataset, images: pd.DataFrame, named: pd.Series) -> pd.DataFrame:
    """Say who the patient of each image is by each source, in order of precedence."""
    pseudonyms = images["pseudonym"]
    is_anonymous = pseudonyms[pseudonyms != ""].nunique() == 1  # such as "Anonymous"
    regex = re.compile(dataset.patient_regex)
    ids = images["image_id"]
    files = images["relative"]
    # Two files of one name in a folder, as JPEG and PNG, show one patient.
    alone = ids.where(ids == files.map(image_id), files.map(_without_suffix))
    return pd.DataFrame(
        {
            "the table's column": images["patient"],
            "the regular expression": [_first_group(regex, file) for file in files],
            DICOM_SOURCE: "" if is_anonymous else pseudonyms,
            FOLDER_SOURCE: images["folder"],
            "the file name": named.mask(named == ids.map(image_id), ""),
            NO_SOURCE: alone,
        }
    )


def _kinds(images: pd.DataFrame, named: pd.Series) -> pd.Series:
    """Give the kind that the layout says, else the name.

    A normal image of another family's name is normal; a pneumonia without a kind is unknown.
    """
    by_label = images["label"].map({0: "normal", 1: "unknown"})
    named = named.where(named.isin(_PNEUMONIA_KINDS), by_label)
    return images["kind"].where(images["kind"] != "", named)


def _first_group(regex: re.Pattern[str], path: str) -> str:
    """Give what an expression finds in a path: its first group, or all of it."""
    match = regex.search(path)
    if match is None:
        return ""
    return match[1 if regex.groups else 0] or ""


def inseparable(manifest: pd.DataFrame) -> pd.Series:
    """Number the groups of images that must stay in one split, in the index of the manifest.

    Two images are linked if they show the same patient or have the same bytes. A group holds all
    images that can be reached from one another through such links.
    """
    rows = pd.Series(range(len(manifest)), manifest.index)
    links = []
    for column in ("patient", "sha256"):
        first = rows.groupby(manifest[column]).transform("first")
        links.append(np.stack([first, rows], axis=1))
    return pd.Series(linked_groups(np.concatenate(links), len(rows)), manifest.index)


def linked_groups(links: np.ndarray, count: int) -> np.ndarray:
    """Number the groups of rows that links `(n, 2)` connect, in the order in which they occur."""
    graph = coo_array((np.ones(len(links)), tuple(links.T)), shape=(count, count))
    return connected_components(graph, directed=False)[1]


def _make_split(dataset: Dataset, manifest: pd.DataFrame) -> list[str]:
    """Give a fifth of the patients of each class to the test if there is none, and say so."""
    splits = set(manifest["split"])
    if "test" in splits or splits == {"val"} or dataset.split not in (None, "new"):
        return []
    manifest.loc[manifest["split"] == "", "split"] = "train"
    groups = inseparable(manifest)
    label_of_group = manifest.groupby(groups)["label"].max()
    patients = [label_of_group.index[label_of_group == label].to_numpy() for label in (0, 1)]
    fewest = min(map(len, patients))
    if fewest < _FEWEST_PATIENTS:
        return [
            f"there is no test, and none can be made of {fewest} patients of a class: "
            f"{_FEWEST_PATIENTS} are needed"
        ]
    rng = np.random.default_rng(_SPLIT_SEED)
    chosen = [
        rng.permutation(members)[: max(1, round(_TEST_SHARE * len(members)))]
        for members in patients
    ]
    is_test = groups.isin(np.concatenate(chosen))
    manifest.loc[is_test, "split"] = "test"
    return [
        "there is no test, so one was made: a fifth of the patients of each class, "
        f"{is_test.sum()} of {len(manifest)} images, always the same ones"
    ]


def _check_one_version(root: Path, ids: pd.Series) -> None:
    """Refuse a folder with names of versions 2 and 3 of Kermany's data: the same images twice."""
    by_series = {_parse_name(image)[0]: image for image in ids}
    version_2 = [image for series, image in by_series.items() if series in _TEST_NUMBERS]
    version_3 = [image for series, image in by_series.items() if series in _VERSION_3_SERIES]
    if version_2 and version_3:
        raise InvalidDataError(
            f"{root} holds names of version 2 ({version_2[0]}) and of version 3 ({version_3[0]}) "
            "of Kermany's data, which are the same images. Fix: keep the files of one version."
        )


def _contents(dataset: Dataset, layout: Layout) -> pd.DataFrame:
    """Give `sha256` and `pseudonym` (of the patient of a DICOM file, else empty) of each image.

    Both come from the cache where no file has changed.
    """
    files = {}
    for file in layout.images["relative"]:
        path = layout.root / file
        stat = path.stat()
        files[f"{file} {stat.st_size} {stat.st_mtime_ns}"] = path
    index = paths.CACHE / dataset.name / "index.json"
    known: dict[str, tuple[str, str]] = {}
    try:
        if index.exists():
            known = dict(json.loads(index.read_bytes()))
    except (ValueError, TypeError):
        _log.warning("%s is damaged; the files are hashed anew", index)
    new = {key: path for key, path in files.items() if key not in known}
    if new:
        with ThreadPoolExecutor(max_workers=4) as pool:
            work = pool.map(partial(_content, dataset), new.values())
            contents = tqdm(work, total=len(new), desc=f"hashing {layout.root.name}", unit="image")
            known |= zip(new, contents, strict=True)
        with atomic_write(index) as temporary:
            temporary.write_text(json.dumps(known))
    return pd.DataFrame([known[key] for key in files], columns=["sha256", "pseudonym"])


def _content(dataset: Dataset, path: Path) -> tuple[str, str]:
    """Hash a file and read who its patient is, if it is DICOM."""
    return sha256(path), "" if dataset.names == "none" else patient_pseudonym(path)


def count(dataset: Dataset) -> int:
    """Return how many images are there; 0 without the folder."""
    root = dataset.root
    if not root.is_dir() or not any(root.iterdir()):
        return 0
    return len(_layout(dataset).images)


def image_id(filename: str) -> str:
    """Return the name without folder, suffix and the hash of a Roboflow export (_jpeg.rf.0a1b2c).

    Bytes that are not UTF-8 are written as `&#…;`, so that the id can be stored anywhere.
    """
    return _without_suffix(filename.replace("\\", "/").rsplit("/", 1)[-1])


def _without_suffix(name: str) -> str:
    is_image = Path(name).suffix.lower() in SUFFIXES
    return _storable(_ROBOFLOW.sub("", name.rsplit(".", 1)[0] if is_image else name))


def _storable(name: str) -> str:
    """Write bytes that are not UTF-8 as `&#…;`."""
    return name.encode("utf-8", "xmlcharrefreplace").decode()


def patient_and_kind(filename: str) -> tuple[str, str]:
    """Read the patient and the kind (normal, bacteria, virus) from a file name of Kermany's family.

    The patients are those of the authors' own numbering, in version 3 of the data
    (doi 10.17632/rscbjbr9sj.3): `person300_bacteria` and `person300_virus` of one folder are one
    child, and so are `IM-0400` and `NORMAL2-IM-0400` of the training folder. In the test folder
    these two series are two children. Numbers start anew in the test folder, whose patients are
    called `test-…` here. Names of version 3 hold the number itself. A name of another family has
    the kind `unknown` and is its own patient.
    """
    series, number = _parse_name(filename)
    if not series:
        return image_id(filename), "unknown"
    if series in _VERSION_3_SERIES:
        return f"patient{number}", series.lower()
    in_test = any(first <= int(number) <= last for first, last in _TEST_NUMBERS[series])
    prefix = "test-" if in_test else ""
    if series in _PNEUMONIA_KINDS:
        return f"{prefix}person{int(number)}", series
    return f"{prefix}{series if in_test else 'IM'}-{int(number):04d}", "normal"


def _parse_name(filename: str) -> tuple[str, str]:
    """Read the series and the number in a name of Kermany's family; both are empty in others."""
    stem = image_id(filename)
    for pattern in _NAMES:
        if match := pattern.fullmatch(stem):
            return match["series"], match["number"]
    return "", ""


def other_readings(image: str) -> dict[str, str]:
    """Read the patient of a Kermany image in the ways that the authors' numbering contradicts.

    Parameters
    ----------
    image : str
        An `image_id` or file name.

    Returns
    -------
    dict of str to str
        `same number and kind`: each kind, and each series of normals, has patients of its own.
        `same number`: a number is one child in both folders. An image of another family of names
        is its own patient.
    """
    series, number = _parse_name(image)
    if not series:
        itself = _without_suffix(image)
        return {"same number and kind": itself, "same number": itself}
    same_number = {"bacteria": "person", "virus": "person", "IM": "IM-", "NORMAL2-IM": "IM-"}
    return {
        "same number and kind": f"{series}-{number}",
        "same number": same_number.get(series, "") + number,
    }


def _nih_patient_and_kind(filename: str) -> tuple[str, str]:
    stem = image_id(filename)
    match = _NIH.fullmatch(stem)
    return (f"nih{match[1]}" if match else stem), "unknown"


def _nameless(filename: str) -> tuple[str, str]:
    return image_id(filename), "unknown"


# By `Dataset.names`.
_READERS: dict[str, Callable[[str], tuple[str, str]]] = {
    "kermany": patient_and_kind,
    "nih": _nih_patient_and_kind,
    "none": _nameless,
}


def series_and_number(manifest: pd.DataFrame) -> pd.DataFrame:
    """Read the series of names, and the patient's number in it, of every image.

    Returns
    -------
    pandas.DataFrame
        `series`: `bacteria`, `virus`, `IM` or `NORMAL2-IM` for names of Kermany's version 2, else
        the text before the number in `patient`.
        `number`: float, missing without one. The index is that of `manifest`.
    """
    rows = []
    for image, patient in zip(manifest["image_id"], manifest["patient"], strict=True):
        series, number = _parse_name(image)
        if series not in _TEST_NUMBERS:
            match = _LAST_NUMBER.fullmatch(patient)
            series, number = match.groups() if match else ("", "nan")
        rows.append((series, float(number)))
    return pd.DataFrame(rows, columns=["series", "number"], index=manifest.index)
