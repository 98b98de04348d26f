import numpy as np
import pytest
from builders import labels_and_scores
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from notebook_code import definitions
from scipy.stats import norm
from scipy.stats import t as student
from sklearn import metrics as sk
from statsmodels.stats.proportion import proportion_confint

from xraylib.evaluation.resampling import (
    bootstrap_weights,
    delong,
    interval,
    jackknife,
    mean_over_runs,
    over,
    patient_weights,
    share_interval,
    two_level,
    weighted_ranking,
)

delong_interval = definitions("01_eda").delong_interval
pytestmark = pytest.mark.filterwarnings("error")


def test_patients_are_resampled_whole_and_alike_on_every_call():
    weights = bootstrap_weights(7, 50)
    assert weights.shape == (50, 7) and (weights.sum(axis=1) == 7).all()
    np.testing.assert_array_equal(weights, bootstrap_weights(7, 50))


def test_resamples_without_a_value_are_left_out():
    assert interval(np.array([np.nan, *np.linspace(0, 1, 41)])) == pytest.approx((0.025, 0.975))
    assert np.isnan(interval(np.array([np.nan]))).all()


def test_the_interval_over_runs_and_patients_by_hand():
    values, covariance = np.array([0.1, 0.2, 0.6]), np.full((3, 3), 0.04)
    np.fill_diagonal(covariance, 9.0)
    # A run's own variance over patients is in the spread of the runs already.
    spread = student.ppf(0.975, 2) ** 2 * values.var(ddof=1) / 3
    shared = norm.ppf(0.975) ** 2 * 0.04
    assert two_level(values, covariance) == pytest.approx(np.sqrt(spread + shared))
    # What two means share through the patients does not blur their difference.
    both = np.concatenate([values, values + 0.3])
    assert two_level(both, np.full((6, 6), 0.04), second=3) == pytest.approx(np.sqrt(2 * spread))
    apart = np.kron(np.eye(2), np.full((3, 3), 0.04))
    expected = np.sqrt(2 * spread + 2 * shared)
    assert two_level(both, apart, second=3) == pytest.approx(expected)
    fewer = two_level(both[:5], np.full((5, 5), 0.04), second=2)
    second = student.ppf(0.975, 1) ** 2 * both[3:5].var(ddof=1) / 2
    assert fewer == pytest.approx(np.sqrt(spread + second))


def test_images_are_weighed_by_their_patient_and_first_by_one():
    weights = patient_weights(np.array(["b", "a", "b"]), 50)
    assert weights.shape == (51, 3) and (weights[0] == 1).all()
    np.testing.assert_array_equal(weights[1:], bootstrap_weights(2, 50)[:, [1, 0, 1]])


def test_a_mean_has_the_wider_of_both_intervals_from_three_runs_on():
    values, covariance = np.array([0.1, 0.2, 0.6]), np.full((3, 3), 0.04)
    mean = mean_over_runs(values, covariance)
    assert (mean.value, mean.over) == (pytest.approx(0.3), "runs and patients")
    half = two_level(values, covariance)
    assert mean[1:3] == pytest.approx((0.3 - half, 0.3 + half))
    assert half > 1.1 * norm.ppf(0.975) * 0.2
    # Runs that are equal by chance, each with a variance of its own.
    own = covariance + np.eye(3)
    patients = norm.ppf(0.975) * np.sqrt(own.mean())
    assert mean_over_runs(np.full(3, 0.2), own).high == pytest.approx(0.2 + patients)
    two = mean_over_runs(values[:2], covariance[:2, :2])
    assert (two.low, two.over) == (pytest.approx(0.15 - norm.ppf(0.975) * 0.2), "patients")
    alone = mean_over_runs(values[:1], 0.04)
    assert alone.high == pytest.approx(0.1 + norm.ppf(0.975) * 0.2)
    assert [over(runs) for runs in (1, 2, 3)] == ["patients", "patients", "runs and patients"]


