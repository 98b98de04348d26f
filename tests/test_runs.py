import json
import re

import numpy as np
import pandas as pd
import pytest
from builders import scores
from hypothesis import given, settings
from hypothesis import strategies as st

from xraylib.errors import InvalidDataError, NotFoundError, OperationFailedError
from xraylib.training import runs
from xraylib.training.predictor import load_predictor
from xraylib.training.recipes import get_recipe
from xraylib.training.thresholds import thresholds

pytestmark = pytest.mark.usefixtures("reports_here")


@pytest.fixture
def write(tmp_path):
    """A function that writes a made-up run and returns it."""

    def write(
        recipe="tiny-cnn-28", protocol="strict", seed=0, dataset="phantom", rule="youden", **more
    ):
        known = get_recipe("tiny-cnn-28") if recipe == "unknown" else get_recipe(recipe)
        settings = {"dataset": dataset, "recipe": recipe, "protocol": protocol, "seed": seed}
        settings |= {
            "choices": runs.plain(known.settings()),
            "init": "random",
            "train_seconds": 1.23,
        } | more
        table = scores(n=30, seeds=(seed,), sample=seed).assign(recipe=recipe, protocol=protocol)
        model = tmp_path / runs.MODEL_FILES[known.fit]
        model.write_text("{}")
        history = pd.DataFrame({"epoch": [1], "val_loss": [1 / 3]})
        return runs.write_run(settings, history, table[list(runs.SCORE_COLUMNS)], rule, model)

    return write


def test_a_run_is_one_folder_and_is_read_back_as_written(write, reports_here):
    run = write()
    assert run.folder == reports_here / "phantom/runs/tiny-cnn-28/strict-0"
    assert {file.name for file in run.folder.iterdir()} == (
        {"run.json", "history.csv", "scores.csv", "model.weights.h5"}
    )
    assert runs.get_run("phantom", "tiny-cnn-28") == run == runs.read_run(run.folder)
    assert run.history["val_loss"].tolist() == [0.3333333] and run.settings["train_seconds"] == 1.2
    assert runs.get_run("phantom", "tiny-cnn-28", seed=1) is None


@pytest.mark.parametrize("rule", ["youden", "sensitivity 0.95", 0.5])
def test_the_threshold_is_frozen_as_its_scores_on_disk_give_it(write, rule):
    run = write(rule=rule)
    assert run.threshold == thresholds(run.scores, rule)[0]
    assert json.loads((run.folder / "run.json").read_text())["threshold"] == run.threshold


def test_runs_are_found_in_the_order_of_the_recipes(write):
    for recipe in ("unknown", "tiny-cnn-28", "scratch-cnn"):
        for protocol, seed in (("strict", 10), ("strict", 2), ("published", 0)):
            write(recipe, protocol, seed)
    write("kerasio-tpu", dataset="another")
    order = [(run.recipe, run.protocol, run.seed) for run in runs.list_runs("phantom")]
    each = [("published", 0), ("strict", 2), ("strict", 10)]
    assert order == [(r, *rest) for r in ("scratch-cnn", "tiny-cnn-28", "unknown") for rest in each]
    assert [run.seed for run in runs.list_runs("phantom", "unknown", "strict")] == [2, 10]
    assert runs.list_runs("kermany") == []


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
    assert new.threshold == 0.9 and not (new.folder / "stale.txt").exists()
    assert [path.name for path in new.folder.parent.iterdir()] == ["strict-0"]


def test_a_model_is_there_only_as_it_was_written(write):
    run = write()
    assert run.has_model
    run.model_file.write_text("tampered")
    assert not run.has_model
    with pytest.raises(
        InvalidDataError, match=r"weights\.h5 is missing or is not what the run wrote\. Fix: "
    ):
        load_predictor(run)
    run.model_file.unlink()
    assert not run.has_model


def test_a_single_feature_baseline_predicts_nothing(write):
    with pytest.raises(NotFoundError, match=r"mean-intensity sees no image\. Fix: "):
        load_predictor(write("mean-intensity"))


def test_a_damaged_run_is_named(write):
    run = write()
    (run.folder / "run.json").write_text("{}")
    with pytest.raises(InvalidDataError, match=r"run\.json is no run.*Fix: "):
        runs.list_runs("phantom")


def table(values=(0.5,), **columns):
    made = scores(n=max(len(values), 2)).iloc[: len(values)].drop(columns="threshold")
    return made.assign(score=list(values), **columns)[list(runs.SCORE_COLUMNS)]


NAMES = st.text(st.characters(categories=["L", "N", "P", "Zs"]), min_size=1, max_size=12)
ODD = ["0012", "1e5", "NA", "nan", "None", "", "true", "1_000", "0x10"]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 1, width=32), NAMES | st.sampled_from(ODD)), min_size=1, max_size=9
    )
)
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
    said = (
        f"scores.csv: b has {cell!r} as {column}, which is no number (1 rows, the first in line 3)."
    )
    with pytest.raises(InvalidDataError, match=re.escape(said)):
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
