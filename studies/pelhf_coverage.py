"""Pessimistic equilibrium learning from logged duels: how much data, and data about what.

Ye et al. 2024 (2402.07314), offline section, which has no simulation: own design. One game of
8 actions: a cycle of three (P = .8, .7, .6) whose members beat each of the other five with .85, and these beat each
other with .6 in order; one-hot features, so that the bilinear class holds every table (28 parameters); uniform
reference, kl_coef = .1. A replicate is another data set. Who logged the duels (`data`):

    "uniform"     both actions uniform
    "one policy"  the first from pi*, the second uniform: pi* was compared with everything, losers hardly with losers
    "expert"      both from pi*: losers are hardly seen at all
    "poor"        both mostly losers, probability proportional to exp(-.7 rank from the bottom)

`coverage` is the paper's single-policy coefficient for this class, exact: C = max over pi2 and skew D of (E D(pi*,
pi2))^2 / E_data D^2 = max_b sum_a pi*(a)^2 / mu(a, b), mu the law of unordered pairs; `pair_coverage` = max_ab
1 / mu(a, b), what uniform convergence over all policies would ask for.

Contenders, ridge .1 in all: greedy (equilibrium of the maximum likelihood estimate), PELHF in its bonus and
version-space forms, their radii, and greedy's ridge instead, each tuned with four candidates for every kind of data, at
n = 300 on seeds of their own. Besides, at n = 100,000, the version space with the theory's radius: beta^2 = 2 (p +
log(2 / delta)), delta = .05, with p = 28 in place of log|P| (constant 1); our radius is then 2 sqrt 2 beta. `bound` is
Theorem 1, 4 beta sqrt(C / n), on `exploitability` = 1/2 - min_pi2 J(pi_hat, pi2), one-sided. No gap of this game
exceeds 1/2, so that the bound says something only from about 40,000 duels on, on poor data from 10^7.

Found: the bound is never violated, and is loose by three orders of magnitude (at n = 100,000 it is .33 on uniform data,
the gap 1.2e-4). Both forms fall like 1 / n wherever the data cover pi*, as greedy does: the earlier runs' -1/2 for
pessimism is the bound's slope, not the algorithm's; a bonus of order n^-1/2 moves the policy by as much and costs its
square. One policy's data are as good as uniform data, three times better even, although some of their pairs are 13
times as rare: single-policy coverage is what counts. Against greedy, the bonus form wins by a quarter to a third on
experts' data up to n = 3,000 (rare actions that look lucky); the version space does not, even at the largest radius
tried, 1 (beyond, its plans are no longer certified at n = 300). On poor data nothing learns (C = 3,500; at 10,000 duels
winners hardly met), and pessimism makes it worse: it flees to the uniform reference, which the winners beat. That it
would help there was our expectation, not the theorem's, whose bound is empty. Greedy's 1 / n is missed on experts' data
for falling faster, on poor data for lack of coverage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from simbandit import plotting
from simbandit.algorithms import create
from simbandit.data import Logged
from simbandit.equilibrium import solve
from simbandit.game_metrics import exploitability
from simbandit.guarantees import Exponent, Frequency, Number, Ordering
from simbandit.guarantees.rows import select
from simbandit.metrics import Snapshot
from simbandit.oracles import PreferenceTable
from simbandit.policies import Rows
from simbandit.simulate import Problem
from simbandit.study import Settings, Simulation, Study
from simbandit.types import Algorithm, Contexts
from simbandit.worlds import TableWorld

ACTIONS, KL_COEF, DELTA, RIDGE = 8, 0.1, 0.05, 0.1
PARAMETERS = ACTIONS * (ACTIONS - 1) // 2
BETA = math.sqrt(2 * (PARAMETERS + math.log(2 / DELTA)))
DATA = ("uniform", "one policy", "expert", "poor")
SIZES, THEORY_SIZES, TUNING_SIZE = (100, 300, 1000, 3000, 10000), (100000,), 300
RULES = ("greedy", "greedy, tuned ridge", "bonus", "version space")


@cache
def game() -> PreferenceTable:
    margins = np.zeros((ACTIONS, ACTIONS))
    margins[0, 1], margins[1, 2], margins[0, 2] = 0.3, 0.2, -0.1
    margins[:3, 3:] = 0.35
    margins[3:, 3:] = np.triu(np.full((5, 5), 0.1), 1)
    return PreferenceTable(0.5 + margins - margins.T)


@cache
def nash() -> Tensor:
    """pi*, (A,)."""
    P = torch.tensor(np.asarray(game().preference)).reshape(ACTIONS, ACTIONS)
    return solve(P, torch.full((ACTIONS,), -math.log(ACTIONS), dtype=torch.float64), KL_COEF).log_probs.exp()


def players(data: str) -> tuple[Tensor, Tensor]:
    """The laws (A,) of a logged duel's two actions."""
    even = torch.full((ACTIONS,), 1 / ACTIONS, dtype=torch.float64)
    if data == "one policy":
        return nash(), even
    if data == "expert":
        return nash(), nash()
    if data == "poor":
        low = torch.softmax(0.7 * torch.arange(ACTIONS, dtype=torch.float64), -1)
        return low, low
    return even, even


