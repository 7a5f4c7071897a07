"""Three dice in a circle: every form of IPO played online finds the uniform equilibrium, offline IPO does not.

Munos et al. 2023 (2312.00886): dice {2,4,9}, {1,6,8}, {3,5,7}, each beats the next with probability 5/9; the Nash
policy is uniform. Their worked iterate: pi = (.6, .3, .1), uniform reference, mixture .5 -> (.473, .334, .193), and
with kl_coef .1, step 5 the next iterate is (.491, .309, .200).
Calandriello et al. 2024 (2403.08635), appendix E, figure 6: trajectories on the simplex of a cyclic game at kl_coef .1
for several mixture weights; the text's offline optimum for pairs of (.6, .3, .1) is (.365, .247, .388). We could not
retrieve the entries of the figure's matrix; the dice have the text's 5/9.

Grid, exact (`FullInformation`), 400 steps of size .5 from (.6, .3, .1) at kl_coef .1: Online IPO and IPO-MD with weight
b = .125, .5, 1 as the mirror flow of their expected loss, theta <- theta + s (k (ref - theta) + g(pi^(1-b) ref^b)),
with a uniform reference and with the reference (.6, .3, .1); offline IPO, whose opponent stays (.6, .3, .1). Loss-
fitted rows (`online_ipo`, `ipo_md`) on 64 duels a round, reference (.6, .3, .1). At a uniform reference all weights
share the equilibrium; at a skewed one only the mixture is one, of kl_coef / (1 - b) (their Proposition 5.2).

Found: everything holds but the printed offline optimum, which is (.3656, .2478, .3865): the print cuts the first two
numbers off instead of rounding them, and has the third by subtraction.

What differs: the paper follows the gradient in the logits, weighted by the policy; the mirror flow has the same resting
points and other paths.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from simbandit import algorithms, plotting, plotting_games
from simbandit.algorithms.dynamics import GameDynamics, GameState
from simbandit.algorithms.games import NashMD
from simbandit.algorithms.players import Tilt
from simbandit.equilibrium import frequencies, solve
from simbandit.guarantees import Identity, Number, Ordering
from simbandit.metrics import Snapshot
from simbandit.oracles import FullInformation, dice
from simbandit.policies import normalise
from simbandit.simulate import Problem
from simbandit.study import Settings, Simulation, Study, Task
from simbandit.types import Algorithm
from simbandit.worlds import TableWorld
from studies._games import PROBABILITIES, StartedAt, frame_of, tables, total_variation, world_of

START = (0.6, 0.3, 0.1)
KL, STEP, ROUNDS = 0.1, 0.5, 400
WEIGHTS = {"Online IPO": 0.0, "IPO-MD .125": 0.125, "IPO-MD .5": 0.5, "IPO-MD 1": 1.0}
REFERENCES = {"uniform": world_of(3), "skewed": TableWorld(np.log([START]))}


@dataclass(frozen=True)
class OfflineIPO(GameDynamics):
    """The flow of IPO's expected loss on pairs of a fixed policy: its resting point is the best response to it."""

    data: tuple[float, ...]
    step_size: float

    def query(self, state: GameState) -> Tensor:
        return torch.tensor(self.data, dtype=state.ref.dtype, device=state.ref.device).log().expand_as(state.ref)

    def step(self, state: GameState, g: Tensor) -> Tensor:
        pull = self.step_size * state.setting.kl_coef
        return (1 - pull) * state.theta + pull * state.ref + self.step_size * g


def mixture_error(s: Snapshot, weight: float) -> Tensor:
    """Total variation between pi^(1-b) ref^b and the equilibrium of kl_coef / (1 - b)."""
    assert s.game is not None
    mixture = normalise((1 - weight) * s.log_probs + weight * s.ref_log_probs)
    return s.over_contexts(
        total_variation(mixture, solve(s.game.preference, s.ref_log_probs, s.kl_coef / (1 - weight)).log_probs)
    )


