from dataclasses import replace
from itertools import combinations

import builders
import numpy as np
import pandas as pd
import pytest
from scipy.stats import kstest, norm
from scipy.stats import t as student
from sklearn import metrics as sk
from statsmodels.stats.contingency_tables import mcnemar

from xraylib.datasets import images, manifest
from xraylib.datasets.phantom import PhantomSettings
from xraylib.datasets.splits import PROTOCOLS, SPLIT_STRATEGIES
from xraylib.errors import InvalidDataError
from xraylib.evaluation import claims, comparisons, metrics
from xraylib.evaluation.comparisons import (
    COMPARISONS,
    by_run,
    paired_tests,
    protocol_comparison,
    subgroups,
)
from xraylib.evaluation.resampling import delong
from xraylib.training import recipes


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """statsmodels collects garbage at every correction, which takes longer than all the rest."""
    monkeypatch.setattr("gc.collect", lambda: 0)


def rivals(*noises, n=90, images=1, seeds=(0,), sample=0):
    """Recipes of the same images whose scores are one truth and noise of their own."""
    base = builders.scores(n=n, images=images, seeds=seeds, noise=0.3, sample=sample)
    rng, parts = np.random.default_rng(1000 + sample), []
    for number, noise in enumerate(noises):
        odds = np.log(base["score"] / (1 - base["score"])) + noise * rng.normal(size=len(base))
        parts.append(base.assign(recipe=f"recipe{number}", score=1 / (1 + np.exp(-odds))))
    return pd.concat(parts, ignore_index=True)


def test_every_pair_has_one_row_with_holms_correction():
    table = paired_tests(rivals(0.2, 0.6, 1.2, 2))
    assert tuple(table.columns) == comparisons.PAIRED_COLUMNS
    names = [f"recipe{number}" for number in range(4)]
    assert table[["a", "b"]].apply(tuple, axis=1).tolist() == list(combinations(names, 2))
    for name in ("p_auc", "p_mcnemar"):
        worst, expected = 0.0, {}
        for rank, (pair, p) in enumerate(table[name].sort_values(kind="stable").items()):
            worst = max(worst, min(1.0, (len(table) - rank) * p))
            expected[pair] = worst
        assert table[f"{name}_holm"].to_dict() == pytest.approx(expected)
    assert tuple(paired_tests(rivals(0.2)).columns) == comparisons.PAIRED_COLUMNS


@pytest.mark.parametrize("sample", range(3))
def test_with_one_image_a_patient_mcnemars_p_is_the_classical_one(sample):
    scores = rivals(0.2, 1.5, sample=sample)
    row = paired_tests(scores).iloc[0]
    test = scores.query("split == 'test'").pivot(
        index=["image_id", "label"], columns="recipe", values="score"
    )
    right = (test >= 0.5).eq(test.index.get_level_values("label") == 1, axis=0)
    only_a = (right["recipe0"] & ~right["recipe1"]).sum()
    only_b = (right["recipe1"] & ~right["recipe0"]).sum()
    assert (row["only_a_right"], row["only_b_right"]) == (only_a, only_b)
    classical = mcnemar([[0, only_a], [only_b, 0]], exact=False, correction=False)
    assert row["p_mcnemar"] == pytest.approx(classical.pvalue, abs=1e-12)


def test_copies_of_an_image_are_no_further_evidence():
    scores = rivals(0.2, 1.5)
    doubled = pd.concat(
        [scores, scores.assign(image_id=scores["image_id"] + " again")], ignore_index=True
    )
    one, two = paired_tests(scores).iloc[0], paired_tests(doubled).iloc[0]
    assert two["only_a_right"] == 2 * one["only_a_right"]
    assert two["p_mcnemar"] == pytest.approx(one["p_mcnemar"], abs=1e-12)
    assert two["p_auc"] == pytest.approx(one["p_auc"], abs=1e-9)


