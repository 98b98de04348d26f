import re
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import same_color, to_hex
from matplotlib.text import Text
from PIL import Image

from xraylib.evaluation import metrics
from xraylib.figures import plots, style
from xraylib.storage import DataInvalid
from xraylib.training.recipes import RECIPES

KNOWN = next(iter(RECIPES))


def words(fig):
    """All text that is drawn."""
    fig.draw_without_rendering()
    return "\n".join(text.get_text() for text in fig.findobj(Text) if text.get_visible())


def drawn(ax):
    """The lines of some axes as pairs of lists, x and y."""
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines]


STRANGE = pd.DataFrame(
    {
        "group": ["validation"] * 40 + ["far"] * 40,
        "strangeness": [*np.linspace(1, 4, 40), *np.linspace(3, 9, 40)],
    }
)
FLAGGED = pd.DataFrame(
    {
        "group": ["validation", "far"],
        "images": 40,
        "flagged": [0.05, 0.9],
        "low": [0, 0.8],
        "high": [0.1, 1.0],
    }
).assign(limit=3.9, images=40)
DELETED = pd.DataFrame({"removed": [0.0, 0.5, 1.0], "score": [0.9, 0.3, 0.1], "by_chance": [0.9, 0.8, 0.1]})


@pytest.fixture(scope="module")
def manifest():
    counts = {
        ("train", "normal"): 9, ("train", "bacteria"): 14, ("train", "virus"): 7,
        ("test", "normal"): 6, ("test", "bacteria"): 5, ("test", "virus"): 4,
    }  # fmt: skip
    rows = [(split, kind) for (split, kind), n in counts.items() for _ in range(n)]
    table = pd.DataFrame(rows, columns=["split", "kind"])
    table["label"] = (table["kind"] != "normal").astype(int)
    table["image_id"] = [f"person{i}_{kind}_{i}" for i, kind in enumerate(table["kind"])]
    return table


@pytest.fixture(scope="module")
def pixels(manifest):
    draw = np.random.default_rng(0)
    return draw.integers(0, 256, (len(manifest), 24, 20, 1), dtype=np.uint8)


@pytest.fixture(scope="module")
def scores():
    return made_scores([KNOWN, "unheard-of"], seeds=2)


def made_scores(recipes, seeds=1, splits=("test",)):
    parts = []
    for i, recipe in enumerate(recipes):
        for seed in range(seeds):
            for split in splits:
                draw = np.random.default_rng([i, seed, len(split)])
                label = np.arange(60) % 3 > 0
                score = 1 / (1 + np.exp(-draw.normal(2.0 * label - 1.0)))
                about = {"recipe": recipe, "protocol": "strict", "seed": seed, "split": split}
                ids = [f"{split}{k}" for k in range(60)]
                kinds = np.where(label, np.where(np.arange(60) % 3 == 1, "bacteria", "virus"), "normal")
                columns = {"image_id": ids, "patient": ids, "kind": kinds, "label": label.astype(int)}
                parts.append(pd.DataFrame({**columns, "score": score}).assign(**about))
    return pd.concat(parts, ignore_index=True)


def history(epochs=6, seed=0):
    draw = np.random.default_rng(seed)
    figures = draw.random((epochs, 4))
    table = pd.DataFrame(figures, columns=["loss", "accuracy", "val_loss", "val_accuracy"])
    return table.assign(epoch=range(1, epochs + 1), phase=[int(e >= 4) for e in range(epochs)])


LEAKS = pd.DataFrame(
    {
        "check": ["same patient", "same patient", "byte-identical"],
        "between": ["train and val", "train and test", "train and test"],
        "groups": [3, 1, 0],
        "images": [1204, 1, 0],
        "share": [0.4, 0.05, 0.0],
    }
)
SHORTCUTS = pd.DataFrame(
    {
        "feature": ["file size", "file size", "width"],
        "split": ["train", "test", "test"],
        "auc": [0.9, 0.83, 0.5],
        "low": [0.88, 0.8, 0.45],
        "high": [0.92, 0.86, 0.55],
    }
)
BALANCE = pd.DataFrame(
    {
        "remedy": [None, None, "class_weight", "class_weight"],
        "label": [0, 1, 0, 1],
        "images": [100, 300, 100, 300],
        "weight": [1.0, 1.0, 2.0, 2 / 3],
    }
)
PENALTIES = pd.DataFrame(
    {
        "strength": [0.01, 1.0, 0.1],
        "loss": [0.4, 0.1, 0.2],
        "accuracy": [0.8, 0.99, 0.9],
        "val_loss": [0.5, 0.45, 0.3],
        "val_accuracy": [0.7, 0.8, 0.88],
    }
)

