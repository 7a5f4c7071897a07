"""KL-regularised preference learning on one linear world: GSHF online, its enhancer ablated, offline and hybrid,
against uniform play, greedy sampling and online DPO.

No figure of the paper is reproduced here: GSHF (2312.11456) has no simulation. The grid is one world of 24 contexts x
12 actions, features on the sphere of R^6, |theta*| = 4, a reference that leans against the reward (anti-aligned,
strength .5), kl_coef .3 and 16 duels a round; every method gets four candidates of its main hyper-parameter, chosen on
other seeds. Panels: suboptimality of the policy and cumulative reward regret of what was played, over queries; the
enhancer ablated; and RLHF's reward-KL frontier, the policies after 256 duels as kl_coef varies. Offline methods are
points: n logged duels of the reference, one update. Hybrid starts from 240 logged duels, which its x-axis does not
count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from simbandit import plotting
from simbandit.algorithms import create
from simbandit.data import Logged
from simbandit.draws import Draws
from simbandit.guarantees.claims import Exponent, Number, Ordering
from simbandit.metrics import kl
from simbandit.oracles import BradleyTerry
from simbandit.policies import Reference
from simbandit.simulate import Problem
from simbandit.study import Settings, Simulation, Study, Task
from simbandit.worlds import LinearWorld

BATCH, ROUNDS, LOGGED = 16, 64, 240
SIZES = (64, 256, 1024)
WORLD = LinearWorld(
    n_contexts=24, n_actions=12, dim=6, theta_norm=4.0, reference="anti_aligned", reference_strength=0.5
)
PROBLEM = Problem(WORLD, BradleyTerry(), kl_coef=0.3)
KL_COEFS = (0.15, 0.3, 0.6, 1.2, 2.4)
FRONTIER = 256  # duels
METRICS = (
    "suboptimality",
    "cumulative_suboptimality",
    "cumulative_reward_regret",
    "kl_to_ref",
    "expected_reward",
    "win_rate_vs_ref",
)
RADII = (0.3, 1.0, 3.0, 10.0)
RIDGES = (0.01, 0.1, 1.0, 3.0)

CANDIDATES: dict[str, list[Any]] = {
    "GSHF online": [create("gshf_online", radius=r) for r in RADII],
    "GSHF hybrid": [create("gshf_hybrid", ridge=r) for r in RIDGES],
    "GSHF offline": [create("gshf_offline", radius=r) for r in (0.0, 0.1, 0.3, 1.0)],
    "greedy": [create("greedy", ridge=r) for r in RIDGES],
    "online DPO": [create("online_dpo", value_range=v) for v in (2.0, 4.0, 8.0, 16.0)],
}
ABLATION = {
    "kl_ball": "KL ball (the paper)",
    "pointwise": "pointwise",
    "best_worst_of_n": "best/worst of 8",
    "self": "self-play",
    "reference": "reference",
}
METHODS = ("GSHF online", "GSHF hybrid", "GSHF offline", "greedy", "online DPO", "uniform")


def _cell(
    settings: Settings, labels: Mapping[str, Any], algorithm: Any, n: int | None = None, **more: Any
) -> Simulation:
    rounds = ROUNDS if n is None else n // BATCH
    return Simulation(
        labels={"panel": "main", "size": n, "kl_coef": PROBLEM.kl_coef, **labels},
        problem=replace(PROBLEM, kl_coef=labels.get("kl_coef", PROBLEM.kl_coef)),
        algorithm=algorithm,
        rounds=rounds,
        batch_size=BATCH,
        metrics=METRICS,
        **{"replicates": settings.replicates, "seed": settings.seed, **more},
    )


def _offline(method: str) -> dict[str, Any]:
    return {"offline": Logged(Reference(), LOGGED)} if method == "GSHF hybrid" else {}


def cells(settings: Settings, tuned: dict[str, Any]) -> list[Simulation | Task]:
    found: list[Simulation | Task] = []
    for method in METHODS:
        algorithm = tuned.get(method, create("uniform"))
        if method == "GSHF offline":
            sizes = SIZES[::2] if settings.smoke else SIZES
            found += [_cell(settings, {"method": method}, algorithm, n) for n in sizes]
        else:
            found.append(_cell(settings, {"method": method}, algorithm, **_offline(method)))
    radius = tuned["GSHF online"].radius
    found += [
        _cell(settings, {"method": name, "panel": "enhancer"}, create("gshf_online", enhancer=enhancer, radius=radius))
        for enhancer, name in ABLATION.items()
    ]
    for kl_coef in KL_COEFS:
        labels = {"panel": "frontier", "kl_coef": kl_coef}
        found += [
            _cell(settings, {**labels, "method": method}, tuned[method], FRONTIER)
            for method in ("GSHF online", "GSHF offline", "online DPO")
        ]
        arguments = {"problem": replace(PROBLEM, kl_coef=kl_coef)}
        labels = {**labels, "method": "optimum", "size": FRONTIER}
        found.append(Task(labels, optimum, arguments, settings.replicates, settings.seed))
    return found


def optimum(replicates: int, seed: int, device: str, problem: Problem) -> pd.DataFrame:
    """Expected reward and KL to the reference of pi*, exactly."""
    instance = problem.world.instance(replicates, Draws(seed, replicates, device))
    best, ref, law = instance.optimal_log_probs(problem.kl_coef), instance.pool.ref_log_probs, instance.pool.weights
    values = {
        "kl_to_ref": (kl(best, ref) * law).sum(-1),
        "expected_reward": ((best.exp() * instance.rewards(instance.pool)).sum(-1) * law).sum(-1),
    }
    rows = {"replicate": range(replicates), "round": 0, "queries": 0.0}
    return pd.concat([pd.DataFrame({**rows, "metric": m, "value": v.cpu().numpy()}) for m, v in values.items()])


def tuning(settings: Settings) -> dict[str, Sequence[Simulation]]:
    replicates = max(2, settings.replicates // 4)
    return {
        method: [
            _cell(
                settings,
                {"method": method, "panel": "tuning", "candidate": i},
                algorithm,
                1024 if method == "GSHF offline" else None,
                replicates=replicates,
                seed=settings.tuning_seed,
                **_offline(method),
            )
            for i, algorithm in enumerate(algorithms)
        ]
        for method, algorithms in CANDIDATES.items()
    }


MAIN = {"panel": "main"}
ONLINE = {**MAIN, "method": "GSHF online"}
GSHF_SOURCE = "2312.11456, Theorem 2 (online)"
OWN = "own expectation, no published simulation"
CLAIMS = (
    Exponent(
        "gap of GSHF online falls at least like n^-1/2",
        GSHF_SOURCE,
        "suboptimality",
        ONLINE,
        -0.5,
        0.0,
        "at most",
        window=(128, 1024),
    ),
    Ordering(
        "online beats offline at 1,024 duels",
        "2312.11456, sections 4-5",
        "suboptimality",
        {"method": "GSHF online"},
        {"method": "GSHF offline", "size": 1024},
        MAIN,
    ),
    Ordering(
        "hybrid starts ahead of online (64 duels)",
        "2312.11456, section 5",
        "suboptimality",
        {"method": "GSHF hybrid"},
        {"method": "GSHF online"},
        MAIN,
        at=4,
    ),
    Ordering(
        "online plays better than uniform",
        OWN,
        "cumulative_reward_regret",
        {"method": "GSHF online"},
        {"method": "uniform"},
        MAIN,
        factor=2.0,
    ),
    Ordering(
        "the enhancer learns more than self-play",
        "2312.11456, section 5",
        "suboptimality",
        {"method": ABLATION["kl_ball"]},
        {"method": ABLATION["self"]},
        {"panel": "enhancer"},
    ),
    Ordering(
        "self-play pays less regret than the enhancer",
        OWN,
        "cumulative_reward_regret",
        {"method": ABLATION["self"]},
        {"method": ABLATION["kl_ball"]},
        {"panel": "enhancer"},
    ),
    Number("GSHF online ends within .05 of the optimum", OWN, "suboptimality", ONLINE, 0.05, 0.0, "at most"),
)


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(2, 2)
    (gap, regret), (ablation, frontier) = axes
    online = [method for method in METHODS if method != "GSHF offline"]
    looks = plotting.lines([*METHODS, "optimum"])
    main = {"looks": looks, "legend": False}
    offline = {"where": MAIN, "order": ["GSHF offline"], "x": "size"}  # one cell per number of logged duels
    plotting.curves(gap, frame, "suboptimality", "method", loglog=True, **offline, **main)
    plotting.curves(gap, frame, "suboptimality", "method", loglog=True, where=MAIN, order=online, **main)
    plotting.curves(regret, frame, "cumulative_reward_regret", "method", where=MAIN, order=online, **main)
    enhancers = {"where": {"panel": "enhancer"}, "order": list(ABLATION.values())}
    plotting.curves(ablation, frame, "suboptimality", "method", loglog=True, **enhancers)
    order = ["optimum", "GSHF online", "GSHF offline", "online DPO"]
    varied = {"where": {"panel": "frontier"}, "order": order, "looks": looks}
    plotting.frontier(frontier, frame, "method", y="expected_reward", along="kl_coef", **varied)
    plotting.legend_above(figure, gap, columns=3)
    return figure


study = Study(
    name="quickstart",
    title="GSHF online, offline and hybrid against uniform, greedy and online DPO",
    source="Xiong et al. 2024 (2312.11456); own set-up, nothing published to match",
    cells=cells,
    claims=CLAIMS,
    plot=plot,
    tuning=tuning,
    replicates=64,
    smoke_replicates=8,
)
