"""What is wrong with files, what crosses the splits, and what else predicts the class.

A network could learn those other features instead of pneumonia.
"""

import hashlib
from collections.abc import Callable
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from xraylib import paths, storage
from xraylib.datasets.catalog import DATASETS, Dataset, get_dataset
from xraylib.datasets.images import CHANGED, decode, load_pixels, map_rows, read_bytes, read_size
from xraylib.datasets.manifest import image_id, index, other_readings, patient_and_kind
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

# Shares of height and width that count as border on each side; an eighth would hold lung.
BORDERS = (1 / 16, 1 / 32, 1 / 64)

_THUMBNAIL = 32
# Up to so many images every pair is compared. Of more, only pairs that agree in all bits of a band
# of their hashes. Of 400 Kermany images and the altered copies named above, that finds 98.8% of the
# copies whose thumbnails correlate as much.
_ALL_PAIRS = 256
_BANDS = 24
_BITS_A_BAND = 20
# How many of the following images with the same band an image is compared with.
_NEIGHBOURS = 16
_PAIRS_AT_ONCE = 4_096
_SPLITS = ("train", "val", "test")
_CONTRADICTIONS = {("bacteria", 0), ("virus", 0), ("normal", 1)}
_FINDINGS = ["path", "image_id", "problem", "detail", "of", "quarantine"]


def audit_files(
    manifest: pd.DataFrame,
    describe: Callable[[Any, bytes], Any] | None = None,
    keep: Callable[[list[Any]], None] | None = None,
) -> pd.DataFrame:
    """Read every file of a manifest and list what is wrong.

    Parameters
    ----------
    manifest : pandas.DataFrame
        The files.
    describe : callable, optional
        Called with the row and the content of every file that decodes, maybe in several threads.
    keep : callable, optional
        Called with what `describe` returned for some hundred files, in manifest order.

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
    findings: list[dict[str, Any]] = []
    digests: list[str | None] = []
    for chunk in map_rows(partial(_inspect, describe=describe), manifest, "auditing"):
        for digest, problems, _ in chunk:
            digests.append(digest)
            findings += problems
        if keep:
            keep([description for *_, description in chunk if description is not None])
    findings += _copies(manifest, pd.Series(digests, dtype=object))
    order = {image: row for row, image in enumerate(manifest["image_id"])}
    findings.sort(key=lambda finding: order[finding["image_id"]])
    return pd.DataFrame(findings, columns=_FINDINGS).astype({"quarantine": bool})


def _finding(row: Any, problem: str, detail: str, of: str = "") -> dict[str, Any]:
    return {
        "path": row.path,
        "image_id": row.image_id,
        "problem": problem,
        "detail": detail,
        "of": of,
        "quarantine": problem != "duplicate",
    }


def _inspect(
    row: Any, describe: Callable[[Any, bytes], Any] | None
) -> tuple[str | None, list[dict[str, Any]], Any]:
    """Give a file's SHA-256 (None without content), findings (copies apart) and description."""
    path = Path(row.path)
    digest = None
    description = None
    problems = []
    try:
        data = read_bytes(path)
        digest = hashlib.sha256(data).hexdigest()
        if describe:
            description = describe(row, data)
        else:
            decode(path, data, _THUMBNAIL)
        if digest != row.sha256:
            problems.append(_finding(row, "changed", CHANGED))
    except NotFoundError:
        problems.append(_finding(row, "missing", "no such file"))
    except UnusableImageError as error:
        problems.append(_finding(row, error.problem, error.detail))
    if (row.kind, row.label) in _CONTRADICTIONS:
        detail = f"its name says {row.kind}, its label is {row.label}"
        problems.append(_finding(row, "mislabelled", detail))
    return digest, problems, description


