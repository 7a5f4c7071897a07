"""Queries to epsilon with censoring, exponents of N(epsilon), burn-in, and log against sqrt."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from simbandit.guarantees import GrowsLike, MissingData, burn_in_sensitivity, complexity, growth, queries_to
from simbandit.guarantees.sample_complexity import QueriesTo
from simbandit.guarantees.statistics import expanded_percentiles, mean_interval

COUNTS = np.array([0, 10, 20, 40, 80, 160])


def frame(values: np.ndarray, counts: np.ndarray = COUNTS, metric: str = "suboptimality") -> pd.DataFrame:
    R, T = values.shape
    return pd.DataFrame(
        {
            "replicate": np.repeat(np.arange(R), T),
            "round": np.tile(np.arange(T), R),
            "queries": np.tile(counts.astype(float), R),
            "metric": metric,
            "value": values.ravel(),
        }
    )


VALUES = np.array(
    [
        [9.0, 5.0, 0.5, 0.4, 0.3, 0.2],  # there at 20
        [9.0, 0.5, 3.0, 0.5, 0.5, 0.1],  # dips at 10, there at 40
        [9.0, 9.0, 9.0, 9.0, 9.0, 9.0],  # never
        [0.1, 0.1, 0.1, 0.1, 0.1, 0.1],  # from the start
        [9.0, 9.0, 9.0, 9.0, 0.5, 5.0],  # there, and gone again
    ]
)


def test_a_dip_does_not_count_and_never_is_censored():
    found = queries_to(frame(VALUES), 1.0)
    assert found.queries.tolist() == [20, 40, 160, 0, 160]
    assert found.censored.tolist() == [False, False, True, False, True]
    assert found.horizon == 160
    assert found.restricted_mean().estimate == pytest.approx((20 + 40 + 160 + 0 + 160) / 5)
    assert found.median() == 40


def test_epsilon_itself_is_near_enough_and_follow_ups_may_differ():
    assert queries_to(frame(np.array([[9.0, 1.0, 1.0, 1.0, 1.0, 1.0]])), 1.0).queries.tolist() == [10]
    found = QueriesTo(1.0, np.array([30.0, 50.0, 20.0]), np.array([True, False, True]))
    assert found.horizon == 20  # the shortest follow-up
    assert found.restricted_mean().estimate == 20
    assert QueriesTo(1.0, np.array([10.0, 20, 30, 40, 50]), np.zeros(5, dtype=bool)).median() == 30


def test_kaplan_meier_by_hand():
    counts, probability, low, high = queries_to(frame(VALUES), 1.0).survival()
    assert counts.tolist() == [0, 20, 40, 160]
    np.testing.assert_allclose(probability, [0.8, 0.6, 0.4, 0.4])
    greenwood = np.cumsum([1 / (5 * 4), 1 / (4 * 3), 1 / (3 * 2), 0])  # deaths / (at risk (at risk - deaths))
    reach = 1.959964 * np.sqrt(greenwood) / -np.log(probability)  # of log(-log P)
    np.testing.assert_allclose(low, probability ** np.exp(reach), rtol=1e-6)
    np.testing.assert_allclose(high, probability ** np.exp(-reach), rtol=1e-6)
    counts, probability, low, high = queries_to(frame(VALUES[[0, 1, 3]]), 1.0).survival()
    assert probability.tolist() == pytest.approx([2 / 3, 1 / 3, 0])
    assert (low[-1], high[-1]) == (0, 1)  # all got there: nothing is known beyond


def test_an_epsilon_that_no_run_reached_is_censored_not_invented():
    found = queries_to(frame(VALUES), 1e-3)
    assert found.censored.all()
    assert found.median() == np.inf
    assert found.restricted_mean().estimate == 160  # a lower bound: nobody got there by 160
    counts, probability, _, _ = found.survival()
    assert probability.min() == 1.0
    assert counts.tolist() == [160]
    table = complexity(frame(VALUES), [1e-3, 1e-4]).table
    assert np.isinf(table["median"].to_numpy()).all()
    assert table["censored"].tolist() == [1, 1]


def test_bad_questions_are_refused():
    with pytest.raises(ValueError, match="epsilon: must be > 0"):
        queries_to(frame(VALUES), 0.0)
    with pytest.raises(MissingData, match="metric 'duality_gap' was not recorded"):
        queries_to(frame(VALUES), 0.1, metric="duality_gap")


EPSILONS = np.array([1, 1 / 4, 1 / 32])


def steps(first: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Gaps (R, T) that are at most epsilons[e] from the count first[r, e] on; np.inf: never."""
    gaps = np.full((len(first), len(counts)), 9.0)
    for e in range(first.shape[1]):
        gaps[counts[None] >= first[:, e, None]] = EPSILONS[e]
    return gaps


