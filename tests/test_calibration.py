import builders
import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy.stats import norm
from sklearn import metrics as sk
from sklearn.calibration import CalibratedClassifierCV, calibration_curve
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from xraylib.evaluation import calibration
from xraylib.evaluation.calibration import (
    METHODS,
    compare_methods,
    decision_curve,
    expected_error,
    recalibrate,
    reliability,
    slope_intercept,
    summary,
)
from xraylib.evaluation.metrics import evaluate
from xraylib.evaluation.scores import log_odds

pytestmark = pytest.mark.filterwarnings("error")


def simulated(n=400, slope=1.0, intercept=0.0, spread=1.5, sample=0):
    """Labels and scores whose true calibration line is known."""
    rng = np.random.default_rng(sample)
    odds = rng.normal(0, spread, n)
    labels = (rng.random(n) < 1 / (1 + np.exp(-(slope * odds + intercept)))).astype(int)
    return labels, 1 / (1 + np.exp(-odds))


def line(labels, scores):
    found = slope_intercept(labels, scores, np.arange(len(labels)))
    return found["slope"].value, found["intercept"].value


def error(part):
    labels, scores = part["label"].to_numpy(), part["score"].to_numpy()
    return expected_error(labels, scores, np.ones((1, len(part))), debiased=False).item()


def by_statsmodels(labels, scores, patients):
    """Slope and intercept, and their cluster-robust standard errors."""
    odds = np.log(scores / (1 - scores))
    options = {"tol": 1e-12, "cov_type": "cluster", "cov_kwds": {"groups": patients}}
    family = sm.families.Binomial()
    both = sm.GLM(labels, sm.add_constant(odds), family=family).fit(**options)
    alone = sm.GLM(labels, np.ones(len(labels)), offset=odds, family=family).fit(**options)
    return [both.params[1], alone.params[0]], [both.bse[1], alone.bse[0]]


@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (0.2, 1), (4, -2), (-1, 0)])
def test_the_line_and_its_spread_over_patients_are_those_of_statsmodels(slope, intercept):
    labels, scores = simulated(slope=slope, intercept=intercept)
    patients = pd.factorize(np.random.default_rng(0).integers(0, 150, 400))[0]
    found = slope_intercept(labels, scores, patients)
    values, errors = by_statsmodels(labels, scores, patients)
    lines = [found["slope"], found["intercept"]]
    assert [each.value for each in lines] == pytest.approx(values, abs=1e-6)
    assert [np.sqrt((each.influence**2).sum()) for each in lines] == pytest.approx(errors, rel=1e-6)


def test_separated_classes_have_no_slope():
    rng, labels = np.random.default_rng(0), np.arange(60) % 2
    scores = np.where(labels == 1, 0.6, 0) + rng.random(60) * 0.4
    for separated in (scores, 1 - scores, np.round(scores)):
        slope, intercept = line(labels, separated)
        assert np.isnan(slope) and np.isfinite(intercept)


@pytest.mark.parametrize("score", [1.0, 0.0, 0.74])
def test_one_score_for_all_has_no_slope(score):
    labels = (np.arange(2431) % 4 > 0).astype(int)
    slope, intercept = line(labels, np.full(2431, score))
    share = labels.mean()
    assert np.isnan(slope)
    assert intercept == pytest.approx(
        np.log(share / (1 - share)) - log_odds(np.array([score]))[0], abs=1e-6
    )


def test_scores_of_zero_and_one_have_a_finite_intercept():
    # The mean of expit(log odds + intercept) is the share of positives, whatever the scores.
    labels = np.repeat([0, 1], [40, 80])
    scores = labels.astype(float)
    scores[[0, 1, 50]] = [1, 0.3, 0]
    _, intercept = line(labels, scores)
    assert np.mean(1 / (1 + np.exp(-(log_odds(scores) + intercept)))) == pytest.approx(2 / 3)
    _, high = line(labels, np.full(120, 0.9999).astype(float) - 0.1 * (labels == 0))
    assert high < -1


