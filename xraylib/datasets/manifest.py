"""The manifest: one row an image, sorted by `image_id`, and how it is read from folders and file names.

Its columns are `image_id` (str, unique, the file name without suffix), `path`, `label` (0 normal, 1 pneumonia),
`patient`, `kind` (normal, bacteria, virus, unknown), `split` (train, val, test) and `sha256` (of the file). The names
of Kermany's files are the only place where the patient is written down, so every patient-grouped number of this
repository rests on `patient_and_kind`.
"""

import hashlib
import logging
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from xraylib import paths
from xraylib.datasets import phantom, shards
from xraylib.datasets.catalog import Dataset, get_dataset
from xraylib.errors import InvalidDataError, NotFoundError
from xraylib.storage import atomic_write

_log = logging.getLogger(__name__)

_SUFFIXES = (".jpeg", ".jpg", ".png")
_CLASSES = {"normal": 0, "pneumonia": 1}
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}

_SUFFIX = re.compile(r"\.(jpe?g|png)$", re.IGNORECASE)
_ROBOFLOW = re.compile(r"_(jpe?g|png)\.rf\.[0-9A-Za-z]+$")
_PNEUMONIA = re.compile(r"person([0-9]+)_(bacteria|virus)(?:_[0-9]+)+")
_NORMAL = re.compile(r"(NORMAL2-IM|IM)-([0-9]+)(?:-[0-9]+)+")
# The numbers (first, last) that Kermany's test folder has in each series of names. The training folder has none of
# them, so a name tells its folder even where a copy was split anew.
_TEST_NUMBERS = {
    "bacteria": ((78, 175),),
    "virus": ((1, 79), (1608, 1608), (1610, 1685)),
    "IM": ((1, 111),),
    "NORMAL2-IM": ((1, 381),),
}
_NIH = re.compile(r"([0-9]+)_[0-9]+")