def _copies(manifest: pd.DataFrame, digests: pd.Series) -> list[dict[str, Any]]:
    """List byte-identical files: conflicts of labels, and later copies of one label."""
    findings = []
    for positions in digests.groupby(digests).indices.values():
        rows: list[Any] = list(manifest.iloc[positions].itertuples(index=False))
        first = rows[0].image_id
        for row in rows:
            other = next((copy for copy in rows if copy.label != row.label), None)
            if other is not None:
                detail = (
                    f"label {row.label}, but {other.image_id} has the same bytes "
                    f"and label {other.label}"
                )
                findings.append(_finding(row, "conflict", detail, other.image_id))
            elif row.image_id != first:
                findings.append(_finding(row, "duplicate", f"the same bytes as {first}", first))
    return findings


def check_audit(findings: pd.DataFrame, total: int, max_bad_fraction: float = 0.01) -> None:
    """Raise `InvalidDataError` if too large a share of images is to be quarantined.

    Parameters
    ----------
    findings : pandas.DataFrame
        From `audit_files`.
    total : int
        How many images were read.
    max_bad_fraction : float
        The largest share that passes, from 0 to 1.
    """
    if not 0 <= max_bad_fraction <= 1:
        fix = "give a number from 0 to 1"
        raise InvalidDataError(f"--max-bad {max_bad_fraction} is no share of images. Fix: {fix}.")
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


def write_quarantine(findings: pd.DataFrame, path: Path | str) -> None:
    """Write the findings of `audit_files` as a CSV file, for `manifest.quarantine_path`."""
    with storage.atomic_write(path) as temporary:
        # A path need not be UTF-8; it is for people, the `image_id` is what is read back.
        findings.to_csv(temporary, index=False, errors="backslashreplace")


def check_and_quarantine(
    findings: pd.DataFrame, total: int, path: Path | str, max_bad_fraction: float = 0.01
) -> None:
    """Write the quarantine list to `path` if the audit passes `check_audit`, and only then."""
    check_audit(findings, total, max_bad_fraction)
    write_quarantine(findings, path)


def near_duplicates(pixels: np.ndarray) -> pd.DataFrame:
    """Find pairs of images that look like copies: their 32 x 32 thumbnails correlate.

    Parameters
    ----------
    pixels : numpy.ndarray
        uint8 (n, height, width, 1).

    Returns
    -------
    pandas.DataFrame
        One row per pair whose correlation is at least `COPY_CORRELATION`, and that of whose
        details at least `DETAIL_CORRELATION`, highest first. A blank image has no copies. Of more
        than 256 images about 1% of the pairs may be missed, because not all are compared.
        `a`, `b`: row numbers, `a` < `b`.
        `correlation`: Pearson's, of the thumbnails, blind to brightness and contrast.
    """
    thumbnails = np.stack([_thumbnail(image[..., 0]) for image in pixels])
    if len(pixels) <= _ALL_PAIRS:
        a, b = np.triu_indices(len(pixels), 1)
    else:
        a, b = _pairs_of_equal_bands(thumbnails)
    correlation = _correlations(_as_they_are, thumbnails, a, b)
    close = correlation >= COPY_CORRELATION
    detail = _correlations(_differences, thumbnails, a[close], b[close])
    table = pd.DataFrame({"a": a, "b": b, "correlation": correlation})[close]
    table = table[detail >= DETAIL_CORRELATION].sort_values(["a", "b"])
    return table.sort_values("correlation", ascending=False, kind="stable", ignore_index=True)


def _correlations(
    view: Callable[[np.ndarray], np.ndarray], thumbnails: np.ndarray, a: np.ndarray, b: np.ndarray
) -> np.ndarray:
    """Correlate a view of the thumbnails `a` with that of the thumbnails `b`, float32."""
    result = np.empty(len(a), np.float32)
    for start in range(0, len(a), _PAIRS_AT_ONCE):
        some = slice(start, start + _PAIRS_AT_ONCE)
        first = _normalised(view(thumbnails[a[some]]))
        result[some] = (first * _normalised(view(thumbnails[b[some]]))).sum(axis=1)
    return result


