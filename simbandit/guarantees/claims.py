"""Claims of papers, judged on a study's stored rows.

A claim holds when its interval lies inside what the paper says, fails when it lies outside, and is undecided
when the replicates do not tell: a wide interval never passes. `where` selects rows by equality of label
columns (None selects rows without the label). Rows of several cells are never averaged in silence: a filter
that leaves more than one value per replicate and abscissa is an error, and so is one that leaves none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd

from simbandit.guarantees.rows import MissingData, Where, at_round, pivot, select
from simbandit.guarantees.statistics import LEVEL, Interval, mean_interval, proportion_interval, slope_interval

Sense = Literal["equals", "at most", "at least"]
_SIGN = {"equals": "=", "at most": "<=", "at least": ">="}


@dataclass(frozen=True)
class Verdict:
    """One row of the table: what the paper says, what was measured with its interval, and what follows."""

    claim: str
    source: str
    paper: str
    measured: float
    low: float
    high: float
    verdict: Literal["holds", "fails", "undecided"]


class Claim(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def source(self) -> str: ...

    def judge(self, frame: pd.DataFrame) -> Verdict: ...


@dataclass(frozen=True)
class Exponent:
    """The mean of `metric` grows like x^exponent: the log-log slope over `window` (bounds on x, inclusive).

    x: "queries", "round", or a label column (then each cell counts at its last recorded round). "equals"
    holds when the interval lies within exponent +- tolerance, "at most" and "at least" when it lies on that
    side of exponent +- tolerance. x = 0 is left out. `exact`: the values are computed, not sampled, and have
    no interval.
    """

    name: str
    source: str
    metric: str
    where: Where
    exponent: float
    tolerance: float
    sense: Sense = "equals"
    x: str = "queries"
    window: tuple[float, float] = (0.0, np.inf)
    exact: bool = False

    def judge(self, frame: pd.DataFrame) -> Verdict:
        with _named(self):
            table = pivot(_rows(frame, self.metric, self.where), self.x)
        at = table.columns.to_numpy(dtype=float)
        inside = (at > 0) & (at >= self.window[0]) & (at <= self.window[1])
        if inside.sum() < 2:
            raise MissingData(f"claim {self.name!r}: fewer than two values of {self.x} in the window {self.window}")
        values = table.to_numpy()[:, inside]
        if np.isfinite(values).all() and (values.mean(0) > 0).all():
            interval = slope_interval(at[inside], values)
            interval = Interval(*[interval.estimate] * 3) if self.exact else interval
        else:
            interval = _undefined()
        return _compare(self, interval, self.exponent, self.tolerance, "x^", self.sense)


@dataclass(frozen=True)
class Ordering:
    """factor * mean(metric where `smaller`) < mean(metric where `larger`), replicate by replicate.

    Each filter is joined with `where`. `at`: the round compared, by default each side's last recorded one.
    `factor` 2 claims "at least twice as small". Measured is the mean of larger - factor * smaller: above 0
    holds, below fails.
    """

    name: str
    source: str
    metric: str
    smaller: Where
    larger: Where
    where: Where = field(default_factory=dict)
    factor: float = 1.0
    at: int | None = None
    exact: bool = False

    def judge(self, frame: pd.DataFrame) -> Verdict:
        with _named(self):
            small = at_round(_rows(frame, self.metric, {**self.where, **self.smaller}), self.at)
            large = at_round(_rows(frame, self.metric, {**self.where, **self.larger}), self.at)
            shared = sorted(small.keys() & large.keys())
            if not shared:
                raise MissingData("the two sides share no replicate, so they cannot be paired")
        differences = np.array([large[r] - self.factor * small[r] for r in shared])
        interval = _interval(differences, self.exact)
        paper = "smaller" if self.factor == 1 else f"smaller by a factor {self.factor:g}"
        return _verdict(self, interval, f"{paper} (difference > 0)", interval.low > 0, interval.high <= 0)


@dataclass(frozen=True)
class Number:
    """The mean of `metric` at round `at` (default: the last) is `value` up to an absolute `tolerance`, or on
    one side.

    "equals" holds when the interval lies within value +- tolerance, so a tolerance of 0 needs `exact`.
    """

    name: str
    source: str
    metric: str
    where: Where
    value: float
    tolerance: float
    sense: Sense = "equals"
    at: int | None = None
    exact: bool = False

    def judge(self, frame: pd.DataFrame) -> Verdict:
        with _named(self):
            values = at_round(_rows(frame, self.metric, self.where), self.at)
        interval = _interval(np.array(list(values.values())), self.exact)
        return _compare(self, interval, self.value, self.tolerance, "", self.sense)


@dataclass(frozen=True)
class Frequency:
    """The event `metric` (0 or 1 per replicate) has at most this `probability`, at every value of the label `x`.

    The interval is exact (Clopper and Pearson), simultaneous over x (Bonferroni): no event in 50 replicates
    leaves a probability of up to 7 %. Measured: the share at the x where it is largest.
    """

    name: str
    source: str
    metric: str
    where: Where
    probability: float
    x: str

    def judge(self, frame: pd.DataFrame) -> Verdict:
        with _named(self):
            events = pivot(_rows(frame, self.metric, self.where), self.x).to_numpy()
            if not np.isin(events, (0, 1)).all():
                raise ValueError(f"{self.metric} must be 0 or 1 in every row")
        interval = proportion_interval(events, 1 - (1 - LEVEL) / events.shape[1])
        worst = int(np.argmax(interval.estimate))
        fails = interval.low[worst] > self.probability
        shown = Interval(*(part[worst] for part in interval))
        return _verdict(self, shown, f"<= {self.probability:g}", shown.high <= self.probability, fails)


@dataclass(frozen=True)
class Identity:
    """`metric` equals metric `other` (or 0) in every row, up to tolerance * max(1, |other|). NaN fails."""

    name: str
    source: str
    metric: str
    where: Where
    tolerance: float
    other: str | None = None

    def judge(self, frame: pd.DataFrame) -> Verdict:
        with _named(self):
            left = _rows(frame, self.metric, self.where)
            error = np.abs(left["value"].to_numpy())
            if self.other is not None:
                on = [name for name in left.columns if name not in ("metric", "value")]
                both = left.merge(_rows(frame, self.other, self.where), on=on, suffixes=("", "_other"))
                if len(both) != len(left):
                    raise MissingData(f"{self.metric} and {self.other} do not share all their rows")
                size = both["value_other"].to_numpy()
                error = np.abs(both["value"].to_numpy() - size) / np.maximum(1, np.abs(size))
        worst = float(np.max(error))  # NaN wins
        interval = Interval(np.array(worst), np.array(worst), np.array(worst))
        holds = worst <= self.tolerance
        return _verdict(self, interval, f"= {self.other or 0} (+- {self.tolerance:g})", holds, not holds)


@dataclass(frozen=True)
class Monotone:
    """The mean of `metric` only rises (or only falls) along x, each step paired by replicate.

    x: a label column (each cell at its last recorded round), "queries" or "round". Holds when every step,
    with simultaneous intervals (Bonferroni), stays above -tolerance; fails when one lies below. Measured: the
    worst step.
    """

    name: str
    source: str
    metric: str
    where: Where
    x: str
    direction: Literal["increasing", "decreasing"]
    tolerance: float = 0.0
    exact: bool = False

    def judge(self, frame: pd.DataFrame) -> Verdict:
        with _named(self):
            table = pivot(_rows(frame, self.metric, self.where), self.x)
        if table.shape[1] < 2:
            raise MissingData(f"claim {self.name!r}: fewer than two values of {self.x}")
        steps = np.diff(table.to_numpy(), axis=1) * (1 if self.direction == "increasing" else -1)
        interval = _interval(steps, self.exact, 1 - (1 - LEVEL) / steps.shape[1])
        fails = bool((interval.high < -self.tolerance).any())
        worst = int(np.argmin(interval.high if fails else interval.low))
        shown = Interval(*(part[worst] for part in interval))
        paper = f"{self.direction} in {self.x}" + (f" (+- {self.tolerance:g})" if self.tolerance else "")
        return _verdict(self, shown, paper, bool((interval.low >= -self.tolerance).all()), fails)


def judge(claims: Sequence[Claim], frame: pd.DataFrame, *, partial: bool = False) -> pd.DataFrame:
    """One row per claim: claim, source, paper, measured, low, high, verdict.

    Raises MissingData where the frame lacks a claim's rows; with `partial` (a smoke run's subset of the grid)
    that claim's verdict is "no data" instead.
    """
    columns = list(Verdict.__dataclass_fields__)
    rows = []
    for claim in claims:
        try:
            verdict = claim.judge(frame)
            rows.append([getattr(verdict, name) for name in columns])
        except MissingData:
            if not partial:
                raise
            rows.append([claim.name, claim.source, "", np.nan, np.nan, np.nan, "no data"])
    return pd.DataFrame(rows, columns=columns)


@contextmanager
def _named(claim: Claim) -> Iterator[None]:
    try:
        yield
    except (MissingData, ValueError) as error:
        raise type(error)(f"claim {claim.name!r}: {error}") from None


def _rows(frame: pd.DataFrame, metric: str, where: Where) -> pd.DataFrame:
    return select(frame, {**where, "metric": metric})


def _interval(values: np.ndarray, exact: bool, level: float = LEVEL) -> Interval:
    """Of the mean over replicates; values that are not finite give an undefined interval, which fails every
    claim."""
    if not np.isfinite(values).all():
        return _undefined(values.shape[1:])
    if exact:
        mean = values.mean(0)
        return Interval(mean, mean, mean)
    return mean_interval(values, level)


def _undefined(shape: tuple[int, ...] = ()) -> Interval:
    return Interval(*(np.full(shape, np.nan) for _ in range(3)))


def _compare(claim: Claim, interval: Interval, value: float, tolerance: float, prefix: str, sense: Sense) -> Verdict:
    below = interval.high <= value + tolerance, interval.low > value + tolerance
    above = interval.low >= value - tolerance, interval.high < value - tolerance
    holds, fails = {
        "at most": below,
        "at least": above,
        "equals": (below[0] and above[0], below[1] or above[1]),
    }[sense]
    paper = f"{_SIGN[sense]} {prefix}{value:g}" + (f" (+- {tolerance:g})" if tolerance else "")
    return _verdict(claim, interval, paper, holds, fails)


def _verdict(claim: Claim, interval: Interval, paper: str, holds: Any, fails: Any) -> Verdict:
    measured, low, high = (float(part) for part in interval)
    undefined = np.isnan(measured)
    verdict = "holds" if holds and not undefined else "fails" if fails or undefined else "undecided"
    return Verdict(claim.name, claim.source, paper, measured, low, high, verdict)
