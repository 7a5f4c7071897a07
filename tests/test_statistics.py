"""Intervals must cover: checked on simulated data, with tolerances from the binomial law of the coverage itself."""

import numpy as np
import pytest
from scipy import stats

from simbandit.guarantees.statistics import (
    expanded_percentiles,
    mean_interval,
    paired_difference_interval,
    proportion_interval,
    resampling_weights,
    slope_interval,
)


def coverage(interval_of, truth, experiments=400):
    """How often the interval holds the truth; its standard error is at most 0.011 where the coverage is 95 %."""
    hits = 0
    for seed in range(experiments):
        interval = interval_of(np.random.default_rng(seed))
        hits += bool(interval.low <= truth <= interval.high)
    return hits / experiments


@pytest.mark.parametrize("replicates", [8, 50])
def test_the_mean_interval_covers_for_normal_data(replicates):
    covered = coverage(lambda rng: mean_interval(rng.normal(3.0, 2.0, replicates)), 3.0)
    assert 0.915 <= covered <= 0.985  # 95 % +- 3 standard errors; plain percentiles at 8 replicates cover 88 %


def test_the_mean_interval_covers_for_skewed_data():
    covered = coverage(lambda rng: mean_interval(rng.lognormal(0.0, 1.0, 50)), float(np.exp(0.5)))
    assert 0.86 <= covered <= 0.97  # lognormal data are hard: published coverage at 50 is 91 to 94 %


def test_the_mean_interval_matches_students_for_normal_data():
    x = np.random.default_rng(7).normal(size=20)
    got = mean_interval(x, resamples=20_000)
    want = stats.t.interval(0.95, 19, x.mean(), x.std(ddof=1) / np.sqrt(20))
    assert got.estimate == pytest.approx(x.mean(), abs=1e-15)
    # the bootstrap spread is that of the population formula, a factor sqrt(19/20) that the percentiles undo
    np.testing.assert_allclose([got.low, got.high], want, atol=0.06)


def test_the_percentiles_widen_with_few_replicates():
    few, many = expanded_percentiles(5)[0], expanded_percentiles(5000)[0]
    assert few < 0.002 < many == pytest.approx(0.025, abs=2e-4)


def test_a_constant_has_an_interval_of_width_zero():
    interval = mean_interval(np.full(13, 0.1))
    assert interval.low == interval.high == pytest.approx(0.1, abs=1e-16)


def test_one_replicate_bounds_nothing():
    assert mean_interval([2.5])[1:] == (-np.inf, np.inf)
    assert slope_interval([1.0, 2.0], [[1.0, 2.0]])[1:] == (-np.inf, np.inf)


def test_trailing_axes_are_intervals_of_their_own():
    x = np.random.default_rng(0).normal(size=(11, 3, 2))
    together = mean_interval(x)
    alone = mean_interval(x[:, 2, 1])
    assert together.low.shape == (3, 2)
    np.testing.assert_allclose([together.low[2, 1], together.high[2, 1]], [alone.low, alone.high], rtol=1e-13)


def test_intervals_are_reproducible_and_weights_are_a_resample():
    weights = resampling_weights(6, 500)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-12)
    assert np.rint(weights * 6) == pytest.approx(weights * 6)
    assert weights.max() > 1 / 6
    x = np.random.default_rng(1).normal(size=31)
    assert mean_interval(x) == mean_interval(x.copy())


def test_pairing_sharpens_the_difference():
    rng = np.random.default_rng(3)
    shared = rng.normal(size=40)
    a, b = shared + 0.1 * rng.normal(size=40), shared + 0.1 * rng.normal(size=40) + 0.2
    paired = paired_difference_interval(b, a)
    unpaired = paired_difference_interval(b, rng.permutation(a))
    assert paired.low > 0 > unpaired.low
    assert (paired.high - paired.low) < 0.25 * (unpaired.high - unpaired.low)
    with pytest.raises(ValueError, match="second: must have the shape"):
        paired_difference_interval(a, b[:7])


def walks(rng, exponent, replicates=50, points=24):
    """Cumulative sums: what makes the points of one curve dependent."""
    x = np.arange(1.0, points + 1)
    increments = np.diff(x**exponent, prepend=0) * rng.gamma(2.0, 0.5, size=(replicates, points))
    return x, increments.cumsum(1)


def test_the_slope_interval_covers_on_dependent_curves():
    x, mean = np.arange(1.0, 25), np.arange(1.0, 25) ** 0.5
    truth = np.polyfit(np.log(x), np.log(mean), 1)[0]
    covered = coverage(lambda rng: slope_interval(*walks(rng, 0.5)), truth)
    assert 0.90 <= covered <= 0.985  # 95 %, less a little for 50 skewed replicates


def test_the_slope_is_that_of_least_squares_on_the_mean_curve():
    x, y = walks(np.random.default_rng(5), 0.7, replicates=9, points=14)
    want = np.polyfit(np.log(x), np.log(y.mean(0)), 1)[0]
    assert slope_interval(x, y).estimate == pytest.approx(want, rel=1e-12)


def test_a_slope_needs_positive_means_and_two_abscissae():
    with pytest.raises(ValueError, match="positive means"):
        slope_interval([1.0, 2.0], [[1.0, -2.0], [1.0, 1.0]])
    with pytest.raises(ValueError, match="two different values"):
        slope_interval([2.0, 2.0], [[1.0, 2.0]])
    with pytest.raises(ValueError, match=r"values: must be \(R, T\)"):
        slope_interval([1.0, 2.0, 3.0], [[1.0, 2.0]])


def test_resamples_without_a_slope_widen_the_interval():
    y = np.array([[1.0, 1.0]] * 3 + [[1.0, -2.0]] * 1 + [[1.0, 1.5]] * 3)
    interval = slope_interval([1.0, 2.0], y)
    assert interval.low == -np.inf
    assert interval.high == np.inf


def test_the_interval_of_a_share_is_clopper_and_pearsons():
    events = np.zeros((30, 3))
    events[:7, 1] = 1
    events[:, 2] = 1
    interval = proportion_interval(events)
    for column, hits in enumerate((0, 7, 30)):
        want = stats.binomtest(hits, 30).proportion_ci(method="exact")
        assert interval.estimate[column] == pytest.approx(hits / 30)
        assert (interval.low[column], interval.high[column]) == pytest.approx((want.low, want.high), abs=1e-12)
