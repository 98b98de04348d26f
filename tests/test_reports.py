import json
import logging
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from outside import outside_references
from PIL import Image
from scipy.stats import norm
from sklearn import metrics as sk
from statsmodels.stats.proportion import proportion_confint
from test_ranking import obuchowski

from xraylib import paths
from xraylib.datasets.splits import PROTOCOLS
from xraylib.evaluation import scores
from xraylib.evaluation.comparisons import operating_point
from xraylib.evaluation.metrics import METRICS
from xraylib.report import pages, tables
from xraylib.storage import DataInvalid, Failed, NotFound
from xraylib.training.recipes import RECIPES
from xraylib.training.runs import Run

pytestmark = pytest.mark.usefixtures("reports_here")
COMMITTED = paths.ROOT / "reports"
RESAMPLES = 2000


def scored(recipe, protocol, seed, sides=("val", "test"), images=80):
    """Scores of made-up images of some 50 patients, coarse enough to have ties."""
    draw = np.random.default_rng([seed, len(recipe), len(protocol)])
    tables = []
    for side in sides:
        # Under `published` each seed tests other patients.
        first = 100 * seed if protocol == "published" else 0
        patients = np.sort(np.random.default_rng(len(side)).integers(first, first + 50, images))
        labels = patients % 2
        values = np.round(np.clip(draw.normal(0.35 + 0.3 * labels, 0.2), 0, 1), 2)
        table = pd.DataFrame({"patient": [f"{side}{patient}" for patient in patients], "label": labels})
        table["image_id"] = [f"{side}{first + number:03d}" for number in range(images)]
        table["kind"] = np.where(labels == 1, "virus", "normal")
        tables.append(table.assign(split=side, score=values))
    whole = pd.concat(tables).assign(recipe=recipe, protocol=protocol, seed=seed)
    return whole[list(scores.COLUMNS)]


def run_of(recipe="tiny-cnn-28", protocol="strict", seed=0, **said):
    settings = {
        "recipe": recipe,
        "protocol": protocol,
        "seed": seed,
        "choices": {"epochs": 3},
        "init": "random",
        "hardware": "CPU of a test",
        "train_seconds": 10.0 + seed,
    }
    history = pd.DataFrame({"epoch": [1, 2], "loss": [0.7, 0.5], "accuracy": [0.5, 0.75]})
    history = history.assign(val_loss=[0.75, 0.625], val_accuracy=[0.5, 0.75])
    return Run(recipe, protocol, seed, paths.RUNS, settings | said, history, scored(recipe, protocol, seed))


def kept(dataset="made-up", recipe="tiny-cnn-28"):
    table = scores.read(tables.folder(dataset) / "scores" / f"{recipe}.csv")
    runs = json.loads((tables.folder(dataset) / "metrics" / f"{recipe}.json").read_text())["runs"]
    assert {(run["protocol"], run["seed"]) for run in runs} == set(
        zip(table["protocol"], table["seed"], strict=True)
    )
    return table


def seeds_kept(**which):
    return sorted(kept(**which)["seed"].unique().tolist())


def test_seeds_and_protocols_come_together():
    for protocol, seed in (("strict", 1), ("published", 0), ("strict", 0)):
        tables.record(run_of(protocol=protocol, seed=seed), "made-up")
    table = kept()
    assert set(zip(table["protocol"], table["seed"], strict=True)) == {
        ("strict", 0),
        ("strict", 1),
        ("published", 0),
    }
    assert not table.duplicated(["protocol", "seed", "split", "image_id"]).any()
    expected = scored("tiny-cnn-28", "strict", 1)["score"].sum()
    assert table.loc[(table["seed"] == 1), "score"].sum() == pytest.approx(expected)


def test_the_same_seed_replaces_itself():
    tables.record(run_of(), "made-up")
    again = run_of()
    again.scores["score"] = again.scores["score"].clip(0.25, 0.75)
    tables.record(again, "made-up")
    assert len(kept()) == len(again.scores)
    assert kept()["score"].between(0.25, 0.75).all()


