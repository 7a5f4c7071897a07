"""Reward bandits: action by action against an independent reference, laws by hand, confidence sets, posterior draws."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from simbandit import algorithms
from simbandit.algorithms.bandits import start
from simbandit.algorithms.choosing import GreedyPolicy, choose, choose_pair
from simbandit.algorithms.inverse_gap import InverseGap
from simbandit.draws import Draws
from simbandit.estimators import width
from simbandit.least_squares import linear
from simbandit.oracles import BernoulliReward, BradleyTerry, NoisyReward
from simbandit.policies import Reference, Uniform
from simbandit.simulate import Problem, simulate
from simbandit.types import Contexts, Setting
from simbandit.worlds import LinearWorld, TableWorld
from tests import bandit_references

SEEDS = 20
FRESH = LinearWorld(None, 7, 4, theta_norm=1.0, n_evaluation=11)


class Recorder:
    """Hands everything on, and keeps the features, actions and rewards of every round."""

    def __init__(self, algorithm: Any):
        self.algorithm, self.rounds = algorithm, []
        self.feedbacks, self.needs_features = algorithm.feedbacks, algorithm.needs_features
        self.offline, self.consistent = algorithm.offline, algorithm.consistent

    def init(self, setting: Setting) -> Any:
        return self.algorithm.init(setting)

    def select(self, state: Any, contexts: Contexts, draws: Any) -> Any:
        return self.algorithm.select(state, contexts, draws)

    def update(self, state: Any, contexts: Contexts, actions: Any, feedback: Any, draws: Any) -> Any:
        self.rounds.append((contexts.features[:, 0].numpy().copy(), actions[:, 0].numpy().copy(), feedback[:, 0]))
        return self.algorithm.update(state, contexts, actions, feedback, draws)

    def policy(self, state: Any) -> Any:
        return self.algorithm.policy(state)


def trajectories(algorithm: Any, rounds: int = 150, world: Any = FRESH) -> tuple[np.ndarray, ...]:
    """features (T, R, A, d), actions (T, R), rewards (T, R, A) of all actions with the round's noise, seeds 0 to 19."""
    recorder: Any = Recorder(algorithm)
    problem = Problem(world, NoisyReward(0.5), 1.0)
    simulate(problem, recorder, rounds=rounds, replicates=SEEDS, metrics=["reward_regret"], record=[0])
    draws = Draws(0, SEEDS)
    theta = world.instance(SEEDS, draws).theta.numpy()
    phi = np.stack([r[0] for r in recorder.rounds])
    noise = np.stack([draws.at(t).normal("noise", 1)[:, 0].numpy() for t in range(rounds)])
    rewards = np.einsum("trad,rd->tra", phi, theta) + 0.5 * noise[..., None]
    return phi, np.stack([r[1][:, 0] for r in recorder.rounds]), rewards


@pytest.mark.parametrize(
    ("name", "fields", "radius"),
    [
        ("linucb", {}, 1.0),
        ("linucb", {"radius": 0.3}, 0.3),
        ("lints", {"scale": 0.0}, 0.0),
        ("epsilon_greedy", {"epsilon": 0.0}, 0.0),
    ],
)
def test_every_action_is_the_references(name, fields, radius):
    """In round 0 all actions are tied (features have norm 1) and the noise drawn in advance decides; from then on all
    scores differ, and every action must be the reference's."""
    phi, actions, rewards = trajectories(algorithms.create(name, **fields))
    assert len(np.unique(actions[0])) > 3
    for r in range(SEEDS):
        expected = bandit_references.linucb(phi[:, r], rewards[:, r], radius, 1.0, first=int(actions[0, r]))
        assert expected == actions[:, r].tolist()


def test_the_disjoint_model_is_the_shared_one_on_blocks():
    """Per-arm features e_a (x) x: one ridge regression on blocks is one ridge regression per arm."""
    world = LinearWorld(None, 3, 6, features="per_arm", theta_norm=1.0, n_evaluation=5)
    runs = [trajectories(algorithms.create("linucb", model=m), 60, world)[1] for m in ("shared", "disjoint")]
    assert (runs[0] == runs[1]).all()
    phi, actions, _ = trajectories(algorithms.create("linucb", model="disjoint"), 60)
    assert len(np.unique(actions)) == phi.shape[2]


