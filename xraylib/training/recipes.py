"""The published systems, and our own, as data: everything that decides a run, and what is claimed.

Train one:  python -m xraylib train tiny-cnn-28 --dataset kermany --protocol strict
Change it:  python -m xraylib train tiny-cnn-28+epochs=5+size=64 --dataset kermany

A recipe may hold parts of your own: a function for `network`, `augmentation`, `split_strategy` or
`threshold_rule`, see `part_name`.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from xraylib.errors import InvalidDataError, NotFoundError
from xraylib.storage import sha256_bytes


@dataclass(frozen=True)
class Phase:
    """Some epochs at one learning rate; a later phase starts from the best epoch before it.

    Attributes
    ----------
    epochs
        The largest number of epochs; the recipe's patience can end the phase earlier.
    learning_rate
        The rate of Adam.
    decay
        Whether the rate falls along a cosine to a hundredth of `learning_rate`.
    freeze_backbone
        Whether only the layers on top of the backbone are trained.
    """

    epochs: int
    learning_rate: float
    decay: bool = False
    freeze_backbone: bool = False


# Functions of the user's own by their names in a run's identity, see `part_name`.
OWN_PARTS: dict[str, Callable[..., Any]] = {}
_PART_FIELDS = ("network", "augmentation", "split_strategy")
# The type of such a field: the name of a part or, until `Recipe.under` names it, a function.
Part = Any


def part_name(part: str | Callable[..., Any]) -> str:
    """Return the name of a part; a function becomes known by its name and its source code.

    The name of a function ends in 12 hex digits of the SHA-256 of its source code, so that runs of
    two versions of a function never mix. Functions that it calls do not count. To load a run in
    another process, import the function and call `part_name` on it first.

    Parameters
    ----------
    part
        A name that the package knows, which is returned unchanged, or a function.

    Raises
    ------
    InvalidDataError
        If the function has no readable source, or captures variables that its source does not show.
    """
    if isinstance(part, str):
        return part
    label = getattr(part, "__name__", repr(part))
    fix = "Fix: define it with `def` at the top level of a file or notebook cell."
    if getattr(part, "__closure__", None):
        raise InvalidDataError(f"{label} captures variables that its source does not show. {fix}")
    try:
        source = inspect.getsource(part)
    except (OSError, TypeError) as error:
        raise InvalidDataError(f"the source code of {label} cannot be read. {fix}") from error
    name = f"{label}-{sha256_bytes(source.encode())[:12]}"
    OWN_PARTS[name] = part
    return name


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A system that can be trained and compared with its claim.

    The fields say what the system does under the protocol `strict`.

    Attributes
    ----------
    name, title, source, url
        Its name in commands and tables; what its authors call it; where the claim is stated; the
        address of the system, empty where it was not found.
    network
        A key of `networks.NETWORKS`, or a function `(x, size, weights) -> features`.
    head
        A key of `networks.HEADS`.
    size
        Height and width of the input in pixels.
    phases
        The phases of training, in their order.
    fit
        `network` trains the whole network with Keras. `linear-probe` fits a calibrated logistic
        regression on features of the frozen network. `single-feature` fits one on the feature that
        `audit.single_feature` computes for the name in `network`.
    init
        Initial weights, see `networks.get_weights`.
    batch_size
        Images per step.
    patience
        Epochs without a better validation before a phase ends. None runs all epochs and keeps the
        last.
    augmentation
        A key of `networks.AUGMENTATIONS`, or a function that returns a layer.
    imbalance
        One of `train.IMBALANCE_METHODS`.
    region
        Which region of each image the network sees, see `regions.load`.
    split_strategy
        A key of `splits.SPLIT_STRATEGIES`, or a function `(manifest, seed) -> manifest`.
    threshold_rule
        See `thresholds`, or a function `(labels, scores) -> threshold`.
    validation
        Which epoch is kept. `plain`: the lowest validation loss. `framing`: the highest AUC on
        validation images framed as the other class, on which the threshold is chosen as well.
        `robust`: the same, with the highest AUC in the worst of four views: the three of
        `framing.swaps`, and one in which every image is corrupted, see `corruptions.corrupt_each`.
    seeds
        How many seeds an experiment trains.
    claims
        Published values on the system's own test data by metric, or a word where no number was
        given.
    claimed_on
        On how many images the claim was measured, 0 where this is not known.
    ours
        What had to be chosen here because the source does not say it. The claim is then not
        testable.
    stored_output
        Values in the stored output of the system's own notebook.
    published
        The fields that differ under the protocol `published`. Empty when nothing was published.
    remark
        What is known about the distance between claim and measurement.
    retained, corrected
        In words: what `published` retains of the system, and what `strict` corrects.
    """

    name: str
    title: str
    source: str = "this repository"
    url: str = ""
    network: Part
    head: str = "sigmoid"
    size: int
    phases: tuple[Phase, ...] = ()
    fit: str = "network"
    init: str = "random"
    batch_size: int = 32
    patience: int | None = 5
    augmentation: Part | None = None
    imbalance: str | None = None
    region: str = "whole"
    split_strategy: Part = "patient-grouped"
    threshold_rule: Part = "sensitivity 0.95"
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
        """The epochs of all phases together."""
        return sum(phase.epochs for phase in self.phases)

    def under(self, protocol: str, budget: str = "full") -> "Recipe":
        """Return the recipe as it runs under a protocol and a budget.

        Parameters
        ----------
        protocol
            `strict`, `published`, or a split strategy; the last leaves the rest as under `strict`.
        budget
            A key of `BUDGETS`.

        Raises
        ------
        NotFoundError
            Under `published` if nothing was published, and for an unknown budget.
        """
        changed = self
        if protocol == "published":
            if not self.published:
                raise NotFoundError(
                    f"{self.name} has no protocol `published`: nothing was. Fix: use `strict`."
                )
            changed = replace(self, **self.published)
        elif protocol != "strict":
            changed = replace(self, split_strategy=protocol)
        most = get_budget(budget).epochs_a_phase
        if most is not None:
            phases = tuple(replace(p, epochs=min(p.epochs, most)) for p in changed.phases)
            changed = replace(changed, phases=phases)
        return changed.named()

    def named(self) -> "Recipe":
        """Return the recipe with its functions, except the threshold rule, replaced by names."""
        names: dict[str, Any] = {}
        for key in _PART_FIELDS:
            part = getattr(self, key)
            names[key] = None if part is None else part_name(part)
        return replace(self, **names)

    def settings(self) -> dict[str, Any]:
        """Return the fields that decide the outcome of training, as JSON gives them back.

        Prose, claims and the name of a threshold rule are left out: they change no score.
        """
        left_out = set(_WORDS)
        if self.validation == "plain":
            left_out.add("validation")
        if self.region == "whole":
            left_out.add("region")
        chosen = {key: value for key, value in asdict(self.named()).items() if key not in left_out}
        chosen["phases"] = list(chosen["phases"])
        if callable(self.threshold_rule):
            chosen["threshold_rule"] = part_name(self.threshold_rule)
        return chosen


