"""What is wrong with files, what crosses the splits, and what a network could learn instead of pneumonia."""

import hashlib
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from xraylib import paths, storage
from xraylib.datasets.catalog import Dataset, get_dataset
from xraylib.datasets.images import CHANGED, decode, load_pixels, map_rows, read_bytes
from xraylib.datasets.manifest import image_id, other_readings, patient_and_kind
from xraylib.errors import InvalidDataError, NotFoundError, UnusableImageError

# Of the 5,840 Kermany radiographs at 224 px no two that differ in their bytes correlate above 0.975; copies re-encoded
# (JPEG quality 30), halved, with noise (sigma 10) or gamma 0.8 to 1.25 stay above 0.995, and 99% of copies cropped by
# 1% or turned by 1 degree above 0.98. Crops by 2% mostly go unseen (41% are above 0.98).
COPY_CORRELATION = 0.98

# Shares of height and width that count as border on each side; an eighth would hold lung.
BORDERS = (1 / 16, 1 / 32, 1 / 64)


_THUMBNAIL = 32
_TILE = 1024
_CONTRADICTIONS = {("bacteria", 0), ("virus", 0), ("normal", 1)}
_FINDINGS = ["path", "image_id", "problem", "detail", "of", "quarantine"]


def audit_files(manifest: pd.DataFrame) -> pd.DataFrame:
    """Read every file of a manifest and list what is wrong, one row a finding, in manifest order.

    `problem` is missing, unreadable, truncated, oversized, changed (not the bytes that were indexed), mislabelled (the
    kind in its name contradicts its label), conflict (byte-identical files under two labels) or duplicate
    (byte-identical to an earlier file), the only one not to be quarantined. `of` is the `image_id` of the file it is a
    copy of, else empty; `quarantine` is bool.
    """
    findings, digests = [], []
    for chunk in map_rows(_inspect, manifest, "auditing"):
        for digest, found in chunk:
            digests.append(digest)
            findings += found
    findings += _copies(manifest, pd.Series(digests, dtype=object))
    place = {image_id: row for row, image_id in enumerate(manifest["image_id"])}
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
            found.append(_finding(row, "changed", CHANGED))
    except NotFoundError:
        found.append(_finding(row, "missing", "no such file"))
    except UnusableImageError as error:
        found.append(_finding(row, error.problem, error.detail))
    if (row.kind, row.label) in _CONTRADICTIONS:
        found.append(
            _finding(row, "mislabelled", f"its name says {row.kind}, its label is {row.label}")
        )
    return digest, found


def _copies(manifest: pd.DataFrame, digests: pd.Series) -> list[dict[str, Any]]:
    found = []
    for places in digests.groupby(digests).indices.values():
        rows: list[Any] = list(manifest.iloc[places].itertuples(index=False))
        first = rows[0].image_id
        for row in rows:
            if other := next((each for each in rows if each.label != row.label), None):
                detail = f"label {row.label}, but {other.image_id} has the same bytes and label {other.label}"
                found.append(_finding(row, "conflict", detail, other.image_id))
            elif row.image_id != first:
                found.append(_finding(row, "duplicate", f"the same bytes as {first}", first))
    return found


def check_audit(findings: pd.DataFrame, total: int, max_bad_fraction: float = 0.01) -> None:
    """Raise `InvalidDataError` if `findings` put more than `max_bad_fraction` of `total` images in quarantine."""
    bad = findings[findings["quarantine"]]
    count = bad["image_id"].nunique()
    if count > max_bad_fraction * total:
        counts = ", ".join(f"{n} {problem}" for problem, n in bad["problem"].value_counts().items())
        files = "; ".join(bad["path"].drop_duplicates().head(3))
        raise InvalidDataError(
            f"{count} of {total} images cannot be used, more than {max_bad_fraction:.1%} ({counts}); "
            f"the first are {files}. Fix: fetch the data set again, or allow a larger fraction of bad files."
        )


def write_quarantine(findings: pd.DataFrame, path: Path | str) -> None:
    """Write the findings of `audit_files` as a CSV file, for `manifest.quarantine_path`."""
    with storage.atomic_write(path) as temporary:
        findings.to_csv(temporary, index=False)


def near_duplicates(pixels: np.ndarray) -> pd.DataFrame:
    """Find pairs of images that look like copies: their 32 x 32 thumbnails correlate at `COPY_CORRELATION`.

    `pixels` is uint8 (n, height, width, 1). One row a pair, with the row numbers `a` < `b` and the Pearson
    `correlation` of their thumbnails, blind to brightness and contrast, highest first. A blank image has no copies.
    """
    size, films = (_THUMBNAIL, _THUMBNAIL), (Image.fromarray(image[..., 0]) for image in pixels)
    small = np.stack(
        [np.asarray(film.resize(size, Image.Resampling.BOX), np.float32) for film in films]
    )
    thumbnails = small.reshape(len(pixels), -1) - small.mean(axis=(1, 2))[:, None]
    thumbnails /= np.linalg.norm(thumbnails, axis=1, keepdims=True).clip(1e-6)
    pairs = []
    for top in range(0, len(pixels), _TILE):
        for left in range(top, len(pixels), _TILE):
            tile = thumbnails[top : top + _TILE] @ thumbnails[left : left + _TILE].T
            a, b = np.nonzero(tile >= COPY_CORRELATION)
            pairs.append(pd.DataFrame({"a": a + top, "b": b + left, "correlation": tile[a, b]}))
    table = pd.concat(pairs).query("a < b")
    return table.sort_values(
        ["correlation", "a", "b"], ascending=[False, True, True], ignore_index=True
    )


