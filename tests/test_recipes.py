from dataclasses import fields, replace

import pytest

from xraylib.datasets.splits import BY_PATIENT, PROTOCOLS, SPLIT_STRATEGIES
from xraylib.errors import InvalidDataError, NotFoundError
from xraylib.evaluation.metrics import METRICS
from xraylib.training import networks, recipes
from xraylib.training.recipes import (
    BUDGETS,
    RECIPES,
    Phase,
    Recipe,
    get_budget,
    get_recipe,
    override,
    part_name,
)
from xraylib.training.runs import MODEL_FILES
from xraylib.training.train import IMBALANCE_METHODS

EACH = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)


@EACH
def test_what_is_published_are_fields_of_a_recipe(recipe):
    assert set(recipe.published) <= {field.name for field in fields(Recipe)} - {
        "name",
        "claims",
        "published",
    }
    if not recipe.published:
        with pytest.raises(NotFoundError, match=r"no protocol `published`.*Fix: "):
            recipe.under("published")


@EACH
def test_a_claim_names_a_metric_and_a_share(recipe):
    assert set(recipe.claims) | set(recipe.stored_output) <= set(METRICS)
    values = [*recipe.claims.values(), *recipe.stored_output.values()]
    assert all(value == "excellent" or 0 < value <= 1 for value in values)
    assert bool(recipe.claims) == bool(recipe.published), "a claim is made by a published system"


@EACH
def test_a_recipe_names_only_what_there_is(recipe):
    for used in (recipe.under(p) for p in PROTOCOLS if recipe.published or p == "strict"):
        assert (
            (used.network in networks.NETWORKS)
            == (used.fit != "single-feature")
            == (used.init != "none")
        )
        assert used.head in networks.HEADS and used.fit in MODEL_FILES
        assert used.split_strategy in SPLIT_STRATEGIES
        assert used.augmentation in (None, *networks.AUGMENTATIONS)
        assert used.imbalance in (None, *IMBALANCE_METHODS)
        assert used.threshold_rule in ("youden", "sensitivity 0.95", 0.5)
        assert used.validation in ("plain", "framing", "robust")
        assert bool(used.phases) == (used.fit == "network")
    assert recipe.under("strict") == recipe and recipe.split_strategy in BY_PATIENT


@EACH
def test_a_budget_caps_the_epochs_of_each_phase_and_nothing_else(recipe):
    full = recipe.under("random-per-image", "full")
    quick = recipe.under("random-per-image", "quick")
    cap = BUDGETS["quick"].epochs_a_phase
    assert [p.epochs for p in quick.phases] == [min(p.epochs, cap) for p in full.phases]
    assert full.settings() | {"phases": None} == quick.settings() | {"phases": None}


def test_settings_follow_what_decides_training_and_not_the_words():
    recipe = get_recipe("tiny-cnn-28")
    assert recipe.under("published").settings() != recipe.settings()
    words = {"title": "other", "url": "https://other", "threshold_rule": 0.3, "seeds": 9}
    assert replace(recipe, **words).settings() == recipe.settings()
    assert replace(recipe, validation="framing").settings() != recipe.settings()


@pytest.mark.parametrize(("get", "known"), [(get_recipe, RECIPES), (get_budget, BUDGETS)])
def test_an_unknown_name_is_told_the_names_there_are(get, known):
    with pytest.raises(NotFoundError, match="'resnet-1000'") as unknown:
        get("resnet-1000")
    assert all(name in str(unknown.value) for name in known)


# As the sources describe them: input, phases as (epochs, rate), batch, augmentation, and
# class-imbalance method.
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
    phases = [(phase.epochs, phase.learning_rate) for phase in recipe.phases]
    found = (recipe.size, phases, recipe.batch_size, recipe.augmentation, recipe.imbalance)
    assert found == DESCRIBED[name]


