"""Grad-CAM, as notebook 07 shows it, and the measures of heat maps."""

import keras
import numpy as np
import pytest
from conftest import run_python
from keras import layers
from notebook_code import definitions
from scipy.stats import spearmanr

from xraylib.errors import InvalidDataError
from xraylib.evaluation.saliency import localisation
from xraylib.training import networks as bodies

SHOWN = definitions("07_shift_and_trust")
maps_of = SHOWN.gradcam
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)


def by_hand(weights, end="sigmoid", pool=layers.GlobalAveragePooling2D):
    """A network that weighs bright (p) and dark (1 - p), with its last weights set."""
    inputs = keras.Input((8, 8, 1), dtype="uint8")
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Conv2D(2, 1, activation="relu", name="seen")(x)
    x = pool()(x)
    units = np.asarray(weights, np.float32).reshape(x.shape[-1], -1)
    model = keras.Model(inputs, layers.Dense(units.shape[1], end, name="output")(x), name="by_hand")
    kernel = np.array([1.0, -1.0], np.float32).reshape(1, 1, 1, 2)
    model.get_layer("seen").set_weights([kernel, np.array([0, 1], np.float32)])
    model.get_layer("output").set_weights([units, np.zeros(units.shape[1], np.float32)])
    return model


def expected(bright, dark):
    """Grad-CAM of `by_hand`: bright and dark by their weights, what is below zero left out."""
    p = PIXELS[..., 0] / 255
    cam = np.maximum(bright * p + dark * (1 - p), 0)
    most = cam.max(axis=(1, 2), keepdims=True)
    return np.divide(cam, most, out=np.zeros_like(cam), where=most > 0)


@pytest.mark.parametrize(("bright", "dark"), [(2, -1), (-1, 2), (500, -400), (-1, -2)])
def test_the_map_is_that_of_pen_and_paper(accelerator, bright, dark):
    found = maps_of(by_hand([bright, dark]), PIXELS)
    assert found.shape == (5, 8, 8) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected(bright, dark), atol=1e-5)


def test_two_logits_are_explained_by_their_log_odds(accelerator):
    model = by_hand([[1, 3], [0.5, -0.5]], end="linear")
    np.testing.assert_allclose(maps_of(model, PIXELS), expected(2, -1), atol=1e-5)


def test_the_slope_of_a_feature_is_its_mean_over_the_image(accelerator):
    weights = np.random.default_rng(1).normal(np.array([2, -1]), size=(8, 8, 2))
    found = maps_of(by_hand(weights.ravel(), pool=layers.Flatten), PIXELS)
    np.testing.assert_allclose(found, expected(*weights.mean(axis=(0, 1))), atol=1e-4)


def test_images_do_not_depend_on_the_others_of_their_batch(accelerator):
    many = np.random.default_rng(2).integers(0, 256, (40, 8, 8, 1), np.uint8)
    model = by_hand([2, -1])
    together = maps_of(model, many)
    for row in (0, 31, 32, 39):
        np.testing.assert_allclose(maps_of(model, many[row : row + 1])[0], together[row], atol=1e-6)


def test_small_feature_maps_are_enlarged(accelerator):
    inputs = keras.Input((8, 8, 1), dtype="uint8")
    x = layers.Conv2D(1, 4, strides=4, kernel_initializer="ones")(layers.Rescaling(1 / 255)(inputs))
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(1, "sigmoid", kernel_initializer="ones")(x))
    film = np.zeros((1, 8, 8, 1), np.uint8)
    film[0, :4, 4:] = 200
    (found,) = maps_of(model, film)
    assert found[:3, 5:].min() > 0.5 and found[4:, :4].max() < 0.3 and found.max() == 1


def test_a_network_without_convolution_is_refused(accelerator):
    inputs = keras.Input((3, 3, 1), dtype="uint8")
    x = layers.Flatten()(layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, layers.Dense(1, "sigmoid")(x), name="flat")
    with pytest.raises(ValueError, match=r"flat has no feature maps\. Fix: "):
        maps_of(model, np.zeros((1, 3, 3, 1), np.uint8))


