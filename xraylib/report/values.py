"""Numbers that a text takes from the tables of a report."""

import shlex

import pandas as pd

from xraylib import paths
from xraylib.errors import InvalidDataError, NotFoundError


def marked_value(file: str, words: str) -> str:
    """Return the text of a value that a Markdown file takes from a file of the reports.

    Parameters
    ----------
    file
        A CSV file below `reports/`.
    words
        `name=value` pairs as in a shell. `column` names the value and all other pairs the row by
        its columns; `where` is a condition for `DataFrame.query` instead. `take` is `min` or `max`
        if several rows may match. `format`: a Python format (`.3f`, the default; `.0%`), with
        `interval:` before it for the value and its interval.

    Returns
    -------
    str
        The number.

    Raises
    ------
    NotFoundError
        If there is no such file.
    InvalidDataError
        If there is no such column, or not exactly one such row.
    """
    options = dict(pair.split("=", 1) for pair in shlex.split(words))
    kind, _, number_format = options.pop("format", ".3f").rpartition(":")
    table = read_table(file)
    column = options.pop("column", "")
    take = options.pop("take", "only")
    rows = _matching_rows(table, options)
    ends = (f"{column}_low", f"{column}_high") if f"{column}_low" in table else ("low", "high")
    needed = [column, *ends] if kind else [column]
    if not set(needed) <= set(table) or rows.empty or (take == "only" and len(rows) > 1):
        raise InvalidDataError(
            f"{paths.REPORTS / file}: {len(rows)} rows match `{words}`. "
            "Fix: name one row and a column of the table in the marker."
        )
    numbers = rows[needed].agg("min" if take == "only" else take)
    texts = [format(number, number_format).replace("-", "−") for number in numbers]
    if not kind:
        return texts[0]
    between = " to " if "−" in "".join(texts[1:]) else "–"
    return f"{texts[0]} ({between.join(texts[1:])})"


def read_table(file: str) -> pd.DataFrame:
    """Read a CSV file below `reports/`; `NotFoundError` if it is not there."""
    path = paths.REPORTS / file
    if not path.exists():
        raise NotFoundError(f"{path} is not there. Fix: run `make reproduce`, which writes it.")
    return pd.read_csv(path)


def _matching_rows(table: pd.DataFrame, options: dict[str, str]) -> pd.DataFrame:
    """Select the rows of a table that a marker names."""
    for name, value in options.items():
        if name == "where":
            table = table.query(value)
        elif name in table:
            table = table[table[name].astype(str) == value]
        else:
            return table.iloc[:0]
    return table
