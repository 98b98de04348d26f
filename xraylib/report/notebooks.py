"""Running a notebook headlessly with Papermill, and showing it as an HTML page without code."""

import json
import logging
import re
import shutil
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from nbconvert import HTMLExporter

from xraylib.errors import InvalidDataError, NotFoundError, OperationFailedError
from xraylib.storage import atomic_write

# What a page would fetch from the network: the Colab badge, and what scripts for formulas and widgets load.
_BADGE = re.compile(r"\[!\[[^\]]*\]\(https?://[^)]*\)\]\([^)]*\)\s*")
_SCRIPT = re.compile(r"<script\b.*?</script>", re.DOTALL)
_UNDESCRIBED = 'alt="No description has been provided for this image"'
# Progress bars, which a page could only show as they stood at their start.
_WIDGET = "application/vnd.jupyter.widget-view+json"


def execute(
    notebook: Path, output: Path, parameters: Mapping[str, Any], *, html: Path | None = None
) -> None:
    """Run a notebook with parameters, write the executed copy and, if wanted, its page.

    `OperationFailedError` names the cell that raised; the copy that failed is written beside `output` as `<name>.failed.ipynb`, and
    the output and page of the last good run are left alone.
    """
    if not notebook.is_file():
        raise NotFoundError(f"no notebook {notebook}. Fix: give one of {notebook.parent}/*.ipynb.")
    try:
        known = papermill.inspect_notebook(str(notebook))
    except ValueError as error:
        fix = "take it from the repository again"
        raise InvalidDataError(
            f"{notebook} is not a notebook that runs ({error}). Fix: {fix}."
        ) from error
    # Papermill itself would only warn.
    if unknown := ", ".join(name for name in parameters if name not in known):
        raise NotFoundError(
            f"{notebook.name} has no parameter {unknown}. Fix: choose from {', '.join(known)}."
        )
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
            plain = re.sub(r"\x1b\[[0-9;]*m", "", error.evalue)
            raise OperationFailedError(
                f"{notebook.name}, cell {error.exec_count}: {error.ename}: {plain}\n"
                f"The copy with the traceback is {failed}."
            ) from error
        except DeadKernelError as error:
            fix = "free some memory, then run the same command again"
            raise OperationFailedError(
                f"{notebook.name}: its kernel died, perhaps for want of memory. Fix: {fix}."
            ) from error
        if html is not None:
            write_page(temporary, html, notebook.stem)
    failed.unlink(missing_ok=True)


def write_page(executed: Path, page: Path, title: str) -> None:
    """Write an executed notebook as one HTML file: no code, images inside, no script, nothing fetched."""
    notebook = nbformat.read(executed, as_version=4)
    shown = (
        cell
        for cell in notebook.cells
        if "injected-parameters" not in cell.metadata.get("tags", [])
    )
    notebook.cells, descriptions = list(shown), []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _BADGE.sub("", cell.source)
            continue
        cell.outputs = [
            output for output in cell.get("outputs", []) if _WIDGET not in output.get("data", {})
        ]
        pictures = [output for output in cell.outputs if "image/png" in output.get("data", {})]
        # `style.Figure` describes itself beside the picture.
        descriptions += [one.metadata.get("image/png", {}).get("alt", "figure") for one in pictures]
    exporter = HTMLExporter(exclude_input=True, embed_images=True, exclude_input_prompt=True)
    exporter.exclude_output_prompt = True
    exporter.mathjax_url = exporter.require_js_url = exporter.jquery_url = ""
    # It complains of pictures without a description, because its template passes over the one they have.
    exporter.log.setLevel(logging.ERROR)
    html, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": title}})
    for description in descriptions:
        html = html.replace(_UNDESCRIBED, f'alt="{escape(description)}"', 1)
    with atomic_write(page) as temporary:
        temporary.write_text(_SCRIPT.sub("", html), encoding="utf-8")


def parse_parameter(text: str) -> Any:
    """A command line's value: JSON where it is JSON (`3`, `true`, `["a"]`), otherwise the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
