import re

import pytest
from test_reports import run_of

from xraylib import paths
from xraylib.evaluation.metrics import predictive_values
from xraylib.report import cards, tables
from xraylib.storage import NotFound

pytestmark = pytest.mark.usefixtures("reports_here")


def test_the_card_says_what_the_leaderboard_says():
    for recipe in ("tiny-cnn-28", "scratch-cnn", "majority-class"):
        tables.record(run_of(recipe), "phantom")
    file = cards.write_model_card("phantom")
    card = file.read_text(encoding="utf-8")
    assert file == paths.REPORTS / "model_card.md"
    for row in tables.leaderboard("phantom").to_dict(orient="records"):
        (line, *_) = [line for line in card.splitlines() if line.startswith(f"| `{row['recipe']}` |")]
        assert f"{row['auc']:.3f} ({row['auc_low']:.3f}–{row['auc_high']:.3f})" in line
        ppv, npv = predictive_values(row["sensitivity"], row["specificity"], 0.05)
        cells = [rf"{value:.3f} \([.\d]+–[.\d]+\)" if value == value else "–" for value in (ppv, npv)]
        assert re.search(r" \| ".join([rf"`{row['recipe']}`", *cells]) + r" \|", card)
    for heading in ("Intended use", "Data", "Limits"):
        assert f"## {heading}" in card
    assert "Not a medical device" in card and "## Elsewhere" not in card


def test_without_scores_there_is_no_card():
    with pytest.raises(NotFound, match="Mend"):
        cards.write_model_card("phantom")
    assert not (paths.REPORTS / "model_card.md").exists()
