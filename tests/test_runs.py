import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from builders import scores
from hypothesis import given, settings
from hypothesis import strategies as st

from xraylib.errors import InvalidDataError, OperationFailedError
from xraylib.training import runs
from xraylib.training.recipes import get_recipe
from xraylib.training.thresholds import thresholds

pytestmark = pytest.mark.usefixtures("reports_here")

TINY = get_recipe("tiny-cnn-28")
OLD_LINE = "CPU AMD EPYC, 1 cores · tensorflow · {} · one device"


@pytest.fixture
def write(tmp_path):
    """A function that writes a made-up run and returns it."""

    def write(
        recipe="tiny-cnn-28",
        protocol="strict",
        seed=0,
        dataset="phantom",
        rule="youden",
        **more,
    ):
        known = TINY if recipe == "unknown" else get_recipe(recipe)
        content = {
            "dataset": dataset,
            "recipe": recipe,
            "protocol": protocol,
            "seed": seed,
            "choices": known.settings(),
            "init": "random",
            "train_seconds": 1.23,
        }
        table = scores(n=30, seeds=(seed,), sample=seed).assign(recipe=recipe, protocol=protocol)
        model = tmp_path / runs.MODEL_FILES[known.fit]
        model.write_text("{}")
        history = pd.DataFrame({"epoch": [1], "val_loss": [1 / 3]})
        columns = list(runs.SCORE_COLUMNS)
        return runs.write_run(content | more, history, table[columns], rule, model)

    return write


def test_a_run_is_one_folder_and_is_read_back_as_written(write, reports_here):
    run = write()
    assert run.folder == reports_here / "phantom/runs/tiny-cnn-28/strict-0"
    names = {file.name for file in run.folder.iterdir()}
    assert names == {"run.json", "history.csv", "scores.csv", "model.weights.h5"}
    assert runs.get_run("phantom", "tiny-cnn-28") == run
    assert runs.read_run(run.folder) == run
    assert run.history["val_loss"].tolist() == [0.3333333]
    assert run.settings["train_seconds"] == 1.2
    assert runs.get_run("phantom", "tiny-cnn-28", seed=1) is None


@pytest.mark.parametrize("rule", ["youden", "sensitivity 0.95", 0.5])
def test_the_threshold_is_frozen_as_its_scores_on_disk_give_it(write, rule):
    run = write(rule=rule)
    assert run.threshold == thresholds(run.scores, rule)[0]
    assert json.loads((run.folder / "run.json").read_text())["threshold"] == run.threshold


def test_runs_are_listed_in_the_order_of_the_recipes(write):
    for recipe in ("unknown", "tiny-cnn-28", "scratch-cnn"):
        for protocol, seed in (("strict", 10), ("strict", 2), ("published", 0)):
            write(recipe, protocol, seed)
    write("kerasio-tpu", dataset="another")
    order = [(run.recipe, run.protocol, run.seed) for run in runs.list_runs("phantom")]
    each = [("published", 0), ("strict", 2), ("strict", 10)]
    expected = [
        (recipe, *rest) for recipe in ("scratch-cnn", "tiny-cnn-28", "unknown") for rest in each
    ]
    assert order == expected
    assert [run.seed for run in runs.list_runs("phantom", "unknown", "strict")] == [2, 10]
    assert runs.list_runs("kermany") == []


# Each differs from a full run in float32 under TensorFlow from the recipe's own initial weights.
OTHERS = {
    "strict-0-quick": {"budget": "quick"},
    "strict-0-mixed_bfloat16": {"precision": "mixed_bfloat16"},
    "strict-0-jax": {"backend": "jax"},
    "strict-0-init-file-0123456789ab": {"init": "file 0123456789ab"},
    "strict-0-quick-jax": {"budget": "quick", "backend": "jax"},
}


def test_runs_that_differ_in_what_decides_their_numbers_lie_beside_each_other(write):
    usual = write()
    written = {write(**changes).folder.name: changes for changes in OTHERS.values()}
    assert written == OTHERS
    assert runs.read_run(usual.folder) == usual
    every = runs.all_runs("phantom")
    assert len({runs.identity(run.settings) for run in every}) == 1 + len(OTHERS)
    assert runs.list_runs("phantom") == [usual]
    for changes in OTHERS.values():
        (run,) = runs.list_runs("phantom", **changes)
        assert changes.items() <= run.settings.items()
        assert runs.get_run("phantom", "tiny-cnn-28", **changes) == run


