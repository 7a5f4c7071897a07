"""The words of the loop: contexts, what a learner may know, and the protocols that meet in `simulate`.

Shapes, everywhere in the project: R replicates (always the leading axis), B contexts of one round, X contexts of a
finite world, A actions, d features, k actions selected per context. Numbers are float64 tensors, actions int64.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from simbandit.draws import Draws, Round

Feedback = Literal["preference", "reward", "ranking", "full"]
"""What an oracle answers: who wins a duel, a reward, an order of k actions, or a whole table (`FullInformation`)."""


class Contexts:
    """A batch of contexts, (R, B): ids into a finite world's pool, or fresh ones that carry their own features.

    Never holds rewards. Features and reference log-probabilities are gathered only when asked for; an action that a
    context does not offer (a ragged world) has reference log-probability -inf and features zero. `vector`: the x (R, B,
    m) of features e_a (x) x, a disjoint model, which are written out only when asked for.
    """

    def __init__(
        self,
        *,
        index: Tensor | None = None,
        pool: Contexts | None = None,
        features: Tensor | None = None,
        ref_log_probs: Tensor | None = None,
        weights: Tensor | None = None,
        vector: Tensor | None = None,
        ragged: bool | None = None,
    ):
        if pool is None and ref_log_probs is None:
            raise ValueError("Contexts needs either `pool` and `index`, or its own `ref_log_probs`")
        self.index, self.pool, self.weights = index, pool, weights
        self._features, self._ref_log_probs, self._vector, self._ragged = features, ref_log_probs, vector, ragged

    @property
    def shape(self) -> tuple[int, int]:
        """(R, B)"""
        lead = self.index if self.index is not None else self._ref_log_probs
        assert lead is not None
        return lead.shape[0], lead.shape[1]

    @property
    def n_actions(self) -> int:
        return (self.pool or self).ref_log_probs.shape[-1]

    @property
    def ragged(self) -> bool:
        """Whether some context does not offer some action."""
        held = self.pool or self
        if held._ragged is None:
            held._ragged = bool((held.ref_log_probs == -torch.inf).any())
        return held._ragged

    @property
    def has_features(self) -> bool:
        held = self.pool or self
        return held._features is not None or held._vector is not None

    @property
    def vector(self) -> Tensor | None:
        """(R, B, m), where action a's features are e_a (x) vector; else None."""
        held = (self.pool or self)._vector
        return held if held is None or self.pool is None else self.rows(held)

    @property
    def features(self) -> Tensor:
        """(R, B, A, d)"""
        held = (self.pool or self)._written()
        return held if self.pool is None else self.rows(held)

    @property
    def own_features(self) -> Tensor:
        """(R, B, A, m): what a model per arm regresses on, the context's vector where it has one (a view), else the
        action's features."""
        x = self.vector
        return self.features if x is None else x[:, :, None].expand(-1, -1, self.n_actions, -1)

    def _written(self) -> Tensor:
        """The features held, written out where only the contexts' vectors are."""
        if self._features is None:
            if self._vector is None:
                raise ValueError("this world has no features; give `features=` to the world or use a tabular policy")
            offered = (self.ref_log_probs > -torch.inf).to(self._vector.dtype)
            self._features = (offered.diag_embed()[..., None] * self._vector[..., None, None, :]).flatten(-2)
        return self._features

    @property
    def ref_log_probs(self) -> Tensor:
        """(R, B, A), -inf where the context does not offer the action"""
        held = (self.pool or self)._ref_log_probs
        assert held is not None
        return held if self.pool is None else self.rows(held)

    def rows(self, table: Tensor) -> Tensor:
        """Rows of a per-context table (R, X, ...) of this world at these contexts: (R, B, ...)."""
        if self.index is None:
            raise ValueError("fresh contexts have no ids: a table over contexts needs a finite world (n_contexts=)")
        if self.pool is None:
            return table
        return table[torch.arange(table.shape[0], device=table.device)[:, None], self.index]

    def own_features_of(self, actions: Tensor) -> Tensor:
        """`own_features` of the given actions (R, B, k): (R, B, k, m)."""
        x = self.vector
        return self.features_of(actions) if x is None else x[:, :, None].expand(-1, -1, actions.shape[-1], -1)

    def features_of(self, actions: Tensor) -> Tensor:
        """Features of the given actions (R, B, k): (R, B, k, d), without gathering the rest."""
        held = (self.pool or self)._written()
        R, B, _ = actions.shape
        if held.device.type == "cpu":  # NumPy picks a few rows of a large table eight times as fast as torch
            where = np.arange(B)[:, None] if self.pool is None else self._index().numpy()[..., None]
            return torch.from_numpy(held.numpy()[np.arange(R)[:, None, None], where, actions.numpy()])
        where = torch.arange(B, device=held.device)[:, None] if self.pool is None else self._index()[..., None]
        return held[torch.arange(R, device=held.device)[:, None, None], where, actions]

    def _index(self) -> Tensor:
        assert self.index is not None
        return self.index