@pytest.mark.parametrize("radius", ["determinant", "bound"])
def test_confidence_sets_are_violated_at_most_as_often_as_promised(radius):
    """||theta_hat - theta*||_V > radius in some round: at most delta = 5 % of 2,000 replicates, exact binomial; and the
    set is no larger than it need be by orders of magnitude, or anything would pass."""
    violated, share = [], []

    def ratio(s: Any) -> torch.Tensor | None:
        if s.info.inverse is None:
            return None
        u = s.info.theta - s.instance.theta
        norm = (u * torch.linalg.solve(s.info.inverse, u)).sum(-1).sqrt()
        return norm / s.info.radius

    world = LinearWorld(None, 4, 3, theta_norm=1.0, n_evaluation=5)
    algorithm = algorithms.create("linucb", radius=radius, noise_std=0.5)
    for part in range(2):
        result = simulate(
            Problem(world, NoisyReward(0.5), 1.0), algorithm, rounds=100, replicates=range(1000 * part, 1000 * (part +
            1)), metrics=[("ratio", ratio)], record="all", seed=1,
        )  # fmt: skip
        frame = result.frame()
        worst = frame["value"].to_numpy().reshape(1000, -1).max(1)  # rows are ordered by replicate
        violated += (worst > 1).tolist()
        share += worst.tolist()
    assert len(violated) == 2000
    assert stats.binomtest(sum(violated), 2000, 0.05, alternative="greater").pvalue > 0.01
    assert np.max(share) > 0.5


def test_radii_by_hand():
    setting = simulate_setting(LinearWorld(None, 4, 3, theta_norm=2.0, n_evaluation=5))
    for radius, expected in (("tuned", 1.0), ("bound", 0.5 * np.sqrt(3 * np.log(1 / 0.05)) + 2 * np.sqrt(0.5))):
        state = algorithms.create("linucb", radius=radius, noise_std=0.5, ridge=0.5).init(setting)
        assert state.radius == pytest.approx(expected, rel=1e-12)
    state = algorithms.create("linucb", radius="determinant", noise_std=0.5, ridge=0.5).init(setting)
    np.testing.assert_allclose(state.radius, 0.5 * np.sqrt(2 * np.log(1 / 0.05)) + 2 * np.sqrt(0.5))
    loose: Any = algorithms.create("linucb", radius="bound", noise_std=0.5, ridge=0.5, feature_bound=3.0)
    later = loose.init(setting)
    later.model.n = 40
    assert loose._radius(later) == pytest.approx(
        0.5 * np.sqrt(3 * np.log((1 + 40 * 9 / 0.5) / 0.05)) + 2 * np.sqrt(0.5)
    )
    theory = algorithms.create("linucb", radius="theory", noise_std=0.5, ridge=0.5).init(setting)
    assert torch.equal(torch.as_tensor(theory.radius), torch.as_tensor(state.radius))


def simulate_setting(world: Any, **changes: Any) -> Setting:
    instance = world.instance(2, Draws(0, 2))
    values: dict[str, Any] = {
        "replicates": 2, "rounds": 100, "batch_size": 1, "n_actions": instance.n_actions, "dim": instance.dim,
        "kl_coef": 1.0, "reward_range": instance.reward_range, "contexts": instance.pool, "policy": Reference(),
        "feedback": "reward", "n_select": 1, "theta_bound": instance.theta_bound,
    }  # fmt: skip
    return Setting(**(values | changes))


def test_posterior_draws_have_the_posteriors_law():
    """theta~ - theta whitened by Cholesky of V is standard normal: Kolmogorov-Smirnov per coordinate, and the
    covariance of the coordinates."""
    setting = simulate_setting(FRESH)
    algorithm: Any = algorithms.create("lints", scale=0.3)
    state = algorithm.init(setting)
    rng, d = np.random.default_rng(0), 4
    phi = torch.from_numpy(rng.normal(size=(2, 9, d)) * [2.0, 1.0, 0.3, 0.1])
    state.model.observe(phi, torch.from_numpy(rng.normal(size=(2, 9))))
    draws = algorithm.posterior_draw(state, Draws(3, 2).at(0), 5000)
    V = torch.eye(d).double() + phi.mT @ phi
    white = ((draws - state.model.theta[:, None]) / 0.3) @ torch.linalg.cholesky(V)
    for k in range(2):
        assert all(stats.kstest(white[k, :, j].numpy(), "norm").pvalue > 1e-3 for j in range(d))
        np.testing.assert_allclose(np.cov(white[k].numpy().T), np.eye(d), atol=5 * np.sqrt(2 / 5000))


