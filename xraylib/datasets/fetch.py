"""Getting a published data set: downloaded, checked, and unpacked without trusting the archive."""

import logging
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pooch
import requests
from PIL import Image

from xraylib import paths
from xraylib.datasets import manifest, phantom
from xraylib.datasets.catalog import Dataset, get_dataset
from xraylib.errors import NotFoundError, OperationFailedError
from xraylib.storage import atomic_folder, atomic_write, storage_errors

_log = logging.getLogger(__name__)

MAX_UNPACKED = 8 << 30
_DAMAGE = (ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def fetch(name: str | Path | Dataset, source: str = "default") -> Path:
    """Get a data set unless it is there already, and return its folder; nothing half-done stays there.

    `source` is "default", the publisher, or "kaggle", through kagglehub. The phantom is written. `OperationFailedError` when the data
    cannot be downloaded, are not what was published, or cannot be unpacked safely.
    """
    dataset = get_dataset(name)
    if dataset.phantom:
        return phantom.write(dataset.root, dataset.phantom)
    if manifest.count(dataset):
        return dataset.root
    known = ("default", "kaggle") if dataset.kaggle else ("default",)
    if source not in known:
        fix = f"take one of {', '.join(known)}"
        raise NotFoundError(f"{dataset.name} has no source named {source!r}. Fix: {fix}.")
    if source == "default" and not dataset.url:
        raise OperationFailedError(
            f"{dataset.name} cannot be fetched from here. Fix: {dataset.by_hand} ({dataset.root})."
        )
    archive = _from_kaggle(dataset) if source == "kaggle" else _download(dataset)
    try:
        with atomic_folder(dataset.root) as folder:
            if archive.is_dir():
                for split in _split_folders(archive):
                    hidden = shutil.ignore_patterns(".*", "__MACOSX")
                    shutil.copytree(split, folder / split.name, ignore=hidden)
                return dataset.root
            (_unpack_arrays if archive.suffix == ".npz" else _unpack)(archive, folder)
    except _DAMAGE as error:
        if archive.is_file():
            # Neither the file nor a checksum taken from it may stand for the right one next time.
            archive.unlink()
            archive.with_name(f"{archive.name}.sha256").unlink(missing_ok=True)
        fix = "fetch it again, or get the data from its publisher by hand (data/README.md)"
        raise OperationFailedError(f"{archive} cannot be unpacked: {error}. Fix: {fix}.") from error
    archive.unlink()
    return dataset.root


def _download(dataset: Dataset) -> Path:
    """Where no checksum is published, that of the first download is kept and holds for every later one."""
    folder = paths.DATA / "downloads"
    first = folder / f"{dataset.file}.sha256"
    known = dataset.checksum or (first.read_text().split()[0] if first.exists() else None)
    loader = pooch.HTTPDownloader(progressbar=True, timeout=60)
    pooch.get_logger().setLevel(logging.WARNING)
    try:
        with storage_errors(folder / dataset.file):
            file = Path(pooch.retrieve(dataset.url, known, dataset.file, folder, downloader=loader))
    except requests.RequestException as error:
        fix = f"try again, or download it by hand, save it as {folder / dataset.file} and run the same command"
        raise OperationFailedError(
            f"cannot download {dataset.url}: {error}. Fix: {fix}."
        ) from error
    except ValueError as error:
        trusted = "that is published" if dataset.checksum else f"of the first download, in {first}"
        fix = "fetch it again; if it happens twice, ask the publisher whether the file has changed"
        raise OperationFailedError(
            f"{dataset.url} has not the checksum {trusted}: {error}. Fix: {fix}."
        ) from error
    if not known:
        found = pooch.file_hash(str(file), alg="sha256")
        _log.warning("%s: no checksum is published; SHA-256 of this download: %s", file.name, found)
        with atomic_write(first) as temporary:
            temporary.write_text(f"{found}  {file.name}\n")
    return file


def _from_kaggle(dataset: Dataset) -> Path:
    try:
        import kagglehub

        return Path(kagglehub.dataset_download(dataset.kaggle))
    except ImportError as error:
        fix = "pip install 'xraylib-pneumonia[kaggle]', or leave the source out"
        raise OperationFailedError(
            f"kagglehub, for Kaggle's {dataset.kaggle}, is not installed. Fix: {fix}."
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        fix = "see to the network and to Kaggle's token, or leave the source out"
        raise OperationFailedError(
            f"kagglehub could not download {dataset.kaggle}: {error}. Fix: {fix}."
        ) from error


def _unpack(archive: Path, folder: Path) -> None:
    raw = folder / ".raw"
    with zipfile.ZipFile(archive) as source:
        members = [member for member in source.infolist() if not member.is_dir()]
        if sum(member.file_size for member in members) > MAX_UNPACKED:
            raise ValueError(f"it unpacks to more than {MAX_UNPACKED:,} bytes")
        for member in members:
            path = PureWindowsPath(member.filename)
            if path.anchor or PurePosixPath(member.filename).is_absolute() or ".." in path.parts:
                raise ValueError(
                    f"it holds {member.filename!r}, which would be written outside its folder"
                )
            if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
                raise ValueError(f"it holds {member.filename!r}, which is a link or a special file")
        for member in members:
            if not any(
                part.startswith((".", "__MACOSX")) for part in PurePosixPath(member.filename).parts
            ):
                source.extract(member, raw)
    for split in _split_folders(raw):
        split.replace(folder / split.name)
    shutil.rmtree(raw)


def _split_folders(root: Path) -> list[Path]:
    """The folders train, test and perhaps val nearest to `root`: publishers wrap them in others."""
    for train in sorted(root.rglob("[tT][rR][aA][iI][nN]"), key=lambda found: len(found.parts)):
        beside = {p.name.lower(): p for p in train.parent.iterdir() if p.is_dir()}
        if "test" in beside:
            return [beside[split] for split in ("train", "val", "test") if split in beside]
    raise ValueError("it holds no folders train and test")


def _unpack_arrays(archive: Path, folder: Path) -> None:
    """Write the arrays of a MedMNIST file as split/class/<split>-<row>.png."""
    with np.load(archive, allow_pickle=False) as arrays:
        for split in ("train", "val", "test"):
            pixels, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"].reshape(-1)
            for label, name in enumerate(("NORMAL", "PNEUMONIA")):
                (folder / split / name).mkdir(parents=True)
                for row in np.flatnonzero(labels == label):
                    Image.fromarray(pixels[row]).save(
                        folder / split / name / f"{split}-{row:05d}.png"
                    )
