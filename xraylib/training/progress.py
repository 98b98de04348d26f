"""How far a run has come, and the checkpoint from which it goes on after an interruption."""

import json
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from xraylib import devices
from xraylib.errors import OperationFailedError
from xraylib.storage import atomic_write

log = logging.getLogger(__name__)

# Attributes that a checkpoint holds besides arrays.
_STATE = ("phase", "history", "parts", "best_loss", "best_epoch", "hardware")
_DAMAGE = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile)


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
        self._optimizer: list[np.ndarray] = []
        if self.file.exists():
            try:
                self._resume()
            except (OperationFailedError, *_DAMAGE) as error:
                self._set_aside(error)

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
        if number == self.phase and self._optimizer:
            self._assign(self.model.optimizer.variables, self._optimizer)
        self.phase = number
        self._optimizer = []

    def phase_over(self, epochs: int, patience: int | None) -> bool:
        """Whether the phase has run its epochs, or `patience` of them without improvement."""
        done = sum(row["phase"] == self.phase for row in self.history)
        first_without = max(self.best_epoch + 1, self.epoch - done)
        is_tired = patience is not None and self.epoch - first_without >= patience
        return done >= epochs or is_tired

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
        counts, losses, accuracies, times = np.transpose(self.parts)
        return {
            "loss": np.average(losses, weights=counts),
            "accuracy": np.average(accuracies, weights=counts),
            "seconds": times.sum(),
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
            self._assign(self.model.variables, self.best)
        self.phase += 1
        self._save(with_optimizer=False)

    def _save(self, with_optimizer: bool = True) -> None:
        if devices.process()[0] != 0:
            return
        arrays = {"state": np.array(json.dumps({name: getattr(self, name) for name in _STATE}))}
        groups = {"model": _values(self.model.variables), "best": self.best}
        if with_optimizer:
            groups["optimizer"] = _values(self.model.optimizer.variables)
        for group, values in groups.items():
            arrays |= {f"{group}-{i}": value for i, value in enumerate(values)}
        with atomic_write(self.file) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]

    def _resume(self) -> None:
        """Take up the checkpoint; nothing is changed if it is damaged or of another network."""
        # Of a damaged archive, `np.load` leaves a file open that it opened itself.
        with self.file.open("rb") as stream, np.load(stream, allow_pickle=False) as saved:
            content = json.loads(str(saved["state"]))
            state = {name: content[name] for name in _STATE}
            model = _group(saved, "model")
            best = _group(saved, "best")
            optimizer = _group(saved, "optimizer")
        self._assign(self.model.variables, model)
        before = state.pop("hardware")
        if before != self.hardware:
            run = self.file.parent.name
            log.warning("%s: begun on %s, continues on %s", run, before, self.hardware)
        vars(self).update(state, best=best, _optimizer=optimizer)
        log.info("going on after epoch %d", self.epoch)

    def _assign(self, variables: list[Any], values: list[np.ndarray]) -> None:
        """Set variables, all or none."""
        shapes = [tuple(variable.shape) for variable in variables]
        if shapes != [value.shape for value in values]:
            raise OperationFailedError(
                f"{self.file} holds the state of another network or optimiser. Fix: delete it; "
                "the run then starts anew."
            )
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)

    def _set_aside(self, error: Exception) -> None:
        aside = self.file.with_name("checkpoint-damaged.npz")
        if devices.process()[0] == 0:
            self.file.replace(aside)
        text = "%s is damaged (%r): it is kept as %s, and the run starts anew"
        log.warning(text, self.file, error, aside.name)


def _group(saved: Mapping[str, np.ndarray], name: str) -> list[np.ndarray]:
    """Return the arrays of a group, in the order in which they were saved."""
    return [saved[key] for key in saved if key.startswith(f"{name}-")]


def _values(variables: list[Any]) -> list[np.ndarray]:
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]
