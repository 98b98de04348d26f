import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn import metrics as sk
from test_metrics import scored

from xraylib.evaluation.calibration import logit
from xraylib.evaluation.operating import thresholds
from xraylib.evaluation.selective import coverage, flagged, prediction_sets, risk_coverage, strangeness
from xraylib.storage import DataInvalid

KINDS = ["normal", "pneumonia"]


@pytest.fixture(autouse=True)
def drawn_alike():
    """Ties are broken by chance; the same chance in every test."""
    state = np.random.get_state()
    np.random.seed(0)
    yield
    np.random.set_state(state)


def moved(scores, by, label):
    """The scores of one class of the test, moved by some log odds."""
    hit = (scores["split"] == "test") & (scores["label"] == label)
    return scores.assign(score=scores["score"].where(~hit, expit(logit(scores["score"]) + by)))


def held(scores, promised):
    """Of the normals and of the pneumonias, the share whose set holds what they are."""
    sets = prediction_sets(scores, coverage=promised)
    return [sets.loc[sets["label"] == label, kind].mean() for label, kind in enumerate(KINDS)]


@pytest.mark.parametrize("promised", [0.8, 0.9])
def test_each_class_is_covered_as_often_as_promised(promised):
    drawn = [held(scored(n=150, draw=draw), promised) for draw in range(40)]
    assert np.mean(drawn, axis=0) == pytest.approx([promised, promised], abs=0.02)


def test_shifted_images_lose_the_promise():
    for draw in range(5):
        scores = scored(n=150, draw=draw)
        normal, pneumonia = held(moved(scores, by=2, label=0), 0.9)
        assert normal < 0.6 and pneumonia > 0.8


def test_a_higher_promise_makes_larger_sets():
    scores = scored(n=300)
    sets = [prediction_sets(scores, coverage=promised) for promised in (0.5, 0.9, 0.99)]
    sizes = [(found["normal"].astype(int) + found["pneumonia"]).mean() for found in sets]
    assert sizes == sorted(sizes) and sizes[0] < 1 < sizes[2]


def test_a_clear_score_has_one_class_and_a_doubtful_one_both():
    val = scored(n=300, strength=3, noise=0.5).query("split == 'val'")
    test = val.head(3).assign(split="test", score=[1e-4, 0.8, 1 - 1e-4])
    sets = prediction_sets(pd.concat([val, test]), coverage=0.95)
    assert sets[KINDS].to_numpy().tolist() == [[True, False], [True, True], [False, True]]


def test_the_sets_come_from_validation_alone():
    scores = scored(n=150)
    turned = scores.assign(label=scores["label"].where(scores["split"] == "val", 1 - scores["label"]))
    found = []
    for table in (scores, turned):
        np.random.seed(0)
        found.append(prediction_sets(table)[KINDS])
    pd.testing.assert_frame_equal(*found)


def test_each_seed_is_calibrated_on_its_own_validation():
    scores = scored(n=150, seeds=(0, 1))
    hit = (scores["seed"] == 1) & (scores["split"] == "val")
    squeezed = scores.assign(score=scores["score"].where(~hit, 0.5 + scores["score"] / 1000))
    found = []
    for table in (scores, squeezed):
        np.random.seed(0)
        found.append(prediction_sets(table).set_index("seed")[KINDS])
    assert found[0].loc[0].equals(found[1].loc[0])
    assert not found[0].loc[1].equals(found[1].loc[1])


def test_every_image_that_is_not_validation_gets_a_set():
    scores = scored(n=30, seeds=(0, 1))
    outside = scores[scores["split"] == "test"].assign(split="external")
    sets = prediction_sets(pd.concat([scores, outside]))
    assert sets["split"].value_counts().to_dict() == {"test": 60, "external": 60}
    assert sets["normal"].dtype == sets["pneumonia"].dtype == bool


def test_the_sets_are_the_same_on_every_call():
    tied = scored(n=150).assign(score=0.5)
    pd.testing.assert_frame_equal(prediction_sets(tied), prediction_sets(tied))


