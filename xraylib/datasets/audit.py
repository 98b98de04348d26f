"""What is wrong with files, what crosses the splits, and what else predicts the class.

A network could learn those other features instead of pneumonia.
"""

from collections.abc import Callable
from functools import partial
from itertools import chain, combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.preprocessing import normalize

from xraylib import paths, storage
from xraylib.datasets.catalog import DATASETS
from xraylib.datasets.images import (
    CHANGED,
    decode,
    load_pixels,
    map_rows,
    read_bytes,
    read_size,
    resize,
)
from xraylib.datasets.manifest import (
    image_id,
    linked_groups,
    other_readings,
    patient_and_kind,
)
from xraylib.errors import InvalidDataError, NotFoundError, UnusableImageError

# Of the 5,840 Kermany images at 224 px no two that differ in their bytes correlate above 0.975;
# copies re-encoded (JPEG quality 30), halved, with noise (sigma 10) or gamma 0.8 to 1.25 stay above
# 0.995, and 99% of copies cropped by 1% or turned by 1 degree above 0.98. Crops by 2% mostly go
# unseen (41% are above 0.98).
COPY_CORRELATION = 0.98
# Simulated images are smoother, and some that differ correlate as much. Their details do not: of
# the differences between neighbouring pixels the correlation is below 0.905 (Kermany's: 0.70). Of
# the copies above, 99% are above 0.94, but for crops and turns (0.91).
DETAIL_CORRELATION = 0.92

_THUMBNAIL = 32
# So many images are compared with all others at once, and so many pairs in their details.
_ROWS_AT_ONCE = 512
_PAIRS_AT_ONCE = 4_096
SPLITS = ("train", "val", "test")
_CONTRADICTIONS = {("bacteria", 0), ("virus", 0), ("normal", 1)}

# `image_id`, problem, detail, and the `image_id` of the file that it is a copy of.
_Problem = tuple[str, str, str, str]


def _decode(row: Any, data: bytes) -> None:
    decode(Path(row.path), data, _THUMBNAIL)


def audit_files(
    manifest: pd.DataFrame, describe: Callable[[Any, bytes], None] = _decode
) -> pd.DataFrame:
    """Read every file of a manifest once and list what is wrong.

    Parameters
    ----------
    manifest : pandas.DataFrame
        The files.
    describe : callable, optional
        Called with the row and the content of every file, in several threads; it decodes the file.

    Returns
    -------
    pandas.DataFrame
        One row per finding, in manifest order.
        `path`, `image_id`: of the file.
        `problem`: missing, unreadable, truncated, oversized, changed (not the bytes that were
        indexed), mislabelled (the kind in its name contradicts its label), conflict
        (byte-identical files under two labels) or duplicate (byte-identical to an earlier file).
        `detail`: the problem in words.
        `of`: the `image_id` of the file that it is a copy of, else empty.
        `quarantine`: bool, false for duplicates only.
    """
    results = map_rows(partial(_inspect, describe=describe), manifest, "auditing")
    inspected = pd.DataFrame(results, manifest.index, ["digest", "problems"])
    copies = _copies(manifest.assign(digest=inspected["digest"]))
    problems = [*chain.from_iterable(inspected["problems"]), *copies]
    found = pd.DataFrame(problems, columns=["image_id", "problem", "detail", "of"])
    # In the order of the manifest.
    findings = manifest[["path", "image_id"]].merge(found, on="image_id")
    return findings.assign(quarantine=findings["problem"] != "duplicate")


def _inspect(row: Any, describe: Callable[[Any, bytes], None]) -> tuple[str, list[_Problem]]:
    """Give a file's SHA-256 (empty without content) and problems (copies apart)."""
    digest = ""
    problems = []
    try:
        data = read_bytes(Path(row.path))
        digest = storage.sha256_bytes(data)
        describe(row, data)
        if digest != row.sha256:
            problems.append((row.image_id, "changed", CHANGED, ""))
    except NotFoundError:
        problems.append((row.image_id, "missing", "no such file", ""))
    except UnusableImageError as error:
        problems.append((row.image_id, error.problem, error.detail, ""))
    if (row.kind, row.label) in _CONTRADICTIONS:
        detail = f"its name says {row.kind}, its label is {row.label}"
        problems.append((row.image_id, "mislabelled", detail, ""))
    return digest, problems


