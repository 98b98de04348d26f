"""Pixels of a data set too large for one disk or one machine's memory, in ArrayRecord files.

A folder of shards holds `images.csv`, the manifest; `shard-00000.arrayrecord` and so on, one record
per image, its pixels as bytes; and `shards.json`, written last. Records are read by row when they
are asked for, so a host opens those of its part of a batch only, and the order of an epoch is that
of the seed, as everywhere. TensorFlow is not needed.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from xraylib.errors import InvalidDataError, NotFoundError
from xraylib.storage import atomic_write, sha256, sha256_bytes, storage_errors

VERSION = 2
_COLUMNS = ("image_id", "label", "patient", "kind", "split", "sha256")
_AGAIN = "Fix: delete the folder, or its .arrayrecord files, and write the shards again."

Decode = Callable[[pd.DataFrame, int], Iterator[np.ndarray]]


def is_shards(folder: Path) -> bool:
    """Whether this is a folder that `write` has finished."""
    return (folder / "shards.json").is_file()


def write(
    manifest: pd.DataFrame, size: int, folder: Path, decode: Decode, images_per_shard: int = 4096
) -> None:
    """Write every image of a manifest; after an interruption go on after the last whole shard.

    Parameters
    ----------
    manifest : pandas.DataFrame
        The images.
    size : int
        Height and width in pixels.
    folder : Path
        Where to write; not the folder of the images themselves.
    decode : callable
        Gives the pixels of some rows, as `images.decoded` does.
    images_per_shard : int
        How many images one file holds.
    """
    resolved = folder.resolve()
    if any(Path(path).resolve().is_relative_to(resolved) for path in manifest["path"] if path):
        fix = "name another folder for the shards"
        raise InvalidDataError(f"{folder} holds the images themselves. Fix: {fix}.")
    table = manifest[list(_COLUMNS)].to_csv(index=False)
    settings = {
        "version": VERSION,
        "size": size,
        "table": sha256_bytes(table.encode()),
        "images_per_shard": images_per_shard,
    }
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        begun = folder / "begun.json"
        if begun.exists() and begun.read_text() != json.dumps(settings):
            fix = "name another folder, or delete it"
            raise InvalidDataError(f"{folder} holds other images or another size. Fix: {fix}.")
        _write_text(begun, json.dumps(settings))
        _write_text(folder / "images.csv", table)
        lengths = {}
        for number, start in enumerate(range(0, len(manifest), images_per_shard)):
            path = folder / f"shard-{number:05d}.arrayrecord"
            if not path.exists():
                _write_shard(path, decode(manifest.iloc[start : start + images_per_shard], size))
            lengths[path.name] = path.stat().st_size
        _write_text(folder / "shards.json", json.dumps(settings | {"shards": lengths}, indent=1))


def _write_text(path: Path, content: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(content, encoding="utf-8", newline="\n")


def _write_shard(path: Path, images: Iterator[np.ndarray]) -> None:
    with atomic_write(path) as temporary:
        writer = _array_record()[0].ArrayRecordWriter(str(temporary), "group_size:1,zstd:3")
        for image in images:
            writer.write(image.tobytes())
        writer.close()


def read_manifest(folder: Path) -> pd.DataFrame:
    """Read the manifest of a folder of shards.

    Its paths are empty, and `attrs["shards"]` is the folder.
    """
    path = folder / "images.csv"
    if not path.is_file() or sha256(path) != _read_settings(folder)["table"]:
        raise InvalidDataError(f"{path} is not what was written. {_AGAIN}")
    types: dict[str, type] = dict.fromkeys(_COLUMNS, str) | {"label": int}
    manifest = pd.read_csv(path, dtype=types, keep_default_na=False)
    manifest.insert(1, "path", "")
    manifest.attrs["shards"] = str(folder)
    return manifest


class Shards:
    """Takes the place of pixels, uint8 `(n, size, size, 1)`; rows are read when asked for."""

    dtype = np.dtype(np.uint8)

    def __init__(self, folder: Path, size: int):
        settings = _read_settings(folder)
        if settings["size"] != size:
            fix = f"python -m xraylib data shard NAME FOLDER --size {size}"
            raise InvalidDataError(
                f"{folder} holds images of {settings['size']} pixels, {size} are asked for. "
                f"Fix: {fix}."
            )
        self.folder = folder
        paths = sorted(folder.glob("shard-*.arrayrecord"))
        present = {path.name: path.stat().st_size for path in paths}
        written = settings["shards"]
        damaged = [name for name in {*present, *written} if present.get(name) != written.get(name)]
        if damaged:
            raise InvalidDataError(f"{folder / min(damaged)} is missing or cut short. {_AGAIN}")
        try:
            self.source = _array_record()[1].ArrayRecordDataSource(list(map(str, paths)))
        except (RuntimeError, ValueError) as error:
            raise self._damaged(error) from error
        self.shape = (len(self.source), size, size, 1)

    def _damaged(self, error: Exception) -> InvalidDataError:
        return InvalidDataError(f"{self.folder}: a shard is damaged ({error}). {_AGAIN}")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        wanted = np.arange(len(self))[rows]
        try:
            records = self.source.__getitems__(wanted.ravel().tolist())
            pixels = np.frombuffer(b"".join(records), np.uint8)
            return pixels.reshape(*wanted.shape, *self.shape[1:])
        except (RuntimeError, ValueError) as error:
            raise self._damaged(error) from error

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)


def _read_settings(folder: Path) -> dict[str, Any]:
    """Read `shards.json`, which may come from another machine."""
    path = folder / "shards.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        valid = settings["version"] == VERSION and isinstance(settings["shards"], dict)
        valid = valid and {"size", "table"} <= settings.keys()
    except (OSError, ValueError, KeyError, TypeError):
        valid = False
    if not valid:
        raise InvalidDataError(
            f"{path} is no whole set of shards of this version ({VERSION}). {_AGAIN}"
        )
    return settings


def _array_record() -> Any:
    """Import the optional dependency."""
    try:
        from array_record.python import array_record_data_source, array_record_module
    except ImportError as error:
        fix = 'pip install "xraylib-pneumonia[shards]"'
        raise NotFoundError(f"shards need array-record. Fix: {fix}.") from error
    return array_record_module, array_record_data_source
