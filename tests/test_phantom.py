import re
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import median_filter
from sklearn.metrics import roc_auc_score

from xraylib.datasets.phantom import PhantomSettings, simulate, write
from xraylib.storage import DataInvalid, Failed, NotFound

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


def sick(path):
    return path.parent.name == "PNEUMONIA"


def patient(path):
    normal, person, kind = NAME.fullmatch(path.stem).groups()
    return normal or (person, kind)


def test_layout_names_and_proportions_are_those_of_the_kermany_data(folder):
    found = images(folder)
    assert len(found) == SMALL.images
    assert {f"{path.parts[-3]}/{path.parts[-2]}" for path in found} == {
        f"{split}/{label}" for split in ("train", "val", "test") for label in ("NORMAL", "PNEUMONIA")
    }
    for path in found:
        match = NAME.fullmatch(path.stem)
        assert match, path
        assert (match[2] is not None) == sick(path)
    share = {
        split: np.mean([sick(path) for path in found if path.parts[-3] == split])
        for split in ("train", "test")
    }
    assert share["train"] == pytest.approx(0.74, abs=0.02)
    assert share["test"] == pytest.approx(0.62, abs=0.02)
    kinds = Counter(NAME.fullmatch(path.stem)[3] for path in found if sick(path))
    assert kinds["bacteria"] / kinds.total() == pytest.approx(0.65, abs=0.03)


def test_default_has_600_images_with_an_official_val_of_8_and_8(tmp_path):
    assert PhantomSettings().images == 600
    folder = write(tmp_path / "p", replace(PhantomSettings(), size=28))
    split = Counter(path.parts[-3:-1] for path in images(folder))
    assert split["val", "NORMAL"] == split["val", "PNEUMONIA"] == 8
    assert split["train", "NORMAL"] + split["train", "PNEUMONIA"] == 430
    assert split.total() == 600


def test_patients_stay_in_one_split_but_bare_numbers_recur(folder):
    splits, films, numbers = defaultdict(set), Counter(), defaultdict(set)
    for path in images(folder):
        splits[patient(path)].add(path.parts[-3])
        films[patient(path)] += 1
        if sick(path):
            numbers[path.parts[-3]].add(patient(path)[0])
    assert all(len(found) == 1 for found in splits.values())
    assert set(films.values()) <= {1, 2, 3, 4, 5}
    assert max(films.values()) > 1
    assert numbers["train"] & numbers["test"]


def test_every_pneumonia_and_no_normal_has_a_mask(folder):
    expected = {f"{path.parts[-3]}/{path.stem}" for path in images(folder) if sick(path)}
    masks = list((folder / "masks").rglob("*.png"))
    assert {f"{path.parent.name}/{path.stem}" for path in masks} == expected
    for path in masks:
        mask = pixels(path)
        assert mask.shape == (SMALL.size, SMALL.size)
        assert set(np.unique(mask)) == {0, 255}


def test_trivial_scores_do_not_tell_the_classes_apart(folder):
    found = images(folder)
    labels = [sick(path) for path in found]
    for score in (
        [pixels(path).mean() for path in found],
        [pixels(path).std() for path in found],
        [path.stat().st_size for path in found],
        [marker_signal(pixels(path)) for path in found],
    ):
        assert 0.25 < roc_auc_score(labels, score) < 0.75


