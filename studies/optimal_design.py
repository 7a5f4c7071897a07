"""Optimal design before the first answer: its certificate, what it costs to compute, and what it buys.

Sources: Kiefer and Wolfowitz 1960 (a design is D-optimal iff its largest squared width is the dimension d); Frank-Wolfe
with exact line search needs of order d / tolerance steps (Khachiyan 1996), with away steps of order log(1 / tolerance)
(Ahipasaoglu, Sun, Todd 2008; Todd and Yildirim 2007). Use: one-shot plans for preference data (ODPO 2410.17055: worst-
context simple regret O~(d / sqrt(T)), no experiments), against active rules: APO (2402.10500), BALD (1112.5745),
uncertainty sampling, coreset (Sener and Savarese 2018).

Designs: N = 500 Gaussian vectors in R^8, tolerances .1 to .001; plain Frank-Wolfe from the uniform design (stopped at
20,000 steps) against the package's `d_optimal`. Regret: 50 contexts x 4 actions, unit features in R^8, |theta*| = 3,
Bradley-Terry duels, T up to 400, the same ridge estimator for all; measure: worst_argmax_regret.

What differs: the constants of ODPO's plan are unknown, so that only its rate is judged. "batch 50": APO chooses 50
pairs at once, the design updated inside the batch.

Found (64 replicates, 16 designs): the certificate comes out, and uniform weights are 3.4 times as wide; plain
Frank-Wolfe takes 5,700 steps to .001, as 1 / tolerance says, away steps 210. On preference data the designs save little
on random features (the plan .36, APO .33, uniform pairs .42 at T = 400): that the plan is below uniform pairs is not
decided (it was, barely, when designs started from other candidates and stopped at another design of the same
certificate), nor that it is as good as APO to 10 %; its slope is -.55, and a batch of 50 costs nothing visible. One
claim fails: BALD, which looks at the answers and asks where the label is least certain given theta, beats APO (.25
against .33), although APO is the rule with the worst-context guarantee; coreset (.39), which has asked all 300 pairs by
T = 300 and asks at random from then on, does not separate from APO.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from simbandit import Problem, algorithms, design, plotting
from simbandit.draws import generator
from simbandit.guarantees import Exponent, Number, Ordering
from simbandit.oracles import BradleyTerry
from simbandit.study import Settings, Simulation, Study, Task
from simbandit.worlds import LinearWorld
from studies._random_pairs import RandomPairs

N, D, LIMIT = 500, 8, 20_000
TOLERANCES = (0.1, 0.03, 0.01, 0.003, 0.001)
SOLVERS = ("plain", "away")
WORLD = LinearWorld(n_contexts=50, n_actions=4, dim=D, theta_norm=3.0)
UNIFORM, PLAN, ACTIVE, BATCH = "uniform", "D-optimal plan", "APO (V)", "APO (V), batch 50"
RULES: dict[str, Any] = {
    UNIFORM: RandomPairs(),
    PLAN: algorithms.create("d_optimal"),
    ACTIVE: algorithms.create("apo"),
    BATCH: algorithms.create("apo"),
    "BALD": algorithms.create("bald"),
    "uncertainty": algorithms.create("uncertainty"),
    "coreset": algorithms.create("coreset"),
}
BUDGETS = (50, 100, 200, 400)


def plain_frank_wolfe(z: np.ndarray, tolerance: float) -> tuple[np.ndarray, int]:
    """Toward the widest candidate with exact line search, from the uniform design; weights and steps."""
    n, d = z.shape
    w = np.full(n, 1 / n)
    inverse = np.linalg.inv(z.T @ z / n)
    q = np.einsum("nd,de,ne->n", z, inverse, z)
    for step in range(LIMIT):
        j = int(q.argmax())
        if q[j] <= (1 + tolerance) * d:
            return w, step
        s = (q[j] / d - 1) / (q[j] - 1)
        w *= 1 - s
        w[j] += s
        column = inverse @ z[j]
        shrink = s / (1 - s + s * q[j])
        inverse = (inverse - shrink * np.outer(column, column)) / (1 - s)
        q = (q - shrink * (z @ column) ** 2) / (1 - s)
    return w, LIMIT


def designs(replicates: int, seed: int, device: str, solver: str, tolerance: float) -> pd.DataFrame:
    """Per replicate: steps, and the largest squared width over d, of the design found and of the uniform one."""
    del device
    rows = []
    for r in range(replicates):
        z = generator(seed, r, "candidates").standard_normal((N, D))
        if solver == "plain":
            weights, steps = plain_frank_wolfe(z, tolerance)
        else:
            found = design.d_optimal(z, tolerance=tolerance)
            weights, steps = found.weights, found.iterations
        values = {
            "steps": max(1, steps),
            "width": design.largest_width(z, weights) / D,
            "uniform_width": design.largest_width(z, np.full(N, 1 / N)) / D,
        }
        rows += [(r, 1, 0.0, metric, float(value)) for metric, value in values.items()]
    return pd.DataFrame(rows, columns=["replicate", "round", "queries", "metric", "value"])


def cells(settings: Settings, tuned: Mapping[str, Any]) -> list[Simulation | Task]:
    del tuned
    tolerances, budgets = (TOLERANCES[:2], BUDGETS[:2]) if settings.smoke else (TOLERANCES, BUDGETS)
    grid: list[Simulation | Task] = [
        Task(
            {"part": "design", "solver": solver, "tolerance": tolerance},
            designs,
            {"solver": solver, "tolerance": tolerance},
            min(settings.replicates, 16),
            settings.seed,
        )
        for solver in SOLVERS
        for tolerance in tolerances
    ]
    for rule, algorithm in RULES.items():
        size = 50 if rule == BATCH else 1
        for budget in budgets if rule == PLAN else budgets[-1:]:
            grid.append(
                Simulation(
                    {"part": "regret", "rule": rule, "budget": budget},
                    Problem(WORLD, BradleyTerry(), 1.0),
                    algorithm,
                    rounds=budget // size,
                    batch_size=size,
                    replicates=settings.replicates,
                    seed=settings.seed,
                    metrics=["worst_argmax_regret", "argmax_regret"],
                    record=[one // size for one in budgets if one <= budget],
                )
            )
    return grid


def _rule(rule: str, budget: int = BUDGETS[-1]) -> dict[str, Any]:
    return {"part": "regret", "rule": rule, "budget": budget}


def _less(name: str, source: str, smaller: str, larger: str, factor: float = 1.0) -> Ordering:
    return Ordering(
        f"{name} at T = {BUDGETS[-1]}", source, "worst_argmax_regret", _rule(smaller), _rule(larger), factor=factor
    )


def _steps(solver: str) -> dict[str, Any]:
    return {"part": "design", "solver": solver}


KIEFER, AWAY, ODPO = "Kiefer and Wolfowitz 1960", "Ahipasaoglu, Sun, Todd 2008", "2410.17055, simple regret bound"
CLAIMS = (
    *(
        Number(
            f"the largest squared width comes down to d: {solver}, tolerance .001",
            KIEFER,
            "width",
            {**_steps(solver), "tolerance": 0.001},
            1.0005,
            0.0005001,
        )
        for solver in SOLVERS
    ),
    Number(
        "uniform weights on the same candidates: at least twice the optimal width",
        "own design",
        "uniform_width",
        {**_steps("away"), "tolerance": 0.001},
        2.0,
        0.0,
        "at least",
    ),
    Exponent(
        "plain Frank-Wolfe: steps ~ 1 / tolerance", "Khachiyan 1996", "steps", _steps("plain"), -1.0, 0.2, x="tolerance"
    ),
    Exponent(
        "away steps: far from it, at most tolerance^(-1/2)",
        f"{AWAY} (logarithmic)",
        "steps",
        _steps("away"),
        -0.5,
        0.0,
        "at least",
        x="tolerance",
    ),
    Exponent(
        "a one-shot plan: worst-context gap ~ 1 / sqrt(T)",
        ODPO,
        "worst_argmax_regret",
        {"part": "regret", "rule": PLAN},
        -0.5,
        0.15,
        x="budget",
    ),
    _less("the plan below uniform pairs", ODPO, PLAN, UNIFORM),
    _less("the plan within 10 % of APO, which looks at the answers", "own earlier runs", PLAN, ACTIVE, 1 / 1.1),
    _less("a batch of 50 within 10 % of one at a time", "own design, after 2402.10500's code", BATCH, ACTIVE, 1 / 1.1),
    *(
        _less(f"APO below {rule}", "2402.10500 (worst-context optimal)", ACTIVE, rule)
        for rule in (UNIFORM, "BALD", "uncertainty", "coreset")
    ),
)


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=2, height=2.8)
    left, right = axes[0]
    names = {"plain": "plain Frank-Wolfe", "away": "away steps, elimination"}
    computed = frame[frame["part"] == "design"]
    assert isinstance(computed, pd.DataFrame)
    plotting.curves(left, computed, "steps", "solver", x="tolerance", order=list(SOLVERS), names=names, loglog=True)
    left.set_xlabel("tolerance of the certificate")
    left.set_ylabel("steps (lower is better)")
    left.set_title(f"(a) D-optimal design, N = {N}, d = {D}")
    whole = (frame["part"] == "regret") & ((frame["rule"] != PLAN) | (frame["queries"] == frame["budget"]))
    shown = frame.take(np.flatnonzero(whole.to_numpy()))
    plotting.curves(right, shown, "worst_argmax_regret", "rule", order=list(RULES), loglog=True, legend=False)
    ticks = [one for one in BUDGETS if one in set(frame["budget"].dropna())]
    right.set_xticks(ticks, [str(tick) for tick in ticks])
    right.set_yticks([0.2, 0.5, 1, 2], [".2", ".5", "1", "2"])
    right.tick_params(axis="both", which="minor", bottom=False, left=False, labelbottom=False, labelleft=False)
    right.set_xlabel("duels asked")
    right.set_ylabel("worst context's gap [reward]")
    right.set_title("(b) preference data, 50 contexts")
    plotting.legend_above(figure, right)
    return figure


study = Study(
    name="optimal_design",
    title="Optimal design: certificate, cost, and what it buys",
    source="Kiefer and Wolfowitz 1960; 2410.17055; 2402.10500",
    cells=cells,
    claims=CLAIMS,
    plot=plot,
    replicates=64,
    smoke_replicates=8,
)
