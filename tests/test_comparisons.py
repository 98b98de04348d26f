from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from statsmodels.stats.proportion import proportion_confint

from xraylib.datasets.splits import PROTOCOLS, SPLIT_STRATEGIES
from xraylib.evaluation import comparisons, metrics
from xraylib.evaluation.claimed import CLAIMS, CURVES, claims, training_claims
from xraylib.evaluation.comparisons import WAYS, draws, of_protocols, operating_point, story
from xraylib.evaluation.scores import COLUMNS
from xraylib.storage import DataInvalid
from xraylib.training.recipes import RECIPES, get_recipe

# Sixteen pairs, of which fourteen are in order; at .5 one normal film is called and two ill ones are missed.
TEST = {"normal": (0.1, 0.2, 0.3, 0.6), "ill": (0.4, 0.45, 0.8, 0.9)}
# Youden's threshold is half-way between .2 and .35: on TEST it misses none and calls two normal films.
VAL = {"normal": (0.1, 0.2), "ill": (0.35, 0.9)}
PERFECT = {"normal": (0.1, 0.2, 0.3, 0.4), "ill": (0.6, 0.7, 0.8, 0.9)}
# As many films as in PERFECT, so many of them on the wrong side of .5.
ONE_WRONG = PERFECT | {"ill": (0.2, 0.7, 0.8, 0.9)}
THREE_WRONG = {"normal": (0.1, 0.2, 0.3, 0.9), "ill": (0.1, 0.2, 0.8, 0.9)}

MADE_UP = replace(
    get_recipe("scratch-cnn"),
    name="made-up",
    claims={"accuracy": 0.6},
    shown={},
    published={"split_strategy": "per-image-validation", "threshold": 0.5},
)


