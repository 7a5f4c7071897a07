"""The yardstick of the bandit benchmarks: LinUCB as a plain NumPy loop over rounds, one replicate at a time, and the
inputs that it and every peer are given."""

from __future__ import annotations

import time
from typing import Literal

import numpy as np

Model = Literal["shared", "disjoint", "own"]
"""One regression on all actions' features; one an arm on the context's vector; one an arm on that action's features."""


def problem(seed: int, rounds: int, dim: int, arms: int, model: str = "shared") -> tuple[np.ndarray, ...]:
    """Features (T, K, d), mean rewards (T, K), and noise (T,) of standard deviation 1/2. Features are N(0, I) (equal
    norms would tie all arms in round 1) and share a unit theta; of the disjoint model all arms see one vector of the
    unit sphere, and theta is of unit norm over all arms."""
    rng = np.random.Generator(np.random.SFC64(seed))
    theta = rng.normal(size=(arms if model == "disjoint" else 1, dim))
    theta /= np.linalg.norm(theta)
    features = rng.normal(size=(rounds, 1 if model == "disjoint" else arms, dim))
    if model == "disjoint":
        features /= np.linalg.norm(features, axis=-1, keepdims=True)
    features = np.broadcast_to(features, (rounds, arms, dim))
    return features, (features * theta).sum(-1), 0.5 * rng.normal(size=rounds)


def linucb(
    features: np.ndarray, means: np.ndarray, noise: np.ndarray, *, own: bool = False, last: bool = False
) -> tuple[np.ndarray, float]:
    """Actions (T,) of LinUCB with radius 1 and ridge 1, and the seconds the loop took. own: a model per arm. Among
    scores within 1e-9 of the best (arms that were never played tie) the first, or the last, index is played."""
    rounds, arms, dim = features.shape
    inverse, moment = np.tile(np.eye(dim), (arms if own else 1, 1, 1)), np.zeros((arms if own else 1, dim))
    actions = np.empty(rounds, dtype=int)
    start = time.perf_counter()
    for t in range(rounds):
        x = features[t]
        half = (inverse @ x[:, :, None])[:, :, 0] if own else x @ inverse[0]
        score = np.einsum("ad,ad->a", half, moment) if own else half @ moment[0]
        score += np.sqrt(np.einsum("ad,ad->a", half, x))
        tied = (score >= score.max() - 1e-9).nonzero()[0]
        a = int(tied[-1 if last else 0])
        actions[t] = a
        v, m = half[a], a if own else 0
        inverse[m] -= np.outer(v, v) / (1 + v @ x[a])
        moment[m] += (means[t, a] + noise[t]) * x[a]
    return actions, time.perf_counter() - start


def regret(means: np.ndarray, actions: np.ndarray) -> float:
    return float((means.max(1) - means[np.arange(len(means)), actions]).sum())
