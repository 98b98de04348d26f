"""Trained models on other images: framing, corruptions, other data sets, out-of-distribution (OOD) scores.

No training, tuning or threshold here: each run is scored as it stands, with its frozen threshold.
"""

import logging
import os
from collections.abc import Callable, Collection
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from scipy.stats import norm, rankdata
from scipy.stats import t as student
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm

from xraylib import paths
from xraylib.datasets import audit, catalog, images, manifest, splits
from xraylib.datasets.manifest import series_and_number
from xraylib.datasets.corruptions import CORRUPTIONS, FRAMINGS, SHARES, corrupt
from xraylib.evaluation import metrics
from xraylib.evaluation.resampling import bootstrap_weights, delong, share_interval
from xraylib.evaluation.scores import check
from xraylib.storage import DataInvalid, NotFound, atomic
from xraylib.training import runs
from xraylib.training.recipes import get_recipe

# Images are corrupted at this size, for which the parameters were set.
SIZE = 224
ABOUT = ("recipe", "model", "seed", "threshold", "image_id", "patient", "label")
CLEAN = "none 0"
# Runs whose validation is re-framed: each has another seventh of the patients.
FRAMING_RUNS = 3
LOSSES = (
    *("recipe", "seed", "corruption", "severity", "n", "auc", "delta_auc", "delta_auc_low", "delta_auc_high"),
    *("balanced_error", "delta_balanced_error", "delta_balanced_error_low", "delta_balanced_error_high"),
)
# Whose frozen backbone gives the features of the OOD scores.
OOD_RECIPE = "mobilenetv2-frozen"


def _strict_runs(recipe: str, dataset: str) -> list[runs.Run]:
    if found := runs.find(dataset, recipe, "strict"):
        return found
    fix = f"train one with `python -m xraylib train {recipe} --dataset {dataset}`"
    raise NotFound(f"no finished run of {recipe} on {dataset}. Fix: {fix}.")


def external(recipe: str, dataset: str, other: str) -> pd.DataFrame:
    """Score every image of another data set (name or path) by each strict run of a recipe.

    A scores table with the split `external`, written to `external/<other>/<recipe>.csv` of the report.
    """
    name, films, parts = catalog.find(dataset).name, manifest.load(other), []
    for run in _strict_runs(recipe, name):
        score = run.predictor().score(images.load_pixels(films, run.settings["choices"]["size"]))
        scored = films.assign(recipe=recipe, protocol="strict", seed=run.seed, split="external", score=score)
        parts.append(scored[list(runs.SCORE_COLUMNS)])
    table = pd.concat(parts, ignore_index=True).sort_values(["seed", "image_id"], ignore_index=True)
    check(table)
    file = paths.REPORTS / name / "external" / catalog.find(other).name / f"{recipe}.csv"
    runs.write_scores(table, file)
    return table


def generalisation_gap(scores: pd.DataFrame, external: pd.DataFrame) -> pd.DataFrame:
    """Set the metrics on another data set beside those on the official test, at the same frozen thresholds.

    `recipe, metric, test, test_low, test_high, external, external_low, external_high`, and `gap, gap_low, gap_high`:
    test minus external, its interval put together from those of the two, which share no patient (Zou and Donner 2008).
    """
    rows = []
    for recipe, there in external.groupby("recipe", sort=False):
        here = scores[(scores["recipe"] == recipe) & (scores["protocol"] == "strict")]
        there = there.assign(threshold=there["seed"].map(here.groupby("seed")["threshold"].first()))
        if there["threshold"].isna().any():
            raise DataInvalid(f"external scores of {recipe} are of other runs. Fix: run `external` again.")
        test, outside = metrics.evaluate(here), metrics.evaluate(there, split="external")
        for metric in ("auc", "accuracy", "balanced_accuracy", "sensitivity", "specificity"):
            (a, a_low, a_high), (b, b_low, b_high) = (
                found.loc[metric, ["value", "low", "high"]].to_numpy(dtype=float) for found in (test, outside)
            )
            row = {"recipe": recipe, "metric": metric, "test": a, "test_low": a_low, "test_high": a_high}
            row |= {"external": b, "external_low": b_low, "external_high": b_high}
            row |= {"gap": a - b, "gap_low": a - b - np.hypot(a - a_low, b_high - b)}
            rows.append(row | {"gap_high": a - b + np.hypot(a_high - a, b - b_low)})
    return pd.DataFrame(rows)


