"""Players that draw where responses cannot be listed: GSHF's enhancers as they are run on language models, and those of
`simbandit.algorithms.players` whose exact laws need a list of all responses (`sampled` says which stands for which).

Each is a player of a `Direct` row. A response is a function of one uniform here too: what else it takes comes from a
stream keyed by it. GSHF (2312.11456) has the enhancer maximise uncertainty; its authors' practice on language models
(there and in 2405.07863) replaces that by the laws below, for which the theorem is not proved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from llm_bridge.catalogue import prompt_numbers
from llm_bridge.decoding import stream
from llm_bridge.policy import LMPolicy
from llm_bridge.scoring import sequence_log_probs
from simbandit.algorithms.players import Best, Cast, Mixed, Player, Tilt, policy_of

GREEDY = 1e-9
"""A nucleus of this mass holds the likeliest token alone."""


class Scoring(Protocol):
    """A reward for every (prompt, response): see `llm_bridge.oracles.Scorer`."""

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[float]: ...


@dataclass(frozen=True)
class Heated:
    """pi_t with its next-token logits divided by `temperature`, from the nucleus of mass `top_p`.

    Token by token, as decoders do it: not the law of whole responses to the power 1 / temperature (`Tilt`).
    """

    temperature: float = 1.0
    top_p: float = 1.0

    def policy(self, cast: Cast) -> Any:
        lm = _lm(cast.current, self)
        return _Drawn(lm, lambda x, u: lm.generate(x, u, temperature=self.temperature, top_p=self.top_p))


@dataclass(frozen=True)
class BestOfDraws:
    """The best of n draws of pi_t (`worst`: the worst) by its own implied reward log pi_t / pi_ref, or by a scorer.

    KL to pi_t at most log n - (n - 1) / n. By the implied reward it is `players.Best`, drawn instead of computed.
    """

    n: int = 8
    worst: bool = False
    temperature: float = 1.0
    scorer: Scoring | None = None

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n: must be at least 1, got {self.n}")

    def policy(self, cast: Cast) -> Any:
        current, reference = _lm(cast.current, self), _lm(cast.reference, self)

        def chosen(x: list[int], uniforms: list[float]) -> list[tuple[int, ...]]:
            drawn = _groups(current, x, uniforms, self.n, self.temperature)
            scores = _scores(current, reference, x, drawn, self.scorer)
            best = (-scores if self.worst else scores).argmax(-1)
            return [group[i] for group, i in zip(drawn, best.tolist(), strict=True)]

        return _Drawn(current, chosen)


@dataclass(frozen=True)
class Rejection:
    """Rejection sampling of pi_t exp(score / coef) / Z: the first of at most n draws of pi_t that is accepted, each
    with probability exp((score - highest) / coef); if none is, one more draw (the law of `rejection_sampling`).

    scorer: the scores; None takes the implied reward coef log pi_t / pi_ref, so the target is pi_t^2 / pi_ref.
    highest: a bound on the scores, with which the law is exact in the limit of n; None takes the largest of a prompt's
        own n draws, as RSO's code does (2309.06657), which accepts more and is biased towards pi_t.
    """

    coef: float
    n: int = 16
    scorer: Scoring | None = None
    highest: float | None = None

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n: must be at least 1, got {self.n}")
        if not self.coef > 0:
            raise ValueError(f"coef: must be > 0, got {self.coef}")

    def policy(self, cast: Cast) -> Any:
        current, reference = _lm(cast.current, self), _lm(cast.reference, self)

        def chosen(x: list[int], uniforms: list[float]) -> list[tuple[int, ...]]:
            drawn = _groups(current, x, uniforms, self.n + 1)
            scores = _scores(current, reference, x, drawn, self.scorer)
            scores = scores if self.scorer is not None else self.coef * scores
            most = scores[:, : self.n].amax(-1, keepdim=True) if self.highest is None else self.highest
            if self.highest is not None and bool((scores > self.highest).any()):
                raise ValueError(f"highest: {self.highest} is below a score of {float(scores.max()):.6g}")
            coins = torch.from_numpy(np.stack([stream(u, self.n, "accepted") for u in uniforms]))
            accepted = coins.log() < (scores[:, : self.n] - most) / self.coef
            # the first True; the one draw beyond the budget where there is none
            first = torch.cat([accepted, torch.ones(len(x), 1, dtype=torch.bool)], dim=-1).to(torch.int8).argmax(-1)
            return [group[i] for group, i in zip(drawn, first.tolist(), strict=True)]

        return _Drawn(current, chosen)


@dataclass(frozen=True)
class Resampled:
    """Sampling importance resampling of pi_t^current pi_ref^reference / Z, the law of `players.Tilt` over whole
    responses: one of n draws of pi_t, with probability proportional to pi_t^(current - 1) pi_ref^reference.

    Deviation: exact as n grows, with an error in total variation of order Var(w) / n, w the weights over their mean;
    with few draws it lies nearer to pi_t. IPO-MD (2403.08635) and Nash-MD (2312.00886) mix logits token by token
    instead, which is another law than the mixture of responses that their analysis is of.
    """

    current: float
    reference: float
    n: int = 16

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n: must be at least 1, got {self.n}")

    def policy(self, cast: Cast) -> Any:
        current, reference = _lm(cast.current, self), _lm(cast.reference, self)

        def chosen(x: list[int], uniforms: list[float]) -> list[tuple[int, ...]]:
            drawn = _groups(current, x, uniforms, self.n)
            mine, other = (_log_probs(lm, x, drawn) for lm in (current, reference))
            edges = torch.softmax((self.current - 1) * mine + self.reference * other, dim=-1).cumsum(-1)
            coins = torch.tensor([[float(stream(u, 1, "resampled")[0])] for u in uniforms], dtype=torch.float64)
            at = torch.searchsorted(edges, coins * edges[:, -1:], right=True).clamp_max(self.n - 1)
            return [group[i] for group, i in zip(drawn, at[:, 0].tolist(), strict=True)]

        return _Drawn(current, chosen)


@dataclass(frozen=True)
class Likeliest:
    """The likeliest under pi_t of its greedy response (token by token) and n draws, instead of that of all responses
    (the player "argmax").

    Deviation: the likeliest response of all may be missed; what is found is at least as likely as greedy decoding's,
    which alone it is with n = 0.
    """

    n: int = 8

    def __post_init__(self) -> None:
        if self.n < 0:
            raise ValueError(f"n: must be at least 0, got {self.n}")

    def policy(self, cast: Cast) -> Any:
        lm = _lm(cast.current, self)

        def chosen(x: list[int], uniforms: list[float]) -> list[tuple[int, ...]]:
            distinct = list(dict.fromkeys(x))
            greedy = dict(zip(distinct, lm.generate(distinct, [0.0] * len(distinct), top_p=GREEDY), strict=True))
            if self.n == 0:
                return [greedy[i] for i in x]
            drawn = [[greedy[i], *group] for i, group in zip(x, _groups(lm, x, uniforms, self.n), strict=True)]
            best = _log_probs(lm, x, drawn).argmax(-1)
            return [group[i] for group, i in zip(drawn, best.tolist(), strict=True)]

        return _Drawn(lm, chosen)


@dataclass(frozen=True)
class Among:
    """A mixture in probability of players, decided draw by draw: of checkpoints, with "current", "previous",
    `Held(every)` and "reference". weights: None for equal ones."""

    players: tuple[Player, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        given = self._weights
        if not self.players or len(given) != len(self.players) or min(given) < 0 or abs(sum(given) - 1) > 1e-9:
            raise ValueError(f"weights: one per player, non-negative, summing to 1; got {self.weights}")

    @property
    def _weights(self) -> tuple[float, ...]:
        return self.weights if self.weights is not None else (1 / max(1, len(self.players)),) * len(self.players)

    def policy(self, cast: Cast) -> Any:
        members: list[Any] = [policy_of(sampled(player), cast) for player in self.players]
        edges = np.cumsum(self._weights)

        def chosen(x: list[int], uniforms: list[float]) -> list[tuple[int, ...]]:
            coins = [float(stream(u, 1, "member")[0]) for u in uniforms]
            member = np.minimum(np.searchsorted(edges, coins, side="right"), len(members) - 1)
            result: list[tuple[int, ...]] = [()] * len(x)
            for m, policy in enumerate(members):
                at = np.flatnonzero(member == m).tolist()
                drawn = policy.generate([x[i] for i in at], [uniforms[i] for i in at]) if at else []
                for i, response in zip(at, drawn, strict=True):
                    result[i] = response
            return result

        return _Drawn(_lm(cast.current, self), chosen)


def sampled(player: Player) -> Player:
    """The same player for a policy that cannot list its responses."""
    match player:
        case Best(n=n, worst=worst):
            return BestOfDraws(n, worst)
        case Mixed(reference=weight):
            return Among(("current", "reference"), (1 - weight, weight))
        case Tilt(current=a, reference=b) if (a, b) not in ((1, 0), (0, 1)):
            return Resampled(a, b)
        case "argmax":
            return Likeliest()
        case "uniform":
            raise ValueError("players: 'uniform' draws from the list of all responses, which a language model has not")
    return player


def effort(player: object) -> tuple[int, int]:
    """How many responses a player draws, and of how many log-probabilities it asks, to give one (at most)."""
    match player:
        case BestOfDraws(n=n, scorer=scorer):
            return n, 2 * n if scorer is None else 0
        case Rejection(n=n, scorer=scorer):
            return n + 1, 2 * (n + 1) if scorer is None else 0
        case Resampled(n=n):
            return n, 2 * n
        case Likeliest(n=n):
            return n + 1, n + 1 if n else 0
        case Among(players=players):
            draws, asked = zip(*(effort(sampled(member)) for member in players), strict=True)
            return max(draws), max(asked)
    return 1, 0


# ------------------------------------------------------------------------------------------------------------ inside


@dataclass(frozen=True, eq=False)
class _Drawn:
    """A law that can only be drawn from. generate(prompts, uniforms) gives responses as tokens."""

    lm: LMPolicy
    generate: Callable[[list[int], list[float]], list[tuple[int, ...]]]

    def sample(self, contexts: Any, uniforms: Tensor) -> Tensor:
        numbers = prompt_numbers(contexts)[0].tolist()
        drawn = self.generate(numbers, uniforms[0].tolist())
        ids = [self.lm.catalogue.intern(x, response) for x, response in zip(numbers, drawn, strict=True)]
        return torch.tensor([ids], device=uniforms.device)

    def log_probs(self, contexts: Any, actions: Tensor | None = None) -> Tensor:
        raise TypeError("log_probs: this player of a language model only draws; give the row another bonus or loss")

    def fit(self, objective: Any) -> Any:
        raise TypeError("fit: this player only draws")


def _lm(policy: Any, player: object) -> LMPolicy:
    if not isinstance(policy, LMPolicy):
        raise TypeError(
            f"players: {player} draws responses of a language model, and this is a {type(policy).__name__}; on "
            "policies that list theirs use simbandit.algorithms.players (Best, Mixed, Tilt)"
        )
    return policy


def _groups(
    lm: LMPolicy, x: list[int], uniforms: list[float], n: int, temperature: float = 1.0
) -> list[list[tuple[int, ...]]]:
    """n draws for every uniform."""
    each = [float(v) for u in uniforms for v in stream(u, n, "draws")]
    drawn = lm.generate([i for i in x for _ in range(n)], each, temperature=temperature)
    return [drawn[i : i + n] for i in range(0, len(drawn), n)]


def _scores(
    current: LMPolicy, reference: LMPolicy, x: list[int], drawn: list[list[tuple[int, ...]]], scorer: Scoring | None
) -> Tensor:
    """(B, n): of the scorer, or log pi_t / pi_ref."""
    n = len(drawn[0])
    owners, responses = [i for i in x for _ in range(n)], [r for group in drawn for r in group]
    if scorer is not None:
        read, decode = current.catalogue, current.tokenizer.decode
        texts = [decode(list(r), skip_special_tokens=True) for r in responses]
        scores = scorer([(read.prompt_text(i), text) for i, text in zip(owners, texts, strict=True)])
        return torch.tensor(scores, dtype=torch.float64).view(-1, n)
    return _log_probs(current, x, drawn) - _log_probs(reference, x, drawn)


def _log_probs(lm: LMPolicy, x: list[int], drawn: list[list[tuple[int, ...]]]) -> Tensor:
    """(B, n)."""
    n = len(drawn[0])
    prompts = [lm.catalogue.prompts[i] for i in x for _ in range(n)]
    responses = [r for group in drawn for r in group]
    scores = sequence_log_probs(lm.model, prompts, responses, token_budget=lm.token_budget)
    return scores.double().cpu().view(-1, n)


GSHF_DPO: dict[str, tuple[Player, Player]] = {
    "gshf_dpo": ("current", Heated(1.3)),
    "gshf_dpo_best_of_n": ("current", BestOfDraws(8)),
    "gshf_dpo_best_worst": (BestOfDraws(8), BestOfDraws(8, worst=True)),
    "gshf_dpo_checkpoints": ("current", Among(("previous", "reference"))),
    "gshf_dpo_rejection": ("current", Rejection(coef=1.0)),
}
"""GSHF by DPO (iterative DPO with exploration): the main agent is online DPO's policy, the enhancer the other player.
best_worst: both from draws of their own, where released code takes the two ends of one set of draws."""
