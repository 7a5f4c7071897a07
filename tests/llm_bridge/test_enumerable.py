"""The exact rung: a table is a one-token LM, gradients are exact, and every direct row runs unchanged."""

import dataclasses
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llm_bridge import EnumerableLM, sequence_log_probs
from llm_bridge.enumerable import LBFGS, value_and_gradient
from simbandit import algorithms, losses
from simbandit.algorithms.direct import Direct
from simbandit.objective import Descent, PairLogProbs
from simbandit.oracles import BradleyTerry, HodgeMix
from simbandit.policies import Tabular, gibbs
from simbandit.simulate import Problem, simulate
from simbandit.types import Contexts
from studies import shortcuts
from studies._language import Embedded, HeadSolved
from tests.llm_bridge import models

R, X, V, KL = 3, 5, 4, 0.6
DIRECT = [name for name in algorithms.names() if isinstance(algorithms.create(name), Direct)]
BRIEF = {"sail_dp": {"passes": 2}}  # 200 as registered
STEPS = Descent(steps=12, learning_rate=0.1, optimiser="sgd")


def small(length: int = 2, vocabulary: int = 3, scale: float = 0.3, **options: Any) -> EnumerableLM:
    model = models.randomised(models.gpt2(vocabulary, n_embd=8, n_layer=2, n_head=2, window=8), scale=scale)
    return EnumerableLM(model, [[0], [1, 2], [2, 0, 1]], length, **options)


def curve(problem: Any, algorithm: Any, policy: Any, **options: Any) -> Any:
    settings: dict[str, Any] = {"rounds": 10, "batch_size": 15, "replicates": R, "record": "all", "keep_data": True}
    return simulate(problem, algorithm, policy=policy, metrics=["suboptimality", "duality_gap"], **(settings | options))


def same_curve(one: Any, other: Any, tolerance: float) -> None:
    assert one.data.equals(other.data)
    frames = [r.frame()["value"].to_numpy() for r in (one, other)]
    np.testing.assert_allclose(frames[0], frames[1], rtol=0, atol=tolerance)
    assert np.ptp(frames[0]) > 1e-3  # something was learnt


# ------------------------------------------------------------------------------------------------------ table = LM


@pytest.mark.parametrize("name", DIRECT)
def test_a_one_token_lm_whose_parameters_are_the_table_is_the_table(name):
    """The same inexact fit on both: steps from the last policy."""
    lm = EnumerableLM(Embedded(np.random.default_rng(0).normal(size=(X, V))), [[x] for x in range(X)], 1)
    world = lm.world(rewards=np.random.default_rng(1).normal(size=(X, V)), reward_range=(-3.0, 3.0))
    problem, algorithm = (
        Problem(world, BradleyTerry(), KL),
        algorithms.create(name, proximal=1e-3, descent=STEPS, **BRIEF.get(name, {})),
    )
    same_curve(curve(problem, algorithm, lm), curve(problem, algorithm, None), 1e-12)


@pytest.mark.parametrize("name", ["online_dpo", "inpo", "online_ipo", "ipo_md", "dno", "rspo"])
def test_a_transformer_whose_head_takes_the_argmin_is_the_table(name):
    lm = EnumerableLM(models.gpt2(V, tie_word_embeddings=False), [[x % V, x] for x in range(V)], 1)
    world = lm.world(rewards=np.random.default_rng(1).normal(size=(V, V)), reward_range=(-3.0, 3.0))
    problem, algorithm = Problem(world, BradleyTerry(), KL), algorithms.create(name, proximal=1e-3)
    one = curve(problem, algorithm, HeadSolved(lm))
    same_curve(one, curve(problem, algorithm, Tabular(lm.table.detach().expand(R, -1, -1))), 1e-12)


# ------------------------------------------------------------------------------------------------------ exactness