def test_without_validation_no_set_is_made_up():
    scores = scored(n=30, seeds=(0, 1))
    for lacking in (scores.query("split == 'test'"), scores.query("split == 'test' or seed == 0")):
        with pytest.raises(DataInvalid, match=r"no val scores of both classes .*\. Mend"):
            prediction_sets(lacking)


def test_coverage_counts_by_hand():
    rows = [("a", 0, True, False), ("b", 0, False, True), ("c", 1, True, True), ("d", 1, False, False)]
    sets = pd.DataFrame(rows, columns=["image_id", "label", "normal", "pneumonia"])
    table = coverage(sets.assign(patient=sets["image_id"], split="test")).set_index("kind")
    assert table["covered"].to_dict() == {"normal": 0.5, "pneumonia": 0.5, "all": 0.5}
    assert table["images"].to_dict() == {"normal": 2, "pneumonia": 2, "all": 4}
    shares = table[["empty", "single", "both"]].to_numpy().tolist()
    assert shares == [[0, 1, 0], [0.5, 0, 0.5], [0.25, 0.5, 0.25]]
    assert ((table["low"] <= table["covered"]) & (table["covered"] <= table["high"])).all()


def test_splits_are_covered_apart():
    scores = scored(n=150)
    outside = moved(scores, by=2, label=0).query("split == 'test'").assign(split="external")
    table = coverage(prediction_sets(pd.concat([scores, outside]))).set_index(["split", "kind"])
    assert table.loc[("test", "normal"), "covered"] > table.loc[("external", "normal"), "covered"] + 0.2


def test_errors_fall_as_the_least_sure_are_left_out():
    for draw in range(3):
        error = risk_coverage(scored(n=400, draw=draw, strength=2))["error"]
        assert error.iloc[4] < error.iloc[9] < error.iloc[19]
        assert error.iloc[4] < 0.6 * error.iloc[19]


def test_a_score_that_tells_nothing_gains_nothing_by_silence():
    table = risk_coverage(scored(n=600, strength=0), rule=0.5)
    assert table["error"].iloc[4:].between(0.4, 0.6).all()


def test_all_answered_is_the_error_rate():
    scores = scored(seeds=(0, 1, 2), images=2)
    table, points = risk_coverage(scores), thresholds(scores, "validation")
    rates = [
        1 - sk.accuracy_score(part["label"], part["score"] >= points[seed])
        for seed, part in scores.query("split == 'test'").groupby("seed")
    ]
    last = table.iloc[-1]
    assert last["answered"] == 1 and last["error"] == pytest.approx(np.mean(rates))
    assert last["low"] <= last["error"] <= last["high"]


def test_the_errors_are_counted_by_hand():
    # Twenty images, the surer the further from .5; every fifth call is wrong, the least sure first.
    score = 0.5 + np.arange(1, 21) / 50 * np.resize([1, -1], 20)
    wrong = np.arange(20) % 5 == 0
    part = pd.DataFrame({"score": score, "label": ((score >= 0.5) ^ wrong).astype(int)})
    part["image_id"] = part["patient"] = part.index.map("p{}".format)
    part = part.assign(recipe="ours", protocol="strict", seed=0, split="test", kind="")
    table = risk_coverage(part.sample(frac=1, random_state=0), rule=0.5)
    surest = wrong[::-1]
    assert table["answered"].tolist() == pytest.approx(np.arange(1, 21) / 20)
    assert table["error"].tolist() == pytest.approx(np.cumsum(surest) / np.arange(1, 21))


def test_equally_sure_images_share_their_errors_whatever_their_order():
    # Forty scores of exactly 1, a quarter of them wrong, and ten unsure ones, all wrong.
    part = pd.DataFrame({"score": [1.0] * 40 + [0.51] * 10, "label": [0] * 10 + [1] * 30 + [0] * 10})
    part["image_id"] = part["patient"] = part.index.map("p{}".format)
    part = part.assign(recipe="ours", protocol="strict", seed=0, split="test", kind="")
    tables = [
        risk_coverage(rows, rule=0.5) for rows in (part, part[::-1], part.sample(frac=1, random_state=0))
    ]
    for table in tables:
        assert table["error"].iloc[:16].tolist() == pytest.approx([0.25] * 16)
        assert table["error"].iloc[-1] == pytest.approx(0.4)
        pd.testing.assert_frame_equal(table, tables[0])


