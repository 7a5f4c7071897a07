"""Bounds: their numbers by hand and by other routes, where they fall silent, and how they are judged and drawn."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from numpy.polynomial.hermite_e import hermegauss
from scipy.special import xlogy
from scipy.stats import binom

from simbandit.guarantees import Parameters, Respects, bounds
from simbandit.guarantees.statistics import LEVEL, mean_interval, slope_interval
from simbandit.plotting import FADED, GREY, overlay, panels, parameter_sweep
from tests.cases import rows

SMALL = Parameters(rounds=100, dim=2, n_actions=5)


def test_oful_by_hand():
    """d log(1 + T / d) = 2 log 51 = 7.8637; radius = sqrt(2 log 20 + 7.8637) + 1 = 4.7222; 4 sqrt(786.37) 4.7222."""
    assert SMALL.radius == pytest.approx(4.7222, abs=1e-4)
    assert bounds.OFUL(SMALL) == pytest.approx(529.68, abs=0.05)
    assert bounds.OFUL_GAP(replace(SMALL, gap=0.5)) == pytest.approx(8 * 4.7222**2 * 7.8637 / 0.5, rel=1e-4)
    assert bounds.OFUL_GAP(SMALL) == math.inf
    louder = replace(SMALL, noise_std=3.0, theta_norm=2.0, feature_norm=0.5, ridge=4.0)
    information = 2 * math.log(1 + 100 * 0.25 / (4 * 2))
    radius = 3 * math.sqrt(2 * math.log(20) + information) + 2 * 2
    assert bounds.OFUL(louder) == pytest.approx(4 * math.sqrt(100 * 2 * math.log(4 + 100 * 0.25 / 2)) * radius)


def test_squarecb_by_hand_and_that_gaussian_noise_voids_it():
    """Reg = 2 log 51 = 7.8637, K T = 500: 2 (4 sqrt(500 7.8637) + 8 sqrt(500 log 40))."""
    assert bounds.SQUARECB(SMALL) == pytest.approx(2 * (4 * 62.704 + 8 * 42.947), rel=1e-4)
    assert bounds.SQUARECB(replace(SMALL, theta_norm=5.0, feature_norm=0.6)) == pytest.approx(
        3 * bounds.SQUARECB(SMALL)
    )
    assert "Gaussian noise" in bounds.SQUARECB.broken(SMALL)[0]
    assert bounds.SQUARECB.broken(replace(SMALL, noise_std=0.0)) == ()


def test_lower_bounds_take_the_best_number_of_rounds():
    def brute(p, value):
        return max(value(m) for m in np.arange(1, p.rounds + 1))

    for coordinate in (0.02, 0.3):
        p = Parameters(rounds=700, dim=3, n_actions=8, noise_std=0.5, coordinate=coordinate, family="cube")
        best = brute(p, lambda m, c=coordinate: 3 * m * c * math.exp(-2 * m * c**2 / 0.25) / 8)
        assert bounds.CUBE(p) == pytest.approx(best, rel=1e-12)
    theirs = Parameters(rounds=400, dim=3, n_actions=8, family="cube")
    assert bounds.CUBE(replace(theirs, coordinate=1 / 20)) == pytest.approx(math.exp(-1) * 3 * 200 / 20 / 8)  # m = 200
    assert bounds.CUBE(replace(theirs, coordinate=1 / 20)) >= math.exp(-2) * 3 * 20 / 8
    assert bounds.BALL(theirs) == pytest.approx(3 * 20 / (16 * math.sqrt(3)))
    for gap in (0.01, 0.4):
        p = Parameters(rounds=900, dim=4, n_actions=4, noise_std=2.0, gap=gap)
        best = brute(p, lambda m, g=gap: g * m * (0.75 - g / 4 * math.sqrt(m / 4)))
        assert bounds.RANDOM_ARM(p) == pytest.approx(best, rel=1e-12)
    assert bounds.RANDOM_ARM(Parameters(rounds=900, dim=4, n_actions=4)) == pytest.approx(0.75**2 * 60 / 2)
    loud = replace(theirs, noise_std=3.0)  # worst cases over the gap scale with the noise
    for bound in (bounds.CUBE, bounds.BALL, bounds.RANDOM_ARM):
        assert bound(loud) == pytest.approx(3 * bound(theirs))
    assert bounds.RANDOM_ARM(replace(theirs, gap=30.0)) == 0  # so large that one round finds it: nothing is claimed


def bayes_regret(p):
    """The exact least mean regret over signed contexts: the posterior's Gibbs policy, by quadrature."""
    nodes, weights = hermegauss(80)
    weights = weights / weights.sum()
    spread = 4 * p.coordinate**2 / p.kl_coef**2

    def mean(variance):  # E h(N(0, variance)), h(u) = log 2 cosh(u / 2)
        return np.logaddexp(*(np.sqrt(variance)[..., None] * nodes * sign / 2 for sign in (1, -1))) @ weights

    total, n = 0.0, np.arange(p.rounds + 1)
    left = 4 / (1 / p.coordinate**2 + n / p.noise_std**2) / p.kl_coef**2
    gaps = p.kl_coef * (mean(np.array(spread)) - mean(np.clip(spread - left, 0, None)))
    for t in range(int(p.rounds)):
        total += binom.pmf(n, t, 1 / p.dim) @ gaps
    return total


