"""Borda, Nash, preference matching: three answers to "what do the annotators want", and where they part.

Offline IPO on uniform pairs tilts the reference by Borda scores (2403.08635); the game's equilibrium is what Nash
learning wants (2312.00886); preference matching (Xiao et al. 2405.16455) wants the annotators' own probabilities,
softmax(r). The last paper: RLHF with KL over-weights the majority, down to collapse (minority probability about 0),
where the matching regulariser keeps softmax(r); no smooth payoff makes a game do so (the follow-up's Theorem 5.1). Its
figures, 29 to 41 % less matching divergence on OPT-1.3B and Llama-2-7B, are of language models and not repeated here.

Grid, exact: targets Borda = ref exp(P u / k), Nash, RLHF = ref exp(r / k), matching = softmax(r), and the equilibrium
of the game whose payoff is the log-odds (GPO's), with r the limit of Bradley-Terry's likelihood under uniform pairs;
uniform reference; kl_coef 1 to .001. Games: Bradley-Terry with rewards (0, .5, 1, 2); the Condorcet winner that is not
the Borda winner (action 0 beats each by .02, action 1 beats action 2 by .45). `sampled`: the registry's rules on 51,200
duels.

Found: every statement of the papers holds. Our own guess that offline IPO at kl_coef .1 puts .9 on action 1 of the
Condorcet game fails: Borda's margin of .14 tilts to .74 only.

What differs: our own small games; the papers compare language models.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from simbandit import algorithms, plotting
from simbandit.equilibrium import best_response, solve, unregularised_gap
from simbandit.guarantees import Monotone, Number, Ordering
from simbandit.metrics import Snapshot, kl
from simbandit.oracles import BradleyTerry, condorcet_not_borda
from simbandit.policies import gibbs, normalise, uniform
from simbandit.simulate import Problem
from simbandit.study import Settings, Simulation, Study, Task
from simbandit.worlds import TableWorld
from studies._games import both_from, bradley_terry_limit, frame_of, tables, total_variation, world_of

REWARDS = (0.0, 0.5, 1.0, 2.0)
GAMES: dict[str, tuple[TableWorld, Any]] = {
    "Bradley-Terry": (TableWorld(np.full((1, 4), np.log(0.25)), rewards=[REWARDS]), BradleyTerry()),
    "Condorcet": (world_of(3), condorcet_not_borda()),
}
MAJORITY = {"Bradley-Terry": 3, "Condorcet": 0}
TARGETS = ("Borda", "Nash", "RLHF", "log-odds Nash", "matching")
KL_COEFS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)


def target_policy(target: str, preference: Tensor, ref: Tensor, kl_coef: float) -> Tensor:
    if target == "Borda":
        return best_response(uniform(ref), preference, ref, kl_coef)
    if target == "Nash":
        return solve(preference, ref, kl_coef).log_probs
    if target == "log-odds Nash":  # the same game in units in which payoffs are probabilities
        odds = torch.logit(preference)
        size = 2 * float(odds.abs().max())
        return solve(0.5 + odds / size, ref, kl_coef / size).log_probs
    scores, _ = bradley_terry_limit(preference, both_from(uniform(ref)))
    return normalise(scores) if target == "matching" else gibbs(scores, ref, kl_coef)


def exact(game: str, target: str, kl_coef: float, replicates: int, seed: int, device: str) -> pd.DataFrame:
    """minority: the mass on all but the majority's response (the best reward, the Condorcet winner)."""
    preference, ref = tables(*GAMES[game], replicates, seed, device)
    policy = target_policy(target, preference, ref, kl_coef)
    matching = target_policy("matching", preference, ref, kl_coef)
    rest = [i for i in range(ref.shape[-1]) if i != MAJORITY[game]]
    values = {(f"probability_{i}", 0): policy[:, 0, i].exp() for i in range(ref.shape[-1])}
    values["minority", 0] = policy[:, 0, rest].exp().sum(-1)
    values["matching divergence", 0] = kl(matching, policy)[:, 0]
    values["unregularised_gap", 0] = unregularised_gap(policy, preference)[:, 0]
    values["distance to RLHF", 0] = total_variation(policy, target_policy("RLHF", preference, ref, kl_coef))[:, 0]
    return frame_of(values)


def probability_of(s: Snapshot, action: int) -> Tensor:
    return s.over_contexts(s.log_probs.exp()[..., action])


def distance_to_matching(s: Snapshot) -> Tensor:
    """Total variation to softmax(r), r the limit of Bradley-Terry's likelihood under uniform pairs."""
    assert s.game is not None
    return s.over_contexts(
        total_variation(s.log_probs, target_policy("matching", s.game.preference, s.ref_log_probs, 1))
    )


