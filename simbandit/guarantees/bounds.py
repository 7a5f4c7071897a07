"""Bounds of theorems as objects: what they say at a problem's numbers, and why they say nothing where an assumption
fails.

Upper bounds are an algorithm's, lower bounds hold for every algorithm over a family of worlds, whose members must have
been drawn as the proof draws them: then they bound the mean over replicates, and `Respects` judges them there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd

from simbandit.guarantees.claims import Verdict
from simbandit.guarantees.rows import Where, pivot, select
from simbandit.guarantees.statistics import LEVEL, mean_interval

Family = Literal["cube", "ball", "random_arm", "signed_contexts"]


@dataclass(frozen=True)
class Parameters:
    """What the theorems need to know of a problem: T `rounds`, d, K actions, the noise's standard deviation,
    ||theta*|| <= S = theta_norm, ||phi|| <= L = feature_norm, the learner's ridge, the confidence level delta.

    gap: the smallest positive gap between a best action and another; kl_coef: of the KL objective; coordinate:
    |theta_i| of the cube, or the standard deviation of theta_i of the signed contexts; family: the hard family, if
    any, from which the world is drawn.
    """

    rounds: float
    dim: int
    n_actions: int
    noise_std: float = 1.0
    theta_norm: float = 1.0
    feature_norm: float = 1.0
    ridge: float = 1.0
    delta: float = 0.05
    gap: float | None = None
    kl_coef: float | None = None
    coordinate: float | None = None
    family: Family | None = None

    @property
    def information(self) -> float:
        """d log(1 + T L^2 / (ridge d)) >= log det(V_T / ridge) (OFUL, Lemma 10)."""
        return self.dim * math.log(1 + self.rounds * self.feature_norm**2 / (self.ridge * self.dim))

    @property
    def radius(self) -> float:
        """OFUL's confidence radius at the end, ||theta_t - theta*||_{V_t} <= radius for all t with probability 1 -
        delta (Theorem 2 with Lemma 10)."""
        wide = math.sqrt(2 * math.log(1 / self.delta) + self.information)
        return self.noise_std * wide + math.sqrt(self.ridge) * self.theta_norm


Assumption = Callable[[Parameters], str | None]
"""None where it holds, else why it does not."""


@dataclass(frozen=True)
class Bound:
    """A theorem's number: `bound(parameters)`. `broken(parameters)` lists the reasons why it need not hold there."""

    name: str
    source: str
    side: Literal["upper", "lower"]
    formula: Callable[[Parameters], float]
    assumptions: tuple[Assumption, ...] = ()

    def __call__(self, parameters: Parameters) -> float:
        return self.formula(parameters)

    def broken(self, parameters: Parameters) -> tuple[str, ...]:
        return tuple(reason for holds in self.assumptions if (reason := holds(parameters)) is not None)


# -------------------------------------------------------------------------------------------------------- assumptions


def bounded_means(p: Parameters) -> str | None:
    reach = p.theta_norm * p.feature_norm
    return None if reach <= 1 + 1e-9 else f"needs |<phi, theta*>| <= 1; it may reach {reach:.3g}"


def wide_ridge(p: Parameters) -> str | None:
    least = max(1.0, p.feature_norm**2)
    return None if p.ridge >= least * (1 - 1e-9) else f"needs ridge >= max(1, L^2) = {least:.3g}; it is {p.ridge:.3g}"


def bounded_rewards(p: Parameters) -> str | None:
    return None if p.noise_std == 0 else "needs observed rewards inside their range; Gaussian noise leaves it"


def enough_rounds(p: Parameters) -> str | None:
    return None if p.dim <= 2 * p.rounds else f"needs d <= 2 T; d = {p.dim}, T = {p.rounds:g}"


def drawn_from(family: Family) -> Assumption:
    def holds(p: Parameters) -> str | None:
        return None if p.family == family else f"worst case over {FAMILIES[family]}; the world is another"

    return holds


