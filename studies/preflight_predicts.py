"""Does the ranking of algorithms on a pool of candidates predict their ranking once they train the language model?

No paper's figure. `llm_bridge.preflight` runs algorithms on a frozen pool before a model is trained; this study trains
the model too, and compares. Eight direct rows: online DPO, iterative DPO (2312.11456), XPO (2405.21046), Online
IPO (2403.08635), INPO (2407.00617), SPPO (2405.00675), DNO (2404.03715), RSPO (2503.00030), with registry defaults.

Predicted. 16 candidates for each of 6 prompts, drawn from the toy model (a two-layer Llama on a template grammar), the
reference renormalised over them (`law="reference"`, which was the only choice when this ran; `preflight` now takes the
law of the draws by default, whose prediction is not measured here);
6 rounds of 192 duels on the pool, fits to the argmin, on log-linear policies over the candidates' whitened hidden
states (dimension 8; what `preflight` does) and on tables; four pools of 8 replicates each. Trained. The same rows, as
many duels of the same annotator: each round 16 steps of AdamW at 2e-4 on 64 duels, all weights, four seeds. Two
annotators: Bradley-Terry of the toy's true reward, where the suboptimality ranks, and three raters with cyclic tastes,
where the duality gap does; kl_coef .2. The trained model is judged against *all* responses (`llm_bridge.gaps`): the
best answer's value is a mean over 300 draws of the reference a prompt, KL is exact along 100 draws of its own.

Claims are guesses: Kendall's tau-b between the mean prediction and the mean after training is above 0, and
at least 1/2. Its interval resamples training seeds and pool replicates; it says nothing about other algorithms. Beside
it `reliability`: tau between one seed's trained ranking and the mean of the other seeds, a ceiling for any prediction
of one run. Learning rate, steps and duels were chosen from runs of INPO, XPO, online and iterative DPO on the reward
(at 5e-4 and more, or with 64 duels a round, every reward method ended further away than it began). A pilot of one seed
then timed both sides of most rows, and its numbers were seen before the full run: SE-POPO (whose fits on the pool take
a minute) and ONPO (two fits a round) were left out for their cost, RSPO took their place; nothing else was changed.

Found. With cyclic raters the trained ranking is reproducible (one seed with the others: tau .89) and the pool predicts
it: tau .71 [.29, .79] on log-linear policies, .36 [.21, .57] on tables. It names the methods to avoid: iterative DPO,
XPO and online DPO, which fit a reward to raters that have none, are worst on both sides; among the others the order on
the pool says little. All end further from the equilibrium than the untrained model. With the reward
nothing is there to predict: after 1,152 duels the methods are within noise of each other (one seed with the others:
.02), and tau is -.43 [-.79, .36] and .14 [-.36, .43]. The log-linear pool puts iterative DPO last, training puts it
first (we did not separate why). The sizes of gaps on a pool, fitted to the argmin over few candidates, are not those
after training either.

What differs from a real preflight: it is the toy; all rows get one learning rate.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import kendalltau

import simbandit
from llm_bridge import need_extra
from simbandit import algorithms, plotting
from simbandit.guarantees import MissingData, Verdict
from simbandit.guarantees.rows import at_round, select
from simbandit.guarantees.statistics import LEVEL, expanded_percentiles, mean_interval
from simbandit.simulate import Problem
from simbandit.study import Settings, Study, Task
from studies._language import toy_model

ROWS = {
    "online_dpo": "online DPO",
    "iterative_dpo": "iterative DPO",
    "xpo": "XPO",
    "online_ipo": "Online IPO",
    "inpo": "INPO",
    "sppo": "SPPO",
    "dno": "DNO",
    "rspo": "RSPO",
}
ANNOTATORS = {"Bradley-Terry": "suboptimality", "cyclic raters": "duality_gap"}
KL_COEF, ROUNDS, DUELS, STEPS, RATE, MINIBATCH = 0.2, 6, 192, 16, 2e-4, 64
PROMPTS = [f"about {noun} :" for noun in ("sailor", "farmer", "driver", "singer", "pilot", "cook")]
CANDIDATES, DIM, POOLS, POOL_REPLICATES, LONGEST = 16, 8, 4, 32, 24
POLICIES = ("log_linear", "tabular")
RESAMPLES = 2000
simulate: Any = simbandit.simulate  # policy classes and rows come by name


def judges(annotator: str) -> tuple[Any, Any]:
    """The annotator and, where there is one, its reward."""
    from llm_bridge import oracles, toy

    if annotator == "Bradley-Terry":
        scorer = oracles.Written(toy.true_reward)
        return oracles.BradleyTerry(scorer), scorer
    return oracles.Preferring(toy.intransitive_raters), None


def policy_of(smoke: bool, **options: Any) -> Any:
    from llm_bridge import LMPolicy

    model, tokenizer = toy_model(trained=not smoke)
    return LMPolicy.of(copy.deepcopy(model), tokenizer, PROMPTS, max_new_tokens=6 if smoke else LONGEST, **options)


@cache
def pool_of(annotator: str, smoke: bool, seed: int) -> tuple[Any, Any]:
    """The pool as a world, and the annotator's table on it."""
    from llm_bridge import candidate_pool, preference_table

    judge, scorer = judges(annotator)
    world = candidate_pool(policy_of(smoke), CANDIDATES, scorer=scorer, dim=DIM, law="reference", seed=seed)
    return world, preference_table(world, judge)


