"""The losses that TRL has, run from TRL's own code on random batches (extra `crosscheck`; written against TRL 1.16).

TRL keeps its losses inside its trainers, so their loss methods run here on a stand-in for the trainer and on a model
that returns given log-probabilities. Where TRL deviates, the deviation is pinned.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from simbandit import losses
from simbandit.objective import PairLogProbs

BETA, DUELS = 0.3, 7


@pytest.fixture(scope="module")
def trl() -> Any:
    """TRL's trainers, warnings of its import aside."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("trl", reason="TRL is not installed (extra `crosscheck`)")
        trainers = {"DPO": "trl", "KTO": "trl", "CPO": "trl.experimental.cpo", "ORPO": "trl.experimental.orpo"}
        found = {name: getattr(importlib.import_module(place), f"{name}Trainer") for name, place in trainers.items()}
    return SimpleNamespace(**found)


def trainer(**fields: Any) -> Any:
    def same(x: Tensor) -> Tensor:
        return x

    return SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=SimpleNamespace(device="cpu", gather=same, gather_for_metrics=same),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        beta=BETA,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        **fields,
    )


def outputs(log_probs: Tensor) -> SimpleNamespace:
    zeros = torch.zeros_like(log_probs)
    return SimpleNamespace(
        log_probs=log_probs, log_sum_sq_probs=zeros, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
    )


def batch(seed: int, dtype: torch.dtype, length: tuple[int, int] = (1, 1)) -> tuple[Tensor, Tensor, Tensor]:
    """Token log-probabilities (2, DUELS, longest) of winners and losers, their masks, and the reference's sums."""
    rng, longest = np.random.default_rng(seed), max(length)
    mask = torch.stack([torch.arange(longest) < n for n in length])[:, None].expand(-1, DUELS, -1)
    tokens = -torch.as_tensor(rng.exponential(size=(2, DUELS, longest))).to(dtype) * mask
    return tokens, mask, -torch.as_tensor(rng.exponential(size=(2, DUELS))).to(dtype)


def theirs(trl: Any, kind: str, dtype: torch.dtype = torch.float64, length=(1, 1), **options: Any) -> float:
    tokens, mask, ref = batch(0, dtype, length)
    fields = {"label_smoothing": 0.0, "f_divergence_type": "reverse_kl", "use_weighting": False} | options
    completion = torch.cat([torch.zeros(2 * DUELS, 1), mask.flatten(0, 1)], dim=1)
    inputs = {
        "input_ids": torch.zeros_like(completion).long(),
        "attention_mask": torch.ones_like(completion),
        "completion_mask": completion,
        "ref_chosen_logps": ref[0],
        "ref_rejected_logps": ref[1],
    }
    stand_in = trainer(loss_types=[kind], loss_weights=[1.0], args=SimpleNamespace(discopop_tau=0.05), **fields)
    return float(trl.DPO._compute_loss(stand_in, lambda **_: outputs(tokens.flatten(0, 1)), inputs, False))


def ours(
    name: str, kl_coef: float = BETA, dtype: torch.dtype = torch.float64, length=(1, 1), mean=False, **own
) -> float:
    """The mean over duels, half of them with the loser played first."""
    tokens, mask, ref = batch(0, dtype, length)
    size = mask.sum(-1) if mean else 1
    now, ref = (x.T for x in (tokens.sum(-1) / size, ref / size))
    label = (torch.arange(DUELS) % 2).to(dtype)
    order = torch.stack([1 - label, label], dim=-1).long()
    now, ref = now.gather(1, order), ref.gather(1, order)
    return float(getattr(losses, name)(PairLogProbs(now, ref, ref), label, kl_coef, **own).mean())


@pytest.mark.parametrize(
    ("kind", "name", "options", "own"),
    [
        ("sigmoid", "dpo", {}, {}),
        ("hinge", "hinge", {}, {}),
        ("ipo", "ipo", {}, {}),
        ("exo_pair", "exo", {"label_smoothing": 0.1}, {"label_smoothing": 0.1}),
        ("nca_pair", "nca", {}, {}),
        ("robust", "rdpo", {"label_smoothing": 0.2}, {"label_smoothing": 0.2}),
        ("bco_pair", "bco", {}, {}),
        ("aot", "aot", {}, {}),
        ("aot_unpaired", "aot_unpaired", {}, {}),
        ("apo_zero", "apo_zero", {}, {}),
        ("apo_down", "apo_down", {}, {}),
        ("discopop", "discopop", {}, {"temperature": 0.05}),
        ("sigmoid", "f_dpo_forward_kl", {"f_divergence_type": "forward_kl"}, {}),
        ("sigmoid", "f_dpo_js", {"f_divergence_type": "js_divergence"}, {}),
        ("sigmoid", "wpo", {"use_weighting": True}, {}),
    ],
)
def test_losses_of_the_dpo_trainer(trl, kind, name, options, own):
    """EXO's smoothing is a float32 there, hence 1e-6 and not less."""
    if name == "wpo":  # weights are the policy's at this step: here, the last policy's
        tokens, _, ref = batch(0, torch.float64)
        now = tokens[..., 0].T
        value = losses.wpo(PairLogProbs(now, now, ref.T), torch.ones(DUELS).double(), BETA).mean()
    else:
        value = ours(name, **own)
    assert float(value) == pytest.approx(theirs(trl, kind, **options), abs=1e-6)


