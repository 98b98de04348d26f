"""Trained models on other images: framing, corruptions, other data sets, out-of-distribution (OOD) scores.

No training, tuning or threshold here: each run is scored as it stands, with its frozen threshold.
"""

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from scipy.stats import norm
from tqdm.auto import tqdm

from xraylib import paths
from xraylib.datasets import catalog, images, manifest
from xraylib.datasets.corruptions import CORRUPTIONS, corrupt
from xraylib.datasets.framing import FRAMING_VIEWS, SHARES
from xraylib.errors import InvalidDataError, NotFoundError
from xraylib.evaluation import metrics
from xraylib.evaluation.forensics import _device_views
from xraylib.evaluation.resampling import delong
from xraylib.evaluation.scores import check
from xraylib.storage import atomic_write
from xraylib.training import runs
from xraylib.training.predictor import load_predictor

# Images are corrupted at this size, for which the parameters were set.
SIZE = 224
ABOUT = ("recipe", "model", "seed", "threshold", "image_id", "patient", "label")
CLEAN = "none 0"
# Runs whose validation is re-framed: each has another seventh of the patients.
FRAMING_RUNS = 3
LOSSES = (
    *(
        "recipe",
        "seed",
        "corruption",
        "severity",
        "n",
        "auc",
        "delta_auc",
        "delta_auc_low",
        "delta_auc_high",
    ),
    *(
        "balanced_error",
        "delta_balanced_error",
        "delta_balanced_error_low",
        "delta_balanced_error_high",
    ),
)


def strict_runs(recipe: str, dataset: str) -> list[runs.Run]:
    if found := runs.list_runs(dataset, recipe, "strict"):
        return found
    fix = (
        f"train one with `python -m xraylib train {recipe} --dataset {catalog.reference(dataset)}`"
    )
    raise NotFoundError(f"no finished run of {recipe} on {dataset}. Fix: {fix}.")


def score_views(recipe: str, dataset: str, study: str) -> pd.DataFrame:
    """Score changed images by the strict runs of a recipe, as one of the `STUDIES` asks.

    `corruptions`: the official test after every corruption and severity, by the first run. `framing`: each of the first
    `FRAMING_RUNS` runs scores its own validation in every view of `FRAMING_VIEWS`; `device`: its validation and the test, as
    `_device_views` changes them. One row an image and run: `ABOUT`, `none 0` for the run's own score of the image as it
    is, and a column a view, such as `jpeg 3`; written to `<study>/<recipe>.csv` of the report. Scoring that was
    interrupted goes on after the last view.
    """
    name, whole = catalog.get_dataset(dataset).name, manifest.load(dataset)
    films = images.load_pixels(whole, SIZE)
    split, views = STUDIES[study](name, whole, films)
    found = strict_runs(recipe, name)[: 1 if study == "corruptions" else FRAMING_RUNS]
    file = paths.REPORTS / name / study / f"{recipe}.csv"
    known = _read(file) if file.exists() else None
    rows_of = pd.Series(range(len(whole)), whole["image_id"])
    parts = {run.seed: _untouched(run, split, known, file, rows_of) for run in found}
    todo = [(run, view) for run in found for view in views if view not in parts[run.seed]]
    predictors = {
        run.seed: load_predictor(run) for run in found if any(each is run for each, _ in todo)
    }
    for run, view in tqdm(todo, desc=recipe, unit="view", disable="TQDM_DISABLE" in os.environ):
        part = parts[run.seed]
        changed = views[view](films[rows_of[part["image_id"]].to_numpy()])
        size = run.settings["choices"]["size"]
        parts[run.seed] = part.assign(**{view: predictors[run.seed].score(_resized(changed, size))})
        with atomic_write(file) as temporary:
            pd.concat(parts.values()).to_csv(temporary, index=False, float_format="%.7g")
    return pd.concat(parts.values(), ignore_index=True)


