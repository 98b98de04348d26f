"""The errors that a user can fix. Each message names the thing and the fix."""

from pathlib import Path

_EXPORT = "export it anew from its source as an 8-bit PNG"


class XraylibError(Exception):
    """Something the user can fix; the message names the thing and the fix. The command line exits with 1."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: the message, without a traceback."""
        return [f"{type(self).__name__}: {self}"]


class NotFoundError(XraylibError):
    """A name, data set, file of weights or device that is not there."""


class InvalidDataError(XraylibError):
    """It is there and cannot be used: corrupt, mislabelled, of one class only, a patient in two splits."""


class OperationFailedError(XraylibError):
    """A download, a training run or a write did not come to its end; nothing half-written is left."""


class UnusableImageError(InvalidDataError):
    """One file cannot be read as a radiograph: `problem` is unreadable, truncated, oversized or changed.

    `detail` says in words what is wrong.
    """

    def __init__(self, path: Path | str, problem: str, detail: str, fix: str = _EXPORT) -> None:
        super().__init__(f"{path}: {detail}. Fix: {fix}.")
        self.problem, self.detail = problem, detail
