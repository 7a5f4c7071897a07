"""Exact quantities of the game that a preference oracle poses; registered, with all others, in `metrics`."""

from __future__ import annotations

import torch
from torch import Tensor

from simbandit import equilibrium
from simbandit.snapshots import Game, Snapshot, best_reward, kl


def _game(s: Snapshot) -> Game:
    if s.game is None:
        raise ValueError("metrics: game metrics need a preference oracle with a `win_table`")
    return s.game


def duality_gap(s: Snapshot) -> Tensor:
    """E_x of max_a J(a, pi) - min_b J(pi, b) = 2 kl_coef KL(pi || BR(pi))."""
    gap = equilibrium.duality_gap(s.log_probs, _game(s).preference, s.ref_log_probs, s.kl_coef)
    return s.over_contexts(gap)


def exploitability(s: Snapshot) -> Tensor:
    """1/2 - min_b J(pi, b), half the duality gap."""
    return duality_gap(s) / 2


def unregularised_gap(s: Snapshot) -> Tensor:
    """E_x of 2 max_a P(a > pi) - 1: the duality gap without the KL terms."""
    offered = ~torch.isneginf(s.ref_log_probs)
    wins = s.oracle.win_rates(s.instance.evaluation, s.log_probs)
    return s.over_contexts(2 * torch.where(offered, wins, 0.0).amax(-1) - 1)


def kl_to_nash(s: Snapshot) -> Tensor:
    """KL(pi* || pi), nats, pi* the KL-regularised equilibrium."""
    return s.over_contexts(kl(_game(s).nash, s.log_probs))


def nash_win_margin(s: Snapshot) -> Tensor:
    """J(pi*, pi) - 1/2 = kl_coef KL(pi || pi*), an identity."""
    return s.kl_coef * s.over_contexts(kl(s.log_probs, _game(s).nash))


def borda_regret(s: Snapshot) -> Tensor:
    """E_x of the largest Borda score (win rate against the reference) minus that of pi."""
    wins = s.oracle.win_rates(s.instance.evaluation, s.ref_log_probs)
    return s.over_contexts(best_reward(wins, s.ref_log_probs)) - s.expect(s.log_probs, wins)


def von_neumann_regret(s: Snapshot) -> Tensor | None:
    """E over w of (P(w > a) + P(w > b)) / 2 - 1/2 for the duels (a, b) played, w the von Neumann winner of the context:
    never negative, 0 for a winner against itself (Dudik et al. 2015, 1502.06362). Their regret takes the best fixed
    comparator in hindsight, and is at least the sum of these. A winner that is not unique is the linear programme's
    vertex. None for policies (`FullInformation`): see `unregularised_gap`."""
    if s.actions is None or s.contexts is None or s.actions.is_floating_point():
        return None
    winner = _game(s).von_neumann
    margin = (winner[..., None, :] @ _game(s).preference).squeeze(-2) - 0.5
    return s.contexts.rows(margin).gather(-1, s.actions).mean((-1, -2))


def minority_mass(s: Snapshot) -> Tensor:
    """E_x of the probability that pi leaves to all actions but the majority's favourite: the action of the largest
    Borda score among those offered (mean win rate against a uniform one; first index within 1e-9), which under
    Bradley-Terry has the largest reward. 0 is preference collapse (Xiao et al. 2405.16455)."""
    offered = ~torch.isneginf(s.ref_log_probs)
    uniform = torch.where(offered, -offered.sum(-1, keepdim=True).to(s.ref_log_probs.dtype).log(), -torch.inf)
    wins = torch.where(offered, s.oracle.win_rates(s.instance.evaluation, uniform), -torch.inf)
    favourite = (wins >= wins.amax(-1, keepdim=True) - 1e-9).to(torch.int8).argmax(-1, keepdim=True)
    rest = s.log_probs.exp().scatter(-1, favourite, 0.0)
    return s.over_contexts(rest.sum(-1))


def matching_divergence(s: Snapshot) -> Tensor:
    """E_x KL(pi_PM || pi), nats, to preference matching: pi_PM(a) proportional to exp(r_a) over the actions offered,
    r_a the mean over them of log P(a > b) / P(b > a). Under Bradley-Terry r is its score, at the annotators'
    temperature, and pi_PM(a) / pi_PM(b) = P(a > b) / P(b > a) (Xiao et al. 2405.16455); otherwise it is the
    least-squares score. It grows without bound as a minority loses its mass. Raises ValueError where a P is 0 or 1."""
    offered = ~torch.isneginf(s.ref_log_probs)
    both = offered[..., :, None] & offered[..., None, :]
    odds = torch.where(both, torch.logit(_game(s).preference), 0.0)
    if not bool(torch.isfinite(odds).all()):
        raise ValueError("metrics: matching_divergence needs win probabilities strictly between 0 and 1")
    scores = odds.sum(-1) / offered.sum(-1, keepdim=True)
    matching = torch.log_softmax(torch.where(offered, scores, -torch.inf), -1)
    return s.over_contexts(kl(matching, s.log_probs))
