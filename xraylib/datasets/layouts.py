"""How a data set lies on disk: split and class folders, class folders alone, or a table (CSV).

Nothing of a user's is changed. Each file that is not read is listed with its reason.
"""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from xraylib.datasets.catalog import Dataset
from xraylib.datasets.files import HIDDEN, Listing, PassedOver, is_litter, list_folder
from xraylib.errors import InvalidDataError

COLUMNS = ("relative", "split", "label", "kind", "patient", "folder")
# What a table may say more of each image.
FURTHER = ("age", "view")

# Labels and kinds by the names of classes, as `_plain` writes them.
_CLASSES = {
    "normal": (0, ""),
    "normals": (0, ""),
    "no pneumonia": (0, ""),
    "pneumonia": (1, ""),
    "pneumonias": (1, ""),
    "bacteria": (1, "bacteria"),
    "bacterial": (1, "bacteria"),
    "bacterial pneumonia": (1, "bacteria"),
    "virus": (1, "virus"),
    "viral": (1, "virus"),
    "viral pneumonia": (1, "virus"),
}
_TABLE_LABELS = {"0": (0, ""), "1": (1, ""), "0.0": (0, ""), "1.0": (1, "")}
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
    "kind": ("kind",),
    "age": ("age", "patientage"),
    "view": ("view", "viewposition"),
}
_NUMBER = re.compile(r"[-+]?[0-9.]+")
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

        - `relative`: its path below `root`, or an absolute path outside.
        - `split`: train, val, test, or empty where nothing says it.
        - `label`: 0 or 1.
        - `kind`: bacteria or virus where a class or the table says so, else empty.
        - `patient`: as the table says it, else empty.
        - `folder`: the folder below the class folder, or empty.
        - `age` (years) and `view`, where the table has them.
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
        If there are neither class folders nor a usable table, if a class is neither normal nor
        pneumonia, or if a folder cannot be read.
    """
    layout = _read_table(dataset) if dataset.table else _read_folders(dataset)
    if dataset.split:
        split = "" if dataset.split == "new" else dataset.split
        layout = Layout(layout.root, layout.images.assign(split=split), layout.passed_over)
    return layout


def _plain(name: str) -> str:
    """Write a name in small letters, with single spaces and without a number before it."""
    if _NUMBER.fullmatch(name.strip()):
        return name.strip()
    text = unicodedata.normalize("NFC", name).casefold()
    words = re.sub(r"[\s_-]+", " ", text).strip()
    return re.sub(r"^[0-9]+ ", "", words)


def _classes_of(dataset: Dataset) -> Mapping[str, tuple[int, str]]:
    """Give label and kind by the plain name of a class."""
    if dataset.classes:
        return {_plain(name): (label, "") for name, label in dataset.classes.items()}
    return _CLASSES


def _subfolders(folder: Path) -> list[Path]:
    """List the folders in a folder that are neither hidden nor a system's."""
    try:
        return sorted(
            path for path in folder.iterdir() if path.is_dir() and not is_litter(path.name)
        )
    except OSError as error:
        raise _closed([str(folder)]) from error


def _closed(folders: list[str]) -> InvalidDataError:
    count = f"{len(folders)} folders cannot be read, first " if len(folders) > 1 else "cannot read "
    return InvalidDataError(f"{count}{folders[0]}. Fix: make it readable for this user.")


def _read_folders(dataset: Dataset) -> Layout:
    """Read split/class/image, or class/image."""
    classes = _classes_of(dataset)
    root = _folder_of_classes(dataset, classes)
    passed_over = _around(dataset.root, root)
    split_folders = [path for path in _subfolders(root) if _plain(path.name) in _SPLITS]
    if split_folders:
        passed_over += _outside(root, split_folders)
    rows: list[tuple[str, str, int, str, str, str]] = []
    for split_folder in split_folders or [root]:
        split = _SPLITS.get(_plain(split_folder.name), "") if split_folders else ""
        folders = _subfolders(split_folder)
        passed_over += _outside(split_folder, folders)
        for folder in folders:
            if _plain(folder.name) not in classes:
                passed_over += _pass_over_class(dataset, folder)
                continue
            label, kind = classes[_plain(folder.name)]
            listing = _without_masks(_listed(folder), folder)
            passed_over += listing.passed_over
            below = _folders_below(folder, listing.images)
            for image, name in zip(listing.images, below, strict=True):
                rows.append((_below(image, root), split, label, kind, "", name))
    if not dataset.split:
        _check_test_folder(split_folders, {row[1] for row in rows})
    return Layout(root, pd.DataFrame(rows, columns=list(COLUMNS)), passed_over)


