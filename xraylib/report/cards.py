"""The model card: what the models are for, on what they were measured, and where they fail."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from xraylib import paths
from xraylib.evaluation import comparisons, metrics
from xraylib.report import tables
from xraylib.storage import atomic
from xraylib.training.recipes import IMBALANCE_RECIPES, get_recipe

# Stated prevalences: a ward of suspected cases as in the test, and two where pneumonia is rarer.
PREVALENCES = (0.05, 0.2, 0.625)


def write_model_card(dataset: str) -> Path:
    """Write `reports/model_card.md` from a report's scores and tables, and return its path.

    Parameters
    ----------
    dataset
        Name of a report with scores.

    Raises
    ------
    NotFound
        When the report has no scores.
    """
    board, scores = tables.leaderboard(dataset), tables.load_scores(dataset)
    shown = (board["protocol"] == "strict") & ~board["recipe"].isin(IMBALANCE_RECIPES[1:])
    rows = board[shown].to_dict(orient="records")
    for row in rows:
        own = scores[(scores["recipe"] == row["recipe"]) & (scores["protocol"] == "strict")]
        rule = comparisons.operating_point(row["recipe"], "strict")
        row["predictive"] = metrics.predictive(own, PREVALENCES, rule=rule).to_dict(orient="records")
        row["init"] = "no network" if get_recipe(row["recipe"]).fit == "single-feature" else row["init"]
    outside = tables.folder(dataset) / "tables" / "external.csv"
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("xraylib.report"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    card = environment.get_template("model_card.md.j2").render(
        dataset=dataset,
        title=tables.title(dataset),
        note=tables.note(dataset),
        images=f"{scores['image_id'].nunique():,}",
        patients=f"{scores['patient'].nunique():,}",
        hardware="; ".join(sorted(set(board["hardware"]))),
        rows=rows,
        prevalences=PREVALENCES,
        external=_elsewhere(outside) if outside.exists() else [],
    )
    file = paths.REPORTS / "model_card.md"
    with atomic(file) as temporary:
        temporary.write_text(card, encoding="utf-8")
    return file


def _elsewhere(file: Path) -> list[dict[Hashable, Any]]:
    table = pd.read_csv(file)
    return table[~table["recipe"].isin(IMBALANCE_RECIPES[1:])].to_dict(orient="records")
