import contextlib
import io
import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest
from conftest import start_python
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.pixels import apply_voi_lut
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)
from test_images import RAMP, dataset, dicom, encoded

from xraylib.datasets import dicom as reader
from xraylib.datasets import headers, images
from xraylib.errors import UnusableImageError

FILM = Path("film.dcm")
TEXTURE = np.random.default_rng(0).integers(0, 256, (40, 60), dtype=np.uint8)


def read(content):
    return images.decode(FILM, content, None).astype(int)


def refusal(content):
    """Why a file is refused, without its name."""
    with pytest.raises(UnusableImageError) as raised:
        images.decode(FILM, content, None)
    assert str(raised.value).startswith("film.dcm: ") and "Fix: " in str(raised.value)
    return str(raised.value)


def saved(film, **options):
    buffer = io.BytesIO()
    film.save_as(buffer, **options)
    return buffer.getvalue()


def compressed(stream, syntax, values=TEXTURE, **tags):
    """A DICOM file that says it is `values`, and holds a compressed stream."""
    film = dataset(values, **tags)
    film.file_meta.TransferSyntaxUID = syntax
    film.PixelData = pydicom.encaps.encapsulate([stream])
    film["PixelData"].is_undefined_length = True
    return saved(film, enforce_file_format=True)


def jpeg(width, height, marker=0xC0, samples=1):
    """A small JPEG whose header says something else."""
    content = bytearray(encoded(TEXTURE, "JPEG", quality=95))
    start = content.find(b"\xff\xc0")
    content[start + 1] = marker
    content[start + 5 : start + 10] = struct.pack(">HHB", height, width, samples)
    return bytes(content)


def jpeg2000(width=None, height=None, samples=1, boxed=False):
    content = bytearray(encoded(TEXTURE, "JPEG2000", no_jp2=not boxed))
    start = content.find(b"\xff\x4f\xff\x51")
    if width:
        content[start + 8 : start + 16] = struct.pack(">II", width, height)
        content[start + 40 : start + 42] = struct.pack(">H", samples)
    return bytes(content)


JPEGS = {
    JPEGBaseline8Bit: 0xC0,
    JPEGExtended12Bit: 0xC1,
    JPEGLossless: 0xC3,
    JPEGLosslessSV1: 0xC3,
    JPEGLSLossless: 0xF7,
    JPEGLSNearLossless: 0xF7,
}


@pytest.mark.parametrize("syntax", [*JPEGS, JPEG2000, JPEG2000Lossless, HTJ2K, HTJ2KLossless])
@pytest.mark.parametrize("size", [(65_500, 65_500), (60, 41), (61, 40)])
def test_a_stream_of_another_size_is_refused_before_it_is_decoded(monkeypatch, syntax, size):
    monkeypatch.setattr(reader, "_decode", lambda *_: pytest.fail("decoded"))
    stream = jpeg(*size, JPEGS[syntax]) if syntax in JPEGS else jpeg2000(*size)
    announced = f"has {size[0]} x {size[1]} x 1 values, its header says 60 x 40 x 1"
    assert announced in refusal(compressed(stream, syntax))


@pytest.mark.parametrize("boxed", [False, True])
def test_more_samples_than_announced_are_refused(boxed):
    assert "60 x 40 x 3 values" in refusal(compressed(jpeg(60, 40, samples=3), JPEGBaseline8Bit))
    stream = jpeg2000(60, 40, samples=16_384, boxed=boxed)
    assert "60 x 40 x 16384 values" in refusal(compressed(stream, JPEG2000))


def test_the_largest_of_several_announced_frames_counts():
    stream = jpeg(60, 40)
    start = stream.find(b"\xff\xc0")
    frame = stream[start : start + 13]
    for first, second in ((60, 9000), (9000, 60)):
        frames = b"".join(
            frame[:5] + struct.pack(">HH", 40, width) + frame[9:] for width in (first, second)
        )
        content = stream[:start] + frames + stream[start + 13 :]
        assert "9000 x 40 x 1" in refusal(compressed(content, JPEGBaseline8Bit))


