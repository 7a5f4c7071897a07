"""INPO's loss is a mirror-descent step only for pairs drawn independently from the current policy.

INPO (2407.00617): the loss (8), E (h_t(pi, y_w, y_l) - s / 2)^2 over pairs of pi_t, has the mirror-descent step (5) as
its unique minimiser (Proposition 6, Lemma 5; here s = step_size is 1 / eta of the paper). The proof needs both
responses independent and from pi_t. The paper's experiments draw 8 responses and keep the best and the worst by a
tournament; no figure of the paper shows what that does. Own notes: independent pairs meet (5) to 4e-16, uniform ones do
not (.22 in one unnamed game of 10 actions), because they give the step against the uniform opponent.

Grid, exact minimisers (normal equations of the expected loss) on random games of 6 actions (EGPO's law), kl_coef .1,
s = 1, references with N(0, 1) log-weights, pi_t = the reference after 5 exact steps. Laws of pairs: independent draws
of pi_t, of the uniform policy, of the reference; best and worst of K = 2, 4, 8, 16 draws of pi_t by mean win rate
within the sample, labelled by a new duel ("relabelled") or taken as won ("assumed"). As a control the regression on win
rates against pi_t under uniform pairs (Online IPO of EGPO's code, DNO's labels). All multisets of K are enumerated.
`iterated`: 300 steps by each law's minimiser. `sampled`: one fit of `inpo` to n duels on the loop.

Found: all holds, but that with winners assumed the error does not clearly grow with K: it is large from K = 2 on.

What differs: ranking within the sample uses the true win rates instead of 11 noisy comparisons per candidate, which
makes best and worst of K sharper than the paper's; log-policies are tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from simbandit import algorithms, plotting
from simbandit.draws import Draws
from simbandit.equilibrium import best_response, duality_gap
from simbandit.guarantees import Exponent, Identity, Monotone, Number
from simbandit.guarantees.rows import select
from simbandit.metrics import Snapshot
from simbandit.oracles import UniformTriangular
from simbandit.policies import normalise, uniform
from simbandit.simulate import Problem
from simbandit.study import Settings, Simulation, Study, Task
from simbandit.worlds import TableWorld
from studies._games import frame_of, tables, total_variation, world_of

ACTIONS, KL, STEP, WARM, ROUNDS = 6, 0.1, 1.0, 5, 300
KEPT = (2, 4, 8, 16)
DUELS = (64, 256, 1024, 4096, 16384, 65536)
LAWS = ("current", "uniform", "reference", "win rates", "relabelled", "assumed")
REFERENCE = (0.35, 0.25, 0.2, 0.1, 0.06, 0.04)


def exact_step(theta: Tensor, ref: Tensor, preference: Tensor, opponent: Tensor) -> Tensor:
    """Equation (5), with the opponent's policy where the paper has pi_t."""
    g = (preference @ opponent.exp()[..., None]).squeeze(-1)
    return normalise((1 - KL * STEP) * theta + KL * STEP * ref + STEP * g)


