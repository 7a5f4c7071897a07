"""Speed of scoring, as ratios of CPU time measured in one run: `pytest benchmarks/test_scoring_speed.py`. One thread.

256 pairs, prompts of 8 to 96 tokens, responses of 4 to 64, a random Llama of 4 layers and width 256. The plain path is
what trainers do: batches of 32 in the order given, padded, the head and a full log-softmax at every position. The bare
backbone runs over the same tokens in length buckets (over every prompt once, where prompts are shared).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers", reason="the extra `llm` is not installed")

from llm_bridge import sequence_log_probs  # noqa: E402
from llm_bridge.batches import buckets  # noqa: E402

Rows = list[list[int]]
PAIRS = 256


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def model_of(vocabulary: int) -> Any:
    shape = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = transformers.LlamaConfig(vocab_size=vocabulary, max_position_embeddings=256, **shape)
    with torch.random.fork_rng(devices=[]):
        return transformers.LlamaForCausalLM(config).eval()


def pairs(distinct_prompts: int, vocabulary: int) -> tuple[Rows, Rows]:
    rng = np.random.default_rng(0)

    def drawn(low: int, high: int) -> list[int]:
        return rng.integers(0, vocabulary, size=rng.integers(low, high + 1)).tolist()

    pool = [drawn(8, 96) for _ in range(distinct_prompts)]
    return [pool[i * distinct_prompts // PAIRS] for i in range(PAIRS)], [drawn(4, 64) for _ in range(PAIRS)]


def padded(rows: Rows) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


def plain(model: Any, prompts: Rows, responses: Rows) -> Tensor:
    sums = []
    for i in range(0, PAIRS, 32):
        both = list(zip(prompts[i : i + 32], responses[i : i + 32], strict=True))
        ids, seen = padded([p + r for p, r in both]), padded([[1] * len(p + r) for p, r in both])
        said = padded([[0] * (len(p) - 1) + [1] * len(r) + [0] for p, r in both])[:, :-1]
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=seen, use_cache=False).logits[:, :-1]
            tokens = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
        sums.append((tokens * said).sum(-1))
    return torch.cat(sums)


def backbone(model: Any, rows: Rows) -> None:
    with torch.no_grad():
        for bucket in buckets([len(row) for row in rows], 4096):
            model.model(input_ids=padded([rows[i] for i in bucket]), use_cache=False)


def seconds(work: Callable[[], Any], repeats: int = 3) -> float:
    """The least of some repeats: other processes only ever add."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


@pytest.mark.parametrize(
    ("distinct_prompts", "vocabulary", "faster", "slower"),
    [(PAIRS, 512, 1.3, 1.2), (16, 512, 2.5, 2.2), (PAIRS, 8192, 2.0, 1.5), (16, 8192, 2.5, 2.5)],
)
def test_scoring(benchmark: Any, distinct_prompts: int, vocabulary: int, faster: float, slower: float) -> None:
    """At least `faster` times the plain path's speed, at most `slower` times the bare backbone's time."""
    model, (prompts, responses) = model_of(vocabulary), pairs(distinct_prompts, vocabulary)
    mine = sequence_log_probs(model, prompts, responses)
    torch.testing.assert_close(mine, plain(model, prompts, responses), rtol=0, atol=1e-3)
    rows = [p + r for p, r in zip(prompts, responses, strict=True)]
    if distinct_prompts < PAIRS:
        rows = [list(p) for p in dict.fromkeys(map(tuple, prompts))] + responses
    spent = seconds(lambda: sequence_log_probs(model, prompts, responses))
    benchmark.pedantic(lambda: sequence_log_probs(model, prompts, responses), rounds=1, iterations=1)
    benchmark.extra_info["plain"] = seconds(lambda: plain(model, prompts, responses)) / spent
    benchmark.extra_info["backbone"] = spent / seconds(lambda: backbone(model, rows))
    assert benchmark.extra_info["plain"] >= faster
    assert benchmark.extra_info["backbone"] <= slower
