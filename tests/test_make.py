"""What make builds, empties and calls. The clone is small, and its Python only notes the calls."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from xraylib.paths import ROOT

# It stands in for Python, and for the Python of the environments that it builds.
PYTHON = r"""#!/bin/bash
call=$(printf '%s|' "$@")
echo "$call" >> "$CALLS"
case "$1 $2 $3" in
  "-m venv --clear")
    mkdir -p "$5/bin"
    find "$5" -type f -delete
    touch "$5/pyvenv.cfg"
    cp "$0" "$5/bin/python" ;;
  "-m pip "*) [[ -z "$PIP_FAILS" ]] ;;
  "-m xraylib run-notebook") touch "$5" ;;
  "-m xraylib report") echo "$XRAYLIB_REPORTS/index.html" ;;
esac
"""
ALL = sorted(path.name for path in (ROOT / "notebooks").glob("0*.ipynb"))
# Notebook 09 is about Kermany's files alone.
NOTEBOOKS = [name for name in ALL if not name.startswith("09")]


class Clone:
    """A folder with a Makefile, locks and empty notebooks."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "notebooks").mkdir(parents=True)
        shutil.copy(ROOT / "Makefile", folder)
        for name in ("requirements.lock", "requirements-dev.lock", "pyproject.toml"):
            (folder / name).write_text(name)
        for name in ALL:
            (folder / "notebooks" / name).touch()
        self.python = folder.parent / "fake python"
        self.python.write_text(PYTHON)
        self.python.chmod(0o755)
        self.log = folder.parent / "calls"

    def make(self, *arguments, **variables):
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("XRAYLIB_", "MAKE", "MFLAGS", "CONDA_"))
        }
        return subprocess.run(
            ["make", *arguments, f"PYTHON={self.python}"],
            cwd=self.folder,
            env=inherited | {"CALLS": str(self.log)} | variables,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def calls(self, *arguments, **variables):
        """The calls of Python that a successful make made, each a list of words."""
        self.log.write_text("")
        done = self.make(*arguments, **variables)
        assert done.returncode == 0, done.stderr
        lines = self.log.read_text().splitlines()
        return [line.split("|")[:-1] for line in lines if not line.startswith("-c|")]


@pytest.fixture
def clone(tmp_path):
    return Clone(tmp_path / "my clone")


def installed(calls):
    """Locks that pip was told to install."""
    return [call[-1] for call in calls if "--require-hashes" in call]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "files",
    [
        {"thesis.txt": "two years of work"},
        {"pyvenv.cfg": "another project's", "bin/python": ""},
        {"pyvenv.cfg": "another clone's", "built-by": "/another/clone\n"},
        {"built-by": "{here}\n", "thesis.txt": "in what was an environment once"},
    ],
)
def test_make_leaves_a_folder_alone_that_it_did_not_build(clone, tmp_path, files):
    folder = tmp_path / "precious"
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text.format(here=clone.folder))
    before = contents(folder)
    for target in ("setup", "setup-dev", "reproduce", "lint"):
        done = clone.make(target, f"VENV={folder}")
        assert done.returncode != 0
        said = [line for line in done.stderr.splitlines() if not line.startswith("make")]
        assert len(said) == 1
        assert str(folder) in said[0]
        assert "Fix: remove it, or name another with VENV=" in said[0]
        assert contents(folder) == before


@pytest.mark.parametrize("name", [".", "..", "", "notebooks"])
def test_make_never_empties_the_clone(clone, name):
    before = contents(clone.folder)
    assert clone.make("setup", f"VENV={name}").returncode != 0
    assert contents(clone.folder) == before


@pytest.mark.parametrize("name", [".venv", "an environment"])
def test_an_environment_is_built_once_and_again_for_another_lock(clone, name):
    venv = clone.folder / name
    assert installed(clone.calls("setup", f"VENV={name}")) == ["requirements.lock"]
    assert (venv / "pyvenv.cfg").exists()
    assert clone.calls("setup", f"VENV={name}") == []
    assert installed(clone.calls("setup-dev", f"VENV={name}")) == ["requirements-dev.lock"]
    assert clone.calls("setup-dev", f"VENV={name}") == []
    (venv / "left.py").touch()
    (clone.folder / "requirements.lock").write_text("other versions")
    both = ["requirements.lock", "requirements-dev.lock"]
    assert installed(clone.calls("setup-dev", f"VENV={name}")) == both
    assert not (venv / "left.py").exists()


