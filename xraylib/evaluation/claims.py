"""What was claimed, beside what is measured here."""

from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd
from scipy.stats import t as student

from xraylib.evaluation import metrics
from xraylib.evaluation.comparisons import of_protocols
from xraylib.training.recipes import RECIPES, Recipe

CLAIMS = (
    *(
        "recipe",
        "metric",
        "claim",
        "stored_output",
        "runs",
        "published",
        "published_low",
        "published_high",
    ),
    *("next_low", "next_high", "strict", "strict_low", "strict_high", "verdict"),
)


def claims(
    scores: pd.DataFrame, *, same_data: bool = True, other_init: Collection[str] = ()
) -> pd.DataFrame:
    """Set each published value beside what its system gives here: one row a system and metric, `CLAIMS`.

    `claim` is a share or a word, `stored_output` what the system's own notebook shows; the values under `published` and
    `strict` are NaN where not run. A claim is of one run, so `next_low` to `next_high` is the 95% prediction interval
    of one more run under `published` (Student's t). `verdict`: `reproduced` where it holds the claim, `not reproduced`,
    or `not testable here` with the reason: `other_init` names the recipes whose initial weights were others than the
    system's. Empty unless `same_data`: scores of the radiographs that the claims are about.
    """
    rows = []
    for name, recipe in RECIPES.items():
        own = of_protocols(scores[scores["recipe"] == name])
        named = [
            metric
            for metric in metrics.METRICS
            if metric in {**recipe.claims, **recipe.stored_output}
        ]
        if own.empty or not named:
            continue
        ranking = bool({"auc", "average_precision"}.intersection(named))
        found = {
            str(p): metrics.evaluate(part, ranking=ranking) for p, part in own.groupby("protocol")
        }
        runs = own.loc[own["protocol"] == "published", "seed"].nunique()
        why = "other initial weights" if name in other_init else recipe.ours
        why = why or ("fewer than three runs" if runs < 3 else "")
        rows += [_claim(recipe, metric, found, runs, why) for metric in named]
    table = pd.DataFrame(rows, columns=list(CLAIMS))
    return table if same_data else table.assign(verdict="")


def _claim(
    recipe: Recipe, metric: str, found: Mapping[str, pd.DataFrame], runs: int, why: str
) -> dict[str, object]:
    claim = recipe.claims.get(metric, np.nan)
    row: dict[str, object] = {"recipe": recipe.name, "metric": metric, "claim": claim, "runs": runs}
    row |= {"stored_output": recipe.stored_output.get(metric, np.nan), "verdict": ""}
    for protocol in found:
        value, low, high, spread = (
            found[protocol].loc[metric, ["value", "low", "high", "seed_sd"]].to_numpy(float)
        )
        row |= {protocol: value, f"{protocol}_low": low, f"{protocol}_high": high}
        if protocol == "published" and runs > 1:
            half = student.ppf(0.975, runs - 1) * spread * np.sqrt(1 + 1 / runs)
            row |= {"next_low": max(0.0, value - half), "next_high": min(1.0, value + half)}
    if isinstance(claim, float) and claim == claim:
        inside = row.get("next_low", np.nan) <= claim <= row.get("next_high", np.nan)  # type: ignore[operator]
        row["verdict"] = (
            f"not testable here: {why}" if why else "reproduced" if inside else "not reproduced"
        )
    return row
