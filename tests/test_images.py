import hashlib
import io
import os
import re
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageFile

from xraylib.datasets import images
from xraylib.storage import DataInvalid, Failed, NotFound

RAMP = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (48, 1))


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def texture(seed, side=40):
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))


def folder(where, count, side=40):
    """A manifest over `count` JPEGs, every second one a pneumonia."""
    where.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        path = where / f"{number:04d}.jpeg"
        path.write_bytes(encoded(texture(number, side), "JPEG", quality=90))
        rows.append(manifest_row(path, label=number % 2))
    return pd.DataFrame(rows)


def manifest_row(path, label, kind=None):
    return {
        "image_id": path.stem,
        "path": str(path),
        "label": label,
        "patient": path.stem,
        "kind": kind or ("virus" if label else "normal"),
        "split": "train",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


def python(script, *arguments):
    here = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def answer(process):
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out


@settings(max_examples=60, deadline=None)
@given(
    mode=st.sampled_from(["L", "LA", "RGB", "RGBA", "P", "1", "I;16"]),
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    size=st.none() | st.integers(1, 50),
)
def test_a_ramp_of_any_mode_and_size_stays_a_ramp(tmp_path_factory, mode, width, height, size):
    ramp = np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1))
    image = Image.fromarray(ramp.astype(np.uint16) * 257 if mode == "I;16" else ramp)
    path = tmp_path_factory.mktemp("ramp") / "film.png"
    # Without dithering, which would scatter the ramp's grays over black and white.
    image = image if mode == "I;16" else image.convert(mode, dither=Image.Dither.NONE)
    path.write_bytes(encoded(image))
    gray = images.read_gray(path, size)
    assert gray.shape == ((height, width) if size is None else (size, size))
    assert gray.dtype == np.uint8
    assert (np.diff(gray.astype(int), axis=1) >= 0).all()
    if size is None and mode != "1":
        np.testing.assert_array_equal(gray, ramp)


def test_sixteen_bits_fill_eight(tmp_path):
    values = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    path = tmp_path / "film.png"
    path.write_bytes(encoded(values))
    np.testing.assert_array_equal(images.read_gray(path), [[0, 1, 128, 255]])


def test_twelve_bits_in_sixteen_are_refused_rather_than_read_as_black(tmp_path):
    path = tmp_path / "film.png"
    path.write_bytes(encoded(np.full((8, 8), 4000, dtype=np.uint16)))
    with pytest.raises(DataInvalid, match=r"film\.png.*4000 of 65535.*Fix: rescale"):
        images.read_gray(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_exif_orientation_is_applied(tmp_path, kind, orientation, turns):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "film"
    path.write_bytes(encoded(RAMP, kind, exif=exif))
    assert np.abs(images.read_gray(path).astype(int) - np.rot90(RAMP, turns)).max() <= 3


def test_transparent_is_black_and_cmyk_keeps_its_white(tmp_path):
    clear, printed = tmp_path / "clear.png", tmp_path / "printed.jpeg"
    clear.write_bytes(encoded(Image.new("RGBA", (4, 4), (255, 255, 255, 0))))
    printed.write_bytes(encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG"))
    assert images.read_gray(clear).max() == 0
    assert images.read_gray(printed).min() >= 250


def test_scaling_while_decoding_gives_the_same_picture(tmp_path):
    path = tmp_path / "film.jpeg"
    path.write_bytes(encoded(texture(1, 1100), "JPEG", quality=95))
    whole = Image.fromarray(images.read_gray(path)).resize((128, 128), Image.Resampling.BILINEAR)
    assert np.abs(images.read_gray(path, 128).astype(int) - np.asarray(whole)).mean() < 1


def announcing(width, height):
    """A small PNG whose header announces `width` x `height` pixels."""
    content = bytearray(encoded(RAMP))
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def animation():
    return encoded(RAMP, save_all=True, append_images=[Image.fromarray(RAMP[::-1, ::-1].copy())])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.jpeg", b"", "empty"),
        ("page.jpeg", b"<html>not found</html>", "neither JPEG nor PNG"),
        ("film.gif", encoded(RAMP, "GIF"), "neither JPEG nor PNG"),
        ("film.dcm", b"\0" * 200, "DICOM.*export it as an 8-bit PNG"),
        ("noname", b"\0" * 128 + b"DICM", "DICOM.*export it as an 8-bit PNG"),
        ("header.png", encoded(RAMP)[:8] + b"?" * 40, "damaged"),
        ("loop.png", animation(), "animation"),
        ("bomb.png", announcing(8000, 7000), "8000 x 7000 pixels"),
        ("huge.png", announcing(20000, 20000), "more than 50,000,000 pixels"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else value,
)
def test_what_is_no_radiograph_is_refused_by_name_with_a_mend(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataInvalid, match=rf"{re.escape(name)}: .*{words}") as refused:
        images.read_gray(tmp_path / name, 32)
    assert "Fix:" in str(refused.value)


def test_a_missing_file_a_folder_and_an_enormous_file_are_refused(tmp_path):
    with pytest.raises(NotFound, match=r"gone\.png"):
        images.read_gray(tmp_path / "gone.png")
    with pytest.raises(DataInvalid, match="not a regular file"):
        images.read_gray(tmp_path)
    with (tmp_path / "long.png").open("wb") as file:
        file.truncate(300_000_000)
    with pytest.raises(DataInvalid, match="300,000,000 bytes"):
        images.read_gray(tmp_path / "long.png")


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(["JPEG", "PNG"]),
    share=st.floats(0, 1, exclude_max=True),
    size=st.sampled_from([None, 16]),
)
def test_no_truncated_file_is_ever_read(tmp_path_factory, kind, share, size):
    content = encoded(texture(3, 64), kind)
    path = tmp_path_factory.mktemp("cut") / "film"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataInvalid):
        images.read_gray(path, size)