def test_expected_error_by_hand():
    labels, scores = np.array([0, 1, 1, 1, 0]), np.array([0.05, 0.07, 0.95, 1.0, 0.4])
    weights = np.array([[1.0] * 5, [2.0, 0, 1, 1, 0], [0, 0, 0, 0, 3]])
    # The sums of scores and labels are 0.12 and 1 in the first bin, 1.95 and 2 in the last one,
    # and 0.4 and 0 in the fifth.
    expected = [(0.88 + 0.05 + 0.4) / 5, (0.1 + 0.05) / 4, 0.4]
    assert expected_error(labels, scores, weights, debiased=False) == pytest.approx(expected)
    # Bins without two outcomes lose nothing; the first one has half, so that chance moves it.
    spread = np.sqrt(2 * 0.25)
    chance = np.abs(0.88 + spread * np.random.default_rng(0).normal(size=200_000)).mean() - 0.88
    debiased = expected_error(labels, scores, weights)
    assert debiased[0] == pytest.approx(expected[0] - chance / 5, abs=1e-3)
    assert debiased[2] == pytest.approx(0.4)


def test_the_debiased_error_of_a_calibrated_score_is_much_smaller():
    # Scores far inside their bins, so that no score crosses a border.
    rng = np.random.default_rng(0)
    plain, debiased = [], []
    for _ in range(200):
        scores = rng.choice([0.15, 0.35, 0.55, 0.75], 200)
        labels = (rng.random(200) < scores).astype(int)
        weights = np.ones((1, 200))
        plain.append(expected_error(labels, scores, weights, debiased=False).item())
        debiased.append(expected_error(labels, scores, weights).item())
    assert np.mean(plain) > 0.04
    # The distances of a calibrated score are all chance; the debiasing takes about half of them.
    assert abs(np.mean(debiased)) < 0.65 * np.mean(plain)
    labels = (rng.random(20_000) < 0.55).astype(int)
    far = expected_error(labels, np.full(20_000, 0.85), np.ones((1, 20_000))).item()
    assert far == pytest.approx(0.3, abs=0.02)


def test_the_summary_is_a_mean_over_seeds_with_an_interval_over_patients():
    scores = builders.scores(n=150, images=2, seeds=(0, 1), strength=2)
    test = scores.query("split == 'test'")
    found = summary(test)
    expected = evaluate(scores, resamples=1000).loc["brier", ["value", "low", "high"]]
    assert found.loc["brier", ["value", "low", "high"]].tolist() == pytest.approx(expected.tolist())
    columns = ["label", "score", "patient"]
    lines = [
        by_statsmodels(
            *(run[name].to_numpy() for name in columns[:2]), run["patient"].factorize()[0]
        )
        for _, run in test.groupby("seed")
    ]
    assert found.loc[["slope", "intercept"], "value"].tolist() == pytest.approx(
        np.mean([values for values, _ in lines], axis=0)
    )
    assert ((found["low"] < found["value"]) & (found["value"] < found["high"])).all()
    assert set(found["over"]) == {"patients"}
    # One run alone has the cluster-robust interval of statsmodels.
    alone = summary(test[test["seed"] == 0])
    for name, value, error in zip(("slope", "intercept"), *lines[0], strict=True):
        ends = [value - norm.ppf(0.975) * error, value + norm.ppf(0.975) * error]
        assert alone.loc[name, ["low", "high"]].tolist() == pytest.approx(ends, rel=1e-5)
    # Images of one patient widen the intervals.
    grouped = builders.scores(n=60, images=8, noise=0.1).query("split == 'test'")
    whole, alone = summary(grouped), summary(grouped.assign(patient=grouped["image_id"]))
    width = (whole["high"] - whole["low"]) / (alone["high"] - alone["low"])
    assert (width > 1.7).all()


