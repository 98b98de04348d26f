"""OOD scores, as notebook 07 shows them."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from notebook_code import definitions

from xraylib.datasets import phantom as phantoms
from xraylib.experiment import Experiment

SHOWN = definitions("07_shift_and_trust")


class Frozen:
    """In place of the frozen network: its features are some of the pixels."""

    input_shape = (None, 224, 224, 1)

    def predict(self, pixels, verbose):
        return pixels[:, ::14, ::14, 0].reshape(len(pixels), -1).astype(np.float32)


@pytest.fixture
def phantom(small_phantom, accelerator, monkeypatch):
    """The phantom as notebook 07 has it, with a frozen network."""
    experiment = Experiment("phantom", accelerator)
    monkeypatch.setitem(SHOWN.ood_scores.__globals__, "experiment", experiment)
    return experiment


def test_every_group_of_images_has_its_ood_score(phantom, tmp_path):
    settings = phantoms.PhantomSettings(images=24, size=48, seed=7)
    folder = phantoms.write(tmp_path / "hospital", settings)
    hospital = replace(phantom, dataset=str(folder))
    table = SHOWN.ood_scores(Frozen(), [hospital])
    split = phantom.split()
    expected = {
        "validation": set(split.loc[split["split"] == "val", "image_id"]),
        "test": set(split.loc[split["split"] == "test", "image_id"]),
    }
    for name, images in expected.items():
        for label, diagnosis in enumerate(("normal", "pneumonia")):
            group = table[table["group"] == f"{name}, {diagnosis}"]
            assert set(group["label"]) == {label}
            images = images - set(group["image_id"])
        assert not images
    by_group = table.groupby("group")["ood_score"]
    assert by_group.size()["test, inverted"] == len(expected["test"])
    assert by_group.size()[hospital.name] == 24
    assert by_group.min()["test, inverted"] > by_group.max()["test, normal"]
    # The reference are the training images alone.
    train = split.index[split["split"] == "train"]
    features = Frozen().predict(phantom.pixels(224), 0)
    first = table.iloc[0]
    row = split.index[split["image_id"] == first["image_id"]]
    own = SHOWN.mahalanobis(features[train], features[row])
    assert first["ood_score"] == pytest.approx(own[0], rel=1e-4)


def test_the_ood_score_is_the_mahalanobis_distance():
    rng = np.random.default_rng(1)
    training = rng.normal(size=(20000, 3)) @ np.array([[3.0, 0, 0], [1, 1, 0], [0, 0.5, 0.2]])
    others = rng.normal(size=(50, 3))
    apart = others - training.mean(axis=0)
    expected = np.sqrt(np.einsum("ni,ij,nj->n", apart, np.linalg.inv(np.cov(training.T)), apart))
    np.testing.assert_allclose(SHOWN.mahalanobis(training, others), expected, rtol=0.02)
    # Fewer images than features are enough.
    few = rng.normal(size=(20, 200))
    assert np.isfinite(SHOWN.mahalanobis(few, rng.normal(size=(7, 200)))).all()


def test_the_limit_flags_one_in_twenty_of_validation():
    rng = np.random.default_rng(4)
    parts = []
    for group, mean in {"validation, normal": 5, "test": 5, "far": 9}.items():
        people = [f"p{person}" for person in rng.integers(0, 60, 200)]
        part = {"group": group, "patient": people, "ood_score": rng.normal(mean, 1, 200)}
        parts.append(pd.DataFrame(part))
    found = SHOWN.ood_flagged(pd.concat(parts, ignore_index=True)).set_index("group")
    assert found.index.tolist() == ["validation, normal", "test", "far"]
    assert found.loc["validation, normal", "flagged"] == pytest.approx(0.05)
    assert np.isnan(found.loc["validation, normal", "auc"])
    assert found.loc["test", "low"] <= 0.05 <= found.loc["test", "high"]
    assert found.loc["test", "auc"] == pytest.approx(0.5, abs=0.1)
    assert found.loc["far", "flagged"] > 0.9 and found.loc["far", "auc_low"] > 0.97
