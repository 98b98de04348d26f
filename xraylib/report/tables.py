"""What an experiment leaves in `reports/<dataset>/`: tables, figures, and the leaderboard of its runs."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from xraylib import paths
from xraylib.evaluation import comparisons, metrics, scores
from xraylib.evaluation.claims import claims as compare_claims
from xraylib.figures import style
from xraylib.storage import atomic_write
from xraylib.training import runs
from xraylib.training.recipes import RECIPES
from xraylib.training.thresholds import thresholds

log = logging.getLogger(__name__)

_INTERVALS = (
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
    *("recipe", "protocol", "init", "seeds", "n_test", "n_effective"),
    *(f"{name}{end}" for name in ("auc", "accuracy") for end in ("", "_low", "_high")),
    *(f"{name}_patients_{end}" for name in ("auc", "accuracy") for end in ("low", "high")),
    *("auc_seed_sd", "accuracy_seed_sd"),
    *("accuracy_youden", "accuracy_youden_low", "accuracy_youden_high"),
    *(f"{name}{end}" for name in _INTERVALS for end in ("", "_low", "_high")),
    *("average_precision", "threshold", "train_seconds", "hardware", "claimed_accuracy"),
)


def report_folder(dataset: str) -> Path:
    """Return the report folder of the data set of that name."""
    return paths.REPORTS / dataset


def leaderboard(dataset: str, recipes: Iterable[str] | None = None) -> pd.DataFrame:
    """Compute one row a recipe and protocol (`published`, `strict`), of all recipes or of some.

    Values are means over seeds at each run's frozen threshold, with 95% intervals (`metrics.evaluate`). Empty where
    none of `recipes` has run.
    """
    some = None if recipes is None else list(recipes)
    if some is not None and not any(runs.list_runs(dataset, name) for name in some):
        return pd.DataFrame(columns=list(LEADERBOARD))
    table, rows = comparisons.of_protocols(scores.load(dataset, some)), []
    for names, part in table.groupby(["recipe", "protocol"], sort=False):
        recipe, protocol = map(str, names)
        made, test = runs.list_runs(dataset, recipe, protocol), part[part["split"] == "test"]
        if any(
            run.settings[key] != made[0].settings[key]
            for run in made
            for key in ("choices", "init")
        ):
            log.warning(
                "%s, %s: seeds of different settings are averaged. Fix: train all of them with one budget",
                *(recipe, protocol),
            )
        # A claim about children's radiographs says nothing of simulated ones.
        known = recipe in RECIPES and dataset != "phantom"
        seeds, found = test["seed"].nunique(), metrics.evaluate(part)
        youden = metrics.evaluate(part, rule="youden", ranking=False)  # beside the frozen threshold
        rows.append(
            {
                f"{metric}_{column}": value
                for metric, row in found.iterrows()
                for column, value in row.items()
            }
            | metrics.ends(found, *metrics.METRICS)
            | metrics.ends(youden.rename({"accuracy": "accuracy_youden"}), "accuracy_youden")
            | {
                "recipe": recipe,
                "protocol": protocol,
                "init": made[0].settings["init"],
                "seeds": seeds,
                "n_test": round(len(test) / seeds),
                "n_effective": metrics.effective_size(test),
                "threshold": thresholds(part, "frozen").mean(),
                "train_seconds": float(np.mean([run.settings["train_seconds"] for run in made])),
                "hardware": "; ".join(sorted({run.settings["hardware"] for run in made})),
                "claimed_accuracy": RECIPES[recipe].claims.get("accuracy", np.nan)
                if known
                else np.nan,
            }
        )
    return pd.DataFrame(rows, columns=list(LEADERBOARD))


def claims(dataset: str) -> pd.DataFrame:
    """Compute the published values beside those of a report (see `evaluation.claims.claims`)."""
    made = [run for run in runs.list_runs(dataset, None, "published") if run.recipe in RECIPES]
    other = {
        run.recipe for run in made if RECIPES[run.recipe].init != run.settings["init"].split(" ")[0]
    }
    return compare_claims(
        scores.load(dataset), same_data=dataset.startswith("kermany"), other_init=other
    )


def save_table(table: pd.DataFrame, dataset: str, name: str) -> None:
    """Write a table of an experiment, without its index, as `tables/<name>.csv`."""
    with atomic_write(report_folder(dataset) / "tables" / f"{name}.csv") as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")


def compact(table: pd.DataFrame) -> pd.DataFrame:
    """The table as it is read: `0.850 (0.820–0.880)` for a value with its `<name>_low`, `_high`, or `low`, `high`."""
    shown: dict[str, object] = {}
    names = [str(name) for name in table]
    for name, after in zip(names, [*names[1:], ""], strict=True):
        ends = [f"{name}_low", f"{name}_high"]
        ends = ["low", "high"] if after == "low" and ends[0] not in names else ends
        if set(ends) <= {*names}:
            parts = zip(table[name], *(table[end] for end in ends), strict=True)
            shown[name] = [
                "–" if np.isnan(v) else f"{v:.3f} ({low:.3f}–{high:.3f})" for v, low, high in parts
            ]
        elif not name.endswith(("low", "high")):
            shown[name] = table[name].round(3) if table[name].dtype.kind == "f" else table[name]
    return pd.DataFrame(shown, index=table.index)


def read_rows(dataset: str, name: str) -> list[dict[Any, Any]]:
    """Rows of a table that `save_table` wrote; none where it is not there."""
    file = report_folder(dataset) / "tables" / f"{name}.csv"
    return pd.read_csv(file).to_dict(orient="records") if file.exists() else []


def save_figure(
    figure: Figure, dataset: str, name: str, caption: str, *, patients: bool = False
) -> Path:
    """Write a figure as PNG with its caption inside; the page shows figures in the order of their names.

    `patients` says that it shows radiographs: unless these are the phantom's, it goes to `local/`, which git ignores.
    """
    place = report_folder(dataset) / ("local" if patients and dataset != "phantom" else "figures")
    with atomic_write(place / f"{name}.png") as temporary:
        temporary.write_bytes(style.png(figure, caption))
    return place / f"{name}.png"
