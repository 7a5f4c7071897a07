"""The average iterate of a game dynamic: what guarantees of the form "the mixture of all policies" are about."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from simbandit.algorithms.dynamics import GameDynamics, GameState
from simbandit.draws import Round
from simbandit.policies import Tabular
from simbandit.types import Contexts, Info, Setting


@dataclass(frozen=True)
class Averaged(GameDynamics):
    """`rule`, judged by the arithmetic mean of the probabilities of its iterates so far; it plays as the rule does.

    The mean of policies, not of their logarithms: the law of a policy drawn at random from all rounds, for which the
    O(1 / sqrt T) of multiplicative weights holds and the O(1 / T) of its optimistic form. The first iterate, the
    reference, counts.
    """

    rule: GameDynamics

    def init(self, setting: Setting) -> GameState:
        return self.rule.init(setting)

    def query(self, state: GameState) -> Tensor:
        return self.rule.query(state)

    def step(self, state: GameState, g: Tensor) -> Tensor:
        return self.rule.step(state, g)

    def update(
        self, state: GameState, contexts: Contexts, actions: Tensor, feedback: Tensor, draws: Round
    ) -> tuple[GameState, Info]:
        state, info = super().update(state, contexts, actions, feedback, draws)
        mean = state.memory.get("mean of iterates", state.ref.exp())
        mean = mean + (state.theta.exp() - mean) / (state.t + 1)
        state.memory["mean of iterates"] = mean
        state.policy = Tabular(mean.log())
        return state, info
