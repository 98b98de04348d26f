"""Set Keras up for the device of this machine: backend, precision, distribution.

Keras chooses its backend when it is first imported, so `use` comes before any import of `keras`,
`xraylib.training.networks` or `xraylib.training.train`. This module imports none of them at its
head.

Under glibc the two variables `MALLOC_MMAP_MAX_=0` and `MALLOC_TRIM_THRESHOLD_=2147483647`, set
before Python starts as the Makefile does, let freed memory be used again. Without them TensorFlow's
convolutions take 5,800 page faults per image, and nearly half of the CPU time of `scratch-cnn`.
"""

import importlib.util
import os
import platform
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from xraylib.errors import NotFoundError, OperationFailedError

DEVICES = ("auto", "cpu", "gpu", "tpu")
BACKENDS = ("tensorflow", "jax")
PRECISIONS = ("float32", "mixed_bfloat16")

_FIXES = {
    "tpu": (
        "in Colab choose Runtime > Change runtime type > TPU, and use JAX with "
        "`pip install 'jax[tpu]'`"
    ),
    "gpu": "use a machine with a GPU and install the extra `gpu` (JAX with CUDA)",
}


@dataclass(frozen=True)
class Accelerator:
    """What training runs on; `str()` of it is the one line to log.

    Attributes
    ----------
    kind
        `cpu`, `gpu` or `tpu`.
    name
        The device's own name.
    count
        How many devices share a batch.
    backend
        `tensorflow` or `jax`.
    precision
        The name of Keras's dtype policy.
    processes
        How many processes the devices belong to.
    """

    kind: str
    name: str
    count: int
    backend: str
    precision: str
    processes: int = 1

    def __str__(self) -> str:
        share = "one device" if self.count == 1 else f"each batch shared by {self.count} devices"
        if self.processes > 1:
            share += f" of {self.processes} processes"
        return f"{self.kind.upper()} {self.name} · {self.backend} · {self.precision} · {share}"


def use(
    device: str = "auto",
    backend: str | None = None,
    devices: int | None = None,
    precision: str | None = None,
    *,
    job: bool = False,
) -> Accelerator:
    """Set Keras up for a device, and seed its random generators with 0.

    Parameters
    ----------
    device
        `auto` takes a TPU before a GPU before the CPU. Another name is taken or refused.
    backend
        By default `KERAS_BACKEND` if it is set; else JAX on a TPU, in a job, or if JAX alone sees
        the GPU; else TensorFlow.
    devices
        How many devices share each batch (JAX only). By default all of an accelerator, and one
        CPU. More CPUs than one are simulated, for tests.
    precision
        By default `mixed_bfloat16` on a TPU, which multiplies in it, and elsewhere `float32`.
        Heads always end in float32.
    job
        Wait for the other processes of the job (see `in_job`), and share each batch among all their
        devices.

    Raises
    ------
    NotFoundError
        If the device, backend or precision is not there, or Keras already runs on another backend.
    """
    if backend is None:
        backend = os.environ.get("KERAS_BACKEND") or ("jax" if job else _default_backend(device))
    _check(device, backend, devices, precision)
    if job and backend != "jax":
        raise NotFoundError(
            "a job of several processes trains under JAX only. Fix: ask for the backend jax."
        )
    os.environ["KERAS_BACKEND"] = backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if backend == "jax":
        _prepare_jax(device, devices)
    _load_keras()
    if job:
        _join()
    find_devices = _jax_devices if backend == "jax" else _tensorflow_devices
    kind, name, count = find_devices(device, devices)
    precision = precision or ("mixed_bfloat16" if kind == "tpu" else "float32")
    _set_up_keras(backend, kind, count, precision)
    return Accelerator(kind, name, count, backend, precision, process()[1])


def _check(device: str, backend: str, devices: int | None, precision: str | None) -> None:
    """Refuse what does not exist, is not installed, or cannot be changed any more."""
    asked = (
        ("device", device, DEVICES),
        ("backend", backend, BACKENDS),
        ("precision", precision, PRECISIONS),
    )
    for option, value, choices in asked:
        if value is not None and value not in choices:
            raise NotFoundError(
                f"there is no {option} {value!r}. Fix: choose one of {', '.join(choices)}."
            )
    if devices is not None and devices < 1:
        raise NotFoundError(f"{devices} devices were asked for. Fix: ask for one or more.")
    if importlib.util.find_spec(backend) is None:
        raise NotFoundError(f"the backend {backend} is not installed. Fix: pip install {backend}.")
    running = sys.modules["keras"].backend.backend() if "keras" in sys.modules else backend
    if running != backend:
        raise NotFoundError(
            f"Keras already runs on {running}, not {backend}. Fix: restart the kernel and call "
            "devices.use() before anything imports keras."
        )