def _copies(hashed: pd.DataFrame) -> list[_Problem]:
    """List files with equal `digest`: conflicts of labels, and later copies of one label."""
    problems = []
    repeated = hashed[(hashed["digest"] != "") & hashed["digest"].duplicated(keep=False)]
    for _, copies in repeated.groupby("digest"):
        of_label = copies.groupby("label")["image_id"].first()
        for name, label in zip(copies["image_id"], copies["label"], strict=True):
            first = of_label[label]
            if len(of_label) > 1:
                other = of_label[1 - label]
                detail = f"label {label}, but {other} has the same bytes and label {1 - label}"
                problems.append((name, "conflict", detail, other))
            elif name != first:
                problems.append((name, "duplicate", f"the same bytes as {first}", first))
    return problems


def write_quarantine(
    findings: pd.DataFrame, total: int, path: Path | str, max_bad_fraction: float = 0.01
) -> None:
    """Write the findings as a CSV file, for `manifest.quarantine_path`.

    Parameters
    ----------
    findings : pandas.DataFrame
        From `audit_files`.
    total : int
        How many images were read.
    path : Path or str
    max_bad_fraction : float
        The largest share of images that may be left out, from 0 to 1.

    Raises
    ------
    InvalidDataError
        If a larger share is to be quarantined; then nothing is written.
    """
    bad = findings[findings["quarantine"]]
    count = bad["image_id"].nunique()
    if count > max_bad_fraction * total:
        counts = ", ".join(f"{n} {problem}" for problem, n in bad["problem"].value_counts().items())
        files = "; ".join(bad["path"].drop_duplicates().head(3))
        raise InvalidDataError(
            f"{count} of {total} images cannot be used, more than {max_bad_fraction:.1%} "
            f"({counts}); the first are {files}. Fix: replace these files, or give a larger "
            "--max-bad to list them and leave them out."
        )
    with storage.atomic_write(path) as temporary:
        # A path need not be UTF-8; it is for people, the `image_id` is what is read back.
        findings.to_csv(temporary, index=False, errors="backslashreplace")


def thumbnails(pixels: np.ndarray) -> np.ndarray:
    """Shrink images `(n, height, width, 1)` to uint8 `(n, 32, 32, 1)`, for `near_duplicates`."""
    return resize(pixels, _THUMBNAIL, filter_=Image.Resampling.BOX)


def near_duplicates(pixels: np.ndarray) -> np.ndarray:
    """Find pairs of images that look like copies: their 32 x 32 thumbnails correlate.

    All pairs are compared, some rows at a time: memory grows linearly with the number of images.
    Of 100,000 images it takes some minutes, as decoding them does.

    Parameters
    ----------
    pixels : numpy.ndarray
        uint8 (n, height, width, 1).

    Returns
    -------
    numpy.ndarray
        `(pairs, 2)`: the row numbers, the smaller first, of pairs whose correlation is at least
        `COPY_CORRELATION`, and that of whose details at least `DETAIL_CORRELATION`. It is Pearson's
        and blind to brightness and contrast. A blank image has no copies.
    """
    small = thumbnails(pixels)[..., 0]
    values = _normalised(small)
    pairs = [np.empty((0, 2), int)]
    for start in range(0, len(values), _ROWS_AT_ONCE):
        correlation = values[start : start + _ROWS_AT_ONCE] @ values[start:].T
        close = start + np.argwhere(correlation >= COPY_CORRELATION)
        close = close[close[:, 0] < close[:, 1]]
        for done in range(0, len(close), _PAIRS_AT_ONCE):
            some = close[done : done + _PAIRS_AT_ONCE]
            first, second = (_normalised(_differences(small[rows])) for rows in some.T)
            pairs.append(some[(first * second).sum(axis=1) >= DETAIL_CORRELATION])
    return np.concatenate(pairs)


def _normalised(images: np.ndarray) -> np.ndarray:
    """Bring each image to mean 0 and length 1 (0 for a blank one), in a row, float32."""
    rows = images.reshape(len(images), -1)
    return normalize(rows - rows.mean(axis=1, dtype=np.float32, keepdims=True))


def _differences(images: np.ndarray) -> np.ndarray:
    """Differences between neighbouring pixels of images `(n, side, side)`, `(n, differences)`."""
    signed = images.astype(np.int16)
    directions = [np.diff(signed, axis=axis).reshape(len(images), -1) for axis in (1, 2)]
    return np.concatenate(directions, axis=1)


