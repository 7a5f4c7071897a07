"""Laws and schedules that a regret curve would not show: exploration, EXP4's weights, RUCB's bounds."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import beta

from simbandit import algorithms
from simbandit.algorithms.bandits import norm_bound
from simbandit.algorithms.inverse_gap import InverseGap
from simbandit.draws import Draws
from simbandit.oracles import NoisyReward
from simbandit.policies import Mixture, Tabular
from simbandit.simulate import Problem, simulate
from simbandit.types import Contexts
from simbandit.worlds import LinearWorld
from tests.test_bandits import FRESH, Recorder, simulate_setting
from tests.test_dueling import setting_of

DRAWS = Draws(0, 2)


def played(algorithm: Any, rounds: int, replicates: int, world: Any = FRESH) -> tuple[np.ndarray, ...]:
    """features (T, R, A, d), actions (T, R), rewards (T, R)"""
    recorder: Any = Recorder(algorithm)
    problem = Problem(world, NoisyReward(0.5), 1.0)
    simulate(problem, recorder, rounds=rounds, replicates=replicates, metrics=["reward_regret"], record=[0])
    stacked = [np.stack([np.asarray(r[i]) for r in recorder.rounds]) for i in range(3)]
    return stacked[0], stacked[1][..., 0], stacked[2]


def test_explore_then_commit_is_uniform_then_greedy_in_what_it_learnt_there():
    T, R, switch = 60, 12, 20
    phi, actions, rewards = played(algorithms.create("explore_then_commit", exploration=switch / T), T, R)
    counts = np.bincount(actions[:switch].ravel(), minlength=7)
    assert abs(counts - switch * R / 7).max() < 5 * np.sqrt(switch * R / 7)
    for r in range(R):
        seen = np.take_along_axis(phi[:switch, r], actions[:switch, r, None, None], 1)[:, 0]
        theta = np.linalg.solve(np.eye(4) + seen.T @ seen, seen.T @ rewards[:switch, r])
        assert ((phi[switch:, r] @ theta).argmax(-1) == actions[switch:, r]).all()
    default: Any = algorithms.create("explore_then_commit")
    assert default._switch(simulate_setting(FRESH, rounds=1000)) == 100  # T^(2/3), not 101 by rounding


def test_explore_then_commit_without_exploration_commits_to_its_first_observation():
    algorithm: Any = algorithms.create("explore_then_commit", exploration=0.0)
    state = algorithm.init(simulate_setting(FRESH))
    contexts, actions, rewards = batch_of(5)
    for t in range(2):
        state, _ = algorithm.update(state, contexts, actions, rewards, DRAWS.at(t))
    assert state.model.n == 5


def batch_of(size: int, seed: int = 0) -> tuple[Contexts, torch.Tensor, torch.Tensor]:
    """Fresh contexts of 7 actions and 4 features, actions (2, size, 1), rewards (2, size)"""
    rng = np.random.default_rng(seed)
    features, ref = torch.from_numpy(rng.normal(size=(2, size, 7, 4))), torch.zeros(2, size, 7).double()
    actions = torch.from_numpy(rng.integers(7, size=(2, size, 1)))
    return Contexts(features=features, ref_log_probs=ref), actions, torch.from_numpy(rng.normal(size=(2, size)))


def ridge_of(contexts: Contexts, actions: torch.Tensor, rewards: torch.Tensor, ridge: float) -> tuple[Any, Any]:
    """V (R, d, d) and theta (R, d) of ridge regression."""
    x = np.take_along_axis(contexts.features.numpy(), actions.numpy()[..., None], 2)[:, :, 0]
    V = ridge * np.eye(4) + np.einsum("rbd,rbe->rde", x, x)
    return V, np.linalg.solve(V, np.einsum("rbd,rb->rd", x, rewards.numpy())[..., None])[..., 0]


def test_linucb_learns_from_a_whole_batch_and_its_radius_is_that_of_what_it_has_learnt():
    """noise sqrt(log(det V / ridge^d) + 2 log(1 / delta)) + sqrt(ridge) S, with the determinant after the batch."""
    algorithm: Any = algorithms.create("linucb", radius="determinant", noise_std=0.5, ridge=0.6)
    data = batch_of(9)
    state, info = algorithm.update(algorithm.init(simulate_setting(FRESH)), *data, DRAWS.at(0))
    V, theta = ridge_of(*data, 0.6)
    np.testing.assert_allclose(info.theta, theta, rtol=1e-9)
    root = np.sqrt(np.linalg.slogdet(V / 0.6)[1] + 2 * np.log(1 / 0.05))
    np.testing.assert_allclose(state.radius, 0.5 * root + np.sqrt(0.6), rtol=1e-9)


def test_the_norms_bound_is_the_worlds_else_the_largest_reward_in_size():
    setting = simulate_setting(FRESH, reward_range=(-3.0, 2.0), theta_bound=None)
    assert norm_bound(setting) == 3.0
    assert norm_bound(simulate_setting(FRESH, reward_range=(-3.0, 2.0), theta_bound=1.5)) == 1.5


def test_inverse_gap_weights_share_the_rest_among_exact_ties_only():
    contexts = Contexts(
        features=torch.tensor([[[[1.0], [0.995], [1.0], [0.0]]]], dtype=torch.float64),
        ref_log_probs=torch.zeros(1, 1, 4).double(),
    )
    law = InverseGap(torch.ones(1, 1).double(), torch.tensor([6.0]).double()).log_probs(contexts).exp()
    near, far = 1 / (4 + 6 * 0.005), 1 / (4 + 6)
    rest = (1 - near - far) / 2
    np.testing.assert_allclose(law[0, 0], [rest, near, rest, far], rtol=1e-12)


def test_squarecbs_next_law_is_that_of_all_it_has_seen():
    """The regression with the last batch in it; gamma_t = 10 sqrt(t) with t the next interaction's number, and over the
    whole run of 100 rounds of 5 interactions in the theory's."""
    data, wide = batch_of(5), simulate_setting(FRESH, reward_range=(-3.0, 5.0), batch_size=5)
    algorithm: Any = algorithms.create("squarecb", ridge=0.6)
    state, _ = algorithm.update(algorithm.init(wide), *data, DRAWS.at(0))
    np.testing.assert_allclose(state.policy.theta, ridge_of(*data, 0.6)[1], rtol=1e-9)
    np.testing.assert_allclose(state.policy.gamma, 10 * np.sqrt(6) / 8)
    theory: Any = algorithms.create("squarecb", gamma="theory").init(wide)
    expected = np.sqrt(7 * 500 / (4 * np.log(1 + 500 / 4) + np.log(2 / 0.05)))
    np.testing.assert_allclose(theory.policy.gamma, expected / 8)


