"""A model on changed images: cropped as in the framing experiment, corrupted, or otherwise.

Nothing is trained or tuned here. Each finished run scores with its own model and its frozen
threshold. Any other function from images to scores is measured by `evaluate_function`.
"""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL.Image import Resampling

from xraylib import paths
from xraylib.datasets import catalog, images, manifest, regions
from xraylib.datasets.corruptions import CORRUPTIONS, corrupt, to_images, to_pixels
from xraylib.datasets.framing import FRAMING_VIEWS, SHARES
from xraylib.errors import InvalidDataError, NotFoundError
from xraylib.evaluation import metrics
from xraylib.evaluation.resampling import Z, delong
from xraylib.evaluation.scores import check, read_recipes
from xraylib.progress import tqdm
from xraylib.storage import atomic_write
from xraylib.training import runs
from xraylib.training.predictor import load_predictor

# A view changes uint8 images (n, SIZE, SIZE, 1) and returns as many of that shape.
View = Callable[[np.ndarray], np.ndarray]

# A function takes uint8 images (n, size, size, 1) and returns their scores (n,), higher for
# pneumonia.
ScoreFunction = View

# Views are made at this size in pixels, for which the parameters of MedMNIST-C were set.
SIZE = 224
# So many images are changed and scored at once; 1,024 of them take 51 MB.
CHUNK = 1024
# What a file of views has for each image beside its scores.
ABOUT = ["recipe", "model", "seed", "threshold", "image_id", "patient", "label"]
# The column of the run's score of the unchanged image.
CLEAN = "none 0"
_COLUMNS = [*ABOUT, CLEAN]
# The unchanged image in tables of results.
UNCHANGED = "unchanged"
# Of intervals of one view.
RESAMPLES = 500
# Scoring 14 views of a large network takes an hour, so the framing experiment has three runs.
FRAMING_RUNS = 3
log = logging.getLogger(__name__)


def strict_runs(recipe: str, dataset: str) -> list[runs.Run]:
    """Return the finished strict runs of a recipe, at least one (`NotFoundError`)."""
    finished = runs.list_runs(dataset, recipe, "strict")
    if finished:
        return finished
    fix = f"train one with `python -m xraylib train {recipe} --dataset {dataset}`"
    raise NotFoundError(f"no finished run of {recipe} on {dataset}. Fix: {fix}.")


def corruption_views() -> dict[str, View]:
    """Return every corruption at every severity, by names such as `jpeg 3`."""
    views: dict[str, View] = {}
    for name, (_, steps) in CORRUPTIONS.items():
        for severity in range(1, len(steps) + 1):
            views[f"{name} {severity}"] = partial(corrupt, name=name, severity=severity)
    return views


def score_corruptions(recipe: str, dataset: str) -> pd.DataFrame:
    """Score the official test after every corruption with a recipe's first strict run.

    Returns `score_views`' table, which is written to `corruptions/<recipe>.csv` of the report.
    """
    return score_views(recipe, dataset, "corruptions", "test", corruption_views(), most_runs=1)


def score_framing(recipe: str, dataset: str) -> pd.DataFrame:
    """Score each run's own validation in every view of the framing experiment, `FRAMING_VIEWS`.

    Returns `score_views`' table, which is written to `framing/<recipe>.csv` of the report.
    """
    return score_views(recipe, dataset, "framing", "val", FRAMING_VIEWS, most_runs=FRAMING_RUNS)


def score_views(
    recipe: str,
    dataset: str,
    study: str,
    split: str,
    views: Mapping[str, View],
    *,
    most_runs: int | None = None,
) -> pd.DataFrame:
    """Score changed images with the strict runs of a recipe.

    The table is written after each view, so that interrupted scoring resumes after the last one.

    Parameters
    ----------
    recipe : str
        A recipe with finished strict runs.
    dataset : str
        Name or path of the data set that the runs were trained on.
    study : str
        Folder of the report for the table, which is written to `<study>/<recipe>.csv`.
    split : str
        The split whose images are changed, or several, divided by blanks, such as `val test`.
    views : mapping from str to callable
        Each takes uint8 images `(n, SIZE, SIZE, 1)`, at most `CHUNK` at once, and changes them.
    most_runs : int, optional
        Score with the first runs only.

    Returns
    -------
    pandas.DataFrame
        One row per image and run.

        - `recipe`, `model` (12 digits of its SHA-256), `seed`, `threshold`: the run.
        - `image_id`, `patient`, `label`: the image.
        - `none 0`: the run's own score of the unchanged image.
        - one column per view: the score, in [0, 1], of the image as that view shows it.
    """
    name = catalog.get_dataset(dataset).name
    whole = manifest.load(dataset)
    pixels = images.load_pixels(whole, SIZE)
    row_of = pd.Series(range(len(whole)), index=whole["image_id"])
    file = paths.REPORTS / name / study / f"{recipe}.csv"
    earlier = runs.read_scores(file, _COLUMNS) if file.exists() else None
    chosen = strict_runs(recipe, name)[:most_runs]
    tables = [_scored_before(run, split, earlier, file, row_of) for run in chosen]
    for run, table in zip(chosen, tables, strict=True):
        missing = [view for view in views if view not in table]
        if not missing:
            continue
        function = _function_of(run)
        rows = row_of[table["image_id"]].to_numpy()
        for view in tqdm(missing, desc=f"{recipe} {run.seed}", unit="view"):
            table[view] = score(function, pixels, rows, views[view])
            with atomic_write(file) as temporary:
                pd.concat(tables).to_csv(temporary, index=False, float_format="%.7g")
    return pd.concat(tables, ignore_index=True)


