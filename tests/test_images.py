import hashlib
import io
import os
import re
import signal
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from conftest import start_python
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from xraylib import paths
from xraylib.datasets import images
from xraylib.datasets.headers import MAX_PIXELS
from xraylib.errors import InvalidDataError, NotFoundError, OperationFailedError

RAMP = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (48, 1))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XRAYLIB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        buffer, kind, **options
    )
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


@settings(max_examples=40, deadline=None)
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
    path = tmp_path / "film.png"
    path.write_bytes(encoded(np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)))
    np.testing.assert_array_equal(images.read_gray(path), [[0, 1, 128, 255]])
    path.write_bytes(encoded(np.zeros((4, 4), np.uint16)))
    assert not images.read_gray(path).any()


@pytest.mark.parametrize("bits", [12, 13, 14, 15, 16])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_values_are_scaled_by_the_bits_in_use(tmp_path, kind, bits):
    path = tmp_path / "film"
    stored = np.rint(RAMP / 255 * (2**bits - 1)).astype(np.uint16)
    path.write_bytes(encoded(stored, kind))
    np.testing.assert_array_equal(images.read_gray(path), RAMP)
    if kind == "TIFF":
        inverted = (2**bits - 1 - stored).astype(np.uint16)
        path.write_bytes(encoded(inverted, kind, tiffinfo={262: 0}))
        np.testing.assert_array_equal(images.read_gray(path), RAMP)


@pytest.mark.parametrize("maximum", [1, 255, 2047])
def test_values_that_do_not_tell_their_range_are_refused(tmp_path, maximum):
    path = tmp_path / "film.png"
    path.write_bytes(encoded(np.full((8, 8), maximum, dtype=np.uint16)))
    with pytest.raises(InvalidDataError, match=rf"film\.png.*{maximum} of 65535.*Fix: rescale"):
        images.read_gray(path)


