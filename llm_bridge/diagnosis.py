"""What a judge and a pool are like, before any algorithm runs: does a reward explain the answers, how fast does the
game turn, what does the reference cover, and what does the restriction to the candidates cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from llm_bridge.candidates import Pool
from llm_bridge.gaps import Cost, cross_table, restriction_cost
from llm_bridge.oracles import Judge
from simbandit.draws import generator
from simbandit.equilibrium import duality_gap, frequencies, solve
from simbandit.guarantees.statistics import mean_interval
from simbandit.hypotheses import bradley_terry_test, hodge_decomposition
from simbandit.metrics import kl
from simbandit.policies import gibbs
from simbandit.preferences import fit_bradley_terry

TESTED = 6  # candidates a prompt in the test of Bradley-Terry
DUELS = 10  # a pair, at least


class JudgeTest(NamedTuple):
    """The likelihood-ratio test of Bradley-Terry with simulated duels of the judge: how many, on how many prompts, and
    its p-value."""

    duels: int
    prompts: int
    statistic: float
    p_value: float


def judged(ref_log_probs: Any, preference: Any, kl_coef: float, rewards: Any | None = None) -> dict[str, float]:
    """What decides which algorithms are safe, over a pool: means over prompts, each over its own candidates.

    ref_log_probs (X, A), preference (X, A, A), rewards (X, A) where they are what ranks (the target is then the
    reward's optimum, else the game's equilibrium). `frequency` is omega, the fastest rotation about a prompt's
    equilibrium, at the prompt that turns fastest: mirror descent is stable up to 2 kl_coef / (kl_coef^2 + omega^2).
    Raises ValueError where no prompt has two different candidates.
    """
    rows: list[dict[str, float]] = []
    for x, (p, ref) in enumerate(zip(torch.tensor(preference), torch.tensor(ref_log_probs), strict=True)):
        offered = (~torch.isneginf(ref)).nonzero().flatten()
        p, ref = p[offered][:, offered], ref[offered]
        if len(offered) < 2:
            continue
        logits = torch.logit(p.clamp(1e-6, 1 - 1e-6))
        scores = fit_bradley_terry(p).scores
        fitted = torch.sigmoid(scores[:, None] - scores[None])
        nash = solve(p, ref, kl_coef).log_probs
        target = nash if rewards is None else gibbs(torch.tensor(rewards[x])[offered], ref, kl_coef)
        rows.append(
            {
                "candidates": len(offered),
                "circulating": float(hodge_decomposition((logits - logits.mT) / 2).share),
                "misfit": float((p - fitted).abs().mean()),
                "frequency": float(frequencies(nash, p).max()),
                "largest_ratio": float((target - ref).max().exp()),
                "coverage": float((2 * target - ref).logsumexp(-1).exp()),
            }
        )
    if not rows:
        raise ValueError("world: no prompt has two different candidates to choose from; draw more, or at a temperature")
    told = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return told | {"frequency": max(row["frequency"] for row in rows)}


def reference_gap(ref_log_probs: Any, preference: Any, kl_coef: float, rewards: Any | None = None) -> float:
    """The reference's own suboptimality (with rewards) or duality gap within the pool, the mean over prompts."""
    ref = torch.tensor(ref_log_probs)
    if rewards is not None:
        return float(kl_coef * kl(ref, gibbs(torch.tensor(rewards), ref, kl_coef)).mean())
    return float(duality_gap(ref, torch.tensor(preference), ref, kl_coef).mean())


