"""Best-of-n exactly: its KL, its win rate, and how near it is to the KL-optimal policy.

No paper's figure. For a reward without ties best-of-n has density n u^(n-1) in the quantile u, KL = log n - (n - 1)/n
and win rate n/(n + 1) against the reference. Beirami et al. (2401.01879), Theorem 3.1: with atoms both are upper bounds
only. BOND (2407.14622): pi_BoN(y) = pi_ref(y) p_<=(y)^(n-1) sum_i (p_<(y)/p_<=(y))^(i-1), and its backward-KL half is
RLHF with reward log p_<= and kl_coef 1/(n - 1). At equal win rate the cheapest policy in KL is the tilt
pi_ref exp(win rate / b); in the continuum everything is closed.

Grid, all exact: n = 2 ... 128; `uniform`: A = 2, 10, 100, 1000 equally likely arms with different scores (one
replicate); `random`: A = 20 arms of softmax(N(0, 1)) references and normal scores; `tied`: the same with scores rounded
to 1/2; `continuum`: no atoms. `sampled`: 4,096 best-of-n experiments per replicate on `uniform`, A = 10. Reference
numbers are own earlier runs', to 4 digits.

Found: everything but two. At n = 2 the excess over the tilt is .0205, not below .02; and backward BOND is not nearest
at the most arms for n = 32, because with two arms both laws put all mass on the better one. With two arms every policy
is a tilt (no curve in panel b).

What differs from BOND: ties are shared among tied arms in proportion to the reference, as ties broken at random are;
its formula orders tied draws the same way and is tested arm by arm.
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

from simbandit import plotting
from simbandit.draws import Draws
from simbandit.guarantees import Identity, Monotone, Number
from simbandit.guarantees.rows import pivot, select
from simbandit.metrics import kl
from simbandit.policies import best_of_n, gibbs, inverse_cdf, normalise
from simbandit.study import Settings, Study, Task
from studies._games import frame_of

SIZES = (2, 4, 8, 16, 32, 64, 128)
ARMS = (2, 10, 100, 1000)
DRAWS = 4096
NOTED_KL = {
    2: {2: 0.1308, 4: 0.4594, 8: 0.6676, 16: 0.6930},
    10: {2: 0.1893, 4: 0.6288, 8: 1.1775, 16: 1.7331},
    100: {2: 0.1931, 4: 0.6362, 8: 1.2042, 16: 1.8340},
}
NOTED_WINS = {2: 0.6650, 4: 0.7967, 8: 0.8823, 16: 0.9283}
NOTED_TILT = {2: 0.1726, 4: 0.6169, 16: 1.8332, 64: 3.1744}


def arms(kind: str, n_arms: int, replicates: int, seed: int, device: str) -> tuple[Tensor, Tensor]:
    """Log reference and scores, (R, A)."""
    if kind == "uniform":
        ref = torch.full((1, n_arms), -math.log(n_arms), dtype=torch.float64, device=device)
        return ref, torch.arange(n_arms, dtype=torch.float64, device=device)[None]
    draws = Draws(seed, replicates, device)
    scores = draws.once("scores", n_arms)
    return normalise(draws.once("reference", n_arms)), (2 * scores).round() / 2 if kind == "tied" else scores


def below(ref: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """p_< and p_<= of every arm: the reference's mass of lower scores, and of scores that are not higher."""
    gap = scores[..., :, None] - scores[..., None, :]
    p = ref.exp()[..., None, :]
    return (p * (gap > 0)).sum(-1), (p * (gap >= 0)).sum(-1)


def bond(ref: Tensor, scores: Tensor, n: int) -> Tensor:
    """BOND's formula for the law of best-of-n, as log-probabilities."""
    under, upto = below(ref, scores)
    powers = (under / upto)[..., None] ** torch.arange(n, dtype=torch.float64, device=ref.device)
    return ref + (n - 1) * upto.log() + powers.sum(-1).log()


def cheapest(ref: Tensor, win: Tensor, target: Tensor) -> Tensor:
    """KL of the tilt pi_ref exp(win / b) whose win rate is `target`, by bisection in log b: (R,)."""
    low, high = torch.full_like(target, -12.0), torch.full_like(target, 6.0)
    for _ in range(100):
        middle = (low + high) / 2
        law = gibbs(win, ref, middle.exp()[..., None])
        rises = (law.exp() * win).sum(-1) > target
        low, high = torch.where(rises, middle, low), torch.where(rises, high, middle)
    return kl(gibbs(win, ref, high.exp()[..., None]), ref)


