"""Online preference learning on real input: 58 models' answers to 805 instructions, a linear model that is wrong.

Input: `alpaca_eval_58x805.parquet`, AlpacaEval 2 annotations with 32 text features per answer, given by --data FILE or
the folder in $SIMBANDIT_DATA. Without it the small synthetic stand-in of studies/data/ is used (40 x 12, made by
`stand_in` below); the figure says which. Any table with its columns will do: prompt_id, model, p_beats_baseline, x00,
x01, ... No paper has this figure; the claims about learners are what our notes on synthetic worlds predict.

What is learnt and measured. Arms are models, contexts instructions (arms without a row are masked), the reference is
uniform over a context's arms. Reward r = logit p_beats_baseline, clipped to +-4 (the raw logit reaches -17.5 and -inf;
83 % of the cells lie at the clip); a duel is won with probability sigma(r_a - r_b): Bradley-Terry by construction, a
synthetic annotator on real rewards. The objective is J(pi) = E r - kl_coef KL(pi || pi_ref) in this clipped logit,
kl_coef = 1, and `suboptimality` is its exact gap to pi* over all instructions. Beside it the plain reading: `win_rate`
is E_pi[p_beats_baseline], unclipped, `cumulative_win_regret` what the answers shown lost of it against the best
answer per instruction. `NullModel`, a constant text that fools the annotator, stays in as the arm that rewards hacking:
`null_mass` is the policy's probability of it and `null_share` its share of the answers shown (where the data have no
NullModel, the best single arm takes its place).

Misspecification: exact gaps of three log-linear policies that no learner can pass or that a learner tends to: the best
in J, the Gibbs policy of least squares, and that of the likelihood with infinitely many uniform duels.

Contenders: GSHF online with four enhancers, greedy (pi_t against pi_ref), online DPO on log-linear policies, each with
three candidates of its regulariser (ridge; DPO: the bound on its log-ratios), and uniform play. 16 replicates, which is
what fits in a few minutes; they share the data and differ in instructions drawn and labels.

Found on AlpacaEval 2 (5,120 duels): the linear model costs more than all the sampling. After about 1,000 duels every
maximum-likelihood learner stands near a gap of 2.5 (uniform play 3.37), where the likelihood tends with infinitely many
duels (2.56); the best log-linear policy has 1.81, least squares on the rewards themselves 1.93. So of the 3.37, 1.81 is
beyond the class, and .75 is lost because the likelihood of duels is not the objective. Best/worst-of-n ends lowest
(2.41): its one-sided duels exaggerate the scale of the estimate, which here offsets the likelihood's shrinkage. It also
shows NullModel most (40 % of its answers; self-play 15 %, greedy 9 %, uniform 1.7 %; pi* itself 20 %). No learner comes
near what one arm alone would win (.28 to .33 against .769): at kl_coef 1 with a uniform reference the estimate is too
flat to leave the reference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from simbandit import Problem, algorithms, plotting
from simbandit.guarantees import Number, Ordering
from simbandit.guarantees.claims import Verdict
from simbandit.guarantees.rows import select
from simbandit.metrics import Snapshot, kl
from simbandit.oracles import BradleyTerry
from simbandit.policies import gibbs
from simbandit.solvers import minimise_lbfgs
from simbandit.study import Settings, Simulation, Study, Task
from simbandit.worlds import TableWorld, from_frame

FILE = "alpaca_eval_58x805.parquet"
STAND_IN = Path(__file__).parent / "data" / "preferences_40x12.csv"
HACK = "NullModel"
CLIP = 4.0
KL_COEF = 1.0
ENHANCERS = {
    "GSHF": "kl_ball",
    "GSHF pointwise": "pointwise",
    "GSHF best/worst": "best_worst_of_n",
    "GSHF self": "self",
}
CANDIDATES = {
    **{
        name: [algorithms.create("gshf_online", enhancer=enhancer, ridge=ridge) for ridge in (0.1, 1.0, 10.0)]
        for name, enhancer in ENHANCERS.items()
    },
    "greedy": [algorithms.create("greedy", ridge=ridge) for ridge in (0.1, 1.0, 10.0)],
    "online DPO": [algorithms.create("online_dpo", value_range=bound) for bound in (2 * CLIP, 8 * CLIP, 32 * CLIP)],
}
LEARNERS = (*CANDIDATES, "uniform")
README, NOTE, DERIVED = "the data's description", "own note (12.5), carried over", "derived"

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


# ---------------------------------------------------------------------------------------------------------- metrics


def win_rate(s: Snapshot, wins: np.ndarray) -> Tensor:
    """E_x E_pi[p_beats_baseline]."""
    return s.expect(s.log_probs, torch.as_tensor(wins))


def win_regret(s: Snapshot, wins: np.ndarray) -> Tensor | None:
    """p_beats_baseline that the answers shown lost against the best answer to each instruction, mean over a duel."""
    if s.actions is None or s.contexts is None or s.contexts.index is None:
        return None
    shown = torch.as_tensor(wins)[s.contexts.index]  # absent answers are never the best: they count 0
    return (shown.amax(-1, keepdim=True) - shown.gather(-1, s.actions)).mean((1, 2))


def null_mass(s: Snapshot, hack: int) -> Tensor:
    """The policy's probability of the hacking arm."""
    return s.over_contexts(s.log_probs[..., hack].exp())


