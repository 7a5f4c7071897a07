"""Likelihoods against finite differences, SciPy and scikit-learn; widths, radii and the running reward model."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize
from sklearn.linear_model import LogisticRegression

from simbandit import estimators
from simbandit.estimators import (
    NEWTON_DIM,
    RewardModel,
    confidence_radius,
    curvature,
    logistic_mle,
    pair_widths,
    plackett_luce_mle,
    rank_one_inverse,
    weighted_gram,
    width,
)
from simbandit.policies import Reference
from simbandit.types import Contexts, Setting

R, U, N, K, D = 5, 11, 13, 4, 3


def tensor(array):
    return torch.as_tensor(np.asarray(array, dtype=float))


def duels(rng, replicates=R, scale=1.0):
    """Counts per distinct pair of a Bradley-Terry annotator; the last pairs are padding."""
    z = rng.normal(size=(replicates, U, D)) * scale
    count = rng.integers(1, 9, size=(replicates, U)).astype(float)
    count[:, -2:] = 0
    p = 1 / (1 + np.exp(-z @ rng.normal(size=D)))
    return tensor(z), tensor(rng.binomial(count.astype(int), p)), tensor(count)


def rankings(rng, replicates=R, n=N, k=K):
    phi = rng.normal(size=(replicates, n, k, D))
    utility = phi @ rng.normal(size=D) + rng.gumbel(size=(replicates, n, k))
    return tensor(np.take_along_axis(phi, np.argsort(-utility, axis=-1)[..., None], axis=2))


def logistic_nll(theta, data, ridge):
    z, wins, count = data
    m = z @ theta
    return float((count * np.logaddexp(0, m) - wins * m).sum() + ridge / 2 * theta @ theta)


def plackett_luce_nll(theta, phi, ridge):
    """From the definition: the product over stages of the winner's share among those still in the race."""
    total = ridge / 2 * theta @ theta
    for scores in phi @ theta:
        total -= sum(scores[j] - np.log(np.exp(scores[j:]).sum()) for j in range(len(scores)))
    return float(total)


def peer_minimum(nll, ball=None):
    constraints = [] if ball is None else [{"type": "ineq", "fun": lambda t: ball**2 - t @ t}]
    return optimize.minimize(nll, np.zeros(D), method="SLSQP", constraints=constraints, options={"ftol": 1e-16}).x


CASES: dict[str, Any] = {
    "logistic": lambda data, ridge: (
        lambda start: logistic_mle(*data, ridge=ridge, start=start),
        lambda theta, r: logistic_nll(theta, [x[r].numpy() for x in data], ridge),
    ),
    "plackett_luce": lambda data, ridge: (
        lambda start: plackett_luce_mle(data, ridge=ridge, start=start),
        lambda theta, r: plackett_luce_nll(theta, data[r].numpy(), ridge),
    ),
}


@pytest.mark.parametrize("likelihood", CASES)
def test_value_gradient_and_hessian_against_finite_differences(likelihood, monkeypatch):
    rng = np.random.default_rng(0)
    data = duels(rng) if likelihood == "logistic" else rankings(rng)
    fit, nll = CASES[likelihood](data, 0.3)
    seen, newton_local = [], estimators.newton_local

    def record(value, gradient, hessian, x, ball):
        seen.append((value, gradient, hessian()))
        return newton_local(value, gradient, hessian, x, ball)

    monkeypatch.setattr(estimators, "newton_local", record)

    def at(theta):
        seen.clear()
        fit(tensor(theta))
        return [x.numpy() for x in seen[0]]

    theta, h = rng.normal(size=(R, D)), 1e-5
    value, gradient, hessian = at(theta)
    np.testing.assert_allclose(value, [nll(theta[r], r) for r in range(R)], rtol=1e-12)
    for i in range(D):
        shift = h * np.eye(D)[i]
        for r in range(R):
            slope = (nll(theta[r] + shift, r) - nll(theta[r] - shift, r)) / (2 * h)
            assert gradient[r, i] == pytest.approx(slope, abs=1e-7)  # h^2 third derivatives + rounding / h
        np.testing.assert_allclose(
            hessian[:, i], (at(theta + shift)[1] - at(theta - shift)[1]) / (2 * h), atol=1e-7, rtol=1e-7
        )


