"""Offline pessimism: KL-PCB against greedy least squares, and what tames over-optimisation of an estimated reward.

Sources: Zhao et al. 2025, "Towards a Sharp Analysis of Offline Policy Learning for f-Divergence-Regularized Contextual
Bandits" (2502.06051: KL-PCB needs O~(1 / eps) samples under single-policy coverage; set-up of its experiments unknown)
and Huang et al. 2024 (2407.13399, chi-PO: chi-squared regularisation against over-optimisation; its Figure 1 is a
hand-made bandit whose details are not published).

1. KL-PCB. One context, 20 arms, r uniform on [0, 1], rewards with noise .5, kl_coef = .2 (their eta = 5), n samples of
a reference that is uniform, or has .84 on one arm. Greedy: Gibbs policy of the ridge estimate. KL-PCB: the same minus
radius / sqrt(ridge + n_a). "fixed": ridge .1 and a radius of half a standard deviation; "tuned": four ridges for
greedy, four radii for KL-PCB, chosen at n = 300. A ridge pulls arms without data to 0, the least reward: greedy with a
ridge is a little pessimistic already.

2. Over-optimisation. One good arm (reference .5, reward .5) and 50 rare ones (.01 each, reward 0), rewards with noise
1, means clipped to [0, 1], arms without data imputed at .5. Unregularised regret of the KL tilt ref exp(r / beta) / Z,
of the chi-squared tilt (chi-PO's mixed divergence chi^2 + KL, weight beta), and of the largest lower confidence bound
(radius c), over 8 strengths each; in panel (d) each strength is tuned per n on other seeds.

Found (300 replicates): pessimism helps greedy as it was (ridge .1) under the skewed reference, but a greedy estimate
with a tuned ridge of 1 beats tuned KL-PCB: shrinking towards the least reward is pessimism too, and here the better
one. The lower confidence bound never errs once its radius is 2 or more, because the good arm is always seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from simbandit import Problem, algorithms, plotting
from simbandit.draws import Draws
from simbandit.guarantees import Exponent, Ordering
from simbandit.guarantees.rows import select
from simbandit.oracles import NoisyReward
from simbandit.policies import argmax, chi_squared_tilt, gibbs
from simbandit.study import TUNING_SEED, Settings, Simulation, Study, Task
from simbandit.worlds import LinearWorld, rare_arms

REFERENCES = {"uniform": "uniform", "skewed": (0.84, *[0.16 / 19] * 19)}
NOISE = 0.5
RULES: dict[str, Any] = {
    "greedy": [algorithms.create("kl_pcb", radius=0.0, ridge=ridge) for ridge in (0.1, 0.3, 1.0, 3.0)],
    "KL-PCB": [algorithms.create("kl_pcb", radius=c * NOISE, ridge=0.1) for c in (0.25, 0.5, 1.0, 2.0)],
}
FIXED = {"greedy": RULES["greedy"][0], "KL-PCB": RULES["KL-PCB"][1]}
BETAS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 2.0)
STRENGTHS = {"KL": BETAS, "chi-squared": BETAS, "LCB": (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)}
PCB, CHI, NOTE = "2502.06051", "2407.13399", "own note"

# ------------------------------------------------------------------------------------------------------- 1. KL-PCB


def pcb(algorithm: Any, samples: int, replicates: int, seed: int, **labels: Any) -> Simulation:
    reference = REFERENCES[labels["reference"]]
    world = LinearWorld(
        n_contexts=1, n_actions=20, dim=20, features="one_hot", theta="box", theta_norm=None, reference=reference
    )
    return Simulation(
        {"problem": "KL-PCB", "samples": samples, **labels},
        Problem(world, NoisyReward(NOISE), 0.2),
        algorithm,
        rounds=1,
        batch_size=samples,
        replicates=replicates,
        seed=seed,
        metrics=["suboptimality", "policy_reward_regret"],
    )


def contender(rule: str, reference: str) -> str:
    return f"{rule}, {reference} reference"


def tuning(settings: Settings) -> dict[str, list[Simulation]]:
    return {
        contender(rule, reference): [
            pcb(candidate, 300, settings.replicates, settings.tuning_seed, reference=reference)
            for candidate in candidates
        ]
        for rule, candidates in RULES.items()
        for reference in REFERENCES
    }


# --------------------------------------------------------------------------------------------- 2. over-optimisation


def regrets(method: str, strength: float, samples: int, replicates: int, seed: int, device: str) -> Tensor:
    """Unregularised regret .5 - E_pi[r] of each replicate's policy, (R,): exact given the estimated means."""
    draws = Draws(seed, replicates, device)
    world = rare_arms().instance(replicates, draws)
    rewards, ref = world.rewards(world.evaluation)[:, 0], world.evaluation.ref_log_probs[:, 0]
    arms = rewards.shape[-1]
    chosen = torch.searchsorted(ref.exp().cumsum(-1), draws.once("actions", samples, law="uniform"))
    count = torch.zeros_like(rewards).scatter_add(1, chosen.clamp_max(arms - 1), torch.ones_like(chosen).to(rewards))
    mean = (rewards + draws.once("means", arms) / count.clamp_min(1).sqrt()).clamp(0.0, 1.0)  # sufficient statistics
    estimate = torch.where(count > 0, mean, 0.5)
    if method == "LCB":
        policy = argmax(estimate - strength / count.clamp_min(1).sqrt(), ref)
    else:
        policy = (gibbs if method == "KL" else chi_squared_tilt)(estimate, ref, strength)
    return (policy.exp() * (rewards.amax(-1, keepdim=True) - rewards)).sum(-1)


