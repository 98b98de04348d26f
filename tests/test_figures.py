import re

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from builders import scores
from matplotlib.text import Text
from notebook_code import definitions
from PIL import Image

from xraylib.figures import plots, style
from xraylib.training.recipes import RECIPES

shift = definitions("07_shift_and_trust")
evaluation = definitions("06_evaluation")
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
).assign(training_version=2)
COMPARISON = frame(
    "recipe comparison n seeds accuracy±",
    *(
        (name, split, 624, 3, 0.8, 0.77, 0.83)
        for name in BOTH
        for split in ("random split", "official test")
    ),
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
    *(
        (KNOWN, "jpeg", step, 99, 0.9 - step / 10, 0.3, 0.2, 0.4, 0.1, -0.05, 0.15)
        for step in (1, 5)
    ),
    (KNOWN, "inversion", 1, 99, 0.05, 0.85, 0.75, 0.95, 0.4, 0.3, 0.5),
)
AVERAGED = pd.concat([DELTAS.iloc[[0, 2]].assign(severity=5), DELTAS.iloc[[3]]])
COVERED = frame(
    "recipe split kind covered low high",
    *(
        (KNOWN, s, kind, 0.8, 0.7, 0.9)
        for s in ("test", "external")
        for kind in ("normal", "pneumonia")
    ),
)
RESPONSE = frame(
    "recipe view n runs specificity±",
    *(
        (name, view, 745, 3, top - i / 5, top - 0.1 - i / 5, top + 0.1 - i / 5)
        for name, top in ((KNOWN, 0.9), ("unheard-of", 0.8))
        for i, view in enumerate(("unchanged", "rows 0.93"))
    ),
)
BY_HEIGHT = frame(
    "recipe bin n specificity± runs",
    *(
        (name, label, size, top, top - 0.1, top + 0.05, 5)
        for name in BOTH
        for label, size, top in (("60–70%", 40, 0.9), ("70–80%", 60, 0.6))
    ),
)
VIEW_GAP = frame(
    "recipe view runs n_val n_test val± test± gap±",
    *(
        (name, view, 5, 747, 624, 0.97, 0.96, 0.98, test, test - 0.02, test + 0.02, *gap)
        for name in BOTH
        for view, test, gap in (
            ("whole image", 0.93, (0.04, 0.02, 0.06)),
            ("lungs, box found", 0.98, (-0.01, -0.03, 0.01)),
        )
    ),
)
BY_SEED = pd.Series({0: 0.4, 1: 0.6})
SCORES = pd.concat([scores(60, seeds=(0, 1), sample=i).assign(recipe=BOTH[i]) for i in (0, 1)])
TEST, OWN = SCORES[SCORES["split"] == "test"], SCORES[SCORES["recipe"] == KNOWN]

FIGURES = {
    plots.learning_curves: (
        {"seed 0": history(), "seed 1": history(1, 1)},
        "Does validation follow?",
    ),
    plots.protocol_comparison: (COMPARISON,),
}


def test_every_public_figure_is_tried():
    own = (
        each for each in vars(plots).values() if getattr(each, "__module__", "") == plots.__name__
    )
    assert set(FIGURES) == {figure for figure in own if hasattr(figure, "__wrapped__")}


def framing_figure():
    """The two panels of notebook 07 that show specificity by crop, and on the test."""
    fig, ((ax,),) = plots.blank(6, 4)
    board = BOARD.assign(specificity=0.5, specificity_low=0.4, specificity_high=0.6)
    shift.draw_test(ax, shift.draw_doses(ax, RESPONSE), board, style.recipe_colours(BOTH))
    return plots.head(fig, "What does cropping change?", "Lines: 95% intervals.", BOTH)


IN_NOTEBOOKS = {
    framing_figure: (),
    shift.lead_figure: (BY_HEIGHT, RESPONSE),
    shift.gap_figure: (VIEW_GAP,),
    evaluation.leaderboard_figure: (BOARD,),
}


