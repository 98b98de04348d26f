from dataclasses import replace
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from conftest import run_python
from keras import layers
from scipy.stats import spearmanr

from xraylib import predict
from xraylib.datasets import images
from xraylib.evaluation import saliency
from xraylib.evaluation.saliency import agreement, centre_blob, deletion, find_lesion, heat_maps, randomised
from xraylib.predict import Predictor
from xraylib.storage import DataInvalid
from xraylib.training import models
from xraylib.training import train as training
from xraylib.training.recipes import get_recipe

TINY, SCRATCH = get_recipe("tiny-cnn-28"), get_recipe("scratch-cnn")
BRIEF = {
    "two logits": replace(TINY, phases=(replace(TINY.phases[0], epochs=2),)),
    "network": replace(SCRATCH, size=32, phases=(replace(SCRATCH.phases[0], epochs=1),)),
    "linear": replace(get_recipe("mobilenetv2-frozen"), size=64, init="random"),
}
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)


def by_hand(weights, end="sigmoid", pool=layers.GlobalAveragePooling2D, shape=8):
    """A network that sees light (p) and dark (1 - p), and weighs them; with its last weights set."""
    inputs = keras.Input((shape, shape, 1), dtype="uint8")
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Conv2D(2, 1, activation="relu", name="seen")(x)
    x = pool()(x)
    units = np.asarray(weights, np.float32).reshape(x.shape[-1], -1)
    outputs = layers.Dense(units.shape[1], end, name="output")(x)
    model = keras.Model(inputs, outputs, name="by_hand")
    kernel = np.array([1.0, -1.0], np.float32).reshape(1, 1, 1, 2)
    model.get_layer("seen").set_weights([kernel, np.array([0, 1], np.float32)])
    model.get_layer("output").set_weights([units, np.zeros(units.shape[1], np.float32)])
    return model


def expected(pixels, light, dark):
    """Grad-CAM of `by_hand`: light and dark by their weights, what is below zero left out."""
    p = pixels[..., 0] / 255
    cam = np.maximum(light * p + dark * (1 - p), 0)
    most = cam.max(axis=(1, 2), keepdims=True)
    return np.divide(cam, most, out=np.zeros_like(cam), where=most > 0)


def maps_of(model, pixels=PIXELS, head=None):
    return heat_maps(Predictor(None, model, head, 0.5), pixels)


@pytest.mark.parametrize(("light", "dark"), [(2, -1), (-1, 2), (1, 0), (3, 1), (500, -400)])
def test_the_map_is_that_of_pen_and_paper(accelerator, light, dark):
    found = maps_of(by_hand([light, dark]))
    assert found.shape == (5, 8, 8) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected(PIXELS, light, dark), atol=1e-5)


def test_two_logits_are_explained_by_their_difference(accelerator):
    found = maps_of(by_hand([[1, 3], [0.5, -0.5]], end="linear"))
    np.testing.assert_allclose(found, expected(PIXELS, 2, -1), atol=1e-5)


def test_a_linear_head_is_explained_by_its_coefficients(accelerator):
    whole = by_hand([7, 7])
    frozen = keras.Model(whole.input, whole.layers[-1].input)
    head = {"coefficients": np.array([2.0, -1.0]), "intercept": np.array(0.3)}
    np.testing.assert_allclose(maps_of(frozen, head=head), expected(PIXELS, 2, -1), atol=1e-5)


def test_the_slope_of_a_feature_is_its_mean_over_the_image(accelerator):
    weights = np.random.default_rng(1).normal(np.array([2, -1]), size=(8, 8, 2))
    found = maps_of(by_hand(weights.ravel(), pool=layers.Flatten))
    np.testing.assert_allclose(found, expected(PIXELS, *weights.mean(axis=(0, 1))), atol=1e-4)


def test_where_nothing_speaks_for_pneumonia_the_map_is_zero(accelerator):
    assert not maps_of(by_hand([-1, -2])).any()


def test_images_do_not_depend_on_the_others_of_their_batch(accelerator):
    many = np.random.default_rng(2).integers(0, 256, (40, 8, 8, 1), np.uint8)
    model = by_hand([2, -1])
    together = maps_of(model, many)
    for row in (0, 31, 32, 39):
        np.testing.assert_allclose(maps_of(model, many[row : row + 1])[0], together[row], atol=1e-6)