def test_a_list_never_mixes_identities(write):
    for seed in (0, 1, 2):
        write(seed=seed, budget="quick")
    assert [run.settings["budget"] for run in runs.list_runs("phantom")] == ["quick"] * 3
    write(seed=1)
    assert [run.seed for run in runs.list_runs("phantom")] == [1], "full comes before quick"
    assert [run.seed for run in runs.list_runs("phantom", budget="quick")] == [0, 1, 2]
    write(seed=0, training_version=2)
    assert [run.seed for run in runs.list_runs("phantom")] == [0], "new code comes before old"
    write(seed=3, training_version=2, init="file 0123456789ab")
    assert [run.seed for run in runs.list_runs("phantom")] == [0], "its own initial weights"


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_a_run_without_budget_backend_and_precision_is_full_and_its_hardware_names_them(
    write, precision
):
    old = write(hardware=OLD_LINE.format(precision))
    expected = runs.Identity(
        recipe="tiny-cnn-28",
        protocol="strict",
        budget="full",
        backend="tensorflow",
        precision=precision,
        init="random",
        training_version=1,
    )
    assert runs.identity(old.settings) == expected


def test_an_old_run_in_the_plain_folder_is_replaced_by_its_own_identity_alone(write):
    written = write(hardware=OLD_LINE.format("mixed_bfloat16")).folder
    old = runs.read_run(written.rename(written.with_name("strict-0")))
    other = write(precision="float32")
    assert other.folder.name == "strict-0-full-float32-tensorflow-init-random"
    assert runs.read_run(old.folder) == old
    again = write(precision="mixed_bfloat16", training_version=2)
    assert again.folder == old.folder
    assert runs.read_run(other.folder) == other