def test_falcons_epochs_end_with_the_batch_that_reaches_a_power_of_two():
    """Batches of 5: epochs end at 5, 10, 20, 35 interactions (2, 8, 16, 32 are reached there), with the regression of
    all data so far, which later data leave alone."""
    algorithm: Any = algorithms.create("falcon", gamma=2.0, ridge=0.6)
    state, laws = algorithm.init(simulate_setting(FRESH, reward_range=(0.0, 2.0), batch_size=5)), []
    batches = [batch_of(5, seed) for seed in range(8)]
    for t, data in enumerate(batches):
        state, _ = algorithm.update(state, *data, DRAWS.at(t))
        laws.append(state.policy)
    renewed = [5 * (t + 1) for t in range(8) if t == 0 or laws[t] is not laws[t - 1]]
    assert renewed == [5, 10, 20, 35]
    np.testing.assert_allclose(laws[-1].gamma, 2 * np.sqrt(35) / 2)
    x = [np.take_along_axis(c.features.numpy(), a.numpy()[..., None], 2)[:, :, 0] for c, a, _ in batches[:7]]
    phi, r = np.concatenate(x, 1), np.concatenate([r.numpy() for _, _, r in batches[:7]], 1)
    V = 0.6 * np.eye(4) + np.einsum("rbd,rbe->rde", phi, phi)
    theta = np.linalg.solve(V, np.einsum("rbd,rb->rd", phi, r)[..., None])[..., 0]
    np.testing.assert_allclose(laws[-1].theta, theta, rtol=1e-9)


