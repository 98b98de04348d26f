"""Figures of parts of the test: kinds of pneumonia, naming series of the normals, sizes of the images."""

import numpy as np
import pandas as pd

from xraylib.evaluation import metrics
from xraylib.evaluation.operating import thresholds
from xraylib.evaluation.resampling import share_interval
from xraylib.evaluation.scores import check_scores
from xraylib.storage import DataInvalid

# What the names of Kermany's normals begin with.
SERIES = {"IM-": "normal, series IM-", "NORMAL2-": "normal, series NORMAL2-"}


def name_groups(part: pd.DataFrame, pixels: pd.Series | None = None) -> pd.DataFrame:
    """Say of every image in which subgroups it is.

    Parameters
    ----------
    part
        Scores, or any table with `image_id`, `label`, `kind`.
    pixels
        Width times height of each file by `image_id`; without it, or where all are equal, no groups by size.

    Returns
    -------
    pandas.DataFrame
        `image_id, label, subgroup`, one row an image and subgroup; sizes are divided at their median.
    """
    about = part.drop_duplicates("image_id")[["image_id", "label", "kind"]]
    rows = [about.assign(subgroup="pneumonia, " + about["kind"])[about["label"] == 1]]
    for start, name in SERIES.items():
        rows.append(
            about[about["image_id"].str.startswith(start) & (about["label"] == 0)].assign(subgroup=name)
        )
    sizes = pd.Series(dtype=float) if pixels is None else about["image_id"].map(pixels)
    if sizes.nunique() > 1:
        middle = sizes.median()
        for name, inside in (("smaller image", sizes <= middle), ("larger image", sizes > middle)):
            for label, of in ((0, "normal"), (1, "pneumonia")):
                rows.append(about[inside & (about["label"] == label)].assign(subgroup=f"{of}, {name}"))
    return pd.concat(rows)[["image_id", "label", "subgroup"]].reset_index(drop=True)


def table(
    scores: pd.DataFrame,
    *,
    rule: str | float = "validation",
    split: str = "test",
    pixels: pd.Series | None = None,
) -> pd.DataFrame:
    """Share of each subgroup that is called rightly, and the AUC of it against all of the other class.

    Parameters
    ----------
    scores
        Of one recipe and protocol.
    rule
        Operating point (see `operating`).
    split
        The side to evaluate.
    pixels
        See `name_groups`.

    Returns
    -------
    pandas.DataFrame
        `recipe, subgroup, images, patients, right` (sensitivity or specificity)`, right_low, right_high, auc,
        auc_low, auc_high`: means over seeds with 95 % intervals over patients.

    Raises
    ------
    DataInvalid
        What `scores.check_scores` refuses.
    """
    check_scores(scores)
    points = thresholds(scores, rule)
    side = scores[scores["split"] == split]
    rows = []
    for subgroup, members in name_groups(side, pixels).groupby("subgroup", sort=False):
        label = int(members["label"].iloc[0])
        mine = side[side["image_id"].isin(members["image_id"])]
        called = mine["score"] >= mine["seed"].map(points)
        right = _share(mine.assign(right=called == (label == 1)))
        aucs = _aucs(pd.concat([mine, side[side["label"] != label]]))
        rows.append(
            {
                "recipe": scores["recipe"].iloc[0],
                "subgroup": subgroup,
                "images": mine["image_id"].nunique(),
                "patients": mine["patient"].nunique(),
                **dict(zip(("right", "right_low", "right_high"), right, strict=True)),
                **dict(zip(("auc", "auc_low", "auc_high"), aucs, strict=True)),
            }
        )
    return pd.DataFrame(rows)


def by_folder(scores: pd.DataFrame, *, rule: str | float = 0.5) -> pd.DataFrame:
    """Share called rightly among images that a random deal tested, by the official folder they come from.

    Parameters
    ----------
    scores
        Of one recipe, under `random-per-image` and `strict`; the latter's test tells the official folder.
    rule
        Operating point (see `operating`).

    Returns
    -------
    pandas.DataFrame
        `recipe, subgroup` (class and folder)`, images, patients, right, right_low, right_high`: each image of
        the random deal's test, by all the seeds that tested it, with 95 % intervals over patients.

    Raises
    ------
    DataInvalid
        When one of the two protocols is missing; and what `scores.check_scores` refuses.
    """
    dealt, strict = (scores[scores["protocol"] == name] for name in ("random-per-image", "strict"))
    if dealt.empty or strict.empty:
        raise DataInvalid("scores of random-per-image and of strict are needed. Fix: train both.")
    check_scores(dealt)
    official = strict.loc[strict["split"] == "test", "image_id"]
    points = thresholds(dealt, rule)
    side = dealt[dealt["split"] == "test"]
    side = side.assign(right=(side["score"] >= side["seed"].map(points)) == (side["label"] == 1))
    side["folder"] = np.where(side["image_id"].isin(official), "test", "train")
    rows = []
    for folder in ("train", "test"):
        for label, name in enumerate(("normal", "pneumonia")):
            mine = side[(side["folder"] == folder) & (side["label"] == label)]
            rows.append(
                {
                    "recipe": scores["recipe"].iloc[0],
                    "subgroup": f"{name}, from the {folder} folder",
                    "images": mine["image_id"].nunique(),
                    "patients": mine["patient"].nunique(),
                    **dict(zip(("right", "right_low", "right_high"), _share(mine), strict=True)),
                }
            )
    return pd.DataFrame(rows)


def _share(part: pd.DataFrame) -> tuple[float, float, float]:
    by_image = part.groupby(["patient", "image_id"])["right"].mean().reset_index()
    return share_interval(by_image["right"].to_numpy(), by_image["patient"].to_numpy())


def _aucs(part: pd.DataFrame) -> tuple[float, float, float]:
    found = metrics.evaluate(part.assign(split="test"), rule=0.5)
    value, low, high = found.loc["auc", ["value", "low", "high"]].to_numpy(dtype=float)
    return float(value), float(low), float(high)
