"""`python -m xraylib`: the command line. It parses; `commands` does.

Exit status: 0 done; 1 something the user can fix (one message on stderr) or files that could not
be read; 2 wrong usage; 130 or more: stopped by a signal. Nothing heavy is imported before a command
needs it.
"""

import argparse
import errno
import importlib
import io
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from xraylib import __version__
from xraylib.errors import XraylibError

_DESCRIPTION = "Pneumonia on chest radiographs. Not a medical device."


# What `ArgumentParser.add_argument` takes: names and options.
_Argument = tuple[tuple[str, ...], dict[str, Any]]


class _Command(NamedTuple):
    """A command's help and arguments; `aliases` are other names for it."""

    help: str
    arguments: tuple[_Argument, ...] = ()
    aliases: tuple[str, ...] = ()


def _argument(*names: str, **options: Any) -> _Argument:
    return names, options


def _text(value: str) -> str:
    """Refuse the empty text of a variable that is not set."""
    if not value:
        raise argparse.ArgumentTypeError("is empty. Is a variable of the shell unset?")
    return value


def _path(value: str) -> Path:
    return Path(_text(value))


def _number(
    kind: Callable[[str], float],
    low: float,
    high: float,
    allowed: str,
) -> Callable[[str], float]:
    """Make an argument type: a number of a range, which NaN is not."""

    def parse(value: str) -> float:
        try:
            number = kind(value)
        except ValueError:
            number = float("nan")
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"{value!r} is not {allowed}")
        return number

    return parse


def _setting(value: str) -> str:
    name, separator, _ = value.partition("=")
    if not (name and separator):
        raise argparse.ArgumentTypeError(f"{value!r} is not FIELD=VALUE, such as epochs=5")
    return value


def _classes(value: str) -> dict[str, str]:
    classes = {}
    for pair in value.split(","):
        name, separator, label = pair.partition("=")
        if not (name and separator):
            raise argparse.ArgumentTypeError(f"{pair!r} is not NAME=LABEL, such as sick=1")
        classes[name] = label
    return classes


def _output(value: str) -> tuple[int, str]:
    index, _, ending = value.partition("/")
    if not index.isdecimal() or ending not in ("probability", "logit"):
        raise argparse.ArgumentTypeError(f"{value!r} is not INDEX/ENDING, such as 1/logit")
    return int(index), ending


_SHARE = _number(float, 0, 1, "a number from 0 to 1")
_NATURAL = _number(int, 0, 2**32 - 1, "a whole number from 0")
_PIXELS = _number(int, 1, 4096, "a number of pixels from 1 to 4096")

_NAME_OR_PATH = _argument("name", metavar="NAME|PATH", type=_text)
_RECIPE_HELP = "such as tiny-cnn-28; an unknown name lists all"
_RECIPE = _argument("recipe", help=_RECIPE_HELP)
_RECIPES = _argument("recipes", nargs="+", metavar="RECIPE", help=_RECIPE_HELP)
_TRAINED_ON = _argument(
    "--dataset",
    default="kermany",
    type=_text,
    help="the data set on which it was trained (kermany)",
)

_AUDIT = (
    _NAME_OR_PATH,
    _argument("--html", type=_path, metavar="FILE", help="write one page, readable offline"),
    _argument(
        "--scores",
        type=_path,
        metavar="FILE|RUN",
        help="scores of a model (image_id or path, and score), for its leak-adjusted AUC",
    ),
    _argument(
        "--fail-on",
        choices=("leak", "fault", "shortcut"),
        help="exit status 1 for a finding of this level or a worse one",
    ),
    _argument("--show", type=_NATURAL, default=20, help="unusable files to list (20)"),
)

