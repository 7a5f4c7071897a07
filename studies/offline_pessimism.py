"""Offline alignment under single-policy coverage: plain likelihood follows a rare arm's luck, pessimism does not.

Theory only, no paper draws this: chi-PO (2407.13399), VPO offline (2405.19320), RPO (2405.16436) and SPAC (2406.04274)
promise a gap of order sqrt(C / n), C = pi*/pi_ref at the comparator alone, where DPO may lose a constant for every n.
Their constants are known to us from memory and unverified (only abstracts and chi-PO's opening pages were found); of
the theorems the claims use the exponents alone.

Set-up. One context, three arms: a* (r = 1, pi_ref = 1/C), a common arm (r = 1/2) and a rare bad one (r = 0,
pi_ref = 1/n, about two appearances among n logged duels of the reference, so that it often wins whatever it was in).
Metric: regret of the policy against a*, without the KL, which is what the theorems bound at their tuned coefficients.
Each method has five candidates of the parameter that its theory tunes, chosen at C = 4, n = 1024 on other seeds and
scaled with n as the theory says: chi-PO's kl_coef as n^-1/2; RPO's weight per duel as n^-1/2 (kl_coef .02); VPO's alpha
as n^1/2 (kl_coef .02; its expectation over the reference); SPAC's weight of preferences as n^1/2. DPO and IPO have
kl_coef, constant in n. "DPO, small kl_coef" is DPO at the pessimists' .02.

What differs: the instance depends on n, as a lower bound's does; the error's worst case over instances, which is what
sqrt(C / n) speaks of, is not searched for, so exponents are one-sided.

Found: DPO at .02 and IPO lose about .3 at every n: a rare arm that won its two duels takes all mass. DPO with a tuned
kl_coef (.1) does fall, and grows faster in C than the pessimists; all four beat both. RPO, VPO and chi-PO hold in n
(RPO at C = 2 undecided, -.62) and hardly notice C. SPAC fails in C: ten passes of step 1 tilt the reference by at most
e^10, so the common arm keeps mass of order C e^-5 whatever n is; at C = 8 its exponent in n is -.50, undecided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from simbandit import plotting
from simbandit.algorithms import create
from simbandit.guarantees import Exponent, Number, Ordering
from simbandit.oracles import BradleyTerry
from simbandit.simulate import Problem, simulate
from simbandit.study import Settings, Study, Task
from simbandit.worlds import TableWorld

SMALL = 0.02
COVERAGES, SIZES = (2, 4, 8), (128, 512, 2048, 8192)
NAMES = {
    "dpo": "DPO",
    "ipo": "IPO",
    "rpo": "RPO",
    "vpo_offline": "VPO offline",
    "chi_po": r"$\chi$PO",
    "spac": "SPAC",
    "dpo_small": "DPO, small kl_coef",
}
PESSIMISTS = ("rpo", "vpo_offline", "chi_po", "spac")
METRIC = "policy_reward_regret"


@dataclass(frozen=True)
class Scaled:
    """A row whose `parameter` is value n^power; "kl_coef" is the problem's."""

    row: str
    parameter: str
    value: float
    power: float

    def at(self, n: int) -> tuple[Any, float]:
        """The algorithm and the kl_coef for n duels."""
        value = self.value * n**self.power
        if self.parameter == "kl_coef":
            return create(self.row, **({"clip": 2.0} if self.row == "chi_po" else {})), value
        return create(self.row, **{self.parameter: value}), SMALL


def candidates() -> dict[str, list[Scaled]]:
    root = math.sqrt(1024)
    values = {
        "dpo": ("kl_coef", 0.0, (0.03, 0.06, 0.1, 0.2, 0.4)),
        "ipo": ("kl_coef", 0.0, (0.03, 0.06, 0.1, 0.2, 0.4)),
        "rpo": ("sft_weight", -0.5, (0.003, 0.01, 0.03, 0.1, 0.3)),
        "vpo_offline": ("alpha", 0.5, (0.1, 0.3, 1.0, 3.0, 10.0)),
        "chi_po": ("kl_coef", -0.5, tuple(root * k for k in (0.003, 0.01, 0.03, 0.06, 0.1))),
        "spac": ("preference_weight", 0.5, (0.3, 1.0, 3.0, 10.0, 30.0)),
    }
    return {row: [Scaled(row, parameter, v, power) for v in grid] for row, (parameter, power, grid) in values.items()}


def learn(algorithm: Scaled, coverage: int, n: int, replicates: int, seed: int, device: str) -> pd.DataFrame:
    """n logged duels of the reference, one fit over all policies."""
    reference = np.array([1 / coverage, 1 - 1 / coverage - 1 / n, 1 / n])
    world = TableWorld(np.log(reference[None]), rewards=[[1.0, 0.5, 0.0]], reward_range=(0.0, 1.0))
    fitted, kl_coef = algorithm.at(n)
    problem = Problem(world, BradleyTerry(), kl_coef)
    run = {"rounds": 1, "batch_size": n, "replicates": replicates, "seed": seed, "device": device}
    frame = simulate(problem, fitted, metrics=[METRIC, "fit_residual"], policy="tabular", **run).frame()
    return frame.take(np.flatnonzero((frame["round"] == 1).to_numpy()))


