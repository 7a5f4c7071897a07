"""The direct family: rows that coincide with model-based learning, exact steps, and policies that the package does not
know."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from simbandit import algorithms, losses
from simbandit.algorithms import direct
from simbandit.draws import Draws
from simbandit.objective import DuelObjective, Term
from simbandit.oracles import BradleyTerry
from simbandit.policies import LogLinear, Reference, Tabular, gibbs, inverse_cdf
from simbandit.simulate import Problem, simulate
from simbandit.types import Contexts, FitInfo, Setting
from simbandit.worlds import LinearWorld, TableWorld

R, X, A, D = 3, 5, 4, 2
KL = 0.6
SIGNS = np.array([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]]) / np.sqrt(2)
"""All signs: features of norm 1 whose covariance over a context's actions is I / 2, so that both penalties agree."""
SKEWED = np.array([0.4, 0.3, 0.2, 0.1])
WORLD = LinearWorld(features=np.broadcast_to(SIGNS, (X, A, D)), theta="sphere", theta_norm=2.0, reference=SKEWED)
RANDOM = LinearWorld(X, A, D, reference="softmax")
FRESH = LinearWorld(None, A, D, n_evaluation=50)
PLAIN = TableWorld(np.log(np.tile(SKEWED, (X, 1))), np.random.default_rng(0).normal(size=(X, A)), reward_range=(-3, 3))


def run(problem: Any, algorithm: Any, **options: Any) -> Any:
    return simulate(problem, algorithm, **options)


def instance_of(world: Any, replicates: int = R) -> Any:
    return world.instance(replicates, Draws(0, replicates))


# ------------------------------------------------------------------------------------------------- identities


@pytest.mark.parametrize("batch_size", [1, 16])
@pytest.mark.parametrize("ridge", [1e-3, 0.5])
def test_dpo_on_log_linear_policies_is_greedy_self_play(batch_size, ridge):
    """The implied reward kl_coef <theta, phi> is the MLE; ball |theta| <= span / (2 kl_coef max |phi|) is the world's
    |theta*| <= 2; ridge / 2 |kl_coef theta|^2 is the proximal sum_x Var_a <theta, phi> = X |theta|^2 / 2. Same players,
    so the same actions, whatever is in the ball or on its boundary."""
    problem = Problem(WORLD, BradleyTerry(), KL)
    dpo = algorithms.create("online_dpo", proximal=ridge * KL**2 / X)
    greedy = algorithms.create("greedy", pairing="self", ridge=ridge, refit_growth=0.0)
    options: dict[str, Any] = {
        "rounds": 12,
        "batch_size": batch_size,
        "replicates": R,
        "record": "all",
        "keep_data": True,
    }
    one, other = run(problem, dpo, **options), run(problem, greedy, **options)
    assert one.data.equals(other.data)
    # fits stop at a gradient of 1e-9 a duel, over a curvature of at least `ridge`
    frames = [r.frame()["value"] for r in (one, other)]
    np.testing.assert_allclose(frames[0], frames[1], rtol=1e-4, atol=1e-6)


def test_dpo_over_all_policies_is_the_gibbs_policy_of_the_tabular_mle():
    """Soft labels of every pair, equally often: the implied reward is the true one, up to a shift per context."""
    instance = instance_of(PLAIN)
    pool = instance.pool
    pairs = torch.tensor([[a, b] for a in range(A) for b in range(a)])
    row = torch.arange(X).repeat_interleave(len(pairs)).expand(R, -1)
    actions = pairs.repeat(X, 1).expand(R, -1, -1)
    label = BradleyTerry().bind(instance).prob(Contexts(index=row, pool=pool), actions[..., 0], actions[..., 1])
    policy, _ = update(algorithms.create("online_dpo", proximal=1e-12, value_range=20.0), pool, row, actions, label)
    torch.testing.assert_close(
        policy.log_probs(pool), gibbs(instance.rewards(pool), pool.ref_log_probs, KL), rtol=1e-6, atol=1e-6
    )


