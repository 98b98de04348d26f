"""What a reader opens: a report's page and model card, and the numbers in Markdown files."""

import json
import re
import shlex
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from PIL import Image

from xraylib import paths
from xraylib.datasets import catalog
from xraylib.errors import InvalidDataError
from xraylib.evaluation import metrics, scores
from xraylib.evaluation.claims import WIDEST_HALF_WIDTH
from xraylib.figures import plots, style
from xraylib.report import tables
from xraylib.storage import atomic_write
from xraylib.training import runs
from xraylib.training.recipes import IMBALANCE_RECIPES, RECIPES
from xraylib.training.runs import COMMITTED

# Prevalences at which predictive values are stated: two where pneumonia is rare, and that of
# Kermany's official test.
PREVALENCES = (0.05, 0.2, 0.625)
# The main figures, in this order; the others are the supplement.
MAIN = (
    "01_flow",
    "06_lead",
    "06_framing",
    "06_view_gap",
    "06_leaderboard",
    "06_roc",
    "06_subgroups",
    "06_reliability",
    "06_external",
    "06_ood",
)
# What Hugging Face calls a licence; it calls others `other`.
_LICENCES = {"CC BY 4.0": "cc-by-4.0", "Apache-2.0": "apache-2.0"}
_TABLE = re.compile(r"(<!-- accuracy:(\S+) [^>]*-->)\n.*?(<!-- end -->)", re.DOTALL)
_VALUE = re.compile(r"(<!-- value:(\S+) (.*?) *-->).*?(<!-- end -->)", re.DOTALL)
_SECTION = re.compile(r"^\[(\w+)\]\n", re.MULTILINE)


