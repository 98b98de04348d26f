"""Where data, caches, runs and reports live.

Each place can be moved by its environment variable; a relative value is read from the
repository root, so that notebooks (whose working folder is `notebooks/`) and commands agree.
"""

import os
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[1]

# The repository when run from a checkout, otherwise the working folder (an installed package, Colab).
ROOT = _CHECKOUT if (_CHECKOUT / "pyproject.toml").exists() else Path.cwd()


def _place(variable: str, default: Path) -> Path:
    return ROOT / Path(os.environ.get(variable) or default).expanduser()


# One folder a data set: raw images as downloaded, never changed.
DATA = _place("XRAYLIB_DATA", ROOT / "data")

# Rebuildable: the phantom's images, indexes, decoded arrays, pooled features.
CACHE = _place("XRAYLIB_CACHE", ROOT / "data" / "cache")

# One folder a training run, named by the content of its settings.
RUNS = _place("XRAYLIB_RUNS", ROOT / "data" / "runs")

# Scores, tables, figures and the report page.
REPORTS = _place("XRAYLIB_REPORTS", ROOT / "reports")

# A folder of initial weights for machines that cannot reach Keras's own download; None when unset.
WEIGHTS = _place("XRAYLIB_WEIGHTS", Path()) if os.environ.get("XRAYLIB_WEIGHTS") else None
