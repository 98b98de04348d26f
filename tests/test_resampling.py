import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from xraylib.evaluation.resampling import interval, patient_draws, share_interval, unvaried


def test_patients_are_drawn_whole_and_alike_on_every_call():
    draws = patient_draws(7, 50)
    assert draws.shape == (50, 7)
    assert (draws.sum(axis=1) == 7).all()
    np.testing.assert_array_equal(draws, patient_draws(7, 50))


def test_resamples_without_a_value_are_left_out():
    assert interval(np.array([np.nan, *np.linspace(0, 1, 41)])) == pytest.approx((0.025, 0.975))
    assert np.isnan(interval(np.array([np.nan]))).all()


@pytest.mark.parametrize("all_or_none", [0, 1])
def test_all_or_none_have_wilsons_interval_over_patients(all_or_none):
    share, *ends = share_interval(np.full(12, all_or_none), np.repeat(np.arange(6), 2))
    assert share == all_or_none
    assert ends == pytest.approx(proportion_confint(6 * all_or_none, 6, method="wilson"))
    assert unvaried(0.5, 0.4, 0.6, 6) == (0.4, 0.6)


def test_images_of_one_patient_are_not_independent():
    random = np.random.default_rng(0)
    right = np.repeat(random.random(40) < 0.7, 5).astype(float)
    share, low, high = share_interval(right, np.repeat(np.arange(40), 5))
    _, as_if_low, as_if_high = share_interval(right, np.arange(200))
    assert low < share < high and share == pytest.approx(right.mean())
    assert high - low > 1.8 * (as_if_high - as_if_low)
