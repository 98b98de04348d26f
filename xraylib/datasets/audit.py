"""Features that know nothing of lungs: what a network could learn instead of pneumonia."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from xraylib.datasets import images
from xraylib.evaluation.ranking import delong_interval

# Share of the height and width that counts as border on each side.
BORDER = 1 / 8


def files(manifest: pd.DataFrame) -> pd.DataFrame:
    """Describe the files of a manifest without decoding them.

    Returns
    -------
    pandas.DataFrame
        In the manifest's row order: `width` and `height` in pixels, `bytes`, `label`, `split`, `patient`.
    """
    rows = []
    for path in manifest["path"]:
        with Image.open(path, formats=("JPEG", "PNG")) as image:
            rows.append((image.width, image.height, Path(path).stat().st_size))
    table = pd.DataFrame(rows, columns=["width", "height", "bytes"], index=manifest.index)
    return table.join(manifest[["label", "split", "patient"]])


def trivial(manifest: pd.DataFrame, pixels: np.ndarray) -> pd.DataFrame:
    """Describe every radiograph by single numbers.

    Parameters
    ----------
    manifest
        Of `n` images.
    pixels
        uint8 `(n, size, size, 1)` of the same rows.

    Returns
    -------
    pandas.DataFrame
        In the manifest's row order: file size in bytes, image size in pixels, mean intensity and border
        intensity (0…255), and the share of saturated pixels.
    """
    described = files(manifest)
    border = _border(pixels.shape[1])
    return pd.DataFrame(
        {
            "file size": described["bytes"],
            "image size": described["width"] * described["height"],
            "mean intensity": [film.mean() for film in pixels],
            "border intensity": [film[border].mean() for film in pixels],
            "saturated pixels": [(film >= 250).mean() for film in pixels],
        },
        index=manifest.index,
    )


def number(manifest: pd.DataFrame, name: str, size: int) -> np.ndarray:
    """Describe every radiograph by the one number that a trivial baseline sees.

    Parameters
    ----------
    manifest
        Of `n` images.
    name
        `majority class` (nothing: the same number for all), `file size` or `mean intensity`.
    size
        Height and width in pixels at which intensity is averaged.

    Returns
    -------
    numpy.ndarray
        float64 `(n, 1)`.
    """
    if name == "majority class":
        return np.zeros((len(manifest), 1))
    if name == "file size":
        return files(manifest)[["bytes"]].to_numpy(dtype=np.float64)
    return images.load_pixels(manifest, size).mean(axis=(1, 2), dtype=np.float64)


def audit(manifest: pd.DataFrame, pixels: np.ndarray) -> pd.DataFrame:
    """AUC of trivial features, and of a linear model that sees nothing but the border.

    The direction of each feature is taken from the training images, and the linear model is fitted on
    them; its own training figure is out of fold, by patient.

    Parameters
    ----------
    manifest
        With its official `split`; all that is not test counts as train.
    pixels
        uint8 `(n, size, size, 1)` of the same rows; 64 pixels are plenty.

    Returns
    -------
    pandas.DataFrame
        `feature, split` (train or test)`, auc, low, high`, DeLong's 95 % interval over patients.
    """
    values = trivial(manifest, pixels)
    is_test = (manifest["split"] == "test").to_numpy()
    labels, patients = manifest["label"].to_numpy(), manifest["patient"].to_numpy()
    values["border, linear model"] = _border_model(pixels, labels, patients, is_test)
    rows = []
    for feature in values:
        column = values[feature].to_numpy(dtype=float)[None]
        if delong_interval(labels[~is_test], column[:, ~is_test], patients[~is_test])[0] < 0.5:
            column = -column
        for split, side in (("train", ~is_test), ("test", is_test)):
            auc, low, high = delong_interval(labels[side], column[:, side], patients[side])
            rows.append({"feature": feature, "split": split, "auc": auc, "low": low, "high": high})
    return pd.DataFrame(rows)


def _border(size: int) -> np.ndarray:
    inner = round(size * BORDER)
    border = np.ones((size, size), bool)
    border[inner : size - inner, inner : size - inner] = False
    return border


def _border_model(
    pixels: np.ndarray, labels: np.ndarray, patients: np.ndarray, is_test: np.ndarray
) -> np.ndarray:
    seen = pixels[:, _border(pixels.shape[1])].reshape(len(pixels), -1).astype(np.float32) / 255
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1e-2, max_iter=1000))
    folds = StratifiedGroupKFold(n_splits=5, shuffle=True, random_state=0)
    scores = np.empty(len(pixels))
    scores[~is_test] = cross_val_predict(
        model,
        seen[~is_test],
        labels[~is_test],
        groups=patients[~is_test],
        cv=folds,
        method="predict_proba",
    )[:, 1]
    scores[is_test] = model.fit(seen[~is_test], labels[~is_test]).predict_proba(seen[is_test])[:, 1]
    return scores
