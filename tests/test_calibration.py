import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from sklearn import metrics as sk
from test_metrics import scored

from xraylib.evaluation import calibration
from xraylib.evaluation.calibration import (
    METHODS,
    decision_curve,
    expected_error,
    figures,
    line,
    logit,
    recalibrate,
    reliability,
)
from xraylib.evaluation.metrics import evaluate
from xraylib.storage import NotFound

pytestmark = pytest.mark.filterwarnings("error")


def drawn(n=400, slope=1.0, intercept=0.0, spread=1.5, draw=0):
    """Labels and scores whose true calibration line is known."""
    random = np.random.default_rng(draw)
    odds = random.normal(0, spread, n)
    labels = (random.random(n) < 1 / (1 + np.exp(-(slope * odds + intercept)))).astype(int)
    return labels, 1 / (1 + np.exp(-odds))


def by_statsmodels(labels, scores, weights=None):
    options = {"family": sm.families.Binomial(), "freq_weights": weights}
    odds = np.log(scores / (1 - scores))
    both = sm.GLM(labels, sm.add_constant(odds), **options).fit(tol=1e-12)
    alone = sm.GLM(labels, np.ones(len(labels)), offset=odds, **options).fit(tol=1e-12)
    return both.params[1], alone.params[0]


@pytest.mark.parametrize("draw", range(4))
@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (0.2, 1), (4, -2), (-1, 0)])
def test_the_line_is_that_of_statsmodels(draw, slope, intercept):
    labels, scores = drawn(slope=slope, intercept=intercept, draw=draw)
    ours = line(labels, scores)
    assert [ours["slope"].item(), ours["intercept"].item()] == pytest.approx(
        by_statsmodels(labels, scores), abs=1e-6
    )


@pytest.mark.parametrize("draw", range(3))
def test_a_weight_counts_as_so_many_rows(draw):
    labels, scores = drawn(n=150, draw=draw)
    counts = np.random.default_rng(draw).multinomial(150, np.full(150, 1 / 150), 3)
    ours = line(labels, scores, counts.astype(float))
    errors = expected_error(labels, scores, counts.astype(float))
    for number, row in enumerate(counts):
        many, of = np.repeat(labels, row), np.repeat(scores, row)
        copied = line(many, of)
        for name in ("slope", "intercept"):
            assert ours[name][number] == pytest.approx(copied[name].item(), abs=1e-6)
        found = [ours["slope"][number], ours["intercept"][number]]
        assert found == pytest.approx(by_statsmodels(many, of), abs=1e-6)
        assert errors[number] == pytest.approx(expected_error(many, of).item(), abs=1e-12)


def test_the_line_finds_what_is_wrong_with_a_score():
    labels, scores = drawn(n=20000, spread=1)
    right = line(labels, scores)
    assert right["slope"].item() == pytest.approx(1, abs=0.05)
    assert right["intercept"].item() == pytest.approx(0, abs=0.05)
    extreme = line(labels, 1 / (1 + np.exp(-3 * logit(scores))))
    assert extreme["slope"] == pytest.approx(right["slope"] / 3)
    too_high = line(labels, 1 / (1 + np.exp(-1 - logit(scores))))
    assert too_high["slope"] == pytest.approx(right["slope"])
    assert too_high["intercept"] == pytest.approx(right["intercept"] - 1)


@pytest.mark.parametrize(("n", "gap"), [(4, 0.5), (60, 0.02), (60, 0.5), (3000, 0.1), (3000, 0.5)])
def test_parted_classes_have_no_slope(n, gap):
    random = np.random.default_rng(n)
    labels = np.arange(n) % 2
    scores = np.where(labels == 1, 0.5 + gap, 0) + random.random(n) * (0.5 - gap)
    for parted in (scores, 1 - scores, np.round(scores)):
        ours = line(labels, parted)
        assert np.isnan(ours["slope"]).all() and np.isfinite(ours["intercept"]).all()


def test_a_resample_of_one_class_has_no_line_and_spoils_no_other():
    labels, scores = drawn(n=100)
    weights = np.stack([np.ones(100), labels, 1 - labels, np.zeros(100)]).astype(float)
    ours, alone = line(labels, scores, weights), line(labels, scores)
    for name in ("slope", "intercept"):
        assert np.isnan(ours[name]).tolist() == [False, True, True, True]
        assert ours[name][0] == pytest.approx(alone[name].item())


