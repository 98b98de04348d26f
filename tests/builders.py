"""Made-up scores tables that tests share."""

import numpy as np
import pandas as pd
from hypothesis import assume
from hypothesis import strategies as st

COLUMNS = ["recipe", "protocol", "seed", "split", "image_id", "patient", "kind", "label", "score"]


def scores(n=120, images=1, seeds=(0,), strength=1.0, sample=0, noise=1.0, threshold=0.5):
    """Scores of `n` patients with `images` each in `val` and in `test`; two of three are positive.

    `strength` separates the classes, `noise` the images of a patient, and `sample` is the random
    seed.
    """
    rng = np.random.default_rng(sample)
    parts = []
    for split in ("val", "test"):
        label = np.arange(n) % 3 > 0
        patient = np.array([f"{split}{i}" for i in range(n)])
        center = rng.normal(strength * label)
        for seed in seeds:
            odds = np.repeat(center, images) + noise * rng.normal(size=n * images)
            part = pd.DataFrame({"label": np.repeat(label, images).astype(int)})
            part["patient"] = np.repeat(patient, images)
            number = part.groupby("patient").cumcount().astype(str)
            part["image_id"] = part["patient"] + "_" + number
            part["kind"] = np.where(part["label"] == 1, "virus", "normal")
            part["split"] = split
            part["seed"] = seed
            part["score"] = 1 / (1 + np.exp(-odds))
            parts.append(part)
    table = pd.concat(parts, ignore_index=True).assign(recipe="ours", protocol="strict")
    return table[COLUMNS].assign(threshold=threshold)


def images(
    normal, pneumonia, split="test", *, recipe="made-up", protocol="strict", seed=0, threshold=0.5
):
    """Scores of one split of one run by hand, one image per patient."""
    label = np.repeat([0, 1], [len(normal), len(pneumonia)])
    kinds = np.where(label, "virus", "normal")
    names = [f"{split}{kind}{i}" for i, kind in enumerate(kinds)]
    table = pd.DataFrame(
        {
            "recipe": recipe,
            "protocol": protocol,
            "seed": seed,
            "split": split,
            "image_id": names,
            "patient": names,
            "kind": kinds,
            "label": label,
            "score": np.array([*normal, *pneumonia], dtype=float),
        }
    )
    return table[COLUMNS].assign(threshold=threshold)


@st.composite
def labels_and_scores(draw, levels=12):
    """Labels of both classes and scores on a coarse grid, so that ties are common."""
    n = draw(st.integers(2, 60))
    labels = np.array(draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)))
    assume(0 < labels.sum() < n)
    steps = draw(st.lists(st.integers(0, levels), min_size=n, max_size=n))
    return labels, np.array(steps) / levels
