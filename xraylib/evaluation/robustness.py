"""Trained models on worse images: the official test after every corruption, scored as it stands.

The scores are kept, one column a corruption and severity; what is lost is computed from them alone.
"""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.stats import norm
from tqdm.auto import tqdm

from xraylib import paths, predict
from xraylib.datasets import catalog, corruptions, images
from xraylib.evaluation.ranking import delong
from xraylib.evaluation.scores import COLUMNS, check_scores, numbers
from xraylib.evaluation.shift import check_recorded
from xraylib.report import tables
from xraylib.storage import DataInvalid, NotFound, atomic

# Radiographs are corrupted at this size, for which the parameters were set.
SIZE = 224
ABOUT = ("recipe", "model", "seed", "threshold", "image_id", "patient", "label")
CLEAN = "none 0"
LOSSES = (
    *("recipe", "seed", "corruption", "severity", "n", "auc", "auc_lost", "auc_lost_low", "auc_lost_high"),
    *("balanced_error", "balanced_error_gained", "balanced_error_gained_low", "balanced_error_gained_high"),
)


def score(
    recipe: str,
    dataset: str,
    *,
    names: Collection[str] = tuple(corruptions.CORRUPTIONS),
    runs: Path = paths.RUNS,
) -> pd.DataFrame:
    """Score the official test after every corruption and severity, by the first strict run of a recipe.

    Parameters
    ----------
    recipe
        Its name.
    dataset
        What it was trained on.
    names
        Keys of `corruptions.CORRUPTIONS`.
    runs
        Folder of the runs.

    Returns
    -------
    pandas.DataFrame
        One row an image: `ABOUT` (the threshold that validation chose), `none 0` for P(pneumonia) of the
        image as it is, and a column a corruption and severity, such as `jpeg 3`; kept in
        `robustness/<recipe>.csv` of the report. A trial that was cut goes on after the last column there.

    Raises
    ------
    NotFound
        When the recipe has no run on this machine.
    DataInvalid
        When the kept file was made by another run.
    NotFound
        When there is no such corruption.
    """
    name = catalog.find(dataset).name
    run = predict.find_runs(recipe, name, runs=runs)[0]
    check_recorded(run, name)
    if unknown := sorted(set(names) - set(corruptions.CORRUPTIONS)):
        raise NotFound(f"there is no corruption {unknown[0]!r}. Fix: {', '.join(corruptions.CORRUPTIONS)}.")
    predictor, manifest = predict.load(run), catalog.load(dataset)
    test = manifest[manifest["split"] == "test"]
    films = images.load_pixels(manifest, SIZE)[test.index]
    file = tables.folder(name) / "robustness" / f"{recipe}.csv"
    model = run.settings["model_sha256"][:12]
    done = test[["image_id", "patient", "label"]].reset_index(drop=True)
    done = done.assign(recipe=recipe, model=model, seed=run.seed, threshold=predictor.threshold)[list(ABOUT)]
    if file.exists():
        done = _of_this_run(file, done)
    wanted = [("none", 0)]
    wanted += [(each, i + 1) for each in names for i in range(len(corruptions.CORRUPTIONS[each][1]))]
    wanted = [(each, severity) for each, severity in wanted if f"{each} {severity}" not in done]
    for each, severity in tqdm(wanted, desc=recipe, unit="corruption"):
        changed = films if severity == 0 else corruptions.corrupt(films, each, severity)
        done[f"{each} {severity}"] = predictor.score(_resized(changed, run.settings["choices"]["size"]))
        with atomic(file) as temporary:
            done.to_csv(temporary, index=False, float_format="%.9g")
    return done


def load(dataset: str) -> pd.DataFrame:
    """Read the scores of worse images of a report, all recipes.

    Raises `NotFound` when there are none, and `DataInvalid` for what is no number, lies outside [0, 1], or
    is refused by `scores.check_scores`.
    """
    place = tables.folder(dataset) / "robustness"
    files = sorted(place.glob("*.csv"), key=lambda file: tables.rank(file.stem))
    if not files:
        raise NotFound(f"nothing in {place}. Fix: `python -m xraylib robustness RECIPE --dataset {dataset}`.")
    table = pd.concat([_read(file) for file in files], ignore_index=True)
    if CLEAN in table:
        untouched = table[table[CLEAN].notna()].assign(protocol="strict", split="test", kind="")
        check_scores(untouched.rename(columns={CLEAN: "score"})[list(COLUMNS)])
    return table


def is_known(dataset: str) -> bool:
    """Whether a report holds scores of worse images."""
    return any((tables.folder(dataset) / "robustness").glob("*.csv"))


