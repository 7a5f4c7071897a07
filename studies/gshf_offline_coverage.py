"""Offline GSHF: pessimism (Options I and II) against greedy MLE, over the number of duels and the reference's coverage.

Section 4 of Xiong et al. 2024 (2312.11456), which has no simulation: own design. World: 10 one-hot arms, rewards
U[0, 1], kl_coef = .2; the reference, which also draws both actions of every logged duel, is uniform or skewed,
pi_ref(a) proportional to exp(-s a), so that the last of ten arms has probability .011 (s = .4) or 4e-4 (s = .8).

Upper row: greedy MLE (Gibbs policy of the ball-constrained MLE, ridge .1), and three contenders tuned with the same
budget, five candidates each, for the poorest reference at n = 300 on seeds of their own: the radius of Option I
(policy-level pessimism), the radius of Option II (pointwise), and the ridge of greedy MLE, which also pulls towards the
reference. Lower row: both options with the theory's radius sqrt((d + log 1/delta) / gamma^2 + ridge B^2), delta = .05,
the unknown absolute constant set to 1, and the theorems' bounds

    Option I   J(pi*) - J(pi_hat)                              <= 2 radius |E_pi* phi - nu|_{Sigma^-1}
    Option II  J(pi*) - J(pi_hat) + kl_coef KL(pi* || pi_hat)  <= 2 radius E_pi* |phi - nu|_{Sigma^-1}

with the data's own Sigma = ridge I + sum z z' and nu = E_pi_ref phi. `bound_violated` is 1 where the left side exceeds
the right, and is counted exactly over replicates. What differs from the paper: a small ridge in the likelihood; the
constant 1 (the paper's is unknown, and 1 makes the bound easier to violate).

Found: the bounds hold in every replicate and are loose by a factor of 8 to 200; with the theory's radius Option I stays
at the reference up to n = 1,000. Tuned pessimism beats greedy MLE by far where coverage is poor and costs nothing where
it is good, but so does a mere ridge: tuned with the same budget, it beats both options where coverage is poor.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from simbandit import plotting
from simbandit.algorithms import create
from simbandit.estimators import width
from simbandit.guarantees import Exponent, Frequency, Ordering
from simbandit.guarantees.rows import pivot, select
from simbandit.metrics import Snapshot, kl, suboptimality
from simbandit.oracles import BradleyTerry
from simbandit.simulate import Problem
from simbandit.study import Settings, Simulation, Study, Task
from simbandit.types import Algorithm
from simbandit.worlds.linear import LinearWorld

ARMS, KL_COEF, DELTA, RIDGE = 10, 0.2, 0.05, 0.1
SKEWS = {"good": 0.0, "middling": 0.4, "poor": 0.8}
TUNING_SIZE = 300
OPTIONS: dict[str, Literal["policy", "pointwise"]] = {"Option I": "policy", "Option II": "pointwise"}


def problem(coverage: str) -> Problem:
    world = LinearWorld(
        n_contexts=1,
        n_actions=ARMS,
        dim=ARMS,
        features="one_hot",
        theta="box",
        theta_norm=None,
        reference="skewed",
        reference_strength=SKEWS[coverage],
    )
    return Problem(world, BradleyTerry(), KL_COEF)


def bound(s: Snapshot, option: str) -> Tensor | None:
    """The right side of the theorem of this option, for the comparator pi*, (R,)."""
    if s.info.data_matrix is None or s.info.radius is None:
        return None
    assert s.optimum is not None
    evaluation = s.instance.evaluation
    nu = _mean_features(s, s.ref_log_probs)
    ridge = RIDGE * torch.eye(s.info.data_matrix.shape[-1], dtype=torch.float64, device=nu.device)
    inverse = torch.linalg.inv(ridge + s.info.data_matrix)
    if option == "policy":
        return 2 * s.info.radius * width((_mean_features(s, s.optimum) - nu)[:, None], inverse)[:, 0]
    return 2 * s.info.radius * s.expect(s.optimum, width(evaluation.features - nu[:, None, None], inverse))


def bound_violated(s: Snapshot, option: str) -> Tensor | None:
    """1 where the gap (Option II: and kl_coef KL(pi* || pi_hat) besides) exceeds the bound, else 0."""
    right = bound(s, option)
    if right is None:
        return None
    assert s.optimum is not None
    left = suboptimality(s)
    if option == "pointwise":
        left = left + s.kl_coef * s.over_contexts(kl(s.optimum, s.log_probs))
    return (left > right).to(torch.float64)


def _mean_features(s: Snapshot, log_probs: Tensor) -> Tensor:
    """E_x E_pi phi, (R, d)."""
    law = s.instance.evaluation.weights[..., None] * log_probs.exp()
    return torch.einsum("rxa,rxad->rd", law, s.instance.evaluation.features)


def cell(settings: Settings, labels: dict[str, Any], algorithm: Algorithm, seed: int, metrics: list[Any]) -> Simulation:
    return Simulation(
        labels=labels,
        problem=problem(labels["coverage"]),
        algorithm=algorithm,
        rounds=1,
        batch_size=labels["n"],
        replicates=settings.replicates,
        seed=seed,
        metrics=metrics,
    )


def tuning(settings: Settings) -> dict[str, list[Simulation]]:
    def candidates(algorithms: list[Algorithm]) -> list[Simulation]:
        where = {"coverage": "poor", "n": TUNING_SIZE}
        return [cell(settings, where, algorithm, settings.tuning_seed, ["suboptimality"]) for algorithm in algorithms]

    radii = (0.3, 1.0, 3.0, 10.0, 30.0)
    contenders = {
        name: candidates([create("gshf_offline", option=option, radius=radius, ridge=RIDGE) for radius in radii])
        for name, option in OPTIONS.items()
    }
    ridges = (0.01, 0.1, 1.0, 10.0, 100.0)
    return {**contenders, "tuned ridge": candidates([create("gshf_offline", radius=0.0, ridge=r) for r in ridges])}


def cells(settings: Settings, tuned: dict[str, Any]) -> Sequence[Simulation | Task]:
    sizes = (30, 100, 1000) if settings.smoke else (30, 100, 300, 1000, 3000, 10000)
    coverages = ("good", "poor") if settings.smoke else tuple(SKEWS)
    grid = []
    for coverage in coverages:
        for n in sizes:
            greedy = create("gshf_offline", radius=0.0, ridge=RIDGE)
            for rule, algorithm in {"greedy MLE": greedy, **tuned}.items():
                labels = {"rule": rule, "radius": "tuned", "coverage": coverage, "n": n}
                grid.append(cell(settings, labels, algorithm, settings.seed, ["suboptimality"]))
            for rule, option in OPTIONS.items():
                labels = {"rule": rule, "radius": "theory", "coverage": coverage, "n": n}
                metrics = [
                    "suboptimality",
                    ("bound", partial(bound, option=option)),
                    ("bound_violated", partial(bound_violated, option=option)),
                ]
                theory = create("gshf_offline", option=option, radius="theory", ridge=RIDGE)
                grid.append(cell(settings, labels, theory, settings.seed, metrics))
    return grid


THEOREM, NOTES = "Xiong et al. 2024, offline theorem", "own earlier runs"


def tuned_at(coverage: str, rule: str, n: int) -> dict[str, Any]:
    return {"rule": rule, "radius": "tuned", "coverage": coverage, "n": n}


claims = (
    *(
        Frequency(
            f"{rule}: the bound fails with probability <= delta, {coverage} coverage",
            THEOREM,
            "bound_violated",
            {"rule": rule, "radius": "theory", "coverage": coverage},
            probability=DELTA,
            x="n",
        )
        for rule in OPTIONS
        for coverage in SKEWS
    ),
    *(
        Exponent(
            f"{rule}, tuned: the gap falls at least like n^-1/2, good coverage",
            THEOREM,
            "suboptimality",
            {"rule": rule, "radius": "tuned", "coverage": "good"},
            exponent=-0.5,
            tolerance=0.0,
            sense="at most",
            x="n",
            window=(300, 10000),
        )
        for rule in OPTIONS
    ),
    *(
        Exponent(
            f"{rule}: the gap falls like n^-1, good coverage",
            NOTES,
            "suboptimality",
            {"rule": rule, "radius": "tuned", "coverage": "good"},
            exponent=-1.0,
            tolerance=0.2,
            x="n",
            window=(1000, 10000),
        )
        for rule in ("greedy MLE", "Option II")
    ),
    *(
        Ordering(
            f"{rule} beats greedy MLE where coverage is poor, n = {n}",
            "Xiong et al. 2024, section 4",
            "suboptimality",
            smaller=tuned_at("poor", rule, n),
            larger=tuned_at("poor", "greedy MLE", n),
        )
        for rule in OPTIONS
        for n in (100, 1000)
    ),
    *(
        Ordering(
            f"{rule} beats a tuned ridge where coverage is poor, n = 1000",
            "own question",
            "suboptimality",
            smaller=tuned_at("poor", rule, 1000),
            larger=tuned_at("poor", "tuned ridge", 1000),
        )
        for rule in OPTIONS
    ),
    *(
        Ordering(
            f"{rule} costs at most a quarter where coverage is good, n = {n}",
            NOTES,
            "suboptimality",
            smaller=tuned_at("good", rule, n),
            larger=tuned_at("good", "greedy MLE", n),
            factor=0.8,
        )
        for rule in OPTIONS
        for n in (1000, 10000)
    ),
)


def plot(frame: pd.DataFrame) -> Figure:
    coverages = [coverage for coverage in SKEWS if coverage in set(frame["coverage"])]
    figure, axes = plotting.panels(columns=len(coverages), rows=2, height=2.6)
    rules = ["greedy MLE", "tuned ridge", *OPTIONS]
    looks = plotting.lines(rules)
    names = {"tuned ridge": "greedy MLE, tuned ridge"} | {rule: f"pessimism, {rule}" for rule in OPTIONS}
    for (upper, lower), coverage in zip(axes.T, coverages, strict=True):
        one: dict[str, Any] = {"x": "n", "loglog": True, "looks": looks, "names": names, "legend": False}
        tuned = {"coverage": coverage, "radius": "tuned"}
        plotting.curves(upper, frame, "suboptimality", "rule", where=tuned, order=rules, **one)
        theory = {"coverage": coverage, "radius": "theory"}
        plotting.curves(lower, frame, "suboptimality", "rule", where=theory, order=list(OPTIONS), **one)
        for rule in OPTIONS:
            mean = pivot(select(frame, {**theory, "metric": "bound", "rule": rule}), "n").mean()
            lower.plot(
                mean.index.to_numpy(), mean.to_numpy(), color=looks[rule].color, linewidth=0.8, linestyle=":", marker=""
            )
        upper.set_title(f"{coverage} coverage")
        for ax, words in ((upper, "tuned"), (lower, "theory radius")):
            ax.set_xlabel("n (duels)")
            ax.set_ylabel(f"gap [reward], {words}\n(lower is better)" if ax in axes[:, 0] else "")
    axes[0, 0].plot([], [], color="0.4", linewidth=0.8, linestyle=":", label="the theorem's bound")
    plotting.legend_above(figure, axes[0, 0])
    return figure


study = Study(
    name="gshf_offline_coverage",
    title="Offline pessimism against greedy MLE, over data and coverage",
    source="Xiong et al. 2024 (2312.11456), section 4; own design, no published figure",
    cells=cells,
    claims=claims,
    plot=plot,
    tuning=tuning,
    replicates=128,
    smoke_replicates=16,
)
