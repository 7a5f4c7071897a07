"""How a network that has no closed form is fitted: to a stated residual, or for a stated number of steps.

Both act on flat parameters (R, P) of all replicates at once, and never mix replicates: the steps are elementwise, the
line search is per replicate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from simbandit.solvers import minimise_lbfgs
from simbandit.types import FitInfo

Value = Callable[[Tensor], Tensor]
"""(R, P) -> (R,)"""


@dataclass(frozen=True)
class LBFGS:
    """Quasi-Newton to a gradient norm of `tolerance`, or `max_iterations`; FitInfo says which.

    Finds a stationary point, not certainly the global one: a transformer's loss is not convex. Deviation from the
    theorem's argmin: no bound on log-ratios, so a loss without a finite minimiser ends at `max_iterations`.
    """

    tolerance: float = 1e-7
    max_iterations: int = 300

    def __post_init__(self) -> None:
        if not self.tolerance > 0:
            raise ValueError(f"tolerance: must be > 0, got {self.tolerance}")
        _at_least_one("max_iterations", self.max_iterations)

    def minimise(self, value: Value, start: Tensor) -> tuple[Tensor, FitInfo]:
        held: list[tuple[Tensor, tuple[Tensor, Tensor]]] = []

        def evaluated(x: Tensor) -> tuple[Tensor, Tensor]:
            if not (held and held[0][0] is x):  # the solver asks again for the point it stands on
                held[:] = [(x, value_and_gradient(value, x))]
            return held[0][1]

        found = minimise_lbfgs(evaluated, start, tolerance=self.tolerance, max_iterations=self.max_iterations)
        return found.argmin, FitInfo(found.residual, found.converged, found.iterations)


@dataclass(frozen=True)
class AdamW:
    """`steps` steps of AdamW (2 of torch's defaults stated here; no weight decay unless asked for); a fit of a later
    round starts afresh. `residual` is the gradient norm at the end; it counts as converged below `tolerance`."""

    steps: int = 200
    learning_rate: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        _at_least_one("steps", self.steps)
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate: must be > 0, got {self.learning_rate}")

    def minimise(self, value: Value, start: Tensor) -> tuple[Tensor, FitInfo]:
        x = start.detach().clone().requires_grad_(True)
        optimiser = torch.optim.AdamW([x], lr=self.learning_rate, betas=self.betas, weight_decay=self.weight_decay)
        for _ in range(self.steps):
            x.grad = value_and_gradient(value, x)[1]
            optimiser.step()
        residual = value_and_gradient(value, x)[1].norm(dim=-1)
        return x.detach(), FitInfo(residual, residual <= self.tolerance, torch.full_like(residual, float(self.steps)))


@dataclass(frozen=True)
class GradientDescent:
    """`steps` plain gradient steps: the inexact fit in which rounding stays rounding (Adam divides by it)."""

    steps: int = 200
    learning_rate: float = 0.1
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        _at_least_one("steps", self.steps)
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate: must be > 0, got {self.learning_rate}")

    def minimise(self, value: Value, start: Tensor) -> tuple[Tensor, FitInfo]:
        x = start
        for _ in range(self.steps):
            x = x - self.learning_rate * value_and_gradient(value, x)[1]
        residual = value_and_gradient(value, x)[1].norm(dim=-1)
        return x, FitInfo(residual, residual <= self.tolerance, torch.full_like(residual, float(self.steps)))


Fitter = LBFGS | AdamW | GradientDescent


def value_and_gradient(value: Value, x: Tensor) -> tuple[Tensor, Tensor]:
    """Of every replicate: (R,) and (R, P). Replicates do not interact, so the gradient of the sum is theirs."""
    with torch.enable_grad():
        at = x.detach().requires_grad_(True)
        result = value(at)
        (gradient,) = torch.autograd.grad(result.sum(), at)
    return result.detach(), gradient


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}: must be at least 1, got {value}")
