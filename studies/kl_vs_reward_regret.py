"""The same algorithms under both objectives: reward bandits judged by KL regret, KL bandits judged by reward regret.

Sources: LinUCB (OFUL 2011) and linear Thompson sampling (1209.3352) minimise sum max r - r(a_t); greedy sampling
(2510.24700) and KL-UCB (2502.07460) minimise sum J(pi*) - J(pi_t), J = E r - kl_coef KL(pi || pi_ref). No paper puts
them side by side; the two regrets share no axis, and this study shows why.

World: 20 contexts x 10 actions, unit features in R^5, |theta*| = 1, uniform reference, rewards with N(0, 1/4) noise, T
= 2,000, kl_coef 1, .2 and .04. For the J of a bandit its greedy policy counts, what one would deploy; for the reward
regret of every rule what it played. Ridge 1, radius 1/2 (LinUCB, KL-UCB) and scale .3 (LinTS), equal for all and tuned
for none.

Expected before the run, from the definitions: a deterministic policy has J gap kl_coef KL(pi || pi*) <= kl_coef log 10
and never less than a constant, so its KL regret is linear; pi* itself loses reward in every round, so that the reward
regret of a KL rule is linear; both faults shrink with kl_coef.

Found (64 replicates): each family wins under its own objective at every kl_coef, by factors up to a thousand at kl_coef
1 (LinUCB's greedy policy ends 1.73 below the best J, KL rules lose nearly 1,000 of reward in 2,000 rounds), and still
by less than a factor two at .04. There the linear terms are not yet visible: four claims of linear growth fail with
slopes of .4, because learning still costs more than the constant (a J gap of .007). The fast rate's slope is -1 to
-1.2, its intervals too wide to decide +- .1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from simbandit import Problem, algorithms, plotting
from simbandit.guarantees import Exponent, Monotone, Number, Ordering
from simbandit.oracles import NoisyReward
from simbandit.study import Settings, Simulation, Study
from simbandit.worlds import LinearWorld

WORLD = LinearWorld(n_contexts=20, n_actions=10, dim=5, theta_norm=1.0)
UCB, TS, GREEDY, KLUCB = "LinUCB", "LinTS", "greedy sampling (KL)", "KL-UCB"
RULES: dict[str, Any] = {
    UCB: algorithms.create("linucb", radius=0.5),
    TS: algorithms.create("lints", scale=0.3),
    GREEDY: algorithms.create("greedy", ridge=1.0),
    KLUCB: algorithms.create("kl_ucb", radius=0.5),
}
BANDITS, KL_RULES = (UCB, TS), (GREEDY, KLUCB)
KL_COEFS, T = (1.0, 0.2, 0.04), 2000
J, REWARD = "cumulative_suboptimality", "cumulative_reward_regret"


def cells(settings: Settings, tuned: Mapping[str, Any]) -> list[Simulation]:
    del tuned
    return [
        Simulation(
            {"rule": rule, "kl_coef": kl_coef},
            Problem(WORLD, NoisyReward(0.5), kl_coef),
            algorithm,
            rounds=100 if settings.smoke else T,
            replicates=settings.replicates,
            seed=settings.seed,
            metrics=["suboptimality", J, REWARD],
        )
        for kl_coef in KL_COEFS
        for rule, algorithm in RULES.items()
    ]


def _where(rule: str, kl_coef: float) -> dict[str, Any]:
    return {"rule": rule, "kl_coef": kl_coef}


def _grows(name: str, source: str, metric: str, rule: str, kl_coef: float, exponent: float, sense: Any) -> Exponent:
    where = _where(rule, kl_coef)
    return Exponent(
        f"{name}: {rule}, kl_coef {kl_coef:g}", source, metric, where, exponent, 0.1, sense, window=(500, T)
    )


def _less(name: str, metric: str, smaller: str, larger: str, kl_coef: float) -> Ordering:
    sides = _where(smaller, kl_coef), _where(larger, kl_coef)
    return Ordering(f"{name}, kl_coef {kl_coef:g}: {smaller} below {larger}", "the objectives", metric, *sides)


BY_DEFINITION, LOG = "the objectives", "2510.24700, Theorem 1; 2502.07460"
CLAIMS = (
    *(_grows("KL regret is linear", BY_DEFINITION, J, rule, kl, 1.0, "equals") for rule in BANDITS for kl in KL_COEFS),
    *(
        _grows("reward regret is linear", BY_DEFINITION, REWARD, rule, kl, 1.0, "equals")
        for rule in KL_RULES
        for kl in KL_COEFS
    ),
    *(
        _grows("reward regret at most sqrt(T)", "OFUL (2011); 1209.3352", REWARD, rule, 1.0, 0.5, "at most")
        for rule in BANDITS
    ),
    *(
        _grows("fast rate, the gap falls like 1 / t", LOG, "suboptimality", rule, kl, -1.0, "equals")
        for rule in KL_RULES
        for kl in KL_COEFS
    ),
    *(
        Number(
            f"a greedy policy's J gap is at most kl_coef log 10: {UCB}, kl_coef {kl:g}",
            "kl_coef KL(pi || pi*) where pi is the argmax",
            "suboptimality",
            _where(UCB, kl),
            kl * math.log(10),
            0.0,
            "at most",
        )
        for kl in KL_COEFS
    ),
    *(_less("KL regret", J, rule, bandit, kl) for kl in KL_COEFS for rule in KL_RULES for bandit in BANDITS),
    *(_less("reward regret", REWARD, bandit, rule, kl) for kl in KL_COEFS for rule in KL_RULES for bandit in BANDITS),
    *(
        Monotone(f"{name} with kl_coef: {rule}", BY_DEFINITION, metric, {"rule": rule}, "kl_coef", "increasing")
        for name, metric, rule in (
            ("the bandit's J gap grows", J, UCB),
            ("the KL rule's lost reward grows", REWARD, GREEDY),
        )
    ),
)


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=3, rows=2, height=2.1)
    for column, kl_coef in enumerate(KL_COEFS):
        for row, metric in enumerate((J, REWARD)):
            ax = axes[row, column]
            where = {"kl_coef": kl_coef}
            plotting.curves(ax, frame, metric, "rule", where=where, order=list(RULES), loglog=True, legend=False)
            ax.set_xlim(left=10)
            shown = frame[(frame["metric"] == metric) & (frame["kl_coef"] == kl_coef) & (frame["queries"] >= 10)]
            values = np.asarray(shown["value"], dtype=float)
            ax.set_ylim(0.5 * np.quantile(values, 0.05), 2 * values.max())
            ax.set_title(f"kl_coef = {kl_coef:g}" if row == 0 else "")
            ax.set_xlabel("rounds" if row else "")
            ax.set_ylabel(("KL regret [reward]", "regret of play [reward]")[row] if column == 0 else "")
    plotting.legend_above(figure, axes[0, 0])
    return figure


study = Study(
    name="kl_vs_reward_regret",
    title="Reward bandits and KL bandits under each other's objective",
    source="OFUL (2011), 1209.3352, 2510.24700, 2502.07460",
    cells=cells,
    claims=CLAIMS,
    plot=plot,
    replicates=64,
    smoke_replicates=8,
)