def _as_they_are(thumbnails: np.ndarray) -> np.ndarray:
    return thumbnails


def _thumbnail(image: np.ndarray) -> np.ndarray:
    """Shrink an image to 32 x 32 pixels, uint8 in one row."""
    small = Image.fromarray(image).resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
    return np.asarray(small).ravel()


def _normalised(thumbnails: np.ndarray) -> np.ndarray:
    """Bring each row to mean 0 and length 1 (0 for a blank image), float32."""
    values = thumbnails - thumbnails.mean(axis=1, dtype=np.float32, keepdims=True)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6)


def _pairs_of_equal_bands(thumbnails: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return row numbers of pairs whose hashes agree in a band; time and memory grow linearly.

    The hash is a dHash: whether neighbours of a 16 x 16 thumbnail differ by more than usual in this
    data set. Each band holds bits of random places.
    """
    bits = _difference_bits(thumbnails)
    rng = np.random.default_rng(0)
    found = []
    for _ in range(_BANDS):
        places = rng.choice(bits.shape[1], _BITS_A_BAND, replace=False)
        band = bits[:, places] @ (1 << np.arange(_BITS_A_BAND))
        order = np.argsort(band, kind="stable")
        for step in range(1, _NEIGHBOURS + 1):
            equal = band[order[step:]] == band[order[:-step]]
            found.append(order[:-step][equal] * len(bits) + order[step:][equal])
    return np.divmod(np.unique(np.concatenate(found)), len(bits))


def _difference_bits(thumbnails: np.ndarray) -> np.ndarray:
    """Bits of the dHash of thumbnails (n, 1024), bool (n, 480); about half of each are set."""
    half = _THUMBNAIL // 2
    small = thumbnails.reshape(-1, half, 2, half, 2).sum(axis=(2, 4), dtype=np.int16)
    differences = _differences(small.reshape(len(small), -1))
    return differences > np.median(differences, axis=0)


def _differences(thumbnails: np.ndarray) -> np.ndarray:
    """Differences between neighbouring pixels of square thumbnails `(n, pixels)`, int16."""
    side = int(np.sqrt(thumbnails.shape[1]))
    square = thumbnails.reshape(-1, side, side).astype(np.int16)
    across = np.diff(square, axis=2).reshape(len(square), -1)
    down = np.diff(square, axis=1).reshape(len(square), -1)
    return np.concatenate([across, down], axis=1)


def copy_groups(pixels: np.ndarray) -> np.ndarray:
    """Number the groups of images (n, height, width, 1) that `near_duplicates` links, `(n,)`."""
    pairs = near_duplicates(pixels)
    ends = (pairs["a"], pairs["b"])
    links = coo_array((np.ones(len(pairs)), ends), shape=(len(pixels), len(pixels)))
    return connected_components(links, directed=False)[1]


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
    checks = {
        "same patient": "patient",
        "same number and kind": "same number and kind",
        "same number": "same number",
        "byte-identical": "sha256",
    }
    if pixels is not None:
        marked["near"] = copy_groups(pixels)
        checks["near-identical"] = "near"
    present = [split for split in _SPLITS if (marked["split"] == split).any()]
    rows = []
    for check, column in checks.items():
        in_split = {split: marked.loc[marked["split"] == split, column] for split in present}
        for first, second in combinations(present, 2):
            later = in_split[second]
            crossing = later[later.isin(in_split[first])]
            rows.append(
                {
                    "check": check,
                    "splits": f"{first} and {second}",
                    "patients_or_images": crossing.nunique(),
                    "images": len(crossing),
                    "share": len(crossing) / len(later),
                }
            )
    columns = ["check", "splits", "patients_or_images", "images", "share"]
    return pd.DataFrame(rows, columns=columns)


def patient_counts(manifest: pd.DataFrame) -> pd.DataFrame:
    """Count the patients of every split and class.

    Returns
    -------
    pandas.DataFrame
        `split`: train, val or test, as in the folders.
        `class`: NORMAL or PNEUMONIA.
        `images`, `patients`: how many.
        `both_kinds`: patients with bacterial and viral pneumonias.
        `sizes`: patients by their number of images, as "1: 756, 2: 179".
    """
    rows = []
    for split in _SPLITS:
        for label, class_name in enumerate(("NORMAL", "PNEUMONIA")):
            images = manifest[(manifest["split"] == split) & (manifest["label"] == label)]
            if images.empty:
                continue
            kinds = images.groupby("patient")["kind"].agg(set)
            sizes = images["patient"].value_counts().value_counts().sort_index()
            rows.append(
                {
                    "split": split,
                    "class": class_name,
                    "images": len(images),
                    "patients": len(kinds),
                    "both_kinds": sum({"bacteria", "virus"} <= both for both in kinds),
                    "sizes": ", ".join(f"{size}: {n}" for size, n in sizes.items()),
                }
            )
    return pd.DataFrame(rows)


def patient_evidence(name: str | Path | Dataset = "kermany") -> pd.DataFrame | None:
    """Compare the patients read from file names with those of the authors' numbering.

    Version 3 of the data names the same images by patient. Its names are counted, not joined: the
    list that is read (`Dataset.version_3_names`, with the columns `split, class, name`) has no
    content of the files. Equal counts are no proof by themselves, because version 3 may have been
    named from version 2's names; `compare_numberings` needs both versions and settles it. Version 3
    has no validation folder, so the 16 images of version 2's count as training images here.

    Returns
    -------
    pandas.DataFrame or None
        `numbering` (file names or version 3), then the columns of `patient_counts`. None where the
        list is not on this machine.
    """
    dataset = get_dataset(name)
    path = paths.DATA / dataset.version_3_names
    if not dataset.version_3_names or not path.exists():
        return None
    listed = pd.read_csv(path)
    readings = listed["name"].map(patient_and_kind)
    version_3 = pd.DataFrame(
        {
            "split": listed["split"],
            "label": (listed["class"] == "PNEUMONIA").astype(int),
            "patient": readings.str[0],
            "kind": readings.str[1],
        }
    )
    ours = index(dataset).replace({"split": {"val": "train"}})
    counts = {"file names": patient_counts(ours), "version 3": patient_counts(version_3)}
    table = pd.concat(counts, names=["numbering", "row"])
    # One numbering under the other, row by row.
    return (
        table.sort_index(level=["row", "numbering"]).reset_index("numbering").reset_index(drop=True)
    )


def compare_numberings(version_2: pd.DataFrame, version_3: pd.DataFrame) -> pd.DataFrame:
    """Compare the patients of two versions of the data, image by image.

    Parameters
    ----------
    version_2, version_3 : pandas.DataFrame
        Manifests of the same images under two namings (`kermany` and `kermany-v3`), joined by
        `sha256`. Bytes that a version has twice are left out, because the join is ambiguous.

    Returns
    -------
    pandas.DataFrame
        One row per split of `version_3`.
        `images`: in both versions.
        `patients_2`, `patients_3`: of these images.
        `divided`: patients of version 2 whose images version 3 gives to several patients.
        `merged`: patients of version 3 whose images version 2 gives to several patients.
        `agree`: bool, whether both are 0.

    Raises
    ------
    InvalidDataError
        If the two have no bytes in common: copies that were re-encoded cannot be joined.
    """
    columns = ["sha256", "patient"]
    first = version_2[columns].drop_duplicates("sha256", keep=False)
    second = version_3[[*columns, "split"]].drop_duplicates("sha256", keep=False)
    both = first.merge(second, on="sha256", suffixes=("_2", "_3"))
    if both.empty:
        fix = "use the files as the authors published them"
        raise InvalidDataError(f"the two versions have no file in common. Fix: {fix}.")
    rows = []
    for split, images in both.groupby("split"):
        divided = _in_several(images["patient_2"], images["patient_3"])
        merged = _in_several(images["patient_3"], images["patient_2"])
        rows.append(
            {
                "split": split,
                "images": len(images),
                "patients_2": images["patient_2"].nunique(),
                "patients_3": images["patient_3"].nunique(),
                "divided": divided,
                "merged": merged,
                "agree": divided == 0 and merged == 0,
            }
        )
    return pd.DataFrame(rows)


def _in_several(patients: pd.Series, others: pd.Series) -> int:
    """Count the patients whose images belong to several of the other reading's patients."""
    return int((others.groupby(patients).nunique() > 1).sum())


def file_properties(manifest: pd.DataFrame) -> pd.DataFrame:
    """Describe files without decoding them: `width`, `height` (pixels) and `bytes`."""
    if "shards" in manifest.attrs:
        fix = "name the folder that they were written from"
        raise InvalidDataError(f"shards hold no files to describe. Fix: {fix}.")
    rows = []
    for path in manifest["path"]:
        width, height = read_size(path)
        rows.append((width, height, Path(path).stat().st_size))
    return pd.DataFrame(rows, columns=["width", "height", "bytes"], index=manifest.index)


def originals(name: str | Path | Dataset) -> pd.DataFrame | None:
    """Read the list of original files of copies that were all brought to one size.

    Parameters
    ----------
    name : str, Path or Dataset
        A data set; `attrs["dataset"]` of a manifest will do.

    Returns
    -------
    pandas.DataFrame or None
        The list's columns `path, label, width, height, bytes`, and `image_id` and `patient`. None
        where the data set has no such list on this machine.
    """
    # The name of a folder's report is no key; such a folder has no list.
    dataset = name if isinstance(name, Dataset) else DATASETS.get(str(name))
    if dataset is None or not dataset.originals:
        return None
    path = paths.DATA / dataset.originals
    if not path.exists():
        return None
    table = pd.read_csv(path)
    table["image_id"] = table["path"].map(image_id)
    table["patient"] = table["path"].map(patient_and_kind).str[0]
    return table


def file_features(described: pd.DataFrame) -> pd.DataFrame:
    """Return the features of `file_properties` that differ between files; none needs a lung."""
    width = described["width"]
    height = described["height"]
    features = pd.DataFrame(
        {
            "width": width,
            "height": height,
            "aspect ratio": width / height,
            "file size": described["bytes"],
            "bits a pixel": 8 * described["bytes"] / (width * height),
        }
    )
    return features.loc[:, features.nunique() > 1]


def single_features(manifest: pd.DataFrame, pixels: np.ndarray) -> pd.DataFrame:
    """Describe every image by single features that know nothing of lungs.

    Parameters
    ----------
    manifest : pandas.DataFrame
        The images.
    pixels : numpy.ndarray
        uint8 (n, size, size, 1) of the same rows.

    Returns
    -------
    pandas.DataFrame
        One row per image, in order: the columns of `file_features`, `mean intensity` and
        `border intensity` (0 to 255), and `saturated pixels` (their share).
    """
    border = border_mask(pixels.shape[1], BORDERS[0])
    features = file_features(file_properties(manifest)).copy()
    features["mean intensity"] = [image.mean() for image in pixels]
    features["border intensity"] = [image[border].mean() for image in pixels]
    features["saturated pixels"] = [(image >= 250).mean() for image in pixels]
    return features


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


def border_mask(size: int, share: float) -> np.ndarray:
    """Mark the border of a (size, size) image, bool; `share` of the size wide, at least a pixel."""
    inner = max(1, round(size * share))
    border = np.ones((size, size), bool)
    border[inner : size - inner, inner : size - inner] = False
    return border
