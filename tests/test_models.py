import hashlib
import shutil
import warnings
from itertools import chain

import keras
import numpy as np
import pytest
from conftest import SMALL

from xraylib import paths
from xraylib.storage import Failed, NotFound
from xraylib.training import models
from xraylib.training.models import AUGMENTATIONS, HEADS, NETWORKS, Weights, get_weights

pytestmark = pytest.mark.filterwarnings("error", "ignore::DeprecationWarning")
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 1), dtype=np.uint8)


@pytest.mark.parametrize("name", SMALL)
def test_a_network_takes_bytes_and_gives_probabilities(networks, name):
    model = networks[name]
    assert model.input.shape == (None, 32, 32, 1) and model.input.dtype == "uint8"
    outputs = model.predict_on_batch(PIXELS)
    assert outputs.shape == (4, 1) and outputs.dtype == np.float32
    probability = HEADS["sigmoid"].probability(outputs)
    assert probability.shape == (4,) and ((probability >= 0) & (probability <= 1)).all()
    assert len(np.unique(outputs)) > 1, "the image decides"
    assert model.name == name


def test_the_tiny_network_is_as_published(accelerator):
    model = models.build("tiny_cnn", 28, "two-logits")
    layers = {layer.name: layer.units for layer in model.layers if isinstance(layer, keras.layers.Dense)}
    assert layers == {"L1": 256, "L2": 128, "L3": 64, "L4": 32, "L5": 16, "L6": 2}
    assert [x.filters for x in model.layers if isinstance(x, keras.layers.Conv2D)] == [64, 64]


def described(model):
    """Convolutions, dense layers and dropouts in their order, with their sizes."""
    sizes = {keras.layers.Conv2D: "filters", keras.layers.SeparableConv2D: "filters"}
    sizes |= {keras.layers.Dense: "units", keras.layers.Dropout: "rate"}
    found = [(type(layer), layer) for layer in model.layers if type(layer) in sizes]
    return [f"{kind.__name__} {getattr(layer, sizes[kind])}" for kind, layer in found]


def test_the_separable_network_is_that_of_the_example(accelerator):
    blocks = [(32, 0.0), (64, 0.0), (128, 0.2), (256, 0.2)]
    convolved = [[*[f"SeparableConv2D {f}"] * 2, f"Dropout {rate}"] for f, rate in blocks]
    dense = [[f"Dense {units}", f"Dropout {rate}"] for units, rate in ((512, 0.7), (128, 0.5), (64, 0.3))]
    expected = ["Conv2D 16", "Conv2D 16", *chain.from_iterable(convolved + dense), "Dense 1"]
    assert described(models.build("separable_cnn", 64, "sigmoid")) == expected


def test_the_network_from_scratch_is_regularised(accelerator):
    model = models.build("scratch_cnn", 32, "sigmoid")
    assert described(model) == [
        *(f"Conv2D {n}" for n in (16, 32, 64, 128)),
        "Dense 64",
        "Dropout 0.3",
        "Dense 1",
    ]
    weighed = [x for x in model.layers if isinstance(x, (keras.layers.Conv2D, keras.layers.Dense))][:-1]
    assert all(layer.kernel_regularizer.l2 == pytest.approx(1e-4) for layer in weighed)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="what TensorFlow does")
def test_a_loss_that_expects_logits_looks_through_a_sigmoid(accelerator):
    inputs = keras.Input((6,))
    dense = keras.layers.Dense(2)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(40, 6)).astype("float32") * 4, draw.integers(0, 2, 40)
    logits = keras.Model(inputs, dense(inputs))
    published = keras.Model(inputs, keras.layers.Activation("sigmoid")(dense(inputs)))
    losses = []
    for model in (logits, published):
        model.compile(loss=loss)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            losses.append(model.evaluate(x, y, verbose=0))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    outputs = 1 / (1 + np.exp(-logits.predict(x, verbose=0)))
    assert float(loss(y, outputs)) != pytest.approx(losses[0], rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [("mobilenetv2_small", 64), ("resnet50v2", 32), ("resnet50v2_raw", 32), ("inceptionv3", 75)],
)
def test_a_large_network_has_a_backbone_and_only_the_raw_one_flips_what_it_scores(accelerator, name, size):
    keras.utils.set_random_seed(0)
    # Two linear outputs: a sigmoid of raw pixels would be 0 or 1 whatever the side.
    model = models.build(name, size, "two-logits")
    films = np.random.default_rng(0).integers(0, 256, (8, size, size, 1), dtype=np.uint8)
    assert isinstance(model.get_layer("backbone"), keras.Model)
    outputs = [model.predict_on_batch(films) for _ in range(3)]
    assert outputs[0].shape == (8, 2) and np.isfinite(outputs[0]).all()
    alike = all((other == outputs[0]).all() for other in outputs[1:])
    assert alike == (name != "resnet50v2_raw")