@cache
def examiner(annotator: str, smoke: bool, seed: int) -> Any:
    """What judges trained models: one for all of them, so that all meet the same draws of the reference."""
    from llm_bridge.gaps import SampledGap

    judge, scorer = judges(annotator)
    sizes: Any = {"size": 4, "against": 8} if smoke else {}
    return SampledGap(policy_of(smoke).freeze(), KL_COEF, scorer, None if scorer else judge, seed=seed, **sizes)


def predicted(
    row: str, annotator: str, policy: str, rounds: int, duels: int, smoke: bool, replicates: int, seed: int, device: str
) -> pd.DataFrame:
    """The row in the simulator, on four pools in turn."""
    parts = []
    for number in range(POOLS):
        world, oracle = pool_of(annotator, smoke, seed + number)
        numbers = list(range(number, replicates, POOLS))
        if not numbers:
            continue
        results = simulate(
            Problem(world, oracle, KL_COEF),
            algorithms.create(row),
            rounds=rounds,
            batch_size=duels,
            replicates=numbers,
            seed=seed,
            device=device,
            policy=policy,
            metrics=[ANNOTATORS[annotator]],
            record=[rounds],
        )
        parts.append(results.frame())
    return pd.concat(parts, ignore_index=True)


def trained(
    row: str, annotator: str, rounds: int, duels: int, smoke: bool, replicates: int, seed: int, device: str
) -> pd.DataFrame:
    """The row on the model's weights, one seed after the other; only the last policy is judged."""
    from llm_bridge import Training
    from llm_bridge.oracles import TextOracle
    from llm_bridge.rows import direct_row
    from simbandit.objective import Descent

    judge, parts = judges(annotator)[0], []
    at_the_end = [
        (name, lambda s, metric=metric: metric(s) if s.queries else None)
        for name, metric in examiner(annotator, smoke, seed).metrics()
    ]
    for replicate in range(replicates):
        training = Training(Descent(2 if smoke else STEPS, RATE), minibatch=MINIBATCH, seed=seed + replicate)
        policy = policy_of(smoke, training=training)
        results = simulate(
            Problem(policy.world(), TextOracle(policy.catalogue, judge), KL_COEF),
            direct_row(row),
            rounds=rounds,
            batch_size=duels,
            replicates=[replicate],
            seed=seed,
            device=device,
            policy=policy,
            metrics=at_the_end,
            record=[rounds],
        )
        parts.append(results.frame())
    return pd.concat(parts, ignore_index=True)


def untrained(annotator: str, smoke: bool, replicates: int, seed: int, device: str) -> pd.DataFrame:
    """The gap of the reference itself."""
    del device, replicates
    gap = float(examiner(annotator, smoke, seed).of(policy_of(smoke))[0].mean())
    told = {"replicate": [0], "round": 0, "queries": 0.0, "metric": ANNOTATORS[annotator], "value": [gap]}
    return pd.DataFrame(told)


def cells(settings: Settings, tuned: Mapping[str, Any]) -> Sequence[Task]:
    del tuned
    need_extra()
    smoke = settings.smoke
    rows = ["online_dpo", "inpo"] if smoke else list(ROWS)
    size = {"rounds": 2 if smoke else ROUNDS, "duels": 8 if smoke else DUELS, "smoke": smoke}
    grid = []
    for annotator in ANNOTATORS:
        told = {"annotator": annotator, "smoke": smoke}
        grid.append(Task({"annotator": annotator, "row": "", "side": "start"}, untrained, told, 1, settings.seed))
        for row in rows:
            labels = {"annotator": annotator, "row": row}
            shared = {"row": row, "annotator": annotator, **size}
            grid.append(Task({**labels, "side": "trained"}, trained, shared, settings.replicates, settings.seed))
            for policy in POLICIES:
                many = 2 if smoke else POOL_REPLICATES
                task = Task(
                    {**labels, "side": f"pool, {policy}"}, predicted, {**shared, "policy": policy}, many, settings.seed
                )
                grid.append(task)
    return grid


# ------------------------------------------------------------------------------------------------------------- claims


