"""Routing instructions to 58 models: what text features buy over the best fixed model, with rewards and with duels.

Input: `alpaca_eval_58x805.parquet`, AlpacaEval 2 annotations (public repository of AlpacaEval) with 32 text features
per answer, given by --data FILE or the folder in $SIMBANDIT_DATA. Without it the synthetic stand-in of studies/data/
is used (40 x 12); the figure says which. Any table with its columns will do: prompt_id, model, p_beats_baseline, x00,
x01, ... No paper has this figure.

The task: an instruction comes, one model (or two) must be chosen before any has answered, and the annotator's
probability that the answer beats the baseline's is observed ("reward": p_beats_baseline itself) or which of two answers
wins ("duel": Bradley-Terry in its logit, clipped to +-4: a synthetic annotator on real rewards). Both are judged by
p_beats_baseline of what was shown, mean of both in a duel. Each replicate splits the 805 instructions anew: a quarter
is history, half is routed online (4,000 questions, drawn with replacement, 32 at a time), a quarter is held out and
judges the policies. So intervals cover the choice of instructions as well as draws and labels.

What is used, and what leaks. "routing" features: a constant, one per arm, and 5 principal components of the text of the
instruction with the *baseline's* answer (which exists before routing: every answer is compared with it) crossed with 4
factors of the arms, singular vectors of the history's wins. Neither sees an answer or a label that is being bought; but
the history, 201 x 58 judged answers, has been paid for, and holds the same 58 arms. "arm": the constants alone, no
context. "answer": the 32 features of each candidate answer and its model's mean in the history; it needs all 58
answers to be generated first, so it is reranking and not routing, and stands here to show what that leak would buy. The
text features were fitted (by those who made the table) on all instructions, without labels. The linear model is
misspecified in each case. One arm, `NullModel`, is a constant text that fools the annotator and is the best fixed arm;
it stays in, except for the rules "without NullModel".

Contenders: LinUCB, LinTS, SquareCB, epsilon-greedy on rewards; MaxInP, MaxPairUCB, CoLSTIM on duels; each with the best
of three values of its own constant, by the routing regret after 1,200 questions on seeds of their own. 50 replicates.
Changed after a first look at the rewards half: tuning after 1,200 questions (it was 400, where 58 arms make greed look
best) and a constant among the features (without it an arm that was never tried counts as one that never wins).

Off-policy: of n answers logged by a known law (half uniform, half the history's best arm), the value of a routing
policy that ridge regression on n other answers proposed: inverse propensities, self-normalised, direct, doubly robust,
with nominal 95 % intervals, against the exact value.

Found on AlpacaEval 2 (50 replicates; 16 at first, which left the worth of instruction features undecided): what text
features buy is little, and bandit feedback does not find it. With *all* online answers known, linear routing wins .781
on held-out instructions, the best fixed arm .766, the best arm per instruction .945. After 4,000 questions no router
beats the best fixed arm online, exploration included (regret 170 for LinTS, 207 for SquareCB, 404 for LinUCB), nor on
the held-out ones: LinUCB wins .690, its own version without context .646 (so features help, by .045, but less than
tuned optimism loses), epsilon-greedy .734, LinTS .732, SquareCB, which keeps exploring, .751. Duels teach as much as
rewards or more (MaxPairUCB .761, CoLSTIM .765): that a reward says more fails, presumably because a logit separates
answers that nearly always win. Reranking generated answers gains where routing cannot (.774; regret -51 against the
fixed arm). NullModel is shown by 86 % of reranking, 65 % of SquareCB, but by 23 % of LinUCB and a third of the
duellists: those claims fail. Off-policy, from 8,000 logged answers SNIPS, the direct method and doubly robust estimates
err by .013 to .019 on average and cover 92 to 94 %, IPS errs by .046, with intervals 2.5 times as wide; from 500 all
intervals are too short (58 to 76 %): the few rows with large weights that carry the variance have not been seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from simbandit import Problem, algorithms, plotting
from simbandit.guarantees import Number, Ordering
from simbandit.guarantees.rows import at_round, pivot, select
from simbandit.guarantees.statistics import mean_interval
from simbandit.oracles import BradleyTerry, NoisyReward
from simbandit.study import Settings, Simulation, Study, Task
from studies._answers import FILE, HACK, OnAlpacaEval
from studies._routing import (
    Routing,
    estimated,
    fixed_regret,
    hack_share,
    held_out_wins,
    landmarks,
    routing_regret,
    world,
)

ROUNDS, BATCH, TUNED_ROUNDS = 125, 32, 38
UCB, TS, SQUARE, EPSILON = "LinUCB", "LinTS", "SquareCB", "epsilon-greedy"
MAXINP, PAIR, COLSTIM = "MaxInP (duels)", "MaxPairUCB (duels)", "CoLSTIM (duels)"
ARM, ANSWER = "LinUCB, arms only", "LinUCB, reranking"
HONEST, HONEST_DUELS = "LinUCB, without NullModel", "MaxPairUCB (duels), without NullModel"
DUELS = {"refit_growth": 0.1, "ridge": 1.0}
RADII = ({"radius": 0.1}, {"radius": 0.3}, {"radius": 1.0})
CANDIDATES: dict[str, list[Any]] = {
    UCB: [algorithms.create("linucb", **one) for one in RADII],
    TS: [algorithms.create("lints", scale=value) for value in (0.03, 0.1, 0.3)],
    SQUARE: [algorithms.create("squarecb", gamma=value) for value in (10.0, 30.0, 100.0)],
    EPSILON: [algorithms.create("epsilon_greedy", epsilon=value) for value in (0.03, 0.1, 0.3)],
    ARM: [algorithms.create("linucb", **one) for one in RADII],
    ANSWER: [algorithms.create("linucb", **one) for one in RADII],
    HONEST: [algorithms.create("linucb", **one) for one in RADII],
    MAXINP: [algorithms.create("maxinp", radius=value, **DUELS) for value in (0.3, 1.0, 3.0)],
    PAIR: [algorithms.create("maxpairucb", radius=value, **DUELS) for value in (0.3, 1.0, 3.0)],
    COLSTIM: [algorithms.create("colstim", radius=value, **DUELS) for value in (0.3, 1.0, 3.0)],
    HONEST_DUELS: [algorithms.create("maxpairucb", radius=value, **DUELS) for value in (0.3, 1.0, 3.0)],
}
REWARD_RULES, DUEL_RULES = (UCB, TS, SQUARE, EPSILON), (MAXINP, PAIR, COLSTIM)
FEATURES = {ARM: "arm", ANSWER: "answer"}
LOGS = (500, 2000, 8000)
METHODS = {"ips": "IPS", "snips": "SNIPS", "dm": "direct", "dr": "doubly robust"}
MARKS = {"fixed": "best fixed arm", "full information": "routing, full information", "best": "best per instruction"}
LOST, FIXED, HELD = "cumulative_routing_regret", "cumulative_fixed_regret", "held_out_wins"


def routing(settings: Settings, rule: str = UCB) -> Routing:
    """The world that a rule meets."""
    choice: Any = {"features": FEATURES.get(rule, "routing"), "reward": "logit" if "duels" in rule else "win"}
    keep = rule not in (HONEST, HONEST_DUELS)
    return world(settings.file(FILE), 40 if settings.smoke else None, keep_hack=keep, **choice)


def cell(rule: str, algorithm: Any, settings: Settings, rounds: int, replicates: int, seed: int) -> Simulation:
    routed = routing(settings, rule)
    return Simulation(
        {"rule": rule, "data": routed.data},
        Problem(routed, BradleyTerry() if routed.reward == "logit" else NoisyReward(0.0), 1.0),
        algorithm,
        rounds=rounds,
        batch_size=BATCH,
        replicates=replicates,
        seed=seed,
        metrics=[
            (LOST, partial(routing_regret, world=routed)),
            (FIXED, partial(fixed_regret, world=routed)),
            ("hack_share", partial(hack_share, world=routed)),
            (HELD, partial(held_out_wins, world=routed)),
        ],
        record=[int(t) for t in np.geomspace(1, rounds, 20).round()],
    )


def tuning(settings: Settings) -> dict[str, list[Simulation]]:
    rounds, replicates = (2, 1) if settings.smoke else (TUNED_ROUNDS, 4)
    return {
        rule: [cell(rule, one, settings, rounds, replicates, settings.tuning_seed) for one in candidates]
        for rule, candidates in CANDIDATES.items()
    }


def cells(settings: Settings, tuned: Mapping[str, Any]) -> list[Simulation | Task]:
    rounds, n = (6 if settings.smoke else ROUNDS), settings.replicates
    players = {**tuned, "uniform": algorithms.create("uniform")}
    routed = routing(settings)
    given = {"world": routed}
    return [
        *(cell(rule, one, settings, rounds, n, settings.seed) for rule, one in players.items()),
        Task({"rule": "landmarks", "data": routed.data}, landmarks, given, n, settings.seed),
        *(
            Task({"logs": size, "data": routed.data}, estimated, {**given, "n": size}, n, settings.seed)
            for size in (LOGS[:1] if settings.smoke else LOGS)
        ),
    ]


README, OWN = "the data's description", "own expectation"


def _better(name: str, better: str, worse: str) -> Ordering:
    return Ordering(name, OWN, HELD, {"rule": worse}, {"rule": better})


CLAIMS = (
    OnAlpacaEval(
        Number("best fixed arm wins .769", README, "facts/fixed", {"rule": "landmarks"}, 0.769, 6e-4, exact=True)
    ),
    OnAlpacaEval(
        Number(
            "best arm per instruction wins .945", README, "facts/best", {"rule": "landmarks"}, 0.945, 6e-4, exact=True
        )
    ),
    *(
        _better(f"{rule} learns: above uniform routing, held out", rule, "uniform")
        for rule in (*REWARD_RULES, *DUEL_RULES)
    ),
    _better("instruction features help: LinUCB above its own without context, held out", UCB, ARM),
    _better("reranking (all answers generated) beats routing, held out", ANSWER, UCB),
    *(_better(f"a reward says more than a duel: LinUCB above {rule}, held out", UCB, rule) for rule in DUEL_RULES),
    *(
        Number(
            f"{rule} beats the best fixed arm online, exploration included",
            OWN,
            FIXED,
            {"rule": rule},
            0.0,
            0.0,
            "at most",
        )
        for rule in (UCB, HONEST)
    ),
    *(
        Number(
            f"{rule} shows {HACK} more than half of the time at the end",
            OWN,
            "hack_share",
            {"rule": rule},
            0.5,
            0.0,
            "at least",
        )
        for rule in (UCB, PAIR)
    ),
    *(
        Number(
            f"{METHODS[method]}: 95 % intervals cover, n = {size:,}",
            "unbiased with known propensities; tolerance ours",
            f"covered/{method}",
            {"logs": size},
            0.95,
            0.05,
            "at least",
        )
        for method in ("ips", "snips", "dr")
        for size in LOGS[1:]
    ),
    Number(
        f"direct: its model is wrong, intervals cover less than 90 %, n = {LOGS[-1]:,}",
        OWN,
        "covered/dm",
        {"logs": LOGS[-1]},
        0.9,
        0.0,
        "at most",
    ),
)


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=2, rows=2, height=2.9)
    for ax, rules, title in (
        (axes[0, 0], (*REWARD_RULES, ARM, ANSWER, HONEST), "(a) rewards, online"),
        (axes[0, 1], (*DUEL_RULES, HONEST_DUELS), "(b) duels, online"),
    ):
        plotting.curves(ax, frame, FIXED, "rule", order=rules, names={rule: short(rule) for rule in rules})
        ax.axhline(0, color=plotting.GREY, linewidth=0.8)
        ax.set(title=title, xlabel="questions asked", ylabel="regret to the best fixed arm [wins]")
    final(axes[1, 0], frame)
    estimates(axes[1, 1], frame)
    figure.supxlabel(f"data: {frame['data'].iloc[0]}", fontsize=8)
    return figure


def short(rule: str) -> str:
    return rule.replace(" (duels)", "").replace("without NullModel", "no Null")


def final(ax: Axes, frame: pd.DataFrame) -> None:
    """Wins of the last policies on held-out instructions, and the share of NullModel in what they showed last."""
    rules = [*CANDIDATES, "uniform"]
    for y, rule in enumerate(reversed(rules)):
        wins = mean_interval(list(at_round(select(frame, {"rule": rule, "metric": HELD}), None).values()))
        shown = np.mean(list(at_round(select(frame, {"rule": rule, "metric": "hack_share"}), None).values()))
        estimate, low, high = (float(part) for part in wins)
        color = plotting.PALETTE[1 if "duels" in rule else 0]
        ax.errorbar(estimate, y, xerr=[[estimate - low], [high - estimate]], fmt="o", color=color, capsize=2)
        ax.annotate(f"{shown:.0%}", (1.02, y), xycoords=ax.get_yaxis_transform(), va="center", fontsize=6)
    ax.set_yticks(range(len(rules)), [rule.replace("without NullModel", "no Null") for rule in reversed(rules)])
    ax.tick_params(axis="y", labelsize=6)
    ax.annotate(HACK, (1.02, len(rules) - 0.4), xycoords=ax.get_yaxis_transform(), fontsize=6)
    for name, text in MARKS.items():
        level = select(frame, {"rule": "landmarks", "metric": f"held_out/{name}"})["value"].to_numpy().mean()
        ax.axvline(level, color=plotting.GREY, linewidth=0.7, linestyle=(0, (2, 2)))
        side = "left" if name == "full information" else "right"
        ax.annotate(text, (level, -4.0), rotation=90, fontsize=5.5, ha=side, va="bottom")
    ax.set(title="(c) on instructions held out", xlabel="wins against the baseline")
    ax.set_ylim(-4.2, len(rules) - 0.5)  # room for the names of the lines below the last rule


def estimates(ax: Axes, frame: pd.DataFrame) -> None:
    """Error and nominal interval of each estimator over the number of logged answers; coverage beside each."""
    sizes = sorted(frame["logs"].dropna().unique())
    for i, (method, look) in enumerate(plotting.lines(list(METHODS)).items()):
        at = np.arange(len(sizes)) + 0.22 * (i - 1.5)
        tables = {
            m: pivot(select(frame, {"metric": f"{m}/{method}"}), "logs").to_numpy()
            for m in ("error", "width", "covered")
        }
        bias, half = tables["error"].mean(0), tables["width"].mean(0) / 2
        ax.errorbar(at, bias, half, fmt=look.marker, color=look.color, markersize=4, capsize=2, label=METHODS[method])
        for x, top, covered in zip(at, bias + half, tables["covered"].mean(0), strict=True):
            ax.annotate(f"{covered:.0%}", (x, top), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=5)
    ax.axhline(0, color=plotting.GREY, linewidth=0.8)
    ax.set_xticks(range(len(sizes)), [f"{size:,.0f}" for size in sizes])
    ax.set(title="(d) off-policy: error, 95 % interval", xlabel="logged answers", ylabel="error [wins]")
    ax.legend(ncols=2, loc="lower right", fontsize=6)


study = Study(
    name="alpaca_routing",
    title="Routing 805 instructions to 58 models: rewards, duels, reranking and off-policy estimates",
    source="AlpacaEval 2 annotations (results/*/weighted_alpaca_eval_gpt4_turbo/annotations.json of "
    "github.com/tatsu-lab/alpaca_eval as one table: a row per prompt_id and model, text features x00 ... x31); "
    "no published figure",
    cells=cells,
    claims=CLAIMS,
    plot=plot,
    tuning=tuning,
    tuning_metric=LOST,
    replicates=50,
    smoke_replicates=4,
)