def build(dataset: str) -> Path:
    """Write leaderboard, claims, model card and page of a report from its runs; return the page."""
    folder = tables.report_folder(dataset)
    board = tables.leaderboard(dataset)
    with atomic_write(folder / "leaderboard.csv") as temporary:
        board.to_csv(temporary, index=False, float_format="%.9g")
    claims = tables.claims(dataset)
    tables.save_table(claims, dataset, "claims")
    facts = {
        "dataset": dataset,
        "about": _dataset_facts(dataset),
        "notes": defaultdict(str, _notes(folder)),
        "rows": board.to_dict(orient="records"),
        "stale": plots.stale_note(board),
        "version": runs.TRAINING_VERSION,
        "controls": [name for name in RECIPES if name.endswith(("-exchanged", "-hidden"))],
        "claims": claims.to_dict(orient="records"),
        "checklist": (folder / "checklist.md").exists(),
        "hardware": "; ".join(sorted(set("; ".join(board["hardware"]).split("; ")))),
        "widest": WIDEST_HALF_WIDTH,
        "overlay": len(tables.read_rows(dataset, "overlay")),
        "notebooks": list(_notebooks(folder)),
        "shipped": _shipped_model(dataset),
    }
    facts |= _result_facts(dataset, board) | _file_facts(folder)
    for name in ("model_card.md", "index.html"):
        text = _environment().get_template(f"{name}.j2").render(facts)
        with atomic_write(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return folder / "index.html"


def _dataset_facts(dataset: str) -> dict[str, Any]:
    """Describe a data set from the catalogue, and from the scores of its report."""
    table = scores.load(dataset)
    test = table[(table["protocol"] == "strict") & (table["split"] == "test")]
    entry = catalog.DATASETS.get(dataset)
    return {
        "title": entry.title if entry else f"Images of {dataset}",
        "source": entry.source if entry else "",
        "licence": entry.licence if entry else "",
        "licence_tag": _LICENCES.get(entry.licence, "other") if entry else "other",
        "simulated": entry is not None and entry.phantom is not None,
        "known": entry is not None,
        "test_images": test["image_id"].nunique(),
        "test_patients": test["patient"].nunique(),
        "images": table["image_id"].nunique(),
        "patients": table["patient"].nunique(),
    }


def _notes(folder: Path) -> dict[str, str]:
    """Read what must be known of one data set from its `note.txt`.

    The text before the first line `[name]` is for the head of the page; the section of each name
    goes to its place in the page or the model card.
    """
    file = folder / "note.txt"
    if not file.exists():
        return {}
    first, *others = _SECTION.split(file.read_text(encoding="utf-8"))
    sections = dict(zip(others[::2], others[1::2], strict=True))
    return {name: text.strip() for name, text in {"head": first, **sections}.items()}


def _shipped_model(dataset: str) -> dict[str, Any] | None:
    """Describe the model that comes with the package, if it was trained on this data set."""
    file = paths.SHIPPED / "run.json"
    settings = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if settings.get("dataset") != dataset:
        return None
    sha256 = settings["answers"]["sha256"][:12]
    for name, table in (("quality", "packaged"), ("gate", "gate")):
        measured_file = tables.report_folder(dataset) / "tables" / f"{table}.csv"
        settings[name] = None
        if measured_file.exists():
            rows = pd.read_csv(measured_file, dtype={"model": str})
            if (rows["model"] == sha256).all():
                settings[name] = rows.to_dict(orient="records")
    return settings


def _result_facts(dataset: str, board: pd.DataFrame) -> dict[str, Any]:
    """Collect what page and card say of recipes: results, predictive values, settings."""
    groups = tables.group_runs(dataset)
    leading = tables.leading_groups(groups)
    everything = scores.load(dataset)
    variants = IMBALANCE_RECIPES[1:]
    predictive = {}
    strict = []
    rows = board.to_dict(orient="records")
    for group, row in zip(groups, rows, strict=True):
        if group not in leading or group.protocol != "strict" or group.recipe in variants:
            continue
        table = metrics.predictive(group.select(everything), PREVALENCES)
        predictive[group.recipe] = table.to_dict(orient="records")
        strict.append(row)
    external = tables.read_rows(dataset, "external")
    protocols = board.groupby("recipe", sort=False)["protocol"].agg(list)
    compute = []
    for group, row in zip(groups, rows, strict=True):
        choices = group.runs[0].settings["choices"]
        epochs = sum(phase["epochs"] for phase in choices.get("phases", []))
        compute.append((row, choices | {"epochs": epochs}))
    return {
        "strict": strict,
        "prevalences": PREVALENCES,
        "predictive": predictive,
        "external": [row for row in external if row["recipe"] not in variants],
        "recipes": [(RECIPES[name], some) for name, some in protocols.items() if name in RECIPES],
        "compute": compute,
    }


def _file_facts(folder: Path) -> dict[str, Any]:
    """Collect the figures and tables that a report links to."""
    figures = {file.stem: _figure(file) for file in sorted(folder.glob("figures/*.png"))}
    # By the number of the notebook that draws them.
    supplement: dict[str, list[tuple[Any, ...]]] = {}
    for stem, figure in figures.items():
        if stem not in MAIN:
            supplement.setdefault(stem[:2], []).append(figure)
    files = [folder / "leaderboard.csv", *sorted((folder / "tables").glob("*.csv"))]
    return {
        "tables": {file.stem: file.relative_to(folder).as_posix() for file in files},
        "figures": supplement,
        "main": [figures[stem] for stem in MAIN if stem in figures],
    }


def _figure(file: Path) -> tuple[Any, ...]:
    """Read source, caption, width and height in pixels."""
    with Image.open(file) as image:
        return f"figures/{file.name}", image.info.get("Description", file.stem), *image.size


def _notebooks(folder: Path) -> Iterator[tuple[str, str]]:
    """Find link and name of each notebook: its executed page, or its source if committed."""
    if folder.name in COMMITTED and folder == paths.ROOT / "reports" / folder.name:
        # Executed notebooks show patients and are not in git: a committed page must not need them.
        for notebook in sorted((paths.ROOT / "notebooks").glob("*.ipynb")):
            yield f"../../notebooks/{notebook.name}", notebook.stem
    else:
        for page in sorted((folder / "notebooks").glob("*.html")):
            yield f"notebooks/{page.name}", page.stem


def _environment() -> jinja2.Environment:
    """Prepare the templates and the filters that write numbers."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("xraylib.report"),
        autoescape=lambda name: ".html" in str(name),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["value"] = _value
    environment.filters["interval"] = _interval
    environment.filters["span"] = _span
    environment.filters["label"] = style.recipe_label
    environment.filters["percent"] = _percent
    return environment


def _value(value: Any) -> str:
    """Write three decimals, the words of a claim in quotes, or a dash for NaN."""
    try:
        return style.number(float(value))
    except ValueError:
        return f"“{value}”"


def _interval(row: dict[str, Any], name: str) -> str:
    """Write a column of a row with its interval."""
    return style.interval(row[name], row[f"{name}_low"], row[f"{name}_high"])


def _span(row: dict[str, Any], name: str) -> str:
    """Write the interval of a column alone."""
    return style.span(row[f"{name}_low"], row[f"{name}_high"])


def _percent(share: float) -> str:
    """Write a share as a percentage without decimals."""
    return style.number(100 * share, 0) + "%"


def write_readme_table(readme: Path) -> None:
    """Rewrite what a Markdown file takes from the reports; the rest of it is left alone.

    Between `<!-- accuracy:<dataset> … -->` and `<!-- end -->` stands the table of claimed and
    measured accuracies. `<!-- value:<file> … -->` begins a value, see `marked_value`. What refers
    to a report that is not on this machine stays as it is.
    """
    text = readme.read_text(encoding="utf-8")
    written = _TABLE.sub(_accuracy_table, text)
    written = _VALUE.sub(_written_value, written)
    if written != text:
        with atomic_write(readme) as temporary:
            temporary.write_text(written, encoding="utf-8")


def _accuracy_table(match: re.Match[str]) -> str:
    """Write the table of claimed and measured accuracies anew."""
    opening, dataset, closing = match.groups()
    file = tables.report_folder(dataset) / "leaderboard.csv"
    if not file.exists():
        return match[0]
    board = pd.read_csv(file)
    # The most runs come first where a recipe has several rows, as in `tables.leading_groups`.
    board = board.sort_values("seeds", ascending=False, kind="stable")
    board = board.drop_duplicates(["recipe", "protocol"])
    rows = {(row["recipe"], row["protocol"]): row for row in board.to_dict(orient="records")}
    recipes = [recipe for recipe in RECIPES.values() if recipe.published]
    template = _environment().get_template("readme.md.j2")
    lines = template.render(
        recipes=recipes,
        rows=rows,
        version=runs.TRAINING_VERSION,
    )
    return f"{opening}\n{lines.strip()}\n{closing}"


def _written_value(match: re.Match[str]) -> str:
    """Write one marked value anew."""
    opening, file, words, closing = match.groups()
    if not (paths.REPORTS / file).exists():
        return match[0]
    return f"{opening}{marked_value(file, words)}{closing}"


def marked_value(file: str, words: str) -> str:
    """Return the text of a value that a Markdown file takes from a file of the reports.

    Parameters
    ----------
    file
        A CSV or JSON file below `reports/`.
    words
        `name=value` pairs as in a shell. Of a CSV file, `column` names the value and all other
        pairs the row by its columns; `where` is a condition for `DataFrame.query` instead. `of` is
        `min` or `max` if several rows may match. Of a JSON file, `key` holds the keys, joined by
        dots. `format`: a Python format (`.3f`, the default; `.0%`), with `interval:` before it for
        the value and its interval, or `span:` for the interval alone.

    Returns
    -------
    str
        The number.

    Raises
    ------
    InvalidDataError
        If there is no such column, or not exactly one such row.
    """
    options = dict(pair.split("=", 1) for pair in shlex.split(words))
    kind, _, number_format = options.pop("format", ".3f").rpartition(":")
    path = paths.REPORTS / file
    if path.suffix == ".json":
        value = json.loads(path.read_text(encoding="utf-8"))
        for key in options["key"].split("."):
            value = value[key]
        return format(value, number_format).replace("-", "−")
    table = pd.read_csv(path)
    column = options.pop("column", "")
    take = options.pop("take", "only")
    rows = _matching_rows(table, options)
    ends = (f"{column}_low", f"{column}_high") if f"{column}_low" in table else ("low", "high")
    needed = [column, *ends] if kind else [column]
    if not set(needed) <= set(table) or rows.empty or (take == "only" and len(rows) > 1):
        raise InvalidDataError(
            f"{path}: {len(rows)} rows match `{words}`. "
            "Fix: name one row and a column of the table in the marker."
        )
    numbers = [_pick(rows[name], take) for name in needed]
    texts = [format(number, number_format).replace("-", "−") for number in numbers]
    if kind == "span":
        return _joined(texts[1:])
    return f"{texts[0]} ({_joined(texts[1:])})" if kind else texts[0]


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


def _pick(values: pd.Series, take: str) -> float:
    """Take the least, the largest or the only value."""
    return float(values.agg(take)) if take in ("min", "max") else float(values.iloc[0])


def _joined(ends: list[str]) -> str:
    """Join the ends of an interval."""
    return (" to " if "−" in "".join(ends) else "–").join(ends)
