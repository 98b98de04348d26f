import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from outside import outside_references

from xraylib.cli import main
from xraylib.report import notebooks
from xraylib.storage import DataInvalid, NotFound

PICTURE = """from IPython.display import Image, display
from PIL import Image as Film
import io
buffer = io.BytesIO()
Film.new("L", (4, 4), 9).save(buffer, "PNG")
display(Image(buffer.getvalue(), alt="a gray square"))"""
BADGE = "[![Open in Colab](https://colab.example/badge.svg)](https://colab.example/github/x.ipynb)"


def notebook(path, *cells, parameters="depth = 1\nnames = []"):
    made = new_notebook(
        cells=[
            new_markdown_cell(
                f"# What is shown?\n\n{BADGE}\n\nThe answer. See [the paper](https://a.example)."
            ),
            new_code_cell(parameters, metadata={"tags": ["parameters"]}),
            *map(new_code_cell, cells),
        ],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )
    nbformat.write(made, path)
    return path


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """An executed notebook and its page."""
    folder = tmp_path_factory.mktemp("done")
    source = notebook(
        folder / "01_shown.ipynb", "secret_name = depth + 1\nprint(secret_name, names)", PICTURE
    )
    before = source.read_bytes()
    given = {"depth": 41, "names": ["a b", 'c"d']}
    notebooks.execute(source, folder / "out" / "01_shown.ipynb", given, page=folder / "pages" / "shown.html")
    assert source.read_bytes() == before
    return folder


def test_parameters_arrive(done):
    executed = nbformat.read(done / "out" / "01_shown.ipynb", as_version=4)
    printed = "".join(output.get("text", "") for cell in executed.cells for output in cell.get("outputs", []))
    assert printed == "42 ['a b', 'c\"d']\n"


def test_the_page_shows_results_and_no_code(done):
    page = (done / "pages" / "shown.html").read_text()
    assert "42 [" in page and "What is shown?" in page and "data:image/png;base64," in page
    for code in ("secret_name", "depth = 41", "injected-parameters", "Film.new"):
        assert code not in page


def test_the_page_fetches_nothing_from_outside(done):
    page = (done / "pages" / "shown.html").read_text()
    assert outside_references(page) == []
    assert "badge.svg" not in page and "https://a.example" in page


def test_nothing_else_is_left(done):
    files = sorted(str(path.relative_to(done)) for path in done.rglob("*") if path.is_file())
    assert files == ["01_shown.ipynb", "out/01_shown.ipynb", "pages/shown.html"]


@pytest.fixture
def earlier(tmp_path):
    """Output and page of an earlier, good run."""
    for name in ("out.ipynb", "page.html"):
        (tmp_path / name).write_text("of the last good run")
    return tmp_path


def unharmed(folder):
    texts = {(folder / name).read_text() for name in ("out.ipynb", "page.html")}
    assert texts == {"of the last good run"}
    assert not list(folder.glob(".partial-*"))


def test_a_failed_notebook_leaves_the_last_good_run_alone(earlier, capfd):
    source = notebook(earlier / "broken.ipynb", "first = 1", "raise ValueError('no film on the table')")
    command = ["execute", str(source), str(earlier / "out.ipynb"), "--page", str(earlier / "page.html")]
    assert main(command) == 1
    said = capfd.readouterr().err
    message = said[said.index("xraylib: ") :]
    assert "broken.ipynb, cell 3: ValueError: no film on the table" in message
    assert "out.failed.ipynb" in message and "Traceback" not in message
    assert "no film on the table" in (earlier / "out.failed.ipynb").read_text()
    unharmed(earlier)


def test_a_kernel_that_dies_is_a_failed_notebook(earlier):
    source = notebook(earlier / "killed.ipynb", "import os\nos._exit(1)")
    with pytest.raises(notebooks.NotebookFailed, match=r"killed\.ipynb.*Fix: "):
        notebooks.execute(source, earlier / "out.ipynb", {}, page=earlier / "page.html")
    unharmed(earlier)


def test_a_parameter_that_the_notebook_lacks_is_refused_before_it_runs(earlier):
    source = notebook(earlier / "asked.ipynb", "raise SystemExit")
    with pytest.raises(NotFound, match=r"asked\.ipynb has no parameter dept\. Fix: .*depth, names"):
        notebooks.execute(source, earlier / "out.ipynb", {"dept": 3}, page=earlier / "page.html")
    unharmed(earlier)


def test_a_notebook_that_is_not_there_is_named(earlier):
    with pytest.raises(NotFound, match=r"no notebook .*nowhere\.ipynb. Fix: "):
        notebooks.execute(earlier / "nowhere.ipynb", earlier / "out.ipynb", {})
    unharmed(earlier)


def test_what_is_no_notebook_is_named(earlier):
    (earlier / "torn.ipynb").write_text('{"cells": [')
    with pytest.raises(DataInvalid, match=r"torn\.ipynb is not a notebook.*Fix: "):
        notebooks.execute(earlier / "torn.ipynb", earlier / "out.ipynb", {})
    unharmed(earlier)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("true", True),
        ('["a"]', ["a"]),
        ("kermany", "kermany"),
        ("/data/films", "/data/films"),
        ("", ""),
    ],
)
def test_values_of_the_command_line(text, value):
    assert notebooks.parse_parameter(text) == value
