"""Conversations of several turns: the tree's game against enumeration, against the one-shot game, and MTPO's credit."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from simbandit.equilibrium import solve
from simbandit.trees import (
    Conversations,
    Policy,
    action_values,
    best_response,
    clarifying_question,
    duality_gap,
    leaf_law,
    mtpo,
    reach,
)

A, U, G, K = 3, 2, 4, 0.2


def laws(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.log_softmax(torch.from_numpy(rng.normal(size=shape)), -1)


def tree(turns: int, users: int, seed: int = 0) -> Conversations:
    """Random games (G,) over a tree of `turns` turns."""
    rng = np.random.default_rng(seed)
    states = [(A * users) ** h for h in range(turns)]
    L = states[-1] * A
    lower = np.tril(rng.random((G, L, L)), -1)
    P = torch.from_numpy(lower + np.triu(1 - lower.transpose(0, 2, 1), 1) + np.eye(L) / 2)
    ref = tuple(laws(rng, G, S, A) for S in states)
    return Conversations(P, ref, tuple(laws(rng, G, S, A, users).exp() for S in states[:-1]))


def policy(of: Conversations, seed: int) -> Policy:
    rng = np.random.default_rng(seed)
    return tuple(laws(rng, *turn.shape) for turn in of.ref)


def enumerated(of: Conversations, p: Policy, g: int) -> tuple[Tensor, Tensor]:
    """Two turns, by loops: the law of conversations, and their sums of log p / ref."""
    law, ratio = torch.zeros(of.preference.shape[-1], dtype=torch.float64), {}
    users = of.replies[0].shape[-1]
    for a, u, b in itertools.product(range(A), range(users), range(A)):
        s = a * users + u
        chance = p[0][g, 0, a].exp() * of.replies[0][g, 0, a, u] * p[1][g, s, b].exp()
        law[s * A + b] = chance
        ratio[s * A + b] = p[0][g, 0, a] - of.ref[0][g, 0, a] + p[1][g, s, b] - of.ref[1][g, s, b]
    return law, torch.stack([ratio[i] for i in range(len(law))])


def value(of: Conversations, p: Policy, q: Policy) -> Tensor:
    """J(p, q) by enumeration, (G,)."""
    found = []
    for g in range(G):
        (one, cost), (two, other) = enumerated(of, p, g), enumerated(of, q, g)
        found.append(one @ of.preference[g] @ two - K * one @ cost + K * two @ other)
    return torch.stack(found)


@pytest.mark.parametrize("users", [1, U])
def test_values_best_responses_and_gaps_by_enumeration(users):
    of = tree(2, users)
    p, q = policy(of, 1), policy(of, 2)
    for g in range(G):
        torch.testing.assert_close(leaf_law(of, p)[g], enumerated(of, p, g)[0])
    assert torch.allclose(reach(of, p)[1].sum(-1), torch.ones(G, dtype=torch.float64))
    best = best_response(of, q, K)
    gained = value(of, best, q) - value(of, p, q)
    divergences = []
    for law, mine, other in zip(reach(of, p), p, best, strict=True):
        divergences.append((law * (mine.exp() * (mine - other)).sum(-1)).sum(-1))
    torch.testing.assert_close(gained, K * sum(divergences), atol=1e-13, rtol=1e-10)
    mutual = best_response(of, p, K)
    gap = value(of, mutual, p) - value(of, p, mutual)
    torch.testing.assert_close(duality_gap(of, p, K), gap, atol=1e-13, rtol=1e-10)
    assert bool((gap > 0.01).all())
    # Q of the first turn is the value of saying a and then going on, without this turn's KL
    first = action_values(of, p, q, K)[0]
    said = torch.zeros_like(of.ref[0])
    for a in range(A):
        says = torch.full_like(of.ref[0], -torch.inf)
        says[..., a] = 0.0
        said[..., 0, a] = value(of, (says.clamp_min(-700), p[1]), q) + K * -of.ref[0][:, 0, a] - 0.5
    opponents = torch.stack([K * enumerated(of, q, g)[0] @ enumerated(of, q, g)[1] for g in range(G)])
    torch.testing.assert_close(first[:, 0], said[:, 0] - opponents[:, None], atol=1e-10, rtol=0)


@pytest.mark.parametrize("turns", [2, 3])
def test_with_a_user_who_leaves_no_choice_it_is_the_one_shot_game(turns):
    """The chain rule: KL over turns is KL over conversations, every law over conversations is some policy's."""
    of = tree(turns, 1, seed=turns)
    trained = mtpo(of, K, step_size=0.7, rounds=3000, tolerance=1e-22)
    assert bool(trained.converged.all())
    star = solve(of.preference, leaf_law(of, of.ref).log(), K).log_probs
    torch.testing.assert_close(leaf_law(of, trained.policy).log(), star, atol=1e-9, rtol=0)


