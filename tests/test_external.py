import builders
import made_up_runs
import numpy as np
import pandas as pd
import pytest
from made_up_runs import answer

from xraylib.datasets import catalog, images, manifest
from xraylib.datasets import phantom as phantoms
from xraylib.errors import InvalidDataError
from xraylib.evaluation import external, metrics
from xraylib.evaluation.scores import load_external
from xraylib.training import runs


@pytest.fixture
def two_runs(small_phantom, reports_here, monkeypatch):
    """Two runs on the phantom whose model is `answer`."""
    made = made_up_runs.two_runs(small_phantom, reports_here)
    strict = ("phantom", "tiny-cnn-28", "strict")
    monkeypatch.setattr(runs, "list_runs", lambda *about: made if about == strict else [])
    monkeypatch.setattr(external, "load_predictor", made_up_runs.load_predictor)
    return made


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    """Another phantom, as a folder of the user's."""
    settings = phantoms.PhantomSettings(images=24, size=48, seed=7)
    return phantoms.write(tmp_path_factory.mktemp("elsewhere") / "hospital", settings)


def test_external_images_are_scored_by_every_run_and_kept(two_runs, hospital, reports_here):
    table, films = external.external("tiny-cnn-28", "phantom", hospital), manifest.load(hospital)
    name = catalog.get_dataset(hospital).name
    assert table.columns.tolist() == builders.COLUMNS and set(table["split"]) == {"external"}
    for seed, part in table.groupby("seed"):
        assert part["image_id"].tolist() == films["image_id"].tolist()
        assert part["patient"].tolist() == films["patient"].tolist()
        np.testing.assert_allclose(part["score"], answer(images.load_pixels(films, 28), seed))
    assert (reports_here / "phantom" / "external" / name / "tiny-cnn-28.csv").exists()
    pd.testing.assert_frame_equal(load_external("phantom", name), table, rtol=1e-8)


def test_a_folder_is_a_data_set_like_any_other(two_runs, hospital, monkeypatch, reports_here):
    name, seen = catalog.get_dataset(hospital).name, []
    monkeypatch.setattr(runs, "list_runs", lambda *about: seen.append(about[0]) or two_runs)
    external.external("tiny-cnn-28", str(hospital), "phantom")
    assert seen == [name]


def test_the_generalisation_gap_is_at_the_frozen_threshold_of_each_run():
    scores = builders.scores(n=90, seeds=(0, 1), strength=2)
    scores["threshold"] = scores["seed"].map({0: 0.4, 1: 0.6})
    outside = builders.scores(n=60, seeds=(0, 1), sample=5).query("split == 'test'")
    outside = outside.assign(split="external").drop(columns="threshold")
    others = [scores.assign(protocol="published"), scores.assign(recipe="theirs")]
    table = external.generalisation_gap(pd.concat([scores, *others]), outside).set_index("metric")
    for part, split in ((scores, "test"), (outside, "external")):
        part = part.assign(threshold=part["seed"].map({0: 0.4, 1: 0.6}))
        found = metrics.evaluate(part, split=split).loc[table.index]
        for end, column in (("", "value"), ("_low", "low"), ("_high", "high")):
            assert table[split + end].tolist() == found[column].tolist()
    assert table["gap"].tolist() == pytest.approx((table["test"] - table["external"]).tolist())
    assert table["gap"].between(table["gap_low"], table["gap_high"]).all()
    width = {
        name: table[f"{name}_high"] - table[f"{name}_low"] for name in ("test", "external", "gap")
    }
    assert (np.maximum(width["test"], width["external"]) <= width["gap"]).all()
    assert (width["gap"] <= width["test"] + width["external"]).all()
    # The gap is smallest where the test is at its low end and the other set at its high end.
    for row in table.itertuples():
        lowest = (row.test - row.test_low) ** 2 + (row.external_high - row.external) ** 2
        highest = (row.test_high - row.test) ** 2 + (row.external - row.external_low) ** 2
        assert row.gap - row.gap_low == pytest.approx(lowest**0.5)
        assert row.gap_high - row.gap == pytest.approx(highest**0.5)
    with pytest.raises(InvalidDataError, match=r"of other runs. Fix: "):
        external.generalisation_gap(scores[scores["seed"] == 0], outside)
