"""Preference collapse: as kl_coef falls, RLHF forgets minorities; preference matching keeps the annotators' shares.

Xiao et al. 2024 (2405.16455): RLHF with a KL penalty does not return the annotators' preferences. Its odds are those
of the reference times exp(gap / kl_coef), which collapse onto the favourite as kl_coef falls and follow the reference
as it grows. The regulariser -log pi (PM-RLHF) has the optimum softmax(r), whose odds are the annotators' own, whatever
the reference. Their LM experiments (a divergence 29 % to 41 % lower) cannot be had here. No figure of theirs is
repeated; the numbers of the two responses are closed forms, checked in earlier runs. Negative control: equilibria of
the KL-regularised game, which by a theorem of a later paper (known to us second-hand) cannot match either.

Grid. "two": responses with P = .7, references (.5, .5) and (.05, .95), kl_coef from 2 to .02; population DPO, the
game's equilibrium, and softmax(r). "five": the same on 5 responses, r ~ N(0, 1), references uniform and
softmax(N(0, 1)), in 64 draws. "learnt": `pm_rlhf` and `online_dpo` (kl_coef 1, .1) on up to 4,096 duels, of the policy
itself or uniform, the five responses with the softmax reference. `matching divergence`: KL(softmax(r) || pi);
`minority mass`: what is left to all but the favourite.

Found. All statements on optima hold. RLHF matches at one point only, uniform reference and kl_coef 1; elsewhere the
divergence grows slightly faster than 1 / kl_coef between .1 and .02. Equilibria collapse later, as win rates are
bounded where rewards are not: at .02 they keep 6 to 8 % for minorities. Learning is another matter: from 4,096 uniform
duels PM-RLHF is at 9e-4 nats (falling like 1 / n), but on duels of its own it stays above 2, no better than DPO: a
response that lost its first duel is at the bound (the reward range of a normal law is wide) and not asked about again.
Matching needs pairs that the policy would not play.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from simbandit import algorithms, plotting
from simbandit.guarantees import Exponent, Identity, Monotone, Number, Ordering
from simbandit.metrics import METRICS, Snapshot
from simbandit.oracles import BradleyTerry, FullInformation
from simbandit.policies import Tabular, gibbs, uniform
from simbandit.simulate import Problem
from simbandit.study import Settings, Simulation, Study
from simbandit.worlds import LinearWorld, TableWorld

KL_COEFS = (2.0, 1.0, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02)
METHODS = ("RLHF", "equilibrium", "matching")
REWARDS = (float(np.log(0.7 / 0.3)), 0.0)
WORLDS: dict[tuple[str, str], Any] = {
    ("two", "uniform"): TableWorld(np.log([[0.5, 0.5]]), [REWARDS]),
    ("two", "against"): TableWorld(np.log([[0.05, 0.95]]), [REWARDS]),
}
for law in ("uniform", "softmax"):
    WORLDS["five", law] = LinearWorld(
        n_contexts=1, n_actions=5, dim=5, features="one_hot", theta="gaussian", theta_norm=None, reference=law
    )
DUELS, BATCH = 4096, 16
LEARNT = (
    ("pm_rlhf", 1.0, "current"),
    ("online_dpo", 1.0, "current"),
    ("online_dpo", 0.1, "current"),
    ("pm_rlhf", 1.0, "uniform"),
    ("online_dpo", 0.1, "uniform"),
)


def judged(s: Snapshot, method: str, metric: str) -> Tensor | None:
    """A registered metric, or the favourite's probability, of the policy, of the equilibrium or of softmax(r)."""
    if method == "equilibrium":
        assert s.game is not None
        s = replace(s, policy=Tabular(s.game.nash))
    elif method == "matching":
        s = replace(s, policy=Tabular(gibbs(s.rewards, uniform(s.ref_log_probs), 1.0)))
    return s.log_probs[:, 0, 0].exp() if metric == "first" else METRICS[metric].function(s)


