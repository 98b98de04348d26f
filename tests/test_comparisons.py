from dataclasses import replace
from itertools import combinations

import builders
import numpy as np
import pandas as pd
import pytest
from notebook_code import definitions
from scipy.stats import kstest, norm, ttest_1samp
from sklearn import metrics as sk
from statsmodels.stats.contingency_tables import mcnemar

from xraylib.datasets import images, manifest
from xraylib.datasets.phantom import PhantomSettings
from xraylib.datasets.splits import PROTOCOLS, SPLIT_STRATEGIES
from xraylib.evaluation import metrics
from xraylib.evaluation.comparisons import COMPARISONS, protocol_comparison
from xraylib.evaluation.resampling import delong

data = definitions("01_eda")
transfer = definitions("04_transfer_learning")
evaluation = definitions("06_evaluation")
shift = definitions("07_shift_and_trust")
subgroups = evaluation.subgroups


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


def paired_tests(scores, pairs, family="asked"):
    return evaluation.paired_tests(scores[scores["split"] == "test"], pairs, family)


def both(scores):
    """The row that compares recipe0 with recipe1."""
    return paired_tests(scores, [("recipe0", "recipe1")]).iloc[0]


def operating_points(scores):
    return evaluation.operating_points(scores).set_index("rule")


def ensemble(scores):
    return evaluation.ensemble_row(scores[scores["split"] == "test"])


def test_holms_correction_is_over_the_pairs_that_were_asked_about():
    scores = rivals(0.2, 0.6, 1.2, 2)
    names = [f"recipe{number}" for number in range(4)]
    for pairs in ([*combinations(names, 2)], [("recipe3", "recipe0"), ("recipe1", "recipe2")]):
        table = paired_tests(scores, pairs, family="asked")
        assert table[["a", "b"]].apply(tuple, axis=1).tolist() == pairs
        assert set(table["family"]) == {f"asked ({len(pairs)})"}
        for name in ("p_auc", "p_mcnemar"):
            worst, expected = 0.0, {}
            for rank, (pair, p) in enumerate(table[name].sort_values(kind="stable").items()):
                worst = max(worst, min(1.0, (len(table) - rank) * p))
                expected[pair] = worst
            assert table[f"{name}_holm"].to_dict() == pytest.approx(expected)


@pytest.mark.parametrize("sample", range(3))
def test_with_one_image_a_patient_mcnemars_p_is_the_classical_one(sample):
    scores = rivals(0.2, 1.5, sample=sample)
    row = both(scores)
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
    one, two = both(scores), both(doubled)
    assert two["only_a_right"] == 2 * one["only_a_right"]
    assert two["p_mcnemar"] == pytest.approx(one["p_mcnemar"], abs=1e-12)
    assert two["p_auc"] == pytest.approx(one["p_auc"], abs=1e-9)


def test_mcnemar_over_patients_keeps_its_level():
    # Two recipes of equal worth; three images a patient that are classified alike.
    rng, alarms = np.random.default_rng(0), []
    patients = pd.Index(np.repeat(np.arange(60), 3), name="patient")
    for _ in range(1000):
        differences = np.repeat(rng.choice([-1, 0, 1], 60, p=[0.2, 0.6, 0.2]), 3)
        alarms.append(evaluation.mcnemar(pd.Series(differences, patients)) < 0.05)
    assert np.mean(alarms) == pytest.approx(0.05, abs=0.02)


def test_the_difference_is_of_mean_aucs_with_delongs_spread_and_the_other_order_turns_it():
    scores = rivals(0.2, 1.5, images=2, seeds=(0, 1))
    row = both(scores.sample(frac=1, random_state=0))
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
    other = paired_tests(scores, [("recipe1", "recipe0")]).iloc[0]
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
        row = both(scores)
        assert (row["only_a_right"], row["only_b_right"]) == expected


