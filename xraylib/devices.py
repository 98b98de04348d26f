"""Which device is there, and how Keras is to use it: backend, precision, distribution, memory.

Keras chooses its backend when it is first imported, so `use` comes before any import of `keras`,
`xraylib.training.networks` or `xraylib.training.train`. This module imports none of them at its head.
"""

import ctypes
import importlib.util
import os
import platform
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from xraylib.errors import NotFoundError, OperationFailedError

DEVICES = ("auto", "cpu", "gpu", "tpu")
BACKENDS = ("tensorflow", "jax")
PRECISIONS = ("float32", "mixed_bfloat16")

_FIXES = {
    "tpu": "in Colab choose Runtime > Change runtime type > TPU, and use JAX with `pip install 'jax[tpu]'`",
    "gpu": "use a machine with a GPU and install the extra `gpu` (JAX with CUDA)",
}


@dataclass(frozen=True)
class Accelerator:
    """What training runs on; `str()` of it is the one line to log.

    `kind` is cpu, gpu or tpu; `count` devices of `processes` processes share a batch; `precision`: Keras's policy.
    """

    kind: str
    name: str
    count: int
    backend: str
    precision: str
    processes: int = 1

    def __str__(self) -> str:
        share = "one device" if self.count == 1 else f"each batch shared by {self.count} devices"
        share += f" of {self.processes} processes" if self.processes > 1 else ""
        return f"{self.kind.upper()} {self.name} · {self.backend} · {self.precision} · {share}"


def use(
    device: str = "auto",
    backend: str | None = None,
    devices: int | None = None,
    precision: str | None = None,
    *,
    job: bool = False,
) -> Accelerator:
    """Set Keras up for the device that is there, or for the one asked for, and seed its generators with 0.

    `device="auto"` takes a TPU before a GPU before the CPU; another name is taken or refused with `NotFoundError`. `backend`
    is by default `KERAS_BACKEND` where it is set, JAX on a TPU, in a job or where only JAX sees the GPU, TensorFlow
    elsewhere. `devices` share each batch (`keras.distribution.DataParallel`, JAX only), by default all of an
    accelerator and one CPU; more CPUs than one are simulated, for testing. With `job` the call waits for the other
    processes (see `in_job`), and all devices of all of them share each batch. `precision` is by default mixed_bfloat16
    on a TPU, float32 elsewhere; heads end in float32 all the same.
    """
    backend = (
        backend or os.environ.get("KERAS_BACKEND") or ("jax" if job else _default_backend(device))
    )
    asked = (
        ("device", device, DEVICES),
        ("backend", backend, BACKENDS),
        ("precision", precision, PRECISIONS),
    )
    for what, value, known in asked:
        if value is not None and value not in known:
            raise NotFoundError(
                f"there is no {what} {value!r}. Fix: choose one of {', '.join(known)}."
            )
    if devices is not None and devices < 1:
        raise NotFoundError(f"{devices} devices were asked for. Fix: ask for one or more.")
    if importlib.util.find_spec(backend) is None:
        raise NotFoundError(f"the backend {backend} is not installed. Fix: pip install {backend}.")
    if "keras" in sys.modules and (running := sys.modules["keras"].backend.backend()) != backend:
        fix = "restart the kernel and call devices.use() before anything imports keras"
        raise NotFoundError(f"Keras already runs on {running}, not {backend}. Fix: {fix}.")
    os.environ["KERAS_BACKEND"] = backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if backend == "jax":
        _prepare_jax(device, devices)
    elif job:
        raise NotFoundError(
            "a job of several processes trains under JAX only. Fix: ask for the backend jax."
        )
    steady_memory()
    _load_keras()
    if job:
        _join()
    find = _jax_devices if backend == "jax" else _tensorflow_devices
    kind, name, count = find(device, devices)
    precision = precision or ("mixed_bfloat16" if kind == "tpu" else "float32")
    _set_up_keras(backend, kind, count, precision)
    return Accelerator(kind, name, count, backend, precision, process()[1])


_ADDRESS, _COUNT, _INDEX = (
    f"KERAS_DISTRIBUTION_{end}" for end in ("JOB_ADDRESSES", "NUM_PROCESSES", "PROCESS_ID")
)


def in_job() -> bool:
    """Whether Keras's variables say that this process is one of several that train together.

    `KERAS_DISTRIBUTION_JOB_ADDRESSES` is `host:port` of the first process, or empty on a TPU slice, which knows it;
    then `KERAS_DISTRIBUTION_NUM_PROCESSES` and `KERAS_DISTRIBUTION_PROCESS_ID`, from 0.
    """
    return _ADDRESS in os.environ


def process() -> tuple[int, int]:
    """Which process of the job this is, and of how many: (0, 1) where it is alone."""
    jax = sys.modules.get("jax")
    return (
        (jax.process_index(), jax.process_count())
        if jax and jax.distributed.is_initialized()
        else (0, 1)
    )


def agree(what: str) -> None:
    """Wait for every process of the job; `OperationFailedError` unless all say the same."""
    import numpy as np

    if len(np.unique(gather(np.array([zlib.crc32(what.encode())], np.uint32)))) > 1:
        fix = "let XRAYLIB_RUNS and XRAYLIB_REPORTS name one folder that all processes see"
        raise OperationFailedError(
            f"the processes of the job see different runs (here: {what}). Fix: {fix}."
        )


def gather(part: Any) -> Any:
    """Join what the processes of the job hold, arrays of one shape, in their order."""
    if process()[1] == 1:
        return part
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(part).reshape(-1, *part.shape[1:])


