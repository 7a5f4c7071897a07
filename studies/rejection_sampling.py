"""Rejection sampling of the Gibbs policy, in one step or in GSHF's chain of steps: acceptance, cost and bias, exactly.

Source: GSHF (Xiong et al. 2024, 2312.11456), section on practical devices: instead of proposing from pi_0 and accepting
with exp((r - max r) / kl_coef), go pi_0 -> pi_0 exp(r / eta_1) -> ... -> pi_0 exp(r / eta_N), 1 / eta_i = i / (N
kl_coef), so that each step is feasible; on language models its reward-KL curve dominates that of one step (RSO).

World: 20 contexts x 500 actions, features on the sphere of R^8, |theta*| = 2, uniform reference; the scores are the
true rewards, so that nothing is learnt and every number is exact given the world. Grid: kl_coef 2 ... .02, 1 to 16
steps; per step a budget of proposals, after which a draw is taken unconditionally.

What is counted. The acceptance rates of the steps multiply to the one-step rate, whatever the number of steps: a chain
whose every proposal is itself made by the chain saves nothing. It saves where each intermediate law can be drawn from
directly, at the price of one proposal: in GSHF because a model is trained to it. `proposals` is that cost, the sum of
1 / rate over steps, mean over contexts; `proposals_nested` is the product. `total_variation` is the distance to the
Gibbs policy with a finite budget per step; `bias` the suboptimality of that law.

What differs: no language model and no learnt reward; the maximum is over all actions, not over the draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from simbandit import plotting
from simbandit.draws import Draws
from simbandit.guarantees import Identity, Monotone, Number, Ordering
from simbandit.metrics import kl
from simbandit.policies import gibbs, multi_step_rejection
from simbandit.study import Settings, Study, Task
from simbandit.worlds import LinearWorld

KL_COEFS = (2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.02)
STEPS = (1, 2, 4, 8, 16)
BUDGETS = tuple(4**i for i in range(9))  # proposals per step
UNLIMITED = 10**9
PAPER, DERIVED = "2312.11456, multi-step rejection sampling", "derived"


def chain(world: LinearWorld, kl_coef: float, steps: int, replicates: int, seed: int, device: str) -> pd.DataFrame:
    """Costs of the chain without a budget (round 0), and bias with one (round and queries: proposals per step)."""
    instance = world.instance(replicates, Draws(seed, replicates, device))
    pool = instance.evaluation
    rewards, ref = instance.rewards(pool), pool.ref_log_probs
    target = gibbs(rewards, ref, kl_coef)
    _, log_rates = multi_step_rejection(ref, rewards, kl_coef, steps, UNLIMITED)
    _, log_one = multi_step_rejection(ref, rewards, kl_coef, 1, UNLIMITED)
    one, q_one = log_one[..., 0], 0.5 * (target.exp() - ref.exp()).abs().sum(-1)
    rows = {
        ("acceptance", 0): log_rates.exp().amin(-1).mean(-1),  # of the hardest step
        ("proposals", 0): (-log_rates).exp().sum(-1).mean(-1),
        ("proposals_nested", 0): (-log_rates.sum(-1)).exp().mean(-1),
        ("proposals_one_step", 0): (-one).exp().mean(-1),
        ("log_rate_difference", 0): (log_rates.sum(-1) - one).abs().amax(-1),
    }
    for budget in BUDGETS:
        law, _ = multi_step_rejection(ref, rewards, kl_coef, steps, budget)
        failure = torch.exp(budget * torch.log1p(-one.exp().clamp_max(1 - 1e-16)))
        rows["total_variation", budget] = 0.5 * (law.exp() - target.exp()).abs().sum(-1).mean(-1)
        rows["one_step_formula", budget] = (failure * q_one).mean(-1)
        rows["bias", budget] = kl_coef * kl(law, target).mean(-1)
        rows["bias_of_total_budget", steps * budget] = rows["bias", budget]
    return pd.concat([_rows(metric, budget, values) for (metric, budget), values in rows.items()], ignore_index=True)


def _rows(metric: str, budget: int, values: Tensor) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "replicate": range(len(values)),
            "round": budget,
            "queries": float(budget),
            "metric": metric,
            "value": values.cpu().numpy(),
        }
    )


def cells(settings: Settings, tuned: Mapping[str, Any]) -> list[Task]:
    del tuned  # nothing is learnt, so there is nothing to tune
    world = LinearWorld(n_contexts=20, n_actions=500, dim=8)
    return [
        Task(
            {"kl_coef": kl_coef, "steps": steps},
            chain,
            {"world": world, "kl_coef": kl_coef, "steps": steps},
            settings.replicates,
            settings.seed,
        )
        for kl_coef in (KL_COEFS[1::2] if settings.smoke else KL_COEFS)
        for steps in STEPS
    ]


def _cost(name: str, kl_coef: float, smaller: int, larger: int, factor: float = 1.0) -> Ordering:
    where = {"kl_coef": kl_coef}
    return Ordering(
        name, f"{PAPER}; {DERIVED}", "proposals", {"steps": smaller}, {"steps": larger}, where=where, factor=factor
    )


CLAIMS = (
    Identity("the steps' rates multiply to the one-step rate (log)", DERIVED, "log_rate_difference", {}, 1e-9),
    Identity(
        "nested chain costs what one step costs", DERIVED, "proposals_nested", {}, 1e-9, other="proposals_one_step"
    ),
    Identity(
        "one step: total variation = P(no acceptance) TV(π_0, Gibbs)",
        DERIVED,
        "total_variation",
        {"steps": 1},
        1e-12,
        other="one_step_formula",
    ),
    *(
        Number(
            f"the chain's law is Gibbs with a large budget ({steps} steps, kl_coef {kl_coef:g}): TV at 4^8",
            PAPER,
            "total_variation",
            {"steps": steps, "kl_coef": kl_coef},
            0.0,
            1e-12,
            at=BUDGETS[-1],
            exact=True,
        )
        for steps in (4, 16)
        for kl_coef in (0.2, 0.05)
    ),
    *(
        Monotone(
            f"each step is easier in a longer chain, kl_coef {kl_coef:g}",
            PAPER,
            "acceptance",
            {"kl_coef": kl_coef},
            "steps",
            "increasing",
        )
        for kl_coef in (1.0, 0.2, 0.05)
    ),
    _cost("kl_coef .2: 8 steps need less than half the proposals of one", 0.2, 8, 1, 2.0),
    _cost("kl_coef .05: 8 steps need less than half the proposals of one", 0.05, 8, 1, 2.0),
    _cost("kl_coef 1: 16 steps need more proposals than one", 1.0, 1, 16),
    *(
        Ordering(
            f"same total of 64 proposals, kl_coef {kl_coef:g}: 4 steps are less biased than one",
            f"{PAPER} (the reward-KL curve dominates)",
            "bias_of_total_budget",
            {"steps": 4},
            {"steps": 1},
            where={"kl_coef": kl_coef},
            at=64,
        )
        for kl_coef in (0.2, 0.05)
    ),
)


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=3, height=2.6)
    ax_cost, ax_law, ax_bias = axes[0]
    shown = [1, 2, 4, 16]
    names = {1: "one step", **{n: f"{n} steps" for n in shown[1:]}}
    looks = plotting.lines(shown)
    plotting.curves(
        ax_cost,
        frame,
        "proposals",
        "steps",
        x="kl_coef",
        loglog=True,
        order=shown,
        names=names,
        looks=looks,
        legend=False,
    )
    ax_cost.set_title("(a) cost without a budget")
    ax_cost.set_xlabel("kl_coef")
    ax_cost.set_ylabel("proposals per sample")
    at = 0.2
    for ax, metric, text in (
        (ax_law, "total_variation", "budget per step"),
        (ax_bias, "bias_of_total_budget", "budget in total"),
    ):
        rows = frame.take(np.flatnonzero(frame["value"].to_numpy() > 1e-13))  # below is rounding
        plotting.curves(
            ax, rows, metric, "steps", loglog=True, where={"kl_coef": at}, order=shown, looks=looks, legend=False
        )
        ax.set_xlabel(f"proposals, {text}")
    ax_law.set_title(f"(b) distance to Gibbs, kl_coef {at:g}")
    ax_law.set_ylabel("total variation")
    ax_law.set_ylim(1e-6, 1.5)
    ax_bias.set_title(f"(c) bias, kl_coef {at:g}")
    ax_bias.set_ylabel(r"suboptimality $J(\pi^*)-J(\pi)$")
    ax_bias.set_ylim(1e-6, 3)
    plotting.legend_above(figure, ax_cost)
    return figure


study = Study(
    name="rejection_sampling",
    title="Rejection sampling in one step and in a chain: acceptance, cost, bias (exact)",
    source="GSHF, Xiong et al. 2024 (2312.11456), multi-step rejection sampling",
    cells=cells,
    claims=CLAIMS,
    plot=plot,
    replicates=64,
    smoke_replicates=8,
)
