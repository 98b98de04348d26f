from dataclasses import replace

import builders
import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

from xraylib.datasets.splits import PROTOCOLS
from xraylib.evaluation import claims, metrics
from xraylib.training import recipes

# At 0.5 one of four normals is classified as pneumonia, and two of four pneumonias are missed.
TEST = ((0.1, 0.2, 0.3, 0.6), (0.4, 0.45, 0.8, 0.9))
VAL = ((0.1, 0.2), (0.35, 0.9))
PERFECT = ((0.1, 0.2, 0.3, 0.4), (0.6, 0.7, 0.8, 0.9))


def run(test=TEST, **about):
    return pd.concat([builders.images(*VAL, "val", **about), builders.images(*test, **about)])


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
        monkeypatch.setattr(claims, "RECIPES", {"made-up": replace(base, **given)})
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
    assert row["verdict"] == "cannot be tested: fewer than three runs"
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


def published_runs(*errors):
    """Runs under `published` of 200 test images, each with so many normals called pneumonia."""
    return pd.concat(
        [
            run(([0.9] * wrong + [0.1] * (100 - wrong), [0.9] * 100), protocol="published", seed=i)
            for i, wrong in enumerate(errors)
        ]
    )


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize(
    ("errors", "verdict"),
    [
        ((20, 22, 21, 19), "reproduced"),
        ((10, 30, 20, 25), "compatible, too wide to tell"),
    ],
)
def test_a_claim_is_compatible_when_one_more_run_may_give_it(made_up, errors, verdict, side):
    scores = published_runs(*errors)
    test = scores[scores["split"] == "test"].reset_index()
    right = (test["score"] >= 0.5) == (test["label"] == 1)
    accuracies = right.groupby(test["seed"]).mean()
    half = student.ppf(0.975, 3) * accuracies.std() * (1 + 1 / 4) ** 0.5
    assert (half <= claims.WIDEST_HALF_WIDTH) == (verdict == "reproduced")
    end = accuracies.mean() + side * half
    row = made_up(scores, claims={"accuracy": end - side * 1e-9}).loc["accuracy"]
    assert row["verdict"] == verdict and row["over"] == "runs and patients"
    assert row["next_low"] == pytest.approx(accuracies.mean() - half)
    assert row["next_high"] == pytest.approx(min(1, accuracies.mean() + half))
    outside = {"accuracy": end + side * 1e-9}
    assert made_up(scores, claims=outside).loc["accuracy", "verdict"] == "not reproduced"
    for about in ({"other_init": ["made-up"]}, {"ours": "layers are ours"}):
        verdict_then = made_up(scores, **about).loc["accuracy", "verdict"]
        assert verdict_then.startswith("cannot be tested: ")


def test_a_recipe_without_published_runs_cannot_be_tested(made_up):
    row = made_up(run()).loc["accuracy"]
    assert np.isnan(row["published"]) and row["verdict"].startswith("cannot be tested: ")


def test_claims_are_shown_for_the_images_that_they_were_made_on_alone():
    assert claims.made_on("kermany") and claims.made_on("kermany-roboflow")
    for name in ("phantom", "made-up", "kermany-of-my-own", "my-kermany"):
        assert not claims.made_on(name)


def test_claims_are_those_of_the_recipes():
    table = claims.claims(
        pd.concat([both_protocols(recipe=name) for name in ("kerasio-tpu", "resnet50v2")])
    )
    assert set(table["recipe"]) == {"kerasio-tpu", "resnet50v2"}
    assert table["claim"].notna().any() and table["strict"].notna().all()