@pytest.mark.parametrize(("ridge", "ball"), [(0.5, None), (0.0, 0.6), (0.1, 1.1)])
def test_the_logistic_mle_agrees_with_scipy(ridge, ball):
    z, wins, count = duels(np.random.default_rng(1))
    fit = logistic_mle(z, wins, count, ridge=ridge, ball=ball)
    assert fit.converged.all()
    assert (fit.residual <= 1e-9 * count.sum(-1)).all()
    arrays = [x.numpy() for x in (z, wins, count)]
    peers = [peer_minimum(lambda t, r=r: logistic_nll(t, [x[r] for x in arrays], ridge), ball) for r in range(R)]
    np.testing.assert_allclose(fit.theta, peers, atol=2e-6)  # SLSQP with numerical gradients
    for r in range(R):
        feasible = peers[r] * min(1, (ball or np.inf) / np.linalg.norm(peers[r]))
        one = [x[r] for x in arrays]
        assert logistic_nll(fit.theta[r].numpy(), one, ridge) <= logistic_nll(feasible, one, ridge) + 1e-12


def test_a_ball_binds_where_the_free_estimate_lies_outside():
    z, wins, count = duels(np.random.default_rng(2))
    free = logistic_mle(z, wins, count)
    assert free.converged.all()
    balls = free.theta.norm(dim=-1) * tensor([0.2, 0.999, 1.001, 0.5, 7.0])
    fit = logistic_mle(z, wins, count, ball=balls)
    inside = [2, 4]
    torch.testing.assert_close(fit.theta[inside], free.theta[inside], atol=1e-8, rtol=0.0)
    torch.testing.assert_close(fit.theta.norm(dim=-1)[[0, 1, 3]], balls[[0, 1, 3]], rtol=1e-12, atol=0.0)


def test_the_logistic_mle_agrees_with_scikit_learn_on_raw_rows():
    rng, ridge = np.random.default_rng(3), 0.7
    z, wins, count = duels(rng)
    fit = logistic_mle(z, wins, count, ridge=ridge)
    for r in range(R):
        row = np.repeat(np.arange(U), count[r].long().numpy())
        label = np.concatenate([np.arange(int(c)) < int(w) for w, c in zip(wins[r], count[r], strict=True)])
        peer = LogisticRegression(C=1 / ridge, fit_intercept=False, tol=1e-12, max_iter=1000, solver="newton-cholesky")
        peer.fit(z[r].numpy()[row], label)
        np.testing.assert_allclose(fit.theta[r], peer.coef_[0], atol=1e-6)


def test_counts_raw_rows_weights_and_soft_labels_are_one_likelihood():
    z, wins, count = duels(np.random.default_rng(4), replicates=1)
    counted = logistic_mle(z, wins, count, ridge=0.01)
    row = np.repeat(np.arange(U), count[0].long().numpy())
    label = np.concatenate([np.arange(int(c)) < int(w) for w, c in zip(wins[0], count[0], strict=True)])
    raw = logistic_mle(z[:, row], tensor(label)[None], torch.ones(1, len(row), dtype=torch.float64), ridge=0.01)
    torch.testing.assert_close(raw.theta, counted.theta, atol=1e-9, rtol=0.0)
    soft = wins / count.clamp_min(1)
    weighted = logistic_mle(z, 0.5 * count * soft, 0.5 * count, ridge=0.005)  # half the weight, half the ridge
    torch.testing.assert_close(weighted.theta, counted.theta, atol=1e-9, rtol=0.0)


def test_exact_soft_labels_give_the_truth_back():
    z, _, count = duels(np.random.default_rng(5))
    theta = tensor(np.random.default_rng(6).normal(size=(R, D)))
    p = torch.sigmoid((z @ theta[..., None]).squeeze(-1))
    torch.testing.assert_close(logistic_mle(z, count * p, count).theta, theta, atol=1e-8, rtol=0.0)


