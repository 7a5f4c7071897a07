"""Games solved by others: SciPy always; nashpy and OpenSpiel where installed (extra `crosscheck`)."""

import io
import math
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize

from simbandit.equilibrium import minimax, solve, unregularised_gap
from simbandit.zero_sum import saddle_gap, solve_zero_sum
from tests.driving import random_games

GAMES, A = 12, 7
P, REF = random_games(8, GAMES, A)
UNIFORM = torch.full((GAMES, A), -math.log(A), dtype=torch.float64)


def programme(payoff: np.ndarray) -> tuple[np.ndarray, float]:
    """A maximin strategy of the row player and the game's value."""
    n, m = payoff.shape
    lp = optimize.linprog(
        np.r_[np.zeros(n), -1.0],
        A_ub=np.c_[-payoff.T, np.ones(m)],
        b_ub=np.zeros(m),
        A_eq=[np.r_[np.ones(n), 0.0]],
        b_eq=[1.0],
        bounds=[*[(0, 1)] * n, (None, None)],
    )
    assert lp.status == 0
    return lp.x[:-1], lp.x[-1]


def agree(game: int, strategy: Any, atol: float = 1e-6) -> None:
    """A random game has one equilibrium: the vertex of `minimax`, and the limit of `solve`."""
    np.testing.assert_allclose(strategy, minimax(P[game]), atol=atol)
    near = solve(P[game], UNIFORM[game], 1e-4)
    assert bool(near.converged)
    np.testing.assert_allclose(near.log_probs.exp(), strategy, atol=5e-3)  # a bias of order kl_coef
    assert float(unregularised_gap(torch.tensor(strategy, dtype=torch.float64).log(), P[game])) < 1e-6


def test_linear_programmes_of_scipy():
    for game in range(GAMES):
        strategy, value = programme(P[game].numpy())
        assert value == pytest.approx(0.5, abs=1e-9)
        agree(game, strategy)
        p = torch.from_numpy(np.random.default_rng(game).dirichlet(np.ones(A)))
        answers = P[game] @ p
        attack = optimize.linprog(-answers.numpy(), A_eq=np.ones((1, A)), b_eq=[1.0], bounds=(0, 1))
        assert float(unregularised_gap(p.log(), P[game])) == pytest.approx(-2 * attack.fun - 1, abs=1e-12)


@pytest.mark.parametrize("kl_coef", [1.0, 0.15, 0.05])
def test_roots_of_scipy(kl_coef):
    """MINPACK's hybrid method on pi = BR(pi) in logits, from the reference: where it converges, to our answer."""
    solved, found = solve(P, REF, kl_coef), 0
    for game in range(GAMES):
        skew, ref = P[game].numpy() - 0.5, REF[game].numpy()

        def residual(u: np.ndarray, skew: np.ndarray = skew, ref: np.ndarray = ref) -> np.ndarray:
            w = np.exp(ref + u - (ref + u).max())
            return u - skew @ (w / w.sum()) / kl_coef

        root = optimize.root(residual, np.zeros(A), tol=1e-14)
        if np.abs(residual(root.x)).max() < 1e-9:
            found += 1
            w = np.exp(ref + root.x)
            np.testing.assert_allclose(solved.log_probs[game].exp(), w / w.sum(), atol=1e-8)
    assert found >= GAMES / 2


def payoffs() -> np.ndarray:
    return np.random.default_rng(5).random((6, 4, 5))


def asymmetric(game: np.ndarray, first: Any, second: Any, value: float) -> None:
    """A game that is not symmetric: the saddle point of small kl_coef near the others' strategies, its value theirs."""
    payoff = torch.from_numpy(game)
    one, two = (torch.full((n,), -math.log(n), dtype=torch.float64) for n in game.shape)
    saddle = solve_zero_sum(payoff, one, two, 1e-3)
    assert bool(saddle.converged)
    p, q = saddle.first.exp(), saddle.second.exp()
    np.testing.assert_allclose(p, first, atol=0.03)
    np.testing.assert_allclose(q, second, atol=0.03)
    bound = 1e-3 * math.log(5) * 2
    assert float((payoff @ q).max()) - float((p @ payoff).min()) < bound
    assert float(p @ payoff @ q) == pytest.approx(value, abs=bound)
    theirs = [torch.tensor(x, dtype=torch.float64).log() for x in (first, second)]
    assert float(saddle_gap(theirs[0], theirs[1], payoff, one, two, 1e-3)) < 2 * bound


def test_asymmetric_games_by_scipy():
    for game in payoffs():
        first, value = programme(game)
        second, other = programme(-game.T)
        assert other == pytest.approx(-value, abs=1e-9)
        asymmetric(game, first, second, value)


def test_nashpy():
    nashpy = pytest.importorskip("nashpy", reason="nashpy is not installed (extra `crosscheck`)")
    for game in range(GAMES):
        margins = P[game].numpy() - 0.5
        first, second = nashpy.Game(margins, -margins).linear_program()
        agree(game, first)
        agree(game, second)
    for game in payoffs():
        first, second = nashpy.Game(game, -game).linear_program()
        asymmetric(game, first, second, float(first @ game @ second))


def test_openspiel():
    reason = "OpenSpiel's linear programme (open_spiel, cvxpy, ecos) is not installed (extra `crosscheck`)"
    pyspiel = pytest.importorskip("pyspiel", reason=reason)
    for name in ("cvxpy", "ecos"):
        pytest.importorskip(name, reason=reason)
    lp_solver = pytest.importorskip("open_spiel.python.algorithms.lp_solver", reason=reason)
    for game in range(GAMES):
        margins = P[game].numpy() - 0.5
        with redirect_stdout(io.StringIO()):
            solved = lp_solver.solve_zero_sum_matrix_game(
                pyspiel.create_matrix_game(margins.tolist(), (-margins).tolist())
            )
        agree(game, np.asarray(solved[0]).ravel().clip(0), atol=1e-5)  # an interior-point method
        assert float(solved[2]) == pytest.approx(0, abs=1e-6)