def test_the_list_is_the_law_of_the_model():
    lm = small(length=3)
    assert lm.table.shape == (1, 3, 27)
    torch.testing.assert_close(lm.table.exp().sum(-1), torch.ones(1, 3).double(), rtol=0, atol=1e-12)
    rows = [(p, lm.tokens(a)) for p in lm.prompts for a in range(27)]
    scored = sequence_log_probs(lm.model, [p for p, _ in rows], [r for _, r in rows])
    torch.testing.assert_close(lm.table.flatten(), scored, rtol=0, atol=1e-10)
    assert [lm.number(r) for r in lm.responses()] == list(range(27))
    assert lm.tokens(5) == (0, 1, 2)


@pytest.mark.parametrize("end", [0, 1, 2])
def test_with_an_end_token_responses_are_of_any_length_and_still_the_law(end):
    lm = small(length=4, end=end)
    said = lm.responses()
    assert len(said) == lm.n_responses == 1 + 2 + 4 + 8 + 16
    assert {r.index(end) for r in said if end in r} == {0, 1, 2, 3}
    assert all(end not in r[:-1] and (r[-1] == end or len(r) == 4) for r in said)
    assert lm.lengths.tolist() == [len(r) for r in said]
    rows = [(p, r) for p in lm.prompts for r in said]
    scored = sequence_log_probs(lm.model, [p for p, _ in rows], [r for _, r in rows])
    torch.testing.assert_close(lm.table.flatten(), scored, rtol=0, atol=1e-10)
    torch.testing.assert_close(lm.table.exp().sum(-1), torch.ones(1, 3).double(), rtol=0, atol=1e-12)
    assert [lm.number(r) for r in said] == list(range(31))
    assert said == sorted(said)  # so that one uniform decodes token by token
    with pytest.raises(ValueError, match=f"up to 4 ids, the last one {end}, below 3"):
        lm.number((end, 0))


def test_an_end_token_that_is_never_said_changes_nothing():
    logits = np.array([[-1e3, 0.3, -0.2], [-1e3, 0.1, 0.4], [-1e3, -0.5, 0.2]])
    lm = EnumerableLM(Embedded(logits), [[1], [2]], 3, end=0)
    plain = EnumerableLM(Embedded(logits[1:, 1:]), [[0], [1]], 3)
    whole = [all(t > 0 for t in r) for r in lm.responses()]
    torch.testing.assert_close(lm.table[..., torch.tensor(whole)], plain.table, rtol=0, atol=1e-12)


@pytest.mark.parametrize("end", [None, 1])
def test_the_kls_along_responses_add_up_to_the_kl_but_not_to_its_gradient(end):
    lm = small(length=3, end=end)
    start = lm.parameters
    assert start is not None
    at = start + 0.2 * torch.from_numpy(np.random.default_rng(1).normal(size=(2, start.shape[1])))

    def summed(parameters: Tensor, whole: bool) -> Tensor:
        policy = dataclasses.replace(lm, parameters=parameters)
        law = policy.table.exp()
        return ((law if whole else law.detach()) * policy.kl_along(lm)).sum((-1, -2))

    def direct(parameters: Tensor) -> Tensor:
        return dataclasses.replace(lm, parameters=parameters).kl_to(lm).sum(-1)

    value, gradient = value_and_gradient(direct, at)
    same, right = value_and_gradient(partial(summed, whole=True), at)
    _, wrong = value_and_gradient(partial(summed, whole=False), at)
    torch.testing.assert_close(same, value, rtol=1e-12, atol=0)
    torch.testing.assert_close(right, gradient, rtol=0, atol=1e-12)
    assert (wrong - gradient).norm() > 0.01 * gradient.norm()


def test_replicates_are_stacked_and_do_not_mix():
    lm = small()
    start = lm.parameters
    assert start is not None
    rng = np.random.default_rng(0)
    weights = start + 0.1 * torch.from_numpy(rng.normal(size=(5, start.shape[1])))
    together = dataclasses.replace(lm, parameters=weights, chunk=2).table
    for r in range(5):
        alone = dataclasses.replace(lm, parameters=weights[r : r + 1]).table
        torch.testing.assert_close(together[r : r + 1], alone, rtol=0, atol=1e-12)


