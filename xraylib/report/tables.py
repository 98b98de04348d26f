"""Writing what a experiment found: scores, tables, metrics and figures.

`reports/<dataset>/` holds `scores/<recipe>.csv`, `metrics/<recipe>.json`, `leaderboard.csv`, `tables/` and
`figures/`; what shows patients' pixels goes to `local/`, which never enters the repository.
"""

import hashlib
import json
import logging
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock
from matplotlib.figure import Figure

from xraylib import paths
from xraylib.datasets import catalog
from xraylib.evaluation import claimed, metrics
from xraylib.evaluation.comparisons import of_protocols, operating_point, threshold_of
from xraylib.evaluation.scores import check_scores, tested_alike
from xraylib.evaluation.scores import read as read_scores
from xraylib.evaluation.scores import write as write_scores
from xraylib.figures.style import png
from xraylib.storage import NotFound, atomic, storage_errors
from xraylib.training.recipes import RECIPES
from xraylib.training.runs import Run

log = logging.getLogger(__name__)

LEADERBOARD = (
    *("recipe", "protocol", "init", "seeds", "n_test", "auc", "auc_low", "auc_high", "auc_seed_sd"),
    *("auc_delong_low", "auc_delong_high"),
    *("accuracy", "accuracy_low", "accuracy_high", "accuracy_seed_sd"),
    *("sensitivity", "sensitivity_low", "sensitivity_high"),
    *("specificity", "specificity_low", "specificity_high"),
    *("balanced_accuracy", "balanced_accuracy_low", "balanced_accuracy_high"),
    *(f"{name}{end}" for name in ("precision", "npv", "f1", "mcc", "brier") for end in ("", "_low", "_high")),
    "average_precision",
    *("threshold", "train_seconds", "hardware", "claimed_accuracy"),
)


def folder(dataset: str) -> Path:
    """Return the report folder of the data set of that name."""
    return paths.REPORTS / dataset


def title(dataset: str) -> str:
    """What the data set is, or its name where the report is of a user's folder."""
    return catalog.find(dataset).title if dataset in catalog.DATASETS else f"Images of {dataset}"


def note(dataset: str) -> str:
    """What must be known of the images that the committed scores were made from: `note.txt`, if any."""
    file = folder(dataset) / "note.txt"
    return file.read_text(encoding="utf-8").strip() if file.exists() else ""


def record(run: Run, dataset: str) -> None:
    """Add a run to the report's scores and metrics; a run of the same protocol and seed is replaced.

    Rows of one recipe and protocol are averaged over seeds, so they must be seeds of one thing: runs that
    differ in more than the seed (budget, weights, the test images of `strict`) are taken out, said aloud.
    """
    place = folder(dataset)
    with storage_errors(place):
        place.mkdir(parents=True, exist_ok=True)
    with FileLock(place / ".lock"):
        runs = {(r["protocol"], r["seed"]): r for r in read_runs(place, run.recipe)}
        file = place / "scores" / f"{run.recipe}.csv"
        old = read_scores(file) if file.exists() else run.scores[:0]
        alike = {seed for seed, part in old.groupby("seed") if tested_alike(part, run.scores)}
        about = run.settings | {"history": run.history.to_dict(orient="records")}
        about["threshold"] = threshold_of(run.scores, run.recipe, run.protocol, run.seed)
        mine = [key for key in runs if key[0] == run.protocol]
        for key in [k for k in mine if k[1] not in alike or not _comparable(runs[k], about)]:
            log.warning(
                "%s, %s: seed %s was trained otherwise and leaves the table", run.recipe, key[0], key[1]
            )
            del runs[key]
        runs[run.protocol, run.seed] = about
        known = pd.Series(zip(old["protocol"], old["seed"], strict=True), index=old.index).isin(list(runs))
        same = (old["protocol"] == run.protocol) & (old["seed"] == run.seed)
        scores = pd.concat([run.scores, old[known & ~same]])
        scores = scores.sort_values(["protocol", "seed", "split", "image_id"])
        check_scores(scores)
        write_scores(scores, file)
        _write_metrics(place, run.recipe, [runs[key] for key in sorted(runs)], scores)


