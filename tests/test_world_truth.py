"""The truth that a realised world knows, against brute force: value, optimum, gaps, curvature, coverage;
ragged tables."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from simbandit.draws import Draws
from simbandit.worlds import (
    HARD,
    LinearWorld,
    TableWorld,
    hidden_gem,
    pessimism_failure,
    rare_arms,
    two_arm_exploration,
    worst_context_design,
)

R, X, A, D = 3, 6, 4, 2
rng = np.random.default_rng(0)
OFFERED = rng.random((X, A)) > 0.45
OFFERED[:, 2] |= ~OFFERED.any(1)
RAGGED_REF = rng.random((X, A)) * OFFERED
RAGGED_REF /= RAGGED_REF.sum(1, keepdims=True)
with np.errstate(divide="ignore"):
    RAGGED_LOG = np.log(RAGGED_REF)
REWARDS, FEATURES = rng.normal(size=(X, A)), rng.normal(size=(X, A, D))
WEIGHTS = rng.dirichlet(np.ones(X))
WORLDS = {
    "finite": LinearWorld(X, A, D, reference="anti_aligned", context_law="zipf"),
    "fresh": LinearWorld(None, A, D, reference="softmax", n_evaluation=11),
    "ragged": TableWorld(RAGGED_LOG, REWARDS, FEATURES, WEIGHTS),
}


def realise(world, replicates=R, seed=0) -> Any:
    return world.instance(replicates, Draws(seed, replicates))


def tables(instance):
    """Rewards, reference probabilities and law of the evaluation contexts, as NumPy arrays."""
    evaluation = instance.evaluation
    return (
        instance.rewards(evaluation).numpy(),
        evaluation.ref_log_probs.exp().numpy(),
        evaluation.weights.numpy(),
    )


def brute_value(rewards, ref, law, policy, kl_coef):
    """J by summing over actions with positive probability, in plain Python."""
    values = np.zeros(len(rewards))
    for r, x, a in np.ndindex(rewards.shape):
        if policy[r, x, a] > 0:
            penalty = kl_coef * math.log(policy[r, x, a] / ref[r, x, a])
            values[r] += law[r, x] * policy[r, x, a] * (rewards[r, x, a] - penalty)
    return values


@pytest.mark.parametrize("kl_coef", [0.05, 0.7, 30.0])
@pytest.mark.parametrize("name", WORLDS)
def test_golden_identities(name, kl_coef):
    instance = realise(WORLDS[name])
    rewards, ref, law = tables(instance)
    weights = ref * np.exp(rewards / kl_coef)
    optimum = weights / weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(instance.optimal_log_probs(kl_coef).exp(), optimum, rtol=1e-11, atol=1e-15)
    np.testing.assert_allclose(instance.log_partition(kl_coef), np.log(weights.sum(-1)), rtol=1e-11, atol=1e-13)

    best = brute_value(rewards, ref, law, optimum, kl_coef)
    np.testing.assert_allclose(instance.value(kl_coef), best, rtol=1e-11, atol=1e-12)  # max J = kl_coef log Z

    policy = np.random.default_rng(1).dirichlet(np.ones(ref.shape[-1]), size=ref.shape[:2]) * (ref > 0)
    policy /= policy.sum(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        value = instance.value(kl_coef, torch.from_numpy(np.log(policy)))
    np.testing.assert_allclose(value, brute_value(rewards, ref, law, policy, kl_coef), rtol=1e-11, atol=1e-12)
    divergence = np.where(
        policy > 0, policy * np.log(np.where(policy > 0, policy, 1) / np.where(ref > 0, optimum, 1)), 0
    )
    gap = kl_coef * (law * divergence.sum(-1)).sum(-1)
    # J* - J(pi) = kl_coef KL(pi || pi*); the difference of values of size 30 has lost two digits
    np.testing.assert_allclose(instance.value(kl_coef) - value, gap, rtol=1e-10, atol=1e-12)
    assert (gap > 1e-3).all()


def test_mass_outside_the_reference_is_infinitely_bad():
    instance = realise(WORLDS["ragged"])
    uniform = torch.full((R, X, A), -math.log(A), dtype=torch.float64)
    assert (instance.value(0.5, uniform) == -torch.inf).all()


@pytest.mark.parametrize("name", WORLDS)
def test_gaps_best_rewards_and_curvature(name):
    instance = realise(WORLDS[name])
    rewards, ref, _ = tables(instance)
    gaps, slopes = np.zeros_like(rewards), np.full(R, np.inf)
    for r, x in np.ndindex(rewards.shape[:2]):
        offered = np.flatnonzero(ref[r, x])
        best = max(rewards[r, x, a] for a in offered)
        assert instance.best_rewards[r, x] == best
        for a in offered:
            gaps[r, x, a] = best - rewards[r, x, a]
            for b in offered:
                probability = 1 / (1 + math.exp(rewards[r, x, b] - rewards[r, x, a]))
                slopes[r] = min(slopes[r], probability * (1 - probability))
    np.testing.assert_array_equal(instance.gaps(), gaps)
    np.testing.assert_allclose(instance.curvature(), slopes, rtol=1e-12)


@pytest.mark.parametrize("name", WORLDS)
def test_coverage_against_its_definitions(name):
    kl_coef = 0.4
    instance = realise(WORLDS[name])
    rewards, ref, law = tables(instance)
    features = instance.evaluation.features.numpy()
    coverage = instance.coverage(kl_coef)
    directions = np.random.default_rng(2).normal(size=(400, D))
    for r in range(R):
        tilted = ref[r] * np.exp(rewards[r] / kl_coef)
        optimum = tilted / tilted.sum(-1, keepdims=True)
        ratio = np.divide(optimum, ref[r], out=np.zeros_like(optimum), where=ref[r] > 0)
        np.testing.assert_allclose(coverage.largest_ratio[r], ratio.max(), rtol=1e-11)
        np.testing.assert_allclose(coverage.mean_ratio[r], law[r] @ (optimum * ratio).sum(-1), rtol=1e-11)
        mean = np.einsum("xa,xad->xd", ref[r], features[r])
        for vectors, measured in (
            (features[r], coverage.linear),
            (features[r] - mean[:, None], coverage.centred),
        ):
            second = np.einsum("x,xa,xad,xae->de", law[r], ref[r], vectors, vectors)
            leverage = np.einsum("xad,de,xae->xa", vectors, np.linalg.pinv(second), vectors)[ref[r] > 0]
            np.testing.assert_allclose(measured[r], leverage.max(), rtol=1e-10)
            # the definition: a supremum over parameters of squared error here over mean squared error there
            errors = (vectors[ref[r] > 0] @ directions.T) ** 2
            ratios = (errors / np.einsum("id,de,ie->i", directions, second, directions)).max()
            assert 0.99 * leverage.max() < ratios <= leverage.max() * (1 + 1e-10)


def test_linear_coverage_of_shared_tables_is_that_of_copies():
    fixed = realise(LinearWorld(X, A, D, reference="softmax", fixed=True)).coverage(0.3)
    alone: Any = LinearWorld(X, A, D, reference="softmax", fixed=True).instance(1, Draws(0, [5])).coverage(0.3)
    for many, one in zip(fixed, alone, strict=True):
        assert many.shape == (R,)
        np.testing.assert_allclose(many, np.full(R, one[0]), rtol=1e-12)


def test_linear_coverage_resolves_rare_actions_and_says_when_it_cannot():
    for rare, expected in ((1e-20, 1e20), (math.exp(-1250), math.inf)):
        log_rare = math.log(rare) if rare else -1250.0
        world = TableWorld([[log_rare, math.log1p(-rare)]], [[1.0, 0.0]], np.eye(2)[None])
        assert realise(world).coverage(1.0).linear[0] == pytest.approx(expected, rel=1e-9)
    # the same direction, covered by a common action: finite however rare the copy is, and no full rank is needed
    parallel = TableWorld([[-1250.0, 0.0]], [[1.0, 0.0]], [[[2.0, 0.0, 2.0], [1.0, 0.0, 1.0]]])
    assert realise(parallel).coverage(1.0).linear[0] == pytest.approx(4.0, rel=1e-12)


def test_contexts_that_never_come_do_not_count_for_coverage():
    far = np.concatenate([FEATURES[:2], 100 * FEATURES[2:3]])
    ref = np.full((3, A), -np.log(A))
    rewards = np.concatenate([REWARDS[:2], 10 * np.eye(1, A)])  # the optimum leaves the reference most where x = 2
    with_it = realise(TableWorld(ref, rewards, far, [0.3, 0.7, 0.0])).coverage(0.5)
    without = realise(TableWorld(ref[:2], rewards[:2], far[:2], [0.3, 0.7])).coverage(0.5)
    for left, right in zip(with_it, without, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-12)


def test_what_stands_at_absent_actions_never_matters():
    planted_rewards = np.where(OFFERED, REWARDS, np.nan)
    planted_features = np.where(OFFERED[..., None], FEATURES, np.inf)
    planted = TableWorld(RAGGED_LOG, planted_rewards, planted_features, WEIGHTS)
    absurd = TableWorld(RAGGED_LOG, np.where(OFFERED, REWARDS, 1e300), FEATURES, WEIGHTS)
    assert (~OFFERED).sum() >= 4
    assert planted == WORLDS["ragged"] == absurd
    instance = realise(planted)
    absent = instance.evaluation.ref_log_probs == -torch.inf
    np.testing.assert_array_equal(absent[1], ~OFFERED)
    assert (instance.rewards(instance.evaluation)[absent] == 0).all()
    assert (instance.evaluation.features[absent] == 0).all()
    assert instance.reward_range == (REWARDS[OFFERED].min(), REWARDS[OFFERED].max())
    # each context alone, without its absent actions, has the same truth
    for x in range(X):
        kept = OFFERED[x]
        small = realise(TableWorld(RAGGED_LOG[x : x + 1, kept], REWARDS[x : x + 1, kept]))
        np.testing.assert_allclose(small.log_partition(0.2)[0, 0], instance.log_partition(0.2)[0, x], rtol=1e-13)
        np.testing.assert_allclose(small.gaps()[0, 0], instance.gaps()[0, x, kept], rtol=1e-13)


@pytest.mark.parametrize("kl_coef", [0.0, -1.0, math.nan, math.inf])
def test_kl_coef_must_be_positive(kl_coef):
    instance = realise(WORLDS["finite"])
    for truth in (instance.value, instance.log_partition, instance.optimal_log_probs, instance.coverage):
        with pytest.raises(ValueError, match="kl_coef: must be > 0"):
            truth(kl_coef)


def test_every_hard_instance_is_listed_and_realises():
    arguments = {"two_arm_exploration": (0.05,)}
    for name, function in HARD.items():
        world = function(*arguments.get(name, ()))
        assert function.__name__ == name
        assert function.__doc__
        instance = realise(world)
        assert instance.evaluation.has_features
        assert (instance.value(0.1) > instance.value(0.1, instance.evaluation.ref_log_probs)).all()
    assert len(HARD) == 5


def test_pessimism_failure_has_the_published_rewards():
    instance = realise(pessimism_failure())
    np.testing.assert_allclose(instance.reward_table[1], [[-0.9, -1.0, 0.0, 0.1]], atol=1e-15)
    np.testing.assert_allclose(instance.gaps()[2], [[1.0, 1.1, 0.1, 0.0]], atol=1e-15)


def test_hidden_gem_gap_before_any_data():
    instance = realise(hidden_gem(), replicates=200)
    assert (instance.reward_table[:, 0, -1] == 1).all()
    assert instance.reward_table[..., :-1].max() < 0.5
    np.testing.assert_allclose(instance.evaluation.ref_log_probs[0, 0].exp()[[0, -1]], [0.999 / 11, 1e-3], rtol=1e-12)
    gap = instance.value(0.1) - instance.value(0.1, instance.evaluation.ref_log_probs)
    # .148 over 20 seeds when it was designed; the spread between replicates is .03, so 20 of them err by .007
    assert gap.mean() == pytest.approx(0.148, abs=0.02)


def test_two_arm_exploration_hides_the_better_arm():
    for kl_coef in (0.05, 1e-4):  # the second underflows as a probability and must survive as a logarithm
        instance = realise(two_arm_exploration(kl_coef))
        assert instance.evaluation.ref_log_probs[0, 0, 0] == pytest.approx(-0.125 / kl_coef, rel=1e-12)
        reference = instance.value(kl_coef, instance.evaluation.ref_log_probs)
        # pi* pays kl_coef log(1 / ref) = c for the better arm: J* is about 1 - c, and staying costs more than 1/8
        np.testing.assert_allclose(instance.value(kl_coef), 1 - 0.125, atol=1e-3)
        assert (instance.value(kl_coef) - reference > 0.125).all()


def test_worst_context_design_starves_the_special_contexts():
    instance = realise(worst_context_design())
    features = instance.pool.features[0, :, 0]
    assert (features[:193].argmax(-1) == 0).all()
    assert features[193:].argmax(-1).tolist() == [1, 2, 3, 4, 5, 6, 7]
    np.testing.assert_allclose(instance.gaps().amax(-1), np.full((R, 200), 3 / np.sqrt(8)), rtol=1e-12)
    signs = [tuple(row.sign().tolist()) for row in instance.theta]
    assert len(set(signs)) == R


def test_rare_arms_share_what_the_good_arm_leaves():
    instance = realise(rare_arms())
    np.testing.assert_allclose(instance.evaluation.ref_log_probs[0, 0].exp(), [0.5] + [0.01] * 50, rtol=1e-12)
    assert instance.reward_table[0, 0].tolist() == [0.5] + [0.0] * 50


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: hidden_gem(1), "n_actions: must be an integer >= 2, got 1"),
        (
            lambda: hidden_gem(gem_probability=0.0),
            "gem_probability: must be a finite number > 0 and <= 1, got 0.0",
        ),
        (lambda: hidden_gem(gem_probability=1.0), "gem_probability: must be < 1"),
        (lambda: two_arm_exploration(0.0), "kl_coef: must be a finite number > 0, got 0.0"),
        (lambda: two_arm_exploration(0.1, c=-1.0), "c: must be a finite number > 0, got -1.0"),
        (lambda: worst_context_design(n_contexts=3), "n_contexts: must be >= dim=8"),
        (lambda: rare_arms(0), "n_rare: must be an integer >= 1, got 0"),
        (lambda: rare_arms(good_probability=1), "good_probability: must be < 1"),
    ],
)
def test_hard_instances_refuse(build, message):
    with pytest.raises(ValueError, match=message):
        build()
