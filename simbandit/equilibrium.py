"""KL-regularised symmetric games, solved with a certificate.

Two players choose p and q over A actions; `preference[a, b]` is the probability that a beats b, P + P' = 1. The game's
value is

    J(p, q) = p' P q - kl_coef KL(p || ref) + kl_coef KL(q || ref),        J(p, q) + J(q, p) = 1.

For kl_coef > 0 it has a unique equilibrium, symmetric, of value 1/2: the fixed point of the best response
BR(q) = softmax(log ref + P q / kl_coef) (Munos et al. 2023, 2312.00886, Prop. 1). Contexts decouple, so everything here
is batched over any leading axes. Actions with ref = 0 (log -inf) are outside the game: the others play it without them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

CONTINUATION_START = 0.3
STAGE_TOLERANCE = 1e-2
CHUNK_NUMBERS = 2**21  # float64 numbers of a chunk's tables, 16 MB, of which a handful exist at a time


class Plan(NamedTuple):
    """A continuation in kl_coef: its first stage, the factor between stages, Newton steps at each but the last, and the
    coefficient from which on there is no stage but kl_coef itself."""

    start: float
    factor: float
    steps: int
    direct_from: float = math.inf


PLANS = (Plan(0.1, 0.5, 1, direct_from=0.01), Plan(CONTINUATION_START, 0.5, 60), Plan(CONTINUATION_START, 0.8, 60))
"""Tried in this order. The first follows the path of equilibria without reaching it at any stage but the last; at
kl_coef = .001 it takes half the steps of the second, which settles what it leaves."""


class Equilibrium(NamedTuple):
    """log_probs (..., A); duality_gap (...) by its identity; Newton iterations (...); converged (...)."""

    log_probs: Tensor
    duality_gap: Tensor
    iterations: Tensor
    converged: Tensor


def best_response(log_probs: Tensor, preference: Tensor, ref_log_probs: Tensor, kl_coef: float | Tensor) -> Tensor:
    """log BR(q) = log softmax(log ref + P q / kl_coef), (..., A)."""
    advantage = _skew(preference, ref_log_probs) @ log_probs.exp()[..., None]
    return torch.log_softmax(ref_log_probs + advantage.squeeze(-1) / _column(kl_coef), dim=-1)


def duality_gap(log_probs: Tensor, preference: Tensor, ref_log_probs: Tensor, kl_coef: float | Tensor) -> Tensor:
    """max_a J(a, p) - min_b J(p, b) = 2 kl_coef KL(p || BR(p)), as a sum of non-negative terms (...).

    Half of it is the one-sided exploitability 1/2 - min_b J(p, b)."""
    absent, response = torch.isneginf(log_probs), best_response(log_probs, preference, ref_log_probs, kl_coef)
    d = torch.where(absent, 0.0, log_probs - response)
    missing = torch.where(absent, response.exp(), 0.0)  # an action that is never played adds nothing but BR's mass
    terms = torch.where(d > -30, log_probs.exp() * (d + torch.expm1(-d)), torch.exp(log_probs - d))
    return 2 * kl_coef * (terms + missing).sum(-1)


def exploitability(log_probs: Tensor, preference: Tensor, ref_log_probs: Tensor, kl_coef: float | Tensor) -> Tensor:
    """1/2 - min_b J(p, b): what the best opponent wins, half of the duality gap of a symmetric game."""
    return duality_gap(log_probs, preference, ref_log_probs, kl_coef) / 2


def unregularised_gap(log_probs: Tensor, preference: Tensor) -> Tensor:
    """2 max_a (P p)_a - 1: the duality gap of p against itself without the KL terms, over all actions."""
    return 2 * (preference @ log_probs.exp()[..., None]).squeeze(-1).amax(-1) - 1


def solve(
    preference: Tensor,
    ref_log_probs: Tensor,
    kl_coef: float,
    *,
    tolerance: float = 1e-13,
    max_iterations: int = 60,
) -> Equilibrium:
    """The equilibrium by Newton on u = log(pi / ref): F(u) = u - (P - 1/2) pi / kl_coef, Jacobian I - (P - 1/2) Sigma /
    kl_coef, Sigma = diag(pi) - pi pi', whose eigenvalues have modulus >= 1, so that it is never singular.

    Below kl_coef = .01 continued in the coefficient from .1: one Newton step at each halving, then up to
    `max_iterations` at kl_coef itself (`PLANS`: games that this does not settle start again from .3, each stage to
    1e-2; then by smaller steps). Stops on
    max |log pi - log BR(pi)| <= tolerance max(1, 1 / kl_coef) (a payoff's rounding is divided by kl_coef), then takes
    one more full step. preference (..., A, A), ref_log_probs (..., A), broadcast over the leading axes; float64; games
    are taken in chunks, so that memory beyond the arguments stays near 100 MB, or a few A x A matrices. Complexity
    O(A^3) per step and game. `converged` says what was achieved. Raises ValueError for kl_coef <= 0, NaN, or a
    preference that is not skew about 1/2 (by how much, and the remedy).
    """
    if not kl_coef > 0:
        raise ValueError(f"kl_coef: must be > 0, got {kl_coef}; kl_coef = 0 has no unique equilibrium")
    check_preference(preference)
    check_reference(ref_log_probs)
    lead = torch.broadcast_shapes(preference.shape[:-2], ref_log_probs.shape[:-1])
    n = preference.shape[-1]
    tables, refs = preference.expand(*lead, n, n), ref_log_probs.expand(*lead, n)
    parts = [
        _solve(tables[games].to(torch.float64), refs[games].to(torch.float64), kl_coef, tolerance, max_iterations)
        for games in _chunks(lead, n, preference.device)
    ]
    log_probs, gap, iterations, converged = (torch.cat(part) for part in zip(*parts, strict=True))
    return Equilibrium(
        log_probs.reshape(*lead, n), gap.reshape(lead), iterations.reshape(lead), converged.reshape(lead)
    )


def _chunks(lead: tuple[int, ...], n: int, device: torch.device) -> Iterator[tuple[Tensor | None, ...]]:
    """Indices of the games of each chunk; an index of a view gathers the chunk only."""
    total, size = math.prod(lead), max(1, CHUNK_NUMBERS // n**2)
    for low in range(0, max(total, 1), size):
        flat = torch.arange(low, min(low + size, total), device=device)
        yield torch.unravel_index(flat, lead) if lead else (None,)


def _solve(preference: Tensor, ref: Tensor, kl_coef: float, tolerance: float, max_iterations: int) -> Equilibrium:
    """Games (G, A, A), (G, A), by one plan after the other; each sees only those that the earlier ones left."""
    skew, final = _skew(preference, ref), tolerance * max(1.0, 1.0 / kl_coef)
    u, iterations = torch.zeros_like(ref), torch.zeros(len(ref), dtype=torch.int64, device=ref.device)
    converged = torch.zeros_like(iterations, dtype=torch.bool)
    for plan in PLANS:
        left = (~converged).nonzero().squeeze(-1)
        if not len(left):
            break
        game, base, here = skew[left], ref[left], torch.zeros_like(ref[left])
        stage = plan.start if kl_coef < plan.direct_from else kl_coef
        while stage > kl_coef:
            here, more, _ = _newton(game, base, stage, here, STAGE_TOLERANCE, min(plan.steps, max_iterations))
            iterations[left] += more
            stage *= plan.factor
        u[left], more, converged[left] = _newton(game, base, kl_coef, here, final, max_iterations)
        iterations[left] += more
    log_probs = torch.log_softmax(ref + u, dim=-1)
    return Equilibrium(log_probs, duality_gap(log_probs, preference, ref, kl_coef), iterations, converged)


def minimax(preference: Tensor) -> Tensor:
    """A von Neumann winner of each game: p >= 0, sum p = 1, (P' p)_b >= 1/2 for every b, by linear programming (HiGHS).

    preference (..., A, A) -> probabilities (..., A). Where several exist it is a vertex, the solver's choice; `solve`
    with kl_coef -> 0 tends to the one closest to the reference in KL (of maximal entropy for a uniform one). One game
    after the other. Raises RuntimeError where the solver fails.
    """
    check_preference(preference)
    A = preference.shape[-1]
    found = []
    for game in preference.reshape(-1, A, A).cpu().numpy():
        margin = game.T - game
        lp = linprog(np.zeros(A), A_ub=-margin, b_ub=np.zeros(A), A_eq=np.ones((1, A)), b_eq=[1.0], bounds=(0, 1))
        if lp.status != 0:
            raise RuntimeError(f"minimax: {lp.message}")
        found.append(lp.x)
    solution = torch.from_numpy(np.stack(found)).to(preference.device)
    return solution.reshape(preference.shape[:-1])


def _newton(
    skew: Tensor, ref: Tensor, kl_coef: float, u: Tensor, tolerance: float, max_iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Damped Newton over games (G, A), each dropped from the work once it has converged and taken one more full
    step."""
    u = u.clone()
    iterations = torch.zeros(len(u), dtype=torch.int64, device=u.device)
    converged = torch.zeros(len(u), dtype=torch.bool, device=u.device)
    at = torch.arange(len(u), device=u.device)
    game, base, here = skew, ref, u

    def against(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The policy of log-ratios x, its payoff, and F."""
        pi = torch.softmax(base + x, dim=-1)
        payoff = (game @ pi[..., None]).squeeze(-1)
        return pi, payoff, x - payoff / kl_coef

    pi, payoff, F = against(here)
    for _ in range(max_iterations):
        done = _distance(F, base) <= tolerance
        J = (payoff[..., None] - game).mul_((pi / kl_coef)[:, None])
        J.diagonal(dim1=-2, dim2=-1).add_(1.0)
        step = torch.linalg.solve(J, F)
        norm, size = F.norm(dim=-1), torch.ones_like(F[:, 0])
        trial, there = here - step, against(here - step)
        for _ in range(30):
            worse = ~done & ~(there[2].norm(dim=-1) <= (1 - 1e-4 * size) * norm)
            if not worse.any():
                break
            size = torch.where(worse, size / 2, size)
            trial = here - size[:, None] * step
            there = against(trial)
        u[at], iterations[at], converged[at] = trial, iterations[at] + 1, done
        if bool(done.all()):
            break
        here, (pi, payoff, F) = trial, there
        if bool(done.any()):
            at, game, base, here, pi, payoff, F = (x[~done] for x in (at, game, base, here, pi, payoff, F))
    return u, iterations, converged


def _distance(F: Tensor, ref: Tensor) -> Tensor:
    """max |log pi - log BR(pi)|: F up to the difference of the two normalisers."""
    offered = ~torch.isneginf(ref)
    high = torch.where(offered, F, -torch.inf).amax(-1)
    low = torch.where(offered, F, torch.inf).amin(-1)
    return high - low


def _skew(preference: Tensor, ref_log_probs: Tensor) -> Tensor:
    """P - 1/2, exactly skew, zero in rows and columns of actions outside the game."""
    offered = ~torch.isneginf(ref_log_probs)
    skew = (preference - preference.mT) / 2
    return torch.where(offered[..., :, None] & offered[..., None, :], skew, 0.0)


def _column(kl_coef: float | Tensor) -> float | Tensor:
    return kl_coef[..., None] if isinstance(kl_coef, Tensor) else kl_coef


def frequencies(log_probs: Tensor, preference: Tensor) -> Tensor:
    """How fast the game rotates about a policy: omega_k >= 0 of the eigenvalues +- i omega_k of (P - 1/2) Sigma, Sigma
    = diag(pi) - pi pi', ascending (..., A).

    At the equilibrium they settle every method's local rate: mirror descent, say, has moduli |1 - s k + i s omega_k|.
    With Sigma = L L' they are the eigenvalues of the Hermitian i L' (P - 1/2) L; at least one of them is 0.
    """
    skew, p = _skew(preference, log_probs), log_probs.exp()
    root = p.sqrt()
    factor = torch.diag_embed(root) - p[..., :, None] * root[..., None, :]
    rotation = factor.mT @ skew @ factor
    return torch.linalg.eigvalsh(torch.complex(torch.zeros_like(rotation), rotation)).abs().sort(-1).values


def restrict(ref_log_probs: Tensor, offered: Tensor) -> Tensor:
    """The reference given that its action is one of `offered` (..., A), -inf elsewhere: `solve` with it solves the game
    restricted to those actions that also have mass. Raises ValueError where none is left, stating the support."""
    left = offered & ~torch.isneginf(ref_log_probs)
    if not bool(left.any(-1).all()):
        support = (
            (~torch.isneginf(ref_log_probs)).any(tuple(range(ref_log_probs.ndim - 1))).nonzero().flatten().tolist()
        )
        raise ValueError(f"offered: leaves a game without an action; the reference has mass on actions {support}")
    return torch.log_softmax(torch.where(left, ref_log_probs, -torch.inf), -1)


def check_reference(ref_log_probs: Tensor) -> None:
    """Raises ValueError unless these are log-probabilities, -inf where an action has no mass and is outside the
    game."""
    if bool(torch.isnan(ref_log_probs).any()):
        raise ValueError("ref_log_probs: holds NaN; it must hold log-probabilities, -inf for actions outside the game")
    off = float(torch.logsumexp(ref_log_probs, -1).abs().max())
    if not off <= 1e-6:
        raise ValueError(
            f"ref_log_probs: must be log-probabilities, but the log of a sum is off by {off:.3g}; give "
            "torch.log_softmax(logits, -1), or restrict(ref_log_probs, offered) for a smaller game"
        )


def check_preference(preference: Tensor, tolerance: float = 1e-9) -> None:
    """Raises ValueError unless P + P' = 1 and 0 <= P <= 1 (so the diagonal is 1/2)."""
    if preference.ndim < 2 or preference.shape[-1] != preference.shape[-2]:
        raise ValueError(f"preference: must be square in its last two axes, got shape {tuple(preference.shape)}")
    if not bool(torch.isfinite(preference).all()):
        raise ValueError("preference: holds NaN or infinity; it must hold probabilities")
    if bool(((preference < -tolerance) | (preference > 1 + tolerance)).any()):
        low, high = float(preference.min()), float(preference.max())
        raise ValueError(f"preference: must lie in [0, 1], got values from {low:.6g} to {high:.6g}")
    off = float((preference + preference.mT - 1).abs().max())
    if off > tolerance:
        raise ValueError(
            f"preference: must be skew about 1/2 (P + P' = 1), off by up to {off:.3g}; "
            "symmetrise(preference) returns (P + 1 - P') / 2"
        )


def symmetrise(preference: Tensor) -> Tensor:
    """(P + 1 - P') / 2: an asymmetric judge asked in both orders."""
    return (preference + 1 - preference.mT) / 2
