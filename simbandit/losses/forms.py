"""The forms that the losses are made of. Exact gradients everywhere, and no NaN where an exponential would overflow."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from simbandit.objective import PairLogProbs


def gap(pair: Tensor) -> Tensor:
    """First response minus second; a calibration draw in a third column is not looked at."""
    return pair[..., 0] - pair[..., 1]


def log_ratio_gap(log_probs: PairLogProbs) -> Tensor:
    return gap(log_probs.now) - gap(log_probs.ref)


def log_ratios(log_probs: PairLogProbs) -> tuple[Tensor, Tensor]:
    """log pi/pi_ref of the first and of the second response."""
    a = log_probs.now - log_probs.ref
    return a[..., 0], a[..., 1]


def pair(log_probs: PairLogProbs) -> PairLogProbs:
    """The two responses of the duel."""
    return PairLogProbs(*(x[..., :2] for x in log_probs))


def draw(log_probs: PairLogProbs) -> PairLogProbs:
    """The calibration draw: column 2."""
    return PairLogProbs(*(x[..., 2:3] for x in log_probs))


def either(label: Tensor, won: Tensor, lost: Tensor) -> Tensor:
    """label won + (1 - label) lost: what the loss is when the first response won, and when it lost."""
    return label * won + (1 - label) * lost


def by_winner(f: Callable[[Tensor], Tensor], m: Tensor, label: Tensor) -> Tensor:
    """f(winner's margin), m the first response's."""
    return either(label, f(m), f(-m))


def cross_entropy(m: Tensor, label: Tensor) -> Tensor:
    """-label log sigma(m) - (1 - label) log sigma(-m)."""
    return -either(label, logsigmoid(m), logsigmoid(-m))


def regression(h: Tensor, target: float, label: Tensor) -> Tensor:
    """(winner's h - target)^2, h the first response's; its mean is least at h = (2 p - 1) target."""
    return either(label, (h - target) ** 2, (h + target) ** 2)


def rounded_relu(x: Tensor, rounding: float) -> Tensor:
    """max(0, x), or (x + rounding)^2 / (4 rounding) for |x| <= rounding."""
    if rounding == 0:
        return torch.relu(x)
    return torch.where(x.abs() <= rounding, (x + rounding) ** 2 / (4 * rounding), torch.relu(x))


def exp(x: Tensor, cap: float = 60.0) -> Tensor:
    """e^x, continued by its tangent beyond `cap` (e^60 leaves room in float32), so that it is finite, increasing and
    once differentiable everywhere."""
    low = x.clamp(max=cap)
    return low.exp() * (1 + x - low)


def divergence(log_probs: PairLogProbs) -> Tensor:
    """KL(pi || pi_ref) as seen from each response, drawn from the last policy: w log(w / v) - w + v with the importance
    weights w = pi/pi_last, v = pi_ref/pi_last; non-negative, 0 at pi = pi_ref, of mean KL (the last two terms have
    mean 0)."""
    w, v = exp(log_probs.now - log_probs.last), exp(log_probs.ref - log_probs.last)
    return w * (log_probs.now - log_probs.ref) - w + v


def positive(**own: object) -> None:
    """Raises ValueError naming a number that is not > 0; tensors are the caller's."""
    for name, value in own.items():
        if isinstance(value, int | float) and not value > 0:
            raise ValueError(f"{name}: must be > 0, got {value}")


def non_negative(**own: object) -> None:
    for name, value in own.items():
        if isinstance(value, int | float) and not value >= 0:
            raise ValueError(f"{name}: must be >= 0, got {value}")


def smoothing(label_smoothing: float, low: str = "[") -> None:
    fine = 0 <= label_smoothing < 0.5 and (low == "[" or label_smoothing > 0)
    if not fine:
        raise ValueError(f"label_smoothing: must lie in {low}0, 1/2), got {label_smoothing}")
