"""What a metric may look at, and the arithmetic that all metrics share."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from simbandit.equilibrium import minimax, solve
from simbandit.types import Contexts, Info, Policy


@dataclass(frozen=True)
class Game:
    """The KL-regularised game that a preference oracle poses over the evaluation contexts; solved once, when asked."""

    oracle: Any
    evaluation: Contexts
    kl_coef: float

    @cached_property
    def preference(self) -> Tensor:
        """(R, X, A, A)"""
        return self.oracle.win_table(self.evaluation)

    @cached_property
    def nash(self) -> Tensor:
        """Log-probabilities (R, X, A) of the equilibrium. Raises RuntimeError where the solver did not converge."""
        solved = solve(self.preference, self.evaluation.ref_log_probs, self.kl_coef)
        if not bool(solved.converged.all()):
            raise RuntimeError(f"equilibrium: {int((~solved.converged).sum())} games did not converge")
        return solved.log_probs

    @cached_property
    def von_neumann(self) -> Tensor:
        """Probabilities (R, X, A) of an unregularised equilibrium over the actions offered, by linear programming."""
        preference = self.preference
        offered = ~torch.isneginf(self.evaluation.ref_log_probs)
        # an action outside the game loses to every other, and ties with its like: no equilibrium need play it
        outside = 0.5 * (offered[..., :, None].to(preference.dtype) - offered[..., None, :].to(preference.dtype)) + 0.5
        both = offered[..., :, None] & offered[..., None, :]
        p = torch.where(offered, minimax(torch.where(both, preference, outside)), 0.0)
        return p / p.sum(-1, keepdim=True)


@dataclass(frozen=True)
class Snapshot:
    """What a metric may look at: the truth, the policy that plays round t, what it played (None in the last row)."""

    instance: Any
    oracle: Any
    kl_coef: float
    policy: Policy
    info: Info
    queries: float
    oracle_evaluations: int
    informative: Tensor
    best_rewards: Tensor | None = field(repr=False, default=None)
    game: Game | None = field(repr=False, default=None)
    contexts: Contexts | None = None
    actions: Tensor | None = None

    @cached_property
    def log_probs(self) -> Tensor:
        """(R, X, A) over the evaluation contexts."""
        return self.policy.log_probs(self.instance.evaluation)

    @property
    def optimum(self) -> Tensor:
        """log pi* (R, X, A); taken from the instance, which computes it when it is first asked for."""
        return self.instance.optimal_log_probs(self.kl_coef)

    @cached_property
    def rewards(self) -> Tensor:
        return self.instance.rewards(self.instance.evaluation)

    @property
    def ref_log_probs(self) -> Tensor:
        return self.instance.evaluation.ref_log_probs

    def over_contexts(self, values: Tensor) -> Tensor:
        """(R, X) -> (R,) under the law of contexts."""
        return (values * self.instance.evaluation.weights).sum(-1)

    def expect(self, log_probs: Tensor, values: Tensor) -> Tensor:
        """E_x E_pi[values], (R,)."""
        return self.over_contexts((log_probs.exp() * values).sum(-1))


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) over the last axis, as a sum of non-negative terms p d - p + q, d = log p - log q. Where p is close to
    q a term is p (d + expm1(-d)), so that no digits are lost; elsewhere expm1 could overflow. Infinite where p has mass
    that q lacks."""
    p, q = log_p.exp(), log_q.exp()
    absent, missing = torch.isneginf(log_p), torch.isneginf(log_q)
    d = torch.where(absent | missing, 0.0, log_p - log_q)
    terms = torch.where(d.abs() < 0.5, p * (d + torch.expm1(-d)), p * d - p + q)
    return torch.where(absent, q, torch.where(missing, torch.inf, terms)).sum(-1)


def best_reward(rewards: Tensor, ref_log_probs: Tensor) -> Tensor:
    """max over the offered actions, (R, X)."""
    return torch.where(torch.isneginf(ref_log_probs), -torch.inf, rewards).amax(-1)
