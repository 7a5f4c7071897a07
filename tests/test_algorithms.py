"""The model-based algorithms against short references in numpy, replayed action by action."""

import itertools
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from scipy import optimize

from simbandit import algorithms
from simbandit.algorithms.offline import pessimistic_actions
from simbandit.algorithms.online import Uniform as UniformPlayer
from simbandit.data import Logged
from simbandit.draws import Draws
from simbandit.metrics import kl
from simbandit.oracles import BradleyTerry, NoisyReward, PlackettLuce
from simbandit.policies import Reference, Tabular, Uniform
from simbandit.simulate import Problem, simulate
from simbandit.types import Contexts, Info
from simbandit.worlds import LinearWorld

X, A, D, KL = 4, 5, 3, 0.4
WORLD = LinearWorld(X, A, D, reference="softmax", context_law="zipf")
SEEDS = 20


def run(problem: Any, algorithm: Any, **options: Any) -> Any:
    return simulate(problem, algorithm, **options)


def instance_of(replicates: int, world: Any = WORLD, seed: int = 0) -> Any:
    return world.instance(replicates, Draws(seed, replicates))


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def draw(law: np.ndarray, uniform: float) -> int:
    """Inverse CDF. Uniforms within rounding of a step do not occur (they are checked)."""
    steps = np.cumsum(law)
    assert np.abs(steps - uniform).min() > 1e-12
    return int((steps < uniform).sum())


def mle(z: np.ndarray, wins: np.ndarray, ridge: float, ball: float) -> np.ndarray:
    """Ball-constrained ridge logistic MLE by scipy, in the convex dual of the ball: a second ridge, by bisection."""

    def fit(penalty: float) -> np.ndarray:
        def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
            m = z @ theta
            gradient = z.T @ (1 / (1 + np.exp(-m)) - wins) + penalty * theta
            return float((np.logaddexp(0, m) - wins * m).sum() + penalty / 2 * theta @ theta), gradient

        def hessian(theta: np.ndarray) -> np.ndarray:
            p = 1 / (1 + np.exp(-(z @ theta)))
            return (z.T * (p * (1 - p))) @ z + penalty * np.eye(D)

        found = optimize.minimize(
            loss, np.zeros(D), jac=True, hess=hessian, method="trust-exact", options={"gtol": 1e-11}
        )
        return found.x

    if np.linalg.norm(fit(ridge)) <= ball:
        return fit(ridge)
    root: Any = optimize.brentq(lambda log: np.linalg.norm(fit(ridge + np.exp(log))) - ball, -20, 10, xtol=1e-13)
    return fit(ridge + np.exp(root))


class Replay:
    """A learner of one replicate as its paper says it, one sample a round."""

    def __init__(self, instance: Any, r: int):
        self.phi, self.ref = instance.pool.features[r].numpy(), instance.pool.ref_log_probs[r].numpy()
        self.v, self.b = np.eye(D), np.zeros(D)
        self.z: list[np.ndarray] = []
        self.wins: list[float] = []
        self.law = np.exp(self.ref)

    def reward(self, x: int, a: int, r: float) -> None:
        self.v += np.outer(self.phi[x, a], self.phi[x, a])
        self.b += r * self.phi[x, a]

    def duel(self, x: int, first: int, second: int, won: float) -> None:
        z = self.phi[x, first] - self.phi[x, second]
        self.v += np.outer(z, z)
        self.z.append(z)
        self.wins.append(won)

    def gibbs(self, theta: np.ndarray, radius: float, relative: bool) -> None:
        """pi_ref exp((<theta, phi> + radius ||phi - centre||_V^-1) / KL)"""
        centre = np.einsum("xa,xad->xd", np.exp(self.ref), self.phi)[:, None] if relative else 0.0
        u = self.phi - centre
        bonus = radius * np.sqrt(np.einsum("xad,de,xae->xa", u, np.linalg.inv(self.v), u))
        self.law = softmax(self.ref + (self.phi @ theta + bonus) / KL)


