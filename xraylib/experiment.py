"""What a notebook holds: one data set, some recipes and seeds, one report."""

import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from xraylib import paths
from xraylib.datasets import audit, catalog, images, manifest, regions, splits
from xraylib.devices import Accelerator
from xraylib.evaluation import scores, views
from xraylib.figures.style import Figure
from xraylib.report import tables
from xraylib.training import networks, probe, runs
from xraylib.training.predictor import load_predictor
from xraylib.training.recipes import RECIPES, Recipe, get_budget, get_recipe
from xraylib.training.runs import Run
from xraylib.training.train import train

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Experiment:
    """A data set, recipes and seeds under one budget, and the report they go to.

    Parameters
    ----------
    dataset
        A name in `catalog.DATASETS`, or the path of a folder `split/class/*.jpg`.
    accelerator
        Where to train.
    budget, seed
        How many epochs, and how many seeds from `seed` on; the recipe has a say in both.
    recipes
        Names in `RECIPES`, or `all` alone.
    reuse
        Read the runs of the report and train none.
    init
        Replaces the recipes' own initial weights (see `networks.get_weights`).
    overwrite
        Whether committed runs may be replaced.
    """

    dataset: str
    accelerator: Accelerator
    budget: str = "quick"
    seed: int = 0
    recipes: tuple[str, ...] = ()
    reuse: bool = False
    init: str | None = None
    overwrite: bool = True
    # Fingerprints of the splits with the first seed, by split strategy and protocol.
    _splits: dict[tuple[str, str], str] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        catalog.get_dataset(self.dataset)
        get_budget(self.budget)
        names = tuple(self.recipes)
        if names == ("all",):
            names = tuple(RECIPES) if self.reuse else self._trainable()
        for name in names:
            get_recipe(name)
        object.__setattr__(self, "recipes", names)

    def _trainable(self) -> tuple[str, ...]:
        """Name all recipes, except those whose list of drawn boxes is not on this machine."""
        file = regions.annotations_file(self.dataset)
        if file.is_file():
            return tuple(RECIPES)
        drawn = [name for name in RECIPES if RECIPES[name].region == "annotated lungs"]
        log.warning("%s are left out: there are no drawn lung boxes at %s", ", ".join(drawn), file)
        return tuple(name for name in RECIPES if name not in drawn)

    @property
    def name(self) -> str:
        """The data set's name in reports."""
        return catalog.get_dataset(self.dataset).name

    @property
    def folder(self) -> Path:
        """The folder of the report."""
        return paths.REPORTS / self.name

    @property
    def has_images(self) -> bool:
        """Whether the images are on this machine, or are made here."""
        dataset = catalog.get_dataset(self.dataset)
        return dataset.phantom is not None or dataset.root.is_dir()

    @cached_property
    def manifest(self) -> pd.DataFrame:
        """The manifest of the data set, with its official split."""
        return manifest.load(self.dataset)

    def pixels(self, size: int) -> np.ndarray:
        """Load every row of the manifest, uint8 `(n, size, size, 1)`, memory-mapped."""
        return images.load_pixels(self.manifest, size)

    def features(self) -> np.ndarray:
        """Describe each image by MobileNetV2, frozen as ImageNet left it: float32 `(n, 1280)`."""
        weights = networks.get_weights("mobilenetv2", "imagenet")
        return probe.pooled(self.manifest, "mobilenetv2", 224, weights, 0)

    def split(self, protocol: str = "strict", seed: int | None = None) -> pd.DataFrame:
        """Split the manifest by a protocol and a seed, the first one by default.

        The index counts `pixels`.
        """
        return splits.assign(self.manifest, protocol, self.seed if seed is None else seed)

    def leakage(self, assigned: pd.DataFrame) -> pd.DataFrame:
        """Count what crosses the borders between the splits of `split` (see `audit.leakage`)."""
        return audit.leakage(assigned, self.pixels(64)[assigned.index])

    def external(self) -> dict[str, pd.DataFrame]:
        """Load the scores of every other data set on which these runs were validated, by name."""
        folders = (self.folder / "external").glob("*")
        names = sorted(folder.name for folder in folders if folder.is_dir())
        return {name: scores.load_external(self.name, name) for name in names}

    def views(self, study: str) -> pd.DataFrame:
        """Load the scores of changed images, such as `framing` or `corruptions`.

        See `views.load_views`. Without any the table is empty.
        """
        if not any((self.folder / study).glob("*.csv")):
            return pd.DataFrame(columns=views.ABOUT)
        return views.load_views(self.name, study)

    def runs(self, recipe: str | Recipe, protocol: str = "strict") -> list[Run]:
        """Train one run per seed; with `reuse` load all finished ones, and warn about missing ones.

        A report may hold runs of more seeds than the recipe asks for.
        """
        chosen = _recipe(recipe)
        count = min(chosen.seeds, get_budget(self.budget).seeds or chosen.seeds)
        seeds = set(range(self.seed, self.seed + count))
        if self.reuse:
            standing = runs.list_runs(self.name, chosen.name, protocol, budget=self.budget)
            further = [run for run in standing if runs.matches(run, chosen, self.budget)]
            seeds |= {run.seed for run in further if run.seed >= self.seed}
        finished = [self._run(chosen, protocol, seed) for seed in sorted(seeds)]
        return [run for run in finished if run is not None]

    def network(self, recipe: str | Recipe) -> Any:
        """Return the Keras network of a strict run (see `Predictor.model`), which has learned.

        It is trained with the first seed. With `reuse` it is read from a run whose model is on this
        machine; None without one.
        """
        chosen = _recipe(recipe)
        if self.reuse:
            candidates = runs.list_runs(self.name, chosen.name, "strict")
        else:
            candidates = [self._train(chosen, "strict", self.seed)]
        usable = [run for run in candidates if run.has_model]
        return load_predictor(usable[0]).model if usable else None

    def scores(self, recipes: Collection[str] | None = None) -> pd.DataFrame:
        """Load the scores of every run in the report, or of those of some recipes."""
        return scores.load(self.name, recipes)

    def leaderboard(self, recipes: Iterable[str] | None = None) -> pd.DataFrame:
        """Compute the leaderboard for all recipes in the report, or for some."""
        return tables.leaderboard(self.name, recipes)

    def claims(self) -> pd.DataFrame:
        """Compare what was claimed with what is measured here (see `claims.claims`)."""
        return tables.claims(self.name)

    def table(self, table: pd.DataFrame, name: str) -> pd.DataFrame:
        """Write a table into the report and return it."""
        tables.save_table(table, self.name, name)
        return table

    def show(
        self, table: pd.DataFrame, name: str | None = None, columns: str | None = None
    ) -> pd.DataFrame:
        """Write a table into the report, if it has a name, and return it as it is read.

        Parameters
        ----------
        table
            Any table.
        name
            File name in the report, without suffix.
        columns
            Names of the columns to show, separated by spaces; all by default.

        Returns
        -------
        pandas.DataFrame
            See `tables.compact`.
        """
        if name is not None:
            self.table(table, name)
        shown = tables.compact(table)
        return shown if columns is None else shown[columns.split()]

    def figure(
        self, figure: Figure, name: str, caption: str, *, patients: bool | None = None
    ) -> Figure:
        """Write a figure into the report, show its caption, and return it to be shown.

        `patients` says whether images of patients can be seen (see `tables.save_figure`).
        """
        figure.caption = caption
        tables.save_figure(figure, self.name, name, caption, patients=patients)
        _show_caption(caption)
        return figure

    def _run(self, recipe: Recipe, protocol: str, seed: int) -> Run | None:
        """Train one run, or read it."""
        if self.reuse:
            return self._finished(recipe, protocol, seed)
        return self._train(recipe, protocol, seed)

    def _train(self, recipe: Recipe, protocol: str, seed: int) -> Run:
        return train(
            recipe,
            self.manifest,
            self.accelerator,
            protocol=protocol,
            seed=seed,
            budget=self.budget,
            init=self._init(recipe),
            overwrite=self.overwrite,
        )

    def _init(self, recipe: Recipe) -> str:
        """Choose the initial weights; nothing is downloaded for the phantom."""
        init = recipe.init if self.init is None or recipe.init == "none" else self.init
        return "random" if self.dataset == "phantom" and init == "imagenet" else init

    def _finished(self, recipe: Recipe, protocol: str, seed: int) -> Run | None:
        """Read a run if it is what would be trained; warn where it is not."""
        # Without `init`, a run from any initial weights is read, and `_warn` names them.
        init = None if self.init is None else self._init(recipe)
        wanted = {"budget": self.budget, "init": init}
        run = runs.get_run(self.name, recipe.name, protocol, seed, **wanted)
        if run is not None and runs.matches(run, recipe, self.budget, init):
            self._warn(run, recipe)
            return run
        weights = f", from the initial weights {init}" if init else ""
        log.warning(
            "%s, %s: no run of seed %d with this recipe and budget %s%s, left out (reuse=True). "
            "Fix: %s",
            recipe.name,
            protocol,
            seed,
            self.budget,
            weights,
            runs.train_command(self.dataset, recipe.name, protocol, seed),
        )
        return None

    def _warn(self, run: Run, recipe: Recipe) -> None:
        """Warn where a run was made with other code, initial weights or images."""
        identity = runs.identity(run.settings)
        if identity.training_version != runs.TRAINING_VERSION:
            fix = "make reproduce RETRAIN=1"
            log.warning("%s: the training code has changed since. Fix: %s", run.folder, fix)
        init = self._init(recipe)
        if not runs.init_matches(run, init):
            text = "%s: its initial weights are %s, the recipe's are %s"
            log.warning(text, run.folder, identity.init, init)
        strategy = run.settings["choices"]["split_strategy"]
        # Other files or labels change every split, so that of one seed is enough to compare.
        if not self.has_images or run.seed != self.seed:
            return
        if run.settings["split"] != self._fingerprint(strategy, run.protocol):
            text = "%s: its scores are of other files or labels than those on this machine"
            log.warning(text, run.folder)

    def _fingerprint(self, strategy: str, protocol: str) -> str:
        """Return the fingerprint of the split that the files and labels on this machine give."""
        key = (strategy, protocol)
        if key not in self._splits:
            assigned = splits.assign(self.manifest, protocol, self.seed, split_strategy=strategy)
            self._splits[key] = runs.split_fingerprint(assigned)
        return self._splits[key]


def _recipe(recipe: str | Recipe) -> Recipe:
    return get_recipe(recipe) if isinstance(recipe, str) else recipe


def _show_caption(caption: str) -> None:
    """Show a caption in a notebook; elsewhere IPython need not be installed."""
    try:
        from IPython.display import Markdown, display
    except ImportError:
        return
    display(Markdown(f"*{caption}*"))
