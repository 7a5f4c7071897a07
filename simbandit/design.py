"""Optimal experimental design: how often to ask about which vector, before anything is answered.

D-optimality: maximise log det V(w), V(w) = sum_j w_j z_j z_j', over probabilities w. Kiefer and Wolfowitz 1960: w is
D-optimal iff it is G-optimal, that is iff it minimises the largest squared width max_j z_j' V(w)^-1 z_j, whose minimum
is the dimension r of the span. So max_j z_j' V^-1 z_j <= (1 + tolerance) r certifies w, and log det V(w) is then within
r log(1 + tolerance) of the best. For n answers in all, widths are sqrt(r / n) at most, which is what the regret bounds
of one-shot designs use (ODPO 2410.17055).

NumPy; memory is linear in the number of candidates (a chunk of `CHUNK` rows at a time is ever multiplied).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import qr, solve_triangular

CHUNK = 2**11  # rows at a time: half a megabyte at d = 32, which stays in cache
THIN = 64  # candidates per dimension among which a start is sought
SPAN = 1e-10  # directions whose squared singular value is below this share of the largest are not there


@dataclass(frozen=True, eq=False)
class Design:
    """weights (N,); largest_width: max_j z_j' V^-1 z_j over all candidates, in the span; rank of the span; missing (d -
    rank, d): orthonormal directions in which no candidate has any length; iterations; converged: whether largest_width
    <= (1 + tolerance) rank, the certificate."""

    weights: np.ndarray
    largest_width: float
    rank: int
    missing: np.ndarray
    iterations: int
    converged: bool

    @property
    def support(self) -> np.ndarray:
        return np.flatnonzero(self.weights)


def d_optimal(
    vectors: ArrayLike, *, tolerance: float = 1e-3, max_iterations: int = 100_000, warn: bool = True
) -> Design:
    """The D-optimal (= G-optimal) design over candidate vectors (N, d), to max width <= (1 + tolerance) rank.

    Frank-Wolfe with exact line search and away steps (Todd and Yildirim 2007): toward the widest candidate, or away
    from the narrowest of the support, whichever promises more; the step s = (q_j / r - 1) / (q_j - 1) is the exact
    maximiser of log det along it. Steps run on a working set (the support and the widest candidates); a pass over all
    candidates then eliminates those that provably carry no weight in any optimum (Harman and Pronzato 2007: q_j < r (1
    + e / 2 - sqrt(e (4 + e - 4 / r)) / 2), e = max q - r), and either certifies the design or widens the working
    set.

    Candidates that do not span R^d: the design is that of the span, and a warning names the missing directions.
    Complexity O(N r^2) a pass (a handful), O(working set x r) a step. Raises ValueError for vectors that are not
    finite, not a table, or all zero, and for a tolerance outside (0, 1).
    """
    z = np.asarray(vectors, dtype=float)
    if z.ndim != 2 or 0 in z.shape or not np.isfinite(z).all():
        raise ValueError(f"vectors: must be a finite table (N, d) with N, d >= 1, got shape {z.shape}")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance: must be in (0, 1), got {tolerance}")
    basis, missing = _span(z)
    if len(missing) and warn:
        named = "; ".join(np.array2string(row, precision=3, suppress_small=True) for row in missing[:3])
        warnings.warn(
            f"vectors: span {basis.shape[1]} of {z.shape[1]} dimensions; nothing is learnt along {named}", stacklevel=2
        )
    inside = z @ basis if len(missing) else z
    r = inside.shape[1]
    support = _start(inside)  # on a line, r = 1: the longest candidate, which is the design
    weights = np.full(len(support), 1 / len(support))
    alive, rows, iterations, certified, largest = np.arange(len(z)), inside, 0, False, np.inf
    while True:
        q = _widths(rows, inside[support], weights)
        largest = float(q.max())
        if largest <= (1 + tolerance) * r or iterations >= max_iterations:
            if len(alive) < len(z):  # the certificate is over all candidates, eliminated ones included
                alive, rows = np.arange(len(z)), inside
                q = _widths(rows, inside[support], weights)
                largest = float(q.max())
            certified = largest <= (1 + tolerance) * r
            if certified or iterations >= max_iterations:
                break
        excess = largest / r - 1
        keep = (q >= _least_width(largest, r) * (1 - 1e-9)) | np.isin(alive, support)
        if keep.mean() < 0.75:  # else copying the others costs more than it saves
            alive, rows, q = alive[keep], rows[keep], q[keep]
        widest = alive[np.argpartition(-q, min(len(q) - 1, 4 * r))[: 4 * r + 1]]
        working = np.union1d(support, widest)
        start = np.zeros(len(working))
        start[np.searchsorted(working, support)] = weights
        target = max(tolerance / 2, min(0.5, excess / 4))
        w, steps = _frank_wolfe(inside[working], start, target, max_iterations - iterations)
        iterations += steps
        support, weights = working[w > 0], w[w > 0]
    full = np.zeros(len(z))
    full[support] = weights
    return Design(full, largest, r, missing, iterations, certified)


def _least_width(largest: float, r: int) -> float:
    """Below it a candidate is in no optimal support, whose widths under a design whose largest is known are at least
    this much (Harman and Pronzato 2007): r times the least eigenvalue that H = V^-1/2 V* V^-1/2 can have, given that
    tr H <= largest and tr H^-1 <= r."""
    excess = largest - r
    return r * (1 + excess / 2 - np.sqrt(excess * (4 + excess - 4 / r)) / 2)


def _span(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal bases (d, r) of the candidates' span and (d - r, d) of its complement."""
    gram = np.zeros((z.shape[1], z.shape[1]))
    for i in range(0, len(z), CHUNK):
        gram += z[i : i + CHUNK].T @ z[i : i + CHUNK]
    values, vectors = np.linalg.eigh(gram)
    if values[-1] <= 0:
        raise ValueError("vectors: all candidates are zero, there is nothing to learn from them")
    there = values > SPAN * values[-1]
    return vectors[:, there], vectors[:, ~there].T


