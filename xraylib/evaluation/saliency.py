"""How well heat maps find what they should: the lesion, where it is known.

A map that looks sensible proves nothing (Adebayo et al. 2018). Notebook 07 makes maps by Grad-CAM.
"""

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter

from xraylib.errors import InvalidDataError
from xraylib.evaluation.resampling import share_interval


def localisation(
    maps: dict[str, np.ndarray], masks: np.ndarray, patients: np.ndarray
) -> pd.DataFrame:
    """Measure how well heat maps find the lesion, and how well a blob in the centre does.

    Parameters
    ----------
    maps : dict of str to numpy.ndarray
        Maps `(n, h, w)`, 0 or more, by the name of what made them.
    masks : numpy.ndarray
        `(n, h, w)`, each with a lesion, which is where it is not zero.
    patients : numpy.ndarray
        The patient of each image, `(n,)`.

    Returns
    -------
    pandas.DataFrame
        One row for each name in `maps`, then one for `centre blob`, which sees no image.

        - `map`: the name; `images`: n.
        - `area`: mean share of the image that is lesion, which a uniform map reaches.
        - `pointing`: share of images whose peak lies in the lesion; `energy`: mean share of the
          map in the lesion. Each with `_low` and `_high`, its interval over patients.
    """
    count, size, _ = masks.shape
    lesion = masks.reshape(count, -1) > 0
    if not lesion.any(axis=1).all():
        raise InvalidDataError("a mask has no lesion. Fix: pass pneumonias only.")
    blobs = np.repeat(_central_blob(size)[None], count, axis=0)
    rows = []
    for name, tested in (maps | {"centre blob": blobs}).items():
        row: dict[str, object] = {"map": name, "images": count, "area": lesion.mean()}
        for measure, values in _by_image(tested.reshape(count, -1), lesion).items():
            share, low, high = share_interval(values, patients)
            row |= {measure: share, f"{measure}_low": low, f"{measure}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def _by_image(flat: np.ndarray, lesion: np.ndarray) -> dict[str, np.ndarray]:
    """`pointing` and `energy` of each image, from maps and lesions `(n, pixels)`."""
    peaks = flat.argmax(axis=1)
    inside = lesion[np.arange(len(flat)), peaks]
    # A flat map points nowhere.
    points = np.ptp(flat, axis=1) > 0
    total = np.maximum(flat.sum(axis=1), 1e-12)
    return {"pointing": inside & points, "energy": (flat * lesion).sum(axis=1) / total}


def _central_blob(size: int) -> np.ndarray:
    """A blob in the centre, which knows only where lungs are: float32 `(size, size)`."""
    blob = np.zeros((size, size), np.float32)
    blob[size // 2, size // 2] = 1
    blob = gaussian_filter(blob, size / 5)
    return blob / blob.max()
