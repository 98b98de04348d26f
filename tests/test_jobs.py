"""Several processes that train together, here on loopback with two simulated devices each."""

import os
import socket
import time

import numpy as np
import pytest
from conftest import start_python

from xraylib import devices, paths
from xraylib.errors import NotFoundError
from xraylib.training import runs

TRAIN = """
import sys
from dataclasses import replace
from xraylib import cli, devices
from xraylib.datasets import catalog
from xraylib.datasets.phantom import PhantomSettings

phantom = replace(catalog.DATASETS["phantom"], phantom=PhantomSettings(images=60, size=64))
catalog.DATASETS["phantom"] = phantom
devices.JOIN_SECONDS = int(sys.argv[1])
devices.SILENCE_SECONDS = 10
sys.exit(cli.main(["train", "tiny-cnn-28", "--budget", "quick"]))
"""


def start(port, process, *, cpus="2", wait=60):
    given = {"KERAS_BACKEND": "jax", "JAX_NUM_CPU_DEVICES": cpus, "NPROC": "8"}
    if port:
        given |= {
            "KERAS_DISTRIBUTION_JOB_ADDRESSES": f"127.0.0.1:{port}",
            "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
            "KERAS_DISTRIBUTION_PROCESS_ID": str(process),
        }
    return start_python(TRAIN, wait, env=os.environ | given)


@pytest.fixture
def port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def end(process):
    out, err = process.communicate(timeout=250)
    return process.returncode, out, err


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_that_loses_a_process_stops_and_goes_on_and_trains_what_one_process_trains(
    places, port
):
    alone = end(start(None, 0, cpus="1"))
    assert alone[0] == 0, alone[2]
    (paths.REPORTS / "phantom").rename(paths.REPORTS / "alone")
    expected = runs.list_runs("alone")

    first = start(port, 0)
    second = start(port, 1)
    while not list(places.glob("**/checkpoint.npz")) and first.poll() is None:
        time.sleep(0.05)
    second.terminate()
    assert end(second)[0] == 128 + 15, "SIGTERM reaches the process that trains"
    status, _, errors = end(first)
    assert status == 1
    assert "another process of the job" in errors.splitlines()[-1]

    job = [start(port, process) for process in (0, 1)]
    ended = [end(process) for process in job]
    assert [status for status, _, _ in ended] == [0, 0], ended
    assert all("going on after epoch" in errors for _, _, errors in ended)
    shared = runs.list_runs("phantom")
    assert all("of 2 processes" in run.settings["hardware"] for run in shared)
    assert len(shared) == len(expected) == 2
    for one, four in zip(expected, shared, strict=True):
        for column in ("loss", "val_loss"):
            np.testing.assert_allclose(four.history[column], one.history[column], atol=1e-3)
        np.testing.assert_allclose(four.scores["score"], one.scores["score"], atol=1e-3)


@pytest.mark.slow
def test_a_process_that_does_not_come_is_told(places, port):
    status, _, errors = end(start(port, 0, wait=5))
    assert status == 1
    assert "did not come" in errors.splitlines()[-1]
    assert "Fix: " in errors


@pytest.mark.slow
def test_processes_that_see_other_folders_are_told(places, port, monkeypatch):
    first = start(port, 0)
    for place in ("REPORTS", "RUNS"):
        monkeypatch.setenv(f"XRAYLIB_{place}", str(places / "elsewhere" / place))
    for status, _, errors in (end(start(port, 1)), end(first)):
        assert status == 1
        assert "one folder" in errors.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("process", ["two", "2"])
def test_a_job_that_is_named_wrongly_is_told(places, port, process):
    status, _, errors = end(start(port, process))
    assert status == 1
    assert "PROCESS_ID=0" in errors.splitlines()[-1]


def test_a_job_trains_under_jax_only():
    with pytest.raises(NotFoundError, match="jax"):
        devices.use("cpu", "tensorflow", job=True)