def test_runs_that_differ_widen_every_interval_of_the_summary():
    scores = builders.scores(n=150, seeds=(0, 1, 2), strength=2, noise=0.1)
    test = scores[scores["split"] == "test"]
    stretch = test["seed"].map({0: 0.5, 1: 1.0, 2: 2.0})
    shift = test["seed"].map({0: -0.7, 1: 0.0, 2: 0.7})
    odds = stretch * log_odds(test["score"].to_numpy()) + shift
    alike, apart = summary(test), summary(test.assign(score=1 / (1 + np.exp(-odds))))
    assert set(apart["over"]) == {"runs and patients"}
    for found in (alike, apart):
        assert ((found["low"] <= found["value"]) & (found["value"] <= found["high"])).all()
    assert ((apart["high"] - apart["low"]) > 1.5 * (alike["high"] - alike["low"])).all()


@pytest.mark.parametrize("sample", range(12))
def test_every_interval_contains_its_estimate(sample):
    table = builders.scores(n=45, seeds=range(1 + sample % 4), sample=sample)
    found = summary(table[table["split"] == "test"], resamples=100).dropna()
    assert ((found["low"] <= found["value"]) & (found["value"] <= found["high"])).all()
    compared = compare_methods(table, 0.3, resamples=100)
    for name in ("ece", "brier", "ece_difference", "brier_difference"):
        known = compared.dropna(subset=[name])
        assert known[name].between(known[f"{name}_low"], known[f"{name}_high"]).all()


def test_walds_interval_of_the_line_covers_the_truth_when_images_share_patients():
    rng, covered, naive = np.random.default_rng(0), [], []
    patients = np.repeat(np.arange(150), 2)
    for _ in range(150):
        odds = np.repeat(rng.normal(0, 1.5, 150), 2)
        # Both images of a patient have one label, so that they are one observation.
        labels = np.repeat((rng.random(150) < 1 / (1 + np.exp(-odds[::2]))).astype(int), 2)
        scores = 1 / (1 + np.exp(-odds))
        for result, groups in ((covered, patients), (naive, np.arange(300))):
            found = slope_intercept(labels, scores, groups)
            for name, truth in (("slope", 1), ("intercept", 0)):
                half = norm.ppf(0.975) * np.sqrt((found[name].influence ** 2).sum())
                result.append(abs(found[name].value - truth) <= half)
    assert 0.91 <= np.mean(covered) <= 0.98
    assert np.mean(naive) < 0.9


def crooked(**options):
    """Scores three times too extreme and too high."""
    scores = builders.scores(n=300, strength=1.5, noise=0.3, **options)
    # The true log odds: the scores' have standard deviation 1.044 and means 1.5 apart, and two
    # images of three are positive.
    odds = 1.5 / 1.09 * (log_odds(scores["score"].to_numpy()) - 0.75) + np.log(2)
    return scores.assign(score=1 / (1 + np.exp(-3 * odds - 0.5)))


@pytest.mark.parametrize("method", METHODS)
def test_recalibration_improves_a_crooked_score_and_keeps_its_order(method):
    before = crooked()
    after = recalibrate(before, method)
    assert after["score"].between(0, 1).all()
    for split in ("val", "test"):
        old, new = (table[table["split"] == split] for table in (before, after))
        assert sk.brier_score_loss(new["label"], new["score"]) < sk.brier_score_loss(
            old["label"], old["score"]
        )
        assert error(new) < error(old)
    assert after.loc[before["score"].sort_values().index, "score"].is_monotonic_increasing
    val = after.query("split == 'val'")
    if method == "isotonic":
        assert error(val) == pytest.approx(0, abs=1e-6)
    if method == "platt":
        found = line(val["label"].to_numpy(), val["score"].to_numpy())
        assert found == pytest.approx((1, 0), abs=0.05)


