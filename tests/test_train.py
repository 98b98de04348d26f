import json
import logging
import threading
from dataclasses import replace

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import run_python
from sklearn.metrics import log_loss, roc_auc_score

from xraylib import paths
from xraylib.cli import main
from xraylib.datasets import images, splits
from xraylib.errors import (
    InvalidDataError,
    NotFoundError,
    OperationFailedError,
    XraylibError,
)
from xraylib.evaluation.metrics import evaluate
from xraylib.evaluation.scores import check
from xraylib.report import tables
from xraylib.training import networks, probe, recipes, runs
from xraylib.training import train as module
from xraylib.training.predictor import load_predictor
from xraylib.training.progress import Progress
from xraylib.training.recipes import BUDGETS, Phase, get_recipe
from xraylib.training.train import IMBALANCE_METHODS, Batches, Fitted, balance, train

TINY = get_recipe("tiny-cnn-28")
# Two phases, one with a decaying rate, batch norm and two kinds of dropout; it can stop early.
PHASED = replace(
    get_recipe("scratch-cnn"),
    name="phased",
    size=32,
    batch_size=16,
    patience=2,
    phases=(Phase(3, 3e-3), Phase(2, 1e-3, decay=True)),
)
FROZEN = replace(get_recipe("mobilenetv2-frozen"), network="tiny_cnn", size=32, init="random")


@pytest.fixture(scope="module")
def unbroken(phantom, accelerator):
    """The tiny network under the quick budget, trained without an interruption."""
    return train(replace(TINY, name="unbroken"), phantom, accelerator, budget="quick")


@pytest.fixture(scope="module")
def phased(phantom, accelerator):
    return train(PHASED, phantom, accelerator)


def same(run, other):
    pd.testing.assert_frame_equal(run.scores, other.scores, check_exact=True)
    curves = [each.history.drop(columns="seconds", errors="ignore") for each in (run, other)]
    pd.testing.assert_frame_equal(*curves, check_exact=True)
    assert run.threshold == other.threshold
    assert run.settings["key"] == other.settings["key"]


def test_a_run_scores_validation_and_test_and_nothing_else(unbroken, phantom):
    assigned = splits.assign(phantom, "strict", 0)
    check(unbroken.scores)
    columns = ["image_id", "patient", "kind", "label", "split"]
    expected = assigned.loc[assigned["split"] != "train", columns]
    expected = expected.sort_values(["split", "image_id"]).reset_index(drop=True)
    pd.testing.assert_frame_equal(unbroken.scores[columns], expected, check_dtype=False)


def test_a_run_says_what_it_was_made_from(unbroken, accelerator):
    settings = unbroken.settings
    expected = {
        "hardware": str(accelerator),
        "backend": "tensorflow",
        "precision": "float32",
        "budget": "quick",
        "init": "random",
        "training_version": runs.TRAINING_VERSION,
    }
    assert expected.items() <= settings.items()
    assert settings["choices"]["phases"][0]["epochs"] == BUDGETS["quick"].epochs_a_phase
    assert {"keras", "tensorflow", "numpy", "scikit-learn"} == set(settings["versions"])
    assert unbroken.has_model
    assert settings["train_seconds"] > 0
    assert not list(paths.RUNS.glob("*-unbroken-*/")), "the unfinished folder is gone"


def validation_loss(run):
    val = run.scores.query("split == 'val'")
    return log_loss(val["label"], val["score"], labels=[0, 1])


@pytest.mark.parametrize("name", ["unbroken", pytest.param("phased", marks=pytest.mark.slow)])
def test_the_scores_are_those_of_the_best_epoch(name, request):
    run = request.getfixturevalue(name)
    assert run.history["epoch"].tolist() == list(range(1, run.settings["epochs"] + 1))
    best = run.history["val_loss"].idxmin()
    assert run.settings["kept_epoch"] == best + 1
    assert validation_loss(run) == pytest.approx(run.history["val_loss"][best], rel=1e-5)


