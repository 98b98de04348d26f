import hashlib
import warnings

import keras
import numpy as np
import pytest
from conftest import SMALL

from xraylib.errors import InvalidDataError, NotFoundError
from xraylib.training import networks as module
from xraylib.training.networks import (
    AUGMENTATIONS,
    HEADS,
    NETWORKS,
    Weights,
    build,
    find_weights,
    get_weights,
)
from xraylib.training.recipes import get_recipe

pytestmark = pytest.mark.filterwarnings("error", "ignore::DeprecationWarning")
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 1), dtype=np.uint8)
LARGE = [
    ("mobilenetv2_small", 64),
    ("mobilenetv2_standardized", 64),
    ("resnet50v2", 32),
    ("resnet50v2_raw", 32),
    ("inceptionv3", 75),
]


@pytest.mark.parametrize("name", SMALL)
def test_a_network_takes_bytes_and_gives_probabilities(networks, name):
    model = networks[name]
    assert model.input.shape == (None, 32, 32, 1)
    assert model.input.dtype == "uint8"
    outputs = model.predict_on_batch(PIXELS)
    assert outputs.shape == (4, 1)
    assert outputs.dtype == np.float32
    assert ((outputs >= 0) & (outputs <= 1)).all()
    assert len(np.unique(outputs)) > 1
    np.testing.assert_allclose(model.predict_on_batch(PIXELS[::-1])[::-1], outputs, atol=1e-6)


def described(model):
    """Convolutions, dense layers and dropouts in their order, with their sizes."""
    sizes = {
        keras.layers.Conv2D: "filters",
        keras.layers.SeparableConv2D: "filters",
        keras.layers.Dense: "units",
        keras.layers.Dropout: "rate",
    }
    layers = [layer for layer in model.layers if type(layer) in sizes]
    return [f"{type(x).__name__} {getattr(x, sizes[type(x)])}" for x in layers]


def test_the_published_networks_are_as_published(accelerator):
    dense = [f"Dense {units}" for units in (256, 128, 64, 32, 16, 2)]
    assert described(build("tiny_cnn", 28, "two-logits")) == ["Conv2D 64", "Conv2D 64", *dense]
    expected = ["Conv2D 16", "Conv2D 16"]
    for filters, rate in ((32, 0.0), (64, 0.0), (128, 0.2), (256, 0.2)):
        expected += [f"SeparableConv2D {filters}"] * 2 + [f"Dropout {rate}"]
    for units, rate in ((512, 0.7), (128, 0.5), (64, 0.3)):
        expected += [f"Dense {units}", f"Dropout {rate}"]
    expected.append("Dense 1")
    assert described(build("separable_cnn", 64, "sigmoid")) == expected
    expected = [*(f"Conv2D {n}" for n in (16, 32, 64, 128)), "Dense 64", "Dropout 0.3", "Dense 1"]
    scratch = build("scratch_cnn", 32, "sigmoid")
    assert described(scratch) == expected
    kinds = (keras.layers.Conv2D, keras.layers.Dense)
    regularised = [layer for layer in scratch.layers if isinstance(layer, kinds)][:-1]
    assert all(layer.kernel_regularizer.l2 == pytest.approx(1e-4) for layer in regularised)


def test_a_loss_that_expects_logits_looks_through_a_sigmoid(accelerator):
    """Why the two-logits head gives logits, although the published code ends in a sigmoid."""
    inputs = keras.Input((6,))
    dense = keras.layers.Dense(2)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 6)).astype("float32") * 4
    y = rng.integers(0, 2, 40)
    losses = []
    for outputs in (dense(inputs), keras.layers.Activation("sigmoid")(dense(inputs))):
        model = keras.Model(inputs, outputs)
        model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            losses.append(model.evaluate(x, y, verbose=0))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), LARGE)
def test_a_large_network_has_a_backbone_and_only_the_raw_one_flips_what_it_scores(
    accelerator, name, size
):
    keras.utils.set_random_seed(0)
    # Two linear outputs: a sigmoid of raw pixels would be 0 or 1 whatever the image.
    model = build(name, size, "two-logits")
    pixels = np.random.default_rng(0).integers(0, 256, (8, size, size, 1), dtype=np.uint8)
    assert isinstance(model.get_layer("backbone"), keras.Model)
    outputs = [model.predict_on_batch(pixels) for _ in range(3)]
    assert outputs[0].shape == (8, 2)
    assert np.isfinite(outputs[0]).all()
    assert all((other == outputs[0]).all() for other in outputs[1:]) == (name != "resnet50v2_raw")