def replay(name: str, rounds: int, oracle: Any, learn: Any, **fields: Any) -> None:
    """The algorithm and the reference play the same actions, from the same uniforms, in 20 replicates."""
    problem = Problem(WORLD, oracle, KL)
    data = run(problem, algorithms.create(name, **fields), rounds=rounds, replicates=SEEDS, keep_data=True, seed=9).data
    instance, draws = instance_of(SEEDS, seed=9), Draws(9, SEEDS)
    for r in range(SEEDS):
        mine = Replay(instance, r)
        for row in data[data["replicate"] == r].to_dict("records"):
            now, x = draws.at(row["round"]), row["context"]
            played = [row[c] for c in ("action", "first", "second") if c in row]
            second = mine.law if fields.get("pairing") == "self" else np.exp(mine.ref)
            expected = [draw(mine.law[x], float(now.uniform("player0", 1)[r, 0]))]
            if len(played) == 2:
                expected.append(draw(second[x], float(now.uniform("player1", 1)[r, 0])))
            assert played == expected, (r, row)
            if len(played) == 2:
                mine.duel(x, played[0], played[1], row["preferred"])
            else:
                mine.reward(x, played[0], row["reward"])
            learn(mine)


def test_kl_ucb_with_rewards():
    def learn(mine: Replay) -> None:
        mine.gibbs(np.linalg.solve(mine.v, mine.b), 0.6, relative=False)

    replay("kl_ucb", 40, NoisyReward(0.3), learn, radius=0.6, refit_growth=0.0)


@pytest.mark.parametrize("pairing", ["reference", "self"])
def test_kl_ucb_with_duels(pairing):
    def learn(mine: Replay) -> None:
        mine.gibbs(mle(np.array(mine.z), np.array(mine.wins), 1.0, 2.0), 0.6, relative=True)

    replay("kl_ucb", 12, BradleyTerry(), learn, radius=0.6, pairing=pairing, refit_growth=0.0)


@pytest.mark.parametrize("pairing", ["reference", "self"])
def test_greedy_with_duels(pairing):
    def learn(mine: Replay) -> None:
        mine.gibbs(mle(np.array(mine.z), np.array(mine.wins), 0.05, 2.0), 0.0, relative=False)

    replay("greedy", 12, BradleyTerry(), learn, pairing=pairing, ridge=0.05, refit_growth=0.0)


def test_greedy_with_rewards():
    def learn(mine: Replay) -> None:
        v = mine.v - np.eye(D) + 0.1 * np.eye(D)
        mine.gibbs(np.linalg.solve(v, mine.b), 0.0, relative=False)

    replay("greedy", 40, NoisyReward(0.3), learn, ridge=0.1, refit_growth=0.0)


@pytest.mark.parametrize("oracle", [NoisyReward(0.3), BradleyTerry()], ids=["rewards", "duels"])
def test_kl_pcb_is_the_gibbs_policy_of_a_lower_bound(oracle):
    problem = Problem(WORLD, oracle, KL)
    watched: list[tuple] = []
    algorithm: Any = algorithms.create("kl_pcb", radius=0.9)

    class Spy(type(algorithm)):
        def update(self, state: Any, contexts: Any, actions: Any, feedback: Any, draws: Any) -> Any:
            watched.append((contexts.index, actions, feedback))
            return super().update(state, contexts, actions, feedback, draws)

    results = run(problem, Spy(radius=0.9), rounds=30, replicates=SEEDS)
    instance = instance_of(SEEDS)
    law = results.policy.log_probs(instance.pool).exp().numpy()
    index, actions, feedback = watched[0]
    for r in range(SEEDS):
        mine = Replay(instance, r)
        for i in range(30):
            add: Any = mine.reward if actions.shape[-1] == 1 else mine.duel
            add(int(index[r, i]), *(int(a) for a in actions[r, i]), float(feedback[r, i]))
        if actions.shape[-1] == 1:
            mine.gibbs(np.linalg.solve(mine.v, mine.b), -0.9, relative=False)
        else:
            mine.gibbs(mle(np.array(mine.z), np.array(mine.wins), 1.0, 2.0), -0.9, relative=True)
        np.testing.assert_allclose(law[r], mine.law, rtol=1e-6, atol=1e-9)


