"""The data sets by name: `load` gives their manifest, `fetch` gets them, `verify` counts them."""

import hashlib
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
from filelock import FileLock
from tqdm.auto import tqdm

from xraylib import paths
from xraylib.datasets import images, phantom
from xraylib.datasets import manifest as naming
from xraylib.datasets.fetch import obtain
from xraylib.datasets.manifest import patient_and_kind, person_number
from xraylib.datasets.records import DATASETS, Dataset, Expected, find
from xraylib.storage import DataInvalid, NotFound, atomic, storage_errors

__all__ = [
    "DATASETS",
    "Dataset",
    "describe",
    "fetch",
    "find",
    "index",
    "load",
    "patient_and_kind",
    "person_number",
    "quarantine_path",
    "verify",
]

_log = logging.getLogger(__name__)


def load(name: str | Path | Dataset) -> pd.DataFrame:
    """Return the manifest of a data set, without the images in its quarantine list.

    Parameters
    ----------
    name
        A key of `DATASETS`; or the path of a folder ``{train,val,test}/{NORMAL,PNEUMONIA}/*.{jpeg,jpg,png}``;
        or a `Dataset`. The phantom is written on first use; nothing is ever downloaded here.

    Returns
    -------
    DataFrame
        One row an image, sorted by `image_id`: image_id (str, unique, the file name without suffix), path
        (str), label (int, 0 normal, 1 pneumonia), patient (str), kind (normal, bacteria, virus, unknown),
        split (train, val, test, as published), sha256 (str, of the file). `attrs` holds `dataset` (its name)
        and `patients_known` (False when each image counts as its own patient).

    Raises
    ------
    NotFound, NotFound
        When there is no such data set, or it is not where it was looked for.
    DataInvalid
        When there is no image, a split holds one class only, a class folder is unknown, two images have one
        name, or a name contradicts its folder.
    Failed
        When the index cannot be written to `paths.CACHE`.
    """
    dataset = find(name)
    if dataset.phantom:
        phantom.write(dataset.root, dataset.phantom)
    manifest = _without_quarantined(dataset, index(dataset))
    _check_classes(dataset, manifest)
    _check_names(dataset, manifest)
    parsed = bool((manifest["patient"] != manifest["image_id"]).any())
    if dataset.patients_known and not parsed:
        _log.warning("%s: the names do not tell the patient; each image counts as its own", dataset.name)
    manifest.attrs.update(dataset=dataset.name, patients_known=dataset.patients_known and parsed)
    return manifest


def quarantine_path(name: str | Path | Dataset) -> Path:
    """Return where the quarantine list of a data set lies; the file need not exist."""
    return paths.CACHE / find(name).name / "quarantine.csv"


def _without_quarantined(dataset: Dataset, manifest: pd.DataFrame) -> pd.DataFrame:
    path = quarantine_path(dataset)
    if not path.exists():
        return manifest
    kept = manifest[~manifest["image_id"].isin(images.read_quarantine(path))].reset_index(drop=True)
    if left_out := len(manifest) - len(kept):
        _log.warning(
            "%s: %d of %d images are left out, as listed in %s", dataset.name, left_out, len(manifest), path
        )
    return kept


def _check_classes(dataset: Dataset, manifest: pd.DataFrame) -> None:
    if manifest.empty:
        raise DataInvalid(f"{dataset.root} holds no JPEG or PNG image. Fix: {_mend(dataset)}.")
    for split, labels in manifest.groupby("split")["label"]:
        if labels.nunique() < 2:
            held = "pneumonias" if labels.iloc[0] else "normals"
            raise DataInvalid(
                f"{dataset.root}: the {split} split holds {held} only. "
                f"Fix: put images of both classes there, or take the {split} folder away."
            )


def _check_names(dataset: Dataset, manifest: pd.DataFrame) -> None:
    wrong = manifest[(manifest["label"] == 0) & manifest["kind"].isin(["bacteria", "virus"])]
    if len(wrong):
        first = wrong.iloc[0]
        raise DataInvalid(
            f"{first['path']} lies among the normals but its name says {first['kind']} ({len(wrong)} such). "
            f"Fix: move it, or run `python -m xraylib data audit {dataset.name}` to leave it out."
        )


def _mend(dataset: Dataset) -> str:
    if dataset.phantom:
        return f"remove {dataset.root}; it is written anew"
    if Path(dataset.folder).is_absolute():
        return dataset.by_hand
    way = f"run `python -m xraylib data fetch {dataset.name}`" if dataset.files else dataset.by_hand
    return f"{way}; or set XRAYLIB_DATA to the folder that holds {dataset.folder} (it is {paths.DATA})"


def index(dataset: Dataset) -> pd.DataFrame:
    """Return the manifest of everything in the folder, quarantined or not.

    Hashing reads every file, so the hashes are kept in `paths.CACHE` for as long as names, sizes and times
    of change stay the same. Raises as `load` does.
    """
    root = dataset.root
    if not root.is_dir():
        raise NotFound(f"{dataset.name}: no folder {root}. Fix: {_mend(dataset)}.")
    try:
        listing = pd.DataFrame(
            naming.list_images(root, dataset.split), columns=["relative", "split", "label"]
        )
        listing["sha256"] = _hashes(root, listing["relative"].tolist(), paths.CACHE / dataset.name)
    except PermissionError as error:
        raise DataInvalid(f"cannot read {error.filename}. Fix: allow reading it, or move it away.") from error
    return naming.read_names(listing, root, dataset.names)


