"""Every metric against loops over numbers; the divergence against fifty digits."""

from typing import Any

import mpmath
import numpy as np
import pytest
import torch

from simbandit import algorithms, metrics
from simbandit.data import Logged
from simbandit.draws import Draws
from simbandit.metrics import CUMULATIVE, METRICS, kl
from simbandit.oracles import BradleyTerry, NoisyReward, PlackettLuce
from simbandit.policies import Reference, Tabular
from simbandit.simulate import Problem, simulate
from simbandit.worlds import LinearWorld, TableWorld

R, X, A, D, B = 3, 6, 5, 2, 4
KL_COEF = 0.7
REFERENCE = np.array([[0.0, 0.4, 0.3, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25, 0.0], [0.1, 0.2, 0.3, 0.0, 0.4]])
RAGGED = LinearWorld(
    features=np.random.default_rng(0).normal(size=(3, A, D)),
    theta=(0.8, -1.1),
    reference=REFERENCE,
    context_law=[0.5, 0.3, 0.2],
)
WORLD = LinearWorld(X, A, D, reference="softmax")


def run(problem: Any, algorithm: Any, **options: Any) -> Any:
    return simulate(problem, algorithm, **options)


def measure(name: str, snapshot: Any) -> Any:
    return METRICS[name].function(snapshot)


def snapshots(problem: Problem, algorithm: Any, **options: Any) -> list[Any]:
    """What the metrics of every round saw."""
    seen: list[Any] = []

    def keep(snapshot: Any) -> torch.Tensor:
        seen.append(snapshot)
        return torch.zeros(len(snapshot.informative))

    run(problem, algorithm, metrics=[("keep", keep)], record="all", replicates=R, **options)
    return seen


# ------------------------------------------------------------------------------------------------- the divergence


def exact_kl(p: np.ndarray, q: np.ndarray) -> float:
    with mpmath.workdps(50):
        mine, other = [mpmath.mpf(float(v)) for v in p], [mpmath.mpf(float(v)) for v in q]
        a, b = [mpmath.exp(v) for v in mine], [mpmath.exp(v) for v in other]
        mine = [v - mpmath.log(sum(a)) for v in mine]  # normalised to all digits, as rounded log-probabilities are not
        other = [v - mpmath.log(sum(b)) for v in other]
        return float(sum(mpmath.exp(m) * (m - o) for m, o in zip(mine, other, strict=True)))


@pytest.mark.parametrize("scale", [1e-7, 1e-5, 1e-3, 0.1, 0.4, 0.6, 1.0, 10.0, 300.0])
def test_the_divergence_keeps_its_digits(scale):
    """Nearly equal laws have a divergence of scale^2; a difference of two numbers near 1 would know 1e-16 of it."""
    rng = np.random.default_rng(5)
    for _ in range(20):
        p = rng.normal(size=7)
        q = p + scale * rng.normal(size=7)
        log_p, log_q = (torch.from_numpy(v).log_softmax(-1) for v in (p, q))
        expected = exact_kl(log_p.numpy(), log_q.numpy())
        # rounding of log-probabilities near 2 is 2e-16, relative to differences of size `scale`
        assert float(kl(log_p, log_q)) == pytest.approx(expected, rel=1e-14 + 1e-15 / scale)


def test_equal_laws_have_none_exactly():
    p = torch.randn(4, 7, generator=torch.Generator().manual_seed(0)).double().log_softmax(-1)
    assert kl(p, p).eq(0).all()


def test_the_divergence_at_its_edges():
    inf = torch.inf

    def of(p: list[float], q: list[float]) -> float:
        return float(kl(torch.tensor(p).double(), torch.tensor(q).double()))

    half = -float(np.log(2))
    assert of([half, half], [0.0, -inf]) == inf  # mass where q has none
    assert of([0.0, -inf], [half, half]) == pytest.approx(np.log(2), rel=1e-15)
    assert of([0.0, -inf, -inf], [half, half, -inf]) == pytest.approx(np.log(2), rel=1e-15)
    assert of([-2000.0, 0.0], [0.0, -2000.0]) == pytest.approx(2000, rel=1e-12)  # exp(-2000) is 0, exp(2000) is inf
    assert of([-800.0, 0.0], [half, half]) == pytest.approx(np.log(2), rel=1e-12)
    assert of([0.0, -800.0], [0.0, -inf]) == inf


