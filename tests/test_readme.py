"""The findings in README and notebooks are those of the committed tables and scores."""

import json
import re

import nbformat
import pandas as pd
import pytest
from sklearn import metrics as sk

from xraylib.paths import ROOT
from xraylib.training import runs
from xraylib.training.recipes import get_recipe

TINY, SIZE = "recipe == 'tiny-cnn-28'", "feature == 'file size'"
RULE = "rule == 'sensitivity 0.95' and not recipe.str.contains('reframed|flagship')"
DEVICE = "recipe == 'flagship' and films =="
ASPECT = "split == '{}' and diagnosis == '{}'"


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
    "classifies <p1> of an image-level validation correctly, and <p1> of a patient-grouped one": [
        compared("image-level validation"),
        compared("patient-grouped validation"),
    ],
    "falls to <p1> at 0.5, and to <p1> at the threshold from validation": [
        compared("official test, threshold 0.5"),
        compared("official test, threshold from validation"),
    ],
    "recognises <p0> (<n0>–<n0>); of the same uncut <p0>, enlarged as much but not stretched <p0>, "
    "after JPEG at quality 30 <p0>": [
        *ends("framing", f"{TINY} and view == 'rows 0.81'", "specificity"),
        *(
            ("framing", f"{TINY} and view == '{view}'", "specificity")
            for view in ("as it is", "area 0.81", "jpeg 2")
        ),
    ],
    "a mean aspect ratio <s2>, where training normals have <s2> and pneumonias <s2> "
    "(estimated from pixels, error <s2>)": [
        ("framing_folders", ASPECT.format("test", "normal"), "mean"),
        *(
            ("framing_folders", ASPECT.format("train", name), "mean")
            for name in ("normal", "pneumonia")
        ),
        ("aspects", "error > 0", "error"),
    ],
    "framing accounts for <p0> (<n0>–<n0>, three runs) of its fall": ends(
        "framing_explained", TINY, "explained"
    ),
    "<p0> (<n0>–<n0>) of that of `mobilenetv2-frozen`": ends(
        "framing_explained", "recipe == 'mobilenetv2-frozen'", "explained"
    ),
    "five runs each (difference <s3>, <s3>–<s3>)": [
        ("paired_tests", "a == 'tiny-cnn-28' and b == 'tiny-cnn-28-reframed'", f"-{name}")
        for name in ("auc_difference", "high", "low")
    ],
    "it is a part (<p0> to <p0> for three networks)": span(
        "framing_explained", "not recipe.str.contains('reframed|flagship')", "explained"
    ),
    "neither gain is certain (p = <s2> and <s2>)": [
        ("paired_tests", f"a == '{name}' and b == '{name}-reframed'", "p_auc_holm")
        for name in ("tiny-cnn-28", "mobilenetv2-frozen")
    ],
    "`mobilenetv2-frozen` gains <s3> (<s3>–<s3>)": [
        (
            "paired_tests",
            "a == 'mobilenetv2-frozen' and b == 'mobilenetv2-frozen-reframed'",
            f"-{name}",
        )
        for name in ("auc_difference", "high", "low")
    ],
    "with its 136 films nothing (−<s3>, −<s3>–<s3>)": [
        ("paired_tests", "a == 'mobilenetv2-small' and b == 'mobilenetv2-small-reframed'", name)
        for name in ("auc_difference", "high", "-low")
    ],
    "reaches an AUC of <s3> (<s3>–<s3>), accuracy <s3> (<s3>–<s3>), sensitivity <s3> and specificity <s3>": [
        *ends("leaderboard", "recipe == 'flagship'", "auc"),
        *ends("leaderboard", "recipe == 'flagship'", "accuracy"),
        *(("leaderboard", "recipe == 'flagship'", name) for name in ("sensitivity", "specificity")),
    ],
    "the AUC of `tiny-cnn-28` goes from <s3> (<s3>–<s3>) to <s3> (<s3>–<s3>), five runs each": [
        *ends("leaderboard", f"{TINY} and protocol == 'strict' and seeds == 5", "auc"),
        *ends("leaderboard", "recipe == 'tiny-cnn-28-reframed' and seeds == 5", "auc"),
    ],
    "recognises <p0> (<n0>–<n0>) of its 13 test normals, and <p0> (<n0>–<n0>) of the others": [
        *ends("device", f"{DEVICE} 'test, normal, with the text' and view == 'as it is'", "right"),
        *ends(
            "device", f"{DEVICE} 'test, normal, without the text' and view == 'as it is'", "right"
        ),
    ],
    "rendering adds <s3> (<s3>–<s3>, over patients) to framing": [
        ("ablation", "variant == 'reframed, rendered'", name)
        for name in ("difference", "low", "high")
    ],
    "averaged, <s3> and <s3>, ": [
        ("ensembles", "recipe == 'flagship'", name) for name in ("auc", "accuracy")
    ],
    "than strangers' (AUC <s3>, <s3>–<s3>, ": [
        ("identity", "pairing == 'bacteria and virus: one number'", name)
        for name in ("auc", "low", "high")
    ],
    "random framing find <p0> to <p0> of the test's pneumonias": span(
        "operating_points", RULE, "sensitivity"
    ),
    "and misclassify <p0> to <p0> of its normals": span(
        "operating_points", RULE, "1 - specificity"
    ),
    "of validation normals that did not choose it, <p0> to <p0> ": span(
        "operating_points", RULE, "1 - val_specificity"
    ),
    "file alone has an AUC of <s3> on train and <s3> on test": [
        ("shortcuts", f"{SIZE} and split == '{of}'", "auc") for of in ("train", "test")
    ],
    "in 1,539 original files, the bits a pixel have <s3>": [
        ("shortcuts", "feature == 'bits a pixel, original file' and n == 1539", "auc")
    ],
    "official test images (<p0>)": [("leakage_official", "patients_or_images > 0", "share")],
    "tells their classes apart (AUC <s3>, ": [
        ("acquisition_nih", "of == 'file size' and n == 518", "auc")
    ],
}