def test_small_feature_maps_are_enlarged(accelerator):
    inputs = keras.Input((8, 8, 1), dtype="uint8")
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Conv2D(1, 4, strides=4, kernel_initializer="ones")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(1, "sigmoid", kernel_initializer="ones")(x))
    film = np.zeros((1, 8, 8, 1), np.uint8)
    film[0, :4, 4:] = 200
    (found,) = maps_of(model, film)
    assert found.shape == (8, 8) and found[:3, 5:].min() > 0.5
    assert found[4:, :4].max() < 0.3 and found.max() == 1


@pytest.mark.parametrize("pixels", [1, 3])
def test_a_network_without_convolution_is_refused(accelerator, pixels):
    inputs = keras.Input((pixels, pixels, 1), dtype="uint8")
    x = layers.Flatten()(layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, layers.Dense(1, "sigmoid")(x), name="flat")
    with pytest.raises(DataInvalid, match=r"flat has no feature maps to look at\. Fix: "):
        maps_of(model, np.zeros((1, pixels, pixels, 1), np.uint8))


@pytest.mark.parametrize("name", models.NETWORKS)
def test_every_network_can_be_explained(accelerator, name):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 75, 75, 1), np.uint8)
    found = maps_of(models.build(name, 75, "sigmoid"), pixels)
    assert found.shape == (2, 75, 75) and np.isfinite(found).all()
    assert set(found.max(axis=(1, 2))) <= {0, 1} and found.min() >= 0


@pytest.fixture(scope="module")
def predictors(phantom, accelerator, tmp_path_factory):
    """A recipe's network, one with two logits and a linear head, briefly trained."""
    runs = tmp_path_factory.mktemp("runs")
    return {
        kind: predict.load(training.train(recipe, phantom, accelerator, runs=runs))
        for kind, recipe in BRIEF.items()
    }


@pytest.fixture(scope="module")
def pneumonias(phantom):
    """A function that gives twelve pneumonias of the phantom at a size."""
    rows = np.flatnonzero(phantom["label"] == 1)[:12]
    return lambda size: images.load_pixels(phantom, size, progress=False)[rows]


@pytest.mark.parametrize("kind", BRIEF)
def test_maps_of_trained_networks_are_shares_of_their_peak(kind, predictors, pneumonias):
    pixels = pneumonias(BRIEF[kind].size)
    found = heat_maps(predictors[kind], pixels)
    assert found.shape == pixels.shape[:3] and found.dtype == np.float32
    assert found.min() >= 0 and set(found.max(axis=(1, 2))) <= {0, 1}
    assert found.any()


@pytest.mark.parametrize("kind", BRIEF)
def test_random_weights_say_something_else(kind, predictors, pneumonias):
    pixels, predictor = pneumonias(BRIEF[kind].size), predictors[kind]
    before, fresh = heat_maps(predictor, pixels), randomised(predictor)
    assert not np.allclose(fresh.score(pixels), predictor.score(pixels), atol=1e-3)
    other = heat_maps(fresh, pixels)
    assert not np.allclose(other, before, atol=0.05)
    assert np.nan_to_num(agreement(before, other)).mean() < 0.75
    np.testing.assert_array_equal(heat_maps(predictor, pixels), before)


