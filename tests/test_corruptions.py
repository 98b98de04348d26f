import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from xraylib.datasets import phantom
from xraylib.datasets.corruptions import CORRUPTIONS, HANDLING, MEDMNIST_C, corrupt
from xraylib.storage import NotFound

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


def distance(one, other):
    return np.abs(one.astype(int) - other).mean()


def test_there_are_thirteen_published_corruptions_and_five_of_handling():
    assert (len(MEDMNIST_C), len(HANDLING), len(CORRUPTIONS)) == (13, 5, 18)
    assert {name: len(given) for name, (_, given) in CORRUPTIONS.items() if len(given) != 5} == {
        "inversion": 1
    }


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(EVERY), st.integers(1, 3), st.integers(8, 60), st.integers(8, 60), st.integers(0, 99))
def test_bytes_come_in_and_bytes_of_the_same_shape_come_out(named, films, height, width, seed):
    given = np.random.default_rng(seed).integers(0, 256, (films, height, width, 1), np.uint8)
    before = given.copy()
    given.flags.writeable = False
    changed = corrupt(given, *named, seed)
    assert changed.dtype == np.uint8 and changed.shape == given.shape
    np.testing.assert_array_equal(given, before)
    assert not np.shares_memory(changed, given)


@EACH
def test_the_same_seed_gives_the_same_pixels(name, film):
    np.testing.assert_array_equal(corrupt(film, name, 1, seed=3), corrupt(film, name, 1, seed=3))


@pytest.mark.parametrize("name", NOISE)
def test_another_seed_gives_another_noise(name, film):
    assert (corrupt(film, name, 3, seed=0) != corrupt(film, name, 3, seed=1)).any()


@pytest.mark.parametrize("name", sorted(set(MEDMNIST_C) - set(NOISE)))
def test_the_seed_changes_nothing_else(name, film):
    np.testing.assert_array_equal(corrupt(film, name, 3, seed=0), corrupt(film, name, 3, seed=1))


@pytest.mark.parametrize("name", NOISE)
def test_two_films_do_not_share_their_noise(name):
    first, second = corrupt(flat(128, films=2), name, 3)
    assert (first != second).any()


@EACH
def test_a_film_is_corrupted_alone_as_among_others(name, film):
    both = np.concatenate([film, 255 - film])
    np.testing.assert_array_equal(corrupt(both, name, 1)[:1], corrupt(film, name, 1))


@EACH
def test_every_severity_is_further_from_the_original(name, film):
    steps = range(len(CORRUPTIONS[name][1]))
    apart = [distance(corrupt(film, name, step + 1), film) for step in steps]
    assert apart[0] > 0 and (np.diff(apart) > 0).all()


@pytest.mark.parametrize("name", ["pixelate", "gaussian blur", "contrast up", "contrast down"])
def test_a_film_of_one_grey_stays_as_it_is(name):
    np.testing.assert_array_equal(corrupt(flat(90), name, 5), flat(90))


@pytest.mark.parametrize(("severity", "quality"), [(1, 50), (2, 30), (3, 15), (4, 10), (5, 7)])
def test_jpeg_is_that_of_pillow(severity, quality, film):
    packed = io.BytesIO()
    Image.fromarray(film[0, ..., 0]).save(packed, "JPEG", quality=quality)
    expected = np.asarray(Image.open(packed))
    np.testing.assert_array_equal(corrupt(film, "jpeg", severity)[0, ..., 0], expected)


@pytest.mark.parametrize(
    ("name", "powers"), [("gamma up", (1.1, 1.2, 1.3, 1.4, 1.6)), ("gamma down", (0.9, 0.8, 0.7, 0.6, 0.4))]
)
def test_gamma_is_a_power(name, powers):
    for severity, power in enumerate(powers, start=1):
        changed = corrupt(ramp(), name, severity)[0, 0, :, 0]
        expected = [255 * (grey / 255) ** power for grey in range(256)]
        np.testing.assert_allclose(changed, expected, atol=1)
        assert (changed[0], changed[255]) == (0, 255)


def test_brightness_is_a_factor():
    greys = np.arange(256)
    for name, factor in (("brightness up", 1.5), ("brightness down", 0.5)):
        expected = np.minimum(greys * factor, 255)
        np.testing.assert_allclose(corrupt(ramp(), name, 5)[0, 0, :, 0], expected, atol=1)


def test_contrast_is_a_factor_about_the_mean():
    greys = np.arange(256)
    for name, factor in (("contrast up", 1.6), ("contrast down", 0.4)):
        expected = np.clip(127.5 + factor * (greys - 127.5), 0, 255)
        np.testing.assert_allclose(corrupt(ramp(), name, 5)[0, 0, :, 0], expected, atol=1.5)


def test_gaussian_noise_has_its_spread_whatever_the_grey():
    for grey in (80, 170):
        change = corrupt(flat(grey), "gaussian noise", 3).astype(float) - grey
        assert change.std() / 255 == pytest.approx(0.06, rel=0.05)
        assert change.mean() == pytest.approx(0, abs=1.5)


def test_speckle_noise_grows_with_the_grey():
    assert not corrupt(flat(0), "speckle noise", 5).any()
    for grey in (50, 130):
        spread = corrupt(flat(grey), "speckle noise", 5).std()
        assert spread == pytest.approx(0.2 * grey, rel=0.05)


