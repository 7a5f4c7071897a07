"""Game dynamics on tables: every method that steps by the payoff vector g(q) = P q - 1/2 of a policy q.

In house notation: theta = log pi up to constants, ref = log pi_ref, k = kl_coef, s = step_size, g(q)_a = P(a beats q) -
1/2. Each iteration asks the oracle for g at one policy (`query`) and moves (`step`). Two forms of each, chosen by the
oracle:

* exact: `FullInformation(oracle)` answers g(q) for every context and action, one oracle evaluation a round;
* sampled: a preference oracle labels duels (a, b), a uniform over the offered actions, b ~ q, at the contexts drawn;
then
  g_hat(x, a) = sum over duels at (x, a) of (label - 1/2) / (batch_size w_x u_a), unbiased for the law of contexts w.

Update formulas: their sources, restated in one notation with the linearisation omega of the game (the largest
|eigenvalue| of (P - 1/2)(diag pi* - pi* pi*') / i): mirror descent converges locally iff s < 2 k / (k^2 + omega^2).
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from simbandit.algorithms.checks import check
from simbandit.draws import Round
from simbandit.policies import Tabular, normalise
from simbandit.policies import uniform as uniform_law
from simbandit.types import Contexts, Feedback, Info, Policy, Setting


@dataclass
class GameState:
    """theta: the iterate, log-probabilities (R, X, A); memory: what else the rule keeps, by name; t: oracle answers so
    far; absent: actions that their context does not offer, None where all contexts offer all."""

    setting: Setting
    ref: Tensor
    theta: Tensor
    policy: Tabular
    memory: dict[str, Tensor] = field(default_factory=dict)
    t: int = 0
    absent: Tensor | None = None


class GameDynamics(ABC):
    """The plumbing of every rule below: asking, estimating g, and keeping the table."""

    feedbacks: ClassVar[tuple[Feedback, ...]] = ("full", "preference")
    needs_features: ClassVar[bool] = False
    offline: ClassVar[bool] = False

    @property
    def consistent(self) -> bool:
        return False  # its target is an equilibrium, not the optimum of a reward

    @abstractmethod
    def query(self, state: GameState) -> Tensor:
        """The policy against which the oracle is asked, log-probabilities (R, X, A)."""

    @abstractmethod
    def step(self, state: GameState, g: Tensor) -> Tensor:
        """The next theta, from the payoff g (R, X, A) of the queried policy; may use `state.memory`."""

    def init(self, setting: Setting) -> GameState:
        if setting.contexts is None:
            raise ValueError("world: game dynamics keep a table of policies and need a finite world (n_contexts=)")
        ref = setting.contexts.ref_log_probs
        absent = torch.isneginf(ref)
        return GameState(setting, ref, ref, Tabular(ref), absent=absent if bool(absent.any()) else None)

    def select(self, state: GameState, contexts: Contexts, draws: Round) -> Tensor:
        asked = Tabular(self.query(state))
        if state.setting.feedback == "full":
            return asked.table
        uniforms = [draws.uniform(f"player{i}", contexts.shape[1]) for i in (0, 1)]
        first = Tabular(uniform_law(state.ref)).sample(contexts, uniforms[0])
        return torch.stack([first, asked.sample(contexts, uniforms[1])], dim=-1)

    def update(
        self, state: GameState, contexts: Contexts, actions: Tensor, feedback: Tensor, draws: Round
    ) -> tuple[GameState, Info]:
        del draws
        exact = state.setting.feedback == "full"
        g = feedback - 0.5 if exact else sampled_payoff(state, contexts, actions, feedback)
        theta = offered(state, self.step(state, g))
        state.theta, state.policy, state.t = theta, Tabular(theta), state.t + 1
        return state, Info()

    def policy(self, state: GameState) -> Policy:
        return state.policy


def offered(state: GameState, log_weights: Tensor) -> Tensor:
    """Normalised log-probabilities, -inf where the context does not offer the action."""
    return normalise(log_weights if state.absent is None else log_weights.masked_fill(state.absent, -torch.inf))


def sampled_payoff(state: GameState, contexts: Contexts, actions: Tensor, label: Tensor) -> Tensor:
    """Unbiased g_hat (R, X, A) from a batch of duels whose first action was drawn uniformly."""
    pool = state.setting.contexts
    assert pool is not None
    assert contexts.index is not None
    R, X, A = state.ref.shape
    weights = pool.weights if pool.weights is not None else state.ref.new_full((R, X), 1 / X)
    cell = contexts.index * A + actions[..., 0]
    total = torch.zeros(R, X * A, dtype=state.ref.dtype, device=state.ref.device)
    total = total.scatter_add_(1, cell, label - 0.5).view(R, X, A)
    n_offered = (~torch.isneginf(state.ref)).sum(-1)
    return total * (n_offered / (label.shape[1] * weights))[..., None]


def stable_step(kl_coef: float) -> float:
    """k / (k^2 + 1/4): half the stability limit of mirror descent in the worst game, where omega = 1/2."""
    return kl_coef / (kl_coef**2 + 0.25)


@dataclass(frozen=True)
class MirrorDescent(GameDynamics):
    """theta <- (1 - s k) theta + s k ref + s g(pi): mirror descent on the regularised game.

    The exact form of INPO (2407.00617, eq. 5; their eta is 1 / s) and the gradient flow of Online IPO (2403.08635).
    step_size: None takes k / (k^2 + 1/4), half the stability limit in the worst game. Guarantee: with s = 2 / (k (t +
    2)) (`schedule`) KL(pi* || pi_t) = O(1 / t); a constant step converges locally iff s < 2 k / (k^2 + omega^2), and
    cycles beyond. Complexity O(X A^2) a round, the oracle's.
    """

    step_size: float | None = None
    schedule: bool = False

    def __post_init__(self) -> None:
        check(self, positive=("step_size",))

    def init(self, setting: Setting) -> GameState:
        if not self.schedule and (self.step_size or 0.0) >= 2 / setting.kl_coef:
            warnings.warn(
                f"step_size: {self.step_size:g} >= 2 / kl_coef = {2 / setting.kl_coef:g} is unstable in every game "
                "(locally stable below 2 kl_coef / (kl_coef^2 + omega^2))",
                stacklevel=2,
            )
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
