"""Who draws a response: the players of a direct method, as data.

"current" is the policy pi_t, "previous" pi_{t-1}, "reference" the fixed reference, "uniform" every offered action
alike, "argmax" the likeliest action of pi_t (greedy decoding). The classes below are the others. Sampling is never
differentiated through, but where a loss says so (SAIL's). All but "current", "previous" and "reference" list a
context's actions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from simbandit.policies import Argmax, BestOf, Geometric, Mixture, Uniform
from simbandit.types import Policy


@dataclass(frozen=True)
class Tilt:
    """Proportional to pi_t^current pi_ref^reference.

    (1 / T, 0) is temperature T; (1 - b, b) the geometric mixture of IPO-MD and Nash-MD; (b, -b) and (-b, b) with b the
    kl_coef are the two posteriors of DPO-Mix-P (2409.19605), (pi / pi_ref)^b and its inverse; (1.5, -.5) and (.5, .5)
    the logits that its authors mix for language models.
    """

    current: float
    reference: float


@dataclass(frozen=True)
class Mixed:
    """pi_ref with probability `reference`, else pi_t: a mixture in probability, decided draw by draw."""

    reference: float

    def __post_init__(self) -> None:
        if not 0 <= self.reference <= 1:
            raise ValueError(f"reference: must lie in [0, 1], got {self.reference}")


@dataclass(frozen=True)
class Best:
    """The best of n draws of pi_t by its own implied reward log pi_t / pi_ref (exact law); `worst`: the worst."""

    n: int
    worst: bool = False

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n: must be at least 1, got {self.n}")


@dataclass(frozen=True)
class Held:
    """pi_t as it was at the last multiple of `every` rounds: a sampler that moves in stages."""

    every: int

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every: must be at least 1, got {self.every}")


class Cast(NamedTuple):
    """The policies from which players are made; held: by its `every`."""

    current: Policy
    previous: Policy
    reference: Policy
    held: dict[int, Policy]


@runtime_checkable
class Custom(Protocol):
    """A player from outside, which makes its policy from the cast; the row then only samples it."""

    def policy(self, cast: Cast) -> Policy: ...


Player = Literal["current", "previous", "reference", "uniform", "argmax"] | Tilt | Mixed | Best | Held | Custom


def policy_of(player: Player, cast: Cast) -> Policy:
    """The policy that draws."""
    match player:
        case "current" | "previous" | "reference":
            return getattr(cast, player)
        case "uniform":
            return Uniform()
        case "argmax":
            return Argmax(cast.current)
        case Tilt(current=a, reference=b):
            whole = {(1.0, 0.0): cast.current, (0.0, 1.0): cast.reference}.get((a, b))
            return Geometric((cast.current, cast.reference), (a, b)) if whole is None else whole
        case Mixed(reference=weight):
            return Mixture((cast.current, cast.reference), (1 - weight, weight))
        case Best(n=n, worst=worst):
            return BestOf(cast.current, cast.reference, n, worst)
        case Held(every=every):
            return cast.held[every]
    if isinstance(player, Custom):
        return player.policy(cast)
    raise ValueError(f"players: {player!r} is no player; see simbandit.algorithms.players")


def held_of(players: tuple[object, ...], start: Policy) -> dict[int, Policy]:
    """Those of `Held`, inside a player of several players too."""
    inner = [p for player in players for p in (player, *getattr(player, "players", ()))]
    return {p.every: start for p in inner if isinstance(p, Held)}
