"""Notebook 08 as an app: `python -m xraylib.app`, and the limits of its server.

`notebooks/voila.json` asks for the limits.
"""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from tornado.web import HTTPError
from traitlets import Integer

from xraylib.paths import ROOT

# Where Voilà finds the template `offline`, which asks no other host for anything.
_TEMPLATES = Path(__file__).resolve().parent / "static"


def main(arguments: list[str]) -> None:
    """Serve notebook 08 with Voilà until it is stopped.

    Parameters
    ----------
    arguments
        Options of Voilà, such as `--port=8899`.
    """
    from voila.app import main as serve  # type: ignore[import-untyped]

    folders = (str(_TEMPLATES), os.environ.get("JUPYTER_PATH"))
    os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, folders))
    os.chdir(ROOT / "notebooks")
    serve(["08_predict.ipynb", "--template=offline", *arguments])


class LimitedKernelManager(AsyncMappingKernelManager):
    """Start a few kernels only, and limit the memory of the server and of each kernel.

    Any page of the web can ask a server on this machine for a kernel, and an open page keeps one.
    """

    max_kernels = Integer(6, config=True, help="how many pages can be open at once")
    max_gigabytes = Integer(8, config=True, help="address space of each process; 0: any")

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._starting = 0
        if self.max_gigabytes > 0:
            limit_memory(self.max_gigabytes * 10**9)

    async def start_kernel(self, **options: Any) -> str:  # type: ignore[override]
        """Start a kernel, or refuse with status 503 if too many are running."""
        if len(self) + self._starting >= self.max_kernels:
            reason = "Too many pages are open: close one, or wait some minutes"
            raise HTTPError(503, reason=reason)
        self._starting += 1
        try:
            return await super().start_kernel(**options)
        finally:
            self._starting -= 1


def limit_memory(size: int) -> None:
    """Limit this process, and those that it starts, to an address space of `size` bytes.

    Nothing happens where the system has no such limit (Windows, macOS) or has a lower one.
    """
    with suppress(ImportError, OSError, ValueError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        if soft == resource.RLIM_INFINITY or soft > size:
            resource.setrlimit(resource.RLIMIT_AS, (size, hard))


if __name__ == "__main__":
    main(sys.argv[1:])
