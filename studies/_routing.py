"""The world of `alpaca_routing`: which model should answer an instruction, by what is known before it has answered."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from simbandit import off_policy
from simbandit.draws import Draws, generator
from simbandit.snapshots import Snapshot
from simbandit.types import Contexts
from simbandit.worlds import Realisation
from studies._answers import CLIP, load

Features = Literal["routing", "arm", "answer"]
INSTRUCTION_DIM, ARM_DIM = 5, 4
HISTORY, HELD_OUT = 0.25, 0.25  # shares of the instructions; the rest is routed online


@dataclass(frozen=True, eq=False)
class Routing:
    """X instructions x A models. Each replicate splits the instructions anew into history (every model's answer was
    bought and judged in the past), online (drawn with replacement, the learner routes them) and held out (never drawn,
    policies are judged on them). The pool is online, then held out.

    wins (N, A): probability that the annotator prefers the answer to the baseline's, NaN where there is no answer; text
    (N, A, D): features of the texts; probe: the arm whose answer exists before routing; hack: the arm that fools the
    annotator, -1 if it is left out; data: the table's name.
    reward: "win" is wins; "logit" its logit, clipped, of which duels are Bradley-Terry.
    features, scaled to a norm of about 1:
        "routing": 1, e_a and z(x) (x) m_a. z: INSTRUCTION_DIM principal components of the probe's text features; m:
            ARM_DIM right singular vectors of the history's wins. Neither looks at what is bought online.
        "arm": 1 and e_a. No context.
        "answer": a constant, the answer's own text features and its history's mean. They need all A answers.
    """

    wins: np.ndarray
    text: np.ndarray
    probe: int
    hack: int
    data: str
    reward: Literal["win", "logit"] = "win"
    features: Features = "routing"

    @property
    def sizes(self) -> tuple[int, int]:
        """Instructions in the history, and held out."""
        N = len(self.wins)
        return round(HISTORY * N), round(HELD_OUT * N)

    def order(self, draws: Draws) -> np.ndarray:
        """(R, N): the instructions, history first, then online, then held out."""
        return draws.once("split", len(self.wins), law="uniform").cpu().numpy().argsort(axis=1)

    def instance(self, replicates: int, draws: Draws) -> Realisation:
        order, (past, held) = self.order(draws), self.sizes
        pool = order[:, past:]
        phi = np.stack([self.table(own[:past], own[past:]) for own in order])
        wins = self.wins[pool]  # (R, X, A)
        offered = np.isfinite(wins)
        with np.errstate(divide="ignore"):
            logit = np.clip(np.log(wins) - np.log1p(-wins), -CLIP, CLIP)
            ref = np.log(offered / offered.sum(-1, keepdims=True))
        X = pool.shape[1]
        law = np.concatenate([np.full(X - held, 1 / (X - held)), np.zeros(held)])
        given = Contexts(
            index=torch.arange(X, device=draws.device).expand(replicates, -1),
            features=torch.from_numpy(phi * offered[..., None]).to(draws.device),
            ref_log_probs=torch.from_numpy(ref).to(draws.device),
            weights=torch.from_numpy(law).to(draws.device).expand(replicates, -1),
        )
        rewards = np.where(offered, wins if self.reward == "win" else logit, 0.0)
        bounds = (0.0, 1.0) if self.reward == "win" else (-CLIP, CLIP)
        return Realisation(
            replicates,
            wins.shape[-1],
            phi.shape[-1],
            bounds,
            given,
            given,
            reward_table=torch.from_numpy(rewards).to(draws.device),
            draws=draws,
        )

    def table(self, past: np.ndarray, asked: np.ndarray) -> np.ndarray:
        """Features (X, A, d) of the instructions asked, given those of the past."""
        A = self.wins.shape[1]
        history = self.wins[past]
        mean = arm_means(history)
        arms = np.broadcast_to(np.concatenate([np.ones((A, 1)), np.eye(A)], axis=1), (len(asked), A, A + 1))
        if self.features == "arm":
            return arms
        if self.features == "answer":
            centre = np.nanmean(self.text[past], axis=(0, 1))
            size = np.sqrt(np.nanmean(np.square(self.text[past] - centre).sum(-1)))
            shown = np.nan_to_num((self.text[asked] - centre) / size)
            known = np.broadcast_to(np.stack([np.ones(A), mean], axis=-1), (len(asked), A, 2))
            return np.concatenate([known, shown], axis=-1)
        centred = np.where(np.isfinite(history), history - mean, 0.0)
        m = np.linalg.svd(centred, full_matrices=False)[2][:ARM_DIM].T * np.sqrt(A)  # (A, ARM_DIM), entries of order 1
        z = components(self.text[past, self.probe], self.text[asked, self.probe])
        crossed = z[:, None, :, None] * m[None, :, None, :] / np.sqrt(z.shape[1] * m.shape[1])
        return np.concatenate([arms, crossed.reshape(len(asked), A, -1)], axis=-1)


def arm_means(wins: np.ndarray) -> np.ndarray:
    """(A,) mean over the instructions that an arm has answered, 0 for none."""
    return np.nansum(wins, axis=0) / np.maximum(np.isfinite(wins).sum(0), 1)


def components(past: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """(X, INSTRUCTION_DIM) principal components of rows, of unit variance in the past."""
    mean = past.mean(0)
    _, scale, axes = np.linalg.svd(past - mean, full_matrices=False)
    return (asked - mean) @ axes[:INSTRUCTION_DIM].T / (scale[:INSTRUCTION_DIM] / np.sqrt(len(past)))


def world(path: Path | None, instructions: int | None = None, *, keep_hack: bool = True, **choice: Any) -> Routing:
    """The table of `_answers.load`, with or without the hacking arm. The probe is the arm that ties with itself (the
    baseline), or the first one."""
    data = load(path, instructions)
    offered = np.isfinite(np.asarray(data.world.ref_log_probs))
    wins = np.where(offered, data.wins, np.nan)
    text = np.where(offered[..., None], np.asarray(data.world.features), np.nan)
    kept = [a for a in range(wins.shape[1]) if keep_hack or a != data.hack]
    wins, text = wins[:, kept], text[:, kept]
    baseline = np.flatnonzero((wins == 0.5).all(0) & np.isfinite(text).all((0, 2)))
    probe = int(baseline[0]) if len(baseline) else 0
    return Routing(wins, text, probe, data.hack if keep_hack else -1, data.name, **choice)


# ---------------------------------------------------------------------------------------------------------- metrics


@dataclass(frozen=True, eq=False)
class Split:
    """What metrics look up of some replicates: the pool's instructions (R, X), the best fixed arm of the online ones in
    hindsight (R,), the best answers to each (R, X)."""

    pool: np.ndarray
    fixed: np.ndarray
    best: np.ndarray


@cache
def split(world: Routing, seed: int, replicates: tuple[int, ...]) -> Split:
    past, held = world.sizes
    pool = world.order(Draws(seed, replicates))[:, past:]
    online = np.stack([arm_means(world.wins[own[: len(own) - held]]) for own in pool])
    return Split(pool, online.argmax(-1), np.nanmax(world.wins[pool], axis=-1))


def _split(s: Snapshot, world: Routing) -> Split:
    draws = s.instance.draws
    return split(world, draws.seed, tuple(draws.replicates))


def _asked(s: Snapshot, world: Routing) -> tuple[np.ndarray, Split] | None:
    """Instructions asked this round (R, B) as places of the pool, and the split."""
    if s.actions is None or s.contexts is None or s.contexts.index is None:
        return None
    return s.contexts.index.cpu().numpy(), _split(s, world)


def _shown(s: Snapshot, world: Routing, place: np.ndarray, found: Split) -> np.ndarray:
    """(R, B): wins of the answers shown, the mean of both in a duel."""
    assert s.actions is not None
    ids = np.take_along_axis(found.pool, place, axis=1)
    return world.wins[ids[..., None], s.actions.cpu().numpy()].mean(-1)


def routing_regret(s: Snapshot, world: Routing) -> Tensor | None:
    """Wins lost against the best answer to each instruction asked."""
    asked = _asked(s, world)
    if asked is None:
        return None
    place, found = asked
    lost = np.take_along_axis(found.best, place, axis=1) - _shown(s, world, place, found)
    return torch.from_numpy(lost.mean(1))


def fixed_regret(s: Snapshot, world: Routing) -> Tensor | None:
    """Wins lost against the arm that is best on the online instructions, shown always; negative where routing pays."""
    asked = _asked(s, world)
    if asked is None:
        return None
    place, found = asked
    ids = np.take_along_axis(found.pool, place, axis=1)
    fixed = world.wins[ids, found.fixed[:, None]]
    return torch.from_numpy(np.nanmean(fixed - _shown(s, world, place, found), axis=1))


def hack_share(s: Snapshot, world: Routing) -> Tensor | None:
    """Share of the hacking arm among the answers shown."""
    return None if s.actions is None else (s.actions == world.hack).double().mean((1, 2))


def held_out_wins(s: Snapshot, world: Routing) -> Tensor:
    """E_pi[wins] over the instructions held out."""
    held, pool = world.sizes[1], _split(s, world).pool
    wins = np.nan_to_num(world.wins[pool[:, -held:]])
    return (s.log_probs[:, -held:].exp() * torch.from_numpy(wins)).sum(-1).mean(-1)


# -------------------------------------------------------------------------------------------------- fixed comparisons


def landmarks(world: Routing, replicates: int, seed: int, device: str) -> pd.DataFrame:
    """What can be had on the held-out instructions: the arm that is best online, the best arm of each instruction, the
    routing that ridge regression on *all* online answers gives (no exploration could know more), and every arm alike.
    And facts of the table as a whole."""
    del device
    rows = []
    for r in range(replicates):
        phi, wins, online = _one(world, seed, r)
        full = np.isfinite(wins[:online])
        theta = _ridge(phi[:online][full], wins[:online][full])
        scores = np.where(np.isfinite(wins[online:]), phi[online:] @ theta, -np.inf)
        held = wins[online:]
        values = {
            "held_out/fixed": np.nanmean(held[:, arm_means(wins[:online]).argmax()]),
            "held_out/best": np.nanmax(held, axis=1).mean(),
            "held_out/full information": held[np.arange(len(held)), scores.argmax(1)].mean(),
            "held_out/uniform": np.nanmean(held, axis=1).mean(),
            "facts/fixed": arm_means(world.wins).max(),
            "facts/best": np.nanmax(world.wins, axis=1).mean(),
        }
        rows += [(r, 1, 0.0, name, float(value)) for name, value in values.items()]
    return pd.DataFrame(rows, columns=["replicate", "round", "queries", "metric", "value"])


def _one(world: Routing, seed: int, replicate: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Features (X, A, d) and wins (X, A) of one replicate's pool, and how many of it are online."""
    past, held = world.sizes
    own = world.order(Draws(seed, [replicate]))[0]
    return world.table(own[:past], own[past:]), world.wins[own[past:]], len(own) - past - held


