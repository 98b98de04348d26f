"""`make prediction`: how it alters files, and what it counts of the answers."""

import importlib.util
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import xraylib
from xraylib.datasets import images
from xraylib.paths import ROOT


@pytest.fixture(scope="module")
def prediction():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("prediction", ROOT / "benchmarks/prediction.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["prediction"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["prediction"]


@pytest.fixture
def gray():
    """A wide image, dark at the left with a bright square, that every alteration changes."""
    ramp = np.linspace(20, 200, 120)[None] + np.linspace(0, 30, 80)[:, None]
    ramp[30:40, 20:30] = 230
    return Image.fromarray(ramp.astype(np.uint8))


def table(status, answer, probability):
    return pd.DataFrame({"status": status, "answer": answer, "probability": probability})


def test_answers_are_compared_file_by_file(prediction):
    normal, pneumonia, undecided = "looks normal", "looks like pneumonia", "undecided"
    ok = "ok"
    before = table(
        [ok, ok, ok, ok, ok, "abstained", ok],
        [normal, normal, pneumonia, undecided, normal, "", normal],
        [0.1, 0.2, 0.9, 0.5, 0.1, np.nan, 0.1],
    )
    after = table(
        [ok, ok, ok, ok, "abstained", ok, "error"],
        [normal, pneumonia, undecided, normal, "", pneumonia, ""],
        [0.15, 0.9, 0.5, 0.2, np.nan, 0.99, np.nan],
    )
    assert prediction.compare(before, after) == {
        "n": 7,
        "answered": 5,
        "refused": 1,
        "errors": 1,
        "both": 4,
        "changed": 1,
        "undecided": 2,
        "largest_difference": 0.7,
    }
    back = prediction.compare(after, before)
    assert (back["changed"], back["undecided"], back["refused"], back["errors"]) == (1, 2, 1, 0)


def test_every_alteration_writes_a_file_that_is_read_and_differs(prediction, gray, tmp_path):
    names = set()
    unchanged = np.asarray(gray)
    for number, alteration in enumerate(prediction.alterations()):
        rng = np.random.default_rng(0)
        file = alteration.write(gray, tmp_path / f"copy{number}", rng)
        read = images.read_gray(file)
        names.add((alteration.kind, alteration.strength))
        if alteration.kind.startswith("bits of 16"):
            # A file says how many of its bits are used, by its values if by nothing else.
            np.testing.assert_allclose(read, unchanged, atol=1)
        else:
            assert read.shape != unchanged.shape or (read != unchanged).any(), alteration
    assert len(names) == len(prediction.alterations())
    expected = {alteration.kind: alteration.refused for alteration in prediction.alterations()}
    refused = {kind for kind, is_refused in expected.items() if is_refused}
    assert refused == {"turned", "tilted far", "inverted", "one half"}


def altered(prediction, gray, folder, kind, strength):
    for alteration in prediction.alterations():
        if (alteration.kind, alteration.strength) == (kind, strength):
            file = alteration.write(gray, folder / "copy", np.random.default_rng(0))
            return np.asarray(Image.open(file))
    raise AssertionError(f"no {kind} {strength}")


def test_alterations_are_what_their_names_say(prediction, gray, tmp_path):
    def get(kind, strength=""):
        return altered(prediction, gray, tmp_path, kind, strength).astype(int)

    values = np.asarray(gray).astype(int)
    assert max(get("resized, longer side", "512 px").shape) == 512
    assert get("enlarged", "x2").shape == (160, 240)
    assert get("noise", "sigma 5").std() == pytest.approx(np.hypot(values.std(), 5), rel=0.02)
    np.testing.assert_array_equal(get("turned", "90°"), np.rot90(values))
    np.testing.assert_array_equal(get("turned", "270°"), np.rot90(values, 3))
    np.testing.assert_array_equal(get("inverted"), 255 - values)
    np.testing.assert_array_equal(get("mirrored"), values[:, ::-1])
    np.testing.assert_array_equal(get("one half", "right"), values[:, 60:])
    np.testing.assert_array_equal(get("one half", "upper"), values[:40])
    framed = get("white border", "10%")
    assert (
        framed.shape == (96, 144) and (framed[:8] == 255).all() and (framed[:, -12:] == 255).all()
    )
    np.testing.assert_array_equal(framed[8:-8, 12:-12], values)
    assert get("bars above and below", "10%").shape == (96, 120)
    assert get("bars left and right", "10%").shape == (80, 144)
    collimated = get("collimated", "5%")
    assert collimated.shape == values.shape and collimated[:4].max() == 0
    np.testing.assert_array_equal(collimated[4:-4, 6:-6], values[4:-4, 6:-6])
    for bits in (13, 16):
        stored = get("bits of 16, TIFF", str(bits))
        np.testing.assert_array_equal(stored, values * 257 // 2 ** (16 - bits))
    assert get("contrast", "x0.5").std() == pytest.approx(values.std() / 2, rel=0.02)
    assert get("gamma", "0.7").mean() > values.mean() > get("gamma", "1.4").mean()


def test_altered_copies_are_answered_in_the_order_of_their_images(
    prediction, gray, tmp_path, monkeypatch
):
    files = []
    for number in range(3):
        files.append(str(tmp_path / f"{number}.png"))
        gray.point([max(0, value - 40 * number) for value in range(256)]).save(files[-1])

    def predict(paths):
        means = [images.read_gray(path).mean() for path in paths]
        wide = [images.read_gray(path).shape[1] > 100 for path in paths]
        answers = np.where(np.array(means) > 90, "looks like pneumonia", "looks normal")
        return table(np.where(wide, "ok", "abstained"), answers, np.array(means) / 255)

    monkeypatch.setattr(xraylib, "predict", predict)
    measured = prediction.measure_alterations(files).set_index(["kind", "strength"])
    assert (measured["n"] == 3).all()
    assert measured.loc[("mirrored", ""), ["answered", "changed", "refused"]].tolist() == [3, 0, 0]
    assert measured.loc[("mirrored", ""), "largest_difference"] == 0
    assert measured.loc[("turned", "90°"), ["answered", "refused"]].tolist() == [0, 3]
    assert measured.loc[("inverted", ""), "changed"] > 0
    by_strength = measured.reset_index().assign(model="0a1b2c3d4e5f")
    summed = prediction.summarise_alterations(by_strength).set_index("kind").to_dict("index")
    assert summed["turned"]["refused"] == measured.loc["turned", "refused"].sum()
    assert {row["model"] for row in summed.values()} == {"0a1b2c3d4e5f"}
    assert summed["turned"]["expected"] == "refused"
    assert summed["noise"]["n"] == 6 and summed["noise"]["strengths"] == "sigma 2; sigma 5"
    differences = measured.loc["contrast", "largest_difference"]
    assert summed["contrast"]["largest_difference"] == differences.max()


def test_images_to_alter_are_of_both_classes_and_of_as_many_patients(prediction, phantom):
    files = prediction.some_of_each_class(phantom, 5)
    rows = phantom.set_index("path").loc[files]
    assert rows["label"].tolist() == [0] * 5 + [1] * 5
    assert rows["patient"].nunique() == 10
    assert files == prediction.some_of_each_class(phantom, 5)
