import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
from builders import scores
from matplotlib.figure import Figure
from outside import Page, outside_references
from PIL import Image
from scipy.special import expit, logit
from scipy.stats import t as student
from sklearn import metrics as sk

from xraylib import paths
from xraylib.errors import NotFoundError
from xraylib.report import pages, tables
from xraylib.training import runs
from xraylib.training.recipes import RECIPES

COMMITTED = paths.ROOT / "reports" / "kermany"
CHOICES = {"network": "tiny_cnn", "size": 28, "batch_size": 32, "phases": [{"epochs": 3}]}
here = pytest.mark.usefixtures("reports_here")


def made_run(
    recipe="tiny-cnn-28", protocol="strict", seed=0, dataset="made-up", threshold=0.5, **settings
):
    """Write a finished run with made-up scores of 40 patients, coarse enough to have ties."""
    table = scores(40, images=2, seeds=(seed,), sample=10 * len(recipe) + seed)
    table = table.assign(recipe=recipe, protocol=protocol, score=table["score"].round(2))
    folder = runs.run_folder(dataset, recipe, protocol, seed)
    folder.mkdir(parents=True)
    runs.write_scores(table[list(runs.SCORE_COLUMNS)], folder / "scores.csv")
    (folder / "history.csv").write_text(
        "epoch,phase,loss,accuracy,val_loss,val_accuracy\n1,0,.7,.5,.75,.5\n"
    )
    about = {
        "recipe": recipe,
        "protocol": protocol,
        "seed": seed,
        "init": "random",
        "choices": CHOICES,
    }
    about |= {"hardware": "CPU of a test", "train_seconds": 10.0 + seed, "threshold": threshold}
    (folder / "run.json").write_text(json.dumps(about | settings))


@pytest.fixture
def three_recipes(reports_here):
    strict = [
        (name, "strict", 0.45) for name in ("mobilenetv2-frozen", "tiny-cnn-28", "scratch-cnn")
    ]
    for seed in (0, 1, 2):
        for recipe, protocol, threshold in (*strict, ("tiny-cnn-28", "published", 0.5)):
            made_run(recipe, protocol, seed, threshold=threshold)
    pages.build("made-up")
    return tables.report_folder("made-up")


CLASSIFIED = {
    "accuracy": sk.accuracy_score,
    "sensitivity": sk.recall_score,
    "specificity": partial(sk.recall_score, pos_label=0),
    "precision": sk.precision_score,
    "npv": partial(sk.precision_score, pos_label=0, zero_division=np.nan),
    "f1": sk.f1_score,
    "balanced_accuracy": sk.balanced_accuracy_score,
    "mcc": sk.matthews_corrcoef,
}
RANKED = {
    "auc": sk.roc_auc_score,
    "average_precision": sk.average_precision_score,
    "brier": sk.brier_score_loss,
}


def bootstrap_aucs(labels, values, weights):
    """Share of pairs (positive, negative) ranked correctly, each pair as often as it was resampled."""
    positive, negative = values[labels == 1], values[labels == 0]
    right = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    w_positive, w_negative = (
        weights[:, labels == 1].astype(float),
        weights[:, labels == 0].astype(float),
    )
    return ((w_positive @ right) * w_negative).sum(1) / (w_positive.sum(1) * w_negative.sum(1))