@pytest.mark.slow
def test_without_patience_the_scores_are_those_of_the_last_epoch(phantom, accelerator, places):
    short = replace(TINY, published=TINY.published | {"phases": (Phase(4, 1e-2),)})
    run = train(short, phantom, accelerator, protocol="published")
    assert run.settings["epochs"] == run.settings["kept_epoch"] == 4
    assert run.threshold == 0.5
    assert validation_loss(run) == pytest.approx(run.history["val_loss"].iloc[-1], rel=1e-5)


@pytest.mark.slow
def test_swapped_images_choose_the_epoch_and_the_threshold(phantom, accelerator, places):
    name = "tiny-cnn-28-reframed"
    recipe = replace(get_recipe(name), validation="robust", phases=(Phase(4, 1e-3),))
    run = train(recipe, phantom, accelerator)
    views = run.history[["val_auc_framing", "val_auc_rendering", "val_auc_both"]]
    assert run.settings["kept_epoch"] == views.min(axis=1).idxmax() + 1
    val = run.scores[run.scores["split"] == "val"]
    swapped = run.scores[run.scores["split"] == "swapped"]
    assert set(swapped["image_id"]) == set(val["image_id"])
    auc = roc_auc_score(swapped["label"], swapped["score"])
    assert auc == pytest.approx(views["val_auc_framing"][run.settings["kept_epoch"] - 1])
    positive = swapped.loc[swapped["label"] == 1, "score"]
    assert (positive >= run.threshold).mean() >= 0.95


@pytest.mark.slow
def test_a_linear_probe_is_fitted_on_augmented_images_and_its_threshold_chosen_on_swapped_ones(
    phantom, accelerator, places
):
    recipe = replace(
        get_recipe("mobilenetv2-frozen-reframed"), network="tiny_cnn", size=64, init="random"
    )
    plain = train(replace(recipe, augmentation=None, name="plain"), phantom, accelerator)
    run = train(recipe, phantom, accelerator)
    assert set(run.scores["split"]) == {"val", "test", "swapped"}
    assert set(plain.scores["split"]) == {"val", "test"}
    swapped = run.scores[run.scores["split"] == "swapped"]
    assert (swapped.loc[swapped["label"] == 1, "score"] >= run.threshold).mean() >= 0.95
    again = load_predictor(run).score(images.load_pixels(phantom, 64)[phantom["split"] == "test"])
    np.testing.assert_allclose(
        np.sort(again), np.sort(run.scores.loc[run.scores["split"] == "test", "score"]), atol=1e-6
    )


class Losses(Progress):
    """Progress along given validation losses, without a network."""

    def __init__(self, folder):
        super().__init__(folder, keras.Sequential(), "")

    def _save(self, with_optimizer=True):
        pass


@pytest.mark.parametrize(
    ("losses", "patience", "ran"),
    [
        ([5, 4, 3, 2, 1], 2, 5),
        ([5, 1, 3, 2, 4], 2, 4),
        ([1, 1, 1, 1, 1], 2, 3),
        ([1, 2, 3, 4, 5], None, 5),
        ([np.nan] * 5, 2, 2),
    ],
)
def test_patience_counts_epochs_without_a_better_one(tmp_path, losses, patience, ran):
    progress = Losses(tmp_path)
    while not progress.phase_over(len(losses), patience):
        progress.end_epoch(val_loss=losses[progress.epoch])
    assert progress.epoch == ran
    progress.end_phase(keep_best=True)
    assert not progress.phase_over(9, 2), "each phase has its own patience"


def test_the_weights_it_leaves_give_its_scores(unbroken, phantom):
    pixels = images.load_pixels(phantom, 28)
    rows = [
        phantom.index[phantom["image_id"] == name].item() for name in unbroken.scores["image_id"]
    ]
    found = load_predictor(unbroken).score(pixels[rows])
    np.testing.assert_allclose(found, unbroken.scores["score"], rtol=1e-5)


@pytest.fixture
def untrained(monkeypatch, places):
    """Runs that cost nothing; the list gets the unfinished folder of each."""
    began = []

    def pretend(job):
        began.append(job.folder.name)
        (job.folder / "model.weights.h5").write_bytes(b"weights")
        table = job.assigned.assign(score=np.linspace(0, 1, len(job.assigned)))
        return Fitted(pd.DataFrame({"epoch": [1]}), table, {"train_seconds": 1.0})

    monkeypatch.setattr(module.NetworkFit, "__init__", lambda fit, job: vars(fit).update(job=job))
    monkeypatch.setattr(module.NetworkFit, "fit", lambda fit: pretend(fit.job))
    return began


