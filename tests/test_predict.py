import io
import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from conftest import run_python
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from test_images import dicom, encoded, texture

from xraylib import cli, export, paths, predict
from xraylib.datasets import images, manifest
from xraylib.datasets.framing import SWAP, crop
from xraylib.errors import InvalidDataError, NotFoundError
from xraylib.training import networks, runs
from xraylib.training.predictor import load_predictor
from xraylib.training.recipes import Phase, get_recipe
from xraylib.training.train import train

NETWORK = replace(get_recipe("tiny-cnn-28"), name="predicting", phases=(Phase(6, 1e-3),))
PROBE = replace(
    get_recipe("mobilenetv2-frozen"), name="probing", network="tiny_cnn", size=32, init="random"
)
BOTH = pytest.mark.parametrize("kind", ["network", "probe"])


@pytest.fixture(scope="module")
def trained(phantom, accelerator):
    return {
        kind: train(recipe, phantom, accelerator)
        for kind, recipe in (("network", NETWORK), ("probe", PROBE))
    }


@pytest.fixture(scope="module")
def predictor(trained):
    return load_predictor(trained["network"])


def official_test(phantom):
    return phantom[phantom["split"] == "test"]


@pytest.fixture(scope="module")
def shipped():
    return predict.Shipped.load()


def table(files, model, **options):
    return pd.DataFrame(predict.predict(files, model, **options), columns=predict.COLUMNS)


@BOTH
def test_test_images_get_the_scores_and_the_threshold_of_the_run(kind, phantom, trained):
    run, films = trained[kind], official_test(phantom)
    answers = table(films["path"].tolist(), load_predictor(run))
    expected = (
        run.scores.set_index(["split", "image_id"])["score"].loc["test"].loc[films["image_id"]]
    )
    np.testing.assert_allclose(answers["probability"], expected, atol=1e-5)
    assert answers["probability"].nunique() > 1 and (answers["status"] == "ok").all()
    assert (answers["threshold"] == run.threshold).all()
    assert (
        answers["label"].tolist()
        == np.where(expected >= run.threshold, "pneumonia", "normal").tolist()
    )


def test_bad_files_are_reported_and_the_others_go_on(phantom, predictor, tmp_path):
    good = official_test(phantom)["path"].iloc[0]
    torn = tmp_path / "torn.jpeg"
    torn.write_bytes(Path(good).read_bytes()[:400])
    (tmp_path / "letter.png").write_text("Dear colleague")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    bad = [torn, tmp_path / "letter.png", tmp_path / "nowhere.png", tmp_path / "loop.png"]
    answers = table([bad[0], good, *bad[1:], good], predictor)
    assert answers["status"].tolist() == ["error", "ok", "error", "error", "error", "ok"]
    assert answers["probability"].iloc[1] == pytest.approx(answers["probability"].iloc[5], abs=1e-6)
    for row in answers[answers["status"] == "error"].itertuples():
        assert row.label == "" and Path(row.path).name in row.message and "Fix: " in row.message
    assert (table(bad, predictor)["status"] == "error").all() and table([], predictor).empty


def test_a_probe_on_other_weights_is_refused(trained, monkeypatch):
    monkeypatch.setattr(
        networks, "get_weights", lambda *_: networks.Weights("imagenet (another file)")
    )
    with pytest.raises(InvalidDataError, match=r"fitted on random, found are imagenet .*Fix: "):
        load_predictor(trained["probe"])


def test_the_shipped_model_answers_as_its_keras_network_does(phantom, shipped):
    run = runs.read_run(paths.SHIPPED)
    films = images.load_pixels(phantom, 224)[:12]
    answers = pd.DataFrame(shipped.answer(films))
    score = load_predictor(run).score(films)
    slope, intercept = run.settings["answers"]["calibration"]
    odds = np.log(score / (1 - score)) * slope + intercept
    np.testing.assert_allclose(answers["probability"], 1 / (1 + np.exp(-odds)), atol=1e-3)
    # The same side of the threshold, which is the run's own on its calibrated scale.
    assert ((answers["probability"] >= shipped.threshold) == (score >= run.threshold)).all()
    assert run.has_model and run.settings["licences"]
    assert all(file.stat().st_size <= 6e6 for file in paths.SHIPPED.iterdir())


def test_its_framings_are_those_of_the_experiment(shipped):
    film = np.array(Image.fromarray(texture(3)).resize((224, 224)))[None, ..., None]
    lowest, highest = (shipped.answer(film)[0][name] for name in ("lowest", "highest"))
    own = [
        shipped.answer(np.array(crop(film, **view)))[0]["probability"]
        for view in ({}, {"rows": SWAP}, {"columns": SWAP})
    ]
    assert (lowest, highest) == (
        pytest.approx(min(own), abs=0.03),
        pytest.approx(max(own), abs=0.03),
    )


