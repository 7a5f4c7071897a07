"""Before any GPU is spent: algorithms on a pool of real candidates and real judgments, many replicates, one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from llm_bridge.candidates import preference_table
from llm_bridge.oracles import Judge
from llm_bridge.policy import LMPolicy
from simbandit import algorithms
from simbandit.equilibrium import frequencies, solve
from simbandit.guarantees.statistics import mean_interval
from simbandit.hypotheses import hodge_decomposition
from simbandit.preferences import fit_bradley_terry
from simbandit.simulate import Problem, simulate
from simbandit.worlds import TableWorld

FACTORS = (0.5, 1.0, 2.0)  # of kl_coef


@dataclass(frozen=True, eq=False)
class Preflight:
    """curves: one row per algorithm, kl_coef and recorded round, with the duality gap's mean and 95 % interval over
    replicates. judge: what the judge is like on this pool. plan: tokens, FLOPs and bytes of the real run. `str` is the
    page."""

    curves: pd.DataFrame
    judge: dict[str, float]
    plan: str
    kl_coef: float

    def ranking(self, kl_coef: float | None = None) -> pd.DataFrame:
        """Algorithms by their gap at the end, smallest first."""
        near = self.kl_coef if kl_coef is None else kl_coef
        there = (self.curves["kl_coef"] - near).abs() < 1e-9 * near
        rows: Any = self.curves[there & (self.curves["round"] == self.curves["round"].max())]
        return rows.sort_values(by="gap").reset_index(drop=True)[["algorithm", "queries", "gap", "low", "high"]]

    def __str__(self) -> str:
        start = self.curves.query("round == 0")["gap"].iloc[0]
        lines = ["Judge and pool"]
        lines += [f"  {name}: {value:.3g}" for name, value in self.judge.items()]
        lines += [
            "",
            f"Duality gap after the last round (reference at kl_coef {FACTORS[0] * self.kl_coef:g}: {start:.3g})",
        ]
        for factor in FACTORS:
            kl_coef = factor * self.kl_coef
            lines.append(f"  kl_coef {kl_coef:g}")
            for rank, row in enumerate(self.ranking(kl_coef).to_dict("records"), start=1):
                interval = f"[{row['low']:.4g}, {row['high']:.4g}]"
                told = f"{row['gap']:.4g} {interval} after {row['queries']:.0f} queries"
                lines.append(f"    {rank}. {row['algorithm']}: {told}")
        return "\n".join([*lines, "", "The real run", f"  {self.plan}"])


def preflight(
    policy: LMPolicy,
    world: TableWorld,
    judge: Judge,
    names: Sequence[str],
    *,
    kl_coef: float,
    rounds: int = 60,
    batch_size: int = 16,
    replicates: int = 32,
    seed: int = 0,
) -> Preflight:
    """Runs algorithms of the registry on a pool, judged once on all pairs of candidates, at three values of kl_coef.

    world: of `candidate_pool`, with features for the model-based algorithms. Every algorithm meets the same replicates,
    so differences between them are sharper than the intervals.
    Deviation: gaps are within the pool; a policy over all responses may do better than any law on the candidates.
    """
    oracle = preference_table(world, judge)
    parts = []
    for name in names:
        for factor in FACTORS:
            results = simulate(
                Problem(world, oracle, factor * kl_coef),
                algorithms.create(name),
                rounds=rounds,
                batch_size=batch_size,
                replicates=replicates,
                seed=seed,
                metrics=["duality_gap"],
                record=sorted({0, rounds // 4, rounds // 2, rounds}),
            )
            for place, part in results.frame().groupby(["round", "queries"])["value"]:
                t, queries = np.asarray(place).tolist()
                mean, low, high = (float(v) for v in mean_interval(part.to_numpy()))
                told: dict[str, Any] = {"algorithm": name, "kl_coef": factor * kl_coef, "round": t, "queries": queries}
                parts.append(told | {"gap": mean, "low": low, "high": high})
    tokens = 2 * rounds * batch_size * policy.max_new_tokens
    plan = f"drawing and scoring the duels of {rounds} rounds x {batch_size}: " + cost(policy.model, 4 * tokens)
    return Preflight(pd.DataFrame(parts), judged(world, np.asarray(oracle.preference), kl_coef), plan, kl_coef)


def judged(world: TableWorld, preference: np.ndarray, kl_coef: float) -> dict[str, float]:
    """What decides which algorithms are safe: how intransitive the judge is, how far from Bradley-Terry, how fast the
    game turns, and how the reference covers its equilibrium. Means over prompts, each over its own candidates; the step
    size is that of the worst prompt. Raises ValueError where no prompt has two different candidates."""
    rows: list[dict[str, float]] = []
    for p, ref in zip(torch.tensor(preference), torch.tensor(np.asarray(world.ref_log_probs)), strict=True):
        offered = (~torch.isneginf(ref)).nonzero().flatten()
        p, ref = p[offered][:, offered], ref[offered]
        if len(offered) < 2:
            continue
        logits = torch.logit(p.clamp(1e-6, 1 - 1e-6))
        scores = fit_bradley_terry(p).scores
        fitted = torch.sigmoid(scores[:, None] - scores[None])
        nash = solve(p, ref, kl_coef)
        turning = float(frequencies(nash.log_probs, p).max())
        rows.append(
            {
                "candidates": len(offered),
                "share of the judge's logits that circulates (0: a reward explains it)": float(
                    hodge_decomposition((logits - logits.mT) / 2).share
                ),
                "mean |P - best Bradley-Terry fit|": float((p - fitted).abs().mean()),
                "largest equilibrium / reference probability": float((nash.log_probs - ref).max().exp()),
                "largest stable step size of mirror descent": 2 * kl_coef / (kl_coef**2 + turning**2),
            }
        )
    if not rows:
        raise ValueError("world: no prompt has two different candidates to choose from; draw more, or at a temperature")
    told = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    worst = "largest stable step size of mirror descent"
    return told | {worst: min(row[worst] for row in rows)}


def cost(model: Any, tokens: int) -> str:
    """One line: parameters, their memory, tokens and the forward FLOPs of about 2 per parameter and token."""
    parameters = sum(p.numel() for p in model.parameters())
    held = sum(p.numel() * p.element_size() for p in model.parameters())
    flops = 2 * parameters * tokens
    return f"{parameters:,} parameters ({held / 2**20:,.1f} MiB), at most about {tokens:,} tokens, {flops:.2g} FLOPs"
