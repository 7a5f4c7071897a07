"""The input of `real_preferences`: its table as a world, the synthetic stand-in, and what can be had at all."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize
from torch import Tensor

from simbandit.guarantees import Number
from simbandit.guarantees.claims import Verdict
from simbandit.metrics import kl
from simbandit.policies import gibbs
from simbandit.worlds import TableWorld, from_frame

FILE = "alpaca_eval_58x805.parquet"
STAND_IN = Path(__file__).parent / "data" / "preferences_40x12.csv"
HACK = "NullModel"
CLIP = 4.0
KL_COEF = 1.0

# ------------------------------------------------------------------------------------------------------------- data


class Data(NamedTuple):
    name: str
    world: TableWorld
    wins: np.ndarray  # (X, A): p_beats_baseline, 0 where there is no answer
    hack: int  # the action that rewards hacking


@cache
def load(path: Path | None, instructions: int | None = None) -> Data:
    """The world of a table (None: the stand-in), of its first `instructions` instructions.

    Raises ValueError where a column is missing or p_beats_baseline is not a probability.
    """
    file = path or STAND_IN
    frame = pd.read_parquet(file) if file.suffix == ".parquet" else pd.read_csv(file)
    missing = [name for name in ("prompt_id", "model", "p_beats_baseline") if name not in frame]
    features = sorted(name for name in frame if str(name)[:1] == "x" and str(name)[1:].isdigit())
    if missing or not features:
        raise ValueError(f"data: {file.name} lacks {missing or 'features x00, x01, ...'}; it has {list(frame)[:12]}")
    p = frame["p_beats_baseline"].to_numpy(dtype=float)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"data: p_beats_baseline of {file.name} must be probabilities in [0, 1]")
    with np.errstate(divide="ignore"):
        frame["reward"] = np.clip(np.log(p) - np.log1p(-p), -CLIP, CLIP)
    if instructions is not None:
        ids = frame["prompt_id"].to_numpy()
        frame = frame.take(np.flatnonzero(np.isin(ids, np.unique(ids)[:instructions])))
    world = from_frame(frame, context="prompt_id", action="model", features=features, reward="reward")
    wins = np.asarray(from_frame(frame, context="prompt_id", action="model", reward="p_beats_baseline").rewards).copy()
    arms = list(world.action_names or ())
    offered = np.isfinite(np.asarray(world.ref_log_probs))
    best = int(np.argmax(wins.sum(0) / np.maximum(offered.sum(0), 1)))
    name = "AlpacaEval 2" if file.name == FILE else "synthetic stand-in" if path is None else file.stem
    return Data(name, world, wins, arms.index(HACK) if HACK in arms else best)


def stand_in(instructions: int = 40, models: int = 12, dim: int = 6) -> pd.DataFrame:
    """The synthetic table that ships as studies/data/preferences_40x12.csv, like the real one in what makes it hard:
    a baseline at .5, a NullModel that wins most, rewards of which a linear model explains a part, three absent cells.
    """
    draws = np.random.default_rng(20_240_404)
    style, topic = draws.normal(size=(models, dim)), draws.normal(size=(instructions, dim))
    phi = 0.25 * (style[None] + 0.6 * topic[:, None] * style[None] + draws.normal(size=(instructions, models, dim)))
    theta = draws.normal(size=dim)
    linear = 2.0 * phi @ theta / np.linalg.norm(theta)
    curved = 1.5 * np.sin(4 * phi[..., 0] * topic[:, None, 1]) + 1.2 * draws.normal(size=(instructions, models))
    logit = -1.0 + linear + curved
    phi[:, -1] = 0.6 * theta / np.linalg.norm(theta)  # one text, so one feature vector; a linear model can see it
    logit[:, -1] = 1.5 + draws.normal(size=instructions)
    logit[:, 0] = 0.0
    names = ["Baseline", *(f"model-{i:02d}" for i in range(1, models - 1)), HACK]
    rows = pd.DataFrame(
        {
            "prompt_id": np.repeat(np.arange(instructions), models),
            "model": np.tile(names, instructions),
            "p_beats_baseline": (1 / (1 + np.exp(-2 * logit))).reshape(-1).round(4),
        }
    )
    for j in range(dim):
        rows[f"x{j:02d}"] = phi[..., j].reshape(-1).round(4)
    return rows.drop(index=[17, 130, 391]).reset_index(drop=True)


@dataclass(frozen=True)
class OnAlpacaEval:
    """A fact about one data set: judged on it, undecided on any other."""

    claim: Number

    @property
    def name(self) -> str:
        return self.claim.name

    @property
    def source(self) -> str:
        return self.claim.source

    def judge(self, frame: pd.DataFrame) -> Verdict:
        if "AlpacaEval 2" not in set(frame["data"]):
            return Verdict(self.name, self.source, "AlpacaEval 2 only", math.nan, math.nan, math.nan, "undecided")
        return self.claim.judge(frame)


# -------------------------------------------------------------------------------------------- what can be had at all


def landmarks(world: TableWorld, wins: np.ndarray, hack: int, replicates: int, seed: int, device: str) -> pd.DataFrame:
    """Exact numbers of the data (the same in every replicate): facts, and policies that bound what can be learnt."""
    del seed, device
    ref, rewards = torch.tensor(np.asarray(world.ref_log_probs)), torch.tensor(np.asarray(world.rewards))
    phi, p = torch.tensor(np.asarray(world.features)), torch.tensor(wins)
    offered = torch.isfinite(ref)
    target = gibbs(rewards, ref, KL_COEF)
    fitted, explained = least_squares(phi, rewards, offered)
    limit = likelihood_limit(phi, rewards, ref)
    starts = torch.stack([fitted, limit, torch.zeros_like(limit)])
    tried = [best_log_linear(phi, rewards, ref, start) for start in starts]
    best = min(tried, key=lambda theta: float(gap(gibbs(phi @ theta, ref, KL_COEF), target)))
    policies = {
        "optimum": target,
        "reference": ref,
        "best log-linear": gibbs(phi @ best, ref, KL_COEF),
        "least squares": gibbs(phi @ fitted, ref, KL_COEF),
        "infinitely many duels": gibbs(phi @ limit, ref, KL_COEF),
    }
    single = torch.where(offered, p, 0.0).sum(0) / offered.sum(0).clamp_min(1)
    rows = {
        ("facts", "best_single_arm"): float(single.max()),
        ("facts", "best_per_instruction"): float(p.amax(-1).mean()),
        ("facts", "hacking_arm"): float(single[hack]),
        ("facts", "next_best_arm"): float(single[torch.arange(len(single)) != hack].max()),
        ("facts", "explained_variance"): explained,
    }
    for name, policy in policies.items():
        rows[name, "suboptimality"] = float(gap(policy, target))
        rows[name, "win_rate"] = float((policy.exp() * p).sum(-1).mean())
        rows[name, "null_mass"] = float(policy[:, hack].exp().mean())
    columns = {"metric": [f"{metric}/{name}" for name, metric in rows], "value": list(rows.values())}
    return pd.concat(
        [pd.DataFrame({"replicate": r, "round": 0, "queries": 0.0, **columns}) for r in range(replicates)],
        ignore_index=True,
    )


def gap(log_probs: Tensor, target: Tensor) -> Tensor:
    """J(pi*) - J(pi), every instruction counting alike."""
    return KL_COEF * kl(log_probs, target).mean()


def least_squares(phi: Tensor, rewards: Tensor, offered: Tensor) -> tuple[Tensor, float]:
    """theta of least squares on what duels identify, differences within an instruction, and its share of their
    variance."""
    mask = offered.double()[..., None]
    x = (phi - (phi * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)) * mask
    y = (rewards[..., None] - (rewards[..., None] * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)) * mask
    x, y = x.flatten(0, 1), y.flatten()
    theta = torch.linalg.lstsq(x, y[:, None], driver="gelsd").solution[:, 0]
    return theta, 1 - float((y - x @ theta).square().sum() / y.square().sum())


def likelihood_limit(phi: Tensor, rewards: Tensor, ref: Tensor) -> Tensor:
    """theta to which the maximum likelihood estimate tends with duels of two independent draws of the reference."""
    weight = (ref[:, :, None] + ref[:, None, :]).exp() / len(ref)
    wins = torch.sigmoid(rewards[:, :, None] - rewards[:, None, :])

    def loss(theta: Tensor) -> Tensor:
        score = phi @ theta
        margin = score[:, :, None] - score[:, None, :]
        return (weight * (torch.nn.functional.softplus(margin) - wins * margin)).sum()

    return _argmin(loss, torch.zeros(phi.shape[-1], dtype=torch.float64))


def best_log_linear(phi: Tensor, rewards: Tensor, ref: Tensor, start: Tensor) -> Tensor:
    """theta of the log-linear policy with the largest J, a local maximum from `start`."""
    offered = torch.isfinite(ref)

    def loss(theta: Tensor) -> Tensor:
        policy = gibbs(phi @ theta, ref, KL_COEF)
        cost = torch.where(offered, KL_COEF * (policy - ref) - rewards, 0.0)
        return (policy.exp() * cost).sum(-1).mean()

    return _argmin(loss, start)


def _argmin(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """A local minimum. SciPy's line search also copes with the loss of `best_log_linear`, which is not convex."""

    def value_and_gradient(theta: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.tensor(theta, requires_grad=True)
        value = loss(point)
        (gradient,) = torch.autograd.grad(value, point)
        return float(value.detach()), gradient.numpy()

    options = {"maxiter": 5000, "maxfun": 10_000, "gtol": 1e-8, "ftol": 0.0}
    found = minimize(value_and_gradient, start.numpy(), jac=True, method="L-BFGS-B", options=options).x
    steepest = float(np.abs(value_and_gradient(found)[1]).max())
    if steepest > 1e-5:
        raise RuntimeError(f"landmarks: the search for a log-linear policy stopped at a gradient of {steepest:.1e}")
    return torch.from_numpy(found)
