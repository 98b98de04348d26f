"""Pixels of a data set too large for one disk or one machine's memory, in sharded ArrayRecord files.

A folder of shards holds `films.csv`, the manifest; `shard-00000.arrayrecord` and so on, a record a film, its pixels as
bytes; and `shards.json`, written last. Records are read by row when they are asked for, so a host opens those of its
part of a batch only, and the order of an epoch is that of the seed, as everywhere. TensorFlow is not needed.
"""

import hashlib
import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from xraylib.errors import InvalidDataError, NotFoundError
from xraylib.storage import atomic_write, storage_errors

VERSION = 1
_COLUMNS = ("image_id", "label", "patient", "kind", "split", "sha256")


def write(
    manifest: pd.DataFrame,
    size: int,
    folder: Path,
    decoded: Callable[[pd.DataFrame, int], Iterator[list[np.ndarray]]],
    films: int = 4096,
) -> None:
    """Write every film of a manifest, as `images.decoded` gives them; cut, it goes on after the last whole shard."""
    table = manifest[list(_COLUMNS)].to_csv(index=False)
    said = {
        "version": VERSION,
        "size": size,
        "films": films,
        "table": hashlib.sha256(table.encode()).hexdigest(),
    }
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        begun = folder / "begun.json"
        if begun.exists() and json.loads(begun.read_text()) != said:
            raise InvalidDataError(
                f"{folder} holds other films or another size. Fix: name another folder, or delete it."
            )
        lengths = {}
        for file, content in ((begun, json.dumps(said)), (folder / "films.csv", table)):
            with atomic_write(file) as temporary:
                temporary.write_text(content, encoding="utf-8")
        for number, start in enumerate(range(0, len(manifest), films)):
            file = folder / f"shard-{number:05d}.arrayrecord"
            if not file.exists():
                with atomic_write(file) as temporary:
                    arrays = _array_record("array_record_module")
                    writer = arrays.ArrayRecordWriter(str(temporary), "group_size:1,zstd:3")
                    for part in decoded(manifest.iloc[start : start + films], size):
                        for film in part:
                            writer.write(film.tobytes())
                    writer.close()
            lengths[file.name] = file.stat().st_size
        with atomic_write(folder / "shards.json") as temporary:
            temporary.write_text(
                json.dumps(said | {"shards": lengths}, indent=1) + "\n", encoding="utf-8"
            )


def read_manifest(folder: Path) -> pd.DataFrame:
    """The manifest of a folder of shards; its paths are empty, and `attrs["shards"]` is the folder."""
    said, table = _about(folder), (folder / "films.csv").read_bytes()
    if hashlib.sha256(table).hexdigest() != said["table"]:
        raise InvalidDataError(
            f"{folder / 'films.csv'} is not what was written. Fix: write the shards again."
        )
    kinds = dict.fromkeys(_COLUMNS, str) | {"label": int}
    manifest = pd.read_csv(folder / "films.csv", dtype=kinds, keep_default_na=False)
    manifest.insert(1, "path", "")
    manifest.attrs["shards"] = str(folder)
    return manifest


class Shards:
    """Stands where pixels, uint8 `(n, size, size, 1)`, do: rows are read when they are asked for."""

    dtype = np.dtype(np.uint8)

    def __init__(self, folder: Path, size: int):
        said = _about(folder)
        if said["size"] != size:
            fix = f"python -m xraylib data shard NAME FOLDER --size {size}"
            raise InvalidDataError(
                f"{folder} holds films of {said['size']} pixels, {size} are asked for. Fix: {fix}."
            )
        for name, length in said["shards"].items():
            file = folder / name
            if not file.is_file() or file.stat().st_size != length:
                raise InvalidDataError(
                    f"{file} is missing or cut short. Fix: delete it and write the shards again."
                )
        files = [str(folder / name) for name in said["shards"]]
        self.folder, self.source = (
            folder,
            _array_record("array_record_data_source").ArrayRecordDataSource(files),
        )
        self.shape = (len(self.source), size, size, 1)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        wanted = np.arange(len(self))[rows]
        try:
            records = self.source.__getitems__(wanted.ravel().tolist())
        except (RuntimeError, ValueError) as error:
            raise InvalidDataError(
                f"{self.folder}: a shard is damaged ({error}). Fix: write the shards again."
            ) from error
        return np.frombuffer(b"".join(records), np.uint8).reshape(*wanted.shape, *self.shape[1:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)


def _about(folder: Path) -> dict[str, Any]:
    try:
        said: dict[str, Any] = json.loads((folder / "shards.json").read_text())
    except (OSError, ValueError) as error:
        raise InvalidDataError(
            f"{folder} holds no whole set of shards. Fix: write the shards again."
        ) from error
    if said.get("version") != VERSION:
        which = f"version {said.get('version')}, this code reads {VERSION}"
        raise InvalidDataError(
            f"{folder / 'shards.json'} is of {which}. Fix: write the shards again."
        )
    return said


def _array_record(module: str) -> Any:
    try:
        return importlib.import_module(f"array_record.python.{module}")
    except ImportError as error:
        raise NotFoundError(
            'shards need array-record. Fix: pip install "xraylib-pneumonia[shards]".'
        ) from error
