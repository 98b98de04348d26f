"""The published systems, and our own, as data: everything that decides a run, and what is claimed of it.

Run one:  python -m xraylib train tiny-cnn-28 --dataset kermany --protocol strict
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from xraylib.errors import NotFoundError


@dataclass(frozen=True)
class Phase:
    """Some epochs at one learning rate; a later phase starts from the best epoch before it.

    `learning_rate` decays along a cosine to a hundredth with `decay`; `freeze_backbone` trains the head only.
    """

    epochs: int
    learning_rate: float
    decay: bool = False
    freeze_backbone: bool = False


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A system that can be trained and compared with its claim. The fields are what it does under `strict`.

    `network`, `head` and `augmentation` are keys of `networks.NETWORKS`, `HEADS` and `AUGMENTATIONS`, `imbalance` is
    one of `train.IMBALANCE_METHODS`, `split_strategy` a key of `splits.SPLIT_STRATEGIES`; `size` is the input's height
    and width in pixels, `seeds` how many an experiment trains.

    `fit`: `network` trains the whole with Keras; `linear-probe` fits a calibrated logistic regression on features of
    the frozen network, `single-feature` on the one number that `audit.single_feature` knows by `network`. `patience`:
    epochs without a better validation before a phase ends; None runs all epochs, keeps the last. `threshold_rule`: see
    `thresholds`. `validation`: which epoch is kept. `plain`: the lowest validation loss. `framing`: the highest AUC on
    validation films framed as the other class, on which the threshold is chosen as well. `worst`: likewise, but the
    highest AUC in the worst of the three views of `framing.swaps`.

    `claims`: published values on the system's own test data by metric, or a word where no number was given;
    `claimed_on`: how many images that was, 0 where it is not known; `ours`: what of the network had to be chosen here,
    so that the claim cannot be tested. `stored_output`: what the stored output of the system's own notebook shows.
    `remark`: what is known of the distance between claim and measurement. `published`: fields that differ under the
    protocol `published`, empty when nothing was published; `retained` says in words what of the published system that
    is, `corrected` what `strict` corrects.
    """

    name: str
    title: str
    source: str = "this repository"
    network: str
    head: str = "sigmoid"
    size: int
    phases: tuple[Phase, ...] = ()
    fit: str = "network"
    init: str = "random"
    batch_size: int = 32
    patience: int | None = 5
    augmentation: str | None = None
    imbalance: str | None = None
    region: str = "whole"
    split_strategy: str = "patient-grouped"
    threshold_rule: str | float = "sensitivity 0.95"
    validation: str = "plain"
    seeds: int = 3
    claims: Mapping[str, float | str] = field(default_factory=dict)
    claimed_on: int = 0
    ours: str = ""
    stored_output: Mapping[str, float] = field(default_factory=dict)
    published: Mapping[str, Any] = field(default_factory=dict)
    remark: str = ""
    retained: tuple[str, ...] = ()
    corrected: tuple[str, ...] = ()

    @property
    def epochs(self) -> int:
        """Of all phases."""
        return sum(phase.epochs for phase in self.phases)

    def under(self, protocol: str, budget: str = "full") -> "Recipe":
        """Return the recipe as it runs under a protocol and a budget.

        Another protocol is a split strategy, the rest as under `strict`. `NotFoundError` for `published` where nothing was
        published.
        """
        if protocol == "published" and not self.published:
            raise NotFoundError(
                f"{self.name} has no protocol `published`: nothing was. Fix: use `strict`."
            )
        changed = replace(self, **self.published) if protocol == "published" else self
        if protocol not in ("published", "strict"):
            changed = replace(self, split_strategy=protocol)
        cap = get_budget(budget).epochs_a_phase
        phases = tuple(replace(p, epochs=min(p.epochs, cap or p.epochs)) for p in changed.phases)
        return replace(changed, phases=phases)

    def settings(self) -> dict[str, Any]:
        """What decides the outcome of training; prose, claims and the threshold rule are left out."""
        words = {
            "title",
            "source",
            "seeds",
            "claims",
            "claimed_on",
            "ours",
            "stored_output",
            "published",
            "remark",
        }
        words |= {"retained", "corrected", "threshold_rule"}
        if self.validation == "plain":
            words |= {"validation"}
        if self.region == "whole":
            words |= {"region"}
        return {key: value for key, value in asdict(self).items() if key not in words}


@dataclass(frozen=True)
class Budget:
    """How much training a run of the notebooks may take: at most so many seeds, and epochs a phase."""

    seeds: int | None
    epochs_a_phase: int | None


