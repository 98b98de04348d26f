import builders
import numpy as np
import pandas as pd
import pytest
from notebook_code import definitions
from sklearn import metrics as sk
from sklearn.calibration import CalibratedClassifierCV, calibration_curve
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

notebook = definitions("06_evaluation")
METHODS = notebook.METHODS

pytestmark = pytest.mark.filterwarnings("error")


def recalibrate(scores, method, **options):
    return notebook.recalibrate(scores, METHODS[method], **options)


def error(part):
    """Expected calibration error without debiasing."""
    labels, scores = part["label"].to_numpy(), part["score"].to_numpy()
    excess = pd.Series(scores - labels).groupby(notebook.bins_of(scores)).sum()
    return excess.abs().sum() / len(part)


def test_expected_error_by_hand():
    labels, scores = np.array([0, 1, 1, 1, 0]), np.array([0.05, 0.07, 0.95, 1.0, 0.4])
    weights = np.array([[1.0] * 5, [2.0, 0, 1, 1, 0], [0, 0, 0, 0, 3]])
    # The sums of scores and labels are 0.12 and 1 in the first bin, 1.95 and 2 in the last one,
    # and 0.4 and 0 in the fifth.
    expected = [(0.88 + 0.05 + 0.4) / 5, (0.1 + 0.05) / 4, 0.4]
    # Bins without two outcomes lose nothing; the first one has half, so that chance moves it.
    spread = np.sqrt(2 * 0.25)
    chance = np.abs(0.88 + spread * np.random.default_rng(0).normal(size=200_000)).mean() - 0.88
    debiased = notebook.expected_error(labels, scores, weights)
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
        plain.append(error(pd.DataFrame({"label": labels, "score": scores})))
        debiased.append(notebook.expected_error(labels, scores, weights).item())
    assert np.mean(plain) > 0.04
    # The distances of a calibrated score are all chance; the debiasing takes about half of them.
    assert abs(np.mean(debiased)) < 0.65 * np.mean(plain)
    labels = (rng.random(20_000) < 0.55).astype(int)
    far = notebook.expected_error(labels, np.full(20_000, 0.85), np.ones((1, 20_000))).item()
    assert far == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("sample", range(12))
def test_every_interval_contains_its_estimate(sample):
    table = builders.scores(n=45, seeds=range(1 + sample % 4), sample=sample)
    compared = notebook.compare_methods(table, 0.3, resamples=100)
    for name in ("ece", "brier", "ece_difference", "brier_difference"):
        known = compared.dropna(subset=[name])
        assert known[name].between(known[f"{name}_low"], known[f"{name}_high"]).all()


def crooked(**options):
    """Scores three times too extreme and too high."""
    scores = builders.scores(n=300, strength=1.5, noise=0.3, **options)
    # The true log odds: the scores' have standard deviation 1.044 and means 1.5 apart, and two
    # images of three are positive.
    odds = 1.5 / 1.09 * (notebook.log_odds(scores["score"].to_numpy()) - 0.75) + np.log(2)
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
        assert val["score"].mean() == pytest.approx(val["label"].mean(), abs=0.01)


@pytest.mark.parametrize("method", METHODS)
def test_recalibration_sees_the_runs_own_validation_alone(method):
    before = crooked()
    test = before["split"] == "test"
    after = recalibrate(before, method)
    turned = before.assign(label=before["label"].where(~test, 1 - before["label"]))
    pd.testing.assert_series_equal(recalibrate(turned, method)["score"], after["score"])
    other = before.assign(label=before["label"].where(test, 1 - before["label"]))
    assert not recalibrate(other, method)["score"].equals(after["score"])


def test_scores_of_zero_and_one_are_recalibrated_too():
    scores = crooked()
    scores["score"] = scores["score"].round()
    for method in METHODS:
        assert recalibrate(scores, method)["score"].between(0, 1).all()


def test_reliability_is_that_of_scikit_learn_with_wilsons_interval_for_all_or_none():
    test = builders.scores(n=400, seeds=(0, 1), strength=2).query("split == 'test'")
    found = notebook.reliability(test)
    share, mean = calibration_curve(test["label"], test["score"], n_bins=notebook.BINS)
    np.testing.assert_allclose(found[["share", "score"]], np.stack([share, mean], axis=1))
    assert found["images"].sum() == 400
    assert ((found["low"] <= found["share"]) & (found["share"] <= found["high"])).all()
    one = notebook.reliability(builders.images([0.05, 0.95], [1.0]).tail(1))
    assert one.loc[0, ["low", "high"]].tolist() == pytest.approx([1 / (1 + 1.959964**2), 1])