def acquisition(external: pd.DataFrame, films: pd.DataFrame, pixels: np.ndarray) -> pd.DataFrame:
    """Whether another data set can tell what its films show from how they were taken.

    `films` is its manifest, `pixels` uint8 `(n, size, size, 1)` of it. One row a feature (mean intensity, its standard
    deviation, file size, and an 8 × 8 thumbnail, out of fold by patient) and a recipe: `of, auc, low, high` over
    patients, `auc_within_intensity` and `auc_within_size` (mean over quintiles that hold both classes, weighted by
    images), and `correlation`, Spearman's, with the standard deviation.
    """
    flat = pixels.reshape(len(pixels), -1)
    small = _resized(pixels, 8).reshape(len(pixels), -1) / 255
    labels, patients = films["label"].to_numpy(), films["patient"].to_numpy()
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = {"groups": patients, "cv": GroupKFold(5), "method": "predict_proba"}
    values = {
        "mean intensity": flat.mean(axis=1),
        "standard deviation": flat.std(axis=1),
        "file size": audit.file_properties(films)["bytes"].to_numpy(dtype=float),
        "8 × 8 thumbnail": cross_val_predict(model, small, labels, **folds)[:, 1],
    }
    strata = {
        name: pd.qcut(values[of], 5, labels=False, duplicates="drop")
        for name, of in (("intensity", "mean intensity"), ("size", "file size"))
    }
    spread = pd.Series(values["standard deviation"])
    mean = external.groupby(["recipe", "image_id"], sort=False)["score"].mean()
    values |= {str(name): part.droplevel(0)[films["image_id"]].to_numpy() for name, part in mean.groupby("recipe")}
    rows = []
    for name, value in values.items():
        auc, low, high = metrics.auc_interval(labels, value, patients)
        row = {"of": name, "n": len(films), "auc": auc, "low": low, "high": high}
        for stratum, member in strata.items():
            inside = [(member == each) for each in np.unique(member)]
            both = [part for part in inside if len(set(labels[part])) == 2]
            aucs = [roc_auc_score(labels[part], value[part]) for part in both]
            row[f"auc_within_{stratum}"] = float(np.average(aucs, weights=[part.sum() for part in both]))
        rows.append(row | {"correlation": spread.corr(pd.Series(value), method="spearman")})
    return pd.DataFrame(rows)


