"""The errors that a user can fix. Each message names the thing and the fix."""

from pathlib import Path

_EXPORT = "export it again from its source as an 8-bit PNG"


class XraylibError(Exception):
    """Base of all errors that a user can fix; the command line exits with status 1.

    The message names the file or thing and ends with "Fix: ...".
    """

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: the message, without a traceback."""
        return [f"{type(self).__name__}: {self}"]


class NotFoundError(XraylibError):
    """A name, data set, file or device does not exist."""


class InvalidDataError(XraylibError):
    """The data exist but are unusable.

    Examples are corrupt or mislabelled files, a single class, and a patient in two splits.
    """


class OperationFailedError(XraylibError):
    """A download, a training run or a write did not finish; nothing half-written is left."""


class UnusableImageError(InvalidDataError):
    """One file cannot be read as an image.

    Attributes
    ----------
    problem
        ``unreadable``, ``truncated``, ``oversized`` or ``changed``.
    detail
        What is wrong, in words.
    """

    def __init__(self, path: Path | str, problem: str, detail: str, fix: str = _EXPORT) -> None:
        super().__init__(f"{path}: {detail}. Fix: {fix}.")
        self.problem = problem
        self.detail = detail