@pytest.mark.parametrize("kind", ["separable", "separable in one direction"])
def test_separable_duels_have_no_minimiser_and_the_fit_says_so(kind):
    z, wins, count = duels(np.random.default_rng(7))
    with_mle = logistic_mle(z, wins, count)
    assert with_mle.converged.all()
    if kind == "separable":
        wins[1] = count[1] * (z[1, :, 0] > 0)
    else:
        z[1, :, 0], z[1, 0, 0], wins[1, 0] = 0.0, 1.0, count[1, 0]  # only the first pair looks that way
    fit = logistic_mle(z, wins, count)
    assert fit.converged.tolist() == [True, False, True, True, True]
    torch.testing.assert_close(fit.theta[0], with_mle.theta[0])
    assert logistic_mle(z, wins, count, ridge=1e-3).converged.all()
    bounded = logistic_mle(z, wins, count, ball=6.0)
    assert bounded.converged.all()
    assert bounded.theta[1].norm() == pytest.approx(6.0, rel=1e-12)
    phi = torch.stack([z, torch.zeros_like(z)], dim=2)[1:2, wins[1] == count[1]]
    assert not plackett_luce_mle(phi[:, :1]).converged.any()


def test_large_features_converge():
    z, _, count = duels(np.random.default_rng(8))
    theta = tensor(np.random.default_rng(9).normal(size=(R, D)))
    wins = torch.round(count * torch.sigmoid((z @ theta[..., None]).squeeze(-1)))
    fit = logistic_mle(1e4 * z, wins, count, ridge=1e6)  # theta scales by 1e-4, ridge by 1e8: margins in the thousands
    plain = logistic_mle(z, wins, count, ridge=1e-2)
    torch.testing.assert_close(1e4 * fit.theta, plain.theta, atol=1e-8, rtol=0.0)


@pytest.mark.parametrize(("ridge", "ball"), [(0.2, None), (0.0, 0.5)])
def test_the_plackett_luce_mle_agrees_with_scipy(ridge, ball):
    phi = rankings(np.random.default_rng(10))
    fit = plackett_luce_mle(phi, ridge=ridge, ball=ball)
    assert fit.converged.all()
    assert fit.iterations.max() <= 10
    peers = [peer_minimum(lambda t, r=r: plackett_luce_nll(t, phi[r].numpy(), ridge), ball) for r in range(R)]
    np.testing.assert_allclose(fit.theta, peers, atol=2e-6)
    if ball is not None:
        assert fit.theta.norm(dim=-1).max() == pytest.approx(ball, rel=1e-12)


@pytest.mark.parametrize(("ridge", "ball"), [(0.2, None), (0.0, 0.5)])
def test_a_ranking_of_two_is_a_duel(ridge, ball):
    phi = rankings(np.random.default_rng(11), k=2)
    ones = torch.ones(R, N, dtype=torch.float64)
    duel = logistic_mle(phi[:, :, 0] - phi[:, :, 1], ones, ones, ridge=ridge, ball=ball)
    torch.testing.assert_close(plackett_luce_mle(phi, ridge=ridge, ball=ball).theta, duel.theta, atol=1e-8, rtol=0.0)


@pytest.mark.parametrize("ball", [None, 0.8], ids=["ridge", "ball"])
def test_a_batch_equals_one_by_one(ball):
    data, phi = duels(np.random.default_rng(12)), rankings(np.random.default_rng(13))
    together, ranked = logistic_mle(*data, ridge=0.1, ball=ball), plackett_luce_mle(phi, ridge=0.1, ball=ball)
    for r in range(R):
        alone = logistic_mle(*(x[r : r + 1] for x in data), ridge=0.1, ball=ball)
        torch.testing.assert_close(alone.theta[0], together.theta[r], atol=1e-12, rtol=0.0)
        alone = plackett_luce_mle(phi[r : r + 1], ridge=0.1, ball=ball)
        torch.testing.assert_close(alone.theta[0], ranked.theta[r], atol=1e-12, rtol=0.0)


def test_a_warm_start_changes_the_work_and_not_the_answer():
    data = duels(np.random.default_rng(14))
    cold = logistic_mle(*data, ridge=0.1, ball=0.9)
    warm = logistic_mle(*data, ridge=0.1, ball=0.9, start=cold.theta)
    far = logistic_mle(*data, ridge=0.1, ball=0.9, start=cold.theta + 50)  # outside the ball
    assert warm.iterations.max() == 0
    torch.testing.assert_close(far.theta, cold.theta, atol=1e-8, rtol=0.0)


