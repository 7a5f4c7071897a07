"""Iterations, chunks and memory of many or large games."""

import math
import sys
from typing import Any

import numpy as np
import pytest
import torch

from simbandit import Problem, algorithms, simulate, worlds
from simbandit.equilibrium import restrict, solve
from simbandit.oracles import BradleyTerry, FullInformation, NoisyReward, PreferenceTable, UniformTriangular
from simbandit.simulate import CHUNK_NUMBERS, chunk_size
from tests.driving import random_games


@pytest.mark.parametrize(
    ("n", "A", "expected"), [(300, 10, (3, 5, 8, 13)), (6, 100, (3, 4, 7, 26))], ids=["10 actions", "100 actions"]
)
def test_iterations_stay_near_those_of_newtons_method_at_its_best(n, A, expected):
    """Medians at kl_coef 1, .1, .01, .001: at most twice those of a reference implementation (own earlier runs)."""
    P, _ = random_games(A, n, A)
    uniform = torch.full((n, A), -math.log(A), dtype=torch.float64)
    for kl_coef, best in zip((1.0, 0.1, 0.01, 0.001), expected, strict=True):
        solved = solve(P, uniform, kl_coef)
        assert bool(solved.converged.all())
        assert float(solved.iterations.double().median()) <= 2 * best


@pytest.mark.parametrize("kl_coef", [1e-3, 3e-3, 0.03, 1.0, 1e2])
def test_no_game_is_left_unsolved(kl_coef):
    """Random, deterministic, transitive and tied games; references that differ by e^9; missing actions."""
    rng = np.random.default_rng(0)
    for A, n in ((2, 40), (3, 200), (10, 120), (31, 8)):
        scores = 2 * rng.normal(size=(n, A, 1))
        kinds = [
            rng.random((n, A, A)),
            (rng.random((n, A, A)) < 0.5).astype(float),
            1 / (1 + np.exp(scores.transpose(0, 2, 1) - scores)),
            np.where(rng.random((n, A, A)) < 0.5, 0.5, 1.0),
        ]
        for table in kinds:
            lower = np.tril(table, -1)
            P = torch.from_numpy(lower + np.triu(1 - lower.transpose(0, 2, 1), 1) + np.eye(A) / 2)
            ref = torch.log_softmax(torch.from_numpy(3 * rng.normal(size=(n, A))), -1)
            offered = torch.ones(n, A, dtype=torch.bool)
            offered[::3, -1] = False
            solved = solve(P, restrict(ref, offered), kl_coef)
            assert bool(solved.converged.all())
            assert float(solved.duality_gap.max()) < 1e-18 * max(1.0, 1 / kl_coef)


def test_games_are_taken_in_chunks_and_shared_tables_are_not_copied(monkeypatch):
    P, ref = random_games(1, 7, 6)
    whole = solve(P, ref, 0.02)
    module = sys.modules["simbandit.equilibrium"]
    sizes = []
    inner = module._solve
    monkeypatch.setattr(module, "CHUNK_NUMBERS", 2 * 36)
    monkeypatch.setattr(module, "_solve", lambda tables, *rest: (sizes.append(len(tables)), inner(tables, *rest))[1])
    pieces = solve(P, ref, 0.02)
    assert sizes == [2, 2, 2, 1]
    torch.testing.assert_close(pieces.log_probs, whole.log_probs, atol=1e-12, rtol=0)
    assert torch.equal(pieces.iterations, whole.iterations)
    sizes.clear()
    refs = random_games(2, 5, 6)[1].reshape(5, 1, 6).expand(5, 3, 6)
    shared = solve(P[:3], refs, 0.02)  # five references by three tables
    assert sizes == [2] * 7 + [1]
    for i in range(5):
        for j in range(3):
            alone = solve(P[j], refs[i, j], 0.02)
            torch.testing.assert_close(shared.log_probs[i, j], alone.log_probs, atol=1e-11, rtol=0)


def test_restricted_games_state_the_support():
    P, ref = random_games(3, 4, 5)
    offered = torch.tensor([True, False, True, True, False])
    inside = restrict(ref, offered)
    torch.testing.assert_close(inside.exp().sum(-1), torch.ones(4, dtype=torch.float64))
    assert bool(torch.isneginf(solve(P, inside, 0.1).log_probs[:, ~offered]).all())
    with pytest.raises(
        ValueError, match=r"offered: .* without an action; the reference has mass on actions \[0, 2, 3\]"
    ):
        restrict(inside, ~offered)
    with pytest.raises(ValueError, match=r"ref_log_probs: must be log-probabilities, .* restrict"):
        solve(P, ref.masked_fill(~offered, -torch.inf), 0.1)
    with pytest.raises(ValueError, match=r"ref_log_probs: must be log-probabilities"):
        solve(P, torch.full_like(ref, -torch.inf), 0.1)
    with pytest.raises(ValueError, match="ref_log_probs: holds NaN"):
        solve(P, torch.full_like(ref, torch.nan), 0.1)


def problem(oracle: Any, X: int, A: int) -> Problem:
    rewards = np.random.default_rng(0).normal(size=(X, A))
    return Problem(worlds.TableWorld(np.full((X, A), -math.log(A)), rewards), oracle, 0.1)


def test_chunks_of_replicates_count_the_table_of_win_probabilities():
    X, A = 50, 40
    table, index = X * A**2, X * A * (A - 1) // 4
    exact = chunk_size(problem(FullInformation(BradleyTerry()), X, A), 10, 1000)
    assert exact == 128  # 128 * (table + 4 X A) numbers fit
    assert 128 * (table + 4 * X * A) <= CHUNK_NUMBERS
    for scale in (2, 4, 8, 16):  # duels have an index of distinct pairs as well
        numbers = scale * X * (4 * A + A**2) + scale * index + 10 * 6
        size = chunk_size(problem(UniformTriangular(), scale * X, A), 10, 1000)
        assert size * numbers <= CHUNK_NUMBERS < 2 * size * numbers
    assert chunk_size(problem(UniformTriangular(), 1000, 100), 100, 64) == 1
    assert chunk_size(problem(FullInformation(PreferenceTable(np.full((100, 100), 0.5))), 1000, 100), 100, 64) == 1
    assert chunk_size(problem(NoisyReward(1.0), 1000, 100), 100, 64) == 32  # rewards need no table of pairs


def test_a_chunked_game_is_the_same_game(monkeypatch):
    at = problem(FullInformation(UniformTriangular()), 3, 7)
    options: dict[str, Any] = {"rounds": 6, "replicates": 5, "metrics": ["duality_gap", "kl_to_nash"], "record": [0]}
    whole = simulate(at, algorithms.create("egpo"), **options).frame()
    monkeypatch.setattr(sys.modules["simbandit.simulate"], "CHUNK_NUMBERS", 2 * 3 * 7 * (4 + 7))
    assert chunk_size(at, 6, 5) == 2
    parts = simulate(at, algorithms.create("egpo"), **options).frame()
    by = ["metric", "replicate", "round"]
    both = [f.sort_values(by)["value"].to_numpy() for f in (whole, parts)]
    np.testing.assert_allclose(both[0], both[1], rtol=1e-9, atol=1e-15)
