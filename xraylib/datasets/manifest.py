"""The manifest: one row per image, sorted by `image_id`, read from folders or a table.

Its columns are `image_id` (str, unique), `path`, `label` (0 normal, 1 pneumonia), `patient`, `kind`
(normal, bacteria, virus, unknown), `split` (train, val, test) and `sha256` (of the file); a table
can add `age` and `view`. The names of Kermany's files are the only place where the patient is
written down, so every patient-grouped number of this repository on these images rests on
`patient_and_kind`.
"""

import hashlib
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
from xraylib.datasets.files import HIDDEN, RASTER_SUFFIXES, PassedOver
from xraylib.datasets.layouts import FURTHER, Layout, read_layout
from xraylib.errors import InvalidDataError, NotFoundError
from xraylib.progress import tqdm
from xraylib.storage import atomic_write

_log = logging.getLogger(__name__)

_PNEUMONIA_KINDS = ("bacteria", "virus")

_SUFFIX = re.compile(r"\.(jpe?g|png|jfif|tiff?|dcm|dicom|ima)$", re.IGNORECASE)
_ROBOFLOW = re.compile(r"_(jpe?g|png|tiff?|bmp|webp)\.rf\.[0-9A-Za-z]+$")

_PNEUMONIA = re.compile(r"person([0-9]+)_(bacteria|virus)(?:_[0-9]+)+")
_NORMAL = re.compile(r"(NORMAL2-IM|IM)-([0-9]+)(?:-[0-9]+)+")
_VERSION_3 = re.compile(r"(NORMAL|BACTERIA|VIRUS)-([0-9]+)-[0-9]+")
_NIH = re.compile(r"([0-9]+)_[0-9]+")  # <patient>_<follow-up>
_SHA256 = re.compile("[0-9a-f]{64}")
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
    for remark in reading.remarks:
        _log.warning("%s: %s", dataset.name, remark)
    patientless = reading.patient_sources.count(NO_SOURCE)
    if patientless and dataset.names != "none":
        message = "%s: of %d of %d images nothing says the patient; each counts as its own"
        _log.warning(message, dataset.name, patientless, len(reading.manifest))
    if FOLDER_SOURCE in reading.patient_sources:
        count = reading.patient_sources.count(FOLDER_SOURCE)
        message = "%s: each folder below a class folder counts as one patient (%d images)"
        _log.warning(message, dataset.name, count)
    named = [file for file in reading.passed_over if file.reason != HIDDEN]
    if named and not dataset.phantom:  # the phantom's masks lie beside its splits
        message = "%s: %d files are passed over, first %s (%s); `data verify` names them all"
        _log.warning(message, dataset.name, len(named), *named[0])


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
            f"{dataset.root} holds no JPEG, PNG, TIFF or DICOM image. Fix: {dataset.fix}."
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


# Where a patient can be read from, by precedence, as `Reading.patient_sources` says it.
TABLE_SOURCE = "the table's column"
REGEX_SOURCE = "the regular expression"
DICOM_SOURCE = "the DICOM header, hashed"
FOLDER_SOURCE = "the folder below the class folder"
NAME_SOURCE = "the file name"
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
    if dataset.reader:
        table = _from_lists(dataset)
        return Reading(table, [NO_SOURCE] * len(table), [], [])
    if shards.is_shards(root):
        fix = "name the folder that they were written from"
        raise InvalidDataError(f"{root} holds shards, not image files. Fix: {fix}.")
    try:
        layout = read_layout(dataset)
        files = layout.images["relative"].tolist()
        hashes, dicom_patients = _contents(layout.root, files, paths.CACHE / dataset.name)
    except PermissionError as error:
        fix = "allow reading it, or move it away"
        raise InvalidDataError(f"cannot read {error.filename}. Fix: {fix}.") from error
    ids = _unique_ids(files)
    patients, sources, kinds = _patients_and_kinds(dataset, layout, ids, dicom_patients)
    manifest = pd.DataFrame(
        {
            "image_id": ids,
            "path": [str(layout.root / file) for file in files],
            "label": layout.images["label"].tolist(),
            "patient": patients,
            "kind": kinds,
            "split": layout.images["split"].tolist(),
            "sha256": hashes,
        }
    )
    for column in FURTHER:
        if column in layout.images:
            manifest[column] = layout.images[column]
    # A normal image of another family's name is normal; a pneumonia without a kind is unknown.
    unread = ~manifest["kind"].isin(_PNEUMONIA_KINDS)
    manifest.loc[unread, "kind"] = manifest.loc[unread, "label"].map({0: "normal", 1: "unknown"})
    if dataset.names == "kermany":
        _check_one_version(root, ids)
    order = manifest["image_id"].argsort()
    manifest = manifest.iloc[order].reset_index(drop=True)
    remarks = _make_split(dataset, manifest) if dataset.is_own and len(manifest) else []
    return Reading(manifest, [sources[row] for row in order], layout.passed_over, remarks)