def test_high_dimension_by_lbfgs(monkeypatch):
    rng, d, ridge = np.random.default_rng(15), NEWTON_DIM + 4, 2.0
    z, count = rng.normal(size=(2, 40, d)) / 4, np.ones((2, 40))
    wins = (rng.random((2, 40)) < 0.6).astype(float)
    fit = logistic_mle(tensor(z), tensor(wins), tensor(count), ridge=ridge)
    assert fit.converged.all()
    for r in range(2):

        def value_gradient(t, r=r):
            m = z[r] @ t
            return (np.logaddexp(0, m) - wins[r] * m).sum() + ridge / 2 * t @ t, z[r].T @ (
                1 / (1 + np.exp(-m)) - wins[r]
            ) + ridge * t

        peer = optimize.minimize(value_gradient, np.zeros(d), jac=True, method="BFGS", options={"gtol": 1e-9})
        np.testing.assert_allclose(fit.theta[r], peer.x, atol=1e-7)
    size = float(fit.theta.norm(dim=-1).max())
    loose = logistic_mle(tensor(z), tensor(wins), tensor(count), ridge=ridge, ball=1.01 * size)
    torch.testing.assert_close(loose.theta, fit.theta)
    with pytest.raises(ValueError, match=f"ball: binds at dim {d} > {NEWTON_DIM}.*ridge"):
        logistic_mle(tensor(z), tensor(wins), tensor(count), ridge=ridge, ball=0.9 * size)
    assert not logistic_mle(tensor(z), tensor(wins), tensor(count)).converged.any()  # fewer duels than features
    data = duels(rng)
    newton = logistic_mle(*data, ridge=0.1)
    monkeypatch.setattr(estimators, "NEWTON_DIM", 0)
    torch.testing.assert_close(logistic_mle(*data, ridge=0.1).theta, newton.theta, atol=1e-7, rtol=0.0)


def positive_definite(rng, n):
    factor = rng.normal(size=(n, 2 * D, D))
    return tensor(factor.transpose(0, 2, 1) @ factor)


def test_widths_against_their_definition():
    rng = np.random.default_rng(16)
    inverse, phi = positive_definite(rng, R), rng.normal(size=(R, 2, 7, D))
    computed, pairs = width(tensor(phi), inverse), pair_widths(tensor(phi), inverse)
    assert computed.shape == (R, 2, 7)
    assert pairs.shape == (R, 2, 7, 7)
    for r, b, a, other in itertools.product(range(R), range(2), range(7), range(7)):
        matrix, z = inverse[r].numpy(), phi[r, b, a] - phi[r, b, other]
        assert computed[r, b, a] == pytest.approx(math.sqrt(phi[r, b, a] @ matrix @ phi[r, b, a]), rel=1e-12)
        # the Gram trick subtracts squares: 1e-16 of |phi|^2, so 1e-7 where actions coincide
        assert pairs[r, b, a, other] == pytest.approx(math.sqrt(z @ matrix @ z), rel=1e-10, abs=1e-6 * (a == other))


def test_weighted_gram_is_the_sum_of_outer_products():
    rng = np.random.default_rng(17)
    z, weights = rng.normal(size=(R, U, D)), rng.random((R, U))
    expected = sum(weights[:, u, None, None] * z[:, u, :, None] * z[:, u, None, :] for u in range(U))
    scratch = torch.empty(R, U, D, dtype=torch.float64)
    for held in (None, scratch):
        np.testing.assert_allclose(weighted_gram(tensor(z), tensor(weights), held), expected, rtol=1e-12, atol=1e-13)


def test_rank_one_updates_stay_the_inverse():
    rng = np.random.default_rng(18)
    V = torch.eye(D, dtype=torch.float64).repeat(R, 1, 1)
    inverse = V.clone()
    for u in tensor(rng.normal(size=(10_000, R, D))):
        V += u[:, :, None] * u[:, None, :]
        rank_one_inverse(inverse, u)
    exact = torch.linalg.inv(V)
    assert ((inverse - exact).abs() / exact.abs().amax((1, 2), keepdim=True)).max() < 1e-10


def test_curvature_is_the_smallest_slope_of_sigma():
    for gap in (0.0, 0.7, 3.0):
        m = np.linspace(-gap, gap, 2001)
        s = 1 / (1 + np.exp(-m))
        assert curvature(gap) == pytest.approx((s * (1 - s)).min(), rel=1e-12)


