"""Exploration against the range of rewards: a fixed comparator costs e^R, a moving one does not.

SE-POPO (2502.00666, read in summaries and code only) claims the first sample complexity polynomial in the range R of
rewards, where all earlier online methods pay e^R. The mechanism (derived): a duel at reward gap g carries the
information sigma'(g), about e^-g. Against a fixed reference that plays bad actions every good action wins, and duels
with it tell good from better only after e^R of them; a sampler that moves to the policy in stages keeps gaps small.

Instance: four actions, r = (R - 1, R, R - 1, 0), the reference plays each of the three good ones with probability
1e-3; 64 rounds of 16 duels, exact fits, kl_coef |log-ratio gap| <= R. Grid: R = 1, 3, 5, 7; kl_coef .1, and in part
.3; duels of the policy with itself, with the reference, or with what it was at the last of four stages (16 rounds
each); no bonus (DPO), XPO's (alpha .01 per duel, on draws of the reference), SE-POPO's (alpha .1, on draws of the
duel's second response). SE-POPO is its bonus with the moving sampler, XPO its bonus with the reference. `information`:
the sum over the duels of sigma'(reward gap), duels of an action with itself counting 0.

Found. Against the reference information falls by a factor of 2.2 to 2.4 per unit of R beyond 3, nearly as e^-R (2.7),
and XPO cannot tell the good actions apart at R = 5 and 7 (gap .5, the best guess wrong in 74 and 98 % of the runs). Its
slope over all R is flatter, -.74, as sigma'(1) is not yet e^-1; at kl_coef .3 and R = 1 the optimum itself is the bad
action, nearly all duels are of it with itself, and neither the slope nor the best guess means what the claims suppose.
The moving sampler cures XPO: no trend in R, gap .04 at R = 7. Without a bonus it cures nothing, because the good
actions must first be found, and a policy against its own past does not look for them. SE-POPO's bonus with the moving
sampler has the most informative duels at kl_coef .1, yet its best guess there is a second-best action in 46 % of the
runs at R = 7, and it is no better than XPO; at .3 it is. Its constants, and its reset of the reference, left out here,
may matter. On pairs of the policy alone its bonus pushes down whatever is played and ends far off.

What differs from the papers: tabular policies and argmins, constants of our choice (alpha is the registry's, not tuned
per cell); no paper has this sweep.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from simbandit import algorithms, plotting
from simbandit.algorithms.players import Held
from simbandit.guarantees import Exponent, Monotone, Number, Ordering
from simbandit.guarantees.rows import select
from simbandit.metrics import Snapshot
from simbandit.oracles import BradleyTerry
from simbandit.simulate import Problem
from simbandit.study import Settings, Simulation, Study
from simbandit.worlds import TableWorld

RANGES, KL_COEFS, RARE = (1.0, 3.0, 5.0, 7.0), (0.1, 0.3), 1e-3
ROUNDS, BATCH, STAGE = 64, 16, 16
SAMPLERS: dict[str, Any] = {"own": "current", "reference": "reference", "moving": Held(STAGE)}
BONUSES: dict[str, dict[str, Any]] = {
    "none": {},
    "xpo": {"bonus": "optimism", "alpha": 0.01, "calibration": "reference"},
    "popo": {"bonus": "preference_optimism", "alpha": 0.1, "calibration": "second"},
}


def world(reward_range: float) -> TableWorld:
    rewards = [reward_range - 1, reward_range, reward_range - 1, 0.0]
    return TableWorld(np.log([[RARE, RARE, RARE, 1 - 3 * RARE]]), [rewards], reward_range=(0.0, reward_range))


def information(s: Snapshot) -> Tensor | None:
    """Mean of sigma'(reward gap) over this round's duels."""
    if s.actions is None:
        return None
    r = s.instance.rewards_of(s.contexts, s.actions)
    gap = r[..., 0] - r[..., 1]
    told = torch.sigmoid(gap) * torch.sigmoid(-gap)
    return torch.where(s.actions[..., 0] == s.actions[..., 1], 0.0, told).mean(-1)


METRICS = (
    "suboptimality",
    "cumulative_suboptimality",
    "argmax_regret",
    "informative_pairs",
    ("cumulative_information", information),
)


def cells(settings: Settings, tuned: Mapping[str, Any]) -> list[Simulation]:
    del tuned  # constants are the registry's
    grid = []
    for reward_range in RANGES[::2] if settings.smoke else RANGES:
        for kl_coef in KL_COEFS[:1] if settings.smoke else KL_COEFS:
            for sampler, player in SAMPLERS.items():
                for bonus, choice in BONUSES.items():
                    if kl_coef != KL_COEFS[0] and sampler != "moving" and (sampler, bonus) != ("reference", "xpo"):
                        continue
                    labels = {
                        "R": reward_range,
                        "exp(R)": math.exp(reward_range),
                        "kl_coef": kl_coef,
                        "sampler": sampler,
                        "bonus": bonus,
                    }
                    grid.append(
                        Simulation(
                            labels,
                            Problem(world(reward_range), BradleyTerry(), kl_coef),
                            algorithms.create("online_dpo", players=("current", player), **choice),
                            rounds=24 if settings.smoke else ROUNDS,
                            batch_size=BATCH,
                            replicates=settings.replicates,
                            seed=settings.seed,
                            policy="tabular",
                            metrics=METRICS,
                            record=[0, 4, 8, 16, 24] if settings.smoke else [0, 4, 8, 16, 24, 32, 48, 64],
                        )
                    )
    return grid


PAPER, DERIVED, OWN = "2502.00666, from summaries", "derived", "own expectation"
XPO, POPO = {"bonus": "xpo", "sampler": "reference"}, {"bonus": "popo", "sampler": "moving"}

claims = (
    *(
        Exponent(
            f"XPO with the reference, kl_coef {k}: information falls like e^-R",
            DERIVED,
            "cumulative_information",
            {**XPO, "kl_coef": k},
            -1.0,
            0.25,
            x="exp(R)",
        )
        for k in KL_COEFS
    ),
    *(
        Exponent(
            f"{bonus} bonus with the moving sampler, kl_coef {k}: it does not (exponent at least -1/4)",
            PAPER,
            "cumulative_information",
            {"bonus": bonus, "sampler": "moving", "kl_coef": k},
            -0.25,
            0.0,
            "at least",
            x="exp(R)",
        )
        for bonus in ("xpo", "popo")
        for k in KL_COEFS
    ),
    *(
        Monotone(
            f"XPO with the reference, kl_coef {k}: the best guess gets worse as R grows",
            DERIVED,
            "argmax_regret",
            {**XPO, "kl_coef": k},
            "R",
            "increasing",
            tolerance=0.02,
        )
        for k in KL_COEFS
    ),
    *(
        Ordering(
            f"R = 7, kl_coef {k}: {text}",
            source,
            "suboptimality",
            smaller,
            larger,
            {"R": 7.0, "kl_coef": k},
            factor=factor,
        )
        for k in KL_COEFS
        for text, source, smaller, larger, factor in (
            ("SE-POPO ends at half XPO's gap or less", PAPER, POPO, XPO, 2.0),
            (
                "the moving sampler cures XPO: half the gap or less",
                DERIVED,
                {"bonus": "xpo", "sampler": "moving"},
                XPO,
                2.0,
            ),
            (
                "and no bonus cures nothing: DPO with the moving sampler ends behind XPO's bonus with it",
                OWN,
                {"bonus": "xpo", "sampler": "moving"},
                {"bonus": "none", "sampler": "moving"},
                1.0,
            ),
        )
    ),
    *(
        Number(
            f"SE-POPO, R = 7, kl_coef {k}: ends within .25",
            PAPER,
            "suboptimality",
            {**POPO, "R": 7.0, "kl_coef": k},
            0.25,
            0.0,
            "at most",
        )
        for k in KL_COEFS
    ),
    *(
        Ordering(
            f"R = 1, kl_coef {k}: XPO with the reference is no worse than twice XPO with the moving sampler",
            OWN,
            "cumulative_suboptimality",
            {"bonus": "xpo", "sampler": "reference"},
            {"bonus": "xpo", "sampler": "moving"},
            {"R": 1.0, "kl_coef": k},
            factor=0.5,
        )
        for k in KL_COEFS
    ),
)


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=3, rows=2, height=2.2)
    smallest = float(frame["kl_coef"].to_numpy().min())
    frame = select(frame, {"kl_coef": smallest})
    order, looks = list(SAMPLERS), plotting.lines(list(SAMPLERS))
    names = {"own": "against itself", "reference": "against the reference", "moving": "against a moving sampler"}
    titles = {"none": "no bonus", "xpo": "XPO's bonus", "popo": "SE-POPO's bonus"}
    for column, (bonus, title) in zip(axes.T, titles.items(), strict=True):
        how = {"x": "R", "where": {"bonus": bonus}, "order": order, "looks": looks, "names": names, "legend": False}
        plotting.curves(column[0], frame, "cumulative_information", "sampler", **how)
        column[0].set_yscale("symlog", linthresh=1)
        column[0].set_ylabel("information in all duels\n(higher is better)")
        plotting.curves(column[1], frame, "suboptimality", "sampler", **how)
        column[0].set_title(f"{title}, kl_coef {smallest:g}")
        for ax in column:
            ax.set_xlabel("range of rewards R")
    plotting.legend_above(figure, axes[0, 0])
    return figure


study = Study(
    name="exploration_sweep",
    title="Reward range x coefficient x sampler x bonus: the e^R of a fixed comparator",
    source="own sweep after SE-POPO (2502.00666) and XPO (2405.21046)",
    cells=cells,
    claims=claims,
    plot=plot,
    replicates=50,
    smoke_replicates=8,
)
