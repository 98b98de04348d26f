import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import run_python, start_python
from PIL import Image

from xraylib import answers, cli, commands, paths
from xraylib.datasets import catalog, manifest
from xraylib.datasets.phantom import PhantomSettings, write
from xraylib.training.recipes import BUDGETS, Budget

EXAMPLES = paths.ROOT / "data" / "examples"


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Data, cache, runs and reports of this test; one epoch."""
    for name in ("DATA", "CACHE", "RUNS", "REPORTS"):
        monkeypatch.setenv(f"XRAYLIB_{name}", str(tmp_path / name.lower()))
    monkeypatch.setitem(BUDGETS, "quick", Budget(1, 1))
    return tmp_path


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """A user's folder of radiographs."""
    return write(tmp_path_factory.mktemp("user") / "films", PhantomSettings(images=40, size=32))


@pytest.fixture
def own(films, tmp_path):
    """A copy of it to spoil."""
    shutil.copytree(films, tmp_path / "own")
    return tmp_path / "own"


@pytest.fixture
def run(capfd):
    """Run one command in this process: its status, what it printed, what it complained of."""

    def command(*arguments):
        capfd.readouterr()
        status = cli.main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return status, out, [line for line in err.splitlines() if line.startswith("xraylib: ")]

    return command


def shell(*arguments, **variables):
    """Run one command as a user does."""
    environment = os.environ | {name: str(value) for name, value in variables.items()}
    command = [sys.executable, "-m", "xraylib", *map(str, arguments)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=100, cwd=paths.ROOT
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def test_help_lists_the_commands_and_loads_nothing_heavy():
    status, out, err = shell("--help")
    assert (status, err) == (0, "")
    assert "run-notebook" in out
    code = """
import sys, xraylib.cli
before = set(sys.modules)
try:
    xraylib.cli.main(["predict", "--help"])
except SystemExit:
    pass
loaded = {name.split(".")[0] for name in sys.modules}
print(sorted(loaded - set(sys.stdlib_module_names) - {"__main__"}))
"""
    loaded = run_python(code).splitlines()[-1]
    # What site-packages load at every start of Python is not ours.
    heavy = ("numpy", "pandas", "scipy", "sklearn", "PIL", "keras", "matplotlib", "tqdm", "jinja2")
    assert "'xraylib'" in loaded
    assert not [name for name in heavy if f"'{name}'" in loaded]


def test_every_command_has_a_function_that_does_it():
    for prefix, table in (("data_", cli._DATA_ACTIONS), ("", cli._COMMANDS)):
        for name in table:
            assert callable(getattr(commands, prefix + name.replace("-", "_")))
    parse = cli._parser().parse_args
    assert parse(["ship", "flagship"]).function == parse(["export", "flagship"]).function
    assert parse(["data", "list"]).function == "data_list"


@pytest.mark.slow
def test_missing_data_is_named_and_nothing_takes_its_place(tmp_path):
    (tmp_path / "empty").mkdir()
    status, out, err = shell("data", "verify", "kermany", XRAYLIB_DATA=tmp_path / "empty")
    assert (status, out) == (1, "")
    assert err.startswith("xraylib: ") and "Fix: run `python -m xraylib data fetch" in err
    assert str(tmp_path / "empty") in err and not any((tmp_path / "empty").iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nosuch"],
        ["data"],
        ["train"],
        ["predict"],
        ["report", "--all"],
        ["report", ""],
        ["predict", ""],
        ["predict", "image.png", "--csv", ""],
        ["predict", "image.png", "--heatmap", ""],
        ["predict", "image.png", "--model", ""],
        ["predict", "image.png", "--threshold", "7"],
        ["predict", "image.png", "--threshold", "-0.1"],
        ["predict", "image.png", "--threshold", "nan"],
        ["predict", "image.png", "--threshold", "high"],
        ["data", "audit", "phantom", "--max-bad", "-1"],
        ["data", "audit", "phantom", "--max-bad", "nan"],
        ["data", "audit", ""],
        ["data", "shard", "phantom", "folder", "--size", "0"],
        ["data", "shard", "phantom", "folder", "--size", "-5"],
        ["train", "tiny-cnn-28", "--seed", "-1"],
        ["train", "tiny-cnn-28", "--seed", "1.5"],
        ["train", "tiny-cnn-28", "--set", "epochs"],
        ["train", "tiny-cnn-28", "--set", "=5"],
        ["data", "verify", "phantom", "--classes", "sick"],
        ["data", "verify", "phantom", "--classes", "=1"],
        ["train", "tiny-cnn-28", "--dataset", ""],
    ],
    ids=lambda arguments: " ".join(arguments) or "nothing",
)
def test_wrong_usage_is_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert "usage: python -m xraylib" in capsys.readouterr().err


