"""What README, notebooks and remarks find stands in the committed tables and scores."""

import re

import nbformat
import pandas as pd
import pytest
from sklearn import metrics as sk

from xraylib.evaluation import scores
from xraylib.paths import ROOT
from xraylib.training.recipes import get_recipe


def _look(table, query, column, of="max"):
    """A figure as its table holds it: a column, or what is computed from columns, of the rows of a query."""
    found = pd.read_csv(ROOT / "reports" / f"{table}.csv").query(query).eval(column)
    return getattr(found, of)()


def ends(table, query, column):
    """A figure with its interval."""
    return [(table, query, name) for name in (column, f"{column}_low", f"{column}_high")]


def span(table, query, column):
    """The least and the largest of some rows."""
    return [(table, query, column, of) for of in ("min", "max")]


BOARD, STORY = "kermany/leaderboard", "kermany/tables/story"
FOLDER, POINTS, COVER, IMBALANCE_METHODS, PAIRS, OUTSIDE, STRANGERS, LOST, SHORTCUT = (
    f"kermany/tables/{name}"
    for name in (
        *("by_folder", "operating_points", "coverage", "remedies", "remedies_pairs", "external"),
        *("strangers", "robustness", "shortcuts"),
    )
)
MAPS = "phantom/tables/heat_maps"
TINY, FROZEN, SMALL = (
    f"recipe == '{name}'" for name in ("tiny-cnn-28", "mobilenetv2-frozen", "mobilenetv2-small")
)
OLD, NEW = (f"subgroup == 'normal, from the {name} folder'" for name in ("train", "test"))
CHOSEN, NORMALS = "rule == 'validation'", "split == 'test' and kind == 'normal'"
NOISE, DARK = "corruption.str.contains('noise|jpeg')", "corruption == 'brightness down'"
BORDER, SIZE = "feature.str.startswith('border, ')", "feature == 'file size'"
FLAGGED = [(STRANGERS, f"group == '{group}, normal'", "flagged") for group in ("test", "validation")]
# What README and notebooks find, and where each figure stands: p a percentage, n one without its sign, s a
# share, with so many decimals.
FIGURES = (
    (
        "<p0> of the 581 test images",
        (
            "kermany/tables/leakage_random_per_image",
            "groups > 0 and between == 'train and test'",
            "share",
            "min",
        ),
    ),
    (
        "dealt per image it calls <p1> rightly",
        (STORY, f"{TINY} and way.str.contains('per image, ')", "accuracy"),
    ),
    ("of one of other children <p1>", (STORY, f"{TINY} and way.str.contains('by patient')", "accuracy")),
    (
        "falls to <p1> at a threshold of .5",
        (STORY, f"{TINY} and way.str.endswith('threshold .5')", "accuracy"),
    ),
    ("to <p1> at the one that", (STORY, f"{TINY} and way.str.endswith('of validation')", "accuracy")),
    (
        "calls <p0> rightly when they come from the training folder and <p0> (<n0>–<n0>)",
        *((FOLDER, f"{TINY} and {OLD}", "right"), *ends(FOLDER, f"{TINY} and {NEW}", "right")),
    ),
    ("`mobilenetv2-frozen` <p0> and <p0>.", *((FOLDER, f"{FROZEN} and {of}", "right") for of in (OLD, NEW))),
    ("find <p0> to <p0> of the pneumonias", *span(POINTS, CHOSEN, "sensitivity")),
    ("call <p0> to <p0> of its normals sick", *span(POINTS, CHOSEN, "1 - specificity")),
    ("validation's normals it is <p0> to <p0> ", *span(POINTS, CHOSEN, "1 - val_specificity")),
    ("hold it for <p0> to <p0> of these", *span(COVER, f"{NORMALS} and not {SMALL}", "covered")),
    ("and for <p0> where they are calibrated on ten", (COVER, f"{NORMALS} and {SMALL}", "covered")),
    ("<p1> (<n1>–<n1>) over ten draws", *ends(BOARD, f"{SMALL} and protocol == 'strict'", "accuracy")),
    ("lower: <s3> where", (BOARD, f"{SMALL} and protocol == 'strict'", "auc")),
    ("where the best reaches <s3>", (BOARD, "protocol == 'strict'", "auc")),
    ("it scores <p0> to <p0> from draw to draw", *span(IMBALANCE_METHODS, SMALL, "val_accuracy")),
    ("for imbalance <p0> to <p0> ", *span(IMBALANCE_METHODS, f"not {SMALL}", "val_accuracy")),
    (
        "undersampling loses <s3> (<s3>–<s3>) of AUC",
        *((PAIRS, "a == 'mobilenetv2-small'", name) for name in ("auc_difference", "low", "high")),
    ),
    ("remedies gain <s3> ", (PAIRS, "a == 'mobilenetv2-small'", "-auc_difference")),
    ("AUC <s3> at most, and", (OUTSIDE, "metric == 'auc'", "external")),
    ("<p0> of the NIH's films", (STRANGERS, "group == 'nih'", "flagged")),
    ("but <p0> of the normals of the official test and <p0> of those of validation", *FLAGGED),
    ("JPEG take <s3> of AUC at most", (LOST, f"{TINY} and {NOISE}", "auc_lost")),
    ("and <s3> (<s3>–<s3>) to", *ends(LOST, f"{FROZEN} and corruption == 'gaussian noise'", "auc_lost")),
    ("to <s3> (<s3>–<s3>) from a frozen", *ends(LOST, f"{FROZEN} and {NOISE}", "auc_lost")),
    ("AUC, <s3> (<s3>–<s3>) at most", *ends(LOST, f"recipe == 'kerasio-tpu' and {DARK}", "auc_lost")),
    ("rises by <s3> to <s3> ", *span(LOST, DARK, "balanced_error_gained")),
    *(
        (
            f"<s3> (<s3>–<s3>) on {side}",
            *((SHORTCUT, f"{BORDER} and split == '{side}'", c) for c in ("auc", "low", "high")),
        )
        for side in ("train", "test")
    ),
    (
        "file alone <s3> and <s3> ",
        *((SHORTCUT, f"{SIZE} and split == '{side}'", "auc") for side in ("train", "test")),
    ),
    ("official test images (<p0>)", ("kermany/tables/leakage_official", "groups > 0", "share")),
    # The notebooks.
    ("near <p0> to <p1>: keeping", *span(STORY, "not way.str.startswith('official')", "accuracy")),
    ("call <p0> to <p0> sick, ", *span(POINTS, CHOSEN, "1 - specificity")),
    ("sick, <p0> are flagged, of those of validation <p0>.", *FLAGGED),
    (
        "map hardly more lies in it (<p0>) than of an even one (<p1>)",
        (MAPS, TINY, "energy"),
        (MAPS, TINY, "area"),
    ),
    (
        "network's less (<p0>), of both less than of a blob in the middle (<p0>)",
        (MAPS, FROZEN, "energy"),
        (MAPS, FROZEN, "energy_blob"),
    ),
)


