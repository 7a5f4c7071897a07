"""The exact laws of the samplers that RLHF uses, as functions of tables of log-probabilities.

All log-probabilities are normalised over the last axis; -inf marks actions that a context does not offer, or that a
deterministic rule never plays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from simbandit.solvers import increasing_root


def normalise(log_weights: Tensor) -> Tensor:
    """log-softmax over the last axis; -inf stays -inf."""
    return torch.log_softmax(log_weights, dim=-1)


def gibbs(rewards: Tensor, ref_log_probs: Tensor, kl_coef: float | Tensor) -> Tensor:
    """argmax_pi E_pi[r] - kl_coef KL(pi || pi_ref): pi proportional to pi_ref exp(r / kl_coef). Rewards at actions
    with zero reference mass do not matter."""
    tilt = torch.where(torch.isneginf(ref_log_probs), 0.0, rewards / kl_coef)
    return normalise(ref_log_probs + tilt)


def uniform(ref_log_probs: Tensor) -> Tensor:
    """Uniform over the actions that the context offers."""
    return normalise(torch.zeros_like(ref_log_probs).masked_fill(torch.isneginf(ref_log_probs), -torch.inf))


def argmax(scores: Tensor, ref_log_probs: Tensor) -> Tensor:
    """The greedy law: uniform over the maximisers (within 1e-9 of the largest magnitude), so that a tie is broken by
    the uniform that was drawn in advance and never by rounding."""
    best = maximisers(scores, ref_log_probs)
    return normalise(torch.zeros_like(ref_log_probs).masked_fill(~best, -torch.inf))


def maximisers(scores: Tensor, ref_log_probs: Tensor) -> Tensor:
    """Where `argmax` has its mass."""
    offered = ~torch.isneginf(ref_log_probs)
    masked = torch.where(offered, scores, -torch.inf)
    tolerance = 1e-9 * torch.where(offered, scores.abs(), 0.0).amax(-1, keepdim=True).clamp_min(1.0)
    return offered & (masked >= masked.amax(-1, keepdim=True) - tolerance)


def mixture(log_probs: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Mixture in probability space."""
    if len(log_probs) != len(weights) or not (min(weights) >= 0 and abs(sum(weights) - 1.0) <= 1e-9):
        raise ValueError(f"weights: one per policy, non-negative, summing to 1; got {tuple(weights)}")
    terms = [p + torch.tensor(w, dtype=p.dtype).log() for p, w in zip(log_probs, weights, strict=True) if w > 0]
    return normalise(torch.logsumexp(torch.stack(terms), dim=0))


def best_of_n(log_probs: Tensor, scores: Tensor, n: int) -> Tensor:
    """Exact law of the best of n i.i.d. draws, ties broken at random: P(a) = p_a / p(s = s_a) (F(s_a)^n - F(s_a-)^n),
    in log space, where the smallest probabilities keep their digits.

    Scores closer than 1e-9 of the largest magnitude are ties. `scores` negated gives worst-of-n.
    """
    if n < 1:
        raise ValueError(f"n: must be at least 1, got {n}")
    p = log_probs.exp()
    order = torch.where(p > 0, scores, -torch.inf).argsort(dim=-1)
    sorted_scores, sorted_p = scores.gather(-1, order), p.gather(-1, order)
    present = sorted_p > 0
    tolerance = 1e-9 * torch.where(p > 0, scores.abs(), 0.0).amax(-1, keepdim=True).clamp_min(1.0)
    gap = sorted_scores[..., 1:] - sorted_scores[..., :-1] > tolerance
    starts = torch.cat([torch.ones_like(gap[..., :1]), gap | ~present[..., :-1]], dim=-1)
    level = starts.cumsum(-1) - 1  # tied actions share a level
    mass = torch.zeros_like(p).scatter_add(-1, level, sorted_p)
    upper = mass.cumsum(-1)
    share = mass / upper.clamp_min(1e-300)
    log_total = n * upper.log() + torch.log(-torch.expm1(n * torch.log1p(-share.clamp_max(1.0))))
    boost = (log_total - mass.log()).gather(-1, level)
    law = torch.where(present, log_probs.gather(-1, order) + boost, -torch.inf)
    return normalise(torch.empty_like(p).scatter(-1, order, law))


def rejection_sampling(log_proposal: Tensor, scores: Tensor, kl_coef: float, budget: int) -> tuple[Tensor, Tensor]:
    """Rejection sampling of the tilt pi' = pi exp(s / kl_coef) / Z with at most `budget` proposals.

    A proposal a ~ pi is accepted with probability exp((s_a - max s) / kl_coef); if none is accepted, a last
    unconditional draw of pi is returned. Returns the exact law and the log of the acceptance probability of one
    proposal.
    """
    offered = ~torch.isneginf(log_proposal)
    best = torch.where(offered, scores, -torch.inf).amax(-1, keepdim=True)
    log_accept = torch.where(offered, (scores - best) / kl_coef, 0.0)
    joint = log_proposal + log_accept
    log_rate = torch.logsumexp(joint, dim=-1, keepdim=True).clamp_max(0.0)
    log_none = budget * torch.log1p(-log_rate.exp().clamp_max(1.0))
    accepted = joint - log_rate + torch.log(-torch.expm1(log_none))
    return normalise(torch.logaddexp(accepted, log_proposal + log_none)), log_rate.squeeze(-1)