def test_limits_of_numbers_are_allowed():
    parse = cli._parser().parse_args
    for text in ("0", "1", "0.5"):
        assert parse(["predict", "x", "--threshold", text]).threshold == float(text)
    assert parse(["data", "audit", "x", "--max-bad", "1"]).max_bad == 1
    assert parse(["train", "x", "--seed", "0"]).seed == 0
    assert parse(["data", "shard", "x", "y", "--size", "1"]).size == 1


def test_fields_of_a_recipe_are_set_by_its_name(monkeypatch):
    trained = []
    monkeypatch.setattr(commands, "_train_recipe", lambda recipe, *_, **__: trained.append(recipe))
    by_option = ["train", "tiny-cnn-28", "--set", "epochs=5", "--set", "size=128"]
    for arguments in (["train", "tiny-cnn-28+epochs=5+size=128"], by_option):
        assert cli.main(arguments) == 0
        assert (trained[-1].epochs, trained[-1].size) == (5, 128)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["data", "verify", "kermanny"], "Did you mean 'kermany'"),
        (["data", "audit", "nosuch"], "nosuch'"),
        (["data", "audit", "kermany"], "kermany"),
        (["data", "fetch", "nosuch"], "nosuch'"),
        (["data", "fetch", "nih"], "cannot be fetched"),
        (["data", "fetch", "kermany", "--source", "ftp"], "ftp'"),
        (["train", "vgg99"], "vgg99'"),
        (["train", "tiny-cnn-28", "--dataset", "nosuch"], "nosuch'"),
        (["train", "tiny-cnn-28", "--dataset", "kermany"], "kermany"),
        (["train", "tiny-cnn-28", "--budget", "endless"], "endless'"),
        (["train", "tiny-cnn-28", "--device", "abacus"], "abacus'"),
        (["train", "tiny-cnn-28", "--backend", "torch"], "torch'"),
        (["predict", "film.png", "--model", "vgg99"], "vgg99'"),
        (["predict", "film.png", "--model", "tiny-cnn-28", "--dataset", "nosuch"], "nosuch'"),
        (
            ["predict", __file__, "--model", "mobilenetv2-frozen"],
            "no model of mobilenetv2-frozen, trained on",
        ),
        (["predict", "film.png", "--prevalence", "0"], "prevalence"),
        (["predict", "film.png", "--prevalence", "1"], "prevalence"),
        (["export", "vgg99"], "vgg99'"),
        (["external", "vgg99"], "vgg99'"),
        (["external", "tiny-cnn-28"], "nih"),
        (["corruptions", "tiny-cnn-28", "vgg99"], "vgg99'"),
        (["report"], "no runs below"),
        (["report", "nosuch"], "nosuch'"),
        (["run-notebook", "nowhere.ipynb", "out.ipynb"], "nowhere.ipynb"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_what_a_user_can_fix_is_one_message(run, accelerator, places, arguments, named):
    status, out, said = run(*arguments)
    assert (status, out, len(said)) == (1, "", 1)
    assert named in said[0] and "Fix: " in said[0]
    assert not (places / "reports").exists() and not (places / "runs").exists()


def test_an_empty_folder_is_named(run, accelerator, tmp_path):
    (tmp_path / "none").mkdir()
    for command in (["audit"], ["data", "audit"], ["train", "tiny-cnn-28", "--dataset"]):
        status, _, said = run(*command, tmp_path / "none")
        assert status == 1 and str(tmp_path / "none") in said[0] and "Fix: " in said[0]


@pytest.mark.slow
def test_the_phantom_is_verified_and_audited_without_a_fetch(run, small_phantom):
    status, out, said = run("data", "verify", "phantom")
    assert (status, said) == (0, []) and "fingerprint " in out
    assert "phantom" in run("data", "list")[1]
    status, out, said = run("data", "audit", "phantom")
    assert (status, said) == (0, []) and "Classes: train" in out
    assert run("audit", "phantom", "--fail-on", "fault")[0] == 0


@pytest.mark.slow
def test_from_an_audit_to_a_prediction_on_films_of_ones_own(run, accelerator, films, own, tmp_path):
    spoilt = sorted((own / "train" / "NORMAL").iterdir())[0]
    spoilt.write_bytes(spoilt.read_bytes()[: spoilt.stat().st_size // 2])
    train = ("train", "tiny-cnn-28", "--dataset", own, "--budget", "quick")
    status, _, said = run(*train)
    assert status == 1 and str(spoilt) in said[0] and "data audit" in said[0]
    status, out, said = run("data", "audit", own)
    assert status == 1
    assert "1 of 40 images cannot be used" in said[0]
    assert str(spoilt) in out
    assert not manifest.quarantine_path(own).exists(), "a refused audit takes no image away"
    assert run("data", "audit", own, "--max-bad", "0.1")[0] == 0
    quarantined = pd.read_csv(manifest.quarantine_path(own))["path"]
    assert quarantined.tolist() == [str(spoilt)]
    status, out, said = run(*train)
    assert (
        (status, said) == (0, []) and (Path(out.strip()) / "run.json").exists() and spoilt.exists()
    )
    status, out, _ = run("report", own)
    assert (
        status == 0
        and Path(out.strip()) == paths.REPORTS / catalog.get_dataset(own).name / "index.html"
    )
    # The folder's path stands for its report here too, and other films are named by theirs.
    external = ("external", "tiny-cnn-28", "--dataset", own, "--on")
    status, out, said = run(*external, films)
    assert (status, out) == (1, "")
    assert "39 of the 40 images" in said[0]
    status, out, said = run(*external, films, "--allow-known-images")
    assert (status, said) == (0, [])
    assert "balanced_accuracy" in out
    others = write(tmp_path / "others", PhantomSettings(images=40, size=32, seed=5))
    status, out, said = run(*external, others)
    assert (status, said) == (0, [])
    assert "balanced_accuracy" in out
    recipe, bad = ("--model", "tiny-cnn-28", "--dataset", own), tmp_path / "bad.png"
    bad.write_text("no film")
    good = sorted((films / "test" / "NORMAL").iterdir())[:2]
    status, out, said = run("predict", *good, *recipe, "--csv", tmp_path / "answers.csv")
    table = pd.read_csv(tmp_path / "answers.csv")
    assert (status, said) == (0, []) and table["probability"].between(0, 1).all()
    assert table["path"].tolist() == [str(file) for file in good]
    status, out, said = run("predict", good[0], bad, good[1], *recipe)
    assert (
        status == 1
        and len(said) == 1
        and "bad.png" in said[0]
        and all(str(file) in out for file in good)
    )
    status, _, said = run("predict", bad, tmp_path / "nowhere.png", *recipe)
    assert status == 1 and len(said) == 2


@pytest.mark.parametrize("place", ["CACHE", "RUNS"])
def test_places_that_cannot_be_written_are_named(
    run, accelerator, films, places, monkeypatch, place
):
    (places / "file").write_text("")
    monkeypatch.setenv(f"XRAYLIB_{place}", str(places / "file" / "below"))
    status, _, said = run("train", "tiny-cnn-28", "--dataset", films, "--budget", "quick")
    assert (status, len(said)) == (1, 1)
    assert (
        str(places / "file") in said[0] and "Fix: a file stands where a folder is needed" in said[0]
    )


@pytest.mark.parametrize(
    ("error", "expected", "advice"),
    [
        (KeyboardInterrupt(), 130, "goes on where it stopped"),
        (commands.Terminated(signal.SIGTERM), 143, "goes on where it stopped"),
    ],
)
def test_an_interrupt_ends_without_a_traceback(run, monkeypatch, error, expected, advice):
    def interrupted(options):
        raise error

    monkeypatch.setattr(commands, "data_list", interrupted)
    status, _, complaints = run("data", "list")
    assert status == expected
    assert advice in complaints[0]


# predict


def test_the_command_answers_in_every_form(tmp_path, run):
    image = EXAMPLES / "normal.jpeg"
    odd = tmp_path / os.fsdecode(b"caf\xe9.jpeg")
    shutil.copy(image, odd)
    table, heat = tmp_path / "t.csv", tmp_path / "heat"
    status, out, complaints = run(
        "predict", image, odd, "--json", "--csv", table, "--heatmap", heat
    )
    assert (status, complaints) == (0, [])
    lines = [json.loads(line) for line in out.splitlines()]
    assert [list(line) for line in lines] == [list(answers.COLUMNS)] * 2
    assert lines[0]["probability"] == lines[1]["probability"]
    assert lines[1]["path"] == str(odd)
    written = pd.read_csv(table)
    assert list(written) == list(answers.COLUMNS)
    assert written["probability"].tolist() == [line["probability"] for line in lines]
    heat_maps = list(heat.iterdir())
    assert len(heat_maps) == 2
    for file in heat_maps:
        with Image.open(file) as heat_map:
            assert heat_map.size == (224, 224)
    status, out, complaints = run("predict", image, tmp_path / "none.png")
    assert status == 1
    named = f"{lines[0]['probability']:.3f}  {lines[0]['answer']}"
    assert f"{image}  {named}" in out
    assert f"prevalence of {lines[0]['prevalence']:.3g}" in out
    assert "right on the official test" in out
    assert "none.png: no such file. Fix: " in complaints[0]


def test_what_was_passed_over_is_counted_and_named_at_the_end(tmp_path):
    shutil.copy(EXAMPLES / "normal.jpeg", tmp_path / "image")
    (tmp_path / "notes\n.txt").write_text("no image")
    (tmp_path / ".git").mkdir()
    status, out, err = shell("predict", tmp_path, XRAYLIB_CACHE=tmp_path / "cache")
    assert status == 0
    assert out.count("normal") == 1
    last = err.splitlines()[-3:]
    assert any(line.endswith(f"{tmp_path}/.git/") for line in last)
    assert any(line.endswith(r"notes\n.txt") for line in last)
    assert last[-1].startswith("2 ")


def test_litert_says_nothing_of_its_own(tmp_path):
    status, _, err = shell("predict", EXAMPLES / "normal.jpeg")
    assert (status, err) == (0, "")


def test_the_first_image_of_a_pattern_is_not_taken_for_the_table(run, tmp_path):
    images = [tmp_path / name for name in ("a.jpeg", "b.jpeg")]
    for image in images:
        shutil.copy(EXAMPLES / "normal.jpeg", image)
    before = images[0].read_bytes()
    for arguments in (("--csv", *images), (tmp_path, "--csv", images[0])):
        status, out, complaints = run("predict", *arguments)
        assert (status, out, len(complaints)) == (1, "", 1)
        assert "a.jpeg" in complaints[0]
        assert "Fix: " in complaints[0]
        assert images[0].read_bytes() == before


def test_pictures_are_never_among_the_images_or_each_other(run, tmp_path):
    for arguments in (
        (tmp_path, "--heatmap", tmp_path / "heat"),
        (tmp_path, "--explain", tmp_path),
        ("x.png", "--heatmap", tmp_path / "heat", "--explain", tmp_path / "heat"),
    ):
        status, out, complaints = run("predict", *arguments)
        assert (status, out, len(complaints)) == (1, "", 1)
        assert "Fix: name another folder" in complaints[0]
        assert not list(tmp_path.iterdir())


# So many that a signal after a tenth of them comes before the last is answered.
IMAGES_TO_ANSWER = 150


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_a_stopped_command_keeps_its_answers_and_goes_on(tmp_path, number):
    images = tmp_path / "images"
    images.mkdir()
    for index in range(IMAGES_TO_ANSWER):
        shutil.copy(EXAMPLES / "normal.jpeg", images / f"{index:03d}.jpeg")
    table = tmp_path / "answers.csv"
    command = ["predict", images, "--csv", table, "--heatmap", tmp_path / "heat"]
    # Under nohup, a child is born ignoring SIGHUP; in the background of a script, SIGINT.
    code = "import signal, sys; signal.signal(signal.SIGHUP, signal.SIG_DFL); "
    code += "signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "from xraylib import cli; sys.exit(cli.main(sys.argv[1:]))"
    process = start_python(code, *command)
    for line in process.stdout:
        if "034.jpeg" in line:
            process.send_signal(number)
            break
    process.stdout.read()
    complaints = process.stderr.read()
    status = process.wait(100)
    process.stdout.close()
    process.stderr.close()
    kept = table.read_text().count("\n") - 1
    assert 34 <= kept < IMAGES_TO_ANSWER
    if number != signal.SIGKILL:
        assert status == 128 + number
        assert "the same command goes on where it stopped" in complaints
        assert "Traceback" not in complaints
        assert not list((tmp_path / "heat").glob(".partial-*"))
    out = run_python(code, *command)
    assert out.count(".jpeg") in (IMAGES_TO_ANSWER - kept, IMAGES_TO_ANSWER + 1 - kept)
    written = pd.read_csv(table)
    assert written["path"].tolist() == sorted(map(str, images.iterdir()))
    assert (written["status"] == "ok").all()
    assert written["answer"].nunique() == 1


def in_shell(line, folder):
    """Run a line of a shell, in which `$PREDICT` answers one example."""
    predict = f"{sys.executable} -m xraylib predict"
    environment = os.environ | {
        "PREDICT": f"{predict} {EXAMPLES / 'normal.jpeg'}",
        "LISTED": f"{predict} -",
        "PYTHONPATH": str(paths.ROOT),
    }
    command = ["bash", "-c", line]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, cwd=folder, timeout=100
    )
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("$PREDICT >&-", "standard output is closed"),
        ("$PREDICT >/dev/full", "cannot write standard output: No space left"),
        ("$PREDICT --json >/dev/full", "cannot write standard output: No space left"),
        ("$PREDICT --csv /dev/full", "cannot write /dev/full: No space left"),
        ("$PREDICT --heatmap /dev/null", "cannot write /dev/null"),
        ("$LISTED <&-", "the list on standard input is empty"),
    ],
)
def test_a_full_or_closed_stream_is_one_message(tmp_path, line, named):
    status, _, err = in_shell(line, tmp_path)
    complaints = [text for text in err.splitlines() if text.startswith("xraylib: ")]
    assert status == 1
    assert len(complaints) == 1
    assert named in complaints[0]
    assert "Fix: " in complaints[0]