def test_mcnemar_over_patients_keeps_its_level():
    # Two recipes of equal worth; three images a patient that are classified alike.
    rng, alarms = np.random.default_rng(0), []
    patients = pd.Series(np.repeat(np.arange(60), 3))
    for _ in range(1000):
        differences = np.repeat(rng.choice([-1, 0, 1], 60, p=[0.2, 0.6, 0.2]), 3)
        alarms.append(comparisons._mcnemar(pd.Series(differences), patients) < 0.05)
    assert np.mean(alarms) == pytest.approx(0.05, abs=0.02)


def test_the_difference_is_of_mean_aucs_with_delongs_spread_and_the_other_order_turns_it():
    scores = rivals(0.2, 1.5, images=2, seeds=(0, 1))
    row = paired_tests(scores.sample(frac=1, random_state=0).sort_values("recipe")).iloc[0]
    test = scores.query("split == 'test'")
    wide = test.pivot(
        index=["image_id", "label", "patient"], columns=["recipe", "seed"], values="score"
    )
    about = wide.index.to_frame()
    aucs, covariance = delong(
        about["label"].to_numpy(), wide.to_numpy().T, about["patient"].to_numpy()
    )
    share = np.array([0.5, 0.5, -0.5, -0.5])
    spread = np.sqrt(share @ covariance @ share)
    assert row["auc_difference"] == pytest.approx(share @ aucs)
    ends = [row["auc_difference"] - 1.959964 * spread, row["auc_difference"] + 1.959964 * spread]
    assert row[["low", "high"]].tolist() == pytest.approx(ends)
    assert row["p_auc"] == pytest.approx(2 * norm.sf(row["auc_difference"] / spread))
    other = paired_tests(scores.sort_values("recipe", ascending=False)).iloc[0]
    assert (other["a"], other["b"]) == (row["b"], row["a"])
    assert (-other["high"], -other["low"]) == pytest.approx((row["low"], row["high"]))
    assert (other["only_a_right"], other["only_b_right"]) == (
        row["only_b_right"],
        row["only_a_right"],
    )


def test_each_recipe_classifies_as_most_of_its_seeds_do():
    scores = rivals(0, 0, n=30, seeds=(0, 1, 2))
    scores["score"] = 0.9 + 0.1 * scores["score"]
    second = scores["recipe"] == "recipe1"
    for seed, expected in ((0, (0, 0)), (1, (20, 10))):
        scores.loc[second & (scores["seed"] == seed), "score"] -= 0.8
        row = paired_tests(scores).iloc[0]
        assert (row["only_a_right"], row["only_b_right"]) == expected


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_a_recipe_is_no_better_than_itself_and_a_far_better_one_is_found(seeds):
    row = paired_tests(rivals(0, 0, images=2, seeds=seeds)).iloc[0]
    ends = ["auc_difference", "patients_low", "patients_high"]
    assert row[ends].tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    assert row["low"] <= 0 <= row["high"] and row["p_auc"] == pytest.approx(1, abs=1e-6)
    assert row[["only_a_right", "only_b_right", "p_mcnemar"]].tolist() == [0, 0, 1]
    row = paired_tests(rivals(0, 8, n=300, seeds=seeds)).iloc[0]
    assert row["low"] > 0 and row["p_auc"] < 0.01 and row["p_mcnemar"] < 0.01


def test_recipes_that_differ_by_chance_have_uniform_p():
    found = pd.concat(
        [paired_tests(rivals(1, 1, n=80, images=2, sample=sample)) for sample in range(40)]
    )
    assert kstest(found["p_auc"], "uniform").pvalue > 0.01
    assert (found["p_auc"] < 0.05).mean() <= 0.1 and (found["p_mcnemar"] < 0.05).mean() <= 0.1