def identity(films: pd.DataFrame, features: np.ndarray | None = None) -> pd.DataFrame:
    """Test whether equal numbers are one child: is an image more like its namesake than like others.

    `films` is a manifest, `features` `(n, k)` of its rows, by default `frozen_features`. Two images of one person and
    kind, copies left out, are paired, where the answer is known; then the first images of one number in two series. A
    row a pairing: `pairing, pairs, auc, low, high`: how often the namesake's correlation exceeds that with another
    child's image of the same series (chance: 0.5), averaged over pairs, with a normal interval over them.
    """
    named = series_and_number(films).reset_index(drop=True)[~films["sha256"].duplicated().to_numpy()].dropna()
    known = (frozen_features(films) if features is None else features).astype(np.float64)[named.index]
    known = StandardScaler().fit_transform(
        known - pd.DataFrame(known).groupby(named["series"].to_numpy()).transform("mean")
    )
    known /= np.linalg.norm(known, axis=1, keepdims=True)
    order = named.assign(row=range(len(named)), nth=named.groupby(["series", "number"]).cumcount())
    image = order.pivot(index="number", columns=["series", "nth"], values="row")
    names = sorted(named["series"].unique())
    pairings = {f"{name}: two images of one number": ((name, 0), (name, 1)) for name in names}
    pairings |= {f"{a} and {b}: one number": ((a, 0), (b, 0)) for a, b in combinations(names, 2)}
    rows = []
    for pairing, columns in pairings.items():
        pairs = image.reindex(columns=columns).dropna().to_numpy(dtype=int)
        if len(pairs) < 10:
            continue
        like = known[pairs[:, 0]] @ known[pairs[:, 1]].T
        own = np.diag(like)[:, None]
        above = ((like < own).sum(axis=1) + ((like == own).sum(axis=1) - 1) / 2) / (len(pairs) - 1)
        half = norm.ppf(0.975) * above.std(ddof=1) / np.sqrt(len(pairs))
        rows.append((pairing, len(pairs), above.mean(), above.mean() - half, above.mean() + half))
    return pd.DataFrame(rows, columns=["pairing", "pairs", "auc", "low", "high"])


def score_views(recipe: str, dataset: str, study: str) -> pd.DataFrame:
    """Score changed images by the strict runs of a recipe, as one of the `STUDIES` asks.

    `corruptions`: the official test after every corruption and severity, by the first run. `framing`: each of the first
    `FRAMING_RUNS` runs scores its own validation in every view of `FRAMINGS`; `device`: its validation and the test, as
    `_device_views` changes them. One row an image and run: `ABOUT`, `none 0` for the run's own score of the image as it
    is, and a column a view, such as `jpeg 3`; written to `<study>/<recipe>.csv` of the report. Scoring that was
    interrupted goes on after the last view.
    """
    name, whole = catalog.find(dataset).name, manifest.load(dataset)
    films = images.load_pixels(whole, SIZE)
    split, views = STUDIES[study](name, whole, films)
    found = _strict_runs(recipe, name)[: 1 if study == "corruptions" else FRAMING_RUNS]
    file = paths.REPORTS / name / study / f"{recipe}.csv"
    known = _read(file) if file.exists() else None
    rows_of = pd.Series(range(len(whole)), whole["image_id"])
    parts = {run.seed: _untouched(run, split, known, file, rows_of) for run in found}
    todo = [(run, view) for run in found for view in views if view not in parts[run.seed]]
    predictors = {run.seed: run.predictor() for run in found if any(each is run for each, _ in todo)}
    for run, view in tqdm(todo, desc=recipe, unit="view", disable="TQDM_DISABLE" in os.environ):
        part = parts[run.seed]
        changed = views[view](films[rows_of[part["image_id"]].to_numpy()])
        size = run.settings["choices"]["size"]
        parts[run.seed] = part.assign(**{view: predictors[run.seed].score(_resized(changed, size))})
        with atomic(file) as temporary:
            pd.concat(parts.values()).to_csv(temporary, index=False, float_format="%.7g")
    return pd.concat(parts.values(), ignore_index=True)


def _untouched(run: runs.Run, split: str, known: pd.DataFrame | None, file: Path, rows_of: pd.Series) -> pd.DataFrame:
    """The run's own scores of a split, with the views that `known` holds of this run already."""
    own = run.scores[run.scores["split"].isin(split.split())].rename(columns={"score": CLEAN})
    if not own["image_id"].isin(rows_of.index).all():
        raise DataInvalid(f"{run.folder} scored other images than there are here. Fix: train it again.")
    done = own.assign(recipe=run.recipe, model=run.settings["model_sha256"][:12], threshold=run.threshold)
    done = done[[*ABOUT, CLEAN]].reset_index(drop=True)
    if known is None or (known := known[known["seed"] == run.seed].reset_index(drop=True)).empty:
        return done
    if all(known[each].tolist() == done[each].tolist() for each in ("model", "image_id", "label")):
        return pd.concat([done, known.drop(columns=[*ABOUT, CLEAN]).dropna(axis=1)], axis=1)
    if file.parents[1].name in runs.COMMITTED:
        raise DataInvalid(f"{file} is of another run or of other images. Fix: delete it.")
    logging.getLogger(__name__).warning("%s is of another run or of other images: scored anew", file)
    return done


