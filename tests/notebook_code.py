"""The definitions of a notebook's cells, so that tests can call what a reader sees."""

import ast
from types import SimpleNamespace

import nbformat

from xraylib.paths import ROOT


def _is_definition(node: ast.AST) -> bool:
    """Imports, functions and constants; what a cell computes is left out."""
    if isinstance(node, ast.Assign):
        names = all(isinstance(name, ast.Name) and name.id.isupper() for name in node.targets)
        # A constant that is made from a variable, such as the data set, is computed.
        reads = (name.id for name in ast.walk(node.value) if isinstance(name, ast.Name))
        return names and not {"beside", "experiment"} & set(reads)
    return isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef))


def definitions(stem: str) -> SimpleNamespace:
    """Imports, functions and constants of all code cells of a notebook, by name."""
    path = ROOT / "notebooks" / f"{stem}.ipynb"
    names: dict[str, object] = {}
    for cell in nbformat.read(path, as_version=4).cells:
        # The first cell has commands of IPython, which only Colab runs.
        if cell.cell_type == "code" and "google.colab" not in cell.source:
            tree = ast.parse(cell.source)
            tree.body = [node for node in tree.body if _is_definition(node)]
            exec(compile(tree, path.name, "exec"), names)
    return SimpleNamespace(**names)
