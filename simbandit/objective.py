"""What a direct method minimises, and its exact minimiser over tables and over log-linear policies.

The objective is a sum over duels of a loss of the pair's log-probabilities, so its gradient and Hessian in those
log-probabilities come from the loss alone (autograd, element by element), and a policy class only adds its chain rule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from simbandit.solvers import Local, box_minimiser, minimise, newton_local, project_ball
from simbandit.types import Contexts, FitInfo


class PairLogProbs(NamedTuple):
    """Log-probabilities of both responses of every duel, (..., 2), in the order in which they were played."""

    now: Tensor
    last: Tensor
    ref: Tensor


Loss = Callable[[PairLogProbs, Tensor, float], Tensor]
"""loss(log_probs, label, kl_coef) -> one value per duel, affine in the label (the probability that the first wins)."""


class Readable(Protocol):
    def log_probs(self, contexts: Contexts, actions: Tensor | None = None) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class DuelObjective:
    """sum_u weight_u loss(pi; duel u) + proximal sum_x Var_a(log pi(a|x) - anchor(a|x)), one value per replicate.

    contexts: C contexts, (R, C); row (R, U): each duel's position among them; actions (R, U, 2); weight, label (R, U);
    last, ref (R, U, 2): stored log-probabilities; anchored: contexts -> (R, C, A), where the policy stays when no duel
    speaks. The proximal term is the variance over a context's actions, so no normaliser enters; without it (proximal
    0) a policy is only asked for the actions of duels, so it need not be able to list all actions. `bound` limits
    max - min over a context's actions of log pi - log pi_ref: without it a response that only ever lost has log-ratio
    -inf. On log-linear policies the bound is the ball ||theta|| <= bound / (2 max ||phi||), which implies it.
    """

    contexts: Contexts
    row: Tensor
    actions: Tensor
    weight: Tensor
    label: Tensor
    last: Tensor
    ref: Tensor
    loss: Loss
    kl_coef: float
    anchored: Callable[[Contexts], Tensor]
    proximal: float
    bound: float

    def __call__(self, policy: Readable) -> Tensor:
        now = policy.log_probs(Contexts(index=self.row, pool=self.contexts), self.actions)
        value = (self.weight * self.loss(PairLogProbs(now, self.last, self.ref), self.label, self.kl_coef)).sum(-1)
        if self.proximal == 0:
            return value
        drift = policy.log_probs(self.contexts) - self.anchor
        return value + self.proximal * variance(drift, self.offered).sum(-1)

    @cached_property
    def anchor(self) -> Tensor:
        return self.anchored(self.contexts)

    @property
    def offered(self) -> Tensor:
        return ~torch.isneginf(self.contexts.ref_log_probs)

    def derivatives(self, now: Tensor) -> tuple[Tensor, Tensor, Callable[[], Tensor]]:
        """Value (R,), gradient (R, U, 2) and, when called, the Hessian (R, U, 2, 2) of the duels' part in the
        log-probabilities."""
        now = now.detach().requires_grad_(True)
        duels = self.weight * self.loss(PairLogProbs(now, self.last, self.ref), self.label, self.kl_coef)
        (gradient,) = torch.autograd.grad(duels.sum(), now, create_graph=True)

        def hessian() -> Tensor:
            if not gradient.requires_grad:  # a piecewise linear loss
                return torch.zeros(*now.shape, 2, dtype=now.dtype, device=now.device)
            columns = [torch.autograd.grad(gradient[..., i].sum(), now, retain_graph=True)[0] for i in (0, 1)]
            return torch.stack(columns, dim=-1)

        return duels.detach().sum(-1), gradient.detach(), hessian


def centred(x: Tensor, offered: Tensor) -> Tensor:
    """x minus its mean over the offered actions (last axis); 0 where an action is not offered."""
    x = torch.where(offered, x, 0.0)
    return torch.where(offered, x - x.sum(-1, keepdim=True) / offered.sum(-1, keepdim=True), 0.0)


def variance(x: Tensor, offered: Tensor) -> Tensor:
    return centred(x, offered).square().sum(-1) / offered.sum(-1)


def tolerance_of(objective: DuelObjective) -> Tensor:
    """Gradient norm at which a fit has converged: 1e-9 per duel."""
    return 1e-9 * objective.weight.sum(-1).clamp_min(1.0)


def fit_tabular(table: Tensor, objective: DuelObjective) -> tuple[Tensor, FitInfo]:
    """argmin over all policies with max - min of log pi - log pi_ref at most `bound`; warm-started at `table`.

    In h = log-ratio up to a shift, in the box [0, bound]: the loss ignores the shift, so the box is the constraint.
    Blocks of A actions per context; Newton whose every step minimises the quadratic model within the box. table
    (R, C, A).
    """
    (R, C, A), offered, ref = table.shape, objective.offered, objective.contexts.ref_log_probs
    n_offered = offered.sum(-1, keepdim=True)
    replicate = torch.arange(R, device=table.device)[:, None]
    cell = (replicate * C + objective.row)[..., None] * A + objective.actions  # (R, U, 2) into (R, C, A)
    pair = cell[..., :, None] * A + objective.actions[..., None, :]  # (R, U, 2, 2) into (R, C, A, A)
    mean_free = (
        torch.diag_embed(offered.to(table.dtype))
        - (offered[..., :, None] & offered[..., None, :]) / n_offered[..., None]
    )
    prox = 2 * objective.proximal / n_offered

    def local(h_flat: Tensor) -> Local:
        h = h_flat.view(R, C, A)
        log_pi = torch.log_softmax(ref + h, dim=-1)
        value, g, hessian = objective.derivatives(log_pi.reshape(-1)[cell])
        pi = log_pi.exp()
        drift = centred(log_pi - objective.anchor, offered)
        value = value + objective.proximal * (drift.square().sum(-1, keepdim=True) / n_offered).sum((-1, -2))
        G = torch.zeros(R * C * A, dtype=h.dtype, device=h.device).index_add_(0, cell.reshape(-1), g.reshape(-1))
        G = G.view(R, C, A)
        total = G.sum(-1, keepdim=True)
        gradient = G - pi * total + prox * drift

        def propose() -> tuple[Tensor, Tensor]:
            M = torch.zeros(R * C * A * A, dtype=h.dtype, device=h.device)
            M = M.index_add_(0, pair.reshape(-1), hessian().reshape(-1)).view(R, C, A, A)
            row_sum = M.sum(-1)
            outer = pi[..., :, None] * pi[..., None, :]
            M = M - row_sum[..., :, None] * pi[..., None, :] - pi[..., :, None] * row_sum[..., None, :]
            M = M + (row_sum.sum(-1)[..., None, None] + total[..., None]) * outer
            M = M - torch.diag_embed(total * pi) + prox[..., None] * mean_free
            step = box_minimiser(gradient, M, h, objective.bound, offered) - h
            uphill = (gradient * step).sum(-1, keepdim=True) > 0
            scale = M.diagonal(dim1=-2, dim2=-1).abs().amax(-1, keepdim=True).clamp_min(1e-12)
            step = torch.where(uphill & offered, (h - gradient / scale).clamp(0.0, objective.bound) - h, step)
            return step.view(R, -1), (gradient * step).sum((-1, -2))

        residual = torch.where(offered, h - (h - gradient).clamp(0.0, objective.bound), 0.0)
        return Local(value, residual.view(R, -1).norm(dim=-1), propose)

    ratio = torch.where(offered, table - ref, 0.0)
    ratio = ratio - torch.where(offered, ratio, torch.inf).amin(-1, keepdim=True)
    start = torch.where(offered, ratio.clamp(0.0, objective.bound), 0.0)
    solution = minimise(local, start.reshape(R, -1), tolerance=tolerance_of(objective))
    # The gradient of the proximal term may lie below the tolerance of the duels': one more step, exact for it.
    last = torch.where(solution.converged[:, None], solution.propose()[0], 0.0)
    fitted = torch.log_softmax(ref + (solution.argmin + last).view(R, C, A), dim=-1)
    return fitted, FitInfo(solution.residual, solution.converged, solution.iterations)


def fit_log_linear(theta: Tensor, objective: DuelObjective) -> tuple[Tensor, FitInfo]:
    """argmin over pi proportional to pi_ref exp(<theta, phi>) within the ball; warm-started at `theta` (R, d)."""
    features, ref, offered = objective.contexts.features, objective.contexts.ref_log_probs, objective.offered
    R, d = features.shape[0], features.shape[-1]
    replicate = torch.arange(R, device=theta.device)[:, None]
    phi = features[replicate[..., None], objective.row[..., None], objective.actions]  # (R, U, 2, d)
    count = offered.sum(-1, keepdim=True)
    mean = torch.where(offered[..., None], features, 0.0).sum(-2, keepdim=True) / count[..., None]
    spread = torch.where(offered[..., None], (features - mean) / count[..., None].sqrt(), 0.0).reshape(R, -1, d)
    curvature = 2 * objective.proximal * spread.mT @ spread
    base = (centred(ref - objective.anchor, offered) / count.sqrt()).reshape(R, -1)
    longest = features.norm(dim=-1).masked_fill(~offered, 0.0).amax((-1, -2))[:, None]
    ball = objective.bound / (2 * longest).clamp_min(1e-300)

    def local(theta: Tensor) -> Local:
        log_pi = torch.log_softmax(ref + torch.einsum("rcad,rd->rca", features, theta), dim=-1)
        pi = log_pi.exp()
        value, g, hessian = objective.derivatives(log_pi[replicate, objective.row].gather(-1, objective.actions))
        drift = base + (spread @ theta[..., None]).squeeze(-1)
        value = value + objective.proximal * drift.square().sum(-1)
        expected = torch.einsum("rca,rcad->rcd", pi, features)
        z = phi - expected[replicate, objective.row][:, :, None]
        gradient = torch.einsum("rui,ruid->rd", g, z) + 2 * objective.proximal * (drift[:, None] @ spread).squeeze(1)

        def in_theta() -> Tensor:
            H = torch.einsum("ruid,ruie->rde", torch.einsum("ruij,rujd->ruid", hessian(), z), z) + curvature
            total = torch.zeros_like(pi[..., 0]).scatter_add_(1, objective.row, g.sum(-1))
            weighted = (features * (pi * total[..., None])[..., None]).reshape(R, -1, d)
            return H - weighted.mT @ features.reshape(R, -1, d) + (expected * total[..., None]).mT @ expected

        return newton_local(value, gradient, in_theta, theta, ball)

    solution = minimise(local, project_ball(theta, ball), tolerance=tolerance_of(objective))
    return solution.argmin, FitInfo(solution.residual, solution.converged, solution.iterations)
