import json
import threading
from dataclasses import replace

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import run_python
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from xraylib.datasets import catalog, images, splits
from xraylib.datasets.phantom import PhantomSettings
from xraylib.evaluation.metrics import evaluate
from xraylib.evaluation.scores import COLUMNS, check_scores
from xraylib.storage import NotFound, XraylibError
from xraylib.training import features, heads, models
from xraylib.training import train as training
from xraylib.training.batches import IMBALANCE_METHODS, Batches, balance, predict
from xraylib.training.checkpoints import Progress
from xraylib.training.models import Weights
from xraylib.training.recipes import get_recipe
from xraylib.training.runs import model_sha256, read
from xraylib.training.systems import Phase
from xraylib.training.train import train

TINY = get_recipe("tiny-cnn-28")
# Two phases, one with a decaying rate; batch norm and two kinds of dropout; stops early when it may.
PHASED = replace(
    get_recipe("scratch-cnn"),
    name="phased",
    size=32,
    batch_size=16,
    patience=2,
    phases=(Phase(3, 3e-3), Phase(2, 1e-3, decay=True)),
)
FROZEN = replace(get_recipe("mobilenetv2-frozen"), size=32, init="random")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def unbroken(phantom, accelerator, runs):
    """The tiny network under the quick budget, trained without a break."""
    return train(TINY, phantom, accelerator, budget="quick", runs=runs)


@pytest.fixture(scope="module")
def phased(phantom, accelerator, runs):
    return train(PHASED, phantom, accelerator, runs=runs)


def same(one, other):
    assert one.folder.name == other.folder.name
    pd.testing.assert_frame_equal(one.scores, other.scores, check_exact=True)
    curves = [run.history.drop(columns="seconds") for run in (one, other)]
    pd.testing.assert_frame_equal(*curves, check_exact=True)


def test_a_run_scores_validation_and_test_and_nothing_else(unbroken, phantom):
    assigned = splits.assign(phantom, "strict", 0)
    check_scores(unbroken.scores)
    assert tuple(unbroken.scores.columns) == COLUMNS
    about = ["image_id", "patient", "kind", "label", "split"]
    expected = assigned.loc[assigned["split"] != "train", about].sort_values(["split", "image_id"])
    pd.testing.assert_frame_equal(unbroken.scores[about], expected.reset_index(drop=True), check_dtype=False)
    assert (unbroken.recipe, unbroken.protocol, unbroken.seed) == ("tiny-cnn-28", "strict", 0)


def test_a_run_says_what_it_was_made_from(unbroken, accelerator):
    said = unbroken.settings
    assert said["hardware"] == str(accelerator)
    assert said["init"] == "random" and said["choices"]["phases"][0]["epochs"] == 20
    assert {"keras", "tensorflow", "numpy", "scikit-learn"} == set(said["versions"])
    assert said["model_sha256"] == model_sha256(unbroken.folder / "model.weights.h5")
    assert said["train_seconds"] > 0


@pytest.mark.parametrize("run", ["unbroken", "phased"])
def test_learning_curves_are_kept_whole(run, request):
    run = request.getfixturevalue(run)
    curves = run.history
    assert curves["epoch"].tolist() == list(range(1, run.settings["epochs"] + 1))
    assert curves["phase"].is_monotonic_increasing
    assert curves[["loss", "accuracy", "val_loss", "val_accuracy"]].notna().all(axis=None)
    assert not (run.folder / "checkpoint.npz").exists()


def validation_loss(run):
    val = run.scores.query("split == 'val'")
    return log_loss(val["label"], val["score"], labels=[0, 1])


@pytest.mark.parametrize("run", ["unbroken", "phased"])
def test_the_scores_are_those_of_the_best_epoch(run, request):
    run = request.getfixturevalue(run)
    best = run.history["val_loss"].idxmin()
    assert run.settings["kept_epoch"] == best + 1
    assert validation_loss(run) == pytest.approx(run.history["val_loss"][best], rel=1e-5)


