"""From image files to answers, or to the reason why there is none. Not a medical device."""

import glob
import logging
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from PIL import Image

from xraylib.answers import COLUMNS, Row, add_failure, picture_name
from xraylib.datasets import dicom, images
from xraylib.datasets.files import list_folder
from xraylib.errors import (
    InvalidDataError,
    NotFoundError,
    OperationFailedError,
    UnusableImageError,
    XraylibError,
)
from xraylib.packaged import MODEL_FILE, Answer, PackagedModel, load_packaged
from xraylib.storage import CHECKSUM_FILE, atomic_write, storage_errors

if TYPE_CHECKING:
    from xraylib.training.predictor import Predictor

    Model = PackagedModel | Predictor

# Years, of an adult for a model of children.
ADULT = 19

_BATCH = 32
_READERS = 2

_log = logging.getLogger(__name__)


def predict(
    paths: str | Path | Iterable[str | Path],
    model: "Model | None" = None,
    threshold: float | None = None,
    heat_maps: Path | None = None,
    *,
    prevalence: float | None = None,
    strict_domain: bool = False,
) -> pd.DataFrame:
    """Answer image files, one frontal radiograph each, with a table.

    Parameters
    ----------
    paths : str, Path or iterable of them
        Files (JPEG, PNG, TIFF, DICOM), folders with all below them, or patterns.
    model : optional
        As `load_model` gives it; by default the packaged model.
    threshold : float, optional
        On the probability, in [0, 1]; by default that of the trained run. The packaged model has
        none, because it has three answers.
    heat_maps : Path, optional
        A folder, into which each image is written under its heat map.
    prevalence, strict_domain
        See `configure`.

    Returns
    -------
    pandas.DataFrame
        One row per image, in order:

        path : the file
        status : ok, abstained or error
        answer : looks normal, undecided or looks like pneumonia
        probability : of pneumonia, in [0, 1]; NaN where there is no answer
        prevalence : the share of pneumonias that the probability supposes
        label : pneumonia or normal, the probability's side of the threshold
        threshold : in [0, 1]
        strict_domain : whether images of another population got no answer
        notice : what should be known of images of this population
        model, model_sha256 : what answered
        preprocessing : how the image was prepared
        message : why there is no answer, or what went wrong with the heat map

        What does not apply is empty: a trained run has a threshold and a label, the packaged model
        has an answer and a prevalence, and a label only where a threshold is given.

    Raises
    ------
    InvalidDataError
        If the model cannot do what is asked of it.
    """
    named = [paths] if isinstance(paths, str | Path) else paths
    files, passed_over = list_files(named)
    if passed_over:
        _log.info("%d files are no images: %s", len(passed_over), ", ".join(passed_over))
    model = configure(model or load_packaged(), prevalence, strict_domain, heat_maps is not None)
    rows = answer_files(files, model, threshold, heat_maps)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def configure(
    model: "Model",
    prevalence: float | None = None,
    strict_domain: bool = False,
    heat_maps: bool = False,
) -> "Model":
    """Return a model for images of a prevalence, and strict on their population or not.

    Parameters
    ----------
    model
        As `load_model` gives it.
    prevalence : float, optional
        The share of pneumonias, in (0, 1), where the images come from. By default that of the
        images on which the probability was calibrated.
    strict_domain : bool
        Give no answer for images of another population than that of training, such as adults,
        instead of a notice.
    heat_maps : bool
        Whether heat maps will be asked for.

    Raises
    ------
    InvalidDataError
        If `prevalence` is no share, or the model lacks a part that is needed.
    """
    if prevalence is not None and not 0 < prevalence < 1:
        raise InvalidDataError(
            f"a prevalence of {prevalence:g} leaves nothing to predict. "
            "Fix: give a share between 0 and 1."
        )
    needed = {"limits": prevalence is not None, "gate": strict_domain, "heat map": heat_maps}
    for part, is_needed in needed.items():
        if is_needed and part in model.left_out:
            raise InvalidDataError(
                f"{model.name} has no {part}, which is needed here. Fix: take the packaged model, "
                f"or one that was exported with its {part}."
            )
    if not isinstance(model, PackagedModel):
        return model
    return replace(model, prevalence=prevalence or model.prevalence, strict_domain=strict_domain)