# ------------------------------------------------------------------------------------------------- metrics of a policy


def by_hand(snapshot: Any, r: int) -> dict[str, float]:
    """The metrics of a policy, by loops over contexts and actions."""
    evaluation = snapshot.instance.evaluation
    weights, ref = evaluation.weights[r].numpy(), evaluation.ref_log_probs[r].exp().numpy()
    rewards = np.einsum("xad,d->xa", evaluation.features[r].numpy(), snapshot.instance.theta[r].numpy())
    pi = snapshot.log_probs[r].exp().numpy()
    total = dict.fromkeys(
        ["suboptimality", "kl_to_optimum", "kl_to_ref", "expected_reward", "policy_reward_regret", "argmax_regret"], 0.0
    )
    total |= {"win_rate_vs_ref": 0.0, "worst_argmax_regret": -np.inf}
    for x in range(len(weights)):
        offered = ref[x] > 0
        best = rewards[x, offered].max()
        tilted = ref[x] * np.exp(rewards[x] / KL_COEF)
        optimum = tilted / tilted.sum()

        def value(law: np.ndarray, x: int = x, offered: np.ndarray = offered) -> float:
            penalty = sum(law[a] * np.log(law[a] / ref[x, a]) for a in range(A) if offered[a])
            return float(law @ rewards[x] - KL_COEF * penalty)

        gap = best - rewards[x, np.where(pi[x] > pi[x].max() - 1e-9)[0][0]]
        terms = {
            "suboptimality": value(optimum) - value(pi[x]),
            "kl_to_optimum": sum(pi[x, a] * np.log(pi[x, a] / optimum[a]) for a in range(A) if offered[a]),
            "kl_to_ref": sum(pi[x, a] * np.log(pi[x, a] / ref[x, a]) for a in range(A) if offered[a]),
            "expected_reward": pi[x] @ rewards[x],
            "policy_reward_regret": best - pi[x] @ rewards[x],
            "argmax_regret": gap,
            "win_rate_vs_ref": sum(
                pi[x, a] * ref[x, b] / (1 + np.exp(rewards[x, b] - rewards[x, a])) for a in range(A) for b in range(A)
            ),
        }
        for name, term in terms.items():
            total[name] += weights[x] * term
        total["worst_argmax_regret"] = max(total["worst_argmax_regret"], gap)
    return total


def test_metrics_of_a_policy_by_hand():
    """In a world where every context lacks an action, the first, the last or one between."""
    seen = snapshots(Problem(RAGGED, BradleyTerry(), KL_COEF), algorithms.create("greedy"), rounds=3, batch_size=B)
    for snapshot in (seen[0], seen[-1]):
        for r in range(R):
            for name, expected in by_hand(snapshot, r).items():
                measured = float(measure(name, snapshot)[r])
                assert measured == pytest.approx(expected, rel=1e-11, abs=1e-13), name


def test_reward_regret_of_the_actions_played():
    for oracle, k in ((BradleyTerry(), 2), (NoisyReward(0.1), 1), (PlackettLuce(4), 4)):
        seen = snapshots(Problem(RAGGED, oracle, KL_COEF), algorithms.create("uniform"), rounds=2, batch_size=B)
        for snapshot in seen[:-1]:
            rewards = snapshot.instance.rewards(snapshot.instance.pool)
            for r in range(R):
                lost = []
                for x, actions in zip(snapshot.contexts.index[r], snapshot.actions[r], strict=True):
                    best = max(rewards[r, x, a] for a in range(A) if REFERENCE[x, a] > 0)
                    assert len(actions) == k
                    lost.append(np.mean([float(best - rewards[r, x, a]) for a in actions]))
                assert float(measure("reward_regret", snapshot)[r]) == pytest.approx(np.mean(lost), rel=1e-12)
        assert measure("reward_regret", seen[-1]) is None


