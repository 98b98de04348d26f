"""The data sets by name: their source, licence and how many images to expect.

Whom to cite stands in data/README.md.
"""

import difflib
import json
import os
import re
import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from xraylib import paths
from xraylib.datasets.phantom import PhantomSettings
from xraylib.errors import InvalidDataError, NotFoundError
from xraylib.storage import sha256_bytes

# Images by split: (normal, pneumonia), or (both,) where no more is published.
Counts = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Dataset:
    """A data set: what `fetch` downloads, how `manifest` reads it, and what `verify` expects.

    Attributes
    ----------
    folder : str
        Where it lies below `paths.DATA`, or an absolute path.
    url, file, checksum : str
        What `fetch` downloads, under which name, and the published checksum (None without one).
    kaggle : str
        The name of the same data at Kaggle.
    by_hand : str
        How to get what cannot be fetched.
    split : str or None
        The split of all images, whatever folders there are; `new` for one that is made by patient.
    classes : mapping of str to int
        The label (0 normal, 1 pneumonia) of each name of a class; other classes are left out.
        Empty for the usual names.
    patient_regex : str
        What the patient is in a file's path below the folder: the first group, or all of it.
    table : str
        An absolute path of a CSV that lists the images of the folder.
    given : str
        The path by which a user named the data set.
    names : str
        How a file name is read: as `kermany`'s, as `nih`'s, or as saying nothing (`none`), so that
        each image has to count as its own patient.
    reader : str
        The key of `challenges.READERS` for a download that has lists instead of class folders.
    originals : str
        A list of the original files below `paths.DATA`, for copies that were brought to one size
        (see `audit.originals`).
    expected : tuple of (Counts, str)
        The editions that are known, with a remark for an incomplete one.
    """

    name: str
    title: str
    source: str
    licence: str
    folder: str
    url: str = ""
    file: str = ""
    checksum: str | None = None
    kaggle: str = ""
    by_hand: str = ""
    split: str | None = None
    classes: Mapping[str, int] = field(default_factory=dict)
    patient_regex: str = ""
    table: str = ""
    given: str = ""
    names: str = "kermany"
    reader: str = ""
    originals: str = ""
    expected: tuple[tuple[Counts, str], ...] = ()
    phantom: PhantomSettings | None = None

    @property
    def root(self) -> Path:
        """The folder that holds the split folders (or the class folders when `split` is set)."""
        if self.phantom:
            return paths.CACHE / f"phantom-{self.phantom.key}"
        return paths.DATA / self.folder

    @property
    def is_own(self) -> bool:
        """Whether it is a user's own, named by a path."""
        return bool(self.given)

    @property
    def reference(self) -> str:
        """What a user types for it in a command."""
        return shlex.quote(self.given) if self.given else self.name

    @property
    def fix(self) -> str:
        """How to get what is missing, for an error message."""
        if self.phantom:
            return f"remove {self.root}; it is written anew"
        if Path(self.folder).is_absolute():
            return self.by_hand
        how = f"run `python -m xraylib data fetch {self.name}`" if self.url else self.by_hand
        moved = f"set XRAYLIB_DATA to the folder that holds {self.folder} (it is {paths.DATA})"
        return f"{how}; or {moved}"


_VERSION_3 = "https://data.mendeley.com/datasets/rscbjbr9sj/3"
_TEST = {"test": (234, 390)}
_ROBOFLOW = "https://huggingface.co/datasets/keremberke/chest-xray-classification"

