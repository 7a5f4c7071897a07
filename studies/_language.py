"""Language models of the studies: random ones made from a seed, never downloaded; and one-token models of a table."""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llm_bridge import need_extra
from llm_bridge.enumerable import EnumerableLM
from simbandit.objective import DuelObjective
from simbandit.policies import Rows, Tabular
from simbandit.types import Contexts, FitInfo


def gpt2(vocabulary: int, *, window: int, width: int = 24, layers: int = 2, seed: int = 0, scale: float = 0.3) -> Any:
    """A GPT-2 with an untied head, every weight N(0, scale^2) (norms around 1): far from uniform, and never trained."""
    need_extra()
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=window,
        n_embd=width,
        n_layer=layers,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
    )
    model, rng = GPT2LMHeadModel(config), np.random.default_rng(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            around = float(".ln_" in name and name.endswith("weight"))
            p.copy_(around + scale * torch.from_numpy(rng.normal(size=tuple(p.shape))))
    return model.eval()


@cache
def toy_model(*, trained: bool = True) -> tuple[Any, Any]:
    """The toy language model and its tokenizer, trained once a process (half a minute), or a small random one."""
    need_extra()
    from llm_bridge import loading, toy

    if not trained:
        return toy.untrained(width=16, layers=1).eval(), toy.tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        toy.train(folder)
        return loading.load_model(folder), loading.load_tokenizer(folder)


class Embedded(nn.Module):
    """A one-token LM whose only parameters are the table: the last prompt token chooses a row of logits."""

    def __init__(self, logits: np.ndarray):
        super().__init__()
        self.rows = nn.Parameter(torch.from_numpy(logits))
        self.vocabulary = logits.shape[1]

    def forward(self, input_ids: Tensor, use_cache: bool) -> Tensor:
        assert not use_cache
        return self.rows[input_ids]


@dataclass(frozen=True, eq=False)
class HeadSolved(Rows):
    """A one-token GPT-2 whose head takes the argmin over all tables: W h(x) = log pi(x), W by least squares, which is
    exact where there are at most as many prompts as hidden units."""

    lm: EnumerableLM

    def rows(self, contexts: Contexts) -> Tensor:
        return self.lm.rows(contexts)

    def fit(self, objective: DuelObjective) -> tuple[HeadSolved, FitInfo]:
        replicates = objective.contexts.shape[0]
        fitted, info = Tabular(self.lm.table.expand(replicates, -1, -1)).fit(objective)
        model: Any = self.lm.model
        ids = torch.tensor(list(self.lm.prompts))
        with torch.no_grad():
            states = model.transformer(input_ids=ids, use_cache=False).last_hidden_state[:, -1]
        head = torch.linalg.lstsq(states.expand(replicates, -1, -1), fitted.table).solution.mT  # (R, V, d)
        weights = [
            head.flatten(1) if name == "lm_head.weight" else p.detach().flatten().expand(replicates, -1)
            for name, p in model.named_parameters()
        ]
        return HeadSolved(dataclasses.replace(self.lm, parameters=torch.cat(weights, dim=1))), info
