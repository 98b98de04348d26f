"""`make prediction`: what `xraylib.predict` answers, refuses and costs.

It writes `reports/prediction.json`, `reports/prediction.csv` with one row for each way in which the
file of an image was altered, and the table `alterations` of Kermany's report, with one row for each
kind. `model` is 12 digits of the SHA-256 of the packaged model. Real images are taken where
XRAYLIB_DATA has them (Kermany's copies and originals). Without them, the parts that need none
are measured. Nothing here chose a limit of the model. What the answers are worth and what the gate
refuses is measured by benchmarks/packaged_model.py.
"""

import argparse
import importlib.metadata
import io
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pydicom
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from tqdm.auto import tqdm

import xraylib
from xraylib import devices, paths
from xraylib.datasets import catalog, fetch, manifest
from xraylib.packaged import UNDECIDED
from xraylib.report.tables import save_table
from xraylib.storage import atomic_write, sha256

# Of each class, from which altered copies are made.
ALTERED_IMAGES = 30

Change = Callable[[Image.Image, np.random.Generator], Image.Image]


class Alteration(NamedTuple):
    """One way in which a person's file of an image differs from another's.

    `write` writes an altered copy of an 8-bit grey image, and returns the file: its path is the
    one that it is given, with a suffix.
    """

    kind: str
    strength: str
    refused: bool
    write: Callable[[Image.Image, Path, np.random.Generator], Path]


def _resize(image: Image.Image, rng: np.random.Generator, longer: int) -> Image.Image:
    factor = longer / max(image.size)
    return _enlarge(image, rng, factor)


def _enlarge(
    image: Image.Image,
    rng: np.random.Generator,
    factor: float,
    filter_: Image.Resampling = Image.Resampling.BICUBIC,
) -> Image.Image:
    return image.resize((round(image.width * factor), round(image.height * factor)), filter_)


def _add_noise(image: Image.Image, rng: np.random.Generator, sigma: float) -> Image.Image:
    noisy = np.asarray(image) + rng.normal(0, sigma, (image.height, image.width))
    return Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))


def _blur(image: Image.Image, rng: np.random.Generator, pixels: float) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(pixels))


def _add_bars(
    image: Image.Image, rng: np.random.Generator, across: float, along: float, gray: int
) -> Image.Image:
    """Add bars of these shares of width and height on both sides."""
    bars = (round(image.width * across), round(image.height * along))
    return ImageOps.expand(image, bars, gray)


def _collimate(image: Image.Image, rng: np.random.Generator, share: float) -> Image.Image:
    """Blacken that share of the height and width on every side."""
    border = (round(image.width * share), round(image.height * share))
    return ImageOps.expand(ImageOps.crop(image, border), border)


def _contrast(image: Image.Image, rng: np.random.Generator, factor: float) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(factor)


def _gamma(image: Image.Image, rng: np.random.Generator, power: float) -> Image.Image:
    return image.point([round(255 * (gray / 255) ** power) for gray in range(256)])


