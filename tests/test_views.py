from types import SimpleNamespace

import builders
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn import metrics as sk

from xraylib.datasets import catalog, images, manifest, splits
from xraylib.datasets import phantom as phantoms
from xraylib.datasets.corruptions import CORRUPTIONS, corrupt
from xraylib.datasets.framing import SHARES
from xraylib.errors import InvalidDataError, NotFoundError
from xraylib.evaluation import external, forensics, metrics, ood, views
from xraylib.evaluation.resampling import bootstrap_weights, weighted_ranking
from xraylib.evaluation.scores import load_external
from xraylib.training import networks, probe, runs

FEW = ["none 0", *(f"marker {step}" for step in range(1, 6)), "inversion 1"]


def answer(pixels, seed):
    """A model that sees brightness in the upper half of the image."""
    size = pixels.shape[1]
    return 0.1 + 0.8 * pixels[:, : size // 2].mean(axis=(1, 2, 3)) / 255 + seed / 100


@pytest.fixture
def two_runs(small_phantom, reports_here, monkeypatch):
    """Two runs of `tiny-cnn-28` on the phantom whose model is `answer`."""
    pixels, parts = images.load_pixels(small_phantom, 28), []
    for seed in (0, 1):
        table = splits.assign(small_phantom, "strict", seed)
        table = table.assign(recipe="tiny-cnn-28", protocol="strict", seed=seed)
        table["score"] = answer(pixels[table.index], seed)
        table = table[table["split"] != "train"][builders.COLUMNS]
        choices = {"size": 28, "network": "tiny_cnn", "split_strategy": "patient-grouped"}
        settings = {"choices": choices, "model_sha256": "ab" * 32, "init": "random"}
        about = {
            "recipe": "tiny-cnn-28",
            "protocol": "strict",
            "seed": seed,
            "threshold": 0.4 + seed / 100,
        }
        model = SimpleNamespace(
            score=lambda films, seed=seed: answer(films, seed),
            threshold=about["threshold"],
            model=None,
        )
        about |= {"predictor": lambda model=model: model, "folder": reports_here}
        parts.append(SimpleNamespace(**about, settings=settings, scores=table))
    monkeypatch.setattr(
        runs,
        "find",
        lambda name, recipe, protocol: parts if (name, protocol) == ("phantom", "strict") else [],
    )
    monkeypatch.setattr(
        views, "CORRUPTIONS", {name: CORRUPTIONS[name] for name in ("marker", "inversion")}
    )
    return parts


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    """Another phantom, as a folder of the user's."""
    settings = phantoms.PhantomSettings(images=24, size=48, seed=7)
    return phantoms.write(tmp_path_factory.mktemp("elsewhere") / "hospital", settings)


def test_external_images_are_scored_by_every_run_and_kept(two_runs, hospital, reports_here):
    table, films = external.external("tiny-cnn-28", "phantom", hospital), manifest.load(hospital)
    name = catalog.get_dataset(hospital).name
    assert table.columns.tolist() == builders.COLUMNS and set(table["split"]) == {"external"}
    for seed, part in table.groupby("seed"):
        assert part["image_id"].tolist() == films["image_id"].tolist()
        assert part["patient"].tolist() == films["patient"].tolist()
        np.testing.assert_allclose(part["score"], answer(images.load_pixels(films, 28), seed))
    assert (reports_here / "phantom" / "external" / name / "tiny-cnn-28.csv").exists()
    pd.testing.assert_frame_equal(load_external("phantom", name), table, rtol=1e-8)


def test_a_folder_is_a_data_set_like_any_other(two_runs, hospital, monkeypatch, reports_here):
    name, seen = catalog.get_dataset(hospital).name, []
    monkeypatch.setattr(runs, "find", lambda *about: seen.append(about[0]) or two_runs)
    external.external("tiny-cnn-28", str(hospital), "phantom")
    assert seen == [name]


def test_without_a_run_the_fix_is_the_command(two_runs, monkeypatch):
    monkeypatch.setattr(runs, "find", lambda *about: [])
    for ask in (
        lambda: external.external("tiny-cnn-28", "phantom", "phantom"),
        lambda: views.score_views("tiny-cnn-28", "phantom", "corruptions"),
    ):
        with pytest.raises(
            NotFoundError, match=r"Fix: .*`python -m xraylib train tiny-cnn-28 --dataset phantom`"
        ):
            ask()
    with pytest.raises(NotFoundError, match="no finished run of mobilenetv2-frozen"):
        ood.ood_scores("phantom")


def test_the_generalisation_gap_is_at_the_frozen_threshold_of_each_run():
    scores = builders.scores(n=90, seeds=(0, 1), strength=2)
    scores["threshold"] = scores["seed"].map({0: 0.4, 1: 0.6})
    outside = builders.scores(n=60, seeds=(0, 1), sample=5).query("split == 'test'")
    outside = outside.assign(split="external").drop(columns="threshold")
    others = [scores.assign(protocol="published"), scores.assign(recipe="theirs")]
    table = external.generalisation_gap(pd.concat([scores, *others]), outside).set_index("metric")
    for part, split in ((scores, "test"), (outside, "external")):
        part = part.assign(threshold=part["seed"].map({0: 0.4, 1: 0.6}))
        found = metrics.evaluate(part, split=split).loc[table.index]
        for end, column in (("", "value"), ("_low", "low"), ("_high", "high")):
            assert table[split + end].tolist() == found[column].tolist()
    assert table["gap"].tolist() == pytest.approx((table["test"] - table["external"]).tolist())
    assert table["gap"].between(table["gap_low"], table["gap_high"]).all()
    width = {
        name: table[f"{name}_high"] - table[f"{name}_low"] for name in ("test", "external", "gap")
    }
    assert (np.maximum(width["test"], width["external"]) <= width["gap"]).all()
    assert (width["gap"] <= width["test"] + width["external"]).all()
    with pytest.raises(InvalidDataError, match=r"of other runs. Fix: "):
        external.generalisation_gap(scores[scores["seed"] == 0], outside)


def test_every_test_image_is_scored_after_every_severity(two_runs, small_phantom):
    table = views.score_views("tiny-cnn-28", "phantom", "corruptions")
    test = small_phantom[small_phantom["split"] == "test"]
    assert list(table) == [*views.ABOUT, *FEW]
    assert table["image_id"].tolist() == test["image_id"].tolist()
    assert set(table["seed"]) == {0} and set(table["threshold"]) == {0.4}
    # An untouched image has the score that the leaderboard is made of.
    own = two_runs[0].scores.query("split == 'test'").set_index("image_id")["score"]
    assert table["none 0"].tolist() == own[table["image_id"]].tolist()
    films = images.load_pixels(small_phantom, 224)[test.index]
    expected = answer(views._resized(corrupt(films, "marker", 5), 28), 0)
    np.testing.assert_allclose(table["marker 5"], expected)
    pd.testing.assert_frame_equal(views.load_views("phantom", "corruptions"), table, rtol=1e-5)


def test_the_text_and_the_rendering_of_a_device_are_swapped(two_runs, small_phantom, reports_here):
    with pytest.raises(NotFoundError, match=r"overlay\.csv is missing\. Fix: run notebook 01"):
        views.score_views("tiny-cnn-28", "phantom", "device")
    train = small_phantom[(small_phantom["split"] == "train") & (small_phantom["label"] == 1)]
    test = small_phantom[(small_phantom["split"] == "test") & (small_phantom["label"] == 0)]
    marked = pd.concat([train[:5], test[:3]])
    (reports_here / "phantom" / "tables").mkdir(parents=True)
    marked.to_csv(reports_here / "phantom" / "tables" / "overlay.csv")
    views.score_views("tiny-cnn-28", "phantom", "device")
    table = views.load_views("phantom", "device")
    films = np.array(images.load_pixels(small_phantom, 224))
    films[train.index[0], 212:, 207:] = np.random.default_rng(0).integers(0, 255, (12, 17, 1))
    _, device_views = forensics._device_views("phantom", small_phantom, films)
    some = films[test.index[:4]]
    # A film of the wanted histogram keeps it; any other gets it, in its own order.
    of_device, text = (
        device_views["rendered as the device's films"](some),
        device_views["text in the corner"](some),
    )
    wanted = np.quantile(films[train.index[:5]], np.linspace(0, 1, 257), axis=(1, 2, 3)).mean(
        axis=1
    )
    found = np.quantile(of_device, np.linspace(0, 1, 257), axis=(1, 2, 3)).mean(axis=1)
    assert np.abs(found - wanted)[5:-5].max() < 6
    order = np.argsort(some[0].ravel(), kind="stable")
    assert (np.diff(of_device[0].ravel()[order].astype(int)) >= 0).all()
    np.testing.assert_array_equal(
        text[:, 212:, 207:], np.stack([films[train.index[0], 212:, 207:]] * 4)
    )
    np.testing.assert_array_equal(text[:, :212], some[:, :212])
    assert not device_views["corner black"](some)[:, 212:, 207:].any()
    response = forensics.device_response(
        table, pd.concat([run.scores for run in two_runs]), marked["image_id"]
    )
    half = pd.read_csv(reports_here / "phantom" / "device" / "tiny-cnn-28.csv", dtype=str)
    half.loc[half["seed"] == "1", "corner black"] = ""  # as an interrupted command leaves it
    half.to_csv(reports_here / "phantom" / "device" / "tiny-cnn-28.csv", index=False)
    assert set(views.load_views("phantom", "device")["seed"]) == {0}
    one = response.set_index(["films", "view"]).loc[("test, normal, with the text", "corner black")]
    own = table[table["image_id"].isin(test["image_id"][:3])]
    assert one["right"] == pytest.approx((own["corner black"] < own["threshold"]).mean())
    assert (one["runs"], one["images"]) == (2, 3) and one["right_low"] <= one["right"] <= one[
        "right_high"
    ]


def test_pixels_are_resized_as_a_file_of_that_size_is_read(small_phantom, tmp_path):
    films = images.load_pixels(small_phantom, 64)[:3]
    for film, small in zip(films, views._resized(films, 28), strict=True):
        Image.fromarray(film[..., 0]).save(tmp_path / "film.png")
        np.testing.assert_array_equal(small[..., 0], images.read_gray(tmp_path / "film.png", 28))


def test_scoring_that_was_interrupted_goes_on(two_runs, reports_here, monkeypatch):
    whole = views.score_views("tiny-cnn-28", "phantom", "corruptions")
    file = reports_here / "phantom" / "corruptions" / "tiny-cnn-28.csv"
    file.unlink()
    done = []

    def instead(films, name, severity):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append((name, severity))
        return corrupt(films, name, severity)

    monkeypatch.setattr(views, "corrupt", instead)
    with pytest.raises(KeyboardInterrupt):
        views.score_views("tiny-cnn-28", "phantom", "corruptions")
    assert list(pd.read_csv(file))[len(views.ABOUT) :] == FEW[:3]

    def noted(films, name, severity):
        done.append((name, severity))
        return corrupt(films, name, severity)

    monkeypatch.setattr(views, "corrupt", noted)
    again = views.score_views("tiny-cnn-28", "phantom", "corruptions")
    steps = [("marker", step) for step in range(1, 6)]
    assert done == [*steps, ("inversion", 1)]
    pd.testing.assert_frame_equal(again, whole, rtol=1e-5)
    other = whole.assign(model="0123456789ab")
    other.to_csv(file, index=False)
    pd.testing.assert_frame_equal(
        views.score_views("tiny-cnn-28", "phantom", "corruptions"), whole, rtol=1e-5
    )
    other.to_csv(file, index=False)
    monkeypatch.setattr(runs, "COMMITTED", ("phantom",))
    with pytest.raises(
        InvalidDataError, match=r"of another run or of other images\. Fix: delete it"
    ):
        views.score_views("tiny-cnn-28", "phantom", "corruptions")


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("jpeg 1", "", "p3 has a score that is no number"),
        ("jpeg 1", "7", "p3 has a score that is no number"),
        ("label", "2", "p3 has a label that is not 0 or 1"),
        ("image_id", "p4", "p4 is there twice"),
    ],
)
def test_bad_scores_of_corrupted_images_are_refused_by_name(reports_here, column, value, said):
    table = pd.DataFrame({"image_id": [f"p{i}" for i in range(8)], "label": [0, 1] * 4})
    table = table.assign(patient=table["image_id"], recipe="r", model="12e4", seed=0, threshold=0.5)
    table["none 0"] = table["jpeg 1"] = np.linspace(0, 1, 8)
    file = reports_here / "phantom" / "corruptions" / "r.csv"
    file.parent.mkdir(parents=True)
    with pytest.raises(
        NotFoundError, match="Fix: `python -m xraylib corruptions RECIPE --dataset phantom`"
    ):
        views.load_views("phantom", "corruptions")
    table.to_csv(file, index=False)
    assert set(views.load_views("phantom", "corruptions")["model"]) == {"12e4"}
    table = table.astype(str)
    table.loc[3, column] = value
    table.to_csv(file, index=False)
    with pytest.raises(InvalidDataError, match=said):
        views.load_views("phantom", "corruptions")
    table.drop(columns="model").to_csv(file, index=False)
    with pytest.raises(InvalidDataError, match=r"lacks the columns model\. Fix: delete it"):
        views.load_views("phantom", "corruptions")


