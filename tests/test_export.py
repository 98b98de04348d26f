"""A trained network becomes the packaged model."""

import importlib
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from xraylib import export, packaged, paths, prediction, storage
from xraylib.datasets import images, lung_finder
from xraylib.errors import NotFoundError
from xraylib.training import networks, runs
from xraylib.training.recipes import Phase, get_recipe
from xraylib.training.train import train

RECIPE = replace(
    get_recipe("flagship"),
    name="exported",
    init="random",
    phases=(Phase(1, 1e-3),),
    validation="plain",
)


@pytest.fixture(scope="module")
def run(phantom, accelerator):
    return train(RECIPE, phantom, accelerator)


@pytest.fixture(scope="module")
def exported(run, phantom, tmp_path_factory):
    """The folder of the packaged model that the run became."""
    folder = Path(shutil.copytree(paths.SHIPPED, tmp_path_factory.mktemp("package") / "weights"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "SHIPPED", folder)
        export.package(run, phantom)
    # The network that finds the lungs is packaged by itself, and stays as it is.
    content = storage.read_verified(folder / lung_finder.MODEL_FILE)
    assert content == (paths.SHIPPED / lung_finder.MODEL_FILE).read_bytes()
    return folder


def test_the_packaged_networks_are_small_and_their_checksums_are_right():
    names = sorted(file.name for file in paths.SHIPPED.iterdir())
    assert names == ["SHA256SUMS", "lungs.tflite", "model.tflite", "run.json"]
    assert all(file.stat().st_size <= 6e6 for file in paths.SHIPPED.iterdir())
    check = ["sha256sum", "--check", "--strict", storage.CHECKSUM_FILE]
    checked = subprocess.run(check, cwd=paths.SHIPPED, check=True, capture_output=True, text=True)
    assert sorted(line.split(":")[0] for line in checked.stdout.splitlines()) == names[1:]
    settings = json.loads((paths.SHIPPED / "run.json").read_text())
    assert settings["licences"]
    assert settings["answers"]["sha256"] == packaged.load_packaged().sha256


def log_odds(probability):
    return np.log(probability / (1 - probability))


def without_limits(content, size=224):
    settings = {"recipe": "r", "dataset": "d", "seed": 0, "choices": {"size": size}}
    limits = {"framings": export.VIEWS, "input": 160} | export._NO_LIMITS
    return packaged.build_packaged(settings | {"answers": limits}, content)


@pytest.mark.slow
def test_litert_answers_as_keras_does(phantom, accelerator):
    """Batch norm gets the statistics of images and random scales, which the converter folds."""
    keras.utils.set_random_seed(0)
    model = networks.build("mobilenetv2_standardized", 128, "sigmoid")
    backbone = model.get_layer("backbone")
    norms = [norm for norm in backbone.layers if "BatchNormalization" in type(norm).__name__]
    rng = np.random.default_rng(0)
    for norm in norms:
        norm.momentum = 0.0
        norm.gamma.assign(rng.uniform(0.8, 1.2, norm.gamma.shape))
        norm.beta.assign(rng.normal(0, 0.1, norm.beta.shape))
    pixels = images.load_pixels(phantom, 224)[:12]
    small = keras.ops.image.resize(np.asarray(pixels, np.float32), (160, 160))
    backbone(keras.ops.repeat(small / 127.5 - 1, 3, axis=-1), training=True)
    # What half precision makes of a weight, both compute with.
    for variable in model.weights:
        variable.assign(variable.numpy().astype(np.float16).astype(np.float32))
    expected = networks.predict_rows(model, "sigmoid", pixels, np.arange(12), 4)
    answers = without_limits(export.to_litert(model, np.asarray(pixels))).answer(pixels)
    probability = np.array([answer["probability"] for answer in answers])
    # Half precision once more, of the folded weights, and 53 layers whose outputs are normalised.
    np.testing.assert_allclose(probability, expected, atol=1e-2)
    assert np.ptp(expected) > 0.05
    assert np.corrcoef(probability, expected)[0, 1] > 0.98


@pytest.mark.slow
def test_limits_are_those_of_validation(run, exported, phantom):
    model = packaged.load_packaged(exported)
    scores = run.scores[run.scores["split"] == "val"]
    validation = scores.merge(phantom[["image_id", "path"]])
    table = prediction.predict(validation["path"], model)
    # A hundredth, but never none: one by its OOD score, and one by its framings.
    assert (table["ood_score"] > model.limits["ood_limit"]).sum() <= 1
    assert (table["status"] != "ok").sum() <= 2
    slope, intercept = model.limits["calibration"]
    # So little training may leave a slope below zero, which turns the order of the scores round.
    margin = np.sign(slope) * (log_odds(validation["score"]) - log_odds(run.threshold))
    is_pneumonia = table["label"] == "pneumonia"
    # Half precision may move what lies nearer to the threshold to its other side.
    is_clear = (table["status"] == "ok") & (margin.abs() > 0.02)
    assert (is_pneumonia == (margin > 0))[is_clear].all()
    expected = 1 / (1 + np.exp(-(slope * log_odds(run.threshold) + intercept)))
    assert model.threshold == pytest.approx(expected)


@pytest.mark.slow
def test_the_settings_are_the_runs_and_name_the_weights_that_were_exported(run, exported):
    settings = json.loads((exported / "run.json").read_text())
    assert settings["trained_model_sha256"] == run.settings["model_sha256"]
    assert "model_sha256" not in settings
    assert settings["choices"] == run.settings["choices"]
    assert settings["answers"]["sha256"] == packaged.load_packaged(exported).sha256


@pytest.mark.slow
def test_the_network_that_finds_the_lungs_is_trained_and_packaged(
    tmp_path, small_phantom, reports_here, monkeypatch, capsys
):
    folder = Path(shutil.copytree(paths.SHIPPED, tmp_path / "weights"))
    monkeypatch.setattr(paths, "SHIPPED", folder)
    masks = tmp_path / "masks"
    masks.mkdir()
    drawn = np.zeros((lung_finder.SIZE, lung_finder.SIZE), np.uint8)
    drawn[30:80, 20:90] = 255
    for name in small_phantom["image_id"]:
        Image.fromarray(drawn).save(masks / f"{name}.png")
    networks_made = []
    monkeypatch.syspath_prepend(str(paths.ROOT / "benchmarks"))
    training = importlib.import_module("train_lung_finder")
    fit_and_measure = training.fit_and_measure

    def measure_briefly(*arguments):
        network, table = fit_and_measure(*arguments, folds=2, epochs=1)
        networks_made.append(network)
        return network, table

    monkeypatch.setattr(training, "fit_and_measure", measure_briefly)
    before = (folder / "lungs.tflite").read_bytes()
    training.main(["--dataset", "phantom", "--masks", str(masks)])
    assert "train, out of fold" in capsys.readouterr().out
    table = pd.read_csv(reports_here / "phantom" / "tables" / "lung_finder.csv")
    assert table["images"].tolist() == [
        (small_phantom["split"] != "test").sum(),
        (small_phantom["split"] == "test").sum(),
    ]
    assert (folder / "lungs.tflite").read_bytes() != before
    pixels = lung_finder.resize(images.load_pixels(small_phantom, 224)[:2])
    expected = networks_made[0].predict(pixels, verbose=0)
    packaged_network = lung_finder.load_network()
    for image, probability in zip(pixels, expected, strict=True):
        answer = packaged_network(image=image[None])["lung"][0]
        np.testing.assert_allclose(answer, probability, atol=5e-3)
    assert packaged.load_packaged(folder).sha256 == packaged.load_packaged().sha256
    boxes = np.array([[0, 0, 0, 0.5], [0.5, 0, 0, 0], [0, 0, 0.6, 0]])
    np.testing.assert_allclose(training.overlap(boxes[[0, 0, 0]], boxes), [1, 1 / 3, 0])
    lung_finder.load_network.cache_clear()


@pytest.mark.slow
def test_another_network_is_refused(run, phantom):
    choices = run.settings["choices"] | {"head": "two-logits"}
    other = replace(run, settings=run.settings | {"choices": choices})
    with pytest.raises(NotFoundError, match=r"another network\. Fix: package the flagship"):
        export.package(other, phantom)


def test_the_best_run_has_the_best_worst_view_at_its_best_epoch(tmp_path):
    histories = {
        "a": {"val_auc_plain": [0.9, 0.99], "val_auc_swapped": [0.8, 0.5]},
        "b": {"val_auc_plain": [0.85, 0.6], "val_auc_swapped": [0.84, 0.99]},
        "c": {"val_auc_plain": [0.70, 0.83], "val_auc_swapped": [0.9, 0.9]},
    }
    candidates = []
    for name, history in histories.items():
        (tmp_path / name).mkdir()
        pd.DataFrame(history).to_csv(tmp_path / name / "history.csv", index=False)
        candidates.append(runs.Run(name, "strict", 0, tmp_path / name, {}))
    assert export.best_run(candidates).recipe == "b"
    assert export.best_run(candidates[::-1]).recipe == "b"
