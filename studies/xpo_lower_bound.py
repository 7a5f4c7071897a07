"""Passive exploration waits exp(1 / (8 kl_coef)) rounds; XPO does not (its lower bound, on the instance of the proof).

Xie et al. 2024 (2405.21046), Proposition 2.1: two actions, r = (1, 1/2), pi_ref(best) = eps = exp(-1 / (8 kl_coef)).
For all T <= T_lb = exp(1 / (8 kl_coef)) / 2, with constant probability every iterate of online DPO (of iterative and
offline DPO too) is at least 1/8 suboptimal, whether both responses come from the policy or one from the reference.
XPO's upper bound has the coverability, here at most 2, in place of 1 / eps. The paper has no simulation: the grid is
ours.

Grid: kl_coef .05, .04, .03, .025, .02, so 1 / eps from 12 to 518; DPO on pairs (policy, policy) and (policy,
reference); XPO with alpha .01 and .1 per duel on its own pairs (policy, reference), and alpha .01 on pairs of the
policy; one duel a round, exact fits, kl_coef |log-ratio gap| <= V_max = 1 (the paper's realisability constant, which
an argmin that has seen one duel needs).

Censoring. A run that never comes within 1/8 has no hitting time. Times are therefore cut at 7 / eps rounds: the mean
of min(time, 7 / eps) is what all runs tell, and as the cut grows with 1 / eps it keeps the exponent of a time that is
1 / eps times a fixed law, while a flat time is not touched by it. The waiting time for a first pair of two different
actions, which is geometric of mean 1 / (2 eps (1 - eps)) as long as the policy is still the reference, is never cut
(7 / eps rounds without one have probability e^-14). XPO runs for 4 T_lb rounds; none of its times may be cut.

Found. The bound describes what happens: over a range of 42 in 1 / eps DPO's waiting time has exponent 1.04, with either
pairing, and with probability .6 all iterates up to T_lb are bad. XPO is within 1/8 after one or two rounds at every
coefficient; its bonus moves it to the action that the reference does not play, good or bad, and its pairs with the
reference then inform every round. (.01 is a little slower at the larger coefficients, so that its flatness is not
settled to the tolerance stated; the drift is downwards.) On pairs of the policy with its own draws as calibration XPO
never learns anything: it pushes down what it has just played, both responses of a pair are the same action, and it
jumps from one action to the other in every round, for ever: the calibration policy must be another one. Pairs of the
policy also lock DPO in: one lucky duel moves it to the bound, after which pairs tell nothing. They end behind pairs
with the reference at .05 and .03; at .02 the runs are too short to tell. The earlier runs' gaps (20 seeds) are met
within noise, not always within the tolerance. After a first run of 50 replicates there are
100; claims and tolerances are those of the first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from simbandit import algorithms, plotting
from simbandit.guarantees import Exponent, Number, Ordering
from simbandit.oracles import BradleyTerry
from simbandit.simulate import Problem, recording, simulate
from simbandit.study import Settings, Study, Task
from simbandit.worlds import two_arm_exploration

KL_COEFS = (0.05, 0.04, 0.03, 0.025, 0.02)
C, TARGET, CUT = 0.125, 0.125, 7
LONG = {0.05: 243, 0.03: 1290, 0.02: 4000}  # rounds of the earlier runs of DPO
MIXED = ("current", "reference")
METHODS: dict[str, Any] = {
    "DPO, own pairs": algorithms.create("online_dpo", value_range=1.0),
    "DPO, with reference": algorithms.create("online_dpo", players=MIXED, value_range=1.0),
    "XPO .01": algorithms.create("xpo", alpha=0.01, value_range=1.0),
    "XPO .1": algorithms.create("xpo", alpha=0.1, value_range=1.0),
    "XPO .01, own pairs": algorithms.create("xpo", players=("current", "current"), alpha=0.01, value_range=1.0),
}
PASSIVE, ACTIVE = tuple(METHODS)[:2], tuple(METHODS)[2:]


def coverage(kl_coef: float) -> float:
    """1 / eps."""
    return math.exp(C / kl_coef)


def rounds_of(method: str, kl_coef: float) -> int:
    if method in ACTIVE:
        return math.ceil(2 * coverage(kl_coef))
    return LONG.get(kl_coef, math.ceil(CUT * coverage(kl_coef)))


def run(algorithm: Any, kl_coef: float, rounds: int, replicates: int, seed: int, device: str) -> pd.DataFrame:
    problem = Problem(two_arm_exploration(kl_coef, C), BradleyTerry(), kl_coef)
    found = simulate(
        problem,
        algorithm,
        rounds=rounds,
        replicates=replicates,
        seed=seed,
        device=device,
        policy="tabular",
        metrics=["suboptimality", "informative_pairs"],
        record="all",
    ).frame()
    tables = {m: found.query("metric == @m").pivot(index="replicate", columns="round", values="value") for m in METRICS}
    gap, pairs = tables["suboptimality"].to_numpy(), tables["informative_pairs"].to_numpy()
    bound = math.floor(coverage(kl_coef) / 2)
    good, cut, first = gap < TARGET, CUT * coverage(kl_coef), (pairs == 0).sum(1)
    values = {
        "cut time": np.minimum(np.where(good.any(1), good.argmax(1), np.inf), cut),
        "reached": good.any(1),
        "bad up to T_lb": ~good[:, : bound + 1].any(1),
        "gap at T_lb": gap[:, bound],
        "first informative pair": first,
        "first informative pair, in its mean": first * 2 / coverage(kl_coef) * (1 - 1 / coverage(kl_coef)),
    }
    ends = [
        pd.DataFrame({"replicate": range(replicates), "round": rounds, "metric": name, "value": value.astype(float)})
        for name, value in values.items()
    ]
    shown = found[found["round"].isin(list(recording(rounds, "log")))]
    return pd.concat([shown, *ends], ignore_index=True).assign(queries=lambda f: f["round"].astype(float))


METRICS = ("suboptimality", "informative_pairs")


def cells(settings: Settings, tuned: Mapping[str, Any]) -> list[Task]:
    del tuned  # alpha is the grid's; both of DPO's pairings are shown
    grid = []
    for kl_coef in KL_COEFS[:2] if settings.smoke else KL_COEFS:
        for name, algorithm in METHODS.items():
            how = {"algorithm": algorithm, "kl_coef": kl_coef, "rounds": rounds_of(name, kl_coef)}
            labels = {"method": name, "kl_coef": kl_coef, "1/pi_ref(best)": coverage(kl_coef), "1/kl_coef": 1 / kl_coef}
            grid.append(Task(labels, run, how, settings.replicates, settings.seed))
    return grid


PAPER, NOTES, DERIVED = "2405.21046, Prop. 2.1", "own earlier runs", "derived"
OVER: dict[str, Any] = {"x": "1/pi_ref(best)"}
GAPS = {  # method: kl_coef: mean gap at T_lb, at the end, share of runs ever below 1/8
    "DPO, own pairs": {0.05: (0.162, 0.133, 0.65), 0.03: (0.297, 0.207, 0.45), 0.02: (0.281, 0.150, 0.60)},
    "DPO, with reference": {0.05: (0.228, 0.087, 0.95), 0.03: (0.317, 0.018, 1.0), 0.02: (0.374, 0.113, 0.80)},
    "XPO .01": {0.05: (0.095, 0.0, 1.0), 0.03: (0.0, 0.0, 1.0), 0.02: (0.0, 0.0, 1.0)},
}


def table_of() -> list[Number]:
    """The earlier runs' numbers, which had 20 seeds: a standard error of about .03 of gaps and of .1 of shares."""
    said = []
    for method, column in GAPS.items():
        for kl_coef, (bound, end, share) in column.items():
            where, tag = {"method": method, "kl_coef": kl_coef}, f"{method}, kl_coef {kl_coef}"
            said += [
                Number(f"{tag}: gap {bound} at T_lb", NOTES, "gap at T_lb", where, bound, 0.06),
                Number(f"{tag}: gap {end} at the end", NOTES, "suboptimality", where, end, 0.06),
                Number(f"{tag}: {share:.0%} of runs ever below 1/8", NOTES, "reached", where, share, 0.2),
            ]
    return said


