import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn import metrics as sk
from statsmodels.stats.proportion import proportion_confint

from xraylib.evaluation.metrics import (
    METRICS,
    auc_interval,
    confusion,
    evaluate,
    point_metrics,
    predictive,
    predictive_values,
    table,
    thresholds,
)
from xraylib.evaluation.scores import COLUMNS, check_scores
from xraylib.storage import DataInvalid

# A metric that no resample defines has no interval, which NumPy remarks on.
pytestmark = pytest.mark.filterwarnings("error", "ignore:All-NaN")


@st.composite
def judged(draw, levels=12):
    """Labels of both classes and scores on a coarse grid, so that ties are common."""
    n = draw(st.integers(2, 60))
    labels = np.array(draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)))
    assume(0 < labels.sum() < n)
    scores = np.array(draw(st.lists(st.integers(0, levels), min_size=n, max_size=n))) / levels
    return labels, scores


def by_scikit_learn(labels, scores, threshold):
    called = (scores >= threshold).astype(int)
    options = {"zero_division": np.nan}
    return {
        "auc": sk.roc_auc_score(labels, scores),
        "average_precision": sk.average_precision_score(labels, scores),
        "accuracy": sk.accuracy_score(labels, called),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, called),
        "sensitivity": sk.recall_score(labels, called, **options),
        "specificity": sk.recall_score(labels, called, pos_label=0, **options),
        "precision": sk.precision_score(labels, called, **options),
        "npv": sk.precision_score(labels, called, pos_label=0, **options),
        "f1": sk.f1_score(labels, called, **options),
        # scikit-learn calls a table with an empty margin 0; it has no correlation.
        "mcc": sk.matthews_corrcoef(labels, called) if 0 < called.sum() < len(called) else np.nan,
        "brier": sk.brier_score_loss(labels, scores),
    }


@settings(max_examples=200, deadline=None)
@given(judged(), st.integers(-1, 14))
def test_point_metrics_are_those_of_scikit_learn(data, cut):
    labels, scores = data
    ours = {name: value.item() for name, value in point_metrics(labels, scores, cut / 12).items()}
    assert tuple(ours) == METRICS
    assert ours == pytest.approx(by_scikit_learn(labels, scores, cut / 12), abs=1e-9, nan_ok=True)


@settings(max_examples=100, deadline=None)
@given(judged(), st.data())
def test_a_weight_counts_as_so_many_copies(data, drawn):
    labels, scores = data
    weights = np.array(
        drawn.draw(
            st.lists(
                st.lists(st.integers(0, 4), min_size=len(labels), max_size=len(labels)),
                min_size=1,
                max_size=3,
            )
        )
    )
    ours = point_metrics(labels, scores, 0.5, weights.astype(float))
    for number, row in enumerate(weights):
        many, of = np.repeat(labels, row), np.repeat(scores, row)
        if 0 < many.sum() < len(many):
            found = {name: value[number] for name, value in ours.items()}
            assert found == pytest.approx(by_scikit_learn(many, of, 0.5), abs=1e-9, nan_ok=True)
        else:
            assert np.isnan(ours["auc"][number])


def scored(n=120, images=1, seeds=(0,), strength=1.0, draw=0, noise=1.0):
    """Scores of `n` patients with `images` each on both sides; `noise` sets images of a patient apart."""
    random = np.random.default_rng(draw)
    parts = []
    for split in ("val", "test"):
        label = np.arange(n) % 3 > 0
        patient = np.array([f"{split}{i}" for i in range(n)])
        centre = random.normal(strength * label)
        for seed in seeds:
            margin = np.repeat(centre, images) + noise * random.normal(size=n * images)
            part = pd.DataFrame(
                {"label": np.repeat(label, images).astype(int), "patient": np.repeat(patient, images)}
            )
            part["image_id"] = part["patient"] + "_" + part.groupby("patient").cumcount().astype(str)
            part["kind"] = np.where(part["label"] == 1, "virus", "normal")
            parts.append(part.assign(split=split, seed=seed, score=1 / (1 + np.exp(-margin))))
    return pd.concat(parts, ignore_index=True).assign(recipe="ours", protocol="strict")[list(COLUMNS)]