def test_the_frame_that_was_checked_is_the_one_that_is_decoded():
    good = jpeg(60, 40)
    film = pydicom.dcmread(io.BytesIO(compressed(good, JPEGBaseline8Bit)))
    film.PixelData = pydicom.encaps.encapsulate([good, jpeg(65_500, 65_500)], has_bot=False)
    film.ExtendedOffsetTable = struct.pack("<Q", len(good) + len(good) % 2 + 8)
    film.ExtendedOffsetTableLengths = struct.pack("<Q", len(good))
    film["PixelData"].is_undefined_length = True
    content = saved(film, enforce_file_format=True)
    # Either the first frame is read, or the file is refused; the second is never decoded.
    with contextlib.suppress(UnusableImageError):
        assert np.abs(read(content) - TEXTURE).mean() < 10


def rle(segment, pixels=TEXTURE.size):
    stream = struct.pack("<16I", 1, 64, *[0] * 14) + segment
    headers.check_rle(stream, pixels)


@pytest.mark.parametrize("segment", [b"\x81\0" * 1000, b"\x80" * 100_000, b"\x7f" * 200_000])
def test_an_rle_segment_that_unfolds_without_end_is_refused(segment):
    with pytest.raises(ValueError, match="RLE segment"):
        rle(segment)
    assert "damaged" in refusal(
        compressed(struct.pack("<16I", 1, 64, *[0] * 14) + segment, RLELossless)
    )