def test_without_patience_the_scores_are_those_of_the_last_epoch(phantom, accelerator, runs):
    short = replace(TINY, published=TINY.published | {"phases": (Phase(4, 1e-2),)})
    run = train(short, phantom, accelerator, protocol="published", runs=runs)
    assert run.settings["epochs"] == run.settings["kept_epoch"] == 4
    assert validation_loss(run) == pytest.approx(run.history["val_loss"].iloc[-1], rel=1e-5)
    assert set(run.scores["image_id"]) == set(
        splits.assign(phantom, "published", 0, split_strategy="random-per-image").query("split != 'train'")[
            "image_id"
        ]
    )


class Losses(Progress):
    """Progress along given validation losses, without a network."""

    def __init__(self, folder):
        super().__init__(folder, keras.Sequential())

    def _save(self, with_optimizer=True):
        pass


@pytest.mark.parametrize(
    ("losses", "patience", "ran"),
    [
        ([5, 4, 3, 2, 1], 2, 5),
        ([5, 1, 3, 2, 4], 2, 4),
        ([1, 1, 1, 1, 1], 2, 3),
        ([3, 4, 2, 4, 4], 2, 5),
        ([1, 2, 3, 4, 5], None, 5),
        ([np.nan] * 5, 2, 2),
    ],
)
def test_patience_counts_epochs_without_a_better_one(tmp_path, losses, patience, ran):
    progress = Losses(tmp_path)
    while not progress.phase_over(len(losses), patience):
        progress.end_epoch(val_loss=losses[progress.epoch])
    assert progress.epoch == ran


def test_each_phase_has_its_own_patience(tmp_path):
    progress = Losses(tmp_path)
    for loss in (1, 2, 2):
        progress.end_epoch(val_loss=loss)
    assert progress.phase_over(9, 2)
    progress.end_phase(keep_best=True)
    assert not progress.phase_over(9, 2)
    progress.end_epoch(val_loss=3)
    progress.end_epoch(val_loss=3)
    assert progress.phase_over(9, 2)


def test_the_weights_it_leaves_give_its_scores(phased, phantom):
    model = models.build("scratch_cnn", 32, "sigmoid")
    model.load_weights(phased.folder / "model.weights.h5")
    rows = [phantom.index[phantom["image_id"] == name].item() for name in phased.scores["image_id"]]
    scores = predict(model, "sigmoid", images.load_pixels(phantom, 32), np.array(rows), 16)
    np.testing.assert_allclose(scores, phased.scores["score"], rtol=1e-6)


def test_the_same_call_reads_back_without_training(unbroken, phantom, accelerator, runs, monkeypatch):
    def never(*_, **__):
        raise AssertionError("it trains again")

    monkeypatch.setattr(keras.Model, "fit", never)
    monkeypatch.setattr(training, "_fit_network", never)
    same(train(TINY, phantom, accelerator, budget="quick", runs=runs), unbroken)
    same(read(unbroken.folder), unbroken)


@pytest.fixture
def untrained(monkeypatch):
    """Trainings that cost nothing; the list gets the folder of each."""
    began = []

    def pretend(recipe, manifest, assigned, weights, seed, folder):
        began.append(folder.name)
        (folder / "model.weights.h5").write_bytes(b"weights")
        return pd.DataFrame({"epoch": [1]}), np.full(len(assigned), 0.5), {"train_seconds": 1.0}

    monkeypatch.setattr(training, "_fit_network", pretend)
    return began


@pytest.mark.filterwarnings("ignore:The least populated class")
def test_what_decides_the_outcome_gets_a_folder_of_its_own(
    phantom, accelerator, untrained, tmp_path, monkeypatch
):
    flipped = phantom.assign(label=phantom["label"].where(phantom.index != 3, 1 - phantom["label"]))
    calls = [
        {},
        {"seed": 1},
        {"protocol": "published"},
        {"recipe": replace(TINY, phases=(Phase(2, 1e-3),))},
        {"recipe": replace(TINY, imbalance="oversample")},
        {"recipe": replace(TINY, batch_size=16)},
        {"manifest": phantom.drop(index=0)},
        {"manifest": flipped},
        {"manifest": phantom.assign(sha256=phantom["sha256"].str.replace("a", "b"))},
        {"accelerator": replace(accelerator, count=4)},
    ]
    usual = {
        "recipe": TINY,
        "manifest": phantom,
        "accelerator": accelerator,
        "budget": "quick",
        "runs": tmp_path,
    }
    for call in calls:
        train(**usual | call)
    monkeypatch.setattr(training, "CODE_FINGERPRINT", "other")
    train(**usual)
    assert len(untrained) == len(set(untrained)) == len(calls) + 1
    train(**usual | {"recipe": replace(TINY, title="other words")})
    train(**usual | {"manifest": phantom.assign(path="elsewhere")})
    assert len(untrained) == len(calls) + 1


