"""Model-based methods on pools of a language model's responses, with its own hidden states as features: what is learnt
within the pool, what it is worth over all responses, and how wrong the linear model is.

No paper's figure: GSHF (2312.11456) and OELHF/PELHF (2402.07314) as their registry objects, on worlds that only list
the K = 16 responses that a language model drew for each prompt. Features are the model's last hidden states, averaged
over a response and whitened (`llm_bridge.candidates`). The pool's reference is the empirical law of the draws, as
`candidate_pool`'s is by default; its own probabilities, renormalised over them, are a variant (`law` "reference").

`listed`: a random GPT-2 of two layers with four tokens and an end token, responses of up to 5 (1,365 of them), 4
prompts; every replicate has a pool of its own. Since everything is listed, a learnt reward theta is judged three times:
within the pool; over all responses as the policy that never leaves the pool; and over all responses as the whole law
tilted by exp(<theta, phi> / kl_coef). The reward is a gold model's log-likelihood, another random GPT-2's, of mean 0
and variance 1 under the reference and clipped at 3 (`gold`), or its linear projection on the features (`linear`).
`toy`: the toy model trained on the template grammar (400 steps), 16 prompts, responses of up to 24 tokens, one pool.
Annotators: Bradley-Terry with the true text reward (grammar, topic, pleasant words), and (`raters`) the even mixture of
it and of the intransitive raters, who go by the number of words modulo 3.

Grid. 64 rounds of 16 duels, kl_coef .3 (listed) and .2 (toy), 8 features; 64 replicates. Offline methods get as many
duels of the reference, once. `floor`: what the best linear reward (bilinear preference) leaves, fitted to all pairs
with exact labels, at 2 to 32 features; exact for the one toy pool.

Found. On random models' pools the reference covers what matters, and the claim that online beats offline fails: GSHF's
enhancer leaves .031 and .025 (linear, gold) where offline GSHF leaves .002 and .005, greedy .003 and .006. Four of the
64 pools make .9 and .8 of that mean (medians .003 and .006), and keep their curves from falling; we did not separate
why. On the toy model's texts the claim holds, but of little: the reward is hardly a linear function of the hidden
states. The best linear reward on 8 features keeps .97 of the reference's gap and on 32 still .73 (listed: .02 on 8);
half-intransitive raters leave the best bilinear preference .89 on 8 and .66 on 16. GSHF ends at .95 of the start,
offline GSHF at 1.02. OELHF ends at 1.13 of the reference's gap, so it would have done better to learn nothing, ahead of
greedy Nash and PELHF; GSHF, which believes in a reward, is at 5.6 of it.
A learnt theta is worth less over all responses than within its pool: tilting the whole law ends at .09 where the policy
that never leaves the pool has .032 (gold, GSHF online; greedy .15 and .015), as features of responses that the
reference hardly says are far from those of the pool. Renormalising the reference over the candidates instead of
counting draws makes little difference here; on the toy's texts, which the model gives e^-10 to e^-50, it would put
three quarters of the first prompt's law on its likeliest text.

What differs: the pools of `listed` are whitened over all responses, not over the pool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from llm_bridge import need_extra
from simbandit import algorithms, plotting
from simbandit.draws import Draws
from simbandit.equilibrium import duality_gap, solve
from simbandit.estimators import logistic_mle
from simbandit.guarantees import Exponent, Number, Ordering
from simbandit.guarantees.rows import select
from simbandit.metrics import Snapshot, kl
from simbandit.oracles import BradleyTerry, PreferenceTable
from simbandit.policies import gibbs
from simbandit.preferences import bilinear_mle, skew_matrix
from simbandit.simulate import Problem, simulate
from simbandit.study import Settings, Study, Task
from simbandit.worlds import TableWorld
from studies._pools import DrawnPools, listed

KL_COEF = {"listed": 0.3, "toy": 0.2}
K, DIM, ROUNDS, BATCH = 16, 8, 64, 16
DIMS = {"listed": (2, 4, 8, 16), "toy": (2, 4, 8, 16, 32)}
REWARDS: dict[str, Any] = {
    "GSHF online": algorithms.create("gshf_online"),
    "GSHF best/worst": algorithms.create("gshf_online", enhancer="best_worst_of_n"),
    "GSHF, pairs with reference": algorithms.create("gshf_hybrid"),
    "GSHF offline": algorithms.create("gshf_offline"),
    "greedy": algorithms.create("greedy"),
    "reference's duels": algorithms.create("two_stage", first_stage=1.0),
}
GAMES: dict[str, Any] = {
    "OELHF": algorithms.create("oelhf"),
    "greedy Nash": algorithms.create("nash_greedy"),
    "PELHF": algorithms.create("pelhf"),
    "GSHF online": REWARDS["GSHF online"],
}
OVER_ALL = ("over all, within the pool", "over all, tilted")


# -------------------------------------------------------------------------------------------------------------- listed


def on_listed(
    reward: str, law: Any, method: str, rounds: int, length: int, replicates: int, seed: int, device: str
) -> pd.DataFrame:
    assert device == "cpu", "responses are listed on the CPU"
    every, kl_coef = listed(reward, DIM, length, seed), KL_COEF["listed"]
    world, optimum = DrawnPools(every, K, law), every.optimum(kl_coef)

    def kept(s: Snapshot) -> Tensor:
        target = world.take(optimum, world.drawn(s.instance.draws))
        gaps = torch.where(torch.isneginf(s.log_probs), 0.0, s.log_probs - target)
        return kl_coef * s.over_contexts((s.log_probs.exp() * gaps).sum(-1))

    def tilted(s: Snapshot) -> Tensor:
        theta = s.info.theta
        scores = torch.zeros(len(s.log_probs), *every.ref.shape) if theta is None else scored(every.features, theta)
        return kl_coef * s.over_contexts(kl(gibbs(scores, every.ref, kl_coef), optimum))

    metrics = ["suboptimality", (OVER_ALL[0], kept), (OVER_ALL[1], tilted)]
    return simulate(
        Problem(world, BradleyTerry(), kl_coef),
        REWARDS[method],
        rounds=rounds,
        batch_size=BATCH,
        replicates=replicates,
        seed=seed,
        metrics=metrics,
    ).frame()


def scored(features: Tensor, theta: Tensor) -> Tensor:
    """<theta, phi>: features (X, A, d) or (R, X, A, d), theta (R, d) -> (R, X, A)."""
    return (features @ theta[:, None, :, None]).squeeze(-1)


# ----------------------------------------------------------------------------------------------------------------- toy


@cache
def toy_pool(steps: int) -> tuple[TableWorld, PreferenceTable]:
    """The pool of the toy model, trained for so many steps, with the true text reward; and the raters as an oracle."""
    from llm_bridge import LMPolicy, candidate_pool, preference_table, toy
    from llm_bridge.grammar import Grammar
    from llm_bridge.loading import load_model
    from llm_bridge.oracles import BradleyTerry as Judge
    from llm_bridge.oracles import Preferring, Written

    prompts, model = Grammar().prompts()[::3], toy.untrained()
    if steps:
        with TemporaryDirectory() as folder:
            toy.train(folder, steps=steps)
            model = load_model(folder)
    policy = LMPolicy.of(model, toy.tokenizer(), prompts, max_new_tokens=24)
    world = candidate_pool(policy, K, scorer=Written(toy.true_reward), dim=DIMS["toy"][-1])
    judges = (Judge(Written(toy.true_reward)), Preferring(toy.intransitive_raters))
    one, other = (np.asarray(preference_table(world, judge).preference) for judge in judges)
    return world, PreferenceTable((one + other) / 2)


def narrowed(world: TableWorld, dim: int) -> TableWorld:
    """The same pool with its leading principal components alone, whitened as if it had been built with them."""
    features = np.asarray(world.features)
    return replace(world, features=features[..., :dim] * np.sqrt(features.shape[-1] / dim))


def on_toy(
    annotator: str, method: str, rounds: int, steps: int, replicates: int, seed: int, device: str
) -> pd.DataFrame:
    world, table = toy_pool(steps)
    world = narrowed(world, DIM)
    oracle, metric = (BradleyTerry(), "suboptimality") if annotator == "reward" else (table, "duality_gap")
    frame = simulate(
        Problem(world, oracle, KL_COEF["toy"]),
        (REWARDS if annotator == "reward" else GAMES)[method],
        rounds=rounds,
        batch_size=BATCH,
        replicates=replicates,
        seed=seed,
        device=device,
        metrics=[metric],
    ).frame()
    start = float(select(frame, {"round": 0})["value"].to_numpy().mean())
    return pd.concat([frame, frame.assign(metric="share", value=frame["value"] / start)], ignore_index=True)


# -------------------------------------------------------------------------------------------------------------- floors


def floor(where: str, what: str, dim: int, size: int, replicates: int, seed: int, device: str) -> pd.DataFrame:
    """What the best linear reward, or bilinear preference, leaves of the reference's gap within a pool: fitted to every
    pair of candidates with its exact label."""
    del device
    kl_coef = KL_COEF[where]
    if where == "listed":
        world: Any = DrawnPools(listed("gold", dim, size, seed), K)
        oracle: Any = BradleyTerry()
    else:
        world, raters_table = toy_pool(size)
        world = narrowed(world, dim)
        oracle = BradleyTerry() if what == "reward" else raters_table
    instance = world.instance(replicates, Draws(seed, replicates))
    pool = instance.evaluation
    table, ref, features = oracle.bind(instance).win_table(pool), pool.ref_log_probs, pool.features
    a, b = torch.triu_indices(K, K, offset=1)
    count = (~torch.isneginf(ref[..., a] + ref[..., b])).double().flatten(1)
    first, second = features[:, :, a].flatten(1, 2), features[:, :, b].flatten(1, 2)
    wins = count * table[:, :, a, b].flatten(1)
    if what == "reward":
        theta = logistic_mle(first - second, wins, count, ridge=1e-6).theta
        best, start = (instance.optimal_log_probs(kl_coef), ref)
        left = kl(gibbs(scored(features, theta), ref, kl_coef), best).mean(-1)
        share = left / kl(start.expand_as(best), best).mean(-1)
    else:
        theta = bilinear_mle(first, second, wins, count, ridge=1e-6).theta
        fitted = torch.sigmoid(features @ skew_matrix(theta)[:, None] @ features.mT)
        found = solve(fitted, ref, kl_coef).log_probs
        share = duality_gap(found, table, ref, kl_coef).mean(-1) / duality_gap(ref, table, ref, kl_coef).mean(-1)
    rows = {"replicate": range(replicates), "round": 0, "queries": 0.0, "metric": "share"}
    return pd.DataFrame({**rows, "value": share.expand(replicates).numpy()})


def cells(settings: Settings, tuned: Mapping[str, Any]) -> Sequence[Task]:
    del tuned
    need_extra()
    small = settings.smoke
    rounds, length, steps = (4, 2, 0) if small else (ROUNDS, 5, 400)
    methods = ("GSHF online", "GSHF offline") if small else tuple(REWARDS)
    grid = []

    def add(function: Any, labels: dict[str, Any], **arguments: Any) -> None:
        chosen = {name: value for name, value in labels.items() if name != "part"}
        grid.append(Task(labels, function, {**chosen, **arguments}, settings.replicates, settings.seed))

    for reward in ("linear", "gold"):
        for method in methods:
            labels = {"part": "listed", "reward": reward, "law": "draws", "method": method}
            add(on_listed, labels, rounds=rounds, length=length)
    labels = {"part": "listed", "reward": "gold", "law": "reference", "method": "GSHF online"}
    add(on_listed, labels, rounds=rounds, length=length)
    for annotator, names in (("reward", methods), ("raters", ("OELHF",) if small else tuple(GAMES))):
        for method in names:
            add(on_toy, {"part": "toy", "annotator": annotator, "method": method}, rounds=rounds, steps=steps)
    for where, what in (("listed", "reward"), ("toy", "reward"), ("toy", "raters")):
        dims = DIMS[where] if what == "reward" else DIMS[where][:-1]  # a skew form of 32 features has 496 numbers
        for dim in dims[1:3] if small else dims:
            size = length if where == "listed" else steps
            add(floor, {"part": "floor", "where": where, "what": what, "dim": dim}, size=size)
    return grid


LINEAR = {"part": "listed", "reward": "linear", "law": "draws"}
GOLD = {**LINEAR, "reward": "gold"}
TOY, RATERS = {"part": "toy", "annotator": "reward"}, {"part": "toy", "annotator": "raters"}
PAPER, OWN = "2312.11456", "own expectation"
WORLDS = {"linear": LINEAR, "gold": GOLD, "toy": TOY}


def _below(what: str, source: str, where: dict[str, Any], low: str, high: str, **options: Any) -> Ordering:
    metric = options.pop("metric", "suboptimality")
    return Ordering(what, source, metric, {"method": low}, {"method": high}, where, **options)


REWARDED = (
    ("online beats offline at equal duels", PAPER, "GSHF online", "GSHF offline", 1.0),
    ("GSHF beats greedy", PAPER, "GSHF online", "greedy", 1.0),
    ("GSHF beats reference's duels", PAPER, "GSHF online", "reference's duels", 1.0),
    ("greedy within 15 % of GSHF", "2510.24700", "greedy", "GSHF online", 1 / 1.15),
    ("best/worst of 8 is no worse", "2405.07863 (what is run)", "GSHF best/worst", "GSHF online", 1.0),
)
GAME = "2402.07314"
claims = (
    *(
        _below(f"{name}: {what}", source, where, low, high, factor=factor)
        for what, source, low, high, factor in REWARDED
        for name, where in WORLDS.items()
    ),
    Exponent(
        "linear: the gap falls like 1 / n",
        "2411.04625 (rate); tolerance ours",
        "suboptimality",
        {**LINEAR, "method": "GSHF online"},
        -1.0,
        0.3,
        window=(128, 1024),
    ),
    *(
        Exponent(
            f"{name}: the gap falls slower than n^-1/2, as the model is wrong",
            OWN,
            "suboptimality",
            {**where, "method": "GSHF online"},
            -0.5,
            0.0,
            "at least",
            window=(128, 1024),
        )
        for name, where in WORLDS.items()
        if name != "linear"
    ),
    *(
        Number(
            f"the best linear reward on {dim} features keeps at most half of the gap, {where}",
            OWN,
            "share",
            {"part": "floor", "where": where, "what": "reward", "dim": dim},
            0.5,
            0.0,
            "at most",
            exact=where == "toy",
        )
        for where, dim in (("listed", 8), ("toy", 8), ("toy", 32))
    ),
    Number(
        "the best bilinear preference on 8 features keeps at most half of the gap, toy",
        OWN,
        "share",
        {"part": "floor", "where": "toy", "what": "raters", "dim": 8},
        0.5,
        0.0,
        "at most",
        exact=True,
    ),
    *(
        _below(f"raters: OELHF beats {words}", GAME, RATERS, "OELHF", other, metric="share")
        for other, words in (
            ("GSHF online", "GSHF, which believes in a reward"),
            ("greedy Nash", "greedy Nash"),
            ("PELHF", "PELHF at equal duels"),
        )
    ),
    Number("raters: OELHF ends below the reference", GAME, "share", {**RATERS, "method": "OELHF"}, 1.0, 0.0, "at most"),
)


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=3, rows=2, height=2.6)
    looks = plotting.lines(list(REWARDS))
    titles = {
        "linear": "listed, a linear reward",
        "gold": "listed, a gold model's reward",
        "toy": "toy, the text's reward",
    }
    for ax, letter, (name, where) in zip(axes[0], "abc", WORLDS.items(), strict=True):
        _methods(ax, frame, "suboptimality", where, REWARDS, looks)
        ax.set_title(f"({letter}) {titles[name]}")
    left, middle, right = axes[1]
    variants = {
        f"{words}, {shown}": {**GOLD, "law": law, "method": "GSHF online", "metric": metric}
        for metric, words in zip(OVER_ALL, ("kept to the pool", "the whole law tilted"), strict=True)
        for law, shown in (("draws", "counts"), ("reference", "renormalised"))
    }
    for (words, where), look in zip(variants.items(), plotting.lines(list(variants)).values(), strict=True):
        rows = select(frame, where).assign(line=words)
        plotting.curves(left, rows, where["metric"], "line", looks={words: look}, loglog=True, legend=False)
    left.set_ylabel("suboptimality over all responses\n[reward] (lower is better)")
    left.set_title("(d) listed, gold: worth over all")
    left.set_ylim(top=20)
    left.legend(fontsize=6, loc="upper right")
    _methods(middle, frame, "duality_gap", RATERS, GAMES, plotting.lines(list(GAMES)[::-1]))
    middle.set_title("(e) toy, half the raters intransitive")
    middle.legend()
    floors = select(frame, {"part": "floor"})
    shown = {"listed reward": "listed, gold", "toy reward": "toy, reward", "toy raters": "toy, raters"}
    floors = floors.assign(line=floors["where"] + " " + floors["what"])
    plotting.curves(right, floors, "share", "line", x="dim", order=list(shown), names=shown)
    right.set_xscale("log", base=2)
    right.set_ylim(0, 1.05)
    right.set_xlabel("features")
    right.set_ylabel("share of the reference's gap left\nby the best linear model")
    right.set_title("(f) how wrong linear is")
    for ax in axes[0, 1:]:
        ax.set_ylabel("")
    plotting.legend_above(figure, axes[0, 0], columns=3)
    return figure


def _methods(ax: Any, frame: pd.DataFrame, metric: str, where: dict[str, Any], names: Any, looks: Any) -> None:
    """Curves of online methods, and offline ones at their single size."""
    there = set(select(frame, where)["method"])
    for name in [name for name in names if name in there]:
        rows = select(frame, {**where, "method": name, "metric": metric})
        plotting.curves(ax, rows, metric, "method", looks=looks, loglog=True, legend=False)
        queries = np.unique(rows["queries"])
        if len(queries) == 2:  # before and after a single update
            last = float(np.mean(select(rows, {"queries": queries[1]})["value"].to_numpy()))
            ax.plot(queries[1], last, marker=looks[name].marker, color=looks[name].color, linestyle="")
    ax.set_xlabel("queries")


study = Study(
    name="pool_gshf",
    title="GSHF and OELHF on pools of a language model's responses, with its hidden states as features",
    source="2312.11456, 2402.07314; own design, no paper's figure",
    cells=cells,
    claims=claims,
    plot=plot,
    replicates=64,
    smoke_replicates=4,
)