def _untouched(
    run: runs.Run, split: str, known: pd.DataFrame | None, file: Path, rows_of: pd.Series
) -> pd.DataFrame:
    """The run's own scores of a split, with the views that `known` holds of this run already."""
    own = run.scores[run.scores["split"].isin(split.split())].rename(columns={"score": CLEAN})
    if not own["image_id"].isin(rows_of.index).all():
        raise InvalidDataError(
            f"{run.folder} scored other images than there are here. Fix: train it again."
        )
    done = own.assign(
        recipe=run.recipe, model=run.settings["model_sha256"][:12], threshold=run.threshold
    )
    done = done[[*ABOUT, CLEAN]].reset_index(drop=True)
    if known is None or (known := known[known["seed"] == run.seed].reset_index(drop=True)).empty:
        return done
    if all(known[each].tolist() == done[each].tolist() for each in ("model", "image_id", "label")):
        return pd.concat([done, known.drop(columns=[*ABOUT, CLEAN]).dropna(axis=1)], axis=1)
    if file.parents[1].name in runs.COMMITTED:
        raise InvalidDataError(f"{file} is of another run or of other images. Fix: delete it.")
    logging.getLogger(__name__).warning(
        "%s is of another run or of other images: scored anew", file
    )
    return done


def _corruption_views(*_: Any) -> tuple[str, dict[str, Any]]:
    steps = [(name, i + 1) for name, (_, steps) in CORRUPTIONS.items() for i in range(len(steps))]
    return "test", {f"{n} {s}": partial(corrupt, name=n, severity=s) for n, s in steps}


STUDIES: dict[str, Callable[..., tuple[str, dict[str, Any]]]] = {
    "corruptions": _corruption_views,
    "framing": lambda *_: ("val", FRAMING_VIEWS),
    "device": _device_views,
}


def _resized(films: np.ndarray, size: int) -> np.ndarray:
    """As `images.read_gray` resizes what it reads."""
    if films.shape[1] == size:
        return films
    pictures = (Image.fromarray(film[..., 0]) for film in films)
    small = [p.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0) for p in pictures]
    return np.stack([np.asarray(film) for film in small])[..., None]


def load_views(dataset: str, study: str) -> pd.DataFrame:
    """Return what `score_views` wrote into a report, all recipes, checked."""
    place = paths.REPORTS / dataset / study
    files = sorted(place.glob("*.csv"), key=lambda file: runs.rank(file.stem))
    if not files:
        raise NotFoundError(
            f"nothing in {place}. Fix: `python -m xraylib {study} RECIPE "
            f"--dataset {catalog.reference(dataset)}`."
        )
    table = pd.concat([_read(file) for file in files], ignore_index=True)
    if study != "corruptions":
        table = table.dropna(ignore_index=True)  # runs that were not scored in every view yet
    clean = table.assign(
        protocol="strict", split="test" if study == "corruptions" else "val", kind=""
    ).rename(columns={CLEAN: "score"})
    check(clean[list(runs.SCORE_COLUMNS)])
    return table


def _read(file: Path) -> pd.DataFrame:
    """Read one recipe's file as text first: hexadecimal digits can look like a number."""
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    if missing := [name for name in (*ABOUT, CLEAN) if name not in table]:
        raise InvalidDataError(f"{file} lacks the columns {', '.join(missing)}. Fix: delete it.")
    numbers = table.columns.difference(["recipe", "model", "image_id", "patient"])
    # A view that was not scored for a run yet is empty throughout; anything else that is no number is damage.
    empty = (table[numbers] == "").groupby(table["seed"]).transform("all")
    table[numbers] = table[numbers].apply(pd.to_numeric, errors="coerce")
    scores = table[table.columns.difference(list(ABOUT))]
    bad = (
        (table[numbers].isna() & ~empty).any(axis=1)
        | (scores < 0).any(axis=1)
        | (scores > 1).any(axis=1)
    )
    if bad.any():
        raise InvalidDataError(
            f"{file}: {table.loc[bad, 'image_id'].iloc[0]} has a score that is no number in [0, 1] "
            f"({int(bad.sum())} rows). Fix: delete the file and score again."
        )
    return table.astype({"seed": "int64", "label": "int64"})