def test_the_theorys_posterior_is_wider_by_its_own_factor():
    """v = noise_std sqrt(9 d log(t / delta)), with the same draws."""
    setting, draws = simulate_setting(FRESH), Draws(3, 2).at(0)
    plain, theory = algorithms.create("lints", scale=1.0), algorithms.create("lints", scale="theory", noise_std=0.5)
    deviations = []
    for algorithm in (plain, theory):
        made: Any = algorithm
        state = made.init(setting)
        state.model.n = 59
        deviations.append(made.posterior_draw(state, draws, 7))
    torch.testing.assert_close(deviations[1], 0.5 * np.sqrt(9 * 4 * np.log(60 / 0.05)) * deviations[0])


def test_inverse_gap_weights_by_hand():
    contexts = Contexts(
        features=torch.tensor([[[[1.0], [0.5], [0.0], [9.0]]]]).double(),
        ref_log_probs=torch.tensor([[[1 / 3, 1 / 3, 1 / 3, 0.0]]]).double().log(),
    )
    law = InverseGap(torch.ones(1, 1).double(), torch.tensor([4.0]).double()).log_probs(contexts).exp()
    others = np.array([1 / (3 + 4 * 0.5), 1 / (3 + 4 * 1.0)])
    np.testing.assert_allclose(law[0, 0], [1 - others.sum(), *others, 0.0], rtol=1e-14)
    tied = InverseGap(torch.zeros(1, 1).double(), torch.tensor([4.0]).double()).log_probs(contexts).exp()
    np.testing.assert_allclose(tied[0, 0], [1 / 3, 1 / 3, 1 / 3, 0.0], rtol=1e-14)


def test_squarecb_scales_gaps_by_the_range_and_falcon_keeps_its_law_through_an_epoch():
    setting = simulate_setting(FRESH, reward_range=(-3.0, 5.0))
    state = algorithms.create("squarecb").init(setting)
    np.testing.assert_allclose(state.policy.gamma, 10 * 1 / 8)
    state.model.n = 63
    np.testing.assert_allclose(algorithms.create("squarecb")._law(state).gamma, 10 * np.sqrt(64) / 8)  # pyright: ignore
    equal = algorithms.create("squarecb").init(simulate_setting(FRESH, reward_range=(2.0, 2.0)))
    np.testing.assert_allclose(equal.policy.gamma, 10.0)  # all rewards are equal: any width serves
    algorithm = algorithms.create("falcon", gamma=2.0)
    state, laws = algorithm.init(setting), []
    rng = np.random.default_rng(0)
    contexts = Contexts(
        features=torch.from_numpy(rng.normal(size=(2, 1, 7, 4))), ref_log_probs=torch.zeros(2, 1, 7).double()
    )
    for t in range(20):
        action = torch.from_numpy(rng.integers(7, size=(2, 1, 1)))
        state, _ = algorithm.update(state, contexts, action, torch.ones(2, 1).double(), Draws(0, 2).at(t))
        laws.append(state.policy)
    renewed = [t + 1 for t in range(20) if t == 0 or laws[t] is not laws[t - 1]]
    assert renewed == [1, 2, 4, 8, 16]
    np.testing.assert_allclose(laws[-1].gamma, 2 * np.sqrt(16) / 8)


def test_theory_gammas_by_hand():
    setting = simulate_setting(FRESH, reward_range=(0.0, 1.0))
    state = algorithms.create("squarecb", gamma="theory").init(setting)
    expected = np.sqrt(7 * 100 / (4 * np.log(1 + 25) + np.log(40)))
    np.testing.assert_allclose(state.policy.gamma, expected)
    falcon: Any = algorithms.create("falcon", gamma="theory")
    assert falcon._gamma(setting, 16) == pytest.approx(np.sqrt(7 * 16 / (4 + np.log(16 / 0.05))) / 30)


