"""Getting published files whole and as published."""

import logging
import shutil
import time
from pathlib import Path
from urllib.parse import urlsplit

import pooch
import requests
from filelock import FileLock
from tqdm.auto import tqdm

from xraylib.datasets.archives import folder_holding, unpack, unpack_arrays
from xraylib.datasets.records import Dataset, RemoteFile
from xraylib.storage import Failed, NotFound, atomic, atomic_folder, storage_errors

_log = logging.getLogger(__name__)

# What a cut connection loses at most.
_BLOCK = 1 << 16
_TIMEOUT = (10, 60)
_WORTH_ANOTHER_TRY = {408, 425, 429, 500, 502, 503, 504}


class _Cut(Exception):
    """The connection ended early; another try may go on from there."""


def download(
    file: RemoteFile,
    folder: Path,
    *,
    base_url: str | None = None,
    progress: bool = True,
    attempts: int = 5,
    wait: float = 1.0,
) -> Path:
    """Download one file, or return it when it is there already.

    The bytes gather in ``<name>.part``, from which a later call goes on where the server supports it. Where
    no checksum is published, the SHA-256 of the first download is kept beside the file, in ``<name>.sha256``,
    and holds for every later one.

    Parameters
    ----------
    file
        What to download.
    folder
        Where to.
    base_url
        Where a mirror keeps the file under the same name; by default `file.url` is used.
    attempts, wait
        Tries in a row that bring nothing new before giving up, and seconds before the second try; the pause
        doubles with each.

    Raises
    ------
    Failed
        When the host cannot be reached or what arrived is not what was published; then nothing of it is left.
    Failed
        When the disk is full or the folder cannot be written; nothing half-written is left.
    """
    url = f"{base_url.rstrip('/')}/{file.name}" if base_url else file.url
    kept = folder / f"{file.name}.sha256"
    part = folder / f"{file.name}.part"

    def fetch_into(source: str, output: str, _: object) -> None:
        _gather(source, part, file.size, progress, attempts, wait)
        part.replace(output)

    with storage_errors(folder / file.name):
        folder.mkdir(parents=True, exist_ok=True)
        pooch.get_logger().setLevel(logging.WARNING)
        with FileLock(folder / f".{file.name}.lock"):
            known = file.hash or (kept.read_text().split()[0] if kept.exists() else None)
            try:
                path = Path(pooch.retrieve(url, known, fname=file.name, path=folder, downloader=fetch_into))
            except ValueError as error:
                trusted = "as published" if file.hash else f"of the first download, in {kept}"
                raise Failed(
                    f"{file.name} from {url} has not the checksum {trusted}: {error} Fix: fetch it again; "
                    "if it happens twice, ask the publisher whether the file has changed."
                ) from error
            if not known:
                _keep_hash(path, kept)
    return path


def _keep_hash(path: Path, kept: Path) -> None:
    found = pooch.file_hash(str(path), alg="sha256")
    _log.warning("%s: no checksum is published; SHA-256 of this download: %s", path.name, found)
    with atomic(kept) as temporary:
        temporary.write_text(f"{found}  {path.name}\n")


def _gather(url: str, part: Path, size: int | None, progress: bool, attempts: int, wait: float) -> None:
    failures, furthest = 0, _length(part)
    while True:
        try:
            _receive(url, part, size, progress)
            return
        except (_Cut, requests.RequestException) as error:
            status = _status(error)
            if _length(part) > furthest:
                failures, furthest = 0, _length(part)
            failures += 1
            if failures >= attempts or (status and status not in _WORTH_ANOTHER_TRY):
                raise Failed(
                    f"cannot download {url} from {urlsplit(url).netloc}: {_short(error)}. "
                    "Fix: run the same command again (it goes on where it stopped), or download the file by "
                    f"hand, save it as {part.with_suffix('')} and run the same command again."
                ) from error
            _log.info("%s: %s; trying again", url, _short(error))
            time.sleep(wait * 2 ** (failures - 1))
        except OSError:
            part.unlink(missing_ok=True)
            raise


