"""Policies as immutable objects: what plays, what is output, and what direct methods fit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from simbandit.fits import descend, fit_log_linear, fit_tabular, table_of
from simbandit.objective import Descent, DuelObjective
from simbandit.policies.laws import argmax, best_of_n, gibbs, inverse_cdf, mixture, normalise, uniform
from simbandit.types import Contexts, FitInfo, Policy


class Rows(ABC):
    """Reading and sampling for policies that know their whole row of log-probabilities."""

    @abstractmethod
    def rows(self, contexts: Contexts) -> Tensor:
        """(R, B, A)"""

    def log_probs(self, contexts: Contexts, actions: Tensor | None = None) -> Tensor:
        rows = self.rows(contexts)
        return rows if actions is None else rows.gather(-1, actions)

    def sample(self, contexts: Contexts, uniforms: Tensor) -> Tensor:
        return inverse_cdf(self.rows(contexts), uniforms)

    def fit(self, objective: DuelObjective) -> tuple[Any, FitInfo]:
        del objective
        raise TypeError(f"{type(self).__name__} has no parameters to fit; use a Tabular or LogLinear policy")


@dataclass(frozen=True, eq=False)
class Reference(Rows):
    """The world's reference policy."""

    def rows(self, contexts: Contexts) -> Tensor:
        return contexts.ref_log_probs


@dataclass(frozen=True, eq=False)
class Uniform(Rows):
    """Uniform over the actions that each context offers."""

    def rows(self, contexts: Contexts) -> Tensor:
        return uniform(contexts.ref_log_probs)


@dataclass(frozen=True, eq=False)
class Tabular(Rows):
    """One row of normalised log-probabilities per context of a finite world: (R, X, A)."""

    table: Tensor

    def rows(self, contexts: Contexts) -> Tensor:
        return contexts.rows(self.table)

    def fit(self, objective: DuelObjective) -> tuple[Tabular, FitInfo]:
        """The argmin over all policies within the objective's box, by projected Newton from this policy; or so many
        steps of descent on its log-ratios to the reference."""
        if objective.descent is None:
            table, info = fit_tabular(self.table, objective)
            return Tabular(table), info
        contexts = objective.contexts
        ratio = torch.where(objective.offered, self.table - contexts.ref_log_probs, 0.0)
        (ratio,), info = descend(
            (ratio,), lambda free: Tabular(table_of(contexts, free[0])), objective, objective.descent
        )
        return Tabular(table_of(contexts, ratio)), info


@dataclass(frozen=True, eq=False)
class LogLinear(Rows):
    """pi proportional to pi_ref exp(<theta, phi>): the Gibbs policy of a linear reward <kl_coef theta, phi>. theta (R,
    d)."""

    theta: Tensor

    def rows(self, contexts: Contexts) -> Tensor:
        if contexts.pool is not None and contexts.shape[1] > contexts.pool.shape[1]:
            return contexts.rows(self.rows(contexts.pool))  # each context of the pool once
        tilt = torch.einsum("rbad,rd->rba", contexts.features, self.theta)
        return normalise(contexts.ref_log_probs + tilt)

    def fit(self, objective: DuelObjective) -> tuple[LogLinear, FitInfo]:
        """The argmin over theta within the objective's ball, by Newton from this policy; or so many steps of
        descent."""
        if objective.descent is None:
            centre = objective.reference.theta if isinstance(objective.reference, LogLinear) else None
            theta, info = fit_log_linear(self.theta, objective, centre)
        else:
            (theta,), info = descend((self.theta,), lambda free: LogLinear(free[0]), objective, objective.descent)
        return LogLinear(theta), info


@dataclass(frozen=True, eq=False)
class Elliptical(Rows):
    """Gibbs policy of <theta, phi> + radius ||phi - centre||_inverse: optimistic for radius > 0, pessimistic for < 0.

    theta (R, d), inverse (R, d, d), radius (R,), kl_coef a number. `centre`: (R, d), or None for the reference
    policy's mean features in each context. Evaluates in any context, so it serves worlds of fresh contexts.
    """

    theta: Tensor
    inverse: Tensor
    radius: Tensor
    kl_coef: float
    centre: Tensor | None = None

    def rows(self, contexts: Contexts) -> Tensor:
        features, ref = contexts.features, contexts.ref_log_probs
        if self.centre is None:
            centre = torch.einsum("rba,rbad->rbd", ref.exp(), features)[:, :, None]
        else:
            centre = self.centre[:, None, None]
        u = features - centre
        width = ((u @ self.inverse[:, None]) * u).sum(-1).clamp_min(0.0).sqrt()
        scores = torch.einsum("rbad,rd->rba", features, self.theta) + self.radius[:, None, None] * width
        return gibbs(scores, ref, self.kl_coef)