def test_rle_of_noise_and_of_one_grey_passes():
    for values in (TEXTURE, np.zeros((500, 700), np.uint8)):
        np.testing.assert_array_equal(read(dicom(values, syntax=RLELossless)), values)
    for count in (0, 16):
        with pytest.raises(ValueError, match="RLE segments"):
            headers.check_rle(struct.pack("<16I", count, *[64] * 15), 10)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_headers_of_any_bytes_are_read_or_refused(content):
    for read_header in (headers.read_jpeg, headers.read_jpeg2000):
        for start in (b"", b"\xff\xd8", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"):
            try:
                header = read_header(start + content)
            except (ValueError, struct.error):
                continue
            assert len(header) == 3


MR = (
    "MR_small_RLE.dcm",
    "MR_small_bigendian.dcm",
    "MR_small_expb.dcm",
    "MR_small_implicit.dcm",
    "MR_small_jp2klossless.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
)


@pytest.mark.parametrize("name", MR)
def test_one_image_is_read_alike_from_every_transfer_syntax(name):
    expected = read(Path(get_testdata_file("MR_small.dcm", download=False)).read_bytes())
    content = Path(get_testdata_file(name, download=False)).read_bytes()
    np.testing.assert_array_equal(read(content), expected)


def test_a_jp2_file_inside_is_read():
    stream = jpeg2000(boxed=True)
    np.testing.assert_array_equal(read(compressed(stream, JPEG2000Lossless)), TEXTURE)


@pytest.mark.parametrize("space", ["RGB", "YBR_FULL"])
def test_colour_becomes_luma(space):
    red = np.zeros((8, 8, 3), np.uint8)
    red[:, :4, 0] = 200
    stored = np.asarray(Image.fromarray(red).convert("YCbCr")) if space == "YBR_FULL" else red
    content = dicom(stored, colours=space, SamplesPerPixel=3, PlanarConfiguration=0)
    assert np.abs(read(content) - np.asarray(Image.fromarray(red).convert("L"))).max() <= 2


def bare(syntax):
    """A data set without preamble, file meta information and so transfer syntax."""
    implicit = syntax == ImplicitVRLittleEndian
    film = dataset(RAMP)
    del film.file_meta
    return saved(film, implicit_vr=implicit, little_endian=True)


def without_syntax():
    film = pydicom.dcmread(io.BytesIO(dicom(RAMP)))
    del film.file_meta.TransferSyntaxUID
    del film.file_meta.FileMetaInformationGroupLength
    film.preamble = bytes(128)
    return saved(film, enforce_file_format=False, implicit_vr=False, little_endian=True)


@pytest.mark.parametrize(
    "content",
    [
        dicom(RAMP)[132:],
        bare(ExplicitVRLittleEndian),
        bare(ImplicitVRLittleEndian),
        without_syntax(),
    ],
)
def test_files_without_preamble_or_transfer_syntax_are_read(content):
    assert headers.kind_of(content) == "DICOM"
    np.testing.assert_array_equal(read(content), RAMP)


def test_a_compressed_file_must_say_how():
    film = pydicom.dcmread(io.BytesIO(compressed(jpeg(60, 40), JPEGBaseline8Bit)))
    del film.file_meta.TransferSyntaxUID
    content = saved(film, enforce_file_format=False, implicit_vr=False, little_endian=True)
    assert "does not say how" in refusal(content)


@pytest.mark.parametrize("content", [b"", b"\x08\0", b"<html>", b"\x08\0" * 100, bytes(200)])
def test_other_content_is_no_dicom(content):
    assert headers.kind_of(content) == ""


WIDE = RAMP * 16.0
EMPTY_TABLE = [pydicom.Dataset()]


@pytest.mark.parametrize(
    "tags",
    [
        {"WindowCenter": "", "WindowWidth": 100},
        {"WindowWidth": 100},
        {"WindowCenter": 100, "WindowWidth": ""},
        {"WindowCenter": 100, "WindowWidth": 0},
        {"WindowCenter": 100, "WindowWidth": -5},
        {"WindowCenter": 100, "WindowWidth": 0.5},
        {"RescaleSlope": "", "RescaleIntercept": ""},
        {"RescaleSlope": ""},
        {"RescaleIntercept": 5},
        {"VOILUTSequence": EMPTY_TABLE},
        {"VOILUTSequence": []},
        {"PixelPaddingValue": None},
        {"PresentationLUTShape": "IDENTITY"},
        {"PixelRepresentation": 0, "VOILUTFunction": ""},
    ],
    ids=str,
)
def test_empty_and_meaningless_elements_are_as_if_they_were_missing(tags):
    film = dataset(WIDE, bits=12)
    for name, value in tags.items():
        if value is not None:
            setattr(film, name, value)
    content = saved(film, enforce_file_format=True)
    np.testing.assert_array_equal(read(content), read(dicom(WIDE, bits=12)))


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT"])
@pytest.mark.parametrize("width", [1, 2, 8, 300, 4096])
@pytest.mark.parametrize("centre", [0, 500, 1234.5])
def test_windows_are_those_of_pydicom(function, width, centre):
    tags = {"WindowCenter": centre, "WindowWidth": width}
    if function:
        tags["VOILUTFunction"] = function
    film = dataset(WIDE, bits=12, **tags)
    expected = apply_voi_lut(WIDE, film) / 4095 * 255
    if function != "LINEAR_EXACT" and width == 1:
        # A threshold: nothing lies between black and white.
        assert set(np.unique(read(saved(film, enforce_file_format=True)))) <= {0, 255}
    assert np.abs(read(saved(film, enforce_file_format=True)) - expected).max() <= 0.501


def test_a_narrow_exact_window_keeps_its_greys():
    shares = dataset(RAMP, RescaleSlope=1 / 255, RescaleIntercept=0)
    shares.WindowCenter = 0.5
    shares.WindowWidth = 1
    shares.VOILUTFunction = "LINEAR_EXACT"
    np.testing.assert_array_equal(read(saved(shares, enforce_file_format=True)), RAMP)


def voi_table(bits=8):
    table = pydicom.Dataset()
    table.LUTDescriptor = [256, 0, bits]
    table.LUTData = (np.arange(256) ** 2 / 255**2 * (2**bits - 1)).astype("<u2").tobytes()
    table["LUTData"].VR = "OW"
    return [table]


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("slope", [{}, {"RescaleSlope": 1, "RescaleIntercept": 0}])
def test_a_lookup_table_is_applied(bits, slope):
    content = dicom(RAMP, VOILUTSequence=voi_table(bits), **slope)
    assert np.abs(read(content) - RAMP.astype(float) ** 2 / 255).max() <= 1


@pytest.mark.parametrize(
    ("colours", "shape", "inverted"),
    [
        ("MONOCHROME2", None, False),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME1", None, True),
        ("MONOCHROME1", "INVERSE", True),
    ],
)
def test_low_values_are_white_where_the_file_says_so(colours, shape, inverted):
    tags = {"PresentationLUTShape": shape} if shape else {}
    content = dicom(RAMP, colours=colours, **tags)
    np.testing.assert_array_equal(read(content), 255 - RAMP if inverted else RAMP)


def test_padding_and_rescaling_do_not_move_the_window():
    padded = np.where(np.arange(64) < 4, 65535, 1000.0 + RAMP)
    for content in (
        dicom(padded, bits=16, PixelPaddingValue=65535),
        dicom(RAMP, RescaleSlope=16, RescaleIntercept=-1024),
    ):
        grey = read(content)
        assert (np.diff(grey[0, 4:]) > 0).all() and grey.max() == 255
    assert not read(dicom(padded, bits=16, PixelPaddingValue=65535))[:, :4].any()
    everything = np.full((4, 4), 9.0)
    assert not read(dicom(everything, bits=16, PixelPaddingValue=9)).any()


def test_without_a_window_many_bits_are_stretched_between_their_ends():
    assert np.abs(read(dicom(1000.0 + RAMP, bits=12)) - RAMP * (255 / 252)).max() <= 0.5
    assert not read(dicom(np.full((4, 4), 9.0), bits=12)).any()


def anatomy(share):
    """A smooth image in the lowest share of 12 bits, and what it is without its outliers."""
    rows, columns = np.mgrid[-1:1:200j, -1:1:200j]
    smooth = np.exp(-2 * (rows**2 + columns**2)) * 4095 * share
    return np.rint(smooth), smooth / smooth.max() * 255


def test_tags_behind_a_long_private_element_are_read_from_the_content():
    film = dataset(RAMP)
    block = film.private_block(0x0009, "long", create=True)
    block.add_new(0x01, "OB", bytes(1_500_000))
    content = saved(film)
    assert reader.tags_of(content, ["Rows", "Columns"]) == {"Rows": "48", "Columns": "64"}
    assert reader.tags_of(b"no DICOM", ["Rows"]) == {}


@pytest.mark.parametrize("share", [0.5, 0.25])
@pytest.mark.parametrize("outliers", [(slice(0, 1), slice(0, 1)), (slice(5, 15), slice(5, 20))])
@pytest.mark.parametrize("value", [4095, 0])
def test_a_hot_pixel_or_a_letter_does_not_decide_the_contrast(share, outliers, value):
    values, expected = anatomy(share)
    values[outliers] = value
    grey = read(dicom(values, bits=12)).astype(float)
    keep = np.ones(values.shape, bool)
    keep[outliers] = False
    assert np.abs(grey - expected)[keep].mean() < 25
    if value == 4095:
        assert (grey[outliers] == 255).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WindowCenter", 1e300),
        ("WindowWidth", 1e300),
        ("RescaleSlope", 1e300),
        ("RescaleIntercept", -1e300),
        ("RescaleSlope", 0),
        ("WindowCenter", "NaN"),
    ],
)
def test_a_window_or_scale_without_sense_is_named(name, value):
    film = dataset(RAMP, WindowCenter=100, WindowWidth=50)
    setattr(film, name, value)
    assert f"its {name} is" in refusal(saved(film, enforce_file_format=True))


