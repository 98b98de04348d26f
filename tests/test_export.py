"""A trained network becomes the packaged model, or an exported one."""

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
from conftest import SMALL_PHANTOM, run_python
from PIL import Image
from scipy.special import expit

from xraylib import cli, explanation, export, gate, packaged, paths, prediction, storage
from xraylib.datasets import images, lung_finder, manifest, regions, splits
from xraylib.datasets.framing import swap_framing
from xraylib.datasets.phantom import PhantomSettings
from xraylib.errors import InvalidDataError, NotFoundError, OperationFailedError
from xraylib.training import networks, runs
from xraylib.training.predictor import Predictor
from xraylib.training.recipes import RECIPES, Phase, get_recipe
from xraylib.training.train import train

CHOICES = get_recipe("flagship").settings()


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
def run(network, children, tmp_path_factory):
    """A run on `children` whose model is `network`."""
    folder = tmp_path_factory.mktemp("run")
    network.save_weights(folder / "model.weights.h5")
    settings = regions.sources("phantom", "lungs") | {
        "dataset": "phantom",
        "split": runs.split_fingerprint(splits.assign(children, "strict", 0)),
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


def test_litert_answers_as_keras_does_in_half_precision(network, run, phantom):
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
    split = export.split_network(Predictor(run, model, None))
    litert = packaged.litert_interpreter(
        export.to_litert(split, (layer, domain), half_precision=True)
    ).get_signature_runner()
    lungs = rng.uniform(0, 1, 6).astype(np.float32)
    log_odds = []
    for views in zip(pixels, pixels[::-1], strict=True):
        views = np.stack(views).astype(np.float32)
        outputs = litert(views=views, lungs=lungs)
        log_odds.append(outputs["log_odds"].item())
        described = np.concatenate([split.features(views).ravel(), lungs])
        kinds = described @ layer.kernel + layer.bias
        np.testing.assert_allclose(outputs["gate"][0], kinds, atol=0.1)
        assert outputs["domain"].item() == pytest.approx(kinds[0] + 1, abs=0.1)
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
    with pytest.raises(NotFoundError, match=r"another network .*Fix: export it with --to"):
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


def test_without_swapped_views_the_best_run_has_the_lowest_validation_loss(tmp_path):
    candidates = []
    for name, losses in {"a": [0.5, 0.3], "b": [0.2, 0.9], "c": [0.25, 0.25]}.items():
        (tmp_path / name).mkdir()
        pd.DataFrame({"val_loss": losses}).to_csv(tmp_path / name / "history.csv", index=False)
        candidates.append(runs.Run(name, "strict", 0, tmp_path / name, {}))
    assert export.best_run(candidates).recipe == "b"


# Runs of other recipes, on data of the user's own.

BRIEF = replace(get_recipe("tiny-cnn-28"), name="own", phases=(Phase(4, 1e-3),))
OWN = {
    "network": BRIEF,
    "lungs": replace(BRIEF, name="own-lungs", region="lungs"),
    "probe": replace(get_recipe("mobilenetv2-frozen"), name="own-probe", size=64, init="random"),
}


@pytest.fixture
def small_export(monkeypatch):
    """Few examples teach the gate, and few patients are enough for limits."""
    monkeypatch.setattr(gate, "TAKEN", 8)
    monkeypatch.setattr(export, "_FOLDS", 2)


@pytest.fixture(scope="module")
def trained(children, accelerator):
    return {kind: train(recipe, children, accelerator) for kind, recipe in OWN.items()}


@pytest.mark.parametrize("kind", OWN)
def test_an_exported_run_answers_by_itself_as_its_run_does(
    kind, trained, children, others, tmp_path, small_export
):
    run = trained[kind]
    export.export_run(run, children, tmp_path / "model", others)
    model = prediction.load_model(tmp_path / "model")
    test = children[children["split"] == "test"]
    pixels = images.load_pixels(children, model.size)[test.index]
    expected = run.scores[run.scores["split"] == "test"].set_index("image_id")["score"]
    calibration = model.limits["calibration"]
    raw = []
    for answer in model.answer(pixels):
        log_odds = (answer["log_odds"] - calibration["intercept"]) / calibration["slope"]
        raw.append(expit(log_odds))
    np.testing.assert_allclose(raw, expected.loc[test["image_id"]], atol=1e-4)
    assert np.ptp(raw) > 1e-3
    table = prediction.predict(test["path"], model)
    assert set(table["status"]) <= {"ok", "abstained"}
    assert set(table.loc[table["status"] == "ok", "answer"]) <= set(packaged.ANSWERS)
    assert "limits" not in model.left_out and "gate" not in model.left_out
    turned = model.answer(np.ascontiguousarray(pixels[:, ::-1]))
    assert all(answer["reason"] in packaged.GATE or not answer["reason"] for answer in turned)
    assert ("heat map" in model.left_out) == (kind != "probe")
    heat = tmp_path / "heat"
    if kind == "probe":
        prediction.predict(test["path"].iloc[0], model, heat_maps=heat)
        assert len(list(heat.iterdir())) == 1
    else:
        with pytest.raises(InvalidDataError, match=r"has no heat map, .*Fix: "):
            prediction.predict(test["path"].iloc[0], model, heat_maps=heat)


def test_limits_of_an_exported_run_are_those_of_its_own_validation(
    trained, children, others, tmp_path, small_export
):
    model = export.export_run(trained["network"], children, tmp_path / "model", others)
    assigned = splits.assign(children, "strict", 0)
    validation = assigned[assigned["split"] == "val"]
    labels = validation["label"].to_numpy()
    answers = model.answer(images.load_pixels(children, model.size)[validation.index])
    given = np.array([answer["answer"] for answer in answers])
    for name, other in ((packaged.NORMAL, 1), (packaged.PNEUMONIA, 0)):
        assert (given == name)[labels == other].mean() <= export.WRONG
    assert model.prevalence == pytest.approx(labels.mean())
    assert np.mean([answer["status"] != "ok" for answer in answers]) <= export.REFUSED
    assert np.mean([answer["is_outside"] for answer in answers]) <= export.OUTSIDE
    assert model.limits["gate_limit"] == min(answer["gate"][packaged.OK] for answer in answers)
    assert model.record.startswith("right on the test of children")


def test_parts_that_the_data_do_not_set_are_left_out_and_named(
    trained, children, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "model"
    run = trained["lungs"]
    model = export.export_run(run, children, folder)
    left_out = json.loads((folder / "run.json").read_text())["answers"]["left_out"]
    assert set(left_out) == {"gate", "limits", "record of right answers", "heat map"}
    assert "patients of class 0, fewer than 5" in left_out["limits"]
    (row,) = prediction.answer_files([children["path"].iloc[0]], model)
    assert (row["status"], row["answer"], row["prevalence"]) == ("ok", "", "")
    assert row["label"] in ("normal", "pneumonia")
    assert row["threshold"] == run.threshold
    assert all(f"no {part}" in row["notice"] for part in left_out)
    for options in ({"prevalence": 0.1}, {"strict_domain": True}):
        with pytest.raises(InvalidDataError, match=r"has no (limits|gate), .*Fix: "):
            prediction.configure(model, **options)
    with pytest.raises(InvalidDataError, match=r"cannot be explained.*Fix: "):
        explanation.check(model)


def test_an_adult_is_no_stranger_to_a_model_of_other_data(trained, children, tmp_path, monkeypatch):
    model = export.export_run(trained["network"], children, tmp_path / "model")
    monkeypatch.setattr(prediction.dicom, "read_header", lambda file: {"patient_age": 70.0})
    (row,) = prediction.answer_files([children["path"].iloc[0]], model)
    assert "adult" not in row["notice"]


def test_an_exported_model_answers_without_keras_and_refuses_a_changed_file(
    trained, children, tmp_path
):
    folder = tmp_path / "model"
    export.export_run(trained["network"], children, folder)
    code = (
        "import sys, xraylib; model = xraylib.load_model(sys.argv[1]); "
        "table = xraylib.predict('data/examples', model); print(table['label'].tolist()); "
        "print(sorted({'keras', 'tensorflow', 'jax'} & set(sys.modules)))"
    )
    labels, loaded = run_python(code, folder, cwd=paths.ROOT).splitlines()
    assert "normal" in labels or "pneumonia" in labels
    assert loaded == "[]"
    export.export_run(trained["network"], children, folder)
    file = folder / packaged.SETTINGS_FILE
    file.write_text(file.read_text().replace('"threshold"', '"treshold"', 1))
    with pytest.raises(InvalidDataError, match=r"run\.json is not the file .*Fix: "):
        prediction.load_model(folder)


def test_what_litert_or_new_images_cannot_have_is_refused(trained, children, tmp_path, accelerator):
    baseline = train(get_recipe("mean-intensity"), children, accelerator)
    with pytest.raises(NotFoundError, match=r"mean-intensity sees no image\. Fix: "):
        export.export_run(baseline, children, tmp_path / "a")
    run = trained["lungs"]
    choices = run.settings["choices"] | {"region": "annotated lungs"}
    drawn = replace(run, settings=run.settings | {"choices": choices})
    with pytest.raises(NotFoundError, match=r"region 'annotated lungs'.*Fix: "):
        export.export_run(drawn, children, tmp_path / "a")
    with pytest.raises(InvalidDataError, match=r"other files or labels .*Fix: train it again"):
        export.export_run(run, children.assign(label=1 - children["label"]), tmp_path / "a")
    for others in (children, children.iloc[:3].assign(sha256="other")):
        with pytest.raises(InvalidDataError, match=r"the other population has .*Fix: "):
            export.export_run(run, children, tmp_path / "a", others)
    assert not (tmp_path / "a").exists()


def test_what_an_export_would_replace_is_left_alone(trained, children, tmp_path, monkeypatch):
    run = trained["lungs"]
    others = tmp_path / "others"
    others.mkdir()
    (others / packaged.MODEL_FILE).write_text("of others")
    monkeypatch.chdir(tmp_path)
    for folder in (run.folder, paths.SHIPPED, others, Path()):
        with pytest.raises(InvalidDataError, match=r"holds other files, .*Fix: "):
            export.export_run(run, children, folder)
    assert (others / packaged.MODEL_FILE).read_text() == "of others"
    file = tmp_path / "file"
    file.write_text("content")
    with pytest.raises(OperationFailedError, match=r"cannot write .*file: .*Fix: "):
        export.export_run(run, children, file)
    assert file.read_text() == "content"
    (tmp_path / "link").symlink_to(tmp_path / "linked")
    (tmp_path / "linked").mkdir()
    export.export_run(run, children, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert packaged.load_packaged(tmp_path / "linked")


def test_the_command_exports_into_a_folder_and_says_what_is_left_out(
    small_phantom, reports_here, tmp_path, accelerator, monkeypatch, capsys
):
    monkeypatch.setitem(RECIPES, BRIEF.name, BRIEF)
    shipped = {file.name: file.read_bytes() for file in paths.SHIPPED.iterdir()}
    folder = tmp_path / "model"
    command = ["export", BRIEF.name, "--dataset", "phantom"]
    train(BRIEF, small_phantom, accelerator)
    assert cli.main([*command, "--to", str(folder)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line for line in out if line.startswith("without gate: no images of another popul")]
    assert all(line.startswith(("without ", str(folder))) for line in out)
    image = str(paths.ROOT / "data" / "examples" / "normal.jpeg")
    assert cli.main(["predict", image, "--model", str(folder), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["model"] == "own phantom 0"
    assert "no gate" in row["notice"]
    assert cli.main([*command, "--others", "phantom"]) == 1
    assert "Fix: export it with --to FOLDER" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in paths.SHIPPED.iterdir()} == shipped