def losses(scores: pd.DataFrame, *, averaged: bool = False, level: float = 0.95) -> pd.DataFrame:
    """How much AUC is lost and balanced error gained by each corruption, against the same images untouched.

    Parameters
    ----------
    scores
        From `score` or `load`.
    averaged
        One row a corruption, its severities averaged with equal weight, as MedMNIST-C does; otherwise one row
        a corruption and severity.
    level
        Coverage of the intervals.

    Returns
    -------
    pandas.DataFrame
        `LOSSES`, with DeLong's intervals of paired differences over patients; `severity` counts the
        averaged ones, 1 for `none`. The balanced error is that at the threshold of validation: the AUC of a
        yes or no is its balanced accuracy, so that DeLong's covariance holds for it too. Where no call
        changes, its interval has no width.

    Raises
    ------
    DataInvalid
        When a recipe lacks the scores of the images as they are, or, to be averaged, a severity.
    """
    parts = [
        _losses_of_one(scored, averaged, level)
        for _, scored in scores.groupby(["recipe", "seed"], sort=False)
    ]
    return pd.concat(parts, ignore_index=True)


def _losses_of_one(scored: pd.DataFrame, averaged: bool, level: float) -> pd.DataFrame:
    columns = [str(name) for name in scored if name not in ABOUT and scored[name].notna().any()]
    first = scored.iloc[0]
    if scored[columns].isna().any(axis=None):
        raise DataInvalid(f"{first['recipe']} lacks scores of some images. Fix: run it again.")
    if CLEAN not in columns:
        raise DataInvalid(f"{first['recipe']} lacks the scores of the images as they are. Fix: run it again.")
    ranks = scored[columns].to_numpy(dtype=float).T
    calls = (ranks >= first["threshold"]).astype(float)
    named = pd.DataFrame([name.rsplit(" ", 1) for name in columns], columns=["corruption", "severity"])
    codes = pd.factorize(named["corruption"])[0] if averaged else np.arange(len(named))
    groups = [np.flatnonzero(codes == code) for code in range(codes.max() + 1)]
    table = named.iloc[[group[0] for group in groups]].reset_index(drop=True)
    table["severity"] = table["severity"].astype(int)
    if averaged:
        table["severity"] = [len(group) for group in groups]
        steps = {name: len(values) for name, (_, values) in corruptions.CORRUPTIONS.items()}
        cut = table[table["severity"] < table["corruption"].map(steps).fillna(1)]
        if len(cut):
            which = f"{first['recipe']} was tried on some severities of {cut['corruption'].iloc[0]} only"
            raise DataInvalid(f"{which}. Fix: run it again.")
    table = table.assign(recipe=first["recipe"], seed=first["seed"], n=len(scored))
    for figure, change, values in (
        ("auc", "auc_lost", ranks),
        ("balanced_error", "balanced_error_gained", calls),
    ):
        found = delong(scored["label"].to_numpy(), values, scored["patient"].to_numpy())
        middle, *lost = _lost(*found, groups, columns.index(CLEAN), level)
        table[figure] = middle if figure == "auc" else 1 - middle
        for end, value in zip(("", "_low", "_high"), lost, strict=True):
            table[change + end] = value
    return table[list(LOSSES)]


def _lost(
    figures: np.ndarray, covariance: np.ndarray, groups: list[np.ndarray], clean: int, level: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean of each group of figures, and by how much it lies below the figure at `clean`, with interval."""
    mean = np.zeros((len(groups), len(figures)))
    for row, group in zip(mean, groups, strict=True):
        row[group] = 1 / len(group)
    against = np.eye(len(figures))[clean] - mean
    variance = np.einsum("ij,jk,ik->i", against, covariance, against)
    # Rounding leaves a spread where there is none.
    half = norm.ppf((1 + level) / 2) * np.sqrt(np.where(variance < 1e-15, 0.0, variance))
    lost = np.round(against @ figures, 12)
    return mean @ figures, lost, lost - half, lost + half


def _of_this_run(file: Path, about: pd.DataFrame) -> pd.DataFrame:
    """Read what has been scored, for the images and the run that `about` names."""
    kept = _read(file)
    if any(kept[name].tolist() != about[name].tolist() for name in ("model", "image_id", "label")):
        raise DataInvalid(f"{file} is of another run or of other images. Fix: delete it.")
    return kept


def _read(file: Path) -> pd.DataFrame:
    """Read a file of `score`; as text first, for hexadecimal digits can look like a number."""
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    if missing := [name for name in ABOUT if name not in table]:
        raise DataInvalid(f"{file} lacks the columns {', '.join(missing)}. Fix: delete it.")
    for name in table.columns.difference(["recipe", "model", "image_id", "patient"]):
        table[name] = numbers(table, name, "int64" if name in ("seed", "label") else "float64", file)
    scored = [name for name in table if name not in ABOUT]
    outside = (table[scored] < 0) | (table[scored] > 1)
    if outside.any(axis=None):
        row = table[outside.any(axis=1)].iloc[0]
        raise DataInvalid(f"{file}: {row['image_id']} has a score outside [0, 1]. Fix: delete the file.")
    return table


def _resized(films: np.ndarray, size: int) -> np.ndarray:
    """As `images.read_gray` resizes what it reads."""
    if films.shape[1] == size:
        return films
    small = [
        Image.fromarray(film[..., 0]).resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0)
        for film in films
    ]
    return np.stack([np.asarray(film) for film in small])[..., None]
