"""`python -m xraylib`: data, training, prediction, validation on other and on corrupted images, the report.

Exit status: 0 done, 1 something the user can fix (one message on stderr) or files that could not be read, 2 wrong
usage. Nothing heavy is imported before a command needs it, so that `--help` is quick.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xraylib import __version__, paths
from xraylib.errors import InvalidDataError, NotFoundError, OperationFailedError, XraylibError
from xraylib.storage import atomic_write


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
    except BrokenPipeError:  # whoever read has closed, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("xraylib: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    about = "Pneumonia on chest radiographs. Not a medical device."
    parser = argparse.ArgumentParser(prog="python -m xraylib", description=about)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    data = commands.add_parser("data", help="list, fetch, verify or audit the data sets")
    actions = data.add_subparsers(required=True, metavar="ACTION")

    def command(
        group: Any, name: str, run: Callable[..., int | None], about: str
    ) -> Callable[..., Any]:
        added = group.add_parser(name, help=about, description=about)
        added.set_defaults(run=run, command=name)
        return added.add_argument

    known, trained = (
        "such as tiny-cnn-28; an unknown name lists all",
        "what it was trained on (kermany)",
    )
    command(actions, "list", _data_list, "what there is, and what lies on this machine")
    fetch = command(actions, "fetch", _data_fetch, "download and unpack a data set")
    fetch("name", help="see `data list`")
    fetch("--source", default="default", help="default or kaggle")
    verify = command(actions, "verify", _data_verify, "count a data set against what was published")
    verify("name", metavar="NAME|PATH")
    audit = command(
        actions, "audit", _data_audit, "read every file; list bad, duplicate and mislabelled ones"
    )
    audit("name", metavar="NAME|PATH")
    audit("--max-bad", type=float, default=0.01, help="largest share of bad files (0.01)")
    shard = command(
        actions,
        "shard",
        _data_shard,
        "write a data set's films into shards, to train from where they lie",
    )
    shard("name", metavar="NAME|PATH")
    shard("folder", type=Path)
    shard("--size", type=int, default=224, help="pixels of a side (224)")
    train = command(
        commands, "train", _train, "train a recipe with some seeds and add the runs to the report"
    )
    train("recipe", help=known)
    train(
        "--dataset", default="phantom", help="name, or path of a folder split/class/*.jpg (phantom)"
    )
    train("--budget", default="full", help="full or quick")
    train("--seed", type=int, default=0, help="first seed")
    train("--protocol", default="strict", help="strict, published, or a split strategy")
    train("--init", help="random, imagenet or a .weights.h5 file; by default the recipe's own")
    train("--device", default="auto", help="auto, cpu, gpu or tpu")
    train("--backend", help="tensorflow or jax; by default what the device needs")
    train("--precision", help="float32, or mixed_bfloat16, a TPU's default")
    train("--overwrite", action="store_true", help="replace committed runs")
    predict = command(
        commands, "predict", _predict, "P(pneumonia) of image files, folders or patterns"
    )
    predict(
        "paths",
        nargs="+",
        metavar="PATH",
        help="JPEG, PNG, TIFF or DICOM; - reads a list from standard input",
    )
    predict(
        "--model",
        type=Path,
        metavar="NAME|FOLDER",
        help="a trained recipe or run; by default the package's own",
    )
    predict("--dataset", default="kermany", help=trained)
    predict(
        "--threshold",
        type=float,
        help="on the probability; by default the model's own, set on validation",
    )
    predict("--json", action="store_true", help="one JSON object a line, with every column")
    predict("--csv", type=Path, metavar="FILE", help="write every column here as well")
    predict(
        "--heatmap",
        type=Path,
        metavar="DIR",
        help="write each film under its heat map into this folder",
    )
    ship = command(
        commands,
        "ship",
        _ship,
        "make the run of the best validation the model that comes with the package",
    )
    ship("recipe", help=known)
    ship("--dataset", default="kermany", help=trained)
    external = command(
        commands, "external", _external, "external validation: score another data set"
    )
    external("recipe", help=known)
    external("--dataset", default="kermany", help=trained)
    external("--on", default="nih", help="name or path of the images to score (nih)")
    for name, about in (
        ("framing", "score validation films framed anew: the framing experiment"),
        ("corruptions", "score the test after corruptions of each severity"),
    ):
        views = command(commands, name, _views, about)
        views("recipes", nargs="+", metavar="RECIPE", help=known)
        views("--dataset", default="kermany", help=trained)
    ood = command(
        commands, "ood", _ood, "out-of-distribution scores: how unlike the training images"
    )
    ood("--dataset", default="kermany", help=trained)
    ood("--on", nargs="*", default=[], help="names or paths of further images to score")
    report = command(
        commands, "report", _report, "rebuild leaderboards, pages and model cards from the runs"
    )
    report(
        "datasets",
        nargs="*",
        metavar="DATASET",
        help="names or paths; by default all that have runs",
    )
    notebook = command(
        commands, "run-notebook", _run_notebook, "run a notebook headlessly (Papermill)"
    )
    notebook("notebook", type=Path)
    notebook("output", type=Path)
    notebook(
        "--html",
        nargs="?",
        type=Path,
        const=Path(),
        help="HTML page without code, here or in the report",
    )
    notebook("-p", dest="given", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    return parser


def _data_list(options: argparse.Namespace) -> None:
    from xraylib.datasets import verify

    _show(verify.describe().drop(columns=["title"]))


def _data_fetch(options: argparse.Namespace) -> None:
    from xraylib.datasets import fetch

    print(fetch.fetch(options.name, options.source))


def _data_verify(options: argparse.Namespace) -> None:
    from xraylib.datasets import verify

    _show(table := verify.verify(_dataset(options.name)))
    print(f"fingerprint {table.attrs['fingerprint']}")


def _data_audit(options: argparse.Namespace) -> None:
    from xraylib.datasets import audit, images, manifest

    dataset = _dataset(options.name)
    files, quarantine = manifest.index(dataset), manifest.quarantine_path(dataset)
    findings = audit.audit_files(files)
    audit.write_quarantine(findings, quarantine)
    if findings.empty:
        print("no file is unreadable, duplicate or mislabelled")
    else:
        _show(findings.groupby(["problem", "quarantine"]).size().rename("files").reset_index())
        print(f"every finding: {quarantine}")
    audit.check_audit(findings, len(files), options.max_bad)
    good = files[~files["image_id"].isin(manifest.read_quarantine(quarantine))].reset_index(
        drop=True
    )
    _tell_file_features(good)
    print("\nPatients and images shared by the published splits:")
    _show(audit.leakage(good, images.load_pixels(good, 64)))


def _data_shard(options: argparse.Namespace) -> None:
    from xraylib.datasets import images, manifest, shards

    films = manifest.load(_dataset(options.name))
    shards.write(films, options.size, options.folder, images.decoded)
    print(
        f"{len(films)} films of {options.size} pixels: train with --dataset {options.folder.resolve()}"
    )


def _tell_file_features(films: Any) -> None:
    """Warn where a property of the files tells the classes of the training folder apart."""
    from sklearn.metrics import roc_auc_score

    from xraylib.datasets import audit

    features = audit.file_features(audit.file_properties(train := films[films["split"] != "test"]))
    if "width" not in features and "height" not in features:
        print(
            "\nAll images have one size: what width, height and aspect ratio tell cannot be seen here."
        )
    for name in features if train["label"].nunique() == 2 else ():
        auc = roc_auc_score(train["label"], features[name])
        if max(auc, 1 - auc) > 0.7:
            print(
                f"warning: {name} of the file predicts the class (AUC {auc:.3f}); a network can infer it"
            )


def _dataset(name: str) -> Any:
    """Find a data set; the phantom is written where it is not, nothing is downloaded."""
    from xraylib.datasets import catalog, fetch

    dataset = catalog.get_dataset(name)
    if dataset.phantom:
        fetch.fetch(dataset)
    return dataset


def _train(options: argparse.Namespace) -> None:
    from xraylib import devices
    from xraylib.training.recipes import get_recipe

    get_recipe(options.recipe)
    job = devices.in_job()
    if job and "XRAYLIB_WATCHED" not in os.environ:
        return _watched()
    try:
        accelerator = devices.use(
            options.device, options.backend, precision=options.precision, job=job
        )
        from xraylib.experiment import Experiment

        given = {"init": options.init, "overwrite": options.overwrite}
        experiment = Experiment(options.dataset, accelerator, options.budget, options.seed, **given)
        for run in experiment.runs(options.recipe, options.protocol):
            print(run.folder, flush=True)
    except Exception as error:
        if not job:
            raise
        if not isinstance(error, XraylibError):
            logging.getLogger("xraylib").exception("unexpected")
        print(f"xraylib: {error}", file=sys.stderr, flush=True)
        if type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" not in str(error):
            os.abort()  # as JAX itself does where it is the first to see that another process has gone
        os._exit(1)  # the usual way out waits for the others


def _watched() -> None:
    """Run this command in a child: JAX aborts a process that has lost another of its job, and says it in C++."""
    import signal
    import subprocess

    with subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:]], env=os.environ | {"XRAYLIB_WATCHED": "1"}
    ) as child:
        signal.signal(signal.SIGTERM, lambda *_: child.terminate())
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the child has it from the terminal as well
        status = child.wait()
    if status == -signal.SIGABRT:
        fix = "start all processes of the job again; training goes on after the last checkpoint"
        raise OperationFailedError(
            f"another process of the job did not come or has gone (above). Fix: {fix}."
        )
    sys.exit(status if status >= 0 else 128 - status)


def _predict(options: argparse.Namespace) -> int:
    import csv
    import json
    from contextlib import ExitStack

    from tqdm import tqdm

    from xraylib import predict

    lines = (os.fsdecode(line.rstrip(b"\r\n")) for line in sys.stdin.buffer)
    if not (
        files := predict.list_files(
            filter(None, lines) if options.paths == ["-"] else options.paths
        )
    ):
        raise NotFoundError("the list on standard input is empty. Fix: give a path a line.")
    if options.threshold is not None and not 0 <= options.threshold <= 1:
        raise InvalidDataError(
            f"--threshold {options.threshold} is no probability. Fix: give one in [0, 1]."
        )
    if options.csv and options.csv.is_dir():
        raise InvalidDataError(f"--csv {options.csv} is a folder. Fix: name a file.")
    if options.heatmap and options.model:
        raise InvalidDataError(
            "--heatmap: the package's own model draws them. Fix: leave --model out, or see notebook 06."
        )
    model = _answering(options) if options.model else predict.Shipped.load()
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    if not options.json:
        limit = model.threshold if options.threshold is None else options.threshold
        print(f"P(pneumonia) by {model.name}, threshold {limit:.3f}. Not a medical device.")
    failed, seen = 0, tqdm(files, unit="image", disable=None if len(files) > 50 else True)
    with ExitStack() as stack:
        if options.csv:
            whole = stack.enter_context(atomic_write(options.csv))
            file = whole.open("w", newline="", encoding="utf-8", errors="backslashreplace")
            table = csv.DictWriter(stack.enter_context(file), predict.COLUMNS)
            table.writeheader()
        for row in predict.predict(seen, model, options.threshold, options.heatmap):
            failed += row["status"] == "error"
            shown = {
                name: round(value, 6) if isinstance(value, float) else value
                for name, value in row.items()
            }
            shown["probability"] = shown["probability"] if row["status"] == "ok" else None
            if options.csv:
                table.writerow(shown)
            if options.json:
                print(json.dumps(shown))
            elif row["status"] == "error":
                print(f"xraylib: {row['message']}", file=sys.stderr)
            else:
                said = f"{row['probability']:.3f}  {row['label']}" if row["label"] else "abstained"
                print(f"{row['path']}  {said}" + (f": {row['message']}" if row["message"] else ""))
    return 1 if failed else 0


def _answering(options: argparse.Namespace) -> Any:
    """The model that was named: a run's folder, or a recipe's first strict run whose model is here."""
    from xraylib.training import runs
    from xraylib.training.predictor import load_predictor

    if (options.model / "run.json").is_file():
        _trained(options)
        return load_predictor(runs.read_run(options.model))
    return load_predictor(_models(str(options.model), options)[0])


def _models(recipe: str, options: argparse.Namespace) -> list[Any]:
    """The strict runs of a recipe whose models are on this machine."""
    name = _trained(options, recipe)
    from xraylib.training import runs

    found = [run for run in runs.list_runs(name, recipe, "strict") if run.has_model]
    if not found:
        anew = " --overwrite" if name in runs.COMMITTED else ""
        fix = f"python -m xraylib train {recipe} --dataset {options.dataset}{anew}"
        raise NotFoundError(
            f"no model of {recipe}, trained on {name}, is on this machine. Fix: {fix}"
        )
    return found


def _ship(options: argparse.Namespace) -> None:
    found = _models(options.recipe, options)
    from xraylib import export
    from xraylib.datasets import manifest

    # The criterion of `recipes`, validation `worst`: the AUC in the worst swapped view, at the best epoch.
    best = max(found, key=lambda run: run.history.filter(like="val_auc_").min(axis=1).max())
    shipped = export.package(best, manifest.load(options.dataset))
    print(
        *(
            f"{file}: {file.stat().st_size / 1e6:.1f} MB"
            for file in sorted(shipped.folder.iterdir())
        ),
        sep="\n",
    )


def _external(options: argparse.Namespace) -> None:
    name = _trained(options, options.recipe)
    from xraylib.evaluation import external, scores

    table = external.external(options.recipe, options.dataset, options.on)
    _show(external.generalisation_gap(scores.load(name), table))


def _views(options: argparse.Namespace) -> None:
    _trained(options, *options.recipes)
    from xraylib.evaluation import views

    for recipe in options.recipes:
        if options.command == "framing":
            table = views.framing_response(views.score_framing(recipe, options.dataset))
        else:
            table = views.corruption_losses(views.score_corruptions(recipe, options.dataset))
        _show(table)


def _ood(options: argparse.Namespace) -> None:
    _trained(options)
    from xraylib.evaluation import ood

    _show(ood.ood_flagged(ood.ood_scores(options.dataset, options.on)))


def _trained(options: argparse.Namespace, *recipes: str) -> str:
    """Check the names given, prepare the device, and return the name of the data set's report."""
    from xraylib import devices
    from xraylib.datasets import catalog
    from xraylib.training.recipes import get_recipe

    for recipe in recipes:
        get_recipe(recipe)
    name = catalog.get_dataset(options.dataset).name
    devices.use()
    return name


def _report(options: argparse.Namespace) -> None:
    from xraylib.datasets import catalog
    from xraylib.report import pages

    named = [catalog.get_dataset(name).name for name in options.datasets]
    names = named or sorted(place.parent.name for place in paths.REPORTS.glob("*/runs"))
    if not names:
        raise NotFoundError(f"no runs below {paths.REPORTS}. Fix: run `make reproduce`.")
    for name in names:
        print(pages.build(name))
    # Reports that were moved, by a test say, leave the repository's README alone.
    if paths.REPORTS == paths.ROOT / "reports" and (readme := paths.ROOT / "README.md").exists():
        pages.write_readme_table(readme)


def _run_notebook(options: argparse.Namespace) -> None:
    from xraylib.report import notebooks

    parameters = {name: notebooks.parse_parameter(value) for name, value in options.given}
    if (html := options.html) == Path():
        from xraylib.datasets import catalog

        report = paths.REPORTS / catalog.get_dataset(parameters.get("dataset", "phantom")).name
        html = report / "notebooks" / f"{options.notebook.stem}.html"
    notebooks.execute(options.notebook, options.output, parameters, html=html)


def _show(table: Any) -> None:
    print(table.to_string(index=False, float_format="{:.3f}".format))
