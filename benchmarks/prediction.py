"""`make prediction`: what `predict` answers, abstains from and costs, into reports/prediction.json.

Real images are taken where XRAYLIB_DATA has them (Kermany's copies and originals, NIH). Without
them, the parts that need none are measured. Nothing here chose a limit of the model. The kind of
OOD score was chosen after pages, noise and photographs like these, and the share of the test images
that it flags, had been seen.
"""

import importlib.metadata
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydicom
from matplotlib import cbook
from PIL import Image, ImageDraw, ImageFont, ImageOps
from sklearn.datasets import load_sample_images

from xraylib import devices, paths, prediction
from xraylib.datasets import catalog, fetch, manifest
from xraylib.packaged import PackagedModel, load_packaged
from xraylib.storage import atomic_write


def answers(files: Iterable[Any], model: PackagedModel) -> pd.DataFrame:
    """Answer files with a table, one row per file."""
    return prediction.predict(files, model)


def share(values: Any) -> float:
    """Mean, to four digits."""
    return round(float(np.mean(values)), 4)


def others(place: Path) -> list[Path]:
    """Pictures that are no radiographs: 60 of each kind."""
    rng = np.random.default_rng(1)
    photographs = [Image.fromarray(photo) for photo in load_sample_images().images]
    photographs += [
        Image.open(cbook.get_sample_data(name))
        for name in ("grace_hopper.jpg", "Minduka_Present_Blue_Pack.png")
    ]
    found = []
    for number in range(60):
        photo = photographs[number % len(photographs)].convert("L")
        width, height = (int(side * rng.uniform(0.4, 0.95)) for side in photo.size)
        left, top = rng.integers(photo.width - width + 1), rng.integers(photo.height - height + 1)
        page = Image.new("L", (850, 1100), 255)
        font = ImageFont.load_default(int(rng.integers(12, 40)))
        for y in range(40, 1060, int(font.size * 1.4)):
            words = " ".join(
                "".join(rng.choice(list("etaoinshrdlu"), rng.integers(2, 9))) for _ in range(12)
            )
            ImageDraw.Draw(page).text((40, y), words, fill=0, font=font)
        side = int(rng.integers(4, 300))
        noise = Image.fromarray(rng.integers(0, 256, (side, side), dtype=np.uint8)).resize(
            (300, 300)
        )
        slope = np.add.outer(*(rng.uniform(-1, 1) * np.linspace(0, 255, 256) for _ in range(2)))
        blank = Image.fromarray(np.clip(slope + rng.uniform(0, 255), 0, 255).astype(np.uint8))
        crop = photo.crop((left, top, left + width, top + height))
        for kind, picture in (
            ("photograph", crop),
            ("page", page),
            ("noise", noise),
            ("blank", blank),
        ):
            found.append(place / f"{kind}-{number}.png")
            picture.save(found[-1])
    return found


