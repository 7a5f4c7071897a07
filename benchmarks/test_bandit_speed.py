"""Speed of bandits, pair scoring and designs: `pytest benchmarks/test_bandit_speed.py` (not part of the tests).

Ours is end to end through `simulate`, draws and regret curve included; the yardstick is a plain NumPy loop
(`bandit_reference`) without its draws. Both in one process, interleaved, medians. What libraries need on the same
yardstick: `benchmarks/peers`. One thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import bandit_reference
from benchmarks.test_speed import one_thread, ratio
from simbandit import Problem, algorithms, oracles, simulate, worlds
from simbandit.design import d_optimal
from simbandit.estimators import pair_widths

__all__ = ["one_thread"]


def bandit(name: str, dim: int, arms: int, rounds: int, replicates: int, world: Any = None) -> Any:
    world = worlds.LinearWorld(None, arms, dim, theta_norm=1.0) if world is None else world
    problem = Problem(world, oracles.NoisyReward(0.5), 1.0)
    metrics = ["cumulative_reward_regret"]
    return simulate(problem, algorithms.create(name), rounds=rounds, replicates=replicates, metrics=metrics)


@pytest.mark.parametrize(
    ("dim", "arms", "rounds", "replicates", "promised"), [(16, 10, 2000, 256, 2.5), (64, 50, 400, 128, 0.3)]
)
def test_linucb_end_to_end_against_a_numpy_loop(
    benchmark: Any, dim: int, arms: int, rounds: int, replicates: int, promised: float
) -> None:
    """us per round and replicate. The loop's time excludes its draws, which cost more than learning: at d = 64, K = 50
    the 3,200 normals of a round alone take most of ours."""
    ours, loops, ours_regret, loop_regret = [], [], 0.0, []
    for repetition in range(3):
        start = time.perf_counter()
        run = bandit("linucb", dim, arms, rounds, replicates)
        ours.append((time.perf_counter() - start) / rounds / replicates)
        ours_regret = float(run.final("cumulative_reward_regret").mean())
        for seed in range(2):
            features, means, noise = bandit_reference.problem(10 * repetition + seed, rounds, dim, arms)
            actions, seconds = bandit_reference.linucb(features, means, noise)
            loops.append(seconds / rounds)
            loop_regret.append(bandit_reference.regret(means, actions))
    measured = float(np.median(loops) / np.median(ours))
    benchmark.extra_info.update(
        us=1e6 * float(np.median(ours)), loop_us=1e6 * float(np.median(loops)), ratio=measured,
        regret=ours_regret, loop_regret=float(np.mean(loop_regret)),
    )  # fmt: skip
    benchmark.pedantic(bandit, args=("linucb", dim, arms, 50, replicates), rounds=1)
    assert measured >= promised
    assert abs(ours_regret - np.mean(loop_regret)) < 4 * np.std(loop_regret)


def tenths(name: str, rounds: int, world: Any, replicates: int) -> float:
    """Mean cost of a round in the last tenth over that in the second."""
    stamps: list[float] = []

    def clock(snapshot: Any) -> torch.Tensor:
        stamps.append(time.process_time())
        return torch.zeros(snapshot.instance.replicates, dtype=torch.float64)

    feedback = algorithms.create(name).feedbacks[0]
    oracle = oracles.NoisyReward(0.5) if feedback == "reward" else oracles.BradleyTerry()
    simulate(
        Problem(world, oracle, 1.0), algorithms.create(name), rounds=rounds, replicates=replicates,
        metrics=[("clock", clock)], record="all",
    )  # fmt: skip
    cost, tenth = np.diff(stamps), rounds // 10
    return float(cost[9 * tenth :].mean() / cost[tenth : 2 * tenth].mean())


@pytest.mark.parametrize("name", ["linucb", "lints", "squarecb", "falcon", "epsilon_greedy", "exp4"])
def test_cost_of_a_round_is_flat(benchmark: Any, name: str) -> None:
    """T = 20,000, fresh contexts: at most 1.2."""
    measured = tenths(name, 20_000, worlds.LinearWorld(None, 5, 4, theta_norm=1.0, n_evaluation=5), 8)
    benchmark.extra_info["ratio"] = measured
    benchmark.pedantic(lambda: None, rounds=1)
    assert measured <= 1.2


@pytest.mark.parametrize("name", ["maxinp", "maxpairucb", "ginop", "colstim", "vacdb", "fgts", "glm_ucb"])
def test_cost_of_a_logistic_round_is_bounded_by_the_schedule(benchmark: Any, name: str) -> None:
    """T = 4,000 in a finite world: refits thin out as 1 / t, so the last tenth costs at most 1.2 of the second."""
    measured = tenths(name, 4000, worlds.LinearWorld(10, 5, 4, theta_norm=1.0), 8)
    benchmark.extra_info["ratio"] = measured
    benchmark.pedantic(lambda: None, rounds=1)
    assert measured <= 1.2


def test_pair_scoring_by_the_gram_trick(benchmark: Any) -> None:
    """All widths at d = 64, K = 50: at least 10x the difference vectors."""
    rng = np.random.default_rng(0)
    phi, root = torch.from_numpy(rng.normal(size=(8, 1, 50, 64))), torch.from_numpy(rng.normal(size=(8, 64, 64)))
    inverse = root @ root.mT

    def differences() -> torch.Tensor:
        z = (phi[:, :, :, None] - phi[:, :, None]).reshape(8, -1, 64)
        return ((z @ inverse) * z).sum(-1).clamp_min(0).sqrt()

    error = float((pair_widths(phi, inverse).flatten() - differences().flatten()).abs().max())
    measured = ratio(lambda: pair_widths(phi, inverse), differences, 15)
    benchmark.extra_info.update(ratio=measured, error=error)
    benchmark(lambda: pair_widths(phi, inverse))
    assert error < 1e-5  # sqrt of rounding, at pairs of an action with itself
    assert measured >= 10


def test_design_on_a_hundred_thousand_pairs(benchmark: Any) -> None:
    """d = 32, to 1e-3 of the certificate."""
    rng = np.random.default_rng(0)
    ends = rng.normal(size=(2, 100_000, 32))
    ends /= np.linalg.norm(ends, axis=-1, keepdims=True)
    design = benchmark.pedantic(d_optimal, args=(ends[0] - ends[1],), rounds=3)
    benchmark.extra_info.update(excess=design.largest_width / 32 - 1, iterations=design.iterations)
    assert design.converged
    assert benchmark.stats.stats.median < 3


def best(function: Callable[[], Any], repetitions: int = 9) -> float:
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def test_share_of_the_limits(benchmark: Any) -> None:
    """Of this machine: the widths' product against dgemm, the rank-one update against copying its bytes, the draws of a
    round's features against bare normals."""
    from simbandit.draws import Draws
    from simbandit.estimators import batched_product, rank_one_inverse

    rng = np.random.default_rng(0)
    square = torch.from_numpy(rng.normal(size=(700, 700)))
    dgemm = 2 * 700**3 / best(lambda: square.numpy() @ square.numpy())
    phi, inverse = torch.from_numpy(rng.normal(size=(64, 50, 64))), torch.eye(64).double().repeat(64, 1, 1)
    widths = 2 * 64 * 50 * 64**2 / best(lambda: batched_product(phi, inverse))
    u = 1e-3 * phi[:, 0]
    update = best(lambda: rank_one_inverse(inverse, u))
    copy = best(lambda: inverse.clone())
    fill = np.empty((64, 1, 50, 64))
    normals = best(lambda: rng.standard_normal(out=fill))
    source = Draws(0, 64)

    def block() -> None:
        for t in range(64):
            source.at(t).normal("features", 1, 50, 64)

    drawn = best(block, 3) / 64
    benchmark.extra_info.update(
        widths_of_dgemm=widths / dgemm, update_over_copy=update / copy, draws_over_normals=drawn / normals
    )
    benchmark(lambda: rank_one_inverse(inverse, u))