def test_the_p_of_a_difference_belongs_to_its_interval():
    one = mean_over_runs(np.array([0.5, 0.5 - norm.ppf(0.975)]), np.diag([1.0, 0.0]), second=1)
    assert one.low == pytest.approx(0) and one.p == pytest.approx(0.05)
    wide = np.diag([1.0, 1.0, 1.0, 0.5])
    values = np.array([0.1, 0.3, 0.2, 0.5])
    difference = mean_over_runs(values, wide, second=1)
    spread = np.sqrt(1 / 3 + 0.5)
    assert difference.value == pytest.approx(-0.3) and difference.over == "patients"
    assert difference.p == pytest.approx(2 * norm.sf(0.3 / spread))
    # What rounding leaves of two equal recipes is no difference.
    same = np.full((2, 2), 0.04)
    assert mean_over_runs(np.array([0.7, 0.7]), same, second=1).p == 1
    assert mean_over_runs(np.array([0.7, 0.6]), same, second=1).p == 0


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = np.array([0.8, 0.9, 0.85, 0.95])
    without_one = (values.sum() - values)[:, None] / 3
    standard_error = values.std(ddof=1) / np.sqrt(4)
    (half,) = jackknife(without_one)
    assert half == pytest.approx(3.182446 * standard_error, rel=1e-6)
    assert jackknife(without_one[:2]) == 0


@pytest.mark.parametrize("all_or_none", [0, 1])
def test_all_or_none_have_wilsons_interval_over_patients(all_or_none):
    share, *ends = share_interval(np.full(12, all_or_none), np.repeat(np.arange(6), 2))
    assert share == all_or_none
    assert ends == pytest.approx(proportion_confint(6 * all_or_none, 6, method="wilson"))


def test_images_of_one_patient_widen_the_interval_of_a_share():
    right = np.repeat(np.random.default_rng(0).random(40) < 0.7, 5).astype(float)
    share, low, high = share_interval(right, np.repeat(np.arange(40), 5))
    _, alone_low, alone_high = share_interval(right, np.arange(200))
    assert low < share < high and share == pytest.approx(right.mean())
    assert high - low > 1.8 * (alone_high - alone_low)


@settings(max_examples=25, deadline=None)
@given(labels_and_scores(), st.data(), st.floats(-1e3, 1e3), st.floats(0.1, 1e3))
def test_weighted_ranking_is_that_of_scikit_learn_in_any_range(data, drawn, shift, scale):
    labels, grid = data
    scores = scale * grid + shift
    assume(len(np.unique(scores)) == len(np.unique(grid)))
    row = st.lists(st.sampled_from([0, 0.3, 1, 2, 7.5]), min_size=len(labels), max_size=len(labels))
    weights = np.array(drawn.draw(st.lists(row, min_size=1, max_size=3)), dtype=float)
    aucs, precisions = weighted_ranking(labels == 1, scores, weights)
    for own, auc, precision in zip(weights, aucs, precisions, strict=True):
        positive, negative = own[labels == 1].sum(), own[labels == 0].sum()
        expected = (
            sk.roc_auc_score(labels, scores, sample_weight=own) if positive and negative else np.nan
        )
        assert auc == pytest.approx(expected, abs=1e-9, nan_ok=True)
        expected = (
            sk.average_precision_score(labels, scores, sample_weight=own) if positive else np.nan
        )
        assert precision == pytest.approx(expected, abs=1e-9, nan_ok=True)


def by_pairs(labels, scores, patients):
    """Covariance of AUCs by enumerating pairs of images and patients (Obuchowski 1997)."""
    better = [(row[:, None] > row) + (row[:, None] == row) / 2 for row in scores]
    positive, negative = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    m, n = len(positive), len(negative)
    aucs = [each[np.ix_(positive, negative)].mean() for each in better]

    def total(k, who, label):
        own = np.flatnonzero((patients == who) & (labels == label))
        if label:
            return sum(better[k][i, negative].mean() - aucs[k] for i in own)
        return sum(better[k][positive, i].mean() - aucs[k] for i in own)

    everybody, found = sorted(set(patients)), np.zeros((len(scores), len(scores)))
    for a in range(len(scores)):
        for b in range(len(scores)):
            for label, size in ((1, m), (0, n)):
                who = sorted(set(patients[labels == label]))
                products = sum(total(a, one, label) * total(b, one, label) for one in who)
                found[a, b] += len(who) / (len(who) - 1) * products / size**2
            mixed = sum(total(a, one, 1) * total(b, one, 0) for one in everybody)
            mixed += sum(total(a, one, 0) * total(b, one, 1) for one in everybody)
            found[a, b] += len(everybody) / (len(everybody) - 1) * mixed / (m * n)
    return found