def recorded(
    dataset: str, recipe: str, protocol: str, seed: int
) -> tuple[dict[str, Any], pd.DataFrame] | None:
    """Settings (with `history`) and scores of a run that stands in the report, or None."""
    place = folder(dataset)
    for run in read_runs(place, recipe):
        if (run["protocol"], run["seed"]) == (protocol, seed):
            file = place / "scores" / f"{recipe}.csv"
            scores = read_scores(file) if file.exists() else pd.DataFrame(columns=["protocol", "seed"])
            mine = scores[(scores["protocol"] == protocol) & (scores["seed"] == seed)]
            return None if mine.empty else (run, mine.reset_index(drop=True))
    return None


def load_scores(dataset: str) -> pd.DataFrame:
    """Read the scores of every recipe in a report, in the order of `recipes.RECIPES`.

    Raises
    ------
    NotFound
        When the report has none.
    DataInvalid
        When `scores.check_scores` refuses them.
    """
    if not (stamp := _stamp(folder(dataset))):
        place = folder(dataset) / "scores"
        raise NotFound(f"no scores in {place}. Fix: run `make reproduce DATASET={dataset}`.")
    return _scores(stamp).copy()


@lru_cache(maxsize=2)
def _scores(stamp: tuple[tuple[str, int, int], ...]) -> pd.DataFrame:
    """Scores of the files of a stamp; read and checked once while these stay as they are."""
    files = sorted((Path(file) for file, _, _ in stamp), key=lambda file: rank(file.stem))
    scores = pd.concat([read_scores(file) for file in files], ignore_index=True)
    check_scores(scores)
    return scores


def leaderboard(dataset: str) -> pd.DataFrame:
    """Compute the leaderboard of a report from its `published` and `strict` scores, and write it.

    Figures are means over seeds with 95 % intervals that resample patients (`metrics.evaluate`);
    `threshold` is the mean of the seeds' own; `train_seconds` is the mean of a run. Raises as `load_scores`
    does, and `NotFound` when the report does not tell what made the scores.
    """
    place = folder(dataset)
    table = _figures(dataset, _stamp(place))
    rows = []
    for row in table.to_dict(orient="records"):
        row = {str(name): value for name, value in row.items()}
        runs = [r for r in read_runs(place, row["recipe"]) if r["protocol"] == row["protocol"]]
        if not runs:
            file = place / "metrics" / f"{row['recipe']}.json"
            raise NotFound(f"{file} has no {row['protocol']} run of these scores. Fix: train it again.")
        # A claim about children's radiographs says nothing of simulated ones.
        known = row["recipe"] in RECIPES and dataset != "phantom"
        claim = RECIPES[row["recipe"]].claims.get("accuracy", np.nan) if known else np.nan
        rows.append(
            row
            | {
                "init": runs[0]["init"],
                "train_seconds": float(np.mean([r["train_seconds"] for r in runs])),
                "hardware": "; ".join(sorted({r["hardware"] for r in runs})),
                "claimed_accuracy": claim,
            }
        )
    board = pd.DataFrame(rows)[list(LEADERBOARD)]
    with atomic(place / "leaderboard.csv") as temporary:
        board.to_csv(temporary, index=False, float_format="%.9g")
    return board


@lru_cache(maxsize=8)
def _figures(dataset: str, stamp: tuple[tuple[str, int, int], ...]) -> pd.DataFrame:
    """Figures of both protocols; computed once while the scores' files stay as `stamp` says."""
    return metrics.table(of_protocols(load_scores(dataset)), operating_point)


def _stamp(place: Path) -> tuple[tuple[str, int, int], ...]:
    files = sorted((place / "scores").glob("*.csv"))
    return tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files)


def claims(dataset: str) -> pd.DataFrame:
    """Set the published figures beside those of a report (see `claimed.claims`), and keep the table."""
    table = _claims(dataset, _stamp(folder(dataset)))
    save_table(table, dataset, "claims")
    return table.copy()


@lru_cache(maxsize=8)
def _claims(dataset: str, stamp: tuple[tuple[str, int, int], ...]) -> pd.DataFrame:
    """Claims beside the scores; computed once while the scores' files stay as `stamp` says."""
    return claimed.claims(load_scores(dataset), same_data=dataset.startswith("kermany"))