def test_theory_radii_carry_the_curvature_for_duels_and_the_ridge_bias():
    values = {}
    for oracle in (NoisyReward(0.3), BradleyTerry()):
        results = run(
            Problem(WORLD, oracle, KL),
            algorithms.create("kl_pcb", radius="theory", ridge=0.5),
            rounds=3,
            metrics=["confidence_radius"],
        )
        values[oracle.feedback] = results.final("confidence_radius")[0]
    assert values["reward"] == pytest.approx(np.sqrt(D + np.log(20)) + np.sqrt(0.5) * 2)
    gamma = 1 / (2 + np.exp(4.0) + np.exp(-4.0))  # differences of rewards in [-2, 2]
    assert values["preference"] == pytest.approx(np.sqrt((D + np.log(20)) / gamma**2 + 0.5 * 4))


# ------------------------------------------------------------------------------------------------- schedules


def laws_of(algorithm: Any, problem: Problem, **options: Any) -> tuple[list[torch.Tensor], Any]:
    """The policy that plays each recorded round, and the results."""
    seen: list[torch.Tensor] = []

    def keep(snapshot: Any) -> torch.Tensor:
        seen.append(snapshot.log_probs)
        return torch.zeros(len(snapshot.informative))

    return seen, run(problem, algorithm, metrics=[("keep", keep)], record="all", **options)


@pytest.mark.parametrize("offline", [None, Logged(Uniform(), 7)], ids=["cold", "hybrid"])
@pytest.mark.parametrize("oracle", [BradleyTerry(), NoisyReward(0.2)], ids=["duels", "rewards"])
def test_two_stage_switches_once(oracle, offline):
    """Stage 1 plays the reference, stage 2 the Gibbs policy of the estimate at its end, fixed; logged data are no
    round."""
    algorithm: Any = algorithms.create("two_stage", first_stage=0.4, refit_growth=0.0)
    replicates, rounds, size, switch = 3, 10, 6, 4
    laws, results = laws_of(
        algorithm,
        Problem(WORLD, oracle, KL),
        rounds=rounds,
        batch_size=size,
        replicates=replicates,
        keep_data=True,
        offline=offline,
    )
    pool, draws = instance_of(replicates).pool, Draws(0, replicates)
    columns = ("first", "second") if oracle.n_select == 2 else ("action",)
    assert not torch.allclose(laws[switch], laws[switch + 1])  # the output goes on learning
    for t in range(rounds):
        rows = results.data[results.data["round"] == t]
        contexts = Contexts(index=torch.tensor(rows["context"].to_numpy(copy=True)).view(replicates, size), pool=pool)
        player = Reference() if t < switch else Tabular(laws[switch])
        for i, column in enumerate(columns):
            expected = player.sample(contexts, draws.at(t).uniform(f"player{i}", size))
            assert torch.equal(torch.tensor(rows[column].to_numpy(copy=True)).view(replicates, size), expected), t


def test_two_stage_output_uses_both_stages():
    problem = Problem(WORLD, NoisyReward(0.2), KL)
    results = run(problem, algorithms.create("two_stage"), rounds=10, batch_size=6, replicates=[1], keep_data=True)
    data, instance = results.data, WORLD.instance(1, Draws(0, [1]))
    mine = Replay(instance, 0)
    mine.v = 0.1 * np.eye(D)
    for row in data.to_dict("records"):
        mine.reward(row["context"], row["action"], row["reward"])
    mine.gibbs(np.linalg.solve(mine.v, mine.b), 0.0, relative=False)
    np.testing.assert_allclose(results.policy.log_probs(instance.pool).exp()[0], mine.law, rtol=1e-9)


