"""What the studies of games share: worlds without rewards, exact tables, the Bradley-Terry limit, rows of results."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from simbandit.algorithms.dynamics import GameDynamics, GameState
from simbandit.draws import Draws
from simbandit.metrics import Snapshot
from simbandit.policies import Tabular
from simbandit.types import Oracle, Setting, World
from simbandit.worlds import TableWorld


def world_of(n_actions: int, n_contexts: int = 1) -> TableWorld:
    """A uniform reference and nothing else."""
    return TableWorld(np.full((n_contexts, n_actions), -math.log(n_actions)))


def tables(world: World, oracle: Oracle, replicates: int, seed: int, device: str) -> tuple[Tensor, Tensor]:
    """P(a > b | x), (R, X, A, A), and the reference's log-probabilities (R, X, A)."""
    instance = world.instance(replicates, Draws(seed, replicates, device))
    pool = instance.evaluation
    return oracle.bind(instance).win_table(pool), pool.ref_log_probs


def frame_of(values: Mapping[tuple[str, int], Tensor]) -> pd.DataFrame:
    """The rows of a Task: (metric, round) -> one value per replicate; round doubles as `queries`."""
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "replicate": range(len(per_replicate)),
                    "round": t,
                    "queries": float(t),
                    "metric": metric,
                    "value": per_replicate.cpu().numpy(),
                }
            )
            for (metric, t), per_replicate in values.items()
        ],
        ignore_index=True,
    )


def total_variation(log_p: Tensor, log_q: Tensor) -> Tensor:
    """(..., A) -> (...)"""
    return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)


def probability(s: Snapshot, action: int) -> Tensor:
    return s.over_contexts(s.log_probs.exp()[..., action])


PROBABILITIES = [(f"probability_{i}", partial(probability, action=i)) for i in range(3)]


@dataclass(frozen=True)
class StartedAt(GameDynamics):
    """`rule`, from another policy than the reference: probabilities, the same in every context."""

    rule: GameDynamics
    start: tuple[float, ...]

    def init(self, setting: Setting) -> GameState:
        state = self.rule.init(setting)
        start = torch.tensor(self.start, dtype=state.ref.dtype, device=state.ref.device).log()
        state.theta = start.expand_as(state.ref)
        state.policy = Tabular(state.theta)
        return state

    def query(self, state: GameState) -> Tensor:
        return self.rule.query(state)

    def step(self, state: GameState, g: Tensor) -> Tensor:
        return self.rule.step(state, g)


def both_from(log_probs: Tensor) -> Tensor:
    """Log-weights (..., A, A) of the pairs of two independent draws of one policy."""
    return log_probs[..., :, None] + log_probs[..., None, :]


def bradley_terry_limit(preference: Tensor, log_weights: Tensor, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The scores (..., A) to which Bradley-Terry's maximum likelihood tends when the pairs (a, b) of duels have the law
    w_ab = exp(log_weights) (symmetric, positive): sum_b w_ab (P_ab - sigma(r_a - r_b)) = 0 for every a. Also the
    largest of these sums at the end, each divided by sum_b w_ab.

    Newton on the divided sums, in which rare actions keep their digits, with steps of log(1 + d) / d, d the step's
    width, which cannot overshoot (generalised self-concordance). The scores' mean under w is 0. Needs a likelihood with
    a maximum: no set of actions that always beats the rest.
    """
    rows = torch.softmax(log_weights, -1).expand(preference.shape)
    pin = torch.softmax(torch.logsumexp(log_weights, -1), -1).expand(preference.shape[:-1])
    r = torch.zeros_like(pin) if start is None else start
    for _ in range(200):
        fitted = torch.sigmoid(r[..., :, None] - r[..., None, :])
        slope = rows * fitted * (1 - fitted)
        matrix = torch.diag_embed(slope.sum(-1)) - slope + pin[..., None, :]
        step = torch.linalg.solve(matrix, (rows * (preference - fitted)).sum(-1))
        width = (step.amax(-1) - step.amin(-1))[..., None].clamp_min(1e-300)
        r = r + step * torch.log1p(width) / width
        if float(width.max()) < 1e-12:
            break
    fitted = torch.sigmoid(r[..., :, None] - r[..., None, :])
    return r - (pin * r).sum(-1, keepdim=True), (rows * (preference - fitted)).sum(-1).abs().amax(-1)
