"""Two-stage mixed-policy sampling (TMPS): does data from the improved policy pay, and how fast does the gap fall?

Source: Zhao, Ye, Gu, Zhang 2024, "Sharp Analysis for KL-Regularized Contextual Bandits and RLHF" (2411.04625),
Figures 1 and 2: gap J(pi*) - J(pi) over the number of samples, mixed sampling against data from pi_0 alone, and the
effect of the KL coefficient, for reward and for preference feedback. Their eta is 1 / kl_coef.

World: x uniform on the sphere of R^10, fresh for every sample, 5 actions, r = <x, theta_a> with theta* uniform on
[0, 5]^(5 x 10), noise N(0, 1) or Bradley-Terry labels. The reference is uniform, or skewed (.6, .2, .1, .07, .03).

Grid: N = 500 ... 8,000 samples, each its own run, because the second stage begins at N / 2; reward and preference
feedback; both references; kl_coef 1, and 1/4 for the skewed one. KL sweep: kl_coef 2 ... 1/4 at N = 8,000, uniform
reference, rewards, theta* uniform on [0, 1] and on [0, 5].

What differs: the paper's exact numbers are not published, so the set-up follows a reader's memory of it and the
targets are our own earlier runs (10 seeds), marked "own note"; a small ridge, tuned with the same budget for both data
sources, replaces the paper's bare ball. Samples arrive in batches of 250, which changes nothing: a stage's policy is
fixed.

Found (64 replicates): rates, levels and the KL sweep agree with the earlier runs. Two of their claims do not hold. At
N = 500 with rewards and kl_coef 1, mixing improves the gap by 1.6, not by 2 to 4 (by 2.8 at kl_coef 1/4). And with
duels mixed sampling does not lose at N = 500 (.149 against .165): the earlier runs had .69 and 1.07 there, from an
estimate that was hardly regularised, and a second stage that trusted it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from simbandit import Problem, algorithms, plotting
from simbandit.guarantees import Exponent, Monotone, Number, Ordering
from simbandit.guarantees.rows import select
from simbandit.oracles import BradleyTerry, NoisyReward
from simbandit.study import Settings, Simulation, Study
from simbandit.worlds import LinearWorld

SKEWED = (0.6, 0.2, 0.1, 0.07, 0.03)
ORACLES = {"reward": NoisyReward(1.0), "preference": BradleyTerry()}
STAGES = {"π_0 only": 1.0, "mixed": 0.5}
RIDGES = (0.01, 0.1, 1.0)
BATCH = 250
PAPER, NOTE = "2411.04625", "own note, after 2411.04625"


def world(reference: str, theta_scale: float) -> LinearWorld:
    return LinearWorld(
        n_actions=5,
        dim=50,
        features="per_arm",
        theta="box",
        theta_norm=None,
        theta_scale=theta_scale,
        reference="uniform" if reference == "uniform" else SKEWED,
        n_evaluation=20_000,
    )


def cell(algorithm: Any, replicates: int, *, seed: int = 0, **labels: Any) -> Simulation:
    """One run of N samples; a refit at the end of each stage is all that the method asks for."""
    return Simulation(
        labels,
        Problem(world(labels["reference"], labels["theta_scale"]), ORACLES[labels["feedback"]], labels["kl_coef"]),
        replace(algorithm, refit_growth=1e9),
        rounds=labels["samples"] // BATCH,
        batch_size=BATCH,
        replicates=replicates,
        seed=seed,
        metrics=["suboptimality", "kl_to_ref"],
        record=[],
    )


def contender(data: str, feedback: str) -> str:
    return f"{data}, {feedback}"


def tuning(settings: Settings) -> dict[str, list[Simulation]]:
    """The ridge, per data source and feedback, at N = 1,000 with the skewed reference."""
    base = {"reference": "skewed", "kl_coef": 1.0, "theta_scale": 5.0, "samples": 1000}
    return {
        contender(data, feedback): [
            cell(
                algorithms.create("two_stage", first_stage=stage, ridge=ridge),
                min(settings.replicates, 24),
                seed=settings.tuning_seed,
                feedback=feedback,
                data=data,
                **base,
            )
            for ridge in RIDGES
        ]
        for data, stage in STAGES.items()
        for feedback in ORACLES
    }


def cells(settings: Settings, tuned: Mapping[str, Any]) -> list[Simulation]:
    sizes = (500, 1000) if settings.smoke else (500, 1000, 2000, 4000, 8000)
    panels = [(reference, feedback, 1.0) for reference in ("uniform", "skewed") for feedback in ORACLES]
    panels += [("skewed", "reward", 0.25)]
    grid = [
        (reference, feedback, data, kl_coef, 5.0, samples)
        for reference, feedback, kl_coef in panels
        for data in STAGES
        for samples in sizes
    ]
    sweep = [
        ("uniform", "reward", "π_0 only", kl_coef, scale, sizes[-1])
        for scale in (1.0, 5.0)
        for kl_coef in (2.0, 1.0, 0.5, 0.25)
    ]
    names = ("reference", "feedback", "data", "kl_coef", "theta_scale", "samples")
    return [
        cell(
            tuned[contender(entry[2], entry[1])],
            settings.replicates,
            seed=settings.seed,
            **dict(zip(names, entry, strict=True)),
        )
        for entry in dict.fromkeys([*grid, *sweep])  # one cell belongs to both
    ]


def _fast_rate(reference: str, feedback: str) -> Exponent:
    return Exponent(
        f"fast rate 1/N: {reference} reference, {feedback} feedback, π_0 only",
        f"{PAPER}, upper bounds (gap ∝ 1/N); tolerance: own note",
        "suboptimality",
        {"reference": reference, "feedback": feedback, "data": "π_0 only", "kl_coef": 1.0, "theta_scale": 5.0},
        -1.0,
        0.2,
        x="samples",
        window=(1000, 8000),
    )


def _mixed(name: str, source: str, factor: float = 1.0, winner: str = "mixed", **where: Any) -> Ordering:
    loser = next(data for data in STAGES if data != winner)
    return Ordering(
        name,
        source,
        "suboptimality",
        {"data": winner},
        {"data": loser},
        where={"kl_coef": 1.0, "theta_scale": 5.0, **where},
        factor=factor,
    )


SWEEP = {"reference": "uniform", "feedback": "reward", "data": "π_0 only", "samples": 8000}
CLAIMS = (
    *(_fast_rate(reference, feedback) for reference in ("uniform", "skewed") for feedback in ORACLES),
    _mixed(
        "mixed wins: skewed reference, rewards, N = 8,000",
        f"{PAPER}, Figure 1 (as described in its review)",
        reference="skewed",
        feedback="reward",
        samples=8000,
    ),
    *(
        _mixed(
            f"mixed halves the gap: skewed reference, rewards, N = 500, kl_coef {kl_coef:g}",
            NOTE,
            2.0,
            reference="skewed",
            feedback="reward",
            samples=500,
            kl_coef=kl_coef,
        )
        for kl_coef in (1.0, 0.25)
    ),
    _mixed(
        "with duels the first stage must be usable: π_0 only wins at N = 500",
        NOTE,
        winner="π_0 only",
        reference="skewed",
        feedback="preference",
        samples=500,
    ),
    _mixed(
        "... and mixed wins at N = 8,000",
        f"{PAPER}, Figure 2; {NOTE}",
        reference="skewed",
        feedback="preference",
        samples=8000,
    ),
    *(
        _mixed(
            f"no gain from mixing under a uniform reference: {winner} at least .8 of the other",
            NOTE,
            0.8,
            winner=winner,
            reference="uniform",
            feedback="reward",
            samples=8000,
        )
        for winner in STAGES
    ),
    *(
        Monotone(
            f"weaker regularisation, larger gap (theta* to {scale:g})",
            f"{PAPER}, effect of the KL coefficient",
            "suboptimality",
            {**SWEEP, "theta_scale": scale},
            "kl_coef",
            "decreasing",
        )
        for scale in (1.0, 5.0)
    ),
    Ordering(
        "the gap saturates (theta* to 5): less than 1.2 times from kl_coef 1/2 to 1/4",
        NOTE,
        "suboptimality",
        {"kl_coef": 0.25},
        {"kl_coef": 0.5},
        where={**SWEEP, "theta_scale": 5.0},
        factor=1 / 1.2,
    ),
    Number(
        "level: second-order prediction (1 - |π*|²) A d / (2 kl_coef N) = .0025 (theta* to 1)",
        NOTE,
        "suboptimality",
        {**SWEEP, "theta_scale": 1.0, "kl_coef": 1.0},
        0.0025,
        0.0003,
    ),
)


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=2, rows=2, height=2.3)
    shown = [
        ("(a) rewards, skewed reference", "skewed", "reward"),
        ("(b) duels, skewed reference", "skewed", "preference"),
        ("(c) rewards, uniform reference", "uniform", "reward"),
    ]
    for ax, (title, reference, feedback) in zip(axes.flat, shown, strict=False):
        where = {"reference": reference, "feedback": feedback, "kl_coef": 1.0, "theta_scale": 5.0}
        plotting.curves(ax, frame, "suboptimality", "data", x="samples", loglog=True, where=where, order=list(STAGES))
        ax.set_title(title)
        ax.set_xlabel("samples N")
    samples = np.unique(frame["samples"])
    where = {"reference": "uniform", "feedback": "reward", "data": "π_0 only", "samples": samples[-1]}
    sweep = select(frame, where)
    plotting.curves(
        axes[1, 1],
        sweep,
        "suboptimality",
        "theta_scale",
        x="kl_coef",
        loglog=True,
        order=[1.0, 5.0],
        names={1.0: "theta* in [0, 1]", 5.0: "theta* in [0, 5]"},
    )
    axes[1, 1].set_title(f"(d) KL sweep at N = {samples[-1]:,}, π_0 only")
    axes[1, 1].set_xlabel("kl_coef (1 / the paper's η)")
    for ax, ticks in zip(axes.flat, [samples, samples, samples, np.unique(sweep["kl_coef"])], strict=True):
        ax.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
        ax.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        ax.set_ylabel(r"suboptimality $J(\pi^*)-J(\pi)$")
    return figure


study = Study(
    name="two_stage",
    title="Two-stage mixed-policy sampling: fast rate, coverage, KL coefficient",
    source="Zhao et al. 2024 (2411.04625), Figures 1 and 2",
    cells=cells,
    claims=CLAIMS,
    plot=plot,
    tuning=tuning,
    replicates=64,
    smoke_replicates=4,
)
