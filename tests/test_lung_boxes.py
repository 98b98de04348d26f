"""The script that makes the list of lung boxes from the outlines that people drew."""

import importlib
import json

import pandas as pd
import pytest

from xraylib import paths
from xraylib.datasets import lungs
from xraylib.errors import InvalidDataError, NotFoundError


@pytest.fixture
def outlines(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(str(paths.ROOT / "benchmarks"))
    return importlib.import_module("lung_boxes")


def square(left, top, right, bottom):
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def points(polygon):
    return [{"x": x, "y": y} for x, y in polygon]


LEFT, RIGHT = square(20, 10, 40, 60), square(50, 20, 80, 50)
# Both lungs together on an image of 100 x 80 pixels (width x height).
EXPECTED = {
    "width": 100,
    "height": 80,
    "top": 10 / 80,
    "bottom": 20 / 80,
    "left": 0.2,
    "right": 0.2,
    "lung_height": 50 / 80,
    "lung_area": (20 * 50 + 30 * 30) / 8000,
}
OTHER = {"name": "Heart", "polygon": {"path": points(square(0, 0, 99, 79))}}


def darwin_first():
    lung = [{"name": "Lung", "polygon": {"path": points(path)}} for path in (LEFT, RIGHT)]
    image = {"filename": "a.jpeg", "width": 100, "height": 80}
    return {"image": image, "annotations": [*lung, OTHER, {"name": "Lungs clear", "tag": {}}]}


def darwin_complex():
    content = darwin_first()
    shape = {"path": [points(LEFT), points(RIGHT)]}
    content["annotations"] = [{"name": "lungs", "complex_polygon": shape}, OTHER]
    return content


def darwin_second():
    slot = {"type": "image", "width": 100, "height": 80}
    shape = {"paths": [points(LEFT), points(RIGHT)]}
    return {
        "version": "2.0",
        "item": {"name": "a.jpeg", "path": "/", "slots": [slot]},
        "annotations": [{"name": "Left lung", "polygon": shape}, OTHER],
    }


def coco():
    flat = [[value for point in path for value in point] for path in (LEFT, RIGHT)]
    heart = [value for point in square(0, 0, 99, 79) for value in point]
    return {
        "images": [
            {"id": 7, "file_name": "a.jpeg", "width": 100, "height": 80},
            {"id": 8, "file_name": "none.jpeg", "width": 100, "height": 80},
        ],
        "categories": [{"id": 1, "name": "Lung"}, {"id": 2, "name": "Heart"}],
        "annotations": [
            {"image_id": 7, "category_id": 1, "segmentation": flat},
            {"image_id": 7, "category_id": 2, "segmentation": [heart]},
        ],
    }


def save(where, content, name="a.json"):
    """Write annotations; returns the path that `read_outlines` takes."""
    where.mkdir(exist_ok=True)
    (where / name).write_text(json.dumps(content))
    return where / name if "images" in content else where


@pytest.mark.parametrize("content", [darwin_first, darwin_complex, darwin_second, coco])
def test_outlines_of_every_format_give_the_same_box(outlines, tmp_path, content):
    table = outlines.read_outlines(save(tmp_path / "labels", content()))
    assert table["image_id"].tolist() == ["a"]
    assert table.iloc[0].drop("image_id").to_dict() == pytest.approx(EXPECTED)


def moved(shift, content=darwin_first):
    content = content()
    for point in content["annotations"][0]["polygon"]["path"]:
        point["x"] -= shift
    return content


def test_an_outline_may_overshoot_by_a_pixel_and_no_more(outlines, tmp_path):
    table = outlines.read_outlines(save(tmp_path, moved(20.8)))
    assert table["left"][0] == 0
    with pytest.raises(InvalidDataError, match=r"a\.json .*an outline leaves a\.jpeg.*Fix: "):
        outlines.read_outlines(save(tmp_path, moved(22)))


def without(content, *keys):
    *path, last = keys
    inner = content
    for key in path:
        inner = inner[key]
    del inner[last]
    return content


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (without(darwin_first(), "image"), r"a\.json cannot be used"),
        (without(darwin_first(), "annotations"), r"a\.json cannot be used"),
        (without(darwin_first(), "image", "width"), r"a\.json cannot be used"),
        (without(darwin_second(), "item", "slots", 0), r"a\.json cannot be used"),
        (without(coco(), "categories"), r"a\.json cannot be used"),
        (without(coco(), "images", 0), r"a\.json cannot be used"),
        (["text"], r"a\.json cannot be used"),
        (darwin_first() | {"annotations": [OTHER]}, 'none of 1 images has .*"lung"'),
        (
            darwin_first() | {"image": {"filename": "a", "width": 0, "height": 0}},
            "0 x 0 pixels",
        ),
        (
            darwin_first()
            | {"annotations": [{"name": "Lung", "polygon": {"path": points([(5, 5), (5, 9)])}}]},
            "an outline without area",
        ),
    ],
)
def test_wrong_annotations_are_named_with_the_fix(outlines, tmp_path, content, words):
    with pytest.raises(InvalidDataError, match=rf"({words}).*Fix: "):
        outlines.read_outlines(save(tmp_path / "labels", content))


def test_damaged_or_repeated_annotations_are_named(outlines, tmp_path):
    for nothing in (tmp_path, tmp_path / "gone"):
        with pytest.raises(NotFoundError, match="no JSON file"):
            outlines.read_outlines(nothing)
    save(tmp_path, darwin_first())
    save(tmp_path, darwin_second(), "again.json")
    with pytest.raises(InvalidDataError, match="a is outlined twice"):
        outlines.read_outlines(tmp_path)
    (tmp_path / "again.json").write_text("{")
    with pytest.raises(InvalidDataError, match=r"again\.json cannot be used .*JSON.*Fix: "):
        outlines.read_outlines(tmp_path)


def test_the_list_that_the_script_writes_is_one_that_is_read(outlines, tmp_path, capsys):
    annotations = save(tmp_path / "labels", darwin_first())
    outlines.main([str(annotations), str(tmp_path / "boxes.csv")])
    written = lungs.read_boxes(tmp_path / "boxes.csv")
    pd.testing.assert_frame_equal(written, outlines.read_outlines(annotations), check_dtype=False)
    assert "1 images" in capsys.readouterr().out