def test_what_cannot_be_paired_is_refused_by_name():
    scores = rivals(0, 0.1, n=30, seeds=(0, 1))
    gone = (scores["image_id"] == "test7_0") & (scores["recipe"] == "recipe1")
    with pytest.raises(
        InvalidDataError, match="recipe1 and recipe0 were tested on different images"
    ):
        paired_tests(scores[~gone])
    with pytest.raises(InvalidDataError, match="seeds of recipe1 were tested on different images"):
        paired_tests(scores[~(gone & (scores["seed"] == 1))])
    with pytest.raises(InvalidDataError, match=r"one patient only.* Fix: "):
        paired_tests(
            scores.assign(patient=scores["patient"].where(scores["label"] == 0, scores["split"]))
        )


# At 0.5 one normal image is classified as pneumonia and two pneumonias are missed; at 0.3 two and none.
TEST = ((0.1, 0.2, 0.3, 0.6), (0.4, 0.45, 0.8, 0.9))
VAL = ((0.1, 0.2), (0.35, 0.9))
PERFECT = ((0.1, 0.2, 0.3, 0.4), (0.6, 0.7, 0.8, 0.9))
THREE_WRONG = ((0.1, 0.2, 0.3, 0.9), (0.1, 0.2, 0.8, 0.9))


def run(test=TEST, val=VAL, **about):
    return pd.concat([builders.images(*val, "val", **about), builders.images(*test, **about)])


def both_protocols(**about):
    return pd.concat(
        [run(threshold=0.25, **about), run(protocol="published", **about)], ignore_index=True
    )


@pytest.fixture
def made_up(monkeypatch):
    """A function that gives the claims of one made-up recipe, by metric."""
    base = recipes.get_recipe("scratch-cnn")

    def found(scores, same_data=True, other_init=(), **fields):
        given = {
            "name": "made-up",
            "claims": {"accuracy": 0.6},
            "stored_output": {},
            "claimed_on": 0,
            "ours": "",
        } | fields
        monkeypatch.setattr(comparisons, "RECIPES", {"made-up": replace(base, **given)})
        table = claims.claims(scores, same_data=same_data, other_init=other_init)
        assert tuple(table.columns) == claims.CLAIMS
        return table.set_index("metric")

    return found


def test_a_claim_is_beside_what_each_protocol_gives_at_its_own_threshold(made_up):
    scores = both_protocols()
    row = made_up(scores).loc["accuracy"]
    assert (row["recipe"], row["claim"], row["published"], row["strict"]) == (
        "made-up",
        0.6,
        5 / 8,
        6 / 8,
    )
    for protocol in PROTOCOLS:
        found = metrics.evaluate(scores[scores["protocol"] == protocol]).loc["accuracy"]
        assert [row[f"{protocol}_low"], row[f"{protocol}_high"]] == [found["low"], found["high"]]
    assert row["verdict"] == "not testable here: fewer than three runs"
    assert made_up(scores, same_data=False).loc["accuracy", "verdict"] == ""
    # Seeds are averaged; other split strategies and recipes without a claim do not count.
    more = pd.concat(
        [scores, run(PERFECT, protocol="published", seed=1), run(protocol="per-image-validation")]
    )
    assert made_up(more).loc["accuracy", "published"] == (1 + 5 / 8) / 2
    assert made_up(more.assign(recipe="unheard-of")).empty


def test_every_metric_of_the_claim_or_of_the_stored_output_has_a_row(made_up):
    said = {"f1": 0.9, "auc": "excellent"}, {"sensitivity": 0.7, "auc": 0.75}
    rows = made_up(both_protocols(), claims=said[0], stored_output=said[1])
    assert rows.index.tolist() == ["auc", "sensitivity", "f1"]
    stored = {"auc": 0.75, "sensitivity": 0.7, "f1": np.nan}
    assert rows["stored_output"].to_dict() == pytest.approx(stored, nan_ok=True)
    assert rows.loc["auc", "claim"] == "excellent" and np.isnan(rows.loc["sensitivity", "claim"])
    assert rows["published"].to_dict() == pytest.approx(
        {"auc": 14 / 16, "sensitivity": 2 / 4, "f1": 4 / 7}
    )
    assert rows["verdict"].to_dict() == {"auc": "", "sensitivity": ""} | {
        "f1": rows.loc["f1", "verdict"]
    }