def _corruption_views(*_: Any) -> tuple[str, dict[str, Any]]:
    steps = [(name, i + 1) for name, (_, steps) in CORRUPTIONS.items() for i in range(len(steps))]
    return "test", {f"{n} {s}": partial(corrupt, name=n, severity=s) for n, s in steps}


def marked_films(dataset: str) -> pd.DataFrame:
    """The films with a device's text that `audit.overlay` found, as notebook 01 wrote them into the report."""
    if not (file := paths.REPORTS / dataset / "tables" / "overlay.csv").exists():
        raise NotFound(f"{file} is missing. Fix: run notebook 01 on {dataset}, which has Kermany's only.")
    return pd.read_csv(file)


def _device_views(dataset: str, whole: pd.DataFrame, films: np.ndarray) -> tuple[str, dict[str, Any]]:
    """Swap a device's text and its rendering between films: views of uint8 `(n, SIZE, SIZE, 1)`.

    Each film is given the histogram (mean over films, by quantile) of the training normals, or of the training films
    with the text, all pneumonias; its corner is blackened, which takes the text away; or the text is put there.
    """
    marked, train = whole["image_id"].isin(marked_films(dataset)["image_id"]), whole["split"] == "train"
    levels = np.linspace(0, 1, 257)

    def render(pixels: np.ndarray, model: pd.Series) -> np.ndarray:
        wanted = np.quantile(films[np.flatnonzero(model)], levels, axis=(1, 2, 3)).mean(axis=1)
        rank = [rankdata(film) / film.size for film in pixels]
        return np.rint(np.interp(rank, levels, wanted)).astype(np.uint8).reshape(pixels.shape)

    def corner(pixels: np.ndarray, text: np.ndarray) -> np.ndarray:
        changed = pixels.copy()
        changed[:, -len(text) :, -text.shape[1] :] = text
        return changed

    text = films[np.flatnonzero(marked & train)[0], -audit.TEXT[0] - 1 :, -audit.TEXT[1] :]
    return "val test", {
        "rendered as training normals": partial(render, model=train & (whole["label"] == 0)),
        "rendered as the device's films": partial(render, model=train & marked),
        "corner black": partial(corner, text=np.zeros((16, 24, 1), np.uint8)),
        "text in the corner": partial(corner, text=text),
    }


def device_response(views: pd.DataFrame, scores: pd.DataFrame, marked: pd.Series) -> pd.DataFrame:
    """How films are classified with a device's text and rendering and without, of `load_views(…, "device")`.

    `marked`: ids of the films with the text; `scores` are those of the report, which tell the split. A row a recipe,
    group of images and view: `recipe, films, view, runs, images, right` (specificity or sensitivity at the frozen
    threshold) with its interval over runs and patients, `right_low, right_high`.
    """
    strict = scores.loc[scores["protocol"] == "strict"].loc[lambda own: own["split"].isin(["val", "test"])]
    views = views.merge(strict[["recipe", "seed", "image_id", "split"]]).assign(
        text=lambda all: all["image_id"].isin(marked)
    )
    rows: list[dict[str, object]] = []
    for (recipe, split, label, text), part in views.groupby(["recipe", "split", "label", "text"]):
        films = f"{split}, {'pneumonia' if label else 'normal'}, {'with' if text else 'without'} the text"
        metric = "sensitivity" if label else "specificity"
        part = part.rename(columns={CLEAN: "as it is"})
        for view in part.columns.drop([*ABOUT, "split", "text"]):
            one = part.assign(score=part[view], protocol="strict")
            found = metrics.evaluate(one, split=str(split), resamples=500, ranking=False).rename({metric: "right"})
            row = {"recipe": recipe, "films": films, "view": view, "runs": one["seed"].nunique()}
            rows.append(row | {"images": one["image_id"].nunique()} | metrics.ends(found, "right"))
    return pd.DataFrame(rows, columns=["recipe", "films", "view", "runs", "images", "right", "right_low", "right_high"])


