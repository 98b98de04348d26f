import numpy as np
import pandas as pd
import pytest
from notebook_code import definitions
from scipy.stats import spearmanr

from xraylib.errors import InvalidDataError

lung_height = definitions("09_kermany_forensics")

EDGES = (0.0, 0.72, 0.84, 1.0)
# Loose, middle, tight.
HEIGHTS = (0.6, 0.8, 0.9)


def made_up(correct, images=40, runs=3):
    """Normals and their boxes: `correct[split]` is the share correct by bin, `images` by bin.

    Every bin of validation has three times as many loose images as the test has.
    """
    parts = []
    boxes = []
    for split, shares in correct.items():
        counts = (3 * images, images, images) if split == "val" else (images, images, 3 * images)
        for height, share, count in zip(HEIGHTS, shares, counts, strict=True):
            names = [f"IM-{split}{height}-{number:04d}" for number in range(count)]
            boxes += [(name, height) for name in names]
            for seed in range(runs):
                wrong = np.arange(count) >= round(share * count)
                part = pd.DataFrame({"image_id": names, "score": np.where(wrong, 0.9, 0.1)})
                parts.append(part.assign(split=split, seed=seed, patient=names))
    scores = pd.concat(parts, ignore_index=True)
    about = {"recipe": "r", "protocol": "strict", "label": 0, "kind": "normal", "threshold": 0.5}
    return scores.assign(**about), pd.DataFrame(boxes, columns=["image_id", "lung_height"])


def test_a_bin_of_lung_heights_includes_its_upper_end():
    heights = {"a": 0.72, "b": 0.7201, "c": 0.78, "d": 0.84, "e": 1.0}
    boxes = pd.DataFrame({"image_id": list(heights), "lung_height": list(heights.values())})
    scores = boxes.assign(patient=boxes["image_id"], split="test", label=0, seed=0, score=0.1)
    scores = scores.drop(columns="lung_height")
    scores = scores.assign(recipe="r", protocol="strict", threshold=0.5)
    table = lung_height.framing_by_lung_height(scores, boxes).set_index("lung_height")
    expected = {"0–0.72": 1, "0.72–0.78": 2, "0.78–0.84": 1, "0.84–1": 1}
    assert table["images"].to_dict() == expected


@pytest.fixture
def tight_is_missed():
    """Rates depend on lung height alone: the mix accounts for the whole fall."""
    return made_up({"val": (1.0, 0.8, 0.4), "test": (1.0, 0.8, 0.4)})


def test_specificity_is_counted_by_bin_and_split(tight_is_missed):
    scores, boxes = tight_is_missed
    sick = scores.assign(
        image_id="sick" + scores["image_id"], patient="sick" + scores["patient"], label=1
    )
    sick["score"] = np.where(np.arange(len(sick)) % 4 == 0, 0.1, 0.9)
    boxes = pd.concat([boxes, boxes.assign(image_id="sick" + boxes["image_id"])])
    both = pd.concat([scores, sick])
    # Rows of other protocols and splits, and images without a box, do not count.
    others = pd.concat([scores.assign(protocol="published"), scores.assign(split="swapped")])
    table = lung_height.framing_by_lung_height(pd.concat([both, others]), boxes)
    normal = table[table["diagnosis"] == "normal"]
    assert normal["split"].tolist() == ["val"] * 3 + ["test"] * 3
    assert normal["lung_height"].tolist() == ["0–0.72", "0.78–0.84", "0.84–1"] * 2
    assert normal["correct"].tolist() == pytest.approx([1.0, 0.8, 0.4] * 2)
    assert normal["images"].tolist() == [120, 40, 40, 40, 40, 120]
    assert (table["runs"] == 3).all()
    assert (table["correct_low"] <= table["correct"]).all()
    assert (table["correct"] <= table["correct_high"]).all()
    pneumonia = table[table["diagnosis"] == "pneumonia"]
    assert pneumonia["correct"].tolist() == pytest.approx([0.75] * 6)
    strict = lung_height.framing_by_lung_height(both.assign(threshold=0.05), boxes)
    assert (strict.loc[strict["diagnosis"] == "normal", "correct"] == 0).all()
    with pytest.raises(InvalidDataError, match=r"no scored image has a lung box.*Fix: "):
        lung_height.framing_by_lung_height(scores, boxes.assign(image_id="x" + boxes["image_id"]))


def test_a_fall_that_follows_the_mix_is_explained_by_it_whoever_gives_the_rates(tight_is_missed):
    scores, boxes = tight_is_missed
    row = lung_height.standardised_fall(scores, boxes, edges=EDGES).iloc[0]
    assert row["validation"] == pytest.approx((3 * 1.0 + 0.8 + 0.4) / 5)
    assert row["test"] == pytest.approx((1.0 + 0.8 + 3 * 0.4) / 5)
    assert row["fall"] == pytest.approx(row["validation"] - row["test"])
    for rates in ("val", "test"):
        name = f"share_{rates}_rates"
        assert row[name] == pytest.approx(1)
        assert row[f"{name}_low"] < 1 < row[f"{name}_high"]
    assert (row["images_val"], row["images_test"], row["fewest_val"]) == (200, 200, 40)


