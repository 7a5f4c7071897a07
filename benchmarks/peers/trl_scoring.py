"""Times TRL's own scoring of DPO pairs and ours, interleaved in one process: see README.md for the environment."""

from __future__ import annotations

import contextlib
import json
import warnings
from types import SimpleNamespace
from typing import Any

import torch

warnings.simplefilter("ignore")

from trl import DPOTrainer, __version__  # noqa: E402
from trl.trainer.dpo_trainer import DataCollatorForPreference  # noqa: E402
from trl.trainer.utils import add_fused_lm_head  # noqa: E402

from benchmarks.scoring_paths import PAIRS, backbone, model_of, pairs, plain, ratios, unique_tokens  # noqa: E402
from llm_bridge import sequence_log_probs  # noqa: E402

Rows = list[list[int]]


def trl(model: Any, prompts: Rows, responses: Rows, duels: int) -> torch.Tensor:
    """compute_ref_log_probs of the DPO trainer (its method, its collator, its scoring head), so many duels a batch."""
    trainer: Any = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu", autocast=contextlib.nullcontext),
        ref_model=model,
        model=model,
        ld_alpha=None,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
    )
    collate = DataCollatorForPreference(pad_token_id=0)
    rows = [
        {"prompt_ids": prompts[i], "chosen_ids": responses[i], "rejected_ids": responses[i + 1]}
        for i in range(0, len(prompts), 2)
    ]
    scored = [
        torch.stack(DPOTrainer.compute_ref_log_probs(trainer, model, collate(rows[i : i + duels])), dim=-1).flatten()
        for i in range(0, len(rows), duels)
    ]
    return torch.cat(scored)


def main() -> None:
    torch.set_num_threads(1)
    for distinct_prompts in (PAIRS // 2, 16):  # a duel's two responses share a prompt
        for vocabulary in (512, 8192):
            prompts, responses = pairs(distinct_prompts, vocabulary)
            model, theirs = model_of(vocabulary), model_of(vocabulary)
            theirs.load_state_dict(model.state_dict())
            add_fused_lm_head(theirs)
            mine = sequence_log_probs(model, prompts, responses)
            error = (mine - trl(theirs, prompts, responses, 8)).abs().max()
            assert error < 1e-3, error
            work = [
                lambda p=prompts, r=responses, m=model: sequence_log_probs(m, p, r),
                lambda p=prompts, r=responses, m=model: sequence_log_probs(m, p, r, layout="joint"),
                lambda p=prompts, r=responses, m=theirs: trl(m, p, r, 8),
                lambda p=prompts, r=responses, m=model: plain(m, p, r),
                lambda p=prompts, r=responses, m=model: backbone(m, unique_tokens(p, r)),
            ]
            ours, joint, eight, usual, bare = ratios(work)
            row = {"version": __version__, "vocabulary": vocabulary, "distinct_prompts": distinct_prompts}
            row |= {"seconds": ours, "trl": eight / ours, "trl_over_joint": eight / joint}
            row |= {"plain_over_trl": usual / eight, "over_backbone": ours / bare}
            print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}), flush=True)


if __name__ == "__main__":
    main()
