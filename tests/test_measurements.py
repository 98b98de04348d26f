"""The tables about the packaged model: each number is checked against one counted by hand."""

import importlib

import numpy as np
import pandas as pd
import pytest

from xraylib import export, packaged, paths

LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1])
GIVEN = [
    *[packaged.NORMAL] * 2,
    packaged.UNDECIDED,
    packaged.PNEUMONIA,
    *[packaged.PNEUMONIA] * 3,
    packaged.NORMAL,
    packaged.UNDECIDED,
    None,
]
PROBABILITY = np.array([0.1, 0.2, 0.4, 0.9, 0.9, 0.8, 0.95, 0.15, 0.5, 0.99])


@pytest.fixture
def measurements(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(str(paths.ROOT / "benchmarks"))
    return importlib.import_module("packaged_model")


def answers_of(given=GIVEN, probability=PROBABILITY):
    rows = []
    for name, value in zip(given, probability, strict=True):
        status = "abstained" if name is None else "ok"
        message = "tilted" if name is None else ""
        rows.append({"status": status, "answer": name, "probability": value, "message": message})
        rows[-1] |= {"reason": message, "is_outside": value > 0.9}
    return rows


def test_how_often_answers_were_right_leaves_out_what_was_not_answered():
    rates = export.right_answers(answers_of(), LABELS)
    assert rates[packaged.NORMAL] == {"n": 3, "share": pytest.approx(2 / 3)}
    assert rates[packaged.PNEUMONIA] == {"n": 4, "share": pytest.approx(3 / 4)}
    nothing = export.right_answers(answers_of([None] * 10), LABELS)
    assert nothing[packaged.NORMAL] == {"n": 0, "share": None}


def test_the_table_of_answers_is_what_is_counted_by_hand(measurements):
    table = measurements.measure_answers(answers_of(), LABELS, np.arange(10).astype(str))
    value = table.set_index("measure")["value"]
    count = table.set_index("measure")["n"]
    assert value["share: looks normal"] == pytest.approx(0.3)
    assert value["share: undecided"] == pytest.approx(0.2)
    assert value["share: looks like pneumonia"] == pytest.approx(0.4)
    assert value["share: abstained"] == pytest.approx(0.1)
    assert value["share: undecided or abstained"] == pytest.approx(0.3)
    assert value["right: looks normal"] == pytest.approx(2 / 3)
    assert count["right: looks normal"] == 3
    assert value["right: looks like pneumonia"] == pytest.approx(3 / 4)
    positive = np.array([name == packaged.PNEUMONIA for name in GIVEN])
    found = positive[LABELS == 1].mean()
    false_alarms = positive[LABELS == 0].mean()
    assert value["share of pneumonias: looks like pneumonia"] == pytest.approx(found)
    assert value["share of normal images: looks like pneumonia"] == pytest.approx(false_alarms)
    assert count["share of pneumonias: undecided"] == (LABELS == 1).sum()
    by_bayes = 0.05 * found / (0.05 * found + 0.95 * false_alarms)
    assert value["right at a prevalence of 5%: looks like pneumonia"] == pytest.approx(by_bayes)
    calm = np.array([name == packaged.NORMAL for name in GIVEN])
    true_calm = 0.8 * calm[LABELS == 0].mean()
    by_bayes = true_calm / (true_calm + 0.2 * calm[LABELS == 1].mean())
    assert value["right at a prevalence of 20%: looks normal"] == pytest.approx(by_bayes)
    answered = PROBABILITY[:9]
    truth = LABELS[:9]
    assert count["Brier score"] == 9
    assert value["Brier score"] == pytest.approx(np.mean((answered - truth) ** 2))
    pairs = np.sign(answered[truth == 1][:, None] - answered[truth == 0][None, :])
    assert value["AUC"] == pytest.approx((pairs + 1).mean() / 2)
    # Ten bins: 0.1 and 0.15 together, 0.9, 0.9 and 0.95 together, the others alone.
    gaps = [0.25 - 1, 0.2, 0.4, 0.5 - 1, 0.8 - 1, 2.75 - 2]
    assert value["expected calibration error"] == pytest.approx(np.abs(gaps).sum() / 9)
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()


class Model:
    """Refuses what is bright, as inverted."""

    def answer(self, pixels):
        rows = []
        for image in pixels:
            is_bright = image.mean() > 127
            reason = "inverted" if is_bright else ""
            status = "abstained" if is_bright else "ok"
            rows.append({"status": status, "message": reason, "reason": reason})
            rows[-1]["is_outside"] = image.mean() > 60
        return rows


def test_the_gate_is_measured_on_changed_images_and_on_others(measurements, monkeypatch):
    monkeypatch.setattr(measurements, "MADE_UP", 2)
    dark = np.full((6, 32, 32, 1), 40, np.uint8)
    dark[:, ::2] = 60
    others = np.full((4, 32, 32, 1), 100, np.uint8)
    owners = np.arange(6).astype(str)
    table = measurements.measure_gate(Model(), dark, owners, others, np.arange(4).astype(str))
    assert list(table) == ["kind", "n", "refused", "low", "high", "reason", "noticed"]
    table = table.set_index("kind")
    assert table.loc["unchanged", "refused"] == 0
    assert table.loc["unchanged", "noticed"] == 0
    assert np.isnan(table.loc["unchanged", "reason"])
    assert table.loc["inverted", "refused"] == 1
    assert table.loc["inverted", "reason"] == 1
    assert table.loc["turned by 180°", "refused"] == 0
    assert table.loc[table.index.str.startswith("another hospital"), "noticed"].tolist() == [1.0]
    assert table.loc["drawn hand", "n"] == 2


def test_both_tables_name_the_model_that_was_measured(
    measurements, phantom, reports_here, monkeypatch
):
    answered = answers_of()
    model = Model()
    model.sha256 = "a" * 64
    model.size = 32
    monkeypatch.setattr(measurements, "MADE_UP", 2)
    test = phantom[phantom["split"] == "test"]
    rows = [answered[0] | {"probability": 0.3}] * len(test)
    monkeypatch.setattr(
        measurements, "measure_gate", lambda *given: pd.DataFrame({"kind": [len(given[3])]})
    )
    model.answer = lambda pixels: rows[: len(pixels)]
    is_taught = np.arange(len(phantom)) < 10
    answers, gate = measurements.measure(model, phantom, phantom, is_taught)
    assert gate["kind"].tolist() == [len(phantom) - 10]
    for name, table in (("packaged", answers), ("gate", gate)):
        file = reports_here / "phantom" / "tables" / f"{name}.csv"
        assert pd.read_csv(file)["model"].tolist() == ["a" * 12] * len(table)
    share = answers.set_index("measure").loc["right: looks normal", "value"]
    assert share == pytest.approx((test["label"] == 0).mean())
