"""Which of the recorded policies a run hands out: the last, the average, or the best by validation."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from simbandit.data import Logged
from simbandit.draws import Draws
from simbandit.policies import Reference, Tabular, mixture
from simbandit.types import Instance, Policy

Output = Literal["last", "average", "best"] | Logged
VALIDATION_DUELS = 512


class Kept:
    """Which of the recorded policies is handed out."""

    def __init__(self, rule: Output, instance: Instance, oracle: Any, draws: Draws, kl_coef: float):
        if rule not in ("last", "average", "best") and not isinstance(rule, Logged):
            raise ValueError(f"output: 'last', 'average', 'best' or Logged(policy, size), got {rule!r}")
        if rule == "best":
            rule = Logged(Reference(), VALIDATION_DUELS)
        if rule != "last" and instance.pool is None:
            raise ValueError("output: 'average' and validation need a finite world; use 'last'")
        if isinstance(rule, Logged) and oracle.feedback != "preference":
            raise ValueError("output: validation needs duels, this oracle gives none; use 'last' or 'average'")
        self.rule, self.instance, self.kl_coef, self.seen, self.last = rule, instance, kl_coef, 0, None
        self.table = self.score = None
        if isinstance(rule, Logged):
            now = draws.at(0)
            self.contexts = instance.contexts(now, rule.size)
            first = rule.policy.sample(self.contexts, now.uniform("player0", rule.size))
            second = (rule.second or rule.policy).sample(self.contexts, now.uniform("player1", rule.size))
            self.actions = torch.stack([first, second], dim=-1)
            self.labels = oracle.respond(self.contexts, self.actions, now)

    def consider(self, policy: Policy) -> None:
        self.last = policy
        if self.rule == "last":
            return
        assert self.instance.pool is not None
        table = policy.log_probs(self.instance.pool)
        self.seen += 1
        if self.table is None:
            self.table = table
        elif self.rule == "average":
            self.table = mixture([self.table, table], [1 - 1 / self.seen, 1 / self.seen])
        if isinstance(self.rule, Logged):
            score = self._held_out_likelihood(policy)
            better = torch.ones_like(score, dtype=torch.bool) if self.score is None else score > self.score
            self.table = torch.where(better[:, None, None], table, self.table)
            self.score = score if self.score is None else torch.maximum(score, self.score)

    def _held_out_likelihood(self, policy: Policy) -> Tensor:
        """Mean Bradley-Terry log-likelihood of held-out duels under the implied reward kl_coef log pi / pi_ref."""
        ratio = policy.log_probs(self.contexts, self.actions) - self.contexts.ref_log_probs.gather(-1, self.actions)
        margin = self.kl_coef * (ratio[..., 0] - ratio[..., 1])
        logsigmoid = torch.nn.functional.logsigmoid
        return (self.labels * logsigmoid(margin) + (1 - self.labels) * logsigmoid(-margin)).mean(-1)

    def policy(self) -> Policy:
        assert self.last is not None
        return self.last if self.table is None else Tabular(self.table)
