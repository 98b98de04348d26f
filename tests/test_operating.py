import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_metrics import judged, scored

from xraylib.evaluation.operating import (
    RULES,
    cost_threshold,
    sensitivity_threshold,
    threshold,
    thresholds,
    youden_threshold,
)
from xraylib.storage import DataInvalid, NotFound

pytestmark = pytest.mark.filterwarnings("error")


def found(labels, scores, at):
    return np.mean(scores[labels == 1] >= at)


def alarmed(labels, scores, at):
    return np.mean(scores[labels == 0] >= at)


@settings(max_examples=200, deadline=None)
@given(judged())
def test_youdens_threshold_is_the_best_of_all(data):
    labels, scores = data
    at = youden_threshold(labels, scores)

    def index(cut):
        return found(labels, scores, cut) - alarmed(labels, scores, cut)

    best = max(index(cut) for cut in [*np.unique(scores), np.inf])
    assert index(at) == pytest.approx(best, abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(judged(), st.sampled_from([0.25, 0.5, 0.8, 0.95, 0.98, 1.0]) | st.floats(0.01, 1))
def test_no_higher_threshold_has_the_sensitivity(data, target):
    labels, scores = data
    at = sensitivity_threshold(labels, scores, target)
    assert found(labels, scores, at) >= target - 1e-9
    lowest = scores[scores >= at].min()
    for higher in np.unique(scores[scores > lowest]):
        assert found(labels, scores, higher) < target


@settings(max_examples=200, deadline=None)
@given(judged(), st.sampled_from([0.2, 1, 5, 20]) | st.floats(0.01, 100))
def test_no_threshold_that_calls_an_image_costs_less(data, ratio):
    labels, scores = data

    def cost(cut):
        missed = np.sum(scores[labels == 1] < cut)
        return ratio * missed + np.sum(scores[labels == 0] >= cut)

    cheapest = min(cost(cut) for cut in np.unique(scores))
    assert cost(cost_threshold(labels, scores, ratio)) == pytest.approx(cheapest, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(judged(), st.sampled_from([rule for rule in RULES if isinstance(rule, str)]))
def test_no_score_lies_on_a_threshold_but_the_lowest(data, rule):
    labels, scores = data
    at = threshold(labels, scores, rule)
    assert at not in scores or at == scores.min()


@settings(max_examples=50, deadline=None)
@given(judged(), st.randoms(use_true_random=False))
def test_the_order_of_the_images_does_not_matter(data, random):
    labels, scores = data
    order = list(range(len(labels)))
    random.shuffle(order)
    for rule in RULES:
        assert threshold(labels[order], scores[order], rule) == threshold(labels, scores, rule)


def test_rules_by_hand():
    labels = np.array([0, 0, 0, 1, 0, 1, 1, 1])
    scores = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.9])
    chosen = {
        rule: threshold(labels, scores, rule)
        for rule in ("validation", "sensitivity .75", "sensitivity .76", "cost 0.5", "cost 2", 0.37)
    }
    expected = {
        "validation": 0.55,
        "sensitivity .75": 0.55,
        "sensitivity .76": 0.35,
        "cost 0.5": 0.55,
        "cost 2": 0.35,
        0.37: 0.37,
    }
    assert chosen == pytest.approx(expected)


def test_a_dearer_miss_never_raises_the_threshold():
    val = scored(n=200).query("split == 'val'")
    labels, scores = val["label"].to_numpy(), val["score"].to_numpy()
    chosen = [cost_threshold(labels, scores, ratio) for ratio in (0.1, 0.5, 1, 2, 5, 10, 50)]
    assert chosen == sorted(chosen, reverse=True)
    targets = [sensitivity_threshold(labels, scores, target) for target in (0.5, 0.8, 0.95, 0.98, 1)]
    assert targets == sorted(targets, reverse=True)


@pytest.mark.parametrize(
    "rule",
    [
        *(
            "",
            "youden",
            "Validation",
            "validation 1",
            "0.5",
            "sensitivity",
            "sensitivity 0",
            "sensitivity 1.01",
        ),
        *(
            "sensitivity -1",
            "sensitivity nan",
            "sensitivity high",
            "specificity .9",
            "cost",
            "cost 0",
            "cost -5",
        ),
        *("cost five", "cost nan"),
    ],
)
def test_an_unknown_rule_is_refused_by_name(rule):
    scores = scored(n=30)
    val = scores.query("split == 'val'")
    with pytest.raises(NotFound, match=f"there is no rule {rule!r} for a threshold. Fix: "):
        threshold(val["label"].to_numpy(), val["score"].to_numpy(), rule)
    with pytest.raises(NotFound, match=f"there is no rule {rule!r} "):
        thresholds(scores, rule)


def test_each_seed_has_its_own_threshold():
    scores = scored(seeds=(7, 0, 3))
    for rule in RULES:
        points = thresholds(scores, rule)
        assert points.index.tolist() == [0, 3, 7]
        for seed, part in scores.query("split == 'val'").groupby("seed"):
            assert points[seed] == threshold(part["label"].to_numpy(), part["score"].to_numpy(), rule)
    assert thresholds(scores, "validation").nunique() == 3


def test_the_threshold_comes_from_validation_alone():
    scores = scored()
    val = scores["split"] == "val"
    turned = scores.assign(
        label=scores["label"].where(val, 1 - scores["label"]),
        score=scores["score"].where(val, scores["score"] ** 2),
    )
    for rule in RULES:
        pd.testing.assert_series_equal(thresholds(turned, rule), thresholds(scores, rule))


def test_a_seed_without_validation_is_named():
    scores = scored(seeds=(0, 1)).query("seed == 0 or split == 'test'")
    with pytest.raises(DataInvalid, match="seed 1 has no scores of the val side"):
        thresholds(scores, "cost 5")
    assert thresholds(scores, 0.3).to_dict() == {0: 0.3, 1: 0.3}
