"""A run's model is loaded as it was written, and folders of others give one clear error."""

import json

import numpy as np
import pandas as pd
import pytest
from builders import scores

from xraylib.errors import InvalidDataError, NotFoundError, XraylibError
from xraylib.training import networks, probe, runs
from xraylib.training.predictor import load_predictor
from xraylib.training.recipes import get_recipe

pytestmark = pytest.mark.usefixtures("reports_here", "accelerator")

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), dtype=np.uint8)
MODELS = {}


@pytest.fixture
def write(tmp_path):
    """A function that writes a run of a recipe with given bytes, or a fresh network, as model."""

    def write(recipe="tiny-cnn-28", content=None):
        chosen = get_recipe(recipe)
        model = tmp_path / runs.MODEL_FILES[chosen.fit]
        if content is None:
            MODELS[recipe] = networks.build(chosen.network, chosen.size, chosen.head)
            MODELS[recipe].save_weights(model)
        else:
            model.write_bytes(content)
        settings = {
            "dataset": "phantom",
            "recipe": recipe,
            "protocol": "strict",
            "seed": 0,
            "choices": chosen.settings(),
            "init": "random",
            "train_seconds": 1.0,
        }
        table = scores(n=30).assign(recipe=recipe, protocol="strict")
        history = pd.DataFrame({"epoch": [1]})
        columns = list(runs.SCORE_COLUMNS)
        return runs.write_run(settings, history, table[columns], "youden", model)

    return write


def edited(run, **changes):
    """Write another `run.json`, as a folder of another version or author has it."""
    (run.folder / "run.json").write_text(json.dumps(run.settings | changes))
    return run


def test_a_network_is_loaded_as_it_was_written(write):
    run = write()
    predictor = load_predictor(run)
    expected = networks.predict_rows(
        MODELS["tiny-cnn-28"], "two-logits", PIXELS, np.arange(len(PIXELS)), 32
    )
    np.testing.assert_allclose(predictor.score(PIXELS), expected, rtol=1e-6)
    answers = [answer["probability"] for answer in predictor.answer(PIXELS)]
    np.testing.assert_allclose(answers, expected, rtol=1e-6)
    assert (predictor.size, predictor.threshold) == (28, run.threshold)
    assert predictor.sha256 == runs.file_sha256(run.model_file)
    assert predictor.name == "tiny-cnn-28 phantom 0"


def test_a_missing_and_a_damaged_model_are_named(write):
    run = write(content=b"weights")
    run.model_file.write_text("tampered")
    with pytest.raises(InvalidDataError, match=r"weights\.h5 is not the model.*Fix: "):
        load_predictor(run)
    run.model_file.unlink()
    with pytest.raises(InvalidDataError, match=r"weights\.h5 is missing.*Fix: train it again"):
        load_predictor(run)


def test_a_single_feature_baseline_predicts_nothing(write):
    with pytest.raises(NotFoundError, match=r"mean-intensity sees no image\. Fix: "):
        load_predictor(write("mean-intensity", content=b"{}"))


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x89HDF\r\n\x1a\n"])
def test_a_file_that_holds_no_weights_is_named(write, content):
    with pytest.raises(NotFoundError, match=r"weights\.h5 does not hold weights.*Fix: "):
        load_predictor(write(content=content))


def test_the_weights_of_another_network_are_named(write, tmp_path):
    file = tmp_path / "other.weights.h5"
    networks.build("scratch_cnn", 28, "sigmoid").save_weights(file)
    with pytest.raises(NotFoundError, match=r"model\.weights\.h5 does not hold.*Fix: "):
        load_predictor(write(content=file.read_bytes()))


CHOICES = {
    "network": ["resnet-1000", 5, None, {}],
    "size": ["28", 0, 1, -5, 10**9, None, 28.5],
    "head": ["three-logits", None],
    "augmentation": ["blur", 3],
    "fit": ["pickle", None, 7],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in CHOICES.items() for value in values]
)
def test_an_unknown_choice_gives_one_error(write, name, value):
    run = write(content=b"weights")
    edited(run, choices=run.settings["choices"] | {name: value})
    with pytest.raises(XraylibError, match="Fix: "):
        load_predictor(runs.read_run(run.folder))


@pytest.mark.parametrize("name", ["fit", "network", "size", "head", "augmentation"])
def test_a_lacking_choice_is_named(write, name):
    run = write(content=b"weights")
    choices = {key: value for key, value in run.settings["choices"].items() if key != name}
    edited(run, choices=choices)
    with pytest.raises(InvalidDataError, match=rf"run\.json.*{name}.*Fix: "):
        load_predictor(runs.read_run(run.folder))


@pytest.mark.parametrize("name", ["dataset", "init", "model_sha256"])
@pytest.mark.parametrize("value", [None, 5])
def test_a_lacking_setting_is_named(write, name, value):
    run = edited(write(content=b"weights"), **{name: value})
    with pytest.raises(InvalidDataError, match=rf"run\.json.*{name}.*Fix: "):
        load_predictor(runs.read_run(run.folder))


HEADS = ["", "[]", "{}", '{"coefficients": [1, 2], "intercept": 0}', '{"coefficients": "a"}']


@pytest.mark.parametrize("content", HEADS)
def test_a_head_that_does_not_fit_its_network_is_named(write, monkeypatch, content):
    run = write("mobilenetv2-frozen", content=content.encode())
    edited(run, choices=run.settings["choices"] | {"network": "tiny_cnn", "size": 28})
    with pytest.raises(InvalidDataError, match=r"head\.json does not fit.*Fix: "):
        load_predictor(runs.read_run(run.folder))


def test_a_probe_is_loaded_as_it_was_written(write, tmp_path):
    head = {"coefficients": np.linspace(-1, 1, 16), "intercept": np.array(0.5)}
    probe.save_head(head, tmp_path / "head.json")
    run = write("mobilenetv2-frozen", content=(tmp_path / "head.json").read_bytes())
    edited(run, choices=run.settings["choices"] | {"network": "tiny_cnn", "size": 28})
    predictor = load_predictor(runs.read_run(run.folder))
    frozen = probe.extractor("tiny_cnn", 28, networks.Weights("random"), 0)
    expected = probe.predict_probability(head, probe.describe(frozen, PIXELS))
    np.testing.assert_allclose(predictor.score(PIXELS), expected, rtol=1e-6)