def update(algorithm: Any, pool: Contexts, row: Tensor, actions: Tensor, label: Tensor) -> Any:
    """The policy after one update on given duels, and what the update says of itself."""
    setting = Setting(
        replicates=R,
        rounds=1,
        batch_size=row.shape[1],
        n_actions=A,
        dim=None,
        kl_coef=KL,
        reward_range=(-3.0, 3.0),
        contexts=pool,
        policy=Tabular(pool.ref_log_probs),
        feedback="preference",
        n_select=2,
    )
    contexts, draws = Contexts(index=row, pool=pool), Draws(0, R).at(0)
    state, info = algorithm.update(algorithm.init(setting), contexts, actions, label, draws)
    return algorithm.policy(state), info


@pytest.mark.parametrize("step_size", [0.2, 1.0])
def test_inpo_takes_the_mirror_descent_step(step_size):
    """Pairs weighted as i.i.d. draws of pi_t with exact labels: pi_{t+1} is proportional to
    pi_ref^(kl s) pi_t^(1 - kl s) exp(s P(a beats pi_t))."""
    instance = instance_of(PLAIN)
    pool, rng = instance.pool, np.random.default_rng(4)
    last = torch.from_numpy(rng.normal(size=(R, X, A))).log_softmax(-1)
    pairs = torch.cartesian_prod(torch.arange(A), torch.arange(A))
    row = torch.arange(X).repeat_interleave(len(pairs)).expand(R, -1)
    actions = pairs.repeat(X, 1).expand(R, -1, -1)
    duelled = Contexts(index=row, pool=pool)
    ref = Reference()
    weight = Tabular(last).log_probs(duelled, actions).sum(-1).exp()
    duels = Term(
        row=row,
        actions=actions,
        weight=weight,
        label=BradleyTerry().bind(instance).prob(duelled, actions[..., 0], actions[..., 1]),
        last=Tabular(last).log_probs(duelled, actions),
        ref=ref.log_probs(duelled, actions),
        loss=partial(losses.inpo, step_size=step_size),
    )
    objective = DuelObjective(
        contexts=pool,
        terms=(duels,),
        kl_coef=KL,
        anchored=ref.log_probs,
        proximal=0.0,
        bound=100.0,
    )
    fitted, info = Tabular(last).fit(objective)
    assert info.converged.all()
    wins = BradleyTerry().bind(instance).win_rates(pool, last)
    pull = KL * step_size
    expected = (pull * pool.ref_log_probs + (1 - pull) * last + step_size * wins).log_softmax(-1)
    torch.testing.assert_close(fitted.log_probs(pool), expected, rtol=1e-6, atol=1e-6)


@dataclass(frozen=True, eq=False)
class Probe:
    """A policy that remembers the objectives that its class was asked to minimise."""

    inner: Any
    seen: list[Any]

    def log_probs(self, contexts: Contexts, actions: Tensor | None = None) -> Tensor:
        return self.inner.log_probs(contexts, actions)

    def sample(self, contexts: Contexts, uniforms: Tensor) -> Tensor:
        return self.inner.sample(contexts, uniforms)

    def fit(self, objective: Any) -> tuple["Probe", FitInfo]:
        fitted, info = self.inner.fit(objective)
        self.seen.append((self.inner, objective))
        return Probe(fitted, self.seen), info


def objectives(name: str, world: Any, policy: Any, rounds: int = 3, batch_size: int = 30, **fields: Any) -> Any:
    """What a direct method asked its policy to minimise, round by round, and the data."""
    probe = Probe(policy, [])
    problem = Problem(world, BradleyTerry(), KL)
    options: dict[str, Any] = {"keep_data": True} if world is not FRESH else {}
    results = run(
        problem,
        algorithms.create(name, **fields),
        rounds=rounds,
        batch_size=batch_size,
        replicates=R,
        policy=probe,
        metrics=["queries"],
        **options,
    )
    return probe.seen, results.data


