"""Preferences estimated from duels, against independent computations."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from simbandit import low_rank, preferences
from simbandit.draws import Draws
from simbandit.policies import Reference
from simbandit.preferences import PreferenceModel, TabularPreferences
from simbandit.types import Contexts, Setting
from simbandit.worlds import LinearWorld

R, X, A, D = 2, 3, 5, 4
P = D * (D - 1) // 2


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def setting(world: Any = None, replicates: int = R, **changes: Any) -> Setting:
    instance = (world or LinearWorld(X, A, D)).instance(replicates, Draws(0, replicates))
    given: dict[str, Any] = {
        "replicates": replicates,
        "rounds": 6,
        "batch_size": 7,
        "n_actions": instance.n_actions,
        "dim": instance.dim,
        "kl_coef": 0.5,
        "reward_range": (0.0, 1.0),
        "contexts": instance.pool,
        "policy": Reference(),
        "feedback": "preference",
        "n_select": 2,
    }
    return Setting(**(given | changes))


def duels(of: Setting, size: int, seed: int = 1) -> tuple[Contexts, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    shape = (of.replicates, size)
    index = torch.from_numpy(rng.integers(X, size=shape))
    actions = torch.from_numpy(rng.integers(of.n_actions, size=(*shape, 2)))
    return Contexts(index=index, pool=of.contexts), actions, torch.from_numpy((rng.random(shape) < 0.7).astype(float))


# ------------------------------------------------------------------------------------------------- bilinear scores


def test_wedge_features_are_those_of_a_skew_form():
    a, b, theta = normal(R, A, D, seed=1), normal(R, A, D, seed=2), normal(R, P, seed=3)
    matrix = preferences.skew_matrix(theta)
    form = torch.einsum("rai,rij,raj->ra", a, matrix, b)
    psi = preferences.wedge(a, b)
    torch.testing.assert_close((psi @ theta[..., None]).squeeze(-1), form, rtol=1e-13, atol=1e-13)
    assert torch.equal(preferences.wedge(b, a), -psi)
    assert torch.equal(matrix, -matrix.mT)
    assert torch.equal(preferences.skew_coordinates(matrix), theta)
    torch.testing.assert_close(matrix.norm(dim=(1, 2)), 2**0.5 * theta.norm(dim=1))


@pytest.mark.parametrize("scale", [1e-12, 1.0, 60.0])
def test_tables_are_skew_about_a_half_to_the_last_bit(scale):
    features, theta = normal(R, X, A, D), scale * normal(R, P, seed=1)
    table = preferences.bilinear_table(features, theta)
    assert (table + table.mT == 1).all()
    assert (table.diagonal(dim1=-2, dim2=-1) == 0.5).all()
    scores = torch.einsum("rxai,rij,rxbj->rxab", features, preferences.skew_matrix(theta), features)
    torch.testing.assert_close(table, torch.sigmoid(scores), rtol=0, atol=1e-12)


def test_bilinear_mle_is_the_minimum_that_scipy_finds():
    first, second = normal(R, 60, D, seed=1), normal(R, 60, D, seed=2)
    count = torch.from_numpy(np.random.default_rng(3).integers(1, 5, (R, 60)).astype(float))
    wins = (count * 0.6).round()
    ridge = 0.3
    fit = preferences.bilinear_mle(first, second, wins, count, ridge=ridge)
    assert fit.converged.all()
    for r in range(R):
        a, b, n, w = first[r].numpy(), second[r].numpy(), count[r].numpy(), wins[r].numpy()

        def loss(t, a=a, b=b, n=n, w=w):
            M = np.zeros((D, D))
            M[np.triu_indices(D, 1)] = t
            s = np.einsum("ui,ij,uj->u", a, M - M.T, b)
            return (n * np.logaddexp(0, s) - w * s).sum() + ridge / 2 * t @ t

        found = minimize(loss, np.zeros(P), method="BFGS", options={"gtol": 1e-7}).x
        np.testing.assert_allclose(fit.theta[r], found, atol=1e-5)  # BFGS by finite differences


def test_bilinear_mle_recovers_theta_from_expected_counts():
    features, theta = normal(R, X, A, D), normal(R, P, seed=4)
    i, j = np.triu_indices(A, 1)
    first, second = features[:, :, i].flatten(1, 2), features[:, :, j].flatten(1, 2)
    wins = preferences.bilinear_table(features, theta)[:, :, i, j].flatten(1)
    fit = preferences.bilinear_mle(first, second, 100 * wins, torch.full_like(wins, 100.0))
    torch.testing.assert_close(fit.theta, theta, rtol=1e-6, atol=1e-6)
    half = 0.5 * preferences.skew_matrix(theta).norm(dim=(1, 2)).min().item()
    bound = preferences.bilinear_mle(first, second, wins, torch.ones_like(wins), ball=half)
    norms = preferences.skew_matrix(bound.theta).norm(dim=(1, 2))
    torch.testing.assert_close(norms, torch.full_like(norms, half))


def test_wedge_widths_are_the_norms_of_all_pairs(monkeypatch):
    features, G = normal(R, X, A, D), normal(R, P, P, seed=1)
    inverse = torch.linalg.inv(torch.eye(P) + G @ G.mT)
    expected = torch.zeros(R, X, A, A, dtype=torch.float64)
    for r, x, a, b in itertools.product(range(R), range(X), range(A), range(A)):
        psi = preferences.wedge(features[r, x, a], features[r, x, b])
        expected[r, x, a, b] = (psi @ inverse[r] @ psi).sqrt()
    torch.testing.assert_close(preferences.wedge_widths(features, inverse), expected)
    monkeypatch.setattr(preferences, "WEDGE_NUMBERS", 1)
    torch.testing.assert_close(preferences.wedge_widths(features, inverse), expected)


# ------------------------------------------------------------------------------------------------- low rank


@pytest.mark.parametrize("n", [6, 7])
def test_truncation_is_the_best_approximation_and_exact_at_full_rank(n):
    scores = preferences.skew_matrix(normal(R, n * (n - 1) // 2))
    singular = torch.linalg.svdvals(scores)
    for rank in range(2, n + 1, 2):
        kept = low_rank.truncate_rank(scores, rank)
        assert torch.equal(kept, -kept.mT)
        tail = singular[:, rank:].square().sum(-1).sqrt()  # Eckart-Young
        torch.testing.assert_close((scores - kept).norm(dim=(1, 2)), tail, rtol=1e-10, atol=1e-12)
    assert (scores - low_rank.truncate_rank(scores, 2 * (n // 2))).abs().max() < 1e-12
    assert (scores - low_rank.truncate_rank(scores, 2)).abs().max() > 0.1
    with pytest.raises(ValueError, match=r"rank: .* even integer >= 2, got 3"):
        low_rank.truncate_rank(scores, 3)


def test_gpm_embeddings_give_back_the_scores():
    n = 5
    scores = preferences.skew_matrix(normal(R, X, n * (n - 1) // 2))
    v = low_rank.gpm_embeddings(scores, 4)
    assert v.shape == (R, X, n, 4)
    by_hand = sum(
        v[..., :, None, 2 * k] * v[..., None, :, 2 * k + 1] - v[..., :, None, 2 * k + 1] * v[..., None, :, 2 * k]
        for k in range(2)
    )
    torch.testing.assert_close(low_rank.gpm_scores(v), by_hand)
    torch.testing.assert_close(low_rank.gpm_scores(v), scores)
    torch.testing.assert_close(
        low_rank.gpm_scores(low_rank.gpm_embeddings(scores, 2)), low_rank.truncate_rank(scores, 2)
    )


# ------------------------------------------------------------------------------------------------- tables


def test_tabular_mle_by_hand():
    wins = torch.tensor([[0.0, 3.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    table = preferences.tabular_mle(wins)
    assert table.tolist() == [[0.5, 0.75, 0.5], [0.25, 0.5, 0.5], [0.5, 0.5, 0.5]]
    smooth = preferences.tabular_mle(wins, smoothing=2.0)
    assert smooth[0, 1] == pytest.approx(4 / 6)
    assert (smooth + smooth.mT == 1).all()
    with pytest.raises(ValueError, match="smoothing"):
        preferences.tabular_mle(wins, smoothing=-1.0)


def test_bradley_terry_fits_its_own_counts_and_misfits_a_cycle():
    scores = torch.tensor([0.7, -0.4, 0.0, -0.3], dtype=torch.float64)
    n = 50.0
    own = preferences.fit_bradley_terry(n * torch.sigmoid(scores[:, None] - scores))
    torch.testing.assert_close(own.scores, scores, atol=1e-6, rtol=0)
    assert own.deviance < 1e-9
    assert own.freedom == 3  # 6 pairs, 3 score differences
    p = 0.7  # a beats b beats c beats a: the best scores are equal, by symmetry
    cycle = torch.tensor([[0, p, 1 - p], [1 - p, 0, p], [p, 1 - p, 0]], dtype=torch.float64)
    misfit = preferences.fit_bradley_terry(n * cycle)
    expected = 2 * 3 * n * (p * np.log(2 * p) + (1 - p) * np.log(2 * (1 - p)))
    assert misfit.deviance == pytest.approx(expected, rel=1e-9)
    assert misfit.freedom == 1
    both = preferences.fit_bradley_terry(torch.stack([n * cycle, n * cycle.mT, 0 * cycle]))
    assert both.freedom.tolist() == [1, 1, 0]


def test_bradley_terry_fits_a_large_sparse_graph_with_an_action_that_never_loses():
    A = 131
    draws = np.random.default_rng(5)
    wins = torch.zeros(A, A, dtype=torch.float64)
    for a in range(A):
        for b in draws.choice(A, size=5, replace=False):
            wins[a, b] += float(a != b)
    wins[:, 0] = 0.0  # scores of actions like this one are finite thanks to the ridge alone
    fit = preferences.fit_bradley_terry(wins)
    assert fit.converged
    assert fit.freedom == ((wins + wins.mT).triu(1) > 0).sum() - A + 1
    won = wins.sum(-1)
    expected = (wins + wins.mT) * torch.sigmoid(fit.scores[:, None] - fit.scores)
    torch.testing.assert_close(expected.sum(-1) + 1e-6 * fit.scores, won, atol=1e-5, rtol=0)  # the likelihood equations


def test_components_of_the_graph_of_comparisons():
    wins = torch.zeros(7, 7, dtype=torch.float64)
    assert preferences.components(wins) == 7
    for a, b in ((0, 1), (1, 2), (2, 3), (3, 4), (6, 5)):
        wins[a, b] = 1.0
    assert preferences.components(wins) == 2
    assert preferences.fit_bradley_terry(wins).freedom == 0  # a forest: every score difference is free


# ------------------------------------------------------------------------------------------------- running estimates


def test_the_running_model_is_the_fit_of_all_duels():
    of = setting()
    model = PreferenceModel(of, ridge=0.5)
    assert (model.table() == 0.5).all()
    batches = [duels(of, 9, seed) for seed in range(4)]
    for batch in batches:
        assert model.observe(*batch)
    contexts = torch.cat([b[0].index for b in batches if b[0].index is not None], 1)
    actions, labels = torch.cat([b[1] for b in batches], 1), torch.cat([b[2] for b in batches], 1)
    rows = torch.arange(R)[:, None]
    first, second = (model.features[rows, contexts, actions[..., k]] for k in (0, 1))
    fit = preferences.bilinear_mle(first, second, labels, torch.ones_like(labels), ridge=0.5)
    torch.testing.assert_close(model.theta, fit.theta, rtol=1e-7, atol=1e-7)
    psi = preferences.wedge(first, second)
    torch.testing.assert_close(model.gram, psi.mT @ psi)
    product = model.inverse(0.2, 0.25) @ (0.2 * torch.eye(P, dtype=torch.float64) + 0.25 * model.gram)
    torch.testing.assert_close(product, torch.eye(P, dtype=torch.float64).expand(R, -1, -1), rtol=0, atol=1e-9)
    truncated = PreferenceModel(of, ridge=0.5, rank=2)
    truncated.theta = model.theta
    kept = low_rank.truncate_rank(preferences.skew_matrix(model.theta), 2)
    expected = torch.sigmoid(model.features @ kept[:, None] @ model.features.mT)
    torch.testing.assert_close(truncated.table(), expected)


def test_refits_when_the_data_have_grown_enough():
    of = setting()
    model = PreferenceModel(of, ridge=0.5, refit_growth=0.5)
    assert [model.observe(*duels(of, 4, seed)) for seed in range(6)] == [True, True, True, False, True, False]


def test_an_intercept_holds_every_linear_bradley_terry_model():
    world = LinearWorld(X, A, D)
    of = setting(world)
    instance = world.instance(R, Draws(0, R))
    rewards = instance.rewards(instance.evaluation)
    i, j = np.triu_indices(A, 1)
    x = torch.arange(X).repeat_interleave(len(i)).expand(R, -1)
    actions = torch.stack([torch.from_numpy(np.tile(side, X)) for side in (i, j)], -1).expand(R, -1, -1)
    law = torch.sigmoid(rewards[..., :, None] - rewards[..., None, :])
    labels = law[:, :, i, j].flatten(1)
    errors = {}
    for intercept in (False, True):
        model = PreferenceModel(of, ridge=1e-9, intercept=intercept)
        model.observe(Contexts(index=x, pool=of.contexts), actions, labels)
        errors[intercept] = (model.table() - law).abs().max().item()
    assert errors[True] < 1e-5  # the gradient is 1e-9 a duel, curvatures go down to 1e-4
    assert errors[False] > 0.02


def test_the_running_table_counts_wins():
    of = setting()
    model = TabularPreferences(of, smoothing=2.0, refit_growth=0.5)
    contexts, actions, labels = duels(of, 40)
    model.observe(contexts, actions, labels)
    expected = torch.zeros(R, X, A, A, dtype=torch.float64)
    assert contexts.index is not None
    for r, b in itertools.product(range(R), range(40)):
        (one, two), won = actions[r, b].tolist(), labels[r, b].item()
        if one != two:
            expected[r, contexts.index[r, b], one, two] += won
            expected[r, contexts.index[r, b], two, one] += 1 - won
    assert torch.equal(model.wins, expected)
    widths = model.widths()
    assert widths[0, 1, 2, 2] == 0
    n = expected[0, 1, 2, 4] + expected[0, 1, 4, 2]
    assert widths[0, 1, 2, 4] == pytest.approx(0.5 / (n + 2).sqrt().item())


def test_a_theory_radius_needs_a_bound():
    with pytest.raises(ValueError, match=r"radius: 'theory' needs .* give `ball`"):
        preferences.bilinear_radius("theory", PreferenceModel(setting(), ridge=0.5))
    model = PreferenceModel(setting(), ridge=0.5, ball=2.0)  # unit features, so scores stay below sqrt 2
    slope = 1 / (2 + np.exp(2**0.5) + np.exp(-(2**0.5)))
    expected = np.sqrt((P + np.log(20)) / slope**2 + 0.5 * 2)
    assert preferences.bilinear_radius("theory", model) == pytest.approx(expected, rel=1e-6)
    assert preferences.bilinear_radius("tuned", model) == 1.0
    assert preferences.bilinear_radius(0.3, model) == 0.3


def test_refuses_worlds_where_nothing_can_be_estimated():
    with pytest.raises(ValueError, match=r"world: .* finite world"):
        PreferenceModel(setting(LinearWorld(None, A, D, n_evaluation=11)), ridge=1.0)
    with pytest.raises(ValueError, match="world: a skew bilinear form of one feature is 0"):
        PreferenceModel(setting(LinearWorld(X, A, 1)), ridge=1.0)
    assert PreferenceModel(setting(LinearWorld(X, A, 1)), ridge=1.0, intercept=True).theta.shape == (R, 1)