FAMILIES: dict[Family, str] = {
    "cube": "the cube",
    "ball": "the unit ball",
    "random_arm": "a random best arm",
    "signed_contexts": "contexts of random sign",
}

# ----------------------------------------------------------------------------------------------------------- formulas


def best_over_rounds(value: Callable[[float], float], peak: float, rounds: float) -> float:
    """The largest value(m) over integers 0 <= m <= rounds of a function that rises up to `peak` and then falls."""
    return max(value(min(m, rounds)) for m in (math.floor(peak), math.ceil(peak)))


def oful(p: Parameters) -> float:
    growth = p.dim * math.log(p.ridge + p.rounds * p.feature_norm**2 / p.dim)
    return 4 * math.sqrt(p.rounds * growth) * p.radius


def oful_gap(p: Parameters) -> float:
    return math.inf if p.gap is None else 8 * p.radius**2 * p.information / p.gap


def squarecb(p: Parameters) -> float:
    arms, regression = p.n_actions * p.rounds, p.dim * math.log(1 + p.rounds / p.dim)
    width = 2 * p.theta_norm * p.feature_norm
    return width * (4 * math.sqrt(arms * regression) + 8 * math.sqrt(arms * math.log(2 / p.delta)))


def cube(p: Parameters) -> float:
    c = p.noise_std / math.sqrt(p.rounds) if p.coordinate is None else p.coordinate
    curvature = 2 * c**2 / p.noise_std**2
    return best_over_rounds(lambda m: p.dim * m * c * math.exp(-curvature * m) / 8, 1 / curvature, p.rounds)


def unit_ball(p: Parameters) -> float:
    return p.noise_std * p.dim * math.sqrt(p.rounds) / (16 * math.sqrt(3))


def random_arm(p: Parameters) -> float:
    K, a = p.n_actions, 1 - 1 / p.n_actions
    gap = a * p.noise_std * math.sqrt(K / p.rounds) if p.gap is None else p.gap
    slope = gap / (2 * p.noise_std * math.sqrt(K))
    return best_over_rounds(lambda m: gap * m * (a - slope * math.sqrt(m)), (2 * a / (3 * slope)) ** 2, p.rounds)


def kl_ucb(p: Parameters) -> float:
    slow = 2 * p.radius * math.sqrt(2 * p.rounds * p.information)
    return slow if p.kl_coef is None else min(slow, 4 * p.radius**2 * p.information / p.kl_coef)


def signed_contexts(p: Parameters) -> float:
    if p.kl_coef is None or p.coordinate is None:
        raise ValueError("parameters: the bound over signed contexts needs kl_coef and coordinate (the prior's std)")
    growth = math.log(1 + p.coordinate**2 * p.rounds / (p.dim * p.noise_std**2))
    flattening = math.sqrt(1 + 2 * p.coordinate**2 / p.kl_coef**2)
    return p.dim * p.noise_std**2 / (2 * p.kl_coef) * growth / flattening


def signed_duels(p: Parameters) -> float:
    gaussian = signed_contexts(replace(p, noise_std=1.0))
    assert p.coordinate is not None
    assert p.kl_coef is not None
    return gaussian / math.sqrt(1 + 2 * p.coordinate**2 / p.kl_coef**2)


OFUL = Bound("OFUL, Theorem 3", "Abbasi-Yadkori, Pal, Szepesvari 2011, Theorem 3", "upper", oful, (bounded_means,))
"""4 sqrt(T d log(ridge + T L^2 / d)) (sqrt(ridge) S + noise_std sqrt(2 log(1 / delta) + d log(1 + T L^2 / (ridge d)))),
with probability 1 - delta, of reward regret under either of OFUL's radii. The paper prints L where its Lemma 10 has
L^2; we take L^2."""

