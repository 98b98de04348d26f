"""Explanations: what an image is compared with, and which changes flip its answer."""

import io
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.special import expit

from xraylib import cli, explanation, packaged, page, paths
from xraylib.datasets import images, lung_finder, lungs, regions
from xraylib.errors import InvalidDataError, OperationFailedError
from xraylib.training.predictor import Predictor

BOX = np.array([0.25, 0.15, 0.2, 0.3])
LIMITS = {
    "input": 32,
    "calibration": {"method": "none", "slope": 1.0, "intercept": 0.0},
    "prevalence": 0.5,
    "normal_up_to": -1.0,
    "pneumonia_from": 1.0,
    "gate_limit": 0.5,
    "domain_limit": 3.0,
}


def log_odds_of(crop):
    """What the made-up network says: the brighter the crop, the more it is a pneumonia."""
    return (float(np.mean(crop)) - 128) / 10


def network(views, lungs):
    gate = np.zeros((1, len(packaged.GATE)), np.float32)
    gate[0, 0 if views[1].std() > 0 else 1] = 9  # an image of one grey is refused
    heat = views[0, ::8, ::8, 0][None]
    log_odds = np.array([log_odds_of(views[0])], np.float32)
    return {"log_odds": log_odds, "gate": gate, "domain": np.array([[0.0]]), "heat": heat}


def model_with(**limits):
    return packaged.PackagedModel("m", "0" * 64, LIMITS | limits, network, 0.5)


@pytest.fixture(autouse=True)
def lungs_in_box(monkeypatch):
    def find(pixels):
        count = len(pixels)
        return lung_finder.LungBoxes(
            np.tile(BOX, (count, 1)), np.full(count, 0.2), np.full(count, 0.9)
        )

    monkeypatch.setattr(lung_finder, "find", find)


@pytest.fixture
def file(tmp_path):
    """An image that is brighter towards its edges."""
    rows, columns = np.mgrid[-1:1:300j, -1:1:200j]
    values = 122 + 60 * np.hypot(rows, columns) ** 2
    path = tmp_path / "image.png"
    Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture
def grey(tmp_path):
    """An image that is refused."""
    path = tmp_path / "grey.png"
    Image.new("L", (224, 224), 90).save(path)
    return path


def test_the_box_is_enlarged_as_much_as_is_said(file):
    explained = explanation.explain(file, model_with())
    pixels = images.read_gray(file, 224)[None, ..., None]
    for row in explained.margins.itertuples():
        crop = lungs.crop_boxes(pixels, BOX[None], 32, margin=row.margin)
        assert row.probability == pytest.approx(expit(log_odds_of(crop)), abs=0.01)
    usual = explained.margins.set_index("margin")["probability"].loc[regions.MARGIN]
    assert usual == pytest.approx(explained.probability)
    assert explained.margins["probability"].is_monotonic_increasing
    assert explained.shape == (300, 200)


def test_changes_that_flip_the_answer_are_named_with_the_new_answer(file):
    explained = explanation.explain(file, model_with())
    assert explained.answer == packaged.UNDECIDED
    answers = explained.changes.set_index("change")["answer"]
    assert answers.loc["darker by 40 grey levels"] == packaged.NORMAL
    assert answers.loc["brighter by 40 grey levels"] == packaged.PNEUMONIA
    assert answers.loc["mirrored"] == packaged.UNDECIDED
    flips = explained.flips()
    assert set(flips["change"]) == set(answers.index[answers != packaged.UNDECIDED])
    sentence = explained.on_changes()
    assert sentence.startswith(f"{len(flips)} of {len(explanation.CHANGES)} ")
    assert "darker by 40 grey levels (looks normal)" in sentence
    assert "mirrored" not in sentence


def test_an_answer_that_nothing_changes_is_said_to_be_so(file):
    explained = explanation.explain(file, model_with(normal_up_to=-99.0, pneumonia_from=99.0))
    assert explained.flips().empty
    assert explained.on_changes().startswith("None of ")
    assert "does not change" in explained.on_margins()


def test_the_nearest_box_with_another_answer_is_named(file):
    margins = explanation.explain(file, model_with()).margins
    beyond = margins[margins["margin"] >= 0.1]["probability"].min()
    limit = float(np.log(beyond / (1 - beyond))) - 1e-4
    explained = explanation.explain(file, model_with(pneumonia_from=limit))
    assert explained.answer == packaged.UNDECIDED
    assert "10% larger" in explained.on_margins()
    assert repr(packaged.PNEUMONIA) in explained.on_margins()


def test_a_refused_image_gets_nothing_that_could_pass_for_an_answer(grey):
    explained = explanation.explain(grey, model_with())
    assert explained.answer == explanation.NO_ANSWER
    assert np.isnan(explained.probability)
    assert explained.heat_map is None
    record = explained.record()
    assert record["margins"] == record["changes"] == []
    assert "probability" not in json.dumps(record)
    assert explained.figure().get_suptitle() == "grey.png: no answer"