def corrupted(sample=0, patients=60, each=3):
    """Scores of patients with several images each, made worse by more and more noise."""
    rng = np.random.default_rng(sample)
    patient, label = np.repeat(np.arange(patients), each), np.repeat(np.arange(patients) % 2, each)
    score = label + rng.normal(size=patients)[patient] + rng.normal(scale=0.5, size=len(patient))
    noisy = {
        f"noise {i + 1}": score + rng.normal(scale=s, size=len(score))
        for i, s in enumerate((0.4, 0.8, 1.6))
    }
    about = {
        "recipe": "r",
        "model": "m",
        "seed": 0,
        "threshold": 0.6,
        "image_id": patient.astype(str),
    }
    about |= {"patient": patient.astype(str), "label": label}
    return pd.DataFrame(about | {"none 0": score, "mirror 1": -score} | noisy)


def test_losses_are_those_of_scikit_learn_and_an_untouched_image_loses_nothing():
    table = corrupted()
    found = views.corruption_losses(table)
    assert tuple(found.columns) == views.LOSSES
    rows = found.set_index("corruption")
    clean = rows.loc["none"]
    for name, row in rows.iterrows():
        severities = [table[column] for column in table if column.startswith(f"{name} ")]
        aucs = [sk.roc_auc_score(table["label"], score) for score in severities]
        right = [sk.balanced_accuracy_score(table["label"], score >= 0.6) for score in severities]
        assert row["auc"] == pytest.approx(np.mean(aucs)) and row["severity"] == len(severities)
        assert row["balanced_error"] == pytest.approx(1 - np.mean(right))
        assert row["delta_auc"] == pytest.approx(clean["auc"] - row["auc"], abs=1e-12)
        gained = row["balanced_error"] - clean["balanced_error"]
        assert row["delta_balanced_error"] == pytest.approx(gained, abs=1e-12)
    assert (clean[[name for name in clean.index if name.startswith("delta")]] == 0).all()