@pytest.mark.parametrize("kind", BRIEF)
def test_random_weights_are_the_same_for_a_seed(kind, predictors):
    predictor = predictors[kind]
    one, same, other = (randomised(predictor, seed).model.get_weights() for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert any((a != b).any() for a, b in zip(one, other, strict=True))


def test_random_weights_keep_what_a_layer_is_made_of(predictors):
    predictor = predictors["two logits"]
    fresh = randomised(predictor)
    for mine, theirs in zip(fresh.model.get_weights(), predictor.model.get_weights(), strict=True):
        np.testing.assert_array_equal(np.sort(mine, axis=None), np.sort(theirs, axis=None))
    assert (fresh.threshold, fresh.run) == (predictor.threshold, predictor.run)


def test_a_random_head_is_random_as_well(predictors):
    before, after = (p.head["coefficients"] for p in (predictors["linear"], randomised(predictors["linear"])))
    assert (before != after).any() and sorted(before) == sorted(after)


def test_agreement_is_a_rank_correlation():
    random = np.random.default_rng(0)
    maps = random.random((4, 6, 6))
    others = np.stack([maps[0] ** 3, 1 - maps[1], random.random((6, 6)), np.zeros((6, 6))])
    found = agreement(maps, others)
    assert found[:2] == pytest.approx([1, -1])
    assert found[2] == pytest.approx(spearmanr(maps[2].ravel(), others[2].ravel()).statistic)
    assert np.isnan(found[3]) and np.isnan(agreement(others[3:], maps[3:])).all()


@pytest.mark.parametrize("size", [9, 28])
def test_the_centre_blob_fades_from_the_middle(size):
    blob = centre_blob(size)
    assert blob.shape == (size, size) and blob.max() == 1 == blob[size // 2, size // 2]
    assert (np.diff(blob[size // 2, size // 2 :]) < 0).all()
    assert blob.min() >= 0


def lesions(n=6, size=10):
    """Masks as the phantom writes them, none of which holds a corner."""
    random, masks = np.random.default_rng(0), np.zeros((n, size, size), np.uint8)
    for mask in masks:
        top, left = random.integers(1, size - 5, 2)
        mask[top : top + 4, left : left + 3] = 255
    return masks, np.arange(n)


def test_a_perfect_map_finds_every_lesion():
    masks, patients = lesions()
    found = find_lesion((masks > 0).astype(float), masks, patients)
    assert found["value"].to_dict() == {"pointing": 1, "energy": 1}
    people = len(np.unique(patients))
    for _, (low, high) in found[["low", "high"]].iterrows():
        # Wilson's interval where all hit: from n / (n + z²) to 1.
        assert low == pytest.approx(people / (people + 1.959964**2), abs=1e-6) and high == pytest.approx(1)
    assert found["area"].tolist() == pytest.approx([0.12, 0.12])


def test_an_opposite_map_finds_none():
    masks, patients = lesions()
    found = find_lesion((masks == 0).astype(float), masks, patients)
    assert found["value"].to_dict() == {"pointing": 0, "energy": 0}


def test_a_uniform_map_has_the_energy_of_the_area():
    masks, patients = lesions()
    found = find_lesion(np.full(masks.shape, 0.3), masks, patients)
    assert found.loc["energy", "value"] == pytest.approx(found.loc["energy", "area"])
    assert found.loc["pointing", "value"] == 0


def test_a_map_of_zeros_finds_nothing():
    masks, patients = lesions()
    masks[:, 0, 0] = 255
    assert not find_lesion(np.zeros(masks.shape), masks, patients)["value"].any()


def test_a_flat_map_points_nowhere():
    masks, patients = lesions()
    masks[:, 0, 0] = 255
    assert find_lesion(np.ones(masks.shape), masks, patients).loc["pointing", "value"] == 0


def test_pointing_and_energy_are_counted_by_hand():
    masks = np.zeros((2, 3, 3))
    masks[:, 1, 1] = 1
    maps = np.zeros((2, 3, 3))
    maps[0, 1, 1], maps[0, 0, 0] = 3, 1
    maps[1, 1, 1], maps[1, 2, 2], maps[1, 0, 1] = 1, 2, 1
    found = find_lesion(maps, masks, np.array(["a", "b"]))
    assert found["value"].to_dict() == {"pointing": 0.5, "energy": 0.5}
    assert ((found["low"] <= found["value"]) & (found["value"] <= found["high"])).all()
    assert found.loc["energy", ["low", "high"]].tolist() == pytest.approx([0.25, 0.75])


def test_images_of_one_patient_widen_the_interval():
    masks, _ = lesions(n=80)
    hit = np.repeat(np.arange(10) % 2, 8)[:, None, None]
    maps = np.where(hit, masks > 0, masks == 0).astype(float)
    width = [
        found.loc["pointing", "high"] - found.loc["pointing", "low"]
        for found in (
            find_lesion(maps, masks, whose) for whose in (np.repeat(np.arange(10), 8), np.arange(80))
        )
    ]
    assert width[0] > 2 * width[1]


def test_maps_without_a_lesion_or_of_another_size_are_refused():
    masks, patients = lesions()
    normal = masks.copy()
    normal[2] = 0
    for maps, of in ((np.ones(masks.shape), normal), (np.ones((6, 5, 5)), masks)):
        with pytest.raises(DataInvalid, match=r"a mask of its size with a lesion\. Fix: "):
            find_lesion(maps, of, patients)


DARK = np.full((20, 20), 40.0)


@pytest.fixture
def bright():
    """Films with a bright square, a map of it, and a predictor that sees the square alone."""
    films = np.full((3, 20, 20, 1), 40, np.uint8)
    films[:, 4:8, 11:15] = 240
    seen = np.zeros((3, 20, 20))
    seen[:, 4:8, 11:15] = 1
    sees = SimpleNamespace(score=lambda pixels: pixels[:, 4:8, 11:15, 0].mean(axis=(1, 2)) / 255)
    return sees, films, seen


def test_the_score_falls_when_what_it_depends_on_goes(bright):
    table = deletion(*bright, DARK)
    assert table["removed"].tolist() == pytest.approx(np.linspace(0, 1, 11))
    assert table["score"].iloc[0] == pytest.approx(240 / 255)
    # The square is a twenty-fifth of the film.
    assert table["score"].iloc[1:].nunique() == 1 and table["score"].iloc[1] < 0.6
    assert (table["score"] <= table["by_chance"] + 1e-9).all()
    assert (np.diff(table["by_chance"]) < 0).all()
    assert table["score"].iloc[-1] == pytest.approx(table["by_chance"].iloc[-1])


def test_a_map_of_the_rest_keeps_the_score_to_the_end(bright):
    predictor, films, seen = bright
    table = deletion(predictor, films, 1 - seen, DARK)
    assert table["score"].iloc[:-1].tolist() == pytest.approx([240 / 255] * 10, abs=1e-9)
    assert table["score"].iloc[-1] < 0.6


def test_deletion_takes_as_many_steps_as_it_is_told_and_leaves_the_films(bright):
    predictor, films, seen = bright
    before = films.copy()
    table = deletion(predictor, films, seen, DARK, steps=4)
    assert table["removed"].tolist() == [0, 0.25, 0.5, 0.75, 1]
    np.testing.assert_array_equal(films, before)


UNDER_JAX = """
import sys
from xraylib import devices
devices.use("cpu", "jax", devices=1)
import numpy as np
from xraylib.evaluation import saliency
from xraylib.training import models
from xraylib.predict import Predictor
given = np.load(sys.argv[1] + "/given.npz")
found = {}
for name, head in (("tiny_cnn", "two-logits"), ("scratch_cnn", "sigmoid")):
    model = models.build(name, 32, head)
    model.load_weights(f"{sys.argv[1]}/{name}.weights.h5")
    below, above = saliency._split(model)
    at = below(given["pixels"], training=False)
    predictor = Predictor(None, model, None, 0.5)
    found[name + " slope"] = np.asarray(saliency._gradient(saliency._log_odds(predictor, above), at))
    found[name + " map"] = saliency.heat_maps(predictor, given["pixels"])
np.savez(sys.argv[1] + "/found.npz", **found)
"""


@pytest.mark.slow
def test_jax_finds_the_slopes_and_maps_of_tensorflow(accelerator, tmp_path):
    keras.utils.set_random_seed(0)
    draw, here = np.random.default_rng(0), {}
    pixels = draw.integers(0, 256, (4, 32, 32, 1), np.uint8)
    np.savez(tmp_path / "given.npz", pixels=pixels)
    for name, head in (("tiny_cnn", "two-logits"), ("scratch_cnn", "sigmoid")):
        model = models.build(name, 32, head)
        for weight in model.trainable_variables:
            weight.assign(weight.numpy() + draw.normal(0, 0.05, weight.shape))
        models.save_weights(model, tmp_path / f"{name}.weights.h5")
        predictor = Predictor(None, model, None, 0.5)
        below, above = saliency._split(model)
        at = below(pixels, training=False)
        here[f"{name} slope"] = np.asarray(saliency._gradient(saliency._log_odds(predictor, above), at))
        here[f"{name} map"] = heat_maps(predictor, pixels)
    run_python(UNDER_JAX, tmp_path)
    there = np.load(tmp_path / "found.npz")
    assert set(there) == set(here)
    for name, values in here.items():
        assert np.ptp(values) > 0, name
        most = np.abs(values).max()
        np.testing.assert_allclose(there[name] / most, values / most, atol=1e-4, err_msg=name)
