import json
import re
from functools import partial

import numpy as np
import pandas as pd
import pytest
import yaml
from builders import scores
from matplotlib.figure import Figure
from outside import Page, outside_references
from PIL import Image
from scipy.special import expit, logit
from scipy.stats import t as student
from sklearn import metrics as sk

from xraylib import paths
from xraylib.errors import InvalidDataError, NotFoundError
from xraylib.evaluation import claims
from xraylib.figures.story import lines
from xraylib.report import findings, pages, tables, values
from xraylib.training import runs
from xraylib.training.recipes import RECIPES

COMMITTED = paths.ROOT / "reports" / "kermany"
CHOICES = {"network": "tiny_cnn", "size": 28, "batch_size": 32, "phases": [{"epochs": 3}]}
CHOICES |= {"fit": "network", "head": "two-logits", "augmentation": None}
here = pytest.mark.usefixtures("reports_here")


def run_folder(dataset, recipe, protocol, seed):
    return paths.REPORTS / dataset / "runs" / recipe / f"{protocol}-{seed}"


def made_run(
    recipe="tiny-cnn-28", protocol="strict", seed=0, dataset="made-up", threshold=0.5, **settings
):
    """Write a finished run with made-up scores of 40 patients, coarse enough to have ties."""
    table = scores(40, images=2, seeds=(seed,), sample=10 * len(recipe) + seed)
    table = table.assign(recipe=recipe, protocol=protocol, score=table["score"].round(2))
    folder = run_folder(dataset, recipe, protocol, seed)
    folder.mkdir(parents=True)
    runs.write_scores(table[list(runs.SCORE_COLUMNS)], folder / "scores.csv")
    (folder / "history.csv").write_text(
        "epoch,phase,loss,accuracy,val_loss,val_accuracy\n1,0,.7,.5,.75,.5\n"
    )
    about = {
        "dataset": dataset,
        "model_sha256": "",
        "recipe": recipe,
        "protocol": protocol,
        "seed": seed,
        "init": "random",
        "choices": CHOICES,
    }
    about |= {"hardware": "CPU of a test", "train_seconds": 10.0 + seed, "threshold": threshold}
    (folder / "run.json").write_text(json.dumps(about | settings))


def figure_facts(file):
    """What a figure says it was made from; None if it does not say."""
    with Image.open(file) as image:
        source = image.info.get("Source")
    return None if source is None else json.loads(source)


@pytest.fixture
def three_recipes(reports_here):
    strict = [
        (name, "strict", 0.45) for name in ("mobilenetv2-frozen", "tiny-cnn-28", "scratch-cnn")
    ]
    for seed in (0, 1, 2):
        for recipe, protocol, threshold in (*strict, ("tiny-cnn-28", "published", 0.5)):
            made_run(recipe, protocol, seed, threshold=threshold)
    pages.build("made-up")
    return paths.REPORTS / "made-up"


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
    """Share of pairs (positive, negative) ranked correctly, as often as it was resampled."""
    positive, negative = values[labels == 1], values[labels == 0]
    right = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    w_positive, w_negative = (
        weights[:, labels == 1].astype(float),
        weights[:, labels == 0].astype(float),
    )
    return ((w_positive @ right) * w_negative).sum(1) / (w_positive.sum(1) * w_negative.sum(1))


def recomputed(folders):
    """A row of the leaderboard by scikit-learn and another bootstrap."""
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
    assert list(board.columns) == tables.LEADERBOARD
    due = {}
    for file in sorted(place.glob("runs/*/*/run.json")):
        about = json.loads(file.read_text())
        if about["protocol"] in ("strict", "published"):
            version = about.get("training_version", 1)
            key = (about["recipe"], about["protocol"], about["init"], version)
            due.setdefault(key, []).append(file.parent)
    keys = ["recipe", "protocol", "init", "training_version"]
    rows = {tuple(row[key] for key in keys): row for row in board.to_dict(orient="records")}
    assert rows.keys() == due.keys() and len(rows) == len(board)
    for key, row in rows.items():
        folders = due[key]
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
    assert board["train_seconds"].tolist() == [11.0] * 4 and set(board["init"]) == {"random"}
    some = tables.leaderboard("made-up", ["tiny-cnn-28", "kerasio-tpu"])
    assert set(some["recipe"]) == {"tiny-cnn-28"}
    none = tables.leaderboard("made-up", ["kerasio-tpu"])
    assert none.empty and list(none.columns) == tables.LEADERBOARD