def pages(rng):
    page = Image.new("L", (850, 1100), 255)
    for line in range(40, 1060, 30):
        words = " ".join("".join(rng.choice(list("abcdefghij"), 6)) for _ in range(10))
        ImageDraw.Draw(page).text((40, line), words, fill=0, font=ImageFont.load_default(20))
    return page


def test_what_is_no_chest_radiograph_is_abstained_from(shipped, tmp_path):
    rng = np.random.default_rng(0)
    others = {
        "page": pages(rng),
        "noise": Image.fromarray(rng.integers(0, 256, (300, 300), dtype=np.uint8)),
        "blank": Image.new("L", (400, 300), 128),
        "black": Image.new("L", (400, 300)),
        "ramp": Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (256, 1))),
        "texture": Image.fromarray(texture(5, 300)),
    }
    for name, picture in others.items():
        picture.save(tmp_path / f"{name}.png")
    answers = table(sorted(tmp_path.iterdir()), shipped, threshold=0.2)
    assert (answers["status"] == "abstained").all() and (answers["label"] == "").all()
    assert answers["probability"].isna().all() and (answers["prediction_set"] == "").all()
    assert (
        answers["message"].str.contains(r"OOD score \d").all()
        and (answers["threshold"] == 0.2).all()
    )


def test_one_film_gets_one_answer_from_every_kind_of_file(phantom, shipped, tmp_path):
    film = images.read_gray(phantom["path"].iloc[0])
    film = np.asarray(Image.fromarray(film).resize((224, 224)).filter(ImageFilter.GaussianBlur(1)))
    for kind in ("PNG", "TIFF", "JPEG"):
        (tmp_path / kind).write_bytes(
            encoded(film, kind, **({"quality": 98} if kind == "JPEG" else {}))
        )
    (tmp_path / "DICOM").write_bytes(dicom(film))
    read = {file.name: images.read_gray(file, 224)[..., None] for file in tmp_path.iterdir()}
    found = pd.Series(
        {name: shipped.answer(film[None])[0]["probability"] for name, film in read.items()}
    )
    assert found.drop("JPEG").nunique() == 1
    assert found.max() - found.min() <= 0.05  # compression changes simulated noise most


def test_a_tampered_model_is_refused_by_name(tmp_path):
    shutil.copytree(paths.SHIPPED, tmp_path / "weights")
    model = tmp_path / "weights" / "model.tflite"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    with pytest.raises(
        InvalidDataError, match=r"model\.tflite is not the file that was shipped\. Fix: "
    ):
        predict.Shipped.load(tmp_path / "weights")
    model.unlink()
    with pytest.raises(InvalidDataError, match=r"model\.tflite"):
        predict.Shipped.load(tmp_path / "weights")
    keras_file = tmp_path / "weights" / "model.weights.h5"
    keras_file.write_bytes(keras_file.read_bytes()[:-1] + b"x")
    with pytest.raises(
        InvalidDataError, match=r"model\.weights\.h5 is missing or is not what the run wrote"
    ):
        load_predictor(runs.read_run(tmp_path / "weights"))


