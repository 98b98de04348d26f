import numpy as np
import pandas as pd
import pytest
from notebook_code import definitions
from sklearn.metrics import roc_auc_score

radiologists = definitions("09_kermany_forensics")
ABNORMAL = radiologists.ABNORMAL
NORMAL = radiologists.NORMAL
OPACITY = radiologists.OPACITY
IMAGES = [f"{number:08d}_000" for number in range(6)]


@pytest.fixture
def listed():
    """A list as it is on disk, of six images in another order than the manifest."""
    table = pd.DataFrame({"image_id": IMAGES, "nih_label": [1, 1, 0, 0, 1, 0]})
    table = table.assign(age=[5, 30, 18, 70, 19, 40], sex=list("MFMFMF"), match_mse="")
    table["view"] = ["AP", "PA", "AP", "PA", "AP", "PA"]
    table["rsna_class"] = [OPACITY, OPACITY, NORMAL, ABNORMAL, "", NORMAL]
    table["boxes"] = ["0,0,0.5,1 0.5,0.5,0.25,0.25", "0.25,0.5,0.5,0.5", "", "", "", ""]
    return table.astype(str)


@pytest.fixture
def manifest(listed):
    table = listed[["image_id"]].assign(label=listed["nih_label"].astype(int))
    return table.assign(patient=["a", "a", "b", "c", "d", "e"])


def read(listed, manifest, folder):
    file = folder / "labels.csv"
    listed[::-1].to_csv(file, index=False)
    return radiologists.read_labels(file, manifest)


def test_labels_and_boxes_are_read_in_the_order_of_the_images(listed, manifest, tmp_path):
    table = read(listed, manifest, tmp_path)
    assert table["image_id"].tolist() == IMAGES
    assert table["nih_label"].tolist() == manifest["label"].tolist()
    assert table["age"].tolist() == [5, 30, 18, 70, 19, 40]
    np.testing.assert_array_equal(table["boxes"][0], [[0, 0, 0.5, 1], [0.5, 0.5, 0.25, 0.25]])
    assert table["boxes"][2].shape == (0, 4)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("image_id", "x", "lists other images"),
        ("image_id", IMAGES[0], "lists other images"),
        ("nih_label", "0", "has another label than its folder"),
        ("age", "200", "has no age in years"),
        ("view", "LL", "has neither the view AP nor PA"),
        ("rsna_class", "Edema", "has an unknown class"),
        ("boxes", "0.6,0,0.5,0.5", f"{IMAGES[1]} has a box outside the image"),
        ("boxes", "-0.1,0,0.5,0.5", "has a box outside the image"),
    ],
)
def test_a_list_that_cannot_be_is_refused(listed, manifest, tmp_path, column, value, message):
    listed.loc[1, column] = value
    with pytest.raises(ValueError, match=rf"{message}.*Fix: "):
        read(listed, manifest, tmp_path)


def test_adults_are_counted_as_adults(listed, manifest, tmp_path):
    labels = read(listed, manifest, tmp_path)
    table = radiologists.describe_patients(labels, manifest["patient"]).set_index("ages")
    assert table["images"].to_dict() == {"0–10": 1, "11–18": 1, "adults": 4}
    assert table.loc["adults"].tolist() == [4, 4, 3, 1]


def made_up_labels(n=120):
    rng = np.random.default_rng(0)
    rsna = np.array([OPACITY, NORMAL, ABNORMAL, ""])[np.arange(n) % 4]
    table = pd.DataFrame({"image_id": [f"i{i}" for i in range(n)], "rsna_class": rsna})
    table["view"] = np.where(rng.random(n) < 0.5, "AP", "PA")
    table["nih_label"] = rng.integers(0, 2, n)
    patients = [f"p{i // 2}" for i in range(n)]
    score = (rsna == OPACITY) + rng.normal(size=n)
    score = 1 / (1 + np.exp(-score))
    return table, table.assign(recipe="r", seed=0, score=score, patient=patients)


def test_each_auc_is_that_of_its_images():
    labels, scores = made_up_labels()
    other = scores.assign(seed=1, score=scores["score"] ** 2)
    third = scores.assign(seed=2, score=np.random.default_rng(1).random(len(scores)))
    mixed = pd.concat([scores, other, third]).sample(frac=1, random_state=0)
    table = radiologists.auc_by_stratum(mixed, labels)
    table = table.set_index(["contrast", "stratum"])
    opacity = labels["rsna_class"] == OPACITY
    read = labels["rsna_class"] != ""
    shortened = opacity | (labels["rsna_class"] == NORMAL)
    for (contrast, stratum), row in table.iterrows():
        chosen = {"opacity against normal": shortened, "opacity against all others": read}
        chosen = chosen.get(contrast, pd.Series(True, index=labels.index))
        positive = labels["nih_label"] == 1 if contrast == "text-mined label" else opacity
        if stratum in ("AP", "PA"):
            chosen = chosen & (labels["view"] == stratum)
        elif stratum != "all":
            chosen = chosen & (labels["nih_label"] == 1)
        aucs = [
            roc_auc_score(positive[chosen], run["score"].to_numpy()[chosen])
            for run in (scores, other, third)
        ]
        assert row["auc"] == pytest.approx(np.mean(aucs))
        assert row["auc_low"] < row["auc"] < row["auc_high"]
        assert row["positives"] == positive[chosen].sum()
        assert row["positives"] + row["negatives"] == chosen.sum() and row["runs"] == 3
    # Within one text-mined class the text-mined label has nothing to tell apart.
    assert ("text-mined label", "text-mined pneumonia") not in table.index
    assert len(table) == 11
    # Runs that differ widen the interval.
    alike = radiologists.auc_by_stratum(pd.concat([scores, other]), labels).iloc[0]
    first = table.iloc[0]
    assert first["auc_high"] - first["auc_low"] > alike["auc_high"] - alike["auc_low"]
    with pytest.raises(KeyError):
        radiologists.auc_by_stratum(scores[1:], labels)