@here
@pytest.mark.parametrize("dataset", ["phantom", "folder-ward-0123abcd", "pneumoniamnist"])
def test_a_claim_is_shown_on_its_own_images_alone(dataset):
    for name in (dataset, "kermany"):
        made_run(protocol="published", dataset=name)
    assert tables.leaderboard("kermany")["claimed_accuracy"].tolist() == [0.95]
    assert tables.leaderboard(dataset)["claimed_accuracy"].isna().all()
    assert set(tables.claims(dataset)["verdict"]) == {""}
    assert "Claimed and measured" in pages.build("kermany").read_text(encoding="utf-8")
    assert "Claimed and measured" not in pages.build(dataset).read_text(encoding="utf-8")


OTHER = {
    "budget": {"budget": "quick"},
    "precision": {"precision": "mixed_bfloat16"},
    "backend": {"backend": "jax"},
    "init": {"init": "imagenet"},
    "code": {"training_version": 1},
    "recipe": {"choices": CHOICES | {"batch_size": 8}},
    "hardware line": {"hardware": "CPU of a test · jax · float32 · one device"},
}


@here
@pytest.mark.parametrize("name", OTHER)
def test_runs_that_differ_in_more_than_the_seed_are_never_averaged(caplog, name):
    made_run(seed=0, training_version=2)
    made_run(seed=1, training_version=2)
    made_run(seed=2, **{"training_version": 2} | OTHER[name])
    board = tables.leaderboard("made-up")
    # Runs of another identity are in no row; those of a recipe that was changed are in their own.
    seeds_of_rows = [[0, 1], [2]] if name == "recipe" else [[0, 1]]
    assert board["seeds"].tolist() == [len(seeds) for seeds in seeds_of_rows]
    assert set(board["over"]) == {"patients"}
    for row, seeds in zip(board.to_dict(orient="records"), seeds_of_rows, strict=True):
        folders = [run_folder("made-up", "tiny-cnn-28", "strict", seed) for seed in seeds]
        assert row["accuracy"] == pytest.approx(recomputed(folders)["accuracy"])
    claim = tables.claims("made-up").query("metric == 'accuracy'").iloc[0]
    assert claim["strict"] == pytest.approx(board["accuracy"].iloc[0])
    assert "tiny-cnn-28, strict: 1 runs of another budget or other settings" in caplog.text
    assert "Fix, if" in caplog.text


@here
def test_seeds_of_one_identity_are_averaged_without_a_warning(caplog):
    for seed in range(3):
        made_run(seed=seed)
    (row,) = tables.leaderboard("made-up").to_dict(orient="records")
    assert (row["seeds"], row["over"]) == (3, "runs and patients")
    assert "different settings" not in caplog.text


@here
def test_runs_of_older_code_say_what_their_budget_was():
    made_run(hardware="CPU AMD EPYC, 1 cores · tensorflow · mixed_bfloat16 · one device")
    (row,) = tables.leaderboard("made-up").to_dict(orient="records")
    facts = [row[name] for name in tables.IDENTITY]
    assert facts == ["random", "full", "mixed_bfloat16", "tensorflow", 1]


@here
def test_of_several_training_versions_page_and_card_take_the_newest(tmp_path):
    for seed in range(3):
        made_run(seed=seed, dataset="kermany", training_version=1)
    made_run(seed=3, dataset="kermany", training_version=runs.TRAINING_VERSION)
    for seed in range(3):
        made_run(protocol="published", seed=seed, dataset="kermany", training_version=1)
    made_run("scratch-cnn", dataset="kermany", training_version=1)
    text = pages.build("kermany").read_text(encoding="utf-8")
    card = (paths.REPORTS / "kermany" / "model_card.md").read_text(encoding="utf-8")
    board = tables.leaderboard("kermany").query("recipe == 'tiny-cnn-28'")
    board = board.set_index(["protocol", "training_version"])
    assert sorted(board.index) == [("published", 1), ("strict", runs.TRAINING_VERSION)]
    folder = run_folder("kermany", "tiny-cnn-28", "strict", 3)
    new = board.loc[("strict", runs.TRAINING_VERSION), "auc"]
    assert new == pytest.approx(recomputed([folder])["auc"])
    assert f"<b>{new:.2f}</b>" in text
    assert f"{new:.2f} (" in card
    assert text.count("Tiny CNN, 28 px †") == 0 and text.count("Scratch CNN †") == 1
    assert "share children with their training images" in text
    table = tables.claims("kermany").query("recipe == 'tiny-cnn-28'")
    claim = table.set_index("metric").loc["accuracy"]
    assert claim["strict"] == pytest.approx(board.loc[("strict", 2), "accuracy"])
    readme = tmp_path / "README.md"
    readme.write_text("<!-- accuracy:kermany x -->\n<!-- end accuracy -->\n")
    pages.write_readme_table(readme)
    assert f"{board.loc[('strict', 2), 'accuracy']:.2f} (" in readme.read_text()
    assert readme.read_text().count(" †") == 1 and "share children" in readme.read_text()