def test_of_two_at_once_one_trains_and_both_have_the_run(phantom, accelerator, untrained, tmp_path):
    found = []

    def call():
        found.append(train(TINY, phantom, accelerator, runs=tmp_path))

    both = [threading.Thread(target=call) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(untrained) == 1
    assert found[0].folder == found[1].folder
    assert found[0].scores.equals(found[1].scores)


def test_nothing_is_trained_for_a_wrong_call(phantom, accelerator, untrained, tmp_path):
    for wrong in ({"protocol": "honest"}, {"budget": "endless"}, {"init": "lucky"}):
        with pytest.raises(NotFound):
            train(TINY, phantom, accelerator, runs=tmp_path, **wrong)
    with pytest.raises(NotFound):
        train(TINY, phantom, accelerator, runs=tmp_path, init=str(tmp_path / "none.weights.h5"))
    assert untrained == [] and not list(tmp_path.iterdir())


def test_ids_and_patients_come_back_as_they_were_written(phantom, accelerator, untrained, tmp_path):
    names = {"image_id": [f"{n:04d}" for n in range(len(phantom))], "patient": phantom["patient"]}
    run = train(TINY, phantom.assign(**names), accelerator, runs=tmp_path)
    assert set(run.scores["image_id"]) <= set(names["image_id"])


@pytest.mark.slow
def test_broken_after_every_epoch_it_ends_with_the_same_scores(
    phased, phantom, accelerator, tmp_path, monkeypatch
):
    end_epoch, write, breaks = Progress.end_epoch, training.write, []

    def end_and_break(self, **figures):
        end_epoch(self, **figures)
        breaks.append(self.epoch)
        raise KeyboardInterrupt

    def break_first(*arguments):
        monkeypatch.setattr(training, "write", write)
        breaks.append("write")
        raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "end_epoch", end_and_break)
    monkeypatch.setattr(training, "write", break_first)
    run = None
    while run is None:
        try:
            run = train(PHASED, phantom, accelerator, runs=tmp_path)
        except KeyboardInterrupt:
            assert len(breaks) < 10
    assert breaks == [*phased.history["epoch"], "write"]
    same(run, phased)


KILLED = """
import json, os, signal, sys, time
import numpy as np
import pandas as pd
from pathlib import Path
from xraylib import devices
from xraylib.training import train as training
from xraylib.training.recipes import get_recipe

manifest, runs, draw = pd.read_pickle(sys.argv[1]), Path(sys.argv[2]), np.random.default_rng()
manifest.attrs = {"dataset": "phantom"}

def epochs():
    try:
        (file,) = runs.glob("*/checkpoint.npz")
        return len(json.loads(str(np.load(file)["state"]))["history"])
    except (ValueError, OSError):
        return 0

killed, status = [], signal.SIGKILL
while status == signal.SIGKILL:
    before, ended = epochs(), 0
    # Forked before Keras has begun anything: each child is a fresh process that need not import it again.
    child = os.fork()
    if child == 0:
        accelerator = devices.use("cpu", "tensorflow")
        training.train(get_recipe("tiny-cnn-28"), manifest, accelerator, budget="quick", runs=runs)
        os._exit(0)
    while len(killed) < 3 and not ended and (seen := epochs()) < before + 2:
        ended, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.002)
    if not ended and len(killed) < 3:
        killed.append(seen)
        time.sleep(draw.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
    if not ended:
        status = os.waitpid(child, 0)[1]
print(json.dumps({"killed": killed, "status": status}))
"""


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_scores(unbroken, phantom, tmp_path):
    phantom.to_pickle(tmp_path / "manifest.pkl")
    said = json.loads(run_python(KILLED, tmp_path / "manifest.pkl", tmp_path / "runs"))
    assert said["status"] == 0 and said["killed"] and min(said["killed"]) >= 2
    (folder,) = (tmp_path / "runs").iterdir()
    same(read(folder), unbroken)


