"""The box of the lungs as a region of its own, and its controls."""

import numpy as np
import pandas as pd
import pytest

from xraylib import paths
from xraylib.datasets import lung_finder, manifest, regions
from xraylib.datasets.phantom import PhantomSettings, write
from xraylib.errors import InvalidDataError, NotFoundError

BOX = np.array([0.25, 0.125, 0.125, 0.375])


@pytest.fixture
def phantom(tmp_path):
    return manifest.load(write(tmp_path / "images", PhantomSettings(images=24, size=64)))


@pytest.fixture
def one_box(monkeypatch):
    """Every image has the same box, but for the last, in which no lungs are found."""

    def find(pixels):
        boxes = np.tile(BOX, (len(pixels), 1))
        boxes[-1] = np.nan
        return lung_finder.LungBoxes(boxes, np.zeros(len(pixels)), np.zeros(len(pixels)))

    monkeypatch.setattr(lung_finder, "find", find)


def test_each_region_shows_what_its_name_says(phantom, one_box, monkeypatch):
    monkeypatch.setattr(regions, "MARGIN", 0.0)
    whole = regions.load(phantom, 224)
    lungs = regions.load(phantom, 84, "lungs")
    # The box has 5/8 of 224 rows and 1/2 of its columns.
    expected = whole[0, 56:196, 28:140, 0]
    assert lungs.shape == (24, 84, 84, 1)
    assert abs(lungs[0].mean() - expected.mean()) < 1.5
    hidden = regions.load(phantom, 224, "outside the lungs")
    assert not hidden[0, 56:196, 28:140].any()
    outside = np.ones((224, 224), bool)
    outside[56:196, 28:140] = False
    np.testing.assert_array_equal(hidden[0, outside], whole[0, outside])


def test_an_image_without_lungs_is_kept_whole_and_said(phantom, one_box, caplog):
    boxes = regions.load_boxes(phantom)
    assert boxes[-1].tolist() == [0, 0, 0, 0]
    np.testing.assert_array_equal(boxes[0], BOX)
    assert "1 of 24" in caplog.text


def test_the_exchanged_boxes_stay_in_their_class_and_split(phantom):
    rows = np.arange(len(phantom)) / 1000
    exchanged = regions._boxes_of_others(phantom, np.column_stack([rows, rows, rows, rows]))
    source = np.round(exchanged[:, 0] * 1000).astype(int)
    assert sorted(source) == list(range(24))
    for column in ("split", "label"):
        values = phantom[column].to_numpy()
        assert (values[source] == values).all()
    sizes = phantom.groupby(["split", "label"])["image_id"].transform("size").to_numpy()
    assert (source != np.arange(len(phantom)))[sizes > 1].all()


def test_drawn_boxes_are_read_where_they_are_and_the_rest_is_found(
    phantom, one_box, monkeypatch, tmp_path
):
    monkeypatch.setenv("XRAYLIB_DATA", str(tmp_path / "data"))
    drawn = pd.DataFrame({"image_id": phantom["image_id"][:3]})
    drawn = drawn.assign(top=0.1, bottom=0.1, left=0.1, right=0.1)
    phantom.attrs["dataset"] = "kermany"
    with pytest.raises(NotFoundError, match=r"kermany_lungs\.csv.*Fix: "):
        regions.load_boxes(phantom, annotated=True)
    paths.DATA.mkdir(parents=True, exist_ok=True)
    drawn.to_csv(paths.DATA / "kermany_lungs.csv", index=False)
    boxes = regions.load_boxes(phantom, annotated=True)
    assert boxes[:3].tolist() == [[0.1] * 4] * 3
    np.testing.assert_array_equal(boxes[3], BOX)


def test_what_boxes_come_from_is_named_by_content(tmp_path, monkeypatch):
    assert regions.sources("phantom", "whole") == {}
    found = regions.sources("phantom", "lungs")
    assert list(found) == ["lung_finder"]
    assert len(found["lung_finder"]) == 12
    monkeypatch.setattr(paths, "DATA", tmp_path)
    (tmp_path / "phantom_lungs.csv").write_text("one list")
    first = regions.sources("phantom", "annotated lungs")
    (tmp_path / "phantom_lungs.csv").write_text("another list")
    second = regions.sources("phantom", "annotated lungs")
    assert first["lung_finder"] == second["lung_finder"] == found["lung_finder"]
    assert first["lung_annotations"] != second["lung_annotations"]


def test_an_unknown_region_is_refused_by_name(phantom):
    with pytest.raises(NotFoundError, match=r"no region 'heart'.*whole, lungs"):
        regions.load(phantom, 28, "heart")


def test_the_packaged_network_finds_a_bright_chest_and_nothing_in_the_dark():
    dark = np.zeros((1, 224, 224, 1), np.uint8)
    result = lung_finder.find(dark)
    assert result.boxes.shape == (1, 4) and result.area[0] < 0.6


def test_boxes_are_those_of_the_largest_regions():
    probability = np.zeros((2, 112, 112), np.float32)
    probability[0, 28:84, 14:42] = 0.9
    probability[0, 30:80, 60:90] = 0.8
    probability[0, 2:6, 2:6] = 0.9
    result = lung_finder.boxes_of(probability)
    np.testing.assert_allclose(result.boxes[0], [28 / 112, 28 / 112, 14 / 112, 22 / 112])
    assert np.isnan(result.boxes[1]).all()
    assert result.certainty[1] == 0 and 0.8 < result.certainty[0] < 0.9


def test_another_file_in_the_place_of_the_network_is_refused(monkeypatch, tmp_path):
    for name in ("lungs.tflite", "SHA256SUMS"):
        (tmp_path / name).write_bytes((paths.SHIPPED / name).read_bytes())
    (tmp_path / "lungs.tflite").write_bytes(b"another")
    monkeypatch.setattr(paths, "SHIPPED", tmp_path)
    lung_finder.load_network.cache_clear()
    with pytest.raises(InvalidDataError, match=r"lungs\.tflite is not the file.*Fix: "):
        lung_finder.load_network()
    lung_finder.load_network.cache_clear()
