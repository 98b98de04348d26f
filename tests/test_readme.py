"""What the README finds stands in the committed tables."""

import re

import pandas as pd
import pytest

from xraylib.paths import ROOT


def _look(table, query, column, of="max"):
    """A figure as its table holds it: a column, or what is computed from columns, of the rows of a query."""
    found = pd.read_csv(ROOT / "reports" / f"{table}.csv").query(query).eval(column)
    return getattr(found, of)()


STORY, FOLDER, SHORTCUT = (f"kermany/tables/{name}" for name in ("story", "by_folder", "shortcuts"))
POINTS, COVER, LOST = (f"kermany/tables/{name}" for name in ("operating_points", "coverage", "robustness"))
TINY, FROZEN = "recipe == 'tiny-cnn-28'", "recipe == 'mobilenetv2-frozen'"
OLD = "subgroup == 'normal, from the train folder'"
NEW = "subgroup == 'normal, from the test folder'"
CHOSEN, NORMALS = "rule == 'validation'", "split == 'test' and kind == 'normal'"
MANY, TEN = "recipe != 'mobilenetv2-small'", "recipe == 'mobilenetv2-small'"
TEN_STRICT, UNDER = f"{TEN} and protocol == 'strict'", "b == 'mobilenetv2-small-undersampled'"
SPOILT = "corruption.str.contains('noise|jpeg')"
DARK, REMEDIES = "corruption == 'brightness down'", "kermany/tables/remedies"
# What the README finds, with the place of each figure: p a percentage, s a share, with so many decimals.
FIGURES = (
    (
        "<p0> of the 581 test images",
        (
            "kermany/tables/leakage_random_per_image",
            "check == 'same patient' and between == 'train and test'",
            "share",
        ),
    ),
    (
        "dealt per image it calls <p1> rightly",
        (STORY, f"{TINY} and way.str.startswith('validation per image')", "accuracy"),
    ),
    (
        "of one of other children <p1>",
        (STORY, f"{TINY} and way.str.startswith('validation by patient')", "accuracy"),
    ),
    (
        "falls to <p1> at a threshold of .5",
        (STORY, f"{TINY} and way == 'official test, threshold .5'", "accuracy"),
    ),
    (
        "to <p1> at the one that validation chose",
        (STORY, f"{TINY} and way.str.endswith('of validation')", "accuracy"),
    ),
    (
        "calls <p0> rightly when they come from the training folder and <p0> (<n0>–<n0>)",
        *((FOLDER, f"{TINY} and {OLD}", "right"), (FOLDER, f"{TINY} and {NEW}", "right")),
        *((FOLDER, f"{TINY} and {NEW}", "right_low"), (FOLDER, f"{TINY} and {NEW}", "right_high")),
    ),
    (
        "`mobilenetv2-frozen` <p0> and <p0>.",
        (FOLDER, f"{FROZEN} and {OLD}", "right"),
        (FOLDER, f"{FROZEN} and {NEW}", "right"),
    ),
    (
        "find <p0> to <p0> of the pneumonias",
        (POINTS, CHOSEN, "sensitivity", "min"),
        (POINTS, CHOSEN, "sensitivity"),
    ),
    (
        "call <p0> to <p0> of its normals sick",
        (POINTS, CHOSEN, "1 - specificity", "min"),
        (POINTS, CHOSEN, "1 - specificity"),
    ),
    (
        "validation's normals it is <p0> to <p0> ",
        (POINTS, CHOSEN, "1 - val_specificity", "min"),
        (POINTS, CHOSEN, "1 - val_specificity"),
    ),
    (
        "hold it for <p0> to <p0> of these",
        (COVER, f"{NORMALS} and {MANY}", "covered", "min"),
        (COVER, f"{NORMALS} and {MANY}", "covered"),
    ),
    ("and for <p0> where they are calibrated on ten", (COVER, f"{NORMALS} and {TEN}", "covered")),
    (
        "<p1> (<n1>–<n1>) over ten draws",
        *(("kermany/leaderboard", TEN_STRICT, f"accuracy{end}") for end in ("", "_low", "_high")),
    ),
    (
        "lower: <s3> where the best reaches <s3>",
        ("kermany/leaderboard", TEN_STRICT, "auc"),
        ("kermany/leaderboard", "protocol == 'strict'", "auc"),
    ),
    (
        "it scores <p0> to <p0> from draw to draw",
        (REMEDIES, TEN, "val_accuracy", "min"),
        (REMEDIES, TEN, "val_accuracy"),
    ),
    (
        "for imbalance <p0> to <p0> ",
        (REMEDIES, MANY, "val_accuracy", "min"),
        (REMEDIES, MANY, "val_accuracy"),
    ),
    (
        "undersampling loses <s3> (<s3>–<s3>) of AUC",
        *(
            ("kermany/tables/remedies_pairs", f"a == 'mobilenetv2-small' and {UNDER}", name)
            for name in ("auc_difference", "low", "high")
        ),
    ),
    ("remedies gain <s3> ", ("kermany/tables/remedies_pairs", "a == 'mobilenetv2-small'", "-auc_difference")),
    ("AUC <s3> at most, and", ("kermany/tables/external", "metric == 'auc'", "external")),
    ("<p0> of the NIH's films", ("kermany/tables/strangers", "group == 'nih'", "flagged")),
    (
        "but <p0> of the normals of the official",
        ("kermany/tables/strangers", "group == 'test, normal'", "flagged"),
    ),
    (
        "and <p0> of those of validation",
        ("kermany/tables/strangers", "group == 'validation, normal'", "flagged"),
    ),
    ("JPEG take <s3> of AUC at most", (LOST, f"{TINY} and {SPOILT}", "auc_lost")),
    (
        "and <s3> (<s3>–<s3>) to",
        *(
            (LOST, f"{FROZEN} and corruption == 'gaussian noise'", f"auc_lost{end}")
            for end in ("", "_low", "_high")
        ),
    ),
    (
        "to <s3> (<s3>–<s3>) from a frozen",
        *((LOST, f"{FROZEN} and {SPOILT}", f"auc_lost{end}") for end in ("", "_low", "_high")),
    ),
    (
        "AUC, <s3> (<s3>–<s3>) at most",
        *((LOST, f"recipe == 'kerasio-tpu' and {DARK}", f"auc_lost{end}") for end in ("", "_low", "_high")),
    ),
    (
        "rises by <s3> to <s3> ",
        (LOST, DARK, "balanced_error_gained", "min"),
        (LOST, DARK, "balanced_error_gained"),
    ),
    (
        "AUC of <s3> (<s3>–<s3>) on train",
        *(
            (SHORTCUT, "feature.str.startswith('border, ') and split == 'train'", name)
            for name in ("auc", "low", "high")
        ),
    ),
    (
        "and <s3> (<s3>–<s3>) on test",
        *(
            (SHORTCUT, "feature.str.startswith('border, ') and split == 'test'", name)
            for name in ("auc", "low", "high")
        ),
    ),
    (
        "file alone <s3> and <s3> ",
        (SHORTCUT, "feature == 'file size' and split == 'train'", "auc"),
        (SHORTCUT, "feature == 'file size' and split == 'test'", "auc"),
    ),
    (
        "official test images (<p0>)",
        ("kermany/tables/leakage_official", "check == 'same bare number'", "share"),
    ),
)


