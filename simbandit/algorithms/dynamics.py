"""What all game dynamics share: asking the oracle against one policy, estimating the payoff, keeping the table.

A rule steps by the payoff vector g(q) = P q - 1/2 of a policy q: each iteration asks the oracle for g at one policy
(`query`) and moves (`step`). Two forms of each, chosen by the oracle:

* exact: `FullInformation(oracle)` answers g(q) for every context and action, one oracle evaluation a round;
* sampled: a preference oracle labels duels (a, b), a uniform over the offered actions, b ~ q, at the contexts drawn;
then
  g_hat(x, a) = sum over duels at (x, a) of (label - 1/2) / (batch_size w_x u_a), unbiased for the law of contexts w.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from simbandit.draws import Round
from simbandit.policies import Tabular, normalise
from simbandit.policies import uniform as uniform_law
from simbandit.types import Contexts, Feedback, Info, Policy, Setting

WORST_FREQUENCY = 0.5
"""omega <= 1/2 in every game: ||diag(pi)^.5 (P - 1/2) diag(pi)^.5|| <= 1/2."""


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


class StepLimit(NamedTuple):
    """A parameter's value, and the limit of local stability by `formula` at a game's frequency."""

    name: str
    value: float
    limit: float
    formula: str


def warn_unstable(step: StepLimit | None) -> None:
    """Warns where a step is beyond the limit of local stability in the worst game."""
    if step is not None and step.value > step.limit:
        warnings.warn(
            f"{step.name}: {step.value:g} is beyond {step.limit:.6g} = {step.formula} at omega = 1/2, the stability "
            "limit of the worst game. A game's own limit has its own omega (the largest of `equilibrium.frequencies` "
            "at the equilibrium); beyond it the iterates settle on a cycle",
            UserWarning,
            stacklevel=3,
        )
