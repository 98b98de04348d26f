"""How the framing of real images goes with their scores: lung height as the natural dose.

The framing experiment (`views.framing_response`) crops images and counts what changes. Here nothing
is changed. Lung height is the share of an image's height that the lungs fill, so that a tight
framing has a large lung height. All functions take a table of scores (`scores.load`) and a table of
lung boxes with the columns `image_id` and `lung_height`. What they find is an association:
tightly framed images may differ in age or ward as well.
"""

import warnings
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from scipy.stats import norm, rankdata
from scipy.stats import t as student

from xraylib.datasets.manifest import series_and_number
from xraylib.errors import InvalidDataError
from xraylib.evaluation import metrics
from xraylib.evaluation.resampling import bootstrap_weights, interval

# Bins of lung height, (0, .72] and so on, and of aspect ratio (width by height).
LUNG_HEIGHTS = (0.0, 0.72, 0.78, 0.84, 1.0)
ASPECT_RATIOS = (0.0, 1.15, 1.3, 1.45, 10.0)
# At or below this lung height an image of Kermany's is framed loosely.
LOOSE = 0.72
SPLITS = ("val", "test")
RESAMPLES = 1000


def framing_by_lung_height(
    scores: pd.DataFrame,
    boxes: pd.DataFrame,
    *,
    threshold: float | None = None,
    edges: Sequence[float] = LUNG_HEIGHTS,
) -> pd.DataFrame:
    """Measure sensitivity and specificity by lung height, on validation and on the official test.

    Parameters
    ----------
    scores : pandas.DataFrame
        Scores of the strict runs of any number of recipes, with `threshold`.
    boxes : pandas.DataFrame
        `image_id` and `lung_height` in (0, 1]; images without a box are left out.
    threshold : float, optional
        Used for all runs instead of their frozen thresholds.
    edges : sequence of float
        Borders of the bins, which include their upper end.

    Returns
    -------
    pandas.DataFrame
        One row per recipe, split, class and bin that has images.

        - `recipe`, `split`, `diagnosis` (normal or pneumonia), `lung_height` (such as `0.72–0.78`).
        - `images`, `patients`, `runs`.
        - `correct`: share classified correctly, mean over runs; `correct_low`, `correct_high`: its
          interval over runs and patients (of fewer than three runs over patients).
    """
    framed = _joined(scores, boxes, "lung_height")
    if threshold is not None:
        framed["threshold"] = threshold
    framed["bin"] = _bins(framed["lung_height"], edges)
    framed["split"] = pd.Categorical(framed["split"], SPLITS)
    rows = []
    keys = ["recipe", "split", "label", "bin"]
    for (recipe, split, label, name), part in framed.groupby(keys, observed=True):
        metric = "sensitivity" if label else "specificity"
        measured = metrics.evaluate(part, split=str(split), resamples=RESAMPLES, ranking=False)
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


def standardised_fall(
    scores: pd.DataFrame,
    boxes: pd.DataFrame,
    column: str = "lung_height",
    edges: Sequence[float] = LUNG_HEIGHTS,
    *,
    threshold: float | None = None,
) -> pd.DataFrame:
    """Share of the fall in specificity that the mix of lung heights accounts for.

    Kitagawa's (1955) decomposition of specificity on validation minus specificity on the official
    test. With `p` the share of normals in a bin and `r` their specificity, the mix accounts for
    `sum((p_val - p_test) * r)`. The two answers, with validation's rates and with the test's rates,
    differ where the rates depend on more than the bin.

    Parameters
    ----------
    scores, boxes : pandas.DataFrame
        As in `framing_by_lung_height`.
    column : str
        The column of `boxes` to standardise over, such as an aspect ratio.
    edges : sequence of float
        Borders of its bins.
    threshold : float, optional
        Used for all runs instead of their frozen thresholds.

    Returns
    -------
    pandas.DataFrame
        One row per recipe.

        - `recipe`, `column`, `runs`, `images_val`, `images_test`.
        - `fewest_val`: validation normals in the bin that has fewest, which decides how far
          `share_val_rates` can be believed.
        - `validation`, `test`: specificity; `fall`: their difference.
        - `share_val_rates`, `share_test_rates`: share of the fall, each with `_low` and `_high`,
          missing where a bin has no normal. The interval joins a jackknife over runs (Student's
          t) and a bootstrap over patients.
    """
    framed = _joined(scores, boxes, column)
    if threshold is not None:
        framed["threshold"] = threshold
    framed = framed[framed["label"] == 0]
    framed["correct"] = (framed["score"] < framed["threshold"]).astype(float)
    framed["bin"] = _bins(framed[column], edges).cat.codes
    bins = len(edges) - 1
    names = ("validation", "test", "fall", "share_val_rates", "share_test_rates")
    rows = []
    for recipe, part in framed.groupby("recipe", sort=False):
        counts = part.drop_duplicates(["split", "image_id"]).groupby(["split", "bin"]).size()
        images = counts.unstack(fill_value=0)
        images = images.reindex(index=SPLITS, columns=range(bins), fill_value=0)
        row: dict[str, object] = {
            "recipe": recipe,
            "column": column,
            "runs": part["seed"].nunique(),
            "images_val": int(images.loc["val"].to_numpy().sum()),
            "images_test": int(images.loc["test"].to_numpy().sum()),
            "fewest_val": int(images.loc["val"].to_numpy().min()),
        }
        values = _decomposed(part, np.ones((1, len(part))), bins)[:, 0]
        row |= dict(zip(names, values.tolist(), strict=True))
        half = _half_width(part, bins)
        for name, value, width in zip(names[3:], values[3:], half[3:], strict=True):
            row[f"{name}_low"] = value - width
            row[f"{name}_high"] = value + width
        rows.append(row)
    return pd.DataFrame(rows)