# The second recipe was not split at random.
STORY = pd.DataFrame(
    {
        "recipe": [KNOWN, KNOWN, KNOWN, "unheard-of", "unheard-of"],
        "way": ["at random", "by patient", "official test", "by patient", "official test"],
        "n": [1171, 745, 624, 745, 624],
        "seeds": 3,
        "accuracy": [0.97, 0.95, 0.8, 0.9, 0.6],
        "accuracy_low": [0.96, 0.93, 0.77, 0.88, 0.55],
        "accuracy_high": [0.98, 0.97, 0.83, 0.92, 0.65],
    }
)
DRAWS = pd.DataFrame(
    {
        "recipe": [KNOWN] * 4 + ["unheard-of"] * 4,
        "seed": [0, 1, 2, 3] * 2,
        "n_val": 40,
        "n_test": 1624,
        "val_accuracy": [0.9, 0.85, 0.9, 0.95, 0.8, 0.7, 0.75, 0.8],
        "accuracy": [0.7, 0.8, 0.75, 0.65, 0.6, 0.9, 0.7, 0.8],
        "auc": [0.9, 0.95, 0.91, 0.92, 0.85, 0.86, 0.87, 0.88],
    }
)


@pytest.fixture(scope="module")
def board():
    rows = []
    for recipe, protocol, accuracy, auc, claim in (
        ("unheard-of", "strict", 0.7, 0.75, np.nan),
        (KNOWN, "strict", 0.8, 0.9, 0.95),
        (KNOWN, "published", 0.85, 0.88, 0.95),
    ):
        row = {"recipe": recipe, "protocol": protocol, "init": "random", "seeds": 3, "n_test": 624}
        row |= {"accuracy": accuracy, "accuracy_low": accuracy - 0.03, "accuracy_high": accuracy + 0.03}
        row |= {"auc": auc, "auc_low": auc - 0.02, "auc_high": auc + 0.02, "claimed_accuracy": claim}
        rows.append(row)
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def files(manifest):
    draw = np.random.default_rng(1)
    width = draw.integers(400, 2000, len(manifest))
    return manifest.assign(width=width, height=width // 2, bytes=draw.integers(9000, 90000, len(manifest)))


RELIABLE = pd.DataFrame({"score": [0.1, 0.9], "share": [0.2, 0.7], "low": [0.1, 0.6], "high": [0.3, 0.8]})
RELIABLE["images"] = [10, 30]
BENEFIT = pd.DataFrame({"cut": [0.1, 0.5, 0.9], "gain": [-0.1, 0.1, 0.1]})
BENEFIT["gain_low"], BENEFIT["gain_high"] = BENEFIT["gain"] - 0.1, BENEFIT["gain"] + 0.1
GROUPS = pd.DataFrame(
    [(name, group, 40, 0.8, 0.7, 0.9) for name in (KNOWN, "unheard-of") for group in ("virus", "normal")],
    columns=["recipe", "subgroup", "images", "right", "right_low", "right_high"],
)
FALLEN = pd.DataFrame(
    [(KNOWN, metric, 0.9, 0.85, 0.95, 0.5, 0.42, 0.58) for metric in ("auc", "balanced_accuracy")],
    columns=[
        *("recipe", "metric", "test", "test_low", "test_high"),
        *("external", "external_low", "external_high"),
    ],
)
WORSE = pd.DataFrame(
    [(KNOWN, "none", 0, 99, 0.9), *((KNOWN, "jpeg", step, 99, 0.9 - step / 10) for step in range(1, 6))],
    columns=["recipe", "corruption", "severity", "n", "auc"],
)
LOST = pd.DataFrame(
    [(KNOWN, "none", 1, *[0.0] * 6), (KNOWN, "jpeg", 5, 0.3, 0.2, 0.4, 0.1, -0.05, 0.15)],
    columns=[
        *("recipe", "corruption", "severity", "auc_lost", "auc_lost_low", "auc_lost_high"),
        *(f"balanced_error_gained{end}" for end in ("", "_low", "_high")),
    ],
)
RISK = pd.DataFrame({"answered": [0.5, 1.0], "error": [0.1, 0.2], "low": [0.05, 0.1], "high": [0.2, 0.3]})
COVERED = pd.DataFrame(
    [
        (KNOWN, split, kind, 0.8, 0.7, 0.9)
        for split in ("test", "external")
        for kind in ("normal", "pneumonia")
    ],
    columns=["recipe", "split", "kind", "covered", "low", "high"],
)


@pytest.fixture(scope="module")
def every(manifest, pixels, scores, board, files):
    """Each figure once, by the name of its function."""
    both, labels = made_scores([KNOWN], 2, ("val", "test")), manifest["label"].to_numpy()
    matrices = {"a": np.array([[5, 1], [2, 9]]), "b": np.array([[4.5, 1.5], [2.0, 9.0]])}
    return {
        "label_distribution": plots.label_distribution(manifest),
        "gallery": plots.gallery(pixels[:7], list(manifest["image_id"][:7]), title="Seven"),
        "lesion_gallery": plots.lesion_gallery(pixels[:2], pixels[:2] > 128, ["a", "b"]),
        "intensities": plots.intensities(pixels, manifest),
        "file_statistics": plots.file_statistics(files),
        "mean_images": plots.mean_images(pixels, labels),
        "leakage": plots.leakage(LEAKS),
        "shortcuts": plots.shortcuts(SHORTCUTS),
        "steps": plots.steps([pixels[0], pixels[0] / 255], ["file", "divided by 255"]),
        "balance": plots.balance(BALANCE),
        "learning_curves": plots.learning_curves({"seed 0": history(), "seed 1": history(5, 1)}),
        "penalty_path": plots.penalty_path(PENALTIES),
        "roc": plots.roc(scores),
        "precision_recall": plots.precision_recall(scores),
        "confusion": plots.confusion(matrices),
        "score_distribution": plots.score_distribution(both, metrics.thresholds(both, "validation")),
        "leaderboard": plots.leaderboard(board),
        "predictions": plots.predictions(pixels[:8], labels[:8], np.linspace(0, 1, 8), 0.5),
        "prediction": plots.prediction(pixels[0], 0.9, 0.6, "IM-0001.jpeg"),
        "story": plots.story(STORY),
        "draws": plots.draws(DRAWS),
        "reliability": plots.reliability({KNOWN: RELIABLE}),
        "decision_curve": plots.decision_curve({KNOWN: BENEFIT}),
        "subgroups": plots.subgroups(GROUPS),
        "drop": plots.drop(FALLEN),
        "robustness": plots.robustness(WORSE),
        "losses": plots.losses(LOST),
        "risk_coverage": plots.risk_coverage({KNOWN: RISK}),
        "coverage": plots.coverage(COVERED, 0.9),
        "strangeness": plots.strangeness(STRANGE, FLAGGED),
        "deletion": plots.deletion({KNOWN: DELETED}),
    }


def test_every_public_figure_is_tried(every):
    functions = {name for name in plots.__all__ if name[0].islower()} - {"recipe_looks"}
    assert set(every) == functions


def test_each_figure_is_titled_at_150_dpi_readable_and_inside_its_frame(every, tmp_path):
    for name, fig in every.items():
        assert fig.get_dpi() == 150, name
        assert fig.get_figwidth() <= 10, name
        assert fig.get_suptitle(), name
        fig.savefig(tmp_path / f"{name}.png", dpi=75)
        image = np.asarray(Image.open(tmp_path / f"{name}.png").convert("L"))
        texts = [text for text in fig.findobj(Text) if text.get_text() and text.get_visible()]
        assert min(text.get_fontsize() for text in texts) >= 7, name
        edges = (image[0], image[-1], image[:, 0], image[:, -1])
        assert all(edge.min() == 255 for edge in edges), f"{name} is clipped at its frame"


def test_nothing_is_left_in_pyplot_and_no_style_leaks():
    code = (
        "import matplotlib as mpl; before = dict(mpl.rcParams)\n"
        "import matplotlib.pyplot as plt, pandas as pd; from xraylib import plots\n"
        "table = pd.DataFrame({'split': ['train'], 'kind': ['virus'], 'label': [1]})\n"
        "png = plots.label_distribution(table)._repr_png_()\n"
        "assert png[0].startswith(b'\\x89PNG') and 'split' in png[1]['alt']\n"
        "changed = [k for k in before if k != 'backend' and before[k] != mpl.rcParams[k]]\n"
        "assert not changed, changed\n"
        "assert plt.get_fignums() == []\n"
    )
    assert (
        subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=Path(__file__).parents[1]).returncode
        == 0
    )


