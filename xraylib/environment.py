"""Whether the running Python meets our requirements: `python -m xraylib.environment` prints True or False."""

import importlib.metadata

from packaging.requirements import Requirement

DISTRIBUTION = "xraylib-pneumonia"


def unmet(extras: tuple[str, ...] = ("cpu", "dev", "notebooks")) -> list[str]:
    """List the requirements of this distribution and its extras that the running Python does not meet."""
    try:
        stated = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return [DISTRIBUTION]
    wanted = [Requirement(text) for text in stated]
    return [str(one) for one in wanted if _applies(one, extras) and not _met(one)]


def _applies(requirement: Requirement, extras: tuple[str, ...]) -> bool:
    return requirement.marker is None or any(
        requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)
    )


def _met(requirement: Requirement) -> bool:
    try:
        found = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return requirement.specifier.contains(found, prereleases=True)


if __name__ == "__main__":
    import sys

    sys.stdout.write(f"{not unmet()}\n")
