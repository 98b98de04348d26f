import re

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from builders import scores
from matplotlib.text import Text
from PIL import Image

from xraylib.evaluation import metrics
from xraylib.figures import curves, intervals, style
from xraylib.training.recipes import RECIPES

KNOWN = next(iter(RECIPES))
BOTH = (KNOWN, "unheard-of")


def words(fig):
    """All text that is drawn."""
    fig.draw_without_rendering()
    return "\n".join(text.get_text() for text in fig.findobj(Text) if text.get_visible())


def drawn(ax):
    """The lines of some axes as pairs of lists, x and y."""
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines]


def frame(columns, *rows):
    """A table; `x±` are the columns x, x_low and x_high."""
    return pd.DataFrame(rows, columns=re.sub(r"(\S+)±", r"\1 \1_low \1_high", columns).split())


def history(epochs=6, seed=0):
    values = np.random.default_rng(seed).random((epochs, 4)) + 0.2
    table = pd.DataFrame(values, columns=["loss", "accuracy", "val_loss", "val_accuracy"])
    return table.assign(epoch=range(1, epochs + 1), phase=[int(e >= 4) for e in range(epochs)])


BOARD = frame(
    "recipe protocol init seeds n_test accuracy± auc± claimed_accuracy",
    ("unheard-of", "strict", "none", 1, 624, 0.7, 0.67, 0.73, 0.75, 0.73, 0.77, np.nan),
    (KNOWN, "strict", "imagenet", 3, 624, 0.8, 0.77, 0.83, 0.9, 0.88, 0.92, 0.95),
    (KNOWN, "published", "imagenet", 3, 624, 0.85, 0.82, 0.88, 0.88, 0.86, 0.99, 0.95),
)
COMPARISON = frame(
    "recipe comparison n seeds accuracy±",
    *((name, split, 624, 3, 0.8, 0.77, 0.83) for name in BOTH for split in ("random split", "official test")),
)
GROUPS = frame(
    "recipe subgroup images right±",
    *((name, group, 40, 0.8, 0.7, 0.9) for name in BOTH for group in ("virus", "normal")),
)
GAP = frame(
    "recipe metric test± external±",
    *((KNOWN, metric, 0.9, 0.85, 0.95, 0.5, 0.42, 0.58) for metric in ("auc", "balanced_accuracy")),
)
DELTAS = frame(
    "recipe corruption severity n auc delta_auc± delta_balanced_error±",
    (KNOWN, "none", 0, 99, 0.9, *[0.0] * 6),
    *((KNOWN, "jpeg", step, 99, 0.9 - step / 10, 0.3, 0.2, 0.4, 0.1, -0.05, 0.15) for step in (1, 5)),
    (KNOWN, "inversion", 1, 99, 0.05, 0.85, 0.75, 0.95, 0.4, 0.3, 0.5),
)
AVERAGED = pd.concat([DELTAS.iloc[[0, 2]].assign(severity=5), DELTAS.iloc[[3]]])
COVERED = frame(
    "recipe split kind covered low high",
    *((KNOWN, s, kind, 0.8, 0.7, 0.9) for s in ("test", "external") for kind in ("normal", "pneumonia")),
)
FLAGGED = frame("group images flagged low high", ("val", 40, 0.05, 0.0, 0.1), ("far", 40, 0.9, 0.8, 1.0))
FLAGGED["limit"] = 3.9
DISTANCES = pd.DataFrame({"group": ["val", "far"] * 40, "ood_score": np.linspace(1, 9, 80)})
BY_SEED = pd.Series({0: 0.4, 1: 0.6})
SCORES = pd.concat([scores(60, seeds=(0, 1), sample=i).assign(recipe=BOTH[i]) for i in (0, 1)])
TEST, OWN = SCORES[SCORES["split"] == "test"], SCORES[SCORES["recipe"] == KNOWN]

FIGURES = {
    curves.learning_curves: ({"seed 0": history(), "seed 1": history(1, 1)}, "Does validation follow?"),
    curves.roc: (TEST, frame("recipe sensitivity specificity", (KNOWN, 0.9, 0.7))),
    intervals.leaderboard: (BOARD,),
    intervals.protocol_comparison: (COMPARISON,),
    intervals.subgroups: (GROUPS, "Which subgroups are correctly classified?"),
    intervals.generalisation_gap: (GAP, "nih, n = 518"),
    intervals.corruption_losses: (AVERAGED,),
    intervals.coverage: (COVERED, 0.9, "nih, n = 518"),
    intervals.ood: (DISTANCES, FLAGGED),
    intervals.score_distribution: (OWN, BY_SEED),
}


def test_every_public_figure_is_tried():
    found = [vars(module).values() for module in (curves, intervals)]
    own = {
        f for values in found for f in values if getattr(f, "__module__", "").startswith(style.__package__)
    }
    assert set(FIGURES) == {figure for figure in own if hasattr(figure, "__wrapped__")}


