"""Radiographs from files: auditing a folder, decoding a data set once, finding near copies.

One intensity range everywhere: uint8, 0 = black (air), 255 = white (most attenuating); networks rescale
themselves.
"""

import errno
import hashlib
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL
from filelock import FileLock
from PIL import Image
from tqdm.auto import tqdm

from xraylib import paths, storage
from xraylib.datasets.decoding import DECODER_VERSION, UnusableImage, decode, read_bytes
from xraylib.datasets.decoding import read_gray as read_gray
from xraylib.storage import DataInvalid, NotFound

logger = logging.getLogger(__name__)

# Of the 5,840 Kermany radiographs at 224 px no two that differ in their bytes correlate above .975; copies
# re-encoded (JPEG quality 30), halved, with noise (sigma 10) or gamma .8 to 1.25 stay above .995, and 99 % of
# copies cropped by 1 % or turned by 1 degree above .98. Crops by 2 % mostly go unseen (41 % stay above .98).
COPY_CORRELATION = 0.98

_CHUNK = 256
_THUMBNAIL = 32
_TILE = 1024
_CHANGED = "other bytes than when the data set was indexed"
_CONTRADICTIONS = {("bacteria", 0), ("virus", 0), ("normal", 1)}
_FINDINGS = ["path", "image_id", "problem", "detail", "of", "quarantine"]


def _map_rows(
    function: Callable[[Any], Any], manifest: pd.DataFrame, title: str, progress: bool
) -> Iterator[list[Any]]:
    """Apply `function` to the rows in parallel (Pillow releases the GIL); yields chunks of results."""
    with (
        ThreadPoolExecutor(os.cpu_count() or 1) as pool,
        tqdm(
            total=len(manifest),
            desc=title,
            unit="image",
            disable=not progress or "TQDM_DISABLE" in os.environ,
        ) as bar,
    ):
        for start in range(0, len(manifest), _CHUNK):
            rows = list(manifest.iloc[start : start + _CHUNK].itertuples(index=False))
            yield list(pool.map(function, rows))
            bar.update(len(rows))


def audit(manifest: pd.DataFrame, *, progress: bool = True) -> pd.DataFrame:
    """Read every file of a manifest and list what is wrong; goes on past bad files.

    Parameters
    ----------
    manifest
        One row an image, with `image_id`, `path`, `label`, `kind` and `sha256`.
    progress
        Show a progress bar.

    Returns
    -------
    One row a finding, in manifest order, with `path`, `image_id`, `problem`, `detail`, `of` (the `image_id`
    of the file it is a copy of, else empty) and `quarantine` (bool). `problem` is ``missing``,
    ``unreadable``, ``truncated``, ``oversized``, ``changed`` (not the bytes that were indexed),
    ``mislabelled`` (the kind in its name contradicts its label), ``conflict`` (byte-identical files under
    two labels) or ``duplicate`` (byte-identical to an earlier file), the only one not to be quarantined.
    """
    findings, digests = [], []
    for chunk in _map_rows(_inspect, manifest, "auditing", progress):
        for digest, found in chunk:
            digests.append(digest)
            findings += found
    findings += _copies(manifest, pd.Series(digests, dtype=object))
    place = {image_id: number for number, image_id in enumerate(manifest["image_id"])}
    findings.sort(key=lambda finding: place[finding["image_id"]])
    return pd.DataFrame(findings, columns=_FINDINGS).astype({"quarantine": bool})


def _finding(row: Any, problem: str, detail: str, of: str = "") -> dict[str, Any]:
    values = (row.path, row.image_id, problem, detail, of, problem != "duplicate")
    return dict(zip(_FINDINGS, values, strict=True))


