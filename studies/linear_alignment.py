"""Linear Alignment is an extrapolated tilt: RLHF without training, of whatever the principle's shift rewards.

Linear Alignment (2401.11458) answers from logits (1 + lambda) l(y | x, principle) - lambda l(y | x): pi' proportional
to pi (pi_p / pi)^(1 + lambda). If the principle tilts, pi_p proportional to pi exp(s / b), this is RLHF of s with
kl_coef b / (1 + lambda) exactly (derived). In the package it is the player Tilt(1 + lambda, -lambda), with pi_p for the
current policy and pi for the reference. No figure of the paper is reproduced: its experiments are language models'; the
released code has lambda = 3 at temperature .5.

Grid. `arms`: pi = (.5, .3, .2), pi_p = (.2, .5, .3): lambda = 1 gives (.059, .611, .330) and 3 (.004, .693, .303) (own
earlier runs). `tilt`: 30 arms, softmax(N(0, 1)) references, normal s: distance to the closed form. `pool`: 4,096
equally likely responses of gold reward g ~ N(0, 1), s = g + error, b = 2, lambda = 0 ... 30: expected gold, win rate
against pi, KL. Errors: none; gaussian (sd 1); heavy (.7 t(2.5)); hacks (gaussian, but .2 % of responses have gold
N(-1, 1) and a score raised by 5). `best`: the lambda in [0, 8] (steps of .05) that is best for J = E g - .5 KL:
b / .5 - 1 = 3 without error; with gaussian error of variance v 4 / (1 + v) - 1 = 1 (derived, large pools).

Found: the closed forms hold. Gaussian error costs nothing up to lambda = 3 and never turns the curve; hacks do: gold is
best (.77) near lambda = 1 and .25 from 8 on. With heavy error there is nothing left to lose: already at lambda = 0 most
mass is on the response of largest error, gold stays between .31 and .39 (the claim that it falls is not true) and the
win rate near 61 %. The best lambda under gaussian error, 1.13, is undecided (J is flat there in a finite pool).

What differs: the paper's principle is a prompt; here its shift is a reward with an error that nobody checks. The
temperature and the candidate filter of the released code are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy.special import stdtrit
from torch import Tensor

from simbandit import plotting
from simbandit.algorithms.players import Cast, Tilt, policy_of
from simbandit.draws import Draws
from simbandit.guarantees import Identity, Monotone, Number, Ordering
from simbandit.metrics import kl
from simbandit.policies import Tabular, gibbs, normalise
from simbandit.study import Settings, Study, Task
from simbandit.types import Contexts
from studies._games import frame_of

ERRORS = ("none", "gaussian", "heavy", "hacks")
LAMBDAS = (0.0, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 15.0, 30.0)
POOL, SHARPNESS, KL = 4096, 2.0, 0.5
ARMS = {1.0: (0.059, 0.611, 0.330), 3.0: (0.004, 0.693, 0.303)}


def extrapolated(principled: Tensor, base: Tensor, strength: float) -> Tensor:
    """The player Tilt(1 + lambda, -lambda) on tables (R, A)."""
    index = torch.zeros(len(base), 1, dtype=torch.int64, device=base.device)
    contexts = Contexts(index=index, ref_log_probs=base[:, None])
    current, reference = Tabular(principled[:, None]), Tabular(base[:, None])
    player = policy_of(Tilt(1 + strength, -strength), Cast(current, current, reference, {}))
    return player.log_probs(contexts)[:, 0]


def arms(strength: float, replicates: int, seed: int, device: str) -> pd.DataFrame:
    del replicates, seed
    base, principled = (
        torch.tensor([p], dtype=torch.float64, device=device).log() for p in ((0.5, 0.3, 0.2), (0.2, 0.5, 0.3))
    )
    law = extrapolated(principled, base, strength).exp()
    noted = torch.tensor([ARMS[strength]], dtype=torch.float64, device=device)
    return frame_of({("distance to the noted law", 0): (law - noted).abs().amax(-1)})


def tilt(strength: float, replicates: int, seed: int, device: str) -> pd.DataFrame:
    draws = Draws(seed, replicates, device)
    base, s = normalise(draws.once("reference", 30)), draws.once("score", 30)
    law = extrapolated(gibbs(s, base, SHARPNESS), base, strength)
    closed = gibbs(s, base, SHARPNESS / (1 + strength))
    return frame_of({("distance to RLHF", 0): (law.exp() - closed.exp()).abs().amax(-1)})


def responses(error: str, replicates: int, seed: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Uniform log-probabilities, gold reward and the principle's score of a pool, (R, POOL)."""
    draws = Draws(seed, replicates, device)
    gold = draws.once("gold", POOL)
    score = gold
    if error in ("gaussian", "hacks"):
        score = gold + draws.once("error", POOL)
    elif error == "heavy":
        uniform = draws.once("error", POOL, law="uniform").clamp(1e-12, 1 - 1e-12).cpu().numpy()
        score = gold + 0.7 * torch.from_numpy(stdtrit(2.5, uniform)).to(gold.device)
    if error == "hacks":
        hacked = (draws.once("hacked", POOL, law="uniform") < 0.002).to(gold.dtype)
        gold, score = gold - hacked, score + 5 * hacked
    return normalise(torch.zeros_like(gold)), gold, score