def marker_signal(image):
    """How much the brightest detail of the upper left corner stands out from its surroundings."""
    corner = image[: image.shape[0] // 3, : image.shape[1] // 4].astype(float)
    return np.sort((corner - median_filter(corner, 9)).ravel())[-5:].mean()


def test_marker_can_be_made_to_follow_the_label(tmp_path):
    planted = replace(SMALL, images=120, marker_follows_label=True)
    found = images(write(tmp_path / "p", planted))
    score = [marker_signal(pixels(path)) for path in found]
    assert roc_auc_score([sick(path) for path in found], score) > 0.85


def test_same_settings_give_the_same_bytes_in_another_process_with_one_worker(tmp_path):
    code = (
        "import sys; from xraylib import phantom; phantom._WORKERS = 1;"
        f"phantom.write(sys.argv[1], phantom.PhantomSettings(images={TINY.images}, size={TINY.size}))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=True)
    here = content(write(tmp_path / "b", TINY))
    assert content(tmp_path / "a") == here
    other = content(write(tmp_path / "c", replace(TINY, seed=1)))
    assert not set(here.values()) & set(other.values())


def test_two_processes_may_write_the_same_folder_at_once(tmp_path):
    code = "import sys; from xraylib import phantom as p; p.write(sys.argv[1], p.PhantomSettings(20, 32))"
    command = [sys.executable, "-c", code, str(tmp_path / "p")]
    both = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert len(images(tmp_path / "p")) == 20


def test_a_complete_folder_is_left_alone_and_an_incomplete_one_is_mended(tmp_path):
    folder = write(tmp_path / "p", TINY)
    first = images(folder)[0]
    made = first.stat().st_mtime_ns
    write(folder, TINY)
    assert first.stat().st_mtime_ns == made
    first.unlink()
    write(folder, TINY)
    assert first.exists()


def test_other_settings_replace_the_phantom(tmp_path):
    folder = write(tmp_path / "p", TINY)
    write(folder, replace(TINY, size=40))
    assert {pixels(path).shape for path in images(folder)} == {(40, 40)}


def test_a_folder_with_other_files_is_refused_and_kept(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(DataInvalid, match="other files"):
        write(tmp_path, TINY)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Failed, match="file"):
        write(tmp_path / "file" / "p", TINY)


@pytest.mark.parametrize("wrong", [{"images": 19}, {"size": 27}])
def test_settings_too_small_are_refused(tmp_path, wrong):
    with pytest.raises(DataInvalid, match="too small"):
        write(tmp_path / "p", replace(TINY, **wrong))
    assert not (tmp_path / "p").exists()


def test_key_names_the_settings():
    keys = {
        settings.key
        for settings in (TINY, SMALL, replace(TINY, seed=1), replace(TINY, marker_follows_label=True))
    }
    assert len(keys) == 4
    assert TINY.key == PhantomSettings(images=20, size=32).key
    assert re.fullmatch("[0-9a-f]{12}", TINY.key)


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(["normal", "bacteria", "virus"]),
    patient_seed=st.integers(0, 2**40),
    image_seed=st.lists(st.integers(0, 2**20), min_size=1, max_size=3),
    size=st.integers(28, 97),
)
def test_any_seed_and_size_gives_a_film_and_a_mask_for_a_lesion_alone(kind, patient_seed, image_seed, size):
    image, mask = simulate(kind, patient_seed, image_seed, size)
    assert image.shape == mask.shape == (size, size)
    assert image.dtype == mask.dtype == np.uint8
    assert np.ptp(image) > 100
    assert mask.any() == (kind != "normal")


def regions(image):
    """Mean grey of the right lung, the heart and the abdomen, as thirds of the field show them."""
    n = len(image)
    lung = image[int(0.4 * n) : int(0.5 * n), int(0.22 * n) : int(0.3 * n)]
    heart = image[int(0.53 * n) : int(0.6 * n), int(0.5 * n) : int(0.62 * n)]
    abdomen = image[int(0.9 * n) :, int(0.3 * n) : int(0.5 * n)]
    return lung.mean(), heart.mean(), abdomen.mean()


def test_lungs_are_dark_heart_and_abdomen_bright():
    means = np.array([regions(simulate("normal", seed, seed)[0]) for seed in range(12)])
    lung, heart, abdomen = means.T
    assert (heart > lung + 30).all()
    assert (abdomen > lung + 60).all()


def test_the_lesion_brightens_the_film_where_the_mask_is():
    for kind in ("bacteria", "virus"):
        gains = []
        for seed in range(20):
            image, mask = simulate(kind, seed, seed)
            healthy, _ = simulate("normal", seed, seed)
            change = image.astype(float) - healthy
            gains.append(change[mask > 0].mean() - change[mask == 0].mean())
        assert min(gains) > 3, kind
        assert max(gains) > 2 * min(gains), f"{kind} should vary from subtle to obvious"


def test_films_of_one_child_show_the_same_lesion_in_another_position():
    for seed in range(6):
        (first, mask), (second, moved) = (simulate("bacteria", seed, image) for image in (1, 2))
        assert not np.array_equal(first, second)
        a, b = (np.argwhere(m).mean(axis=0) / len(m) for m in (mask, moved))
        assert 0 < np.abs(a - b).max() < 0.25
        assert 0.5 < mask.mean() / moved.mean() < 2


def test_side_markers_stand_on_their_side():
    bare, _ = simulate("normal", 3, 3, marker="")
    for marker, left in (("R", True), ("L", False)):
        image, _ = simulate("normal", 3, 3, marker=marker)
        change = image.astype(float) - bare
        column = np.unravel_index(change.argmax(), change.shape)[1]
        assert change.max() > 60
        assert (column < len(image) / 2) == left


def test_unknown_kinds_and_markers_are_named():
    with pytest.raises(NotFound, match="fungus"):
        simulate("fungus", 0, 0)
    with pytest.raises(NotFound, match="X"):
        simulate("normal", 0, 0, marker="X")


def test_importing_needs_no_deep_learning_library():
    code = "import sys, xraylib.datasets.phantom; sys.exit('keras' in sys.modules or 'tensorflow' in sys.modules)"
    root = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
