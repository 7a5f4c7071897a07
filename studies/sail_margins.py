"""SAIL on two arms: margins beyond the data's, and what the released code's deviations do, one at a time.

SAIL-DP (2406.15567) relabels a share `mixture` of the offline pairs by the policy's own preference and adds the
gradient through those labels, weighted by `coef`. On one pair of win rate p the margin D = kl_coef u at which that
stops solves (1 - mixture) (p - sigma(D)) + mixture coef D sigma(D) sigma(-D) = 0 (derived; own earlier runs: p = .8,
mixture .4: 1.386 for coef 0, 1.584 for .2, the repository's, 2.441 for 1). The paper draws no such figure; reviewers
remarked that SAIL-DP overfits in-distribution responses.

Grid. `fixed`: the row `sail_dp`, 1,000 gradient steps on one logged duel with the label p, mixture .4, p in {.6, .8,
.9}, coef 0 to 1. `sampled`: n logged duels of two arms (win rate .8), `sail_dp` at the repository's coef against DPO,
its argmin and by the same 200 gradient steps (added after a first run, in which the optimisers differed); `excess` is
the expected log-loss on new duels beyond the truth's. `turn`: the margin below which the released own-label loss
-l - coef l^2 / 2 rises again. `deviation`: SAIL-PR's exact gradient on two arms (uniform reference, kl_coef 1, pairs of
the policy, identical ones too), to convergence: as derived, with the released code's sign, with its division by
|log pi|, with its batch factor (batches of 4, 16, 64), and with all three; coef .1, .3 (the repository's), 1.
Two deviations of the released code are no functions of log-probabilities and are left out: its shuffled prompts and
the temperature .9 of its sampler.

Found: the earlier numbers hold. SAIL-DP's margins stay beyond the data's however many duels there are, and it predicts
new duels of the same pair worse than DPO by the same steps, at every n. One claim fails: at 32 duels DPO's argmin,
which is at the bound where one arm won every duel, is worse than both. SAIL-PR as derived lowers the margin below the
data's, because duels of a response with itself are the hardest to predict and T1 avoids them; the released sign raises
it. The division by |log pi|, with the right sign, and the batch factor act like larger coefs; all three together run to
a vertex (the edge of the policies considered) at every coef and batch.
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
from scipy import optimize
from torch import Tensor

from simbandit import losses, plotting
from simbandit.algorithms import create
from simbandit.data import Logged
from simbandit.guarantees import Identity, Monotone, Number, Ordering
from simbandit.metrics import Snapshot
from simbandit.oracles import BradleyTerry, PreferenceTable
from simbandit.policies import Reference
from simbandit.simulate import Problem
from simbandit.study import Settings, Simulation, Study, Task
from simbandit.worlds import TableWorld
from studies._games import frame_of
from studies._sail import natural_flow

MIXTURE, RATES = 0.4, (0.6, 0.8, 0.9)
COEFS = (0.0, 0.2, 0.4, 0.7, 1.0)
SIZES = (32, 128, 512, 2048)
DEVIATIONS = {
    "as derived": "sail_pr",
    "sign": "sail_reversed_sign",
    "scale": "sail_scaled",
    "batch": "sail_unscaled_batch",
    "all three": "sail_released",
}
BATCHES, HOOKS = (4, 16, 64), (0.1, 0.3, 1.0)
METHODS = {
    "sail_dp": create("sail_dp"),
    "dpo": create("dpo", value_range=20.0),
    "same steps": create("sail_dp", coef=0.0, mixture=0.0),  # DPO, by as many gradient steps
}
GAP = math.log(4)  # win rate .8


def margin(s: Snapshot) -> Tensor | None:
    if s.info.fit_residual is None:  # before the fit
        return None
    ratio = (s.log_probs - s.ref_log_probs)[:, 0]
    return s.kl_coef * (ratio[:, 0] - ratio[:, 1])


def constant(s: Snapshot, value: float) -> Tensor | None:
    return None if s.info.fit_residual is None else torch.full((s.instance.replicates,), value, dtype=torch.float64)


def excess(s: Snapshot) -> Tensor | None:
    """Expected log-loss of sigma(margin) on new duels of both arms, minus the truth's."""
    m, p = margin(s), 1 / (1 + math.exp(-GAP))
    if m is None:
        return None
    softplus = torch.nn.functional.softplus
    return p * softplus(-m) + (1 - p) * softplus(m) + p * math.log(p) + (1 - p) * math.log(1 - p)