def judge_test(ref_log_probs: Any, preference: Any, budget: int, *, simulations: int = 199, seed: int = 0) -> JudgeTest:
    """Would `budget` duels of this judge reveal that no reward explains it? They are spent on all pairs of up to six
    candidates of as many prompts as get ten duels a pair, drawn with the judge's probabilities, and
    `hypotheses.bradley_terry_test` judges them: a small p-value refutes Bradley-Terry at this budget, a large one does
    not prove it. Contexts without three candidates cannot contradict it."""
    ref = torch.tensor(ref_log_probs)
    wide = [x for x in range(len(ref)) if int((~torch.isneginf(ref[x])).sum()) >= 3]
    if not wide:
        return JudgeTest(0, 0, 0.0, 1.0)
    cost = TESTED * (TESTED - 1) // 2 * DUELS
    chosen = wide[: max(1, budget // cost)]
    duels = max(DUELS, budget // (len(chosen) * (TESTED * (TESTED - 1) // 2)))
    wins, size = np.zeros((len(chosen), TESTED, TESTED)), 0
    for row, x in enumerate(chosen):
        offered = (~torch.isneginf(ref[x])).nonzero().flatten()[:TESTED].numpy()
        a, b = np.triu_indices(len(offered), 1)
        won = generator(seed, x, "judge test").binomial(duels, np.asarray(preference)[x][offered[a], offered[b]])
        wins[row, a, b], wins[row, b, a] = won, duels - won
        size += duels * len(a)
    found = bradley_terry_test(torch.from_numpy(wins), simulations=simulations, seed=seed)
    return JudgeTest(size, len(chosen), found.statistic, found.p_value)


def restriction(pool: Pool, held: Pool | None, judge: Judge, kl_coef: float, *, rewarded: bool) -> pd.DataFrame:
    """What it costs to look at K candidates only: a row per K (powers of two up to the pool's, nested) with the gap,
    over all responses, of the best policy on them (the reference restricted and tilted), its interval over prompts, the
    part of it that is paid for silence (`gaps.Cost`), and the effective number of held-out draws behind it, the median
    of prompts.

    rewarded: by the frames' rewards, the suboptimality; else by the judge, the duality gap. Held out are the pool's own
    draws past the first K, and those of `held`, fresh draws of the same policy. See `gaps.restriction_cost`.
    """
    sizes = [2**i for i in range(1, 20) if 2**i < pool.k] + [pool.k]
    rows, parts = [], _parts(pool, held, judge, rewarded)
    for k in sizes:
        if held is None and pool.k - k < 2:
            continue
        found = [_prompt_cost(part, k, kl_coef, rewarded) for part in parts]
        costs, silences, effective = (np.array([float(c[i]) for c in found]) for i in range(3))
        mean, low, high = (float(v) for v in mean_interval(costs))
        told = {"k": k, "cost": mean, "low": max(low, 0.0), "high": high}
        rows.append(told | {"silence": silences.mean(), "effective": float(np.median(effective))})
    return pd.DataFrame(rows, columns=["k", "cost", "low", "high", "silence", "effective"])


class _Part(NamedTuple):
    """One prompt: the reference of its different responses (those of the pool first), at which of the pool's draws each
    was first seen, and of every draw (held-out ones last) which response it is; values by reward, or win
    probabilities of all responses against the pool's candidates."""

    ref: Tensor
    first: Tensor
    which: list[int]
    own: int
    rewards: Tensor | None
    wins: Tensor | None


def _parts(pool: Pool, held: Pool | None, judge: Judge, rewarded: bool) -> list[_Part]:
    frames = [pool.frame] if held is None else [pool.frame, held.frame]
    parts = []
    for x in pool.frame["prompt"].drop_duplicates():
        responses: dict[tuple[int, ...], int] = {}
        text, ref, reward, which, first = [], [], [], [], []
        for number, frame in enumerate(frames):
            mine: Any = frame[frame["prompt"] == x]
            rows = mine.to_dict("records")
            draws: dict[int, int] = {}
            for row in rows:
                key = tuple(row["tokens"])
                if key not in responses:
                    responses[key] = len(responses)
                    text.append((row["prompt_text"], row["response_text"]))
                    ref.append(row["ref_log_prob"])
                    reward.append(row.get("reward", 0.0))
                    first.append(min(row["draws"]) if number == 0 else pool.k)
                draws |= dict.fromkeys(row["draws"], responses[key])
            which += [draws[i] for i in sorted(draws)]
        own = sum(at < pool.k for at in first)
        wins = None if rewarded else cross_table(judge, text, text[:own])
        parts.append(
            _Part(
                torch.tensor(ref, dtype=torch.float64),
                torch.tensor(first),
                which,
                own,
                torch.tensor(reward, dtype=torch.float64) if rewarded else None,
                wins,
            )
        )
    return parts


def _prompt_cost(part: _Part, k: int, kl_coef: float, rewarded: bool) -> Cost:
    offered = (part.first < k).nonzero().flatten()
    inside = part.ref[offered]
    if rewarded:
        assert part.rewards is not None
        values = part.rewards
    else:
        assert part.wins is not None
        table = part.wins[offered][:, offered]
        equilibrium = solve(table, inside.log_softmax(-1), kl_coef).log_probs
        values = part.wins[:, offered] @ equilibrium.exp()
    out = torch.tensor(part.which[k:])
    return restriction_cost(
        inside[None],
        values[offered][None],
        values[out][None],
        (part.first[out] >= k)[None],
        kl_coef,
        sides=1 if rewarded else 2,
    )


def explains(rewards: Any, ref_log_probs: Any, preference: Any) -> bool:
    """Whether the answers are Bradley-Terry of these rewards, so that a reward's optimum is what the judge asks for."""
    ref, r = np.asarray(ref_log_probs), np.asarray(rewards)
    there = np.isfinite(ref)
    both = there[:, :, None] & there[:, None]
    implied = 1 / (1 + np.exp(r[:, None] - r[:, :, None]))
    return bool(np.abs(np.where(both, implied - np.asarray(preference), 0.0)).max() < 1e-6)


def rank_agreement(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's tau-b of two lists of gaps."""
    from scipy.stats import kendalltau

    found: Any = kendalltau(first, second)
    return float(np.nan_to_num(found.statistic, nan=1.0))