_DATA_ACTIONS = {
    "list": _Command("list the data sets, and which of them are on this machine"),
    "fetch": _Command(
        "download and unpack a data set",
        (
            _argument("name", help="see `data list`"),
            _argument("--source", default="default", help="default or kaggle"),
        ),
    ),
    "verify": _Command(
        "show how a data set is read, and compare its counts with the published ones",
        (
            _NAME_OR_PATH,
            _argument(
                "--classes",
                type=_classes,
                metavar="NAME=0,NAME=1",
                help="which classes are normal (0) and pneumonia (1); others are left out",
            ),
            _argument(
                "--patient-regex",
                metavar="REGEX",
                help="finds the patient in a file's path: its first group, or the whole match",
            ),
            _argument(
                "--split",
                help="train, val or test for all images; new makes a split by patient",
            ),
            _argument("--show", type=_NATURAL, default=20, help="files to list per reason (20)"),
        ),
    ),
    "audit": _Command(
        "audit a data set, and write a quarantine list of the files that cannot be used",
        (
            *_AUDIT,
            _argument(
                "--max-bad",
                type=_SHARE,
                default=0.01,
                help="largest share of bad files (0.01)",
            ),
        ),
    ),
    "shard": _Command(
        "write the images of a data set into shards, from which a recipe can be trained",
        (
            _NAME_OR_PATH,
            _argument("folder", type=_path),
            _argument("--size", type=_PIXELS, default=224, help="pixels of a side (224)"),
        ),
    ),
}

