"""Pixels of a data set too large for one disk or one machine's memory, in ArrayRecord files.

A folder of shards holds `images.csv`, the manifest; `shard-00000.arrayrecord` and so on, one record
per image, its pixels as bytes; and `shards.json`, written last. Records are read by row when they
are asked for, so a host opens those of its part of a batch only, and the order of an epoch is that
of the seed, as everywhere. TensorFlow is not needed.
"""

import hashlib
import importlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from xraylib.errors import InvalidDataError, NotFoundError
from xraylib.storage import atomic_write, storage_errors

VERSION = 2
_COLUMNS = ("image_id", "label", "patient", "kind", "split", "sha256")
_SHARD = re.compile(r"shard-[0-9]{5,}\.arrayrecord")

Decode = Callable[[pd.DataFrame, int], Iterator[list[np.ndarray]]]


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
        Gives the pixels of some rows in chunks, as `images.decoded` does.
    images_per_shard : int
        How many images one file holds.
    """
    _check_request(manifest, size, folder)
    table = manifest[list(_COLUMNS)].to_csv(index=False)
    settings = {
        "version": VERSION,
        "size": size,
        "images_per_shard": images_per_shard,
        "table": hashlib.sha256(table.encode()).hexdigest(),
    }
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        begun = folder / "begun.json"
        if begun.exists() and _read_json(begun) != settings:
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
        content = json.dumps(settings | {"shards": lengths}, indent=1)
        _write_text(folder / "shards.json", f"{content}\n")


def _check_request(manifest: pd.DataFrame, size: int, folder: Path) -> None:
    """Refuse a size that is none, and a folder that holds the images to be read."""
    if size < 1:
        raise InvalidDataError(f"shards of {size} pixels. Fix: give --size a positive number.")
    resolved = folder.resolve()
    for parent in {Path(path).parent for path in manifest["path"] if path}:
        if parent.resolve().is_relative_to(resolved):
            fix = "name another folder for the shards"
            raise InvalidDataError(f"{folder} holds the images themselves. Fix: {fix}.")


def _write_text(path: Path, content: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def _write_shard(path: Path, chunks: Iterator[list[np.ndarray]]) -> None:
    with atomic_write(path) as temporary:
        module = _array_record("array_record_module")
        writer = module.ArrayRecordWriter(str(temporary), "group_size:1,zstd:3")
        for chunk in chunks:
            for image in chunk:
                writer.write(image.tobytes())
        writer.close()


def read_manifest(folder: Path) -> pd.DataFrame:
    """Read the manifest of a folder of shards.

    Its paths are empty, and `attrs["shards"]` is the folder.
    """
    settings = _read_settings(folder)
    path = folder / "images.csv"
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != settings["table"]:
        raise InvalidDataError(f"{path} is not what was written. Fix: write the shards again.")
    types: dict[str, type] = dict.fromkeys(_COLUMNS, str)
    types["label"] = int
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
        paths = []
        for name, length in settings["shards"].items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != length:
                fix = "delete it and write the shards again"
                raise InvalidDataError(f"{path} is missing or cut short. Fix: {fix}.")
            paths.append(str(path))
        self.folder = folder
        module = _array_record("array_record_data_source")
        try:
            self.source = module.ArrayRecordDataSource(paths)
        except (RuntimeError, ValueError) as error:
            raise self._damaged(error) from error
        self.shape = (len(self.source), size, size, 1)

    def _damaged(self, error: Exception) -> InvalidDataError:
        fix = f"delete the .arrayrecord files in {self.folder} and write the shards again"
        return InvalidDataError(f"{self.folder}: a shard is damaged ({error}). Fix: {fix}.")

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


def _read_json(path: Path) -> Any:
    """Read a JSON file; None where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _read_settings(folder: Path) -> dict[str, Any]:
    """Read `shards.json` and check all that is used of it: it may come from another machine."""
    path = folder / "shards.json"
    settings = _read_json(path)
    fix = "write the shards again"
    if not isinstance(settings, dict):
        raise InvalidDataError(f"{folder} holds no whole set of shards. Fix: {fix}.")
    version = settings.get("version")
    if version != VERSION:
        raise InvalidDataError(
            f"{path} is of version {version}, this code reads {VERSION}. Fix: {fix}."
        )
    known = {"size": int, "table": str, "shards": dict}
    if not all(isinstance(settings.get(key), kind) for key, kind in known.items()):
        raise InvalidDataError(f"{path} is damaged. Fix: {fix}.")
    outside = [name for name in settings["shards"] if not _SHARD.fullmatch(name)]
    if outside:
        raise InvalidDataError(f"{path} names {outside[0]!r}, which is no shard here. Fix: {fix}.")
    return settings


def _array_record(module: str) -> Any:
    """Import a module of the optional dependency."""
    try:
        return importlib.import_module(f"array_record.python.{module}")
    except ImportError as error:
        fix = 'pip install "xraylib-pneumonia[shards]"'
        raise NotFoundError(f"shards need array-record. Fix: {fix}.") from error
