"""What every registered algorithm promises. A new one is tested here by its line in the registry alone."""

import copy
import dataclasses
import pickle
import sys
import warnings
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch

from simbandit import algorithms
from simbandit.data import Logged
from simbandit.draws import Draws, Round
from simbandit.oracles import BradleyTerry
from simbandit.policies import Reference, Tabular
from simbandit.simulate import Problem, chunk_size, simulate
from simbandit.types import Algorithm, Contexts
from simbandit.worlds import LinearWorld, TableWorld
from tests.contract.problems import (
    CASES,
    LINEAR,
    ORACLES,
    A,
    Batch,
    Case,
    D,
    Watched,
    X,
    batch,
    reachable,
    table,
    tensors,
)

EVERY = pytest.mark.parametrize("case", CASES, ids=str)
NAMES = pytest.mark.parametrize("name", algorithms.names())
# of the rows of one class, the first that plays rounds: what they share is its code
FIRST = {(type(c.algorithm), c.feedback): c for c in reversed(CASES) if not c.algorithm.offline}
EACH_CLASS = pytest.mark.parametrize("case", FIRST.values(), ids=str)
ROUNDS = 3
SIZES: dict[str, Any] = {"rounds": ROUNDS, "batch_size": 7}
METRICS = ["suboptimality", "kl_to_ref", "policy_reward_regret", "reward_regret", "cumulative_suboptimality"]


def run(case: Case, problem: Problem | None = None, algorithm: Any = None, **options: Any) -> Any:
    chosen = SIZES | {"replicates": 2, "metrics": METRICS, "record": "all"} | options
    with warnings.catch_warnings():
        own = [name for name, _ in getattr(case.algorithm, "loss_parameters", ())]
        for name in [
            *own,
            *(f.name for f in dataclasses.fields(case.algorithm)),
        ]:  # it may warn that a hyper-parameter does not suit the problem
            warnings.filterwarnings("ignore", message=f"{name}: ", category=UserWarning)
        return simulate(problem or case.problem(), algorithm or case.algorithm, **chosen)


def values(results: Any) -> np.ndarray:
    return results.frame()["value"].to_numpy()


# ------------------------------------------------------------------------------------------------ a frozen description


@NAMES
def test_is_a_frozen_comparable_printable_description(name):
    algorithm: Any = algorithms.create(name)
    fields = {f.name: getattr(algorithm, f.name) for f in dataclasses.fields(algorithm)}
    assert isinstance(algorithm, Algorithm)
    assert algorithm == algorithms.create(name)
    assert hash(algorithm) == hash(algorithms.create(name))
    for field, value in fields.items():
        assert f"{field}={value!r}" in repr(algorithm)
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(algorithm, field, value)


@NAMES
def test_round_trips_through_its_configuration(name):
    algorithm: Any = algorithms.create(name)
    fields = {f.name: getattr(algorithm, f.name) for f in dataclasses.fields(algorithm)}
    assert algorithms.create(name, **fields) == algorithm == type(algorithm)(**fields)
    for twin in (pickle.loads(pickle.dumps(algorithm)), copy.deepcopy(algorithm)):
        assert twin == algorithm
        assert hash(twin) == hash(algorithm)


def bad_values() -> list[tuple[str, str, Any]]:
    bad = []
    for name in algorithms.names():
        algorithm: Any = algorithms.create(name)
        names = {f.name for f in dataclasses.fields(algorithm)}
        for field, hint in get_type_hints(type(algorithm)).items():
            parts = [part for p in (hint, *get_args(hint)) for part in (p, *get_args(p))]
            literal = any(get_origin(part) is Literal for part in parts)
            is_field = field in names
            if is_field and (literal or str not in parts):
                bad.append((name, field, ("bogus", "bogus") if get_origin(hint) is tuple else "bogus"))
            if is_field and get_origin(hint) is not tuple and (float in parts or int in parts):
                bad += [(name, field, float("nan")), (name, field, float("inf")), (name, field, -1.0)]
    return bad


@pytest.mark.parametrize(("name", "field", "value"), bad_values())
def test_refuses_hyperparameters_that_mean_nothing(name, field, value):
    with pytest.raises(ValueError, match=f"{field}: "):
        algorithms.create(name, **{field: value})


# ------------------------------------------------------------------------------------------------- knows no truth


class Sealed:
    """Raises when anything of it is touched while the learner runs."""

    def __init__(self, inner: Any, watched: Watched):
        self.__dict__.update(inner=inner, watched=watched)

    def __getattr__(self, name: str) -> Any:
        assert not self.watched.inside, f"the learner touched the truth: {name}"
        return getattr(self.inner, name)


