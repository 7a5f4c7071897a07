"""INPO with the constants of its language models: exact steps go round in circles, a few gradient steps do not.

INPO (2407.00617), experiments: eta = .005, tau = eta / 3, three iterations; in house notation step_size 200, kl_coef
1/600. The exact step is locally stable iff omega < sqrt(2 k / s - k^2) = sqrt(5) k = .0037, omega the speed of the
game's rotation about its equilibrium. Own notes: a generic game of 10 actions (omega = .138) goes round between pure
actions from round 1 on, regularised gap .46 -> .64 -> .35 -> ... -> .74; the paper's models improve (table 1: 16.0 ->
42.6 on AlpacaEval 2) because three rounds of early-stopped optimisation are far from the exact step.

Grid, all exact (`FullInformation`): `random`: games of 10 actions (EGPO's law), 100 rounds of the exact step, of m = 1,
3, 10, 30, 100 gradient steps (rate .01) on the expected loss (8) over logits per round, and of the exact step at a
stable size. `transitive`: Bradley-Terry rewards from 0 to 2, exact step. `margin`: planted equilibria of 5 actions with
margins .001 to .5, 2,000 rounds; `surprise` is 1 where omega is more than 5 % below the threshold and the iterate is
not at the equilibrium, or more than 5 % above and it is. `cycle`: COMAL's game, the path of the exact steps.

Found: exact steps behave as in the earlier runs. Early stopping helps only while it lasts: with 1 or 3 gradient steps a
round the policy is less exploitable than the reference after 3 rounds; with 10 it beats the reference more often (.61)
and is more exploitable all the same (.47 against .26); after 100 rounds all are (.55 to .73), and nearly pure. At the
stable step size, .007, 100 rounds hardly move. The linearised threshold is right in every planted game.

What differs: tables, not language models; the loss is its expectation, so only the optimiser's early stop is modelled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from simbandit import equilibrium, plotting
from simbandit.algorithms.dynamics import GameDynamics, GameState
from simbandit.algorithms.games import MirrorDescent
from simbandit.game_metrics import kl_to_nash
from simbandit.guarantees import Frequency, Number, Ordering
from simbandit.guarantees.rows import pivot, select
from simbandit.metrics import Snapshot
from simbandit.oracles import BradleyTerry, FullInformation, PlantedEquilibrium, UniformTriangular, cycle
from simbandit.simulate import Problem
from simbandit.study import Settings, Simulation, Study
from simbandit.worlds import TableWorld
from studies._games import PROBABILITIES, world_of

STEP, KL = 200.0, 1 / 600
THRESHOLD = math.sqrt(2 * KL / STEP - KL**2)
RATE = 0.01
INNER = (1, 3, 10, 30, 100)
ROUNDS, LONG = 100, 2000
MARGINS = (0.001, 0.003, 0.006, 0.01, 0.02, 0.05, 0.15, 0.5)
NEAR = 0.05


@dataclass(frozen=True)
class EarlyStopped(GameDynamics):
    """INPO whose argmin is `inner` gradient steps of size `rate` on the expected loss (8), from pi_t, in its logits:
    the gradient is 4 pi_t (d - E_pi_t d), d = logits - those of the exact step."""

    step_size: float
    inner: int
    rate: float

    def query(self, state: GameState) -> Tensor:
        return state.theta

    def step(self, state: GameState, g: Tensor) -> Tensor:
        pull, p = self.step_size * state.setting.kl_coef, state.theta.exp()
        target = (1 - pull) * state.theta + pull * state.ref + self.step_size * g
        logits = state.theta
        for _ in range(self.inner):
            d = logits - target
            logits = logits - 4 * self.rate * p * (d - (p * d).sum(-1, keepdim=True))
        return logits


def largest_probability(s: Snapshot) -> Tensor:
    return s.over_contexts(s.log_probs.exp().amax(-1))


def gap_beyond_start(s: Snapshot) -> Tensor:
    """Duality gap minus that of the reference, where every run starts."""
    assert s.game is not None
    gaps = [
        equilibrium.duality_gap(p, s.game.preference, s.ref_log_probs, s.kl_coef)
        for p in (s.log_probs, s.ref_log_probs)
    ]
    return s.over_contexts(gaps[0] - gaps[1])


def omega(s: Snapshot) -> Tensor:
    """The speed of rotation about the equilibrium, over that which the constants can bear."""
    assert s.game is not None
    return equilibrium.frequencies(s.game.nash, s.game.preference)[:, 0, -1] / THRESHOLD


def cycling(s: Snapshot) -> Tensor:
    return (kl_to_nash(s) > 1e-6).to(torch.float64)


def surprise(s: Snapshot) -> Tensor:
    """Whether the linearisation's prediction is wrong; within 5 % of the threshold it makes none."""
    speed, cycles = omega(s), cycling(s) == 1
    return (((speed < 1 - NEAR) & cycles) | ((speed > 1 + NEAR) & ~cycles)).to(torch.float64)


