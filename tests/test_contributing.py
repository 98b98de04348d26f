"""A published system is added by one entry: the page that says so is run as it is."""

import linecache
import re
from dataclasses import replace

import keras
import pytest

from xraylib import devices
from xraylib.datasets import manifest
from xraylib.experiment import Experiment
from xraylib.paths import ROOT
from xraylib.report import pages, tables
from xraylib.training import recipes, runs
from xraylib.training.recipes import BUDGETS, Budget, Phase, Recipe, get_recipe, part_name
from xraylib.training.train import train

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
ENTRY, OWN_PART = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def toy(monkeypatch):
    names = {"Recipe": Recipe, "Phase": Phase}
    exec(ENTRY, names)
    monkeypatch.setitem(recipes.RECIPES, names["TOY"].name, names["TOY"])
    monkeypatch.setitem(BUDGETS, "one", Budget(1, None))
    return names["TOY"]


@pytest.mark.slow
@pytest.mark.usefixtures("small_phantom", "places")
def test_one_entry_gives_rows_in_every_table(toy, accelerator):
    experiment = Experiment("phantom", accelerator, "one", recipes=(toy.name,))
    published = experiment.runs(toy.name, "published")
    strict = experiment.runs(toy.name)
    assert len(published[0].history) == 2
    assert len(strict) == 1
    # The threshold is that of the entry, and of the run: no table knows the recipe.
    assert {run.threshold for run in published} == {toy.under("published").threshold_rule}
    board = tables.leaderboard("phantom")
    assert board["recipe"].tolist() == [toy.name, toy.name]
    assert board["protocol"].tolist() == ["published", "strict"]
    (claim,) = tables.claims("phantom").to_dict(orient="records")
    assert (claim["recipe"], claim["metric"], claim["claim"]) == (toy.name, "accuracy", 0.90)
    for protocol, row in zip(("published", "strict"), board.to_dict(orient="records"), strict=True):
        assert claim[protocol] == pytest.approx(row["accuracy"])
        assert claim[f"{protocol}_low"] <= claim[protocol] <= claim[f"{protocol}_high"]
    page = pages.build("phantom").read_text(encoding="utf-8")
    assert all(words in page for words in (toy.name, toy.title, *toy.retained, *toy.corrected))


def test_a_variant_is_a_name_of_a_recipe():
    (name,) = set(re.findall(r"tiny-cnn-28\+\S+", PAGE))
    variant = get_recipe(name)
    assert (variant.name, variant.size, variant.epochs) == (name, 64, 5)


@pytest.mark.usefixtures("small_phantom", "places")
def test_a_network_of_ones_own_is_trained(accelerator, monkeypatch):
    monkeypatch.setitem(BUDGETS, "full", Budget(1, 1))
    names = {
        "keras": keras,
        "replace": replace,
        "get_recipe": get_recipe,
        "train": train,
        "manifest": manifest,
        "devices": devices,
    }
    # As in a notebook, whose cells are in this cache.
    lines = OWN_PART.splitlines(keepends=True)
    monkeypatch.setitem(linecache.cache, "<cell>", (len(OWN_PART), None, lines, "<cell>"))
    exec(compile(OWN_PART, "<cell>", "exec"), names)
    assert names["run"].settings["choices"]["network"] == part_name(names["blocks"])
    assert runs.list_runs("phantom", "blocks") == [names["run"]]