@pytest.mark.parametrize("score", [1.0, 0.0, 0.74, 0.5])
@pytest.mark.parametrize("n", [100, 2431, 5000])
def test_one_score_for_all_has_no_slope(score, n):
    labels = np.arange(n) % 4 > 0
    ours = line(labels.astype(int), np.full(n, score))
    assert np.isnan(ours["slope"]).all()
    share = labels.mean()
    expected = np.log(share / (1 - share)) - logit(np.array([score]))
    assert ours["intercept"] == pytest.approx(expected, abs=1e-6)


def test_expected_error_by_hand():
    labels = np.array([0, 1, 1, 1, 0])
    scores = np.array([0.05, 0.07, 0.95, 1.0, 0.4])
    # The first bin says .12 and holds 1, the last says 1.95 and holds 2, the fifth says .4 and holds 0.
    assert expected_error(labels, scores).item() == pytest.approx((0.88 + 0.05 + 0.4) / 5)
    weighted = expected_error(labels, scores, np.array([[2.0, 0, 1, 1, 0], [0, 0, 0, 0, 3]]))
    assert weighted == pytest.approx([(0.1 + 0.05) / 4, 0.4])


def test_figures_by_hand():
    rows = pd.DataFrame({"label": [0, 1, 0, 1], "score": [0.1, 0.4, 0.6, 0.9], "patient": list("abcd")})
    part = pd.concat([rows.assign(seed=0), rows.assign(seed=1, score=[0.2, 0.8, 0.2, 0.8])])
    found = figures(part, resamples=50)["value"]
    assert found["brier"] == pytest.approx(((0.01 + 0.36 + 0.36 + 0.01) / 4 + 0.04) / 2)
    assert found["ece"] == pytest.approx(((0.1 + 0.6 + 0.6 + 0.1) / 4 + 0.2) / 2)


def test_figures_are_means_over_seeds_with_an_interval_over_patients():
    scores = scored(n=150, images=2, seeds=(0, 1), strength=2)
    test = scores.query("split == 'test'")
    found = figures(test)
    assert found.index.tolist() == ["brier", "slope", "intercept", "ece"]
    expected = evaluate(scores, resamples=1000).loc["brier", ["value", "low", "high"]]
    assert found.loc["brier"].tolist() == pytest.approx(expected.tolist())
    lines = [
        by_statsmodels(one["label"].to_numpy(), one["score"].to_numpy()) for _, one in test.groupby("seed")
    ]
    assert found.loc[["slope", "intercept"], "value"].tolist() == pytest.approx(np.mean(lines, axis=0))
    inside = found.drop("ece")
    assert ((inside["low"] < inside["value"]) & (inside["value"] < inside["high"])).all()
    shuffled = figures(test.sample(frac=1, random_state=1))
    pd.testing.assert_frame_equal(shuffled, found)


def test_images_of_one_patient_widen_the_intervals():
    test = scored(n=60, images=8, noise=0.1).query("split == 'test'")
    grouped, alone = figures(test), figures(test.assign(patient=test["image_id"]))
    width = (grouped["high"] - grouped["low"]) / (alone["high"] - alone["low"])
    assert (width[["brier", "slope", "intercept"]] > 1.7).all()


def test_a_score_that_parts_the_classes_has_figures_but_no_slope():
    test = scored(n=60).query("split == 'test'").assign(score=lambda rows: 0.2 + 0.6 * rows["label"])
    found = figures(test, resamples=200)
    assert found.loc["slope"].isna().all()
    assert found.drop("slope").notna().all(axis=None)
    assert found.loc["brier", "value"] == pytest.approx(0.04)


def crooked(**options):
    """Scores three times too extreme and too high."""
    scores = scored(n=300, strength=1.5, noise=0.3, **options)
    # The log odds that go with normal scores of standard deviation 1.044, 1.5 apart, two ill for one well.
    odds = 1.5 / 1.09 * (logit(scores["score"].to_numpy()) - 0.75) + np.log(2)
    return scores.assign(score=1 / (1 + np.exp(-3 * odds - 0.5)))


