"""Comparisons: paired tests of recipes, protocols, thresholds, runs, claims, subgroups, shortcuts."""

from collections.abc import Iterable, Mapping
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.stats import chi2, norm
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from xraylib.datasets import audit
from xraylib.datasets.splits import PROTOCOLS
from xraylib.evaluation import metrics
from xraylib.evaluation.resampling import delong, delong_interval, share_interval
from xraylib.storage import DataInvalid
from xraylib.training.recipes import RECIPES, Recipe
from xraylib.training.thresholds import RULES, thresholds

PAIRED_COLUMNS = (
    *("a", "b", "n", "auc_difference", "low", "high", "p_auc", "p_auc_holm"),
    *("only_a_right", "only_b_right", "p_mcnemar", "p_mcnemar_holm"),
)
# The recipes of the protocol comparison, and the split strategies that only it needs.
COMPARED = ("tiny-cnn-28", "scratch-cnn", "mobilenetv2-frozen")
OTHER_SPLITS = ("random-per-image", "per-image-validation")
# Five evaluations of one network: name, protocol, split, threshold.
COMPARISONS = (
    ("image-level random split", "random-per-image", "test", 0.5),
    ("image-level validation", "per-image-validation", "val", 0.5),
    ("patient-grouped validation", "strict", "val", 0.5),
    ("official test, threshold 0.5", "strict", "test", 0.5),
    ("official test, threshold from validation", "strict", "test", "frozen"),
)
CLAIMS = (
    *("recipe", "metric", "claim", "stored_output", "published", "published_low", "published_high"),
    *("strict", "strict_low", "strict_high", "claim_low", "claim_high", "reproduced"),
)
# What the names of Kermany's normals begin with.
SERIES = {"IM-": "normal, series IM-", "NORMAL2-": "normal, series NORMAL2-"}


def paired_tests(scores: pd.DataFrame, *, rule: str | float = "frozen") -> pd.DataFrame:
    """Compare every pair of recipes of one protocol on the same test: one row a pair, `PAIRED_COLUMNS`.

    The difference of the mean AUC over seeds, a minus b, with DeLong's 95% interval over patients and p; how
    many images only a or only b classifies correctly, by the majority of its seeds (pneumonia where they are
    halved), with McNemar's p over patients; each p also with Holm's correction over all pairs. The tests ask
    whether other patients would order the two alike, not whether other seeds would.
    """
    names = list(dict.fromkeys(scores["recipe"]))
    own = {name: _for_pairs(scores[scores["recipe"] == name], rule) for name in names}
    rows = []
    for a, b in combinations(names, 2):
        about, one, right = own[a]
        other_about, other, also_right = own[b]
        if not about.equals(other_about):
            raise DataInvalid(
                f"{b} and {a} were tested on different images. Fix: train both on one data set."
            )
        scored = np.concatenate([one, other])
        aucs, covariance = delong(about["label"].to_numpy(), scored, about["patient"].to_numpy())
        contrast = np.r_[np.full(len(one), 1 / len(one)), np.full(len(other), -1 / len(other))]
        difference, variance = float(contrast @ aucs), contrast @ covariance @ contrast
        if np.isnan(variance):
            raise DataInvalid(f"{a} and {b}: a class has one patient only. Fix: compare on more patients.")
        spread = float(np.sqrt(max(0.0, variance)))
        # What rounding leaves of two equal recipes is no difference.
        p = 2 * norm.sf(abs(difference) / spread) if spread > 1e-9 else float(abs(difference) < 1e-9)
        row: dict[str, object] = {"a": a, "b": b, "n": len(about), "auc_difference": difference, "p_auc": p}
        row |= {"low": difference - 1.959964 * spread, "high": difference + 1.959964 * spread}
        only = right.astype(int) - also_right.astype(int)
        row |= {"only_a_right": int((only == 1).sum()), "only_b_right": int((only == -1).sum())}
        rows.append(row | {"p_mcnemar": _mcnemar(only, about["patient"])})
    table = pd.DataFrame(rows, columns=list(PAIRED_COLUMNS))
    for p_value in ("p_auc", "p_mcnemar") if rows else ():
        table[f"{p_value}_holm"] = multipletests(table[p_value], method="holm")[1]
    return table