_COMMANDS = {
    "audit": _Command("find leaks, faults and shortcuts in a data set", _AUDIT),
    "train": _Command(
        "train a recipe with some seeds and add the runs to the report",
        (
            _RECIPE,
            _argument(
                "--set",
                nargs="+",
                action="extend",
                type=_setting,
                default=[],
                metavar="FIELD=VALUE",
                help="change fields of the recipe, such as epochs=5 size=128",
            ),
            _argument(
                "--dataset",
                default="phantom",
                type=_text,
                help="name, or path of a folder, CSV or description (phantom)",
            ),
            _argument("--budget", default="full", help="full or quick"),
            _argument("--seed", type=_NATURAL, default=0, help="first seed"),
            _argument(
                "--protocol",
                default="strict",
                help="strict, published or a split strategy",
            ),
            _argument(
                "--init",
                type=_text,
                help="random, imagenet or a .weights.h5 file; by default the recipe's own",
            ),
            _argument("--device", default="auto", help="auto, cpu, gpu or tpu"),
            _argument("--backend", help="tensorflow or jax; by default what the device needs"),
            _argument("--precision", help="float32, or mixed_bfloat16, a TPU's default"),
            _argument("--overwrite", action="store_true", help="replace committed runs"),
        ),
    ),
    "predict": _Command(
        "give P(pneumonia) for image files, folders or patterns",
        (
            _argument(
                "paths",
                nargs="+",
                type=_text,
                metavar="PATH",
                help="JPEG, PNG, TIFF or DICOM; - reads a list from standard input",
            ),
            _argument(
                "--model",
                type=_path,
                metavar="NAME|FOLDER",
                help="a trained recipe, a run or an exported model; by default the packaged model",
            ),
            _TRAINED_ON,
            _argument(
                "--threshold",
                type=_SHARE,
                help="threshold of the label; by default that of a trained run",
            ),
            _argument(
                "--prevalence",
                type=_SHARE,
                help="prevalence of pneumonia in these images; by default that of training",
            ),
            _argument(
                "--strict-domain",
                action="store_true",
                help="no answer, instead of a notice, for adults and other unusual populations",
            ),
            _argument("--json", action="store_true", help="one JSON object per line"),
            _argument(
                "--csv",
                type=_path,
                metavar="FILE",
                help="also write every column into this file; an unfinished table is continued",
            ),
            _argument(
                "--heatmap",
                type=_path,
                metavar="DIR",
                help="write each image under its heat map into this folder",
            ),
            _argument(
                "--explain",
                type=_path,
                metavar="DIR",
                help="print what would change each answer, and draw the changes into this folder",
            ),
        ),
    ),
    "export": _Command(
        "export the run with the best validation as a LiteRT model, into the package or a folder",
        (
            _RECIPE,
            _TRAINED_ON,
            _argument(
                "--to",
                type=_path,
                metavar="FOLDER",
                help="write the model here, for `predict --model FOLDER`, and not into the package",
            ),
            _argument(
                "--others",
                type=_text,
                help="images of another population; the pixels of half of them teach the gate. By "
                "default nih for the packaged model; with --to there is no gate without them",
            ),
        ),
        aliases=("ship",),
    ),
    "external": _Command(
        "external validation: score another data set",
        (
            _RECIPE,
            _TRAINED_ON,
            _argument(
                "--on",
                default="nih",
                type=_text,
                help="name or path of the images to score (nih)",
            ),
            _argument(
                "--allow-known-images",
                action="store_true",
                help="score even images that the data set has as well",
            ),
        ),
    ),
    "framing": _Command(
        "run the framing experiment: score cropped images with recipes or with your own network",
        (
            _argument(
                "names",
                nargs="+",
                metavar="RECIPE",
                type=_text,
                help=f"{_RECIPE_HELP}. With --model: the data set or folder to score",
            ),
            _TRAINED_ON,
            _argument(
                "--model",
                type=_path,
                metavar="FILE",
                help="your own network, .tflite or .onnx; no code from the file is run",
            ),
            _argument("--split", help="with --model: the split to score (test)"),
            _argument(
                "--threshold",
                type=_SHARE,
                help="with --model: lowest score of a positive; by default between the classes",
            ),
            _argument(
                "--corruptions",
                action="store_true",
                help="with --model: score every corruption at every severity as well",
            ),
            _argument(
                "--scale",
                choices=("0..1", "-1..1", "0..255", "imagenet"),
                help="with --model: how its input is scaled; write --scale=-1..1",
            ),
            _argument(
                "--output",
                type=_output,
                metavar="INDEX/ENDING",
                help="with --model: which output is pneumonia, from 0, and whether it is a "
                "probability or a logit (0/probability)",
            ),
        ),
    ),
    "corruptions": _Command(
        "score the test images after corruptions of each severity",
        (_RECIPES, _TRAINED_ON),
    ),
    "report": _Command(
        "rebuild leaderboards, pages and model cards from the runs",
        (
            _argument(
                "datasets",
                nargs="*",
                type=_text,
                metavar="DATASET",
                help="names or paths; by default all that have runs",
            ),
        ),
    ),
    "run-notebook": _Command(
        "run a notebook headlessly (Papermill)",
        (
            _argument("notebook", type=_path),
            _argument("output", type=_path),
            _argument(
                "--html",
                nargs="?",
                type=_path,
                const=True,
                help="HTML page without code, here or in the report",
            ),
            _argument(
                "-p",
                dest="given",
                nargs=2,
                action="append",
                default=[],
                metavar=("NAME", "VALUE"),
            ),
        ),
    ),
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("xraylib").setLevel(logging.INFO)
    if sys.stdout is None:
        _complain("standard output is closed. Fix: send it to a file, or to /dev/null.")
        return 1
    _let_stdout_print_any_name()
    try:
        commands = importlib.import_module("xraylib.commands")
        status = getattr(commands, options.function)(options)
        sys.stdout.flush()
        return int(status or 0)
    except XraylibError as error:
        _complain(str(error))
        return 1
    except BrokenPipeError:  # whoever read has closed, as `head` does
        _send_stdout_nowhere()
        return 1
    except OSError as error:
        if not _is_of_stdout(error):
            raise
        _send_stdout_nowhere()
        _complain(f"cannot write standard output: {error.strerror}. Fix: free some disk space.")
        return 1
    except KeyboardInterrupt as error:
        _complain(f"interrupted; {_advice_after_interrupt(options)}")
        return 128 + getattr(error, "signal_number", 2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m xraylib", description=_DESCRIPTION)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    data = commands.add_parser("data", help="list, fetch, verify or audit the data sets")
    _add_commands(data.add_subparsers(required=True, metavar="ACTION"), _DATA_ACTIONS, "data_")
    _add_commands(commands, _COMMANDS)
    return parser


def _add_commands(group: Any, commands: dict[str, _Command], prefix: str = "") -> None:
    """Add commands to a parser; the command `run-notebook` calls `commands.run_notebook`."""
    for name, command in commands.items():
        parser = group.add_parser(
            name,
            help=command.help,
            description=command.help,
            aliases=command.aliases,
        )
        parser.set_defaults(function=prefix + name.replace("-", "_"))
        for names, arguments in command.arguments:
            parser.add_argument(*names, **arguments)


def _complain(message: str) -> None:
    print(f"xraylib: {message}", file=sys.stderr)


def _advice_after_interrupt(options: argparse.Namespace) -> str:
    if options.function == "predict" and not options.csv:
        return "with --csv FILE the same command would go on where it stopped"
    return "the same command goes on where it stopped"


def _let_stdout_print_any_name() -> None:
    """Write a file name that is no valid text with backslashes; a notebook's stdout does so."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _is_of_stdout(error: OSError) -> bool:
    """Tell a full device below standard output from a file's error, which names its file."""
    return error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO)


def _send_stdout_nowhere() -> None:
    """Let the interpreter flush at its end without another error."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, io.UnsupportedOperation):  # no file below it, as in a notebook
        return