def test_the_two_answers_differ_where_rates_depend_on_the_folder():
    # Validation recognises all; the test misses what is tight.
    scores, boxes = made_up({"val": (1.0, 1.0, 1.0), "test": (0.9, 0.5, 0.1)})
    row = lung_height.standardised_fall(scores, boxes, edges=EDGES).iloc[0]
    fall = 1 - (0.9 + 0.5 + 3 * 0.1) / 5
    assert row["share_val_rates"] == pytest.approx(0)
    assert row["share_test_rates"] == pytest.approx(0.4 * (0.9 - 0.1) / fall)


def test_runs_that_differ_widen_the_interval(tight_is_missed):
    scores, boxes = tight_is_missed
    alike = lung_height.standardised_fall(scores, boxes, edges=EDGES).iloc[0]
    tight = scores["image_id"].str.contains("0.9-", regex=False) & (scores["split"] == "test")
    scores.loc[tight & (scores["seed"] == 0), "score"] = 0.1
    apart = lung_height.standardised_fall(scores, boxes, edges=EDGES).iloc[0]
    width = [row["share_test_rates_high"] - row["share_test_rates_low"] for row in (alike, apart)]
    assert width[1] > 2 * width[0]


def test_without_a_normal_in_a_bin_there_is_no_share(tight_is_missed):
    scores, boxes = tight_is_missed
    no_tight = ~(scores["image_id"].str.contains("0.9-", regex=False) & (scores["split"] == "val"))
    row = lung_height.standardised_fall(scores[no_tight], boxes, edges=EDGES).iloc[0]
    assert row["fewest_val"] == 0 and np.isnan(row["share_val_rates"])
    assert row["validation"] == pytest.approx((3 + 0.8) / 4)


def test_a_partial_correlation_removes_what_aspect_explains():
    rng = np.random.default_rng(0)
    n = 300
    width = rng.uniform(1000, 2000, n)
    aspect = rng.uniform(1.0, 1.6, n)
    height = 0.5 * (aspect - 1.0) + rng.normal(0.4, 0.03, n)
    names = [f"IM-{number:04d}-0001" for number in range(n)]
    boxes = pd.DataFrame({"image_id": names, "lung_height": height, "width": width})
    boxes["height"] = boxes["width"] / aspect
    about = {"protocol": "strict", "seed": 0, "split": "test", "label": 0, "threshold": 0.5}
    scores = pd.DataFrame({"image_id": names, "patient": names}).assign(**about)
    by_aspect = scores.assign(recipe="reads aspect", score=aspect / 2)
    by_lungs = scores.assign(recipe="reads lungs", score=height)
    both = pd.concat([by_aspect, by_lungs], ignore_index=True)
    # Pneumonias and validation do not count.
    noise = both.assign(score=rng.random(len(both)))
    both = pd.concat([both, noise.assign(label=1), noise.assign(split="val")])
    table = lung_height.partial_association(both, boxes).set_index("recipe")
    row = table.loc["reads aspect"]
    assert row["lung_height"] == pytest.approx(spearmanr(aspect, height).statistic)
    assert abs(row["lung_height_partial"]) < 0.15 and row["aspect_partial"] > 0.95
    assert row["lung_height_low"] < row["lung_height"] < row["lung_height_high"]
    row = table.loc["reads lungs"]
    assert row["lung_height_partial"] > 0.95 and abs(row["aspect_partial"]) < 0.15
    # The sign is that of the score: a network that likes tight images less has a negative one.
    turned = both.assign(score=1 - both["score"])
    row = lung_height.partial_association(turned, boxes).set_index("recipe").loc["reads lungs"]
    assert row["lung_height"] == pytest.approx(-1) and row["lung_height_partial"] < -0.95


def test_loosely_framed_normals_that_most_runs_miss_are_listed(tight_is_missed):
    scores, boxes = tight_is_missed
    loose = sorted(scores.loc[scores["image_id"].str.startswith("IM-test0.6"), "image_id"].unique())
    scores.loc[(scores["image_id"] == loose[0]) & (scores["seed"] < 2), "score"] = 0.7
    scores.loc[(scores["image_id"] == loose[1]) & (scores["seed"] == 0), "score"] = 0.7
    other = scores.assign(recipe="s")
    other.loc[other["image_id"] == loose[2], "score"] = 0.7
    table = lung_height.loosely_framed_missed(pd.concat([scores, other]), boxes)
    assert table["image_id"].tolist() == [loose[0], loose[2]]
    assert table["missed_by"].tolist() == [2, 1] and (table["recipes"] == 2).all()