def test_ties_are_broken_evenly_by_the_uniform_and_by_nothing_else():
    contexts = Contexts(ref_log_probs=torch.tensor([[[0.0, -1.0, -torch.inf, -2.0]]]).double())
    scores = torch.tensor([[[1.0, 1.0 + 1e-12, 1.0, 1.0]]]).double()
    chosen = [int(choose(scores, contexts, torch.tensor([[u]]).double())) for u in (0.0, 0.32, 0.34, 0.66, 0.67, 0.999)]
    assert chosen == [0, 0, 1, 1, 3, 3]
    pairs = choose_pair(torch.zeros(1, 1, 4, 4).double(), contexts, torch.tensor([[0.999]]).double())
    assert pairs.tolist() == [[[3, 3]]]


REGRETS = ("linucb", "lints", "squarecb", "falcon", "epsilon_greedy", "explore_then_commit", "exp4")


@pytest.mark.parametrize("name", REGRETS)
def test_regret_is_below_that_of_playing_at_random(name):
    """exp4's policies (one feature each) are poor in a world whose theta* has no preferred axis: it has one here."""
    theta = (1.0, 0.0, 0.0, 0.0)
    problem = Problem(LinearWorld(None, 5, 4, theta=theta, n_evaluation=5), NoisyReward(0.3), 1.0)
    runs = [
        simulate(problem, a, rounds=400, replicates=8, metrics=["cumulative_reward_regret"], record=[200])
        for a in (algorithms.create(name), algorithms.create("uniform"))
    ]
    ours, random = (r.final("cumulative_reward_regret") for r in runs)
    assert ours.mean() < 0.8 * random.mean()


def test_glm_ucb_learns_bernoulli_rewards():
    problem = Problem(LinearWorld(6, 5, 3, theta_norm=3.0), BernoulliReward(), 1.0)
    run = simulate(problem, algorithms.create("glm_ucb"), rounds=200, replicates=12, metrics=["policy_reward_regret"])
    assert run.final("policy_reward_regret").mean() < 0.25 * run.frame().query("round == 0")["value"].mean()


def test_every_action_of_glm_ucb_is_the_references():
    """argmax sigma(<theta, phi>) + radius ||phi||_{V^-1}, theta by Newton on the ridged likelihood: refitted at once,
    and only once the data have grown by half. In round 0 all actions are tied."""
    T, R, world = 30, 4, LinearWorld(6, 5, 3, theta_norm=6.0)
    for growth in (0.0, 0.5):
        recorder: Any = Recorder(algorithms.create("glm_ucb", radius=0.8, ridge=0.7, refit_growth=growth))
        problem = Problem(world, BernoulliReward(), 1.0)
        simulate(problem, recorder, rounds=T, replicates=R, metrics=["reward_regret"], record=[0])
        for r in range(R):
            theta, fitted, V, seen, labels = np.zeros(3), 0, 0.7 * np.eye(3), np.zeros((0, 3)), np.zeros(0)
            for t, (phi, actions, rewards) in enumerate(recorder.rounds):
                width = np.sqrt(np.einsum("ad,de,ae->a", phi[r], np.linalg.inv(V), phi[r]))
                scores = 1 / (1 + np.exp(-phi[r] @ theta)) + 0.8 * width
                a = int(actions[r, 0])
                assert t == 0 or scores[a] == pytest.approx(scores.max(), abs=1e-8)
                seen, labels = np.vstack([seen, phi[r, a]]), np.append(labels, float(rewards[r]))
                V += np.outer(phi[r, a], phi[r, a])
                if t + 1 >= (1 + growth) * fitted:
                    fitted = t + 1
                    for _ in range(25):
                        p = 1 / (1 + np.exp(-seen @ theta))
                        hessian = (seen.T * (p * (1 - p))) @ seen + 0.7 * np.eye(3)
                        theta = theta - np.linalg.solve(hessian, seen.T @ (p - labels) + 0.7 * theta)