def _from_lists(dataset: Dataset) -> pd.DataFrame:
    """Return the manifest of a download that has lists instead of class folders."""
    table = challenges.READERS[dataset.reader](dataset.root)
    files = [Path(path).relative_to(dataset.root).as_posix() for path in table["path"]]
    hashes, _ = _contents(dataset.root, files, paths.CACHE / dataset.name, patients=False)
    return table.assign(sha256=hashes)[[*challenges.COLUMNS, "sha256"]]


def _unique_ids(files: list[str]) -> list[str]:
    """Name each image by its file's name, else by its path, else by its path with the suffix."""
    names = [image_id(file) for file in files]
    without_suffix = [_without_suffix(file) for file in files]
    images_per_name = Counter(names)
    images_per_path = Counter(without_suffix)
    ids = []
    for file, name, path in zip(files, names, without_suffix, strict=True):
        if images_per_name[name] == 1:
            ids.append(name)
        else:
            ids.append(path if images_per_path[path] == 1 else _storable(file))
    return ids


def _patients_and_kinds(
    dataset: Dataset, layout: Layout, ids: list[str], dicom_patients: list[str]
) -> tuple[list[str], list[str], list[str]]:
    """Read the patient of each image, what it was read from, and the kind."""
    if len(set(dicom_patients) - {""}) == 1:  # such as "Anonymous"
        dicom_patients = [""] * len(ids)
    regex = re.compile(dataset.patient_regex) if dataset.patient_regex else None
    patients = []
    sources = []
    kinds = []
    images = layout.images
    rows = zip(
        ids,
        images["relative"],
        images["patient"],
        images["folder"],
        images["kind"],
        dicom_patients,
        strict=True,
    )
    for image, relative, listed, folder, kind, dicom_patient in rows:
        named, named_kind = _READERS[dataset.names](image)
        candidates = {
            TABLE_SOURCE: listed,
            REGEX_SOURCE: _first_group(regex, relative) if regex else "",
            DICOM_SOURCE: dicom_patient,
            FOLDER_SOURCE: folder,
            NAME_SOURCE: named if named != image_id(image) else "",
        }
        source = next((name for name in candidates if candidates[name]), NO_SOURCE)
        # Two files of one name in a folder, as JPEG and PNG, show one patient.
        alone = image if image == image_id(relative) else _without_suffix(relative)
        patients.append(_storable(candidates.get(source, alone)))
        sources.append(source)
        kinds.append(kind or named_kind)
    return patients, sources, kinds


def _first_group(regex: re.Pattern[str], path: str) -> str:
    """Give what an expression finds in a path: its first group, or all of it."""
    match = regex.search(path)
    if match is None:
        return ""
    return (match[1] if regex.groups else match[0]) or ""


def inseparable(manifest: pd.DataFrame) -> pd.Series:
    """Number the groups of images that must stay in one split, in the index of the manifest.

    Two images are linked if they show the same patient or have the same bytes. A group holds all
    images that can be reached from one another through such links.
    """
    images = len(manifest)
    patients = pd.factorize(manifest["patient"])[0]
    contents = pd.factorize(manifest["sha256"])[0]
    # The nodes of the graph are the images, then the patients, then the contents.
    first_patient = images
    first_content = first_patient + images
    nodes = 3 * images
    sources = np.tile(np.arange(images), 2)
    targets = np.concatenate([first_patient + patients, first_content + contents])
    ones = np.ones(len(sources))
    links = coo_array((ones, (sources, targets)), shape=(nodes, nodes))
    groups = connected_components(links, directed=False)[1]
    return pd.Series(groups[:images], index=manifest.index)


def _make_split(dataset: Dataset, manifest: pd.DataFrame) -> list[str]:
    """Give a fifth of the patients of each class to the test where there is none; say so."""
    splits = set(manifest["split"])
    if "test" in splits or splits == {"val"} or (dataset.split and dataset.split != "new"):
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
    shares = [rng.permutation(members)[: _test_size(len(members))] for members in patients]
    is_test = groups.isin(np.concatenate(shares))
    manifest.loc[is_test, "split"] = "test"
    return [
        "there is no test, so one was made: a fifth of the patients of each class, "
        f"{is_test.sum()} of {len(manifest)} images, always the same ones"
    ]


def _test_size(patients: int) -> int:
    return max(1, round(_TEST_SHARE * patients))


def _check_one_version(root: Path, ids: list[str]) -> None:
    """Refuse a folder with names of versions 2 and 3 of Kermany's data: the same images twice."""
    names = [image_id(image) for image in ids]
    version_2 = [name for name in names if _PNEUMONIA.fullmatch(name) or _NORMAL.fullmatch(name)]
    version_3 = [name for name in names if _VERSION_3.fullmatch(name)]
    if version_2 and version_3:
        raise InvalidDataError(
            f"{root} holds names of version 2 ({version_2[0]}) and of version 3 ({version_3[0]}) "
            "of Kermany's data, which are the same images. Fix: keep the files of one version."
        )


