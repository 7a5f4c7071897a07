"""Uniform data collection without waste: a context as the world draws it, and two different actions of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from simbandit.algorithms.active import Active
from simbandit.algorithms.choosing import choose_pair
from simbandit.draws import Round
from simbandit.types import Contexts, Feedback, Info, Policy, Setting

DRAWN = Active(contexts="drawn")


@dataclass(frozen=True)
class RandomPairs:
    """What active collection is measured against: the context drawn, an ordered pair of different actions uniformly,
    and the learner's estimator. The registered `uniform` also draws an action against itself."""

    learner: Active = DRAWN

    feedbacks: ClassVar[tuple[Feedback, ...]] = ("preference",)
    needs_features: ClassVar[bool] = True
    offline: ClassVar[bool] = False

    @property
    def consistent(self) -> bool:
        return False

    def init(self, setting: Setting) -> Any:
        return self.learner.init(setting)

    def select(self, state: Any, contexts: Contexts, draws: Round) -> Tensor:
        del state
        R, B = contexts.shape
        same = torch.eye(contexts.n_actions, dtype=torch.float64, device=contexts.ref_log_probs.device)
        return choose_pair(-same.expand(R, B, -1, -1), contexts, draws.uniform("ties", B))

    def update(
        self, state: Any, contexts: Contexts, actions: Tensor, feedback: Tensor, draws: Round
    ) -> tuple[Any, Info]:
        return self.learner.update(state, contexts, actions, feedback, draws)

    def policy(self, state: Any) -> Policy:
        return self.learner.policy(state)