@pytest.mark.parametrize("other", [{"choices": {"epochs": 20}}, {"init": "imagenet"}], ids=["budget", "init"])
def test_runs_trained_otherwise_leave_the_table_and_the_log_says_so(other, caplog):
    tables.record(run_of(seed=0), "made-up")
    tables.record(run_of(seed=1), "made-up")
    tables.record(run_of("tiny-cnn-28", "published"), "made-up")
    with caplog.at_level(logging.WARNING, "xraylib.report.tables"):
        tables.record(run_of(seed=2, **other), "made-up")
    assert [record.getMessage() for record in caplog.records] == [
        f"tiny-cnn-28, strict: seed {seed} was trained otherwise and leaves the table" for seed in (0, 1)
    ]
    table = kept()
    assert set(zip(table["protocol"], table["seed"], strict=True)) == {("strict", 2), ("published", 0)}


def test_what_is_recorded_comes_back():
    run = run_of(seed=1)
    tables.record(run_of(seed=0), "made-up")
    tables.record(run, "made-up")
    settings, table = tables.recorded("made-up", "tiny-cnn-28", "strict", 1)
    assert settings["train_seconds"] == 11.0 and settings["history"][1]["loss"] == 0.5
    expected = run.scores.sort_values(["split", "image_id"]).reset_index(drop=True)
    pd.testing.assert_frame_equal(table, expected, check_dtype=False)


@pytest.mark.parametrize("asked", [("scratch-cnn", "strict", 0), ("tiny-cnn-28", "published", 0)])
def test_what_is_not_recorded_is_none(asked):
    tables.record(run_of(), "made-up")
    assert tables.recorded("made-up", *asked) is None


def test_a_deleted_scores_table_is_not_recorded():
    tables.record(run_of(), "made-up")
    (tables.folder("made-up") / "scores" / "tiny-cnn-28.csv").unlink()
    assert tables.recorded("made-up", "tiny-cnn-28", "strict", 0) is None
    tables.record(run_of(), "made-up")
    assert seeds_kept() == [0]


def patient_bootstrap(patients):
    """Shares the draws with the package, and nothing else."""
    n = len(np.unique(patients))
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), RESAMPLES)


def weighted_auc(labels, values, weights):
    """Share of pairs (sick, well) ranked rightly, each pair as often as it was drawn."""
    sick, well = values[labels == 1], values[labels == 0]
    right = (sick[:, None] > well[None, :]) + 0.5 * (sick[:, None] == well[None, :])
    w_sick, w_well = weights[:, labels == 1].astype(float), weights[:, labels == 0].astype(float)
    with np.errstate(invalid="ignore"):
        return np.einsum("bi,bi->b", w_sick @ right, w_well) / (w_sick.sum(1) * w_well.sum(1))


def youden(labels, values):
    """Half-way below the highest score at which sensitivity + specificity is largest."""
    rates = sk.roc_curve(labels, values, drop_intermediate=False)
    best = rates[2][1:][np.argmax((rates[1] - rates[0])[1:])]
    below = values[values < best]
    return (best + below.max()) / 2 if len(below) else best


CLASS_METRICS = (("sensitivity", 1), ("specificity", 0))


def by_counts(tp, fn, fp, tn):
    """Figures of many confusion matrices."""
    root = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return {
        "accuracy": (tp + tn) / (tp + fn + fp + tn),
        "balanced_accuracy": (tp / (tp + fn) + tn / (tn + fp)) / 2,
        "sensitivity": tp / (tp + fn),
        "specificity": tn / (tn + fp),
        "precision": tp / (tp + fp),
        "npv": tn / (tn + fn),
        "f1": 2 * tp / (2 * tp + fn + fp),
        "mcc": (tp * tn - fp * fn) / root,
    }