def test_where_the_runs_are_divided_the_recipe_classifies_as_pneumonia():
    """Two recipes that give all images one score: the second is divided by its threshold."""
    table = rivals(0, 0, n=30, seeds=(0, 1))
    second = table["recipe"] == "recipe1"
    table["score"] = np.where(second & (table["seed"] == 1), 0.9, 0.1)
    row = both(table)
    test = table[(table["split"] == "test") & second & (table["seed"] == 0)]
    # The first recipe classifies all as normal, the second all as pneumonia.
    assert row["only_a_right"] == (test["label"] == 0).sum()
    assert row["only_b_right"] == (test["label"] == 1).sum()


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_a_recipe_is_no_better_than_itself_and_a_far_better_one_is_found(seeds):
    row = both(rivals(0, 0, images=2, seeds=seeds))
    ends = ["auc_difference", "patients_low", "patients_high"]
    assert row[ends].tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    assert row["low"] <= 0 <= row["high"] and row["p_auc"] == pytest.approx(1, abs=1e-6)
    assert row[["only_a_right", "only_b_right", "p_mcnemar"]].tolist() == [0, 0, 1]
    row = both(rivals(0, 8, n=300, seeds=seeds))
    assert row["low"] > 0 and row["p_auc"] < 0.01 and row["p_mcnemar"] < 0.01


def test_recipes_that_differ_by_chance_have_uniform_p():
    rows = [both(rivals(1, 1, n=80, images=2, sample=sample)) for sample in range(40)]
    found = pd.DataFrame(rows).astype({"p_auc": float, "p_mcnemar": float})
    assert kstest(found["p_auc"], "uniform").pvalue > 0.01
    assert (found["p_auc"] < 0.05).mean() <= 0.1 and (found["p_mcnemar"] < 0.05).mean() <= 0.1


def runs_apart(sample, spread, runs=3, n=60):
    """Two recipes of equal worth whose runs differ: each one weighs the truth by its own chance."""
    rng, parts = np.random.default_rng(sample), []
    base = builders.scores(n=n, noise=0, sample=sample)
    truth = np.log(base["score"] / (1 - base["score"]))
    for name in ("recipe0", "recipe1"):
        for seed in range(runs):
            noise = np.exp(rng.normal(0, spread)) * rng.normal(size=len(base))
            score = 1 / (1 + np.exp(-(truth + noise)))
            parts.append(base.assign(recipe=name, seed=seed, score=score))
    return pd.concat(parts, ignore_index=True)


def test_runs_that_differ_by_chance_are_rarely_called_different():
    rows = pd.DataFrame([both(runs_apart(sample, 1.0)) for sample in range(150)])
    assert set(rows["over"]) == {"runs and patients"}
    over_both = (rows["p_auc"] < 0.05).mean()
    over_patients = (rows["p_patients"] < 0.05).mean()
    # A bound for 150 samples of a level of 0.05; the p over patients alone is too small.
    assert over_both <= 0.08 and over_patients > 0.12
    assert ((rows["low"] > 0) | (rows["high"] < 0)).equals(rows["p_auc"] < 0.05)


def test_what_cannot_be_paired_is_refused_by_name():
    scores = rivals(0, 0.1, n=30, seeds=(0, 1))
    gone = (scores["image_id"] == "test7_0") & (scores["recipe"] == "recipe1")
    for lost in (gone, gone & (scores["seed"] == 1)):
        with pytest.raises(ValueError, match="recipe0 and recipe1 were tested on other"):
            both(scores[~lost])
    one = scores.assign(patient=scores["patient"].where(scores["label"] == 0, scores["split"]))
    assert np.isnan(both(one)["low"])


# At 0.5 one normal image is classified as pneumonia and two pneumonias are missed. At 0.3 these are
# two and none.
TEST = ((0.1, 0.2, 0.3, 0.6), (0.4, 0.45, 0.8, 0.9))
VAL = ((0.1, 0.2), (0.35, 0.9))
PERFECT = ((0.1, 0.2, 0.3, 0.4), (0.6, 0.7, 0.8, 0.9))
THREE_WRONG = ((0.1, 0.2, 0.3, 0.9), (0.1, 0.2, 0.8, 0.9))


def run(test=TEST, val=VAL, **about):
    return pd.concat([builders.images(*val, "val", **about), builders.images(*test, **about)])


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
    table = operating_points(run())
    assert table.loc["youden", "threshold"] == pytest.approx(0.275)
    assert table.loc["youden", ["sensitivity", "specificity"]].tolist() == [1, 0.5]
    assert table.loc["0.5", ["sensitivity", "specificity"]].tolist() == [0.5, 0.75]
    table = operating_points(builders.scores(200, strength=2))
    assert (table["threshold"].between(table["threshold_low"], table["threshold_high"])).all()
    val = builders.scores(200, strength=2).query("split == 'val'")
    apparent = (
        val.loc[val["label"] == 1, "score"] >= table.loc["sensitivity 0.95", "threshold"]
    ).mean()
    assert table.loc["sensitivity 0.95", "val_sensitivity"] == pytest.approx(apparent, abs=0.03)


