import hashlib

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from xraylib.datasets import splits
from xraylib.datasets.audit import leakage
from xraylib.datasets.manifest import patient_and_kind
from xraylib.datasets.splits import BY_PATIENT, PROTOCOLS, SPLIT_STRATEGIES, assign, check_disjoint
from xraylib.errors import InvalidDataError, NotFoundError

# Few patients of one kind, as made up below: scikit-learn remarks on it.
pytestmark = pytest.mark.filterwarnings("error", "ignore:The least populated class")


def manifest(groups):
    """Made of (patient, split, how many images); the kind is read from the patient's name."""
    rows = [
        {
            "image_id": f"{patient}_{number}",
            "path": f"{patient}_{number}.jpeg",
            "label": int(patient.startswith("person")),
            "patient": patient.split("_")[0],
            "kind": patient.split("_")[1] if "_" in patient else "normal",
            "split": split,
            "sha256": hashlib.sha256(f"{patient} {number} {split}".encode()).hexdigest(),
        }
        for patient, split, images in groups
        for number in range(images)
    ]
    return pd.DataFrame(rows)


def hospital(patients=150, seed=0):
    """Like Kermany's folders: many patients, one to twelve images each, most of them bacterial."""
    rng = np.random.default_rng(seed)
    groups = []
    for number in range(patients):
        split = "test" if number % 6 == 0 else "train"
        for name in (f"person{number}_bacteria", f"person{number}_virus", f"IM-{number:04d}"):
            if rng.random() < 0.8:
                groups.append((name, split, int(rng.integers(1, 13))))
    groups += [("person9001_virus", "val", 3), ("IM-9001", "val", 3)]
    return manifest(groups)


@st.composite
def manifests(draw):
    """At least two patients of each class outside the test folder, one of each inside; no leak."""
    name = st.builds(
        "{}{}{}".format,
        st.just("person"),
        st.integers(1, 12),
        st.sampled_from(["_bacteria", "_virus"]),
    )
    names = draw(
        st.sets(name | st.builds("IM-{}".format, st.integers(1, 12)), min_size=4, max_size=30)
    )
    folders = st.sampled_from(["train", "train", "val"])
    groups = [(name, draw(folders), draw(st.integers(1, 5))) for name in sorted(names)]
    people = {(patient[0], patient.split("_")[0]) for patient, _, _ in groups}
    assume(all(sum(kind == first for kind, _ in people) >= 2 for first in "pI"))
    return manifest([*groups, ("person100_virus", "test", 2), ("IM-100", "test", 1)])


@settings(max_examples=25, deadline=None)
@given(manifests(), st.integers(0, 2**32 - 1))
def test_strict_never_splits_the_images_of_one_child(table, seed):
    try:
        assigned = assign(table, "strict", seed)
    except InvalidDataError as few:
        # So few patients that one split can be left with one class.
        assert "one class only" in str(few)
        assert table.loc[table["split"] != "test", "patient"].nunique() < 30
        return
    number = assigned["patient"]
    numbers = {split: set(number[assigned["split"] == split]) for split in ("train", "val")}
    assert not numbers["train"] & numbers["val"]
    assert assigned["split"].eq("test").tolist() == table["split"].eq("test").tolist()
    assert assigned.drop(columns="split").equals(table.drop(columns="split"))
    assert assigned.equals(assign(table, "strict", seed))


@settings(max_examples=15, deadline=None)
@given(manifests(), st.integers(0, 2**32 - 1))
def test_the_small_experiment_is_a_part_of_strict_and_all_of_it_when_it_is_small(table, seed):
    try:
        whole = assign(table, "strict", seed)
        part = assign(table, "strict", seed, split_strategy="patient-grouped-176")
    except InvalidDataError:
        return
    assert part.equals(whole.loc[part.index])
    assert part.query("split == 'test'").equals(whole.query("split == 'test'"))
    for split, images in splits.SMALL.items():
        if sizes(whole)[split] <= images:
            assert sizes(part)[split] == sizes(whole)[split]


def test_strict_divides_by_kind_in_the_same_shares_for_every_seed():
    table = hospital()
    pool = table[table["split"] != "test"]
    drawn = set()
    for seed in range(6):
        val = assign(table, "strict", seed).query("split == 'val'")
        assert len(val) / len(pool) == pytest.approx(1 / splits.VALIDATION_FOLDS, abs=0.03)
        for kind in ("normal", "bacteria", "virus"):
            assert (val["kind"] == kind).mean() == pytest.approx(
                (pool["kind"] == kind).mean(), abs=0.05
            )
        drawn.add(tuple(sorted(val["image_id"])))
    assert len(drawn) > 4


