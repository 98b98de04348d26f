import made_up_runs
import numpy as np
import pandas as pd
import pytest
from made_up_runs import answer
from PIL import Image
from sklearn import metrics as sk

from xraylib.datasets import images, splits
from xraylib.datasets.corruptions import CORRUPTIONS, corrupt
from xraylib.datasets.framing import FRAMING_VIEWS, SHARES
from xraylib.errors import InvalidDataError, NotFoundError
from xraylib.evaluation import views
from xraylib.evaluation.resampling import bootstrap_weights, weighted_ranking
from xraylib.training import runs

FEW = ["none 0", *(f"marker {step}" for step in range(1, 6)), "inversion 1"]


@pytest.fixture
def two_runs(small_phantom, reports_here, monkeypatch):
    """Two runs on the phantom whose model is `answer`, and two corruptions."""
    made = made_up_runs.two_runs(small_phantom, reports_here)
    strict = ("phantom", "tiny-cnn-28", "strict")
    monkeypatch.setattr(runs, "list_runs", lambda *about: made if about == strict else [])
    monkeypatch.setattr(views, "load_predictor", made_up_runs.load_predictor)
    few = {name: CORRUPTIONS[name] for name in ("marker", "inversion")}
    monkeypatch.setattr(views, "CORRUPTIONS", few)
    return made


def test_without_a_run_the_fix_is_the_command(two_runs):
    command = r"Fix: .*`python -m xraylib train scratch-cnn --dataset phantom`"
    for score in (views.score_corruptions, views.score_framing):
        with pytest.raises(NotFoundError, match=command):
            score("scratch-cnn", "phantom")


def test_every_test_image_is_scored_after_every_severity(two_runs, small_phantom):
    table = views.score_corruptions("tiny-cnn-28", "phantom")
    test = small_phantom[small_phantom["split"] == "test"]
    assert list(table) == [*views.ABOUT, *FEW]
    assert table["image_id"].tolist() == test["image_id"].tolist()
    assert set(table["seed"]) == {0} and set(table["threshold"]) == {0.4}
    # An untouched image has the score that the leaderboard is made of.
    own = two_runs[0].scores.query("split == 'test'").set_index("image_id")["score"]
    assert table["none 0"].tolist() == own[table["image_id"]].tolist()
    films = images.load_pixels(small_phantom, 224)[test.index]
    expected = answer(views.resized(corrupt(films, "marker", 5), 28), 0)
    np.testing.assert_allclose(table["marker 5"], expected)
    pd.testing.assert_frame_equal(views.load_views("phantom", "corruptions"), table, rtol=1e-5)


def test_each_run_scores_its_own_validation_as_it_is_framed_anew(two_runs, small_phantom):
    table = views.score_framing("tiny-cnn-28", "phantom")
    assert list(table) == [*views.ABOUT, "none 0", *FRAMING_VIEWS]
    pixels = images.load_pixels(small_phantom, 224)
    for run in two_runs:
        part = table[table["seed"] == run.seed]
        val = run.scores[run.scores["split"] == "val"]
        assert part["image_id"].tolist() == val["image_id"].tolist()
        assert set(part["threshold"]) == {run.threshold}
        cropped = FRAMING_VIEWS["rows 0.81"](pixels[val.index])
        expected = answer(views.resized(cropped, 28), run.seed)
        np.testing.assert_allclose(part["rows 0.81"], expected)


def test_a_caller_has_views_and_splits_of_its_own(two_runs, small_phantom, reports_here):
    turned = {"inverted": lambda pixels: 255 - pixels}
    table = views.score_views("tiny-cnn-28", "phantom", "mine", "val test", turned, most_runs=1)
    assert (reports_here / "phantom" / "mine" / "tiny-cnn-28.csv").exists()
    run = two_runs[0]
    assert table["image_id"].tolist() == run.scores["image_id"].tolist()
    assert set(table["seed"]) == {0}
    pixels = views.resized(255 - images.load_pixels(small_phantom, 224), 28)
    np.testing.assert_allclose(table["inverted"], answer(pixels[run.scores.index], 0))
    read = views.load_views("phantom", "mine")
    pd.testing.assert_frame_equal(read, table, rtol=1e-5)
    # A run that an interrupted command left without one of the views is not in the table.
    other = table.assign(seed=1, threshold=0.41, inverted=np.nan)
    file = reports_here / "phantom" / "mine" / "tiny-cnn-28.csv"
    pd.concat([table, other]).to_csv(file, index=False)
    assert set(views.load_views("phantom", "mine")["seed"]) == {0}


