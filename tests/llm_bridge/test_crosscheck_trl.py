"""DPO and IPO on one model and one batch: values and gradients are TRL's (extra `crosscheck`, written for TRL 1.16).

TRL's own collator, scoring head and loss run here, on a stand-in for the trainer around them.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import warnings
from collections import defaultdict
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llm_bridge import sequence_log_probs
from simbandit import losses
from simbandit.objective import PairLogProbs
from tests.llm_bridge import models

BETA, DUELS = 0.3, 5


@pytest.fixture(scope="module")
def trl() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("trl", reason="TRL is not installed (extra `crosscheck`)")
        dpo, scoring = (importlib.import_module(f"trl.trainer.{name}") for name in ("dpo_trainer", "utils"))
    return SimpleNamespace(
        loss=dpo.DPOTrainer._compute_loss,
        reference=dpo.DPOTrainer.compute_ref_log_probs,
        collator=dpo.DataCollatorForPreference(pad_token_id=0),
        fuse=partial(scoring.add_fused_lm_head, outputs=("log_probs", "entropy", "mean_logits", "is_top1")),
    )


def trainer(model: Any, kind: str) -> Any:
    def same(x: Any) -> Any:
        return x

    return SimpleNamespace(
        model=model,
        ref_model=model,
        accelerator=SimpleNamespace(
            device="cpu", gather=same, gather_for_metrics=same, autocast=contextlib.nullcontext
        ),
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        loss_types=[kind],
        loss_weights=[1.0],
        label_smoothing=0.0,
        f_divergence_type="reverse_kl",
        use_weighting=False,
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        beta=BETA,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )


def duels() -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    """Prompts, winners and losers of random lengths."""
    rng = np.random.default_rng(3)

    def drawn(low: int, high: int) -> list[int]:
        return rng.integers(0, models.VOCABULARY, size=int(rng.integers(low, high))).tolist()

    return (
        [drawn(1, 9) for _ in range(DUELS)],
        [drawn(1, 12) for _ in range(DUELS)],
        [drawn(1, 12) for _ in range(DUELS)],
    )


def scored(model: Any, gradients: bool = False) -> Tensor:
    """(DUELS, 2)"""
    prompts, won, lost = duels()
    both = [r for pair in zip(won, lost, strict=True) for r in pair]
    twice = [p for p in prompts for _ in range(2)]
    return sequence_log_probs(model, twice, both, gradients=gradients).view(DUELS, 2)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # TRL asks for it
@pytest.mark.parametrize("make", [models.gpt2, models.qwen2])
@pytest.mark.parametrize(("kind", "name", "mean"), [("sigmoid", "dpo", False), ("ipo", "ipo", True)])
def test_loss_and_gradients_are_trls(trl, make, kind, name, mean):
    """TRL's IPO divides each log-probability by its response's tokens; ours sees what it is given.

    Its head computes in float32: hence 1e-5.
    """
    model, reference = make().double(), models.randomised(copy.deepcopy(make()), seed=7).double()
    mine, frozen = copy.deepcopy(model), copy.deepcopy(reference)
    for each in (model, reference):
        trl.fuse(each)
    prompts, won, lost = duels()
    rows = zip(prompts, won, lost, strict=True)
    batch = trl.collator([{"prompt_ids": p, "chosen_ids": w, "rejected_ids": r} for p, w, r in rows])
    chosen, rejected = trl.reference(trainer(reference, kind), reference, batch)
    ref = scored(frozen)
    torch.testing.assert_close(ref, torch.stack([chosen, rejected], -1).double(), rtol=0, atol=2e-5)
    batch |= {"ref_chosen_logps": ref[:, 0], "ref_rejected_logps": ref[:, 1]}
    theirs = trl.loss(trainer(model, kind), model, batch, False)
    theirs.backward()

    now = scored(mine, gradients=True)
    size = torch.tensor([[len(w), len(r)] for w, r in zip(won, lost, strict=True)]) if mean else 1
    log_probs = PairLogProbs(now / size, ref / size, ref / size)
    value = getattr(losses, name)(log_probs, torch.ones(DUELS).double(), BETA).mean()
    value.backward()
    assert float(value.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    largest = max(float(p.grad.abs().max()) for p in mine.parameters())
    assert largest > 1e-3
    for (where, p), q in zip(mine.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5 * largest, msg=lambda m, w=where: f"{w}: {m}")
