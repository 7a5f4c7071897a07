"""Games whose equilibrium has full support: does the last iterate get there, or only the average?

Unregularised methods. SPO and SPPO (2401.04056, 2405.00675) are multiplicative weights: their *average* policy has gap
O(1 / sqrt T), while the last iterate spirals out of an interior equilibrium at every step size. Optimistic weights
converge in the last iterate: ONPO (2502.16852), Theorem 2, average gap <= 4 sqrt(D) / T, D = log A from a uniform
start, at step min(1/2, sqrt D), and Theorem 3, last iterate linear where the equilibrium is unique, step <= 1/8; OMWU
for NLHF (2512.24818) drops uniqueness where an equilibrium has full support. Its tabular figures (10 actions, last
against average iterate) are the model; its games are not given, so these are built: P = 1/2 + B - (B p) 1' + 1 (B p)',
B random skew, which has the equilibrium p.

Grid: 64 planted games of 3 and of 5 actions (the equilibrium is unique: a skew matrix of odd size has one null
direction) and of 10 (a line of equilibria: the rank of a skew matrix is even); multiplicative weights, step 1/2 and the
theory's sqrt(8 log A / T); optimistic weights, step 1/2 and 1/8; last and average iterates. 20,000 evaluations of P q
(100,000 in four cells, so that rates can be read off), uniform reference and start; the KL coefficient plays no part.

`log_rate_ratio`, per game: the slope of log sqrt(KL(p || pi_t)), fitted over the last half of the rounds with KL above
1e-24, over the prediction: log |x|, x the largest root of x^2 - (1 + 2 i s w) x + i s w = 0 over the frequencies w > 0
of the game at p (derived), about -(s w)^2 / 2 of the *slowest* rotation. Only with a unique equilibrium, and
only in games where the prediction is e^-10 or less by the end (`folds` >= 10): before that the slowest rotation is not
yet alone. `gap_growth`: the last gap over the first. `difference`: ONPO's two sequences, kept <- kept + s g(pi_t),
theta = kept + s g(pi_t), are optimistic weights exactly, if the payoff before the first round is taken to be the first.

Found: the linearisation is exact and the average-iterate theorems hold; but the last iterate of optimistic weights does
not beat its own average within these 20,000 evaluations, because the slowest rotation rules: at step 1/2 it shrinks by
a median of e^-32 with 3 actions (there 86 % of the games are ten times better off with the last iterate, and the mean
is of the others), but only by e^-1.6 with 5 actions and less with 10; at step 1/8 by a sixteenth of these exponents.
"Linear" is true and of little use where a game has a slow rotation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from simbandit import plotting, plotting_games
from simbandit.algorithms.averaging import Averaged
from simbandit.algorithms.dynamics import GameDynamics, GameState
from simbandit.algorithms.games import MultiplicativeWeights, OptimisticWeights
from simbandit.draws import Draws
from simbandit.equilibrium import frequencies
from simbandit.game_metrics import unregularised_gap
from simbandit.guarantees import Exponent, Identity, Number, Ordering
from simbandit.metrics import Snapshot, kl
from simbandit.oracles import FullInformation, PlantedEquilibrium
from simbandit.policies import Tabular
from simbandit.simulate import Problem, simulate
from simbandit.study import Settings, Study, Task
from simbandit.worlds import TableWorld

ROUNDS, SIZES = 20_000, (3, 5, 10)
GAP = "unregularised_gap"
ORACLE = PlantedEquilibrium()
SHORT, LONG = 0.125, 0.5
LONGER = ((3, "omwu, step 1/8"), (5, "omwu"))
ROUNDING = 1e-24
FOLDS = 10  # the slowest rotation must shrink e^10 times within the run for its rate to be read off


def theory_step(n_actions: int) -> float:
    return math.sqrt(8 * math.log(n_actions) / ROUNDS)


@dataclass(frozen=True)
class TwoSequences(GameDynamics):
    """ONPO as its paper writes it (2502.16852): kept <- kept + s g(pi), theta = kept + s g(pi)."""

    step_size: float

    def query(self, state: GameState) -> Tensor:
        return state.theta

    def step(self, state: GameState, g: Tensor) -> Tensor:
        kept = state.memory.get("kept", state.theta - self.step_size * g) + self.step_size * g
        state.memory["kept"] = kept
        return kept + self.step_size * g


def world(n_actions: int) -> TableWorld:
    return TableWorld(np.full((1, n_actions), -math.log(n_actions)))


def of_bound(s: Snapshot) -> Tensor:
    """Gap over ONPO's bound 4 sqrt(log A) / T for the average iterate."""
    return unregularised_gap(s) * max(1, s.oracle_evaluations) / (4 * math.sqrt(math.log(s.log_probs.shape[-1])))