def _decomposed(part: pd.DataFrame, weights: np.ndarray, bins: int) -> np.ndarray:
    """Validation, test, fall and the two shares `(5, m)` under weights `(m, rows of part)`."""
    correct = part["correct"].to_numpy()
    inside = part["bin"].to_numpy()[:, None] == np.arange(bins)
    shares = {}
    rates = {}
    for split in SPLITS:
        chosen = (part["split"] == split).to_numpy()
        count = weights[:, chosen] @ inside[chosen]
        recognised = weights[:, chosen] @ (inside[chosen] * correct[chosen, None])
        shares[split] = count / count.sum(axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):  # a resample may have no image of a bin
            rates[split] = recognised / count
    specificity = {split: np.nansum(shares[split] * rates[split], axis=1) for split in SPLITS}
    fall = specificity["val"] - specificity["test"]
    # How much of the mix each bin loses on the way to the test.
    moved = shares["val"] - shares["test"]
    with np.errstate(divide="ignore", invalid="ignore"):  # where nothing falls
        explained = [(moved * rates[split]).sum(axis=1) / fall for split in SPLITS]
    return np.stack([specificity["val"], specificity["test"], fall, *explained])


def _half_width(part: pd.DataFrame, bins: int) -> np.ndarray:
    """Half widths of the 95% intervals of what `_decomposed` returns, over runs and patients."""
    patients, row_patient = np.unique(part["patient"], return_inverse=True)
    drawn = bootstrap_weights(len(patients), RESAMPLES)[:, row_patient]
    resampled = _decomposed(part, drawn, bins)
    resampled[~np.isfinite(resampled)] = np.nan
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # where no resample has a value
        over_patients = norm.ppf(0.975) * np.nanstd(resampled, axis=1)
    seeds = part["seed"].unique()
    k = len(seeds)
    if k < metrics.MIN_RUNS:
        return over_patients
    without = (part["seed"].to_numpy() != seeds[:, None]).astype(float)
    left_out = _decomposed(part, without, bins)
    jackknife = np.sqrt((k - 1) * np.var(left_out, axis=1))
    return np.hypot(over_patients, student.ppf(0.975, k - 1) * jackknife)


