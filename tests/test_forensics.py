"""The functions of notebook 09, taken from its cells, on made-up tables."""

from functools import partial

import builders
import nbformat
import numpy as np
import pandas as pd
import pytest
from notebook_code import definitions
from sklearn.metrics import roc_auc_score

from xraylib.datasets import audit, images, splits
from xraylib.evaluation import metrics, views
from xraylib.paths import ROOT

STEM = "09_kermany_forensics"
FILE = ROOT / "notebooks" / f"{STEM}.ipynb"


@pytest.fixture(scope="module")
def notebook():
    return definitions(STEM)


def test_every_cell_has_run_and_names_no_machine():
    code = [c for c in nbformat.read(FILE, as_version=4).cells if c.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = str([cell.outputs for cell in code])
    assert "Traceback" not in outputs and "/home/" not in outputs


def test_a_folder_that_is_a_block_of_numbers_has_no_others_inside(notebook):
    names = ["IM-0001-0001", "IM-0003-0001", "IM-0115-0001", "NORMAL2-IM-0007-01"]
    names += ["person80_virus_1", "person82_virus_9", "person81_virus_2"]
    split = ["test", "test", "train", "test", "test", "test", "train"]
    table = pd.DataFrame({"image_id": names, "patient": names, "split": split})
    found = notebook.numbering(table).set_index(["series", "split"])
    columns = ["images", "first", "last", "inside"]
    assert found.loc[("IM", "test"), columns].tolist() == [2, 1, 3, 0]
    assert found.loc[("NORMAL2-IM", "test"), "first"] == 7
    # One of the training images of this series lies among those of the test, not the other way.
    assert found.loc[("virus", "test"), columns].tolist() == [2, 80, 82, 1]
    assert found.loc[("virus", "train"), "inside"] == 0
    # Names without a number, as a user's folder may have, are left out.
    assert notebook.numbering(table.assign(image_id="alice", patient="alice")).empty


def test_images_with_a_text_in_their_corner_are_found_from_one_of_them(notebook):
    rng = np.random.default_rng(0)
    pixels = rng.normal(90, 12, (60, 224, 224, 1)).clip(0, 255).astype(np.uint8)
    text = rng.integers(0, 2, notebook.TEXT, dtype=np.uint8) * 150
    marked = list(range(3, 60, 5))
    for row in marked:  # at several places, and on another ground
        y, x = (212, 207) if row == 3 else rng.integers((200, 190), (213, 208))
        ground = rng.normal(60, 20, notebook.TEXT).clip(0, 100)
        pixels[row, y : y + 11, x : x + 17, 0] = text + ground
    table = pd.DataFrame({"image_id": [f"image{i}" for i in range(60)]})
    table = table.assign(split="train", label=1)
    found = notebook.overlay(table, pixels, "image3")
    assert found["image_id"].tolist() == [f"image{i}" for i in marked]
    assert found["correlation"].between(0.6, 1.0 + 1e-5).all()


def test_the_block_without_the_text_is_compared_with_the_others(notebook):
    block = [f"NORMAL2-IM-{number:04d}-0001" for number in range(195, 205)]
    others = [f"IM-{number:04d}-0001" for number in range(1, 31)]
    names = [*block, *others, "NORMAL2-IM-0268-0001"]
    score = np.array([0.9] * 8 + [0.1] * 2 + [0.1] * 30 + [0.1])
    table = pd.DataFrame({"image_id": names, "patient": names, "score": score})
    table = table.assign(recipe="r", seed=0, split="test", label=0, threshold=0.5)
    noise = table.assign(score=0.9)
    both = pd.concat([table, noise.assign(label=1), noise.assign(split="val")])
    found = notebook.block_errors(both, block[:3]).set_index("group")
    # The first three have the text, and 5 of the 7 others of the block are missed.
    assert found["images"].to_dict() == {"elsewhere": 31, "same block": 7, "with the text": 3}
    assert found["right"].tolist() == pytest.approx([1, 2 / 7, 0])
    assert found["p"].min() < 1e-4


def test_text_and_rendering_are_swapped(notebook, small_phantom):
    pixels = np.array(images.load_pixels(small_phantom, 224))
    train = small_phantom[(small_phantom["split"] == "train") & (small_phantom["label"] == 1)]
    marked = train.index[:5]
    patch = np.random.default_rng(0).integers(0, 255, (12, 17, 1), np.uint8)
    pixels[marked[0], 212:, 207:] = patch
    made = notebook.device_views(small_phantom, pixels, small_phantom["image_id"][marked])
    some = np.random.default_rng(1).integers(0, 256, (4, 224, 224, 1), np.uint8)
    rendered = made["rendered as images with the text"](some)
    levels = np.linspace(0, 1, 257)
    wanted = np.quantile(pixels[marked], levels, axis=(1, 2, 3)).mean(axis=1)
    reached = np.quantile(rendered, levels, axis=(1, 2, 3)).mean(axis=1)
    assert np.abs(reached - wanted)[5:-5].max() < 4
    # Grey levels keep their order.
    order = np.argsort(some[0].ravel(), kind="stable")
    assert (np.diff(rendered[0].ravel()[order].astype(int)) >= 0).all()
    normal = made["rendered as training normals"](some)
    assert (normal != rendered).any()
    text = made["text in the corner"](some)
    np.testing.assert_array_equal(text[:, 212:, 207:], np.stack([patch] * 4))
    np.testing.assert_array_equal(text[:, :212], some[:, :212])
    black = made["corner black"](some)
    assert not black[:, 208:, 200:].any() and (black[:, :208] == some[:, :208]).all()


def test_the_response_to_a_view_is_counted_by_split_class_and_text(notebook):
    scores = builders.scores(n=30, seeds=(0, 1, 2), strength=2)
    table = scores.rename(columns={"score": "none 0"}).assign(model="ab")
    table = table[[*views.ABOUT, "none 0"]]
    table["corner black"] = np.where(table["label"] == 1, 0.9, 0.1)
    normal = scores.loc[(scores["split"] == "test") & (scores["label"] == 0), "image_id"].unique()
    marked = normal[:3]
    at = table["image_id"].isin(marked) & (table["seed"] == 0)
    table.loc[at, "corner black"] = 0.7
    found = notebook.device_response(table, scores, marked).set_index(["group", "view"])
    row = found.loc[("test, normal, with the text", "corner black")]
    assert (row["runs"], row["images"]) == (3, 3)
    assert row["right"] == pytest.approx(2 / 3)
    assert row["right_low"] <= row["right"] <= row["right_high"]
    row = found.loc[("test, normal, without the text", "corner black")]
    assert (row["right"], row["images"]) == (1, len(normal) - 3)
    unchanged = scores[(scores["split"] == "val") & (scores["label"] == 1)]
    row = found.loc[("val, pneumonia, without the text", "unchanged")]
    assert row["right"] == pytest.approx((unchanged["score"] >= 0.5).mean())


@pytest.mark.parametrize("same", [True, False])
def test_numbers_that_are_one_child_are_recognised_by_their_images(notebook, same):
    rng = np.random.default_rng(0)
    rows = []
    features = []
    for number in range(80):
        child = {kind: rng.normal(size=40) for kind in ("bacteria", "virus")}
        child["virus"] = child["bacteria"] if same else child["virus"]
        for kind, copies in (("bacteria", 2), ("virus", 1)):
            for copy in range(copies):
                rows.append({"image_id": f"person{number}_{kind}_{copy}", "kind": kind})
                features.append(child[kind] + rng.normal(size=40) + (kind == "virus"))
    table = pd.DataFrame(rows).assign(sha256=range(len(rows)))
    # A byte-identical copy is no second image of its child.
    copy = table.iloc[[0]].assign(image_id="person0_virus_9", kind="virus")
    table = pd.concat([table, copy], ignore_index=True)
    table["patient"] = table["image_id"]
    features = np.vstack([*features, features[0]])
    found = notebook.identity(table, features).set_index("pairing")
    assert found.loc["bacteria: two images of one number", "low"] > 0.8
    assert found.loc["bacteria and virus: one number", "pairs"] == 80
    row = found.loc["bacteria and virus: one number"]
    assert row["low"] > 0.8 if same else row["low"] < 0.5 < row["high"]


def test_aspect_ratios_are_read_off_files_that_differ_in_it(notebook, small_phantom):
    table = notebook.aspect_ratios(small_phantom, "phantom", None)
    mean = table.groupby(["split", "label"])["aspect"].mean()
    assert mean["train", 0] < mean["test", 0] < mean["test", 1]
    assert (table["error"] == 0).all() and table["known"].all()


def test_images_that_train_the_regression_are_estimated_out_of_fold(notebook):
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(60), 2)
    # Two images of a patient share features that say nothing of the aspect, and their aspect.
    own = np.repeat(rng.normal(size=(60, 300)), 2, axis=0)
    target = np.repeat(rng.normal(0.3, 0.1, 60), 2)
    features = np.vstack([own, rng.normal(size=(20, 300))])
    known = np.arange(140) < 120
    aspects, error = notebook.estimated_aspects(features, target, known, patients)
    # Within a fold, or with the patient's other image in training, they would be known exactly.
    assert np.corrcoef(aspects[known], np.exp(target))[0, 1] < 0.5
    assert error == pytest.approx(np.sqrt(np.mean((aspects[known] - np.exp(target)) ** 2)))
    # Features that determine the aspect find it, for the other images as well.
    truth = rng.normal(0.3, 0.1, 140)
    clear = np.column_stack([truth, rng.normal(size=140)])
    aspects, error = notebook.estimated_aspects(clear, truth[:120], known, patients)
    np.testing.assert_allclose(aspects, np.exp(truth), rtol=0.05)
    assert error < 0.03


