"""Which task to learn from: transfer distance against variance, and schedulers that do not know either.

On the statistical benefits of curriculum learning (2111.07126) is theory; no figure is reproduced. Linear regression
Y = <X, theta_t> + N(0, sigma_t^2), X ~ N(0, I_d), N samples to spend on T tasks, the last of which is the target;
risk = |estimate - theta_T|^2, Q_t = |theta_t - theta_T|. Claims of the paper (read in summary, constants unknown):
*unstructured*: with Q known the risk is of order min_t Q_t^2 + d sigma_t^2 / N; not knowing it costs an unavoidable
sigma_T^2 log(T) / N; *structured*, theta_t = B beta_t of rank k: what counts is diversity, lambda_k of the sum of
beta beta' over the samples, which an optimistic scheduler brings near its best; a scheduler that is greedy in the exact
prediction gain of SGD meets the bound. Numbers: own earlier runs, d = 20, N = 200, risk of least squares
Q^2 + d sigma^2 / (N - d - 1) = 1.006 (target alone, sigma 3), .118 (near and clean: .3, .5), 4.001 (far and clean: 2,
.1), .457 (near and noisy: .1, 2).

Grid. `single`: least squares on one of the four tasks, N = 50 ... 3,200. `gain`: the greedy scheduler on the same four,
steps 2 / (t + 4 d), average of the last half. `selection`: T - 1 sources known exactly, one of them the target, the
others c sigma_T sqrt(log T / N) away, chosen by their loss on N = 200 samples of the target; the worst c of .5 ... 3.
`diversity`: d = 8, k = 2, T = 8 tasks of unit norm, one of which alone has any of the second direction; tasks by turns
("uniform") or optimistically (largest |<estimate, weakest direction>| + sigma sqrt(d / n_t)); lambda_k relative to the
greedy schedule that knows the tasks, up to N = 2,048 = 16 d k T.
`probes`: preferences in place of labels, Bradley-Terry with slope s_t, the MLE of N = 4,000 probes against
Q^2 + d / (N s^2 E sigma'(gap)) (derived, for gaps that are not large).

Found: all holds but one. Choosing among T costs more than in proportion to log T at these T (4 to 1,024): an exponent
of 1.65, from 1.0 log T at T = 4 to 3.1 log T at 1,024, because the largest of few normal numbers is far below
sqrt(2 log T). The greedy scheduler follows the lower envelope of the single tasks.

What differs: the optimistic scheduler is the natural linear one, not the paper's; selection is by empirical loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import normalize

from simbandit import plotting
from simbandit.draws import Draws
from simbandit.estimators import logistic_mle
from simbandit.guarantees import Exponent, Number, Ordering
from simbandit.study import Settings, Study, Task
from studies._games import frame_of

DIM, SAMPLES = 20, 200
TASKS = {"target": (0.0, 3.0), "near, clean": (0.3, 0.5), "far, clean": (2.0, 0.1), "near, noisy": (0.1, 2.0)}
NOTED = {"target": 1.006, "near, clean": 0.118, "far, clean": 4.001, "near, noisy": 0.457}
PROBES = {"target": (0.0, 0.2), "near, sharp": (0.3, 2.0), "far, sharp": (1.5, 2.0), "near, blunt": (0.1, 0.5)}
BUDGETS = (50, 100, 200, 400, 800, 1600, 3200)
COUNTS = (4, 16, 64, 256, 1024)
SCALES = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
HORIZONS = (256, 512, 1024, 2048)


def single(distance: float, sigma: float, n: int, replicates: int, seed: int, device: str) -> pd.DataFrame:
    """Least squares on one task; the target at the origin, the task in the first direction."""
    draws = Draws(seed, replicates, device)
    x, noise = draws.once("x", n, DIM), draws.once("noise", n)
    y = distance * x[..., 0] + sigma * noise
    found = torch.linalg.solve(x.mT @ x, (x.mT @ y[..., None])).squeeze(-1)
    return frame_of({("risk", n): found.square().sum(-1)})


def gain(n: int, replicates: int, seed: int, device: str) -> pd.DataFrame:
    """SGD from distance 1, every step on the task of largest exact expected decrease of the target's risk."""
    draws = Draws(seed, replicates, device)
    w = normalize(draws.once("start", DIM), dim=-1)
    q, sigma = (
        torch.tensor(column, dtype=torch.float64, device=device) for column in zip(*TASKS.values(), strict=True)
    )
    centre = q[:, None] * torch.eye(len(TASKS), DIM, dtype=torch.float64, device=device)
    replicate, average, kept = torch.arange(replicates), torch.zeros_like(w), 0
    for t in range(n):
        now = draws.at(t)
        step = 2 / (t + 4 * DIM)
        away = w[:, None] - centre
        curve = (DIM + 2) * away.square().sum(-1) + DIM * sigma**2
        chosen = (step**2 * curve - 2 * step * (away * w[:, None]).sum(-1)).argmin(-1)
        x, noise = now.normal("x", DIM), now.normal("noise")
        error = (x * away[replicate, chosen]).sum(-1) - sigma[chosen] * noise
        w = w - step * error[:, None] * x
        if t >= n // 2:
            average, kept = average + w, kept + 1
    risk = (average / kept).square().sum(-1)
    return frame_of({("risk", n): risk, ("ratio", n): risk / float((q**2 + DIM * sigma**2 / n).min())})


