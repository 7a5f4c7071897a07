"""Recursive least squares: against a fresh factorisation, as a square root, per arm, on batches."""

import numpy as np
import pytest
import torch

from simbandit import compiled
from simbandit.algorithms import choosing
from simbandit.algorithms.choosing import play
from simbandit.least_squares import Ahead, LeastSquares, linear
from simbandit.types import Contexts

R, B, A, D = 3, 2, 5, 4


def data(n: int, seed: int = 0, dim: int = D, replicates: int = R) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(replicates, n, dim))), torch.from_numpy(rng.normal(size=(replicates, n)))


def exact(phi: torch.Tensor, r: torch.Tensor, ridge: float) -> tuple[torch.Tensor, torch.Tensor]:
    V = ridge * torch.eye(phi.shape[-1]).double() + phi.mT @ phi
    return V, torch.linalg.solve(V, (phi * r[..., None]).sum(1))


@pytest.mark.parametrize("root", [False, True])
def test_equals_ridge_regression(root):
    phi, r = data(37)
    model = LeastSquares(R, D, 0.3, root=root)
    for i in range(0, 36, B):
        model.observe(phi[:, i : i + B], r[:, i : i + B])
    V, theta = exact(phi[:, :36], r[:, :36], 0.3)
    torch.testing.assert_close(model.theta, theta, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(model.inverse, torch.linalg.inv(V), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(model.log_det, torch.logdet(V) - D * np.log(0.3), rtol=1e-11, atol=1e-11)
    assert model.n == 36
    features = data(B * A, 1)[0].view(R, B, A, D)
    direct = torch.einsum("rbad,rde,rbae->rba", features, torch.linalg.inv(V), features).sqrt()
    torch.testing.assert_close(model.width(features), direct, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model.mean(features), torch.einsum("rbad,rd->rba", features, theta))


def test_potters_root_is_choleskys_after_ten_thousand_updates():
    """To 1e-10, relative to the size of the inverse, along directions that were seen from once to 10,000 times."""
    n, dim = 10_000, 6
    phi, r = data(n, 2, dim, 2)
    phi = phi * torch.tensor([1.0, 1.0, 0.1, 0.01, 1e-3, 1.0]).double()
    model = LeastSquares(2, dim, 1.0, root=True)
    plain = LeastSquares(2, dim, 1.0)
    for i in range(n):
        model.observe(phi[:, i : i + 1], r[:, i : i + 1])
        plain.observe(phi[:, i : i + 1], r[:, i : i + 1])
    V, theta = exact(phi, r, 1.0)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(V))
    for found in (model.root @ model.root.mT, plain.inverse):
        assert (found - inverse).abs().max() <= 1e-10 * inverse.abs().max()
    assert (model.theta - theta).abs().max() <= 1e-10


def test_one_model_per_arm_learns_from_its_own_rewards_only():
    phi, r = data(40)
    arm = torch.from_numpy(np.random.default_rng(5).integers(A, size=(R, 40)))
    model = LeastSquares(R, D, 0.7, arms=A)
    for i in range(0, 40, B):
        model.observe(phi[:, i : i + B], r[:, i : i + B], arm[:, i : i + B])
    features = data(B * A, 1)[0].view(R, B, A, D)
    for k in range(R):
        for a in range(A):
            mine = arm[k] == a
            V, theta = exact(phi[k : k + 1, mine], r[k : k + 1, mine], 0.7)
            torch.testing.assert_close(model.theta[k, a], theta[0], rtol=1e-11, atol=1e-11)
            torch.testing.assert_close(model.log_det[k, a], torch.logdet(V)[0] - D * np.log(0.7))
            width = torch.einsum("bd,de,be->b", features[k, :, a], torch.linalg.inv(V)[0], features[k, :, a]).sqrt()
            torch.testing.assert_close(model.width(features)[k, :, a], width)
    by_hand = torch.einsum("rbad,rad->rba", features, model.theta)
    torch.testing.assert_close(linear(features, model.theta), by_hand)


def test_the_estimate_handed_out_does_not_change_later():
    phi, r = data(4)
    model = LeastSquares(R, D, 1.0)
    model.observe(phi[:, :2], r[:, :2])
    theta, log_det = model.theta, model.log_det
    before = theta.clone(), log_det.clone()
    model.observe(phi[:, 2:], r[:, 2:])
    assert torch.equal(theta, before[0])
    assert torch.equal(log_det, before[1])
    assert not torch.equal(model.theta, theta)


def own(n: int) -> LeastSquares:
    """After n observations."""
    model, rng = LeastSquares(R, D, 0.3, arms=A), np.random.default_rng(6)
    phi, r = data(n, 7)
    model.observe(phi, r, torch.from_numpy(rng.integers(A, size=(R, n))))
    return model


def same(one: LeastSquares, other: LeastSquares) -> None:
    assert one.n == other.n
    for name in ("theta", "inverse", "log_det"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("common", [False, True])
def test_rounds_ahead_of_the_updates_are_the_rounds_one_by_one(common):
    """Whatever is played, twice the same arm and every arm among it: scores on the way, and the model after."""
    T, radius, rng = 7, 0.8, np.random.default_rng(8)
    phi = torch.from_numpy(rng.normal(size=(R, T, 1 if common else A, D))).expand(R, T, A, D)
    arms = torch.tensor([[3, 3, 0, 3, 1, 2, 4], [0, 1, 0, 1, 0, 1, 0], [2, 2, 2, 2, 2, 2, 2]])
    rewards = torch.from_numpy(rng.normal(size=(R, T)))
    mine, reference = own(11), own(11)
    ahead = Ahead(mine, phi)
    for t in range(T):
        expected = reference.scores(phi[:, t : t + 1], radius)[:, 0].numpy()
        np.testing.assert_allclose(ahead.scores(t, radius), expected, rtol=1e-12, atol=1e-13)
        ahead.observe(t, arms[:, t].numpy(), rewards[:, t].numpy())
        reference.observe(phi[torch.arange(R), t, arms[:, t]][:, None], rewards[:, t, None], arms[:, t, None])
    ahead.close()
    same(mine, reference)


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("common", [False, True])
@pytest.mark.parametrize("models", [A, None])
def test_a_model_that_plays_ends_as_one_that_observes(models, common, kernels, monkeypatch):
    """In blocks of unequal length, the last of which is short."""
    if kernels and not compiled.AVAILABLE:
        pytest.skip("the extra `compiled` (numba) is not installed")
    monkeypatch.setattr(compiled, "AVAILABLE", kernels)
    monkeypatch.setattr(choosing, "LONGEST_BLOCK", 5)
    T, radius, rng = 37, 0.8, np.random.default_rng(9)
    phi = torch.from_numpy(rng.normal(size=(R, T, 1 if common else A, D))).expand(R, T, A, D)
    outcomes, uniforms = torch.from_numpy(rng.normal(size=(R, T, A))), torch.from_numpy(rng.uniform(size=(R, T)))
    mine, reference = (LeastSquares(R, D, 0.3, arms=models) for _ in range(2))
    actions = play(mine, radius, phi, Contexts(ref_log_probs=torch.zeros(R, T, A).double()), outcomes, uniforms)
    each = torch.arange(R)
    for t in range(T):
        scores = reference.scores(phi[:, t : t + 1], radius)[:, 0]
        assert torch.equal(scores.gather(-1, actions[:, t, None])[:, 0] >= scores.amax(-1) - 1e-9, torch.ones(R).bool())
        a = actions[:, t]
        reference.observe(phi[each, t, a][:, None], outcomes[each, t, a][:, None], a[:, None])
    assert len(actions.unique()) == A
    same(mine, reference)


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("models", [A, None])
def test_a_model_that_plays_breaks_the_ties_of_every_round_by_its_own_uniform(models, kernels, monkeypatch):
    """Where nothing is to be seen all actions are tied, in every round of every block."""
    if kernels and not compiled.AVAILABLE:
        pytest.skip("the extra `compiled` (numba) is not installed")
    monkeypatch.setattr(compiled, "AVAILABLE", kernels)
    phi, rng = torch.zeros(R, 37, A, D).double(), np.random.default_rng(10)
    outcomes, uniforms = torch.from_numpy(rng.normal(size=(R, 37, A))), torch.from_numpy(rng.uniform(size=(R, 37)))
    contexts = Contexts(ref_log_probs=torch.zeros(R, 37, A).double())
    actions = play(LeastSquares(R, D, 0.3, arms=models), 0.8, phi, contexts, outcomes, uniforms)
    assert torch.equal(actions, (uniforms * A).long())