# `quick` is minutes on two cores with the phantom; `full` is what the committed tables of real data use.
BUDGETS = {"quick": Budget(2, 12), "full": Budget(None, None)}


def get_budget(name: str) -> Budget:
    """Return the budget of that name, or raise `NotFoundError` with the names there are."""
    if name not in BUDGETS:
        raise NotFoundError(
            f"there is no budget {name!r}. Fix: choose one of {', '.join(BUDGETS)}."
        )
    return BUDGETS[name]


TINY_CNN = Recipe(
    name="tiny-cnn-28",
    title="Chest X-Ray Pneumonia Classification using Convolutional Neural Networks",
    source="README of the system: test accuracy 0.95, test loss 0.14 on 582 images of its own re-split",
    network="tiny_cnn",
    head="two-logits",
    size=28,
    phases=(Phase(epochs=20, learning_rate=1e-3),),
    claims={"accuracy": 0.95},
    claimed_on=582,
    remark="The claim is of its own image-level random split; on the official test it is far lower.",
    published={"split_strategy": "random-per-image", "patience": None, "threshold_rule": 0.5},
    retained=(
        "exact duplicates removed, then an image-level random split 70/20/10: patients in several splits",
        "the last of 20 epochs",
        # As written the least possible loss is log(1 + 1/e) = 0.313; the README reports 0.0728.
        "sigmoid outputs given to a loss that expects logits: Keras under TensorFlow looks through "
        "the sigmoid to the logits, so the outputs here are logits on every backend, under both protocols",
    ),
    corrected=(
        "the epoch with the best validation loss is kept",
        "the threshold is chosen on validation",
    ),
)

SCRATCH_CNN = Recipe(
    name="scratch-cnn",
    title="Xray-Classification",
    source="README of the system: accuracy 0.83, recall above precision, test below validation",
    network="scratch_cnn",
    size=128,
    phases=(Phase(20, learning_rate=1e-3, decay=True), Phase(6, learning_rate=1e-4, decay=True)),
    batch_size=16,
    patience=20,
    claims={"accuracy": 0.83},
    claimed_on=624,
    ours="layers, input size and epochs are ours",
    remark=(
        "The network is ours within the words of its README, which gives no layers, size or epochs. It quotes the "
        "keras.io example of July 2020, so its network is likely that of kerasio-tpu, in two stages. What else it says "
        "holds here: recall above precision, and the test below validation."
    ),
    published={"split_strategy": "per-image-validation", "patience": None, "threshold_rule": 0.5},
    retained=(
        "no augmentation; regularisation, then a fine-tuning phase at a lower rate; the last epoch",
        "a random fifth of the training images validates (its README does not say which did)",
    ),
    corrected=("validation by patient, cut from train", "the best epoch of each phase is kept"),
)

KERASIO = Recipe(
    name="kerasio-tpu",
    title="Pneumonia Classification on TPU (keras.io)",
    source="page of the example: test accuracy 0.814, precision 0.781, recall 0.977, loss 2.72",
    network="separable_cnn",
    size=180,
    phases=(Phase(epochs=100, learning_rate=0.015),),
    batch_size=200,
    patience=10,
    imbalance="class_weight",
    claims={"accuracy": 0.814, "precision": 0.781, "sensitivity": 0.977},
    claimed_on=624,
    remark=(
        "The claim is of one run. The three here have a recall of 0.995, 0.985 and 0.995 at a precision of "
        "0.784, 0.768 and 0.704."
    ),
    published={"split_strategy": "take-skip", "threshold_rule": 0.5},
    retained=(
        "validation by take and skip of two different shuffles: four fifths of it are trained on too",
        "a batch of 200 (25 on each of 8 TPU cores), class weights, early stopping after 10 epochs",
        "a rate of 0.015 throughout: its decay sets in after 100,000 steps, and an epoch has 21 "
        "(not corrected either: nothing says what it should have been)",
    ),
    corrected=("validation by patient, cut from train", "the threshold is chosen on validation"),
)

