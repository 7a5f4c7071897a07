"""Minimisers of a `DuelObjective` over tables and over log-linear policies: exact by Newton, or some steps of descent.

A table's objective is a sum over contexts, so each context is its own problem, frozen once it has converged. Where the
objective is not convex (a label fit minus a convex value: XPO, VPO, SELM) Newton takes the Hessian's absolute values
from several starts, the ends of the box among them, and the lowest value is kept: a local certificate only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from simbandit.objective import Descent, DuelObjective, Readable, Term, centred
from simbandit.solvers import (
    LEGS,
    Local,
    Proposal,
    box_correction,
    box_minimiser,
    corrected,
    minimise,
    newton_local,
    project_ball,
)
from simbandit.types import Contexts, FitInfo

TOLERANCE = 1e-9
"""Gradient norm per duel at which a fit has converged."""

ACCURACY = 1e-8
"""Distance to the minimiser (log-ratios of a table, theta), as a step tells it, at which a fit stops: the
gradient of the proximal term, or of a small kl_coef, may be below the tolerance where the minimiser is far."""


def fit_tabular(table: Tensor, objective: DuelObjective) -> tuple[Tensor, FitInfo]:
    """argmin over all policies with max - min of log pi - log reference at most `bound`; warm-started at `table`.

    In h = log-ratio up to a shift, in the box [0, bound]: the objective ignores the shift, so the box is the
    constraint. Newton whose every step minimises the quadratic model within the box. table (R, C, A). Not convex:
    starts are the table, the reference, and every action of a context at the top of the box with the others at its
    bottom. Iterations are Newton steps, Hessians built and factored (`solvers.corrected`: each leads some short legs
    more), of the slowest context and start.
    """
    (R, C, A), offered = table.shape, objective.offered
    starts = _start(table, objective)[None] if objective.convex else _starts(table, objective)
    S, Q = starts.shape[0], starts[..., 0].numel()

    def each(x: Tensor) -> Tensor:  # (R, C, ...) of every start: (Q, ...)
        return x.expand(S, *x.shape).reshape(Q, *x.shape[2:])

    first = torch.arange(0, Q, C, device=table.device).view(S, R, 1)
    n_offered = offered.sum(-1, keepdim=True).to(table.dtype)  # a quotient of integers would be float32
    problems = _Contexts(
        each(objective.centre),
        each(objective.anchor),
        each(offered),
        each(2 * objective.proximal / n_offered),
        [_entries(term, first + term.row) for term in objective.terms],
        objective,
    )
    weight = table.new_zeros(Q)
    for term in problems.terms:
        weight = weight.index_add(0, term.row, term.weight.abs())
    tolerance = TOLERANCE * weight.clamp_min(1.0)
    h, value, residual, iterations = starts.reshape(Q, A), weight.clone(), weight.clone(), torch.zeros_like(weight)
    todo = torch.arange(Q, device=table.device)
    for _ in range(50):  # the few contexts that take long go on among themselves
        found = minimise(problems.local, h[todo], tolerance=tolerance[todo], accuracy=ACCURACY, max_iterations=2)
        h[todo], value[todo], residual[todo] = found.argmin, found.value, found.residual
        iterations[todo] += found.iterations
        if found.ended.all():
            break
        problems, todo = problems.of(~found.ended), todo[~found.ended]
    best = _lowest(value.view(S, R * C))
    h = h.view(S, R, C, A).gather(0, best.view(1, R, C, 1).expand(-1, -1, -1, A))[0]
    value, residual = (x.view(S, -1).gather(0, best[None]).view(R, C) for x in (value, residual))
    converged = (residual <= tolerance.view(S, R, C)[0]).all(-1)
    info = FitInfo(residual.norm(dim=-1), converged, iterations.view(S, R, C).amax((0, 2)), value.sum(-1))
    return torch.log_softmax(objective.centre + h, dim=-1), info


def _entries(term: Term, problem: Tensor) -> Term:
    """The entries of weight, (E, ...), of every start's problems (S, R, U)."""
    said = torch.nonzero(term.weight)
    r, u = said[:, 0], said[:, 1]
    row, S = problem[:, r, u].reshape(-1), len(problem)
    parts = (
        x[r, u].repeat(S, *[1] * (x.dim() - 2)) for x in (term.actions, term.weight, term.label, term.last, term.ref)
    )
    return Term(row, *parts, loss=term.loss)


