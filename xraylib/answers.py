"""Answers as a person reads them, and as a CSV table that grows row by row."""

import csv
import logging
import os
from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

from xraylib.errors import InvalidDataError
from xraylib.storage import atomic_write, sha256_bytes, storage_errors

COLUMNS = (
    "path",
    "status",
    "answer",
    "probability",
    "prevalence",
    "label",
    "threshold",
    "strict_domain",
    "notice",
    "model",
    "model_sha256",
    "preprocessing",
    "message",
)

# What a file was answered, by column.
Row = dict[str, Any]

# How the message begins when an image was answered and its heat map could not be written.
HEAT_MAP_FAILED = "the heat map was not written"

# A spreadsheet takes a cell that begins with one of these for a formula.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")

_log = logging.getLogger(__name__)


def is_failure(row: Row) -> bool:
    """Whether something that was asked for is missing: the answer, or its heat map."""
    return row["status"] == "error" or HEAT_MAP_FAILED in row["message"]


def add_failure(row: Row, error: Exception) -> None:
    """Add to a row's message that its picture could not be written."""
    failure = f"{HEAT_MAP_FAILED} ({error})"
    row["message"] = "; ".join(filter(None, (row["message"], failure)))


def picture_name(path: str) -> str:
    """Name what is drawn of an image: 80 bytes of its name, and a digest of its whole path."""
    stem = os.fsencode(Path(path).stem)[:80].decode("utf-8", "ignore")
    return f"{stem}-{sha256_bytes(os.fsencode(path))[:8]}.png"


def rounded(row: Row) -> Row:
    """Round an answer to six digits; an image that got no answer has None as `probability`."""
    shown = {}
    for name, value in row.items():
        shown[name] = round(float(value), 6) if isinstance(value, float) else value
    if row.get("status", "ok") != "ok":
        shown["probability"] = None
    return shown


def heading(settings: Mapping[str, Any], record: str = "") -> str:
    """Say above the answers whose they are, and how often each kind of them was right."""
    title = f"P(pneumonia) by {settings['model']}"
    if settings["prevalence"] != "":
        title += f" at a prevalence of {settings['prevalence']:.3g}"
    if settings["threshold"] != "":
        title += f", threshold {settings['threshold']:.3f}"
    return "\n".join(filter(None, [f"{title}. Not a medical device.", record]))


def describe(row: Row) -> str:
    """Say an answer in one line, with nothing in it that a terminal would obey."""
    if row["status"] == "error":
        return printable(row["message"])
    if row["status"] == "ok":
        named = ", ".join(filter(None, (row["answer"], row["label"])))
        outcome = f"{row['probability']:.3f}  {named}"
    else:
        outcome = "no answer"
    reasons = "; ".join(filter(None, (row["message"], row["notice"])))
    return printable(f"{row['path']}  {outcome}{': ' if reasons else ''}{reasons}")


def printable(text: str) -> str:
    r"""Escape line breaks, control and direction characters: `a\nb` becomes `a\\nb`.

    Examples
    --------
    >>> print(printable("first\nsecond"))
    first\nsecond
    """
    shown = ""
    for character in text:
        escaped = character.encode("unicode_escape").decode("ascii")
        shown += character if character.isprintable() else escaped
    return shown


