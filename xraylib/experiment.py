"""What a notebook holds: one data set, some recipes and seeds, one report."""

import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from xraylib.datasets import audit, catalog, images, manifest, splits
from xraylib.devices import Accelerator
from xraylib.evaluation import scores
from xraylib.figures.style import Figure
from xraylib.report import tables
from xraylib.training import runs
from xraylib.training.recipes import RECIPES, Recipe, get_budget, get_recipe
from xraylib.training.runs import Run
from xraylib.training.train import train

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Experiment:
    """A data set, recipes and seeds under one budget, and the report they go to.

    `dataset` is a name in `catalog.DATASETS` or the path of a folder `split/class/*.jpg`; `recipes` are names in
    `RECIPES`, or `all` alone; recipe and `budget` say how many seeds follow `seed`. `reuse` reads the runs that stand
    in the report and trains none. `init` replaces the recipes' own initial weights (see `networks.get_weights`).
    Without `overwrite`, committed runs are not replaced.
    """

    dataset: str
    accelerator: Accelerator
    budget: str = "quick"
    seed: int = 0
    recipes: tuple[str, ...] = ()
    reuse: bool = False
    init: str | None = None
    overwrite: bool = True
    _splits: dict[tuple[str, str], tuple[int, str]] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        catalog.get_dataset(self.dataset)
        get_budget(self.budget)
        names = tuple(RECIPES) if tuple(self.recipes) == ("all",) else tuple(self.recipes)
        for name in names:
            get_recipe(name)
        object.__setattr__(self, "recipes", names)

    @property
    def name(self) -> str:
        """What the report calls the data set."""
        return catalog.get_dataset(self.dataset).name

    @property
    def folder(self) -> Path:
        """Where the report of the data set is."""
        return tables.report_folder(self.name)

    @property
    def has_images(self) -> bool:
        """Whether the images are on this machine, or are made here."""
        return (
            catalog.get_dataset(self.dataset).phantom is not None
            or catalog.get_dataset(self.dataset).root.is_dir()
        )

    @cached_property
    def manifest(self) -> pd.DataFrame:
        """The manifest of the data set, with its official split."""
        return manifest.load(self.dataset)

    def pixels(self, size: int) -> np.ndarray:
        """Pixels of every row of the manifest, uint8 `(n, size, size, 1)`, memory-mapped from the cache."""
        return images.load_pixels(self.manifest, size)

    def split(self, protocol: str = "strict") -> pd.DataFrame:
        """The manifest as a protocol splits it with the first seed; its index counts rows of `pixels`."""
        return splits.assign(self.manifest, protocol, self.seed)

    def leakage(self, assigned: pd.DataFrame) -> pd.DataFrame:
        """What crosses the borders between the splits of `split` (see `audit.leakage`)."""
        return audit.leakage(assigned, self.pixels(64)[assigned.index])

    def external(self) -> dict[str, pd.DataFrame]:
        """The scores of every other data set on which these runs were validated, by its name."""
        places = sorted(
            place.name for place in (self.folder / "external").glob("*") if place.is_dir()
        )
        return {name: scores.load_external(self.name, name) for name in places}

    def runs(self, recipe: str | Recipe, protocol: str = "strict") -> list[Run]:
        """Train a recipe with every seed; with `reuse` read the runs that stand, the log names the others."""
        chosen = get_recipe(recipe) if isinstance(recipe, str) else recipe
        seeds = min(chosen.seeds, get_budget(self.budget).seeds or chosen.seeds)
        found = (self._run(chosen, protocol, seed) for seed in range(self.seed, self.seed + seeds))
        return [run for run in found if run]

    def trained(self, recipe: str | Recipe, protocol: str = "strict") -> Run | None:
        """Train a recipe with the first seed; with `reuse` find one whose model is on this machine."""
        chosen = get_recipe(recipe) if isinstance(recipe, str) else recipe
        if not self.reuse:
            return self._run(chosen, protocol, self.seed)
        there = (run for run in runs.list_runs(self.name, chosen.name, protocol) if run.has_model)
        return next(there, None)

    def scores(self, recipes: Collection[str] | None = None) -> pd.DataFrame:
        """The scores of every run in the report, or of those of some recipes."""
        return scores.load(self.name, recipes)

    def leaderboard(self, recipes: Iterable[str] | None = None) -> pd.DataFrame:
        """Rows of the leaderboard for all recipes in the report, or for some (see `tables.leaderboard`)."""
        return tables.leaderboard(self.name, recipes)

    def claims(self) -> pd.DataFrame:
        """What was claimed beside what is measured here (see `claims.claims`)."""
        return tables.claims(self.name)

    def table(self, table: pd.DataFrame, name: str) -> pd.DataFrame:
        """Write a table into the report and return it."""
        tables.save_table(table, self.name, name)
        return table

    def show(
        self, table: pd.DataFrame, name: str | None = None, columns: str | None = None
    ) -> pd.DataFrame:
        """Write a table into the report, where it has a name, and return some or all of it as it is read."""
        if name is not None:
            tables.save_table(table, self.name, name)
        shown = tables.compact(table)
        return shown if columns is None else shown[columns.split()]

    def figure(self, figure: Figure, name: str, caption: str, *, patients: bool = False) -> Figure:
        """Write a figure into the report (see `tables.save_figure`), show its caption, and return it to be shown."""
        from IPython.display import Markdown, display

        figure.caption = caption
        tables.save_figure(figure, self.name, name, caption, patients=patients)
        display(Markdown(f"*{caption}*"))
        return figure

    def _run(self, recipe: Recipe, protocol: str, seed: int) -> Run | None:
        if self.reuse:
            return self._standing(recipe, protocol, seed)
        init = recipe.init if self.init is None or recipe.init == "none" else self.init
        if self.dataset == "phantom" and init == "imagenet":
            init = "random"  # nothing is downloaded for the phantom
        where: dict[str, Any] = {"protocol": protocol, "seed": seed, "budget": self.budget}
        return train(
            recipe, self.manifest, self.accelerator, **where, init=init, overwrite=self.overwrite
        )

    def _standing(self, recipe: Recipe, protocol: str, seed: int) -> Run | None:
        run, asked = (
            runs.get_run(self.name, recipe.name, protocol, seed),
            recipe.under(protocol, self.budget),
        )
        if run is None or run.settings["choices"] != runs.plain(asked.settings()):
            fix = f"python -m xraylib train {recipe.name} --dataset {self.dataset} --protocol {protocol}"
            fix += " --overwrite" if self.name in runs.COMMITTED else ""
            what = f"no run of seed {seed} with this recipe and budget, left out (reuse=True)"
            log.warning("%s, %s: %s. Fix: %s", recipe.name, protocol, what, fix)
            return None
        if run.settings["training_version"] != runs.TRAINING_VERSION:
            log.warning(
                "%s: the training code has changed since. Fix: make reproduce RETRAIN=1", run.folder
            )
        # Other files or labels change every split, so that of one seed tells, and dividing images takes a second.
        key = asked.split_strategy, protocol
        if key not in self._splits and self.has_images:
            assigned = splits.assign(self.manifest, protocol, seed, split_strategy=key[0])
            self._splits[key] = seed, runs.split_fingerprint(assigned)
        checked, found = self._splits.get(key, (seed, run.settings["split"]))
        if seed == checked and run.settings["split"] != found:
            log.warning(
                "%s: its scores are of other files or labels than those on this machine", run.folder
            )
        return run
