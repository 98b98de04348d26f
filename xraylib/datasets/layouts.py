"""How a data set lies on disk: split folders, class folders, a table (CSV), or a table per split.

Nothing of a user's is changed. Each file that is not read is listed with its reason.
"""

import errno
import os
import re
import shlex
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import numpy as np
import pandas as pd

from xraylib.datasets.catalog import TABLES, Dataset
from xraylib.datasets.files import HIDDEN, Listing, PassedOver, is_litter, list_folder
from xraylib.errors import InvalidDataError

# What the names of classes mean, as `_plain` writes them: normal, pneumonia, or its kind.
_CLASSES = {
    "normal": "normal",
    "normals": "normal",
    "no pneumonia": "normal",
    "pneumonia": "pneumonia",
    "pneumonias": "pneumonia",
    "bacteria": "bacteria",
    "bacterial": "bacteria",
    "bacterial pneumonia": "bacteria",
    "virus": "virus",
    "viral": "virus",
    "viral pneumonia": "virus",
}
_IN_TABLES = {"0": "normal", "1": "pneumonia", "0.0": "normal", "1.0": "pneumonia"}
_KINDS = ("bacteria", "virus")
_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
# The names that each column of a table may have, in small letters without spaces and underscores.
_NAMES_OF_COLUMNS = {
    "path": ("path", "file", "filename", "image", "imagepath", "imageid", "imageindex"),
    "label": ("label", "class", "target", "diagnosis", "findinglabels"),
    "patient": ("patient", "patientid", "subject", "subjectid"),
    "split": ("split",),
}
_NUMBER = re.compile(r"[-+]?[0-9.]+")
_IN_NAMES_OF_SPLITS = re.compile("train|val|test")
_MASKS = {"mask", "masks"}
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Layout:
    """What was found of a data set.

    Attributes
    ----------
    root : Path
        The folder that `relative` starts from.
    images : pandas.DataFrame
        One row per image.

        - `relative`: its path from `root` on.
        - `split`: train, val, test, or empty where nothing says it.
        - `label`: 0 or 1.
        - `kind`: bacteria or virus where its class says so, else empty.
        - `patient`: as the table says it, else empty.
        - `folder`: the folder below the class folder, or empty.
    passed_over : list of PassedOver
        Files and folders that are not read.
    """

    root: Path
    images: pd.DataFrame
    passed_over: list[PassedOver]


def read_layout(dataset: Dataset) -> Layout:
    """List the images of a data set and what is known of each before a file is opened.

    Raises
    ------
    InvalidDataError
        If there are neither class folders nor a usable table, or if a class is neither normal nor
        pneumonia.
    PermissionError
        If a folder cannot be read.
    """
    if dataset.table:
        file = Path(dataset.table)
        layout = _understand(dataset, file, dataset.root, _rows_of_table(file, dataset.root))
    else:
        layout = _read_folders(dataset)
    if dataset.split:
        layout.images["split"] = "" if dataset.split == "new" else dataset.split
    return layout


def first_names(names: Iterable[object]) -> str:
    """List the first five names, for a message."""
    listed = list(map(str, names))
    return ", ".join(listed[:5]) + (", …" if len(listed) > 5 else "")


def _plain(name: str) -> str:
    """Write a name in small letters, with single spaces and without a number before it."""
    if _NUMBER.fullmatch(name.strip()):
        return name.strip()
    text = unicodedata.normalize("NFC", name).casefold()
    words = re.sub(r"[\s_-]+", " ", text).strip()
    return re.sub(r"^[0-9]+ ", "", words)


def _classes_of(dataset: Dataset, usual: Mapping[str, str] = _CLASSES) -> Mapping[str, str]:
    """Give what the plain name of a class means: the user says it, else it is as usual."""
    meanings = ("normal", "pneumonia")
    given = {_plain(name): meanings[label] for name, label in dataset.classes.items()}
    return given or usual


def _unnamed_classes(dataset: Dataset, content: str, names: Collection[str]) -> InvalidDataError:
    """Advise which command names the classes; recognised ones come first, normal before pneumonia.

    A single other class gets the label that is missing. Of several, the user has to choose.
    """
    meanings = {name: _CLASSES.get(_plain(name)) for name in names}
    recognised = {name: int(of != "normal") for name, of in meanings.items() if of}
    labels: dict[str, object] = dict(sorted(recognised.items(), key=itemgetter(1)))
    others = [name for name in names if name not in recognised]
    missing = {0, 1} - set(recognised.values())
    choice = ""
    if len(missing) == len(others) == 1:
        labels[others[0]] = missing.pop()
    elif missing:
        labels |= dict.fromkeys(others[:5], "?")
        choice = " with 0 for normal, 1 for pneumonia in place of ?"
    classes = ",".join(f"{name}={label}" for name, label in labels.items())
    command = f'`python -m xraylib data verify {dataset.reference} --classes "{classes}"`'
    return InvalidDataError(
        f"{content}. Fix: say which classes are normal (0) and pneumonia (1), such as "
        f"{command}{choice}; classes that are not named are left out."
    )


