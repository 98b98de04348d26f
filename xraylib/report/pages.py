"""What a reader opens: a data set's report page and model card, and the tables in the README."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from PIL import Image

from xraylib import paths
from xraylib.datasets import catalog
from xraylib.evaluation import metrics, scores
from xraylib.report import tables
from xraylib.storage import atomic_write
from xraylib.training import runs
from xraylib.training.recipes import IMBALANCE_RECIPES, RECIPES
from xraylib.training.runs import COMMITTED

PREVALENCES = (0.05, 0.2, 0.625)  # that of Kermany's test, and two where pneumonia is rarer
# The main figures, in this order; the others are the supplement.
MAIN = (
    *("01_flow", "06_framing", "06_leaderboard", "06_roc", "06_scores", "06_subgroups"),
    *("06_reliability", "06_external", "06_ood"),
)
README_TABLE = re.compile(r"(<!-- accuracy:(\S+) [^>]*-->)\n.*?(<!-- end -->)", re.DOTALL)


def build(dataset: str) -> Path:
    """Write leaderboard, claims, model card and page of a report from its runs; return the page."""
    place, board, table = (
        tables.report_folder(dataset),
        tables.leaderboard(dataset),
        scores.load(dataset),
    )
    with atomic_write(place / "leaderboard.csv") as temporary:
        board.to_csv(temporary, index=False, float_format="%.9g")
    claims = tables.claims(dataset)
    tables.save_table(claims, dataset, "claims")
    files = (place / "leaderboard.csv", *sorted((place / "tables").glob("*.csv")))
    strict = board[(board["protocol"] == "strict") & ~board["recipe"].isin(IMBALANCE_RECIPES[1:])]
    own = table[(table["protocol"] == "strict") & table["recipe"].isin(strict["recipe"])].groupby(
        "recipe"
    )
    tested = table[(table["protocol"] == "strict") & (table["split"] == "test")]
    protocols = board.groupby("recipe", sort=False)["protocol"].agg(list)
    figures = {file.stem: _figure(file) for file in sorted(place.glob("figures/*.png"))}
    supplement: dict[
        str, list[tuple[Any, ...]]
    ] = {}  # by the number of the notebook that draws them
    for stem, figure in figures.items():
        if stem not in MAIN:
            supplement.setdefault(stem[:2], []).append(figure)
    note = place / "note.txt"  # what must be known of the images that the scores were made from
    facts = {
        "dataset": dataset,
        "title": catalog.DATASETS[dataset].title
        if dataset in catalog.DATASETS
        else f"Images of {dataset}",
        "note": note.read_text(encoding="utf-8").strip() if note.exists() else "",
        "test_images": tested["image_id"].nunique(),
        "test_patients": tested["patient"].nunique(),
        "images": f"{table['image_id'].nunique():,}",
        "patients": f"{table['patient'].nunique():,}",
        "hardware": "; ".join(
            sorted({one for each in board["hardware"] for one in each.split("; ")})
        ),
        "rows": board.to_dict(orient="records"),
        "claims": claims.to_dict(orient="records"),
        "strict": strict.to_dict(orient="records"),
        "prevalences": PREVALENCES,
        "predictive": {
            name: metrics.predictive(part, PREVALENCES).to_dict("records") for name, part in own
        },
        "external": [
            row
            for row in tables.read_rows(dataset, "external")
            if row["recipe"] not in IMBALANCE_RECIPES[1:]
        ],
        "recipes": [(RECIPES[name], some) for name, some in protocols.items() if name in RECIPES],
        "tables": {file.stem: file.relative_to(place).as_posix() for file in files},
        "figures": supplement,
        "main": [figures[stem] for stem in MAIN if stem in figures],
        "compute": [(row, _choices(dataset, row)) for row in board.to_dict(orient="records")],
        "explained": tables.read_rows(dataset, "framing_explained"),
        "notebooks": list(_notebooks(place)),
        "checklist": (place / "checklist.md").exists(),
    }
    for name in ("model_card.md", "index.html"):
        with atomic_write(place / name) as temporary:
            text = _environment().get_template(f"{name}.j2").render(facts)
            temporary.write_text(text, encoding="utf-8")
    return place / "index.html"


def write_readme_table(readme: Path) -> None:
    """Rewrite the table after `<!-- accuracy:<dataset> … -->` from what `build` wrote."""
    text = readme.read_text(encoding="utf-8")

    def table(match: re.Match[str]) -> str:
        file = tables.report_folder(match[2]) / "leaderboard.csv"
        if not file.exists():
            return match[0]
        rows = pd.read_csv(file).to_dict(orient="records")
        by_name = {(row["recipe"], row["protocol"]): row for row in rows}
        recipes = [recipe for recipe in RECIPES.values() if recipe.published]
        lines = _environment().get_template("readme.md.j2").render(recipes=recipes, rows=by_name)
        return f"{match[1]}\n{lines.strip()}\n{match[3]}"

    if (written := README_TABLE.sub(table, text)) != text:
        with atomic_write(readme) as temporary:
            temporary.write_text(written, encoding="utf-8")


def _environment() -> jinja2.Environment:
    loader, strict = jinja2.PackageLoader("xraylib.report"), jinja2.StrictUndefined
    environment = jinja2.Environment(
        loader=loader,
        autoescape=lambda name: ".html" in str(name),
        undefined=strict,
        keep_trailing_newline=True,
    )
    environment.filters["value"] = _value
    environment.filters["interval"] = lambda row, name: [
        row[name + end] for end in ("", "_low", "_high")
    ]
    return environment


def _value(value: Any) -> str:
    """Three decimals, a claim's words in quotes, or a dash where there is none."""
    try:
        number = float(value)
    except ValueError:
        return f"“{value}”"
    return "–" if number != number else f"{number:.3f}"


def _choices(dataset: str, row: Any) -> dict[str, Any]:
    """What the first run of a row of the leaderboard was trained with, with the `epochs` of its phases."""
    choices = runs.list_runs(dataset, row["recipe"], row["protocol"])[0].settings["choices"]
    return choices | {"epochs": sum(phase["epochs"] for phase in choices.get("phases", []))}


def _figure(file: Path) -> tuple[Any, ...]:
    """Source, caption, width and height in pixels."""
    with Image.open(file) as image:
        return f"figures/{file.name}", image.info.get("Description", file.stem), *image.size


def _notebooks(place: Path) -> Iterator[tuple[str, str]]:
    """Link and name of each notebook: its executed page, but the source from a page that git holds."""
    if place.name in COMMITTED and place == paths.ROOT / "reports" / place.name:
        # Executed notebooks show patients and are not in git: a committed page must not depend on them.
        for notebook in sorted((paths.ROOT / "notebooks").glob("*.ipynb")):
            yield f"../../notebooks/{notebook.name}", notebook.stem
    else:
        for page in sorted((place / "notebooks").glob("*.html")):
            yield f"notebooks/{page.name}", page.stem
