"""What each loss asks of one pair: the log-ratio gap u that minimises it on two actions, by closed form or by one root.

A form takes (p, kl_coef, q): the win rate of the first response and its reference probability. Sources: the losses'
docstrings; the roots are derived, x = pi(first) being normalised.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import optimize

from simbandit import losses
from simbandit.objective import PairLogProbs


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def sigma(x: float) -> float:
    return float(0.5 + 0.5 * np.tanh(x / 2))


def smoothed(p: float, kl: float, q: float, eps: float) -> float:
    return logit((1 - eps) * p + eps * (1 - p)) / kl


def robust(p: float, kl: float, q: float, eps: float, bound: float) -> float:
    clean = (p - eps) / (1 - 2 * eps)
    return logit(clean) / kl if 0 < clean < 1 else math.copysign(bound / kl, p - 0.5)


def margin_logit(p: float, kl: float, q: float, margin: float, reference: bool = True) -> float:
    """`losses.offset_dpo`; without a reference (SimPO) the same of log pi."""
    a, b = 2 * p - 1, 4 * p * (1 - p) * math.exp(-2 * margin)
    ratio = math.log((a + math.sqrt(a * a + b)) / (2 * (1 - p) * math.exp(-margin))) / kl
    return ratio if reference else ratio - logit(q)


def root(p: float, kl: float, q: float, slope: Callable[..., float]) -> float:
    """u at which slope(p, kl, x, a, b, u) vanishes: x = pi(first), a and b the two log-ratios."""

    def at(u: float) -> float:
        x = sigma(u + logit(q))
        a = -np.logaddexp(math.log(q), math.log(1 - q) - u)
        return slope(p, kl, x, a, a - u, u)

    found: Any = optimize.brentq(at, -60, 60, xtol=1e-13)
    return float(found)


def minimised(p: float, kl: float, q: float, name: str, bound: float, **own: float) -> float:
    """No closed form: the loss itself over u, on a grid and then by golden section."""
    ref = torch.tensor([[q, 1 - q]], dtype=torch.float64).log()

    def mean(u: Any) -> Any:
        gap = torch.as_tensor(u, dtype=torch.float64).reshape(-1, 1)
        now = torch.log_softmax(ref + torch.cat([gap, 0 * gap], -1), -1)
        still = ref.expand_as(now)
        value = getattr(losses, name)(PairLogProbs(now, still, still), torch.full_like(gap[:, 0], p), kl, **own)
        return value.numpy() if len(value) > 1 else float(value)

    grid = np.linspace(-bound / kl, bound / kl, 4801)
    best = float(grid[np.argmin(mean(grid))])
    found: Any = optimize.minimize_scalar(
        mean, bounds=(best - 0.01, best + 0.01), method="bounded", options={"xatol": 1e-11}
    )
    return float(found.x)


def bco_slope(p: float, kl: float, x: float, a: float, b: float, u: float) -> float:
    return (1 - x) * (sigma(kl * a) - p) - x * (sigma(kl * b) - (1 - p))


def nca_slope(p: float, kl: float, x: float, a: float, b: float, u: float) -> float:
    first, second = sigma(kl * a) / 2 - p * sigma(-kl * a), sigma(kl * b) / 2 - (1 - p) * sigma(-kl * b)
    return (1 - x) * first - x * second


def sppo_slope(p: float, kl: float, x: float, a: float, b: float, u: float, step: float) -> float:
    return (1 - x) * (a - step * (p - 0.5)) - x * (b + step * (p - 0.5))


def rpo_slope(p: float, kl: float, x: float, a: float, b: float, u: float, weight: float) -> float:
    return kl * (sigma(kl * u) - p) - weight * (p - x)


def orpo_slope(p: float, kl: float, x: float, a: float, b: float, u: float, weight: float) -> float:
    return (p - x) + 2 * weight * (p - x * x / (x * x + (1 - x) ** 2))


def link_slope(p: float, kl: float, x: float, a: float, b: float, u: float, link: Callable[[float], float]) -> float:
    return kl * (link(a) - link(b)) - logit(p)