@pytest.mark.parametrize("missed", [0, 2])
def test_the_bootstrap_of_the_exponent_is_that_of_all_resamples(missed):
    """6 replicates have 6^6 resamples: the ends lie where the exact law of the slope has them. A resample in which half
    miss the finest epsilon (one in ten, with 2 of 6 missing it) is infinitely steep, and not as steep as the end of the
    record is far."""
    counts = np.unique(np.geomspace(1, 4000, 60).round())
    first = np.array([[3, 20, 100], [4, 15, 300], [2, 30, 180], [6, 22, 500], [5, 9, 240], [7, 13, 800]], dtype=float)
    first = counts[np.searchsorted(counts, first)]
    first[:missed, 2] = np.inf
    found = complexity(frame(steps(first, counts), counts), EPSILONS.tolist(), resamples=20_000)
    resample = np.stack(np.meshgrid(*[np.arange(6)] * 6), -1).reshape(-1, 6)
    medians = np.sort(first[resample], axis=1)[:, 2]  # the lower one
    finite = np.isfinite(medians).all(1)
    q = expanded_percentiles(6)[0]
    row: Any
    for skipped, row in enumerate(found.burn_in.itertuples(index=False)):
        at, kept = np.log(1 / EPSILONS)[skipped:], slice(skipped, None)
        exact = np.full(len(resample), np.inf)
        exact[finite] = np.polyfit(at, np.log(medians[finite][:, kept]).T, 1)[0]
        lowest, highest = np.quantile(exact, [q / 2, 3 * q / 2], method="nearest")
        assert lowest - 1e-9 <= row.low <= highest + 1e-9
        lowest, highest = np.quantile(exact, [1 - 3 * q / 2, 1 - q / 2], method="nearest")
        assert lowest - 1e-9 <= row.high <= highest + 1e-9
        assert np.isinf(row.high) == (missed > 0)
        assert row.exponent == pytest.approx(np.polyfit(at, np.log(np.sort(first, axis=0)[2, kept]), 1)[0])
    assert len(found.burn_in) == 2
    assert found.exponent == tuple(found.burn_in[["exponent", "low", "high"]].iloc[0])


def test_the_bootstrap_draws_as_many_replicates_as_there_are():
    """Where all reach the coarse epsilon at once the slope grows with the fine one's median, whose bootstrap law is
    binomial: at most the k-th of 30 counts when at least 15 of 30 draws are among the first k."""
    counts, k = np.arange(1, 400), np.arange(1, 31)
    first = np.stack([np.full(30, 10), 20 + 7 * k], axis=1).astype(float)
    found = complexity(frame(steps(first, counts), counts), EPSILONS[:2].tolist(), resamples=20_000).exponent
    slopes, law, q = np.log(first[:, 1] / 10) / np.log(4), stats.binom.sf(14, 30, k / 30), expanded_percentiles(30)[0]
    for end, share in ((found.low, q), (found.high, 1 - q)):
        lowest, highest = (slopes[np.searchsorted(law, share + shift)] for shift in (-0.2 * q, 0.2 * q))
        assert lowest - 1e-9 <= float(end) <= highest + 1e-9