def test_an_image_is_compared_with_the_training_images_of_each_class(file, monkeypatch):
    levels = np.repeat(np.arange(100, 140), 2)
    labels = np.tile([0, 1], 40)
    pixels = (levels + 40 * labels)[:, None, None, None] * np.ones((1, 224, 224, 1))
    table = pd.DataFrame({"label": [*labels, 0], "split": ["train"] * 80 + ["test"]})
    table.attrs["dataset"] = "made-up"
    whole = np.concatenate([pixels, np.full((1, 224, 224, 1), 255)]).astype(np.uint8)
    monkeypatch.setattr(images, "load_pixels", lambda manifest, size: whole)
    monkeypatch.setattr(regions, "load_boxes", lambda manifest: np.tile(BOX, (81, 1)))
    known = explanation.reference(table, np.arange(80))
    assert known["n"] == {"normal": 40, "pneumonia": 40}
    assert known["measures"]["brightness"]["normal"][-1] == 139, "the test image is left out"
    explained = explanation.explain(file, model_with(reference=json.loads(json.dumps(known))))
    row = explained.measures.set_index("measure").loc["brightness"]
    assert 120 < row["value"] < 139
    assert row["normal"] == pytest.approx((row["value"] - 100) / 39, abs=0.01)
    assert row["pneumonia"] == 0
    (line,) = [line for line in explained.lines() if "mean grey level" in line]
    assert f"{row['normal']:.0%} of the normal" in line
    assert "0% of those with pneumonia" in line


def test_measures_have_the_right_sign():
    rng = np.random.default_rng(0)
    smooth = np.full((224, 224, 1), 100, np.uint8)
    rough = rng.integers(80, 121, smooth.shape, dtype=np.uint8)
    tall = np.array([0.0, 0.1, 0.2, 0.2])
    measured = explanation.measure(np.stack([smooth, rough]), np.stack([tall, BOX]))
    assert measured["sharpness"].is_monotonic_increasing
    assert measured["contrast"].is_monotonic_increasing
    assert measured["lung_height"].tolist() == pytest.approx([0.9, 0.6])


def test_the_caveat_of_heat_maps_says_the_committed_numbers(monkeypatch):
    monkeypatch.setenv("XRAYLIB_REPORTS", str(paths.ROOT / "reports"))
    table = pd.read_csv(
        paths.ROOT / "reports" / "kermany" / "tables" / "nih_localisation.csv", index_col="map"
    )
    known = explanation.localisation("kermany")
    sentence = explanation.heat_map_caveat(known)
    assert f"box in {table['pointing'].loc['heat map']:.0%}" in sentence
    assert f"no image in {table['pointing'].loc['position prior']:.0%}" in sentence
    assert "not measured" in explanation.heat_map_caveat({})


class Run:
    """A trained run, without limits."""

    name = "run"
    left_out = Predictor.left_out


def test_a_model_without_limits_is_not_explained(file):
    with pytest.raises(InvalidDataError, match=r"run cannot be explained.*Fix: "):
        explanation.explain(file, Run())


def test_a_figure_is_written_for_each_path(file, tmp_path):
    explained = explanation.explain(file, model_with())
    folder = tmp_path / "drawn"
    names = {explanation.write_figure(explained, path, folder).name for path in ("a/x", "b/x")}
    assert len(names) == 2
    with Image.open(folder / names.pop()) as drawn:
        assert drawn.width > 800
        assert "undecided" in drawn.text["Description"]
    with pytest.raises(OperationFailedError, match="Fix: "):
        explanation.write_figure(explained, "x", file / "not a folder")


