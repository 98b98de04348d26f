"""From image files to answers, or to the reason why there is none. Not a medical device."""

import glob
import hashlib
import logging
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from PIL import Image

from xraylib.answers import COLUMNS, HEAT_MAP_FAILED
from xraylib.datasets import images
from xraylib.datasets.files import list_folder
from xraylib.errors import (
    InvalidDataError,
    NotFoundError,
    OperationFailedError,
    UnusableImageError,
    XraylibError,
)
from xraylib.packaged import PackagedModel, load_packaged
from xraylib.storage import atomic_write, storage_errors

if TYPE_CHECKING:
    from xraylib.training.predictor import Predictor

    Model = PackagedModel | Predictor

_BATCH = 32
_READERS = 2

_log = logging.getLogger(__name__)


def predict(
    paths: str | Path | Iterable[str | Path],
    model: "Model | None" = None,
    threshold: float | None = None,
    heat_maps: Path | None = None,
) -> pd.DataFrame:
    """Answer image files, one frontal radiograph each, with a table.

    Parameters
    ----------
    paths : str, Path or iterable of them
        Files (JPEG, PNG, TIFF, DICOM), folders with all below them, or patterns.
    model : optional
        As `load_model` gives it; by default the packaged model.
    threshold : float, optional
        On the probability, in [0, 1]; by default the model's own, chosen on validation.
    heat_maps : Path, optional
        A folder, into which each image is written under its heat map.

    Returns
    -------
    pandas.DataFrame
        One row per image, in order:

        path : the file
        status : ok, abstained or error
        probability : of pneumonia, in [0, 1]; NaN where there is no answer
        label : pneumonia or normal, the probability's side of the threshold; else empty
        threshold : in [0, 1]
        prediction_set : the classes in whose range on validation the probability lies
        ood_score : how unlike the training images; 1 is usual for them
        lowest, highest : of the probability over further framings of the image
        model, model_sha256 : what answered
        preprocessing : how the image was prepared
        message : why there is no answer, or what makes it doubtful

        What a model does not know stays empty: a trained run knows neither limits nor framings.
    """
    named = [paths] if isinstance(paths, str | Path) else paths
    files, passed_over = list_files(named)
    if passed_over:
        _log.info("%d files are no images: %s", len(passed_over), ", ".join(passed_over))
    rows = answer_files(files, model or load_packaged(), threshold, heat_maps)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def load_model(name: str | Path | None = None, dataset: str = "kermany") -> "Model":
    """Load the packaged model, or that of a training run.

    Parameters
    ----------
    name : str or Path, optional
        A run's folder, or a recipe, of which the first strict run whose model is on this
        machine is taken. By default the packaged model.
    dataset : str
        What the recipe was trained on: a name or a path.

    Raises
    ------
    NotFoundError
        If no run of the recipe has its model on this machine.
    InvalidDataError
        If the model is damaged: no other run takes its place.
    """
    if name is None:
        return load_packaged()
    from xraylib import devices

    folder = Path(name)
    if (folder / "run.json").is_file():
        devices.use()
        return _load_run(folder)
    from xraylib.datasets.catalog import get_dataset
    from xraylib.training.recipes import get_recipe

    get_recipe(str(name))
    get_dataset(dataset)
    devices.use()
    from xraylib.training.predictor import load_predictor

    return load_predictor(runs_with_model(str(name), dataset)[0])


def runs_with_model(recipe: str, dataset: str) -> list[Any]:
    """List the strict runs of a recipe whose models are on this machine.

    Raises
    ------
    InvalidDataError
        If one of the models is not what its run wrote.
    NotFoundError
        If there is none.
    """
    from xraylib.datasets.catalog import get_dataset
    from xraylib.training import runs

    name = get_dataset(dataset).name
    usable = [run for run in runs.list_runs(name, recipe, "strict") if run.has_model]
    if not usable:
        raise NotFoundError(
            f"no model of {recipe}, trained on {name}, is on this machine. "
            f"Fix: {runs.train_command(dataset, recipe)}"
        )
    return usable


def _load_run(folder: Path) -> "Predictor":
    """Load the model of a run's folder, which anybody may have written."""
    from xraylib.training import runs
    from xraylib.training.predictor import load_predictor

    try:
        return load_predictor(runs.read_run(folder))
    except XraylibError:
        raise
    except Exception as error:  # keys that are missing, arrays of another shape, damaged HDF5
        reason = " ".join(str(error).split())[:200]
        raise InvalidDataError(
            f"{folder} holds no run that can be loaded ({type(error).__name__}: {reason}). "
            "Fix: name the folder of a run that this package trained."
        ) from error


def list_files(paths: Iterable[str | Path]) -> tuple[list[str], list[str]]:
    """List the files that paths, folders (with all below them) and patterns name.

    Parameters
    ----------
    paths : iterable of str or Path
        In the order of the answer; the files of a folder are sorted.

    Returns
    -------
    files : list of str
        Images by name or content, and every path that cannot be listed: reading it says why.
    passed_over : list of str
        What lies in the folders and is no image, or is hidden; a folder ends with a slash.

    Raises
    ------
    InvalidDataError
        For an empty path.
    """
    files: list[str] = []
    passed_over: list[str] = []
    for path in paths:
        text = os.fspath(path)
        if not text:
            raise InvalidDataError(
                "an empty path was given. Fix: name a file or folder (is a variable unset?)."
            )
        for match in _expand(text):
            if _is_folder(match):
                listing = list_folder(match)
                # Reading a folder that is closed, or a broken link, says what is wrong with it.
                images_here = sorted(listing.images + listing.closed + listing.broken)
                files += images_here or [match]
                passed_over += [path for path, _ in listing.passed_over]
            else:
                files.append(match)
    return files, passed_over