def test_label_distribution_draws_and_writes_the_counts(manifest):
    fig = plots.label_distribution(manifest)
    heights = [bar.get_height() for bar in fig.axes[0].patches]
    assert heights == [9, 14, 7, 6, 5, 4]
    colours = [to_hex(bar.get_facecolor()).upper() for bar in fig.axes[0].patches[:3]]
    assert colours == [plots.KIND_COLOURS[kind] for kind in ("normal", "bacteria", "virus")]
    text = words(fig)
    assert "bacteria\n14" in text
    assert "n = 15, 60.0% pneumonia" in text


def test_gallery_shows_every_image_on_one_scale_with_its_title(pixels):
    fig = plots.gallery(pixels[:7], [f"name{i}" for i in range(7)], columns=3)
    assert len(fig.axes) == 7
    for i, ax in enumerate(fig.axes):
        (image,) = ax.images
        assert image.get_clim() == (0, 255)
        assert np.array_equal(image.get_array(), pixels[i, ..., 0])
        assert ax.get_title(loc="left") == f"name{i}"


def test_long_titles_of_a_gallery_do_not_overlap(pixels):
    fig = plots.gallery(pixels[:12], ["person1000_bacteria_2931 of the train folder, pneumonia"] * 12)
    fig.draw_without_rendering()
    boxes = [text.get_window_extent() for ax in fig.axes for text in ax.findobj(Text) if text.get_text()]
    boxes += [ax.get_window_extent() for ax in fig.axes]
    for i, one in enumerate(boxes):
        assert not any(one.overlaps(other) for other in boxes[i + 1 :])