def cells(settings: Settings, tuned: Mapping[str, Any]) -> list[Simulation]:
    del tuned  # the constants are the paper's
    random = ["duality_gap", "win_rate_vs_ref", "kl_to_ref"]
    random += [(f.__name__, f) for f in (largest_probability, gap_beyond_start, omega)]
    methods: dict[str, GameDynamics] = {"exact": MirrorDescent(STEP)}
    methods |= {f"{m} gradient steps": EarlyStopped(STEP, m, RATE) for m in (INNER[::2] if settings.smoke else INNER)}
    methods["exact, stable step"] = MirrorDescent()
    rewards = TableWorld(np.full((1, 10), -math.log(10)), rewards=np.linspace(0, 2, 10)[None])

    def cell(
        labels: dict[str, Any], world: TableWorld, oracle: Any, rule: GameDynamics, metrics: Any, **how: Any
    ) -> Simulation:
        problem = Problem(world, FullInformation(oracle), KL)
        return Simulation(labels, problem, rule, seed=settings.seed, metrics=metrics, **how)

    many, exact = settings.replicates, methods["exact"]
    grid = [
        cell(
            {"part": "random", "method": name},
            world_of(10),
            UniformTriangular(),
            rule,
            random,
            rounds=ROUNDS,
            replicates=many,
            record="all",
        )
        for name, rule in methods.items()
    ]
    grid.append(
        cell(
            {"part": "transitive", "method": "exact"},
            rewards,
            BradleyTerry(),
            exact,
            ["duality_gap", "kl_to_nash"],
            rounds=ROUNDS,
            replicates=1,
        )
    )
    grid.append(
        cell(
            {"part": "cycle", "method": "exact"},
            world_of(3),
            cycle(-0.4, -0.4, -0.3),
            exact,
            PROBABILITIES,
            rounds=ROUNDS,
            replicates=1,
            record="all",
        )
    )
    events = [(f.__name__, f) for f in (omega, cycling, surprise)]
    for margin in MARGINS[::3] if settings.smoke else MARGINS:
        labels = {"part": "margin", "method": "exact", "margin": margin}
        oracle = PlantedEquilibrium(margin=margin)
        grid.append(cell(labels, world_of(5), oracle, exact, events, rounds=LONG, replicates=many, record=[LONG]))
    return grid


NOTES, DERIVED = "own earlier runs", "own earlier runs"


def number(
    name: str,
    source: str,
    method: str,
    metric: str,
    value: float,
    sense: Any,
    at: int | None = None,
    part: str = "random",
) -> Number:
    return Number(
        name, source, metric, {"part": part, "method": method}, value, 0, sense, at, exact=part == "transitive"
    )


