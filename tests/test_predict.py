import hashlib
import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from conftest import run_python
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from test_images import dicom, encoded, texture

from xraylib import answers, cli, packaged, paths, prediction, storage
from xraylib.datasets import images, manifest
from xraylib.errors import InvalidDataError, NotFoundError
from xraylib.training import networks, runs
from xraylib.training.predictor import load_predictor
from xraylib.training.recipes import Phase, get_recipe
from xraylib.training.train import train

EXAMPLES = paths.ROOT / "data" / "examples"
NETWORK = replace(get_recipe("tiny-cnn-28"), name="predicting", phases=(Phase(6, 1e-3),))
PROBE = replace(
    get_recipe("mobilenetv2-frozen"), name="probing", network="tiny_cnn", size=32, init="random"
)
CROPPED = replace(NETWORK, name="cropping", phases=(Phase(1, 1e-3),), region="lungs")
KINDS = pytest.mark.parametrize("kind", ["network", "probe", "cropped"])


@pytest.fixture(scope="module")
def trained(phantom, accelerator):
    recipes = {"network": NETWORK, "probe": PROBE, "cropped": CROPPED}
    return {kind: train(recipe, phantom, accelerator) for kind, recipe in recipes.items()}


@pytest.fixture(scope="module")
def predictor(trained):
    return load_predictor(trained["network"])


@pytest.fixture(scope="module")
def shipped():
    return packaged.load_packaged()


@pytest.fixture
def weights(tmp_path):
    """A copy of the packaged model to spoil."""
    return Path(shutil.copytree(paths.SHIPPED, tmp_path / "weights"))


def official_test(phantom):
    return phantom[phantom["split"] == "test"]


def write_checksums(folder):
    """Make the checksums those of the files as they are."""
    files = [folder / name for name in (packaged.MODEL_FILE, packaged.SETTINGS_FILE)]
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files]
    (folder / storage.CHECKSUM_FILE).write_text("".join(lines))


class Constant:
    """A model whose answer is given."""

    name, sha256, size, threshold = "constant", "0123456789abcdef", 8, 0.5
    prevalence, strict_domain = None, False

    def __init__(self, **answer):
        self.given = {"probability": 0.5} | answer

    def answer(self, pixels):
        return [dict(self.given) for _ in pixels]


@KINDS
def test_test_images_get_the_scores_and_the_threshold_of_the_run(kind, phantom, trained):
    run = trained[kind]
    table = official_test(phantom)
    answered = prediction.predict(table["path"], load_predictor(run))
    scores = run.scores.set_index(["split", "image_id"])["score"]
    expected = scores.loc["test"].loc[table["image_id"]]
    np.testing.assert_allclose(answered["probability"], expected, atol=1e-5)
    assert answered["probability"].nunique() > 1
    assert (answered["status"] == "ok").all()
    assert (answered["threshold"] == run.threshold).all()
    labels = np.where(expected >= run.threshold, "pneumonia", "normal")
    assert answered["label"].tolist() == labels.tolist()


def test_a_probability_at_the_threshold_is_a_pneumonia():
    image = EXAMPLES / "normal.jpeg"
    for probability, label in ((0.5, "pneumonia"), (0.4999, "normal"), (0.5001, "pneumonia")):
        (row,) = prediction.answer_files([image], Constant(probability=probability))
        assert (row["label"], row["message"]) == (label, "")


def test_an_abstention_leaves_nothing_that_could_pass_for_an_answer():
    model = Constant(status="abstained", message="unlike", answer="looks normal")
    (row,) = prediction.answer_files([EXAMPLES / "normal.jpeg"], model)
    assert (row["status"], row["message"]) == ("abstained", "unlike")
    assert np.isnan(row["probability"])
    for name in ("answer", "label", "notice"):
        assert row[name] == ""


