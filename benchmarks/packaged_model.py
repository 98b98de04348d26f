"""How good the packaged model is: its answers, its probability, and what its gate refuses.

    .venv/bin/python benchmarks/packaged_model.py --dataset kermany --others nih

Writes the tables `packaged` and `gate` of the data set's report, and chooses no limit of the model.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageOps
from unrelated_images import unrelated_images

from xraylib import gate
from xraylib.datasets import alterations, images
from xraylib.datasets import manifest as manifests
from xraylib.datasets.corruptions import Change
from xraylib.evaluation import metrics
from xraylib.evaluation.resampling import bootstrap_weights, interval, share_interval
from xraylib.packaged import (
    ANSWERS,
    NORMAL,
    PNEUMONIA,
    UNDECIDED,
    PackagedModel,
    load_packaged,
)
from xraylib.report.pages import PREVALENCES
from xraylib.report.tables import save_table

# Every image of the test is changed in each way; the kinds that are made up have so many.
MADE_UP = 120
_RESAMPLES = 1000

# Ways to change test images, and the gate's name for each; empty where it should let them pass.
_CHANGES: dict[str, tuple[str, Change]] = {
    "unchanged": ("", lambda image, rng: image),
    "noise, blur, border, slight crop or turn": ("", alterations.slightly),
    "turned by 10°": ("", lambda image, rng: _tilted(image, rng, 10)),
    "turned by 20°": ("tilted", lambda image, rng: _tilted(image, rng, 20)),
    "turned by 90° to the left": ("turned left", lambda image, rng: image.rotate(90)),
    "turned by 90° to the right": ("turned right", lambda image, rng: image.rotate(-90)),
    "turned by 180°": ("upside down", lambda image, rng: image.rotate(180)),
    "mirrored upside down": ("upside down", lambda image, rng: ImageOps.flip(image)),
    "inverted": ("inverted", lambda image, rng: ImageOps.invert(image)),
    "one half": ("cut", alterations.halve),
}


def _tilted(image: Image.Image, rng: np.random.Generator, degrees: float) -> Image.Image:
    return image.rotate(degrees * rng.choice([-1, 1]), Image.Resampling.BILINEAR)


def _given(answers: list[dict[str, Any]]) -> np.ndarray:
    """The answer to each image, or `abstained`."""
    return np.array([a["answer"] if a["status"] == "ok" else "abstained" for a in answers])


def measure(
    model: PackagedModel,
    manifest: pd.DataFrame,
    others: pd.DataFrame,
    is_taught: np.ndarray,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measure the packaged model and write the tables `packaged` and `gate` of its report.

    Parameters
    ----------
    model : PackagedModel
    manifest : pandas.DataFrame
        Of the data set that it was trained on; the official test is measured.
    others : pandas.DataFrame
        Of another population.
    is_taught : numpy.ndarray
        bool `(len(others),)`: images of patients whose pixels taught the gate, which are left out.

    Returns
    -------
    answers, gate : pandas.DataFrame
        See `measure_answers` and `measure_gate`; `model` has the first 12 digits of its SHA-256.
    """
    rows = np.flatnonzero(manifest["split"] == "test")
    test = manifest.iloc[rows]
    pixels = np.asarray(images.load_pixels(manifest, model.size)[rows])
    answers = measure_answers(
        model.answer(pixels),
        test["label"].to_numpy(),
        test["patient"].to_numpy(),
    )
    foreign = images.load_pixels(others, model.size)[~is_taught]
    strangers = others["patient"].to_numpy()[~is_taught]
    refusals = measure_gate(model, pixels, test["patient"].to_numpy(), foreign, strangers)
    for name, table in (("packaged", answers), ("gate", refusals)):
        table.insert(0, "model", model.sha256[:12])
        save_table(table, manifest.attrs["dataset"], name)
    return answers, refusals


def measure_answers(
    answers: list[dict[str, Any]],
    labels: np.ndarray,
    patients: np.ndarray,
) -> pd.DataFrame:
    """Measure answers to images whose class is known.

    Parameters
    ----------
    answers
        From `PackagedModel.answer`.
    labels, patients
        `(n,)`.

    Returns
    -------
    pandas.DataFrame
        One row per `measure`, with `n` images, `value`, and `low` and `high`, its interval over
        patients: the share of each answer, in all and by class; how often it was right, and how
        often it would be at each of `PREVALENCES`; of the images that got one, the AUC, the
        expected calibration error and the Brier score.
    """
    given = _given(answers)
    rows = []

    def add(measure: str, n: int, values: tuple[float, float, float]) -> None:
        value, low, high = values
        rows.append({"measure": measure, "n": n, "value": value, "low": low, "high": high})

    for name in (*ANSWERS, "abstained"):
        add(f"share: {name}", len(given), share_interval(given == name, patients))
    for name, label in ((NORMAL, 0), (PNEUMONIA, 1)):
        chosen = given == name
        if chosen.any():
            right = share_interval(labels[chosen] == label, patients[chosen])
            add(f"right: {name}", int(chosen.sum()), right)
    for kind, label in (("pneumonias", 1), ("normal images", 0)):
        of_class = labels == label
        for name in (*ANSWERS, "abstained"):
            share = share_interval(given[of_class] == name, patients[of_class])
            add(f"share of {kind}: {name}", int(of_class.sum()), share)
    for name, label in ((NORMAL, 0), (PNEUMONIA, 1)):
        for prevalence in PREVALENCES:
            values = _right_at(prevalence, given == name, label, labels, patients)
            add(f"right at a prevalence of {prevalence:.0%}: {name}", len(given), values)
    decided = np.isin(given, [UNDECIDED, "abstained"])
    add("share: undecided or abstained", len(given), share_interval(decided, patients))
    answered = given != "abstained"
    probability = np.array([a["probability"] for a in answers if a["status"] == "ok"])
    names, owner = np.unique(patients[answered], return_inverse=True)
    resampled = bootstrap_weights(len(names), _RESAMPLES)
    of_images = np.vstack([np.ones(len(names)), resampled])[:, owner]
    truth = labels[answered]
    count = int(answered.sum())
    add("AUC", count, metrics.auc_interval(truth, probability, patients[answered]))
    losses = {
        "expected calibration error": calibration_error(truth, probability, of_images),
        "Brier score": of_images @ (probability - truth) ** 2 / of_images.sum(axis=1),
    }
    for name, values in losses.items():
        add(name, count, (float(values[0]), *interval(values[1:])))
    return pd.DataFrame(rows)