def test_the_index_counts_rows_of_the_manifest_and_the_manifest_stays_as_it_was():
    table = hospital()
    table.index = table.index + 1000
    before = table.copy()
    for split_strategy in SPLIT_STRATEGIES:
        assigned = assign(table, "published", 0, split_strategy=split_strategy)
        assert (
            table["image_id"].to_numpy()[assigned.index].tolist() == assigned["image_id"].tolist()
        )
        pd.testing.assert_frame_equal(table, before)


def sizes(assigned):
    return assigned["split"].value_counts().to_dict()


def test_official_keeps_the_folders():
    table = hospital()
    assert assign(table, "official", 3)["split"].equals(table["split"])


def test_official_without_a_validation_folder_takes_eight_of_each_class_from_train(caplog):
    table = hospital().query("split != 'val'")
    drawn = set()
    for seed in (0, 0, 1):
        assigned = assign(table, "published", seed, split_strategy="official")
        val = assigned["split"] == "val"
        assert assigned.loc[val, "label"].value_counts().to_dict() == {0: 8, 1: 8}
        assert set(table["split"][val.to_numpy()]) == {"train"}
        assert assigned["split"].mask(val, "train").tolist() == table["split"].tolist()
        drawn.add(tuple(assigned.loc[val, "image_id"]))
    assert len(drawn) == 2
    assert "the official validation folder is not in this copy" in caplog.text


def test_of_a_small_copy_the_stand_in_leaves_an_image_of_each_class_to_train():
    tests = [("person100_virus", "test", 1), ("IM-100", "test", 1)]
    few = manifest([("person1_virus", "train", 20), ("IM-1", "train", 5), *tests])
    assigned = assign(few, "published", 0, split_strategy="official")
    numbers = assigned.groupby("split")["label"].value_counts().unstack()
    assert numbers.loc["val"].to_dict() == {0: 4, 1: 4}
    assert numbers.loc["train"].to_dict() == {0: 1, 1: 16}
    one = manifest([("person1_virus", "train", 20), ("IM-1", "train", 1), *tests])
    with pytest.raises(InvalidDataError, match="the val split has no images"):
        assign(one, "published", 0, split_strategy="official")


def test_a_fifth_of_the_pool_validates_per_image():
    table = hospital()
    assigned = assign(table, "published", 1, split_strategy="per-image-validation")
    pool = table["split"].ne("test").sum()
    val = np.ceil(0.2 * pool)
    assert sizes(assigned) == {"train": pool - val, "val": val, "test": len(table) - pool}
    assert assigned.loc[table["split"].eq("test").to_numpy(), "split"].eq("test").all()
    crossing = leakage(assigned).set_index(["check", "splits"])["images"]
    assert crossing["same patient", "train and val"] > 0


def test_random_per_image_drops_copies_and_divides_seventy_twenty_ten():
    table = hospital()
    table.loc[5:14, "sha256"] = table["sha256"][5]
    assigned = assign(table, "published", 1, split_strategy="random-per-image")
    unique = len(table) - 9
    assert assigned["sha256"].is_unique and len(assigned) == unique
    shares = {split: n / unique for split, n in sizes(assigned).items()}
    assert shares == pytest.approx({"train": 0.7, "val": 0.2, "test": 0.1}, abs=0.003)
    prevalence = assigned.groupby("split")["label"].mean()
    assert prevalence.max() - prevalence.min() < 0.01


def test_136_images_train_and_40_of_other_patients_validate_in_the_shares_of_the_classes():
    table = hospital()
    pool = table[table["split"] != "test"]
    for seed in range(2):
        assigned = assign(table, "strict", seed, split_strategy="patient-grouped-176")
        check_disjoint(assigned)
        assert sizes(assigned) == {"train": 136, "val": 40, "test": len(table) - len(pool)}
        persons = assigned.assign(person=assigned["patient"]).groupby("split")["person"]
        assert not set(persons.get_group("train")) & set(persons.get_group("val"))
        for split in ("train", "val"):
            prevalence = assigned.loc[assigned["split"] == split, "label"].mean()
            assert prevalence == pytest.approx(pool["label"].mean(), abs=0.05)


def test_take_and_skip_of_two_shuffles_validate_on_what_was_trained_on():
    # As many images as outside the test folder of the copy that the keras.io example reads.
    table = manifest(
        [
            ("person1_virus", "train", 3883), ("IM-1", "train", 1349),
            ("person2_virus", "test", 5), ("IM-2", "test", 5),
        ]
    )  # fmt: skip
    for seed in range(2):
        assigned = assign(table, "published", seed, split_strategy="take-skip")
        assert sizes(assigned) == {"train": 4200, "val": 1032, "test": 10}
        assert not assigned.duplicated(["split", "image_id"]).any()
        train, val = (
            set(assigned.loc[assigned["split"] == split, "image_id"]) for split in ("train", "val")
        )
        assert len(train & val) / len(val) == pytest.approx(0.8, abs=0.04)
        audit = leakage(assigned).set_index(["check", "splits"])["share"]
        assert audit["byte-identical", "train and val"] == len(train & val) / len(val)
        assert audit["byte-identical", "train and test"] == 0