def recomputed(folders):
    """A row of the leaderboard from scores and frozen thresholds, by scikit-learn and another bootstrap."""
    tests = [
        pd.read_csv(folder / "scores.csv", dtype={"patient": str}).query("split == 'test'")
        for folder in folders
    ]
    thresholds = [json.loads((folder / "run.json").read_text())["threshold"] for folder in folders]
    patients = np.unique(np.concatenate([test["patient"] for test in tests]))
    # Shares the resamples with the package, and nothing else.
    share = np.full(len(patients), 1 / len(patients))
    resampled = np.random.default_rng(0).multinomial(len(patients), share, 2000)
    points, accuracies, aucs = [], [], []
    for test, threshold in zip(tests, thresholds, strict=True):
        labels, values = test["label"].to_numpy(), test["score"].to_numpy()
        found = (values >= threshold).astype(int)
        row = {name: metric(labels, found) for name, metric in CLASSIFIED.items()}
        row |= {name: metric(labels, values) for name, metric in RANKED.items()}
        points.append(row if 0 < found.sum() < len(found) else row | {"mcc": np.nan})
        weights = resampled[:, np.searchsorted(patients, test["patient"])]
        accuracies.append(weights @ (found == labels) / weights.sum(1))
        with np.errstate(invalid="ignore"):
            aucs.append(bootstrap_aucs(labels, values, weights))
    row = pd.DataFrame(points).mean().to_dict() | {
        "threshold": np.mean(thresholds),
        "seeds": len(folders),
    }
    for name, values in (("accuracy", accuracies), ("auc", aucs)):
        row[f"{name}_seed_sd"] = pd.DataFrame(points)[name].std()
        low, high = np.nanpercentile(np.mean(values, axis=0), [2.5, 97.5])
        row[f"{name}_patients_low"], row[f"{name}_patients_high"] = low, high
        if (k := len(folders)) >= 3:
            spread = row[f"{name}_seed_sd"] / k**0.5 * student.ppf(0.975, k - 1)
            shared = (
                pd.DataFrame(np.transpose(values))
                .dropna()
                .cov()
                .to_numpy()[~np.eye(k, dtype=bool)]
                .mean()
            )
            mean, half = row[name], (spread**2 + 1.96**2 * max(0.0, shared)) ** 0.5
            ends = (
                expit(logit(mean) + np.array([-1, 1]) * half / (mean * (1 - mean)))
                if 0 < mean < 1
                else [mean] * 2
            )
            low, high = min(low, ends[0]), max(high, ends[1])
        row[f"{name}_low"], row[f"{name}_high"] = low, high
    return row


def assert_recomputes(place):
    board = pd.read_csv(place / "leaderboard.csv")
    assert list(board.columns) == list(tables.LEADERBOARD)
    there = {
        (file.parents[1].name, file.parent.name.rsplit("-", 1)[0])
        for file in place.glob("runs/*/*/run.json")
    }
    due = {(recipe, protocol) for recipe, protocol in there if protocol in ("strict", "published")}
    assert sorted(zip(board["recipe"], board["protocol"], strict=True)) == sorted(due)
    for row in board.to_dict(orient="records"):
        folders = sorted((place / "runs" / row["recipe"]).glob(f"{row['protocol']}-*"))
        for name, value in recomputed(folders).items():
            close = pytest.approx(value, rel=1e-8, abs=1e-6, nan_ok=True)
            assert row[name] == close, (row["recipe"], row["protocol"], name)


def test_every_cell_recomputes_with_scikit_learn_and_another_bootstrap(three_recipes):
    assert_recomputes(three_recipes)


@pytest.mark.slow
def test_the_committed_leaderboard_recomputes():
    assert_recomputes(COMMITTED)


def test_the_committed_ablation_recomputes():
    table, runs_, scored = (
        pd.read_csv(COMMITTED / "ablation" / f"{name}.csv") for name in ("table", "runs", "scores")
    )

    def auc(variant, seeds):
        return np.mean(
            [sk.roc_auc_score(scored["label"], scored[f"{variant}/{seed}"]) for seed in seeds]
        )

    for row in table.itertuples():
        own = runs_[runs_["variant"] == row.variant]
        assert row.runs == len(own) and row.test_auc == pytest.approx(
            auc(row.variant, own["seed"]), abs=1e-6
        )
        worst = own[["framing", "rendering", "both"]].min(axis=1).mean()
        assert row.validation_worst_view == pytest.approx(worst, abs=1e-6)
        if row.variant != "reframed":
            base = auc("reframed", own["seed"])
            assert row.difference == pytest.approx(row.test_auc - base, abs=1e-6)
            assert row.low < row.difference < row.high


def test_the_committed_scores_hold_no_path_and_no_pixels():
    for file in COMMITTED.glob("runs/*/*/scores.csv"):
        table = pd.read_csv(file)
        assert tuple(table.columns) == runs.SCORE_COLUMNS
        text = table.select_dtypes(exclude="number").astype(str)
        assert (
            not text.apply(lambda column: column.str.contains(r"[/\\]|\.(?:jpe?g|png|dcm)$"))
            .any()
            .any()
        )
        assert set(table["recipe"]) == {file.parents[1].name}