claims = (
    number(
        "random games turn at least 10 times faster than the constants bear (mean)",
        NOTES,
        "exact",
        "omega",
        10,
        "at least",
    ),
    *(
        number(
            f"exact: the gap after round {t} is above .3",
            f"{NOTES}: .64, .35, ..., .74",
            "exact",
            "duality_gap",
            0.3,
            "at least",
            t,
        )
        for t in (1, 2, 3, ROUNDS)
    ),
    number(
        "exact: after 100 rounds the gap is above the reference's",
        f"{NOTES}: .46 -> .74",
        "exact",
        "gap_beyond_start",
        0,
        "at least",
    ),
    number(
        "exact: nearly pure from round 1 (largest probability > .95)",
        NOTES,
        "exact",
        "largest_probability",
        0.95,
        "at least",
        1,
    ),
    number("exact: still nearly pure after 100 rounds", NOTES, "exact", "largest_probability", 0.95, "at least"),
    *(
        number(
            f"{m} gradient steps a round: after 3 rounds the gap is below the reference's",
            f"{NOTES}; 2407.00617, table 1",
            f"{m} gradient steps",
            "gap_beyond_start",
            0,
            "at most",
            3,
        )
        for m in (1, 3, 10)
    ),
    *(
        Ordering(
            f"{m} gradient steps: after {t} rounds less exploitable than the exact step",
            NOTES,
            "duality_gap",
            {"method": f"{m} gradient steps"},
            {"method": "exact"},
            where={"part": "random"},
            at=t,
        )
        for m in (1, 3, 10)
        for t in (3, ROUNDS)
    ),
    *(
        number(
            f"{m} gradient steps: beats the reference after 3 rounds",
            "2407.00617, table 1",
            f"{m} gradient steps",
            "win_rate_vs_ref",
            0.5,
            "at least",
            3,
        )
        for m in (1, 3, 10)
    ),
    number(
        "a transitive game: the exact step converges with the same constants",
        DERIVED,
        "exact",
        "duality_gap",
        1e-9,
        "at most",
        part="transitive",
    ),
    Frequency(
        "planted games: converges iff omega < sqrt(5) kl_coef (up to 5 %)",
        DERIVED,
        "surprise",
        {"part": "margin"},
        0.1,
        "margin",
    ),
    Number(
        "margin .001: less than a tenth of the games go round",
        DERIVED,
        "cycling",
        {"part": "margin", "margin": 0.001},
        0.1,
        0,
        "at most",
    ),
    Number(
        "margin .5: at least nine tenths of the games go round",
        DERIVED,
        "cycling",
        {"part": "margin", "margin": 0.5},
        0.9,
        0,
        "at least",
    ),
)


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=3, height=2.7)
    gap, path, stable = axes[0]
    early = frame.take(np.flatnonzero(frame["round"].to_numpy() <= 30))
    order = ["exact", "100 gradient steps", "10 gradient steps", "1 gradient steps", "exact, stable step"]
    names = {
        "1 gradient steps": "1 gradient step a round",
        "10 gradient steps": "10 steps",
        "100 gradient steps": "100 steps",
    }
    looks = plotting.lines(order)
    how = {"x": "round", "order": order, "names": names, "looks": looks, "legend": False}
    plotting.curves(gap, early, "duality_gap", "method", where={"part": "random"}, **how)
    gap.axvline(3, color="0.6", linewidth=0.8)
    gap.set_ylim(bottom=0)
    gap.set_title("(a) random games; line: round 3")
    for i, look in plotting.lines(range(3)).items():
        one = pivot(select(frame, {"part": "cycle", "metric": f"probability_{i}"}), "round").to_numpy()[0, :19]
        how = {"color": plotting.PALETTE[5 + i], "linestyle": look.dash, "marker": look.marker, "label": "abc"[i]}
        path.plot(one, **how)
    path.set_ylim(-0.03, 1.25)
    path.legend(loc="upper center", ncols=3)
    path.set_xlabel("round")
    path.set_ylabel("probability of each response")
    path.set_title("(b) exact steps, a cycle of 3")
    rows = select(frame, {"part": "margin", "round": LONG})
    speed, cycles = (pivot(select(rows, {"metric": m}), "margin").to_numpy().T.ravel() for m in ("omega", "cycling"))
    spread = 0.15 * (np.arange(len(cycles)) % 8 - 3.5) / 8  # so that dots do not hide each other
    stable.scatter(speed, cycles + spread, s=4, color=plotting.PALETTE[0], alpha=0.4, linewidths=0)
    stable.axvline(1, color=plotting.PALETTE[1], linestyle="--", linewidth=1)
    stable.set_xscale("log")
    stable.set_yticks([0, 1], ["converges", "goes round"])
    stable.set_xlabel("omega / (sqrt(5) kl_coef)")
    stable.set_title("(c) planted games")
    plotting.legend_above(figure, gap, columns=5)
    return figure


study = Study(
    name="inpo_lm_constants",
    title="INPO with its language-model constants: exact steps cycle, early stopping does not",
    source="INPO (2407.00617), experiments: eta = .005, tau = eta / 3",
    cells=cells,
    claims=claims,
    plot=plot,
    replicates=64,
    smoke_replicates=12,
)