def test_one_uniform_decodes_token_by_token():
    lm = small(length=3)
    pool = lm.world().instance(1, _draws(1)).pool
    uniforms = torch.from_numpy(np.random.default_rng(0).random((1, 40)))
    contexts = Contexts(index=torch.arange(40)[None] % 3, pool=pool)
    drawn = lm.sample(contexts, uniforms)
    conditional = lm.token_log_probs().exp()[0].detach()
    for i in range(40):
        u, x, prefix = float(uniforms[0, i]), i % 3, []
        for t in range(3):
            before = [a for a in range(9) if list(lm.tokens(a * 3)[:t]) == prefix]
            law = conditional[x, before[0], t].numpy()
            edges = law.cumsum()
            token = int((edges <= u).sum())
            u = (u - (edges[token] - law[token])) / law[token]
            prefix.append(token)
        assert int(drawn[0, i]) == lm.number(prefix)


def _draws(replicates: int) -> Any:
    from simbandit.draws import Draws

    return Draws(0, replicates)


def exact_value(lm: EnumerableLM, parameters: Tensor, rewards: Tensor, reference: Tensor) -> Tensor:
    """J = E r - KL * KL(pi || ref), mean over prompts: (R,)."""
    table = dataclasses.replace(lm, parameters=parameters).table
    return (table.exp() * (rewards - KL * (table - reference))).sum(-1).mean(-1)


def test_gradients_of_the_exact_objective_are_finite_differences():
    lm = small(length=3)
    start = lm.parameters
    assert start is not None
    rng = np.random.default_rng(1)
    rewards = torch.from_numpy(rng.normal(size=(3, 27)))
    at = start + 0.2 * torch.from_numpy(rng.normal(size=(2, start.shape[1])))
    value = partial(exact_value, lm, rewards=rewards, reference=lm.table.detach())
    _, gradient = value_and_gradient(value, at)
    for _ in range(4):
        direction = torch.from_numpy(rng.normal(size=at.shape))
        step = 1e-5 * direction
        slope = (value(at + step) - value(at - step)) / 2e-5
        torch.testing.assert_close((gradient * direction).sum(-1), slope.detach(), rtol=1e-6, atol=1e-8)


def duels(lm: EnumerableLM, row: Tensor, actions: Tensor, weight: Tensor, loss: Any) -> Any:
    """sum of weight x loss over duels with Bradley-Terry labels, as a function of a policy."""
    rewards = np.random.default_rng(2).normal(size=(len(lm.prompts), lm.n_responses))
    instance = lm.world(rewards=rewards).instance(1, _draws(1))
    at = Contexts(index=row, pool=instance.pool)
    label = BradleyTerry().bind(instance).prob(at, actions[..., 0], actions[..., 1])
    held = lm.log_probs(at, actions).detach()

    def objective(policy: Any) -> Tensor:
        log_probs = PairLogProbs(policy.log_probs(at, actions), held, held)
        return (weight * loss(log_probs, label, KL)).sum(-1)

    return objective