def test_epsilon_greedy_explores_as_often_as_said():
    phi, actions, rewards = played(algorithms.create("epsilon_greedy", epsilon=0.3), 40, 50)
    explored = 0
    for r in range(50):
        V, b = np.eye(4), np.zeros(4)
        for t in range(40):
            theta = np.linalg.solve(V, b)
            explored += t > 0 and int((phi[t, r] @ theta).argmax()) != actions[t, r]
            x = phi[t, r, actions[t, r]]
            V, b = V + np.outer(x, x), b + rewards[t, r] * x
    share = 0.3 * 6 / 7  # a uniform action is the greedy one every seventh time
    n = 39 * 50
    assert abs(explored / n - share) < 4 * np.sqrt(share * (1 - share) / n)
    decaying: Any = algorithms.create("epsilon_greedy", epsilon=2.0, decay="cube_root")
    state = decaying.init(simulate_setting(FRESH))
    assert decaying._rate(state) == 1.0
    state.model.n = 999
    assert decaying._rate(state) == pytest.approx(0.2)
    law = decaying.policy(state)
    assert isinstance(law, Mixture)
    phi1 = Contexts(features=torch.eye(7, 4).double().expand(2, 1, 7, 4), ref_log_probs=torch.zeros(2, 1, 7).double())
    np.testing.assert_allclose(law.log_probs(phi1).exp().min(), 0.8 / 7 + 0.2 / 7, rtol=1e-9)  # theta 0: all are tied


def test_exp4s_weights_are_the_references():
    """Importance-weighted losses of two given policies and a range that is not [0, 1]."""
    setting = simulate_setting(LinearWorld(3, 4, 2, theta_norm=1.0), reward_range=(-1.0, 3.0))
    rng = np.random.default_rng(0)
    laws = rng.dirichlet(np.ones(4), size=(2, 3))  # (E, X, A)
    experts = tuple(Tabular(torch.from_numpy(np.log(law)).expand(2, 3, 4)) for law in laws)
    algorithm: Any = algorithms.create("exp4", policies=experts, step_size=0.3, exploration=0.1)
    state, losses = algorithm.init(setting), np.zeros((2, 2))
    for t in range(25):
        x, a = rng.integers(3, size=2), rng.integers(4, size=2)
        r = rng.uniform(-1, 3, size=2)
        weights = np.exp(-0.3 * losses)
        weights /= weights.sum(1, keepdims=True)
        p = 0.9 * np.einsum("re,era->ra", weights, laws[:, x]) + 0.1 / 4
        contexts = Contexts(index=torch.from_numpy(x)[:, None], pool=setting.contexts)
        np.testing.assert_allclose(algorithm.policy(state).log_probs(contexts).exp()[:, 0], p, rtol=1e-12)
        for k in range(2):
            losses[k] += laws[:, x[k], a[k]] / p[k, a[k]] * (1 - (r[k] + 1) / 4)
        update = torch.from_numpy(a)[:, None, None], torch.from_numpy(r)[:, None]
        state, _ = algorithm.update(state, contexts, *update, DRAWS.at(t))
    default: Any = algorithms.create("exp4").init(setting)
    assert default.policy.log_weights.shape == (2, 2 * 2 + 2)
    slow: Any = algorithms.create("exp4", policies=experts)  # sqrt(2 log E / (A T)) with E = 2, A = 4, T = 100
    x, a = torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1, 1, dtype=torch.int64)
    after, _ = slow.update(
        slow.init(setting), Contexts(index=x, pool=setting.contexts), a, torch.zeros(2, 1).double(), DRAWS.at(0)
    )
    odds = (after.policy.log_weights[:, 0] - after.policy.log_weights[:, 1]).numpy()
    loss = 0.75 * (laws[0, 0, 1] - laws[1, 0, 1]) / laws[:, 0, 1].mean()
    np.testing.assert_allclose(odds, -np.sqrt(2 * np.log(2) / 400) * loss, rtol=1e-9)