def at_strength(method: str, strength: float, samples: int, replicates: int, seed: int, device: str) -> pd.DataFrame:
    return _rows(samples, policy_reward_regret=regrets(method, strength, samples, replicates, seed, device))


def at_tuned_strength(
    method: str, strengths: tuple[float, ...], samples: int, replicates: int, seed: int, device: str
) -> pd.DataFrame:
    """The strength with the least mean regret on as many other seeds, then its regret on these."""
    trials = [regrets(method, s, samples, replicates, seed + TUNING_SEED, device).mean() for s in strengths]
    best = strengths[int(torch.stack(trials).argmin())]
    regret = regrets(method, best, samples, replicates, seed, device)
    return _rows(samples, policy_reward_regret=regret, tuned_strength=torch.full_like(regret, best))


def _rows(samples: int, **metrics: Tensor) -> pd.DataFrame:
    frames = [
        pd.DataFrame(
            {
                "replicate": range(len(values)),
                "round": 1,
                "queries": float(samples),
                "metric": name,
                "value": values.cpu().numpy(),
            }
        )
        for name, values in metrics.items()
    ]
    return pd.concat(frames, ignore_index=True)


# ------------------------------------------------------------------------------------------------------------ study


def cells(settings: Settings, tuned: Mapping[str, Any]) -> list[Simulation | Task]:
    few, replicates, seed = settings.smoke, settings.replicates, settings.seed
    offline = [
        pcb(algorithm, samples, replicates, seed, rule=rule, reference=reference, recipe=recipe)
        for reference in REFERENCES
        for rule in RULES
        for recipe, algorithm in (("fixed", FIXED[rule]), ("tuned", tuned[contender(rule, reference)]))
        for samples in ((100, 300) if few else (100, 300, 1000, 3000, 10_000))
    ]
    by_strength = [
        Task(
            {"problem": "rare arms", "rule": method, "strength": strength, "samples": 1000, "recipe": "grid"},
            at_strength,
            {"method": method, "strength": strength, "samples": 1000},
            replicates,
            seed,
        )
        for method, strengths in STRENGTHS.items()
        for strength in (strengths[::3] if few else strengths)
    ]
    by_samples = [
        Task(
            {"problem": "rare arms", "rule": method, "samples": samples, "recipe": "tuned"},
            at_tuned_strength,
            {"method": method, "strengths": strengths, "samples": samples},
            replicates,
            seed,
        )
        for method, strengths in STRENGTHS.items()
        for samples in ((100, 1000) if few else (30, 100, 300, 1000, 3000, 10_000))
    ]
    return [*offline, *by_strength, *by_samples]


def _pcb(
    name: str, smaller: str, reference: str, samples: int, source: str, recipe: str = "fixed", factor: float = 1.0
) -> Ordering:
    larger = next(rule for rule in RULES if rule != smaller)
    return Ordering(
        f"{name}: {reference} reference, n = {samples:,}, {recipe}",
        source,
        "suboptimality",
        {"rule": smaller},
        {"rule": larger},
        where={"problem": "KL-PCB", "reference": reference, "samples": samples, "recipe": recipe},
        factor=factor,
    )


def _rare(name: str, source: str, smaller: str, larger: str, factor: float = 1.0, **where: Any) -> Ordering:
    return Ordering(
        name,
        source,
        "policy_reward_regret",
        {"rule": smaller},
        {"rule": larger},
        where={"problem": "rare arms", "samples": 1000, **where},
        factor=factor,
    )


