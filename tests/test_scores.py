import json

import builders
import numpy as np
import pandas as pd
import pytest

from xraylib.errors import InvalidDataError, NotFoundError
from xraylib.evaluation import scores
from xraylib.training import runs


def changed(column, value, **options):
    table = builders.scores(n=30, **options)
    table.loc[7, column] = value
    return table


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("score", float("nan"), "val7_0 has no number as score"),
        ("score", 1.01, r"val7_0 has a score outside \[0, 1\]"),
        ("score", -float("inf"), r"val7_0 has a score outside \[0, 1\]"),
        ("label", 2, "val7_0 has a label that is not 0 or 1"),
        ("image_id", "val3_0", "val3_0 is there twice"),
        ("split", "tset", "val7_0 is of a split that does not exist"),
        ("patient", "", "val7_0 has no patient"),
        ("kind", "normal", "val7_0 has a label that its kind contradicts"),
    ],
)
def test_a_bad_row_is_refused_by_name(column, value, said):
    with pytest.raises(InvalidDataError, match=rf"ours, strict, seed 0: {said} \(1 rows\)\. Fix: "):
        scores.check(changed(column, value))


def test_a_table_without_rows_or_both_classes_is_refused():
    table = builders.scores(n=30)
    with pytest.raises(InvalidDataError, match="empty"):
        scores.check(table[:0])
    with pytest.raises(InvalidDataError, match="ours, strict, 0, test: one class only"):
        scores.check(table.query("split == 'val' or label == 1"))
    scores.check(table)


def test_one_score_for_all_is_refused_unless_the_recipe_is_to_see_nothing():
    table = builders.scores(n=30).assign(score=0.25)
    with pytest.raises(InvalidDataError, match=r"strict, 0, test: all 30 scores are 0\.25.* Fix: "):
        scores.check(table)
    scores.check(table.assign(recipe="majority-class"))
    # On few images regularisation may leave a baseline without a slope.
    scores.check(table.assign(recipe="mean-intensity"))


def test_a_patient_or_an_image_in_two_splits_is_refused_under_strict_alone():
    table = builders.scores(n=30)
    at = table.index[table["split"] == "test"][3]
    for column in ("patient", "image_id"):
        leaking = table.copy()
        leaking.loc[at, column] = table.loc[6, column]
        with pytest.raises(InvalidDataError, match=r"in two splits \(\d+ rows\)\. Fix: "):
            scores.check(leaking)
        scores.check(leaking.assign(protocol="published"))
    # Another hospital may give its patients the same names; re-framed images are validation's.
    scores.check(table.replace({"split": {"test": "external"}}))
    swapped = table[table["split"] == "val"].assign(split="swapped")
    scores.check(pd.concat([table, swapped], ignore_index=True))


def test_of_two_labels_the_one_that_most_contradict_is_named():
    table = pd.concat(
        [builders.scores(n=30).assign(recipe=name) for name in "abc"], ignore_index=True
    )
    at = table.index[table["recipe"] == "b"][5]
    table.loc[at, "label"] = 1 - table.loc[at, "label"]
    with pytest.raises(
        InvalidDataError, match=rf"b, strict, seed 0: {table.loc[at, 'image_id']} has two labels"
    ):
        scores.check(table)


def test_an_image_of_two_patients_and_seeds_of_different_tests_are_refused():
    table = builders.scores(n=30, seeds=(0, 1))
    at = table.index[(table["split"] == "test") & (table["seed"] == 1)][5]
    name = table.loc[at, "image_id"]
    with pytest.raises(InvalidDataError, match=f"{name} has two patients"):
        scores.check(
            table.assign(patient=table["patient"].where(table.index != at, "somebody else"))
        )
    with pytest.raises(
        InvalidDataError, match=f"{name} is not among the images of its other seeds"
    ):
        scores.check(table.drop(index=at))
    scores.check(table.drop(index=at).assign(protocol="published"))


@pytest.fixture
def external(reports_here):
    """External scores of two recipes in a report, and their folder."""
    table = (
        builders.scores(n=30)
        .query("split == 'test'")
        .assign(split="external", recipe="tiny-cnn-28")
    )
    folder = reports_here / "phantom" / "external" / "hospital"
    folder.mkdir(parents=True)
    for recipe in ("resnet50v2", "tiny-cnn-28"):
        runs.write_scores(table.assign(recipe=recipe)[builders.COLUMNS], folder / f"{recipe}.csv")
    return table[builders.COLUMNS], folder


def test_external_scores_are_read_in_the_order_of_recipes(external):
    table, _ = external
    found = scores.load_external("phantom", "hospital")
    assert list(dict.fromkeys(found["recipe"])) == ["tiny-cnn-28", "resnet50v2"]
    assert found["score"].tolist()[:30] == pytest.approx(table["score"].tolist(), rel=1e-8)