@pytest.mark.parametrize(
    ("text", "places"), [(text, places) for text, *places in FIGURES], ids=lambda v: str(v)[:30]
)
def test_a_figure_in_the_readme_is_that_of_its_table(text, places):
    values = iter([_look(*place) for place in places])

    def written(match):
        kind, digits = match[1], int(match[2])
        value = next(values) * (1 if kind == "s" else 100)
        return f"{value:.{digits}f}".removeprefix("0") + (" %" if kind == "p" else "")

    expected = re.sub(r"<([psn])(\d)>", written, text)
    assert expected in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


def test_what_a_finding_says_in_words_is_so():
    lost = pd.read_csv(ROOT / "reports" / f"{LOST}.csv")
    frozen = lost.query(f"{FROZEN} and {SPOILT}")
    assert frozen["auc_lost"].min() == pytest.approx(
        _look(LOST, f"{FROZEN} and corruption == 'gaussian noise'", "auc_lost"), abs=5e-4
    )
    assert lost.query(DARK).set_index("recipe")["auc_lost"].idxmax() == "kerasio-tpu"
    outside = pd.read_csv(ROOT / "reports" / "kermany" / "tables" / "external.csv").query("metric == 'auc'")
    assert (outside["external_high"] < 0.5).sum() == 3 and (outside["external_low"] < 0.5).all()
    maps = pd.read_csv(ROOT / "reports" / "phantom" / "tables" / "heat_maps.csv")
    assert (maps["pointing"] == 0).sum() == 2 and len(maps) == 3
