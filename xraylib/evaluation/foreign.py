"""Networks of others, read from TFLite and ONNX files as functions from images to scores.

Such a file has arrays and a list of operations. No code from it is run. Formats that can contain
code, such as pickles and Keras's Lambda layers, are refused.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, softmax

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
# How the network ends: with a probability, with log-odds, or with probabilities that sum to 1.
ENDINGS = ("sigmoid", "logit", "softmax")
# Outputs of quantised networks are steps of 1/256, so that many classes do not sum to 1 exactly.
_SUM_TOLERANCE = 0.05
# Views of larger images would take too long, and too much memory.
_SIZES = range(8, 1025)
_CHANNELS = (1, 3)
# An input of (rows, columns, channels) or (channels, rows, columns), without the batch.
_IMAGE_DIMENSIONS = 3

_CALL = "call `xraylib.evaluation.views.evaluate_function` with a function that runs it"
# Formats that can contain code, or any operation of a framework.
_REFUSED = {".keras", ".h5", ".hdf5", ".pb", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib"}
_CONVERT = (
    "convert it, with Keras by `model.export(FILE, format='litert')`, with PyTorch by "
    f"`torch.onnx.export`; or {_CALL}"
)


@dataclass(frozen=True)
class _Graph:
    """A file's network: its input without the batch (None: any number), and how it is run.

    `build` takes the input's three numbers and returns a function from one float32 image to the
    values of the output.
    """

    dimensions: tuple[int | None, ...]
    build: Callable[[tuple[int, ...]], Callable[[np.ndarray], np.ndarray]]


@dataclass(frozen=True)
class ForeignNetwork:
    """A network of others, to be called with images.

    Attributes
    ----------
    name, sha256 : str
        The file's name without suffix, and its SHA-256.
    size : int
        Height and width of its images in pixels.
    channels : int
        1, or 3 of the same grey values.
    channels_first : bool
        Whether its input is NCHW, as PyTorch's is, and not NHWC.
    scale : str
        A key of `SCALES`.
    column : int
        Which of its outputs is pneumonia.
    ending : str
        One of `ENDINGS`.
    run : callable
        From one float32 image with its batch dimension to the output's values `(k,)`.
    """

    name: str
    sha256: str
    size: int
    channels: int
    channels_first: bool
    scale: str
    column: int
    ending: str
    run: Callable[[np.ndarray], np.ndarray]

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Return P(pneumonia), float64 `(n,)`, of uint8 images `(n, size, size, 1)`."""
        return np.array([self._probability(self.run(self._input(image))) for image in pixels])

    def _input(self, image: np.ndarray) -> np.ndarray:
        """Scale a uint8 image `(size, size, 1)` to the network's input."""
        subtracted, divisor = SCALES[self.scale]
        repeated = np.repeat(image.astype(np.float32), self.channels, axis=2)
        scaled = (repeated - subtracted) / divisor
        ordered = scaled.transpose(2, 0, 1) if self.channels_first else scaled
        return np.ascontiguousarray(ordered[None], np.float32)

    def _probability(self, values: np.ndarray) -> float:
        """Return P(pneumonia) from the output's values `(k,)`."""
        if not np.isfinite(values).all():
            fix = "check --scale, and that the file is a trained network"
            raise InvalidDataError(f"{self.name} gives values that are no numbers. Fix: {fix}.")
        if self.ending == "logit":
            return float(expit(values[0]) if len(values) == 1 else softmax(values)[self.column])
        fix = f"if it ends without an activation: --output {self.column}/logit"
        if values.min() < 0 or values.max() > 1:
            outside = values[np.argmax(np.abs(values - 0.5))]
            raise InvalidDataError(f"{self.name} gives {outside:.3g}, no probability. Fix: {fix}.")
        if self.ending == "softmax" and abs(values.sum() - 1) > _SUM_TOLERANCE:
            other = f"; if each output is a probability: --output {self.column}/sigmoid"
            problem = f"{self.name} gives outputs that sum to {values.sum():.3g} and not to 1"
            raise InvalidDataError(f"{problem}. Fix: {fix}{other}.")
        return float(values[self.column])


