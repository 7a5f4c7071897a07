"""What DPO does where no reward exists: it rests at another point than the Nash policy, or does not rest.

Calandriello et al. 2024 (2403.08635): online DPO's resting points satisfy P(y > pi) = sum_y' pi(y') sigma(k log-ratio
gap), which the equilibrium does not but by symmetry (rock-paper-scissors with a uniform reference; two responses only
at p = 1/2); under Bradley-Terry preferences they are the RLHF optimum. COMAL (2410.23223), synthetic figure: iterative
DPO goes round on the cycle P(b > a) = P(c > b) = .9, P(a > c) = .8 from (.2, .5, .3), as iterative IPO does.
Derived here: about the uniform equilibrium of a circulant game the Bradley-Terry fit to pairs of pi amplifies by 4 what
IPO's win rates give (the slope of the logit), so that iterative DPO is locally stable iff kl_coef > 4 omega, iterative
IPO iff kl_coef > omega.

Grid, in the limit of infinitely many duels per round: theta <- (1 - a) theta + a (ref + r / k), r the limit of
Bradley-Terry's likelihood on pairs of pi. "iterated": a = 1; "flow": a = k^2 / (1 + k^2), small enough for every cycle;
"all data": pairs of all policies so far, r refitted in every round (`online_dpo` in the registry); "iterated IPO": best
responses. Games: two responses with p = .7; rock-paper-scissors with .9 for a win; the dice (5/9); COMAL's; 10 actions
by EGPO's law; Bradley-Terry. kl_coef 1, .3, .1. `threshold`: iterated DPO and IPO 1 % off their limits, from a start
1e-3 away. `loop`: `online_dpo` and `online_ipo` on 19,200 duels of random games.

Found: the papers' statements hold, and so does the factor 4. At kl_coef .1 DPO on all data neither cycles nor comes
near the equilibrium: on COMAL's cycle it goes to one response and stays (pairs of a response with itself teach
nothing), in random games it keeps a gap of .8, as `online_dpo` does on the loop, where the flow rests at .05. At .3 and
1 it ends where the flow rests, at gaps of .10 and .07.

What differs: COMAL iterates finite optimisation of language models or tables; a round here is a fit to convergence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from simbandit import algorithms, plotting, plotting_games
from simbandit.equilibrium import best_response, duality_gap, frequencies, solve, unregularised_gap
from simbandit.guarantees import Identity, Number, Ordering
from simbandit.oracles import BradleyTerry, PreferenceTable, UniformTriangular, cycle, dice, rock_paper_scissors
from simbandit.policies import gibbs, normalise
from simbandit.simulate import Problem, recording
from simbandit.study import Settings, Simulation, Study, Task
from simbandit.worlds import TableWorld
from studies._games import both_from, bradley_terry_limit, frame_of, tables, total_variation, world_of

KL_COEFS = (1.0, 0.3, 0.1)
METHODS = ("iterated", "flow", "all data", "iterated IPO")
START = (0.2, 0.5, 0.3)
REWARDS = (0.0, 0.3, 0.5, 1.0)
GAMES: dict[str, tuple[TableWorld, Any]] = {
    "two responses": (world_of(2), PreferenceTable([[0.5, 0.7], [0.3, 0.5]])),
    "rock-paper-scissors": (world_of(3), rock_paper_scissors(margin=0.4)),
    "dice": (world_of(3), dice()),
    "COMAL": (TableWorld(np.log([START])), cycle(-0.4, -0.4, -0.3)),
    "random": (world_of(10), UniformTriangular()),
    "Bradley-Terry": (TableWorld(np.full((1, 4), np.log(0.25)), rewards=[REWARDS]), BradleyTerry()),
}


def iterate(
    method: str, preference: Tensor, ref: Tensor, kl_coef: float, start: Tensor, rounds: int
) -> list[tuple[Tensor, Tensor]]:
    """(log-policy, residual of the Bradley-Terry fit) of every round, both (R, X, ...)."""
    damping = kl_coef**2 / (1 + kl_coef**2) if method == "flow" else 1.0
    theta, pairs, scores, path = start, None, None, []
    residual = torch.zeros_like(start[..., 0])
    for _ in range(rounds + 1):
        path.append((theta, residual))
        if method == "iterated IPO":
            target = best_response(theta, preference, ref, kl_coef)
        else:
            fresh = both_from(theta)
            pairs = fresh if pairs is None or method != "all data" else torch.logaddexp(pairs, fresh)
            scores, residual = bradley_terry_limit(preference, pairs, scores)
            target = ref + scores / kl_coef
        theta = normalise((1 - damping) * theta + damping * target)
    return path


def dynamics(
    game: str, method: str, kl_coef: float, rounds: int, replicates: int, seed: int, device: str
) -> pd.DataFrame:
    """From the reference; where that is the equilibrium, rock-paper-scissors, from (.2, .5, .3). `unrest`: how far
    DPO's condition for a resting point is from being met."""
    world, oracle = GAMES[game]
    preference, ref = tables(world, oracle, replicates, seed, device)
    start = torch.tensor(START, dtype=ref.dtype).log().expand_as(ref) if game == "rock-paper-scissors" else ref
    path = iterate(method, preference, ref, kl_coef, start, rounds)
    nash = solve(preference, ref, kl_coef).log_probs
    values: dict[tuple[str, int], Tensor] = {}
    for t in sorted(recording(rounds, "log")):
        policy, residual = path[t]
        gap = kl_coef * (policy - ref)
        fitted = torch.sigmoid(gap[..., :, None] - gap[..., None, :])
        unrest = (policy.exp() * ((preference - fitted) @ policy.exp()[..., None]).squeeze(-1)).abs().sum(-1)
        values["duality_gap", t] = duality_gap(policy, preference, ref, kl_coef)[:, 0]
        values["unregularised_gap", t] = unregularised_gap(policy, preference)[:, 0]
        values["distance to nash", t] = total_variation(policy, nash)[:, 0]
        values["unrest", t] = unrest[:, 0]
        values["residual", t] = residual[:, 0]
        for i in range(min(3, ref.shape[-1])):
            values[f"probability_{i}", t] = policy[:, 0, i].exp()
        if game == "Bradley-Terry":
            best = gibbs(torch.tensor(REWARDS, dtype=ref.dtype), ref, kl_coef)
            values["distance to RLHF", t] = total_variation(policy, best)[:, 0]
    return frame_of(values)


