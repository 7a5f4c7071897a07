"""MABWiser's LinUCB: disjoint."""

from importlib.metadata import version

import numpy as np
from mabwiser.mab import MAB, LearningPolicy
from measure import Learner, run


def make(dim: int, arms: int) -> Learner:
    bandit = MAB(list(range(arms)), LearningPolicy.LinUCB(alpha=1.0, l2_lambda=1.0))
    started = False

    def choose(x: np.ndarray) -> int:
        if not started:  # it must be fitted once before it predicts: on a context of zeros, which teaches nothing
            bandit.fit([0], [0.0], np.zeros((1, dim)))
        return int(bandit.predict(x[None]))

    def learn(x: np.ndarray, a: int, r: float) -> None:
        nonlocal started
        started = True
        bandit.partial_fit([a], [r], x[None])

    return choose, learn


run(version("mabwiser"), make, "disjoint")