@pytest.mark.parametrize(
    "figure", [*FIGURES, *IN_NOTEBOOKS], ids=lambda function: function.__name__
)
def test_a_figure_is_titled_readable_and_inside_its_frame(figure, tmp_path):
    with mpl.rc_context(
        {"font.size": 30, "axes.labelsize": 30, "xtick.labelsize": 30, "savefig.dpi": 40}
    ):
        if figure in IN_NOTEBOOKS:
            mpl.style.use("xraylib.figures.plain")
        before = dict(mpl.rcParams)
        fig = figure(*(FIGURES | IN_NOTEBOOKS)[figure])
        assert mpl.rcParams == before and plt.get_fignums() == [], "something is left behind"
    assert fig.get_dpi() == 150 and fig.get_figwidth() <= 10 and fig.get_suptitle()
    fig.savefig(tmp_path / "figure.png", dpi=75)
    image = np.asarray(Image.open(tmp_path / "figure.png").convert("L"))
    sizes = [
        text.get_fontsize() for text in fig.findobj(Text) if text.get_text() and text.get_visible()
    ]
    assert min(sizes) >= 7 and max(sizes) <= 13, "the session's style has leaked in"
    edges = (image[0], image[-1], image[:, 0], image[:, -1])
    assert all(edge.min() == 255 for edge in edges), "clipped at its frame"


def test_the_caption_is_inside_the_png_and_its_alt_text(tmp_path):
    (fig := evaluation.leaderboard_figure(BOARD)).caption = "AUC 0.85 (0.82–0.88)"
    png, about = fig._repr_png_()
    (tmp_path / "a.png").write_bytes(png)
    with Image.open(tmp_path / "a.png") as image:
        assert image.text["Description"] == about["alt"] == "AUC 0.85 (0.82–0.88)"


def test_a_recipe_has_one_colour_in_every_figure():
    unknown = [f"new-{i}" for i in range(3)]
    assert style.recipe_colours(unknown) == style.recipe_colours(unknown[::-1])
    assert len(set(style.recipe_colours(unknown).values())) == 3
    row = next(
        line
        for line in evaluation.leaderboard_figure(BOARD).axes[0].lines
        if line.get_marker() == "o"
    )
    assert (
        row.get_color() == style.recipe_colours(BOTH)[KNOWN] == style.recipe_colours([KNOWN])[KNOWN]
    )


def test_intervals_are_drawn_and_written_in_the_row_they_belong_to():
    auc, accuracy = (fig := evaluation.leaderboard_figure(BOARD)).axes
    rows = [label.get_text().split("\n")[0] for label in auc.get_yticklabels()]
    label = style.recipe_label(KNOWN)
    assert rows == [f"{label}, published", f"{label}, strict", "unheard-of, strict"]
    assert ([0.82, 0.88], [0, 0]) in drawn(accuracy) and ([0.85], [0]) in drawn(accuracy)
    assert "0.85 (0.82–0.88)" in words(fig)
    claims = [
        (*line.get_xdata(), *line.get_ydata())
        for line in accuracy.lines
        if line.get_marker() == "D"
    ]
    assert claims == [(0.95, 0)], "only in the row that tests as the claim did"
    _, (axes,) = plots.blank(6, 3)
    labels = {"virus": "virus", "normal": "normal"}
    plots.forest(axes, [(GROUPS, "right", "correct")], "subgroup", labels)
    assert [x for x, _ in drawn(axes[0])].count([0.7, 0.9]) == len(GROUPS)


def test_a_leaderboard_without_claims_keeps_its_axes():
    fig = evaluation.leaderboard_figure(BOARD.assign(claimed_accuracy=np.nan))
    fig.draw_without_rendering()
    assert min(ax.get_position().width for ax in fig.axes) > 0.15


def test_learning_curves_draw_every_run_its_best_epoch_and_the_median_of_many():
    runs = {f"seed {seed}": history(6, seed) for seed in range(7)}
    loss = plots.learning_curves({"one": runs["seed 0"]}, "One").axes[0]
    best = runs["seed 0"].loc[runs["seed 0"]["val_loss"].idxmin()]
    assert ([best["epoch"]], [best["val_loss"]]) in drawn(loss) and ([4.5, 4.5], [0, 1]) in drawn(
        loss
    )
    fig = plots.learning_curves(runs, "Many", last_kept=True)
    bold = [list(line.get_ydata()) for line in fig.axes[0].lines if line.get_linewidth() > 2]
    assert pd.concat(runs).groupby("epoch")["val_loss"].median().tolist() in bold
    assert "median of 7 runs. The last epoch was kept" in words(fig)