def test_without_a_list_of_originals_the_fix_is_named(notebook, small_phantom, monkeypatch):
    size = pd.DataFrame({"width": 224, "height": 224}, index=small_phantom.index)
    monkeypatch.setattr(audit, "file_properties", lambda table: size)
    with pytest.raises(ValueError, match="Fix: use the original files"):
        notebook.aspect_ratios(small_phantom, "phantom", None)


def test_originals_teach_the_estimate(notebook, small_phantom, monkeypatch):
    size = pd.DataFrame({"width": 224, "height": 224}, index=small_phantom.index)
    listed = small_phantom[small_phantom["split"] == "train"][::-1].reset_index(drop=True)
    rng = np.random.default_rng(0)
    width = pd.Series(rng.integers(900, 1600, len(small_phantom)), index=small_phantom["image_id"])
    listed = listed.assign(width=width[listed["image_id"]].to_numpy(), height=1000)
    features = np.column_stack([np.log(width / 1000), rng.normal(size=len(width))])
    monkeypatch.setattr(audit, "file_properties", lambda table: size)
    monkeypatch.setattr(audit, "originals", lambda dataset: listed)
    table = notebook.aspect_ratios(small_phantom, "phantom", lambda: features)
    assert table["known"].tolist() == (small_phantom["split"] == "train").tolist()
    np.testing.assert_allclose(table["aspect"], width.to_numpy() / 1000, rtol=0.1)
    assert table["error"].nunique() == 1 and table["error"].iloc[0] > 0