def test_external_scores_that_do_not_fit_together_or_are_absent_are_refused(external):
    table, folder = external
    fewer = table[table["image_id"] != table["image_id"].iloc[3]].assign(recipe="resnet50v2")
    runs.write_scores(fewer, folder / "resnet50v2.csv")
    said = f"{table['image_id'].iloc[3]} was scored by tiny-cnn-28 and not by all"
    with pytest.raises(InvalidDataError, match=said):
        scores.load_external("phantom", "hospital")
    with pytest.raises(
        NotFoundError, match="Fix: `python -m xraylib external RECIPE --dataset phantom --on nih`"
    ):
        scores.load_external("phantom", "nih")


def test_a_report_without_runs_names_the_command(reports_here):
    with pytest.raises(NotFoundError, match="Fix: `make reproduce DATASET=phantom`"):
        scores.load("phantom")


def write_run(reports, seed, **settings):
    """A finished run of a made-up report, its `run.json` of training version 1 but for settings."""
    folder = reports / "made-up" / "runs" / "tiny-cnn-28" / f"strict-{seed}"
    folder.mkdir(parents=True)
    table = builders.scores(n=30).assign(recipe="tiny-cnn-28", seed=seed)
    runs.write_scores(table[builders.COLUMNS], folder / "scores.csv")
    about = {
        "recipe": "tiny-cnn-28",
        "protocol": "strict",
        "seed": seed,
        "init": "random",
        "dataset": "made-up",
        "model_sha256": "",
        "choices": {
            "fit": "network",
            "network": "tiny_cnn",
            "size": 28,
            "head": "two-logits",
            "augmentation": None,
        },
        "training_version": 1,
        "hardware": "CPU AMD EPYC, 2 cores · tensorflow · float32 · one device",
        "threshold": 0.25 + seed / 4,
    }
    (folder / "run.json").write_text(json.dumps(about | settings))


def test_loaded_scores_have_the_threshold_and_the_training_version_of_their_run(reports_here):
    write_run(reports_here, 0)
    write_run(reports_here, 1, hardware="CPU of another make · tensorflow · float32 · one device")
    table = scores.load("made-up", ["tiny-cnn-28"])
    assert table.groupby("seed")["threshold"].unique().map(list).to_dict() == {0: [0.25], 1: [0.5]}
    assert set(table["training_version"]) == {1}
    assert table.groupby(["seed", "split"])["patient"].nunique().eq(30).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"hardware": "TPU · jax · float32 · one device"},
        {"hardware": "CPU · tensorflow · mixed_bfloat16 · one device"},
        {"precision": "mixed_bfloat16"},
        {"backend": "jax"},
        {"init": "imagenet"},
        {"budget": "quick"},
        {"training_version": 2},
    ],
)
def test_runs_of_different_identity_are_never_pooled(reports_here, settings):
    write_run(reports_here, 0)
    write_run(reports_here, 1, **settings)
    assert scores.load("made-up")["seed"].nunique() == 1


def test_a_file_of_scores_is_read_with_its_views_and_damage_is_named(tmp_path):
    file = tmp_path / "views.csv"
    table = builders.scores(n=30, seeds=(0, 1)).assign(
        image_id=lambda t: t.index.map("{:04d}".format)
    )
    table = table.assign(patient="NA", cropped=table["score"].where(table["seed"] == 0))
    table.to_csv(file, index=False)
    with pytest.raises(InvalidDataError, match=r"has '' as cropped.* \(60 rows, the first in line"):
        runs.read_scores(file, [*runs.SCORE_COLUMNS, "cropped"])
    found = runs.read_scores(file, runs.SCORE_COLUMNS)
    assert found["image_id"].tolist() == table["image_id"].tolist()
    assert set(found["patient"]) == {"NA"}
    assert found["cropped"].isna().tolist() == (table["seed"] == 1).tolist()
    assert found["score"].tolist() == pytest.approx(table["score"].tolist())
    for column, value, problem in (
        ("score", 1.5, "no number in"),
        ("score", -0.1, "no number in"),
        ("cropped", "x", "no number in"),
        ("label", 0.5, "no whole number"),
        ("seed", "", "no whole number"),
    ):
        damaged = table.astype({column: object})
        damaged.loc[3, column] = value
        damaged.to_csv(file, index=False)
        with pytest.raises(
            InvalidDataError, match=rf"0003 has .* as {column}, .*{problem}.*line 5"
        ):
            runs.read_scores(file, runs.SCORE_COLUMNS)
    table.drop(columns=["kind"]).to_csv(file, index=False)
    with pytest.raises(InvalidDataError, match=r"lacks the columns kind\. Fix: "):
        runs.read_scores(file, runs.SCORE_COLUMNS)
    file.write_text("")
    with pytest.raises(InvalidDataError, match=r"is not a scores table .*Fix: "):
        runs.read_scores(file, runs.SCORE_COLUMNS)


def test_log_odds_are_finite_and_turn_with_the_class():
    values = scores.log_odds(np.array([0.0, 0.2, 0.5, 0.8, 1.0]))
    assert values[2] == 0 and values[3] == pytest.approx(np.log(4))
    np.testing.assert_allclose(values, -values[::-1])
    assert np.isfinite(values).all() and (np.diff(values) > 0).all()
