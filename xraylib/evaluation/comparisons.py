"""Comparisons of recipes, split strategies, thresholds, runs and subgroups; baselines.

Every table has a column `over` that says what its intervals are over: "runs and patients", or
"patients" where there are fewer than `resampling.MIN_RUNS` runs.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import expit
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
from xraylib.evaluation.resampling import (
    MIN_RUNS,
    Z,
    delong,
    delong_interval,
    half_width,
    over,
    resampled_covariance,
    student_quantile,
    two_level,
)
from xraylib.evaluation.scores import log_odds
from xraylib.training.thresholds import RULES, threshold, thresholds, validation_split

PAIRED_COLUMNS = (
    "a",
    "b",
    "n",
    "auc_difference",
    "low",
    "high",
    "p_auc",
    "p_auc_holm",
    "over",
    "family",
    "patients_low",
    "patients_high",
    "p_patients",
    "only_a_right",
    "only_b_right",
    "p_mcnemar",
    "p_mcnemar_holm",
)
# How the twin of a recipe is called that is trained with random framing.
REFRAMED = "-reframed"
COMPARED = ("tiny-cnn-28", "scratch-cnn", "mobilenetv2-frozen")
# Evaluations of one recipe: name, protocol, split, threshold rule.
COMPARISONS: tuple[tuple[str, str, str, str | float], ...] = (
    ("image-level random split", "random-per-image", "test", 0.5),
    ("image-level validation", "per-image-validation", "val", 0.5),
    ("patient-grouped validation", "strict", "val", 0.5),
    ("official test, threshold 0.5", "strict", "test", 0.5),
    ("official test, threshold from validation", "strict", "test", "frozen"),
)
NUMBER_BLOCKS: tuple[tuple[str, str, str, str | float], ...] = (
    ("random-patient validation", "strict", "val", "frozen"),
    ("random-patient validation", "strict", "val", 0.5),
    ("block validation", "number-blocks", "val", "frozen"),
    ("block validation", "number-blocks", "val", 0.5),
    ("official test, validated on random patients", "strict", "test", "frozen"),
    ("official test, validated on random patients", "strict", "test", 0.5),
    ("official test, validated on a block", "number-blocks", "test", "frozen"),
    ("official test, validated on a block", "number-blocks", "test", 0.5),
)
# The cells of `two_by_two` by the ending of the recipe's name, and the AUC contrasts between them.
CELLS = {
    "neither": "",
    "selection only": f"{REFRAMED}-validation",
    "augmentation only": f"{REFRAMED}-training",
    "both": REFRAMED,
}
EFFECTS = {
    "effect of selection": (-0.5, 0.5, -0.5, 0.5),
    "effect of augmentation": (-0.5, -0.5, 0.5, 0.5),
    "interaction": (1.0, -1.0, -1.0, 1.0),
}
EFFECT_COLUMNS = ("effect", "recipe", "runs", "n", "auc", "low", "high", "p", "over")
# What the names of Kermany's normals begin with.
SERIES = {"IM-": "normal, series IM-", "NORMAL2-": "normal, series NORMAL2-"}


@dataclass(frozen=True)
class _Tested:
    """The test of one recipe: label and patient by image, scores `(runs, n)`, what is correct."""

    images: pd.DataFrame
    scores: np.ndarray
    correct: pd.Series


def paired_tests(
    scores: pd.DataFrame,
    pairs: Sequence[tuple[str, str]] | None = None,
    family: str = "pairs asked about",
) -> pd.DataFrame:
    """Compare pairs of recipes on the same test images.

    Parameters
    ----------
    scores : DataFrame
        Of one protocol, from `scores.load`.
    pairs : sequence of (a, b), optional
        The pairs that the question is about; Holm's correction is over these. By default every
        recipe with its re-framed twin.
    family : str
        Name of the given pairs for the column `family`.

    Returns
    -------
    One row per pair with the columns
        a, b, n : the recipes and the number of test images.
        auc_difference, low, high : mean AUC over runs of a minus that of b, with the interval over
            runs and patients, never narrower than over patients.
        p_auc, p_auc_holm : the p that belongs to this interval, and with Holm's correction.
        over : what the interval is over.
        family : which pairs Holm's correction is over, with their number.
        patients_low, patients_high, p_patients : DeLong's interval and p over patients alone.
        only_a_right, only_b_right : images that only a or only b classifies correctly, by the
            majority of its runs (as pneumonia where they are halved).
        p_mcnemar, p_mcnemar_holm : McNemar's p over patients.

    Raises
    ------
    InvalidDataError
        The recipes were tested on different images, or a class has one patient only.
    """
    if pairs is None:
        family = "recipes and their re-framed twins"
        pairs = _reframed_pairs(scores)
    tested = {}
    for name in dict.fromkeys(name for pair in pairs for name in pair):
        tested[name] = _test_of(scores[scores["recipe"] == name], name)
    rows = [_paired_row(a, b, tested[a], tested[b]) for a, b in pairs]
    table = pd.DataFrame(rows, columns=list(PAIRED_COLUMNS))
    table["family"] = f"{family} ({len(rows)})"
    if rows:
        table["p_auc_holm"] = _holm(table["p_auc"])
        table["p_mcnemar_holm"] = _holm(table["p_mcnemar"])
    return table


def _reframed_pairs(scores: pd.DataFrame) -> list[tuple[str, str]]:
    """Every recipe of the table whose re-framed twin is in it as well."""
    names = list(dict.fromkeys(scores["recipe"]))
    return [(name, name + REFRAMED) for name in names if name + REFRAMED in names]


def _holm(p_values: pd.Series) -> np.ndarray:
    """Holm's correction."""
    return multipletests(p_values, method="holm")[1]


