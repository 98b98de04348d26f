import numpy as np
import pandas as pd
import pytest
from builders import labels_and_scores, scores
from hypothesis import given, settings
from hypothesis import strategies as st

from xraylib.errors import InvalidDataError, NotFoundError
from xraylib.training.thresholds import threshold, thresholds

RULES = ("sensitivity 0.95", "youden", "sensitivity 0.98", "cost 5", 0.5)

pytestmark = pytest.mark.filterwarnings("error")


def found(labels, values, at):
    return np.mean(values[labels == 1] >= at)


@settings(max_examples=60, deadline=None)
@given(labels_and_scores())
def test_youdens_threshold_is_the_best_of_all(data):
    labels, values = data

    def index(cut):
        return found(labels, values, cut) - np.mean(values[labels == 0] >= cut)

    best = max(index(cut) for cut in [*np.unique(values), np.inf])
    assert index(threshold(labels, values, "youden")) == pytest.approx(best, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(labels_and_scores(), st.sampled_from([0.25, 0.8, 0.95, 1.0]))
def test_no_higher_threshold_has_the_sensitivity(data, target):
    labels, values = data
    at = threshold(labels, values, f"sensitivity {target}")
    assert found(labels, values, at) >= target - 1e-9
    lowest = values[values >= at].min()
    assert all(
        found(labels, values, higher) < target for higher in np.unique(values[values > lowest])
    )


@settings(max_examples=60, deadline=None)
@given(labels_and_scores(), st.sampled_from([0.2, 1, 5, 20]))
def test_no_threshold_costs_less(data, ratio):
    labels, values = data

    def cost(cut):
        return ratio * np.sum(values[labels == 1] < cut) + np.sum(values[labels == 0] >= cut)

    cheapest = min(cost(cut) for cut in np.unique(values))
    assert cost(threshold(labels, values, f"cost {ratio}")) == pytest.approx(cheapest, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(labels_and_scores(), st.sampled_from(RULES[:4]))
def test_no_score_lies_on_a_threshold_but_the_lowest(data, rule):
    labels, values = data
    at = threshold(labels, values, rule)
    assert at not in values or at == values.min()


def test_rules_by_hand():
    labels = np.array([0, 0, 0, 1, 0, 1, 1, 1])
    values = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.9])
    expected = {
        "youden": 0.55,
        "sensitivity 0.75": 0.55,
        "sensitivity 0.76": 0.35,
        "cost 0.5": 0.55,
        "cost 2": 0.35,
        0.37: 0.37,
    }
    assert {rule: threshold(labels, values, rule) for rule in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    "rule", ["", "Youden", "0.5", "sensitivity", "sensitivity 0", "cost nan", "cost five"]
)
def test_an_unknown_rule_is_refused_by_name(rule):
    with pytest.raises(NotFoundError, match=f"there is no rule {rule!r} for a threshold. Fix: "):
        thresholds(scores(n=30), rule)


def test_each_seed_has_its_own_threshold_chosen_on_validation_alone():
    table = scores(seeds=(7, 0, 3))
    val = table["split"] == "val"
    other = table.assign(label=table["label"].where(val, 1 - table["label"]))
    for rule in RULES:
        points = thresholds(table, rule)
        assert points.index.tolist() == [0, 3, 7]
        for seed, part in table[val].groupby("seed"):
            assert points[seed] == threshold(
                part["label"].to_numpy(), part["score"].to_numpy(), rule
            )
        pd.testing.assert_series_equal(thresholds(other, rule), points)
    assert thresholds(table, "youden").nunique() == 3


def test_a_rule_of_ones_own_sees_validation_alone_and_gives_a_number():
    table = scores(seeds=(0, 1))

    def lowest_positive(labels, values):
        return values[labels == 1].min()

    expected = table[(table["split"] == "val") & (table["label"] == 1)]
    expected = expected.groupby("seed")["score"].min().to_dict()
    assert thresholds(table, lowest_positive).to_dict() == expected
    with pytest.raises(InvalidDataError, match=r"no_number.*nan.*Fix: "):

        def no_number(labels, values):
            return np.nan

        thresholds(table, no_number)


def test_swapped_images_choose_if_there_are_any():
    table = scores()
    val = table[table["split"] == "val"]
    both = pd.concat([table, val.assign(split="swapped", score=val["score"] ** 3)])
    assert thresholds(both, "youden")[0] != thresholds(table, "youden")[0]
    alone = both[both["split"] == "swapped"].assign(split="val")
    pd.testing.assert_series_equal(thresholds(both, "youden"), thresholds(alone, "youden"))


def test_the_frozen_threshold_is_read_and_never_recomputed():
    table = pd.concat([scores(threshold=0.3), scores(seeds=(1,), threshold=0.7)])
    table = table[table["split"] == "test"]
    assert thresholds(table, "frozen").to_dict() == {0: 0.3, 1: 0.7}


def test_a_seed_without_validation_is_named():
    table = scores(seeds=(0, 1)).query("seed == 0 or split == 'test'")
    with pytest.raises(InvalidDataError, match="seed 1 has no scores of validation"):
        thresholds(table, "cost 5")
    assert thresholds(table, 0.3).to_dict() == {0: 0.3, 1: 0.3}