def test_an_empty_folder_becomes_an_environment(clone, tmp_path):
    (tmp_path / "empty").mkdir()
    assert installed(clone.calls("setup", f"VENV={tmp_path / 'empty'}")) == ["requirements.lock"]


def test_an_interrupted_setup_is_made_good(clone):
    assert clone.make("setup", PIP_FAILS="1").returncode != 0
    assert installed(clone.calls("setup")) == ["requirements.lock"]


def test_another_python_is_refused_with_the_fix(clone):
    clone.python.write_text("#!/bin/bash\nexit 1\n")
    done = clone.make("setup")
    assert done.returncode != 0
    assert "Fix: make setup PYTHON=" in done.stderr
    assert not (clone.folder / ".venv").exists()


def test_reproducing_needs_the_smaller_lock_only(clone):
    assert "requirements-dev.lock" not in clone.make("-n", "reproduce").stdout
    for target in ("lint", "unit", "slow", "stored", "check", "test"):
        assert "requirements-dev.lock" in clone.make("-n", target).stdout


def ran(calls):
    """Notebooks that ran."""
    return sorted(Path(call[3]).name for call in calls if call[2:3] == ["run-notebook"])


def test_folders_with_spaces_are_passed_on_whole(clone, tmp_path):
    films = tmp_path / "my data" / 'x, it\'s "mine"'
    films.mkdir(parents=True)
    places = {"XRAYLIB_REPORTS": "my reports", "XRAYLIB_DATA": str(tmp_path / "all my data")}
    command = ["reproduce", f"DATASET={films}"]
    calls = clone.calls(*command, **places)
    assert ran(calls) == NOTEBOOKS
    for call in calls:
        if call[2:3] == ["run-notebook"]:
            assert call[call.index("dataset") + 1] == str(films)
    assert ["-m", "xraylib", "report", str(films)] in calls
    (report,) = (clone.folder / "build").glob("*/report")
    # A relative folder starts at the clone, whatever folder a notebook runs in.
    assert report.read_text() == f"{clone.folder}/my reports/index.html\n"
    assert " " not in report.parent.name
    # Nothing has changed, so nothing runs; with another parameter everything does.
    assert clone.calls(*command, **places) == []
    assert ran(clone.calls(*command, "SEED=1", **places)) == NOTEBOOKS


def test_a_place_given_to_make_is_a_place_given_in_the_environment(clone):
    clone.calls("reproduce", "XRAYLIB_REPORTS=my reports")
    report = clone.folder / "build" / "phantom" / "report"
    assert report.read_text() == f"{clone.folder}/my reports/index.html\n"


def build_folder(clone, dataset):
    planned = clone.make("-n", "reproduce", f"DATASET={dataset}").stdout
    (folder,) = set(re.findall(r"build/(\S+)/parameters\.new", planned))
    return folder


def test_each_data_set_has_a_build_folder(clone, tmp_path):
    assert build_folder(clone, "phantom") == "phantom"
    given = [
        tmp_path / "a" / "x",
        tmp_path / "b" / "x",
        tmp_path / "b" / "x y",
        "a b",
        "..",
        "notebooks/",
    ]
    names = [build_folder(clone, dataset) for dataset in given]
    assert len(set(names)) == len(names)
    for name in names:
        assert re.fullmatch(r"folder-[\w.-]+-\d+", name)
    # One folder has one name, however its path is written.
    assert build_folder(clone, clone.folder / "notebooks") == build_folder(clone, "./notebooks")


def test_committed_runs_that_change_give_another_report(clone, tmp_path):
    run = tmp_path / "my reports" / "kermany" / "runs" / "toy" / "strict-0" / "run.json"
    run.parent.mkdir(parents=True)
    run.write_text("{}")
    command = ["reproduce", "DATASET=kermany", f"XRAYLIB_REPORTS={tmp_path / 'my reports'}"]
    assert ran(clone.calls(*command)) == [name for name in ALL if not name.startswith("05")]
    assert clone.calls(*command) == []
    run.write_text('{"threshold": 0.4}')
    assert clone.calls(*command) == [["-m", "xraylib", "report", "kermany"]]