def metrics(weight: float | None) -> list[Any]:
    own = [] if weight in (None, 1.0) else [("mixture_error", partial(mixture_error, weight=weight))]
    return ["kl_to_nash", "duality_gap", *PROBABILITIES, *own]


def facts(kl_coef: float, replicates: int, seed: int, device: str) -> pd.DataFrame:
    """The dice's odds, their equilibrium at a uniform reference, and the speed of its rotation."""
    preference, ref = tables(REFERENCES["uniform"], dice(), replicates, seed, device)
    nash = solve(preference, ref, kl_coef).log_probs
    values = {f"die {i} beats die {j}": preference[:, 0, i, j] for i, j in ((0, 1), (1, 2), (2, 0))}
    values["distance to uniform"] = total_variation(nash, ref)[:, 0]
    values["omega"] = frequencies(nash, preference)[:, 0, -1]
    return frame_of({(name, 0): value for name, value in values.items()})


def cells(settings: Settings, tuned: Mapping[str, Any]) -> list[Simulation | Task]:
    del tuned  # flows, which all take the same small steps
    flows: dict[str, tuple[GameDynamics, float | None]] = {
        name: (NashMD(STEP, mixture=weight), weight) for name, weight in WEIGHTS.items()
    }
    flows["offline IPO"] = OfflineIPO(START, STEP), None

    def cell(
        part: str, method: str, reference: str, algorithm: Algorithm, weight: float | None, **how: Any
    ) -> Simulation:
        exact = part != "sampled"
        oracle = FullInformation(dice()) if exact else dice()
        labels = {"part": part, "method": method, "reference": reference}
        return Simulation(
            labels,
            Problem(REFERENCES[reference], oracle, KL),
            algorithm,
            replicates=1 if exact else settings.replicates,
            seed=settings.seed,
            metrics=metrics(weight),
            **how,
        )

    grid: list[Simulation | Task] = [
        cell("exact", method, reference, StartedAt(rule, START), weight, rounds=ROUNDS, record="log")
        for reference in REFERENCES
        for method, (rule, weight) in flows.items()
    ]
    grid.append(cell("worked", "Nash-MD", "uniform", StartedAt(NashMD(5.0), START), 0.5, rounds=1))
    sampled = {"Online IPO": algorithms.create("online_ipo")}
    sampled |= {
        name: algorithms.create("ipo_md", players=(Tilt(1 - WEIGHTS[name], WEIGHTS[name]),) * 2)
        for name in ("IPO-MD .125", "IPO-MD .5")
    }
    rounds = 40 if settings.smoke else 400
    for method, algorithm in sampled.items():
        grid.append(
            cell("sampled", method, "skewed", algorithm, WEIGHTS[method], rounds=rounds, batch_size=64, record="log")
        )
    for kl_coef in (1.0, 0.1, 0.01):
        grid.append(Task({"part": "facts", "kl_coef": kl_coef}, facts, {"kl_coef": kl_coef}, 1, settings.seed))
    return grid


DICE, IPO = "2312.00886, dice", "2403.08635"


def flow(
    name: str,
    source: str,
    method: str,
    reference: str,
    metric: str,
    value: float,
    tolerance: float,
    sense: Any = "equals",
) -> Number:
    where = {"part": "exact", "method": method, "reference": reference}
    return Number(name, source, metric, where, value, tolerance, sense, exact=True)


