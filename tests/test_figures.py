import re

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from builders import scores
from matplotlib.colors import same_color
from matplotlib.text import Text
from PIL import Image

from xraylib.evaluation import metrics
from xraylib.figures import curves, data, images, intervals, style
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


COUNTS = {("train", "normal"): 9, ("train", "bacteria"): 14, ("test", "normal"): 6, ("test", "virus"): 4}
KINDS = [pair for pair, n in COUNTS.items() for _ in range(n)]
MANIFEST = frame("split kind", *KINDS).assign(label=lambda t: (t["kind"] != "normal").astype(int))
LABELS = MANIFEST["label"].to_numpy()
PIXELS = np.random.default_rng(0).integers(0, 256, (len(MANIFEST), 24, 20, 1), dtype=np.uint8)
FILES = MANIFEST.assign(width=224, height=224, bytes=np.arange(len(MANIFEST)) * 1000 + 9000)
LEAKS = frame(
    "check splits patients_or_images images share",
    ("same patient", "train and val", 3, 1204, 0.4),
    ("byte-identical", "train and test", 0, 0, 0.0),
)
BALANCE = frame("method label images weight", (None, 0, 100, 1), (None, 1, 300, 1), ("oversample", 0, 300, 2))
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
RUNS = frame(
    "recipe seed n_val n_test val_accuracy accuracy auc",
    *((name, seed, 40, 1624, 0.9, 0.7 + seed / 10, 0.9) for name in BOTH for seed in (0, 1)),
)
SHORTCUTS = frame(
    "feature split auc low high",
    *((feature, split, 0.9, 0.88, 0.92) for feature in ("size", "width") for split in ("train", "test")),
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
RELIABLE = frame("score share low high images", (0.1, 0.2, 0.1, 0.3, 10), (0.9, 0.7, 0.6, 0.8, 30))
BENEFIT = frame("cut benefit low high all", (0.1, 0.5, 0.4, 0.6, 0.5), (0.5, 0.2, 0.1, 0.3, -0.1))
RISK = frame("answered error low high", (0.5, 0.1, 0.05, 0.2), (1.0, 0.2, 0.1, 0.3))
MATRIX = np.array([[144.0, 90.0], [5.0, 385.0]])
BY_SEED = pd.Series({0: 0.4, 1: 0.6})
SCORES = pd.concat([scores(60, seeds=(0, 1), sample=i).assign(recipe=BOTH[i]) for i in (0, 1)])
TEST, OWN = SCORES[SCORES["split"] == "test"], SCORES[SCORES["recipe"] == KNOWN]

FIGURES = {
    data.label_distribution: (MANIFEST,),
    data.intensities: (PIXELS, MANIFEST),
    data.mean_images: (PIXELS, LABELS),
    data.file_properties: (FILES,),
    data.leakage: (LEAKS,),
    data.balance: (BALANCE,),
    curves.learning_curves: ({"seed 0": history(), "seed 1": history(1, 1)}, "Does validation follow?"),
    curves.roc: (TEST, frame("recipe sensitivity specificity", (KNOWN, 0.9, 0.7))),
    curves.precision_recall: (TEST,),
    curves.reliability: ({KNOWN: RELIABLE},),
    curves.decision_curve: ({KNOWN: BENEFIT},),
    curves.risk_coverage: ({KNOWN: RISK},),
    curves.corruption_severity: (DELTAS,),
    intervals.leaderboard: (BOARD,),
    intervals.protocol_comparison: (COMPARISON,),
    intervals.by_run: (RUNS, {KNOWN: "none"}),
    intervals.shortcuts: (SHORTCUTS,),
    intervals.subgroups: (GROUPS, "Which subgroups are correctly classified?"),
    intervals.generalisation_gap: (GAP, "nih, n = 518"),
    intervals.corruption_losses: (AVERAGED,),
    intervals.coverage: (COVERED, 0.9, "nih, n = 518"),
    intervals.ood: (DISTANCES, FLAGGED),
    intervals.confusion: ({"a": MATRIX, "b": MATRIX},),
    intervals.score_distribution: (OWN, BY_SEED),
    images.gallery: (PIXELS[:7], ["person1000_bacteria_2931 of the train folder, pneumonia"] * 7, "Seven"),
    images.lesion_gallery: (PIXELS[:2], PIXELS[:2] > 128, ["a", "b"], "Where?", PIXELS[:2, ..., 0] / 255),
    images.steps: ([PIXELS[0, ..., 0], PIXELS[0, ..., 0] / 255], ["file", "divided by 255"]),
    images.predictions: (PIXELS[:8], LABELS[:8], np.linspace(0, 1, 8), 0.5, "What is predicted?"),
    images.prediction: (PIXELS[0, ..., 0], 0.9, 0.6, "IM-0001.jpeg"),
}


def test_every_public_figure_is_tried():
    found = [vars(module).values() for module in (data, curves, intervals, images)]
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
    (fig := data.leakage(LEAKS)).caption = "AUC 0.85 (0.82–0.88)"
    png, about = fig._repr_png_()
    (tmp_path / "a.png").write_bytes(png)
    with Image.open(tmp_path / "a.png") as image:
        assert image.text["Description"] == about["alt"] == "AUC 0.85 (0.82–0.88)"


def test_a_recipe_has_one_colour_in_every_figure():
    colours = style.recipe_colours(BOTH)
    curve = next(line for line in curves.precision_recall(TEST).axes[0].lines if line.get_linewidth() == 2)
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


def test_inversion_does_not_flatten_the_other_corruptions():
    auc, _, own, _ = intervals.corruption_losses(AVERAGED).axes
    assert auc.get_xlim()[1] < 0.5 < 0.9 < own.get_xlim()[1]
    assert [label.get_text() for label in own.get_yticklabels()] == ["inversion"]
    jpeg, inversion = curves.corruption_severity(DELTAS).axes
    assert jpeg.get_ylim()[0] > 0.3 and inversion.get_ylim() == (0, 1)
    assert drawn(jpeg)[0] == ([0, 1, 5], pytest.approx([0.9, 0.8, 0.4]))


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


def test_scores_and_confusion_tell_shares_of_the_true_class():
    fig = intervals.confusion({"a": MATRIX})
    assert [text.get_text() for text in fig.axes[0].texts[:4]] == ["61.5%", "n = 144", "38.5%", "n = 90"]
    normal = OWN[(OWN["kind"] == "normal") & (OWN["split"] == "test")]
    positive = (normal["score"] >= normal["seed"].map(BY_SEED)).mean()
    ax = intervals.score_distribution(OWN, BY_SEED).axes[1]
    assert ax.get_title(loc="right") == f"normal, n = 20: {positive:.0%} classified as pneumonia"


def test_errors_are_framed_and_a_prediction_says_its_class_and_threshold():
    fig = images.predictions(
        PIXELS[:4], np.array([0, 1, 0, 1]), np.array([0.1, 0.2, 0.9, 0.5]), 0.5, "Errors"
    )
    framed = [same_color(ax.spines["left"].get_edgecolor(), style.ALARM) for ax in fig.axes]
    assert framed == [False, True, True, False] and "Misclassified: 2 of 4 shown" in words(fig)
    for score, kind in ((0.59, "normal"), (0.6, "pneumonia")):
        fig = images.prediction(PIXELS[0, ..., 0], score, 0.6, "IM-0001.jpeg")
        assert fig.get_suptitle() == f"Classified as {kind}"
        assert "threshold 0.60" in words(fig) and "Not a medical device" in words(fig)


def test_only_lesions_are_outlined():
    masks = np.zeros((2, 24, 20), np.uint8)
    masks[1, 5:15, 5:15] = 255
    fig = images.lesion_gallery(PIXELS[:2], masks, ["normal", "virus"])
    assert [len(ax.collections) for ax in fig.axes] == [0, 1]
    box = fig.axes[1].collections[0].get_paths()[0].get_extents()
    assert (box.x0, box.x1, box.y0, box.y1) == (4.5, 14.5, 4.5, 14.5)
