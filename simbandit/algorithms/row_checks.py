"""Which choices of a direct row contradict each other, and which numbers its losses refuse: found when it is made."""

from __future__ import annotations

import difflib
import inspect
import math
from typing import Any

import torch

from simbandit import losses
from simbandit.algorithms.checks import check
from simbandit.objective import PairLogProbs


def check_row(row: Any) -> None:
    """Raises ValueError naming a `Direct`'s field, or the loss's own parameter, what was wrong and what is allowed."""
    check(row, positive=("value_range", "window"), signed=("loss_parameters", "bonus_parameters"))
    given = _given("loss_parameters", row.loss, row.loss_parameters)
    _given("bonus_parameters", row.bonus, row.bonus_parameters)
    _given("hybrid_loss", row.hybrid_loss, ())
    for choice, chosen in (("anchor", row.anchor == "mirror"), ("schedule", row.schedule)):
        if chosen and "step_size" not in given:
            value = repr(getattr(row, choice))
            raise ValueError(f"{choice}: {value} needs a loss with a step_size, {row.loss} has none; leave it out")
    moving = sorted({row.loss, row.bonus} & losses.MOVING)
    if row.data == "all" and moving:
        raise ValueError(f"data: {moving[0]} looks at the last policy and takes 'fresh' data, got 'all'")
    if row.loss in losses.BATCHED and (row.data == "all" or row.descent is None):
        raise ValueError(f"descent: {row.loss} is of a whole batch, so data must not be counted and steps be given")
    for choice, chosen in (("labels", row.labels == "win_rate"), ("optimistic", row.optimistic)):
        if chosen and row.data != "fresh":
            value = repr(getattr(row, choice))
            raise ValueError(f"{choice}: {value} speaks of this round's duels and takes 'fresh' data")
    if row.window is not None and row.data != "all":
        raise ValueError(f"window: is of data 'all', got {row.data!r}; leave it out")
    if row.hybrid is not None and (row.hybrid > 1 or row.data == "offline"):
        raise ValueError(f"hybrid: a share in [0, 1] next to online data, got {row.hybrid} with {row.data!r}")
    if row.bonus is not None and row.bonus not in losses.BONUSES:
        raise ValueError(f"bonus: must be one of {sorted(losses.BONUSES)}, got {row.bonus!r}")
    if row.loss in losses.CALIBRATED | losses.BONUSES:
        raise ValueError(f"loss: {row.loss} sees a calibration draw; give its pair loss, and the rest as `bonus`")
    if row.value_range == "unbounded" and row.descent is None:
        for name in (row.loss, row.bonus):
            if name in losses.DIVERGING:
                raise ValueError(f"value_range: {name} has no minimum without a bound, got 'unbounded'; give a number")
            if name in losses.NON_CONVEX:
                raise ValueError(
                    f"value_range: {name} is not convex and its fit starts at the bound's corners too, got "
                    "'unbounded'; give a number"
                )


def _given(label: str, name: str | None, parameters: tuple[tuple[str, float], ...]) -> list[str]:
    """The names of a loss's parameters, after it has been tried on one duel: it checks its own numbers."""
    allowed = [] if name is None else loss_parameters(name)
    given = [own for own, _ in parameters]
    if sorted(given) != sorted(allowed):
        raise ValueError(f"{label}: {name} takes {allowed or 'none'}, got {given or 'none'}")
    if name is not None:
        columns = 1 if name in losses.BONUSES else 3
        blank = torch.full((1, columns), math.log(0.5), dtype=torch.float64)
        half = torch.full((1,), 0.5, dtype=torch.float64)
        value = getattr(losses, name)(PairLogProbs(blank, blank, blank), half, 1.0, **dict(parameters))
        if not torch.isfinite(value).all():
            raise ValueError(f"{label}: {name} has no finite value with {dict(parameters)}; give finite numbers")
    return given


def loss_parameters(name: str) -> list[str]:
    """The parameters that a loss has of its own, beyond log_probs, label and kl_coef."""
    if name not in losses.__all__ or not inspect.isfunction(function := getattr(losses, name)):
        known = [n for n in losses.__all__ if inspect.isfunction(getattr(losses, n))]
        near = difflib.get_close_matches(name, known, n=3) or known
        raise ValueError(f"loss: {name!r} is no loss; did you mean {', '.join(near)}?")
    return [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