@here
def test_the_page_explains_every_verdict():
    made_run(protocol="published", dataset="kermany")
    text = " ".join(pages.build("kermany").read_text(encoding="utf-8").split())
    for verdict in (
        claims.REPRODUCED,
        claims.NOT_REPRODUCED,
        claims.TOO_WIDE,
        claims.UNTESTABLE,
    ):
        assert f"<i>{verdict}</i>" in text
    assert f"at most {claims.WIDEST_HALF_WIDTH:g} to either side" in text


@here
def test_without_runs_the_fix_is_named_and_nothing_is_written():
    with pytest.raises(NotFoundError, match=r"no runs in .*made-up.*Fix: "):
        pages.build("made-up")
    assert not (paths.REPORTS / "made-up").exists()


@here
def test_a_recipe_that_is_no_longer_known_stays_in_the_report():
    made_run("renamed-cnn", threshold=0.6)
    page = pages.build("made-up").read_text(encoding="utf-8")
    assert '<td class="name">renamed-cnn</td>' in page
    assert tables.leaderboard("made-up")["threshold"].tolist() == [0.6], (
        "the threshold is that of the run"
    )
    assert "| `renamed-cnn` |" in (paths.REPORTS / "made-up" / "model_card.md").read_text(
        encoding="utf-8"
    )


def line():
    figure = Figure(figsize=(2, 1))
    figure.add_subplot().plot([0, 1], [0, 1])
    return figure


@here
def test_pixels_of_patients_stay_on_this_machine():
    for dataset, patients, place in (
        ("kermany", True, "local"),
        ("folder-ward-0123abcd", True, "local"),
        ("kermany", False, "figures"),
        ("phantom", True, "figures"),
    ):
        file = tables.save_figure(line(), dataset, "01_images", "Images.", patients=patients)
        assert file == paths.REPORTS / dataset / place / "01_images.png" and file.exists()


@here
def test_pixels_stay_local_unless_somebody_says_that_they_show_no_patient():
    pixels = Figure(figsize=(2, 1))
    pixels.add_subplot().imshow(np.zeros((28, 28)), cmap="gray")
    matrix = Figure(figsize=(2, 1))
    matrix.add_subplot().imshow([[0.9, 0.1], [0.2, 0.8]])
    for figure, options, place in (
        (pixels, {}, "local"),
        (pixels, {"patients": False}, "figures"),
        (matrix, {}, "figures"),
        (line(), {}, "figures"),
    ):
        file = tables.save_figure(figure, "kermany", "01_images", "Images.", **options)
        assert file.parent.name == place
    assert tables.save_figure(pixels, "phantom", "01_images", "").parent.name == "figures"


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
    targets = [about["href"] for about in Page(text).all("a")]
    links = {target for target in targets if not target.startswith(("#", "https:"))}
    assert links >= {
        "model_card.md",
        "leaderboard.csv",
        "tables/claims.csv",
        "notebooks/01_eda.html",
    }
    anchors = {target[1:] for target in targets if target.startswith("#")}
    assert anchors <= {about.get("id") for _, about in Page(text).tags}
    assert all((page.parent / link).exists() for link in links)


