"""What an experiment leaves in `reports/<dataset>/`: tables, figures, the leaderboard."""

import json
import logging
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.text import Text

from xraylib import paths
from xraylib.datasets.splits import PROTOCOLS
from xraylib.evaluation import metrics, scores
from xraylib.evaluation.claims import claims as compare_claims
from xraylib.evaluation.claims import made_on
from xraylib.evaluation.resampling import over
from xraylib.figures import style
from xraylib.storage import atomic_write, write_table, write_text
from xraylib.training import runs
from xraylib.training.recipes import RECIPES
from xraylib.training.runs import Run
from xraylib.training.thresholds import thresholds

log = logging.getLogger(__name__)

# What decides a run's numbers besides recipe, protocol and seed; `precision` is a metric's name.
IDENTITY = ("init", "budget", "float_precision", "backend", "training_version")
_RANGES = ("", "_low", "_high")
_OTHER_METRICS = (
    "sensitivity",
    "specificity",
    "balanced_accuracy",
    "precision",
    "npv",
    "f1",
    "mcc",
    "brier",
)
LEADERBOARD = (
    ["recipe", "protocol", *IDENTITY, "seeds", "over", "n_test", "n_effective"]
    + [f"{name}{end}" for name in ("auc", "accuracy") for end in _RANGES]
    + [f"{name}_patients_{end}" for name in ("auc", "accuracy") for end in ("low", "high")]
    + ["auc_seed_sd", "accuracy_seed_sd"]
    + [f"accuracy_youden{end}" for end in _RANGES]
    + [f"{name}{end}" for name in _OTHER_METRICS for end in _RANGES]
    + ["average_precision", "threshold", "train_seconds", "hardware", "claimed_accuracy"]
)
# An image array with fewer pixels a side is a matrix of numbers, such as a confusion matrix.
_SMALLEST_IMAGE = 16


# Runs that differ in nothing but their seed, so that their numbers may be averaged.
RunGroup = list[Run]