def _test_of(part: pd.DataFrame, name: str) -> _Tested:
    """Arrange the test scores of one recipe by image and run."""
    test = part[part["split"] == "test"].sort_values(["image_id", "seed"])
    if test.empty:
        raise InvalidDataError(f"there are no test scores of {name}. Fix: train it first.")
    images = test.drop_duplicates("image_id").set_index("image_id")[["label", "patient"]]
    by_seed = test.pivot(index="image_id", columns="seed", values="score")
    if by_seed.isna().any().any():
        raise InvalidDataError(
            f"seeds of {name} were tested on different images. Fix: compare `strict` runs."
        )
    votes = (test["score"] >= test["threshold"]).groupby(test["image_id"]).mean()
    correct = (votes >= 0.5).eq(images["label"] == 1)
    return _Tested(images, by_seed.T.to_numpy(), correct)


def _paired_row(a: str, b: str, first: _Tested, second: _Tested) -> dict[str, object]:
    """One row of `paired_tests`, without Holm's corrections."""
    images = first.images
    if not images.equals(second.images):
        raise InvalidDataError(
            f"{b} and {a} were tested on different images. Fix: train both on one data set."
        )
    labels = images["label"].to_numpy()
    both = np.concatenate([first.scores, second.scores])
    aucs, covariance = delong(labels, both, images["patient"].to_numpy())
    if np.isnan(covariance).any():
        raise InvalidDataError(
            f"{a} and {b}: a class has one patient only. Fix: compare on more patients."
        )
    runs_a = len(first.scores)
    runs_b = len(second.scores)
    contrast = np.concatenate([np.full(runs_a, 1 / runs_a), np.full(runs_b, -1 / runs_b)])
    difference = float(contrast @ aucs)
    spread = float(np.sqrt(max(0.0, contrast @ covariance @ contrast)))
    half = Z * spread
    if min(runs_a, runs_b) >= MIN_RUNS:
        half = max(half, two_level(aucs, covariance, second=runs_b))
    only = first.correct.astype(int) - second.correct.astype(int)
    return {
        "a": a,
        "b": b,
        "n": len(images),
        "auc_difference": difference,
        "low": difference - half,
        "high": difference + half,
        "p_auc": _p_value(difference, half / Z),
        "over": over(min(runs_a, runs_b)),
        "patients_low": difference - Z * spread,
        "patients_high": difference + Z * spread,
        "p_patients": _p_value(difference, spread),
        "only_a_right": int((only == 1).sum()),
        "only_b_right": int((only == -1).sum()),
        "p_mcnemar": _mcnemar(only, images["patient"]),
    }


