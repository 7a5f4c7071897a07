"""Preferences given as tables, and random tables: uniform, with a planted equilibrium, or with a dial of curl."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from simbandit.equilibrium import check_preference
from simbandit.oracles.asking import (
    BoundPreference,
    Law,
    PreferenceOracle,
    Question,
    drawn,
    fitted,
    games,
    given,
    hashed,
    same,
    skew,
    skewed,
    with_rewards,
)
from simbandit.worlds import arrays


@dataclass(frozen=True, eq=False)
class PreferenceTable(PreferenceOracle):
    """P(a > b | x) as given: (A, A) for every context, or (X, A, A); the same in all replicates.

    Raises ValueError for NaN, entries outside [0, 1], a diagonal other than 1/2 or P + P' != 1 (to 1e-9; the upper
    triangle is then kept), and, when bound, for a world of other sizes. An asymmetric judge is `JudgeTable`.
    """

    preference: ArrayLike

    def __post_init__(self) -> None:
        table = torch.tensor(_square("preference", self.preference))
        diagonal = table.diagonal(dim1=-2, dim2=-1)
        if bool(((diagonal - 0.5).abs() > arrays.SUM_TOLERANCE).any()):
            worst = float(diagonal.flatten()[(diagonal - 0.5).abs().argmax()])
            raise ValueError(f"preference: its diagonal must be 1/2 (an action against itself), got {worst:.6g}")
        check_preference(table)
        object.__setattr__(self, "preference", arrays.frozen(skewed(table).clamp(0.0, 1.0).numpy()))

    __eq__ = same
    __hash__ = hashed

    def bind(self, instance: Any) -> BoundPreference:
        return _bound(self, fitted("preference", self.preference, instance))


@dataclass(frozen=True, eq=False)
class JudgeTable(PreferenceOracle):
    """A judge who minds the order: judgements[a, b] is the probability that a is said to win when a is shown first.

    (A, A) or (X, A, A), in [0, 1]. `prob` and `respond` are those of the order shown; `win_table` that of a random
    order, (J + 1 - J') / 2. `Symmetrised(JudgeTable(J))` asks in both orders.
    """

    judgements: ArrayLike

    def __post_init__(self) -> None:
        table = _square("judgements", self.judgements)
        if table.min() < 0 or table.max() > 1:
            raise ValueError(f"judgements: must lie in [0, 1], got values from {table.min():.6g} to {table.max():.6g}")
        object.__setattr__(self, "judgements", table)

    __eq__ = same
    __hash__ = hashed

    def bind(self, instance: Any) -> BoundPreference:
        table = fitted("judgements", self.judgements, instance)
        mean = skewed((table + 1 - table.mT) / 2)
        return BoundPreference(self, lambda question: Law(question.entries(table)), lambda question: question.at(mean))


@dataclass(frozen=True)
class UniformTriangular(PreferenceOracle):
    """P(a > b | x) ~ U[0, 1], independently for every pair: EGPO's random games (2503.08942).

    contextual: another game for every context, or one for all; fixed: the same in all replicates; variant: another
    draw of the same law.
    """

    contextual: bool = True
    fixed: bool = False
    variant: int = 0

    def bind(self, instance: Any) -> BoundPreference:
        uniforms = drawn(self, instance, "wins", *_shape(self, instance), law="uniform")
        return _bound(self, skewed(uniforms))


@dataclass(frozen=True, eq=False)
class PlantedEquilibrium(PreferenceOracle):
    """A random game whose unregularised equilibrium has full support and is known: P = 1/2 + B - (B p) 1' + 1 (B p)'.

    B is a random skew matrix; then (P - 1/2) p = 0, since p' B p = 0. Scaled so that the largest |P - 1/2| of a game
    is `margin`. equilibrium: p, (A,) or (X, A), positive; None draws it from the flat Dirichlet law, mixed with the
    uniform one so that every action keeps at least `smallest` / A. In a ragged context p is that of its actions,
    renormalised.
    For the last iterate of OMWU (2512.24818) and ONPO (2502.16852). Raises ValueError for margins outside (0, 1/2],
    `smallest` outside [0, 1], or an equilibrium without full support.
    """

    equilibrium: ArrayLike | None = None
    smallest: float = 0.1
    margin: float = 0.5
    contextual: bool = True
    fixed: bool = False
    variant: int = 0

    def __post_init__(self) -> None:
        arrays.number("margin", self.margin, 0.0, 0.5, above=True)
        arrays.number("smallest", self.smallest, 0.0, 1.0)
        if self.equilibrium is not None:
            flat = np.ndim(self.equilibrium) == 1
            planted = arrays.probabilities("equilibrium", self.equilibrium, "A" if flat else "XA")
            if planted.min() <= 0:
                raise ValueError(f"equilibrium: must be > 0 everywhere, got {planted.min():g}")
            object.__setattr__(self, "equilibrium", arrays.frozen(planted[None]) if flat else planted)

    __eq__ = same
    __hash__ = hashed

    def planted(self, instance: Any) -> Tensor:
        """The equilibrium, (R or 1, X or 1, A); 0 for actions that a context does not offer."""
        if self.equilibrium is not None:
            p = fitted("equilibrium", self.equilibrium, instance)
        else:
            shape = (games(self, instance), instance.n_actions)
            exponential = -torch.log1p(-drawn(self, instance, "equilibrium", *shape, law="uniform"))
            p = exponential / exponential.sum(-1, keepdim=True)
            p = (1 - self.smallest) * p + self.smallest / instance.n_actions
        offered = _offered(instance)
        p = p if offered is None else p * offered
        return p / p.sum(-1, keepdim=True)

    def bind(self, instance: Any) -> BoundPreference:
        p = self.planted(instance)
        margins = drawn(self, instance, "margins", *_shape(self, instance))
        margins = margins - margins.mT
        payoff = (margins @ p[..., None]).squeeze(-1)
        margins = margins - payoff[..., :, None] + payoff[..., None, :]
        offered = _offered(instance)
        if offered is not None:
            margins = margins * offered[..., :, None] * offered[..., None, :]
        largest = margins.abs().amax((-2, -1), keepdim=True).clamp_min(torch.finfo(margins.dtype).tiny)
        return _bound(self, skewed(0.5 + self.margin * margins / largest).clamp(0.0, 1.0))


@dataclass(frozen=True)
class HodgeMix(PreferenceOracle):
    """P(a > b | x) = sigma(r_a - r_b + curl C_ab): Bradley-Terry plus a dial of intransitivity.

    C is a random skew matrix without gradient (each row sums to 0), of root mean square 1 over the pairs offered, in
    logits: `curl` is the typical size of what no reward explains. At curl = 0 it is Bradley-Terry exactly. r is the
    world's reward ("world"), or standard normal ("drawn"). Hodge decomposition of pairwise rankings: Jiang, Lim, Yao,
    Ye (2011). Two actions have no curl. Raises ValueError for curl < 0.
    """

    curl: float
    gradient: Literal["world", "drawn"] = "world"
    contextual: bool = True
    fixed: bool = False
    variant: int = 0

    def __post_init__(self) -> None:
        arrays.number("curl", self.curl, 0.0)
        if self.gradient not in ("world", "drawn"):
            raise ValueError(f"gradient: must be 'world' or 'drawn', got {self.gradient!r}")

    def bind(self, instance: Any) -> BoundPreference:
        shape, offered = _shape(self, instance), _offered(instance)
        margins = drawn(self, instance, "curl", *shape)
        _, curl = hodge(margins - margins.mT, offered)
        pairs = (curl != 0).sum((-2, -1), keepdim=True).clamp_min(1)
        size = (curl.square().sum((-2, -1), keepdim=True) / pairs).sqrt()
        curl = self.curl * curl / torch.where(size > 1e-12, size, torch.inf)  # rounding is no curl
        scores = None
        if self.gradient == "world":
            with_rewards(self, instance)
        else:
            scores = drawn(self, instance, "gradient", *shape[:2])

        def prob(question: Question) -> Tensor:
            if scores is None:
                first, second = question.rewards(instance)
                gradient = first - second
            else:
                gradient = question.differences(*(x[..., 0] for x in question.vectors(scores[..., None])))
            return torch.sigmoid(gradient + question.entries(curl))

        return BoundPreference(self, lambda question: skew(prob, question))


def hodge(margins: Tensor, offered: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Splits skew margins (..., A, A) into a gradient and a curl: potential (..., A) of mean 0 and the skew rest.

    margins_ab = potential_a - potential_b + curl_ab over the offered actions (..., A), None for all; rows of `curl` sum
    to 0, so the two parts are orthogonal, and the potential is the least-squares one (every pair weighs the same).
    """
    if offered is None:
        offered = torch.ones(margins.shape[-1], dtype=torch.bool, device=margins.device)
    both = offered[..., :, None] & offered[..., None, :]
    margins = torch.where(both, margins, 0.0)
    potential = margins.sum(-1) / offered.sum(-1, keepdim=True)
    curl = torch.where(both, margins - potential[..., :, None] + potential[..., None, :], 0.0)
    return potential, curl


def _bound(oracle: PreferenceOracle, table: Tensor) -> BoundPreference:
    """A skew table (R or 1, X or 1, A, A), read as it is."""
    return BoundPreference(oracle, lambda question: Law(question.entries(table)))


def _square(name: str, values: ArrayLike) -> np.ndarray:
    table = given(name, values, "XAA")
    if table.shape[-1] != table.shape[-2]:
        raise ValueError(f"{name}: must be square in its last two axes, got shape {np.shape(values)}")
    return table


def _shape(oracle: Any, instance: Any) -> tuple[int, int, int]:
    """(X or 1, A, A), unless the replicates' tables would not fit."""
    contexts, actions = games(oracle, instance), instance.n_actions
    copies = 1 if oracle.fixed else instance.replicates
    what = f"{copies:,} x {contexts:,} tables of {actions:,} x {actions:,} preferences"
    arrays.affordable("replicates, n_contexts, n_actions", copies * contexts * actions**2, what)
    return contexts, actions, actions


def _offered(instance: Any) -> Tensor | None:
    """Actions that each context of the pool offers, (R or 1, X, A); None where all contexts offer all."""
    if instance.pool is None:
        return None
    offered = instance.pool.ref_log_probs > -torch.inf
    if bool(offered.all()):
        return None
    return offered[:1] if offered.stride(0) == 0 else offered