def null_share(s: Snapshot, hack: int) -> Tensor | None:
    """Share of the hacking arm among the answers shown this round."""
    return None if s.actions is None else (s.actions == hack).double().mean((1, 2))


def simulation(
    data: Data, algorithm: Any, rounds: int, replicates: int, seed: int, labels: Mapping[str, Any]
) -> Simulation:
    regret = partial(win_regret, wins=data.wins)
    return Simulation(
        {**labels, "data": data.name},
        Problem(data.world, BradleyTerry(), KL_COEF),
        algorithm,
        rounds=rounds,
        batch_size=128,
        replicates=replicates,
        seed=seed,
        metrics=[
            "suboptimality",
            "kl_to_ref",
            ("win_rate", partial(win_rate, wins=data.wins)),
            ("cumulative_win_regret", regret),
            ("null_mass", partial(null_mass, hack=data.hack)),
            ("null_share", partial(null_share, hack=data.hack)),
        ],
    )


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


def _argmin(loss: Any, start: Tensor) -> Tensor:
    def value_and_gradient(theta: Tensor) -> tuple[Tensor, Tensor]:
        point = theta[0].detach().requires_grad_(True)
        value = loss(point)
        (gradient,) = torch.autograd.grad(value, point)
        return value.detach()[None], gradient[None]

    solution = minimise_lbfgs(value_and_gradient, start[None], tolerance=1e-7)
    if not bool(solution.converged.all()):
        raise RuntimeError(f"landmarks: L-BFGS stopped at a gradient of {float(solution.residual):.1e}")
    return solution.argmin[0]


# ------------------------------------------------------------------------------------------------------------ study


def tuning(settings: Settings) -> dict[str, list[Simulation]]:
    data = load(settings.file(FILE), 100 if settings.smoke else None)
    return {
        name: [
            simulation(data, algorithm, 4 if settings.smoke else 15, min(settings.replicates, 6), seed, {})
            for seed in [settings.tuning_seed]
            for algorithm in candidates
        ]
        for name, candidates in CANDIDATES.items()
    }


def cells(settings: Settings, tuned: Mapping[str, Any]) -> list[Simulation | Task]:
    data = load(settings.file(FILE), 100 if settings.smoke else None)
    rounds = 6 if settings.smoke else 40
    arguments = {"world": data.world, "wins": data.wins, "hack": data.hack}
    players = {**tuned, "uniform": algorithms.create("uniform")}
    return [
        Task({"rule": "landmarks", "data": data.name}, landmarks, arguments, settings.replicates),
        *(
            simulation(data, players[name], rounds, settings.replicates, settings.seed, {"rule": name})
            for name in LEARNERS
        ),
    ]


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


def _fact(name: str, metric: str, value: float, tolerance: float) -> OnAlpacaEval:
    where = {"rule": "landmarks"}
    return OnAlpacaEval(Number(name, README, f"{metric}/facts", where, value, tolerance, exact=True))