def test_bad_files_are_reported_and_the_others_go_on(phantom, predictor, tmp_path):
    good = official_test(phantom)["path"].iloc[0]
    torn = tmp_path / "torn.jpeg"
    torn.write_bytes(Path(good).read_bytes()[:400])
    (tmp_path / "letter.png").write_text("Dear colleague")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    bad = [torn, tmp_path / "letter.png", tmp_path / "nowhere.png", tmp_path / "loop.png"]
    table = prediction.predict([bad[0], good, *bad[1:], good], predictor)
    assert table["status"].tolist() == ["error", "ok", "error", "error", "error", "ok"]
    assert table["probability"].iloc[1] == pytest.approx(table["probability"].iloc[5], abs=1e-6)
    for row in table[table["status"] == "error"].itertuples():
        assert row.label == ""
        assert Path(row.path).name in row.message
        assert "Fix: " in row.message
    assert (prediction.predict(bad, predictor)["status"] == "error").all()
    assert prediction.predict([], predictor).empty


def test_a_batch_goes_on_after_an_image_that_takes_all_memory(monkeypatch):
    read = images.read_gray

    def exhausted(file, size):
        if Path(file).name == "pneumonia.jpeg":
            raise MemoryError
        return read(file, size)

    monkeypatch.setattr(images, "read_gray", exhausted)
    table = prediction.predict(EXAMPLES, Constant())
    assert table["status"].tolist() == ["ok", "ok", "ok", "error"]
    assert "memory" in table["message"].iloc[3]


def test_a_probe_whose_initial_weights_are_not_here_is_refused(trained, tmp_path, monkeypatch):
    networks.build("tiny_cnn", 32, "sigmoid").save_weights(tmp_path / "another.weights.h5")
    monkeypatch.setattr(paths, "WEIGHTS", tmp_path)
    settings = trained["probe"].settings | {"init": "file 0123456789ab"}
    with pytest.raises(NotFoundError, match=r"'file 0123456789ab', which no file here.*Fix: "):
        load_predictor(replace(trained["probe"], settings=settings))


def page_of_text(rng):
    page = Image.new("L", (850, 1100), 255)
    for line in range(40, 1060, 30):
        words = " ".join("".join(rng.choice(list("abcdefghij"), 6)) for _ in range(10))
        ImageDraw.Draw(page).text((40, line), words, fill=0, font=ImageFont.load_default(20))
    return page


def test_what_is_no_chest_radiograph_is_abstained_from(shipped, tmp_path):
    rng = np.random.default_rng(0)
    others = {
        "page": page_of_text(rng),
        "noise": Image.fromarray(rng.integers(0, 256, (300, 300), dtype=np.uint8)),
        "blank": Image.new("L", (400, 300), 128),
        "black": Image.new("L", (400, 300)),
        "ramp": Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (256, 1))),
        "texture": Image.fromarray(texture(5, 300)),
    }
    for name, picture in others.items():
        picture.save(tmp_path / f"{name}.png")
    table = prediction.predict(tmp_path, shipped, threshold=0.2)
    assert len(table) == len(others)
    assert (table["status"] == "abstained").all()
    assert (table["answer"] == "").all()
    assert (table["label"] == "").all()
    assert table["probability"].isna().all()
    assert table["message"].str.contains("Fix: ").all()
    assert (table["threshold"] == 0.2).all()


def test_one_image_gets_one_answer_from_every_kind_of_file(phantom, shipped, tmp_path):
    gray = Image.fromarray(images.read_gray(phantom["path"].iloc[0])).resize((224, 224))
    film = np.asarray(gray.filter(ImageFilter.GaussianBlur(1)))
    (tmp_path / "PNG").write_bytes(encoded(film, "PNG"))
    (tmp_path / "TIFF").write_bytes(encoded(film, "TIFF"))
    (tmp_path / "JPEG").write_bytes(encoded(film, "JPEG", quality=98))
    (tmp_path / "DICOM").write_bytes(dicom(film))
    read = {file.name: images.read_gray(file, 224)[..., None] for file in tmp_path.iterdir()}
    probability = pd.Series(
        {name: shipped.answer(image[None])[0]["probability"] for name, image in read.items()}
    )
    assert probability.drop("JPEG").nunique() == 1
    # Compression changes simulated noise most.
    assert probability.max() - probability.min() <= 0.05


# The packaged model, and folders of others.