RESNET = Recipe(
    name="resnet50v2",
    title="Chest X-Ray Pneumonia Prediction",
    source='README of the system: "excellent recall"; its notebook\'s stored output: test loss 3.63',
    network="resnet50v2",
    size=224,
    phases=(Phase(epochs=8, learning_rate=1e-3),),
    init="imagenet",
    patience=4,
    augmentation="flip",
    seeds=1,
    claims={"sensitivity": "excellent"},
    remark=(
        "The claim gives no number. The stored output of its notebook finds every pneumonia and classifies "
        "229 of the 234 normals as pneumonia: accuracy 0.633, precision 0.630."
    ),
    stored_output={"accuracy": 0.633, "precision": 0.630, "sensitivity": 1.0},
    published={
        "network": "resnet50v2_raw",
        "augmentation": None,
        "split_strategy": "official",
        "patience": None,
        "threshold_rule": 0.5,
    },
    retained=(
        "raw pixels of 0…255 into a network that expects −1…1",
        "flips at random in training, and of the test images too",
        "no checkpoint and no early stopping: 16 validation images make no batch of 32",
    ),
    corrected=(
        "pixels scaled to −1…1; test images as they are",
        "validation by patient, on which the best epoch and the threshold are chosen",
        "images reduced with antialiasing, under both protocols: nearest-neighbour resize is not retained "
        "(on films of 224 × 224, as measured here, neither changes anything)",
    ),
)

INCEPTION = Recipe(
    name="inceptionv3-tpu",
    title="X-ray Pneumonia Classification",
    source="README of the system; its notebook's stored output is another network's",
    network="inceptionv3",
    size=180,
    phases=(
        Phase(epochs=3, learning_rate=1e-3, freeze_backbone=True),
        Phase(epochs=10, learning_rate=1e-4, decay=True),
    ),
    init="imagenet",
    augmentation="geometric",
    seeds=1,
    claims={"accuracy": 0.95, "precision": 0.93, "sensitivity": 0.96, "f1": 0.94},
    claimed_on=624,
    ours="epochs and rates are ours",
    remark=(
        "The four values cannot be of the official test: of its 390 pneumonias and 234 normals, precision "
        "0.93 at recall 0.96 leaves 28 false alarms and 16 misses, which is an accuracy of 0.930. The stored "
        "output of the notebook it names is that of the keras.io example."
    ),
    stored_output={"accuracy": 0.768, "precision": 0.732, "sensitivity": 0.992},
    published={"split_strategy": "per-image-validation", "threshold_rule": 0.5},
    retained=(
        "augmentation, a frozen phase for the layers on top, then the whole at a lower, decaying rate "
        "(its README gives no epochs or rates: 3 at 1e-3 and 10 from 1e-4 are ours)",
        "a random fifth of the training images validates, as in the notebook it names",
    ),
    corrected=("validation by patient, cut from train", "the threshold is chosen on validation"),
)

MOBILENET_SMALL = Recipe(
    name="mobilenetv2-small",
    title="Pneumonia Lung X-Ray Detection",
    source="README of the system: validation accuracy 65% to 95% over 20 epochs, 136 and 40 images",
    network="mobilenetv2_small",
    size=160,
    phases=(Phase(epochs=20, learning_rate=1e-3, freeze_backbone=True),),
    init="imagenet",
    batch_size=8,
    patience=20,
    augmentation="geometric",
    split_strategy="patient-grouped-176",
    seeds=10,
    claims={"accuracy": 0.95},
    claimed_on=40,
    remark=(
        "Accuracy on 40 images moves in steps of 2.5 points. The code published beside the README validates "
        "on the folder it trains on."
    ),
    published={"split_strategy": "random-176", "patience": None, "threshold_rule": 0.5},
    retained=(
        "176 images chosen at random, 136 to train and 40 on which its accuracy is stated",
        "the last of 20 epochs",
        "rescaling and augmentation in the model (which, and the input size of 160, are ours)",
    ),
    corrected=(
        "136 and 40 images of different patients; accuracy on the official test",
        "no validation on the folder that is trained on, under either protocol",
        "the best epoch and the threshold are chosen on the 40",
    ),
)


# What a variant of a published recipe does not inherit.
_OURS: dict[str, Any] = {
    "claims": {},
    "claimed_on": 0,
    "ours": "",
    "stored_output": {},
    "published": {},
}
_OURS |= {"retained": (), "remark": ""}


def _balanced(imbalance: str, short: str) -> Recipe:
    name, title = (
        f"{MOBILENET_SMALL.name}-{short}",
        f"{MOBILENET_SMALL.title}, {imbalance.replace('_', ' ')}",
    )
    source = "the class-imbalance methods its README names"
    return replace(
        MOBILENET_SMALL, name=name, title=title, source=source, imbalance=imbalance, **_OURS
    )