def dynamics(
    algorithm: GameDynamics, n_actions: int, rounds: int, replicates: int, seed: int, device: str
) -> pd.DataFrame:
    """A run with the distance to the planted equilibrium and, of optimistic weights, its rate."""
    instance = world(n_actions).instance(replicates, Draws(seed, replicates, device))
    planted = ORACLE.planted(instance).log().expand(replicates, 1, n_actions)

    def kl_to_planted(s: Snapshot) -> Tensor:
        return s.over_contexts(kl(planted, s.log_probs))

    grid = {
        *range(33),
        *np.geomspace(1, rounds, 120).astype(int).tolist(),
        *range(0, rounds + 1, max(1, rounds // 200)),
    }
    frame = simulate(
        Problem(world(n_actions), FullInformation(ORACLE), 1.0),
        algorithm,
        rounds=rounds,
        replicates=range(replicates),
        seed=seed,
        device=device,
        metrics=[GAP, ("kl_to_planted", kl_to_planted), ("of_bound", of_bound)],
        record=sorted(grid),
    ).frame()
    gaps = frame[frame["metric"] == GAP].pivot(index="replicate", columns="round", values="value").to_numpy()
    frame = pd.concat([frame, _last(rounds, "gap_growth", gaps[:, -1] / gaps[:, 0])], ignore_index=True)
    if not isinstance(algorithm, OptimisticWeights) or n_actions % 2 == 0:
        return frame
    table = ORACLE.bind(instance).win_table(instance.evaluation)
    predicted = slowest_root(frequencies(planted, table)[:, 0, 1:], algorithm.step_size)  # the first is the zero
    distances = frame[frame["metric"] == "kl_to_planted"].pivot(index="replicate", columns="round", values="value")
    measured = [fitted_modulus(distances.columns.to_numpy(), row) for row in distances.to_numpy()]
    folds = -rounds * np.log(predicted.numpy())
    ratio = _last(rounds, "log_rate_ratio", -rounds * np.log(measured) / folds)
    extra = [_last(rounds, "folds", folds), ratio[folds >= FOLDS]]
    return pd.concat([frame, *extra], ignore_index=True)


def _last(rounds: int, metric: str, values: Any) -> pd.DataFrame:
    return pd.DataFrame(
        {"replicate": range(len(values)), "round": rounds, "queries": 0.0, "metric": metric, "value": values}
    )


def slowest_root(omega: Tensor, step_size: float) -> Tensor:
    """max over the frequencies (R, n) and both roots of |x|, x^2 - (1 + 2 i s w) x + i s w = 0: (R,)."""
    z = torch.complex(torch.zeros_like(omega), step_size * omega)
    root = torch.sqrt((1 + 2 * z) ** 2 - 4 * z)
    return torch.maximum((1 + 2 * z + root).abs(), (1 + 2 * z - root).abs()).amax(-1) / 2


def fitted_modulus(rounds: np.ndarray, distances: np.ndarray) -> float:
    """exp of half the slope of log KL over rounds, over the last half of the rounds before rounding."""
    inside = np.minimum.accumulate(distances > ROUNDING)
    at = rounds[inside]
    late = inside & (rounds >= at[-1] / 2)
    return float(np.exp(np.polyfit(rounds[late], np.log(distances[late]), 1)[0] / 2))


def identity(n_actions: int, rounds: int, step_size: float, replicates: int, seed: int, device: str) -> pd.DataFrame:
    """The largest difference of ONPO's and optimistic weights' last policies, per replicate."""
    tables = []
    for algorithm in (TwoSequences(step_size), OptimisticWeights(step_size)):
        policy = simulate(
            Problem(world(n_actions), FullInformation(ORACLE), 1.0),
            algorithm,
            rounds=rounds,
            replicates=range(replicates),
            seed=seed,
            device=device,
            metrics=[GAP],
            record=[0],
        ).policy
        assert isinstance(policy, Tabular)
        tables.append(policy.table)
    return _last(rounds, "difference", (tables[0] - tables[1]).abs().amax((1, 2)).tolist())


def cells(settings: Settings, tuned: Mapping[str, Any]) -> Sequence[Task]:
    del tuned  # the steps are the theorems'
    rounds, grid = ROUNDS // 10 if settings.smoke else ROUNDS, []

    def task(labels: Mapping[str, Any], function: Any, **arguments: Any) -> Task:
        return Task(labels, function, arguments, settings.replicates, settings.seed)

    for n in SIZES:
        rules = {
            "mwu": MultiplicativeWeights(LONG),
            "mwu, theory's step": MultiplicativeWeights(theory_step(n)),
            "omwu": OptimisticWeights(LONG),
            "omwu, step 1/8": OptimisticWeights(SHORT),
        }
        for method, rule in rules.items():
            for iterate, algorithm in (("last", rule), ("average", Averaged(rule))):
                labels = {"method": method, "iterate": iterate, "actions": n}
                longer = 5 if (n, method) in LONGER else 1
                grid.append(task(labels, dynamics, algorithm=algorithm, n_actions=n, rounds=longer * rounds))
    labels = {"method": "onpo - omwu", "iterate": "last", "actions": 10}
    return [*grid, task(labels, identity, n_actions=10, rounds=300, step_size=SHORT)]


def at(method: str, iterate: str, actions: int) -> dict[str, Any]:
    return {"method": method, "iterate": iterate, "actions": actions}


AVERAGE = "2401.04056 and 2405.00675, average-iterate theorems"
claims = (
    *(
        Number(
            f"multiplicative weights, step 1/2: the last gap is larger than the first, {n} actions (ratio)",
            "own earlier runs (spirals out)",
            "gap_growth",
            at("mwu", "last", n),
            1.0,
            0.0,
            "at least",
        )
        for n in SIZES
    ),
    *(
        Ordering(
            f"multiplicative weights: the average beats the last iterate tenfold, {n} actions",
            AVERAGE,
            GAP,
            {"iterate": "average"},
            {"iterate": "last"},
            {"method": "mwu, theory's step", "actions": n},
            factor=10.0,
        )
        for n in SIZES
    ),
    *(
        Number(
            f"average gap of multiplicative weights within sqrt(2 log A / T), T = {ROUNDS}, {n} actions",
            AVERAGE,
            GAP,
            at("mwu, theory's step", "average", n),
            math.sqrt(2 * math.log(n) / ROUNDS),
            0.0,
            "at most",
        )
        for n in SIZES
    ),
    *(
        Exponent(
            f"average of optimistic weights, step 1/2: gap O(1 / T), {n} actions",
            "2502.16852, Theorem 2",
            GAP,
            at("omwu", "average", n),
            -1.0,
            0.05,
            "at most",
            x="round",
            window=(100, ROUNDS),
        )
        for n in SIZES
    ),
    *(
        Number(
            f"average of optimistic weights within 4 sqrt(log A) / T, T = {t}, {n} actions (share)",
            "2502.16852, Theorem 2",
            "of_bound",
            at("omwu", "average", n),
            1.0,
            0.0,
            "at most",
            at=t,
        )
        for n in SIZES
        for t in (10, 1000, ROUNDS)
    ),
    *(
        Ordering(
            f"optimistic weights, step {step}: the last iterate beats the average tenfold, {n} actions",
            "2512.24818, tabular experiment",
            GAP,
            {"iterate": "last"},
            {"iterate": "average"},
            {"method": method, "actions": n},
            factor=10.0,
            at=ROUNDS,
        )
        for method, step in (("omwu", "1/2"), ("omwu, step 1/8", "1/8"))
        for n in SIZES
    ),
    *(
        Number(
            f"optimistic weights, {method.partition(', ')[2] or 'step 1/2'}: log rate / linearisation's, {n} actions",
            "own earlier runs; 2502.16852, Theorem 3",
            "log_rate_ratio",
            at(method, "last", n),
            1.0,
            0.03,
        )
        for method, n in (("omwu", 3), ("omwu", 5), ("omwu, step 1/8", 3))
    ),
    Identity(
        "ONPO's two sequences are optimistic weights (log-probabilities)",
        "derived",
        "difference",
        {"method": "onpo - omwu"},
        1e-10,
    ),
)

NAMES = {
    "mwu, last": "mult. weights, last",
    "mwu, theory's step, last": "mult. weights, theory's step, last",
    "mwu, theory's step, average": "mult. weights, theory's step, average",
    "omwu, last": "optimistic, step 1/2, last",
    "omwu, average": "optimistic, step 1/2, average",
    "omwu, step 1/8, last": "optimistic, step 1/8, last",
}


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=3, height=2.6)
    rows = frame.assign(line=frame["method"] + ", " + frame["iterate"])
    looks = plotting.lines(list(NAMES))
    for ax, n in zip(axes[0], SIZES, strict=True):
        plotting_games.gaps(
            ax,
            rows.take(np.flatnonzero((rows["round"] <= ROUNDS).to_numpy())),
            GAP,
            "line",
            log_x=True,
            single=False,
            lowest=1e-9,
            where={"actions": n},
            order=list(NAMES),
            names=NAMES,
            looks=looks,
            legend=False,
        )
        ax.set_title(f"{n} actions, median game")
        ax.set_ylabel("duality gap without KL\n(lower is better)")
    plotting.legend_above(figure, axes[0, 0], columns=3)
    return figure


study = Study(
    name="full_support_last_iterate",
    title="Last against average iterate on games with a full-support equilibrium (exact)",
    source="ONPO (2502.16852), Theorems 2 and 3; OMWU for NLHF (2512.24818), tabular experiment",
    cells=cells,
    claims=claims,
    plot=plot,
    replicates=64,
    smoke_replicates=16,
)