def test_every_network_is_tried():
    assert {*SMALL, "mobilenetv2_small", "resnet50v2", "resnet50v2_raw", "inceptionv3"} == set(NETWORKS)


def test_fine_tuning_has_a_backbone_to_freeze(networks):
    assert networks["mobilenetv2"].get_layer("backbone").count_params() == 2_257_984


def test_every_image_is_judged_alone_and_alike(networks):
    for model in networks.values():
        together = model.predict_on_batch(PIXELS)
        np.testing.assert_allclose(model.predict_on_batch(PIXELS[::-1])[::-1], together, atol=1e-6)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_augmentation_acts_in_training_only(accelerator, augmentation):
    layer = AUGMENTATIONS[augmentation]()
    images = PIXELS.astype(np.float32)
    np.testing.assert_array_equal(layer(images, training=False), images)
    changed = np.array(layer(images, training=True))
    assert changed.shape == images.shape and (changed != images).any()
    assert changed.min() >= -1e-3 and changed.max() <= 255.001
    model = models.build("tiny_cnn", 32, "sigmoid", augmentation=augmentation)
    np.testing.assert_array_equal(model.predict_on_batch(PIXELS), model.predict_on_batch(PIXELS))


def test_one_output_is_the_probability():
    given = np.array([[0.0], [0.3], [1.0]], np.float32)
    np.testing.assert_array_equal(HEADS["sigmoid"].probability(given), given[:, 0].astype(float))


def test_two_outputs_become_the_softmax_that_the_loss_sees(accelerator):
    logits = np.random.default_rng(0).normal(scale=5, size=(200, 2)).astype(np.float32)
    probability = HEADS["two-logits"].probability(logits)
    soft = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum(1, keepdims=True)
    np.testing.assert_allclose(probability, soft[:, 1], atol=1e-12)
    np.testing.assert_array_equal(probability > 0.5, logits.argmax(1) == 1)
    labels = np.arange(200) % 2
    loss = float(HEADS["two-logits"].loss()(labels, logits))
    chosen = np.where(labels == 1, probability, 1 - probability)
    assert loss == pytest.approx(-np.log(chosen).mean(), rel=1e-5)


def test_a_very_sure_network_still_gives_a_probability():
    logits = np.array([[2000.0, -2000.0], [-2000.0, 2000.0]])
    assert HEADS["two-logits"].probability(logits).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "unknown"),
    [(("resnet", 32, "sigmoid"), "resnet"), (("tiny_cnn", 32, "softmax"), "softmax")],
)
def test_unknown_names_are_told_the_known_ones(arguments, unknown):
    known = NETWORKS if unknown == "resnet" else HEADS
    with pytest.raises(NotFound, match=f"'{unknown}'.*{next(iter(known))}"):
        models.build(*arguments)
    with pytest.raises(NotFound, match=r"'mixup'.*flip"):
        models.build("tiny_cnn", 32, "sigmoid", augmentation="mixup")


def test_random_and_unknown_initialisations():
    assert get_weights("tiny_cnn", "random") == Weights("random")
    with pytest.raises(NotFound, match=r"'noisy-student'.*random, imagenet, or the path"):
        get_weights("mobilenetv2", "noisy-student")


def test_a_weights_file_is_named_by_its_content(tmp_path):
    file = tmp_path / "mine.weights.h5"
    file.write_bytes(b"weights")
    assert get_weights("mobilenetv2", str(file)) == Weights(
        f"file {hashlib.sha256(b'weights').hexdigest()[:12]}", file
    )
    with pytest.raises(NotFound, match=r"none\.weights\.h5.*Mend"):
        get_weights("mobilenetv2", str(tmp_path / "none.weights.h5"))