def test_recognised_by_aspect_counts_normals_only(notebook):
    scores = builders.images([0.1, 0.9, 0.1, 0.1], [0.9, 0.9])
    aspects = pd.DataFrame({"image_id": scores["image_id"], "aspect": [1.0, 1.3, 1.3, 1.6, 1, 1]})
    found = notebook.recognised_by_aspect(scores, aspects).set_index("aspect_ratio")
    assert found["recognised"].to_dict() == {
        "below 1.15": 1.0,
        "1.3 to 1.45": 0.5,
        "1.45 or more": 1.0,
    }
    assert found["images"].sum() == 4


def test_a_random_split_is_divided_by_the_official_folder(notebook):
    strict = builders.scores(n=60)
    rng = np.random.default_rng(0)
    parts = [strict]
    for seed in (0, 1):
        hard = (strict["split"] == "test") & (strict["label"] == 0)
        right = rng.random(len(strict)) < np.where(hard, 0.5, 1)
        score = np.where(right == (strict["label"] == 1), 0.9, 0.1)
        random = strict.assign(protocol="random-per-image", split="test", seed=seed, score=score)
        parts.append(random)
    scores = pd.concat(parts, ignore_index=True)
    found = notebook.by_folder(scores).set_index("subgroup")
    hard = scores[scores["protocol"] == "random-per-image"]
    hard = hard[hard["image_id"].str.startswith("test") & (hard["label"] == 0)]
    row = found.loc["normal, from the test folder"]
    assert row["images"] == 20 and row["right"] == pytest.approx((hard["score"] < 0.5).mean())
    assert row["right_low"] < row["right"] < row["right_high"] < 1
    assert (found["right"].drop("normal, from the test folder") == 1).all()


