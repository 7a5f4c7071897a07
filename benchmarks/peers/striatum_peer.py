"""Striatum's LinUCB: a model per arm on that arm's own features."""

from importlib.metadata import version

import numpy as np
from measure import Learner, run
from striatum.bandit.linucb import LinUCB
from striatum.storage import Action, MemoryActionStorage, MemoryHistoryStorage, MemoryModelStorage


def make(dim: int, arms: int) -> Learner:
    actions = MemoryActionStorage()
    actions.add([Action(i) for i in range(arms)])
    bandit = LinUCB(MemoryHistoryStorage(), MemoryModelStorage(), actions, context_dimension=dim, alpha=1.0)
    asked = 0

    def choose(x: np.ndarray) -> int:
        nonlocal asked
        asked, recommendation = bandit.get_action(dict(enumerate(x)))
        return recommendation.action.id

    return choose, lambda x, a, r: bandit.reward(asked, {a: r})


run(version("striatum"), make, "own")