def test_evaluate_says_the_same_on_every_call_and_in_any_order():
    scores = scored(seeds=(0, 1))
    first = evaluate(scores)
    pd.testing.assert_frame_equal(evaluate(scores), first, check_exact=True)
    pd.testing.assert_frame_equal(evaluate(scores.sample(frac=1, random_state=1)), first)


@pytest.mark.parametrize("draw", range(4))
def test_the_interval_holds_the_value_and_the_value_is_scikit_learns(draw):
    scores = scored(seeds=(0, 1, 2), draw=draw)
    figures = evaluate(scores)
    assert figures.index.tolist() == list(METRICS)
    assert ((figures["low"] <= figures["value"]) & (figures["value"] <= figures["high"])).all()
    points = thresholds(scores, "validation")
    by_seed = pd.DataFrame(
        [
            by_scikit_learn(part["label"].to_numpy(), part["score"].to_numpy(), points[seed])
            for seed, part in scores.query("split == 'test'").groupby("seed")
        ]
    )
    assert figures["value"].to_dict() == pytest.approx(by_seed.mean().to_dict(), abs=1e-9)
    assert figures["seed_sd"].to_dict() == pytest.approx(by_seed.std().to_dict(), abs=1e-9)


def test_one_seed_has_no_spread():
    assert evaluate(scored())["seed_sd"].isna().all()


def test_images_of_one_patient_do_not_count_as_so_many_patients():
    grouped = scored(n=40, images=12, noise=0.05)
    alone = grouped.assign(patient=grouped["image_id"])
    width = {}
    for name, scores in (("patients", grouped), ("images", alone)):
        figures = evaluate(scores)
        width[name] = (figures["high"] - figures["low"])[["auc", "accuracy", "sensitivity"]]
    assert (width["patients"] > 2 * width["images"]).all()
    assert evaluate(grouped)["value"].equals(evaluate(alone)["value"])


def test_seeds_do_not_count_as_more_patients():
    one = scored(n=60, noise=0.0)
    three = pd.concat([one.assign(seed=seed) for seed in range(3)], ignore_index=True)
    pd.testing.assert_frame_equal(
        evaluate(three)[["value", "low", "high"]], evaluate(one)[["value", "low", "high"]]
    )


def test_by_chance_the_interval_of_the_auc_holds_one_half():
    held = []
    for draw in range(20):
        scores = scored(strength=0.0, draw=draw)
        auc = evaluate(scores, rule=0.5, resamples=500).loc["auc"]
        held.append(auc["low"] <= 0.5 <= auc["high"])
    assert np.mean(held) >= 0.85


def simulated(draw, patients=120, images=2, within=0.5):
    """Labels, scores and patients (half ill): N(label, 1) by patient, N(0, within ** 2) by image."""
    random, label = np.random.default_rng(draw), np.arange(patients) % 2
    centre = np.repeat(random.normal(label), images)
    scores = centre + within * random.normal(size=patients * images)
    return np.repeat(label, images), scores, np.repeat(np.arange(patients), images)


@pytest.mark.parametrize(
    ("whose", "simulations", "least", "most"),
    [("the patients'", 800, 0.93, 0.97), ("each image its own", 200, 0, 0.92)],
)
def test_the_interval_covers_the_truth_only_when_patients_are_drawn(whose, simulations, least, most):
    truth, held = norm.cdf(1 / np.sqrt(2 * 1.25)), []
    for draw in range(simulations):
        labels, scores, patients = simulated(draw)
        if whose == "each image its own":
            patients = np.arange(len(patients))
        _, low, high = auc_interval(labels, scores, patients, resamples=500)
        held.append(low <= truth <= high)
    assert least <= np.mean(held) <= most


