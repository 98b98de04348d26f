"""`python -m xraylib`: data, train, evaluate, trials of what was trained, predict, report, execute.

Exit status: 0 done, 1 something the user can mend (one message on stderr), 2 wrong usage, 3 done but for
some files, which are named.
"""

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from xraylib import __version__, devices
from xraylib.datasets.splits import PROTOCOLS, SPLIT_STRATEGIES
from xraylib.storage import XraylibError
from xraylib.training.recipes import RECIPES, get_recipe
from xraylib.training.systems import BUDGETS

if TYPE_CHECKING:
    from xraylib.datasets.catalog import Dataset

SOME_FAILED = 3


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("xraylib").setLevel(logging.INFO)
    try:
        return int(options.run(options) or 0)
    except XraylibError as error:
        print(f"xraylib: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("xraylib: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m xraylib", description="Pneumonia on chest radiographs. Not a medical device."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _data_commands(commands)

    train = commands.add_parser("train", help="train a recipe with some seeds and add it to the report")
    train.add_argument("recipe", help=", ".join(RECIPES))
    _study_options(train)
    train.add_argument("--protocol", default="strict", help=", ".join((*PROTOCOLS, *SPLIT_STRATEGIES)))
    train.add_argument("--init", help="random, imagenet or a .weights.h5 file; by default the recipe's own")
    train.add_argument("--device", default="auto", help=", ".join(devices.DEVICES))
    train.add_argument("--backend", default=None, help="tensorflow or jax; by default what the device wants")
    train.add_argument("--precision", help=f"{', '.join(devices.PRECISIONS)}; bfloat16 is a TPU's default")
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("evaluate", help="recompute and print the leaderboard from the scores")
    evaluate.add_argument("--dataset", default="phantom")
    evaluate.set_defaults(run=_evaluate)

    predict = commands.add_parser("predict", help="P(pneumonia) of image files, by a trained recipe")
    predict.add_argument("files", nargs="+", type=Path, metavar="FILE")
    predict.add_argument("--recipe", default="mobilenetv2-frozen", help=", ".join(RECIPES))
    predict.add_argument(
        "--dataset", default="kermany", help="name or path of what it was trained on (kermany)"
    )
    predict.add_argument("--csv", type=Path, help="write the table here as well")
    predict.set_defaults(run=_predict)

    external = commands.add_parser("external", help="score another data set by a recipe's strict runs")
    external.add_argument("recipe", help=", ".join(RECIPES))
    external.add_argument("--dataset", default="kermany", help="what it was trained on (kermany)")
    external.add_argument("--on", default="nih", help="name or path of the images to score (nih)")
    external.set_defaults(run=_external)

    robustness = commands.add_parser("robustness", help="score the test after corruptions of every severity")
    robustness.add_argument("recipes", nargs="+", metavar="RECIPE", help=", ".join(RECIPES))
    robustness.add_argument("--dataset", default="kermany", help="what it was trained on (kermany)")
    robustness.set_defaults(run=_robustness)

    strange = commands.add_parser("strangeness", help="how unlike the training images those of a test are")
    strange.add_argument("--dataset", default="kermany", help="what was trained on (kermany)")
    strange.add_argument("--on", nargs="*", default=[], help="names or paths of further images to judge")
    strange.set_defaults(run=_strangeness)

    report = commands.add_parser("report", help="rebuild reports/index.html from what lies in reports/")
    report.set_defaults(run=_report)

    execute = commands.add_parser("execute", help="run a notebook headlessly (Papermill)")
    execute.add_argument("notebook", type=Path)
    execute.add_argument("output", type=Path)
    execute.add_argument("--page", type=Path, help="write an HTML page without code here")
    execute.add_argument(
        "-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE")
    )
    execute.set_defaults(run=_execute)
    return parser


def _data_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    data = commands.add_parser("data", help="list, fetch, verify or audit the data sets")
    actions = data.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="what there is, and what lies on this machine")
    listing.set_defaults(run=_data_list)
    fetch = actions.add_parser("fetch", help="download and unpack a data set")
    fetch.add_argument("name")
    fetch.add_argument("--source", default="default", help="default or kaggle")
    fetch.set_defaults(run=_data_fetch)
    verify = actions.add_parser("verify", help="count a data set against what was published")
    verify.add_argument("name")
    verify.set_defaults(run=_data_verify)
    audit = actions.add_parser("audit", help="read every file; list bad, doubled and mislabelled ones")
    audit.add_argument("name", metavar="NAME|PATH")
    audit.add_argument("--max-bad", type=float, default=0.01, help="largest share of bad files (0.01)")
    audit.set_defaults(run=_data_audit)


