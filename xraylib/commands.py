"""What the commands of `python -m xraylib` do: each takes the parsed options of `cli`.

Heavy modules are imported by the command that needs them, so that no command loads more.
"""

# ruff: noqa: T201 (a command prints)

import argparse
import json
import logging
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from xraylib import paths
from xraylib.errors import InvalidDataError, NotFoundError, OperationFailedError, XraylibError

_log = logging.getLogger("xraylib")


class Terminated(KeyboardInterrupt):
    """The process was asked to end by a signal other than the keyboard's."""

    def __init__(self, signal_number: int) -> None:
        super().__init__()
        self.signal_number = signal_number


def data_list(options: argparse.Namespace) -> None:
    """Print what data sets there are, and what lies on this machine."""
    from xraylib.datasets import verify

    _print_table(verify.describe().drop(columns=["title"]))


def data_fetch(options: argparse.Namespace) -> None:
    """Download and unpack a data set."""
    from xraylib.datasets import fetch

    print(fetch.fetch(options.name, options.source))


def data_verify(options: argparse.Namespace) -> None:
    """Show how a data set is understood; count it against what was published."""
    from xraylib.answers import printable
    from xraylib.datasets import catalog, verify

    dataset = _find_dataset(options.name)
    given = {"classes": options.classes, "patient_regex": options.patient_regex}
    given["split"] = options.split
    changed = any(value is not None for value in given.values())
    if changed:
        dataset = catalog.understand(dataset, **given)
    table = verify.verify(dataset)
    _print_table(table)
    for note in table.attrs["notes"]:
        print(printable(note))
    for reason, files in table.attrs["passed_over"].items():
        print(printable(f"passed over: {len(files)} × {reason}"))
        for file in files[: options.show]:
            print(f"  {printable(file)}")
        if len(files) > options.show:
            print(f"  and {len(files) - options.show} more (--show)")
    print(f"fingerprint {table.attrs['fingerprint']}")
    if changed:
        print("\nTo use the data set like this, save these lines as a file that ends in .toml,")
        print("and name that file wherever a data set is asked for:\n")
        print(catalog.description(dataset))
    if table.attrs["problem"]:
        raise InvalidDataError(table.attrs["problem"])


def data_audit(options: argparse.Namespace) -> int:
    """Audit a data set; the quarantine list is written only if not too many files are bad."""
    from xraylib.datasets import audit, manifest

    status, result = _audit(options)
    quarantine = manifest.quarantine_path(_find_dataset(options.name))
    audit.write_quarantine(result.files, result.total, quarantine, options.max_bad)
    if not result.files.empty:
        print(f"every file with a finding: {quarantine}")
    return status


def audit(options: argparse.Namespace) -> int:
    """Audit a data set: a table of findings, and a page; exit status 1 with `--fail-on`."""
    return _audit(options)[0]


def _audit(options: argparse.Namespace) -> tuple[int, Any]:
    """Print the findings, write the page, and return the exit status and the audit."""
    import shutil

    from xraylib.report import audit_page, dataset_audit

    result = dataset_audit.audit_dataset(_find_dataset(options.name), options.scores)
    print(audit_page.terminal_table(result.findings, shutil.get_terminal_size((120, 24)).columns))
    if not result.has("shortcut"):
        print("\nno leak, fault or shortcut was found")
    bad = result.files[result.files["quarantine"]].head(options.show)
    if not bad.empty:
        print()
        _print_table(bad[["problem", "path", "detail"]])
    if options.html:
        audit_page.write_page(result, options.html)
        print(f"\n{options.html}")
    failed = options.fail_on is not None and result.has(options.fail_on)
    return int(failed), result


def data_shard(options: argparse.Namespace) -> None:
    """Write a data set's decoded images into shards."""
    from xraylib.datasets import images, manifest, shards

    table = manifest.load(_find_dataset(options.name))
    shards.write(table, options.size, options.folder, images.decoded)
    folder = options.folder.resolve()
    print(f"{len(table)} images of {options.size} pixels: train with --dataset {folder}")