@pytest.mark.filterwarnings("ignore:The least populated class")
def test_what_decides_the_outcome_decides_the_key_and_nothing_else(
    phantom, accelerator, untrained, monkeypatch
):
    flipped = phantom.assign(label=phantom["label"].where(phantom.index != 3, 1 - phantom["label"]))
    calls = [
        {},
        {"seed": 1},
        {"protocol": "published"},
        {"recipe": replace(TINY, phases=(Phase(2, 1e-3),))},
        {"recipe": replace(TINY, imbalance="oversample")},
        {"manifest": phantom.drop(index=0)},
        {"manifest": flipped},
        {"manifest": phantom.assign(sha256=phantom["sha256"].str.replace("a", "b"))},
    ]
    usual = {"recipe": TINY, "manifest": phantom, "accelerator": accelerator, "budget": "quick"}
    for call in calls:
        train(**usual | call)
    monkeypatch.setattr(runs, "TRAINING_VERSION", runs.TRAINING_VERSION + 1)
    train(**usual)
    assert len(untrained) == len(set(untrained)) == len(calls) + 1
    train(**usual | {"recipe": replace(TINY, title="other words", threshold_rule="cost 5")})
    train(**usual | {"manifest": phantom.assign(path="elsewhere")})
    train(**usual | {"accelerator": replace(accelerator, name="another machine, 64 cores")})
    assert len(untrained) == len(calls) + 1


def test_another_run_is_replaced_with_a_warning_and_a_committed_one_only_when_asked(
    phantom, accelerator, untrained, caplog
):
    committed = phantom.copy()
    committed.attrs["dataset"] = "kermany"
    for manifest in (phantom, committed):
        train(TINY, manifest, accelerator)
    assert train(TINY, committed, accelerator).has_model, "it is read back"
    assert len(untrained) == 2
    shorter = replace(TINY, phases=(Phase(2, 1e-3),))
    train(shorter, phantom, accelerator)
    assert "trained again and replaced" in caplog.text
    with pytest.raises(
        InvalidDataError, match=r"strict-0 is in the committed.*other settings.*Fix: .*--overwrite"
    ):
        train(shorter, committed, accelerator)
    model = train(shorter, committed, accelerator, overwrite=True).model_file
    model.write_bytes(b"damaged")
    with pytest.raises(InvalidDataError, match=r"model\.weights\.h5 is not what.*Fix: "):
        train(shorter, committed, accelerator)
    model.unlink()
    with pytest.raises(InvalidDataError, match=r"its model is not on this machine.*Fix: "):
        train(shorter, committed, accelerator)


def test_a_damaged_model_is_trained_again_aloud(phantom, accelerator, untrained, caplog):
    train(TINY, phantom, accelerator).model_file.write_bytes(b"damaged")
    assert train(TINY, phantom, accelerator).has_model
    assert len(untrained) == 2
    assert "model.weights.h5" in caplog.text


def test_runs_of_another_precision_or_backend_replace_nothing(phantom, accelerator, untrained):
    used = [
        accelerator,
        replace(accelerator, precision="mixed_bfloat16"),
        replace(accelerator, backend="jax"),
    ]
    trained = [train(TINY, phantom, each) for each in used]
    again = [train(TINY, phantom, each) for each in used]
    assert trained == again
    assert len(untrained) == len({run.folder for run in trained}) == 3


