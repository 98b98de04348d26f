"""A calibrated linear head on frozen features, fitted and checked by scikit-learn."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss
from sklearn.preprocessing import StandardScaler

from xraylib.storage import atomic

# Inverse strengths of the L2 penalty that validation chooses from.
STRENGTHS = tuple(10.0**power for power in range(-5, 1))


def fit(
    features: np.ndarray, labels: np.ndarray, split: np.ndarray
) -> tuple["dict[str, np.ndarray]", pd.DataFrame]:
    """Fit a logistic regression on `train`; choose its penalty and calibrate it (Platt) on `val`.

    Parameters
    ----------
    features
        float `(n, features)`.
    labels
        0/1 `(n,)`.
    split
        `train`, `val` or `test` `(n,)`; test rows are not looked at.

    Returns
    -------
    tuple
        The head as arrays (`coefficients`, `intercept`: float64, scaling and calibration folded in),
        and one row a penalty: `strength, loss, accuracy, val_loss, val_accuracy`.
    """
    train, val = split == "train", split == "val"
    scaler = StandardScaler().fit(features[train])
    scaled = {"": scaler.transform(features[train]), "val_": scaler.transform(features[val])}
    truth = {"": labels[train], "val_": labels[val]}
    rows, fitted = [], []
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=3000).fit(scaled[""], truth[""])
        row: dict[str, float] = {"strength": strength}
        for side, values in scaled.items():
            probability = model.predict_proba(values)[:, 1]
            row[f"{side}loss"] = log_loss(truth[side], probability)
            row[f"{side}accuracy"] = accuracy_score(truth[side], probability > 0.5)
        rows.append(row)
        fitted.append(model)
    history = pd.DataFrame(rows)
    best = fitted[int(history["val_loss"].to_numpy().argmin())]
    margins = best.decision_function(scaled["val_"])
    platt = LogisticRegression(C=1e6).fit(margins[:, None], truth["val_"])
    slope, shift = float(platt.coef_[0, 0]), float(platt.intercept_[0])
    coefficients = best.coef_[0] * slope / scaler.scale_
    intercept = slope * float(best.intercept_[0]) + shift - float(coefficients @ scaler.mean_)
    return {"coefficients": coefficients, "intercept": np.array(intercept)}, history


def predict(head: "dict[str, np.ndarray]", features: np.ndarray) -> np.ndarray:
    """P(pneumonia), float64 `(n,)` in [0, 1], of features `(n, features)`."""
    margins = features.astype(np.float64) @ head["coefficients"] + head["intercept"]
    return expit(margins)


def save(head: "dict[str, np.ndarray]", file: Path) -> None:
    """Write a head as JSON."""
    with atomic(file) as temporary:
        temporary.write_text(json.dumps({name: value.tolist() for name, value in head.items()}))


def load(file: Path) -> "dict[str, np.ndarray]":
    """Read a head that `save` wrote."""
    return {name: np.array(value) for name, value in json.loads(file.read_text()).items()}