@pytest.mark.parametrize("name", [packaged.MODEL_FILE, packaged.SETTINGS_FILE])
def test_a_tampered_model_is_refused_by_name(weights, name):
    file = weights / name
    content = file.read_bytes()
    for changed in (content[:-2] + b" " + content[-1:], content[: len(content) // 2], b""):
        file.write_bytes(changed)
        with pytest.raises(InvalidDataError, match=rf"{name} is not the file that was written"):
            packaged.load_packaged(weights)
    file.unlink()
    with pytest.raises(InvalidDataError, match=rf"{name} .*Fix: "):
        packaged.load_packaged(weights)


def test_an_edited_limit_is_refused(weights):
    file = weights / packaged.SETTINGS_FILE
    settings = json.loads(file.read_text())
    settings["answers"]["normal_up_to"] = -0.01
    file.write_text(json.dumps(settings, indent=1) + "\n")
    with pytest.raises(InvalidDataError, match=r"run\.json is not the file that was written"):
        packaged.load_packaged(weights)


@pytest.mark.parametrize("content", ["", "no checksum at all\n", "ä", "0" * 64 + "  other\n"])
def test_damaged_checksums_are_one_error(weights, content):
    (weights / storage.CHECKSUM_FILE).write_text(content)
    with pytest.raises(InvalidDataError, match="Fix: install the package again"):
        packaged.load_packaged(weights)


@pytest.mark.parametrize(
    "settings",
    ["", "{", "[]", "{}", '{"answers": {}}', '{"answers": 3, "recipe": 1}', "null"],
)
def test_settings_that_are_those_of_others_are_one_error(weights, settings):
    (weights / packaged.SETTINGS_FILE).write_text(settings)
    write_checksums(weights)
    with pytest.raises(InvalidDataError, match=r"no model of this package .*Fix: "):
        packaged.load_packaged(weights)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sha256", "0" * 64),
        ("input", 64),
        ("calibration", {}),
        ("pneumonia_from", None),
        ("prevalence", "0.7"),
        ("left_out", ["gate"]),
        ("right", {"looks normal": 1}),
    ],
)
def test_an_answer_of_the_settings_that_does_not_fit_is_one_error(weights, name, value):
    file = weights / packaged.SETTINGS_FILE
    settings = json.loads(file.read_text())
    settings["answers"][name] = value
    file.write_text(json.dumps(settings))
    write_checksums(weights)
    with pytest.raises(InvalidDataError, match=r"no model of this package .*Fix: "):
        packaged.load_packaged(weights)


def test_a_folder_without_a_model_is_not_taken_for_a_recipe(weights, tmp_path):
    (weights / packaged.MODEL_FILE).unlink()
    with pytest.raises(InvalidDataError, match=r"model\.tflite is not the file .*Fix: "):
        prediction.load_model(weights)
    for folder in (tmp_path, tmp_path / "missing", EXAMPLES / "normal.jpeg"):
        with pytest.raises(NotFoundError, match=r"no folder of an exported model .*Fix: "):
            prediction.load_model(folder)


@pytest.mark.parametrize("model", [b"", b"no flatbuffer", b"\0" * 5000])
def test_a_model_that_litert_cannot_read_is_one_error(weights, model):
    (weights / packaged.MODEL_FILE).write_bytes(model)
    write_checksums(weights)
    with pytest.raises(InvalidDataError, match=r"no model of this package .*Fix: "):
        packaged.load_packaged(weights)


@pytest.mark.parametrize("spoilt", ["empty", "cut", "garbage", "missing key", "other network"])
def test_a_run_of_others_is_one_error(trained, tmp_path, spoilt):
    folder = Path(shutil.copytree(trained["network"].folder, tmp_path / "run"))
    settings = json.loads((folder / "run.json").read_text())
    model = folder / "model.weights.h5"
    if spoilt == "empty":
        settings = {}
    elif spoilt == "cut":
        model.write_bytes(model.read_bytes()[:1000])
    elif spoilt == "garbage":
        model.write_bytes(b"garbage")
    elif spoilt == "missing key":
        del settings["choices"]["network"]
    else:
        settings["choices"]["network"] = "scratch_cnn"
    if model.exists():
        settings["model_sha256"] = hashlib.sha256(model.read_bytes()).hexdigest()
    (folder / "run.json").write_text(json.dumps(settings))
    with pytest.raises(InvalidDataError, match=r"Fix: ") as refused:
        prediction.load_model(folder)
    assert str(folder) in str(refused.value)