@dataclass(frozen=True, eq=False)
class Mixture(Rows):
    """Mixture of policies in probability space."""

    components: tuple[Policy, ...]
    weights: tuple[float, ...]

    def rows(self, contexts: Contexts) -> Tensor:
        return mixture([component.log_probs(contexts) for component in self.components], self.weights)


@dataclass(frozen=True, eq=False)
class Geometric(Rows):
    """Proportional to the product of pi_i^weight_i, over the actions that a context offers: a geometric mixture, a
    temperature, a tilt away from a component (weight < 0), or uniform (no weight at all)."""

    components: tuple[Policy, ...]
    weights: tuple[float, ...]

    def rows(self, contexts: Contexts) -> Tensor:
        offered = ~torch.isneginf(contexts.ref_log_probs)
        total = torch.zeros_like(contexts.ref_log_probs)
        for weight, component in zip(self.weights, self.components, strict=True):
            if weight != 0:
                total = total + weight * torch.where(offered, component.log_probs(contexts), 0.0)
        return normalise(torch.where(offered, total, -torch.inf))


@dataclass(frozen=True, eq=False)
class BestOf(Rows):
    """The exact law of the best (or worst) of n draws of a policy by its own implied reward, log policy / reference."""

    policy: Policy
    reference: Policy
    n: int
    worst: bool = False

    def rows(self, contexts: Contexts) -> Tensor:
        log_probs, reference = self.policy.log_probs(contexts), self.reference.log_probs(contexts)
        implied = torch.where(torch.isneginf(reference), 0.0, log_probs - reference)
        return best_of_n(log_probs, -implied if self.worst else implied, self.n)


@dataclass(frozen=True, eq=False)
class Argmax(Rows):
    """A policy's likeliest action, uniform over ties."""

    policy: Policy

    def rows(self, contexts: Contexts) -> Tensor:
        return argmax(self.policy.log_probs(contexts).exp(), contexts.ref_log_probs)


@dataclass(frozen=True, eq=False)
class Network(Rows):
    """pi proportional to pi_ref exp(f(phi)), f one hidden layer of tanh units: the step between log-linear policies and
    language models. parameters: (R, d, h), (R, h), (R, h); fitted by descent, `steps` where the objective says none."""

    parameters: tuple[Tensor, Tensor, Tensor]
    steps: Descent = field(default_factory=lambda: Descent(100, 0.03))

    @staticmethod
    def at_reference(inner: Tensor, bias: Tensor) -> Network:
        """The network with these first layers, (R, d, h) and (R, h), whose output is 0 everywhere."""
        return Network((inner / inner.shape[1] ** 0.5, bias, torch.zeros_like(bias)))

    def rows(self, contexts: Contexts) -> Tensor:
        inner, bias, outer = self.parameters
        hidden = torch.tanh(contexts.features @ inner[:, None] + bias[:, None, None])
        return normalise(contexts.ref_log_probs + (hidden @ outer[:, None, :, None]).squeeze(-1))

    def fit(self, objective: DuelObjective) -> tuple[Network, FitInfo]:
        """So many steps of descent, never claimed to be the argmin."""

        def policy_of(free: tuple[Tensor, ...]) -> Network:
            inner, bias, outer = free
            return Network((inner, bias, outer), self.steps)

        found, info = descend(self.parameters, policy_of, objective, objective.descent or self.steps)
        return policy_of(found), info


def tabulate(policy: Policy, pool: Contexts | None) -> Policy:
    """The policy as a table where the world is finite (so that `select` only gathers), else the policy itself."""
    return policy if pool is None else Tabular(policy.log_probs(pool))


def concatenate(parts: Sequence[Policy]) -> Policy:
    """One policy of all replicates from the policies of consecutive chunks of them."""

    def joined(values: list[Any]) -> Any:
        if isinstance(values[0], Tensor):
            return torch.cat(values)
        if isinstance(values[0], tuple) and any(is_dataclass(v) for v in values[0]):
            return tuple(joined(list(column)) for column in zip(*values, strict=True))
        return concatenate(values) if is_dataclass(values[0]) else values[0]

    first: Any = parts[0]
    kind: Any = type(first)
    if len(parts) == 1:
        return first
    if not is_dataclass(first):
        raise TypeError(f"policy: {kind.__name__} must be a dataclass of tensors (R, ...) to join chunks of replicates")
    return kind(**{f.name: joined([getattr(p, f.name) for p in parts]) for f in fields(first)})