def test_page_and_model_card_say_what_the_leaderboard_says(page):
    text, card = (
        page.read_text(encoding="utf-8"),
        (page.parent / "model_card.md").read_text(encoding="utf-8"),
    )
    for row in tables.leaderboard("made-up").to_dict(orient="records"):
        interval = f"({row['auc_low']:.2f}–{row['auc_high']:.2f})"
        assert f'<b>{row["auc"]:.2f}</b> <span class="interval">{interval}</span>' in text
        if row["protocol"] == "strict":
            assert f"{row['auc']:.2f} {interval}" in card
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
def test_the_card_describes_the_model_that_is_in_the_package(monkeypatch, tmp_path):
    made_run("scratch-cnn", dataset="kermany")
    answers = {"sha256": "0" * 64, "prevalence": 0.4321}
    shipped = {"dataset": "kermany", "recipe": "scratch-cnn", "protocol": "strict", "seed": 7}
    shipped |= {"weights": "float16", "threshold": 0.1234, "answers": answers}
    monkeypatch.setattr(paths, "SHIPPED", tmp_path)
    (tmp_path / "run.json").write_text(json.dumps(shipped))
    quality = {"model": "0" * 12, "measure": "right: normal", "n": 9, "value": 0.987}
    gate = {"model": "0" * 12, "kind": "turned by 45°", "n": 8, "refused": 0.876, "noticed": 0.75}
    for name, row in (("packaged", quality), ("gate", gate)):
        tables.save_table(pd.DataFrame([row | {"low": 0.5, "high": 1.0}]), "kermany", name)
    pages.build("kermany")
    file = paths.REPORTS / "kermany" / "model_card.md"
    card = file.read_text(encoding="utf-8")
    quality_line = "| right: normal | 9 | 0.987 (0.5"
    for words in ("seed 7 of `scratch-cnn`", "0.432", quality_line, "0.876 (", "| 0.750 |"):
        assert words in card
    # Measurements of another model are not shown.
    tables.save_table(
        pd.DataFrame([quality | {"model": "1" * 12, "low": 0.5, "high": 1.0}]),
        "kermany",
        "packaged",
    )
    pages.build("kermany")
    assert "0.987" not in file.read_text(encoding="utf-8")
    (tmp_path / "run.json").write_text(json.dumps(shipped | {"dataset": "other"}))
    pages.build("kermany")
    assert "comes with the package" not in file.read_text(encoding="utf-8")


@here
def test_what_is_known_of_one_data_set_comes_from_its_note():
    made_run(dataset="kermany")
    folder = paths.REPORTS / "kermany"
    sections = ("use", "data", "selection", "methods", "limits")
    text = "Head of the note.\n"
    text += "".join(f"\n[{name}]\nSaid under {name}.\n" for name in sections)
    (folder / "note.txt").write_text(text)
    page = pages.build("kermany").read_text(encoding="utf-8")
    card = (folder / "model_card.md").read_text(encoding="utf-8")
    for name in sections:
        assert (f"Said under {name}." in page) == (name == "methods")
        assert (f"Said under {name}." in card) == (name != "methods")
    assert "Head of the note." in page and "Head of the note." in card and "[use]" not in card


def test_no_template_names_a_data_set_or_holds_a_measured_number():
    for file in (paths.ROOT / "xraylib" / "report" / "templates").glob("*.j2"):
        text = file.read_text(encoding="utf-8")
        text = re.sub(r"<style>.*</style>", "", text, flags=re.DOTALL)
        text = re.sub(r"set described = .*?} -%}", "", text, flags=re.DOTALL)
        assert not re.findall(r"(?i)kermany|nih|guangzhou|flagship|seed \d", text), file
        assert not re.findall(r"\d*\.\d{2,3}\b", text), file


def test_the_head_of_the_model_card_can_be_read_by_the_hub(three_recipes):
    text = (three_recipes / "model_card.md").read_text(encoding="utf-8")
    head = yaml.safe_load(text.split("---\n")[1])
    assert text.startswith("---\n") and "not-a-medical-device" in head["tags"]
    board = tables.leaderboard("made-up").query("protocol == 'strict'").set_index("recipe")
    assert [model["name"] for model in head["model-index"]] == list(board.index)
    for model in head["model-index"]:
        (result,) = model["results"]
        values = {metric["type"]: metric["value"] for metric in result["metrics"]}
        row = board.loc[model["name"]]
        assert values == {
            "roc_auc": pytest.approx(row["auc"], abs=1e-4),
            "accuracy": pytest.approx(row["accuracy"], abs=1e-4),
            "recall": pytest.approx(row["sensitivity"], abs=1e-4),
        }


@here
@pytest.mark.parametrize("dataset", ["phantom", "folder-ward-0123abcd"])
def test_a_model_card_states_no_facts_of_another_data_set(dataset):
    made_run(dataset=dataset)
    pages.build(dataset)
    card = (paths.REPORTS / dataset / "model_card.md").read_text(encoding="utf-8")
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


