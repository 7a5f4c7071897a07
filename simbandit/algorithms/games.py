"""Game dynamics on tables: every method that steps by the payoff vector g(q) = P q - 1/2 of a policy q.

In house notation: theta = log pi up to constants, ref = log pi_ref, k = kl_coef, s = step_size, g(q)_a = P(a beats q) -
1/2. What a rule is asked and how it is fed, exactly or by duels, is in `dynamics`; `as_solver.run` iterates a rule on
given games until it meets the solver's own stopping rule.

Update formulas: their sources, restated in one notation with the linearisation omega of the game (the largest
|eigenvalue| of (P - 1/2)(diag pi* - pi* pi*') / i): mirror descent converges locally iff s < 2 k / (k^2 + omega^2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from simbandit.algorithms.checks import check
from simbandit.algorithms.dynamics import (
    WORST_FREQUENCY,
    GameDynamics,
    GameState,
    StepLimit,
    offered,
    stable_step,
    warn_unstable,
)
from simbandit.types import Setting


@dataclass(frozen=True)
class MirrorDescent(GameDynamics):
    """theta <- (1 - s k) theta + s k ref + s g(pi): mirror descent on the regularised game.

    The exact form of INPO (2407.00617, eq. 5; their eta is 1 / s) and the gradient flow of Online IPO (2403.08635).
    With `schedule` it is also MTPO (2405.14655) in conversations of one turn, registered as `mtpo`: their step
    pi(a|x_h)^(1 - s k) pi_ref^(s k) exp(s Q) with s = 2 / (k (t + 2)) has the win rate as its Q there. It differs from
    `mirror_descent` in that schedule only, and from `nash_md` (same schedule) in the opponent: the policy itself, where
    Nash-MD asks against the geometric mixture. Several turns, where Q is more than a win rate: `simbandit.trees`.
    step_size: None takes k / (k^2 + 1/4), half the stability limit in the worst game. Guarantee: with s = 2 / (k (t +
    2)) (`schedule`) KL(pi* || pi_t) = O(1 / t); a constant step converges locally iff s < 2 k / (k^2 + omega^2), and
    cycles beyond. A step beyond that limit at omega = 1/2 is warned of. Complexity O(X A^2) a round, the oracle's.
    """

    step_size: float | None = None
    schedule: bool = False

    def __post_init__(self) -> None:
        check(self, positive=("step_size",))

    def step_limit(self, kl_coef: float, frequency: float = WORST_FREQUENCY) -> StepLimit | None:
        if not self.step_size or self.schedule:
            return None
        limit = 2 * kl_coef / (kl_coef**2 + frequency**2)
        return StepLimit("step_size", self.step_size, limit, "2 kl_coef / (kl_coef^2 + omega^2)")

    def init(self, setting: Setting) -> GameState:
        warn_unstable(self.step_limit(setting.kl_coef))
        return super().init(setting)

    def query(self, state: GameState) -> Tensor:
        return state.theta

    def step(self, state: GameState, g: Tensor) -> Tensor:
        k = state.setting.kl_coef
        s = 2 / (k * (state.t + 2)) if self.schedule else self.step_size or stable_step(k)
        return (1 - s * k) * state.theta + s * k * state.ref + s * g


@dataclass(frozen=True)
class MultiplicativeWeights(GameDynamics):
    """theta <- theta + s g(pi): the unregularised game. Exact SPPO (2405.00675, eq. 4) and SPO (2401.04056).

    Guarantee: the *average* iterate has gap O(1 / sqrt T) (s ~ 1 / sqrt T); the last iterate spirals out of an interior
    equilibrium for every s (modulus sqrt(1 + s^2 omega^2)). kl_coef plays no part but in the metrics.
    """

    step_size: float = 0.5

    def __post_init__(self) -> None:
        check(self, positive=("step_size",))

    def query(self, state: GameState) -> Tensor:
        return state.theta

    def step(self, state: GameState, g: Tensor) -> Tensor:
        return state.theta + self.step_size * g


@dataclass(frozen=True)
class OptimisticWeights(GameDynamics):
    """theta <- theta + s (2 g(pi_t) - g(pi_{t-1})): optimistic multiplicative weights (2512.24818; ONPO in two
    sequences, 2502.16852). Guarantee: last-iterate linear convergence to a full-support equilibrium of the
    unregularised game."""

    step_size: float = 0.25

    def __post_init__(self) -> None:
        check(self, positive=("step_size",))

    def query(self, state: GameState) -> Tensor:
        return state.theta

    def step(self, state: GameState, g: Tensor) -> Tensor:
        before = state.memory.get("payoff", g)
        state.memory["payoff"] = g
        return state.theta + self.step_size * (2 * g - before)


@dataclass(frozen=True)
class NashMD(GameDynamics):
    """v = (1 - s k) theta + s k ref;  theta <- v + s g(softmax v): the opponent is the geometric mixture with the
    reference.

    Source: Munos et al. 2023 (2312.00886), section 6. Guarantee: KL(pi* || pi_t) = O(1 / t) with the schedule
    s = 2 / (k (t + 2)) (`schedule`); with a constant step it converges to a point that is *not* the equilibrium, but
    the best response to the mixture, which is the equilibrium at kl_coef / (1 - weight of the reference in it).

    mixture: that weight, if not the paper's s k: released code has chosen others (.125 on language models). The centre
    of the step stays v.
    """

    step_size: float | None = None
    schedule: bool = False
    mixture: float | None = None

    def __post_init__(self) -> None:
        check(self, positive=("step_size",))
        if self.mixture is not None and not 0 <= self.mixture <= 1:
            raise ValueError(f"mixture: must lie in [0, 1], got {self.mixture}")

    def _size(self, state: GameState) -> float:
        k = state.setting.kl_coef
        return 2 / (k * (state.t + 2)) if self.schedule else self.step_size or stable_step(k)

    def query(self, state: GameState) -> Tensor:
        weight = self._size(state) * state.setting.kl_coef if self.mixture is None else self.mixture
        return offered(state, (1 - weight) * state.theta + weight * state.ref)

    def step(self, state: GameState, g: Tensor) -> Tensor:
        s = self._size(state)
        pull = s * state.setting.kl_coef
        return (1 - pull) * state.theta + pull * state.ref + s * g


@dataclass(frozen=True)
class NashEMA(GameDynamics):
    """theta <- (1 - s k) theta + s k ref + s g(softmax m), m an exponential moving average of theta, the opponent.

    Source: Munos et al. 2023 (2312.00886), Nash-EMA-PG: the opponent's parameters are averaged, m <- decay m +
    (1 - decay) theta. No guarantee is given there for it. decay = 0 is mirror descent.
    """

    step_size: float | None = None
    decay: float = 0.9

    def __post_init__(self) -> None:
        check(self, positive=("step_size",))
        if self.decay >= 1:
            raise ValueError(f"decay: must lie in [0, 1), got {self.decay}")

    def query(self, state: GameState) -> Tensor:
        return state.memory.get("average", state.theta)

    def step(self, state: GameState, g: Tensor) -> Tensor:
        s = self.step_size or stable_step(state.setting.kl_coef)
        pull = s * state.setting.kl_coef
        theta = (1 - pull) * state.theta + pull * state.ref + s * g
        average = state.memory.get("average", state.theta)
        state.memory["average"] = offered(state, self.decay * average + (1 - self.decay) * offered(state, theta))
        return theta


@dataclass(frozen=True)
class ExtraGradient(GameDynamics):
    """EGPO: h = (1 - s k) theta + s k ref + s g(pi);  theta <- (1 - s k) theta + s k ref + s g(softmax h). Two rounds a
    step.

    Source: 2503.08942; the rate after Cen, Wei, Chi: KL(pi* || pi_t) <= (1 - s k)^t KL(pi* || pi_0) for
    s <= 1 / (k + 1), last iterate; None takes that limit. `policy` is theta, also between the half step and the step.
    """

    step_size: float | None = None

    def __post_init__(self) -> None:
        check(self, positive=("step_size",))

    def query(self, state: GameState) -> Tensor:
        return state.memory.get("half", state.theta)

    def step(self, state: GameState, g: Tensor) -> Tensor:
        s = self.step_size or 1 / (1 + state.setting.kl_coef)
        pull = s * state.setting.kl_coef
        moved = (1 - pull) * state.theta + pull * state.ref + s * g
        return _two_phase(state, moved)


@dataclass(frozen=True)
class MirrorProx(GameDynamics):
    """Nash-MP: h = (theta + s k ref + s g(pi)) / (1 + s k);  theta <- (theta + s k ref + s g(softmax h)) / (1 + s k).

    Source: 2505.19731: mirror prox with the KL term implicit; at s = 2, KL(pi* || pi_t) <= (1 + 2 k)^-t KL(pi* ||
    pi_0). The same as EGPO with step s / (1 + s k). Two rounds a step.
    """

    step_size: float = 2.0

    def __post_init__(self) -> None:
        check(self, positive=("step_size",))

    def query(self, state: GameState) -> Tensor:
        return state.memory.get("half", state.theta)

    def step(self, state: GameState, g: Tensor) -> Tensor:
        pull = self.step_size * state.setting.kl_coef
        return _two_phase(state, (state.theta + pull * state.ref + self.step_size * g) / (1 + pull))


def _two_phase(state: GameState, moved: Tensor) -> Tensor:
    """In odd rounds `moved` is the half step, which only the next query sees; in even rounds it is the step."""
    if "half" in state.memory:
        del state.memory["half"]
        return moved
    state.memory["half"] = offered(state, moved)
    return state.theta


@dataclass(frozen=True)
class MagneticDescent(GameDynamics):
    """MPO: theta <- (theta + s k m + s g(pi)) / (1 + s k), m the magnet: the reference, reset to theta every `period`
    rounds.

    Source: 2410.16714 (magnetic mirror descent; the inner rate (1 + s k)^-t for s <= k / L^2). With resets the last
    iterate goes to the unregularised equilibrium; period None keeps the reference and goes to the regularised one.
    """

    step_size: float | None = None
    period: int | None = 100

    def __post_init__(self) -> None:
        check(self, positive=("step_size",))

    def step_limit(self, kl_coef: float, frequency: float = WORST_FREQUENCY) -> StepLimit | None:
        if not self.step_size or self.period is not None or kl_coef >= frequency:
            return None
        limit = 2 * kl_coef / (frequency**2 - kl_coef**2)
        return StepLimit("step_size", self.step_size, limit, "2 kl_coef / (omega^2 - kl_coef^2)")

    def init(self, setting: Setting) -> GameState:
        warn_unstable(self.step_limit(setting.kl_coef))
        return super().init(setting)

    def query(self, state: GameState) -> Tensor:
        return state.theta

    def step(self, state: GameState, g: Tensor) -> Tensor:
        if self.period and state.t and state.t % self.period == 0:
            state.memory["magnet"] = state.theta
        magnet = state.memory.get("magnet", state.ref)
        s = self.step_size or stable_step(state.setting.kl_coef)
        pull = s * state.setting.kl_coef
        return (state.theta + pull * magnet + s * g) / (1 + pull)


@dataclass(frozen=True)
class Comal(GameDynamics):
    """COMAL: pi_{k+1} = the equilibrium of the game regularised towards pi_k. Inner loop: `inner` extragradient steps.

    Source: 2410.23223: KL(ne || pi_{k+1}) <= KL(ne || pi_k), last iterate to the unregularised equilibrium; asymptotic
    factor k / sqrt(k^2 + omega^2) per outer step with an exact inner solve. Deviation: the inner solver is EGPO (the
    paper: INPO or multiplicative weights), with a fixed number of steps; two rounds each.
    """

    step_size: float | None = None
    inner: int = 100

    def __post_init__(self) -> None:
        check(self, positive=("step_size",))

    def query(self, state: GameState) -> Tensor:
        return state.memory.get("half", state.theta)

    def step(self, state: GameState, g: Tensor) -> Tensor:
        if state.t % (2 * self.inner) == 0:
            state.memory["anchor"] = state.theta
        anchor = state.memory["anchor"]
        s = self.step_size or 1 / (1 + state.setting.kl_coef)
        pull = s * state.setting.kl_coef
        return _two_phase(state, (1 - pull) * state.theta + pull * anchor + s * g)


@dataclass(frozen=True)
class BestResponse(GameDynamics):
    """theta <- (1 - a) theta + a (ref + g(pi) / k): damped best response; a = 1 is iterated best response (Iter-IPO to
    convergence). Contracts globally for a = 1 and k > 1/2; locally iff a < 2 k^2 / (k^2 + omega^2)."""

    damping: float = 1.0

    def __post_init__(self) -> None:
        check(self, positive=("damping",))
        if self.damping > 1:
            raise ValueError(f"damping: must lie in (0, 1], got {self.damping}")

    def step_limit(self, kl_coef: float, frequency: float = WORST_FREQUENCY) -> StepLimit:
        limit = 2 * kl_coef**2 / (kl_coef**2 + frequency**2)
        return StepLimit("damping", self.damping, limit, "2 kl_coef^2 / (kl_coef^2 + omega^2)")

    def init(self, setting: Setting) -> GameState:
        warn_unstable(self.step_limit(setting.kl_coef))
        return super().init(setting)

    def query(self, state: GameState) -> Tensor:
        return state.theta

    def step(self, state: GameState, g: Tensor) -> Tensor:
        return (1 - self.damping) * state.theta + self.damping * (state.ref + g / state.setting.kl_coef)


@dataclass(frozen=True)
class FictitiousPlay(GameDynamics):
    """pi_{t+1} = (1 - 1/(t+2)) pi_t + 1/(t+2) BR(pi_t): smooth fictitious play, in probability space, BR = softmax(ref
    + g / k).

    Source: Brown 1951 with the regularised response (Fudenberg, Kreps 1993); converges in zero-sum games, slowly (O(1 /
    t)).
    """

    def query(self, state: GameState) -> Tensor:
        return state.theta

    def step(self, state: GameState, g: Tensor) -> Tensor:
        response = offered(state, state.ref + g / state.setting.kl_coef)
        weight = 1 / (state.t + 2)
        return torch.logaddexp(state.theta + math.log1p(-weight), response + math.log(weight))
