import builders
import numpy as np
import pandas as pd
import pytest
from builders import labels_and_scores
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import norm
from sklearn import metrics as sk
from statsmodels.stats.proportion import proportion_confint

from xraylib.errors import InvalidDataError
from xraylib.evaluation.metrics import (
    METRICS,
    auc_interval,
    effective_size,
    evaluate,
    point_metrics,
    predictive,
    resample,
)

pytestmark = pytest.mark.filterwarnings("error")


def by_scikit_learn(labels, scores, threshold):
    classified = (scores >= threshold).astype(int)
    options = {"zero_division": np.nan}
    return {
        "auc": sk.roc_auc_score(labels, scores),
        "average_precision": sk.average_precision_score(labels, scores),
        "accuracy": sk.accuracy_score(labels, classified),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, classified),
        "sensitivity": sk.recall_score(labels, classified, **options),
        "specificity": sk.recall_score(labels, classified, pos_label=0, **options),
        "precision": sk.precision_score(labels, classified, **options),
        "npv": sk.precision_score(labels, classified, pos_label=0, **options),
        "f1": sk.f1_score(labels, classified, **options),
        # scikit-learn gives 0 for a table with an empty margin; it has no correlation.
        "mcc": sk.matthews_corrcoef(labels, classified) if len(set(classified)) > 1 else np.nan,
        "brier": sk.brier_score_loss(labels, scores),
    }


@settings(max_examples=20, deadline=None)
@given(labels_and_scores(), st.integers(-1, 14), st.data())
def test_metrics_are_those_of_scikit_learn_and_a_weight_counts_as_so_many_copies(data, cut, drawn):
    labels, scores = data
    row = st.lists(st.integers(0, 4), min_size=len(labels), max_size=len(labels))
    weights = np.array([np.ones(len(labels)), *drawn.draw(st.lists(row, max_size=2))])
    ours = point_metrics(labels, scores, cut / 12, weights.astype(float))
    assert tuple(ours) == METRICS
    for number, counts in enumerate(weights.astype(int)):
        many, of = np.repeat(labels, counts), np.repeat(scores, counts)
        if 0 < many.sum() < len(many):
            found = {name: value[number] for name, value in ours.items()}
            assert found == pytest.approx(
                by_scikit_learn(many, of, cut / 12), abs=1e-9, nan_ok=True
            )
        else:
            assert np.isnan(ours["auc"][number])


def test_evaluate_averages_seeds_at_their_own_frozen_thresholds_in_any_order():
    scores = builders.scores(n=60, seeds=(0, 1, 2))
    scores["threshold"] = scores["seed"].map({0: 0.3, 1: 0.5, 2: 0.6})
    found = evaluate(scores)
    by_seed = pd.DataFrame(
        [
            by_scikit_learn(
                part["label"].to_numpy(), part["score"].to_numpy(), part["threshold"].iloc[0]
            )
            for _, part in scores.query("split == 'test'").groupby("seed")
        ]
    )
    assert found["value"].to_dict() == pytest.approx(by_seed.mean().to_dict())
    assert found["seed_sd"].to_dict() == pytest.approx(by_seed.std().to_dict())
    assert ((found["low"] <= found["value"]) & (found["value"] <= found["high"])).all()
    pd.testing.assert_frame_equal(evaluate(scores), found, check_exact=True)
    pd.testing.assert_frame_equal(evaluate(scores.sample(frac=1, random_state=1)), found)
    assert evaluate(scores[scores["seed"] == 0])["seed_sd"].isna().all()


def test_copies_of_a_patients_images_widen_no_evidence():
    grouped = builders.scores(n=40, images=12, noise=0.05)
    alone = grouped.assign(patient=grouped["image_id"])
    width = {}
    for name, scores in (("patients", grouped), ("images", alone)):
        found = evaluate(scores)
        width[name] = (found["high"] - found["low"])[["auc", "accuracy", "sensitivity"]]
    assert (width["patients"] > 2 * width["images"]).all()
    assert evaluate(grouped)["value"].equals(evaluate(alone)["value"])


def test_seeds_do_not_count_as_more_patients():
    one = builders.scores(n=60)
    three = pd.concat([one.assign(seed=seed) for seed in range(3)], ignore_index=True)
    columns = ["value", "patients_low", "patients_high"]
    pd.testing.assert_frame_equal(evaluate(three)[columns], evaluate(one)[columns])


def simulated_runs(rng, runs, patients, spread):
    """Scores of the same images by some runs, each shifted and stretched by its training."""
    label = np.arange(patients) % 8 < 5
    own = np.repeat(np.arange(patients), rng.choice([1, 1, 2, 3], patients))
    truth = (
        1.6 * (2 * label[own] - 1.0)
        + rng.normal(0, 0.8, patients)[own]
        + rng.normal(0, 0.6, len(own))
    )
    parts = []
    for seed in range(runs):
        odds = np.exp(rng.normal(0, spread / 3)) * (
            truth + rng.normal(0, 0.6, len(own))
        ) + rng.normal(0, spread)
        part = pd.DataFrame(
            {"patient": own.astype(str), "label": label[own].astype(int), "score": expit(odds)}
        )
        parts.append(part.assign(seed=seed, image_id=part.index.astype(str)))
    return pd.concat(parts, ignore_index=True).assign(
        recipe="r", protocol="strict", split="test", kind=""
    )


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.2, 0.5])
def test_the_interval_covers_other_runs_on_other_patients_and_that_over_patients_does_not(spread):
    many = simulated_runs(np.random.default_rng(0), 400, 3000, spread)
    truth, covered = (many.loc[many["label"] == 0, "score"] < 0.5).mean(), []
    for sample in range(500):
        scores = simulated_runs(np.random.default_rng([1, sample]), 5, 300, spread)
        row = evaluate(scores, rule=0.5, resamples=200, ranking=False).loc["specificity"]
        covered.append(
            (
                row["low"] <= truth <= row["high"],
                row["patients_low"] <= truth <= row["patients_high"],
            )
        )
    both, patients = np.mean(covered, axis=0)
    assert 0.93 <= both <= 0.97 and patients < 0.92