# Keras's own variables for a job of several processes.
_ADDRESS = "KERAS_DISTRIBUTION_JOB_ADDRESSES"
_COUNT = "KERAS_DISTRIBUTION_NUM_PROCESSES"
_INDEX = "KERAS_DISTRIBUTION_PROCESS_ID"


def in_job() -> bool:
    """Whether Keras's variables say that this process trains together with others.

    `KERAS_DISTRIBUTION_JOB_ADDRESSES` is `host:port` of the first process, or empty on a TPU slice,
    which knows it. `KERAS_DISTRIBUTION_NUM_PROCESSES` is their number, and
    `KERAS_DISTRIBUTION_PROCESS_ID` counts them from 0.

    Jobs were run on loopback with simulated CPUs only, never on a TPU slice or several GPU hosts.
    """
    return _ADDRESS in os.environ


def process() -> tuple[int, int]:
    """Return the number of this process in its job and their count: (0, 1) outside a job."""
    jax = sys.modules.get("jax")
    if jax is None or not jax.distributed.is_initialized():
        return 0, 1
    return jax.process_index(), jax.process_count()


def agree(statement: str) -> None:
    """Wait for every process of the job; `OperationFailedError` unless all state the same."""
    import numpy as np

    checksum = np.array([zlib.crc32(statement.encode())], np.uint32)
    if len(np.unique(gather(checksum))) > 1:
        raise OperationFailedError(
            f"the processes of the job see different runs (here: {statement}). "
            "Fix: let XRAYLIB_RUNS and XRAYLIB_REPORTS name one folder that all processes see."
        )


def gather(values: Any) -> Any:
    """Join the arrays of one shape that the processes of the job hold, in their order."""
    if process()[1] == 1:
        return values
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(values).reshape(-1, *values.shape[1:])


def local_predict(model: Any) -> Callable[[Any], Any]:
    """Return a function that predicts a batch with a Keras model on this process alone.

    In a job Keras's own prediction would take the batch for a share of one, and return no process
    the whole.
    """
    if process()[1] == 1:
        return model.predict_on_batch
    import jax
    import numpy as np

    variables = model.trainable_variables, model.non_trainable_variables
    values = [[np.asarray(variable.value) for variable in group] for group in variables]
    values = jax.device_put(values, jax.local_devices()[0])
    compiled = _compile(model)
    return lambda pixels: compiled(*values, pixels)[0]


@lru_cache(maxsize=1)
def _compile(model: Any) -> Callable[..., Any]:
    import jax

    return jax.jit(partial(model.stateless_call, training=False))


# Timeouts: for all processes to join, and for a silent one to count as lost.
JOIN_SECONDS = 120
SILENCE_SECONDS = 30


def _join() -> None:
    """Join the job. If a process does not come, or dies later, JAX ends this one with SIGABRT.

    `keras.distribution.initialize` reads the same variables, and cannot set the timeouts.
    """
    import jax

    if jax.distributed.is_initialized():
        return
    # The service would swallow SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            os.environ[_ADDRESS].split(",")[0] or None,
            int(os.environ[_COUNT]) if _COUNT in os.environ else None,
            int(os.environ[_INDEX]) if _INDEX in os.environ else None,
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=SILENCE_SECONDS,
            shutdown_timeout_seconds=SILENCE_SECONDS,
        )
    except (ValueError, IndexError, RuntimeError) as error:
        raise NotFoundError(
            f"the job cannot be joined ({error}). Fix: for two processes set {_ADDRESS}=host:port "
            f"of the first process, {_COUNT}=2 and {_INDEX}=0 or 1."
        ) from error


def _default_backend(device: str) -> str:
    if device == "tpu" or (device == "auto" and _tpu_present()):
        return "jax"
    if importlib.util.find_spec("tensorflow") is None:
        return "jax"
    plugins = ("jax_cuda12_plugin", "jax_cuda13_plugin")
    jax_sees_gpu = any(importlib.util.find_spec(plugin) for plugin in plugins)
    return "jax" if device in ("auto", "gpu") and jax_sees_gpu else "tensorflow"


def _tpu_present() -> bool:
    """Whether the machine has the device files of a TPU; this starts no backend."""
    device_file = Path("/dev/accel0").exists() or Path("/dev/vfio/0").exists()
    return device_file and importlib.util.find_spec("libtpu") is not None