def task(labels: dict[str, Any], algorithm: Scaled, replicates: int, seed: int) -> Task:
    arguments = {"algorithm": algorithm, "coverage": labels["coverage"], "n": labels["n"]}
    return Task(labels, learn, arguments, replicates, seed)


def tuning(settings: Settings) -> dict[str, Sequence[Any]]:
    few = max(2, settings.replicates // 2)
    at = {"coverage": 4, "n": 1024}
    return {row: [task(at, one, few, settings.tuning_seed) for one in given] for row, given in candidates().items()}


def cells(settings: Settings, tuned: dict[str, Any]) -> list[Task]:
    contenders = {**tuned, "dpo_small": Scaled("dpo", "kl_coef", SMALL, 0.0)}
    return [
        task({"method": method, "coverage": c, "n": n}, algorithm, settings.replicates, settings.seed)
        for method, algorithm in contenders.items()
        for c in (COVERAGES[1:2] if settings.smoke else COVERAGES)
        for n in (SIZES[:2] if settings.smoke else SIZES)
    ]


SOURCES = {
    "rpo": "2405.16436, rate under single-policy coverage (memory)",
    "vpo_offline": "2405.19320, offline theorem (memory)",
    "chi_po": "2407.13399, Theorem 3.1 (memory)",
    "spac": "2406.04274, guarantee (memory)",
}
claims = (
    *(
        Exponent(
            f"{row}: regret falls at least like n^-1/2, C = {c}",
            SOURCES[row],
            METRIC,
            {"method": row, "coverage": c},
            -0.5,
            0.0,
            "at most",
            x="n",
        )
        for row in PESSIMISTS
        for c in COVERAGES
    ),
    *(
        Exponent(
            f"{row}: regret grows at most like C^1/2, n = 8192",
            SOURCES[row],
            METRIC,
            {"method": row, "n": 8192},
            0.5,
            0.0,
            "at most",
            x="coverage",
        )
        for row in PESSIMISTS
    ),
    *(
        Ordering(
            f"{row} beats {plain}, C = 4, n = 8192",
            "2407.13399, introduction: KL does not prevent over-optimisation",
            METRIC,
            {"method": row},
            {"method": plain},
            {"coverage": 4, "n": 8192},
        )
        for row in PESSIMISTS
        for plain in ("dpo", "ipo")
    ),
    *(
        Number(
            f"DPO at a small kl_coef loses a constant (> .1) at n = {n}, C = 4",
            "2407.13399 (DPO fails with constant probability)",
            METRIC,
            {"method": "dpo_small", "coverage": 4, "n": n},
            0.1,
            0.0,
            "at least",
        )
        for n in (128, 8192)
    ),
)


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=2, height=2.8)
    left, right = axes[0]
    order = [name for name in NAMES if name in set(frame["method"])]
    middle, most = 4, max(frame["n"])
    shared = {"order": order, "names": NAMES, "loglog": True, "legend": False}
    plotting.curves(left, frame, METRIC, "method", x="n", where={"coverage": middle}, **shared)
    n = np.array(sorted(set(frame["n"])), dtype=float)
    left.plot(n, np.sqrt(middle / n), color="0.6", linewidth=0.8, label=r"$\sqrt{C/n}$")
    left.set_xlabel("n, logged duels")
    left.set_title(f"(a) C = {middle}")
    plotting.curves(right, frame, METRIC, "method", x="coverage", where={"n": most}, **shared)
    c = np.array(sorted(set(frame["coverage"])), dtype=float)
    right.plot(c, np.sqrt(c / most), color="0.6", linewidth=0.8)
    right.set_xticks(c, [f"{x:g}" for x in c])
    right.set_xticks([], minor=True)
    right.set_xlabel(r"C = $1/\pi_{\mathrm{ref}}(a^*)$")
    right.set_ylabel("")
    right.set_title(f"(b) n = {most}")
    for ax in (left, right):
        ax.set_ylim(bottom=5e-4)
    left.set_ylabel("regret of the policy [reward]\n(lower is better)")
    plotting.legend_above(figure, left)
    return figure


study = Study(
    name="offline_pessimism",
    title="Single-policy coverage: pessimistic offline methods against DPO and IPO",
    source="theory of 2407.13399, 2405.16436, 2405.19320, 2406.04274; no published figure",
    cells=cells,
    claims=claims,
    plot=plot,
    tuning=tuning,
    tuning_metric=METRIC,
    replicates=64,
    smoke_replicates=8,
)