OFUL_GAP = Bound("OFUL, by the gap", "OFUL's radius (2011); derived", "upper", oful_gap, (wide_ridge,))
"""8 radius^2 d log(1 + T L^2 / (ridge d)) / gap, with probability 1 - delta: an instantaneous regret r is 0 or at least
the gap, so r <= r^2 / gap, and r <= 2 radius ||phi||_{V^-1} with ||phi||^2_{V^-1} <= 1 where ridge >= L^2, whose sum
is at most 2 log det(V_T / ridge). How their Theorem 5 begins; it goes on to sharpen the logarithms."""

SQUARECB = Bound("SquareCB, Theorem 1", "2002.04926, Theorem 1", "upper", squarecb, (bounded_rewards,))
"""4 sqrt(K T Reg) + 8 sqrt(K T log(2 / delta)) times the width 2 S L of the reward range, with probability 1 - delta,
under the theory's gamma. Reg, the regression oracle's regret, is taken as d log(1 + T / d), the order for least squares
(the theorem leaves it open)."""

CUBE = Bound(
    "any, on the cube", "Lattimore, Szepesvari 2020, Theorem 24.1 and its proof", "lower", cube, (drawn_from("cube"),)
)
"""Actions {-1, 1}^d (or the whole cube), theta uniform on {-c, c}^d, Gaussian noise: mean regret is at least d m c
exp(-2 m c^2 / noise^2) / 8 for every m <= T, here the best one, near min(T, noise^2 / (2 c^2)). They take c = noise /
sqrt(T) and m = T: d noise sqrt(T) exp(-2) / 8. Their proof averages over theta, so it bounds the mean over such worlds.
"""

BALL = Bound(
    "any, on the unit ball",
    "Lattimore, Szepesvari 2020, Theorem 24.2",
    "lower",
    unit_ball,
    (enough_rounds, drawn_from("ball")),
)
"""Actions the whole unit ball, ||theta||^2 = noise^2 d^2 / (48 T), d <= 2 T: noise d sqrt(T) / (16 sqrt(3))."""

RANDOM_ARM = Bound(
    "any, random best arm",
    "Auer et al. 2002, Theorem 5.1, for Gaussian noise; derived",
    "lower",
    random_arm,
    (drawn_from("random_arm"),),
)
"""K arms of mean 0 but one, uniformly drawn, of mean `gap`. By Pinsker's inequality the good arm is played at most m /
K + (m gap / (2 noise)) sqrt(m / K) times in m rounds on average, so mean regret >= gap m (1 - 1/K - (gap / (2 noise))
sqrt(m / K)) for every m <= T; here the best m, near min(T, K (4 (1 - 1/K) noise / (3 gap))^2). Without, the worst gap
at m = T, (1 - 1/K) noise sqrt(K / T): at least (1 - 1/K)^2 noise sqrt(K T) / 2. Algorithms that treat arms alike may
meet the good one at a fixed place."""

KL_UCB = Bound("KL-UCB, any world", "2502.07460's argument with constants; derived", "upper", kl_ucb, (wide_ridge,))
"""min(4 radius^2 d log(1 + T L^2 / (ridge d)) / kl_coef, 2 radius sqrt(2 T d log(1 + T L^2 / (ridge d)))) of the sum of
J(pi*) - J(pi_t), reward feedback, bonus radius ||phi||_{V^-1}, in expectation where the confidence set holds
(probability 1 - delta).

Let f = r + D with D >= 0 (optimism) and pi_s the Gibbs policy of r + s D. Then d J(pi_s) / ds = -s Var_s(D) / kl_coef,
and E_s D^2 increases in s because D >= 0, so J(pi*) - J(pi_1) <= E_1 D^2 / (2 kl_coef); D <= 2 radius ||phi||_{V^-1},
and the expected squared widths of what is played sum to at most 2 log det(V_T / ridge). The second term is OFUL's
argument, J(pi*) - J(pi_1) <= E_1 D."""