def _contents(
    root: Path, files: list[str], cache: Path, patients: bool = True
) -> tuple[list[str], list[str]]:
    """Give the SHA-256 of every file and the pseudonym of a DICOM file's patient, else nothing.

    Both come from the cache where no file has changed.
    """
    lines = []
    for file in files:
        stat = (root / file).stat()
        lines.append(f"{file}\t{stat.st_size}\t{stat.st_mtime_ns}")
    # File names need not be UTF-8: undecodable bytes are kept as surrogates.
    listing = "\n".join(lines).encode("utf-8", "surrogateescape")
    remembered = cache / f"index-{hashlib.sha256(listing).hexdigest()[:16]}.csv"
    if remembered.exists():
        contents = _remembered_contents(remembered, files)
        if contents is not None:
            return contents
    with ThreadPoolExecutor(max_workers=4) as pool:
        work = pool.map(partial(_content, patients=patients), [root / file for file in files])
        rows = list(tqdm(work, total=len(files), desc=f"hashing {root.name}", unit="image"))
    table = pd.DataFrame(rows, columns=["sha256", "patient"], dtype=str)
    with atomic_write(remembered) as temporary:
        table.insert(0, "relative", files)
        table.to_csv(temporary, index=False, errors="surrogateescape")
    return table["sha256"].tolist(), table["patient"].tolist()


def _remembered_contents(remembered: Path, files: list[str]) -> tuple[list[str], list[str]] | None:
    """Read an index from the cache; None where it is damaged or of other files."""
    try:
        table = pd.read_csv(
            remembered, dtype=str, keep_default_na=False, encoding_errors="surrogateescape"
        )
        hashes: list[str] = table["sha256"].tolist()
        # Indexes of sets without DICOM files were once written without patients.
        patients = table["patient"].tolist() if "patient" in table else [""] * len(files)
        if table["relative"].tolist() == files and all(map(_SHA256.fullmatch, hashes)):
            return hashes, patients
    except (ValueError, KeyError):
        pass
    _log.warning("%s is damaged; the files are hashed anew", remembered)
    return None


def _content(path: Path, patients: bool) -> tuple[str, str]:
    """Hash a file and, if it can be DICOM, read who its patient is."""
    may_be_dicom = patients and path.suffix.lower() not in RASTER_SUFFIXES
    return _sha256(path), patient_pseudonym(path) if may_be_dicom else ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def count(dataset: Dataset) -> int:
    """Return how many images are there; 0 without the folder."""
    root = dataset.root
    if not root.is_dir() or not any(root.iterdir()):
        return 0
    if dataset.reader:
        return sum(1 for _ in root.rglob("*.dc*m"))
    return len(read_layout(dataset).images)


def image_id(filename: str) -> str:
    """Return the name without folder, suffix and the hash of a Roboflow export (_jpeg.rf.0a1b2c).

    Bytes that are not UTF-8 are written as `&#…;`, so that the id can be stored anywhere.
    """
    return _without_suffix(filename.replace("\\", "/").rsplit("/", 1)[-1])


def _without_suffix(name: str) -> str:
    return _storable(_ROBOFLOW.sub("", _SUFFIX.sub("", name)))


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
    stem = image_id(filename)
    if match := _VERSION_3.fullmatch(stem):
        return f"patient{match[2]}", match[1].lower()
    if match := _PNEUMONIA.fullmatch(stem):
        number = int(match[1])
        return f"{_folder_prefix(match[2], number)}person{number}", match[2]
    if match := _NORMAL.fullmatch(stem):
        series = match[1]
        number = int(match[2])
        if prefix := _folder_prefix(series, number):
            return f"{prefix}{series}-{number:04d}", "normal"
        return f"IM-{number:04d}", "normal"
    return stem, "unknown"


def _folder_prefix(series: str, number: int) -> str:
    in_test = any(first <= number <= last for first, last in _TEST_NUMBERS[series])
    return "test-" if in_test else ""


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
    stem = image_id(image)
    if match := _PNEUMONIA.fullmatch(stem):
        number = f"person{match[1]}"
        return {"same number and kind": f"{number}_{match[2]}", "same number": number}
    if match := _NORMAL.fullmatch(stem):
        return {"same number and kind": f"{match[1]}-{match[2]}", "same number": f"IM-{match[2]}"}
    if match := _VERSION_3.fullmatch(stem):
        return {"same number and kind": f"{match[1]}-{match[2]}", "same number": match[2]}
    itself = _without_suffix(image)
    return {"same number and kind": itself, "same number": itself}


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
        `number`: float, missing where there is none. The index is that of `manifest`.
    """
    rows: list[tuple[str, float]] = []
    for image, patient in zip(manifest["image_id"], manifest["patient"], strict=True):
        stem = image_id(image)
        if match := _PNEUMONIA.fullmatch(stem):
            rows.append((match[2], float(match[1])))
        elif match := _NORMAL.fullmatch(stem) or _LAST_NUMBER.fullmatch(patient):
            rows.append((match[1], float(match[2])))
        else:
            rows.append(("", float("nan")))
    return pd.DataFrame(rows, columns=["series", "number"], index=manifest.index)
