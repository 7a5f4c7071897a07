"""Running a language model over many (prompt, response) pairs: what is computed once, in which batches, and how far.

Right padding only: a causal model then needs no mask and no position ids, so a batch cannot change a row. (Left padding
without position ids is wrong by nats on GPT-2, and rows that are packed with a cache attend to their neighbours.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import DynamicCache

from llm_bridge.models import (
    Run,
    budget_of,
    compiled,
    device_of,
    evaluating,
    recomputes,
    slides,
    unwrapped,
    vocabulary_of,
)

SHARING = 1.5  # responses per prompt from which encoding each prompt by itself pays
SLACK = 1.25  # padded length over true length within a bucket


class Pairs(NamedTuple):
    """Distinct prompts; distinct (prompt, response) pairs, each with its prompt's number; where each input stands."""

    prompts: list[tuple[int, ...]]
    responses: list[tuple[int, ...]]
    prompt_of: list[int]
    inverse: list[int]


def distinct(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], model: Any) -> Pairs:
    """Checks the input and keeps each prompt and each pair once.

    Raises ValueError, naming the row, for an empty prompt or response, ids outside the vocabulary, and a pair longer
    than the context window: nothing is ever truncated.
    """
    if len(prompts) != len(responses):
        raise ValueError(f"responses: must be one per prompt, got {len(responses)} for {len(prompts)} prompts")
    inner = unwrapped(model)
    config, size = inner.config, vocabulary_of(model)
    window = None if config.is_encoder_decoder else getattr(config, "max_position_embeddings", None)
    prompt_ids: dict[tuple[int, ...], int] = {}
    pair_ids: dict[tuple[int, tuple[int, ...]], int] = {}
    inverse = []
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        p, r = _tokens("prompts", i, prompt), _tokens("responses", i, response)
        for name, ids in (("prompts", p), ("responses", r)):
            if not ids:
                hint = "" if name == "responses" else " (give it at least the begin-of-sequence token)"
                raise ValueError(f"{name}: row {i} is empty; nothing can be scored{hint}")
            if min(ids) < 0 or max(ids) >= size:
                bad = next(t for t in ids if not 0 <= t < size)
                raise ValueError(f"{name}: row {i} holds id {bad}; the model reads ids 0 to {size - 1}")
        if window is not None and len(p) + len(r) - 1 > window:
            raise ValueError(
                f"prompts: row {i} has {len(p)} tokens and its response {len(r)}, beyond the context window of "
                f"{window}; shorten them (nothing is truncated here)"
            )
        key = (prompt_ids.setdefault(p, len(prompt_ids)), r)
        inverse.append(pair_ids.setdefault(key, len(pair_ids)))
    return Pairs(list(prompt_ids), [r for _, r in pair_ids], [p for p, _ in pair_ids], inverse)


def response_states(
    model: Any,
    pairs: Pairs,
    reduce: Callable[[Tensor, list[int]], Any],
    run: Run,
    *,
    reading: bool = False,
) -> list[tuple[list[int], Any]]:
    """Runs the model's body over all pairs and reduces the hidden states of response positions, batch by batch.

    reduce(states (N, d), batch) receives the states that predict each response token (`reading`: the states at each
    response token), one pair after the other. Returns [(batch, what reduce gave)], batches being numbers of pairs.
    Out of memory: see `halving`.
    """
    inner, results = unwrapped(model), []
    budget = budget_of(model, run.gradients) if run.token_budget is None else run.token_budget
    largest = [float("inf")]  # tokens of a batch
    if run.compiled:
        compiled(inner)
    length = [len(r) + reading for r in pairs.responses]
    bar = tqdm(total=len(length), unit="response", disable=None if run.progress else True, leave=False)

    def attempt(batch: list[int], forward: Callable[[list[int]], Any], size: Callable[[int], int]) -> None:
        for done, result in halving(batch, forward, size, largest):
            results.append((done, result))
            bar.update(len(done))

    with bar, evaluating(inner, run):
        if inner.config.is_encoder_decoder or _sharing(inner, pairs, run):
            for group in buckets([len(p) for p in pairs.prompts], budget):
                _grouped(inner, pairs, group, length, reduce, budget, reading, attempt)
        else:
            total = [len(pairs.prompts[p]) - 1 + n for p, n in zip(pairs.prompt_of, length, strict=True)]
            for batch in buckets(total, budget):
                forward = _joint(inner, pairs, length, reduce, reading)
                attempt(batch, forward, total.__getitem__)
    return results