def threshold(game: str, method: str, times: float, replicates: int, seed: int, device: str) -> pd.DataFrame:
    """Distance to the uniform equilibrium after 4,000 rounds at `times` the kl_coef that the linearisation names."""
    preference, ref = tables(*GAMES[game], replicates, seed, device)
    omega = float(frequencies(ref, preference)[0, 0, -1])
    kl_coef = times * omega * (1 if method == "iterated IPO" else 4)
    start = normalise(ref + torch.tensor([1e-3, 0.0, -1e-3], dtype=ref.dtype))
    policy, _ = iterate(method, preference, ref, kl_coef, start, 4000)[-1]
    return frame_of({("distance to nash", 4000): total_variation(policy, ref)[:, 0]})


def cells(settings: Settings, tuned: Mapping[str, Any]) -> list[Simulation | Task]:
    del tuned  # every fit is exact
    grid: list[Simulation | Task] = []
    for game in GAMES:
        for kl_coef in KL_COEFS[2:] if settings.smoke else KL_COEFS:
            for method in METHODS:
                rounds = {"flow": 4000, "all data": 1000}.get(method, 100)
                rounds = min(rounds, 400) if settings.smoke else rounds
                how = {"game": game, "method": method, "kl_coef": kl_coef}
                many = settings.replicates if game == "random" else 1
                grid.append(Task({"part": "limit", **how}, dynamics, {**how, "rounds": rounds}, many, settings.seed))
    for game in ("rock-paper-scissors", "dice"):
        for method in ("iterated", "iterated IPO"):
            for times in (0.99, 1.01):
                how = {"game": game, "method": method, "times": times}
                grid.append(Task({"part": "threshold", **how}, threshold, how, 1, settings.seed))
    for name in ("online_dpo", "online_ipo"):
        grid.append(
            Simulation(
                {"part": "loop", "method": name},
                Problem(world_of(10), UniformTriangular(), 0.1),
                algorithms.create(name, value_range=8.0),
                rounds=30 if settings.smoke else 300,
                batch_size=64,
                replicates=settings.replicates,
                seed=settings.seed,
                metrics=["duality_gap", "unregularised_gap", "kl_to_nash"],
            )
        )
    return grid


IPO, COMAL, DERIVED, NOTES = (
    "2403.08635",
    "2410.23223, synthetic figure",
    "derived here",
    "own earlier runs",
)


def number(
    name: str,
    source: str,
    game: str,
    method: str,
    metric: str,
    value: float,
    tolerance: float = 0.0,
    sense: Any = "equals",
    kl_coef: float = 0.1,
) -> Number:
    where = {"part": "limit", "game": game, "method": method, "kl_coef": kl_coef}
    return Number(name, source, metric, where, value, tolerance, sense, exact=game != "random")