def cells(settings: Settings, tuned: Mapping[str, Any]) -> list[Simulation]:
    del tuned  # exact, or the argmin on all duels
    grid = []
    common = {"seed": settings.seed, "policy": "tabular"}
    for (part, law), world in WORLDS.items():
        for kl_coef in KL_COEFS[1::4] if settings.smoke else KL_COEFS:
            for method in METHODS:
                grid.append(
                    Simulation(
                        {"part": part, "reference": law, "kl_coef": kl_coef, "method": method},
                        Problem(world, FullInformation(BradleyTerry()), kl_coef),
                        algorithms.create("online_dpo", players=("uniform", "uniform")),
                        rounds=1,
                        batch_size=1000,
                        replicates=1 if part == "two" else settings.replicates,
                        metrics=[(m, partial(judged, method=method, metric=m)) for m in SHOWN],
                        **common,
                    )
                )
    for method, kl_coef, player in LEARNT:
        grid.append(
            Simulation(
                {"part": "learnt", "reference": "softmax", "kl_coef": kl_coef, "method": method, "pairs": player},
                Problem(WORLDS["five", "softmax"], BradleyTerry(), kl_coef),
                algorithms.create(method, players=(player, player)),
                rounds=(DUELS // 8 if settings.smoke else DUELS) // BATCH,
                batch_size=BATCH,
                replicates=settings.replicates,
                metrics=SHOWN[:2],
                **common,
            )
        )
    return grid


SHOWN = ("matching_divergence", "minority_mass", "first")
PAPER, NOTES, DERIVED = "2405.16455", "own earlier runs", "derived"
STATED = {  # two responses: the favourite's probability under RLHF
    "against": {1.0: 0.109, 0.5: 0.223, 0.1: 0.996},
    "uniform": {1.0: 0.7, 0.5: 0.845, 0.1: 0.9998},
}
SMALLEST = KL_COEFS[-1]

claims = (
    *(
        Number(
            f"two responses, reference {law}, kl_coef {k}: RLHF plays the favourite with {stated:g}",
            NOTES,
            "first",
            {"part": "two", "reference": law, "kl_coef": k, "method": "RLHF"},
            stated,
            6e-4,
            exact=True,
        )
        for law, column in STATED.items()
        for k, stated in column.items()
    ),
    *(
        Number(
            f"two responses, reference {law}: matching returns the annotators' .7",
            PAPER,
            "first",
            {"part": "two", "reference": law, "kl_coef": SMALLEST, "method": "matching"},
            0.7,
            1e-9,
            exact=True,
        )
        for law in STATED
    ),
    Number(
        "uniform reference, kl_coef 1: RLHF matches, there alone",
        PAPER,
        "matching_divergence",
        {"part": "five", "reference": "uniform", "kl_coef": 1.0, "method": "RLHF"},
        0.0,
        1e-9,
    ),
    *(
        Number(
            f"uniform reference, kl_coef {k}: it does not (divergence > .01)",
            PAPER,
            "matching_divergence",
            {"part": "five", "reference": "uniform", "kl_coef": k, "method": "RLHF"},
            0.01,
            0.0,
            "at least",
        )
        for k in (2.0, 0.5)
    ),
    *(
        Number(
            f"reference softmax, kl_coef {k}: RLHF does not match (divergence > .01)",
            PAPER,
            "matching_divergence",
            {"part": "five", "reference": "softmax", "kl_coef": k, "method": "RLHF"},
            0.01,
            0.0,
            "at least",
        )
        for k in KL_COEFS
    ),
    *(
        Monotone(
            f"reference {law}: RLHF's minorities only lose as kl_coef falls",
            PAPER,
            "minority_mass",
            {"part": "five", "reference": law, "method": "RLHF"},
            "kl_coef",
            "increasing",
        )
        for law in ("uniform", "softmax")
    ),
    *(
        Exponent(
            f"reference {law}: RLHF's divergence grows like 1 / kl_coef",
            DERIVED,
            "matching_divergence",
            {"part": "five", "reference": law, "method": "RLHF"},
            -1.0,
            0.15,
            x="kl_coef",
            window=(0.0, 0.1),
        )
        for law in ("uniform", "softmax")
    ),
    *(
        Number(
            f"reference {law}: at kl_coef {SMALLEST} minorities keep less than .05 under {method}",
            source,
            "minority_mass",
            {"part": "five", "reference": law, "kl_coef": SMALLEST, "method": method},
            0.05,
            0.0,
            "at most",
        )
        for law in ("uniform", "softmax")
        for method, source in (("RLHF", PAPER), ("equilibrium", DERIVED))
    ),
    *(
        Identity(
            f"reference {law}: matching has divergence 0 at every kl_coef",
            PAPER,
            "matching_divergence",
            {"part": "five", "reference": law, "method": "matching"},
            1e-9,
        )
        for law in ("uniform", "softmax")
    ),
    *(
        Exponent(
            f"learnt: PM-RLHF's divergence falls like 1 / n on {text}",
            DERIVED,
            "matching_divergence",
            {"part": "learnt", "method": "pm_rlhf", "pairs": player},
            -1.0,
            0.2,
            window=(512, DUELS),
        )
        for player, text in (("current", "duels of its own"), ("uniform", "uniform duels"))
    ),
    *(
        Ordering(
            f"learnt, {player} pairs: PM-RLHF ends 100 times below DPO at kl_coef {k}",
            PAPER,
            "matching_divergence",
            {"method": "pm_rlhf"},
            {"method": "online_dpo", "kl_coef": k},
            {"part": "learnt", "pairs": player},
            factor=100.0,
        )
        for method, k, player in LEARNT
        if method == "online_dpo"
    ),
)


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=2, rows=2, height=2.3)
    (two, minority), (divergence, learnt) = axes
    looks = plotting.lines(METHODS)
    for law, dash in (("against", "-"), ("uniform", ":")):
        for method in METHODS:
            where = {"part": "two", "reference": law, "method": method}
            how = {"x": "kl_coef", "where": where, "looks": {method: looks[method]._replace(dash=dash)}}
            plotting.curves(two, frame, "first", "method", legend=False, **how)
    two.set_ylabel("probability of the favourite")
    two.set_title("(a) P = .7; dotted: uniform reference")
    where = {"part": "five", "reference": "softmax"}
    how = {"x": "kl_coef", "where": where, "looks": looks, "legend": False}
    plotting.curves(minority, frame, "minority_mass", "method", order=METHODS, **how)
    minority.set_ylabel("mass of minorities\n(higher is better)")
    minority.set_title("(b) five responses")
    plotting.curves(divergence, frame, "matching_divergence", "method", order=METHODS[:2], **how)
    divergence.set_yscale("log")
    divergence.set_title("(c) five responses (matching: 0)")
    for ax in (two, minority, divergence):
        ax.set_xscale("log")
        ax.set_xlabel("kl_coef")
    rows = frame[frame["part"] == "learnt"].replace({"online_dpo": "DPO", "pm_rlhf": "PM", "current": "own"})
    rows = rows.assign(name=rows["method"] + " " + rows["kl_coef"].astype(str) + ", " + rows["pairs"])
    names = {name: name.replace("PM 1.0", "PM") for name in rows["name"].unique()}
    plotting.curves(learnt, rows, "matching_divergence", "name", loglog=True, names=names)
    learnt.set_title("(d) learnt from duels")
    for ax in (divergence, learnt):
        ax.set_ylabel("divergence from matching [nats]\n(lower is better)")
    plotting.legend_above(figure, minority)
    return figure


study = Study(
    name="preference_collapse",
    title="Preference collapse as kl_coef falls, against preference matching",
    source="Xiao et al. 2024 (2405.16455); closed forms, own grid",
    cells=cells,
    claims=claims,
    plot=plot,
    replicates=64,
    smoke_replicates=8,
)
