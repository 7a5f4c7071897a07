"""Asking only when it pays: APPO's questions, steps and laws, ADPO's policy, by hand."""

from typing import Any

import numpy as np
import pytest
import torch

from simbandit import algorithms
from simbandit.draws import Draws
from simbandit.policies import inverse_cdf
from simbandit.types import Contexts
from simbandit.worlds import LinearWorld
from tests.test_dueling import POOL, setting_of, trained

DRAWS = Draws(0, 2)


def test_appos_step_by_hand():
    """Weights move by the optimistic advantage against the policy's mean features, at most 2, where it asked."""
    state, algorithm, contexts = trained("appo", threshold=0.2, radius=6.0, step_size=0.4)
    phi, theta = POOL.instance(2, DRAWS).pool.features.numpy(), state.duels.model.theta.numpy()  # pyright: ignore
    before, inverse = state.policy.table.exp().numpy(), state.duels.inverse
    pair = algorithm.select(state, contexts, DRAWS.at(3))
    z = contexts.features_of(pair)
    width = torch.einsum("rbd,rde,rbe->rb", z[:, :, 0] - z[:, :, 1], inverse, z[:, :, 0] - z[:, :, 1]).sqrt()
    assert ((width > 0.2) == (pair[..., 0] != pair[..., 1])).all()
    same = torch.zeros(2, 4, 2, dtype=torch.int64)
    same[1, 0, 1] = 1  # only the second replicate asks
    state, _ = algorithm.update(state, contexts, same, torch.ones(2, 4).double(), DRAWS.at(3))
    after, inverse = state.policy.table.exp().numpy(), state.duels.inverse.numpy()
    theta = state.duels.model.theta.numpy()
    np.testing.assert_allclose(after[0], before[0], rtol=1e-12)
    u = phi[1] - np.einsum("xa,xad->xd", before[1], phi[1])[:, None]
    advantage = np.minimum(u @ theta[1] + 6.0 * np.sqrt(np.einsum("xad,de,xae->xa", u, inverse[1], u)), 2.0)
    assert 0 < (advantage == 2.0).mean() < 1
    expected = before[1] * np.exp(0.4 * advantage)
    np.testing.assert_allclose(after[1], expected / expected.sum(1, keepdims=True), rtol=1e-9)


def test_appo_asks_where_the_width_exceeds_the_threshold():
    """In the norm of matrix_ridge I + sum z z'; theta solves the likelihood's own ridge."""
    state, _, contexts = trained("appo", matrix_ridge=0.4, ridge=0.7, ball=1e3)
    duels, theta = state.duels.model.duels, state.duels.model.theta
    p = torch.sigmoid(torch.einsum("rud,rd->ru", duels.differences, theta))
    score = torch.einsum("ru,rud->rd", duels.wins - duels.count * p, duels.differences)
    torch.testing.assert_close(score, 0.7 * theta, rtol=0, atol=1e-6)
    V = 0.4 * torch.eye(3).double() + torch.einsum("ru,rud,rue->rde", duels.count, duels.differences, duels.differences)
    torch.testing.assert_close(state.duels.inverse, torch.linalg.inv(V), rtol=1e-9, atol=1e-12)
    everything: Any = algorithms.create("appo", threshold=0.0)
    pair = everything.select(state, contexts, DRAWS.at(3))
    z = contexts.features_of(pair)[:, :, 0] - contexts.features_of(pair)[:, :, 1]
    width = torch.einsum("rbd,rde,rbe->rb", z, torch.linalg.inv(V), z).sqrt()
    ordered = width.flatten().sort().values
    for threshold in ((ordered[1:] + ordered[:-1]) / 2).tolist():
        some: Any = algorithms.create("appo", threshold=threshold)
        asked = some.select(state, contexts, DRAWS.at(3))
        assert ((asked[..., 0] != asked[..., 1]) == (width > threshold)).all()
        assert ((asked == pair).all(-1) == ((width > threshold) | (pair[..., 0] == pair[..., 1]))).all()