claims = (
    number(
        "two responses, p = .7: the equilibrium at kl_coef .1 (iterated IPO)",
        NOTES,
        "two responses",
        "iterated IPO",
        "probability_0",
        0.880797,
        5e-7,
    ),
    number("and at kl_coef 1", NOTES, "two responses", "iterated IPO", "probability_0", 0.549834, 5e-7, kl_coef=1.0),
    number(
        "DPO's resting point at kl_coef .1 is sigma(logit(.7) / .1)",
        IPO,
        "two responses",
        "flow",
        "probability_0",
        1 / (1 + (3 / 7) ** 10),
        1e-9,
    ),
    number("and .7 at kl_coef 1", IPO, "two responses", "flow", "probability_0", 0.7, 1e-9, kl_coef=1.0),
    *(
        number(
            f"rock-paper-scissors, uniform reference: the equilibrium is DPO's resting point, kl_coef {k:g}",
            IPO,
            "rock-paper-scissors",
            "flow",
            "distance to nash",
            0,
            1e-9,
            kl_coef=k,
        )
        for k in KL_COEFS
    ),
    number(
        "COMAL's cycle: iterative DPO keeps a gap > .1",
        COMAL,
        "COMAL",
        "iterated",
        "unregularised_gap",
        0.1,
        sense="at least",
    ),
    number(
        "COMAL's cycle: iterative IPO keeps a gap > .1",
        COMAL,
        "COMAL",
        "iterated IPO",
        "unregularised_gap",
        0.1,
        sense="at least",
    ),
    number("COMAL's cycle: the flow comes to rest", DERIVED, "COMAL", "flow", "unrest", 0, 1e-6),
    number(
        "but not at the equilibrium (total variation > .01)",
        IPO,
        "COMAL",
        "flow",
        "distance to nash",
        0.01,
        sense="at least",
    ),
    number(
        "random games: the flow comes to rest (mean unrest < 1e-6)",
        DERIVED,
        "random",
        "flow",
        "unrest",
        1e-6,
        sense="at most",
    ),
    number(
        "but not at the equilibrium (mean total variation > .01)",
        IPO,
        "random",
        "flow",
        "distance to nash",
        0.01,
        sense="at least",
    ),
    number(
        "random games, all data: at rest up to 1e-3 after 1,000 rounds",
        DERIVED,
        "random",
        "all data",
        "unrest",
        1e-3,
        sense="at most",
    ),
    *(
        number(
            f"a Bradley-Terry game: DPO ({method}) is RLHF, kl_coef {k:g}",
            IPO,
            "Bradley-Terry",
            method,
            "distance to RLHF",
            0,
            1e-9,
            kl_coef=k,
        )
        for method in ("flow", "iterated", "all data")
        for k in (1.0, 0.1)
    ),
    number(
        "and not the equilibrium of its win probabilities (kl_coef .1, total variation > .01)",
        NOTES,
        "Bradley-Terry",
        "flow",
        "distance to nash",
        0.01,
        sense="at least",
    ),
    *(
        Number(
            f"{text}, {game}: {'rests' if times > 1 else 'leaves'} at {times:g} times its limit",
            DERIVED,
            "distance to nash",
            {"part": "threshold", "game": game, "method": method, "times": times},
            1e-6 if times > 1 else 1e-2,
            0,
            "at most" if times > 1 else "at least",
            exact=True,
        )
        for game in ("rock-paper-scissors", "dice")
        for method, text in (("iterated", "iterative DPO (4 omega)"), ("iterated IPO", "iterative IPO (omega)"))
        for times in (0.99, 1.01)
    ),
    Identity("every Bradley-Terry fit is exact", "check", "residual", {"part": "limit"}, 1e-9),
    Ordering(
        "19,200 duels of random games: online IPO ends less exploitable than online DPO",
        "2403.08635, Proposition 4.1",
        "duality_gap",
        {"method": "online_ipo"},
        {"method": "online_dpo"},
        where={"part": "loop"},
    ),
)

NAMES = {"iterated": "iterated DPO", "flow": "DPO, flow", "all data": "DPO, all data", "iterated IPO": "iterated IPO"}


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=3, height=2.7)
    triangle, curve, loop = axes[0]
    looks = plotting.lines(METHODS)
    plotting_games.simplex(triangle, preference=np.asarray(GAMES["COMAL"][1].preference)[0], ref=START, kl_coef=0.1)
    where = {"part": "limit", "game": "COMAL", "kl_coef": 0.1}
    plotting_games.paths(triangle, frame, "method", where=where, order=METHODS, looks=looks, legend=False)
    triangle.set_title("(a) COMAL's cycle, kl_coef .1")
    how = {"x": "round", "loglog": True, "order": METHODS, "names": NAMES, "looks": looks, "legend": False}
    plotting.curves(curve, frame, "duality_gap", "method", where={**where, "game": "random"}, **how)
    curve.set_title("(b) random games, kl_coef .1")
    order = ["online_dpo", "online_ipo"]
    plotting.curves(loop, frame, "duality_gap", "method", where={"part": "loop"}, order=order, loglog=True)
    loop.set_ylabel("")
    loop.set_title("(c) fitted to duels")
    plotting.legend_above(figure, curve)
    return figure


study = Study(
    name="bt_on_cycles",
    title="DPO where no reward exists: where it rests, and where it goes round",
    source="Calandriello et al. 2024 (2403.08635); COMAL (2410.23223), synthetic figure",
    cells=cells,
    claims=claims,
    plot=plot,
    replicates=64,
    smoke_replicates=8,
)