def _prose():
    notebooks = [nbformat.read(path, as_version=4) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    cells = [cell.source for notebook in notebooks for cell in notebook.cells if cell.cell_type == "markdown"]
    return " ".join(" ".join([(ROOT / "README.md").read_text(encoding="utf-8"), *cells]).split())


@pytest.mark.parametrize(
    ("text", "places"), [(text, places) for text, *places in FIGURES], ids=lambda v: str(v)[:30]
)
def test_a_figure_in_prose_is_that_of_its_table(text, places):
    values = iter([_look(*place) for place in places])

    def written(match):
        kind, digits = match[1], int(match[2])
        value = next(values) * (1 if kind == "s" else 100)
        return f"{value:.{digits}f}".removeprefix("0") + (" %" if kind == "p" else "")

    expected = re.sub(r"<([psn])(\d)>", written, text)
    assert expected in _prose()


def test_what_a_finding_says_in_words_is_so():
    lost = pd.read_csv(ROOT / "reports" / f"{LOST}.csv")
    frozen = lost.query(f"{FROZEN} and {NOISE}")
    assert frozen["auc_lost"].min() == pytest.approx(
        _look(LOST, f"{FROZEN} and corruption == 'gaussian noise'", "auc_lost"), abs=5e-4
    )
    assert lost.query(DARK).set_index("recipe")["auc_lost"].idxmax() == "kerasio-tpu"
    outside = pd.read_csv(ROOT / "reports" / "kermany" / "tables" / "external.csv").query("metric == 'auc'")
    assert (outside["external_high"] < 0.5).sum() == 3 and (outside["external_low"] < 0.5).all()
    maps = pd.read_csv(ROOT / "reports" / "phantom" / "tables" / "heat_maps.csv")
    assert (maps["pointing"] == 0).sum() == 2 and len(maps) == 3


def test_the_remark_on_the_tutorial_is_of_its_three_trainings():
    table = scores.read(ROOT / "reports" / "kermany" / "scores" / "kerasio-tpu.csv")
    test = table[(table["protocol"] == "published") & (table["split"] == "test")]
    runs = [(part["label"], part["score"] >= 0.5) for _, part in test.groupby("seed")]
    recall, precision = (
        [f"{figure(*run):.3f}".removeprefix("0") for run in runs]
        for figure in (sk.recall_score, sk.precision_score)
    )
    remark = get_recipe("kerasio-tpu").remark
    assert "a recall of {}, {} and {} at a precision of {}, {} and {};".format(*recall, *precision) in remark
    claim = pd.read_csv(ROOT / "reports" / "kermany" / "tables" / "claims.csv")
    own = claim.query("recipe == 'kerasio-tpu' and metric == 'sensitivity'").iloc[0]
    assert [own["claim_low"] <= float(value) <= own["claim_high"] for value in recall] == [False, True, False]


def test_the_stored_figures_of_resnet_are_those_of_the_calls_its_remark_tells():
    shown, (ill, well, alarms) = get_recipe("resnet50v2").shown, (390, 234, 229)
    assert f"{alarms} of the {well} normals" in get_recipe("resnet50v2").remark
    assert shown["accuracy"] == round((ill + well - alarms) / (ill + well), 3)
    assert shown["precision"] == round(ill / (ill + alarms), 3) and shown["sensitivity"] == 1
