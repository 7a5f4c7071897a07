"""Annotators with human failings: wrappers of any preference oracle, which nest.

A wrapper changes the law of the answer: probabilities of win, tie and loss. `prob` is always the expected label of the
actions in the order shown, a tie counting 1/2. `win_table` and `win_rates` are the game by which policies are judged,
always skew about 1/2; where a wrapper has the field `game` it says which: "answered", the game of the answers when the
order shown is a fair coin's, or "wrapped", that of the wrapped oracle: the annotator errs, the truth stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from simbandit.oracles.asking import (
    BoundPreference,
    Law,
    PreferenceOracle,
    Question,
    fitted,
    given,
    hashed,
    law_of,
    pairs_of,
    same,
    skewed,
)
from simbandit.types import Oracle
from simbandit.worlds import arrays

Game = Literal["answered", "wrapped"]
Ask = Callable[[Question], Law]  # the law of the wrapped oracle


@dataclass(frozen=True)
class SoftLabels(PreferenceOracle):
    """Answers with the expected label instead of drawing it. The outermost wrapper decides: keep it outside."""

    oracle: Oracle

    def __post_init__(self) -> None:
        _check_preference(self, self.oracle)

    def bind(self, instance: Any) -> BoundPreference:
        inner = self.oracle.bind(instance)
        return BoundPreference(self, law_of(inner), lambda question: pairs_of(inner, question), soft=True)


@dataclass(frozen=True)
class FlipNoise(PreferenceOracle):
    """A win is recorded as a loss, and a loss as a win, with probability `rate` in [0, 1]; ties stay ties."""

    oracle: Oracle
    rate: float
    game: Game = "answered"

    def __post_init__(self) -> None:
        _check_preference(self, self.oracle, self.game)
        arrays.number("rate", self.rate, 0.0, 1.0)

    def bind(self, instance: Any) -> BoundPreference:
        def flipped(law: Law) -> Law:
            loss = 1 - law.win if law.tie is None else 1 - law.win - law.tie
            return Law((1 - self.rate) * law.win + self.rate * loss, law.tie)

        return _wrapped(self, instance, lambda question, ask: flipped(ask(question)))


@dataclass(frozen=True)
class Ties(PreferenceOracle):
    """Davidson's ties (1970): P(tie) = nu s / (1 + nu s), s = sqrt(p (1 - p)); wins and losses share the rest as p and
    1 - p.

    A tie is answered with the label 1/2, or, answer="coin", by a fair coin: 0 or 1. Either way the expected label is
    (p + nu s / 2) / (1 + nu s), nearer to 1/2 than p. nu >= 0; at p = 1/2 ties have probability nu / (2 + nu).
    """

    oracle: Oracle
    nu: float = 1.0
    answer: Literal["half", "coin"] = "half"
    game: Game = "answered"

    def __post_init__(self) -> None:
        _check_preference(self, self.oracle, self.game)
        arrays.number("nu", self.nu, 0.0)
        if self.answer not in ("half", "coin"):
            raise ValueError(f"answer: must be 'half' or 'coin', got {self.answer!r}")

    def bind(self, instance: Any) -> BoundPreference:
        def tied(question: Question, ask: Ask) -> Law:
            p = ask(question).mean
            tie = self.nu * (p * (1 - p)).clamp_min(0.0).sqrt()
            law = Law(p / (1 + tie), tie / (1 + tie))
            return law if self.answer == "half" else Law(law.mean)

        return _wrapped(self, instance, tied)


@dataclass(frozen=True)
class PositionBias(PreferenceOracle):
    """The odds that the action shown first wins are multiplied by exp(log_odds); ties stay as likely.

    `prob(first, second)` depends on the order: P + P' != 1. `win_table` is the mean over both orders.
    """

    oracle: Oracle
    log_odds: float
    game: Game = "answered"

    def __post_init__(self) -> None:
        _check_preference(self, self.oracle, self.game)
        arrays.number("log_odds", self.log_odds)

    def bind(self, instance: Any) -> BoundPreference:
        shift = torch.tensor(self.log_odds, dtype=torch.float64)
        return _wrapped(self, instance, lambda question, ask: _tilted(ask(question), shift))


@dataclass(frozen=True, eq=False)
class LengthBias(PreferenceOracle):
    """The odds that a beats b are multiplied by exp(log_odds (length_a - length_b)): the annotator likes length.

    lengths: (A,) or (X, A), in any unit; log_odds is per that unit. game="wrapped" keeps the unbiased truth, against
    which a learner that hacks the annotator looks as bad as it is.
    """

    oracle: Oracle
    lengths: ArrayLike
    log_odds: float
    game: Game = "answered"

    def __post_init__(self) -> None:
        _check_preference(self, self.oracle, self.game)
        arrays.number("log_odds", self.log_odds)
        object.__setattr__(self, "lengths", given("lengths", self.lengths, "XA"))

    __eq__ = same
    __hash__ = hashed

    def bind(self, instance: Any) -> BoundPreference:
        lengths = self.log_odds * fitted("lengths", self.lengths, instance)

        def biased(question: Question, ask: Ask) -> Law:
            a, b = (x[..., 0] for x in question.vectors(lengths[..., None]))
            return _tilted(ask(question), question.differences(a, b))

        return _wrapped(self, instance, biased)


@dataclass(frozen=True)
class PsiTransformed(PreferenceOracle):
    """Psi(P(a > b | x)) with Psi(t) + Psi(1 - t) = 1, increasing, so the order of every pair stays.

    form "power": 1/2 + sign(t - 1/2) |2t - 1|^strength / 2; "logit": sigma(strength logit t); "majority": the vote of
    `strength` independent annotators, an odd number. strength = 1 changes nothing. Ties of the wrapped oracle count
    half before Psi. Smith-consistent, as every Psi of this kind is. Raises ValueError for strength <= 0, an even or
    fractional number of votes.
    """

    oracle: Oracle
    form: Literal["power", "logit", "majority"] = "logit"
    strength: float = 1.0

    def __post_init__(self) -> None:
        _check_preference(self, self.oracle)
        arrays.number("strength", self.strength, 0.0, above=True)
        if self.form not in ("power", "logit", "majority"):
            raise ValueError(f"form: must be 'power', 'logit' or 'majority', got {self.form!r}")
        if self.form == "majority" and self.strength % 2 != 1:
            raise ValueError(f"strength: a majority needs an odd number of votes, got {self.strength:g}")

    def bind(self, instance: Any) -> BoundPreference:
        return _wrapped(self, instance, lambda question, ask: Law(self._psi(ask(question).mean)))

    def _psi(self, p: Tensor) -> Tensor:
        if self.form == "power":
            return 0.5 + torch.sign(p - 0.5) * (2 * p - 1).abs() ** self.strength / 2
        if self.form == "logit":
            return torch.sigmoid(self.strength * torch.logit(p))
        votes = int(self.strength)
        counts = range(votes // 2 + 1, votes + 1)
        return sum((math.comb(votes, k) * p**k * (1 - p) ** (votes - k) for k in counts), torch.zeros_like(p))


@dataclass(frozen=True)
class Drift(PreferenceOracle):
    """An annotator who changes: `before` until round `start`, then, linearly within `length` rounds, `after`.

    In round t the mixture of both laws with weight clip((t - start) / length, 0, 1) on `after`; length 0 is a switch.
    Policies are judged by `after`, which holds in the end; so is `prob` without `now` (`prob(..., now=draws.at(t))`).
    Two random oracles of one class need another `variant` each, or nothing changes.
    """

    before: Oracle
    after: Oracle
    start: int
    length: int = 0

    def __post_init__(self) -> None:
        _check_preference(self, self.before)
        _check_preference(self, self.after)
        arrays.count("start", self.start, 0)
        arrays.count("length", self.length, 0)

    def weight(self, t: int) -> float:
        """Weight of `after` in round t."""
        return float(t >= self.start) if self.length == 0 else min(1.0, max(0.0, (t - self.start) / self.length))

    def bind(self, instance: Any) -> BoundPreference:
        before, after = self.before.bind(instance), self.after.bind(instance)
        laws = law_of(before), law_of(after)

        def law(question: Question) -> Law:
            weight = 1.0 if question.now is None else self.weight(question.now.t)
            if weight in (0.0, 1.0):
                return laws[int(weight)](question)
            return _mixed([ask(question) for ask in laws], [1 - weight, weight])

        return BoundPreference(self, law, lambda question: pairs_of(after, question))


@dataclass(frozen=True, eq=False)
class AnnotatorPool(PreferenceOracle):
    """Several annotators with shares `weights` (None: equal); one is drawn for every duel, or for every round.

    per="round": one annotator labels the whole batch of a replicate, so labels of a batch are dependent; their
    expectations stay. Policies are judged by the pool's mean. Random oracles of one class need another `variant` each.
    """

    oracles: Sequence[Oracle]
    weights: ArrayLike | None = None
    per: Literal["duel", "round"] = "duel"

    def __post_init__(self) -> None:
        if not len(self.oracles):
            raise ValueError("oracles: must hold at least one preference oracle")
        for oracle in self.oracles:
            _check_preference(self, oracle)
        if self.per not in ("duel", "round"):
            raise ValueError(f"per: must be 'duel' or 'round', got {self.per!r}")
        n = len(self.oracles)
        weights = np.full(n, 1 / n) if self.weights is None else arrays.probabilities("weights", self.weights, "K")
        if len(weights) != n:
            raise ValueError(f"weights: must hold one share for each of {n} oracles, got {len(weights)}")
        object.__setattr__(self, "oracles", tuple(self.oracles))
        object.__setattr__(self, "weights", arrays.frozen(weights))

    __eq__ = same
    __hash__ = hashed

    def bind(self, instance: Any) -> BoundPreference:
        members = [oracle.bind(instance) for oracle in self.oracles]
        laws, weights = [law_of(member) for member in members], np.asarray(self.weights).tolist()

        def law(question: Question) -> Law:
            answers = [ask(question) for ask in laws]
            if self.per == "duel" or question.now is None or question.first is None:
                return _mixed(answers, weights)
            uniform = question.now.uniform("annotator/who", 1)
            upper = torch.tensor(np.cumsum(weights)[:-1], dtype=uniform.dtype, device=uniform.device)
            who = torch.searchsorted(upper, uniform, right=True)
            return _mixed(answers, [(who == k).to(uniform.dtype) for k in range(len(laws))])

        def game(question: Question) -> Tensor:
            return skewed(_mixed([Law(pairs_of(member, question)) for member in members], weights).win)

        return BoundPreference(self, law, game)


@dataclass(frozen=True)
class Symmetrised(PreferenceOracle):
    """A judge that minds the order, asked twice, once in each order, independently: the mean of both labels.

    1 or 0 if the two answers agree, 1/2 if not. prob = (J(a, b) + 1 - J(b, a)) / 2 is skew whatever the judge. Ties of
    the wrapped oracle count as a fair coin. A round still counts one query per duel, though the judge is asked twice.
    """

    oracle: Oracle

    def __post_init__(self) -> None:
        _check_preference(self, self.oracle)

    def bind(self, instance: Any) -> BoundPreference:
        def both(question: Question, ask: Ask) -> Law:
            one, other = ask(question).mean, 1 - question.turned(ask).mean
            return Law(one * other, one * (1 - other) + (1 - one) * other)

        return _wrapped(self, instance, both)


def _wrapped(oracle: Any, instance: Any, change: Callable[[Question, Ask], Law]) -> BoundPreference:
    """The bound wrapper whose law is `change(question, law of the wrapped oracle)`."""
    inner = oracle.oracle.bind(instance)
    ask = law_of(inner)

    def law(question: Question) -> Law:
        return change(question, ask)

    def game(question: Question) -> Tensor:
        if getattr(oracle, "game", "answered") == "wrapped":
            return pairs_of(inner, question)
        shown = law(question).mean
        return skewed((shown + 1 - shown.mT) / 2)

    return BoundPreference(oracle, law, game)


def _tilted(law: Law, log_odds: Tensor) -> Law:
    """Odds of win against loss multiplied by exp(log_odds), ties as before."""
    decided = torch.ones_like(law.win) if law.tie is None else 1 - law.tie
    up, down = law.win * torch.exp(log_odds / 2), (decided - law.win) * torch.exp(-log_odds / 2)
    return Law(torch.where(decided > 0, decided * up / (up + down), 0.0), law.tie)


def _mixed(laws: Sequence[Law], weights: Sequence[float] | Sequence[Tensor]) -> Law:
    win = sum((w * law.win for law, w in zip(laws[1:], weights[1:], strict=True)), weights[0] * laws[0].win)
    tied = [w * law.tie for law, w in zip(laws, weights, strict=True) if law.tie is not None]
    return Law(win, sum(tied[1:], tied[0]) if tied else None)


def _check_preference(wrapper: Any, oracle: Any, game: str = "answered") -> None:
    feedback = getattr(oracle, "feedback", None)
    if feedback != "preference":
        name = type(oracle).__name__
        answers = f"answers with {feedback} feedback" if feedback else "is no oracle"
        raise ValueError(f"oracle: {type(wrapper).__name__} wraps preference oracles, and {name} {answers}")
    if game not in ("answered", "wrapped"):
        raise ValueError(f"game: must be 'answered' or 'wrapped', got {game!r}")
