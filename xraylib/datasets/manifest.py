"""What file and folder names say: split, class, patient and kind of pneumonia.

The names of the Kermany files are the only place where the patient is written down, so every
patient-grouped figure of this repository rests on `patient_and_kind`.
"""

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

from xraylib.storage import DataInvalid, NotFound

NameReader = Callable[[str], tuple[str, str]]

SUFFIXES = (".jpeg", ".jpg", ".png")
CLASSES = {"normal": 0, "pneumonia": 1}
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}

_SUFFIX = re.compile(r"\.(jpe?g|png)$", re.IGNORECASE)
_ROBOFLOW = re.compile(r"_(jpe?g|png)\.rf\.[0-9A-Za-z]+$")
_PNEUMONIA = re.compile(r"(person[0-9]+_(bacteria|virus))(?:_[0-9]+)+")
_NORMAL = re.compile(r"((?:NORMAL2-)?IM-[0-9]+)(?:-[0-9]+)+")
_NIH = re.compile(r"([0-9]+)_[0-9]+")

_log = logging.getLogger(__name__)


def image_id(filename: str) -> str:
    """Return the name without folder, suffix and the hash of a Roboflow export.

    >>> image_id("train/PNEUMONIA/person100_bacteria_475_jpeg.rf.0a1b2c.jpg")
    'person100_bacteria_475'
    """
    name = filename.replace("\\", "/").rsplit("/", 1)[-1]
    return _ROBOFLOW.sub("", _SUFFIX.sub("", name))


def patient_and_kind(filename: str) -> tuple[str, str]:
    """Read patient and kind from a file name of the Kermany family.

    Parameters
    ----------
    filename
        With or without folders, suffix and the hash of a Roboflow export.

    Returns
    -------
    patient, kind
        `kind` is ``normal``, ``bacteria``, ``virus`` or, for a name of another family, ``unknown``;
        then `patient` is the name without suffix, so that the image counts as its own patient.

    Notes
    -----
    Whether `person100_bacteria` and `person100_virus` are one child is not documented by Kermany et al.
    (2018); they are two patients here, and `person_number` gives the other reading.

    Examples
    --------
    >>> patient_and_kind("person100_bacteria_475.jpeg")
    ('person100_bacteria', 'bacteria')
    >>> patient_and_kind("NORMAL2-IM-1427-0001.jpeg")
    ('NORMAL2-IM-1427', 'normal')
    >>> patient_and_kind("scan7.png")
    ('scan7', 'unknown')
    """
    stem = image_id(filename)
    if found := _PNEUMONIA.fullmatch(stem):
        return found[1], found[2]
    if found := _NORMAL.fullmatch(stem):
        return found[1], "normal"
    return stem, "unknown"


def nih_patient_and_kind(filename: str) -> tuple[str, str]:
    """Read the patient from an NIH ChestX-ray14 name, ``<patient>_<follow-up>``; the kind is not known.

    >>> nih_patient_and_kind("00001280_004.jpeg")
    ('nih00001280', 'unknown')
    """
    stem = image_id(filename)
    found = _NIH.fullmatch(stem)
    return (f"nih{found[1]}" if found else stem), "unknown"


def each_its_own(filename: str) -> tuple[str, str]:
    """Treat each image as its own patient, for data sets that do not publish the patient."""
    return image_id(filename), "unknown"


def person_number(patient: str) -> str:
    """Return the bare reading of a Kermany patient; any other patient is returned unchanged.

    >>> person_number("person100_bacteria"), person_number("IM-0115")
    ('person100', 'IM-0115')
    """
    found = re.fullmatch(r"(person[0-9]+)_(?:bacteria|virus)", patient)
    return found[1] if found else patient


def list_images(root: Path, split: str | None = None) -> Iterator[tuple[str, str, int]]:
    """Walk `root`/split/class/image, or `root`/class/image when the whole folder is one `split`.

    Parameters
    ----------
    root
        Folders named train, val (also valid, validation) and test, each with folders NORMAL and
        PNEUMONIA; upper and lower case are the same. Hidden files and `__MACOSX` are passed over.
    split
        The split of all images when there is no folder level for it.

    Yields
    ------
    relative, split, label
        Path below `root` with forward slashes; ``train``, ``val`` or ``test``; 0 normal, 1 pneumonia.

    Raises
    ------
    DataInvalid
        When no split folder is there, or a class folder has another name than the two known.
    """
    if split:
        yield from _list_classes(root, root, split)
        return
    folders = _folders(root)
    splits = [folder for folder in folders if folder.name.lower() in _SPLITS]
    if not splits:
        held = ", ".join(folder.name for folder in folders) or "no folder at all"
        raise DataInvalid(
            f"{root} holds neither train nor val nor test but: {held}. "
            "Fix: arrange the images as <split>/<class>/<image>, with classes NORMAL and PNEUMONIA."
        )
    for folder in folders:
        if folder in splits:
            yield from _list_classes(root, folder, _SPLITS[folder.name.lower()])
        elif any(below.name.lower() in CLASSES for below in _folders(folder)):
            _log.warning("%s is not one of train, val, test and is left out", folder)


def _list_classes(root: Path, folder: Path, split: str) -> Iterator[tuple[str, str, int]]:
    for below in _folders(folder):
        if below.name.lower() not in CLASSES:
            raise DataInvalid(
                f"{below} is neither NORMAL nor PNEUMONIA. Fix: rename it, or move it out of {folder}."
            )
        left_out = []
        for file in sorted(below.iterdir()):
            if file.name.startswith("."):
                continue
            if file.is_file() and file.suffix.lower() in SUFFIXES:
                yield file.relative_to(root).as_posix(), split, CLASSES[below.name.lower()]
            else:
                left_out.append(file.name)
        if left_out:
            _log.warning(
                "%s: %d entries are not images and are left out, first %s", below, len(left_out), left_out[0]
            )


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        raise NotFound(f"{root} is not a folder.")
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith((".", "__MACOSX")))


def read_names(listing: pd.DataFrame, root: Path, names: NameReader) -> pd.DataFrame:
    """Add what the names say to a listing of files.

    Parameters
    ----------
    listing
        Columns `relative`, `split`, `label`, `sha256`.
    root
        The folder `relative` starts from.
    names
        Gives patient and kind for a file name, such as `patient_and_kind`.

    Returns
    -------
    DataFrame
        The manifest sorted by `image_id`: image_id, path, label, patient, kind, split, sha256. `kind` may
        contradict `label` where a file lies in the wrong folder.

    Raises
    ------
    DataInvalid
        When two files have one name.
    """
    files = listing["relative"].tolist()
    ids = [image_id(file) for file in files]
    first: dict[str, str] = {}
    for name, file in zip(ids, files, strict=True):
        if first.setdefault(name, file) != file:
            raise DataInvalid(
                f"{root / first[name]} and {root / file} have the same name {name!r}, "
                "which must tell one image. Fix: rename one of them."
            )
    labels = listing["label"].tolist()
    said = [names(file) for file in files]
    manifest = pd.DataFrame(
        {
            "image_id": ids,
            "path": [str(root / file) for file in files],
            "label": labels,
            "patient": [patient for patient, _ in said],
            "kind": [_kind(label, kind) for label, (_, kind) in zip(labels, said, strict=True)],
            "split": listing["split"].tolist(),
            "sha256": listing["sha256"].tolist(),
        }
    )
    return manifest.sort_values("image_id", ignore_index=True)


def _kind(label: int, said: str) -> str:
    if said in ("bacteria", "virus"):
        return said
    return "normal" if label == 0 else "unknown"
