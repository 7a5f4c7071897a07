"""What every oracle shares: the question (which actions, when), the law of its answer, and the bound preference oracle.

A preference is built from one triangle of its pairs, p for a < b and 1 - p for the pair turned round, so that
P + P' = 1 holds to the last bit and the diagonal is exactly 1/2.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from simbandit.draws import Round
from simbandit.types import Contexts, Feedback
from simbandit.worlds import arrays

TABLE_NUMBERS = 2**23  # a table of win probabilities (R, X, A, A) beyond 64 MB is taken in chunks of contexts


class Law(NamedTuple):
    """Probabilities that the first action is said to win, and that both are said to be equal."""

    win: Tensor
    tie: Tensor | None = None

    @property
    def mean(self) -> Tensor:
        """The expected label, a tie counting 1/2."""
        return self.win if self.tie is None else self.win + self.tie / 2

    def turned(self) -> Law:
        """The law of every duel (a, b) of a table, read where the table has (b, a)."""
        return Law(self.win.mT, None if self.tie is None else self.tie.mT)


@dataclass(frozen=True, eq=False)
class Question:
    """Duels of `first` (R, B) against `second` (R, B); without them all ordered pairs, (R, B, A, A).

    Answers have shape (R, B) or (R, B, A, A); in a table, axes of length 1 stand for what replicates or contexts share.
    now: the round in which it is asked, for annotators that change.
    """

    contexts: Contexts
    first: Tensor | None = None
    second: Tensor | None = None
    now: Round | None = None

    def at(self, table: Tensor) -> Tensor:
        """Rows of a table (R or 1, X or 1, ...) at these contexts: (R or 1, B or 1, ...)."""
        index = self.contexts.index
        if table.shape[1] == 1:
            return table
        if index is None or self.contexts.pool is None:  # fresh contexts: an error; the pool itself: the table
            return self.contexts.rows(table)
        if len(table) == 1:
            return table[:, index[0]] if index.stride(0) == 0 or len(index) == 1 else table[0, index]
        return table[torch.arange(len(table), device=table.device)[:, None], index]

    def entries(self, table: Tensor) -> Tensor:
        """Entries of a table of pairs (R or 1, X or 1, A, A) for the question's pairs."""
        return self.at(table) if self.first is None else table[*self._rows(table), self.first, self.second]

    def values(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers of actions at these contexts (R or 1, B or 1, A), of the first and of the second."""
        if self.first is None or self.second is None:
            return values[..., :, None], values[..., None, :]
        values = values.expand(*self.first.shape, -1)
        return values.gather(-1, self.first[..., None])[..., 0], values.gather(-1, self.second[..., None])[..., 0]

    def vectors(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors of actions (R or 1, X or 1, A, m), (..., n, m) of the first and of the second; n = 1 or A."""
        if self.first is None:
            return self.at(table), self.at(table)
        rows = self._rows(table)
        return table[*rows, self.first][..., None, :], table[*rows, self.second][..., None, :]

    def features(self) -> tuple[Tensor, Tensor]:
        """The world's features, as `vectors`."""
        if self.first is None or self.second is None:
            features = self.contexts.features
            features = features[:1] if features.stride(0) == 0 else features
            return features, features
        pair = self.contexts.features_of(torch.stack([self.first, self.second], -1))
        return pair[..., :1, :], pair[..., 1:, :]

    def rewards(self, instance: Any) -> tuple[Tensor, Tensor]:
        """True rewards of the first and of the second."""
        if self.first is None or self.second is None:
            rewards = instance.rewards(self.contexts)
            return self.values(rewards[:1] if rewards.stride(0) == 0 else rewards)
        pair = rewards_of(instance, self.contexts, torch.stack([self.first, self.second], -1))
        return pair[..., 0], pair[..., 1]

    def products(self, first: Tensor, second: Tensor) -> Tensor:
        """Inner products of `vectors` (..., n, m), as answers."""
        return first @ second.mT if self.first is None else (first * second).sum(-1)[..., 0]

    def differences(self, first: Tensor, second: Tensor) -> Tensor:
        """First minus second of one number per vector (..., n), as answers."""
        return first[..., :, None] - second[..., None, :] if self.first is None else (first - second)[..., 0]

    def turned(self, law: Callable[[Question], Law]) -> Law:
        """The law of the same pairs shown in the other order: its `win` is that of the second action, shown first."""
        if self.first is None:
            return law(self).turned()
        return law(replace(self, first=self.second, second=self.first))

    def _rows(self, table: Tensor) -> tuple[Tensor | int, Tensor | int]:
        replicate = 0 if len(table) == 1 else torch.arange(len(table), device=table.device)[:, None]
        if table.shape[1] == 1:
            return replicate, 0
        if self.contexts.index is None:
            self.contexts.rows(table)  # which says what is missing
        assert self.contexts.index is not None
        return replicate, self.contexts.index


def skew(prob: Callable[[Question], Tensor], question: Question) -> Law:
    """The law of a preference, asked only for first < second."""
    first, second = question.first, question.second
    if first is None or second is None:
        return Law(skewed(prob(question)))
    ordered = replace(question, first=torch.minimum(first, second), second=torch.maximum(first, second))
    wins = prob(ordered)
    return Law(torch.where(first < second, wins, 1 - wins).masked_fill(first == second, 0.5))


def skewed(table: Tensor) -> Tensor:
    """The preference (..., A, A) whose upper triangle is that of the table."""
    half = torch.eye(table.shape[-1], dtype=table.dtype, device=table.device) / 2
    return table.triu(1) + (1 - table.mT).tril(-1) + half


def against(table: Tensor, log_probs: Tensor) -> Tensor:
    """P q, (R, X, A), of tables (R or 1, X, A, A) and policies (R, X, A)."""
    if len(table) == 1:
        return torch.einsum("xab,rxb->rxa", table[0], log_probs.exp())
    return torch.einsum("rxab,rxb->rxa", table, log_probs.exp())


class PreferenceOracle(ABC):
    """A frozen description of who wins a duel; `bind` gives it the truth."""

    @property
    def feedback(self) -> Feedback:
        return "preference"

    @property
    def n_select(self) -> int:
        return 2

    @abstractmethod
    def bind(self, instance: Any) -> BoundPreference: ...

    def prob(self, contexts: Contexts, first: Tensor, second: Tensor) -> Tensor:
        raise unbound(self)

    def respond(self, contexts: Contexts, actions: Tensor, draws: Round) -> Tensor:
        raise unbound(self)


@dataclass(frozen=True, eq=False)
class BoundPreference:
    """An annotator of duels that knows the truth of one instance.

    law: what it answers; game: the preference of all pairs, skew, by which policies are judged (None: the law's mean).
    """

    oracle: Any
    law: Callable[[Question], Law]
    game: Callable[[Question], Tensor] | None = None
    soft: bool = False

    feedback: ClassVar[Feedback] = "preference"
    n_select: ClassVar[int] = 2

    def prob(self, contexts: Contexts, first: Tensor, second: Tensor, now: Round | None = None) -> Tensor:
        """The expected label, (R, B), of the actions (R, B): P(first > second) plus half of P(tie)."""
        return self.law(Question(contexts, first, second, now)).mean

    def respond(self, contexts: Contexts, actions: Tensor, draws: Round) -> Tensor:
        """Is the first of the actions (R, B, 2) preferred? (R, B): 0, 1, 1/2 for a tie; the expected label if soft."""
        check_selected(self, actions)
        law = self.law(Question(contexts, actions[..., 0], actions[..., 1], draws))
        if self.soft:
            return law.mean
        uniform = draws.uniform("annotator", actions.shape[1])
        label = (uniform < law.win).to(uniform.dtype)
        return label if law.tie is None else (label + (uniform < law.win + law.tie).to(uniform.dtype)) / 2

    def win_table(self, contexts: Contexts) -> Tensor:
        """P(a > b | x), (R, B, A, A), P + P' = 1 exactly; 1/2 where either action is absent. Read-only."""
        return self._table(contexts).expand(*contexts.shape, -1, -1)

    def win_rates(self, contexts: Contexts, log_probs: Tensor) -> Tensor:
        """P(a > b | x) for b drawn from a policy (R, B, A), for every a: (R, B, A). Tables are made by chunks."""
        replicates, size = contexts.shape
        chunk = max(1, TABLE_NUMBERS // (replicates * contexts.n_actions**2))
        parts = [slice(start, start + chunk) for start in range(0, size, chunk)]
        tables = (self._table(_part(contexts, part) if len(parts) > 1 else contexts) for part in parts)
        rates = [
            against(table.expand(-1, q.shape[1], -1, -1), q)
            for table, q in zip(tables, (log_probs[:, part] for part in parts), strict=True)
        ]
        return torch.cat(rates, 1)

    def _table(self, contexts: Contexts) -> Tensor:
        """(R or 1, B or 1, A, A)"""
        table = pairs_of(self, Question(contexts))
        present = contexts.ref_log_probs > -torch.inf
        if bool(present.all()):
            return table
        present = present[:1] if present.stride(0) == 0 else present
        return torch.where(present[..., :, None] & present[..., None, :], table, 0.5)


def pairs_of(bound: Any, question: Question) -> Tensor:
    """The game of a bound preference oracle, of all pairs."""
    if not isinstance(bound, BoundPreference):
        return bound.win_table(question.contexts)
    return bound.law(question).mean if bound.game is None else bound.game(question)


def law_of(bound: Any) -> Callable[[Question], Law]:
    """The law of any bound preference oracle; one that has no other form is asked for its probabilities."""
    if isinstance(bound, BoundPreference):
        return bound.law

    def law(question: Question) -> Law:
        if question.first is None or question.second is None:
            return Law(bound.win_table(question.contexts))
        return Law(bound.prob(question.contexts, question.first, question.second))

    return law


def drawn(oracle: Any, instance: Any, purpose: str, *shape: int, law: str = "normal") -> Tensor:
    """(R, *shape), or (1, *shape) if `oracle.fixed`: an oracle's own random objects. `oracle.variant` separates them
    from those of another oracle of the same class."""
    draws = getattr(instance, "draws", None)
    name = type(oracle).__name__
    if draws is None:
        raise ValueError(f"oracle: {name} is drawn at random and this instance has no `draws`; give it the world's")
    source = draws.shared if oracle.fixed else draws.once
    return source(f"oracle/{name}/{purpose}/{oracle.variant}", *shape, law=law)


def games(oracle: Any, instance: Any) -> int:
    """How many games a random oracle draws for each replicate: one per context, or one for all."""
    if not oracle.contextual:
        return 1
    if instance.pool is None:
        raise ValueError(
            f"contextual: {type(oracle).__name__} draws a game per context and fresh contexts have no ids; "
            "give the world n_contexts=, or the oracle contextual=False"
        )
    return instance.pool.shape[1]


def given(name: str, values: ArrayLike, dims: str) -> Any:
    """An array per context, such as "XAA", or without that axis, the same for all: read-only (X or 1, ...)."""
    flat = np.ndim(values) == len(dims) - 1
    checked = arrays.finite(name, arrays.array(name, values, dims[1:] if flat else dims))
    return arrays.frozen(checked[None]) if flat else checked


def fitted(name: str, values: Any, instance: Any) -> Tensor:
    """A given array (X or 1, A, ...) as a tensor (1, X or 1, A, ...) for this world."""
    contexts, actions = values.shape[:2]
    if actions != instance.n_actions:
        raise ValueError(f"{name}: is for {actions} actions, the world has {instance.n_actions}")
    pool = None if instance.pool is None else instance.pool.shape[1]
    if contexts not in (1, pool):
        has = "fresh contexts without ids" if pool is None else f"{pool}"
        raise ValueError(f"{name}: is for {contexts} contexts, the world has {has}")
    return arrays.shared(values, instance.evaluation.ref_log_probs.device)


def same(self: Any, other: object) -> bool:
    """Equality of frozen descriptions that hold arrays."""
    return type(self) is type(other) and arrays.contents(self) == arrays.contents(other)


def hashed(self: Any) -> int:
    return hash((type(self).__name__, arrays.contents(self)))


def rewards_of(instance: Any, contexts: Contexts, actions: Tensor) -> Tensor:
    """True rewards of the actions (R, B, k): (R, B, k). An instance may know a shorter way than all of them."""
    shortcut = getattr(instance, "rewards_of", None)
    return instance.rewards(contexts).gather(-1, actions) if shortcut is None else shortcut(contexts, actions)


def with_rewards(oracle: Any, instance: Any) -> Any:
    if not getattr(instance, "has_rewards", True):
        raise ValueError(
            f"oracle: {type(oracle).__name__} needs a world with rewards, and this one has none; "
            "give `rewards=` to the world or use an oracle of general preferences"
        )
    return instance


def unbound(oracle: Any) -> RuntimeError:
    name = type(oracle).__name__
    return RuntimeError(f"{name} does not know the truth yet: use `simulate`, or `.bind(instance)` first")


def check_selected(bound: Any, actions: Tensor) -> None:
    if actions.shape[-1] != bound.n_select:
        name = type(bound.oracle).__name__
        raise ValueError(f"actions: {name} takes {bound.n_select} per context, got {actions.shape[-1]}")


def _part(contexts: Contexts, part: slice) -> Contexts:
    if contexts.index is not None:
        return Contexts(index=contexts.index[:, part], pool=contexts.pool or contexts)
    features = contexts.features[:, part] if contexts.has_features else None
    return Contexts(features=features, ref_log_probs=contexts.ref_log_probs[:, part])