@pytest.mark.parametrize("name", ["greedy", "kl_ucb", "two_stage", "gshf_online"])
def test_a_refit_schedule_refits_when_the_data_have_grown(name):
    """At growth 1 the policy changes after 1, 2, 4, 8 ... rounds; two_stage refits where a stage ends."""
    algorithm = algorithms.create(name, refit_growth=1.0)
    laws, _ = laws_of(algorithm, Problem(WORLD, BradleyTerry(), KL), rounds=20, batch_size=5, replicates=2)
    changed = [t for t in range(1, 21) if not torch.equal(laws[t], laws[t - 1])]
    assert changed == ([1, 2, 4, 8, 10, 20] if name == "two_stage" else [1, 2, 4, 8, 16])


def test_uniform_plays_and_outputs_the_uniform_policy():
    reference = np.array([[0.0, 0.7, 0.1, 0.2, 0.0]])
    world = LinearWorld(1, A, D, reference=reference)
    results = run(Problem(world, PlackettLuce(3), KL), Watch(), rounds=300, batch_size=4)
    offered = [1, 2, 3]
    played = Watch.played
    counts = np.bincount(torch.cat(played).reshape(-1).numpy(), minlength=A)
    assert counts[[0, 4]].sum() == 0
    assert np.abs(counts[offered] / counts.sum() - 1 / 3).max() < 4 * np.sqrt(2 / 9 / counts.sum())
    law = results.policy.log_probs(world.instance(1, Draws(0, 1)).evaluation).exp()[0, 0]
    np.testing.assert_allclose(law, [0, 1 / 3, 1 / 3, 1 / 3, 0], rtol=1e-15)


class Watch(UniformPlayer):
    played: ClassVar[list[torch.Tensor]] = []

    def update(self, state: Any, contexts: Any, actions: Any, feedback: Any, draws: Any) -> Any:
        self.played.append(actions)
        return state, Info()


# ------------------------------------------------------------------------------------------------- rejection sampling


@pytest.mark.parametrize("steps", [1, 3])
def test_the_sampler_tends_to_the_gibbs_policy_as_its_budget_grows(steps):
    options: dict[str, Any] = {"rounds": 20, "batch_size": 3, "replicates": 4}
    problem = Problem(WORLD, BradleyTerry(), KL)
    pool = instance_of(4).pool
    limit = run(problem, algorithms.create("kl_pcb", radius=0.0, ridge=0.1), **options).policy.log_probs(pool)
    distances = [
        float(
            kl(
                run(problem, algorithms.create("rso", steps=steps, budget=b), **options).policy.log_probs(pool), limit
            ).mean()
        )
        for b in (1, 4, 16, 64, 256, 100_000)
    ]
    assert all(b < a or b < 1e-25 for a, b in itertools.pairwise(distances))  # 1e-25: rounding, squared
    assert distances[0] > 1e-2
    assert distances[-1] < 1e-10


def test_a_sampler_with_one_proposal_is_one_proposal_or_the_reference():
    """Accepted with probability q, else drawn anew: law = pi_ref (w + 1 - E w), w = exp((r - max r) / kl_coef)."""
    problem = Problem(WORLD, NoisyReward(0.2), KL)
    infos: list[Any] = []

    def keep(snapshot: Any) -> torch.Tensor:
        infos.append(snapshot.info)
        return torch.zeros(2)

    results = run(
        problem, algorithms.create("rso", steps=1, budget=1), rounds=9, replicates=2, metrics=[("keep", keep)]
    )
    pool = instance_of(2).pool
    scores = torch.einsum("rxad,rd->rxa", pool.features, infos[-1].theta)
    w, ref = ((scores - scores.amax(-1, keepdim=True)) / KL).exp(), pool.ref_log_probs.exp()
    expected = ref * (w + 1 - (ref * w).sum(-1, keepdim=True))
    torch.testing.assert_close(results.policy.log_probs(pool).exp(), expected, rtol=1e-10, atol=1e-14)


