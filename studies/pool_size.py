"""How much K drawn candidates cost: the optimum within a pool against the optimum over all responses, exactly.

No paper's figure. Model-based methods meet a language model through a pool: K responses drawn from the reference, its
law renormalised over the different ones (`llm_bridge.candidate_pool`). Here the model is a GPT-2 with 5 tokens and
responses of 4 (625 of them, 3 prompts), so the optimum over all responses is known.

Derived. The pool's optimum is pi* restricted to the pool S and renormalised, since both are the reference tilted by
exp(r / kl_coef); hence its suboptimality is kl_coef KL(pi_S || pi*) = -kl_coef log pi*(S), and by convexity its mean is
at least -kl_coef log E pi*(S), where E pi*(S) = sum_y pi*(y) (1 - (1 - ref(y))^K).

Grid. K from 2 to 128 (pools are nested) x kl_coef .1, .3, 1. `reward`: rewards N(0, 1); suboptimality of the pool's
optimum, what the pool itself reports for its value, minus the true optimum (renormalised over different candidates, and
by drawn counts), and the candidates that are different. `game`: an annotator whose logits are the differences of such
rewards plus a circulation of root mean square 1, and responses of 3; the exact duality gap, against all responses, of
the pool's equilibrium. `share`: of the same quantity for the reference.

Found: the cost is large where the reference is nearly optimal (large kl_coef, and games), since -log ref(pool) is lost
whatever the rewards: at K = 16 the pool's optimum keeps .43, .64, 3.8 of the reference's suboptimality (kl_coef .1, .3,
1), and its equilibrium in the game 1.4, 6.9, 71 of the reference's gap. Two guesses fail by that. The share is one of
a policy that never leaves the pool; one that tilts the whole law by what the pool taught does not pay it.

What differs: candidates are drawn from the listed law, by the simulator's streams, and there is no learner: this is the
floor under every method on a pool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from llm_bridge import need_extra
from llm_bridge.enumerable import EnumerableLM
from simbandit import plotting
from simbandit.draws import Draws
from simbandit.equilibrium import duality_gap, solve
from simbandit.guarantees import Identity, Monotone, Number, Ordering
from simbandit.metrics import kl
from simbandit.oracles import HodgeMix
from simbandit.policies import gibbs, inverse_cdf, normalise
from simbandit.study import Settings, Study, Task
from studies._language import gpt2

SIZES = (2, 4, 8, 16, 32, 64, 128)
KL_COEFS = (0.1, 0.3, 1.0)
PROMPTS = [[0], [1, 2], [4, 0, 3]]
LENGTH = {"reward": 4, "game": 3}  # the game's solution inverts matrices of all responses


def pools(ref: Tensor, replicates: int, seed: int) -> Tensor:
    """Candidates of every replicate and prompt, (R, X, 128); a pool of K takes the first K."""
    uniforms = Draws(seed, replicates).once("pool", len(ref), SIZES[-1], law="uniform")
    rows = ref.expand(replicates, -1, -1)
    return torch.stack([inverse_cdf(rows, uniforms[..., k]) for k in range(SIZES[-1])], dim=-1)


def reward_pool(size: int, kl_coef: float, replicates: int, seed: int, device: str) -> pd.DataFrame:
    """The optimum of a reward within the pool, judged over all responses."""
    del device
    ref = listed("reward", seed).table.detach()[0]
    rewards = torch.from_numpy(np.random.default_rng(seed).normal(size=tuple(ref.shape)))
    drawn = pools(ref, replicates, seed)[..., :size]
    held = offered(drawn, ref)
    optimum, best = gibbs(rewards, ref, kl_coef), value(rewards, ref, kl_coef)
    within = normalise(torch.where(held, ref, -torch.inf))
    pi = gibbs(rewards.expand(held.shape), within, kl_coef)
    mass = torch.where(held, optimum.exp(), 0.0).sum(-1)
    expected = (optimum.exp() * -torch.expm1(size * torch.log1p(-ref.exp()))).sum(-1)
    suboptimality = kl_coef * kl(pi, optimum)
    counted = kl_coef * ((rewards.expand(held.shape).gather(-1, drawn) / kl_coef).logsumexp(-1) - np.log(size))
    start = kl_coef * kl(ref, optimum).mean()
    return frame_of(
        {
            "suboptimality": suboptimality,
            "closed form": -kl_coef * mass.log(),
            "above the bound": suboptimality + kl_coef * expected.log(),
            "share": suboptimality / start,
            "reported - true": value(rewards.expand(held.shape), within, kl_coef) - best,
            "reported by counts - true": counted - best,
            "different candidates": held.sum(-1).double(),
        }
    )


def game_pool(size: int, kl_coef: float, replicates: int, seed: int, device: str) -> pd.DataFrame:
    """The equilibrium of a game among the pool's candidates, judged against all responses."""
    del device
    lm = listed("game", seed)
    ref = lm.table.detach()[0]
    rewards = np.random.default_rng(seed).normal(size=tuple(ref.shape))
    instance = lm.world(rewards=rewards).instance(1, Draws(seed, 1))
    table = HodgeMix(curl=1.0).bind(instance).win_table(instance.evaluation)[0]  # (X, A, A)
    drawn = pools(ref, replicates, seed)[..., :size]
    within = normalise(torch.where(offered(drawn, ref), ref, -torch.inf))
    gap = torch.stack([duality_gap(solve(table, law, kl_coef).log_probs, table, ref, kl_coef) for law in within])
    return frame_of({"duality_gap": gap, "share": gap / duality_gap(ref, table, ref, kl_coef).mean()})