def recomputed(part, runs, recipe, protocol, claimed):
    """One row of the leaderboard from scores alone, by scikit-learn and the bootstrap above."""
    rule = RECIPES[recipe].under(protocol).threshold
    test = part[part["split"] == "test"]
    names = np.unique(test["patient"])
    draws = patient_bootstrap(names)
    points, resampled, thresholds = [], [], []
    for seed in sorted(test["seed"].unique()):
        mine = part[part["seed"] == seed]
        val, side = mine[mine["split"] == "val"], mine[mine["split"] == "test"]
        at = youden(val["label"].to_numpy(), val["score"].to_numpy()) if rule == "validation" else rule
        labels, values = side["label"].to_numpy(), side["score"].to_numpy()
        called = (values >= at).astype(int)
        thresholds.append(at)
        points.append(
            {
                "auc": sk.roc_auc_score(labels, values),
                "accuracy": sk.accuracy_score(labels, called),
                "sensitivity": sk.recall_score(labels, called),
                "specificity": sk.recall_score(labels, called, pos_label=0),
                "precision": sk.precision_score(labels, called),
                "npv": sk.precision_score(labels, called, pos_label=0, zero_division=np.nan),
                "f1": sk.f1_score(labels, called),
                "balanced_accuracy": sk.balanced_accuracy_score(labels, called),
                "mcc": sk.matthews_corrcoef(labels, called) if 0 < called.sum() < len(called) else np.nan,
                "average_precision": sk.average_precision_score(labels, values),
                "brier": sk.brier_score_loss(labels, values),
            }
        )
        weights = draws[:, [list(names).index(patient) for patient in side["patient"]]]
        with np.errstate(invalid="ignore"):
            drawn = by_counts(
                *(weights[:, (labels == a) & (called == b)].sum(1) for a in (1, 0) for b in (1, 0))
            )
            brier = weights @ (values - labels) ** 2 / weights.sum(1)
        resampled.append(drawn | {"auc": weighted_auc(labels, values, weights), "brier": brier})
    row = pd.DataFrame(points).mean().to_dict()
    for metric in resampled[0]:
        mean = np.mean([one[metric] for one in resampled], axis=0)
        known = mean[np.isfinite(mean)]
        row[f"{metric}_low"], row[f"{metric}_high"] = (
            np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan,) * 2
        )
    for metric, own in (("accuracy", test), *((m, test[test["label"] == k]) for m, k in CLASS_METRICS)):
        if row[metric] in (0, 1):
            people = own["patient"].nunique()
            ends = proportion_confint(row[metric] * people, people, method="wilson")
            row[f"{metric}_low"], row[f"{metric}_high"] = ends
    for metric in ("auc", "accuracy"):
        row[f"{metric}_seed_sd"] = pd.DataFrame(points)[metric].std()
    wide = test.pivot(index=["image_id", "label", "patient"], columns="seed", values="score")
    half = np.nan
    if not wide.isna().any(axis=None):
        about = wide.index.to_frame()
        spread = obuchowski(about["label"].to_numpy(), wide.to_numpy().T, about["patient"].to_numpy())
        half = norm.ppf(0.975) * np.sqrt(max(spread.mean(), 0))
    row["auc_delong_low"], row["auc_delong_high"] = np.clip([row["auc"] - half, row["auc"] + half], 0, 1)
    row |= {"threshold": np.mean(thresholds), "seeds": len(points), "n_test": round(len(test) / len(points))}
    row["train_seconds"] = np.mean([run["train_seconds"] for run in runs])
    row["claimed_accuracy"] = RECIPES[recipe].claims.get("accuracy", np.nan) if claimed else np.nan
    return row


def assert_recomputes(place):
    board = pd.read_csv(place / "leaderboard.csv")
    assert list(board.columns) == list(tables.LEADERBOARD)
    files = {file.stem for file in (place / "scores").glob("*.csv")}
    assert set(board["recipe"]) == files
    tables = {name: scores.read(place / "scores" / f"{name}.csv") for name in files}
    pairs = {(name, p) for name in files for p in tables[name]["protocol"] if p in PROTOCOLS}
    assert sorted(zip(board["recipe"], board["protocol"], strict=True)) == sorted(pairs)
    for row in board.to_dict(orient="records"):
        recipe, protocol = row["recipe"], row["protocol"]
        runs = json.loads((place / "metrics" / f"{recipe}.json").read_text())["runs"]
        runs = [run for run in runs if run["protocol"] == protocol]
        table = tables[recipe]
        again = recomputed(
            table[table["protocol"] == protocol], runs, recipe, protocol, place.name != "phantom"
        )
        numeric = {name for name, value in row.items() if isinstance(value, (int, float))}
        assert numeric >= set(again) and numeric - set(again) == set()
        for name, value in again.items():
            close = pytest.approx(value, rel=1e-8, abs=1e-6, nan_ok=True)
            assert row[name] == close, (recipe, protocol, name)
        assert {row["init"]} == {run["init"] for run in runs}
        assert set(row["hardware"].split("; ")) == {run["hardware"] for run in runs}


@pytest.fixture
def three_recipes():
    for seed in (0, 1):
        for recipe, protocol in (
            ("mobilenetv2-frozen", "strict"),
            ("tiny-cnn-28", "strict"),
            ("tiny-cnn-28", "published"),
            ("scratch-cnn", "strict"),
        ):
            tables.record(run_of(recipe, protocol, seed), "made-up")
    return tables.leaderboard("made-up")


