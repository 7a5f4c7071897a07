"""Online preference learning that trains weights: INPO, DPO, XPO, SAIL and GSHF's enhancer on the toy language model.

No paper's figure: the registry's rows INPO (2407.00617), online DPO, XPO (2405.21046), SAIL-PR (2406.15567), and GSHF
as it is run on language models (2312.11456, 2405.07863): online DPO's main agent against an enhancer, here the policy
at temperature 1.3 (`llm_bridge.enhancers` has the others). The model is a two-layer Llama of width 48, trained for 400
steps on the template grammar (`llm_bridge.toy`); 16 prompts, responses of up to 24 tokens.

Grid. Five rows with each of two annotators: Bradley-Terry with the text's true reward at temperature 1/4 (grammatical,
on topic, pleasant, not long-winded), and raters of whom half go by it and half are intransitive (the number of words
modulo 3). kl_coef .2; 3 rounds of 320 duels; every fit is 25 steps of AdamW at .001 on minibatches of
128 duels, from the last weights; SAIL's step is those steps too. 96 responses, drawn with the same uniforms every time,
judge each policy of a seed. Six seeds, as many as fit a quarter of an hour of one core; they share the model, and
differ in prompts drawn, responses, labels and evaluation. Pilot runs on one seed chose this shape: with 6 rounds of
128 duels INPO, which sees this round's duels only, gained no reward. A first full run had three seeds, and with the
raters INPO and online DPO only; the other rows there, and the claims about them, were added after it.

What is judged: reward; win rate against the reference; KL to it (Rao-Blackwellised); J = reward / temperature - kl_coef
KL, the target of the methods that believe in a reward; and the value of the game against the reference, win rate -
kl_coef KL, which is 1/2 for the reference, and at least that for the equilibrium, INPO's target.

Found (six seeds, ten minutes of one core). With Bradley-Terry labels online DPO and GSHF-DPO raise the reward from .6
to 1.35 and 1.44 in 960 duels, XPO to 1.05, all at 4 to 5 nats. XPO ends below online DPO in J (2.06 against .81
gained), though its bonus is to help; whether the enhancer helps is undecided. The first fit costs more KL than it
earns, but for GSHF-DPO. INPO stays within .23 nats, as its target asks at this kl_coef, and gains .10 of reward; its
value of the game, which should rise, stays undecided there (-.01) and falls by .05 with the raters: a round's 320 noisy
labels teach 25 steps of AdamW less than they cost in KL. Those that believe in a reward gain little of it from the
raters (DPO .25, GSHF-DPO .18, XPO .11) for as many nats, so that their value of the game falls by .75 to .95 and INPO
is ahead of all of them, by standing nearly still. SAIL-PR leaves with either annotator (KL 86 and 68, reward -.04 and
-.10): its gradient is right at the policy that drew the pairs, and its weights, ratios of whole responses'
probabilities, are not meant for 25 steps away from it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cache
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from llm_bridge import need_extra
from simbandit import plotting
from simbandit.guarantees import Number, Ordering
from simbandit.objective import Descent
from simbandit.simulate import Problem, simulate
from simbandit.study import Settings, Study, Task

KL_COEF, TEMPERATURE, ROUNDS, DUELS = 0.2, 0.25, 3, 320
STEPS, RATE, MINIBATCH, RESPONSES, TRAINED = 25, 0.001, 128, 96, 400
ROWS = {
    "inpo": "INPO",
    "online_dpo": "online DPO",
    "xpo": "XPO",
    "sail_pr": "SAIL-PR",
    "gshf_dpo": "GSHF-DPO",
}
REWARD, RATERS = "reward", "raters"
J, VALUE = "J", "value of the game"


@cache
def toy_model(steps: int) -> Any:
    """The toy model after so many steps of training on its language; 0: random weights."""
    from llm_bridge import toy
    from llm_bridge.loading import load_model

    if steps == 0:
        return toy.untrained()
    with TemporaryDirectory() as folder:
        toy.train(folder, steps=steps)
        return load_model(folder)


def raters(prompt: str, first: str, second: str) -> float:
    """Half of them go by the true reward, half are intransitive."""
    from llm_bridge import toy
    from llm_bridge.oracles import BradleyTerry, Written

    (p,) = BradleyTerry(Written(toy.true_reward), TEMPERATURE)([(prompt, first, second)])
    return (p + toy.intransitive_raters(prompt, first, second)) / 2


def trained(
    row: str,
    annotator: str,
    size: Mapping[str, int],
    replicates: int,
    seed: int,
    device: str,
) -> pd.DataFrame:
    """Every seed is a run of its own, from the same weights; annotators, prompts and draws differ."""
    from llm_bridge import LMPolicy, Training, toy
    from llm_bridge.evaluation import Evaluation
    from llm_bridge.grammar import Grammar
    from llm_bridge.oracles import BradleyTerry, Preferring, TextOracle, Written
    from llm_bridge.rows import direct_row

    assert device == "cpu", "the toy model is smaller than a GPU's overhead"
    scorer, steps = Written(toy.true_reward), Descent(size["steps"], RATE)
    judge = BradleyTerry(scorer, TEMPERATURE) if annotator == REWARD else Preferring(raters)
    algorithm: Any = direct_row(row, **({"descent": steps} if row == "sail_pr" else {}))
    frames = []
    for r in range(replicates):
        policy = LMPolicy.of(
            copy.deepcopy(toy_model(size["trained"])),
            toy.tokenizer(),
            Grammar().prompts()[::3],
            max_new_tokens=size["tokens"],
            training=Training(steps, minibatch=MINIBATCH, seed=seed + r),
        )
        judged = Evaluation(policy, judge, scorer, size=size["responses"], seed=seed + r)
        run = simulate(
            Problem(policy.world(reward_range=(-0.5, 3.0)), TextOracle(policy.catalogue, judge), KL_COEF),
            algorithm,
            rounds=size["rounds"],
            batch_size=size["duels"],
            replicates=[r],
            seed=seed,
            policy=policy,
            metrics=judged.metrics(),
            record="all",
        )
        frames.append(run.frame())
    frame = pd.concat(frames, ignore_index=True)
    by = ["replicate", "round", "queries"]
    wide: Any = frame.pivot(index=by, columns="metric", values="value")
    pull = KL_COEF * wide["kl_to_reference"]
    wide = pd.DataFrame(
        {"reward": wide["reward"], J: wide["reward"] / TEMPERATURE - pull, VALUE: wide["win_rate"] - pull}
    )
    gains = (wide - wide.groupby("replicate").transform("first")).add_prefix("gain in ")
    derived = pd.concat([wide[[J, VALUE]], gains], axis=1).rename_axis(columns="metric")
    long = derived.melt(ignore_index=False).reset_index()
    return pd.concat([frame, long], ignore_index=True)


def cells(settings: Settings, tuned: Mapping[str, Any]) -> Sequence[Task]:
    del tuned
    need_extra()
    size = {"rounds": ROUNDS, "duels": DUELS, "steps": STEPS, "responses": RESPONSES, "tokens": 24, "trained": TRAINED}
    chosen = tuple(ROWS)
    if settings.smoke:
        size = {"rounds": 1, "duels": 4, "steps": 1, "responses": 4, "tokens": 4, "trained": 0}
        chosen = ("inpo", "online_dpo", "gshf_dpo")
    return [
        Task(
            {"row": row, "annotator": annotator},
            trained,
            {"row": row, "annotator": annotator, "size": size},
            settings.replicates,
            settings.seed,
        )
        for annotator in (REWARD, RATERS)
        for row in chosen
    ]


def _gains(row: str, source: str, metric: str, annotator: str) -> Number:
    return Number(
        f"{ROWS[row]}: {metric} rises, {annotator}",
        source,
        f"gain in {metric}",
        {"row": row, "annotator": annotator},
        0.0,
        0.0,
        "at least",
    )


def _better(more: str, less: str, source: str, metric: str, annotator: str) -> Ordering:
    return Ordering(
        f"{ROWS[more]} above {ROWS[less]} in {metric}, {annotator}",
        source,
        metric,
        {"row": less},
        {"row": more},
        {"annotator": annotator},
    )


PAPERS = {
    "inpo": "2407.00617",
    "online_dpo": "2402.04792",
    "xpo": "2405.21046",
    "sail_pr": "2406.15567",
    "gshf_dpo": "2312.11456",
}
OWN = "own expectation (its target)"
claims = (
    *(_gains(row, source, "reward", REWARD) for row, source in PAPERS.items()),
    *(_gains(row, OWN, J, REWARD) for row in ROWS if row != "inpo"),
    *(_better(row, "online_dpo", PAPERS[row], J, REWARD) for row in ROWS if row not in ("online_dpo", "inpo")),
    _better("online_dpo", "inpo", OWN, J, REWARD),
    *(_gains("inpo", PAPERS["inpo"], VALUE, annotator) for annotator in (REWARD, RATERS)),
    *(_better("inpo", row, OWN, VALUE, RATERS) for row in ROWS if row != "inpo"),
)


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=3, rows=2, height=2.6)
    looks = plotting.lines(list(ROWS))
    labels = {
        "win_rate": "win rate against the reference",
        J: "J [reward / temperature]",
        VALUE: "win rate - kl_coef KL",
    }
    for line, annotator, last in zip(axes, (REWARD, RATERS), (J, VALUE), strict=True):
        there = set(frame["row"][frame["annotator"] == annotator])
        shown = [row for row in ROWS if row in there]
        for ax, metric in ((line[0], "win_rate"), (line[2], last)):
            where = {"annotator": annotator}
            plotting.curves(ax, frame, metric, "row", where=where, order=shown, names=ROWS, looks=looks, legend=False)
            ax.set_xlabel("queries (comparisons asked)")
            ax.set_ylabel(f"{labels[metric]}\n(higher is better)")
        plotting.frontier(
            line[1],
            frame,
            "row",
            x="kl_to_reference",
            y="reward",
            where={"annotator": annotator},
            order=shown,
            names=ROWS,
            looks=looks,
            legend=False,
        )
        line[1].set_xlabel("KL to the reference [nats]")
        line[1].set_xscale("symlog", linthresh=0.1)
        line[1].set_ylabel("true reward\n(higher is better)")
        line[0].set_title({REWARD: "Bradley-Terry annotator", RATERS: "half the raters intransitive"}[annotator])
    for ax, linear in zip(axes[:, 2], (5, 1), strict=True):  # for SAIL
        ax.set_yscale("symlog", linthresh=linear)
    plotting.legend_above(figure, axes[0, 0], columns=5)
    return figure


study = Study(
    name="toy_online",
    title="Trained for real on the toy language model: INPO, DPO, XPO, SAIL and GSHF-DPO",
    source="2407.00617, 2405.21046, 2406.15567, 2312.11456, 2405.07863; own design, no paper's figure",
    cells=cells,
    claims=claims,
    plot=plot,
    replicates=6,
    smoke_replicates=2,
)