def damaged(syntax):
    stream = jpeg2000() if syntax == JPEG2000 else jpeg(60, 40)
    return compressed(stream[: len(stream) // 4] + bytes(200), syntax)


def twelve_bits():
    return Path(get_testdata_file("JPEG-lossy.dcm", download=False)).read_bytes()


@pytest.mark.parametrize("content", [damaged(JPEG2000), twelve_bits()])
def test_a_stream_that_no_decoder_reads_names_it_and_the_decoders_to_install(content):
    message = refusal(content)
    assert "no decoder here can read" in message
    assert 'pip install "xraylib-pneumonia[dicom-gpl]"' in message


def test_a_syntax_that_cannot_be_checked_is_named():
    content = compressed(jpeg(60, 40), JPEGBaseline8Bit)
    other = content.replace(b"1.2.840.10008.1.2.4.50", b"1.2.840.10008.1.2.4.94")
    assert "JPIP Referenced" in refusal(other)


def test_boxes_without_an_end_are_refused_before_pydicom_searches_them():
    boxed = jpeg2000(boxed=True)
    start = boxed.find(b"jp2h") - 4
    for length in (0, 1, 7):
        endless = boxed[:start] + struct.pack(">I", length) + boxed[start + 4 :]
        assert "damaged" in refusal(compressed(endless, JPEG2000Lossless))


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"Rows": None}, "without Rows"),
        ({"PhotometricInterpretation": None}, "without PhotometricInterpretation"),
        ({"BitsStored": None, "Columns": None}, "without Columns, BitsStored"),
        ({"BitsAllocated": 32}, "32 bits"),
        ({"Rows": 0}, "damaged or incomplete"),
    ],
)
def test_missing_elements_are_named_and_no_exception_of_python_is(tags, words):
    message = refusal(dicom(RAMP, **tags))
    assert words in message and "Error" not in message