def test_operating_points_judge_a_threshold_on_patients_that_did_not_choose_it():
    # Of ten positives the lowest one is found, so that the half that chooses finds all of them.
    few = builders.scores(30, images=2, noise=0.2)
    row = operating_points(few).loc["sensitivity 0.95"]
    assert 0.8 < row["val_sensitivity"] < 0.97


def test_the_half_that_is_judged_has_no_say_in_the_threshold():
    # The lowest positive of the half that chooses is the limit: of n others one in n + 1 lies
    # below it. A limit of their own would find them all, and leave fewer negatives out.
    positives = pd.DataFrame({"label": 1, "score": np.linspace(0.3, 1.0, 20)})
    negatives = pd.DataFrame({"label": 0, "score": np.linspace(0.0, 0.7, 20)})
    val = pd.concat([positives, negatives], ignore_index=True)
    val["patient"] = [f"p{number}" for number in range(40)]
    row = evaluation.on_validation(val, "sensitivity 1.0", np.random.default_rng(0))
    assert row["val_sensitivity"] == pytest.approx(1 - 1 / 11, abs=0.05)
    assert row["val_specificity"] == pytest.approx(0.48, abs=0.1)


def test_always_missed_are_the_images_that_every_run_misses():
    table = grouped()
    worse = table.assign(recipe="theirs", score=0.5 + (table["score"] - 0.5) / 10)
    worse.loc[worse["image_id"] == "IM-0001-0001", "score"] = 0.6
    always, without = evaluation.always_missed(pd.concat([table, worse]))
    # Of the images that some run misses, IM-0001-0001 is recognised by the other recipe.
    assert list(always) == ["IM-0002-0001", "person4_virus_5"]
    rows = without.set_index("recipe")
    # Of 20 decisions of "ours" 13 are right, and of "theirs", which has two errors more, 11.
    assert rows.loc["ours"].tolist() == pytest.approx([13 / 20, 13 / 16])
    assert rows.loc["theirs"].tolist() == pytest.approx([11 / 20, 11 / 16])


def test_a_run_is_scored_on_its_own_validation_and_on_the_test():
    scores = pd.concat([run(seed=3), run(PERFECT, seed=1), run(PERFECT, protocol="published")])
    rows = transfer.evaluate_runs(scores, ["made-up"]).set_index("seed")
    assert rows.index.tolist() == [1, 3]
    assert rows.loc[3, ["n_val", "n_test", "val_accuracy"]].tolist() == [4, 8, 3 / 4]
    metrics_of_3 = rows.loc[
        3, ["accuracy", "balanced_accuracy", "sensitivity", "specificity", "auc"]
    ]
    assert metrics_of_3.tolist() == [5 / 8, 5 / 8, 2 / 4, 3 / 4, 14 / 16]
    mean = metrics.evaluate(scores[scores["protocol"] == "strict"])["value"]
    assert rows["auc"].mean() == pytest.approx(mean["auc"])


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
    one = ensemble(scores)
    assert (one["members"], one["n"]) == (3, test["image_id"].nunique())
    wide = test.pivot(index="image_id", columns="seed", values="score")
    thresholds = test.groupby("seed")["threshold"].first()
    odds = (np.log(wide / (1 - wide)) - np.log(thresholds / (1 - thresholds))).mean(axis=1)
    labels = test.drop_duplicates("image_id").set_index("image_id")["label"][odds.index]
    assert one["auc"] == pytest.approx(sk.roc_auc_score(labels, odds))
    assert one["accuracy"] == pytest.approx(((odds >= 0) == (labels == 1)).mean())


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


def test_images_of_one_patient_widen_the_interval_of_a_subgroup():
    whole = builders.scores(n=60, images=8, noise=0.05).query("split == 'test'")
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
    table = data.shortcut_baselines(films, pixels).set_index(["feature", "split"])
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


