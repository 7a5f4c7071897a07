"""Maximum likelihood within a rank, against the full-rank fit, SciPy, and the truth."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from simbandit import Problem, algorithms, low_rank, preferences, simulate, worlds
from simbandit.low_rank import low_rank_mle
from simbandit.oracles import Bilinear

R, N, D, RIDGE = 3, 90, 6, 0.2


def data(duels: int = 4, seed: int = 0) -> tuple[torch.Tensor, ...]:
    rng = np.random.default_rng(seed)
    first, second = (torch.from_numpy(rng.normal(size=(R, N, D))) for _ in range(2))
    U, W = (torch.from_numpy(rng.normal(size=(R, D, 1))) for _ in range(2))
    truth = U @ W.mT - W @ U.mT
    p = torch.sigmoid(((first @ truth) * second).sum(-1))
    count = torch.full((R, N), float(duels), dtype=torch.float64)
    return first, second, torch.from_numpy(rng.binomial(duels, p.numpy()).astype(float)), count, truth


def full_rank(duels: Sequence[torch.Tensor], ridge: float = RIDGE) -> torch.Tensor:
    first, second, wins, count = duels
    fit = preferences.bilinear_mle(first, second, wins, count, ridge=ridge)
    assert bool(fit.converged.all())
    return preferences.skew_matrix(fit.theta)


def loss(matrix: torch.Tensor, duels: Sequence[torch.Tensor], ridge: float = RIDGE) -> torch.Tensor:
    first, second, wins, count = duels
    s = ((first @ matrix) * second).sum(-1)
    log = torch.nn.functional.logsigmoid
    return ridge / 4 * matrix.square().sum((-1, -2)) - (wins * log(s) + (count - wins) * log(-s)).sum(-1)


def within(duels: Sequence[torch.Tensor], rank: int, start: torch.Tensor) -> low_rank.LowRankFit:
    first, second, wins, count = duels
    return low_rank_mle(first, second, wins, count, rank, ridge=RIDGE, start=start)


@pytest.mark.parametrize("rank", [2, 4])
def test_it_is_the_minimum_that_scipy_finds(rank):
    *duels, _ = data()
    start = full_rank(duels)
    fit = within(duels, rank, start)
    assert bool(fit.converged.all())
    assert bool((torch.linalg.matrix_rank(fit.matrix, rtol=1e-9) == rank).all())
    assert torch.equal(fit.matrix, -fit.matrix.mT)
    torch.testing.assert_close(fit.value, loss(fit.matrix, duels))
    truncated = loss(low_rank.truncate_rank(start, rank), duels)
    assert bool((fit.value < truncated - 1e-3).all())  # truncation is not the maximum within the rank
    rng = np.random.default_rng(1)
    for r in range(R):
        one = [x[r : r + 1] for x in duels]

        def at(x, one=one):
            leaf = torch.from_numpy(x).requires_grad_(True)
            U, W = leaf.reshape(2, D, rank // 2)
            value = loss((U @ W.T - W @ U.T)[None], one).sum()
            (slope,) = torch.autograd.grad(value, leaf)
            return float(value.detach()), slope.numpy()

        best = min(minimize(at, rng.normal(size=D * rank), jac=True, method="BFGS").fun for _ in range(4))
        assert float(fit.value[r]) == pytest.approx(best, abs=1e-6)  # four random starts do no better, nor worse


def test_at_full_rank_it_is_the_fit_without_the_constraint():
    *duels, _ = data()
    start = full_rank(duels)
    for begin in (start, start + 0.3 * preferences.skew_matrix(torch.ones(R, D * (D - 1) // 2, dtype=torch.float64))):
        fit = within(duels, D, begin)
        assert bool(fit.converged.all())
        torch.testing.assert_close(fit.matrix, start, atol=1e-6, rtol=0)


def test_it_estimates_better_than_truncation():
    """Truth of rank 2, four duels a pair: the mean squared error falls, and by a factor below the full rank's."""
    errors = []
    for seed in range(6):
        *duels, truth = data(seed=seed)
        start = full_rank(duels)
        fits = (start, low_rank.truncate_rank(start, 2), within(duels, 2, start).matrix)
        errors.append([float((m - truth).square().mean()) for m in fits])
    free, truncated, likelihood = np.mean(errors, 0)
    assert likelihood < truncated < free


def test_expected_counts_give_the_truth_back():
    first, second, _, count, truth = data()
    wins = count * torch.sigmoid(((first @ truth) * second).sum(-1))
    fit = low_rank_mle(first, second, wins, count, 2, ridge=1e-9, start=truth + 0.2 * truth.flip(-1, -2))
    torch.testing.assert_close(fit.matrix, truth, atol=1e-6, rtol=1e-6)


def test_separable_duels_and_bad_arguments():
    first, second, _, count, _ = data()
    start = full_rank((first, second, count, count), 1.0)
    always = low_rank_mle(first, second, count, count, 2, ridge=1.0, start=start)
    assert bool(always.converged.all())
    assert bool(torch.isfinite(always.matrix).all())
    rushed = low_rank_mle(first, second, count, count, 2, ridge=1.0, start=start, max_iterations=1)
    assert not bool(rushed.converged.all())  # said, not hidden
    with pytest.raises(ValueError, match="rank: a skew matrix has an even rank"):
        low_rank_mle(first, second, count, count, 3, ridge=1.0, start=start)
    with pytest.raises(ValueError, match="ridge: must be > 0"):
        low_rank_mle(first, second, count, count, 2, ridge=0.0, start=start)


def test_explore_then_commit_commits_to_it():
    """On 5 actions of a rank-2 game in 6 dimensions, likelihood beats truncation at the same exploration."""
    problem = Problem(worlds.LinearWorld(2, 7, 6), Bilinear(rank=2, norm=6.0), 0.2)
    gaps = {}
    for how in ("likelihood", "truncation"):
        algorithm = algorithms.create("nash_etc", low_rank=how, first_stage=0.5)
        options = {"rounds": 10, "batch_size": 60, "replicates": 24, "metrics": ["duality_gap", "fit_residual"]}
        results = simulate(problem, algorithm, record=[0], **options)
        gaps[how] = results.final("duality_gap").mean()
        assert results.final("fit_residual").max() < 1e-5
    assert gaps["likelihood"] < gaps["truncation"]
