"""GSHF online where exploration pays: the best action is one that the reference almost never draws.

One context, 12 one-hot actions, r(gem) = 1, the others U[0, 1/2], pi_ref(gem) = 1e-3; kl_coef = .1, m = 32 duels a
batch, 30 batches. Own design for the main agent and enhancer of GSHF (Xiong et al. 2024, 2312.11456), which has no
simulation; the lines are those of `gshf_ablation`, with the same hyper-parameters (ridge .1, ball, radius 1, ridge of
Sigma .01), and nothing is tuned. On smooth features coverage is good and the enhancer earns nothing; here it must.

Claims: those of earlier runs of ours (20 seeds), and the paper's reason for an enhancer, that it beats the pair
(pi_t, pi_t). Every variant is said to get worse than the reference first: `loss to the reference` is J(pi_ref) - J(pi),
positive where learning has hurt.

Found: all of it holds, except that the paper's enhancer and the most uncertain action cannot be told apart. The
covariance of ten bootstrap fits explores less than the ellipse: arms that nobody has played have no spread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from simbandit import plotting
from simbandit.guarantees import Number, Ordering
from simbandit.metrics import Snapshot, kl
from simbandit.oracles import BradleyTerry
from simbandit.simulate import Problem
from simbandit.study import Settings, Simulation, Study, Task
from simbandit.worlds.hard import hidden_gem
from studies.gshf_ablation import AGENTS, NAMES

BATCH, ROUNDS, LAST = 32, 30, 29


def loss_to_reference(s: Snapshot) -> Tensor:
    """J(pi_ref) - J(pi): what learning has cost so far."""
    assert s.optimum is not None
    return s.kl_coef * s.over_contexts(kl(s.log_probs, s.optimum) - kl(s.ref_log_probs, s.optimum))


def gem_probability(s: Snapshot) -> Tensor:
    """How often the policy plays the gem, the last action."""
    return s.over_contexts(s.log_probs[..., -1].exp())


def cells(settings: Settings, tuned: dict[str, Any]) -> Sequence[Simulation | Task]:
    del tuned
    return [
        Simulation(
            labels={"agent": agent},
            problem=Problem(hidden_gem(), BradleyTerry(), 0.1),
            algorithm=algorithm,
            rounds=ROUNDS,
            batch_size=BATCH,
            replicates=settings.replicates,
            seed=settings.seed,
            metrics=[
                "suboptimality",
                "cumulative_reward_regret",
                ("loss_to_reference", loss_to_reference),
                ("gem_probability", gem_probability),
            ],
            record="all",
        )
        for agent, algorithm in AGENTS.items()
    ]


PAPER, NOTES = "Xiong et al. 2024, section 5", "own earlier runs"
RECIPE = [agent for agent in AGENTS if agent != "KL ball, ensemble"]  # the earlier runs' variants
claims = (
    Number("the reference's gap", NOTES, "suboptimality", {"agent": "self"}, 0.148, 0.3 * 0.148, at=0),
    *(
        Number(
            f"{agent}: first worse than the reference",
            NOTES,
            "loss_to_reference",
            {"agent": agent},
            0.0,
            0.0,
            "at least",
            at=1,
        )
        for agent in RECIPE
    ),
    *(
        Number(
            f"{agent}: gap in .25 ... .38 after 1 batch", NOTES, "suboptimality", {"agent": agent}, 0.315, 0.065, at=1
        )
        for agent in RECIPE
    ),
    *(
        Number(f"{agent} stays above .24", NOTES, "suboptimality", {"agent": agent}, 0.24, 0.0, "at least", at=LAST)
        for agent in ("self", "best/worst of 8")
    ),
    *(
        Ordering(
            f"the most uncertain action beats {agent}",
            NOTES,
            "suboptimality",
            smaller={"agent": "pointwise"},
            larger={"agent": agent},
            at=LAST,
        )
        for agent in RECIPE
        if agent != "pointwise"
    ),
    *(
        Ordering(
            f"the enhancer beats {agent}",
            PAPER,
            "suboptimality",
            smaller={"agent": "KL ball"},
            larger={"agent": agent},
            at=LAST,
        )
        for agent in ("self", "reference")
    ),
)


def plot(frame: pd.DataFrame) -> Figure:
    figure, (row,) = plotting.panels(columns=2, height=2.9)
    for ax, metric in zip(row, ("suboptimality", "gem_probability"), strict=True):
        plotting.curves(ax, frame, metric, "agent", order=list(AGENTS), names=NAMES, legend=False)
        ax.set_ylim(bottom=0)
    row[0].set_ylabel(plotting.label("suboptimality").replace(", ", "\n"))
    row[1].set_ylabel("probability of the gem\nunder the policy")
    plotting.legend_above(figure, row[0])
    return figure


study = Study(
    name="gshf_hidden_gem",
    title="GSHF online: finding an action that the reference hides",
    source="Xiong et al. 2024 (2312.11456); own design, no published figure",
    cells=cells,
    claims=claims,
    plot=plot,
    replicates=128,
    smoke_replicates=8,
)