def _not_understood(dataset: Dataset, content: str, names: Iterable[str] = ()) -> InvalidDataError:
    """Advise to give a table that lies in the folder, else to name the classes."""
    classes = _classes_of(dataset, _CLASSES | _IN_TABLES)
    known_labels = dict.fromkeys(_tables(dataset.root.rglob("*")), -1)
    for file in known_labels:
        with suppress(InvalidDataError):
            known_labels[file] = _read_rows(file)["label"].map(_plain).isin(classes).sum()
    folders = [name for name in names if not _IN_NAMES_OF_SPLITS.search(_plain(name))]
    if known_labels and (len(folders) < 2 or max(known_labels.values()) >= 0):
        table = shlex.quote(str(max(known_labels, key=known_labels.__getitem__)))
        fix = f"give the table by its path, `python -m xraylib data verify {table}`"
        return InvalidDataError(f"{content}. Fix: {fix}.")
    if len(folders) > 1:
        return _unnamed_classes(dataset, content, folders)
    fix = (
        "arrange JPEG, PNG, TIFF or DICOM files as <split>/<class>/<image> or <class>/<image>, "
        "or give a CSV with the columns path and label"
    )
    return InvalidDataError(f"{content}. Fix: {fix}.")


def _tables(paths: Iterable[Path]) -> list[Path]:
    """Keep what can be tables of images, sorted."""
    return sorted(
        path for path in paths if path.suffix.lower() in TABLES and not is_litter(path.name)
    )