def halving(
    batch: list[int], forward: Callable[[list[int]], Any], size: Callable[[int], int], largest: list[float]
) -> Iterator[tuple[list[int], Any]]:
    """(part, forward(part)) for a batch, in parts where memory runs out: halved and tried again. size: tokens of a
    member. largest: [tokens that a part may have], lowered where one failed, so that later batches start smaller.
    Raises MemoryError where a single member is too large."""
    todo = [batch]
    while todo:
        now, failed, result = todo.pop(), "", None
        tokens = len(now) * max(map(size, now))
        if tokens > largest[0] and len(now) > 1:
            todo += [now[len(now) // 2 :], now[: len(now) // 2]]
            continue
        try:
            result = forward(now)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            failed = str(error)
            if not (isinstance(error, torch.OutOfMemoryError) or "allocate memory" in failed):
                raise
        if not failed:
            yield now, result
        elif len(now) == 1:
            raise MemoryError(f"out of memory on a single sequence of {size(now[0])} tokens: {failed}")
        else:  # outside the handler, so that its frames, and what they hold, are gone
            largest[0] = min(largest[0], tokens / 2)
            todo.append(now)


def buckets(lengths: Sequence[int], budget: int, among: Iterable[int] | None = None) -> list[list[int]]:
    """Numbers sorted by length and cut so that count x longest <= budget and little is padding; longest first, so that
    memory runs out early or never."""
    order = sorted(range(len(lengths)) if among is None else among, key=lengths.__getitem__, reverse=True)
    result: list[list[int]] = []
    for i in order:
        longest = lengths[result[-1][0]] if result else 0
        if result and (len(result[-1]) + 1) * longest <= budget and longest <= SLACK * lengths[i] + 4:
            result[-1].append(i)
        else:
            result.append([i])
    return result


# ------------------------------------------------------------------------------------------------- the two layouts


def _joint(inner: Any, pairs: Pairs, length: list[int], reduce: Any, reading: bool) -> Callable[[list[int]], Any]:
    """Every row is prompt and response, right-padded; the body runs once over it."""

    def forward(batch: list[int]) -> Any:
        prompts = [pairs.prompts[pairs.prompt_of[i]] for i in batch]
        rows = [p + _fed(pairs.responses[i], reading) for p, i in zip(prompts, batch, strict=True)]
        states = inner.base_model(input_ids=padded(rows, inner), use_cache=False).last_hidden_state
        start = torch.tensor([len(p) - 1 for p in prompts], device=states.device)
        return reduce(_flat(states, start, [length[i] for i in batch], reading), batch)

    return forward


def _grouped(
    inner: Any,
    pairs: Pairs,
    group: list[int],
    length: list[int],
    reduce: Any,
    budget: int,
    reading: bool,
    attempt: Any,
) -> None:
    """Prompts of one group encoded once; their responses in batches across prompts, on gathered keys and values (or
    encoder states). A prompt's last token belongs to the responses: its state predicts their first tokens."""
    encode = _encoded if inner.config.is_encoder_decoder else _prefixed
    place = {p: i for i, p in enumerate(group)}
    members = [i for i, p in enumerate(pairs.prompt_of) if p in place]
    longest, failed = len(pairs.prompts[group[0]]), ""
    decode: Any = None
    try:
        decode = encode(inner, [pairs.prompts[p] for p in group])
    except (torch.OutOfMemoryError, RuntimeError) as error:
        failed = str(error)
        if not (isinstance(error, torch.OutOfMemoryError) or "allocate memory" in failed):
            raise
    if failed:
        if len(group) == 1:
            raise MemoryError(f"out of memory on a single prompt of {longest} tokens: {failed}")
        half = len(group) // 2
        for part in (group[:half], group[half:]):
            _grouped(inner, pairs, part, length, reduce, budget, reading, attempt)
        return

    def forward(batch: list[int]) -> Any:
        of = torch.tensor([place[pairs.prompt_of[i]] for i in batch], device=device_of(inner))
        states = decode(of, [(pairs.prompts[pairs.prompt_of[i]], _fed(pairs.responses[i], reading)) for i in batch])
        start = torch.zeros(len(batch), dtype=torch.int64, device=states.device)
        return reduce(_flat(states, start, [length[i] for i in batch], reading), batch)

    # a response also carries its prompt's keys: a quarter of a token each, so that the budget bounds memory
    weight = [n + longest // 4 for n in length]
    for batch in buckets(weight, budget, members):
        attempt(batch, forward, weight.__getitem__)


class Prefix(NamedTuple):
    """Keys and values (P, heads, longest, size) of every layer over P prompts without their last tokens; lengths
    (P,)."""

    layers: list[tuple[Tensor, Tensor]]
    lengths: Tensor
    longest: int

    def cache(self, rows: Tensor) -> DynamicCache:
        """For a batch in which each row continues one of the prompts."""
        cache = DynamicCache()
        for i, (keys, values) in enumerate(self.layers):
            cache.update(keys[rows], values[rows], i)
        return cache

    def mask(self, rows: Tensor, further: int) -> Tensor:
        """Which slots hold a token, (B, longest + further)."""
        seen = torch.arange(self.longest, device=rows.device) < self.lengths[rows, None]
        return torch.cat([seen, seen.new_ones(len(rows), further)], dim=1).long()


def prefix_of(inner: Any, prompts: Sequence[Sequence[int]]) -> Prefix:
    """Runs the body over all prompt tokens but the last."""
    prefixes = [p[:-1] for p in prompts]
    longest, cache = max(map(len, prefixes)), DynamicCache()
    if longest:
        inner.base_model(input_ids=padded(prefixes, inner), past_key_values=cache, use_cache=True)
    layers: list[Any] = cache.layers
    lengths = torch.tensor([len(p) for p in prefixes], device=device_of(inner))
    return Prefix([(layer.keys, layer.values) for layer in layers], lengths, longest)


def _prefixed(inner: Any, prompts: list[tuple[int, ...]]) -> Callable[[Tensor, list[Any]], Tensor]:
    prefix = prefix_of(inner, prompts)

    def decode(of: Tensor, rows: list[Any]) -> Tensor:
        ids = padded([p[-1:] + r for p, r in rows], inner)
        if not prefix.longest:
            return inner.base_model(input_ids=ids, use_cache=False).last_hidden_state
        return inner.base_model(
            input_ids=ids,
            attention_mask=prefix.mask(of, ids.shape[1]),
            position_ids=prefix.lengths[of, None] + torch.arange(ids.shape[1], device=ids.device),
            past_key_values=prefix.cache(of),
            use_cache=True,
        ).last_hidden_state

    return decode


def _encoded(inner: Any, prompts: list[tuple[int, ...]]) -> Callable[[Tensor, list[Any]], Tensor]:
    """Encoder states of whole prompts; responses start from the decoder's start token."""
    ids = padded(prompts, inner)
    lengths = torch.tensor([len(p) for p in prompts], device=ids.device)
    mask = (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long()
    states = inner.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
    start = inner.config.decoder_start_token_id
    if start is None:
        raise ValueError("model: its config has no decoder_start_token_id, from which every response starts; set it")

    def decode(of: Tensor, rows: list[Any]) -> Tensor:
        return inner.get_decoder()(
            input_ids=padded([(start, *r) for _, r in rows], inner),
            encoder_hidden_states=states[of],
            encoder_attention_mask=mask[of],
            use_cache=False,
        ).last_hidden_state

    return decode


def _sharing(inner: Any, pairs: Pairs, run: Run) -> bool:
    """Whether prompts are encoded by themselves; recomputed activations and caches exclude each other."""
    possible = not slides(inner) and not (run.gradients and recomputes(inner))
    if run.layout == "shared" and not possible:
        raise ValueError("layout: 'shared' needs full attention and no gradient checkpointing; use 'joint' or 'auto'")
    return run.layout == "shared" or (
        run.layout == "auto" and possible and len(pairs.responses) >= SHARING * len(pairs.prompts)
    )


# ---------------------------------------------------------------------------------------------------------- pieces


def _tokens(name: str, row: int, ids: Sequence[int]) -> tuple[int, ...]:
    listed = ids.tolist() if isinstance(ids, Tensor | np.ndarray) else ids
    if isinstance(listed, str) or not all(isinstance(t, int | np.integer) for t in listed):
        raise TypeError(f"{name}: row {row} must be a sequence of token ids (integers), got {str(listed)[:40]!r}")
    return tuple(int(t) for t in listed)


def _fed(response: tuple[int, ...], reading: bool) -> tuple[int, ...]:
    """The last token is read only where its own state is wanted."""
    return response if reading else response[:-1]


def padded(rows: Sequence[Sequence[int]], inner: Any) -> Tensor:
    """(B, longest), padded on the right with an id that no causal or masked position looks at. The config's pad id may
    lie beyond the vocabulary, and its presence makes transformers warn: any other id serves."""
    filler = 1 if inner.config.get_text_config().pad_token_id == 0 and vocabulary_of(inner) > 1 else 0
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[filler] * (longest - len(row))] for row in rows], device=device_of(inner))


def _flat(states: Tensor, start: Tensor, lengths: list[int], reading: bool) -> Tensor:
    """The states of `lengths` positions from `start` on in each row (`reading`: without the first), one row after the
    other: (N, d)."""
    steps, end = torch.arange(states.shape[1], device=states.device), torch.tensor(lengths, device=states.device)
    first = start[:, None] + int(reading)
    return states[(steps >= first) & (steps < (start + end)[:, None])]