def selection(n_tasks: int, scales: Sequence[float], replicates: int, seed: int, device: str) -> pd.DataFrame:
    """Risk of the source with the smallest loss on the target's samples, over sigma_T^2 / N: the worst distance."""
    draws, sigma = Draws(seed, replicates, device), 1.0
    x, noise = draws.once("x", SAMPLES, DIM), draws.once("noise", SAMPLES)
    away = normalize(draws.once(f"tasks {n_tasks}", n_tasks - 1, DIM), dim=-1)
    away[:, 0] = 0.0  # the source that is the target
    signal = x @ away.mT
    risks = []
    for c in scales:
        size = c * sigma * math.sqrt(math.log(n_tasks) / SAMPLES)
        loss = (noise[..., None] * sigma - size * signal).square().mean(1)
        risks.append(away.square().sum(-1).gather(-1, loss.argmin(-1, keepdim=True)).squeeze(-1) * size**2)
    worst = torch.stack(risks)[torch.stack(risks).mean(-1).argmax()]
    return frame_of({("extra", SAMPLES): worst * SAMPLES / sigma**2})


def diversity(scheduler: str, replicates: int, seed: int, device: str) -> pd.DataFrame:
    """lambda_k of the samples' theta theta', relative to the greedy schedule that knows the tasks ("oracle" is 1)."""
    dim, rank, n_tasks, sigma = 8, 2, 8, 0.5
    draws = Draws(seed, replicates, device)
    basis = torch.linalg.qr(draws.once("basis", dim, rank)).Q
    beta = draws.once("tasks", n_tasks, rank)
    beta[:, 1:, -1] = 0.0
    theta = normalize(beta, dim=-1) @ basis.mT
    replicate, values = torch.arange(replicates), {}
    gram = 1e-6 * torch.eye(dim, dtype=torch.float64, device=device).repeat(replicates, n_tasks, 1, 1)
    moment, count = torch.zeros_like(theta), torch.zeros_like(theta[..., 0])
    best = count.clone()  # what knowing theta would have done
    for t in range(HORIZONS[-1]):
        best[replicate, weakest(theta, best, rank)[1].abs().argmax(-1)] += 1
        chosen = torch.full_like(replicate, t % n_tasks)
        if scheduler == "optimistic" and t >= 2 * dim * n_tasks:
            estimate = torch.linalg.solve(gram, moment[..., None]).squeeze(-1)
            radius = sigma * (dim / count).sqrt()
            chosen = (weakest(estimate, count, rank)[1].abs() + radius).argmax(-1)
        now = draws.at(t)
        x = now.normal("x", dim)
        y = (x * theta[replicate, chosen]).sum(-1) + sigma * now.normal("noise")
        count[replicate, chosen] += 1
        gram[replicate, chosen] += x[:, :, None] * x[:, None, :]
        moment[replicate, chosen] += x * y[:, None]
        if t + 1 in HORIZONS:
            values["diversity", t + 1] = weakest(theta, count, rank)[0] / weakest(theta, best, rank)[0]
    return frame_of(values)


