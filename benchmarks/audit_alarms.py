"""How often an audit warns where there is nothing to warn of, and where there is.

Usage: audit_alarms.py [--runs N]. Each line of the result is a share of simulated data sets with a
finding worse than a check (a leak, fault or shortcut). The audit promises at most 5% without a
shortcut. On Kermany's images, where they are on this machine, labels are given to patients at
random.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from statsmodels.stats.proportion import proportion_confint

from xraylib import errors
from xraylib.datasets import catalog, image_features, manifest, phantom
from xraylib.evaluation import shortcuts
from xraylib.report import dataset_audit

IMAGES = 200
# Patients of a data set with random labels.
PATIENTS = (60, 300)


def warns(folder: Path, seed: int, framing_shift: bool) -> bool:
    """Audit a new phantom."""
    settings = phantom.PhantomSettings(IMAGES, image_features.SIZE, seed, framing_shift)
    written = phantom.write(folder / f"{seed}-{framing_shift}", settings)
    return dataset_audit.audit_dataset(catalog.get_dataset(written)).has("shortcut")


def warns_of_random_labels(
    features: image_features.ImageFeatures, patients: int, seed: int
) -> bool:
    """Give some patients random labels, and measure the features."""
    rng = np.random.default_rng(seed)
    names = features.images["patient"].unique()
    drawn = rng.choice(names, min(patients, len(names)), replace=False)
    members = features.images["patient"].isin(drawn).to_numpy()
    labels = pd.Series(rng.permutation(np.arange(len(drawn)) % 2), index=drawn)
    images = features.images[members].reset_index(drop=True)
    images = images.assign(label=images["patient"].map(labels), split="train")
    values = {name: value[members] for name, value in features.values.items()}
    return bool(shortcuts.measure(images, values)[0]["warns"].any())


def cases(folder: Path) -> Iterator[tuple[str, Callable[[int], bool]]]:
    """Name each case, with the function that simulates one data set of a seed."""
    for dataset in ("kermany", "phantom"):
        try:
            _, features = image_features.read(manifest.load(dataset))
        except errors.NotFoundError:
            continue
        for patients in PATIENTS:
            yield (
                f"Random labels, {patients} patients of {dataset}",
                partial(warns_of_random_labels, features, patients),
            )
    yield (
        f"Phantoms without a shift, {IMAGES} images",
        partial(warns, folder, framing_shift=False),
    )
    yield (
        f"Phantoms with the shift of framing, {IMAGES} images",
        partial(warns, folder, framing_shift=True),
    )


def simulate(runs: int) -> None:
    """Print a line per case."""
    with tempfile.TemporaryDirectory() as folder:
        for case, warned in cases(Path(folder)):
            alarms = sum(warned(seed=seed) for seed in range(1, runs + 1))
            low, high = proportion_confint(alarms, runs, method="wilson")
            print(f"{case}: {alarms} of {runs} warn ({low:.1%}–{high:.1%})", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=60)
    simulate(parser.parse_args().runs)
