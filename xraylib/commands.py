"""What the commands of `python -m xraylib` do: each takes the parsed options of `cli`.

Heavy modules are imported by the command that needs them, so that no command loads more. Keras
must not load before `devices.use`.
"""

import json
import logging
import os
import shlex
import signal
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from xraylib import answers, devices, paths
from xraylib.answers import printable
from xraylib.datasets import catalog
from xraylib.errors import InvalidDataError, NotFoundError, OperationFailedError, XraylibError
from xraylib.storage import write_table
from xraylib.training.recipes import get_recipe

_log = logging.getLogger("xraylib")


class Terminated(KeyboardInterrupt):
    """The process was asked to end by a signal other than the keyboard's."""

    def __init__(self, signal_number: int) -> None:
        super().__init__()
        self.signal_number = signal_number


def _write(line: object = "", stream: TextIO | None = None) -> None:
    """Write a line of results to standard output, or a complaint to another stream, at once."""
    target = stream or sys.stdout
    target.write(f"{line}\n")
    target.flush()


def data_list(options: Namespace) -> None:
    """Print what data sets there are, and what lies on this machine."""
    from xraylib.datasets import verify

    _print_table(verify.describe().drop(columns=["title"]))


def data_fetch(options: Namespace) -> None:
    """Download and unpack a data set."""
    from xraylib.datasets import fetch

    _write(fetch.fetch(options.name, options.source))


def data_verify(options: Namespace) -> None:
    """Show how a data set is understood; count it against what was published."""
    from xraylib.datasets import verify

    dataset = _find_dataset(options.name)
    given = {name: getattr(options, name) for name in ("classes", "patient_regex", "split")}
    changed = any(value is not None for value in given.values())
    if changed:
        dataset = catalog.understand(dataset, **given)
    table = verify.verify(dataset)
    _print_table(table)
    for note in table.attrs["notes"]:
        _write(printable(note))
    for reason, files in table.attrs["passed_over"].items():
        _write(printable(f"passed over: {len(files)} × {reason}"))
        for file in files[: options.show]:
            _write(f"  {printable(file)}")
        if len(files) > options.show:
            _write(f"  and {len(files) - options.show} more (--show)")
    _write(f"fingerprint {table.attrs['fingerprint']}")
    if changed:
        _write(
            "\nTo use the data set like this, save these lines as a file that ends in .toml,"
            "\nand name that file wherever a data set is asked for:\n"
        )
        _write(catalog.description(dataset))
    if table.attrs["problem"]:
        raise InvalidDataError(table.attrs["problem"])


def data_audit(options: Namespace) -> int:
    """Audit a data set; the quarantine list is written only if not too many files are bad."""
    from xraylib.datasets import audit, manifest

    status, result = _audit(options)
    quarantine = manifest.quarantine_path(_find_dataset(options.name))
    audit.write_quarantine(result.files, result.total, quarantine, options.max_bad)
    if not result.files.empty:
        _write(f"every file with a finding: {quarantine}")
    return status


def audit(options: Namespace) -> int:
    """Audit a data set: a table of findings, and a page; exit status 1 with `--fail-on`."""
    return _audit(options)[0]


def _audit(options: Namespace) -> tuple[int, Any]:
    """Print the findings, write the page, and return the exit status and the audit."""
    import shutil

    from xraylib.report import audit_page, dataset_audit

    result = dataset_audit.audit_dataset(_find_dataset(options.name), options.scores)
    _write(audit_page.terminal_table(result.findings, shutil.get_terminal_size((120, 24)).columns))
    if not result.has("shortcut"):
        _write("\nno leak, fault or shortcut was found")
    bad = result.files[result.files["quarantine"]].head(options.show)
    if not bad.empty:
        _write()
        _print_table(bad[["problem", "path", "detail"]])
    if options.html:
        audit_page.write_page(result, options.html)
        _write(f"\n{options.html}")
    failed = options.fail_on is not None and result.has(options.fail_on)
    return int(failed), result


def data_shard(options: Namespace) -> None:
    """Write a data set's decoded images into shards."""
    from xraylib.datasets import images, manifest, shards

    table = manifest.load(_find_dataset(options.name))
    shards.write(table, options.size, options.folder, images.decoded)
    folder = options.folder.resolve()
    _write(f"{len(table)} images of {options.size} pixels: train with --dataset {folder}")


def train(options: Namespace) -> None:
    """Train a recipe with some seeds; in a job of several processes, in a watched child."""
    recipe = get_recipe("+".join([options.recipe, *options.set]))
    if not devices.in_job():
        _train_recipe(recipe, options, job=False)
    elif "XRAYLIB_WATCHED" not in os.environ:
        _run_watched()
    else:
        _train_in_job(recipe, options)


def _train_recipe(recipe: Any, options: Namespace, job: bool) -> None:

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
        _write(run.folder)
    if not job:
        _write(f"next: python -m xraylib report {shlex.quote(options.dataset)}", sys.stderr)


def _train_in_job(recipe: Any, options: Namespace) -> None:
    """Train as one of several processes, and end at once on an error: they would wait for it."""
    try:
        _train_recipe(recipe, options, job=True)
    except Exception as error:
        if not isinstance(error, XraylibError):
            _log.exception("unexpected")
        _write(f"xraylib: {error}", sys.stderr)
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