def train(options: argparse.Namespace) -> None:
    """Train a recipe with some seeds; in a job of several processes, in a watched child."""
    from xraylib import devices
    from xraylib.training import recipes

    recipe = recipes.get_recipe("+".join([options.recipe, *options.set]))
    if not devices.in_job():
        _train_recipe(recipe, options, job=False)
    elif "XRAYLIB_WATCHED" not in os.environ:
        _run_watched()
    else:
        _train_in_job(recipe, options)


def _train_recipe(recipe: Any, options: argparse.Namespace, job: bool) -> None:
    from xraylib import devices

    accelerator = devices.use(
        options.device,
        options.backend,
        precision=options.precision,
        job=job,
    )
    from xraylib.experiment import Experiment

    experiment = Experiment(
        options.dataset,
        accelerator,
        options.budget,
        options.seed,
        init=options.init,
        overwrite=options.overwrite,
    )
    for run in experiment.runs(recipe, options.protocol):
        print(run.folder, flush=True)
    if not job:
        print(f"next: python -m xraylib report {shlex.quote(options.dataset)}", file=sys.stderr)


def _train_in_job(recipe: Any, options: argparse.Namespace) -> None:
    """Train as one of several processes, and end at once on an error: they would wait for it."""
    try:
        _train_recipe(recipe, options, job=True)
    except Exception as error:
        if not isinstance(error, XraylibError):
            _log.exception("unexpected")
        print(f"xraylib: {error}", file=sys.stderr, flush=True)
        is_lost = type(error).__name__ == "JaxRuntimeError"
        if is_lost and "RESOURCE_EXHAUSTED" not in str(error):
            os.abort()  # as JAX itself does in a process that has lost another of its job
        os._exit(1)  # the usual way out waits for the others


def _run_watched() -> None:
    """Run this command in a child: JAX aborts a process that has lost another of its job."""
    import subprocess

    environment = os.environ | {"XRAYLIB_WATCHED": "1"}
    with subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env=environment) as child:
        signal.signal(signal.SIGTERM, lambda *_: child.terminate())
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the child has it from the terminal as well
        status = child.wait()
    if status == -signal.SIGABRT:
        raise OperationFailedError(
            "another process of the job did not come or has gone (above). Fix: start all "
            "processes of the job again; training goes on after the last checkpoint."
        )
    sys.exit(status if status >= 0 else 128 - status)


def predict(options: argparse.Namespace) -> int:
    """Answer image files; exit status 1 if one was not answered."""
    from tqdm.auto import tqdm

    from xraylib import answers, explanation, prediction

    named = _paths_on_stdin() if options.paths == ["-"] else options.paths
    files, passed_over = prediction.list_files(named)
    if not files:
        raise NotFoundError("the list on standard input is empty. Fix: give one path per line.")
    pictures = [folder for folder in (options.heatmap, options.explain) if folder]
    _check_pictures(pictures, named)
    model = prediction.load_model(options.model, options.dataset)
    model = prediction.configure(
        model, options.prevalence, options.strict_domain, options.heatmap is not None
    )
    if options.explain:
        explanation.check(model)
    threshold = model.threshold if options.threshold is None else options.threshold
    settings = prediction.settings_of(model, threshold)
    failures = 0
    with ExitStack() as stack:
        stack.enter_context(_signals_as_interrupts())
        table = None
        if options.csv:
            table = answers.AnswerTable(options.csv, files, settings, pictures)
            stack.enter_context(table)
            files = table.remaining(files)
        if not options.json:
            print(answers.heading(settings, getattr(model, "record", "")))
        progress = tqdm(files, unit="image", disable=None if len(files) > 50 else True)
        for row in prediction.answer_files(progress, model, threshold, options.heatmap):
            explained = _explain(row, model, options.explain) if options.explain else {}
            failures += answers.is_failure(row)
            if table:
                table.write(answers.rounded(row))
            _print_answer(row, options.json, explained)
    for path in passed_over:
        _log.info("passed over, no image or hidden: %s", answers.printable(path))
    if passed_over:
        _log.info("%d files or folders were passed over (above)", len(passed_over))
    return 1 if failures else 0


