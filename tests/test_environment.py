import os
import sys

import pytest
from conftest import run_python

from xraylib import environment

STATED = [
    "numpy>=1",
    "pandas>=999",
    "not-a-package-of-anyone",
    'pillow>=999; extra == "dev"',
    'jinja2>=3; extra == "notebooks"',
    'keras>=999; extra == "tpu"',
    'scipy>=999; sys_platform == "nowhere"',
]


@pytest.fixture
def another_edition(tmp_path, monkeypatch):
    """Metadata of this distribution that states other requirements, found before the true one."""
    folder = tmp_path / "site" / "xraylib_pneumonia-9.9.dist-info"
    folder.mkdir(parents=True)
    head = ["Metadata-Version: 2.1", f"Name: {environment.DISTRIBUTION}", "Version: 9.9"]
    extras = [f"Provides-Extra: {extra}" for extra in ("dev", "notebooks", "tpu")]
    lines = [*head, *extras, *(f"Requires-Dist: {one}" for one in STATED)]
    (folder / "METADATA").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(folder.parent)
    return folder.parent


def names(unmet):
    return {text.split(">")[0].split(";")[0] for text in unmet}


def test_only_what_applies_here_and_is_not_met_is_listed(another_edition):
    assert names(environment.unmet()) == {"pandas", "not-a-package-of-anyone", "pillow"}


def test_an_extra_is_asked_for_by_name(another_edition):
    assert names(environment.unmet(("tpu",))) == {"pandas", "not-a-package-of-anyone", "keras"}
    assert "pillow" not in names(environment.unmet(()))


def test_the_package_itself_may_be_missing(monkeypatch):
    monkeypatch.setattr(environment, "DISTRIBUTION", "xraylib-that-nobody-installed")
    assert environment.unmet() == ["xraylib-that-nobody-installed"]


def answer(*path):
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    script = "import runpy; runpy.run_module('xraylib.environment', run_name='__main__')"
    return run_python(script, env=variables)


def test_the_makefile_gets_true_where_the_tests_run():
    assert environment.unmet() == [] and answer() == "True\n", sys.executable


def test_the_makefile_gets_false_where_something_is_missing(another_edition):
    assert answer(str(another_edition)) == "False\n"