def test_exp4s_own_policies_are_best_and_worst_of_every_feature_the_reference_and_the_uniform():
    """In a finite world and in fresh contexts, one of which lacks an action; a tie is shared."""
    phi = np.array(
        [[[0.0, 2.0], [1.0, -1.0], [1.0, 0.5], [9.0, 9.0]], [[0.3, 0.1], [0.2, 0.4], [0.1, 0.2], [0.0, 0.3]]]
    )
    ref = np.array([[0.5, 0.3, 0.2, 0.0], [0.1, 0.2, 0.3, 0.4]])
    expected = np.array(
        [
            [[0, 0.5, 0.5, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], ref[0], [1 / 3, 1 / 3, 1 / 3, 0]],
            [[1, 0, 0, 0], [0, 0, 0, 1], [0, 1, 0, 0], [1, 0, 0, 0], ref[1], [0.25] * 4],
        ]
    )
    held: dict[str, Any] = {"features": torch.from_numpy(phi)[None].expand(3, -1, -1, -1)}
    held["ref_log_probs"] = torch.from_numpy(ref).log()[None].expand(3, -1, -1)
    pool, fresh = Contexts(index=torch.arange(2).expand(3, 2), **held), Contexts(**held)
    weights = np.random.default_rng(0).dirichlet(np.ones(6), size=3)
    for contexts, finite in (
        (fresh, None),
        (pool, pool),
        (Contexts(index=torch.tensor([[1, 0]] * 3), pool=pool), pool),
    ):
        made: Any = algorithms.create("exp4", exploration=0.2)
        setting = simulate_setting(LinearWorld(2, 4, 2), replicates=3, contexts=finite, n_actions=4)
        state = made.init(setting)
        law = replace(made.policy(state), log_weights=torch.from_numpy(weights).log()).log_probs(contexts).exp()
        even = (ref > 0) / (ref > 0).sum(1, keepdims=True)
        wanted = 0.8 * np.einsum("re,xea->rxa", weights, expected) + 0.2 * even
        order = [0, 1] if contexts.index is None else contexts.index[0].tolist()
        np.testing.assert_allclose(law, wanted[:, order], rtol=1e-12)


def test_exp4_adds_up_the_losses_of_a_batch_and_ignores_actions_that_none_of_its_policies_plays():
    """Those can only come from logs; default step sqrt(2 log E / (A T)) with T = 100 rounds of 3."""
    setting = simulate_setting(LinearWorld(3, 4, 2, theta_norm=1.0), reward_range=(0.0, 1.0), batch_size=3)
    laws = np.array([[0.2, 0.8, 0.0, 0.0], [0.6, 0.3, 0.1, 0.0]])
    laws = np.stack([laws, laws[:, [1, 0, 2, 3]], laws], axis=1)  # (E, X, A)
    with np.errstate(divide="ignore"):
        experts = tuple(Tabular(torch.from_numpy(np.log(law)).expand(2, 3, 4)) for law in laws)
    algorithm: Any = algorithms.create("exp4", policies=experts)
    a, r = np.array([[0, 1, 3], [2, 0, 0]]), np.array([[0.5, 0.25, 0.0], [1.0, 0.0, 0.75]])
    index = torch.tensor([[0, 2, 1], [1, 1, 0]])
    contexts = Contexts(index=index, pool=setting.contexts)
    state = algorithm.init(setting)
    algorithm.select(state, Contexts(index=index.flip(0), pool=setting.contexts), DRAWS.at(0))  # others
    state, _ = algorithm.update(state, contexts, torch.from_numpy(a)[..., None], torch.from_numpy(r), DRAWS.at(0))
    mean = np.where(laws.mean(0) > 0, laws.mean(0), 1.0)
    losses = np.einsum("erb,rb->re", (laws / mean)[:, index.numpy(), a], 1 - r)
    odds = state.policy.log_weights[:, 0] - state.policy.log_weights[:, 1]
    np.testing.assert_allclose(odds, -np.sqrt(2 * np.log(2) / 1200) * (losses[:, 0] - losses[:, 1]), rtol=1e-9)


