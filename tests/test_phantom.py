import re
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
from conftest import run_python, start_python
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import median_filter
from sklearn.metrics import roc_auc_score

from xraylib.datasets import phantom
from xraylib.datasets.manifest import patient_and_kind
from xraylib.datasets.phantom import PhantomSettings, simulate, write
from xraylib.errors import InvalidDataError

NAME = re.compile(r"((?:NORMAL2-)?IM-\d{4})-\d{4}|person(\d+)_(bacteria|virus)_\d+")
SMALL = PhantomSettings(images=240, size=64)
TINY = PhantomSettings(images=20, size=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("phantom") / "small", SMALL)


def images(folder):
    return sorted(folder.rglob("*.jpeg"))


def pixels(path):
    return np.asarray(Image.open(path))


def content(folder):
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def pneumonia(path):
    return path.parent.name == "PNEUMONIA"


def patient(path):
    return patient_and_kind(path.name)[0]


def test_layout_names_and_proportions_are_those_of_the_kermany_data(folder):
    found = images(folder)
    assert len(found) == SMALL.images
    for path in found:
        match = NAME.fullmatch(path.stem)
        assert match and (match[2] is not None) == pneumonia(path)
    parts = Counter(path.parts[-3:-1] for path in found)
    assert len(parts) == 6
    for split, share in (("train", 0.74), ("test", 0.62)):
        positives = parts[split, "PNEUMONIA"]
        assert positives / (positives + parts[split, "NORMAL"]) == pytest.approx(share, abs=0.02)
    kinds = Counter(NAME.fullmatch(path.stem)[3] for path in found if pneumonia(path))
    assert kinds["bacteria"] / kinds.total() == pytest.approx(0.65, abs=0.03)


def test_every_patient_has_a_number_of_their_own_and_stays_in_one_split(folder):
    splits = defaultdict(set)
    kinds = defaultdict(set)
    sizes = Counter()
    for path in images(folder):
        splits[patient(path)].add(path.parts[-3])
        kinds[patient(path)].add(patient_and_kind(path.name)[1])
        sizes[patient(path)] += 1
    assert all(len(values) == 1 for values in (*splits.values(), *kinds.values()))
    assert 1 < max(sizes.values()) <= 5
    numbers = [int(re.search("[0-9]+", name)[0]) for name in splits]
    assert sorted(numbers) == list(range(2002, 2002 + len(splits)))
    # The numbers of a split lie among those of the others, and none is one of Kermany's test.
    of_test = [n for n, where in zip(numbers, splits.values(), strict=True) if where == {"test"}]
    assert min(of_test) < 2100 < max(of_test)
    assert not any(name.startswith("test-") for name in splits)


def test_every_pneumonia_and_no_normal_has_a_mask(folder):
    found = images(folder)
    masks = sorted((folder / "masks").rglob("*.png"))
    assert {mask.stem for mask in masks} == {path.stem for path in found if pneumonia(path)}
    for mask, path in zip(masks, sorted(path for path in found if pneumonia(path)), strict=True):
        lesion = np.asarray(Image.open(mask))
        assert lesion.shape == pixels(path).shape and set(np.unique(lesion)) == {0, 255}