@pytest.mark.parametrize("kl_coef", [5.0, 0.3])
def test_the_kl_lower_bounds_by_hand(kl_coef):
    """What flattens them is E exp(-(theta / kl_coef)^2) over the prior, here by quadrature; squared for duels, whose
    labels have an information of at most 1 whatever noise a reward would have."""
    p = Parameters(150, 3, 2, noise_std=0.7, kl_coef=kl_coef, coordinate=0.4, family="signed_contexts")
    theta = np.linspace(-4, 4, 20_001)
    density = np.exp(-((theta / 0.4) ** 2) / 2) / (0.4 * np.sqrt(2 * np.pi))
    flat = np.trapezoid(density * np.exp(-((theta / kl_coef) ** 2)), theta)
    assert bounds.KL_CONTEXTS(p) == pytest.approx(3 * 0.49 / (2 * kl_coef) * np.log(1 + 0.16 * 150 / (3 * 0.49)) * flat)
    assert bounds.KL_DUELS(p) == pytest.approx(3 / (2 * kl_coef) * np.log(1 + 0.16 * 150 / 3) * flat**2)


@pytest.mark.parametrize(("kl_coef", "tightness"), [(5.0, 1.1), (0.5, 2.5)])
def test_the_kl_lower_bound_lies_below_the_exact_bayes_regret_and_near_it(kl_coef, tightness):
    p = Parameters(150, 3, 2, noise_std=0.7, kl_coef=kl_coef, coordinate=0.4, family="signed_contexts")
    exact = bayes_regret(p)
    assert bounds.KL_CONTEXTS(p) <= exact <= tightness * bounds.KL_CONTEXTS(p)
    with pytest.raises(ValueError, match=r"parameters: .*kl_coef"):
        bounds.KL_CONTEXTS(replace(p, kl_coef=None))


@pytest.mark.parametrize(("kl_coef", "tightness"), [(5.0, 1.15), (0.5, 3.0)])
def test_the_duelling_lower_bound_against_the_exact_posterior(kl_coef, tightness):
    """One context, every duel between its two actions: the posterior on a grid, the best policy, its gap."""
    p = Parameters(40, 1, 2, kl_coef=kl_coef, coordinate=0.4, family="signed_contexts")
    theta, weights = hermegauss(120)
    theta, weights = 0.4 * theta, weights / weights.sum()
    u, exact = 2 * theta / kl_coef, 0.0
    for n in range(40):
        k = np.arange(n + 1)[:, None]
        joint = weights * binom.pmf(k, n, 1 / (1 + np.exp(-2 * theta)))  # (wins, theta)
        mass = joint.sum(1)
        mean, curved = joint @ u / mass, joint @ np.logaddexp(u / 2, -u / 2) / mass
        exact += kl_coef * float(mass @ (curved - np.logaddexp(mean / 2, -mean / 2)))
    assert bounds.KL_DUELS(p) <= exact <= tightness * bounds.KL_DUELS(p)