def _inspect(row: Any) -> tuple[str | None, list[dict[str, Any]]]:
    """Give one file's SHA-256 (None without content) and its findings, copies apart."""
    path, digest, found = Path(row.path), None, []
    try:
        data = read_bytes(path)
        digest = hashlib.sha256(data).hexdigest()
        decode(path, data, _THUMBNAIL)
        if digest != row.sha256:
            found.append(_finding(row, "changed", _CHANGED))
    except NotFound:
        found.append(_finding(row, "missing", "no such file"))
    except UnusableImage as error:
        found.append(_finding(row, error.problem, error.detail))
    if (row.kind, row.label) in _CONTRADICTIONS:
        found.append(_finding(row, "mislabelled", f"its name says {row.kind}, its label is {row.label}"))
    return digest, found


def _copies(manifest: pd.DataFrame, digests: pd.Series) -> list[dict[str, Any]]:
    found = []
    for places in digests.groupby(digests).indices.values():
        rows: list[Any] = list(manifest.iloc[places].itertuples(index=False))
        first = rows[0]
        if len({row.label for row in rows}) == 1:
            detail = f"the same bytes as {first.image_id}"
            found += [_finding(row, "duplicate", detail, first.image_id) for row in rows[1:]]
            continue
        for row in rows:
            other = next(candidate for candidate in rows if candidate.label != row.label)
            detail = f"label {row.label}, but {other.image_id} has the same bytes and label {other.label}"
            found.append(_finding(row, "conflict", detail, other.image_id))
    return found


def check_audit(findings: pd.DataFrame, total: int, max_bad_fraction: float = 0.01) -> None:
    """Raise `DataInvalid` if `findings` put more than `max_bad_fraction` of `total` images in quarantine."""
    bad = findings[findings["quarantine"]]
    count = bad["image_id"].nunique()
    if count <= max_bad_fraction * total:
        return
    counts = ", ".join(f"{n} {problem}" for problem, n in bad["problem"].value_counts().items())
    files = "; ".join(bad["path"].drop_duplicates().head(3))
    raise DataInvalid(
        f"{count} of {total} images cannot be used, more than {max_bad_fraction:.1%} ({counts}); "
        f"the first are {files}. Fix: fetch the data set again, or allow a larger fraction of bad files."
    )


def write_quarantine(findings: pd.DataFrame, path: Path | str) -> None:
    """Write the findings of `audit` as a CSV file; raises `Failed` when that cannot be done."""
    with storage.atomic(path) as temporary:
        findings.to_csv(temporary, index=False)


def read_quarantine(path: Path | str) -> set[str]:
    """Read the `image_id`s to leave out; raises `NotFound` or `DataInvalid` without a proper list."""
    columns = {"image_id": str, "quarantine": bool}
    try:
        table = pd.read_csv(path, usecols=list(columns), dtype=columns, keep_default_na=False)
    except FileNotFoundError as error:
        mend = "run `python -m xraylib data audit NAME`"
        raise NotFound(f"{path}: no quarantine list there. Fix: {mend}.") from error
    except ValueError as error:
        mend = "delete it and run `python -m xraylib data audit NAME`"
        raise DataInvalid(f"{path}: not a quarantine list. Fix: {mend}.") from error
    return set(table.loc[table["quarantine"], "image_id"])


def fingerprint(manifest: pd.DataFrame) -> str:
    """Name a manifest's images by 16 hex digits of their order, ids and content, not of labels or splits."""
    text = "\0".join(manifest["image_id"] + "\0" + manifest["sha256"])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_pixels(
    manifest: pd.DataFrame, size: int, *, cache: Path = paths.CACHE, progress: bool = True
) -> np.ndarray:
    """Decode every image of a manifest once, and read the result from the cache ever after.

    The cache is keyed by `fingerprint`: load the whole manifest of a data set and take subsets by row number,
    because a subset or another order is decoded anew. Of two processes that ask at once the second waits and
    reads what the first decoded.

    Parameters
    ----------
    manifest
        One row an image, with `image_id`, `path` and `sha256`.
    size
        Side in pixels, as in `read_gray`.
    cache
        The folder in which ``pixels/`` holds the decoded arrays.
    progress
        Show a progress bar.

    Returns
    -------
    Read-only memory map, uint8 of shape (n, size, size, 1), in manifest order.

    Raises
    ------
    DataInvalid
        When the manifest is empty, or a file cannot be used or is not the one that was indexed.
    NotFound
        When a file is gone.
    Failed
        When the cache cannot be written or the disk is full.
    """
    if manifest.empty:
        raise DataInvalid("the manifest is empty. Fix: check the data set's folder and its quarantine list.")
    name = f"{fingerprint(manifest)}-{size}px-decoder{DECODER_VERSION}-pillow{PIL.__version__}.npy"
    target, shape = Path(cache) / "pixels" / name, (len(manifest), int(size), int(size), 1)
    with storage.storage_errors(target):
        pixels = _open_cached(target, shape)
        if pixels is None:
            target.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{target}.lock"):
                pixels = _open_cached(target, shape)
                if pixels is None:
                    _build(manifest, shape, target, progress)
                    pixels = np.load(target, mmap_mode="r")
    return pixels


