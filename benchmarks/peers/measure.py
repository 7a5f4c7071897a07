"""What all peers' scripts share: the inputs, the yardstick, and one line of JSON per size. Needs NumPy alone."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import bandit_reference  # from the folder above, by PYTHONPATH
import numpy as np

SIZES = ((16, 10, 2000), (64, 50, 2000))
Learner = tuple[Callable[[np.ndarray], int], Callable[[np.ndarray, int, float], None]]


def run(
    version: str, make: Callable[[int, int], Learner], model: bandit_reference.Model, *, last: bool = False
) -> None:
    """Prints, per size, the peer's and the yardstick's microseconds a round, the share of rounds in which both play the
    same action, and the regret. The seed is the script's argument. `make(dim, arms)` returns a choice from features
    (K, d), or (d,) of the disjoint model, and a way to learn; `last`: the peer breaks ties by the last index."""
    seed = int(sys.argv[1])
    for dim, arms, rounds in SIZES:
        features, means, noise = bandit_reference.problem(seed, rounds, dim, arms, model)
        expected, loop = bandit_reference.linucb(features, means, noise, own=model != "shared", last=last)
        choose, learn = make(dim, arms)
        actions = np.empty(rounds, dtype=int)
        start = time.perf_counter()
        for t in range(rounds):
            x = features[t, 0] if model == "disjoint" else features[t]
            actions[t] = a = choose(x)
            learn(x, a, means[t, a] + noise[t])
        spent = time.perf_counter() - start
        row = {"version": version, "model": model, "dim": dim, "arms": arms, "us": 1e6 * spent / rounds}
        row |= {"loop_us": 1e6 * loop / rounds, "same": float((actions == expected).mean())}
        row |= {
            "regret": [bandit_reference.regret(means, actions)],
            "loop_regret": bandit_reference.regret(means, expected),
        }
        print(json.dumps(row))