def _expand(path: str) -> list[str]:
    """Give the paths that a pattern names, each once; a path that exists or fits none, itself."""
    if os.path.lexists(path):
        return [path]
    # Unlike Path.glob it passes hidden files over, and takes any text for a pattern.
    found = glob.iglob(path, recursive=True)  # noqa: PTH207
    matches = {os.path.realpath(match): match for match in found}
    return sorted(matches.values()) or [path]


def _is_folder(path: str | Path) -> bool:
    try:
        return Path(path).is_dir()
    except OSError:  # a name that is too long, or a closed folder: reading it says so
        return False


def answer_files(
    files: Iterable[str | Path],
    model: "Model",
    threshold: float | None = None,
    heat_maps: Path | None = None,
) -> Iterator[dict[str, Any]]:
    """Answer files in order and a few at a time, one dict per file with the keys `COLUMNS`.

    A file that cannot be read, or a heat map that cannot be written, is that row's message: the
    others go on. See `predict` for the parameters and for what the columns hold.
    """
    limit = model.threshold if threshold is None else threshold
    if heat_maps is not None:
        with storage_errors(heat_maps):
            heat_maps.mkdir(parents=True, exist_ok=True)
    read = partial(_read_or_reason, size=model.size)
    remaining = iter(files)
    with ThreadPoolExecutor(_READERS) as pool:
        while batch := list(islice(remaining, _BATCH)):
            contents = list(pool.map(read, batch))
            answers = iter(_answer_readable(contents, model))
            for file, content in zip(batch, contents, strict=True):
                row = _empty_row(file, model, limit)
                if isinstance(content, str):
                    yield row | {"status": "error", "message": content}
                    continue
                answer = next(answers)
                heat_map = answer.pop("heat_map", None)
                row |= _decide(answer, limit)
                if heat_maps is not None and heat_map is not None:
                    row["message"] = _and_heat_map(row, heat_maps, content, heat_map)
                yield row


def _read_or_reason(file: str | Path, size: int) -> np.ndarray | str:
    """Read an image as uint8 `(size, size, 1)`, or say why it cannot be read."""
    try:
        if _is_folder(file):
            raise _no_image_in(Path(file))
        return images.read_gray(file, size)[..., None]
    except XraylibError as error:
        return str(error)
    except MemoryError:
        return f"{file}: too large for this machine's memory. Fix: export it with fewer pixels."


def _no_image_in(folder: Path) -> UnusableImageError:
    """Say why a folder gives no image."""
    try:
        next(folder.iterdir(), None)
    except OSError as error:
        detail = f"the folder cannot be read ({error.strerror})"
        return UnusableImageError(folder, "unreadable", detail, "make it readable for this user")
    fix = "name a folder with JPEG, PNG, TIFF or DICOM files"
    return UnusableImageError(folder, "unreadable", "there is no image in this folder", fix)


def _answer_readable(contents: list[np.ndarray | str], model: "Model") -> list[dict[str, Any]]:
    pixels = [content for content in contents if isinstance(content, np.ndarray)]
    return model.answer(np.stack(pixels)) if pixels else []


def _empty_row(file: str | Path, model: "Model", threshold: float) -> dict[str, Any]:
    return dict.fromkeys(COLUMNS, "") | {
        "path": str(file),
        "probability": np.nan,
        "threshold": threshold,
        "model": model.name,
        "model_sha256": model.sha256[:12],
        "preprocessing": f"gray, squashed to {model.size} x {model.size}, antialiased",
    }


def _decide(answer: dict[str, Any], threshold: float) -> dict[str, Any]:
    """Add the label to a model's answer; keep nothing that could pass for one if it abstains."""
    if answer.get("status", "ok") != "ok":
        kept = ("status", "message", "ood_score")
        return {name: answer[name] for name in kept if name in answer}
    is_pneumonia = answer["probability"] >= threshold
    label = "pneumonia" if is_pneumonia else "normal"
    decided = answer | {"status": "ok", "label": label}
    if answer.get("lowest", threshold) < threshold <= answer.get("highest", threshold):
        decided["message"] = "the label changes with the framing"
    return decided


def _and_heat_map(
    row: dict[str, Any],
    folder: Path,
    image: np.ndarray,
    heat_map: np.ndarray,
) -> str:
    """Write an image under its heat map; return the row's message, with the failure if any."""
    file = folder / _heat_map_name(row["path"])
    try:
        with atomic_write(file) as temporary:
            overlay_heat_map(image, heat_map).save(temporary)
    except (OperationFailedError, OSError) as error:
        failure = f"{HEAT_MAP_FAILED} ({error})"
        return "; ".join(filter(None, (row["message"], failure)))
    return row["message"]


def _heat_map_name(path: str) -> str:
    """Name a heat map after its image: 80 bytes at most, and a digest of the whole path."""
    stem = os.fsencode(Path(path).stem)[:80].decode("utf-8", "ignore")
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
    return f"{stem}-{digest}.png"


def overlay_heat_map(
    image: np.ndarray,
    heat_map: np.ndarray,
    strength: float = 0.4,
) -> Image.Image:
    """Lay a heat map over an image.

    Parameters
    ----------
    image : numpy.ndarray
        uint8 `(size, size, 1)`.
    heat_map : numpy.ndarray
        float `(size, size)` in [0, 1].
    strength : float
        From 0, the image alone, to 1, the heat map alone.
    """
    from matplotlib import colormaps

    colours = (colormaps["inferno"](heat_map)[..., :3] * 255).astype(np.uint8)
    gray = Image.fromarray(image[..., 0]).convert("RGB")
    return Image.blend(gray, Image.fromarray(colours), strength)