def setting(
    feedback: Any = "preference",
    pool=None,
    *,
    replicates=R,
    n_actions=6,
    dim: int | None = D,
    n_select=2,
    reward_range=(-1, 2.0),
):
    return Setting(
        replicates=replicates,
        rounds=10,
        batch_size=4,
        n_actions=n_actions,
        dim=dim,
        kl_coef=1.0,
        reward_range=reward_range,
        contexts=pool,
        policy=Reference(),
        feedback=feedback,
        n_select=n_select,
        theta_bound=2.5,
    )


def test_confidence_radii_are_the_theorems():
    gamma = 1 / (2 + math.exp(3.0) + math.exp(-3.0))  # rewards in [-1, 2]: differences up to 3
    freedom = D + math.log(1 / 0.01)
    expected = math.sqrt(freedom / gamma**2 + 0.4 * 2.5**2)
    assert confidence_radius("theory", setting(), 0.4, delta=0.01) == pytest.approx(expected)
    assert confidence_radius("theory", setting("ranking"), 0.4, delta=0.01) == pytest.approx(expected)
    expected = math.sqrt(freedom) + math.sqrt(0.4) * 2.5
    assert confidence_radius("theory", setting("reward"), 0.4, delta=0.01) == pytest.approx(expected)
    assert confidence_radius("tuned", setting(), 0.4) == 1.0
    assert confidence_radius(0.3, setting(), 0.4) == 0.3
    with pytest.raises(ValueError, match="radius: 'theory' needs features and a finite reward range"):
        confidence_radius("theory", setting(reward_range=(-math.inf, math.inf)), 0.4)


def pool_of(rng, X=4, A=6):
    log_probs = torch.full((R, X, A), -math.log(A), dtype=torch.float64)
    index = torch.arange(X).expand(R, -1)
    return Contexts(index=index, ref_log_probs=log_probs, features=tensor(rng.normal(size=(R, X, A, D))))


def batch(rng, pool, B, k):
    index = torch.as_tensor(rng.integers(0, pool.shape[1], size=(R, B)))
    actions = np.argsort(rng.random((R, B, pool.n_actions)), axis=-1)[..., :k]
    return Contexts(index=index, pool=pool), torch.as_tensor(actions)