@dataclass(frozen=True)
class _Contexts:
    """Contexts whose tables are fitted, each by itself: reference, anchor and offered actions (Q, A), twice the
    proximal weight by the number of actions (Q, 1), and the terms' entries, (E, ...), whose `row` is the context."""

    ref: Tensor
    anchor: Tensor
    offered: Tensor
    prox: Tensor
    terms: list[Term]
    objective: DuelObjective

    def of(self, chosen: Tensor) -> _Contexts:
        place, terms = chosen.cumsum(0) - 1, []
        for t in self.terms:
            e = chosen[t.row]
            parts = (x[e] for x in (t.actions, t.weight, t.label, t.last, t.ref))
            terms.append(Term(place[t.row[e]], *parts, loss=t.loss))
        ref, anchor, offered, prox = (x[chosen] for x in (self.ref, self.anchor, self.offered, self.prox))
        return _Contexts(ref, anchor, offered, prox, terms, self.objective)

    def derivatives(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Callable[[], Tensor]]]:
        """Value, gradient, pi, the sum of the gradient in log pi, and the terms' Hessians, when called."""
        log_pi = torch.log_softmax(self.ref + h, dim=-1)
        pi, drift = log_pi.exp(), centred(log_pi - self.anchor, self.offered)
        value, G, hessians = (self.prox / 2 * drift.square()).sum(-1), torch.zeros_like(h), []
        for term in self.terms:
            now = log_pi[term.row[:, None], term.actions]
            v, g, hessian = term.derivatives(now, self.objective.kl_coef)
            value = value.index_add(0, term.row, v)
            G = G.index_put((term.row[:, None], term.actions), g, accumulate=True)
            hessians.append(hessian)
        total = G.sum(-1, keepdim=True)
        return value, G - pi * total + self.prox * drift, pi, total, hessians

    def local(self, h: Tensor) -> Local:
        A, offered, bound = h.shape[-1], self.offered, self.objective.bound
        value, gradient, pi, total, hessians = self.derivatives(h)

        def propose() -> Proposal:
            M = h.new_zeros(h.numel() * A)
            for term, hessian in zip(self.terms, hessians, strict=True):
                cell = term.row[:, None] * A + term.actions
                pair = cell[..., :, None] * A + term.actions[..., None, :]
                M = M.index_add_(0, pair.reshape(-1), hessian().reshape(-1))
            M = M.view(-1, A, A)
            row_sum = M.sum(-1)
            M = M - row_sum[..., :, None] * pi[..., None, :] - pi[..., :, None] * row_sum[..., None, :]
            M = M + (row_sum.sum(-1)[..., None, None] + total[..., None]) * (pi[..., :, None] * pi[..., None, :])
            both = (offered[..., :, None] & offered[..., None, :]) / offered.sum(-1)[..., None, None].to(h.dtype)
            mean_free = torch.diag_embed(offered.to(h.dtype)) - both
            M = M - torch.diag_embed(total * pi) + self.prox[..., None] * mean_free
            if not self.objective.convex or (total.abs() > TOLERANCE).any():  # the curvature of the normaliser
                M = _convexified(M, offered, mean_free)
            q = box_minimiser(gradient, M, h, bound, offered)
            correct = box_correction(M, q, bound, offered)
            q, left = corrected(h, q, gradient, lambda q: correct(q, self.derivatives(q)[1]), _legs(self.objective))
            step = q - h
            uphill = (gradient * step).sum(-1, keepdim=True) > 0
            scale = M.diagonal(dim1=-2, dim2=-1).abs().amax(-1, keepdim=True).clamp_min(1e-12)
            step = torch.where(uphill & offered, (h - gradient / scale).clamp(0.0, bound) - h, step)
            return Proposal(step, (gradient * step).sum(-1), torch.where(uphill.squeeze(-1), torch.inf, left))

        residual = torch.where(offered, h - (h - gradient).clamp(0.0, bound), 0.0)
        return Local(value, residual.norm(dim=-1), propose)