class SealedWorld:
    """Realises another world behind a seal, and keeps what was realised."""

    def __init__(self, inner: Any, watched: Watched):
        self.inner, self.watched, self.realised = inner, watched, []

    def instance(self, replicates: int, draws: Draws) -> Any:
        self.realised.append(self.inner.instance(replicates, draws))
        return Sealed(self.realised[-1], self.watched)


class SealedOracle:
    """Binds another oracle behind a seal."""

    def __init__(self, inner: Any, watched: Watched):
        self.inner, self.watched, self.bound = inner, watched, []
        self.feedback, self.n_select = inner.feedback, inner.n_select

    def bind(self, instance: Any) -> Any:
        self.bound.append(self.inner.bind(instance))
        return Sealed(self.bound[-1], self.watched)


@EVERY
def test_never_receives_the_truth_or_the_oracle(case):
    watched = Watched(case.algorithm)
    world, oracle = SealedWorld(case.problem().world, watched), SealedOracle(ORACLES[case.feedback], watched)
    run(case, Problem(world, oracle, 0.7), watched)
    assert {"init", "update", "policy"} <= {name for name, _, _ in watched.calls}
    truth = [t for i in world.realised for t in (i.theta, i.reward_table) if t is not None]
    addresses = {t.untyped_storage().data_ptr() for t in truth}
    hidden = {id(thing) for thing in [*world.realised, *oracle.bound]}
    seen = list(reachable([(arguments, answer) for _, arguments, answer in watched.calls]))
    assert any(isinstance(thing, Contexts) for thing in seen)  # the walk does reach what is passed
    for thing in seen:
        assert id(thing) not in hidden
        assert not isinstance(thing, Sealed)
        if isinstance(thing, torch.Tensor):
            assert thing.untyped_storage().data_ptr() not in addresses
            assert not any(thing.shape == t.shape and torch.equal(thing, t) for t in truth)


# ------------------------------------------------------------------------------------------------- sound outputs


def check_law(results: Any, world: Any, replicates: int = 2) -> None:
    """Normalised, no NaN, nothing on absent actions, -inf on others only under a deterministic rule."""
    evaluation = world.instance(replicates, Draws(0, replicates)).evaluation
    log_probs, offered = results.policy.log_probs(evaluation), ~torch.isneginf(evaluation.ref_log_probs)
    assert log_probs.shape == offered.shape
    assert log_probs.dtype == torch.float64
    assert not log_probs.isnan().any()
    assert (log_probs.exp().sum(-1) - 1).abs().max() < 1e-12
    assert log_probs[~offered].isneginf().all()
    never = (torch.isneginf(log_probs) & offered).any(-1)
    played = log_probs[never]
    best = played.amax(-1, keepdim=True)
    assert (torch.isneginf(played) | (played > best - 1e-12)).all()  # an argmax, uniform over ties
    frame = results.frame()
    assert np.isfinite(frame["value"]).all()
    assert frame.loc[frame["metric"] == "suboptimality", "value"].min() >= 0


@EVERY
@pytest.mark.parametrize("kl_coef", [1e-3, 1e2])
def test_outputs_are_laws_at_every_scale_of_kl_coef(case, kl_coef):
    problem = case.problem(kl_coef)
    check_law(run(case, problem), problem.world)


THETA = (1.0, -0.5, 1.5)
LINE = np.linspace(-1, 1, X * A).reshape(X, A, 1) * np.array([1.0, -2.0, 0.5])
PHI = np.random.default_rng(3).normal(size=(X, A, D)) / 2
ABSENT = np.where(np.arange(X)[:, None] % A == np.arange(A), 0.0, 1 / (A - 1))  # another action in every context
EDGES = {
    "one context": LinearWorld(1, A, D),
    "one action": LinearWorld(X, 1, D),
    "one context, one action": LinearWorld(1, 1, D),
    "two identical actions": LinearWorld(features=np.ones((X, 2, D)), theta=(1.0, 0.0, 1.0)),
    "collinear": LinearWorld(features=LINE, theta=THETA),
    "no signal": LinearWorld(X, A, D, theta_norm=0.0),
    "absent actions": LinearWorld(features=PHI, theta=THETA, reference=ABSENT),
    "one offered action": LinearWorld(features=PHI[:A], theta=THETA, reference=np.eye(A)),
}
NOT_LINEAR = TableWorld(np.log((ABSENT + 0.1) / 1.4), np.tanh(PHI.sum(-1) * 3), PHI)
FRESH = LinearWorld(None, A, D, n_evaluation=11)
TABLES = {
    "one context": TableWorld(np.log(np.full((1, A), 1 / A)), [[0.0, 1.0, 0.3, -1.0]]),
    "one action": TableWorld(np.zeros((X, 1)), np.ones((X, 1)), reward_range=(0.0, 1.0)),
    "absent actions": table(absent=True),
}