def marker_signal(image):
    """How much the brightest detail of the upper left corner stands out from its surroundings."""
    corner = image[: image.shape[0] // 3, : image.shape[1] // 4].astype(float)
    return np.sort((corner - median_filter(corner, 9)).ravel())[-5:].mean()


def test_framing_is_shifted_as_in_kermanys_folders_unless_told_otherwise(folder, tmp_path):
    aspects = {}
    for path in images(folder):
        height, width = pixels(path).shape
        aspects.setdefault((path.parts[-3], pneumonia(path)), []).append(width / height)
    mean = {where: np.mean(values) for where, values in aspects.items()}
    assert mean["train", False] < mean["test", False] - 0.05 < mean["test", True] - 0.1
    assert mean["test", True] == pytest.approx(mean["train", True], abs=0.05)
    whole = images(write(tmp_path / "p", replace(TINY, framing_shift=False)))
    assert {pixels(path).shape for path in whole} == {(TINY.size, TINY.size)}


def test_but_for_the_framing_single_features_do_not_tell_the_classes_apart(tmp_path):
    found = images(write(tmp_path / "p", replace(SMALL, framing_shift=False)))
    labels = [pneumonia(path) for path in found]
    for score in (
        [pixels(path).mean() for path in found],
        [pixels(path).std() for path in found],
        [path.stat().st_size for path in found],
        [marker_signal(pixels(path)) for path in found],
    ):
        assert 0.25 < roc_auc_score(labels, score) < 0.75


@pytest.mark.slow
def test_same_settings_give_the_same_bytes_in_another_process_with_one_worker(tmp_path):
    code = (
        "import sys; from xraylib.datasets import phantom; phantom._WORKERS = 1;"
        "phantom.write(sys.argv[1], phantom.PhantomSettings(images=20, size=32))"
    )
    run_python(code, tmp_path / "a")
    here = content(write(tmp_path / "b", TINY))
    assert content(tmp_path / "a") == here
    other = content(write(tmp_path / "c", replace(TINY, seed=1)))
    assert not set(here.values()) & set(other.values())


def test_pixels_are_those_of_version_4():
    # What is written about the phantom rests on them: raise VERSION when they change.
    image, mask = simulate("bacteria", 1, 2, size=64)
    tiles = [[44, 116, 102, 26], [121, 154, 146, 113], [79, 180, 202, 82], [119, 237, 225, 62]]
    np.testing.assert_allclose(image.reshape(4, 16, 4, 16).mean(axis=(1, 3)), tiles, atol=1)
    assert (mask > 0).sum() == pytest.approx(129, abs=2)


@pytest.mark.slow
def test_two_processes_may_write_the_same_folder_at_once(tmp_path):
    code = (
        "import sys; from xraylib.datasets import phantom;"
        "phantom.write(sys.argv[1], phantom.PhantomSettings(20, 32))"
    )
    both = [start_python(code, tmp_path / "p") for _ in range(2)]
    for process in both:
        process.communicate(timeout=60)
    assert [process.returncode for process in both] == [0, 0]
    assert len(images(tmp_path / "p")) == 20


def test_a_complete_folder_is_left_alone_and_any_other_is_written_anew(tmp_path):
    folder = write(tmp_path / "p", TINY)
    first = images(folder)[0]
    made = first.stat().st_mtime_ns
    write(folder, TINY)
    assert first.stat().st_mtime_ns == made
    first.unlink()
    write(folder, TINY)
    assert first.exists()
    write(folder, replace(TINY, size=40))
    assert {pixels(path).shape[1] for path in images(folder)} == {40}


def test_what_cannot_be_written_is_refused_and_nothing_is_lost(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InvalidDataError, match="other files"):
        write(tmp_path, TINY)
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    for wrong in ({"images": 19}, {"size": 27}):
        with pytest.raises(InvalidDataError, match="too small"):
            write(tmp_path / "p", replace(TINY, **wrong))
    assert not (tmp_path / "p").exists()


def test_the_key_names_the_settings():
    several = (TINY, SMALL, replace(TINY, seed=1), replace(TINY, framing_shift=False))
    assert len({settings.key for settings in several}) == 4
    assert TINY.key == PhantomSettings(images=20, size=32).key
    assert PhantomSettings().key == "81e632672194"


@settings(max_examples=15, deadline=None)
@given(
    kind=st.sampled_from(["normal", "bacteria", "virus"]),
    patient_seed=st.integers(0, 2**40),
    image_seed=st.lists(st.integers(0, 2**20), min_size=1, max_size=3),
    size=st.integers(28, 97),
)
def test_any_seed_and_size_gives_an_image_and_a_mask_for_a_lesion_alone(
    kind, patient_seed, image_seed, size
):
    image, mask = simulate(kind, patient_seed, image_seed, size)
    assert image.shape == mask.shape == (size, size)
    assert image.dtype == mask.dtype == np.uint8
    assert np.ptp(image) > 100
    assert mask.any() == (kind != "normal")


def test_lungs_are_dark_heart_and_abdomen_bright():
    for seed in range(6):
        image, n = simulate("normal", seed, seed)[0], 224
        lung = image[int(0.4 * n) : int(0.5 * n), int(0.22 * n) : int(0.3 * n)].mean()
        heart = image[int(0.53 * n) : int(0.6 * n), int(0.5 * n) : int(0.62 * n)].mean()
        abdomen = image[int(0.9 * n) :, int(0.3 * n) : int(0.5 * n)].mean()
        assert heart > lung + 30 and abdomen > lung + 60


def test_the_lesion_brightens_the_image_where_the_mask_is():
    for kind in ("bacteria", "virus"):
        gains = []
        for seed in range(10):
            image, mask = simulate(kind, seed, seed)
            change = image.astype(float) - simulate("normal", seed, seed)[0]
            gains.append(change[mask > 0].mean() - change[mask == 0].mean())
        assert min(gains) > 3 and max(gains) > 2 * min(gains), (
            f"{kind} varies from subtle to obvious"
        )


def test_images_of_one_child_show_the_same_lesion_in_another_position():
    for seed in range(4):
        (first, mask), (second, moved) = (simulate("bacteria", seed, image) for image in (1, 2))
        assert not np.array_equal(first, second)
        a, b = (np.argwhere(m).mean(axis=0) / len(m) for m in (mask, moved))
        assert 0 < np.abs(a - b).max() < 0.25
        assert 0.5 < mask.mean() / moved.mean() < 2


def test_markers_are_on_their_side_of_the_image(monkeypatch):
    # Image seeds 3 and 4 draw the markers R and L.
    marked = {seed: simulate("normal", 3, seed)[0].astype(float) for seed in (3, 4)}
    for marker in "LR":
        monkeypatch.setitem(phantom._LETTERS, marker, [])
    for seed, left in ((3, True), (4, False)):
        bare, _ = simulate("normal", 3, seed)
        change = marked[seed] - bare
        column = np.unravel_index(change.argmax(), change.shape)[1]
        assert change.max() > 60
        assert (column < len(bare) / 2) == left