_ALL = (
    Dataset(
        name="phantom",
        title="Simulated images with a known lesion",
        source="xraylib.datasets.phantom",
        licence="Apache-2.0",
        folder="",
        phantom=PhantomSettings(),
    ),
    Dataset(
        name="kermany",
        title="Chest X-rays of children, Guangzhou (Kermany et al. 2018)",
        source="https://data.mendeley.com/datasets/rscbjbr9sj/2",
        licence="CC BY 4.0",
        folder="chest_xray",
        originals="kermany_originals.csv",
        url="https://data.mendeley.com/public-files/datasets/rscbjbr9sj/files/"
        "f12eaf6d-6023-432f-acc9-80c9d7393433/file_downloaded",
        file="ChestXRay2017.zip",
        kaggle="paultimothymooney/chest-xray-pneumonia",
        expected=(
            ({"train": (1341, 3875), "val": (8, 8), **_TEST}, ""),
            # The publisher's own archive has no val folder: its 16 images are in train.
            ({"train": (1349, 3883), **_TEST}, ""),
            ({"train": (1341, 3875), **_TEST}, "the 16 images of the val folder are missing"),
        ),
    ),
    Dataset(
        name="kermany-v3",
        title="The same images under the authors' numbering of patients (version 3 of the data)",
        source=_VERSION_3,
        licence="CC BY 4.0",
        folder="chest_xray_v3",
        by_hand=f"download the archive of chest X-rays from {_VERSION_3} and unpack its folders "
        "train and test there",
        expected=(
            ({"train": (1349, 3883), **_TEST}, ""),
            (
                {"train": (1349, 3883), "test": (233, 390)},
                "one normal test image is missing, as in the public list of version 3's names",
            ),
        ),
    ),
    Dataset(
        name="kermany-roboflow",
        title="Kermany's images at 640×640, split anew image by image (Roboflow export)",
        source=_ROBOFLOW,
        licence="CC BY 4.0",
        folder="chest_xray_roboflow",
        by_hand=f"unpack data/train.zip, data/valid.zip and data/test.zip of {_ROBOFLOW} "
        "into the folders train, val and test there",
        expected=(({"train": (4077,), "val": (1165,), "test": (582,)}, ""),),
    ),
    Dataset(
        name="pneumoniamnist",
        title="PneumoniaMNIST: Kermany's images, centre-cropped, 28×28",
        source="https://zenodo.org/records/10519652",
        licence="CC BY 4.0",
        folder="pneumoniamnist_28",
        url="https://zenodo.org/records/10519652/files/pneumoniamnist.npz?download=1",
        file="pneumoniamnist.npz",
        checksum="md5:28209eda62fecd6e6a2d98b1501bb15f",
        names="none",
        expected=(({"train": (1214, 3494), "val": (135, 389), **_TEST}, ""),),
    ),
    Dataset(
        name="nih",
        title="NIH ChestX-ray14, a selection of frontal images for external validation",
        source="https://nihcc.app.box.com/v/ChestXray-NIHCC",
        licence="no restriction on use; credit the NIH Clinical Center and cite the paper",
        folder="nih_external",
        by_hand="download images and Data_Entry_2017.csv from "
        "https://nihcc.app.box.com/v/ChestXray-NIHCC, and put those labelled 'No Finding' into a "
        "folder NORMAL and those labelled Pneumonia into a folder PNEUMONIA there, under their own "
        "names",
        split="test",
        names="nih",
    ),
    Dataset(
        name="rsna",
        title="RSNA Pneumonia Detection Challenge: adults, classes and boxes of radiologists",
        source="https://www.kaggle.com/c/rsna-pneumonia-detection-challenge",
        licence="RSNA's terms: research and education, with attribution",
        folder="rsna",
        by_hand="accept the challenge's rules on Kaggle, download it and unpack it there",
        split="test",
        names="none",
        reader="rsna",
    ),
    Dataset(
        name="vindr-pcxr",
        title="VinDr-PCXR: children under 10, findings of radiologists",
        source="https://physionet.org/content/vindr-pcxr/1.0.0/",
        licence="PhysioNet Credentialed Health Data License, which needs an agreement",
        folder="vindr-pcxr",
        by_hand="sign the data use agreement on PhysioNet, download it and unpack it there",
        split="test",
        names="none",
        reader="vindr-pcxr",
    ),
)
DATASETS: dict[str, Dataset] = {dataset.name: dataset for dataset in _ALL}
TABLES = (".csv", ".tsv")
# What a description can set, as `understand` takes it.
_SETTINGS = ("classes", "patient_regex", "split")
_SPLITS = ("train", "val", "test", "new")
# Folders and files that this process has looked up by path, by the name of their report.
_FOLDERS: dict[str, Dataset] = {}


