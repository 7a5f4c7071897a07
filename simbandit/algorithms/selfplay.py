"""Bandits on duels alone, context by context: self-play EXP3, Borda and Copeland winners, preference matching.

None of them looks at kl_coef: they are baselines for the unregularised game (the von Neumann winner), for social choice
by counting, and for a policy that copies the annotators' probabilities.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from simbandit.algorithms.checks import check
from simbandit.algorithms.direct import Direct
from simbandit.data import Duels
from simbandit.draws import Round
from simbandit.policies import LogLinear, Tabular, argmax, mixture, normalise, uniform
from simbandit.policies import Uniform as UniformPolicy
from simbandit.types import Contexts, Feedback, Info, Policy, Setting


def _pool(setting: Setting, name: str) -> Contexts:
    if setting.contexts is None:
        raise ValueError(f"world: {name} keeps a table over contexts and needs a finite world (n_contexts=)")
    return setting.contexts


# ------------------------------------------------------------------------------------------------------------- EXP3


@dataclass
class _Weights:
    """log_weights: one table (R, X, A) per copy; log_played: log of the sum over plays of the policies, (R, X, A)."""

    setting: Setting
    pool: Contexts
    log_weights: list[Tensor]
    log_played: Tensor
    players: tuple[Tabular, Tabular]
    policy: Tabular


@dataclass(frozen=True)
class Exp3:
    """EXP3 on the win rate, against itself: learns the von Neumann winner of every context.

    Per context, with losses l = 1 - (win) of its own action, p proportional to exp(-step_size sum of l_hat),
    l_hat(a) = l 1{a played} / p(a), mixed with `exploration` of the uniform policy.

    copies: "two" is Sparring (Dudik et al. 2015, 1502.06362): two independent learners, whose rewards are the label
        and its complement. "one" is self-play (SPO's argument, 2401.04056: in a symmetric game one learner may play
        both sides): both actions come from the one p, and the mean of their two unbiased estimates updates it.
    output: "average", which has the guarantee: the mean over the plays of a context of the policies (of both copies),
        the current one counted as one more play; or the "last" one, which has none and circles the winner.
    step_size: None is sqrt(2 log A / (A n)), n the expected plays of a context.

    EXP4 over all maps from contexts to actions, the tabular policy class, has product weights, so its law of actions is
    that of EXP3 run per context: this is SparringEXP4 for that class. Guarantee (EXP3's pseudo-regret is at most
    sqrt(2 n A log A)): the average's gap 2 max_a P(a beats p) - 1 is at most 2 sqrt(2 A log A / n) for self-play, up to
    the fluctuation of an adaptive opponent. Deviations: the policies of a batch are those of its beginning; logged
    duels are taken as if drawn by the current policy. Complexity O(X A + duels) a round. Raises ValueError for a world
    of fresh contexts.
    """

    copies: Literal["one", "two"] = "one"
    step_size: float | None = None
    exploration: float = 0.0
    output: Literal["average", "last"] = "average"

    feedbacks: ClassVar[tuple[Feedback, ...]] = ("preference",)
    needs_features: ClassVar[bool] = False
    offline: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, positive=("step_size",))
        _check_fraction("exploration", self.exploration)

    @property
    def consistent(self) -> bool:
        return False

    def init(self, setting: Setting) -> _Weights:
        pool = _pool(setting, "EXP3")
        start = uniform(pool.ref_log_probs)
        tables = [start] * (2 if self.copies == "two" else 1)
        never = torch.full_like(start, -torch.inf)
        return _Weights(setting, pool, tables, never, (Tabular(start), Tabular(start)), Tabular(start))

    def select(self, state: _Weights, contexts: Contexts, draws: Round) -> Tensor:
        uniforms = (draws.uniform(f"player{i}", contexts.shape[1]) for i in (0, 1))
        return torch.stack([p.sample(contexts, u) for p, u in zip(state.players, uniforms, strict=True)], dim=-1)

    def update(
        self, state: _Weights, contexts: Contexts, actions: Tensor, feedback: Tensor, draws: Round
    ) -> tuple[_Weights, Info]:
        del draws
        assert contexts.index is not None
        (R, X, A), pool = state.log_played.shape, state.pool
        losses = []
        for i, loss in enumerate((1 - feedback, feedback)):
            action = actions[..., i : i + 1]
            estimate = loss / state.players[i].log_probs(contexts, action).squeeze(-1).exp()
            cell = contexts.index * A + action.squeeze(-1)
            losses.append(loss.new_zeros(R, X * A).scatter_add_(1, cell, estimate).view(R, X, A))
        if self.copies == "one":
            losses = [(losses[0] + losses[1]) / 2]
        plays = feedback.new_zeros(R, X).scatter_add_(1, contexts.index, torch.ones_like(feedback))
        rate = self._rate(state)
        halves = torch.logaddexp(state.players[0].table, state.players[1].table) - math.log(2)
        state.log_played = torch.logaddexp(state.log_played, halves + plays.log()[..., None])
        state.log_weights = [normalise(w - rate * loss) for w, loss in zip(state.log_weights, losses, strict=True)]
        laws = [self._explored(normalise(w), pool) for w in state.log_weights]
        state.players = (Tabular(laws[0]), Tabular(laws[-1]))
        state.policy = self._output(state)
        return state, Info()

    def policy(self, state: _Weights) -> Policy:
        return state.policy

    def _rate(self, state: _Weights) -> float | Tensor:
        if self.step_size is not None:
            return self.step_size
        offered = (~torch.isneginf(state.pool.ref_log_probs)).sum(-1, keepdim=True, dtype=torch.float64)
        plays = state.setting.rounds * state.setting.batch_size / state.pool.shape[1]
        return (2 * offered.log() / (offered * plays)).sqrt()

    def _explored(self, law: Tensor, pool: Contexts) -> Tensor:
        if self.exploration == 0:
            return law
        return mixture([law, uniform(pool.ref_log_probs)], [1 - self.exploration, self.exploration])

    def _output(self, state: _Weights) -> Tabular:
        current = torch.logaddexp(state.players[0].table, state.players[1].table) - math.log(2)
        if self.output == "average":
            current = torch.logaddexp(state.log_played, current)
        return Tabular(normalise(current))


def _check_fraction(name: str, value: float) -> None:
    if value > 1:
        raise ValueError(f"{name}: a fraction in [0, 1], got {value}")


# ---------------------------------------------------------------------------------------------------------- counting


@dataclass
class _Counts:
    setting: Setting
    pool: Contexts
    duels: Duels
    winner: Tabular


@dataclass(frozen=True)
class CountWinner:
    """Explore, then commit to the winner of a count: a fraction `exploration` of the rounds plays uniform pairs, the
    rest plays the winner against itself.

    score: "borda", the mean over opponents of P_hat(a beats b), the win rate that offline IPO on uniform pairs tilts
        by; or "copeland", the number of opponents with P_hat(a beats b) > 1/2 minus those with < 1/2, which elects a
        Condorcet winner where there is one. P_hat is the observed share of wins, 1/2 for a pair never seen.
    policy: uniform over the actions of the best score so far. Guarantee (explore-then-commit, Jamieson et al. 2015 for
    Borda): T^(2/3) Borda regret for exploration of order T^(-1/3); nothing in the regularised game. Deviation: the
    fraction is stated, not tuned to the horizon. Complexity O(distinct pairs) a round. Raises ValueError for a fraction
    outside [0, 1] and for a world of fresh contexts.
    """

    score: Literal["borda", "copeland"] = "borda"
    exploration: float = 0.5

    feedbacks: ClassVar[tuple[Feedback, ...]] = ("preference",)
    needs_features: ClassVar[bool] = False
    offline: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self)
        _check_fraction("exploration", self.exploration)

    @property
    def consistent(self) -> bool:
        return False

    def init(self, setting: Setting) -> _Counts:
        pool = _pool(setting, "counting winners")
        duels = Duels(setting.replicates, pool, None, setting.device)
        return _Counts(setting, pool, duels, Tabular(uniform(pool.ref_log_probs)))

    def select(self, state: _Counts, contexts: Contexts, draws: Round) -> Tensor:
        explores = draws.t < round(self.exploration * state.setting.rounds)
        player = UniformPolicy() if explores else state.winner
        uniforms = (draws.uniform(f"player{i}", contexts.shape[1]) for i in (0, 1))
        return torch.stack([player.sample(contexts, u) for u in uniforms], dim=-1)

    def update(
        self, state: _Counts, contexts: Contexts, actions: Tensor, feedback: Tensor, draws: Round
    ) -> tuple[_Counts, Info]:
        del draws
        state.duels.add(contexts, actions, feedback)
        duels, ref = state.duels, state.pool.ref_log_probs
        margin = duels.wins / duels.count.clamp_min(1.0) - 0.5 * (duels.count > 0)
        if self.score == "copeland":
            margin = torch.where(margin.abs() < 1e-9, 0.0, margin.sign())
        cell = duels.context[..., None] * ref.shape[-1] + duels.actions
        score = torch.zeros(ref.shape[0], ref[0].numel(), dtype=ref.dtype, device=ref.device)
        score.scatter_add_(1, cell.flatten(1), torch.stack([margin, -margin], dim=-1).flatten(1))
        state.winner = Tabular(argmax(score.view(ref.shape), ref))
        return state, Info()

    def policy(self, state: _Counts) -> Policy:
        return state.winner


# --------------------------------------------------------------------------------------------- preference matching


@dataclass
class _Matching:
    pool: Contexts
    inner: Any
    policy: Policy


@dataclass(frozen=True)
class PreferenceMatching:
    """PM-RLHF: the policy whose odds are the annotators', pi(a) / pi(b) = P(a beats b) / P(b beats a) = exp(r_a - r_b).

    Source: Xiao et al. 2024 (2405.16455): their preference-matching regulariser -log pi (the constants of its
    differential equation left out) makes argmax_pi E_pi[r - log pi] = softmax(r): entropy of weight exactly 1, so
    neither kl_coef nor the reference enters. With r the Bradley-Terry MLE this is DPO with a uniform reference at
    coefficient 1, and is fitted so, on all duels so far.
    players: "current" or "uniform" for each response. value_range bounds |r_a - r_b|, `proximal` as in `Direct`.
    Deviations: the paper trains by PPO against a learned reward; its conditional form (entropy over meaningful
    responses only) is the uniform policy over the offered actions here. Where no Bradley-Terry reward explains the
    duels, the MLE's softmax is what is matched. Raises ValueError for a world of fresh contexts.
    """

    players: tuple[Literal["current", "uniform"], Literal["current", "uniform"]] = ("current", "current")
    value_range: float | None = None
    proximal: float = 1e-6

    feedbacks: ClassVar[tuple[Feedback, ...]] = ("preference",)
    needs_features: ClassVar[bool] = False
    offline: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, positive=("value_range",))

    @property
    def consistent(self) -> bool:
        return False

    @property
    def _fit(self) -> Direct:
        return Direct("dpo", players=self.players, value_range=self.value_range, proximal=self.proximal)

    def init(self, setting: Setting) -> _Matching:
        pool = _pool(setting, "preference matching")
        law = uniform(pool.ref_log_probs)
        features = pool.features if pool.has_features else None
        flat = Contexts(index=pool.index, features=features, ref_log_probs=law, weights=pool.weights)
        policy: Any = setting.policy
        policy = LogLinear(torch.zeros_like(policy.theta)) if isinstance(policy, LogLinear) else Tabular(law)
        inner = self._fit.init(replace(setting, kl_coef=1.0, contexts=flat, policy=policy))
        return _Matching(flat, inner, Tabular(law))

    def select(self, state: _Matching, contexts: Contexts, draws: Round) -> Tensor:
        return self._fit.select(state.inner, Contexts(index=contexts.index, pool=state.pool), draws)

    def update(
        self, state: _Matching, contexts: Contexts, actions: Tensor, feedback: Tensor, draws: Round
    ) -> tuple[_Matching, Info]:
        moved = Contexts(index=contexts.index, pool=state.pool)
        state.inner, info = self._fit.update(state.inner, moved, actions, feedback, draws)
        state.policy = Tabular(state.inner.policy.log_probs(state.pool))
        return state, info

    def policy(self, state: _Matching) -> Policy:
        return state.policy