def edges_of(case: Case) -> tuple[str, ...]:
    """An algorithm that needs no features meets most edges without them."""
    if not case.features:
        return tuple(TABLES)
    return tuple(EDGES) if case.algorithm.needs_features else ("collinear", "absent actions")


@pytest.mark.parametrize(
    ("case", "edge"),
    [(case, edge) for case in CASES for edge in edges_of(case)],
    ids=lambda value: str(value).replace(" ", "-"),
)
def test_outputs_are_laws_in_degenerate_worlds(case, edge):
    world, watched = EDGES[edge] if case.features else TABLES[edge], Watched(case.algorithm)
    check_law(run(case, case.problem(world=world), watched), world)
    for contexts, actions, _ in watched.updates() if case.feedback != "full" else []:
        assert (
            contexts.ref_log_probs[:, :, None].expand(*actions.shape, -1).gather(-1, actions[..., None]) > -np.inf
        ).all()


@pytest.mark.parametrize("case", [case for case in CASES if case.features], ids=str)
@pytest.mark.parametrize(
    ("world", "why"), [(NOT_LINEAR, "bound on"), (FRESH, "finite world")], ids=["not-linear", "fresh-contexts"]
)
def test_harder_worlds_are_learnt_in_or_refused_with_a_reason(case, world, why):
    """No theta* and so no bound on it; no list of contexts."""
    try:
        check_law(run(case, case.problem(world=world)), world)
    except ValueError as error:
        refusal = str(error)
    else:
        return
    assert refusal.split(": ")[0] in {"world", "policy", *(f.name for f in dataclasses.fields(case.algorithm))}
    assert why in refusal


@pytest.mark.parametrize("case", [case for case in CASES if case.feedback == "preference"], ids=str)
def test_separable_labels_leave_it_finite(case):
    certain = BradleyTerry(temperature=1e-4)  # the better action always wins
    check_law(run(case, case.problem(oracle=certain), batch_size=40), case.problem().world)


@pytest.mark.parametrize("case", [case for case in CASES if case.feedback != "full"], ids=str)
def test_learns_from_logged_data_before_the_first_round(case):
    """A hybrid start, or the data of an offline algorithm."""
    check_law(run(case, offline=Logged(Reference(), 5)), case.problem().world)


# ------------------------------------------------------------------------------------------------- reproducible


def actions_of(watched: Watched) -> torch.Tensor:
    return torch.stack([actions for _, actions, _ in watched.updates()])


@EVERY
def test_a_replicate_is_the_same_alone_and_among_five(case):
    together, alone = Watched(case.algorithm), Watched(case.algorithm)
    five = run(case, algorithm=together, replicates=5).frame()
    three = run(case, algorithm=alone, replicates=[3]).frame()
    same, mine = actions_of(together)[:, 3:4], actions_of(alone)
    if case.feedback == "full":  # what is asked about is a law, of floating-point numbers
        torch.testing.assert_close(same, mine, rtol=1e-12, atol=1e-12)
    else:
        assert torch.equal(same, mine)
    expected = five[five["replicate"] == 3].drop(columns="value").reset_index(drop=True)
    assert expected.equals(three.drop(columns="value"))
    np.testing.assert_allclose(three["value"], five.loc[five["replicate"] == 3, "value"], rtol=1e-12, atol=1e-12)


@EVERY
def test_chunks_of_replicates_change_nothing(case, monkeypatch):
    whole = run(case, replicates=3)
    module = sys.modules["simbandit.simulate"]
    monkeypatch.setattr(module, "LARGEST_CHUNK", 2)
    assert chunk_size(case.problem(), 7 * ROUNDS, 3) == 2
    parts = run(case, replicates=3)
    pool = case.problem().world.instance(3, Draws(0, 3)).evaluation
    by = ["metric", "replicate", "round"]
    one, two = (r.frame().sort_values(by).reset_index(drop=True) for r in (whole, parts))
    assert one.drop(columns="value").equals(two.drop(columns="value"))
    np.testing.assert_allclose(two["value"], one["value"], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        parts.policy.log_probs(pool).exp(), whole.policy.log_probs(pool).exp(), rtol=1e-12, atol=1e-12
    )


@EVERY
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_the_device_changes_nothing(case):
    np.testing.assert_allclose(values(run(case, device="cuda")), values(run(case)), rtol=1e-8, atol=1e-8)