def test_a_claim_is_reproduced_when_one_more_run_may_give_it(made_up):
    runs = [
        run(test, protocol="published", seed=i)
        for i, test in enumerate((TEST, THREE_WRONG, PERFECT, TEST))
    ]
    accuracies = by_run(pd.concat(runs), ["made-up"], "published")["accuracy"]
    half = student.ppf(0.975, 3) * accuracies.std() * (1 + 1 / 4) ** 0.5
    row = made_up(pd.concat(runs), claims={"accuracy": accuracies.mean() - half + 1e-9}).loc[
        "accuracy"
    ]
    assert (
        row["next_low"] == pytest.approx(accuracies.mean() - half)
        and row["verdict"] == "reproduced"
    )
    below = {"accuracy": accuracies.mean() - half - 1e-9}
    assert made_up(pd.concat(runs), claims=below).loc["accuracy", "verdict"] == "not reproduced"
    for about in ({"other_init": ["made-up"]}, {"ours": "layers are ours"}):
        assert (
            made_up(pd.concat(runs), **about)
            .loc["accuracy", "verdict"]
            .startswith("not testable here: ")
        )
    alone = made_up(run()).loc["accuracy"]
    assert np.isnan(alone["published"]) and alone["verdict"].startswith("not testable")


def test_claims_are_those_of_the_recipes():
    table = claims(
        pd.concat([both_protocols(recipe=name) for name in ("kerasio-tpu", "resnet50v2")])
    )
    assert set(table["recipe"]) == {"kerasio-tpu", "resnet50v2"}
    assert table["claim"].notna().any() and table["strict"].notna().all()


def test_one_network_is_evaluated_five_ways():
    assert {protocol for _, protocol, _, _ in COMPARISONS} <= {*PROTOCOLS, *SPLIT_STRATEGIES}
    one_wrong = (PERFECT[0], (0.2, 0.7, 0.8, 0.9))
    scores = pd.concat(
        [
            run(PERFECT, protocol="random-per-image"),
            run(THREE_WRONG, one_wrong, protocol="per-image-validation"),
            run(threshold=0.25),
            run(THREE_WRONG, THREE_WRONG, protocol="published"),
            run(recipe="strict-only"),
        ]
    )
    table = protocol_comparison(scores, ["strict-only", "unheard-of", "made-up"])
    assert table["recipe"].tolist() == ["strict-only"] * 3 + ["made-up"] * 5
    own = table[table["recipe"] == "made-up"]
    columns = ["comparison", "protocol", "split", "rule"]
    assert own[columns].apply(tuple, axis=1).tolist() == [(*w[:3], str(w[3])) for w in COMPARISONS]
    assert own["accuracy"].tolist() == [1, 7 / 8, 3 / 4, 5 / 8, 6 / 8]
    assert own["specificity"].tolist() == [1, 1, 1, 3 / 4, 2 / 4]
    assert own["n"].tolist() == [8, 8, 4, 8, 8]
    found = metrics.evaluate(run(threshold=0.25)).loc["accuracy"]
    assert own.iloc[-1][["accuracy_low", "accuracy_high"]].tolist() == [found["low"], found["high"]]


def test_operating_points_choose_on_validation_and_are_measured_on_the_test():
    table = comparisons.operating_points(run()).set_index("rule")
    assert table.loc["youden", "threshold"] == pytest.approx(0.275)
    assert table.loc["youden", ["sensitivity", "specificity"]].tolist() == [1, 0.5]
    assert table.loc["0.5", ["sensitivity", "specificity"]].tolist() == [0.5, 0.75]
    table = comparisons.operating_points(builders.scores(200, strength=2)).set_index("rule")
    assert (table["threshold"].between(table["threshold_low"], table["threshold_high"])).all()
    val = builders.scores(200, strength=2).query("split == 'val'")
    apparent = (
        val.loc[val["label"] == 1, "score"] >= table.loc["sensitivity 0.95", "threshold"]
    ).mean()
    assert table.loc["sensitivity 0.95", "val_sensitivity"] == pytest.approx(apparent, abs=0.03)


