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
from builders import scores
from conftest import SMALL_PHANTOM
from PIL import Image
from scipy.special import expit

from xraylib import export, gate, packaged, paths, prediction, storage
from xraylib.datasets import images, lung_finder, manifest, splits
from xraylib.datasets.framing import swap_framing
from xraylib.datasets.phantom import PhantomSettings
from xraylib.errors import InvalidDataError, NotFoundError
from xraylib.training import networks, runs
from xraylib.training.recipes import get_recipe

CHOICES = runs.plain(get_recipe("flagship").settings())


@pytest.fixture(scope="module")
def network(phantom, accelerator):
    """The flagship with random weights; batch norm has the statistics of images, random scales."""
    keras.utils.set_random_seed(0)
    model = networks.build("mobilenetv2_standardized", 128, "sigmoid")
    backbone = model.get_layer("backbone")
    rng = np.random.default_rng(0)
    for norm in backbone.layers:
        if "BatchNormalization" in type(norm).__name__:
            norm.momentum = 0.0
            norm.gamma.assign(rng.uniform(0.8, 1.2, norm.gamma.shape))
            norm.beta.assign(rng.normal(0, 0.1, norm.beta.shape))
    pixels = np.asarray(images.load_pixels(phantom, 128)[:12])
    standardized = networks.Standardization()(pixels.astype(np.float32))
    backbone(keras.ops.repeat(standardized, 3, axis=-1), training=True)
    return model


