"""Networks of others: TFLite files that TensorFlow wrote, and ONNX files."""

import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, softmax

from xraylib import cli, commands
from xraylib.datasets import images
from xraylib.errors import InvalidDataError, NotFoundError
from xraylib.evaluation import foreign, views

# GlobalAveragePool, Flatten and Gemm of (n, 1, 28, 28): log-odds of 2 * mean - 0.5. Written with
# the package `onnx`, which is not needed to read it.
ONNX = bytes.fromhex(
    "08083a97010a190a01781201702211476c6f62616c41766572616765506f6f6c0a0f0a0170120166"
    "2207466c617474656e0a120a01660a01570a0142120179220447656d6d1201672a0f080108011001"
    "4201574a04000000402a0d080110014201424a04000000bf5a1c0a017812170a15080112110a0312"
    "016e0a0208010a02081c0a02081c62140a0179120f0a0d080112090a0312016e0a02080142040a00"
    "100d"
)


def write_tflite(file, function, shape):
    """Convert a function of one float32 tensor; returns the file."""
    import tensorflow as tf

    signature = tf.TensorSpec(shape, tf.float32)
    concrete = tf.function(function, input_signature=[signature]).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
    file.write_bytes(converter.convert())
    return file


@pytest.fixture(scope="module")
def files(tmp_path_factory, accelerator):
    """TFLite files: a probability, log-odds of two classes, and what is no score."""
    import tensorflow as tf

    def upper(x):
        return tf.reduce_mean(x[:, :14], axis=[1, 2, 3])

    def two_logits(x):
        means = tf.reduce_mean(x, axis=[1, 2])
        return tf.stack([-means[:, 0], means[:, 0]], axis=1)

    folder = tmp_path_factory.mktemp("networks")
    return SimpleNamespace(
        folder=folder,
        probability=write_tflite(
            folder / "probability.tflite", lambda x: upper(x)[:, None], (1, 28, 28, 1)
        ),
        logits=write_tflite(folder / "logits.tflite", two_logits, (1, 28, 28, 3)),
        map=write_tflite(folder / "map.tflite", lambda x: x * 2, (1, 28, 28, 1)),
        batch=write_tflite(folder / "batch.tflite", lambda x: upper(x), (4, 28, 28, 1)),
        flat=write_tflite(folder / "flat.tflite", lambda x: x[:, :1], (1, 784)),
    )


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (5, 28, 28, 1), dtype=np.uint8)


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        ("0..1", lambda gray: gray / 255),
        ("-1..1", lambda gray: gray / 127.5 - 1),
        ("0..255", lambda gray: gray),
    ],
)
def test_grey_values_are_scaled_as_declared(files, pixels, scale, expected):
    network = foreign.load_network(files.logits, scale=scale, output=(1, "logit"))
    means = expected(pixels.astype(np.float64)).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(network(pixels), expit(2 * means), rtol=1e-4)


def test_imagenet_scaling_is_by_channel(files, pixels):
    network = foreign.load_network(files.logits, scale="imagenet", output=(1, "logit"))
    first = (pixels.mean(axis=(1, 2, 3)) / 255 - 0.485) / 0.229
    np.testing.assert_allclose(network(pixels), expit(2 * first), rtol=1e-3)
    with pytest.raises(InvalidDataError, match=r"takes 1 channel, .*imagenet.* Fix: "):
        foreign.load_network(files.probability, scale="imagenet")


def test_shape_and_channels_are_read_from_the_file(files, pixels):
    network = foreign.load_network(files.probability, scale="0..1")
    assert (network.size, network.shape) == (28, (28, 28, 1))
    upper = pixels[:, :14].mean(axis=(1, 2, 3)) / 255
    np.testing.assert_allclose(network(pixels), upper, rtol=1e-5)


def test_which_output_is_pneumonia_and_how_it_ends(files, pixels):
    values = np.array([[0.2, 0.8]])
    for output, expected in (
        ((0, "probability"), 0.2),
        ((1, "probability"), 0.8),
        ((0, "logit"), softmax(values[0])[0]),
    ):
        network = foreign.load_network(files.logits, scale="0..1", output=(1, "logit"))
        column, ending = output
        made = foreign.ForeignNetwork(
            **vars(network) | {"column": column, "ending": ending, "run": lambda image: [values]}
        )
        assert made(pixels[:1]) == pytest.approx([expected])
    # Of one output without activation the sigmoid is taken.
    made = foreign.ForeignNetwork(
        **vars(network) | {"column": 0, "ending": "logit", "run": lambda image: [np.array([1.5])]}
    )
    assert made(pixels[:1]) == pytest.approx([expit(1.5)])


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("probability", {"scale": None}, r"how its input is scaled.*--scale=-1\.\.1"),
        ("probability", {"scale": "0..2"}, "give one of --scale=0..1"),
        ("probability", {"output": (1, "probability")}, "gives 1 values"),
        ("probability", {"scale": "0..255", "run": 200}, "no probability.*--output 0/logit"),
        ("logits", {}, "gives 2 values.*--output 1/probability"),
        ("logits", {"output": (1, "probability"), "run": 200}, "no probability.*--output 1/logit"),
        ("map", {}, r"gives an array \(28, 28\), no score"),
        ("batch", {}, r"takes \(4, 28, 28, 1\).*one image"),
        ("flat", {}, r"takes \(1, 784\).*evaluate_function"),
    ],
)
def test_what_contradicts_the_file_is_refused_with_a_fix(files, pixels, name, options, said):
    file = getattr(files, name)
    gray = options.pop("run", None) if "run" in options else None
    options = {"scale": "0..1"} | options
    with pytest.raises(InvalidDataError, match=rf"(?s)\w+.*{said}.*") as caught:
        network = foreign.load_network(file, **options)
        network(np.full((1, 28, 28, 1), gray, np.uint8))
    assert str(caught.value).count("Fix: ") == 1 and name in str(caught.value)