@EVERY
def test_one_seed_one_answer(case):
    first, second = run(case, seed=5), run(case, seed=5)
    assert first.frame().equals(second.frame())
    random = case.features or case.feedback != "full"  # else all is given: the table and its exact answers
    assert first.frame().equals(run(case, seed=6).frame()) != random


@EVERY
def test_meets_the_contexts_and_the_annotator_that_every_algorithm_meets(case):
    """Common random numbers: contexts and answers follow from the seed and what was asked, by no other stream."""
    watched = Watched(case.algorithm)
    problem = case.problem()
    run(case, algorithm=watched, replicates=3, seed=4)
    draws = Draws(4, 3, stream="offline/" if watched.offline else "")
    instance = problem.world.instance(3, draws)
    oracle, size = problem.oracle.bind(instance), 7 * ROUNDS if watched.offline else 7
    updates = watched.updates()
    assert len(updates) == (1 if watched.offline else ROUNDS)
    for t, (contexts, actions, feedback) in enumerate(updates):
        expected = instance.evaluation if case.feedback == "full" else instance.contexts(draws.at(t), size)
        assert contexts.index is not None
        assert expected.index is not None
        chooses = hasattr(case.algorithm, "ask")  # then only the annotator is common
        assert chooses or torch.equal(contexts.index, expected.index)
        assert torch.equal(feedback, oracle.respond(contexts if chooses else expected, actions, draws.at(t)))
        seen, given = contexts.pool or contexts, expected.pool or expected  # and leaves them as they were
        assert torch.equal(seen.ref_log_probs, given.ref_log_probs)
        assert not case.features or torch.equal(seen.features, given.features)


@EACH_CLASS
def test_draws_from_streams_of_its_own_and_from_nothing_else(case, monkeypatch):
    """Neither the numbers behind the contexts and the answers, nor a generator that no seed and replicate stand
    behind."""
    watched, purposes = Watched(case.algorithm), {True: set(), False: set()}

    def watch(owner: Any, name: str, note: Any) -> None:
        original = getattr(owner, name)

        def noting(*arguments: Any, **options: Any) -> Any:
            note(*arguments)
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, noting)

    def private(*arguments: Any) -> None:
        assert not watched.inside, "a generator of its own"

    for law in ("uniform", "normal", "direction"):
        watch(Round, law, lambda now, what, *_: purposes[watched.inside].add((now._draws.stream, what)))
    watch(np.random, "default_rng", private)
    for name in ("rand", "randn", "randint", "randperm", "multinomial", "bernoulli"):
        watch(torch, name, private)
    state = torch.get_rng_state()
    run(case, algorithm=watched, rounds=2, batch_size=3, metrics=["kl_to_ref"])
    assert not purposes[True] & purposes[False]
    assert torch.equal(torch.get_rng_state(), state)


# ------------------------------------------------------------------------------------------------- updates


def learn(algorithm: Any, data: Batch, parts: int = 3, poison: bool = False, look: bool = False) -> torch.Tensor:
    """Log-probabilities (R, X, A) after the batch was handed over in parts."""
    state, draws = algorithm.init(data.setting), Draws(0, data.setting.replicates)
    pool, looked = data.setting.contexts, []
    assert pool is not None
    whole = data.setting.feedback == "full"
    edges = [0] * parts + [X] if whole else np.linspace(0, data.actions.shape[1], parts + 1).astype(int)
    for t, (low, high) in enumerate(pairwise(edges)):
        index, old = data.contexts.index, state
        assert index is not None
        if look:
            policy = algorithm.policy(state)
            looked.append((policy, policy.log_probs(pool).clone()))
        contexts = data.contexts
        if not whole:
            contexts = Contexts(index=index[:, low:high], pool=data.setting.contexts)
        at = slice(None) if whole else slice(low, high)
        state, _ = algorithm.update(old, contexts, data.actions[:, at], data.feedback[:, at], draws.at(t))
        if poison:
            alive = tensors(state, data.setting, contexts, data, draws)
            for address, tensor in tensors(old).items():
                if address not in alive:
                    tensor.fill_(torch.nan if tensor.is_floating_point() else 0)
    for policy, law in looked:
        assert torch.equal(policy.log_probs(pool), law)
    return algorithm.policy(state).log_probs(pool)


@EVERY
def test_a_state_handed_to_update_is_not_read_again(case):
    parts = 1 if case.algorithm.offline else 4
    clean = learn(case.algorithm, batch(case), parts)
    assert torch.equal(learn(case.algorithm, batch(case), parts, poison=True), clean)