def _p_value(difference: float, spread: float) -> float:
    """Two-sided p of a normal difference with a standard error."""
    # What rounding leaves of two equal recipes is no difference.
    if spread <= 1e-9:
        return float(abs(difference) < 1e-9)
    return float(2 * norm.sf(abs(difference) / spread))


def _mcnemar(differences: pd.Series, patients: pd.Series) -> float:
    """McNemar's test with differences summed within patients (Durkalski et al. 2003)."""
    sums = differences.groupby(patients).sum().to_numpy(dtype=float)
    spread = float(np.square(sums).sum())
    return float(chi2.sf(sums.sum() ** 2 / spread, 1)) if spread else 1.0


def differences_by_run(scores: pd.DataFrame, base: str, metric: str = "auc") -> pd.DataFrame:
    """Compare recipes with a base recipe, paired by run: equal seeds were trained on one split.

    Parameters
    ----------
    scores : DataFrame
        Of one protocol.
    base : str
        Recipe that the others are compared with.
    metric : str
        One of `metrics.METRICS`, on the test at a threshold of 0.5.

    Returns
    -------
    One row per other recipe with the columns
        recipe, metric, runs : runs are the seeds that recipe and base share.
        difference, low, high : recipe minus base, mean over runs, with the interval over runs and
            patients (`resampling.half_width`).
        p, p_holm : the p that belongs to this interval, and with Holm's correction.
        over : what the interval is over.
        family : which comparisons Holm's correction is over.
        runs_low, runs_high, p_runs : Student's paired interval and p over runs alone.
    """
    rows = []
    others = [name for name in dict.fromkeys(scores["recipe"]) if name != base]
    for name in others:
        row: dict[str, object] = {"recipe": name, "metric": metric}
        row |= _difference_row(_run_differences(scores, name, base, metric))
        rows.append(row | {"family": f"each recipe against {base} ({len(others)})"})
    table = pd.DataFrame(rows)
    if rows:
        table["p_holm"] = _holm(table["p"])
    return table


def _difference_row(difference: np.ndarray) -> dict[str, object]:
    """Intervals of a mean difference from `(runs, 1 + resamples)`, the first not resampled."""
    by_run = difference[:, 0]
    mean = float(by_run.mean())
    half = half_width(by_run, resampled_covariance(difference[:, 1:]))
    row = {
        "runs": len(by_run),
        "difference": mean,
        "low": mean - half,
        "high": mean + half,
        "p": _p_value(mean, half / Z),
        "p_holm": np.nan,
        "over": over(len(by_run)),
        "runs_low": np.nan,
        "runs_high": np.nan,
        "p_runs": np.nan,
    }
    if len(by_run) > 1:
        test = ttest_1samp(by_run, 0.0)
        row["runs_low"], row["runs_high"] = test.confidence_interval(0.95)
        row["p_runs"] = test.pvalue
    return row


def _run_differences(scores: pd.DataFrame, name: str, base: str, metric: str) -> np.ndarray:
    """Differences of a metric for each shared seed, `(runs, 1 + resamples)`, name minus base."""
    values = []
    seeds = [set(scores.loc[scores["recipe"] == recipe, "seed"]) for recipe in (name, base)]
    shared = scores["seed"].isin(seeds[0] & seeds[1]) & (scores["split"] == "test")
    for recipe in (name, base):
        part = scores[shared & (scores["recipe"] == recipe)]
        if part.empty:
            raise InvalidDataError(
                f"{name} and {base} have no seed in common. Fix: train both with the same seeds."
            )
        runs = metrics.resample(part, rule=0.5, ranking=metric in ("auc", "average_precision"))
        values.append(np.column_stack([runs.values[metric], runs.resampled[metric]]))
    return values[0] - values[1]


