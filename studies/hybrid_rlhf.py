"""Hybrid preference learning: logged duels of a bad policy, then optimism online.

HPO (2412.10616, abstract and summaries; the paper's experiment is a linear contextual bandit whose sizes could not be
found) promises O(sqrt(d_hyb d / T)), d_hyb what the logged data leave uncovered, better than pure online and pure
offline learning, also where the offline policy does not cover the optimum.

Set-up. d = 10 in five blocks of two coordinates, 12 contexts, 20 arms, four to a block (unit features in it, fixed),
theta* on the sphere of radius 4, a uniform reference, kl_coef .3. The logging policy plays uniformly the arms of the
first `covered` blocks and never the others: "bad" is 2 of 5. Online: 24 rounds of 16 duels of XPO (pi_t against the
reference, 30 AdamW steps of .05 a round from the last policy: the argmin of a nonconvex objective in ten dimensions
takes twenty starts). Hybrid is the same row after n_off logged duels, all duels counting alike. Offline is VPO
with pessimism on as many duels as hybrid has in all. Each has four candidates of alpha, tuned on other seeds at
n_off = 512, bad. Panels: suboptimality over online duels; cumulative suboptimality over n_off; and over `covered`.

Found: hybrid ends closer than online and than offline on as many duels at every n_off, and pays the less the more the
log covers; offline stays at .63 whatever n. But more bad duels are not always better: with 2,048 hybrid pays no less
than online and more than with 512 (fails), because all duels count alike and 30 steps a round follow mostly the log; a
share for the log (`hybrid=`) or the argmin would be the cure.

What differs from HPO: its estimator and its bonus are not known to us in detail; XPO's stands in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from torch import Tensor

from simbandit import plotting
from simbandit.algorithms import create
from simbandit.data import Logged
from simbandit.guarantees import Exponent, Monotone, Number, Ordering
from simbandit.guarantees.rows import pivot, select
from simbandit.objective import Descent
from simbandit.oracles import BradleyTerry
from simbandit.policies import Rows, normalise
from simbandit.simulate import Problem
from simbandit.study import Settings, Simulation, Study
from simbandit.types import Contexts
from simbandit.worlds import LinearWorld

CONTEXTS, BLOCKS, ARMS, BATCH, ROUNDS = 12, 5, 4, 16, 24
BAD, SIZES = 2, (32, 128, 512, 2048)
DESCENT = Descent(30, 0.05)
ALPHAS = {"online": (1e-4, 1e-3, 1e-2, 1e-1), "hybrid": (1e-4, 1e-3, 1e-2, 1e-1), "offline": (0.01, 0.1, 1.0, 10.0)}


@dataclass(frozen=True, eq=False)
class FirstBlocks(Rows):
    """Uniform over the arms of the first blocks."""

    covered: int

    def rows(self, contexts: Contexts) -> Tensor:
        ref = contexts.ref_log_probs
        played = torch.arange(ref.shape[-1], device=ref.device) < ARMS * self.covered
        return normalise(torch.where(played, 0.0, -torch.inf).to(ref.dtype).expand(ref.shape))


def world() -> LinearWorld:
    rng = np.random.default_rng(0)
    features = np.zeros((CONTEXTS, BLOCKS * ARMS, 2 * BLOCKS))
    angle = rng.uniform(0, 2 * np.pi, size=features.shape[:2])
    for arm in range(BLOCKS * ARMS):
        block = arm // ARMS
        features[:, arm, 2 * block] = np.cos(angle[:, arm])
        features[:, arm, 2 * block + 1] = np.sin(angle[:, arm])
    return LinearWorld(features=features, theta="sphere", theta_norm=4.0)


PROBLEM = Problem(world(), BradleyTerry(), 0.3)


def row(method: str, alpha: float) -> Any:
    return create("vpo_offline", alpha=alpha) if method == "offline" else create("xpo", alpha=alpha, descent=DESCENT)


def cell(settings: Settings, labels: dict[str, Any], algorithm: Any, seed: int, replicates: int) -> Simulation:
    """An offline learner gets as many duels as a hybrid one has in all."""
    offline = labels["method"] == "offline"
    size = labels["n_off"] + (BATCH * ROUNDS if offline else 0)
    return Simulation(
        labels=labels,
        problem=PROBLEM,
        algorithm=algorithm,
        rounds=1 if offline else ROUNDS,
        batch_size=BATCH,
        replicates=replicates,
        seed=seed,
        offline=Logged(FirstBlocks(labels["covered"]), size) if size else None,
        metrics=["suboptimality"] if offline else ["suboptimality", "cumulative_suboptimality"],
        record="all",
    )


def tuning(settings: Settings) -> dict[str, Sequence[Simulation]]:
    few = max(2, settings.replicates // 4)
    at = {"online": 0, "hybrid": 512, "offline": 512}
    return {
        method: [
            cell(
                settings,
                {"method": method, "covered": BAD, "n_off": at[method]},
                row(method, alpha),
                settings.tuning_seed,
                few,
            )
            for alpha in alphas
        ]
        for method, alphas in ALPHAS.items()
    }


def cells(settings: Settings, tuned: dict[str, Any]) -> Sequence[Simulation]:
    sizes = SIZES[1:3] if settings.smoke else SIZES
    places = [("online", BAD, 0)]
    places += [(method, BAD, n) for method in ("hybrid", "offline") for n in sizes]
    places += [("hybrid", covered, 512) for covered in ((5,) if settings.smoke else (1, 3, 4, 5))]
    places += [("offline", 5, 512)]
    return [
        cell(
            settings,
            {"method": method, "covered": covered, "n_off": n},
            tuned[method],
            settings.seed,
            settings.replicates,
        )
        for method, covered, n in places
    ]


PAPER = "2412.10616, abstract"


def at(method: str, n_off: int, covered: int = BAD) -> dict[str, Any]:
    return {"method": method, "n_off": n_off, "covered": covered}


GAP, TOTAL = "suboptimality", "cumulative_suboptimality"
claims = (
    *(
        Ordering(f"n_off = {n}: hybrid ends closer than online", PAPER, GAP, at("hybrid", n), at("online", 0))
        for n in (128, 512, 2048)
    ),
    *(
        Ordering(f"n_off = {n}: hybrid pays less than online", PAPER, TOTAL, at("hybrid", n), at("online", 0))
        for n in (128, 512, 2048)
    ),
    *(
        Ordering(f"n_off = {n}: hybrid beats offline on as many duels", PAPER, GAP, at("hybrid", n), at("offline", n))
        for n in (128, 512, 2048)
    ),
    Number(
        "offline does not recover from a policy without coverage (gap > .1 at 2,432 duels)",
        f"{PAPER} (concentrability; constant ours)",
        GAP,
        at("offline", 2048),
        0.1,
        0.0,
        "at least",
    ),
    Number(
        "offline is fine with coverage (gap < .1 at 896 duels)", PAPER, GAP, at("offline", 512, 5), 0.1, 0.0, "at most"
    ),
    Monotone(
        "the more logged duels, the less hybrid pays",
        PAPER,
        TOTAL,
        {"method": "hybrid", "covered": BAD},
        "n_off",
        "decreasing",
    ),
    Monotone(
        "the more blocks are covered, the less hybrid pays (d_hyb)",
        "2412.10616, rate sqrt(d_hyb d / T)",
        TOTAL,
        {"method": "hybrid", "n_off": 512},
        "covered",
        "decreasing",
    ),
    Exponent(
        "hybrid's gap falls at least like T^-1/2",
        "2412.10616, rate sqrt(d_hyb d / T)",
        GAP,
        at("hybrid", 512),
        -0.5,
        0.0,
        "at most",
        window=(64, 384),
    ),
)


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=3, height=2.7)
    left, middle, right = axes[0]
    looks = plotting.lines(["online", "hybrid", "offline"])
    shown = {"looks": looks, "loglog": True, "legend": False}
    for method, n in (("online", 0), ("hybrid", 512)):
        plotting.curves(left, frame, GAP, "method", where=at(method, n), **shown)
    left.set_xlabel("duels online")
    left.set_title("(a) after 512 bad duels")
    bad = {"covered": BAD}
    plotting.curves(middle, frame, GAP, "method", x="n_off", where=bad, order=["hybrid", "offline"], **shown)
    middle.set_xlabel(f"logged duels (offline: + {BATCH * ROUNDS})")
    middle.set_ylabel("")
    middle.set_title("(b) the last gap")
    for ax, method, n in ((middle, "online", 0), (left, "offline", 512)):
        last = pivot(select(frame, {**at(method, n), "metric": GAP}), "round").iloc[:, -1]
        look = looks[method]
        ax.axhline(last.to_numpy().mean(), color=look.color, linestyle=look.dash, linewidth=0.9, label=method)
    plotting.curves(
        right,
        frame,
        TOTAL,
        "method",
        x="covered",
        where={"n_off": 512, "method": "hybrid"},
        looks=looks,
        legend=False,
    )
    right.set_xlabel("blocks that the log covers")
    right.set_title("(c) hybrid, 512 logged duels")
    for ax in (left, middle):
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.yaxis.set_minor_formatter(NullFormatter())
    left.set_xticks([20, 50, 100, 300], ["20", "50", "100", "300"])
    middle.set_yticks([0.03, 0.1, 0.3, 1.0], ["0.03", "0.1", "0.3", "1"])
    right.set_ylabel("cumulative suboptimality\n(lower is better)")
    left.set_ylabel("suboptimality [reward]\n(lower is better)")
    plotting.legend_above(figure, left, columns=3)
    return figure


study = Study(
    name="hybrid_rlhf",
    title="Hybrid preference learning from a bad policy's duels and optimism online",
    source="2412.10616 (HPO), abstract; own set-up",
    cells=cells,
    claims=claims,
    plot=plot,
    tuning=tuning,
    replicates=50,
    smoke_replicates=8,
)