def _receive(url: str, part: Path, size: int | None, progress: bool) -> None:
    have = _length(part)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as answer:
        if answer.status_code == requests.codes.requested_range_not_satisfiable:
            if answer.headers.get("Content-Range", "").endswith(f"/{have}"):
                return
            part.unlink()
            raise _Cut("a part that does not belong to this file")
        answer.raise_for_status()
        if answer.status_code != requests.codes.partial_content:
            have = 0
        coming = answer.headers.get("Content-Length")
        total = have + int(coming) if coming else size
        bar = tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem, disable=not progress)
        with bar, part.open("ab" if have else "wb") as output:
            for block in answer.iter_content(_BLOCK):
                output.write(block)
                bar.update(len(block))
    if total is not None and _length(part) < total:
        raise _Cut(f"{_length(part)} of {total} bytes")


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _status(error: Exception) -> int | None:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code
    return None


def _short(error: Exception) -> str:
    if status := _status(error):
        return f"status {status}"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "a connection cut before the end"
    return "the connection failed" if isinstance(error, requests.ConnectionError) else str(error)


def obtain(
    dataset: Dataset,
    folder: Path,
    *,
    source: str = "default",
    base_url: str | None = None,
    progress: bool = True,
) -> None:
    """Fill `dataset.root` from the publisher or from Kaggle; downloads gather in `folder` until unpacked.

    Raises
    ------
    NotFound
        When the data set does not come from `source`.
    Failed, Failed
        When it cannot be had; `dataset.root` is left as it was.
    """
    if source == "kaggle" and dataset.kaggle:
        _from_kaggle(dataset.kaggle, dataset.root)
        return
    if source != "default":
        known = "default, kaggle" if dataset.kaggle else "default"
        raise NotFound(f"{dataset.name} has no source named {source!r}. Fix: take one of {known}.")
    if not dataset.files:
        raise Failed(f"{dataset.name} cannot be fetched from here. Fix: {dataset.by_hand} ({dataset.root}).")
    archives = [download(file, folder, base_url=base_url, progress=progress) for file in dataset.files]
    with atomic_folder(dataset.root) as aside:
        for file, archive in zip(dataset.files, archives, strict=True):
            try:
                _unpack_one(file, archive, aside)
            except Failed:
                # Neither the file nor a checksum taken from it may stand for the right one next time.
                archive.unlink()
                archive.with_name(f"{archive.name}.sha256").unlink(missing_ok=True)
                raise
    for archive in archives:
        archive.unlink()


def _unpack_one(file: RemoteFile, archive: Path, aside: Path) -> None:
    if archive.suffix == ".npz":
        unpack_arrays(archive, aside)
        return
    # Publishers wrap the folders wanted in others, such as chest_xray/.
    raw = aside / ".raw"
    unpack(archive, raw)
    wanted = {"normal", "pneumonia"} if file.into else {"train", "test"}
    found = folder_holding(raw, wanted)
    if found is None:
        raise Failed(
            f"{archive} holds no folder with {' and '.join(sorted(wanted))}. "
            "Fix: see data/README.md for the layout expected."
        )
    into = aside / file.into
    into.mkdir(exist_ok=True)
    for inner in sorted(found.iterdir()):
        if inner.is_dir():
            inner.replace(into / inner.name)
    shutil.rmtree(raw)


def _from_kaggle(slug: str, root: Path) -> None:
    try:
        import kagglehub
    except ImportError as error:
        raise Failed(
            f"{slug} comes through kagglehub, which is not installed. "
            "Fix: pip install 'xraylib-pneumonia[kaggle]', or leave the source out."
        ) from error
    try:
        downloaded = Path(kagglehub.dataset_download(slug))
    except (OSError, ValueError, RuntimeError) as error:
        raise Failed(
            f"kagglehub could not download {slug} from www.kaggle.com: {error}. "
            "Fix: see to the network and to Kaggle's token, or leave the source out."
        ) from error
    found = folder_holding(downloaded, {"train", "test"})
    if found is None:
        raise Failed(f"{downloaded} holds no folders train and test. Fix: remove it, fetch again.")
    with atomic_folder(root) as aside:
        for split in ("train", "val", "test"):
            if (found / split).is_dir():
                hidden = shutil.ignore_patterns(".*", "__MACOSX")
                shutil.copytree(found / split, aside / split, ignore=hidden)
