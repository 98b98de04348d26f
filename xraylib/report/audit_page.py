"""An audit as a table for a terminal, and as one HTML page that needs nothing else."""

import base64
import io
import itertools
import textwrap
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import pandas as pd

from xraylib import __version__
from xraylib.evaluation import shortcuts
from xraylib.figures import plots, style
from xraylib.report.dataset_audit import Audit, class_counts, feature_label
from xraylib.storage import atomic_write

# Files with a finding that a page lists.
_FILES_SHOWN = 50
_HEADINGS = ("", "level", "finding", "what it means", "what to do")
# Shares of the width that the last three columns of the terminal's table take.
_SHARES = (0.38, 0.32, 0.30)


def terminal_table(findings: pd.DataFrame, width: int) -> str:
    """Write findings as a table of `width` characters at most, worst first."""
    room = max(60, width - 18)
    widths = [2, 8, *(int(room * share) for share in _SHARES)]
    lines = _table_row(_HEADINGS, widths)
    lines.append("-" * min(width, sum(widths) + 8))
    before = None
    for number, row in enumerate(findings.itertuples(index=False), start=1):
        advice = (row.meaning, row.fix)
        shown = ("as above", "as above") if advice == before else advice
        before = advice
        lines += [*_table_row((str(number), row.level, row.finding, *shown), widths), ""]
    return "\n".join(lines).rstrip()


def _table_row(cells: tuple[Any, ...], widths: list[int]) -> list[str]:
    """Wrap the cells of one row into lines."""
    columns = [textwrap.wrap(cell, width) for cell, width in zip(cells, widths, strict=True)]
    lines = []
    for texts in itertools.zip_longest(*columns, fillvalue=""):
        parts = [text.ljust(width) for text, width in zip(texts, widths, strict=True)]
        lines.append("  ".join(parts).rstrip())
    return lines


def write_page(audit: Audit, file: Path) -> None:
    """Write the page of an audit: tables and figures, without a patient's pixels."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("xraylib.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = style.number
    environment.filters["interval"] = style.interval
    features = audit.features.to_dict("records")
    features = [feature | {"label": feature_label(feature)} for feature in features]
    response = audit.scores.response if audit.scores else pd.DataFrame()
    bad = audit.files[audit.files["quarantine"].astype(bool)]
    facts = {
        "audit": audit,
        "version": __version__,
        "level": shortcuts.LEVEL,
        "findings": audit.findings.to_dict("records"),
        "features": features,
        "classes": class_counts(audit.images).to_dict("records"),
        "files": bad.head(_FILES_SHOWN).to_dict("records"),
        "bad_files": len(bad),
        "feature_figure": _forest(
            (audit.features, "auc", "AUC on held-out patients (dotted: what is warned of)"),
            [f"{feature['label']} ({feature['level']})" for feature in features],
            within="level",
            start=0.45,
            line=shortcuts.LEVEL,
        ),
        "framing_figure": _forest(
            (response, "correct", "Share classified correctly"),
            [f"{row.diagnosis}, lungs fill {row.lung_height}" for row in response.itertuples()],
            within="diagnosis",
            start=0.0,
        ),
    }
    text = environment.get_template("audit.html.j2").render(facts)
    with atomic_write(file) as temporary:
        # A file name need not be UTF-8.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


@style.styled
def _forest(panel: tuple[pd.DataFrame, str, str], labels: list[str], **options: Any) -> str:
    """Draw a value of each row of a table as an SVG that stands in the page itself.

    See `plots.forest` for `panel` and `options`. Of an empty table nothing is drawn.
    """
    table, value, title = panel
    if table.empty:
        return ""
    fig, axes = plots.blank(7.5, 0.6 + 0.27 * len(table))
    numbered = (table.assign(row=range(len(table))), value, title)
    plots.forest(axes[0], [numbered], "row", dict(enumerate(labels)), text=True, **options)
    drawn = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "audit"}):
        fig.savefig(drawn, format="svg", metadata={"Date": None}, bbox_inches="tight")
    return "data:image/svg+xml;base64," + base64.b64encode(drawn.getvalue()).decode()
