"""What the notebooks share: one data set, some recipes and seeds, and the report they go to."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from xraylib import predict
from xraylib.datasets import catalog, splits
from xraylib.devices import Accelerator
from xraylib.figures.style import Figure
from xraylib.report import tables
from xraylib.storage import NotFound
from xraylib.training import train as training
from xraylib.training.recipes import RECIPES, get_recipe
from xraylib.training.runs import TRAINING_VERSION, Run, plain, split_fingerprint
from xraylib.training.systems import Recipe, get_budget

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Experiment:
    """A data set, recipes and seeds under one budget, with their report folder.

    Attributes
    ----------
    dataset : name in `catalog.DATASETS`, or the path of a folder `split/class/*.jpg`
    accelerator : from `accelerators.use`
    budget : key of `recipes.BUDGETS`
    seed : first seed; recipe and budget say how many follow
    recipes : names in `recipes.RECIPES`, or `all` alone
    reuse : read the runs that stand in the report back from their scores, and train none
    init : initial weights instead of the recipes' own (see `models.get_weights`)

    Raises
    ------
    NotFound
        At once, for a data set, recipe or budget that does not exist.
    """

    dataset: str
    accelerator: Accelerator
    budget: str = "quick"
    seed: int = 0
    recipes: tuple[str, ...] = ()
    reuse: bool = False
    init: str | None = None

    def __post_init__(self) -> None:
        catalog.find(self.dataset)
        get_budget(self.budget)
        if self.recipes == ("all",):
            object.__setattr__(self, "recipes", tuple(RECIPES))
        for name in self.recipes:
            get_recipe(name)

    def seeds(self, recipe: Recipe) -> range:
        """Seeds of a recipe, from the experiment's first on: its own number, or the budget's where smaller."""
        return range(self.seed, self.seed + min(recipe.seeds, get_budget(self.budget).seeds or recipe.seeds))

    @property
    def name(self) -> str:
        """What the report calls the data set."""
        return catalog.find(self.dataset).name

    @property
    def folder(self) -> Path:
        """Where the report of the data set is."""
        return tables.folder(self.name)

    @cached_property
    def manifest(self) -> pd.DataFrame:
        """The manifest of the data set, with its official split."""
        return catalog.load(self.dataset)

    def runs(self, recipe: str | Recipe, protocol: str = "strict") -> list[Run]:
        """Train a recipe with every seed, and write its scores and metrics into the report.

        With `reuse` they are read back from the report; those it lacks are left out, and the log says so.

        On the phantom nothing is downloaded: recipes that ask for ImageNet weights start from random ones
        there, and the row says so.
        """
        chosen = get_recipe(recipe) if isinstance(recipe, str) else recipe
        runs = []
        for seed in self.seeds(chosen):
            if self.reuse:
                run = self._recorded(chosen, protocol, seed)
            else:
                run = self._train(chosen, protocol, seed)
                tables.record(run, self.name)
            runs.extend([run] if run else [])
        return runs

    def trained(self, recipe: str | Recipe, protocol: str = "strict") -> Run:
        """Train a recipe with the first seed, or read that run back: a run whose model is on this machine."""
        chosen = get_recipe(recipe) if isinstance(recipe, str) else recipe
        return self._train(chosen, protocol, self.seed)

    def found(self, recipe: str) -> Run | None:
        """Return a finished strict run that is on this machine (`predict.find_run`), or None, said aloud."""
        try:
            return predict.find_run(recipe, self.name)
        except NotFound as missing:
            log.warning("nothing is trained (reuse=True), and %s", missing)
            return None

    def _split_of(self, split_strategy: str, protocol: str, seed: int) -> str:
        """Fingerprint of a split of these images; recipes share it, and dividing thousands takes a second."""
        if (split_strategy, protocol, seed) not in self._splits:
            assigned = splits.assign(self.manifest, protocol, seed, split_strategy=split_strategy)
            self._splits[split_strategy, protocol, seed] = split_fingerprint(assigned)
        return self._splits[split_strategy, protocol, seed]

    @cached_property
    def _splits(self) -> dict[tuple[str, str, int], str]:
        return {}

    def _train(self, recipe: Recipe, protocol: str, seed: int) -> Run:
        init = recipe.init if self.init is None or recipe.init == "none" else self.init
        if self.dataset == "phantom" and init == "imagenet":
            init = "random"
        return training.train(
            recipe,
            self.manifest,
            self.accelerator,
            protocol=protocol,
            seed=seed,
            budget=self.budget,
            init=init,
        )

    def _recorded(self, recipe: Recipe, protocol: str, seed: int) -> Run | None:
        found = tables.recorded(self.name, recipe.name, protocol, seed)
        choices = plain(recipe.under(protocol, self.budget).settings())
        if found is None or found[0]["choices"] != choices:
            held = "another recipe or budget" if found else "no such run"
            log.warning(
                "%s, %s, seed %d is left out: the report holds %s. Fix: python -m xraylib train %s",
                *(recipe.name, protocol, seed, held, f"{recipe.name} --protocol {protocol}"),
            )
            return None
        settings, scores = found
        log.warning(
            "%s, %s, seed %d: scores read from %s, made on %s; nothing is trained (reuse=False trains)",
            *(recipe.name, protocol, seed, self.folder, settings["hardware"]),
        )
        if settings["training_version"] != TRAINING_VERSION:
            log.warning("the training code has changed since: make reproduce RETRAIN=1 trains again")
        if settings["split"] != self._split_of(recipe.under(protocol).split_strategy, protocol, seed):
            log.warning("the images here are not those the scores were made from (other files or labels)")
        history = pd.DataFrame(settings["history"])
        return Run(recipe.name, protocol, seed, self.folder, settings, history, scores)

    def board(self, recipes: Iterable[str]) -> pd.DataFrame:
        """Rows of the leaderboard for some recipes; none where nothing of them has been trained yet."""
        if not any((self.folder / "scores" / f"{name}.csv").exists() for name in recipes):
            return pd.DataFrame(columns=list(tables.LEADERBOARD))
        board = tables.leaderboard(self.name)
        return board[board["recipe"].isin(list(recipes))].reset_index(drop=True)

    def table(self, table: pd.DataFrame, name: str) -> pd.DataFrame:
        """Keep a table in the report (see `reports.save_table`) and give it back to be shown."""
        tables.save_table(table, self.name, name)
        return table

    def figure(self, figure: Figure, name: str, caption: str, *, patients: bool = False) -> Figure:
        """Keep a figure in the report (see `reports.save_figure`) and give it back to be shown."""
        figure.caption = caption
        tables.save_figure(figure, self.name, name, caption, patients=patients)
        return figure
