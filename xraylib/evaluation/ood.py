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

# Whose frozen backbone gives the features of the OOD scores.
OOD_RECIPE = "mobilenetv2-frozen"


def frozen_features(films: pd.DataFrame) -> np.ndarray:
    """Features `(n, k)` of a manifest's images by the frozen network of `OOD_RECIPE` with its own initial weights."""
    from xraylib.training import networks, probe  # which load Keras

    recipe = get_recipe(OOD_RECIPE)
    weights = networks.get_weights(recipe.network, recipe.init)
    return probe.pooled(films, recipe.network, recipe.size, weights, 0)


def ood_scores(dataset: str, others: Collection[str] = ()) -> pd.DataFrame:
    """OOD scores: how unlike the training images others are, by `mahalanobis` on `OOD_RECIPE`'s features.

    `group, image_id, patient, label, ood_score`, written to `tables/ood_scores.csv` of the report. Groups: normals and
    pneumonias of validation and of the official test, the test inverted, and further data sets (names or paths), whole.
    Training and validation images are those of the recipe's first strict run.
    """
    from xraylib.training import networks, probe  # which load Keras

    name, whole = catalog.get_dataset(dataset).name, manifest.load(dataset)
    run = strict_runs(OOD_RECIPE, name)[0]
    frozen, choices = load_predictor(run).model, run.settings["choices"]
    network, size = choices["network"], choices["size"]
    weights = networks.get_weights(
        network, "random" if run.settings["init"] == "random" else "imagenet"
    )
    features = probe.pooled(whole, network, size, weights, run.seed)
    assigned = splits.assign(whole, "strict", run.seed, split_strategy=choices["split_strategy"])
    train, val, test = (assigned[assigned["split"] == split] for split in ("train", "val", "test"))
    inverted = corrupt(images.load_pixels(whole, size)[test.index], "inversion", 1)
    judged = [
        (
            part.assign(group=f"{split}, " + part["label"].map({0: "normal", 1: "pneumonia"})),
            features[part.index],
        )
        for split, part in (("validation", val), ("test", test))
    ]
    judged.append((test.assign(group="test, inverted"), probe.describe(frozen, inverted)))
    for other in others:
        there = manifest.load(other)
        found = probe.describe(frozen, images.load_pixels(there, size))
        judged.append((there.assign(group=catalog.get_dataset(other).name), found))
    usual = features[train.index]
    table = pd.concat([part.assign(ood_score=mahalanobis(usual, found)) for part, found in judged])
    table = table[["group", "image_id", "patient", "label", "ood_score"]].reset_index(drop=True)
    with atomic_write(paths.REPORTS / name / "tables" / "ood_scores.csv") as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")
    return table


def mahalanobis(training: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Distance `(m,)` of features `(m, k)` from the training images' `(n, k)`, 0 or more.

    In their first 50 principal components, or fewer. Lee et al. 2018, without classes.
    """
    components = PCA(min(50, *training.shape), random_state=0).fit(training)
    spread = LedoitWolf().fit(components.transform(training))
    return np.sqrt(spread.mahalanobis(components.transform(features)))


def ood_flagged(table: pd.DataFrame) -> pd.DataFrame:
    """Share of images of `ood_scores` above the limit that flags 5% of validation.

    One row a group: `group, images, flagged, low, high, limit`, and `auc, auc_low, auc_high`: how well the OOD score
    separates the group from validation.
    """
    usual = table[table["group"].str.startswith("validation")]
    limit, rows = float(usual["ood_score"].quantile(0.95)), []
    for group, part in table.groupby("group", sort=False):
        above = (part["ood_score"] > limit).to_numpy()
        share, low, high = share_interval(above, part["patient"].to_numpy())
        row = {"group": group, "images": len(part), "flagged": share, "low": low, "high": high}
        found = (np.nan, np.nan, np.nan)
        if not str(group).startswith("validation"):
            both = pd.concat([usual.assign(other=0), part.assign(other=1)])
            # Another hospital may give its patients the same names.
            patients = (both["other"].astype(str) + both["patient"]).to_numpy()
            found = metrics.auc_interval(
                both["other"].to_numpy(), both["ood_score"].to_numpy(), patients
            )
        rows.append(
            row | {"limit": limit} | dict(zip(("auc", "auc_low", "auc_high"), found, strict=True))
        )
    return pd.DataFrame(rows)
