from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from xraylib import predict
from xraylib.datasets import catalog, images, phantom
from xraylib.evaluation import shift
from xraylib.evaluation.metrics import evaluate
from xraylib.evaluation.scores import COLUMNS
from xraylib.report import tables
from xraylib.storage import DataInvalid, NotFound
from xraylib.training import train as training
from xraylib.training.recipes import get_recipe

TINY = get_recipe("tiny-cnn-28")
BRIEF = replace(TINY, phases=(replace(TINY.phases[0], epochs=3),))

pytestmark = pytest.mark.usefixtures("small_phantom", "reports_here")


@pytest.fixture(scope="module")
def runs(phantom, accelerator, tmp_path_factory):
    """Folder of two runs, which differ in their seed."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        training.train(BRIEF, phantom, accelerator, seed=seed, runs=folder)
    return folder


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    """Another phantom, as a folder of the user's."""
    settings = phantom.PhantomSettings(images=24, size=48, seed=7)
    return phantom.write(tmp_path_factory.mktemp("elsewhere") / "hospital", settings)


@pytest.fixture
def outside(runs, hospital):
    return shift.external("tiny-cnn-28", "phantom", hospital, runs=runs)


def found(runs):
    return predict.find_runs("tiny-cnn-28", "phantom", runs=runs)


def of_the_report(runs):
    return pd.concat([run.scores for run in found(runs)], ignore_index=True)


def test_every_image_elsewhere_is_scored_by_every_seed(outside, hospital):
    manifest = catalog.load(hospital)
    assert tuple(outside.columns) == COLUMNS
    for seed, part in outside.groupby("seed"):
        assert part["image_id"].tolist() == manifest["image_id"].tolist(), seed
        assert part["label"].tolist() == manifest["label"].tolist()
        assert part["patient"].tolist() == manifest["patient"].tolist()
    assert outside["seed"].unique().tolist() == [0, 1]
    said = {(row.recipe, row.protocol, row.split) for row in outside.itertuples()}
    assert said == {("tiny-cnn-28", "strict", "external")}


def test_the_scores_are_those_of_the_runs_as_they_stand(outside, hospital, runs):
    pixels = images.load_pixels(catalog.load(hospital), 28, progress=False)
    for run in found(runs):
        expected = predict.load(run).score(pixels)
        np.testing.assert_allclose(outside.loc[outside["seed"] == run.seed, "score"], expected, atol=1e-6)
    assert outside.groupby("image_id")["score"].std().max() > 1e-6


def test_external_scores_are_kept_and_read_back(outside, hospital, reports_here):
    name = catalog.find(hospital).name
    assert (reports_here / "phantom" / "external" / name / "tiny-cnn-28.csv").exists()
    pd.testing.assert_frame_equal(shift.load_external("phantom", name), outside)


def test_external_scores_are_read_back_by_the_path_they_were_made_with(outside, hospital):
    pd.testing.assert_frame_equal(shift.load_external("phantom", str(hospital)), outside)


def test_external_scores_that_do_not_fit_together_are_refused(outside, hospital, reports_here):
    folder = reports_here / "phantom" / "external" / catalog.find(hospital).name
    other = outside.assign(recipe="scratch-cnn")
    other[other["image_id"] != other.loc[3, "image_id"]].to_csv(folder / "scratch-cnn.csv", index=False)
    missing = f"{outside.loc[3, 'image_id']} was scored by tiny-cnn-28 and not by all"
    with pytest.raises(DataInvalid, match=missing):
        shift.load_external("phantom", str(hospital))
    turned = other.assign(label=1 - other["label"], kind="")
    turned.to_csv(folder / "scratch-cnn.csv", index=False)
    with pytest.raises(DataInvalid, match="has two labels"):
        shift.load_external("phantom", str(hospital))


def test_without_external_scores_the_mend_is_the_command():
    with pytest.raises(NotFound, match="Fix: `python -m xraylib external RECIPE --dataset phantom --on"):
        shift.load_external("phantom", "nih")


def test_a_recipe_without_runs_is_not_tried(runs, hospital):
    with pytest.raises(NotFound, match="no finished run of scratch-cnn"):
        shift.external("scratch-cnn", "phantom", hospital, runs=runs)