def weakest(theta: Tensor, count: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """lambda_k of sum_t count_t theta_t theta_t', and every task's coordinate along its eigenvector, (R, T)."""
    values, vectors = torch.linalg.eigh(torch.einsum("rt,rtd,rte->rde", count + 1e-3, theta, theta))
    return values[:, -rank], torch.einsum("rtd,rd->rt", theta, vectors[..., -rank])


def probes(distance: float, slope: float, n: int, replicates: int, seed: int, device: str) -> pd.DataFrame:
    """The MLE of a task's reward from Bradley-Terry probes of differences z ~ N(0, I), and the derived risk.

    The target's reward is of norm 1; the task's differs from it by `distance` in a direction of its own."""
    draws = Draws(seed, replicates, device)
    z, u = draws.once("z", n, DIM), draws.once("label", n, law="uniform")
    theta = torch.zeros(DIM, dtype=torch.float64, device=device)
    theta[0], theta[1] = 1.0, distance
    gap = slope * (z @ theta)
    wins = (u < torch.sigmoid(gap)).to(torch.float64)
    found = logistic_mle(slope * z, wins, torch.ones_like(wins)).theta
    theta[1] = 0.0
    information = (torch.sigmoid(gap) * torch.sigmoid(-gap)).mean(-1)
    risk, derived = (found - theta).square().sum(-1), distance**2 + DIM / (n * slope**2 * information)
    return frame_of({("risk", n): risk, ("ratio", n): risk / derived})


def cells(settings: Settings, tuned: Mapping[str, Any]) -> Sequence[Task]:
    del tuned
    grid: list[tuple[dict[str, Any], Any, dict[str, Any], int]] = []
    for n in BUDGETS[1:4] if settings.smoke else BUDGETS:
        for name, (distance, sigma) in TASKS.items():
            grid.append(
                (
                    {"part": "single", "method": name, "n": n},
                    single,
                    {"distance": distance, "sigma": sigma, "n": n},
                    settings.replicates * (1 if settings.smoke else max(1, 3200 // n)),
                )
            )
        grid.append(({"part": "gain", "method": "prediction gain", "n": n}, gain, {"n": n}, settings.replicates))
    for count in COUNTS[:3] if settings.smoke else COUNTS:
        labels = {"part": "selection", "tasks": count, "log_tasks": math.log(count)}
        grid.append((labels, selection, {"n_tasks": count, "scales": SCALES}, settings.replicates))
    if not settings.smoke:
        grid += [
            ({"part": "diversity", "method": name}, diversity, {"scheduler": name}, settings.replicates)
            for name in ("uniform", "optimistic")
        ]
    for name, (distance, slope) in PROBES.items():
        own = {"distance": distance, "slope": slope, "n": 4000}
        grid.append(
            ({"part": "probes", "method": name}, probes, own, settings.replicates * (1 if settings.smoke else 4))
        )
    return [Task(labels, function, own, r, settings.seed) for labels, function, own, r in grid]


NOTES, PAPER = "own earlier runs", "2111.07126"


def at(task: str, n: int) -> dict[str, Any]:
    return {"part": "single", "method": task, "n": n}


claims = (
    *(
        Number(f"{task}: risk {value:g} at N = 200", NOTES, "risk", at(task, 200), value, 0.05 * value)
        for task, value in NOTED.items()
    ),
    *(
        Ordering(
            f"N = {n}: {best} beats {task}", f"{PAPER}, min_t Q^2 + d sigma^2 / N", "risk", at(best, n), at(task, n)
        )
        for n, best in ((200, "near, clean"), (3200, "near, noisy"))
        for task in TASKS
        if task != best
    ),
    *(
        Number(
            f"prediction gain: within twice min_t Q^2 + d sigma^2 / N, N = {n}",
            f"{PAPER}, prediction gain (constant ours)",
            "ratio",
            {"part": "gain", "n": n},
            2.0,
            0.0,
            "at most",
        )
        for n in (200, 800, 3200)
    ),
    Exponent(
        "not knowing the distances costs of order sigma_T^2 log(T) / N",
        f"{PAPER}, adaptive lower bound",
        "extra",
        {"part": "selection"},
        1.0,
        0.25,
        x="log_tasks",
    ),
    Number(
        "the optimistic scheduler reaches .8 of the best diversity at N = 16 d k T",
        f"{PAPER}, structured tasks (constant ours)",
        "diversity",
        {"part": "diversity", "method": "optimistic"},
        0.8,
        0.0,
        "at least",
    ),
    Ordering(
        "taking turns reaches less than half of the optimistic diversity",
        f"{PAPER}, structured tasks (constant ours)",
        "diversity",
        {"part": "diversity", "method": "uniform"},
        {"part": "diversity", "method": "optimistic"},
        factor=2.0,
    ),
    *(
        Number(
            f"probes, {task}: risk over the derived one",
            "derived",
            "ratio",
            {"part": "probes", "method": task},
            1.0,
            0.1,
        )
        for task in PROBES
    ),
)


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=3, height=2.7)
    left, middle, right = axes[0]
    order = [*TASKS, "prediction gain"]
    looks = plotting.lines(order)
    plotting.curves(
        left,
        frame,
        "risk",
        "method",
        x="n",
        where={"part": "single"},
        order=list(TASKS),
        looks=looks,
        loglog=True,
        legend=False,
    )
    plotting.curves(
        left,
        frame,
        "risk",
        "method",
        x="n",
        where={"part": "gain"},
        order=order[-1:],
        looks=looks,
        loglog=True,
        legend=False,
    )
    left.set_xlabel("N, samples")
    left.set_ylabel("excess risk on the target\n(lower is better)")
    left.set_title("(a) one task, or greedy")
    plotting.curves(middle, frame, "extra", "part", x="log_tasks", where={"part": "selection"}, legend=False)
    middle.set_xlabel("log T")
    middle.set_ylabel(r"extra risk [$\sigma_T^2/N$]")
    middle.set_title("(b) choosing among T")
    if "diversity" in set(frame["part"]):
        plotting.curves(right, frame, "diversity", "method", x="round", where={"part": "diversity"})
        right.set_xscale("log", base=2)
    right.set_ylim(0, 1.02)
    right.set_xlabel("N, samples")
    right.set_ylabel("diversity / best\n(higher is better)")
    right.set_title("(c) schedulers")
    plotting.legend_above(figure, left, columns=5)
    return figure


study = Study(
    name="curriculum",
    title="Curricula: transfer distance against variance, and what schedulers reach",
    source="2111.07126, theory; own earlier runs; no published figure",
    cells=cells,
    claims=claims,
    plot=plot,
    replicates=64,
    smoke_replicates=8,
)