def test_too_few_pixels_for_a_network_are_one_error(accelerator):
    with pytest.raises(InvalidDataError, match=r"mobilenetv2 cannot be built for 16 .*Fix: "):
        module.build("mobilenetv2", 16, "sigmoid")


def test_every_network_is_tried():
    assert {*SMALL, *(name for name, _ in LARGE)} == set(NETWORKS)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_augmentation_acts_in_training_only_and_alike_on_any_image(accelerator, augmentation):
    layer = AUGMENTATIONS[augmentation]()
    pixels = PIXELS.astype(np.float32)
    np.testing.assert_array_equal(layer(pixels, training=False), pixels)
    changed = np.array(layer(pixels, training=True))
    assert changed.shape == pixels.shape
    assert (changed != pixels).any()
    assert changed.min() >= -1e-3
    assert changed.max() <= 255.001
    model = build("tiny_cnn", 32, "sigmoid", augmentation=augmentation)
    np.testing.assert_array_equal(model.predict_on_batch(PIXELS), model.predict_on_batch(PIXELS))


def test_random_framing_shows_a_crop_of_the_image(accelerator):
    ramp = np.tile(np.linspace(0, 250, 64, dtype=np.float32)[None, :, None, None], (40, 1, 64, 1))
    framed = np.array(module.RandomFraming()(ramp, training=True))
    seen = (framed[:, -1, 0, 0] - framed[:, 0, 0, 0]) / 250
    assert 0.58 < seen.min() < seen.max() <= 1
    assert seen.std() > 0.05
    assert (np.diff(framed[:, :, 0, 0], axis=1) > -1e-3).all(), "the order of the lines stays"


def exponents(rendered, levels):
    """The exponent that turns each grey level, in 0…1, into what was rendered of it."""
    return np.log(rendered / 255) / np.log(levels)


def test_random_rendering_draws_gamma_contrast_and_brightness_for_each_image(accelerator):
    levels = np.array([0.4, 0.5, 0.6], np.float32)
    stripes = np.tile(255 * levels[None, :, None, None], (300, 1, 3, 1))
    gamma = module.RandomRendering(contrast=0, brightness=0)
    found = exponents(np.array(gamma(stripes, training=True)), levels[None, :, None, None])
    each = found[:, 0, 0, 0]
    assert np.ptp(found, axis=(1, 2, 3)).max() < 1e-3, "one exponent for all of an image"
    assert 1 / 1.61 < each.min() < 0.7
    assert 1.4 < each.max() < 1.61
    assert abs(np.median(np.log(each))) < 0.1, "dark and light alike"
    contrast = module.RandomRendering(gamma=1, brightness=0)(stripes, training=True)
    spread = np.ptp(np.array(contrast)[:, :, 0, 0], axis=1) / 51
    assert 0.69 < spread.min() < 0.8 < 1.2 < spread.max() < 1.31
    brightness = module.RandomRendering(gamma=1, contrast=0)(stripes, training=True)
    shift = (np.array(brightness)[:, 1, 0, 0] - 127.5) / 255
    assert -0.151 < shift.min() < -0.1 < 0.1 < shift.max() < 0.151


def test_the_flagship_is_taught_gamma_blur_and_noise(accelerator):
    layers = AUGMENTATIONS[get_recipe("flagship").augmentation]().layers
    kinds = {type(layer) for layer in layers}
    assert {module.RandomFraming, module.RandomRendering, module.RandomDegradation} <= kinds
    rendering = next(layer for layer in layers if isinstance(layer, module.RandomRendering))
    stripes = np.tile(np.float32([102, 127.5, 153])[None, :, None, None], (100, 1, 3, 1))
    low, middle, high = np.moveaxis(np.array(rendering(stripes, training=True))[:, :, 0, 0], 1, 0)
    inside = (low > 0) & (high < 255)
    # Contrast and brightness keep the ratio of two steps at 1.
    assert np.std((high - middle)[inside] / (middle - low)[inside]) > 0.02