def test_the_leaderboard_has_its_order_claims_and_run_facts(three_recipes):
    board = tables.leaderboard("made-up")
    rows = list(zip(board["recipe"], board["protocol"], strict=True))
    assert [rows[0][0], rows[3][0]] == ["scratch-cnn", "mobilenetv2-frozen"]
    assert sorted(rows[1:3]) == [("tiny-cnn-28", "published"), ("tiny-cnn-28", "strict")]
    assert board["claimed_accuracy"].tolist()[:3] == [0.83, 0.95, 0.95]
    assert board["train_seconds"].tolist() == [11.0] * 4 and set(board["init"]) == {"random"}
    some = tables.leaderboard("made-up", ["tiny-cnn-28", "kerasio-tpu"])
    assert set(some["recipe"]) == {"tiny-cnn-28"}
    none = tables.leaderboard("made-up", ["kerasio-tpu"])
    assert none.empty and tuple(none.columns) == tables.LEADERBOARD


@here
def test_seeds_of_different_settings_are_averaged_aloud(caplog):
    made_run(seed=0)
    made_run(seed=1, choices={"epochs": 20})
    assert tables.leaderboard("made-up")["seeds"].tolist() == [2]
    assert (
        "tiny-cnn-28, strict: seeds of different settings" in caplog.text and "Fix: " in caplog.text
    )


@here
def test_without_runs_the_fix_is_named_and_nothing_is_written():
    with pytest.raises(NotFoundError, match=r"no runs in .*made-up.*Fix: "):
        pages.build("made-up")
    assert not tables.report_folder("made-up").exists()


@here
def test_a_recipe_that_is_no_longer_known_stays_in_the_report():
    made_run("renamed-cnn", threshold=0.6)
    page = pages.build("made-up").read_text(encoding="utf-8")
    assert '<td class="name">renamed-cnn</td>' in page
    assert tables.leaderboard("made-up")["threshold"].tolist() == [0.6], (
        "the threshold is that of the run"
    )
    assert "| `renamed-cnn` |" in (tables.report_folder("made-up") / "model_card.md").read_text(
        encoding="utf-8"
    )


def line():
    figure = Figure(figsize=(2, 1))
    figure.add_subplot().plot([0, 1], [0, 1])
    return figure


@here
def test_pixels_of_patients_stay_on_this_machine():
    for dataset, patients, place in (
        *(("kermany", True, "local"), ("folder-ward-0123abcd", True, "local")),
        *(("kermany", False, "figures"), ("phantom", True, "figures")),
    ):
        file = tables.save_figure(line(), dataset, "01_films", "Films.", patients=patients)
        assert file == tables.report_folder(dataset) / place / "01_films.png" and file.exists()


@pytest.fixture
def page(three_recipes):
    captions = {"02_b": 'Second, "quoted" & <odd>.', "06_leaderboard": "Board.", "01_a": "First."}
    for name, caption in (captions | {"07_c": "Prediction.", "08_d": "New."}).items():
        tables.save_figure(line(), "made-up", name, caption)
    tables.save_figure(line(), "made-up", "00_child", "A child.", patients=True)
    (three_recipes / "notebooks").mkdir()
    (three_recipes / "notebooks" / "01_eda.html").write_text("<p>run</p>")
    return pages.build("made-up")


def test_the_page_shows_the_figures_of_every_notebook_and_none_of_patients(page):
    text = page.read_text(encoding="utf-8")
    pictures = Page(text).all("img")
    names = ["06_leaderboard", "01_a", "02_b", "07_c", "08_d"]
    assert [about["src"] for about in pictures] == [f"figures/{name}.png" for name in names]
    assert pictures[2]["alt"] == 'Second, "quoted" & <odd>.'
    for about in pictures:
        with Image.open(page.parent / about["src"]) as picture:
            assert (int(about["width"]), int(about["height"])) == picture.size


def test_the_page_needs_nothing_from_outside_and_its_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    assert outside_references(text) == [] and Page(text).all("script") == []
    links = {about["href"] for about in Page(text).all("a") if not about["href"].startswith("#")}
    assert links >= {
        "model_card.md",
        "leaderboard.csv",
        "tables/claims.csv",
        "notebooks/01_eda.html",
    }
    anchors = {about["href"][1:] for about in Page(text).all("a") if about["href"].startswith("#")}
    assert anchors <= {about.get("id") for about in Page(text).all("h2")}
    assert all((page.parent / link).exists() for link in links)


