import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from PIL import Image

from xraylib import cli, paths
from xraylib.datasets import catalog, fetch
from xraylib.datasets.phantom import PhantomSettings, write
from xraylib.training import train as training
from xraylib.training.systems import BUDGETS, Budget


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Data, cache, runs and reports of this test; one epoch; and a phantom of 40 small images."""
    for name in ("DATA", "CACHE", "REPORTS"):
        monkeypatch.setattr(paths, name, tmp_path / name.lower())
    monkeypatch.setitem(training.train.__kwdefaults__, "runs", tmp_path / "runs")
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


@pytest.fixture
def shell(tmp_path):
    """Run one command as a user does, with places of its own."""

    def command(*arguments, **variables):
        own = {f"XRAYLIB_{name}": tmp_path / name.lower() for name in ("DATA", "CACHE", "RUNS", "REPORTS")}
        environment = os.environ | {name: str(value) for name, value in (own | variables).items()}
        done = subprocess.run(
            [sys.executable, "-m", "xraylib", *map(str, arguments)],
            **{"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 200},
        )
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout, done.stderr

    return command


def test_the_data_sets_are_listed(shell):
    status, out, err = shell("data", "list")
    assert (status, err) == (0, "")
    assert all(name in out for name in catalog.DATASETS)


def test_missing_data_is_named_and_nothing_takes_its_place(shell, tmp_path):
    (tmp_path / "empty").mkdir()
    status, out, err = shell("data", "verify", "kermany", XRAYLIB_DATA=tmp_path / "empty")
    assert (status, out) == (1, "")
    assert err.startswith("xraylib: kermany: no folder ") and "Fix: run `python -m xraylib data fetch" in err
    assert str(tmp_path / "empty") in err
    assert [path.name for path in tmp_path.iterdir()] == ["empty"] and not any((tmp_path / "empty").iterdir())


def test_a_fetch_without_network_says_so_and_leaves_nothing(run, tmp_path, monkeypatch):
    # A port that nobody listens on stands for a network that is not there.
    for variable in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(fetch.time, "sleep", lambda seconds: None)
    status, out, said = run("data", "fetch", "pneumoniamnist")
    assert (status, out, len(said)) == (1, "", 1)
    assert "cannot download https://zenodo.org/" in said[0] and "Fix: " in said[0]
    assert not (tmp_path / "data" / "pneumoniamnist_28").exists()


def test_what_cannot_be_fetched_says_how_to_get_it(run):
    status, _, said = run("data", "fetch", "nih")
    assert status == 1 and "cannot be fetched" in said[0] and "NORMAL" in said[0]


def test_a_cache_that_cannot_be_written_is_named(shell, films, tmp_path):
    (tmp_path / "file").write_text("")
    status, out, err = shell("data", "audit", films, XRAYLIB_CACHE=tmp_path / "file" / "cache")
    assert (status, out) == (1, "")
    assert err.startswith(f"xraylib: cannot write {tmp_path / 'file'}") and "Fix: " in err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nosuch"],
        ["data"],
        ["train"],
        ["predict"],
        ["train", "tiny-cnn-28", "--seed", "x"],
        ["evaluate", "--all"],
    ],
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
        (["data", "audit", "nosuch"], "no data set is named 'nosuch'"),
        (["data", "fetch", "nosuch"], "no data set is named 'nosuch'"),
        (["data", "fetch", "kermany", "--source", "ftp"], "no source named 'ftp'"),
        (["train", "vgg99"], "no recipe 'vgg99'"),
        (["train", "tiny-cnn-28", "--dataset", "nosuch"], "no data set is named 'nosuch'"),
        (["train", "tiny-cnn-28", "--budget", "endless"], "no budget 'endless'"),
        (["train", "tiny-cnn-28", "--device", "abacus"], "no device 'abacus'"),
        (["train", "tiny-cnn-28", "--backend", "torch"], "no backend 'torch'"),
        (["evaluate", "--dataset", "nosuch"], "no data set is named 'nosuch'"),
        (["predict", "film.png", "--recipe", "vgg99"], "no recipe 'vgg99'"),
        (["predict", "film.png", "--dataset", "nosuch"], "no data set is named 'nosuch'"),
    ],
    ids=" ".join,
)
def test_unknown_names_are_one_message_with_a_mend(run, accelerator, places, arguments, named):
    status, out, said = run(*arguments)
    assert (status, out, len(said)) == (1, "", 1)
    assert named in said[0] and "Fix: " in said[0]
    assert not (places / "reports").exists() and not (places / "runs").exists()


def test_an_unknown_protocol_is_refused(run, accelerator, films):
    status, _, said = run(
        "train", "tiny-cnn-28", "--dataset", films, "--protocol", "loose", "--budget", "quick"
    )
    assert status == 1 and "no protocol 'loose'" in said[0] and "Fix: " in said[0]


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "tiny-cnn-28", "--dataset", "kermany"],
        ["data", "audit", "kermany"],
        ["evaluate", "--dataset", "kermany"],
        ["evaluate"],
        ["report"],
        ["predict", "film.png"],
        ["execute", "nowhere.ipynb", "out.ipynb"],
    ],
    ids=" ".join,
)
def test_what_is_missing_is_one_message_with_a_mend(run, accelerator, arguments):
    status, out, said = run(*arguments)
    assert (status, out, len(said)) == (1, "", 1)
    assert "Fix: " in said[0]


def test_the_phantom_is_verified_and_audited_without_a_fetch(run, small_phantom):
    status, out, said = run("data", "verify", "phantom")
    assert (status, said) == (0, []) and "fingerprint " in out
    status, out, said = run("data", "audit", "phantom")
    assert (status, said) == (0, []) and "no file is unreadable" in out and "same patient" in out


def test_an_empty_folder_is_named(run, accelerator, tmp_path):
    (tmp_path / "none").mkdir()
    for command in (["data", "audit"], ["train", "tiny-cnn-28", "--dataset"]):
        status, _, said = run(*command, tmp_path / "none")
        assert status == 1 and str(tmp_path / "none") in said[0] and "Fix: " in said[0]


def test_a_split_of_one_class_is_named(run, accelerator, own):
    shutil.rmtree(own / "test" / "NORMAL")
    status, _, said = run("train", "tiny-cnn-28", "--dataset", own, "--budget", "quick")
    assert status == 1 and "the test split holds pneumonias only" in said[0] and "Fix: " in said[0]


@pytest.fixture
def spoilt(own):
    """A radiograph cut in the middle, in the training folder."""
    file = sorted((own / "train" / "NORMAL").iterdir())[0]
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return file


def test_a_corrupt_image_stops_training_and_is_named(run, accelerator, own, spoilt):
    status, _, said = run("train", "tiny-cnn-28", "--dataset", own, "--budget", "quick")
    assert status == 1 and str(spoilt) in said[0] and "data audit" in said[0]


def test_an_audit_quarantines_it_and_training_goes_on_without(run, accelerator, own, spoilt):
    status, out, said = run("data", "audit", own)
    assert status == 1 and "truncated" in out
    assert "1 of 40 images cannot be used" in said[0] and str(spoilt) in said[0]
    listed = pd.read_csv(catalog.quarantine_path(own))
    assert listed["image_id"].tolist() == [spoilt.stem] and listed["quarantine"].all()
    assert run("data", "audit", own, "--max-bad", "0.1")[0] == 0
    status, out, said = run("train", "tiny-cnn-28", "--dataset", own, "--budget", "quick")
    assert (status, said) == (0, [])
    assert (Path(out.strip()) / "run.json").exists()
    assert spoilt.exists()
    assert run("evaluate", "--dataset", own)[1].count("tiny-cnn-28") == 1
    assert run("report")[0] == 0 and (paths.REPORTS / "index.html").exists()


@pytest.fixture
def trained(run, accelerator, films, places, monkeypatch):
    """A model that `predict` finds."""
    from xraylib import predict

    status, _, _ = run("train", "tiny-cnn-28", "--dataset", films, "--budget", "quick")
    assert status == 0
    monkeypatch.setitem(predict.find_run.__kwdefaults__, "runs", places / "runs")
    return ["--recipe", "tiny-cnn-28", "--dataset", films]


def test_predicting_goes_on_past_bad_files(run, trained, films, tmp_path):
    good = sorted((films / "test" / "NORMAL").iterdir())[:2]
    bad = tmp_path / "bad.png"
    bad.write_text("no film")
    status, out, said = run("predict", *good, *trained, "--csv", tmp_path / "answers.csv")
    assert (status, said) == (0, [])
    table = pd.read_csv(tmp_path / "answers.csv")
    assert table["score"].between(0, 1).all() and table["file"].tolist() == [str(file) for file in good]
    status, out, said = run("predict", good[0], bad, good[1], *trained)
    assert status == 3 and len(said) == 1 and "bad.png" in said[0]
    assert all(str(file) in out for file in good)
    status, _, said = run("predict", bad, tmp_path / "nowhere.png", *trained)
    assert status == 1 and len(said) == 2


@pytest.mark.parametrize("place", ["reports", "runs"])
def test_places_that_cannot_be_written_are_named(run, accelerator, films, places, monkeypatch, place):
    (places / "file").write_text("")
    below = places / "file" / place
    monkeypatch.setattr(paths, "REPORTS", below if place == "reports" else paths.REPORTS)
    if place == "runs":
        monkeypatch.setitem(training.train.__kwdefaults__, "runs", below)
    status, _, said = run("train", "tiny-cnn-28", "--dataset", films, "--budget", "quick")
    assert (status, len(said)) == (1, 1)
    assert str(places / "file") in said[0] and "Fix: a file stands where a folder is needed" in said[0]


def test_an_unknown_parameter_of_a_notebook_is_refused(run, tmp_path):
    cell = nbformat.v4.new_code_cell("seed = 0", metadata={"tags": ["parameters"]})
    about = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=about), tmp_path / "asked.ipynb")
    status, _, said = run("execute", tmp_path / "asked.ipynb", tmp_path / "out.ipynb", "-p", "sede", 1)
    assert status == 1 and "no parameter sede" in said[0] and "choose from seed" in said[0]
    assert not (tmp_path / "out.ipynb").exists()


def test_an_interrupt_ends_without_a_traceback(run, monkeypatch):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_data_list", interrupted)
    status, _, said = run("data", "list")
    assert status == 130 and "interrupted" in said[0]


def test_images_that_are_no_radiographs_of_the_layout_are_refused(run, accelerator, tmp_path):
    (tmp_path / "flat").mkdir()
    Image.new("L", (40, 40)).save(tmp_path / "flat" / "film.png")
    status, _, said = run("train", "tiny-cnn-28", "--dataset", tmp_path / "flat")
    assert status == 1 and str(tmp_path / "flat") in said[0] and "Fix: " in said[0]