@pytest.mark.parametrize("sample", range(3))
def test_averaged_losses_agree_with_a_bootstrap_of_patients(sample):
    table = corrupted(sample, patients=200)
    names, own = np.unique(table["patient"], return_inverse=True)
    weights, positive = bootstrap_weights(len(names), 2000)[:, own], table["label"].to_numpy() == 1
    row = views.corruption_losses(table).set_index("corruption").loc["noise"]
    assert row["severity"] == 3
    for name, classify in (("delta_auc", False), ("delta_balanced_error", True)):
        aucs = {}
        for column in ("none 0", "noise 1", "noise 2", "noise 3"):
            score = table[column].to_numpy()
            score = (score >= 0.6).astype(float) if classify else score
            aucs[column], _ = weighted_ranking(positive, score, weights)
        lost = aucs.pop("none 0") - np.mean(list(aucs.values()), axis=0)
        expected = np.percentile(lost, [2.5, 97.5])
        assert row[[f"{name}_low", f"{name}_high"]].tolist() == pytest.approx(expected, abs=0.006)


def test_recipes_may_have_different_corruptions_but_none_in_part_is_averaged():
    other = corrupted(1).assign(recipe="s").drop(columns=["mirror 1"])
    both = views.corruption_losses(pd.concat([corrupted(), other]))
    alone = views.corruption_losses(other)
    pd.testing.assert_frame_equal(both[both["recipe"] == "s"].reset_index(drop=True), alone)
    part = corrupted().rename(columns={"noise 1": "marker 1"})
    with pytest.raises(
        InvalidDataError, match=r"r was scored on some severities of marker only\. Fix: "
    ):
        views.corruption_losses(part)


