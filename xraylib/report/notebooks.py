"""Running a notebook headlessly with Papermill, and showing it as a page without code.

A failed notebook leaves the pages and outputs of the last good run alone.
"""

import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from nbconvert import HTMLExporter

from xraylib.storage import DataInvalid, NotFound, XraylibError, atomic

log = logging.getLogger(__name__)

# What a page would fetch from the network: the Colab badge, and what scripts for formulas and widgets load.
_BADGE = re.compile(r"\[!\[[^\]]*\]\(https?://[^)]*\)\]\([^)]*\)\s*")
_SCRIPT = re.compile(r"<script\b.*?</script>", re.DOTALL)
_UNDESCRIBED = 'alt="No description has been provided for this image"'
# Progress bars, which a page could only show as they stood at their start.
_WIDGET = "application/vnd.jupyter.widget-view+json"


class NotebookFailed(XraylibError):
    """A cell of a notebook raised; the message says which, and where the failed copy lies."""


def execute(notebook: Path, output: Path, parameters: Mapping[str, Any], *, page: Path | None = None) -> None:
    """Run a notebook with parameters, write the executed copy and its page.

    Parameters
    ----------
    notebook
        The source; its cell tagged `parameters` says which there are.
    output
        Where the executed copy goes; a failed one goes beside it as `<name>.failed.ipynb`.
    parameters
        Values by name.
    page
        Where an HTML page without code goes, if wanted.

    Raises
    ------
    NotFound
        When there is no such notebook.
    DataInvalid
        When the file is not a notebook, or names no kernel.
    NotFound
        For a parameter that the notebook does not have: Papermill would only warn.
    NotebookFailed
        When a cell raises, or the kernel dies.
    """
    if not notebook.is_file():
        raise NotFound(f"no notebook {notebook}. Fix: give one of {notebook.parent}/*.ipynb.")
    try:
        known = papermill.inspect_notebook(str(notebook))
    except ValueError as error:
        raise DataInvalid(
            f"{notebook} is not a notebook that runs ({error}). Fix: take it from the repository again."
        ) from error
    unknown = [name for name in parameters if name not in known]
    if unknown:
        raise NotFound(
            f"{notebook.name} has no parameter {', '.join(unknown)}. Fix: choose from {', '.join(known)}."
        )
    failed = output.with_suffix(".failed.ipynb")
    with atomic(output) as temporary:
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
            raise NotebookFailed(
                f"{notebook.name}, cell {error.exec_count}: {error.ename}: {_plain(error.evalue)}\n"
                f"The copy with the traceback is {failed}."
            ) from error
        except DeadKernelError as error:
            raise NotebookFailed(
                f"{notebook.name}: its kernel died, as it does when memory runs out. Fix: free some memory, "
                "then run the same command again."
            ) from error
        if page is not None:
            write_page(temporary, page, title=notebook.stem)
    failed.unlink(missing_ok=True)


def write_page(executed: Path, page: Path, *, title: str) -> None:
    """Write an executed notebook as one HTML file: no code, images inside, no script, nothing fetched."""
    notebook = nbformat.read(executed, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in _tags(cell)]
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _BADGE.sub("", cell.source)
        else:
            cell.outputs = [output for output in cell.outputs if _WIDGET not in output.get("data", {})]
    exporter = HTMLExporter(exclude_input=True, embed_images=True, exclude_input_prompt=True)
    exporter.exclude_output_prompt = True
    exporter.mathjax_url = exporter.require_js_url = exporter.jquery_url = ""
    # It complains of pictures without a description, because its template passes over the one they have.
    exporter.log.setLevel(logging.ERROR)
    html, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": title}})
    for said in _descriptions(notebook):
        html = html.replace(_UNDESCRIBED, f'alt="{escape(said)}"', 1)
    with atomic(page) as temporary:
        temporary.write_text(_SCRIPT.sub("", html), encoding="utf-8")


def parse_parameter(text: str) -> Any:
    """A command line's value: JSON where it is JSON (`3`, `true`, `["a"]`), otherwise the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _descriptions(notebook: nbformat.NotebookNode) -> Iterator[str]:
    """What each picture shows, in their order; `canvas.Figure` says it with the picture."""
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", []))
    for output in outputs:
        if "image/png" in output.get("data", {}):
            yield output["metadata"].get("image/png", {}).get("alt", "figure")


def _tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.get("metadata", {}).get("tags", [])


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)
