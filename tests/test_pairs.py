from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kstest, norm
from sklearn import metrics as sk
from statsmodels.stats.contingency_tables import mcnemar
from test_metrics import scored

from xraylib.evaluation import pairs
from xraylib.evaluation.metrics import thresholds
from xraylib.evaluation.pairs import COLUMNS, compare
from xraylib.evaluation.ranking import delong
from xraylib.storage import DataInvalid

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """statsmodels collects garbage at every correction, which takes longer than all the rest."""
    monkeypatch.setattr("gc.collect", lambda: 0)


def rivals(*noises, n=90, images=1, seeds=(0,), draw=0):
    """Recipes of the same images whose scores are one truth and noise of their own."""
    base = scored(n=n, images=images, seeds=seeds, noise=0.3, draw=draw)
    random, parts = np.random.default_rng(1000 + draw), []
    for number, noise in enumerate(noises):
        odds = np.log(base["score"] / (1 - base["score"])) + noise * random.normal(size=len(base))
        parts.append(base.assign(recipe=f"recipe{number}", score=1 / (1 + np.exp(-odds))))
    return pd.concat(parts, ignore_index=True)


def test_every_pair_has_one_row():
    table = compare(rivals(0.1, 0.5, 1, 2))
    assert tuple(table.columns) == COLUMNS
    names = [f"recipe{number}" for number in range(4)]
    assert table[["a", "b"]].apply(tuple, axis=1).tolist() == list(combinations(names, 2))
    assert (table["n"] == 90).all()


@pytest.mark.parametrize("rule", ["validation", "sensitivity .95", 0.5])
@pytest.mark.parametrize("draw", range(3))
def test_with_one_image_a_patient_mcnemars_p_is_the_classical_one(rule, draw):
    scores = rivals(0.2, 1.5, draw=draw)
    row = compare(scores, rule=rule).iloc[0]
    right = {}
    for recipe, part in scores.groupby("recipe"):
        test = part.query("split == 'test'").set_index("image_id")
        called = test["score"] >= thresholds(part, rule)[0]
        right[recipe] = called == (test["label"] == 1)
    only_a = (right["recipe0"] & ~right["recipe1"]).sum()
    only_b = (right["recipe1"] & ~right["recipe0"]).sum()
    assert (row["only_a_right"], row["only_b_right"]) == (only_a, only_b)
    classical = mcnemar([[0, only_a], [only_b, 0]], exact=False, correction=False)
    assert row["p_mcnemar"] == pytest.approx(classical.pvalue, abs=1e-12)


def test_copies_of_an_image_are_no_further_evidence():
    scores = rivals(0.2, 1.5)
    doubled = pd.concat([scores, scores.assign(image_id=scores["image_id"] + " again")], ignore_index=True)
    one, two = compare(scores).iloc[0], compare(doubled).iloc[0]
    assert two["only_a_right"] == 2 * one["only_a_right"]
    assert two["p_mcnemar"] == pytest.approx(one["p_mcnemar"], abs=1e-12)
    assert two["p_auc"] == pytest.approx(one["p_auc"], abs=1e-9)


def test_mcnemar_over_patients_keeps_its_level():
    # Two recipes of equal worth; three images a patient that are called alike.
    draw, alarms = np.random.default_rng(0), []
    for _ in range(2000):
        calls = np.repeat(draw.choice([-1, 0, 1], 60, p=[0.2, 0.6, 0.2]), 3)
        patients = pd.Series(np.repeat(np.arange(60), 3))
        alarms.append(pairs._mcnemar(pd.Series(calls), patients) < 0.05)
    assert np.mean(alarms) == pytest.approx(0.05, abs=0.015)


def test_each_recipe_calls_what_most_of_its_seeds_call():
    scores = rivals(0, 0, n=30, seeds=(0, 1, 2))
    scores["score"] = 0.9 + 0.1 * scores["score"]
    second = scores["recipe"] == "recipe1"
    scores.loc[second & (scores["seed"] == 0), "score"] -= 0.8
    row = compare(scores, rule=0.5).iloc[0]
    assert (row["only_a_right"], row["only_b_right"]) == (0, 0)
    scores.loc[second & (scores["seed"] == 1), "score"] -= 0.8
    row = compare(scores, rule=0.5).iloc[0]
    assert (row["only_a_right"], row["only_b_right"]) == (20, 10)


def test_the_difference_is_of_mean_aucs_with_delongs_spread():
    scores = rivals(0.2, 1.5, images=2, seeds=(0, 1))
    row = compare(scores).iloc[0]
    test = scores.query("split == 'test'")
    aucs = {
        key: sk.roc_auc_score(part["label"], part["score"]) for key, part in test.groupby(["recipe", "seed"])
    }
    by_recipe = pd.Series(aucs).groupby(level=0).mean()
    assert row["auc_difference"] == pytest.approx(by_recipe["recipe0"] - by_recipe["recipe1"])
    wide = test.pivot(index=["image_id", "label", "patient"], columns=["recipe", "seed"], values="score")
    about = wide.index.to_frame()
    _, covariance = delong(about["label"].to_numpy(), wide.to_numpy().T, about["patient"].to_numpy())
    share = np.array([0.5, 0.5, -0.5, -0.5])
    spread = np.sqrt(share @ covariance @ share)
    assert row["high"] - row["auc_difference"] == pytest.approx(1.959964 * spread)
    assert row["auc_difference"] - row["low"] == pytest.approx(1.959964 * spread)
    assert row["p_auc"] == pytest.approx(2 * norm.sf(row["auc_difference"] / spread))


