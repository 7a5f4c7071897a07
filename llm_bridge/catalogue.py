"""Prompts and responses as integers, shared by policies and oracles; and the world whose contexts are prompts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simbandit.draws import Draws, Round
from simbandit.types import Contexts
from simbandit.worlds.instance import Realisation, replicates_of


class Catalogue:
    """Numbers for responses, per prompt, in the order in which they appear; the only part of an LM run that grows.

    prompts: token ids of each prompt. end: ids that end a response; response 0 of every prompt is the empty answer,
    which ends at once. capacity: most responses a prompt may get (the world's number of actions). tokenizer: turns ids
    into text for oracles that read.
    """

    def __init__(
        self, prompts: Sequence[Sequence[int]], end: Collection[int], *, capacity: int = 4096, tokenizer: Any = None
    ):
        if not prompts or not all(len(p) for p in prompts):
            raise ValueError("prompts: must be at least one, and none may be empty")
        if not end:
            raise ValueError(
                "end: the tokenizer and the model's generation config name no end-of-sequence id below the vocabulary"
            )
        self.prompts = [tuple(int(t) for t in p) for p in prompts]
        self.end, self.capacity, self.tokenizer = frozenset(end), capacity, tokenizer
        self._responses: list[list[tuple[int, ...]]] = [[] for _ in self.prompts]
        self._numbers: list[dict[tuple[int, ...], int]] = [{} for _ in self.prompts]
        for x in range(len(self.prompts)):
            self.intern(x, (min(self.end),))

    def intern(self, prompt: int, tokens: Sequence[int]) -> int:
        """The number of a response; a new one is kept. Raises ValueError for an empty one or beyond the capacity."""
        key = tuple(int(t) for t in tokens)
        if not key:
            raise ValueError(f"tokens: the response to prompt {prompt} is empty; the end token is the empty answer")
        numbers = self._numbers[prompt]
        if key not in numbers:
            if len(numbers) >= self.capacity:
                raise ValueError(f"capacity: prompt {prompt} already has {self.capacity} responses; allow more")
            numbers[key] = len(numbers)
            self._responses[prompt].append(key)
        return numbers[key]

    def tokens(self, prompt: int, response: int) -> tuple[int, ...]:
        """Raises LookupError for a number that no response has."""
        held = self._responses[prompt]
        if not 0 <= response < len(held):
            raise LookupError(f"response: prompt {prompt} has responses 0 to {len(held) - 1}, asked for {response}")
        return held[response]

    def truncated(self, prompt: int, response: int) -> bool:
        """Whether it was cut before its end token."""
        return self.tokens(prompt, response)[-1] not in self.end

    def prompt_text(self, prompt: int) -> str:
        return self._text(self.prompts[prompt])

    def text(self, prompt: int, response: int) -> str:
        """Without special tokens."""
        return self._text(self.tokens(prompt, response))

    def size(self, prompt: int) -> int:
        return len(self._responses[prompt])

    def state(self) -> list[list[list[int]]]:
        """All responses, for a checkpoint."""
        return [[list(r) for r in responses] for responses in self._responses]

    def restore(self, state: list[list[list[int]]]) -> None:
        """Takes over the responses of a checkpoint, numbers included."""
        if len(state) != len(self.prompts):
            raise ValueError(f"state: is of {len(state)} prompts, this catalogue has {len(self.prompts)}")
        self._responses = [[tuple(r) for r in responses] for responses in state]
        self._numbers = [{r: i for i, r in enumerate(responses)} for responses in self._responses]

    def _text(self, ids: Sequence[int]) -> str:
        if self.tokenizer is None:
            raise ValueError("tokenizer: this catalogue has none, so its responses have no text")
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)


@dataclass(frozen=True, eq=False)
class TextWorld:
    """The world of an LM: contexts are the catalogue's prompts, actions the numbers of responses in it.

    Responses cannot be listed: contexts carry their prompt's number and no table of the reference (it reads NaN), and
    there is no exact metric, so pass `metrics` to `simulate`, and direct rows with proximal=0. One replicate at a time.
    weights: the law of prompts, uniform by default. reward_range: what learners are told.
    """

    catalogue: Catalogue
    weights: Sequence[float] | None = None
    reward_range: tuple[float, float] = (0.0, 1.0)

    def instance(self, replicates: int, draws: Draws) -> Realisation:
        if replicates_of(replicates, draws) > 1:
            raise ValueError(f"replicates: a language model runs one at a time, got {replicates}")
        n = len(self.catalogue.prompts)
        law = torch.full((n,), 1 / n) if self.weights is None else torch.tensor(self.weights)
        law = law.double().to(draws.device)
        if law.shape != (n,) or bool((law < 0).any()) or abs(float(law.sum()) - 1) > 1e-6:
            raise ValueError(f"weights: must be {n} probabilities that sum to 1")

        def contexts(index: Tensor) -> Contexts:
            unknown = torch.full((1, 1, 1), torch.nan, dtype=torch.float64, device=draws.device)
            table = unknown.expand(*index.shape, self.catalogue.capacity)
            return Contexts(index=index, ref_log_probs=table, weights=law[index])

        def fresh(now: Round, batch_size: int) -> Contexts:
            edges = law.cumsum(0)
            at = torch.searchsorted(edges, now.uniform("contexts", batch_size) * edges[-1], right=True)
            return contexts(at.clamp_max(n - 1))

        return Realisation(
            replicates=1,
            n_actions=self.catalogue.capacity,
            dim=None,
            reward_range=self.reward_range,
            evaluation=contexts(torch.arange(n, device=draws.device)[None]),
            fresh=fresh,
            draws=draws,
        )


def prompt_numbers(contexts: Contexts) -> Tensor:
    """(R, B): which prompts these contexts are."""
    if contexts.index is None:
        raise ValueError("contexts: a language model needs contexts with prompt numbers (a world of prompts)")
    pool = contexts.pool
    if pool is None or pool.index is None:
        return contexts.index
    return pool.index.expand(len(contexts.index), -1).gather(1, contexts.index)
