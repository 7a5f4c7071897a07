"""The solver against golden numbers, closed forms and independent solvers; the identities as properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import Tensor

from simbandit.equilibrium import (
    best_response,
    check_preference,
    duality_gap,
    exploitability,
    minimax,
    solve,
    symmetrise,
    unregularised_gap,
)

COMAL = torch.tensor([[0.5, 0.1, 0.8], [0.9, 0.5, 0.1], [0.2, 0.9, 0.5]], dtype=torch.float64)
RPS = torch.tensor([[0.5, 0.0, 1.0], [1.0, 0.5, 0.0], [0.0, 1.0, 0.5]], dtype=torch.float64)


def log(*p: float) -> Tensor:
    return torch.tensor(p, dtype=torch.float64).log()


def games(rng: np.random.Generator, n: int, A: int) -> tuple[Tensor, Tensor]:
    lower = np.tril(rng.random((n, A, A)), -1)
    P = lower + np.triu(1 - lower.transpose(0, 2, 1), 1) + np.eye(A) / 2
    return torch.from_numpy(P), torch.log_softmax(torch.from_numpy(rng.normal(size=(n, A))), -1)


def value(p: Tensor, q: Tensor, P: Tensor, ref: Tensor, kl_coef: float) -> Tensor:
    """J(p, q), term by term."""
    bilinear = torch.einsum("ga,gab,gb->g", p.exp(), P, q.exp())
    return bilinear - kl_coef * (p.exp() * (p - ref)).sum(-1) + kl_coef * (q.exp() * (q - ref)).sum(-1)


@pytest.mark.parametrize(
    ("kl_coef", "expected", "gap"),
    [
        (1.0, (0.3240353744, 0.3306220380, 0.3453425876), 7.0076406e-2),
        (0.1, (0.3371358501, 0.2834641091, 0.3794000408), 2.4489777e-2),
        (0.01, (0.3609620458, 0.2728577523, 0.3661802019), 1.7089744e-3),
    ],
)
def test_golden_numbers(kl_coef: float, expected: tuple[float, ...], gap: float) -> None:
    solved = solve(COMAL, log(1 / 3, 1 / 3, 1 / 3), kl_coef)
    assert bool(solved.converged)
    np.testing.assert_allclose(solved.log_probs.exp(), expected, atol=1e-10)
    assert float(unregularised_gap(solved.log_probs, COMAL)) == pytest.approx(gap, rel=1e-7)
    assert 0 <= float(solved.duality_gap) < 1e-25


def test_golden_number_with_a_reference() -> None:
    solved = solve(COMAL, log(0.2, 0.5, 0.3), 0.1)
    np.testing.assert_allclose(solved.log_probs.exp(), (0.2749172053, 0.2797225768, 0.445360218), atol=1e-10)
    assert float(unregularised_gap(solved.log_probs, COMAL)) == pytest.approx(0.0588277383, rel=1e-8)


def test_two_actions_by_hand_and_the_uniform_cycle() -> None:
    P = torch.tensor([[0.5, 0.7], [0.3, 0.5]], dtype=torch.float64)
    for kl_coef, first in ((1.0, 0.549834), (0.1, 0.880797)):
        ratio = solve(P, log(0.5, 0.5), kl_coef).log_probs.exp()
        assert float(ratio[0]) == pytest.approx(first, abs=5e-7)
        assert float(ratio[0] / ratio[1]) == pytest.approx(math.exp(0.2 / kl_coef), rel=1e-12)
    uniform = log(1 / 3, 1 / 3, 1 / 3)
    for kl_coef in (1.0, 0.05, 1e-3):
        torch.testing.assert_close(solve(RPS, uniform, kl_coef).log_probs, uniform, atol=1e-12, rtol=0.0)


def test_clones_keep_the_ratio_of_the_reference() -> None:
    P = torch.full((4, 4), 0.5, dtype=torch.float64)
    P[:3, :3] = RPS
    P[3, :3], P[:3, 3] = RPS[2], RPS[:, 2]
    for kl_coef in (0.1, 0.01, 0.001):
        solved = solve(P, log(0.25, 0.25, 0.4, 0.1), kl_coef)
        assert bool(solved.converged)
        assert float((solved.log_probs[2] - solved.log_probs[3]).exp()) == pytest.approx(4.0, rel=1e-9)


@pytest.mark.parametrize("kl_coef", [100.0, 1.0, 0.1, 0.01, 1e-3])
@pytest.mark.parametrize(("n", "A"), [(40, 7), (3, 31)])
def test_converges_and_satisfies_every_identity(n: int, A: int, kl_coef: float) -> None:
    P, ref = games(np.random.default_rng(A), n, A)
    solved = solve(P, ref, kl_coef)
    star = solved.log_probs
    assert bool(solved.converged.all())
    torch.testing.assert_close(star.exp().sum(-1), torch.ones(n, dtype=torch.float64))
    at = 1e-11 * max(1.0, 1 / kl_coef)
    torch.testing.assert_close(best_response(star, P, ref, kl_coef), star, atol=at, rtol=1e-12)
    ratio = star - ref
    wins = torch.einsum("gab,gb->ga", P, star.exp())
    span = wins.amax(-1) - wins.amin(-1)
    assert bool((ratio.abs() <= span[:, None] / kl_coef + 1e-9).all())
    torch.testing.assert_close(ratio - ratio[:, :1], (wins - wins[:, :1]) / kl_coef, atol=at, rtol=1e-9)
    _, q = games(np.random.default_rng(1), n, A)
    margin = kl_coef * (q.exp() * (q - star)).sum(-1)
    torch.testing.assert_close(value(star, q, P, ref, kl_coef) - 0.5, margin, atol=1e-9, rtol=1e-9)
    assert bool((unregularised_gap(star, P) <= 2 * kl_coef * -ref.amin(-1) + 1e-12).all())


def test_the_gap_is_what_it_says_for_any_policy() -> None:
    """Against max_a J(a, p) - min_b J(p, b) from the closed-form best responses, evaluated term by term."""
    rng, kl_coef = np.random.default_rng(3), 0.2
    P, ref = games(rng, 17, 5)
    _, p = games(rng, 17, 5)
    response = best_response(p, P, ref, kl_coef)
    plain = value(response, p, P, ref, kl_coef) - value(p, response, P, ref, kl_coef)
    torch.testing.assert_close(duality_gap(p, P, ref, kl_coef), plain, atol=1e-13, rtol=1e-10)
    torch.testing.assert_close(exploitability(p, P, ref, kl_coef), plain / 2, atol=1e-13, rtol=1e-10)
    for _ in range(50):  # nobody does better than the best response
        _, q = games(rng, 17, 5)
        assert bool((value(q, p, P, ref, kl_coef) <= value(response, p, P, ref, kl_coef) + 1e-12).all())


def test_against_scipy_root() -> None:
    P, ref = games(np.random.default_rng(5), 6, 8)
    solved = solve(P, ref, 0.3)
    for g in range(6):
        skew, base = (P[g] - P[g].T).numpy() / 2, ref[g].numpy()

        def residual(u: np.ndarray, skew: np.ndarray = skew, base: np.ndarray = base) -> np.ndarray:
            w = np.exp(base + u - (base + u).max())
            return u - skew @ (w / w.sum()) / 0.3

        root = optimize.root(residual, np.zeros(8), tol=1e-14).x
        w = np.exp(base + root)
        np.testing.assert_allclose(solved.log_probs[g].exp(), w / w.sum(), atol=1e-10)


def test_small_coefficients_reach_the_linear_programme() -> None:
    P, _ = games(np.random.default_rng(9), 5, 6)
    ref = torch.full((5, 6), -math.log(6), dtype=torch.float64)
    winner = minimax(P)
    assert bool((unregularised_gap(winner.log(), P).abs() < 1e-9).all())
    near = solve(P, ref, 1e-3)
    torch.testing.assert_close(near.log_probs.exp(), winner, atol=0.03, rtol=0.0)  # a bias of order kl_coef
    torch.testing.assert_close(minimax(COMAL), torch.tensor([4, 3, 4], dtype=torch.float64) / 11)


def test_restricted_games_shapes_and_batches() -> None:
    P, ref = games(np.random.default_rng(11), 6, 5)
    ref[:, 2] = -torch.inf
    ref = torch.log_softmax(ref, -1)
    solved = solve(P.view(2, 3, 5, 5), ref.view(2, 3, 5), 0.05)
    keep = [0, 1, 3, 4]
    smaller = solve(P[:, keep][:, :, keep], ref[:, keep], 0.05)
    assert solved.log_probs.shape == (2, 3, 5)
    assert bool(torch.isneginf(solved.log_probs[..., 2]).all())
    torch.testing.assert_close(solved.log_probs.view(6, 5)[:, keep], smaller.log_probs, atol=1e-11, rtol=0.0)
    alone = solve(P[3], ref[3], 0.05)
    torch.testing.assert_close(solved.log_probs[1, 0], alone.log_probs, atol=1e-12, rtol=0.0)


def test_unconverged_is_said() -> None:
    P, ref = games(np.random.default_rng(13), 4, 9)
    solved = solve(P, ref, 1e-3, max_iterations=1)
    assert not bool(solved.converged.all())
    assert float(solved.duality_gap[~solved.converged].max()) > 1e-8


@pytest.mark.parametrize(
    ("preference", "message"),
    [
        (COMAL + 0.05 * torch.eye(3), "preference: must be skew about 1/2"),
        (torch.tensor([[0.5, 0.7], [0.4, 0.5]], dtype=torch.float64), "off by up to 0.1.*symmetrise"),
        (torch.tensor([[0.5, 1.2], [-0.2, 0.5]], dtype=torch.float64), r"must lie in \[0, 1\]"),
        (torch.tensor([[0.5, math.nan], [0.5, 0.5]], dtype=torch.float64), "NaN"),
        (torch.ones(2, 3, dtype=torch.float64), "square"),
    ],
)
def test_bad_preferences_are_named(preference: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solve(preference, log(0.5, 0.5), 0.1)


def test_bad_coefficient_and_the_remedy() -> None:
    with pytest.raises(ValueError, match="kl_coef: must be > 0"):
        solve(RPS, log(0.2, 0.3, 0.5), 0.0)
    judge = torch.tensor([[0.6, 0.9], [0.3, 0.5]], dtype=torch.float64)
    check_preference(symmetrise(judge))
    assert float(symmetrise(judge)[0, 1]) == pytest.approx(0.8)
