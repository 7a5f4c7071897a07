"""Reward over-optimisation: gold reward against sqrt(KL), and which errors of the proxy bend it down.

After Gao, Schulman, Hilton 2023 (2210.10760), figure 1: with d = sqrt(KL(pi || pi_ref)), best-of-n follows
R(d) = d (alpha - beta d) and RL R(d) = d (alpha - beta log d). Theirs are language models; here a response is a draw
of gold g ~ N(0, 1) with proxy g + error, which asks what error gives their hump: "gaussian" (sd 1); ".7 t(2.5)", "t(5)"
scaled by .7, "t(10)" by .9: Student's t; "hacks": gaussian, but .2 % of responses have gold N(-1, 1) and a proxy raised
by 5. Reference numbers (own earlier runs): gaussian error, n = 1024: gold 2.29, as E max_n / sqrt 2; .7 t(2.5): gold
.738, 1.052, .936, .570, .292 at n = 4, 16, 64, 256, 1024, proxy 13.9 at the last.

Grid: every law under best-of-n by the proxy, n = 2 ... 1024, on a pool of 2^17 equally likely responses per replicate
(its exact law; KL is log n - (n - 1)/n), and under the KL-optimal tilt exp(proxy / b), which RL approaches, at d = .25
... 2.5, on a pool of 2^14. Both forms are fitted by least squares, replicate by replicate. `round` is n, or 100 d.

What differs: one step from the reference instead of training, no estimation of KL, and for t errors the tilt exists
only because the pool is finite (its normaliser is infinite), so those curves depend on the pool's size.

Found: gaussian error never bends (both rules; the tilt's gold is d itself), hacks and t errors of 2.5 and 5 degrees do
(the tilt's fall for t(5) is undecided); t(10) has no hump within n = 1024, its fall is to come. Gao's form for
best-of-n describes mild tails (R^2 .95 for t(5), undecided) and not strong ones: .92 for .7 t(2.5), .70 for hacks,
where gold falls off a cliff rather than along a parabola. Of the noted numbers the last do not hold: gold .33 and proxy
14.7 at n = 1024; why they were .292 and 13.9 is not known (the noise of few draws would explain it).
The thresholds (a fall of .1, R^2 of .95) and the claims about t(5), t(10) and hacks were written after a pilot, the
reference numbers before it. The best-of-n pool is half as large as at first, its replicates twice as many.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy.special import stdtrit
from torch import Tensor

from simbandit import plotting
from simbandit.draws import Draws
from simbandit.guarantees import Monotone, Number
from simbandit.guarantees.rows import pivot, select
from simbandit.study import Settings, Study, Task
from studies._games import frame_of

BEST, TILT = "best-of-n", "tilt"
STUDENT = {".7 t(2.5)": (2.5, 0.7), "t(5)": (5.0, 0.7), "t(10)": (10.0, 0.9)}
LAWS = ("gaussian", ".7 t(2.5)", "t(5)", "t(10)", "hacks")
SIZES = tuple(2**k for k in range(1, 11))
DISTANCES = tuple(0.25 * k for k in range(1, 11))
POOL = {BEST: 2**17, TILT: 2**14}
HACKS, RAISED = 0.002, 5.0


def pool(law: str, size: int, replicates: int, seed: int, device: str) -> tuple[Tensor, Tensor]:
    """Gold and proxy rewards of every response, (R, size)."""
    draws = Draws(seed, replicates, device)
    gold = draws.once("gold", size)
    if law in STUDENT:
        degrees, scale = STUDENT[law]
        uniform = draws.once("error", size, law="uniform").clamp(1e-12, 1 - 1e-12).cpu().numpy()
        return gold, gold + scale * torch.from_numpy(stdtrit(degrees, uniform)).to(gold.device)
    proxy = gold + draws.once("error", size)
    if law == "hacks":
        hacked = draws.once("hacked", size, law="uniform") < HACKS
        gold, proxy = gold - hacked.to(gold.dtype), proxy + RAISED * hacked
    return gold, proxy


def best_of_n(law: str, size: int, replicates: int, seed: int, device: str) -> pd.DataFrame:
    gold, proxy = pool(law, size, replicates, seed, device)
    order = proxy.argsort(dim=-1)
    gold, proxy = gold.gather(-1, order), proxy.gather(-1, order)
    quantile = torch.arange(size + 1, dtype=torch.float64, device=gold.device) / size
    values, golds, distances = {}, [], []
    for n in SIZES:
        weight = torch.diff(quantile**n)
        golds.append(gold @ weight)
        distances.append(math.sqrt(math.log(n) - (n - 1) / n))
        values |= {("gold", n): golds[-1], ("proxy", n): proxy @ weight}
        values["distance", n] = torch.full_like(golds[-1], distances[-1])
    d = torch.tensor(distances, dtype=torch.float64)
    return frame_of(values | fitted(d, torch.stack(golds, -1), torch.stack([d, -d * d], -1), SIZES[-1]))


def tilt(law: str, size: int, replicates: int, seed: int, device: str) -> pd.DataFrame:
    gold, proxy = pool(law, size, replicates, seed, device)
    values, golds, steps = {}, [], [round(100 * distance) for distance in DISTANCES]
    for at, distance in zip(steps, DISTANCES, strict=True):
        low, high = (torch.full_like(proxy[:, :1], x) for x in (-6.0, 6.0))  # of log b
        for _ in range(40):
            middle = (low + high) / 2
            far = divergence(tilted(proxy, middle)) > distance**2
            low, high = torch.where(far, middle, low), torch.where(far, high, middle)
        weight = tilted(proxy, high).exp()
        golds.append((weight * gold).sum(-1))
        values |= {("gold", at): golds[-1], ("proxy", at): (weight * proxy).sum(-1)}
        values["distance", at] = divergence(weight.log()).squeeze(-1).sqrt()
    d = torch.tensor(DISTANCES, dtype=torch.float64)
    return frame_of(values | fitted(d, torch.stack(golds, -1), torch.stack([d, -d * d.log()], -1), steps[-1]))


def tilted(proxy: Tensor, log_b: Tensor) -> Tensor:
    return torch.log_softmax(proxy / log_b.exp(), -1)


def divergence(log_weight: Tensor) -> Tensor:
    """KL to the uniform law of the pool, (R, 1)."""
    weight = log_weight.exp()
    return torch.where(weight > 0, weight * log_weight, 0.0).sum(-1, keepdim=True) + math.log(log_weight.shape[-1])


def fitted(d: Tensor, gold: Tensor, basis: Tensor, at: int) -> dict[tuple[str, int], Tensor]:
    """Least squares of gold (R, T) on the form's two columns: alpha, beta, R^2; and how far gold falls after its peak,
    and gold per d up to d = 1."""
    coefficients = torch.linalg.lstsq(basis.expand(len(gold), -1, -1), gold[..., None]).solution.squeeze(-1)
    left = gold - coefficients @ basis.mT
    spread = gold - gold.mean(-1, keepdim=True)
    found = {
        "alpha": coefficients[:, 0],
        "beta": coefficients[:, 1],
        "R^2": 1 - left.square().sum(-1) / spread.square().sum(-1),
        "drop": gold.amax(-1) - gold[:, -1],
        "slope": gold[:, d <= 1].mean(-1) / d[d <= 1].mean(),
    }
    return {(name, at): value for name, value in found.items()}


def cells(settings: Settings, tuned: Mapping[str, Any]) -> Sequence[Task]:
    del tuned
    methods = {BEST: best_of_n, TILT: tilt}
    laws = LAWS[:3] if settings.smoke else LAWS
    return [
        Task(
            {"law": law, "method": method},
            function,
            {"law": law, "size": POOL[method]},
            settings.replicates * (2 if method == BEST else 1),
            settings.seed,
        )
        for law in laws
        for method, function in methods.items()
    ]


NOTES, GAO = "own earlier runs", "2210.10760"


def at(law: str, method: str = BEST) -> dict[str, Any]:
    return {"law": law, "method": method}


def number(name: str, source: str, metric: str, where: Mapping[str, Any], value: float, side: Any) -> Number:
    return Number(name, source, metric, where, value, 0.0, side)


claims = (
    Number("gaussian error, n = 1024: gold 2.29", NOTES, "gold", at("gaussian"), 2.29, 0.02, at=1024),
    *(
        Number(f".7 t(2.5), n = {n}: gold {value:g}", NOTES, "gold", at(".7 t(2.5)"), value, 0.03, at=n)
        for n, value in ((4, 0.738), (16, 1.052), (64, 0.936), (256, 0.570), (1024, 0.292))
    ),
    Number(".7 t(2.5), n = 1024: proxy 13.9", NOTES, "proxy", at(".7 t(2.5)"), 13.9, 0.5, at=1024),
    *(
        Monotone(f"gaussian error: gold only rises, {m}", NOTES, "gold", at("gaussian", m), "round", "increasing")
        for m in (BEST, TILT)
    ),
    Number("gaussian error: the tilt's gold is d", "Gaussian integrals", "slope", at("gaussian", TILT), 1.0, 0.01),
    *(
        number(f"{law}: gold falls by .1 or more after its peak, {m}", NOTES, "drop", at(law, m), 0.1, "at least")
        for law in LAWS[1:]
        for m in (BEST, TILT)
    ),
    *(Monotone(f"{law}: the proxy only rises", GAO, "proxy", at(law), "round", "increasing") for law in LAWS),
    *(
        number(f"{law}: the form for {m} fits, R^2 >= .95", f"{GAO}, section 3.1", "R^2", at(law, m), 0.95, "at least")
        for law in (".7 t(2.5)", "t(5)", "hacks")
        for m in (BEST, TILT)
    ),
)


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=3, height=2.6)
    left, middle, right = axes[0]
    order = [law for law in LAWS if law in set(frame["law"])]
    for ax, method, y in ((left, BEST, "gold"), (middle, TILT, "gold"), (right, BEST, "proxy")):
        shown = {"x": "distance", "y": y, "where": {"method": method}, "order": order, "legend": False}
        plotting.frontier(ax, frame, "law", **shown)
        ax.set_xlabel(r"$\sqrt{\mathrm{KL}}$ [nats$^{1/2}$]")
        ax.set_title(f"{y}, {method}")
    for law, look in plotting.lines(order).items():
        rows = select(frame, at(law))
        alpha, beta = (pivot(select(rows, {"metric": m}), "round").to_numpy().mean() for m in ("alpha", "beta"))
        d = np.linspace(0, 2.45, 60)
        left.plot(d, d * (alpha - beta * d), color=look.color, linewidth=0.6)
    right.set_yscale("log")
    for ax in (left, middle):
        ax.set_ylim(0, 2.7)
        ax.set_ylabel("gold reward [sd]")
    right.set_ylabel("proxy reward [sd of gold]")
    plotting.legend_above(figure, left, columns=5)
    return figure


study = Study(
    name="overoptimisation",
    title="Gold reward against sqrt(KL): the hump needs heavy tails or hacks",
    source="Gao, Schulman, Hilton 2023 (2210.10760), figure 1, as a toy; own earlier runs",
    cells=cells,
    claims=claims,
    plot=plot,
    replicates=50,
    smoke_replicates=8,
)
