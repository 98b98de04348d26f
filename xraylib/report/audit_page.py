"""An audit as a table for a terminal, and as one HTML page that needs nothing else."""

import base64
import io
import textwrap
from pathlib import Path

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
    for number, row in enumerate(findings.to_dict("records"), start=1):
        advice = (row["meaning"], row["fix"])
        shown = ("as above", "as above") if advice == before else advice
        before = advice
        cells = (str(number), row["level"], row["finding"], *shown)
        lines += [*_table_row(cells, widths), ""]
    return "\n".join(lines).rstrip()


def _table_row(cells: tuple[str, ...], widths: list[int]) -> list[str]:
    """Wrap the cells of one row into lines."""
    columns = [textwrap.wrap(cell, width) for cell, width in zip(cells, widths, strict=True)]
    lines = []
    for number in range(max(map(len, columns))):
        parts = []
        for column, width in zip(columns, widths, strict=True):
            text = column[number] if number < len(column) else ""
            parts.append(text.ljust(width))
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
    bad = audit.files[audit.files["quarantine"].astype(bool)]
    facts = {
        "audit": audit,
        "version": __version__,
        "level": shortcuts.LEVEL,
        "findings": audit.findings.to_dict("records"),
        "features": [feature | {"label": feature_label(feature)} for feature in features],
        "classes": class_counts(audit.images).to_dict("records"),
        "files": bad.head(_FILES_SHOWN).to_dict("records"),
        "bad_files": len(bad),
        "feature_figure": _features_figure(audit.features) if features else "",
        "framing_figure": "",
    }
    if audit.scores is not None and len(audit.scores.response):
        facts["framing_figure"] = _framing_figure(audit.scores.response)
    text = environment.get_template("audit.html.j2").render(facts)
    with atomic_write(file) as temporary:
        # A file name need not be UTF-8.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


@style.styled
def _features_figure(features: pd.DataFrame) -> str:
    """Draw the AUC of every feature, in the colour of its level."""
    table = features.assign(row=range(len(features)))
    labels = {
        row["row"]: f"{feature_label(row)} ({row['level']})" for row in table.to_dict("records")
    }
    fig, axes = plots.blank(7.5, 0.6 + 0.27 * len(table))
    panel = (table, "auc", "AUC on held-out patients (dotted: what is warned of)")
    plots.forest(
        axes[0],
        [panel],
        "row",
        labels,
        within="level",
        start=0.45,
        line=shortcuts.LEVEL,
        text=True,
    )
    return _data_url(fig)


@style.styled
def _framing_figure(response: pd.DataFrame) -> str:
    """Draw the share classified correctly by lung height, for both classes."""
    table = response.assign(row=range(len(response)))
    labels = {
        row["row"]: f"{row['diagnosis']}, lungs fill {row['lung_height']}"
        for row in table.to_dict("records")
    }
    fig, axes = plots.blank(7.5, 0.6 + 0.27 * len(table))
    panel = (table, "correct", "Share classified correctly")
    plots.forest(axes[0], [panel], "row", labels, within="diagnosis", start=0.0, text=True)
    return _data_url(fig)


def _data_url(fig: style.Figure) -> str:
    """Draw a figure as an SVG that stands in the page itself."""
    drawn = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "audit"}):
        fig.savefig(drawn, format="svg", metadata={"Date": None}, bbox_inches="tight")
    return "data:image/svg+xml;base64," + base64.b64encode(drawn.getvalue()).decode()