def test_leaked_patients_are_compared_with_the_others_of_their_class(notebook, phantom):
    official_split = phantom.set_index("image_id")["split"]
    for seed in range(50):  # a split with pneumonias of both kinds, from the training folder
        assigned = splits.assign(phantom, "random-per-image", seed)
        trained = set(assigned.loc[assigned["split"] == "train", "patient"])
        test = assigned[assigned["split"] == "test"]
        test = test.assign(recipe="r", protocol="random-per-image", seed=seed, threshold=0.5)
        known = test["patient"].isin(trained)
        official = test["image_id"].map(official_split) == "test"
        sick = ~official & (test["label"] == 1)
        if (sick & known).sum() and (sick & ~known).sum() > 1:
            break
    # Images of the official test folder are all wrong: they must not count.
    answer = test["label"].where(known | (np.arange(len(test)) % 2 == 0), 1 - test["label"])
    answer = answer.where(~official, 1 - test["label"])
    scored = test.assign(score=answer.astype(float))
    split_by = partial(splits.assign, phantom)
    found = notebook.leaked(scored, phantom, split_by).set_index("diagnosis")
    assert found["leaked"].sum() == (known & ~official).sum()
    assert found["unleaked"].sum() == (~known & ~official).sum()
    row = found.loc["pneumonia"]
    share = (answer == test["label"])[~known & ~official & (test["label"] == 1)].mean()
    assert row["right_leaked"] == 1 and row["right_unleaked"] == pytest.approx(share)
    assert row["difference"] == pytest.approx(1 - share)
    assert row["low"] <= row["difference"] <= row["high"]
    with pytest.raises(ValueError, match="not the images"):
        notebook.leaked(scored, phantom, partial(splits.assign, phantom.iloc[10:]))


def test_auc_within_strata_is_their_mean_weighted_by_images(notebook):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 90)
    values = rng.normal(size=90) + labels
    stratum = np.repeat([0, 1, 2], [50, 30, 10])
    labels[stratum == 2] = 1  # one class only: left out
    aucs = [roc_auc_score(labels[stratum == each], values[stratum == each]) for each in (0, 1)]
    expected = (50 * aucs[0] + 30 * aucs[1]) / 80
    assert notebook.within(labels, values, stratum) == pytest.approx(expected)


def test_acquisition_holds_brightness_constant_within_strata(notebook, monkeypatch):
    rng = np.random.default_rng(0)
    n = 200
    labels = np.arange(n) % 2
    brightness = rng.integers(40, 200, n)
    pixels = np.repeat(brightness, 64).reshape(n, 8, 8, 1).astype(np.uint8)
    pixels[:, ::2] += rng.integers(1, 30, n).astype(np.uint8)[:, None, None, None]
    names = [f"p{i}" for i in range(n)]
    table = pd.DataFrame({"image_id": names, "patient": names, "label": labels})
    size = pd.DataFrame({"bytes": rng.permutation(n)})
    monkeypatch.setattr(audit, "file_properties", lambda images: size)
    # A network that reads brightness alone, in another order than the images.
    read = pd.DataFrame({"recipe": "reader", "image_id": names, "score": brightness / 255})
    found = notebook.acquisition(read[::-1], table, pixels).set_index("of")
    flat = pixels.reshape(n, -1)
    expected = metrics.auc_interval(labels, flat.mean(axis=1), table["patient"].to_numpy())
    assert found.loc["mean intensity", ["auc", "low", "high"]].tolist() == pytest.approx(expected)
    expected = metrics.auc_interval(labels, brightness / 255, table["patient"].to_numpy())
    assert found.loc["reader", "auc"] == pytest.approx(expected[0])
    strata = pd.qcut(flat.mean(axis=1), 5, labels=False)
    within = [
        roc_auc_score(labels[strata == each], brightness[strata == each]) for each in range(5)
    ]
    sizes = np.bincount(strata)
    inside = np.average(within, weights=sizes)
    assert found.loc["reader", "auc_within_intensity"] == pytest.approx(inside)
    assert found.loc["reader", "auc_within_size"] != found.loc["reader", "auc_within_intensity"]
    spread = pd.Series(flat.std(axis=1)).corr(pd.Series(brightness), method="spearman")
    assert found.loc["reader", "correlation"] == pytest.approx(spread)
    assert (found["n"] == n).all()