# Of 190 MB, each takes Pillow from 20 seconds to minutes, or gigabytes.
UNBOUNDED = {
    "zeros.jpeg": b"\xff\xd8\xff" + bytes(3_000_000),
    "fill.jpeg": b"\xff\xd8" + b"\xff" * 3_000_000,
    "segments.jpeg": b"\xff\xd8" + b"\xff\xe0\0\2" * 500_000,
    "scans.jpeg": b"\xff\xd8" + b"\xff\xda\0\2" * 200,
    "chunks.png": b"\x89PNG\r\n\x1a\n" + b"\0\0\0\0teXt\0\0\0\0" * 150_000,
    "tags.tiff": b"II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, 273, 4, 2**30, 8) + bytes(4),
    "many.tiff": b"II*\0\x08\0\0\0\xff\xff" + bytes(12 * 65_535),
    "zeros.tiff": b"II*\0" + bytes(3_000_000),
    "short.tiff": b"II*\0\xff\0\0\0",
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", UNBOUNDED)
def test_a_header_that_would_take_minutes_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(UNBOUNDED[name])
    with pytest.raises(InvalidDataError, match=rf"{name}: damaged: its header cannot be read"):
        images.read_gray(tmp_path / name)


def test_pages_are_not_counted(tmp_path):
    pages = bytearray(b"II*\0\x08\0\0\0")
    for number in range(100_000):
        pages += struct.pack("<HHHIII", 1, 256, 3, 1, 1, 8 + 18 * (number + 1))
    (tmp_path / "pages.tiff").write_bytes(pages)
    with pytest.raises(InvalidDataError, match="several pages"):
        images.read_gray(tmp_path / "pages.tiff")


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


def dataset(values, bits=8, colours="MONOCHROME2", **tags):
    """A DICOM data set of one uncompressed image; a tag of None is left out."""
    film = pydicom.Dataset()
    film.file_meta = pydicom.dataset.FileMetaDataset()
    film.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    film.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    film.SOPInstanceUID = "1.2.3"
    film.PatientName = "Doe^Jane"
    film.Rows = values.shape[0]
    film.Columns = values.shape[1]
    film.SamplesPerPixel = 1
    film.PixelRepresentation = 0
    film.PhotometricInterpretation = colours
    film.BitsStored = bits
    film.HighBit = bits - 1
    film.BitsAllocated = 8 if bits == 8 else 16
    film.PixelData = values.astype(np.uint8 if bits == 8 else "<u2").tobytes()
    for name, value in tags.items():
        setattr(film, name, value)
        if value is None:
            delattr(film, name)
    return film


def dicom(values, bits=8, colours="MONOCHROME2", syntax=None, **tags):
    """The same as the bytes of a file."""
    film = dataset(values, bits, colours, **tags)
    if syntax:
        film.compress(syntax)
    buffer = io.BytesIO()
    film.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "off"),
    [
        (dicom(RAMP), 0),
        (dicom(255 - RAMP, colours="MONOCHROME1"), 0),
        (dicom(RAMP, syntax=pydicom.uid.RLELossless), 0),
        (dicom(RAMP, syntax=pydicom.uid.JPEG2000Lossless), 0),
        (dicom(RAMP * 16.0, bits=12, WindowCenter=2048, WindowWidth=4096), 1),
        (
            dicom(
                RAMP * 16.0,
                bits=12,
                WindowCenter=[1024, 50],
                WindowWidth=[2048, 9],
                RescaleSlope=0.5,
                RescaleIntercept=0,
            ),
            1,
        ),
        (encoded(RAMP, "TIFF"), 0),
        (encoded(65535 - RAMP.astype(np.uint16) * 257, "TIFF", tiffinfo={262: 0}), 0),
        (encoded(RAMP.astype(np.uint16) * 257, "TIFF"), 0),
    ],
)
def test_one_film_is_read_alike_from_every_kind_of_file(tmp_path, content, off):
    (tmp_path / "film").write_bytes(content)
    assert np.abs(images.read_gray(tmp_path / "film").astype(int) - RAMP).max() <= off


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.jpeg", b"", "empty"),
        ("page.jpeg", b"<html>not found</html>", "no JPEG, PNG, TIFF or DICOM"),
        ("film.gif", encoded(RAMP, "GIF"), "no JPEG, PNG, TIFF or DICOM"),
        ("film.dcm", b"\0" * 200, "no JPEG, PNG, TIFF or DICOM"),
        ("noname", b"\0" * 128 + b"DICM", "encrypted or holds no image"),
        (
            "signed.tiff",
            encoded(Image.fromarray(RAMP.astype(np.int32) - 5), "TIFF"),
            "leave 0..65535",
        ),
        (
            "large.tiff",
            encoded(Image.fromarray(RAMP.astype(np.int32) * 1000), "TIFF"),
            "leave 0..65535",
        ),
        (
            "rgb.dcm",
            dicom(np.stack([RAMP] * 3, axis=-1), SamplesPerPixel=3, PlanarConfiguration=0),
            "shape",
        ),
        ("sigmoid.dcm", dicom(RAMP, VOILUTFunction="SIGMOID"), "SIGMOID"),
        (
            "deflated.dcm",
            dicom(RAMP).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99"),
            "deflated",
        ),
        ("frames.dcm", dicom(RAMP, NumberOfFrames=2), "several frames"),
        ("report.dcm", dicom(RAMP, PixelData=None), "encrypted or holds no image"),
        ("hsv.dcm", dicom(RAMP, colours="PALETTE COLOR"), "PALETTE COLOR"),
        ("cut.dcm", dicom(RAMP)[:-900], "damaged"),
        ("huge.dcm", dicom(RAMP, Rows=50000, Columns=50000), "50000 x 50000 pixels"),
        (
            "pages.tiff",
            encoded(RAMP, "TIFF", save_all=True, append_images=[Image.fromarray(RAMP)]),
            "several pages",
        ),
        ("float.tiff", encoded(RAMP.astype(np.float32), "TIFF"), "fractions"),
        ("header.png", encoded(RAMP)[:8] + b"?" * 40, "damaged"),
        ("loop.png", animation(), "several frames"),
        ("bomb.png", announcing(8000, 7000), "8000 x 7000 pixels"),
        ("huge.png", announcing(20000, 20000), f"more than {MAX_PIXELS:,} pixels"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else value,
)
def test_what_is_no_radiograph_is_refused_by_name_with_a_fix(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidDataError, match=rf"{re.escape(name)}: .*{words}.*Fix: |{words}"):
        images.read_gray(tmp_path / name, 32)