def test_labels_dealt_at_random_have_an_interval_that_holds_one_half():
    held = []
    for draw in range(40):
        labels, scores, patients = simulated(draw)
        dealt = np.random.default_rng(draw).permutation(labels[::2])[patients]
        auc, low, high = auc_interval(dealt, scores, patients, resamples=500)
        assert low < auc < high
        held.append(low <= 0.5 <= high)
    assert np.mean(held) >= 0.85


def test_predictive_values_by_hand():
    # Of 1,000 children 100 are ill: 90 of them are called, and 180 of the 900 well.
    ppv, npv = predictive_values(np.array([0.9]), np.array([0.8]), 0.1)
    assert [ppv.item(), npv.item()] == pytest.approx([90 / 270, 720 / 730])


@settings(max_examples=100, deadline=None)
@given(judged(), st.integers(-1, 14))
def test_at_the_prevalence_of_the_images_predictive_values_are_precision_and_npv(data, cut):
    labels, scores = data
    found = point_metrics(labels, scores, cut / 12)
    ppv, npv = predictive_values(found["sensitivity"], found["specificity"], labels.mean())
    assert ppv.item() == pytest.approx(found["precision"].item(), abs=1e-9, nan_ok=True)
    assert npv.item() == pytest.approx(found["npv"].item(), abs=1e-9, nan_ok=True)


def test_a_commoner_illness_raises_the_one_and_lowers_the_other():
    sensitivity, specificity = np.array([0.9, 0.5, 1.0]), np.array([0.8, 0.99, 0.3])
    steps = [predictive_values(sensitivity, specificity, prevalence) for prevalence in (0.01, 0.1, 0.5, 0.9)]
    ppv, npv = np.diff(steps, axis=0).swapaxes(0, 1)
    assert (ppv > 0).all() and (npv[:, :2] < 0).all()
    assert all(step[1][2] == 1 for step in steps)


def test_a_call_that_is_never_made_has_no_predictive_value():
    ppv, npv = predictive_values(np.array([0.0, 1.0]), np.array([1.0, 0.0]), 0.3)
    assert [ppv[0], npv[0], ppv[1], npv[1]] == pytest.approx([np.nan, 0.7, 0.3, np.nan], nan_ok=True)


def test_without_validation_scores_no_threshold_is_made_up():
    scores = scored().query("split == 'test'")
    with pytest.raises(DataInvalid, match="val"):
        evaluate(scores)
    assert evaluate(scores, rule=0.5).loc["auc", "value"] > 0.5


def test_without_test_scores_there_are_no_figures():
    with pytest.raises(DataInvalid, match="no scores of the test side"):
        evaluate(scored().query("split == 'val'"))


def spoilt(change):
    scores = scored(n=30)
    change(scores)
    return scores


def set_at(column, value):
    def change(scores):
        scores.loc[7, column] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (set_at("score", np.nan), "val7_0 has no number as score"),
        (set_at("score", 1.01), r"val7_0 has a score outside \[0, 1\]"),
        (set_at("score", -np.inf), r"val7_0 has a score outside \[0, 1\]"),
        (set_at("label", 2), "val7_0 has a label that is not 0 or 1"),
        (set_at("image_id", "val3_0"), "val3_0 stands there twice"),
        (set_at("split", "tset"), "val7_0 is of a side that does not exist"),
        (set_at("patient", ""), "val7_0 has no patient"),
        (set_at("kind", "normal"), "val7_0 has a label that its kind contradicts"),
    ],
)
def test_a_bad_row_is_refused_by_name(change, said):
    for check in (check_scores, evaluate):
        with pytest.raises(DataInvalid, match=f"ours, strict, seed 0: {said} \\(1 rows\\). Mend"):
            check(spoilt(change))


