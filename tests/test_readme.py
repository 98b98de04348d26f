"""The findings in README and notebooks are those of the committed tables and scores."""

import re

import nbformat
import pandas as pd
import pytest
from sklearn import metrics as sk

from xraylib.paths import ROOT
from xraylib.training import runs
from xraylib.training.recipes import get_recipe

TINY, FROZEN, SMALL = (
    f"recipe == '{name}'" for name in ("tiny-cnn-28", "mobilenetv2-frozen", "mobilenetv2-small")
)
OLD, NEW = (f"subgroup == 'normal, from the {name} folder'" for name in ("train", "test"))
YOUDEN, NORMALS = "rule == 'youden'", "split == 'test' and kind == 'normal'"
NOISE, DARK = "corruption.str.contains('noise|jpeg')", "corruption == 'brightness down'"
BORDER, SIZE = "feature.str.startswith('border, ')", "feature == 'file size'"
STRICT = f"{SMALL} and protocol == 'strict'"


def ends(table, query, column):
    """A value with its interval."""
    return [(table, query, name) for name in (column, f"{column}_low", f"{column}_high")]


def span(table, query, column):
    """The least and the largest value of some rows."""
    return [(table, query, column, of) for of in ("min", "max")]


def compared(name):
    return "protocol_comparison", f"{TINY} and comparison == '{name}'", "accuracy"


# What is written, and the table, rows and column of each value in it: p a percentage, n one without its
# sign, s a share, with so many decimals.
FINDINGS = {
    "<p0> of the 581 test images": [
        ("leakage_random", "check == 'same patient' and splits == 'train and test'", "share")
    ],
    "it classifies <p1> of an image-level validation correctly, and <p1> of a patient-grouped one": [
        compared("image-level validation"),
        compared("patient-grouped validation"),
    ],
    "falls to <p1> at a threshold of 0.5, and to <p1> at the threshold from validation": [
        compared("official test, threshold 0.5"),
        compared("official test, threshold from validation"),
    ],
    "`tiny-cnn-28` classifies <p0> correctly when they come from the training folder, and <p0> (<n0>–<n0>)": [
        ("by_folder", f"{TINY} and {OLD}", "right"),
        *ends("by_folder", f"{TINY} and {NEW}", "right"),
    ],
    "`mobilenetv2-frozen` <p0> and <p0>.": [
        ("by_folder", f"{FROZEN} and {of}", "right") for of in (OLD, NEW)
    ],
    "find <p0> to <p0> of the pneumonias": span("operating_points", YOUDEN, "sensitivity"),
    "classify <p0> to <p0> of its normals as pneumonia": span("operating_points", YOUDEN, "1 - specificity"),
    "normals of validation, <p0> to <p0> ": span("operating_points", YOUDEN, "1 - val_specificity"),
    "hold the true class of <p0> to <p0> of these": span("coverage", f"{NORMALS} and not {SMALL}", "covered"),
    "and of <p0> where they are calibrated on ten": [("coverage", f"{NORMALS} and {SMALL}", "covered")],
    "<p1> (<n1>–<n1>) over ten runs": ends("leaderboard", STRICT, "accuracy"),
    "lower: <s3> where the best reaches <s3>": [
        ("leaderboard", STRICT, "auc"),
        ("leaderboard", "protocol == 'strict'", "auc"),
    ],
    "accuracy is <p0> to <p0> from run to run": span("imbalance", SMALL, "val_accuracy"),
    "and <p0> to <p0> with a class-imbalance method": span("imbalance", f"not {SMALL}", "val_accuracy"),
    "undersampling loses <s3> (<s3>–<s3>) of AUC": [
        ("imbalance_tests", "a == 'mobilenetv2-small'", name) for name in ("auc_difference", "low", "high")
    ],
    "other two methods gain <s3> ": [("imbalance_tests", "a == 'mobilenetv2-small'", "-auc_difference")],
    "the AUC is <s3> at most, and": [("external", "metric == 'auc'", "external")],
    "<p0> of the NIH's images are flagged, but <p0> of the normals of the official test and <p0> of": [
        ("ood_flagged", f"group == '{group}'", "flagged")
        for group in ("nih", "test, normal", "validation, normal")
    ],
    "JPEG cost <s3> of AUC at most": [("corruptions", f"{TINY} and {NOISE}", "delta_auc")],
    "and <s3> (<s3>–<s3>) to": ends(
        "corruptions", f"{FROZEN} and corruption == 'gaussian noise'", "delta_auc"
    ),
    "to <s3> (<s3>–<s3>) with a frozen": ends("corruptions", f"{FROZEN} and {NOISE}", "delta_auc"),
    "AUC, <s3> (<s3>–<s3>) at most": ends("corruptions", f"recipe == 'kerasio-tpu' and {DARK}", "delta_auc"),
    "error rises by <s3> to <s3> ": span("corruptions", DARK, "delta_balanced_error"),
    **{
        f"<s3> (<s3>–<s3>) on {split}": [
            ("shortcuts", f"{BORDER} and split == '{split}'", name) for name in ("auc", "low", "high")
        ]
        for split in ("train", "test")
    },
    "file alone <s3> and <s3> ": [
        ("shortcuts", f"{SIZE} and split == '{of}'", "auc") for of in ("train", "test")
    ],
    "official test images (<p0>)": [("leakage_official", "patients_or_images > 0", "share")],
}


