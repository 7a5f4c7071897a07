"""Hybrid GSHF: what logged duels are worth before going online, when they cover the optimum and when they do not.

The hybrid setting of Xiong et al. 2024 (2312.11456), which has no simulation: own design, on the hidden gem (one
context, 12 one-hot arms, r(gem) = 1, the others U[0, 1/2], pi_ref(gem) = 1e-3, kl_coef = .1). Logged are n_off duels
of a good policy (uniform over the arms) or of a bad one (the reference, which hides the gem). Then 20 batches of 32
duels online. Compared:

    hybrid, enhancer      (pi_t, KL-ball enhancer) after the logged duels
    hybrid, reference     (pi_t, pi_ref) after the logged duels: the paper's hybrid algorithm, whose guarantee asks that
                          logged and online data cover pi* - pi_ref
    from scratch          both of them with n_off = 0
    offline only          Option II of offline GSHF on the same logged duels, no duel online

Logged duels count as given: the x-axis is n_off, or the duels asked online. Each learner has three candidates, tuned
on the bad policy's duels at n_off = 512 and seeds of their own: the enhancer's radius, the ridge of the pair with the
reference (which has no radius), the radius of Option II. All else is as in `gshf_hidden_gem`.

Found: all of it, except that with 512 good duels the pair with the reference is still about a quarter worse than the
enhancer; with 2,048 the two agree. Bad logs help the enhancer too: they rank the eleven arms that are not the gem.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from simbandit import plotting
from simbandit.algorithms import create
from simbandit.data import Logged
from simbandit.guarantees import Monotone, Ordering
from simbandit.guarantees.rows import pivot, select
from simbandit.oracles import BradleyTerry
from simbandit.policies import Reference, Uniform
from simbandit.simulate import Problem
from simbandit.study import Settings, Simulation, Study, Task
from simbandit.types import Algorithm
from simbandit.worlds.hard import hidden_gem

BATCH, ROUNDS, TUNING_SIZE = 32, 20, 512
LOGS = {"good": Uniform(), "bad": Reference()}
ENHANCER, REFERENCE, OFFLINE = "hybrid, enhancer", "hybrid, reference", "offline only"
NAMES = {
    ENHANCER: r"hybrid $(\pi_t,$ enhancer$)$",
    REFERENCE: r"hybrid $(\pi_t, \pi_\mathrm{ref})$",
    OFFLINE: "offline only, pessimistic",
}


def cell(settings: Settings, labels: dict[str, Any], algorithm: Algorithm, seed: int) -> Simulation:
    log, n = labels["log"], labels["n_off"]
    return Simulation(
        labels=labels,
        problem=Problem(hidden_gem(), BradleyTerry(), 0.1),
        algorithm=algorithm,
        rounds=1 if labels["learner"] == OFFLINE else ROUNDS,
        batch_size=BATCH,
        replicates=settings.replicates,
        seed=seed,
        offline=Logged(LOGS[log], n) if n else None,
        metrics=["suboptimality"],
        record="all",
    )


def tuning(settings: Settings) -> dict[str, list[Simulation]]:
    candidates = {
        ENHANCER: [create("gshf_online", radius=r) for r in (0.3, 1.0, 3.0)],
        REFERENCE: [create("gshf_hybrid", ridge=r) for r in (0.03, 0.1, 0.3)],
        OFFLINE: [create("gshf_offline", radius=r) for r in (1.0, 3.0, 10.0)],
    }
    return {
        learner: [
            cell(settings, {"learner": learner, "log": "bad", "n_off": TUNING_SIZE}, algorithm, settings.tuning_seed)
            for algorithm in algorithms
        ]
        for learner, algorithms in candidates.items()
    }


def cells(settings: Settings, tuned: dict[str, Any]) -> Sequence[Simulation | Task]:
    sizes = (128, 512) if settings.smoke else (32, 128, 512, 2048)
    return [
        cell(settings, {"learner": learner, "log": log, "n_off": n}, algorithm, settings.seed)
        for learner, algorithm in tuned.items()
        for log, n in [*((log, n) for log in LOGS for n in sizes), ("none", 0)]
        if n or learner != OFFLINE
    ]


PAPER = "Xiong et al. 2024, hybrid setting"


def at(learner: str, log: str, n_off: int) -> dict[str, Any]:
    return {"learner": learner, "log": log, "n_off": n_off}


def below(words: str, smaller: dict[str, Any], larger: dict[str, Any], factor: float = 1.0) -> Ordering:
    return Ordering(words, PAPER, "suboptimality", smaller, larger, factor=factor)


claims = (
    below("good logs: hybrid beats online from scratch", at(ENHANCER, "good", 512), at(ENHANCER, "none", 0)),
    below(
        "good logs: hybrid without an enhancer beats it from scratch",
        at(REFERENCE, "good", 512),
        at(REFERENCE, "none", 0),
    ),
    below("good logs: hybrid beats offline only", at(ENHANCER, "good", 512), at(OFFLINE, "good", 512)),
    below("bad logs: hybrid beats offline only", at(ENHANCER, "bad", 512), at(OFFLINE, "bad", 512)),
    below(
        "bad logs: hybrid costs at most a quarter more than from scratch",
        at(ENHANCER, "bad", 512),
        at(ENHANCER, "none", 0),
        factor=0.8,
    ),
    below("good logs are worth more than bad ones", at(REFERENCE, "good", 512), at(REFERENCE, "bad", 512)),
    below(
        "bad logs: the enhancer beats the pair with the reference", at(ENHANCER, "bad", 512), at(REFERENCE, "bad", 512)
    ),
    below(
        "good logs: no enhancer is needed (within a quarter)",
        at(REFERENCE, "good", 512),
        at(ENHANCER, "good", 512),
        factor=0.8,
    ),
    *(
        Monotone(
            f"good logs: more of them, a smaller gap ({learner})",
            PAPER,
            "suboptimality",
            {"learner": learner, "log": "good"},
            x="n_off",
            direction="decreasing",
        )
        for learner in (ENHANCER, REFERENCE, OFFLINE)
    ),
)


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=2, rows=2, height=2.4)
    looks = plotting.lines(list(NAMES))
    one: dict[str, Any] = {"looks": looks, "names": NAMES, "legend": False}
    scratch = {
        learner: pivot(select(frame, {"learner": learner, "log": "none", "metric": "suboptimality"}), "queries").mean()
        for learner in (ENHANCER, REFERENCE)
    }
    for column, log in enumerate(LOGS):
        ends, paths = axes[:, column]
        plotting.curves(
            ends,
            frame,
            "suboptimality",
            "learner",
            x="n_off",
            loglog=True,
            where={"log": log},
            order=list(NAMES),
            **one,
        )
        where = {"log": log, "n_off": TUNING_SIZE}
        plotting.curves(paths, frame, "suboptimality", "learner", where=where, order=list(scratch), **one)
        for learner, mean in scratch.items():
            thin = {"color": looks[learner].color, "linewidth": 0.8, "linestyle": ":"}
            ends.axhline(mean.iloc[-1], **thin)
            paths.plot(mean.index.to_numpy(), mean.to_numpy(), **thin)
        ends.set_title(f"{log} logs")
        ends.set_xlabel(r"$n_\mathrm{off}$ (logged duels)")
        paths.set_xlabel(f"duels asked online, after {TUNING_SIZE} logged")
        for ax in (ends, paths):
            ax.set_ylabel("gap [reward]\n(lower is better)" if column == 0 else "")
    axes[0, 0].plot([], [], color="0.4", linewidth=0.8, linestyle=":", label="the same from scratch")
    plotting.legend_above(figure, axes[0, 0])
    return figure


study = Study(
    name="gshf_hybrid",
    title="Hybrid GSHF: what logged duels are worth before going online",
    source="Xiong et al. 2024 (2312.11456), hybrid setting; own design, no published figure",
    cells=cells,
    claims=claims,
    plot=plot,
    tuning=tuning,
    replicates=128,
    smoke_replicates=8,
)