def test_images_that_are_not_there_are_named(runs):
    with pytest.raises(NotFound, match="no data set is named 'elsewhere'"):
        shift.external("tiny-cnn-28", "phantom", "elsewhere", runs=runs)


def test_both_sides_are_set_beside_each_other(outside, runs):
    scores = of_the_report(runs)
    table = shift.drop(scores, outside).set_index("metric")
    sides = {"test": evaluate(scores), "external": evaluate(pd.concat([scores, outside]), split="external")}
    assert table.index.tolist() == ["auc", "accuracy", "balanced_accuracy", "sensitivity", "specificity"]
    assert set(table["recipe"]) == {"tiny-cnn-28"}
    for metric, row in table.iterrows():
        for side, figures in sides.items():
            mine = row[[side, f"{side}_low", f"{side}_high"]].tolist()
            expected = figures.loc[metric, ["value", "low", "high"]].tolist()
            assert mine == pytest.approx(expected, nan_ok=True)


def test_what_is_lost_has_an_interval_from_both_sides(outside, runs):
    row = shift.drop(of_the_report(runs), outside).set_index("metric").loc["accuracy"]
    assert row["drop"] == pytest.approx(row["test"] - row["external"])
    assert row["drop_low"] <= row["drop"] <= row["drop_high"]
    widths = [row[f"{side}_high"] - row[f"{side}_low"] for side in ("test", "external", "drop")]
    assert max(widths[:2]) <= widths[2] <= sum(widths[:2])


def test_images_elsewhere_do_not_move_the_threshold(outside, runs):
    scores = of_the_report(runs)
    turned = outside.assign(label=1 - outside["label"], kind="")
    tables = [shift.drop(scores, there).set_index("metric") for there in (outside, turned)]
    assert tables[1].loc["sensitivity", "external"] == pytest.approx(
        1 - tables[0].loc["specificity", "external"]
    )
    assert tables[1]["test"].equals(tables[0]["test"])


def test_only_strict_scores_of_the_recipe_are_compared(outside, runs):
    scores = of_the_report(runs)
    spoilt = scores.assign(score=1 - scores["score"])
    others = [spoilt.assign(protocol="published"), spoilt.assign(recipe="scratch-cnn")]
    pd.testing.assert_frame_equal(
        shift.drop(pd.concat([scores, *others]), outside), shift.drop(scores, outside)
    )


def test_a_run_that_the_report_does_not_know_is_named(runs, hospital, caplog):
    shift.external("tiny-cnn-28", "phantom", hospital, runs=runs)
    assert [record.args[1] for record in caplog.records if "not made by" in record.message] == [0, 1]
    caplog.clear()
    for run in found(runs):
        tables.record(run, "phantom")
    shift.external("tiny-cnn-28", "phantom", hospital, runs=runs)
    assert "not made by" not in caplog.text


@pytest.fixture(scope="module")
def frozen(phantom, accelerator, tmp_path_factory):
    """Folder of one run of a linear head on a small frozen network with random weights."""
    folder, recipe = tmp_path_factory.mktemp("frozen"), get_recipe("mobilenetv2-frozen")
    training.train(replace(recipe, size=32), phantom, accelerator, init="random", runs=folder)
    return folder


def test_every_group_of_images_has_its_distance_from_training(frozen, phantom, hospital, reports_here):
    table = shift.strangeness("phantom", [hospital], runs=frozen)
    test, name = phantom[phantom["split"] == "test"], catalog.find(hospital).name
    sizes = table.groupby("group", sort=False).size().to_dict()
    ill = int((test["label"] == 1).sum())
    expected = {
        "test, normal": len(test) - ill,
        "test, pneumonia": ill,
        "test, inverted": len(test),
        name: 24,
    }
    assert {group: n for group, n in sizes.items() if not group.startswith("validation, ")} == expected
    val = table[table["group"].str.startswith("validation")]
    known = phantom.set_index("image_id").loc[val["image_id"], "split"]
    assert (known == "train").all()
    assert table["strangeness"].gt(0).all()
    read = tables.load_table("phantom", "strangeness")
    pd.testing.assert_frame_equal(read, table, rtol=1e-5)


def test_a_network_without_a_run_judges_nothing(runs):
    with pytest.raises(NotFound, match="no finished run of mobilenetv2-frozen"):
        shift.strangeness("phantom", runs=runs)