# The fields of a published system that a variant of it does not inherit.
_OF_THE_SYSTEM = (
    "source",
    "url",
    "claims",
    "claimed_on",
    "ours",
    "stored_output",
    "published",
    "remark",
    "retained",
    "corrected",
)
# The fields of a recipe that do not decide the outcome of training.
_WORDS = ("title", "seeds", "threshold_rule", *_OF_THE_SYSTEM)


@dataclass(frozen=True)
class Budget:
    """The most seeds that an experiment trains and the most epochs per phase; None is no limit."""

    seeds: int | None
    epochs_a_phase: int | None


# `quick` takes minutes on two cores with the phantom. The committed tables of real data use `full`.
BUDGETS = {"quick": Budget(2, 12), "full": Budget(None, None)}


def get_budget(name: str) -> Budget:
    """Return the budget of that name; `NotFoundError` lists the names."""
    if name not in BUDGETS:
        raise NotFoundError(
            f"there is no budget {name!r}. Fix: choose one of {', '.join(BUDGETS)}."
        )
    return BUDGETS[name]


TINY_CNN = Recipe(
    name="tiny-cnn-28",
    title="Chest X-Ray Pneumonia Classification using Convolutional Neural Networks",
    source="README: test accuracy 0.95 and test loss 0.14 on 582 images of its own random split",
    # The address of its data; its own repository was not found.
    url="https://huggingface.co/datasets/keremberke/chest-xray-classification",
    network="tiny_cnn",
    head="two-logits",
    size=28,
    phases=(Phase(epochs=20, learning_rate=1e-3),),
    claims={"accuracy": 0.95},
    claimed_on=582,
    remark=(
        "The claim was measured on the system's own image-level random split. On Kermany's "
        "official test, the accuracy of our runs is far lower."
    ),
    published={"split_strategy": "random-per-image", "patience": None, "threshold_rule": 0.5},
    retained=(
        "Exact duplicates are removed. The other images are split at random into 70% for "
        "training, 20% for validation and 10% for the test, so a patient can be in several splits.",
        "The last of 20 epochs is kept.",
        # As written the least possible loss is log(1 + 1/e) = 0.313; the README reports 0.0728.
        "The original passes sigmoid outputs to a loss that expects logits. TensorFlow silently "
        "corrects this, but other backends do not. Our network gives logits to the loss under "
        "both protocols.",
    ),
    corrected=(
        "The epoch with the best validation loss is kept.",
        "The threshold is chosen on validation.",
    ),
)

