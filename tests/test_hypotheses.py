"""Tests of Bradley-Terry and of transitivity, and the Hodge split."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch

from simbandit import hypotheses
from simbandit.hypotheses import bradley_terry_test, count_duels, hodge_decomposition, transitivity_test

CYCLE = np.array([[0.5, 0.7, 0.3], [0.3, 0.5, 0.7], [0.7, 0.3, 0.5]])


def counts(law: np.ndarray, n: int, seed: int) -> torch.Tensor:
    """n duels a pair."""
    won = np.triu(np.random.default_rng(seed).binomial(n, np.clip(law, 0, 1)), 1)
    return torch.from_numpy(won + np.tril(n - won.T, -1)).double()


def test_a_frame_is_counted_under_its_own_names():
    frame = pd.DataFrame(
        {
            "topic": ["b", "a", "b", "b", "a", "a"],
            "left": ["x", "u", "y", "x", "u", "w"],
            "right": ["y", "v", "x", "x", "v", "u"],
            "won": [1, 0, 1, 1, 1, 1],
        }
    )
    found = count_duels(frame, context="topic", first="left", second="right", preferred="won")
    assert found.contexts == ("a", "b")
    assert found.actions == (("u", "v", "w"), ("x", "y"))
    assert found.wins.tolist() == [
        [[0, 1, 0], [1, 0, 0], [1, 0, 0]],
        [[0, 1, 0], [1, 0, 0], [0, 0, 0]],  # x against itself says nothing
    ]
    pooled = count_duels(frame, context=None, first="left", second="right", preferred="won")
    assert pooled.wins.shape == (1, 5, 5)
    assert pooled.wins.sum() == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preferred": [1.0, 0.5]}, "preferred: .* must be 0 or 1; row 1 has 0.5"),
        ({"preferred": [1.0, np.nan]}, "preferred: .* row 1"),
        ({"second": [0, 1]}, "holds no duel between two different actions"),
        ({"context": [None, None]}, "context: holds missing values"),
    ],
)
def test_bad_frames_are_refused(change, message):
    frame = pd.DataFrame({"context": [0, 0], "first": [0, 1], "second": [1, 0], "preferred": [1.0, 0.0]})
    with pytest.raises(ValueError, match=message):
        count_duels(frame.assign(**change))
    with pytest.raises(ValueError, match=r"columns \['first'\] are missing"):
        count_duels(frame.drop(columns="first"))
    with pytest.raises(ValueError, match="wins: must be whole numbers"):
        bradley_terry_test(torch.full((3, 3), 0.5))
    with pytest.raises(ValueError, match="simulations: must be at least 1"):
        bradley_terry_test(frame, simulations=0)


def test_p_values_are_uniform_under_bradley_terry():
    """60 data sets of 5 actions in 60 contexts at once; contexts have their own p-values."""
    scores = np.random.default_rng(0).normal(size=(60, 5)) / 2
    law = 1 / (1 + np.exp(scores[:, None] - scores[:, :, None]))
    wins = torch.stack([counts(p, 12, seed) for seed, p in enumerate(law)])
    p_values = bradley_terry_test(wins, simulations=99).contexts["p_value"].to_numpy()
    # Kolmogorov-Smirnov at 60 values: .21 is exceeded with probability .01 under uniformity
    gap = np.abs(np.sort(p_values) - (np.arange(60) + 0.5) / 60).max()
    assert gap < 0.21
    small = transitivity_test(wins, simulations=49).contexts["p_value"].to_numpy() < 0.05
    assert small.mean() < 0.15


def test_the_level_is_kept_where_duels_are_few():
    """15 contexts of 31 actions, a quarter of the pairs compared once or twice. Drawn from maximum-likelihood scores,
    the simulations are too predictable and the test rejects what is true."""
    draws = np.random.default_rng(4)
    i, j = np.triu_indices(31, 1)
    wins = np.zeros((15, 31, 31))
    for table, scores in zip(wins, draws.normal(size=(15, 31)), strict=True):
        n = draws.integers(1, 3, len(i)) * (draws.random(len(i)) < 0.25)
        won = draws.binomial(n, 1 / (1 + np.exp(scores[j] - scores[i])))
        table[i, j], table[j, i] = won, n - won

    def rejected(ridge):
        test = bradley_terry_test(torch.from_numpy(wins), simulations=39, ridge=ridge)
        return (test.contexts["p_value"].to_numpy() <= 0.05).sum()

    assert rejected(1.0) <= 3  # of 15 at level .05: 4 or more have probability .005
    assert rejected(1e-6) > 3


def test_cycles_are_found_and_the_same_data_give_the_same_answer():
    wins = counts(CYCLE, 200, 1)
    for test in (bradley_terry_test, transitivity_test):
        found = test(wins, simulations=99)
        assert found.p_value == 0.01  # none of 99
        assert test(wins, simulations=99).contexts.equals(found.contexts)
        both = test(torch.stack([wins, counts(np.full((3, 3), 0.5), 200, 2)]), simulations=99)
        one, other = both.contexts["p_value"].tolist()
        assert one == 0.01
        assert other > 0.05
        assert both.statistic == pytest.approx(sum(both.contexts["statistic"].tolist()))


def test_transitive_but_not_bradley_terry():
    """P(a > b) = P(b > c) = .9 and P(a > c) = .6: weakly transitive, which no scores give."""
    law = np.array([[0.5, 0.9, 0.6], [0.1, 0.5, 0.9], [0.4, 0.1, 0.5]])
    wins = counts(law, 100, 3)
    assert bradley_terry_test(wins, simulations=99).p_value == 0.01
    assert transitivity_test(wins, simulations=99).p_value > 0.5
    row = transitivity_test(wins, simulations=9).contexts.iloc[0]
    assert (row["triples"], row["weak"], row["moderate"], row["strong"]) == (1, 0, 1, 1)


def test_the_best_order_is_found_exactly(monkeypatch):
    cost = np.random.default_rng(0).random((3, 6, 6))

    def price(one: np.ndarray, order: tuple[int, ...]) -> float:
        return sum(one[a, b] for i, a in enumerate(order) for b in order[i + 1 :])

    values, orders = hypotheses.best_order(cost)
    for one, value, order in zip(cost, values, orders, strict=True):
        assert value == pytest.approx(min(price(one, o) for o in itertools.permutations(range(6))))
        assert price(one, tuple(order)) == pytest.approx(value)
    monkeypatch.setattr(hypotheses, "EXACT_ORDERS", 5)
    local, moved = hypotheses.best_order(cost)
    assert (local >= values - 1e-12).all()
    for one, value, order in zip(cost, local, moved, strict=True):
        assert price(one, tuple(order)) == pytest.approx(value)
        for i, j in itertools.product(range(6), repeat=2):  # no move of one action helps
            shifted = list(order)
            shifted.insert(j, shifted.pop(i))
            assert price(one, tuple(shifted)) >= value - 1e-9


def test_hodge_splits_energy_and_finds_the_dial():
    s = torch.tensor([0.3, -0.2, 0.4, -0.5], dtype=torch.float64)
    gradient = s[:, None] - s
    curl = torch.zeros(4, 4, dtype=torch.float64)
    curl[0, 1] = curl[1, 2] = curl[2, 0] = 0.25
    curl = curl - curl.mT
    for dial in (0.0, 0.5, 2.0):
        found = hodge_decomposition(gradient + dial * curl)
        torch.testing.assert_close(found.scores, s)  # the curl has no divergence
        torch.testing.assert_close(found.gradient, gradient.square().sum() / 2)
        torch.testing.assert_close(found.cyclic, dial**2 * curl.square().sum() / 2, rtol=1e-9, atol=1e-20)
    weights = counts(np.full((4, 4), 0.5), 9, 0) + 1
    weights = weights + weights.mT
    weights[0, 3] = weights[3, 0] = 0.0
    margins = gradient + curl + 0.1 * (weights - weights.mean()).triu(1) - 0.1 * (weights - weights.mean()).triu(1).mT
    found = hodge_decomposition(margins, weights)
    total = (weights * margins.square()).sum() / 2
    torch.testing.assert_close(found.gradient + found.cyclic, total)
    # least squares: no other scores leave less
    incidence = torch.eye(4, dtype=torch.float64)
    i, j = torch.triu_indices(4, 4, 1)
    root = weights[i, j].sqrt()[:, None]
    rest = torch.linalg.lstsq(root * (incidence[i] - incidence[j])[:, 1:], root * margins[i, j, None])
    other = torch.cat([torch.zeros(1, dtype=torch.float64), rest.solution.squeeze(-1)])
    torch.testing.assert_close(found.scores, other - other.mean())
    with pytest.raises(ValueError, match="margins: must be skew"):
        hodge_decomposition(torch.full((3, 3), 0.5))