def rivals(sample, classifiers=3, images=30, levels=8):
    """Labels, and scores of several classifiers on a grid, so that ties are common."""
    rng = np.random.default_rng(sample)
    labels = (rng.random(images) < 0.6).astype(int)
    labels[:4] = [0, 0, 1, 1]
    scores = rng.normal(size=images) + labels + rng.normal(size=(classifiers, images))
    return labels, np.round(scores * levels / 4), rng


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32), st.integers(5, 30), st.integers(1, 20))
def test_one_image_a_patient_gives_delongs_covariance(sample, images, levels):
    labels, scores, rng = rivals(sample, images=images, levels=levels)
    aucs, covariance = delong(labels, scores, rng.permutation(images))
    assert aucs == pytest.approx([sk.roc_auc_score(labels, row) for row in scores], abs=1e-9)
    share = (scores[:, :, None] > scores[:, None]) + (scores[:, :, None] == scores[:, None]) / 2
    pairs = share[:, labels == 1][:, :, labels == 0]
    expected = (
        np.cov(pairs.mean(axis=2)) / pairs.shape[1] + np.cov(pairs.mean(axis=1)) / pairs.shape[2]
    )
    np.testing.assert_allclose(covariance, expected, atol=1e-9)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 15), st.booleans())
def test_several_images_a_patient_give_obuchowskis_covariance(sample, people, both_classes):
    labels, scores, rng = rivals(sample)
    patients = rng.integers(0, people, len(labels))
    patients[:4] = [0, 1, 0, 1]
    if not both_classes:
        patients = 2 * patients + labels
    names = np.array([f"child {number}" for number in patients])
    np.testing.assert_allclose(
        delong(labels, scores, names)[1], by_pairs(labels, scores, names), atol=1e-9
    )


def test_a_class_of_one_patient_has_no_covariance():
    labels, scores, _ = rivals(0)
    patients = np.where(labels == 1, 0, 1 + np.arange(len(labels)))
    aucs, covariance = delong(labels, scores, patients)
    assert np.isfinite(aucs).all() and np.isnan(covariance).all()


def test_delongs_interval_is_normal_around_the_mean_auc_and_cut_at_one():
    labels, scores, rng = rivals(0, images=60)
    patients = rng.integers(0, 40, len(labels))
    auc, low, high = delong_interval(labels, scores, patients)
    assert auc == pytest.approx(np.mean([sk.roc_auc_score(labels, row) for row in scores]))
    half = norm.ppf(0.975) * np.sqrt(by_pairs(labels, scores, patients).mean())
    assert (low, high) == pytest.approx((auc - half, auc + half))
    assert delong_interval(labels, -scores, patients) == pytest.approx((1 - auc, 1 - high, 1 - low))
    almost = np.array([[0.1, 0.2, 0.5, 0.4, 0.8, 0.9]])
    assert delong_interval(np.repeat([0, 1], 3), almost, np.arange(6))[2] == 1


@pytest.mark.parametrize("people", range(2, 12))
def test_patients_who_cannot_differ_leave_no_spread(people):
    # Two images of one score, one of each class: what a child adds to the AUC it also takes away.
    labels, patients = np.tile([0, 1], people), np.repeat(np.arange(people), 2)
    found = delong_interval(labels, patients[None].astype(float), patients)
    assert found == pytest.approx((0.5, 0.5, 0.5), abs=1e-6)


def test_delongs_interval_covers_the_truth_when_images_share_patients():
    # Scores N(label, 1) by patient and N(0, 0.36) by image: the true AUC is Phi(1/sqrt(2 * 1.36)).
    rng, labels, patients = (
        np.random.default_rng(0),
        np.repeat([0, 1], 180),
        np.repeat(np.arange(120), 3),
    )
    covered, naive = [], []
    for _ in range(500):
        center = rng.normal(size=120)[patients] + labels
        scores = (center + 0.6 * rng.normal(size=360))[None]
        for found, whose in ((covered, patients), (naive, np.arange(360))):
            _, low, high = delong_interval(labels, scores, whose)
            found.append(low <= norm.cdf(1 / np.sqrt(2.72)) <= high)
    assert 0.93 <= np.mean(covered) <= 0.97
    assert np.mean(naive) < 0.87
