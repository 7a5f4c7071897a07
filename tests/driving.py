"""Game dynamics driven by hand: every iterate, from any start, on many games at once (the games are the contexts)."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from simbandit.algorithms.dynamics import GameDynamics
from simbandit.draws import Draws
from simbandit.policies import Tabular
from simbandit.types import Contexts, Setting


def random_games(seed: int, n: int, A: int, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Preferences (n, A, A), uniform below the diagonal, and references (n, A)."""
    rng = np.random.default_rng(seed)
    lower = np.tril(rng.random((n, A, A)), -1)
    P = lower + np.triu(1 - lower.transpose(0, 2, 1), 1) + np.eye(A) / 2
    return torch.from_numpy(P), torch.log_softmax(torch.from_numpy(spread * rng.normal(size=(n, A))), -1)


def iterates(
    rule: GameDynamics, preference: Tensor, ref: Tensor, kl_coef: float, rounds: int, start: Tensor | None = None
) -> Tensor:
    """theta after 0, 1, ..., `rounds` evaluations, (rounds + 1, G, A)."""
    ref = ref.expand(preference.shape[:-1])[None]
    pool = Contexts(index=torch.arange(ref.shape[1])[None], ref_log_probs=ref)
    setting = Setting(1, rounds, 1, ref.shape[-1], None, kl_coef, (0.0, 1.0), pool, Tabular(ref), "full", 0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(step_size|damping): .* stability limit", category=UserWarning)
        state, now = rule.init(setting), Draws(0, 1).at(0)
    if start is not None:
        state.theta = torch.log_softmax(start.expand(ref.shape), -1)
        state.policy = Tabular(state.theta)
    seen = [state.theta[0]]
    for _ in range(rounds):
        asked = rule.query(state)
        wins = (preference @ asked.exp()[0, ..., None]).squeeze(-1)[None]
        state, _ = rule.update(state, pool, asked, wins, now)
        seen.append(state.theta[0])
    return torch.stack(seen)