@EACH_CLASS
def test_looking_at_a_policy_changes_nothing_and_it_never_changes(case):
    parts, data = 1 if case.algorithm.offline else 2, batch(case, size=6)
    assert torch.equal(learn(case.algorithm, data, parts, look=True), learn(case.algorithm, data, parts))


def permuted(case: Case, data: Batch, what: str) -> tuple[Batch, Any]:
    """The same data under other names, and what this does to a table of log-probabilities."""
    pool, rng = data.setting.contexts, np.random.default_rng(7)
    assert pool is not None
    assert data.contexts.index is not None
    index, actions, feedback = data.contexts.index, data.actions, data.feedback
    order = torch.from_numpy(rng.permutation({"actions": A, "contexts": X, "interactions": index.shape[1]}[what]))
    renamed = order.argsort()
    features, ref, weights = (pool.features if case.features else None), pool.ref_log_probs, pool.weights
    assert weights is not None

    def rename(table: torch.Tensor) -> torch.Tensor:
        return table

    if data.setting.feedback == "full" and what != "interactions":

        def moved(answers: torch.Tensor) -> torch.Tensor:  # one row a context; an action, or a pair of them
            if what == "contexts":
                return answers[:, order]
            return answers[:, :, order] if answers.ndim == 3 else answers[:, :, order][..., order]

        actions, feedback = moved(actions), moved(feedback)
    if what == "actions":
        features, ref = None if features is None else features[:, :, order], ref[..., order]
        actions = actions if data.setting.feedback == "full" else renamed[actions]

        def rename(table: torch.Tensor) -> torch.Tensor:
            return table[..., order]

    elif what == "contexts":
        features, ref, weights = None if features is None else features[:, order], ref[:, order], weights[:, order]
        index = index if data.setting.feedback == "full" else renamed[index]

        def rename(table: torch.Tensor) -> torch.Tensor:
            return table[:, order]

    else:
        index, actions, feedback = index[:, order], actions[:, order], feedback[:, order]
    other = Contexts(index=pool.index, features=features, ref_log_probs=ref, weights=weights)
    setting = dataclasses.replace(data.setting, contexts=other)
    if not case.features:
        setting = dataclasses.replace(setting, policy=Tabular(ref))
    contexts = other if data.setting.feedback == "full" else Contexts(index=index, pool=other)
    return Batch(setting, contexts, actions, feedback), rename


@pytest.mark.parametrize(
    ("case", "what"),
    [
        (case, what)
        for case in CASES
        for what in ("actions", "contexts", "interactions")
        if case.feedback != "full" or what != "interactions"
    ],
    ids=str,
)
def test_the_names_and_the_order_of_things_do_not_matter(case, what):
    data = batch(case)
    other, rename = permuted(case, data, what)
    parts = 1 if case.algorithm.offline or what == "interactions" else 3
    plain = rename(learn(case.algorithm, data, parts))
    # fits stop at a gradient of 1e-9 a duel, with curvatures above 1e-2
    np.testing.assert_allclose(learn(case.algorithm, other, parts), plain, rtol=1e-6, atol=1e-6)


@EVERY
def test_learns_at_all(case):
    """Or the tests of updates would say little: given data, the policy moves (some take several rounds for a step)."""
    data = batch(case)
    start = case.algorithm.policy(case.algorithm.init(data.setting)).log_probs(data.setting.contexts)
    moved = not torch.allclose(learn(case.algorithm, data, 1 if case.algorithm.offline else 10), start)
    assert moved == (case.name != "uniform")


# ------------------------------------------------------------------------------------------------- consistent


CONSISTENT = [
    case
    for case in CASES
    if case.algorithm.consistent and (case.feedback == "preference" or "preference" not in case.algorithm.feedbacks)
]


@pytest.mark.parametrize("case", CONSISTENT, ids=str)
def test_a_consistent_algorithm_comes_closer_with_more_data(case):
    """A world that the reference covers: any rate from n^-1/4 on halves the gap at 64 n; 1/n is what theory says."""
    world = LinearWorld(3, A, D, theta_norm=1.0) if case.features else table()
    few, many = (
        run(case, case.problem(1.0, world), rounds=8, batch_size=size, replicates=24, metrics=["suboptimality"])
        for size in (4, 256)
    )
    assert many.final().mean() < 0.5 * few.final().mean()


def test_the_linear_world_of_this_suite_is_covered():
    coverage = LINEAR.instance(8, Draws(0, 8)).coverage(0.7)
    assert coverage.centred is not None
    assert coverage.centred.max() < 1e3
