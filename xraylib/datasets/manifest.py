"""The manifest: one row per image, sorted by `image_id`, read from folders and file names.

Its columns are `image_id` (str, unique), `path`, `label` (0 normal, 1 pneumonia), `patient`, `kind`
(normal, bacteria, virus, unknown), `split` (train, val, test) and `sha256` (of the file). The names
of Kermany's files are the only place where the patient is written down, so every patient-grouped
number of this repository rests on `patient_and_kind`.
"""

import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from xraylib import paths
from xraylib.datasets import challenges, phantom, shards
from xraylib.datasets.catalog import Dataset, get_dataset
from xraylib.errors import InvalidDataError, NotFoundError
from xraylib.progress import tqdm
from xraylib.storage import atomic_write

_log = logging.getLogger(__name__)

_SUFFIXES = (".jpeg", ".jpg", ".png")
_CLASSES = {"normal": 0, "pneumonia": 1}
_SPLITS = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
_PNEUMONIA_KINDS = ("bacteria", "virus")

_SUFFIX = re.compile(r"\.(jpe?g|png)$", re.IGNORECASE)
_ROBOFLOW = re.compile(r"_(jpe?g|png)\.rf\.[0-9A-Za-z]+$")
# What operating systems, file servers and notebooks leave in folders of images.
_LITTER = re.compile(
    r"\.|__MACOSX|@eaDir|#recycle|\$RECYCLE|SYNOPHOTO_THUMB|(Thumbs\.db|desktop\.ini)$",
    re.IGNORECASE,
)

_PNEUMONIA = re.compile(r"person([0-9]+)_(bacteria|virus)(?:_[0-9]+)+")
_NORMAL = re.compile(r"(NORMAL2-IM|IM)-([0-9]+)(?:-[0-9]+)+")
_VERSION_3 = re.compile(r"(NORMAL|BACTERIA|VIRUS)-([0-9]+)-[0-9]+")
_NIH = re.compile(r"([0-9]+)_[0-9]+")  # <patient>_<follow-up>
_SHA256 = re.compile("[0-9a-f]{64}")
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
        A key of `catalog.DATASETS`, or the path of a folder {train,val,test}/{NORMAL,PNEUMONIA}/
        with JPEG or PNG files, or of a folder that `shards.write` wrote.

    Returns
    -------
    pandas.DataFrame
        The manifest; `attrs["dataset"]` is the name of the data set.

    Raises
    ------
    InvalidDataError
        If a split holds one class only, two images have one id, a name contradicts its folder, or
        the folder mixes two versions of Kermany's data.
    """
    dataset = get_dataset(name)
    if dataset.phantom:
        phantom.write(dataset.root, dataset.phantom)
    if shards.is_shards(dataset.root):
        manifest = shards.read_manifest(dataset.root)
    else:
        manifest = index(dataset)
    manifest = _without_quarantined(dataset, manifest)
    check_classes(dataset, manifest)
    mislabelled = manifest[(manifest["label"] == 0) & manifest["kind"].isin(_PNEUMONIA_KINDS)]
    if len(mislabelled):
        first = mislabelled.iloc[0]
        fix = f"move it, or run `python -m xraylib data audit {dataset.name}` to leave it out"
        raise InvalidDataError(
            f"{first['path']} lies among the normals but its name says {first['kind']}. Fix: {fix}."
        )
    if dataset.names != "none" and (manifest["patient"] == manifest["image_id"]).all():
        _log.warning(
            "%s: the names do not tell the patient; each image counts as its own", dataset.name
        )
    manifest.attrs["dataset"] = dataset.name
    return manifest


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


def _without_quarantined(dataset: Dataset, manifest: pd.DataFrame) -> pd.DataFrame:
    """Drop the images of the quarantine list and say how many they are."""
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
        raise InvalidDataError(f"{dataset.root} holds no JPEG or PNG image. Fix: {dataset.fix}.")
    for split, labels in manifest.groupby("split")["label"]:
        if labels.nunique() < 2:
            only = "pneumonias" if labels.iloc[0] else "normals"
            fix = f"put images of both classes there, or take the {split} folder away"
            raise InvalidDataError(
                f"{dataset.root}: the {split} split holds {only} only. Fix: {fix}."
            )


def index(dataset: Dataset) -> pd.DataFrame:
    """Return the manifest of everything in the folder, quarantined or not.

    Hashing reads every file, so the hashes are kept in `paths.CACHE` for as long as names, sizes
    and times of change stay the same. `kind` may contradict `label` where a file lies in the wrong
    folder.
    """
    root = dataset.root
    if not root.is_dir():
        raise NotFoundError(f"{dataset.name}: no folder {root}. Fix: {dataset.fix}.")
    if dataset.reader:
        return _from_lists(dataset)
    if shards.is_shards(root):
        fix = "name the folder that they were written from"
        raise InvalidDataError(f"{root} holds shards, not image files. Fix: {fix}.")
    try:
        listing = list_images(root, dataset.split)
        files = listing["relative"].tolist()
        hashes = _hashes(root, files, paths.CACHE / dataset.name)
    except PermissionError as error:
        fix = "allow reading it, or move it away"
        raise InvalidDataError(f"cannot read {error.filename}. Fix: {fix}.") from error
    ids = _unique_ids(root, files)
    patients, kinds = _patients_and_kinds(dataset, ids, listing["folder"].tolist())
    manifest = pd.DataFrame(
        {
            "image_id": ids,
            "path": [str(root / file) for file in files],
            "label": listing["label"].tolist(),
            "patient": patients,
            "kind": kinds,
            "split": listing["split"].tolist(),
            "sha256": hashes,
        }
    )
    # A normal image of another family's name is normal; a pneumonia without a kind is unknown.
    unread = ~manifest["kind"].isin(_PNEUMONIA_KINDS)
    manifest.loc[unread, "kind"] = manifest.loc[unread, "label"].map({0: "normal", 1: "unknown"})
    if dataset.names == "kermany":
        _check_one_version(root, ids)
    return manifest.sort_values("image_id", ignore_index=True)


def _from_lists(dataset: Dataset) -> pd.DataFrame:
    """Return the manifest of a download that has lists instead of class folders."""
    table = challenges.READERS[dataset.reader](dataset.root)
    files = [Path(path).relative_to(dataset.root).as_posix() for path in table["path"]]
    hashes = _hashes(dataset.root, files, paths.CACHE / dataset.name)
    return table.assign(sha256=hashes)[[*challenges.COLUMNS, "sha256"]]


def _unique_ids(root: Path, files: list[str]) -> list[str]:
    """Name each image by its file's name, or by its path where several folders have that name."""
    names = [image_id(file) for file in files]
    images_per_name = Counter(names)
    ids: dict[str, str] = {}
    for file, name in zip(files, names, strict=True):
        unique = name if images_per_name[name] == 1 else _without_suffix(file)
        if unique in ids:
            pair = f"{root / ids[unique]} and {root / file}"
            fix = "rename one of them, or remove it if it is a copy"
            raise InvalidDataError(f"{pair} have the same name {name!r}. Fix: {fix}.")
        ids[unique] = file
    return list(ids)


