import importlib.metadata
import shutil
import subprocess
from pathlib import Path

import pytest

from xraylib import provenance

SOURCE = "LIMIT = 3\n\n\ndef clip(value):\n    return min(value, LIMIT)\n"
SAME = {
    "a comment": SOURCE.replace("LIMIT = 3", "LIMIT = 3  # more is noise"),
    "a line of comment": "# Clips.\n" + SOURCE,
    "blank lines": SOURCE.replace("\n\n\n", "\n\n\n\n"),
    "spaces between words": SOURCE.replace("LIMIT = 3", "LIMIT=3"),
}
OTHER = {
    "a number": SOURCE.replace("3", "4"),
    "a name": SOURCE.replace("clip", "cut"),
    "a branch": SOURCE.replace("    return", "    if value:\n        return"),
    "the depth of a line": SOURCE + "    LIMIT = 4\n",
}


@pytest.fixture
def fingerprint_of(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))

    def of(*sources):
        for number, source in enumerate(sources):
            (tmp_path / f"module{number}.py").write_text(source, encoding="utf-8")
        return provenance.code_fingerprint([f"module{number}" for number in range(len(sources))])

    return of


@pytest.mark.parametrize("source", SAME.values(), ids=SAME)
def test_what_does_not_run_does_not_count(fingerprint_of, source):
    assert fingerprint_of(source) == fingerprint_of(SOURCE)


@pytest.mark.parametrize("source", OTHER.values(), ids=OTHER)
def test_what_runs_counts(fingerprint_of, source):
    assert fingerprint_of(source) != fingerprint_of(SOURCE)


def test_where_a_line_stands_counts(fingerprint_of):
    inside = "for i in x:\n    f()\n    g()\n"
    assert fingerprint_of(inside) != fingerprint_of(inside.replace("    g", "g"))


def test_every_module_counts(fingerprint_of):
    assert fingerprint_of(SOURCE, SOURCE) != fingerprint_of(SOURCE, OTHER["a number"])


def test_a_fingerprint_is_twelve_hex_digits(fingerprint_of):
    found = fingerprint_of(SOURCE)
    assert len(found) == 12 and int(found, 16) >= 0
    assert fingerprint_of(SOURCE) == found


def test_a_function_has_its_own_fingerprint(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    written = "def one():\n    return 1  # always\n\n\ndef two():\n    return 2\n"
    (tmp_path / "first_edition.py").write_text(written)
    (tmp_path / "second_edition.py").write_text(written.replace("  # always", "").replace("2", "3"))
    import first_edition
    import second_edition

    of = provenance.function_fingerprint
    assert of(first_edition.one) == of(second_edition.one)
    assert of(first_edition.two) != of(second_edition.two)


OTHERS = [name for name in ("python3.11", "python3.12", "python3.13") if shutil.which(name)]
SCRIPT = """import sys, types
sys.path.insert(0, sys.argv[1])
sys.modules["xraylib"] = types.ModuleType("xraylib")
import provenance
print(provenance.code_fingerprint(["training", "batches", "checkpoints", "features", "heads", "models"]))
"""


@pytest.mark.parametrize("python", OTHERS)
def test_every_supported_python_finds_the_same_fingerprint(python):
    package = Path(provenance.__file__).parent
    modules = ["training", "batches", "checkpoints", "features", "heads", "models"]
    there = subprocess.run([python, "-c", SCRIPT, package], capture_output=True, text=True, timeout=60)
    if there.returncode == 127:
        pytest.skip(f"{python} is a name without an interpreter here")
    assert there.returncode == 0, there.stderr
    assert there.stdout.strip() == provenance.code_fingerprint(modules)


def test_versions_are_those_installed():
    found = provenance.versions("tensorflow")
    assert set(found) == {"keras", "scikit-learn", "numpy", "tensorflow"}
    assert found["numpy"] == importlib.metadata.version("numpy")
    assert found["tensorflow"].startswith("2.")