def _below(path: str, folder: Path) -> str:
    """Write a path in a folder from there on, with slashes."""
    return path[len(str(folder)) :].replace(os.sep, "/").lstrip("/")


def _around(outer: Path, root: Path) -> list[PassedOver]:
    """List what lies beside the folders that lead from `outer` to `root`."""
    passed_over = []
    folder = root
    while folder != outer:
        passed_over += _outside(folder.parent, [folder])
        folder = folder.parent
    return passed_over


def _folder_of_classes(dataset: Dataset, classes: Mapping[str, tuple[int, str]]) -> Path:
    """Find the folder with split or class folders, through folders that wrap it."""
    folder = dataset.root
    while True:
        folders = _subfolders(folder)
        if any(_is_named(path, classes) for path in folders):
            return folder
        holders = [
            path for path in folders if any(_is_named(p, classes) for p in _subfolders(path))
        ]
        if len(holders) == 1 or len(folders) == 1:
            folder = (holders or folders)[0]
            continue
        raise _no_classes(dataset, folder, folders)


def _is_named(folder: Path, classes: Mapping[str, tuple[int, str]]) -> bool:
    name = _plain(folder.name)
    return name in _SPLITS or name in classes


def _no_classes(dataset: Dataset, folder: Path, folders: list[Path]) -> InvalidDataError:
    """Say what lies where split or class folders were looked for."""
    if not folders:
        listing = list_folder(folder)
        content = f"{len(listing.images)} images and no folder of a class"
        if not listing.images:
            reasons = Counter(reason for _, reason in listing.passed_over)
            files = ", ".join(f"{count} × {reason}" for reason, count in reasons.items())
            content = f"no image ({files})" if files else "no file"
        fix = (
            "arrange the images as <split>/<class>/<image> or <class>/<image>, or give a CSV with "
            "the columns path and label"
        )
        return InvalidDataError(f"{folder} holds {content}. Fix: {fix}.")
    names = [path.name for path in folders]
    listed = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    return InvalidDataError(
        f"{folder} holds neither split nor class folders but: {listed}. "
        f"Fix: {_name_the_classes(dataset, names)}."
    )


def _name_the_classes(dataset: Dataset, names: list[str]) -> str:
    """Advise which command names the classes; which name has which label is for the user to say."""
    pairs = [f"{name}={label}" for label, name in enumerate(sorted(names)[:2])]
    if len(pairs) < 2:
        pairs = ["NAME=0", "OTHER=1"]
    return (
        "say which classes are normal (0) and pneumonia (1), such as "
        f'`python -m xraylib data verify {dataset.reference} --classes "{",".join(pairs)}"`'
    )


def _pass_over_class(dataset: Dataset, folder: Path) -> list[PassedOver]:
    """Pass over a folder that is no class; refuse it where images lie there for no said reason."""
    listing = _listed(folder)
    if listing.images and not dataset.classes:
        names = {path.name for path in _subfolders(folder.parent)}
        usual = sorted(name for name in names if _plain(name) in _CLASSES)
        pairs = [f"{name}={_CLASSES[_plain(name)][0]}" for name in usual]
        fix = (
            "name the classes to be read, the others are then left out: `python -m xraylib data "
            f'verify {dataset.reference} --classes "{",".join(pairs) or "NAME=0,OTHER=1"}"`'
        )
        raise InvalidDataError(
            f"{folder} is neither NORMAL nor PNEUMONIA and holds {len(listing.images)} images. "
            f"Fix: {fix}."
        )
    reason = f"of the class {folder.name}, which is not named"
    others = [PassedOver(image, reason) for image in listing.images]
    return [*listing.passed_over, *others]


def _listed(folder: Path) -> Listing:
    """List a folder whose every folder must be readable."""
    listing = list_folder(folder)
    if listing.closed:
        raise _closed(listing.closed)
    listing.passed_over += [PassedOver(path, "a broken link") for path in listing.broken]
    return listing