@pytest.mark.parametrize("credit", ["reference", "last_turn"])
def test_shortcuts_in_credit_do_not_find_the_equilibrium(credit):
    for of in (tree(2, 1), tree(2, U)):
        full = mtpo(of, K, step_size=0.7, rounds=600, tolerance=1e-12)
        assert bool(full.converged.all())
        short = mtpo(of, K, step_size=0.7, rounds=600, tolerance=1e-12, credit=credit)
        assert bool((short.duality_gap > 1e-6).all())  # a million tolerances
        moved = (short.policy[0] - of.ref[0]).abs().max()
        assert (moved < 1e-12) == (credit == "last_turn")


def test_asking_back_pays_only_for_who_credits_the_answer():
    of = clarifying_question(asks=0.2, reward=2.0)
    asks = {}
    for credit in ("conversation", "reference", "last_turn"):
        trained = mtpo(of, 0.1, rounds=500, credit=credit, tolerance=1e-8)
        asks[credit] = float(trained.policy[0][0, 1].exp())
        assert bool(trained.converged) == (credit == "conversation")
        assert float(trained.policy[1][2, 0].exp()) > 0.99  # the last turn is learnt by all
    assert asks["conversation"] > 0.8 > 0.3 > asks["reference"]
    assert asks["last_turn"] == pytest.approx(0.2, abs=1e-12)


def test_the_schedule_keeps_the_rate():
    """Gap of order 1 / t at least, with the paper's steps."""
    of = tree(2, U, seed=5)
    gaps = [mtpo(of, K, rounds=t, tolerance=0.0).duality_gap.max() for t in (30, 300)]
    assert gaps[1] < 0.1 * gaps[0]


def test_what_does_not_fit_is_named():
    of = tree(2, U)
    with pytest.raises(ValueError, match="replies: 2 turns need 1 tables, got 0"):
        Conversations(of.preference, of.ref)
    with pytest.raises(ValueError, match="ref: turn 1 needs shape"):
        Conversations(of.preference, (of.ref[0], of.ref[1][:, :5]), of.replies)
    with pytest.raises(ValueError, match="replies: turn 0 needs laws"):
        Conversations(of.preference, of.ref, (2 * of.replies[0],))
    with pytest.raises(ValueError, match="preference: 18 conversations end this tree, got 4"):
        Conversations(torch.full((4, 4), 0.5), of.ref, of.replies)
    with pytest.raises(ValueError, match="preference: must be skew"):
        Conversations(torch.full((18, 18), 0.6), of.ref, of.replies)
    bad: list[tuple[dict[str, Any], str]] = [
        ({"kl_coef": 0.0}, "kl_coef: must be > 0"),
        ({"kl_coef": 1.0, "step_size": -1.0}, "step_size: must be > 0"),
        ({"kl_coef": 1.0, "credit": "first"}, "credit: must be"),
    ]
    for arguments, message in bad:
        with pytest.raises(ValueError, match=message):
            mtpo(of, **arguments)
    with pytest.raises(ValueError, match=r"asks: must lie in \(0, 1\)"):
        clarifying_question(asks=math.nan)