def test_a_missing_file_a_folder_and_an_enormous_file_are_refused(tmp_path):
    with pytest.raises(NotFoundError, match=r"gone\.png"):
        images.read_gray(tmp_path / "gone.png")
    with pytest.raises(InvalidDataError, match="not a regular file"):
        images.read_gray(tmp_path)
    with (tmp_path / "long.png").open("wb") as file:
        file.truncate(300_000_000)
    with pytest.raises(InvalidDataError, match="300,000,000 bytes"):
        images.read_gray(tmp_path / "long.png")


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["JPEG", "PNG"]),
    share=st.floats(0, 1, exclude_max=True),
    size=st.sampled_from([None, 16]),
)
def test_no_truncated_file_is_ever_read(tmp_path_factory, kind, share, size):
    content = encoded(texture(3, 64), kind)
    path = tmp_path_factory.mktemp("cut") / "film"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InvalidDataError):
        images.read_gray(path, size)


def test_a_library_that_told_pillow_to_guess_is_noticed(tmp_path, monkeypatch):
    path = tmp_path / "film.jpeg"
    path.write_bytes(encoded(RAMP, "JPEG"))
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(InvalidDataError, match="LOAD_TRUNCATED_IMAGES back to False"):
        images.read_gray(path)


@settings(max_examples=100, deadline=None)
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
    except InvalidDataError as error:
        assert str(path) in str(error)


def test_pixels_are_decoded_once(tmp_path):
    manifest = folder(tmp_path / "films", 5)
    expected = np.stack([images.read_gray(path, 24) for path in manifest["path"]])[..., None]
    first = images.load_pixels(manifest, 24)
    for path in manifest["path"]:
        Path(path).unlink()
    again = images.load_pixels(manifest.assign(split="test"), 24)
    assert first.dtype == np.uint8 and not again.flags.writeable
    np.testing.assert_array_equal(first, expected)
    np.testing.assert_array_equal(again, expected)
    with pytest.raises(NotFoundError):
        images.load_pixels(manifest, 25)


def test_the_fingerprint_tells_content_and_order_but_not_split(tmp_path):
    manifest = folder(tmp_path, 3)
    name = images.fingerprint(manifest)
    assert len(name) == 16 and int(name, 16) >= 0
    assert images.fingerprint(manifest.assign(split="val", label=0)) == name
    ids = manifest.assign(image_id=["a", "b", "c"])
    others = [manifest[::-1], manifest[:2], manifest.assign(sha256="0"), ids]
    assert name not in [images.fingerprint(other) for other in others]


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-200], lambda _: encoded(texture(77), "JPEG")]
)
def test_a_bad_file_stops_the_loading_and_leaves_nothing(tmp_path, cache, damage):
    manifest = folder(tmp_path / "films", 3)
    bad = Path(manifest["path"][1])
    bad.write_bytes(damage(bad.read_bytes()))
    with pytest.raises(InvalidDataError, match=r"0001\.jpeg.*Fix: .*data audit NAME"):
        images.load_pixels(manifest, 24)
    assert not list(cache.rglob("*.npy"))


def other_array():
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((3, 24, 24, 1), np.float32))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: other_array(),
        lambda data: data[:-1],
        lambda _: b"",
        lambda _: b"PK\3\4" + bytes(100),
        lambda data: bytes(len(data)),
    ],
)
def test_a_damaged_cache_is_built_again(tmp_path, cache, caplog, damage):
    manifest = folder(tmp_path / "films", 3)
    expected = np.array(images.load_pixels(manifest, 24))
    (cached,) = cache.rglob("*.npy")
    cached.write_bytes(damage(cached.read_bytes()))
    np.testing.assert_array_equal(images.load_pixels(manifest, 24), expected)
    assert f"{cached} " in caplog.text and "built again" in caplog.text
    for path in manifest["path"]:
        Path(path).unlink()
    np.testing.assert_array_equal(images.load_pixels(manifest, 24), expected)