@pytest.mark.parametrize("seeds", [(0,), (0, 1), (0, 1, 2), (0, 1, 2, 3, 4)])
@pytest.mark.parametrize("draw", range(4))
def test_a_recipe_is_no_better_than_itself(seeds, draw):
    row = compare(rivals(0, 0, images=2, seeds=seeds, draw=draw)).iloc[0]
    assert row[["auc_difference", "low", "high"]].tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    assert row["p_auc"] == pytest.approx(1, abs=1e-6)
    assert row[["only_a_right", "only_b_right", "p_mcnemar"]].tolist() == [0, 0, 1]


def test_a_class_of_one_patient_is_refused():
    scores = rivals(0.2, 2, n=60)
    scores["patient"] = scores["patient"].where(scores["label"] == 0, scores["split"])
    with pytest.raises(DataInvalid, match=r"one patient only.*Mend"):
        compare(scores)


def test_the_other_order_turns_the_signs():
    scores = rivals(0.2, 1.5, seeds=(0, 1))
    one = compare(scores).iloc[0]
    other = compare(scores.sort_values("recipe", ascending=False)).iloc[0]
    assert (other["a"], other["b"]) == (one["b"], one["a"])
    assert -other["auc_difference"] == pytest.approx(one["auc_difference"])
    assert (-other["high"], -other["low"]) == pytest.approx((one["low"], one["high"]))
    assert (other["only_a_right"], other["only_b_right"]) == (one["only_b_right"], one["only_a_right"])
    assert other[["p_auc", "p_mcnemar"]].tolist() == pytest.approx(one[["p_auc", "p_mcnemar"]].tolist())


def test_the_order_of_the_rows_does_not_matter():
    scores = rivals(0.2, 1.5, images=2, seeds=(0, 1))
    first = scores["recipe"] == "recipe0"
    mixed = pd.concat(
        [scores[first].sample(frac=1, random_state=0), scores[~first].sample(frac=1, random_state=1)]
    )
    pd.testing.assert_frame_equal(compare(mixed), compare(scores))


def test_a_far_better_recipe_is_found():
    row = compare(rivals(0, 8, n=300)).iloc[0]
    assert row["low"] > 0
    assert row["p_auc"] < 0.01 and row["p_mcnemar"] < 0.01


def test_recipes_that_differ_by_chance_have_uniform_p():
    found = pd.concat([compare(rivals(1, 1, n=80, images=2, draw=draw), rule=0.5) for draw in range(200)])
    assert kstest(found["p_auc"], "uniform").pvalue > 0.01
    assert 0.02 <= (found["p_auc"] < 0.05).mean() <= 0.09
    assert (found["p_mcnemar"] < 0.05).mean() <= 0.09


@pytest.mark.parametrize("draw", range(3))
def test_holms_correction_by_hand(draw):
    table = compare(rivals(0.2, 0.6, 1.2, 2, draw=draw))
    for name in ("p_auc", "p_mcnemar"):
        worst, expected = 0.0, {}
        for rank, (pair, p) in enumerate(table[name].sort_values(kind="stable").items()):
            worst = max(worst, min(1.0, (len(table) - rank) * p))
            expected[pair] = worst
        assert table[f"{name}_holm"].to_dict() == pytest.approx(expected)
        assert (table[f"{name}_holm"] >= table[name]).all()


def test_one_pair_needs_no_correction():
    row = compare(rivals(0.2, 1.5)).iloc[0]
    assert (row["p_auc_holm"], row["p_mcnemar_holm"]) == (row["p_auc"], row["p_mcnemar"])


def without(image, recipe, seed=None):
    def change(scores):
        gone = (scores["image_id"] == image) & (scores["recipe"] == recipe)
        return scores[~gone if seed is None else ~(gone & (scores["seed"] == seed))]

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("test7_0", "recipe1"), "recipe1 and recipe0 were scored on different test images"),
        (without("test7_0", "recipe0"), "recipe1 and recipe0 were scored on different test images"),
        (without("test7_0", "recipe2"), "recipe2 and recipe0 were scored on different test images"),
        (
            lambda scores: without("test7_0", "recipe2", 1)(scores).assign(protocol="published"),
            "recipe2: its seeds were scored on different test images",
        ),
        (
            without("test7_0", "recipe2", 1),
            "recipe2, strict, seed 0: test7_0 is not among the images of its other seeds",
        ),
        (lambda scores: scores[scores["recipe"] == "recipe0"], "one recipe alone cannot be compared"),
        (
            lambda scores: scores.assign(protocol=scores["recipe"].replace("recipe1", "published")),
            "scores of two protocols cannot be paired",
        ),
        (
            lambda scores: scores.assign(score=scores["score"].where(scores.index != 7)),
            "recipe0, strict, seed 0: val7_0 has no number as score",
        ),
        (lambda scores: scores[scores["split"] == "test"], "seed 0 has no scores of the val side"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(change, said):
    with pytest.raises(DataInvalid, match=said):
        compare(change(rivals(0, 0.1, 0.2, n=30, seeds=(0, 1))))


def test_a_label_that_differs_between_recipes_is_refused():
    scores = rivals(0, 0.1, n=30)
    at = (scores["image_id"] == "test7_0") & (scores["recipe"] == "recipe1")
    scores.loc[at, "label"] = 1 - scores.loc[at, "label"]
    with pytest.raises(DataInvalid, match="test7_0 has two labels"):
        compare(scores)


def test_validation_images_may_differ():
    assert len(compare(without("val7_0", "recipe1")(rivals(0, 0.1)))) == 1