def test_random_degradation_blurs_and_adds_noise_to_some_images(accelerator):
    flat = np.full((400, 16, 16, 1), 128, np.float32)
    noisy = np.array(module.RandomDegradation(speckle=0)(flat, training=True))
    deviation = noisy.std(axis=(1, 2, 3))
    assert 0.4 < (deviation > 1e-3).mean() < 0.6, "half of the images"
    assert 20 < deviation.max() < 33
    bright = np.array(module.RandomDegradation(noise=0)(flat, training=True)).std(axis=(1, 2, 3))
    dark = np.array(module.RandomDegradation(noise=0)(flat / 4, training=True)).std(axis=(1, 2, 3))
    assert 0.15 < (bright > 1e-3).mean() < 0.35, "a quarter of the images"
    assert 3 < bright.max() / dark.max() < 5, "in proportion to the pixel"
    stripes = np.tile(np.float32([0, 255])[None, None, :, None], (400, 16, 8, 1))
    blurred = np.array(module.RandomDegradation(noise=0, speckle=0)(stripes, training=True))
    contrast = np.ptp(blurred[:, 4, 4:12, 0], axis=1) / 255
    assert 0.2 < (contrast < 0.999).mean() < 0.4, "three tenths of the images"


def test_standardization_hides_brightness_and_contrast(accelerator):
    images = np.random.default_rng(0).uniform(0, 200, (3, 8, 8, 1)).astype(np.float32)
    standard = np.array(module.Standardization()(images))
    np.testing.assert_allclose(standard.mean(axis=(1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(standard.std(axis=(1, 2, 3)), 0.5, rtol=0.03)
    changed = np.array(module.Standardization()(0.5 * images + 40))
    np.testing.assert_allclose(changed, standard, atol=0.05)
    assert not np.array(module.Standardization()(np.full((1, 8, 8, 1), 90, np.float32))).any()


def test_the_head_gives_the_probability_that_the_loss_sees(accelerator):
    logits = np.random.default_rng(0).normal(scale=5, size=(200, 2)).astype(np.float32)
    probability = HEADS["two-logits"].probability(logits)
    labels = np.arange(200) % 2
    loss = float(HEADS["two-logits"].loss()(labels, logits))
    assert loss == pytest.approx(
        -np.log(np.where(labels == 1, probability, 1 - probability)).mean(), rel=1e-5
    )
    sure = np.array([[2000.0, -2000.0], [-2000.0, 2000.0]])
    assert HEADS["two-logits"].probability(sure).tolist() == [0, 1]
    given = np.array([[0.0], [0.3]], np.float32)
    np.testing.assert_array_equal(HEADS["sigmoid"].probability(given), given[:, 0].astype(float))


def test_unknown_initial_weights_are_told_the_known_ones():
    with pytest.raises(NotFoundError, match=r"'noisy-student'.*random, imagenet, or the path"):
        get_weights("mobilenetv2", "noisy-student")


def test_a_weights_file_is_named_by_its_content(tmp_path, monkeypatch):
    file = tmp_path / "mine.weights.h5"
    file.write_bytes(b"weights")
    label = f"file {hashlib.sha256(b'weights').hexdigest()[:12]}"
    assert get_weights("mobilenetv2", str(file)) == Weights(label, file)
    with pytest.raises(NotFoundError, match=r"none\.weights\.h5.*Fix: "):
        get_weights("mobilenetv2", str(tmp_path / "none.weights.h5"))
    monkeypatch.setenv("XRAYLIB_WEIGHTS", str(tmp_path))
    with pytest.raises(
        NotFoundError, match=r"mobilenetv2_imagenet_notop\.weights\.h5.*unset XRAYLIB_WEIGHTS"
    ):
        get_weights("mobilenetv2", "imagenet")
    file.rename(tmp_path / "mobilenetv2_imagenet_notop.weights.h5")
    assert get_weights("mobilenetv2", "imagenet").label == label


def test_imagenet_weights_that_cannot_be_downloaded(monkeypatch):
    def unreachable(**_):
        raise OSError("URL fetch failure")

    monkeypatch.delenv("XRAYLIB_WEIGHTS", raising=False)
    monkeypatch.setitem(module.BACKBONES, "mobilenetv2", unreachable)
    unreachable.__name__ = "MobileNetV2"
    with pytest.raises(
        NotFoundError, match=r"not be downloaded.*URL fetch failure.*XRAYLIB_WEIGHTS.*random"
    ):
        get_weights("mobilenetv2", "imagenet")
    with pytest.raises(NotFoundError, match="no ImageNet weights for tiny_cnn"):
        get_weights("tiny_cnn", "imagenet")


def test_the_weights_of_a_run_are_found_by_their_content_and_never_downloaded(
    tmp_path, monkeypatch
):
    def download(*_):
        raise AssertionError("a download")

    monkeypatch.setattr(module, "_from_keras", download)
    monkeypatch.delenv("XRAYLIB_WEIGHTS", raising=False)
    given = tmp_path / "mine.weights.h5"
    given.write_bytes(b"weights")
    weights = get_weights("tiny_cnn", str(given))
    assert find_weights("tiny_cnn", weights.label, str(given)) == weights
    folder = tmp_path / "weights"
    folder.mkdir()
    moved = given.rename(folder / "renamed.weights.h5")
    given.write_bytes(b"others")
    with pytest.raises(NotFoundError, match=r"'file [0-9a-f]{12}'.*Fix: set XRAYLIB_WEIGHTS"):
        find_weights("tiny_cnn", weights.label, str(given))
    monkeypatch.setenv("XRAYLIB_WEIGHTS", str(folder))
    for recorded in (str(given), None):
        assert find_weights("tiny_cnn", weights.label, recorded).file == moved
    assert find_weights("tiny_cnn", "random") == Weights("random")


@pytest.mark.slow
def test_initial_weights_arrive_in_the_backbone(networks, tmp_path):
    backbone = networks["mobilenetv2"].get_layer("backbone")
    file = tmp_path / "backbone.weights.h5"
    backbone.save_weights(file)
    built = build("mobilenetv2", 32, "sigmoid", weights=get_weights("mobilenetv2", str(file)))
    for ours, theirs in zip(built.get_layer("backbone").weights, backbone.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


@pytest.mark.parametrize(
    ("name", "other"), [("tiny_cnn", "scratch_cnn"), ("scratch_cnn", "tiny_cnn")]
)
def test_without_a_backbone_initial_weights_are_the_whole_networks(networks, saved, name, other):
    built = build(name, 32, "sigmoid", weights=get_weights(name, str(saved / f"{name}.weights.h5")))
    np.testing.assert_array_equal(
        built.predict_on_batch(PIXELS), networks[name].predict_on_batch(PIXELS)
    )
    with pytest.raises(NotFoundError, match=other):
        build(name, 32, "sigmoid", weights=get_weights(name, str(saved / f"{other}.weights.h5")))


def test_a_score_does_not_depend_on_the_batch_it_is_made_in(networks):
    pixels = np.repeat(PIXELS, 2, axis=0)
    rows = np.array([5, 3, 7, 0, 2])
    whole = module.predict_rows(networks["tiny_cnn"], "sigmoid", pixels, rows, 5)
    assert whole.dtype == np.float64
    for size in (2, 3, 16):
        again = module.predict_rows(networks["tiny_cnn"], "sigmoid", pixels, rows, size)
        np.testing.assert_allclose(again, whole, atol=1e-6)


@pytest.mark.slow
def test_what_tensorflow_saved_says_the_same_under_jax(under_jax):
    assert set(under_jax["apart"]) == set(SMALL)
    assert max(under_jax["apart"].values()) < 1e-5


@pytest.mark.slow
def test_a_training_step_is_ready_for_a_tpu(under_jax):
    assert len(under_jax["tpu"]) == 4
    assert sum("loss" in found for found in under_jax["tpu"].values()) == 2
    for step, found in under_jax["tpu"].items():
        assert 0 < found.get("loss", 1) < 20 and found.get("moved", True), step
        assert found["platforms"] == ["tpu"], step
        assert not found["callback"], step
        assert not found["open"], step
        assert "bfloat16" in found["inside"], step
        assert found["weights"] == ["float32"], step
        assert (found["input"], found["output"]) == ("uint8", "float32"), step