def coverage(data: str) -> tuple[float, float]:
    """The single-policy coefficient C, and max_ab 1 / mu(a, b)."""
    first, second = players(data)
    mu = first[:, None] * second + second[:, None] * first
    apart = 1 - torch.eye(ACTIONS, dtype=torch.float64)
    return float((apart * nash()[:, None].square() / mu).sum(0).max()), float((apart / mu).max())


@dataclass(frozen=True)
class Law(Rows):
    """The same law of actions in every context."""

    probabilities: tuple[float, ...]

    def rows(self, contexts: Contexts) -> Tensor:
        row = torch.tensor(self.probabilities, dtype=torch.float64).log()
        return row.expand(*contexts.ref_log_probs.shape)


def single_coverage(s: Snapshot, data: str) -> Tensor:
    return torch.full((s.instance.replicates,), coverage(data)[0], dtype=torch.float64)


def pair_coverage(s: Snapshot, data: str) -> Tensor:
    return torch.full((s.instance.replicates,), coverage(data)[1], dtype=torch.float64)


def bound(s: Snapshot, data: str, n: int) -> Tensor:
    """4 beta sqrt(C / n)."""
    return 4 * BETA * (single_coverage(s, data) / n).sqrt()


def bound_violated(s: Snapshot, data: str, n: int) -> Tensor:
    return (exploitability(s) > bound(s, data, n)).to(torch.float64)


def cell(settings: Settings, rule: str, radius: str, data: str, n: int, algorithm: Algorithm, seed: int) -> Simulation:
    world = TableWorld(np.full((1, ACTIONS), -math.log(ACTIONS)), features=np.eye(ACTIONS)[None])
    first, second = (Law(tuple(law.tolist())) for law in players(data))
    where = {"data": data, "n": n}
    return Simulation(
        {"rule": rule, "radius": radius, **where},
        Problem(world, game(), KL_COEF),
        algorithm,
        rounds=1,
        batch_size=n,
        replicates=settings.replicates,
        seed=seed,
        offline=Logged(first, n, second),
        metrics=[
            "exploitability",
            "kl_to_ref",
            ("coverage", partial(single_coverage, data=data)),
            ("pair_coverage", partial(pair_coverage, data=data)),
            ("bound", partial(bound, **where)),
            ("bound_violated", partial(bound_violated, **where)),
        ],
    )


def tuning(settings: Settings) -> dict[str, list[Simulation]]:
    def pelhf(option: str, radii: Sequence[float]) -> list[Algorithm]:
        return [create("pelhf", option=option, radius=radius, ridge=RIDGE) for radius in radii]

    few = Settings(min(settings.replicates, 16), settings.smoke, settings.seed)
    contenders = {
        "greedy, tuned ridge": [create("pelhf", radius=0.0, ridge=ridge) for ridge in (0.01, 0.1, 1.0, 10.0)],
        "bonus": pelhf("bonus", (0.3, 1.0, 3.0, 10.0)),
        "version space": pelhf("version_space", (0.03, 0.1, 0.3, 1.0)),
    }
    return {
        f"{rule}/{data}": [cell(few, rule, "tuned", data, TUNING_SIZE, one, settings.tuning_seed) for one in candidates]
        for data in DATA
        for rule, candidates in contenders.items()
    }


def cells(settings: Settings, tuned: dict[str, Any]) -> Sequence[Simulation]:
    sizes, theory_sizes = ((100, 1000), (10000,)) if settings.smoke else (SIZES, THEORY_SIZES)
    greedy = create("pelhf", radius=0.0, ridge=RIDGE)
    theory = create("pelhf", option="version_space", radius=2 * math.sqrt(2) * BETA, ridge=RIDGE)
    return [
        *(
            cell(settings, rule, "tuned", data, n, tuned.get(f"{rule}/{data}", greedy), settings.seed)
            for data in DATA
            for n in sizes
            for rule in RULES
        ),
        *(
            cell(settings, "version space", "theory", data, n, theory, settings.seed)
            for data in DATA
            for n in theory_sizes
        ),
    ]


THEOREM, GREEDY, NOTES, OWN = "2402.07314, Theorem 1", "2510.24700", "own earlier runs", "own expectation"


