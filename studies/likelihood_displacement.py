"""Likelihood displacement: DPO widens the margin while both responses lose probability, where features are shared.

Razin et al. 2024 (2410.08847): preferring "No" to "Never" raises "Yes". For log-linear policies it is geometry (after
their Theorem 1; the closed forms here are derived): a single pair moves theta along delta = phi_w - phi_l only, to
theta = u delta / |delta|^2 at log-ratio gap u, and log pi(y) changes by <theta, phi_y> - log E_ref exp <theta, phi>.
With unit features of cosine rho between the pair, random elsewhere, that is about u / 2 - u^2 / (4 (1 - rho) d): the
chosen response falls once u > 2 (1 - rho) d. A table has nothing to share: its chosen response always rises.

Grid. One soft-labelled pair whose gap at the population minimiser is u = 4 (DPO: win rate sigma(2), kl_coef .5; IPO:
.9, kl_coef .1), 300 plain gradient steps of the rows, whose size goes as 1 / |delta|^2, so that the gap is reached.
`words`: three arms, phi = No (0, 1), Never (-1/2, 1), Yes (1, 0), reference (.6, .3, .1). `dial`: 50 arms of reference
softmax(N(0, 1) / 2), d = 10, rho = 0 ... .99, log-linear DPO and IPO, and DPO on tables. `dimension`: rho = .9, d = 3
... 100. `sft`: RPO at rho = .9, d = 10, with weights .003 and .03 of the chosen
response's log-likelihood (20 replicates).

Found: all holds. DPO and IPO at one gap move alike; at d = 10 the chosen response falls from a cosine of about .8 on.
The approximation is good above the threshold in d and overstates the fall below it (50 arms are too few for its
average). RPO's weight, however small, decides in the end: off the pair's direction nothing opposes it.

What differs: the paper trains language models (a refusal rate of 74.4 % falls to 33.4 %) and ranks data by hidden
embeddings; here features are drawn, and the cosine is the dial.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import normalize

from simbandit import plotting
from simbandit.algorithms import create
from simbandit.draws import Draws
from simbandit.guarantees import Identity, Monotone, Number, Ordering
from simbandit.objective import Descent
from simbandit.policies import LogLinear, Tabular, normalise
from simbandit.study import Settings, Study, Task
from simbandit.types import Contexts, Setting
from studies._games import frame_of

GAP, ARMS, DIM, STEPS = 4.0, 50, 10, 300
COSINES = (0.0, 0.3, 0.6, 0.8, 0.9, 0.95, 0.99)
DIMENSIONS = (3, 5, 10, 20, 50, 100)
METHODS = ("DPO", "IPO", "DPO, table")
WEIGHTS = (0.003, 0.03)


def trained(method: str, features: Tensor, ref: Tensor, weight: float = 0.0) -> Tensor:
    """log pi (R, A) after descent on the pair (0, 1), won by 0 at the rate whose gap is GAP; features (R, A, d)."""
    R, A = ref.shape
    pool = Contexts(
        index=torch.zeros(R, 1, dtype=torch.int64, device=ref.device),
        features=features[:, None],
        ref_log_probs=ref[:, None],
        weights=ref.new_ones(R, 1),
    )
    table = method == "DPO, table"
    start = Tabular(ref[:, None]) if table else LogLinear(torch.zeros_like(features[:, 0]))
    size = 2.0 if table else float((features[:, 0] - features[:, 1]).square().sum(-1).max())
    kl_coef = 0.1 if method == "IPO" else 0.5
    if method == "IPO":
        algorithm = create("ipo", proximal=0.0, descent=Descent(STEPS, 0.25 / size, optimiser="sgd"))
        rate = (1 + 2 * kl_coef * GAP) / 2
    else:
        own = {"sft_weight": weight} if method == "RPO" else {}
        descent = Descent(STEPS, 10 / size if method == "RPO" else 20 / size, optimiser="sgd")
        algorithm = create("rpo" if own else "dpo", proximal=0.0, descent=descent, **own)
        rate = 1 / (1 + math.exp(-kl_coef * GAP))
    setting = Setting(R, 1, 1, A, features.shape[-1], kl_coef, (-5.0, 5.0), pool, start, "preference", 2)
    duel = torch.tensor([0, 1], device=ref.device).expand(R, 1, 2)
    contexts, label = Contexts(index=pool.index, pool=pool), ref.new_full((R, 1), rate)
    state, _ = algorithm.update(algorithm.init(setting), contexts, duel, label, Draws(0, R).at(0))
    return algorithm.policy(state).log_probs(pool)[:, 0]


def changes(method: str, features: Tensor, ref: Tensor, weight: float = 0.0) -> dict[str, Tensor]:
    moved = trained(method, features, ref, weight) - ref
    delta = features[:, 0] - features[:, 1]
    tilt = GAP * torch.einsum("rad,rd->ra", features, delta) / delta.square().sum(-1, keepdim=True)
    return {
        "chosen": moved[:, 0],
        "rejected": moved[:, 1],
        "gap": moved[:, 0] - moved[:, 1],
        "both fell": ((moved[:, 0] < 0) & (moved[:, 1] < 0)).to(ref.dtype),
        "third": moved[:, 2],
        "distance to the closed form": (moved - (normalise(ref + tilt) - ref)).abs().amax(-1),
    }


def words(replicates: int, seed: int, device: str) -> pd.DataFrame:
    del replicates, seed
    features = torch.tensor([[[0.0, 1.0], [-0.5, 1.0], [1.0, 0.0]]], dtype=torch.float64, device=device)
    ref = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64, device=device).log()
    return frame_of({(name, 0): value for name, value in changes("DPO", features, ref).items()})


def pair(method: str, cosine: float, dim: int, weight: float, replicates: int, seed: int, device: str) -> pd.DataFrame:
    draws = Draws(seed, replicates, device)
    features = normalize(draws.once(f"features {dim}", ARMS, dim), dim=-1)
    first, second = features[:, 0], features[:, 1]
    across = normalize(second - (first * second).sum(-1, keepdim=True) * first, dim=-1)
    features[:, 1] = cosine * first + math.sqrt(1 - cosine**2) * across
    ref = normalise(draws.once("reference", ARMS) / 2)
    return frame_of({(name, 0): value for name, value in changes(method, features, ref, weight).items()})


def cells(settings: Settings, tuned: Mapping[str, Any]) -> Sequence[Task]:
    del tuned
    grid = [Task({"part": "words", "method": "DPO"}, words, {}, 1, settings.seed)]

    def add(part: str, method: str, cosine: float, dim: int, weight: float = 0.0) -> None:
        labels = {"part": part, "method": method, "cosine": cosine, "dim": dim, "weight": weight}
        own = {"method": method, "cosine": cosine, "dim": dim, "weight": weight}
        replicates = min(20, settings.replicates) if part == "sft" else settings.replicates
        grid.append(Task(labels, pair, own, replicates, settings.seed))

    for method in METHODS:
        for cosine in COSINES[::3] if settings.smoke else COSINES:
            add("dial", method, cosine, DIM)
    for dim in DIMENSIONS[:3] if settings.smoke else DIMENSIONS:
        add("dimension", "DPO", 0.9, dim)
    for weight in WEIGHTS:
        add("sft", "RPO", 0.9, DIM, weight)
    return grid


PAPER, DERIVED = "2410.08847", "derived"


def at(method: str, cosine: float) -> dict[str, Any]:
    return {"part": "dial", "method": method, "cosine": cosine}


WORDS = {"part": "words"}
claims = (
    Number("No over Never: No falls", PAPER, "chosen", WORDS, 0.0, 0.0, "at most", exact=True),
    Number("No over Never: Never falls", PAPER, "rejected", WORDS, 0.0, 0.0, "at most", exact=True),
    Number("No over Never: Yes rises", PAPER, "third", WORDS, 0.0, 0.0, "at least", exact=True),
    Number("No over Never: the gap is 4", DERIVED, "gap", WORDS, GAP, 1e-3, exact=True),
    Identity(
        "log-linear DPO is the closed form",
        DERIVED,
        "distance to the closed form",
        {"part": "dial", "method": "DPO"},
        1e-3,
    ),
    Number("a table's chosen response rises", DERIVED, "chosen", at("DPO, table", 0.99), 0.0, 0.0, "at least"),
    Monotone(
        "the chosen response falls ever deeper with the cosine",
        PAPER,
        "chosen",
        {"part": "dial", "method": "DPO"},
        "cosine",
        "decreasing",
    ),
    *(
        Number(
            f"cosine {c:g}: change of the chosen response {value:g}",
            DERIVED,
            "chosen",
            at("DPO", c),
            value,
            0.15,
        )
        for c in (0.0, 0.3, 0.6)
        for value in (round(GAP / 2 - GAP**2 / (4 * (1 - c) * DIM), 3),)
    ),
    Number("cosine .6, below the threshold: it rises", DERIVED, "chosen", at("DPO", 0.6), 0.0, 0.0, "at least"),
    Number("cosine .9, beyond the threshold: it falls", DERIVED, "chosen", at("DPO", 0.9), 0.0, 0.0, "at most"),
    Number("cosine .99: both fall in 95 % of draws", PAPER, "both fell", at("DPO", 0.99), 0.95, 0.0, "at least"),
    Number("IPO displaces as DPO does, cosine .95", "own expectation", "chosen", at("IPO", 0.95), 0.0, 0.0, "at most"),
    *(
        Ordering(
            f"RPO of weight {weight:g}: the chosen response ends higher than DPO's, cosine .9",
            "2405.16436",
            "chosen",
            at("DPO", 0.9),
            {"part": "sft", "weight": weight},
        )
        for weight in WEIGHTS
    ),
    Number(
        "RPO of weight .03: the chosen response rises, cosine .9",
        "2405.16436 (own reading)",
        "chosen",
        {"part": "sft", "weight": 0.03},
        0.0,
        0.0,
        "at least",
    ),
    Monotone(
        "the more dimensions, the less displacement", DERIVED, "chosen", {"part": "dimension"}, "dim", "increasing"
    ),
)


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=3, height=2.7)
    left, middle, right = axes[0]
    order = list(METHODS)
    looks = plotting.lines(order)
    for ax, metric in ((left, "chosen"), (middle, "rejected")):
        shown = {"x": "cosine", "where": {"part": "dial"}, "order": order, "looks": looks, "legend": False}
        plotting.curves(ax, frame, metric, "method", **shown)
        ax.set_xlabel("cosine of the pair's features")
        ax.set_ylabel(r"change of $\log\pi$ [nats]")
        ax.set_title(f"{metric} response")
        ax.set_ylim(-12, 4)
    where = {"part": "dimension"}
    plotting.curves(right, frame, "chosen", "method", x="dim", where=where, looks=looks, legend=False)
    d = np.geomspace(6, max(DIMENSIONS), 50)
    right.plot(d, GAP / 2 - GAP**2 / (0.4 * d), color="0.5", linewidth=0.8)
    right.set_xscale("log")
    right.set_xlabel("d, dimensions of the features")
    right.set_ylabel("")
    right.set_title("chosen response, cosine .9")
    for ax in axes[0]:
        ax.axhline(0, color="0.4", linewidth=0.7)
    plotting.legend_above(figure, left)
    return figure


study = Study(
    name="likelihood_displacement",
    title="Likelihood displacement: the margin grows while both responses fall",
    source="2410.08847 as a log-linear bandit; closed forms derived",
    cells=cells,
    claims=claims,
    plot=plot,
    replicates=100,
    smoke_replicates=8,
)