def test_every_group_of_images_has_its_ood_score(
    two_runs, hospital, small_phantom, reports_here, monkeypatch
):
    def describe(frozen, pixels):
        return pixels[:, ::7, ::7, 0].reshape(len(pixels), -1).astype(np.float32)

    used = []
    monkeypatch.setattr(networks, "get_weights", lambda network, init: None)
    monkeypatch.setattr(
        probe,
        "pooled",
        lambda films, _, size, *more: describe(None, images.load_pixels(films, size)),
    )
    monkeypatch.setattr(probe, "describe", describe)
    assign = splits.assign
    monkeypatch.setattr(
        splits, "assign", lambda *args, **named: used.append(named) or assign(*args, **named)
    )
    table, name = ood.ood_scores("phantom", [str(hospital)]), catalog.get_dataset(hospital).name
    assert used == [{"split_strategy": "patient-grouped"}]
    test = small_phantom[small_phantom["split"] == "test"]
    sizes = table.groupby("group", sort=False).size()
    assert sizes["test, normal"] + sizes["test, pneumonia"] == sizes["test, inverted"] == len(test)
    assert sizes[name] == 24
    val = table[table["group"].str.startswith("validation")]
    own = two_runs[0].scores.query("split == 'val'")
    assert set(val["image_id"]) == set(own["image_id"])
    inverted = table[table["group"] == "test, inverted"]["ood_score"]
    assert inverted.min() > table[table["group"] == "test, normal"]["ood_score"].max()
    read = pd.read_csv(reports_here / "phantom" / "tables" / "ood_scores.csv")
    pd.testing.assert_frame_equal(read, table, rtol=1e-5, check_dtype=False)