def test_a_network_that_diverges_is_no_run(phantom, accelerator, tmp_path):
    wild = replace(TINY, phases=(Phase(2, 1e30),))
    with pytest.raises((XraylibError, FloatingPointError, ValueError), match=r"(?i)nan|not numbers"):
        train(wild, phantom, accelerator, runs=tmp_path)
    assert not list(tmp_path.glob("*/run.json"))


@pytest.mark.slow
def test_the_same_recipe_trains_under_jax_on_one_device_and_on_four(under_jax):
    one, four = under_jax["one"], under_jax["four"]
    assert "one device" in one["hardware"] and "shared by 4 devices" in four["hardware"]
    assert "jax" in one["versions"] and one["folder"] != four["folder"]
    assert one["image_id"] == four["image_id"]
    for figure in ("loss", "val_loss", "score"):
        np.testing.assert_allclose(four[figure], one[figure], atol=1e-4)
    assert one["loss"] != [one["loss"][0]] * 4, "it learns"


def test_jax_and_tensorflow_score_the_same_images(unbroken, under_jax):
    assert under_jax["one"]["image_id"] == unbroken.scores["image_id"].tolist()


# The last rows stand on another side of the experiment.
LABELS = np.array([0] * 10 + [1] * 30 + [0] * 5)
ROWS = np.arange(40)


@pytest.mark.parametrize("remedy", [None, *IMBALANCE_METHODS])
def test_a_remedy_balances_the_classes_it_is_given(remedy):
    rows, weights = balance(ROWS, LABELS, remedy, np.random.default_rng(0))
    sums = [weights[rows][LABELS[rows] == value].sum() for value in (0, 1)]
    counts = [(LABELS[rows] == value).sum() for value in (0, 1)]
    assert set(rows) <= set(ROWS), "rows of another side stay out"
    assert weights.dtype == np.float32 and len(weights) == len(LABELS)
    assert weights[rows].mean() == pytest.approx(1)
    assert sums[0] == pytest.approx(sums[1]) or remedy is None
    assert (
        counts
        == {None: [10, 30], "class_weight": [10, 30], "oversample": [30, 30], "undersample": [10, 10]}[remedy]
    )


def test_oversampling_keeps_every_image_of_the_larger_class_and_undersampling_doubles_none():
    over, _ = balance(ROWS, LABELS, "oversample", np.random.default_rng(0))
    assert set(over[LABELS[over] == 1]) == set(range(10, 40))
    under, _ = balance(ROWS, LABELS, "undersample", np.random.default_rng(0))
    assert len(set(under)) == len(under)
    again, _ = balance(ROWS, LABELS, "undersample", np.random.default_rng(1))
    assert set(under) != set(again), "another epoch draws others"


@pytest.mark.parametrize(
    ("images_", "size", "shape"), [(40, 16, (2, 16)), (9, 16, (1, 9)), (32, 16, (2, 16))]
)
def test_batches_have_one_length_and_no_image_twice(images_, size, shape):
    pixels = np.arange(40, dtype=np.uint8).reshape(40, 1, 1, 1)
    rows = np.random.default_rng(0).permutation(40)[:images_]
    batches = Batches(pixels, LABELS, rows, np.arange(45, dtype=np.float32), size)
    assert (len(batches), batches.size) == shape
    seen = []
    for number in range(len(batches)):
        x, y, weights = batches[number]
        assert x.shape == (batches.size, 1, 1, 1) and x.dtype == np.uint8
        np.testing.assert_array_equal(y, LABELS[x.ravel()])
        np.testing.assert_array_equal(weights, x.ravel())
        seen += x.ravel().tolist()
    assert seen == rows[: len(seen)].tolist()


def test_a_score_does_not_depend_on_the_batch_it_is_made_in(networks, phantom):
    pixels, rows = images.load_pixels(phantom, 32), np.array([5, 3, 17, 40, 2, 11, 30])
    whole = predict(networks["tiny_cnn"], "sigmoid", pixels, rows, 7)
    assert whole.dtype == np.float64 and ((whole >= 0) & (whole <= 1)).all()
    for size in (2, 3, 16):
        np.testing.assert_allclose(
            predict(networks["tiny_cnn"], "sigmoid", pixels, rows, size), whole, atol=1e-6
        )