def copy_groups(pixels: np.ndarray) -> np.ndarray:
    """Number the groups of images (n, height, width, 1) that `near_duplicates` links, `(n,)`."""
    return linked_groups(near_duplicates(pixels), len(pixels))


def leakage(manifest: pd.DataFrame, pixels: np.ndarray | None = None) -> pd.DataFrame:
    """Count what crosses the borders between splits, under each reading of who is one patient.

    Parameters
    ----------
    manifest : pandas.DataFrame
        With the splits to be checked. An image may be in several.
    pixels : numpy.ndarray, optional
        uint8 (n, size, size, 1) of the same rows; with them near duplicates are counted as well.

    Returns
    -------
    pandas.DataFrame
        One row per check and pair of splits.
        `check`: `same patient` follows the authors' numbering (the manifest's `patient`);
        `same number and kind` and `same number` are the readings that it contradicts (see
        `manifest.other_readings`); `byte-identical`; `near-identical`.
        `splits`: the pair, such as "train and test".
        `patients_or_images`: how many of them are in both.
        `images`: images of the second split concerned.
        `share`: of the second split.
    """
    # The index can repeat: a system may validate on images that it trained on.
    readings = pd.DataFrame(map(other_readings, manifest["image_id"]))
    marked = pd.concat([manifest.reset_index(drop=True), readings], axis=1)
    marked = marked.rename(columns={"patient": "same patient", "sha256": "byte-identical"})
    checks = ["same patient", *readings, "byte-identical"]
    if pixels is not None:
        marked["near-identical"] = copy_groups(pixels)
        checks.append("near-identical")
    present = [split for split in SPLITS if (marked["split"] == split).any()]
    rows = []
    for check, (first, second) in product(checks, combinations(present, 2)):
        earlier = marked.loc[marked["split"] == first, check]
        later = marked.loc[marked["split"] == second, check]
        is_crossing = later.isin(earlier)
        patients_or_images = later[is_crossing].nunique()
        counts = (patients_or_images, is_crossing.sum(), is_crossing.mean())
        rows.append((check, f"{first} and {second}", *counts))
    columns = ["check", "splits", "patients_or_images", "images", "share"]
    return pd.DataFrame(rows, columns=columns)


def file_properties(manifest: pd.DataFrame) -> pd.DataFrame:
    """Describe files without decoding them: `width`, `height` (pixels) and `bytes`."""
    if "shards" in manifest.attrs:
        fix = "name the folder that they were written from"
        raise InvalidDataError(f"shards hold no files to describe. Fix: {fix}.")
    rows = [(*read_size(path), Path(path).stat().st_size) for path in manifest["path"]]
    return pd.DataFrame(rows, columns=["width", "height", "bytes"], index=manifest.index)


def originals(name: str) -> pd.DataFrame | None:
    """Read the list of original files of copies that were all brought to one size.

    Parameters
    ----------
    name : str
        `attrs["dataset"]` of a manifest.

    Returns
    -------
    pandas.DataFrame or None
        The list's columns `path, label, width, height, bytes`, and `image_id` and `patient`. None
        where the data set has no such list on this machine.
    """
    # The name of a folder's report is no key; such a folder has no list.
    dataset = DATASETS.get(name)
    if dataset is None or not dataset.originals or not (paths.DATA / dataset.originals).exists():
        return None
    table = pd.read_csv(paths.DATA / dataset.originals)
    table["image_id"] = table["path"].map(image_id)
    table["patient"] = table["path"].map(patient_and_kind).str[0]
    return table


def file_features(described: pd.DataFrame) -> pd.DataFrame:
    """Return features of files from their `width`, `height` and `bytes`; none needs a lung."""
    width = described["width"]
    height = described["height"]
    return pd.DataFrame(
        {
            "width": width,
            "height": height,
            "aspect ratio": width / height,
            "file size": described["bytes"],
            "bits a pixel": 8 * described["bytes"] / (width * height),
        }
    )


def single_feature(manifest: pd.DataFrame, name: str, size: int) -> np.ndarray:
    """Return the one number that a single-feature baseline sees of every image, float64 (n, 1).

    `name` is "majority class" (the same number for all), "file size", or "mean intensity" at `size`
    pixels.
    """
    if name == "majority class":
        return np.zeros((len(manifest), 1))
    if name == "file size":
        return file_properties(manifest)[["bytes"]].to_numpy(dtype=np.float64)
    return load_pixels(manifest, size).mean(axis=(1, 2), dtype=np.float64)