def test_optimism_costs_at_most_the_squared_width():
    """The step behind KL_UCB: J(pi*) - J(pi_f) <= E_f D^2 / (2 kl_coef), and <= E_f D, for f = r + D with D >= 0."""
    random, kl_coef = np.random.default_rng(1), 0.3
    rewards, wide = random.normal(size=(400, 7)), random.exponential(size=(400, 7)) * random.random((400, 1))

    def gibbs(values):
        tilted = np.exp(values / kl_coef)
        return tilted / tilted.sum(1, keepdims=True)

    best, played = gibbs(rewards), gibbs(rewards + wide)
    gap = kl_coef * (xlogy(played, played / best)).sum(1)
    assert (gap <= (played * wide**2).sum(1) / (2 * kl_coef) + 1e-12).all()
    assert (gap <= (played * wide).sum(1) + 1e-12).all()
    pessimistic = gibbs(rewards - wide)  # without optimism it can fail
    gap = kl_coef * (xlogy(pessimistic, pessimistic / best)).sum(1)
    assert (gap > (pessimistic * wide**2).sum(1) / (2 * kl_coef)).any()
    p = replace(SMALL, kl_coef=0.1)
    information = 2 * math.log(51)
    assert bounds.KL_UCB(replace(p, kl_coef=50.0)) == pytest.approx(4 * SMALL.radius**2 * information / 50)
    assert bounds.KL_UCB(p) == bounds.KL_UCB(SMALL) == pytest.approx(2 * SMALL.radius * math.sqrt(200 * information))


def test_bounds_say_why_they_do_not_apply():
    assert bounds.OFUL.broken(SMALL) == ()
    assert bounds.OFUL.broken(replace(SMALL, theta_norm=3.0)) == ("needs |<phi, theta*>| <= 1; it may reach 3",)
    assert bounds.OFUL.broken(replace(SMALL, feature_norm=4.0)) == ("needs |<phi, theta*>| <= 1; it may reach 4",)
    assert bounds.OFUL.broken(replace(SMALL, feature_norm=4.0, theta_norm=0.25)) == ()
    for bound in (bounds.OFUL_GAP, bounds.KL_UCB):
        assert "ridge >= max(1, L^2) = 4" in bound.broken(replace(SMALL, feature_norm=2.0, gap=0.1))[0]
        assert "max(1, L^2) = 1; it is 0.5" in bound.broken(replace(SMALL, feature_norm=0.1, ridge=0.5))[0]
    for bound in (bounds.KL_CONTEXTS, bounds.KL_DUELS, bounds.RANDOM_ARM):
        assert len(bound.broken(replace(SMALL, family="cube"))) == 1
    assert "the cube" in bounds.CUBE.broken(replace(SMALL, family="random_arm"))[0]
    assert bounds.CUBE.broken(replace(SMALL, family="cube")) == ()
    assert len(bounds.BALL.broken(Parameters(rounds=3, dim=7, n_actions=2))) == 2


def swept(values, dims=(2, 4, 8)):
    """A frame of cells at three dimensions: values (R, 3) at the last round, something else before."""
    return pd.concat(
        rows(np.stack([0 * column, column], axis=1), "regret", (0, 100)).assign(dim=dim, rule="a")
        for dim, column in zip(dims, np.asarray(values, dtype=float).T, strict=True)
    )


def at_dim(value):
    return Parameters(rounds=100, dim=int(value), n_actions=5, family="cube", theta_norm=1.0 if value < 8 else 2.0)


@pytest.mark.parametrize(
    ("factors", "bound", "verdict", "measured"),
    [
        ((0.1, 0.9, 7.0), bounds.OFUL, "holds", 0.9),  # the third lies above, but is not covered
        ((0.1, 1.2, 0.1), bounds.OFUL, "fails", 1.2),
        ((3.0, 2.0, 1.5), bounds.CUBE, "holds", 1.5),
        ((3.0, 2.0, 0.5), bounds.CUBE, "fails", 0.5),
        ((1.0, 1.0, 1.0), bounds.RANDOM_ARM, "undecided", math.nan),
    ],
)
def test_a_bound_is_judged_where_its_assumptions_hold(factors, bound, verdict, measured):
    noise = 1 + 0.01 * np.linspace(-1, 1, 21)[:, None]
    values = noise * np.array(factors) * [bound(at_dim(d)) for d in (2, 4, 8)]
    judged = Respects("a", "regret", {"rule": "a"}, bound, at_dim, "dim").judge(swept(values))
    assert (judged.verdict, judged.source) == (verdict, bound.source)
    assert judged.measured == pytest.approx(measured, nan_ok=True)


