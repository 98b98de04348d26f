"""The page of notebook 08: images in, answers and their explanations out. Not a medical device.

A widget. `static/page.js` draws the page and asks; this module answers its messages.
"""

import io
import tempfile
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets
from PIL import Image

from xraylib import answers, explanation, paths, prediction
from xraylib.datasets import images, regions
from xraylib.packaged import UNDECIDED, PackagedModel, load_packaged

# Megabytes.
LARGEST = 50

_STATIC = Path(__file__).resolve().parent / "static"
# The longer side of the pictures in the page, in pixels.
_PICTURE = 480


class Page(anywidget.AnyWidget):
    """A page that answers images: show it as the last line of a cell.

    Parameters
    ----------
    model : PackagedModel, optional
        By default the packaged model.
    """

    _esm = _STATIC / "page.js"
    _css = _STATIC / "page.css"
    facts = traitlets.Dict().tag(sync=True)

    def __init__(self, model: PackagedModel | None = None) -> None:
        self._model = model or load_packaged()
        explanation.check(self._model)
        self._examples = list_examples()
        # By the page's number: the answer, the file's height and width, and the pixels.
        self._kept: dict[int, Any] = {}
        self._rows: list[dict[str, Any]] = []
        facts = describe(self._model) | {"examples": list(self._examples)}
        super().__init__(facts=facts)
        self.on_msg(self._on_message)

    def _on_message(self, _: Any, message: dict[str, Any], buffers: list[Any]) -> None:
        """Do what the page asks; every request but `clear` gets one reply."""
        if message["ask"] == "answer":
            self._answer(message, bytes(buffers[0]) if buffers else None)
        elif message["ask"] == "explain":
            self._explain(message["id"])
        elif message["ask"] == "table":
            self.send({"reply": "table", "text": csv_text(self._rows, self._model)})
        else:
            self._kept.clear()
            self._rows.clear()

    def _answer(self, message: dict[str, Any], content: bytes | None) -> None:
        name = Path(message["name"]).name
        if message.get("example"):
            content = self._examples[name].read_bytes()
        pictures: list[bytes] = []
        if content is None:
            row = _too_large(message["megabytes"], self._model)
        else:
            row, pictures = self._answer_bytes(message["id"], content)
        row["path"] = name
        self._rows.append(row)
        reply = {"reply": "answer", "id": message["id"]} | words(row, self._model)
        self.send(reply, buffers=pictures)

    def _answer_bytes(self, number: int, content: bytes) -> tuple[dict[str, Any], list[bytes]]:
        """Answer the bytes of a file; return the row, and a picture if the file can be read."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "image"
            file.write_bytes(content)
            (row,) = prediction.answer_files([file], self._model)
            row["message"] = row["message"].replace(f"{file}: ", "")
            if row["status"] == "error":
                return row, []
            whole = images.read_gray(file)
            pixels = images.read_gray(file, self._model.size)[..., None]
        self._kept[number] = (row, whole.shape, pixels)
        return row, [_picture(whole)]

    def _explain(self, number: int) -> None:
        """Send the explanation of an image, and its heat map if there is an answer."""
        row, shape, pixels = self._kept[number]
        explained = explanation.explain_pixels(row, shape, pixels, self._model)
        heat_maps = []
        if explained.heat_map is not None and explained.heat_map.any():
            heat_maps.append(_coloured(explained.heat_map, shape))
        reply = {"reply": "explain", "id": number, "margin": regions.MARGIN}
        self.send(reply | explained.record(), buffers=heat_maps)


def list_examples() -> dict[str, Path]:
    """Return the example images that come with the repository, by name (installed: none)."""
    folder = paths.ROOT / "data" / "examples"
    return {file.name: file for file in sorted(folder.glob("*.*"))}


def describe(model: PackagedModel) -> dict[str, Any]:
    """Return what the page says of its model: which, how good, and the caveats."""
    known = model.limits.get("reference", {})
    return {
        "largest": LARGEST,
        "model": f"{model.name}, file {model.sha256[:12]}",
        "record": _sentence(model.record or "how often it is right was not measured"),
        "caveats": [
            f"Trained on {model.population}. Of other hospitals and of adults: {model.elsewhere}.",
            explanation.heat_map_caveat(known),
        ],
    }


def words(row: dict[str, Any], model: PackagedModel) -> dict[str, str]:
    """Say an answer as the page shows it: the answer, the meaning of its number, reason, notice."""
    if row["status"] != "ok":
        return {"answer": explanation.NO_ANSWER, "reason": _sentence(row["message"])}
    meaning = (
        f"Probability of pneumonia: {explanation.probability_words(row['probability'])}, where "
        f"{row['prevalence']:.0%} of such images show pneumonia."
    )
    rates = model.limits.get("right") or {}
    rate = rates.get(row["answer"]) or {}
    if row["answer"] == UNDECIDED:
        meaning += " The model leaves this open, because such probabilities are too often wrong."
    elif rate.get("share") is not None and not row["notice"]:
        meaning += f" On {model.test} {rate['share']:.1%} of {rate['n']} such answers are right."
    return {"answer": row["answer"], "meaning": meaning, "notice": _sentence(row["notice"])}


def csv_text(rows: list[dict[str, Any]], model: PackagedModel) -> str:
    """Return answers as the table that `predict --csv` writes."""
    settings = prediction.settings_of(model, model.threshold)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "answers.csv"
        with answers.AnswerTable(file, (), settings) as table:
            for row in rows:
                table.write(answers.rounded(row))
        return file.read_text(encoding="utf-8")


def _too_large(megabytes: float, model: PackagedModel) -> dict[str, Any]:
    message = f"{megabytes:.0f} MB. Fix: give files of at most {LARGEST} MB."
    row = dict.fromkeys(answers.COLUMNS, "")
    row |= prediction.settings_of(model, model.threshold)
    return row | {"status": "error", "probability": np.nan, "message": message}


def _sentence(text: str) -> str:
    if not text:
        return ""
    return f"{text[0].upper()}{text[1:].rstrip('.')}."


def _picture(gray: np.ndarray) -> bytes:
    """Return an image, uint8 `(h, w)`, as a small JPEG."""
    image = Image.fromarray(gray)
    image.thumbnail((_PICTURE, _PICTURE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()


def _coloured(heat_map: np.ndarray, shape: tuple[int, ...]) -> bytes:
    """Return a heat map, float `(size, size)` in [0, 1], as a PNG of the image's proportions."""
    height, width = shape
    scale = min(1.0, _PICTURE / max(shape))
    # A long and narrow file has at least one pixel across.
    columns = max(1, round(width * scale))
    rows = max(1, round(height * scale))
    coloured = prediction.colour_heat_map(heat_map).resize((columns, rows))
    file = io.BytesIO()
    coloured.save(file, "PNG")
    return file.getvalue()
