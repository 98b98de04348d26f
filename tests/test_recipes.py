from dataclasses import FrozenInstanceError, fields

import pytest

from xraylib.datasets.splits import BY_PATIENT, PROTOCOLS, SPLIT_STRATEGIES
from xraylib.evaluation.metrics import METRICS
from xraylib.storage import NotFound
from xraylib.training import batches, models, recipes
from xraylib.training.recipes import RECIPES, get_recipe
from xraylib.training.runs import MODEL_FILES
from xraylib.training.systems import BUDGETS, Phase, Recipe, get_budget

EACH = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
EACH_BOTH_WAYS = pytest.mark.parametrize(
    "recipe",
    [r.under(p) for r in RECIPES.values() for p in PROTOCOLS if r.published or p == "strict"],
    ids=lambda r: r.name,
)


def test_every_recipe_that_is_written_is_in_the_table_under_its_name():
    written = {value.name for value in vars(recipes).values() if isinstance(value, Recipe)}
    assert written <= set(RECIPES)
    assert all(get_recipe(name).name == name for name in RECIPES)


@EACH
def test_what_is_published_are_fields_of_a_recipe(recipe):
    names = {field.name for field in fields(Recipe)} - {"name", "claims", "published"}
    assert set(recipe.published) <= names
    if recipe.published:
        assert recipe.under("published").name == recipe.name
    else:
        with pytest.raises(NotFound, match="no protocol `published`"):
            recipe.under("published")


@EACH
def test_a_claim_names_a_metric_and_a_share(recipe):
    assert set(recipe.claims) | set(recipe.shown) <= set(METRICS)
    figures = [*recipe.claims.values(), *recipe.shown.values()]
    assert all(value == "excellent" or 0 < value <= 1 for value in figures)
    assert bool(recipe.claims) == bool(recipe.published), "a claim is made by a published system"
    assert recipe.source and recipe.title


@EACH_BOTH_WAYS
def test_a_recipe_names_only_what_there_is(recipe):
    assert (recipe.network in models.NETWORKS) == (recipe.fit != "single-feature") == (recipe.init != "none")
    assert recipe.head in models.HEADS
    assert recipe.fit in MODEL_FILES
    assert recipe.split_strategy in SPLIT_STRATEGIES
    assert recipe.augmentation in (None, *models.AUGMENTATIONS)
    assert recipe.imbalance in (None, *batches.IMBALANCE_METHODS)
    assert recipe.threshold == "validation" or 0 < recipe.threshold < 1
    assert recipe.batch_size > 0 and recipe.size >= 28
    assert bool(recipe.phases) == (recipe.fit == "network")


@EACH
@pytest.mark.parametrize("protocol", ["strict", "random-per-image"])
def test_a_budget_caps_the_epochs_of_each_phase_and_nothing_else(recipe, protocol):
    full, quick = recipe.under(protocol, "full"), recipe.under(protocol, "quick")
    cap = BUDGETS["quick"].epochs_a_phase
    assert [p.epochs for p in quick.phases] == [min(p.epochs, cap) for p in full.phases]
    assert quick.epochs <= full.epochs
    same = {key: value for key, value in full.settings().items() if key != "phases"}
    assert same.items() <= quick.settings().items()


@EACH
def test_strict_is_the_recipe_itself(recipe):
    assert recipe.under("strict") == recipe
    assert recipe.split_strategy in BY_PATIENT and recipe.threshold == "validation"


def test_settings_follow_what_decides_training_and_not_the_words():
    recipe = get_recipe("tiny-cnn-28")
    words = recipe.settings()
    assert recipe.under("published").settings() != words
    changed = Recipe(**{f.name: getattr(recipe, f.name) for f in fields(Recipe)} | {"title": "other"})
    assert changed.settings() == words
    assert words["phases"] == (
        {"epochs": 20, "learning_rate": 1e-3, "decay": False, "freeze_backbone": False},
    )


def test_a_recipe_cannot_be_changed_in_place():
    with pytest.raises(FrozenInstanceError):
        get_recipe("tiny-cnn-28").size = 64
    with pytest.raises(FrozenInstanceError):
        Phase(1, 0.1).epochs = 2


@pytest.mark.parametrize(("find", "known"), [(get_recipe, RECIPES), (get_budget, BUDGETS)])
def test_an_unknown_name_is_told_the_names_there_are(find, known):
    with pytest.raises(NotFound, match="'resnet-1000'") as unknown:
        find("resnet-1000")
    assert all(name in str(unknown.value) for name in known)
    with pytest.raises(NotFound):
        RECIPES["tiny-cnn-28"].under("strict", "endless")


# As the sources describe them: input, phases as (epochs, rate), batch, augmentation, remedy.
DESCRIBED = {
    "inceptionv3-tpu": (180, [(3, 1e-3), (10, 1e-4)], 32, "geometric", None),
    "scratch-cnn": (128, [(20, 1e-3), (6, 1e-4)], 16, None, None),
    "tiny-cnn-28": (28, [(20, 1e-3)], 32, None, None),
    "resnet50v2": (224, [(8, 1e-3)], 32, "flip", None),
    "mobilenetv2-small": (160, [(20, 1e-3)], 8, "geometric", None),
    "mobilenetv2-small-weighted": (160, [(20, 1e-3)], 8, "geometric", "class_weight"),
    "mobilenetv2-small-oversampled": (160, [(20, 1e-3)], 8, "geometric", "oversample"),
    "mobilenetv2-small-undersampled": (160, [(20, 1e-3)], 8, "geometric", "undersample"),
    "kerasio-tpu": (180, [(100, 0.015)], 200, None, "class_weight"),
}


@pytest.mark.parametrize("name", DESCRIBED)
def test_a_published_system_trains_as_described(name):
    recipe = get_recipe(name)
    size, phases, batch, augmentation, remedy = DESCRIBED[name]
    assert recipe.size == size and recipe.batch_size == batch
    assert [(phase.epochs, phase.learning_rate) for phase in recipe.phases] == phases
    assert (recipe.augmentation, recipe.imbalance) == (augmentation, remedy)
    assert recipe.fit == "network"


def test_only_the_first_phase_of_fine_tuning_is_frozen():
    assert [p.freeze_backbone for p in get_recipe("inceptionv3-tpu").phases] == [True, False]
    assert [p.decay for p in get_recipe("inceptionv3-tpu").phases] == [False, True]
    assert [p.freeze_backbone for p in get_recipe("mobilenetv2-small").phases] == [True]
    assert not any(p.freeze_backbone for p in get_recipe("resnet50v2").phases)


def test_the_bugs_kept_are_under_published_alone():
    resnet, tiny = (get_recipe(name) for name in ("resnet50v2", "tiny-cnn-28"))
    assert (resnet.network, resnet.under("published").network) == ("resnet50v2", "resnet50v2_raw")
    assert resnet.under("published").augmentation is None, "the network itself flips"
    assert (
        resnet.under("published").split_strategy == "official" and resnet.under("published").patience is None
    )
    assert get_recipe("kerasio-tpu").under("published").split_strategy == "take-skip"
    assert (
        tiny.under("published").split_strategy == "random-per-image"
        and tiny.under("published").patience is None
    )
    assert get_recipe("mobilenetv2-small").under("published").split_strategy == "random-176"