claims = (
    *(
        Number(
            f"die {i + 1} beats die {j + 1} with 5/9",
            DICE,
            f"die {i} beats die {j}",
            {"part": "facts", "kl_coef": 0.1},
            5 / 9,
            1e-12,
            exact=True,
        )
        for i, j in ((0, 1), (1, 2), (2, 0))
    ),
    Identity("the Nash policy is uniform at kl_coef 1, .1, .01", DICE, "distance to uniform", {"part": "facts"}, 1e-12),
    Number(
        "omega = 1 / (18 sqrt 3)",
        "own earlier runs",
        "omega",
        {"part": "facts", "kl_coef": 0.1},
        0.032075,
        5e-7,
        exact=True,
    ),
    *(
        Number(
            f"worked iterate of Nash-MD, die {i + 1}",
            DICE,
            f"probability_{i}",
            {"part": "worked"},
            value,
            5e-4,
            exact=True,
        )
        for i, value in enumerate((0.491, 0.309, 0.200))
    ),
    *(
        flow(
            f"offline optimum on pairs of (.6, .3, .1), as printed: die {i + 1}",
            f"{IPO}, text",
            "offline IPO",
            "uniform",
            f"probability_{i}",
            value,
            5e-4,
        )
        for i, value in enumerate((0.365, 0.247, 0.388))
    ),
    *(
        flow(f"{method} finds the uniform equilibrium", f"{IPO}, figure 6", method, "uniform", "kl_to_nash", 0, 1e-12)
        for method in WEIGHTS
    ),
    flow("offline IPO does not", f"{IPO}, figure 6", "offline IPO", "uniform", "duality_gap", 1e-3, 0, "at least"),
    flow(
        "skewed reference: Online IPO finds the equilibrium",
        f"{IPO}, Proposition 4.1",
        "Online IPO",
        "skewed",
        "kl_to_nash",
        0,
        1e-12,
    ),
    *(
        flow(
            f"skewed reference: {method} does not",
            f"{IPO}, Proposition 5.2",
            method,
            "skewed",
            "kl_to_nash",
            1e-6,
            0,
            "at least",
        )
        for method in ("IPO-MD .125", "IPO-MD .5")
    ),
    *(
        flow(
            f"skewed reference: {method}'s mixture is the equilibrium of kl_coef / (1 - b)",
            f"{IPO}, Proposition 5.2",
            method,
            "skewed",
            "mixture_error",
            0,
            1e-8,
        )
        for method in ("IPO-MD .125", "IPO-MD .5")
    ),
    *(
        Number(
            f"fitted on 25,600 duels: {method}'s mixture is near that equilibrium",
            f"{IPO}, Proposition 5.2",
            "mixture_error",
            {"part": "sampled", "method": method},
            0.03,
            0,
            "at most",
        )
        for method in ("Online IPO", "IPO-MD .125", "IPO-MD .5")
    ),
    Ordering(
        "fitted on 25,600 duels: Online IPO ends nearer to the equilibrium than IPO-MD .5",
        f"{IPO}, Propositions 4.1 and 5.2",
        "kl_to_nash",
        {"method": "Online IPO"},
        {"method": "IPO-MD .5"},
        where={"part": "sampled"},
    ),
)


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=3, height=2.7)
    triangle, skewed, fitted = axes[0]
    shown = [*WEIGHTS, "offline IPO"]
    looks = plotting.lines(shown)
    plotting_games.simplex(
        triangle, ("die 1", "die 2", "die 3"), preference=np.asarray(dice().preference)[0], kl_coef=KL
    )
    where = {"part": "exact", "reference": "uniform"}
    plotting_games.paths(triangle, frame, "method", where=where, order=shown, looks=looks, legend=False)
    triangle.set_title("(a) exact, uniform reference")
    where = {"part": "exact", "reference": "skewed"}
    how = {"x_label": "step", "looks": looks, "legend": False}
    plotting_games.gaps(skewed, frame, "kl_to_nash", "method", where=where, order=shown[:4], **how)
    skewed.set_title("(b) exact, skewed reference")
    plotting.curves(
        fitted,
        frame,
        "kl_to_nash",
        "method",
        where={"part": "sampled"},
        order=shown[:3],
        looks=looks,
        loglog=True,
        legend=False,
    )
    fitted.set_title("(c) fitted, skewed reference")
    fitted.set_ylabel("")
    handles, texts = triangle.get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside upper center", ncols=5)
    return figure


study = Study(
    name="dice",
    title="Three dice in a circle: Online IPO, IPO-MD and offline IPO on the simplex",
    source="Munos et al. 2023 (2312.00886), dice; Calandriello et al. 2024 (2403.08635), figure 6",
    cells=cells,
    claims=claims,
    plot=plot,
    replicates=64,
    smoke_replicates=8,
)