@dataclass(frozen=True)
class Setting:
    """All that a learner may know before the first round. `policy` is the reference (where a language model enters)."""

    replicates: int
    rounds: int
    batch_size: int
    n_actions: int
    dim: int | None
    kl_coef: float
    reward_range: tuple[float, float]
    contexts: Contexts | None
    policy: Policy
    feedback: Feedback
    n_select: int
    theta_bound: float | None = None  # the B of ||theta*|| <= B, where the world tells it
    own_dim: int | None = None  # numbers in an action's `own_features`, what a model per arm regresses on
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


class FitInfo(NamedTuple):
    """What a policy's `fit` achieved, per replicate: gradient residual (R,), convergence (R,), iterations (R,), and,
    where it tells, the objective's value (R,)."""

    residual: Tensor
    converged: Tensor
    iterations: Tensor
    value: Tensor | None = None


@dataclass(frozen=True)
class Info:
    """Diagnostics of one update; nothing here feeds the next round.

    theta (R, d): the reward estimate; data_matrix (R, d, d): sum of z z' of the data behind it, without ridge, over
    `observations` vectors z (one a duel or reward, K (K - 1) / 2 a ranking); where only the inverse (R, d, d) of
    ridge I + data_matrix is kept, that and its `ridge` stand for the data matrix. fit_residual (R,): norm of the fit's
    gradient; fit_value (R,): what it minimised; fit_iterations (R,); radius: the confidence radius used.
    """

    theta: Tensor | None = None
    data_matrix: Tensor | None = None
    observations: int = 0
    fit_residual: Tensor | None = None
    fit_iterations: Tensor | None = None
    radius: Tensor | float | None = None
    inverse: Tensor | None = None
    ridge: float = 0.0
    fit_value: Tensor | None = None


class Instance(Protocol):
    """One realisation of a world: it holds the truth, which no learner ever receives."""

    replicates: int
    n_actions: int
    dim: int | None
    reward_range: tuple[float, float]
    theta_bound: float | None
    pool: Contexts | None
    evaluation: Contexts

    def contexts(self, draws: Round, batch_size: int) -> Contexts: ...

    def rewards(self, contexts: Contexts) -> Tensor: ...


@runtime_checkable
class World(Protocol):
    """A frozen description of a family of problems."""

    def instance(self, replicates: int, draws: Draws) -> Any: ...


class BoundOracle(Protocol):
    """An oracle that knows one instance's truth."""

    feedback: Feedback
    n_select: int

    def respond(self, contexts: Contexts, actions: Tensor, draws: Round) -> Tensor: ...


class Oracle(Protocol):
    """A frozen description of the annotator; `simulate` binds it to the instance's truth."""

    @property
    def feedback(self) -> Feedback: ...

    @property
    def n_select(self) -> int: ...

    def bind(self, instance: Any) -> Any: ...


@runtime_checkable
class Policy(Protocol):
    """Immutable: `last` and `ref` are just older objects."""

    def log_probs(self, contexts: Contexts, actions: Tensor | None = None) -> Tensor: ...

    def sample(self, contexts: Contexts, uniforms: Tensor) -> Tensor: ...

    def fit(self, objective: Any) -> tuple[Any, FitInfo]: ...  # objective(policy) -> (R,)


@runtime_checkable
class Algorithm(Protocol):
    """A frozen dataclass of hyper-parameters. What it needs of a problem is declared with it.

    feedbacks: the oracle kinds it learns from; needs_features: whether a world without features is refused;
    offline: one update on logged data instead of rounds; consistent: whether its gap must vanish on a covered
    Bradley-Terry world (the contract suite then tests it).
    """

    feedbacks: ClassVar[tuple[Feedback, ...]]
    needs_features: ClassVar[bool]
    offline: ClassVar[bool]

    @property
    def consistent(self) -> bool: ...

    def init(self, setting: Setting) -> Any: ...

    def select(self, state: Any, contexts: Contexts, draws: Round) -> Tensor: ...

    def update(
        self, state: Any, contexts: Contexts, actions: Tensor, feedback: Tensor, draws: Round
    ) -> tuple[Any, Info]: ...

    def policy(self, state: Any) -> Policy: ...


@runtime_checkable
class Playing(Algorithm, Protocol):
    """An algorithm that, where `plays`, goes through B rounds of one context each, (R, B), in one go, as `select` and
    `update` would one after the other. outcomes (R, B, A): what each action would be answered with."""

    @property
    def plays(self) -> bool: ...

    def play(self, state: Any, contexts: Contexts, outcomes: Tensor, draws: Round) -> tuple[Any, Tensor, Info]: ...
