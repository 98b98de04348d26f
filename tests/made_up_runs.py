"""Runs of a made-up model that tests of views, external validation and OOD scores share."""

from types import SimpleNamespace

import builders

from xraylib.datasets import images, splits

THRESHOLDS = {0: 0.4, 1: 0.41}


def answer(pixels, seed):
    """A model that sees the brightness of the upper half of an image."""
    upper = pixels[:, : pixels.shape[1] // 2]
    return 0.1 + 0.8 * upper.mean(axis=(1, 2, 3)) / 255 + seed / 100


def load_predictor(run):
    """In place of the library's."""
    return SimpleNamespace(score=lambda pixels: answer(pixels, run.seed), model=None)


def two_runs(manifest, folder):
    """Two strict runs of `tiny-cnn-28` whose model is `answer`."""
    pixels = images.load_pixels(manifest, 28)
    runs = []
    for seed, threshold in THRESHOLDS.items():
        table = splits.assign(manifest, "strict", seed)
        table = table.assign(recipe="tiny-cnn-28", protocol="strict", seed=seed)
        table["score"] = answer(pixels[table.index], seed)
        choices = {"size": 28, "network": "tiny_cnn", "split_strategy": "patient-grouped"}
        run = SimpleNamespace(
            recipe="tiny-cnn-28",
            protocol="strict",
            seed=seed,
            threshold=threshold,
            folder=folder,
            settings={"choices": choices, "model_sha256": "ab" * 32, "init": "random"},
            scores=table.loc[table["split"] != "train", builders.COLUMNS],
        )
        runs.append(run)
    return runs