def _prepare_jax(device: str, devices: int | None) -> None:
    """Set the environment variables that JAX reads only at import."""
    if device == "cpu":
        # Otherwise its arrays would go to an accelerator of the machine.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if device in ("auto", "cpu") and devices and not _tpu_present():
        os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(devices))
        # XLA's thread pool has one thread per core. Devices that wait for each other would fill a
        # small pool for ever, and leave no thread for the devices they wait for.
        os.environ.setdefault("NPROC", str(max(4 * devices, os.cpu_count() or 1)))


def _load_keras() -> None:
    """Import Keras and, where it is installed, TensorFlow, without the messages of the latter.

    Keras's preprocessing layers load TensorFlow under any backend.
    """
    if "tensorflow" in sys.modules:
        return
    with silent_stderr():
        importlib.import_module("keras")
        if importlib.util.find_spec("tensorflow"):
            importlib.import_module("tensorflow")


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Send file descriptor 2 nowhere, where C++ code writes whatever Python or variables say.

    Python exceptions are raised as usual.
    """
    try:
        stderr = os.dup(2)
    except OSError:  # it is closed already
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def litert_interpreter(content: bytes, threads: int = 2) -> Any:
    """Make the content of a LiteRT file an `Interpreter` whose tensors are allocated.

    Raises
    ------
    NotFoundError
        LiteRT is not installed.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter  # type: ignore[import-untyped]
    except ImportError as error:
        raise NotFoundError(
            "LiteRT is not on this machine. Fix: pip install ai-edge-litert; where it has no "
            "build, name a trained run with --model."
        ) from error
    interpreter = Interpreter(model_content=content, num_threads=threads)
    with silent_stderr():  # where LiteRT says that it chose its usual CPU backend
        interpreter.allocate_tensors()
    return interpreter


def _jax_devices(device: str, devices: int | None) -> tuple[str, str, int]:
    import jax

    try:
        visible = jax.devices() if device == "auto" else jax.devices(device)
    except RuntimeError as error:
        raise _missing(device, "jax") from error
    platform_name = visible[0].platform
    kind = "gpu" if platform_name in ("cuda", "rocm") else platform_name
    count = devices or (1 if kind == "cpu" else len(visible))
    processes = process()[1]
    if processes > 1:
        count = len(visible)
        local = jax.local_device_count()
        if devices not in (None, local) or count != processes * local:
            raise NotFoundError(
                "in a job every process brings all its devices, as many as the others. "
                "Fix: set no number of devices."
            )
    if count > len(visible):
        raise NotFoundError(
            f"{count} {kind} devices were asked for, JAX shows {len(visible)}. Fix: ask for fewer, "
            "or, to simulate CPUs, restart and set JAX_NUM_CPU_DEVICES before JAX is imported."
        )
    return kind, _cpu_name() if kind == "cpu" else visible[0].device_kind, count


def _tensorflow_devices(device: str, devices: int | None) -> tuple[str, str, int]:
    if devices not in (None, 1):
        raise NotFoundError(
            "several devices share a batch under JAX only. Fix: pass backend='jax' as well."
        )
    import tensorflow as tf

    cards = tf.config.list_physical_devices("GPU")
    if device == "tpu" or (device == "gpu" and not cards):
        raise _missing(device, "tensorflow")
    if cards and device != "cpu":
        details = tf.config.experimental.get_device_details(cards[0])
        return "gpu", details.get("device_name", "GPU"), 1
    if cards:
        tf.config.set_visible_devices([], "GPU")
    return "cpu", _cpu_name(), 1


def _missing(device: str, backend: str) -> NotFoundError:
    fix = _FIXES.get(device, "install jax")
    return NotFoundError(f"{backend} sees no {device.upper()} on this machine. Fix: {fix}.")


def _set_up_keras(backend: str, kind: str, count: int, precision: str) -> None:
    import keras

    keras.config.set_dtype_policy(precision)
    keras.utils.set_random_seed(0)
    if backend == "tensorflow":
        import tensorflow as tf

        # Otherwise a run that was interrupted and resumed could end with other scores.
        tf.config.experimental.enable_op_determinism()
        return
    import jax

    distribution = None
    if count > 1:
        names = [f"{kind}:{device.id}" for device in jax.devices(kind)[:count]]
        # Each process reads its own share of a batch, see `train.Batches`.
        distribution = keras.distribution.DataParallel(devices=names, auto_shard_dataset=False)
    keras.distribution.set_distribution(distribution)


def _cpu_name() -> str:
    """Return the model of the CPU and the number of cores that this process may use."""
    information = Path("/proc/cpuinfo")
    text = information.read_text() if information.exists() else ""
    named = re.search(r"^model name\s*:\s*(.*\S)", text, re.MULTILINE)
    model = named[1] if named else platform.processor() or platform.machine()
    cores = os.cpu_count()
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    return f"{model}, {cores} cores"