@pytest.mark.parametrize("suffix", [".keras", ".h5", ".pt", ".pkl", ".PKL", ".zip", ""])
def test_formats_that_can_contain_code_are_refused_unread(tmp_path, suffix):
    file = tmp_path / f"network{suffix}"
    with pytest.raises(InvalidDataError, match=r"network.* Fix: .*evaluate_function"):
        foreign.load_network(file, scale="0..1")


def test_what_is_no_file_or_no_such_network_is_named(files, tmp_path):
    with pytest.raises(NotFoundError, match=r"there is no file .*nowhere\.tflite\. Fix: "):
        foreign.load_network(tmp_path / "nowhere.tflite", scale="0..1")
    content = files.probability.read_bytes()
    for number, damaged in enumerate((b"", b"hello", content[:200], content[:-40], content[100:])):
        file = tmp_path / f"damaged{number}.tflite"
        file.write_bytes(damaged)
        with pytest.raises(
            InvalidDataError, match=rf"damaged{number}\.tflite is no network that can be run .*Fix:"
        ):
            foreign.load_network(file, scale="0..1")


def test_without_onnx_runtime_the_fix_is_to_install_it(tmp_path, monkeypatch):
    (tmp_path / "a.onnx").write_bytes(ONNX)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(NotFoundError, match=r"Fix: pip install onnxruntime"):
        foreign.load_network(tmp_path / "a.onnx", scale="0..1")


class Session:
    """In place of ONNX Runtime's: the mean of the first row of one image of its shape."""

    shape = ("n", 3, 28, 28)
    seen = None

    def __init__(self, content, options, providers):
        if content == b"torn":
            raise RuntimeError("INVALID_PROTOBUF")

    def get_inputs(self):
        return [SimpleNamespace(name="x", shape=list(self.shape), type="tensor(float)")]

    def get_outputs(self):
        return [None]

    def run(self, names, inputs):
        image = Session.seen = inputs["x"]
        rows_axis = 2 if image.shape[1] in (1, 3) else 1
        return [image.take(0, axis=rows_axis).mean().reshape(1, 1)]