def table(name):
    places = {"leaderboard": "leaderboard.csv", "ablation": "ablation/table.csv"}
    return pd.read_csv(ROOT / "reports" / "kermany" / places.get(name, f"tables/{name}.csv"))


def prose():
    notebooks = [
        nbformat.read(path, as_version=4) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
    ]
    cells = [
        cell.source
        for notebook in notebooks
        for cell in notebook.cells
        if cell.cell_type == "markdown"
    ]
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


def test_what_the_shipped_model_abstains_from_is_what_was_measured():
    found = json.loads((ROOT / "reports" / "prediction.json").read_text())
    shipped = json.loads((ROOT / "xraylib" / "weights" / "run.json").read_text())
    assert found["sha256"] == shipped["answers"]["sha256"]
    others = found["abstained"].values()
    assert (
        all(kind["share"] == 1 for kind in others)
        and f"all of {sum(kind['n'] for kind in others)} photo" in prose()
    )
    test, nih = (1 - found[name]["answered"] for name in ("kermany", "nih"))
    assert (
        f"It abstains from {test:.1%} of the official test," in prose()
        and f"{nih:.0%} of the NIH films" in prose()
    )
    assert f"only {found['altered_abstained']['inverted']:.0%} of inverted films" in prose()
    assert (
        f"calibration error on the official test {found['kermany']['calibration_error']:.3f}"
        in prose()
    )


def test_the_remark_on_the_tutorial_is_of_its_three_runs():
    remark, found = get_recipe("kerasio-tpu").remark, []
    for seed in range(3):
        folder = ROOT / "reports" / "kermany" / "runs" / "kerasio-tpu" / f"published-{seed}"
        test = runs.read_scores(folder / "scores.csv").query("split == 'test'")
        classified = test["score"] >= 0.5
        found.append([f(test["label"], classified) for f in (sk.recall_score, sk.precision_score)])
    for name, values in zip(("recall", "precision"), zip(*found, strict=True), strict=True):
        assert "{} of {:.3f}, {:.3f} and {:.3f}".format(name, *values) in remark


def test_the_stored_output_of_resnet_is_that_of_the_counts_its_remark_tells():
    stored, (positives, negatives, false_positives) = (
        get_recipe("resnet50v2").stored_output,
        (390, 234, 229),
    )
    assert f"{false_positives} of the {negatives} normals" in get_recipe("resnet50v2").remark
    assert stored["accuracy"] == round(
        (positives + negatives - false_positives) / (positives + negatives), 3
    )
    assert stored["precision"] == round(positives / (positives + false_positives), 3)
    assert stored["sensitivity"] == 1
