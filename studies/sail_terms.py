"""SAIL's two gradient terms: where a policy is led when the gradient runs through the sampling law as well.

SAIL (2406.15567) maximises J(pi) = E over pairs of pi and their labels of log sigma(kl_coef u); its gradient is
T1 + T2, T2 that of DPO on the policy's own pairs, T1 that of the law which draws them. We know of no synthetic
experiment in the paper; the numbers are our own earlier ones (exact gradient ascent, five arms). T2 + coef T1 is
followed for coef in {-.3, 0, .3, 1}: 1 is SAIL's gradient, 0 on-policy DPO, -.3 has the sign of the hook in the
released code, whose coefficient for SAIL-PR is .3. SAIL-RevKL (2606.31524, read in abstract only) adds
- gamma KL(pi || pi_ref) to the objective, gamma in {0, .1, .5, 1} here.

Grid. `flow`: five arms with rewards (1, .7, .4, .1, -.2), uniform reference, kl_coef .1, .5, 1; rows `sail_pr` and
`sail_reversed_sign` through `FullInformation` (all pairs, exact labels), 2,000 gradient steps of 5 / kl_coef^2 on the
logits. `fixed`: the same gradients divided by pi (the natural gradient: the same interior fixed points and stability,
but no stalling near the vertices), in steps of at most 1/2, from the reference and from 64 random policies. KL and gap
are those of the end point from the reference; `spread` is the distance of a random start's end point to it.

Found: the earlier numbers hold. T2 alone ends at the Gibbs policy from every start; T1 moves the end point, by 1.8 nats
at kl_coef .1 and 1e-5 at 4. One claim fails: with the released sign the bias is not monotone, because at kl_coef .1 the
optimum is itself close to a vertex (.017 nats against .021 at .2). Not expected: the right sign of T1 makes SAIL's end
point depend on the start, also where kl_coef is large (8 % to 25 % of starts end at a vertex for kl_coef .5 to 4);
RevKL of weight 1 mends that for kl_coef up to 1 and not at 4, and draws the policy close to the reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from simbandit import losses, plotting
from simbandit.algorithms import create
from simbandit.draws import Draws
from simbandit.guarantees import Identity, Monotone, Number
from simbandit.metrics import kl
from simbandit.objective import Descent
from simbandit.oracles import BradleyTerry, FullInformation
from simbandit.policies import gibbs
from simbandit.simulate import Problem
from simbandit.study import Settings, Simulation, Study, Task
from simbandit.worlds import TableWorld
from studies._games import frame_of, probability, total_variation
from studies._sail import natural_flow

REWARDS = (1.0, 0.7, 0.4, 0.1, -0.2)
COEFS = (-0.3, 0.0, 0.3, 1.0)
GAMMAS = (0.0, 0.1, 0.5, 1.0)
KL_COEFS = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0)
ROUNDS, STEPS = 2000, 3000


def loss_of(coef: float, gamma: float = 0.0) -> tuple[str, dict[str, float]]:
    """The loss whose gradient at the last policy is -(T2 + coef T1 - gamma grad KL)."""
    if coef < 0:
        return "sail_reversed_sign", {"coef": -coef}
    return ("sail_rev_kl", {"coef": coef, "kl_weight": gamma}) if gamma else ("sail_pr", {"coef": coef})


def fixed_point(kl_coef: float, coef: float, gamma: float, replicates: int, seed: int, device: str) -> pd.DataFrame:
    """Where natural-gradient steps end: from the reference, and every replicate from its own random logits (standard
    deviation 2)."""
    rewards = torch.tensor(REWARDS, dtype=torch.float64, device=device)
    A = len(rewards)
    ref = torch.full((A,), -np.log(A), dtype=torch.float64, device=device)
    name, own = loss_of(coef, gamma)
    log_pi = natural_flow(
        partial(getattr(losses, name), **own),
        torch.cat([ref.new_zeros(1, A), 2 * Draws(seed, replicates, device).once("start", A)]),
        ref,
        torch.sigmoid(rewards[:, None] - rewards[None, :]),
        kl_coef,
        step_size=0.3 / (kl_coef + kl_coef**2 + gamma),
        steps=STEPS,
    )
    optimum = gibbs(rewards, ref, kl_coef)
    away = kl(log_pi[:1], optimum).expand(replicates)
    values = {
        "kl_to_optimum": away,
        "suboptimality": kl_coef * away,
        "kl_to_ref": kl(log_pi[:1], ref).expand(replicates),
        "spread": total_variation(log_pi[1:], log_pi[:1]),
        "collapsed": (log_pi[1:].amax(-1) > -1e-6).to(torch.float64),
    }
    return frame_of({(metric, STEPS): value for metric, value in values.items()})


def cells(settings: Settings, tuned: Mapping[str, Any]) -> Sequence[Simulation | Task]:
    del tuned
    world = TableWorld(np.full((1, 5), -np.log(5)), rewards=[REWARDS])
    grid: list[Simulation | Task] = []
    for kl_coef in (0.5,) if settings.smoke else (0.1, 0.5, 1.0):
        for coef in COEFS:
            name, own = loss_of(coef)
            grid.append(
                Simulation(
                    {"part": "flow", "kl_coef": kl_coef, "coef": coef, "gamma": 0.0},
                    Problem(world, FullInformation(BradleyTerry()), kl_coef),
                    create(
                        "sail_pr",
                        loss=name,
                        hybrid=None,
                        hybrid_loss=None,
                        proximal=0.0,
                        descent=Descent(1, 5 / kl_coef**2, optimiser="sgd"),
                        **own,
                    ),
                    rounds=ROUNDS // 4 if settings.smoke else ROUNDS,
                    replicates=1,
                    seed=settings.seed,
                    metrics=[
                        "suboptimality",
                        "kl_to_optimum",
                        "fit_residual",
                        *((f"probability_{i}", partial(probability, action=i)) for i in range(5)),
                    ],
                )
            )
    points = [(k, coef, 0.0) for k in KL_COEFS for coef in COEFS]
    points += [(k, 1.0, gamma) for k in (0.1, 0.5, 1.0, 4.0) for gamma in GAMMAS[1:]]
    for kl_coef, coef, gamma in points[8:12] if settings.smoke else points:
        labels = {"kl_coef": kl_coef, "coef": coef, "gamma": gamma}
        grid.append(Task({"part": "fixed", **labels}, fixed_point, labels, settings.replicates, settings.seed))
    return grid


NOTES = "own earlier runs (exact gradient ascent)"
TABLE = {  # kl_coef .5: policy, KL to the optimum, value gap
    0.0: ((0.475, 0.261, 0.143, 0.078, 0.043), 0.0, 0.0),
    0.3: ((0.464, 0.243, 0.140, 0.090, 0.063), 0.0057, 0.0029),
    1.0: ((0.464, 0.200, 0.128, 0.108, 0.100), 0.0409, 0.0204),
    -0.3: ((0.490, 0.278, 0.142, 0.065, 0.026), 0.0060, 0.0030),
}


def number(
    name: str, source: str, where: Mapping[str, Any], metric: str, value: float, slack: float, **how: Any
) -> Number:
    return Number(name, source, metric, where, value, slack, exact=True, **how)


claims = (
    *(
        number(f"kl_coef .5, T2 {coef:+g} T1: pi({i + 1}) = {p:g}", NOTES, where, f"probability_{i}", p, 6e-4)
        for coef, (policy, _, _) in TABLE.items()
        for where in [{"part": "flow", "kl_coef": 0.5, "coef": coef}]
        for i, p in enumerate(policy)
    ),
    *(
        number(f"kl_coef .5, T2 {coef:+g} T1: {metric} = {value:g}", NOTES, where, metric, value, 6e-5)
        for coef, (_, away, gap) in TABLE.items()
        for where in [{"part": "flow", "kl_coef": 0.5, "coef": coef}]
        for metric, value in (("kl_to_optimum", away), ("suboptimality", gap))
    ),
    number(
        "kl_coef .1, T2 alone: still converging (gap .0008 after 20,000 of the earlier steps), below .001 here",
        NOTES,
        {"part": "flow", "kl_coef": 0.1, "coef": 0.0},
        "suboptimality",
        0.001,
        0.0,
        sense="at most",
    ),
    *(
        Identity(
            f"T2 alone: the Gibbs policy is its fixed point, kl_coef {k:g}",
            "derived",
            "kl_to_optimum",
            {"part": "fixed", "kl_coef": k, "coef": 0.0},
            1e-8,
        )
        for k in KL_COEFS
    ),
    *(
        Monotone(
            f"T2 {coef:+g} T1: the bias (KL to the optimum) falls as kl_coef grows",
            NOTES,
            "kl_to_optimum",
            {"part": "fixed", "coef": coef, "gamma": 0.0},
            "kl_coef",
            "decreasing",
        )
        for coef in (-0.3, 0.3, 1.0)
    ),
    *(
        Identity(
            f"RevKL of weight 1 has one maximiser, kl_coef {k:g}",
            "2606.31524 (abstract): PL condition on a bounded set; own expectation",
            "spread",
            {"part": "fixed", "kl_coef": k, "coef": 1.0, "gamma": 1.0},
            1e-6,
        )
        for k in (0.1, 0.5, 1.0)
    ),
    number(
        "SAIL without RevKL has several end points, kl_coef .1",
        "2606.31524 (abstract): local guarantees only; own expectation",
        {"part": "fixed", "kl_coef": 0.1, "coef": 1.0, "gamma": 0.0},
        "spread",
        0.01,
        0.0,
        sense="at least",
    ),
)


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=3, height=2.6)
    flow, bias, penalty = axes[0]
    names = {c: {0.0: "T2 (on-policy DPO)", 1.0: "T2 + T1 (SAIL)"}.get(c, f"T2 {c:+g} T1") for c in COEFS}
    looks = plotting.lines(COEFS)
    how = {"order": COEFS, "names": names, "looks": looks, "legend": False}
    plotting.curves(
        flow, frame, "suboptimality", "coef", x="round", where={"part": "flow", "kl_coef": 0.5}, loglog=True, **how
    )
    flow.set_ylim(1e-6, 1)
    flow.set_xlabel("gradient step")
    flow.set_title("(a) exact gradient, kl_coef .5")
    plotting.curves(
        bias, frame, "kl_to_optimum", "coef", x="kl_coef", where={"part": "fixed", "gamma": 0.0}, loglog=True, **how
    )
    bias.set_ylim(1e-8, 10)
    bias.set_xlabel("kl_coef")
    bias.set_title("(b) fixed points")
    kls = [k for k in (0.1, 0.5, 1.0, 4.0) if k in set(frame["kl_coef"])]
    plotting.curves(
        penalty,
        frame,
        "spread",
        "kl_coef",
        x="gamma",
        where={"part": "fixed", "coef": 1.0},
        order=kls,
        names={k: f"kl_coef {k:g}" for k in kls},
        looks=dict(zip(kls, list(plotting.lines(range(8)).values())[4:], strict=False)),
    )
    penalty.set_ylim(-0.02, 0.8)
    penalty.legend(loc="upper right", ncols=2, fontsize=6)
    penalty.set_xlabel(r"RevKL weight $\gamma$")
    penalty.set_ylabel("distance between end points\n(mean over starts, total variation)")
    penalty.set_title("(c) RevKL, random starts")
    plotting.legend_above(figure, flow)
    return figure


study = Study(
    name="sail_terms",
    title="SAIL's gradient terms: where they lead, exactly",
    source="SAIL (2406.15567), SAIL-RevKL (2606.31524); no paper's figure, own earlier numbers",
    cells=cells,
    claims=claims,
    plot=plot,
    replicates=64,
    smoke_replicates=8,
)