def test_glm_ucbs_theory_bounds_every_mean_as_often_as_promised():
    """|sigma(<theta_t, phi>) - sigma(<theta*, phi>)| <= radius width for all actions and rounds; the radius by hand."""
    worst: list[np.ndarray] = []

    class Watching(Recorder):
        def update(self, state: Any, contexts: Contexts, actions: Any, feedback: Any, draws: Any) -> Any:
            state, info = self.algorithm.update(state, contexts, actions, feedback, draws)
            phi = state.setting.contexts.features
            means = [torch.sigmoid(linear(phi, theta)) for theta in (state.theta, truth)]
            ratio = (means[0] - means[1]).abs() / (info.radius * width(phi, state.inverse))
            worst.append(ratio.amax((1, 2)).numpy())
            return state, info

    world = LinearWorld(3, 4, 2, theta_norm=1.5)
    truth: Any = world.instance(200, Draws(0, 200)).theta
    watching: Any = Watching(algorithms.create("glm_ucb", radius="theory", refit_growth=0.0, ridge=0.5))
    run = simulate(
        Problem(world, BernoulliReward(), 1.0), watching, rounds=40, replicates=200, metrics=["confidence_radius"]
    )
    violated = np.max(worst, axis=0) > 1
    assert stats.binomtest(int(violated.sum()), 200, 0.05, alternative="greater").pvalue > 0.01
    noise = 0.5 * np.sqrt(2 * np.log(1 + 40 / (2 * 0.5)) + 2 * np.log(20))
    expected = 0.25 * (2 + 2 * np.cosh(1.5)) * (noise + np.sqrt(0.5) * 1.5)
    np.testing.assert_allclose(run.final("confidence_radius"), expected, rtol=1e-12)


# --------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("name", ["squarecb", "falcon", "exp4"])
def test_an_unknown_range_is_refused_where_one_is_needed(name):
    with pytest.raises(ValueError, match=r"world: .* needs a finite reward_range, got \(-inf, inf\)"):
        algorithms.create(name).init(simulate_setting(FRESH, reward_range=(-np.inf, np.inf)))
    algorithms.create("linucb").init(simulate_setting(FRESH, reward_range=(-np.inf, np.inf)))


def test_a_theory_radius_needs_a_bound_on_theta():
    setting = simulate_setting(FRESH, reward_range=(-np.inf, np.inf), theta_bound=None)
    with pytest.raises(ValueError, match=r"radius: .* needs a bound"):
        algorithms.create("linucb", radius="theory").init(setting)


def test_features_beyond_the_assumed_norm_warn_once_with_the_measured_one():
    world = LinearWorld(5, 4, 3, features="gaussian", theta_norm=1.0)
    pool: Any = world.instance(1, Draws(0, 1)).pool
    norm = float(pool.features.norm(dim=-1).max())
    assert norm > 1.5
    with pytest.warns(UserWarning, match=rf"feature_bound: .* <= 1, and features reach {norm:.4g}$") as seen:
        simulate(Problem(world, NoisyReward(0.5), 1.0), algorithms.create("linucb", radius="bound"), rounds=3)
    assert len(seen) == 1
    fresh = LinearWorld(None, 4, 3, features="gaussian", theta_norm=1.0, n_evaluation=5)
    with pytest.warns(UserWarning, match="feature_bound") as seen:
        simulate(Problem(fresh, NoisyReward(0.5), 1.0), algorithms.create("linucb", radius="bound"), rounds=9)
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        algorithm = algorithms.create("linucb", radius="bound", feature_bound=9.0)
        simulate(Problem(world, NoisyReward(0.5), 1.0), algorithm, rounds=3)