SCRATCH_CNN = Recipe(
    name="scratch-cnn",
    title="Xray-Classification",
    source="README: accuracy 0.83, recall above precision, test below validation",
    network="scratch_cnn",
    size=128,
    phases=(
        Phase(epochs=20, learning_rate=1e-3, decay=True),
        Phase(epochs=6, learning_rate=1e-4, decay=True),
    ),
    batch_size=16,
    patience=20,
    claims={"accuracy": 0.83},
    claimed_on=624,
    ours="layers, input size and epochs are ours",
    remark=(
        "The network is ours, because the README gives no layers, size or epochs. The README "
        "quotes the keras.io example of July 2020, so its network is likely that of kerasio-tpu, "
        "trained in two stages. Our runs confirm two other statements of the README. "
        "Recall is above precision, and results on the test are below those on validation."
    ),
    published={"split_strategy": "per-image-validation", "patience": None, "threshold_rule": 0.5},
    retained=(
        "There is no augmentation. Regularised training is followed by a fine-tuning phase at a "
        "lower learning rate. The last epoch is kept.",
        "A random fifth of the training images is used for validation. The README does not say "
        "which images were used.",
    ),
    corrected=(
        "Validation is split from the training folder by patient.",
        "The best epoch of each phase is kept.",
    ),
)

KERASIO = Recipe(
    name="kerasio-tpu",
    title="Pneumonia Classification on TPU (keras.io)",
    source="page of the example: test accuracy 0.814, precision 0.781, recall 0.977, loss 2.72",
    url="https://keras.io/examples/vision/xray_classification_with_tpus",
    network="separable_cnn",
    size=180,
    phases=(Phase(epochs=100, learning_rate=0.015),),
    batch_size=200,
    patience=10,
    imbalance="class_weight",
    claims={"accuracy": 0.814, "precision": 0.781, "sensitivity": 0.977},
    claimed_on=624,
    remark="The claim was measured on one training run.",
    published={"split_strategy": "take-skip", "threshold_rule": 0.5},
    retained=(
        "Training and validation images are taken from two different shuffles, so about four "
        "fifths of the validation images are also training images.",
        "The batch has 200 images (25 on each of 8 TPU cores). Classes are weighted. Training "
        "stops after 10 epochs without improvement.",
        "The learning rate is 0.015 throughout, because its decay sets in after 100,000 steps and "
        "an epoch has 21 steps. `strict` does not correct this, because nothing says what the rate "
        "should have been.",
    ),
    corrected=(
        "Validation is split from the training folder by patient.",
        "The threshold is chosen on validation.",
    ),
)

