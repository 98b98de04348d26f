"""Shared by all tests: folders of their own, a small phantom, and what a JAX process did."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
SESSION = Path(tempfile.mkdtemp(prefix="xraylib-tests-"))
# Where the radiographs are, for the tests that need them: not moved by what follows.
REAL_DATA = Path(os.environ.get("XRAYLIB_DATA") or HERE.parent / "data")

# Before keras is imported, which reads its own once.
for place in ("DATA", "CACHE", "RUNS", "REPORTS"):
    os.environ[f"XRAYLIB_{place}"] = str(SESSION / place.lower())
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["TQDM_DISABLE"] = "1"

import numpy as np  # noqa: E402
import pytest  # noqa: E402

from xraylib import devices  # noqa: E402
from xraylib.datasets import catalog, images, manifest  # noqa: E402
from xraylib.datasets.phantom import PhantomSettings  # noqa: E402

# The name `phantom` means these everywhere in the tests.
SMALL_PHANTOM = replace(catalog.DATASETS["phantom"], phantom=PhantomSettings(images=60, size=64))

# Built in a second; the others have a test of their own.
SMALL = ("tiny_cnn", "scratch_cnn", "mobilenetv2", "separable_cnn")


def pytest_unconfigure():
    shutil.rmtree(SESSION, ignore_errors=True)


def start_python(script, *arguments, **options):
    """Start a fresh interpreter on some code, or on a file of this folder."""
    given = [str(HERE / script)] if script.endswith(".py") else ["-c", script]
    usual = {"cwd": HERE.parent, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(
        [sys.executable, *given, *map(str, arguments)],
        **(usual | options),
    )


def run_python(script, *arguments, **options):
    """Run it to its end; the answer is what it printed, and a failure shows its stderr."""
    process = start_python(script, *arguments, **options)
    out, err = process.communicate(timeout=250)
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="session")
def phantom():
    """Manifest of 60 phantom radiographs of 64 pixels."""
    return manifest.load(SMALL_PHANTOM)


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Reports and unfinished runs of this test alone."""
    monkeypatch.setenv("XRAYLIB_REPORTS", str(tmp_path / "reports"))
    monkeypatch.setenv("XRAYLIB_RUNS", str(tmp_path / "unfinished"))
    return tmp_path


@pytest.fixture
def small_phantom(phantom, monkeypatch):
    """The name `phantom` means the 60 small radiographs."""
    monkeypatch.setitem(catalog.DATASETS, "phantom", SMALL_PHANTOM)
    return phantom


@pytest.fixture
def reports_here(tmp_path, monkeypatch):
    """An empty folder of reports for this test."""
    monkeypatch.setenv("XRAYLIB_REPORTS", str(tmp_path / "reports"))
    return tmp_path / "reports"


@pytest.fixture(scope="session")
def accelerator():
    """The CPU under TensorFlow, for everything that runs Keras in this process."""
    return devices.use("cpu", "tensorflow")


@pytest.fixture(scope="session")
def networks(accelerator):
    """The smaller networks by name, for 32 pixels; their random weights let the image decide."""
    import keras

    from xraylib.training import networks

    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    built = {name: networks.build(name, 32, "sigmoid") for name in SMALL}
    for model in built.values():
        for weight in model.trainable_variables:
            weight.assign(weight.numpy() + rng.normal(0, 0.08, weight.shape))
    return built


@pytest.fixture(scope="session")
def saved(networks, phantom, tmp_path_factory):
    """A folder with the weights of `networks` and, in `scores.npz`, their scores of the phantom."""
    from xraylib.training.networks import predict_rows

    folder = tmp_path_factory.mktemp("saved")
    pixels = images.load_pixels(phantom, 32)
    for name, model in networks.items():
        model.save_weights(folder / f"{name}.weights.h5")
    scores = {
        name: predict_rows(m, "sigmoid", pixels, np.arange(16), 8) for name, m in networks.items()
    }
    np.savez(folder / "scores.npz", **scores)
    return folder


@pytest.fixture(scope="session")
def under_jax(phantom, saved, tmp_path_factory):
    """What `under_jax.py` found: the same package on JAX with four simulated CPUs."""
    folder = tmp_path_factory.mktemp("jax")
    phantom.to_pickle(folder / "manifest.pkl")
    run_python("under_jax.py", folder, saved)
    return json.loads((folder / "found.json").read_text())
