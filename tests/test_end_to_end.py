"""The one command, as a user gives it, on radiographs of the user's own."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from outside import outside_references

from xraylib.datasets import catalog
from xraylib.datasets.phantom import PhantomSettings, write
from xraylib.report import tables

ROOT = Path(__file__).resolve().parents[1]
NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("0*.ipynb"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed"),
]


class Experiment:
    """The experiment of a folder with 120 small radiographs, in a copy of the repository."""

    def __init__(self, folder):
        self.root = folder / "repository"
        for name in ("xraylib", "notebooks"):
            shutil.copytree(ROOT / name, self.root / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("Makefile", "pyproject.toml"):
            shutil.copy2(ROOT / name, self.root / name)
        self.films = write(folder / "films", PhantomSettings(images=120, size=96))
        self.name = catalog.find(str(self.films)).name
        self.reports, self.work = self.root / "reports", self.root / "build" / self.name
        self.report = self.reports / self.name
        strange = ("KERAS_BACKEND", "MAKEFLAGS", "MAKELEVEL")
        kept = {name: v for name, v in os.environ.items() if name not in strange and "XRAYLIB" not in name}
        # The notebooks' kernels import the copy as well.
        self.environment = kept | {"PYTHONPATH": str(self.root)}

    def copy_of(self, notebook):
        """Where a notebook's executed copy is."""
        return self.work / f"{notebook}.ipynb"

    def make(self, *arguments, **variables):
        given = {"DATASET": self.films, "RECIPES": "tiny-cnn-28", "BUDGET": "quick"} | variables
        given |= {"PY": sys.executable, "PYTHON": sys.executable, "SETUP": ""}
        command = ["make", *arguments, *(f"{name}={value}" for name, value in given.items()), "reproduce"]
        return subprocess.run(
            command, cwd=self.root, env=self.environment, capture_output=True, text=True, timeout=550
        )

    def reruns(self, *arguments, **variables):
        """Name the notebooks that `make` would run; unasked, -n takes the file of parameters for new."""
        printed = self.make("-n", "-o", f"build/{self.name}/parameters", *arguments, **variables).stdout
        return re.findall(r"-m xraylib execute notebooks/(\w+)\.ipynb", printed)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    made = Experiment(tmp_path_factory.mktemp("experiment"))
    done = made.make()
    assert done.returncode == 0, done.stdout + done.stderr
    return made


def test_every_notebook_leaves_its_copy_and_its_page(experiment):
    assert sorted(path.stem for path in experiment.work.glob("*.ipynb")) == NAMES
    pages = sorted((experiment.report / "notebooks").glob("*.html"))
    assert [page.stem for page in pages] == NAMES
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert outside_references(text) == []
        assert "from xraylib import" not in text and "injected-parameters" not in text


def test_the_leaderboard_and_the_page_are_there(experiment):
    board = pd.read_csv(experiment.report / "leaderboard.csv")
    assert tuple(board.columns) == tables.LEADERBOARD
    assert sorted(zip(board["recipe"], board["protocol"], strict=True)) == [
        ("tiny-cnn-28", "published"),
        ("tiny-cnn-28", "strict"),
    ]
    page = (experiment.reports / "index.html").read_text(encoding="utf-8")
    assert outside_references(page) == []
    assert f'id="{experiment.name}"' in page and page.count("<figure>") >= 10
    assert sorted(path.name for path in experiment.reports.iterdir()) == [experiment.name, "index.html"]


def test_pixels_of_the_user_are_kept_apart(experiment):
    assert list((experiment.report / "local").glob("*.png"))
    page = (experiment.reports / "index.html").read_text(encoding="utf-8")
    shown = {path.stem for path in (experiment.report / "figures").glob("*.png")}
    assert page.count("<figure>") == len(shown)
    assert "01_samples" not in shown and "06_predictions" not in shown


def test_the_same_command_again_does_nothing(experiment):
    before = {path: path.stat().st_mtime_ns for path in experiment.reports.rglob("*.*")}
    began = time.perf_counter()
    done = experiment.make()
    assert done.returncode == 0 and ": running on" not in done.stdout
    assert time.perf_counter() - began < 10
    assert before == {path: path.stat().st_mtime_ns for path in experiment.reports.rglob("*.*")}


@pytest.mark.parametrize(
    ("changed", "rerun"),
    [
        ("notebooks/01_eda.ipynb", ["01_eda"]),
        ("notebooks/07_predict.ipynb", ["07_predict"]),
        (
            "notebooks/03_baseline_cnn.ipynb",
            ["03_baseline_cnn", "04_transfer_learning", "06_evaluation", "07_predict"],
        ),
        ("xraylib/metrics.py", NAMES),
    ],
)
def test_only_what_depends_on_a_change_runs_again(experiment, changed, rerun):
    assert sorted(experiment.reruns("-W", changed)) == rerun


def test_a_folder_is_one_study_by_whatever_path(experiment, tmp_path):
    (tmp_path / "link").symlink_to(experiment.films)
    assert experiment.reruns() == []
    for path in (tmp_path / "link", f"{experiment.films}/", experiment.films / ".." / "films"):
        assert experiment.reruns(DATASET=path) == []


def test_a_failed_notebook_leaves_nothing_that_looks_fresh(experiment):
    page = experiment.report / "notebooks" / "01_eda.html"
    before = page.read_bytes()
    done = experiment.make(RECIPES="no-such-recipe")
    assert done.returncode == 2
    assert re.search(r"01_eda\.ipynb, cell \d: NotFound: .*'no-such-recipe'.*Fix: ", done.stderr)
    assert "Traceback" not in done.stderr
    assert page.read_bytes() == before
    assert (experiment.work / "01_eda.failed.ipynb").exists()
    assert not list(experiment.work.glob(".partial-*"))
    # By the file of parameters, which this experiment changed, every copy is out of date.
    changed = (experiment.work / "parameters").stat().st_mtime_ns
    assert all(path.stat().st_mtime_ns < changed for path in map(experiment.copy_of, NAMES) if path.exists())


def test_a_prediction_of_a_trained_model_from_the_shell(experiment, tmp_path):
    film = next((experiment.films / "test" / "PNEUMONIA").iterdir())
    (tmp_path / "letter.png").write_text("Dear colleague")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "xraylib", "predict", film, tmp_path / "letter.png"),
            *("--recipe", "tiny-cnn-28", "--dataset", experiment.films, "--csv", tmp_path / "answers.csv"),
        ],
        **{
            "cwd": experiment.root,
            "env": experiment.environment,
            "capture_output": True,
            "text": True,
            "timeout": 200,
        },
    )
    assert done.returncode == 3, done.stderr
    assert "letter.png" in done.stderr and "Traceback" not in done.stderr
    assert pd.read_csv(tmp_path / "answers.csv")["score"].notna().tolist() == [True, False]