def _hashes(root: Path, files: list[str], cache: Path) -> list[str]:
    stats = [(root / file).stat() for file in files]
    listing = "\n".join(f"{file}\t{s.st_size}\t{s.st_mtime_ns}" for file, s in zip(files, stats, strict=True))
    remembered = cache / f"index-{hashlib.sha256(listing.encode()).hexdigest()[:16]}.csv"
    if remembered.exists():
        known = pd.read_csv(remembered, dtype=str, keep_default_na=False)
        if known["relative"].tolist() == files:
            return known["sha256"].tolist()
    with ThreadPoolExecutor(max_workers=4) as pool:
        work = pool.map(_sha256, [root / file for file in files])
        # disable=None: a bar on a terminal only, not in a log file or a notebook's output.
        found = list(tqdm(work, total=len(files), desc=f"hashing {root.name}", unit="image", disable=None))
    with atomic(remembered) as temporary:
        pd.DataFrame({"relative": files, "sha256": found}).to_csv(temporary, index=False)
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(
    name: str | Path | Dataset,
    source: str = "default",
    progress: bool = True,
    base_url: str | None = None,
) -> Path:
    """Get a data set, unless it is there already.

    Parameters
    ----------
    name
        As for `load`.
    source
        ``default``, the publisher; or ``kaggle``, through kagglehub, for `kermany`.
    progress
        Whether to show a bar.
    base_url
        A mirror that keeps the files under the names in `Dataset.files`.

    Returns
    -------
    Path
        The folder with the images.

    Raises
    ------
    NotFound
        When there is no such data set or source.
    Failed
        When it cannot be downloaded, is not what was published, or cannot be unpacked safely.
    Failed
        When the disk is full or the folder cannot be written. In either case no half of it is left.
    """
    dataset = find(name)
    if dataset.phantom:
        phantom.write(dataset.root, dataset.phantom)
        return dataset.root
    downloads = paths.DATA / "downloads"
    if _count(dataset) == 0:
        with storage_errors(downloads):
            fetch.mkdir(parents=True, exist_ok=True)
            # A second process waits here and then finds the work done.
            with FileLock(downloads / f".{dataset.name}.lock"):
                if _count(dataset) == 0:
                    obtain(dataset, downloads, source=source, base_url=base_url, progress=progress)
    return dataset.root


def verify(name: str | Path | Dataset) -> pd.DataFrame:
    """Count the images of a data set against the numbers published.

    Returns
    -------
    DataFrame
        One row a split and class: split (str), label (0 normal, 1 pneumonia), images (int), expected (Int64,
        missing where nothing is published). `attrs["fingerprint"]` names the content, as `images.fingerprint`
        does.

    Raises
    ------
    NotFound, DataInvalid
        As for `load`, and when a number differs from the edition that is nearest.
    """
    dataset = find(name)
    manifest = index(dataset)
    _check_classes(dataset, manifest)
    table = manifest.groupby(["split", "label"]).size().rename("images").reset_index()
    table["expected"] = pd.array([pd.NA] * len(table), dtype="Int64")
    table.attrs.update(dataset=dataset.name, fingerprint=images.fingerprint(manifest))
    if dataset.phantom and len(manifest) != dataset.phantom.images:
        held = f"{len(manifest)} of {dataset.phantom.images} images"
        raise DataInvalid(f"{dataset.root} holds {held}. Fix: {_mend(dataset)}.")
    if dataset.expected:
        counts = _edition(dataset, table).counts
        for row, split, label in table[["split", "label"]].itertuples(name=None):
            due = counts[split]
            table.loc[row, "expected"] = pd.NA if isinstance(due, int) else due[label]
    return table


def _edition(dataset: Dataset, table: pd.DataFrame) -> Expected:
    found = {str(split): tuple(part["images"]) for split, part in table.groupby("split")}
    wrong, edition = min(
        ((known.differences(found), known) for known in dataset.expected),
        key=lambda pair: sum(abs(there - due) for _, there, due in pair[0]),
    )
    if wrong:
        said = "; ".join(f"{where} holds {there} images, not {due}" for where, there, due in wrong)
        raise DataInvalid(f"{dataset.root} is not as published: {said}. Fix: remove it and {_mend(dataset)}.")
    if edition.note:
        _log.warning("%s: %s", dataset.root, edition.note)
    return edition


def describe() -> pd.DataFrame:
    """List the data sets: name, title, licence, present (bool), images (int, files there), source."""
    rows = []
    for dataset in DATASETS.values():
        try:
            there = _count(dataset)
        except DataInvalid as error:
            _log.warning("%s", error)
            there = 0
        rows.append((dataset.name, dataset.title, dataset.licence, there > 0, there, dataset.source))
    return pd.DataFrame(rows, columns=["name", "title", "licence", "present", "images", "source"])


def _count(dataset: Dataset) -> int:
    if not dataset.root.is_dir() or not any(dataset.root.iterdir()):
        return 0
    return sum(1 for _ in naming.list_images(dataset.root, dataset.split))