@pytest.mark.parametrize("name", ["tiny_cnn", "scratch_cnn"])
def test_networks_are_explained_and_permuted_weights_say_something_else(networks, name):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 1), np.uint8)
    model = networks[name]
    found = maps_of(model, pixels)
    assert found.shape == (3, 32, 32) and np.isfinite(found).all()
    assert set(found.max(axis=(1, 2))) <= {0, 1} and found.min() >= 0
    random = SHOWN.permuted(model)
    # What a layer is made of stays.
    for mixed, theirs in zip(random.weights, model.weights, strict=True):
        sorted_values = [np.sort(np.asarray(weight), None) for weight in (mixed, theirs)]
        np.testing.assert_array_equal(*sorted_values)
    assert not np.allclose(maps_of(random, pixels), found, atol=0.05)
    np.testing.assert_array_equal(maps_of(model, pixels), found)


@pytest.mark.slow
@pytest.mark.parametrize("name", bodies.NETWORKS)
def test_every_network_can_be_explained(accelerator, name):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 75, 75, 1), np.uint8)
    found = maps_of(bodies.build(name, 75, "sigmoid"), pixels)
    assert found.shape == (2, 75, 75) and np.isfinite(found).all()


def lesions(n=6, size=10):
    """Masks as the phantom writes them, none of which holds a corner."""
    rng, masks = np.random.default_rng(0), np.zeros((n, size, size), np.uint8)
    for mask in masks:
        top, left = rng.integers(1, size - 5, 2)
        mask[top : top + 4, left : left + 3] = 255
    return masks, np.arange(n)


def located(maps, masks, patients):
    """How well one kind of maps finds the lesions."""
    return localisation({"maps": maps}, masks, patients).set_index("map").loc["maps"]


def test_perfect_opposite_and_uniform_maps_are_localised_as_they_should():
    masks, patients = lesions()
    both = ["pointing", "energy"]
    found = located((masks > 0).astype(float), masks, patients)
    assert found[both].tolist() == [1, 1] and found["area"] == pytest.approx(0.12)
    # Wilson's interval where all hit: from n / (n + z²) to 1.
    lows = found[["pointing_low", "energy_low"]].tolist()
    assert lows == pytest.approx([6 / (6 + 1.959964**2)] * 2, abs=1e-6)
    assert located((masks == 0).astype(float), masks, patients)[both].tolist() == [0, 0]
    uniform = located(np.full(masks.shape, 0.3), masks, patients)
    assert uniform["energy"] == pytest.approx(0.12) and uniform["pointing"] == 0
    masks[:, 0, 0] = 255
    assert not located(np.zeros(masks.shape), masks, patients)[both].any()
    assert located(np.ones(masks.shape), masks, patients)["pointing"] == 0
    masks[2] = 0
    with pytest.raises(InvalidDataError, match=r"a mask has no lesion\. Fix: "):
        located(np.ones(masks.shape), masks, patients)


def test_every_map_is_beside_a_blob_that_fades_from_the_centre():
    masks = np.zeros((3, 15, 15))
    masks[0, 7, 7] = 1  # the centre
    masks[1, 7, 11] = 1
    masks[2, 7, 14] = 1
    table = localisation({"a": np.ones(masks.shape), "b": masks}, masks, np.arange(3))
    assert table["map"].tolist() == ["a", "b", "centre blob"]
    assert table["images"].tolist() == [3, 3, 3]
    assert table["pointing"].tolist() == pytest.approx([0, 1, 1 / 3])
    energies = []
    for lesion in masks:
        alone = localisation({}, lesion[None], np.arange(1)).iloc[0]
        energies.append(alone["energy"])
    assert energies[0] > energies[1] > energies[2] > 0
    assert table["energy"].iloc[2] == pytest.approx(np.mean(energies))


def test_pointing_and_energy_are_counted_by_hand():
    masks = np.zeros((2, 3, 3))
    masks[:, 1, 1] = 1
    maps = np.zeros((2, 3, 3))
    maps[0, 1, 1], maps[0, 0, 0] = 3, 1
    maps[1, 1, 1], maps[1, 2, 2], maps[1, 0, 1] = 1, 2, 1
    found = located(maps, masks, np.array(["a", "b"]))
    assert found[["pointing", "energy"]].tolist() == [0.5, 0.5]
    assert found[["energy_low", "energy_high"]].tolist() == pytest.approx([0.25, 0.75])


