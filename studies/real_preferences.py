"""Online preference learning on real input: 58 models' answers to 805 instructions, a linear model that is wrong.

Input: `alpaca_eval_58x805.parquet`, AlpacaEval 2 annotations with 32 text features per answer, given by --data FILE or
the folder in $SIMBANDIT_DATA. Without it the small synthetic stand-in of studies/data/ is used (40 x 12, made by
`_answers.stand_in`); the figure says which. Any table with its columns will do: prompt_id, model, p_beats_baseline,
x00, x01, ... No paper has this figure; the claims about learners are what runs on synthetic worlds led us to expect.

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
(2.41): its duels are chosen by its own estimate, which grows larger than the others' (KL to the reference .56 against
.34), and here that offsets the likelihood's shrinkage. It also shows NullModel most (40 % of its answers; self-play
15 %, greedy 9 %, uniform 1.7 %; pi* itself 20 %). No learner comes near what one arm alone would win (.28 to .33
against .769): at kl_coef 1 the estimate is too flat to leave the uniform reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from simbandit import Problem, algorithms, plotting
from simbandit.guarantees import Number, Ordering
from simbandit.guarantees.rows import select
from simbandit.metrics import Snapshot
from simbandit.oracles import BradleyTerry
from simbandit.study import Settings, Simulation, Study, Task
from studies._answers import CLIP, FILE, HACK, KL_COEF, Data, OnAlpacaEval, landmarks, load

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
README, NOTE, DERIVED = "the data's description", "own expectation from synthetic worlds", "derived"

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
