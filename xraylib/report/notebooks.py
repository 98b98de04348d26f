"""Running a notebook headlessly with Papermill, and showing it as an HTML page without code."""

import json
import logging
import re
import shutil
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import latex2mathml.converter
import nbformat
import papermill
from jinja2 import pass_context
from jinja2.runtime import Context
from nbclient.exceptions import DeadKernelError
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from xraylib.errors import InvalidDataError, NotFoundError, OperationFailedError
from xraylib.storage import atomic_write, write_text

# What a page would fetch from the network: the Colab badge, and scripts for formulas and widgets.
_BADGE = re.compile(r"\[!\[[^\]]*\]\(https?://[^)]*\)\]\([^)]*\)\s*")
_SCRIPT = re.compile(r"<script\b.*?</script>", re.DOTALL)
_UNDESCRIBED = 'alt="No description has been provided for this image"'
_TERMINAL_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# Progress bars, which a page could only show as they were at their start.
_WIDGET = "application/vnd.jupyter.widget-view+json"
# The data sets that the prose of the notebooks speaks of, and what a page of another one says.
WRITTEN_FOR = ("phantom", "kermany")
_OTHER_DATA = (
    "**The text below was written for the phantom and for Kermany's images.** Only the tables, the "
    "figures and the lines that begin with *Here* are about your images."
)


def execute(
    notebook: Path, output: Path, parameters: Mapping[str, Any], *, html: Path | None = None
) -> None:
    """Run a notebook with parameters.

    Parameters
    ----------
    notebook
        The notebook; it is not changed.
    output
        Where the executed copy goes; after a failure, to `<name>.failed.ipynb` instead.
    parameters
        Values for the cell that is tagged `parameters`.
    html
        Where the page of the executed copy goes, if one is wanted.

    Raises
    ------
    NotFoundError
        If there is no such notebook, or no such parameter.
    InvalidDataError
        If the file is not a notebook.
    OperationFailedError
        If a cell raised, which is named, or the kernel died.
    """
    _check_parameters(notebook, parameters)
    failed = output.with_suffix(".failed.ipynb")
    with atomic_write(output) as temporary:
        try:
            papermill.execute_notebook(
                str(notebook),
                str(temporary),
                dict(parameters),
                kernel_name="python3",
                cwd=str(notebook.parent),
                progress_bar=False,
                # The kernel would warn on every start that it talks over the loopback interface.
                extra_arguments=["--IPKernelApp.log_level=ERROR"],
            )
        except papermill.PapermillExecutionError as error:
            shutil.copyfile(temporary, failed)
            raise _failure(notebook, error, failed) from error
        except DeadKernelError as error:
            raise OperationFailedError(
                f"{notebook.name}: its kernel died, perhaps for want of memory. "
                "Fix: free some memory, run the same command again."
            ) from error
    failed.unlink(missing_ok=True)
    if html is not None:
        note = "" if parameters.get("dataset", "phantom") in WRITTEN_FOR else _OTHER_DATA
        write_page(output, html, notebook.stem, note)


def _failure(notebook: Path, error: Any, failed: Path) -> OperationFailedError:
    """Name the cell that raised, without the colours of a terminal."""
    reason = _TERMINAL_COLOUR.sub("", error.evalue)
    return OperationFailedError(
        f"{notebook.name}, cell {error.exec_count}: {error.ename}: {reason}\n"
        f"The copy with the traceback is {failed}."
    )


def _check_parameters(notebook: Path, parameters: Mapping[str, Any]) -> None:
    """Refuse what Papermill would only warn of, or refuse without a fix."""
    if not notebook.is_file():
        raise NotFoundError(f"no notebook {notebook}. Fix: give one of {notebook.parent}/*.ipynb.")
    try:
        available = papermill.inspect_notebook(str(notebook))
    except ValueError as error:
        raise InvalidDataError(
            f"{notebook} is not a notebook that runs ({error}). "
            "Fix: take it from the repository again."
        ) from error
    unknown = ", ".join(name for name in parameters if name not in available)
    if unknown:
        raise NotFoundError(
            f"{notebook.name} has no parameter {unknown}. Fix: choose from {', '.join(available)}."
        )


class _Renderer(IPythonRenderer):
    """Write formulas as MathML, which a browser draws without a script; leave HTML as it is.

    nbconvert closes every piece of HTML by itself, and so unfolds the solutions of exercises.
    """

    def block_html(self, html: str) -> str:
        return html

    def block_math(self, body: str) -> str:
        return _to_mathml(body, "block")

    def inline_math(self, body: str) -> str:
        return _to_mathml(body, "inline")


def _to_mathml(formula: str, display: str) -> str:
    """Convert a formula; one that the converter does not understand is shown as it is written."""
    try:
        return latex2mathml.converter.convert(formula, display=display)
    except Exception:  # of many kinds: anybody may have written the formula
        return f"<code>{escape(formula)}</code>"


@pass_context
def _to_html(context: Context, markdown: str) -> str:
    """Convert the Markdown of a cell as `HTMLExporter` does, except for formulas."""
    attachments = context.get("cell", {}).get("attachments", {})
    renderer = _Renderer(escape=False, attachments=attachments, embed_images=True)
    return MarkdownWithMath(renderer=renderer).render(markdown)


def write_page(executed: Path, page: Path, title: str, note: str = "") -> None:
    """Write an executed notebook as one HTML file without code, scripts or anything to fetch.

    `note` is Markdown that is written above the notebook.
    """
    notebook = nbformat.read(executed, as_version=4)
    cells = [nbformat.v4.new_markdown_cell(note)] if note else []
    descriptions = []
    for cell in notebook.cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            continue
        cells.append(cell)
        if cell.cell_type == "markdown":
            cell.source = _BADGE.sub("", cell.source)
            continue
        outputs = cell.get("outputs", [])
        cell.outputs = [output for output in outputs if _WIDGET not in output.get("data", {})]
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                # `style.Figure` describes itself in the output's metadata.
                png = output.metadata.get("image/png", {})
                descriptions.append(png.get("alt", "figure"))
    notebook.cells = cells
    exporter = HTMLExporter(exclude_input=True, embed_images=True, exclude_input_prompt=True)
    exporter.exclude_output_prompt = True
    exporter.mathjax_url = ""
    exporter.require_js_url = ""
    exporter.jquery_url = ""
    exporter.register_filter("markdown2html", _to_html)
    # It complains of pictures without a description, which its template ignores.
    exporter.log.setLevel(logging.ERROR)
    html, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": title}})
    for description in descriptions:
        html = html.replace(_UNDESCRIBED, f'alt="{escape(description)}"', 1)
    write_text(page, _SCRIPT.sub("", html))


def parse_parameter(text: str) -> Any:
    """Read a value of the command line: JSON if it is JSON (`3`, `["a"]`), otherwise the text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
