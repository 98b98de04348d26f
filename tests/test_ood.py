import made_up_runs
import numpy as np
import pandas as pd
import pytest

from xraylib.datasets import catalog, images, splits
from xraylib.datasets import phantom as phantoms
from xraylib.errors import NotFoundError
from xraylib.evaluation import ood
from xraylib.training import networks, probe, runs


@pytest.fixture
def two_runs(small_phantom, reports_here, monkeypatch):
    """Two runs on the phantom whose model is `answer`."""
    made = made_up_runs.two_runs(small_phantom, reports_here)
    strict = ("phantom", "mobilenetv2-frozen", "strict")
    monkeypatch.setattr(runs, "list_runs", lambda *about: made if about == strict else [])
    monkeypatch.setattr(ood, "load_predictor", made_up_runs.load_predictor)
    return made


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    """Another phantom, as a folder of the user's."""
    settings = phantoms.PhantomSettings(images=24, size=48, seed=7)
    return phantoms.write(tmp_path_factory.mktemp("elsewhere") / "hospital", settings)


def test_without_a_run_the_recipe_to_train_is_named(small_phantom, reports_here):
    with pytest.raises(NotFoundError, match="no finished run of mobilenetv2-frozen"):
        ood.ood_scores("phantom")


def test_every_group_of_images_has_its_ood_score(
    two_runs, hospital, small_phantom, reports_here, monkeypatch
):
    def describe(frozen, pixels):
        return pixels[:, ::7, ::7, 0].reshape(len(pixels), -1).astype(np.float32)

    used = []
    monkeypatch.setattr(networks, "get_weights", lambda network, init: None)
    monkeypatch.setattr(
        probe,
        "pooled",
        lambda films, _, size, *more: describe(None, images.load_pixels(films, size)),
    )
    monkeypatch.setattr(probe, "describe", describe)
    assign = splits.assign
    monkeypatch.setattr(
        splits, "assign", lambda *args, **named: used.append(named) or assign(*args, **named)
    )
    table, name = ood.ood_scores("phantom", [str(hospital)]), catalog.get_dataset(hospital).name
    assert used == [{"split_strategy": "patient-grouped"}]
    test = small_phantom[small_phantom["split"] == "test"]
    sizes = table.groupby("group", sort=False).size()
    assert sizes["test, normal"] + sizes["test, pneumonia"] == sizes["test, inverted"] == len(test)
    assert sizes[name] == 24
    val = table[table["group"].str.startswith("validation")]
    own = two_runs[0].scores.query("split == 'val'")
    assert set(val["image_id"]) == set(own["image_id"])
    inverted = table[table["group"] == "test, inverted"]["ood_score"]
    assert inverted.min() > table[table["group"] == "test, normal"]["ood_score"].max()
    read = pd.read_csv(reports_here / "phantom" / "tables" / "ood_scores.csv")
    pd.testing.assert_frame_equal(read, table, rtol=1e-5, check_dtype=False)


def test_the_ood_score_is_the_mahalanobis_distance():
    rng = np.random.default_rng(1)
    training = rng.normal(size=(20000, 3)) @ np.array([[3.0, 0, 0], [1, 1, 0], [0, 0.5, 0.2]])
    others = rng.normal(size=(50, 3))
    apart = others - training.mean(axis=0)
    expected = np.sqrt(np.einsum("ni,ij,nj->n", apart, np.linalg.inv(np.cov(training.T)), apart))
    np.testing.assert_allclose(ood.mahalanobis(training, others), expected, rtol=0.02)
    # Fewer images than features are enough.
    few = rng.normal(size=(20, 200))
    assert np.isfinite(ood.mahalanobis(few, rng.normal(size=(7, 200)))).all()


def test_the_limit_flags_one_in_twenty_of_validation():
    rng = np.random.default_rng(4)
    parts = []
    for group, mean in {"validation, normal": 5, "test": 5, "far": 9}.items():
        patients = [f"p{person}" for person in rng.integers(0, 60, 200)]
        parts.append(
            pd.DataFrame(
                {"group": group, "patient": patients, "ood_score": rng.normal(mean, 1, 200)}
            )
        )
    found = ood.ood_flagged(pd.concat(parts, ignore_index=True)).set_index("group")
    assert found.index.tolist() == ["validation, normal", "test", "far"]
    assert found.loc["validation, normal", "flagged"] == pytest.approx(0.05)
    assert np.isnan(found.loc["validation, normal", "auc"])
    assert found.loc["test", "low"] <= 0.05 <= found.loc["test", "high"]
    assert found.loc["test", "auc"] == pytest.approx(0.5, abs=0.1)
    assert found.loc["far", "flagged"] > 0.9 and found.loc["far", "auc_low"] > 0.97