def cells(settings: Settings, tuned: Mapping[str, Any]) -> list[Simulation | Task]:
    del tuned  # targets have nothing to tune
    grid: list[Simulation | Task] = []
    for game in GAMES:
        for target in TARGETS:
            for kl_coef in KL_COEFS[::3] if settings.smoke else KL_COEFS:
                how = {"game": game, "target": target, "kl_coef": kl_coef}
                grid.append(Task({"part": "exact", **how}, exact, how, 1, settings.seed))
    players = ("uniform", "uniform")
    rules = {
        "borda": algorithms.create("borda"),
        "copeland": algorithms.create("copeland"),
        "self_play_exp3": algorithms.create("self_play_exp3"),
        "pm_rlhf": algorithms.create("pm_rlhf", players=players, value_range=4.0),
        "offline IPO": algorithms.create("online_ipo", players=players),
        "RLHF": algorithms.create("online_dpo", players=players, value_range=4.0),
    }
    for game, (world, oracle) in GAMES.items():
        for name, algorithm in rules.items():
            grid.append(
                Simulation(
                    {"part": "sampled", "game": game, "rule": name},
                    Problem(world, oracle, 0.1),
                    algorithm,
                    rounds=20 if settings.smoke else 200,
                    batch_size=256,
                    replicates=settings.replicates,
                    seed=settings.seed,
                    metrics=[
                        "unregularised_gap",
                        ("distance to matching", distance_to_matching),
                        *((f"probability_{i}", partial(probability_of, action=i)) for i in range(3)),
                        ("majority", partial(probability_of, action=MAJORITY[game])),
                    ],
                )
            )
    return grid


XIAO, IPO, NASH, DERIVED = "2405.16455", "2403.08635", "2312.00886", "derived"


def number(
    name: str,
    source: str,
    game: str,
    target: str,
    kl_coef: float,
    metric: str,
    value: float,
    tolerance: float = 0.0,
    sense: Any = "equals",
) -> Number:
    where = {"part": "exact", "game": game, "target": target, "kl_coef": kl_coef}
    return Number(name, source, metric, where, value, tolerance, sense, exact=True)


def sampled(name: str, source: str, game: str, rule: str, metric: str, value: float, sense: Any) -> Number:
    return Number(name, source, metric, {"part": "sampled", "game": game, "rule": rule}, value, 0, sense)


