"""How far a run has come, and the checkpoint from which it goes on after an interruption."""

import json
import logging
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from xraylib import devices
from xraylib.errors import OperationFailedError
from xraylib.storage import atomic_write

log = logging.getLogger(__name__)

# What a checkpoint holds besides arrays, with its type.
_STATE: dict[str, type | tuple[type, ...]] = {
    "phase": int,
    "history": list,
    "parts": list,
    "best_loss": (float, int),
    "best_epoch": int,
    "hardware": str,
}


class Progress:
    """Phase, epochs done, learning curves, and the best epoch on validation.

    All of it is in one checkpoint, which is restored if present, and written atomically after each
    epoch and, in a long epoch, after each part. A damaged checkpoint is set aside, with a warning,
    and training starts anew.

    Keras's `BackupAndRestore` keeps weights and epoch only. Early stopping, phases and the learning
    curves decide the outcome as well.

    Parameters
    ----------
    folder
        Where the checkpoint lies.
    model
        The network; its weights are those of the checkpoint afterwards.
    hardware
        The line that names the device, to warn when a run goes on elsewhere.
    """

    def __init__(self, folder: Path, model: keras.Model, hardware: str):
        self.file = folder / "checkpoint.npz"
        self.model = model
        self.hardware = hardware
        self.phase = 0
        self.history: list[dict[str, float]] = []
        # Batches, loss, accuracy and seconds of each part of the epoch that is under way.
        self.parts: list[tuple[int, float, float, float]] = []
        self.best: list[np.ndarray] = []
        self.best_loss = np.inf
        self.best_epoch = -1
        self._optimizer: list[np.ndarray] | None = None
        if self.file.exists():
            self._resume()

    @property
    def epoch(self) -> int:
        """Epochs done, in all phases."""
        return len(self.history)

    @property
    def step(self) -> int:
        """Batches done of the epoch that is under way."""
        return sum(part[0] for part in self.parts)

    def begin_phase(self, number: int) -> None:
        """Enter a phase whose optimiser was just built; a resumed one gets its state back."""
        if number == self.phase and self._optimizer is not None:
            variables = self.model.optimizer.variables
            if _shapes(variables) != [value.shape for value in self._optimizer]:
                raise OperationFailedError(
                    f"{self.file} holds the state of another optimiser. Fix: delete it; the run "
                    "then starts anew."
                )
            _assign(variables, self._optimizer)
        self.phase = number
        self._optimizer = None

    def phase_over(self, epochs: int, patience: int | None) -> bool:
        """Whether the phase has run its epochs, or `patience` of them without improvement."""
        epochs_done = sum(row["phase"] == self.phase for row in self.history)
        if epochs_done >= epochs:
            return True
        if patience is None:
            return False
        last = self.epoch - 1
        last_before_phase = last - epochs_done
        return last - max(self.best_epoch, last_before_phase) >= patience

    def end_part(
        self,
        steps: int,
        loss: float,
        accuracy: float,
        seconds: float,
        *,
        save: bool,
    ) -> dict[str, float]:
        """Add some batches to the epoch.

        Parameters
        ----------
        steps, loss, accuracy, seconds
            The number of batches, their means, and the time that they took.
        save
            Whether to write the checkpoint.

        Returns
        -------
        dict
            `loss`, `accuracy` and `seconds` of the epoch so far.
        """
        self.parts.append((steps, float(loss), float(accuracy), seconds))
        if save:
            self._save()
        counts, losses, accuracies, times = zip(*self.parts, strict=True)
        return {
            "loss": np.average(losses, weights=counts),
            "accuracy": np.average(accuracies, weights=counts),
            "seconds": sum(times),
        }

    def end_epoch(self, **measured: float) -> None:
        """Add a row to the learning curves, keep the best weights, write the checkpoint.

        The best epoch has the lowest `val_loss` or, where AUCs of swapped views are measured, the
        highest AUC in the worst of them.
        """
        self.parts = []
        row: dict[str, float] = {"epoch": self.epoch + 1, "phase": self.phase}
        row |= {name: float(value) for name, value in measured.items()}
        self.history.append(row)
        aucs = [value for name, value in measured.items() if name.startswith("val_auc_")]
        criterion = 1 - min(aucs) if aucs else measured["val_loss"]
        if criterion < self.best_loss:
            self.best_loss = float(criterion)
            self.best_epoch = self.epoch - 1
            self.best = _values(self.model.variables)
        self._save()

    def end_phase(self, keep_best: bool) -> None:
        """Leave a phase with the best weights so far, or with the last."""
        if keep_best and self.best:
            _assign(self.model.variables, self.best)
        self.phase += 1
        self._save(with_optimizer=False)

    def _save(self, with_optimizer: bool = True) -> None:
        if devices.process()[0] != 0:
            return
        state = {name: getattr(self, name) for name in _STATE}
        groups = {"model": _values(self.model.variables), "best": self.best}
        if with_optimizer:
            groups["optimizer"] = _values(self.model.optimizer.variables)
        arrays: dict[str, Any] = {"state": np.array(json.dumps(state))}
        for group, values in groups.items():
            arrays |= {f"{group}-{i}": value for i, value in enumerate(values)}
        with atomic_write(self.file) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **arrays)

    def _resume(self) -> None:
        """Take up the checkpoint, or set it aside if it is damaged."""
        try:
            state, groups = _read(self.file)
            self._check(state, groups)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            self._set_aside(error)
            return
        before = state.pop("hardware")
        if before != self.hardware:
            run = self.file.parent.name
            log.warning("%s: begun on %s, continues on %s", run, before, self.hardware)
        for name, value in state.items():
            setattr(self, name, value)
        self.best = groups["best"]
        self._optimizer = groups["optimizer"] or None
        log.info("going on after epoch %d", self.epoch)
        _assign(self.model.variables, groups["model"])

    def _check(self, state: Any, groups: dict[str, list[np.ndarray]]) -> None:
        """Refuse what is not a checkpoint of this model with `ValueError`."""
        if not isinstance(state, dict) or set(state) != set(_STATE):
            raise ValueError("its state is incomplete")
        if not all(isinstance(state[name], kind) for name, kind in _STATE.items()):
            raise ValueError("its state has a wrong type")
        shapes = _shapes(self.model.variables)
        for group in ("model", "best"):
            saved = [value.shape for value in groups[group]]
            if saved != shapes and (saved or group == "model"):
                raise ValueError("its weights have other shapes")

    def _set_aside(self, error: Exception) -> None:
        aside = self.file.with_name("checkpoint-damaged.npz")
        reason = str(error) or type(error).__name__
        if devices.process()[0] == 0:
            self.file.replace(aside)
        log.warning(
            "%s is damaged (%s): it is kept as %s, and the run starts anew",
            self.file,
            reason,
            aside.name,
        )


def _read(file: Path) -> tuple[Any, dict[str, list[np.ndarray]]]:
    """Read the state and the arrays of a checkpoint."""
    groups: dict[str, list[np.ndarray]] = {}
    # Of a damaged archive, `np.load` leaves a file open that it opened itself.
    with file.open("rb") as stream:
        saved = np.load(stream, allow_pickle=False)
        if not isinstance(saved, np.lib.npyio.NpzFile):
            raise ValueError("it is no archive of arrays")
        for group in ("model", "best", "optimizer"):
            count = sum(name.startswith(f"{group}-") for name in saved.files)
            groups[group] = [saved[f"{group}-{i}"] for i in range(count)]
        return json.loads(str(saved["state"])), groups


def _shapes(variables: list[Any]) -> list[tuple[int, ...]]:
    return [tuple(variable.shape) for variable in variables]


def _values(variables: list[Any]) -> list[np.ndarray]:
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]


def _assign(variables: list[Any], values: list[np.ndarray]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