@pytest.mark.parametrize("bound", [bounds.OFUL, bounds.CUBE])
def test_a_ratio_whose_interval_reaches_one_is_undecided(bound):
    spread = np.linspace(0.5, 1.5, 21)[:, None] + (-0.03 if bound.side == "upper" else 0.03)
    values = spread * [bound(at_dim(d)) for d in (2, 4, 8)]
    judged = Respects("a", "regret", {}, bound, lambda _: at_dim(2), "dim").judge(swept(values[:, :1], (2,)))
    assert judged.verdict == "undecided"
    assert (judged.measured < 1) == (bound.side == "upper")


def test_judging_takes_its_own_rows_the_bound_of_each_value_and_a_simultaneous_interval():
    """Valid only at the last two of three values; another rule in the frame would break the bound."""
    noise = 1 + 0.2 * np.linspace(-1, 1, 21)[:, None]
    dims = (2, 4, 7)
    ratios = noise * np.array([9.0, 0.5, 0.8])
    frame = swept(ratios * [bounds.OFUL(at_dim(d)) for d in dims], dims)
    other = swept(9 * np.ones((21, 3)) * bounds.OFUL(at_dim(7)), dims).assign(rule="b")

    def given(dim):
        return replace(at_dim(dim), theta_norm=2.0) if dim == 2 else at_dim(dim)

    judged = Respects("a", "regret", {"rule": "a"}, bounds.OFUL, given, "dim").judge(pd.concat([frame, other]))
    assert judged.verdict == "holds"
    assert judged.measured == pytest.approx(0.8)
    both = mean_interval(ratios[:, 1:], 1 - (1 - LEVEL) / 2)
    assert (judged.low, judged.high) == (pytest.approx(both.low[1]), pytest.approx(both.high[1]))


def test_a_sweep_is_drawn_with_its_exponent_and_its_bounds_grey_where_they_fail():
    noise = np.exp(0.1 * np.random.default_rng(0).normal(size=(13, 1)))
    frame = swept(noise * np.array([2.0, 4.0, 8.0]) ** 1.5)
    _, axes = panels()
    ax = axes[0, 0]
    slopes = parameter_sweep(ax, frame, "regret", "rule", "dim", bounds=[bounds.OFUL], parameters=at_dim)
    assert float(slopes["a"].estimate) == pytest.approx(1.5)
    expected = slope_interval([2, 4, 8], noise * np.array([2.0, 4.0, 8.0]) ** 1.5)
    assert slopes["a"] == expected
    assert ax.get_legend().get_texts()[0].get_text() == "a +1.50"
    assert (ax.get_xscale(), ax.get_yscale(), ax.get_xlabel()) == ("log", "log", "dimension d")
    lines = {to_hex(line.get_color()): line for line in ax.lines[1:3]}
    grey, faded = (np.asarray(lines[color].get_ydata(), dtype=float) for color in (GREY, FADED))
    np.testing.assert_allclose(grey[:2], [bounds.OFUL(at_dim(2)), bounds.OFUL(at_dim(4))])
    np.testing.assert_allclose(faded[3:5], [bounds.OFUL(at_dim(4)), bounds.OFUL(at_dim(8))])
    assert np.isnan(grey[3:]).all()
    assert np.isnan(faded[:3]).all()
    assert "needs |<phi, theta*>| <= 1;\nit may reach 2" in ax.texts[0].get_text()
    _, axes = panels()
    assert overlay(axes[0, 0], bounds.CUBE, at_dim, (2, 4, 8)) == ()
    assert axes[0, 0].texts[0].get_text() == "any, on the cube"
    slopes = parameter_sweep(axes[0, 0], frame, "regret", "rule", "dim", window=(3, 9))
    assert float(slopes["a"].estimate) == pytest.approx(1.5)
