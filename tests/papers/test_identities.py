"""Identities and predictors of KL-regularised preference learning, against numbers made by other means.

Notation of 2312.11456 and 2411.04625: J(pi) = E[r] - kl_coef KL(pi || pi_ref), pi* the Gibbs policy of r.
"""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize

from simbandit import algorithms
from simbandit.data import Logged
from simbandit.draws import Draws
from simbandit.metrics import kl
from simbandit.oracles import BradleyTerry, NoisyReward
from simbandit.policies import Uniform, gibbs
from simbandit.simulate import Problem, simulate
from simbandit.worlds import LinearWorld

X, A, D = 4, 6, 3
WORLD = LinearWorld(X, A, D, reference="softmax", context_law="zipf", theta_norm=1.5)


def truth(replicates: int = 5) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray]:
    """An instance, and rewards, reference and law of contexts as arrays."""
    instance: Any = WORLD.instance(replicates, Draws(3, replicates))
    pool = instance.pool
    return instance, instance.rewards(pool).numpy(), pool.ref_log_probs.exp().numpy(), pool.weights.numpy()


def value(pi: np.ndarray, rewards: np.ndarray, ref: np.ndarray, law: np.ndarray, kl_coef: float) -> np.ndarray:
    """J, (R,)"""
    return (law * ((pi * rewards).sum(-1) - kl_coef * (pi * np.log(pi / ref)).sum(-1))).sum(-1)


def some_policy(shape: tuple[int, ...], seed: int, scale: float = 1.5) -> np.ndarray:
    weights = np.exp(scale * np.random.default_rng(seed).normal(size=shape))
    return weights / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize("kl_coef", [0.05, 0.5, 5.0])
def test_the_gap_is_the_divergence_from_the_optimum(kl_coef):
    """J(pi*) - J(pi) = kl_coef KL(pi || pi*), pi first, for every pi."""
    instance, rewards, ref, law = truth()
    optimum = instance.optimal_log_probs(kl_coef)
    best = value(optimum.exp().numpy(), rewards, ref, law, kl_coef)
    for seed in range(5):
        pi = some_policy(rewards.shape, seed)
        divergence = (torch.from_numpy(law) * kl(torch.from_numpy(pi).log(), optimum)).sum(-1).numpy()
        np.testing.assert_allclose(best - value(pi, rewards, ref, law, kl_coef), kl_coef * divergence, rtol=1e-10)
        reverse = (torch.from_numpy(law) * kl(optimum, torch.from_numpy(pi).log())).sum(-1).numpy()
        assert np.abs(reverse - divergence).min() > 0.01  # so the other direction would have failed


@pytest.mark.parametrize("kl_coef", [0.2, 2.0])
def test_the_best_value_is_the_log_partition_function(kl_coef):
    """max J = kl_coef E log Z, and no numerical maximiser over all policies finds more."""
    instance, rewards, ref, law = truth(1)
    log_z = np.log((ref * np.exp(rewards / kl_coef)).sum(-1))
    expected = kl_coef * (law * log_z).sum(-1)
    np.testing.assert_allclose(instance.value(kl_coef), expected, rtol=1e-12)

    def loss(logits: np.ndarray) -> tuple[float, np.ndarray]:
        table = np.exp(logits.reshape(1, X, A))
        pi = table / table.sum(-1, keepdims=True)
        slope = rewards - kl_coef * np.log(pi / ref)
        gradient = law[..., None] * pi * (slope - (pi * slope).sum(-1, keepdims=True))
        return -float(value(pi, rewards, ref, law, kl_coef)[0]), -gradient.reshape(-1)

    found = optimize.minimize(loss, np.zeros(X * A), jac=True, method="BFGS", options={"gtol": 1e-8})
    assert -found.fun == pytest.approx(float(expected[0]), abs=1e-9)
    optimum = instance.optimal_log_probs(kl_coef).exp().numpy()[0]
    table = np.exp(found.x.reshape(X, A))
    np.testing.assert_allclose(table / table.sum(-1, keepdims=True), optimum, atol=1e-5)


def test_the_decomposition_of_gshf():
    """J(pi) - J(pi_hat) = E_pi[r - r_hat] + E_pi_hat[r_hat - r] - kl_coef KL(pi || pi_hat), pi_hat = Gibbs(r_hat)."""
    _, rewards, ref, law = truth()
    kl_coef, rng = 0.4, np.random.default_rng(8)
    estimate = rewards + rng.normal(size=rewards.shape)
    log_hat = gibbs(torch.from_numpy(estimate), torch.from_numpy(ref).log(), kl_coef)
    hat, pi = log_hat.exp().numpy(), some_policy(rewards.shape, 9)
    divergence = (torch.from_numpy(law) * kl(torch.from_numpy(pi).log(), log_hat)).sum(-1).numpy()
    error = (law * ((pi - hat) * (rewards - estimate)).sum(-1)).sum(-1)
    difference = value(pi, rewards, ref, law, kl_coef) - value(hat, rewards, ref, law, kl_coef)
    np.testing.assert_allclose(difference, error - kl_coef * divergence, rtol=1e-10)