claims = (
    *(
        Number(
            f"{m}, kl_coef {k}: all iterates bad up to T_lb with probability >= 1/4",
            f"{PAPER}; the constant is ours",
            "bad up to T_lb",
            {"method": m, "kl_coef": k},
            0.25,
            0.0,
            "at least",
        )
        for m in PASSIVE
        for k in KL_COEFS
    ),
    *(
        Exponent(f"{m}: waits like exp(1 / (8 kl_coef))", PAPER, "cut time", {"method": m}, 1, 0.2, **OVER)
        for m in PASSIVE
    ),
    *(
        Exponent(
            f"{m}: the first pair with information, too", DERIVED, "first informative pair", where, 1, 0.15, **OVER
        )
        for m in PASSIVE
        for where in [{"method": m}]
    ),
    *(
        Number(
            f"{m}, kl_coef {k}: that wait is 1 / (2 eps (1 - eps)) rounds in the mean",
            DERIVED,
            "first informative pair, in its mean",
            {"method": m, "kl_coef": k},
            1.0,
            0.4,
        )
        for m in PASSIVE
        for k in KL_COEFS
    ),
    *(
        Exponent(f"{m}: the waiting time is flat", PAPER, "cut time", {"method": m}, 0, 0.15, **OVER)
        for m in ACTIVE[:2]
    ),
    *(
        Number(f"{m}, kl_coef {k}: every run gets below 1/8", PAPER, "reached", {"method": m, "kl_coef": k}, 1, 0)
        for m in ACTIVE[:2]
        for k in KL_COEFS
    ),
    *table_of(),
    *(
        Ordering(
            f"kl_coef {k}: pairs of the policy lock in, and end behind those with the reference",
            NOTES,
            "suboptimality",
            {"method": PASSIVE[1]},
            {"method": PASSIVE[0]},
            {"kl_coef": k},
        )
        for k in LONG
    ),
)


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=3, height=2.6)
    wait, first, path = axes[0]
    how = {"looks": plotting.lines(list(METHODS)), "legend": False}
    plotting.curves(wait, frame, "cut time", "method", x="1/kl_coef", order=list(METHODS), **how)
    wait.set_ylabel(f"rounds to a gap < 1/8, cut at {CUT} / eps\n(lower is better)")
    learning = list(METHODS)[:4]  # the fifth never sees a pair of two actions
    plotting.curves(first, frame, "first informative pair", "method", x="1/kl_coef", order=learning, **how)
    first.set_ylabel("rounds to the first pair\nof two different actions")
    over = np.linspace(20, frame["1/kl_coef"].to_numpy().max(), 50)
    for ax in (wait, first):
        ax.plot(over, np.exp(C * over) / 2, color="0.5", linewidth=0.8, label=r"$T_{lb}$")
        ax.set_yscale("log")
        ax.set_xlabel("1 / kl_coef")
    smallest = float(frame["kl_coef"].to_numpy().min())
    where = {"kl_coef": smallest}
    plotting.curves(path, frame, "suboptimality", "method", where=where, order=learning, **how)
    path.axhline(TARGET, color="0.5", linewidth=0.8)
    path.set_xscale("log")
    path.set_title(f"kl_coef {smallest:g}")
    plotting.legend_above(figure, wait, columns=3)
    return figure


study = Study(
    name="xpo_lower_bound",
    title="Passive exploration waits exp(1 / (8 kl_coef)) rounds, XPO does not",
    source="Xie et al. 2024 (2405.21046), Proposition 2.1; nothing published to match",
    cells=cells,
    claims=claims,
    plot=plot,
    replicates=100,
    smoke_replicates=12,
)
