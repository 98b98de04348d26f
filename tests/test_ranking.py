import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn import metrics as sk
from test_metrics import judged

from xraylib.evaluation.ranking import delong, delong_interval, weighted_auc, weighted_ranking

pytestmark = pytest.mark.filterwarnings("error")


@st.composite
def weighted(draw):
    labels, scores = draw(judged())
    row = st.lists(
        st.sampled_from([0, 0.3, 1, 2, 7.5]) | st.floats(0.01, 10), min_size=len(labels), max_size=len(labels)
    )
    return labels, scores, np.array(draw(st.lists(row, min_size=1, max_size=3)), dtype=float)


@settings(max_examples=150, deadline=None)
@given(weighted(), st.floats(-1e3, 1e3), st.floats(0.1, 1e3))
def test_weighted_figures_are_those_of_scikit_learn_in_any_range(data, shift, scale):
    labels, scores, weights = data
    scores = scale * scores + shift
    assume(len(np.unique(scores)) == len(np.unique(data[1])))
    aucs, precisions = weighted_ranking(labels == 1, scores, weights)
    np.testing.assert_array_equal(weighted_auc(labels == 1, scores, weights), aucs)
    for row, auc, precision in zip(weights, aucs, precisions, strict=True):
        ill, well = row[labels == 1].sum(), row[labels == 0].sum()
        if ill and well:
            assert auc == pytest.approx(sk.roc_auc_score(labels, scores, sample_weight=row), abs=1e-9)
        else:
            assert np.isnan(auc)
        if ill:
            expected = sk.average_precision_score(labels, scores, sample_weight=row)
            assert precision == pytest.approx(expected, abs=1e-9)
        else:
            assert np.isnan(precision)


def heights(labels, scores):
    """AUC, and of each image how large a share of the other class it beats or is beaten by."""
    share = np.empty(len(labels))
    for i, (label, score) in enumerate(zip(labels, scores, strict=True)):
        others = [other for at, other in zip(labels, scores, strict=True) if at != label]
        beaten = [(score > other) + (score == other) / 2 for other in others]
        share[i] = np.mean(beaten) if label else 1 - np.mean(beaten)
    return share[labels == 1].mean(), share


def delong_of_images(labels, scores):
    """DeLong, DeLong and Clarke-Pearson 1988, by pairs of images."""
    share = np.array([heights(labels, row)[1] for row in scores])
    ill, well = share[:, labels == 1], share[:, labels == 0]
    return np.cov(ill) / ill.shape[1] + np.cov(well) / well.shape[1]


def obuchowski(labels, scores, patients):
    """Obuchowski 1997, patient by patient, for each two classifiers."""
    aucs, share = zip(*(heights(labels, row) for row in scores), strict=True)
    everybody = sorted(set(patients))
    m, n = (labels == 1).sum(), (labels == 0).sum()

    def total(k, who, label):
        own = (patients == who) & (labels == label)
        return share[k][own].sum() - own.sum() * aucs[k]

    found = np.zeros((len(scores), len(scores)))
    for a in range(len(scores)):
        for b in range(len(scores)):
            for label, size in ((1, m), (0, n)):
                who = sorted(set(patients[labels == label]))
                products = sum(total(a, one, label) * total(b, one, label) for one in who)
                found[a, b] += len(who) / ((len(who) - 1) * size) * products / size
            mixed = sum(total(a, one, 1) * total(b, one, 0) for one in everybody)
            mixed += sum(total(a, one, 0) * total(b, one, 1) for one in everybody)
            found[a, b] += len(everybody) / (len(everybody) - 1) * mixed / (m * n)
    return found


def rivals(draw, classifiers=3, images=40, levels=8):
    """Labels, and scores of several classifiers on a grid, so that ties are common."""
    random = np.random.default_rng(draw)
    labels = (random.random(images) < 0.6).astype(int)
    labels[:4] = [0, 0, 1, 1]
    truth = random.normal(size=images) + labels
    scores = truth + random.normal(size=(classifiers, images))
    return labels, np.round(scores * levels / 4), random


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(5, 40), st.integers(1, 20))
def test_one_image_a_patient_gives_delongs_covariance(draw, images, levels):
    labels, scores, random = rivals(draw, images=images, levels=levels)
    aucs, covariance = delong(labels, scores, random.permutation(images))
    assert aucs == pytest.approx([sk.roc_auc_score(labels, row) for row in scores], abs=1e-9)
    np.testing.assert_allclose(covariance, delong_of_images(labels, scores), atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 15), st.booleans())