def answers(model: Any) -> Callable[[Any], Any]:
    """What answers a batch with this Keras model on this process.

    In a job Keras's own prediction would take it for this process's part of one, and give no process the whole.
    """
    if process()[1] == 1:
        return model.predict_on_batch
    import jax
    import numpy as np

    groups = model.trainable_variables, model.non_trainable_variables
    values = [[np.asarray(variable.value) for variable in group] for group in groups]
    values = jax.device_put(values, jax.local_devices()[0])
    return lambda films: _compiled(model)(*values, films)[0]


@lru_cache(maxsize=1)
def _compiled(model: Any) -> Callable[..., Any]:
    import jax

    return jax.jit(partial(model.stateless_call, training=False))


# Seconds until the others have come, and until one that says nothing is taken for dead.
JOIN_SECONDS, SILENCE_SECONDS = 120, 30


def _join() -> None:
    """Join the job. Where a process does not come, or dies later, JAX ends this one with SIGABRT."""
    import jax

    if jax.distributed.is_initialized():
        return
    jax.config.update("jax_enable_preemption_service", False)  # it would swallow SIGTERM
    try:
        count, index = (
            int(os.environ[name]) if name in os.environ else None for name in (_COUNT, _INDEX)
        )
        jax.distributed.initialize(
            os.environ[_ADDRESS].split(",")[0] or None,
            count,
            index,
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=SILENCE_SECONDS,
            shutdown_timeout_seconds=SILENCE_SECONDS,
        )
    except (ValueError, IndexError, RuntimeError) as error:
        fix = f"{_ADDRESS}=host:port of the first process, {_COUNT}=2 and {_INDEX}=0 or 1, for two"
        raise NotFoundError(f"the job cannot be joined ({error}). Fix: {fix}.") from error


def steady_memory() -> None:
    """Let glibc keep the memory that it has, until the process ends; does nothing on other systems.

    TensorFlow's convolutions free and map large buffers at every step: 5,800 page faults an image, and 45% of the CPU
    time in the kernel. With this it is one fault an image.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: no buffer in a mapping of its own, which goes when it is freed
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: what is free at the top of the heap stays there


def _default_backend(device: str) -> str:
    if device == "tpu" or (device == "auto" and _tpu_present()):
        return "jax"
    if importlib.util.find_spec("tensorflow") is None:
        return "jax"
    jax_here = any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))
    return "jax" if device in ("auto", "gpu") and jax_here else "tensorflow"


def _tpu_present() -> bool:
    """Whether the machine shows a TPU by its device files, without starting a backend."""
    shown = Path("/dev/accel0").exists() or Path("/dev/vfio/0").exists()
    return shown and importlib.util.find_spec("libtpu") is not None


def _prepare_jax(device: str, devices: int | None) -> None:
    """Say to JAX what it listens to only before it is imported."""
    if device == "cpu":
        # Otherwise its arrays would go to the accelerator that is there all the same.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if device in ("auto", "cpu") and devices and not _tpu_present():
        os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(devices))
        # XLA's thread pool has one thread a core. Devices that wait for each other fill a small one for good, and no
        # thread is left for those they wait for.
        os.environ.setdefault("NPROC", str(max(4 * devices, os.cpu_count() or 1)))


def _load_keras() -> None:
    """Import Keras with file descriptor 2 closed to what TensorFlow's C++ side writes while it loads.

    No setting silences that. Python's own errors come through. Keras's preprocessing layers load TensorFlow under any
    backend where it is installed, so it is loaded here.
    """
    if "tensorflow" in sys.modules:
        return
    sys.stderr.flush()
    stderr = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        importlib.import_module("keras")
        if importlib.util.find_spec("tensorflow"):
            importlib.import_module("tensorflow")
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _jax_devices(device: str, devices: int | None) -> tuple[str, str, int]:
    import jax

    try:
        found = jax.devices() if device == "auto" else jax.devices(device)
    except RuntimeError as error:
        raise _missing(device, "jax") from error
    kind = {"cuda": "gpu", "rocm": "gpu"}.get(found[0].platform, found[0].platform)
    count = devices or (1 if kind == "cpu" else len(found))
    if process()[1] > 1:
        count = len(found)
        if (
            devices not in (None, jax.local_device_count())
            or count != process()[1] * jax.local_device_count()
        ):
            raise NotFoundError(
                "of a job every process brings all its devices, as many as the others. Fix: set no number."
            )
    if count > len(found):
        fix = "ask for fewer, or, to simulate CPUs, restart and set JAX_NUM_CPU_DEVICES before JAX is imported"
        raise NotFoundError(
            f"{count} {kind} devices were asked for, JAX shows {len(found)}. Fix: {fix}."
        )
    return kind, _cpu_name() if kind == "cpu" else found[0].device_kind, count


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
    if backend == "jax":
        import jax

        names = [f"{kind}:{device.id}" for device in jax.devices(kind)[:count]]
        # Each process reads its own part of a batch, see `train.Batches`.
        shared = (
            keras.distribution.DataParallel(devices=names, auto_shard_dataset=False)
            if count > 1
            else None
        )
        keras.distribution.set_distribution(shared)
    else:
        import tensorflow as tf

        # Without it a run that was cut and resumed need not end with the scores of an unbroken one.
        tf.config.experimental.enable_op_determinism()


def _cpu_name() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    model, information = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if information.exists():
        names = [
            line for line in information.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0].split(":", 1)[1].strip() if names else model
    return f"{model}, {cores} cores"