def pool(error: str, strength: float, replicates: int, seed: int, device: str) -> pd.DataFrame:
    base, gold, score = responses(error, replicates, seed, device)
    law = extrapolated(gibbs(score, base, SHARPNESS), base, strength)
    rank = gold.argsort(-1).argsort(-1).to(gold.dtype)
    values = {
        "gold": (law.exp() * gold).sum(-1),
        "win_rate": (law.exp() * (rank + 0.5) / POOL).sum(-1),
        "kl_to_ref": kl(law, base),
    }
    return frame_of({(name, 0): value for name, value in values.items()})


def best(error: str, replicates: int, seed: int, device: str) -> pd.DataFrame:
    base, gold, score = responses(error, replicates, seed, device)
    grid = [0.05 * i for i in range(161)]
    worth = []
    for strength in grid:
        law = gibbs(score, base, SHARPNESS / (1 + strength))
        worth.append((law.exp() * gold).sum(-1) - KL * kl(law, base))
    top = torch.stack(worth).argmax(0)
    return frame_of({("best lambda", 0): torch.tensor(grid, dtype=torch.float64)[top.cpu()]})


def cells(settings: Settings, tuned: Mapping[str, Any]) -> Sequence[Task]:
    del tuned
    grid: list[tuple[dict[str, Any], Any, dict[str, Any], int]] = []
    lambdas = LAMBDAS[::2] if settings.smoke else LAMBDAS
    grid += [({"part": "arms", "lambda": x}, arms, {"strength": x}, 1) for x in ARMS]
    grid += [({"part": "tilt", "lambda": x}, tilt, {"strength": x}, settings.replicates) for x in lambdas]
    for error in ERRORS:
        for x in lambdas:
            labels = {"part": "pool", "error": error, "lambda": x, "tilt": 1 + x}
            grid.append((labels, pool, {"error": error, "strength": x}, settings.replicates))
        if error in ("none", "gaussian"):
            grid.append(({"part": "best", "error": error}, best, {"error": error}, settings.replicates))
    return [Task(labels, function, own, r, settings.seed) for labels, function, own, r in grid]


NOTES = "own earlier runs"


def at(error: str) -> dict[str, Any]:
    return {"part": "pool", "error": error}


claims = (
    *(
        Identity(f"lambda = {x:g}: {law}", NOTES, "distance to the noted law", {"part": "arms", "lambda": x}, 5.1e-4)
        for x, law in ARMS.items()
    ),
    Identity("the extrapolation is RLHF at b / (1 + lambda)", "derived", "distance to RLHF", {"part": "tilt"}, 1e-12),
    Number(
        "no error: lambda = b / kl_coef - 1 = 3 is best",
        "derived",
        "best lambda",
        {"part": "best", "error": "none"},
        3.0,
        0.05,
    ),
    Number(
        "gaussian error: lambda = 1 is best", "derived", "best lambda", {"part": "best", "error": "gaussian"}, 1.0, 0.1
    ),
    *(
        Monotone(f"{error} error: gold only rises with lambda", NOTES, "gold", at(error), "lambda", "increasing")
        for error in ("none", "gaussian")
    ),
    Monotone("no error: win rate only rises with lambda", NOTES, "win_rate", at("none"), "lambda", "increasing"),
    Monotone(
        "heavy error: gold only falls from lambda = 0 on",
        "own expectation",
        "gold",
        at("heavy"),
        "lambda",
        "decreasing",
    ),
    Ordering(
        "hacks: lambda = 8 is worse than lambda = 1",
        NOTES,
        "gold",
        {**at("hacks"), "lambda": 8.0},
        {**at("hacks"), "lambda": 1.0},
    ),
    Number(
        "heavy error: the released lambda = 3 wins less than 60 %",
        "own expectation",
        "win_rate",
        {**at("heavy"), "lambda": 3.0},
        0.6,
        0.0,
        "at most",
    ),
    Number(
        "no error: the released lambda = 3 wins more than 90 %",
        "own expectation",
        "win_rate",
        {**at("none"), "lambda": 3.0},
        0.9,
        0.0,
        "at least",
    ),
)


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=3, height=2.6)
    looks = plotting.lines(ERRORS)
    shown = {"order": list(ERRORS), "looks": looks, "legend": False, "where": {"part": "pool"}}
    for ax, metric, text in zip(
        axes[0],
        ("gold", "win_rate", "kl_to_ref"),
        ("gold reward [sd]", "win rate against the base", "KL to the base [nats]"),
        strict=True,
    ):
        plotting.curves(ax, frame, metric, "error", x="tilt", **shown)
        ax.set_xscale("log", base=2)
        ax.set_xlabel(r"$1+\lambda$")
        ax.set_ylabel(text)
    axes[0, 0].axvline(4, color="0.5", linewidth=0.8)
    axes[0, 0].text(4.2, 0.02, "released", color="0.4", fontsize=7, transform=axes[0, 0].get_xaxis_transform())
    plotting.legend_above(figure, axes[0, 0])
    return figure


study = Study(
    name="linear_alignment",
    title="Linear Alignment: an extrapolated tilt, its closed form, and over-optimisation over lambda",
    source="2401.11458 as a bandit; own earlier runs",
    cells=cells,
    claims=claims,
    plot=plot,
    replicates=64,
    smoke_replicates=8,
)