claims = (
    number(
        "Condorcet game, kl_coef .001: Nash plays the Condorcet winner 0",
        "own earlier runs",
        "Condorcet",
        "Nash",
        0.001,
        "probability_0",
        1,
        1e-6,
    ),
    number(
        "Condorcet game, kl_coef .001: Borda plays action 1",
        "own earlier runs",
        "Condorcet",
        "Borda",
        0.001,
        "probability_1",
        1,
        1e-6,
    ),
    number(
        "and Borda's choice loses .04 to the best opponent",
        DERIVED,
        "Condorcet",
        "Borda",
        0.001,
        "unregularised_gap",
        0.04,
        1e-9,
    ),
    number("the best reward plays action 1 too", DERIVED, "Condorcet", "RLHF", 0.001, "probability_1", 1, 1e-6),
    *(
        number(
            f"Bradley-Terry, kl_coef .001: {target} plays the best reward alone",
            f"{XIAO}; own earlier runs",
            "Bradley-Terry",
            target,
            0.001,
            "minority",
            0,
            1e-6,
        )
        for target in ("Borda", "Nash", "RLHF")
    ),
    *(
        number(
            f"matching is softmax(r): response {i}",
            XIAO,
            "Bradley-Terry",
            "matching",
            0.001,
            f"probability_{i}",
            float(np.exp(r) / np.exp(REWARDS).sum()),
            1e-9,
        )
        for i, r in enumerate(REWARDS)
    ),
    number(
        "RLHF matches at kl_coef 1 and a uniform reference",
        "own earlier runs",
        "Bradley-Terry",
        "RLHF",
        1.0,
        "matching divergence",
        0,
        1e-12,
    ),
    Monotone(
        "RLHF: the minority's mass falls with kl_coef",
        XIAO,
        "minority",
        {"part": "exact", "game": "Bradley-Terry", "target": "RLHF"},
        "kl_coef",
        "increasing",
        exact=True,
    ),
    number(
        "RLHF collapses: minority below 1e-4 at kl_coef .1",
        XIAO,
        "Bradley-Terry",
        "RLHF",
        0.1,
        "minority",
        1e-4,
        sense="at most",
    ),
    *(
        Ordering(
            f"kl_coef .1: {target} has a smaller minority than matching",
            XIAO,
            "minority",
            {"target": target},
            {"target": "matching"},
            where={"part": "exact", "game": "Bradley-Terry", "kl_coef": 0.1},
            exact=True,
        )
        for target in ("Borda", "Nash", "RLHF")
    ),
    *(
        number(
            f"Nash does not match at kl_coef {k:g} (divergence > .01)",
            "follow-up of 2405.16455, Theorem 5.1",
            "Bradley-Terry",
            "Nash",
            k,
            "matching divergence",
            0.01,
            sense="at least",
        )
        for k in (1.0, 0.1, 0.01)
    ),
    *(
        number(
            f"a Bradley-Terry game of log-odds has the RLHF policy as equilibrium, kl_coef {k:g}",
            DERIVED,
            "Bradley-Terry",
            "log-odds Nash",
            k,
            "distance to RLHF",
            0,
            1e-9,
        )
        for k in (1.0, 0.1, 0.01)
    ),
    sampled(
        "51,200 duels: Borda's count elects action 1", DERIVED, "Condorcet", "borda", "probability_1", 0.95, "at least"
    ),
    sampled(
        "Copeland's count elects the Condorcet winner 0",
        DERIVED,
        "Condorcet",
        "copeland",
        "probability_0",
        0.95,
        "at least",
    ),
    sampled(
        "offline IPO (kl_coef .1) prefers action 1 (probability > .9)",
        IPO,
        "Condorcet",
        "offline IPO",
        "probability_1",
        0.9,
        "at least",
    ),
    sampled(
        "self-play EXP3 is within .1 of a von Neumann winner, Condorcet game",
        "1502.06362, 2401.04056",
        "Condorcet",
        "self_play_exp3",
        "unregularised_gap",
        0.1,
        "at most",
    ),
    sampled(
        "pm_rlhf matches on duels (total variation < .02)",
        XIAO,
        "Bradley-Terry",
        "pm_rlhf",
        "distance to matching",
        0.02,
        "at most",
    ),
    *(
        Ordering(
            f"51,200 duels: {rule} is further from matching than pm_rlhf",
            XIAO,
            "distance to matching",
            {"rule": "pm_rlhf"},
            {"rule": rule},
            where={"part": "sampled", "game": "Bradley-Terry"},
        )
        for rule in ("borda", "offline IPO", "RLHF", "self_play_exp3")
    ),
)

SHOWN = ("Borda", "Nash", "RLHF", "matching")


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=3, height=2.6)
    minority, condorcet, learnt = axes[0]
    looks = plotting.lines(SHOWN)
    where = {"part": "exact", "game": "Bradley-Terry"}
    how = {"x": "kl_coef", "order": SHOWN, "looks": looks, "legend": False}
    plotting.curves(minority, frame, "minority", "target", where=where, **how)
    minority.set_ylabel("mass on all but the best response")
    minority.set_title("(a) Bradley-Terry game")
    where = {"part": "exact", "game": "Condorcet"}
    plotting.curves(condorcet, frame, "probability_0", "target", where=where, **how)
    condorcet.set_ylabel("probability of the Condorcet winner")
    condorcet.set_title("(b) Condorcet is not Borda")
    for ax in (minority, condorcet):
        ax.set_xscale("log")
        ax.set_xlabel("kl_coef")
        ax.set_ylim(-0.03, 1.03)
    where = {"part": "sampled", "game": "Bradley-Terry"}
    order = ["borda", "self_play_exp3", "RLHF", "pm_rlhf"]
    names = {"borda": "Borda count", "self_play_exp3": "self-play EXP3"}
    alike = {rule: looks[target] for rule, target in zip(order, SHOWN, strict=True)}
    how = {"order": order, "looks": alike, "loglog": True, "legend": False}
    plotting.curves(learnt, frame, "distance to matching", "rule", where=where, names=names, **how)
    learnt.set_ylim(bottom=1e-3)
    learnt.legend(loc="lower left")
    learnt.set_ylabel("total variation to softmax(r)")
    learnt.set_title("(c) learnt from duels")
    plotting.legend_above(figure, minority)
    return figure


study = Study(
    name="three_targets",
    title="Borda, Nash and preference matching: three targets, and where they part",
    source="2403.08635 (offline IPO), 2312.00886 (Nash), Xiao et al. 2405.16455 (preference matching)",
    cells=cells,
    claims=claims,
    plot=plot,
    replicates=64,
    smoke_replicates=12,
)