def test_a_table_without_columns_rows_or_both_classes_is_refused():
    scores = scored(n=30)
    with pytest.raises(DataInvalid, match="lacks the columns patient, score"):
        check_scores(scores.drop(columns=["patient", "score"]))
    with pytest.raises(DataInvalid, match="empty"):
        check_scores(scores[:0])
    with pytest.raises(DataInvalid, match="ours, strict, 0, test: one class only"):
        check_scores(scores.query("split == 'val' or label == 1"))
    check_scores(scores)


def test_confusion_counts_images_and_averages_seeds():
    scores = scored(seeds=(0, 1))
    matrix = confusion(scores, rule=0.5)
    test = scores.query("split == 'test'")
    expected = sk.confusion_matrix(test["label"], test["score"] >= 0.5) / 2
    np.testing.assert_allclose(matrix, expected)
    none_called = confusion(scores, rule=1.0)
    np.testing.assert_allclose(none_called, [[40, 0], [80, 0]])


def test_a_rule_that_calls_nothing_pneumonia_has_no_precision():
    scores = scored().assign(score=lambda s: s["score"] * 0.4)
    figures = evaluate(scores, rule=0.5)
    assert np.isnan(figures.loc["precision", "value"])
    assert figures.loc["specificity", "value"] == 1


def test_the_auc_of_any_number_has_the_interval_of_its_patients():
    test = scored(images=3).query("split == 'test'")
    labels, values = test["label"].to_numpy(), 1000 * test["score"].to_numpy() - 7
    auc, low, high = auc_interval(labels, values, test["patient"].to_numpy())
    expected = evaluate(scored(images=3)).loc["auc", ["value", "low", "high"]]
    assert [auc, low, high] == pytest.approx(expected.tolist())
    turned = auc_interval(labels, -values, test["patient"].to_numpy())
    assert turned == pytest.approx((1 - auc, 1 - high, 1 - low))


def test_the_table_has_one_row_a_recipe_and_protocol():
    ours, theirs = scored(seeds=(0, 1)), scored(draw=1).assign(recipe="theirs", protocol="published")
    rows = table(
        pd.concat([ours, theirs]), lambda recipe, protocol: 0.5 if recipe == "theirs" else "validation"
    )
    assert rows[["recipe", "protocol", "seeds", "n_test"]].to_numpy().tolist() == [
        ["ours", "strict", 2, 120],
        ["theirs", "published", 1, 120],
    ]
    figures = evaluate(theirs, rule=0.5)
    for metric in METRICS:
        expected = figures.loc[metric, ["value", "low", "high"]].tolist()
        assert rows.loc[1, [metric, f"{metric}_low", f"{metric}_high"]].tolist() == pytest.approx(expected)
    assert rows["threshold"].tolist() == [thresholds(ours, "validation").mean(), 0.5]


def test_predictive_values_of_several_seeds_have_intervals_over_patients():
    scores = scored(n=90, images=2, seeds=(0, 1))
    found = predictive(scores, (0.05, 0.5)).set_index(["prevalence", "metric"])
    assert list(found.index) == [(p, m) for p in (0.05, 0.5) for m in ("ppv", "npv")]
    assert ((found["low"] <= found["value"]) & (found["value"] <= found["high"])).all()
    by_seed = [evaluate(part)["value"] for _, part in scores.groupby("seed")]
    expected = [predictive_values(one["sensitivity"], one["specificity"], 0.05)[0] for one in by_seed]
    assert found.loc[(0.05, "ppv"), "value"] == pytest.approx(np.mean(expected))
    assert found.loc[(0.05, "ppv"), "seed_sd"] == pytest.approx(np.std(expected, ddof=1))
    # At half ill, half well, with sensitivity s and specificity c: s / (s + 1 - c), which rises with both.
    assert found.loc[(0.05, "ppv"), "value"] < found.loc[(0.5, "ppv"), "value"]


