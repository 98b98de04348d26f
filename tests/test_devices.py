import os

import pytest

from xraylib import devices
from xraylib.errors import NotFoundError


def has_gpu():
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def test_keras_is_set_up_as_the_one_line_says(accelerator):
    import keras

    line = str(accelerator)
    assert (accelerator.kind, accelerator.count, accelerator.precision) == ("cpu", 1, "float32")
    assert line == f"CPU {accelerator.name} · tensorflow · float32 · one device"
    assert "\n" not in line
    assert keras.backend.backend() == accelerator.backend == os.environ["KERAS_BACKEND"]
    assert keras.config.dtype_policy().name == accelerator.precision


def test_use_seeds_what_keras_draws(accelerator):
    import keras

    values = []
    for _ in range(2):
        assert devices.use("cpu") == accelerator
        values.append(keras.random.normal((4,)).numpy().tolist())
    assert values[0] == values[1]


@pytest.mark.parametrize(
    ("device", "fix"), [("tpu", "runtime type > TPU"), ("gpu", "a machine with a GPU")]
)
def test_a_device_that_is_not_here_is_refused_with_the_fix(accelerator, device, fix):
    if device == "gpu" and has_gpu():
        pytest.skip("there is a GPU here")
    with pytest.raises(NotFoundError, match=f"tensorflow sees no {device.upper()}.*Fix: .*{fix}"):
        devices.use(device, "tensorflow")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"device": "npu"}, r"'npu'.*auto, cpu, gpu, tpu"),
        ({"backend": "torch"}, r"'torch'.*tensorflow, jax"),
        ({"precision": "float8"}, r"'float8'.*float32, mixed_bfloat16"),
        ({"backend": "jax"}, r"already runs on tensorflow, not jax\. Fix: restart the kernel"),
        ({"devices": 4}, r"under JAX only.*backend='jax'"),
        ({"devices": 0}, r"ask for one or more"),
    ],
)
def test_what_cannot_be_had_is_refused_with_the_fix(accelerator, asked, said):
    with pytest.raises(NotFoundError, match=said):
        devices.use(**{"device": "cpu"} | asked)


def test_a_backend_that_is_not_installed_is_refused_with_the_fix(monkeypatch):
    find = devices.importlib.util.find_spec
    without = lambda name, *rest: None if name == "jax" else find(name, *rest)  # noqa: E731
    monkeypatch.setattr(devices.importlib.util, "find_spec", without)
    with pytest.raises(
        NotFoundError, match=r"the backend jax is not installed. Fix: pip install jax"
    ):
        devices.use("cpu", "jax")


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        ("tpu", None, "mixed_bfloat16"),
        ("gpu", None, "float32"),
        ("tpu", "float32", "float32"),
        ("cpu", "mixed_bfloat16", "mixed_bfloat16"),
    ],
)
def test_a_tpu_trains_in_bfloat16_unless_another_precision_is_given(
    accelerator, monkeypatch, kind, given, expected
):
    set_up = []
    monkeypatch.setattr(devices, "_tensorflow_devices", lambda *_: (kind, "its name", 1))
    monkeypatch.setattr(devices, "_set_up_keras", lambda *arguments: set_up.append(arguments))
    used = devices.use("auto", "tensorflow", precision=given)
    assert used.precision == expected
    assert set_up == [("tensorflow", kind, 1, expected)]


@pytest.mark.slow
def test_four_devices_share_a_batch_under_jax(under_jax):
    assert under_jax["count"] == 4
    assert under_jax["line"].endswith("jax · float32 · each batch shared by 4 devices")


@pytest.mark.slow
def test_what_jax_does_not_see_is_refused_with_the_fix(under_jax):
    refused = under_jax["refused"]
    assert refused["nine"].startswith(
        "9 cpu devices were asked for, JAX shows 4. Fix: ask for fewer"
    )
    assert refused["tpu"].startswith("jax sees no TPU on this machine. Fix: in Colab")
    if not has_gpu():
        assert refused["gpu"].startswith(
            "jax sees no GPU on this machine. Fix: use a machine with a GPU"
        )
    assert refused["tensorflow"].startswith("Keras already runs on jax, not tensorflow.")