def test_the_ood_score_is_the_mahalanobis_distance():
    rng = np.random.default_rng(1)
    training = rng.normal(size=(20000, 3)) @ np.array([[3.0, 0, 0], [1, 1, 0], [0, 0.5, 0.2]])
    others = rng.normal(size=(50, 3))
    apart = others - training.mean(axis=0)
    expected = np.sqrt(np.einsum("ni,ij,nj->n", apart, np.linalg.inv(np.cov(training.T)), apart))
    np.testing.assert_allclose(ood.mahalanobis(training, others), expected, rtol=0.02)
    # Fewer images than features are enough.
    few = rng.normal(size=(20, 200))
    assert np.isfinite(ood.mahalanobis(few, rng.normal(size=(7, 200)))).all()


def test_the_limit_flags_one_in_twenty_of_validation():
    rng = np.random.default_rng(4)
    parts = []
    for group, mean in {"validation, normal": 5, "test": 5, "far": 9}.items():
        patients = [f"p{person}" for person in rng.integers(0, 60, 200)]
        parts.append(
            pd.DataFrame(
                {"group": group, "patient": patients, "ood_score": rng.normal(mean, 1, 200)}
            )
        )
    found = ood.ood_flagged(pd.concat(parts, ignore_index=True)).set_index("group")
    assert found.index.tolist() == ["validation, normal", "test", "far"]
    assert found.loc["validation, normal", "flagged"] == pytest.approx(0.05)
    assert np.isnan(found.loc["validation, normal", "auc"])
    assert found.loc["test", "low"] <= 0.05 <= found.loc["test", "high"]
    assert found.loc["test", "auc"] == pytest.approx(0.5, abs=0.1)
    assert found.loc["far", "flagged"] > 0.9 and found.loc["far", "auc_low"] > 0.97


