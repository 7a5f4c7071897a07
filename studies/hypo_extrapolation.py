"""With linear features DPO extrapolates: the best response, never compared, gains the mass that compared ones lose.

HyPO (2406.01462) shows this twice. Its example: three responses with features (1, 0), (1/2, 1/2), (0, 1), rewards 10,
5.5, 1, a uniform reference, and data that compare the second with the third only (constants from memory, unverified;
the second figure's description is from a summary; a search of public pages and code found neither). Its figure of
learning curves: under online RLHF and DPO with linear function approximation the log-probability of the unseen best
response rises while that of the seen preferred ones falls, and DPO's curves have the higher variance; dimensions and
seeds are not known to us.

Grid. `three`: the example with exact labels, kl_coef 1, the row `dpo` on log-linear policies by 1, 11, 101 and 1,001
gradient steps of size 2, and its argmin. `curves`: one world of 100 responses with features on the sphere of R^10,
|theta*| = 8, a uniform reference, kl_coef 1, n duels of pairs among the 50 responses of lowest reward; gradient steps
of size 2 on DPO's mean loss, on HyPO's (+ weight KL(pi || pi_ref), weights .01, .1 per duel), and of RLHF: exact policy
gradient on the reward that maximises the likelihood of the same duels. `best` and `preferred` are log pi/pi_ref of the
best response and, averaged over the law of a duel's winner, of the seen ones; `scatter` is the squared deviation of
`best` from its mean over replicates, which differ in their duels alone.

What differs: features, sizes and noise are ours, RLHF's gradient is exact and its reward model is fitted once.

Found: the example's numbers hold, and DPO's argmin is the optimal policy. The unseen best response rises and the seen
preferred ones fall under DPO and RLHF alike, which end at the same policy. DPO's curves do not vary more: at every step
compared RLHF's, which are further on, vary slightly more (four claims fail), so the published difference must come from
sampled gradients or a drifting reward model, which are not here. The online KL of HyPO holds both movements back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from simbandit import plotting
from simbandit.algorithms import create
from simbandit.draws import Draws
from simbandit.guarantees import Number, Ordering
from simbandit.metrics import kl
from simbandit.objective import Descent
from simbandit.oracles import BradleyTerry
from simbandit.policies import gibbs
from simbandit.simulate import Problem
from simbandit.study import Settings, Simulation, Study, Task
from simbandit.worlds import LinearWorld, TableWorld
from studies._games import frame_of, probability

FEATURES, REWARDS = ((1.0, 0.0), (0.5, 0.5), (0.0, 1.0)), (10.0, 5.5, 1.0)
PUBLISHED = {  # steps -> policy
    1: (0.503, 0.308, 0.189),
    11: (0.899, 0.091, 0.009),
    101: (0.983, 0.016, 0.0003),
    1001: (0.98889, 0.01099, 0.00012),
}
WORLD = LinearWorld(n_contexts=1, n_actions=100, dim=10, theta_norm=8.0, fixed=True)
SEEN, STEP, STEPS = 50, 2.0, 1000
SIZES = (200, 1000)
METHODS = {"DPO": 0.0, "HyPO .01": 0.01, "HyPO .1": 0.1, "RLHF": None}


def curves(method: str, n: int, replicates: int, seed: int, device: str) -> pd.DataFrame:
    """Learning curves of one method; all methods meet the same worlds and duels. kl_coef 1."""
    draws = Draws(seed, replicates, device)
    instance = WORLD.instance(replicates, draws)
    phi, ref = instance.evaluation.features[:, 0], instance.evaluation.ref_log_probs[:, 0]
    rewards = instance.rewards(instance.evaluation)[:, 0]
    seen = rewards.argsort(-1)[:, :SEEN]
    now = draws.at(0)
    first, second = ((now.uniform(f"player{i}", n) * SEEN).long() for i in (0, 1))
    replicate = torch.arange(replicates, device=phi.device)[:, None]
    z = phi[replicate, seen.gather(1, first)] - phi[replicate, seen.gather(1, second)]
    low = rewards.gather(1, seen)
    won = now.uniform("annotator", n) < torch.sigmoid(low.gather(1, first) - low.gather(1, second))
    label = won.to(torch.float64)
    winner = torch.sigmoid(low[:, :, None] - low[:, None, :]).mean(-1) * 2 / SEEN

    def likelihood_gradient(theta: Tensor) -> Tensor:
        """Of the mean of -log sigma."""
        miss = torch.sigmoid((z @ theta[..., None]).squeeze(-1)) - label
        return (miss[..., None] * z).mean(1)

    def covariance(theta: Tensor, values: Tensor) -> Tensor:
        """Cov_pi(phi, values) (R, d): the policy gradient of E_pi[values]."""
        pi = gibbs(linear(theta), ref, 1.0).exp()
        centred = values - (pi * values).sum(-1, keepdim=True)
        return ((pi * centred)[..., None] * phi).sum(1)

    def linear(theta: Tensor) -> Tensor:
        return (phi @ theta[..., None]).squeeze(-1)

    theta = torch.zeros_like(phi[:, 0])
    estimate = theta
    weight = METHODS[method]
    if weight is None:
        for _ in range(30):  # Newton
            p = torch.sigmoid((z @ estimate[..., None]).squeeze(-1))
            hessian = (z * (p * (1 - p))[..., None]).mT @ z / n
            estimate = estimate - torch.linalg.solve(hessian, likelihood_gradient(estimate))
    best = rewards.argmax(-1, keepdim=True)
    optimum = gibbs(rewards, ref, 1.0)
    values: dict[tuple[str, int], Tensor] = {}
    for t in range(STEPS + 1):
        log_pi = gibbs(linear(theta), ref, 1.0)
        if t in RECORDED:
            ratio = log_pi - ref
            up = ratio.gather(1, best)[:, 0]
            values["best", t] = up
            values["preferred", t] = (winner * ratio.gather(1, seen)).sum(-1)
            values["scatter", t] = (up - up.mean()) ** 2
            values["kl_to_optimum", t] = kl(log_pi, optimum)
        if weight is None:
            gradient = -covariance(theta, linear(estimate) - linear(theta))
        else:
            gradient = likelihood_gradient(theta) + weight * covariance(theta, linear(theta))
        theta = theta - STEP * gradient
    return frame_of(values)


RECORDED = {0, *np.unique(np.geomspace(1, STEPS, 40).round().astype(int)).tolist()}


def cells(settings: Settings, tuned: Mapping[str, Any]) -> Sequence[Simulation | Task]:
    del tuned
    grid: list[Simulation | Task] = []
    world = TableWorld(np.full((1, 3), -math.log(3)), rewards=[REWARDS], features=[FEATURES])
    duel = {"context": [0], "first": [1], "second": [2], "preferred": [1 / (1 + math.exp(REWARDS[2] - REWARDS[1]))]}
    fits: dict[int, dict[str, Any]] = {
        t: {"passes": t, "descent": Descent(1, STEP, optimiser="sgd")} for t in PUBLISHED
    }
    for t, how in {**fits, 0: {}}.items():  # 0: the argmin
        grid.append(
            Simulation(
                {"part": "three", "steps": t},
                Problem(world, BradleyTerry(), 1.0),
                create("dpo", value_range="unbounded", proximal=0.0, **how),
                rounds=1,
                replicates=1,
                seed=settings.seed,
                offline=pd.DataFrame(duel),
                metrics=["kl_to_optimum", *((f"probability_{i}", partial(probability, action=i)) for i in range(3))],
                record=[1],
            )
        )
    for n in SIZES[:1] if settings.smoke else SIZES:
        for method in METHODS:
            how = {"method": method, "n": n}
            grid.append(Task({"part": "curves", **how}, curves, how, settings.replicates, settings.seed))
    return grid


PAPER = "HyPO (2406.01462), learning curves (a summary's description)"


def number(
    name: str, source: str, where: Mapping[str, Any], metric: str, value: float, slack: float, **how: Any
) -> Number:
    return Number(name, source, metric, where, value, slack, **how)


claims = (
    *(
        number(
            f"{t} steps: pi({i + 1}) = {p:g}",
            "own earlier runs; example from memory",
            {"part": "three", "steps": t},
            f"probability_{i}",
            p,
            6e-4 if t < 1001 else 6e-6,
            exact=True,
        )
        for t, policy in PUBLISHED.items()
        for i, p in enumerate(policy)
    ),
    number(
        "the argmin is the optimal policy",
        "2406.01462, example (memory); own earlier runs",
        {"part": "three", "steps": 0},
        "kl_to_optimum",
        0.0,
        1e-8,
        exact=True,
    ),
    *(
        number(f"{method}, n = {n}: the unseen best response rises", PAPER, where, "best", 0.0, 0.0, sense="at least")
        for method in ("DPO", "RLHF")
        for n in SIZES
        for where in [{"part": "curves", "method": method, "n": n}]
    ),
    *(
        number(f"{method}, n = {n}: the seen preferred ones fall", PAPER, where, "preferred", 0.0, 0.0, sense="at most")
        for method in ("DPO", "RLHF")
        for n in SIZES
        for where in [{"part": "curves", "method": method, "n": n}]
    ),
    *(
        Ordering(
            f"DPO's curves vary more than RLHF's, n = {n}, {t} steps",
            PAPER,
            "scatter",
            {"method": "RLHF"},
            {"method": "DPO"},
            {"part": "curves", "n": n},
            at=t,
        )
        for n in SIZES
        for t in (100, STEPS)
    ),
)


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=3, height=2.6)
    three, best, preferred = axes[0]
    rows = frame.take(np.flatnonzero((frame["part"] == "three").to_numpy() & (frame["steps"] > 0).to_numpy()))
    for i, look in plotting.lines(range(3)).items():
        of = rows.take(np.flatnonzero((rows["metric"] == f"probability_{i}").to_numpy()))
        of = of.take(np.flatnonzero((of["round"] == 1).to_numpy())).sort_values("steps")
        text = f"y{i + 1}, {'never compared' if i == 0 else 'won' if i == 1 else 'lost'}"
        three.plot(of["steps"], of["value"], color=look.color, linestyle=look.dash, marker=look.marker, label=text)
    three.set_xscale("log")
    three.set_yscale("log")
    three.set_xlabel("gradient steps")
    three.set_ylabel("probability")
    three.set_title("(a) three responses, DPO")
    three.set_ylim(3e-6, 2)
    three.legend(loc="lower left")
    n = SIZES[1] if SIZES[1] in set(frame["n"]) else SIZES[0]
    how = {"x": "round", "where": {"part": "curves", "n": n}, "order": list(METHODS), "legend": False}
    for ax, metric, title in ((best, "best", "(b) unseen best"), (preferred, "preferred", "(c) seen, preferred")):
        plotting.curves(ax, frame, metric, "method", **how)
        ax.set_xscale("symlog", linthresh=1)
        ax.axhline(0, color="0.5", linewidth=0.7)
        ax.set_xlabel("gradient steps")
        ax.set_ylabel(r"log $\pi/\pi_{\mathrm{ref}}$ [nats]")
        ax.set_title(f"{title}, {n} duels")
    plotting.legend_above(figure, best)
    return figure


study = Study(
    name="hypo_extrapolation",
    title="DPO, HyPO and RLHF with linear features: mass moves to the best response, which no duel saw",
    source="HyPO (2406.01462): example with linear features, and the figure of learning curves",
    cells=cells,
    claims=claims,
    plot=plot,
    replicates=100,
    smoke_replicates=12,
)