def partial_association(scores: pd.DataFrame, boxes: pd.DataFrame) -> pd.DataFrame:
    """Rank correlation of score and lung height of the official test's normals, plain and partial.

    The partial correlation is that of the residuals of the ranks of both on the ranks of aspect
    ratio, width and number, and on the series of the numbers, by least squares.

    Parameters
    ----------
    scores : pandas.DataFrame
        As in `framing_by_lung_height`; the scores of the runs are averaged per image.
    boxes : pandas.DataFrame
        `image_id`, `lung_height`, and `width` and `height` of the original image in pixels.

    Returns
    -------
    pandas.DataFrame
        One row per recipe: `recipe`, `images`; `lung_height` (Spearman's correlation with the
        score), `lung_height_partial`, and `aspect_partial` (aspect ratio with lung height among
        what is held constant), each with `_low` and `_high`, an interval over patients.
    """
    framed = _joined(scores, boxes, "lung_height", "width", "height")
    framed = framed[(framed["label"] == 0) & (framed["split"] == "test")]
    rows = []
    for recipe, part in framed.groupby("recipe", sort=False):
        about = part.drop_duplicates("image_id").set_index("image_id")
        about["score"] = part.groupby("image_id")["score"].mean()
        about["aspect"] = about["width"] / about["height"]
        about = about.join(series_and_number(about.reset_index()).set_index(about.index))
        patients, row_patient = np.unique(about["patient"], return_inverse=True)
        drawn = bootstrap_weights(len(patients), RESAMPLES)[:, row_patient].astype(int)
        images = np.arange(len(about))
        samples = [_correlations(about.iloc[np.repeat(images, times)]) for times in drawn[:500]]
        row: dict[str, object] = {"recipe": recipe, "images": len(about)}
        for name, value in _correlations(about).items():
            low, high = interval(np.array([sample[name] for sample in samples]))
            row |= {name: value, f"{name}_low": low, f"{name}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def _correlations(about: pd.DataFrame) -> dict[str, float]:
    """The three correlations of `partial_association` of one sample of images."""
    names = ["score", "lung_height", "aspect", "width", "number"]
    ranks = {name: rankdata(about[name]) for name in names}
    series = pd.get_dummies(about["series"]).to_numpy(dtype=float)
    constant = [ranks["width"][:, None], ranks["number"][:, None], series]

    def partial(name: str, other: str) -> float:
        held = np.hstack([*constant, ranks[other][:, None]])
        residuals = []
        for values in (ranks["score"], ranks[name]):
            fitted = held @ np.linalg.lstsq(held, values, rcond=None)[0]
            residuals.append(values - fitted)
        return float(np.corrcoef(residuals)[0, 1])

    return {
        "lung_height": float(np.corrcoef(ranks["score"], ranks["lung_height"])[0, 1]),
        "lung_height_partial": partial("lung_height", "aspect"),
        "aspect_partial": partial("aspect", "lung_height"),
    }


def loosely_framed_missed(
    scores: pd.DataFrame, boxes: pd.DataFrame, limit: float = LOOSE
) -> pd.DataFrame:
    """List the loosely framed normals of the official test that some recipe still misses.

    Framing cannot explain these errors.

    Parameters
    ----------
    scores, boxes : pandas.DataFrame
        As in `framing_by_lung_height`.
    limit : float
        Images up to this lung height are framed loosely.

    Returns
    -------
    pandas.DataFrame
        One row per image that most runs of a recipe classify as pneumonia: `image_id`, `patient`,
        `missed_by` (recipes whose runs mostly do), `recipes` (that scored the image).
    """
    framed = _joined(scores, boxes, "lung_height")
    loose = framed[
        (framed["label"] == 0) & (framed["split"] == "test") & (framed["lung_height"] <= limit)
    ]
    wrong = loose.assign(wrong=loose["score"] >= loose["threshold"])
    majority = wrong.groupby(["image_id", "patient", "recipe"])["wrong"].mean() > 0.5
    by_image = majority.groupby(["image_id", "patient"]).agg(missed_by="sum", recipes="size")
    missed = by_image[by_image["missed_by"] > 0].reset_index()
    return missed.sort_values(["missed_by", "image_id"], ascending=[False, True], ignore_index=True)


def _joined(scores: pd.DataFrame, boxes: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Strict scores of validation and test with columns of the boxes, checked."""
    missing = [name for name in ("image_id", *columns) if name not in boxes]
    if missing:
        what = f"the table of lung boxes lacks the columns {', '.join(missing)}"
        raise InvalidDataError(f"{what}. Fix: read it from the list of lung boxes again.")
    if boxes["image_id"].duplicated().any():
        twice = boxes.loc[boxes["image_id"].duplicated(), "image_id"].iloc[0]
        what = f"the table of lung boxes has {twice} twice"
        raise InvalidDataError(f"{what}. Fix: keep one box for each image.")
    strict = scores[(scores["protocol"] == "strict") & scores["split"].isin(SPLITS)]
    framed = strict.merge(boxes[["image_id", *columns]], on="image_id")
    if framed.empty:
        what = "no scored image has a lung box"
        raise InvalidDataError(f"{what}. Fix: pass the boxes of the data set that was scored.")
    return framed


def _bins(values: pd.Series, edges: Sequence[float]) -> pd.Series:
    """Bins by name, such as `0.72–0.78`, with their upper ends."""
    labels = [f"{low:g}–{high:g}" for low, high in pairwise(edges)]
    return pd.cut(values, list(edges), labels=labels)
