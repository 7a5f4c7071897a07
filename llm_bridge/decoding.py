"""Drawing responses: one uniform per response in, tokens out; who else is in the batch cannot change a draw."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm_bridge.batches import buckets, halving, prefix_of
from llm_bridge.models import Run, broken_weights, device_of, evaluating, head_of, slides, unwrapped

RESOLUTION = 2.0**-26
"""In float64, where the tokens so far are less likely than this, fresh bits replace what remains of the uniform. In
float32 every token takes fresh ones: what remains carries the batch's rounding (1e-7), divided by that probability."""


def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    uniforms: Sequence[float],
    *,
    max_new_tokens: int,
    end: Collection[int],
    temperature: float = 1.0,
    top_p: float = 1.0,
    token_budget: int = 8192,
    autocast: torch.dtype | None = None,
) -> list[tuple[int, ...]]:
    """One response for every prompt, ending with a token of `end` or after `max_new_tokens` (truncated).

    uniforms: one number on [0, 1) a response. It draws the first token; the later ones are drawn by a stream keyed by
        it, so that the draw is a function of model, prompt and uniform, and batches enter by rounding alone. In float64
        weights the number is decoded arithmetically instead (a token takes the part of [0, 1) in which it lies, and
        what remains decides the next), as in an enumerable LM, and the stream goes on below a probability of 2^-26.
    temperature: logits are divided by it; top_p: only the smallest set of likeliest tokens of at least this mass.

    Complexity: each distinct prompt is encoded once, then one pass a token with kept keys and values. A batch for which
    memory runs out is halved.
    Raises ValueError for encoder-decoder models, arguments out of range, and NaN logits, naming the row.
    """
    if len(prompts) != len(uniforms):
        raise ValueError(f"uniforms: must be one per prompt, got {len(uniforms)} for {len(prompts)}")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: must be at least 1, got {max_new_tokens}")
    if not temperature > 0:
        raise ValueError(f"temperature: must be > 0, got {temperature}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p: must lie in (0, 1], got {top_p}")
    inner = unwrapped(model)
    if inner.config.is_encoder_decoder:
        raise ValueError("model: drawing responses needs a causal model; encoder-decoder ones can be scored only")
    window = getattr(inner.config, "max_position_embeddings", None)
    longest = max((len(p) for p in prompts), default=0)
    if window is not None and longest + max_new_tokens - 1 > window:
        raise ValueError(
            f"max_new_tokens: a prompt of {longest} tokens and {max_new_tokens} new ones exceed the context window of "
            f"{window}"
        )
    head = head_of(model)
    drawn: list[tuple[int, ...]] = [()] * len(prompts)
    lengths = [len(p) + max_new_tokens for p in prompts]
    batches = buckets(lengths, token_budget)
    if slides(inner):  # no padding between prompt and response
        batches = [[i for i in b if lengths[i] == n] for b in batches for n in {lengths[i] for i in b}]
    largest = [float("inf")]

    def rows(batch: list[int]) -> list[tuple[int, ...]]:
        return _decoded(
            inner,
            head,
            batch,
            [tuple(prompts[i]) for i in batch],
            np.array([float(uniforms[i]) for i in batch]),
            max_new_tokens,
            torch.tensor(sorted(end), device=device_of(inner)),
            (temperature, top_p),
        )

    with evaluating(inner, Run(autocast=autocast)):
        for batch in batches:
            for part, found in halving(batch, rows, lengths.__getitem__, largest):
                for i, row in zip(part, found, strict=True):
                    drawn[i] = row
    return drawn


def _decoded(
    inner: Any,
    head: Any,
    numbers: list[int],
    prompts: list[tuple[int, ...]],
    uniforms: np.ndarray,
    max_new_tokens: int,
    end: Tensor,
    law: tuple[float, float],
) -> list[tuple[int, ...]]:
    device, distinct = device_of(inner), list(dict.fromkeys(prompts))
    prefix = prefix_of(inner, distinct)
    of = torch.tensor([distinct.index(p) for p in prompts], device=device)
    cache, alive = prefix.cache(of), torch.arange(len(prompts), device=device)
    token = torch.tensor([p[-1] for p in prompts], device=device)
    rest = torch.tensor(uniforms, dtype=torch.float64, device=device)
    likely, result = torch.ones_like(rest), [[] for _ in prompts]
    streams = torch.tensor(np.stack([stream(float(u), max_new_tokens) for u in uniforms]), device=device)
    resolution = RESOLUTION if inner.dtype == torch.float64 else 1.0
    for t in range(max_new_tokens):
        states = inner.base_model(
            input_ids=token[:, None],
            attention_mask=prefix.mask(of, t + 1),
            position_ids=prefix.lengths[of, None] + t,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        worn = (likely < resolution) if t else torch.zeros_like(likely, dtype=torch.bool)
        rest, likely = torch.where(worn, streams[alive, t], rest), torch.where(worn, 1.0, likely)
        logits = head(states)
        broken = torch.isnan(logits).any(-1)
        if bool(broken.any()):
            row = numbers[int(alive[broken][0])]
            raise ValueError(f"model: NaN logits in row {row}, token {t} of its response; {broken_weights(inner)}")
        token, rest, p = _next(law_of(logits, *law), rest)
        likely = likely * p
        for i, chosen in zip(alive.tolist(), token.tolist(), strict=True):
            result[i].append(chosen)
        going = ~torch.isin(token, end)
        if not bool(going.any()):
            break
        if int(going.sum()) < len(going):
            layers: list[Any] = cache.layers
            for layer in layers:
                layer.keys, layer.values = layer.keys[going], layer.values[going]
            alive, of, token, rest, likely = alive[going], of[going], token[going], rest[going], likely[going]
    return [tuple(row) for row in result]


def law_of(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """Probabilities (B, V) in float64; 0 outside the nucleus."""
    probs = torch.softmax(logits.double() / temperature, dim=-1)
    if top_p == 1:
        return probs
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    kept = ordered.cumsum(-1) - ordered < top_p
    return probs * torch.zeros_like(kept).scatter(-1, order, kept)


def _next(probs: Tensor, rest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The token in whose part of [0, 1) each number lies, what remains of the number, and the token's probability."""
    upper = probs.cumsum(-1)
    point = rest * upper[:, -1]
    token = (upper <= point[:, None]).sum(-1).clamp_max(probs.shape[-1] - 1)
    mass = probs.gather(-1, token[:, None]).squeeze(-1)
    low = upper.gather(-1, token[:, None]).squeeze(-1) - mass
    return token, ((point - low) / mass).clamp(0.0, 1.0 - 2.0**-53), mass / upper[:, -1]


def stream(uniform: float, length: int, purpose: str = "") -> np.ndarray:
    """Further uniforms of a response, keyed by its first and what they are for ("": its tokens)."""
    key = [int(uniform * 2**53), *([zlib.crc32(purpose.encode())] if purpose else [])]
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(key))).random(length)
