"""What features alone know of the class, and what of a model's AUC is left without them."""

import json

import numpy as np
import pandas as pd
import pytest

from xraylib.datasets.image_features import level_of
from xraylib.errors import InvalidDataError, NotFoundError
from xraylib.evaluation import shortcuts


def patients_of(n, images=1, split="train"):
    """Images of n patients, every second one a pneumonia."""
    patient = np.repeat([f"{split}{number}" for number in range(n)], images)
    label = np.repeat(np.arange(n) % 2, images)
    names = [f"{name}_{number}" for number, name in enumerate(patient)]
    return pd.DataFrame({"image_id": names, "patient": patient, "label": label, "split": split})


def test_only_a_feature_without_lungs_that_predicts_the_class_is_warned_of():
    images = patients_of(120)
    rng = np.random.default_rng(0)
    planted = (images["label"].to_numpy() + rng.normal(0, 0.4, 120))[:, None]
    noise = rng.normal(size=(120, 1))
    values = {
        "width": planted,
        "height": noise,
        "aspect ratio": 3 * planted + 7,
        "channels": np.ones((120, 1)),
        "corners": rng.normal(size=(120, 3)),
        "8 × 8 thumbnail": np.hstack([planted, noise]),
    }
    table, scores = shortcuts.measure(images, values)
    rows = table.set_index("feature")
    assert "channels" not in rows.index, "it does not vary"
    assert "aspect ratio" not in rows.index, "it ranks the images as the width does"
    assert rows.loc["width", "auc"] > 0.9 and rows.loc["width", "bound"] > shortcuts.LEVEL
    assert rows.loc["8 × 8 thumbnail", "auc"] > 0.9
    assert set(table.loc[table["warns"], "feature"]) == {"width", "all of the file together"}
    assert (rows["bound"] < rows["auc"]).all()
    assert rows.loc["height", "level"] == "file" and rows.loc["corners", "level"] == "surround"
    assert table["auc"].is_monotonic_decreasing
    positive = images["label"] == 1
    assert scores["width"][positive].mean() > scores["width"][~positive].mean() + 0.3


def test_a_feature_that_knows_the_patient_is_judged_on_other_patients():
    images = patients_of(60, images=6)
    number = pd.factorize(images["patient"])[0]
    of_patient = np.random.default_rng(1).permutation(60).astype(float)[number]
    table, _ = shortcuts.measure(images, {"width": of_patient[:, None]})
    assert table["auc"][0] < 0.6 and not table["warns"][0]


def test_the_test_is_scored_by_a_model_that_has_not_seen_it():
    images = pd.concat([patients_of(60), patients_of(60, split="test")], ignore_index=True)
    width = np.where(images["split"] == "test", 1 - images["label"], images["label"])
    table, _ = shortcuts.measure(images, {"width": width[:, None].astype(float)})
    assert table["auc"][0] == 1 and table["test_auc"][0] == 0
    only_test = images[images["split"] == "test"]
    table, _ = shortcuts.measure(only_test, {"width": width[60:, None].astype(float)})
    assert table["auc"][0] == 1 and np.isnan(table["test_auc"][0])


def test_too_few_patients_are_too_few_whatever_their_images():
    few = patients_of(2 * shortcuts.MIN_PATIENTS - 1, images=5)
    assert not shortcuts.enough_patients(few)
    assert shortcuts.enough_patients(patients_of(2 * shortcuts.MIN_PATIENTS))


def test_a_file_size_is_content_where_all_were_compressed_alike():
    alike = {"first quantiser": np.full((4, 1), 3.0), "bit depth": np.full((4, 1), np.nan)}
    assert level_of("file size", alike) == "content"
    mixed = alike | {"first quantiser": np.array([[1.0], [3], [3], [3]])}
    assert level_of("file size", mixed) == "file"
    assert level_of("compression", alike) == "content"
    assert level_of("width", alike) == "file"
    assert level_of("Manufacturer", alike) == "acquisition"