def test_only_lesions_are_outlined(pixels):
    masks = np.zeros((2, 24, 20), np.uint8)
    masks[1, 5:15, 5:15] = 255
    fig = plots.lesion_gallery(pixels[:2], masks, ["healthy", "ill"])
    assert [len(ax.collections) for ax in fig.axes] == [0, 1]
    box = fig.axes[1].collections[0].get_paths()[0].get_extents()
    assert (box.x0, box.x1, box.y0, box.y1) == (4.5, 14.5, 4.5, 14.5)


def test_intensities_have_a_panel_a_split_and_tell_the_medians(manifest):
    bright = np.full((len(manifest), 8, 8), 40, np.uint8)
    bright[(manifest["label"] == 1).to_numpy()] = 90
    fig = plots.intensities(bright, manifest)
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["train", "test"]
    assert "normal, n = 9\nmedian 40" in words(fig)
    assert "pneumonia, n = 9\nmedian 90" in words(fig)
    assert [x[0] for x, _ in drawn(fig.axes[0])] == [40, 90]


def test_mean_images_are_the_means_and_their_difference_is_centred(pixels, manifest):
    labels = manifest["label"].to_numpy()
    fig = plots.mean_images(pixels, labels)
    normal, ill, change = (ax.images[0] for ax in fig.axes[:3])
    assert np.allclose(normal.get_array(), pixels[labels == 0, ..., 0].mean(axis=0))
    assert np.allclose(change.get_array(), ill.get_array() - normal.get_array())
    assert change.norm.vmin == -change.norm.vmax


def test_file_statistics_name_each_class_of_each_split(files):
    fig = plots.file_statistics(files)
    assert len(fig.axes) == 2
    rows = [label.get_text() for label in fig.axes[0].get_yticklabels()]
    expected = [
        "train, normal\nn = 9",
        "train, pneumonia\nn = 21",
        "test, normal\nn = 6",
        "test, pneumonia\nn = 9",
    ]
    assert rows == expected


def test_file_statistics_say_when_all_images_have_one_size(files):
    text = words(plots.file_statistics(files.assign(width=224, height=224, bytes=5000)))
    text = " ".join(text.split())
    assert "Every image has 224 × 224 pixels." in text and "Every image has 5.0 kB." in text
    assert len(plots.file_statistics(files.assign(width=224, height=224)).axes) == 1


def test_leakage_bars_are_the_shares_and_none_is_written_as_0():
    fig = plots.leakage(LEAKS)
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["same patient", "byte-identical"]
    assert [bar.get_width() for ax in fig.axes for bar in ax.patches] == [0.4, 0.05, 0.0]
    texts = [text.get_text() for ax in fig.axes for text in ax.texts]
    assert texts == ["1,204 images (40.0%)", "1 image (5.0%)", "0"]


def test_a_table_without_any_leak_is_drawn():
    none = LEAKS.assign(images=0, share=0.0)
    assert [text.get_text() for ax in plots.leakage(none).axes for text in ax.texts] == ["0", "0", "0"]


def test_shortcuts_draw_intervals_and_chance():
    ax = plots.shortcuts(SHORTCUTS).axes[0]
    spans = [x for x, _ in drawn(ax)]
    assert [0.88, 0.92] in spans
    assert [0.83] in spans
    assert [0.5, 0.5] in spans
    assert [label.get_text() for label in ax.get_yticklabels()] == ["file size", "width"]


def test_steps_draw_each_image_over_its_histogram(pixels):
    fig = plots.steps([pixels[0], pixels[0] / 127.5 - 1], ["as it is", "scaled"])
    assert len(fig.axes) == 4
    assert fig.axes[0].images[0].get_clim() == (0, 255)
    shares = sum(bar.get_height() for bar in fig.axes[3].patches)
    assert shares == pytest.approx(1)
    assert "24 × 20 pixels, uint8" in words(fig)


def test_balance_draws_images_and_what_they_weigh():
    ax = plots.balance(BALANCE).axes[0]
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([100, 100, 300, 300, 100, 200, 300, 200])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["none", "class weight"]
    assert "normal 100 × weight 2.00 = 200" in [text.get_text() for text in ax.texts]


def test_learning_curves_draw_every_run_its_best_epoch_and_its_phases():
    runs = {"seed 0": history(), "seed 1": history(6, 1)}
    fig = plots.learning_curves(runs)
    assert [ax.get_ylabel() for ax in fig.axes] == ["cross-entropy loss", "accuracy"]
    for ax, measure in zip(fig.axes, ("loss", "accuracy"), strict=True):
        lines = drawn(ax)
        for run in runs.values():
            assert (list(run["epoch"]), list(run[measure])) in lines
            assert (list(run["epoch"]), list(run[f"val_{measure}"])) in lines
            best = run.loc[run["val_loss"].idxmin()]
            assert ([best["epoch"]], [best[f"val_{measure}"]]) in lines
        assert ([4.5, 4.5], [0, 1]) in lines
    assert {"train", "validation"} <= {text.strip() for text in words(fig).split("\n")}