RESNET = Recipe(
    name="resnet50v2",
    title="Chest X-Ray Pneumonia Prediction",
    source='README: "excellent recall"; stored output of its notebook: test loss 3.63',
    url="https://github.com/JatinSingh007/Data_Science_projects",
    network="resnet50v2",
    size=224,
    phases=(Phase(epochs=8, learning_rate=1e-3),),
    init="imagenet",
    patience=4,
    augmentation="flip",
    seeds=1,
    claims={"sensitivity": "excellent"},
    remark=(
        "The claim gives no number. In the stored output of the system's notebook, the network "
        "finds every pneumonia image and classifies 229 of the 234 normal images as pneumonia. "
        "There the accuracy is 0.633 and the precision is 0.630."
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
        "Pixel values from 0 to 255 enter a network that expects values from −1 to 1.",
        "Images are flipped at random in training and in the test.",
        "There is no checkpoint and no early stopping, because 16 validation images do not "
        "fill a batch of 32.",
    ),
    corrected=(
        "Pixel values are scaled to −1 to 1, and test images are not flipped.",
        "Validation is split by patient. Validation chooses the best epoch and the threshold.",
        "Images larger than 224 × 224 pixels are downscaled with antialiasing under both "
        "protocols. On our copies, which have this size, the choice has no effect.",
    ),
)

INCEPTION = Recipe(
    name="inceptionv3-tpu",
    title="X-ray Pneumonia Classification",
    source="README; the stored output of its notebook is of another network",
    url="https://github.com/alxmares/X-ray_Pneumonia_Classification",
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
        "The four values cannot all come from the official test, which has 390 pneumonia "
        "images and 234 normal images. A precision of 0.93 at a recall of 0.96 would mean 28 false "
        "positives and 16 false negatives. The accuracy would then be 0.930. The stored output of "
        "the notebook that the README names is that of the keras.io example."
    ),
    stored_output={"accuracy": 0.768, "precision": 0.732, "sensitivity": 0.992},
    published={"split_strategy": "per-image-validation", "threshold_rule": 0.5},
    retained=(
        "Images are augmented. A phase with a frozen backbone trains the layers on top, then all "
        "layers are trained at a lower, decaying rate. The README gives no epochs or rates. We "
        "chose 3 epochs at 1e-3 and 10 epochs from 1e-4.",
        "A random fifth of the training images is used for validation, as in the notebook that the "
        "README names.",
    ),
    corrected=(
        "Validation is split from the training folder by patient.",
        "The threshold is chosen on validation.",
    ),
)

MOBILENET_SMALL = Recipe(
    name="mobilenetv2-small",
    title="Pneumonia Lung X-Ray Detection",
    source="README: validation accuracy 65% to 95% over 20 epochs, on 136 and 40 images",
    url="https://github.com/jessexmaki/pneumonia-xray-detection",
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
        "One image changes the accuracy on 40 images by 2.5 percentage points. The code published "
        "with the README computes the validation accuracy on the folder of its training images."
    ),
    published={"split_strategy": "random-176", "patience": None, "threshold_rule": 0.5},
    retained=(
        "176 images are chosen at random. The network is trained on 136 of them, and its accuracy "
        "is measured on the other 40.",
        "The last of 20 epochs is kept.",
        "Rescaling and augmentation are layers of the model. We chose these layers and the "
        "input size of 160.",
    ),
    corrected=(
        "The 136 training images and the 40 other images show different patients. Accuracy is "
        "measured on the official test.",
        "Under both protocols, no training image is used for validation.",
        "The best epoch and the threshold are chosen on the 40 images.",
    ),
)


def _variant(recipe: Recipe, ending: str, words: str, **changes: Any) -> Recipe:
    """Return a variant of a recipe, which makes no claim."""
    inherited = {
        field.name: getattr(recipe, field.name)
        for field in fields(recipe)
        if field.name not in _OF_THE_SYSTEM
    }
    inherited |= {"name": recipe.name + ending, "title": f"{recipe.title}, {words}"}
    return Recipe(**(inherited | changes))


