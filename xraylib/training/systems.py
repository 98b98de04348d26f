"""What a recipe is: everything that decides a training, and what is claimed of it, as data.

The fields of a `Recipe` are what it does under the protocol `strict`. `published` holds the fields
that differ when it runs as its authors ran it; `kept` and `corrected` say in words what that means.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from xraylib.storage import NotFound


@dataclass(frozen=True)
class Phase:
    """Some epochs at one learning rate; a later phase starts from the best epoch before it.

    `learning_rate` decays along a cosine to a hundredth when `decay` is set. `freeze_backbone` trains the
    layers above the backbone only.
    """

    epochs: int
    learning_rate: float
    decay: bool = False
    freeze_backbone: bool = False


@dataclass(frozen=True)
class Recipe:
    """A system that can be trained and compared with its claim.

    Attributes
    ----------
    name, title, source
        The key, the title of the published README, and where the claim stands.
    fit
        `network` trains the whole with Keras; `linear-probe` fits a calibrated logistic regression on
        features of the frozen network, `number` on one number that `shortcuts.number` knows by `network`.
    network, head, size, init
        Keys of `models.NETWORKS` and `models.HEADS`; input height and width in pixels; initial weights.
    phases, batch_size, patience
        Training; `patience` counts epochs without a better validation loss before a phase ends, and None
        runs all epochs and keeps the last.
    augmentation, imbalance
        Keys of `models.AUGMENTATIONS` and `batches.IMBALANCE_METHODS`, or None.
    split_strategy, threshold
        How it splits (`splits.SPLIT_STRATEGIES`), and the operating point: `validation` (Youden's index on
        validation) or a fixed number.
    validation
        `plain`: the epoch of lowest validation loss is kept. `framing`: that of the highest AUC on validation
        films framed as the other class; `worst`: that of the highest AUC in the worst of the three views of
        `framing.swaps`. Under both the threshold is chosen on the films framed as the other class.
    seeds
        How many a experiment trains: 0, 1, … by default.
    claims
        Published figures on the system's own test data, by metric; a word where no figure was given.
    claimed_on
        Images the claim was measured on, 0 where that is not known.
    shown
        What the stored output of the system's own notebook shows, by metric, where it could be read.
    curves
        Published figures of the training itself, by their name in `claimed.CURVES`.
    published
        Fields that differ under the protocol `published`; empty when nothing was published.
    remark
        What is known of the distance between the claim and what is measured here.
    retained, corrected
        What of the published system was kept under `published`, and what `strict` mends.
    """

    name: str
    title: str
    source: str
    network: str
    head: str
    size: int
    phases: tuple[Phase, ...]
    fit: str = "network"
    init: str = "random"
    batch_size: int = 32
    patience: int | None = 5
    augmentation: str | None = None
    imbalance: str | None = None
    split_strategy: str = "patient-grouped"
    threshold: str | float = "validation"
    validation: str = "plain"
    seeds: int = 3
    claims: Mapping[str, float | str] = field(default_factory=dict)
    claimed_on: int = 0
    shown: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, float] = field(default_factory=dict)
    published: Mapping[str, Any] = field(default_factory=dict)
    remark: str = ""
    retained: tuple[str, ...] = ()
    corrected: tuple[str, ...] = ()

    @property
    def epochs(self) -> int:
        """Epochs of all phases together."""
        return sum(phase.epochs for phase in self.phases)

    def under(self, protocol: str, budget: str = "full") -> "Recipe":
        """Return the recipe as it runs under a protocol and a budget.

        Another protocol is a way of splitting: the rest is as under `strict`. Raises `NotFound` for
        `published` where nothing was published.
        """
        if protocol == "published" and not self.published:
            raise NotFound(f"{self.name} has no protocol `published`: nothing was. Fix: use `strict`.")
        changed = replace(self, **self.published) if protocol == "published" else self
        if protocol not in ("published", "strict"):
            changed = replace(self, split_strategy=protocol)
        cap = get_budget(budget).epochs_a_phase
        phases = tuple(replace(p, epochs=min(p.epochs, cap or p.epochs)) for p in changed.phases)
        return replace(changed, phases=phases)

    def settings(self) -> dict[str, Any]:
        """What decides the outcome of training, as plain values; prose and claims left out."""
        words = {"title", "source", "seeds", "claims", "claimed_on", "shown", "curves", "remark", "published"}
        words |= {"retained", "corrected", "threshold"}
        if self.validation == "plain":
            words |= {"validation"}
        return {key: value for key, value in asdict(self).items() if key not in words}


@dataclass(frozen=True)
class Budget:
    """How much training a run of the notebooks may take: at most so many seeds, and epochs a phase."""

    seeds: int | None
    epochs_a_phase: int | None


# `quick` is minutes on two cores with the phantom; `full` is what the committed tables of real data use.
BUDGETS = {"quick": Budget(2, 20), "full": Budget(None, None)}


def get_budget(name: str) -> Budget:
    """Return the budget of that name, or raise `NotFound` with the names there are."""
    if name not in BUDGETS:
        raise NotFound(f"there is no budget {name!r}. Fix: choose one of {', '.join(BUDGETS)}.")
    return BUDGETS[name]