def test_one_long_table_is_split_by_seed_and_one_epoch_is_enough():
    long = pd.concat([history(seed=s).assign(seed=s) for s in range(3)])
    assert "3 runs" in words(plots.learning_curves(long))
    one = plots.learning_curves({"seed 0": history(1)})
    assert [label.get_text() for label in one.axes[0].get_xticklabels()] == ["1"]


def test_penalty_path_is_sorted_and_marks_the_best():
    fig = plots.penalty_path(PENALTIES)
    assert fig.axes[0].get_xscale() == "log"
    assert ([0.01, 0.1, 1.0], [0.4, 0.2, 0.1]) in drawn(fig.axes[0])
    assert ([0.1], [0.3]) in drawn(fig.axes[0])


def test_roc_tells_the_auc_and_interval_of_metrics(scores):
    text = words(plots.roc(scores))
    for recipe, part in scores.groupby("recipe"):
        auc = metrics.evaluate(part, rule=0.5).loc["auc"]
        assert f"AUC {auc['value']:.3f} ({auc['low']:.3f}–{auc['high']:.3f})" in text
        assert recipe in text
    assert "n = 60 images (20 normal, 40 pneumonia)" in text


def test_curves_draw_each_seed_thin_and_the_mean_bold(scores):
    for figure in (plots.roc, plots.precision_recall):
        ax = figure(scores).axes[0]
        widths = sorted(line.get_linewidth() for line in ax.lines)
        assert widths.count(0.6) == 4
        assert widths.count(2) == 2


def test_operating_points_stand_where_they_belong(scores):
    points = pd.DataFrame({"recipe": [KNOWN], "sensitivity": [0.9], "specificity": [0.7]})
    assert ([pytest.approx(0.3)], [0.9]) in drawn(plots.roc(scores, points).axes[0])
    precision = 0.9 * 40 / (0.9 * 40 + 0.3 * 20)
    assert ([0.9], [pytest.approx(precision)]) in drawn(plots.precision_recall(scores, points).axes[0])


def test_a_perfect_recipe_has_a_curve_in_the_corner():
    scores = made_scores([KNOWN])
    scores["score"] = scores["label"] * 0.8 + 0.1
    assert "AUC 1.000 (1.000–1.000)" in words(plots.roc(scores))
    assert "AP 1.000" in words(plots.precision_recall(scores))


def test_confusion_writes_counts_and_row_percentages():
    fig = plots.confusion(
        {"one": np.array([[144, 90], [5, 385]]), "mean": np.array([[143.5, 90.5], [5, 385]])}
    )
    assert [text.get_text() for text in fig.axes[0].texts] == [
        "144", "61.5%", "90", "38.5%", "5", "1.3%", "385", "98.7%",
    ]  # fmt: skip
    assert fig.axes[1].texts[0].get_text() == "143.5"


def test_score_distribution_has_a_panel_a_kind_and_split_with_the_share_called():
    scores = made_scores([KNOWN], 2, ("val", "test"))
    by_seed = pd.Series({0: 0.4, 1: 0.6})
    fig = plots.score_distribution(scores, by_seed)
    assert len(fig.axes) == 6
    assert [ax.get_title(loc="left") for ax in fig.axes[:2]] == ["validation", "test"]
    normal = scores[(scores["kind"] == "normal") & (scores["split"] == "test")]
    called = (normal["score"] >= normal["seed"].map(by_seed)).mean()
    assert fig.axes[1].get_title(loc="right") == f"normal, n = 20: {called:.0%} called pneumonia"
    assert sum(bar.get_height() for bar in fig.axes[1].patches) == pytest.approx(1)
    assert ([0.4, 0.4], [0, 1]) in drawn(fig.axes[1])
    assert ([0.6, 0.6], [0, 1]) in drawn(fig.axes[1])


def test_leaderboard_draws_values_intervals_and_claims_best_recipe_first(board):
    fig = plots.leaderboard(board)
    left, right = fig.axes
    rows = [label.get_text().split("\n")[0] for label in left.get_yticklabels()]
    assert rows == [f"{KNOWN}, published", f"{KNOWN}, strict", "unheard-of, strict"]
    assert ([0.85], [0]) in drawn(left)
    assert ([0.85 - 0.03, 0.85 + 0.03], [0, 0]) in drawn(left)
    assert ([0.9], [1]) in drawn(right)
    diamonds = [line for line in left.lines if line.get_marker() == "D"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in diamonds] == [(0.95, 0), (0.95, 1)]
    assert all(line.get_markerfacecolor() == "none" for line in diamonds)
    assert "0.800 (0.770–0.830)" in words(fig)


