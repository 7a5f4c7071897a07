"""Run by test_processes.py through `accelerate launch`: one job, whose result must not depend on how many share it."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, cast

import accelerate
import numpy as np
import torch

from llm_bridge import LMPolicy, Training, processes, rows, sequence_log_probs
from llm_bridge.catalogue import Catalogue
from llm_bridge.oracles import Cached, TextOracle
from simbandit.objective import Descent
from simbandit.simulate import Problem, simulate
from tests.llm_bridge import models


class Words:
    """Stands in for a tokenizer: ids as words."""

    def decode(self, ids: Any, **_: Any) -> str:
        return " ".join(map(str, ids))


class Longer:
    """Prefers the response with the larger sum, and counts what it is asked."""

    name = "longer"
    questions = 0

    def __call__(self, asked: Any) -> list[float]:
        self.questions += len(asked)
        sums = [[sum(map(int, text.split())) for text in both] for _, *both in asked]
        return [1 / (1 + float(np.exp(b - a))) for a, b in sums]


def job(folder: Path, accumulate: int, distributed: bool) -> dict[str, Any]:
    """Scores, then two rounds of online DPO whose gradients are taken at once or in parts."""
    model = models.gpt2(4, n_embd=8, n_layer=2, n_head=2, window=16).double()
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 4, size=n).tolist() for n in (1, 2, 3, 3, 5)]
    pairs = [(prompts[i % 5], rng.integers(0, 4, size=1 + i % 7).tolist()) for i in range(23)]
    scores = sequence_log_probs(model, [p for p, _ in pairs], [r for _, r in pairs], distributed=distributed)
    training = Training(Descent(3, 0.02), minibatch=7, accumulate=accumulate)
    policy = LMPolicy.of(model, None, prompts, max_new_tokens=4, training=training, distributed=distributed)
    catalogue = Catalogue(prompts, [0], tokenizer=Words())
    policy = dataclasses.replace(policy, catalogue=catalogue, checkpoints=folder / "checkpoints")
    judge = Longer()
    oracle = TextOracle(catalogue, Cached(judge, folder / "answers.jsonl", distributed=distributed))
    problem, row = Problem(policy.world(), cast(Any, oracle), 0.3), cast(Any, rows.direct_row("online_dpo"))
    final: Any = simulate(problem, row, rounds=2, batch_size=9, policy=policy, metrics=["queries"]).policy
    final.save(folder / "model")
    return {
        "scores": scores.tolist(),
        "responses": catalogue.state(),
        "weights": torch.cat([w.flatten() for w in final.weights]).tolist(),
        "questions": judge.questions,
    }


def main(folder: Path, distributed: bool) -> dict[str, Any]:
    """Jobs by name: gradients at once, the same again in the same folder, gradients in parts."""
    jobs = (("whole", "at-once", 16384), ("again", "at-once", 16384), ("parts", "parts", 60))
    told: dict[str, Any] = {name: job(folder / where, tokens, distributed) for name, where, tokens in jobs}
    return told | {"processes": processes.number()}


if __name__ == "__main__":
    accelerate.PartialState(cpu=True)
    place = Path(sys.argv[1])
    found = main(place, distributed=True)
    try:
        sequence_log_probs(models.gpt2(), [[1]], [[1 + processes.rank()]], distributed=True)
    except ValueError as error:
        found["refused"] = str(error)
    (place / f"told-{processes.rank()}.json").write_text(json.dumps(found))
