"""What a reader opens: a report's page and model card, and what Markdown files take from it."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from PIL import Image

from xraylib import __version__, paths
from xraylib.datasets import catalog
from xraylib.evaluation import metrics, scores
from xraylib.evaluation.claims import TOO_WIDE, WIDEST_HALF_WIDTH, made_on
from xraylib.figures import plots, style
from xraylib.report import findings, tables
from xraylib.report.values import marked_value
from xraylib.storage import write_table, write_text
from xraylib.training import runs
from xraylib.training.recipes import FLAGSHIP, IMBALANCE_RECIPES, RECIPES, Recipe
from xraylib.training.runs import COMMITTED

# What a template writes, by name.
Facts = dict[str, Any]

# Prevalences at which predictive values are stated, beside that of the test.
PREVALENCES = (0.05, 0.2)
# Blocks of a Markdown file that a template writes.
_BLOCK = re.compile(r"(<!-- (accuracy|findings):(\S+) [^>]*-->)\n.*?(<!-- end \2 -->)", re.S)
_VALUE = re.compile(r"(<!-- value:(\S+) (.*?) *-->).*?(<!-- end -->)", re.DOTALL)
_SECTION = re.compile(r"^\[(\w+)\]\n", re.MULTILINE)
_CITED = re.compile(r'^(?:  - )?([\w-]+): "?(.*?)"?$', re.MULTILINE)


def build(dataset: str) -> Path:
    """Write leaderboard, claims, model card and page of a report from its runs; return the page."""
    folder = paths.REPORTS / dataset
    board = tables.leaderboard(dataset)
    write_table(folder / "leaderboard.csv", board, "%.9g")
    claims = tables.claims(dataset)
    tables.save_table(claims, dataset, "claims")
    told = findings.load(dataset, '<span class="number">{number}</span>')
    if told:
        findings.draw(told, dataset)
    about = _dataset_facts(dataset)
    facts = {
        "dataset": dataset,
        "about": about,
        "notes": _notes(dataset),
        "told": told,
        # As others wrote it: numbers stay text.
        "others": tables.read_rows(dataset, "others", dtype=str, keep_default_na=False),
        "cited": _citation(),
        "stale": plots.stale_note(board),
        "version": runs.TRAINING_VERSION,
        # Claims are compared on the images that they were made on.
        "judged": made_on(dataset),
        "claims": claims.to_dict(orient="records"),
        "checklist": (folder / "checklist.md").exists(),
        "hardware": "; ".join(sorted(set("; ".join(board["hardware"]).split("; ")))),
        "widest": WIDEST_HALF_WIDTH,
        "overlay": len(tables.read_rows(dataset, "tables/overlay")),
        "notebooks": list(_notebooks(folder)),
        "shipped": _shipped_model(dataset),
    }
    facts |= _system_facts(board, claims) | _file_facts(folder)
    facts |= _result_facts(dataset, board, about["test_positive"])
    for name in ("model_card.md", "index.html"):
        text = _environment().get_template(f"{name}.j2").render(facts)
        write_text(folder / name, text)
    return folder / "index.html"


def _dataset_facts(dataset: str) -> Facts:
    """Describe a data set from the catalogue, and from the scores of its report."""
    table = scores.load(dataset)
    test = table[(table["protocol"] == "strict") & (table["split"] == "test")]
    unknown = catalog.Dataset(dataset, f"Images of {dataset}", source="", licence="", folder="")
    entry = catalog.DATASETS.get(dataset, unknown)
    return {
        "title": entry.title,
        "source": entry.source,
        "licence": entry.licence,
        "simulated": entry.phantom is not None,
        "known": entry is not unknown,
        "test_images": test["image_id"].nunique(),
        "test_patients": test["patient"].nunique(),
        "test_positive": test.drop_duplicates("image_id")["label"].mean(),
        "images": table["image_id"].nunique(),
        "patients": table["patient"].nunique(),
    }


def _notes(dataset: str) -> defaultdict[str, str]:
    """Read what must be known of one data set from its `note.txt`.

    The text before the first line `[name]` is for the head of the card; the section of each name
    goes to its place in the page or the model card. Numbers are written as in `findings`.
    """
    file = paths.REPORTS / dataset / "note.txt"
    if not file.exists():
        return defaultdict(str)
    first, *others = _SECTION.split(findings.write(file.read_text(encoding="utf-8"), dataset))
    sections = dict(zip(others[::2], others[1::2], strict=True)) | {"head": first}
    return defaultdict(str, {name: text.strip() for name, text in sections.items()})


def _citation() -> dict[str, str]:
    """Read `CITATION.cff`, the version and date of the text included; the version without it."""
    file = paths.ROOT / "CITATION.cff"
    cited = dict(_CITED.findall(file.read_text(encoding="utf-8"))) if file.exists() else {}
    return {"repository-code": "", "date-released": "", "version": __version__} | cited


# What the card shows of the packaged model, and the table that each comes from.
_MEASURED = {"quality": "packaged", "gate": "gate", "alterations": "alterations"}


def _shipped_model(dataset: str) -> Facts | None:
    """Describe the model that comes with the package, if it was trained on this data set."""
    file = paths.SHIPPED / "run.json"
    settings = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if settings.get("dataset") != dataset:
        return None
    sha256 = settings["answers"]["sha256"][:12]
    for name, table in _MEASURED.items():
        rows = tables.read_rows(dataset, f"tables/{table}", dtype={"model": str})
        settings[name] = rows if all(row["model"] == sha256 for row in rows) else []
    return settings


def _system_facts(board: pd.DataFrame, claims: pd.DataFrame) -> Facts:
    """Collect what the table of claimed and measured accuracies needs."""
    # The most runs come first where a recipe has several rows, as in `tables.leading_groups`.
    leading = board.sort_values("seeds", ascending=False, kind="stable")
    leading = leading.drop_duplicates(["recipe", "protocol"])
    measured = {(row["recipe"], row["protocol"]): row for row in leading.to_dict(orient="records")}
    systems: list[Recipe] = [recipe for recipe in RECIPES.values() if recipe.published]
    if (FLAGSHIP.name, "strict") in measured:
        systems.append(FLAGSHIP)
    accuracy = claims[claims["metric"] == "accuracy"].set_index("recipe")
    verdicts = accuracy["verdict"].dropna().to_dict()
    for name, row in accuracy[accuracy["verdict"] == TOO_WIDE].iterrows():
        verdicts[name] += f" ({style.span(row['next_low'], row['next_high'], 2)})"
    return {"systems": systems, "measured": measured, "verdicts": verdicts}


def _result_facts(dataset: str, board: pd.DataFrame, test_positive: float) -> Facts:
    """Collect what page and card say of recipes: results, predictive values, settings.

    `test_positive` is the share of pneumonias in the test.
    """
    groups = tables.group_runs(dataset)
    leading = tables.leading_groups(groups)
    everything = scores.load(dataset)
    # Without a run under `strict` there is no test whose share is known.
    prevalences = [share for share in (*PREVALENCES, test_positive) if pd.notna(share)]
    variants = IMBALANCE_RECIPES[1:]
    strict = []
    rows = board.to_dict(orient="records")
    for group, row in zip(groups, rows, strict=True):
        row["choices"] = group[0].choices
        recipe = row["recipe"]
        if group in leading and row["protocol"] == "strict" and recipe not in variants:
            table = metrics.predictive(tables.scores_of(group, everything), prevalences)
            row["predictive"] = table.to_dict(orient="records")
            strict.append(row)
    external = tables.read_rows(dataset, "tables/external")
    protocols = board.groupby("recipe", sort=False)["protocol"].agg(list)
    return {
        "rows": rows,
        "strict": strict,
        "prevalences": prevalences,
        "external": [row for row in external if row["recipe"] not in variants],
        "radiologists": _smallest_and_flagship(dataset, "nih_radiologists_auc"),
        "classified": _smallest_and_flagship(dataset, "nih_radiologists_classified"),
        "recipes": [(RECIPES[name], some) for name, some in protocols.items() if name in RECIPES],
    }


def _smallest_and_flagship(dataset: str, name: str) -> list[dict[Any, Any]]:
    """Read what a table says of the smallest published network and of the flagship."""
    rows = tables.read_rows(dataset, f"tables/{name}")
    return [row for row in rows if row["recipe"] in ("tiny-cnn-28", FLAGSHIP.name)]


def _file_facts(folder: Path) -> Facts:
    """Collect the figures and tables that a report links to."""
    # By the number of the notebook that draws them.
    figures: dict[str, list[tuple[Any, ...]]] = {}
    pictures = {}
    for file in sorted(folder.glob("figures/*.png")):
        pictures[file.stem] = _figure(file)
        if not file.stem.startswith(findings.PREFIX):
            figures.setdefault(file.stem[:2], []).append(pictures[file.stem])
    files = [folder / "leaderboard.csv", *sorted((folder / "tables").glob("*.csv"))]
    return {
        "tables": {file.stem: file.relative_to(folder).as_posix() for file in files},
        "figures": figures,
        "pictures": pictures,
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
    environment.filters |= {
        "value": _value,
        "interval": _interval,
        "span": _span,
        "label": style.recipe_label,
    }
    return environment


def _value(value: Any, decimals: int = 3) -> str:
    """Write a number, the words of a claim in quotes, or a dash for NaN."""
    try:
        return style.number(float(value), decimals)
    except ValueError:
        return f"“{value}”"


def _interval(row: Facts, name: str) -> str:
    """Write a column of a row with its interval."""
    return style.interval(row[name], row[f"{name}_low"], row[f"{name}_high"], 2)


def _span(row: Facts, name: str) -> str:
    """Write the interval of a column alone."""
    return style.span(row[f"{name}_low"], row[f"{name}_high"], 2)


def write_readme_table(readme: Path) -> None:
    """Rewrite what a Markdown file takes from the reports; the rest of it is left alone.

    `<!-- accuracy:<dataset> … -->` and `<!-- findings:<dataset> … -->` begin a block that a
    template writes; `<!-- end accuracy -->` and `<!-- end findings -->` end it.
    `<!-- value:<file> … -->` begins a value, see `values.marked_value`. What refers to a report
    that is not on this machine stays as it is.
    """
    text = readme.read_text(encoding="utf-8")
    written = _BLOCK.sub(_written_block, text)
    written = _VALUE.sub(_written_value, written)
    if written != text:
        write_text(readme, written)


def _written_block(match: re.Match[str]) -> str:
    """Write one block of a Markdown file anew."""
    opening, name, dataset, closing = match.groups()
    folder = paths.REPORTS / dataset
    if not (folder / "leaderboard.csv").exists():
        return match[0]
    board = pd.read_csv(folder / "leaderboard.csv")
    claims = pd.read_csv(folder / "tables" / "claims.csv")
    facts = {
        "block": name,
        "folder": f"reports/{dataset}",
        "version": runs.TRAINING_VERSION,
        "told": findings.load(dataset, "<!-- value:{file} {words} -->{number}<!-- end -->"),
    }
    facts |= _system_facts(board, claims)
    lines = _environment().get_template("readme.md.j2").render(facts)
    return f"{opening}\n{lines.strip()}\n{closing}"


def _written_value(match: re.Match[str]) -> str:
    """Write one marked value anew."""
    opening, file, words, closing = match.groups()
    if not (paths.REPORTS / file).exists():
        return match[0]
    return f"{opening}{marked_value(file, words)}{closing}"