def _patients_and_kinds(
    dataset: Dataset, ids: list[str], folders: list[str]
) -> tuple[list[str], list[str]]:
    """Read patients from names, else take the folder below the class folder, else the image."""
    patients = []
    kinds = []
    in_folders = 0
    for image, folder in zip(ids, folders, strict=True):
        patient, kind = _READERS[dataset.names](image)
        if patient == image_id(image):
            patient = folder or image
            in_folders += 1 if folder else 0
        patients.append(patient)
        kinds.append(kind)
    if in_folders:
        message = "%s: each folder below a class folder counts as one patient (%d images)"
        _log.warning(message, dataset.name, in_folders)
    return patients, kinds


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


def _hashes(root: Path, files: list[str], cache: Path) -> list[str]:
    """Give the SHA-256 of every file, from the cache where no file has changed."""
    lines = []
    for file in files:
        stat = (root / file).stat()
        lines.append(f"{file}\t{stat.st_size}\t{stat.st_mtime_ns}")
    # File names need not be UTF-8: undecodable bytes are kept as surrogates.
    listing = "\n".join(lines).encode("utf-8", "surrogateescape")
    remembered = cache / f"index-{hashlib.sha256(listing).hexdigest()[:16]}.csv"
    if remembered.exists():
        hashes = _remembered_hashes(remembered, files)
        if hashes is not None:
            return hashes
    with ThreadPoolExecutor(max_workers=4) as pool:
        work = pool.map(_sha256, [root / file for file in files])
        hashes = list(tqdm(work, total=len(files), desc=f"hashing {root.name}", unit="image"))
    with atomic_write(remembered) as temporary:
        table = pd.DataFrame({"relative": files, "sha256": hashes})
        table.to_csv(temporary, index=False, errors="surrogateescape")
    return hashes


