"""Made-up scores tables that tests share."""

import numpy as np
import pandas as pd
from hypothesis import assume
from hypothesis import strategies as st

COLUMNS = ["recipe", "protocol", "seed", "split", "image_id", "patient", "kind", "label", "score"]


def scores(n=120, images=1, seeds=(0,), strength=1.0, sample=0, noise=1.0, threshold=0.5):
    """Scores of `n` patients with `images` each in `val` and in `test`; two of three are positive.

    `strength` separates the classes, `noise` the images of a patient, and `sample` is the random seed.
    """
    rng, parts = np.random.default_rng(sample), []
    for split in ("val", "test"):
        label = np.arange(n) % 3 > 0
        patient = np.array([f"{split}{i}" for i in range(n)])
        center = rng.normal(strength * label)
        for seed in seeds:
            odds = np.repeat(center, images) + noise * rng.normal(size=n * images)
            part = pd.DataFrame({"label": np.repeat(label, images).astype(int)})
            part["patient"] = np.repeat(patient, images)
            part["image_id"] = (
                part["patient"] + "_" + part.groupby("patient").cumcount().astype(str)
            )
            part["kind"] = np.where(part["label"] == 1, "virus", "normal")
            parts.append(part.assign(split=split, seed=seed, score=1 / (1 + np.exp(-odds))))
    table = pd.concat(parts, ignore_index=True).assign(recipe="ours", protocol="strict")
    return table[COLUMNS].assign(threshold=threshold)


def images(
    normal, pneumonia, split="test", *, recipe="made-up", protocol="strict", seed=0, threshold=0.5
):
    """Scores of one split of one run by hand, one image a patient."""
    values = np.array([*normal, *pneumonia], dtype=float)
    label = np.repeat([0, 1], [len(normal), len(pneumonia)])
    names = [f"{split}{kind}{i}" for i, kind in enumerate(np.where(label, "virus", "normal"))]
    table = pd.DataFrame({"image_id": names, "patient": names, "label": label, "score": values})
    table = table.assign(recipe=recipe, protocol=protocol, seed=seed, split=split)
    table["kind"] = np.where(label, "virus", "normal")
    return table[COLUMNS].assign(threshold=threshold)


@st.composite
def labels_and_scores(draw, levels=12):
    """Labels of both classes and scores on a coarse grid, so that ties are common."""
    n = draw(st.integers(2, 60))
    labels = np.array(draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)))
    assume(0 < labels.sum() < n)
    return labels, np.array(draw(st.lists(st.integers(0, levels), min_size=n, max_size=n))) / levels
