from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn import metrics as sk

from xraylib import predict
from xraylib.datasets import images
from xraylib.datasets.corruptions import CORRUPTIONS, corrupt
from xraylib.evaluation import ranking, resampling, robustness
from xraylib.storage import DataInvalid, NotFound
from xraylib.training import train as training
from xraylib.training.recipes import get_recipe

TINY = get_recipe("tiny-cnn-28")
BRIEF = replace(TINY, phases=(replace(TINY.phases[0], epochs=3),))
FEW = ("marker", "inversion")
ALL_FEW = ["none 0", *(f"marker {step}" for step in range(1, 6)), "inversion 1"]

pytestmark = pytest.mark.usefixtures("small_phantom", "reports_here")


@pytest.fixture(scope="module")
def runs(phantom, accelerator, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    training.train(BRIEF, phantom, accelerator, runs=folder)
    return folder


@pytest.fixture
def kept(reports_here):
    return reports_here / "phantom" / "robustness" / "tiny-cnn-28.csv"


def tried(runs, names=FEW):
    return robustness.score("tiny-cnn-28", "phantom", names=names, runs=runs)


def columns(table):
    return [name for name in table if name not in robustness.ABOUT]


def counted(monkeypatch, stop=None):
    """Names and severities of the corruptions made from now on; one of them can be made to be cut."""
    done = []

    def instead(films, name, severity, *rest):
        if (name, severity) == stop:
            raise KeyboardInterrupt
        done.append((name, severity))
        return corrupt(films, name, severity, *rest)

    monkeypatch.setattr(robustness.corruptions, "corrupt", instead)
    return done


def trial(seed=0, patients=60, each=3, worse=(0.4, 0.8, 1.6)):
    """Scores of patients with several images each, spoilt more and more by noise."""
    draw = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), each)
    label = np.repeat(np.arange(patients) % 2, each)
    score = label + draw.normal(size=patients)[patient] + draw.normal(scale=0.5, size=len(patient))
    columns = {f"noise {i + 1}": score + draw.normal(scale=s, size=len(score)) for i, s in enumerate(worse)}
    about = {"recipe": "r", "model": "m", "seed": 0, "threshold": 0.6, "image_id": patient.astype(str)}
    about |= {"patient": patient.astype(str), "label": label}
    return pd.DataFrame(about | {"none 0": score, "mirror 1": -score} | columns)


def test_every_test_image_is_scored_after_every_severity(runs, phantom, kept):
    table = tried(runs)
    test = phantom[phantom["split"] == "test"]
    assert list(table) == [*robustness.ABOUT, *ALL_FEW]
    for name in ("image_id", "patient", "label"):
        assert table[name].tolist() == test[name].tolist()
    assert set(table["seed"]) == {0} and set(table["recipe"]) == {"tiny-cnn-28"}
    pd.testing.assert_frame_equal(robustness.load("phantom"), table, check_dtype=False, rtol=1e-7)


def test_a_score_is_what_the_run_says_of_the_corrupted_image(runs, phantom):
    table = tried(runs)
    films = images.load_pixels(phantom, 224, progress=False)[phantom.index[phantom["split"] == "test"]]
    predictor = predict.load(predict.find_runs("tiny-cnn-28", "phantom", runs=runs)[0])
    assert (table["threshold"] == predictor.threshold).all()
    for name, severity in (("none", 0), ("marker", 5), ("inversion", 1)):
        changed = corrupt(films, name, severity) if severity else films
        pictures = [Image.fromarray(film[..., 0]) for film in changed]
        small = [p.resize((28, 28), Image.Resampling.BILINEAR, reducing_gap=3.0) for p in pictures]
        expected = predictor.score(np.stack(small)[..., None])
        np.testing.assert_allclose(table[f"{name} {severity}"], expected, atol=1e-6)


def test_a_trial_that_was_cut_goes_on(runs, kept, monkeypatch):
    whole = tried(runs)
    pd.read_csv(kept, dtype={"model": str}).drop(columns=["none 0", "marker 4"]).to_csv(kept, index=False)
    done = counted(monkeypatch)
    again = tried(runs)
    assert done == [("marker", 4)]
    pd.testing.assert_frame_equal(again[list(whole)], whole, check_dtype=False, rtol=1e-6)
    done.clear()
    tried(runs)
    assert not done


