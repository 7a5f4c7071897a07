"""How many comparisons for a gap of epsilon: 1 / epsilon with KL regularisation, 1 / epsilon^2 without.

Sources: 2411.04625 (two-stage sampling, TMPS: O(1 / epsilon) for the KL objective) and 2510.24700 (greedy sampling),
2312.11456 (GSHF: its Theorem 1 asks for O~(d / epsilon^2), which the sharper analyses say is loose); without
regularisation telling two actions of gap epsilon apart takes Omega(1 / epsilon^2) comparisons. No paper plots
N(epsilon).

KL objective: 20 contexts x 10 actions, unit features in R^5, |theta*| = 1, uniform reference, kl_coef .2, 4,096
Bradley- Terry duels in batches of 16. N(epsilon): duels from which on J(pi*) - J(pi_t) stays at most epsilon, per
replicate, medians over replicates (Kaplan and Meier: a run that never gets there is censored). Rules: GSHF with its
enhancer, greedy with (pi, pi_ref), TMPS (half and half, its policy at every round), uniform duels.

Without: one context, two actions, r = gap and 0, uniform duels; epsilon = gap / 2, so that N is the round from which on
the better action stays identified. The family gap = .8 ... .1 is the lower bound's. Means over 256 replicates, followed
for 200 / gap^2 duels.

What differs: in one *fixed* world the regret of the argmax falls like 1 / N as well, or faster, for gaps are then
fixed: 1 / epsilon^2 is a worst case over worlds, and is shown as one.

Found (64 replicates): N(.0125) is 1,230 to 1,280 duels for greedy, TMPS and uniform duels, 1,620 for GSHF; exponents of
1.12 to 1.16 (GSHF 1.31), compatible with 1 but not decided to +- .25. Without regularisation the family shows 1.9,
within .25 of 2 (a mean of 15 duels at gap .8, 764 at .1, medians of 8 and 300: the last wrong moment has a heavy tail).
That an algorithm beats uniform duels does not come out: the reference is uniform and covers all directions, so greed
and TMPS equal it (undecided), and GSHF's exploration costs half as much again (.0045 against .0030 at the end; fails).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from simbandit import Problem, algorithms, plotting, simulate
from simbandit.guarantees import Exponent, Ordering
from simbandit.guarantees.claims import Verdict
from simbandit.guarantees.rows import Where, select
from simbandit.guarantees.sample_complexity import complexity, queries_to
from simbandit.oracles import BradleyTerry
from simbandit.study import Settings, Simulation, Study, Task
from simbandit.worlds import LinearWorld

WORLD = LinearWorld(n_contexts=20, n_actions=10, dim=5, theta_norm=1.0)
GSHF, GREEDY, TMPS, UNIFORM = "GSHF", "greedy", "TMPS", "uniform duels"
RULES: dict[str, Any] = {
    GSHF: algorithms.create("gshf_online"),
    GREEDY: algorithms.create("greedy"),
    TMPS: algorithms.create("two_stage"),
    UNIFORM: algorithms.create("two_stage", first_stage=1.0),
}
BATCH, DUELS, FOLLOWED = 16, 4096, 200.0
EPSILONS = (0.1, 0.05, 0.025, 0.0125)
GAPS = (0.8, 0.4, 0.2, 0.1)


def identified(replicates: int, seed: int, device: str, gap: float) -> pd.DataFrame:
    """Per replicate the duels from which on the better of two actions stays identified; the horizon where never."""
    world = LinearWorld(features=np.array([[[0.0], [1.0]]]), theta=np.array([gap]), theta_norm=None)
    batch = max(1, round(0.1 / gap**2))  # looked at ever more rarely as N grows, so that its resolution scales alike
    horizon = round(FOLLOWED / gap**2 / batch) * batch
    run = simulate(
        Problem(world, BradleyTerry(), 1.0),
        RULES[UNIFORM],
        rounds=horizon // batch,
        batch_size=batch,
        replicates=replicates,
        seed=seed,
        device=device,
        metrics=["argmax_regret"],
        record="all",
    )
    needed = queries_to(run.frame(), gap / 2, metric="argmax_regret")
    rows = {"replicate": range(replicates), "round": 1, "queries": float(horizon), "metric": "needed"}
    return pd.DataFrame({**rows, "value": np.maximum(needed.queries, 1.0)})


@dataclass(frozen=True)
class Needs:
    """N(epsilon) of `metric` grows like epsilon^-exponent, +- tolerance, by `complexity`."""

    name: str
    source: str
    metric: str
    where: Where
    epsilons: Sequence[float]
    exponent: float
    tolerance: float

    def judge(self, frame: pd.DataFrame) -> Verdict:
        rows = select(frame, {**self.where, "metric": self.metric})
        measured, low, high = map(float, complexity(rows, self.epsilons, metric=self.metric).exponent)
        above, below = low >= self.exponent - self.tolerance, high <= self.exponent + self.tolerance
        outside = high < self.exponent - self.tolerance or low > self.exponent + self.tolerance
        verdict = "holds" if above and below else "fails" if outside or np.isnan(measured) else "undecided"
        text = f"= epsilon^-{self.exponent:g} (+- {self.tolerance:g})"
        return Verdict(self.name, self.source, text, measured, low, high, verdict)


def cells(settings: Settings, tuned: Mapping[str, Any]) -> list[Simulation | Task]:
    del tuned
    duels = 512 if settings.smoke else DUELS
    grid: list[Simulation | Task] = [
        Simulation(
            {"part": "kl", "rule": rule},
            Problem(WORLD, BradleyTerry(), 0.2),
            algorithm,
            rounds=duels // BATCH,
            batch_size=BATCH,
            replicates=settings.replicates,
            seed=settings.seed,
            metrics=["suboptimality"],
            record="all",
        )
        for rule, algorithm in RULES.items()
    ]
    return grid + [
        Task(
            {"part": "gap", "gap": gap},
            identified,
            {"gap": gap},
            4 * settings.replicates,
            settings.seed,
        )
        for gap in (GAPS[:2] if settings.smoke else GAPS)
    ]


FAST = {
    GSHF: "2312.11456's algorithm, rate of 2411.04625",
    GREEDY: "2510.24700, Theorem 1",
    TMPS: "2411.04625, Theorem 2",
}
FAST[UNIFORM] = "2411.04625 (full coverage)"


def _less(name: str, source: str, smaller: str, larger: str, factor: float = 1.0) -> Ordering:
    sides = {"part": "kl", "rule": smaller}, {"part": "kl", "rule": larger}
    return Ordering(f"{name}, gap after {DUELS:,} duels", source, "suboptimality", *sides, factor=factor)


CLAIMS = (
    *(
        Needs(
            f"with KL, N(epsilon) ~ 1 / epsilon: {rule}",
            f"{source}; tolerance ours",
            "suboptimality",
            {"part": "kl", "rule": rule},
            EPSILONS,
            1.0,
            0.25,
        )
        for rule, source in FAST.items()
    ),
    Exponent(
        "without, N ~ 1 / gap^2 over the lower bound's family",
        "two-point lower bound; tolerance ours",
        "needed",
        {"part": "gap"},
        -2.0,
        0.25,
        x="gap",
    ),
    *(_less(f"{rule} below uniform duels", source, rule, UNIFORM) for rule, source in FAST.items() if rule != UNIFORM),
    _less("greed within 15 % of GSHF's exploration", "2510.24700 (greed suffices)", GREEDY, GSHF, 1 / 1.15),
)


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=2, height=2.6)
    left, right = axes[0]
    looks = plotting.lines(list(RULES))
    epsilons = np.geomspace(EPSILONS[0], EPSILONS[-1], 13)
    for rule, look in looks.items():
        found = complexity(select(frame, {"part": "kl", "rule": rule}), epsilons.tolist(), resamples=50).table
        reached = found[np.isfinite(found["median"]) & (found["median"] > 0)]
        left.plot(1 / reached["epsilon"], reached["median"], color=look.color, linestyle=look.dash, label=rule)
    left.plot(1 / epsilons, 12 / epsilons, color="#888888", linewidth=0.8, label=r"$\propto 1/\epsilon$")
    left.set(xscale="log", yscale="log", xlabel=r"1 / $\epsilon$ [1 / reward]", ylabel=r"median N($\epsilon$) [duels]")
    ticks = [round(1 / one) for one in EPSILONS]
    left.set_xticks(ticks, [str(tick) for tick in ticks])
    left.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    left.set_title("KL objective, one world")
    left.legend()
    gaps = select(frame, {"part": "gap"}).assign(inverse=lambda rows: 1 / rows["gap"])
    plotting.curves(
        right, gaps, "needed", "part", x="inverse", loglog=True, names={"gap": "uniform duels"}, legend=False
    )
    at = np.unique(gaps["inverse"])
    right.plot(at, 20 * at**2, color="#888888", linewidth=0.8, label=r"$\propto 1/\mathrm{gap}^2$")
    right.set_xticks(at, [f"{one:g}" for one in at])
    right.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    right.set_xlabel("1 / gap [1 / reward]")
    right.set_ylabel("mean duels to identify [duels]")
    right.set_title("no regularisation, worst-case family")
    right.legend()
    return figure


study = Study(
    name="sample_complexity",
    title="Comparisons to a gap of epsilon: 1 / epsilon with KL, 1 / epsilon^2 without",
    source="2411.04625, 2510.24700, 2312.11456 (no N(epsilon) plot in any)",
    cells=cells,
    claims=CLAIMS,
    plot=plot,
    replicates=64,
    smoke_replicates=8,
)