def test_reward_regret_with_fresh_contexts():
    world = LinearWorld(None, A, D, n_evaluation=17)
    seen = snapshots(Problem(world, BradleyTerry(), KL_COEF), algorithms.create("uniform"), rounds=2, batch_size=B)
    snapshot = seen[1]
    rewards = torch.einsum("rbad,rd->rba", snapshot.contexts.features, snapshot.instance.theta)
    for r in range(R):
        lost = [float(rewards[r, b].max() - rewards[r, b, a]) for b in range(B) for a in snapshot.actions[r, b]]
        assert float(measure("reward_regret", snapshot)[r]) == pytest.approx(np.mean(lost), rel=1e-12)


def test_ties_of_the_most_probable_action_go_to_the_first_within_rounding():
    world = TableWorld(np.log(np.full((1, 3), 1 / 3)), [[0.0, 1.0, 0.25]])
    table = torch.tensor([[[0.4, 0.4 + 1e-13, 0.2]]]).double().log()
    algorithm, problem = algorithms.create("uniform"), Problem(world, BradleyTerry(), 1.0)
    snapshot = snapshots(problem, algorithm, rounds=1)[0]
    snapshot.__dict__["log_probs"] = table.expand(R, -1, -1)
    assert measure("argmax_regret", snapshot).tolist() == [1.0] * R


def test_small_gaps_are_not_lost_in_large_rewards():
    """Rewards near 1e8, a policy that is optimal up to a probability of 1e-12."""
    world = TableWorld(np.log(np.full((1, 2), 0.5)), [[1e8, 1e8 + 2]])
    snapshot = snapshots(Problem(world, BradleyTerry(), 1.0), algorithms.create("uniform"), rounds=1)[0]
    snapshot.__dict__["log_probs"] = torch.tensor([[[1e-12, 1 - 1e-12]]]).double().log().expand(R, -1, -1)
    assert measure("policy_reward_regret", snapshot)[0] == pytest.approx(2e-12, rel=1e-6)


# ------------------------------------------------------------------------------------------------- metrics of the data


@pytest.mark.parametrize(
    ("oracle", "offline"), [(BradleyTerry(), 0), (BradleyTerry(), 9), (NoisyReward(0.2), 5), (PlackettLuce(3), 0)]
)
def test_estimation_error_is_the_mean_over_everything_learnt_from(oracle, offline):
    """Logged data count too, and of a ranking all its pairs."""
    algorithm: Any = algorithms.create("greedy", refit_growth=0.0)
    learnt: list[tuple] = []

    class Spy(type(algorithm)):
        def update(self, state: Any, contexts: Any, actions: Any, feedback: Any, draws: Any) -> Any:
            learnt.append((contexts.features_of(actions), feedback))
            return super().update(state, contexts, actions, feedback, draws)

    logged = Logged(Reference(), offline) if offline else None
    seen = snapshots(Problem(WORLD, oracle, KL_COEF), Spy(refit_growth=0.0), rounds=2, batch_size=B, offline=logged)
    assert (measure("estimation_error", seen[0]) is None) == (offline == 0)
    last = seen[-1]
    for r in range(R):
        squares = []
        away = (last.info.theta - last.instance.theta)[r]
        for phi, _ in learnt:
            for batch in phi[r]:
                k = len(batch)
                zs = [batch[0]] if k == 1 else [batch[i] - batch[j] for i in range(k) for j in range(i)]
                squares += [float(away @ z) ** 2 for z in zs]
        expected = np.sqrt(np.mean(squares))
        assert float(measure("estimation_error", last)[r]) == pytest.approx(expected, rel=1e-10)


def test_informative_pairs_count_duels_of_two_different_actions():
    results = run(
        Problem(WORLD, BradleyTerry(), 0.05),
        algorithms.create("online_dpo"),
        rounds=5,
        batch_size=B,
        replicates=R,
        metrics=["informative_pairs"],
        record="all",
        keep_data=True,
    )
    different = results.data["first"] != results.data["second"]
    expected = different.groupby([results.data["replicate"], results.data["round"]]).sum().unstack().cumsum(axis=1)
    measured = results.frame().pivot(index="replicate", columns="round", values="value")
    np.testing.assert_array_equal(measured.loc[:, 1:], expected)
    assert (measured[0] == 0).all()
    assert 0 < measured[5].sum() < 5 * B * R