def tuned_at(rule: str, data: str, n: int | None = None) -> dict[str, Any]:
    return {"rule": rule, "radius": "tuned", "data": data} | ({} if n is None else {"n": n})


claims = (
    *(
        Frequency(
            f"{data}: gap <= 4 beta sqrt(C / n), theory's radius, with probability 1 - delta",
            THEOREM,
            "bound_violated",
            {"rule": "version space", "radius": "theory", "data": data},
            DELTA,
            "n",
        )
        for data in DATA
    ),
    *(
        Exponent(
            f"{rule}, {data}: the gap falls at least like n^-1/2",
            THEOREM,
            "exploitability",
            tuned_at(rule, data),
            -0.5,
            0.0,
            "at most",
            x="n",
            window=(300, 10000),
        )
        for rule in ("bonus", "version space")
        for data in DATA
    ),
    *(
        Exponent(
            f"{rule}, uniform: the gap falls like n^-1/2",
            NOTES,
            "exploitability",
            tuned_at(rule, "uniform"),
            -0.5,
            0.2,
            x="n",
            window=(300, 10000),
        )
        for rule in ("bonus", "version space")
    ),
    *(
        Exponent(
            f"greedy, {data}: the gap falls like n^-1",
            GREEDY,
            "exploitability",
            tuned_at("greedy", data),
            -1.0,
            0.2,
            x="n",
            window=(300, 10000),
        )
        for data in DATA
    ),
    *(
        Ordering(
            f"{rule} beats greedy on {data} data, n = {n}",
            OWN,
            "exploitability",
            tuned_at(rule, data, n),
            tuned_at("greedy", data, n),
        )
        for rule in ("bonus", "version space")
        for data in ("expert", "poor")
        for n in (100, 1000)
    ),
    *(
        Ordering(
            f"{rule} beats greedy with a tuned ridge on {data} data, n = 1000",
            OWN,
            "exploitability",
            tuned_at(rule, data, 1000),
            tuned_at("greedy, tuned ridge", data, 1000),
        )
        for rule in ("bonus", "version space")
        for data in ("expert", "poor")
    ),
    *(
        Ordering(
            f"{rule}: one policy's data serve as well as uniform data, n = 1000",
            THEOREM,
            "exploitability",
            tuned_at(rule, "one policy", 1000),
            tuned_at(rule, "uniform", 1000),
        )
        for rule in ("bonus", "version space")
    ),
    Ordering(
        "though some pairs are over ten times as rare in one policy's data",
        "computed",
        "pair_coverage",
        tuned_at("greedy", "uniform", 1000),
        tuned_at("greedy", "one policy", 1000),
        factor=10,
        exact=True,
    ),
    Number(
        "one policy's coverage is at most the number of actions",
        "derived",
        "coverage",
        tuned_at("greedy", "one policy", 1000),
        float(ACTIONS),
        0.0,
        "at most",
        exact=True,
    ),
)


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=2, rows=2, height=2.4)
    looks = plotting.lines([*RULES, "theory"])
    for ax, data in zip(axes.flat, DATA, strict=True):
        shared: dict[str, Any] = {"x": "n", "loglog": True, "legend": False}
        where = {"data": data, "radius": "tuned"}
        names = {"greedy": "greedy, ridge .1", "bonus": "PELHF, bonus", "version space": "PELHF, version space"}
        plotting.curves(
            ax, frame, "exploitability", "rule", where=where, order=RULES, looks=looks, names=names, **shared
        )
        plotting.curves(
            ax,
            frame,
            "exploitability",
            "radius",
            where={"data": data},
            order=["theory"],
            looks=looks,
            names={"theory": "PELHF, version space, theory's radius"},
            **shared,
        )
        rows = select(frame, {"data": data, "metric": "bound", "replicate": 0}).drop_duplicates("n").sort_values("n")
        n, limit = rows["n"].to_numpy(), rows["value"].to_numpy()
        ax.plot(n, limit, color="0.4", linewidth=0.8, linestyle=":", marker="", label="Theorem 1")
        ax.set_ylim(2e-5, 1.0)
        ax.set_title(f"{data}: C = {coverage(data)[0]:.3g}, pairs {coverage(data)[1]:.3g}")
        ax.set_xlabel("n (duels)")
        ax.set_ylabel("exploitability [win probability]\n(lower is better)" if ax in axes[:, 0] else "")
    plotting.legend_above(figure, axes[0, 0], columns=3)
    return figure


study = Study(
    name="pelhf_coverage",
    title="Pessimistic equilibrium learning, over the number of duels and whom they compare",
    source="Ye et al. 2024 (2402.07314), offline section; own design, no published figure",
    cells=cells,
    claims=claims,
    plot=plot,
    tuning=tuning,
    tuning_metric="exploitability",
    replicates=80,
    smoke_replicates=6,
)