def _subfolders(folder: Path) -> list[Path]:
    """List the folders in a folder that are neither hidden nor a system's."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_litter(path.name))


def _read_folders(dataset: Dataset) -> Layout:
    """Read split/class/image, class/image, or split folders with a table each."""
    classes = _classes_of(dataset)
    root, passed_over = _folder_of_classes(dataset, classes)
    folders = _subfolders(root)
    splits = {path: _SPLITS[_plain(path.name)] for path in folders if _plain(path.name) in _SPLITS}
    if splits:
        passed_over += _outside(root, splits)
    parts = []
    for split_folder, split in (splits or {root: ""}).items():
        class_folders = _subfolders(split_folder)
        tables = _tables(split_folder.iterdir())
        has_classes = len(class_folders) > 1 or _are_named(class_folders, classes)
        source = split_folder
        if len(tables) == 1 and not has_classes:
            source = tables[0]
            rows = _rows_of_table(source, root)
        else:
            passed_over += _outside(split_folder, class_folders)
            rows = _rows_of_folders(class_folders, root, passed_over)
        layout = _understand(dataset, source, root, rows.assign(split=split))
        parts.append(layout.images)
        passed_over += layout.passed_over
    images = pd.concat(parts, ignore_index=True)
    unread = sum(len(list_folder(folder).images) for folder in splits) if images.empty else 0
    if unread:
        names = ", ".join(folder.name for folder in splits)
        content = f"{root}: {unread} images lie in {names}, in no class folder"
        raise _not_understood(dataset, content)
    for folder, split in splits.items():
        if split == "test" and not (images["split"] == "test").any() and not dataset.split:
            fix = "put images of each class there, or take it away: a test is then made by patient"
            raise InvalidDataError(f"{folder} holds no image in a class folder. Fix: {fix}.")
    return Layout(root, images, passed_over)


def _rows_of_folders(
    folders: list[Path], root: Path, passed_over: list[PassedOver]
) -> pd.DataFrame:
    """List the images below class folders; what is no image is added to `passed_over`."""
    rows = []
    for folder in folders:
        listing = _listed(folder)
        for image, inner_folder in _inner_folders(folder, listing).items():
            rows.append((image, _below(image, root), folder.name, "", inner_folder))
        passed_over += listing.passed_over
    return pd.DataFrame(rows, columns=["path", "relative", "label", "patient", "folder"])


def _are_named(folders: list[Path], names: Collection[str]) -> bool:
    """Whether any of some folders has one of the names."""
    return not {_plain(path.name) for path in folders}.isdisjoint(names)


def _below(path: str, folder: Path) -> str:
    """Write a path in a folder from there on, with slashes."""
    return Path(path).relative_to(folder).as_posix()


def _folder_of_classes(dataset: Dataset, classes: Collection[str]) -> tuple[Path, list[PassedOver]]:
    """Find the folder with split or class folders; list what lies beside the folders around it."""
    names = {*_SPLITS, *classes}
    folder = dataset.root
    passed_over: list[PassedOver] = []
    while True:
        folders = _subfolders(folder)
        if _are_named(folders, names):
            return folder, passed_over
        holders = [path for path in folders if _are_named(_subfolders(path), names)]
        if len(holders) != 1 and len(folders) != 1:
            images = len(list_folder(folder).images)
            others = [path.name for path in folders]
            content = (
                f"{folder} holds {images} images and no folder of a class or split; "
                f"its folders: {first_names(others) or 'none'}"
            )
            raise _not_understood(dataset, content, others)
        inner = (holders or folders)[0]
        passed_over += _outside(folder, [inner])
        folder = inner


def _listed(folder: Path) -> Listing:
    """List a folder whose every folder must be readable; links to nothing are passed over."""
    listing = list_folder(folder)
    if listing.closed:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), listing.closed[0])
    listing.passed_over += [PassedOver(path, "a broken link") for path in listing.broken]
    return listing


def _inner_folders(class_folder: Path, listing: Listing) -> dict[str, str]:
    """Name the folder of each image below its class folder; none where all images share it.

    Images in folders of masks are passed over.
    """
    names = {}
    for image in listing.images:
        folders = _below(image, class_folder).split("/")[:-1]
        if _MASKS.isdisjoint(map(_plain, folders)):
            names[image] = folders[0] if folders else ""
        else:
            listing.passed_over.append(PassedOver(image, "in a folder of masks"))
    return names if len(set(names.values())) > 1 else dict.fromkeys(names, "")


def _outside(folder: Path, read: Collection[Path]) -> list[PassedOver]:
    """List what lies in a folder beside the folders that are read."""
    passed_over = []
    for path in sorted(folder.iterdir()):
        name = str(path) + (os.sep if path.is_dir() else "")
        if path in read:
            continue
        if is_litter(path.name):
            reason = HIDDEN
        elif path.is_dir():
            images = len(list_folder(path).images)
            reason = f"outside the folders that are read, with {images} images"
        else:
            reason = "outside the class folders"
        passed_over.append(PassedOver(name, reason))
    return passed_over


def _rows_of_table(file: Path, root: Path) -> pd.DataFrame:
    """List the images of a CSV, and what it says of them."""
    rows = _read_rows(file).assign(folder="")
    rows["relative"] = _locate(file.parent, rows["path"], root)
    if len(rows) and (rows["relative"] == "").all():
        fix = f"write each path from the folder {file.parent} on"
        first = rows["path"].iloc[0]
        raise InvalidDataError(
            f"{file}: none of its {len(rows)} images is there, the first is {first}. Fix: {fix}."
        )
    return rows


def _understand(dataset: Dataset, source: Path, root: Path, rows: pd.DataFrame) -> Layout:
    """Give the images of a table or a folder their labels, and pass over the others.

    Classes that are not recognised are refused, unless the user has named the classes.
    """
    is_table = source.is_file()
    classes = _classes_of(dataset, _CLASSES | _IN_TABLES if is_table else _CLASSES)
    names = rows["label"].map(_plain)
    has_class = names.isin(classes)
    has_name = names != "" if is_table else rows["label"] != ""
    unnamed = rows.loc[~has_class & has_name, "label"]
    if len(unnamed) and not dataset.classes:
        counts = [f"{name} ({count})" for name, count in unnamed.value_counts().items()]
        labels = rows.loc[has_name, "label"].value_counts().index
        content = (
            f"{source}: the classes of {len(unnamed)} images are neither normal nor pneumonia: "
            f"{first_names(counts)}"
        )
        advise = _unnamed_classes if is_table else _not_understood
        raise advise(dataset, content, labels)
    rows["reason"] = np.select(
        [~has_name, ~has_class, rows["relative"] == ""],
        [
            "the table gives no label",
            "of the class " + rows["label"] + ", which is not named",
            "in the table, but there is no such file",
        ],
        "",
    )
    unread = rows[rows["reason"] != ""].drop_duplicates("path")
    passed_over = list(map(PassedOver, unread["path"], unread["reason"]))
    images = rows[rows["reason"] == ""]
    meaning = names[images.index].map(classes)
    images = images.assign(
        label=(meaning != "normal").astype("int64"),
        kind=meaning.where(meaning.isin(_KINDS), ""),
        split=_splits_of(source, images["split"]),
    )
    return Layout(root, _one_row_per_image(source, images), passed_over)


def _read_csv(file: Path) -> pd.DataFrame:
    """Read a table as text; its separator is the most frequent one of the first line."""
    try:
        with file.open("rb") as stream:
            first = stream.readline()
        if first.startswith(_UTF_16):
            raise ValueError("it is UTF-16")
        separator = max(",;\t", key=lambda sign: first.count(sign.encode()))
        return pd.read_csv(
            file,
            sep=separator,
            dtype=str,
            keep_default_na=False,
            encoding="utf-8-sig",
            encoding_errors="surrogateescape",
            index_col=False,
            skipinitialspace=True,
        )
    except (OSError, ValueError) as error:  # of pandas too
        reason = " ".join(str(error).split())
        fix = "save it as CSV in UTF-8, one line per image"
        raise InvalidDataError(
            f"{file} cannot be read as a table ({reason}). Fix: {fix}."
        ) from error


def _read_rows(file: Path) -> pd.DataFrame:
    """Read a table under the usual names of its columns; one that is missing is empty.

    Without labels, columns of 0 and 1 are taken for one class each: a row for each 1.
    """
    table = _read_csv(file)
    short = {re.sub(r"[\s_]", "", str(name)).casefold(): name for name in table}
    columns: dict[str, pd.Series] = {}
    for column, names in _NAMES_OF_COLUMNS.items():
        present = [short[name] for name in names if name in short]
        if present:
            columns[column] = table[present[0]].str.strip()
    flags = table.loc[:, table.isin([*_IN_TABLES, "", "-1.0"]).all()]  # -1.0 is uncertain
    if "label" not in columns and flags.shape[1] > 1:
        is_class = flags.isin(("1", "1.0")).to_numpy()
        labels = [list(flags.columns[row]) or [""] for row in is_class]
        columns["label"] = pd.Series(labels, table.index)
    if "patient" in columns:  # a file can be named by its patient
        columns.setdefault("path", columns["patient"])
    if not {"label", "path"} <= columns.keys():
        fix = "let its first line name them"
        raise InvalidDataError(
            f"{file} needs the columns path and label but has: {first_names(table)}. Fix: {fix}."
        )
    rows = pd.DataFrame(columns).reindex(columns=list(_NAMES_OF_COLUMNS), fill_value="")
    return rows.explode("label", ignore_index=True)


def _one_row_per_image(file: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Drop repeated rows of an image, as of several boxes; refuse two labels of one image."""
    labels = table.groupby("relative")["label"].nunique()
    contradicted = labels.index[labels > 1]
    if len(contradicted):
        fix = "give each image one label"
        raise InvalidDataError(
            f"{file}: {len(contradicted)} images have both labels, the first is {contradicted[0]}. "
            f"Fix: {fix}."
        )
    return table.drop_duplicates("relative", ignore_index=True)