# ------------------------------------------------------------------------------------------------- pessimistic MLE


def value_of(
    choice: Any, pool: Contexts, theta: torch.Tensor, inverse: torch.Tensor, radius: float, v: Any, r: int
) -> float:
    assert pool.weights is not None
    u = sum(pool.weights[r, x] * pool.features[r, x, a] for x, a in enumerate(choice)) - v[r]
    return float(u @ theta[r] - radius * (u @ inverse[r] @ u).sqrt())


def test_one_context_is_solved_exactly():
    rng, n = np.random.default_rng(0), 50
    pool = Contexts(
        index=torch.zeros(n, 1, dtype=torch.int64),
        features=torch.from_numpy(rng.normal(size=(n, 1, 6, D))),
        ref_log_probs=torch.full((n, 1, 6), 1 / 6).double().log(),
        weights=torch.ones(n, 1).double(),
    )
    theta, v = torch.from_numpy(rng.normal(size=(n, D))), torch.from_numpy(rng.normal(size=(n, D)))
    root = torch.from_numpy(rng.normal(size=(n, D, D)))
    inverse = root @ root.mT + 0.1 * torch.eye(D).double()
    chosen = pessimistic_actions(pool, theta, inverse, 0.8, v)
    for r in range(n):
        values = [value_of([a], pool, theta, inverse, 0.8, v, r) for a in range(6)]
        assert int(chosen[r, 0]) == int(np.argmax(values))


def test_coordinate_ascent_is_nearly_always_exhaustive_search():
    """3 contexts x 3 actions, all 27 policies; the greedy policy is never better, and 95 % of searches are exact."""
    rng, n = np.random.default_rng(2), 200
    pool = Contexts(
        index=torch.arange(3).expand(n, -1),
        features=torch.from_numpy(rng.normal(size=(n, 3, 3, D))),
        ref_log_probs=torch.full((n, 3, 3), 1 / 3).double().log(),
        weights=torch.from_numpy(rng.dirichlet(np.ones(3), size=n)),
    )
    theta, v = torch.from_numpy(rng.normal(size=(n, D))), torch.from_numpy(rng.normal(size=(n, D)))
    root = torch.from_numpy(rng.normal(size=(n, D, D)))
    inverse, exact = root @ root.mT / D + 0.1 * torch.eye(D).double(), 0
    chosen = pessimistic_actions(pool, theta, inverse, 1.0, v)
    for r in range(n):
        best = max(value_of(c, pool, theta, inverse, 1.0, v, r) for c in itertools.product(range(3), repeat=3))
        found = value_of(chosen[r].tolist(), pool, theta, inverse, 1.0, v, r)
        greedy = torch.einsum("xad,d->xa", pool.features[r], theta[r]).argmax(-1).tolist()
        assert found >= value_of(greedy, pool, theta, inverse, 1.0, v, r) - 1e-9
        exact += found > best - 1e-9
    assert exact / n > 0.95


def test_absent_actions_are_never_chosen():
    features = torch.zeros(1, 1, 3, 1).double()
    features[0, 0] = torch.tensor([[1.0], [2.0], [0.0]])
    pool = Contexts(
        index=torch.zeros(1, 1, dtype=torch.int64),
        features=features,
        ref_log_probs=torch.tensor([[[0.5, 0.5, 0.0]]]).double().log(),
        weights=torch.ones(1, 1).double(),
    )
    one = torch.ones(1, 1).double()
    assert pessimistic_actions(pool, -one, one[..., None], 0.0, 0 * one).tolist() == [[0]]  # the absent one is worth 0
    assert pessimistic_actions(pool, one, one[..., None], 0.0, 0 * one).tolist() == [[1]]