@pytest.mark.parametrize(
    ("name", "argument", "oracle"),
    [
        ("lints", "scale", NoisyReward(0.5)),
        ("glm_ucb", "radius", BernoulliReward()),
        ("maxinp", "radius", BradleyTerry()),
        ("colstim", "radius", BradleyTerry()),
        ("vacdb", "radius", BradleyTerry()),
    ],
)
def test_other_theories_warn_of_long_features_once_too(name, argument, oracle):
    for world in (
        LinearWorld(5, 4, 3, features="gaussian", theta_norm=1.0),
        LinearWorld(None, 4, 3, features="gaussian", theta_norm=1.0, n_evaluation=5),
    ):
        algorithm = algorithms.create(name, **{argument: "theory"})
        with pytest.warns(UserWarning, match=rf"{argument}: .* <= 1, and features reach [1-9]") as seen:
            simulate(Problem(world, oracle, 1.0), algorithm, rounds=4)
        assert len(seen) == 1
    unit = LinearWorld(5, 4, 3, theta_norm=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        simulate(Problem(unit, oracle, 1.0), algorithms.create(name, **{argument: "theory"}), rounds=4)


@pytest.mark.parametrize("name", REGRETS)
def test_one_arm_equal_arms_and_rewards_beyond_the_range_are_no_problem(name):
    """Noise of 50 on a range of 2: rewards are not clipped, and nothing breaks."""
    worlds = (
        LinearWorld(None, 1, 3, n_evaluation=5),
        LinearWorld(features=np.ones((2, 4, 3)), theta=(1.0, 0.0, 0.0)),
        LinearWorld(None, 4, 3, theta_norm=1.0, n_evaluation=5),
    )
    for world in worlds:
        run = simulate(Problem(world, NoisyReward(50.0), 1.0), algorithms.create(name), rounds=20, replicates=3)
        assert np.isfinite(run.frame()["value"]).all()
    equal = simulate(Problem(worlds[1], NoisyReward(1.0), 1.0), algorithms.create(name), rounds=20, replicates=3)
    assert equal.final("cumulative_reward_regret").max() == 0.0


def test_rewards_outside_a_stated_range_are_refused_by_the_world():
    with pytest.raises(ValueError, match="reward_range"):
        TableWorld(np.log([[0.5, 0.5]]), [[0.0, 2.0]], features=np.ones((1, 2, 3)), reward_range=(0.0, 1.0))


def test_bernoulli_means_are_probabilities():
    world = LinearWorld(3, 4, 2, theta_norm=2.0)
    with pytest.raises(ValueError, match=r"link: .* outside \[0, 1\]"):
        BernoulliReward("identity").bind(world.instance(2, Draws(0, 2)))
    wrong: Any = "probit"
    with pytest.raises(ValueError, match="link: must be 'logistic' or 'identity'"):
        BernoulliReward(wrong)


def test_bernoulli_rewards_have_their_mean():
    instance = LinearWorld(2, 3, 2, theta_norm=2.0).instance(1, Draws(0, 1))
    bound, draws, n = BernoulliReward().bind(instance), Draws(0, 1), 4000
    contexts = Contexts(index=torch.zeros(1, n, dtype=torch.int64), pool=instance.pool)
    actions = torch.ones(1, n, 1, dtype=torch.int64)
    seen, mean = bound.respond(contexts, actions, draws.at(0)), bound.mean(contexts, actions)[0, 0, 0]
    assert set(seen.unique().tolist()) == {0.0, 1.0}
    assert abs(float(seen.mean()) - float(mean)) < 5 * np.sqrt(0.25 / n)
    np.testing.assert_allclose(mean, 1 / (1 + np.exp(-instance.rewards(contexts)[0, 0, 1].numpy())))


def test_exp4_refuses_what_is_no_policy_and_takes_the_users():
    with pytest.raises(ValueError, match="policies: must be a tuple of policies"):
        algorithms.create("exp4", policies=(1,))
    exp4: Any = algorithms.create("exp4", policies=(Reference(), Uniform(), GreedyPolicy(torch.ones(2, 4).double())))
    state = exp4.init(simulate_setting(FRESH))
    assert state.policy.log_weights.shape == (2, 3)


def test_epsilon_greedys_law_is_what_it_plays():
    setting = simulate_setting(FRESH)
    algorithm: Any = algorithms.create("epsilon_greedy", epsilon=0.3)
    state = algorithm.init(setting)
    rng = np.random.default_rng(0)
    state.model.observe(torch.from_numpy(rng.normal(size=(2, 9, 4))), torch.from_numpy(rng.normal(size=(2, 9))))
    phi = torch.from_numpy(rng.normal(size=(2, 1, 7, 4))).expand(2, 20_000, 7, 4)
    contexts = Contexts(features=phi, ref_log_probs=torch.zeros(2, 20_000, 7).double())
    actions = algorithm.select(state, contexts, Draws(0, 2).at(0))[..., 0]
    law = algorithm.policy(state).log_probs(contexts).exp()[:, 0].numpy()
    share = np.stack([np.bincount(a, minlength=7) / 20_000 for a in actions.numpy()])
    np.testing.assert_allclose(share, law, atol=5 * np.sqrt(0.25 / 20_000))
    assert law.max() == pytest.approx(0.7 + 0.3 / 7)


def test_a_start_has_the_asked_shape():
    state = start(simulate_setting(FRESH), 2.0, disjoint=True)
    assert state.model.theta.shape == (2, 7, 4)
