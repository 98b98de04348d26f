"""Which code and which libraries made something: the part of a key that makes stale results unreadable."""

import ast
import hashlib
import importlib
import importlib.metadata
import inspect
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def code_fingerprint(modules: Iterable[str]) -> str:
    """Twelve hex digits that change when the code of these modules does; comments do not count."""
    here = Path(__file__).parent
    trees = [ast.dump(ast.parse((here / f"{name}.py").read_text(encoding="utf-8"))) for name in modules]
    return hashlib.sha256("".join(trees).encode()).hexdigest()[:12]


def function_fingerprint(function: Callable[..., Any]) -> str:
    """Twelve hex digits that change when the code of one function does; comments do not count."""
    tree = ast.dump(ast.parse(textwrap.dedent(inspect.getsource(function))))
    return hashlib.sha256(tree.encode()).hexdigest()[:12]


def versions(backend: str) -> dict[str, str]:
    """Versions of the libraries that decide figures; `backend` is Keras's."""
    distributions = {"keras": "keras", "scikit-learn": "scikit-learn", "numpy": "numpy"}
    found = {name: importlib.metadata.version(one) for name, one in distributions.items()}
    return found | {backend: importlib.import_module(backend).__version__}
