"""Which code and which libraries made something: the part of a key that makes stale results unreadable."""

import hashlib
import importlib
import importlib.metadata
import inspect
import io
import textwrap
import tokenize
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def code_fingerprint(modules: Iterable[str]) -> str:
    """Twelve hex digits that change when the code of these modules does; comments do not count."""
    here = Path(__file__).parent
    return _digest((here / f"{name}.py").read_text(encoding="utf-8") for name in modules)


def function_fingerprint(*functions: Callable[..., Any]) -> str:
    """Twelve hex digits that change when the code of these functions does; comments do not count."""
    return _digest(textwrap.dedent(inspect.getsource(function)) for function in functions)


def _digest(sources: Iterable[str]) -> str:
    return hashlib.sha256("".join(map(_bare, sources)).encode()).hexdigest()[:12]


def _bare(source: str) -> str:
    """Code without comments and white space, but with its indentation, alike on every version of Python."""
    marks = {tokenize.INDENT: "\x01", tokenize.DEDENT: "\x02", tokenize.COMMENT: ""}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return "".join("".join(marks.get(token.type, token.string).split()) for token in tokens)


def versions(backend: str) -> dict[str, str]:
    """Versions of the libraries that decide figures; `backend` is Keras's."""
    distributions = {"keras": "keras", "scikit-learn": "scikit-learn", "numpy": "numpy"}
    found = {name: importlib.metadata.version(one) for name, one in distributions.items()}
    return found | {backend: importlib.import_module(backend).__version__}