def _without_masks(listing: Listing, class_folder: Path) -> Listing:
    """Pass over the images of a folder of masks, which lies beside one of images."""
    images = []
    for image in listing.images:
        folders = _below(image, class_folder).split("/")[:-1]
        if any(_plain(name) in _MASKS for name in folders):
            listing.passed_over.append(PassedOver(image, "in a folder of masks"))
        else:
            images.append(image)
    listing.images = images
    return listing


def _outside(folder: Path, read: list[Path]) -> list[PassedOver]:
    """List what lies in a folder beside the folders that are read."""
    passed_over = []
    for path in sorted(folder.iterdir()):
        name = str(path) + (os.sep if path.is_dir() else "")
        if is_litter(path.name):
            passed_over.append(PassedOver(name, HIDDEN))
        elif not path.is_dir():
            passed_over.append(PassedOver(name, "outside the class folders"))
        elif path not in read:
            count = len(list_folder(path).images)
            reason = f"outside the folders that are read, with {count} images"
            passed_over.append(PassedOver(name, reason))
    return passed_over


def _folders_below(class_folder: Path, images: list[str]) -> list[str]:
    """Name the folder of each image below its class folder; none where all images share it."""
    names = []
    for image in images:
        below = _below(image, class_folder).split("/")
        names.append(below[0] if len(below) > 1 else "")
    return [""] * len(names) if len(set(names)) == 1 else names


def _check_test_folder(split_folders: list[Path], splits: set[str]) -> None:
    """Refuse an empty test folder beside other images: the copy may be incomplete."""
    for folder in split_folders:
        is_test = _SPLITS[_plain(folder.name)] == "test"
        if is_test and "test" not in splits and splits:
            fix = "put images there, or take it away: a test is then made by patient"
            raise InvalidDataError(f"{folder} holds no image. Fix: {fix}.")


def _read_table(dataset: Dataset) -> Layout:
    """Read the images that a CSV lists, and what it says of them."""
    file = Path(dataset.table)
    table = _rename_columns(file, _read_csv(file))
    passed_over: list[PassedOver] = []
    table["path"] = table["path"].str.strip()
    labels = _labels(dataset, table)
    unused = labels[labels["label"].isna()].index
    for row in unused:
        text = table.loc[row, "label"].strip()
        reason = f"of the class {text}, which is not named" if text else "the table gives no label"
        passed_over.append(PassedOver(table.loc[row, "path"], reason))
    table = table.assign(label=labels["label"], named_kind=labels["kind"]).drop(index=unused)
    table["relative"] = list(_locate(file.parent, table["path"]))
    missing = table["relative"] == ""
    if len(table) and missing.all():
        fix = f"write each path from the folder {file.parent} on"
        first = table["path"].iloc[0]
        raise InvalidDataError(
            f"{file}: none of its {len(table)} images is there, the first is {first}. Fix: {fix}."
        )
    reason = "in the table, but there is no such file"
    passed_over += [PassedOver(path, reason) for path in table.loc[missing, "path"].unique()]
    table = _one_row_per_image(file, table[~missing])
    images = pd.DataFrame(
        {
            "relative": table["relative"],
            "split": _splits_of(file, table),
            "label": table["label"].astype("int64"),
            "kind": _kinds_of(table),
            "patient": table["patient"].str.strip() if "patient" in table else "",
            "folder": "",
        }
    )
    if "age" in table:
        images["age"] = pd.to_numeric(table["age"].str.strip().str.rstrip("Yy"), errors="coerce")
    if "view" in table:
        images["view"] = table["view"].str.strip()
    return Layout(file.parent, images.reset_index(drop=True), passed_over)


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
        )
    except (OSError, ValueError) as error:  # of pandas too
        reason = " ".join(str(error).split())
        fix = "save it as CSV in UTF-8, one line per image"
        raise InvalidDataError(
            f"{file} cannot be read as a table ({reason}). Fix: {fix}."
        ) from error


