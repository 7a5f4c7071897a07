"""How fast the last iterate nears the regularised equilibrium: Nash-MD and INPO, exact and with duels.

Nash-MD (2312.00886), Theorem 1: KL(pi* || pi_T) <= 8 / (kl_coef^2 (T + 1)) with steps s_t = 2 / (kl_coef (t + 2)).
INPO (2407.00617), Theorem 4: 32 C^2 / (kl_coef^2 (T + 1)) with the same steps (their eta_t = kl_coef (t + 2) / 2 is
1 / s_t), C = max(B kl_coef, 1), where started at the reference B <= 1 / kl_coef, so C = 1. Neither paper plots an exact
run.

Grid: games of 10 actions, uniform triangular preferences, softmax of N(0, 1) reference, kl_coef .1, a replicate a game.
Exact, 10,000 evaluations: both with the schedule; INPO's exact form with the constant step .3. Sampled, 30,000 rounds
of 10 or 100 duels, a uniform action against one of the policy's: both with the schedule; INPO with constant steps .1,
.3, 1. "Sampled" is the exact update with an unbiased estimate of the payoff; INPO as it is run fits a loss instead.

What differs: our earlier runs' sampled runs ask exactly one duel of every action a step; here 10 duels a step fall on
the actions at random, so that the noise is somewhat larger (variance of a payoff's estimate .25, not p (1 - p)).

`of_bound`: KL over the theorem's bound. `t_kl`: (t + 1) KL, which is flat at the rate 1 / t.

Found: both theorems hold with four to thirteen digits to spare; without noise INPO nears the equilibrium as t^-4 and
Nash-MD, whose bias follows the step, as t^-2. With duels both are t^-1 and the same curve: the noise is all there is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from simbandit import plotting
from simbandit.algorithms.games import MirrorDescent, NashMD
from simbandit.game_metrics import kl_to_nash
from simbandit.guarantees import Exponent, Number
from simbandit.metrics import Snapshot
from simbandit.oracles import FullInformation, UniformTriangular
from simbandit.simulate import Problem
from simbandit.study import Settings, Simulation, Study
from simbandit.types import Algorithm
from simbandit.worlds import LinearWorld

KL_COEF, EXACT_ROUNDS, SAMPLED_ROUNDS = 0.1, 10_000, 30_000
CONSTANT = (0.1, 0.3, 1.0)
NUMERATOR = {"nash_md": 8.0, "inpo": 32.0}


def _iteration(s: Snapshot, duels: int) -> float:
    """T of the theorems: updates so far."""
    return s.queries / duels if duels else float(s.oracle_evaluations)


def of_bound(s: Snapshot, numerator: float, duels: int) -> Tensor:
    return kl_to_nash(s) * s.kl_coef**2 * (_iteration(s, duels) + 1) / numerator


def t_kl(s: Snapshot, duels: int) -> Tensor:
    return kl_to_nash(s) * (_iteration(s, duels) + 1)


def cells(settings: Settings, tuned: Mapping[str, Any]) -> Sequence[Simulation]:
    del tuned  # the schedules are the theorems', the constants the subject
    world, oracle = LinearWorld(n_contexts=1, n_actions=10, dim=1, reference="softmax"), UniformTriangular()
    shrink = 10 if settings.smoke else 1

    def cell(method: str, steps: str, duels: int, algorithm: Algorithm) -> Simulation:
        rounds = (SAMPLED_ROUNDS if duels else EXACT_ROUNDS) // shrink
        asked = oracle if duels else FullInformation(oracle)
        metrics: list[Any] = ["kl_to_nash", "duality_gap", ("t_kl", partial(t_kl, duels=duels))]
        if steps == "schedule":
            metrics.append(("of_bound", partial(of_bound, numerator=NUMERATOR[method], duels=duels)))
        labels = {"method": method, "steps": steps, "duels": duels}
        at = sorted({*range(10), 10, 100, 1000, *np.geomspace(10, rounds, 90).astype(int).tolist()})
        return Simulation(
            labels,
            Problem(world, asked, KL_COEF),
            algorithm,
            rounds,
            settings.replicates,
            batch_size=duels or 1,
            seed=settings.seed,
            metrics=metrics,
            record=at,
        )

    grid = [
        cell(method, "schedule", duels, algorithm)
        for duels in (0, 10, 100)
        for method, algorithm in (("nash_md", NashMD(schedule=True)), ("inpo", MirrorDescent(schedule=True)))
    ]
    grid.append(cell("inpo", "0.3", 0, MirrorDescent(0.3)))
    return [*grid, *(cell("inpo", f"{s:g}", 10, MirrorDescent(s)) for s in CONSTANT)]


def where(method: str, duels: int, steps: str = "schedule") -> dict[str, Any]:
    return {"method": method, "steps": steps, "duels": duels}


THEOREMS = {"nash_md": "2312.00886, Theorem 1", "inpo": "2407.00617, Theorem 4"}
TITLES = {"nash_md": "Nash-MD", "inpo": "INPO"}
claims = (
    *(
        Exponent(
            f"{TITLES[method]}, schedule, {f'{duels} duels a step' if duels else 'exact'}: KL = O(1 / T)",
            THEOREMS[method],
            "kl_to_nash",
            where(method, duels),
            -1.0,
            0.05,
            "at most",
            x="round",
            window=(100, np.inf),
        )
        for method in TITLES
        for duels in (0, 10, 100)
    ),
    *(
        Number(
            f"{TITLES[method]}, exact: within the theorem's bound, T = {t} (share)", THEOREMS[method], "of_bound",
            where(method, 0), 1.0, 0.0, "at most", at=t,
        )
        for method in TITLES
        for t in (10, 100, 1000, EXACT_ROUNDS)
    ),
    Exponent(
        "Nash-MD, schedule, exact: in fact t^-2", "own earlier runs", "kl_to_nash", where("nash_md", 0), -2.0, 0.2,
        x="round", window=(100, np.inf),
    ),
    Exponent(
        "INPO, schedule, exact: in fact t^-4", "own earlier runs", "kl_to_nash", where("inpo", 0), -4.0, 0.3, x="round",
        window=(100, np.inf),
    ),
    *(
        Exponent(
            f"{TITLES[method]}, schedule, {duels} duels a step: t^-1", "own earlier runs", "kl_to_nash",
            where(method, duels), -1.0, 0.1, x="round", window=(100, np.inf),
        )
        for method in TITLES
        for duels in (10, 100)
    ),
    Number(
        "INPO, 10 duels a step: t KL levels at 12 to 15 (one duel an action)", "own earlier runs", "t_kl",
        where("inpo", 10), 13.5, 1.5, at=SAMPLED_ROUNDS,
    ),
    Number(
        "INPO, 100 duels a step: t KL about 1.2 (ten duels an action)", "own earlier runs", "t_kl", where("inpo", 100),
        1.2, 0.3, at=SAMPLED_ROUNDS,
    ),
    Number(
        "INPO, constant step .3, exact: converges to the equilibrium itself (KL)", "own earlier runs", "kl_to_nash",
        where("inpo", 0, "0.3"), 0.0, 1e-20, exact=True,
    ),
    *(
        Number(
            f"INPO, constant step {s:g}, 10 duels: noise floor of KL", "own earlier runs", "kl_to_nash",
            where("inpo", 10, f"{s:g}"), value, 0.3 * value,
        )
        for s, value in zip(CONSTANT, (0.044, 0.129, 0.433), strict=True)
    ),
)  # fmt: skip


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=2, height=2.9)
    left, right = axes[0]
    frame = frame.assign(line=frame["method"] + ", " + frame["steps"])
    names = {
        "nash_md, schedule": "Nash-MD, schedule",
        "inpo, schedule": "INPO, schedule",
        "inpo, 0.3": "INPO, step .3",
        "inpo, 0.1": "INPO, step .1",
        "inpo, 1": "INPO, step 1",
    }
    looks = plotting.lines(list(names))
    visible = frame.assign(value=np.maximum(frame["value"].to_numpy(), 1e-18))
    common = {"x": "round", "loglog": True, "names": names, "looks": looks, "legend": False}
    plotting.curves(left, visible, "kl_to_nash", "line", where={"duels": 0}, order=list(names)[:3], **common)
    at = np.array([10.0, EXACT_ROUNDS])
    for name, numerator, dash in (("Nash-MD's bound", 8, ":"), ("INPO's bound", 32, "--")):
        left.plot(at, numerator / (KL_COEF**2 * (at + 1)), color="0.4", linewidth=0.8, linestyle=dash, label=name)
    left.set_ylim(1e-15, 1e3)
    left.set_xlim(left=1)
    left.set_title("(a) exact")
    left.set_xlabel("oracle evaluations")
    plotting.curves(right, visible, "kl_to_nash", "line", where={"duels": 10}, order=list(names), **common)
    right.set_title("(b) 10 duels a step")
    right.set_xlabel("steps of 10 duels")
    handles, texts = right.get_legend_handles_labels()
    more, words = left.get_legend_handles_labels()
    figure.legend([*handles, *more[3:]], [*texts, *words[3:]], loc="outside upper center", ncols=4)
    return figure


study = Study(
    name="game_rates",
    title="Rates of Nash-MD and INPO to the regularised equilibrium, exact and with duels",
    source="Nash-MD (2312.00886), Theorem 1; INPO (2407.00617), Theorem 4",
    cells=cells,
    claims=claims,
    plot=plot,
    replicates=64,
    smoke_replicates=16,
)