def predict(options: Namespace) -> int:
    """Answer image files; exit status 1 if one was not answered."""
    from tqdm.auto import tqdm

    from xraylib import explanation, prediction

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
            _write(answers.heading(settings, model.record))
        progress = tqdm(files, unit="image", disable=None if len(files) > 50 else True)
        for row in prediction.answer_files(progress, model, threshold, options.heatmap):
            explained = _explain(row, model, options.explain) if options.explain else {}
            failures += answers.is_failure(row)
            if table:
                table.write(answers.rounded(row))
            _print_answer(row, options.json, explained)
    for path in passed_over:
        _log.info("passed over, no image or hidden: %s", printable(path))
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


def _explain(row: answers.Row, model: Any, folder: Path) -> dict[str, Any]:
    """Explain the answer to a file, and draw that into a folder; empty for an unreadable file.

    A figure that cannot be written is a message of the row, as a heat map is.
    """
    from xraylib import explanation

    if row["status"] == "error":
        return {}
    explained = explanation.explain(row["path"], model, row)
    try:
        explanation.write_figure(explained, row["path"], folder)
    except OperationFailedError as error:
        answers.add_failure(row, error)
    return {"explanation": explained.record()}


def _print_answer(row: answers.Row, as_json: bool, explained: dict[str, Any]) -> None:

    if as_json:
        _write(json.dumps(answers.rounded(row) | explained))
    elif row["status"] == "error":
        _write(f"xraylib: {answers.describe(row)}", sys.stderr)
    else:
        _write(answers.describe(row))
        for line in explained.get("explanation", {}).get("lines", ()):
            _write(f"    {printable(line)}")


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


def export(options: Namespace) -> None:
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
        model = exporting.package(run, images, others, labels if labels.is_file() else None)
    for part, reason in model.left_out.items():
        _write(f"without {part}: {reason}")
    for file in sorted((options.to or paths.SHIPPED).iterdir()):
        _write(f"{file}: {file.stat().st_size / 1e6:.1f} MB")


def external(options: Namespace) -> None:
    """Score another data set, and compare with the official test."""
    name = _prepare(options.dataset, options.recipe)
    from xraylib.evaluation import external as validation
    from xraylib.evaluation import scores

    if not options.allow_known_images:
        validation.check_unknown(options.dataset, options.on)
    table = validation.external(options.recipe, options.dataset, options.on)
    _print_table(validation.generalisation_gap(scores.load(name), table))


def framing(options: Namespace) -> None:
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


def _framing_of_file(options: Namespace) -> None:
    """Measure a network of others in every view; print the table and write it into the report."""
    from xraylib.evaluation import foreign

    if len(options.names) > 1:
        raise InvalidDataError("--model scores one data set. Fix: name one data set or folder.")
    network = foreign.load_network(options.model, scale=options.scale, output=options.output)
    name = _prepare(options.names[0])
    from xraylib.datasets import manifest
    from xraylib.evaluation import views
    from xraylib.report import tables

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
    _write(
        f"{options.model} on {name}, {split}: {table['n'].iloc[0]} images, pneumonia from "
        f"{table['threshold'].iloc[0]:.3f} on ({chosen}). 95% intervals over patients."
    )
    _print_table(tables.compact(table.drop(columns=["n", "threshold"])))
    file = paths.REPORTS / name / "foreign" / f"{network.name}-{network.sha256[:8]}-{split}.csv"
    write_table(file, table.assign(model_sha256=network.sha256[:12]), "%.6g")
    _write(file)


def corruptions(options: Namespace) -> None:
    """Score the test after corruptions of each severity."""
    _prepare(options.dataset, *options.recipes)
    from xraylib.evaluation import views

    for recipe in options.recipes:
        table = views.score_corruptions(recipe, options.dataset)
        _print_table(views.corruption_losses(table))


def report(options: Namespace) -> None:
    """Rebuild leaderboards, pages and model cards from the runs."""
    from xraylib.report import pages

    names = [catalog.get_dataset(name).name for name in options.datasets]
    if not names:
        names = sorted(folder.parent.name for folder in paths.REPORTS.glob("*/runs"))
    if not names:
        raise NotFoundError(f"no runs below {paths.REPORTS}. Fix: run `make reproduce`.")
    for name in names:
        _write(pages.build(name))
    readme = paths.ROOT / "README.md"
    # Reports that were moved, by a test say, leave the repository's README alone.
    if paths.REPORTS == paths.ROOT / "reports" and readme.exists():
        pages.write_readme_table(readme)


def run_notebook(options: Namespace) -> None:
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
        dataset = catalog.get_dataset(parameters.get("dataset", "phantom"))
        folder = paths.REPORTS / dataset.name / "notebooks"
        html = folder / f"{options.notebook.stem}.html"
    notebooks.execute(options.notebook, options.output, parameters, html=html)


def _find_dataset(name: str) -> Any:
    """Find a data set; the phantom is written where it is not, nothing is downloaded."""
    from xraylib.datasets import fetch

    dataset = catalog.get_dataset(name)
    if dataset.phantom:
        fetch.fetch(dataset)
    return dataset


def _prepare(dataset: str, *recipes: str, backend: str | None = None) -> str:
    """Check the names given, prepare the device, and return the name of the data set's report."""
    for recipe in recipes:
        get_recipe(recipe)
    name = catalog.get_dataset(dataset).name
    devices.use(backend=backend)
    return name


def _print_table(table: Any) -> None:
    _write(table.to_string(index=False, float_format="{:.3f}".format))