def fixed_point(p: float, coef: float, mixture: float = MIXTURE) -> float:
    def slope(d: float) -> float:
        s = 1 / (1 + math.exp(-d))
        return (1 - mixture) * (p - s) + mixture * coef * d * s * (1 - s)

    found: Any = optimize.brentq(slope, 0.0, 20.0, xtol=1e-14)
    return float(found)


def turn(coef: float, replicates: int, seed: int, device: str) -> pd.DataFrame:
    """The margin at which -l - coef l^2 / 2, l = log sigma(margin), has slope 0: by autograd and bisection."""
    del replicates, seed, device

    def slope(value: float) -> float:
        m = torch.tensor(value, dtype=torch.float64, requires_grad=True)
        log_p = torch.nn.functional.logsigmoid(m)
        return float(torch.autograd.grad(-log_p - coef * log_p**2 / 2, m)[0])

    found: Any = optimize.brentq(slope, -40.0, 20.0, xtol=1e-12)
    return frame_of({("turn", 0): torch.tensor([float(found)])})


def deviation(name: str, coef: float, batch: int, p: float, replicates: int, seed: int, device: str) -> pd.DataFrame:
    """The margin at which SAIL-PR's gradient, or a deviation from it, ends; started at the reference."""
    del replicates, seed, device
    preference = torch.tensor([[0.5, p], [1 - p, 0.5]], dtype=torch.float64)
    ref = torch.full((2,), -math.log(2), dtype=torch.float64)
    loss = partial(getattr(losses, DEVIATIONS[name]), coef=coef)
    size = coef * (batch if name in ("batch", "all three") else 1)
    log_pi = natural_flow(
        loss, torch.zeros(1, 2), ref, preference, 1.0, step_size=0.3 / (1 + size), steps=4000, copies=batch // 4
    )
    return frame_of({("margin", 0): log_pi[:, 0] - log_pi[:, 1]})


def cells(settings: Settings, tuned: Mapping[str, Any]) -> Sequence[Simulation | Task]:
    del tuned
    grid: list[Simulation | Task] = []
    pair = np.full((1, 2), -math.log(2))
    common: dict[str, Any] = {"rounds": 1, "seed": settings.seed, "record": [1]}
    for p in RATES[1:2] if settings.smoke else RATES:
        for coef in (0.0, 0.2, 1.0) if settings.smoke else COEFS:
            closed = partial(constant, value=fixed_point(p, coef))
            grid.append(
                Simulation(
                    {"part": "fixed", "p": p, "coef": coef},
                    Problem(TableWorld(pair), PreferenceTable([[0.5, p], [1 - p, 0.5]]), 1.0),
                    create("sail_dp", coef=coef, mixture=MIXTURE, passes=1000, proximal=0.0, value_range=20.0),
                    replicates=1,
                    offline=pd.DataFrame({"context": [0], "first": [0], "second": [1], "preferred": [p]}),
                    metrics=[("margin", margin), ("closed form", closed)],
                    **common,
                )
            )
    problem = Problem(TableWorld(pair, rewards=[[GAP, 0.0]]), BradleyTerry(), 1.0)
    for n in SIZES[:2] if settings.smoke else SIZES:
        for method, algorithm in METHODS.items():
            grid.append(
                Simulation(
                    {"part": "sampled", "method": method, "n": n},
                    problem,
                    algorithm,
                    replicates=settings.replicates,
                    offline=Logged(Reference(), n),
                    metrics=[("margin", margin), ("excess", excess)],
                    **common,
                )
            )
    for coef in (0.2, 0.3, 1.0):
        grid.append(Task({"part": "turn", "coef": coef}, turn, {"coef": coef}, 1, settings.seed))
    for name in DEVIATIONS:
        for coef in HOOKS[1:2] if settings.smoke else HOOKS:
            for batch in BATCHES[:2] if settings.smoke else BATCHES:
                if batch == BATCHES[0] or name in ("batch", "all three"):
                    how = {"name": name, "coef": coef, "batch": batch, "p": 0.8}
                    labels = {"part": "deviation", "deviation": name, "coef": coef, "batch": batch}
                    grid.append(Task(labels, deviation, how, 1, settings.seed))
    return grid


NOTES, DERIVED = "own earlier runs", "derived (the sign of T1)"


def number(
    name: str, source: str, where: Mapping[str, Any], value: float, slack: float, sense: Any = "equals"
) -> Number:
    metric = "turn" if where["part"] == "turn" else "margin"
    return Number(name, source, metric, where, value, slack, sense, exact=True)