def test_images_of_one_patient_widen_the_interval_of_pointing():
    masks, _ = lesions(n=80)
    hit = np.repeat(np.arange(10) % 2, 8)[:, None, None]
    maps = np.where(hit, masks > 0, masks == 0).astype(float)
    rows = [located(maps, masks, whose) for whose in (np.arange(80) // 8, np.arange(80))]
    of_ten, of_eighty = (row["pointing_high"] - row["pointing_low"] for row in rows)
    assert of_ten > 2 * of_eighty


def test_maps_are_beside_the_centre_and_those_of_permuted_weights(accelerator, monkeypatch):
    keras.utils.set_random_seed(3)
    model = bodies.build("tiny_cnn", 32, "sigmoid")
    masks, patients = lesions(n=6, size=32)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 1), np.uint8)
    row = SHOWN.check_maps(model, pixels, masks, patients)
    table = localisation({"maps": maps_of(model, pixels)}, masks, patients)
    found, blobs = table.iloc[0], table.iloc[1]
    assert (row["n"], row["area"]) == (6, found["area"])
    for name in ("pointing", "energy"):
        for column in (name, f"{name}_low", f"{name}_high"):
            assert row[column] == found[column]
        assert row[f"{name}_center"] == blobs[name]
    assert -1 <= row["rank_correlation"] < 0.99


def test_the_correlation_is_of_ranks_and_a_flat_map_has_none(monkeypatch):
    rng = np.random.default_rng(0)
    maps = rng.random((4, 6, 6))
    others = np.stack([maps[0] ** 3, 1 - maps[1], rng.random((6, 6)), np.zeros((6, 6))])
    found = {"trained": maps, "permuted": others}
    names = SHOWN.check_maps.__globals__
    monkeypatch.setitem(names, "gradcam", lambda model, pixels: found[model])
    monkeypatch.setitem(names, "permuted", lambda model: "permuted")
    row = SHOWN.check_maps("trained", maps[..., None], np.ones((4, 6, 6)), np.arange(4))
    third = spearmanr(maps[2].ravel(), others[2].ravel()).statistic
    assert row["rank_correlation"] == pytest.approx((1 - 1 + third) / 3)


UNDER_JAX = """
import sys
sys.path.insert(0, "tests")
from xraylib import devices
devices.use("cpu", "jax", devices=1)
import numpy as np
from notebook_code import definitions
from xraylib.training import networks
gradcam = definitions("07_shift_and_trust").gradcam
given = np.load(sys.argv[1] + "/given.npz")
found = {}
for name, head in (("tiny_cnn", "two-logits"), ("scratch_cnn", "sigmoid")):
    model = networks.build(name, 32, head)
    model.load_weights(f"{sys.argv[1]}/{name}.weights.h5")
    found[name] = gradcam(model, given["pixels"])
np.savez(sys.argv[1] + "/found.npz", **found)
"""


@pytest.mark.slow
def test_jax_finds_the_maps_of_tensorflow(accelerator, tmp_path):
    keras.utils.set_random_seed(0)
    rng, here = np.random.default_rng(0), {}
    pixels = rng.integers(0, 256, (4, 32, 32, 1), np.uint8)
    np.savez(tmp_path / "given.npz", pixels=pixels)
    for name, head in (("tiny_cnn", "two-logits"), ("scratch_cnn", "sigmoid")):
        model = bodies.build(name, 32, head)
        for weight in model.trainable_variables:
            weight.assign(weight.numpy() + rng.normal(0, 0.05, weight.shape))
        model.save_weights(tmp_path / f"{name}.weights.h5")
        here[name] = maps_of(model, pixels)
    run_python(UNDER_JAX, tmp_path)
    there = np.load(tmp_path / "found.npz")
    for name, maps in here.items():
        assert np.ptp(maps) > 0, name
        np.testing.assert_allclose(there[name], maps, atol=1e-3, err_msg=name)