STORY = """
title = "What was found"
sentence = '''Its AUC is {{ value("leaderboard.csv",
  "recipe=tiny-cnn-28 protocol=strict column=auc format=.2f") }}.'''
[lead]
name = "lead"
text = "Text of the lead."
more = "More of the lead."
table = "some"
caption = "Lead & caption."
[lead.figure]
table = "some"
recipes = ["tiny-cnn-28", "scratch-cnn"]
x = "dose"
value = "auc"
title = "Lead"
xlabel = "dose"
ylabel = "specificity"
labels = { "a" = "none", "b" = "much" }
[[finding]]
name = "gap"
title = "A finding."
text = '''It is {{ value("tables/some.csv",
  "recipe=tiny-cnn-28 dose=b column=auc format=interval:.2f") }}.'''
caveat = "The caveat."
more = "More of it."
table = "some"
caption = "Both splits."
[finding.figure]
table = "pairs"
row = "view"
value = "value"
within = "split"
title = "Gap of Tiny CNN, 28 px"
xlabel = "AUC"
names = { val = "validation", test = "test" }
labels = { whole = "whole image" }
"""


@pytest.fixture
def told(three_recipes):
    """A report with a lead, a finding and what others report; its README."""
    some = pd.DataFrame({"recipe": ["tiny-cnn-28", "scratch-cnn"] * 2, "dose": list("aabb")})
    some = some.assign(auc=[0.9, 0.8, 0.7, -0.6], auc_low=-0.65, auc_high=0.95)
    pairs = pd.DataFrame({"recipe": ["tiny-cnn-28"], "view": ["whole"]})
    for split, value in (("val", 0.9), ("test", 0.8)):
        pairs = pairs.assign(**{split: value, f"{split}_low": 0.7, f"{split}_high": 0.95})
    for name, table in (("some", some), ("pairs", pairs)):
        tables.save_table(table, "made-up", name)
    (three_recipes / "findings.toml").write_text(STORY)
    (three_recipes / "others.csv").write_text(
        "system,trained_on,auc_train,auc,accuracy,source,url\n"
        "Theirs,other images,0.975,0.980,,Their paper,https://example.org/paper\n"
    )
    return three_recipes


def test_page_and_readme_tell_the_findings_with_the_numbers_of_their_tables(told, tmp_path):
    text = pages.build("made-up").read_text(encoding="utf-8")
    auc = tables.leaderboard("made-up").set_index(["recipe", "protocol"])["auc"]
    value = f"{auc['tiny-cnn-28', 'strict']:.2f}"
    assert f'Its AUC is <span class="number">{value}</span>.' in text
    assert f'content="Its AUC is {value}."' in text
    assert '<span class="number">0.70 (−0.65 to 0.95)</span>' in text
    shown = [about["src"] for about in Page(text).all("img")]
    assert shown == ["figures/00_lead.png", "figures/00_gap.png"]
    assert "Theirs" in text and "0.980" in text and "https://example.org/paper" in text
    readme = tmp_path / "README.md"
    readme.write_text("<!-- findings:made-up x -->\n<!-- end findings -->\n")
    pages.write_readme_table(readme)
    words = "recipe=tiny-cnn-28 dose=b column=auc format=interval:.2f"
    marker = f"<!-- value:made-up/tables/some.csv {words} -->0.70 (−0.65 to 0.95)<!-- end -->"
    assert f"It is {marker}." in readme.read_text()
    once = readme.read_text()
    pages.write_readme_table(readme)
    assert readme.read_text() == once


def test_a_figure_of_a_finding_shows_the_rows_of_its_table_in_their_order(told):
    story = findings.load("made-up", "{number}")
    findings.draw(story, "made-up")
    facts = figure_facts(told / "figures" / "00_gap.png")
    assert list(facts["runs"]) == ["tiny-cnn-28"]
    table = pd.read_csv(told / "tables" / "some.csv")
    spec = story["lead"]["figure"]
    figure = lines(table, **{key: spec[key] for key in spec if key not in ("table", "recipes")})
    (ax,) = figure.axes
    drawn = [line.get_ydata().tolist() for line in ax.get_lines()]
    assert drawn == [[0.9, 0.7], [0.8, -0.6]]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["none", "much"]


def test_a_finding_without_its_table_names_the_fix(told):
    (told / "tables" / "some.csv").unlink()
    with pytest.raises(NotFoundError, match=r"some\.csv is not there.*Fix: run `make reproduce"):
        pages.build("made-up")