def _function_of(run: runs.Run) -> ScoreFunction:
    """Return a run's model as a function of images of `SIZE` pixels."""
    predictor = load_predictor(run)
    choices = run.settings["choices"]
    region = choices.get("region", "whole")

    def score_images(pixels: np.ndarray) -> np.ndarray:
        if region == "whole":
            return predictor.score(resized(pixels, choices["size"]))
        return predictor.score(regions.cut(pixels, choices["size"], region))

    return score_images


def score(
    function: ScoreFunction, pixels: np.ndarray, rows: np.ndarray, view: View | None = None
) -> np.ndarray:
    """Score some rows of `pixels` with a function, as a view shows them, `CHUNK` at a time.

    Returns
    -------
    numpy.ndarray
        float64 `(len(rows),)`.

    Raises
    ------
    InvalidDataError
        The function returns something other than one finite number for each image.
    """
    scores = []
    for start in range(0, len(rows), CHUNK):
        part = pixels[rows[start : start + CHUNK]]
        changed = part if view is None else view(part)
        scores.append(_checked_scores(function(changed), len(part)))
    return np.concatenate(scores)


def _checked_scores(returned: Any, images: int) -> np.ndarray:
    """Return what a function gave as float64 `(images,)`; `(images, 1)` is taken as well."""
    fix = "return the score of pneumonia of each image, an array (n,) of finite numbers"
    given = f"a {type(returned).__name__}"
    if isinstance(returned, np.ndarray):
        given = f"an array {returned.shape}"
    try:
        scores = np.asarray(returned, dtype=np.float64).reshape(images)
    except (TypeError, ValueError) as error:
        what = f"the function returns {given} for {images} images"
        raise InvalidDataError(f"{what}. Fix: {fix}.") from error
    if not np.isfinite(scores).all():
        raise InvalidDataError(f"the function returns scores that are no numbers. Fix: {fix}.")
    return scores


def evaluate_function(
    function: ScoreFunction,
    manifest: pd.DataFrame,
    split: str = "test",
    *,
    size: int = SIZE,
    threshold: float | None = None,
    with_corruptions: bool = False,
) -> pd.DataFrame:
    """Measure any function from images to scores in every view of the framing experiment.

    Parameters
    ----------
    function : callable
        Takes uint8 images `(n, size, size, 1)`, at most `CHUNK` at once, and returns a score for
        each, higher for pneumonia: `(n,)` or `(n, 1)`, finite, in any range.
    manifest : pandas.DataFrame
        The whole manifest of a data set.
    split : str
        The split whose images are scored.
    size : int
        Height and width of the function's images in pixels. Views are made at `SIZE` pixels, or at
        `size` if it is larger.
    threshold : float, optional
        From this score on an image is classified as pneumonia. By default the mean of the two
        classes' median scores of the unchanged images: chosen on the images that are scored, so
        that sensitivity and specificity of the unchanged images are optimistic.
    with_corruptions : bool
        Measure every corruption at every severity as well.

    Returns
    -------
    pandas.DataFrame
        One row per view, first the unchanged images.

        - `view`, `n`: the view and its images.
        - `threshold`: the same for all views.
        - `specificity`, `sensitivity`, `auc`: each with `_low` and `_high`, the 95% interval over
          patients.

    Raises
    ------
    InvalidDataError
        The split has no images, or of one class only, or the function returns no scores.
    """
    part = manifest[manifest["split"] == split].assign(recipe="function", protocol="", seed=0)
    if part["label"].nunique() < 2:
        name = manifest.attrs.get("dataset", "the manifest")
        splits = ", ".join(sorted(manifest["split"].unique()))
        raise InvalidDataError(
            f"{name}: the {len(part)} images of the split {split} are not of both classes. "
            f"Fix: take another split (there are: {splits})."
        )
    pixels = images.load_pixels(manifest, max(SIZE, size))
    rows = np.flatnonzero(manifest["split"] == split)
    views: dict[str, View] = dict(FRAMING_VIEWS)
    if with_corruptions:
        views |= corruption_views()

    def score_images(changed: np.ndarray) -> np.ndarray:
        return function(resized(changed, size))

    scores = {UNCHANGED: score(score_images, pixels, rows)}
    if threshold is None:
        threshold = _between_classes(scores[UNCHANGED], part["label"].to_numpy())
    for name, view in tqdm(views.items(), unit="view"):
        scores[name] = score(score_images, pixels, rows, view)
    table = []
    for name, values in scores.items():
        measured = metrics.evaluate(
            part.assign(score=values), split=split, rule=threshold, resamples=RESAMPLES
        )
        row = {"view": name, "n": len(part), "threshold": threshold}
        table.append(row | metrics.ends(measured, "specificity", "sensitivity", "auc"))
    return pd.DataFrame(table)


