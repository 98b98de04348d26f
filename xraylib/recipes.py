"""The systems as data: each recipe says what was published, what is claimed, and how it runs here.

The fields of a `Recipe` are what it does under the protocol `strict`. `published` holds the fields
that differ when it runs as its authors ran it; `kept` and `mended` say in words what that means.

Run one:  python -m xraylib train tiny-cnn-28 --dataset kermany --protocol strict
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from xraylib.errors import UnknownName


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
        `network` trains the whole with Keras; `linear-head` fits a calibrated logistic regression on
        features of the frozen network.
    network, head, size, init
        Keys of `models.NETWORKS` and `models.HEADS`; input height and width in pixels; initial weights.
    phases, batch_size, patience
        Training; `patience` counts epochs without a better validation loss before a phase ends, and None
        runs all epochs and keeps the last.
    augmentation, imbalance
        Keys of `models.AUGMENTATIONS` and `batches.REMEDIES`, or None.
    scheme, threshold
        How `published` splits (`splits.SCHEMES`), and the operating point: `validation` (Youden's index on
        validation) or a fixed number.
    claims
        Published figures on the system's own test data, by metric.
    published
        Fields that differ under the protocol `published`; empty when nothing was published.
    kept, mended
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
    scheme: str = "patient-grouped"
    threshold: str | float = "validation"
    claims: Mapping[str, float] = field(default_factory=dict)
    published: Mapping[str, Any] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    mended: tuple[str, ...] = ()

    @property
    def epochs(self) -> int:
        """Epochs of all phases together."""
        return sum(phase.epochs for phase in self.phases)

    def under(self, protocol: str, budget: str = "full") -> "Recipe":
        """Return the recipe as it runs under a protocol and a budget."""
        changed = replace(self, **self.published) if protocol == "published" else self
        cap = find_budget(budget).epochs_a_phase
        phases = tuple(replace(p, epochs=min(p.epochs, cap or p.epochs)) for p in changed.phases)
        return replace(changed, phases=phases)

    def settings(self) -> dict[str, Any]:
        """What decides the outcome of training, as plain values; prose and claims left out."""
        words = ("title", "source", "claims", "published", "kept", "mended", "threshold")
        return {key: value for key, value in asdict(self).items() if key not in words}


@dataclass(frozen=True)
class Budget:
    """How much training a run of the notebooks may take: seeds a recipe, and a cap on epochs a phase."""

    seeds: int
    epochs_a_phase: int | None


# `quick` is minutes on two cores with the phantom; `full` is what the committed tables of real data use.
BUDGETS = {"quick": Budget(2, 20), "full": Budget(3, None)}

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="tiny-cnn-28",
            title="Chest X-Ray Pneumonia Classification using Convolutional Neural Networks",
            source="README of the system: test accuracy .95, test loss .14 on 582 images of its own re-split",
            network="tiny_cnn",
            head="two-logits",
            size=28,
            phases=(Phase(epochs=20, learning_rate=1e-3),),
            claims={"accuracy": 0.95},
            published={"scheme": "random-per-image", "patience": None, "threshold": 0.5},
            kept=(
                "exact duplicates removed, then 70/20/10 at random per image, patients on both sides",
                "the last of 20 epochs",
                # As written the least possible loss is log(1 + 1/e) = .313; the README reports .0728.
                "sigmoid outputs given to a loss that expects logits: Keras under TensorFlow looks through "
                "the sigmoid to the logits, so the outputs here are logits on every backend",
            ),
            mended=(
                "the epoch with the best validation loss is kept",
                "the threshold is chosen on validation",
            ),
        ),
        Recipe(
            name="scratch-cnn",
            title="Xray-Classification",
            source="README of the system: accuracy .83, recall above precision, test below validation",
            network="scratch_cnn",
            head="sigmoid",
            size=128,
            phases=(Phase(20, learning_rate=1e-3, decay=True), Phase(6, learning_rate=1e-4, decay=True)),
            batch_size=16,
            patience=20,
            claims={"accuracy": 0.83},
            published={"scheme": "official", "patience": None, "threshold": 0.5},
            kept=("no augmentation", "regularisation, then a fine-tuning phase at a lower rate"),
            mended=("validation by patient, cut from train", "the best epoch of each phase is kept"),
        ),
        Recipe(
            name="mobilenetv2-frozen",
            title="Features of an ImageNet MobileNetV2, calibrated logistic regression (ours)",
            source="this repository",
            network="mobilenetv2",
            head="sigmoid",
            size=224,
            phases=(),
            fit="linear-head",
            init="imagenet",
        ),
    )
}


def find_recipe(name: str) -> Recipe:
    """Return the recipe of that name, or raise `UnknownName` with the names there are."""
    if name not in RECIPES:
        raise UnknownName(f"there is no recipe {name!r}. Mend: choose one of {', '.join(RECIPES)}.")
    return RECIPES[name]


def find_budget(name: str) -> Budget:
    """Return the budget of that name, or raise `UnknownName` with the names there are."""
    if name not in BUDGETS:
        raise UnknownName(f"there is no budget {name!r}. Mend: choose one of {', '.join(BUDGETS)}.")
    return BUDGETS[name]