def test_a_run_that_replaces_another_replaces_all_of_it_or_nothing(write, monkeypatch):
    old = write()
    (old.folder / "stale.txt").write_text("of the old run")
    before = old.scores
    with monkeypatch.context() as patch:
        patch.setattr(runs, "file_sha256", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write(seed=0, rule=0.9)
    again = runs.get_run("phantom", "tiny-cnn-28")
    assert again.threshold == old.threshold
    pd.testing.assert_frame_equal(again.scores, before)
    new = write(rule=0.9)
    assert new.threshold == 0.9
    assert not (new.folder / "stale.txt").exists()
    assert [path.name for path in new.folder.parent.iterdir()] == ["strict-0"]


def test_a_missing_model_and_a_damaged_one_are_different_things(write):
    run = write()
    assert run.has_model
    run.model_file.write_text("")
    assert run.model_state == "damaged"
    with pytest.raises(InvalidDataError, match=r"strict-0.model\.weights\.h5 is not .*Fix: "):
        assert run.has_model
    run.model_file.unlink()
    assert run.model_state == "missing"
    assert not run.has_model


DAMAGES = {
    "empty": "",
    "cut": '{"recipe": "tiny-cnn-28", "protocol',
    "no run": "{}",
    "no object": "[1, 2]",
    "nested": 100_000 * "[",
    "wrong types": '{"recipe": 1, "protocol": "strict", "seed": "0", "choices": 3, "threshold": 1}',
}


@pytest.mark.parametrize("content", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_run_is_named(write, content):
    run = write()
    (run.folder / "run.json").write_text(content)
    with pytest.raises(InvalidDataError, match=r"strict-0.run\.json is no run.*Fix: "):
        runs.list_runs("phantom")


@pytest.mark.parametrize(
    "change",
    [{"threshold": 0.01}, {"init": "imagenet"}, {"model_sha256": "ab"}, {"another": 1}],
)
def test_an_edited_run_is_refused_by_name(write, change):
    file = write().folder / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InvalidDataError, match=r"strict-0.run\.json .*was changed.*Fix: "):
        runs.list_runs("phantom")


@pytest.mark.parametrize("key", ["size", "fit"])
def test_a_choice_is_checked_where_it_is_read(write, key):
    file = write().folder / "run.json"
    content = json.loads(file.read_text())
    del content["checksum"]
    content[key] = content["choices"].pop(key)
    file.write_text(json.dumps(content))
    with pytest.raises(InvalidDataError, match=rf"no usable {key}.*Fix: "):
        runs.read_run(file.parent)
    content["choices"][key] = 10**6
    file.write_text(json.dumps(content))
    with pytest.raises(InvalidDataError, match=rf"no usable .*{key}.*Fix: "):
        runs.read_run(file.parent)


def test_a_run_without_a_checksum_is_of_an_older_version(write):
    file = write().folder / "run.json"
    content = json.loads(file.read_text())
    del content["checksum"]
    file.write_text(json.dumps(content | {"threshold": 0.25}))
    assert runs.read_run(file.parent).threshold == 0.25


def test_a_run_matches_its_recipe_budget_and_initial_weights(write, tmp_path):
    quick = TINY.under("strict", "quick").settings()
    full_run = write(budget="full")
    quick_run = write(budget="quick", choices=quick)
    for run, budget, other in ((full_run, "full", "quick"), (quick_run, "quick", "full")):
        assert runs.matches(run, TINY, budget)
        assert runs.matches(run, TINY, budget, "random")
        assert not runs.matches(run, TINY, other)
        assert not runs.matches(run, TINY, budget, "imagenet")
        assert not runs.matches(run, replace(TINY, size=32), budget)
    file = tmp_path / "mine.weights.h5"
    file.write_bytes(b"weights")
    own = write(init=runs.weights_label(file))
    assert runs.init_matches(own, str(file))
    assert not runs.init_matches(full_run, str(file))
    file.write_bytes(b"other weights")
    assert not runs.init_matches(own, str(file))
    imagenet = write(init="imagenet (recovered MobileNetV2)")
    assert runs.init_matches(imagenet, "imagenet")
    assert not runs.init_matches(imagenet, "random")


def table(values=(0.5,), **columns):
    rows = scores(n=max(len(values), 2)).iloc[: len(values)].drop(columns="threshold")
    return rows.assign(score=list(values), **columns)[list(runs.SCORE_COLUMNS)]


NAMES = st.text(st.characters(categories=["L", "N", "P", "Zs"]), min_size=1, max_size=12)
ODD = ["0012", "1e5", "NA", "nan", "None", "", "true", "1_000", "0x10"]
ROWS = st.tuples(st.floats(0, 1, width=32), NAMES | st.sampled_from(ODD))


@settings(max_examples=40, deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=9))
def test_every_float32_and_every_name_comes_back(tmp_path_factory, rows):
    file = tmp_path_factory.getbasetemp() / "scores.csv"
    values, names = zip(*rows, strict=True)
    runs.write_scores(table(values, image_id=names, patient=names), file)
    back = runs.read_scores(file)
    assert tuple(back.columns) == runs.SCORE_COLUMNS
    assert back["image_id"].tolist() == back["patient"].tolist() == list(names)
    np.testing.assert_array_equal(back["score"].to_numpy(np.float32), np.array(values, np.float32))


BAD_CELLS = {"seed": ("0.5", ""), "label": ("0.7", "ill"), "score": ("high", "nan", "", "-inf")}


@pytest.mark.parametrize(
    ("column", "cell"), [(c, cell) for c, cells in BAD_CELLS.items() for cell in cells]
)
def test_a_cell_that_is_no_number_is_named_with_its_image_and_line(tmp_path, column, cell):
    bad = table([0.5, 0.6, 0.7], image_id=["a", "b", "c"]).reset_index(drop=True).astype(str)
    bad.loc[1, column] = cell
    bad.to_csv(tmp_path / "scores.csv", index=False)
    expected = re.escape(f"{cell!r} as {column}")
    with pytest.raises(InvalidDataError, match=f"scores.csv: b has .*{expected}.*1 rows.*line 3"):
        runs.read_scores(tmp_path / "scores.csv")


@pytest.mark.parametrize("content", [b"a,b\n1,2\n", bytes(range(256)), b""])
def test_what_is_no_scores_table_is_refused_by_name(tmp_path, content):
    (tmp_path / "scores.csv").write_bytes(content)
    with pytest.raises(InvalidDataError, match=r"scores\.csv is not a scores table.*Fix: "):
        runs.read_scores(tmp_path / "scores.csv")


def test_a_write_that_fails_leaves_the_old_table(tmp_path):
    file = tmp_path / "scores.csv"
    runs.write_scores(table([0.25]), file)
    with pytest.raises(OperationFailedError, match="Fix: "):
        runs.write_scores(table([0.75]), file / "below-a-file.csv")
    assert runs.read_scores(file)["score"].tolist() == [0.25]