@pytest.mark.parametrize("seeds", [(0, 1), (0, 1, 2, 3)])
def test_differences_by_run_are_recipe_minus_base_and_paired_by_seed(seeds):
    scores = rivals(1.5, 0.2, 1.0, n=120, seeds=seeds)
    table = transfer.differences_by_run(scores, "recipe0").set_index("recipe")
    test = scores[scores["split"] == "test"]
    aucs = {
        key: sk.roc_auc_score(part["label"], part["score"])
        for key, part in test.groupby(["recipe", "seed"])
    }
    for name in ("recipe1", "recipe2"):
        by_hand = np.array([aucs[name, seed] - aucs["recipe0", seed] for seed in seeds])
        row = table.loc[name]
        assert row["difference"] == pytest.approx(by_hand.mean()) and row["difference"] > 0
        classical = ttest_1samp(by_hand, 0.0)
        assert row["p_runs"] == pytest.approx(classical.pvalue)
        ends = classical.confidence_interval(0.95)
        assert (row["runs_low"], row["runs_high"]) == pytest.approx((ends.low, ends.high))
        assert row["low"] < row["difference"] < row["high"] and row["runs"] == len(seeds)
        assert (row["low"] > 0) == (row["p"] < 0.05)
        assert row["over"] == ("runs and patients" if len(seeds) > 2 else "patients")
    assert table.loc["recipe1", "p_holm"] == pytest.approx(min(1, 2 * table["p"].min()))
    assert set(table["family"]) == {"each recipe against recipe0 (2)"}
    turned = transfer.differences_by_run(scores, "recipe1").set_index("recipe").loc["recipe0"]
    assert turned["difference"] == pytest.approx(-table.loc["recipe1", "difference"])
    assert turned["low"] == pytest.approx(-table.loc["recipe1", "high"])


def test_differences_count_shared_seeds_only_and_the_patients():
    scores = rivals(1.5, 0.2, n=90, images=2, seeds=(0, 1, 2))
    fewer = scores[~((scores["recipe"] == "recipe1") & (scores["seed"] == 2))]
    row = transfer.differences_by_run(fewer, "recipe0").iloc[0]
    test = fewer[(fewer["split"] == "test") & (fewer["seed"] < 2)]
    aucs = [
        [sk.roc_auc_score(run["label"], run["score"]) for _, run in part.groupby("seed")]
        for _, part in test.groupby("recipe")
    ]
    assert row["difference"] == pytest.approx(np.mean(aucs[1]) - np.mean(aucs[0]))
    assert (row["runs"], row["over"]) == (2, "patients")
    images = fewer.assign(patient=fewer["image_id"])
    alone = transfer.differences_by_run(images, "recipe0").iloc[0]
    assert row["high"] - row["low"] > 1.05 * (alone["high"] - alone["low"])


def four_cells(effects, seeds=(0, 1, 2, 3), n=150, spread=0.0):
    """Scores of the four recipes; an effect is what is added to the log odds of positives."""
    base = builders.scores(n=n, seeds=seeds, noise=1.0, strength=0.5)
    rng, parts = np.random.default_rng(0), []
    drift = dict(zip(seeds, rng.normal(0, spread, len(seeds)), strict=True))
    for cell, ending in shift.CELLS.items():
        odds = np.log(base["score"] / (1 - base["score"]))
        strength = effects.get(cell, 0.0) + base["seed"].map(drift)
        odds = odds + strength * base["label"] + 0.1 * rng.normal(size=len(base))
        recipe = f"tiny-cnn-28{ending}"
        parts.append(base.assign(recipe=recipe, score=1 / (1 + np.exp(-odds))))
    return pd.concat(parts, ignore_index=True)


def test_the_gap_of_a_view_is_validation_minus_test(monkeypatch):
    parts = []
    for number, recipe in enumerate(("base", "base-lungs")):
        part = builders.scores(60, images=2, seeds=(0, 1, 2), sample=number)
        # Scores of the test say less of the class.
        is_test = part["split"] == "test"
        part["score"] = np.where(is_test, 0.5 + (part["score"] - part["label"]) / 3, part["score"])
        parts.append(part.assign(recipe=recipe))
    table = pd.concat(parts, ignore_index=True)
    monkeypatch.setitem(shift.region_rows.__globals__, "scores", table)
    rows = shift.region_rows("base")
    assert [row["view"] for row in rows] == ["whole image", "lungs, box found"]
    for row, part in zip(rows, parts, strict=True):
        auc = {}
        for split, of_split in part.groupby("split"):
            runs = [
                sk.roc_auc_score(run["label"], run["score"]) for _, run in of_split.groupby("seed")
            ]
            auc[split] = np.mean(runs)
        assert row["val"] == pytest.approx(auc["val"])
        assert row["test"] == pytest.approx(auc["test"])
        assert row["gap"] == pytest.approx(auc["val"] - auc["test"]) and row["gap"] > 0.3
        assert row["gap_low"] < row["gap"] < row["gap_high"]
        assert (row["runs"], row["n_test"]) == (
            3,
            part.query("split == 'test'")["image_id"].nunique(),
        )