def test_inpo_looks_at_the_last_policy_and_at_the_last_rounds_duels_alone():
    pool = instance_of(PLAIN).pool
    seen, data = objectives("inpo", PLAIN, Tabular(pool.ref_log_probs))
    assert len(seen) == 3
    for t, (last, objective) in enumerate(seen):
        (duels,) = objective.terms
        rows = data[data["round"] == t]
        a, b, label = (torch.tensor(rows[c].to_numpy(copy=True)).view(R, 30) for c in ("first", "second", "preferred"))
        assert torch.equal(duels.actions, torch.stack([a, b], -1))
        assert torch.equal(duels.label, label)
        duelled = Contexts(index=duels.row, pool=pool)
        assert torch.equal(duels.last, last.log_probs(duelled, duels.actions))
        assert torch.equal(duels.ref, pool.ref_log_probs[torch.arange(R)[:, None], duels.row].gather(-1, duels.actions))
    (second,) = seen[1][1].terms
    assert not torch.allclose(second.last, second.ref)


@pytest.mark.parametrize("players", [("current", "current"), ("current", "reference"), ("uniform", "reference")])
def test_who_plays(players):
    problem = Problem(RANDOM, BradleyTerry(), KL)
    laws: list[Tensor] = []

    def keep(snapshot: Any) -> Tensor:
        laws.append(snapshot.log_probs)
        return torch.zeros(R)

    results = run(
        problem,
        algorithms.create("online_dpo", players=players),
        rounds=4,
        batch_size=9,
        replicates=R,
        keep_data=True,
        metrics=[("k", keep)],
        record="all",
    )
    pool, draws = instance_of(RANDOM).pool, Draws(0, R)
    for t in range(4):
        rows = results.data[results.data["round"] == t]
        index, *played = (torch.tensor(rows[c].to_numpy(copy=True)).view(R, 9) for c in ("context", "first", "second"))
        contexts = Contexts(index=index, pool=pool)
        law = {
            "current": laws[t],
            "reference": pool.ref_log_probs,
            "uniform": torch.full((R, X, A), 1 / A).double().log(),
        }
        for i, player in enumerate(players):
            uniforms = draws.at(t).uniform(f"player{i}", 9)
            assert torch.equal(played[i], inverse_cdf(contexts.rows(law[player]), uniforms))