def test_rankings_enter_the_covariance_as_the_mean_over_their_pairs():
    """Zhu et al.: Sigma_DK = 2 / (K (K - 1) n) sum over rankings and pairs."""
    world = LinearWorld(1, A, D)
    watched: list[Any] = []
    algorithm: Any = algorithms.create("pessimistic_mle", radius=0.3)

    class Spy(type(algorithm)):
        def update(self, state: Any, contexts: Any, actions: Any, feedback: Any, draws: Any) -> Any:
            watched.append(contexts.features_of(actions))
            return super().update(state, contexts, actions, feedback, draws)

    infos: list[Any] = []

    def keep(snapshot: Any) -> torch.Tensor:
        infos.append(snapshot.info)
        return torch.zeros(30)

    results = run(
        Problem(world, PlackettLuce(4), KL), Spy(radius=0.3), rounds=25, replicates=30, metrics=[("keep", keep)]
    )
    pool = instance_of(30, world).pool
    chosen = results.policy.log_probs(pool).argmax(-1)
    for r in range(30):
        sigma = np.eye(D) / 25
        for ranking in watched[0][r].numpy():
            for i, j in itertools.combinations(range(4), 2):
                sigma += np.outer(ranking[i] - ranking[j], ranking[i] - ranking[j]) / (6 * 25)
        phi, theta = pool.features[r, 0].numpy(), infos[-1].theta[r].numpy()
        values = phi @ theta - 0.3 * np.sqrt(np.einsum("ad,de,ae->a", phi, np.linalg.inv(sigma), phi))
        assert int(chosen[r, 0]) == int(values.argmax())


@pytest.mark.parametrize("v", ["zero", "data", "reference", (0.3, -0.2, 0.1)])
def test_reference_vectors_of_the_pessimistic_rule(v):
    world = LinearWorld(1, A, D, reference=[0.4, 0.3, 0.1, 0.1, 0.1])
    watched: list[Any] = []
    algorithm: Any = algorithms.create("pessimistic_mle")

    class Spy(type(algorithm)):
        def update(self, state: Any, contexts: Any, actions: Any, feedback: Any, draws: Any) -> Any:
            watched.append(contexts.features_of(actions))
            return super().update(state, contexts, actions, feedback, draws)

    infos: list[Any] = []

    def keep(snapshot: Any) -> torch.Tensor:
        infos.append(snapshot.info)
        return torch.zeros(40)

    results = run(
        Problem(world, BradleyTerry(), KL), Spy(radius=0.5, v=v), rounds=12, replicates=40, metrics=[("keep", keep)]
    )
    pool = instance_of(40, world).pool
    chosen = results.policy.log_probs(pool).argmax(-1)[:, 0]
    for r in range(40):
        phi = watched[0][r].numpy()
        z = phi[:, 0] - phi[:, 1]
        sigma = z.T @ z / 12 + np.eye(D) / 12
        centre = {
            "zero": np.zeros(D),
            "data": phi.mean((0, 1)),
            "reference": np.array([0.4, 0.3, 0.1, 0.1, 0.1]) @ pool.features[r, 0].numpy(),
        }.get(v if isinstance(v, str) else "", np.array([0.3, -0.2, 0.1]))
        u = pool.features[r, 0].numpy() - centre
        values = u @ infos[-1].theta[r].numpy() - 0.5 * np.sqrt(np.einsum("ad,de,ae->a", u, np.linalg.inv(sigma), u))
        assert int(chosen[r]) == int(values.argmax())


@pytest.mark.parametrize("name", ["gshf_offline", "kl_pcb", "pessimistic_mle", "rso"])
def test_offline_algorithms_select_nothing(name):
    algorithm: Any = algorithms.create(name)
    with pytest.raises(TypeError, match="an offline algorithm learns from logged data and selects nothing"):
        algorithm.select(None, None, None)
