"""What a direct method minimises: sums over duels, and over single responses, of losses of their log-probabilities.

Gradients and Hessians in those log-probabilities come from the loss alone (autograd, element by element); a policy
class only adds its chain rule (`fits`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from simbandit.types import Contexts, Policy


class PairLogProbs(NamedTuple):
    """Log-probabilities of both responses of every duel, (..., 2), in the order in which they were played; where a loss
    has a bonus, (..., 3) with the calibration draw last, and (..., 1) for the bonus alone."""

    now: Tensor
    last: Tensor
    ref: Tensor


Loss = Callable[[PairLogProbs, Tensor, float], Tensor]
"""loss(log_probs, label, kl_coef) -> one value per duel, affine in the label (the probability that the first wins)."""


class Readable(Protocol):
    def log_probs(self, contexts: Contexts, actions: Tensor | None = None) -> Tensor: ...


@dataclass(frozen=True)
class Descent:
    """An inexact fit: so many steps of an optimiser from the last policy, with fresh moments, and no bound kept.

    learning_rate is per duel: the objective is divided by the total weight of its terms, at least 1.
    weight_decay pulls the parameters of a table or of a log-linear policy, which are log-ratios, towards the reference.
    """

    steps: int
    learning_rate: float
    weight_decay: float = 0.0
    optimiser: Literal["adamw", "sgd"] = "adamw"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps: must be at least 1, got {self.steps}")
        for name in ("learning_rate", "weight_decay"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name}: must be a finite number >= 0, got {value}")
        if self.optimiser not in ("adamw", "sgd"):
            raise ValueError(f"optimiser: must be 'adamw' or 'sgd', got {self.optimiser!r}")

    def over(self, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        """A fresh optimiser of these parameters."""
        kind = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[self.optimiser]
        return kind(parameters, lr=self.learning_rate, weight_decay=self.weight_decay)


@dataclass(frozen=True, eq=False)
class Term:
    """sum_u weight_u loss(pi; u) over U duels (k = 2) or single responses (k = 1).

    row (R, U): each one's position among the objective's contexts; actions (R, U, k); weight, label (R, U); last, ref
    (R, U, k): stored log-probabilities. Entries of weight 0 are padding.
    """

    row: Tensor
    actions: Tensor
    weight: Tensor
    label: Tensor
    last: Tensor
    ref: Tensor
    loss: Loss

    def values(self, now: Tensor, kl_coef: float) -> Tensor:
        """(..., R, U), from log-probabilities (..., R, U, k)."""
        return self.weight * self.loss(PairLogProbs(now, self.last, self.ref), self.label, kl_coef)

    def derivatives(self, now: Tensor, kl_coef: float) -> tuple[Tensor, Tensor, Callable[[], Tensor]]:
        """Values (..., R, U), gradient (..., R, U, k) and, when called, the Hessian (..., R, U, k, k), each entry's in
        its own log-probabilities."""
        now = now.detach().requires_grad_(True)
        values = self.values(now, kl_coef)
        (gradient,) = torch.autograd.grad(values.sum(), now, create_graph=True)

        def hessian() -> Tensor:
            k = now.shape[-1]
            if not gradient.requires_grad:  # a piecewise linear loss
                return torch.zeros(*now.shape, k, dtype=now.dtype, device=now.device)
            columns = [
                torch.autograd.grad(gradient[..., i].sum(), now, retain_graph=True, materialize_grads=True)[0]
                for i in range(k)
            ]
            return torch.stack(columns, dim=-1)

        return values.detach(), gradient.detach(), hessian


@dataclass(frozen=True, eq=False)
class DuelObjective:
    """sum of the terms + proximal sum_x Var_a(log pi(a|x) - anchor(a|x)), one value per replicate.

    contexts: C contexts, (R, C). anchored: contexts -> (R, C, A), where the policy stays when no duel speaks. The
    proximal term is the variance over a context's actions, so no normaliser enters; without it (proximal 0) a policy is
    only asked for the actions of the terms, so it need not be able to list all actions. `bound` limits max - min over a
    context's actions of log pi - log reference: without it a response that only ever lost has log-ratio -inf. On
    log-linear policies the bound is the ball ||theta - its reference's|| <= bound / (2 max ||phi||), which implies it.
    reference: None is the contexts' own (`ref_log_probs`). convex: False where a term is not convex in a table's
    log-ratios; then a fit takes several starts. descent: None is the argmin.
    """

    contexts: Contexts
    terms: tuple[Term, ...]
    kl_coef: float
    anchored: Callable[[Contexts], Tensor]
    proximal: float
    bound: float
    reference: Policy | None = None
    convex: bool = True
    descent: Descent | None = None

    def __call__(self, policy: Readable) -> Tensor:
        total = torch.zeros(self.contexts.shape[0], dtype=torch.float64, device=self.terms[0].weight.device)
        for term in self.terms:
            now = policy.log_probs(Contexts(index=term.row, pool=self.contexts), term.actions)
            total = total + term.values(now, self.kl_coef).sum(-1)
        if self.proximal == 0:
            return total
        drift = policy.log_probs(self.contexts) - self.anchor
        return total + self.proximal * variance(drift, self.offered).sum(-1)

    @cached_property
    def anchor(self) -> Tensor:
        return self.anchored(self.contexts)

    @cached_property
    def centre(self) -> Tensor:
        """(R, C, A): log of the reference around which the policy is bounded."""
        return (
            self.contexts.ref_log_probs if self.reference is None else self.reference.log_probs(self.contexts)
        ).detach()

    @property
    def offered(self) -> Tensor:
        return ~torch.isneginf(self.contexts.ref_log_probs)

    @property
    def weight(self) -> Tensor:
        """(R,): total weight of the terms."""
        return torch.stack([term.weight.abs().sum(-1) for term in self.terms]).sum(0)


def centred(x: Tensor, offered: Tensor) -> Tensor:
    """x minus its mean over the offered actions (last axis); 0 where an action is not offered."""
    x = torch.where(offered, x, 0.0)
    return torch.where(offered, x - x.sum(-1, keepdim=True) / offered.sum(-1, keepdim=True), 0.0)


def variance(x: Tensor, offered: Tensor) -> Tensor:
    return centred(x, offered).square().sum(-1) / offered.sum(-1)
