"""Everything a training needs to go on as if it had not been cut, in one file written atomically.

Keras's `BackupAndRestore` keeps weights and epoch only; early stopping, phases and the learning
curves are part of a training as well.
"""

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np

from xraylib.storage import atomic


class Progress:
    """Where a training stands: phase, epochs done, learning curves, and the best epoch on validation."""

    def __init__(self, folder: Path, model: keras.Model):
        self.file = folder / "checkpoint.npz"
        self.model = model
        self.phase = 0
        self.history: list[dict[str, float]] = []
        self.best: list[np.ndarray] = []
        self.best_loss = np.inf
        self.best_epoch = -1
        self._optimizer: list[np.ndarray] | None = None

    @classmethod
    def resume(cls, folder: Path, model: keras.Model) -> "Progress":
        """Take up the checkpoint in `folder`, or begin where there is none."""
        progress = cls(folder, model)
        if progress.file.exists():
            progress._load()
        return progress

    @property
    def epoch(self) -> int:
        """Epochs done, in all phases."""
        return len(self.history)

    @property
    def seconds(self) -> float:
        """Seconds of training and validation, those of a cut training included."""
        return float(sum(row["seconds"] for row in self.history))

    def begin_phase(self, number: int) -> None:
        """Enter a phase whose optimiser was just made; a resumed one gets its state back."""
        if number == self.phase and self._optimizer is not None:
            _assign(self.model.optimizer.variables, self._optimizer)
        self.phase = number
        self._optimizer = None

    def phase_over(self, epochs: int, patience: int | None) -> bool:
        """Whether the phase has run its epochs or validation has not improved for `patience` of them."""
        done = [row for row in self.history if row["phase"] == self.phase]
        if len(done) >= epochs:
            return True
        since = self.epoch - 1 - max(self.best_epoch, self.epoch - len(done) - 1)
        return patience is not None and since >= patience

    def end_epoch(self, **figures: float) -> None:
        """Add a row to the learning curves, keep the best weights, write the checkpoint."""
        row = {"epoch": self.epoch + 1, "phase": self.phase}
        self.history.append(row | {name: float(value) for name, value in figures.items()})
        swapped = [value for name, value in figures.items() if name.startswith("val_auc_")]
        # The lowest is kept: the validation loss, or what the worst swapped view lacks to an AUC of 1.
        criterion = 1 - min(swapped) if swapped else figures["val_loss"]
        if criterion < self.best_loss:
            self.best_loss, self.best_epoch = float(criterion), self.epoch - 1
            self.best = _values(self.model.variables)
        self._save()

    def end_phase(self, keep_best: bool) -> None:
        """Leave a phase with the best weights so far, or with the last."""
        if keep_best and self.best:
            _assign(self.model.variables, self.best)
        self.phase += 1
        self._save(with_optimizer=False)

    def _save(self, with_optimizer: bool = True) -> None:
        state: dict[str, Any] = {
            "phase": self.phase,
            "history": self.history,
            "best_loss": self.best_loss,
            "best_epoch": self.best_epoch,
        }
        arrays = {f"model-{i}": v for i, v in enumerate(_values(self.model.variables))}
        arrays |= {f"best-{i}": v for i, v in enumerate(self.best)}
        if with_optimizer:
            values = _values(self.model.optimizer.variables)
            arrays |= {f"optimizer-{i}": v for i, v in enumerate(values)}
        with atomic(self.file) as temporary, temporary.open("wb") as stream:
            np.savez(stream, state=np.array(json.dumps(state)), **arrays)  # type: ignore[arg-type]

    def _load(self) -> None:
        with np.load(self.file, allow_pickle=False) as saved:
            groups: dict[str, list[np.ndarray]] = {"model": [], "best": [], "optimizer": []}
            for group, values in groups.items():
                names = [name for name in saved.files if name.startswith(f"{group}-")]
                values.extend(saved[f"{group}-{i}"] for i in range(len(names)))
            state = json.loads(str(saved["state"]))
        self.phase, self.history = state["phase"], state["history"]
        self.best_loss, self.best_epoch = state["best_loss"], state["best_epoch"]
        self.best = groups["best"]
        self._optimizer = groups["optimizer"] or None
        _assign(self.model.variables, groups["model"])


def _values(variables: list[Any]) -> list[np.ndarray]:
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]


def _assign(variables: list[Any], values: list[np.ndarray]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