def test_glm_ucb_fits_all_that_it_has_seen_in_fresh_contexts_too():
    """Two batches of 5 with rewards in [0, 1]: the ridged quasi-likelihood of all 10, within the world's ball, the
    matrix, and the theory's radius at t = 10."""
    batches = [batch_of(5, seed) for seed in (0, 1)]
    batches = [(c, a, torch.sigmoid(2 * r)) for c, a, r in batches]
    algorithm: Any = algorithms.create("glm_ucb", ridge=0.7, refit_growth=0.0)
    found: list[np.ndarray] = []
    state: Any = None
    for bound in (50.0, 0.3):
        state = algorithm.init(simulate_setting(FRESH, theta_bound=bound))
        for t, data in enumerate(batches):
            state, _ = algorithm.update(state, *data, DRAWS.at(t))
        found.append(state.theta.numpy())
    x = [np.take_along_axis(c.features.numpy(), a.numpy()[..., None], 2)[:, :, 0] for c, a, _ in batches]
    phi, r = np.concatenate(x, 1), np.concatenate([r.numpy() for _, _, r in batches], 1)
    p = 1 / (1 + np.exp(-np.einsum("rbd,rd->rb", phi, found[0])))
    np.testing.assert_allclose(np.einsum("rb,rbd->rd", r - p, phi), 0.7 * found[0], atol=1e-7)
    assert np.linalg.norm(found[0], axis=1).min() > 0.4
    np.testing.assert_allclose(np.linalg.norm(found[1], axis=1), 0.3, rtol=1e-6)
    V = 0.7 * np.eye(4) + np.einsum("rbd,rbe->rde", phi, phi)
    np.testing.assert_allclose(state.inverse, np.linalg.inv(V), rtol=1e-9, atol=1e-12)
    theory: Any = algorithms.create("glm_ucb", radius="theory", ridge=0.7, refit_growth=9.0)
    state = theory.init(simulate_setting(FRESH, theta_bound=0.3))
    for t, data in enumerate(batches):  # no refit after the second: the radius grows all the same
        state, _ = theory.update(state, *data, DRAWS.at(t))
    noise = 0.5 * np.sqrt(4 * np.log(1 + 10 / (4 * 0.7)) + 2 * np.log(20))
    expected = 0.25 * (2 + 2 * np.cosh(0.3)) * (noise + np.sqrt(0.7) * 0.3)
    assert state.radius == pytest.approx(expected, rel=1e-9)


def test_rucbs_champion_and_rival_are_those_of_its_bounds():
    algorithm: Any = algorithms.create("rucb", alpha=0.6)
    setting = setting_of(LinearWorld(1, 5, 3))
    state, rng = algorithm.init(setting), np.random.default_rng(1)
    contexts = Contexts(index=torch.zeros(2, 1, dtype=torch.int64), pool=setting.contexts)
    wins, champions = np.zeros((2, 5, 5)), set()
    for t in range(200):
        pair = algorithm.select(state, contexts, DRAWS.at(t))[:, 0].numpy()
        answers = torch.zeros(2, 1).double()
        for r in range(2):
            n = wins[r] + wins[r].T
            with np.errstate(divide="ignore", invalid="ignore"):
                upper = wins[r] / n + np.sqrt(0.6 * np.log(n.sum() / 2 + 1) / n)
            upper = np.where(n > 0, upper, 1.0)
            np.fill_diagonal(upper, 0.5)
            possible = np.flatnonzero((upper >= 0.5).all(1))
            assert pair[r, 0] in (possible if len(possible) else range(5))
            against = upper[:, pair[r, 0]].copy()
            if (np.delete(against, pair[r, 0]) >= 0.5).any():  # the champion itself never wins a tie
                against[pair[r, 0]] = -1.0
            assert against[pair[r, 1]] == pytest.approx(against.max())
            champions.add(int(pair[r, 0]))
            first = bool(rng.random() < 1 / (1 + np.exp(pair[r, 0] - pair[r, 1])))  # the last action is the best
            winner, loser = pair[r] if first else pair[r, ::-1]
            wins[r, winner, loser] += winner != loser
            answers[r, 0] = float(first)
        state, _ = algorithm.update(state, contexts, torch.from_numpy(pair)[:, None], answers, DRAWS.at(t))
    assert len(champions) > 2


