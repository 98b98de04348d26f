import json
import re
import shutil
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import SMALL_PHANTOM
from matplotlib.figure import Figure

from xraylib import experiment as module
from xraylib import paths
from xraylib.datasets import catalog
from xraylib.datasets.phantom import PhantomSettings, write
from xraylib.errors import NotFoundError
from xraylib.evaluation import views
from xraylib.experiment import Experiment
from xraylib.report import tables
from xraylib.training import runs
from xraylib.training.predictor import load_predictor
from xraylib.training.recipes import BUDGETS, Budget, Phase, get_recipe

pytestmark = pytest.mark.usefixtures("small_phantom", "reports_here")
TINY = get_recipe("tiny-cnn-28")


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    monkeypatch.setitem(BUDGETS, "brief", Budget(1, 1))


@pytest.fixture(scope="module")
def trained_once(accelerator, tmp_path_factory):
    """The report of an experiment that has trained one recipe for one epoch."""
    place = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("REPORTS", "RUNS"):
            patch.setenv(f"XRAYLIB_{name}", str(place / name))
        patch.setitem(catalog.DATASETS, "phantom", SMALL_PHANTOM)
        patch.setitem(BUDGETS, "brief", Budget(1, 1))
        (run,) = Experiment("phantom", accelerator, "brief").runs("tiny-cnn-28")
        assert runs.get_run("phantom", "tiny-cnn-28", budget="brief") == run
    return place / "REPORTS"


@pytest.fixture
def standing(trained_once, reports_here):
    shutil.copytree(trained_once, reports_here)
    return runs.get_run("phantom", "tiny-cnn-28")


@pytest.fixture
def asked(monkeypatch):
    """What was asked of `train`, which trains nothing."""
    asked = []

    def train(recipe, manifest, accelerator, *, protocol, seed, budget, init, overwrite):
        asked.append((recipe.name, protocol, seed, init, overwrite))
        return asked[-1]

    monkeypatch.setattr(module, "train", train)
    return asked


def reading(accelerator, budget="brief"):
    return Experiment("phantom", accelerator, budget, reuse=True)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"dataset": "kermanny"}, "Did you mean 'kermany'"),
        ({"recipes": ("tiny-cnn-28", "tiny-cnn")}, "tiny-cnn'"),
        ({"budget": "slow"}, "slow'"),
    ],
)
def test_unknown_names_fail_at_once(accelerator, wrong, named):
    with pytest.raises(NotFoundError, match=rf"{named}.*Fix: "):
        Experiment(**{"dataset": "phantom", "accelerator": accelerator} | wrong)


def test_seeds_are_those_of_the_recipe_and_the_budget(accelerator, asked):
    quick, full = (Experiment("phantom", accelerator, name, seed=7) for name in ("quick", "full"))
    assert quick.runs("tiny-cnn-28", "published") == asked
    assert asked == [("tiny-cnn-28", "published", seed, "random", True) for seed in (7, 8)]
    assert [
        len(full.runs(name)) for name in ("tiny-cnn-28", "mobilenetv2-small", "resnet50v2")
    ] == [3, 10, 1]


def test_the_phantom_never_asks_for_imagenet_and_a_users_films_do(accelerator, asked, tmp_path):
    write(tmp_path / "films", PhantomSettings(images=24, size=32))
    for dataset in ("phantom", str(tmp_path / "films")):
        Experiment(dataset, accelerator, "brief").runs("mobilenetv2-frozen")
    Experiment("phantom", accelerator, "brief", init="mine.weights.h5").runs("mobilenetv2-frozen")
    assert [init for *_, init, _ in asked] == ["random", "imagenet", "mine.weights.h5"]


