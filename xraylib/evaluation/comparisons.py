"""Comparisons: paired tests of recipes, protocols, thresholds, runs, claims, subgroups, shortcuts."""

from collections.abc import Iterable, Mapping
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.special import expit, logit
from scipy.stats import chi2, norm, ttest_1samp
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from statsmodels.stats.multitest import multipletests

from xraylib.datasets import audit
from xraylib.datasets.splits import PROTOCOLS
from xraylib.errors import InvalidDataError
from xraylib.evaluation import metrics
from xraylib.evaluation.resampling import Z, delong, delong_interval, two_level
from xraylib.training.thresholds import RULES, threshold, thresholds, validation_split

PAIRED_COLUMNS = (
    *("a", "b", "n", "auc_difference", "low", "high", "p_auc", "p_auc_holm", "over"),
    *("patients_low", "patients_high", "p_patients"),
    *("only_a_right", "only_b_right", "p_mcnemar", "p_mcnemar_holm"),
)
COMPARED = ("tiny-cnn-28", "scratch-cnn", "mobilenetv2-frozen")
# Five evaluations of one network: name, protocol, split, threshold.
COMPARISONS = (
    ("image-level random split", "random-per-image", "test", 0.5),
    ("image-level validation", "per-image-validation", "val", 0.5),
    ("patient-grouped validation", "strict", "val", 0.5),
    ("official test, threshold 0.5", "strict", "test", 0.5),
    ("official test, threshold from validation", "strict", "test", "frozen"),
)
# What the names of Kermany's normals begin with.
SERIES = {"IM-": "normal, series IM-", "NORMAL2-": "normal, series NORMAL2-"}


def paired_tests(scores: pd.DataFrame) -> pd.DataFrame:
    """Compare every pair of recipes of one protocol on the same test: one row a pair, `PAIRED_COLUMNS`.

    The difference of the mean AUC over runs, a minus b, with the interval over runs and patients and its p; `over` is
    "patients" where a side has fewer than `metrics.MIN_RUNS`. Beside them DeLong's interval and p over patients alone.
    Then how many images only a or only b classifies correctly, by the majority of its runs (pneumonia where they are
    halved), with McNemar's p over patients. `_holm`: with Holm's correction over all pairs.
    """
    names = list(dict.fromkeys(scores["recipe"]))
    own = {name: _for_pairs(scores[scores["recipe"] == name]) for name in names}
    rows = []
    for a, b in combinations(names, 2):
        about, one, right = own[a]
        other_about, other, also_right = own[b]
        if not about.equals(other_about):
            raise InvalidDataError(
                f"{b} and {a} were tested on different images. Fix: train both on one data set."
            )
        scored = np.concatenate([one, other])
        aucs, covariance = delong(about["label"].to_numpy(), scored, about["patient"].to_numpy())
        contrast = np.r_[np.full(len(one), 1 / len(one)), np.full(len(other), -1 / len(other))]
        difference, variance = float(contrast @ aucs), contrast @ covariance @ contrast
        if np.isnan(variance):
            raise InvalidDataError(
                f"{a} and {b}: a class has one patient only. Fix: compare on more patients."
            )
        spread = float(np.sqrt(max(0.0, variance)))
        half = Z * spread
        if over := min(len(one), len(other)) >= metrics.MIN_RUNS:
            half = max(half, two_level(aucs, covariance, second=len(other)))
        row: dict[str, object] = {"a": a, "b": b, "n": len(about), "auc_difference": difference}
        row |= {
            "low": difference - half,
            "high": difference + half,
            "p_auc": _p(difference, half / Z),
        }
        row |= {
            "over": "runs and patients" if over else "patients",
            "p_patients": _p(difference, spread),
        }
        row |= {"patients_low": difference - Z * spread, "patients_high": difference + Z * spread}
        only = right.astype(int) - also_right.astype(int)
        row |= {"only_a_right": int((only == 1).sum()), "only_b_right": int((only == -1).sum())}
        rows.append(row | {"p_mcnemar": _mcnemar(only, about["patient"])})
    table = pd.DataFrame(rows, columns=list(PAIRED_COLUMNS))
    for p_value in ("p_auc", "p_mcnemar") if rows else ():
        table[f"{p_value}_holm"] = multipletests(table[p_value], method="holm")[1]
    return table


