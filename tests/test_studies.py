import json
import logging
import time
from dataclasses import replace

import pandas as pd
import pytest
from matplotlib.figure import Figure

from xraylib import experiment
from xraylib.datasets.phantom import PhantomSettings, write
from xraylib.experiment import Experiment
from xraylib.report import tables
from xraylib.storage import NotFound
from xraylib.training import train as training
from xraylib.training.recipes import get_recipe
from xraylib.training.systems import BUDGETS, Budget, Phase

pytestmark = pytest.mark.usefixtures("small_phantom", "reports_here")
TINY = get_recipe("tiny-cnn-28")
FROZEN = replace(get_recipe("mobilenetv2-frozen"), size=32)


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    """Two epochs a phase, so that a experiment takes seconds."""
    monkeypatch.setitem(BUDGETS, "quick", Budget(2, 2))
    monkeypatch.setitem(BUDGETS, "brief", Budget(1, 1))


@pytest.fixture
def trainings(monkeypatch):
    """What was asked of `training.train`, which does its work all the same."""
    asked, train = [], training.train

    def watched(recipe, manifest, accelerator, **options):
        asked.append((recipe.name, options["protocol"], options["seed"], options["init"]))
        return train(recipe, manifest, accelerator, **options)

    monkeypatch.setattr(training, "train", watched)
    return asked


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"dataset": "kermanny"}, "Did you mean 'kermany'"),
        ({"recipes": ("tiny-cnn-28", "tiny-cnn")}, "no recipe 'tiny-cnn'"),
        ({"budget": "slow"}, "no budget 'slow'"),
    ],
)
def test_unknown_names_fail_at_once(accelerator, wrong, named):
    began = time.perf_counter()
    with pytest.raises(NotFound, match=rf"{named}.*Fix: "):
        Experiment(**{"dataset": "phantom", "accelerator": accelerator} | wrong)
    assert time.perf_counter() - began < 1


def test_data_that_is_not_there_is_named_when_it_is_asked_for(accelerator, tmp_path):
    experiment = Experiment(str(tmp_path / "films"), accelerator)
    with pytest.raises(NotFound, match=r"films.*Fix: "):
        experiment.runs("tiny-cnn-28")
    assert not list(tmp_path.glob("reports/*"))


def test_seeds_follow_the_budget(accelerator):
    tiny, small, large = map(get_recipe, ("tiny-cnn-28", "mobilenetv2-small", "resnet50v2"))
    assert list(Experiment("phantom", accelerator, "quick", seed=7).seeds(tiny)) == [7, 8]
    assert list(Experiment("phantom", accelerator, "brief", seed=7).seeds(tiny)) == [7]
    full = Experiment("phantom", accelerator, "full", seed=7)
    assert [len(full.seeds(recipe)) for recipe in (tiny, small, large)] == [3, 10, 1]


def test_runs_of_all_seeds_stand_in_the_report(accelerator, trainings):
    experiment = Experiment("phantom", accelerator, "quick", seed=3)
    runs = experiment.runs("tiny-cnn-28")
    assert [(run.seed, run.settings["choices"]["phases"][0]["epochs"]) for run in runs] == [(3, 2), (4, 2)]
    table = tables.load_scores("phantom")
    assert sorted(table["seed"].unique()) == [3, 4]
    assert len(table) == sum(len(run.scores) for run in runs)
    assert trainings == [("tiny-cnn-28", "strict", seed, "random") for seed in (3, 4)]


def test_the_phantom_never_asks_for_imagenet(accelerator, trainings, monkeypatch):
    monkeypatch.setattr(experiment, "get_recipe", lambda name: FROZEN)
    run = Experiment("phantom", accelerator, "brief").runs("mobilenetv2-frozen")[0]
    assert FROZEN.init == "imagenet" and run.settings["init"] == "random"
    assert tables.leaderboard("phantom")["init"].tolist() == ["random"]


