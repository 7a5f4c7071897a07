"""Online equilibrium learning: does an enhancer that asks where the estimate is uncertain find the equilibrium sooner?

Ye et al. 2024 (2402.07314), online section, which has no simulation: own design. World: 12
contexts, 8 actions, features on the sphere in 5 dimensions; bilinear preference of rank 4, norm 5; kl_coef = .1;
batches of 16 duels, 60 rounds. The reference is uniform, or skewed (softmax of 3 times normal logits: in a typical
context one action has most of its mass). Every contender outputs the equilibrium of its maximum likelihood estimate;
they differ in who plays:

    OELHF            a ~ equilibrium pi1, b ~ argmax_pi2 of the information ratio ||E psi(x, pi1, pi2)||_{Sigma^-1}
    OELHF pointwise  b maximises the width against pi1 in each context on its own
    greedy           b ~ pi_ref (greedy sampling, 2510.24700)
    self             b ~ pi1
    uniform data     both actions uniform, all rounds

each with three candidates of the likelihood's ridge, tuned per reference on seeds of their own. `exploitability` is
one-sided, 1/2 - min_pi2 J(pi1, pi2). Theorem 2: some round t0 <= T has exploitability <= eps with a total of the order
of d log|P| / eps^2 comparisons, that is, the best gap so far falls at least like n^-1/2; greedy sampling's theory gives
1 / n where the reference ratio bound e^(1 / kl_coef) is no obstacle.

Found: everybody falls like n^-.9. Under a skewed reference the enhancer halves the gap that greedy and self-play have
after 960 duels and is a fifth below uniform data; maximising pointwise is at least as good. Under a uniform reference
there is nothing to add: all five end within about 10 %, and 64 replicates do not order them (self-play starts lower,
as its ridge is larger).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from simbandit import plotting
from simbandit.algorithms import create
from simbandit.guarantees import Exponent, Number, Ordering
from simbandit.oracles import Bilinear
from simbandit.simulate import Problem
from simbandit.study import Settings, Simulation, Study
from simbandit.types import Algorithm
from simbandit.worlds import LinearWorld

KL_COEF, BATCH, ROUNDS, RIDGES = 0.1, 16, 60, (0.1, 1.0, 10.0)
REFERENCES = {"uniform": 0.0, "skewed": 3.0}
PLAYERS: dict[str, tuple[str, dict[str, Any]]] = {
    "OELHF": ("oelhf", {}),
    "OELHF pointwise": ("oelhf", {"enhancer": "pointwise"}),
    "greedy": ("nash_greedy", {}),
    "self": ("nash_greedy", {"pairing": "self"}),
    "uniform data": ("nash_etc", {"first_stage": 1.0, "rank": None}),
}


def cell(
    settings: Settings, labels: Mapping[str, Any], reference: str, algorithm: Algorithm, rounds: int, seed: int
) -> Simulation:
    world = LinearWorld(
        n_contexts=12, n_actions=8, dim=5, reference="softmax", reference_strength=REFERENCES[reference]
    )
    return Simulation(
        labels,
        Problem(world, Bilinear(rank=4, norm=5.0), KL_COEF),
        algorithm,
        rounds=rounds,
        batch_size=BATCH,
        replicates=settings.replicates,
        seed=seed,
        metrics=["exploitability", "kl_to_nash", "informative_pairs"],
        record=sorted({*range(0, rounds + 1, 2), 1, rounds}),
    )


def rounds_of(settings: Settings) -> int:
    return 12 if settings.smoke else ROUNDS


def tuning(settings: Settings) -> dict[str, list[Simulation]]:
    few = Settings(min(settings.replicates, 16), settings.smoke, settings.seed)
    return {
        f"{rule}/{reference}": [
            cell(few, {}, reference, create(name, ridge=ridge, **own), rounds_of(settings), settings.tuning_seed)
            for ridge in RIDGES
        ]
        for reference in REFERENCES
        for rule, (name, own) in PLAYERS.items()
    }


def cells(settings: Settings, tuned: dict[str, Any]) -> Sequence[Simulation]:
    return [
        cell(
            settings,
            {"rule": rule, "reference": reference},
            reference,
            tuned[f"{rule}/{reference}"],
            rounds_of(settings),
            settings.seed,
        )
        for reference in REFERENCES
        for rule in PLAYERS
    ]


THEOREM, GREEDY, OWN = "2402.07314, Theorem 2", "2510.24700", "own expectation"
WINDOW = (96, BATCH * ROUNDS)


def order(
    smaller: str, larger: str, reference: str, factor: float = 1.0, source: str = OWN, text: str = ""
) -> Ordering:
    name = f"{reference} reference: {smaller} ends below {larger}" + text
    return Ordering(
        name, source, "exploitability", {"rule": smaller}, {"rule": larger}, {"reference": reference}, factor
    )


claims = (
    *(
        Exponent(
            f"OELHF, {reference} reference: the gap falls at least like n^-1/2",
            THEOREM,
            "exploitability",
            {"rule": "OELHF", "reference": reference},
            -0.5,
            0.0,
            "at most",
            window=WINDOW,
        )
        for reference in REFERENCES
    ),
    *(
        Number(
            f"OELHF, {reference} reference: a gap of .01 after 960 duels",
            "own target",
            "exploitability",
            {"rule": "OELHF", "reference": reference},
            0.01,
            0.0,
            "at most",
        )
        for reference in REFERENCES
    ),
    Exponent(
        "greedy, uniform reference: the gap falls like 1 / n",
        GREEDY,
        "exploitability",
        {"rule": "greedy", "reference": "uniform"},
        -1.0,
        0.2,
        window=WINDOW,
    ),
    order("OELHF", "greedy", "skewed"),
    order("OELHF", "self", "skewed"),
    *(order("OELHF", "uniform data", reference) for reference in REFERENCES),
    order("OELHF", "OELHF pointwise", "uniform", 1 / 1.1, text=", within 10 %"),
    order("OELHF pointwise", "OELHF", "uniform", 1 / 1.1, text=", within 10 %"),
    order("greedy", "OELHF", "uniform", 1 / 1.1, text=", within 10 %: the reference covers"),
)


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=2, height=2.8)
    looks = plotting.lines(list(PLAYERS))
    for ax, reference in zip(axes[0], REFERENCES, strict=True):
        plotting.curves(
            ax,
            frame,
            "exploitability",
            "rule",
            where={"reference": reference},
            order=list(PLAYERS),
            looks=looks,
            loglog=True,
            legend=False,
        )
        ax.set_title(f"{reference} reference")
        ax.set_xlabel("comparisons")
        ax.set_ylabel("exploitability [win probability]\n(lower is better)" if ax is axes[0, 0] else "")
    plotting.legend_above(figure, axes[0, 0], columns=5)
    return figure


study = Study(
    name="oelhf_online",
    title="Online equilibrium learning: who should be the second player",
    source="Ye et al. 2024 (2402.07314), online section; own design, no published figure",
    cells=cells,
    claims=claims,
    plot=plot,
    tuning=tuning,
    tuning_metric="exploitability",
    replicates=64,
    smoke_replicates=4,
)