def test_a_standing_run_is_read_back_and_nothing_is_trained_or_written(
    accelerator, standing, asked, caplog
):
    before = {file: file.read_bytes() for file in (paths.REPORTS / "phantom").rglob("*.*")}
    experiment = reading(accelerator)
    (read,) = experiment.runs(TINY)
    assert asked == [] and not [
        record for record in caplog.records if record.name == "xraylib.experiment"
    ]
    assert read == standing and read.scores["score"].between(0, 1).all() and len(read.history) == 1
    assert sorted(experiment.scores()["split"].unique()) == ["test", "val"]
    assert experiment.leaderboard(["tiny-cnn-28"])["seeds"].tolist() == [1]
    assert experiment.leaderboard(["scratch-cnn"]).empty
    assert before == {file: file.read_bytes() for file in (paths.REPORTS / "phantom").rglob("*.*")}


@pytest.mark.parametrize(
    ("budget", "recipe", "protocol"),
    [
        ("quick", TINY, "strict"),
        ("brief", replace(TINY, phases=(Phase(1, 2e-3),)), "strict"),
        ("brief", TINY, "published"),
    ],
    ids=["budget", "rate", "protocol"],
)
def test_what_does_not_stand_is_left_out_aloud(
    accelerator, standing, asked, caplog, budget, recipe, protocol
):
    assert reading(accelerator, budget).runs(recipe, protocol) == asked == []
    assert (
        f"Fix: python -m xraylib train tiny-cnn-28 --dataset phantom --protocol {protocol}"
        in caplog.text
    )


@pytest.mark.parametrize(
    ("said", "warning"),
    [
        ({"training_version": 0}, "training code has changed"),
        ({"split": "0" * 16}, "other files or labels"),
    ],
)
def test_runs_of_other_code_or_images_are_read_with_a_warning(
    accelerator, standing, caplog, said, warning
):
    (standing.folder / "run.json").write_text(json.dumps(standing.settings | said))
    assert len(reading(accelerator).runs(TINY)) == 1 and warning in caplog.text


def with_init(run, init):
    (run.folder / "run.json").write_text(json.dumps(run.settings | {"init": init}))


def test_runs_from_other_initial_weights_are_read_with_a_warning(accelerator, standing, caplog):
    with_init(standing, "imagenet (Keras)")
    assert len(reading(accelerator).runs(TINY)) == 1
    assert "initial weights are imagenet (Keras), the recipe's are random" in caplog.text


def test_runs_from_other_weights_than_those_asked_for_are_left_out(accelerator, standing, caplog):
    assert Experiment("phantom", accelerator, "brief", reuse=True, init="random").runs(TINY)
    weights = Experiment("phantom", accelerator, "brief", reuse=True, init="imagenet")
    # The phantom never takes ImageNet's: the run from random weights is what was asked for.
    assert weights.runs(TINY) and "initial weights" not in caplog.text
    with_init(standing, "imagenet (Keras)")
    assert Experiment("phantom", accelerator, "brief", reuse=True, init="random").runs(TINY) == []
    assert "from the initial weights random, left out" in caplog.text


def test_of_two_runs_the_one_of_the_asked_budget_and_weights_is_read(accelerator, standing):
    for ending, other in (("full", {"budget": "full"}), ("imagenet", {"init": "imagenet (Keras)"})):
        folder = standing.folder.with_name(f"strict-0-{ending}")
        shutil.copytree(standing.folder, folder)
        (folder / "run.json").write_text(json.dumps(standing.settings | other))
    for init in (None, "random"):
        experiment = Experiment("phantom", accelerator, "brief", reuse=True, init=init)
        assert experiment.runs(TINY) == [standing]
    # Its settings are those of a brief run, so the name of the budget alone is not enough.
    assert reading(accelerator, "full").runs(replace(TINY, seeds=1)) == []


