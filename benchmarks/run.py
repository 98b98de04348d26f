"""`make bench`: measure speed and memory against peers in the same run, and write benchmarks/results.md.

Usage: run.py [--quick]. The numbers of `--quick` show that everything runs; they are printed, not kept.
"""

import argparse
import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from json import loads
from pathlib import Path
from time import perf_counter
from typing import Any

from measurements import GROUPS

from xraylib import devices, paths, storage
from xraylib.training import runs

HERE = Path(__file__).resolve().parent
PARAMETERS = paths.ROOT / "build" / "phantom" / "parameters"
ABOUT = """# Speed and memory

Written by `make bench`. Every line is measured in one run on one machine, ours and the other in turn; the
ratio says how many times better ours is (below 1: worse), the median of the pairs with the least and the
highest. Files are in the operating system's cache for both.
"""


def measure(group: str, folder: Path, quick: bool) -> list[dict[str, Any]]:
    """Run one group in its own process, with its own cache and runs."""
    command = [sys.executable, str(HERE / "measurements.py"), group, str(folder)]
    places = {"XRAYLIB_CACHE": str(folder / "cache"), "XRAYLIB_RUNS": str(folder / "runs")}
    quiet = {"TQDM_DISABLE": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    start = perf_counter()
    print(f"{group} ... ", end="", flush=True)
    done = subprocess.run(
        command + ["--quick"] * quick, env=os.environ | places | quiet, capture_output=True, text=True
    )
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        sys.exit(f"the group {group} failed, see above")
    print(f"{perf_counter() - start:.0f} s")
    return loads((folder / f"{group}.json").read_text())


def _make(*arguments: str) -> int:
    """Run make as a user would, not as a part of the make that runs this."""
    ours = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES"}
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    command = ["make", "-C", str(paths.ROOT), "DATASET=phantom", *arguments]
    return subprocess.run(command, env=environment, capture_output=True).returncode


def second_reproduce(repeats: int) -> list[dict[str, Any]]:
    """Time `make reproduce` with nothing to do; no row unless it has been run and nothing changed since."""
    if not PARAMETERS.exists():
        return []
    before, stat = PARAMETERS.read_text(), PARAMETERS.stat()
    _make("build/phantom/parameters")
    if PARAMETERS.read_text() != before:
        PARAMETERS.write_text(before)
        os.utime(PARAMETERS, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        return []
    # Make looks at the parameters anew each time; -o leaves them out of the question whether all is done.
    reports = paths.REPORTS if os.environ.get("XRAYLIB_REPORTS") else "reports"
    if _make("-q", "-o", "build/phantom/parameters", f"{reports}/index.html"):
        return []
    times = []
    for _ in range(repeats):
        start = perf_counter()
        if _make("reproduce"):
            sys.exit("make reproduce failed")
        times.append(perf_counter() - start)
    what = "`make reproduce` with nothing changed"
    return [{"what": what, "against": "", "unit": "s", "more_is_better": False, "ours": times, "peer": []}]


def line(row: dict[str, Any]) -> str:
    """One row of the Markdown table."""
    unit, peer, ratio = row["unit"], "–", "–"
    if row["peer"]:
        peer = f"{row['against']}: {_number(statistics.median(row['peer']))} {unit}"
        pairs = [
            mine / other if row["more_is_better"] else other / mine
            for mine, other in zip(row["ours"], row["peer"], strict=True)
        ]
        ratio = f"{_number(statistics.median(pairs))} ({_number(min(pairs))}–{_number(max(pairs))})"
    ours = f"{_number(statistics.median(row['ours']))} {unit}"
    return f"| {row['what']} | {ours} | {peer} | {ratio} | {len(row['ours'])} |"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def heading(load: float) -> str:
    """Hardware, versions and load, as two sentences."""
    device = devices.use()
    found = runs.versions(device.backend) | {"pillow": importlib.metadata.version("pillow")}
    versions = ", ".join(f"{name} {version}" for name, version in found.items())
    return (
        f"{ABOUT}\n{device}. {platform.system()}, Python {platform.python_version()}, {versions}. "
        f"Load of the machine at the start: {load:.1f}.\n"
    )


def main() -> None:
    """Measure all groups and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small and few; printed, not kept")
    quick, load = parser.parse_args().quick, os.getloadavg()[0]
    if load > 0.5:
        print(f"the machine is busy (load {load:.1f}): trust the ratios, not the times", file=sys.stderr)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for group in GROUPS:
            rows += measure(group, Path(folder), quick)
    rows += second_reproduce(1 if quick else 3)
    head = "| what | ours | the other | times better | repeats |\n|---|---|---|---|---|"
    text = "\n".join([heading(load), head, *map(line, rows), ""])
    print(text)
    if not quick:
        with storage.atomic(HERE / "results.md") as file:
            file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