def test_the_adjusted_auc_counts_the_pairs_within_strata():
    rng = np.random.default_rng(0)
    feature = rng.integers(0, 4, 200).astype(float)
    label = (rng.random(200) < (1 + feature) / 5).astype(int)
    scored = patients_of(200).assign(label=label, score=rng.integers(0, 9, 200) / 9 + label / 4)
    higher = pairs = 0
    for stratum in range(4):
        members = scored[feature == stratum]
        difference = np.subtract.outer(
            members.loc[members["label"] == 1, "score"].to_numpy(),
            members.loc[members["label"] == 0, "score"].to_numpy(),
        )
        higher += (difference > 0).sum() + (difference == 0).sum() / 2
        pairs += difference.size
    result = shortcuts.adjusted_auc(scored, feature)
    assert result["pairs"] == pairs
    assert result["adjusted"] == pytest.approx(higher / pairs)
    assert result["adjusted_low"] < result["adjusted"] < result["adjusted_high"]
    assert result["lost"] == pytest.approx(result["auc"] - result["adjusted"])


def test_strata_are_tenths_of_the_images():
    scored = patients_of(200).assign(score=0.5)
    # Each tenth holds 10 normals and 10 pneumonias.
    assert shortcuts.adjusted_auc(scored, np.arange(200.0))["pairs"] == 10 * 10 * 10


def test_a_model_that_follows_the_feature_alone_keeps_nothing():
    rng = np.random.default_rng(1)
    scored = patients_of(300)
    feature = scored["label"] + rng.normal(size=300)
    result = shortcuts.adjusted_auc(scored.assign(score=feature), feature.to_numpy())
    assert result["auc"] > 0.7 and result["adjusted"] < 0.62 and result["lost_low"] > 0
    separated = scored["label"].to_numpy(float)
    unknown = shortcuts.adjusted_auc(scored.assign(score=feature), separated)
    assert unknown["pairs"] == 0 and np.isnan(unknown["adjusted"]) and unknown["auc"] > 0.7


def test_scores_are_read_by_name_or_path_and_of_the_test_of_a_run(tmp_path):
    images = patients_of(4).assign(path=[str(tmp_path / f"{n}.png") for n in range(4)])
    run = tmp_path / "run"
    run.mkdir()
    table = images[["image_id"]].assign(split="test", score=[0.1, 0.9, 0.2, 0.8], seed=0)
    other = table.assign(seed=1, score=table["score"] + 0.1)
    pd.concat([table, other, table.assign(split="val", score=1.0)]).to_csv(run / "scores.csv")
    (run / "run.json").write_text(json.dumps({"threshold": 0.7}))
    scored, threshold = shortcuts.read_scores(run, images)
    assert threshold == 0.7
    np.testing.assert_allclose(scored["score"], [0.15, 0.95, 0.25, 0.85])
    file = tmp_path / "mine.csv"
    images[["path"]].iloc[1:3].assign(score=[2.5, -1]).to_csv(file, index=False)
    scored, threshold = shortcuts.read_scores(file, images)
    assert threshold == 0.5 and scored.index.tolist() == [1, 2]
    assert scored["score"].tolist() == [2.5, -1]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("image_id,score\nnobody,0.5\n", "0 images of this data set"),
        ("image_id,probability\na,0.5\n", "lacks the columns"),
        ("image_id,score\ntrain0_0,\n", "line 2 has no number"),
        ("", "not a CSV file"),
    ],
)
def test_scores_that_cannot_be_used_are_named(tmp_path, text, named):
    file = tmp_path / "scores.csv"
    file.write_text(text)
    with pytest.raises(InvalidDataError, match=rf"scores\.csv.*{named}.*Fix: "):
        shortcuts.read_scores(file, patients_of(4))
    with pytest.raises(NotFoundError, match=r"nowhere.*Fix: "):
        shortcuts.read_scores(tmp_path / "nowhere.csv", patients_of(4))