def load(name: str | Path | Dataset) -> pd.DataFrame:
    """Return the manifest of a data set, without the images in its quarantine list.

    `name` is a key of `catalog.DATASETS`, or the path of a folder {train,val,test}/{NORMAL,PNEUMONIA}/*.jpeg (or jpg,
    png), or of one that `shards.write` wrote; `attrs["dataset"]` is its name. Nothing is ever downloaded here.
    `InvalidDataError` when a split holds one class only, two images have one name, or a name contradicts its folder.
    """
    dataset = get_dataset(name)
    if dataset.phantom:
        phantom.write(dataset.root, dataset.phantom)
    sharded = (dataset.root / "shards.json").is_file()
    manifest = shards.read_manifest(dataset.root) if sharded else index(dataset)
    listed = quarantine_path(dataset)
    if listed.exists():
        total, bad = len(manifest), manifest["image_id"].isin(read_quarantine(listed))
        manifest = manifest[~bad].reset_index(drop=True)
        if bad.any():
            _log.warning(
                "%s: %d of %d images are left out, see %s", dataset.name, bad.sum(), total, listed
            )
    check_classes(dataset, manifest)
    wrong = manifest[(manifest["label"] == 0) & manifest["kind"].isin(["bacteria", "virus"])]
    if len(wrong):
        path, kind = wrong.iloc[0][["path", "kind"]]
        fix = f"move it, or run `python -m xraylib data audit {dataset.name}` to leave it out"
        raise InvalidDataError(
            f"{path} lies among the normals but its name says {kind}. Fix: {fix}."
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


def check_classes(dataset: Dataset, manifest: pd.DataFrame) -> None:
    """Refuse a data set without images, or with a split of one class only."""
    if manifest.empty:
        raise InvalidDataError(f"{dataset.root} holds no JPEG or PNG image. Fix: {dataset.fix}.")
    for split, labels in manifest.groupby("split")["label"]:
        if labels.nunique() < 2:
            held = "pneumonias" if labels.iloc[0] else "normals"
            fix = f"put images of both classes there, or take the {split} folder away"
            raise InvalidDataError(
                f"{dataset.root}: the {split} split holds {held} only. Fix: {fix}."
            )


def index(dataset: Dataset) -> pd.DataFrame:
    """Return the manifest of everything in the folder, quarantined or not.

    Hashing reads every file, so the hashes are kept in `paths.CACHE` for as long as names, sizes and times of change
    stay the same. `kind` may contradict `label` where a file lies in the wrong folder.
    """
    root = dataset.root
    if not root.is_dir():
        raise NotFoundError(f"{dataset.name}: no folder {root}. Fix: {dataset.fix}.")
    try:
        listing = list_images(root, dataset.split)
        files = listing["relative"].tolist()
        hashes = _hashes(root, files, paths.CACHE / dataset.name)
    except PermissionError as error:
        raise InvalidDataError(
            f"cannot read {error.filename}. Fix: allow reading it, or move it away."
        ) from error
    first: dict[str, str] = {}
    for file in files:
        if (other := first.setdefault(image_id(file), file)) != file:
            both = f"{root / other} and {root / file} have the same name {image_id(file)!r}"
            raise InvalidDataError(f"{both}, which must tell one image. Fix: rename one of them.")
    said = [_READERS[dataset.names](file) for file in files]
    manifest = pd.DataFrame(
        {
            "image_id": list(first),
            "path": [str(root / file) for file in files],
            "label": listing["label"].tolist(),
            "patient": [patient for patient, _ in said],
            "kind": [kind for _, kind in said],
            "split": listing["split"].tolist(),
            "sha256": hashes,
        }
    )
    # A normal image of another family's name is normal, and an image without pneumonia's kind unknown.
    unread = ~manifest["kind"].isin(["bacteria", "virus"])
    manifest.loc[unread, "kind"] = manifest.loc[unread, "label"].map({0: "normal", 1: "unknown"})
    return manifest.sort_values("image_id", ignore_index=True)


def _hashes(root: Path, files: list[str], cache: Path) -> list[str]:
    stats = [(root / file).stat() for file in files]
    listing = "\n".join(
        f"{file}\t{s.st_size}\t{s.st_mtime_ns}" for file, s in zip(files, stats, strict=True)
    )
    remembered = cache / f"index-{hashlib.sha256(listing.encode()).hexdigest()[:16]}.csv"
    if remembered.exists():
        known = pd.read_csv(remembered, dtype=str, keep_default_na=False)
        if known["relative"].tolist() == files:
            return known["sha256"].tolist()
    with ThreadPoolExecutor(max_workers=4) as pool:
        work = pool.map(_sha256, [root / file for file in files])
        # disable=None: a bar on a terminal only, not in a log file or a notebook's output.
        found = list(
            tqdm(work, total=len(files), desc=f"hashing {root.name}", unit="image", disable=None)
        )
    with atomic_write(remembered) as temporary:
        pd.DataFrame({"relative": files, "sha256": found}).to_csv(temporary, index=False)
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def count(dataset: Dataset) -> int:
    """How many images are there; 0 without the folder."""
    root = dataset.root
    return len(list_images(root, dataset.split)) if root.is_dir() and any(root.iterdir()) else 0


def list_images(root: Path, split: str | None = None) -> pd.DataFrame:
    """List what lies at `root`/split/class/image, or at `root`/class/image when all is one `split`.

    Split folders are train, val (also valid, validation) and test, class folders NORMAL and PNEUMONIA, in any case;
    hidden files and `__MACOSX` are passed over. The columns are `relative` (path below `root`), `split` and `label`. A
    class folder of another name, or no split folder at all, is `InvalidDataError`.
    """
    folders = {folder: _SPLITS.get(folder.name.lower(), "") for folder in _folders(root)}
    if split:
        folders = {root: split}
    elif not any(folders.values()):
        held = ", ".join(folder.name for folder in folders) or "no folder at all"
        fix = "arrange the images as <split>/<class>/<image>, with classes NORMAL and PNEUMONIA"
        raise InvalidDataError(
            f"{root} holds neither train nor val nor test but: {held}. Fix: {fix}."
        )
    rows = []
    for folder, name in folders.items():
        if not name:
            if any(below.name.lower() in _CLASSES for below in _folders(folder)):
                _log.warning("%s is not one of train, val, test and is left out", folder)
            continue
        for below in _folders(folder):
            if (label := _CLASSES.get(below.name.lower())) is None:
                fix = f"rename it, or move it out of {folder}"
                raise InvalidDataError(f"{below} is neither NORMAL nor PNEUMONIA. Fix: {fix}.")
            files = sorted(file for file in below.iterdir() if not file.name.startswith("."))
            images = [file for file in files if file.suffix.lower() in _SUFFIXES and file.is_file()]
            if other := sorted(set(files) - set(images)):
                said = "%s: %d entries are not images and are left out, first %s"
                _log.warning(said, below, len(other), other[0].name)
            rows += [(file.relative_to(root).as_posix(), name, label) for file in images]
    return pd.DataFrame(rows, columns=["relative", "split", "label"])


def _folders(root: Path) -> list[Path]:
    return sorted(
        p for p in root.iterdir() if p.is_dir() and not p.name.startswith((".", "__MACOSX"))
    )


def image_id(filename: str) -> str:
    """Return the name without folder, suffix and the hash of a Roboflow export (_jpeg.rf.0a1b2c)."""
    name = filename.replace("\\", "/").rsplit("/", 1)[-1]
    return _ROBOFLOW.sub("", _SUFFIX.sub("", name))


def patient_and_kind(filename: str) -> tuple[str, str]:
    """Read the patient and the kind (normal, bacteria, virus) from a file name of Kermany's family.

    The patients are those of the authors' own numbering, in version 3 of the data (doi 10.17632/rscbjbr9sj.3):
    `person7_bacteria` and `person7_virus` of one folder are one child, and so are `IM-0300` and `NORMAL2-IM-0300` of
    the training folder. In the test folder these two series are two children. Numbers start anew in the test folder,
    whose patients are called `test-…` here. A name of another family has the kind `unknown` and is its own patient.
    """
    stem = image_id(filename)
    if match := _PNEUMONIA.fullmatch(stem):
        number, kind = int(match[1]), match[2]
        return f"{_folder_prefix(kind, number)}person{number}", kind
    if match := _NORMAL.fullmatch(stem):
        series, number = match[1], int(match[2])
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
        `same number`: a number is one child in both folders. An image of another family of names is its own patient.
    """
    stem = image_id(image)
    if match := _PNEUMONIA.fullmatch(stem):
        return {
            "same number and kind": f"person{match[1]}_{match[2]}",
            "same number": f"person{match[1]}",
        }
    if match := _NORMAL.fullmatch(stem):
        return {"same number and kind": f"{match[1]}-{match[2]}", "same number": f"IM-{match[2]}"}
    return {"same number and kind": stem, "same number": stem}


def _nih_patient_and_kind(filename: str) -> tuple[str, str]:
    found = _NIH.fullmatch(image_id(filename))  # <patient>_<follow-up>
    return (f"nih{found[1]}" if found else image_id(filename)), "unknown"


# By `Dataset.names`.
_READERS = {
    "kermany": patient_and_kind,
    "nih": _nih_patient_and_kind,
    "none": lambda filename: (image_id(filename), "unknown"),
}


def series_and_number(manifest: pd.DataFrame) -> pd.DataFrame:
    """Read the series of names, and the patient's number in it, of every image.

    Returns
    -------
    pandas.DataFrame
        `series`: `bacteria`, `virus`, `IM` or `NORMAL2-IM` for names of Kermany's family, else the text before the
        number in `patient`. `number`: float, missing where there is none. The index is that of `manifest`.
    """
    rows = []
    for stem, patient in zip(manifest["image_id"], manifest["patient"], strict=True):
        if match := _PNEUMONIA.fullmatch(stem):
            rows.append((match[2], float(match[1])))
        elif (match := _NORMAL.fullmatch(stem)) or (
            match := re.search(r"^(.*?)([0-9]+)[^0-9]*$", patient)
        ):
            rows.append((match[1], float(match[2])))
        else:
            rows.append(("", float("nan")))
    return pd.DataFrame(rows, columns=["series", "number"], index=manifest.index)
