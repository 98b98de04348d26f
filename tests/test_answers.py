import csv
import os
import shutil
import threading
from pathlib import Path

import pandas as pd
import pytest

from xraylib import answers, paths, prediction
from xraylib.errors import InvalidDataError, OperationFailedError

EXAMPLES = paths.ROOT / "data" / "examples"


class Constant:
    name, sha256, size, threshold = "constant", "0123456789abcdef", 8, 0.25
    prevalence, strict_domain = None, False

    def answer(self, pixels):
        return [{"probability": 0.75} for _ in pixels]


@pytest.fixture
def images(tmp_path):
    """Four images; they were there before any table."""
    folder = Path(shutil.copytree(EXAMPLES, tmp_path / "images"))
    files = sorted(map(str, folder.iterdir()))
    for file in files:
        os.utime(file, (1e9, 1e9))
    return files


@pytest.fixture
def file(tmp_path):
    return tmp_path / "answers.csv"


def answer(file, images, model=None, threshold=0.25, stop_after=None):
    """Answer what a table lacks; returns the images that were answered now."""
    model = model or Constant()
    settings = prediction.settings_of(model, threshold)
    with answers.AnswerTable(file, images, settings) as table:
        remaining = table.remaining(images)[:stop_after]
        for row in prediction.answer_files(remaining, model, threshold):
            table.write(answers.rounded(row))
    return remaining


def test_a_stopped_table_is_continued_and_ends_as_the_uninterrupted_one(images, file, tmp_path):
    assert answer(tmp_path / "whole.csv", images) == images
    assert answer(file, images, stop_after=1) == images[:1]
    assert answer(file, images, stop_after=2) == images[1:3]
    assert answer(file, images) == images[3:]
    assert answer(file, images) == []
    assert file.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    table = pd.read_csv(file)
    assert list(table) == list(answers.COLUMNS)
    assert table["path"].tolist() == images
    assert (table["probability"] == 0.75).all()


def test_each_row_is_on_the_disk_before_the_next_is_asked_for(images, file):
    model = Constant()
    with answers.AnswerTable(file, images, prediction.settings_of(model, 0.25)) as table:
        assert file.read_text().count("\n") == 1
        for number, row in enumerate(prediction.answer_files(images, model), start=2):
            table.write(answers.rounded(row))
            assert file.read_text().count("\n") == number


@pytest.mark.parametrize("lost", [1, 2, 30, 60])
def test_a_row_that_was_cut_is_answered_again(images, file, tmp_path, lost):
    answer(tmp_path / "whole.csv", images)
    answer(file, images, stop_after=2)
    file.write_bytes(file.read_bytes()[:-lost])
    assert answer(file, images) == images[1:]
    assert file.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_errors_and_images_that_changed_are_answered_again(images, file):
    Path(images[0]).rename(images[0] + ".away")
    answer(file, images)
    assert pd.read_csv(file)["status"].tolist() == ["error", "ok", "ok", "ok"]
    Path(images[0] + ".away").rename(images[0])
    later = file.stat().st_mtime + 10
    os.utime(images[2], (later, later))
    assert answer(file, images) == [images[0], images[2]]
    table = pd.read_csv(file).sort_values("path")
    assert table["path"].tolist() == images
    assert (table["status"] == "ok").all()


def test_a_table_of_another_model_or_of_other_settings_is_refused(images, file):
    answer(file, images, stop_after=1)
    before = file.read_bytes()
    other = Constant()
    other.sha256 = "f" * 64
    with pytest.raises(InvalidDataError, match=r"model_sha256 '0123456789ab'.*Fix: "):
        answer(file, images, other)
    with pytest.raises(InvalidDataError, match=r"threshold '0\.25', not '0\.5'\. Fix: "):
        answer(file, images, threshold=0.5)
    rarer = Constant()
    rarer.prevalence = 0.1
    with pytest.raises(InvalidDataError, match=r"prevalence '', not '0\.1'\. Fix: "):
        answer(file, images, rarer)
    stricter = Constant()
    stricter.strict_domain = True
    with pytest.raises(InvalidDataError, match=r"strict_domain 'False', not 'True'\. Fix: "):
        answer(file, images, stricter)
    assert file.read_bytes() == before


def test_an_image_without_its_picture_is_answered_again(images, file, tmp_path):
    answer(file, images)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / answers.picture_name(images[0])).write_bytes(b"drawn")
    settings = prediction.settings_of(Constant(), 0.25)
    with answers.AnswerTable(file, images, settings, [pictures]) as table:
        assert table.remaining(images) == images[1:]


