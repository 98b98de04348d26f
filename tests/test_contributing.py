"""A published system is added by one entry: the page that says so is run as it stands."""

import re

import pytest

from xraylib.experiment import Experiment
from xraylib.paths import ROOT
from xraylib.report import pages, tables
from xraylib.training import recipes
from xraylib.training.recipes import BUDGETS, Budget, Phase, Recipe

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture
def toy(monkeypatch):
    (entry,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    known = {"Recipe": Recipe, "Phase": Phase}
    exec(entry, known)
    monkeypatch.setitem(recipes.RECIPES, known["TOY"].name, known["TOY"])
    monkeypatch.setitem(BUDGETS, "one", Budget(1, None))
    return known["TOY"]


@pytest.mark.slow
@pytest.mark.usefixtures("small_phantom", "reports_here")
def test_one_entry_gives_rows_in_every_table(toy, accelerator, monkeypatch, tmp_path):
    monkeypatch.setenv("XRAYLIB_RUNS", str(tmp_path / "unfinished"))
    experiment = Experiment("phantom", accelerator, "one", recipes=(toy.name,))
    published, strict = experiment.runs(toy.name, "published"), experiment.runs(toy.name)
    assert len(published[0].history) == 2 and len(strict) == 1
    # The threshold is that of the entry, and of the run: no table knows the recipe.
    assert {run.threshold for run in published} == {toy.under("published").threshold_rule}
    board = tables.leaderboard("phantom")
    assert board[["recipe", "protocol"]].to_numpy().tolist() == [
        [toy.name, "published"],
        [toy.name, "strict"],
    ]
    (claim,) = tables.claims("phantom").to_dict(orient="records")
    assert (claim["recipe"], claim["metric"], claim["claim"]) == (toy.name, "accuracy", 0.90)
    for protocol, row in zip(("published", "strict"), board.to_dict(orient="records"), strict=True):
        assert claim[protocol] == pytest.approx(row["accuracy"])
        assert claim[f"{protocol}_low"] <= claim[protocol] <= claim[f"{protocol}_high"]
    page = pages.build("phantom").read_text(encoding="utf-8")
    assert all(words in page for words in (toy.name, toy.title, *toy.retained, *toy.corrected))