def two_by_two(scores: pd.DataFrame, base: str = "tiny-cnn-28") -> pd.DataFrame:
    """Separate the two changes of a re-framed recipe: augmentation, and selection on validation.

    `selection` is the choice of epoch and threshold on re-framed validation. The cells are the
    recipes with the endings `CELLS`. Only seeds that all four share are used.

    Parameters
    ----------
    scores : DataFrame
        Strict scores with the four recipes.
    base : str
        The recipe with neither change.

    Returns
    -------
    One row per cell, then one per contrast `EFFECTS`, with the columns
        effect, recipe : name of the cell or contrast; a contrast has no recipe.
        runs, n : shared runs and test images.
        auc, low, high : mean AUC of the cell with the interval of `metrics.evaluate`, or AUC
            difference of the contrast, paired by seed and image, with the interval over runs and
            patients. A main effect is the mean of the effects with and without the other change;
            the interaction is what both give beyond the sum of either alone.
        p : the p that belongs to a contrast's interval.
        over : what the interval is over.
    Empty where a cell was not run.
    """
    recipes = {effect: base + ending for effect, ending in CELLS.items()}
    strict = scores[scores["protocol"] == "strict"]
    strict = strict[strict["recipe"].isin(recipes.values())]
    cells_of_seed = strict.groupby("seed")["recipe"].transform("nunique")
    strict = strict[cells_of_seed == len(recipes)]
    if strict.empty:
        return pd.DataFrame(columns=list(EFFECT_COLUMNS))
    rows: list[dict[str, object]] = []
    tested: list[_Tested] = []
    for effect, recipe in recipes.items():
        part = strict[strict["recipe"] == recipe]
        tested.append(_test_of(part, recipe))
        if not tested[-1].images.equals(tested[0].images):
            raise InvalidDataError(
                f"{recipe} and {base} were tested on different images. Fix: train both on one data "
                "set."
            )
        auc = metrics.evaluate(part).loc["auc"]
        interval = {"auc": auc["value"], "low": auc["low"], "high": auc["high"]}
        rows.append({"effect": effect, "recipe": recipe} | interval)
    table = pd.DataFrame(rows + _effect_rows(tested), columns=list(EFFECT_COLUMNS))
    runs = len(tested[0].scores)
    return table.assign(runs=runs, n=len(tested[0].images), over=over(runs))


def _effect_rows(cells: Sequence[_Tested]) -> list[dict[str, object]]:
    """The contrasts `EFFECTS` between cells whose runs have the same seeds."""
    images = cells[0].images
    runs = len(cells[0].scores)
    stacked = np.concatenate([cell.scores for cell in cells])
    aucs, covariance = delong(images["label"].to_numpy(), stacked, images["patient"].to_numpy())
    rows: list[dict[str, object]] = []
    for effect, weights in EFFECTS.items():
        # One row per seed; its columns are the runs of all cells.
        contrast = np.kron(np.array(weights), np.eye(runs))
        by_run = contrast @ aucs
        value = float(by_run.mean())
        half = half_width(by_run, contrast @ covariance @ contrast.T)
        interval = {"auc": value, "low": value - half, "high": value + half}
        rows.append({"effect": effect, "recipe": "", "p": _p_value(value, half / Z)} | interval)
    return rows


