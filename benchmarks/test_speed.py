"""Speed claims as ratios measured in one run: `pytest benchmarks --benchmark-disable-gc` (not part of the tests).

Each benchmark stores its ratio in `extra_info` and asserts the promised one. Ratios compare the same work in the same
process, interleaved, medians of the repetitions; absolute times are the machine's own. One thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from simbandit import Problem, algorithms, oracles, simulate, worlds
from simbandit.estimators import batched_product, logistic_mle


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def ratio(fast: Callable[[], Any], slow: Callable[[], Any], repetitions: int) -> float:
    """Median time of `slow` over that of `fast`, interleaved."""
    times = {"fast": [], "slow": []}
    for _ in range(repetitions):
        for name, function in (("fast", fast), ("slow", slow)):
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return float(np.median(times["slow"]) / np.median(times["fast"]))


def test_mle_refit_against_scikit_learn(benchmark: Any) -> None:
    """n = 5,000 duels over 900 distinct pairs, d = 16, 64 replicates, ridge 1: >= 10x at the same optimum."""
    rng, (R, U, d, n) = np.random.default_rng(0), (64, 900, 16, 5000)
    z = rng.normal(size=(R, U, d))
    z /= 0.7 * np.linalg.norm(z, axis=-1, keepdims=True)
    theta = rng.normal(size=(R, d))
    theta *= 2 / np.linalg.norm(theta, axis=-1, keepdims=True)
    count = np.stack([np.bincount(rng.integers(0, U, n), minlength=U) for _ in range(R)])
    wins = rng.binomial(count, 1 / (1 + np.exp(-np.einsum("rud,rd->ru", z, theta))))
    tensors = [torch.from_numpy(x.astype(float)) for x in (z, wins, count)]
    rows = [np.repeat(z[r], count[r], axis=0) for r in range(R)]
    labels = [
        np.concatenate([np.r_[np.ones(w), np.zeros(c - w)] for w, c in zip(wins[r], count[r], strict=True)])
        for r in range(R)
    ]

    def ours() -> torch.Tensor:
        return logistic_mle(*tensors, ridge=1.0).theta

    def scikit_learn() -> np.ndarray:
        fit = LogisticRegression(C=1.0, fit_intercept=False, tol=1e-8, max_iter=1000).fit
        return np.stack([fit(x, y).coef_[0] for x, y in zip(rows, labels, strict=True)])

    error = float(np.abs(ours().numpy() - scikit_learn()).max())
    benchmark.extra_info.update(ratio=ratio(ours, scikit_learn, 7), error=error)
    benchmark(ours)
    assert error < 1e-6
    assert benchmark.extra_info["ratio"] >= 10


def gshf(replicates: Any, world: tuple[int, int, int], rounds: int, enhancer: str = "kl_ball") -> None:
    X, A, d = world
    problem = Problem(worlds.LinearWorld(n_contexts=X, n_actions=A, dim=d, theta_norm=4.0), oracles.BradleyTerry(), 0.5)
    algorithm = algorithms.create("gshf_online", enhancer=enhancer)
    simulate(
        problem, algorithm, rounds=rounds, batch_size=64, replicates=replicates, metrics=["suboptimality"], record=[0]
    )


@pytest.mark.parametrize(("world", "promised"), [((40, 30, 8), 4.0), ((10, 10, 4), 12.0)])
def test_replicates_at_once(benchmark: Any, world: tuple[int, int, int], promised: float) -> None:
    """GSHF online, m = 64: 128 replicates at once against a loop of single ones (16 of them, scaled)."""
    singles = 16

    def loop() -> None:
        for replicate in range(singles):
            gshf([replicate], world, 25)

    measured = ratio(lambda: gshf(128, world, 25), loop, 3) * 128 / singles
    benchmark.extra_info["ratio"] = measured
    benchmark.pedantic(gshf, args=(128, world, 25), rounds=3)
    assert measured >= promised


def test_kl_ball_enhancer_against_pointwise(benchmark: Any) -> None:
    """Whole rounds at 40 x 30, d = 8: the KL-ball enhancer costs at most 5x the pointwise one."""
    world = (40, 30, 8)
    measured = ratio(lambda: gshf(64, world, 25, "pointwise"), lambda: gshf(64, world, 25), 3)
    benchmark.extra_info["ratio"] = measured
    benchmark.pedantic(gshf, args=(64, world, 25), rounds=3)
    assert measured <= 5


@pytest.mark.parametrize("refit_growth", [0.01, 0.0])
def test_cost_of_a_round_over_time(benchmark: Any, refit_growth: float) -> None:
    """40 x 30, m = 64: mean cost of a round in the last tenth of 2,000 over the second tenth, at most 1.5 with the
    default schedule. Refitting every round (refit_growth = 0) costs the number of distinct pairs seen, which still
    grows here: it is measured, not asserted."""
    stamps: list[float] = []

    def clock(snapshot: Any) -> torch.Tensor:
        stamps.append(time.perf_counter())
        return torch.zeros(snapshot.instance.replicates, dtype=torch.float64)

    problem = Problem(
        worlds.LinearWorld(n_contexts=40, n_actions=30, dim=8, theta_norm=4.0), oracles.BradleyTerry(), 0.5
    )
    algorithm = algorithms.create("gshf_online", refit_growth=refit_growth)

    def run() -> None:
        stamps.clear()
        simulate(
            problem, algorithm, rounds=2000, batch_size=64, replicates=16, metrics=[("clock", clock)], record="all"
        )

    benchmark.pedantic(run, rounds=1)
    cost = np.diff(stamps)
    measured = float(cost[1800:2000].mean() / cost[200:400].mean())
    benchmark.extra_info["ratio"] = measured
    if refit_growth > 0:
        assert measured <= 1.5


def test_share_of_the_limit(benchmark: Any) -> None:
    """The Gram matrix inside the likelihood's Newton step, as a share of this machine's dgemm rate."""
    z, weights = torch.ones(64, 900, 16, dtype=torch.float64), torch.ones(64, 900, dtype=torch.float64)
    square = torch.ones(700, 700, dtype=torch.float64)

    def rate(function: Callable[[], Any], flops: float) -> float:
        times = []
        for _ in range(15):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        return flops / float(np.median(times))

    gram = rate(lambda: batched_product((z * weights[..., None]).mT, z), 2 * 64 * 900 * 16**2)
    dgemm = rate(lambda: square @ square, 2 * 700**3)
    benchmark.extra_info.update(gflops=gram / 1e9, share=gram / dgemm)
    benchmark(lambda: batched_product(z.mT, z))