ALTERED = {
    "on its side": lambda film: film.rotate(90, expand=True),
    "upside down": ImageOps.flip,
    "inverted": ImageOps.invert,
    "one half": lambda film: film.crop((0, 0, film.width // 2, film.height)),
    "turned by 20 degrees": lambda film: film.rotate(20),
}


def altered(films: list[str], model: PackagedModel) -> dict[str, float]:
    """Share abstained of real films that are not as a frontal chest film should be."""
    found = {}
    for name, alter in ALTERED.items():
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / f"{number}.png" for number in range(len(films))]
            for film, file in zip(films, files, strict=True):
                alter(Image.open(film).convert("L")).save(file)
            found[name] = share(answers(files, model)["status"] == "abstained")
    return {"n": len(films)} | found


def formats(film: Path, place: Path) -> list[Path]:
    """One film as PNG, TIFF, JPEG of quality 95 and DICOM."""
    picture = Image.open(film).convert("L")
    dicom = pydicom.Dataset()
    dicom.file_meta = pydicom.dataset.FileMetaDataset()
    dicom.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dicom.SOPClassUID, dicom.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.3"
    dicom.Rows, dicom.Columns, dicom.SamplesPerPixel, dicom.PixelRepresentation = (
        picture.height,
        picture.width,
        1,
        0,
    )
    dicom.PhotometricInterpretation, dicom.BitsAllocated, dicom.BitsStored, dicom.HighBit = (
        "MONOCHROME2",
        8,
        8,
        7,
    )
    dicom.PixelData = picture.tobytes() + b"\0" * (picture.height * picture.width % 2)
    buffer = io.BytesIO()
    dicom.save_as(buffer, enforce_file_format=True)
    files = [place / f"{film.stem}.{kind}" for kind in ("png", "tiff", "jpeg", "dcm")]
    picture.save(files[0])
    picture.save(files[1])
    picture.save(files[2], quality=95)
    files[3].write_bytes(buffer.getvalue())
    return files


def worth(told: pd.DataFrame, label: np.ndarray) -> dict[str, Any]:
    """Measure answers: accuracy, Brier score, calibration error, coverage of the 95% sets.

    Answers whose label depends on the framing are counted apart.
    """
    changes = (told["message"] != "").to_numpy()
    right = ((told["label"] == "pneumonia") == label).to_numpy()
    probability = told["probability"].to_numpy()
    held = told["prediction_set"]
    bins = np.minimum((probability * 10).astype(int), 9)
    gaps = [abs(probability[bins == one].sum() - label[bins == one].sum()) for one in range(10)]
    found = {"accuracy": share(right), "brier": share((probability - label) ** 2)}
    found |= {"label_hangs_on_framing": share(changes), "accuracy_of_those": share(right[changes])}
    found |= {"accuracy_of_the_others": share(right[~changes])}
    found |= {
        "calibration_error": round(sum(gaps) / len(told), 4),
        "set_empty": share(held == "neither"),
    }
    covered = {
        name: held[label == (name == "pneumonia")].str.contains(name)
        for name in ("normal", "pneumonia")
    }
    return found | {f"set_holds_{name}": share(values) for name, values in covered.items()}


def cost(films: list[str], model: PackagedModel) -> dict[str, Any]:
    """Cold start, throughput and memory of the command and of the call."""
    command = [sys.executable, "-m", "xraylib", "predict", "--json"]
    cold = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([*command, films[0]], check=True, capture_output=True)
        cold.append(time.perf_counter() - start)
    # Not getrusage, whose peak a child inherits from what started it.
    peak = """
import re, sys
from pathlib import Path
from xraylib import cli
status = cli.main(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
sys.exit(status)
"""
    done = subprocess.run(
        [sys.executable, "-c", peak, *command[3:], *films],
        capture_output=True,
        text=True,
        check=True,
    )
    answers(films[:32], model)
    start = time.perf_counter()
    answers(films, model)
    rate = len(films) / (time.perf_counter() - start)
    found = {
        "cold_start_s": round(float(np.median(cold)), 2),
        "images_per_s": round(rate, 1),
        "images": len(films),
    }
    return found | {"peak_mb": int(done.stdout.splitlines()[-1]) // 1024}


def main() -> None:
    """Measure everything and write the file."""
    model = load_packaged()
    found: dict[str, Any] = {}
    version = importlib.metadata.version("ai-edge-litert")
    found["model"], found["sha256"] = model.name, model.sha256
    found["machine"] = (
        f"{str(devices.use('cpu')).split(' · ')[0]} · LiteRT {version} on two threads"
    )
    phantom = manifest.load(fetch.fetch("phantom"))
    found["phantom_answered"] = share(answers(phantom["path"], model)["status"] == "ok")
    with tempfile.TemporaryDirectory() as folder:
        files = others(Path(folder))
        told, kinds = answers(files, model), pd.Series([file.name.split("-")[0] for file in files])
        abstained = (told["status"] == "abstained").groupby(kinds).agg(["mean", "size"])
        found["abstained"] = {
            kind: {"share": share(row["mean"]), "n": int(row["size"])}
            for kind, row in abstained.iterrows()
        }
    films = list(phantom["path"])
    for name in ("kermany", "nih"):
        if not catalog.get_dataset(name).root.is_dir():
            print(f"{name}: its images are not here, left out", file=sys.stderr)
            continue
        whole = manifest.load(name)
        test = whole[whole["split"] == "test"] if name == "kermany" else whole
        told = answers(test["path"], model)
        ok = (told["status"] == "ok").to_numpy()
        label = (test["label"] == 1).to_numpy()
        found[name] = {"n": len(told), "answered": share(ok)} | worth(told[ok], label[ok])
        if name == "kermany":
            films = list(test["path"])
            found["altered_abstained"] = altered(films[::4], model)
    originals = sorted((paths.DATA / "kermany_originals").rglob("*.jpeg"))
    if originals:
        copies = manifest.load("kermany").set_index("image_id")["path"]
        one, other = (
            answers(originals, model),
            answers([copies[file.stem] for file in originals], model),
        )
        apart, both = (
            (one["probability"] - other["probability"]).abs(),
            (one["label"] != "") & (other["label"] != ""),
        )
        agreed = {"n": len(one), "both_answered": int(both.sum()), "median": share(apart.median())}
        found["originals_and_copies"] = agreed | {
            "same_label": share((one["label"] == other["label"])[both])
        }
        with tempfile.TemporaryDirectory() as folder:
            made = [
                answers(formats(film, Path(folder)), model)["probability"]
                for film in originals[:50]
            ]
        spread = [each.max() - each.min() for each in made if each.notna().all()]
        found["formats"] = {
            "n": len(spread),
            "median": share(np.median(spread)),
            "largest": share(np.max(spread)),
        }
    found["cost"] = cost(films, model)
    with atomic_write(paths.ROOT / "reports" / "prediction.json") as file:
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