def _ridge(phi: np.ndarray, r: np.ndarray, ridge: float = 1.0) -> np.ndarray:
    return np.linalg.solve(phi.T @ phi + ridge * np.eye(phi.shape[1]), phi.T @ r)


def _logged(random: np.random.Generator, law: np.ndarray, wins: np.ndarray, n: int) -> pd.DataFrame:
    """n instructions drawn alike, each answered by an arm of the law (X, A)."""
    x = random.integers(len(law), size=n)
    a = (law[x].cumsum(1) > random.random((n, 1))).argmax(1)
    return pd.DataFrame({"context": x, "action": a, "reward": wins[x, a], "propensity": law[x, a]})


def estimated(world: Routing, n: int, replicates: int, seed: int, device: str) -> pd.DataFrame:
    """Off-policy estimates from n logged answers of the value of a routing policy, which ridge regression on n other
    logged answers proposed. The log: half of the time a uniform arm, half of the time the history's best one. Per
    method: error (estimate - value on the online instructions, exact), covered (0 or 1) and width of the 95 % interval.
    """
    del device
    rows = []
    for r in range(replicates):
        phi, wins, online = _one(world, seed, r)
        phi, wins = phi[:online], wins[:online]
        offered = np.isfinite(wins)
        past = world.order(Draws(seed, [r]))[0][: world.sizes[0]]
        best = int(arm_means(world.wins[past]).argmax())
        law = 0.5 * offered / offered.sum(1, keepdims=True)
        law[:, best] += 0.5
        law[~offered] = 0.0
        law /= law.sum(1, keepdims=True)
        random = generator(seed, r, "logs", n)
        proposal, logs = (_logged(random, law, wins, n) for _ in range(2))
        seen = proposal["context"].to_numpy(), proposal["action"].to_numpy()
        theta = _ridge(phi[seen], proposal["reward"].to_numpy())
        choice = np.where(offered, phi @ theta, -np.inf).argmax(1)
        target = np.zeros_like(law)
        target[np.arange(online), choice] = 1.0
        truth = wins[np.arange(online), choice].mean()
        for method in off_policy.METHODS:
            found = off_policy.value(logs, target, method=method, features=phi)
            values = {
                "error": found.estimate - truth,
                "covered": float(found.low <= truth <= found.high),
                "width": found.high - found.low,
            }
            rows += [(r, 1, float(n), f"{name}/{method}", value) for name, value in values.items()]
    return pd.DataFrame(rows, columns=["replicate", "round", "queries", "metric", "value"])
