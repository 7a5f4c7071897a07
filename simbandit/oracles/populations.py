"""Many Bradley-Terry annotators, whose average no reward explains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from simbandit.oracles.asking import (
    BoundPreference,
    PreferenceOracle,
    Question,
    drawn,
    fitted,
    games,
    hashed,
    same,
    skew,
)
from simbandit.worlds import arrays


@dataclass(frozen=True, eq=False)
class Population(PreferenceOracle):
    """P(a > b | x) = sum_k share_k sigma((r_k(x,a) - r_k(x,b)) / temperature): every duel meets another annotator.

    rewards: (K, A) or (K, X, A); or drawn: "linear", r_k = <phi, theta_k> with theta_k uniform on the sphere of radius
    `norm`; "tabular", independent N(0, norm^2). shares: (K,); None is equal. n_types: K of drawn rewards; None follows
    shares, and is 3 without them. Each annotator is transitive, the population need not be: rewards that are cyclic
    shifts of (0, 3, 6) give a cycle with P = .636. Raises ValueError for sizes that disagree.
    """

    rewards: Literal["linear", "tabular"] | ArrayLike = "linear"
    shares: ArrayLike | None = None
    n_types: int | None = None
    norm: float = 2.0
    temperature: float = 1.0
    contextual: bool = True
    fixed: bool = False
    variant: int = 0

    def __post_init__(self) -> None:
        arrays.number("norm", self.norm, 0.0)
        arrays.number("temperature", self.temperature, 0.0, above=True)
        known = None if self.n_types is None else arrays.count("n_types", self.n_types)
        if isinstance(self.rewards, str):
            if self.rewards not in ("linear", "tabular"):
                raise ValueError(f"rewards: must be 'linear', 'tabular' or an array, got {self.rewards!r}")
        else:
            flat = np.ndim(self.rewards) == 2
            rewards = arrays.finite("rewards", arrays.array("rewards", self.rewards, "KA" if flat else "KXA"))
            object.__setattr__(self, "rewards", arrays.frozen(rewards[:, None]) if flat else rewards)
            known = _agree("n_types", known, len(rewards), "rewards")
        if self.shares is None:
            known = known or 3
            shares = arrays.frozen(np.full(known, 1 / known))
        else:
            shares = arrays.probabilities("shares", self.shares, "K")
            known = _agree("shares", known, len(shares), "shares")
        object.__setattr__(self, "shares", shares)
        object.__setattr__(self, "n_types", known)

    __eq__ = same
    __hash__ = hashed

    def bind(self, instance: Any) -> BoundPreference:
        shares = np.asarray(self.shares).tolist()
        directions = tables = None
        if not isinstance(self.rewards, str):
            tables = [fitted("rewards", one, instance) for one in np.asarray(self.rewards)]
        elif self.rewards == "tabular":
            shape = len(shares), games(self, instance), instance.n_actions
            tables = list((self.norm * drawn(self, instance, "rewards", *shape)).unbind(1))
        elif instance.dim is None:
            raise ValueError("rewards: 'linear' needs a world with features, and this one has none; use 'tabular'")
        else:
            theta = drawn(self, instance, "theta", len(shares), instance.dim)
            directions = (self.norm * theta / theta.norm(dim=-1, keepdim=True)).unbind(1)

        def prob(question: Question) -> Tensor:
            """One type at a time: a table of every type at once would be K times as large."""
            total: Tensor | float = 0.0
            first, second = question.features() if directions is not None else (None, None)
            for k, share in enumerate(shares):
                if first is not None and second is not None and directions is not None:
                    a, b = (torch.einsum("rbnd,rd->rbn", x, directions[k]) for x in (first, second))
                else:
                    assert tables is not None
                    a, b = (x[..., 0] for x in question.vectors(tables[k][..., None]))
                total = total + share * torch.sigmoid(question.differences(a, b) / self.temperature)
            assert isinstance(total, Tensor)
            return total

        return BoundPreference(self, lambda question: skew(prob, question))


def _agree(name: str, known: int | None, size: int, what: str) -> int:
    if known is not None and known != size:
        raise ValueError(f"{name}: there are {known} types, {what} has {size}")
    return size