@pytest.mark.parametrize("rows", [5, 40])
def test_rows_come_in_order_and_after_a_bad_one_no_more_are_begun(monkeypatch, rows):
    monkeypatch.setattr(images, "_CHUNK", 16)
    table = pd.DataFrame({"number": range(rows)})
    doubled = images.map_rows(lambda row: 2 * row.number, table, "doubling")
    assert list(doubled) == [2 * number for number in range(rows)]
    begun = []

    def fail_at_three(row):
        begun.append(row.number)
        if row.number == 3:
            raise ValueError("row 3")
        return row.number

    with pytest.raises(ValueError, match="row 3"):
        list(images.map_rows(fail_at_three, table, "failing"))
    assert len(begun) <= 16


def test_files_are_decoded_in_order_and_in_chunks(tmp_path, monkeypatch):
    manifest = folder(tmp_path / "films", 5)
    expected = np.stack([images.read_gray(path, 16) for path in manifest["path"]])
    monkeypatch.setattr(images, "_CHUNK", 3)
    np.testing.assert_array_equal(np.stack(list(images.decoded(manifest, 16))), expected)


def test_a_box_of_each_image_is_resized():
    halves = np.zeros((2, 40, 60, 1), np.uint8)
    halves[:, :, 30:] = 200
    boxes = np.array([[0, 0, 30, 40], [30, 10, 60, 20]])
    resized = images.resize(halves, 8, boxes, Image.Resampling.BOX)
    assert resized.shape == (2, 8, 8, 1)
    assert (resized[0] == 0).all() and (resized[1] == 200).all()
    whole = images.resize(halves, 8)
    assert np.ptp(whole) > 150
    assert images.resize(halves[:0], 8).shape == (0, 8, 8, 1)


def test_nothing_to_read_a_full_disk_and_a_file_in_the_way_are_named(tmp_path, monkeypatch):
    manifest = folder(tmp_path / "films", 1)
    with pytest.raises(InvalidDataError, match="empty"):
        images.load_pixels(manifest[:0], 24)
    with pytest.raises(OperationFailedError, match=r"bytes needed.*free some disk space"):
        images.load_pixels(manifest, 10**8)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XRAYLIB_CACHE", str(tmp_path / "file"))
    with pytest.raises(OperationFailedError, match="a file stands where a folder is needed"):
        images.load_pixels(manifest, 24)


LOAD = """
import logging, sys
import pandas as pd
from xraylib.datasets import images

logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
pixels = images.load_pixels(pd.read_pickle(sys.argv[1]), 128)
print("sum", int(pixels.sum(dtype="int64")))
"""


def repeated(tmp_path, count):
    """A pickled manifest of `count` images over 20 files of 128 x 128."""
    manifest = pd.concat(
        [folder(tmp_path / "films", 20, side=128)] * (count // 20), ignore_index=True
    )
    manifest["image_id"] = [f"{number:05d}" for number in range(count)]
    manifest.to_pickle(tmp_path / f"{count}.pkl")
    return tmp_path / f"{count}.pkl"


# Not ru_maxrss, which a child process inherits from the one that started it.
PEAK = """
import re
from pathlib import Path
print(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc"
)
def test_a_folder_ten_times_as_large_takes_no_more_memory(tmp_path):
    peak = {}
    for count in (300, 3000):
        process = start_python(LOAD[: LOAD.index("print")] + PEAK, repeated(tmp_path, count))
        peak[count] = int(process.communicate(timeout=60)[0].split()[-1])
    assert peak[3000] < 1.2 * peak[300]


@pytest.mark.slow
def test_of_two_processes_one_decodes_and_both_read_it(tmp_path):
    manifest = repeated(tmp_path, 1000)
    pair = [start_python(LOAD, manifest) for _ in range(2)]
    answers = [process.communicate(timeout=60)[0] for process in pair]
    assert sum(text.count("decoding 1000 images") for text in answers) == 1
    assert len({text.split("sum")[1] for text in answers}) == 1


@pytest.mark.slow
def test_a_killed_build_is_never_read_and_its_rest_is_swept(tmp_path, cache):
    manifest = repeated(tmp_path, 3000)
    process = start_python(LOAD, manifest)
    while not list(cache.rglob(".partial-*")):
        assert process.poll() is None
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not [
        path for path in paths.CACHE.rglob("*.npy") if not path.name.startswith(".partial-")
    ]
    assert images.load_pixels(pd.read_pickle(manifest), 128).shape == (3000, 128, 128, 1)
    assert not list(cache.rglob(".partial-*"))
