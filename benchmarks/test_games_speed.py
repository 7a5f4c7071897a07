"""Speed claims on games, as ratios measured in one run: `pytest benchmarks/test_games_speed.py --benchmark-disable-gc`.

As in `test_speed`: the same work in the same process, interleaved, medians of the repetitions, one thread.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from simbandit import Problem, algorithms, simulate, worlds
from simbandit.equilibrium import solve
from simbandit.oracles import FullInformation, PreferenceTable


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def ratio(fast: Callable[[], Any], slow: Callable[[], Any], repetitions: int) -> float:
    """Median time of `slow` over that of `fast`, interleaved, after one call of each."""
    times: dict[Callable[[], Any], list[float]] = {fast: [], slow: []}
    for function in times:
        function()
    for _ in range(repetitions):
        for function, spent in times.items():
            start = time.perf_counter()
            function()
            spent.append(time.perf_counter() - start)
    return float(np.median(times[slow]) / np.median(times[fast]))


def games(n: int, A: int) -> tuple[torch.Tensor, torch.Tensor]:
    lower = np.tril(np.random.default_rng(A).random((n, A, A)), -1)
    P = torch.from_numpy(lower + np.triu(1 - lower.transpose(0, 2, 1), 1) + np.eye(A) / 2)
    return P, torch.full((n, A), -math.log(A), dtype=torch.float64)


def maximin(game: np.ndarray) -> np.ndarray:
    """SciPy's linear programme for the game without KL: the easier problem."""
    A = len(game)
    lp = linprog(np.zeros(A), A_ub=game - game.T, b_ub=np.zeros(A), A_eq=np.ones((1, A)), b_eq=[1.0], bounds=(0, 1))
    assert lp.status == 0
    return lp.x


@pytest.mark.parametrize(
    ("n", "asked", "A", "kl_coef", "promised"),
    [(1000, 100, 10, 0.1, 50), (30, 15, 100, 0.01, 5)],
    ids=["1,000 games of 10 actions", "100 actions"],
)
def test_solve_against_a_loop_of_linear_programmes(
    benchmark: Any, n: int, asked: int, A: int, kl_coef: float, promised: float
) -> None:
    """`solve` on n games against SciPy's linear programme on the first `asked` of them, per game."""
    P, ref = games(n, A)
    tables = P[:asked].numpy()
    solved = solve(P, ref, kl_coef)
    assert bool(solved.converged.all())
    measured = ratio(lambda: solve(P, ref, kl_coef), lambda: [maximin(game) for game in tables], 5) * n / asked
    benchmark.extra_info["ratio"] = measured
    benchmark(solve, P, ref, kl_coef)
    assert measured >= promised


def test_exact_dynamics_of_100_games_at_once(benchmark: Any) -> None:
    """100 games of 10 actions as contexts of one world, against a loop of single games: at least 30x."""
    P, ref = games(100, 10)

    def play(tables: torch.Tensor, refs: torch.Tensor, rounds: int = 300) -> None:
        problem = Problem(worlds.TableWorld(refs.numpy()), FullInformation(PreferenceTable(tables.numpy())), 0.1)
        simulate(problem, algorithms.create("egpo"), rounds=rounds, metrics=["kl_to_ref"], record=[0])

    def loop() -> None:
        for game in range(10):
            play(P[game : game + 1], ref[game : game + 1])

    measured = 10 * ratio(lambda: play(P, ref), loop, 3)
    benchmark.extra_info["ratio"] = measured
    benchmark.pedantic(play, args=(P, ref), rounds=3)
    assert measured >= 30


def test_ten_thousand_steps_of_100_games_take_seconds(benchmark: Any) -> None:
    P, ref = games(100, 10)
    problem = Problem(worlds.TableWorld(ref.numpy()), FullInformation(PreferenceTable(P.numpy())), 0.1)
    run = {"rounds": 10_000, "metrics": ["kl_to_ref"], "record": [0]}
    benchmark.pedantic(simulate, args=(problem, algorithms.create("mirror_descent")), kwargs=run, rounds=1)
    assert benchmark.stats.stats.max < 10


@pytest.mark.parametrize(
    ("n", "A", "expected"),
    [(500, 10, (3, 5, 8, 13)), (10, 100, (3, 4, 7, 26)), (1, 1000, (3, 3, 6, 13))],
    ids=["10 actions", "100 actions", "1,000 actions"],
)
def test_iterations(benchmark: Any, n: int, A: int, expected: tuple[int, ...]) -> None:
    """Medians at kl_coef 1, .1, .01, .001: at most twice those of a reference implementation (own earlier runs). The
    largest game at the smallest coefficient takes less than a minute."""
    P, ref = games(n, A)
    for kl_coef, best in zip((1.0, 0.1, 0.01, 0.001), expected, strict=True):
        solved = solve(P, ref, kl_coef)
        assert bool(solved.converged.all())
        median = float(solved.iterations.double().median())
        benchmark.extra_info[f"iterations at {kl_coef:g}"] = median
        assert median <= 2 * best
    benchmark.pedantic(solve, args=(P, ref, 1e-3), rounds=1)
    assert benchmark.stats.stats.max < 60