@pytest.mark.usefixtures("small_phantom")
def test_readmes_commands_overwrite_nothing_and_no_row_pools_them(untrained):
    quick = ["train", "tiny-cnn-28", "--budget", "quick"]
    full = ["train", "tiny-cnn-28", "--budget", "full"]
    assert main(quick) == 0
    assert main(full) == 0
    before = {file: file.read_bytes() for file in paths.REPORTS.rglob("*") if file.is_file()}
    assert main(quick) == 0
    after = {file: file.read_bytes() for file in paths.REPORTS.rglob("*") if file.is_file()}
    assert after == before
    assert len(untrained) == len(set(untrained)) == BUDGETS["quick"].seeds + TINY.seeds
    board = tables.leaderboard("phantom")
    assert board["seeds"].tolist() == [TINY.seeds]
    seeds = [run.seed for run in runs.list_runs("phantom", budget="quick")]
    assert seeds == list(range(BUDGETS["quick"].seeds))


def test_of_two_at_once_one_trains_and_both_have_the_run(phantom, accelerator, untrained):
    found = []
    both = [
        threading.Thread(target=lambda: found.append(train(TINY, phantom, accelerator)))
        for _ in range(2)
    ]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(untrained) == 1
    assert found[0] == found[1]


def test_nothing_is_trained_for_a_wrong_call(phantom, accelerator, untrained, places):
    for wrong in (
        {"protocol": "honest"},
        {"budget": "endless"},
        {"init": "lucky"},
        {"init": "no.weights.h5"},
    ):
        with pytest.raises(NotFoundError):
            train(TINY, phantom, accelerator, **wrong)
    for field in ("network", "head", "imbalance", "validation", "augmentation", "fit"):
        with pytest.raises(NotFoundError, match=r"'foo'.*Fix: "):
            train(replace(TINY, **{field: "foo"}), phantom, accelerator)
    with pytest.raises(NotFoundError, match=r"'foo'.*file size"):
        train(replace(get_recipe("majority-class"), network="foo"), phantom, accelerator)
    for seed in (-1, 2**32):
        with pytest.raises(InvalidDataError, match=rf"the seed {seed} cannot be used\. Fix: "):
            train(TINY, phantom, accelerator, seed=seed)
    with pytest.raises(InvalidDataError, match=r"divided among 7 devices\. Fix: "):
        train(TINY, phantom, replace(accelerator, count=7))
    assert untrained == []
    assert not list(places.iterdir())


def test_a_data_set_with_a_long_name_is_trained(phantom, accelerator, untrained):
    named = phantom.copy()
    named.attrs["dataset"] = 240 * "a"
    assert train(TINY, named, accelerator).settings["dataset"] == 240 * "a"


@pytest.mark.slow
def test_broken_after_every_epoch_it_ends_with_the_same_scores_on_other_cores(
    phased, phantom, accelerator, places, monkeypatch, caplog
):
    end_epoch = Progress.end_epoch
    write_run = runs.write_run
    breaks = []

    def end_and_break(self, **measured):
        end_epoch(self, **measured)
        breaks.append(self.epoch)
        raise KeyboardInterrupt

    def break_first(*arguments):
        monkeypatch.setattr(runs, "write_run", write_run)
        breaks.append("write")
        raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "end_epoch", end_and_break)
    monkeypatch.setattr(runs, "write_run", break_first)
    run = None
    with caplog.at_level(logging.INFO):
        while run is None:
            cores = replace(accelerator, name=f"another machine, {len(breaks)} cores")
            try:
                run = train(PHASED, phantom, cores)
            except KeyboardInterrupt:
                assert len(breaks) < 10
    assert breaks == [*phased.history["epoch"], "write"]
    assert "begun on CPU another machine, 0 cores" in caplog.text
    same(run, phased)


def small_model(units=3):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(units)])
    model.compile(keras.optimizers.Adam(0.1), "mse")
    model.optimizer.build(model.trainable_variables)
    return model


@pytest.fixture
def checkpoint(accelerator, tmp_path):
    """The file of a checkpoint after one epoch, and the weights in it."""
    model = small_model()
    model.layers[0].kernel.assign(np.full((2, 3), 7.0))
    Progress(tmp_path, model, "CPU").end_epoch(val_loss=1.0)
    return tmp_path / "checkpoint.npz"


def test_a_checkpoint_is_taken_up(checkpoint):
    model = small_model()
    progress = Progress(checkpoint.parent, model, "CPU")
    assert (progress.epoch, progress.best_epoch, progress.best_loss) == (1, 0, 1.0)
    assert (model.layers[0].kernel.numpy() == 7).all()