def leakage(manifest: pd.DataFrame, pixels: np.ndarray | None = None) -> pd.DataFrame:
    """Count what crosses the borders between splits, under each reading of who is one patient.

    `same patient` follows the authors' numbering (the manifest's `patient`). `same number and kind` and `same number`
    are the readings that it contradicts (see `manifest.other_readings`). With `pixels`, uint8 (n, size, size, 1) of the
    same rows, near duplicates are counted as well. One row a check and pair of splits: `check`, `splits`,
    `patients_or_images`, `images` (those of the second split concerned) and their `share` of it.
    """
    # The index can repeat: a system may validate on images that it trained on.
    readings = pd.DataFrame(map(other_readings, manifest["image_id"]))
    marked = pd.concat([manifest.reset_index(drop=True), readings], axis=1)
    checks = {"same patient": "patient"}
    checks |= {reading: reading for reading in ("same number and kind", "same number")}
    checks["byte-identical"] = "sha256"
    if pixels is not None:
        pairs, n = near_duplicates(pixels), len(marked)
        links = coo_array((np.ones(len(pairs)), (pairs["a"], pairs["b"])), shape=(n, n))
        marked["near"] = connected_components(links, directed=False)[1]
        checks["near-identical"] = "near"
    present = [split for split in ("train", "val", "test") if (marked["split"] == split).any()]
    rows = []
    for check, column in checks.items():
        for first, second in combinations(present, 2):
            known, later = (
                marked.loc[marked["split"] == split, column] for split in (first, second)
            )
            hit = later[later.isin(known)]
            rows.append(
                (check, f"{first} and {second}", hit.nunique(), len(hit), len(hit) / len(later))
            )
    return pd.DataFrame(rows, columns=["check", "splits", "patients_or_images", "images", "share"])


def file_properties(manifest: pd.DataFrame) -> pd.DataFrame:
    """Describe files without decoding them: `width`, `height`, `bytes`."""
    if "shards" in manifest.attrs:
        raise InvalidDataError(
            "shards hold no files to describe. Fix: name the folder that they were written from."
        )
    rows = []
    for path in manifest["path"]:
        with Image.open(path, formats=("JPEG", "PNG")) as image:
            rows.append((image.width, image.height, Path(path).stat().st_size))
    return pd.DataFrame(rows, columns=["width", "height", "bytes"], index=manifest.index)


def originals(name: str | Path | Dataset) -> pd.DataFrame | None:
    """`file_properties` of the original files and their `image_id, patient`, where the data set's list of them is here.

    For copies that were all brought to one size. The list has the columns `path, label, width, height, bytes`.
    """
    dataset = get_dataset(name)
    if not dataset.originals or not (file := paths.DATA / dataset.originals).exists():
        return None
    table = pd.read_csv(file)
    table["image_id"] = table["path"].map(image_id)
    table["patient"] = [patient_and_kind(path)[0] for path in table["path"]]
    return table


def file_features(described: pd.DataFrame) -> pd.DataFrame:
    """The features of `file_properties` that differ between files; nothing of them needs a lung."""
    area = described["width"] * described["height"]
    features = described[["width", "height"]].assign(
        **{"aspect ratio": described["width"] / described["height"]}
    )
    features = features.assign(
        **{"file size": described["bytes"], "bits a pixel": 8 * described["bytes"] / area}
    )
    return features[[name for name in features if features[name].nunique() > 1]]


def single_features(manifest: pd.DataFrame, pixels: np.ndarray) -> pd.DataFrame:
    """Describe every radiograph by single features that know nothing of lungs, in the manifest's row order.

    `pixels` is uint8 (n, size, size, 1) of the same rows. `file_features`, mean intensity and border intensity (0…255),
    and saturated pixels (their share).
    """
    border = border_mask(pixels.shape[1], BORDERS[0])
    return file_features(file_properties(manifest)).assign(
        **{
            "mean intensity": [film.mean() for film in pixels],
            "border intensity": [film[border].mean() for film in pixels],
            "saturated pixels": [(film >= 250).mean() for film in pixels],
        }
    )


def single_feature(manifest: pd.DataFrame, name: str, size: int) -> np.ndarray:
    """The one number that a single-feature baseline sees of every image, float64 (n, 1).

    `name` is "majority class" (the same number for all), "file size", or "mean intensity" at `size` pixels.
    """
    if name == "majority class":
        return np.zeros((len(manifest), 1))
    if name == "file size":
        return file_properties(manifest)[["bytes"]].to_numpy(dtype=np.float64)
    return load_pixels(manifest, size).mean(axis=(1, 2), dtype=np.float64)


def border_mask(size: int, share: float) -> np.ndarray:
    """Where the border of a (size, size) image is, bool; `share` of the size wide, a pixel at least."""
    inner = max(1, round(size * share))
    border = np.ones((size, size), bool)
    border[inner : size - inner, inner : size - inner] = False
    return border
