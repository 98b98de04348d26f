import importlib

import numpy as np
import pytest
from PIL import Image

from xraylib import paths
from xraylib.datasets import alterations, images


@pytest.fixture(scope="module")
def pixels(phantom):
    return np.asarray(images.load_pixels(phantom, 64)[:12])


def changed_by(change, pixels, seed=0):
    return alterations.change_each(pixels, change, seed)


def test_the_same_seed_gives_the_same_images_and_another_seed_others(pixels):
    for change in (*alterations.KEPT, alterations.slightly, *alterations.REFUSED.values()):
        once = changed_by(change, pixels)
        assert once.shape == pixels.shape
        assert once.dtype == np.uint8
        np.testing.assert_array_equal(once, changed_by(change, pixels))
    assert (changed_by(alterations.degrade, pixels, 1) != once).any()


def test_turns_go_where_they_say(pixels):
    left = changed_by(alterations.REFUSED["turned left"], pixels)
    np.testing.assert_array_equal(left, np.rot90(pixels, 1, axes=(1, 2)))
    right = changed_by(alterations.REFUSED["turned right"], pixels)
    np.testing.assert_array_equal(right, np.rot90(pixels, -1, axes=(1, 2)))
    inverted = changed_by(alterations.REFUSED["inverted"], pixels)
    np.testing.assert_array_equal(inverted, 255 - pixels)
    for image, over in zip(pixels, changed_by(alterations.turn_over, pixels), strict=True):
        assert (over == image[::-1]).all() or (over == image[::-1, ::-1]).all()


def test_a_border_is_at_most_a_tenth_of_a_side():
    white = Image.new("L", (200, 100), 255)
    for seed in range(40):
        framed = alterations.frame(white, np.random.default_rng(seed))
        assert framed.width <= 240
        assert framed.height <= 120
        inner = np.asarray(framed)[framed.height // 2]
        assert (inner == 255).sum() >= 0.8 * 200


def test_slight_changes_are_slighter_than_those_that_are_refused(pixels):
    def distance(change):
        return np.abs(changed_by(change, pixels).astype(int) - pixels).mean()

    refused = [
        distance(change) for name, change in alterations.REFUSED.items() if name != "upside down"
    ]
    assert distance(alterations.slightly) < min(refused)


def test_a_half_keeps_one_side():
    ramp = np.tile(np.arange(100, dtype=np.uint8), (100, 1))
    image = Image.fromarray(ramp)
    kept = set()
    for seed in range(40):
        values = np.asarray(alterations.halve(image, np.random.default_rng(seed)))
        kept.add((values.min() < 2, values.max() > 97))
        assert 0.44 * 10_000 <= values.size <= 0.56 * 10_000
    assert kept == {(True, False), (False, True), (True, True)}


def test_pictures_that_teach_and_those_that_measure_are_of_other_kinds(monkeypatch):
    monkeypatch.syspath_prepend(str(paths.ROOT / "benchmarks"))
    unrelated = importlib.import_module("unrelated_images")
    taught = alterations.unusual_images(12, 32)
    assert taught.shape == (12, 32, 32, 1)
    assert len(np.unique(taught.reshape(12, -1), axis=0)) == 12
    np.testing.assert_array_equal(taught, alterations.unusual_images(12, 32))
    families = dict(unrelated.unrelated_images(32, 3))
    assert {"photograph", "page of text", "drawn hand", "drawn skull"} <= set(families)
    for pictures in families.values():
        assert pictures.shape == (3, 32, 32, 1)
        assert pictures.std() > 5