def test_the_lead_figure_shows_normal_images_of_the_test():
    rows = []
    for split, diagnosis, correct in (
        ("val", "normal", 0.99),
        ("test", "normal", 0.8),
        ("test", "pneumonia", 0.97),
    ):
        row = {"recipe": "r", "split": split, "diagnosis": diagnosis, "lung_height": "0.84–1"}
        row |= {"images": 88, "runs": 3, "correct": correct, "correct_low": 0.7}
        rows.append(row | {"correct_high": 1.0})
    shown = shift.lead_table(pd.DataFrame(rows))
    assert shown[["bin", "n", "specificity"]].to_numpy().tolist() == [["0.84–1", 88, 0.8]]


def test_two_by_two_gives_cells_main_effects_and_interaction_by_hand():
    scores = four_cells({"selection only": 0.3, "augmentation only": 0.9, "both": 2.0})
    table = shift.two_by_two(scores)
    assert table["effect"].tolist() == [*shift.CELLS, *shift.EFFECTS]
    found = table.set_index("effect")["auc"]
    test = scores[scores["split"] == "test"]
    aucs = {
        name: np.mean([sk.roc_auc_score(r["label"], r["score"]) for _, r in part.groupby("seed")])
        for name, part in test.groupby("recipe")
    }
    neither, selection, augmentation, together = (
        aucs[f"tiny-cnn-28{ending}"] for ending in shift.CELLS.values()
    )
    assert found[list(shift.CELLS)].tolist() == pytest.approx(
        [neither, selection, augmentation, together]
    )
    by_hand = {
        "effect of selection": ((selection - neither) + (together - augmentation)) / 2,
        "effect of augmentation": ((augmentation - neither) + (together - selection)) / 2,
        "interaction": (together - augmentation) - (selection - neither),
    }
    assert found[list(shift.EFFECTS)].to_dict() == pytest.approx(by_hand)
    assert table["auc"].between(table["low"], table["high"]).all()
    assert set(table["over"]) == {"runs and patients"} and set(table["runs"]) == {4}
    effects = table[table["recipe"] == ""]
    assert ((effects["low"] > 0) | (effects["high"] < 0)).equals(effects["p"] < 0.05)
    assert effects["p"].notna().all() and table.loc[table["recipe"] != "", "p"].isna().all()


def test_the_effects_of_two_by_two_are_paired_by_seed_and_image():
    # All four runs of a seed are better or worse together, which is no doubt about the effects.
    table = shift.two_by_two(four_cells({}, spread=1.0)).set_index("effect")
    width = table["high"] - table["low"]
    assert width["effect of selection"] < 0.3 * width["neither"]
    assert table.loc[list(shift.EFFECTS), "low"].lt(0).all()
    assert table.loc[list(shift.EFFECTS), "high"].gt(0).all()


def test_two_by_two_uses_shared_seeds_and_needs_all_cells():
    scores = four_cells({"both": 1.0})
    gone = (scores["recipe"] == "tiny-cnn-28-reframed") & (scores["seed"] > 1)
    fewer = shift.two_by_two(scores[~gone])
    assert set(fewer["runs"]) == {2} and set(fewer["over"]) == {"patients"}
    shared = scores[scores["seed"] < 2]
    whole = shift.two_by_two(shared)
    assert fewer["auc"].tolist() == pytest.approx(whole["auc"].tolist())
    # Of two runs the interval is DeLong's over patients, of the mean over both.
    wide = shared[shared["split"] == "test"].pivot(
        index=["image_id", "label", "patient"], columns=["recipe", "seed"], values="score"
    )
    wide = wide[[f"tiny-cnn-28{ending}" for ending in shift.CELLS.values()]]
    images = wide.index.to_frame()
    covariance = delong(images["label"].to_numpy(), wide.to_numpy().T, images["patient"])[1]
    weights = np.repeat([0.5, -0.5, -0.5, 0.5], 2)
    row = whole.set_index("effect").loc["interaction"]
    half = norm.ppf(0.975) * np.sqrt(weights @ covariance @ weights)
    assert [row["low"], row["high"]] == pytest.approx([row["auc"] - half, row["auc"] + half])
    without = shift.two_by_two(scores[scores["recipe"] != "tiny-cnn-28-reframed"])
    assert without.empty
    one = (scores["recipe"] == "tiny-cnn-28-reframed") & (scores["image_id"] == "test3_0")
    with pytest.raises(ValueError, match="other test images"):
        shift.two_by_two(scores[~one])