def test_a_run_is_scored_on_its_own_validation_and_on_the_test():
    scores = pd.concat([run(seed=3), run(PERFECT, seed=1), run(PERFECT, protocol="published")])
    rows = by_run(scores, ["made-up"]).set_index("seed")
    assert rows.index.tolist() == [1, 3]
    assert rows.loc[3, ["n_val", "n_test", "val_accuracy"]].tolist() == [4, 8, 3 / 4]
    metrics_of_3 = rows.loc[
        3, ["accuracy", "balanced_accuracy", "sensitivity", "specificity", "auc"]
    ]
    assert metrics_of_3.tolist() == [5 / 8, 5 / 8, 2 / 4, 3 / 4, 14 / 16]
    mean = metrics.evaluate(scores[scores["protocol"] == "strict"])["value"]
    assert rows["auc"].mean() == pytest.approx(mean["auc"])
    assert by_run(scores, ["made-up"], "published")["accuracy"].tolist() == [1]


# Image, patient, kind, score of seed 0, score of seed 1.
GROUPED = [
    ("person1_bacteria_1", "1", "bacteria", 0.9, 0.9),
    ("person1_bacteria_2", "1", "bacteria", 0.8, 0.2),
    ("person2_bacteria_3", "2", "bacteria", 0.6, 0.7),
    ("person3_virus_4", "3", "virus", 0.4, 0.9),
    ("person4_virus_5", "4", "virus", 0.3, 0.4),
    ("IM-0001-0001", "5", "normal", 0.1, 0.1),
    ("IM-0001-0002", "5", "normal", 0.2, 0.6),
    ("IM-0002-0001", "6", "normal", 0.7, 0.5),
    ("NORMAL2-IM-0003-0001", "7", "normal", 0.35, 0.3),
    ("NORMAL2-IM-0004-0001", "8", "normal", 0.2, 0.2),
]


def grouped(seeds=(0, 1)):
    columns = ["image_id", "patient", "kind", "score"]
    parts = [
        pd.DataFrame([(*row[:3], row[3 + seed]) for row in GROUPED], columns=columns).assign(
            seed=seed
        )
        for seed in seeds
    ]
    table = pd.concat(parts, ignore_index=True).assign(
        recipe="ours", protocol="strict", split="test"
    )
    return table.assign(label=(table["kind"] != "normal").astype(int), threshold=0.5)


def test_an_ensemble_averages_the_log_odds_from_each_runs_own_threshold():
    scores = builders.scores(n=120, seeds=(0, 1, 2), strength=1.0)
    scores["threshold"] = scores["seed"].map({0: 0.3, 1: 0.5, 2: 0.8})
    test = scores[scores["split"] == "test"]
    one = comparisons.ensembles(scores).iloc[0]
    assert (one["members"], one["n"]) == (3, test["image_id"].nunique())
    wide = test.pivot(index="image_id", columns="seed", values="score")
    thresholds = test.groupby("seed")["threshold"].first()
    odds = (np.log(wide / (1 - wide)) - np.log(thresholds / (1 - thresholds))).mean(axis=1)
    labels = test.drop_duplicates("image_id").set_index("image_id")["label"][odds.index]
    assert one["auc"] == pytest.approx(sk.roc_auc_score(labels, odds))
    assert one["accuracy"] == pytest.approx(((odds >= 0) == (labels == 1)).mean())
    assert comparisons.ensembles(scores[scores["seed"] == 0]).empty


