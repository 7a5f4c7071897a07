"""Dueling bandits on tables, context by context and without features: RUCB and double Thompson sampling.

They look for a Condorcet winner: an action that beats every other with probability above 1/2. With one context they are
the classical, non-contextual algorithms; with several, one copy per context. For general preferences without such a
winner see `borda`, `copeland`, `sparring_exp3` and `self_play_exp3` (the von Neumann winner). `policy(state)`: uniform
over the actions that win most matches by the observed shares (Copeland's score).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from scipy.special import betaincinv
from torch import Tensor

from simbandit.algorithms.checks import check
from simbandit.algorithms.choosing import choose
from simbandit.draws import Round
from simbandit.policies import Tabular, argmax
from simbandit.types import Contexts, Feedback, Info, Policy, Setting

UNTIED = 1e-8  # more than the scores' tie tolerance


@dataclass
class _State:
    """wins (R, X, A, A): label mass with which the row action beat the column's; count: duels of the pair."""

    pool: Contexts
    wins: Tensor
    count: Tensor


def _start(setting: Setting, name: str) -> _State:
    if setting.contexts is None:
        raise ValueError(f"world: {name} keeps a table over contexts and needs a finite world (n_contexts=)")
    ref = setting.contexts.ref_log_probs
    zeros = ref.new_zeros(*ref.shape, ref.shape[-1])
    return _State(setting.contexts, zeros, zeros.clone())


def _learn(state: _State, contexts: Contexts, actions: Tensor, feedback: Tensor) -> None:
    assert contexts.index is not None
    R, A = len(state.wins), state.wins.shape[-1]
    first, second = actions[..., 0], actions[..., 1]
    said = (first != second).to(feedback.dtype)
    for row, column, label in ((first, second, feedback), (second, first, 1 - feedback)):
        cell = (contexts.index * A + row) * A + column
        state.wins.view(R, -1).scatter_add_(1, cell, said * label)
        state.count.view(R, -1).scatter_add_(1, cell, said)


def _copeland(state: _State) -> Tensor:
    margin = state.wins / state.count.clamp_min(1.0) - 0.5 * (state.count > 0)
    return torch.where(margin.abs() < 1e-9, 0.0, margin.sign()).sum(-1)


def _bounds(state: _State, contexts: Contexts, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """Upper and lower confidence bounds of P(row beats column), (R, B, A, A): share +- sqrt(alpha log t / n), t the
    context's duels so far; 1 and 0 for a pair never seen, 1/2 for an action with itself. And the observed shares."""
    wins, count = contexts.rows(state.wins), contexts.rows(state.count)
    total = (count.sum((-1, -2), keepdim=True) / 2 + 1).log()
    share = wins / count.clamp_min(1.0)
    slack = (alpha * total / count.clamp_min(1.0)).sqrt()
    seen, same = count > 0, torch.eye(count.shape[-1], dtype=torch.bool, device=count.device)
    upper = torch.where(same, 0.5, torch.where(seen, share + slack, 1.0))
    return upper, torch.where(same, 0.5, torch.where(seen, share - slack, 0.0)), share


@dataclass(frozen=True)
class RUCB:
    """Relative upper confidence bound: a champion that may beat all others, against its most dangerous rival.

    Zoghi et al. 2014 (1312.3393, ICML 2014), Algorithm 1: u_ij = share + sqrt(alpha log t / n_ij); the champion c is
    uniform over {i : u_ij >= 1/2 for all j} (over all actions where empty), the rival argmax_j u_jc, c itself (u_cc =
    1/2) where nobody may beat it. Guarantee (Theorem 2), a Condorcet winner and alpha > 1/2: with high probability
    regret O(A log T). Deviations: no hypothesised best action is remembered between rounds (their set B, a tie-breaking
    rule); a rival whose bound is 1/2 exactly comes before c itself, else equal bounds are broken by noise; t counts the
    context's own duels. Complexity O(A^2) per context. Raises ValueError for a world of fresh contexts.
    """

    alpha: float = 0.51

    feedbacks: ClassVar[tuple[Feedback, ...]] = ("preference",)
    needs_features: ClassVar[bool] = False
    offline: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, positive=("alpha",))

    @property
    def consistent(self) -> bool:
        return False

    def init(self, setting: Setting) -> _State:
        return _start(setting, "RUCB")

    def select(self, state: _State, contexts: Contexts, draws: Round) -> Tensor:
        B = contexts.shape[1]
        upper, _, _ = _bounds(state, contexts, self.alpha)
        absent = contexts.ref_log_probs == -torch.inf
        possible = ((upper >= 0.5) | absent[..., None, :]).all(-1) & ~absent
        champion = choose(possible.to(upper.dtype), contexts, draws.uniform("champion", B))
        against = upper.gather(-1, champion[..., None, None].expand(-1, -1, upper.shape[-2], 1)).squeeze(-1)
        against = against.scatter(-1, champion[..., None], 0.5 - UNTIED)  # u_cc = 1/2, but c never wins a tie
        return torch.stack([champion, choose(against, contexts, draws.uniform("rival", B))], dim=-1)

    def update(
        self, state: _State, contexts: Contexts, actions: Tensor, feedback: Tensor, draws: Round
    ) -> tuple[_State, Info]:
        del draws
        _learn(state, contexts, actions, feedback)
        return state, Info()

    def policy(self, state: _State) -> Policy:
        return Tabular(argmax(_copeland(state), state.pool.ref_log_probs))


