"""Intransitivity as a dial: what learning a reward costs as the curl of the preferences grows from 0.

P(a > b) = sigma(r_a - r_b + curl C_ab), r standard normal, C a random skew matrix without gradient and of root mean
square 1 (Hodge decomposition; Jiang, Lim, Yao, Ye 2011). Reward-based learning fits Bradley-Terry to uniform pairs and
optimises the reward; game-based learning takes the equilibrium. No paper draws this figure; that rewards cannot express
cycles and that the loss grows with them is the motive of 2312.00886 and 2402.07314. Claims: at curl 0 both agree and
lose nothing; the loss of the reward-based policy grows with the curl; the game-based one keeps losing nothing.

Grid, exact, 200 games of 10 actions per curl in 0 ... 4 log-odds, uniform reference: without KL (argmax of the reward;
linear programme) judged by the unregularised gap; at kl_coef .3, .1, .03 by the regularised gap, in win probabilities
(Nash learning's payoff) and in log-odds (GPO's, and RLHF's own units). `sampled`: `online_dpo` and `online_ipo` on
12,800 duels at kl_coef .1.

Pitfall made visible: with KL the two do not agree even at curl 0, if one is paid in win probabilities and the other in
rewards: differences of win rates are at most 1, those of rewards are not, so the same kl_coef is another amount of
regularisation. In log-odds they agree exactly.

Found: without KL the reward-based gap is .001 at curl .1, .21 at 1, .94 at 4; at curl 1 the best reward is still a von
Neumann winner in a third of the games. The plain statement with KL fails as the pitfall says (gaps .44, .08, .005 at
curl 0), and at kl_coef .3 the gap even falls with the curl, to .29. On duels online IPO loses to online DPO below a
curl of about .6: not for want of learning (its regularised gap is .001), but because kl_coef .1 keeps it mixed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from simbandit import algorithms, plotting
from simbandit.equilibrium import duality_gap, minimax, solve, unregularised_gap
from simbandit.guarantees import Monotone, Number, Ordering
from simbandit.oracles import HodgeMix
from simbandit.policies import argmax, gibbs
from simbandit.simulate import Problem
from simbandit.study import Settings, Simulation, Study, Task
from studies._games import both_from, bradley_terry_limit, frame_of, tables, world_of

CURLS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0)
SAMPLED = (0.0, 0.5, 1.0, 2.0, 4.0)
KL_COEFS = (0.3, 0.1, 0.03)
WORLD = world_of(10)


def in_units(preference: Tensor) -> tuple[Tensor, float]:
    """The game of log-odds as one of probabilities, and the factor by which payoffs (and kl_coef) shrank."""
    odds = torch.logit(preference)
    size = 2 * float(odds.abs().max())
    return 0.5 + odds / size, size


def without_kl(learner: str, curl: float, replicates: int, seed: int, device: str) -> pd.DataFrame:
    """`optimal`: whether the best opponent wins nothing (to 1e-9)."""
    preference, ref = tables(WORLD, HodgeMix(curl, "drawn"), replicates, seed, device)
    if learner == "game":
        policy = minimax(preference).clamp_min(0).log()
    else:
        policy = argmax(bradley_terry_limit(preference, both_from(ref))[0], ref)
    gap = unregularised_gap(policy, preference)[:, 0].clamp_min(0.0)
    return frame_of({("unregularised_gap", 0): gap, ("optimal", 0): (gap < 1e-9).to(gap.dtype)})


def with_kl(learner: str, kl_coef: float, curl: float, replicates: int, seed: int, device: str) -> pd.DataFrame:
    preference, ref = tables(WORLD, HodgeMix(curl, "drawn"), replicates, seed, device)
    game, size = in_units(preference)
    if learner == "reward":
        policy = gibbs(bradley_terry_limit(preference, both_from(ref))[0], ref, kl_coef)
    elif learner == "game":
        policy = solve(preference, ref, kl_coef).log_probs
    else:
        policy = solve(game, ref, kl_coef / size).log_probs
    values = {
        "duality_gap": duality_gap(policy, preference, ref, kl_coef),
        "log-odds gap": size * duality_gap(policy, game, ref, kl_coef / size),
        "unregularised_gap": unregularised_gap(policy, preference),
    }
    return frame_of({(name, 0): value[:, 0] for name, value in values.items()})


def cells(settings: Settings, tuned: Mapping[str, Any]) -> list[Simulation | Task]:
    del tuned  # exact targets; online DPO and IPO fit exactly
    grid: list[Simulation | Task] = []
    for curl in CURLS[::3] if settings.smoke else CURLS:
        for learner in ("reward", "game"):
            how = {"learner": learner, "curl": curl}
            grid.append(Task({"part": "without KL", **how}, without_kl, how, settings.replicates, settings.seed))
        for kl_coef in KL_COEFS:
            for learner in ("reward", "game", "log-odds game"):
                how = {"learner": learner, "kl_coef": kl_coef, "curl": curl}
                grid.append(Task({"part": "with KL", **how}, with_kl, how, settings.replicates, settings.seed))
    for curl in SAMPLED[::4] if settings.smoke else SAMPLED:
        for name in ("online_dpo", "online_ipo"):
            grid.append(
                Simulation(
                    {"part": "sampled", "learner": name, "curl": curl},
                    Problem(WORLD, HodgeMix(curl, "drawn"), 0.1),
                    algorithms.create(name, value_range=8.0),
                    rounds=10 if settings.smoke else 100,
                    batch_size=128,
                    replicates=min(settings.replicates, 64),
                    seed=settings.seed,
                    metrics=["duality_gap", "unregularised_gap"],
                )
            )
    return grid


MOTIVE, DERIVED, PITFALL = "motive of 2312.00886, 2402.07314", "derived", "own earlier runs"


def number(
    name: str,
    source: str,
    part: str,
    learner: str,
    metric: str,
    value: float,
    tolerance: float,
    sense: Any,
    **labels: float,
) -> Number:
    return Number(name, source, metric, {"part": part, "learner": learner, **labels}, value, tolerance, sense)


claims = (
    number(
        "curl 0, without KL: the reward-based policy loses nothing",
        MOTIVE,
        "without KL",
        "reward",
        "unregularised_gap",
        0,
        1e-9,
        "equals",
        curl=0.0,
    ),
    *(
        number(
            f"curl {curl:g}, without KL: the game-based policy loses nothing",
            MOTIVE,
            "without KL",
            "game",
            "unregularised_gap",
            0,
            1e-9,
            "equals",
            curl=curl,
        )
        for curl in CURLS
    ),
    Monotone(
        "without KL: the reward-based policy's gap grows with the curl",
        MOTIVE,
        "unregularised_gap",
        {"part": "without KL", "learner": "reward"},
        "curl",
        "increasing",
    ),
    number(
        "without KL, curl 4: that gap exceeds .5",
        DERIVED,
        "without KL",
        "reward",
        "unregularised_gap",
        0.5,
        0,
        "at least",
        curl=4.0,
    ),
    *(
        number(
            f"curl 0, log-odds payoff, kl_coef {k:g}: reward-based and game-based agree",
            DERIVED,
            "with KL",
            "reward",
            "log-odds gap",
            0,
            1e-9,
            "equals",
            curl=0.0,
            kl_coef=k,
        )
        for k in KL_COEFS
    ),
    *(
        Monotone(
            f"log-odds payoff, kl_coef {k:g}: the reward-based policy's gap grows with the curl",
            MOTIVE,
            "log-odds gap",
            {"part": "with KL", "learner": "reward", "kl_coef": k},
            "curl",
            "increasing",
        )
        for k in KL_COEFS
    ),
    *(
        number(
            f"curl 0, win-probability payoff, kl_coef {k:g}: reward-based and game-based agree",
            f"the plain statement; {PITFALL} says no",
            "with KL",
            "reward",
            "duality_gap",
            0,
            1e-6,
            "equals",
            curl=0.0,
            kl_coef=k,
        )
        for k in KL_COEFS
    ),
    *(
        Monotone(
            f"win-probability payoff, kl_coef {k:g}: the reward-based policy's gap grows with the curl",
            MOTIVE,
            "duality_gap",
            {"part": "with KL", "learner": "reward", "kl_coef": k},
            "curl",
            "increasing",
        )
        for k in KL_COEFS
    ),
    *(
        number(
            f"curl {curl:g}, kl_coef {k:g}: the game-based gap vanishes",
            DERIVED,
            "with KL",
            "game",
            "duality_gap",
            0,
            1e-12,
            "equals",
            curl=curl,
            kl_coef=k,
        )
        for k in (0.03,)
        for curl in (0.0, 4.0)
    ),
    *(
        Ordering(
            f"12,800 duels, curl {curl:g}: online IPO ends with a smaller gap than online DPO (without KL)",
            MOTIVE,
            "unregularised_gap",
            {"learner": "online_ipo"},
            {"learner": "online_dpo"},
            where={"part": "sampled", "curl": curl},
        )
        for curl in SAMPLED[1:]
    ),
    Ordering(
        "12,800 duels, curl 0: online DPO ends with a smaller gap (without KL)",
        f"derived from {PITFALL}",
        "unregularised_gap",
        {"learner": "online_dpo"},
        {"learner": "online_ipo"},
        where={"part": "sampled", "curl": 0.0},
    ),
)


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=3, height=2.6)
    free, regularised, sampled = axes[0]
    order = ["reward", "game"]
    looks = plotting.lines(order)
    names = {"reward": "reward-based", "game": "game-based"}
    where = {"part": "without KL"}
    how = {"x": "curl", "order": order, "names": names, "looks": looks, "legend": False}
    plotting.curves(free, frame, "unregularised_gap", "learner", where=where, **how)
    free.set_title("(a) exact, without KL")
    for metric, text, look in (
        ("duality_gap", "paid in win probability", plotting.lines(range(4))[2]),
        ("log-odds gap", "paid in log-odds", plotting.lines(range(4))[3]),
    ):
        where = {"part": "with KL", "kl_coef": 0.1, "learner": "reward"}
        one = {"names": {"reward": text}, "looks": {"reward": look}}
        plotting.curves(regularised, frame, metric, "learner", x="curl", where=where, **one)
    regularised.set_yscale("symlog", linthresh=0.01)
    regularised.set_ylim(bottom=-0.001)
    regularised.set_ylabel("duality gap of the reward-based policy\n(lower is better)")
    regularised.set_title("(b) exact, kl_coef .1")
    alike = dict(zip(["online_dpo", "online_ipo"], looks.values(), strict=True))
    how = {"x": "curl", "order": list(alike), "looks": alike}
    plotting.curves(sampled, frame, "unregularised_gap", "learner", where={"part": "sampled"}, **how)
    sampled.set_ylabel("")
    sampled.set_title("(c) 12,800 duels, kl_coef .1")
    for ax in axes[0]:
        ax.set_xlabel("curl [log-odds, root mean square]")
    for ax in (free, sampled):
        ax.set_ylim(bottom=-0.01)
    plotting.legend_above(figure, free)
    return figure


study = Study(
    name="intransitivity_dial",
    title="Intransitivity as a dial: what learning a reward costs as the curl grows",
    source="Motive of 2312.00886 and 2402.07314; Hodge decomposition of preferences",
    cells=cells,
    claims=claims,
    plot=plot,
    replicates=200,
    smoke_replicates=24,
)
