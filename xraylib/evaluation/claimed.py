"""Published figures beside what their systems give here: on the test, and in training.

Everything here is a pure function of scores and histories.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from sklearn.metrics import log_loss
from statsmodels.stats.proportion import proportion_confint

from xraylib.datasets.splits import PROTOCOLS
from xraylib.evaluation import metrics
from xraylib.training.recipes import RECIPES
from xraylib.training.systems import Recipe

# Figures of a training by their column and place in its history; None for what its scores tell.
CURVES: dict[str, tuple[str, int] | None] = {
    "train loss": ("loss", -1),
    "train accuracy": ("accuracy", -1),
    "validation loss": ("val_loss", -1),
    "validation accuracy": ("val_accuracy", -1),
    "train accuracy, first epoch": ("accuracy", 0),
    "validation accuracy, first epoch": ("val_accuracy", 0),
    "test loss": None,
}


def claims(
    scores: pd.DataFrame, recipes: Mapping[str, Recipe] = RECIPES, *, same_data: bool = True
) -> pd.DataFrame:
    """Set each published figure beside what the system gives here.

    Parameters
    ----------
    scores
        The whole scores table.
    recipes
        The systems with their claims.
    same_data
        Whether the scores are of the radiographs that the claims are about; otherwise nothing is said of
        `reproduced`.

    Returns
    -------
    pandas.DataFrame
        One row a system and metric that its claim, or its notebook's stored output, names: `recipe, metric,
        claim` (share, or its word), `own_notebook` (share or NaN), and for `published` and `strict` the
        mean over seeds with its 95 % interval (`published, published_low, published_high, …`, NaN where
        not run), then `claim_low, claim_high`, the claim's own 95 % interval (Wilson, of the images it was
        measured on; accuracy and sensitivity only), and `reproduced`: `yes` where the claim's own interval
        holds the figure of `published`, or that figure's interval the claim; else `no`; empty where either is
        no figure.

    Raises
    ------
    DataInvalid
        What `scores.check_scores` refuses.
    """
    rows = []
    for name, recipe in recipes.items():
        named = [metric for metric in metrics.METRICS if metric in {**recipe.claims, **recipe.shown}]
        ranking = bool({"auc", "average_precision"}.intersection(named))
        found: dict[str, pd.DataFrame] = {
            protocol: metrics.evaluate(part, rule=recipe.under(protocol).threshold, ranking=ranking)
            for protocol in PROTOCOLS
            if named and len(part := scores[(scores["recipe"] == name) & (scores["protocol"] == protocol)])
        }
        for metric in named:
            if found:
                rows.append(_claim(name, metric, recipe, found, _ill(scores[scores["recipe"] == name])))
    table = pd.DataFrame(rows, columns=list(CLAIMS))
    return table if same_data else table.assign(reproduced="")


CLAIMS = (
    *("recipe", "metric", "claim", "own_notebook", "published", "published_low", "published_high"),
    *("strict", "strict_low", "strict_high", "claim_low", "claim_high", "reproduced"),
)


def _ill(scores: pd.DataFrame) -> float:
    """Share of pneumonia among the images tested as published, or else under the first protocol there is."""
    protocol = "published" if "published" in set(scores["protocol"]) else scores["protocol"].iloc[0]
    tested = scores[(scores["protocol"] == protocol) & (scores["split"] == "test")]
    return float(tested["label"].mean())


def _claim(
    name: str, metric: str, recipe: Recipe, found: Mapping[str, pd.DataFrame], ill: float
) -> dict[str, object]:
    claim = recipe.claims.get(metric, np.nan)
    share = np.nan if isinstance(claim, str) else claim
    images = {"accuracy": recipe.claimed_on, "sensitivity": round(recipe.claimed_on * ill)}.get(metric, 0)
    own_low, own_high = np.nan, np.nan
    if images and share == share:
        own_low, own_high = proportion_confint(round(share * images), images, method="wilson")
    row: dict[str, object] = {
        "recipe": name,
        "metric": metric,
        "claim": claim,
        "own_notebook": recipe.shown.get(metric, np.nan),
        "claim_low": own_low,
        "claim_high": own_high,
        "reproduced": "",
    }
    for protocol in PROTOCOLS:
        figures = found[protocol].loc[metric] if protocol in found else pd.Series(dtype=float)
        value, low, high = figures.reindex(["value", "low", "high"]).to_numpy(dtype=float)
        row |= {protocol: value, f"{protocol}_low": low, f"{protocol}_high": high}
        if protocol == "published" and low <= high and share == share:
            held = low <= share <= high or own_low <= value <= own_high
            row["reproduced"] = "yes" if held else "no"
    return row


def training_claims(
    scores: pd.DataFrame,
    histories: Mapping[str, Iterable[pd.DataFrame]],
    recipes: Mapping[str, Recipe] = RECIPES,
) -> pd.DataFrame:
    """Set published figures of a training beside those of its trainings here, as published.

    Parameters
    ----------
    scores
        The whole scores table.
    histories
        By recipe, the history of each run under `published` (`training.Run.history`).
    recipes
        The systems with their `curves`.

    Returns
    -------
    pandas.DataFrame
        One row a system and figure of `CURVES`: `recipe, figure, claim`, then `mean, lowest, highest` over
        the trainings here: of the last epoch where the name does not say another; the loss on the test is the
        cross-entropy of the scores.
    """
    rows = []
    for name, recipe in recipes.items():
        part = scores[(scores["recipe"] == name) & (scores["protocol"] == "published")]
        if part.empty:
            continue
        test = part[part["split"] == "test"]
        for figure, claim in recipe.curves.items():
            if (place := CURVES[figure]) is None:
                found = [log_loss(one["label"], one["score"]) for _, one in test.groupby("seed")]
            else:
                found = [float(history[place[0]].iloc[place[1]]) for history in histories[name]]
            about = {"recipe": name, "figure": figure, "claim": claim}
            rows.append(about | {"mean": np.mean(found), "lowest": min(found), "highest": max(found)})
    return pd.DataFrame(rows, columns=["recipe", "figure", "claim", "mean", "lowest", "highest"])