KL_CONTEXTS = Bound(
    "any, signed contexts",
    "derived (the rate of 2411.04625 and 2502.07460)",
    "lower",
    signed_contexts,
    (drawn_from("signed_contexts"),),
)
"""d contexts, uniform; two actions of features +e_x and -e_x; theta ~ N(0, c^2 I), reward noise N(0, noise^2), uniform
reference: the mean sum of J(pi*) - J(pi_t) is at least (d noise^2 / (2 kl_coef)) log(1 + c^2 T / (d noise^2)) / sqrt(1
+ 2 c^2 / kl_coef^2), for any algorithm.

Either action tells the same about theta_x, so the posterior is N(m, v) with v = 1 / (1 / c^2 + n_x / noise^2) whatever
is played, and the Gibbs policy of m is the best one: its gap is kl_coef (E h(u) - h(E u)), u = 2 theta_x / kl_coef,
h(u) = log 2 cosh(u / 2). On average over m this is kl_coef times the integral of E h''(N(0, s)) / 2 over an interval of
length 4 v / kl_coef^2 below s = 4 c^2 / kl_coef^2, and 4 h''(u) = sech^2(u / 2) >= exp(-u^2 / 4). Jensen over n_x and
the sum over t give the rest. Greed with ridge noise^2 / c^2 is that policy, and attains the bound as c / kl_coef
vanishes and T / d grows.
"""


KL_DUELS = Bound(
    "any, signed contexts, duels",
    "derived (van Trees's inequality; the rate of 2411.04625)",
    "lower",
    signed_duels,
    (drawn_from("signed_contexts"),),
)
"""The same worlds with Bradley-Terry duels, however the pairs are chosen: (d / (2 kl_coef)) log(1 + c^2 T / d) / (1 + 2
c^2 / kl_coef^2).

A duel tells at most the Fisher information 4 p (1 - p) <= 1 about theta_x. With p* = sigma(2 theta_x / kl_coef) the
optimal probability of +e_x, a policy's gap is kl_coef KL(q || p*) >= 2 kl_coef (q - p*)^2 (Pinsker), and by van Trees
E (q - p*)^2 >= (E dp*/dtheta)^2 / (E n_x + 1 / c^2), where E dp*/dtheta = E sech^2(theta_x / kl_coef) / (2 kl_coef) >=
1 / (2 kl_coef sqrt(1 + 2 c^2 / kl_coef^2)); then the sum over t."""


@dataclass(frozen=True)
class Respects:
    """The mean of `metric` stays on its side of `bound` at every value of the label `x` where the assumptions hold.

    parameters(value): the problem's numbers there. Each cell counts at its last recorded round. Measured: the ratio of
    mean to bound where it comes closest to breaking it, with an interval that is simultaneous over x (Bonferroni).
    Undecided where the assumptions hold nowhere. A bound that holds with probability 1 - delta is asked of the mean.
    """

    name: str
    metric: str
    where: Where
    bound: Bound
    parameters: Callable[[float], Parameters]
    x: str

    @property
    def source(self) -> str:
        return self.bound.source

    def judge(self, frame: pd.DataFrame) -> Verdict:
        table = pivot(select(frame, {**self.where, "metric": self.metric}), self.x)
        given = [self.parameters(value) for value in table.columns]
        broken = [self.bound.broken(p) for p in given]
        valid = np.array([not reasons for reasons in broken])
        upper = self.bound.side == "upper"
        if not valid.any():
            return Verdict(self.name, self.source, broken[0][0], math.nan, math.nan, math.nan, "undecided")
        values = np.array([self.bound(p) for p, holds in zip(given, valid, strict=True) if holds])
        ratios = mean_interval(table.to_numpy()[:, valid] / values, 1 - (1 - LEVEL) / len(values))
        worst = int(np.argmax(ratios.high) if upper else np.argmin(ratios.low))
        estimate, low, high = (float(part[worst]) for part in ratios)
        holds, fails = (high <= 1, low > 1) if upper else (low >= 1, high < 1)
        verdict = "holds" if holds else "fails" if fails else "undecided"
        return Verdict(self.name, self.source, f"ratio {'<=' if upper else '>='} 1", estimate, low, high, verdict)