def test_shot_noise_is_that_of_so_many_photons():
    assert not corrupt(flat(0), "shot noise", 5).any()
    change = corrupt(flat(128), "shot noise", 5).astype(float) / 255
    assert change.var() == pytest.approx(128 / 255 / 80, rel=0.1)


def test_impulse_noise_turns_its_share_black_or_white():
    changed = corrupt(flat(128, size=300), "impulse noise", 5)
    hit = changed != 128
    assert hit.mean() == pytest.approx(0.02, rel=0.1)
    assert set(np.unique(changed)) == {0, 128, 255}
    assert (changed[hit] == 255).mean() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(("severity", "kernel"), [(1, 3), (2, 5), (3, 7), (4, 9), (5, 11)])
def test_a_point_is_blurred_over_the_kernel_and_keeps_its_light(severity, kernel):
    point = flat(0, size=41)
    point[0, 20, 20] = 255
    rows, columns = np.nonzero(corrupt(point, "gaussian blur", severity)[0, ..., 0])
    assert np.ptp(rows) < kernel and np.ptp(columns) < kernel
    bar = flat(0, size=41)
    bar[0, :, 14:27] = 200
    spread = corrupt(bar, "gaussian blur", severity)[0, 20, :, 0].astype(int)
    assert spread.sum() == pytest.approx(13 * 200, abs=10)
    assert (spread == spread[::-1]).all() and 0 < spread[13] < 200


def test_pixels_are_averaged_over_blocks():
    checks = np.indices((100, 100)).sum(axis=0) % 2 * 200
    changed = corrupt(checks.astype(np.uint8)[None, ..., None], "pixelate", 4)
    np.testing.assert_array_equal(changed, flat(100))


def test_the_ratio_of_the_sides_changes_and_the_rest_is_black():
    for severity, stretch in enumerate((0.95, 0.9, 0.85, 0.8, 0.7), start=1):
        changed = corrupt(flat(255, size=200), "aspect ratio", severity)[0, ..., 0]
        assert (changed == changed[0]).all()
        lit = np.flatnonzero(changed[0])
        assert len(lit) == round(200 * stretch) and lit[0] == pytest.approx(199 - lit[-1], abs=1)


def test_a_film_is_turned_about_its_centre_to_either_side():
    spot = flat(0, size=201)
    spot[0, 98:103, 168:173] = 255
    sides = set()
    for severity, degrees in enumerate((2, 5, 10, 15, 20), start=1):
        for seed in range(6):
            turned = corrupt(spot, "rotation", severity, seed)[0, ..., 0].astype(float)
            rows, columns = np.indices(turned.shape)
            y, x = ((turned * at).sum() / turned.sum() - 100 for at in (rows, columns))
            angle = np.degrees(np.arctan2(y, x))
            assert abs(angle) == pytest.approx(degrees, abs=0.3)
            assert np.hypot(x, y) == pytest.approx(70, abs=0.5)
            sides.add(np.sign(angle))
    assert sides == {-1, 1}


def test_turning_leaves_black_corners():
    turned = corrupt(flat(200), "rotation", 5)[0, ..., 0]
    assert not turned[[0, 0, -1, -1], [0, -1, 0, -1]].any() and turned[50, 50] == 200


def test_inversion_swaps_black_and_white():
    np.testing.assert_array_equal(corrupt(ramp(), "inversion", 1)[0, 0, :, 0], np.arange(255, -1, -1))


def test_inverting_twice_changes_nothing(film):
    np.testing.assert_array_equal(corrupt(corrupt(film, "inversion", 1), "inversion", 1), film)


def test_a_border_is_black_and_nothing_else_changes(film):
    for severity, share in enumerate((0.02, 0.04, 0.06, 0.08, 0.10), start=1):
        framed, width = corrupt(film, "border", severity)[0, ..., 0], round(224 * share)
        inside = (slice(width, 224 - width),) * 2
        np.testing.assert_array_equal(framed[inside], film[0, ..., 0][inside])
        framed[inside] = 0
        assert not framed.any()


def test_a_marker_is_white_and_stands_in_an_upper_corner():
    corners = set()
    for severity, share in enumerate((0.04, 0.06, 0.08, 0.10, 0.14), start=1):
        for seed in range(6):
            marked = corrupt(flat(60, size=224), "marker", severity, seed)[0, ..., 0]
            rows, columns = np.nonzero(marked != 60)
            assert marked.max() > 220 and marked.min() == 60
            assert rows.max() < 60 and (columns.max() < 60 or columns.min() > 160)
            assert 0.4 < (np.ptp(rows) + 1) / (share * 224) < 1.2
            corners.add(bool(columns.max() < 60))
    assert corners == {True, False}


@pytest.mark.parametrize(
    ("name", "severity"), [("fog", 1), ("jpeg", 0), ("jpeg", 6), ("jpeg", -1), ("inversion", 2), ("JPEG", 1)]
)
def test_what_does_not_exist_is_refused(name, severity):
    with pytest.raises(NotFound, match=rf"no corruption '{name}' of severity {severity}\. Fix: "):
        corrupt(flat(0), name, severity)