@pytest.fixture
def framed(reports_here, small_phantom):
    """Views of two runs whose score is the share of a film's rows that are left, and a test between."""
    parts = []
    for seed in (0, 1, 2):
        val = splits.assign(small_phantom, "strict", seed).query("split == 'val'")
        part = val[["image_id", "patient", "label"]].assign(
            recipe="r", model="ab", seed=seed, threshold=0.5
        )
        part["none 0"] = np.where(part["label"] == 1, 0.9, 0.1)
        for share in SHARES:
            part[f"rows {share}"] = np.where(part["label"] == 1, 0.9, 0.1 + 3 * (1 - share))
            part[f"columns {share}"] = np.where(part["label"] == 1, 0.9 - 3 * (1 - share), 0.1)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def test_the_response_to_a_dose_is_that_of_its_own_class(framed):
    table = views.framing_response(framed).set_index("view")
    assert table.loc["as it is", ["specificity", "sensitivity", "auc"]].tolist() == [1, 1, 1]
    rows = table.loc[[f"rows {share}" for share in SHARES]]
    assert rows["specificity"].tolist() == [1, 0, 0, 0] and (rows["sensitivity"] == 1).all()
    assert table.loc["swapped 0.76", "auc"] == 0 and table.loc["swapped 0.93", "auc"] == 1
    assert table["runs"].unique().tolist() == [3]


def test_what_framing_explains_is_the_fall_at_the_tests_own_framing(framed, small_phantom):
    test = small_phantom[small_phantom["split"] == "test"]
    test = test.assign(recipe="r", protocol="strict", threshold=0.5)
    # All normals of the test lose 14% of their rows, and half of them are called pneumonia.
    test["score"] = np.where(test["label"] == 1, 0.9, np.arange(len(test)) % 2 * 0.8)
    scores = pd.concat([test.assign(seed=seed) for seed in (0, 1, 2)])
    aspects = small_phantom[["image_id", "split", "label"]].assign(aspect=1.0)
    aspects.loc[aspects["split"] == "test", "aspect"] = 1 / 0.86
    row = forensics.framing_explained(framed, scores, aspects).iloc[0]
    fallen = (test.loc[test["label"] == 0, "score"] < 0.5).mean()
    assert row[["validation", "at_test_framing"]].tolist() == [1, 0] and row[
        "test"
    ] == pytest.approx(fallen)
    assert row["explained"] == pytest.approx(1 / (1 - fallen))
    assert row["explained_low"] < row["explained"] < row["explained_high"]


def test_folders_that_are_framed_alike_explain_no_fall(framed, small_phantom):
    test = small_phantom[small_phantom["split"] == "test"].assign(
        recipe="r", protocol="strict", threshold=0.5
    )
    scores = pd.concat([test.assign(seed=seed, score=0.8) for seed in (0, 1, 2)])
    wide = np.where(
        np.arange(len(small_phantom)) % 2, 1.4, 1.0
    )  # half of each folder wider than the mean
    aspects = small_phantom[["image_id", "split", "label"]].assign(aspect=wide)
    row = forensics.framing_explained(framed, scores, aspects).iloc[0]
    assert row["validation"] == 1 and row["test"] == 0 and row["at_validation_framing"] < 0.8
    assert row["explained"] == pytest.approx(0, abs=0.2)


def test_aspect_ratios_are_read_off_files_that_differ_in_it(small_phantom):
    table = forensics.aspect_ratios("phantom")
    mean = table.groupby(["split", "label"])["aspect"].mean()
    assert mean["train", 0] < mean["test", 0] < mean["test", 1] and (table["error"] == 0).all()


@pytest.mark.parametrize("same", [True, False])
def test_numbers_that_are_one_child_are_recognised_by_their_images(same):
    rng, rows, features = np.random.default_rng(0), [], []
    for number in range(80):
        child = {kind: rng.normal(size=40) for kind in ("bacteria", "virus")}
        child["virus"] = child["bacteria"] if same else child["virus"]
        for kind, copies in (("bacteria", 2), ("virus", 1)):
            for _ in range(copies):
                rows.append({"patient": f"person{number}_{kind}", "kind": kind, "label": 1})
                features.append(child[kind] + rng.normal(size=40) + (kind == "virus"))
    films = pd.DataFrame(rows).assign(sha256=range(len(rows)))
    # A copy of an image is no second image of its child.
    copies = films.iloc[[0]].assign(patient="person0_virus", kind="virus")
    films, features = (
        pd.concat([films, copies], ignore_index=True),
        np.vstack([features, features[0]]),
    )
    found = forensics.identity(films, features).set_index("pairing")
    assert found.loc["bacteria: two images of one number", "low"] > 0.8
    row = found.loc["bacteria and virus: one number"]
    assert row["low"] > 0.8 if same else row["low"] < 0.5 < row["high"]
