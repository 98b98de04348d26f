"""Where data, caches, runs and reports live.

Each folder is moved by its environment variable (`XRAYLIB_DATA` and so on), which is read at
every access. A relative value starts at the repository root, so that notebooks (whose working
folder is `notebooks/`) and commands agree.
"""

import os
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[1]

# The repository when run from a checkout, otherwise the working folder (as on Colab).
ROOT = _CHECKOUT if (_CHECKOUT / "pyproject.toml").exists() else Path.cwd()

# The model that comes with the package.
SHIPPED = Path(__file__).resolve().parent / "weights"

# One folder per data set: raw images as downloaded, never changed; and the quarantine lists.
DATA: Path

# Can be built again: the phantom's images, indexes, decoded arrays, pooled features.
CACHE: Path

# Training runs that have not finished.
RUNS: Path

# Finished runs, scores, tables, figures and the report page.
REPORTS: Path

# A folder of initial weights for machines that cannot reach Keras's own download; None when unset.
WEIGHTS: Path | None

_DEFAULTS = {
    "DATA": "data",
    "CACHE": "data/cache",
    "RUNS": "data/unfinished",
    "REPORTS": "reports",
    "WEIGHTS": "",
}


def __getattr__(name: str) -> Path | None:
    if name not in _DEFAULTS:
        raise AttributeError(f"module 'xraylib.paths' has no attribute {name!r}")
    folder = os.environ.get(f"XRAYLIB_{name}") or _DEFAULTS[name]
    return ROOT / Path(folder).expanduser() if folder else None
