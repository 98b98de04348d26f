"""A published system is added by one entry: the page that says so is run as it stands."""

import re
from pathlib import Path

import pytest

from xraylib import paths
from xraylib.experiment import Experiment
from xraylib.report import pages, tables
from xraylib.training import recipes
from xraylib.training.systems import BUDGETS, Budget, Phase, Recipe

PAGE = Path(__file__).resolve().parents[1] / "CONTRIBUTING.md"


@pytest.fixture
def toy(monkeypatch):
    (entry,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    known = {"Recipe": Recipe, "Phase": Phase}
    exec(entry, known)
    monkeypatch.setitem(recipes.RECIPES, known["TOY"].name, known["TOY"])
    monkeypatch.setitem(BUDGETS, "one", Budget(1, None))
    return known["TOY"]


def test_the_page_is_short():
    assert len(PAGE.read_text(encoding="utf-8").splitlines()) < 40


@pytest.mark.usefixtures("small_phantom", "reports_here")
def test_one_entry_gives_rows_in_every_table(toy, accelerator):
    experiment = Experiment("phantom", accelerator, "one", recipes=(toy.name,))
    published, strict = experiment.runs(toy.name, "published"), experiment.runs(toy.name)
    assert len(published[0].history) == 2 and len(strict) == 1
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
    page = pages.build_index()
    assert page.parent == paths.REPORTS
    assert all(words in page.read_text(encoding="utf-8") for words in (toy.name, toy.title, *toy.kept))
