"""Images in shards: the pixels and the training are those of files, and damage is named."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import run_python

from xraylib.cli import main
from xraylib.datasets import audit, images, manifest, shards, verify
from xraylib.datasets.manifest import load
from xraylib.datasets.phantom import PhantomSettings, write
from xraylib.errors import InvalidDataError
from xraylib.training import train as training
from xraylib.training.recipes import Phase, get_recipe
from xraylib.training.train import Progress, train

PEAK = """
import re, sys, numpy as np
from pathlib import Path
from xraylib.datasets import shards
stored = shards.Shards(Path(sys.argv[1]), 224)
rows = np.random.default_rng(0).permutation(len(stored))
for start in range(0, len(rows), 32):
    stored[rows[start : start + 32]]
peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
print(peak, "tensorflow" in sys.modules)
"""


@pytest.fixture(scope="module")
def folder(phantom, tmp_path_factory):
    place = tmp_path_factory.mktemp("shards")
    shards.write(phantom, 28, place, images.decoded, images_per_shard=25)
    return place


def test_a_folder_of_shards_is_the_data_set_it_was_written_from(phantom, folder):
    table = load(folder)
    stored = images.load_pixels(table, 28)
    pixels = images.load_pixels(phantom, 28)
    assert table.drop(columns="path").equals(phantom.drop(columns="path"))
    assert stored.shape == pixels.shape and len(list(folder.glob("*.arrayrecord"))) > 1
    for rows in (slice(3, 60), np.array([40, 2, 2]), np.arange(len(table)) % 3 == 0, 5):
        np.testing.assert_array_equal(stored[rows], pixels[rows])
    np.testing.assert_array_equal(np.asarray(stored), pixels)
    with pytest.raises(InvalidDataError, match=r"other .* than the manifest\. Fix: "):
        images.load_pixels(table[:-1], 28)
    with pytest.raises(InvalidDataError, match=r"no files to describe\. Fix: "):
        audit.file_properties(table)


def test_what_was_cut_goes_on_after_the_last_whole_shard(phantom, folder, tmp_path, capsys):
    decoded = []

    def once(part, size):
        decoded.append(len(part))
        if len(decoded) == 3:
            raise KeyboardInterrupt
        return images.decoded(part, size)

    with pytest.raises(KeyboardInterrupt):
        shards.write(phantom, 28, tmp_path, once, images_per_shard=25)
    with pytest.raises(InvalidDataError, match=r"no whole set of shards.*Fix: "):
        shards.read_manifest(tmp_path)
    done = len(decoded) - 1
    shards.write(phantom, 28, tmp_path, once, images_per_shard=25)
    assert len(decoded) - 1 - done == len(list(folder.glob("*.arrayrecord"))) - 2
    assert [file.read_bytes() for file in sorted(tmp_path.glob("shard*"))] == [
        file.read_bytes() for file in sorted(folder.glob("shard*"))
    ]
    with pytest.raises(InvalidDataError, match=r"other images or another size\. Fix: "):
        shards.write(phantom, 32, tmp_path, images.decoded, images_per_shard=25)
    with pytest.raises(InvalidDataError, match=r"other images or another size\. Fix: "):
        shards.write(phantom[:50], 28, tmp_path, images.decoded, images_per_shard=25)
    assert len(shards.read_manifest(tmp_path)) == len(phantom)


def settings_of(folder):
    return json.loads((folder / "shards.json").read_text())


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.mark.parametrize("harm", ["cut", "gone", "bytes", "garbage", "table", "no table"])
def test_what_is_damaged_is_named(copy, harm):
    victim = copy / "shard-00001.arrayrecord"
    content = bytearray(victim.read_bytes())
    if harm == "cut":
        victim.write_bytes(content[:-100])
    elif harm == "gone":
        victim.unlink()
    elif harm == "bytes":
        content[2000:2100] = bytes(100)
        victim.write_bytes(content)
    elif harm == "garbage":
        victim.write_bytes(b"garbage " * (len(content) // 8) + b"g" * (len(content) % 8))
    elif harm == "table":
        (copy / "images.csv").write_text("image_id,label\n")
    else:
        (copy / "images.csv").unlink()
    with pytest.raises(InvalidDataError, match=r"Fix: ") as failure:
        pixels = images.load_pixels(load(copy), 28)
        pixels[:]
    assert str(copy) in str(failure.value)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 99},
        {"size": "28"},
        {"shards": None},
        {"shards": {"../outside/shard-00000.arrayrecord": 1}},
        {"shards": {"/etc/passwd": 1}},
    ],
)
def test_settings_that_are_not_ours_are_refused_and_no_other_file_is_opened(copy, change):
    (copy / "shards.json").write_text(json.dumps(settings_of(copy) | change))
    with pytest.raises(InvalidDataError, match=r"Fix: "):
        shards.Shards(copy, 28)


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", "{"])
def test_settings_that_are_no_settings_are_refused(copy, content):
    (copy / "shards.json").write_text(content)
    with pytest.raises(InvalidDataError, match=r"copy.*Fix: "):
        load(copy)


def test_other_sizes_and_commands_for_files_say_what_to_do(folder):
    message = r"holds images of 28 pixels, 64 are asked for\. Fix: .*--size 64"
    with pytest.raises(InvalidDataError, match=message):
        shards.Shards(folder, 64)
    with pytest.raises(InvalidDataError, match=r"holds shards, not image files\. Fix: "):
        verify.verify(folder)


def test_a_data_folder_is_not_turned_into_shards_nor_is_a_size_of_nothing(tmp_path, capsys):
    own = write(tmp_path / "own", PhantomSettings(images=20, size=32))
    before = sorted(own.rglob("*"))
    assert main(["data", "shard", str(own), str(own)]) == 1
    assert "holds the images themselves" in capsys.readouterr().err
    assert sorted(own.rglob("*")) == before
    for size in ("0", "-5"):
        with pytest.raises(SystemExit) as stopped:
            main(["data", "shard", str(own), str(tmp_path / "out"), "--size", size])
        assert stopped.value.code == 2
        assert "--size" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_writes_shards_that_hold_a_folder_too(capsys, tmp_path):
    assert main(["data", "shard", "phantom", str(tmp_path / "out"), "--size", "32"]) == 0
    assert "--dataset" in capsys.readouterr().out
    assert len(manifest.load(tmp_path / "out")) == len(manifest.load("phantom"))


@pytest.mark.slow
def test_training_from_shards_broken_within_an_epoch_ends_as_from_files_unbroken(
    phantom, folder, accelerator, places, monkeypatch
):
    recipe = replace(get_recipe("tiny-cnn-28"), batch_size=8, phases=(Phase(2, 1e-3),))
    whole = train(recipe, phantom, accelerator)
    save, breaks = Progress._save, []

    def save_and_break(self, **options):
        save(self, **options)
        if len(breaks) < 3 and self.parts:
            breaks.append(self.step)
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "CHECKPOINT_STEPS", 1)
    monkeypatch.setattr(Progress, "_save", save_and_break)
    run = None
    while run is None:
        try:
            run = train(recipe, load(folder), accelerator)
        except KeyboardInterrupt:
            assert len(breaks) < 4
    assert breaks == [1, 2, 3]
    assert run.settings["dataset"] != whole.settings["dataset"]
    np.testing.assert_array_equal(run.scores["score"], whole.scores["score"])
    np.testing.assert_allclose(run.history["loss"], whole.history["loss"], rtol=1e-6)


@pytest.mark.slow
def test_twenty_times_the_images_take_no_more_memory(phantom, tmp_path):
    rng, peaks = np.random.default_rng(0), {}
    for times in (1, 20):
        table = phantom.iloc[np.resize(np.arange(len(phantom)), 120 * times)].reset_index(drop=True)
        noise = rng.integers(0, 256, (224, 224), dtype=np.uint8)
        shards.write(
            table,
            224,
            tmp_path / str(times),
            lambda part, _, noise=noise: [noise] * len(part),
            images_per_shard=500,
        )
        said = run_python(PEAK, tmp_path / str(times))
        peaks[times], loaded = int(said.split()[0]), said.split()[1]
        assert loaded == "False", "TensorFlow"
    assert peaks[20] < 1.25 * peaks[1], "2,400 images are 120 MB; a shard costs some, an image none"