def test_no_view_sees_more_than_a_chunk_of_images_and_the_scores_are_the_same(
    two_runs, reports_here, monkeypatch
):
    whole = views.score_framing("tiny-cnn-28", "phantom")
    (reports_here / "phantom" / "framing" / "tiny-cnn-28.csv").unlink()
    sizes = []

    def noted(pixels):
        sizes.append(len(pixels))
        return FRAMING_VIEWS["rows 0.93"](pixels)

    monkeypatch.setattr(views, "CHUNK", 3)
    monkeypatch.setattr(views, "FRAMING_VIEWS", FRAMING_VIEWS | {"rows 0.93": noted})
    chunked = views.score_framing("tiny-cnn-28", "phantom")
    pd.testing.assert_frame_equal(chunked, whole)
    assert max(sizes) == 3 and sum(sizes) == len(whole)


def test_pixels_areresized_as_a_file_of_that_size_is_read(small_phantom, tmp_path):
    films = images.load_pixels(small_phantom, 64)[:3]
    for film, small in zip(films, views.resized(films, 28), strict=True):
        Image.fromarray(film[..., 0]).save(tmp_path / "film.png")
        np.testing.assert_array_equal(small[..., 0], images.read_gray(tmp_path / "film.png", 28))


def test_scoring_that_was_interrupted_goes_on(two_runs, reports_here, monkeypatch):
    whole = views.score_corruptions("tiny-cnn-28", "phantom")
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
        views.score_corruptions("tiny-cnn-28", "phantom")
    assert list(pd.read_csv(file))[len(views.ABOUT) :] == FEW[:3]

    def noted(films, name, severity):
        done.append((name, severity))
        return corrupt(films, name, severity)

    monkeypatch.setattr(views, "corrupt", noted)
    again = views.score_corruptions("tiny-cnn-28", "phantom")
    steps = [("marker", step) for step in range(1, 6)]
    assert done == [*steps, ("inversion", 1)]
    pd.testing.assert_frame_equal(again, whole, rtol=1e-5)
    other = whole.assign(model="0123456789ab")
    other.to_csv(file, index=False)
    pd.testing.assert_frame_equal(
        views.score_corruptions("tiny-cnn-28", "phantom"), whole, rtol=1e-5
    )
    other.to_csv(file, index=False)
    monkeypatch.setattr(runs, "COMMITTED", ("phantom",))
    with pytest.raises(
        InvalidDataError, match=r"of another run or of other images\. Fix: delete it"
    ):
        views.score_corruptions("tiny-cnn-28", "phantom")


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("jpeg 1", "", "p3 has '' as jpeg 1, which is no number"),
        ("jpeg 1", "7", "p3 has '7' as jpeg 1, which is no number"),
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


@pytest.fixture
def framed(reports_here, small_phantom):
    """Views of three runs whose score is the share of rows or columns that is left."""
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
    assert table.loc["unchanged", ["specificity", "sensitivity", "auc"]].tolist() == [1, 1, 1]
    rows = table.loc[[f"rows {share}" for share in SHARES]]
    assert rows["specificity"].tolist() == [1, 0, 0, 0] and (rows["sensitivity"] == 1).all()
    assert table.loc["swapped 0.76", "auc"] == 0 and table.loc["swapped 0.93", "auc"] == 1
    assert table["runs"].unique().tolist() == [3]


def upper_half(pixels):
    """A function of its own kind: no probability, and one column."""
    return 100 * answer(pixels, 0)[:, None]