def test_features_are_computed_once_and_in_order(phantom, accelerator, monkeypatch):
    first = features.pooled(phantom, "tiny_cnn", 32, Weights("random"), 0)
    assert first.dtype == np.float32 and first.shape == (60, 16)
    other = features.pooled(phantom, "tiny_cnn", 32, Weights("random"), 1)
    assert not np.allclose(first, other)
    frozen = features.extractor("tiny_cnn", 32, Weights("random"), 0)
    np.testing.assert_allclose(
        features.describe(frozen, images.load_pixels(phantom, 32)[7:9]), first[7:9], atol=1e-4
    )
    monkeypatch.setattr(features, "describe", None)
    np.testing.assert_array_equal(features.pooled(phantom, "tiny_cnn", 32, Weights("random"), 0), first)


def described(n=240, width=6):
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, n)
    table = draw.normal(size=(n, width)) * [1, 5, 0.1, 1, 1, 20] + 3 + 0.5 * labels[:, None]
    return table.astype(np.float32), labels, np.array(["train", "train", "val", "test"] * (n // 4))


def test_a_linear_head_is_scikit_learns_pipeline_with_platts_calibration():
    table, labels, split = described()
    head, history = heads.fit(table, labels, split)
    train_, val = split == "train", split == "val"
    strength = history["strength"][history["val_loss"].idxmin()]
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=3000))
    pipeline.fit(table[train_], labels[train_])
    platt = LogisticRegression(C=1e6).fit(pipeline.decision_function(table[val])[:, None], labels[val])
    expected = platt.predict_proba(pipeline.decision_function(table)[:, None])[:, 1]
    np.testing.assert_allclose(heads.predict(head, table), expected, atol=1e-6)
    assert history["strength"].tolist() == list(heads.STRENGTHS)
    by_strength = pipeline.predict_proba(table[val])[:, 1]
    assert history["val_loss"].min() == pytest.approx(log_loss(labels[val], by_strength))


def test_a_linear_head_does_not_look_at_the_test():
    table, labels, split = described()
    head, _ = heads.fit(table, labels, split)
    other = np.where((split == "test")[:, None], 0, table)
    again, _ = heads.fit(other, np.where(split == "test", 1 - labels, labels), split)
    for name, value in head.items():
        np.testing.assert_array_equal(again[name], value)


def test_a_linear_head_is_read_back_exactly(tmp_path):
    table, labels, split = described()
    head, _ = heads.fit(table, labels, split)
    heads.save(head, tmp_path / "head.json")
    np.testing.assert_array_equal(
        heads.predict(heads.load(tmp_path / "head.json"), table), heads.predict(head, table)
    )


@pytest.mark.filterwarnings("error")
def test_a_very_sure_linear_head_still_gives_a_probability():
    head = {"coefficients": np.array([1.0]), "intercept": np.array(0.0)}
    assert heads.predict(head, np.array([[-800.0], [800.0]])).tolist() == [0, 1]


def test_a_linear_head_trains_as_any_recipe(phantom, accelerator, runs, monkeypatch):
    run = train(FROZEN, phantom, accelerator, runs=runs)
    check_scores(run.scores)
    assert run.history["strength"].tolist() == list(heads.STRENGTHS)
    assert json.loads((run.folder / "head.json").read_text()).keys() == {"coefficients", "intercept"}
    monkeypatch.setattr(heads, "fit", None)
    pd.testing.assert_frame_equal(train(FROZEN, phantom, accelerator, runs=runs).scores, run.scores)


def test_random_labels_teach_nothing_and_true_ones_something(accelerator, tmp_path):
    films = catalog.load(replace(catalog.DATASETS["phantom"], phantom=PhantomSettings(images=300, size=64)))
    people = films["patient"].unique()
    coin = dict(zip(people, np.random.default_rng(0).integers(0, 2, len(people)), strict=True))
    tossed = films.assign(label=films["patient"].map(coin), kind="unknown")
    true, random = (
        evaluate(train(TINY, manifest, accelerator, budget="quick", runs=tmp_path).scores).loc["auc"]
        for manifest in (films, tossed)
    )
    assert random["low"] <= 0.5 <= random["high"]
    assert true["low"] > 0.5 and random["high"] - random["low"] < 0.4