def _balanced(imbalance: str, short: str) -> Recipe:
    """Return the small experiment with a class-imbalance method."""
    return _variant(
        MOBILENET_SMALL,
        f"-{short}",
        imbalance.replace("_", " "),
        source="the class-imbalance methods that its README names",
        imbalance=imbalance,
        corrected=MOBILENET_SMALL.corrected,
    )


def _reframed(recipe: Recipe) -> Recipe:
    """Return a recipe with random framing, its epoch and threshold chosen on swapped images.

    A phase ends after 20 epochs without a better one, because on swapped images the first epoch can
    be the best for long.
    """
    return _variant(
        recipe,
        "-reframed",
        "framing made random in training (ours)",
        augmentation=f"reframe-{recipe.augmentation}" if recipe.augmentation else "reframe",
        validation="framing",
        patience=20,
    )


# Between `tiny-cnn-28` and its re-framed twin: the validation alone, the augmentation alone.
TINY_REFRAMED_VALIDATION = _variant(
    TINY_CNN,
    "-reframed-validation",
    "epoch and threshold chosen on re-framed images (ours)",
    validation="framing",
    patience=20,
)
TINY_REFRAMED_TRAINING = _variant(
    TINY_CNN,
    "-reframed-training",
    "framing made random in training, epoch chosen as before (ours)",
    augmentation="reframe",
)

# The end of a recipe's name, by the region of the image that it sees.
LUNG_REGIONS = {
    "lungs": "lungs",
    "lungs-annotated": "annotated lungs",
    "lungs-exchanged": "lungs of another image",
    "lungs-hidden": "outside the lungs",
}


def _on_region(recipe: Recipe, ending: str) -> Recipe:
    """Return a recipe that sees one region of each image, with nothing else changed."""
    region = LUNG_REGIONS[ending]
    return _variant(recipe, f"-{ending}", f"region: {region} (ours)", region=region)


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
    title="MobileNetV2 on the lungs' box at 128 px, trained on degraded images (ours)",
    network="mobilenetv2_standardized",
    size=128,
    phases=(
        Phase(epochs=1, learning_rate=1e-3, freeze_backbone=True),
        Phase(epochs=8, learning_rate=2e-4, decay=True),
    ),
    init="imagenet",
    patience=20,
    augmentation="jitter-degrade",
    region="lungs",
    validation="robust",
    seeds=5,
)


def _single_feature(feature: str) -> Recipe:
    """Return the baseline that sees one number of an image."""
    return Recipe(
        name=feature.replace(" ", "-"),
        title=f"Single-feature baseline: {feature}, logistic regression (ours)",
        network=feature,
        size=64,
        fit="single-feature",
        init="none",
    )


# The small experiment without and with each class-imbalance method.
IMBALANCE_RECIPES = tuple(
    f"{MOBILENET_SMALL.name}{end}" for end in ("", "-weighted", "-oversampled", "-undersampled")
)

_ALL = (
    INCEPTION,
    SCRATCH_CNN,
    TINY_CNN,
    RESNET,
    MOBILENET_SMALL,
    _balanced("class_weight", "weighted"),
    _balanced("oversample", "oversampled"),
    _balanced("undersample", "undersampled"),
    KERASIO,
    MOBILENET_FROZEN,
    FLAGSHIP,
    _reframed(TINY_CNN),
    _reframed(SCRATCH_CNN),
    _reframed(KERASIO),
    _reframed(MOBILENET_SMALL),
    _reframed(MOBILENET_FROZEN),
    TINY_REFRAMED_VALIDATION,
    TINY_REFRAMED_TRAINING,
    *(_on_region(TINY_CNN, ending) for ending in LUNG_REGIONS),
    *(_on_region(MOBILENET_FROZEN, ending) for ending in LUNG_REGIONS),
    _on_region(SCRATCH_CNN, "lungs"),
    _on_region(KERASIO, "lungs"),
    _on_region(MOBILENET_SMALL, "lungs"),
    _single_feature("majority class"),
    _single_feature("file size"),
    _single_feature("mean intensity"),
    # A control of the recipes that see the lungs' box.
    _single_feature("lung box"),
)
RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in _ALL}


