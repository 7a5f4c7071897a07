"""Identities of KL-regularised symmetric games as properties: closed forms against each other, on games of any size.

Where no paper is named they are derived. Notation: J(p, q) = p'Pq - k KL(p || ref) + k KL(q || ref), A = P - 1/2.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from simbandit.equilibrium import best_response, duality_gap, frequencies, minimax, restrict, solve, unregularised_gap
from simbandit.metrics import kl
from simbandit.oracles import cycle, rock_paper_scissors
from tests.driving import random_games

SEEDS = st.integers(0, 10**6)
SIZES = st.integers(2, 9)
COEFS = st.floats(-2.0, 1.5).map(lambda x: 10.0**x)
some = settings(max_examples=25, deadline=None, derandomize=True)


def game(seed: int, A: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """P (A, A), ref, and two more policies (A,)."""
    P, ref = random_games(seed, 3, A)
    return P[0], ref[0], ref[1], random_games(seed + 1, 1, A, 3.0)[1][0]


def value(p: Tensor, q: Tensor, P: Tensor, ref: Tensor, k: float) -> float:
    p, q = torch.log_softmax(p, -1), torch.log_softmax(q, -1)
    return float(p.exp() @ P @ q.exp() - k * (p.exp() @ (p - ref)) + k * (q.exp() @ (q - ref)))


@some
@given(SEEDS, SIZES, COEFS)
def test_value_and_best_responses(seed, A, k):
    P, ref, p, q = game(seed, A)
    assert value(p, q, P, ref, k) + value(q, p, P, ref, k) == pytest.approx(1, abs=1e-9 * (1 + k))
    assert value(p, p, P, ref, k) == pytest.approx(0.5, abs=1e-12 * (1 + k))
    best = best_response(q, P, ref, k)
    for direction in (p, ref, torch.zeros(A, dtype=torch.float64)):  # no step away from it gains
        for size in (1e-2, 1.0):
            assert value(best + size * direction, q, P, ref, k) <= value(best, q, P, ref, k) + 1e-12 * (1 + k)
    torch.testing.assert_close(best_response(q, P - 0.5, ref, k), best)  # a constant changes nothing


@some
@given(SEEDS, SIZES, COEFS)
def test_both_closed_forms_of_the_gap(seed, A, k):
    P, ref, p, _ = game(seed, A)
    gap = float(duality_gap(p, P, ref, k))
    log_partition = 2 * k * torch.logsumexp(ref + P @ p.exp() / k, -1) + 2 * k * kl(p, ref) - 1
    assert gap == pytest.approx(float(log_partition), abs=1e-11 * (1 + k), rel=1e-9)
    best = best_response(p, P, ref, k)
    assert gap == pytest.approx(float(2 * k * kl(p, best)), rel=1e-9)
    assert value(p, best, P, ref, k) == pytest.approx(0.5 - gap / 2, abs=1e-10 * (1 + k))


@some
@given(SEEDS, SIZES, COEFS)
def test_at_the_equilibrium(seed, A, k):
    P, ref, q, _ = game(seed, A)
    solved = solve(P, ref, k)
    star, at = solved.log_probs, 1e-10 * max(1.0, 1 / k)
    assert bool(solved.converged)
    assert 0 <= float(solved.duality_gap) <= at**2 * max(k, 1)
    margin = float(k * kl(q, star))
    assert value(star, q, P, ref, k) - 0.5 == pytest.approx(margin, abs=1e-9 * (1 + k))
    assert float(duality_gap(q, P, ref, k)) >= 2 * margin - 1e-12
    wins, ratio = P @ star.exp(), star - ref
    torch.testing.assert_close(ratio[:, None] - ratio, (wins[:, None] - wins) / k, atol=at, rtol=1e-9)
    partition = torch.logsumexp(ref + (wins - 0.5) / k, -1)
    assert float(partition) == pytest.approx(-float(kl(star, ref)), abs=at)
    for policy, against in ((star, star), (best_response(q, P, ref, k), q)):  # any Gibbs response, so every iterate
        spread = P @ against.exp()
        assert float((policy - ref).abs().max()) <= float(spread.max() - spread.min()) / k + at
        assert float((policy - ref).abs().max()) <= 1 / k + at
    assert float(unregularised_gap(star, P)) <= 2 * k * float(-ref.min()) + 1e-12
    assert float(unregularised_gap(q, P)) == pytest.approx(float(2 * ((P - 0.5) @ q.exp()).max()), abs=1e-12)
    rotation = (P - 0.5) @ (torch.diag(star.exp()) - star.exp()[:, None] * star.exp())
    eigenvalues = torch.linalg.eigvals(rotation)
    assert float(eigenvalues.real.abs().max()) < 1e-7  # of a nearly defective matrix: the root of rounding
    root = star.exp().sqrt()
    bound = float(torch.linalg.matrix_norm(root[:, None] * (P - 0.5) * root, 2))
    assert float(frequencies(star, P).max()) <= bound + 1e-12 <= 0.5 + 2e-12


@some
@given(SEEDS, SIZES, COEFS, st.randoms(use_true_random=False))
def test_names_of_actions_do_not_matter_nor_do_actions_without_mass(seed, A, k, random):
    P, ref, _, _ = game(seed, A)
    star = solve(P, ref, k).log_probs
    order = random.sample(range(A), A)
    torch.testing.assert_close(solve(P[order][:, order], ref[order], k).log_probs, star[order], atol=1e-9, rtol=0)
    keep = sorted(order[: max(1, A - 1)])
    offered = torch.zeros(A, dtype=torch.bool)
    offered[keep] = True
    inside = restrict(ref, offered)
    smaller = solve(P[keep][:, keep], inside[keep], k).log_probs
    torch.testing.assert_close(solve(P, inside, k).log_probs[keep], smaller, atol=1e-9, rtol=0)


@some
@given(SEEDS, SIZES, st.floats(0.0, 3.0), COEFS)
def test_clones_share_as_the_reference_says(seed, A, odds, k):
    P, ref, _, _ = game(seed, A)
    rows = [*range(A), A - 1]
    split = torch.tensor([odds, 0.0], dtype=torch.float64).log_softmax(-1)
    cloned = torch.cat([ref[:-1], ref[-1:] + split])
    both = solve(P[rows][:, rows], cloned, k).log_probs
    assert float(both[-2] - both[-1]) == pytest.approx(odds, abs=1e-9 * max(1, 1 / k))
    merged = torch.cat([both[:-2], torch.logsumexp(both[-2:], -1, keepdim=True)])
    torch.testing.assert_close(merged, solve(P, ref, k).log_probs, atol=1e-9 * max(1.0, 1 / k), rtol=0)


@some
@given(SEEDS, st.floats(0.001, 0.499), COEFS)
def test_two_actions_have_odds_of_their_own(seed, margin, k):
    """pi_1 / pi_2 = ref_1 / ref_2 exp((P_12 - 1/2) / k), whatever the opponent plays."""
    _, ref, q, _ = game(seed, 2)
    P = torch.tensor([[0.5, 0.5 + margin], [0.5 - margin, 0.5]], dtype=torch.float64)
    odds = float(ref[0] - ref[1]) + margin / k
    for policy in (solve(P, ref, k).log_probs, best_response(q, P, ref, k)):
        assert float(policy[0] - policy[1]) == pytest.approx(odds, abs=1e-10 * max(1, 1 / k))


@settings(max_examples=10, deadline=None, derandomize=True)
@given(SEEDS, st.integers(2, 6))
def test_small_coefficients_tend_to_the_projection_of_the_reference(seed, A):
    """KL(pi_k || ref) <= KL(ne || ref) for every unregularised equilibrium, so the limit is the one closest to ref."""
    P, ref, _, _ = game(seed, A)
    winner = minimax(P)
    for k in (0.1, 1e-2, 1e-3):
        star = solve(P, ref, k).log_probs
        assert float(kl(star, ref)) <= float(kl(winner.log(), ref)) + 1e-9
    rows = [*range(A), A - 1]  # a clone: many equilibria, of which the reference's own split is the limit
    cloned = torch.cat([ref[:-1], ref[-1:] - math.log(2), ref[-1:] - math.log(2)])
    star = solve(P[rows][:, rows], cloned, 1e-3).log_probs
    assert float(star[-1] - star[-2]) == pytest.approx(0, abs=1e-9)


@some
@given(st.tuples(*[st.floats(0.02, 0.5)] * 3), st.booleans())
def test_three_cycles_in_closed_form(margins, turned):
    """NE = (b, c, a) / (a + b + c) and omega = sqrt(abc / (a + b + c)) for margins of one sign."""
    a, b, c = (-m if turned else m for m in margins)
    P = torch.tensor(cycle(a, b, c).preference)[0]
    expected = torch.tensor([b, c, a], dtype=torch.float64) / (a + b + c)
    torch.testing.assert_close(minimax(P), expected, atol=1e-9, rtol=0)
    assert float(unregularised_gap(expected.log(), P)) == pytest.approx(0, abs=1e-15)
    omega = math.sqrt(abs(a * b * c) / abs(a + b + c))
    assert float(frequencies(expected.log(), P).max()) == pytest.approx(omega, rel=1e-12)


@pytest.mark.parametrize("n", [3, 5, 9])
def test_a_circulant_game_with_a_uniform_reference_is_uniform(n):
    P, uniform = torch.tensor(rock_paper_scissors(n).preference)[0], torch.full((n,), -math.log(n), dtype=torch.float64)
    for k in (10.0, 0.1, 1e-3):
        torch.testing.assert_close(solve(P, uniform, k).log_probs, uniform, atol=1e-12, rtol=0)


def test_a_condorcet_winner_takes_all():
    P, ref = random_games(5, 1, 6)
    P[0, 2, :], P[0, :, 2] = 0.6, 0.4
    P[0, 2, 2] = 0.5
    solved = solve(P, ref, 1e-3)
    assert float(solved.log_probs[0, 2]) > -1e-30
    far = solve(P, ref, 1e3)
    assert float((far.log_probs - ref).abs().max()) <= 1e-3