def _right_at(
    prevalence: float, chosen: np.ndarray, label: int, labels: np.ndarray, patients: np.ndarray
) -> tuple[float, float, float]:
    """How often an answer would be right at another prevalence, by Bayes' rule, with its interval.

    `chosen` are the images that got the answer, bool `(n,)`; `label` is the class that it names.
    """
    names, owner = np.unique(patients, return_inverse=True)
    resampled = bootstrap_weights(len(names), _RESAMPLES)
    weights = np.vstack([np.ones(len(names)), resampled])[:, owner]
    of_class = labels == label
    share = prevalence if label else 1 - prevalence
    # Resamples without a class, or without this answer, say nothing.
    with np.errstate(invalid="ignore"):
        right = share * (weights @ (chosen & of_class)) / (weights @ of_class)
        wrong = (1 - share) * (weights @ (chosen & ~of_class)) / (weights @ ~of_class)
        values = right / (right + wrong)
    return (float(values[0]), *interval(values[1:][np.isfinite(values[1:])]))


def calibration_error(
    labels: np.ndarray, probability: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Expected calibration error over ten bins of equal width, for each row of weights."""
    bins = np.minimum((probability * 10).astype(int), 9)
    excess = weights * (probability - labels)
    distance = sum(np.abs(excess[:, bins == number].sum(axis=1)) for number in range(10))
    return distance / weights.sum(axis=1)


def measure_gate(
    model: PackagedModel,
    pixels: np.ndarray,
    patients: np.ndarray,
    others: np.ndarray,
    patients_of_others: np.ndarray,
) -> pd.DataFrame:
    """Measure what the gate refuses.

    Parameters
    ----------
    model : PackagedModel
    pixels, others : numpy.ndarray
        Images of the test and of another population, uint8 `(n, size, size, 1)`.
    patients, patients_of_others : numpy.ndarray
        Their patients, `(n,)`.

    Returns
    -------
    pandas.DataFrame
        One row per `kind` of images.

        - `n`: images.
        - `refused`: share that gets no answer, `low` and `high`: its interval over patients.
        - `reason`: of the refused, the share whose message names what was done to them; missing
          where nothing was.
        - `noticed`: of the others, the share that is called of another population.
    """
    rows = []
    for kind, reason, changed, owners in _kinds(pixels, patients, others, patients_of_others):
        answers = model.answer(changed)
        is_refused = np.array([answer["status"] != "ok" for answer in answers])
        refused, low, high = share_interval(is_refused, np.asarray(owners))
        row = {"kind": kind, "n": len(answers), "refused": refused, "low": low, "high": high}
        row["reason"] = np.nan
        if reason and is_refused.any():
            row["reason"] = np.mean([a.get("reason") == reason for a in answers if a["message"]])
        outside = [answer["is_outside"] for answer in answers if answer["status"] == "ok"]
        row["noticed"] = np.mean(outside) if outside else np.nan
        rows.append(row)
    return pd.DataFrame(rows)


def _kinds(
    pixels: np.ndarray,
    patients: np.ndarray,
    others: np.ndarray,
    patients_of_others: np.ndarray,
) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """Yield kinds of images: a name, the gate's name for it, pixels and patients."""
    for kind, (reason, change) in _CHANGES.items():
        yield kind, reason, alterations.change_each(pixels, change, seed=1), patients
    yield "another hospital, patients that taught nothing", "", others, patients_of_others
    for kind, pictures in unrelated_images(pixels.shape[1], MADE_UP):
        yield kind, "other", pictures, np.arange(len(pictures))


def main() -> None:
    """Measure the packaged model, and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="kermany", help="what it was trained on")
    parser.add_argument("--others", default="nih", help="images of another population")
    options = parser.parse_args()
    others = manifests.load(options.others)
    manifest = manifests.load(options.dataset)
    for table in measure(load_packaged(), manifest, others, gate.taught_half(others)):
        print(table.to_string(index=False, float_format="{:.3f}".format))


if __name__ == "__main__":
    main()