def test_a_damaged_model_is_never_replaced_by_another_seed(trained, phantom, places, monkeypatch):
    monkeypatch.setattr("xraylib.training.recipes.RECIPES", {NETWORK.name: NETWORK})
    name = trained["network"].settings["dataset"]
    report = places / "reports" / name / "runs" / NETWORK.name
    for seed in (0, 1):
        folder = Path(shutil.copytree(trained["network"].folder, report / f"strict-{seed}"))
        settings = json.loads((folder / "run.json").read_text())
        content = settings | {"seed": seed}
        content["checksum"] = runs.digest({k: v for k, v in content.items() if k != "checksum"})
        (folder / "run.json").write_text(json.dumps(content))
    assert prediction.load_model(NETWORK.name, name).run.seed == 0
    first = report / "strict-0" / "model.weights.h5"
    first.write_bytes(b"")
    with pytest.raises(InvalidDataError, match=r"strict-0.*Fix: "):
        prediction.load_model(NETWORK.name, name)
    first.unlink()  # of a run that was trained elsewhere the model is not here
    assert prediction.load_model(NETWORK.name, name).run.seed == 1
    shutil.rmtree(report)
    with pytest.raises(NotFoundError, match=rf"no model of {NETWORK.name}.*Fix: "):
        prediction.load_model(NETWORK.name, name)


