import os

import pytest
from conftest import run_python

from xraylib import devices
from xraylib.storage import NotFound

pytestmark = pytest.mark.filterwarnings("error", "ignore::DeprecationWarning")


def has_gpu():
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def test_the_cpu_is_one_line(accelerator):
    line = str(accelerator)
    assert (accelerator.kind, accelerator.count, accelerator.precision) == ("cpu", 1, "float32")
    assert line.startswith("CPU ") and "tensorflow · float32 · one device" in line
    assert "\n" not in line and accelerator.name in line


def test_keras_is_set_up_as_said(accelerator):
    import keras

    assert keras.backend.backend() == accelerator.backend == os.environ["KERAS_BACKEND"]
    assert keras.config.dtype_policy().name == accelerator.precision


def test_use_seeds_what_keras_draws(accelerator):
    import keras

    drawn = []
    for _ in range(2):
        devices.use("cpu")
        drawn.append(keras.random.normal((4,)).numpy().tolist())
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("device", ["tpu", "gpu"])
def test_a_device_that_is_not_here_is_refused_with_the_mend(accelerator, device):
    if device == "gpu" and has_gpu():
        pytest.skip("there is a GPU here")
    mend = {"tpu": "Change runtime type > TPU", "gpu": "use a machine with a GPU"}[device]
    with pytest.raises(NotFound, match=f"tensorflow sees no {device.upper()}.*Mend.*{mend}"):
        devices.use(device, "tensorflow")


def test_unknown_names_are_told_the_known_ones():
    with pytest.raises(NotFound, match=r"'npu'.*auto, cpu, gpu, tpu"):
        devices.use("npu")
    with pytest.raises(NotFound, match=r"'torch'.*tensorflow, jax"):
        devices.use("cpu", "torch")


def test_an_unknown_backend_in_the_environment_is_refused_as_well(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "numpy")
    with pytest.raises(NotFound, match=r"'numpy'.*tensorflow, jax"):
        devices.use("cpu")


def test_a_backend_that_came_too_late_is_refused_and_the_first_goes_on(accelerator):
    with pytest.raises(NotFound, match=r"already runs on tensorflow, not jax\. Fix: restart the kernel"):
        devices.use("cpu", "jax")
    assert devices.use("cpu") == accelerator


def test_sharing_a_batch_needs_jax(accelerator):
    with pytest.raises(NotFound, match=r"JAX backend only.*backend='jax'"):
        devices.use("cpu", "tensorflow", devices=4)


@pytest.mark.parametrize("devices", [0, -1])
def test_a_number_of_devices_below_one_is_refused(accelerator, devices):
    with pytest.raises((NotFound, NotFound)):
        devices.use("cpu", devices=devices)


def test_a_backend_that_is_not_installed_is_refused_with_the_mend(monkeypatch):
    find = devices.importlib.util.find_spec
    monkeypatch.setattr(
        devices.importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "jax" else find(name, *rest),
    )
    with pytest.raises(NotFound, match=r"the backend jax is not installed. Fix: pip install jax"):
        devices.use("cpu", "jax")


def test_asking_what_there_is_does_not_start_keras():
    said = run_python(
        "import sys\n"
        "from xraylib import accelerators\n"
        "print([name for name in ('keras', 'tensorflow', 'jax') if name in sys.modules])"
    )
    assert said.strip() == "[]"


@pytest.mark.slow
def test_four_devices_share_a_batch_under_jax(under_jax):
    assert under_jax["count"] == 4
    assert under_jax["line"].endswith("jax · float32 · each batch shared by 4 devices")


@pytest.mark.slow
def test_what_jax_does_not_see_is_refused_with_the_mend(under_jax):
    refused = under_jax["refused"]
    assert refused["nine"].startswith("9 cpu devices were asked for, JAX shows 4. Fix: ask for fewer")
    assert refused["tpu"].startswith("jax sees no TPU on this machine. Fix: in Colab")
    if not has_gpu():
        assert refused["gpu"].startswith("jax sees no GPU on this machine. Fix: use a machine with a GPU")
    assert refused["tensorflow"].startswith("Keras already runs on jax, not tensorflow.")
