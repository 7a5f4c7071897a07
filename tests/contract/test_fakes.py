"""Algorithms that break a promise on purpose: the contract must notice each of them."""

import inspect
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from simbandit.policies import inverse_cdf, uniform
from tests.contract import test_contract as contract
from tests.contract.problems import Case

BASE = Case("gshf_online", "preference", True)


@dataclass(frozen=True)
class Honest:
    """Hands everything on."""

    inner: Any

    def __getattr__(self, name: str) -> Any:
        if name == "inner" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.inner, name)

    def init(self, setting: Any) -> Any:
        return self.inner.init(setting)

    def select(self, state: Any, contexts: Any, draws: Any) -> Any:
        return self.inner.select(state, contexts, draws)

    def update(self, state: Any, contexts: Any, actions: Any, feedback: Any, draws: Any) -> Any:
        return self.inner.update(state, contexts, actions, feedback, draws)

    def policy(self, state: Any) -> Any:
        return self.inner.policy(state)


class CountsReplicates(Honest):
    def update(self, state, contexts, actions, feedback, draws):
        return self.inner.update(state, contexts, actions, feedback / (1 + 0.01 * len(feedback)), draws)


class ComparesReplicates(Honest):
    def update(self, state, contexts, actions, feedback, draws):
        return self.inner.update(state, contexts, actions, 0.5 * (feedback + feedback.mean(0, keepdim=True)), draws)


class WritesFeedback(Honest):
    def update(self, state, contexts, actions, feedback, draws):
        return self.inner.update(state, contexts, actions, feedback.mul_(0.5), draws)


class WritesFeatures(Honest):
    def init(self, setting):
        features = setting.contexts.features
        features.sub_(features.mean((1, 2), keepdim=True))
        return self.inner.init(setting)


class WritesDraws(Honest):
    def select(self, state, contexts, draws):
        draws.uniform("annotator", contexts.shape[1]).mul_(0.5)
        return self.inner.select(state, contexts, draws)


class PlaysWhatIsAbsent(Honest):
    def select(self, state, contexts, draws):
        return (draws.uniform("player", contexts.shape[1], 2) * contexts.n_actions).long()


class PlaysByItsOwnSeed(Honest):
    def select(self, state, contexts, draws):
        law = uniform(contexts.ref_log_probs)
        own = np.random.default_rng(draws.t).random((2, 1, contexts.shape[1]))
        return torch.stack([inverse_cdf(law, torch.from_numpy(u).expand(law.shape[:2])) for u in own], -1)


class SeesTheAnnotatorsNumbers(Honest):
    def select(self, state, contexts, draws):
        ordered = self.inner.select(state, contexts, draws).sort(-1).values
        return torch.where(draws.uniform("annotator", contexts.shape[1])[..., None] < 0.5, ordered, ordered.flip(-1))


CALLS = []


class RemembersOtherRuns(Honest):
    def update(self, state, contexts, actions, feedback, draws):
        CALLS.append(draws.t)
        return self.inner.update(state, contexts, actions, feedback / len(CALLS), draws)


class MovesWhenLookedAt(Honest):
    def policy(self, state):
        state.model.theta = 0.9 * state.model.theta
        return self.inner.policy(state)


class Planted(NamedTuple):
    kind: type
    base: Case = BASE

    def __getattr__(self, name: str) -> Any:
        return getattr(self.base, name)

    @property
    def algorithm(self) -> Any:
        return self.kind(self.base.algorithm)


def a_degenerate_world(case: Any) -> None:
    contract.test_outputs_are_laws_in_degenerate_worlds(case, "absent actions")


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        (CountsReplicates, contract.test_a_replicate_is_the_same_alone_and_among_five),
        (ComparesReplicates, contract.test_a_replicate_is_the_same_alone_and_among_five),
        (ComparesReplicates, contract.test_chunks_of_replicates_change_nothing),
        (WritesFeedback, contract.test_meets_the_contexts_and_the_annotator_that_every_algorithm_meets),
        (WritesFeatures, contract.test_meets_the_contexts_and_the_annotator_that_every_algorithm_meets),
        (WritesDraws, contract.test_meets_the_contexts_and_the_annotator_that_every_algorithm_meets),
        (PlaysWhatIsAbsent, a_degenerate_world),
        (PlaysByItsOwnSeed, contract.test_draws_from_streams_of_its_own_and_from_nothing_else),
        (SeesTheAnnotatorsNumbers, contract.test_draws_from_streams_of_its_own_and_from_nothing_else),
        (RemembersOtherRuns, contract.test_one_seed_one_answer),
        (MovesWhenLookedAt, contract.test_looking_at_a_policy_changes_nothing_and_it_never_changes),
    ],
)
def test_a_broken_promise_is_noticed(kind, check, monkeypatch):
    patched = "monkeypatch" in inspect.signature(check).parameters
    for planted, outcome in ((Honest, nullcontext()), (kind, pytest.raises(AssertionError))):
        with monkeypatch.context() as patch, outcome:
            check(Planted(planted), **({"monkeypatch": patch} if patched else {}))