def test_readme_table_is_that_of_the_report(three_recipes, tmp_path):
    readme = tmp_path / "README.md"
    mark = "<!-- accuracy:{} (written by `make report`) -->\nold\n<!-- end accuracy -->\n"
    readme.write_text(mark.format("made-up") + mark.format("nowhere"))
    pages.write_readme_table(readme)
    text = readme.read_text()
    row = (
        tables.leaderboard("made-up")
        .set_index(["recipe", "protocol"])
        .loc[("tiny-cnn-28", "strict")]
    )
    value = f"{row['accuracy']:.2f} ({row['accuracy_low']:.2f}–{row['accuracy_high']:.2f})"
    assert "| [Tiny CNN, 28 px](https://" in text and ") | 0.95 |" in text
    assert f"| {value} † | – |" in text
    assert text.count("\nold\n") == 1
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
    assert shown.loc[1, "auc"] == "–" and shown.loc[1, "gain"] == "−0.100 (−0.200 to 0.000)"


def test_only_the_ends_of_intervals_vanish_from_a_table():
    table = pd.DataFrame({"below": [1.0], "flow": [2.0], "shallow": ["a"], "high": [3], "low": [4]})
    table = table.assign(x_low=[0.1], x_high=[-0.2], y_low=[5.0], gap=[1.0], gap_low=[0.5])
    shown = tables.compact(table)
    assert list(shown) == [*table.columns[:5], "x", "y_low", "gap", "gap_low"]
    assert shown["x"].tolist() == ["0.100 to −0.200"]


@pytest.fixture
def values_file(reports_here):
    folder = reports_here / "made"
    folder.mkdir(parents=True)
    table = pd.DataFrame({"recipe": ["a", "b", "b"], "view": ["whole", "whole", "rows 0.81"]})
    table = table.assign(auc=[0.91, 0.8, 0.7], auc_low=[0.9, 0.75, 0.6], auc_high=[0.92, 0.85, 0.8])
    table["gain"], table["low"], table["high"] = -0.0141, [-0.045] * 3, [0.017] * 3
    table.to_csv(folder / "t.csv", index=False)


@pytest.mark.parametrize(
    ("file", "words", "text"),
    [
        ("t.csv", "recipe=a column=auc", "0.910"),
        ("t.csv", "recipe=b view='rows 0.81' column=auc format=.0%", "70%"),
        ("t.csv", "recipe=a column=auc format=interval:.2f", "0.91 (0.90–0.92)"),
        ("t.csv", "recipe=a column=gain format=interval:.3f", "−0.014 (−0.045 to 0.017)"),
        ("t.csv", "recipe=b column=auc take=min format=.1f", "0.7"),
        ("t.csv", "where=\"recipe == 'b' and auc > 0.75\" column=auc format=.1f", "0.8"),
    ],
)
def test_a_number_in_prose_is_written_from_its_table(values_file, tmp_path, file, words, text):
    readme = tmp_path / "README.md"
    mark = f"It is <!-- value:made/{file} {words} -->{{}}<!-- end -->, so."
    readme.write_text(mark.format("old"))
    pages.write_readme_table(readme)
    assert readme.read_text() == mark.format(text)


@pytest.mark.parametrize(
    "words", ["recipe=b column=auc", "recipe=c column=auc", "recipe=a column=x"]
)
def test_a_marker_that_names_no_single_number_is_refused(values_file, words):
    with pytest.raises(InvalidDataError, match=r"t\.csv.*Fix: "):
        values.marked_value("made/t.csv", words)


