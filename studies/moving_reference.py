"""A reference that moves with the policy divides the coefficient: after T rounds of eta, DPO is at eta / T.

Iterative DPO is run in two ways that share the name: around a fixed reference (2312.11456), or resetting it to the
policy every iteration (self-rewarding models, SELM 2405.19332, SE-POPO's code); TR-DPO (2404.09656) resets it every k
steps, or moves it a share w of the way in log-probabilities. No paper has this figure; the law below is derived. Where
the fit is exact, every fit multiplies its reference by exp(r / eta), so that after T rounds

    pi_T  is proportional to  pi_ref exp(r (1 + w m) / eta),  m = floor((T - 1) / k) moves,

the optimum at coefficient eta / (1 + w m): eta / T for a reference that moves every round. eta is no longer the weight
of the KL; the number of rounds is. With sampled duels of a fixed law (uniform pairs), T rounds of B duels at eta have,
to first order, the error of one fit to all T B duels at eta / T: the errors of the rounds add up as those of the mean
do. With pairs of the policy itself the two part ways: as pi_T sharpens, its pairs stop telling anything.

Grid. "exact": population fits on uniform pairs, 10 actions, r ~ U[0, 1], reference softmax(N(0, 1)), eta 1 and .3, 64
rounds; fixed, k = 1, k = 4, w = .6. "equal": 16 rounds of 512 duels, uniform pairs, against one reference and eta / 16.
"own": 64 rounds of 64 fresh duels (or all duels so far) at eta = .3, drawn by the policy, with and without moving.

Found. The law holds to 5e-9 nats in every variant; with uniform duels moving and the one fit at eta / 16 end at the
same distance. On duels of the policy a moving reference gains reward for 1,000 duels and then stands still, .045 below
the best action, with or without the old duels: an eighth of its 4,096 duels are of two different actions, a little
more than we expected. Our expectation that its best guess would be worse than a fixed reference's fails, as it was ill
put: the optimum at eta = .3 itself leans to the reference and often ranks another action first.

What differs: nothing published to compare with; TR-DPO interpolates weights of a network, here log-probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from simbandit import algorithms, plotting
from simbandit.algorithms.direct import Moving
from simbandit.guarantees import Exponent, Identity, Monotone, Number, Ordering
from simbandit.metrics import Snapshot, kl
from simbandit.objective import centred
from simbandit.oracles import BradleyTerry, FullInformation
from simbandit.simulate import Problem
from simbandit.study import Settings, Simulation, Study
from simbandit.worlds import LinearWorld

WORLD = LinearWorld(
    n_contexts=1, n_actions=10, dim=10, features="one_hot", theta="box", theta_norm=None, reference="softmax"
)
ETAS, ROUNDS, EQUAL_ROUNDS, OWN_ETA = (1.0, 0.3), 64, 16, 0.3
REFERENCES: dict[str, Any] = {
    "fixed": "fixed",
    "every round": Moving(),
    "every 4 rounds": Moving(every=4),
    "share .6": Moving(weight=0.6),
}
UNIFORM = ("uniform", "uniform")


def share_of(moving: Any, rounds: int) -> float:
    """1 + w m: by what eta is divided after so many rounds, 0 before the first."""
    if rounds == 0 or moving == "fixed":
        return float(rounds > 0)
    return 1 + moving.weight * ((rounds - 1) // moving.every)


def distance_to_law(s: Snapshot, moving: Any) -> Tensor:
    """KL(pi_T || pi_ref exp(r (1 + w m) / eta)), T the rounds of exact answers so far."""
    share = share_of(moving, s.oracle_evaluations)
    target = s.instance.optimal_log_probs(s.kl_coef / share) if share else s.ref_log_probs
    return s.over_contexts(kl(s.log_probs, target))


def effective_coefficient(s: Snapshot) -> Tensor | None:
    """1 / the slope of log pi / pi_ref on r, over actions; None for the reference itself."""
    ratio, r = (centred(x, ~s.ref_log_probs.isneginf()) for x in (s.log_probs - s.ref_log_probs, s.rewards))
    slope = (ratio * r).sum((-1, -2)) / r.square().sum((-1, -2))
    return None if bool((slope.abs() < 1e-12).all()) else 1 / slope


def distance_at(s: Snapshot, kl_coef: float) -> Tensor:
    """KL(pi || pi*) of another coefficient."""
    return s.over_contexts(kl(s.log_probs, s.instance.optimal_log_probs(kl_coef)))


def cells(settings: Settings, tuned: Mapping[str, Any]) -> list[Simulation]:
    del tuned  # fits are exact
    grid = []
    common = {"replicates": settings.replicates, "seed": settings.seed, "policy": "tabular"}
    for eta in ETAS[1:] if settings.smoke else ETAS:
        for name, moving in REFERENCES.items():
            algorithm = algorithms.create("iterative_dpo", reference=moving, players=UNIFORM)
            metrics = [
                ("distance to the law", partial(distance_to_law, moving=moving)),
                ("effective coefficient", effective_coefficient),
                "policy_reward_regret",
                "kl_to_ref",
                "fit_residual",
            ]
            problem = Problem(WORLD, FullInformation(BradleyTerry()), eta)
            labels = {"part": "exact", "reference": name, "eta": eta}
            grid.append(Simulation(labels, problem, algorithm, ROUNDS, metrics=metrics, **common))
    target = ETAS[0] / EQUAL_ROUNDS
    duels = 128 if settings.smoke else 512
    for name, eta, data, moving in (
        ("every round", ETAS[0], "fresh", Moving()),
        ("fixed, eta / 16", target, "all", "fixed"),
    ):
        algorithm = algorithms.create("online_dpo", data=data, reference=moving, players=UNIFORM, value_range=4.0)
        metrics = [("distance at eta / 16", partial(distance_at, kl_coef=target)), "kl_to_ref"]
        labels = {"part": "equal", "reference": name, "eta": eta}
        problem = Problem(WORLD, BradleyTerry(), eta)
        grid.append(Simulation(labels, problem, algorithm, EQUAL_ROUNDS, batch_size=duels, metrics=metrics, **common))
    for name in ("fixed", "every round"):
        for data in ("fresh", "all"):
            algorithm = algorithms.create("online_dpo", data=data, reference=REFERENCES[name])
            metrics = ["suboptimality", "policy_reward_regret", "argmax_regret", "kl_to_ref", "informative_pairs"]
            labels = {"part": "own", "reference": name, "data": data, "eta": OWN_ETA}
            problem = Problem(WORLD, BradleyTerry(), OWN_ETA)
            rounds = 16 if settings.smoke else ROUNDS
            grid.append(Simulation(labels, problem, algorithm, rounds, batch_size=64, metrics=metrics, **common))
    return grid


DERIVED, OWN = "derived", "own expectation"
MOVED = tuple(REFERENCES)[1:]
FIXED_ALL, MOVING_FRESH = {"reference": "fixed", "data": "all"}, {"reference": "every round", "data": "fresh"}

claims = (
    *(
        Identity(
            f"reference {name}, eta {eta}: the optimum at eta / (1 + w m), every round",
            DERIVED,
            "distance to the law",
            {"part": "exact", "reference": name, "eta": eta},
            1e-6,
        )
        for name in REFERENCES
        for eta in ETAS
    ),
    *(
        Exponent(
            f"reference {name}: the effective coefficient falls like 1 / T",
            DERIVED,
            "effective coefficient",
            {"part": "exact", "reference": name, "eta": 1.0},
            -1.0,
            tolerance,
            x="round",
            window=window,
        )
        for name, tolerance, window in (
            ("every round", 1e-3, (1, 64)),
            ("every 4 rounds", 0.15, (16, 64)),
            ("share .6", 0.1, (16, 64)),
        )
    ),
    *(
        Monotone(
            f"exact, reference {name}: the KL to the first reference only grows",
            DERIVED,
            "kl_to_ref",
            {"part": "exact", "reference": name, "eta": 1.0},
            "round",
            "increasing",
            tolerance=1e-6,
        )
        for name in MOVED
    ),
    Ordering(
        "uniform duels: moving is at most 1.3 times as far from the optimum at eta / 16 as one fit there",
        DERIVED,
        "distance at eta / 16",
        {"reference": "every round"},
        {"reference": "fixed, eta / 16"},
        {"part": "equal"},
        factor=1 / 1.3,
    ),
    Ordering(
        "and at least 1 / 1.3 times",
        DERIVED,
        "distance at eta / 16",
        {"reference": "fixed, eta / 16"},
        {"reference": "every round"},
        {"part": "equal"},
        factor=1 / 1.3,
    ),
    Ordering(
        "duels of the policy: a moving reference ends farther from the optimum at eta than a fixed one",
        DERIVED,
        "suboptimality",
        FIXED_ALL,
        MOVING_FRESH,
        {"part": "own"},
    ),
    Ordering(
        "and higher in reward, which is why it is used",
        OWN,
        "policy_reward_regret",
        MOVING_FRESH,
        FIXED_ALL,
        {"part": "own"},
    ),
    Ordering(
        "but its best guess stays worse: it stops learning",
        OWN,
        "argmax_regret",
        FIXED_ALL,
        MOVING_FRESH,
        {"part": "own"},
    ),
    Number(
        "at most a tenth of its duels are informative",
        OWN,
        "informative_pairs",
        {"part": "own", **MOVING_FRESH},
        0.1 * 64 * ROUNDS,
        0.0,
        "at most",
    ),
)


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=2, rows=2, height=2.3)
    (coefficient, equal), (gap, reward) = axes
    eta = float(frame.loc[frame["part"] == "exact", "eta"].max())
    where = {"part": "exact", "eta": eta}
    plotting.curves(
        coefficient,
        frame,
        "effective coefficient",
        "reference",
        x="round",
        loglog=True,
        where=where,
        order=list(REFERENCES),
    )
    coefficient.set_ylabel("effective coefficient [reward]")
    coefficient.set_title(f"(a) exact fits, eta = {eta:g}")
    order = ["every round", "fixed, eta / 16"]
    how = {"where": {"part": "equal"}, "order": order}
    plotting.curves(equal, frame, "distance at eta / 16", "reference", **how)
    equal.set_yscale("log")
    equal.set_ylabel("KL to the optimum at eta / 16 [nats]\n(lower is better)")
    equal.set_title("(b) uniform duels")
    own = frame[frame["part"] == "own"]
    own = own.assign(name=own["reference"] + ", " + own["data"] + " duels")
    for ax, metric, title in ((gap, "suboptimality", "(c)"), (reward, "policy_reward_regret", "(d)")):
        plotting.curves(ax, own, metric, "name", loglog=True)
        ax.set_title(f"{title} duels of the policy, eta = {OWN_ETA}")
    reward.set_ylabel("regret of the policy [reward]\n(lower is better)")
    return figure


study = Study(
    name="moving_reference",
    title="A moving reference divides the coefficient by the number of rounds",
    source="derived; practice of iterative DPO, SELM (2405.19332) and TR-DPO (2404.09656)",
    cells=cells,
    claims=claims,
    plot=plot,
    replicates=64,
    smoke_replicates=8,
)