def exact(kind: str, n_arms: int, n: int, replicates: int, seed: int, device: str) -> pd.DataFrame:
    ref, scores = arms(kind, n_arms, replicates, seed, device)
    law = best_of_n(ref, scores, n)
    under, upto = below(ref, scores)
    win = (under + upto) / 2
    divergence, rate = kl(law, ref), (law.exp() * win).sum(-1)
    limit = math.log(n) - (n - 1) / n
    tilt = cheapest(ref, win, rate)
    values = {
        "kl": divergence,
        "win_rate": rate,
        "kl beyond the bound": (divergence - limit).clamp_min(0.0),
        "win rate beyond the bound": (rate - n / (n + 1)).clamp_min(0.0),
        "tilt's kl": tilt,
        "tilt beyond best-of-n": (tilt - divergence).clamp_min(0.0),
        "distance to BOND's formula": (law.exp() - bond(ref, scores, n).exp()).abs().amax(-1),
        "distance to two steps": (best_of_n(law, scores, n).exp() - best_of_n(ref, scores, n * n).exp()).abs().amax(-1),
        "kl of backward BOND": kl(gibbs(upto.log(), ref, 1 / (n - 1)), law),
    }
    if kind == "uniform" and n in NOTED_KL.get(n_arms, {}):
        values["noted kl"] = torch.full_like(rate, NOTED_KL[n_arms][n])
    if kind == "uniform" and n_arms == 10 and n in NOTED_WINS:
        values["noted win rate"] = torch.full_like(rate, NOTED_WINS[n])
    return frame_of({(name, 0): value for name, value in values.items()})


def continuum(n: int, replicates: int, seed: int, device: str) -> pd.DataFrame:
    """Best-of-n of a reward without ties, and the tilt exp(b u) of the quantile u with its mean n/(n + 1)."""
    del replicates, seed, device

    def mean(b: float) -> float:
        return 1 / -math.expm1(-b) - 1 / b

    low, high = 1e-6, 1e6
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if mean(middle) > n / (n + 1) else (middle, high)
    tilt = low * mean(low) - (low + math.log(-math.expm1(-low) / low))
    divergence = math.log(n) - (n - 1) / n
    values = {"kl": divergence, "win_rate": n / (n + 1), "tilt's kl": tilt, "excess": divergence - tilt}
    if n in NOTED_TILT:
        values["noted tilt"] = NOTED_TILT[n]
    return frame_of({(name, 0): torch.tensor([value]) for name, value in values.items()})


def sampled(n: int, replicates: int, seed: int, device: str) -> pd.DataFrame:
    """How often the best of n draws beats one more, a tie counting 1/2."""
    ref, scores = arms("uniform", 10, 1, seed, device)
    uniforms = Draws(seed, replicates, device).once(f"draws {n}", DRAWS * (n + 1), law="uniform")
    drawn = scores[0][inverse_cdf(ref.expand(replicates, -1)[:, None], uniforms)].view(replicates, DRAWS, n + 1)
    best, one = drawn[..., :n].amax(-1), drawn[..., n]
    return frame_of({("win_rate", 0): ((best > one).double() + (best == one).double() / 2).mean(-1)})


def cells(settings: Settings, tuned: Mapping[str, Any]) -> Sequence[Task]:
    del tuned
    grid: list[tuple[dict[str, Any], Any, dict[str, Any], int]] = []
    for n in SIZES[:4] if settings.smoke else SIZES:
        for a in ARMS[:2] if settings.smoke else ARMS:
            grid.append(({"kind": "uniform", "n_arms": a, "n": n}, exact, {"kind": "uniform", "n_arms": a}, 1))
        for kind in ("random", "tied"):
            labels = {"kind": kind, "n_arms": 20, "n": n}
            grid.append((labels, exact, {"kind": kind, "n_arms": 20}, settings.replicates))
        grid.append(({"kind": "continuum", "n_arms": None, "n": n}, continuum, {}, 1))
    for n in (2, 8):
        grid.append(({"kind": "sampled", "n_arms": 10, "n": n}, sampled, {}, settings.replicates))
    return [Task(labels, f, {**own, "n": labels["n"]}, r, settings.seed) for labels, f, own, r in grid]