@pytest.mark.parametrize("cut", [0.05, 0.2, 0.6])
def test_net_benefit_is_counted_image_by_image(cut):
    test = builders.scores(n=90, images=2, seeds=(0, 1)).query("split == 'test'")
    share = test["label"].mean()
    found = notebook.net_benefit(test, share, share, cut)
    acted = test[test["score"] >= cut]["label"]
    gain = acted.sum() - (1 - acted).sum() * cut / (1 - cut)
    assert found["benefit"] == pytest.approx(gain / len(test))
    assert found["gain"] == pytest.approx(found["benefit"] - max(0.0, found["all"]))
    assert found["low"] <= found["benefit"] <= found["high"]
    assert found["gain_low"] <= found["gain"] <= found["gain_high"]
    everybody = notebook.net_benefit(test.assign(score=1.0), share, share, cut)
    assert found["all"] == pytest.approx(everybody["benefit"])
    perfect = notebook.net_benefit(test.assign(score=test["label"] * 1.0), share, share, cut)
    assert perfect["benefit"] == pytest.approx(share)


def test_the_gain_is_over_the_better_of_acting_on_all_and_on_nobody():
    """At a rare disease acting on all does harm, so the gain is over acting on nobody."""
    test = builders.scores(n=90, seeds=(0,)).query("split == 'test'")
    row = notebook.net_benefit(test, 0.05, test["label"].mean(), cut=0.2)
    assert row["all"] == pytest.approx(0.05 - 0.95 * 0.25)
    assert row["gain"] == row["benefit"]
    often = notebook.net_benefit(test, 0.8, test["label"].mean(), cut=0.2)
    assert often["gain"] == pytest.approx(often["benefit"] - (0.8 - 0.2 * 0.25))


def test_at_another_prevalence_net_benefit_is_that_of_so_many_more_negatives():
    test = builders.scores(n=90, seeds=(0,)).query("split == 'test'")
    more = pd.concat([test, *[test[test["label"] == 0]] * 4])
    before, p = test["label"].mean(), more["label"].mean()
    odds = test["score"] / (1 - test["score"]) * p / (1 - p) * (1 - before) / before
    known = notebook.net_benefit(more.assign(score=odds / (1 + odds)), p, p)
    found = notebook.net_benefit(test, p, before)
    for column in ("benefit", "all", "gain"):
        assert found[column] == pytest.approx(known[column])
    assert found["benefit"] < notebook.net_benefit(test, before, before)["benefit"]


def test_no_temperature_is_claimed_where_validation_is_perfectly_separated():
    table = builders.scores(n=60)
    val = table["split"] == "val"
    table.loc[val, "score"] = np.where(table.loc[val, "label"] == 1, 0.9, 0.1)
    fitted = recalibrate(table, "temperature")
    assert fitted["score"].isna().all()
    compared = notebook.compare_methods(table, 0.5, resamples=20).set_index("method")
    assert compared.loc["temperature", ["ece", "brier_difference_low"]].isna().all()
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
        fitted.fit(notebook.log_odds(val["score"].to_numpy())[:, None], val["label"].to_numpy())
    except ValueError:
        pytest.skip("this scikit-learn is older than temperature scaling")
    expected = fitted.predict_proba(notebook.log_odds(table["score"].to_numpy())[:, None])[:, 1]
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
    compared = notebook.compare_methods(with_swapped, 0.5, resamples=20).set_index("method")
    assert compared.index[-1] == "platt, val and swapped" and len(compared) == 6
    briers = []
    for _, own in both[both["split"] == "test"].groupby("seed"):
        briers.append(sk.brier_score_loss(own["label"], own["score"]))
    assert compared["brier"].iloc[-1] == pytest.approx(np.mean(briers))
    assert len(notebook.compare_methods(table, 0.5, resamples=20)) == 5


def test_methods_are_compared_with_raw_on_the_same_images():
    table = crooked(seeds=(0, 1, 2))
    found = notebook.compare_methods(table, 0.9, resamples=200).set_index("method")
    test = table[table["split"] == "test"]
    for name, scores in (("raw", table), ("platt", recalibrate(table, "platt"))):
        own = scores[scores["split"] == "test"]
        briers = [sk.brier_score_loss(run["label"], run["score"]) for _, run in own.groupby("seed")]
        assert found.loc[name, "brier"] == pytest.approx(np.mean(briers))
        weights = np.ones((1, 300))
        eces = [
            notebook.expected_error(run["label"].to_numpy(), run["score"].to_numpy(), weights)
            for _, run in own.groupby("seed")
        ]
        assert found.loc[name, "ece"] == pytest.approx(np.mean(eces))
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