def test_story_draws_accuracy_and_interval_of_each_way_in_the_panel_of_its_recipe():
    fig = plots.story(STORY)
    assert [ax.get_title(loc="left") for ax in fig.axes] == [KNOWN, "unheard-of"]
    ways = ["at random", "by patient", "official test"]
    rows = [label.get_text() for label in fig.axes[0].get_yticklabels()]
    assert rows == [
        "at random\nn = 1,171 a seed",
        "by patient\nn = 745 a seed",
        "official test\nn = 624 a seed",
    ]
    for ax in fig.axes:
        part = STORY[STORY["recipe"] == ax.get_title(loc="left")]
        dots = [line for line in ax.lines if line.get_marker() == "o"]
        assert len(dots) == len(part)
        for row in part.to_dict("records"):
            y = ways.index(row["way"])
            assert ([row["accuracy"]], [y]) in drawn(ax)
            assert ([row["accuracy_low"], row["accuracy_high"]], [y, y]) in drawn(ax)
        colour = plots.recipe_looks([KNOWN, "unheard-of"])[part["recipe"].iloc[0]][0]
        assert {dot.get_color() for dot in dots} == {colour}
        assert [text.get_text() for text in ax.texts] == [f"{share:.1%}" for share in part["accuracy"]]


def test_story_reads_from_top_to_bottom_and_holds_the_lowest_interval():
    for ax in plots.story(STORY).axes:
        bottom, top = ax.get_ylim()
        assert bottom > 2 and top < 0
        left, right = ax.get_xlim()
        assert left < 0.55 and 1 < right < 1.02, "a dot at 100 % is drawn whole"


def test_draws_stand_in_the_row_of_their_recipe_with_mean_and_range():
    fig = plots.draws(DRAWS)
    for ax, column in zip(fig.axes, ("val_accuracy", "accuracy", "auc"), strict=True):
        for y, recipe in enumerate((KNOWN, "unheard-of")):
            values = DRAWS.loc[DRAWS["recipe"] == recipe, column]
            dots, mean = ax.lines[2 * y], ax.lines[2 * y + 1]
            assert list(dots.get_xdata()) == values.tolist()
            assert np.abs(dots.get_ydata() - y).max() < 0.3
            assert list(mean.get_xdata()) == [values.mean()] * 2
            assert np.mean(mean.get_ydata()) == y
            said = f"{values.mean():.2f} ({values.min():.2f}–{values.max():.2f})"
            assert ax.texts[y].get_text() == said
    assert "4 draws each" in words(fig)


def test_draws_say_how_many_images_and_call_recipes_as_told():
    fig = plots.draws(DRAWS, {KNOWN: "none"}, "It depends")
    assert fig.get_suptitle() == "It depends"
    assert [label.get_text() for label in fig.axes[0].get_yticklabels()] == ["none", "unheard-of"]
    assert [ax.get_xlabel() for ax in fig.axes] == [
        "accuracy, own 40 validation images", "accuracy, 1,624 test images", "AUC, 1,624 test images",
    ]  # fmt: skip


def test_equal_draws_stand_beside_each_other():
    dots = plots.draws(DRAWS).axes[0].lines[2]
    places = set(zip(dots.get_xdata(), dots.get_ydata(), strict=True))
    assert len(places) == 4


@pytest.mark.parametrize(("figure", "table"), [(plots.story, STORY), (plots.draws, DRAWS)])
def test_each_column_of_a_comparison_is_needed(figure, table):
    for column in table:
        with pytest.raises(DataInvalid, match=rf"lacks the columns {column}\. Mend"):
            figure(table.drop(columns=column))


def test_wrong_predictions_have_a_frame_and_a_word(pixels):
    fig = plots.predictions(pixels[:4], np.array([0, 1, 0, 1]), np.array([0.1, 0.2, 0.9, 0.5]), 0.5)
    verdicts = [ax.get_xlabel().split("\n")[2] for ax in fig.axes]
    assert verdicts == ["correct", "WRONG: missed", "WRONG: false alarm", "correct"]
    framed = [same_color(ax.spines["left"].get_edgecolor(), style.ALARM) for ax in fig.axes]
    assert framed == [False, True, True, False]
    assert "2 of the 4 shown are wrong" in words(fig)


@pytest.mark.parametrize(
    ("score", "call"), [(0.0, "normal"), (0.59, "normal"), (0.6, "pneumonia"), (1.0, "pneumonia")]
)
def test_a_prediction_says_what_it_calls_and_where_the_threshold_is(pixels, score, call):
    fig = plots.prediction(pixels[0], score, 0.6, "IM-0001.jpeg")
    assert fig.get_suptitle() == f"Called {call}"
    assert f"P(pneumonia) = {score:.2f}" in words(fig)
    assert "threshold 0.60" in words(fig)
    assert "Not a medical device" in words(fig)