def test_a_reward_model_of_duels_is_the_mle_of_all_of_them():
    rng = np.random.default_rng(19)
    pool = pool_of(rng)
    model = RewardModel(setting(pool=pool), ridge=0.3)
    assert model.ball == 2.5
    zs, ys = [], []
    for _ in range(6):
        contexts, actions = batch(rng, pool, 7, 2)
        label = tensor(rng.random((R, 7)))
        assert model.observe(contexts, actions, label)
        phi = contexts.features_of(actions)
        zs.append(phi[:, :, 0] - phi[:, :, 1])
        ys.append(label)
    z, y = torch.cat(zs, dim=1), torch.cat(ys, dim=1)
    raw = logistic_mle(z, y, torch.ones_like(y), ridge=0.3, ball=2.5)
    torch.testing.assert_close(model.theta, raw.theta, atol=1e-8, rtol=0.0)
    torch.testing.assert_close(model.gram, z.mT @ z, atol=1e-12, rtol=1e-12)
    assert model.n == model.observations == 42
    info = model.info(0.7)
    assert info.theta is model.theta
    assert info.radius == 0.7
    assert info.fit_residual is not None
    assert info.fit_residual.max() <= 42e-9
    expected = torch.linalg.inv(0.5 * torch.eye(D, dtype=torch.float64) + model.gram / 7)
    torch.testing.assert_close(model.inverse(0.5, 1 / 7), expected)


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1), (3, 3, 3), (1, 1, 3, 1)], ids=["rank one", "solve", "both"])
def test_a_reward_model_of_rewards_is_ridge_regression(sizes):
    rng = np.random.default_rng(20)
    pool = pool_of(rng)
    model = RewardModel(setting("reward", pool, n_select=1), ridge=0.3)
    phis, rewards = [], []
    for size in sizes:
        contexts, actions = batch(rng, pool, size, 1)
        reward = tensor(rng.normal(size=(R, size)))
        model.observe(contexts, actions, reward)
        phis.append(contexts.features_of(actions)[:, :, 0].numpy())
        rewards.append(reward.numpy())
    phi, y = np.concatenate(phis, axis=1), np.concatenate(rewards, axis=1)
    for r in range(R):
        gram, eye = phi[r].T @ phi[r], np.eye(D)
        np.testing.assert_allclose(model.gram[r], gram, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(model.theta[r], np.linalg.solve(gram + 0.3 * eye, phi[r].T @ y[r]), rtol=1e-10)
        np.testing.assert_allclose(model.inverse(0.3)[r], np.linalg.inv(gram + 0.3 * eye), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(model.inverse(0.5, 2)[r], np.linalg.inv(2 * gram + 0.5 * eye), rtol=1e-9, atol=1e-12)
    model.inverse(0.3).zero_()  # a copy: the model keeps its own
    np.testing.assert_allclose(model.inverse(0.3)[0], np.linalg.inv(phi[0].T @ phi[0] + 0.3 * np.eye(D)), rtol=1e-9)


def test_a_reward_model_of_rankings_is_plackett_luce():
    rng = np.random.default_rng(21)
    pool = pool_of(rng)
    model = RewardModel(setting("ranking", pool, n_select=K), ridge=0.3, ball=1.5)
    ordered, gram = [], torch.zeros(R, D, D, dtype=torch.float64)
    for _ in range(3):
        contexts, actions = batch(rng, pool, 5, K)
        order = torch.as_tensor(np.argsort(rng.random((R, 5, K)), axis=-1))  # positions, best first
        model.observe(contexts, actions, order)
        phi = contexts.features_of(actions.gather(2, order))
        ordered.append(phi)
        for i, j in itertools.combinations(range(K), 2):
            z = phi[:, :, i] - phi[:, :, j]
            gram += z.mT @ z
    expected = plackett_luce_mle(torch.cat(ordered, dim=1), ridge=0.3, ball=1.5)
    torch.testing.assert_close(model.theta, expected.theta, atol=1e-8, rtol=0.0)
    torch.testing.assert_close(model.gram, gram, atol=1e-12, rtol=1e-12)
    assert (model.n, model.observations) == (15, 15 * K * (K - 1) // 2)


@pytest.mark.parametrize(("growth", "fits"), [(0.0, [4, 8, 12, 16, 20, 24]), (0.5, [4, 8, 12, 20]), (1.0, [4, 8, 16])])
def test_the_refit_schedule(growth, fits):
    rng = np.random.default_rng(22)
    pool = pool_of(rng)
    model = RewardModel(setting(pool=pool), ridge=0.3, refit_growth=growth)
    seen = []
    for _ in range(6):
        contexts, actions = batch(rng, pool, 4, 2)
        before = model.theta.clone()
        if model.observe(contexts, actions, tensor(rng.random((R, 4)))):
            seen.append(model.n)
        else:
            assert torch.equal(model.theta, before)
    assert seen == fits


def test_the_ensemble_covariance_is_that_of_weighted_fits():
    rng = np.random.default_rng(23)
    pool = pool_of(rng)
    model = RewardModel(setting(pool=pool), ridge=0.3, members=3)
    contexts, actions = batch(rng, pool, 30, 2)
    label, weights = tensor(rng.random((R, 30))), tensor(rng.poisson(1.0, size=(R, 30, 3)))
    model.observe(contexts, actions, label, weights)
    phi = contexts.features_of(actions)
    z = phi[:, :, 0] - phi[:, :, 1]
    fits = [
        logistic_mle(z, weights[..., e] * label, weights[..., e], ridge=0.3, ball=2.5).theta.numpy() for e in range(3)
    ]
    deviations = np.stack(fits, axis=1) - model.theta.numpy()[:, None]
    expected = np.einsum("red,rec->rdc", deviations, deviations) / 3
    np.testing.assert_allclose(model.ensemble_covariance(), expected, atol=1e-8)


def test_a_reward_model_refuses_what_it_cannot_learn_from():
    with pytest.raises(ValueError, match="no features"):
        RewardModel(setting(dim=None), ridge=0.1)
    with pytest.raises(ValueError, match=r"oracle: .* not full feedback"):
        RewardModel(setting("full"), ridge=0.1)
