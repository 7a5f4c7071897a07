"""What a GPU gives, as ratios in one run: `pytest benchmarks/test_gpu_speed.py`. Skips, with the reason, without one.

Scoring: the share of a bare forward pass's rate, both over the same tokens, at growing batches. Simulator: where the
work is large enough, and what drawing on the CPU costs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from simbandit import Problem, algorithms, oracles, simulate, worlds
from simbandit.draws import Draws

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: nothing to measure here")


def seconds(work: Callable[[], Any], repeats: int = 3) -> float:
    """Median wall-clock time, the device idle before and after."""
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def test_scoring_keeps_the_rate_of_the_forward_pass(benchmark: Any) -> None:
    """A random Llama of 160 M parameters in bfloat16: at least 40 % of the bare forward pass's FLOP rate (2 parameters
    a token); the rate at 8 to 512 pairs."""
    transformers = pytest.importorskip("transformers", reason="the extra `llm` is not installed")
    from llm_bridge import sequence_log_probs
    from llm_bridge.batches import buckets

    config = transformers.LlamaConfig(
        vocab_size=32000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=16,
        num_attention_heads=12,
        max_position_embeddings=1024,
    )
    model = transformers.LlamaForCausalLM(config).to("cuda", torch.bfloat16).eval()
    parameters = sum(p.numel() for p in model.parameters())
    rng = np.random.default_rng(0)

    def drawn(n: int, low: int, high: int) -> list[list[int]]:
        return [rng.integers(0, 32000, size=int(rng.integers(low, high))).tolist() for _ in range(n)]

    prompts, responses = drawn(512, 64, 256), drawn(512, 64, 256)
    rows = [p + r for p, r in zip(prompts, responses, strict=True)]

    def forward() -> None:
        with torch.no_grad():
            for bucket in buckets([len(row) for row in rows], 16384):
                longest = len(rows[bucket[0]])
                ids = torch.tensor([rows[i] + [0] * (longest - len(rows[i])) for i in bucket], device="cuda")
                model(input_ids=ids, use_cache=False)

    sequence_log_probs(model, prompts[:8], responses[:8])
    forward()
    tokens = sum(map(len, rows))
    bare = tokens / seconds(forward)
    rates = {}
    for n in (8, 32, 128, 512):
        spent = seconds(lambda n=n: sequence_log_probs(model, prompts[:n], responses[:n]))
        rates[n] = sum(map(len, rows[:n])) / spent
    benchmark.pedantic(lambda: sequence_log_probs(model, prompts, responses), rounds=1, iterations=1)
    benchmark.extra_info |= {
        "device": torch.cuda.get_device_name(),
        "tokens per second": {n: round(r) for n, r in rates.items()},
        "share of the forward pass": rates[512] / bare,
        "TFLOP per second": 2 * parameters * rates[512] / 1e12,
    }
    assert rates[512] / bare >= 0.4
    assert rates[512] > rates[8]


def run(replicates: int, device: str, contexts: int, actions: int, rounds: int = 10) -> Callable[[], Any]:
    world = worlds.LinearWorld(n_contexts=contexts, n_actions=actions, dim=8)
    problem = Problem(world, oracles.BradleyTerry(), kl_coef=0.5)
    algorithm = algorithms.create("gshf_online")
    return lambda: simulate(
        problem, algorithm, rounds=rounds, batch_size=64, replicates=replicates, device=device, record=[rounds]
    )


def test_simulator_on_many_replicates(benchmark: Any) -> None:
    """10,000 replicates of GSHF on 40 x 30 finite contexts: at least 50 times one CPU core, whose time is that of 256
    replicates scaled up (the CPU runs them in chunks of that order). Also: the least number of replicates at which the
    GPU is ahead, and the share of its time that drawing on the CPU takes."""
    torch.set_num_threads(1)
    core = seconds(run(256, "cpu", 40, 30), repeats=1) / 256
    ahead = {}
    for replicates in (1, 10, 100, 1000, 10000):
        work = run(replicates, "cuda", 40, 30)
        work()
        ahead[replicates] = core * replicates / seconds(work, repeats=1)
    draws = Draws(0, 10000, device="cuda")

    def drawing() -> None:
        for t in range(10):
            now = draws.at(t)
            for purpose in ("contexts", "player0", "player1", "annotator"):
                now.uniform(purpose, 64)

    whole = core * 10000 / ahead[10000]
    benchmark.pedantic(run(10000, "cuda", 40, 30), rounds=1, iterations=1)
    benchmark.extra_info |= {
        "device": torch.cuda.get_device_name(),
        "times one core": {n: round(r, 2) for n, r in ahead.items()},
        "break-even replicates": next((n for n, r in ahead.items() if r >= 1), None),
        "share of drawing": seconds(drawing, repeats=1) / whole,
    }
    assert ahead[10000] >= 50