def test_every_cell_recomputes_with_scikit_learn_and_another_bootstrap(three_recipes):
    assert_recomputes(tables.folder("made-up"))


def test_the_leaderboard_has_its_columns_order_and_claims(three_recipes):
    board = three_recipes
    assert tuple(board.columns) == tables.LEADERBOARD
    rows = list(zip(board["recipe"], board["protocol"], strict=True))
    assert rows[1:3] == [("tiny-cnn-28", "published"), ("tiny-cnn-28", "strict")]
    assert [rows[0][0], rows[3][0]] == ["scratch-cnn", "mobilenetv2-frozen"]
    assert board["claimed_accuracy"].tolist()[:3] == [0.83, 0.95, 0.95]
    assert np.isnan(board["claimed_accuracy"].iloc[3])
    assert board["threshold"].iloc[1] == 0.5
    assert board["train_seconds"].tolist() == [10.5] * 4


def test_figures_in_the_json_are_those_of_the_leaderboard(three_recipes):
    file = tables.folder("made-up") / "metrics" / "tiny-cnn-28.json"
    said = json.loads(file.read_text())["figures"]["strict"]["test"]
    row = three_recipes[(three_recipes["recipe"] == "tiny-cnn-28") & (three_recipes["protocol"] == "strict")]
    for metric in ("auc", "accuracy", "f1"):
        assert said[metric]["value"] == pytest.approx(row[metric].item(), abs=2e-6)


def test_one_seed_has_no_spread_and_the_json_stays_standard():
    tables.record(run_of(), "made-up")
    text = (tables.folder("made-up") / "metrics" / "tiny-cnn-28.json").read_text()

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    said = json.loads(text, parse_constant=refuse)["figures"]["strict"]["test"]
    assert said["auc"]["seed_sd"] is None and 0 < said["auc"]["low"] < said["auc"]["value"]


def spoilt(change):
    tables.record(run_of(), "made-up")
    file = tables.folder("made-up") / "scores" / "tiny-cnn-28.csv"
    table = scores.read(file)
    scores.write(change(table), file)


SPOILT = {
    "no number": (lambda t: t.assign(score=t["score"].where(t["image_id"] != "test007")), "test007"),
    "above one": (lambda t: t.assign(score=t["score"].mask(t["image_id"] == "val003", 1.5)), "val003"),
    "below zero": (lambda t: t.assign(score=t["score"].mask(t["image_id"] == "val003", -0.1)), "val003"),
    "infinite": (lambda t: t.assign(score=t["score"].mask(t["image_id"] == "val003", np.inf)), "val003"),
    "twice": (lambda t: pd.concat([t, t[t["image_id"] == "test011"]]), "test011"),
    "another label": (lambda t: t.assign(label=t["label"].mask(t["image_id"] == "test001", 2)), "test001"),
    "one class": (lambda t: t[(t["split"] != "test") | (t["label"] == 1)], "strict, 0, test"),
    "no rows": (lambda t: t[:0], "empty"),
}


@pytest.mark.parametrize(("change", "named"), SPOILT.values(), ids=SPOILT)
def test_bad_scores_are_refused_by_row(change, named):
    spoilt(change)
    for compute in (tables.leaderboard, tables.load_scores):
        with pytest.raises(DataInvalid, match=rf"{named}.*Fix: "):
            compute("made-up")
    assert not (tables.folder("made-up") / "leaderboard.csv").exists()


def test_without_scores_the_mend_is_named():
    with pytest.raises(NotFound, match=r"no scores in .*made-up.*Fix: .*DATASET=made-up"):
        tables.leaderboard("made-up")
    with pytest.raises(NotFound, match=r"no scores below .*Fix: "):
        pages.build_index()


def test_scores_without_their_runs_are_refused():
    tables.record(run_of(), "made-up")
    (tables.folder("made-up") / "metrics" / "tiny-cnn-28.json").unlink()
    with pytest.raises(NotFound, match=r"tiny-cnn-28\.json.*Fix: "):
        tables.leaderboard("made-up")


def drawing():
    figure = Figure(figsize=(2, 1))
    figure.add_subplot().plot([0, 1], [0, 1])
    return figure


def test_a_figure_holds_its_caption_and_the_same_one_the_same_bytes():
    caption = "AUC ≥ .9 & n = 12 <test>"
    file = tables.save_figure(drawing(), "made-up", "01_line", caption)
    with Image.open(file) as image:
        assert image.info["Description"] == caption
        assert image.width >= 200
    before = file.read_bytes()
    assert tables.save_figure(drawing(), "made-up", "01_line", caption).read_bytes() == before