def _check_pictures(folders: list[Path], named: list[str]) -> None:
    """Refuse folders whose pictures would replace each other, or be answered as images."""
    absolute = [path.absolute() for path in [*folders, *map(Path, named)]]
    for position, folder in enumerate(absolute[: len(folders)]):
        if {folder, *folder.parents} & {*absolute[position + 1 :]}:
            raise InvalidDataError(
                f"{folder} is for other pictures as well, or lies in a folder of images to answer. "
                "Fix: name another folder."
            )


def _paths_on_stdin() -> list[str]:
    """Read one path per line; names need not be UTF-8."""
    if sys.stdin is None:
        return []
    lines = [os.fsdecode(line.rstrip(b"\r\n")) for line in sys.stdin.buffer]
    return [line for line in lines if line]


def _explain(row: dict[str, Any], model: Any, folder: Path) -> dict[str, Any]:
    """Explain the answer to a file, and draw that into a folder; empty for an unreadable file.

    A figure that cannot be written is a message of the row, as a heat map is.
    """
    from xraylib import answers, explanation

    if row["status"] == "error":
        return {}
    explained = explanation.explain(row["path"], model, row)
    try:
        explanation.write_figure(explained, row["path"], folder)
    except OperationFailedError as error:
        answers.add_failure(row, error)
    return {"explanation": explained.record()}


def _print_answer(row: dict[str, Any], as_json: bool, explained: dict[str, Any]) -> None:
    from xraylib import answers

    if as_json:
        print(json.dumps(answers.rounded(row) | explained), flush=True)
    elif row["status"] == "error":
        print(f"xraylib: {answers.describe(row)}", file=sys.stderr)
    else:
        print(answers.describe(row), flush=True)
        for line in explained.get("explanation", {}).get("lines", ()):
            print(f"    {answers.printable(line)}", flush=True)