def test_a_library_that_told_pillow_to_guess_is_noticed(tmp_path, monkeypatch):
    path = tmp_path / "film.jpeg"
    path.write_bytes(encoded(RAMP, "JPEG"))
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(DataInvalid, match="LOAD_TRUNCATED_IMAGES back to False"):
        images.read_gray(path)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), kind=st.sampled_from(["JPEG", "PNG"]))
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_bytes_give_an_array_or_a_clear_error(tmp_path_factory, data, kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    content = bytearray(encoded(RAMP, kind, exif=exif))
    for place in data.draw(st.lists(st.integers(3, len(content) - 1), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "film"
    path.write_bytes(content)
    try:
        assert images.read_gray(path, 16).shape == (16, 16)
    except DataInvalid as error:
        assert str(path) in str(error)


def bad_folder(where):
    """Twelve good files and one of each problem."""
    manifest = folder(where, 12)
    good = Path(manifest["path"][0]).read_bytes()
    extra = {
        "broken": (b"no image", 0, "normal"),
        "cut": (good[:-200], 0, "normal"),
        "large": (announcing(8000, 7000), 0, "normal"),
        "person1_bacteria_1": (encoded(texture(90)), 0, "bacteria"),
        "twin_a": (encoded(texture(91)), 0, "normal"),
        "twin_b": (encoded(texture(91)), 1, "virus"),
        "copy": (good, 0, "normal"),
        "gone": (encoded(texture(92)), 0, "normal"),
        "changed": (encoded(texture(93)), 0, "normal"),
    }
    rows = []
    for name, (content, label, kind) in extra.items():
        path = where / f"{name}.png"
        path.write_bytes(content)
        rows.append(manifest_row(path, label, kind))
    (where / "gone.png").unlink()
    (where / "changed.png").write_bytes(encoded(texture(94)))
    return pd.concat([manifest, pd.DataFrame(rows)], ignore_index=True)


def test_audit_finds_every_problem_and_goes_on(tmp_path):
    findings = images.audit(bad_folder(tmp_path / "films"), progress=False)
    assert dict(zip(findings["image_id"], findings["problem"], strict=True)) == {
        "broken": "unreadable",
        "cut": "truncated",
        "large": "oversized",
        "person1_bacteria_1": "mislabelled",
        "twin_a": "conflict",
        "twin_b": "conflict",
        "copy": "duplicate",
        "gone": "missing",
        "changed": "changed",
    }
    assert findings.loc[~findings["quarantine"], "image_id"].tolist() == ["copy"]
    of = findings.set_index("image_id")["of"]
    assert (of["copy"], of["twin_a"], of["twin_b"], of["cut"]) == ("0000", "twin_b", "twin_a", "")


def test_the_quarantine_list_comes_back_without_plain_duplicates(tmp_path):
    findings = images.audit(bad_folder(tmp_path / "films"), progress=False)
    images.write_quarantine(findings, tmp_path / "quarantine.csv")
    assert images.read_quarantine(tmp_path / "quarantine.csv") == set(findings["image_id"]) - {"copy"}


def test_a_clean_folder_gives_an_empty_list_that_passes(tmp_path):
    findings = images.audit(folder(tmp_path / "films", 3), progress=False)
    images.check_audit(findings, 3)
    images.write_quarantine(findings, tmp_path / "quarantine.csv")
    assert images.read_quarantine(tmp_path / "quarantine.csv") == set()


def test_too_many_bad_files_are_an_error_with_counts_and_names(tmp_path):
    manifest = bad_folder(tmp_path / "films")
    findings = images.audit(manifest, progress=False)
    images.check_audit(findings, len(manifest), max_bad_fraction=8 / 21)
    with pytest.raises(DataInvalid, match=r"8 of 21 images.*2 conflict.*broken\.png"):
        images.check_audit(findings, len(manifest), max_bad_fraction=0.3)


def test_a_missing_or_foreign_quarantine_list_is_an_error(tmp_path):
    with pytest.raises(NotFound, match="data audit"):
        images.read_quarantine(tmp_path / "none.csv")
    (tmp_path / "other.csv").write_text("image_id,quarantine\na,perhaps\n")
    with pytest.raises(DataInvalid, match=r"other\.csv"):
        images.read_quarantine(tmp_path / "other.csv")


def test_pixels_are_decoded_once(tmp_path):
    manifest = folder(tmp_path / "films", 5)
    expected = np.stack([images.read_gray(path, 24) for path in manifest["path"]])[..., None]
    first = images.load_pixels(manifest, 24, cache=tmp_path / "cache", progress=False)
    for path in manifest["path"]:
        Path(path).unlink()
    again = images.load_pixels(manifest.assign(split="test"), 24, cache=tmp_path / "cache", progress=False)
    assert first.dtype == np.uint8 and not again.flags.writeable
    np.testing.assert_array_equal(first, expected)
    np.testing.assert_array_equal(again, expected)
    with pytest.raises(NotFound):
        images.load_pixels(manifest, 25, cache=tmp_path / "cache", progress=False)


def test_the_fingerprint_tells_content_and_order_but_not_split(tmp_path):
    manifest = folder(tmp_path, 3)
    name = images.fingerprint(manifest)
    assert len(name) == 16 and int(name, 16) >= 0
    assert images.fingerprint(manifest.assign(split="val", label=0)) == name
    others = [
        manifest[::-1],
        manifest[:2],
        manifest.assign(sha256="0"),
        manifest.assign(image_id=["a", "b", "c"]),
    ]
    assert name not in [images.fingerprint(other) for other in others]


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-200], lambda content: encoded(texture(77), "JPEG")]
)
def test_a_bad_file_stops_the_loading_and_leaves_nothing(tmp_path, damage):
    manifest = folder(tmp_path / "films", 3)
    bad = Path(manifest["path"][1])
    bad.write_bytes(damage(bad.read_bytes()))
    with pytest.raises(DataInvalid, match=r"0001\.jpeg.*data audit NAME"):
        images.load_pixels(manifest, 24, cache=tmp_path / "cache", progress=False)
    assert not [path for path in (tmp_path / "cache").rglob("*.npy")]