def multi_step_rejection(
    ref_log_probs: Tensor, scores: Tensor, kl_coef: float, steps: int, budget: int
) -> tuple[Tensor, Tensor]:
    """GSHF's chain pi_0 -> pi_0 exp(s / eta_1) -> ... -> pi_0 exp(s / eta_N), 1 / eta_i = i / (N kl_coef): each step
    proposes from the law of the step before, tilts by s / (N kl_coef), and has its own budget. Returns the law and the
    log acceptance rate of every step, (..., steps)."""
    if steps < 1 or budget < 1:
        raise ValueError(f"steps, budget: must be at least 1, got {steps}, {budget}")
    law, rates = ref_log_probs, []
    for _ in range(steps):
        law, rate = rejection_sampling(law, scores, kl_coef * steps, budget)
        rates.append(rate)
    return law, torch.stack(rates, dim=-1)


def lambert_w_exp(u: Tensor) -> Tensor:
    """W_0(exp(u)): the solution of w + log w = u, without overflow."""
    return _log_lambert_w_exp(u).exp()


def _log_lambert_w_exp(u: Tensor) -> Tensor:
    """x + exp(x) = u by Newton, without underflow."""
    x = torch.where(u > 1, torch.log(u.clamp_min(1.0)), u)  # x = log w
    for _ in range(60):
        w = x.exp()
        change = (x + w - u) / (1 + w)
        x = x - change
        if not (change.abs() > 1e-15 * x.abs().clamp_min(1.0)).any():
            break
    return x


class Divergence(NamedTuple):
    """D_f(pi || pi_ref) = E_ref f(pi / pi_ref), by the derivative f'(w), the log of its inverse w(u), and w'(u) = 1 /
    f''."""

    derivative: Callable[[Tensor], Tensor]
    log_inverse: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]


DIVERGENCES = {
    "reverse_kl": Divergence(lambda w: w.log(), lambda u: u, lambda w: w),
    "forward_kl": Divergence(lambda w: -1 / w, lambda u: -torch.log(-u), lambda w: w * w),
    "chi_squared": Divergence(lambda w: w - 1, lambda u: (1 + u).clamp_min(0.0).log(), lambda w: (w > 0).to(w.dtype)),
    "chi_squared_kl": Divergence(lambda w: w + w.log(), _log_lambert_w_exp, lambda w: w / (1 + w)),
    "jensen_shannon": Divergence(
        lambda w: torch.log(2 * w / (1 + w)), lambda u: u - torch.log(2 - u.exp()), lambda w: w * (1 + w)
    ),
}
"""f(w): w log w - w; -log w; (w - 1)^2 / 2; the first and third (chi-PO's mixed divergence, 2407.13399);
Jensen-Shannon."""


def divergence_tilt(rewards: Tensor, ref_log_probs: Tensor, coef: float, divergence: str) -> Tensor:
    """argmax_pi E_pi[r] - coef D_f(pi || pi_ref): pi = pi_ref (f')^-1((r - lambda) / coef), the multiplier lambda a
    root in one dimension, bracketed by pi <= 1 for every action below and by the largest reward above. "reverse_kl" is
    the Gibbs policy. Sources: 2407.13399 (chi-PO), 2605.06977. Raises ValueError for unknown divergences."""
    if divergence not in DIVERGENCES:
        raise ValueError(f"divergence: must be one of {sorted(DIVERGENCES)}, got {divergence!r}")
    f = DIVERGENCES[divergence]
    p = ref_log_probs.exp()
    offered = p > 0
    r = torch.where(offered, rewards, torch.where(offered, rewards, torch.inf).amin(-1, keepdim=True)) / coef
    most = torch.where(offered, r - f.derivative(1 / torch.where(offered, p, 1.0)), -torch.inf)
    low, high = most.amax(-1, keepdim=True), r.amax(-1, keepdim=True) - f.derivative(torch.ones_like(p[..., :1]))

    def excess(multiplier: Tensor) -> tuple[Tensor, Tensor]:
        w = f.log_inverse(r - multiplier).exp()
        return 1 - (p * w).sum(-1, keepdim=True), (p * f.slope(w)).sum(-1, keepdim=True)

    return normalise(ref_log_probs + f.log_inverse(r - increasing_root(excess, low, high)))


def chi_squared_tilt(rewards: Tensor, ref_log_probs: Tensor, coef: float, *, with_kl: bool = True) -> Tensor:
    """`divergence_tilt` for D_chi2 + KL (chi-PO), or for D_chi2 alone."""
    return divergence_tilt(rewards, ref_log_probs, coef, "chi_squared_kl" if with_kl else "chi_squared")


def inverse_cdf(log_probs: Tensor, uniforms: Tensor) -> Tensor:
    """Actions (R, B) from uniforms (R, B) on [0, 1): never an action of zero probability."""
    cdf = log_probs.exp().cumsum(-1)
    return (cdf <= uniforms[..., None] * cdf[..., -1:]).sum(-1).clamp_max(log_probs.shape[-1] - 1)