def test_a_reader_that_closes_ends_the_command_quietly(tmp_path):
    status, out, err = in_shell("set -o pipefail; $PREDICT | true", tmp_path)
    assert (status in (0, 1), out, err) == (True, "", "")


def test_devices_and_pipes_take_the_table_and_stay_what_they_are(tmp_path):
    status, out, _ = in_shell("$PREDICT --json --csv /dev/stdout | cat", tmp_path)
    assert status == 0
    assert out.splitlines()[0] == ",".join(answers.COLUMNS)
    assert len(out.splitlines()) == 3
    status, _, _ = in_shell("$PREDICT --csv /dev/null", tmp_path)
    assert status == 0
    assert Path("/dev/null").is_char_device()


def test_a_prevalence_moves_every_probability_and_is_named(run, tmp_path):
    image = EXAMPLES / "pneumonia.jpeg"
    _, out, _ = run("predict", image, "--json")
    usual = json.loads(out)
    table = tmp_path / "rare.csv"
    _, out, _ = run("predict", image, "--json", "--prevalence", "0.05", "--csv", table)
    rare = json.loads(out)
    assert rare["prevalence"] == 0.05 != usual["prevalence"]
    assert rare["probability"] < usual["probability"]
    status, _, complaints = run("predict", image, "--csv", table)
    assert status == 1
    assert "prevalence '0.05'" in complaints[0]