def test_a_trial_that_fails_keeps_what_is_done(runs, kept, monkeypatch):
    counted(monkeypatch, stop=("marker", 3))
    with pytest.raises(KeyboardInterrupt):
        tried(runs)
    assert columns(pd.read_csv(kept)) == ["none 0", "marker 1", "marker 2"]


def test_other_corruptions_are_added_to_those_done(runs):
    tried(runs, ["inversion"])
    assert columns(tried(runs, ["inversion", "marker"])) == ["none 0", "inversion 1", *ALL_FEW[1:-1]]


@pytest.mark.parametrize("other", [{"model": "0123456789ab"}, {"image_id": "x"}, {"label": 0}])
def test_a_trial_of_another_run_or_of_other_images_is_refused(runs, kept, other):
    tried(runs, ["inversion"]).assign(**other).to_csv(kept, index=False)
    with pytest.raises(DataInvalid, match=r"of another run or of other images\. Fix: delete it"):
        tried(runs)


def test_what_is_no_trial_is_refused(runs, kept):
    kept.parent.mkdir(parents=True)
    kept.write_text("recipe,auc\ntiny-cnn-28,.9\n")
    with pytest.raises(DataInvalid, match=r"lacks the columns model, seed.* Fix: delete it"):
        tried(runs)


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("jpeg 1", "", "p3 has '' as jpeg 1, which is no number"),
        ("jpeg 1", "nan", "p3 has 'nan' as jpeg 1, which is no number"),
        ("jpeg 1", "7", r"p3 has a score outside \[0, 1\]"),
        ("label", "1.5", "p3 has '1.5' as label"),
        ("label", "2", "p3 has a label that is not 0 or 1"),
        ("image_id", "p4", "p4 stands there twice"),
        ("patient", "", "p3 has no patient"),
    ],
)
def test_bad_trials_are_refused_with_the_image_named(kept, column, value, said):
    table = pd.DataFrame({"image_id": [f"p{i}" for i in range(8)], "label": [0, 1] * 4})
    table = table.assign(patient=table["image_id"], recipe="r", model="m", seed=0, threshold=0.5)
    table["none 0"] = table["jpeg 1"] = np.linspace(0, 1, 8)
    kept.parent.mkdir(parents=True)
    table.to_csv(kept, index=False)
    assert len(robustness.losses(robustness.load("phantom"))) == 2
    table = table.astype(str)
    table.loc[3, column] = value
    table.to_csv(kept, index=False)
    with pytest.raises(DataInvalid, match=said):
        robustness.load("phantom")


def test_without_trials_or_runs_the_mend_is_the_command(runs):
    with pytest.raises(NotFound, match="Fix: `python -m xraylib robustness RECIPE --dataset phantom`"):
        robustness.load("phantom")
    with pytest.raises(NotFound, match="no finished run of scratch-cnn"):
        robustness.score("scratch-cnn", "phantom", runs=runs)
    with pytest.raises(NotFound, match="no corruption 'fog'"):
        tried(runs, ["fog"])


def test_every_corruption_is_tried_by_default(runs):
    assert not robustness.is_known("phantom")
    table = robustness.score("tiny-cnn-28", "phantom", runs=runs)
    assert robustness.is_known("phantom")
    assert len(columns(table)) == 1 + 17 * 5 + 1
    averaged = robustness.losses(table, averaged=True)
    assert averaged["corruption"].tolist() == ["none", *CORRUPTIONS]
    assert averaged["severity"].tolist() == [1, *(len(steps) for _, steps in CORRUPTIONS.values())]