def test_a_folder_of_weights_without_the_one_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "WEIGHTS", tmp_path)
    with pytest.raises(NotFound, match=r"mobilenetv2_imagenet_notop\.weights\.h5.*unset XRAYLIB_WEIGHTS"):
        get_weights("mobilenetv2", "imagenet")
    (tmp_path / "mobilenetv2_imagenet_notop.weights.h5").write_bytes(b"weights")
    assert get_weights("mobilenetv2", "imagenet").file.parent == tmp_path


def test_imagenet_weights_that_cannot_be_downloaded(monkeypatch):
    def unreachable(**_):
        raise OSError("URL fetch failure")

    monkeypatch.setattr(paths, "WEIGHTS", None)
    monkeypatch.setattr(keras.applications, "MobileNetV2", unreachable)
    with pytest.raises(
        NotFound, match=r"could not be downloaded.*URL fetch failure.*XRAYLIB_WEIGHTS.*random"
    ):
        get_weights("mobilenetv2", "imagenet")
    with pytest.raises(NotFound, match="no ImageNet weights for tiny_cnn"):
        get_weights("tiny_cnn", "imagenet")


def test_initial_weights_arrive_in_the_backbone(networks, tmp_path):
    backbone, file = networks["mobilenetv2"].get_layer("backbone"), tmp_path / "backbone.weights.h5"
    models.save_weights(backbone, file)
    built = models.build("mobilenetv2", 32, "sigmoid", weights=get_weights("mobilenetv2", str(file)))
    for ours, theirs in zip(built.get_layer("backbone").weights, backbone.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


@pytest.mark.parametrize(("name", "other"), [("tiny_cnn", "scratch_cnn"), ("scratch_cnn", "tiny_cnn")])
def test_without_a_backbone_initial_weights_are_the_whole_networks(networks, saved, name, other):
    weights = get_weights(name, str(saved / f"{name}.weights.h5"))
    built = models.build(name, 32, "sigmoid", weights=weights)
    np.testing.assert_array_equal(built.predict_on_batch(PIXELS), networks[name].predict_on_batch(PIXELS))
    with pytest.raises(NotFound, match=other):
        models.build(name, 32, "sigmoid", weights=get_weights(name, str(saved / f"{other}.weights.h5")))


def test_a_weights_file_that_is_none_is_refused(tmp_path):
    file = tmp_path / "broken.weights.h5"
    file.write_bytes(b"no weights")
    with pytest.raises(NotFound, match="broken"):
        models.build("mobilenetv2", 32, "sigmoid", weights=get_weights("mobilenetv2", str(file)))


@pytest.mark.parametrize("name", SMALL)
def test_saved_weights_give_the_same_outputs(networks, saved, name):
    again = models.build(name, 32, "sigmoid")
    assert (again.predict_on_batch(PIXELS) != networks[name].predict_on_batch(PIXELS)).any()
    again.load_weights(saved / f"{name}.weights.h5")
    np.testing.assert_array_equal(again.predict_on_batch(PIXELS), networks[name].predict_on_batch(PIXELS))


def test_weights_that_cannot_be_saved_leave_the_old_file_alone(networks, saved, tmp_path, monkeypatch):
    file = tmp_path / "model.weights.h5"
    shutil.copy(saved / "tiny_cnn.weights.h5", file)
    before = file.read_bytes()

    def half(path):
        with open(path, "wb") as stream:  # noqa: PTH123
            stream.write(b"half")
            raise OSError(28, "No space left on device")

    model = networks["tiny_cnn"]
    monkeypatch.setattr(model, "save_weights", half)
    with pytest.raises(Failed, match=r"model\.weights\.h5"):
        models.save_weights(model, file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


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
        assert found["platforms"] == ["tpu"] and not found["callback"] and not found["open"], step
        assert "bfloat16" in found["inside"] and found["weights"] == ["float32"], step
        assert (found["input"], found["output"]) == ("uint8", "float32"), step