def _locate(folder: Path, paths: pd.Series, root: Path) -> list[str]:
    """Give the path of each image from `root` on, or an empty one.

    A path that does not exist in `folder` is looked for by its last name, with or without suffix,
    among all images below; it has to be the only one of that name.
    """
    images: dict[str, set[str]] = {}
    for image in list_folder(folder).images:
        for name in (Path(image).name, Path(image).stem):
            images.setdefault(name, set()).add(_below(image, root))
    located = []
    for path in paths.str.replace("\\", "/"):
        if os.path.isfile(folder / path):  # noqa: PTH113, any text is a path to ask for
            located.append(Path(os.path.relpath(folder / path, root)).as_posix())
        else:
            candidates = images.get(path.rsplit("/", 1)[-1], set())
            located.append(next(iter(candidates)) if len(candidates) == 1 else "")
    return located


def _splits_of(file: Path, names: pd.Series) -> pd.Series:
    """Read the splits of a table; empty for all where it gives none."""
    if (names == "").all():
        return names
    splits = names.map(_plain).map(_SPLITS)
    unknown = names[splits.isna()]
    if len(unknown):
        fix = "write train, val or test, or leave the whole column out"
        raise InvalidDataError(
            f"{file}: {len(unknown)} rows have no split, the first says {unknown.iloc[0]!r}. "
            f"Fix: {fix}."
        )
    return splits