def _between_classes(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean of the two classes' median scores, and warn if they are the wrong way."""
    normal = float(np.median(scores[labels == 0]))
    pneumonia = float(np.median(scores[labels == 1]))
    if pneumonia < normal:
        log.warning(
            "the median score of pneumonias (%.3g) is below that of normals (%.3g). "
            "Fix: if it is the score of normal, pass that of pneumonia",
            pneumonia,
            normal,
        )
    return (normal + pneumonia) / 2


def _scored_before(
    run: runs.Run, split: str, earlier: pd.DataFrame | None, file: Path, row_of: pd.Series
) -> pd.DataFrame:
    """Return the run's own scores of a split with the views of an earlier table of this run."""
    unchanged = run.scores[run.scores["split"].isin(split.split())]
    if not unchanged["image_id"].isin(row_of.index).all():
        what = f"{run.folder} scored other images than those on this machine"
        raise InvalidDataError(f"{what}. Fix: train it again.")
    table = unchanged.rename(columns={"score": CLEAN}).assign(
        recipe=run.recipe,
        model=run.settings["model_sha256"][:12],
        threshold=run.threshold,
    )
    table = table[_COLUMNS].reset_index(drop=True)
    if earlier is None:
        return table
    same_seed = earlier[earlier["seed"] == run.seed].reset_index(drop=True)
    if same_seed.empty:
        return table
    keys = ["model", "image_id", "label"]
    if same_seed[keys].to_numpy().tolist() == table[keys].to_numpy().tolist():
        done = same_seed.drop(columns=_COLUMNS).dropna(axis=1)
        return pd.concat([table, done], axis=1)
    if file.parents[1].name in runs.COMMITTED:
        what = f"{file} has scores of another run or of other images"
        raise InvalidDataError(f"{what}. Fix: delete it and score again.")
    log.warning("%s has scores of another run or of other images: scored anew", file)
    return table


def resized(pixels: np.ndarray, size: int) -> np.ndarray:
    """Resize uint8 images `(n, h, w, 1)` as `images.read_gray` resizes what it reads."""
    smaller = [
        image.resize((size, size), Resampling.BILINEAR, reducing_gap=3.0)
        for image in to_images(pixels)
    ]
    return to_pixels(smaller)


def load_views(dataset: str, study: str) -> pd.DataFrame:
    """Return the tables that `score_views` wrote for all recipes, checked.

    Parameters
    ----------
    dataset : str
        The report's name.
    study : str
        The report's folder of the tables, such as `framing`.

    Returns
    -------
    pandas.DataFrame
        Rows as `score_views` returns them. Of the studies other than `corruptions`, whose recipes
        may have different views, runs that were not scored in every view yet are left out.
    """
    command = f"python -m xraylib {study} RECIPE --dataset {dataset}"
    table = read_recipes(paths.REPORTS / dataset / study, command, _COLUMNS)
    # The scores of the unchanged images are a scores table.
    unchanged = table.rename(columns={CLEAN: "score"})
    unchanged = unchanged.assign(protocol="strict", split="val", kind="")
    check(unchanged[list(runs.SCORE_COLUMNS)])
    if study == "corruptions":
        return table
    return table.dropna(ignore_index=True)


def corruption_losses(scores: pd.DataFrame) -> pd.DataFrame:
    """Measure how much AUC each corruption costs, and how much balanced error it adds.

    Every image is compared with itself unchanged. Severities have equal weight, as in MedMNIST-C
    (Di Salvo et al. 2024). The balanced error is that at the frozen threshold: the AUC of a yes or
    no is its balanced accuracy, so DeLong's covariance applies to it as well.

    Parameters
    ----------
    scores : pandas.DataFrame
        The table of `load_views(dataset, "corruptions")`.

    Returns
    -------
    pandas.DataFrame
        One row per recipe, run and corruption.

        - `recipe`, `seed`, `corruption`.
        - `severity`: how many severities were averaged; `n`: images.
        - `auc`, `balanced_error`: under the corruption.
        - `delta_auc`: AUC lost; `delta_balanced_error`: error gained; each with `_low` and
          `_high`, DeLong's 95% interval of the paired difference over patients.
    """
    rows = []
    for _, run in scores.groupby(["recipe", "seed"], sort=False):
        rows += _losses_of_run(run)
    return pd.DataFrame(rows)


def _losses_of_run(run: pd.DataFrame) -> list[dict[str, object]]:
    """`corruption_losses` of one run."""
    scores = run.drop(columns=ABOUT).dropna(axis=1, how="all")
    labels = run["label"].to_numpy()
    patients = run["patient"].to_numpy()
    values = scores.to_numpy(dtype=float).T
    positive = (values >= run["threshold"].iloc[0]).astype(float)
    aucs, auc_covariance = delong(labels, values, patients)
    accuracies, accuracy_covariance = delong(labels, positive, patients)
    # Contrasts between views: weights that are multiplied with their values and summed.
    is_clean = scores.columns == CLEAN
    corruptions = scores.columns.str.rsplit(" ", n=1).str[0]
    about = {"recipe": run["recipe"].iloc[0], "seed": run["seed"].iloc[0]}
    rows = []
    for name in corruptions.unique():
        is_severity = corruptions == name
        severities = is_severity.sum()
        _check_complete(about["recipe"], name, severities)
        mean = is_severity / severities
        row = about | {"corruption": name, "severity": severities, "n": len(run)}
        row["auc"] = mean @ aucs
        row |= _loss("delta_auc", is_clean - mean, aucs, auc_covariance)
        row["balanced_error"] = 1 - mean @ accuracies
        row |= _loss("delta_balanced_error", is_clean - mean, accuracies, accuracy_covariance)
        rows.append(row)
    return rows


def _check_complete(recipe: str, corruption: str, severities: int) -> None:
    """Refuse a mean over some severities only."""
    _, steps = CORRUPTIONS.get(corruption, (None, (0,)))
    if severities < len(steps):
        what = f"{recipe} was scored on some severities of {corruption} only"
        fix = f"`python -m xraylib corruptions {recipe}`, which resumes where it stopped"
        raise InvalidDataError(f"{what}. Fix: {fix}.")


def _loss(
    name: str, contrast: np.ndarray, by_view: np.ndarray, covariance: np.ndarray
) -> dict[str, float]:
    """A contrast between views with its 95% interval over patients."""
    loss = np.round(contrast @ by_view, 12)
    variance = contrast @ covariance @ contrast
    # Rounding leaves a tiny variance where nothing changed.
    half = Z * np.sqrt(variance) if variance >= 1e-15 else 0.0
    return {name: loss, f"{name}_low": loss - half, f"{name}_high": loss + half}


def framing_response(views: pd.DataFrame) -> pd.DataFrame:
    """Measure dose and response of the framing experiment.

    In the views `swapped`, normals lose that share of rows and pneumonias that share of columns.

    Parameters
    ----------
    views : pandas.DataFrame
        The table of `load_views(dataset, "framing")`.

    Returns
    -------
    pandas.DataFrame
        One row per recipe and view.

        - `recipe`, `view`, `runs`; `n`: images per run.
        - `specificity`, `sensitivity`: of the images in that view at the frozen thresholds, each
          with `_low` and `_high`, the interval over runs and patients.
        - `auc`, likewise, of the views `unchanged` and `swapped`.
    """
    rows = []
    for recipe, part in views.groupby("recipe", sort=False):
        part = part.rename(columns={CLEAN: UNCHANGED})
        for share in SHARES:
            fewer_columns = part[f"columns {share}"]
            fewer_rows = part[f"rows {share}"]
            part[f"swapped {share}"] = fewer_columns.where(part["label"] == 1, fewer_rows)
        run_count = part["seed"].nunique()
        for view in part.columns.drop(ABOUT):
            scored = part.assign(split="val", protocol="strict", score=part[view])
            measured = metrics.evaluate(
                scored,
                split="val",
                resamples=RESAMPLES,
                ranking=view == UNCHANGED or view.startswith("swapped"),
            )
            row = {"recipe": recipe, "view": view, "runs": run_count, "n": len(part) // run_count}
            rows.append(row | metrics.ends(measured, "specificity", "sensitivity", "auc"))
    return pd.DataFrame(rows)
