"""Laws against their identities, brute-force enumeration, SciPy; policies as objects."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special, stats

from simbandit.policies import (
    DIVERGENCES,
    Elliptical,
    LogLinear,
    Mixture,
    Reference,
    Rows,
    Tabular,
    Uniform,
    argmax,
    best_of_n,
    chi_squared_tilt,
    concatenate,
    divergence_tilt,
    gibbs,
    inverse_cdf,
    lambert_w_exp,
    mixture,
    multi_step_rejection,
    normalise,
    rejection_sampling,
    tabulate,
    uniform,
)
from simbandit.types import Contexts, Policy

R, B, X, A, D = 3, 7, 4, 5, 2
INF = math.inf


def tensor(array):
    return torch.as_tensor(np.asarray(array, dtype=float))


def reference(rng, *shape):
    """Log-probabilities, the second action absent."""
    log_probs = tensor(rng.normal(size=shape) * 2)
    log_probs[..., 1] = -INF
    return normalise(log_probs)


def value(log_probs, rewards, ref, kl_coef):
    """J by its definition."""
    p = log_probs.exp()
    terms = torch.where(p > 0, p * (rewards - kl_coef * (log_probs - ref)), 0.0)
    return terms.sum(-1)


# ------------------------------------------------------------------------------------------------------------- Gibbs


@pytest.mark.parametrize("kl_coef", [0.05, 1.0, 20.0])
def test_gibbs_attains_kl_coef_log_z_and_every_gap_is_a_kl(kl_coef):
    rng = np.random.default_rng(0)
    ref, rewards = reference(rng, R, X, A), tensor(rng.normal(size=(R, X, A)))
    best = gibbs(rewards, ref, kl_coef)
    log_z = torch.logsumexp(ref + rewards / kl_coef, -1)
    torch.testing.assert_close(value(best, rewards, ref, kl_coef), kl_coef * log_z, rtol=1e-12, atol=1e-12)
    other = reference(rng, R, X, A)
    kl = torch.where(other.exp() > 0, other.exp() * (other - best), 0.0).sum(-1)
    gap = value(best, rewards, ref, kl_coef) - value(other, rewards, ref, kl_coef)
    torch.testing.assert_close(gap, kl_coef * kl, rtol=1e-10, atol=1e-12)
    assert torch.isneginf(best[..., 1]).all()
    torch.testing.assert_close(best.exp().sum(-1), torch.ones(R, X, dtype=torch.float64), rtol=1e-14, atol=0.0)


def test_rewards_of_absent_actions_do_not_matter():
    ref = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64).log()
    for reward in (INF, -INF, math.nan, 1e300):
        law = gibbs(tensor([1.0, 0.0, reward]), ref, 0.5)
        assert law.exp().tolist() == pytest.approx([special.expit(2), special.expit(-2), 0.0], rel=1e-14)


def test_gibbs_keeps_its_digits_at_extreme_kl_coef():
    ref = tensor([0.25, 0.25, 0.5]).log()
    torch.testing.assert_close(gibbs(tensor([4.0, 0, -4]), ref, 1e-3), tensor([0.0, -4000, -8000 + math.log(2)]))
    torch.testing.assert_close(gibbs(tensor([4.0, 0, -4]), ref, 1e9), ref, atol=1e-8, rtol=0.0)


rows = st.lists(st.floats(-30, 30), min_size=A, max_size=A)


@settings(deadline=None, max_examples=60)
@given(rows, rows, rows, st.floats(0.01, 100), st.permutations(range(A)))
def test_no_policy_beats_gibbs_and_no_law_knows_the_actions_numbers(rewards, logits, other, kl_coef, order):
    rewards, ref, other = tensor(rewards), normalise(tensor(logits)), normalise(tensor(other))
    best = gibbs(rewards, ref, kl_coef)
    rounding = 1e-12 * (30 + kl_coef * 100)
    assert value(best, rewards, ref, kl_coef) >= value(other, rewards, ref, kl_coef) - rounding
    order = list(order)
    laws = [
        lambda r, p: gibbs(r, p, kl_coef),
        argmax,
        lambda r, p: best_of_n(p, r, 3),
        lambda r, p: rejection_sampling(p, r, kl_coef, 4)[0],
        lambda r, p: chi_squared_tilt(r, p, kl_coef),
        lambda r, p: chi_squared_tilt(r, p, kl_coef, with_kl=False),
    ]
    for law in laws:
        np.testing.assert_allclose(law(rewards[order], ref[order]).exp(), law(rewards, ref).exp()[order], atol=1e-9)


# ----------------------------------------------------------------------------------- uniform, greedy, mixtures, draws


def test_uniform_over_what_is_offered():
    assert uniform(tensor([-1.0, -INF, -9.0, -2.0])).exp().tolist() == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3])


def test_greedy_shares_ties_within_rounding_and_ignores_absent_actions():
    ref = tensor([[0.2, 0.2, 0.0, 0.6]] * 3).log()
    scores = tensor([[2.0, 2.0 + 1e-10, 9.0, 1.0], [2.0, 2.0 + 1e-8, 9.0, 1.0], [-1e6, -1e6 - 1e-4, INF, -2e6]])
    expected = [[0.5, 0.5, 0, 0], [0, 1, 0, 0], [0.5, 0.5, 0, 0]]  # 1e-9 of the largest magnitude, 2e6 in the last
    torch.testing.assert_close(argmax(scores, ref).exp(), tensor(expected))


def test_mixtures_are_in_probability_space():
    rng = np.random.default_rng(1)
    laws = [reference(rng, R, A) for _ in range(3)]
    mixed = mixture(laws, [0.5, 0.0, 0.5])
    torch.testing.assert_close(mixed.exp(), (laws[0].exp() + laws[2].exp()) / 2)
    assert torch.isneginf(mixed[:, 1]).all()
    for weights in ([0.5, 0.5], [0.5, 0.6, 0.0], [1.5, -0.5, 0.0], [math.nan, 0.5, 0.5]):
        with pytest.raises(ValueError, match="weights: one per policy, non-negative, summing to 1"):
            mixture(laws, weights)


def test_inverse_cdf_agrees_with_searchsorted():
    rng = np.random.default_rng(2)
    log_probs = reference(rng, R, B, A)
    log_probs[:, :3, 0], log_probs[:, 2:5, -1] = -INF, -INF  # absent at the ends
    log_probs = normalise(log_probs)
    uniforms = rng.random((R, B, 400))
    uniforms[..., 0], uniforms[..., 1] = 0.0, 1 - 2**-53  # the smallest and the largest that NumPy draws
    for i in range(400):
        drawn = inverse_cdf(log_probs, tensor(uniforms[..., i]))
        assert torch.isfinite(log_probs.gather(-1, drawn[..., None])).all()
        for r, b in np.ndindex(R, B):
            cdf = np.cumsum(log_probs[r, b].exp().numpy())
            expected = np.searchsorted(cdf, uniforms[r, b, i] * cdf[-1], side="right")
            assert drawn[r, b] == expected


def test_inverse_cdf_draws_from_the_law():
    log_probs = normalise(tensor([0.3, -INF, 1.0, -1.0, 0.0]))
    uniforms = tensor((np.arange(10_000) + 0.5) / 10_000)  # a grid: exact to one cell per boundary
    drawn = inverse_cdf(log_probs.expand(1, 10_000, A), uniforms[None])
    shares = np.bincount(drawn[0].numpy(), minlength=A) / 10_000
    np.testing.assert_allclose(shares, log_probs.exp(), atol=1.1e-4)


# -------------------------------------------------------------------------------------------------------- best of n


def best_by_enumeration(p, scores, n):
    """All n-tuples; the winner is a uniformly chosen one of the draws that reach the best score."""
    law = np.zeros(len(p))
    for draws in itertools.product(range(len(p)), repeat=n):
        weight = math.prod(p[a] for a in draws)
        if weight > 0:
            top = max(scores[a] for a in draws)
            winners = [a for a in draws if scores[a] >= top - 1e-9]
            for a in winners:
                law[a] += weight / len(winners)
    return law


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_best_and_worst_of_n_against_all_tuples(n):
    p = np.array([0.1, 0.0, 0.35, 0.25, 0.3])
    for scores in ([1.0, 9.0, 2.0, 1.0, -3.0], [0.5, 0.5, 0.5, 0.5 + 1e-11, 0.5], [5, 4, 3, 2, 1.0]):
        with np.errstate(divide="ignore"):
            law = best_of_n(tensor(np.log(p)), tensor(scores), n)
            worst = best_of_n(tensor(np.log(p)), -tensor(scores), n)
        np.testing.assert_allclose(law.exp(), best_by_enumeration(p, scores, n), rtol=1e-12)
        np.testing.assert_allclose(worst.exp(), best_by_enumeration(p, [-s for s in scores], n), rtol=1e-12)
        if n == 1:
            np.testing.assert_allclose(law.exp(), p, rtol=1e-14)


def test_best_of_n_is_batched_and_keeps_rare_actions():
    rng = np.random.default_rng(3)
    log_probs, scores = reference(rng, R, X, A), tensor(rng.integers(0, 3, size=(R, X, A)))
    law = best_of_n(log_probs, scores, 4)
    for r, x in np.ndindex(R, X):
        expected = best_by_enumeration(log_probs[r, x].exp().numpy(), scores[r, x].tolist(), 4)
        np.testing.assert_allclose(law[r, x].exp(), expected, rtol=1e-11)
    rare = Fraction(1, 10**20)  # next to 1 - rare, rounding would make it impossible
    exact = 1 - (1 - rare) ** 7
    law = best_of_n(tensor([math.log(rare), math.log1p(-1e-20)]), tensor([1.0, 0.0]), 7)
    assert float(law[0].exp()) == pytest.approx(float(exact), rel=1e-12)
    law = best_of_n(tensor([math.log(rare), math.log1p(-1e-20)]), tensor([0.0, 1.0]), 3)
    assert float(law[0]) == pytest.approx(3 * math.log(rare), rel=1e-12)
    with pytest.raises(ValueError, match="n: must be at least 1, got 0"):
        best_of_n(log_probs, scores, 0)


# ------------------------------------------------------------------------------------------------ rejection sampling


@pytest.mark.parametrize("budget", [1, 3, 40])
@pytest.mark.parametrize("kl_coef", [0.2, 5.0])
def test_rejection_sampling_against_the_sum_over_proposals(budget, kl_coef):
    rng = np.random.default_rng(4)
    proposal, scores = reference(rng, R, X, A), tensor(rng.normal(size=(R, X, A)))
    law, log_rate = rejection_sampling(proposal, scores, kl_coef, budget)
    for r, x in np.ndindex(R, X):
        p, s = proposal[r, x].exp().numpy(), scores[r, x].numpy()
        accept = np.exp((s - s[p > 0].max()) / kl_coef) * (p > 0)
        rate = p @ accept
        expected = (1 - rate) ** budget * p
        for i in range(budget):
            expected = expected + (1 - rate) ** i * p * accept
        np.testing.assert_allclose(law[r, x].exp(), expected, rtol=1e-12)
        assert log_rate[r, x] == pytest.approx(math.log(rate), rel=1e-10)


def test_an_endless_budget_gives_gibbs_and_an_infinite_kl_coef_the_proposal():
    rng = np.random.default_rng(5)
    proposal, scores = reference(rng, R, A), tensor(rng.normal(size=(R, A)))
    law, log_rate = rejection_sampling(proposal, scores, 0.3, 10**9)
    torch.testing.assert_close(law, gibbs(scores, proposal, 0.3), rtol=1e-10, atol=1e-10)
    offered = torch.where(torch.isneginf(proposal), -INF, scores)
    log_z = torch.logsumexp(proposal + scores / 0.3, -1)  # acceptance: Z / exp(max s / kl_coef)
    torch.testing.assert_close(log_rate, log_z - offered.amax(-1) / 0.3)
    law, log_rate = rejection_sampling(proposal, scores, 1e12, 3)
    torch.testing.assert_close(law, proposal, rtol=0.0, atol=1e-10)
    torch.testing.assert_close(log_rate, torch.zeros(R, dtype=torch.float64), rtol=0.0, atol=1e-10)
    hopeless = rejection_sampling(tensor([math.log(1e-300), math.log1p(-1e-300)]), tensor([9.0, 0.0]), 1e-3, 5)[0]
    assert hopeless.exp()[1] == pytest.approx(1.0)
    assert float(hopeless[0]) == pytest.approx(math.log(6e-300), rel=1e-6)  # 5 proposals and the last draw


def test_the_chain_of_rejections_tilts_step_by_step():
    rng = np.random.default_rng(6)
    ref, scores, kl_coef, steps, budget = reference(rng, R, A), tensor(rng.normal(size=(R, A))), 0.1, 4, 6
    law, rates = multi_step_rejection(ref, scores, kl_coef, steps, budget)
    expected, logged = ref, []
    for _ in range(steps):
        expected, rate = rejection_sampling(expected, scores, steps * kl_coef, budget)
        logged.append(rate)
    torch.testing.assert_close(law, expected)
    torch.testing.assert_close(rates, torch.stack(logged, dim=-1))
    assert rates.shape == (R, steps)
    endless, exact = multi_step_rejection(ref, scores, kl_coef, steps, 10**7)
    torch.testing.assert_close(endless, gibbs(scores, ref, kl_coef), atol=1e-6, rtol=1e-6)
    one_step = multi_step_rejection(ref, scores, kl_coef, 1, budget)[1]
    torch.testing.assert_close(
        exact.sum(-1), one_step[:, 0], rtol=1e-9, atol=1e-9
    )  # the rates multiply to Z / exp(max)
    assert (exact.min(-1).values > one_step[:, 0]).all()  # each step is easier
    for steps, budget in ((0, 5), (2, 0)):
        with pytest.raises(ValueError, match="steps, budget: must be at least 1"):
            multi_step_rejection(ref, scores, kl_coef, steps, budget)


# ----------------------------------------------------------------------------------------------------- chi-squared


def test_lambert_w_of_an_exponential():
    u = np.concatenate([np.linspace(-30, 300, 1001), [-700.0, 0.0, 1.0, 699.0]])
    np.testing.assert_allclose(lambert_w_exp(tensor(u)), special.lambertw(np.exp(u)).real, rtol=1e-13)
    huge = tensor([1e3, 1e8, 1e15])  # exp(u) overflows
    w = lambert_w_exp(huge)
    torch.testing.assert_close(w + w.log(), huge, rtol=1e-14, atol=0.0)  # exp(x) at x = 35: 35 roundings
    assert lambert_w_exp(tensor([-1e4])).item() == 0.0


GENERATORS = {  # f of E_ref f(pi / pi_ref)
    "reverse_kl": lambda w: w * np.log(w) - w + 1,
    "forward_kl": lambda w: -np.log(w) + w - 1,
    "chi_squared": lambda w: (w - 1) ** 2 / 2,
    "chi_squared_kl": lambda w: (w - 1) ** 2 / 2 + w * np.log(w) - w + 1,
    "jensen_shannon": lambda w: w * np.log(w) - (1 + w) * np.log((1 + w) / 2),
}


@pytest.mark.parametrize("divergence", GENERATORS)
@pytest.mark.parametrize("coef", [0.05, 0.7, 10.0])
def test_a_divergence_tilt_is_the_regularised_optimum(divergence, coef):
    rng, f = np.random.default_rng(7), GENERATORS[divergence]
    ref, rewards = reference(rng, X, A), tensor(rng.normal(size=(X, A)))
    law = divergence_tilt(rewards, ref, coef, divergence)
    for x in range(X):
        offered = np.isfinite(ref[x].numpy())
        q, r = ref[x].exp().numpy()[offered], rewards[x].numpy()[offered]

        def loss(p, q=q, r=r):
            return coef * (q * f(np.maximum(p / q, 1e-300))).sum() - p @ r

        peer = optimize.minimize(
            loss,
            q,
            method="SLSQP",
            bounds=[(1e-12, 1)] * len(q),
            constraints=[{"type": "eq", "fun": lambda p: p.sum() - 1}],
            options={"ftol": 1e-15, "maxiter": 1000},
        )
        p = law[x].exp().numpy()[offered]
        np.testing.assert_allclose(p, peer.x, atol=1e-4)  # the objective is flat: 1e-4 moves it by about 1e-8
        assert loss(p) <= peer.fun + 1e-11
        assert p.sum() == pytest.approx(1.0, rel=1e-14)
    assert torch.isneginf(law[:, 1]).all()


def test_names_of_divergence_tilts():
    rng = np.random.default_rng(12)
    ref, rewards = reference(rng, R, X, A), tensor(rng.normal(size=(R, X, A)))
    torch.testing.assert_close(divergence_tilt(rewards, ref, 0.3, "reverse_kl"), gibbs(rewards, ref, 0.3))
    for name, with_kl in (("chi_squared_kl", True), ("chi_squared", False)):
        assert torch.equal(
            divergence_tilt(rewards, ref, 0.3, name), chi_squared_tilt(rewards, ref, 0.3, with_kl=with_kl)
        )
    assert set(DIVERGENCES) == set(GENERATORS)
    with pytest.raises(ValueError, match=r"divergence: must be one of .* got 'alpha'"):
        divergence_tilt(rewards, ref, 0.3, "alpha")


@pytest.mark.parametrize("name", GENERATORS)
def test_derivative_inverse_and_slope_of_a_divergence_belong_together(name):
    f, w = DIVERGENCES[name], torch.logspace(-3, 3, 41, dtype=torch.float64)
    torch.testing.assert_close(f.log_inverse(f.derivative(w)), w.log(), rtol=1e-9, atol=1e-9)
    h = 1e-6 * w
    torch.testing.assert_close(
        1 / f.slope(w), (f.derivative(w + h) - f.derivative(w - h)) / (2 * h), rtol=1e-5, atol=0.0
    )
    v = w.numpy()
    slope = (GENERATORS[name](v + h.numpy()) - GENERATORS[name](v - h.numpy())) / (2 * h.numpy())
    level = slope - f.derivative(w).numpy()  # up to a constant: the multiplier takes it
    np.testing.assert_allclose(level, level[20], atol=1e-6 * np.abs(slope).max())


def test_the_chi_squared_tilt_at_extreme_coefficients():
    ref, rewards = tensor([0.2, 0.3, 0.5]).log(), tensor([1.0, 0.0, -1.0])
    sharp = chi_squared_tilt(rewards, ref, 1e-3)
    # w + log w = (r - lambda) / coef: the log-ratios of the others fall by the reward gap / coef, as under a KL
    assert torch.isfinite(sharp).all()
    assert float(sharp[1] - sharp[2]) == pytest.approx(1000 + math.log(0.3 / 0.5), rel=1e-9)
    for with_kl in (True, False):
        blunt = chi_squared_tilt(rewards, ref, 1e9, with_kl=with_kl)
        torch.testing.assert_close(blunt, ref, atol=1e-8, rtol=0.0)
    assert chi_squared_tilt(rewards, ref, 0.1, with_kl=False).exp().tolist() == pytest.approx([1.0, 0.0, 0.0])


# ---------------------------------------------------------------------------------------------------------- policies


def worlds(rng):
    index = torch.arange(X).expand(R, -1)
    pool = Contexts(index=index, ref_log_probs=reference(rng, R, X, A), features=tensor(rng.normal(size=(R, X, A, D))))
    drawn = Contexts(index=torch.as_tensor(rng.integers(0, X, size=(R, B))), pool=pool)
    fresh = Contexts(ref_log_probs=reference(rng, R, B, A), features=tensor(rng.normal(size=(R, B, A, D))))
    return pool, drawn, fresh


def features_and_reference(contexts, r, b):
    """Of one context, looked up by hand."""
    if contexts.pool is None:
        return contexts.features[r, b].numpy(), contexts.ref_log_probs[r, b].numpy()
    x = int(contexts.index[r, b])
    return contexts.pool.features[r, x].numpy(), contexts.pool.ref_log_probs[r, x].numpy()


def softmax(logits):
    return np.exp(logits - special.logsumexp(logits))


@pytest.mark.parametrize("kind", ["pool", "drawn", "fresh"])
def test_log_linear_and_elliptical_policies_against_loops(kind):
    rng = np.random.default_rng(8)
    contexts = dict(zip(("pool", "drawn", "fresh"), worlds(rng), strict=True))[kind]
    theta, centre, radius = rng.normal(size=(R, D)), rng.normal(size=(R, D)), np.array([0.5, -0.7, 0.0])
    factor = rng.normal(size=(R, D, D))
    inverse = factor @ factor.transpose(0, 2, 1)
    linear = LogLinear(tensor(theta)).log_probs(contexts).exp()
    parts = tensor(theta), tensor(inverse), tensor(radius)
    policies = {False: Elliptical(*parts, 0.4), True: Elliptical(*parts, 0.4, tensor(centre))}
    for r, b in np.ndindex(*contexts.shape):
        phi, ref = features_and_reference(contexts, r, b)
        np.testing.assert_allclose(linear[r, b], softmax(ref + phi @ theta[r]), rtol=1e-12)
        for centred, policy in policies.items():
            u = phi - (centre[r] if centred else np.exp(ref) @ phi)
            width = np.array([math.sqrt(v @ inverse[r] @ v) for v in u])
            expected = softmax(ref + (phi @ theta[r] + radius[r] * width) / 0.4)
            np.testing.assert_allclose(policy.log_probs(contexts).exp()[r, b], expected, rtol=1e-11)


def test_reference_uniform_tabular_and_mixture_policies():
    rng = np.random.default_rng(9)
    pool, drawn, fresh = worlds(rng)
    table = reference(rng, R, X, A)
    mixed, index = Mixture((Tabular(table), Uniform()), (0.25, 0.75)), drawn.index
    assert index is not None
    for r, b in np.ndindex(R, B):
        x = int(index[r, b])
        ref = pool.ref_log_probs[r, x]
        assert torch.equal(Reference().log_probs(drawn)[r, b], ref)
        assert torch.equal(Tabular(table).log_probs(drawn)[r, b], table[r, x])
        expected = 0.25 * table[r, x].exp() + 0.75 * uniform(ref).exp()
        torch.testing.assert_close(mixed.log_probs(drawn)[r, b].exp(), expected)
        assert torch.equal(Reference().log_probs(fresh)[r, b], fresh.ref_log_probs[r, b])
    with pytest.raises(ValueError, match="fresh contexts have no ids"):
        Tabular(table).log_probs(fresh)
    written = tabulate(LogLinear(torch.ones(R, D, dtype=torch.float64)), pool)
    assert isinstance(written, Tabular)
    torch.testing.assert_close(
        written.log_probs(drawn), LogLinear(torch.ones(R, D, dtype=torch.float64)).log_probs(drawn)
    )
    assert tabulate(mixed, None) is mixed
    with pytest.raises(TypeError, match="Uniform has no parameters to fit"):
        Uniform().fit(None)  # pyright: ignore[reportArgumentType]


def test_given_actions_and_samples_follow_the_rows():
    rng = np.random.default_rng(10)
    _, drawn, _ = worlds(rng)
    policy = LogLinear(tensor(rng.normal(size=(R, D))))
    rows = policy.log_probs(drawn)
    actions = torch.as_tensor(rng.integers(0, A, size=(R, B, 2)))
    given_ = policy.log_probs(drawn, actions)
    for r, b, k in np.ndindex(R, B, 2):
        assert given_[r, b, k] == rows[r, b, actions[r, b, k]]
    uniforms = tensor(rng.random((R, B)))
    assert torch.equal(policy.sample(drawn, uniforms), inverse_cdf(rows, uniforms))
    observed = np.zeros(A)
    for _ in range(400):
        observed += np.bincount(policy.sample(drawn, tensor(rng.random((R, B))))[:, 0], minlength=A)
    expected = 400 * rows[:, 0].exp().sum(0).numpy()
    assert stats.chisquare(observed[[0, 2, 3, 4]], expected[[0, 2, 3, 4]]).pvalue > 1e-3
    assert observed[1] == 0


def test_policies_of_chunks_of_replicates_join():
    rng = np.random.default_rng(11)
    _, drawn, _ = worlds(rng)
    theta, table = tensor(rng.normal(size=(R, D))), reference(rng, R, X, A)
    inverse = torch.eye(D, dtype=torch.float64).repeat(R, 1, 1)
    elliptical = Elliptical(theta, inverse, tensor([1.0, 2.0, 3.0]), 0.3)

    def some(policy, rows):
        parts = {"table": table, "theta": theta}
        if isinstance(policy, Elliptical):
            return Elliptical(theta[rows], inverse[rows], policy.radius[rows], 0.3)
        if isinstance(policy, Mixture):
            return Mixture(tuple(some(c, rows) for c in policy.components), policy.weights)
        return type(policy)(*(parts[name][rows] for name in vars(policy)))

    whole: list[Policy] = [
        Reference(),
        Tabular(table),
        LogLinear(theta),
        elliptical,
        Mixture((Tabular(table), Mixture((LogLinear(theta), Reference()), (0.5, 0.5)), elliptical), (0.2, 0.5, 0.3)),
    ]
    for policy in whole:
        assert isinstance(policy, Rows)
        joined = concatenate([some(policy, slice(0, 1)), some(policy, slice(1, R))])
        assert type(joined) is type(policy)
        assert torch.equal(joined.log_probs(drawn), policy.log_probs(drawn))
        assert concatenate([policy]) is policy