def _p(difference: float, spread: float) -> float:
    # What rounding leaves of two equal recipes is no difference.
    return (
        float(2 * norm.sf(abs(difference) / spread))
        if spread > 1e-9
        else float(abs(difference) < 1e-9)
    )


def differences_by_run(scores: pd.DataFrame, base: str, metric: str = "auc") -> pd.DataFrame:
    """Test recipes against `base` with the run as the unit: seeds of one number drew the same images.

    `recipe, metric, difference` (recipe minus base, mean over runs)`, low, high, p` (paired t)`, p_holm, runs`.
    """
    values = {
        name: by_run(scores, [name]).set_index("seed")[metric]
        for name in dict.fromkeys(scores["recipe"])
    }
    rows = []
    for name in [name for name in values if name != base]:
        paired = (values[name] - values[base]).dropna()
        found = ttest_1samp(paired, 0.0)
        low, high = found.confidence_interval(0.95)
        row = {
            "recipe": name,
            "metric": metric,
            "difference": paired.mean(),
            "low": low,
            "high": high,
        }
        rows.append(row | {"p": found.pvalue, "runs": len(paired)})
    table = pd.DataFrame(rows)
    return table.assign(p_holm=multipletests(table["p"], method="holm")[1]) if rows else table


def _for_pairs(part: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray, pd.Series]:
    """Label and patient of each image, the scores `(seeds, n)`, and which images are classified correctly."""
    own = part[part["split"] == "test"].sort_values(["image_id", "seed"])
    about = own.drop_duplicates("image_id").set_index("image_id")[["label", "patient"]]
    by_seed = own.pivot(index="image_id", columns="seed", values="score")
    if by_seed.isna().any().any():
        name = part["recipe"].iloc[0]
        raise InvalidDataError(
            f"seeds of {name} were tested on different images. Fix: compare `strict` runs."
        )
    classified = (own["score"] >= own["threshold"]).groupby(own["image_id"]).mean() >= 0.5
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

    `recipe, comparison, protocol, split, rule, seeds, n` (images a seed), then accuracy, sensitivity and specificity
    with intervals: `accuracy, accuracy_low, accuracy_high, …`.
    """
    rows = []
    for recipe in recipes:
        for comparison, protocol, split, rule in COMPARISONS:
            part = scores[(scores["recipe"] == recipe) & (scores["protocol"] == protocol)]
            own = part[part["split"] == split]
            if own.empty:
                continue
            seeds = own["seed"].nunique()
            row: dict[str, object] = {
                "recipe": recipe,
                "comparison": comparison,
                "protocol": protocol,
            }
            row |= {"split": split, "rule": str(rule), "seeds": seeds, "n": round(len(own) / seeds)}
            found = metrics.evaluate(part, split=split, rule=rule, ranking=False)
            rows.append(row | metrics.ends(found, "accuracy", "sensitivity", "specificity"))
    return pd.DataFrame(rows)


def operating_points(scores: pd.DataFrame) -> pd.DataFrame:
    """What each of `RULES` for a threshold, applied to validation, gives on validation and on the test.

    Of one protocol: `recipe, rule, threshold, threshold_low, threshold_high` (means over runs; 95% of resamples of the
    validation's patients)`, val_sensitivity, val_specificity` (split-half: the threshold is chosen on one half of the
    patients and judged on the other)`, then on the test sensitivity, specificity and accuracy with intervals.
    """
    rows = []
    for recipe, part in scores.groupby("recipe", sort=False):
        for rule in RULES:
            test = metrics.evaluate(part, rule=rule, ranking=False)
            row: dict[str, object] = {"recipe": recipe, "rule": str(rule)}
            row |= {"threshold": thresholds(part, rule).mean()} | _on_validation(part, rule)
            rows.append(row | metrics.ends(test, "sensitivity", "specificity", "accuracy"))
    return pd.DataFrame(rows)


def _on_validation(scores: pd.DataFrame, rule: str | float, times: int = 25) -> dict[str, float]:
    """Uncertainty of a rule's threshold, and what it finds on patients that did not choose it."""
    split, rng, found = validation_split(scores), np.random.default_rng(0), []
    for _, val in scores[scores["split"] == split].groupby("seed"):
        names, own = np.unique(val["patient"], return_inverse=True)
        labels, score, halves = val["label"].to_numpy(), val["score"].to_numpy(), []
        cuts = np.full(times, rule) if not isinstance(rule, str) else np.empty(times)
        for i in range(times):
            if isinstance(rule, str):
                drawn = np.repeat(
                    np.arange(len(val)),
                    rng.multinomial(len(names), [1 / len(names)] * len(names))[own],
                )
                cuts[i] = (
                    threshold(labels[drawn], score[drawn], rule)
                    if len(set(labels[drawn])) > 1
                    else np.nan
                )
            first = (rng.permutation(len(names)) < len(names) / 2)[own]
            if min(len(set(labels[first])), len(set(labels[~first]))) == 2:
                positive = score[~first] >= threshold(labels[first], score[first], rule)
                truth = labels[~first] == 1
                halves.append((positive[truth].mean(), 1 - positive[~truth].mean()))
        found.append(
            (*np.nanpercentile(cuts, [2.5, 97.5]), *np.mean(halves or [(np.nan, np.nan)], axis=0))
        )
    columns = ("threshold_low", "threshold_high", "val_sensitivity", "val_specificity")
    return dict(zip(columns, np.mean(found, axis=0).tolist(), strict=True))


def by_run(scores: pd.DataFrame, recipes: Iterable[str], protocol: str = "strict") -> pd.DataFrame:
    """Metrics of every single run (seed) of some recipes, at a threshold of 0.5.

    `recipe, seed, n_val, n_test, val_accuracy` (what a README would state)`, balanced_accuracy, accuracy, sensitivity,
    specificity, auc`, all but the first of these on the test.
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


def ensembles(scores: pd.DataFrame) -> pd.DataFrame:
    """Evaluate the runs of each recipe as one: strict runs that share a test, two or more.

    Each run's log odds count from those of its own frozen threshold, since each validated on other patients; their mean
    classifies as pneumonia from 0 on. `recipe, members, n, auc, accuracy, sensitivity, specificity`, each with its
    `_low` and `_high` over patients.
    """
    rows = []
    test = scores[(scores["protocol"] == "strict") & (scores["split"] == "test")]
    for recipe, part in test.groupby("recipe", sort=False):
        if (members := part["seed"].nunique()) < 2 or part["score"].nunique() < 2:
            continue
        score, threshold = (
            logit(part[name].clip(1e-7, 1 - 1e-7)) for name in ("score", "threshold")
        )
        odds = (score - threshold).groupby(part["image_id"]).mean()
        whole = part.drop_duplicates("image_id").assign(threshold=0.5, seed=0)
        found = metrics.evaluate(whole.assign(score=expit(whole["image_id"].map(odds))))
        row: dict[str, object] = {"recipe": recipe, "members": members, "n": len(whole)}
        rows.append(row | metrics.ends(found, "auc", "accuracy", "sensitivity", "specificity"))
    return pd.DataFrame(rows)


def subgroups(scores: pd.DataFrame, pixels: pd.Series | None = None) -> pd.DataFrame:
    """Evaluate the test images of one recipe and protocol by kind, naming series and size.

    `recipe, subgroup, images, patients, right` (sensitivity or specificity)`, right_low, right_high, auc, auc_low,
    auc_high` (against all of the other class): means over seeds with intervals. `pixels`: width times height by
    `image_id`; sizes are divided at their median.
    """
    test, rows = scores[scores["split"] == "test"], []
    for subgroup, names in _groups(test, pixels).items():
        mine = test[test["image_id"].isin(names)]
        label = int(mine["label"].iloc[0])
        found = metrics.evaluate(pd.concat([mine, test[test["label"] != label]]), rule=0.5)
        row = {"recipe": scores["recipe"].iloc[0], "subgroup": subgroup} | _right(mine, "frozen")
        rows.append(row | metrics.ends(found, "auc"))
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
        for name, inside in (
            ("smaller", sizes <= sizes.median()),
            ("larger", sizes > sizes.median()),
        ):
            found[f"normal, {name} image"] = inside & ~positive
            found[f"pneumonia, {name} image"] = inside & positive
    return {name: about.loc[inside, "image_id"] for name, inside in found.items() if inside.any()}


def _right(part: pd.DataFrame, rule: str | float) -> dict[str, object]:
    """Images and patients of one class, and the share classified correctly with its interval."""
    counts: dict[str, object] = {
        "images": part["image_id"].nunique(),
        "patients": part["patient"].nunique(),
    }
    metric = "sensitivity" if part["label"].iloc[0] else "specificity"
    found = metrics.evaluate(part, rule=rule, ranking=False)
    return counts | metrics.ends(found.rename({metric: "right"}), "right")


def shortcut_baselines(manifest: pd.DataFrame, pixels: np.ndarray) -> pd.DataFrame:
    """AUC of single-feature baselines, and of linear models that see the border only (`audit.BORDERS`).

    `pixels` are uint8 `(n, size, size, 1)` of the manifest's rows; 64 pixels are plenty. Direction and model come from
    the training images (all that is not test); a model's own training value is out of fold, by patient. `feature,
    split` (train or test)`, n, auc, low, high`: DeLong's interval over patients. Where the data set has a list of
    original files, their features follow, of the training files that it holds.
    """
    values = audit.single_features(manifest, pixels)
    test = (manifest["split"] == "test").to_numpy()
    labels, patients = manifest["label"].to_numpy(), manifest["patient"].to_numpy()
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1e-2, max_iter=1000))
    folds = StratifiedGroupKFold(n_splits=5, shuffle=True, random_state=0)
    for share in audit.BORDERS:
        border = pixels[:, audit.border_mask(pixels.shape[1], share)].reshape(
            len(pixels), -1
        ) / np.float32(255)
        seen = {"X": border[~test], "y": labels[~test]}
        scores = np.empty(len(pixels))
        held_out = cross_val_predict(
            model, **seen, groups=patients[~test], cv=folds, method="predict_proba"
        )
        scores[~test], scores[test] = (
            held_out[:, 1],
            model.fit(**seen).predict_proba(border[test])[:, 1],
        )
        values[f"border of 1/{round(1 / share)}, linear model"] = scores
    rows = _ranked(values, labels, patients, {"train": ~test, "test": test})
    if (files := audit.originals(manifest.attrs["dataset"])) is not None:
        found = audit.file_features(files).add_suffix(", original file")
        own = {"train": np.ones(len(files), bool)}
        rows += _ranked(found, files["label"].to_numpy(), files["patient"].to_numpy(), own)
    return pd.DataFrame(rows)


def _ranked(
    values: pd.DataFrame, labels: np.ndarray, patients: np.ndarray, splits: Mapping[str, np.ndarray]
) -> list[dict[str, object]]:
    """Each feature's AUC by split, its direction from the first."""
    rows: list[dict[str, object]] = []
    first = next(iter(splits.values()))
    for feature in values:
        column = values[feature].to_numpy(dtype=float)[None]
        if delong_interval(labels[first], column[:, first], patients[first])[0] < 0.5:
            column = -column
        for split, own in splits.items():
            auc, low, high = delong_interval(labels[own], column[:, own], patients[own])
            row: dict[str, object] = {"feature": feature, "split": split, "n": int(own.sum())}
            rows.append(row | {"auc": auc, "low": low, "high": high})
    return rows