def cut(content):
    return content[: len(content) // 2]


def other_bytes(content):
    middle = len(content) // 2
    return content[:middle] + bytes(255 - byte for byte in content[middle:][:64]) + content[-200:]


@pytest.mark.parametrize(
    "damage",
    [cut, other_bytes, lambda _: b"", lambda _: b"garbage" * 99],
    ids=["cut", "other bytes", "empty", "garbage"],
)
def test_a_damaged_checkpoint_is_set_aside_and_training_starts_anew(checkpoint, damage, caplog):
    content = damage(checkpoint.read_bytes())
    checkpoint.write_bytes(content)
    assert_begins_anew(checkpoint, small_model(), caplog)
    assert checkpoint.with_name("checkpoint-damaged.npz").read_bytes() == content


def assert_begins_anew(checkpoint, model, caplog):
    before = [np.array(weights) for weights in model.weights]
    progress = Progress(checkpoint.parent, model, "CPU")
    assert (progress.epoch, progress.phase, progress.best) == (0, 0, [])
    for weights, unchanged in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weights, unchanged)
    assert str(checkpoint) in caplog.text
    assert not checkpoint.exists()


def test_a_checkpoint_of_another_network_is_set_aside(checkpoint, caplog):
    assert_begins_anew(checkpoint, small_model(units=4), caplog)


@pytest.mark.parametrize(
    "state", ["[]", "{", '{"phase": 0}', '{"phase": "0", "history": 1, "parts": 2}']
)
def test_a_checkpoint_with_a_wrong_state_is_set_aside(checkpoint, caplog, state):
    with np.load(checkpoint) as saved:
        arrays = dict(saved)
    np.savez(checkpoint, **(arrays | {"state": np.array(state)}))
    assert_begins_anew(checkpoint, small_model(), caplog)


def test_a_checkpoint_of_another_optimiser_is_refused_by_name(checkpoint):
    model = small_model()
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.optimizer.build(model.trainable_variables)
    progress = Progress(checkpoint.parent, model, "CPU")
    with pytest.raises(OperationFailedError, match=r"checkpoint\.npz.*Fix: delete it"):
        progress.begin_phase(0)


# KILLS=20 kills as often, at any moment: `KILLS=20 pytest -m slow -k killed`.
KILLED = """
import json, os, signal, sys, time
import numpy as np
import pandas as pd
from dataclasses import replace
from pathlib import Path
from xraylib import devices, paths

manifest, rng = pd.read_pickle(sys.argv[1]), np.random.default_rng()
manifest.attrs = {"dataset": "phantom"}

def epochs():
    try:
        (file,) = paths.RUNS.glob("*/checkpoint.npz")
        return len(json.loads(str(np.load(file)["state"]))["history"])
    except (ValueError, OSError):
        return 0

killed, status, kills = [], signal.SIGKILL, int(os.environ.get("KILLS", 3))
while status in (signal.SIGKILL, signal.SIGTERM):
    before, ended = epochs(), 0
    # Forked before Keras has begun anything: each child is a fresh process.
    child = os.fork()
    if child == 0:
        accelerator = devices.use("cpu", "tensorflow")
        from xraylib.training.progress import Progress
        from xraylib.training.recipes import get_recipe
        from xraylib.training.train import train
        end_epoch = Progress.end_epoch
        def slowly(progress, **measured):
            end_epoch(progress, **measured)
            # However fast the machine, the parent kills before the last epoch.
            time.sleep(0.1)
        Progress.end_epoch = slowly
        recipe = replace(get_recipe("tiny-cnn-28"), name="unbroken")
        train(recipe, manifest, accelerator, budget="quick")
        os._exit(0)
    further = 2 if kills == 3 else rng.choice([0, 0, 1])
    while len(killed) < kills and not ended and (seen := epochs()) < before + further:
        ended, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.002)
    if not ended and len(killed) < kills:
        killed.append(seen)
        time.sleep(rng.uniform(0, 0.1 if further else 10))
        os.kill(child, rng.choice([signal.SIGKILL, signal.SIGTERM]))
    if not ended:
        status = os.waitpid(child, 0)[1]
print(json.dumps({"killed": killed, "status": status}))
"""


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_scores(unbroken, phantom, places):
    phantom.to_pickle(places / "manifest.pkl")
    outcome = json.loads(run_python(KILLED, places / "manifest.pkl"))
    print("killed after epochs", outcome["killed"])
    assert outcome["status"] == 0
    assert len(outcome["killed"]) >= 3
    (run,) = runs.list_runs("phantom")
    same(run, unbroken)
    assert not list(paths.RUNS.glob("*/"))


