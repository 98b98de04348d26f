"""Which recipe is better on the same images: paired DeLong and McNemar tests, corrected for many comparisons.

Differences are of means over seeds. The tests ask whether other patients would order the two recipes alike;
what other seeds would do is the spread over seeds, which stands in another column.
"""

from itertools import combinations

import numpy as np
import pandas as pd
from scipy.stats import chi2, norm
from statsmodels.stats.multitest import multipletests

from xraylib.evaluation.operating import thresholds
from xraylib.evaluation.ranking import delong
from xraylib.evaluation.scores import check_scores
from xraylib.storage import DataInvalid

COLUMNS = (
    *("a", "b", "n", "auc_difference", "low", "high", "p_auc", "p_auc_holm"),
    *("only_a_right", "only_b_right", "p_mcnemar", "p_mcnemar_holm"),
)


def compare(scores: pd.DataFrame, *, rule: str | float = "validation", split: str = "test") -> pd.DataFrame:
    """Compare every pair of recipes on the images that all of them were scored on.

    Parameters
    ----------
    scores
        Scores table of one protocol and several recipes.
    rule
        Operating point for the calls that McNemar's test compares (see `operating`).
    split
        The side to compare on.

    Returns
    -------
    pandas.DataFrame
        One row a pair (`COLUMNS`): the difference of the mean AUC, a minus b, with DeLong's 95 % interval
        over patients and p; how many images only a or only b calls rightly, where each recipe calls what most
        of its seeds call (pneumonia where they are halved), with McNemar's p over patients; each p also after
        Holm's correction over all pairs.

    Raises
    ------
    DataInvalid
        When the recipes were scored on different images, or there are fewer than two; and what
        `scores.check_scores` refuses.
    """
    check_scores(scores)
    if scores["protocol"].nunique() > 1:
        raise DataInvalid("scores of two protocols cannot be paired. Fix: pass those of one.")
    names = list(dict.fromkeys(scores["recipe"]))
    if len(names) < 2:
        raise DataInvalid("one recipe alone cannot be compared. Fix: pass scores of two or more.")
    sides = {name: _side(scores[scores["recipe"] == name], rule, split) for name in names}
    first = sides[names[0]]
    for name, side in sides.items():
        if not side["about"].equals(first["about"]):
            raise DataInvalid(
                f"{name} and {names[0]} were scored on different {split} images. Fix: train both on one "
                "data set."
            )
    rows = [_pair(a, b, sides) for a, b in combinations(names, 2)]
    table = pd.DataFrame(rows)
    for p in ("p_auc", "p_mcnemar"):
        table[f"{p}_holm"] = multipletests(table[p], method="holm")[1]
    return table[list(COLUMNS)]


def _side(part: pd.DataFrame, rule: str | float, split: str) -> dict[str, pd.DataFrame]:
    points = thresholds(part, rule)
    side = part[part["split"] == split].sort_values(["image_id", "seed"])
    if side.empty:
        raise DataInvalid(f"{part['recipe'].iloc[0]} has no scores of the {split} side. Fix: train it again.")
    calls = side.assign(called=side["score"] >= side["seed"].map(points))
    about = side.drop_duplicates("image_id").set_index("image_id")[["label", "patient"]]
    by_seed = side.pivot(index="image_id", columns="seed", values="score")
    if by_seed.isna().any().any():
        raise DataInvalid(f"{part['recipe'].iloc[0]}: its seeds were scored on different {split} images.")
    called = calls.groupby("image_id")["called"].mean() >= 0.5
    return {"about": about, "scores": by_seed.T, "right": called.eq(about["label"] == 1).to_frame("right")}


def _pair(a: str, b: str, sides: dict[str, dict[str, pd.DataFrame]]) -> dict[str, object]:
    one, other, about = sides[a], sides[b], sides[a]["about"]
    stacked = np.concatenate([one["scores"].to_numpy(), other["scores"].to_numpy()])
    aucs, covariance = delong(about["label"].to_numpy(), stacked, about["patient"].to_numpy())
    seeds, others = len(one["scores"]), len(other["scores"])
    contrast = np.r_[np.full(seeds, 1 / seeds), np.full(others, -1 / others)]
    if np.isnan(covariance).any():
        raise DataInvalid(f"{a} and {b}: a class has one patient only. Fix: compare on more patients.")
    difference, spread = float(contrast @ aucs), float(np.sqrt(max(0.0, contrast @ covariance @ contrast)))
    # What rounding leaves of two equal recipes is no difference.
    p = 2 * norm.sf(abs(difference) / spread) if spread > 1e-9 else float(abs(difference) < 1e-9)
    right, rightly = one["right"]["right"], other["right"]["right"]
    return {
        "a": a,
        "b": b,
        "n": len(about),
        "auc_difference": difference,
        "low": difference - 1.959964 * spread,
        "high": difference + 1.959964 * spread,
        "p_auc": p,
        "only_a_right": int((right & ~rightly).sum()),
        "only_b_right": int((~right & rightly).sum()),
        "p_mcnemar": _mcnemar(right.astype(int) - rightly.astype(int), about["patient"]),
    }


def _mcnemar(differences: pd.Series, patients: pd.Series) -> float:
    """McNemar's test with its differences summed within patients, whose images are not independent.

    The variance is that of the sums (Eliasziw and Donner 1991; Durkalski et al. 2003); with one image a
    patient this is the classical test without correction.
    """
    sums = differences.groupby(patients).sum().to_numpy(dtype=float)
    spread = float(np.square(sums).sum())
    return float(chi2.sf(sums.sum() ** 2 / spread, 1)) if spread else 1.0