def load_model(name: str | Path | None = None, dataset: str = "kermany") -> "Model":
    """Load the packaged model, an exported one, or that of a training run.

    Parameters
    ----------
    name : str or Path, optional
        The folder of an exported model or of a run; or a recipe, of which the first strict run
        whose model is on this machine is taken. By default the packaged model.
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
    folder = Path(name)
    if (folder / MODEL_FILE).is_file() or (folder / CHECKSUM_FILE).is_file():
        return load_packaged(folder)
    from xraylib import devices
    from xraylib.training import recipes, runs

    if (folder / "run.json").is_file():
        run = runs.read_run(folder)
    else:
        try:
            recipes.get_recipe(str(name))
        except NotFoundError as error:
            if len(folder.parts) == 1 and not folder.exists():
                raise
            raise NotFoundError(
                f"{folder} is no folder of an exported model or of a run. "
                "Fix: name the one that holds run.json."
            ) from error
        run = runs_with_model(str(name), dataset)[0]
    devices.use()
    from xraylib.training.predictor import load_predictor

    return load_predictor(run)


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
            f"Fix: name with --dataset what it was trained on, or train it here: "
            f"{runs.train_command(dataset, recipe)}"
        )
    return usable


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
) -> Iterator[Row]:
    """Answer files in order and a few at a time, one dict per file with the keys `COLUMNS`.

    A file that cannot be read, or a heat map that cannot be written, is that row's message: the
    others go on. See `predict` for the parameters and for what the columns hold.
    """
    limit = model.threshold if threshold is None else threshold
    settings = settings_of(model, limit)
    if heat_maps is not None:
        with storage_errors(heat_maps):
            heat_maps.mkdir(parents=True, exist_ok=True)
    read = partial(_read_or_reason, size=model.size)
    remaining = iter(files)
    with ThreadPoolExecutor(_READERS) as pool:
        while batch := list(islice(remaining, _BATCH)):
            contents = list(pool.map(read, batch))
            pixels = [content[0] for content in contents if not isinstance(content, str)]
            answers = iter(model.answer(np.stack(pixels)) if pixels else [])
            for file, content in zip(batch, contents, strict=True):
                row = dict.fromkeys(COLUMNS, "") | {"path": str(file), "probability": np.nan}
                row |= settings
                if isinstance(content, str):
                    yield row | {"status": "error", "message": content}
                    continue
                image, header = content
                answer = next(answers)
                row |= _decide(answer, header, model, limit)
                if heat_maps is not None and "heat_map" in answer:
                    _write_heat_map(row, heat_maps, image, answer["heat_map"])
                yield row


def _read_or_reason(file: str | Path, size: int) -> tuple[np.ndarray, dict[str, Any]] | str:
    """Read an image, uint8 `(size, size, 1)`, and its DICOM header; or say why it cannot be read.

    The header is empty for other files, see `dicom.read_header`.
    """
    try:
        if _is_folder(file):
            raise _no_image_in(Path(file))
        return images.read_gray(file, size)[..., None], dicom.read_header(file)
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


def settings_of(model: "Model", threshold: float | None) -> Row:
    """Give the columns that are equal in all rows of a call; empty where they do not apply."""
    return {
        "prevalence": model.prevalence or "",
        "threshold": "" if threshold is None else threshold,
        "strict_domain": model.strict_domain,
        "model": model.name,
        "model_sha256": model.sha256[:12],
        "preprocessing": f"gray, squashed to {model.size} x {model.size}, antialiased",
    }


def _decide(
    answer: Answer,
    header: dict[str, Any],
    model: "Model",
    threshold: float | None,
) -> Row:
    """Turn a model's answer into that row's values; nothing that could pass for one if it abstains.

    Of a trained run's answer only `probability` is there.
    """
    refusal = dicom.not_frontal_chest(header) or answer.get("message")
    if refusal:
        return {"status": "abstained", "message": refusal}
    row = {"status": "ok", "probability": answer["probability"]}
    if isinstance(model, PackagedModel):
        population = _notice(answer, header, model)
        if population and model.strict_domain:
            return {"status": "abstained", "message": population}
        row["answer"] = answer["answer"]
        # Its `run.json` says why.
        without = f"this model has no {', no '.join(model.left_out)}" if model.left_out else ""
        row["notice"] = "; ".join(filter(None, (population, without)))
    if threshold is not None:
        row["label"] = "pneumonia" if answer["probability"] >= threshold else "normal"
    return row


def _notice(answer: Answer, header: dict[str, Any], model: PackagedModel) -> str:
    """Say that an image is of another population than that of the training."""
    reasons = []
    age = header.get("patient_age")
    if model.of_children and age is not None and age >= ADULT:
        reasons.append("an adult by the file's header")
    if answer.get("is_outside"):
        reasons.append("unlike the training images, as those of adults or of another hospital are")
    return f"{' and '.join(reasons)}: {model.elsewhere}" if reasons else ""


def _write_heat_map(
    row: Row,
    folder: Path,
    image: np.ndarray,
    heat_map: np.ndarray,
) -> None:
    """Write an image under its heat map; a failure is added to the row's message."""
    file = folder / picture_name(row["path"])
    try:
        with atomic_write(file) as temporary:
            overlay_heat_map(image, heat_map).save(temporary)
    except (OperationFailedError, OSError) as error:
        add_failure(row, error)


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
    gray = Image.fromarray(image[..., 0]).convert("RGB")
    return Image.blend(gray, colour_heat_map(heat_map), strength)


def colour_heat_map(heat_map: np.ndarray) -> Image.Image:
    """Return a heat map, float `(h, w)` in [0, 1], in colours from black to yellow."""
    from matplotlib import colormaps

    return Image.fromarray((colormaps["inferno"](heat_map)[..., :3] * 255).astype(np.uint8))