@pytest.mark.slow
def test_a_network_that_diverges_is_no_run(phantom, accelerator, places):
    wild = replace(TINY, phases=(Phase(2, 1e30),))
    with pytest.raises(
        (XraylibError, FloatingPointError, ValueError), match=r"(?i)nan|not numbers"
    ):
        train(wild, phantom, accelerator)
    assert runs.list_runs("phantom") == []


@pytest.mark.slow
def test_the_same_recipe_trains_under_jax_on_one_device_and_on_four(under_jax, unbroken):
    one = under_jax["one"]
    four = under_jax["four"]
    assert "one device" in one["hardware"]
    assert "shared by 4 devices" in four["hardware"]
    assert one["image_id"] == four["image_id"] == unbroken.scores["image_id"].tolist()
    for column in ("loss", "val_loss", "score"):
        np.testing.assert_allclose(four[column], one[column], atol=1e-4)
    assert one["loss"] != [one["loss"][0]] * 4, "it learns"


@pytest.mark.parametrize("fit", ["linear-probe", "single-feature"])
def test_a_probe_trains_as_any_recipe(phantom, accelerator, places, monkeypatch, fit):
    recipe = FROZEN if fit == "linear-probe" else get_recipe("mean-intensity")
    run = train(recipe, phantom, accelerator)
    check(run.scores)
    assert run.history["strength"].tolist() == list(probe.STRENGTHS)
    assert json.loads((run.folder / "head.json").read_text()).keys() == {
        "coefficients",
        "intercept",
    }
    monkeypatch.setattr(probe, "fit", None)
    same(train(recipe, phantom, accelerator), run)


def test_a_probe_on_a_file_of_weights_is_loaded_wherever_that_file_is(
    phantom, accelerator, places, monkeypatch
):
    monkeypatch.delenv("XRAYLIB_WEIGHTS", raising=False)
    file = places / "mine.weights.h5"
    networks.build("tiny_cnn", 32, "sigmoid").save_weights(file)
    run = train(FROZEN, phantom, accelerator, init=str(file))
    assert run.settings["init_file"] == {"path": str(file), "sha256": runs.file_sha256(file)}
    pixels = images.load_pixels(phantom, 32)[:4]
    scores = load_predictor(run).score(pixels)
    (places / "weights").mkdir()
    file.rename(places / "weights" / "renamed.weights.h5")
    with pytest.raises(NotFoundError, match=r"file [0-9a-f]{12}.*Fix: set XRAYLIB_WEIGHTS"):
        load_predictor(run)
    monkeypatch.setenv("XRAYLIB_WEIGHTS", str(places / "weights"))
    np.testing.assert_array_equal(load_predictor(run).score(pixels), scores)
    assert train(FROZEN, phantom, accelerator).folder != run.folder


def brightness_network(x, size, weights):
    x = keras.layers.Rescaling(1 / 255)(x)
    x = keras.layers.AveragePooling2D(4)(x)
    return keras.layers.Flatten()(x)


def mirrored():
    return keras.layers.RandomFlip("horizontal")


def first_and_last(manifest, seed):
    pool = manifest[manifest["split"] != "test"]
    assigned = manifest.copy()
    for label in (0, 1):
        patients = pool.loc[pool["label"] == label, "patient"].unique()[:3]
        assigned.loc[pool.index[pool["patient"].isin(patients)], "split"] = "val"
        others = pool.index[(pool["label"] == label) & ~pool["patient"].isin(patients)]
        assigned.loc[others, "split"] = "train"
    return assigned


def median_of_positives(labels, scores):
    return float(np.median(scores[labels == 1]))