class NotebookStream(io.StringIO):
    """Standard output in a notebook: it can be written and flushed, and no more."""

    def fileno(self):
        raise io.UnsupportedOperation("fileno")


def test_commands_run_in_a_notebook(monkeypatch):
    stream = NotebookStream()
    monkeypatch.setattr("sys.stdout", stream)
    assert cli.main(["predict", str(EXAMPLES / "normal.jpeg")]) == 0
    assert "normal.jpeg  " in stream.getvalue()

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(commands, "_print_answer", full)
    assert cli.main(["predict", str(EXAMPLES / "normal.jpeg")]) == 1


def test_another_error_of_the_system_is_not_taken_for_that_of_standard_output(monkeypatch):
    def fail(options):
        raise OSError(errno.ENOSPC, "No space left on device", "some-file")

    monkeypatch.setattr(commands, "data_list", fail)
    with pytest.raises(OSError, match="some-file"):
        cli.main(["data", "list"])


def test_notebooks_without_their_extra_are_one_message(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "papermill", None)
    monkeypatch.delitem(sys.modules, "xraylib.report.notebooks", raising=False)
    monkeypatch.delattr("xraylib.report.notebooks", raising=False)
    status, _, complaints = run("run-notebook", "a.ipynb", "b.ipynb")
    assert (status, len(complaints)) == (1, 1)
    assert "papermill" in complaints[0]
    assert "[notebooks]" in complaints[0]