@pytest.mark.parametrize(
    ("by_patient", "simulations", "least", "most"), [(True, 800, 0.93, 0.97), (False, 100, 0, 0.92)]
)
def test_the_interval_covers_the_truth_only_when_patients_are_resampled(
    by_patient, simulations, least, most
):
    # Scores N(label, 1) by patient and N(0, 0.25) by image.
    truth, covered = norm.cdf(1 / np.sqrt(2 * 1.25)), []
    for sample in range(simulations):
        rng, label = np.random.default_rng(sample), np.arange(120) % 2
        scores = np.repeat(rng.normal(label), 2) + 0.5 * rng.normal(size=240)
        patients = np.repeat(np.arange(120), 2) if by_patient else np.arange(240)
        _, low, high = auc_interval(np.repeat(label, 2), scores, patients, resamples=300)
        covered.append(low <= truth <= high)
    assert least <= np.mean(covered) <= most


def test_shuffled_labels_have_an_interval_that_holds_one_half():
    covered = []
    for sample in range(40):
        labels = np.random.default_rng(sample).permutation(np.arange(120) % 2)
        _, low, high = auc_interval(labels, np.arange(120.0), np.arange(120), resamples=300)
        covered.append(low <= 0.5 <= high)
    assert np.mean(covered) >= 0.85


def test_runs_that_differ_widen_both_ends_of_the_interval():
    # The runs are of different worth, which patients alone cannot show.
    strengths = {0: 0.6, 1: 1.2, 2: 1.8}
    parts = [builders.scores(150, seeds=(s,), strength=strengths[s]) for s in strengths]
    table = pd.concat(parts, ignore_index=True)
    row = evaluate(table).loc["auc"]
    runs = resample(table)
    by_run = runs["auc"][:, 0]
    covariance = np.cov(runs["auc"][:, 1:])
    shared = (covariance.sum() - np.trace(covariance)) / 6
    # Student's quantile of two degrees of freedom, and the normal one.
    half = np.sqrt(4.302653**2 * by_run.var(ddof=1) / 3 + 1.959964**2 * shared)
    mean = by_run.mean()
    odds = mean / (1 - mean) * np.exp(np.array([-1, 1]) * half / (mean * (1 - mean)))
    assert row[["low", "high"]].tolist() == pytest.approx((odds / (1 + odds)).tolist(), abs=1e-5)
    assert row["low"] < row["patients_low"] and row["patients_high"] < row["high"]


def test_what_is_always_correct_has_wilsons_interval():
    scores = builders.scores(n=90, images=2, seeds=(0, 1))
    scores["score"] = scores["score"].where(scores["label"] == 1, 0.0)
    row = evaluate(scores).loc["specificity"]
    negative = scores[(scores["split"] == "test") & (scores["label"] == 0)]["patient"].nunique()
    assert (row["value"], row["high"]) == (1, 1)
    assert row["low"] == pytest.approx(proportion_confint(negative, negative, method="wilson")[0])


def test_nothing_classified_as_pneumonia_has_no_precision():
    found = evaluate(builders.scores(), rule=1.0)
    assert np.isnan(found.loc["precision", "value"]) and found.loc["specificity", "value"] == 1


def test_two_recipes_and_an_absent_split_are_refused():
    scores = builders.scores(n=30)
    with pytest.raises(InvalidDataError, match=r"several recipes or protocols.* Fix: "):
        evaluate(pd.concat([scores, scores.assign(recipe="theirs")]))
    with pytest.raises(InvalidDataError, match=r"no scores of the external split\. Fix: "):
        evaluate(scores, split="external")


def test_predictive_values_follow_bayes_rule():
    # Of 1,000 children 100 have pneumonia: 90 of them are found, with 180 false alarms in 900.
    scores = builders.images([0.1] * 8 + [0.9] * 2, [0.9] * 9 + [0.1])
    found = predictive(scores, (0.1, 0.5)).set_index(["prevalence", "metric"])
    assert found.loc[(0.1, "ppv"), "value"] == pytest.approx(90 / 270)
    assert found.loc[(0.1, "npv"), "value"] == pytest.approx(720 / 730)
    assert found.loc[(0.5, "ppv"), "value"] == pytest.approx(9 / 11)
    assert ((found["low"] <= found["value"]) & (found["value"] <= found["high"])).all()


def test_a_share_of_none_has_wilsons_interval_over_patients():
    scores = builders.scores(n=90, images=2, seeds=(0, 1, 2)).assign(score=0.1)
    never = evaluate(scores, rule=0.5, ranking=False).loc["sensitivity"]
    patients = scores.loc[(scores["split"] == "test") & (scores["label"] == 1), "patient"].nunique()
    assert never["high"] == pytest.approx(proportion_confint(0, patients, method="wilson")[1])


def test_images_of_one_patient_count_as_fewer():
    whole = builders.scores(n=200, images=1, seeds=(0, 1))
    alone, many = (
        part[part["split"] == "test"]
        for part in (whole, builders.scores(n=200, images=5, noise=0.2))
    )
    assert effective_size(alone) == pytest.approx(200)
    assert 200 <= effective_size(many) < 300 < len(many)
    # Seeds that were tested on different images have no size in common.
    apart = alone.assign(image_id=alone["image_id"] + alone["seed"].astype(str))
    assert np.isnan(effective_size(apart))