def test_a_recipe_has_one_colour_in_every_figure_and_company(scores, board):
    looks = plots.recipe_looks([KNOWN, "unheard-of"])
    curve = next(line for line in plots.roc(scores).axes[0].lines if line.get_linewidth() == 2)
    row = next(line for line in plots.leaderboard(board).axes[0].lines if line.get_marker() == "o")
    assert curve.get_color() == row.get_color() == looks[KNOWN][0]
    assert plots.recipe_looks([KNOWN])[KNOWN] == looks[KNOWN]


def test_unknown_recipes_take_the_next_looks_and_none_is_given_twice():
    unknown = [f"new-{i:02d}" for i in range(20)]
    looks = plots.recipe_looks(unknown)
    assert looks == plots.recipe_looks(unknown[::-1])
    assert len(set(looks.values())) == len(RECIPES) + 20
    assert not {colour for colour, _ in looks.values()} & {*plots.CLASS_COLOURS.values()}


def test_evaluation_figures_draw_values_where_they_belong():
    (ax,) = plots.subgroups(GROUPS).axes
    assert [x for x, _ in drawn(ax)].count([0.7, 0.9]) == len(GROUPS)
    corrupted = plots.robustness(WORSE).axes[0]
    assert drawn(corrupted)[0][0] == [0, 1, 2, 3, 4, 5]
    assert drawn(corrupted)[0][1] == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    auc, balanced = plots.losses(LOST).axes
    assert [label.get_text() for label in auc.get_yticklabels()] == ["jpeg"]
    assert [x for x, _ in drawn(auc)][:2] == [[0.2, 0.4], [0.3]]
    assert [x for x, _ in drawn(balanced)][:2] == [[-0.05, 0.15], [0.1]]
    auc, balanced = plots.drop(FALLEN).axes
    for panel in (auc, balanced):
        assert {tuple(x) for x, _ in drawn(panel) if len(x) == 2} >= {(0.85, 0.95), (0.42, 0.58)}
    promise = plots.coverage(COVERED, 0.9).axes[0]
    assert [0.9, 0.9] in [x for x, _ in drawn(promise)]
    for figure in (plots.coverage(COVERED, 0.9, "nih, n = 518"), plots.drop(FALLEN, "nih, n = 518")):
        assert "magenta: nih, n = 518" in words(figure)
    alone = COVERED[COVERED["split"] == "test"]
    assert "magenta" not in words(plots.coverage(alone, 0.9, "nih"))
    (ax,) = plots.strangeness(STRANGE, FLAGGED).axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["validation, n = 40", "far, n = 40"]
    assert "90% flagged (80%–100%)" in words(plots.strangeness(STRANGE, FLAGGED))
    (marked,) = plots.deletion({KNOWN: DELETED}).axes
    assert ([0.0, 0.5, 1.0], [0.9, 0.3, 0.1]) in drawn(marked)


def test_inversion_does_not_flatten_the_other_corruptions():
    turned = WORSE[WORSE["severity"] <= 1].assign(corruption="inversion", auc=0.05)
    worse = pd.concat([WORSE, turned[turned["severity"] == 1]])
    panels = {ax.get_title(loc="left"): ax for ax in plots.robustness(worse).axes}
    assert panels["inversion"].get_ylim() == (0, 1)
    assert all(ax.get_ylim()[0] > 0.3 for name, ax in panels.items() if name != "inversion")


@pytest.mark.parametrize(("figure", "table"), [(plots.losses, LOST), (plots.robustness, WORSE)])
def test_untouched_images_alone_are_nothing_to_draw(figure, table):
    with pytest.raises(DataInvalid, match="corruptions is empty"):
        figure(table[table["corruption"] == "none"])


def test_inversion_has_its_own_scale_among_the_losses():
    turned = LOST[LOST["severity"] > 1].assign(corruption="inversion", severity=1, auc_lost_high=0.95)
    auc, _, own, _ = plots.losses(pd.concat([LOST, turned])).axes
    assert auc.get_xlim()[1] < 0.5 < 0.9 < own.get_xlim()[1]
    assert [label.get_text() for label in own.get_yticklabels()] == ["inversion"]


def test_many_runs_are_thin_and_their_median_bold():
    runs = pd.concat([history(4, seed).assign(seed=seed) for seed in range(7)])
    loss = plots.learning_curves(runs, last_kept=True).axes[0]
    bold = [line for line in loss.lines if line.get_linewidth() > 2]
    assert len(bold) == 2 and len(loss.lines) == 2 * 7 + 2
    expected = runs.groupby("epoch")["val_loss"].median().tolist()
    assert any(list(line.get_ydata()) == pytest.approx(expected) for line in bold)
    text = words(plots.learning_curves(runs, last_kept=True))
    assert "median of 7 runs" in text and "The last epoch was kept" in text


