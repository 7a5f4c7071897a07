"""Speed of bandits, pair scoring and designs: `pytest benchmarks/test_bandit_speed.py` (not part of the tests).

Ours is end to end through `simulate`, draws and regret curve included; the yardstick is a plain NumPy loop
(`bandit_reference`) without its draws. Both in one process, interleaved, medians. What libraries need on the same
yardstick: `benchmarks/peers`. One thread.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch

from benchmarks import bandit_reference
from benchmarks.test_speed import one_thread, ratio
from simbandit import Problem, algorithms, oracles, simulate, worlds
from simbandit.algorithms.choosing import play
from simbandit.design import d_optimal
from simbandit.draws import Draws
from simbandit.estimators import batched_product, pair_widths, rank_one_inverse
from simbandit.least_squares import LeastSquares
from simbandit.types import Contexts

__all__ = ["one_thread"]


Model = Literal["shared", "disjoint"]


def linucb(model: Model, dim: int, arms: int, rounds: int, replicates: int) -> Any:
    if model == "shared":
        world = worlds.LinearWorld(None, arms, dim, features="gaussian", theta_norm=1.0)
    else:
        world = worlds.LinearWorld(None, arms, dim * arms, features="per_arm", theta_norm=1.0, n_evaluation=8)
    problem, algorithm = Problem(world, oracles.NoisyReward(0.5), 1.0), algorithms.create("linucb", model=model)
    return simulate(problem, algorithm, rounds=rounds, replicates=replicates, metrics=["cumulative_reward_regret"])


@pytest.mark.parametrize(
    ("model", "dim", "arms", "rounds", "replicates", "promised"),
    [
        ("shared", 16, 10, 2000, 256, 2.5),
        ("shared", 64, 50, 400, 128, 0.3),
        ("disjoint", 16, 10, 2000, 256, 4.0),
        ("disjoint", 64, 50, 800, 64, 1.0),
    ],
)
def test_linucb_end_to_end_against_a_numpy_loop(
    benchmark: Any, model: Model, dim: int, arms: int, rounds: int, replicates: int, promised: float
) -> None:
    """us per round and replicate. The loop's time excludes its draws, which cost more than learning where every action
    has features of its own: at d = 64, K = 50 the 3,200 normals of a round alone take most of ours."""
    ours, loops, ours_regret, loop_regret = [], [], 0.0, []
    for repetition in range(3):
        start = time.perf_counter()
        run = linucb(model, dim, arms, rounds, replicates)
        ours.append((time.perf_counter() - start) / rounds / replicates)
        ours_regret = float(run.final("cumulative_reward_regret").mean())
        for seed in range(2):
            features, means, noise = bandit_reference.problem(10 * repetition + seed, rounds, dim, arms, model)
            actions, seconds = bandit_reference.linucb(features, means, noise, own=model == "disjoint")
            loops.append(seconds / rounds)
            loop_regret.append(bandit_reference.regret(means, actions))
    measured = float(np.median(loops) / np.median(ours))
    benchmark.extra_info.update(
        us=1e6 * float(np.median(ours)), loop_us=1e6 * float(np.median(loops)), ratio=measured,
        regret=ours_regret, loop_regret=float(np.mean(loop_regret)),
    )  # fmt: skip
    benchmark.pedantic(linucb, args=(model, dim, arms, 50, replicates), rounds=1)
    assert measured >= promised
    assert abs(ours_regret - np.mean(loop_regret)) < 4 * np.std(loop_regret)


def tenths(algorithm: Any, rounds: int, world: Any, repetitions: int = 2) -> float:
    """Cost of a round in the last tenth over that in the second: of the quietest hundredth of either, because other
    work on the machine only adds. A hundredth holds a refit of every logistic schedule."""
    quietest = []
    for _ in range(repetitions):
        stamps: list[float] = []

        def clock(snapshot: Any, stamps: list[float] = stamps) -> torch.Tensor:
            stamps.append(time.process_time())
            return torch.zeros(snapshot.instance.replicates, dtype=torch.float64)

        oracle = oracles.NoisyReward(0.5) if algorithm.feedbacks[0] == "reward" else oracles.BradleyTerry()
        problem = Problem(world, oracle, 1.0)
        simulate(problem, algorithm, rounds=rounds, replicates=8, metrics=[("clock", clock)], record="all")
        quietest.append(np.diff(stamps).reshape(100, -1).mean(1))
    least = np.min(quietest, axis=0)
    return float(least[90:].min() / least[10:20].min())


ROUNDS = 20_000
REWARDS = ("linucb", "disjoint", "lints", "squarecb", "falcon", "epsilon_greedy", "explore_then_commit", "exp4")
TABLES = ("rucb", "double_thompson")
LOGISTIC = ("maxinp", "maxpairucb", "ginop", "colstim", "vacdb", "fgts", "sgld", "glm_ucb", "apo", "appo", "adpo")
VARIANTS = {"disjoint": ("linucb", {"model": "disjoint"}), "sgld": ("fgts", {"sampler": "sgld"})}


def algorithm(name: str) -> Any:
    registered, fields = VARIANTS.get(name, (name, {}))
    return algorithms.create(registered, **fields)


@pytest.mark.parametrize("name", REWARDS)
def test_cost_of_a_round_is_flat(benchmark: Any, name: str) -> None:
    """O(d^2) updates, fresh contexts: at most 1.2."""
    world = worlds.LinearWorld(None, 5, 4, theta_norm=1.0, n_evaluation=5)
    measured = benchmark.pedantic(tenths, args=(algorithm(name), ROUNDS, world), rounds=1)
    benchmark.extra_info["ratio"] = measured
    assert measured <= 1.2


@pytest.mark.parametrize("name", [*TABLES, *LOGISTIC])
def test_cost_of_a_round_is_bounded_in_a_finite_world(benchmark: Any, name: str) -> None:
    """Tables do not grow; likelihoods are refitted whenever the data have grown by 1 %, over the distinct pairs: at
    most 1.2."""
    world = worlds.LinearWorld(10, 5, 4, theta_norm=1.0)
    measured = benchmark.pedantic(tenths, args=(algorithm(name), ROUNDS, world, 1), rounds=1)
    benchmark.extra_info["ratio"] = measured
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


def pairs(n: int) -> np.ndarray:
    """Differences of n pairs of unit vectors, d = 32."""
    ends = np.random.default_rng(0).normal(size=(2, n, 32))
    ends /= np.linalg.norm(ends, axis=-1, keepdims=True)
    return ends[0] - ends[1]


def peak_mib(n: int) -> float:
    """High-water mark of a design's own memory, its input not counted."""
    z = pairs(n)
    tracemalloc.start()
    d_optimal(z)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def test_design_on_a_hundred_thousand_pairs(benchmark: Any) -> None:
    """d = 32, to 1e-3 of the certificate, where Frank-Wolfe alone needs thousands of steps over all candidates: for the
    price of 40 such steps (.2 s on an idle core). Memory linear in the candidates, at most 1.5 times their own."""
    z, inverse = pairs(100_000), np.eye(32)

    def step() -> int:
        return int(np.einsum("nd,nd->n", z @ inverse, z).argmax())

    design = benchmark.pedantic(d_optimal, args=(z,), rounds=1)
    steps = 1 / ratio(lambda: d_optimal(z), step, 5)
    peaks = {n: peak_mib(n) for n in (50_000, 100_000, 200_000)}
    benchmark.extra_info.update(
        excess=design.largest_width / 32 - 1, iterations=design.iterations, steps=steps, peak_mib=peaks,
        input_mib=z.nbytes / 2**20,
    )  # fmt: skip
    assert design.converged
    assert design.largest_width <= 32 * (1 + 1e-3)
    assert steps <= 40
    assert all(peak < 1.5 * n * 32 * 8 / 2**20 for n, peak in peaks.items())