def test_an_image_that_does_not_fit_into_memory_is_named(monkeypatch):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr(reader, "_decode", full)
    assert "does not fit into memory" in refusal(dicom(RAMP))


def test_a_header_says_what_was_examined_and_not_who(tmp_path):
    path = tmp_path / "film"
    tags = {
        "Modality": "DX",
        "BodyPartExamined": "CHEST",
        "ViewPosition": "AP",
        "PatientAge": "018M",
        "PresentationIntentType": "FOR PRESENTATION",
    }
    path.write_bytes(dicom(RAMP, **tags))
    header = reader.read_header(path)
    assert header == {
        "modality": "DX",
        "body_part": "CHEST",
        "view_position": "AP",
        "patient_age": 1.5,
        "presentation_intent": "FOR PRESENTATION",
    }
    path.write_bytes(dicom(RAMP)[132:])
    assert set(reader.read_header(path)) == set(header)
    assert set(reader.read_header(path).values()) == {None}
    for content in (b"", b"text" * 99, encoded(RAMP), bytes(128) + b"DICM" + b"\xff" * 99):
        path.write_bytes(content)
        assert not any(reader.read_header(path).values())


@pytest.mark.parametrize(
    ("age", "years"),
    [("070Y", 70), ("006M", 0.5), ("026W", 0.5), ("000D", 0), ("", None), ("Y", None), ("7", None)],
)
def test_ages_are_in_years(tmp_path, age, years):
    path = tmp_path / "film"
    path.write_bytes(dicom(RAMP, PatientAge=age))
    assert reader.read_header(path)["patient_age"] == pytest.approx(years, abs=0.01)


def test_values_against_the_standard_warn_nobody(tmp_path):
    header = tmp_path / "header.dcm"
    header.write_bytes(dicom(RAMP, PatientAge="7"))
    image = tmp_path / "image.dcm"
    image.write_bytes(dicom(RAMP, WindowCenter="NaN", WindowWidth=50))
    script = """
import sys
from pathlib import Path
from xraylib.datasets import dicom, images
from xraylib.errors import UnusableImageError
dicom.read_header(sys.argv[1])
try:
    images.read_gray(sys.argv[2])
except UnusableImageError as error:
    print(error)
"""
    process = start_python(script, header, image)
    out, err = process.communicate(timeout=250)
    assert (process.returncode, err) == (0, "")
    assert "its WindowCenter is nan" in out


def test_a_big_endian_file_is_read():
    film = dataset(WIDE, bits=12)
    film.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    film.PixelData = WIDE.astype(">u2").tobytes()
    expected = read(dicom(WIDE, bits=12))
    np.testing.assert_array_equal(read(saved(film, enforce_file_format=True)), expected)


@pytest.mark.parametrize(
    ("header", "named"),
    [
        ({"modality": "MR"}, "modality"),
        ({"modality": "CT", "body_part": "CHEST"}, "modality"),
        ({"body_part": "KNEE"}, "body part"),
        ({"view_position": "LATERAL"}, "lateral"),
        ({"view_position": "LL"}, "lateral"),
        ({"view_position": "rl"}, "lateral"),
        ({"presentation_intent": "FOR PROCESSING"}, "processing"),
    ],
)
def test_a_header_can_say_that_it_is_no_frontal_chest(header, named):
    reason = reader.not_frontal_chest(header)
    assert named in reason
    assert "Fix: " in reason
    # Nothing of the header is copied.
    assert not any(value in reason for value in header.values())


@pytest.mark.parametrize(
    "header",
    [
        {},
        dict.fromkeys(("modality", "body_part", "view_position", "presentation_intent")),
        {"modality": "DX", "body_part": "CHEST", "view_position": "AP"},
        {"modality": "CR", "body_part": "chest_pa", "view_position": "PA"},
        {"modality": "RG", "body_part": "THORAX", "presentation_intent": "FOR PRESENTATION"},
    ],
)
def test_a_header_that_says_a_frontal_chest_or_nothing_passes(header):
    assert reader.not_frontal_chest(header) == ""
