"""Exact feedback: the expectation over the annotator and the opponent, as one answer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor

from simbandit.draws import Round
from simbandit.oracles.asking import TABLE_NUMBERS, against, unbound
from simbandit.types import Contexts, Feedback, Oracle


@dataclass(frozen=True)
class FullInformation:
    """Exact (population) feedback: answers a policy instead of sampled actions.

    Bound, `respond` takes log-probabilities (R, X, A) and returns, for every action, its win probability
    against that policy (`oracle` has a `win_table`) or its expected reward (`oracle` has a `mean`). Asked about pairs,
    by the log of their law (R, X, A, A), it returns the win probability of each.
    """

    oracle: Oracle

    @property
    def feedback(self) -> Feedback:
        return "full"

    @property
    def n_select(self) -> int:
        return 0

    def bind(self, instance: Any) -> BoundFullInformation:
        bound = self.oracle.bind(instance)
        if not (hasattr(bound, "win_table") or hasattr(bound, "mean")):
            name = type(self.oracle).__name__
            raise ValueError(f"oracle: FullInformation needs win probabilities or mean rewards, {name} gives neither")
        return BoundFullInformation(bound, instance.evaluation)

    def respond(self, contexts: Contexts, log_probs: Tensor, draws: Round) -> Tensor:
        raise unbound(self)


@dataclass(frozen=True, eq=False)
class BoundFullInformation:
    """pool: the contexts asked about in every round; their table is made once, if it is affordable."""

    oracle: Any
    pool: Contexts

    feedback: ClassVar[Feedback] = "full"
    n_select: ClassVar[int] = 0

    def win_table(self, contexts: Contexts) -> Tensor:
        """P(a > b | x), (R, X, A, A), of a preference oracle; 1/2 where either action is absent."""
        return self.oracle.win_table(contexts)

    def win_rates(self, contexts: Contexts, log_probs: Tensor) -> Tensor:
        """P q: win probabilities against a policy (R, X, A), for every action: (R, X, A)."""
        if contexts is self.pool and self._held is not None:
            return (self._held @ log_probs.exp()[..., None]).squeeze(-1)
        own = getattr(self.oracle, "win_rates", None)
        return against(self.win_table(contexts), log_probs) if own is None else own(contexts, log_probs)

    def respond(self, contexts: Contexts, log_probs: Tensor, draws: Round) -> Tensor:
        """Win probabilities P q against the policy q = exp(log_probs) (R, X, A), or expected rewards.

        (R, X, A); or, for a law of pairs (R, X, A, A), every pair's win probability. Entries of absent actions are
        defined (1/2, or 0) and mean nothing.
        """
        if log_probs.ndim == 4:
            return self.win_table(contexts)
        if hasattr(self.oracle, "win_table"):
            return self.win_rates(contexts, log_probs)
        return self.oracle.mean(contexts)

    @cached_property
    def _held(self) -> Tensor | None:
        replicates, contexts = self.pool.shape
        small = replicates * contexts * self.pool.n_actions**2 <= TABLE_NUMBERS
        return self.win_table(self.pool).contiguous() if small else None