def test_appos_advantage_is_truncated_from_above_only_and_its_first_law_is_uniform():
    world = LinearWorld(3, 4, 2, theta_norm=2.0, reference="softmax")
    setting = setting_of(world)
    algorithm: Any = algorithms.create("appo", radius=0.1, step_size=0.3, refit_growth=99.0, matrix_ridge=0.4)
    state, draws = algorithm.init(setting), DRAWS.at(1)
    np.testing.assert_allclose(state.policy.table.exp(), 0.25, rtol=1e-12)
    contexts = Contexts(index=torch.tensor([[0], [2]]), pool=setting.contexts)
    duel = torch.tensor([[[0, 3]], [[1, 2]]]), torch.ones(2, 1).double()
    state, _ = algorithm.update(state, contexts, *duel, DRAWS.at(0))
    state.duels.model.theta = torch.tensor([[9.0, -4.0], [3.0, 8.0]]).double()
    before, theta = state.policy.table.exp().numpy(), state.duels.model.theta.numpy()
    state, _ = algorithm.update(state, contexts, *duel, draws)
    phi, inverse = setting.contexts.features.numpy(), state.duels.inverse.numpy()
    z = np.stack([phi[0, 0, 0] - phi[0, 0, 3], phi[1, 2, 1] - phi[1, 2, 2]])
    np.testing.assert_allclose(inverse, np.linalg.inv(0.4 * np.eye(2) + 2 * z[:, :, None] * z[:, None]), rtol=1e-9)
    u = phi - np.einsum("rxa,rxad->rxd", before, phi)[:, :, None]
    advantage = np.einsum("rxad,rd->rxa", u, theta) + 0.1 * np.sqrt(np.einsum("rxad,rde,rxae->rxa", u, inverse, u))
    assert advantage.min() < -3
    assert advantage.max() > 3
    expected = before * np.exp(0.3 * np.minimum(advantage, 2.0))
    np.testing.assert_allclose(state.policy.table.exp(), expected / expected.sum(-1, keepdims=True), rtol=1e-9)


def test_adpos_policy_is_the_gibbs_policy_of_its_model_and_may_be_who_plays():
    world = LinearWorld(3, 4, 2, theta_norm=2.0, reference="softmax")
    setting = setting_of(world, kl_coef=0.2)
    index = torch.from_numpy(np.random.default_rng(0).integers(3, size=(2, 40)))
    contexts = Contexts(index=index, pool=setting.contexts)
    played = {}
    for players in ("reference", "current"):
        algorithm: Any = algorithms.create("adpo", players=players, confidence=1e3, ball=0.7)
        state = algorithm.init(setting)
        first = algorithm.select(state, contexts, DRAWS.at(0))
        better = (contexts.features_of(first) @ torch.tensor([1.0, -1.0]).double()).diff(dim=-1)[..., 0] < 0
        state, _ = algorithm.update(state, contexts, first, better.double(), DRAWS.at(0))
        theta = state.model.theta
        np.testing.assert_allclose(theta.norm(dim=-1), 0.7, rtol=1e-6)  # separable labels: at the ball's edge
        pool: Any = setting.contexts
        gibbs = torch.log_softmax(pool.ref_log_probs + torch.einsum("rxad,rd->rxa", pool.features, theta) / 0.2, -1)
        torch.testing.assert_close(algorithm.policy(state).log_probs(pool), gibbs)
        implied = contexts.rows(0.2 * (gibbs - pool.ref_log_probs)).gather(-1, first)
        torch.testing.assert_close(algorithm._margin(state, contexts, first), implied[..., 0] - implied[..., 1])
        played[players] = algorithm.select(state, contexts, DRAWS.at(1))
        uniforms = [DRAWS.at(1).uniform(f"player{i}", 40) for i in (0, 1)]
        law = contexts.rows(gibbs if players == "current" else pool.ref_log_probs)
        assert torch.equal(played[players], torch.stack([inverse_cdf(law, u) for u in uniforms], -1))


def test_appos_default_step_is_the_theorems():
    """sqrt(2 log A / T), T the rounds, in which the weights move once."""
    setting = setting_of(POOL, rounds=50, batch_size=3)
    appo: Any = algorithms.create("appo")
    assert appo._rate(setting) == pytest.approx(np.sqrt(2 * np.log(setting.n_actions) / 50))