def corruption_losses(scores: pd.DataFrame) -> pd.DataFrame:
    """How much AUC is lost and balanced error gained by each corruption, against the same images untouched.

    `LOSSES`, with DeLong's 95% intervals of paired differences over patients: one row a corruption with equal weight on
    its severities, as MedMNIST-C does, whose number is `severity`. The balanced error is that at the frozen threshold:
    the AUC of a yes or no is its balanced accuracy, so DeLong's covariance holds for it too.
    """
    tables = []
    for (recipe, seed), part in scores.groupby(["recipe", "seed"], sort=False):
        columns = [str(name) for name in part if name not in ABOUT and part[name].notna().any()]
        codes, names = pd.factorize(pd.Series(columns).str.rsplit(" ", n=1).str[0])
        member = codes == np.arange(len(names))[:, None]
        table = pd.DataFrame(
            {"recipe": recipe, "seed": seed, "corruption": names, "severity": member.sum(axis=1)}
        )
        steps = table["corruption"].map(
            {name: len(values) for name, (_, values) in CORRUPTIONS.items()}
        )
        if (cut := table["severity"] < steps.fillna(1)).any():
            raise InvalidDataError(
                f"{recipe} was scored on some severities of {table.loc[cut, 'corruption'].iloc[0]} only. "
                f"Fix: `python -m xraylib corruptions {recipe}`, which goes on where it stopped."
            )
        table["n"], mean = len(part), member / member.sum(axis=1, keepdims=True)
        against = np.eye(len(columns))[columns.index(CLEAN)] - mean
        values = part[columns].to_numpy(dtype=float).T
        classified = (values >= part["threshold"].iloc[0]).astype(float)
        labels, patients = part["label"].to_numpy(), part["patient"].to_numpy()
        for name, each in (("auc", values), ("balanced_error", classified)):
            found, covariance = delong(labels, each, patients)
            table[name] = mean @ found if name == "auc" else 1 - mean @ found
            variance = np.einsum("ij,jk,ik->i", against, covariance, against)
            # Rounding leaves a spread where there is none.
            half = norm.ppf(0.975) * np.sqrt(np.where(variance < 1e-15, 0.0, variance))
            table[f"delta_{name}"] = lost = np.round(against @ found, 12)
            table[f"delta_{name}_low"], table[f"delta_{name}_high"] = lost - half, lost + half
        tables.append(table[list(LOSSES)])
    return pd.concat(tables, ignore_index=True)


def framing_response(views: pd.DataFrame) -> pd.DataFrame:
    """Dose and response of the framing experiment, of `load_views(…, "framing")`: a row a recipe and view.

    `recipe, view, runs, n` (images a run)`, specificity` (of normals in that view)`, sensitivity` (of pneumonias), each
    with its interval over runs and patients, at the frozen thresholds; and, for the views `swapped`, `auc`: normals
    lose that share of rows, pneumonias of columns.
    """
    rows = []
    for recipe, part in views.groupby("recipe", sort=False):
        part = part.assign(split="val", protocol="strict").rename(columns={CLEAN: "as it is"})
        for share in SHARES:
            swapped = part[f"columns {share}"].where(part["label"] == 1, part[f"rows {share}"])
            part = part.assign(**{f"swapped {share}": swapped})
        runs_ = part["seed"].nunique()
        for view in part.columns.drop([*ABOUT, "split", "protocol"]):
            one, ranked = part.assign(score=part[view]), view.startswith(("swapped", "as"))
            found = metrics.evaluate(one, split="val", resamples=500, ranking=ranked)
            row: dict[str, object] = {
                "recipe": recipe,
                "view": view,
                "runs": runs_,
                "n": len(part) // runs_,
            }
            rows.append(row | metrics.ends(found, "specificity", "sensitivity", "auc"))
    return pd.DataFrame(rows)