def load_network(
    file: Path,
    *,
    scale: str | None = None,
    size: int | None = None,
    channels: int | None = None,
    output: tuple[int, str] | None = None,
) -> ForeignNetwork:
    """Read a network of others, and run it once on a black image.

    Parameters
    ----------
    file : Path
        A TFLite (`.tflite`) or ONNX (`.onnx`) file with one input and one output.
    scale : str
        A key of `SCALES`: no file says how its input is scaled.
    size, channels : int, optional
        Of the input, where the file leaves them open.
    output : (int, str), optional
        Which output is pneumonia, and one of `ENDINGS`; by default the only one, a sigmoid. Several
        outputs without activation are those of a softmax.

    Raises
    ------
    NotFoundError
        There is no such file, or what reads it is not installed.
    InvalidDataError
        The file is no such network, its input is no image, its output no score, or an option is
        missing or contradicts the file.
    """
    content = _read(file)
    read_graph = {".tflite": _read_tflite, ".onnx": _read_onnx}[file.suffix.lower()]
    graph = read_graph(file, content)
    size, channels, channels_first = _image_format(file, graph.dimensions, size, channels)
    if scale is None or scale not in SCALES:
        options = ", ".join(f"--scale={name}" for name in SCALES)
        raise InvalidDataError(
            f"{file}: no file says how its input is scaled. Fix: give one of {options}."
        )
    if scale == "imagenet" and channels != len(SCALES[scale][0]):
        raise InvalidDataError(
            f"{file} takes {channels} channel, and --scale imagenet is of 3. Fix: give another."
        )
    shape = (channels, size, size) if channels_first else (size, size, channels)
    run = graph.build(shape)
    column, ending = _output(file, len(_first_values(file, run, shape)), output)
    network = ForeignNetwork(
        name=file.stem,
        sha256=sha256_bytes(content),
        size=size,
        channels=channels,
        channels_first=channels_first,
        scale=scale,
        column=column,
        ending=ending,
        run=run,
    )
    network(np.zeros((1, size, size, 1), np.uint8))
    return network


def _read(file: Path) -> bytes:
    """Read a file of a format that holds no code."""
    suffix = file.suffix.lower()
    if suffix in _REFUSED:
        problem = f"{file} is not read, because a {suffix} file can contain code"
        raise InvalidDataError(f"{problem}. Fix: {_CONVERT}.")
    if suffix not in (".tflite", ".onnx"):
        raise InvalidDataError(f"{file} is neither .tflite nor .onnx. Fix: {_CONVERT}.")
    if not file.is_file():
        raise NotFoundError(f"there is no file {file}. Fix: give the path of a network.")
    try:
        return file.read_bytes()
    except OSError as error:
        fix = "make it readable for this user"
        raise InvalidDataError(f"{file} cannot be read ({error.strerror}). Fix: {fix}.") from error


def _image_format(
    file: Path, dimensions: tuple[int | None, ...], size: int | None, channels: int | None
) -> tuple[int, int, bool]:
    """Return size, channels and whether these come first, from the file and from the options."""
    shown = "(" + ", ".join("any" if side is None else str(side) for side in dimensions) + ")"
    if len(dimensions) != _IMAGE_DIMENSIONS:
        raise InvalidDataError(f"{file} takes {shown} and no images. Fix: {_CALL}.")
    channels_first = _are_channels_first(dimensions, default=file.suffix.lower() == ".onnx")
    count, *sides = dimensions if channels_first else dimensions[::-1]
    return (
        _only(file, "--size", {*sides, size}, shown, _SIZES),
        _only(file, "--channels", {count, channels}, shown, _CHANNELS),
        channels_first,
    )


def _are_channels_first(dimensions: tuple[int | None, ...], default: bool) -> bool:
    """Tell NCHW from NHWC by which end is a number of channels, or is left open."""
    first, _, last = dimensions
    for possible in (_CHANNELS, (None,)):
        if (first in possible) != (last in possible):
            return first in possible
    return default


def _only(
    file: Path, option: str, numbers: set[int | None], shown: str, allowed: Collection[int]
) -> int:
    """Return the one number that file and option give."""
    given = sorted(number for number in numbers if number is not None)
    if not given:
        raise InvalidDataError(f"{file} takes {shown} and does not say more. Fix: give {option}.")
    if len(given) > 1:
        written = " and ".join(map(str, given))
        fix = f"leave {option} out; for images that are not square {_CALL}"
        raise InvalidDataError(f"{file} takes {shown}: {option} is {written}. Fix: {fix}.")
    if given[0] not in allowed:
        raise InvalidDataError(
            f"{file} takes {shown}: {option} is {given[0]}, which no image here has. Fix: {_CALL}."
        )
    return given[0]


def _first_values(
    file: Path, run: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]
) -> np.ndarray:
    """Run the network once, and check that it gives a list of values."""
    values = run(np.zeros((1, *shape), np.float32))
    if values.ndim != 1 or not len(values):
        raise InvalidDataError(f"{file} gives an array {values.shape}, no score. Fix: {_CALL}.")
    return values


def _output(file: Path, count: int, output: tuple[int, str] | None) -> tuple[int, str]:
    """Check which output is pneumonia; by default it is the only one."""
    if output is None and count > 1:
        fix = "say which is pneumonia, from 0, and how it ends, such as --output 1/softmax"
        raise InvalidDataError(f"{file} gives {count} values. Fix: {fix}.")
    column, ending = output or (0, "sigmoid")
    if column >= count:
        raise InvalidDataError(f"{file} gives {count} values, from 0. Fix: give a lower --output.")
    return column, ending


