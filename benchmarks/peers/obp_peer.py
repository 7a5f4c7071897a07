"""Open Bandit Pipeline's LinUCB: disjoint."""

import sys
import types
from typing import Any

import numpy as np


class Absent(types.ModuleType):
    """Stands in for torch, which other parts of obp name and LinUCB never uses: any attribute is an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


for name in ("torch", "torch.nn", "torch.nn.functional", "torch.optim", "torch.utils", "torch.utils.data"):
    sys.modules[name] = Absent(name)
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, sys.modules[name])

from measure import Learner, run  # noqa: E402
from obp.policy import LinUCB  # noqa: E402


def make(dim: int, arms: int) -> Learner:
    policy = LinUCB(dim=dim, n_actions=arms, epsilon=1.0, random_state=0)

    def choose(x: np.ndarray) -> int:
        return int(policy.select_action(x[None])[0])

    return choose, lambda x, a, r: policy.update_params(action=a, reward=r, context=x[None])


run("0.5.7", make, "disjoint", last=True)
