"""Independent references: each algorithm once more, in twenty lines of plain NumPy, one replicate at a time."""

from __future__ import annotations

import numpy as np


def linucb(features: np.ndarray, rewards: np.ndarray, radius: float, ridge: float, first: int) -> list[int]:
    """Actions of LinUCB on features (T, A, d) and the rewards (T, A) that any action would get, the first one given."""
    d = features.shape[-1]
    V, b, actions = ridge * np.eye(d), np.zeros(d), []
    for phi, r in zip(features, rewards, strict=True):
        theta = np.linalg.solve(V, b)
        widths = np.sqrt(np.sum(phi * np.linalg.solve(V, phi.T).T, axis=1))
        actions.append(first_best(phi @ theta + radius * widths) if actions else first)
        x = phi[actions[-1]]
        V, b = V + np.outer(x, x), b + r[actions[-1]] * x
    return actions


def maxinp(
    features: np.ndarray, uniforms: np.ndarray, rewards: np.ndarray, orders: np.ndarray, radius: float, ridge: float
) -> list[tuple[int, int]]:
    """Unordered pairs of MaxInP on features (T, A, d), refitted every round (likelihood ridge `ridge`, V starting from
    I). orders (T, 2): which of the pair comes first, the annotator's uniform is compared with P(first wins); the very
    first pair, where nothing but a tie may differ, needs none."""
    d = features.shape[-1]
    V, zs, ys, pairs, theta = np.eye(d), [], [], [], np.zeros(d)
    for phi, u, r, order in zip(features, uniforms, rewards, orders, strict=True):
        difference = phi[:, None] - phi[None]
        widths = np.sqrt(np.einsum("ijd,de,ije->ij", difference, np.linalg.inv(V), difference).clip(0))
        gaps = (phi @ theta)[:, None] - (phi @ theta)[None]
        promising = np.flatnonzero((gaps + radius * widths >= 0).all(1))
        inside = widths[np.ix_(promising, promising)]
        i, j = (int(promising[k]) for k in np.unravel_index(first_best(inside.ravel()), inside.shape))
        pairs.append((min(i, j), max(i, j)))
        first, second = (i, j) if order[0] == i else (j, i)
        zs.append(phi[first] - phi[second])
        ys.append(float(u < 1 / (1 + np.exp(-(r[first] - r[second])))))
        Z, y, V = np.array(zs), np.array(ys), V + np.outer(zs[-1], zs[-1])
        for _ in range(50):  # Newton on the ridge likelihood
            p = 1 / (1 + np.exp(-Z @ theta))
            hessian = (Z.T * (p * (1 - p))) @ Z + ridge * np.eye(d)
            theta = theta - np.linalg.solve(hessian, Z.T @ (p - y) + ridge * theta)
    return pairs


def first_best(scores: np.ndarray) -> int:
    """First index within 1e-9 of the maximum: there must be no tie where this is compared."""
    return int(np.flatnonzero(scores >= scores.max() - 1e-9)[0])
