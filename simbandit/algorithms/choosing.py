"""What bandit algorithms share: the greedy policy, and one action or pair from a table of scores, ties broken by a
uniform that was drawn in advance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simbandit import compiled
from simbandit.least_squares import Ahead, LeastSquares, linear, native, tensor
from simbandit.policies import Rows, argmax
from simbandit.types import Contexts

SHORTEST_BLOCK, LONGEST_BLOCK = 4, 16  # rounds
BLOCK_NUMBERS = 2**16  # numbers of a replicate
TIE = 1e-9  # scores closer than this, relative to 1 + |the best|, are tied


@dataclass(frozen=True, eq=False)
class GreedyPolicy(Rows):
    """argmax_a <theta, phi(x, a)>, uniform over exact ties. theta (R, d), or (R, A, d) with a model per arm."""

    theta: Tensor

    def rows(self, contexts: Contexts) -> Tensor:
        features = contexts.own_features if self.theta.ndim == 3 else contexts.features
        return argmax(linear(features, self.theta), contexts.ref_log_probs)


def choose(scores: Tensor, contexts: Contexts, uniforms: Tensor) -> Tensor:
    """(R, B): the offered action of the highest score (R, B, A); among tied ones the uniforms (R, B) decide, each as
    likely as the other."""
    if contexts.ragged:
        scores = scores.masked_fill(contexts.ref_log_probs == -torch.inf, -torch.inf)
    return tensor(_pick(*native(scores, uniforms)))


def play(
    model: LeastSquares, radius: float, phi: Tensor, contexts: Contexts, outcomes: Tensor, uniforms: Tensor
) -> Tensor:
    """B rounds of one context, (R, B), by argmax of mean + radius * width: the actions (R, B), which the model learns
    from one by one. phi (R, B, A, d), what the model regresses on; outcomes (R, B, A)."""
    if not contexts.ragged and (actions := model.play(phi, outcomes, uniforms, radius, TIE)) is not None:
        return actions
    B, A, d = phi.shape[1:]
    most = max(SHORTEST_BLOCK, min(LONGEST_BLOCK, BLOCK_NUMBERS // (A * d)))
    split = [x.tensor_split(math.ceil(B / most), dim=1) for x in (phi, contexts.ref_log_probs, outcomes, uniforms)]
    return torch.cat([_block(model, radius, *block) for block in zip(*split, strict=True)], dim=1)


def _block(model: LeastSquares, radius: float, phi: Tensor, ref: Tensor, outcomes: Tensor, uniforms: Tensor) -> Tensor:
    rounds = _OneByOne(model, phi) if model.arms is None else Ahead(model, phi)
    absent, each = ref == -torch.inf, torch.arange(len(phi), device=phi.device)
    ragged, actions = bool(absent.any()), torch.empty_like(uniforms, dtype=torch.int64)
    xp, each, actions, rewards, draws = native(each, actions, outcomes, uniforms)
    for b in range(phi.shape[1]):
        scores = rounds.scores(b, radius)
        if ragged:
            scores = native(tensor(scores).masked_fill(absent[:, b], -torch.inf))[1]
        actions[:, b] = chosen = _pick(xp, scores, draws[:, b])
        rounds.observe(b, chosen, rewards[each, b, chosen])
    rounds.close()
    return tensor(actions)


class _OneByOne:
    """As `Ahead`, for one model of all actions, where a round's products are as fast one by one."""

    def __init__(self, model: LeastSquares, phi: Tensor):
        self._model, self._phi = model, phi

    def scores(self, b: int, radius: float) -> Any:
        return native(self._model.scores(self._phi[:, b : b + 1], radius)[:, 0])[1]

    def observe(self, b: int, arm: Any, reward: Any) -> None:
        arm = tensor(arm)
        x = self._phi[torch.arange(len(arm), device=arm.device), b, arm]
        self._model.observe(x[:, None], tensor(reward)[:, None])

    def close(self) -> None:
        pass


def choose_pair(scores: Tensor, contexts: Contexts, uniforms: Tensor) -> Tensor:
    """(R, B, 2): the offered ordered pair of the highest score (R, B, A, A), ties as in `choose`."""
    absent = contexts.ref_log_probs == -torch.inf
    masked = scores.masked_fill(absent[..., :, None] | absent[..., None, :], -torch.inf)
    A = scores.shape[-1]
    cell = tensor(_pick(*native(masked.flatten(-2), uniforms)))
    return torch.stack([cell.div(A, rounding_mode="floor"), cell % A], dim=-1)


def _pick(xp: Any, scores: Any, uniforms: Any) -> Any:
    if compiled.AVAILABLE and xp is np:
        out = np.empty(uniforms.shape, dtype=np.int64)
        compiled.pick(scores.reshape(-1, scores.shape[-1]), uniforms.reshape(-1), TIE, out.reshape(-1))
        return out
    best = xp.amax(scores, -1)
    tied = scores >= (best - TIE * (1 + abs(best)))[..., None]
    if int(xp.count_nonzero(tied)) == uniforms.reshape(-1).shape[0]:
        return xp.argmax(scores, -1)
    number = tied.sum(-1)
    wanted = xp.floor(uniforms * number)  # the how-many-th of the tied ones
    return xp.argmax((xp.cumsum(tied, -1) > wanted[..., None]) * 1, -1)