STUDIES: dict[str, Callable[..., tuple[str, dict[str, Any]]]] = {
    "corruptions": _corruption_views,
    "framing": lambda *_: ("val", FRAMINGS),
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
        raise NotFound(f"nothing in {place}. Fix: `python -m xraylib {study} RECIPE --dataset {dataset}`.")
    table = pd.concat([_read(file) for file in files], ignore_index=True)
    if study != "corruptions":
        table = table.dropna(ignore_index=True)  # runs that were not scored in every view yet
    clean = table.assign(protocol="strict", split="test" if study == "corruptions" else "val", kind="").rename(
        columns={CLEAN: "score"}
    )
    check(clean[list(runs.SCORE_COLUMNS)])
    return table


def _read(file: Path) -> pd.DataFrame:
    """Read one recipe's file as text first: hexadecimal digits can look like a number."""
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    if missing := [name for name in (*ABOUT, CLEAN) if name not in table]:
        raise DataInvalid(f"{file} lacks the columns {', '.join(missing)}. Fix: delete it.")
    numbers = table.columns.difference(["recipe", "model", "image_id", "patient"])
    # A view that was not scored for a run yet is empty throughout; anything else that is no number is damage.
    empty = (table[numbers] == "").groupby(table["seed"]).transform("all")
    table[numbers] = table[numbers].apply(pd.to_numeric, errors="coerce")
    scores = table[table.columns.difference(list(ABOUT))]
    bad = (table[numbers].isna() & ~empty).any(axis=1) | (scores < 0).any(axis=1) | (scores > 1).any(axis=1)
    if bad.any():
        raise DataInvalid(
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
        table = pd.DataFrame({"recipe": recipe, "seed": seed, "corruption": names, "severity": member.sum(axis=1)})
        steps = table["corruption"].map({name: len(values) for name, (_, values) in CORRUPTIONS.items()})
        if (cut := table["severity"] < steps.fillna(1)).any():
            raise DataInvalid(
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
            row: dict[str, object] = {"recipe": recipe, "view": view, "runs": runs_, "n": len(part) // runs_}
            rows.append(row | metrics.ends(found, "specificity", "sensitivity", "auc"))
    return pd.DataFrame(rows)


def framing_explained(views: pd.DataFrame, scores: pd.DataFrame, aspects: pd.DataFrame) -> pd.DataFrame:
    """How much of the fall in specificity from validation to the official test the framing explains.

    `views` are of `load_views`, `scores` the report's, `aspects` of `aspect_ratios`. Each normal has the specificity of
    validation normals cut to its aspect ratio (linear between doses): `at_validation_framing`, `at_test_framing`. The
    difference of these two as a share of the fall from `validation` to `test` is `explained`, so that folders framed
    alike explain nothing. Its interval adds Student's over runs and the bootstrap's over patients.
    """
    ratio = aspects.set_index("image_id")["aspect"]
    usual = aspects.loc[(aspects["label"] == 0) & (aspects["split"] != "test"), "aspect"].mean()
    steps, rows = np.array([*SHARES[::-1], 1.0]), []
    for recipe, part in views[views["label"] == 0].groupby("recipe", sort=False):
        own = scores[(scores["recipe"] == recipe) & (scores["protocol"] == "strict") & (scores["label"] == 0)]
        patients = np.unique([*part["patient"], *own["patient"]])
        drawn = np.vstack([np.ones(len(patients)), bootstrap_weights(len(patients), 500)])

        def means(films: pd.DataFrame, values: Any, patients: Any = patients, drawn: Any = drawn) -> np.ndarray:
            weights = drawn[:, np.searchsorted(patients, films["patient"])]
            with np.errstate(invalid="ignore"):  # a resample without these patients
                return weights @ values / weights.sum(axis=1, keepdims=True)

        by_run = []
        for seed, one in part.groupby("seed"):
            test = own[(own["seed"] == seed) & (own["split"] == "test")]
            cut = one[[*(f"rows {share}" for share in SHARES[::-1]), CLEAN]]
            curve, at = means(one, cut.lt(one["threshold"], axis=0).to_numpy(dtype=float)), []
            for films in (one, test):
                kept = np.minimum(1.0, usual / ratio[films["image_id"]].to_numpy())
                near = np.stack([np.interp(kept, steps, dose) for dose in np.eye(len(steps))], axis=1)
                at.append((curve * means(films, near)).sum(axis=1))
            found = means(test, (test["score"] < test["threshold"]).to_numpy(dtype=float)[:, None])[:, 0]
            fall, predicted = curve[:, -1] - found, at[0] - at[1]
            share = predicted[0] / fall[0]
            # Of resamples the linear part: where the fall is small, a ratio has no bounds.
            by_run.append((curve[:, -1], *at, found, share + (predicted - share * fall) / fall[0]))
        values = np.array(by_run)  # runs, quantities, resamples
        names = ("validation", "at_validation_framing", "at_test_framing", "test", "explained")
        row = {"recipe": recipe, "runs": len(values)} | dict(zip(names, values[:, :, 0].mean(axis=0), strict=True))
        spread = student.ppf(0.975, max(1, len(values) - 1)) * pd.Series(values[:, -1, 0]).sem()
        half = np.hypot(spread, norm.ppf(0.975) * np.nanstd(values[:, -1, 1:].mean(axis=0)))
        rows.append(row | {"explained_low": row["explained"] - half, "explained_high": row["explained"] + half})
    return pd.DataFrame(rows)


def frozen_features(films: pd.DataFrame) -> np.ndarray:
    """Features `(n, k)` of a manifest's images by the frozen network of `OOD_RECIPE` with its own initial weights."""
    from xraylib.training import networks, probe  # which load Keras

    recipe = get_recipe(OOD_RECIPE)
    weights = networks.get_weights(recipe.network, recipe.init)
    return probe.pooled(films, recipe.network, recipe.size, weights, 0)


def aspect_ratios(dataset: str) -> pd.DataFrame:
    """Aspect ratio (width by height) of every film as it was taken: `image_id, split, label, aspect, error`.

    Read off the files where they differ in it. Of copies of one size it is estimated: the list of original files
    (`audit.originals`) trains a ridge regression of its logarithm on `OOD_RECIPE`'s features, and `error` is the root
    mean square error out of fold, by patient (0 where read). `known`: whether the film is one of these.
    """
    whole = manifest.load(dataset)
    files = audit.file_properties(whole)
    table = whole[["image_id", "split", "label"]].assign(aspect=files["width"] / files["height"], error=0.0)
    if table["aspect"].nunique() > 1:
        return table.assign(known=True)
    if (listed := audit.originals(dataset)) is None:
        raise NotFound(f"{dataset}: its images have one size. Fix: use the original files, or their list.")
    truth = dict(zip(listed["image_id"], np.log(listed["width"] / listed["height"]), strict=True))
    features = frozen_features(whole)
    there = whole["image_id"].isin(truth).to_numpy()
    target = np.array([truth[name] for name in whole.loc[there, "image_id"]])
    groups = whole.loc[there, "patient"]
    model = make_pipeline(StandardScaler(), RidgeCV(10.0 ** np.arange(0, 6)))
    held_out = cross_val_predict(model, features[there], target, groups=groups, cv=GroupKFold(5))
    table["aspect"] = np.exp(model.fit(features[there], target).predict(features))
    # Films that trained the regression keep their estimate out of fold.
    table.loc[there, "aspect"] = np.exp(held_out)
    error = float(np.sqrt(np.mean((np.exp(held_out) - np.exp(target)) ** 2)))
    return table.assign(error=error, known=there)


def ood_scores(dataset: str, others: Collection[str] = ()) -> pd.DataFrame:
    """OOD scores: how unlike the training images others are, by `mahalanobis` on `OOD_RECIPE`'s features.

    `group, image_id, patient, label, ood_score`, written to `tables/ood_scores.csv` of the report. Groups: normals and
    pneumonias of validation and of the official test, the test inverted, and further data sets (names or paths), whole.
    Training and validation images are those of the recipe's first strict run.
    """
    from xraylib.training import networks, probe  # which load Keras

    name, whole = catalog.find(dataset).name, manifest.load(dataset)
    run = _strict_runs(OOD_RECIPE, name)[0]
    frozen, choices = run.predictor().model, run.settings["choices"]
    network, size = choices["network"], choices["size"]
    weights = networks.get_weights(network, "random" if run.settings["init"] == "random" else "imagenet")
    features = probe.pooled(whole, network, size, weights, run.seed)
    assigned = splits.assign(whole, "strict", run.seed, split_strategy=choices["split_strategy"])
    train, val, test = (assigned[assigned["split"] == split] for split in ("train", "val", "test"))
    inverted = corrupt(images.load_pixels(whole, size)[test.index], "inversion", 1)
    judged = [
        (part.assign(group=f"{split}, " + part["label"].map({0: "normal", 1: "pneumonia"})), features[part.index])
        for split, part in (("validation", val), ("test", test))
    ]
    judged.append((test.assign(group="test, inverted"), probe.describe(frozen, inverted)))
    for other in others:
        there = manifest.load(other)
        found = probe.describe(frozen, images.load_pixels(there, size))
        judged.append((there.assign(group=catalog.find(other).name), found))
    usual = features[train.index]
    table = pd.concat([part.assign(ood_score=mahalanobis(usual, found)) for part, found in judged])
    table = table[["group", "image_id", "patient", "label", "ood_score"]].reset_index(drop=True)
    with atomic(paths.REPORTS / name / "tables" / "ood_scores.csv") as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")
    return table


def mahalanobis(training: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Distance `(m,)` of features `(m, k)` from the training images' `(n, k)`, 0 or more.

    In their first 50 principal components, or fewer. Lee et al. 2018, without classes.
    """
    components = PCA(min(50, *training.shape), random_state=0).fit(training)
    spread = LedoitWolf().fit(components.transform(training))
    return np.sqrt(spread.mahalanobis(components.transform(features)))


def ood_flagged(table: pd.DataFrame) -> pd.DataFrame:
    """Share of images of `ood_scores` above the limit that flags 5% of validation.

    One row a group: `group, images, flagged, low, high, limit`, and `auc, auc_low, auc_high`: how well the OOD score
    separates the group from validation.
    """
    usual = table[table["group"].str.startswith("validation")]
    limit, rows = float(usual["ood_score"].quantile(0.95)), []
    for group, part in table.groupby("group", sort=False):
        above = (part["ood_score"] > limit).to_numpy()
        share, low, high = share_interval(above, part["patient"].to_numpy())
        row = {"group": group, "images": len(part), "flagged": share, "low": low, "high": high}
        found = (np.nan, np.nan, np.nan)
        if not str(group).startswith("validation"):
            both = pd.concat([usual.assign(other=0), part.assign(other=1)])
            # Another hospital may give its patients the same names.
            patients = (both["other"].astype(str) + both["patient"]).to_numpy()
            found = metrics.auc_interval(both["other"].to_numpy(), both["ood_score"].to_numpy(), patients)
        rows.append(row | {"limit": limit} | dict(zip(("auc", "auc_low", "auc_high"), found, strict=True)))
    return pd.DataFrame(rows)