def test_one_replicate_bounds_no_exponent_and_medians_of_zero_have_none():
    counts = np.array([0, 1, 2, 4, 8, 16, 32])
    found = complexity(frame(steps(np.array([[0.0, 2, 32]]), counts), counts), EPSILONS.tolist())
    assert found.table["median"].tolist() == [0, 2, 32]
    assert found.exponent == (pytest.approx(4 / 3), -np.inf, np.inf)  # 16 times the queries for an eighth of the gap


def test_the_restricted_mean_stops_at_the_shortest_follow_up():
    found = QueriesTo(1.0, np.array([30.0, 50.0, 20.0, 10.0, 40.0]), np.array([True, False, False, False, True]))
    assert found.horizon == 30
    restricted = found.restricted_mean()
    assert restricted.estimate == pytest.approx((30 + 30 + 20 + 10 + 30) / 5)
    assert restricted == mean_interval([30, 30, 20, 10, 30])
    assert QueriesTo(1.0, np.array([10.0, 20.0, 70.0]), np.zeros(3, dtype=bool)).horizon == 70
    half = QueriesTo(1.0, np.array([10.0, 20.0, 30.0, 40.0]), np.array([False, False, True, True]))
    assert half.median() == 20  # where the curve is 1/2


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_the_exponent_of_sample_complexity_is_that_of_the_gap(power):
    """A gap c t^-power needs N ~ epsilon^(-1/power) queries: 1 and 2."""
    rng, counts = np.random.default_rng(0), np.unique(np.geomspace(1, 1e5, 400).round())
    gaps = np.exp(0.3 * rng.normal(size=(40, 1))) * 3 * counts**-power
    epsilons = [0.5, 0.25, 0.12, 0.06]
    found = complexity(frame(gaps, counts), epsilons)
    assert found.table["censored"].tolist() == [0, 0, 0, 0]
    assert float(found.exponent.low) <= float(found.exponent.estimate) <= float(found.exponent.high)
    assert float(found.exponent.estimate) == pytest.approx(1 / power, rel=0.03)
    half = complexity(frame(gaps, counts), [0.5, 0.25, 1e-9])  # what nobody reached is left out
    assert float(half.exponent.estimate) == pytest.approx(1 / power, rel=0.06)
    one = complexity(frame(gaps, counts), [0.5, 1e-9]).exponent
    assert np.isnan(one.estimate)


def test_leaving_out_coarse_epsilons_shows_where_their_exponent_is_not_asymptotic():
    """A gap that waits for 2,000 queries and then falls like 1 / t: N = 2,000 + c / epsilon, exponent 1 in the end."""
    rng, counts = np.random.default_rng(0), np.unique(np.geomspace(1, 1e6, 600).round())
    scale = np.exp(0.1 * rng.normal(size=(30, 1)))
    waits = np.where(counts < 2000, 1.0, scale / (1 + (counts - 2000) / 50))
    found = complexity(frame(waits, counts), [0.3, 0.001, 0.1, 0.003, 0.01, 0.03], resamples=300).burn_in
    assert found["largest_epsilon"].tolist() == [0.3, 0.1, 0.03, 0.01, 0.003]
    assert found["points"].tolist() == [6, 5, 4, 3, 2]
    assert found["exponent"].is_monotonic_increasing
    assert found["exponent"].iloc[0] < 0.75
    assert found["exponent"].iloc[-1] == pytest.approx(1, abs=0.08)
    assert (found["low"].to_numpy() <= found["exponent"].to_numpy()).all()
    whole = complexity(frame(waits, counts), [0.3, 0.1, 0.03, 0.01, 0.003, 0.001], resamples=300).exponent
    assert found["exponent"].iloc[0] == pytest.approx(float(whole.estimate))
    assert complexity(frame(waits, counts), [0.3, 1e-9]).burn_in.empty