@pytest.mark.parametrize(
    ("dataset", "patients", "place"),
    [
        ("kermany", True, "local"),
        ("folder-ward-0123abcd", True, "local"),
        ("kermany", False, "figures"),
        ("phantom", True, "figures"),
    ],
)
def test_pixels_of_patients_stay_on_this_machine(dataset, patients, place):
    file = tables.save_figure(drawing(), dataset, "01_films", "Films.", patients=patients)
    assert file == tables.folder(dataset) / place / "01_films.png" and file.exists()


def test_a_place_that_cannot_be_written_is_named():
    paths.REPORTS.parent.mkdir(exist_ok=True)
    paths.REPORTS.write_text("a file")
    with pytest.raises(Failed, match=r"cannot write .*reports.*Fix: "):
        tables.record(run_of(), "made-up")
    with pytest.raises(Failed, match=r"cannot write .*Fix: "):
        tables.save_figure(drawing(), "made-up", "01_line", "A line.")


class _Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def all(self, tag):
        return [about for name, about in self.tags if name == tag]


@pytest.fixture
def page(three_recipes):
    tables.record(run_of(), "phantom")
    tables.save_figure(drawing(), "made-up", "02_b", 'Second, "quoted" & <odd>.')
    tables.save_figure(drawing(), "made-up", "01_a", "First.")
    tables.save_figure(drawing(), "made-up", "00_child", "A child.", patients=True)
    notebook = tables.folder("made-up") / "notebooks" / "01_eda.html"
    notebook.parent.mkdir()
    notebook.write_text("<p>run</p>")
    return pages.build_index().read_text(encoding="utf-8")


def test_the_page_needs_nothing_but_the_figures_beside_it(page):
    assert outside_references(page) == []
    pictures = _Page(page).all("img")
    assert [about["src"] for about in pictures] == ["made-up/figures/01_a.png", "made-up/figures/02_b.png"]
    for about in pictures:
        with Image.open(paths.REPORTS / about["src"]) as picture:
            assert (int(about["width"]), int(about["height"])) == picture.size
    assert [about["alt"] for about in pictures] == ["First.", 'Second, "quoted" & <odd>.']
    assert _Page(page).all("script") == []


def test_the_page_lists_every_data_set_the_phantom_last(page):
    headings = [about["id"] for about in _Page(page).all("h2")]
    assert headings == ["made-up", "phantom"]
    anchors = [about["href"] for about in _Page(page).all("a") if about["href"].startswith("#")]
    assert anchors == ["#made-up", "#phantom"]
    for recipe in ("tiny-cnn-28", "scratch-cnn", "mobilenetv2-frozen"):
        assert f'<td class="name">{recipe}</td>' in page


def test_links_of_the_page_lead_somewhere(page):
    links = [about["href"] for about in _Page(page).all("a") if not about["href"].startswith("#")]
    assert links == [
        *("made-up/leaderboard.csv", "made-up/tables/claims.csv", "made-up/tables/training_claims.csv"),
        "made-up/notebooks/01_eda.html",
        *("phantom/leaderboard.csv", "phantom/tables/claims.csv", "phantom/tables/training_claims.csv"),
    ]
    assert all((paths.REPORTS / link).exists() for link in links)


def test_the_page_says_what_the_leaderboard_says(page, three_recipes):
    best = three_recipes.sort_values("auc").iloc[-1]
    assert f"<b>{best['auc']:.3f}</b>".replace("0.", ".") in page
    assert "Not a medical device" in page


COMMITTED_NAMES = sorted(file.parent.name for file in COMMITTED.glob("*/leaderboard.csv"))


def test_real_and_simulated_results_are_committed():
    assert {"phantom", "kermany"} <= set(COMMITTED_NAMES)


@pytest.mark.parametrize("name", COMMITTED_NAMES)
def test_the_committed_leaderboards_recompute(name):
    assert_recomputes(COMMITTED / name)