def test_176_images_at_random_are_tested_on_what_they_validate_on():
    table = hospital()
    outside = set(table.loc[table["split"] != "test", "image_id"])
    for seed in range(2):
        assigned = assign(table, "published", seed, split_strategy="random-176")
        assert sizes(assigned) == {"train": 136, "val": 40, "test": 40}
        names = {split: list(part) for split, part in assigned.groupby("split")["image_id"]}
        assert names["val"] == names["test"]
        assert len({*names["train"], *names["val"]}) == 176
        assert {*names["train"], *names["val"]} <= outside
        audit = leakage(assigned).set_index(["check", "splits"])["images"]
        assert audit["same patient", "train and val"] > 0
        assert audit["byte-identical", "val and test"] == 40
        prevalence = assigned.groupby("split")["label"].mean()
        assert prevalence.max() - prevalence.min() < 0.03


@pytest.mark.parametrize("images", [12, 100, 176])
def test_of_176_images_or_fewer_all_are_used(images):
    pairs = [
        (f"person{i}_virus" if i < images // 2 else f"IM-{i}", "train", 1) for i in range(images)
    ]
    table = manifest([*pairs, ("person9000_virus", "test", 2), ("IM-9001", "test", 1)])
    val = round(images * 40 / 176)
    assigned = assign(table, "published", 0, split_strategy="random-176")
    assert sizes(assigned) == {"train": images - val, "val": val, "test": val}
    assert set(assigned["image_id"]) == set(table.loc[table["split"] == "train", "image_id"])
    grouped = assign(table, "strict", 0, split_strategy="patient-grouped-176")
    assert sizes(grouped)["train"] == min(136, sizes(assign(table, "strict", 0))["train"])
    skipped = sizes(assign(table, "published", 0, split_strategy="take-skip"))
    assert skipped["train"] + skipped["val"] == images


TINY = [
    ("person1_virus", "train", 2),
    ("IM-2", "train", 2),
    ("person3_virus", "test", 1),
    ("IM-4", "test", 1),
]
NO_TRAIN = [("person1_virus", "test", 2), ("IM-2", "test", 2)]


@pytest.mark.parametrize(
    ("split_strategy", "table"),
    [("per-image-validation", TINY), ("random-176", TINY), ("patient-grouped", NO_TRAIN)],
)
def test_a_set_too_small_to_divide_is_refused(split_strategy, table):
    with pytest.raises(InvalidDataError, match="Fix: "):
        assign(manifest(table), "published", 0, split_strategy=split_strategy)


@pytest.mark.parametrize("split_strategy", SPLIT_STRATEGIES)
def test_a_seed_gives_one_split_and_the_strategy_may_be_named_as_protocol(split_strategy):
    table = hospital()
    first = assign(table, "published", 0, split_strategy=split_strategy)
    assert first.equals(assign(table, split_strategy, 0, split_strategy="random-per-image"))
    same_for_every_seed = split_strategy in ("official", "number-blocks")
    other = assign(table, "published", 1, split_strategy=split_strategy)
    assert first.equals(other) == same_for_every_seed
    if split_strategy in BY_PATIENT:
        assert first.equals(assign(table, "strict", 0, split_strategy=split_strategy))


@pytest.mark.parametrize("split_strategy", sorted(set(SPLIT_STRATEGIES) - set(BY_PATIENT)))
def test_strict_refuses_a_split_strategy_that_splits_the_images_of_a_patient(split_strategy):
    with pytest.raises(
        InvalidDataError, match=f"{split_strategy} .*Fix: .*{', '.join(BY_PATIENT)}"
    ):
        assign(hospital(), "strict", 0, split_strategy=split_strategy)


def test_a_patient_in_train_and_test_is_refused_by_name():
    table = pd.concat([hospital(), manifest([("person77_virus", "test", 1)])], ignore_index=True)
    assert "person77" in set(table.query("split == 'train'")["patient"])
    with pytest.raises(
        InvalidDataError, match=r"1 patients are in two splits: person77_bacteria_0.*Fix: "
    ):
        assign(table, "strict", 0)
    assert len(assign(table, "published", 0)) == len(table)


def test_a_copy_in_train_and_test_is_refused_by_name():
    table = hospital()
    train, test = (table.index[table["split"] == split][0] for split in ("train", "test"))
    table.loc[test, "sha256"] = table["sha256"][train]
    with pytest.raises(
        InvalidDataError, match=f"1 byte-identical images .*{table['image_id'][train]}"
    ):
        assign(table, "strict", 0)


def named(split, *names):
    """A manifest of Kermany-like names, with the patients that are read from them."""
    rows = []
    for name in names:
        patient, kind = patient_and_kind(name)
        digest = hashlib.sha256(f"{split} {name}".encode()).hexdigest()
        label = int(kind != "normal")
        rows.append((name, f"{name}.jpeg", label, patient, kind, split, digest))
    columns = ["image_id", "path", "label", "patient", "kind", "split", "sha256"]
    return pd.DataFrame(rows, columns=columns)


def in_training_folder():
    """Children 300 to 340 with pneumonias of both kinds, and 400 to 440 in both normal series."""
    names = []
    for number in range(300, 341):
        names += [f"person{number}_bacteria_1", f"person{number}_virus_2"]
        names += [f"IM-0{number + 100}-0001", f"NORMAL2-IM-0{number + 100}-0001"]
    return named("train", *names)


def test_strict_keeps_both_kinds_and_both_series_of_one_number_together():
    # Numbers that the test folder has in some series: 100 of bacteria, 50 of viruses.
    test = named("test", "person100_bacteria_1", "NORMAL2-IM-0300-0001", "IM-0007-0001")
    train = pd.concat([in_training_folder(), named("train", "person100_virus_9", "IM-0300-0001")])
    images = pd.concat([train, test], ignore_index=True)
    for seed in range(3):
        assigned = assign(images, "strict", seed)
        assert assigned.groupby("patient")["split"].nunique().eq(1).all()
        val = assigned[assigned["split"] == "val"]
        assert val.groupby("patient")["kind"].nunique().max() == 2
    moved = images.copy()
    moved.loc[moved["image_id"] == "person310_virus_2", "split"] = "test"
    with pytest.raises(InvalidDataError, match=r"1 patients .*person310_bacteria_1.*Fix: "):
        assign(moved, "strict", 0)
    moved = images.copy()
    moved.loc[moved["image_id"] == "NORMAL2-IM-0410-0001", "split"] = "test"
    with pytest.raises(InvalidDataError, match=r"1 patients .*IM-0410-0001.*Fix: "):
        assign(moved, "strict", 0)


def test_the_lowest_seventh_of_each_series_validates_with_its_patients_and_copies():
    # 21 bacteria, 14 viruses, 28 and 7 normals: the lowest 3, 2, 4 and 1 of them validate.
    bacteria = [f"person{number}_bacteria_1" for number in (*range(200, 220), 302)]
    virus = [f"person{number}_virus_1" for number in range(301, 315)]
    normal = [f"IM-0{number}-0001" for number in range(400, 428)]
    normal_2 = [f"NORMAL2-IM-0{number}-0001" for number in (426, *range(500, 506))]
    images = pd.concat(
        [
            named("train", *bacteria, *virus, *normal, *normal_2),
            named("test", "person100_bacteria_1", "IM-0007-0001"),
        ],
        ignore_index=True,
    )
    copy = images["image_id"] == "IM-0420-0001"
    images.loc[copy, "sha256"] = images.loc[images["image_id"] == "IM-0400-0001", "sha256"].item()
    assigned = assign(images, "strict", 5, split_strategy="number-blocks")
    assert set(assigned.loc[assigned["split"] == "val", "image_id"]) == {
        *("person200_bacteria_1", "person201_bacteria_1", "person202_bacteria_1"),
        *("person301_virus_1", "person302_virus_1", "person302_bacteria_1"),
        *("IM-0400-0001", "IM-0401-0001", "IM-0402-0001", "IM-0403-0001", "IM-0420-0001"),
        *("NORMAL2-IM-0426-0001", "IM-0426-0001"),
    }
    assert assigned["split"].eq("test").equals(images["split"].eq("test"))
    nameless = images.assign(image_id="scan", patient="someone")
    with pytest.raises(InvalidDataError, match=r"no numbers of patients\. Fix: "):
        assign(nameless, "number-blocks", 0)


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        ("split != 'test'", "the test split has no images"),
        ("split != 'test' or label == 1", "the test split has one class only"),
        ("split == 'test' or label == 1", "the train split has one class only"),
        (
            "split == 'test' or label == 1 or patient == 'IM-0001'",
            "fewer than two patients of a class",
        ),
    ],
)
def test_a_split_without_both_classes_is_refused(keep, said):
    with pytest.raises(InvalidDataError, match=f"{said}.*Fix: "):
        assign(hospital().query(keep), "strict", 0)


def test_unknown_names_are_told_the_known_ones():
    with pytest.raises(
        NotFoundError, match=f"'honest'.*Fix: .*{', '.join((*PROTOCOLS, *SPLIT_STRATEGIES))}"
    ):
        assign(hospital(), "honest", 0)
