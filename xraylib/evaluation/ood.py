"""Out-of-distribution (OOD) scores: how unlike the training images an image is."""

from collections.abc import Collection

import numpy as np
import pandas as pd
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA

from xraylib import paths
from xraylib.datasets import catalog, images, manifest, splits
from xraylib.datasets.corruptions import corrupt
from xraylib.evaluation import metrics
from xraylib.evaluation.resampling import share_interval
from xraylib.evaluation.views import strict_runs
from xraylib.storage import atomic_write
from xraylib.training.predictor import load_predictor
from xraylib.training.recipes import get_recipe

# The recipe whose frozen backbone gives the features of the OOD scores.
OOD_RECIPE = "mobilenetv2-frozen"
COMPONENTS = 50
# The limit flags this share of validation.
FLAGGED = 0.05


def frozen_features(whole: pd.DataFrame) -> np.ndarray:
    """Return features of a manifest's images by the frozen network of `OOD_RECIPE`.

    Parameters
    ----------
    whole : pandas.DataFrame
        A whole manifest.

    Returns
    -------
    numpy.ndarray
        float `(n, k)`, in the order of the manifest, with the recipe's own initial weights.
    """
    from xraylib.training import networks, probe  # which load Keras

    recipe = get_recipe(OOD_RECIPE)
    weights = networks.get_weights(recipe.network, recipe.init)
    return probe.pooled(whole, recipe.network, recipe.size, weights, 0)


def ood_scores(dataset: str, others: Collection[str] = ()) -> pd.DataFrame:
    """Score how unlike the training images others are, by `mahalanobis` on frozen features.

    Training and validation images are those of the first strict run of `OOD_RECIPE`.

    Parameters
    ----------
    dataset : str
        Name or path of the data set.
    others : collection of str
        Names or paths of further data sets, which are scored whole.

    Returns
    -------
    pandas.DataFrame
        One row per image and group, written to `tables/ood_scores.csv` of the report.

        - `group`: `validation, normal`, `validation, pneumonia`, likewise of the official test,
          `test, inverted`, and the names of the other data sets.
        - `image_id`, `patient`, `label`.
        - `ood_score`: 0 or more.
    """
    from xraylib.training import networks, probe  # which load Keras

    name = catalog.get_dataset(dataset).name
    whole = manifest.load(dataset)
    run = strict_runs(OOD_RECIPE, name)[0]
    frozen = load_predictor(run).model
    choices = run.settings["choices"]
    size = choices["size"]
    init = "random" if run.settings["init"] == "random" else "imagenet"
    weights = networks.get_weights(choices["network"], init)
    features = probe.pooled(whole, choices["network"], size, weights, run.seed)
    strategy = choices["split_strategy"]
    assigned = splits.assign(whole, "strict", run.seed, split_strategy=strategy)
    training = features[assigned.index[assigned["split"] == "train"]]
    groups = []
    for split, title in (("val", "validation"), ("test", "test")):
        part = assigned[assigned["split"] == split]
        diagnosis = part["label"].map({0: "normal", 1: "pneumonia"})
        group = part.assign(group=f"{title}, " + diagnosis)
        groups.append((group, features[part.index]))
    test = assigned[assigned["split"] == "test"]
    inverted = corrupt(images.load_pixels(whole, size)[test.index], "inversion", 1)
    groups.append((test.assign(group="test, inverted"), probe.describe(frozen, inverted)))
    for other in others:
        group = manifest.load(other).assign(group=catalog.get_dataset(other).name)
        groups.append((group, probe.describe(frozen, images.load_pixels(group, size))))
    scored = [group.assign(ood_score=mahalanobis(training, found)) for group, found in groups]
    columns = ["group", "image_id", "patient", "label", "ood_score"]
    table = pd.concat(scored)[columns].reset_index(drop=True)
    with atomic_write(paths.REPORTS / name / "tables" / "ood_scores.csv") as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")
    return table


def mahalanobis(training: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Return the Mahalanobis distance from the training images (Lee et al. 2018, without classes).

    Parameters
    ----------
    training : numpy.ndarray
        Features `(n, k)` of the training images.
    features : numpy.ndarray
        Features `(m, k)` of the images to score.

    Returns
    -------
    numpy.ndarray
        float `(m,)`, 0 or more, in the first `COMPONENTS` principal components of the training
        images, or fewer.
    """
    components = PCA(min(COMPONENTS, *training.shape), random_state=0).fit(training)
    spread = LedoitWolf().fit(components.transform(training))
    return np.sqrt(spread.mahalanobis(components.transform(features)))


def ood_flagged(table: pd.DataFrame) -> pd.DataFrame:
    """Count the images above the limit that flags 5% of validation.

    Parameters
    ----------
    table : pandas.DataFrame
        The table of `ood_scores`.

    Returns
    -------
    pandas.DataFrame
        One row per group.

        - `group`, `images`, `limit`.
        - `flagged`: share above the limit; `low`, `high`: its interval over patients.
        - `auc`, `auc_low`, `auc_high`: how well the OOD score separates the group from
          validation; missing for validation itself.
    """
    validation = table[table["group"].str.startswith("validation")]
    limit = float(validation["ood_score"].quantile(1 - FLAGGED))
    rows = []
    for group, part in table.groupby("group", sort=False):
        above = (part["ood_score"] > limit).to_numpy()
        share, low, high = share_interval(above, part["patient"].to_numpy())
        row = {"group": group, "images": len(part), "flagged": share, "low": low, "high": high}
        auc = (np.nan, np.nan, np.nan)
        if not str(group).startswith("validation"):
            auc = _separation(validation, part)
        row["limit"] = limit
        rows.append(row | dict(zip(("auc", "auc_low", "auc_high"), auc, strict=True)))
    return pd.DataFrame(rows)


def _separation(validation: pd.DataFrame, group: pd.DataFrame) -> tuple[float, float, float]:
    """AUC of the OOD score of a group against validation, with its interval over patients."""
    both = pd.concat([validation.assign(other=0), group.assign(other=1)])
    # Another hospital may give its patients the same names.
    patients = (both["other"].astype(str) + both["patient"]).to_numpy()
    return metrics.auc_interval(both["other"].to_numpy(), both["ood_score"].to_numpy(), patients)