def _legs(objective: DuelObjective) -> int:
    """Where the objective is not convex, plain Newton: of 1,200 fits of SE-POPO (6 actions, rewards 0 to 7, kl_coef .1)
    from warm starts that legs had made 767 ended higher with legs and 19 lower, from those of plain Newton 163 and 170.
    """
    return LEGS if objective.convex else 0


def _start(table: Tensor, objective: DuelObjective) -> Tensor:
    """The table's log-ratios, moved into the box."""
    offered = objective.offered
    ratio = torch.where(offered, table - objective.centre, 0.0)
    ratio = ratio - torch.where(offered, ratio, torch.inf).amin(-1, keepdim=True)
    return torch.where(offered, ratio.clamp(0.0, objective.bound), 0.0)


def _starts(table: Tensor, objective: DuelObjective) -> Tensor:
    """(2 + A, R, C, A)"""
    warm, A = _start(table, objective), table.shape[-1]
    corners = torch.diag_embed(objective.offered.to(table.dtype) * objective.bound).movedim(-1, 0)
    return torch.cat([warm[None], torch.zeros_like(warm)[None], corners.reshape(A, *warm.shape)])


def _lowest(value: Tensor) -> Tensor:
    """Index of the lowest value over the first axis; the earliest of values that are equal to rounding."""
    slack = 1e-12 * (1 + value.amin(0).abs())
    return (value <= value.amin(0) + slack).to(torch.int8).argmax(0)


def _convexified(M: Tensor, offered: Tensor, mean_free: Tensor) -> Tensor:
    """Hessians (Q, A, A), which ignore a common shift, in absolute value where they are indefinite."""
    scale = M.diagonal(dim1=-2, dim2=-1).abs().amax(-1)[..., None, None]
    system = M + torch.where(offered[..., :, None] & offered[..., None, :], scale, 0.0)
    system.diagonal(dim1=-2, dim2=-1).add_(torch.where(offered, 1e-13 * scale.squeeze(-1), 1.0))
    indefinite = torch.linalg.cholesky_ex(system)[1] > 0
    if indefinite.any():
        P = mean_free[indefinite]
        M[indefinite] = P @ _absolute(M[indefinite]) @ P
    return M


def _absolute(H: Tensor) -> Tensor:
    """The matrix with its eigenvalues' absolute values, floored at 1e-8 of the largest."""
    values, vectors = torch.linalg.eigh(H)
    size = values.abs()
    size = size.clamp_min(1e-300).maximum(1e-8 * size.amax(-1, keepdim=True))
    return (vectors * size[..., None, :]) @ vectors.mT