@pytest.mark.parametrize("method", METHODS)
def test_recalibration_sees_the_runs_own_validation_alone(method):
    before = crooked()
    test = before["split"] == "test"
    after = recalibrate(before, method)
    turned = before.assign(label=before["label"].where(~test, 1 - before["label"]))
    pd.testing.assert_series_equal(recalibrate(turned, method)["score"], after["score"])
    other = before.assign(label=before["label"].where(test, 1 - before["label"]))
    assert not recalibrate(other, method)["score"].equals(after["score"])
    theirs = crooked(sample=1).assign(recipe="theirs")
    # An index that repeats keeps its rows.
    both = recalibrate(pd.concat([before, theirs]), method)
    assert both["score"].tolist() == [*after["score"], *recalibrate(theirs, method)["score"]]


def test_scores_of_zero_and_one_are_recalibrated_too():
    scores = crooked()
    scores["score"] = scores["score"].round()
    for method in METHODS:
        assert recalibrate(scores, method)["score"].between(0, 1).all()


def test_reliability_is_that_of_scikit_learn_with_wilsons_interval_for_all_or_none():
    test = builders.scores(n=400, seeds=(0, 1), strength=2).query("split == 'test'")
    found = reliability(test)
    share, mean = calibration_curve(test["label"], test["score"], n_bins=calibration.BINS)
    np.testing.assert_allclose(found[["share", "score"]], np.stack([share, mean], axis=1))
    assert found["images"].sum() == 400
    assert ((found["low"] <= found["share"]) & (found["share"] <= found["high"])).all()
    one = reliability(builders.images([0.05, 0.95], [1.0]).tail(1))
    assert one.loc[0, ["low", "high"]].tolist() == pytest.approx([1 / (1 + 1.959964**2), 1])


def test_net_benefit_is_counted_image_by_image():
    test = builders.scores(n=90, images=2, seeds=(0, 1)).query("split == 'test'")
    found = decision_curve(test)
    for row in found.itertuples():
        acted = test[test["score"] >= row.cut]["label"]
        gain = acted.sum() - (1 - acted).sum() * row.cut / (1 - row.cut)
        assert row.benefit == pytest.approx(gain / len(test))
        assert row.gain == pytest.approx(row.benefit - max(0.0, row.all))
    assert ((found["low"] <= found["benefit"]) & (found["benefit"] <= found["high"])).all()
    # What both have in common, the share of positives, does not blur their difference.
    low = found["cut"] < found["all"].max() / 2
    assert (found["gain_high"] - found["gain_low"])[low].mean() < (found["high"] - found["low"])[
        low
    ].mean()
    everybody = decision_curve(test.assign(score=1.0))
    assert found["all"].tolist() == pytest.approx(everybody["benefit"].tolist())
    perfect = decision_curve(test.assign(score=test["label"].astype(float)))
    np.testing.assert_allclose(perfect["benefit"], test["label"].mean(), rtol=1e-5)


def test_at_another_prevalence_net_benefit_is_that_of_so_many_more_negatives():
    test = builders.scores(n=90, seeds=(0,)).query("split == 'test'")
    more = pd.concat([test, *[test[test["label"] == 0]] * 4])
    before, p = test["label"].mean(), more["label"].mean()
    odds = test["score"] / (1 - test["score"]) * p / (1 - p) * (1 - before) / before
    known = decision_curve(more.assign(score=odds / (1 + odds)))
    found = decision_curve(test, p)
    for column in ("benefit", "all", "gain"):
        assert found[column].tolist() == pytest.approx(known[column].tolist())
    assert found["benefit"].max() < decision_curve(test)["benefit"].max()


def test_no_temperature_is_claimed_where_validation_is_perfectly_separated():
    table = builders.scores(n=60)
    val = table["split"] == "val"
    table.loc[val, "score"] = np.where(table.loc[val, "label"] == 1, 0.9, 0.1)
    fitted = recalibrate(table, "temperature")
    assert fitted["score"].isna().all() and summary(fitted, resamples=20)["value"].isna().all()
    assert recalibrate(table, "platt")["score"].notna().all()


