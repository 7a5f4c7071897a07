"""Ours, end to end through `simulate`: draws of features, noise and ties, the loop, and a regret curve."""

from __future__ import annotations

import json
import sys
import time

import torch
from measure import SIZES

from simbandit import Problem, __version__, algorithms, oracles, simulate, worlds

REPLICATES = {16: 256, 64: 64}


def run(model: str, dim: int, arms: int, rounds: int, seed: int) -> tuple[float, list[float]]:
    """Microseconds per round and replicate, and the replicates' regrets."""
    disjoint = model == "disjoint"
    world = worlds.LinearWorld(
        None, arms, dim * arms if disjoint else dim, features="per_arm" if disjoint else "gaussian", theta_norm=1.0,
        n_evaluation=8,
    )  # fmt: skip
    algorithm = algorithms.create("linucb", model="shared" if model == "shared" else "disjoint")
    start = time.perf_counter()
    results = simulate(
        Problem(world, oracles.NoisyReward(0.5), 1.0), algorithm, rounds=rounds, replicates=REPLICATES[dim], seed=seed,
        metrics=["cumulative_reward_regret"],
    )  # fmt: skip
    spent = (time.perf_counter() - start) / rounds / REPLICATES[dim]
    return 1e6 * spent, results.final("cumulative_reward_regret").tolist()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for model in ("shared", "disjoint", "own"):
        for dim, arms, rounds in SIZES:
            run(model, dim, arms, 3, 0)  # compiled kernels are read from their cache
            us, regrets = run(model, dim, arms, rounds, int(sys.argv[1]))
            row = {"version": __version__, "model": model, "dim": dim, "arms": arms, "us": us, "regret": regrets}
            print(json.dumps(row))
