"""Coba's LinUCBLearner on the features of the actions: shared."""

import coba
import numpy as np
from coba.learners import LinUCBLearner
from measure import Learner, run


def make(dim: int, arms: int) -> Learner:
    del dim
    learner = LinUCBLearner(alpha=1, features=["a"])
    offered: list[list[float]] = []

    def choose(x: np.ndarray) -> int:
        offered[:] = x.tolist()
        action = learner.predict(None, offered)[0]
        return next(i for i in range(arms) if offered[i] is action or offered[i] == action)

    return choose, lambda x, a, r: learner.learn(None, offered[a], r, 1.0)


run(coba.__version__, make, "shared")