EMPTY_TABLES = [
    (plots.label_distribution, "split"),
    (plots.file_statistics, "bytes"),
    (plots.leakage, "share"),
    (plots.shortcuts, "auc"),
    (plots.balance, "remedy"),
    (plots.learning_curves, "val_loss"),
    (plots.penalty_path, "strength"),
    (plots.roc, "score"),
    (plots.precision_recall, "score"),
    (plots.leaderboard, "claimed_accuracy"),
    (plots.story, "accuracy_low"),
    (plots.draws, "val_accuracy"),
    (plots.subgroups, "right"),
    (plots.drop, "external"),
    (plots.robustness, "severity"),
    (plots.losses, "corruption"),
]


@pytest.mark.parametrize(
    ("figure", "column"), EMPTY_TABLES, ids=lambda value: getattr(value, "__name__", value)
)
def test_an_empty_table_is_refused_with_what_is_missing(figure, column):
    with pytest.raises(DataInvalid, match=rf"(?s)lacks the columns .*\b{column}\b.* Fix: "):
        figure(pd.DataFrame())


def test_a_table_without_rows_is_refused():
    with pytest.raises(DataInvalid, match=r"leaks is empty.*Mend"):
        plots.leakage(LEAKS.iloc[:0])
    with pytest.raises(DataInvalid, match=r"five ways is empty.*Mend"):
        plots.story(STORY.iloc[:0])
    with pytest.raises(DataInvalid, match=r"draws is empty.*Mend"):
        plots.draws(DRAWS.iloc[:0])
    with pytest.raises(DataInvalid, match=r"history.*Mend"):
        plots.learning_curves({})
    with pytest.raises(DataInvalid, match=r"seed 7.*is empty.*Mend"):
        plots.learning_curves({"seed 7": history().iloc[:0]})
    with pytest.raises(DataInvalid, match=r"no confusion matrix.*Mend"):
        plots.confusion({})


BAD_PIXELS = {
    "none": np.zeros((0, 8, 8, 1), np.uint8),
    "float": np.zeros((2, 8, 8, 1)),
    "colour": np.zeros((2, 8, 8, 3), np.uint8),
    "flat": np.zeros((2, 64), np.uint8),
}


@pytest.mark.parametrize("bad", BAD_PIXELS.values(), ids=BAD_PIXELS)
def test_what_is_no_radiograph_is_refused(bad):
    with pytest.raises(DataInvalid, match=re.escape(str(bad.shape)) + r".*Mend"):
        plots.gallery(bad, ["a", "b"])
    with pytest.raises(DataInvalid, match="Mend"):
        plots.predictions(bad, np.array([0, 1]), np.array([0.1, 0.9]), 0.5)


def test_arrays_that_do_not_belong_together_are_refused(pixels, manifest, scores):
    with pytest.raises(DataInvalid, match="2 images, 1 titles"):
        plots.gallery(pixels[:2], ["a"])
    with pytest.raises(DataInvalid, match=r"masks of shape \(2, 9, 9\)"):
        plots.lesion_gallery(pixels[:2], np.zeros((2, 9, 9)), ["a", "b"])
    with pytest.raises(DataInvalid, match=f"3 images, {len(manifest)} rows"):
        plots.intensities(pixels[:3], manifest)
    with pytest.raises(DataInvalid, match="both"):
        plots.mean_images(pixels[:3], np.zeros(3, int))
    with pytest.raises(DataInvalid, match="outside"):
        plots.prediction(pixels[0], 1.2, 0.5, "IM-0001.jpeg")
    with pytest.raises(DataInvalid, match="NaN"):
        plots.steps([np.full((4, 4), np.nan)], ["a"])
    with pytest.raises(DataInvalid, match=r"bad.*\(3, 3\)"):
        plots.confusion({"bad": np.zeros((3, 3))})


def test_scores_of_several_protocols_splits_or_recipes_are_not_mixed(scores):
    with pytest.raises(DataInvalid, match="several protocols"):
        plots.roc(pd.concat([scores, scores.assign(protocol="published")]))
    with pytest.raises(DataInvalid, match="several splits"):
        plots.precision_recall(
            pd.concat(
                [
                    scores,
                    scores.assign(
                        split="val", image_id="v" + scores["image_id"], patient="v" + scores["patient"]
                    ),
                ]
            )
        )
    with pytest.raises(DataInvalid, match="several recipes"):
        plots.score_distribution(scores, 0.5)
    with pytest.raises(DataInvalid, match="no threshold"):
        plots.score_distribution(scores[scores["recipe"] == KNOWN], pd.Series({0: 0.5}))


def test_the_style_of_a_figure_does_not_depend_on_the_session(board):
    with mpl.rc_context({"font.size": 30, "axes.labelsize": 30, "xtick.labelsize": 30, "savefig.dpi": 40}):
        fig = plots.leaderboard(board)
        assert max(label.get_fontsize() for label in fig.axes[0].get_xticklabels()) < 10
        assert fig.axes[0].xaxis.label.get_fontsize() == 9
