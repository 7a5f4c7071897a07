"""Speed of scoring, as ratios of CPU time measured in one run: `pytest benchmarks/test_scoring_speed.py`. One thread.

256 pairs, prompts of 8 to 96 tokens, responses of 4 to 64, a random Llama of 4 layers and width 256. The plain path
costs what TRL's DPO trainer costs (`peers/trl_scoring.py` runs TRL itself); the bare backbone runs over the same tokens
in length buckets (over every prompt once, where prompts are shared).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="the extra `llm` is not installed")

from benchmarks.scoring_paths import PAIRS, backbone, model_of, pairs, plain, ratios, unique_tokens
from llm_bridge import sequence_log_probs


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("distinct_prompts", "vocabulary", "faster", "slower"),
    [(PAIRS, 512, 1.4, 1.2), (PAIRS, 8192, 3.0, None), (16, 512, 2.5, 2.2), (16, 8192, 3.0, None)],
)
def test_scoring(benchmark: Any, distinct_prompts: int, vocabulary: int, faster: float, slower: float | None) -> None:
    """At least `faster` times the plain path's speed, at most `slower` times the bare backbone's time."""
    model, (prompts, responses) = model_of(vocabulary), pairs(distinct_prompts, vocabulary)
    mine = sequence_log_probs(model, prompts, responses)
    torch.testing.assert_close(mine, plain(model, prompts, responses), rtol=0, atol=1e-3)
    rows = unique_tokens(prompts, responses)
    benchmark.pedantic(lambda: sequence_log_probs(model, prompts, responses), rounds=1, iterations=1)
    spent, usual, bare = ratios(
        [
            lambda: sequence_log_probs(model, prompts, responses),
            lambda: plain(model, prompts, responses),
            lambda: backbone(model, rows),
        ]
    )
    benchmark.extra_info["plain"], benchmark.extra_info["backbone"] = usual / spent, spent / bare
    assert usual / spent >= faster
    assert slower is None or spent / bare <= slower


MEASURED = """
import sys
from benchmarks.scoring_paths import model_of, pairs
from llm_bridge import sequence_log_probs

def kib(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1])

vocabulary, n = int(sys.argv[1]), int(sys.argv[2])
model, (prompts, responses) = model_of(vocabulary), pairs(256, 512)
sequence_log_probs(model, prompts[:2], responses[:2])
open("/proc/self/clear_refs", "w").write("5")  # the high-water mark starts afresh
before = kib("VmRSS")
sequence_log_probs(model, prompts[:n], responses[:n])
print((kib("VmHWM") - before) / 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's high-water mark of memory")
def test_memory_does_not_grow_with_tokens_times_vocabulary(benchmark: Any) -> None:
    """Peak resident memory above the model, in MiB, each in a process of its own: a fixed threshold makes malloc give
    every large block back, so that fragments do not count."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "262144", "OMP_NUM_THREADS": "1"}

    def peak(vocabulary: int, n: int) -> float:
        command = [sys.executable, "-c", MEASURED, str(vocabulary), str(n)]
        root = Path(__file__).parents[1]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root, env=environment)
        return float(done.stdout)

    peaks = {(v, n): peak(v, n) for v, n in ((512, 64), (512, 256), (65536, 64), (65536, 256))}
    benchmark.pedantic(lambda: None, rounds=1, iterations=1)
    benchmark.extra_info["peak MiB"] = {f"vocabulary {v}, {n} pairs": round(p, 1) for (v, n), p in peaks.items()}
    assert 1 < max(peaks.values()) < 64  # the logits of 256 responses' 8,400 tokens take 2,100 at 65,536
