"""How a regret curve grows: its exponent, how much that depends on where one starts to look, and log T against sqrt
T."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from simbandit.guarantees.claims import Verdict
from simbandit.guarantees.rows import MissingData, Where, pivot, select
from simbandit.guarantees.statistics import LEVEL, RESAMPLES, resampling_weights, slope_interval

BURN_INS = (0.0, 0.05, 0.1, 0.25, 0.5)


def burn_in_sensitivity(
    x: ArrayLike, values: ArrayLike, *, burn_ins: Sequence[float] = BURN_INS, level: float = LEVEL
) -> pd.DataFrame:
    """The log-log slope of the mean of values (R, T) over x >= share of the last x, for several shares: columns
    burn_in, exponent, low, high, points. An exponent that moves by more than its interval is not asymptotic yet. Shares
    that leave fewer than three points are left out."""
    at, y = np.asarray(x, dtype=float), np.asarray(values, dtype=float)
    rows = []
    for share in burn_ins:
        kept = (at > 0) & (at >= share * at.max())
        if kept.sum() >= 3:
            interval = slope_interval(at[kept], y[:, kept], level)
            rows.append((share, float(interval.estimate), float(interval.low), float(interval.high), int(kept.sum())))
    return pd.DataFrame(rows, columns=["burn_in", "exponent", "low", "high", "points"])


class Growth(NamedTuple):
    """model: what fits the mean curve better, or "undecided"; share_log: in how many bootstrap resamples of replicates
    the logarithm did; residuals of both, root mean squares relative to the curve's range."""

    model: Literal["log", "sqrt", "undecided"]
    share_log: float
    residual_log: float
    residual_sqrt: float


def growth(x: ArrayLike, values: ArrayLike, *, level: float = LEVEL, resamples: int = RESAMPLES) -> Growth:
    """Does cumulative regret (R, T) grow like a + b log x or like a + b sqrt(x)?

    Both have two parameters, so the smaller residual sum of squares over the given x decides; the replicate bootstrap
    says how firmly: "undecided" unless at least `level` of the resamples agree. A share is no p-value of a third model:
    a curve that is neither is given to whichever is nearer. Raises ValueError for fewer than four points or x <= 0.
    """
    at, y = np.asarray(x, dtype=float), np.asarray(values, dtype=float)
    if y.ndim != 2 or at.shape != y.shape[1:] or len(at) < 4 or not (at > 0).all():
        raise ValueError(f"x, values: need (T,) positive with T >= 4 and (R, T), got {at.shape} and {y.shape}")

    def squares(curves: np.ndarray, regressor: np.ndarray) -> np.ndarray:
        basis, _ = np.linalg.qr(np.stack([np.ones_like(regressor), regressor], axis=1))
        return ((curves - (curves @ basis) @ basis.T) ** 2).sum(-1)

    mean = y.mean(0)
    curves = mean[None] if len(y) == 1 else resampling_weights(len(y), resamples) @ y
    share = float((squares(curves, np.log(at)) < squares(curves, np.sqrt(at))).mean())
    span = max(float(np.ptp(mean)), 1e-300) * np.sqrt(len(at))
    log, root = (float(np.sqrt(squares(mean[None], f)[0]) / span) for f in (np.log(at), np.sqrt(at)))
    decided = len(y) > 1 and max(share, 1 - share) >= level
    return Growth(("log" if share > 0.5 else "sqrt") if decided else "undecided", share, log, root)


@dataclass(frozen=True)
class GrowsLike:
    """The mean of `metric` grows like a + b log x, or like a + b sqrt(x), whichever `model` says, by `growth` over x
    in `window` (inclusive; a label, "queries" or "round"). Measured: the share of bootstrap resamples that agree."""

    name: str
    source: str
    metric: str
    where: Where
    model: Literal["log", "sqrt"]
    x: str = "queries"
    window: tuple[float, float] = (0.0, np.inf)

    def judge(self, frame: pd.DataFrame) -> Verdict:
        table = pivot(select(frame, {**self.where, "metric": self.metric}), self.x)
        at = table.columns.to_numpy(dtype=float)
        inside = (at > 0) & (at >= self.window[0]) & (at <= self.window[1])
        if inside.sum() < 4:
            raise MissingData(f"claim {self.name!r}: fewer than four values of {self.x} in the window {self.window}")
        found = growth(at[inside], table.to_numpy()[:, inside])
        share = found.share_log if self.model == "log" else 1 - found.share_log
        verdict = "undecided" if found.model == "undecided" else "holds" if found.model == self.model else "fails"
        return Verdict(self.name, self.source, f"{self.model} fits better", share, share, share, verdict)
