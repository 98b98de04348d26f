import builders
import numpy as np
import pandas as pd
import pytest
from notebook_code import definitions
from scipy.special import expit
from sklearn import metrics as sk

notebook = definitions("07_shift_and_trust")
KINDS = notebook.KINDS
coverage = notebook.coverage
prediction_sets = notebook.prediction_sets


def risk_coverage(scores):
    return notebook.risk_coverage(scores[scores["split"] == "test"])


def shifted(scores, by, label):
    """The scores of one class of the test, moved by some log odds."""
    hit = (scores["split"] == "test") & (scores["label"] == label)
    return scores.assign(
        score=scores["score"].where(~hit, expit(notebook.log_odds(scores["score"]) + by))
    )


def covered(scores, promised):
    """Of normals and of pneumonias, the share whose set holds what they are."""
    sets = prediction_sets(scores, promise=promised)
    return [sets.loc[sets["label"] == label, kind].mean() for label, kind in enumerate(KINDS)]


def test_sets_by_hand():
    # A promise of 0.5 keeps a class while half of its four calibration images and the new one fit
    # as badly. These are three of five: pneumonia from a score of 0.6 on, and normal up to 0.3. A
    # promise of 0.75 keeps a class while two of five do.
    val = builders.images([0.1, 0.2, 0.3, 0.7], [0.4, 0.6, 0.8, 0.9], "val")
    test = builders.images([0.3, 0.31, 0.59], [0.6])
    sets = prediction_sets(pd.concat([val, test]), promise=0.5)
    assert sets["normal"].tolist() == [True, False, False, False]
    assert sets["pneumonia"].tolist() == [False, False, False, True]
    larger = prediction_sets(pd.concat([val, test]), promise=0.75)
    assert larger["normal"].all() and larger["pneumonia"].tolist() == [False, False, True, True]


@pytest.mark.parametrize("promised", [0.8, 0.9])
def test_each_class_is_covered_as_often_as_promised(promised):
    found = [covered(builders.scores(n=150, sample=sample), promised) for sample in range(40)]
    assert np.mean(found, axis=0) == pytest.approx([promised, promised], abs=0.02)


def test_shifted_images_lose_the_promise():
    normal, pneumonia = covered(shifted(builders.scores(n=150), by=2, label=0), 0.9)
    assert normal < 0.6 and pneumonia > 0.8


def test_sets_come_from_each_seeds_own_validation_alone():
    scores = builders.scores(n=150, seeds=(0, 1))
    outside = scores[scores["split"] == "test"].assign(split="external")
    sets = prediction_sets(pd.concat([scores, outside]))
    assert sets["split"].value_counts().to_dict() == {"test": 300, "external": 300}
    turned = scores.assign(
        label=scores["label"].where(scores["split"] == "val", 1 - scores["label"])
    )
    pd.testing.assert_frame_equal(
        prediction_sets(scores)[list(KINDS)], prediction_sets(turned)[list(KINDS)]
    )
    hit = (scores["seed"] == 1) & (scores["split"] == "val")
    squeezed = scores.assign(score=scores["score"].where(~hit, 0.5 + scores["score"] / 1000))
    before, after = (
        prediction_sets(table).set_index("seed")[list(KINDS)] for table in (scores, squeezed)
    )
    assert before.loc[0].equals(after.loc[0]) and not before.loc[1].equals(after.loc[1])


def test_coverage_counts_by_hand():
    rows = [
        ("a", 0, True, False),
        ("b", 0, False, True),
        ("c", 1, True, True),
        ("d", 1, False, False),
    ]
    sets = pd.DataFrame(rows, columns=["image_id", "label", "normal", "pneumonia"])
    about = {"patient": sets["image_id"], "split": "test", "seed": 0}
    about |= {"recipe": "r", "protocol": "strict"}
    table = coverage(sets.assign(**about)).set_index("kind")
    assert table["covered"].to_dict() == {"normal": 0.5, "pneumonia": 0.5, "all": 0.5}
    assert table["images"].to_dict() == {"normal": 2, "pneumonia": 2, "all": 4}
    shares = table[["empty", "single", "both"]].to_numpy().tolist()
    assert shares == [[0, 1, 0], [0.5, 0, 0.5], [0.25, 0.5, 0.25]]
    assert ((table["low"] <= table["covered"]) & (table["covered"] <= table["high"])).all()


