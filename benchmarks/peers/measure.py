"""What all peers' scripts share: the inputs, the yardstick, and one line of JSON per size. Needs NumPy alone."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import bandit_reference  # from the folder above, by PYTHONPATH
import numpy as np

SIZES = ((16, 10, 1000), (64, 50, 200))
Learner = tuple[Callable[[np.ndarray], int], Callable[[np.ndarray, int, float], None]]


def disjoint(features: np.ndarray, means: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """LinUCB with one ridge regression per arm on the shared context features[t, 0]: the disjoint peers' model."""
    rounds, arms, dim = features.shape
    inverse, moment = np.stack([np.eye(dim)] * arms), np.zeros((arms, dim))
    actions = np.empty(rounds, dtype=int)
    for t in range(rounds):
        x = features[t, 0]
        half = inverse @ x
        actions[t] = a = int((np.einsum("ad,ad->a", half, moment) + np.sqrt(half @ x)).argmax())
        inverse[a] -= np.outer(half[a], half[a]) / (1 + half[a] @ x)
        moment[a] += (means[t, a] + noise[t]) * x
    return actions


def run(version: str, make: Callable[[int, int], Learner], shared: bool) -> None:
    """Prints, per size, the peer's and the yardstick's microseconds a round (medians of three, interleaved), and the
    share of rounds in which the peer plays the plain loop's action, and its regret over the plain loop's."""
    for dim, arms, rounds in SIZES:
        ours, theirs, same, regrets = [], [], 0.0, np.zeros(2)
        for seed in range(3):
            features, means, noise = bandit_reference.problem(seed, rounds, dim, arms)
            expected, seconds = bandit_reference.linucb(features, means, noise)
            if not shared:
                expected = disjoint(features, means, noise)
            ours.append(seconds / rounds)
            choose, learn = make(dim, arms)
            actions = np.empty(rounds, dtype=int)
            start = time.perf_counter()
            for t in range(rounds):
                x = features[t] if shared else features[t, 0]
                actions[t] = a = choose(x)
                learn(x, a, means[t, a] + noise[t])
            theirs.append((time.perf_counter() - start) / rounds)
            same += float((actions == expected).mean()) / 3
            regrets += [bandit_reference.regret(means, chosen) for chosen in (actions, expected)]
        row = {"version": version, "dim": dim, "arms": arms, "us": 1e6 * float(np.median(theirs))}
        row |= {"loop_us": 1e6 * float(np.median(ours)), "same": same, "regret": float(regrets[0] / regrets[1])}
        print(json.dumps(row))