def get_recipe(name: str) -> Recipe:
    """Return the recipe of that name; `NotFoundError` lists the names.

    `tiny-cnn-28+epochs=5+size=64` is `tiny-cnn-28` with these fields changed (see `override`).
    """
    if name in RECIPES:
        return RECIPES[name]
    base, *changes = name.split("+")
    if base not in RECIPES:
        raise NotFoundError(
            f"there is no recipe {base!r}. Fix: choose one of {', '.join(RECIPES)}."
        )
    pairs = [change.partition("=") for change in changes]
    return override(RECIPES[base], {key: value for key, _, value in pairs})


# The fields that `override` can change, with their types.
_PHASE_TYPES = {"epochs": int, "learning_rate": float, "decay": bool, "freeze_backbone": bool}
_RECIPE_TYPES = {
    "network": str,
    "head": str,
    "size": int,
    "batch_size": int,
    "patience": int,
    "augmentation": str,
    "imbalance": str,
    "region": str,
    "split_strategy": str,
    "validation": str,
    "seeds": int,
}
_CAN_BE_NONE = ("patience", "augmentation", "imbalance")
_ACCEPTED: dict[type, str] = {
    str: "a name",
    bool: "true or false",
    int: "a whole number of at least 1",
    float: "a number above 0",
}


def override(recipe: Recipe, changes: Mapping[str, str]) -> Recipe:
    """Return a variant of a recipe, with fields changed from text as on the command line.

    The name gets each change in the order of the fields, such as `tiny-cnn-28+epochs=5`, so that
    runs of the variant are of their own identity. The variant has no claims and no protocol
    `published`.

    Parameters
    ----------
    recipe
        The recipe to change.
    changes
        Text by field: a field of `Recipe`, or of `Phase`, which changes every phase. `none` and
        `true` or `false` stand for Python's values.

    Raises
    ------
    NotFoundError
        If there is no such field; the message lists the fields.
    InvalidDataError
        If a value is not of the field's type.
    """
    types = (_PHASE_TYPES if recipe.phases else {}) | _RECIPE_TYPES
    unknown = sorted(set(changes) - set(types))
    if unknown:
        raise NotFoundError(
            f"{recipe.name} has no field {unknown[0]!r} to change. "
            f"Fix: choose one of {', '.join(types)}."
        )
    if not changes:
        return recipe
    values = {key: _parse(key, changes[key].strip(), types[key]) for key in types if key in changes}
    of_phases = {key: value for key, value in values.items() if key in _PHASE_TYPES}
    fields = {key: value for key, value in values.items() if key in _RECIPE_TYPES}
    fields["phases"] = tuple(replace(phase, **of_phases) for phase in recipe.phases)
    texts = [f"{key}={_text(value)}" for key, value in values.items()]
    ending = "".join(f"+{text}" for text in texts)
    return _variant(recipe, ending, f"changed: {', '.join(texts)}", **fields)


def _parse(key: str, text: str, kind: type) -> Any:
    """Read the text of a field, which can be a part of a folder's and of a recipe's name."""
    if key in _CAN_BE_NONE and text.lower() == "none":
        return None
    try:
        value = {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        value = None
    # An empty name and the numbers up to 0 mean nothing.
    is_empty = value is None or (kind is not bool and not value > kind())
    if is_empty or set(text) & set("/+=\\"):
        none = ", or none" if key in _CAN_BE_NONE else ""
        raise InvalidDataError(f"{key}={text!r} cannot be used. Fix: give {_ACCEPTED[kind]}{none}.")
    return value


def _text(value: Any) -> str:
    """Write a value so that `_parse` reads it."""
    return value if isinstance(value, str) else str(value).lower()