def _start(z: np.ndarray) -> np.ndarray:
    """r candidates that span, each the farthest from the span of those before it (QR with pivots): of a thinned table
    where that spans, else of the whole."""
    N, r = z.shape
    for step in (N // (THIN * r) if r > 1 else 1, 1):
        rows = np.arange(0, N, max(1, step))
        factors: Any = qr(z[rows].T, mode="r", pivoting=True)
        far, pivots = np.abs(np.diagonal(factors[0])), factors[1]
        if len(far) == r and far[-1] ** 2 > SPAN * far[0] ** 2:
            break
    return np.unique(rows[pivots[:r]])


def _widths(rows: np.ndarray, support: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """z_j' V^-1 z_j of the given rows, V of the weighted support, by a triangular inverse."""
    lower = np.linalg.cholesky((support.T * weights) @ support)
    inverse = solve_triangular(lower, np.eye(len(lower)), lower=True).T
    q, half = np.empty(len(rows)), np.empty((min(CHUNK, len(rows)), rows.shape[1]))
    for i in range(0, len(rows), CHUNK):
        chunk = rows[i : i + CHUNK]
        part = np.matmul(chunk, inverse, out=half[: len(chunk)])
        np.einsum("nd,nd->n", part, part, out=q[i : i + CHUNK])
    return q


def _frank_wolfe(z: np.ndarray, weights: np.ndarray, target: float, limit: int) -> tuple[np.ndarray, int]:
    """Steps on a working set until its own max q <= (1 + target) r and its support's min q >= (1 - target) r."""
    r, w = z.shape[1], weights.copy()
    steps, idle = 0, np.where(w > 0, 0.0, np.inf)  # idle: what keeps candidates without weight from losing some
    while True:  # all is computed anew every 500 steps, so that rounding cannot build up
        inverse = np.linalg.inv((z.T * w) @ z)
        q = np.einsum("nd,nd->n", z @ inverse, z)
        for _ in range(500):
            up, down = int(q.argmax()), int((q + idle).argmin())
            toward, away = q[up] / r - 1, 1 - q[down] / r
            if (toward <= target and away <= target) or steps >= limit:
                return w, steps
            steps += 1
            j, drop = (up, False) if toward >= away else (down, True)
            # log det V((1 - s) w + s e_j) is largest at this s; a negative one takes weight away, at most all of w_j
            s = (q[j] / r - 1) / (q[j] - 1) if q[j] > 1 else -np.inf
            if drop:
                everything = -w[j] / (1 - w[j])
                s, drop = max(s, everything), s <= everything
            w *= 1 - s
            w[j] = 0.0 if drop else w[j] + s
            idle[j] = np.inf if drop else 0.0
            along = inverse @ z[j]
            shrink = s / (1 - s + s * q[j])
            inverse -= np.outer(along, shrink * along)
            inverse /= 1 - s
            q -= shrink * (z @ along) ** 2
            q /= 1 - s


def largest_width(vectors: ArrayLike, weights: ArrayLike) -> float:
    """The G-criterion max_j z_j' V(w)^-1 z_j, in the span; at least its rank, with equality iff w is G- (and
    D-)optimal. Infinite where the weighted candidates do not span what the others need."""
    z, w = np.asarray(vectors, dtype=float), np.asarray(weights, dtype=float)
    inside = z @ _span(z)[0]
    support = np.flatnonzero(w)
    if np.linalg.matrix_rank(inside[support]) < inside.shape[1]:
        return np.inf
    return float(_widths(inside, inside[support], w[support]).max())


def apportion(weights: ArrayLike, n: int) -> np.ndarray:
    """Whole numbers (N,) that sum to n and follow the weights: the efficient apportionment of Pukelsheim and Rieder
    1992.

    Start from ceil((n - s / 2) w_j) over the s supported candidates, then move one at a time. Every supported candidate
    gets at least one answer if n >= s; the design keeps at least 1 - s / n of its efficiency. Raises ValueError for n <
    1 or weights that are no law.
    """
    w = np.asarray(weights, dtype=float)
    if n < 1 or w.ndim != 1 or (w < 0).any() or abs(w.sum() - 1) > 1e-6:
        raise ValueError(f"weights, n: must be probabilities and a count >= 1, got a sum of {w.sum():g} and n = {n}")
    where = np.flatnonzero(w)
    share = w[where] / w[where].sum()
    count = np.maximum(np.ceil((n - len(where) / 2) * share), 1.0 if n >= len(where) else 0.0)
    count = np.maximum(count, 0.0)
    while count.sum() > n:
        count[np.where(count > 0, (count - 1) / share, -np.inf).argmax()] -= 1
    while count.sum() < n:
        count[(count / share).argmin()] += 1
    rounded = np.zeros(len(w), dtype=np.int64)
    rounded[where] = count.astype(np.int64)
    return rounded
