"""From a user's image files to answers, or to the reason why there is none. Not a medical device.

The model that comes with the package runs on LiteRT: neither TensorFlow, JAX nor Keras is loaded.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from xraylib.datasets import images
from xraylib.errors import InvalidDataError, NotFoundError, XraylibError
from xraylib.paths import SHIPPED
from xraylib.storage import atomic_write

if TYPE_CHECKING:
    from xraylib.training.predictor import Predictor

COLUMNS = (
    *(
        "path",
        "status",
        "probability",
        "label",
        "threshold",
        "prediction_set",
        "ood_score",
        "lowest",
        "highest",
    ),
    *("model", "model_sha256", "preprocessing", "message"),
)
SUFFIXES = {"", ".jpg", ".jpeg", ".png", ".tif", ".tiff", ".dcm", ".dicom"}  # DICOM often has none


@dataclass(frozen=True)
class Shipped:
    """The model that comes with the package, as `ship` wrote it; `about` is what its `run.json` says.

    Its probability is calibrated on validation, as `threshold` and the limits were set there.
    """

    name: str
    sha256: str
    size: int
    threshold: float
    about: dict[str, Any]
    network: Any

    @classmethod
    def load(cls, folder: Path = SHIPPED) -> "Shipped":
        """Read the model; `InvalidDataError` unless its file is the one that was shipped."""
        try:
            from ai_edge_litert.interpreter import Interpreter  # type: ignore[import-untyped]
        except ImportError as error:
            fix = (
                "pip install ai-edge-litert; where it has no build, name a trained run with --model"
            )
            raise NotFoundError(f"LiteRT is not on this machine. Fix: {fix}.") from error

        file, said = folder / "model.tflite", folder / "run.json"
        content = file.read_bytes() if file.is_file() and said.is_file() else b""
        about: dict[str, Any] = (
            json.loads(said.read_text()) if content else {"answers": {"sha256": ""}}
        )
        if (digest := hashlib.sha256(content).hexdigest()) != about["answers"]["sha256"]:
            fix = "install the package again, or `git checkout` the file"
            raise InvalidDataError(f"{file} is not the file that was shipped. Fix: {fix}.")
        network = Interpreter(model_content=content, num_threads=2)
        name = f"{about['recipe']} {about['dataset']} {about['seed']}"
        known = name, digest, about["choices"]["size"], about["answers"]["threshold"]
        return cls(*known, about["answers"], network.get_signature_runner())

    def answer(self, films: np.ndarray) -> list[dict[str, Any]]:
        """Answer films one by one, each as it is and in two further framings."""
        return [self._one(film) for film in films]

    def _one(self, film: np.ndarray) -> dict[str, Any]:
        known, picture = self.about, Image.fromarray(film[..., 0].astype(np.float32))
        views = []
        for rows, columns in known["framings"]:  # shares of the film that a view shows
            top, left = ((1 - share) / 2 * self.size for share in (rows, columns))
            box = (left, top, self.size - left, self.size - top)
            views.append(
                np.asarray(
                    picture.resize((known["input"],) * 2, Image.Resampling.BILINEAR, box=box)
                )
            )
        found = self.network(views=np.stack(views)[..., None])
        slope, intercept = known["calibration"]
        odds = found["log_odds"].astype(np.float64).ravel() * slope + intercept
        chances, ood = 1 / (1 + np.exp(-odds)), float(found["ood"].item())
        chance, lowest, highest = chances[0], chances.min(), chances.max()
        classes = {
            "normal": chance <= known["normal_up_to"],
            "pneumonia": chance >= known["pneumonia_from"],
        }
        told = {"probability": chance, "lowest": lowest, "highest": highest, "ood_score": ood}
        told |= {
            "prediction_set": " or ".join(name for name, inside in classes.items() if inside)
            or "neither"
        }
        if ood > known["ood_limit"]:
            what = f"unlike the films it was trained on (OOD score {ood:.1f}, limit {known['ood_limit']:.1f})"
            told |= {"status": "abstained", "message": what}
        elif highest - lowest > known["framing_limit"]:
            what = f"the answer depends on the framing ({lowest:.2f} to {highest:.2f})"
            told |= {"status": "abstained", "message": what}
        return told | {"heat_map": images.heat_map(found["heat"][0], self.size)}


def list_files(paths: Iterable[str]) -> list[str]:
    """The files that paths, folders (with all below them) and patterns name; `NotFoundError` for a folder without any."""
    found = []
    for path in paths:
        place, inside = Path(path), list[Path]()
        try:
            if folder := place.is_dir():
                inside = [
                    file
                    for file in place.rglob("*")
                    if file.suffix.lower() in SUFFIXES and file.name[0] != "." and file.is_file()
                ]
            elif not place.exists():
                pattern = str(place.relative_to(place.anchor)) if place.anchor else path
                inside = list(Path(place.anchor).glob(pattern))
        except (
            OSError,
            ValueError,
        ):  # a name too long, a folder that is closed, no pattern: reading it tells
            folder = False
        if folder and not inside:
            raise NotFoundError(
                f"no image in {path}. Fix: name a folder with JPEG, PNG, TIFF or DICOM files."
            )
        found += sorted(map(str, inside)) or [path]
    return found


def predict(
    files: Iterable[str | Path],
    model: "Shipped | Predictor",
    threshold: float | None = None,
    heat_maps: Path | None = None,
) -> Iterator[dict[str, Any]]:
    """Answer files of one frontal radiograph each, in order and a few at a time: `COLUMNS`, a dict a file.

    `status` is ok, abstained or error; `message` says why, or that an answer's label changes with the framing.
    `probability` is P(pneumonia), `label` its side of `threshold` (by default the model's own); `lowest` and `highest`
    are over further framings of the film. What a model does not know stays empty; that of a run (`Run.predictor`)
    knows neither calibration nor limits. `heat_maps`: a folder for overlays, named as the files.
    """
    limit = model.threshold if threshold is None else threshold
    common = {"threshold": limit, "model": model.name, "model_sha256": model.sha256[:12]}
    common |= {"preprocessing": f"gray, squashed to {model.size} x {model.size}, antialiased"}

    def read(file: str | Path) -> np.ndarray | str:
        try:
            return images.read_gray(file, model.size)[..., None]
        except XraylibError as error:
            return str(error)

    remaining, count = iter(files), 0
    with ThreadPoolExecutor(2) as pool:
        while part := list(islice(remaining, 32)):
            films = list(pool.map(read, part))
            good = [film for film in films if isinstance(film, np.ndarray)]
            answers = iter(model.answer(np.stack(good)) if good else [])
            for file, film in zip(part, films, strict=True):
                count += 1
                line: dict[str, Any] = dict.fromkeys(COLUMNS, "") | {"path": str(file)} | common
                if isinstance(film, str):
                    yield line | {"status": "error", "message": film, "probability": np.nan}
                    continue
                told = {"status": "ok"} | next(answers)
                if told["status"] == "ok":
                    told["label"] = "pneumonia" if told["probability"] >= limit else "normal"
                    if told.get("lowest", limit) < limit <= told.get("highest", limit):
                        told["message"] = "the label changes with the framing"
                else:  # nothing that could pass for an answer
                    told |= {
                        "probability": np.nan,
                        "prediction_set": "",
                        "lowest": "",
                        "highest": "",
                    }
                heat = told.pop("heat_map", None)
                if heat_maps is not None and heat is not None:
                    with atomic_write(
                        heat_maps / f"{count:04d}-{Path(file).stem[:80]}.png"
                    ) as temporary:
                        overlay_heat_map(film, heat).save(temporary)
                yield line | told


def overlay_heat_map(film: np.ndarray, heat: np.ndarray, strength: float = 0.4) -> Image.Image:
    """A film, uint8 `(size, size, 1)`, under its heat map, which hides it altogether at strength 1."""
    from matplotlib import colormaps

    colours = Image.fromarray((colormaps["inferno"](heat)[..., :3] * 255).astype(np.uint8))
    return Image.blend(Image.fromarray(film[..., 0]).convert("RGB"), colours, strength)
