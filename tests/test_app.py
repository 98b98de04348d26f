"""The server of notebook 08 as an app: whom it answers, and how many kernels it starts."""

import json
import os
import resource
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from xraylib.app import LimitedKernelManager, limit_memory
from xraylib.paths import ROOT


def test_the_settings_of_the_app_are_those_of_its_class():
    settings = json.loads((ROOT / "notebooks" / "voila.json").read_text())
    assert settings["Voila"]["ip"] == "127.0.0.1"
    assert settings["Voila"]["tornado_settings"]["allow_remote_access"] is False
    name = f"{LimitedKernelManager.__module__}.{LimitedKernelManager.__name__}"
    assert settings["VoilaConfiguration"]["multi_kernel_manager_class"] == name
    limits = settings["LimitedKernelManager"]
    assert all(LimitedKernelManager.class_traits()[name] is not None for name in limits)
    assert 0 < limits["cull_idle_timeout"] <= 600
    assert 0 < limits["max_kernels"] <= 10
    assert 0 < limits["max_gigabytes"] <= 16


def test_memory_is_limited_and_a_lower_limit_is_kept():
    code = """
import resource
from xraylib.app import limit_memory
limit_memory(4 * 10**9)
print(resource.getrlimit(resource.RLIMIT_AS)[0])
resource.setrlimit(resource.RLIMIT_AS, (3 * 10**9, 3 * 10**9))
limit_memory(4 * 10**9)
print(resource.getrlimit(resource.RLIMIT_AS)[0])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.split() == ["4000000000", "3000000000"]
    assert limit_memory.__doc__
    assert resource.getrlimit(resource.RLIMIT_AS)[0] != 4 * 10**9, "not in this process"


@pytest.fixture(scope="module")
def app():
    """A server that ends idle kernels at once: its port and the number of its process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    manager = "--LimitedKernelManager"
    command = [
        *(sys.executable, "-m", "xraylib.app", "--no-browser", f"--port={port}"),
        f"{manager}.max_kernels=1",
        f"{manager}.cull_idle_timeout=15",
        f"{manager}.cull_interval=1",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL) as server:
        for _ in range(300):
            time.sleep(0.2)
            with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
                break
        yield port, server.pid
        server.terminate()


def get(port, host=None):
    """Ask for the page; the status of the answer."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/")
    if host:
        request.add_header("Host", host)
    try:
        with urllib.request.urlopen(request, timeout=100) as answer:
            answer.read()
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.slow
def test_a_name_that_points_to_this_machine_is_refused(app):
    port, _ = app
    for host in ("evil.example.com", f"evil.example.com:{port}", "10.0.0.1", "localhost.example"):
        assert get(port, host) == 403


@pytest.mark.slow
def test_kernels_are_few_limited_and_end_when_nobody_is_there(app):
    port, process = app
    assert get(port, f"localhost:{port}") == 200
    assert get(port) == 503
    deadline = time.monotonic() + 200
    while get(port) == 503:
        assert time.monotonic() < deadline, "an idle kernel was not ended"
        time.sleep(1)
    assert "8000000000" in Path(f"/proc/{process}/limits").read_text()