def test_subgroups_are_counted_by_hand_and_their_auc_is_against_the_other_class():
    scores = grouped()
    rows = subgroups(scores).set_index("subgroup")
    names = [
        "pneumonia, bacteria",
        "pneumonia, virus",
        "normal, series IM-",
        "normal, series NORMAL2-",
    ]
    assert rows.index.tolist() == names
    assert rows["right"].tolist() == pytest.approx([5 / 6, 1 / 4, 1 / 2, 1])
    assert rows["images"].tolist() == [3, 2, 3, 2] and rows["patients"].tolist() == [2, 2, 2, 2]
    viruses = scores[scores["kind"] != "bacteria"]
    aucs = [sk.roc_auc_score(part["label"], part["score"]) for _, part in viruses.groupby("seed")]
    assert rows.loc["pneumonia, virus", "auc"] == pytest.approx(np.mean(aucs))
    for name in ("right", "auc"):
        assert rows[name].between(rows[f"{name}_low"], rows[f"{name}_high"]).all()


def test_sizes_are_divided_at_their_median_and_equal_or_unknown_ones_make_no_group():
    names = [row[0] for row in GROUPED]
    pixels = pd.Series([100, 500, 100, 500, 100] * 2, index=names)
    rows = subgroups(grouped(seeds=(0,)), pixels).set_index("subgroup")["right"]
    assert rows["pneumonia, smaller image"] == pytest.approx(2 / 3)
    assert rows["pneumonia, larger image"] == pytest.approx(1 / 2)
    assert rows["normal, smaller image"] == pytest.approx(2 / 3)
    assert len(subgroups(grouped(), pixels * 0)) == 4
    fewer = subgroups(grouped(), pixels.drop("person4_virus_5")).set_index("subgroup")["images"]
    assert fewer["pneumonia, smaller image"] + fewer["pneumonia, larger image"] == 4


def test_images_of_one_patient_widen_the_interval_of_a_subgroup():
    whole = builders.scores(n=60, images=8, noise=0.05)
    alone = whole.assign(patient=whole["image_id"])
    width = [
        (rows["right_high"] - rows["right_low"]).item() for rows in map(subgroups, (whole, alone))
    ]
    assert width[0] > 2 * width[1]


@pytest.mark.parametrize("planted", [True, False])
def test_a_planted_framing_is_found_and_directions_come_from_train(
    planted, small_phantom, monkeypatch
):
    from xraylib.datasets import catalog

    settings = PhantomSettings(images=150, size=64, framing_shift=planted)
    monkeypatch.setitem(
        catalog.DATASETS, "phantom", replace(catalog.DATASETS["phantom"], phantom=settings)
    )
    films = manifest.load("phantom")
    pixels = images.load_pixels(films, 48)
    table = comparisons.shortcut_baselines(films, pixels).set_index(["feature", "split"])
    model = table.loc[("border of 1/16, linear model", "test")]
    if planted:
        assert (
            table.loc[("aspect ratio", "train"), "low"]
            > 0.9
            < table.loc[("height", "train"), "low"]
        )
    else:
        assert model["auc"] < 0.75 or model["low"] <= 0.5
    models = {f"border of 1/{part}, linear model" for part in (16, 32, 64)}
    features = {"height", "aspect ratio"} if planted else set()
    features |= {
        "file size",
        "bits a pixel",
        "mean intensity",
        "border intensity",
        "saturated pixels",
    }
    assert {feature for feature, _ in table.index} == features | models
    assert (table.xs("train", level="split")["auc"].drop(list(models)) >= 0.5).all()
    test, means = (films["split"] == "test").to_numpy(), pixels.mean(axis=(1, 2, 3))
    sign = 1 if sk.roc_auc_score(films["label"][~test], means[~test]) >= 0.5 else -1
    expected = sk.roc_auc_score(films["label"][test], sign * means[test])
    assert table.loc[("mean intensity", "test"), "auc"] == pytest.approx(expected)
