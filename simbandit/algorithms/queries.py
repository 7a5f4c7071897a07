"""Asking only when it pays: APPO, and the confidence rule of ADPO.

A question that is not asked is played as an action against itself: it costs no information, `informative_pairs` does
not count it, and that metric is these algorithms' x-axis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from simbandit.algorithms.checks import check
from simbandit.algorithms.dueling import DuelState, observe
from simbandit.algorithms.dueling import start as start_duels
from simbandit.draws import Round
from simbandit.estimators import RewardModel, width
from simbandit.least_squares import linear
from simbandit.policies import LogLinear, Reference, Tabular, normalise, tabulate, uniform
from simbandit.types import Contexts, Feedback, Info, Policy, Setting

LARGEST_ADVANTAGE = 2.0  # APPO's truncation, for rewards in [-1, 1]


@dataclass
class _State:
    duels: DuelState
    policy: Tabular


@dataclass(frozen=True)
class APPO:
    """APPO: ask only about pairs whose width exceeds a threshold, and learn the policy by multiplicative weights.

    Ji, He, Gu 2024 (2402.09401), Algorithm 1: a, b ~ pi_t; asked iff ||phi_a - phi_b||_{V^-1} > threshold, V =
    matrix_ridge I + sum z z' over the questions asked; then pi_{t+1} proportional to pi_t exp(step_size D_t), with the
    optimistic advantage D_t = min(<theta_t, z> + radius ||z||_{V^-1}, 2).

    threshold: their Gamma, of order Delta / sqrt(d) for a gap Delta between the best and the second action. step_size:
    None is sqrt(2 log A / T). Guarantee (their Theorem 5.1, Corollary 5.3), linear reward, gap Delta, tuned constants:
    regret O~(d^2 / Delta) with O~(d^2 / Delta^2) questions. Deviations: the advantage is taken against the mean
    features of pi_t, z = phi(x, a) - phi(x, pi_t), for all contexts at once, instead of against the sampled opponent of
    the present one; weights move in rounds in which something was asked. `policy`: the law it plays next. Complexity
    O(X A d^2) a round. Raises ValueError for fresh contexts or a world without features.
    """

    threshold: float = 0.3
    radius: float = 1.0
    step_size: float | None = None
    ridge: float = 0.1
    matrix_ridge: float = 1.0
    ball: float | None = None
    refit_growth: float = 0.01

    feedbacks: ClassVar[tuple[Feedback, ...]] = ("preference",)
    needs_features: ClassVar[bool] = True
    offline: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, positive=("ball", "matrix_ridge", "step_size"))

    @property
    def consistent(self) -> bool:
        return False

    def init(self, setting: Setting) -> _State:
        if setting.contexts is None:
            raise ValueError("world: APPO keeps weights over contexts and needs a finite world (n_contexts=)")
        duels = start_duels(
            setting, ridge=self.ridge, matrix_ridge=self.matrix_ridge, ball=self.ball, refit_growth=self.refit_growth
        )
        return _State(duels, Tabular(uniform(setting.contexts.ref_log_probs)))

    def select(self, state: _State, contexts: Contexts, draws: Round) -> Tensor:
        B = contexts.shape[1]
        pair = torch.stack([state.policy.sample(contexts, draws.uniform(f"player{i}", B)) for i in (0, 1)], dim=-1)
        phi = contexts.features_of(pair)
        asks = width(phi[:, :, 0] - phi[:, :, 1], state.duels.inverse) > self.threshold
        return torch.where(asks[..., None], pair, pair[..., :1])

    def update(
        self, state: _State, contexts: Contexts, actions: Tensor, feedback: Tensor, draws: Round
    ) -> tuple[_State, Info]:
        del draws
        duels, pool = state.duels, state.duels.setting.contexts
        assert pool is not None
        observe(duels, contexts, actions, feedback, "gram", self.matrix_ridge)
        asked = (actions[..., 0] != actions[..., 1]).any(-1)
        law = state.policy.table
        mean = torch.einsum("rxa,rxad->rxd", law.exp(), pool.features)
        bonus = self.radius * width(pool.features - mean[:, :, None], duels.inverse)
        expected = linear(mean[:, :, None], duels.model.theta)
        advantage = linear(pool.features, duels.model.theta) - expected + bonus
        moved = law + self._rate(duels.setting) * advantage.clamp_max(LARGEST_ADVANTAGE)
        state.policy = Tabular(torch.where(asked[:, None, None], normalise(moved), law))
        return state, duels.model.info(self.radius)

    def policy(self, state: _State) -> Policy:
        return state.policy

    def _rate(self, setting: Setting) -> float:
        if self.step_size is not None:
            return self.step_size
        return math.sqrt(2 * math.log(max(2, setting.n_actions)) / setting.rounds)


@dataclass
class _Pairs:
    setting: Setting
    model: RewardModel
    policy: Policy
    meant: Tensor | None = None  # (R, B, 2): the pairs of the present round, asked or not
    shown: Tensor | None = None  # what `select` returned for them


@dataclass(frozen=True)
class ADPO:
    """ADPO's confidence rule on an online DPO: a pair on which the policy is sure is not asked but labelled by itself.

    Ji, He, Gu 2024 (2402.09401), section 6: with the implied reward r = kl_coef log(pi / pi_ref) of the present policy,
    |r(a) - r(b)| > confidence means no question and the pseudo-label sign(r(a) - r(b)); otherwise the annotator's
    label. The policy is the DPO minimiser over log-linear policies on all labels so far: the Gibbs policy of the
    Bradley-Terry MLE. players: who offers the pairs, the "reference" (their data sets) or the "current" policy.

    confidence: their gamma (1.3 in their runs; the code's default 2.0). No guarantee; at first all implied rewards are
    0 and everything is asked; early errors can lock in, because a pseudo-label confirms itself. `policy`: that Gibbs
    policy. Complexity: a refit when the data have grown by `refit_growth`. Raises ValueError for a world without
    features.
    """

    confidence: float = 1.3
    players: Literal["reference", "current"] = "reference"
    ridge: float = 0.1
    ball: float | None = None
    refit_growth: float = 0.01

    feedbacks: ClassVar[tuple[Feedback, ...]] = ("preference",)
    needs_features: ClassVar[bool] = True
    offline: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, positive=("ball",))

    @property
    def consistent(self) -> bool:
        return False  # pseudo-labels are certain where the annotator is not

    def init(self, setting: Setting) -> _Pairs:
        model = RewardModel(setting, ridge=self.ridge, ball=self.ball, refit_growth=self.refit_growth)
        return _Pairs(setting, model, Reference())

    def select(self, state: _Pairs, contexts: Contexts, draws: Round) -> Tensor:
        B = contexts.shape[1]
        player = Reference() if self.players == "reference" else state.policy
        pair = torch.stack([player.sample(contexts, draws.uniform(f"player{i}", B)) for i in (0, 1)], dim=-1)
        sure = self._margin(state, contexts, pair).abs() > self.confidence
        state.meant, state.shown = pair, torch.where(sure[..., None], pair[..., :1], pair)
        return state.shown

    def update(
        self, state: _Pairs, contexts: Contexts, actions: Tensor, feedback: Tensor, draws: Round
    ) -> tuple[_Pairs, Info]:
        del draws
        if state.meant is not None and actions is state.shown:
            margin = self._margin(state, contexts, state.meant)
            feedback = torch.where(margin.abs() > self.confidence, (margin > 0).to(feedback.dtype), feedback)
            actions = state.meant
        state.meant = state.shown = None
        if state.model.observe(contexts, actions, feedback):
            gibbs = LogLinear(state.model.theta / state.setting.kl_coef)
            state.policy = tabulate(gibbs, state.setting.contexts)
        return state, state.model.info()

    def policy(self, state: _Pairs) -> Policy:
        return state.policy

    def _margin(self, state: _Pairs, contexts: Contexts, pair: Tensor) -> Tensor:
        """Implied reward of the first minus that of the second, (R, B)."""
        rewards = linear(contexts.features_of(pair), state.model.theta)
        return rewards[..., 0] - rewards[..., 1]