def test_several_images_a_patient_give_obuchowskis_covariance(draw, people, turncoats):
    labels, scores, random = rivals(draw)
    patients = random.integers(0, people, len(labels))
    patients[:4] = [0, 1, 0, 1]
    if not turncoats:
        patients = 2 * patients + labels
    names = np.array([f"child {number}" for number in patients])
    aucs, covariance = delong(labels, scores, names)
    assert aucs == pytest.approx([sk.roc_auc_score(labels, row) for row in scores], abs=1e-9)
    np.testing.assert_allclose(covariance, obuchowski(labels, scores, names), atol=1e-9)


def test_the_order_of_the_images_does_not_matter():
    labels, scores, random = rivals(0)
    patients, order = random.integers(0, 12, len(labels)), random.permutation(len(labels))
    for first, second in zip(
        delong(labels, scores, patients),
        delong(labels[order], scores[:, order], patients[order]),
        strict=True,
    ):
        np.testing.assert_allclose(first, second, atol=1e-12)


@pytest.mark.parametrize("draw", [0, 4])
def test_a_class_of_one_patient_has_no_covariance(draw):
    labels, scores, _ = rivals(draw)
    patients = np.where(labels == 1, 0, 1 + np.arange(len(labels)))
    aucs, covariance = delong(labels, scores, patients)
    assert np.isfinite(aucs).all() and np.isnan(covariance).all()


def test_the_interval_is_that_of_the_normal_law():
    labels, scores, random = rivals(0, classifiers=1, images=100)
    patients = random.integers(0, 60, len(labels))
    auc, low, high = delong_interval(labels, scores, patients)
    sd = np.sqrt(obuchowski(labels, scores, patients).item())
    assert [low, auc, high] == pytest.approx([auc - 1.959964 * sd, auc, auc + 1.959964 * sd], abs=1e-6)
    _, least, most = delong_interval(labels, scores, patients, level=0.99)
    assert most - least == pytest.approx((high - low) * norm.ppf(0.995) / norm.ppf(0.975))


def test_the_interval_is_of_the_mean_over_classifiers():
    labels, scores, random = rivals(1, images=100)
    patients = random.integers(0, 60, len(labels))
    auc, low, high = delong_interval(labels, scores, patients)
    assert auc == pytest.approx(np.mean([sk.roc_auc_score(labels, row) for row in scores]))
    alone = [delong_interval(labels, row[None], patients) for row in scores]
    assert high - low < np.mean([end - start for _, start, end in alone])
    again = delong_interval(labels, np.repeat(scores[:1], 3, axis=0), patients)
    assert again == pytest.approx(alone[0])


def test_turned_scores_have_the_mirrored_interval():
    labels, scores, _ = rivals(2, images=100)
    patients = np.arange(100)
    auc, low, high = delong_interval(labels, scores, patients)
    assert delong_interval(labels, -scores, patients) == pytest.approx((1 - auc, 1 - high, 1 - low))


def test_the_interval_stays_within_zero_and_one():
    labels = np.array([0, 0, 0, 1, 1, 1])
    scores = np.array([[0.1, 0.2, 0.5, 0.4, 0.8, 0.9]])
    auc, low, high = delong_interval(labels, scores, np.arange(6))
    assert 0 < low < auc < high == 1
    assert delong_interval(labels, -scores, np.arange(6))[1] == 0


@pytest.mark.parametrize("people", range(2, 30))
def test_patients_who_cannot_differ_leave_no_spread(people):
    # Two images of one score, one of each class: what a child adds to the AUC it also takes away.
    labels, patients = np.tile([0, 1], people), np.repeat(np.arange(people), 2)
    found = delong_interval(labels, patients[None].astype(float), patients)
    assert found == pytest.approx((0.5, 0.5, 0.5), abs=1e-6)


def test_the_interval_covers_the_truth_when_images_share_patients():
    # Scores N(label, 1) by patient and N(0, .36) by image: the true AUC is Phi(1/sqrt(2 * 1.36)).
    random, labels, patients = np.random.default_rng(0), np.repeat([0, 1], 180), np.repeat(np.arange(120), 3)
    held, naive = [], []
    for _ in range(500):
        centre = random.normal(size=120)[patients] + labels
        scores = (centre + 0.6 * random.normal(size=360))[None]
        for found, whose in ((held, patients), (naive, np.arange(360))):
            _, low, high = delong_interval(labels, scores, whose)
            found.append(low <= norm.cdf(1 / np.sqrt(2.72)) <= high)
    assert 0.93 <= np.mean(held) <= 0.97
    assert np.mean(naive) < 0.87
