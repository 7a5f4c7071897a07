"""Three answers in a cycle: who reaches the equilibrium, who circles, and at what rate (COMAL's synthetic game).

COMAL (2410.23223), synthetic experiment: P(b > a) = P(c > b) = .9, P(a > c) = .8, reference and start (.2, .5, .3),
equilibrium of the game without KL (4, 3, 4) / 11. The paper's figure shows the duality gap of iterative DPO, iterative
IPO, SPPO, INPO and COMAL: the first three cycle or diverge, INPO stops at a constant gap, COMAL reaches about 1e-11.
Every method is exact here (`FullInformation`): the x-axis counts evaluations of P q. Nothing is random, so that one
replicate is all there is and no number has an interval.

Grid: iterated best response (iterative IPO fitted to convergence) at kl_coef .1; multiplicative weights, the exact form
of SPPO, step .3, last and average iterate; INPO's exact form with step .3 at kl_coef 1/3, .1, .01; optimistic weights,
step 1 and .3; COMAL at kl_coef 1, .3, .1, .01, its inner loop run to the rounding of float64.

What differs: iterative DPO is not exact on a game (it has no population form without a sampling law) and is left to
another study; COMAL's inner solver is the extragradient, two evaluations a step; start and equilibrium are from our
notes, the paper's text being silent in the copies that we read. `factor` is sqrt(KL_k / KL_(k-1)) to the equilibrium,
per outer step k: theory says kl_coef / sqrt(kl_coef^2 + omega^2), omega = sqrt(abc / (a + b + c)) = .20889 for margins
.4, .4, .3.

Numbers labelled "own earlier runs" were computed in another program before this package existed, to the digits given.
Their t counts the start as iterate 1, so that it is round t - 1 here; COMAL's outer steps are counted from 1 after the
first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from simbandit import plotting, plotting_games
from simbandit.algorithms.averaging import Averaged
from simbandit.algorithms.games import BestResponse, Comal, MirrorDescent, MultiplicativeWeights, OptimisticWeights
from simbandit.guarantees import Monotone, Number
from simbandit.metrics import Snapshot, kl
from simbandit.oracles import FullInformation, cycle
from simbandit.simulate import Problem, simulate
from simbandit.study import Settings, Simulation, Study, Task
from simbandit.types import Algorithm
from simbandit.worlds import TableWorld

START = (0.2, 0.5, 0.3)
GAME = cycle(-0.4, -0.4, -0.3)
EQUILIBRIUM = (4 / 11, 3 / 11, 4 / 11)
OMEGA = math.sqrt(0.4 * 0.4 * 0.3 / 1.1)
GAP = "unregularised_gap"
ROUNDS = 5000
# kl_coef -> step, inner steps, outer steps: the inner factor 1 - s kl_coef brings every inner loop below 1e-15
COMAL = {1.0: (0.5, 60, 400), 0.3: (0.77, 140, 123), 0.1: (0.9, 400, 40), 0.01: (3.3, 1200, 12)}


def probability(s: Snapshot, action: int) -> Tensor:
    return s.over_contexts(s.log_probs.exp()[..., action])


def kl_to_equilibrium(s: Snapshot) -> Tensor:
    """KL(ne || pi), ne that of the game without KL."""
    return s.over_contexts(kl(torch.tensor(EQUILIBRIUM, dtype=torch.float64).log(), s.log_probs))


METRICS = [
    GAP,
    "duality_gap",
    ("kl_to_equilibrium", kl_to_equilibrium),
    *((f"probability_{i}", partial(probability, action=i)) for i in range(3)),
]


def problem(kl_coef: float) -> Problem:
    return Problem(TableWorld(np.log([START])), FullInformation(GAME), kl_coef)


def outer_loop(algorithm: Comal, kl_coef: float, outer: int, replicates: int, seed: int, device: str) -> pd.DataFrame:
    """COMAL, recorded after every outer step, with the factor by which each brought sqrt(KL) down."""
    each = 2 * algorithm.inner
    frame = simulate(
        problem(kl_coef),
        algorithm,
        rounds=outer * each,
        replicates=replicates,
        seed=seed,
        device=device,
        metrics=METRICS,
        record=range(0, outer * each + 1, each),
    ).frame()
    rows = frame.loc[frame["metric"] == "kl_to_equilibrium"]
    factor = np.sqrt(rows["value"] / rows.groupby("replicate")["value"].shift())
    theory = kl_coef / math.hypot(kl_coef, OMEGA)
    derived = [rows.assign(metric="factor", value=factor).dropna(), rows.assign(metric="theory", value=theory)]
    return pd.concat([frame, *derived], ignore_index=True)


def cells(settings: Settings, tuned: Mapping[str, Any]) -> list[Simulation | Task]:
    del tuned  # the steps are the earlier runs', so that their numbers can be met
    methods: list[tuple[str, float, Algorithm]] = [
        ("best response", 0.1, BestResponse()),
        ("sppo", 0.1, MultiplicativeWeights(0.3)),
        ("sppo, average", 0.1, Averaged(MultiplicativeWeights(0.3))),
        *(("inpo", kl_coef, MirrorDescent(0.3)) for kl_coef in (1 / 3, 0.1, 0.01)),
        ("omwu, step 1", 0.1, OptimisticWeights(1.0)),
        ("omwu, step .3", 0.1, OptimisticWeights(0.3)),
    ]
    record = sorted({*range(301), 499, 1999, 4999, *np.geomspace(300, ROUNDS, 400).astype(int).tolist()})
    grid: list[Simulation | Task] = [
        Simulation(
            {"method": method, "kl_coef": kl_coef},
            problem(kl_coef),
            algorithm,
            ROUNDS,
            settings.replicates,
            seed=settings.seed,
            metrics=METRICS,
            record=record,
        )
        for method, kl_coef, algorithm in methods
    ]
    for kl_coef, (step_size, inner, outer) in COMAL.items():
        if not settings.smoke or kl_coef in (0.1, 0.01):
            arguments = {"algorithm": Comal(step_size, inner), "kl_coef": kl_coef, "outer": outer}
            grid.append(
                Task({"method": "comal", "kl_coef": kl_coef}, outer_loop, arguments, settings.replicates, settings.seed)
            )
    return grid


PAPER, NOTES, DERIVED = "2410.23223, synthetic experiment", "own earlier runs", "own earlier runs (linearisation)"


def number(
    name: str,
    source: str,
    method: str,
    value: float,
    tolerance: float,
    at: int | None = None,
    kl_coef: float = 0.1,
    metric: str = GAP,
    sense: Any = "equals",
) -> Number:
    where = {"method": method, "kl_coef": kl_coef}
    return Number(name, source, metric, where, value, tolerance, sense, at, exact=True)


def outer_rounds(kl_coef: float, outer: int) -> int:
    return 2 * COMAL[kl_coef][1] * outer


claims = (
    number("iterative IPO (best responses) keeps a gap > .1", PAPER, "best response", 0.1, 0, sense="at least"),
    number("SPPO ends with a larger gap than it starts with (.28)", PAPER, "sppo", 0.28, 0, sense="at least"),
    *(
        number(f"SPPO, last iterate, t = {t}", "own earlier runs", "sppo", value, 5e-4, t - 1)
        for t, value in ((10, 0.233), (100, 0.245), (500, 0.347), (2000, 0.767))
    ),
    *(
        number(f"SPPO, average iterate, t = {t}", "own earlier runs", "sppo, average", value, 5e-4, t - 1)
        for t, value in ((10, 0.262), (100, 0.026), (500, 0.017), (2000, 0.010))
    ),
    number("INPO stops at a constant gap, kl_coef .1", f"{PAPER}; {NOTES}", "inpo", 0.0588277383, 1e-9),
    number("INPO's constant gap, kl_coef .01", NOTES, "inpo", 0.0100, 5e-5, kl_coef=0.01),
    number("INPO's constant gap, kl_coef 1/3", NOTES, "inpo", 0.2006, 5e-5, kl_coef=1 / 3),
    number("INPO's own, regularised gap vanishes, kl_coef .1", NOTES, "inpo", 0, 1e-12, metric="duality_gap"),
    number("OMWU, step 1, t = 500", NOTES, "omwu, step 1", 2.8e-6, 5e-8, 499),
    number("OMWU, step .3, t = 5000", NOTES, "omwu, step .3", 1.8e-5, 5e-7, 4999),
    number("COMAL reaches 1e-11, kl_coef .1", PAPER, "comal", 1e-11, 0, sense="at most"),
    *(
        number(f"COMAL, outer step {k}", NOTES, "comal", value, digit, outer_rounds(0.1, k))
        for k, value, digit in ((1, 0.0588, 5e-5), (2, 0.0498, 5e-5), (5, 2.79e-3, 5e-6), (10, 6.3e-5, 5e-7))
    ),
    *(
        number(
            f"COMAL below 1e-11 after outer step {k}, kl_coef {c:g}",
            NOTES,
            "comal",
            1e-11,
            0,
            outer_rounds(c, k),
            c,
            sense="at most",
        )
        for c, k in ((0.3, 123), (0.1, 29), (0.01, 8))
    ),
    *(
        number(
            f"and not after outer step {k}, kl_coef {c:g}",
            NOTES,
            "comal",
            1e-11,
            0,
            outer_rounds(c, k),
            c,
            sense="at least",
        )
        for c, k in ((0.3, 122), (0.1, 28), (0.01, 7), (1.0, 400))
    ),
    *(
        Monotone(
            f"COMAL's KL to the equilibrium only falls, kl_coef {c:g}",
            "2410.23223, Theorem on KL",
            "kl_to_equilibrium",
            {"method": "comal", "kl_coef": c},
            "round",
            "decreasing",
            tolerance=1e-15,
            exact=True,
        )
        for c in COMAL
    ),
    *(
        number(
            f"COMAL's gap is not monotone: kl_coef 1, outer step {k}",
            NOTES,
            "comal",
            value,
            5e-4,
            outer_rounds(1.0, k),
            1.0,
        )
        for k, value in ((5, 0.138), (10, 0.208))
    ),
    *(
        number(
            f"COMAL's outer factor, kl_coef {c:g}, outer step {k}",
            DERIVED,
            "comal",
            c / math.hypot(c, OMEGA),
            1e-3,
            outer_rounds(c, k),
            c,
            "factor",
        )
        for c, k in ((1.0, 300), (0.3, 60), (0.1, 20), (0.01, 4))
    ),
)

SHOWN = ("sppo", "inpo", "omwu, step 1", "comal")
NAMES = {
    "best response": "iterated best response",
    "sppo": "SPPO (exact), last",
    "sppo, average": "SPPO (exact), average",
    "inpo": "INPO (exact)",
    "omwu, step 1": "OMWU, step 1",
    "comal": "COMAL",
}


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=3, height=2.7)
    triangle, curve, table = axes[0]
    at = {"kl_coef": 0.1}
    looks = plotting.lines(list(NAMES))
    preference = np.asarray(GAME.preference)[0]
    plotting_games.simplex(triangle, preference=preference)
    path = frame.take(np.flatnonzero((frame["round"].to_numpy() <= 300) | (frame["method"] == "comal").to_numpy()))
    plotting_games.paths(triangle, path, "method", where=at, order=SHOWN, looks=looks, legend=False)
    triangle.set_title("(a) paths, 300 evaluations;\nfield without KL")
    plotting_games.gaps(
        curve, frame, GAP, "method", log_x=True, where=at, order=list(NAMES), names=NAMES, looks=looks, legend=False
    )
    curve.set_title("(b) gap, kl_coef .1")
    curve.set_ylabel("duality gap without KL\n(lower is better)")
    last = frame.take(np.flatnonzero((frame["kl_coef"] == 0.1).to_numpy() & (frame["replicate"] == 0).to_numpy()))
    policies = np.stack([_final(last, method) for method in NAMES])
    plotting_games.cross_play(
        table, policies @ preference @ policies.T, ["BR", "SPPO", "SPPO avg.", "INPO", "OMWU", "COMAL"]
    )
    table.set_title("(c) cross-play, last policies")
    plotting.legend_above(figure, curve, columns=3)
    return figure


def _final(frame: pd.DataFrame, method: str) -> np.ndarray:
    """The last stored policy."""
    rows = frame.take(np.flatnonzero((frame["method"] == method).to_numpy()))
    rows = rows.take(np.flatnonzero((rows["round"] == rows["round"].max()).to_numpy()))
    return np.array([float(rows.loc[rows["metric"] == m, "value"].iloc[0]) for m in plotting_games.PROBABILITIES])


study = Study(
    name="comal_cycle",
    title="A cycle of three answers: best responses, SPPO, INPO, OMWU and COMAL (exact)",
    source="COMAL (2410.23223), synthetic experiment",
    cells=cells,
    claims=claims,
    plot=plot,
    replicates=1,
    smoke_replicates=1,
)
