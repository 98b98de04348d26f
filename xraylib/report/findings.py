"""What a report tells of one data set: `findings.toml`, with its numbers and figures from tables.

The file holds `title`, `sentence` (the finding in one), `others` (about `others.csv`), `lead` and a
list `finding`. The lead and each finding hold `name`, `text`, `more` (what the page folds), `table`
(a file that the text quotes), `caption` and `figure`; a finding has `title` and `caveat` as well.
A figure names its `table`, a condition `where` for `DataFrame.query`, and the arguments of
`story.lines` (with `x`) or `story.dots`. Texts take numbers by
`{{ value("tables/claims.csv", "recipe=… column=…") }}`, see `values.marked_value`.
"""

import tomllib
from collections.abc import Mapping
from typing import Any

import jinja2
import pandas as pd

from xraylib import paths
from xraylib.figures import story
from xraylib.report import tables
from xraylib.report.values import marked_value, read_table

# Figures of findings: their names begin so, and the page shows them with their finding.
PREFIX = "00_"
# Sharper than other figures, because a page shows them larger than they are drawn.
_DPI = 220


def load(dataset: str, pattern: str) -> dict[str, Any]:
    """Read `findings.toml` of a report and write the numbers into its texts.

    Parameters
    ----------
    dataset
        Name of the report.
    pattern
        What is written for each number: a text with `{number}` and perhaps `{file}` and `{words}`,
        which name its place in the reports.

    Returns
    -------
    dict
        What the file holds; empty if the report has none.
    """
    file = paths.REPORTS / dataset / "findings.toml"
    if not file.exists():
        return {}
    return _written(tomllib.loads(file.read_text(encoding="utf-8")), dataset, pattern)


def _written(item: Any, dataset: str, pattern: str) -> Any:
    """Write the numbers into every text of a TOML file."""
    if isinstance(item, dict):
        return {key: _written(inner, dataset, pattern) for key, inner in item.items()}
    if isinstance(item, list):
        return [_written(inner, dataset, pattern) for inner in item]
    return write(item, dataset, pattern) if isinstance(item, str) else item


def write(text: str, dataset: str, pattern: str = "{number}") -> str:
    """Write the numbers of a report into a text, see `load`."""

    def value(file: str, words: str) -> str:
        place = f"{dataset}/{file}"
        return pattern.format(number=marked_value(place, words), file=place, words=words)

    template = jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(text)
    return template.render(value=value).strip()


def draw(told: Mapping[str, Any], dataset: str) -> None:
    """Draw the figures of the lead and of each finding, with their titles as captions."""
    for part in [told["lead"], *told["finding"]]:
        spec = dict(part["figure"])
        table = _rows(read_table(f"{dataset}/tables/{spec.pop('table')}.csv"), spec)
        figure = story.lines(table, **spec) if "x" in spec else story.dots(table, **spec)
        tables.save_figure(figure, dataset, PREFIX + part["name"], part["caption"], dpi=_DPI)


def _rows(table: pd.DataFrame, spec: dict[str, Any]) -> pd.DataFrame:
    """Select the rows that a figure shows, in the order of its recipes."""
    if "where" in spec:
        table = table.query(spec.pop("where"))
    if "recipes" in spec:
        recipes = spec.pop("recipes")
        table = table[table["recipe"].isin(recipes)]
        table = table.sort_values("recipe", key=lambda names: names.map(recipes.index))
    return _by_split(table) if spec.get("within") == "split" and "split" not in table else table


def _by_split(table: pd.DataFrame) -> pd.DataFrame:
    """Turn columns `val` and `test`, with their intervals, into two rows."""
    parts = []
    for split in ("val", "test"):
        columns = {split: "value", f"{split}_low": "value_low", f"{split}_high": "value_high"}
        part = table[["recipe", "view", *columns]].rename(columns=columns)
        parts.append(part.assign(split=split))
    return pd.concat(parts, ignore_index=True)