def _read_tflite(file: Path, content: bytes) -> _Graph:
    try:
        from ai_edge_litert.interpreter import Interpreter  # type: ignore[import-untyped]
    except ImportError as error:
        raise NotFoundError(
            "LiteRT is not installed, which runs .tflite files. Fix: pip install ai-edge-litert."
        ) from error
    # Of a file that begins otherwise LiteRT says nothing that helps.
    if content[4:8] != b"TFL3":
        raise _no_network(file, "TFLite", "its first bytes are another format's")
    try:
        interpreter = Interpreter(model_content=content, num_threads=2)
        inputs = interpreter.get_input_details()
        outputs = interpreter.get_output_details()
    except (RuntimeError, ValueError) as error:
        raise _no_network(file, "TFLite", error) from error
    _check_one_each(file, len(inputs), len(outputs))
    signature = inputs[0].get("shape_signature", inputs[0]["shape"])

    def build(shape: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray]:
        try:
            interpreter.resize_tensor_input(inputs[0]["index"], (1, *shape))
            interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise _no_network(file, "TFLite", error) from error

        def run(image: np.ndarray) -> np.ndarray:
            interpreter.set_tensor(inputs[0]["index"], _quantised(image, inputs[0]))
            try:
                interpreter.invoke()
            except RuntimeError as error:
                raise _no_network(file, "TFLite", error) from error
            return _values(_dequantised(interpreter.get_tensor(outputs[0]["index"]), outputs[0]))

        return run

    return _Graph(_without_batch(file, signature), build)


def _quantised(image: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    """Bring an image to the type of a TFLite input, by its scale and zero point if it has some."""
    if np.issubdtype(details["dtype"], np.floating):
        return image.astype(details["dtype"])
    step, zero = details["quantization"]
    limits = np.iinfo(details["dtype"])
    steps = np.rint(image / step + zero) if step else np.rint(image)
    return np.clip(steps, limits.min, limits.max).astype(details["dtype"])


def _dequantised(values: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    step, zero = details["quantization"]
    if np.issubdtype(values.dtype, np.floating) or not step:
        return values
    return (values.astype(np.float64) - zero) * step


def _read_onnx(file: Path, content: bytes) -> _Graph:
    try:
        import onnxruntime  # type: ignore[import-not-found]
    except ImportError as error:
        raise NotFoundError(
            "ONNX Runtime is not installed, which runs .onnx files. Fix: pip install onnxruntime."
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 4  # errors come as exceptions
    try:
        session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base
        raise _no_network(file, "ONNX", error) from error
    inputs = session.get_inputs()
    _check_one_each(file, len(inputs), len(session.get_outputs()))
    if inputs[0].type != "tensor(float)":
        taken = inputs[0].type
        raise InvalidDataError(f"{file} takes {taken}, not tensor(float). Fix: {_CALL}.")

    def build(shape: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray]:
        def run(image: np.ndarray) -> np.ndarray:
            try:
                return _values(session.run(None, {inputs[0].name: image})[0])
            except Exception as error:
                raise _no_network(file, "ONNX", error) from error

        return run

    return _Graph(_without_batch(file, inputs[0].shape), build)


def _check_one_each(file: Path, inputs: int, outputs: int) -> None:
    if (inputs, outputs) != (1, 1):
        numbers = f"{inputs} inputs and {outputs} outputs"
        raise InvalidDataError(f"{file} has {numbers}, not one of each. Fix: {_CALL}.")


def _without_batch(file: Path, shape: Any) -> tuple[int | None, ...]:
    """Return an input's shape without its batch; what the file leaves open is None."""
    sides = [int(side) if isinstance(side, int | np.integer) else -1 for side in shape]
    if sides and sides[0] > 1:
        fix = f"convert it for one image or for any number, or {_CALL}"
        raise InvalidDataError(f"{file} takes {sides[0]} images at once. Fix: {fix}.")
    return tuple(side if side > 0 else None for side in sides[1:])


def _values(output: np.ndarray) -> np.ndarray:
    """Return the output of one image as `(k,)`; an output of more dimensions stays as it is."""
    values = np.squeeze(np.asarray(output, dtype=np.float64))
    return values[None] if values.ndim == 0 else values


def _no_network(file: Path, kind: str, error: Exception | str) -> InvalidDataError:
    reason = " ".join(str(error).split())[:200]
    return InvalidDataError(
        f"{file} is no {kind} network that can be run ({reason}). Fix: export it again."
    )
