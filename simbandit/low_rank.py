"""Skew scores of low rank: truncation, embeddings, and maximum likelihood within the rank."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from simbandit.solvers import Local, Proposal, minimise


def _planes(scores: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """S = first second' - second first' up to the `rank / 2` largest planes, (..., n, rank / 2) each: the spectral form
    of a skew matrix. i S is Hermitian with eigenvalues +-omega; z = x + i y of +omega gives 2 omega (y x' - x y')."""
    if rank < 2 or rank % 2:
        raise ValueError(f"rank: a skew matrix has an even rank, so it must be an even integer >= 2, got {rank}")
    values, vectors = torch.linalg.eigh(1j * scores)
    k = min(rank // 2, scores.shape[-1] // 2)
    largest = vectors[..., -k:].flip(-1) if k else vectors[..., :0]
    scale = (2 * values[..., -k:].flip(-1).clamp_min(0.0)).sqrt()[..., None, :] if k else values[..., None, :0]
    return largest.imag * scale, largest.real * scale


def truncate_rank(scores: Tensor, rank: int) -> Tensor:
    """The nearest skew matrix of that rank in Frobenius norm (Eckart-Young: singular values of a skew matrix come in
    pairs), exactly skew, (..., n, n). Raises ValueError for an odd rank."""
    first, second = _planes(scores, rank)
    product = first @ second.mT
    return product - product.mT


def gpm_embeddings(scores: Tensor, rank: int) -> Tensor:
    """Embeddings v (..., n, min(rank, 2 floor(n / 2))) of the general preference model, s(a > b) = <R v_a, v_b>, R =
    blockdiag([[0, -1], [1, 0]]): v_a1 v_b2 - v_a2 v_b1 summed over the planes, largest first. Exact at full rank.

    From the spectral form of skew scores (2410.02197, Theorem 4.5); that paper fits them by gradient descent on
    -log sigma(s). To fit duels: `gpm_embeddings(logit(tabular_mle(wins, smoothing)), rank)`, the best fit of that rank
    in squared error of the scores, not in likelihood. Raises ValueError for an odd rank."""
    first, second = _planes(scores, rank)
    return torch.stack([first, second], dim=-1).flatten(-2)


def gpm_scores(embeddings: Tensor) -> Tensor:
    """s(a > b) (..., n, n), exactly skew, of embeddings (..., n, rank)."""
    product = embeddings[..., 0::2] @ embeddings[..., 1::2].mT
    return product - product.mT


class LowRankFit(NamedTuple):
    """matrix (R, d, d), exactly skew and of the rank asked for; the value reached (R,), the negative log-likelihood
    with its ridge; residual (R,), the gradient's norm in the factors, balanced; converged (R,); iterations (R,)."""

    matrix: Tensor
    value: Tensor
    residual: Tensor
    converged: Tensor
    iterations: Tensor


def low_rank_mle(
    first: Tensor,
    second: Tensor,
    wins: Tensor,
    count: Tensor,
    rank: int,
    *,
    ridge: float,
    start: Tensor,
    tolerance: float = 1e-9,
    max_iterations: int = 200,
) -> LowRankFit:
    """Maximum likelihood of P(a > b) = sigma(phi_a' Theta phi_b) over skew Theta of that rank: Theta = U W' - W U', U
    and W (d, rank / 2), by Newton on both factors (Burer-Monteiro), from the truncation of `start` (R, d, d), such as
    the estimate without the constraint, which it can only improve on.

    first, second (R, N, d): the two actions' features of every distinct pair; wins, count (R, N); ridge / 4
    ||Theta||_F^2 is added, as ridge / 2 ||theta||^2 in `bilinear_mle`, and makes separable duels have a maximum. Stops
    where the gradient is at most `tolerance` times 1 + the number of duels. Not convex: a stationary point that the
    descent reaches, a maximum of the likelihood as far as this start can tell; `converged` and `residual` say how well.
    Curvatures count by their absolute value, as saddle points have negative ones; directions that change the factors
    and not Theta have gradient 0. Complexity O(N (rank d)^2 + (rank d)^3) a step. The likelihood of 2602.23116, which
    adds the nuclear norm instead of fixing the rank. Raises ValueError for an odd rank or a ridge that is not > 0.
    """
    if not ridge > 0:
        raise ValueError(f"ridge: must be > 0, got {ridge}; separable duels have no maximum likelihood")
    R, _, d = first.shape
    U, W = _planes(start, rank)
    k, unit = U.shape[-1], torch.eye(d, dtype=first.dtype, device=first.device).expand(R, d, d)
    i, j = torch.triu_indices(d, d, 1, device=first.device)
    # the ridge is quadratic in the entries of Theta, which are the margins of pairs of unit vectors
    one, two = torch.cat([first, unit[:, i]], 1), torch.cat([second, unit[:, j]], 1)
    n, log = first.shape[1], torch.nn.functional.logsigmoid

    def local(x: Tensor) -> Local:
        left, right = (part.reshape(R, d, k) for part in x.chunk(2, -1))
        oneU, oneW, twoU, twoW = one @ left, one @ right, two @ left, two @ right
        margin = (oneU * twoW - oneW * twoU).sum(-1)
        duels, entries = margin[:, :n], margin[:, n:]
        value = ridge / 2 * entries.square().sum(-1) - (wins * log(duels) + (count - wins) * log(-duels)).sum(-1)
        p = torch.sigmoid(duels)
        slope = torch.cat([count * p - wins, ridge * entries], -1)
        moment = (one * slope[..., None]).mT @ two
        moment = moment - moment.mT  # sum of slope times d margin / d Theta
        gradient = torch.cat([(moment @ right).reshape(R, -1), -(moment @ left).reshape(R, -1)], -1)

        def propose() -> Proposal:
            weight = torch.cat([count * p * (1 - p), torch.full_like(entries, ridge)], -1)
            dU = one[..., None] * twoW[..., None, :] - two[..., None] * oneW[..., None, :]
            dW = two[..., None] * oneU[..., None, :] - one[..., None] * twoU[..., None, :]
            jacobian = torch.cat([dU.flatten(2), dW.flatten(2)], -1)
            hessian = (jacobian * weight[..., None]).mT @ jacobian
            mixed = torch.einsum("rij,kl->rikjl", moment, torch.eye(k, dtype=x.dtype, device=x.device))
            mixed = mixed.reshape(R, d * k, d * k)
            hessian[:, : d * k, d * k :] += mixed
            hessian[:, d * k :, : d * k] += mixed.mT
            values, vectors = torch.linalg.eigh(hessian)
            size = values.abs()
            size = size.clamp_min(1e-9 * size.amax(-1, keepdim=True).clamp_min(1e-300))
            step = -(vectors @ ((vectors.mT @ gradient[..., None]) / size[..., None])).squeeze(-1)
            return Proposal(step, (gradient * step).sum(-1))

        return Local(value, gradient.norm(dim=-1), propose)

    begin = torch.cat([U.reshape(R, -1), W.reshape(R, -1)], -1)
    goal = tolerance * (1 + count.sum(-1))
    found = minimise(local, begin, tolerance=goal, max_iterations=max_iterations)
    left, right = (part.reshape(R, d, k) for part in found.argmin.chunk(2, -1))
    product = left @ right.mT
    return LowRankFit(product - product.mT, found.value, found.residual, found.converged, found.iterations)