def get_dataset(name: str | Path | Dataset) -> Dataset:
    """Return the data set of that name, or one for the folder, CSV or description at that path.

    The name of a folder's report, as `manifest.attrs["dataset"]` holds it, finds the folder again
    in the process that has looked the folder up by its path.

    Raises
    ------
    NotFoundError
        If there is neither a data set of that name nor a folder or file at that path.
    InvalidDataError
        If a file is neither a CSV nor a description.
    """
    if isinstance(name, Dataset):
        return name
    if name in DATASETS:
        return DATASETS[str(name)]
    if name in _FOLDERS:
        return _FOLDERS[str(name)]
    path = Path(name).expanduser()
    if path.is_file():
        dataset = _from_file(path.resolve())
    elif path.is_dir():
        dataset = _from_path(path.resolve(), path.resolve())
    else:
        near = difflib.get_close_matches(str(name).rstrip("/\\"), DATASETS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        fix = (
            f"take one of {', '.join(DATASETS)}, or the path of a folder, CSV or description; "
            "mount a bucket first (`gcsfuse`)"
        )
        raise NotFoundError(f"{str(name)!r} is no data set and no folder.{hint} Fix: {fix}.")
    _FOLDERS[dataset.name] = dataset
    return dataset


def _from_path(given: Path, images: Path) -> Dataset:
    """Return the data set of a folder or CSV, under the path by which it is called."""
    # Two folders of one name must not share an index or a quarantine list.
    mark = sha256_bytes(os.fsencode(given))[:8]
    # Undecodable bytes are replaced, and a long name leaves room for what is added to it.
    title = os.fsencode(given.name)[:100].decode("utf-8", "replace")
    is_table = images.is_file()
    return Dataset(
        name=f"folder-{title}-{mark}",
        title=f"Images in {'the folder ' if given.is_dir() else ''}{title}",
        source="",
        licence="",
        folder=str(images.parent if is_table else images),
        table=str(images) if is_table else "",
        given=str(given),
        by_hand="see `Your own radiographs` in data/README.md for the layouts that are read",
    )


def _from_file(file: Path) -> Dataset:
    """Return the data set that a table of images, or a description, is about."""
    suffix = file.suffix.lower()
    if suffix in TABLES:
        return _from_path(file, file)
    if suffix == ".toml":
        return _read_description(file)
    fix = (
        "give the folder of the images, a CSV with the columns path and label, or a description; "
        "arrays of PneumoniaMNIST are unpacked by `python -m xraylib data fetch pneumoniamnist`"
    )
    raise InvalidDataError(f"{file} is neither a table nor a description. Fix: {fix}.")


def _read_description(file: Path) -> Dataset:
    """Read a description that a user wrote (data/README.md, `Your own radiographs`)."""
    try:
        settings = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        fix = "write it as data/README.md shows (`Your own radiographs`)"
        raise InvalidDataError(
            f"{file} is no description of images: {error}. Fix: {fix}."
        ) from error
    unknown = sorted(set(settings) - {"images", *_SETTINGS})
    if unknown:
        fix = f"use {', '.join(('images', *_SETTINGS))}"
        raise InvalidDataError(f"{file}: {unknown[0]!r} is no setting. Fix: {fix}.")
    location = settings.pop("images", ".")
    images = file.parent / Path(str(location)).expanduser()
    if not images.exists() or (images.is_file() and images.suffix.lower() not in TABLES):
        fix = "let images name a folder or a CSV, from the folder of this file on"
        raise NotFoundError(f"{file}: images is {location!r}, which is neither. Fix: {fix}.")
    return understand(_from_path(file, images.resolve()), **settings)


def understand(
    dataset: Dataset,
    classes: Mapping[str, Any] | None = None,
    patient_regex: str | None = None,
    split: str | None = None,
) -> Dataset:
    """Return a data set that is read in another way; None keeps a setting.

    Parameters
    ----------
    dataset : Dataset
        Any.
    classes : mapping of str to int, optional
        The label, 0 or 1, of each class's name.
    patient_regex : str, optional
        Finds the patient in a file's path below the folder.
    split : str, optional
        `train`, `val` or `test` for all images, or `new` for a split that is made by patient.

    Raises
    ------
    InvalidDataError
        If a setting has no such value.
    """
    changes: dict[str, Any] = {}
    if classes is not None:
        is_mapping = isinstance(classes, Mapping)
        if not is_mapping or sorted(set(map(str, classes.values()))) != ["0", "1"]:
            fix = "name both classes, such as classes = {normal = 0, opacity = 1}"
            raise InvalidDataError(f"classes is {classes!r}, not labels 0 and 1. Fix: {fix}.")
        changes["classes"] = {name: int(label) for name, label in classes.items()}
    if patient_regex is not None:
        try:
            re.compile(patient_regex)
        except (re.error, TypeError) as error:
            fix = r"give one whose first group is the patient, such as '^(\d+)_'"
            message = f"patient_regex is {patient_regex!r}, no regular expression ({error})"
            raise InvalidDataError(f"{message}. Fix: {fix}.") from error
        changes["patient_regex"] = patient_regex
    if split is not None:
        if split not in _SPLITS:
            fix = f"take one of {', '.join(_SPLITS)}"
            raise InvalidDataError(f"split is {split!r}. Fix: {fix}.")
        changes["split"] = split
    return replace(dataset, **changes)


def description(dataset: Dataset) -> str:
    """Write a data set of a path as a description, which `get_dataset` reads."""
    lines = [f"images = {json.dumps(dataset.table or dataset.folder, ensure_ascii=False)}"]
    if dataset.classes:
        pairs = [f"{json.dumps(name)} = {label}" for name, label in dataset.classes.items()]
        lines.append(f"classes = {{{', '.join(pairs)}}}")
    if dataset.patient_regex:
        lines.append(f"patient_regex = {json.dumps(dataset.patient_regex)}")
    if dataset.split:
        lines.append(f"split = {json.dumps(dataset.split)}")
    return "\n".join(lines)


def reference(name: str) -> str:
    """Return what a user types for the data set of a report: its name, or its path."""
    return _FOLDERS[name].given if name in _FOLDERS else name
