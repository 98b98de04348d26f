"""Time and memory of an audit of many images, each number of images in a fresh process.

Usage: audit_growth.py FOLDER [IMAGES …]. Writes phantoms of 112 px below FOLDER, by default of
12,500, 25,000, 50,000 and 100,000 images, which takes about an hour on one core.
"""

import argparse
import time
from pathlib import Path

import run

from xraylib.datasets import phantom

SIZE = 112


def main() -> None:
    """Audit each phantom, and print a line for it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("images", type=int, nargs="*", default=[12_500, 25_000, 50_000, 100_000])
    options = parser.parse_args()
    print("images  CPU s  wall s  MB at most")
    for images in options.images:
        settings = phantom.PhantomSettings(images=images, size=SIZE)
        folder = phantom.write(options.folder / f"phantom-{images}", settings)
        start = time.monotonic()
        cpu_seconds, peak = run.alone(run.audited, folder)
        seconds = time.monotonic() - start
        print(f"{images:6d} {cpu_seconds:6.0f} {seconds:7.0f} {peak:11.0f}", flush=True)


if __name__ == "__main__":
    main()