def fit_log_linear(theta: Tensor, objective: DuelObjective, centre: Tensor | None = None) -> tuple[Tensor, FitInfo]:
    """argmin over pi proportional to pi_ref exp(<theta, phi>), theta in the ball around `centre` (default 0);
    warm-started at `theta` (R, d). Not convex: starts are theta, the centre, and the ends of the ball along each axis.
    """
    features, ref, offered = objective.contexts.features, objective.contexts.ref_log_probs, objective.offered
    R, d = features.shape[0], features.shape[-1]
    centre = torch.zeros_like(theta) if centre is None else centre
    replicate = torch.arange(R, device=theta.device)[:, None]
    flat = features.reshape(R, -1, d)
    cells = [(t.row[..., None] * ref.shape[-1] + t.actions).flatten(1) for t in objective.terms]
    phis = [features[replicate[..., None], t.row[..., None], t.actions] for t in objective.terms]  # (R, U, k, d)
    count = offered.sum(-1, keepdim=True).to(theta.dtype)
    mean = torch.where(offered[..., None], features, 0.0).sum(-2, keepdim=True) / count[..., None]
    spread = torch.where(offered[..., None], (features - mean) / count[..., None].sqrt(), 0.0).reshape(R, -1, d)
    curvature = 2 * objective.proximal * spread.mT @ spread
    base = (centred(ref - objective.anchor, offered) / count.sqrt()).reshape(R, -1)
    longest = features.norm(dim=-1).masked_fill(~offered, 0.0).amax((-1, -2))[:, None]
    ball = objective.bound / (2 * longest).clamp_min(1e-300)

    def derivatives(moved: Tensor) -> tuple[Tensor, Tensor, Callable[[], Tensor]]:
        at = centre + moved
        log_pi = torch.log_softmax(ref + (flat @ at[..., None]).view(ref.shape), dim=-1)
        pi = log_pi.exp()
        drift = base + (spread @ at[..., None]).squeeze(-1)
        value, G, hessians = objective.proximal * drift.square().sum(-1), torch.zeros_like(flat[..., 0]), []
        for term, cell in zip(objective.terms, cells, strict=True):
            v, g, hessian = term.derivatives(
                log_pi.view(R, -1).gather(1, cell).view(term.actions.shape), objective.kl_coef
            )
            value, G = value + v.sum(-1), G.scatter_add(1, cell, g.flatten(1))
            hessians.append(hessian)
        G = G.view(ref.shape)
        total = G.sum(-1, keepdim=True)
        gradient = 2 * objective.proximal * (drift[:, None] @ spread).squeeze(1)
        gradient = gradient + ((G - pi * total).view(R, 1, -1) @ flat).squeeze(1)

        def in_theta() -> Tensor:
            expected = (pi[..., None, :] @ features).squeeze(-2)
            H = curvature
            for term, phi, hessian in zip(objective.terms, phis, hessians, strict=True):
                z = phi - expected[replicate, term.row][:, :, None]
                H = H + z.flatten(1, 2).mT @ (hessian() @ z).flatten(1, 2)
            weighted = flat * (pi * total).view(R, -1, 1)
            H = H - weighted.mT @ flat + (expected * total).mT @ expected
            return H if objective.convex else _absolute(H)

        return value, gradient, in_theta

    def local(moved: Tensor) -> Local:
        return newton_local(*derivatives(moved), moved, ball, lambda x: derivatives(x)[1], _legs(objective))

    tolerance = TOLERANCE * objective.weight.clamp_min(1.0)
    starts = [project_ball(theta - centre, ball)]
    if not objective.convex:
        axes = ball * torch.eye(d, dtype=theta.dtype, device=theta.device)[:, None]
        starts += [torch.zeros_like(theta), *axes, *-axes]
    found = [minimise(local, start, tolerance=tolerance, accuracy=ACCURACY) for start in starts]
    best = _lowest(torch.stack([s.value for s in found]))
    moved, value, residual, converged = (
        torch.stack(column)[best, torch.arange(R, device=theta.device)]
        for column in zip(*((s.argmin, s.value, s.residual, s.converged) for s in found), strict=True)
    )
    iterations = torch.stack([s.iterations for s in found]).amax(0)
    return centre + moved, FitInfo(residual, converged, iterations, value)


def descend(
    parameters: tuple[Tensor, ...],
    policy_of: Callable[[tuple[Tensor, ...]], Readable],
    objective: DuelObjective,
    descent: Descent,
) -> tuple[tuple[Tensor, ...], FitInfo]:
    """Some steps of an optimiser on parameters (R, ...). The objective is summed over replicates, which share nothing,
    so each follows its own path. The residual is the gradient's norm after the last step; nothing claims convergence.
    """
    free = [p.detach().clone().requires_grad_(True) for p in parameters]
    optimiser = descent.over(free)
    share = 1 / objective.weight.clamp_min(1.0)
    for _ in range(descent.steps):
        optimiser.zero_grad()
        (objective(policy_of(tuple(free))) * share).sum().backward()
        optimiser.step()
    value = objective(policy_of(tuple(free)))
    gradients = torch.autograd.grad(value.sum(), free)
    residual = torch.stack([g.flatten(1).norm(dim=-1) for g in gradients]).norm(dim=0)
    fitted = tuple(p.detach() for p in free)
    steps = torch.full_like(residual, descent.steps)
    return fitted, FitInfo(residual, residual <= TOLERANCE * objective.weight.clamp_min(1.0), steps, value.detach())


def table_of(contexts: Contexts, ratio: Tensor) -> Tensor:
    """log pi of log-ratios (R, X, A) to the reference, 0 where an action is absent."""
    return torch.log_softmax(contexts.ref_log_probs + ratio, dim=-1)