def _rename_columns(file: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Give the columns their usual names; a file named by its patient is found by that."""
    short = {re.sub(r"[\s_]", "", str(name)).casefold(): name for name in table}
    chosen = {}
    for column, names in _NAMES_OF_COLUMNS.items():
        present = [short[name] for name in names if name in short]
        if present:
            chosen[column] = present[0]
    if "path" not in chosen and "patient" in chosen:
        chosen["path"] = chosen["patient"]
    missing = [column for column in ("path", "label") if column not in chosen]
    if missing:
        headings = ", ".join(map(str, list(table)[:8]))
        fix = "let its first line name the columns path and label"
        raise InvalidDataError(
            f"{file} has no column {' and no column '.join(missing)} but: {headings}. Fix: {fix}."
        )
    return pd.DataFrame({column: table[name] for column, name in chosen.items()})


def _labels(dataset: Dataset, table: pd.DataFrame) -> pd.DataFrame:
    """Give the label (missing where there is none) and kind of each row of a table."""
    classes = dict(_classes_of(dataset))
    if not dataset.classes:
        classes |= _TABLE_LABELS
    texts = table["label"].map(_plain)
    unnamed = texts[~texts.isin(classes) & (texts != "")]
    if len(unnamed) and not dataset.classes:
        counts = Counter(table.loc[unnamed.index, "label"].str.strip())
        listed = ", ".join(f"{name} ({count})" for name, count in counts.most_common(5))
        raise InvalidDataError(
            f"{dataset.table}: the labels of {len(unnamed)} rows are neither normal nor pneumonia: "
            f"{listed}. Fix: {_name_the_classes(dataset, list(counts))}; classes that are not "
            "named are left out."
        )
    pairs = [classes.get(text, (None, "")) for text in texts]
    return pd.DataFrame(pairs, columns=["label", "kind"], index=table.index)


def _one_row_per_image(file: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Drop repeated rows of an image, as of several boxes; refuse two labels of one image."""
    labels = table.groupby("relative")["label"].nunique()
    contradicted = labels.index[labels > 1]
    if len(contradicted):
        fix = "keep one row per image"
        raise InvalidDataError(
            f"{file}: {len(contradicted)} images have both labels, the first is {contradicted[0]}. "
            f"Fix: {fix}."
        )
    return table.drop_duplicates("relative")


def _locate(root: Path, names: pd.Series) -> Iterator[str]:
    """Give the path of each image from `root` on, or an empty one.

    A path that does not exist is looked for by its last name, with or without suffix, among all
    images below the folder; it has to be the only one of that name.
    """
    below: dict[str, set[str]] | None = None
    for name in names:
        path = name if os.path.isfile(root / name) else name.replace("\\", "/")  # noqa: PTH113
        if path and os.path.isfile(root / path):  # noqa: PTH113
            full = os.path.normpath(root / path)
            is_below = full.startswith(f"{root}{os.sep}")
            yield _below(full, root) if is_below else full
            continue
        if below is None:
            below = _by_name(root)
        candidates = below.get(path.rsplit("/", 1)[-1], set())
        yield next(iter(candidates)) if len(candidates) == 1 else ""


def _by_name(root: Path) -> dict[str, set[str]]:
    """Collect the images below a folder by their names, with and without suffix."""
    images: dict[str, set[str]] = {}
    for image in list_folder(root).images:
        relative = _below(image, root)
        for name in (Path(image).name, Path(image).stem):
            images.setdefault(name, set()).add(relative)
    return images


def _splits_of(file: Path, table: pd.DataFrame) -> pd.Series:
    """Read the splits of a table; empty for all where it gives none."""
    if "split" not in table or (table["split"].str.strip() == "").all():
        return pd.Series("", index=table.index)
    splits = table["split"].map(_plain).map(_SPLITS)
    unknown = table.loc[splits.isna(), "split"]
    if len(unknown):
        fix = "write train, val or test, or leave the whole column out"
        raise InvalidDataError(
            f"{file}: {len(unknown)} rows have no split, the first says {unknown.iloc[0]!r}. "
            f"Fix: {fix}."
        )
    return splits


def _kinds_of(table: pd.DataFrame) -> pd.Series:
    """Read the kinds of a table, or those that its classes are named by."""
    kinds = table["named_kind"]
    if "kind" in table:
        column = table["kind"].map(_plain).map(lambda name: _CLASSES.get(name, (0, ""))[1])
        kinds = column.where(column != "", kinds)
    return kinds