def test_alpha_divergence_has_another_coefficient(trl):
    """TRL's is 1 - alpha; its code knows no float64."""
    options: dict[str, Any] = {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7}
    value = ours("f_dpo_alpha", dtype=torch.float32, alpha=0.3)
    assert value == pytest.approx(theirs(trl, "sigmoid", dtype=torch.float32, **options), abs=1e-6)


def test_sppo_is_twice_ours_around_a_fixed_reference(trl):
    """step_size = 1 / beta, pi_last their reference; and the paper's (and our) half is missing there."""
    assert 2 * ours("sppo", step_size=1 / BETA) == pytest.approx(theirs(trl, "sppo_hard"), abs=1e-6)


def test_lengths_divide_in_ipo_and_sigmoid_norm_and_nowhere_else(trl):
    """Winners of 3 tokens, losers of 2. IPO's paper has no division, nor has ours: averages go in where they are
    meant."""
    length = (3, 2)
    assert ours("dpo", length=length) == pytest.approx(theirs(trl, "sigmoid", length=length), abs=1e-6)
    divided = theirs(trl, "ipo", length=length)
    assert ours("ipo", length=length, mean=True) == pytest.approx(divided, abs=1e-6)
    assert abs(ours("ipo", length=length) - divided) > 0.01
    norm = theirs(trl, "sigmoid_norm", length=length)
    assert ours("dpo", length=length, mean=True) == pytest.approx(norm, abs=1e-6)


def test_label_smoothing_no_longer_reaches_sigmoid(trl):
    """So TRL has no conservative DPO."""
    plain = theirs(trl, "sigmoid")
    assert theirs(trl, "sigmoid", label_smoothing=0.2) == plain
    assert abs(ours("cdpo", label_smoothing=0.2) - plain) > 0.01


def test_sft_is_what_rpo_adds(trl):
    sft = (ours("rpo", sft_weight=0.5) - ours("dpo")) / 0.5
    assert sft == pytest.approx(theirs(trl, "sft"), abs=1e-6)


def test_kto(trl):
    """One desirable and one undesirable response per duel; z estimated from mismatched pairs and clamped at 0."""
    tokens, mask, ref = batch(0, torch.float64)
    rng = np.random.default_rng(1)
    own: dict[str, Any] = {"desirable_weight": 1.2, "undesirable_weight": 0.9}
    for shift in (0.8, -5.0):
        mismatched = torch.as_tensor(rng.normal(size=2 * DUELS)) + shift
        completion = torch.cat([torch.zeros(2 * DUELS, 1), mask.flatten(0, 1)], dim=1)
        inputs = {
            "input_ids": torch.zeros_like(completion).long(),
            "attention_mask": torch.ones_like(completion),
            "completion_mask": completion,
            "label": torch.arange(2 * DUELS) < DUELS,
            "ref_logps": ref.flatten(),
            "ref_KL_logps": torch.zeros(2 * DUELS).double(),
        }
        stand_in = trainer(loss_type="kto", calculate_KL=True, _compute_kl_logps=lambda *_, kl=mismatched: kl, **own)
        value = trl.KTO._compute_loss(stand_in, lambda **_: outputs(tokens.flatten(0, 1)), inputs, False)
        z = max(0.0, float(mismatched.mean()))
        assert (z == 0) == (shift < 0)
        assert ours("kto", reference_point=z, **own) / 2 == pytest.approx(float(value), abs=1e-6)


def test_simpo_and_orpo(trl):
    tokens, _, _ = batch(0, torch.float64)
    won, lost = tokens[..., 0]
    cpo = trainer(alpha=0.0, loss_type="simpo", simpo_gamma=0.55, label_smoothing=0.0)
    simpo, *_ = trl.CPO.cpo_loss(cpo, won, lost)
    assert ours("simpo", margin=0.55) == pytest.approx(float(simpo.mean()), abs=1e-6)
    odds, *_ = trl.ORPO.odds_ratio_loss(trainer(), won, lost)  # in float32, beta = odds_weight
    total = -float(won.mean()) - float(odds.mean())
    assert ours("orpo", odds_weight=BETA) == pytest.approx(total, abs=1e-6)
    assert not math.isclose(ours("orpo", odds_weight=2 * BETA), total, abs_tol=1e-3)
