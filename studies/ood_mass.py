"""Mass on responses that no duel saw: when tabular DPO raises it, and what an online KL does about it.

HyPO (2406.01462) shows the average probability of out-of-distribution (OOD) responses rising during DPO without
function approximation (figure caption; its set-up is not known to us, nor found in public pages or code). A softmax
table leaves unseen logits where they are and conserves the sum of the seen ones in each connected component of
comparisons, so OOD mass rises exactly while sum exp(theta_seen) falls (derived): never from equal seen logits (Jensen),
but as long as rejected responses carry most of the mass. Three arms, one pair: pi proportional to
(p_w e^d, p_l e^-d, p_ood), with its peak at d = log(p_l / p_w) / 2.

Grid. `three`: reference (.05, .90, .05), kl_coef 1; DPO's argmin on the label sigma(2 d), whose gap is 2 d. `many`: 50
responses with N(0, 1) rewards, 10 of them seen, their reference logits 2 + 2 c z + 2 sqrt(1 - c^2) noise (z the
standardised reward, c = -1, 0, 1), those of the others N(0, 1); 40 duels of seen pairs, or a uniform reference and 300
duels; kl_coef .1; gradient steps of size 10 on the logits of DPO's mean loss + weight KL(pi || pi_ref), weight 0, .001,
.01 (HyPO's online KL, exactly).

What differs: world and step size are ours.

Found: the three-arm numbers hold. The caption's rise appears where the reference is anti-correlated with the reward
(.18 to .31 near 30 steps, then down to 4e-5) and in no other set-up: uncorrelated, correlated and uniform references
lose OOD mass within 20 steps (three claims fail, as derived). The online KL (weight .01) shortens the way from the
reference (5.96 to 2.36 nats, anti-correlated), not by lowering OOD mass: on a uniform reference it falls to .31, turns,
and is at .71 and rising after 4,000 steps (above .80: undecided), and the expected reward drops from 1.50 to .53.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from simbandit import plotting
from simbandit.algorithms import create
from simbandit.draws import Draws
from simbandit.guarantees import Identity, Number, Ordering
from simbandit.metrics import Snapshot, kl
from simbandit.oracles import PreferenceTable
from simbandit.simulate import Problem
from simbandit.study import Settings, Simulation, Study, Task
from simbandit.worlds import TableWorld
from studies._games import frame_of

THREE = (0.05, 0.90, 0.05)  # chosen, rejected, unseen
PEAK = 0.5 * math.log(THREE[1] / THREE[0])
PUBLISHED = {0.5: 0.074, 1.0: 0.097, PEAK: 0.105, 2.0: 0.092, 3.0: 0.045, 5.0: 0.007}
SHIFTS = tuple(sorted({*PUBLISHED, 0.25, 0.75, 1.25, 1.7, 2.5, 4.0}))
A, SEEN, KL, STEP, STEPS = 50, 10, 0.1, 10.0, 4000
REFERENCES = {"anti-correlated": -1.0, "uncorrelated": 0.0, "correlated": 1.0, "uniform": None}
WEIGHTS = (0.0, 0.001, 0.01)
RECORDED = {0, *np.unique(np.geomspace(1, STEPS, 48).round().astype(int)).tolist(), 20, 100}


def unseen(s: Snapshot) -> Tensor | None:
    return None if s.info.fit_residual is None else s.log_probs[:, 0, 2].exp()


def shifted(s: Snapshot, d: float) -> Tensor | None:
    """The closed form of `unseen`."""
    if s.info.fit_residual is None:
        return None
    w, lost, other = THREE[0] * math.exp(d), THREE[1] * math.exp(-d), THREE[2]
    return torch.full((s.instance.replicates,), other / (w + lost + other), dtype=torch.float64)


def many(reference: str, weight: float, replicates: int, seed: int, device: str) -> pd.DataFrame:
    """Gradient descent of a table; responses 0 ... SEEN - 1 are seen. All weights meet the same worlds and duels."""
    draws = Draws(seed, replicates, device)
    rewards, noise = draws.once("rewards", A), draws.once("reference", A)
    c = REFERENCES[reference]
    n = 300 if c is None else 40
    z = rewards[:, :SEEN]
    z = (z - z.mean(-1, keepdim=True)) / z.std(-1, keepdim=True)
    logits = torch.zeros_like(noise)
    if c is not None:
        logits = torch.cat([2 + 2 * c * z + 2 * math.sqrt(1 - c * c) * noise[:, :SEEN], noise[:, SEEN:]], -1)
    ref = torch.log_softmax(logits, -1)
    now = draws.at(0)
    first = (now.uniform("first", n) * SEEN).long()
    second = (first + 1 + (now.uniform("second", n) * (SEEN - 1)).long()) % SEEN
    wins = now.uniform("annotator", n) < torch.sigmoid(rewards.gather(1, first) - rewards.gather(1, second))
    w, lost = torch.where(wins, first, second), torch.where(wins, second, first)
    theta, values = ref.clone(), {}
    for t in range(STEPS + 1):
        log_pi = torch.log_softmax(theta, -1)
        pi, ratio = log_pi.exp(), log_pi - ref
        if t in RECORDED:
            mass = pi[:, SEEN:].sum(-1)
            values["ood", t] = mass
            values["ood change", t] = mass - values["ood", 0]
            values["kl_to_ref", t] = kl(log_pi, ref)
            values["expected_reward", t] = (pi * rewards).sum(-1)
        push = KL * torch.sigmoid(-KL * (ratio.gather(1, w) - ratio.gather(1, lost))) / n
        gradient = torch.zeros_like(theta).scatter_add(1, w, -push).scatter_add(1, lost, push)
        if weight:
            gradient = gradient + weight * pi * (ratio - (pi * ratio).sum(-1, keepdim=True))
        theta = theta - STEP * gradient
    return frame_of(values)


def cells(settings: Settings, tuned: Mapping[str, Any]) -> Sequence[Simulation | Task]:
    del tuned
    grid: list[Simulation | Task] = []
    world = TableWorld(np.log([THREE]))
    oracle = PreferenceTable(np.full((3, 3), 0.5))  # never asked: the label is given
    for d in sorted(PUBLISHED) if settings.smoke else SHIFTS:
        duel = {"context": [0], "first": [0], "second": [1], "preferred": [1 / (1 + math.exp(-2 * d))]}
        grid.append(
            Simulation(
                {"part": "three", "d": d},
                Problem(world, oracle, 1.0),
                create("dpo", value_range="unbounded", proximal=1e-9),
                rounds=1,
                replicates=1,
                seed=settings.seed,
                offline=pd.DataFrame(duel),
                metrics=[("ood", unseen), ("closed form", partial(shifted, d=d))],
                record=[1],
            )
        )
    for reference in list(REFERENCES)[:1] if settings.smoke else REFERENCES:
        for weight in WEIGHTS[::2] if settings.smoke else WEIGHTS:
            how = {"reference": reference, "weight": weight}
            grid.append(Task({"part": "many", **how}, many, how, settings.replicates, settings.seed))
    return grid


PAPER, NOTES, DERIVED = "HyPO (2406.01462), figure caption", "own earlier runs", "derived"


def number(
    name: str, source: str, reference: str, weight: float, metric: str, value: float, sense: Any, at: int | None = None
) -> Number:
    where = {"part": "many", "reference": reference, "weight": weight}
    return Number(name, source, metric, where, value, 0.0, sense, at=at)


claims = (
    *(
        Number(
            f"three arms, d = {d:.4g}: OOD mass {mass:g}",
            NOTES,
            "ood",
            {"part": "three", "d": d},
            mass,
            6e-4,
            exact=True,
        )
        for d, mass in PUBLISHED.items()
    ),
    Identity("three arms: the closed form", DERIVED, "ood", {"part": "three"}, 1e-6, "closed form"),
    *(
        number(f"{text}: OOD mass rises during DPO (20 steps)", PAPER, text, 0.0, "ood change", 0.0, "at least", 20)
        for text in REFERENCES
    ),
    number("equal seen logits: OOD mass cannot rise", DERIVED, "uniform", 0.0, "ood change", 0.0, "at most", 20),
    *(
        number(f"{text}: after 4,000 steps OOD mass is below .01", NOTES, text, 0.0, "ood", 0.01, "at most")
        for text in list(REFERENCES)[:3]
    ),
    *(
        Ordering(
            f"{text}: the online KL (.01) keeps the policy closer to the reference",
            NOTES,
            "kl_to_ref",
            {"weight": 0.01},
            {"weight": 0.0},
            {"part": "many", "reference": text},
        )
        for text in REFERENCES
    ),
    number("uniform, online KL .01: OOD mass rises above .80", NOTES, "uniform", 0.01, "ood", 0.8, "at least"),
    Ordering(
        "uniform: the online KL (.01) lowers the expected reward",
        NOTES,
        "expected_reward",
        {"weight": 0.01},
        {"weight": 0.0},
        {"part": "many", "reference": "uniform"},
    ),
)


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=3, height=2.6)
    three, references, penalty = axes[0]
    rows = frame.take(np.flatnonzero((frame["part"] == "three").to_numpy() & (frame["metric"] == "ood").to_numpy()))
    d = np.linspace(0, 5, 201)
    other = THREE[2] / (THREE[0] * np.exp(d) + THREE[1] * np.exp(-d) + THREE[2])
    three.plot(d, other, color="0.4", linewidth=1.0, label="closed form")
    three.plot(rows["d"], rows["value"], linestyle="", marker="o", label="DPO's argmin")
    three.set_xlabel("d, half of the log-ratio gap")
    three.set_ylabel("mass on unseen responses")
    three.set_title("(a) three arms")
    three.legend(loc="lower left")
    shown = [r for r in REFERENCES if r in set(frame["reference"])]
    where = {"part": "many", "weight": 0.0}
    plotting.curves(references, frame, "ood", "reference", x="round", where=where, order=shown, legend=False)
    references.legend(loc="upper right", fontsize=6)
    references.set_title("(b) 50 responses, DPO")
    last = shown[-1]
    where = {"part": "many", "reference": last}
    weights = [w for w in WEIGHTS if w in set(frame["weight"])]
    names = {w: f"weight {w:g}" for w in weights}
    plotting.curves(penalty, frame, "ood", "weight", x="round", where=where, order=weights, names=names)
    penalty.set_title(f"(c) {last} reference, online KL")
    for ax in (references, penalty):
        ax.set_xscale("symlog", linthresh=1)
        ax.set_ylim(0, 1.0)
        ax.set_xlabel("gradient steps")
        ax.set_ylabel("mass on unseen responses")
    return figure


study = Study(
    name="ood_mass",
    title="Mass on responses that no duel saw, during tabular DPO and with an online KL",
    source="HyPO (2406.01462): the figure on DPO without function approximation",
    cells=cells,
    claims=claims,
    plot=plot,
    replicates=64,
    smoke_replicates=8,
)