@pytest.mark.parametrize("kl_coef", [0.3, 3.0])
def test_the_second_order_predictor(kl_coef):
    """The gap of Gibbs(r + Delta) is E Var_pi*(Delta) / (2 kl_coef) + O(Delta^3), blind to a shift per context."""
    instance, rewards, ref, law = truth()
    optimum, rng = instance.optimal_log_probs(kl_coef), np.random.default_rng(2)
    delta = rng.normal(size=rewards.shape)
    p = optimum.exp().numpy()
    variance = (p * delta**2).sum(-1) - (p * delta).sum(-1) ** 2
    predicted = (law * variance).sum(-1) / (2 * kl_coef)
    shift = 5 * rng.normal(size=rewards.shape[:2])[..., None]
    errors = []
    for size in (1e-2, 1e-3, 1e-4):
        hat = gibbs(torch.from_numpy(rewards + size * delta + shift), torch.from_numpy(ref).log(), kl_coef)
        gap = kl_coef * (torch.from_numpy(law) * kl(hat, optimum)).sum(-1).numpy()
        errors.append(np.abs(gap / (size**2 * predicted) - 1).max())
    assert errors[0] < 0.1 / kl_coef
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.1)  # the next order is Delta^3
    assert errors[2] == pytest.approx(errors[0] / 100, rel=0.3)  # where rounding of gaps of 1e-9 begins to show


@pytest.mark.parametrize("feedback", ["preference", "reward"])
def test_the_asymptotic_predictor(feedback):
    """E gap after n samples ~ tr(I_n^-1 E_x Cov_pi*(phi)) / (2 kl_coef), I_n the Fisher information of the data."""
    n, replicates, kl_coef, noise = 3000, 400, 0.8, 0.5
    world = LinearWorld(3, 5, D, fixed=True, theta_norm=1.0)
    oracle: Any = BradleyTerry() if feedback == "preference" else NoisyReward(noise)
    results = simulate(
        Problem(world, oracle, kl_coef),
        algorithms.create("kl_pcb", radius=0.0, ridge=1e-6),  # without pessimism: the Gibbs policy of the estimate
        rounds=1,
        replicates=replicates,
        offline=Logged(Uniform(), n),
        metrics=["suboptimality"],
    )
    instance: Any = world.instance(1, Draws(0, 1))
    pool = instance.pool
    phi, theta, law = pool.features[0].numpy(), instance.theta[0].numpy(), pool.weights[0].numpy()
    p = instance.optimal_log_probs(kl_coef)[0].exp().numpy()
    information = np.zeros((D, D))
    for x in range(3):
        for a in range(5):
            if feedback == "reward":
                information += law[x] / 5 * np.outer(phi[x, a], phi[x, a]) / noise**2
            for b in range(5) if feedback == "preference" else ():
                z = phi[x, a] - phi[x, b]
                q = 1 / (1 + np.exp(-z @ theta))
                information += law[x] / 25 * q * (1 - q) * np.outer(z, z)
    mean = np.einsum("xa,xad->xd", p, phi)
    covariance = np.einsum("x,xa,xad,xae->de", law, p, phi, phi) - np.einsum("x,xd,xe->de", law, mean, mean)
    predicted = np.trace(np.linalg.solve(n * information, covariance)) / (2 * kl_coef)
    gaps = results.final()
    error = gaps.std() / np.sqrt(replicates)
    assert error < 0.05 * predicted
    assert gaps.mean() == pytest.approx(predicted, abs=4 * error + 0.03 * predicted)  # 3 % for the next order, 1/n


def test_curvature_needs_the_largest_difference_not_the_largest_reward():
    """With |phi| <= 1 and |theta| <= B a reward difference reaches 2B; with B in it the constant is no bound."""
    world = LinearWorld(features=[[[1.0, 0.0], [-1.0, 0.0]]], theta=(2.0, 0.0))
    instance: Any = world.instance(1, Draws(0, 1))
    slope = 1 / (2 + np.exp(4.0) + np.exp(-4.0))
    assert float(instance.curvature()) == pytest.approx(slope, rel=1e-12)
    assert slope < 1 / (2 + np.exp(2.0) + np.exp(-2.0))
