"""Progress bars that the environment variable `TQDM_DISABLE` turns off in notebooks as well.

tqdm reads the variable itself, but its bars for notebooks ignore it.
"""

import os
from typing import Any

from tqdm.auto import tqdm as _tqdm


def tqdm(*arguments: Any, **options: Any) -> Any:
    """Return a progress bar as `tqdm.auto.tqdm` does, or a silent one."""
    value = os.environ.get("TQDM_DISABLE", "")
    disabled = value.lower() not in ("", "0", "false", "no")
    return _tqdm(*arguments, disable=disabled, **options)