def _order(
    name: str, source: str, smaller: str, larger: str, factor: float = 1.0, metric: str = "suboptimality"
) -> Ordering:
    return Ordering(name, source, metric, {"rule": smaller}, {"rule": larger}, factor=factor)


CLAIMS = (
    _fact("best single arm (NullModel) wins .769", "best_single_arm", 0.769, 0.0006),
    _fact("best answer per instruction wins .945", "best_per_instruction", 0.945, 0.0006),
    _fact("next best arm wins 70 %", "next_best_arm", 0.70, 0.006),
    _fact("the linear model explains 29 % of the variance", "explained_variance", 0.29, 0.006),
    *(_order(f"{name} ends below uniform play", "sanity", name, "uniform") for name in LEARNERS if name != "uniform"),
    _order("the enhancer does not beat self-play by 10 %: self <= 1.1 kl_ball", NOTE, "GSHF self", "GSHF", 1 / 1.1),
    _order("log-linear DPO is GSHF self, within 10 %: DPO <= 1.1 self", DERIVED, "online DPO", "GSHF self", 1 / 1.1),
    _order("log-linear DPO is GSHF self, within 10 %: self <= 1.1 DPO", DERIVED, "GSHF self", "online DPO", 1 / 1.1),
    *(
        _order(f"{name} puts more than twice the uniform mass on NullModel", NOTE, "uniform", name, 2.0, "null_mass")
        for name in ("GSHF", "greedy", "online DPO")
    ),
)


def landmark(frame: pd.DataFrame, metric: str, name: str) -> float:
    return float(select(frame, {"rule": "landmarks", "metric": f"{metric}/{name}"})["value"].to_numpy()[0])


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=2, rows=2, height=2.5)
    order = list(LEARNERS)
    looks = plotting.lines(order)
    shown = [
        ("(a) gap in the objective", "suboptimality", r"suboptimality $J(\pi^*)-J(\pi)$ [logit]"),
        ("(b) the policy against the baseline", "win_rate", "win rate against the baseline"),
        (f"(c) answers by {HACK}", "null_share", "share of the answers shown"),
        ("(d) what the answers shown lost", "cumulative_win_regret", "cumulative regret [win prob.]"),
    ]
    for ax, (title, metric, text) in zip(axes.flat, shown, strict=True):
        plotting.curves(ax, frame, metric, "rule", order=order, looks=looks, legend=False)
        ax.set_title(title)
        ax.set_xlabel("queries (duels)")
        ax.set_ylabel(text)
    marks = {
        axes[0, 0]: [("suboptimality", name) for name in ("best log-linear", "least squares", "infinitely many duels")],
        axes[0, 1]: [
            ("best_per_instruction", "facts"),
            ("best_single_arm", "facts"),
            ("win_rate", "optimum"),
            ("win_rate", "best log-linear"),
        ],
        axes[1, 0]: [("null_mass", "optimum"), ("null_mass", "best log-linear")],
    }
    words = {
        ("best_per_instruction", "facts"): "best answer per instruction",
        ("best_single_arm", "facts"): "best single arm",
        ("win_rate", "optimum"): "π*",
        ("null_mass", "optimum"): "π*",
    }
    for ax, names in marks.items():
        for i, (metric, name) in enumerate(names):
            level, side = landmark(frame, metric, name), i % 2  # left and right in turn: close lines stay legible
            ax.axhline(level, color="#666666", linewidth=0.7, linestyle=(0, (2, 2)))
            ax.annotate(
                words.get((metric, name), name),
                (0.99 - 0.98 * side, level),
                xycoords=ax.get_yaxis_transform(),
                ha=("right", "left")[side],
                va="bottom",
                fontsize=6,
                color="#444444",
            )
    plotting.legend_above(figure, axes[0, 0])
    figure.supxlabel(f"data: {frame['data'].iloc[0]}", fontsize=8)
    return figure


study = Study(
    name="real_preferences",
    title="Choosing among 58 models' answers to 805 instructions, with a linear model that is wrong",
    source="AlpacaEval 2 annotations; no published figure",
    cells=cells,
    claims=CLAIMS,
    plot=plot,
    tuning=tuning,
    replicates=16,
    smoke_replicates=4,
)
