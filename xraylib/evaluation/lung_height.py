"""How the framing of real images goes with their scores: lung height as the natural dose.

The framing experiment (`views.framing_response`) crops images and counts what changes. Here nothing
is changed. Lung height is the share of an image's height that the lungs fill, so that a tight
framing has a large lung height. What this finds is an association: tightly framed images may differ
in age or ward as well.
"""

from itertools import pairwise

import pandas as pd

from xraylib.errors import InvalidDataError
from xraylib.evaluation import metrics

# Bins of lung height, which include their upper ends: (0, 0.72] and so on.
LUNG_HEIGHTS = (0.0, 0.72, 0.78, 0.84, 1.0)
SPLITS = ("val", "test")


def framing_by_lung_height(scores: pd.DataFrame, boxes: pd.DataFrame) -> pd.DataFrame:
    """Measure sensitivity and specificity by lung height, on validation and on the official test.

    Parameters
    ----------
    scores : pandas.DataFrame
        Scores of the strict runs of any number of recipes, with `threshold`.
    boxes : pandas.DataFrame
        `image_id` and `lung_height` in (0, 1]; images without a box are left out.

    Returns
    -------
    pandas.DataFrame
        One row per recipe, split, class and bin that has images.

        - `recipe`, `split`, `diagnosis` (normal or pneumonia), `lung_height` (such as `0.72–0.78`).
        - `images`, `patients`, `runs`.
        - `correct`: share classified correctly, mean over runs; `correct_low`, `correct_high`: its
          interval over runs and patients (of fewer than three runs over patients).

    Raises
    ------
    InvalidDataError
        No scored image has a box.
    """
    strict = scores[(scores["protocol"] == "strict") & scores["split"].isin(SPLITS)]
    framed = strict.merge(boxes[["image_id", "lung_height"]], on="image_id", validate="m:1")
    if framed.empty:
        what = "no scored image has a lung box"
        raise InvalidDataError(f"{what}. Fix: pass the boxes of the data set that was scored.")
    names = [f"{low:g}–{high:g}" for low, high in pairwise(LUNG_HEIGHTS)]
    framed["bin"] = pd.cut(framed["lung_height"], LUNG_HEIGHTS, labels=names)
    framed["split"] = pd.Categorical(framed["split"], SPLITS)
    rows = []
    keys = ["recipe", "split", "label", "bin"]
    for (recipe, split, label, name), part in framed.groupby(keys, observed=True):
        metric = "sensitivity" if label else "specificity"
        measured = metrics.evaluate(part, split=str(split), resamples=1000, ranking=False)
        row = {
            "recipe": recipe,
            "split": split,
            "diagnosis": "pneumonia" if label else "normal",
            "lung_height": name,
            "images": part["image_id"].nunique(),
            "patients": part["patient"].nunique(),
            "runs": part["seed"].nunique(),
        }
        rows.append(row | metrics.ends(measured.rename({metric: "correct"}), "correct"))
    return pd.DataFrame(rows)