def test_any_function_is_measured_in_every_view_by_its_own_score(small_phantom):
    seen = set()

    def noted(pixels):
        seen.add((pixels.dtype.name, *pixels.shape[1:]))
        return upper_half(pixels)

    table = views.evaluate_function(noted, small_phantom, "test", size=28, threshold=40)
    assert seen == {("uint8", 28, 28, 1)}
    assert table["view"].tolist() == ["unchanged", *FRAMING_VIEWS]
    assert set(table["threshold"]) == {40}
    test = small_phantom[small_phantom["split"] == "test"]
    pixels = images.load_pixels(small_phantom, 224)[test.index]
    for row in table.itertuples():
        changed = FRAMING_VIEWS[row.view](pixels) if row.view in FRAMING_VIEWS else pixels
        scores = upper_half(views.resized(changed, 28)).ravel()
        positive = (scores >= 40).astype(int)
        assert row.n == len(test)
        assert row.auc == pytest.approx(sk.roc_auc_score(test["label"], scores))
        assert row.sensitivity == pytest.approx(sk.recall_score(test["label"], positive))
        assert row.specificity == pytest.approx(
            sk.recall_score(test["label"], positive, pos_label=0)
        )
        assert row.auc_low <= row.auc <= row.auc_high
        assert row.specificity_low <= row.specificity <= row.specificity_high


def test_without_a_threshold_it_lies_between_the_classes(small_phantom, caplog):
    table = views.evaluate_function(upper_half, small_phantom, "train")
    train = small_phantom[small_phantom["split"] == "train"]
    scores = upper_half(images.load_pixels(small_phantom, 224)[train.index]).ravel()
    medians = [np.median(scores[train["label"] == label]) for label in (0, 1)]
    assert table["threshold"].unique() == pytest.approx([np.mean(medians)])
    rows = table.set_index("view").loc["unchanged"]
    # The score of normal is noticed, whichever of the two this one is.
    said = "below that of normals" in caplog.text
    caplog.clear()
    other = views.evaluate_function(lambda pixels: -upper_half(pixels), small_phantom, "train")
    assert ("below that of normals" in caplog.text) != said
    assert other["auc"].iloc[0] == pytest.approx(1 - rows["auc"])


def test_with_corruptions_each_severity_is_a_view_of_a_function(small_phantom, monkeypatch):
    few = {name: CORRUPTIONS[name] for name in ("marker", "inversion")}
    monkeypatch.setattr(views, "CORRUPTIONS", few)
    table = views.evaluate_function(upper_half, small_phantom, with_corruptions=True)
    assert table["view"].tolist() == ["unchanged", *FRAMING_VIEWS, *FEW[1:]]
    inverted = table.set_index("view").loc["inversion 1", "auc"]
    assert inverted == pytest.approx(1 - table["auc"].iloc[0])


def test_a_larger_network_sees_views_of_its_size_and_no_more_than_a_chunk(
    small_phantom, monkeypatch
):
    monkeypatch.setattr(views, "CHUNK", 5)
    shapes = set()

    def noted(pixels):
        shapes.add(pixels.shape[1:])
        assert len(pixels) <= 5
        return pixels.mean(axis=(1, 2, 3))

    views.evaluate_function(noted, small_phantom, size=240)
    assert shapes == {(240, 240, 1)}


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda pixels: np.zeros((len(pixels), 2)), r"an array \(\d+, 2\) for"),
        (lambda pixels: 0.5, "a float for"),
        (lambda pixels: np.full(len(pixels), np.nan), "no numbers"),
        (lambda pixels: ["normal"] * len(pixels), "a list"),
        (lambda pixels: None, "no numbers|an array|NoneType"),
    ],
)
def test_what_is_no_score_is_refused(small_phantom, function, said):
    with pytest.raises(InvalidDataError, match=rf"the function returns .*({said}).* Fix: "):
        views.evaluate_function(function, small_phantom)


def test_a_split_without_two_classes_is_refused(small_phantom):
    with pytest.raises(InvalidDataError, match=r"the 0 images of the split tests .*Fix: .*test, "):
        views.evaluate_function(upper_half, small_phantom, "tests")
    normals = small_phantom[small_phantom["label"] == 0].reset_index(drop=True)
    with pytest.raises(InvalidDataError, match=r"\d+ images .* not of both classes\. Fix: "):
        views.evaluate_function(upper_half, normals)
