"""Open Bandit Pipeline's LinUCB: disjoint."""

import sys
import types

import numpy as np

torch = types.ModuleType("torch")  # obp.utils names its types in annotations; LinUCB never uses it
sys.modules["torch"] = torch
vars(torch).update(Tensor=type("Tensor", (), {}), tensor=type("tensor", (), {}))

from measure import Learner, run  # noqa: E402
from obp.policy import LinUCB  # noqa: E402


def make(dim: int, arms: int) -> Learner:
    policy = LinUCB(dim=dim, n_actions=arms, epsilon=1.0, random_state=0)

    def choose(x: np.ndarray) -> int:
        return int(policy.select_action(x[None])[0])

    return choose, lambda x, a, r: policy.update_params(action=a, reward=r, context=x[None])


run("0.5.7", make, shared=False)
