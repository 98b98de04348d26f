"""What the packaged model makes of the outputs of its network."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import run_python
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit

from xraylib import packaged, paths, prediction
from xraylib.datasets import lung_finder
from xraylib.errors import InvalidDataError
from xraylib.training.predictor import Predictor

BOX = np.array([0.25, 0.25, 0.5, 0.125])
LIMITS = {
    "input": 32,
    "calibration": {"method": "platt", "slope": 2.0, "intercept": 0.5},
    "prevalence": 0.5,
    "normal_up_to": -1.0,
    "pneumonia_from": 2.0,
    "gate_limit": 0.6,
    "domain_limit": 3.0,
}
IMAGE = np.zeros((1, 224, 224, 1), np.uint8)


def network_of(log_odds=0.0, gate=None, domain=0.0):
    """A network that has seen what it says."""
    kinds = list(packaged.GATE)
    shares = {packaged.OK: 0.9} if gate is None else gate
    scores = np.log([shares.get(kind, 1e-6) for kind in kinds])

    def network(views, lungs):
        assert views.shape == (2, 32, 32, 1)
        assert lungs.shape == (6,)
        heat = np.zeros((1, 4, 4))
        heat[0, 0, 0] = 5
        outputs = {"log_odds": [log_odds], "gate": [scores], "domain": [[domain]], "heat": heat}
        return {name: np.array(value, np.float32) for name, value in outputs.items()}

    return network


def model_of(limits=None, **outputs):
    limits = LIMITS | (limits or {})
    network = network_of(**outputs)
    return packaged.PackagedModel("m", "0" * 64, limits, network, limits["prevalence"])


@pytest.fixture(autouse=True)
def lungs(monkeypatch):
    """The lungs are in `BOX`, unless a test says otherwise."""
    found = {"box": BOX, "area": 0.2}

    def find(pixels):
        boxes = np.tile(found["box"], (len(pixels), 1))
        area = np.full(len(pixels), found["area"])
        return lung_finder.LungBoxes(boxes, area, np.full(len(pixels), 0.9))

    monkeypatch.setattr(lung_finder, "find", find)
    return found


def test_the_probability_is_calibrated():
    (answer,) = model_of(log_odds=1.0).answer(IMAGE)
    assert answer["log_odds"] == pytest.approx(2.5)
    assert answer["probability"] == pytest.approx(expit(2.5))
    assert answer["status"] == "ok"
    assert answer["message"] == ""


@pytest.mark.parametrize(
    ("log_odds", "expected"),
    [
        (-0.80, packaged.NORMAL),
        (-0.70, packaged.UNDECIDED),
        (0.70, packaged.UNDECIDED),
        (0.80, packaged.PNEUMONIA),
    ],
)
def test_limits_lie_on_the_calibrated_log_odds(log_odds, expected):
    # -1 = 2 x -0.75 + 0.5 and 2 = 2 x 0.75 + 0.5.
    (answer,) = model_of(log_odds=log_odds).answer(IMAGE)
    assert answer["answer"] == expected


@given(
    log_odds=st.floats(-8, 8, width=32),
    prevalence=st.floats(0.001, 0.999),
    normal_up_to=st.floats(-3, 0),
    pneumonia_from=st.floats(0, 3),
)
def test_no_answer_contradicts_its_probability(log_odds, prevalence, normal_up_to, pneumonia_from):
    limits = {"normal_up_to": normal_up_to, "pneumonia_from": pneumonia_from}
    model = replace(model_of(limits), prevalence=prevalence)
    decided = model._decide(log_odds)
    probability = expit(model._shifted(log_odds))
    if decided == packaged.NORMAL:
        assert probability <= 0.5
        assert log_odds < normal_up_to
    if decided == packaged.PNEUMONIA:
        assert probability >= 0.5
        assert log_odds > pneumonia_from


def test_a_rarer_disease_shifts_the_odds_and_never_turns_an_answer_round():
    usual = model_of(log_odds=0.8)
    rare = replace(usual, prevalence=0.01)
    (before,) = usual.answer(IMAGE)
    (after,) = rare.answer(IMAGE)
    expected = logit(before["probability"]) + logit(0.01) - logit(0.5)
    assert logit(after["probability"]) == pytest.approx(expected)
    assert before["answer"] == packaged.PNEUMONIA
    assert after["answer"] == packaged.UNDECIDED
    common = replace(usual, prevalence=0.99)
    assert common.answer(IMAGE)[0]["answer"] == packaged.PNEUMONIA


@pytest.mark.parametrize("kind", [kind for kind in packaged.GATE if kind != packaged.OK])
def test_the_gate_names_what_is_wrong_and_its_fix(kind):
    (answer,) = model_of(gate={packaged.OK: 0.3, kind: 0.7}, log_odds=9.0).answer(IMAGE)
    assert answer["status"] == "abstained"
    assert answer["reason"] == kind
    assert answer["message"] == packaged.GATE[kind]
    assert "Fix: " in answer["message"]


def test_the_gate_refuses_below_its_limit():
    below = model_of(gate={packaged.OK: 0.59, "tilted": 0.41}).answer(IMAGE)[0]
    assert (below["status"], below["reason"]) == ("abstained", packaged.OK)
    assert "Fix: " in below["message"]
    above = model_of(gate={packaged.OK: 0.61, "tilted": 0.39}).answer(IMAGE)[0]
    assert (above["status"], above["reason"], above["message"]) == ("ok", "", "")


@pytest.mark.parametrize(
    ("box", "area"),
    [
        (np.full(4, np.nan), 0.0),
        (np.array([0.4, 0.4, 0.1, 0.1]), 0.2),
        (np.array([0.1, 0.1, 0.0, 0.8]), 0.2),
        (BOX, 0.04),
    ],
)
def test_without_lungs_there_is_no_answer(lungs, box, area):
    lungs["box"] = box
    lungs["area"] = area
    (answer,) = model_of().answer(IMAGE)
    assert answer["status"] == "abstained"
    assert answer["message"].startswith("no lungs are found")
    assert "Fix: " in answer["message"]


def test_the_heat_map_lies_where_the_lungs_are():
    heat = model_of().answer(IMAGE)[0]["heat_map"]
    assert heat.shape == (224, 224)
    assert heat.max() == 1
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    # The hottest of 4 x 4 cells is the first one of the enlarged box.
    assert 50 <= row <= 68
    assert 108 <= column <= 120
    assert (heat[:50] == 0).all()
    assert (heat[:, :107] == 0).all()
    assert (heat[175:] == 0).all()


def test_the_views_are_the_enlarged_box_and_the_whole():
    rows = np.tile(np.arange(224, dtype=np.uint8)[:, None], (1, 224))[None, ..., None]
    crop, whole = packaged.two_views(rows, BOX[None], 32)[0, ..., 0]
    assert crop[0].mean() == pytest.approx(224 * (0.25 - 0.05 * 0.5), abs=3)
    assert crop[-1].mean() == pytest.approx(224 * (0.75 + 0.05 * 0.5), abs=3)
    assert whole[0].mean() < 5
    assert whole[-1].mean() > 218


# What becomes of it in a row.


def row_of(model, monkeypatch, header=None, threshold=None):
    monkeypatch.setattr(prediction.dicom, "read_header", lambda file: header or {})
    image = paths.ROOT / "data" / "examples" / "normal.jpeg"
    (row,) = prediction.answer_files([image], model, threshold)
    return row


def test_a_row_has_an_answer_and_no_threshold(monkeypatch):
    row = row_of(model_of(log_odds=3.0), monkeypatch)
    assert row["answer"] == packaged.PNEUMONIA
    assert row["prevalence"] == 0.5
    assert (row["label"], row["threshold"], row["notice"]) == ("", "", "")
    row = row_of(model_of(log_odds=3.0), monkeypatch, threshold=0.999)
    assert (row["answer"], row["label"], row["threshold"]) == (
        packaged.PNEUMONIA,
        "normal",
        0.999,
    )


def test_another_population_is_noticed_and_strictly_refused(monkeypatch):
    inside = model_of(domain=2.9)
    outside = model_of({"elsewhere": {"images": 9, "all": 0.81, "AP": 0.7, "PA": 0.6}}, domain=3.1)
    assert row_of(inside, monkeypatch)["notice"] == ""
    row = row_of(outside, monkeypatch)
    assert row["status"] == "ok"
    for words in ("unlike the training images", "0.81", "AP 0.70", "PA 0.60", "limits were not"):
        assert words in row["notice"]
    strict = prediction.configure(outside, strict_domain=True)
    refused = row_of(strict, monkeypatch)
    assert refused["status"] == "abstained"
    assert refused["message"] == row["notice"]
    assert np.isnan(refused["probability"])
    assert (refused["answer"], refused["label"], refused["notice"]) == ("", "", "")
    assert row_of(prediction.configure(inside, strict_domain=True), monkeypatch)["status"] == "ok"


@pytest.mark.parametrize(("age", "is_adult"), [(18.0, False), (19.0, True), (70.0, True)])
def test_an_adult_by_the_header_is_noticed_but_the_age_is_not_copied(monkeypatch, age, is_adult):
    row = row_of(model_of(), monkeypatch, {"patient_age": age})
    assert ("adult" in row["notice"]) == is_adult
    assert "70" not in row["notice"]


def test_a_header_of_no_frontal_chest_is_refused(monkeypatch):
    row = row_of(model_of(), monkeypatch, {"modality": "MR"})
    assert row["status"] == "abstained"
    assert "modality" in row["message"]


def test_a_prevalence_is_a_share_and_of_the_packaged_model():
    model = model_of()
    assert prediction.configure(model, 0.1).prevalence == 0.1
    assert prediction.configure(model) == model
    for share in (0, 1, -0.1, float("nan")):
        with pytest.raises(InvalidDataError, match=r"Fix: give a share"):
            prediction.configure(model, share)

    class Run:
        name = "a trained run"
        left_out = Predictor.left_out

    with pytest.raises(InvalidDataError, match=r"a trained run .*Fix: take the packaged model"):
        prediction.configure(Run(), 0.1)


def test_how_often_it_was_right_is_one_line():
    right = {
        packaged.NORMAL: {"n": 200, "share": 0.985},
        packaged.PNEUMONIA: {"n": 380, "share": 0.9912},
    }
    line = model_of({"right": right}).record
    assert "98.5% of 200" in line
    assert "99.1% of 380" in line
    assert "\n" not in line
    assert model_of().record == ""


def test_the_packaged_files_hold_what_answers_need():
    model = packaged.load_packaged()
    assert model.limits["normal_up_to"] <= 0 <= model.limits["pneumonia_from"]
    assert 0 < model.prevalence < 1
    outputs = model.network(
        views=np.zeros((2, model.limits["input"], model.limits["input"], 1), np.float32),
        lungs=np.zeros(6, np.float32),
    )
    assert outputs["gate"].shape == (1, len(packaged.GATE))
    assert model.left_out == {}


def test_answering_is_loaded_without_scikit_learn():
    code = "import sys, xraylib.prediction; print('sklearn' in sys.modules)"
    assert run_python(code, cwd=paths.ROOT).strip() == "False"