@pytest.mark.parametrize(
    ("method", "theirs"),
    [("temperature", "temperature"), ("platt", "sigmoid"), ("isotonic", "isotonic")],
)
def test_recalibration_is_that_of_scikit_learn(method, theirs):
    table = crooked()
    val = table[table["split"] == "val"]
    # To scikit-learn, log odds are those of a regression with slope 1.
    plain = LogisticRegression()
    plain.classes_, plain.coef_, plain.intercept_ = np.array([0, 1]), np.ones((1, 1)), np.zeros(1)
    try:
        fitted = CalibratedClassifierCV(FrozenEstimator(plain), method=theirs)
        fitted.fit(log_odds(val["score"].to_numpy())[:, None], val["label"].to_numpy())
    except ValueError:
        pytest.skip("this scikit-learn is older than temperature scaling")
    expected = fitted.predict_proba(log_odds(table["score"].to_numpy())[:, None])[:, 1]
    np.testing.assert_allclose(recalibrate(table, method)["score"], expected, atol=1e-4)


def test_a_stated_prevalence_moves_the_odds_from_that_of_validation():
    table = crooked()
    platt = recalibrate(table, "platt")
    moved = recalibrate(table, "platt", prevalence=0.2)
    val = table[table["split"] == "val"]["label"].mean()
    ratio = 0.2 / 0.8 * (1 - val) / val
    before, after = (each["score"] / (1 - each["score"]) for each in (platt, moved))
    np.testing.assert_allclose(after / before, ratio)
    same = recalibrate(table, "platt", prevalence=val)
    np.testing.assert_allclose(same["score"], platt["score"])


def test_reframed_validation_counts_for_a_fit_only_if_named():
    table = crooked()
    val = table[table["split"] == "val"]
    with_swapped = pd.concat([table, val.assign(split="swapped", score=val["score"] ** 3)])
    first = recalibrate(with_swapped, "platt")["score"].iloc[: len(table)]
    assert first.tolist() == recalibrate(table, "platt")["score"].tolist()
    both = recalibrate(with_swapped, "platt", fitted_on=("val", "swapped"))
    assert both["score"].iloc[: len(table)].mean() > first.mean()
    methods = compare_methods(with_swapped, 0.5, resamples=20)["method"].tolist()
    assert methods[-1] == "platt, val and swapped" and len(methods) == 6
    assert len(compare_methods(table, 0.5, resamples=20)) == 5


def test_methods_are_compared_with_raw_on_the_same_images():
    table = crooked(seeds=(0, 1, 2))
    found = compare_methods(table, 0.9, resamples=200).set_index("method")
    test = table[table["split"] == "test"]
    for name, scores in (("raw", table), ("platt", recalibrate(table, "platt"))):
        own = scores[scores["split"] == "test"]
        briers = [sk.brier_score_loss(run["label"], run["score"]) for _, run in own.groupby("seed")]
        assert found.loc[name, "brier"] == pytest.approx(np.mean(briers))
        assert found.loc[name, "ece"] == pytest.approx(summary(own).loc["ece", "value"])
    assert found["n"].eq(test["image_id"].nunique()).all() and found["runs"].eq(3).all()
    assert set(found["over"]) == {"runs and patients"}
    for name in ("ece", "brier"):
        difference = found[name] - found.loc["raw", name]
        assert found[f"{name}_difference"].tolist() == pytest.approx(difference.tolist(), abs=1e-12)
        assert found.loc["raw", [f"{name}_difference_low", f"{name}_difference_high"]].eq(0).all()
    # The score is three times too extreme: all methods help, and a wrong prevalence does harm.
    better = found.loc[["temperature", "platt", "isotonic"]]
    assert (better["brier_difference_high"] < 0).all()
    # A temperature leaves scores that are too high as they are.
    assert (better["ece_difference_high"].drop("temperature") < 0).all()
    assert found.loc["prior-corrected", "brier"] > found.loc["platt", "brier"]
    # A paired difference is known better than its parts.
    width = found["brier_difference_high"] - found["brier_difference_low"]
    assert width["platt"] < 0.8 * (found["brier_high"] - found["brier_low"])["platt"]