@pytest.fixture
def fake_onnx(monkeypatch, tmp_path):
    runtime = SimpleNamespace(InferenceSession=Session, SessionOptions=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    (tmp_path / "a.onnx").write_bytes(b"any")
    return tmp_path / "a.onnx"


@pytest.mark.parametrize(
    ("shape", "seen"),
    [
        (("n", 3, 28, 28), (1, 3, 28, 28)),
        (("n", 28, 28, 3), (1, 28, 28, 3)),
        ((1, 1, 28, 28), (1, 1, 28, 28)),
    ],
)
def test_layouts_of_onnx_files(fake_onnx, pixels, monkeypatch, shape, seen):
    monkeypatch.setattr(Session, "shape", shape)
    network = foreign.load_network(fake_onnx, scale="0..1")
    scores = network(pixels)
    assert Session.seen.shape == seen and Session.seen.dtype == np.float32
    np.testing.assert_allclose(scores, pixels[:, 0].mean(axis=(1, 2)) / 255, rtol=1e-5)


@pytest.mark.parametrize("shape", [("n", 3, "h", "w"), ("n", 3, 28, 32), (1, 3, 2000, 2000)])
def test_a_side_that_is_open_other_or_too_large_is_refused(fake_onnx, monkeypatch, shape):
    monkeypatch.setattr(Session, "shape", shape)
    with pytest.raises(InvalidDataError, match=r"a\.onnx takes .* Fix: export it .*fixed size"):
        foreign.load_network(fake_onnx, scale="0..1")


def test_a_damaged_onnx_file_is_named(fake_onnx):
    fake_onnx.write_bytes(b"torn")
    with pytest.raises(
        InvalidDataError, match=r"a\.onnx is no network that can be run .*PROTOBUF.* Fix: "
    ):
        foreign.load_network(fake_onnx, scale="0..1")


def test_onnx_runtime_reads_a_real_file(tmp_path, pixels):
    pytest.importorskip("onnxruntime")
    file = tmp_path / "real.onnx"
    file.write_bytes(ONNX)
    network = foreign.load_network(file, scale="0..1", output=(0, "logit"))
    means = pixels.mean(axis=(1, 2, 3)) / 255
    np.testing.assert_allclose(network(pixels), expit(2 * means - 0.5), rtol=1e-5)
    file.write_bytes(ONNX[:90])
    with pytest.raises(InvalidDataError, match=r"real\.onnx is no network that can be run .*Fix: "):
        foreign.load_network(file, scale="0..1")


@pytest.fixture
def framing(small_phantom, reports_here, monkeypatch, capsys):
    """`python -m xraylib framing` in this process: status, lines of stdout and of stderr."""
    monkeypatch.setattr(commands, "_prepare", lambda dataset, *recipes: "phantom")

    def call(*arguments):
        status = cli.main(["framing", *map(str, arguments)])
        captured = capsys.readouterr()
        return status, captured.out.splitlines(), captured.err.splitlines()

    return call


def test_the_command_prints_and_writes_what_the_call_returns(
    framing, files, small_phantom, reports_here
):
    status, out, _ = framing("--model", files.probability, "phantom", "--scale", "0..1")
    assert status == 0
    network = foreign.load_network(files.probability, scale="0..1")
    expected = views.evaluate_function(network, small_phantom, size=28)
    digest = network.sha256[:8]
    file = reports_here / "phantom" / "foreign" / f"probability-{digest}-test.csv"
    written = pd.read_csv(file)
    assert set(written.pop("model_sha256")) == {network.sha256[:12]}
    pd.testing.assert_frame_equal(written, expected, rtol=1e-4, check_dtype=False)
    assert f"{expected['threshold'].iloc[0]:.3f}" in out[0] and "medians" in out[0]
    cropped = expected.set_index("view").loc["rows 0.81"]
    line = next(line for line in out if line.lstrip().startswith("rows 0.81"))
    for metric in ("specificity", "sensitivity", "auc"):
        assert f"{cropped[metric]:.3f} ({cropped[f'{metric}_low']:.3f}" in line
    assert out[-1] == str(file)


def test_a_threshold_and_a_split_are_taken_and_stated(framing, files, small_phantom, reports_here):
    arguments = ("--model", files.probability, "phantom", "--scale=0..1")
    status, out, _ = framing(*arguments, "--threshold", "0.25", "--split", "val")
    validation = (small_phantom["split"] == "val").sum()
    assert status == 0
    assert f"val: {validation} images, pneumonia from 0.250 on (given)" in out[0]
    assert out[-1].endswith("-val.csv")
    written = pd.read_csv(out[-1])
    assert set(written["threshold"]) == {0.25} and set(written["n"]) == {validation}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tiny-cnn-28", "--scale", "0..1"], "--scale goes with --model"),
        (["tiny-cnn-28", "--corruptions"], "--corruptions goes with --model"),
        (["tiny-cnn-28", "--threshold", "0"], "--threshold goes with --model"),
        (["--model", "a.tflite", "phantom", "kermany"], "--model scores one data set"),
        (["--model", "nowhere.tflite", "phantom", "--scale", "0..1"], "there is no file"),
        (["--model", "a.keras", "phantom", "--scale", "0..1"], "can contain code"),
    ],
)
def test_bad_input_is_one_line_with_a_fix(framing, reports_here, arguments, said):
    status, out, err = framing(*arguments)
    assert (status, out, len(err)) == (1, [], 1)
    assert said in err[0] and "Fix: " in err[0]
    assert not reports_here.exists()


@pytest.mark.parametrize("output", ["1", "logit", "-1/logit", "0/relu", "x/logit", "1/"])
def test_an_output_is_an_index_and_an_ending(framing, capsys, output):
    with pytest.raises(SystemExit):
        framing("--model", "a.tflite", "phantom", f"--output={output}")
    assert "INDEX/ENDING" in capsys.readouterr().err
    options = cli._parser().parse_args(["framing", "--model", "a", "b", "--output", "17/logit"])
    assert options.output == (17, "logit")


def test_the_command_knows_every_scale_and_ending():
    for scale in foreign.SCALES:
        for ending in foreign.ENDINGS:
            words = ["--model", "a", "b", f"--scale={scale}", "--output", f"0/{ending}"]
            options = cli._parser().parse_args(["framing", *words])
            assert (options.scale, options.output) == (scale, (0, ending))


def test_pixels_of_a_foreign_network_are_those_that_our_runs_see(files, small_phantom):
    """The same function gives the same score, whoever reads it."""
    network = foreign.load_network(files.probability, scale="0..1")
    rows = np.arange(6)
    whole = images.load_pixels(small_phantom, 224)
    seen = views.resized(whole[rows], 28)
    scores = views.score(lambda pixels: network(views.resized(pixels, 28)), whole, rows)
    np.testing.assert_allclose(scores, seen[:, :14].mean(axis=(1, 2, 3)) / 255, rtol=1e-5)