def table(frame: pd.DataFrame, annotator: str, side: str) -> pd.DataFrame:
    """The final gap, replicates x rows."""
    metric = ANNOTATORS[annotator]
    found = select(frame, {"annotator": annotator, "side": side, "metric": metric})
    values = {row: at_round(part, None) for row, part in found.groupby("row", sort=False)}
    return pd.DataFrame(values)


def agreement(frame: pd.DataFrame, annotator: str, side: str) -> tuple[float, float, float]:
    """Kendall's tau-b of the mean gaps on the pool and after training, with the interval of a bootstrap that resamples
    the replicates of both sides."""
    left, right = table(frame, annotator, side), table(frame, annotator, "trained")
    pool, real = left.to_numpy(), right[left.columns].to_numpy()
    rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence([len(pool), len(real)])))
    resampled = [
        _tau(
            pool[rng.integers(len(pool), size=len(pool))].mean(0), real[rng.integers(len(real), size=len(real))].mean(0)
        )
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(resampled, expanded_percentiles(min(len(pool), len(real)), LEVEL), method="nearest")
    return _tau(pool.mean(0), real.mean(0)), float(low), float(high)


def reliability(frame: pd.DataFrame, annotator: str) -> tuple[float, float, float]:
    """Tau of one training seed's ranking and that of the other seeds' means, over seeds."""
    values = table(frame, annotator, "trained").to_numpy()
    taus = [_tau(row, np.delete(values, i, axis=0).mean(0)) for i, row in enumerate(values)]
    mean, low, high = (float(v) for v in mean_interval(np.array(taus)))
    return mean, low, high


def _tau(first: np.ndarray, second: np.ndarray) -> float:
    found: Any = kendalltau(first, second)
    return float(np.nan_to_num(found.statistic))


@dataclass(frozen=True)
class Agreement:
    """Kendall's tau of the pool's ranking and the one after training is at least `value`."""

    name: str
    source: str
    where: Mapping[str, str]
    value: float

    def judge(self, frame: pd.DataFrame) -> Verdict:
        annotator, side = self.where["annotator"], self.where["side"]
        if not {annotator} <= set(frame["annotator"]) or not {side, "trained"} <= set(frame["side"]):
            raise MissingData(f"claim {self.name!r}: no rows with {dict(self.where)}")
        tau, low, high = agreement(frame, annotator, side)
        verdict = "holds" if low > self.value else "fails" if high <= self.value else "undecided"
        return Verdict(self.name, self.source, f"> {self.value:g}", tau, low, high, verdict)


GUESS = "our guess"
claims = tuple(
    Agreement(f"{annotator}, {side}: tau above {value:g}", GUESS, {"annotator": annotator, "side": side}, value)
    for annotator in ANNOTATORS
    for side in (f"pool, {policy}" for policy in POLICIES)
    for value in (0.0, 0.5)
)


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=2, height=3.0)
    looks = plotting.lines(list(ROWS))
    for ax, letter, (annotator, metric) in zip(axes[0], "ab", ANNOTATORS.items(), strict=True):
        side = f"pool, {POLICIES[0]}"
        pool, real = table(frame, annotator, side), table(frame, annotator, "trained")
        for row in pool.columns:
            x, y = (mean_interval(t[row].to_numpy()) for t in (pool, real))
            look = looks[row]
            ax.plot(x.estimate, y.estimate, color=look.color, marker=look.marker, linestyle="", label=ROWS[row])
            if np.isfinite(y.low):
                ax.vlines(x.estimate, y.low, y.high, color=look.color, alpha=0.4, linewidth=0.8)
                ax.hlines(y.estimate, x.low, x.high, color=look.color, alpha=0.4, linewidth=0.8)
        start = select(frame, {"annotator": annotator, "side": "start"})
        ax.axhline(float(start["value"].to_numpy().mean()), color="0.5", linewidth=0.8)
        told = [f"{p.replace('_', '-')}: {agreement(frame, annotator, f'pool, {p}')[0]:.2f}" for p in POLICIES]
        ceiling = reliability(frame, annotator)[0]
        ax.set_title(f"({letter}) {annotator}\ntau {', '.join(told)}\none seed with the others: {ceiling:.2f}")
        ax.set_xlabel(f"{metric.replace('_', ' ')} on the pool, log-linear policies")
        ax.set_ylabel(f"{metric.replace('_', ' ')} after training\n(grey: before)")
    plotting.legend_above(figure, axes[0, 0])
    return figure


study = Study(
    name="preflight_predicts",
    title="Does the ranking on a pool predict the ranking after training the toy language model?",
    source="own design; no paper's figure",
    cells=cells,
    claims=claims,
    plot=plot,
    replicates=4,
    smoke_replicates=2,
)