def test_rucbs_champion_wins_no_tie_but_all_else():
    """Bounds of exactly 1/2 against the champion are as large as its own: the rival is one of them, never the champion.
    A hair below 1/2 it is the champion itself."""
    algorithm: Any = algorithms.create("rucb", alpha=0.6)
    world, draws = LinearWorld(1, 3, 2), Draws(0, 40)
    setting = setting_of(world)
    contexts = Contexts(index=torch.zeros(40, 1, dtype=torch.int64), pool=world.instance(40, draws).pool)
    count = 50.0 * (1 - torch.eye(3).double())
    slack = float(np.sqrt(0.6 * np.log(150 + 1) / 50))
    for short, rivals in ((0.0, {1, 2}), (1e-6, {0})):
        state = algorithm.init(setting)
        loss = torch.tensor(50 * (0.5 - slack - short)).double()
        wins = torch.zeros(3, 3).double()
        wins[1, 0] = wins[2, 0] = loss  # 1 and 2 may just beat 0, or just not; 0 surely may beat them
        wins[0, 1] = wins[0, 2] = 50 - loss
        wins[1, 2], wins[2, 1] = 25.0, 25.0
        state.wins, state.count = (x.expand(40, 1, 3, 3).clone() for x in (wins, count))
        pair = algorithm.select(state, contexts, draws.at(0))[:, 0]
        against = pair[pair[:, 0] == 0, 1]
        assert len(against) > 8
        assert set(against.tolist()) == rivals


def test_double_thompson_keeps_to_the_hopeful_and_to_rivals_that_may_win():
    """First: among the most matches that may be won, with Beta draws deciding; second: lower bound at most 1/2. Both
    marginals of the draws are the posterior's."""
    algorithm: Any = algorithms.create("double_thompson", alpha=0.6)
    setting = setting_of(LinearWorld(1, 4, 3), replicates=4000)
    state, rng = algorithm.init(setting), np.random.default_rng(2)
    wins = rng.integers(0, 9, size=(4, 4)).astype(float)
    for i in range(4):  # a cycle: every action is surely beaten by the one before it
        wins[i, (i + 1) % 4], wins[(i + 1) % 4, i] = 60.0, 1.0
    np.fill_diagonal(wins, 0)
    state.wins = torch.from_numpy(wins).expand(4000, 1, 4, 4).clone()
    state.count = state.wins + state.wins.mT
    index = torch.zeros(4000, 1, dtype=torch.int64)
    pool = LinearWorld(1, 4, 3).instance(4000, Draws(0, 4000)).pool
    pairs = algorithm.select(state, Contexts(index=index, pool=pool), Draws(0, 4000).at(0))[:, 0].numpy()
    n = wins + wins.T
    slack = np.sqrt(0.6 * np.log(n.sum() / 2 + 1) / np.maximum(n, 1))
    with np.errstate(invalid="ignore"):
        share = wins / n
    hopeful = ((share + slack > 0.5) & ~np.eye(4, dtype=bool)).sum(1)
    candidates = np.flatnonzero(hopeful == hopeful.max())
    assert set(pairs[:, 0]) <= set(candidates.tolist())
    for first in set(pairs[:, 0]):
        rivals = pairs[pairs[:, 0] == first, 1]
        allowed = [j for j in range(4) if j == first or share[j, first] - slack[j, first] <= 0.5]
        assert len(allowed) == 3
        assert set(rivals) <= set(allowed)
        draws = rng.beta(wins[:, first, None] + 1, wins[first, :, None] + 1, size=(4, 20_000))
        draws[first] = 0.5
        draws[[j for j in range(4) if j not in allowed]] = -1
        expected = np.bincount(draws.argmax(0), minlength=4) / 20_000
        seen = np.bincount(rivals, minlength=4) / len(rivals)
        assert abs(seen - expected).max() < 5 * np.sqrt(0.25 / len(rivals))


