from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from xraylib.datasets import audit, catalog, images
from xraylib.datasets.phantom import PhantomSettings

MODEL = "border, linear model"


def audited(marker):
    settings = PhantomSettings(images=300, size=96, marker_follows_label=marker)
    manifest = catalog.load(replace(catalog.DATASETS["phantom"], phantom=settings))
    return audit.audit(manifest, images.load_pixels(manifest, 64, progress=False))


@pytest.fixture(scope="module")
def planted():
    return audited(marker=True).set_index(["feature", "split"])


@pytest.fixture(scope="module")
def clean():
    return audited(marker=False).set_index(["feature", "split"])


def test_a_planted_marker_is_found(planted):
    assert planted.loc[(MODEL, "test"), "auc"] > 0.75
    assert planted.loc[(MODEL, "test"), "low"] > 0.6
    assert planted.loc[(MODEL, "train"), "low"] > 0.6


def test_without_it_the_border_tells_little(clean):
    found = clean.loc[(MODEL, "test")]
    assert found["auc"] < 0.75 or found["low"] <= 0.5 <= found["high"]


def test_every_feature_has_a_row_for_train_and_test(clean):
    features = {"file size", "image size", "mean intensity", "border intensity", "saturated pixels", MODEL}
    assert set(clean.index) == {(feature, split) for feature in features for split in ("train", "test")}
    assert ((clean["low"] <= clean["auc"]) & (clean["auc"] <= clean["high"])).all()
    assert clean[["auc", "low", "high"]].stack().between(0, 1).all()


def test_the_direction_comes_from_train(clean):
    train = clean.xs("train", level="split")["auc"].drop(MODEL)
    assert (train >= 0.5).all()


@pytest.fixture
def films(tmp_path):
    """Four files whose sizes and intensities are known."""
    rows, pixels = [], []
    for number, (width, height, value) in enumerate([(40, 30, 0), (16, 16, 255), (20, 10, 100), (8, 8, 250)]):
        path = tmp_path / f"{number}.png"
        Image.new("L", (width, height), value).save(path)
        rows.append({"path": str(path), "label": number % 2, "split": "train", "patient": f"p{number}"})
        film = np.full((16, 16, 1), value, np.uint8)
        film[4:12, 4:12] = 7
        pixels.append(film)
    return pd.DataFrame(rows, index=[3, 5, 7, 9]), np.stack(pixels)


def test_files_are_described_without_decoding(films):
    manifest, _ = films
    table = audit.files(manifest)
    assert table[["width", "height"]].to_numpy().tolist() == [[40, 30], [16, 16], [20, 10], [8, 8]]
    assert table.index.tolist() == [3, 5, 7, 9]
    assert (table["bytes"] > 0).all() and table["label"].tolist() == [0, 1, 0, 1]


def test_single_numbers_are_what_they_are_called(films):
    manifest, pixels = films
    table = audit.trivial(manifest, pixels)
    assert table["image size"].tolist() == [1200, 256, 200, 64]
    assert table["border intensity"].tolist() == [0, 255, 100, 250]
    np.testing.assert_allclose(table["mean intensity"], [1.75, 193, 76.75, 189.25])
    np.testing.assert_allclose(table["saturated pixels"], [0, 0.75, 0, 0.75])


def test_the_figures_are_those_of_scikit_learn(phantom):
    pixels = images.load_pixels(phantom, 64, progress=False)
    table = audit.audit(phantom, pixels).set_index(["feature", "split"])
    test = (phantom["split"] == "test").to_numpy()
    means = pixels.mean(axis=(1, 2, 3))
    train = roc_auc_score(phantom["label"][~test], means[~test])
    sign = 1 if train >= 0.5 else -1
    expected = roc_auc_score(phantom["label"][test], sign * means[test])
    assert table.loc[("mean intensity", "test"), "auc"] == pytest.approx(expected)
    assert table.loc[("mean intensity", "train"), "auc"] == pytest.approx(max(train, 1 - train))
