"""Rehearse Colab: notebooks in an environment with Colab's versions, from an empty folder.

`make colab` runs it. Of the notebooks in `WHOLE` every cell is run, of the others the bootstrap,
the parameters and the imports. Colab's kernel has imported Pillow, pandas and numpy before the
first cell, so a bootstrap that changed them would ask for a restart. This must not happen.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Colab's own list of August 2026.
STOCK = [
    "numpy==2.1.3",
    "pandas==2.2.3",
    "pillow==11.3.0",
    "scikit-learn==1.6.1",
    "keras==3.13.2",
    "jax==0.7.2",
]
STOCK += ["tensorflow-cpu==2.20.0", "matplotlib==3.10.0", "ipykernel==6.17.1", "ipython<9"]
IMPORTED = ("numpy", "pandas", "pillow")
# Notebooks that run in a minute or two, by their numbers.
WHOLE = ("01", "02", "08")


def rehearse(notebook):
    """Run a notebook, or its first three code cells, as Colab's kernel would."""
    import numpy  # noqa: F401
    import pandas  # noqa: F401
    import PIL.Image  # noqa: F401
    from IPython.core.interactiveshell import InteractiveShell

    sys.modules["google.colab"] = types.ModuleType("google.colab")
    before = {name: importlib.metadata.version(name) for name in IMPORTED}
    code = [
        cell
        for cell in json.loads(Path(notebook).read_text())["cells"]
        if cell["cell_type"] == "code"
    ]
    shell = InteractiveShell.instance()
    count = len(code) if Path(notebook).name.startswith(WHOLE) else 3
    for cell in code[:count]:
        # There is no TPU here; what the notebook does without one is tried elsewhere.
        source = "".join(cell["source"]).replace(
            'device = "cpu"', 'sys.modules.pop("google.colab"); device = "cpu"'
        )
        if not shell.run_cell(source).success:
            sys.exit(f"{Path(notebook).name}: a cell failed")
    after = {name: importlib.metadata.version(name) for name in IMPORTED}
    assert before == after, f"the kernel would have to be restarted: {before} became {after}"
    print(
        Path(notebook).name,
        f"{count} cells run on Colab; keras",
        importlib.metadata.version("keras"),
    )


def main(python):
    """Build the environment, then rehearse every notebook in a process and a folder of its own."""
    venv = ROOT / "build" / "colab"
    if subprocess.run(["git", "diff", "--quiet", "HEAD"], check=False, cwd=ROOT).returncode:
        sys.exit("what is rehearsed is the last commit, and files differ from it. Fix: commit them")
    if subprocess.run(
        [python, "-c", "import sys; sys.exit(sys.version_info[:2] != (3, 12))"], check=False
    ).returncode:
        sys.exit(
            f"{python} is not Python 3.12, which Colab has."
            " Fix: make colab PYTHON=/path/to/python3.12"
        )
    subprocess.run([python, "-m", "venv", "--clear", venv], check=True)
    subprocess.run([venv / "bin/python", "-m", "pip", "install", "--quiet", *STOCK], check=True)
    place = {"XRAYLIB_REPOSITORY": str(ROOT), "PATH": f"{venv / 'bin'}:{os.environ['PATH']}"}
    for notebook in sorted((ROOT / "notebooks").glob("0[1-8]*.ipynb")):
        with tempfile.TemporaryDirectory() as empty:
            command = [venv / "bin/python", __file__, notebook]
            subprocess.run(command, check=True, cwd=empty, env={**os.environ, **place})


if __name__ == "__main__":
    rehearse(sys.argv[1]) if sys.argv[1].endswith(".ipynb") else main(sys.argv[1])