class AnswerTable:
    """A CSV file of answers: each row is on the disk before the next image is answered.

    A table that a stopped command left is continued: `answered` holds the paths that need no
    further answer. Rows of failures, of images changed since or without their picture, and a row
    that was cut are dropped.
    What is no regular file (a pipe, `/dev/stdout`) is written through.

    Parameters
    ----------
    file : Path
        Where the table is or will be.
    inputs : collection of str
        The images to answer; the table may be none of them.
    expected : dict
        What the rows to come have, see `prediction.settings_of`: a table of another model or
        with other settings is refused.
    pictures : collection of Path
        The folders into which each image is drawn.

    Raises
    ------
    InvalidDataError
        If the file is a folder, an input, no table of answers, or one of another model.
    """

    def __init__(
        self,
        file: Path,
        inputs: Collection[str],
        expected: Mapping[str, Any],
        pictures: Collection[Path] = (),
    ) -> None:
        if file.is_dir():
            raise InvalidDataError(f"--csv {file} is a folder. Fix: name a file.")
        if _is_one_of(file, inputs):
            raise InvalidDataError(
                f"--csv {file} is one of the images to answer. Fix: name another file."
            )
        self.file = file
        self.answered: set[str] = set()
        self._expected = {name: str(value) for name, value in rounded(dict(expected)).items()}
        self._pictures = pictures

    def __enter__(self) -> "AnswerTable":
        with storage_errors(self.file), ExitStack() as on_failure:
            begun = self.file.is_file() and self.file.stat().st_size > 0
            if begun:
                self._continue()
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._stream = on_failure.enter_context(_open_csv(self.file, "a"))
            self._writer = csv.DictWriter(self._stream, COLUMNS)
            if not begun:
                self._writer.writeheader()
            on_failure.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        with storage_errors(self.file):
            self._stream.close()

    def write(self, row: Row) -> None:
        """Append one answer (see `rounded`)."""
        texts = {name: _cell(value) for name, value in row.items() if isinstance(value, str)}
        with storage_errors(self.file):
            self._writer.writerow(row | texts)

    def remaining(self, files: Iterable[str]) -> list[str]:
        """List the files that the table does not answer yet."""
        return [file for file in files if _cell(file) not in self.answered]

    def _continue(self) -> None:
        """Keep the rows of an earlier call that still answer their image."""
        rows = self._read_rows()
        is_cut = not self.file.read_bytes().endswith(b"\n")
        if is_cut and rows:
            rows.pop()
        written = self.file.stat().st_mtime
        kept = [row for row in rows if self._is_valid(row, written)]
        if is_cut or len(kept) < len(rows):
            with atomic_write(self.file) as temporary, _open_csv(temporary, "w") as stream:
                writer = csv.DictWriter(stream, COLUMNS)
                writer.writeheader()
                writer.writerows(kept)
        self.answered = {row["path"] for row in kept}
        _log.info("%d images are answered in %s already", len(kept), self.file)

    def _read_rows(self) -> list[Row]:
        """Read the rows of a table that this class wrote; another file is refused."""
        header = ",".join(COLUMNS)
        with _open_csv(self.file, "r") as stream, suppress(csv.Error):
            if stream.readline(len(header) + 2).rstrip("\r\n") == header:
                return list(csv.DictReader(stream, COLUMNS))
        raise InvalidDataError(
            f"--csv {self.file} exists and is no table of answers. Fix: name another file."
        )

    def _is_valid(self, row: Row, written: float) -> bool:
        """Whether a row is whole and answers its image; a row of another model is refused."""
        if None in row or None in row.values():
            return False
        for name, expected in self._expected.items():
            if row[name] != expected:
                raise InvalidDataError(
                    f"--csv {self.file} holds answers with {name} {row[name]!r}, not "
                    f"{expected!r}. Fix: name another file, or delete this one."
                )
        image = Path(_path_of(row["path"]))
        pictures = [folder / picture_name(str(image)) for folder in self._pictures]
        if is_failure(row) or not all(picture.is_file() for picture in pictures):
            return False
        return not image.exists() or image.stat().st_mtime <= written


def _is_one_of(file: Path, inputs: Iterable[str]) -> bool:
    """Whether a path names one of the inputs, by whatever link."""
    for path in inputs:
        with suppress(OSError, ValueError):  # one of them is not there, or is no name of a file
            if file.samefile(path):
                return True
    return False


def _open_csv(file: Path, mode: str) -> IO[str]:
    """Open a table, which has every row on the disk once it is written.

    A name that is not UTF-8 is written with backslashes.
    """
    return file.open(mode, buffering=1, newline="", encoding="utf-8", errors="backslashreplace")


def _cell(text: str) -> str:
    """Write a text as a cell that a spreadsheet takes for text."""
    encoded = text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\0")
    return f"'{encoded}" if encoded.startswith(_FORMULA_STARTS) else encoded


def _path_of(cell: str) -> str:
    """Undo the apostrophe of `_cell`."""
    is_escaped = cell.startswith("'") and cell[1:].startswith(_FORMULA_STARTS)
    return cell[1:] if is_escaped else cell
