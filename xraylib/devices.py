"""Which device is there, and how Keras is to use it: backend, precision, distribution, memory.

Keras chooses its backend when it is first imported, so `use` comes before any import of `keras`,
`xraylib.training.networks` or `xraylib.training.train`. This module imports none of them at its head.
"""

import ctypes
import importlib.util
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from xraylib.storage import NotFound

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

    `kind` is cpu, gpu or tpu; `count` devices share each batch; `precision` is Keras's dtype policy.
    """

    kind: str
    name: str
    count: int
    backend: str
    precision: str

    def __str__(self) -> str:
        share = "one device" if self.count == 1 else f"each batch shared by {self.count} devices"
        return f"{self.kind.upper()} {self.name} · {self.backend} · {self.precision} · {share}"


def use(
    device: str = "auto", backend: str | None = None, devices: int | None = None, precision: str | None = None
) -> Accelerator:
    """Set Keras up for the device that is there, or for the one asked for, and seed its generators with 0.

    `device="auto"` takes a TPU before a GPU before the CPU; another name is taken or refused with `NotFound`. `backend`
    is by default `KERAS_BACKEND` where it is set, JAX on a TPU or where only JAX sees the GPU, TensorFlow elsewhere.
    `devices` share each batch (`keras.distribution.DataParallel`, JAX only), by default all of an accelerator and one
    CPU; more CPUs than one are simulated, for testing. `precision` is by default mixed_bfloat16 on a TPU, float32
    elsewhere; heads end in float32 all the same.
    """
    backend = backend or os.environ.get("KERAS_BACKEND") or _default_backend(device)
    asked = ("device", device, DEVICES), ("backend", backend, BACKENDS), ("precision", precision, PRECISIONS)
    for what, value, known in asked:
        if value is not None and value not in known:
            raise NotFound(f"there is no {what} {value!r}. Fix: choose one of {', '.join(known)}.")
    if devices is not None and devices < 1:
        raise NotFound(f"{devices} devices were asked for. Fix: ask for one or more.")
    if importlib.util.find_spec(backend) is None:
        raise NotFound(f"the backend {backend} is not installed. Fix: pip install {backend}.")
    if "keras" in sys.modules and (running := sys.modules["keras"].backend.backend()) != backend:
        fix = "restart the kernel and call devices.use() before anything imports keras"
        raise NotFound(f"Keras already runs on {running}, not {backend}. Fix: {fix}.")
    os.environ["KERAS_BACKEND"] = backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if backend == "jax":
        _prepare_jax(device, devices)
    steady_memory()
    _load_keras()
    find = _jax_devices if backend == "jax" else _tensorflow_devices
    kind, name, count = find(device, devices)
    precision = precision or ("mixed_bfloat16" if kind == "tpu" else "float32")
    _set_up_keras(backend, kind, count, precision)
    return Accelerator(kind, name, count, backend, precision)


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
    if count > len(found):
        fix = "ask for fewer, or, to simulate CPUs, restart and set JAX_NUM_CPU_DEVICES before JAX is imported"
        raise NotFound(f"{count} {kind} devices were asked for, JAX shows {len(found)}. Fix: {fix}.")
    return kind, _cpu_name() if kind == "cpu" else found[0].device_kind, count


def _tensorflow_devices(device: str, devices: int | None) -> tuple[str, str, int]:
    if devices not in (None, 1):
        raise NotFound("several devices share a batch under JAX only. Fix: pass backend='jax' as well.")
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


def _missing(device: str, backend: str) -> NotFound:
    fix = _FIXES.get(device, "install jax")
    return NotFound(f"{backend} sees no {device.upper()} on this machine. Fix: {fix}.")


def _set_up_keras(backend: str, kind: str, count: int, precision: str) -> None:
    import keras

    keras.config.set_dtype_policy(precision)
    keras.utils.set_random_seed(0)
    if backend == "jax":
        names = [f"{kind}:{i}" for i in range(count)]
        shared = keras.distribution.DataParallel(devices=names) if count > 1 else None
        keras.distribution.set_distribution(shared)
    else:
        import tensorflow as tf

        # Without it a run that was cut and resumed need not end with the scores of an unbroken one.
        tf.config.experimental.enable_op_determinism()


def _cpu_name() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    model, information = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if information.exists():
        names = [line for line in information.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    return f"{model}, {cores} cores"