def test_the_bugs_retained_are_under_published_alone():
    resnet, tiny = get_recipe("resnet50v2"), get_recipe("tiny-cnn-28").under("published")
    raw = resnet.under("published")
    assert (resnet.network, raw.network) == ("resnet50v2", "resnet50v2_raw")
    assert (raw.augmentation, raw.split_strategy, raw.patience) == (None, "official", None)
    assert (tiny.split_strategy, tiny.patience) == ("random-per-image", None)
    assert get_recipe("kerasio-tpu").under("published").split_strategy == "take-skip"
    assert get_recipe("mobilenetv2-small").under("published").split_strategy == "random-176"


def test_a_variant_has_the_changed_fields_in_its_values_and_in_its_name():
    tiny = get_recipe("tiny-cnn-28")
    variant = override(tiny, {"size": "128", "epochs": "5", "patience": "none"})
    assert variant.name == "tiny-cnn-28+epochs=5+size=128+patience=none"
    assert variant.phases == (Phase(5, 1e-3),)
    assert (variant.size, variant.patience) == (128, None)
    assert not variant.claims
    assert not variant.published
    assert variant.settings() != tiny.settings()
    assert get_recipe(variant.name) == variant
    assert override(tiny, {}) == tiny
    phases = override(get_recipe("scratch-cnn"), {"learning_rate": "1e-5", "decay": "False"}).phases
    assert [(p.epochs, p.learning_rate, p.decay) for p in phases] == [
        (20, 1e-5, False),
        (6, 1e-5, False),
    ]


WRONG = [
    ("size", "0"),
    ("size", "large"),
    ("epochs", "-1"),
    ("epochs", "none"),
    ("learning_rate", "nan"),
    ("learning_rate", "0"),
    ("decay", "yes"),
    ("patience", "1.5"),
    ("network", "../tiny_cnn"),
    ("network", ""),
]


@pytest.mark.parametrize(("field", "text"), WRONG)
def test_a_value_of_another_type_is_refused(field, text):
    with pytest.raises(InvalidDataError, match=rf"{field}='{text}'.*Fix: give "):
        override(get_recipe("tiny-cnn-28"), {field: text})


def test_an_unknown_field_is_told_the_fields_there_are():
    with pytest.raises(NotFoundError, match=r"'dropout'.*Fix: .*epochs.*size"):
        override(get_recipe("tiny-cnn-28"), {"dropout": "0.5"})
    with pytest.raises(NotFoundError, match="epochs"):
        get_recipe("tiny-cnn-28+dropout=0.5")
    with pytest.raises(NotFoundError, match=r"'epochs'.*size"):
        override(get_recipe("majority-class"), {"epochs": "5"})


def own_network(x, size, weights):
    return x


def written(folder, source):
    """Import the function `own_network` of a file with that source."""
    (folder / "module.py").write_text(source)
    code = compile(source, str(folder / "module.py"), "exec")
    namespace = {"__name__": "module"}
    exec(code, namespace)
    return namespace["own_network"]


def test_a_function_is_named_after_itself_and_its_source(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "OWN_PARTS", {})
    recipe = replace(get_recipe("tiny-cnn-28"), network=own_network)
    name = recipe.under("strict").network
    assert name.startswith("own_network-")
    assert recipe.settings()["network"] == name
    assert {name: own_network} == recipes.OWN_PARTS
    for number, source in enumerate(("return x\n", "return 2 * x\n")):
        folder = tmp_path / str(number)
        folder.mkdir()
        other = written(folder, f"def own_network(x, size, weights):\n    {source}")
        assert (part_name(other) == name) == (number == 0)
    assert part_name("tiny_cnn") == "tiny_cnn"


def test_a_function_whose_source_does_not_show_all_is_refused():
    filters = 8

    def captures(x, size, weights):
        return x * filters

    namespace = {}
    exec("def unreadable(x, size, weights): return x", namespace)
    for part, word in ((captures, "captures"), (namespace["unreadable"], "source")):
        with pytest.raises(InvalidDataError, match=rf"{word}.*Fix: "):
            part_name(part)