@pytest.mark.parametrize("name", ["rucb", "double_thompson"])
def test_tables_count_every_context_apart_and_labels_as_they_are(name):
    """Soft labels too; an action against itself says nothing, twice the same pair in a batch counts twice."""
    algorithm: Any = algorithms.create(name)
    setting = setting_of(LinearWorld(3, 4, 2))
    state, rng = algorithm.init(setting), np.random.default_rng(4)
    index, actions = rng.integers(3, size=(2, 60)), rng.integers(4, size=(2, 60, 2))
    labels = rng.choice([0.0, 1.0, 0.3], size=(2, 60))
    contexts = Contexts(index=torch.from_numpy(index), pool=setting.contexts)
    state, _ = algorithm.update(state, contexts, torch.from_numpy(actions), torch.from_numpy(labels), DRAWS.at(0))
    wins, count = np.zeros((2, 3, 4, 4)), np.zeros((2, 3, 4, 4))
    for r, b in np.ndindex(2, 60):
        (i, j), x, y = actions[r, b], index[r, b], labels[r, b]
        if i != j:
            for first, second, label in ((i, j, y), (j, i, 1 - y)):
                wins[r, x, first, second] += label
                count[r, x, first, second] += 1
    np.testing.assert_allclose(state.wins, wins, atol=1e-12)
    np.testing.assert_allclose(state.count, count)
    law = algorithm.policy(state).log_probs(setting.contexts).exp().numpy()
    with np.errstate(invalid="ignore"):
        won = np.where(count > 0, np.sign(np.round(wins / count - 0.5, 9)), 0).sum(-1)
    best = won == won.max(-1, keepdims=True)
    np.testing.assert_allclose(law, best / best.sum(-1, keepdims=True), atol=1e-12)
    for t, x in enumerate(range(3)):  # what another context has seen does not matter
        here = Contexts(index=torch.full((2, 1), x), pool=setting.contexts)
        alone = algorithm.init(setting)
        alone.wins[:, x], alone.count[:, x] = state.wins[:, x], state.count[:, x]
        pairs = [algorithm.select(one, here, DRAWS.at(t)) for one in (state, alone)]
        assert torch.equal(*pairs)


def test_double_thompson_draws_once_for_a_pair():
    """What one action of a match wins the other loses: by Monte Carlo, 5 standard errors (draws of its own for either
    order would make the second action first in .61 and not .56)."""
    algorithm: Any = algorithms.create("double_thompson")
    pool = LinearWorld(1, 3, 2).instance(20_000, Draws(0, 20_000)).pool
    state, rng = algorithm.init(setting_of(LinearWorld(1, 3, 2), replicates=20_000)), np.random.default_rng(3)
    wins = np.array([[0, 5, 5], [5, 0, 12], [5, 5, 0]])
    state.wins = torch.from_numpy(wins).double().expand(20_000, 1, 3, 3).clone()
    state.count = state.wins + state.wins.mT
    contexts = Contexts(index=torch.zeros(20_000, 1, dtype=torch.int64), pool=pool)
    first = algorithm.select(state, contexts, Draws(0, 20_000).at(0))[:, 0, 0].numpy()
    won = np.zeros((200_000, 3))
    for i, j in ((0, 1), (0, 2), (1, 2)):
        beats = rng.beta(wins[i, j] + 1, wins[j, i] + 1, size=200_000) > 0.5
        won[:, i] += beats
        won[:, j] += ~beats
    best = won == won.max(1, keepdims=True)
    expected = (best / best.sum(1, keepdims=True)).mean(0)
    np.testing.assert_allclose(np.bincount(first, minlength=3) / 20_000, expected, atol=5 * 0.0037)


def test_double_thompson_plays_no_match_against_what_is_not_offered():
    """Of three actions the last is absent: the first duellist is 0 as often as a Beta(7, 5) draw exceeds 1/2."""
    algorithm: Any = algorithms.create("double_thompson")
    ref = np.array([[0.5, 0.5, 0.0]])
    world = LinearWorld(1, 3, 2, features=np.eye(3)[None, :, :2], reference=ref)
    state = algorithm.init(setting_of(world, replicates=4000))
    pool = world.instance(4000, Draws(0, 4000)).pool
    state.wins = torch.zeros(4000, 1, 3, 3).double()
    state.wins[..., 0, 1], state.wins[..., 1, 0] = 6.0, 4.0
    state.count = state.wins + state.wins.mT
    index = torch.zeros(4000, 1, dtype=torch.int64)
    pairs = algorithm.select(state, Contexts(index=index, pool=pool), Draws(0, 4000).at(0))
    assert int(pairs.max()) == 1
    assert float((pairs[:, 0, 0] == 0).double().mean()) == pytest.approx(beta.sf(0.5, 7, 5), abs=5 * 0.007)