def test_burn_in_shows_where_an_exponent_is_not_asymptotic():
    rng, t = np.random.default_rng(0), np.geomspace(10, 1e5, 60)
    noise = np.exp(0.02 * rng.normal(size=(30, 1)))
    settled = burn_in_sensitivity(t, noise * t**0.5)
    assert np.ptp(settled["exponent"]) < 1e-9
    moving = burn_in_sensitivity(t, noise * (100 * (1 - np.exp(-t / 100)) + t**0.5))
    assert moving["exponent"].iloc[-1] > moving["exponent"].iloc[0] + 0.05
    assert moving["points"].is_monotonic_decreasing


def test_a_burn_in_keeps_what_lies_beyond_its_share_of_the_last_x():
    t = np.array([0, 1, 2, 4, 8, 16, 32, 64])
    values = np.random.default_rng(0).gamma(3.0, size=(9, 8)).cumsum(1)
    found = burn_in_sensitivity(t, values)
    assert found["burn_in"].tolist() == [0, 0.05, 0.1, 0.25]  # half of 64 leaves two points: no slope to judge
    assert found["points"].tolist() == [7, 5, 4, 3]
    for points, exponent in zip(found["points"], found["exponent"], strict=True):
        expected = np.polyfit(np.log(t[-points:]), np.log(values.mean(0)[-points:]), 1)[0]
        assert exponent == pytest.approx(expected)


def test_the_residuals_of_both_models_by_hand_and_one_replicate_decides_nothing():
    t = np.array([1.0, 2.0, 5.0, 9.0, 30.0])
    values = np.array([[1.0, 4.0, 5.0, 9.0, 12.0], [3.0, 2.0, 6.0, 7.0, 15.0], [2.0, 2.0, 4.0, 8.0, 10.0]])
    found, mean = growth(t, values), values.mean(0)
    for regressor, residual in ((np.log(t), found.residual_log), (np.sqrt(t), found.residual_sqrt)):
        fitted = np.polyval(np.polyfit(regressor, mean, 1), regressor)
        assert residual == pytest.approx(np.sqrt(((mean - fitted) ** 2).mean()) / np.ptp(mean))
    alone = growth(t, np.log(t)[None])
    assert (alone.model, alone.share_log) == ("undecided", 1.0)


def test_log_against_sqrt():
    rng, t = np.random.default_rng(0), np.geomspace(10, 1e4, 40)
    scale = 1 + 0.2 * rng.normal(size=(30, 1))
    assert growth(t, scale * (3 + 5 * np.log(t))).model == "log"
    assert growth(t, scale * (3 + 5 * np.sqrt(t))).model == "sqrt"
    walk = np.cumsum(rng.normal(size=(30, 40)), axis=1)
    between = growth(t, 3 * t**0.24 + walk)
    assert between.model == "undecided"
    assert 0.05 < between.share_log < 0.95
    with pytest.raises(ValueError, match="x, values: "):
        growth(t[:3], walk[:, :3])


def test_a_claim_of_growth_is_judged_in_its_window():
    rng, t = np.random.default_rng(0), np.array([1, 2, 4, 8, 16, 32, 64, 128, 256])
    bent = (1 + 0.2 * rng.normal(size=(30, 1))) * np.where(t < 16, 50 * np.sqrt(t), 150 + 50 * np.log(t / 9))
    rows = frame(bent, t)
    late = GrowsLike("late", "s", "suboptimality", {}, "log", window=(16, np.inf)).judge(rows)
    assert (late.verdict, late.measured) == ("holds", 1.0)
    early = GrowsLike("early", "s", "suboptimality", {}, "log", window=(0, 15)).judge(rows)
    assert (early.verdict, early.measured) == ("fails", 0.0)
    root = GrowsLike("early", "s", "suboptimality", {}, "sqrt", window=(0, 15)).judge(rows)
    assert (root.verdict, root.measured) == ("holds", 1.0)
    inclusive = GrowsLike("four", "s", "suboptimality", {}, "log", window=(32, 256)).judge(rows)
    assert inclusive.verdict == "holds"
    with pytest.raises(MissingData, match="fewer than four values of queries"):
        GrowsLike("few", "s", "suboptimality", {}, "log", window=(100, 300)).judge(rows)
