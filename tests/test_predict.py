import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xraylib import predict
from xraylib.evaluation import operating
from xraylib.storage import DataInvalid, NotFound
from xraylib.training import heads
from xraylib.training import train as training
from xraylib.training.models import Weights
from xraylib.training.recipes import get_recipe
from xraylib.training.runs import read

TINY = get_recipe("tiny-cnn-28")
FROZEN = replace(get_recipe("mobilenetv2-frozen"), size=32, init="random")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def network(phantom, accelerator, runs):
    return training.train(TINY, phantom, accelerator, budget="quick", runs=runs)


@pytest.fixture(scope="module")
def linear(phantom, accelerator, runs):
    return training.train(FROZEN, phantom, accelerator, runs=runs)


@pytest.fixture(scope="module")
def predictor(network):
    return predict.load(network)


def official_test(phantom):
    return phantom[phantom["split"] == "test"]


@pytest.mark.parametrize("kind", ["network", "linear"])
def test_test_images_get_the_scores_of_the_run(kind, phantom, request):
    run = request.getfixturevalue(kind)
    images = official_test(phantom)
    table = predict.predict(images["path"].tolist(), predict.load(run))
    expected = run.scores.set_index(["split", "image_id"])["score"].loc["test"].loc[images["image_id"]]
    np.testing.assert_allclose(table["score"], expected, atol=1e-6)
    assert np.ptp(table["score"]) > 1e-3
    assert (table["problem"] == "").all()


@pytest.mark.parametrize("kind", ["network", "linear"])
def test_the_call_is_made_at_the_threshold_chosen_on_validation(kind, phantom, request):
    run = request.getfixturevalue(kind)
    table = predict.predict(official_test(phantom)["path"].tolist(), predict.load(run))
    val = run.scores[run.scores["split"] == "val"]
    chosen = operating.youden_threshold(val["label"].to_numpy(), val["score"].to_numpy())
    assert table["threshold"].tolist() == pytest.approx([chosen] * len(table))
    assert table["call"].tolist() == [
        "pneumonia" if score >= chosen else "normal" for score in table["score"]
    ]


def test_one_image_scores_as_it_does_among_others(phantom, predictor):
    files = official_test(phantom)["path"].tolist()
    together = predict.predict(files, predictor)["score"]
    alone = [predict.predict([file], predictor)["score"].item() for file in files[:3]]
    np.testing.assert_allclose(alone, together[:3], atol=1e-6)


def test_bad_files_are_reported_and_the_others_go_on(phantom, predictor, tmp_path):
    good = official_test(phantom)["path"].iloc[0]
    torn = tmp_path / "torn.jpeg"
    torn.write_bytes(Path(good).read_bytes()[:400])
    (tmp_path / "letter.png").write_text("Dear colleague")
    (tmp_path / "folder.png").mkdir()
    bad = [torn, tmp_path / "letter.png", tmp_path / "nowhere.png", tmp_path / "folder.png"]
    table = predict.predict([bad[0], good, *bad[1:], good], predictor)
    assert tuple(table.columns) == predict.COLUMNS
    assert table["file"].tolist() == [str(file) for file in (bad[0], good, *bad[1:], good)]
    assert table["score"].notna().tolist() == [False, True, False, False, False, True]
    assert table["score"].iloc[1] == pytest.approx(table["score"].iloc[5], abs=1e-6)
    for row in table[table["score"].isna()].itertuples():
        assert row.call == "" and Path(row.file).name in row.problem and "Fix: " in row.problem


def test_only_bad_files_are_no_error_of_the_batch(predictor, tmp_path):
    table = predict.predict([tmp_path / "nowhere.png"], predictor)
    assert len(table) == 1 and table["score"].isna().all()


def test_no_file_gives_an_empty_table(predictor):
    assert predict.predict([], predictor).empty


def test_any_size_of_radiograph_is_taken(predictor, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 91), np.uint8)).save(
        tmp_path / "tall.png"
    )
    assert 0 <= predict.predict([tmp_path / "tall.png"], predictor)["score"].item() <= 1


@pytest.fixture
def copied(request, tmp_path):
    """A function that copies a run to a folder of this test."""

    def copy(kind):
        folder = tmp_path / "runs" / request.getfixturevalue(kind).folder.name
        shutil.copytree(request.getfixturevalue(kind).folder, folder)
        return read(folder)

    return copy


@pytest.mark.parametrize(("kind", "file"), [("network", "model.weights.h5"), ("linear", "head.json")])
def test_a_tampered_model_is_refused(kind, file, copied):
    run = copied(kind)
    whole = bytearray((run.folder / file).read_bytes())
    whole[len(whole) // 2] ^= 1
    (run.folder / file).write_bytes(whole)
    with pytest.raises(DataInvalid, match=rf"{file} is missing or is not what the run wrote\. Fix: "):
        predict.load(run)


@pytest.mark.parametrize(("kind", "file"), [("network", "model.weights.h5"), ("linear", "head.json")])
def test_a_model_that_is_gone_is_named(kind, file, copied):
    run = copied(kind)
    (run.folder / file).unlink()
    with pytest.raises(DataInvalid, match=rf"{file} is missing.*Fix: "):
        predict.load(run)


def test_a_linear_head_on_other_weights_is_refused(linear, monkeypatch):
    monkeypatch.setattr(predict.models, "get_weights", lambda *_: Weights("imagenet (another file)"))
    with pytest.raises(DataInvalid, match=r"fitted on random, found are imagenet .*Fix: "):
        predict.load(linear)


def test_the_newest_run_of_a_recipe_is_found(network, linear, runs):
    assert predict.find_run("tiny-cnn-28", "phantom", runs=runs).folder == network.folder
    assert predict.find_run("mobilenetv2-frozen", "phantom", runs=runs).folder == linear.folder


def test_the_newer_of_two_runs_is_found(network, tmp_path):
    for age, name in ((10, "tiny-cnn-28-bbb"), (500, "tiny-cnn-28-aaa"), (900, "tiny-cnn-28-ccc")):
        shutil.copytree(network.folder, tmp_path / name)
        changed = (tmp_path / name / "run.json").stat().st_mtime - age
        os.utime(tmp_path / name / "run.json", (changed, changed))
    (tmp_path / "tiny-cnn-28-unfinished").mkdir()
    assert predict.find_run("tiny-cnn-28", "phantom", runs=tmp_path).folder.name == "tiny-cnn-28-bbb"


@pytest.mark.parametrize(("recipe", "dataset"), [("scratch-cnn", "phantom"), ("tiny-cnn-28", "kermany")])
def test_without_a_run_the_mend_is_the_command_that_trains_one(recipe, dataset, network, runs):
    mend = rf"Fix: .*python -m xraylib train {recipe} --dataset {dataset}"
    with pytest.raises(NotFound, match=mend):
        predict.find_run(recipe, dataset, runs=runs)


def test_a_published_run_does_not_predict(phantom, accelerator, tmp_path):
    brief = replace(TINY, phases=(replace(TINY.phases[0], epochs=1),))
    training.train(brief, phantom, accelerator, protocol="published", runs=tmp_path)
    with pytest.raises(NotFound, match="no finished run"):
        predict.find_run("tiny-cnn-28", "phantom", runs=tmp_path)


def test_the_head_is_read_without_running_code(linear):
    file = linear.folder / "head.json"
    assert file.read_bytes().lstrip().startswith(b"{") and heads.load(file)
