import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk
from test_metrics import scored

from xraylib.evaluation.scores import COLUMNS
from xraylib.evaluation.subgroups import by_folder, name_groups, table
from xraylib.storage import DataInvalid

# Of a test by hand: image, patient, kind, score of seed 0, score of seed 1.
TEST = [
    ("person1_bacteria_1", "1", "bacteria", 0.9, 0.9),
    ("person1_bacteria_2", "1", "bacteria", 0.8, 0.2),
    ("person2_bacteria_3", "2", "bacteria", 0.6, 0.7),
    ("person3_virus_4", "3", "virus", 0.4, 0.9),
    ("person4_virus_5", "4", "virus", 0.3, 0.4),
    ("IM-0001-0001", "5", "normal", 0.1, 0.1),
    ("IM-0001-0002", "5", "normal", 0.2, 0.6),
    ("IM-0002-0001", "6", "normal", 0.7, 0.5),
    ("NORMAL2-IM-0003-0001", "7", "normal", 0.35, 0.3),
    ("NORMAL2-IM-0004-0001", "8", "normal", 0.2, 0.2),
]
BACTERIA, VIRUS, IM, NORMAL2 = (
    "pneumonia, bacteria",
    "pneumonia, virus",
    "normal, series IM-",
    "normal, series NORMAL2-",
)
# Width times height; their median is 450.
PIXELS = pd.Series(dict(zip([row[0] for row in TEST], range(0, 1000, 100), strict=True)))


def by_hand(seeds=(0, 1)):
    parts = []
    for seed in seeds:
        part = pd.DataFrame([(*row[:3], row[3 + seed]) for row in TEST])
        part.columns = ["image_id", "patient", "kind", "score"]
        parts.append(part.assign(seed=seed))
    whole = pd.concat(parts, ignore_index=True).assign(recipe="ours", protocol="strict", split="test")
    return whole.assign(label=(whole["kind"] != "normal").astype(int))[list(COLUMNS)]


def found(scores, **options):
    return table(scores, **{"rule": 0.5} | options).set_index("subgroup")


def test_pneumonias_are_grouped_by_kind_and_normals_by_series():
    groups = name_groups(by_hand())
    named = groups.groupby("subgroup")["image_id"].apply(list).to_dict()
    names = [row[0] for row in TEST]
    assert named == {BACTERIA: names[:3], VIRUS: names[3:5], IM: names[5:8], NORMAL2: names[8:]}
    assert groups.columns.tolist() == ["image_id", "label", "subgroup"]


def test_normals_of_other_names_are_of_no_series():
    assert found(scored(seeds=(0, 1))).index.tolist() == [VIRUS]


def test_sensitivity_and_specificity_are_counted_by_hand():
    rows = found(by_hand(seeds=(0,)))
    assert rows["right"].to_dict() == pytest.approx({BACTERIA: 1, VIRUS: 0, IM: 2 / 3, NORMAL2: 1})
    assert rows["images"].to_dict() == {BACTERIA: 3, VIRUS: 2, IM: 3, NORMAL2: 2}
    assert rows["patients"].to_dict() == {BACTERIA: 2, VIRUS: 2, IM: 2, NORMAL2: 2}


def test_figures_are_means_over_seeds():
    both = found(by_hand())["right"]
    assert both.to_dict() == pytest.approx({BACTERIA: 5 / 6, VIRUS: 1 / 4, IM: 1 / 2, NORMAL2: 1})
    alone = [found(by_hand(seeds=(seed,)))["right"] for seed in (0, 1)]
    pd.testing.assert_series_equal(both, sum(alone) / 2)


def test_the_auc_is_that_against_the_whole_other_class():
    scores = by_hand()
    members = name_groups(scores)
    for name, row in found(scores).iterrows():
        inside = members.loc[members["subgroup"] == name, ["image_id", "label"]]
        label = inside["label"].iloc[0]
        side = scores[scores["image_id"].isin(inside["image_id"]) | (scores["label"] != label)]
        aucs = [sk.roc_auc_score(part["label"], part["score"]) for _, part in side.groupby("seed")]
        assert row["auc"] == pytest.approx(np.mean(aucs))


def test_sizes_are_divided_at_their_median():
    groups = name_groups(by_hand(), PIXELS)
    named = groups.groupby("subgroup")["image_id"].apply(set)
    names = [row[0] for row in TEST]
    assert named["pneumonia, smaller image"] == set(names[:5])
    assert named["normal, larger image"] == set(names[5:])
    assert not {"pneumonia, larger image", "normal, smaller image"} & set(named.index)


def test_the_image_at_the_median_counts_as_smaller():
    groups = name_groups(by_hand().query("image_id != 'person1_bacteria_1'"), PIXELS)
    assert groups.loc[groups["subgroup"] == "normal, smaller image", "image_id"].tolist() == ["IM-0001-0001"]