def scores_of(group: RunGroup, table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a scores table that are of a group of runs."""
    first = group[0]
    seeds = [run.seed for run in group]
    same = (table["recipe"] == first.recipe) & (table["protocol"] == first.protocol)
    return table[same & table["seed"].isin(seeds)]


def group_runs(dataset: str, recipes: Collection[str] | None = None) -> list[RunGroup]:
    """Group the `published` and `strict` runs of a report by what decides their numbers.

    Parameters
    ----------
    dataset
        Name of the report.
    recipes
        Names of recipes; all by default.

    Returns
    -------
    list of RunGroup
        In the order of the recipes. The runs are those of `runs.list_runs`, so of one identity per
        recipe and protocol. Runs of other settings of the recipe are in a group of their own.
    """
    groups: dict[tuple[str, str, str], RunGroup] = {}
    for run in runs.list_runs(dataset):
        if run.protocol in PROTOCOLS and (recipes is None or run.recipe in recipes):
            key = (run.recipe, run.protocol, runs.digest(run.choices))
            groups.setdefault(key, []).append(run)
    return list(groups.values())


def leading_groups(groups: Iterable[RunGroup]) -> list[RunGroup]:
    """Keep one group per recipe and protocol: the one with the most runs."""
    best: dict[tuple[str, str], RunGroup] = {}
    for group in groups:
        key = (group[0].recipe, group[0].protocol)
        if len(group) > len(best.get(key, [])):
            best[key] = group
    return list(best.values())


def leaderboard(dataset: str, recipes: Iterable[str] | None = None) -> pd.DataFrame:
    """Compute the leaderboard of a report.

    Parameters
    ----------
    dataset
        Name of the report.
    recipes
        Names of recipes; all by default.

    Returns
    -------
    pandas.DataFrame
        One row for each group of runs (`group_runs`), with the columns `LEADERBOARD`. Values are
        means over seeds at each run's frozen threshold, with 95% intervals (`metrics.evaluate`);
        `over` says what `_low` and `_high` are over. Empty if none of `recipes` has run.
    """
    names = None if recipes is None else list(recipes)
    groups = group_runs(dataset, names)
    rows: list[dict[str, Any]] = []
    if groups:
        table = scores.load(dataset, names)
        rows = [_leaderboard_row(dataset, group, scores_of(group, table)) for group in groups]
        _warn_of_others(dataset, groups)
    elif names is None:
        scores.load(dataset)
    board = pd.DataFrame(rows, columns=LEADERBOARD)
    board.attrs["dataset"] = dataset
    return board


def _warn_of_others(dataset: str, groups: list[RunGroup]) -> None:
    """Name the runs that are in no row or in another one, because a reader expects them in it."""
    for group in leading_groups(groups):
        recipe, protocol = group[0].recipe, group[0].protocol
        others = len(runs.all_runs(dataset, recipe, protocol)) - len(group)
        if others:
            log.warning(
                "%s, %s: %d runs of another budget or other settings are left out. Fix, if they "
                "are wanted: train all of its seeds with one recipe, budget, precision and backend",
                recipe,
                protocol,
                others,
            )


def _leaderboard_row(dataset: str, group: RunGroup, table: pd.DataFrame) -> dict[str, Any]:
    """Evaluate the scores of one group of runs."""
    test = table[table["split"] == "test"]
    seeds = test["seed"].nunique()
    evaluated = metrics.evaluate(table)
    youden = metrics.evaluate(table, rule="youden", ranking=False)
    youden = youden.rename({"accuracy": "accuracy_youden"})
    identity = runs.identity(group[0].settings)
    # The metric `precision` replaces that of the arithmetic.
    row = identity._asdict() | {"float_precision": identity.precision}
    row |= metrics.ends(evaluated, *metrics.METRICS) | metrics.ends(youden, "accuracy_youden")
    for metric, values in evaluated.iterrows():
        for column, value in values.items():
            row[f"{metric}_{column}"] = value
    recipe = RECIPES.get(identity.recipe)
    claims = recipe.claims if recipe is not None and made_on(dataset) else {}
    settings = [run.settings for run in group]
    return row | {
        "seeds": seeds,
        "over": over(seeds),
        "n_test": round(len(test) / seeds),
        "n_effective": metrics.effective_size(test),
        "threshold": thresholds(table, "frozen").mean(),
        "train_seconds": float(np.mean([run["train_seconds"] for run in settings])),
        "hardware": "; ".join(sorted({run["hardware"] for run in settings})),
        "claimed_accuracy": claims.get("accuracy", np.nan),
    }


def claims(dataset: str) -> pd.DataFrame:
    """Compute the published values beside those of a report (see `evaluation.claims.claims`).

    The runs of each recipe and protocol are those of one group (`leading_groups`).
    """
    groups = leading_groups(group_runs(dataset))
    other_init = set()
    for run in [group[0] for group in groups]:
        known = run.recipe in RECIPES and run.protocol == "published"
        if known and not runs.init_matches(run, RECIPES[run.recipe].init):
            other_init.add(run.recipe)
    everything = scores.load(dataset)
    chosen = pd.concat([scores_of(group, everything) for group in groups], ignore_index=True)
    return compare_claims(chosen, same_data=made_on(dataset), other_init=other_init)


def save_table(table: pd.DataFrame, dataset: str, name: str) -> None:
    """Write a table of an experiment, without its index, as `tables/<name>.csv`.

    `tables/<name>.json` beside it names the runs that it was made from (`named_runs`).
    """
    folder = paths.REPORTS / dataset / "tables"
    # Zero has no sign, or a table would change with the order of a subtraction.
    table = table.copy()
    floats = table.select_dtypes("float").columns
    table[floats] += 0.0
    write_table(folder / f"{name}.csv", table, "%.6g")
    columns = [column for column in ("recipe", "a", "b") if column in table]
    names = set(table[columns].astype(str).to_numpy().ravel())
    facts = {"rows": len(table), "runs": named_runs(dataset, names)}
    write_text(folder / f"{name}.json", json.dumps(facts, indent=1) + "\n")


def named_runs(dataset: str, recipes: Collection[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """Describe the runs of some recipes, so that a table or figure of older runs can be recognised.

    Returns
    -------
    dict
        By recipe and by `<protocol>-<seed>`: `n_test`, the images of its test, and `scores`, twelve
        hexadecimal digits of the SHA-256 of its scores file. What is no recipe with runs is left
        out.
    """
    described: dict[str, dict[str, dict[str, Any]]] = {}
    for run in runs.list_runs(dataset):
        if run.recipe in recipes:
            described.setdefault(run.recipe, {})[f"{run.protocol}-{run.seed}"] = {
                "n_test": int((run.scores["split"] == "test").sum()),
                "scores": runs.file_sha256(run.folder / "scores.csv")[:12],
            }
    return described


def compact(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table as it is read: a value and its interval in one column, three decimals.

    The columns `<name>_low` and `<name>_high` join `<name>`, if there is one, and otherwise become
    it; the columns `low` and `high` join the column before them.
    """
    names = [str(name) for name in table]
    shown = table.round(3)
    for position, low in enumerate(names):
        high = low.removesuffix("low") + "high"
        apart = low == "low" and names[position + 1 : position + 2] != ["high"]
        if high not in names or apart:
            continue
        value = names[position - 1] if low == "low" else low.removesuffix("_low")
        ends = zip(table[low], table[high], strict=True)
        if value in names:
            rows = zip(table[value], ends, strict=True)
            shown[value] = [style.interval(number, *span) for number, span in rows]
            shown = shown.drop(columns=[low, high])
        else:
            shown[low] = [style.span(*span) for span in ends]
            shown = shown.drop(columns=high).rename(columns={low: value})
    return shown


def read_rows(dataset: str, name: str, **options: Any) -> list[dict[Any, Any]]:
    """Read the rows of a CSV file of a report, `tables/claims` say; none if there is no such file.

    `options` are those of `pandas.read_csv`.
    """
    file = paths.REPORTS / dataset / f"{name}.csv"
    return pd.read_csv(file, **options).to_dict(orient="records") if file.exists() else []


def save_figure(
    figure: Figure,
    dataset: str,
    name: str,
    caption: str,
    *,
    patients: bool | None = None,
    dpi: int = style.DPI,
) -> Path:
    """Write a figure as PNG; the page shows figures in the order of their names.

    Parameters
    ----------
    figure
        The figure. The runs of the recipes that it names are kept in the file (`named_runs`), as
        its caption is.
    dataset, name, caption
        The report, the file's name without suffix, and what a reader is told below it.
    patients
        Whether images of patients can be seen. By default this is assumed of every figure that
        draws pixels. Unless they are the phantom's, such a figure goes to `local/`, which git
        ignores.
    dpi
        Dots an inch.

    Returns
    -------
    pathlib.Path
        The file.
    """
    shows_patients = draws_pixels(figure) if patients is None else patients
    local = shows_patients and dataset != "phantom"
    place = paths.REPORTS / dataset / ("local" if local else "figures")
    facts = {"runs": named_runs(dataset, recipes_in(figure, f"{name} {caption}"))}
    with atomic_write(place / f"{name}.png") as temporary:
        temporary.write_bytes(style.png(figure, caption, dpi, facts))
    return place / f"{name}.png"


def draws_pixels(figure: Figure) -> bool:
    """Whether a figure shows an image, as opposed to a small matrix of numbers."""
    sizes = [image.get_size() for image in figure.findobj(AxesImage)]
    return any(min(size) >= _SMALLEST_IMAGE for size in sizes)


def recipes_in(figure: Figure, text: str = "") -> set[str]:
    """Name the recipes whose name or label is written in a figure or in `text`."""
    written = [item.get_text() for item in figure.findobj(Text)]
    titles = {style.recipe_label(name): name for name in RECIPES} | {name: name for name in RECIPES}
    # The longest first, so that `tiny-cnn-28` is not found in `tiny-cnn-28-reframed`.
    longest_first = sorted(titles, key=len, reverse=True)
    found = re.findall("|".join(map(re.escape, longest_first)), "\n".join([*written, text]))
    return {titles[title] for title in found}
