import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from xraylib.datasets import lungs
from xraylib.errors import InvalidDataError, NotFoundError

WHOLE = np.zeros((1, 4))


def gradient(size=100):
    """One image that is brighter to the right and, in its lower half, to the bottom."""
    columns = np.linspace(0, 200, size)
    rows = np.linspace(0, 55, size)
    return (columns[None, :] + rows[:, None]).astype(np.uint8)[None, ..., None]


def test_a_whole_image_of_the_same_size_stays_as_it_is():
    np.testing.assert_array_equal(lungs.crop_boxes(gradient(), WHOLE, 100), gradient())
    assert lungs.crop_boxes(gradient()[:0], WHOLE[:0], 32).shape == (0, 32, 32, 1)


def test_a_crop_holds_the_box_and_no_other_part_of_the_image():
    image = np.full((1, 100, 100, 1), 10, np.uint8)
    image[0, 20:70, 30:90] = 200
    box = np.array([[0.2, 0.3, 0.3, 0.1]])
    crop = lungs.crop_boxes(image, box, 40, margin=0)
    assert crop.shape == (1, 40, 40, 1) and crop.dtype == np.uint8
    # Pillow's filter reaches one pixel over the edge.
    assert (crop[0, 1:-1, 1:-1] == 200).all()
    # A tenth of the box on each side: 5 rows of 60 and 6 columns of 72.
    wider = lungs.crop_boxes(image, box, 60, margin=0.1)[0, ..., 0]
    assert (wider[:4] == 10).all() and (wider[-4:] == 10).all()
    assert (wider[:, :4] == 10).all() and (wider[:, -4:] == 10).all()
    assert (wider[6:-6, 6:-6] == 200).all()


def test_each_side_of_a_box_is_its_own():
    image = gradient()
    for index in range(4):
        box = np.zeros((1, 4))
        box[0, index] = 0.4
        crop = lungs.crop_boxes(image, box, 60, margin=0)[0, ..., 0]
        sides = [slice(None), slice(None)]
        sides[index // 2] = slice(40, None) if index % 2 == 0 else slice(None, 60)
        expected = Image.fromarray(image[0, ..., 0][tuple(sides)])
        expected = expected.resize((60, 60), Image.Resampling.BILINEAR)
        assert np.abs(crop.astype(int) - np.asarray(expected)).max() <= 3


def test_the_margin_ends_at_the_image():
    np.testing.assert_array_equal(lungs.crop_boxes(gradient(), WHOLE, 100, 0.5), gradient())


@settings(max_examples=50, deadline=None)
@given(
    top=st.integers(0, 20),
    bottom=st.integers(0, 20),
    left=st.integers(0, 20),
    right=st.integers(0, 20),
)
def test_the_box_of_a_mask_is_where_it_is_true(top, bottom, left, right):
    mask = np.zeros((top + 5 + bottom, left + 7 + right), bool)
    mask[top : top + 5, left : left + 7] = np.eye(5, 7, dtype=bool) | np.eye(5, 7, 2, dtype=bool)
    height, width = mask.shape
    expected = [top / height, bottom / height, left / width, right / width]
    np.testing.assert_allclose(lungs.box_of_mask(mask), expected, atol=1e-12)


HEADER = "image_id,top,bottom,left,right\n"


def test_boxes_are_read_with_ids_as_text(tmp_path):
    path = tmp_path / "boxes.csv"
    path.write_text("split," + HEADER + "train,0001,0.1,0.2,0,0.3\ntest,b,0,0,0,0\n")
    table = lungs.read_boxes(path)
    assert table["image_id"].tolist() == ["0001", "b"] and table["split"].tolist() == [
        "train",
        "test",
    ]
    np.testing.assert_array_equal(table[lungs.BOX_COLUMNS], [[0.1, 0.2, 0, 0.3], [0, 0, 0, 0]])
    path.write_text(HEADER)
    assert lungs.read_boxes(path).empty


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (HEADER + "a,0,0,0,0\nb,0.5,0.5,0,0\n", r"line 3 .*top 0.5, bottom 0.5.*not inside"),
        (HEADER + "a,0,0,0.7,0.4\n", "line 2 .*left 0.7, right 0.4.*not inside"),
        (HEADER + "a,-0.1,0,0,0\n", "line 2 .*top -0.1.*not inside"),
        (HEADER + "a,0,1.2,0,0\n", "line 2 .*bottom 1.2.*not inside"),
        (HEADER + "a,0,inf,0,0\n", "line 2 .*bottom inf.*not inside"),
        (HEADER + "a,0,,0,0\n", "line 2 .*bottom nan.*not inside"),
        (HEADER + "a,0,few,0,0\n", "line 2 .*bottom few.*not inside"),
        (HEADER + "a,0,0,0,0\na,0,0,0,0\n", "line 3 .*image_id a.*twice"),
        (HEADER + ",0,0,0,0\n", "line 2 .*not named"),
        ("image_id,top,left\na,0,0\n", "is not a CSV.*bottom.*right"),
        ("", "is not a CSV"),
        ('image_id\n"a', "is not a CSV"),
        (b"\xff\xfe\x00\xd8", "is not a CSV"),
    ],
)
def test_wrong_boxes_are_named_with_row_and_fix(tmp_path, content, words):
    path = tmp_path / "boxes.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InvalidDataError, match=rf"boxes\.csv.*({words}).*Fix: "):
        lungs.read_boxes(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(NotFoundError, match=r"gone.*Fix: "):
        lungs.read_boxes(tmp_path / "gone")