def _for_pairs(part: pd.DataFrame, rule: str | float) -> tuple[pd.DataFrame, np.ndarray, pd.Series]:
    """Label and patient of each image, the scores `(seeds, n)`, and which images are classified correctly."""
    points = thresholds(part, rule)
    own = part[part["split"] == "test"].sort_values(["image_id", "seed"])
    about = own.drop_duplicates("image_id").set_index("image_id")[["label", "patient"]]
    by_seed = own.pivot(index="image_id", columns="seed", values="score")
    if by_seed.isna().any().any():
        name = part["recipe"].iloc[0]
        raise DataInvalid(f"seeds of {name} were tested on different images. Fix: compare `strict` runs.")
    classified = (own["score"] >= own["seed"].map(points)).groupby(own["image_id"]).mean() >= 0.5
    return about, by_seed.T.to_numpy(), classified.eq(about["label"] == 1)


def _mcnemar(differences: pd.Series, patients: pd.Series) -> float:
    """McNemar's test with differences summed within patients (Durkalski et al. 2003)."""
    sums = differences.groupby(patients).sum().to_numpy(dtype=float)
    spread = float(np.square(sums).sum())
    return float(chi2.sf(sums.sum() ** 2 / spread, 1)) if spread else 1.0


def of_protocols(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores of `published` and `strict`, without those of other split strategies."""
    return scores[scores["protocol"].isin(PROTOCOLS)]


def protocol_comparison(scores: pd.DataFrame, recipes: Iterable[str] = COMPARED) -> pd.DataFrame:
    """The five evaluations `COMPARISONS` of one network, for each of some recipes; only what was run.

    `recipe, comparison, protocol, split, rule, seeds, n` (images a seed), then accuracy, sensitivity and
    specificity with intervals: `accuracy, accuracy_low, accuracy_high, …`.
    """
    rows = []
    for recipe in recipes:
        for comparison, protocol, split, rule in COMPARISONS:
            part = scores[(scores["recipe"] == recipe) & (scores["protocol"] == protocol)]
            own = part[part["split"] == split]
            if own.empty:
                continue
            seeds = own["seed"].nunique()
            row: dict[str, object] = {"recipe": recipe, "comparison": comparison, "protocol": protocol}
            row |= {"split": split, "rule": str(rule), "seeds": seeds, "n": round(len(own) / seeds)}
            found = metrics.evaluate(part, split=split, rule=rule, ranking=False)
            rows.append(row | _columns(found, "accuracy", "sensitivity", "specificity"))
    return pd.DataFrame(rows)


def operating_points(scores: pd.DataFrame) -> pd.DataFrame:
    """What each of `RULES` for a threshold, applied to validation, gives on validation and on the test.

    Of one protocol: `recipe, rule, threshold` (mean over seeds)`, val_sensitivity, val_specificity`, then on
    the test sensitivity, specificity and accuracy with intervals.
    """
    rows = []
    for recipe, part in scores.groupby("recipe", sort=False):
        for rule in RULES:
            val, test = (
                metrics.evaluate(part, split=split, rule=rule, ranking=False) for split in ("val", "test")
            )
            threshold = thresholds(part, rule).mean()
            row: dict[str, object] = {"recipe": recipe, "rule": str(rule), "threshold": threshold}
            row |= {f"val_{metric}": val.loc[metric, "value"] for metric in ("sensitivity", "specificity")}
            rows.append(row | _columns(test, "sensitivity", "specificity", "accuracy"))
    return pd.DataFrame(rows)


def _columns(found: pd.DataFrame, *names: str) -> dict[str, object]:
    """Rows of `metrics.evaluate` as `metric, metric_low, metric_high`."""
    ends = (("value", ""), ("low", "_low"), ("high", "_high"))
    return {f"{name}{end}": found.loc[name, column] for name in names for column, end in ends}


def by_run(scores: pd.DataFrame, recipes: Iterable[str], protocol: str = "strict") -> pd.DataFrame:
    """Metrics of every single run (seed) of some recipes, at a threshold of 0.5.

    `recipe, seed, n_val, n_test, val_accuracy` (what a README would state)`, balanced_accuracy, accuracy,
    sensitivity, specificity, auc`, all but the first of these on the test.
    """
    rows = []
    for recipe in recipes:
        part = scores[(scores["recipe"] == recipe) & (scores["protocol"] == protocol)]
        for seed, one in part.groupby("seed"):
            val, test = (one[one["split"] == split] for split in ("val", "test"))
            given = [(own["label"].to_numpy(), own["score"].to_numpy()) for own in (val, test)]
            on_val, on_test = (metrics.point_metrics(*each, 0.5) for each in given)
            row = {"recipe": recipe, "seed": seed, "n_val": len(val), "n_test": len(test)}
            row |= {"val_accuracy": float(on_val["accuracy"][0])}
            names = ("balanced_accuracy", "accuracy", "sensitivity", "specificity", "auc")
            rows.append(row | {name: float(on_test[name][0]) for name in names})
    return pd.DataFrame(rows)


def claims(scores: pd.DataFrame, *, same_data: bool = True) -> pd.DataFrame:
    """Set each published value beside what its system gives here: one row a system and metric, `CLAIMS`.

    `claim` is a share or a word, `stored_output` what the system's own notebook shows; the values under
    `published` and `strict` are NaN where not run. `claim_low, claim_high`: the claim's own 95% interval
    (Wilson, of the images it was measured on; accuracy and sensitivity only). `reproduced` is `yes` where it
    holds the value under `published`, or that value's interval the claim; empty where either is no number,
    and unless `same_data`: scores of the radiographs that the claims are about.
    """
    rows = []
    for name, recipe in RECIPES.items():
        own = of_protocols(scores[scores["recipe"] == name])
        named = [metric for metric in metrics.METRICS if metric in {**recipe.claims, **recipe.stored_output}]
        if own.empty or not named:
            continue
        ranking = bool({"auc", "average_precision"}.intersection(named))
        found = {str(p): metrics.evaluate(part, ranking=ranking) for p, part in own.groupby("protocol")}
        test = own[own["split"] == "test"]
        # The prevalence of the images tested as published, or else of those there are.
        labels = test.loc[test["protocol"] == ("published" if "published" in found else "strict"), "label"]
        rows += [_claim(recipe, metric, found, float(labels.mean())) for metric in named]
    table = pd.DataFrame(rows, columns=list(CLAIMS))
    return table if same_data else table.assign(reproduced="")


def _claim(
    recipe: Recipe, metric: str, found: Mapping[str, pd.DataFrame], prevalence: float
) -> dict[str, object]:
    claim = recipe.claims.get(metric, np.nan)
    share = np.nan if isinstance(claim, str) else claim
    images = round({"accuracy": 1.0, "sensitivity": prevalence}.get(metric, 0.0) * recipe.claimed_on)
    own_low, own_high = np.nan, np.nan
    if images and share == share:
        own_low, own_high = proportion_confint(round(share * images), images, method="wilson")
    row: dict[str, object] = {"recipe": recipe.name, "metric": metric, "claim": claim, "reproduced": ""}
    row["stored_output"] = recipe.stored_output.get(metric, np.nan)
    row |= {"claim_low": own_low, "claim_high": own_high}
    for protocol in found:
        value, low, high = found[protocol].loc[metric, ["value", "low", "high"]].to_numpy(dtype=float)
        row |= {protocol: value, f"{protocol}_low": low, f"{protocol}_high": high}
        if protocol == "published" and low <= high and share == share:
            row["reproduced"] = "yes" if low <= share <= high or own_low <= value <= own_high else "no"
    return row


def subgroups(scores: pd.DataFrame, pixels: pd.Series | None = None) -> pd.DataFrame:
    """Evaluate the test images of one recipe and protocol by kind, naming series and size.

    `recipe, subgroup, images, patients, right` (sensitivity or specificity)`, right_low, right_high, auc,
    auc_low, auc_high` (against all of the other class): means over seeds with intervals. `pixels`: width
    times height by `image_id`; sizes are divided at their median.
    """
    points = thresholds(scores, "frozen")
    test = scores[scores["split"] == "test"]
    rows = []
    for subgroup, names in _groups(test, pixels).items():
        mine = test[test["image_id"].isin(names)]
        label = int(mine["label"].iloc[0])
        right = ((mine["score"] >= mine["seed"].map(points)) == (label == 1)).astype(bool)
        auc = metrics.evaluate(pd.concat([mine, test[test["label"] != label]]), rule=0.5).loc["auc"]
        row = {"recipe": scores["recipe"].iloc[0], "subgroup": subgroup} | _right(mine.assign(right=right))
        rows.append(row | {"auc": auc["value"], "auc_low": auc["low"], "auc_high": auc["high"]})
    return pd.DataFrame(rows)


def _groups(part: pd.DataFrame, pixels: pd.Series | None) -> dict[str, pd.Series]:
    """Names of the images of each subgroup that there is."""
    about = part.drop_duplicates("image_id").set_index("image_id", drop=False)
    positive = about["label"] == 1
    kinds = sorted(about["kind"].unique())
    found = {f"pneumonia, {kind}": positive & (about["kind"] == kind) for kind in kinds}
    for start, name in SERIES.items():
        found[name] = ~positive & about["image_id"].str.startswith(start)
    sizes = pd.Series(dtype=float) if pixels is None else about["image_id"].map(pixels)
    if sizes.nunique() > 1:
        for name, inside in (("smaller", sizes <= sizes.median()), ("larger", sizes > sizes.median())):
            found[f"normal, {name} image"] = inside & ~positive
            found[f"pneumonia, {name} image"] = inside & positive
    return {name: about.loc[inside, "image_id"] for name, inside in found.items() if inside.any()}


def by_folder(scores: pd.DataFrame) -> pd.DataFrame:
    """Share correctly classified among images that an image-level random split tested, by official folder.

    Of one recipe under `random-per-image` (at a threshold of 0.5) and `strict`, whose test tells the folder:
    `recipe, subgroup` (class and folder)`, images, patients, right, right_low, right_high`, each image by all
    the seeds that tested it.
    """
    random, strict = (scores[scores["protocol"] == name] for name in ("random-per-image", "strict"))
    test = random[random["split"] == "test"]
    test = test.assign(right=(test["score"] >= 0.5) == (test["label"] == 1))
    official = test["image_id"].isin(strict.loc[strict["split"] == "test", "image_id"])
    rows = []
    for folder, inside in (("train", ~official), ("test", official)):
        for label, name in enumerate(("normal", "pneumonia")):
            row = {"recipe": scores["recipe"].iloc[0], "subgroup": f"{name}, from the {folder} folder"}
            rows.append(row | _right(test[inside & (test["label"] == label)]))
    return pd.DataFrame(rows)


def _right(part: pd.DataFrame) -> dict[str, object]:
    """Images, patients, and the share of `right` with its interval."""
    by_image = part.groupby(["patient", "image_id"])["right"].mean().reset_index()
    share = share_interval(by_image["right"].to_numpy(), by_image["patient"].to_numpy())
    counts = {"images": part["image_id"].nunique(), "patients": part["patient"].nunique()}
    return counts | dict(zip(("right", "right_low", "right_high"), share, strict=True))


def shortcut_baselines(manifest: pd.DataFrame, pixels: np.ndarray) -> pd.DataFrame:
    """AUC of single-feature baselines, and of a linear model that sees nothing but the border.

    `pixels` are uint8 `(n, size, size, 1)` of the manifest's rows; 64 pixels are plenty. Direction and model
    come from the training images (all that is not test); the model's own training value is out of fold, by
    patient. `feature, split` (train or test)`, auc, low, high`: DeLong's interval over patients.
    """
    values = audit.single_features(manifest, pixels)
    test = (manifest["split"] == "test").to_numpy()
    labels, patients = manifest["label"].to_numpy(), manifest["patient"].to_numpy()
    border = pixels[:, audit.border_mask(pixels.shape[1])].reshape(len(pixels), -1).astype(np.float32) / 255
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1e-2, max_iter=1000))
    folds = StratifiedGroupKFold(n_splits=5, shuffle=True, random_state=0)
    seen = {"X": border[~test], "y": labels[~test]}
    scores = np.empty(len(pixels))
    out_of_fold = cross_val_predict(model, **seen, groups=patients[~test], cv=folds, method="predict_proba")
    scores[~test], scores[test] = out_of_fold[:, 1], model.fit(**seen).predict_proba(border[test])[:, 1]
    values["border, linear model"] = scores
    rows = []
    for feature in values:
        column = values[feature].to_numpy(dtype=float)[None]
        if delong_interval(labels[~test], column[:, ~test], patients[~test])[0] < 0.5:
            column = -column
        for split, own in (("train", ~test), ("test", test)):
            auc, low, high = delong_interval(labels[own], column[:, own], patients[own])
            rows.append({"feature": feature, "split": split, "auc": auc, "low": low, "high": high})
    return pd.DataFrame(rows)