NOTES = "own earlier runs"
BEIRAMI = "2401.01879, Theorem 3.1"
claims = (
    *(
        Identity(
            f"KL of best-of-{n} among {a} equal arms: {value:.4f}",
            NOTES,
            "kl",
            {"kind": "uniform", "n_arms": a, "n": n},
            6e-5,
            other="noted kl",
        )
        for a, row in NOTED_KL.items()
        for n, value in row.items()
    ),
    *(
        Identity(
            f"win rate of best-of-{n} among 10 equal arms: {value:.4f}",
            NOTES,
            "win_rate",
            {"kind": "uniform", "n_arms": 10, "n": n},
            6e-5,
            other="noted win rate",
        )
        for n, value in NOTED_WINS.items()
    ),
    *(
        Identity(
            f"KL of the tilt with best-of-{n}'s win rate, no ties: {value:.4f}",
            NOTES,
            "tilt's kl",
            {"kind": "continuum", "n": n},
            6e-5,
            other="noted tilt",
        )
        for n, value in NOTED_TILT.items()
    ),
    *(
        Identity(
            f"{what}: never above the bound, {kind} arms", BEIRAMI, f"{metric} beyond the bound", {"kind": kind}, 1e-9
        )
        for kind in ("uniform", "random", "tied")
        for what, metric in (("KL", "kl"), ("win rate", "win rate"))
    ),
    *(
        Identity(
            f"the law is BOND's formula, {kind} arms", "2407.14622", "distance to BOND's formula", {"kind": kind}, 1e-9
        )
        for kind in ("uniform", "random", "tied")
    ),
    *(
        Identity(
            f"no cheaper policy than the tilt, {kind} arms", "Gibbs", "tilt beyond best-of-n", {"kind": kind}, 1e-6
        )
        for kind in ("uniform", "random", "tied")
    ),
    Identity("best-of-n of best-of-n is best-of-n^2", NOTES, "distance to two steps", {"kind": "random"}, 1e-9),
    Monotone(
        "best-of-n comes ever closer to the KL-optimum (n >= 2, no ties)",
        NOTES,
        "excess",
        {"kind": "continuum"},
        "n",
        "decreasing",
        exact=True,
    ),
    *(
        Number(
            f"best-of-{n} costs at most .02 nats more than the optimum",
            NOTES,
            "excess",
            at,
            0.02,
            0.0,
            "at most",
            exact=True,
        )
        for n in (2, 4, 16)
        for at in ({"kind": "continuum", "n": n},)
    ),
    *(
        Monotone(
            f"backward BOND tends to best-of-{n} with the number of arms",
            "2407.14622 (derived)",
            "kl of backward BOND",
            {"kind": "uniform", "n": n},
            "n_arms",
            "decreasing",
            exact=True,
        )
        for n in (2, 8, 32)
    ),
    *(
        Number(f"sampled win rate of best-of-{n}", NOTES, "win_rate", {"kind": "sampled", "n": n}, value, 0.002)
        for n, value in ((2, 0.6650), (8, 0.8823))
    ),
)


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=2, height=2.8)
    left, right = axes[0]
    present = [a for a in ARMS if a in set(frame["n_arms"])]
    names = {a: f"{a} arms" for a in present}
    same = {"x": "n", "where": {"kind": "uniform"}, "order": present, "names": names}
    plotting.curves(left, frame, "kl", "n_arms", legend=False, **same)
    n = np.geomspace(2, max(frame["n"]), 60)
    left.plot(n, np.log(n) - (n - 1) / n, color="0.5", linewidth=0.8, label="log n - (n - 1)/n")
    left.set_xscale("log", base=2)
    left.set_ylabel(r"KL$(\pi_{\mathrm{BoN}}\,\|\,\pi_{\mathrm{ref}})$ [nats]")
    left.set_title("(a) the bound and exact values")
    left.legend()
    looks = plotting.lines([*present, None])
    for arms_ in [*present[1:], None]:
        name = "no ties" if arms_ is None else names[arms_]
        rows = select(frame, {"kind": "continuum" if arms_ is None else "uniform", "n_arms": arms_})
        best, tilt = (pivot(select(rows, {"metric": m}), "n") for m in ("kl", "tilt's kl"))
        look = looks[arms_]
        excess = (best - tilt).to_numpy()[0]
        right.plot(best.columns, excess, color=look.color, marker=look.marker, linestyle=look.dash, label=name)
    right.set_xscale("log", base=2)
    right.set_yscale("log")
    right.set_ylim(1e-6, 0.1)
    right.set_ylabel("excess KL over the tilt [nats]\n(lower is better)")
    right.set_title("(b) at equal win rate")
    right.legend()
    for ax in (left, right):
        ax.set_xlabel("n")
    return figure


study = Study(
    name="best_of_n",
    title="Best-of-n: exact KL and win rate, their bounds, and the KL-optimal tilt",
    source="2401.01879, 2407.14622 and own earlier runs; no paper's figure",
    cells=cells,
    claims=claims,
    plot=plot,
    replicates=64,
    smoke_replicates=8,
)