def test_an_image_of_unknown_size_is_neither_small_nor_large():
    groups = name_groups(by_hand(), PIXELS.drop("person4_virus_5"))
    named = groups[groups["image_id"] == "person4_virus_5"]["subgroup"]
    assert named.tolist() == [VIRUS]


@pytest.mark.parametrize("pixels", [None, PIXELS * 0 + 224 * 224])
def test_equal_sizes_make_no_groups(pixels):
    assert set(name_groups(by_hand(), pixels)["subgroup"]) == {BACTERIA, VIRUS, IM, NORMAL2}


def test_figures_by_size_are_counted_by_hand():
    turned = pd.Series(dict(zip(PIXELS.index, [100, 500, 100, 500, 100] * 2, strict=True)))
    rows = found(by_hand(seeds=(0,)), pixels=turned)["right"]
    assert rows["pneumonia, smaller image"] == pytest.approx(2 / 3)
    assert rows["pneumonia, larger image"] == pytest.approx(1 / 2)
    assert rows["normal, smaller image"] == pytest.approx(2 / 3)
    assert rows["normal, larger image"] == 1


def test_each_seed_is_called_at_the_threshold_of_its_own_validation():
    val = pd.DataFrame(
        [
            ("val1", "91", "bacteria", 1, 0, 0.35),
            ("val2", "92", "normal", 0, 0, 0.05),
            ("val1", "91", "bacteria", 1, 1, 0.85),
            ("val2", "92", "normal", 0, 1, 0.75),
        ],
        columns=["image_id", "patient", "kind", "label", "seed", "score"],
    ).assign(recipe="ours", protocol="strict", split="val")
    rows = found(pd.concat([by_hand(), val[list(COLUMNS)]]), rule="validation")
    # At .2 and at .8.
    assert rows["right"].to_dict() == pytest.approx(
        {BACTERIA: (1 + 1 / 3) / 2, VIRUS: (1 + 1 / 2) / 2, IM: (1 / 3 + 1) / 2, NORMAL2: (0 + 1) / 2}
    )
    assert rows["images"].sum() == len(TEST)


def test_every_interval_holds_its_value():
    rows = found(by_hand())
    for figure in ("right", "auc"):
        assert (rows[f"{figure}_low"] <= rows[figure]).all()
        assert (rows[figure] <= rows[f"{figure}_high"]).all()


def test_images_of_one_patient_widen_the_interval():
    grouped = scored(n=60, images=8, noise=0.05)
    alone = grouped.assign(patient=grouped["image_id"])
    width = [(rows["right_high"] - rows["right_low"]).item() for rows in (found(grouped), found(alone))]
    assert width[0] > 2 * width[1]


def test_the_table_says_the_same_on_every_call():
    pd.testing.assert_frame_equal(found(by_hand()), found(by_hand()), check_exact=True)


def test_bad_scores_are_refused():
    spoilt = by_hand()
    spoilt.loc[3, "score"] = 1.5
    with pytest.raises(DataInvalid, match=r"outside \[0, 1\].*Mend"):
        table(spoilt, rule=0.5)
    with pytest.raises(DataInvalid, match="no scores of the val side"):
        table(by_hand())


def dealt(right_of_test=0.5):
    """Scores under `strict`, and of a random deal that calls normals of the test folder less well."""
    strict = scored(n=60, seeds=(0,))
    draw, rows = np.random.default_rng(0), []
    for seed in (0, 1):
        for side in ("val", "test"):
            part = strict[strict["split"] == side].assign(
                split="test", seed=seed, protocol="random-per-image"
            )
            right = draw.random(len(part)) < np.where(
                (part["label"] == 0) & (side == "test"), right_of_test, 1
            )
            rows.append(part.assign(score=np.where(right == (part["label"] == 1), 0.9, 0.1)))
        rows.append(strict[strict["split"] == "val"].assign(seed=seed))
    rows = [part.assign(protocol="random-per-image") for part in rows]
    return pd.concat([strict, *rows], ignore_index=True)


def test_a_random_deal_is_taken_apart_by_the_official_folder():
    scores = dealt()
    found = by_folder(scores).set_index("subgroup")
    hit = scores[(scores["protocol"] == "random-per-image") & (scores["split"] == "test")]
    official = set(scores.loc[(scores["protocol"] == "strict") & (scores["split"] == "test"), "image_id"])
    mine = hit[hit["image_id"].isin(official) & (hit["label"] == 0)]
    row = found.loc["normal, from the test folder"]
    assert row["images"] == mine["image_id"].nunique()
    assert row["right"] == pytest.approx((mine["score"] < 0.5).mean())
    assert row["right_low"] < row["right"] < row["right_high"] < 1
    assert (found["right"].drop("normal, from the test folder") == 1).all()


def test_without_the_random_deal_there_are_no_folders_to_tell():
    with pytest.raises(DataInvalid, match="Fix: train both"):
        by_folder(scored(n=30))