def test_diagnostics_come_from_the_last_update():
    names = ["fit_residual", "fit_iterations", "confidence_radius", "queries"]
    frame = run(
        Problem(WORLD, BradleyTerry(), 1.0),
        algorithms.create("kl_ucb", radius=1.5),
        rounds=2,
        batch_size=B,
        metrics=names,
    ).frame()
    rounds = frame.groupby("metric")["round"].apply(list).to_dict()
    assert rounds == {"queries": [0, 1, 2], **{name: [1, 2] for name in names[:3]}}
    assert frame.loc[frame["metric"] == "confidence_radius", "value"].tolist() == [1.5, 1.5]
    assert frame.loc[frame["metric"] == "fit_residual", "value"].max() < 1e-9 * 2 * B
    assert frame.loc[frame["metric"] == "fit_iterations", "value"].max() >= 1


# ------------------------------------------------------------------------------------------------- the registry


def test_every_metric_says_what_an_axis_must_say():
    assert set(METRICS) >= {
        "suboptimality",
        "reward_regret",
        "argmax_regret",
        "kl_to_ref",
        "kl_to_optimum",
        "win_rate_vs_ref",
        "informative_pairs",
        "estimation_error",
        "queries",
        "oracle_evaluations",
        "fit_residual",
    }
    for name, metric in METRICS.items():
        assert metric.label, name
        assert metric.unit, name
        assert metric.better in ("lower", "higher", "neither")
        assert metric.function.__doc__
        assert not name.startswith(CUMULATIVE)


def test_a_users_own_metric_and_its_sum():
    def entropy(snapshot: Any) -> torch.Tensor:
        return snapshot.over_contexts(-(snapshot.log_probs.exp() * snapshot.log_probs).sum(-1))

    frame = run(
        Problem(WORLD, BradleyTerry(), 1.0),
        algorithms.create("greedy"),
        rounds=3,
        batch_size=B,
        replicates=R,
        metrics=[("entropy", entropy), ("cumulative_entropy", entropy), "kl_to_ref"],
    ).frame()
    wide = frame[frame["replicate"] == 2].pivot(index="round", columns="metric", values="value")
    instance: Any = WORLD.instance(R, Draws(0, R))
    ref = instance.pool.ref_log_probs[2]
    assert wide["entropy"][0] == pytest.approx(-float((ref.exp() * ref).sum(-1).mean()), rel=1e-12)
    np.testing.assert_allclose(wide["cumulative_entropy"], [0, *B * wide["entropy"].cumsum()[:3]], rtol=1e-12)


def test_defaults_leave_the_sum_of_gaps_to_finite_worlds():
    instances: list[Any] = [w.instance(1, Draws(0, 1)) for w in (WORLD, LinearWorld(None, A, D, n_evaluation=8))]
    finite, fresh = (metrics.defaults(instance, BradleyTerry()) for instance in instances)
    assert [*fresh, "cumulative_suboptimality"] == finite
    assert fresh == ["suboptimality", "reward_regret", "cumulative_reward_regret", "kl_to_ref"]


def test_a_deterministic_policy_has_a_finite_gap():
    """KL(pi || pi*), not its reverse, which would be infinite."""
    seen = snapshots(Problem(WORLD, BradleyTerry(), KL_COEF), algorithms.create("uniform"), rounds=1)
    snapshot = seen[0]
    snapshot.__dict__["log_probs"] = Tabular(torch.eye(A)[torch.arange(X) % A].double().log()).table.expand(R, -1, -1)
    optimum = snapshot.optimum[:, torch.arange(X), torch.arange(X) % A]
    expected = -KL_COEF * optimum.mean(-1)
    torch.testing.assert_close(measure("suboptimality", snapshot), expected, rtol=1e-12, atol=0)
