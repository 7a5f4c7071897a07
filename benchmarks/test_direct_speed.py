"""Speed of the direct family, as ratios measured in one run: `pytest benchmarks/test_direct_speed.py`. One thread."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch

from simbandit import Problem, algorithms, oracles, simulate, worlds

WORLD = worlds.LinearWorld(20, 10, 5)
SPEED = ("online_dpo", "online_ipo", "inpo", "dno")
create = algorithms.create
CONVEX = (
    {
        name: create(name)
        for name in ("online_dpo", "online_ipo", "ipo_md", "inpo", "onpo", "spo", "dno", "iterative_dpo")
    }
    | {f"{name}, online": create(name, data="all") for name in ("rpo", "simpo", "vpo_offline")}
    | {
        "online_dpo, cdpo": create("online_dpo", loss="cdpo", loss_parameters=(("label_smoothing", 0.1),)),
        "iterative_dpo, fixed": create("iterative_dpo", reference="fixed"),
    }
)
"""The convex rows that play, and online forms of convex offline ones. Not here: fits of logged duels (one, from the
reference: no warm start), what is not convex in log-ratios (`sppo`, `rspo`: pointwise under a normaliser), and `slic`,
whose kinks take a fit with wider ones first."""


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def seconds(name: str, *, policy: str, replicates: Any, rounds: int, **options: Any) -> float:
    start = time.perf_counter()
    problem = Problem(WORLD, oracles.BradleyTerry(), 0.5)
    chosen: Any = {"policy": policy, "metrics": ["queries"], "record": [rounds], "batch_size": 64} | options
    simulate(problem, create(name), rounds=rounds, replicates=replicates, **chosen)
    return time.perf_counter() - start


@pytest.mark.parametrize("policy", ["tabular", "log_linear"])
@pytest.mark.parametrize("name", SPEED)
def test_replicates_at_once_against_a_loop(benchmark: Any, name: str, policy: str) -> None:
    """128 replicates x 20 contexts x 10 actions, 64 duels a round, 10 rounds: >= 8x a loop over replicates."""
    loop = np.median([seconds(name, policy=policy, replicates=[r], rounds=10) for r in range(9)]) * 128
    benchmark.pedantic(lambda: seconds(name, policy=policy, replicates=128, rounds=10), rounds=3, iterations=1)
    benchmark.extra_info["ratio"] = loop / benchmark.stats.stats.median
    assert benchmark.extra_info["ratio"] >= 8


@pytest.mark.parametrize("policy", ["tabular", "log_linear"])
@pytest.mark.parametrize("name", CONVEX)
def test_newton_steps_a_round(benchmark: Any, name: str, policy: str) -> None:
    """Warm-started, 128 replicates x 20 contexts x 10 actions, 64 duels a round: at most 3 on average over 30 rounds
    and replicates, on tables of the slowest of the 20 contexts. A step is a Hessian, built and factored, with the legs
    that it serves (`solvers.corrected`). Every fit converges.
    """
    problem = Problem(WORLD, oracles.BradleyTerry(), 0.5)
    chosen: dict[str, Any] = {"metrics": ["fit_iterations", "fit_residual"], "record": "all", "policy": policy}
    results = benchmark.pedantic(
        lambda: simulate(problem, CONVEX[name], rounds=30, batch_size=64, replicates=128, **chosen),
        rounds=1,
        iterations=1,
    )
    seen = results.frame().groupby("metric")["value"]
    benchmark.extra_info["iterations"] = float(seen.mean()["fit_iterations"])
    assert benchmark.extra_info["iterations"] <= 3
    assert seen.max()["fit_residual"] <= 1e-9 * 64 * 30


def test_the_cost_of_a_round_does_not_grow(benchmark: Any) -> None:
    """Two arms, kl_coef .02, XPO, 4,000 rounds of one duel, 40 replicates: last tenth over second tenth <= 1.2, and a
    matter of a minute."""
    rare = np.exp(-0.125 / 0.02)
    world = worlds.TableWorld(np.log([[rare, 1 - rare]]), np.array([[1.0, 0.5]]), reward_range=(0, 1))
    at: list[float] = []

    def clock(snapshot: Any) -> torch.Tensor:
        at.append(time.perf_counter())
        return torch.zeros(snapshot.instance.replicates, dtype=torch.float64)

    def run() -> None:
        at.clear()
        problem = Problem(world, oracles.BradleyTerry(), 0.02)
        simulate(
            problem,
            create("xpo"),
            rounds=4000,
            replicates=40,
            metrics=[("clock", clock)],
            record=[400, 800, 3600, 4000],
        )

    benchmark.pedantic(run, rounds=1, iterations=1)
    _, second, third, late, last = at
    benchmark.extra_info["growth"] = (last - late) / (third - second)
    assert benchmark.extra_info["growth"] <= 1.2