def test_runs_of_older_code_bear_a_dagger_that_is_explained():
    versions = BOARD.assign(training_version=[2, 1, 2])
    versions.attrs["dataset"] = "kermany"
    text = words(evaluation.leaderboard_figure(versions))
    assert text.count("†\n") == 1 and "strict †" in text
    assert "share children with their training images" in " ".join(text.split())
    versions = BOARD.assign(training_version=[2, 2, 1])
    versions.attrs["dataset"] = "kermany"
    text = words(evaluation.leaderboard_figure(versions))
    # Version 2 changed how `strict` divides patients, and nothing else.
    assert "†" not in text
    versions = BOARD.assign(training_version=1)
    versions.attrs["dataset"] = "phantom"
    assert "children" not in words(evaluation.leaderboard_figure(versions))
    assert "†" not in words(evaluation.leaderboard_figure(BOARD))


def test_every_recipe_has_a_name_for_people_and_neighbours_differ_in_colour():
    labels = [style.recipe_label(name) for name in RECIPES]
    assert len(set(labels)) == len(labels) and not {*labels} & {*RECIPES}
    assert style.recipe_label("unheard-of") == "unheard-of"
    named = [name for name in RECIPES if RECIPES[name].fit != "single-feature"]
    named = [name for name in named if not name.endswith(("-weighted", "sampled"))]
    colours = style.recipe_colours(named)
    assert len(set(colours.values())) == len(named)


def lightness(colour):
    """CIE L* of a colour, which colour blindness hardly changes."""
    red, green, blue = mpl.colors.to_rgb(colour)
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)
    ]
    luminance = np.dot(linear, [0.2126, 0.7152, 0.0722])
    return 116 * luminance ** (1 / 3) - 16


def test_a_network_its_twin_and_the_flagship_differ_in_lightness():
    for name in ("tiny-cnn-28", "mobilenetv2-frozen", "scratch-cnn", "kerasio-tpu"):
        trio = [name, f"{name}-reframed", "flagship"]
        values = sorted(map(lightness, style.recipe_colours(trio).values()))
        assert min(np.diff(values)) > 10


def test_the_lead_figure_draws_every_bin_and_names_the_lines():
    left, right = (fig := shift.lead_figure(BY_HEIGHT, RESPONSE)).axes
    assert [label.get_text() for label in left.get_xticklabels()] == [
        "60–70%\nn = 40",
        "70–80%\nn = 60",
    ]
    assert ([0.0, 1.0], [0.9, 0.6]) in drawn(left)
    segments = [tuple(map(tuple, path.vertices)) for path in left.collections[0].get_paths()]
    assert segments == [((0.0, 0.8), (0.0, pytest.approx(0.95))), ((1.0, 0.5), (1.0, 0.65))]
    assert ([0.0, 1.0], [0.9, pytest.approx(0.7)]) in drawn(right)
    text = words(fig)
    assert style.recipe_label(KNOWN) in text and "unheard-of" in text
    assert "3 to 5 runs" in text and "745 validation images" in text


def test_the_gap_is_drawn_with_both_ends_and_its_sign():
    first, _ = (fig := shift.gap_figure(VIEW_GAP)).axes
    heights = {tuple(x): y[0] for x, y in drawn(first) if len(x) == 2}
    ends = sorted(tuple(np.round(x, 2).tolist()) for x in heights if x[0] > 0)
    assert ends == [(0.91, 0.95), (0.96, 0.98), (0.96, 1.0)]
    text = words(fig)
    assert "0.040 (0.020 to 0.060)" in text and "−0.010 (−0.030 to 0.010)" in text
    assert "5 runs, " in text and "validation images" in text and "624 test images" in text


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((0.85, 0.82, 0.88), "0.850 (0.820–0.880)"),
        ((-0.1, -0.2, 0.05), "−0.100 (−0.200 to 0.050)"),
        ((-0.0001, -0.3, -0.1), "0.000 (−0.300 to −0.100)"),
        ((0.5, np.nan, np.nan), "0.500"),
        ((np.nan, 0.1, 0.2), "–"),
    ],
)
def test_a_number_is_written_with_its_sign_and_interval(values, text):
    assert style.interval(*values) == text