def training_claims(dataset: str) -> pd.DataFrame:
    """Set published figures of a training beside those here (see `claimed`), and keep the table."""
    place, scores = folder(dataset), load_scores(dataset)
    histories = {
        name: [
            pd.DataFrame(run["history"]) for run in read_runs(place, name) if run["protocol"] == "published"
        ]
        for name in scores["recipe"].unique()
    }
    table = claimed.training_claims(scores, histories)
    save_table(table, dataset, "training_claims")
    return table


def save_table(table: pd.DataFrame, dataset: str, name: str) -> Path:
    """Write a table of the experiment, without its index, as `tables/<name>.csv`."""
    file = folder(dataset) / "tables" / f"{name}.csv"
    with atomic(file) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")
    return file


def load_table(dataset: str, name: str) -> pd.DataFrame:
    """Read a table that `save_table` wrote; raises `NotFound` when the report has none of that name."""
    file = folder(dataset) / "tables" / f"{name}.csv"
    if not file.exists():
        raise NotFound(f"there is no {file}. Fix: run the notebook that writes it with reuse=False.")
    return pd.read_csv(file)


def has_table(dataset: str, name: str) -> bool:
    """Whether a report holds a table of that name (see `save_table`)."""
    return (folder(dataset) / "tables" / f"{name}.csv").exists()


def save_figure(figure: Figure, dataset: str, name: str, caption: str, *, patients: bool = False) -> Path:
    """Write a figure as PNG with its caption inside.

    Parameters
    ----------
    figure
        From `plots`.
    dataset
        Its data set.
    name
        File name without suffix; figures are shown in the order of their names.
    caption
        What it shows, with n and interval.
    patients
        Whether it shows pixels of radiographs: then, unless they are the phantom's, it goes to the folder
        that stays on this machine.
    """
    place = folder(dataset) / ("local" if patients and dataset != "phantom" else "figures")
    with atomic(place / f"{name}.png") as temporary:
        temporary.write_bytes(png(figure, caption))
    return place / f"{name}.png"


def read_runs(place: Path, recipe: str) -> list[dict[str, Any]]:
    """Settings, with `history`, of the runs of a recipe in a report folder."""
    file = place / "metrics" / f"{recipe}.json"
    return json.loads(file.read_text())["runs"] if file.exists() else []


def _comparable(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one[key] == other[key] for key in ("choices", "init"))


def _write_metrics(place: Path, recipe: str, runs: list[dict[str, Any]], scores: pd.DataFrame) -> None:
    figures = {
        protocol: {
            split: metrics.evaluate(part, split=split, rule=operating_point(recipe, protocol))
            .round(6)
            .astype(object)
            .where(lambda table: table.notna(), None)
            .to_dict(orient="index")
            for split in sorted(part["split"].unique())
        }
        for protocol, part in ((str(name), part) for name, part in scores.groupby("protocol"))
    }
    held = {"recipe": recipe, "scores_sha256": _sha256(place / "scores" / f"{recipe}.csv")}
    with atomic(place / "metrics" / f"{recipe}.json") as temporary:
        temporary.write_text(json.dumps(held | {"figures": figures, "runs": runs}, indent=1) + "\n")


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def refresh_metrics(dataset: str) -> None:
    """Compute `metrics/<recipe>.json` anew where it is of other scores, or has fewer metrics."""
    place = folder(dataset)
    for file in sorted((place / "metrics").glob("*.json")):
        held = json.loads(file.read_text(encoding="utf-8"))
        source = place / "scores" / f"{held['recipe']}.csv"
        if not source.exists():
            raise NotFound(f"{file} is of scores that are not in {source}. Fix: delete it.")
        sides = [side for sides in held["figures"].values() for side in sides.values()]
        whole = all(set(side) == set(metrics.METRICS) for side in sides)
        whole &= all("threshold" in run for run in held["runs"])
        if not whole or held.get("scores_sha256") != _sha256(source):
            scores = read_scores(source)
            for run in held["runs"]:
                run["threshold"] = threshold_of(scores, held["recipe"], run["protocol"], run["seed"])
            _write_metrics(place, held["recipe"], held["runs"], scores)


def rank(recipe: str) -> tuple[int, str]:
    """Place of a recipe among all: the order of `recipes.RECIPES`, then the alphabet."""
    known = list(RECIPES)
    return (known.index(recipe) if recipe in known else len(known), recipe)