def listed(part: str, seed: int) -> EnumerableLM:
    return EnumerableLM(gpt2(5, window=8, width=16, seed=seed), PROMPTS, LENGTH[part])


def offered(drawn: Tensor, ref: Tensor) -> Tensor:
    """Which responses are in the pool, (R, X, A)."""
    nowhere = torch.zeros(*drawn.shape[:-1], ref.shape[-1], dtype=torch.bool)
    return nowhere.scatter(-1, drawn, torch.ones_like(drawn, dtype=torch.bool))


def value(rewards: Tensor, ref: Tensor, kl_coef: float) -> Tensor:
    """max J = kl_coef log E_ref exp(r / kl_coef)."""
    return kl_coef * (ref + rewards / kl_coef).logsumexp(-1)


def frame_of(values: Mapping[str, Tensor]) -> pd.DataFrame:
    """Means over prompts, a row per replicate and metric."""
    parts = [
        pd.DataFrame({"replicate": range(len(v)), "round": 0, "queries": 0.0, "metric": name, "value": v.mean(-1)})
        for name, v in values.items()
    ]
    return pd.concat(parts, ignore_index=True)


def cells(settings: Settings, tuned: Mapping[str, Any]) -> Sequence[Task]:
    del tuned
    need_extra()
    sizes, coefficients = ((4, 16, 64), (0.3,)) if settings.smoke else (SIZES, KL_COEFS)
    grid = []
    for part, function, most in (("reward", reward_pool, settings.replicates), ("game", game_pool, 16)):
        for kl_coef in coefficients:
            for size in sizes:
                labels = {"part": part, "kl_coef": kl_coef, "size": size}
                arguments = {"size": size, "kl_coef": kl_coef}
                grid.append(Task(labels, function, arguments, min(most, settings.replicates), settings.seed))
    return grid


DERIVED, GUESS = "derived", "our guess beforehand"
claims = (
    Identity(
        "suboptimality of the pool's optimum = -kl_coef log pi*(pool)",
        DERIVED,
        "suboptimality",
        {"part": "reward"},
        1e-10,
        other="closed form",
    ),
    *(
        Monotone(f"more candidates cost less, {part}, kl_coef {c:g}", source, metric, where, "size", "decreasing")
        for part, metric, source in (("reward", "suboptimality", DERIVED), ("game", "duality_gap", GUESS))
        for c in KL_COEFS
        for where in ({"part": part, "kl_coef": c},)
    ),
    *(
        Number(
            f"at least -kl_coef log E pi*(pool), kl_coef {c:g}, K = {k}",
            DERIVED,
            "above the bound",
            {"part": "reward", "kl_coef": c, "size": k},
            0.0,
            0.0,
            "at least",
        )
        for c in KL_COEFS
        for k in (4, 16, 64)
    ),
    *(
        Number(
            f"{what} reports too low a value, kl_coef .3, K = {k}",
            source,
            metric,
            {"part": "reward", "kl_coef": 0.3, "size": k},
            0.0,
            0.0,
            "at most",
        )
        for what, metric, source in (
            ("a pool of different candidates", "reported - true", GUESS),
            ("a pool that counts what was drawn", "reported by counts - true", DERIVED),
        )
        for k in (4, 16, 64)
    ),
    *(
        Number(
            f"16 candidates leave at most half of the reference's suboptimality, kl_coef {c:g}",
            GUESS,
            "share",
            {"part": "reward", "kl_coef": c, "size": 16},
            0.5,
            0.0,
            "at most",
        )
        for c in KL_COEFS
    ),
    *(
        Ordering(
            f"K = 16 costs a game a smaller share than a reward, kl_coef {c:g}",
            GUESS,
            "share",
            {"part": "game"},
            {"part": "reward"},
            {"kl_coef": c, "size": 16},
        )
        for c in KL_COEFS
    ),
)


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=3, height=2.7)
    shown = [c for c in KL_COEFS if c in set(frame["kl_coef"])]
    names = {c: f"kl_coef {c:g}" for c in shown}
    panels = (
        ("share", "reward", "(a) reward: gap / reference's gap"),
        ("share", "game", "(b) game: gap / reference's gap"),
        ("reported - true", "reward", "(c) the value a pool reports"),
    )
    for ax, (metric, part, title) in zip(axes[0], panels, strict=True):
        plotting.curves(
            ax, frame, metric, "kl_coef", x="size", where={"part": part}, order=shown, names=names, legend=False
        )
        ax.set_xscale("log", base=2)
        ax.set_xlabel("candidates drawn, K")
        ax.set_ylabel("share\n(lower is better)" if metric == "share" else "reported - true [reward]")
        ax.axhline(1 if metric == "share" else 0, color="0.5", linewidth=0.8)
        ax.set_yscale("log" if metric == "share" else "linear")
        ax.set_title(title)
    plotting.legend_above(figure, axes[0, 0])
    return figure


study = Study(
    name="pool_size",
    title="What K drawn candidates cost: the pool's optimum against the policy's, every response listed",
    source="own design; no paper's figure",
    cells=cells,
    claims=claims,
    plot=plot,
    replicates=64,
    smoke_replicates=8,
)