def _study_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", default="phantom", help="name, or path of a folder split/class/*.jpg")
    parser.add_argument("--budget", default="full", help=", ".join(BUDGETS))
    parser.add_argument("--seed", type=int, default=0, help="first seed")


def _data_list(options: argparse.Namespace) -> None:
    from xraylib.datasets import catalog

    _show(catalog.describe().drop(columns=["title"]))


def _data_fetch(options: argparse.Namespace) -> None:
    from xraylib.datasets import catalog

    print(catalog.fetch(options.name, source=options.source))


def _data_verify(options: argparse.Namespace) -> None:
    from xraylib.datasets import catalog

    table = catalog.verify(_dataset(options.name))
    _show(table)
    print(f"fingerprint {table.attrs['fingerprint']}")


def _data_audit(options: argparse.Namespace) -> None:
    from xraylib.datasets import catalog, images, splits

    dataset = _dataset(options.name)
    manifest = catalog.index(dataset)
    findings = images.audit(manifest)
    quarantine = catalog.quarantine_path(dataset)
    images.write_quarantine(findings, quarantine)
    if findings.empty:
        print("no file is unreadable, doubled or mislabelled")
    else:
        _show(findings.groupby(["problem", "quarantine"]).size().rename("files").reset_index())
        print(f"every finding: {quarantine}")
    images.check_audit(findings, len(manifest), options.max_bad)
    good = manifest[~manifest["image_id"].isin(images.read_quarantine(quarantine))].reset_index(drop=True)
    print("\nWhat stands on both sides of the published split:")
    _show(splits.leakage(good, images.load_pixels(good, 64)))


def _dataset(name: str) -> "Dataset":
    """Find a data set; the phantom is written where it is not, nothing is downloaded."""
    from xraylib.datasets import catalog

    dataset = catalog.find(name)
    if dataset.phantom:
        catalog.fetch(dataset)
    return dataset


def _train(options: argparse.Namespace) -> None:
    get_recipe(options.recipe)
    accelerator = devices.use(options.device, options.backend, precision=options.precision)
    from xraylib.experiment import Experiment

    experiment = Experiment(
        options.dataset, accelerator, options.budget, options.seed, (options.recipe,), init=options.init
    )
    for run in experiment.runs(options.recipe, options.protocol):
        print(run.folder)


def _external(options: argparse.Namespace) -> None:
    get_recipe(options.recipe)
    devices.use()
    from xraylib.evaluation import shift
    from xraylib.report import tables

    outside = shift.external(options.recipe, options.dataset, options.on)
    _show(shift.drop(tables.load_scores(options.dataset), outside).round(3))


def _robustness(options: argparse.Namespace) -> None:
    for recipe in options.recipes:
        get_recipe(recipe)
    devices.use()
    from xraylib.evaluation import robustness

    for recipe in options.recipes:
        lost = robustness.losses(robustness.score(recipe, options.dataset), averaged=True)
        _show(lost.round(3))


def _strangeness(options: argparse.Namespace) -> None:
    devices.use()
    from xraylib.evaluation import selective, shift

    _show(selective.flagged(shift.strangeness(options.dataset, options.on)).round(3))


def _evaluate(options: argparse.Namespace) -> None:
    from xraylib.datasets import catalog
    from xraylib.report import tables

    board = tables.leaderboard(catalog.find(options.dataset).name)
    _show(board.drop(columns=["hardware", "train_seconds"]))


def _predict(options: argparse.Namespace) -> int:
    get_recipe(options.recipe)
    from xraylib.datasets import catalog

    dataset = catalog.find(options.dataset).name
    if not any(file.is_file() for file in options.files):
        named = ", ".join(map(str, options.files))
        print(f"xraylib: no such file: {named}. Fix: check the path.", file=sys.stderr)
        return 1
    devices.use()
    from xraylib import predict
    from xraylib.storage import atomic

    predictor = predict.load(predict.find_run(options.recipe, dataset))
    table = predict.predict(options.files, predictor)
    _show(table.drop(columns="problem"))
    if options.csv:
        with atomic(options.csv) as temporary:
            table.to_csv(temporary, index=False)
    bad = table[table["problem"] != ""]
    for problem in bad["problem"]:
        print(f"xraylib: {problem}", file=sys.stderr)
    return 1 if len(bad) == len(table) else SOME_FAILED if len(bad) else 0


def _report(options: argparse.Namespace) -> None:
    from xraylib import paths
    from xraylib.report import cards, pages, tables

    for place in sorted(paths.REPORTS.glob("*/metrics")):
        tables.refresh_metrics(place.parent.name)
    for name in ("kermany", "phantom"):
        if any((paths.REPORTS / name / "scores").glob("*.csv")):
            print(cards.write_model_card(name))
            break
    print(pages.build_index())
    # Reports that were moved, by a test say, leave the repository's page alone.
    if paths.REPORTS == paths.ROOT / "reports" and (paths.ROOT / "README.md").exists():
        pages.write_readme_tables(paths.ROOT / "README.md")


def _execute(options: argparse.Namespace) -> None:
    from xraylib.report import notebooks

    parameters = {name: notebooks.parse_parameter(value) for name, value in options.parameters}
    notebooks.execute(options.notebook, options.output, parameters, page=options.page)


def _show(table: pd.DataFrame) -> None:
    print(table.to_string(index=False, float_format="{:.3f}".format))