def test_a_duel_of_an_action_with_itself_says_nothing():
    pool = instance_of(PLAIN).pool
    row, label = torch.zeros(R, 6, dtype=torch.int64), torch.ones(R, 6).double()
    same = torch.full((R, 6, 2), 2)
    for name in ("online_dpo", "inpo"):
        policy, _ = update(algorithms.create(name), pool, row, same, label)
        torch.testing.assert_close(policy.log_probs(pool), pool.ref_log_probs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("value_range", [0.5, 4.0])
def test_an_action_that_only_ever_lost_stops_at_the_bound(value_range):
    """kl_coef times the log-ratio gap of winner and loser is the bound, not infinity."""
    pool = instance_of(PLAIN).pool
    row, label = torch.full((R, 8), 3), torch.ones(R, 8).double()
    actions = torch.tensor([1, 2]).expand(R, 8, 2)
    policy, info = update(algorithms.create("online_dpo", value_range=value_range), pool, row, actions, label)
    ratio = KL * (policy.log_probs(pool) - pool.ref_log_probs)[:, 3]
    torch.testing.assert_close(ratio[:, 1] - ratio[:, 2], torch.full((R,), value_range).double(), rtol=1e-8, atol=0)
    assert info.fit_residual.max() < 1e-7


def test_fits_end_where_duels_are_saturated_far_inside_a_wide_bound():
    """With one coordinate pinned to the box its slope is 0 but for rounding; released by that, Newton would crawl."""
    world = LinearWorld(
        n_contexts=1, n_actions=5, dim=5, features="one_hot", theta="gaussian", theta_norm=None, reference="softmax"
    )
    frame = simulate(
        Problem(world, BradleyTerry(), 1.0),
        algorithms.create("online_dpo"),
        rounds=1,
        batch_size=16,
        replicates=64,
        policy="tabular",
        metrics=["fit_iterations", "fit_residual"],
    ).frame()
    for metric, most in (("fit_iterations", 25), ("fit_residual", 1e-9 * 16)):
        assert frame.loc[frame["metric"] == metric, "value"].to_numpy().max() <= most


def test_the_bound_defaults_to_the_width_of_the_reward_range():
    pool = instance_of(PLAIN).pool
    row, label = torch.full((R, 800), 3), torch.ones(R, 800).double()
    policy, _ = update(algorithms.create("online_dpo"), pool, row, torch.tensor([1, 2]).expand(R, 800, 2), label)
    ratio = KL * (policy.log_probs(pool) - pool.ref_log_probs)[:, 3]
    torch.testing.assert_close(ratio[:, 1] - ratio[:, 2], torch.full((R,), 6.0).double(), rtol=1e-8, atol=0)


# -------------------------------------------------------------------------------------------- a third kind of policy


@dataclass(frozen=True, eq=False)
class Neural:
    """pi proportional to pi_ref exp(network(context, action)): two layers on learnt embeddings, some AdamW steps a fit.
    It knows nothing of the package but `Contexts` and the objective that it is handed. `listing` False: it can only
    score actions that it is given, as a language model does."""

    parameters: tuple[Tensor, ...]
    listing: bool = True
    steps: int = 200

    @staticmethod
    def make(seed: int, listing: bool = True) -> "Neural":
        rng = np.random.default_rng(seed)
        shapes = [(R, X, 6), (R, A, 6), (R, 12, 8), (R, 8, 1)]
        scales = [1.0, 1.0, 0.3, 0.0]  # the last layer is 0: the network starts at the reference
        return Neural(
            tuple(torch.from_numpy(s * rng.normal(size=n)) for n, s in zip(shapes, scales, strict=True)), listing
        )

    def logits(self, contexts: Contexts) -> Tensor:
        assert contexts.index is not None
        of_context, of_action, hidden, last = self.parameters
        which = of_context[torch.arange(R)[:, None], contexts.index][:, :, None].expand(-1, -1, A, -1)
        both = torch.cat([which, of_action[:, None].expand(-1, which.shape[1], -1, -1)], dim=-1)
        value = torch.tanh(both @ hidden[:, None]) @ last[:, None]
        return (contexts.ref_log_probs + value.squeeze(-1)).log_softmax(-1)

    def log_probs(self, contexts: Contexts, actions: Tensor | None = None) -> Tensor:
        assert self.listing or actions is not None, "this policy cannot list all actions"
        rows = self.logits(contexts)
        return rows if actions is None else rows.gather(-1, actions)

    def sample(self, contexts: Contexts, uniforms: Tensor) -> Tensor:
        return inverse_cdf(self.logits(contexts).detach(), uniforms)

    def fit(self, objective: Any) -> tuple["Neural", FitInfo]:
        mine = [p.clone().requires_grad_(True) for p in self.parameters]
        optimiser = torch.optim.AdamW(mine, lr=0.03, weight_decay=0.0)
        for _ in range(self.steps):
            optimiser.zero_grad()
            objective(Neural(tuple(mine), self.listing)).sum().backward()
            optimiser.step()
        residual = torch.stack([p.grad.flatten(1).norm(dim=-1) for p in mine if p.grad is not None]).amax(0)
        fitted = Neural(tuple(p.detach() for p in mine), self.listing)
        return fitted, FitInfo(residual, residual < 1e-3, torch.full((R,), float(self.steps)).double())


@pytest.mark.parametrize("name", ["online_dpo", "inpo"])
def test_a_network_learns_through_the_same_loop_and_the_same_algorithms(name):
    problem = Problem(PLAIN, BradleyTerry(), KL)
    algorithm = algorithms.create(name, proximal=1e-4)
    options: dict[str, Any] = {"rounds": 3, "batch_size": 400, "replicates": R, "metrics": ["suboptimality"]}
    network = run(problem, algorithm, policy=Neural.make(0), record="all", **options)
    assert isinstance(network.policy, Neural)
    gaps, exact = (
        r.frame().pivot(index="replicate", columns="round", values="value").to_numpy()
        for r in (network, run(problem, algorithm, record="all", **options))
    )
    assert (gaps[:, 3] < 0.8 * gaps[:, 0]).all()
    # the network can represent every table, and AdamW comes close to the argmin over all of them
    np.testing.assert_allclose(gaps, exact, atol=0.02 * gaps[:, 0].max())


@pytest.mark.parametrize("name", ["online_dpo", "inpo"])
def test_a_policy_that_cannot_list_all_actions_learns_too(name):
    """As a language model: only sampled responses are ever scored (and there is no proximal term over all of them)."""
    problem = Problem(PLAIN, BradleyTerry(), KL)
    algorithm = algorithms.create(name, proximal=0.0)
    options: dict[str, Any] = {"rounds": 3, "batch_size": 60, "replicates": R, "metrics": ["informative_pairs"]}
    blind = run(problem, algorithm, policy=Neural.make(0, listing=False), keep_data=True, **options)
    listing = run(problem, algorithm, policy=Neural.make(0), keep_data=True, **options)
    assert blind.data.equals(listing.data)
    for mine, other in zip(blind.policy.parameters, listing.policy.parameters, strict=True):
        assert torch.equal(mine, other)
    pool = instance_of(PLAIN).pool
    assert not torch.allclose(listing.policy.log_probs(pool), pool.ref_log_probs, atol=0.05)


def test_the_objective_that_a_policy_is_handed_counts_the_same_for_every_kind():
    """A table and a log-linear policy with the same law have the same loss."""
    pool = instance_of(RANDOM).pool
    for name in ("online_dpo", "inpo"):
        seen, _ = objectives(name, RANDOM, LogLinear(torch.zeros(R, D).double()))
        linear = LogLinear(torch.from_numpy(np.random.default_rng(1).normal(size=(R, D))))
        table = Tabular(linear.log_probs(pool))
        for _, objective in seen:
            torch.testing.assert_close(objective(linear), objective(table), rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------------------------------------- fits


@pytest.mark.parametrize("policy", ["tabular", "log_linear"])
@pytest.mark.parametrize("name", ["online_dpo", "inpo"])
def test_fits_are_stationary_and_say_so(name, policy):
    results = run(
        Problem(RANDOM, BradleyTerry(), KL),
        algorithms.create(name),
        rounds=8,
        batch_size=25,
        replicates=R,
        policy=policy,
        metrics=["fit_residual", "fit_iterations", "queries"],
        record="all",
    )
    frame = results.frame().pivot(index=["replicate", "round"], columns="metric", values="value").dropna()
    duels = frame["queries"] if name == "online_dpo" else 25
    assert (frame["fit_residual"] <= 1e-9 * duels).all()
    assert frame["fit_iterations"].between(0, 60).all()  # 0 where a batch repeats one action and says nothing new
    assert frame["fit_iterations"].mean() > (1 if name == "online_dpo" else 0.9)  # inpo is quadratic: one step


def test_fresh_contexts_are_kept_by_dpo_and_dropped_by_inpo():
    sizes = {}
    for name in ("online_dpo", "inpo"):
        seen, _ = objectives(name, FRESH, LogLinear(torch.zeros(R, D).double()), batch_size=7)
        sizes[name] = [objective.terms[0].weight.shape[1] for _, objective in seen]
    assert sizes == {"online_dpo": [7, 14, 21], "inpo": [7, 7, 7]}


def test_hinge_fits_of_sampled_duels_converge_because_their_kinks_narrow_and_a_fit_that_stops_early_says_so(
    monkeypatch,
):
    """Kinks .002 wide on log-ratios of up to 8: Newton alone does not see them from afar."""
    problem, slic = Problem(LinearWorld(20, 10, 5), BradleyTerry(), KL), algorithms.create("slic")
    options: dict[str, Any] = {"rounds": 1, "batch_size": 640, "replicates": 4, "metrics": ["fit_residual"]}
    results = simulate(problem, slic, policy="tabular", **options)
    assert float(np.max(results.frame()["value"])) < 1e-6
    monkeypatch.setattr(direct, "WIDER", ())
    with pytest.warns(UserWarning, match="hinge: . of 4 fits of round 0 stopped at a gradient norm"):
        simulate(problem, slic, policy="tabular", **options)
