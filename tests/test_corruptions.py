import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from xraylib.datasets import framing, phantom
from xraylib.datasets.corruptions import (
    CORRUPTIONS,
    TAUGHT,
    corrupt,
    corrupt_each,
)
from xraylib.errors import InvalidDataError

NOISE = ("gaussian noise", "speckle noise", "impulse noise", "shot noise")
EVERY = [(name, step + 1) for name in CORRUPTIONS for step in range(len(CORRUPTIONS[name][1]))]
EACH = pytest.mark.parametrize("name", CORRUPTIONS)


@pytest.fixture(scope="module")
def film():
    """One phantom radiograph of the size that the parameters were set for."""
    return phantom.simulate("bacteria", 1, 2, size=224)[0][None, ..., None]


def flat(grey, size=100, films=1):
    return np.full((films, size, size, 1), grey, np.uint8)


def ramp():
    """Every grey value once a row."""
    return np.tile(np.arange(256, dtype=np.uint8), (8, 1))[None, ..., None]


def test_there_are_thirteen_published_corruptions_and_five_of_handling():
    handling = ["aspect ratio", "rotation", "inversion", "border", "marker"]
    assert len(CORRUPTIONS) == 18 and list(CORRUPTIONS)[13:] == handling
    assert {name for name, (_, steps) in CORRUPTIONS.items() if len(steps) != 5} == {"inversion"}


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(EVERY),
    st.integers(1, 3),
    st.integers(8, 60),
    st.integers(8, 60),
    st.integers(0, 99),
)
def test_bytes_come_in_and_bytes_of_the_same_shape_come_out(named, films, height, width, seed):
    given = np.random.default_rng(seed).integers(0, 256, (films, height, width, 1), np.uint8)
    before = given.copy()
    given.flags.writeable = False
    changed = corrupt(given, *named, seed)
    assert changed.dtype == np.uint8 and changed.shape == given.shape
    np.testing.assert_array_equal(given, before)


@EACH
def test_a_seed_gives_one_picture_whatever_stands_beside_it(name, film):
    both = np.concatenate([film, 255 - film])
    np.testing.assert_array_equal(
        corrupt(both, name, 1, seed=3)[:1], corrupt(film, name, 1, seed=3)
    )
    seeded = name in (*NOISE, "rotation", "marker")
    others = [
        (corrupt(film, name, 1, seed) != corrupt(film, name, 1, 3)).any() for seed in range(3)
    ]
    assert any(others) == seeded
    first, second = corrupt(flat(128, films=2), name, 1)
    assert name not in NOISE or (first != second).any()


@EACH
def test_every_severity_is_further_from_the_original(name, film):
    steps = range(len(CORRUPTIONS[name][1]))
    apart = [np.abs(corrupt(film, name, step + 1).astype(int) - film).mean() for step in steps]
    assert apart[0] > 0 and (np.diff(apart) > 0).all()


@pytest.mark.parametrize("name", ["pixelate", "gaussian blur", "contrast up", "contrast down"])
def test_a_film_of_one_grey_stays_as_it_is(name):
    np.testing.assert_array_equal(corrupt(flat(90), name, 5), flat(90))


def test_jpeg_is_that_of_pillow(film):
    packed = io.BytesIO()
    Image.fromarray(film[0, ..., 0]).save(packed, "JPEG", quality=15)
    np.testing.assert_array_equal(
        corrupt(film, "jpeg", 3)[0, ..., 0], np.asarray(Image.open(packed))
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gamma up", lambda grey: 255 * (grey / 255) ** 1.6),
        ("gamma down", lambda grey: 255 * (grey / 255) ** 0.4),
        ("brightness up", lambda grey: 1.5 * grey),
        ("brightness down", lambda grey: 0.5 * grey),
        ("contrast up", lambda grey: 127.5 + 1.6 * (grey - 127.5)),
        ("contrast down", lambda grey: 127.5 + 0.4 * (grey - 127.5)),
        ("inversion", lambda grey: 255 - grey),
    ],
)
def test_greys_change_as_the_formula_says(name, expected):
    changed = corrupt(ramp(), name, len(CORRUPTIONS[name][1]))[0, 0, :, 0]
    np.testing.assert_allclose(changed, np.clip(expected(np.arange(256)), 0, 255), atol=1.5)


def test_noise_has_its_spread():
    for grey in (80, 170):
        change = corrupt(flat(grey), "gaussian noise", 3).astype(float) - grey
        assert change.std() / 255 == pytest.approx(0.06, rel=0.05) and abs(change.mean()) < 1.5
    for grey in (50, 130):
        assert corrupt(flat(grey), "speckle noise", 5).std() == pytest.approx(0.2 * grey, rel=0.05)
    change = corrupt(flat(128), "shot noise", 5).astype(float) / 255
    assert change.var() == pytest.approx(128 / 255 / 80, rel=0.1)
    assert (
        not corrupt(flat(0), "speckle noise", 5).any()
        and not corrupt(flat(0), "shot noise", 5).any()
    )
    changed = corrupt(flat(128, size=300), "impulse noise", 5)
    assert (changed != 128).mean() == pytest.approx(0.02, rel=0.1)
    assert set(np.unique(changed)) == {0, 128, 255}


def test_a_point_is_blurred_over_the_kernel_and_keeps_its_light():
    point, bar = flat(0, size=41), flat(0, size=41)
    point[0, 20, 20], bar[0, :, 14:27] = 255, 200
    for severity, kernel in enumerate((3, 5, 7, 9, 11), start=1):
        rows, columns = np.nonzero(corrupt(point, "gaussian blur", severity)[0, ..., 0])
        assert np.ptp(rows) < kernel and np.ptp(columns) < kernel
        assert corrupt(bar, "gaussian blur", severity)[0, 20].sum() == pytest.approx(
            13 * 200, abs=10
        )