@pytest.fixture(scope="module")
def run(network, tmp_path_factory):
    """A run whose model is `network`."""
    folder = tmp_path_factory.mktemp("run")
    network.save_weights(folder / "model.weights.h5")
    settings = {
        "dataset": "phantom",
        "recipe": "flagship",
        "protocol": "strict",
        "seed": 0,
        "choices": CHOICES,
        "init": "random",
        "train_seconds": 1.0,
    }
    table = scores(n=30).assign(recipe="flagship", protocol="strict")[list(runs.SCORE_COLUMNS)]
    history = pd.DataFrame({"epoch": [1]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XRAYLIB_REPORTS", str(folder / "reports"))
        return runs.write_run(settings, history, table, "youden", folder / "model.weights.h5")


@pytest.fixture(scope="module")
def children():
    """Enough images to have two patients of each class in validation."""
    settings = PhantomSettings(images=160, size=64)
    return manifest.load(replace(SMALL_PHANTOM, name="children", phantom=settings))


@pytest.fixture(scope="module")
def others():
    """Images of another population: another phantom."""
    settings = PhantomSettings(images=24, size=64, seed=5)
    return manifest.load(replace(SMALL_PHANTOM, name="others", phantom=settings))


@pytest.fixture(scope="module")
def exported(run, children, others, tmp_path_factory):
    """The folder of the packaged model that the run became."""
    folder = Path(shutil.copytree(paths.SHIPPED, tmp_path_factory.mktemp("package") / "weights"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "SHIPPED", folder)
        patch.setattr(gate, "TAKEN", 8)
        patch.setattr(export, "_FOLDS", 2)
        export.package(run, children, others)
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


def test_litert_answers_as_keras_does(network, phantom):
    model = keras.models.clone_model(network)
    model.set_weights(network.get_weights())
    pixels = np.asarray(images.load_pixels(phantom, 128)[:12])
    # What half precision makes of a weight, both compute with.
    for variable in model.weights:
        variable.assign(variable.numpy().astype(np.float16).astype(np.float32))
    expected = networks.predict_rows(model, "sigmoid", pixels, np.arange(12), 4)
    rng = np.random.default_rng(0)
    size = 2 * 1280 + 6
    kernel = rng.normal(0, 0.01, (size, len(packaged.GATE))).astype(np.float16)
    layer = gate.Linear(kernel.astype(np.float32), np.arange(8, dtype=np.float32))
    domain = gate.Linear(kernel[:, :1].astype(np.float32), np.ones(1, np.float32))
    network = packaged.load_network(export.to_litert(model, layer, domain))
    lungs = rng.uniform(0, 1, 6).astype(np.float32)
    log_odds = []
    for first, second in zip(pixels, pixels[::-1], strict=True):
        outputs = network(views=np.stack([first, second]).astype(np.float32), lungs=lungs)
        log_odds.append(outputs["log_odds"].item())
        described = np.concatenate([outputs["features"].ravel(), lungs])
        kinds = described @ layer.kernel + layer.bias
        np.testing.assert_allclose(outputs["gate"][0], kinds, atol=0.02)
        assert outputs["domain"].item() == pytest.approx(kinds[0] + 1, abs=0.02)
    # Half precision once more, of the folded weights, and 53 layers whose outputs are normalised.
    np.testing.assert_allclose(expit(log_odds), expected, atol=1e-2)
    assert np.ptp(expected) > 0.05
    assert np.corrcoef(expit(log_odds), expected)[0, 1] > 0.98


def test_limits_are_those_of_validation(exported, children):
    model = packaged.load_packaged(exported)
    assigned = splits.assign(children, "strict", 0, split_strategy=CHOICES["split_strategy"])
    rows = np.flatnonzero(assigned["split"] == "val")
    labels = children["label"].to_numpy()[rows]
    pixels = np.asarray(images.load_pixels(children, model.size)[rows])
    plain = model.answer(pixels)
    both = [*plain, *model.answer(swap_framing(pixels, labels))]
    seen = [answer for answer in both if "log_odds" in answer]
    truth = np.tile(labels, 2)[["log_odds" in answer for answer in both]]
    given = np.array([answer["answer"] for answer in seen])
    for name, other in ((packaged.NORMAL, 1), (packaged.PNEUMONIA, 0)):
        assert (given == name)[truth == other].mean() <= export.WRONG
    assert model.prevalence == pytest.approx(truth.mean())
    refused = [answer["status"] != "ok" for answer in plain if "gate" in answer]
    assert np.mean(refused) <= export.REFUSED
    outside = [answer["is_outside"] for answer in plain if "gate" in answer]
    assert np.mean(outside) <= export.OUTSIDE


def test_how_often_answers_were_right_is_that_of_the_test(exported, children):
    model = packaged.load_packaged(exported)
    test = children[children["split"] == "test"]
    table = prediction.predict(test["path"], model)
    for name, label in ((packaged.NORMAL, 0), (packaged.PNEUMONIA, 1)):
        rate = model.limits["right"][name]
        given = (table["answer"] == name).to_numpy()
        assert rate["n"] == given.sum()
        if given.any():
            assert rate["share"] == pytest.approx((test["label"] == label)[given].mean())


def test_the_calibration_of_the_lowest_held_out_loss_is_chosen():
    rng = np.random.default_rng(0)
    odds = rng.normal(0, 2, 4000)
    patients = np.arange(4000)
    for slope, intercept, method in (
        (1.0, 0.0, "raw"),
        (3.0, 0.0, "temperature"),
        (2.0, 1.5, "platt"),
    ):
        labels = (rng.random(4000) < expit(slope * odds + intercept)).astype(int)
        chosen = export.choose_calibration(odds, labels, patients)
        losses = chosen["log_loss"]
        assert losses[chosen["method"]] == min(losses.values())
        if method != "raw":
            assert chosen["method"] in (method, "platt")
            assert chosen["slope"] == pytest.approx(slope, rel=0.15)
        assert chosen["intercept"] == pytest.approx(intercept, abs=0.25)
        assert losses["raw"] >= min(losses.values())


def test_too_few_validation_patients_are_refused():
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1])
    with pytest.raises(InvalidDataError, match=r"4 patients of class 0.*Fix: "):
        export.choose_calibration(np.zeros(10), labels, np.arange(10))


def test_half_of_the_patients_of_others_teach_with_all_their_images():
    table = pd.DataFrame({"patient": np.repeat([f"p{n}" for n in range(30)], 3)})
    taught = gate.taught_half(table)
    by_patient = table.assign(taught=taught).groupby("patient")["taught"].mean()
    assert set(by_patient) == {0.0, 1.0}
    assert by_patient.sum() == 15
    shuffled = table.sample(frac=1, random_state=0)
    again = pd.Series(gate.taught_half(shuffled), shuffled.index)
    assert (again.sort_index() == taught).all()


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
    pixels = images.load_pixels(small_phantom, lung_finder.SIZE)[:2].astype(np.float32)
    expected = networks_made[0].predict(pixels, verbose=0)
    packaged_network = lung_finder.load_network()
    for image, probability in zip(pixels, expected, strict=True):
        answer = packaged_network(image=image[None])["lung"][0]
        np.testing.assert_allclose(answer, probability, atol=5e-3)
    assert packaged.load_packaged(folder).sha256 == packaged.load_packaged().sha256
    boxes = np.array([[0, 0, 0, 0.5], [0.5, 0, 0, 0], [0, 0, 0.6, 0]])
    np.testing.assert_allclose(training.overlap(boxes[[0, 0, 0]], boxes), [1, 1 / 3, 0])
    lung_finder.load_network.cache_clear()


def test_another_network_is_refused(run, phantom, others):
    choices = run.settings["choices"] | {"head": "two-logits"}
    other = replace(run, settings=run.settings | {"choices": choices})
    with pytest.raises(NotFoundError, match=r"another network\. Fix: package the flagship"):
        export.package(other, phantom, others)


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
