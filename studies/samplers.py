"""Samplers in online DPO: quadratic against linear convergence, with exact gradients, and one noise floor without.

Shi et al. 2024 (2409.19605): a softmax table of A responses starts at the reference and takes gradient steps of DPO on
pairs (y, y') of weight w, reward differences being learnt as h(y) - h(y'), h = kl_coef log-ratio. DPO-Unif: w = 4.
DPO-Mix-R: w = 2 + e^D + e^-D, D = r(y) - r(y'), half of it from uniform pairs, half from softmax(r) x softmax(-r).
DPO-Mix-P: the same with D = h(y) - h(y'), not differentiated through. These weights are 1 / sigma'(D): they cancel the
logistic's slope, so that with step 1 / (kl_coef^2 A) the Jacobian vanishes at the solution. Theorems, in
delta = max |r - r' - (h - h')|, rewards within [0, 1]: after T steps delta <= .588^T (Unif, tight up to constants),
.5^(2^T - 1) (Mix-R), .611^(2^T - 1) (Mix-P). The constants are second-hand, we have not read the proofs.

Grid. "theory": that step, A = 5, 20, 100, rewards U[0, 1] stretched to hold 0 and 1, 7 steps, kl_coef .1, 1 and 3.
"repository": the authors' bandit/examples/tabular.py (read): A = 20, kl_coef 3, r ~ N(0, 1), weights divided by their
sum Z, SGD of rate 10, 100 updates, and "cancelling": Mix-R with the rate Z / (2 kl_coef^2 A) that cancels (derived).
"noisy": rate .05, 8,192 pairs per update with Bradley-Terry labels, 3,000 updates; Mix-P* caps the weights at those of
the largest reward gap. `parameter difference` is theirs, (1/A^2) sum |v(y) - v(y')|, v = r - kl_coef log pi.
"row": `online_dpo` of the registry with uniform pairs and one SGD step a round, under exact answers, is DPO-Unif.

Found. The theorems' bounds hold at every draw and size, with room: Unif gains a factor of 8.6 a step, the mixtures
square their error. The repository's numbers are met in the median, but its rate of 10 is not the cancelling step: there
Unif is at the edge of stability (where rewards lie close, a step multiplies the error by 1 - rate kl_coef^2 / (2 A) =
-1.25), and 23 of 200 draws are still above 1e-3 after 100 updates, about half of them oscillating for good, where
earlier runs counted 8. With the cancelling rate Mix-R is at 1e-6 about 10 updates sooner. With sampled pairs all three
end at one floor; Mix-R is there after 1,000 updates, Unif after 3,000. The one-draw table of earlier runs is off by a
factor of 2 to 3 where errors are tiny: its draw was a slow one.

What differs: 200 draws of the rewards (50 with noise) where the authors show one seed. The mixtures are laws of
*pairs*, which players that draw independently cannot express; they are functions here. "Own earlier runs": one draw
of the rewards for the first table and the noisy numbers, medians of 200 for the repository's. After a first run: 3,000
noisy updates (the authors' number) for 1,000, and the claim of a common floor after 3,000.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from simbandit import algorithms, plotting
from simbandit.draws import Draws, generator
from simbandit.guarantees import Identity, Number, Ordering
from simbandit.guarantees.rows import pivot, select
from simbandit.metrics import Snapshot
from simbandit.objective import Descent
from simbandit.oracles import BradleyTerry, FullInformation
from simbandit.simulate import Problem, simulate
from simbandit.study import Settings, Study, Task
from simbandit.worlds import LinearWorld
from studies._games import frame_of

SCHEMES = ("Unif", "Mix-R", "Mix-P")
SIZES, KL_COEFS, STEPS = (5, 20, 100), (1.0, 0.1, 3.0), 7
ACTIONS, KL, RATE, UPDATES = 20, 3.0, 10.0, 100
NOISY = ("Unif", "Mix-R", "Mix-P*")
NOISY_RATE, PAIRS = 0.05, 8192
NORMAL = LinearWorld(
    n_contexts=1, n_actions=ACTIONS, dim=ACTIONS, features="one_hot", theta="gaussian", theta_norm=None
)


def gaps(x: Tensor) -> Tensor:
    """x(y) - x(y'), (R, A, A)."""
    return x[..., :, None] - x[..., None, :]


def weights(scheme: str, r: Tensor, h: Tensor) -> Tensor:
    """(R, A, A): 4, or 1 / sigma' of the gaps of the reward or of the implied reward h."""
    w = 2 + 2 * torch.cosh(gaps({"Unif": torch.zeros_like(h), "Mix-R": r, "cancelling": r}.get(scheme, h)))
    if scheme == "Mix-P*":
        w = w.minimum(2 + 2 * torch.cosh(r.amax(-1) - r.amin(-1))[:, None, None])
    return w


def direction(w: Tensor, r: Tensor, h: Tensor) -> Tensor:
    """sum_y' w (sigma(r gap) - sigma(h gap)), (R, A): the ascent direction, over 2 kl_coef."""
    return (w * (torch.sigmoid(gaps(r)) - torch.sigmoid(gaps(h)))).sum(-1)


def worst_gap(r: Tensor, h: Tensor) -> Tensor:
    return (r - h).amax(-1) - (r - h).amin(-1)


def theory(scheme: str, n_actions: int, replicates: int, seed: int, device: str) -> pd.DataFrame:
    r = Draws(seed, replicates, device).once("rewards", n_actions, law="uniform")
    r = (r - r.amin(-1, keepdim=True)) / (r.amax(-1, keepdim=True) - r.amin(-1, keepdim=True))
    values: dict[tuple[str, int], Tensor] = {}
    paths = []
    for kl_coef in KL_COEFS:
        theta, path = torch.zeros_like(r), []
        for _ in range(STEPS + 1):
            path.append(worst_gap(r, kl_coef * theta))
            theta = theta + direction(weights(scheme, r, kl_coef * theta), r, kl_coef * theta) / (kl_coef * n_actions)
        paths.append(torch.stack(path))
    delta = paths[0]
    steps = torch.arange(STEPS + 1)
    bound = {"Unif": 0.588**steps, "Mix-R": 0.5 ** (2.0**steps - 1), "Mix-P": 0.611 ** (2.0**steps - 1)}[scheme]
    for t in range(STEPS + 1):
        values["delta", t] = delta[t]
        values["log10 delta", t] = delta[t].clamp_min(1e-17).log10()
        values["excess over the bound", t] = (delta[t] - bound[t] - 1e-12).clamp_min(0.0)
        values["spread over kl_coef", t] = (torch.stack(paths)[:, t] - delta[t]).abs().amax(0)
    values["steps to 1e-6", STEPS] = (delta > 1e-6).sum(0).to(r.dtype)
    values["order", STEPS] = delta[3].log() / delta[2].log()
    values["drift of the ratio", STEPS] = (delta[6] / delta[5]) / (delta[3] / delta[2])
    return frame_of(values)


def normal_rewards(replicates: int, seed: int, device: str) -> Tensor:
    instance = NORMAL.instance(replicates, Draws(seed, replicates, device))
    return instance.rewards(instance.evaluation)[:, 0]


def parameter_difference(r: Tensor, h: Tensor) -> Tensor:
    return gaps(r - h).abs().mean((-1, -2))


def repository(scheme: str, replicates: int, seed: int, device: str) -> pd.DataFrame:
    r = normal_rewards(replicates, seed, device)
    theta, path = torch.zeros_like(r), []
    for _ in range(UPDATES + 1):
        path.append(parameter_difference(r, KL * theta))
        w = weights(scheme, r, KL * theta)
        total = w.sum((-1, -2))[:, None]
        rate = total / (2 * KL**2 * ACTIONS) if scheme == "cancelling" else RATE
        theta = theta + rate * 2 * KL / total * direction(w, r, KL * theta)
    found = torch.stack(path).nan_to_num(torch.inf, torch.inf)
    values: dict[tuple[str, int], Tensor] = {("parameter difference", t): found[t] for t in range(UPDATES + 1)}
    values["stuck", UPDATES] = (found[-1] > 1e-3).to(r.dtype)
    values["updates to 1e-6", UPDATES] = (found > 1e-6).to(r.dtype).cumprod(0).sum(0)
    for t, stated in zip(SHOWN, MEDIANS.get(scheme, ()), strict=False):
        values["below the stated median", t] = (found[t] < stated).to(r.dtype)
    return frame_of(values)


def noisy(scheme: str, updates: int, replicates: int, seed: int, device: str) -> pd.DataFrame:
    """Counts of the 400 pairs, and of the first one's wins, are drawn in place of 8,192 pairs."""
    r = normal_rewards(replicates, seed, device)
    draws = [generator(seed, i, "samplers/noisy") for i in range(replicates)]
    truth = torch.sigmoid(gaps(r)).flatten(1).numpy()
    theta, values = torch.zeros_like(r), {}
    for t in range(updates + 1):
        if t % 25 == 0:
            values["parameter difference", t] = parameter_difference(r, KL * theta)
        law = weights(scheme, r, KL * theta).flatten(1)
        law = (law / law.sum(-1, keepdim=True)).numpy()
        counts = [g.multinomial(PAIRS, p) for g, p in zip(draws, law, strict=True)]
        wins = [g.binomial(n, p) for g, n, p in zip(draws, counts, truth, strict=True)]
        seen, won = (torch.from_numpy(np.stack(x)).to(r.dtype).view(-1, ACTIONS, ACTIONS) for x in (counts, wins))
        error = won - seen * torch.sigmoid(gaps(KL * theta))
        theta = theta + NOISY_RATE * KL / PAIRS * (error.sum(-1) - error.sum(-2))
    return frame_of(values)


def _parameter_difference(s: Snapshot) -> Tensor:
    return parameter_difference(s.rewards[:, 0], s.kl_coef * (s.log_probs - s.ref_log_probs)[:, 0])


def row(replicates: int, seed: int, device: str) -> pd.DataFrame:
    """DPO-Unif of `repository`, and as a row of the registry on the same rewards."""
    uniform = algorithms.create(
        "online_dpo",
        players=("uniform", "uniform"),
        data="fresh",
        proximal=0.0,
        descent=Descent(1, RATE, optimiser="sgd"),
    )
    problem = Problem(NORMAL, FullInformation(BradleyTerry()), KL)
    asked = [("parameter difference", _parameter_difference)]
    arguments: dict[str, Any] = {"replicates": replicates, "seed": seed, "device": device, "policy": "tabular"}
    found = simulate(problem, uniform, rounds=20, metrics=asked, **arguments).frame()
    own = repository("Unif", replicates, seed, device).query("metric == 'parameter difference' and round <= 20")
    both = [found.assign(metric="row"), own.assign(metric="own")]
    return pd.concat(both, ignore_index=True).assign(queries=0.0)


def cells(settings: Settings, tuned: Mapping[str, Any]) -> list[Task]:
    del tuned  # every step is given
    many, seed = settings.replicates, settings.seed
    few = max(4, many // 4)
    grid = [
        Task({"part": "theory", "scheme": s, "actions": a}, theory, {"scheme": s, "n_actions": a}, many, seed)
        for s in SCHEMES
        for a in (SIZES[:2] if settings.smoke else SIZES)
    ]
    grid += [
        Task({"part": "repository", "scheme": s}, repository, {"scheme": s}, many, seed)
        for s in (*SCHEMES, "cancelling")
    ]
    updates = 100 if settings.smoke else 3000
    grid += [Task({"part": "noisy", "scheme": s}, noisy, {"scheme": s, "updates": updates}, few, seed) for s in NOISY]
    return [*grid, Task({"part": "row", "scheme": "Unif"}, row, {}, few, seed)]


PAPER, NOTES, DERIVED = "2409.19605", "own earlier runs", "derived"
TABLE = {  # max |delta| after 1, 2, ... steps, A = 20, one draw
    "Unif": (4.8e-2, 6.2e-3, 8.1e-4, 1.1e-4, 1.4e-5, 1.8e-6),
    "Mix-R": (1.1e-1, 1.6e-3, 3.4e-7),
    "Mix-P": (4.8e-2, 3.1e-4, 1.2e-8),
}
SHOWN = (1, 3, 10, 20)
MEDIANS = {
    "Unif": (0.74, 0.072, 3.9e-3, 5.9e-4),
    "Mix-R": (1.9, 0.44, 3.6e-4, 1.6e-8),
    "Mix-P": (0.74, 0.037, 2.3e-5, 7.7e-10),
}
THEORY, REPOSITORY = {"part": "theory", "actions": 20}, {"part": "repository"}


def number(name: str, metric: str, where: Mapping[str, Any], value: float, tolerance: float, **more: Any) -> Number:
    return Number(name, more.pop("source", NOTES), metric, where, value, tolerance, **more)


def ahead(name: str, smaller: str, larger: str, part: str, metric: str, **more: Any) -> Ordering:
    """`smaller` and `larger` are schemes."""
    sides = {"scheme": smaller}, {"scheme": larger}
    return Ordering(name, more.pop("source", NOTES), metric, *sides, {"part": part}, **more)


SIDE, ERROR = "scheme", "parameter difference"
claims = (
    *(
        Identity(
            f"{s}, A = {a}: below the theorem's bound at every step",
            PAPER,
            "excess over the bound",
            {"part": "theory", "scheme": s, "actions": a},
            0.0,
        )
        for s in SCHEMES
        for a in SIZES
    ),
    *(
        Identity(f"{s}: the same path at kl_coef .1, 1, 3", NOTES, "spread over kl_coef", THEORY | {SIDE: s}, 1e-9)
        for s in SCHEMES
    ),
    *(
        number(
            f"{s}: the error's logarithm at least doubles, step 2 to 3",
            "order",
            THEORY | {SIDE: s},
            2.0,
            0.0,
            sense="at least",
            source=PAPER,
        )
        for s in SCHEMES[1:]
    ),
    number(
        "Unif: the ratio of successive errors settles (linear)",
        "drift of the ratio",
        THEORY | {SIDE: "Unif"},
        1.0,
        0.2,
        source=PAPER,
    ),
    *(
        number(f"{s}: {stated:g} steps to 1e-6", "steps to 1e-6", THEORY | {SIDE: s}, stated, tolerance)
        for s, stated, tolerance in (("Unif", 5.96, 0.25), ("Mix-R", 3, 0), ("Mix-P", 3, 0))
    ),
    *(
        number(
            f"{s}: delta {stated:g} after {t} steps (within a factor 2)",
            "log10 delta",
            THEORY | {SIDE: s},
            math.log10(stated),
            math.log10(2),
            at=t,
        )
        for s, column in TABLE.items()
        for t, stated in enumerate(column, 1)
    ),
    *(
        number(
            f"repository, {s}: median {stated:g} after {t} updates",
            "below the stated median",
            REPOSITORY | {SIDE: s},
            0.5,
            0.15,
            at=t,
        )
        for s, column in MEDIANS.items()
        for t, stated in zip(SHOWN, column, strict=True)
    ),
    *(
        number(f"repository, {s}: {stated:.0%} of draws do not converge", "stuck", REPOSITORY | {SIDE: s}, stated, 0.05)
        for s, stated in (("Unif", 0.04), ("Mix-R", 0.0), ("Mix-P", 0.01))
    ),
    ahead(
        "Mix-R needs fewer updates to 1e-6 with the cancelling rate than with 10",
        "cancelling",
        "Mix-R",
        "repository",
        "updates to 1e-6",
        source=DERIVED,
    ),
    *(
        number(f"noisy, {s}: the floor is 5.3e-3 to 6.1e-3", ERROR, {"part": "noisy", SIDE: s}, 5.7e-3, 0.4e-3, at=1000)
        for s in NOISY
    ),
    ahead(
        "noisy: a common floor, Unif's after 3,000 updates within a quarter of Mix-R's",
        "Unif",
        "Mix-R",
        "noisy",
        ERROR,
        factor=0.8,
    ),
    *(
        ahead(f"noisy, after 300 updates: {a} ahead of {b}", a, b, "noisy", ERROR, at=300)
        for a, b in (("Mix-R", "Mix-P*"), ("Mix-P*", "Unif"))
    ),
    Identity("the registry's row with uniform pairs is DPO-Unif", DERIVED, "row", {"part": "row"}, 1e-9, "own"),
)


def medians(ax: Axes, frame: pd.DataFrame, metric: str, where: Mapping[str, Any], looks: Mapping[str, Any]) -> None:
    """Median over the draws, with the band of their middle 80 %."""
    with plotting.style():
        for scheme, look in looks.items():
            table = pivot(select(frame, {**where, "scheme": scheme, "metric": metric}), "round")
            at, values = table.columns.to_numpy(), table.to_numpy().clip(1e-17)
            low, middle, high = np.quantile(values, (0.1, 0.5, 0.9), axis=0, method="lower")
            ax.plot(at, middle, color=look.color, linestyle=look.dash, label=scheme)
            ax.fill_between(at, low, high, color=look.color, alpha=0.15, linewidth=0)
        ax.set_yscale("log")


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=3, height=2.6)
    looks = plotting.lines([*SCHEMES, "cancelling", "Mix-P*"])
    chosen = {s: looks[s] for s in SCHEMES}
    shown = ("delta", "parameter difference", "parameter difference")
    wheres = (THEORY, REPOSITORY, {"part": "noisy"})
    sets = (chosen, {**chosen, "cancelling": looks["cancelling"]}, {s: looks[s] for s in NOISY})
    for ax, metric, where, lines in zip(axes[0], shown, wheres, sets, strict=True):
        medians(ax, frame, metric, where, lines)
    titles = ("(a) the theory's step", "(b) the repository, exact", "(c) the repository, noisy")
    for ax, title, name in zip(
        axes[0], titles, ("largest error of a reward gap", *["parameter difference"] * 2), strict=True
    ):
        ax.set_title(title)
        ax.set_xlabel("updates")
        ax.set_ylabel(f"{name}\n(lower is better)")
    axes[0, 0].set_ylim(1e-17, 3)
    axes[0, 1].set_ylim(1e-17, 10)
    with plotting.style():
        handles = {label: h for ax in axes[0] for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=5)
    return figure


study = Study(
    name="samplers",
    title="Samplers in online DPO: quadratic against linear convergence",
    source="Shi et al. 2024 (2409.19605), theorems and numerical simulation",
    cells=cells,
    claims=claims,
    plot=plot,
    replicates=200,
    smoke_replicates=16,
)
