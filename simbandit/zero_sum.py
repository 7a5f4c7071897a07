"""KL-regularised two-player zero-sum games that need not be symmetric: what pessimism and optimism plan with.

    J(p, q) = p' M q - kl_coef KL(p || first_ref) + kl_coef KL(q || second_ref),   the first player maximises.

A skew-about-1/2 preference table that is lowered (or raised) by an uncertainty is no longer one: its game has two
different strategies and a value other than 1/2. For kl_coef > 0 the saddle point is unique: log p = log first_ref +
M q / kl_coef and log q = log second_ref - M' p / kl_coef, up to constants.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from simbandit.equilibrium import CONTINUATION_START, STAGE_TOLERANCE


class Saddle(NamedTuple):
    """log p (..., A) and log q (..., B); max_p' J(p', q) - min_q' J(p, q') >= 0 by its identity kl_coef (KL(p || BR(q))
    + KL(q || BR(p))), (...); Newton iterations (...); converged (...)."""

    first: Tensor
    second: Tensor
    duality_gap: Tensor
    iterations: Tensor
    converged: Tensor


def solve_zero_sum(
    payoff: Tensor,
    first_ref: Tensor,
    second_ref: Tensor,
    kl_coef: float,
    *,
    tolerance: float = 1e-13,
    max_iterations: int = 60,
) -> Saddle:
    """The saddle point by Newton on the log-ratios z = (log p / first_ref, log q / second_ref), F(z) = z - S (p, q) /
    kl_coef with S = [[0, M], [-M', 0]] skew: as in `equilibrium.solve`, every eigenvalue of the Jacobian has modulus
    >= 1, so that it is never singular.

    Continued in the coefficient, halving from .3, each stage to 1e-2; at the end stops on max |log-policy - log best
    response| <= tolerance max(1, 1 / kl_coef) and takes one more full step. payoff (..., A, B), references (..., A) and
    (..., B), -inf outside the game, broadcast over the leading axes; float64. Complexity O((A + B)^3) per step and
    game. Raises ValueError for kl_coef <= 0 or a payoff that is not finite.
    """
    if not kl_coef > 0:
        raise ValueError(f"kl_coef: must be > 0, got {kl_coef}; kl_coef = 0 has no unique saddle point")
    if not bool(torch.isfinite(payoff).all()):
        raise ValueError("payoff: holds NaN or infinity")
    A, B = payoff.shape[-2:]
    lead = torch.broadcast_shapes(payoff.shape[:-2], first_ref.shape[:-1], second_ref.shape[:-1])
    one, two = (r.expand(*lead, n).reshape(-1, n) for r, n in ((first_ref, A), (second_ref, B)))
    game = _inside(payoff.expand(*lead, A, B).reshape(-1, A, B), one, two)
    z, ref = torch.zeros_like(torch.cat([one, two], -1)), torch.cat([one, two], -1)
    iterations = torch.zeros(len(z), dtype=torch.int64, device=z.device)
    stage, final = max(CONTINUATION_START, kl_coef), tolerance * max(1.0, 1.0 / kl_coef)
    while True:
        goal = final if stage <= kl_coef else STAGE_TOLERANCE
        z, more, converged = _newton(game, ref, stage, z, goal, max_iterations)
        iterations += more
        if stage <= kl_coef:
            break
        stage = max(kl_coef, stage / 2)
    first, second = (torch.log_softmax(part, -1) for part in (ref + z).split([A, B], -1))
    gap = saddle_gap(first, second, game, one, two, kl_coef)
    return Saddle(
        first.reshape(*lead, A), second.reshape(*lead, B), *(v.reshape(lead) for v in (gap, iterations, converged))
    )


def saddle_gap(
    first: Tensor, second: Tensor, payoff: Tensor, first_ref: Tensor, second_ref: Tensor, kl_coef: float
) -> Tensor:
    """max_p' J(p', q) - min_q' J(p, q') of log-policies p (..., A) and q (..., B), as a sum of non-negative terms."""
    game = _inside(payoff, first_ref, second_ref)
    gain = (game @ second.exp()[..., None]).squeeze(-1)
    loss = (game.mT @ first.exp()[..., None]).squeeze(-1)
    best = torch.log_softmax(first_ref + gain / kl_coef, -1), torch.log_softmax(second_ref - loss / kl_coef, -1)
    return kl_coef * (_divergence(first, best[0]) + _divergence(second, best[1]))


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    d = torch.where(torch.isneginf(log_p), 0.0, log_p - log_q)
    terms = torch.where(d > -30, log_p.exp() * (d + torch.expm1(-d)), log_q.exp())
    return torch.where(torch.isneginf(log_p), log_q.exp(), terms).sum(-1)


def _inside(payoff: Tensor, first_ref: Tensor, second_ref: Tensor) -> Tensor:
    """The payoff, zero in rows and columns of actions outside the game."""
    return torch.where(torch.isneginf(first_ref)[..., :, None] | torch.isneginf(second_ref)[..., None, :], 0.0, payoff)


def _newton(
    game: Tensor, ref: Tensor, kl_coef: float, z: Tensor, tolerance: float, max_iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Damped Newton over games (G, A, B) until each has converged, and one more full step."""
    A, B = game.shape[-2:]
    eye = torch.eye(A + B, dtype=z.dtype, device=z.device)
    offered = ~torch.isneginf(ref)
    iterations = torch.zeros(len(z), dtype=torch.int64, device=z.device)
    done = torch.zeros(len(z), dtype=torch.bool, device=z.device)

    def residual(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p, q = (torch.softmax(part, -1) for part in (ref + z).split([A, B], -1))
        payoff = torch.cat([(game @ q[..., None]).squeeze(-1), -(game.mT @ p[..., None]).squeeze(-1)], -1)
        return z - payoff / kl_coef, torch.cat([p, q], -1), payoff

    for _ in range(max_iterations + 1):
        F, pi, payoff = residual(z)
        high, low = torch.where(offered, F, -torch.inf), torch.where(offered, F, torch.inf)
        osc = [(high[:, part].amax(-1) - low[:, part].amin(-1)) for part in (slice(A), slice(A, None))]
        frozen, done = done, done | (torch.maximum(*osc) <= tolerance)
        if bool(frozen.all()):
            break
        J = eye.repeat(len(z), 1, 1)
        J[:, :A, A:] -= (game - payoff[:, :A, None]) * pi[:, None, A:] / kl_coef
        J[:, A:, :A] += (game.mT + payoff[:, A:, None]) * pi[:, None, :A] / kl_coef
        step = torch.linalg.solve(J, F)
        norm, size = F.norm(dim=-1), (~frozen).to(z.dtype)
        for _ in range(30):
            trial = residual(z - size[:, None] * step)[0].norm(dim=-1)
            worse = ~done & ~(trial <= (1 - 1e-4 * size) * norm)
            if not worse.any():
                break
            size = torch.where(worse, size / 2, size)
        z = z - size[:, None] * step
        iterations += ~frozen
    return z, iterations, done