def test_runs_that_differ_widen_the_interval_of_the_coverage():
    scores = builders.scores(n=150, seeds=(0, 1, 2), noise=0.2)
    apart = scores.copy()
    moved = (scores["split"] == "test") & (scores["label"] == 0)
    shift = scores["seed"].map({0: -1.5, 1: 0.0, 2: 1.5})
    odds = notebook.log_odds(scores["score"].to_numpy())
    apart["score"] = scores["score"].where(~moved, expit(odds + shift))
    width = {}
    for name, table in (("alike", scores), ("apart", apart)):
        row = coverage(prediction_sets(table, promise=0.7)).set_index("kind").loc["normal"]
        assert row["over"] == "runs and patients" and row["low"] <= row["covered"] <= row["high"]
        width[name] = row["high"] - row["low"]
    assert width["apart"] > 2 * width["alike"]
    two = coverage(prediction_sets(scores[scores["seed"] < 2]))
    assert set(two["over"]) == {"patients"}


def test_errors_fall_as_the_least_sure_are_left_out_to_the_error_rate():
    scores = builders.scores(n=400, seeds=(0, 1), strength=2)
    table = risk_coverage(scores)
    assert table["error"].iloc[4] < 0.6 * table["error"].iloc[19]
    test, last = scores.query("split == 'test'"), table.iloc[-1]
    assert last["error"] == pytest.approx(
        1 - sk.accuracy_score(test["label"], test["score"] >= 0.5)
    )
    assert last["low"] <= last["error"] <= last["high"]
    useless = risk_coverage(builders.scores(n=600, strength=0))
    assert useless["error"].iloc[4:].between(0.4, 0.6).all()


def part(score, label):
    rows = pd.DataFrame({"score": score, "label": label})
    rows["image_id"] = rows["patient"] = rows.index.map("p{}".format)
    return rows.assign(recipe="ours", protocol="strict", seed=0, split="test", threshold=0.5)


def test_the_errors_are_counted_by_hand():
    # Twenty images, the surer the further from 0.5; every fifth is wrong, the least sure first.
    score, wrong = 0.5 + np.arange(1, 21) / 50 * np.resize([1, -1], 20), np.arange(20) % 5 == 0
    table = risk_coverage(
        part(score, ((score >= 0.5) ^ wrong).astype(int)).sample(frac=1, random_state=0)
    )
    assert table["answered"].tolist() == pytest.approx(np.arange(1, 21) / 20)
    assert table["error"].tolist() == pytest.approx(np.cumsum(wrong[::-1]) / np.arange(1, 21))
    # Furthest from 0.5 are 0.1 and 0.9, both correct. Furthest from 0.85 are 0.1 and 0.3, which is
    # missed.
    few = part([0.1, 0.3, 0.6, 0.9] * 5, [0, 1, 1, 1] * 5)
    middle, high = (risk_coverage(few.assign(threshold=t))["error"] for t in (0.5, 0.85))
    assert middle.iloc[9] == 0 and high.iloc[9] == pytest.approx(0.5)


def test_equally_sure_images_share_their_errors_whatever_their_order():
    # Forty scores of exactly 1, a quarter of them wrong, and ten unsure ones, all wrong.
    rows = part([1.0] * 40 + [0.51] * 10, [0] * 10 + [1] * 30 + [0] * 10)
    for ordered in (rows, rows[::-1], rows.sample(frac=1, random_state=0)):
        error = risk_coverage(ordered)["error"]
        assert error.iloc[:16].tolist() == pytest.approx([0.25] * 16)
        assert error.iloc[-1] == pytest.approx(0.4)