@dataclass(frozen=True)
class DoubleThompson:
    """Double Thompson sampling: both actions of a duel come from Beta posteriors of the win probabilities.

    Wu and Liu 2016 (1604.07101, NeurIPS 2016), Algorithm 1. First: with C the actions whose optimistic Copeland score
    is largest, draw theta_ij ~ Beta(wins_ij + 1, wins_ji + 1) for i < j and take the action of C that wins most sampled
    matches. Second: among actions with lower bound l_ij <= 1/2 against the first, the largest of fresh draws
    theta_j,first (the first itself counts 1/2). Guarantee (Theorem 1), a Condorcet winner and alpha > 1/2: expected
    regret O(A log T + A^2 log log T). Deviations: t counts the context's own duels. Complexity O(A^2) inverse Beta
    integrals per context. Raises ValueError for a world of fresh contexts.
    """

    alpha: float = 0.51

    feedbacks: ClassVar[tuple[Feedback, ...]] = ("preference",)
    needs_features: ClassVar[bool] = False
    offline: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, positive=("alpha",))

    @property
    def consistent(self) -> bool:
        return False

    def init(self, setting: Setting) -> _State:
        return _start(setting, "double Thompson sampling")

    def select(self, state: _State, contexts: Contexts, draws: Round) -> Tensor:
        B, A = contexts.shape[1], contexts.n_actions
        upper, lower, _ = _bounds(state, contexts, self.alpha)
        absent = contexts.ref_log_probs == -torch.inf
        match = ~absent[..., None, :] & ~torch.eye(A, dtype=torch.bool, device=upper.device)
        hopeful = ((upper > 0.5) & match).sum(-1).masked_fill(absent, -1)
        wins = contexts.rows(state.wins)
        sampled = _beta(wins, wins.mT, draws.uniform("posterior", B, A, A))
        above = torch.triu(torch.ones_like(sampled, dtype=torch.bool), 1)
        sampled = torch.where(above, sampled, 1 - sampled.mT)  # one draw per unordered pair
        score = ((sampled > 0.5) & match).sum(-1).to(upper.dtype)
        score = score.masked_fill(hopeful < hopeful.amax(-1, keepdim=True), -1.0)
        first = choose(score, contexts, draws.uniform("ties", B))
        at = first[..., None, None].expand(-1, -1, A, 1)
        beaten = wins.gather(-1, at).squeeze(-1), wins.mT.gather(-1, at).squeeze(-1)
        rival = _beta(*beaten, draws.uniform("posterior/second", B, A))
        rival = rival.scatter(-1, first[..., None], 0.5)
        rival = rival.masked_fill(lower.gather(-1, at).squeeze(-1) > 0.5, -1.0)
        return torch.stack([first, choose(rival, contexts, draws.uniform("ties/second", B))], dim=-1)

    def update(
        self, state: _State, contexts: Contexts, actions: Tensor, feedback: Tensor, draws: Round
    ) -> tuple[_State, Info]:
        del draws
        _learn(state, contexts, actions, feedback)
        return state, Info()

    def policy(self, state: _State) -> Policy:
        return Tabular(argmax(_copeland(state), state.pool.ref_log_probs))


def _beta(wins: Tensor, losses: Tensor, uniforms: Tensor) -> Tensor:
    """Beta(wins + 1, losses + 1) by its inverse distribution function, which torch lacks."""
    arrays = ((wins + 1).cpu().numpy(), (losses + 1).cpu().numpy(), uniforms.cpu().numpy())
    return torch.from_numpy(betaincinv(*arrays)).to(uniforms.device)