def _open_cached(target: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    try:
        pixels = np.load(target, mmap_mode="r")
        if pixels.shape == shape and pixels.dtype == np.uint8:
            return pixels
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, EOFError):
        pass
    logger.warning("%s is damaged: decoding anew", target)
    return None


def _build(manifest: pd.DataFrame, shape: tuple[int, ...], target: Path, progress: bool) -> None:
    for left_by_killed_build in target.parent.glob(f".partial-*-{target.name}"):
        left_by_killed_build.unlink(missing_ok=True)
    needed, free = math.prod(shape), shutil.disk_usage(target.parent).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{needed:,} bytes needed, {free:,} free")
    logger.info("decoding %d images to %s", len(manifest), target)

    def pixels_of(row: Any) -> np.ndarray:
        return _indexed_pixels(row, shape[1])

    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with storage.atomic(target) as temporary, temporary.open("wb") as file:
        # Plain writes, because the written pages of a memory map would count as this process's memory.
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in _map_rows(pixels_of, manifest, "decoding", progress):
            file.write(np.stack(chunk).data)


def _indexed_pixels(row: Any, size: int) -> np.ndarray:
    path = Path(row.path)
    mend = "run `python -m xraylib data audit NAME`, which writes a quarantine list"
    try:
        data = read_bytes(path)
        if hashlib.sha256(data).hexdigest() != row.sha256:
            raise UnusableImage(path, "changed", _CHANGED)
        return decode(path, data, size)
    except UnusableImage as error:
        raise UnusableImage(path, error.problem, error.detail, mend) from error


def near_duplicates(pixels: np.ndarray, threshold: float = COPY_CORRELATION) -> pd.DataFrame:
    """Find pairs of images that look like copies: their 32 x 32 thumbnails correlate at least at `threshold`.

    Parameters
    ----------
    pixels
        uint8 of shape (n, height, width, 1), as `load_pixels` gives them.
    threshold
        Pearson correlation of the two thumbnails' pixels, -1..1, blind to brightness and contrast.

    Returns
    -------
    One row a pair, with the row numbers `a` < `b` and their `correlation`, highest first. An image of one
    intensity correlates with none.
    """
    thumbnails = np.stack([_standardised(image) for image in pixels])
    pairs = []
    for top in range(0, len(pixels), _TILE):
        for left in range(top, len(pixels), _TILE):
            tile = thumbnails[top : top + _TILE] @ thumbnails[left : left + _TILE].T
            a, b = np.nonzero(tile >= threshold)
            pairs.append(pd.DataFrame({"a": a + top, "b": b + left, "correlation": tile[a, b]}))
    table = pd.concat(pairs).query("a < b")
    return table.sort_values(["correlation", "a", "b"], ascending=[False, True, True], ignore_index=True)


def _standardised(image: np.ndarray) -> np.ndarray:
    thumbnail = Image.fromarray(image[..., 0]).resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
    values = np.asarray(thumbnail, dtype=np.float32).ravel()
    values -= values.mean()
    return values / max(float(np.linalg.norm(values)), 1e-6)