def test_pixels_are_averaged_over_blocks():
    checks = np.indices((100, 100)).sum(axis=0) % 2 * 200
    changed = corrupt(checks.astype(np.uint8)[None, ..., None], "pixelate", 4)
    np.testing.assert_array_equal(changed, flat(100))


def test_handling_changes_geometry_and_frame_as_said(film):
    lit = np.flatnonzero(corrupt(flat(255, size=200), "aspect ratio", 5)[0, 0, :, 0])
    assert len(lit) == 140 and lit[0] == pytest.approx(199 - lit[-1], abs=1)
    framed = corrupt(film, "border", 5)[0, ..., 0]
    inside = (slice(22, 202),) * 2
    np.testing.assert_array_equal(framed[inside], film[0, ..., 0][inside])
    framed[inside] = 0
    assert not framed.any()
    spot, turns, corners = flat(0, size=201), set(), set()
    spot[0, 98:103, 168:173] = 255
    for seed in range(6):
        turned = corrupt(spot, "rotation", 4, seed)[0, ..., 0].astype(float)
        y, x = ((turned * at).sum() / turned.sum() - 100 for at in np.indices(turned.shape))
        turns.add(round(float(np.degrees(np.arctan2(y, x)))))
        marked = corrupt(flat(60, size=224), "marker", 3, seed)[0, ..., 0]
        rows, columns = np.nonzero(marked != 60)
        assert marked.max() > 220 and rows.max() < 60
        corners.add((bool(columns.max() < 60), bool(columns.min() > 160)))
    assert turns == {-15, 15} and corners == {(True, False), (False, True)}


def test_each_class_is_framed_and_rendered_as_the_other():
    rng, labels = np.random.default_rng(0), np.array([0, 0, 1, 1])
    films = np.clip(
        rng.normal([[[[60.0]]], [[[60]]], [[[160]]], [[[160]]]], 20, (4, 48, 48, 1)), 0, 255
    )
    films = films.astype(np.uint8)
    found = framing.swaps(films, labels, seed=0)
    assert set(found) == {"framing", "rendering", "both"}
    assert all(view.shape == films.shape and view.dtype == np.uint8 for view in found.values())
    means = found["rendering"].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(means, [160, 160, 60, 60], atol=3)
    # A crop of rows leaves columns alone, so a ramp along one direction tells which was cropped.
    across = np.tile(np.linspace(0, 255, 48).astype(np.uint8), (2, 48, 1))[..., None]
    np.testing.assert_array_equal(framing.swap_framing(across, np.array([0, 0])), across)
    assert np.ptp(framing.swap_framing(across, np.array([1, 1]))) < 0.9 * np.ptp(across)
    np.testing.assert_array_equal(framing.crop(films), films)


def test_each_image_gets_one_of_the_named_corruptions(film):
    pixels = np.repeat(film, 60, axis=0)
    corrupted = corrupt_each(pixels, ("brightness up", "brightness down"), seed=1)
    gain = corrupted.mean(axis=(1, 2, 3)) / film.mean()
    assert 15 < (gain > 1).sum() < 45
    assert len({image.tobytes() for image in corrupted}) == 10, "two kinds in five severities"
    again = corrupt_each(pixels, ("brightness up", "brightness down"), seed=1)
    np.testing.assert_array_equal(again, corrupted)
    assert set(TAUGHT) < set(CORRUPTIONS)


@pytest.mark.parametrize("severity", [0, -1, 6, 1.5])
def test_a_severity_that_does_not_exist_is_named(severity):
    with pytest.raises(InvalidDataError, match=rf"jpeg has no severity {severity}.*1 to 5"):
        corrupt(flat(9), "jpeg", severity)
    with pytest.raises(InvalidDataError, match=r"inversion has no severity 2\. Fix: .*1 to 1"):
        corrupt(flat(9), "inversion", 2)


def test_bars_blacken_what_the_crop_takes_away():
    size = 200
    edge = 19
    lost, kept = flat(200, size), flat(0, size)
    lost[:, edge:-edge] = 60
    kept[:, edge:-edge] = 60
    np.testing.assert_array_equal(framing.FRAMING_VIEWS["bars 0.81"](lost), kept)
    cropped = framing.FRAMING_VIEWS["rows 0.81"](lost)
    # Pillow's filter reaches over the edge of the crop.
    assert (cropped[:, 2:-2] == 60).all()
    assert lost.max() == 200


def test_views_keep_the_share_that_they_name():
    size = 200
    ramps = np.tile(np.arange(size, dtype=np.uint8)[:, None], (1, size))
    upright, flat_out = ramps[None, ..., None], ramps.T[None, ..., None]
    for share in framing.SHARES:
        rows = framing.FRAMING_VIEWS[f"rows {share}"]
        columns = framing.FRAMING_VIEWS[f"columns {share}"]
        for view, along, across in ((rows, upright, flat_out), (columns, flat_out, upright)):
            assert np.ptp(view(along)) == pytest.approx(size * share, abs=2)
            np.testing.assert_array_equal(view(across), across)
    area = framing.FRAMING_VIEWS["area 0.81"]
    assert np.ptp(area(upright)) == pytest.approx(size * 0.9, abs=2)
    assert np.ptp(area(flat_out)) == pytest.approx(size * 0.9, abs=2)


def test_the_controls_are_the_corruptions_that_they_name(film):
    for name in ("jpeg", "gaussian blur", "brightness up", "brightness down"):
        view = framing.FRAMING_VIEWS[f"{name} 2"]
        np.testing.assert_array_equal(view(film), corrupt(film, name, 2))