def test_the_baselines_are_the_view_and_the_size():
    labels, scores = made_up_labels()
    labels["view"] = np.where(labels["rsna_class"] == OPACITY, "AP", "PA")
    size = pd.Series(np.where(labels["rsna_class"] == OPACITY, 10, 20) + np.arange(120) % 3)
    made = radiologists.baseline_scores(labels, scores[["image_id", "patient"]], size)
    assert made["score"].between(0, 1).all()
    table = radiologists.auc_by_stratum(made, labels)
    table = table[table["stratum"] == "all"].set_index(["recipe", "contrast"])["auc"]
    assert table["is AP", "opacity against normal"] == 1
    assert table["file size", "opacity against all others"] == 0


def test_the_share_classified_as_pneumonia_is_counted_by_class():
    labels, scores = made_up_labels()
    scores = scores[["recipe", "seed", "image_id", "patient", "score"]]
    both = pd.concat([scores, scores.assign(seed=1)])
    thresholds = pd.Series({("r", 0): 0.5, ("r", 1): 0.9}, name="threshold")
    thresholds = thresholds.rename_axis(["recipe", "seed"])
    table = radiologists.classified_by_class(both, labels, thresholds).set_index("rsna_class")
    for name in (OPACITY, NORMAL, ABNORMAL):
        part = scores.loc[labels["rsna_class"] == name, "score"]
        expected = ((part >= 0.5).mean() + (part >= 0.9).mean()) / 2
        row = table.loc[name]
        assert row["positive"] == pytest.approx(expected)
        assert row["positive_low"] <= row["positive"] <= row["positive_high"]
        assert (row["images"], row["runs"]) == (30, 2)
    assert len(table) == 3


def test_masks_are_true_inside_the_boxes():
    boxes = [
        np.array([[0.5, 0.0, 0.25, 0.5]]),
        np.array([[0.99, 0.99, 0.01, 0.01], [0, 0, 1, 0.1]]),
    ]
    first, second = radiologists.box_masks(boxes, 8)
    expected = np.zeros((8, 8), bool)
    expected[0:4, 4:6] = True
    np.testing.assert_array_equal(first, expected)
    # A box smaller than a pixel has one.
    assert second[7, 7] and second[0].all() and second.sum() == 9


def test_the_position_prior_does_not_see_the_images_of_its_own_patient():
    masks = np.zeros((4, 2, 2), bool)
    masks[0, 0, 0] = masks[1, 0, 0] = masks[2, 1, 1] = masks[3, 0, 1] = True
    priors = radiologists.position_prior(masks, np.array(["a", "a", "b", "c"]))
    np.testing.assert_allclose(priors[0], [[0, 0.5], [0, 0.5]])
    np.testing.assert_allclose(priors[1], priors[0])
    np.testing.assert_allclose(priors[2], [[2 / 3, 1 / 3], [0, 0]])


def test_a_map_that_finds_the_boxes_is_told_from_maps_that_see_no_image():
    rng = np.random.default_rng(0)
    boxes = [np.array([[*rng.uniform(0, 0.7, 2), 0.25, 0.25]]) for _ in range(30)]
    patients = np.arange(30)
    maps = radiologists.box_masks(boxes, 16).astype(float)
    table = radiologists.localisation_in_boxes(maps, boxes, patients).set_index("map")
    assert table.loc["heat map", ["pointing", "energy"]].tolist() == [1, 1]
    assert table.loc["position prior", "pointing"] < 0.7 and table["boxes"].unique() == [30]
    assert table["area"].unique() == pytest.approx(maps.mean())
    opposite = radiologists.localisation_in_boxes(1 - maps, boxes, patients).set_index("map")
    assert opposite.loc["heat map", ["pointing", "energy"]].tolist() == [0, 0]
    others = ["position prior", "centre blob"]
    pd.testing.assert_frame_equal(opposite.loc[others], table.loc[others])


def test_intervals_are_those_over_runs_and_patients(monkeypatch):
    labels, scores = made_up_labels()
    runs = pd.concat([scores.assign(seed=seed) for seed in range(3)])
    same = radiologists.auc_by_stratum(runs, labels)
    alone = radiologists.auc_by_stratum(scores, labels)
    # Three equal runs know no more than one.
    columns = ["auc", "auc_low", "auc_high"]
    np.testing.assert_allclose(same[columns], alone[columns])