@pytest.mark.parametrize(
    "content", [b"name,age\nAda,36\n", b"\xff\xd8\xff\0\0", b"\n", b"p" * 9999, b"long"]
)
def test_a_file_that_is_no_table_of_answers_is_left_alone(images, file, content):
    if content == b"long":  # a cell that no row of answers has
        content = ",".join(answers.COLUMNS).encode() + b"\r\n" + b"a" * 200_000
    file.write_bytes(content)
    with pytest.raises(InvalidDataError, match=r"exists and is no table of answers\. Fix: "):
        answer(file, images)
    assert file.read_bytes() == content


@pytest.mark.parametrize("kind", ["itself", "link", "hard link", "other name"])
def test_an_image_to_answer_is_never_the_table(images, tmp_path, kind):
    named = Path(images[1])
    content = named.read_bytes()
    if kind == "link":
        named = tmp_path / "link.csv"
        named.symlink_to(images[1])
    elif kind == "hard link":
        named = tmp_path / "hard.csv"
        named.hardlink_to(images[1])
    elif kind == "other name":
        named = Path(images[1]).parent / ".." / "images" / Path(images[1]).name
    with pytest.raises(InvalidDataError, match=r"is one of the images to answer\. Fix: "):
        answer(named, images)
    assert Path(images[1]).read_bytes() == content


def test_an_empty_file_becomes_the_table_and_a_link_stays_one(images, file, tmp_path):
    target = tmp_path / "target.csv"
    target.touch()
    file.symlink_to(target)
    answer(file, images)
    assert file.is_symlink()
    assert len(pd.read_csv(target)) == 4
    with pytest.raises(InvalidDataError, match=r"is a folder\. Fix: "):
        answer(tmp_path, images)


def test_a_pipe_is_written_through_and_stays_one(images, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    answer(pipe, images)
    reader.join(30)
    assert pipe.is_fifo()
    assert len(list(csv.DictReader(read[0].splitlines()))) == 4


def test_a_full_disk_is_named(images):
    with pytest.raises(OperationFailedError, match=r"cannot write /dev/full: No space.*Fix: "):
        answer(Path("/dev/full"), images)
    assert Path("/dev/full").is_char_device()


def test_a_spreadsheet_takes_no_name_for_a_formula(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["=cmd|A0.jpeg", "+1.jpeg", "-1.jpeg", "@SUM.jpeg", "a,b.jpeg", 'q".jpeg', "l\nb.jpeg"]
    names += ["'=quoted.jpeg", os.fsdecode(b"caf\xe9.jpeg")]
    for name in names:
        shutil.copy(EXAMPLES / "normal.jpeg", name)
        os.utime(name, (1e9, 1e9))
    assert answer(file, names) == names
    with file.open(newline="", encoding="utf-8") as stream:
        cells = [row["path"] for row in csv.DictReader(stream)]
    assert cells[:4] == [f"'{name}" for name in names[:4]]
    assert cells[4:7] == names[4:7]
    assert not any(cell.startswith(("=", "+", "-", "@")) for cell in cells)
    assert answer(file, names) == []


ROW = dict.fromkeys(answers.COLUMNS, "") | {"path": "x", "status": "ok", "probability": 0.25}


def test_names_are_printed_on_one_line_and_command_no_terminal():
    row = ROW | {"path": "a\n\x1b[31mb\u202ec\x9b字.png", "label": "normal"}
    line = answers.describe(row)
    assert line == r"a\n\x1b[31mb\u202ec\x9b字.png  0.250  normal"
    assert answers.describe(row | {"status": "error", "message": "a\rb: damaged"}) == (
        r"a\rb: damaged"
    )


def test_a_line_has_the_answer_and_what_should_be_known():
    assert answers.describe(ROW | {"answer": "looks normal"}) == "x  0.250  looks normal"
    both = ROW | {"answer": "undecided", "label": "normal", "notice": "an adult"}
    assert answers.describe(both) == "x  0.250  undecided, normal: an adult"
    abstained = ROW | {"status": "abstained", "probability": float("nan"), "message": "inverted"}
    assert answers.describe(abstained) == "x  no answer: inverted"


def test_the_heading_names_the_model_its_prevalence_and_how_often_it_was_right():
    settings = {"model": "m", "prevalence": 0.1234, "threshold": ""}
    lines = answers.heading(settings, "right: 97%").splitlines()
    assert lines == [
        "P(pneumonia) by m at a prevalence of 0.123. Not a medical device.",
        "right: 97%",
    ]
    settings = {"model": "m", "prevalence": "", "threshold": 0.5}
    assert answers.heading(settings) == (
        "P(pneumonia) by m, threshold 0.500. Not a medical device."
    )