@pytest.mark.parametrize("loss", [losses.dpo, losses.ipo, partial(losses.inpo, step_size=0.7)])
def test_sampled_losses_estimate_the_exact_gradient(loss):
    """The gradient over all pairs, weighted by their law, is finite differences, and its sampled form is unbiased."""
    lm = small()
    start = lm.parameters
    assert start is not None
    rng = np.random.default_rng(3)
    at = start + 0.2 * torch.from_numpy(rng.normal(size=start.shape))
    pairs = torch.cartesian_prod(torch.arange(9), torch.arange(9))
    row, actions = torch.arange(3).repeat_interleave(81)[None], pairs.repeat(3, 1)[None]
    pi = lm.table.detach()[0]
    weight = (pi[row[0], actions[0, :, 0]] + pi[row[0], actions[0, :, 1]]).exp()[None] / 3

    def value(row: Tensor, actions: Tensor, weight: Tensor) -> Any:
        objective = duels(lm, row, actions, weight, loss)
        return lambda x: objective(dataclasses.replace(lm, parameters=x))

    exact = value(row, actions, weight)
    _, gradient = value_and_gradient(exact, at)
    direction = torch.from_numpy(rng.normal(size=at.shape))
    slope = (exact(at + 1e-5 * direction) - exact(at - 1e-5 * direction)) / 2e-5
    torch.testing.assert_close((gradient * direction).sum(-1), slope.detach(), rtol=1e-6, atol=1e-8)
    n, groups = 1500, 24
    estimates = []
    for _ in range(groups):
        contexts = Contexts(
            index=torch.from_numpy(rng.integers(0, 3, (1, n))), pool=lm.world().instance(1, _draws(1)).pool
        )
        drawn = [lm.sample(contexts, torch.from_numpy(rng.random((1, n)))) for _ in range(2)]
        assert contexts.index is not None
        sampled = value(contexts.index, torch.stack(drawn, -1), torch.full((1, n), 1 / n).double())
        estimates.append((value_and_gradient(sampled, at)[1] * direction).sum())
    mean, error = torch.stack(estimates).mean(), torch.stack(estimates).std() / groups**0.5
    assert abs(float(mean - slope)) < 4 * float(error)
    assert float(error) < 0.1 * abs(float(slope))  # so the line above can fail


def per_token_kl(lm: EnumerableLM, parameters: Tensor, reference: EnumerableLM) -> Tensor:
    """The shortcut: KL of each token's law, summed along responses whose own law is held fixed."""
    policy = dataclasses.replace(lm, parameters=parameters)
    now, ref = policy.token_log_probs(), reference.token_log_probs().detach()
    per_position = (now.exp() * (now - ref)).sum(-1)  # (R, X, S, T), position t after t tokens of prefix s
    law = policy.table.detach().exp().unflatten(-1, (-1, lm.vocabulary)).sum(-1)  # (R, X, S)
    return (law[..., None] * per_position).sum((-1, -2)).sum(-1)


@pytest.mark.parametrize("length", [1, 3])
def test_the_per_token_shortcut_has_the_value_of_the_sequence_kl_and_not_its_gradient(length):
    lm = small(length=length, scale=1.0)
    start = lm.parameters
    assert start is not None
    at = start + 0.3 * torch.from_numpy(np.random.default_rng(5).normal(size=start.shape))

    def sequence_kl(x: Tensor) -> Tensor:
        return dataclasses.replace(lm, parameters=x).kl_to(lm).sum(-1)

    exact, gradient = value_and_gradient(sequence_kl, at)
    shortcut, wrong = value_and_gradient(lambda x: per_token_kl(lm, x, lm), at)
    torch.testing.assert_close(exact, shortcut, rtol=1e-10, atol=1e-12)
    error = (gradient - wrong).norm() / gradient.norm()
    assert error < 1e-10 if length == 1 else error > 0.05, error


# ------------------------------------------------------------------------------------------------------ learning


@pytest.mark.parametrize("name", DIRECT)
def test_every_direct_row_runs_unchanged(name):
    lm = small(length=1, fit_by=Descent(1, 0.01))
    world = lm.world(rewards=np.random.default_rng(0).normal(size=(3, 3)))
    results = simulate(
        Problem(world, HodgeMix(curl=0.5), KL),
        algorithms.create(name, **BRIEF.get(name, {})),
        rounds=1,
        batch_size=4,
        replicates=2,
        policy=lm,
        metrics=["duality_gap", "fit_iterations"],
    )
    frame = results.frame()
    assert np.isfinite(frame["value"]).all()
    assert isinstance(results.policy, EnumerableLM)
    assert results.policy.table.shape == (2, 3, 3)


def test_inpo_on_a_two_layer_lm_approaches_the_equilibrium_as_the_table_does():
    lm = small(fit_by=Descent(60, 0.02))
    world = lm.world(rewards=np.random.default_rng(0).normal(size=(3, 9)))
    problem = Problem(world, HodgeMix(curl=1.0), KL)
    options: dict[str, Any] = {"rounds": 6, "batch_size": 2000, "replicates": 2, "keep_data": False}
    runs = [curve(problem, algorithms.create("inpo"), p, **options) for p in (lm, None)]
    frames = [r.frame().query("metric == 'duality_gap'").groupby("round")["value"].mean() for r in runs]
    assert frames[0].iloc[-1] < 0.15 * frames[0].iloc[0]
    assert abs(frames[0].iloc[-1] - frames[1].iloc[-1]) < 0.05 * frames[0].iloc[0]