def of_protocols(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the scores of `published` and `strict`, without those of other split strategies."""
    return scores[scores["protocol"].isin(PROTOCOLS)]


def protocol_comparison(scores: pd.DataFrame, recipes: Iterable[str] = COMPARED) -> pd.DataFrame:
    """Compare the five evaluations `COMPARISONS` of each recipe; only those that were run.

    Returns
    -------
    One row per recipe and evaluation with the columns
        recipe, comparison, protocol, split, rule : what was evaluated, at which threshold.
        seeds, n : number of runs, and of images per run.
        accuracy, sensitivity, specificity, each with _low and _high : see `metrics.evaluate`.
        over : what the intervals are over.
    """
    names = ("accuracy", "sensitivity", "specificity")
    return pd.DataFrame(_evaluations(scores, recipes, COMPARISONS, names))


def number_blocks(scores: pd.DataFrame, recipes: Iterable[str] = COMPARED) -> pd.DataFrame:
    """Compare validation on a block of numbers with validation on random patients.

    The evaluations `NUMBER_BLOCKS` ask whether validation could have seen the drop on the official
    test, whose images are a block of numbers as well.

    Parameters
    ----------
    scores : DataFrame
        With the protocols `strict` and `number-blocks`.
    recipes : iterable of str
        Of these, recipes without runs under `number-blocks` are left out.

    Returns
    -------
    One row per recipe, evaluation and threshold rule (of the run, 0.5) with the columns
        recipe, comparison, protocol, split, rule, seeds, n : as in `protocol_comparison`.
        auc, accuracy, sensitivity, specificity, each with _low and _high : see `metrics.evaluate`.
        over : what the intervals are over.
    """
    names = ("auc", "accuracy", "sensitivity", "specificity")
    with_blocks = set(scores.loc[scores["protocol"] == "number-blocks", "recipe"])
    chosen = [name for name in recipes if name in with_blocks]
    return pd.DataFrame(_evaluations(scores, chosen, NUMBER_BLOCKS, names))


def _evaluations(
    scores: pd.DataFrame,
    recipes: Iterable[str],
    evaluations: Iterable[tuple[str, str, str, str | float]],
    names: Sequence[str],
) -> list[dict[str, object]]:
    """Evaluate recipes under protocols, splits and threshold rules, where there are scores."""
    rows = []
    for recipe in recipes:
        for comparison, protocol, split, rule in evaluations:
            part = scores[(scores["recipe"] == recipe) & (scores["protocol"] == protocol)]
            evaluated = part[part["split"] == split]
            if evaluated.empty:
                continue
            seeds = evaluated["seed"].nunique()
            row: dict[str, object] = {
                "recipe": recipe,
                "comparison": comparison,
                "protocol": protocol,
                "split": split,
                "rule": str(rule),
                "seeds": seeds,
                "n": round(len(evaluated) / seeds),
            }
            ranking = "auc" in names
            values = metrics.evaluate(part, split=split, rule=rule, ranking=ranking)
            rows.append(row | metrics.ends(values, *names) | {"over": over(seeds)})
    return rows


def operating_points(scores: pd.DataFrame) -> pd.DataFrame:
    """Apply each of `RULES` for a threshold to validation, and measure it on the test.

    Parameters
    ----------
    scores : DataFrame
        Of one protocol.

    Returns
    -------
    One row per recipe and rule with the columns
        recipe, rule : as in `training.thresholds`.
        threshold, threshold_low, threshold_high : mean over runs; 95% of the thresholds that
            resamples of the validation's patients choose.
        val_sensitivity, val_specificity : split-half estimates. The threshold is chosen on one half
            of the validation's patients and measured on the other.
        sensitivity, specificity, accuracy, each with _low and _high : on the test, see
            `metrics.evaluate`.
        seeds, over : number of runs, and what these intervals are over.
    """
    rows = []
    for recipe, part in scores.groupby("recipe", sort=False):
        seeds = part["seed"].nunique()
        for rule in RULES:
            test = metrics.evaluate(part, rule=rule, ranking=False)
            row: dict[str, object] = {
                "recipe": recipe,
                "rule": str(rule),
                "threshold": thresholds(part, rule).mean(),
            }
            row |= _on_validation(part, rule)
            row |= metrics.ends(test, "sensitivity", "specificity", "accuracy")
            rows.append(row | {"seeds": seeds, "over": over(seeds)})
    return pd.DataFrame(rows)


def _on_validation(scores: pd.DataFrame, rule: str | float, times: int = 25) -> dict[str, float]:
    """Spread of a rule's threshold, and what it gives on patients that did not choose it."""
    rng = np.random.default_rng(0)
    val = scores[scores["split"] == validation_split(scores)]
    rows = []
    for _, run in val.groupby("seed"):
        names, owner = np.unique(run["patient"], return_inverse=True)
        labels = run["label"].to_numpy()
        score = run["score"].to_numpy()
        chances = np.full(len(names), 1 / len(names))
        cuts = np.full(times, np.nan if isinstance(rule, str) else rule)
        shares = []
        for i in range(times):
            if isinstance(rule, str):
                drawn = np.repeat(np.arange(len(run)), rng.multinomial(len(names), chances)[owner])
                if np.ptp(labels[drawn]):
                    cuts[i] = threshold(labels[drawn], score[drawn], rule)
            first = (rng.permutation(len(names)) < len(names) / 2)[owner]
            if np.ptp(labels[first]) and np.ptp(labels[~first]):
                cut = threshold(labels[first], score[first], rule)
                shares.append(_sensitivity_and_specificity(labels[~first], score[~first] >= cut))
        low, high = np.nanpercentile(cuts, [2.5, 97.5])
        sensitivity, specificity = np.mean(shares, axis=0) if shares else (np.nan, np.nan)
        rows.append(
            {
                "threshold_low": low,
                "threshold_high": high,
                "val_sensitivity": sensitivity,
                "val_specificity": specificity,
            }
        )
    return {
        str(name): float(value) for name, value in pd.DataFrame(rows).mean(skipna=False).items()
    }


def _sensitivity_and_specificity(labels: np.ndarray, classified: np.ndarray) -> tuple[float, float]:
    """Both shares of one run; `classified` is whether an image is classified as pneumonia."""
    return float(classified[labels == 1].mean()), float(1 - classified[labels == 0].mean())


def by_run(scores: pd.DataFrame, recipes: Iterable[str], protocol: str = "strict") -> pd.DataFrame:
    """Evaluate every single run of some recipes at a threshold of 0.5.

    Returns
    -------
    One row per recipe and seed with the columns
        recipe, seed, n_val, n_test : run, and its numbers of images.
        val_accuracy : accuracy on the run's validation, which a README would state.
        balanced_accuracy, accuracy, sensitivity, specificity, auc : on the test.
    """
    names = ("balanced_accuracy", "accuracy", "sensitivity", "specificity", "auc")
    rows = []
    for recipe in recipes:
        part = scores[(scores["recipe"] == recipe) & (scores["protocol"] == protocol)]
        for seed, run in part.groupby("seed"):
            val = run[run["split"] == "val"]
            test = run[run["split"] == "test"]
            row = {"recipe": recipe, "seed": seed, "n_val": len(val), "n_test": len(test)}
            row["val_accuracy"] = _at_one_half(val)["accuracy"]
            on_test = _at_one_half(test)
            rows.append(row | {name: on_test[name] for name in names})
    return pd.DataFrame(rows)


def _at_one_half(part: pd.DataFrame) -> dict[str, float]:
    """Metrics of one run at a threshold of 0.5."""
    values = metrics.point_metrics(part["label"].to_numpy(), part["score"].to_numpy(), 0.5)
    return {name: float(value[0]) for name, value in values.items()}


def ensembles(scores: pd.DataFrame) -> pd.DataFrame:
    """Evaluate the runs of each recipe as one classifier: strict runs that share a test.

    The log odds of each run are counted from those of its own frozen threshold, because each run
    chose it on other patients. The mean over runs classifies as pneumonia from 0 on.

    Returns
    -------
    One row per recipe with two runs or more, with the columns
        recipe, members, n : members are the runs.
        auc, accuracy, sensitivity, specificity, each with _low and _high : the interval over
            patients, widened by the jackknife over members where there are three or more (each end
            by the method of Zou and Donner 2008).
        over : what the intervals are over.
    """
    names = ("auc", "accuracy", "sensitivity", "specificity")
    rows = []
    test = scores[(scores["protocol"] == "strict") & (scores["split"] == "test")]
    for recipe, part in test.groupby("recipe", sort=False):
        members = part["seed"].nunique()
        if members < 2 or part["score"].nunique() < 2:
            continue
        whole = _ensemble(part)
        evaluated = metrics.evaluate(whole)
        if members >= MIN_RUNS:
            half = _jackknife_half_widths(part)
            for name in names:
                value, low, high = evaluated.loc[name, ["value", "low", "high"]].to_numpy(float)
                evaluated.loc[name, "low"] = max(0.0, value - np.hypot(value - low, half[name]))
                evaluated.loc[name, "high"] = min(1.0, value + np.hypot(high - value, half[name]))
        row: dict[str, object] = {"recipe": recipe, "members": members, "n": len(whole)}
        rows.append(row | metrics.ends(evaluated, *names) | {"over": over(members)})
    return pd.DataFrame(rows)


def _ensemble(part: pd.DataFrame) -> pd.DataFrame:
    """Average the runs of one recipe into scores of one run with a threshold of 0.5."""
    odds = log_odds(part["score"].to_numpy()) - log_odds(part["threshold"].to_numpy())
    mean = pd.Series(odds, part.index).groupby(part["image_id"]).mean()
    images = part.drop_duplicates("image_id")
    return images.assign(threshold=0.5, seed=0, score=expit(images["image_id"].map(mean)))


def _jackknife_half_widths(part: pd.DataFrame) -> pd.Series:
    """Half width of each metric's interval over the members of an ensemble, patients held fixed."""
    seeds = part["seed"].unique()
    without_one = [_at_one_half(_ensemble(part[part["seed"] != seed])) for seed in seeds]
    variance = (len(seeds) - 1) * pd.DataFrame(without_one).var(ddof=0)
    return np.sqrt(variance) * student_quantile(len(seeds))


def subgroups(scores: pd.DataFrame, pixels: pd.Series | None = None) -> pd.DataFrame:
    """Evaluate the test images of one recipe and protocol by kind, naming series and size.

    Parameters
    ----------
    scores : DataFrame
        From `scores.load`.
    pixels : Series, optional
        Width times height by `image_id`; sizes are divided at their median.

    Returns
    -------
    One row per subgroup that exists, with the columns
        recipe, subgroup, images, patients : numbers per run.
        right, right_low, right_high : share classified correctly at the frozen threshold, which is
            sensitivity or specificity.
        auc, auc_low, auc_high : against all images of the other class.
        over : what the intervals are over.
    """
    test = scores[scores["split"] == "test"]
    rows = []
    for subgroup, names in _groups(test, pixels).items():
        members = test[test["image_id"].isin(names)]
        label = int(members["label"].iloc[0])
        others = test[test["label"] != label]
        row: dict[str, object] = {"recipe": scores["recipe"].iloc[0], "subgroup": subgroup}
        row |= _right(members, "frozen")
        row |= metrics.ends(metrics.evaluate(pd.concat([members, others]), rule=0.5), "auc")
        rows.append(row | {"over": over(members["seed"].nunique())})
    return pd.DataFrame(rows)


def _right(part: pd.DataFrame, rule: str | float) -> dict[str, object]:
    """Images and patients of one class, and the share classified correctly with its interval."""
    evaluated = metrics.evaluate(part, rule=rule, ranking=False)
    metric = "sensitivity" if part["label"].iloc[0] else "specificity"
    row: dict[str, object] = {
        "images": part["image_id"].nunique(),
        "patients": part["patient"].nunique(),
    }
    return row | metrics.ends(evaluated.rename({metric: "right"}), "right")


def _groups(test: pd.DataFrame, pixels: pd.Series | None) -> dict[str, pd.Series]:
    """Names of the images of each subgroup that is not empty."""
    images = test.drop_duplicates("image_id").set_index("image_id", drop=False)
    positive = images["label"] == 1
    groups = {}
    for kind in sorted(images["kind"].unique()):
        groups[f"pneumonia, {kind}"] = positive & (images["kind"] == kind)
    for start, name in SERIES.items():
        groups[name] = ~positive & images["image_id"].str.startswith(start)
    sizes = pd.Series(dtype=float) if pixels is None else images["image_id"].map(pixels)
    if sizes.nunique() > 1:
        smaller = sizes <= sizes.median()
        larger = sizes > sizes.median()
        groups["normal, smaller image"] = smaller & ~positive
        groups["pneumonia, smaller image"] = smaller & positive
        groups["normal, larger image"] = larger & ~positive
        groups["pneumonia, larger image"] = larger & positive
    return {name: images.loc[of, "image_id"] for name, of in groups.items() if of.any()}


def shortcut_baselines(manifest: pd.DataFrame, pixels: np.ndarray) -> pd.DataFrame:
    """AUC of single-feature baselines, and of linear models that see only the image's border.

    Directions and models come from the training images (all that is not test). The training value
    of a model is out of fold, by patient.

    Parameters
    ----------
    manifest : DataFrame
    pixels : (n, size, size, 1) uint8 array
        Images of the manifest's rows; a size of 64 is plenty.

    Returns
    -------
    One row per feature and split with the columns
        feature : name; models are those of `audit.BORDERS`. Where the data set has a list of
            original files, their features follow, of the training files in it.
        split : `train` or `test`.
        n : number of images.
        auc, low, high : DeLong's interval over patients.
    """
    values = audit.single_features(manifest, pixels)
    test = (manifest["split"] == "test").to_numpy()
    labels = manifest["label"].to_numpy()
    patients = manifest["patient"].to_numpy()
    for share in audit.BORDERS:
        mask = audit.border_mask(pixels.shape[1], share)
        border = pixels[:, mask].reshape(len(pixels), -1) / np.float32(255)
        name = f"border of 1/{round(1 / share)}, linear model"
        values[name] = _linear_model_scores(border, labels, patients, test)
    rows = _ranked(values, labels, patients, {"train": ~test, "test": test})
    files = audit.originals(manifest.attrs["dataset"])
    if files is not None:
        of_files = audit.file_features(files).add_suffix(", original file")
        everything = {"train": np.ones(len(files), bool)}
        file_labels = files["label"].to_numpy()
        rows += _ranked(of_files, file_labels, files["patient"].to_numpy(), everything)
    return pd.DataFrame(rows)


def _linear_model_scores(
    features: np.ndarray, labels: np.ndarray, patients: np.ndarray, test: np.ndarray
) -> np.ndarray:
    """Scores of a logistic regression: out of fold for training images, fitted on all for test."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1e-2, max_iter=1000))
    folds = StratifiedGroupKFold(n_splits=5, shuffle=True, random_state=0)
    train = {"X": features[~test], "y": labels[~test]}
    scores = np.empty(len(features))
    scores[~test] = cross_val_predict(
        model, **train, groups=patients[~test], cv=folds, method="predict_proba"
    )[:, 1]
    scores[test] = model.fit(**train).predict_proba(features[test])[:, 1]
    return scores


def _ranked(
    values: pd.DataFrame, labels: np.ndarray, patients: np.ndarray, splits: Mapping[str, np.ndarray]
) -> list[dict[str, object]]:
    """AUC of each feature on each split; its direction comes from the first split."""
    rows: list[dict[str, object]] = []
    first = next(iter(splits.values()))
    for feature in values:
        column = values[feature].to_numpy(dtype=float)[None]
        if delong_interval(labels[first], column[:, first], patients[first])[0] < 0.5:
            column = -column
        for split, members in splits.items():
            auc, low, high = delong_interval(labels[members], column[:, members], patients[members])
            row: dict[str, object] = {"feature": feature, "split": split, "n": int(members.sum())}
            rows.append(row | {"auc": auc, "low": low, "high": high})
    return rows
