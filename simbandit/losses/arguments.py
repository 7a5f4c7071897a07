"""Checks of what goes into a loss, for those who call one directly.

The losses themselves run inside Newton's loops on tensors that simbandit made, so they check only their own numbers.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor

from simbandit import losses
from simbandit.objective import PairLogProbs


def check(
    name: str, label: Tensor, now: Tensor, *, last: Tensor | None = None, ref: Tensor | None = None
) -> PairLogProbs:
    """The log-probabilities (..., k) as loss `name` takes them; what it does not look at is filled with zeros.

    Raises ValueError naming the argument: an unknown loss; labels outside [0, 1] or not a number; log-probabilities
    that are above 0, infinite or not a number, or of another shape or number of columns than the loss needs; `ref`
    missing where the loss needs it or given where it ignores it; `last` missing where it is needed.
    """
    if not inspect.isfunction(getattr(losses, name, None)):
        raise ValueError(f"name: {name!r} is not a loss")
    if not ((label >= 0) & (label <= 1)).all():
        raise ValueError("label: must be probabilities in [0, 1] that the first response wins")
    columns = 1 if name in losses.BONUSES else 3 if name in losses.CALIBRATED else 2
    if now.shape[-1:] != (columns,):
        what = {1: "one response", 2: "the two responses of a duel", 3: "both responses and the calibration draw"}
        raise ValueError(f"now: {name} takes {what[columns]}, (..., {columns}), got shape {tuple(now.shape)}")
    if ref is None and name not in losses.REFERENCE_FREE:
        raise ValueError(f"ref: {name} needs the reference's log-probabilities")
    if ref is not None and name in losses.REFERENCE_FREE:
        raise ValueError(f"ref: {name} has no reference and would ignore it; leave it out")
    if last is None and name in losses.MOVING:
        raise ValueError(f"last: {name} needs the last policy's log-probabilities")
    for argument, value in (("now", now), ("last", last), ("ref", ref)):
        if value is None:
            continue
        if value.shape != now.shape:
            raise ValueError(f"{argument}: must have now's shape {tuple(now.shape)}, got {tuple(value.shape)}")
        if not ((value <= 0) & torch.isfinite(value)).all():
            raise ValueError(f"{argument}: log-probabilities must be finite and <= 0")
    blank = torch.zeros_like(now)
    return PairLogProbs(now, blank if last is None else last, blank if ref is None else ref)
