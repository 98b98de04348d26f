"""Reading a DICOM file: one frame as 8-bit gray."""

import io
import logging
from pathlib import Path

import numpy as np
from PIL import Image

from xraylib.errors import UnusableImageError

MAX_PIXELS = 40_000_000

_DEFLATED = b"1.2.840.10008.1.2.1.99"


def read_dicom(path: Path, data: bytes) -> Image.Image:
    """One frame as 8-bit gray; nothing of the file but its pixels is kept, nor repeated in a message.

    Rescaled, then windowed as the file says (its first window, or its table), then MONOCHROME1 inverted. Without a
    window plain 8-bit values stay, and others are stretched between their lowest and highest, padding apart.
    """
    import pydicom
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    def refuse(detail: str, problem: str = "unreadable") -> UnusableImageError:
        return UnusableImageError(path, problem, detail)

    if _DEFLATED in data[:2000]:  # a small file of that kind can unfold to any size
        raise refuse("a deflated DICOM file")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    try:
        film = pydicom.dcmread(io.BytesIO(data), force=False)
        if "EncryptedAttributesSequence" in film or "PixelData" not in film:
            raise refuse("a DICOM file that is encrypted or holds no image")
        if int(film.get("NumberOfFrames") or 1) != 1:
            raise refuse("a DICOM file of several frames, not one radiograph")
        if film.Rows * film.Columns > MAX_PIXELS:
            raise refuse(
                f"{film.Columns} x {film.Rows} pixels, more than {MAX_PIXELS:,}", "oversized"
            )
        kind, raw = film.PhotometricInterpretation, film.pixel_array
        if (kind, raw.ndim) not in (("RGB", 3), ("MONOCHROME1", 2), ("MONOCHROME2", 2)):
            raise refuse(f"its pixels are {kind} of shape {raw.shape}, neither gray nor RGB")
        if film.get("VOILUTFunction") not in (None, "", "LINEAR", "LINEAR_EXACT"):
            raise refuse(f"its window is {film.VOILUTFunction}, not linear")
        if raw.itemsize > 2:
            raise refuse(f"its values have {8 * raw.itemsize} bits, more than 16")
        # Worked out for each level that occurs, not for each pixel: floats of a large film would fill the memory.
        levels = np.unique(raw)
        values = apply_modality_lut(levels, film)
        inside = levels != film.get("PixelPaddingValue", levels[0] - 1.0)
        if kind == "RGB":
            values, low, high = levels, 0, 2**film.BitsStored - 1
        elif film.get("WindowWidth"):
            centre, width = (
                np.ravel(film[name].value)[0] for name in ("WindowCenter", "WindowWidth")
            )
            low, high = centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
        elif "VOILUTSequence" in film:
            values = apply_voi_lut(values, film)
            low, high = 0, 2 ** film.VOILUTSequence[0].LUTDescriptor[2] - 1
        elif raw.dtype == np.uint8 and film.BitsStored == 8 and (values == levels).all():
            low, high = 0, 255
        else:
            low, high = values[inside].min(), values[inside].max()
        shares = (np.asarray(values, np.float32) - np.float32(low)) / np.float32(
            max(float(high) - float(low), 1e-9)
        )
        gray = np.rint(np.clip(shares, 0, 1) * 255).astype(np.uint8)
        gray = np.where(
            inside | (kind == "RGB"), 255 - gray if kind == "MONOCHROME1" else gray, 0
        ).astype(np.uint8)
        table = np.zeros(int(levels[-1]) - int(levels[0]) + 1, np.uint8)
        table[levels.astype(int) - int(levels[0])] = gray
        return Image.fromarray(table[np.subtract(raw, levels[0], dtype=np.int32)]).convert("L")
    except UnusableImageError:
        raise
    except Exception as error:  # pydicom and its decoders raise anything on damaged content
        if "plugin" in str(error) or "decompress" in str(error).lower():
            fix = 'pip install "xraylib-pneumonia[dicom]", or export it as an 8-bit PNG'
            raise UnusableImageError(
                path, "unreadable", "its compression cannot be read here", fix
            ) from error
        raise refuse(f"damaged or incomplete ({type(error).__name__})") from error
