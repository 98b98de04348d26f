import builders
import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from xraylib.evaluation import calibration
from xraylib.evaluation.calibration import (
    METHODS,
    decision_curve,
    expected_error,
    logit,
    recalibrate,
    reliability,
    slope_intercept,
    summary,
)
from xraylib.evaluation.metrics import evaluate

pytestmark = pytest.mark.filterwarnings("error")


def simulated(n=400, slope=1.0, intercept=0.0, spread=1.5, sample=0):
    """Labels and scores whose true calibration line is known."""
    rng = np.random.default_rng(sample)
    odds = rng.normal(0, spread, n)
    labels = (rng.random(n) < 1 / (1 + np.exp(-(slope * odds + intercept)))).astype(int)
    return labels, 1 / (1 + np.exp(-odds))


def line(labels, scores, weights=None):
    found = slope_intercept(
        labels, scores, np.ones((1, len(labels))) if weights is None else weights
    )
    return np.array([found["slope"], found["intercept"]]).T


def error(part):
    labels, scores = part["label"].to_numpy(), part["score"].to_numpy()
    return expected_error(labels, scores, np.ones((1, len(part)))).item()


def by_statsmodels(labels, scores):
    odds, family = np.log(scores / (1 - scores)), sm.families.Binomial()
    both = sm.GLM(labels, sm.add_constant(odds), family=family).fit(tol=1e-12)
    alone = sm.GLM(labels, np.ones(len(labels)), offset=odds, family=family).fit(tol=1e-12)
    return both.params[1], alone.params[0]


@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (0.2, 1), (4, -2), (-1, 0)])
def test_the_line_is_that_of_statsmodels_and_a_weight_counts_as_so_many_rows(slope, intercept):
    labels, scores = simulated(slope=slope, intercept=intercept)
    counts = np.random.default_rng(0).multinomial(400, np.full(400, 1 / 400), 2)
    weights = np.stack([np.ones(400), *counts]).astype(float)
    for row, found in zip(weights.astype(int), line(labels, scores, weights), strict=True):
        expected = by_statsmodels(np.repeat(labels, row), np.repeat(scores, row))
        assert found == pytest.approx(expected, abs=1e-6)


def test_separated_classes_have_no_slope_and_one_class_no_line():
    rng, labels = np.random.default_rng(0), np.arange(60) % 2
    scores = np.where(labels == 1, 0.6, 0) + rng.random(60) * 0.4
    for separated in (scores, 1 - scores, np.round(scores)):
        ((slope, intercept),) = line(labels, separated)
        assert np.isnan(slope) and np.isfinite(intercept)
    labels, scores = simulated(n=100)
    weights = np.stack([np.ones(100), labels, 1 - labels, np.zeros(100)]).astype(float)
    found = line(labels, scores, weights)
    assert np.isnan(found).all(axis=1).tolist() == [False, True, True, True]
    np.testing.assert_allclose(found[:1], line(labels, scores))


@pytest.mark.parametrize("score", [1.0, 0.0, 0.74])
def test_one_score_for_all_has_no_slope(score):
    labels = (np.arange(2431) % 4 > 0).astype(int)
    ((slope, intercept),) = line(labels, np.full(2431, score))
    share = labels.mean()
    assert np.isnan(slope)
    assert intercept == pytest.approx(
        np.log(share / (1 - share)) - logit(np.array([score]))[0], abs=1e-6
    )


def test_expected_error_by_hand():
    labels, scores = np.array([0, 1, 1, 1, 0]), np.array([0.05, 0.07, 0.95, 1.0, 0.4])
    weights = np.array([[1.0] * 5, [2.0, 0, 1, 1, 0], [0, 0, 0, 0, 3]])
    # The first bin says 0.12 and holds 1, the last says 1.95 and holds 2, the fifth says 0.4 and holds 0.
    expected = [(0.88 + 0.05 + 0.4) / 5, (0.1 + 0.05) / 4, 0.4]
    assert expected_error(labels, scores, weights) == pytest.approx(expected)


def test_the_summary_is_a_mean_over_seeds_with_an_interval_over_patients():
    scores = builders.scores(n=150, images=2, seeds=(0, 1), strength=2)
    test = scores.query("split == 'test'")
    found = summary(test)
    expected = evaluate(scores, resamples=1000).loc["brier", ["value", "low", "high"]]
    assert found.loc["brier"].tolist() == pytest.approx(expected.tolist())
    lines = [
        by_statsmodels(one["label"].to_numpy(), one["score"].to_numpy())
        for _, one in test.groupby("seed")
    ]
    assert found.loc[["slope", "intercept"], "value"].tolist() == pytest.approx(
        np.mean(lines, axis=0)
    )
    inside = found.drop("ece")
    assert ((inside["low"] < inside["value"]) & (inside["value"] < inside["high"])).all()
    # Images of one patient widen the intervals.
    grouped = builders.scores(n=60, images=8, noise=0.1).query("split == 'test'")
    whole, alone = summary(grouped), summary(grouped.assign(patient=grouped["image_id"]))
    width = (whole["high"] - whole["low"]) / (alone["high"] - alone["low"])
    assert (width[["brier", "slope", "intercept"]] > 1.7).all()


def crooked(**options):
    """Scores three times too extreme and too high."""
    scores = builders.scores(n=300, strength=1.5, noise=0.3, **options)
    # The log odds that go with normal scores of standard deviation 1.044, 1.5 apart, two positive to one.
    odds = 1.5 / 1.09 * (logit(scores["score"].to_numpy()) - 0.75) + np.log(2)
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
        assert line(val["label"].to_numpy(), val["score"].to_numpy()) == pytest.approx(
            np.array([[1, 0]]), abs=0.05
        )


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
