"""Independent references: each algorithm once more, in twenty lines of plain NumPy, one replicate at a time."""

from __future__ import annotations

import numpy as np


def linucb(features: np.ndarray, rewards: np.ndarray, radius: float, ridge: float) -> list[int]:
    """Actions of LinUCB on features (T, A, d) and the rewards (T, A) that any action would get."""
    d = features.shape[-1]
    V, b, actions = ridge * np.eye(d), np.zeros(d), []
    for phi, r in zip(features, rewards, strict=True):
        theta = np.linalg.solve(V, b)
        widths = np.sqrt(np.sum(phi * np.linalg.solve(V, phi.T).T, axis=1))
        actions.append(first_best(phi @ theta + radius * widths))
        x = phi[actions[-1]]
        V, b = V + np.outer(x, x), b + r[actions[-1]] * x
    return actions


def maxinp(features: np.ndarray, uniforms: np.ndarray, margins: np.ndarray, radius: float, ridge: float) -> list:
    """Unordered pairs of MaxInP on features (T, A, d); the first wins where uniform < sigma(its margin), margins (T, A)
    the true rewards. matrix_ridge 1, likelihood ridge `ridge`, refitted every round."""
    d = features.shape[-1]
    V, zs, ys, pairs, theta = np.eye(d), [], [], [], np.zeros(d)
    for phi, u, r in zip(features, uniforms, margins, strict=True):
        difference = phi[:, None] - phi[None]
        widths = np.sqrt(np.einsum("ijd,de,ije->ij", difference, np.linalg.inv(V), difference).clip(0))
        gaps = (phi @ theta)[:, None] - (phi @ theta)[None]
        promising = np.flatnonzero((gaps + radius * widths >= 0).all(1))
        inside = widths[np.ix_(promising, promising)]
        i, j = np.unravel_index(first_best(inside.ravel()), inside.shape)
        pair = (int(promising[min(i, j)]), int(promising[max(i, j)]))
        pairs.append(pair)
        z = phi[pair[0]] - phi[pair[1]]
        zs.append(z)
        ys.append(float(u < 1 / (1 + np.exp(-(r[pair[0]] - r[pair[1]])))))
        Z, y = np.array(zs), np.array(ys)
        V = V + np.outer(z, z)
        for _ in range(30):  # Newton on the ridge likelihood
            p = 1 / (1 + np.exp(-Z @ theta))
            step = np.linalg.solve((Z.T * (p * (1 - p))) @ Z + ridge * np.eye(d), Z.T @ (p - y) + ridge * theta)
            theta = theta - step
            if np.abs(step).max() < 1e-14:
                break
    return pairs


def first_best(scores: np.ndarray) -> int:
    """First index within 1e-9 of the maximum: there must be no tie where this is compared."""
    return int(np.flatnonzero(scores >= scores.max() - 1e-9)[0])