def _remembered_hashes(remembered: Path, files: list[str]) -> list[str] | None:
    """Read an index from the cache; None where it is damaged or of other files."""
    try:
        table = pd.read_csv(
            remembered, dtype=str, keep_default_na=False, encoding_errors="surrogateescape"
        )
        hashes: list[str] = table["sha256"].tolist()
        if table["relative"].tolist() == files and all(map(_SHA256.fullmatch, hashes)):
            return hashes
    except (ValueError, KeyError):
        pass
    _log.warning("%s is damaged; the files are hashed anew", remembered)
    return None


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
    return len(list_images(root, dataset.split))


def list_images(root: Path, split: str | None = None) -> pd.DataFrame:
    """List what lies at `root`/split/class/image, or at `root`/class/image when all is one `split`.

    Split folders are train, val (also valid, validation) and test, class folders NORMAL and
    PNEUMONIA, in any case. Folders below a class folder are read as well. Hidden files, thumbnails
    and the like are passed over.

    Parameters
    ----------
    root : Path
        The folder of the data set.
    split : str, optional
        The split of all images, where there are no split folders.

    Returns
    -------
    pandas.DataFrame
        `relative`: the path below `root`.
        `split`: train, val or test.
        `label`: 0 or 1.
        `folder`: the first folder below the class folder, or "".

    Raises
    ------
    InvalidDataError
        If a class folder has another name, or there is no split folder at all.
    """
    rows = []
    for folder, name in _split_folders(root, split).items():
        for class_folder in _folders(folder):
            label = _CLASSES.get(class_folder.name.lower())
            if label is None:
                fix = f"rename it, or move it out of {folder}"
                raise InvalidDataError(
                    f"{class_folder} is neither NORMAL nor PNEUMONIA. Fix: {fix}."
                )
            for file in _image_files(class_folder):
                below = file.relative_to(class_folder).parts[:-1]
                relative = file.relative_to(root).as_posix()
                rows.append((relative, name, label, below[0] if below else ""))
    return pd.DataFrame(rows, columns=["relative", "split", "label", "folder"])


def _split_folders(root: Path, split: str | None) -> dict[Path, str]:
    """Map the split folders to their splits; folders of other names with classes are named."""
    if split:
        return {root: split}
    folders = _folders(root)
    named = {folder: _SPLITS.get(folder.name.lower(), "") for folder in folders}
    splits = {folder: name for folder, name in named.items() if name}
    if not splits:
        names = ", ".join(folder.name for folder in folders) or "no folder at all"
        fix = "arrange the images as <split>/<class>/<image>, with classes NORMAL and PNEUMONIA"
        raise InvalidDataError(
            f"{root} holds neither train nor val nor test but: {names}. Fix: {fix}."
        )
    for folder in folders:
        if folder not in splits and any(c.name.lower() in _CLASSES for c in _folders(folder)):
            _log.warning("%s is not one of train, val, test and is left out", folder)
    return splits


def _image_files(class_folder: Path) -> list[Path]:
    """List the images of a class folder and of the folders in it, and log what else lies there."""
    images: list[Path] = []
    others: list[Path] = []
    for parent, folders, names in os.walk(class_folder, onerror=_raise):
        for name in sorted(filter(_is_wanted, names)):
            file = Path(parent, name)
            is_image = file.suffix.lower() in _SUFFIXES and file.is_file()
            (images if is_image else others).append(file)
        folders[:] = sorted(filter(_is_wanted, folders))
        # A linked folder is not entered: it could lead back here.
        others += [Path(parent, name) for name in folders if Path(parent, name).is_symlink()]
    if others:
        message = "%s: %d entries are not images and are left out, first %s"
        _log.warning(message, class_folder, len(others), others[0].name)
    return images


def _raise(error: OSError) -> None:
    raise error


def _is_wanted(name: str) -> bool:
    return not _LITTER.match(name)


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and _is_wanted(path.name))


def image_id(filename: str) -> str:
    """Return the name without folder, suffix and the hash of a Roboflow export (_jpeg.rf.0a1b2c).

    Bytes that are not UTF-8 are written as `&#…;`, so that the id can be stored anywhere.
    """
    return _without_suffix(filename.replace("\\", "/").rsplit("/", 1)[-1])


def _without_suffix(name: str) -> str:
    stem = _ROBOFLOW.sub("", _SUFFIX.sub("", name))
    return stem.encode("utf-8", "xmlcharrefreplace").decode()


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
