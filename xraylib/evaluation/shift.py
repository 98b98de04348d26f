"""Trained models on other images: external validation, corruptions, and out-of-distribution (OOD) scores.

No training, tuning or threshold here: each run is scored as it stands, with its frozen threshold.
"""

import logging
import os
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.stats import norm
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from tqdm.auto import tqdm

from xraylib import paths
from xraylib.datasets import catalog, images, manifest, splits
from xraylib.datasets.corruptions import CORRUPTIONS, corrupt
from xraylib.evaluation import metrics
from xraylib.evaluation.resampling import delong, share_interval
from xraylib.evaluation.scores import check
from xraylib.storage import DataInvalid, NotFound, atomic
from xraylib.training import runs

# Images are corrupted at this size, for which the parameters were set.
SIZE = 224
ABOUT = ("recipe", "model", "seed", "threshold", "image_id", "patient", "label")
CLEAN = "none 0"
LOSSES = (
    *("recipe", "seed", "corruption", "severity", "n", "auc", "delta_auc", "delta_auc_low", "delta_auc_high"),
    *("balanced_error", "delta_balanced_error", "delta_balanced_error_low", "delta_balanced_error_high"),
)
# Whose frozen backbone gives the features of the OOD scores.
OOD_RECIPE = "mobilenetv2-frozen"


def _strict_runs(recipe: str, dataset: str) -> list[runs.Run]:
    if found := runs.find(dataset, recipe, "strict"):
        return found
    raise NotFound(
        f"no finished run of {recipe} on {dataset}. Fix: train one with "
        f"`python -m xraylib train {recipe} --dataset {dataset}`."
    )


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

    `recipe, metric, test, test_low, test_high, external, external_low, external_high`, and `gap, gap_low,
    gap_high`: test minus external, its interval put together from those of the two, which share no patient
    (Zou and Donner 2008).
    """
    rows = []
    for recipe, there in external.groupby("recipe", sort=False):
        here = scores[(scores["recipe"] == recipe) & (scores["protocol"] == "strict")]
        there = there.assign(threshold=there["seed"].map(here.groupby("seed")["threshold"].first()))
        if there["threshold"].isna().any():
            raise DataInvalid(f"external scores of {recipe} are of other runs. Fix: run `external` again.")
        test, outside = metrics.evaluate(here), metrics.evaluate(there, split="external")
        for metric in ("auc", "accuracy", "balanced_accuracy", "sensitivity", "specificity"):
            row: dict[str, object] = {"recipe": recipe, "metric": metric}
            ends = []
            for split, found in (("test", test), ("external", outside)):
                value, low, high = found.loc[metric, ["value", "low", "high"]].to_numpy(dtype=float)
                row |= {split: value, f"{split}_low": low, f"{split}_high": high}
                ends.append((value, low, high))
            (a, a_low, a_high), (b, b_low, b_high) = ends
            row |= {"gap": a - b, "gap_low": a - b - np.hypot(a - a_low, b_high - b)}
            rows.append(row | {"gap_high": a - b + np.hypot(a_high - a, b - b_low)})
    return pd.DataFrame(rows)


def score_corruptions(recipe: str, dataset: str) -> pd.DataFrame:
    """Score the official test after every corruption and severity, by the first strict run of a recipe.

    One row an image: `ABOUT`, `none 0` for the run's own score of the image as it is, and a column a
    corruption and severity, such as `jpeg 3`; written to `corruptions/<recipe>.csv` of the report. Scoring
    that was interrupted goes on after the last column there.
    """
    name, whole = catalog.find(dataset).name, manifest.load(dataset)
    run = _strict_runs(recipe, name)[0]
    predictor, test = run.predictor(), whole[whole["split"] == "test"]
    own = run.scores[run.scores["split"] == "test"].set_index("image_id")["score"]
    if set(own.index) != set(test["image_id"]):
        raise DataInvalid(f"{run.folder} was tested on other images than {name} holds. Fix: train it again.")
    file = paths.REPORTS / name / "corruptions" / f"{recipe}.csv"
    done = test[["image_id", "patient", "label"]].reset_index(drop=True).assign(recipe=recipe, seed=run.seed)
    model = run.settings["model_sha256"][:12]
    done = done.assign(model=model, threshold=predictor.threshold)[list(ABOUT)]
    done[CLEAN] = done["image_id"].map(own)
    if file.exists():
        known = _read(file)
        other = any(known[each].tolist() != done[each].tolist() for each in ("model", "image_id", "label"))
        if other and name in runs.COMMITTED:
            raise DataInvalid(f"{file} is of another run or of other images. Fix: delete it.")
        if other:
            logging.getLogger(__name__).warning("%s is of another run or of other images: scored anew", file)
            known = known[[]]
        done = pd.concat([done, known.drop(columns=[*ABOUT, CLEAN], errors="ignore")], axis=1)
    films = images.load_pixels(whole, SIZE)[test.index]
    todo = [(each, i + 1) for each, (_, steps) in CORRUPTIONS.items() for i in range(len(steps))]
    todo = [(each, severity) for each, severity in todo if f"{each} {severity}" not in done]
    for each, severity in tqdm(todo, desc=recipe, unit="corruption", disable="TQDM_DISABLE" in os.environ):
        changed = _resized(corrupt(films, each, severity), run.settings["choices"]["size"])
        done[f"{each} {severity}"] = predictor.score(changed)
        with atomic(file) as temporary:
            done.to_csv(temporary, index=False, float_format="%.9g")
    return done


def _resized(films: np.ndarray, size: int) -> np.ndarray:
    """As `images.read_gray` resizes what it reads."""
    if films.shape[1] == size:
        return films
    pictures = (Image.fromarray(film[..., 0]) for film in films)
    small = [p.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0) for p in pictures]
    return np.stack([np.asarray(film) for film in small])[..., None]


def load_corruptions(dataset: str) -> pd.DataFrame:
    """Return the scores of corrupted images of a report, all recipes, checked."""
    place = paths.REPORTS / dataset / "corruptions"
    files = sorted(place.glob("*.csv"), key=lambda file: runs.rank(file.stem))
    if not files:
        raise NotFound(
            f"nothing in {place}. Fix: `python -m xraylib corruptions RECIPE --dataset {dataset}`."
        )
    table = pd.concat([_read(file) for file in files], ignore_index=True)
    clean = table.assign(protocol="strict", split="test", kind="").rename(columns={CLEAN: "score"})
    check(clean[list(runs.SCORE_COLUMNS)])
    return table


def _read(file: Path) -> pd.DataFrame:
    """Read one recipe's file as text first: hexadecimal digits can look like a number."""
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    if missing := [name for name in (*ABOUT, CLEAN) if name not in table]:
        raise DataInvalid(f"{file} lacks the columns {', '.join(missing)}. Fix: delete it.")
    numbers = table.columns.difference(["recipe", "model", "image_id", "patient"])
    table[numbers] = table[numbers].apply(pd.to_numeric, errors="coerce")
    scores = table[table.columns.difference(list(ABOUT))]
    bad = table[numbers].isna().any(axis=1) | (scores < 0).any(axis=1) | (scores > 1).any(axis=1)
    if bad.any():
        raise DataInvalid(
            f"{file}: {table.loc[bad, 'image_id'].iloc[0]} has a score that is no number in [0, 1] "
            f"({int(bad.sum())} rows). Fix: delete the file and run `corruptions` again."
        )
    return table.astype({"seed": "int64", "label": "int64"})