def test_films_of_a_user_take_the_recipes_own_weights(accelerator, monkeypatch, tmp_path):
    write(tmp_path / "films", PhantomSettings(images=24, size=32))
    asked = []
    monkeypatch.setattr(training, "train", lambda *_, **options: asked.append(options["init"]))
    monkeypatch.setattr(tables, "record", lambda *_: None)
    Experiment(str(tmp_path / "films"), accelerator, "brief").runs(FROZEN)
    assert asked == ["imagenet"]


def test_what_is_recorded_is_read_back_without_training(accelerator, trainings, caplog, tmp_path):
    made = Experiment("phantom", accelerator, "brief").runs(TINY)[0]
    before = {file: file.read_bytes() for file in tables.folder("phantom").rglob("*.*")}
    trainings.clear()
    with caplog.at_level(logging.WARNING, "xraylib.experiment"):
        read = Experiment("phantom", accelerator, "brief", reuse=True).runs(TINY)[0]
    assert trainings == []
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == 1 and "nothing is trained" in warned[0] and made.settings["hardware"] in warned[0]
    pd.testing.assert_frame_equal(
        read.scores, made.scores.sort_values(["split", "image_id"]).reset_index(drop=True), check_dtype=False
    )
    assert read.history["loss"].tolist() == pytest.approx(made.history["loss"].tolist())
    assert before == {file: file.read_bytes() for file in tables.folder("phantom").rglob("*.*")}


def test_without_reuse_the_report_is_not_read(accelerator, trainings):
    for _ in range(2):
        Experiment("phantom", accelerator, "brief").runs(TINY)
    assert len(trainings) == 2


def test_what_is_not_recorded_is_left_out_aloud_when_reuse_is_asked_for(accelerator, trainings, caplog):
    experiment = Experiment("phantom", accelerator, "brief", reuse=True)
    assert experiment.runs(TINY) == [] and experiment.runs(TINY, "published") == []
    assert trainings == []
    said = [record.getMessage() for record in caplog.records]
    assert all("holds no such run. Fix: python -m xraylib train tiny-cnn-28" in line for line in said)
    assert len(said) == 2


@pytest.mark.parametrize(
    "other",
    [
        {"budget": "quick"},
        {"recipe": replace(TINY, batch_size=16)},
        {"recipe": replace(TINY, phases=(Phase(1, 2e-3),))},
    ],
    ids=["budget", "batch size", "rate"],
)
def test_another_budget_or_recipe_is_left_out_aloud(accelerator, trainings, caplog, other):
    Experiment("phantom", accelerator, "brief").runs(TINY)
    trainings.clear()
    experiment = Experiment("phantom", accelerator, other.get("budget", "brief"), reuse=True)
    assert experiment.runs(other.get("recipe", TINY)) == [] and trainings == []
    assert any("another recipe or budget" in record.getMessage() for record in caplog.records)


def changed(**said):
    file = tables.folder("phantom") / "metrics" / "tiny-cnn-28.json"
    kept = json.loads(file.read_text())
    kept["runs"][0] |= said
    file.write_text(json.dumps(kept))


@pytest.mark.parametrize(
    ("said", "warning"),
    [
        ({"training_version": 0}, "training code has changed"),
        ({"split": "0" * 16}, "images here are not those"),
    ],
)
def test_recorded_scores_of_other_code_or_images_are_used_with_a_warning(
    accelerator, trainings, caplog, said, warning
):
    Experiment("phantom", accelerator, "brief").runs(TINY)
    changed(**said)
    trainings.clear()
    Experiment("phantom", accelerator, "brief", reuse=True).runs(TINY)
    assert trainings == []
    assert any(warning in record.getMessage() for record in caplog.records)


def test_a_model_is_trained_here_though_its_scores_stand_in_the_report(accelerator):
    Experiment("phantom", accelerator, "brief").runs(TINY)
    run = Experiment("phantom", accelerator, "brief", reuse=True).trained(TINY)
    assert (run.folder / "model.weights.h5").exists()


def test_figures_go_to_the_report_and_come_back(accelerator):
    experiment, figure = Experiment("phantom", accelerator), Figure()
    assert experiment.figure(figure, "01_empty", "Nothing.") is figure
    assert (experiment.folder / "figures" / "01_empty.png").exists()
