"""A suitable problem for every registered algorithm, chosen from what the algorithm declares."""

from __future__ import annotations

from collections.abc import Iterator
from types import FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from simbandit import algorithms
from simbandit.draws import Draws
from simbandit.oracles import BradleyTerry, FullInformation, NoisyReward, PlackettLuce
from simbandit.policies import LogLinear, Tabular
from simbandit.simulate import Problem
from simbandit.types import Contexts, Setting
from simbandit.worlds import LinearWorld, TableWorld

X, A, D, K = 5, 4, 3, 3
ORACLES = {
    "preference": BradleyTerry(),
    "reward": NoisyReward(0.5),
    "ranking": PlackettLuce(K),
    "full": FullInformation(BradleyTerry()),
}
LINEAR = LinearWorld(X, A, D, reference="softmax", context_law="zipf")


def table(absent: bool = False) -> TableWorld:
    """Random rewards, the same in every replicate; no features."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(X, A))
    if absent:  # another action is missing in every context, the first and the last among them
        logits[np.arange(X), np.arange(X) % A] = -np.inf
    ref = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return TableWorld(ref, rng.normal(size=(X, A)), reward_range=(-8.0, 8.0))


class Case(NamedTuple):
    """An algorithm, the feedback that it learns from here, and whether the world has features."""

    name: str
    feedback: str
    features: bool

    @property
    def algorithm(self) -> Any:
        return algorithms.create(self.name)

    def problem(self, kl_coef: float = 0.7, world: Any = None, oracle: Any = None) -> Problem:
        chosen = (LINEAR if self.features else table()) if world is None else world
        return Problem(chosen, ORACLES[self.feedback] if oracle is None else oracle, kl_coef)

    def __str__(self) -> str:
        return f"{self.name}-{self.feedback}-{'features' if self.features else 'table'}"


def cases() -> Iterator[Case]:
    """Every algorithm with every feedback that it learns from; where it needs no features, without them, and once
    with."""
    for name in algorithms.names():
        algorithm = algorithms.create(name)
        for i, feedback in enumerate(algorithm.feedbacks):
            if algorithm.needs_features or i == 0:
                yield Case(name, feedback, True)
            if not algorithm.needs_features:
                yield Case(name, feedback, False)


CASES = list(cases())


class Watched:
    """An algorithm that hands every call on and remembers what passed; `inside` while the learner's own code runs."""

    def __init__(self, algorithm: Any):
        self.algorithm, self.inside, self.calls = algorithm, False, []
        self.feedbacks, self.needs_features = algorithm.feedbacks, algorithm.needs_features
        self.offline, self.consistent = algorithm.offline, algorithm.consistent
        if hasattr(algorithm, "ask"):
            self.ask = lambda *arguments: self._call("ask", *arguments)

    def _call(self, name: str, *arguments: Any) -> Any:
        self.inside = True
        answer = getattr(self.algorithm, name)(*arguments)
        self.inside = False
        self.calls.append((name, arguments, answer))
        return answer

    def init(self, setting: Setting) -> Any:
        return self._call("init", setting)

    def select(self, state: Any, contexts: Contexts, draws: Any) -> Tensor:
        return self._call("select", state, contexts, draws)

    def update(self, state: Any, contexts: Contexts, actions: Tensor, feedback: Tensor, draws: Any) -> Any:
        return self._call("update", state, contexts, actions, feedback, draws)

    def policy(self, state: Any) -> Any:
        return self._call("policy", state)

    def updates(self) -> list[tuple[Contexts, Tensor, Tensor]]:
        """Contexts, actions and feedback of every update."""
        return [(a[1], a[2], a[3]) for name, a, _ in self.calls if name == "update"]


class Batch(NamedTuple):
    """One batch of interactions with everything that a learner needs to take it."""

    setting: Setting
    contexts: Contexts
    actions: Tensor
    feedback: Tensor


def batch(case: Case, replicates: int = 2, size: int = 48, seed: int = 1) -> Batch:
    """A batch of random actions (or policies) with answers that no truth stands behind."""
    instance = case.problem().world.instance(replicates, Draws(seed, replicates))
    pool, rng = instance.pool, np.random.default_rng(seed)
    assert pool is not None
    if case.feedback == "full":
        setting = setting_of(case, pool, replicates, X)
        shape = case.algorithm.select(case.algorithm.init(setting), pool, Draws(seed, replicates).at(0)).shape
        asked = torch.from_numpy(rng.normal(size=shape)).flatten(2).log_softmax(-1).view(shape)
        return Batch(setting, pool, asked, torch.from_numpy(rng.random(shape)))
    select = ORACLES[case.feedback].n_select
    index = torch.from_numpy(rng.integers(X, size=(replicates, size)))
    actions = torch.from_numpy(rng.integers(A, size=(replicates, size, select)))
    feedback = {
        "preference": lambda: torch.from_numpy((rng.random((replicates, size)) < 0.6).astype(float)),
        "reward": lambda: torch.from_numpy(rng.normal(size=(replicates, size))),
        "ranking": lambda: torch.from_numpy(rng.permuted(np.tile(np.arange(select), (replicates, size, 1)), axis=-1)),
    }[case.feedback]()
    return Batch(setting_of(case, pool, replicates, size), Contexts(index=index, pool=pool), actions, feedback)


def setting_of(case: Case, pool: Contexts, replicates: int, size: int) -> Setting:
    """What `simulate` would tell the learner of this pool."""
    reference = LogLinear(torch.zeros(replicates, D).double()) if case.features else Tabular(pool.ref_log_probs)
    return Setting(
        replicates=replicates,
        rounds=6,
        batch_size=size,
        n_actions=A,
        dim=D if case.features else None,
        kl_coef=0.7,
        reward_range=(-2.0, 2.0),
        contexts=pool,
        policy=reference,
        feedback=ORACLES[case.feedback].feedback,
        n_select=ORACLES[case.feedback].n_select,
        theta_bound=2.0 if case.features else None,
    )


def reachable(*roots: Any) -> Iterator[Any]:
    """Every object that can be reached by attributes, items, closures, defaults and bound methods."""
    waiting, seen = list(roots), set()
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, type | ModuleType | str | bytes | int | float | None):
            continue
        seen.add(id(thing))
        yield thing
        if isinstance(thing, dict):
            waiting += [*thing.keys(), *thing.values()]
        elif isinstance(thing, list | tuple | set | frozenset):
            waiting += thing
        elif isinstance(thing, FunctionType):
            waiting += [cell.cell_contents for cell in thing.__closure__ or ()] + list(thing.__defaults__ or ())
        elif isinstance(thing, MethodType):
            waiting += [thing.__self__, thing.__func__]
        elif not isinstance(thing, Tensor):
            waiting += vars(thing).values() if hasattr(thing, "__dict__") else []
            waiting += [getattr(thing, slot) for slot in getattr(thing, "__slots__", ()) if hasattr(thing, slot)]
            waiting += [getattr(thing, a) for a in ("func", "args", "keywords") if hasattr(thing, a)]  # a partial


def tensors(*roots: Any) -> dict[int, Tensor]:
    """Every reachable tensor, by the address of its storage."""
    return {t.untyped_storage().data_ptr(): t for t in reachable(*roots) if isinstance(t, Tensor)}