def test_runs_of_further_seeds_are_read_as_well(accelerator, standing, caplog):
    for seed, settings in ((5, {}), (6, {"budget": "full"})):
        folder = standing.folder.with_name(f"strict-{seed}")
        shutil.copytree(standing.folder, folder)
        told = standing.settings | {"seed": seed} | settings
        (folder / "run.json").write_text(json.dumps(told))
        file = folder / "scores.csv"
        file.write_text(file.read_text().replace(",strict,0,", f",strict,{seed},"))
    assert [run.seed for run in reading(accelerator).runs(TINY)] == [0, 5]
    assert "left out" not in caplog.text


@pytest.mark.parametrize("reuse", [True, False])
def test_a_network_is_found_where_it_lies(accelerator, standing, reuse):
    experiment = Experiment("phantom", accelerator, "brief", reuse=reuse)
    expected = load_predictor(standing).model.get_weights()
    for weights, others in zip(experiment.network(TINY).get_weights(), expected, strict=True):
        np.testing.assert_array_equal(weights, others)
    if reuse:
        standing.model_file.unlink()
        assert experiment.network(TINY) is None


def test_views_are_those_that_were_scored(accelerator, standing):
    experiment = reading(accelerator)
    assert experiment.views("framing").empty and "recipe" in experiment.views("framing")
    scored = views.score_framing("tiny-cnn-28", "phantom")
    pd.testing.assert_frame_equal(experiment.views("framing"), scored, rtol=1e-5)


def test_another_seed_splits_otherwise(accelerator):
    experiment = Experiment("phantom", accelerator, seed=3)
    own = experiment.split("random-per-image")
    pd.testing.assert_frame_equal(experiment.split("random-per-image", 3), own)
    assert not experiment.split("random-per-image", 0).equals(own)


def test_figures_and_tables_go_to_the_report_and_come_back(accelerator):
    experiment, figure = Experiment("phantom", accelerator), Figure()
    assert experiment.figure(figure, "01_empty", "Nothing.") is figure
    assert (experiment.folder / "figures" / "01_empty.png").exists()
    table = experiment.manifest.head(2)[["image_id"]]
    assert experiment.table(table, "some") is table
    assert (
        tables.read_rows("phantom", "tables/some") == table.to_dict(orient="records")
        and tables.read_rows("phantom", "tables/other") == []
    )


def test_a_figure_is_written_where_ipython_is_not_installed(accelerator, monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython.display", None)
    monkeypatch.setitem(sys.modules, "IPython", None)
    experiment = Experiment("phantom", accelerator)
    assert experiment.figure(Figure(), "01_empty", "Nothing.").caption == "Nothing."
    assert (experiment.folder / "figures" / "01_empty.png").exists()


def test_a_users_folder_is_found_again_by_the_name_of_its_report(accelerator, tmp_path):
    """As `make reproduce DATASET=/my/folder` needs: notebooks hand on the manifest and the name."""
    write(tmp_path / "my images", PhantomSettings(images=24, size=32))
    path = str(tmp_path / "my images")
    experiment = Experiment(path, accelerator)
    name = experiment.manifest.attrs["dataset"]
    assert name == experiment.name and catalog.get_dataset(name).root == tmp_path / "my images"
    # An error names what a user types, and not the name of the report.
    assert catalog.reference(name) == path and catalog.reference("kermany") == "kermany"
    with pytest.raises(NotFoundError, match=f"Fix: .*{re.escape(path)}"):
        experiment.scores()


def test_all_recipes_leave_out_what_needs_a_list_that_is_not_here(
    accelerator, caplog, monkeypatch, tmp_path
):
    monkeypatch.setenv("XRAYLIB_DATA", str(tmp_path))
    names = Experiment("kermany", accelerator, recipes=("all",)).recipes
    assert "tiny-cnn-28-lungs" in names
    assert "tiny-cnn-28-lungs-annotated" not in names
    assert "tiny-cnn-28-lungs-annotated" in caplog.text and "kermany_lungs.csv" in caplog.text
    assert (
        "tiny-cnn-28-lungs-annotated"
        in Experiment("kermany", accelerator, recipes=("all",), reuse=True).recipes
    )
