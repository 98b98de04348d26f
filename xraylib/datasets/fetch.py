"""Getting a published data set: downloaded, checked, and unpacked without trusting the archive."""

import logging
import shutil
import zipfile
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import requests
from PIL import Image

from xraylib import paths
from xraylib.datasets import manifest, phantom
from xraylib.datasets.catalog import Dataset, get_dataset
from xraylib.errors import NotFoundError, OperationFailedError
from xraylib.progress import tqdm
from xraylib.storage import atomic_folder, atomic_write, sha256, storage_errors

_log = logging.getLogger(__name__)

MAX_UNPACKED = 8 << 30
_BLOCK = 1 << 20
_DAMAGE = (ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def fetch(name: str | Path | Dataset, source: str = "default") -> Path:
    """Get a data set unless it is there already, and return its folder.

    A download that was cut short is resumed. Nothing half-unpacked stays in the folder.

    Parameters
    ----------
    name : str, Path or Dataset
        The data set. The phantom is written instead.
    source : str
        "default" is the publisher, "kaggle" the copy there, through kagglehub.

    Raises
    ------
    OperationFailedError
        If the data cannot be downloaded, are not what was published, or cannot be unpacked.
    """
    dataset = get_dataset(name)
    if dataset.phantom:
        return phantom.write(dataset.root, dataset.phantom)
    if manifest.count(dataset):
        return dataset.root
    sources = ("default", "kaggle") if dataset.kaggle else ("default",)
    if source not in sources:
        fix = f"take one of {', '.join(sources)}"
        raise NotFoundError(f"{dataset.name} has no source named {source!r}. Fix: {fix}.")
    if not dataset.url:
        raise OperationFailedError(
            f"{dataset.name} cannot be fetched from here. Fix: {dataset.by_hand} ({dataset.root})."
        )
    archive = _from_kaggle(dataset) if source == "kaggle" else _download(dataset)
    try:
        with atomic_folder(dataset.root) as folder:
            _unpack(archive, folder)
    except _DAMAGE as error:
        # A checksum taken from this file must not be held against the right one next time.
        archive.with_name(f"{archive.name}.sha256").unlink(missing_ok=True)
        fix = "delete it or complete it (`curl --continue-at -`, data/README.md), and fetch again"
        raise OperationFailedError(f"{archive} cannot be unpacked: {error}. Fix: {fix}.") from error
    if archive.is_file():  # kagglehub keeps its own copy, a folder
        archive.unlink()
    return dataset.root


def _download(dataset: Dataset) -> Path:
    """Download the archive of a data set and check it.

    Where no checksum is published, that of the first download is kept for every later one.
    """
    folder = paths.DATA / "downloads"
    target = folder / dataset.file
    first = folder / f"{dataset.file}.sha256"
    checksum = dataset.checksum
    if not checksum and first.exists():
        checksum = first.read_text().split()[0]
    pooch.get_logger().setLevel(logging.WARNING)
    downloader = partial(_resume, folder / f"{dataset.file}.partial")
    try:
        with storage_errors(target):
            pooch.retrieve(dataset.url, checksum, dataset.file, folder, downloader=downloader)
    except requests.RequestException as error:
        fix = f"try again, or download it by hand, save it as {target} and run the same command"
        raise OperationFailedError(
            f"cannot download {dataset.url}: {error}. Fix: {fix}."
        ) from error
    except ValueError as error:
        origin = "that is published" if dataset.checksum else f"of the first download, in {first}"
        fix = "fetch it again; if it happens twice, ask the publisher whether the file has changed"
        raise OperationFailedError(
            f"{dataset.url} has not the checksum {origin}: {error}. Fix: {fix}."
        ) from error
    if not checksum:
        digest = sha256(target)
        _log.warning(
            "%s: no checksum is published; SHA-256 of this download: %s", target.name, digest
        )
        with atomic_write(first) as temporary:
            temporary.write_text(f"{digest}  {target.name}\n")
    return target


def _resume(unfinished: Path, url: str, output: str, pup: Any) -> None:
    """Download for pooch, from where an earlier download was cut short.

    What has come so far is in `unfinished`, which outlives a lost connection and a killed process.
    """
    start = unfinished.stat().st_size if unfinished.exists() else 0
    headers = {"Range": f"bytes={start}-"} if start else {}
    with requests.get(url, headers=headers, stream=True, timeout=60) as response:
        # Out of range: nothing is missing, or the file is another one, which is checked later.
        if response.status_code != requests.codes.requested_range_not_satisfiable:
            response.raise_for_status()
            resumed = response.status_code == requests.codes.partial_content
            length = int(response.headers.get("Content-Length", 0))
            bar = tqdm(desc=unfinished.stem, total=length, unit="B", unit_scale=True)
            with bar, unfinished.open("ab" if resumed else "wb") as file:
                for block in response.iter_content(_BLOCK):
                    file.write(block)
                    bar.update(len(block))
    unfinished.replace(output)


def _from_kaggle(dataset: Dataset) -> Path:
    try:
        import kagglehub

        return Path(kagglehub.dataset_download(dataset.kaggle))
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        fix = (
            "pip install 'xraylib-pneumonia[kaggle]', see to the network and to Kaggle's token, or "
            "leave the source out"
        )
        raise OperationFailedError(
            f"kagglehub could not download {dataset.kaggle}: {error}. Fix: {fix}."
        ) from error


def _unpack(archive: Path, folder: Path) -> None:
    """Fill a folder with the split folders of an archive, or of a folder that was unpacked."""
    if archive.is_dir():
        for split in _split_folders(archive):
            shutil.copytree(split, folder / split.name)
    elif archive.suffix == ".npz":
        _unpack_arrays(archive, folder)
    else:
        _unpack_zip(archive, folder)


def _unpack_zip(archive: Path, folder: Path) -> None:
    """Unpack the split folders of a zip archive.

    `ZipFile` itself drops `..` and absolute paths and writes links as plain files, so nothing can
    be written outside `folder`; what is not below a split folder is removed again.
    """
    raw = folder / ".raw"
    with zipfile.ZipFile(archive) as source:
        if sum(member.file_size for member in source.infolist()) > MAX_UNPACKED:
            raise ValueError(f"it unpacks to more than {MAX_UNPACKED:,} bytes")
        source.extractall(raw)
    for split in _split_folders(raw):
        split.replace(folder / split.name)
    shutil.rmtree(raw)


def _split_folders(root: Path) -> list[Path]:
    """List train, test and perhaps val nearest to `root`: publishers wrap them in other folders."""
    candidates = root.rglob("[tT][rR][aA][iI][nN]")
    for train in sorted(candidates, key=lambda path: len(path.parts)):
        siblings = {path.name.lower(): path for path in train.parent.iterdir() if path.is_dir()}
        if "train" in siblings and "test" in siblings:
            return [siblings[split] for split in ("train", "val", "test") if split in siblings]
    raise ValueError("it holds no folders train and test")


def _unpack_arrays(archive: Path, folder: Path) -> None:
    """Write the arrays of a MedMNIST file as split/class/<split>-<row>.png."""
    # Of a damaged archive, `np.load` leaves a file open that it opened itself.
    with archive.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        for split in ("train", "val", "test"):
            pixels = arrays[f"{split}_images"]
            labels = arrays[f"{split}_labels"].reshape(-1)
            for label, name in enumerate(("NORMAL", "PNEUMONIA")):
                class_folder = folder / split / name
                class_folder.mkdir(parents=True)
                for row in np.flatnonzero(labels == label):
                    file = class_folder / f"{split}-{row:05d}.png"
                    Image.fromarray(pixels[row]).save(file)