def test_an_empty_manifest_is_an_error(tmp_path):
    with pytest.raises(DataInvalid, match="empty"):
        images.load_pixels(folder(tmp_path, 1)[:0], 24, cache=tmp_path, progress=False)


def test_a_damaged_cache_is_decoded_anew(tmp_path):
    manifest = folder(tmp_path / "films", 3)
    first = np.array(images.load_pixels(manifest, 24, cache=tmp_path / "cache", progress=False))
    (cached,) = (tmp_path / "cache").rglob("*.npy")
    cached.write_bytes(cached.read_bytes()[:-1])
    again = images.load_pixels(manifest, 24, cache=tmp_path / "cache", progress=False)
    np.testing.assert_array_equal(again, first)


def test_a_full_disk_or_a_file_in_the_way_is_a_storage_error(tmp_path):
    manifest = folder(tmp_path / "films", 1)
    with pytest.raises(Failed, match=r"bytes needed.*free some disk space"):
        images.load_pixels(manifest, 10**8, cache=tmp_path / "cache", progress=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(Failed, match="a file stands where a folder is needed"):
        images.load_pixels(manifest, 24, cache=tmp_path / "file", progress=False)


LOAD = """
import logging, sys
from pathlib import Path
import pandas as pd
from xraylib.datasets import images

logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
manifest, size, cache = pd.read_pickle(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
pixels = images.load_pixels(manifest, size, cache=cache, progress=False)
print("sum", int(pixels.sum(dtype="int64")))
"""


def repeated(tmp_path, count):
    """A pickled manifest of `count` images over 20 files of 128 x 128."""
    few = folder(tmp_path / "films", 20, side=128)
    manifest = pd.concat([few] * (count // 20), ignore_index=True)
    manifest["image_id"] = [f"{number:05d}" for number in range(count)]
    manifest.to_pickle(tmp_path / f"{count}.pkl")
    return tmp_path / f"{count}.pkl"


# Not ru_maxrss, which a child process inherits from the one that started it.
PEAK = """
import re
print(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_a_folder_ten_times_as_large_takes_no_more_memory(tmp_path):
    without_reading = LOAD[: LOAD.index("print")] + PEAK
    peak = {}
    for count in (300, 3000):
        process = python(without_reading, repeated(tmp_path, count), 128, tmp_path / "cache")
        peak[count] = int(answer(process).split()[-1])
    assert peak[3000] < 1.2 * peak[300]


def test_of_two_processes_one_decodes_and_both_read_it(tmp_path):
    manifest = repeated(tmp_path, 1000)
    pair = [python(LOAD, manifest, 128, tmp_path / "cache") for _ in range(2)]
    answers = [answer(process) for process in pair]
    assert sum(text.count("decoding 1000 images") for text in answers) == 1
    assert len({text.split("sum")[1] for text in answers}) == 1


def test_a_killed_build_is_never_read_and_its_rest_is_swept(tmp_path):
    manifest, cache = repeated(tmp_path, 3000), tmp_path / "cache"
    process = python(LOAD, manifest, 128, cache)
    while not list(cache.rglob(".partial-*")):
        assert process.poll() is None
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not [path for path in cache.rglob("*.npy") if not path.name.startswith(".partial-")]
    pixels = images.load_pixels(pd.read_pickle(manifest), 128, cache=cache, progress=False)
    assert pixels.shape == (3000, 128, 128, 1)
    assert not list(cache.rglob(".partial-*"))


@settings(max_examples=25, deadline=None)
@given(
    pixels=hnp.arrays(np.uint8, st.tuples(st.integers(2, 9), st.just(32), st.just(32), st.just(1))),
    threshold=st.floats(-0.9, 0.9),
)
def test_near_duplicates_are_the_pairs_that_correlate(pixels, threshold):
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = np.nan_to_num(np.corrcoef(pixels.reshape(len(pixels), -1)))
    found = images.near_duplicates(pixels, threshold)
    pairs = set(zip(found["a"], found["b"], strict=True))
    for a, b in zip(*np.triu_indices(len(pixels), 1), strict=True):
        if abs(expected[a, b] - threshold) > 1e-4:
            assert ((a, b) in pairs) == (expected[a, b] >= threshold)


def test_altered_copies_are_found_among_many_and_others_are_not():
    films = np.stack([texture(seed, 64) for seed in range(1200)])
    films[1150] = np.asarray(Image.open(io.BytesIO(encoded(films[7], "JPEG", quality=40))))
    films[1190] = (films[1100] * 0.6 + 30).astype(np.uint8)
    films[[3, 4]] = 128
    found = images.near_duplicates(films[..., None])
    assert set(zip(found["a"], found["b"], strict=True)) == {(7, 1150), (1100, 1190)}
    assert (found["correlation"] > 0.98).all()
