"""What a world accepts: sizes, numbers, probabilities and arrays, checked once, when the world is described.

Arrays become read-only float64 copies, so that a frozen world is frozen to the last number.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

MEMORY_LIMIT = 4 * 2**30  # bytes that one world's tables may take
SUM_TOLERANCE = 1e-9  # how far probabilities may be from summing to 1


def count(name: str, value: Any, least: int = 1) -> int:
    """A whole number of at least `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least:
        raise ValueError(f"{name}: must be an integer >= {least}, got {value!r}")
    return number


def number(name: str, value: Any, least: float = -math.inf, most: float = math.inf, *, above: bool = False) -> float:
    """A finite number of at least `least` (`above`: strictly more) and at most `most`."""
    allowed = f"{'>' if above else '>='} {least:g}" if least > -math.inf else ""
    allowed += (" and " if allowed and most < math.inf else "") + (f"<= {most:g}" if most < math.inf else "")
    try:
        result = float(value)
    except (TypeError, ValueError):
        result = math.nan
    if not math.isfinite(result) or result < least or result > most or (above and result == least):
        raise ValueError(f"{name}: must be a finite number {allowed}".rstrip() + f", got {value!r}")
    return result


def array(name: str, values: ArrayLike, dims: str) -> np.ndarray:
    """A read-only float64 copy with one axis per letter of `dims` (such as "XAd"), none of them empty."""
    try:
        result = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: must be an array of numbers, shape ({', '.join(dims)}): {error}") from error
    if result.ndim != len(dims) or 0 in result.shape:
        raise ValueError(f"{name}: must have shape ({', '.join(dims)}), none of them 0, got {result.shape}")
    return frozen(result)


def frozen(values: np.ndarray) -> np.ndarray:
    values.flags.writeable = False
    return values


def finite(name: str, values: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
    """`values` without NaN or infinity (looked for only `where` an action is offered, 0 elsewhere)."""
    if where is not None:
        values = frozen(np.where(where, values, 0.0))
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        place = tuple(bad[0].tolist())
        raise ValueError(f"{name}: must be finite, got {values[place]} at {list(place)} ({len(bad)} such entries)")
    return values


def probabilities(name: str, values: ArrayLike, dims: str) -> np.ndarray:
    """Non-negative and summing to 1 over the last axis, to 1e-9; then normalised exactly."""
    result = finite(name, array(name, values, dims))
    if (result < 0).any():
        raise ValueError(f"{name}: probabilities must be >= 0, got {result.min():g}")
    total = result.sum(-1, keepdims=True)
    worst = total.flat[np.abs(total - 1).argmax()]
    if abs(worst - 1) > SUM_TOLERANCE:
        raise ValueError(f"{name}: probabilities must sum to 1 (to {SUM_TOLERANCE:g}), got {worst:.12g}")
    return frozen(result / total)


def log_probabilities(name: str, values: ArrayLike) -> np.ndarray:
    """Logarithms of a reference policy (X, A): -inf where an action is absent, every context summing to 1 (to
    1e-9)."""
    result = array(name, values, "XA")
    if np.isnan(result).any() or (result == np.inf).any():
        raise ValueError(f"{name}: must be finite, or -inf where an action is absent; got NaN or +inf")
    empty = np.flatnonzero(np.isneginf(result).all(-1))
    if len(empty):
        raise ValueError(f"{name}: context {empty[0]} has zero mass everywhere; each context must offer an action")
    total = np.logaddexp.reduce(result, axis=-1, keepdims=True)
    worst = total.flat[np.abs(total).argmax()]
    if abs(np.expm1(worst)) > SUM_TOLERANCE:
        raise ValueError(f"{name}: probabilities must sum to 1 (to {SUM_TOLERANCE:g}), got {np.exp(worst):.12g}")
    return frozen(result - total)


def affordable(names: str, numbers: int, what: str) -> None:
    """Refuse tables beyond `MEMORY_LIMIT`, naming the arguments that ask for them."""
    if 8 * numbers > MEMORY_LIMIT:
        needed, allowed = 8 * numbers / 2**30, MEMORY_LIMIT / 2**30
        raise ValueError(f"{names}: {what} would need {needed:,.1f} GB; at most {allowed:g} GB are allowed")


def contents(world: Any) -> tuple:
    """All fields of a world as one hashable, comparable tuple, arrays by their numbers."""
    values = ((f.name, getattr(world, f.name)) for f in dataclasses.fields(world))
    return tuple((name, v.shape, v.tobytes()) if isinstance(v, np.ndarray) else (name, v) for name, v in values)


def shared(values: np.ndarray, device: torch.device) -> Tensor:
    """One table for all replicates, (1, ...)."""
    return torch.tensor(values[None], dtype=torch.float64, device=device)  # copies: the world's array is read-only