# Which files are answered.


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder as hospitals, browsers and systems leave it."""
    monkeypatch.chdir(tmp_path)
    jpeg = (EXAMPLES / "normal.jpeg").read_bytes()
    dcm = (EXAMPLES / "pneumonia.dcm").read_bytes()
    contents = {
        "a.jpg": jpeg,
        "b.jfif": jpeg,
        "c/1.2.826.0.1.3680043.8.498.1": dcm,
        "c/IM0001": dcm,
        "c/x.IMA": dcm,
        "d.without-a-known-suffix": jpeg,
        "torn.PNG": b"",
        "README.txt": b"read me",
        "e.bmp": b"BM",
        ".hidden.jpg": jpeg,
        "._a.jpg": b"\0\5\x16\7",
        ".git/x.jpg": jpeg,
        ".ipynb_checkpoints/a-checkpoint.jpeg": jpeg,
        "@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg": jpeg,
        "__MACOSX/a.jpg": jpeg,
    }
    for name, content in contents.items():
        file = tmp_path / "in" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return tmp_path


def test_a_folder_is_read_by_content_and_names_what_it_passes_over(folder):
    os.mkfifo(folder / "in" / "pipe")  # to read it would wait for ever
    files, passed_over = prediction.list_files(["in"])
    names = ("a.jpg", "b.jfif", "c/1.2.826.0.1.3680043.8.498.1", "c/IM0001", "c/x.IMA")
    expected = [*names, "d.without-a-known-suffix", "torn.PNG"]
    assert files == [f"in/{name}" for name in expected]
    litter = (".git/", ".ipynb_checkpoints/", "@eaDir/", "__MACOSX/")
    others = (".hidden.jpg", "._a.jpg", "README.txt", "e.bmp", "pipe")
    assert passed_over == sorted(f"in/{name}" for name in (*litter, *others))
    assert prediction.list_files(["in/.git"]) == (["in/.git/x.jpg"], [])


def test_links_to_folders_are_followed_once(folder):
    (folder / "in" / "again").symlink_to(folder / "in")
    (folder / "elsewhere").mkdir()
    shutil.copy(EXAMPLES / "normal.jpeg", folder / "elsewhere" / "z.jpeg")
    (folder / "in" / "link").symlink_to(folder / "elsewhere")
    (folder / "in" / "second-link").symlink_to(folder / "elsewhere")
    files, _ = prediction.list_files(["in"])
    assert [file for file in files if "again" in file] == []
    assert [file for file in files if "link" in file] == ["in/link/z.jpeg"]


def test_a_folder_that_cannot_be_read_is_an_error_row_and_the_others_go_on(folder, monkeypatch):
    closed = folder / "in" / "closed"
    closed.mkdir()
    scan, listed = os.scandir, os.listdir

    def refuse(function):
        def guarded(path="."):
            if os.fspath(path).endswith("closed"):
                raise PermissionError(13, "Permission denied", os.fspath(path))
            return function(path)

        return guarded

    monkeypatch.setattr(os, "scandir", refuse(scan))
    monkeypatch.setattr(os, "listdir", refuse(listed))
    table = prediction.predict("in", Constant()).set_index("path")
    assert table.loc["in/closed", "status"] == "error"
    assert "Permission denied" in table.loc["in/closed", "message"]
    assert table.loc["in/a.jpg", "status"] == "ok"


def test_an_empty_folder_beside_an_image_is_an_error_row(folder):
    (folder / "empty").mkdir()
    table = prediction.predict(["empty", "in/a.jpg"], Constant())
    assert table["status"].tolist() == ["error", "ok"]
    assert "no image in this folder" in table["message"].iloc[0]
    assert "Fix: " in table["message"].iloc[0]


def test_patterns_are_expanded_and_odd_names_stay(folder):
    assert prediction.list_files(["in/*.j*", "none*.png"])[0] == [
        "in/a.jpg",
        "in/b.jfif",
        "none*.png",
    ]
    odd = ["x" * 300, "**foo.png", "[", "a\0b"]
    assert prediction.list_files(odd) == (odd, [])
    assert (prediction.predict(odd, Constant())["status"] == "error").all()
    with pytest.raises(InvalidDataError, match=r"an empty path.*Fix: "):
        prediction.list_files(["in/a.jpg", ""])


def test_a_list_on_standard_input_is_answered(folder, monkeypatch, capsys):
    lines = b"in/torn.PNG\r\n\n" + os.fsencode(str(folder / "none.png")) + b"\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines)))
    assert cli.main(["predict", "-"]) == 1
    complaints = capsys.readouterr().err
    assert "torn.PNG: the file is empty" in complaints
    assert "none.png: no such file" in complaints
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\n\n")))
    assert cli.main(["predict", "-"]) == 1
    assert "standard input is empty" in capsys.readouterr().err


# Heat maps.


def test_a_heat_map_that_cannot_be_written_is_the_message_of_its_row(shipped, tmp_path):
    first = tmp_path / f"{'字' * 80}.jpeg"  # 240 bytes
    shutil.copy(EXAMPLES / "normal.jpeg", first)
    second = EXAMPLES / "pneumonia.jpeg"
    heat = tmp_path / "heat"
    rows = list(prediction.answer_files([first, second], shipped, heat_maps=heat))
    assert [row["status"] for row in rows] == ["ok", "ok"]
    assert [row["message"] for row in rows] == ["", ""]
    files = sorted(heat.iterdir())
    assert len(files) == 2
    for file in files:
        with Image.open(file) as picture:
            assert picture.size == (224, 224)
        file.unlink()
    (heat / prediction.picture_name(str(first))).mkdir()
    rows = list(prediction.answer_files([first, second], shipped, heat_maps=heat))
    assert answers.HEAT_MAP_FAILED in rows[0]["message"]
    assert answers.is_failure(rows[0])
    assert not answers.is_failure(rows[1])
    assert rows[1]["answer"] == "looks like pneumonia"
    assert (heat / prediction.picture_name(str(second))).is_file()


def test_images_of_one_name_in_two_folders_have_two_heat_maps():
    names = {prediction.picture_name(path) for path in ("a/1.png", "b/1.png", "b/1.dcm")}
    assert len(names) == 3
    assert all(name.startswith("1-") and name.endswith(".png") for name in names)


def test_a_heat_map_hides_the_image_at_strength_one_and_leaves_it_at_zero():
    image = np.arange(64, dtype=np.uint8).reshape(8, 8, 1) * 4
    heat = np.zeros((8, 8))
    heat[0, 0] = 1
    plain = np.asarray(prediction.overlay_heat_map(image, heat, 0.0))
    assert (plain == image).all()
    hidden = np.asarray(prediction.overlay_heat_map(image, heat, 1.0)).astype(int)
    assert hidden[0, 0].sum() > 500
    assert (hidden[1:] == hidden[1, 1]).all()
    half = np.asarray(prediction.overlay_heat_map(image, heat)).astype(int)
    np.testing.assert_allclose(half, 0.6 * plain + 0.4 * hidden, atol=1)


# Any file.


MUTANTS = int(os.environ.get("XRAYLIB_FUZZ", "400"))


def mutant(content, rng):
    content = bytearray(content)
    for _ in range(rng.integers(1, 8)):
        reach = len(content) if rng.random() < 0.5 else min(400, len(content))
        place = int(rng.integers(reach))
        kind = rng.random()
        if kind < 0.6:
            content[place] = int(rng.integers(256))
        elif kind < 0.8:
            del content[place : place + int(rng.integers(1, 60))]
        else:
            content[place:place] = rng.bytes(int(rng.integers(1, 60)))
    return bytes(content)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_files_never_give_a_traceback(shipped, tmp_path):
    rng = np.random.default_rng(MUTANTS)
    film = texture(1, 64)
    palette = Image.fromarray(film).convert("P")
    colour = Image.fromarray(film).convert("RGB")
    kinds = [
        encoded(film, "JPEG"),
        encoded(film),
        encoded(film, "TIFF"),
        dicom(film),
        encoded(film.astype(np.uint16) * 257),
        encoded(film, "JPEG", progressive=True),
        *(encoded(film, "TIFF", compression=name) for name in ("tiff_lzw", "tiff_deflate", "jpeg")),
        encoded(palette, "TIFF"),
        encoded(colour, "TIFF"),
        dicom(film, syntax=pydicom.uid.RLELossless),
        dicom(film, syntax=pydicom.uid.JPEG2000Lossless),
    ]
    file = tmp_path / "film"
    refused = 0
    for number in range(MUTANTS):
        file.write_bytes(mutant(kinds[number % len(kinds)], rng))
        (row,) = prediction.answer_files([file], shipped)
        refused += row["status"] == "error"
        assert row["status"] != "error" or "Fix: " in row["message"]
    assert 0 < refused < MUTANTS


def test_answering_loads_no_deep_learning_library():
    code = (
        "import sys, xraylib; xraylib.predict('data/examples'); "
        "print(sorted({'keras', 'tensorflow', 'jax', 'torch'} & set(sys.modules)))"
    )
    assert run_python(code, cwd=paths.ROOT).strip() == "[]"


def test_the_examples_are_answered_as_data_readme_says():
    table = prediction.predict(EXAMPLES).set_index("path")
    table.index = [Path(path).name for path in table.index]
    assert table["status"].to_dict() == {
        "abstained.jpeg": "abstained",
        "normal.jpeg": "ok",
        "pneumonia.dcm": "ok",
        "pneumonia.jpeg": "ok",
    }
    assert "upside down" in table.loc["abstained.jpeg", "message"]
    assert table.loc["pneumonia.jpeg", "answer"] == "looks like pneumonia"
    assert table.loc["pneumonia.dcm", "answer"] == "looks like pneumonia"
    assert table.loc["normal.jpeg", "probability"] < table.loc["pneumonia.jpeg", "probability"]


@pytest.mark.slow
def test_the_examples_are_images_of_the_phantom_and_of_no_patient():
    table = manifest.load("phantom")
    simulated = [images.read_gray(path) for path in table["path"]]
    for file in EXAMPLES.iterdir():
        example = images.read_gray(file).astype(float)
        if file.stem == "abstained":  # it is upside down
            example = example[::-1, ::-1]
        differences = [
            np.abs(image - example).mean() if image.shape == example.shape else np.inf
            for image in simulated
        ]
        nearest = table.iloc[int(np.argmin(differences))]
        assert min(differences) < 1, file
        assert nearest["label"] == (file.stem != "normal"), file