def test_number_blocks_are_compared_with_random_patients_at_both_thresholds():
    assert {protocol for _, protocol, _, _ in shift.NUMBER_BLOCKS} <= {
        *PROTOCOLS,
        *SPLIT_STRATEGIES,
    }
    scores = pd.concat(
        [
            run(PERFECT, PERFECT, threshold=0.25, recipe="tiny-cnn-28"),
            run(TEST, THREE_WRONG, protocol="number-blocks", threshold=0.42, recipe="tiny-cnn-28"),
            run(recipe="scratch-cnn"),
        ]
    )
    table = shift.number_blocks(scores)
    assert set(table["recipe"]) == {"tiny-cnn-28"} and len(table) == len(shift.NUMBER_BLOCKS)
    values = table.set_index(["protocol", "split", "rule"])[
        ["auc", "accuracy", "sensitivity", "specificity"]
    ]
    assert values.loc[("strict", "val", "0.5")].tolist() == [1, 1, 1, 1]
    assert values.loc[("strict", "val", "frozen")].tolist() == [1, 6 / 8, 1, 2 / 4]
    assert values.loc[("number-blocks", "val", "0.5"), "accuracy"] == 5 / 8
    assert values.loc[("number-blocks", "test", "0.5")].tolist() == [14 / 16, 5 / 8, 2 / 4, 3 / 4]
    assert values.loc[("number-blocks", "test", "frozen"), "sensitivity"] == 3 / 4
    for name in values:
        assert table[name].between(table[f"{name}_low"], table[f"{name}_high"]).all()
    assert set(table["over"]) == {"patients"}


def test_the_columns_over_say_how_many_runs_there_were():
    for runs, expected in ((2, "patients"), (3, "runs and patients")):
        scores = builders.scores(n=45, seeds=range(runs)).assign(kind="virus")
        test = scores[scores["split"] == "test"]
        tables = [protocol_comparison(scores, ["ours"]), evaluation.operating_points(scores)]
        for table in [*tables, subgroups(test), pd.DataFrame([ensemble(scores)])]:
            assert set(table["over"]) == {expected}


def test_members_that_differ_widen_the_interval_of_their_ensemble():
    scores = builders.scores(n=150, seeds=(0, 1, 2, 3), strength=1.5, noise=0.5)
    worse = scores["seed"] == 3
    noise = np.random.default_rng(0).random(len(scores))
    apart = scores.assign(score=scores["score"].where(~worse, noise))
    width = {}
    for name, table in (("alike", scores), ("apart", apart)):
        row = ensemble(table)
        whole = evaluation.ensemble(table[table["split"] == "test"])
        patients = metrics.evaluate(whole).loc["auc"]
        assert row["auc"] == pytest.approx(patients["value"])
        assert row["auc_low"] < patients["low"] and row["auc_high"] > patients["high"]
        width[name] = row["auc_high"] - row["auc_low"]
    assert width["apart"] > 1.3 * width["alike"]


def test_a_gap_is_written_beside_its_own_view():
    whole, framed, lungs = list(shift.REGIONS.values())[:3]
    gaps = {whole: 0.11, framed: 0.22, lungs: 0.33}
    rows = []
    for recipe, views in (("scratch-cnn", (whole, lungs)), ("tiny-cnn-28", gaps)):
        for view in views:
            row = {"recipe": recipe, "view": view, "runs": 3, "n_val": 10, "n_test": 9}
            for name, value in (("val", 0.9), ("test", 0.8), ("gap", gaps[view])):
                row |= {name: value, f"{name}_low": value - 0.01, f"{name}_high": value + 0.01}
            rows.append(row)
    first, second = shift.gap_figure(pd.DataFrame(rows)).axes
    labels = [label.get_text() for label in first.get_yticklabels()]
    for ax, views in ((first, (whole, lungs)), (second, gaps)):
        texts = {text.get_position()[1]: text.get_text() for text in ax.texts}
        for view in views:
            assert texts[labels.index(view)].startswith(f"{gaps[view]:.3f}")