@contextmanager
def _signals_as_interrupts() -> Iterator[None]:
    """Raise `Terminated` for SIGTERM and SIGHUP, so that files are closed and none is left half."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated(number)

    before = {}
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is None or signal.getsignal(number) is signal.SIG_IGN:  # as under nohup
            continue
        try:
            before[number] = signal.signal(number, stop)
        except ValueError:  # not the main thread: whoever called decides
            break
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def export(options: argparse.Namespace) -> None:
    """Make the run of the best validation a LiteRT model: the packaged one, or one in a folder."""
    _prepare(options.dataset, options.recipe, backend="tensorflow")
    from xraylib import export as exporting
    from xraylib import prediction
    from xraylib.datasets import manifest

    run = exporting.best_run(prediction.runs_with_model(options.recipe, options.dataset))
    images = manifest.load(options.dataset)
    if options.to:
        others = manifest.load(options.others) if options.others else None
        model = exporting.export_run(run, images, options.to, others)
    else:
        others = manifest.load(options.others or "nih")
        labels = paths.DATA / f"{others.attrs['dataset']}_rsna.csv"
        known = labels if labels.is_file() else None
        model = exporting.package(run, images, others, known)
    for part, reason in model.left_out.items():
        print(f"without {part}: {reason}")
    for file in sorted((options.to or paths.SHIPPED).iterdir()):
        print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")


def external(options: argparse.Namespace) -> None:
    """Score another data set, and compare with the official test."""
    name = _prepare(options.dataset, options.recipe)
    from xraylib.evaluation import external as validation
    from xraylib.evaluation import scores

    if not options.allow_known_images:
        validation.check_unknown(options.dataset, options.on)
    table = validation.external(options.recipe, options.dataset, options.on)
    _print_table(validation.generalisation_gap(scores.load(name), table))


def framing(options: argparse.Namespace) -> None:
    """Score images framed anew, with the runs of recipes or with a network of others."""
    if options.model:
        _framing_of_file(options)
        return
    for name in ("split", "threshold", "corruptions", "scale", "output"):
        value = getattr(options, name)
        if value is not None and value is not False:
            raise InvalidDataError(f"--{name} goes with --model. Fix: name its file, or leave out.")
    _prepare(options.dataset, *options.names)
    from xraylib.evaluation import views

    for recipe in options.names:
        table = views.score_framing(recipe, options.dataset)
        _print_table(views.framing_response(table))


def _framing_of_file(options: argparse.Namespace) -> None:
    """Measure a network of others in every view; print the table and write it into the report."""
    from xraylib.evaluation import foreign

    if len(options.names) > 1:
        raise InvalidDataError("--model scores one data set. Fix: name one data set or folder.")
    network = foreign.load_network(options.model, scale=options.scale, output=options.output)
    name = _prepare(options.names[0])
    from xraylib.datasets import manifest
    from xraylib.evaluation import views
    from xraylib.report import tables
    from xraylib.storage import atomic_write

    split = options.split or "test"
    table = views.evaluate_function(
        network,
        manifest.load(options.names[0]),
        split,
        size=network.size,
        threshold=options.threshold,
        with_corruptions=options.corruptions,
    )
    chosen = "given"
    if options.threshold is None:
        chosen = "between the classes' medians on these images"
    print(
        f"{options.model} on {name}, {split}: {table['n'].iloc[0]} images, pneumonia from "
        f"{table['threshold'].iloc[0]:.3f} on ({chosen}). 95% intervals over patients."
    )
    _print_table(tables.compact(table.drop(columns=["n", "threshold"])))
    file = paths.REPORTS / name / "foreign" / f"{network.name}-{network.sha256[:8]}-{split}.csv"
    with atomic_write(file) as temporary:
        table.assign(model_sha256=network.sha256[:12]).to_csv(
            temporary, index=False, float_format="%.6g"
        )
    print(file)


def corruptions(options: argparse.Namespace) -> None:
    """Score the test after corruptions of each severity."""
    _prepare(options.dataset, *options.recipes)
    from xraylib.evaluation import views

    for recipe in options.recipes:
        table = views.score_corruptions(recipe, options.dataset)
        _print_table(views.corruption_losses(table))


def report(options: argparse.Namespace) -> None:
    """Rebuild leaderboards, pages and model cards from the runs."""
    from xraylib.datasets import catalog
    from xraylib.report import pages

    names = [catalog.get_dataset(name).name for name in options.datasets]
    if not names:
        names = sorted(folder.parent.name for folder in paths.REPORTS.glob("*/runs"))
    if not names:
        raise NotFoundError(f"no runs below {paths.REPORTS}. Fix: run `make reproduce`.")
    for name in names:
        print(pages.build(name))
    readme = paths.ROOT / "README.md"
    # Reports that were moved, by a test say, leave the repository's README alone.
    if paths.REPORTS == paths.ROOT / "reports" and readme.exists():
        pages.write_readme_table(readme)


def run_notebook(options: argparse.Namespace) -> None:
    """Run a notebook headlessly."""
    try:
        from xraylib.report import notebooks
    except ModuleNotFoundError as error:
        raise NotFoundError(
            f"{error.name} is not installed, which runs notebooks. "
            'Fix: pip install "xraylib-pneumonia[notebooks]".'
        ) from error

    parameters = {name: notebooks.parse_parameter(value) for name, value in options.given}
    html = options.html
    if html is True:
        from xraylib.datasets import catalog

        dataset = catalog.get_dataset(parameters.get("dataset", "phantom"))
        folder = paths.REPORTS / dataset.name / "notebooks"
        html = folder / f"{options.notebook.stem}.html"
    notebooks.execute(options.notebook, options.output, parameters, html=html)


def _find_dataset(name: str) -> Any:
    """Find a data set; the phantom is written where it is not, nothing is downloaded."""
    from xraylib.datasets import catalog, fetch

    dataset = catalog.get_dataset(name)
    if dataset.phantom:
        fetch.fetch(dataset)
    return dataset


def _prepare(dataset: str, *recipes: str, backend: str | None = None) -> str:
    """Check the names given, prepare the device, and return the name of the data set's report."""
    from xraylib import devices
    from xraylib.datasets import catalog
    from xraylib.training.recipes import get_recipe

    for recipe in recipes:
        get_recipe(recipe)
    name = catalog.get_dataset(dataset).name
    devices.use(backend=backend)
    return name


def _print_table(table: Any) -> None:
    print(table.to_string(index=False, float_format="{:.3f}".format))
