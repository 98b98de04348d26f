"""The pages that show a report: `reports/index.html`, and the leaderboards in the README."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from xraylib import paths
from xraylib.report import tables
from xraylib.storage import NotFound, atomic
from xraylib.training.recipes import RECIPES

# What the tables of a report say, for those who open the page.
TABLES = {
    "leaderboard": "every figure of every recipe, intervals by bootstrap and DeLong, hardware",
    "by_folder": "a random deal taken apart by the official folder its test images come from",
    "calibration": "Brier score, slope, intercept and calibration error, as they are and recalibrated",
    "claims": "each published figure beside what is measured here",
    "counts": "images and patients by folder and class",
    "coverage": "how often 90 % prediction sets hold the truth",
    "devices": "the same training on one and on several devices",
    "external": "figures in another hospital and what is lost there",
    "heat_maps": "whether Grad-CAM finds the lesion, and changes with random weights",
    "leakage_official": "patients and copies on both sides of the official split",
    "leakage_random_per_image": "patients and copies on both sides of a random deal",
    "leakage_strict": "patients and copies on both sides under strict",
    "operating_points": "what each rule for a threshold promised on validation and gave on the test",
    "pairs": "differences between networks: DeLong's and McNemar's tests with Holm's correction",
    "remedies": "176 images with each remedy for imbalance, draw by draw",
    "remedies_pairs": "each remedy against none on the same draws",
    "robustness": "AUC lost and balanced error gained by each corruption",
    "shortcuts": "how far features that know nothing of lungs get",
    "story": "one network, five ways of splitting and scoring",
    "strangeness": "distance of each image from the training images",
    "strangers": "the share of each group that this distance flags",
    "training_claims": "published losses and accuracies of a training beside those of the trainings here",
    "subgroups": "kinds of pneumonia, series of normals, sizes of images",
}


@dataclass(frozen=True)
class _Picture:
    name: str
    notebook: str
    caption: str
    source: str
    width: int
    height: int


def build_index() -> Path:
    """Rebuild every leaderboard, and `reports/index.html`, which shows the figures that lie beside it."""
    sections = []
    for place in sorted(path.parent for path in paths.REPORTS.glob("*/scores")):
        if any((place / "scores").glob("*.csv")):
            sections.append(_section(place))
    if not sections:
        raise NotFound(f"no scores below {paths.REPORTS}. Fix: run `make reproduce`.")
    sections.sort(key=lambda section: section["name"] == "phantom")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("xraylib.report"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    named = {"model_card.md": "model card", "checklist.md": "TRIPOD+AI and CLAIM checklist"}
    papers = [(file, name) for file, name in named.items() if (paths.REPORTS / file).exists()]
    page = environment.get_template("index.html.j2").render(sections=sections, papers=papers)
    with atomic(paths.REPORTS / "index.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return paths.REPORTS / "index.html"


def _section(place: Path) -> dict[str, Any]:
    board = tables.leaderboard(place.name)
    recipes = [
        {
            "name": name,
            "about": RECIPES[name],
            "protocols": sorted(board.loc[board["recipe"] == name, "protocol"]),
        }
        for name in board["recipe"].unique()
        if name in RECIPES
    ]
    scores = tables.load_scores(place.name)
    return {
        "name": place.name,
        "title": tables.title(place.name),
        "images": f"{scores['image_id'].nunique():,}",
        "patients": f"{scores['patient'].nunique():,}",
        "note": tables.note(place.name),
        "rows": board.to_dict(orient="records"),
        "claims": tables.claims(place.name).to_dict(orient="records"),
        "training": tables.training_claims(place.name).to_dict(orient="records"),
        "recipes": recipes,
        "tables": list(_tables(place)),
        "pictures": list(_pictures(place)),
        "notebooks": list(_notebooks(place)),
    }


def _tables(place: Path) -> Iterator[dict[str, str]]:
    for file in (place / "leaderboard.csv", *sorted((place / "tables").glob("*.csv"))):
        link = file.relative_to(paths.REPORTS).as_posix()
        yield {"name": file.stem.replace("_", " "), "link": link, "about": TABLES.get(file.stem, "")}


def _notebooks(place: Path) -> Iterator[dict[str, str]]:
    """Link each notebook's executed page; where there is none, the phantom's notebooks themselves."""
    pages = sorted((place / "notebooks").glob("*.html"))
    for page in pages:
        yield {"name": page.stem, "link": page.relative_to(paths.REPORTS).as_posix()}
    if not pages and place.name == "phantom" and paths.REPORTS == paths.ROOT / "reports":
        for notebook in sorted((paths.ROOT / "notebooks").glob("*.ipynb")):
            yield {"name": notebook.stem, "link": f"../notebooks/{notebook.name}"}


def _pictures(place: Path) -> Iterator[_Picture]:
    # The story and the leaderboard first: the others explain them.
    first = {"06_story": 0, "06_leaderboard": 1}
    for file in sorted(place.glob("figures/*.png"), key=lambda file: (first.get(file.stem, 2), file.stem)):
        with Image.open(file) as image:
            caption, size = str(image.info.get("Description", file.stem)), image.size
        yield _Picture(file.stem, file.stem[:2], caption, file.relative_to(paths.REPORTS).as_posix(), *size)


def write_readme_tables(readme: Path) -> None:
    """Write tables into a page: `<!-- leaderboard:<dataset> … -->` or `claims:…` to `<!-- end -->`."""
    text = readme.read_text(encoding="utf-8")

    def table(match: re.Match[str]) -> str:
        lines = {"leaderboard": _leaderboard, "claims": _claims}[match["what"]](match["dataset"])
        return "\n".join((match["start"], *lines, match["end"]))

    written = _TABLE.sub(table, text)
    if written != text:
        with atomic(readme) as temporary:
            temporary.write_text(written, encoding="utf-8")


_TABLE = re.compile(
    r"(?P<start><!-- (?P<what>leaderboard|claims):(?P<dataset>\S+) [^>]*-->)\n.*?(?P<end><!-- end -->)",
    re.DOTALL,
)


def _leaderboard(dataset: str) -> list[str]:
    lines = [
        "| recipe | protocol | initial weights | seeds | n | accuracy | sd over seeds | claimed | AUC "
        "| sensitivity | specificity |",
        "|---" * 11 + "|",
    ]
    for row in tables.leaderboard(dataset).to_dict(orient="records"):
        figures = {metric: _with_interval(row, metric) for metric in ("accuracy", "auc")}
        claimed, spread = _share(row["claimed_accuracy"]), _fixed(row["accuracy_seed_sd"])
        cells = (f"`{row['recipe']}`", row["protocol"], row["init"], row["seeds"], row["n_test"])
        errors = (f"{row['sensitivity']:.3f}", f"{row['specificity']:.3f}")
        lines.append(
            "| "
            + " | ".join(map(str, (*cells, figures["accuracy"], spread, claimed, figures["auc"], *errors)))
            + " |"
        )
    return lines


def _claims(dataset: str) -> list[str]:
    lines = [
        "| system | metric | claim | its own notebook | here, `published` | here, `strict` | reproduced |",
        "|---" * 7 + "|",
    ]
    for row in tables.claims(dataset).to_dict(orient="records"):
        here = (_with_interval(row, protocol) for protocol in ("published", "strict"))
        cells = (
            f"`{row['recipe']}`",
            row["metric"],
            _share(row["claim"]),
            _share(row["own_notebook"]),
            *here,
        )
        lines.append(f"| {' | '.join(cells)} | {row['reproduced'] or '–'} |")
    return lines


def _with_interval(row: dict[Any, Any], name: str) -> str:
    if np.isnan(row[name]):
        return "–"
    return f"{row[name]:.3f} ({row[f'{name}_low']:.3f}–{row[f'{name}_high']:.3f})"


def _fixed(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3f}"


def _share(value: float | str) -> str:
    if isinstance(value, str):
        return f"“{value}”"
    return "–" if np.isnan(value) else f"{value:.3g}"