def test_page_and_model_card_say_what_the_leaderboard_says(page):
    text, card = (
        page.read_text(encoding="utf-8"),
        (page.parent / "model_card.md").read_text(encoding="utf-8"),
    )
    for row in tables.leaderboard("made-up").to_dict(orient="records"):
        interval = f"({row['auc_low']:.3f}–{row['auc_high']:.3f})"
        assert f'<b>{row["auc"]:.3f}</b> <span class="interval">{interval}</span>' in text
        if row["protocol"] == "strict":
            assert f"{row['auc']:.3f} {interval}" in card
            ppv = (
                row["sensitivity"]
                * 0.05
                / (row["sensitivity"] * 0.05 + (1 - row["specificity"]) * 0.95)
            )
            assert f"| `{row['recipe']}` | {ppv:.2f}"[:-1] in card
    assert "Not a medical device" in text and "Not a medical device" in card
    for name in ("tiny-cnn-28", "scratch-cnn"):
        assert RECIPES[name].title in text


@here
@pytest.mark.parametrize("dataset", ["phantom", "folder-ward-0123abcd"])
def test_a_model_card_states_no_facts_of_another_data_set(dataset):
    made_run(dataset=dataset)
    pages.build(dataset)
    card = (tables.report_folder(dataset) / "model_card.md").read_text(encoding="utf-8")
    for fact in ("children", "Kermany", "One hospital", "graded by two", "person1_virus"):
        assert fact not in card
    assert ("simulated" in card) == (dataset == "phantom")


def test_the_committed_page_depends_on_committed_files_only(monkeypatch, tmp_path):
    """Executed notebooks and figures of patients, which git ignores, do not change it."""
    monkeypatch.setattr(paths, "ROOT", tmp_path, raising=False)
    monkeypatch.setenv("XRAYLIB_REPORTS", str(tmp_path / "reports"))
    made_run(dataset="kermany")
    before = pages.build("kermany").read_bytes()
    for name in (
        "notebooks/01_eda.html",
        "local/01_samples.png",
        "runs/tiny-cnn-28/strict-0/model.weights.h5",
    ):
        (tmp_path / "reports/kermany" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "reports/kermany" / name).write_text("local")
    assert pages.build("kermany").read_bytes() == before


def test_readme_table_is_that_of_the_report(three_recipes, tmp_path):
    readme = tmp_path / "README.md"
    mark = "<!-- accuracy:{} (written by `make report`) -->\nold\n<!-- end -->\n"
    readme.write_text(mark.format("made-up") + mark.format("nowhere"))
    pages.write_readme_table(readme)
    text = readme.read_text()
    row = (
        tables.leaderboard("made-up")
        .set_index(["recipe", "protocol"])
        .loc[("tiny-cnn-28", "strict")]
    )
    value = f"{row['accuracy']:.3f} ({row['accuracy_low']:.3f}–{row['accuracy_high']:.3f})"
    assert (
        "| `tiny-cnn-28` | 0.950 |" in text
        and f"| {value} | – |" in text
        and text.count("old") == 1
    )
    pages.write_readme_table(readme)
    assert readme.read_text() == text


def test_a_table_is_read_with_its_intervals_in_one_column():
    table = pd.DataFrame(
        {
            "recipe": ["a", "b"],
            "auc": [0.51234, np.nan],
            "low": [0.4, np.nan],
            "high": [0.6, np.nan],
        }
    )
    table = table.assign(
        n=[3, 4], gain=[0.1, -0.1], gain_low=[0.0, -0.2], gain_high=[0.2, 0.0], p=[0.04321, 1.0]
    )
    shown = tables.compact(table)
    assert list(shown) == ["recipe", "auc", "n", "gain", "p"]
    assert shown.loc[0].tolist() == ["a", "0.512 (0.400–0.600)", 3, "0.100 (0.000–0.200)", 0.043]
    assert shown.loc[1, "auc"] == "–" and shown.loc[1, "gain"] == "-0.100 (-0.200–0.000)"