def test_a_marker_of_a_report_that_is_not_here_is_left_alone(values_file, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- value:away/t.csv column=auc -->0.9<!-- end -->")
    pages.write_readme_table(readme)
    assert "0.9" in readme.read_text()


# Nothing stale: what is committed is of the runs that are committed.


@here
def test_tables_and_figures_name_the_runs_they_are_of():
    for seed in (0, 1):
        made_run(seed=seed)
    made_run("scratch-cnn")
    tables.save_table(pd.DataFrame({"recipe": ["tiny-cnn-28"], "auc": [0.9]}), "made-up", "some")
    folder = paths.REPORTS / "made-up"
    facts = json.loads((folder / "tables" / "some.json").read_text())
    assert facts == {"rows": 1, "runs": tables.named_runs("made-up", {"tiny-cnn-28"})}
    assert list(facts["runs"]["tiny-cnn-28"]) == ["strict-0", "strict-1"]
    assert facts["runs"]["tiny-cnn-28"]["strict-0"]["n_test"] == 80
    figure = line()
    figure.suptitle("Scratch CNN")
    file = tables.save_figure(figure, "made-up", "06_curve", "Of tiny-cnn-28-reframed.")
    assert list(figure_facts(file)["runs"]) == ["scratch-cnn"]
    before = tables.named_runs("made-up", {"tiny-cnn-28"})
    scored = run_folder("made-up", "tiny-cnn-28", "strict", 1) / "scores.csv"
    scored.write_text(scored.read_text().replace("0.5", "0.6"))
    assert tables.named_runs("made-up", {"tiny-cnn-28"}) != before


def committed_sources():
    """What each committed table and figure says it is of, where it says so."""
    for file in sorted(COMMITTED.glob("tables/*.json")):
        yield file.name, json.loads(file.read_text())
    for file in sorted(COMMITTED.glob("figures/*.png")):
        facts = figure_facts(file)
        if facts is not None:
            yield file.name, facts


def test_committed_tables_and_figures_are_of_the_committed_runs(monkeypatch):
    monkeypatch.setenv("XRAYLIB_REPORTS", str(paths.ROOT / "reports"))
    sources = dict(committed_sources())
    assert sources
    recipes = {recipe for facts in sources.values() for recipe in facts["runs"]}
    now = tables.named_runs("kermany", recipes)
    for name, facts in sources.items():
        stale = [recipe for recipe, runs_ in facts["runs"].items() if now.get(recipe) != runs_]
        assert not stale, f"{name} is of other runs of {stale}: make reproduce DATASET=kermany"
        table = COMMITTED / "tables" / name.replace(".json", ".csv")
        if table.exists():
            assert len(pd.read_csv(table)) == facts["rows"], name


@pytest.fixture(scope="module")
def committed_runs():
    """By recipe and protocol: how many runs there are, and the images of their tests."""
    found = {}
    for file in COMMITTED.glob("runs/*/*/run.json"):
        about = json.loads(file.read_text())
        split = pd.read_csv(file.with_name("scores.csv"), usecols=["split"])["split"]
        tests = found.setdefault((about["recipe"], about["protocol"]), [])
        tests.append(int((split == "test").sum()))
    return found


@pytest.mark.parametrize("file", sorted(COMMITTED.glob("tables/*.csv")), ids=lambda file: file.stem)
def test_a_committed_table_names_runs_that_are_there(file, committed_runs):
    table = pd.read_csv(file)
    # Baselines that need no run stand beside the recipes.
    recipes = {recipe for recipe, _ in committed_runs} | {"file size", "is AP"}
    for column in {"recipe", "a", "b"} & set(table):
        assert set(table[column].dropna()) <= recipes
    for row in table.to_dict(orient="records") if "recipe" in table else ():
        protocol = "published" if file.stem == "claims" else row.get("protocol", "strict")
        if row["recipe"] not in {recipe for recipe, _ in committed_runs}:
            continue
        tests = committed_runs.get((row["recipe"], protocol), [])
        # Framing and device may be measured on some of the runs.
        for column in {"runs", "seeds", "members"} & set(row):
            assert row[column] <= len(tests), row
    if file.stem in ("ensembles", "paired_tests", "imbalance"):
        assert set(table["n" if "n" in table else "n_test"]) == {624}


def test_the_committed_leaderboard_counts_the_committed_runs(committed_runs):
    board = pd.read_csv(COMMITTED / "leaderboard.csv")
    for (recipe, protocol), rows in board.groupby(["recipe", "protocol"]):
        tests = committed_runs.pop((recipe, protocol))
        assert rows["seeds"].sum() == len(tests)
        assert {round(n) for n in rows["n_test"]} <= set(tests)
    assert not {protocol for _, protocol in committed_runs} & {"strict", "published"}


@here
def test_zero_has_no_sign_in_a_table():
    table = pd.DataFrame({"loss": [-0.0, -0.25], "flag": [False, True]})
    tables.save_table(table, "made-up", "signs")
    file = paths.REPORTS / "made-up" / "tables" / "signs.csv"
    assert file.read_text(encoding="utf-8").split() == ["loss,flag", "0,False", "-0.25,True"]
    assert np.signbit(table["loss"].iloc[0])  # what was given is left alone