def table(name):
    place = ROOT / "reports" / "kermany"
    return pd.read_csv(place / f"{name}.csv" if name == "leaderboard" else place / "tables" / f"{name}.csv")


def prose():
    notebooks = [nbformat.read(path, as_version=4) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    cells = [cell.source for notebook in notebooks for cell in notebook.cells if cell.cell_type == "markdown"]
    return " ".join(" ".join([(ROOT / "README.md").read_text(encoding="utf-8"), *cells]).split())


@pytest.mark.parametrize(("text", "places"), FINDINGS.items(), ids=lambda value: str(value)[:40])
def test_a_finding_has_the_values_of_its_table(text, places):
    values = iter(
        getattr(table(name).query(query).eval(column), of[0] if of else "max")()
        for name, query, column, *of in places
    )

    def written(match):
        value, kind = next(values), match[1]
        return f"{value * (1 if kind == 's' else 100):.{match[2]}f}" + ("%" if kind == "p" else "")

    assert re.sub(r"<([psn])(\d)>", written, text) in prose()


def test_what_a_finding_says_in_words_is_so():
    worse, external = table("corruptions"), table("external").query("metric == 'auc'")
    noise = worse.query(f"{FROZEN} and {NOISE}").set_index("corruption")["delta_auc"]
    assert noise.idxmin() == "gaussian noise"
    assert worse.query(DARK).set_index("recipe")["delta_auc"].idxmax() == "kerasio-tpu"
    assert (external["external_high"] < 0.5).sum() == 3 and (external["external_low"] < 0.5).all()


def test_the_remark_on_the_tutorial_is_of_its_three_runs():
    remark, found = get_recipe("kerasio-tpu").remark, []
    for seed in range(3):
        folder = ROOT / "reports" / "kermany" / "runs" / "kerasio-tpu" / f"published-{seed}"
        test = runs.read_scores(folder / "scores.csv").query("split == 'test'")
        classified = test["score"] >= 0.5
        found.append([f(test["label"], classified) for f in (sk.recall_score, sk.precision_score)])
    for name, values in zip(("recall", "precision"), zip(*found, strict=True), strict=True):
        assert "{} of {:.3f}, {:.3f} and {:.3f}".format(name, *values) in remark
    claim = table("claims").query("recipe == 'kerasio-tpu' and metric == 'sensitivity'").iloc[0]
    inside = [claim["claim_low"] <= round(recall, 3) <= claim["claim_high"] for recall, _ in found]
    assert inside == [False, True, False]


def test_the_stored_output_of_resnet_is_that_of_the_counts_its_remark_tells():
    stored, (positives, negatives, false_positives) = get_recipe("resnet50v2").stored_output, (390, 234, 229)
    assert f"{false_positives} of the {negatives} normals" in get_recipe("resnet50v2").remark
    assert stored["accuracy"] == round((positives + negatives - false_positives) / (positives + negatives), 3)
    assert stored["precision"] == round(positives / (positives + false_positives), 3)
    assert stored["sensitivity"] == 1
