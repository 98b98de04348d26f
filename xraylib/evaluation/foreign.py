"""Networks of others, read from TFLite and ONNX files as functions from images to scores.

Such a file has arrays and a list of operations. No code from it is run. Formats that can contain
code, such as pickles and Keras's Lambda layers, are refused.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, softmax

from xraylib.devices import litert_interpreter
from xraylib.errors import InvalidDataError, NotFoundError
from xraylib.storage import sha256_bytes

# How grey values 0…255 become the network's input: what is subtracted, then what divides.
# `imagenet` is the normalisation of torchvision's networks.
SCALES: dict[str, tuple[Any, Any]] = {
    "0..1": (0.0, 255.0),
    "-1..1": (127.5, 127.5),
    "0..255": (0.0, 1.0),
    "imagenet": (
        255 * np.array([0.485, 0.456, 0.406], np.float32),
        255 * np.array([0.229, 0.224, 0.225], np.float32),
    ),
}
# How the network ends: with probabilities, or with log-odds (of several outputs, a softmax's).
ENDINGS = ("probability", "logit")
# Views of larger images would take too long, and too much memory.
_SIZES = range(8, 1025)

_CALL = "call `xraylib.evaluation.views.evaluate_function` with a function that runs it"
_CONVERT = (
    "convert it, with Keras by `model.export(FILE, format='litert')`, with PyTorch by "
    f"`torch.onnx.export`; or {_CALL}"
)
_EXPORT = (
    "export it with one output for one image of fixed size, float32 (1, rows, columns, channels) "
    f"or (1, channels, rows, columns), of 1 or 3 channels; or {_CALL}"
)

# From one float32 image with its batch dimension to the values of the outputs.
Run = Callable[[np.ndarray], list[np.ndarray]]


@dataclass(frozen=True)
class ForeignNetwork:
    """A network of others, to be called with images.

    Attributes
    ----------
    name, sha256 : str
        The file's name without suffix, and its SHA-256.
    shape : tuple of int
        Of its input without the batch: (rows, columns, channels), or channels first. The channels
        are 1, or 3 of the same grey values.
    scale : str
        A key of `SCALES`.
    column : int
        Which of its outputs is pneumonia.
    ending : str
        One of `ENDINGS`.
    run : callable
        From one float32 image with its batch dimension to the outputs.
    """

    name: str
    sha256: str
    shape: tuple[int, ...]
    scale: str
    column: int
    ending: str
    run: Run

    @property
    def size(self) -> int:
        """Height and width of its images in pixels."""
        return self.shape[1]

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Return P(pneumonia), float64 `(n,)`, of uint8 images `(n, size, size, 1)`."""
        return np.array([self._probability(self._values(image)) for image in pixels])

    def _values(self, image: np.ndarray) -> np.ndarray:
        """Return the output, `(k,)`, for a uint8 image `(size, size, 1)`."""
        subtracted, divisor = SCALES[self.scale]
        channels_first = self.shape[0] != self.size
        repeated = np.repeat(image.astype(np.float32), min(self.shape), axis=2)
        scaled = (repeated - subtracted) / divisor
        ordered = scaled.transpose(2, 0, 1) if channels_first else scaled
        outputs = self.run(np.ascontiguousarray(ordered[None], np.float32))
        return np.atleast_1d(np.squeeze(np.asarray(outputs[0], np.float64)))

    def _probability(self, values: np.ndarray) -> float:
        """Return P(pneumonia) from the output's values `(k,)`."""
        if not np.isfinite(values).all():
            fix = "check --scale, and that the file is a trained network"
            raise InvalidDataError(f"{self.name} gives values that are no numbers. Fix: {fix}.")
        if self.ending == "logit":
            return float(expit(values[0]) if len(values) == 1 else softmax(values)[self.column])
        if values.min() < 0 or values.max() > 1:
            outside = values[np.argmax(np.abs(values - 0.5))]
            fix = f"if it ends without an activation: --output {self.column}/logit"
            raise InvalidDataError(f"{self.name} gives {outside:.3g}, no probability. Fix: {fix}.")
        return float(values[self.column])


