import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from xraylib import cli, paths
from xraylib.datasets import catalog, manifest
from xraylib.datasets.phantom import PhantomSettings, write
from xraylib.training.recipes import BUDGETS, Budget


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


def test_help_is_quick_and_loads_nothing_heavy():
    shell("--help")
    began = time.perf_counter()
    status, out, err = shell("--help")
    assert (status, err) == (0, "") and "run-notebook" in out
    # Half a second for a user; here others may use the machine as well.
    assert time.perf_counter() - began < 2
    heavy = (
        "{'numpy', 'pandas', 'scipy', 'sklearn', 'PIL', 'keras', 'matplotlib'} & set(sys.modules)"
    )
    code = f"import sys, xraylib.cli; xraylib.cli._parser(); print({heavy})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=paths.ROOT
    )
    assert done.stdout.strip() == "set()"


@pytest.mark.slow
def test_missing_data_is_named_and_nothing_takes_its_place(tmp_path):
    (tmp_path / "empty").mkdir()
    status, out, err = shell("data", "verify", "kermany", XRAYLIB_DATA=tmp_path / "empty")
    assert (status, out) == (1, "")
    assert err.startswith("xraylib: ") and "Fix: run `python -m xraylib data fetch" in err
    assert str(tmp_path / "empty") in err and not any((tmp_path / "empty").iterdir())


@pytest.mark.parametrize(
    "arguments",
    [[], ["nosuch"], ["data"], ["train"], ["predict"], ["report", "--all"]],
    ids=" ".join,
)
def test_wrong_usage_is_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert "usage: python -m xraylib" in capsys.readouterr().err


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
        (["predict", str(Path(__file__).parent)], "no image in"),
        (["predict", "film.png", "--threshold", "7"], "--threshold 7.0 is no probability"),
        (
            ["predict", __file__, "--model", "mobilenetv2-frozen"],
            "no model of mobilenetv2-frozen, trained on",
        ),
        (["external", "vgg99"], "vgg99'"),
        (["external", "tiny-cnn-28"], "nih"),
        (["corruptions", "tiny-cnn-28", "vgg99"], "vgg99'"),
        (["ood", "--dataset", "nosuch"], "nosuch'"),
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
    for command in (["data", "audit"], ["train", "tiny-cnn-28", "--dataset"]):
        status, _, said = run(*command, tmp_path / "none")
        assert status == 1 and str(tmp_path / "none") in said[0] and "Fix: " in said[0]


@pytest.mark.slow
def test_the_phantom_is_verified_and_audited_without_a_fetch(run, small_phantom):
    status, out, said = run("data", "verify", "phantom")
    assert (status, said) == (0, []) and "fingerprint " in out
    assert "phantom" in run("data", "list")[1]
    status, out, said = run("data", "audit", "phantom")
    assert (status, said) == (0, []) and "no file is unreadable" in out and "same patient" in out


@pytest.mark.slow
def test_from_an_audit_to_a_prediction_on_films_of_ones_own(run, accelerator, films, own, tmp_path):
    spoilt = sorted((own / "train" / "NORMAL").iterdir())[0]
    spoilt.write_bytes(spoilt.read_bytes()[: spoilt.stat().st_size // 2])
    train = ("train", "tiny-cnn-28", "--dataset", own, "--budget", "quick")
    status, _, said = run(*train)
    assert status == 1 and str(spoilt) in said[0] and "data audit" in said[0]
    status, out, said = run("data", "audit", own)
    assert status == 1 and "truncated" in out and "1 of 40 images cannot be used" in said[0]
    assert not manifest.quarantine_path(own).exists()
    assert run("data", "audit", own, "--max-bad", "0.1")[0] == 0
    assert pd.read_csv(manifest.quarantine_path(own))["image_id"].tolist() == [spoilt.stem]
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
    status, out, said = run("external", "tiny-cnn-28", "--dataset", own, "--on", films)
    assert (status, said) == (0, []) and "balanced_accuracy" in out
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


def test_an_interrupt_ends_without_a_traceback(run, monkeypatch):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_data_list", interrupted)
    status, _, said = run("data", "list")
    assert status == 130 and "interrupted" in said[0]