def test_the_command_explains_below_each_answer(file, grey, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("xraylib.prediction.load_packaged", model_with)
    folder = tmp_path / "why"
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    command = ["predict", str(file), str(grey), str(bad), "--explain", str(folder)]
    assert cli.main(command) == 1
    lines = capsys.readouterr().out.splitlines()
    below = lines[lines.index(next(line for line in lines if "image.png" in line)) + 1 :]
    assert below[0].startswith("    The file has 200 × 300 pixels")
    assert len(list(folder.glob("*.png"))) == 2
    assert cli.main([*command, "--json"]) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [("explanation" in row) for row in rows] == [True, True, False]
    assert len(rows[0]["explanation"]["margins"]) == len(explanation.MARGINS)
    assert rows[1]["explanation"]["changes"] == []


def test_a_figure_that_cannot_be_written_stops_nothing(file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("xraylib.prediction.load_packaged", model_with)
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    table = tmp_path / "answers.csv"
    command = ["predict", str(file), "--explain", str(blocked), "--csv", str(table)]
    assert cli.main(command) == 1
    (row,) = pd.read_csv(table).to_dict("records")
    assert row["answer"] == packaged.UNDECIDED
    assert "was not written" in row["message"]
    assert "Traceback" not in capsys.readouterr().err


def test_a_trained_run_is_not_explained_by_the_command(file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("xraylib.prediction.load_model", lambda name, dataset: Run())
    assert cli.main(["predict", str(file), "--explain", str(tmp_path), "--model", "x"]) == 1
    printed = capsys.readouterr()
    assert "run cannot be explained" in printed.err
    assert printed.out == ""


@pytest.fixture
def shown(monkeypatch):
    """A page whose replies are kept."""
    made = page.Page(model_with(right={packaged.PNEUMONIA: {"share": 0.981, "n": 380}}))
    made.replies = []
    made.send = lambda content, buffers=None: made.replies.append((content, buffers or []))
    return made


def ask(shown, content=None, **message):
    shown._on_message(None, message, [] if content is None else [memoryview(content)])
    return shown.replies[-1] if shown.replies else None


def test_the_page_answers_bytes_and_explains_them_later(shown, file):
    reply, buffers = ask(shown, file.read_bytes(), ask="answer", id=7, name="a/<b>x.png")
    assert (reply["reply"], reply["id"], reply["answer"]) == ("answer", 7, packaged.UNDECIDED)
    assert "50% of such images" in reply["meaning"]
    with Image.open(io.BytesIO(buffers[0])) as picture:
        assert picture.size == (200, 300)
    reply, buffers = ask(shown, ask="explain", id=7)
    assert len(reply["margins"]) == len(explanation.MARGINS)
    assert reply["lines"]
    json.dumps(reply, allow_nan=False)
    with Image.open(io.BytesIO(buffers[0])) as heat_map:
        assert heat_map.size == (200, 300)


def test_the_page_says_why_there_is_no_answer(shown, grey):
    reply, buffers = ask(shown, b"no image", ask="answer", id=0, name="x.png")
    assert (reply["answer"], buffers) == (explanation.NO_ANSWER, [])
    assert reply["reason"].startswith("No JPEG, PNG, TIFF or DICOM image")
    reply, _ = ask(shown, ask="answer", id=1, name="huge.png", megabytes=51.2)
    assert reply["reason"] == "51 MB. Fix: give files of at most 50 MB."
    reply, buffers = ask(shown, grey.read_bytes(), ask="answer", id=2, name="grey.png")
    assert reply["answer"] == explanation.NO_ANSWER
    assert "meaning" not in reply
    assert len(buffers) == 1


def test_the_page_gives_the_table_of_its_answers(shown, file, tmp_path):
    ask(shown, file.read_bytes(), ask="answer", id=0, name="=1+1.png")
    ask(shown, b"", ask="answer", id=1, name="empty.png")
    reply, _ = ask(shown, ask="table")
    table = pd.read_csv(io.StringIO(reply["text"]))
    assert table["path"].tolist() == ["'=1+1.png", "empty.png"]
    assert table["status"].tolist() == ["ok", "error"]
    ask(shown, ask="clear")
    reply, _ = ask(shown, ask="table")
    assert len(pd.read_csv(io.StringIO(reply["text"]))) == 0


def test_the_page_says_how_often_such_an_answer_is_right():
    right = {packaged.PNEUMONIA: {"share": 0.981, "n": 380}, packaged.NORMAL: {"share": None}}
    row = {"status": "ok", "probability": 0.93, "prevalence": 0.74, "notice": ""}
    sick = page.words(row | {"answer": packaged.PNEUMONIA}, model_with(right=right))
    assert "0.93" in sick["meaning"] and "74%" in sick["meaning"]
    assert "98.1% of 380" in sick["meaning"]
    noticed = row | {"answer": packaged.PNEUMONIA, "notice": "an adult: be careful"}
    assert "official test" not in page.words(noticed, model_with(right=right))["meaning"]
    for answer in (packaged.NORMAL, packaged.UNDECIDED):
        meaning = page.words(row | {"answer": answer}, model_with(right=right))["meaning"]
        assert "official test" not in meaning


def test_the_page_answers_the_examples_of_the_repository(shown):
    names = [path.name for path in sorted((paths.ROOT / "data" / "examples").iterdir())]
    assert shown.facts["examples"] == names
    reply, buffers = ask(shown, ask="answer", id=0, name=names[1], example=True)
    assert reply["answer"] in packaged.ANSWERS
    assert len(buffers) == 1
    with pytest.raises(KeyError):
        ask(shown, ask="answer", id=1, name="../README.md", example=True)


def test_where_nothing_speaks_for_pneumonia_the_map_is_empty_and_this_is_said(file):
    def against(views, lungs):
        return network(views, lungs) | {"log_odds": np.array([-200.0], np.float32)}

    model = packaged.PackagedModel("m", "0" * 64, LIMITS, against, 0.5)
    explained = explanation.explain(file, model)
    assert explained.answer == packaged.NORMAL
    assert "empty" in " ".join(explained.lines())
    usual = explanation.explain(file, model_with())
    assert usual.heat_map.max() == 1
    assert "empty" not in " ".join(usual.lines())
