import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from xraylib.datasets import images
from xraylib.training import probe
from xraylib.training.networks import Weights


def test_features_are_computed_once_and_in_order(phantom, accelerator, monkeypatch):
    first = probe.pooled(phantom, "tiny_cnn", 32, Weights("random"), 0)
    assert first.dtype == np.float32
    assert first.shape == (60, 16)
    assert not np.allclose(first, probe.pooled(phantom, "tiny_cnn", 32, Weights("random"), 1))
    frozen = probe.extractor("tiny_cnn", 32, Weights("random"), 0)
    again = probe.describe(frozen, images.load_pixels(phantom, 32)[7:9])
    np.testing.assert_allclose(again, first[7:9], atol=1e-4)
    monkeypatch.setattr(probe, "describe", None)
    np.testing.assert_array_equal(
        probe.pooled(phantom, "tiny_cnn", 32, Weights("random"), 0), first
    )


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY cut"])
def test_damaged_features_are_computed_again(
    phantom, accelerator, monkeypatch, tmp_path, caplog, content
):
    monkeypatch.setenv("XRAYLIB_CACHE", str(tmp_path))
    first = probe.pooled(phantom, "tiny_cnn", 32, Weights("random"), 0)
    (file,) = tmp_path.glob("features/*.npy")
    file.write_bytes(content)
    again = probe.pooled(phantom, "tiny_cnn", 32, Weights("random"), 0)
    np.testing.assert_allclose(again, first, rtol=1e-5)
    assert file.name in caplog.text
    np.testing.assert_array_equal(np.load(file), again)


@pytest.fixture
def described():
    rng = np.random.default_rng(0)
    n = 240
    labels = rng.integers(0, 2, n)
    table = rng.normal(size=(n, 6)) * [1, 5, 0.1, 1, 1, 20] + 3 + 0.5 * labels[:, None]
    return table.astype(np.float32), labels, np.array(["train", "train", "val", "test"] * (n // 4))


def test_it_is_scikit_learns_pipeline_with_platts_calibration(described, tmp_path):
    table, labels, split = described
    head, history = probe.fit(table, labels, split)
    train = split == "train"
    val = split == "val"
    strength = history["strength"][history["val_loss"].idxmin()]
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=3000))
    pipeline.fit(table[train], labels[train])
    platt = LogisticRegression(C=1e6).fit(
        pipeline.decision_function(table[val])[:, None], labels[val]
    )
    expected = platt.predict_proba(pipeline.decision_function(table)[:, None])[:, 1]
    np.testing.assert_allclose(probe.predict_probability(head, table), expected, atol=1e-6)
    assert history["strength"].tolist() == list(probe.STRENGTHS)
    assert history["val_loss"].min() == pytest.approx(
        log_loss(labels[val], pipeline.predict_proba(table[val]))
    )
    probe.save_head(head, tmp_path / "head.json")
    again = probe.load_head(tmp_path / "head.json")
    np.testing.assert_array_equal(
        probe.predict_probability(again, table), probe.predict_probability(head, table)
    )


def test_it_does_not_look_at_the_test(described):
    table, labels, split = described
    head, _ = probe.fit(table, labels, split)
    other = np.where((split == "test")[:, None], 0, table)
    again, _ = probe.fit(other, np.where(split == "test", 1 - labels, labels), split)
    for name, value in head.items():
        np.testing.assert_array_equal(again[name], value)


@pytest.mark.filterwarnings("error")
def test_a_very_sure_probe_still_gives_a_probability():
    head = {"coefficients": np.array([1.0]), "intercept": np.array(0.0)}
    assert probe.predict_probability(head, np.array([[-800.0], [800.0]])).tolist() == [0, 1]
