"""Why the packaged model gave an answer: what the image is like, and what would change the answer.

Nothing here explains a disease. An image is compared with the training images, and answered again
after small changes that no radiologist would mind.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import ImageFilter, ImageOps
from PIL.Image import Resampling
from scipy import ndimage

from xraylib import paths, prediction
from xraylib.datasets import images, lungs, regions
from xraylib.datasets.corruptions import (
    Change,
    GrayImage,
    contrast,
    gaussian_noise,
    jpeg,
    to_images,
    to_pixels,
)
from xraylib.errors import InvalidDataError
from xraylib.packaged import PackagedModel, load_packaged
from xraylib.storage import atomic_write

# The box of the lungs is enlarged by these shares of its height and width on each side.
MARGINS = tuple(round(percent / 100, 2) for percent in range(-10, 21))

# What is measured of an image, as a sentence that says the value.
MEASURES = {
    "lung_height": "The lungs fill {:.0%} of the image's height",
    "brightness": "The mean grey level of the lungs' box is {:.0f} of 255",
    "contrast": "The grey levels of the lungs' box have a standard deviation of {:.0f}",
    "sharpness": (
        "The sharpness of the lungs' box, the logarithm of the Laplacian's variance, is {:.2f}"
    ),
}

CLASSES = ("normal", "pneumonia")
NO_ANSWER = "no answer"

# Side in pixels at which an image's lungs are measured, that of the classifier's input.
_SIDE = 128
# Quantiles of the training images that are kept: the 0%, 5%, …, 100% ones.
_QUANTILES = np.linspace(0, 1, 21)


@dataclass(frozen=True)
class Explanation:
    """Why an image got its answer.

    Attributes
    ----------
    name : str
        The file's name.
    shape : tuple of int
        The file's height and width in pixels.
    image : numpy.ndarray
        uint8 `(224, 224)`, as the model reads it.
    answer : str
        One of `packaged.ANSWERS`, or `no answer`.
    probability : float
        Of pneumonia; NaN where there is no answer.
    message : str
        Why there is no answer, else empty.
    box : numpy.ndarray or None
        Of the lungs: top, bottom, left, right as shares of the image. None if none were found;
        then `measures` has no rows.
    measures : pandas.DataFrame
        One row per entry of `MEASURES`: `measure`, `value`, and `normal` and `pneumonia`, the
        share of the training images of each class with a lower value (NaN if unknown).
    margins : pandas.DataFrame
        One row per entry of `MARGINS`: `margin`, `probability`, `answer`. No rows without answer.
    changes : pandas.DataFrame
        One row per entry of `CHANGES`: `change`, `probability`, `answer`. No rows without answer.
    heat_map : numpy.ndarray or None
        float32 `(224, 224)` in [0, 1]. None without answer.
    caveat : str
        How far the heat map can be trusted, in one sentence.
    """

    name: str
    shape: tuple[int, int]
    image: np.ndarray
    answer: str
    probability: float
    message: str
    box: np.ndarray | None
    measures: pd.DataFrame
    margins: pd.DataFrame
    changes: pd.DataFrame
    heat_map: np.ndarray | None
    caveat: str

    def lines(self) -> list[str]:
        """Say the explanation in sentences."""
        height, width = self.shape
        lines = [f"The file has {width:,} × {height:,} pixels (width × height)."]
        lines += [_compared(row) for row in self.measures.itertuples()]
        if self.answer == NO_ANSWER:
            return lines
        if self.heat_map is not None and not self.heat_map.any():
            lines.append("The heat map is empty: no part of the lungs' box speaks for pneumonia.")
        return [*lines, self.on_margins(), self.on_changes()]

    def figure(self) -> Any:
        """Draw the explanation, as a Matplotlib figure."""
        from xraylib.figures import explained

        title = f"{self.name}: {self.answer}"
        note = self.message
        if self.answer != NO_ANSWER:
            title += f", P(pneumonia) {probability_words(self.probability)}"
            note = self.caveat
        return explained.explanation(self, title, f"{note} Not a medical device.")

    def on_margins(self) -> str:
        """Say how the answer depends on the box of the lungs."""
        low = probability_words(self.margins["probability"].min())
        high = probability_words(self.margins["probability"].max())
        tightest = _margin_words(MARGINS[0])
        loosest = _margin_words(MARGINS[-1])
        probability = low if low == high else f"{low} to {high}"
        text = f"With boxes from {tightest} to {loosest}, P(pneumonia) is {probability}"
        flipped = self.margins[self.margins["answer"] != self.answer]
        if flipped.empty:
            return f"{text}, and the answer does not change."
        distances = (flipped["margin"] - regions.MARGIN).abs()
        nearest = flipped.iloc[distances.argmin()]
        return (
            f"{text}. The answer becomes {nearest['answer']!r} with a box that is "
            f"{_margin_words(nearest['margin'])}."
        )

    def on_changes(self) -> str:
        """Say which changes of the image change the answer."""
        flipped = self.flips()
        if flipped.empty:
            return f"None of {len(self.changes)} small changes of the image changes the answer."
        listed = [f"{row.change} ({row.answer})" for row in flipped.itertuples()]
        return (
            f"{len(flipped)} of {len(self.changes)} small changes of the image change the answer: "
            f"{', '.join(listed)}."
        )

    def flips(self) -> pd.DataFrame:
        """Return the rows of `changes` whose answer is another."""
        return self.changes[self.changes["answer"] != self.answer]

    def record(self) -> dict[str, Any]:
        """Return the explanation as values that JSON can hold, without pixels."""
        return {
            "box": None if self.box is None else np.round(self.box, 4).tolist(),
            "measures": _records(self.measures),
            "margins": _records(self.margins),
            "changes": _records(self.changes),
            "on_margins": self.on_margins() if len(self.margins) else "",
            "lines": self.lines(),
            "caveat": self.caveat,
        }


def explain(
    file: Path | str,
    model: PackagedModel | None = None,
    row: dict[str, Any] | None = None,
) -> Explanation:
    """Explain the answer to one image file.

    Parameters
    ----------
    file : Path or str
        JPEG, PNG, TIFF or DICOM.
    model : PackagedModel, optional
        By default the packaged model.
    row : dict, optional
        The file's answer, if `prediction.answer_files` gave it already.

    Raises
    ------
    UnusableImageError
        If the file cannot be read.
    InvalidDataError
        If the model has not what an explanation needs, see `check`.

    Examples
    --------
    >>> explained = explain("data/examples/normal.jpeg")
    >>> explained.changes.columns.tolist()
    ['change', 'probability', 'answer']
    """
    model = model or load_packaged()
    check(model)
    whole = images.read_gray(file)
    pixels = images.read_gray(file, model.size)[..., None]
    if row is None:
        (row,) = prediction.answer_files([file], model)
    return explain_pixels(row, whole.shape, pixels, model)


def check(model: Any) -> None:
    """Refuse a model whose answers cannot be explained, with `InvalidDataError`.

    An explanation needs the box of the lungs and the limits of the packaged model, or of an
    exported one.
    """
    if "limits" in model.left_out or not model.sees_lungs:
        raise InvalidDataError(
            f"{model.name} cannot be explained, because it has no limits or does not use the box "
            "of the lungs. Fix: use the packaged model, or see notebook 07."
        )


def explain_pixels(
    row: dict[str, Any],
    shape: tuple[int, ...],
    pixels: np.ndarray,
    model: PackagedModel,
) -> Explanation:
    """Explain the answer to an image that was read already.

    Parameters
    ----------
    row
        The image's answer, of `prediction.answer_files`.
    shape
        The file's height and width in pixels.
    pixels
        uint8 `(224, 224, 1)`.
    model
        The packaged model.
    """
    (seen,) = model.answer(pixels[None])
    box = seen.get("box")
    margins = []
    changes = []
    heat_map = None
    if box is not None and row["status"] == "ok":
        margins = _answers_by_margin(pixels, box, model)
        changes = _answers_by_change(pixels, model)
        heat_map = seen["heat_map"]
    known = model.limits.get("reference", {})
    return Explanation(
        name=Path(row["path"]).name,
        shape=(int(shape[0]), int(shape[1])),
        image=pixels[..., 0],
        message=row["message"],
        box=box,
        measures=_compare(pixels, box, known),
        margins=pd.DataFrame(margins, columns=["margin", "probability", "answer"]),
        changes=pd.DataFrame(changes, columns=["change", "probability", "answer"]),
        heat_map=heat_map,
        caveat=heat_map_caveat(known),
        **_outcome(row),
    )


def reference(manifest: pd.DataFrame, rows: np.ndarray) -> dict[str, Any]:
    """Measure the training images, for a model to compare images with.

    Parameters
    ----------
    manifest : pandas.DataFrame
        A whole manifest, from `manifest.load`, with images on this machine.
    rows : numpy.ndarray
        The rows of the training images.

    Returns
    -------
    dict
        For `run.json`, under `answers`, as `reference`:

        n : number of training images, by class
        measures : by measure and class, the 0%, 5%, …, 100% quantiles
    """
    pixels = images.load_pixels(manifest, regions.SOURCE_SIZE)[rows]
    measured = measure(pixels, regions.load_boxes(manifest)[rows])
    labels = manifest["label"].to_numpy()[rows]
    counts = {}
    quantiles: dict[str, dict[str, list[float]]] = {name: {} for name in MEASURES}
    for label, class_name in enumerate(CLASSES):
        of_class = measured[labels == label]
        counts[class_name] = len(of_class)
        for name, values in of_class.quantile(_QUANTILES).round(4).items():
            quantiles[str(name)][class_name] = values.tolist()
    return {"n": counts, "measures": quantiles}


def measure(pixels: np.ndarray, boxes: np.ndarray) -> pd.DataFrame:
    """Measure images: one row per image, one column per entry of `MEASURES`.

    Parameters
    ----------
    pixels : numpy.ndarray
        uint8 `(n, 224, 224, 1)`.
    boxes : numpy.ndarray
        Of the lungs, `(n, 4)`.
    """
    crops = lungs.crop_boxes(pixels, boxes, _SIDE)[..., 0].astype(np.float32)
    sharpness = [np.log10(ndimage.laplace(crop).var() + 1e-3) for crop in crops]
    return pd.DataFrame(
        {
            "lung_height": 1 - boxes[:, 0] - boxes[:, 1],
            "brightness": crops.mean(axis=(1, 2)),
            "contrast": crops.std(axis=(1, 2)),
            "sharpness": np.array(sharpness),
        }
    )


def probability_words(probability: float) -> str:
    """Write a probability with two decimals; no model is sure enough for 0.00 or 1.00.

    Examples
    --------
    >>> [probability_words(p) for p in (0.002, 0.5, 0.9984)]
    ['below 0.01', '0.50', 'above 0.99']
    """
    if probability < 0.01:
        return "below 0.01"
    if probability > 0.99:
        return "above 0.99"
    return f"{probability:.2f}"


def heat_map_caveat(known: dict[str, Any]) -> str:
    """Say how far heat maps can be trusted, by the entry `reference` of a packaged model."""
    tested = known.get("heat_map")
    if not tested:
        return "The heat map is not a finding. Whether it points at disease was not measured."
    return (
        f"The heat map is not a finding. In a test on {tested['images']} images of adults, its "
        f"peak lay in a radiologist's box in {tested['pointing']:.0%} of them, and the peak of a "
        f"map that sees no image in {tested['position_prior']:.0%}."
    )


def write_figure(explained: Explanation, path: str, folder: Path) -> Path:
    """Draw an explanation into a folder, under the image's name and a digest of its path.

    Raises
    ------
    OperationFailedError
        If the folder cannot be written.
    """
    from xraylib.figures import style

    file = folder / prediction.picture_name(path)
    with atomic_write(file) as temporary:
        figure = explained.figure()
        temporary.write_bytes(style.png(figure, figure.caption))
    return file


def _gamma(image: GrayImage, power: float) -> GrayImage:
    return image.point(lambda grey: 255 * (grey / 255) ** power)


# Small changes of an image, each with its name.
CHANGES: dict[str, Change] = {
    "darker by 40 grey levels": lambda image, rng: image.point(lambda grey: grey - 40),
    "brighter by 40 grey levels": lambda image, rng: image.point(lambda grey: grey + 40),
    "dark parts brighter (gamma 0.7)": lambda image, rng: _gamma(image, 0.7),
    "dark parts darker (gamma 1.4)": lambda image, rng: _gamma(image, 1.4),
    "half the contrast": lambda image, rng: contrast(image, 0.5, rng),
    "contrast × 1.5": lambda image, rng: contrast(image, 1.5, rng),
    "blurred (1 pixel of 224)": lambda image, rng: image.filter(ImageFilter.GaussianBlur(1)),
    "sharpened": lambda image, rng: image.filter(ImageFilter.UnsharpMask(2, 150)),
    "noise of 5 grey levels": lambda image, rng: gaussian_noise(image, 5 / 255, rng),
    "saved as JPEG, quality 30": lambda image, rng: jpeg(image, 30, rng),
    "turned by 5° to the left": lambda image, rng: image.rotate(5, Resampling.BILINEAR),
    "turned by 5° to the right": lambda image, rng: image.rotate(-5, Resampling.BILINEAR),
    "mirrored": lambda image, rng: ImageOps.mirror(image),
}


def _answers_by_margin(
    pixels: np.ndarray,
    box: np.ndarray,
    model: PackagedModel,
) -> list[dict[str, Any]]:
    """Answer an image in boxes of each margin; the gate, which sees the image, is not asked."""
    boxes = np.stack([_with_margin(box, margin) for margin in MARGINS])
    rows = []
    for margin, moved in zip(MARGINS, model.answer_in_boxes(pixels, boxes), strict=True):
        probability = moved.get("probability", np.nan)
        answer = moved.get("answer", NO_ANSWER)
        rows.append({"margin": margin, "probability": probability, "answer": answer})
    return rows


def _answers_by_change(pixels: np.ndarray, model: PackagedModel) -> list[dict[str, Any]]:
    """Answer an image after each change, as a file that was changed so would be answered."""
    (image,) = to_images(pixels[None])
    changed = [change(image, np.random.default_rng(0)) for change in CHANGES.values()]
    outcomes = model.answer(to_pixels(changed))
    return [
        {"change": name} | _outcome(outcome)
        for name, outcome in zip(CHANGES, outcomes, strict=True)
    ]


def _outcome(answered: dict[str, Any]) -> dict[str, Any]:
    """Give the answer and its probability; none where the model abstains."""
    if answered["status"] != "ok":
        return {"probability": np.nan, "answer": NO_ANSWER}
    return {"probability": answered["probability"], "answer": answered["answer"]}


def _with_margin(box: np.ndarray, margin: float) -> np.ndarray:
    """Enlarge a box so that, with the usual margin added, it is `margin` larger on each side."""
    scale = (1 + 2 * margin) / (1 + 2 * regions.MARGIN)
    return lungs.enlarge(box, (scale - 1) / 2)


def _compare(pixels: np.ndarray, box: np.ndarray | None, known: dict[str, Any]) -> pd.DataFrame:
    """Measure one image, and say which share of the training images of each class has less."""
    rows = []
    quantiles = known.get("measures", {})
    if box is not None:
        measured = measure(pixels[None], box[None]).iloc[0]
        for name, value in measured.items():
            row: dict[str, Any] = {"measure": name, "value": float(value)}
            if name in quantiles:
                for class_name in CLASSES:
                    of_class = quantiles[name][class_name]
                    row[class_name] = np.interp(value, of_class, _QUANTILES)
            rows.append(row)
    return pd.DataFrame(rows, columns=["measure", "value", *CLASSES])


def _compared(row: Any) -> str:
    sentence = MEASURES[row.measure].format(row.value)
    if np.isnan(row.normal):
        return f"{sentence}."
    return (
        f"{sentence}. {row.normal:.0%} of the normal training images and {row.pneumonia:.0%} of "
        "those with pneumonia have a lower value."
    )


def _margin_words(margin: float) -> str:
    if margin == 0:
        return "as found"
    return f"{abs(margin):.0%} {'larger' if margin > 0 else 'smaller'} on each side"


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Give the rows of a table; a missing number is None, which JSON knows."""
    return json.loads(table.round(4).to_json(orient="records"))


def localisation(dataset: str) -> dict[str, Any]:
    """Read the committed table that says whether heat maps point at what radiologists mark.

    Returns
    -------
    dict
        As `heat_map`: `images`, and the share of images whose peak lies in a box, for the heat map
        (`pointing`) and for a map that sees no image (`position_prior`). Empty where there is no
        such table.
    """
    file = paths.REPORTS / dataset / "tables" / "nih_localisation.csv"
    if not file.is_file():
        return {}
    rows = pd.read_csv(file, index_col="map").to_dict("index")
    heat_map = rows["heat map"]
    return {
        "heat_map": {
            "images": int(heat_map["images"]),
            "pointing": float(heat_map["pointing"]),
            "position_prior": float(rows["position prior"]["pointing"]),
        }
    }
