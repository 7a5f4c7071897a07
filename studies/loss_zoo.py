"""Every preference loss on one pair: the log-ratio gap it asks for, as a function of the win rate p.

No paper draws this figure; each draws its own loss. DPO's objects (2305.18290) are common to all: two actions, a
reference, one pair whose label is its exact win rate p, and the policy that minimises the loss, from which the gap
u = log(pi/pi_ref)(first) - log(pi/pi_ref)(second) is read. Closed forms: section by section from the papers that the
losses' docstrings name (own derivation where a policy must be normalised: the root of one equation in u).

Grid: 31 losses x p = .05, .10, ..., .95 (.5 only where the minimiser is unique there), kl_coef .5, reference (.3, .7),
kl_coef |u| <= 6; the row's own fit (Newton) to one logged duel with the label p. Own parameters stand in `ZOO`. Panels:
(a) logits of p, (b) linear in p, (c) a margin, (d) other links than the logarithm, (e) losses of each response by
itself or with a likelihood term, where the reference matters, (f) majority votes, which have no minimiser. Where no
closed form exists (DiscoPOP, RSPO) the comparison is a search on the same function. Four points are compared with
printed digits (p = .8); the printed 1.334 of NCA with another reference is not, for want of that reference.

Left out: losses that need a third draw or a whole batch (XPO, VPO, SELM, COPO, SE-POPO, DEPO, HyPO, SPAC, AIHF,
SLiC-HF, TDPO2, AOT), those that ignore the label (OSP, SAIL-PP) and SAIL's, which are gradients.

Found: 26 losses are met to 3e-7 or better and the hinge to 9e-6; KTO and APO-zero, and robust DPO outside (eps, 1 -
eps), end at the bound. Two claims fail. DiscoPOP has a second minimum beside u = 0, on the wrong side, and for .15 <= p
<= .85 Newton ends there from all its starts (the reference and the ends of the box): the lowest of several starts is a
local certificate. APO-down ends at the bound, but at p = .55 on the minority's side: a normalised policy cannot lower
both log-ratios, and the reference's likelier response wins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from simbandit import algorithms, plotting
from simbandit.guarantees import Identity, Number
from simbandit.metrics import Snapshot
from simbandit.oracles import PreferenceTable
from simbandit.simulate import Problem
from simbandit.study import Settings, Simulation, Study
from simbandit.worlds import TableWorld
from studies._closed_forms import (
    bco_slope,
    link_slope,
    logit,
    margin_logit,
    minimised,
    nca_slope,
    orpo_slope,
    robust,
    root,
    rpo_slope,
    smoothed,
    sppo_slope,
)

KL, FIRST, BOUND = 0.5, 0.3, 6.0
RATES = tuple(round(0.05 * i, 2) for i in range(1, 20))
Form = Callable[[float, float, float], float]  # (p, kl_coef, pi_ref(first)) -> u


def dpo(p: float, kl: float, q: float) -> float:
    return logit(p) / kl


class Loss(NamedTuple):
    """panel, own parameters, closed form, and how far from it the fit may be."""

    panel: str
    own: Mapping[str, float]
    form: Form
    tolerance: float = 1e-6


def by_root(slope: Callable[..., float], **own: Any) -> Form:
    return partial(root, slope=partial(slope, **own))


def vote(p: float, kl: float, q: float) -> float:
    return math.copysign(BOUND / kl, p - 0.5)


STEP = 1.5
KTO = {"desirable_weight": 1.0, "undesirable_weight": 1.0, "reference_point": 0.0}
LOGITS, LINES, MARGINS, LINKS, POINTS, VOTES = "logit of p", "linear in p", "margin", "other link", "response", "vote"
ZOO: dict[str, Loss] = {
    "dpo": Loss(LOGITS, {}, dpo),
    "wpo": Loss(LOGITS, {}, dpo),
    "gpo_savage": Loss(LOGITS, {}, dpo),
    "gpo_exponential": Loss(LOGITS, {}, lambda p, kl, q: logit(p) / (2 * kl)),
    "cdpo": Loss(LOGITS, {"label_smoothing": 0.2}, partial(smoothed, eps=0.2)),
    "rdpo": Loss(LOGITS, {"label_smoothing": 0.1}, partial(robust, eps=0.1, bound=BOUND)),
    "dno": Loss(LOGITS, {"step_size": STEP}, lambda p, kl, q: STEP * logit(p)),
    "ipo": Loss(LINES, {}, lambda p, kl, q: (2 * p - 1) / (2 * kl)),
    "exo": Loss(LINES, {"label_smoothing": 0.1}, lambda p, kl, q: (2 * p - 1) * math.log(9) / kl),
    "gpo_truncated_quadratic": Loss(LINES, {}, lambda p, kl, q: (2 * p - 1) / kl),
    "inpo": Loss(LINES, {"step_size": STEP}, lambda p, kl, q: STEP * (p - 0.5)),
    "onpo": Loss(LINES, {"step_size": STEP}, lambda p, kl, q: STEP * (p - 0.5)),
    "hinge": Loss(MARGINS, {"rounding": 1e-5}, lambda p, kl, q: float(np.sign(p - 0.5)) / kl, 1e-4),
    "offset_dpo": Loss(MARGINS, {"margin": 0.8}, partial(margin_logit, margin=0.8)),
    "simpo": Loss(MARGINS, {"margin": 0.8}, partial(margin_logit, margin=0.8, reference=False)),
    "discopop": Loss(
        MARGINS, {"temperature": 0.05}, partial(minimised, name="discopop", bound=BOUND, temperature=0.05)
    ),
    "chi_po": Loss(LINKS, {"clip": 8.0, "rounding": 0.0}, by_root(link_slope, link=lambda z: z + math.exp(min(z, 60)))),
    "f_dpo_js": Loss(LINKS, {}, by_root(link_slope, link=lambda z: -float(np.logaddexp(0, -z)))),
    "f_dpo_alpha": Loss(LINKS, {"alpha": 0.5}, by_root(link_slope, link=lambda z: -2 * math.exp(-0.5 * z))),
    "f_dpo_forward_kl": Loss(LINKS, {}, by_root(link_slope, link=lambda z: -math.exp(-z))),
    "bco": Loss(POINTS, {}, by_root(bco_slope)),
    "nca": Loss(POINTS, {}, by_root(nca_slope)),
    "sppo": Loss(POINTS, {"step_size": 1 / KL}, by_root(sppo_slope, step=1 / KL)),
    "rpo": Loss(POINTS, {"sft_weight": 0.2}, by_root(rpo_slope, weight=0.2)),
    "orpo": Loss(POINTS, {"odds_weight": 0.7}, by_root(orpo_slope, weight=0.7)),
    "rspo_reverse_kl": Loss(
        POINTS, {"step_size": 1.0}, partial(minimised, name="rspo_reverse_kl", bound=BOUND, step_size=1.0)
    ),
    "rspo_forward_kl": Loss(
        POINTS, {"step_size": 1.0}, partial(minimised, name="rspo_forward_kl", bound=BOUND, step_size=1.0)
    ),
    "rspo_chi_squared": Loss(
        POINTS, {"step_size": 1.0}, partial(minimised, name="rspo_chi_squared", bound=BOUND, step_size=1.0)
    ),
    "kto": Loss(VOTES, KTO, vote),
    "apo_zero": Loss(VOTES, {}, vote),
    "apo_down": Loss(VOTES, {}, vote),
}
SEARCHED = ("discopop", "rspo_reverse_kl", "rspo_forward_kl", "rspo_chi_squared")
PRINTED = {  # p = .8: name, kl_coef, own parameters, printed gap of log-ratios, with a uniform reference
    "bco": (1.0, {}, 2.091, 5e-4),
    "sppo": (1.0, {"step_size": 1.0}, 0.577, 5e-4),
    "nca": (1.0, {}, 1.386, 5e-4),
    "simpo": (2.5, {"margin": 1.375}, 1.0004, 5e-5),
}

# ------------------------------------------------------------------------------------------------------------- study


def gap(s: Snapshot) -> Tensor | None:
    if s.info.fit_residual is None:  # before the fit
        return None
    ratio = (s.log_probs - s.ref_log_probs)[:, 0]
    return ratio[:, 0] - ratio[:, 1]


def constant(s: Snapshot, value: float) -> Tensor | None:
    return None if s.info.fit_residual is None else torch.full((s.instance.replicates,), value, dtype=torch.float64)


def cell(
    settings: Settings, part: str, name: str, p: float, kl: float, q: float, own: Any, expected: float
) -> Simulation:
    finite = abs(expected) < BOUND / kl
    return Simulation(
        {"part": part, "loss": name, "p": p, "panel": ZOO[name].panel, "finite": finite},
        Problem(TableWorld(np.log([[q, 1 - q]])), PreferenceTable([[0.5, p], [1 - p, 0.5]]), kl),
        algorithms.create("dpo", loss=name, value_range=BOUND, proximal=1e-6 if name == "hinge" else 0.0, **own),
        rounds=1,
        replicates=settings.replicates,
        seed=settings.seed,
        offline=pd.DataFrame({"context": [0], "first": [0], "second": [1], "preferred": [p]}),
        metrics=[("gap", gap), ("expected", partial(constant, value=expected)), "fit_residual"],
        record=[1],
    )


def cells(settings: Settings, tuned: Mapping[str, Any]) -> Sequence[Simulation]:
    del tuned
    grid = []
    for name, loss in ZOO.items():
        for p in (0.2, 0.65, 0.8) if settings.smoke else RATES:
            if p != 0.5 or (name not in ("hinge", "discopop") and loss.panel != VOTES):  # not unique there
                expected = loss.form(p, KL, FIRST)
                grid.append(cell(settings, "zoo", name, p, KL, FIRST, loss.own, expected))
    for name, (kl, own, value, _) in PRINTED.items():
        grid.append(cell(settings, "printed", name, 0.8, kl, 0.5, own, value))
    return grid


claims = (
    *(
        Identity(
            f"{name}: the fit is the {'minimum found by search' if name in SEARCHED else 'closed form'}",
            f"`losses.{name}` and the paper that it names",
            "gap",
            {"part": "zoo", "loss": name, "finite": True},
            loss.tolerance,
            other="expected",
        )
        for name, loss in ZOO.items()
        if loss.panel != VOTES
    ),
    Identity(
        "rdpo: p outside (.1, .9) ends at the bound",
        "derived; 2403.00409",
        "gap",
        {"part": "zoo", "loss": "rdpo", "finite": False},
        1e-9,
        other="expected",
    ),
    *(
        Identity(
            f"{name}: no minimiser, the fit ends at the bound on the majority's side",
            "derived",
            "gap",
            {"part": "zoo", "loss": name},
            1e-9,
            other="expected",
        )
        for name in ("kto", "apo_zero", "apo_down")
    ),
    *(
        Number(
            f"{name}: {value:g} at p = .8, kl_coef {kl:g}, uniform reference",
            "own earlier runs",
            "gap",
            {"part": "printed", "loss": name},
            value,
            tolerance,
            exact=True,
        )
        for name, (kl, _, value, tolerance) in PRINTED.items()
    ),
)


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=3, rows=2, height=2.6)
    titles = {
        LOGITS: "(a) logit of p",
        LINES: "(b) linear in p",
        MARGINS: "(c) a margin",
        LINKS: "(d) other links",
        POINTS: "(e) single responses",
        VOTES: "(f) no minimiser",
    }
    zoo = frame.take(np.flatnonzero((frame["part"] == "zoo").to_numpy()))
    for ax, (panel, title) in zip(axes.flat, titles.items(), strict=True):
        names = [name for name, loss in ZOO.items() if loss.panel == panel]
        for name, look in plotting.lines(names).items():
            rows = zoo.take(np.flatnonzero((zoo["loss"] == name).to_numpy() & (zoo["metric"] == "gap").to_numpy()))
            rows = rows.sort_values("p")
            p = np.linspace(0.03, 0.97, 95) if len(rows) > 4 else rows["p"].to_numpy()
            form = [ZOO[name].form(float(x), KL, FIRST) for x in p]
            ax.plot(
                p,
                np.where(np.abs(p - 0.5) < 1e-9, np.nan, form) if panel == VOTES else form,
                color=look.color,
                linestyle=look.dash,
                linewidth=1.0,
            )
            ax.plot(
                rows["p"],
                rows["value"],
                color=look.color,
                marker=look.marker,
                linestyle="",
                markersize=2.5,
                label=name.replace("_", " "),
            )
        ax.axhline(0, color="0.6", linewidth=0.6)
        ax.set_title(title)
        ax.set_xlabel("win rate p of the first response")
        ax.set_ylabel("log-ratio gap u")
        ax.legend(fontsize=5.5)
    return figure


study = Study(
    name="loss_zoo",
    title="What each preference loss asks for: implied log-ratio gap against the win rate",
    source="the losses' own papers (population minimisers); no paper's figure",
    cells=cells,
    claims=claims,
    plot=plot,
    replicates=1,
    smoke_replicates=1,
)
