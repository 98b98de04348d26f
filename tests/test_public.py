"""What `import xraylib` offers."""

import doctest

import pytest
from conftest import run_python

import xraylib
from xraylib import answers, explanation, paths


@pytest.mark.parametrize(
    "module", [xraylib, answers, explanation], ids=lambda module: module.__name__
)
def test_the_examples_of_the_documentation_give_what_they_say(module, monkeypatch):
    monkeypatch.chdir(paths.ROOT)
    results = doctest.testmod(module)
    assert results.failed == 0
    assert results.attempted > 0


def test_importing_the_package_imports_nothing_else():
    code = """
import sys
before = set(sys.modules)
import xraylib
loaded = {name.split(".")[0] for name in set(sys.modules) - before}
print(sorted(loaded - set(sys.stdlib_module_names)))
"""
    assert run_python(code).strip() == "['xraylib']"


def test_a_name_loads_no_more_than_it_needs():
    code = """
import sys, xraylib
assert xraylib.RECIPES["tiny-cnn-28"] and callable(xraylib.predict)
print(sorted({"keras", "tensorflow", "jax"} & set(sys.modules)))
"""
    assert run_python(code).strip() == "[]"


def test_every_public_name_is_there_and_listed():
    for name in xraylib.__all__:
        assert getattr(xraylib, name) is not None
        assert name in dir(xraylib)
    assert xraylib.predict.__name__ == "predict"
    assert xraylib.Experiment.__name__ == "Experiment"
    with pytest.raises(AttributeError, match="no attribute 'nosuch'"):
        _ = xraylib.nosuch


def test_one_call_answers_one_image():
    table = xraylib.predict(paths.ROOT / "data" / "examples" / "pneumonia.dcm")
    assert len(table) == 1
    assert list(table) == list(answers.COLUMNS)
    assert table.loc[0, "answer"] == "looks like pneumonia"
    assert table.loc[0, "probability"] > 0.5


def test_a_loaded_model_answers_as_the_default_and_at_another_threshold():
    image = str(paths.ROOT / "data" / "examples" / "normal.jpeg")
    model = xraylib.load_model()
    usual = xraylib.predict(image)
    assert xraylib.predict(image, model).equals(usual)
    low = xraylib.predict([image], model, threshold=usual.loc[0, "probability"])
    assert (usual.loc[0, "label"], low.loc[0, "label"]) == ("", "pneumonia")
    rarer = xraylib.predict(image, prevalence=0.01)
    assert rarer.loc[0, "probability"] < usual.loc[0, "probability"]