def _reframed(recipe: Recipe) -> Recipe:
    """Return a recipe with random framing in training, its epoch and threshold chosen on swapped films.

    A phase ends after 20 epochs without a better one: on swapped films the first can be the best for long.
    """
    name, title = (
        f"{recipe.name}-reframed",
        f"{recipe.title}, framing made random in training (ours)",
    )
    framing = "reframe" if recipe.augmentation is None else f"reframe-{recipe.augmentation}"
    changed: dict[str, Any] = {"augmentation": framing, "validation": "framing", "corrected": ()}
    changed |= {"patience": 20, "source": "this repository"} | _OURS
    return replace(recipe, name=name, title=title, **changed)


def _two_by_two() -> tuple[Recipe, Recipe]:
    """The two cells between `tiny-cnn-28` and its re-framed twin: its validation alone, its augmentation alone."""
    reframed = _reframed(TINY_CNN)
    selection = replace(
        reframed,
        name="tiny-cnn-28-reframed-validation",
        title=f"{TINY_CNN.title}, epoch and threshold chosen on re-framed images (ours)",
        augmentation=TINY_CNN.augmentation,
    )
    augmentation = replace(
        reframed,
        name="tiny-cnn-28-reframed-training",
        title=f"{TINY_CNN.title}, framing made random in training, epoch chosen as before (ours)",
        patience=TINY_CNN.patience,
        validation=TINY_CNN.validation,
    )
    return selection, augmentation


# The end of a recipe's name, by the region that it sees.
LUNG_REGIONS = {
    "lungs": "lungs",
    "lungs-annotated": "annotated lungs",
    "lungs-exchanged": "lungs of another image",
    "lungs-hidden": "outside the lungs",
}


def _on_region(recipe: Recipe, ending: str) -> Recipe:
    """Return a recipe that sees one region of each image, with nothing else changed."""
    region = LUNG_REGIONS[ending]
    return replace(
        recipe,
        name=f"{recipe.name}-{ending}",
        title=f"{recipe.title}, region: {region} (ours)",
        source="this repository",
        region=region,
        corrected=(),
        **_OURS,
    )


_ONE = "Single-feature baseline: {}, logistic regression (ours)"
MOBILENET_FROZEN = Recipe(
    name="mobilenetv2-frozen",
    title="Features of an ImageNet MobileNetV2, calibrated logistic regression (ours)",
    network="mobilenetv2",
    size=224,
    fit="linear-probe",
    init="imagenet",
)


FLAGSHIP = Recipe(
    name="flagship",
    title="MobileNetV2 at 160 px, head then all layers, on films of random framing and rendering (ours)",
    network="mobilenetv2_160",
    size=224,
    phases=(
        Phase(epochs=1, learning_rate=1e-3, freeze_backbone=True),
        Phase(epochs=10, learning_rate=2e-4, decay=True),
    ),
    init="imagenet",
    patience=20,
    augmentation="reframe-render",
    validation="worst",
    seeds=5,
)

# The small experiment without and with each class-imbalance method.
IMBALANCE_RECIPES = tuple(
    f"{MOBILENET_SMALL.name}{end}" for end in ("", "-weighted", "-oversampled", "-undersampled")
)

_ALL = (
    *(INCEPTION, SCRATCH_CNN, TINY_CNN, RESNET, MOBILENET_SMALL),
    _balanced("class_weight", "weighted"),
    _balanced("oversample", "oversampled"),
    _balanced("undersample", "undersampled"),
    *(KERASIO, MOBILENET_FROZEN, FLAGSHIP),
    *map(_reframed, (TINY_CNN, SCRATCH_CNN, KERASIO, MOBILENET_SMALL, MOBILENET_FROZEN)),
    *_two_by_two(),
    *(_on_region(TINY_CNN, ending) for ending in LUNG_REGIONS),
    *(_on_region(MOBILENET_FROZEN, ending) for ending in LUNG_REGIONS),
    *(_on_region(recipe, "lungs") for recipe in (SCRATCH_CNN, KERASIO, MOBILENET_SMALL)),
    *(
        Recipe(
            name=x.replace(" ", "-"),
            title=_ONE.format(x),
            network=x,
            size=64,
            fit="single-feature",
            init="none",
        )
        for x in ("majority class", "file size", "mean intensity")
    ),
)
RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in _ALL}


def get_recipe(name: str) -> Recipe:
    """Return the recipe of that name, or raise `NotFoundError` with the names there are."""
    if name not in RECIPES:
        raise NotFoundError(
            f"there is no recipe {name!r}. Fix: choose one of {', '.join(RECIPES)}."
        )
    return RECIPES[name]
