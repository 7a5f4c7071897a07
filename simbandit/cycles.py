"""Does a trajectory settle, circle or spiral out? Radius and period of a limit cycle, from recorded numbers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Cycle(NamedTuple):
    """centre (n,), the mean of the last part; radius, the root mean square distance from it; period in rounds, nan
    where it is not passed twice; turns seen; growth, the radius of the last half of that part over that of the first:
    about 1 on a cycle, below where the trajectory converges, above where it spirals out."""

    centre: np.ndarray
    radius: float
    period: float
    turns: int
    growth: float


def limit_cycle(values: ArrayLike, rounds: ArrayLike | None = None, *, last: float = 0.5) -> Cycle:
    """The cycle on which one replicate's recorded values (T, n) end, policies or metrics, or (T,) of a single metric.

    rounds: when each was recorded, (T,), 0, 1, 2, ... if None; uneven spacing weighs by records. last: the share of
    records judged, after the transient. The period is the mean time between upward passages of the centre along the
    direction of largest variance, interpolated linearly: to 1 % where a turn has ten records or more, and meaningless
    where it has fewer than two. Raises ValueError for fewer than 8 records in the last part, NaN, or rounds that do not
    increase.
    """
    x = np.asarray(values, dtype=float)
    x = x[:, None] if x.ndim == 1 else x
    t = np.arange(len(x), dtype=float) if rounds is None else np.asarray(rounds, dtype=float)
    if x.ndim != 2 or t.shape != x.shape[:1]:
        raise ValueError(f"values, rounds: must be (T, n) or (T,), and (T,), got {np.shape(values)} and {t.shape}")
    if not 0 < last <= 1:
        raise ValueError(f"last: must lie in (0, 1], got {last}")
    if not (np.isfinite(x).all() and (np.diff(t) > 0).all()):
        raise ValueError("values, rounds: values must be finite, and rounds increasing")
    part = slice(len(x) - round(last * len(x)), None)
    x, t = x[part], t[part]
    if len(x) < 8:
        raise ValueError(f"values: the last part holds {len(x)} records and needs 8; record more or raise `last`")
    centre = x.mean(0)
    apart = x - centre
    distance = np.linalg.norm(apart, axis=1)
    halves = [float(np.sqrt(np.mean(half**2))) for half in np.array_split(distance, 2)]
    along = apart @ np.linalg.svd(apart, full_matrices=False)[2][0]
    up = np.flatnonzero((along[:-1] < 0) & (along[1:] >= 0))
    passed = t[up] + (t[up + 1] - t[up]) * along[up] / (along[up] - along[up + 1])
    period = float((passed[-1] - passed[0]) / (len(passed) - 1)) if len(passed) > 1 else float("nan")
    growth = halves[1] / halves[0] if halves[0] > 0 else 0.0
    return Cycle(centre, float(np.sqrt(np.mean(distance**2))), period, max(0, len(passed) - 1), growth)