def test_folders_patterns_and_lists_are_found_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("b/2.png", "b/1.JPG", "b/c/3.dcm", "b/notes.txt", "b/.hidden", "a.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    assert predict.list_files(["a.png", "b"]) == ["a.png", "b/1.JPG", "b/2.png", "b/c/3.dcm"]
    assert predict.list_files(["b/*.png", "none*.png"]) == ["b/2.png", "none*.png"]
    odd = ["x" * 300, "**foo.png", "[", "a\0b"]
    assert predict.list_files(odd) == odd
    lines = b"a.png\r\n\n" + os.fsencode(str(tmp_path / "none.png")) + b"\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines)))
    assert cli.main(["predict", "-"]) == 1
    said = capsys.readouterr().err
    assert "a.png: the file is empty" in said and "none.png: no such file" in said
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\n\n")))
    assert cli.main(["predict", "-"]) == 1 and "standard input is empty" in capsys.readouterr().err


def test_the_command_answers_in_every_form(phantom, tmp_path, capsys, monkeypatch):
    film = phantom["path"].iloc[0]
    odd = tmp_path / os.fsdecode(b"caf\xe9.png")
    shutil.copy(film, odd)
    arguments = [
        "predict",
        film,
        str(odd),
        "--json",
        "--csv",
        str(tmp_path / "t.csv"),
        "--heatmap",
        str(tmp_path / "heat"),
    ]
    assert cli.main(arguments) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    written = pd.read_csv(tmp_path / "t.csv")
    assert [list(line) for line in lines] == [list(predict.COLUMNS)] * 2 and list(written) == list(
        predict.COLUMNS
    )
    assert written["probability"].tolist() == pytest.approx([line["probability"] for line in lines])
    assert lines[0]["probability"] == lines[1]["probability"] and lines[1]["path"] == str(odd)
    for heat in (tmp_path / "heat").iterdir():
        assert Image.open(heat).size == (224, 224)
    assert len(list((tmp_path / "heat").iterdir())) == 2
    assert cli.main(["predict", film, str(tmp_path / "none.png")]) == 1
    said = capsys.readouterr()
    assert film in said.out and "none.png: no such file. Fix: " in said.err


MUTANTS = int(os.environ.get("XRAYLIB_FUZZ", "400"))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_files_never_give_a_traceback_or_a_hang(shipped, tmp_path):
    rng, film = np.random.default_rng(MUTANTS), texture(1, 64)
    kinds = [encoded(film, "JPEG"), encoded(film), encoded(film, "TIFF"), dicom(film)]
    kinds += [encoded(film.astype(np.uint16) * 257), encoded(film, "JPEG", progressive=True)]
    kinds += [
        encoded(film, "TIFF", compression=how) for how in ("tiff_lzw", "tiff_deflate", "jpeg")
    ]
    kinds += [
        encoded(Image.fromarray(film).convert("P"), "TIFF"),
        encoded(Image.fromarray(film).convert("RGB"), "TIFF"),
    ]
    kinds += [
        dicom(film, syntax=pydicom.uid.RLELossless),
        dicom(film, syntax=pydicom.uid.JPEG2000Lossless),
    ]
    file, slowest, refused = tmp_path / "film", 0.0, 0
    for number in range(MUTANTS):
        content = bytearray(kinds[number % len(kinds)])
        for _ in range(rng.integers(1, 8)):
            place = int(
                rng.integers(len(content) if rng.random() < 0.5 else min(400, len(content)))
            )
            if (how := rng.random()) < 0.6:
                content[place] = int(rng.integers(256))
            elif how < 0.8:
                del content[place : place + int(rng.integers(1, 60))]
            else:
                content[place:place] = rng.bytes(int(rng.integers(1, 60)))
        file.write_bytes(content)
        start = time.perf_counter()
        (row,) = predict.predict([file], shipped)
        slowest = max(slowest, time.perf_counter() - start)
        refused += row["status"] == "error"
        assert row["status"] != "error" or "Fix: " in row["message"]
    assert slowest < 5 and 0 < refused < MUTANTS


@pytest.mark.slow
def test_shipping_sets_every_limit_on_validation(phantom, accelerator, tmp_path, monkeypatch):
    recipe = replace(
        get_recipe("flagship"),
        name="shipping",
        init="random",
        phases=(Phase(1, 1e-3),),
        validation="plain",
    )
    run = train(recipe, phantom, accelerator)
    monkeypatch.setattr(paths, "SHIPPED", tmp_path / "weights")
    about = export.package(run, phantom).settings["answers"]
    model = predict.Shipped.load(tmp_path / "weights")
    own = run.scores[run.scores["split"] == "val"].merge(phantom[["image_id", "path"]])
    answers = table(own["path"].tolist(), model)
    assert (answers["ood_score"] > about["ood_limit"]).sum() <= 1  # a hundredth, but never none
    assert (answers["status"] == "ok").mean() > 0.8
    with pytest.raises(NotFoundError, match=r"another network\. Fix: package the flagship"):
        export.package(
            replace(
                run,
                settings=run.settings
                | {"choices": run.settings["choices"] | {"head": "two-logits"}},
            ),
            phantom,
        )


@pytest.mark.slow
def test_importing_it_does_not_load_keras():
    said = run_python(
        "import sys, xraylib.predict; print([m in sys.modules for m in ('keras', 'tensorflow')])"
    )
    assert said.strip() == "[False, False]"


def test_the_examples_are_answered_as_data_readme_says(capsys):
    assert cli.main(["predict", str(paths.ROOT / "data" / "examples"), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {Path(line["path"]).name: line["label"] or line["status"] for line in lines} == {
        "abstained.jpeg": "abstained",
        "normal.jpeg": "normal",
        "pneumonia.dcm": "pneumonia",
        "pneumonia.jpeg": "pneumonia",
    }
    made = {path.rsplit("/", 1)[1]: path for path in manifest.load("phantom")["path"]}
    of = {
        "abstained": "person136_bacteria_243",
        "normal": "IM-0125-0001",
        "pneumonia": "person67_virus_144",
    }
    for line in lines:
        example, film = (
            images.read_gray(line["path"]),
            images.read_gray(made[f"{of[Path(line['path']).stem]}.jpeg"]),
        )
        assert np.abs(example.astype(float) - film).mean() < 1, line["path"]


def test_an_answer_whose_label_changes_with_the_framing_says_so(shipped):
    film = paths.ROOT / "data" / "examples" / "normal.jpeg"
    (usual,) = predict.predict([film], shipped)
    (low,) = predict.predict([film], shipped, threshold=(usual["lowest"] + usual["highest"]) / 2)
    assert (
        usual["message"] == ""
        and "framing" in low["message"]
        and low["status"] == "ok"
        and low["label"]
    )