def load_network(
    file: Path,
    *,
    scale: str | None = None,
    output: tuple[int, str] | None = None,
) -> ForeignNetwork:
    """Read a network of others, and run it once on a black image.

    Parameters
    ----------
    file : Path
        A TFLite (`.tflite`) or ONNX (`.onnx`) file with one input and one output.
    scale : str
        A key of `SCALES`: no file says how its input is scaled.
    output : (int, str), optional
        Which output is pneumonia, and one of `ENDINGS`; by default the only one, a probability.

    Raises
    ------
    NotFoundError
        There is no such file, or what reads it is not installed.
    InvalidDataError
        The file is no such network, its input is no image, its output no score, or an option is
        missing or contradicts the file.
    """
    content = _read(file)
    with _named(file):
        shape, run = _READERS[file.suffix.lower()](content)
    _check_shape(file, shape)
    if scale not in SCALES:
        options = ", ".join(f"--scale={name}" for name in SCALES)
        raise InvalidDataError(
            f"{file}: no file says how its input is scaled. Fix: give one of {options}."
        )
    if scale == "imagenet" and 3 not in shape:
        raise InvalidDataError(
            f"{file} takes 1 channel, and --scale imagenet is of 3. Fix: give another."
        )
    column, ending = output or (0, "probability")
    network = ForeignNetwork(
        file.stem, sha256_bytes(content), shape[1:], scale, column, ending, run
    )
    black = np.zeros((1, network.size, network.size, 1), np.uint8)
    with _named(file):
        values = network._values(black[0])
    if values.ndim != 1:
        raise InvalidDataError(f"{file} gives an array {values.shape}, no score. Fix: {_CALL}.")
    if column >= len(values) or (output is None and len(values) > 1):
        fix = "say which is pneumonia, from 0, and how it ends, such as --output 1/probability"
        raise InvalidDataError(f"{file} gives {len(values)} values. Fix: {fix}.")
    network(black)
    return network


def _read(file: Path) -> bytes:
    """Read a file of a format that holds no code."""
    if file.suffix.lower() not in _READERS:
        problem = f"{file} is neither .tflite nor .onnx, and other formats can contain code"
        raise InvalidDataError(f"{problem}. Fix: {_CONVERT}.")
    if not file.is_file():
        raise NotFoundError(f"there is no file {file}. Fix: give the path of a network.")
    try:
        return file.read_bytes()
    except OSError as error:
        fix = "make it readable for this user"
        raise InvalidDataError(f"{file} cannot be read ({error.strerror}). Fix: {fix}.") from error


@contextmanager
def _named(file: Path) -> Iterator[None]:
    """Name the file where a library fails to read or to run it."""
    try:
        yield
    except NotFoundError:
        raise
    except Exception as error:  # the exceptions of the two libraries have no common base
        reason = " ".join(str(error).split())[:200]
        raise InvalidDataError(
            f"{file} is no network that can be run ({reason}). Fix: export it again."
        ) from error


def _check_shape(file: Path, shape: tuple[Any, ...]) -> None:
    """Refuse what is no square image of one or three channels, or several images at once."""
    side = shape[-2] if len(shape) > 1 else None
    layouts = [(side, side, 1), (side, side, 3), (1, side, side), (3, side, side)]
    several = isinstance(shape[0], int) and shape[0] > 1
    if side not in _SIZES or shape[1:] not in layouts or several:
        raise InvalidDataError(f"{file} takes {shape}. Fix: {_EXPORT}.")


def _read_tflite(content: bytes) -> tuple[tuple[Any, ...], Run]:
    """Return the shape of the input, open sides as -1, and a function that runs the network."""
    interpreter = litert_interpreter(content)
    (given,) = interpreter.get_input_details()
    (returned,) = interpreter.get_output_details()

    def run(image: np.ndarray) -> list[np.ndarray]:
        interpreter.set_tensor(given["index"], image)
        interpreter.invoke()
        return [interpreter.get_tensor(returned["index"])]

    return tuple(given["shape_signature"].tolist()), run


def _read_onnx(content: bytes) -> tuple[tuple[Any, ...], Run]:
    """Return the shape of the input, open sides by their names, and what runs the network."""
    try:
        import onnxruntime  # type: ignore[import-not-found]
    except ImportError as error:
        raise NotFoundError(
            "onnxruntime is not installed, which runs .onnx files. Fix: pip install onnxruntime."
        ) from error

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 4  # errors come as exceptions
    session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    (_,) = session.get_outputs()
    return tuple(given.shape), lambda image: session.run(None, {given.name: image})


_READERS = {".tflite": _read_tflite, ".onnx": _read_onnx}
