"""Policies as immutable objects, and the exact laws of the samplers that RLHF uses.

All log-probabilities are normalised over the last axis; -inf marks actions that a context does not offer, or that a
deterministic rule never plays.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from simbandit.objective import DuelObjective, fit_log_linear, fit_tabular
from simbandit.solvers import increasing_root
from simbandit.types import Contexts, FitInfo, Policy

# ------------------------------------------------------------------------------------------------------------- laws


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
    offered = ~torch.isneginf(ref_log_probs)
    masked = torch.where(offered, scores, -torch.inf)
    tolerance = 1e-9 * torch.where(offered, scores.abs(), 0.0).amax(-1, keepdim=True).clamp_min(1.0)
    best = offered & (masked >= masked.amax(-1, keepdim=True) - tolerance)
    return normalise(torch.zeros_like(ref_log_probs).masked_fill(~best, -torch.inf))


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


# --------------------------------------------------------------------------------------------------------- policies


class Rows(ABC):
    """Reading and sampling for policies that know their whole row of log-probabilities."""

    @abstractmethod
    def rows(self, contexts: Contexts) -> Tensor:
        """(R, B, A)"""

    def log_probs(self, contexts: Contexts, actions: Tensor | None = None) -> Tensor:
        rows = self.rows(contexts)
        return rows if actions is None else rows.gather(-1, actions)

    def sample(self, contexts: Contexts, uniforms: Tensor) -> Tensor:
        return inverse_cdf(self.rows(contexts), uniforms)

    def fit(self, objective: DuelObjective) -> tuple[Any, FitInfo]:
        del objective
        raise TypeError(f"{type(self).__name__} has no parameters to fit; use a Tabular or LogLinear policy")


@dataclass(frozen=True, eq=False)
class Reference(Rows):
    """The world's reference policy."""

    def rows(self, contexts: Contexts) -> Tensor:
        return contexts.ref_log_probs


@dataclass(frozen=True, eq=False)
class Uniform(Rows):
    """Uniform over the actions that each context offers."""

    def rows(self, contexts: Contexts) -> Tensor:
        return uniform(contexts.ref_log_probs)


@dataclass(frozen=True, eq=False)
class Tabular(Rows):
    """One row of normalised log-probabilities per context of a finite world: (R, X, A)."""

    table: Tensor

    def rows(self, contexts: Contexts) -> Tensor:
        return contexts.rows(self.table)

    def fit(self, objective: DuelObjective) -> tuple[Tabular, FitInfo]:
        """The argmin over all policies within the objective's box, by blocks of projected Newton from this policy."""
        table, info = fit_tabular(self.table, objective)
        return Tabular(table), info


@dataclass(frozen=True, eq=False)
class LogLinear(Rows):
    """pi proportional to pi_ref exp(<theta, phi>): the Gibbs policy of a linear reward <kl_coef theta, phi>. theta (R,
    d)."""

    theta: Tensor

    def rows(self, contexts: Contexts) -> Tensor:
        if contexts.pool is not None and contexts.shape[1] > contexts.pool.shape[1]:
            return contexts.rows(self.rows(contexts.pool))  # each context of the pool once
        tilt = torch.einsum("rbad,rd->rba", contexts.features, self.theta)
        return normalise(contexts.ref_log_probs + tilt)

    def fit(self, objective: DuelObjective) -> tuple[LogLinear, FitInfo]:
        """The argmin over theta within the objective's ball, by Newton from this policy."""
        theta, info = fit_log_linear(self.theta, objective)
        return LogLinear(theta), info


@dataclass(frozen=True, eq=False)
class Elliptical(Rows):
    """Gibbs policy of <theta, phi> + radius ||phi - centre||_inverse: optimistic for radius > 0, pessimistic for < 0.

    theta (R, d), inverse (R, d, d), radius (R,), kl_coef a number. `centre`: (R, d), or None for the reference
    policy's mean features in each context. Evaluates in any context, so it serves worlds of fresh contexts.
    """

    theta: Tensor
    inverse: Tensor
    radius: Tensor
    kl_coef: float
    centre: Tensor | None = None

    def rows(self, contexts: Contexts) -> Tensor:
        features, ref = contexts.features, contexts.ref_log_probs
        if self.centre is None:
            centre = torch.einsum("rba,rbad->rbd", ref.exp(), features)[:, :, None]
        else:
            centre = self.centre[:, None, None]
        u = features - centre
        width = ((u @ self.inverse[:, None]) * u).sum(-1).clamp_min(0.0).sqrt()
        scores = torch.einsum("rbad,rd->rba", features, self.theta) + self.radius[:, None, None] * width
        return gibbs(scores, ref, self.kl_coef)


@dataclass(frozen=True, eq=False)
class Mixture(Rows):
    """Mixture of policies in probability space."""

    components: tuple[Policy, ...]
    weights: tuple[float, ...]

    def rows(self, contexts: Contexts) -> Tensor:
        return mixture([component.log_probs(contexts) for component in self.components], self.weights)


@dataclass(frozen=True, eq=False)
class Geometric(Rows):
    """Geometric mixture: proportional to the product of pi_i^weight_i, weights > 0; no mass where a component has
    none."""

    components: tuple[Policy, ...]
    weights: tuple[float, ...]

    def rows(self, contexts: Contexts) -> Tensor:
        parts = zip(self.weights, self.components, strict=True)
        return normalise(torch.stack([weight * component.log_probs(contexts) for weight, component in parts]).sum(0))


def tabulate(policy: Policy, pool: Contexts | None) -> Policy:
    """The policy as a table where the world is finite (so that `select` only gathers), else the policy itself."""
    return policy if pool is None else Tabular(policy.log_probs(pool))


def concatenate(parts: Sequence[Policy]) -> Policy:
    """One policy of all replicates from the policies of consecutive chunks of them."""

    def joined(values: list[Any]) -> Any:
        if isinstance(values[0], Tensor):
            return torch.cat(values)
        if isinstance(values[0], tuple) and any(is_dataclass(v) for v in values[0]):
            return tuple(joined(list(column)) for column in zip(*values, strict=True))
        return concatenate(values) if is_dataclass(values[0]) else values[0]

    first: Any = parts[0]
    kind: Any = type(first)
    if len(parts) == 1:
        return first
    if not is_dataclass(first):
        raise TypeError(f"policy: {kind.__name__} must be a dataclass of tensors (R, ...) to join chunks of replicates")
    return kind(**{f.name: joined([getattr(p, f.name) for p in parts]) for f in fields(first)})
