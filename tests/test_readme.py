"""The numbers in README and notebooks are those of the committed tables and scores."""

import json
import re
import shlex

import nbformat
import pandas as pd
import pytest

from xraylib.paths import ROOT
from xraylib.training.recipes import get_recipe

REPORTS = ROOT / "reports"
MARKER = re.compile(r"<!-- value:(\S+) (.*?) *-->(.*?)<!-- end -->", re.DOTALL)


def marked():
    """The values in README and in the prose of notebooks that name their table."""
    texts = {"README": (ROOT / "README.md").read_text(encoding="utf-8")}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        prose = [cell.source for cell in cells if cell.cell_type == "markdown"]
        texts[path.stem] = "\n".join(prose)
    found = []
    for name, text in texts.items():
        for match in MARKER.finditer(text):
            found.append(pytest.param(*match.groups(), id=f"{name}: {match[2][:50]}"))
    return found


def in_json(file, options):
    value = json.loads(file.read_text())
    for key in options["key"].split("."):
        value = value[key]
    return [value]


def in_table(file, options):
    """The value, and the ends of its interval where there are any."""
    table = pd.read_csv(file)
    column = options.pop("column")
    take = options.pop("take", "")
    if "where" in options:
        table = table.query(options.pop("where"))
    for name, text in options.items():
        table = table[table[name].map(str) == text]
    values = table[column].to_numpy()
    if take:
        return [values.min() if take == "min" else values.max()]
    assert len(values) == 1
    ends = [f"{column}_low", f"{column}_high"]
    ends = ends if ends[0] in table else ["low", "high"]
    return [values[0], *(table[end].iloc[0] for end in ends if end in table)]


@pytest.mark.parametrize(("file", "words", "written"), marked())
def test_a_number_in_prose_is_that_of_its_table(file, words, written):
    options = dict(word.split("=", 1) for word in shlex.split(words))
    kind, _, form = options.pop("format", ".3f").rpartition(":")
    read = in_json if file.endswith(".json") else in_table
    due = read(REPORTS / file, options)
    due = {"": due[:1], "span": due[1:], "interval": due}[kind]
    scale = 100 if form.endswith("%") else 1
    decimals = int(form[1:-1])
    text = written.replace("−", "-")
    numbers = [float(number) for number in re.findall(r"(?<!\d)-?\d+(?:\.\d+)?", text)]
    assert numbers == pytest.approx([scale * value for value in due], abs=0.51 * 10**-decimals)
    assert text.count("%") == (len(due) if scale == 100 else 0)


def test_readme_marks_its_numbers():
    assert len(MARKER.findall((ROOT / "README.md").read_text(encoding="utf-8"))) >= 20


def test_what_was_measured_of_prediction_is_of_the_shipped_model():
    measured = json.loads((REPORTS / "prediction.json").read_text())
    shipped = json.loads((ROOT / "xraylib" / "weights" / "run.json").read_text())
    assert measured["sha256"] == shipped["answers"]["sha256"]


def test_the_stored_output_of_resnet_is_that_of_the_counts_its_remark_tells():
    stored = get_recipe("resnet50v2").stored_output
    positives = 390
    negatives = 234
    false_positives = 229
    assert f"{false_positives} of the {negatives} normal images" in get_recipe("resnet50v2").remark
    assert stored["accuracy"] == round(
        (positives + negatives - false_positives) / (positives + negatives), 3
    )
    assert stored["precision"] == round(positives / (positives + false_positives), 3)
    assert stored["sensitivity"] == 1