def corruption_losses(scores: pd.DataFrame, *, averaged: bool = False) -> pd.DataFrame:
    """How much AUC is lost and balanced error gained by each corruption, against the same images untouched.

    `LOSSES`, with DeLong's 95% intervals of paired differences over patients, one row a corruption and
    severity; or, `averaged`, one row a corruption with equal weight on its severities, as MedMNIST-C does,
    whose number is then `severity`. The balanced error is that at the frozen threshold: the AUC of a yes or
    no is its balanced accuracy, so DeLong's covariance holds for it too.
    """
    tables = []
    for (recipe, seed), part in scores.groupby(["recipe", "seed"], sort=False):
        columns = [str(name) for name in part if name not in ABOUT and part[name].notna().any()]
        named = pd.DataFrame([name.rsplit(" ", 1) for name in columns], columns=["corruption", "severity"])
        codes = pd.factorize(named["corruption"])[0] if averaged else np.arange(len(named))
        member = codes == np.arange(codes.max() + 1)[:, None]
        table = named.iloc[member.argmax(axis=1)].astype({"severity": int}).reset_index(drop=True)
        if averaged:
            table["severity"] = member.sum(axis=1)
            steps = table["corruption"].map({name: len(values) for name, (_, values) in CORRUPTIONS.items()})
            if (cut := table["severity"] < steps.fillna(1)).any():
                raise DataInvalid(
                    f"{recipe} was scored on some severities of {table.loc[cut, 'corruption'].iloc[0]} only. "
                    f"Fix: `python -m xraylib corruptions {recipe}`, which goes on where it stopped."
                )
        table = table.assign(recipe=recipe, seed=seed, n=len(part))
        mean = member / member.sum(axis=1, keepdims=True)
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


def ood_scores(dataset: str, others: Collection[str] = ()) -> pd.DataFrame:
    """OOD scores: how unlike the training images others are, by `mahalanobis` on `OOD_RECIPE`'s features.

    `group, image_id, patient, label, ood_score`, written to `tables/ood_scores.csv` of the report. Groups:
    normals and pneumonias of validation and of the official test, the test inverted, and further data sets
    (names or paths), whole. Training and validation images are those of the recipe's first strict run.
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
        (
            part.assign(group=f"{split}, " + part["label"].map({0: "normal", 1: "pneumonia"})),
            features[part.index],
        )
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

    One row a group: `group, images, flagged, low, high, limit`, and `auc, auc_low, auc_high`: how well the
    OOD score separates the group from validation.
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