def test_how_sure_a_score_is_depends_on_the_threshold():
    part = pd.DataFrame({"score": [0.1, 0.3, 0.6, 0.9] * 5, "label": [0, 1, 1, 1] * 5})
    part["image_id"] = part["patient"] = part.index.map("p{}".format)
    part = part.assign(recipe="ours", protocol="strict", seed=0, split="test", kind="virus")
    # Furthest from .5 lie .1 and .9, called rightly; furthest from .85 lie .1 and .3, which is missed.
    assert risk_coverage(part, rule=0.25)["error"].iloc[-1] == 0
    middle, high = (risk_coverage(part, rule=rule)["error"] for rule in (0.5, 0.85))
    assert middle.iloc[9] == 0 and high.iloc[9] == pytest.approx(0.5)


def test_far_away_features_are_strange():
    random = np.random.default_rng(0)
    training = random.normal(size=(400, 12))
    usual, far = random.normal(size=(100, 12)), random.normal(size=(100, 12)) + 4
    assert strangeness(training, far).min() > strangeness(training, usual).max()
    steps = strangeness(training, np.outer([0, 1, 2, 5, 10], np.ones(12)))
    assert (np.diff(steps) > 0).all() and steps[0] < 0.5


def test_strangeness_is_the_mahalanobis_distance():
    random = np.random.default_rng(1)
    training = random.normal(size=(20000, 3)) @ np.array([[3.0, 0, 0], [1, 1, 0], [0, 0.5, 0.2]])
    others = random.normal(size=(50, 3))
    apart = others - training.mean(axis=0)
    expected = np.sqrt(np.einsum("ni,ij,nj->n", apart, np.linalg.inv(np.cov(training.T)), apart))
    np.testing.assert_allclose(strangeness(training, others), expected, rtol=0.02)


def test_a_step_where_images_seldom_differ_is_stranger():
    training = np.random.default_rng(2).normal(size=(500, 2)) * [10, 0.1]
    along, across = strangeness(training, np.array([[3.0, 0], [0, 3.0]]))
    assert across > 5 * along


def test_fewer_images_than_features_are_enough():
    random = np.random.default_rng(3)
    training = random.normal(size=(20, 200))
    found = strangeness(training, random.normal(size=(7, 200)))
    assert found.shape == (7,) and np.isfinite(found).all() and (found >= 0).all()


def strange(groups, size=200, people=60, seed=4):
    """A table as `trials.strangeness` gives it: each group by the mean of its distances."""
    draw = np.random.default_rng(seed)
    return pd.concat(
        [
            pd.DataFrame({"strangeness": draw.normal(mean, 1, size), "group": group}).assign(
                patient=[f"p{person}" for person in draw.integers(0, people, size)]
            )
            for group, mean in groups.items()
        ],
        ignore_index=True,
    )


def test_the_limit_flags_the_stated_share_of_validation():
    found = flagged(strange({"validation": 5, "test": 5, "far": 9}), false_alarms=0.1).set_index("group")
    assert found.loc["validation", "flagged"] == pytest.approx(0.1, abs=0.006)
    assert found.loc["test", "low"] <= 0.1 <= found.loc["test", "high"]
    assert found.loc["far", "flagged"] > 0.98 and found.loc["far", "auc_low"] > 0.98
    assert found.loc["test", "auc_low"] <= 0.5 <= found.loc["test", "auc_high"]
    assert np.isnan(found.loc["validation", "auc"]) and list(found.index) == ["validation", "test", "far"]


def test_without_validation_nothing_can_be_flagged():
    with pytest.raises(DataInvalid, match="Mend"):
        flagged(strange({"test": 5}))