@pytest.mark.parametrize("method", METHODS)
def test_recalibration_betters_a_crooked_score(method):
    before = crooked()
    after = recalibrate(before, method)
    assert after["score"].between(0, 1).all()
    for side in ("val", "test"):
        old, new = (table[table["split"] == side] for table in (before, after))
        assert sk.brier_score_loss(new["label"], new["score"]) < sk.brier_score_loss(
            old["label"], old["score"]
        )
        assert expected_error(new["label"].to_numpy(), new["score"].to_numpy()) < expected_error(
            old["label"].to_numpy(), old["score"].to_numpy()
        )


def test_each_method_leaves_on_validation_what_it_aims_at():
    before = crooked()
    found = {}
    for method in METHODS:
        val = recalibrate(before, method).query("split == 'val'")
        found[method] = line(val["label"].to_numpy(), val["score"].to_numpy())
        if method == "isotonic":
            error = expected_error(val["label"].to_numpy(), val["score"].to_numpy())
            assert error == pytest.approx(0, abs=1e-6)
    assert found["platt"]["slope"] == pytest.approx(1, abs=0.05)
    assert found["platt"]["intercept"] == pytest.approx(0, abs=0.05)
    val = before.query("split == 'val'")
    labels, odds = val["label"].to_numpy(), logit(val["score"].to_numpy())
    # The best temperature, by search.
    losses = {beta: sk.log_loss(labels, 1 / (1 + np.exp(-beta * odds))) for beta in np.arange(0.05, 2, 0.005)}
    calm = recalibrate(before, "temperature").query("split == 'val'")["score"].to_numpy()
    beta = logit(calm) / odds
    assert beta == pytest.approx(np.full(len(beta), beta[0]))
    assert beta[0] == pytest.approx(min(losses, key=lambda one: losses[one]), abs=0.005)


@pytest.mark.parametrize("method", ["temperature", "platt"])
def test_a_smooth_method_leaves_the_auc_exactly(method):
    before = crooked(seeds=(0, 1))
    after = recalibrate(before, method)
    for key, old in before.groupby(["seed", "split"]):
        new = after.loc[old.index]
        assert sk.roc_auc_score(new["label"], new["score"]) == sk.roc_auc_score(old["label"], old["score"]), (
            key
        )


@pytest.mark.parametrize("method", METHODS)
def test_no_method_turns_two_scores_round(method):
    before = crooked()
    after = recalibrate(before, method).loc[before["score"].sort_values().index, "score"]
    assert after.is_monotonic_increasing
    assert method != "isotonic" or after.nunique() < 60


@pytest.mark.parametrize("method", METHODS)
def test_recalibration_sees_validation_alone(method):
    before = crooked()
    test = before["split"] == "test"
    turned = before.assign(label=before["label"].where(~test, 1 - before["label"]))
    after = recalibrate(before, method)
    pd.testing.assert_series_equal(recalibrate(turned, method)["score"], after["score"])
    fewer = before[~test | (before.index % 2 == 0)]
    pd.testing.assert_series_equal(recalibrate(fewer, method)["score"], after.loc[fewer.index, "score"])
    other = before.assign(label=before["label"].where(test, 1 - before["label"]))
    assert not recalibrate(other, method)["score"].equals(after["score"])


@pytest.mark.parametrize("method", METHODS)
def test_each_run_is_recalibrated_by_itself_and_nothing_else_changes(method):
    theirs = crooked(draw=1).assign(recipe="theirs")
    published = crooked(draw=2).assign(protocol="published")
    scores = pd.concat([crooked(seeds=(0, 1)), theirs, published], ignore_index=True)
    scores = scores.sample(frac=1, random_state=0)
    after = recalibrate(scores, method)
    pd.testing.assert_frame_equal(after.drop(columns="score"), scores.drop(columns="score"))
    for _, one in scores.groupby(["recipe", "protocol", "seed"]):
        pd.testing.assert_series_equal(recalibrate(one, method)["score"], after.loc[one.index, "score"])


