"""How well heat maps find what they should: the lesion, where it is known.

A map that looks sensible proves nothing (Adebayo et al. 2018). Notebook 07 makes maps by Grad-CAM.
"""

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter

from xraylib.errors import InvalidDataError
from xraylib.evaluation.resampling import share_interval


def center_prior(size: int) -> np.ndarray:
    """Return a blob in the centre, which knows only where lungs are: float32 `(size, size)`."""
    blob = np.zeros((size, size), np.float32)
    blob[size // 2, size // 2] = 1
    blob = gaussian_filter(blob, size / 5)
    return blob / blob.max()


def localisation(maps: np.ndarray, masks: np.ndarray, patients: np.ndarray) -> pd.DataFrame:
    """Measure how well heat maps find the lesion, which is where its mask is not zero.

    Parameters
    ----------
    maps : numpy.ndarray
        `(n, h, w)`, 0 or more.
    masks : numpy.ndarray
        `(n, h, w)`, each with a lesion.
    patients : numpy.ndarray
        The patient of each image, `(n,)`.

    Returns
    -------
    pandas.DataFrame
        Index `pointing` (share of images whose peak lies in the lesion) and `energy` (mean share
        of the map in the lesion).

        - `value`; `low`, `high`: its interval over patients.
        - `area`: mean share of the image that is lesion, which a uniform map reaches.
    """
    lesion = np.asarray(masks).reshape(len(maps), -1) > 0
    if not lesion.any(axis=1).all():
        raise InvalidDataError("a mask has no lesion. Fix: pass pneumonias only.")
    flat = maps.reshape(len(maps), -1)
    peaks = flat.argmax(axis=1)
    # A flat map points nowhere.
    points = np.ptp(flat, axis=1) > 0
    pointing = (lesion[np.arange(len(flat)), peaks] & points).astype(float)
    energy = (flat * lesion).sum(axis=1) / np.maximum(flat.sum(axis=1), 1e-12)
    rows = {}
    for name, values in (("pointing", pointing), ("energy", energy)):
        share, low, high = share_interval(values, patients)
        rows[name] = {"value": share, "low": low, "high": high, "area": lesion.mean()}
    return pd.DataFrame.from_dict(rows, orient="index")