def minimiser(theta: Tensor, ref: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """argmin of sum_ab weight_ab (h_a - h_b - STEP target_ab)^2, h = log pi - KL STEP ref - (1 - KL STEP) theta:
    weight symmetric, target skew. Rows are scaled so that rare actions keep their digits."""
    off = weight * (1 - torch.eye(ACTIONS, dtype=weight.dtype, device=weight.device))
    total = off.sum(-1, keepdim=True)
    rows = torch.eye(ACTIONS, dtype=weight.dtype, device=weight.device) - off / total
    pin = (total / total.sum(-2, keepdim=True)).mT
    h = torch.linalg.solve(rows + pin, STEP * (off / total * target).sum(-1))
    return normalise(h + KL * STEP * ref + (1 - KL * STEP) * theta)


def multisets(kept: int) -> tuple[Tensor, Tensor]:
    """Counts (M, A) of every multiset of `kept` responses, and log of the number of orders of each (M,)."""
    drawn = torch.tensor(list(combinations_with_replacement(range(ACTIONS), kept)))
    counts = torch.nn.functional.one_hot(drawn, ACTIONS).sum(1).to(torch.float64)
    return counts, torch.lgamma(torch.tensor(kept + 1.0, dtype=torch.float64)) - torch.lgamma(counts + 1).sum(-1)


def extremes(preference: Tensor, counts: Tensor) -> Tensor:
    """best * A + worst of every multiset, by mean win rate within it: (R, M)."""
    score = torch.einsum("rab,mb->rma", preference, counts)
    best = torch.where(counts > 0, score, -torch.inf).argmax(-1)
    return best * ACTIONS + torch.where(counts > 0, score, torch.inf).argmin(-1)


def pairs(law: str, theta: Tensor, ref: Tensor, preference: Tensor, enumerated: Any) -> tuple[Tensor, Tensor]:
    """Weights and targets (label - 1/2) of the expected loss, (R, A, A)."""
    target = preference - 0.5
    if law in ("relabelled", "assumed"):
        counts, orders, pair = enumerated
        chance = torch.exp(orders + theta @ counts.mT)
        ordered = torch.zeros_like(preference).flatten(-2).scatter_add_(-1, pair, chance).view_as(preference)
        both = ordered + ordered.mT
        return both, target if law == "relabelled" else (ordered / both.clamp_min(1e-300) - 0.5) * (both > 0)
    drawn = {"current": theta, "reference": ref}.get(law, uniform(ref)).exp()
    if law == "win rates":
        rate = (preference @ theta.exp()[..., None]).squeeze(-1)
        target = rate[..., :, None] - rate[..., None, :]
    return drawn[..., :, None] * drawn[..., None, :], target


def one_game(replicates: int, seed: int, device: str) -> tuple[Tensor, Tensor]:
    """A game (R, A, A) and a reference (R, A) per replicate."""
    preference, _ = tables(world_of(ACTIONS), UniformTriangular(), replicates, seed, device)
    return preference[:, 0], normalise(Draws(seed, replicates, device).once("reference", ACTIONS))


def one_step(law: str, kept: int, replicates: int, seed: int, device: str) -> pd.DataFrame:
    preference, ref = one_game(replicates, seed, device)
    theta = ref
    for _ in range(WARM):
        theta = exact_step(theta, ref, preference, theta)
    counts, orders = multisets(kept)
    found = minimiser(theta, ref, *pairs(law, theta, ref, preference, (counts, orders, extremes(preference, counts))))
    opponent = {"uniform": uniform(ref), "reference": ref}.get(law, theta)
    target = exact_step(theta, ref, preference, theta)
    values = {
        "distance": total_variation(found, target),
        "relative": total_variation(found, target) / total_variation(theta, target),
        "distance to own step": total_variation(found, exact_step(theta, ref, preference, opponent)),
    }
    return frame_of({(name, 0): value for name, value in values.items()})


def iterated(law: str, kept: int, replicates: int, seed: int, device: str) -> pd.DataFrame:
    """300 steps from the reference, each the exact minimiser."""
    preference, ref = one_game(replicates, seed, device)
    counts, orders = multisets(kept)
    enumerated = (counts, orders, extremes(preference, counts))
    borda = best_response(uniform(ref), preference, ref, KL)
    theta, values = ref, {}
    for t in range(ROUNDS + 1):
        if t <= 10 or t % 10 == 0:
            values["duality_gap", t] = duality_gap(theta, preference, ref, KL)
        theta = minimiser(theta, ref, *pairs(law, theta, ref, preference, enumerated))
    values["distance to offline IPO", ROUNDS] = total_variation(theta, borda)
    return frame_of(values)


def distance_to_step(s: Snapshot, opponent: str) -> Tensor:
    """After one round: total variation to (5) from the reference, or to its like against the uniform opponent."""
    assert s.game is not None
    ref = s.ref_log_probs
    against = ref if opponent == "current" else uniform(ref)
    return s.over_contexts(total_variation(s.log_probs, exact_step(ref, ref, s.game.preference, against)))


def cells(settings: Settings, tuned: Mapping[str, Any]) -> list[Simulation | Task]:
    del tuned  # exact minimisers
    grid: list[Simulation | Task] = []
    for law in LAWS:
        chosen = law in ("relabelled", "assumed")
        for kept in (KEPT[:-1] if settings.smoke else KEPT) if chosen else (2,):
            how = {"law": law, "kept": kept}
            grid.append(Task({"part": "one step", **how}, one_step, how, settings.replicates, settings.seed))
        how = {"law": law, "kept": 4 if settings.smoke else 8}
        grid.append(Task({"part": "iterated", "law": law}, iterated, how, settings.replicates, settings.seed))
    world = TableWorld(np.log([REFERENCE]))
    for law in ("current", "uniform"):
        for n in DUELS[::2] if settings.smoke else DUELS:
            grid.append(
                Simulation(
                    {"part": "sampled", "law": law, "n": n},
                    Problem(world, UniformTriangular(), KL),
                    algorithms.create("inpo", players=(law, law), step_size=STEP),
                    rounds=1,
                    batch_size=n,
                    replicates=settings.replicates,
                    seed=settings.seed,
                    metrics=[
                        ("distance", partial(distance_to_step, opponent="current")),
                        ("distance to own step", partial(distance_to_step, opponent=law)),
                    ],
                )
            )
    return grid


PAPER, NOTES, DERIVED = "2407.00617, Proposition 6", "own earlier runs", "derived"


def number(name: str, source: str, where: Mapping[str, Any], metric: str, value: float, sense: Any) -> Number:
    return Number(name, source, metric, where, value, 0, sense)


claims = (
    Identity(
        "independent pairs of the policy: the minimiser is the step (5)",
        PAPER,
        "distance",
        {"part": "one step", "law": "current"},
        1e-12,
    ),
    Identity(
        "regression on win rates, uniform pairs: the step (5)",
        "2404.03715, 2503.08942",
        "distance",
        {"part": "one step", "law": "win rates"},
        1e-12,
    ),
    *(
        Identity(
            f"independent pairs of the {law} policy: the step against the {law} opponent",
            NOTES,
            "distance to own step",
            {"part": "one step", "law": law},
            1e-12,
        )
        for law in ("uniform", "reference")
    ),
    number(
        "uniform pairs miss the step (5) by > .01",
        NOTES,
        {"part": "one step", "law": "uniform"},
        "distance",
        0.01,
        "at least",
    ),
    *(
        number(
            f"best and worst of {kept}, {law}: miss by > .01",
            NOTES,
            {"part": "one step", "law": law, "kept": kept},
            "distance",
            0.01,
            "at least",
        )
        for law in ("relabelled", "assumed")
        for kept in KEPT[1:]
    ),
    Identity(
        "best and worst of 2, relabelled, are two independent draws",
        DERIVED,
        "distance",
        {"part": "one step", "law": "relabelled", "kept": 2},
        1e-12,
    ),
    *(
        Monotone(
            f"best and worst of K, {law}: the error grows with K",
            DERIVED,
            "distance",
            {"part": "one step", "law": law},
            "kept",
            "increasing",
        )
        for law in ("relabelled", "assumed")
    ),
    *(
        number(
            f"iterated, {text}: reaches the equilibrium (gap < 1e-9)",
            source,
            {"part": "iterated", "law": law},
            "duality_gap",
            1e-9,
            "at most",
        )
        for law, text, source in (
            ("current", "independent pairs", PAPER),
            ("win rates", "regression on win rates", DERIVED),
        )
    ),
    *(
        number(
            f"iterated, {text}: keeps a gap > .001",
            NOTES,
            {"part": "iterated", "law": law},
            "duality_gap",
            0.001,
            "at least",
        )
        for law, text in (
            ("uniform", "uniform pairs"),
            ("relabelled", "best and worst of 8, relabelled"),
            ("assumed", "best and worst of 8, assumed"),
        )
    ),
    Identity(
        "iterated, uniform pairs: ends at the optimum of offline IPO",
        NOTES,
        "distance to offline IPO",
        {"part": "iterated", "law": "uniform"},
        1e-9,
    ),
    Exponent(
        "n duels of the policy: the distance to (5) falls like n^-1/2",
        DERIVED,
        "distance",
        {"part": "sampled", "law": "current"},
        -0.5,
        0.1,
        x="n",
    ),
    Exponent(
        "n uniform duels: the distance to their own step falls like n^-1/2",
        DERIVED,
        "distance to own step",
        {"part": "sampled", "law": "uniform"},
        -0.5,
        0.1,
        x="n",
    ),
    number(
        "65,536 uniform duels still miss the step (5) by > .01",
        NOTES,
        {"part": "sampled", "law": "uniform", "n": DUELS[-1]},
        "distance",
        0.01,
        "at least",
    ),
)

NAMES = {
    "current": "independent, policy",
    "uniform": "independent, uniform",
    "reference": "independent, reference",
    "win rates": "win rates, uniform pairs",
    "relabelled": "best/worst, relabelled",
    "assumed": "best/worst, assumed won",
}


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=3, height=2.6)
    step, path, sampled = axes[0]
    looks = plotting.lines(LAWS)
    where = {"part": "one step"}
    plotting.curves(step, frame, "distance", "law", x="kept", where=where, order=LAWS[4:], looks=looks, legend=False)
    for law in LAWS[:4]:
        mean = select(frame, {**where, "law": law, "metric": "distance"})["value"].to_numpy().mean()
        step.axhline(mean, color=looks[law].color, linestyle=looks[law].dash, linewidth=1.0)
    step.set_xscale("log", base=2)
    step.set_ylabel("total variation to the exact step\n(lower is better)")
    step.set_xlabel("K responses drawn")
    step.set_title("(a) one step, exact minimisers")
    how = {"x": "round", "order": LAWS, "names": NAMES, "looks": looks, "legend": False}
    plotting.curves(path, frame, "duality_gap", "law", where={"part": "iterated"}, **how)
    path.set_yscale("log")
    path.set_ylim(1e-17, 1)
    path.set_xlabel("step")
    path.set_title("(b) iterated, K = 8")
    how = {"x": "n", "order": LAWS[:2], "looks": looks, "loglog": True, "legend": False}
    plotting.curves(sampled, frame, "distance", "law", where={"part": "sampled"}, **how)
    sampled.set_xlabel("duels")
    sampled.set_ylabel("total variation to the exact step")
    sampled.set_title("(c) one fit to n duels")
    plotting.legend_above(figure, path, columns=3)
    return figure


study = Study(
    name="inpo_sampling_law",
    title="INPO's loss and the law of its pairs: distance of the minimiser from the mirror-descent step",
    source="INPO (2407.00617), Proposition 6 and its experimental pipeline",
    cells=cells,
    claims=claims,
    plot=plot,
    replicates=64,
    smoke_replicates=12,
)