def test_a_table_whose_index_repeats_keeps_its_rows():
    scores = pd.concat([crooked(), crooked(draw=1).assign(recipe="theirs")])
    after = recalibrate(scores, "platt")
    expected = recalibrate(scores.reset_index(drop=True), "platt")
    pd.testing.assert_frame_equal(after.reset_index(drop=True), expected)


def test_scores_of_zero_and_one_are_recalibrated_too():
    scores = crooked()
    scores.loc[scores["score"] < 0.1, "score"] = 0.0
    scores.loc[scores["score"] > 0.9, "score"] = 1.0
    for method in METHODS:
        assert recalibrate(scores, method)["score"].between(0, 1).all()


def test_an_unknown_method_is_refused_by_name():
    with pytest.raises(NotFound, match=r"there is no method 'sigmoid'.*temperature, platt, isotonic"):
        recalibrate(crooked(), "sigmoid")


def test_reliability_by_hand():
    rows = pd.DataFrame(
        {
            "label": [0, 1, 0, 1, 1, 1],
            "score": [0.01, 0.09, 0.55, 0.5, 0.58, 1.0],
            "patient": list("abcdef"),
            "seed": 0,
        }
    )
    found = reliability(rows, resamples=300)
    assert found["score"].tolist() == pytest.approx([0.05, 1.63 / 3, 1.0])
    assert found["share"].tolist() == pytest.approx([1 / 2, 2 / 3, 1])
    assert found["images"].tolist() == [2, 3, 1]
    assert found[["low", "high"]].to_numpy()[:2].tolist() == [[0, 1], [0, 1]]
    # One patient, pneumonia: Wilson's interval, as no resample says anything else.
    assert found.loc[2, ["low", "high"]].tolist() == pytest.approx([1 / (1 + 1.959964**2), 1])


def test_reliability_is_that_of_scikit_learn():
    from sklearn.calibration import calibration_curve

    test = scored(n=400, seeds=(0, 1), strength=2).query("split == 'test'")
    found = reliability(test)
    share, mean = calibration_curve(test["label"], test["score"], n_bins=calibration.BINS)
    np.testing.assert_allclose(found[["share", "score"]], np.stack([share, mean], axis=1))
    assert found["images"].sum() == 400
    assert ((found["low"] <= found["share"]) & (found["share"] <= found["high"])).all()


def test_net_benefit_is_counted_image_by_image():
    test = scored(n=90, images=2, seeds=(0, 1)).query("split == 'test'")
    cuts = np.array([0.1, 0.5, 0.8])
    found = decision_curve(test, cuts)
    for row in found.itertuples():
        by_seed = []
        for _, one in test.groupby("seed"):
            gain = 0.0
            for label, score in zip(one["label"], one["score"], strict=True):
                if score >= row.cut:
                    gain += 1 if label else -row.cut / (1 - row.cut)
            by_seed.append(gain / len(one))
        assert row.benefit == pytest.approx(np.mean(by_seed))
    assert ((found["low"] < found["benefit"]) & (found["benefit"] < found["high"])).all()
    for row in found.itertuples():
        assert row.gain == pytest.approx(row.benefit - max(0.0, row.all))
        assert row.gain_low < row.gain < row.gain_high
    # What both have in common, the share of the ill, does not blur their difference.
    low = found["cut"] < found["all"].max() / 2
    assert (found["gain_high"] - found["gain_low"])[low].mean() < (found["high"] - found["low"])[low].mean()
    everybody = decision_curve(test.assign(score=1.0), cuts)
    assert found["all"].tolist() == pytest.approx(everybody["benefit"].tolist())


def test_a_perfect_score_gains_the_share_of_the_ill_and_a_score_at_the_cut_is_acted_on():
    test = scored(n=90).query("split == 'test'")
    perfect = decision_curve(test.assign(score=test["label"].astype(float)))
    assert len(perfect) == 19 and perfect["cut"].between(0.05, 0.95).all()
    np.testing.assert_allclose(perfect["benefit"], test["label"].mean())
    at = decision_curve(test.assign(score=0.5), np.array([0.5, 0.51]))
    assert at["benefit"].tolist() == pytest.approx([at["all"][0], 0])