@pytest.mark.parametrize("figure", FIGURES, ids=lambda function: function.__name__)
def test_a_figure_is_titled_readable_and_inside_its_frame(figure, tmp_path):
    with mpl.rc_context({"font.size": 30, "axes.labelsize": 30, "xtick.labelsize": 30, "savefig.dpi": 40}):
        fig = figure(*FIGURES[figure])
        assert mpl.rcParams["font.size"] == 30 and plt.get_fignums() == [], "something is left in the session"
    assert fig.get_dpi() == 150 and fig.get_figwidth() <= 10 and fig.get_suptitle()
    fig.savefig(tmp_path / "figure.png", dpi=75)
    image = np.asarray(Image.open(tmp_path / "figure.png").convert("L"))
    sizes = [text.get_fontsize() for text in fig.findobj(Text) if text.get_text() and text.get_visible()]
    assert min(sizes) >= 7 and max(sizes) <= 13, "the session's style has leaked in"
    edges = (image[0], image[-1], image[:, 0], image[:, -1])
    assert all(edge.min() == 255 for edge in edges), "clipped at its frame"


def test_the_caption_is_inside_the_png_and_its_alt_text(tmp_path):
    (fig := intervals.leaderboard(BOARD)).caption = "AUC 0.85 (0.82–0.88)"
    png, about = fig._repr_png_()
    (tmp_path / "a.png").write_bytes(png)
    with Image.open(tmp_path / "a.png") as image:
        assert image.text["Description"] == about["alt"] == "AUC 0.85 (0.82–0.88)"


def test_a_recipe_has_one_colour_in_every_figure():
    colours = style.recipe_colours(BOTH)
    curve = next(line for line in curves.roc(TEST).axes[0].lines if line.get_linewidth() == 2)
    row = next(line for line in intervals.leaderboard(BOARD).axes[0].lines if line.get_marker() == "o")
    assert curve.get_color() == row.get_color() == colours[KNOWN] == style.recipe_colours([KNOWN])[KNOWN]


def test_unknown_recipes_take_looks_of_their_own():
    unknown = [f"new-{i:02d}" for i in range(20)]
    assert (looks := style.recipe_looks(unknown)) == style.recipe_looks(unknown[::-1])
    assert len(set(looks.values())) == len(RECIPES) + 20


def test_intervals_are_drawn_and_written_in_the_row_they_belong_to():
    auc, accuracy = (fig := intervals.leaderboard(BOARD)).axes
    rows = [label.get_text().split("\n")[0] for label in auc.get_yticklabels()]
    assert rows == [f"{KNOWN}, published", f"{KNOWN}, strict", "unheard-of, strict"]
    assert ([0.82, 0.88], [0, 0]) in drawn(accuracy) and ([0.85], [0]) in drawn(accuracy)
    assert "0.85 (0.82–0.88)" in words(fig)
    claims = [(*line.get_xdata(), *line.get_ydata()) for line in accuracy.lines if line.get_marker() == "D"]
    assert claims == [(0.95, 0)], "only in the row that tests as the claim did"
    (ax,) = intervals.subgroups(GROUPS, "Who?").axes
    assert [x for x, _ in drawn(ax)].count([0.7, 0.9]) == len(GROUPS)
    for ax in intervals.generalisation_gap(GAP, "nih").axes:
        ends = {tuple(x): y[0] for x, y in drawn(ax) if len(x) == 2}
        assert ends[0.85, 0.95] < 0 < ends[0.42, 0.58]


def test_a_leaderboard_without_claims_keeps_its_axes():
    fig = intervals.leaderboard(BOARD.assign(claimed_accuracy=np.nan))
    fig.draw_without_rendering()
    assert min(ax.get_position().width for ax in fig.axes) > 0.15


def test_inversion_does_not_flatten_the_other_corruptions():
    auc, _, own, _ = intervals.corruption_losses(AVERAGED).axes
    assert auc.get_xlim()[1] < 0.5 < 0.9 < own.get_xlim()[1]
    assert [label.get_text() for label in own.get_yticklabels()] == ["inversion"]


def test_roc_tells_the_auc_of_metrics_and_marks_operating_points():
    text = words(fig := curves.roc(*FIGURES[curves.roc]))
    auc = metrics.evaluate(TEST[TEST["recipe"] == KNOWN], rule=0.5).loc["auc"]
    assert f"AUC {auc['value']:.2f} ({auc['low']:.2f}–{auc['high']:.2f})" in text and "unheard-of" in text
    assert "n = 60 images (20 normal, 40 pneumonia)" in text
    assert ([pytest.approx(0.3)], [0.9]) in drawn(fig.axes[0])


def test_learning_curves_draw_every_run_its_best_epoch_and_the_median_of_many():
    runs = {f"seed {seed}": history(6, seed) for seed in range(7)}
    loss = curves.learning_curves({"one": runs["seed 0"]}, "One").axes[0]
    best = runs["seed 0"].loc[runs["seed 0"]["val_loss"].idxmin()]
    assert ([best["epoch"]], [best["val_loss"]]) in drawn(loss) and ([4.5, 4.5], [0, 1]) in drawn(loss)
    fig = curves.learning_curves(runs, "Many", last_kept=True)
    bold = [list(line.get_ydata()) for line in fig.axes[0].lines if line.get_linewidth() > 2]
    assert pd.concat(runs).groupby("epoch")["val_loss"].median().tolist() in bold
    assert "median of 7 runs. The last epoch was kept" in words(fig)


def test_score_distributions_tell_shares_of_the_true_class():
    normal = OWN[(OWN["kind"] == "normal") & (OWN["split"] == "test")]
    positive = (normal["score"] >= normal["seed"].map(BY_SEED)).mean()
    ax = intervals.score_distribution(OWN, BY_SEED).axes[1]
    assert ax.get_title(loc="right") == f"normal, n = 20: {positive:.0%} classified as pneumonia"