def side(films, split="test", *, recipe="made-up", protocol="strict", seed=0):
    """Scores of one side of one run, one film a patient."""
    rows = [
        (recipe, protocol, seed, split, f"{split}{kind}{i}", f"{split}{kind}{i}", kind, int(kind == "ill"), p)
        for kind, values in films.items()
        for i, p in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def run(test=TEST, val=VAL, **about):
    return pd.concat([side(val, "val", **about), side(test, **about)], ignore_index=True)


def both_protocols(**about):
    return pd.concat([run(**about), run(protocol="published", **about)], ignore_index=True)


def claimed(scores, **fields):
    """The rows of one made-up recipe, by metric."""
    return claims(scores, {"made-up": replace(MADE_UP, **fields)}).set_index("metric")


def test_a_claim_stands_beside_what_each_protocol_gives_at_its_own_threshold():
    scores = both_protocols()
    table = claims(scores, {"made-up": MADE_UP})
    assert tuple(table.columns) == CLAIMS
    (row,) = table.to_dict("records")
    assert (row["recipe"], row["metric"], row["claim"]) == ("made-up", "accuracy", 0.6)
    assert row["published"] == 5 / 8
    assert row["strict"] == 6 / 8
    for protocol, rule in (("published", 0.5), ("strict", "validation")):
        figures = metrics.evaluate(scores[scores["protocol"] == protocol], rule=rule).loc["accuracy"]
        assert [row[f"{protocol}_low"], row[f"{protocol}_high"]] == [figures["low"], figures["high"]]


def test_every_metric_of_the_claim_or_of_the_notebook_has_a_row():
    said = {"f1": 0.9, "auc": 0.8}, {"sensitivity": 0.7, "auc": 0.75}
    rows = claimed(both_protocols(), claims=said[0], shown=said[1])
    assert rows.index.tolist() == ["auc", "sensitivity", "f1"]
    assert rows["claim"].to_dict() == pytest.approx(
        {"auc": 0.8, "sensitivity": np.nan, "f1": 0.9}, nan_ok=True
    )
    notebook = {"auc": 0.75, "sensitivity": 0.7, "f1": np.nan}
    assert rows["own_notebook"].to_dict() == pytest.approx(notebook, nan_ok=True)
    assert rows["published"].to_dict() == pytest.approx({"auc": 14 / 16, "sensitivity": 2 / 4, "f1": 4 / 7})
    assert rows["strict"].to_dict() == pytest.approx({"auc": 14 / 16, "sensitivity": 1, "f1": 8 / 10})


def test_a_claim_is_reproduced_when_the_interval_of_published_holds_it():
    scores = both_protocols()
    low, high = claimed(scores).loc["accuracy", ["published_low", "published_high"]]
    assert 0 < low < high < 1
    for claim, verdict in (
        (low, "yes"),
        ((low + high) / 2, "yes"),
        (high, "yes"),
        (np.nextafter(low, 0), "no"),
        (np.nextafter(high, 1), "no"),
    ):
        assert claimed(scores, claims={"accuracy": float(claim)}).loc["accuracy", "reproduced"] == verdict


def test_strict_reproduces_no_claim():
    scores = pd.concat([run(PERFECT, PERFECT), run(THREE_WRONG, protocol="published")])
    row = claimed(scores, claims={"accuracy": 1.0}).loc["accuracy"]
    assert row["strict_low"] < row["strict_high"] == 1
    assert row["published_high"] < 1
    assert row["reproduced"] == "no"


def test_the_claims_own_interval_is_of_the_images_tested():
    scores = both_protocols()
    extra = scores[(scores["split"] == "val") & (scores["label"] == 1)]
    more = extra.assign(image_id="more " + extra["image_id"], patient="more " + extra["patient"])
    found = claims(
        pd.concat([scores, more]), {"made-up": replace(MADE_UP, claims={"sensitivity": 0.5}, claimed_on=80)}
    )
    test = scores[(scores["split"] == "test") & (scores["protocol"] == "published")]
    ill = round(80 * test["label"].mean())
    expected = proportion_confint(round(0.5 * ill), ill, method="wilson")
    assert found.loc[0, ["claim_low", "claim_high"]].tolist() == pytest.approx(expected)


def test_of_other_radiographs_no_claim_is_judged():
    here, elsewhere = (
        claims(both_protocols(), {"made-up": MADE_UP}, same_data=same) for same in (True, False)
    )
    assert here["reproduced"].tolist() == ["yes"]
    assert elsewhere["reproduced"].tolist() == [""]
    assert elsewhere.drop(columns="reproduced").equals(here.drop(columns="reproduced"))


def test_a_word_is_no_figure_to_be_reproduced():
    row = claimed(both_protocols(), claims={"sensitivity": "excellent"}).loc["sensitivity"]
    assert row["claim"] == "excellent"
    assert row["published"] == 2 / 4
    assert row["reproduced"] == ""


def test_what_only_the_notebook_shows_is_no_claim():
    row = claimed(both_protocols(), claims={}, shown={"accuracy": 5 / 8}).loc["accuracy"]
    assert np.isnan(row["claim"])
    assert row["own_notebook"] == row["published"]
    assert row["reproduced"] == ""


@pytest.mark.parametrize(("there", "lacking"), [PROTOCOLS, PROTOCOLS[::-1]])
def test_a_protocol_that_was_not_run_has_no_figures(there, lacking):
    row = claimed(run(protocol=there)).loc["accuracy"]
    assert np.isfinite(row[[there, f"{there}_low", f"{there}_high"]].astype(float)).all()
    assert row[[lacking, f"{lacking}_low", f"{lacking}_high"]].isna().all()
    assert row["reproduced"] == ("yes" if there == "published" else "")


def test_a_recipe_without_scores_or_without_claims_has_no_row():
    silent = replace(MADE_UP, name="silent", claims={})
    table = claims(run(recipe="silent"), {"made-up": MADE_UP, "silent": silent})
    assert table.empty
    assert tuple(table.columns) == CLAIMS


def test_a_figure_is_the_mean_over_seeds_and_other_ways_of_splitting_do_not_count():
    known = [run(PERFECT, protocol="published"), run(THREE_WRONG, protocol="published", seed=1)]
    other = run(TEST, protocol="per-image-validation")
    rows = claimed(pd.concat(known))
    assert rows.loc["accuracy", "published"] == (1 + 5 / 8) / 2
    pd.testing.assert_frame_equal(claimed(pd.concat([*known, other])), rows)


def test_claims_are_those_of_the_recipes_unless_others_are_given():
    scores = pd.concat([both_protocols(recipe=name) for name in ("kerasio-tpu", "resnet50v2", "unheard-of")])
    table = claims(scores)
    found = {(row["recipe"], row["metric"]): row["claim"] for row in table.to_dict("records")}
    said = {
        (name, metric): RECIPES[name].claims.get(metric, np.nan)
        for name in ("resnet50v2", "kerasio-tpu")
        for metric in {**RECIPES[name].claims, **RECIPES[name].shown}
    }
    assert found == pytest.approx(said, nan_ok=True)


def test_bad_scores_give_no_figures():
    scores = both_protocols()
    scores.loc[3, "score"] = np.nan
    with pytest.raises(DataInvalid, match=r"made-up, strict, seed 0: .* has no number as score"):
        claimed(scores)
    with pytest.raises(DataInvalid, match="has no number as score"):
        story(scores, ["made-up"])


def test_where_nothing_is_called_no_claim_of_precision_is_judged():
    none_called = {kind: [p * 0.4 for p in values] for kind, values in TEST.items()}
    scores = run(none_called, protocol="published")
    row = claimed(scores, claims={"precision": 0.9}).loc["precision"]
    assert np.isnan(row["published"])
    assert row["reproduced"] == ""


def five_ways(recipe="made-up", seeds=(0,)):
    return pd.concat(
        [
            run(protocol=protocol, recipe=recipe, seed=seed, test=test, val=val)
            for protocol, test, val in (
                ("random-per-image", PERFECT, VAL),
                ("per-image-validation", THREE_WRONG, ONE_WRONG),
                ("strict", TEST, VAL),
                ("published", THREE_WRONG, THREE_WRONG),
            )
            for seed in seeds
        ],
        ignore_index=True,
    )


def test_the_five_ways_score_each_its_own_side_at_its_own_threshold():
    table = story(five_ways(), ["made-up"])
    assert list(zip(table["way"], table["protocol"], table["split"], strict=True)) == [w[:3] for w in WAYS]
    assert table["rule"].tolist() == ["0.5", "0.5", "0.5", "0.5", "validation"]
    assert table["accuracy"].tolist() == [1, 7 / 8, 3 / 4, 5 / 8, 6 / 8]
    assert table["sensitivity"].tolist() == [1, 3 / 4, 1 / 2, 2 / 4, 1]
    assert table["specificity"].tolist() == [1, 1, 1, 3 / 4, 2 / 4]
    assert table["n"].tolist() == [8, 8, 4, 8, 8]
    assert set(table["seeds"]) == {1}


def test_the_ways_are_protocols_that_can_be_run():
    assert {protocol for _, protocol, _, _ in WAYS} <= {*PROTOCOLS, *SPLIT_STRATEGIES}
    assert len({way for way, *_ in WAYS}) == len(WAYS) == 5


def test_a_way_has_the_figures_and_intervals_of_metrics():
    scores = five_ways(seeds=(0, 1, 4))
    table = story(scores, ["made-up"])
    assert set(table["seeds"]) == {3}
    assert table["n"].tolist() == [8, 8, 4, 8, 8]
    for row, (_, protocol, split, rule) in zip(table.to_dict("records"), WAYS, strict=True):
        figures = metrics.evaluate(scores[scores["protocol"] == protocol], split=split, rule=rule)
        for metric in ("accuracy", "sensitivity", "specificity"):
            found = [row[metric], row[f"{metric}_low"], row[f"{metric}_high"]]
            assert found == figures.loc[metric, ["value", "low", "high"]].tolist()


def test_recipes_come_as_asked_and_a_way_that_was_not_run_is_left_out():
    scores = pd.concat([five_ways(), run(recipe="strict-only"), five_ways("not-asked")])
    table = story(scores, ["strict-only", "unheard-of", "made-up"])
    assert table["recipe"].tolist() == ["strict-only"] * 3 + ["made-up"] * 5
    assert set(table.query("recipe == 'strict-only'")["protocol"]) == {"strict"}
    assert story(scores, ["unheard-of"]).empty


def test_a_way_without_its_side_is_refused():
    with pytest.raises(DataInvalid, match="no scores of the val side"):
        story(side(TEST), ["made-up"])


def test_a_draw_is_scored_on_its_own_validation_and_on_the_test():
    scores = pd.concat([run(seed=3), run(PERFECT, ONE_WRONG, seed=1)])
    rows = draws(scores, ["made-up"]).to_dict("records")
    assert rows == [
        {
            "recipe": "made-up", "seed": 1, "n_val": 8, "n_test": 8, "val_accuracy": 7 / 8, "accuracy": 1,
            "balanced_accuracy": 1, "sensitivity": 1, "specificity": 1, "auc": 1,
        },
        {
            "recipe": "made-up", "seed": 3, "n_val": 4, "n_test": 8, "val_accuracy": 3 / 4, "accuracy": 5 / 8,
            "balanced_accuracy": 5 / 8, "sensitivity": 2 / 4, "specificity": 3 / 4, "auc": 14 / 16,
        },
    ]  # fmt: skip


@st.composite
def films(draw):
    """Scores on a coarse grid, so that ties and scores of exactly .5 are common."""
    values = st.lists(st.integers(0, 8), min_size=1, max_size=20)
    return {kind: tuple(k / 8 for k in draw(values)) for kind in ("normal", "ill")}


@settings(max_examples=100, deadline=None)
@given(films(), films())
def test_figures_of_a_draw_are_those_of_scikit_learn(test, val):
    assume(all(side(films)["score"].nunique() > 1 for films in (test, val)))
    (row,) = draws(run(test, val), ["made-up"]).to_dict("records")
    label, score = side(test)["label"], side(test)["score"]
    called = (score >= 0.5).astype(int)
    own = side(val, "val")
    assert {name: row[name] for name in list(row)[2:]} == pytest.approx(
        {
            "n_val": len(own),
            "n_test": len(label),
            "val_accuracy": sk.accuracy_score(own["label"], own["score"] >= 0.5),
            "balanced_accuracy": sk.balanced_accuracy_score(label, called),
            "accuracy": sk.accuracy_score(label, called),
            "sensitivity": sk.recall_score(label, called),
            "specificity": sk.recall_score(label, called, pos_label=0),
            "auc": sk.roc_auc_score(label, score),
        }
    )


def test_the_mean_over_draws_is_what_metrics_says():
    scores = pd.concat([run(TEST, seed=0), run(PERFECT, seed=1), run(THREE_WRONG, seed=2)])
    mean = draws(scores, ["made-up"])[["accuracy", "sensitivity", "specificity", "auc"]].mean()
    expected = metrics.evaluate(scores, rule=0.5)["value"]
    assert mean.to_dict() == pytest.approx(expected[mean.index].to_dict())


def test_draws_come_by_recipe_as_asked_and_by_seed():
    scores = pd.concat([run(recipe=name, seed=seed) for seed in (2, 0) for name in ("a", "b", "c")])
    table = draws(scores, ["c", "a"])
    assert list(zip(table["recipe"], table["seed"], strict=True)) == [("c", 0), ("c", 2), ("a", 0), ("a", 2)]


def test_draws_are_of_one_protocol():
    scores = pd.concat([run(), run(PERFECT, protocol="published", seed=1)])
    assert draws(scores, ["made-up"])["seed"].tolist() == [0]
    assert draws(scores, ["made-up"], "published")[["seed", "accuracy"]].to_numpy().tolist() == [[1, 1]]


def test_draws_of_a_recipe_or_protocol_that_was_not_run_are_refused():
    with pytest.raises(DataInvalid, match=r"no strict scores of unheard-of\..*Mend"):
        draws(run(), ["made-up", "unheard-of"])
    with pytest.raises(DataInvalid, match=r"no take-skip scores of made-up\..*Mend"):
        draws(run(), ["made-up"], "take-skip")


def test_a_draw_without_validation_scores_is_refused():
    with pytest.raises(DataInvalid, match="Mend"):
        draws(side(TEST), ["made-up"])


def test_scores_of_the_two_protocols_are_kept_as_they_stand():
    names = ("take-skip", "strict", "random-176", "published", "strict")
    scores = pd.concat([run(protocol=name) for name in names], ignore_index=True)
    kept = of_protocols(scores)
    assert kept.equals(scores[scores["protocol"].isin(["strict", "published"])])
    assert len(kept) == 3 * len(run())
    assert of_protocols(run(protocol="take-skip")).empty


@pytest.mark.parametrize(
    ("recipe", "protocol", "rule"),
    [
        ("tiny-cnn-28", "published", 0.5),
        ("tiny-cnn-28", "strict", "validation"),
        ("tiny-cnn-28", "random-per-image", "validation"),
        ("mobilenetv2-frozen", "strict", "validation"),
        ("unheard-of", "published", "validation"),
    ],
)
def test_the_operating_point_is_the_recipes_own_under_its_protocol(recipe, protocol, rule):
    assert operating_point(recipe, protocol) == rule


def test_the_operating_point_serves_the_table_of_metrics():
    scores = both_protocols(recipe="tiny-cnn-28")
    rows = metrics.table(scores, comparisons.operating_point).set_index("protocol")
    assert rows["accuracy"].to_dict() == {"published": 5 / 8, "strict": 6 / 8}


def test_figures_of_a_training_are_those_of_its_history_and_scores():
    scores = pd.concat([run(protocol="published", seed=seed) for seed in (0, 1)])
    histories = [
        pd.DataFrame(
            {"loss": [0.9, last], "accuracy": [0.4, 0.8], "val_loss": [1.0, 0.7], "val_accuracy": 0.5}
        )
        for last in (0.2, 0.4)
    ]
    claimed = {"train loss": 0.1, "train accuracy, first epoch": 0.42, "test loss": 0.5}
    recipe = replace(MADE_UP, curves=claimed)
    table = training_claims(scores, {"made-up": histories}, {"made-up": recipe}).set_index("figure")
    assert table["claim"].to_dict() == claimed
    assert table.loc["train loss", ["mean", "lowest", "highest"]].tolist() == pytest.approx([0.3, 0.2, 0.4])
    assert table.loc["train accuracy, first epoch", "mean"] == 0.4
    test = scores[(scores["split"] == "test") & (scores["seed"] == 0)]
    p = np.where(test["label"] == 1, test["score"], 1 - test["score"])
    assert table.loc["test loss", "mean"] == pytest.approx(-np.log(p).mean())
    strict = training_claims(run(), {}, {"made-up": recipe})
    assert strict.empty and "claim" in strict


def test_every_figure_of_a_training_that_is_claimed_can_be_told():
    assert {name for recipe in RECIPES.values() for name in recipe.curves} <= set(CURVES)