def _mirror(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return ImageOps.mirror(image)


def _turn(image: Image.Image, rng: np.random.Generator, degrees: int) -> Image.Image:
    return image.rotate(degrees, expand=True)


def _tilt(image: Image.Image, rng: np.random.Generator, degrees: int) -> Image.Image:
    """Turn to the left or to the right, with black corners."""
    return image.rotate(degrees * rng.choice([-1, 1]), Image.Resampling.BILINEAR)


def _invert(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return ImageOps.invert(image)


def _keep(
    image: Image.Image, rng: np.random.Generator, box: tuple[float, float, float, float]
) -> Image.Image:
    """Crop to a box, in shares of width and height: left, top, right, bottom."""
    left, top, right, bottom = box
    width, height = image.size
    corners = (left * width, top * height, right * width, bottom * height)
    return image.crop(tuple(round(corner) for corner in corners))


def _write_png(
    image: Image.Image, stem: Path, rng: np.random.Generator, change: Change, **options: Any
) -> Path:
    file = stem.with_suffix(".png")
    change(image, rng, **options).save(file, compress_level=1)
    return file


def _write_jpeg(image: Image.Image, stem: Path, rng: np.random.Generator, quality: int) -> Path:
    file = stem.with_suffix(".jpeg")
    image.save(file, quality=quality)
    return file


def _write_16_bits(
    image: Image.Image, stem: Path, rng: np.random.Generator, bits: int, suffix: str
) -> Path:
    """Write values that use so many of 16 bits."""
    file = stem.with_suffix(suffix)
    values = np.asarray(image).astype(np.uint16) * 257
    Image.fromarray(values >> (16 - bits)).save(file)
    return file


def _changes(
    kind: str, change: Change, strengths: dict[str, dict[str, Any]], refused: bool = False
) -> list[Alteration]:
    """List one change in several strengths, stored as PNG."""
    return [
        Alteration(kind, strength, refused, partial(_write_png, change=change, **options))
        for strength, options in strengths.items()
    ]


def _in_percent(*shares: float, **options: float) -> dict[str, dict[str, Any]]:
    return {f"{share:.0%}": {"share": share, **options} for share in shares}


def _bars(across: int, along: int, gray: int) -> dict[str, dict[str, Any]]:
    """Bars of 5% and 10%, where `across` and `along` are 1 or 0."""
    return {
        f"{share:.0%}": {"across": across * share, "along": along * share, "gray": gray}
        for share in (0.05, 0.1)
    }


def alterations() -> list[Alteration]:
    """List every alteration: first those that should change no answer, then those to refuse."""
    sizes = {f"{side} px": {"longer": side} for side in (512, 1024, 1536, 2048)}
    nearest = {"factor": 3.0, "filter_": Image.Resampling.NEAREST}
    enlarged = {"x2": {"factor": 2.0}, "x3": {"factor": 3.0}, "x3, nearest": nearest}
    halves = {
        "left": {"box": (0, 0, 0.5, 1)},
        "right": {"box": (0.5, 0, 1, 1)},
        "upper": {"box": (0, 0, 1, 0.5)},
        "lower": {"box": (0, 0.5, 1, 1)},
    }
    kept = [
        *_changes("resized, longer side", _resize, sizes),
        *_changes("enlarged", _enlarge, enlarged),
        *_changes("noise", _add_noise, {f"sigma {s}": {"sigma": s} for s in (2, 5)}),
        *_changes("blur", _blur, {f"{p} px": {"pixels": p} for p in (0.5, 1)}),
        *_changes("black border", _add_bars, _bars(1, 1, 0)),
        *_changes("white border", _add_bars, _bars(1, 1, 255)),
        *_changes("bars above and below", _add_bars, _bars(0, 1, 0)),
        *_changes("bars left and right", _add_bars, _bars(1, 0, 0)),
        *_changes("collimated", _collimate, _in_percent(0.05, 0.1)),
        *_changes("contrast", _contrast, {f"x{f}": {"factor": f} for f in (0.5, 0.75, 1.25, 1.5)}),
        *_changes("gamma", _gamma, {str(p): {"power": p} for p in (0.7, 1.4)}),
        *_changes("mirrored", _mirror, {"": {}}),
        *_changes("tilted", _tilt, {f"{d}°": {"degrees": d} for d in (5, 10)}),
    ]
    for quality in (90, 75, 50, 30):
        write = partial(_write_jpeg, quality=quality)
        kept.append(Alteration("JPEG", f"quality {quality}", False, write))
    for suffix in (".png", ".tiff"):
        for bits in (13, 14, 15, 16):
            write = partial(_write_16_bits, bits=bits, suffix=suffix)
            kept.append(Alteration(f"bits of 16, {suffix[1:].upper()}", str(bits), False, write))
    turns = {f"{degrees}°": {"degrees": degrees} for degrees in (90, 180, 270)}
    return [
        *kept,
        *_changes("turned", _turn, turns, refused=True),
        *_changes("tilted far", _tilt, {"20°": {"degrees": 20}}, refused=True),
        *_changes("inverted", _invert, {"": {}}, refused=True),
        *_changes("one half", _keep, halves, refused=True),
    ]


def some_of_each_class(images: pd.DataFrame, count: int) -> list[str]:
    """Paths of `count` images of each class, of as many patients, spread over the file names."""
    chosen: list[str] = []
    for _, of_class in images.drop_duplicates("patient").groupby("label"):
        rows = np.linspace(0, len(of_class) - 1, min(count, len(of_class))).round().astype(int)
        chosen += of_class.sort_values("image_id")["path"].iloc[rows].tolist()
    return chosen


def measure_alterations(files: Sequence[str]) -> pd.DataFrame:
    """Answer altered copies of some images, and compare with the answers to the files themselves.

    Returns
    -------
    pandas.DataFrame
        One row per kind and strength.

        - `kind`, `strength`, `expected`: `same answer`, or `refused`.
        - `n`: images; `answered`: copies that got an answer; `refused`, `errors`: that got none.
        - `both`: of the answered copies, those whose image got an answer as well.
        - `changed`: of both, answers that went from normal to pneumonia or back.
        - `undecided`: of both, answers that went to or from undecided.
        - `largest_difference`: of the probability, of both; missing where there are none.
    """
    before = xraylib.predict(files)
    grays = [Image.open(file).convert("L") for file in files]
    rows = []
    for alteration in tqdm(alterations(), unit="alteration"):
        with tempfile.TemporaryDirectory() as folder:
            copies = []
            for number, gray in enumerate(grays):
                rng = np.random.default_rng(number)
                copies.append(alteration.write(gray, Path(folder) / f"copy{number}", rng))
            after = xraylib.predict(copies)
        row = {"kind": alteration.kind, "strength": alteration.strength}
        row["expected"] = "refused" if alteration.refused else "same answer"
        rows.append(row | compare(before, after))
    return pd.DataFrame(rows)


def compare(before: pd.DataFrame, after: pd.DataFrame) -> dict[str, Any]:
    """Count what changed between two tables of answers to as many images, in the same order."""
    both = (before["status"] == "ok") & (after["status"] == "ok")
    is_other = both & (before["answer"] != after["answer"])
    by_undecided = is_other & ((before["answer"] == UNDECIDED) | (after["answer"] == UNDECIDED))
    difference = (after["probability"] - before["probability"]).abs()[both].max()
    return {
        "n": len(after),
        "answered": int((after["status"] == "ok").sum()),
        "refused": int((after["status"] == "abstained").sum()),
        "errors": int((after["status"] == "error").sum()),
        "both": int(both.sum()),
        "changed": int((is_other & ~by_undecided).sum()),
        "undecided": int(by_undecided.sum()),
        "largest_difference": round(float(difference), 4),
    }


def summarise_alterations(table: pd.DataFrame) -> pd.DataFrame:
    """Sum the strengths of each kind up, for the model card."""
    groups = table.groupby(["model", "kind", "expected"], sort=False)
    summed = groups[["n", "refused", "errors", "both", "changed", "undecided"]].sum()
    summed["strengths"] = groups["strength"].agg(lambda names: "; ".join(filter(None, names)))
    summed["largest_difference"] = groups["largest_difference"].max()
    return summed.reset_index()


def share(values: Any) -> float:
    """Mean, to four digits."""
    return round(float(np.mean(values)), 4)


def write_formats(image: str | Path, folder: Path) -> list[Path]:
    """Write one image as PNG, TIFF, JPEG of quality 95 and DICOM."""
    gray = Image.open(image).convert("L")
    dicom = pydicom.Dataset()
    dicom.file_meta = pydicom.dataset.FileMetaDataset()
    dicom.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dicom.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    dicom.SOPInstanceUID = "1.2.3"
    dicom.Rows = gray.height
    dicom.Columns = gray.width
    dicom.SamplesPerPixel = 1
    dicom.PixelRepresentation = 0
    dicom.PhotometricInterpretation = "MONOCHROME2"
    dicom.BitsAllocated = 8
    dicom.BitsStored = 8
    dicom.HighBit = 7
    dicom.PixelData = gray.tobytes() + b"\0" * (gray.height * gray.width % 2)
    buffer = io.BytesIO()
    dicom.save_as(buffer, enforce_file_format=True)
    stem = Path(image).stem
    files = [folder / f"{stem}.{suffix}" for suffix in ("png", "tiff", "jpeg", "dcm")]
    gray.save(files[0])
    gray.save(files[1])
    gray.save(files[2], quality=95)
    files[3].write_bytes(buffer.getvalue())
    return files


def measure_copies(originals: list[Path]) -> dict[str, Any]:
    """Compare the answers to original files with those to the data set's copies of them."""
    path_of = manifest.load("kermany").set_index("image_id")["path"]
    copies = [path_of[file.stem] for file in originals]
    compared = compare(xraylib.predict(originals), xraylib.predict(copies))
    spreads = []
    for original in originals[:50]:
        with tempfile.TemporaryDirectory() as folder:
            probability = xraylib.predict(write_formats(original, Path(folder)))["probability"]
        if probability.notna().all():
            spreads.append(probability.max() - probability.min())
    formats: dict[str, Any] = {"n": len(spreads)}
    if spreads:
        formats |= {"median": share(np.median(spreads)), "largest": share(np.max(spreads))}
    return {"originals_and_copies": compared, "formats": formats}


def measure_cost(files: list[str]) -> dict[str, Any]:
    """Cold start, throughput and memory of the command and of the call."""
    command = [sys.executable, "-m", "xraylib", "predict", "--json"]
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([*command, files[0]], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    xraylib.predict(files[:32])
    start = time.perf_counter()
    xraylib.predict(files)
    rate = len(files) / (time.perf_counter() - start)
    return {
        "cold_start_s": round(float(np.median(seconds)), 2),
        "images_per_s": round(rate, 1),
        "images": len(files),
        "peak_mb": _peak_megabytes(["predict", "--json", *files]),
    }


def _peak_megabytes(arguments: list[str]) -> int:
    """Run a command in another process; return its highest resident memory."""
    # Not getrusage, whose peak a child inherits from what started it.
    code = """
import sys
from pathlib import Path
from xraylib import cli
status = cli.main(sys.argv[1:])
print(Path("/proc/self/status").read_text())
sys.exit(status)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(re.findall(r"VmHWM:\s+(\d+)", done.stdout)[-1]) // 1024


def measure(per_class: int) -> tuple[dict[str, Any], pd.DataFrame | None]:
    """Measure everything; alterations are None where Kermany's images are not here."""
    model_file = paths.SHIPPED / "model.tflite"
    phantom = manifest.load(fetch.fetch("phantom"))
    answers = xraylib.predict(phantom["path"])
    version = importlib.metadata.version("ai-edge-litert")
    cpu = str(devices.use("cpu")).split(" · ")[0]
    measured: dict[str, Any] = {
        "model": answers["model"].iloc[0],
        "sha256": sha256(model_file),
        "machine": f"{cpu} · LiteRT {version} on two threads",
        "phantom_answered": share(answers["status"] == "ok"),
    }
    files = list(phantom["path"])
    altered = None
    if catalog.get_dataset("kermany").root.is_dir():
        whole = manifest.load("kermany")
        test = whole[whole["split"] == "test"].reset_index(drop=True)
        files = list(test["path"])
        altered = measure_alterations(some_of_each_class(test, per_class))
    else:
        print("kermany: its images are not here, left out", file=sys.stderr)
    originals = sorted((paths.DATA / "kermany_originals").rglob("*.jpeg"))
    if originals:
        measured |= measure_copies(originals)
    return measured | {"cost": measure_cost(files)}, altered


def main() -> None:
    """Measure everything and write it into the reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--per-class", type=int, default=ALTERED_IMAGES, help="images to alter")
    measured, altered = measure(parser.parse_args().per_class)
    if altered is not None:
        altered.insert(0, "model", measured["sha256"][:12])
        with atomic_write(paths.REPORTS / "prediction.csv") as file:
            altered.to_csv(file, index=False)
        save_table(summarise_alterations(altered), "kermany", "alterations")
    with atomic_write(paths.REPORTS / "prediction.json") as file:
        file.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
