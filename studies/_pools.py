"""Pools drawn from a language model whose responses are all listed: what a pool hides is known exactly."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from llm_bridge.enumerable import EnumerableLM
from simbandit.draws import Draws
from simbandit.policies import gibbs, inverse_cdf, normalise
from simbandit.types import Contexts
from simbandit.worlds.instance import Realisation
from studies._language import gpt2

PROMPTS, END, GOLD_SEED = [[1], [2, 1], [3], [4, 2]], 0, 1000


@dataclass(frozen=True, eq=False)
class Listed:
    """Every response: the reference's law and the rewards (X, A), features (X, A, d)."""

    ref: Tensor
    rewards: Tensor
    features: Tensor

    def optimum(self, kl_coef: float) -> Tensor:
        return gibbs(self.rewards, self.ref, kl_coef)


@cache
def listed(reward: str, dim: int, length: int, seed: int) -> Listed:
    from llm_bridge.candidates import hidden_features, whitened

    lm, gold = (EnumerableLM(gpt2(5, window=8, seed=seed + s), PROMPTS, length, end=END) for s in (0, GOLD_SEED))
    ref, said = lm.table[0].detach(), lm.responses()
    states = hidden_features(lm.model, [p for p in PROMPTS for _ in said], said * len(PROMPTS))
    features = torch.from_numpy(whitened(states.numpy(), dim)).view(*ref.shape, dim)
    law = ref.exp() / len(PROMPTS)
    scores = gold.table[0].detach()
    scores = scores - (law * scores).sum()
    scores = (scores / (law * scores.square()).sum().sqrt()).clamp(-3, 3)
    if reward == "linear":
        scores = features @ projection(scores, features, law)
    return Listed(ref, scores, features)


def projection(scores: Tensor, features: Tensor, law: Tensor) -> Tensor:
    """Least squares under a law of responses, up to a constant for each prompt: what duels can tell."""
    within = law / law.sum(-1, keepdim=True)
    x = (features - (within[..., None] * features).sum(-2, keepdim=True)) * law[..., None].sqrt()
    y = (scores - (within * scores).sum(-1, keepdim=True)) * law.sqrt()
    return torch.linalg.lstsq(x.flatten(0, 1), y.flatten()[:, None]).solution[:, 0]


@dataclass(frozen=True, eq=False)
class DrawnPools:
    """A world whose actions are k responses drawn from the listed reference, anew for every replicate.

    Responses that were drawn twice are offered once; `law` as in `llm_bridge.candidates`.
    """

    all: Listed
    k: int
    law: Literal["draws", "reference"] = "draws"

    def drawn(self, draws: Draws) -> Tensor:
        """(R, X, k) numbers of responses."""
        uniforms = draws.once("pool", len(self.all.ref), self.k, law="uniform")
        rows = self.all.ref.expand(len(uniforms), -1, -1)
        return torch.stack([inverse_cdf(rows, uniforms[..., k]) for k in range(self.k)], dim=-1)

    def instance(self, replicates: int, draws: Draws) -> Realisation:
        drawn = self.drawn(draws)
        same = drawn[..., :, None] == drawn[..., None, :]
        repeated = (same & torch.ones(self.k, self.k).tril(-1).bool()).any(-1)
        law = same.sum(-1).double().log() if self.law == "draws" else self.take(self.all.ref, drawn)
        ref = normalise(law.masked_fill(repeated, -torch.inf))
        pool = Contexts(
            index=torch.arange(drawn.shape[1]).expand(replicates, -1),
            features=self.take(self.all.features, drawn) * ~repeated[..., None],
            ref_log_probs=ref,
            weights=torch.full(drawn.shape[:2], 1 / drawn.shape[1], dtype=torch.float64),
        )
        return Realisation(
            replicates=replicates,
            n_actions=self.k,
            dim=self.all.features.shape[-1],
            reward_range=(-3.0, 3.0),
            evaluation=pool,
            pool=pool,
            reward_table=self.take(self.all.rewards, drawn) * ~repeated,
            draws=draws,
        )

    @staticmethod
    def take(table: Tensor, drawn: Tensor) -> Tensor:
        """Rows of (X, A, ...) at (R, X, k)."""
        return table[torch.arange(len(table))[:, None], drawn]