OWN = replace(
    TINY,
    name="own",
    network=brightness_network,
    augmentation=mirrored,
    split_strategy=first_and_last,
    threshold_rule=median_of_positives,
    size=32,
    phases=(Phase(2, 1e-2),),
    published={},
)


def test_parts_of_ones_own_are_trained_and_enter_the_identity(
    phantom, accelerator, places, monkeypatch
):
    monkeypatch.setattr(splits, "SPLIT_STRATEGIES", dict(splits.SPLIT_STRATEGIES))
    run = train(OWN, phantom, accelerator)
    choices = run.settings["choices"]
    parts = {
        "network": brightness_network,
        "augmentation": mirrored,
        "split_strategy": first_and_last,
        "threshold_rule": median_of_positives,
    }
    for field, part in parts.items():
        assert choices[field] == recipes.part_name(part)
        assert choices[field].startswith(f"{part.__name__}-")
    val = run.scores[run.scores["split"] == "val"]
    positives = val.loc[val["label"] == 1]
    assert positives["patient"].nunique() == 3
    assert run.threshold == np.median(positives["score"])
    rows = phantom.index[phantom["image_id"].isin(val["image_id"])]
    again = load_predictor(run).score(images.load_pixels(phantom, 32)[rows])
    np.testing.assert_allclose(np.sort(again), np.sort(val["score"]), rtol=1e-5)
    monkeypatch.delitem(recipes.OWN_PARTS, choices["network"])
    with pytest.raises(NotFoundError, match=r"brightness_network-.*Fix: .*part_name"):
        load_predictor(run)


@pytest.mark.slow
def test_random_labels_teach_nothing(phantom, accelerator, places):
    people = phantom["patient"].unique()
    coin = dict(zip(people, np.random.default_rng(0).integers(0, 2, len(people)), strict=True))
    tossed = phantom.assign(label=phantom["patient"].map(coin), kind="unknown")
    run = train(TINY, tossed, accelerator, budget="quick")
    auc = evaluate(run.scores, rule=0.5).loc["auc"]
    assert auc["low"] <= 0.5 <= auc["high"]


# The last rows are of another split.
LABELS = np.array([0] * 10 + [1] * 30 + [0] * 5)
ROWS = np.arange(40)


@pytest.mark.parametrize("method", [None, *IMBALANCE_METHODS])
def test_an_imbalance_method_balances_the_rows_it_is_given(method):
    rows, weights = balance(ROWS, LABELS, method, np.random.default_rng(0))
    sums = [weights[rows][LABELS[rows] == value].sum() for value in (0, 1)]
    counts = [(LABELS[rows] == value).sum() for value in (0, 1)]
    assert set(rows) <= set(ROWS)
    assert len(weights) == len(LABELS)
    assert weights.dtype == np.float32
    assert weights[rows].mean() == pytest.approx(1)
    assert sums[0] == pytest.approx(sums[1]) or method is None
    assert counts == {"oversample": [30, 30], "undersample": [10, 10]}.get(method, [10, 30])
    if method == "oversample":
        assert set(rows[LABELS[rows] == 1]) == set(range(10, 40)), "the larger class is whole"


@pytest.mark.parametrize(
    ("count", "size", "shape"), [(40, 16, (2, 16)), (9, 16, (1, 9)), (32, 16, (2, 16))]
)
def test_batches_have_one_length_and_no_image_twice(count, size, shape):
    pixels = np.arange(40, dtype=np.uint8).reshape(40, 1, 1, 1)
    rows = np.random.default_rng(0).permutation(40)[:count]
    batches = Batches(pixels, LABELS, rows, np.arange(45, dtype=np.float32), size)
    assert (len(batches), batches.size) == shape
    seen = []
    for x, y, weights in (batches[number] for number in range(len(batches))):
        assert x.shape == (batches.size, 1, 1, 1)
        assert x.dtype == np.uint8
        np.testing.assert_array_equal(y, LABELS[x.ravel()])
        np.testing.assert_array_equal(weights, x.ravel())
        seen += x.ravel().tolist()
    assert seen == rows[: len(seen)].tolist()