def test_delongs_interval_stands_beside_the_bootstraps():
    scores = scored(n=90, images=2, seeds=(0, 1)).assign(protocol="published")
    (row,) = table(scores, lambda recipe, protocol: 0.5).to_dict("records")
    for end in ("low", "high"):
        assert row[f"auc_delong_{end}"] == pytest.approx(row[f"auc_{end}"], abs=0.02)
    other = scores["seed"] == 1
    scores.loc[other, "image_id"] += " of another child"
    (row,) = table(scores, lambda recipe, protocol: 0.5).to_dict("records")
    assert np.isnan(row["auc_delong_low"]) and np.isfinite(row["auc_low"])


def test_a_patient_on_both_sides_is_refused_under_strict_alone():
    scores = scored(n=30)
    at = scores.index[scores["split"] == "test"][3]
    scores.loc[at, "patient"] = scores.loc[scores["split"] == "val", "patient"].iloc[0]
    with pytest.raises(DataInvalid, match=r"is of a patient who stands on two sides \(\d+ rows\)\. Mend"):
        check_scores(scores)
    check_scores(scores.assign(protocol="published"))


def test_an_image_with_two_labels_is_named():
    scores = scored(n=30, seeds=(0, 1))
    at = scores.index[(scores["split"] == "test") & (scores["seed"] == 1)][5]
    scores.loc[at, "label"] = 1 - scores.loc[at, "label"]
    with pytest.raises(DataInvalid, match=rf"{scores.loc[at, 'image_id']} has two labels.*Mend"):
        check_scores(scores)


def test_of_two_labels_the_one_that_most_contradict_is_named():
    scores = pd.concat([scored(n=30).assign(recipe=name) for name in ("a", "b", "c")], ignore_index=True)
    at = scores.index[scores["recipe"] == "b"][5]
    scores.loc[at, "label"] = 1 - scores.loc[at, "label"]
    said = rf"b, strict, seed 0: {scores.loc[at, 'image_id']} has two labels \(1 rows\)"
    with pytest.raises(DataInvalid, match=said):
        check_scores(scores)


def test_an_image_of_two_patients_or_on_two_sides_is_named():
    scores = scored(n=30, seeds=(0, 1))
    first = scores.index[(scores["split"] == "test") & (scores["seed"] == 1)][5]
    with pytest.raises(DataInvalid, match=f"{scores.loc[first, 'image_id']} has two patients"):
        check_scores(scores.assign(patient=scores["patient"].where(scores.index != first, "somebody else")))
    moved = scored(n=30)
    test = moved.index[moved["split"] == "test"][5]
    moved.loc[test, "image_id"] = moved.loc[7, "image_id"]
    with pytest.raises(DataInvalid, match=f"{moved.loc[7, 'image_id']} stands on two sides"):
        check_scores(moved)


def test_seeds_tested_on_other_images_are_refused_under_strict_alone():
    scores = scored(n=30, seeds=(0, 1))
    gone = scores.index[(scores["split"] == "test") & (scores["seed"] == 1)][5]
    name = scores.loc[gone, "image_id"]
    with pytest.raises(DataInvalid, match=f"seed 0: {name} is not among the images of its other seeds"):
        check_scores(scores.drop(index=gone))
    check_scores(scores.drop(index=gone).assign(protocol="published"))


def test_one_score_for_all_is_refused_but_of_the_recipe_that_sees_nothing():
    scores = scored(n=30).assign(score=0.25)
    with pytest.raises(DataInvalid, match=r"strict, 0, test: all 30 scores are 0\.25.*Mend"):
        check_scores(scores)
    check_scores(scores.assign(recipe="majority-class"))


def test_what_is_always_right_has_an_interval_all_the_same():
    scores = scored(n=90, images=2, seeds=(0, 1))
    scores["score"] = scores["score"].where(scores["label"] == 1, 0.0)
    row = evaluate(scores, rule=0.5).loc["specificity"]
    well = scores[(scores["split"] == "test") & (scores["label"] == 0)]["patient"].nunique()
    assert (row["value"], row["high"]) == (1, 1)
    assert row["low"] == pytest.approx(proportion_confint(well, well, method="wilson")[0])
