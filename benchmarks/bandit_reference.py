"""The yardstick of the bandit benchmarks: LinUCB as a plain NumPy loop over rounds, one replicate at a time, and the
inputs that it and every peer are given."""

from __future__ import annotations

import time

import numpy as np


def problem(seed: int, rounds: int, dim: int, arms: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (T, K, d) of norm 1/2 to 1 (equal norms would tie all arms in round 1, and libraries break ties each in
    their own way), mean rewards (T, K) of a unit theta, and noise (T,) of standard deviation 1/2."""
    rng = np.random.Generator(np.random.SFC64(seed))
    theta = rng.normal(size=dim)
    features = rng.normal(size=(rounds, arms, dim))
    features *= rng.uniform(0.5, 1.0, (rounds, arms, 1)) / np.linalg.norm(features, axis=-1, keepdims=True)
    return features, features @ (theta / np.linalg.norm(theta)), 0.5 * rng.normal(size=rounds)


def linucb(features: np.ndarray, means: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, float]:
    """Actions (T,) of LinUCB with radius 1 and ridge 1, first index of the maximum, and the seconds the loop took."""
    rounds, _, dim = features.shape
    inverse, moment, actions = np.eye(dim), np.zeros(dim), np.empty(rounds, dtype=int)
    start = time.perf_counter()
    for t in range(rounds):
        x = features[t]
        half = x @ inverse
        score = x @ (inverse @ moment) + np.sqrt(np.einsum("ad,ad->a", half, x))
        a = int(score.argmax())
        actions[t] = a
        v = half[a]
        inverse -= np.outer(v, v) / (1 + v @ x[a])
        moment += (means[t, a] + noise[t]) * x[a]
    return actions, time.perf_counter() - start


def regret(means: np.ndarray, actions: np.ndarray) -> float:
    return float((means.max(1) - means[np.arange(len(means)), actions]).sum())
