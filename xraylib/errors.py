"""The errors a user can mend. The command line prints their message alone and exits with status 1."""


class XraylibError(Exception):
    """Something the user can mend; the message names it and the mend."""


class UnknownName(XraylibError):
    """A data set, recipe, protocol, budget, device or parameter of that name does not exist."""


class DataMissing(XraylibError):
    """The data set is not where it was looked for."""


class DataInvalid(XraylibError):
    """The data is there but cannot be used: empty, one class only, corrupt, mislabelled."""


class FetchFailed(XraylibError):
    """A download did not arrive, or what arrived is not what was published."""


class LeakFound(XraylibError):
    """Images of one patient, or copies of one image, stand on both sides of a split."""


class DeviceMissing(XraylibError):
    """The accelerator or backend asked for is not on this machine."""


class WeightsMissing(XraylibError):
    """The initial weights asked for can neither be found nor downloaded."""


class TrainingFailed(XraylibError):
    """A training went wrong in a way that another setting mends."""


class StorageFailed(XraylibError):
    """A folder cannot be written or the disk is full; nothing half-written is left."""