def test_the_figures_are_those_of_scikit_learn():
    table = trial()
    lost = robustness.losses(table).set_index(["corruption", "severity"])
    assert list(robustness.losses(table)) == list(robustness.LOSSES)
    clean = lost.loc[("none", 0)]
    for (name, severity), row in lost.iterrows():
        score = table[f"{name} {severity}"]
        assert row["auc"] == pytest.approx(sk.roc_auc_score(table["label"], score), abs=1e-12)
        right = sk.balanced_accuracy_score(table["label"], score >= 0.6)
        assert row["balanced_error"] == pytest.approx(1 - right, abs=1e-12)
        assert row["auc_lost"] == pytest.approx(clean["auc"] - row["auc"], abs=1e-12)
        gained = row["balanced_error"] - clean["balanced_error"]
        assert row["balanced_error_gained"] == pytest.approx(gained, abs=1e-12)
        assert row["n"] == 180


def test_untouched_images_lose_nothing_for_certain():
    row = robustness.losses(trial()).iloc[0]
    assert (row[["auc_lost", "auc_lost_low", "auc_lost_high"]] == 0).all()
    assert (row[[f"balanced_error_gained{end}" for end in ("", "_low", "_high")]] == 0).all()


def test_severities_are_averaged():
    table = trial()
    each = robustness.losses(table).groupby("corruption", sort=False)
    averaged = robustness.losses(table, averaged=True).set_index("corruption")
    for name in ("auc", "auc_lost", "balanced_error", "balanced_error_gained"):
        pd.testing.assert_series_equal(averaged[name], each[name].mean(), atol=1e-12)
    narrow = averaged.eval("auc_lost_high - auc_lost_low").loc["noise"]
    assert 0 < narrow < each.get_group("noise").eval("auc_lost_high - auc_lost_low").max()


@pytest.mark.parametrize("seed", range(3))
def test_intervals_agree_with_a_bootstrap_of_patients(seed):
    table = trial(seed, patients=200)
    names, places = np.unique(table["patient"], return_inverse=True)
    weights = resampling.patient_draws(len(names), 2000)[:, places]
    ill = table["label"].to_numpy() == 1
    worse = [f"noise {step}" for step in (1, 2, 3)]

    def drawn(name, call):
        score = table[name].to_numpy()
        return ranking.weighted_auc(ill, (score >= 0.6).astype(float) if call else score, weights)

    row = robustness.losses(table, averaged=True).set_index("corruption").loc["noise"]
    for change, call in (("auc_lost", False), ("balanced_error_gained", True)):
        lost = drawn("none 0", call) - np.mean([drawn(name, call) for name in worse], axis=0)
        assert row[f"{change}_low"] == pytest.approx(np.percentile(lost, 2.5), abs=0.006)
        assert row[f"{change}_high"] == pytest.approx(np.percentile(lost, 97.5), abs=0.006)


def test_recipes_are_told_apart_though_one_has_fewer_corruptions():
    other = trial(1).assign(recipe="s").drop(columns=["mirror 1"])
    both = robustness.losses(pd.concat([trial(), other]))
    assert both.groupby("recipe", sort=False)["corruption"].unique().map(list).to_dict() == {
        "r": ["none", "mirror", "noise"],
        "s": ["none", "noise"],
    }
    alone = robustness.losses(other)
    pd.testing.assert_frame_equal(both[both["recipe"] == "s"].reset_index(drop=True), alone)


def test_a_trial_that_was_cut_is_not_averaged(runs):
    table = tried(runs).drop(columns=["marker 5"])
    assert len(robustness.losses(table)) == 6
    with pytest.raises(DataInvalid, match="tiny-cnn-28 was tried on some severities of marker only"):
        robustness.losses(table, averaged=True)


def test_a_corruption_scored_in_part_is_refused():
    table = trial()
    table.loc[3, "noise 2"] = np.nan
    with pytest.raises(DataInvalid, match="r lacks scores of some images"):
        robustness.losses(table)


def test_nothing_can_be_lost_against_images_that_were_not_scored():
    with pytest.raises(DataInvalid, match="r lacks the scores of the images as they are"):
        robustness.losses(trial().drop(columns=["none 0"]))


def test_one_patient_a_class_gives_no_interval():
    row = robustness.losses(trial(patients=2)).iloc[-1]
    assert np.isnan(row["auc_lost_low"]) and np.isfinite(row["auc_lost"])