CLAIMS = (
    *(
        Exponent(
            f"fast rate 1/n: {rule}, {reference} reference, {recipe}",
            f"{PCB}, upper bound; tolerance: {NOTE}",
            "suboptimality",
            {"problem": "KL-PCB", "rule": rule, "reference": reference, "recipe": recipe},
            -1.0,
            0.2,
            x="samples",
            window=(1000, 10_000),
        )
        for rule in RULES
        for reference in REFERENCES
        for recipe in ("fixed", "tuned")
    ),
    _pcb("pessimism helps", "KL-PCB", "skewed", 300, f"{PCB}; {NOTE}"),
    _pcb("pessimism helps", "KL-PCB", "skewed", 300, PCB, "tuned"),
    _pcb("... not under good coverage: greedy >= .9 KL-PCB", "KL-PCB", "uniform", 1000, NOTE, factor=0.9),
    _pcb("... not under good coverage: KL-PCB >= .9 greedy", "greedy", "uniform", 1000, NOTE, factor=0.9),
    _pcb("... nor with much data: greedy >= .9 KL-PCB", "KL-PCB", "skewed", 10_000, NOTE, factor=0.9),
    _pcb("... nor with much data: KL-PCB >= .9 greedy", "greedy", "skewed", 10_000, NOTE, factor=0.9),
    *(
        _rare(
            f"chi-squared tolerates a small beta: below KL at beta = {beta:g}, n = 1,000",
            f"{CHI}; {NOTE}",
            "chi-squared",
            "KL",
            recipe="grid",
            strength=beta,
        )
        for beta in (0.01, 0.03, 0.1)
    ),
    _rare("tuned chi-squared beats tuned KL, n = 1,000", f"{CHI}, Figure 1", "chi-squared", "KL", recipe="tuned"),
    *(
        _rare(f"tuned LCB: half the regret of tuned {other}, n = 1,000", NOTE, "LCB", other, 2.0, recipe="tuned")
        for other in ("KL", "chi-squared")
    ),
    Exponent(
        "tuned chi-squared regret falls like n^(-1/2) or faster",
        f"{CHI}, theorem",
        "policy_reward_regret",
        {"problem": "rare arms", "rule": "chi-squared", "recipe": "tuned"},
        -0.5,
        0.1,
        sense="at most",
        x="samples",
        window=(300, 3000),  # beyond, every arm is told apart and the regret vanishes exponentially
    ),
)


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=2, rows=2, height=2.3)
    for ax, reference, tag in zip(axes[0], REFERENCES, "ab", strict=True):
        where = {"problem": "KL-PCB", "reference": reference}
        offline = select(frame, where)
        offline = offline.assign(line=offline["rule"] + ", " + offline["recipe"])
        plotting.curves(ax, offline, "suboptimality", "line", x="samples", loglog=True, legend=False)
        ax.legend(loc="lower left")
        ax.set_title(f"({tag}) {reference} reference, kl_coef = .2")
        ax.set_xlabel("logged samples n")
        ax.set_ylabel(r"suboptimality $J(\pi^*)-J(\pi)$")
    rare = select(frame, {"problem": "rare arms"})
    looks = plotting.lines(list(STRENGTHS))
    grid = {"recipe": "grid"}
    plotting.curves(
        axes[1, 0],
        rare,
        "policy_reward_regret",
        "rule",
        x="strength",
        where=grid,
        order=["KL", "chi-squared"],
        looks=looks,
    )
    axes[1, 0].set_xscale("log")
    axes[1, 0].set_title("(c) over-optimisation, n = 1,000")
    axes[1, 0].set_xlabel("weight β of the divergence")
    plotting.curves(
        axes[1, 1],
        rare,
        "policy_reward_regret",
        "rule",
        x="samples",
        where={"recipe": "tuned"},
        looks=looks,
        names={"KL": "KL", "chi-squared": "chi-squared", "LCB": "lower confidence bound"},
    )
    axes[1, 1].legend(loc="center left")
    axes[1, 1].set_xscale("log")
    axes[1, 1].set_title("(d) ... each strength tuned per n")
    axes[1, 1].set_xlabel("logged samples n")
    for ax in axes[1]:
        ax.set_ylabel("reward regret (unregularised)")
    return figure


study = Study(
    name="kl_pcb",
    title="Offline pessimism under KL, and over-optimisation: KL, chi-squared, lower bound",
    source="2502.06051 (KL-PCB) and 2407.13399, Figure 1 (chi-PO's motivation)",
    cells=cells,
    claims=CLAIMS,
    plot=plot,
    tuning=tuning,
    replicates=300,
    smoke_replicates=16,
)