def least(*functions: Callable[[], Any], repetitions: int = 25) -> list[float]:
    """Least time of each, interleaved."""
    times = []
    for _ in range(repetitions):
        row = []
        for function in functions:
            start = time.perf_counter()
            function()
            row.append(time.perf_counter() - start)
        times.append(row)
    return np.min(times, axis=0).tolist()


def test_share_of_the_limits(benchmark: Any) -> None:
    """Of this machine: the widths' product, and 16 rounds of LinUCB with a model per arm from choice to update, against
    dgemm (shares of its rate); the rank-one update against copying its bytes, the draws of a round's features against
    bare normals of NumPy's generator (both: time over time)."""
    rng = np.random.default_rng(0)
    square = rng.normal(size=(700, 700))
    phi, inverse = torch.from_numpy(rng.normal(size=(64, 50, 64))), torch.eye(64).double().repeat(64, 1, 1)
    dgemm, product = least(lambda: square @ square, lambda: batched_product(phi, inverse))
    model, x = LeastSquares(64, 64, 1.0, arms=50), phi[:, :16, None].expand(64, 16, 50, 64)
    contexts, outcomes = Contexts(ref_log_probs=torch.zeros(64, 16, 50).double()), torch.rand(64, 16, 50).double()
    dgemm_again, played = least(
        lambda: square @ square, lambda: play(model, 1.0, x, contexts, outcomes, outcomes[..., 0]), repetitions=10
    )
    rounds_ahead = (16 * 64 * 2 * 50 * 64**2 / played) / (2 * 700**3 / dgemm_again)  # of the flops of the widths alone
    u = 1e-3 * phi[:, 0]
    update, copy = least(lambda: rank_one_inverse(inverse, u), lambda: inverse.clone())
    fill, generator, source = np.empty((64, 64, 50, 64)), np.random.Generator(np.random.SFC64(0)), Draws(0, 64)

    def rounds() -> None:
        for t in range(64):
            source.at(t).normal("features", 1, 50, 64)

    drawn, normals = least(rounds, lambda: generator.standard_normal(out=fill), repetitions=5)
    widths = (2 * 64 * 50 * 64**2 / product) / (2 * 700**3 / dgemm)
    benchmark.extra_info.update(
        widths_of_dgemm=widths, rounds_ahead_of_dgemm=rounds_ahead, update_over_copy=update / copy,
        draws_over_normals=drawn / normals,
        gflops=2e-9 * 700**3 / dgemm, copied_gb_s=1.6e-8 * inverse.numel() / copy, normal_ns=1e9 * normals / fill.size,
    )  # fmt: skip
    benchmark(lambda: rank_one_inverse(inverse, u))
    assert widths >= 0.15  # dgemm's own rate has been seen between 56 and 119 GFLOP/s on one machine
    assert rounds_ahead >= 0.05
    assert update <= 3 * copy
    assert drawn <= 1.3 * normals
