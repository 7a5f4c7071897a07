"""What scoring is compared with: the inputs, a plain path that costs what TRL's does, and the bare backbone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from llm_bridge.batches import buckets

Rows = list[list[int]]
PAIRS = 256
ROWS = 16  # of a batch: TRL's default of eight duels
BUDGET = 1024  # tokens of a batch of the bare backbone: as the scorer's on a CPU


def model_of(vocabulary: int) -> Any:
    """A random Llama of 4 layers and width 256."""
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=256,
    )
    with torch.random.fork_rng(devices=[]):
        return transformers.LlamaForCausalLM(config).eval()


def pairs(distinct_prompts: int, vocabulary: int) -> tuple[Rows, Rows]:
    """256 prompts of 8 to 96 tokens, of which so many are distinct, and responses of 4 to 64."""
    rng = np.random.default_rng(0)

    def drawn(low: int, high: int) -> list[int]:
        return rng.integers(0, vocabulary, size=rng.integers(low, high + 1)).tolist()

    pool = [drawn(8, 96) for _ in range(distinct_prompts)]
    return [pool[i * distinct_prompts // PAIRS] for i in range(PAIRS)], [drawn(4, 64) for _ in range(PAIRS)]


def padded(rows: Rows) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


def plain(model: Any, prompts: Rows, responses: Rows) -> Tensor:
    """What TRL 1.16's DPO trainer does on a CPU (`peers/trl_scoring.py` times both): batches in the order given,
    padded, with a mask, the body once over them, and at every position the head, its scaling, and the softmax's
    sum, each into memory of its own."""
    sums = []
    for i in range(0, len(prompts), ROWS):
        both = list(zip(prompts[i : i + ROWS], responses[i : i + ROWS], strict=True))
        ids, seen = padded([p + r for p, r in both]), padded([[1] * len(p + r) for p, r in both])
        said = padded([[0] * (len(p) - 1) + [1] * len(r) + [0] for p, r in both])[:, :-1]
        with torch.no_grad():
            states = model.model(input_ids=ids, attention_mask=seen, use_cache=False).last_hidden_state[:, :-1]
            logits = model.lm_head(states) * 1.0 * 1.0  # scale and temperature
            largest = logits.amax(-1)
            total = torch.exp(logits - largest[..., None]).sum(-1)
            tokens = logits.gather(-1, ids[:, 1:, None]).squeeze(-1) - largest - total.log()
        sums.append((tokens * said).sum(-1))
    return torch.cat(sums)


def backbone(model: Any, rows: Rows) -> None:
    """The bare body over these tokens, in length buckets."""
    with torch.no_grad():
        for bucket in buckets([len(row) for row in rows], BUDGET):
            model.model(input_ids=padded([rows[i] for i in bucket]), use_cache=False)


def unique_tokens(prompts: Rows, responses: Rows) -> Rows:
    """The rows whose tokens must be read at least: each pair, or, where prompts are shared, every prompt once and the
    responses."""
    distinct = list(dict.fromkeys(map(tuple, prompts)))
    if len(distinct) == len(prompts):
        return [p + r[:-1] for p, r in zip(prompts, responses, strict=True)]
    return [list(p) for p in distinct] + responses


def ratios(work: Sequence[Callable[[], Any]], repeats: int = 3) -> list[float]:
    """Medians of CPU seconds, interleaved."""
    spent: list[list[float]] = [[] for _ in work]
    for _ in range(repeats):
        for times, one in zip(spent, work, strict=True):
            start = time.process_time()
            one()
            times.append(time.process_time() - start)
    return [float(np.median(times)) for times in spent]
