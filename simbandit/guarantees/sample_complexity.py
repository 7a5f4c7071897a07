"""How many queries until the gap stays below epsilon, replicate by replicate, with runs that never get there kept as
what they are: censored."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import CensoredData, ecdf

from simbandit.draws import EVERY_REPLICATE, generator
from simbandit.guarantees.rows import MissingData, pivot
from simbandit.guarantees.statistics import LEVEL, RESAMPLES, Interval, expanded_percentiles, mean_interval


@dataclass(frozen=True, eq=False)
class QueriesTo:
    """queries (R,): per replicate the first recorded count from which the metric stays at most epsilon; where
    `censored` (R,), it had not by then, and the number is the last recorded count, a lower bound."""

    epsilon: float
    queries: np.ndarray
    censored: np.ndarray

    @property
    def horizon(self) -> float:
        """The shortest follow-up: every replicate is known up to here."""
        return float(self.queries[self.censored].min()) if self.censored.any() else float(self.queries.max())

    def restricted_mean(self, level: float = LEVEL) -> Interval:
        """E[min(N, horizon)] with its replicate bootstrap: the mean where nothing is censored, else a lower bound on
        it, comparable between algorithms of one horizon."""
        return mean_interval(np.minimum(self.queries, self.horizon), level)

    def survival(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Kaplan and Meier's P(N > q): the counts q, the probability, and its pointwise 95 % bounds (log-log,
        scipy)."""
        curve = ecdf(CensoredData.right_censored(self.queries, self.censored)).sf
        if self.censored.all():  # nothing happened: no variance to speak of
            return curve.quantiles, curve.probabilities, np.zeros(1), np.ones(1)
        with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # undefined where the curve is 0 or 1: no bound there
            bounds = curve.confidence_interval(LEVEL, method="log-log")
        low, high = np.nan_to_num(bounds.low.probabilities, nan=0.0), np.nan_to_num(bounds.high.probabilities, nan=1.0)
        return curve.quantiles, curve.probabilities, low, high

    def median(self) -> float:
        """Kaplan and Meier's median; infinite where half the replicates never got there."""
        counts, probability, _, _ = self.survival()
        there = probability <= 0.5
        return float(counts[there.argmax()]) if there.any() else float("inf")


def queries_to(frame: pd.DataFrame, epsilon: float, *, metric: str = "suboptimality", x: str = "queries") -> QueriesTo:
    """Per replicate the first recorded `x` from which on `metric` is at most epsilon until the end of the record.

    frame: rows of one cell as `Results.frame()` returns them. A gap that dips below epsilon and comes back does not
    count. Between two recorded rounds the later is taken. Raises ValueError for epsilon <= 0, MissingData without rows.
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon: must be > 0, got {epsilon}")
    rows = frame.take(np.flatnonzero(frame["metric"] == metric))
    if len(rows) == 0:
        raise MissingData(f"metric {metric!r} was not recorded; recorded are {sorted(frame['metric'].unique())}")
    table = pivot(rows, x)
    counts = table.columns.to_numpy(dtype=float)
    above = table.to_numpy() > epsilon
    censored = above[:, -1]
    first = above.shape[1] - above[:, ::-1].argmax(1)  # the round after the last one above
    first = np.where(above.any(1), np.minimum(first, above.shape[1] - 1), 0)
    return QueriesTo(float(epsilon), counts[np.where(censored, above.shape[1] - 1, first)], censored)


@dataclass(frozen=True, eq=False)
class Complexity:
    """N(epsilon) at several epsilons: medians and censored shares, and the exponent p of N ~ epsilon^-p with its
    interval, over the epsilons that fewer than half the replicates missed; NaN where fewer than two are left.

    burn_in: the same exponent without the coarsest epsilons, one more left out per row (columns largest_epsilon,
    exponent, low, high, points): one that moves by more than its interval is not asymptotic yet."""

    table: pd.DataFrame
    exponent: Interval
    burn_in: pd.DataFrame


def complexity(
    frame: pd.DataFrame,
    epsilons: Sequence[float],
    *,
    metric: str = "suboptimality",
    x: str = "queries",
    resamples: int = RESAMPLES,
) -> Complexity:
    """How N(epsilon) grows: the least-squares slope of log median N on log 1 / epsilon, by the replicate bootstrap.

    1 is 1 / epsilon (the fast rate of KL-regularised objectives), 2 is 1 / epsilon^2. Medians, because a median needs
    no assumption about the censored half. A resample in which an epsilon is missed by half counts as infinitely steep.
    """
    found = [queries_to(frame, epsilon, metric=metric, x=x) for epsilon in epsilons]
    table = pd.DataFrame(
        {
            "epsilon": list(epsilons),
            "median": [q.median() for q in found],
            "restricted_mean": [float(q.restricted_mean().estimate) for q in found],
            "censored": [float(q.censored.mean()) for q in found],
        }
    )
    finite = np.isfinite(table["median"].to_numpy()) & (table["median"].to_numpy() > 0)
    usable = sorted((q for q, kept in zip(found, finite, strict=True) if kept), key=lambda q: -q.epsilon)
    exponents = _exponents(usable, resamples)
    columns = ["largest_epsilon", "exponent", "low", "high", "points"]
    rows = [
        (q.epsilon, *map(float, p), len(usable) - i) for i, (q, p) in enumerate(zip(usable, exponents, strict=False))
    ]
    nothing = Interval(np.array(np.nan), np.array(-np.inf), np.array(np.inf))
    return Complexity(table, exponents[0] if exponents else nothing, pd.DataFrame(rows, columns=columns))


def _exponents(found: Sequence[QueriesTo], resamples: int) -> list[Interval]:
    """Of all epsilons, of all but the coarsest, ..., of the last two."""
    if len(found) < 2:
        return []
    counts = np.stack([np.where(q.censored, np.inf, q.queries) for q in found])  # (E, R)
    R = counts.shape[1]
    draws = generator(0, EVERY_REPLICATE, "bootstrap/complexity", R).integers(R, size=(resamples, R))
    medians = np.stack([_log_medians(counts), *(_log_medians(counts[:, rows]) for rows in draws if R > 1)])
    exponents = []
    for i in range(len(found) - 1):
        at = np.log([1 / q.epsilon for q in found[i:]])
        slopes = (at - at.mean()) / ((at - at.mean()) @ (at - at.mean()))
        there = np.isfinite(medians[:, i:])
        p = np.where(there.all(1), np.where(there, medians[:, i:], 0.0) @ slopes, np.inf)
        ends = np.quantile(p[1:], expanded_percentiles(R), method="nearest") if R > 1 else (-np.inf, np.inf)
        exponents.append(Interval(np.array(p[0]), np.array(ends[0]), np.array(ends[1])))
    return exponents


def _log_medians(counts: np.ndarray) -> np.ndarray:
    """log of the lower median over the last axis, at least one query."""
    ordered = np.sort(counts, axis=-1)
    return np.log(np.maximum(ordered[..., (counts.shape[-1] - 1) // 2], 1.0))
