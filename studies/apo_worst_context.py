"""Asking about the right context: worst-context regret of active and of uniform preference collection.

Source: APO (Das et al. 2024, 2402.10500), whose claim is that uniform contexts can cost a constant gap where active
ones pay O~(d / sqrt(T)). Its experiments are on language models only, so both instances are ours, and so are the
numbers of the claims marked "own earlier runs" (30 seeds). One-shot D-optimal design: ODPO (2410.17055, no experiments
seen).

random: 200 contexts x 5 actions, unit features in R^8, |theta*| = 3. hard: two actions, phi = e_k and 0, r = -3 / sqrt
8 and 0; 193 contexts share k = 1, the seven others carry one direction each. The second action is the better one
everywhere, because ties go to the first: a context that nobody asked about costs its whole gap, 3 / sqrt 8 = 1.06.

Grid: T up to 800 Bradley-Terry duels; rules: a uniform context with two different actions, APO with V and with the
Hessian, a D-optimal plan made for each budget. One estimator for all (ridge .1 and the ball |theta| <= 3). Measure:
worst_argmax_regret, the max over contexts; argmax_regret is the mean.

What differs: the released code takes the 100 best of a pool at once, here one question at a time. V starts at I (theirs
at 1e-5 I).

Found (64 replicates): the constant gap is real: uniform has 92 % of it left at T = 400 and 87 % at 800, four times the
number of contexts, while its mean gap never exceeds .05 after 20 duels; APO (V) has none left at T = 200. One claim
fails: at T = 50, six duels a direction, APO still has three quarters of the gap, because 26 % of these labels are
wrong. On random features APO (V) saves some 40 % of the duels up to T = 100 and next to nothing at 800 (undecided), all
with slopes near -1/2; the Hessian that the theory wants is behind V, and from T = 200 on behind uniform. The one-shot
plan is as good as APO (V).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from simbandit import Problem, algorithms, plotting
from simbandit.guarantees import Exponent, Number, Ordering
from simbandit.oracles import BradleyTerry
from simbandit.study import Settings, Simulation, Study
from simbandit.worlds import LinearWorld
from studies._random_pairs import RandomPairs

GAP = 3 / np.sqrt(8)


def _hard() -> LinearWorld:
    direction = np.r_[np.zeros(193, dtype=int), np.arange(1, 8)]
    features = np.stack([np.eye(8)[direction], np.zeros((200, 8))], axis=1)
    return LinearWorld(features=features, theta=np.full(8, -GAP), theta_norm=None)


WORLDS = {"random": LinearWorld(n_contexts=200, n_actions=5, dim=8, theta_norm=3.0), "hard": _hard()}
UNIFORM, GRAM, HESSIAN, PLAN = "uniform", "APO (V)", "APO (Hessian)", "D-optimal plan"
RULES: dict[str, Any] = {
    UNIFORM: RandomPairs(),
    GRAM: algorithms.create("apo"),
    HESSIAN: algorithms.create("apo", matrix="hessian"),
    PLAN: algorithms.create("d_optimal"),
}
BUDGETS = (20, 50, 100, 200, 400, 800)
PAPER, NOTE = "2402.10500, Theorem 3 and section 4", "own earlier runs, after 2402.10500"


def cells(settings: Settings, tuned: Mapping[str, Any]) -> list[Simulation]:
    del tuned
    budgets = BUDGETS[:3] if settings.smoke else BUDGETS
    return [
        Simulation(
            {"instance": instance, "rule": rule, "budget": budget},
            Problem(world, BradleyTerry(), 1.0),
            algorithm,
            rounds=budget,
            replicates=settings.replicates,
            seed=settings.seed,
            metrics=["worst_argmax_regret", "argmax_regret"],
            record=budgets[: budgets.index(budget) + 1],
        )
        for instance, world in WORLDS.items()
        for rule, algorithm in RULES.items()
        for budget in (budgets if rule == PLAN else budgets[-1:])
    ]


def _where(instance: str, rule: str, budget: int = BUDGETS[-1]) -> dict[str, Any]:
    return {"instance": instance, "rule": rule, "budget": budget}


def _less(name: str, source: str, instance: str, smaller: str, larger: str, at: int, factor: float = 1.0) -> Ordering:
    sides = [_where(instance, rule, at if rule == PLAN else BUDGETS[-1]) for rule in (smaller, larger)]
    return Ordering(
        f"{instance}: {name}, T = {at}", source, "worst_argmax_regret", sides[0], sides[1], factor=factor, at=at
    )


def _level(instance: str, rule: str, at: int, value: float, metric: str = "worst_argmax_regret") -> Number:
    where = _where(instance, rule)
    name = f"{instance}: level of {rule} at T = {at}, up to 30 %"
    return Number(name, NOTE, metric, where, value, 0.3 * value, at=at)


CLAIMS = (
    *(
        Exponent(
            f"random: worst-context gap ~ 1 / sqrt(T), {rule}",
            f"{PAPER}; tolerance ours",
            "worst_argmax_regret",
            _where("random", rule),
            -0.5,
            0.1,
            window=(50, 800),
        )
        for rule in (GRAM, HESSIAN)
    ),
    *(_less("APO (V) below uniform", NOTE, "random", GRAM, UNIFORM, at) for at in (50, 200, 800)),
    *(_less("D-optimal plan below uniform", NOTE, "random", PLAN, UNIFORM, at) for at in (50, 400)),
    *(_less("V below the Hessian", NOTE, "random", GRAM, HESSIAN, at) for at in (100, 400)),
    _level("random", GRAM, 200, 0.69),
    _level("random", UNIFORM, 200, 0.79),
    *(
        Number(
            f"hard: uniform keeps {share:g} of the gap at T = {at}",
            f"{PAPER} (a constant gap); {NOTE}",
            "worst_argmax_regret",
            _where("hard", UNIFORM),
            share * GAP,
            0.0,
            "at least",
            at,
        )
        for share, at in ((0.9, 200), (0.5, 400))
    ),
    Number(
        "hard: the mean hides it: at T = 200 uniform's is at most .05",
        NOTE,
        "argmax_regret",
        _where("hard", UNIFORM),
        0.05,
        0.0,
        "at most",
        200,
    ),
    *(_less("APO (V) at most half of uniform", PAPER, "hard", GRAM, UNIFORM, at, 2.0) for at in (50, 100, 200)),
    _less("D-optimal plan at most half of uniform", "2410.17055, simple regret bound", "hard", PLAN, UNIFORM, 200, 2.0),
)


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=3, height=2.4)
    whole = (frame["rule"] != PLAN) | (frame["round"] == frame["budget"])
    shown = frame.take(np.flatnonzero(whole.to_numpy()))
    panels = [
        ("random features", "random", "worst_argmax_regret"),
        ("hard instance", "hard", "worst_argmax_regret"),
        ("hard instance, mean", "hard", "argmax_regret"),
    ]
    for ax, (title, instance, metric) in zip(axes[0], panels, strict=True):
        plotting.curves(ax, shown, metric, "rule", where={"instance": instance}, order=list(RULES), legend=False)
        ax.set_title(title)
        ax.set_xscale("log")
        ticks = [tick for tick in BUDGETS if tick in set(frame["budget"])]
        ax.set_xticks(ticks, [str(tick) for tick in ticks])
        ax.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        ax.set_xlim(left=18)
        ax.set_ylim(0, 2.8 if instance == "random" else 1.15)
        ax.set_xlabel("duels asked")
        ax.set_ylabel("mean gap [reward]" if metric == "argmax_regret" else "worst context's gap [reward]")
    axes[0, 1].axhline(GAP, color="#888888", linewidth=0.8, linestyle=":")
    plotting.legend_above(figure, axes[0, 0])
    return figure


study = Study(
    name="apo_worst_context",
    title="Active preference collection: the worst context against the mean",
    source="Das et al. 2024 (2402.10500); own instances",
    cells=cells,
    claims=CLAIMS,
    plot=plot,
    replicates=64,
    smoke_replicates=8,
)