claims = (
    *(
        number(f"p = .8, mixture .4, coef {c:g}: margin {m:g}", NOTES, {"part": "fixed", "p": 0.8, "coef": c}, m, 6e-4)
        for c, m in ((0.0, 1.386), (0.2, 1.584), (1.0, 2.441))
    ),
    Identity("SAIL-DP's row ends at the closed form", "derived", "margin", {"part": "fixed"}, 1e-6, "closed form"),
    *(
        Monotone(
            f"the margin grows with coef, p = {p:g}",
            NOTES,
            "margin",
            {"part": "fixed", "p": p},
            "coef",
            "increasing",
            exact=True,
        )
        for p in RATES
    ),
    *(
        Ordering(
            f"n = {n} duels: SAIL-DP predicts new duels of the same pair worse than {text}",
            "ICLR 2025 reviewers: overfits in-distribution responses",
            "excess",
            {"method": method},
            {"method": "sail_dp"},
            {"part": "sampled", "n": n},
        )
        for method, text in (("dpo", "DPO"), ("same steps", "DPO by the same steps"))
        for n in SIZES
    ),
    *(
        number(
            f"the released own-label loss turns at {value:g}, coef {c:g}",
            NOTES,
            {"part": "turn", "coef": c},
            value,
            5e-3,
        )
        for c, value in ((0.2, -4.99), (0.3, -3.30), (1.0, -0.54))
    ),
    *(
        number(
            f"SAIL-PR {text}, coef {c:g}: margin {'above' if sense == 'at least' else 'below'} the data's",
            DERIVED,
            {"part": "deviation", "deviation": name, "coef": c, "batch": 4},
            GAP,
            0.0,
            sense,
        )
        for name, text, sense in (
            ("as derived", "as derived", "at most"),
            ("sign", "with the released sign", "at least"),
            ("scale", "divided by |log pi|", "at most"),
            ("all three", "as released", "at least"),
        )
        for c in HOOKS
    ),
    Monotone(
        "the batch factor multiplies the bias: the margin falls with the batch, coef .3",
        DERIVED,
        "margin",
        {"part": "deviation", "deviation": "batch", "coef": 0.3},
        "batch",
        "decreasing",
        exact=True,
    ),
)


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=3, height=2.6)
    fixed, sampled, released = axes[0]
    rates = [p for p in RATES if p in set(frame["p"])]
    names = {p: f"p = {p:g}" for p in rates}
    plotting.curves(fixed, frame, "margin", "p", x="coef", where={"part": "fixed"}, order=rates, names=names)
    fixed.set_xlabel("coef of the gradient through the labels")
    fixed.set_ylabel("stationary margin [logits]")
    fixed.set_title("(a) SAIL-DP, mixture .4")
    names = {"dpo": "DPO", "same steps": "DPO, 200 steps", "sail_dp": "SAIL-DP, 200 steps"}
    plotting.curves(
        sampled,
        frame,
        "excess",
        "method",
        x="n",
        where={"part": "sampled"},
        order=list(names),
        names=names,
        loglog=True,
    )
    sampled.set_xlabel("logged duels n")
    sampled.set_ylabel("excess log-loss on new duels [nats]\n(lower is better)")
    sampled.set_title("(b) two arms, win rate .8")
    rows = frame.take(np.flatnonzero((frame["part"] == "deviation").to_numpy()))
    for name, look in plotting.lines(list(DEVIATIONS)).items():
        of = rows.take(np.flatnonzero((rows["deviation"] == name).to_numpy()))
        for batch in sorted(of["batch"].unique())[-1:]:
            shown = of.take(np.flatnonzero((of["batch"] == batch).to_numpy())).sort_values("coef")
            text = name if name not in ("batch", "all three") else f"{name}, batch {batch:g}"
            released.plot(
                shown["coef"], shown["value"], color=look.color, linestyle=look.dash, marker=look.marker, label=text
            )
    released.axhline(GAP, color="0.4", linewidth=0.8)
    released.set_yscale("symlog", linthresh=3)
    released.set_yticks([0, 1, 2, 3, 10, 40], ["0", "1", "2", "3", "10", "edge"])
    released.set_ylim(0, 50)
    released.set_xlabel("coef")
    released.set_ylabel("stationary margin [logits]")
    released.set_title("(c) SAIL-PR, deviations")
    released.legend(loc="center right", bbox_to_anchor=(1.0, 0.72), fontsize=6)
    return figure


study = Study(
    name="sail_margins",
    title="SAIL on two arms: stationary margins, and the released code's deviations",
    source="SAIL (2406.15567) and its released code; no paper's figure, own earlier numbers",
    cells=cells,
    claims=claims,
    plot=plot,
    replicates=128,
    smoke_replicates=16,
)