def test_lbfgs_reaches_the_stated_residual_and_says_so():
    """One token, DPO with the proximal term: convex in the logits, so the argmin over tables is found."""
    logits = np.random.default_rng(0).normal(size=(X, V))
    lm = EnumerableLM(Embedded(logits), [[x] for x in range(X)], 1, fit_by=LBFGS(tolerance=1e-8, max_iterations=400))
    world = lm.world(rewards=np.random.default_rng(1).normal(size=(X, V)), reward_range=(-9.0, 9.0))
    problem, algorithm = Problem(world, BradleyTerry(), KL), algorithms.create("online_dpo", proximal=0.05)
    options: dict[str, Any] = {"rounds": 3, "batch_size": 40}
    one, table = curve(problem, algorithm, lm, **options), curve(problem, algorithm, None, **options)
    same_curve(one, table, 1e-6)
    hasty = dataclasses.replace(lm, fit_by=LBFGS(tolerance=1e-8, max_iterations=1))
    for policy, reached in ((lm, True), (hasty, False)):
        frame = simulate(problem, algorithm, policy=policy, rounds=1, batch_size=9, metrics=["fit_residual"]).frame()
        assert bool(frame["value"].iloc[-1] <= 9e-8) is reached


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 0}, "length: must be at least 1"),
        ({"length": 10}, r"length: 3 tokens and length 10 give 59,049 responses; at most 20,000"),
        ({"end": 3}, "end: must be a token below 3, got 3"),
        ({"prompts": [[0], []]}, "prompts: .* none may be empty"),
    ],
)
def test_bad_input_is_refused(change, message):
    given: dict[str, Any] = {"model": models.gpt2(3), "prompts": [[0]], "length": 2} | change
    with pytest.raises(ValueError, match=message):
        EnumerableLM(**given)


def test_numbers_of_wrong_responses_are_refused():
    with pytest.raises(ValueError, match="tokens: must be 2 ids below 3"):
        small().number([0, 3])
    with pytest.raises(ValueError, match="tolerance: must be > 0"):
        LBFGS(tolerance=0.0)
    with pytest.raises(ValueError, match="max_iterations: must be at least 1"):
        LBFGS(max_iterations=0)


def test_the_token_level_kl_stops_at_its_own_stationary_policy():
    """At every prefix log pi / ref of a next token is what the response is expected to pay after it, over kl_coef, up
    to a constant; with the KL of whole responses the policy is Gibbs."""
    said, kl_coef = small(length=3, end=1).responses(), 0.7
    rng = np.random.default_rng(3)
    payoff, logits = (torch.from_numpy(rng.normal(size=(n, 2, len(said)))) for n in (4, 1))
    ref = logits.log_softmax(-1)
    whole, token = (shortcuts.stationary(payoff, ref, said, level, kl_coef) for level in ("sequence", "token"))
    torch.testing.assert_close(whole, gibbs(payoff, ref.expand_as(payoff), kl_coef), rtol=0, atol=1e-12)
    assert (token - whole).abs().max() > 0.1
    p, q = token.exp(), ref.exp()
    torch.testing.assert_close(p.sum(-1), torch.ones(4, 2).double(), rtol=0, atol=1e-12)
    for prefix in {r[:t] for r in said for t in range(len(r))}:
        values = []
        for v in range(3):
            among = [i for i, r in enumerate(said) if r[: len(prefix) + 1] == (*prefix, v)]
            mass, old = p[..., among].sum(-1), q[..., among].sum(-1)
            values.append((mass / old).log() - (p * payoff)[..., among].sum(-1) / mass / kl_coef)
        spread = torch.stack(values).amax(0) - torch.stack(values).amin(0)
        assert spread.max() < 1e-12