@pytest.mark.parametrize("file", sorted(COMMITTED.glob("*/scores/*.csv")), ids=lambda file: file.stem)
def test_committed_scores_hold_no_path_and_no_pixels(file):
    table = scores.read(file)
    assert tuple(pd.read_csv(file, nrows=1).columns) == scores.COLUMNS
    text = table.select_dtypes(exclude="number")
    assert not text.apply(lambda column: column.str.contains(r"[/\\]|\.(?:jpe?g|png|dcm)$")).any().any()
    assert text.apply(lambda column: column.str.len()).to_numpy().max() < 64
    assert set(table["recipe"]) == {file.stem}


def test_metrics_written_with_fewer_figures_are_computed_anew():
    for seed in (0, 1):
        tables.record(run_of(seed=seed), "made-up")
    file = tables.folder("made-up") / "metrics" / "tiny-cnn-28.json"
    whole, before = file.read_text(), file.stat().st_mtime_ns
    tables.refresh_metrics("made-up")
    assert file.stat().st_mtime_ns == before
    held = json.loads(whole)
    del held["figures"]["strict"]["test"]["mcc"]
    file.write_text(json.dumps(held))
    tables.refresh_metrics("made-up")
    assert file.read_text() == whole


def test_metrics_of_other_scores_are_computed_anew():
    tables.record(run_of(), "made-up")
    place = tables.folder("made-up")
    table = scores.read(place / "scores" / "tiny-cnn-28.csv")
    scores.write(table.assign(score=1 - table["score"]), place / "scores" / "tiny-cnn-28.csv")
    file = place / "metrics" / "tiny-cnn-28.json"
    before = json.loads(file.read_text())["figures"]["strict"]["test"]["auc"]["value"]
    tables.refresh_metrics("made-up")
    held = json.loads(file.read_text())
    assert held["figures"]["strict"]["test"]["auc"]["value"] == pytest.approx(1 - before, abs=1e-5)
    val = table[table["split"] == "val"]
    expected = youden(val["label"].to_numpy(), 1 - val["score"].to_numpy())
    assert held["runs"][0]["threshold"] == pytest.approx(expected)
    (place / "scores" / "tiny-cnn-28.csv").unlink()
    with pytest.raises(NotFound, match=r"tiny-cnn-28\.json is of scores that are not in .* Fix: delete it"):
        tables.refresh_metrics("made-up")


def test_seeds_tested_on_other_images_leave_the_table(caplog):
    for seed in (0, 1):
        tables.record(run_of(seed=seed), "made-up")
    run = run_of(seed=0)
    new = run.scores[run.scores["split"] == "test"].iloc[[0]].assign(image_id="new", patient="new")
    tables.record(replace(run, scores=pd.concat([run.scores, new])), "made-up")
    assert seeds_kept() == [0]
    assert "seed 1 was trained otherwise and leaves the table" in caplog.text
    tables.record(run_of(seed=1, protocol="published"), "made-up")
    assert len(tables.load_scores("made-up")["protocol"].unique()) == 2


@pytest.mark.parametrize("dataset", ["kermany", "phantom"])
def test_the_committed_metrics_are_of_the_committed_scores(dataset):
    for file in (COMMITTED / dataset / "metrics").glob("*.json"):
        held, table = (
            json.loads(file.read_text()),
            scores.read(COMMITTED / dataset / f"scores/{file.stem}.csv"),
        )
        for run in held["runs"]:
            rule = operating_point(file.stem, run["protocol"])
            own = table[(table["protocol"] == run["protocol"]) & (table["seed"] == run["seed"])]
            val = own[own["split"] == "val"]
            at = youden(val["label"].to_numpy(), val["score"].to_numpy()) if rule == "validation" else rule
            assert run["threshold"] == pytest.approx(at, abs=1e-9), "the threshold is that of the run"
        assert set(held["figures"]) == set(table["protocol"]), file.stem
        for protocol, sides in held["figures"].items():
            part = table[(table["protocol"] == protocol) & (table["split"] == "test")]
            found = part.groupby("seed").apply(lambda one: sk.roc_auc_score(one["label"], one["score"]))
            assert set(sides["test"]) == set(METRICS), file.stem
            assert sides["test"]["auc"]["value"] == pytest.approx(found.mean(), abs=1e-6), file.stem


def test_a_committed_figure_says_of_how_many_images_it_is():
    figures = sorted((COMMITTED / "kermany" / "figures").glob("*.png"))
    assert len(figures) > 30
    for file in figures:
        with Image.open(file) as image:
            caption = image.info["Description"]
        # Whether several devices learn what one does is no figure of images.
        assert file.stem == "05_devices" or re.search(
            r"\bn (=|beside|on each)|\d training images", caption
        ), file
