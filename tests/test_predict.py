from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import run_python
from PIL import Image

from xraylib import predict
from xraylib.storage import DataInvalid
from xraylib.training import networks, runs
from xraylib.training.recipes import Phase, get_recipe
from xraylib.training.train import train

NETWORK = replace(get_recipe("tiny-cnn-28"), name="predicting", phases=(Phase(6, 1e-3),))
PROBE = replace(get_recipe("mobilenetv2-frozen"), name="probing", network="tiny_cnn", size=32, init="random")
BOTH = pytest.mark.parametrize("kind", ["network", "probe"])


@pytest.fixture(scope="module")
def trained(phantom, accelerator):
    return {kind: train(recipe, phantom, accelerator) for kind, recipe in (("network", NETWORK), ("probe", PROBE))}


@pytest.fixture(scope="module")
def predictor(trained):
    return trained["network"].predictor()


def official_test(phantom):
    return phantom[phantom["split"] == "test"]


@BOTH
def test_test_images_get_the_scores_and_the_threshold_of_the_run(kind, phantom, trained):
    run, films = trained[kind], official_test(phantom)
    table = predict.predict(films["path"].tolist(), run.predictor())
    expected = run.scores.set_index(["split", "image_id"])["score"].loc["test"].loc[films["image_id"]]
    np.testing.assert_allclose(table["score"], expected, atol=1e-5)
    assert table["score"].nunique() > 1 and (table["problem"] == "").all()
    assert (table["threshold"] == run.threshold).all()
    assert table["label"].tolist() == np.where(table["score"] >= run.threshold, "pneumonia", "normal").tolist()


def test_bad_files_are_reported_and_the_others_go_on(phantom, predictor, tmp_path):
    good = official_test(phantom)["path"].iloc[0]
    torn = tmp_path / "torn.jpeg"
    torn.write_bytes(Path(good).read_bytes()[:400])
    (tmp_path / "letter.png").write_text("Dear colleague")
    (tmp_path / "folder.png").mkdir()
    bad = [torn, tmp_path / "letter.png", tmp_path / "nowhere.png", tmp_path / "folder.png"]
    files = [bad[0], good, *bad[1:], good]
    table = predict.predict(files, predictor)
    assert tuple(table.columns) == predict.COLUMNS and table["path"].tolist() == list(map(str, files))
    assert table["score"].notna().tolist() == [False, True, False, False, False, True]
    assert table["score"].iloc[1] == pytest.approx(table["score"].iloc[5], abs=1e-6)
    for row in table[table["score"].isna()].itertuples():
        assert row.label == "" and Path(row.path).name in row.problem and "Fix: " in row.problem
    assert predict.predict(bad, predictor)["score"].isna().all()
    assert predict.predict([], predictor).empty


def test_any_size_of_radiograph_is_taken(predictor, tmp_path):
    film = np.random.default_rng(0).integers(0, 255, (300, 91), np.uint8)
    Image.fromarray(film).save(tmp_path / "tall.png")
    assert 0 <= predict.predict([tmp_path / "tall.png"], predictor)["score"].item() <= 1


def test_a_probe_on_other_weights_is_refused(trained, monkeypatch):
    monkeypatch.setattr(networks, "get_weights", lambda *_: networks.Weights("imagenet (another file)"))
    with pytest.raises(DataInvalid, match=r"fitted on random, found are imagenet .*Fix: "):
        trained["probe"].predictor()


@pytest.mark.slow
def test_importing_it_does_not_load_keras():
    said = run_python("import sys, xraylib.predict; print([m in sys.modules for m in ('keras', 'tensorflow')])")
    assert said.strip() == "[False, False]"


def test_the_model_that_comes_with_the_package_is_whole_and_answers(phantom):
    run = runs.read(runs.SHIPPED)
    assert run.has_model and run.model_file.stat().st_size <= 6e6 and run.settings["licences"]
    table = predict.predict(official_test(phantom)["path"].head(2).tolist(), run.predictor())
    assert table["score"].between(0, 1).all() and (table["threshold"] == run.threshold).all()


def test_shipping_halves_precision_and_a_tampered_file_is_refused(phantom, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "SHIPPED", tmp_path / "weights")
    shipped, films = runs.ship(trained["network"]), official_test(phantom)["path"].head(8).tolist()
    assert shipped.model_file.stat().st_size < 0.6 * trained["network"].model_file.stat().st_size
    expected = predict.predict(films, trained["network"].predictor())["score"]
    np.testing.assert_allclose(predict.predict(films, shipped.predictor())["score"], expected, atol=0.01)
    shipped.model_file.write_bytes(shipped.model_file.read_bytes()[:-1] + b"x")
    with pytest.raises(DataInvalid, match=r"model\.weights\.h5 is missing or is not what the run wrote"):
        runs.read(runs.SHIPPED).predictor()
