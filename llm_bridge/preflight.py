"""Before any GPU is spent: algorithms on a pool of real candidates and real judgments, many replicates, one page."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from llm_bridge import plans
from llm_bridge.candidates import Law, Pool, preference_table
from llm_bridge.diagnosis import explains, judge_test, judged, rank_agreement, reference_gap, restriction
from llm_bridge.oracles import Cached, Judge
from llm_bridge.plans import Plan
from llm_bridge.policy import LMPolicy
from llm_bridge.rows import direct_row
from simbandit import algorithms
from simbandit.algorithms.direct import Direct
from simbandit.guarantees.statistics import LEVEL, mean_interval, paired_difference_interval
from simbandit.simulate import Problem, simulate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FACTORS = (0.5, 1.0, 2.0)  # of kl_coef
TURNING = 1e-3  # below this frequency a game does not rotate worth speaking of


@dataclass(frozen=True, eq=False)
class Preflight:
    """The answer; `str` is the page, `save` writes it with what machines read.

    frame: long, a row per algorithm, kl_coef, replicate and recorded round; metric is "suboptimality" where a reward
    explains the judge, else "duality_gap". judge: what the judge and the pool are like. start: the reference's own gap
    by kl_coef. cost: of the restriction to K candidates, by K. warnings: by name of algorithm. plans: of the real run,
    for the algorithms that cost the same, by their names.
    """

    frame: pd.DataFrame
    judge: dict[str, float]
    start: dict[float, float]
    cost: pd.DataFrame
    warnings: list[str]
    plans: dict[str, Plan]
    kl_coef: float

    @property
    def metric(self) -> str:
        return str(self.frame["metric"].iloc[0])

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(self.frame["algorithm"]))

    def values(self, kl_coef: float | None = None) -> dict[str, np.ndarray]:
        """Of every algorithm, the gap at the end of each replicate, (R,)."""
        rows: Any = self._at(kl_coef)
        last: Any = rows[rows["round"] == rows["round"].max()]
        return {name: last[last["algorithm"] == name]["value"].to_numpy() for name in self.names}

    def ranking(self, kl_coef: float | None = None) -> pd.DataFrame:
        """Algorithms by their mean gap at the end, smallest first, with its 95 % interval; queries asked; `beats`:
        those with a larger gap, replicate by replicate, all pairs simultaneously at 95 %."""
        rows: Any = self._at(kl_coef)
        better: Any = self.comparisons(kl_coef)
        found = []
        for name, values in self.values(kl_coef).items():
            mean, low, high = (float(v) for v in mean_interval(values))
            queries = float(rows[rows["algorithm"] == name]["queries"].max())
            won = better[(better["better"] == name) & better["significant"]]["worse"].tolist()
            told: dict[str, Any] = {"algorithm": name, "queries": queries, "gap": mean, "low": low, "high": high}
            found.append(told | {"beats": won})
        return pd.DataFrame(found).sort_values("gap", kind="stable").reset_index(drop=True)

    def comparisons(self, kl_coef: float | None = None) -> pd.DataFrame:
        """Every pair of algorithms on the same replicates: which has the smaller mean gap, the difference with its
        simultaneous interval (Bonferroni over pairs, 95 %), and whether that leaves zero out."""
        values = self.values(kl_coef)
        pairs = [(a, b) for i, a in enumerate(self.names) for b in self.names[i + 1 :]]
        rows = []
        for a, b in pairs:
            better, worse = (a, b) if values[a].mean() <= values[b].mean() else (b, a)
            difference = paired_difference_interval(values[worse], values[better], 1 - (1 - LEVEL) / len(pairs))
            mean, low, high = (float(v) for v in difference)
            told = {"better": better, "worse": worse, "difference": mean, "low": low, "high": high}
            rows.append(told | {"significant": low > 0})
        columns = ["better", "worse", "difference", "low", "high", "significant"]
        return pd.DataFrame(rows, columns=columns)

    def curves(self) -> pd.DataFrame:
        """Mean gap and its interval of every algorithm, kl_coef and recorded round."""
        rows = []
        for where, part in self.frame.groupby(["algorithm", "kl_coef", "round", "queries"], sort=False)["value"]:
            mean, low, high = (float(v) for v in mean_interval(part.to_numpy()))
            place: Any = where
            told = dict(zip(("algorithm", "kl_coef", "round", "queries"), place, strict=True))
            rows.append(told | {"gap": mean, "low": low, "high": high})
        return pd.DataFrame(rows)

    def sensitivity(self) -> pd.DataFrame:
        """Mean gap by algorithm (rows) and kl_coef (columns)."""
        means = {k: {name: float(v.mean()) for name, v in self.values(k).items()} for k in self._coefficients()}
        return pd.DataFrame(means)

    # ------------------------------------------------------------------------------------------------------- pages

    def __str__(self) -> str:
        return "\n".join(
            [*self._judge(), "", *self._ranking(), "", *self._sensitivity(), "", *self._cost(), *self._end()]
        )

    def _judge(self) -> list[str]:
        j, fails = self.judge, self.judge["test_p_value"] < 0.05
        refuted = "refuted" if fails else "not refuted"
        return [
            "Judge and pool",
            f"  {j['prompts']:.0f} prompts with {j['candidates']:.3g} different candidates of {j['k']:.0f} draws",
            f"  circulation: {j['circulating']:.3g} of the judge's logits (0: a reward explains them); mean "
            f"|P - best Bradley-Terry| {j['misfit']:.2g}",
            f"  Bradley-Terry {refuted} by {j['test_duels']:,.0f} simulated duels on {j['test_prompts']:.0f} prompts: "
            f"likelihood ratio {j['test_statistic']:.4g}, p = {j['test_p_value']:.3g}",
            f"  coverage: the best policy has up to {j['largest_ratio']:.3g} times the reference's probability; "
            f"E[best / reference] = {j['coverage']:.3g}",
            f"  rotation: omega {j['frequency']:.3g} at the worst prompt; mirror descent is stable up to step_size "
            f"{2 * self.kl_coef / (self.kl_coef**2 + j['frequency'] ** 2):.3g}",
        ]

    def _ranking(self) -> list[str]:
        ranking, replicates = self.ranking(), len(set(self.frame["replicate"].tolist()))
        told = "suboptimality [reward]" if self.metric == "suboptimality" else "duality gap [win probability]"
        width = max(map(len, self.names))
        lines = [
            f"Ranking at kl_coef {self.kl_coef:g}: {told} within the pool, mean and 95 % interval of {replicates} "
            f"replicates (reference {self.start[self.kl_coef]:.3g})"
        ]
        rows = ranking.to_dict("records")
        for rank, row in enumerate(rows, start=1):
            interval = f"[{row['low']:.3g}, {row['high']:.3g}]"
            below = [other["algorithm"] for other in rows[rank:]]
            better = [name for name in below if name in row["beats"]]
            than = "all below" if better == below and len(below) > 1 else ", ".join(better) or "none below"
            told = f"; better than {than}" if below else ""
            lines.append(f"  {rank}. {row['algorithm']:{width}}  {row['gap']:.3g} {interval}{told}")
        worse = [row["algorithm"] for row in rows if row["low"] > self.start[self.kl_coef]]
        if worse:
            lines.append(f"  further from the target than the untrained reference: {', '.join(worse)}")
        lines.append("  (better: paired on the same replicates, all pairs simultaneously at 95 %)")
        curves = self.curves()
        curves = curves[np.isclose(curves["kl_coef"], self.kl_coef)]
        table = curves.pivot(index="algorithm", columns="queries", values="gap").loc[ranking["algorithm"]]
        lines += [
            "",
            "Predicted gap against queries",
            f"  {'':{width}}" + "".join(f"{q:>10.0f}" for q in table.columns),
        ]
        for name, values in zip(table.index, table.to_numpy(), strict=True):
            lines.append(f"  {name:{width}}" + "".join(f"{v:>10.3g}" for v in values))
        return lines

    def _sensitivity(self) -> list[str]:
        table, width = self.sensitivity(), max(map(len, self.names))
        lines = ["Sensitivity: the gap at the end, by kl_coef", f"  {'':{width}}" + "".join(f"{k:>10g}" for k in table)]
        lines += [
            f"  {name:{width}}" + "".join(f"{v:>10.3g}" for v in row)
            for name, row in zip(table.index, table.to_numpy(), strict=True)
        ]
        lines.append(f"  {'reference':{width}}" + "".join(f"{self.start[k]:>10.3g}" for k in table))
        if len(table) > 1:
            taus = [f"{rank_agreement(table[a].tolist(), table[b].tolist()):.2f}" for a, b in pairwise(table)]
            lines.append(f"  Kendall's tau of neighbouring rankings: {', '.join(taus)}")
        return lines

    def _cost(self) -> list[str]:
        if self.cost.empty:
            return ["Cost of looking at K candidates only: not measured (no held-out draws)"]
        lines = [
            f"Cost of looking at K candidates only: {self.metric.replace('_', ' ')} of the best policy on them "
            f"against all responses, kl_coef {self.kl_coef:g}"
        ]
        for row in self.cost.to_dict("records"):
            thin = (
                f"; {row['effective']:.1f} held-out draws carry it, so it may be more" if row["effective"] < 3 else ""
            )
            told = f"{row['cost']:.3g} [{row['low']:.3g}, {row['high']:.3g}], {row['silence']:.3g} of it for silence"
            lines.append(f"  K = {row['k']:<4.0f} {told}{thin}")
        lines.append(
            "  (silence: -kl_coef log reference(pool), what never giving another response costs whatever it is)"
        )
        return lines

    def _end(self) -> list[str]:
        lines = ["", "Warnings", *(f"  {w}" for w in self.warnings)] if self.warnings else []
        for whose, plan in self.plans.items():
            lines += ["", f"The real run: {whose}", *(f"  {line}" for line in str(plan).splitlines())]
        return lines

    def as_dict(self) -> dict[str, Any]:
        """Everything but the replicates, in plain values."""
        return {
            "kl_coef": self.kl_coef,
            "metric": self.metric,
            "replicates": len(set(self.frame["replicate"].tolist())),
            "reference_gap": {f"{k:g}": gap for k, gap in self.start.items()},
            "judge": self.judge,
            "ranking": self.ranking().to_dict("records"),
            "comparisons": self.comparisons().to_dict("records"),
            "sensitivity": {f"{k:g}": column.to_dict() for k, column in self.sensitivity().items()},
            "restriction": self.cost.to_dict("records"),
            "warnings": self.warnings,
            "plans": {whose: plan.as_dict() for whose, plan in self.plans.items()},
        }

    def save(self, folder: str | Path) -> list[Path]:
        """page.txt, report.json, replicates.parquet (the frame), and figure.png with figure.svg."""
        from simbandit.plotting import save

        where = Path(folder)
        where.mkdir(parents=True, exist_ok=True)
        (where / "page.txt").write_text(f"{self}\n")
        (where / "report.json").write_text(json.dumps(self.as_dict(), indent=1) + "\n")
        self.frame.to_parquet(where / "replicates.parquet")
        pictures = save(self.figure(), where / "figure")
        return [where / "page.txt", where / "report.json", where / "replicates.parquet", *pictures]

    def figure(self) -> Figure:
        """Gap against queries; the gap at the end by kl_coef; and the cost of K candidates."""
        from simbandit import plotting

        with plotting.style():
            return self._drawn(plotting)

    def _drawn(self, plotting: Any) -> Figure:
        figure, axes = plotting.panels(columns=3, height=2.7)
        order, looks = list(self.ranking()["algorithm"]), plotting.lines(self.names)
        shared: Any = {"order": order, "looks": looks, "legend": False}
        plotting.curves(axes[0, 0], self._at(None), self.metric, "algorithm", **shared)
        axes[0, 0].axhline(self.start[self.kl_coef], color="0.5", linewidth=0.8)
        last: Any = self.frame[self.frame["round"] == self.frame["round"].max()]
        plotting.curves(axes[0, 1], last, self.metric, "algorithm", x="kl_coef", **shared)
        axes[0, 1].set_xscale("log", base=2)
        axes[0, 1].set_xticks(self._coefficients(), [f"{k:g}" for k in self._coefficients()])
        for ax, title in zip(
            axes[0], ("(a) predicted", "(b) after the last round", "(c) cost of K candidates"), strict=True
        ):
            ax.set_title(title)
        for ax in axes[0, :2]:
            ax.set_yscale("log")
        axes[0, 1].set_ylabel("")
        if len(self.cost):
            k, cost, low, high = (self.cost[name].to_numpy(dtype=float) for name in ("k", "cost", "low", "high"))
            axes[0, 2].plot(k, cost, color="black", marker="o")
            axes[0, 2].fill_between(k, low, high, color="black", alpha=0.2, linewidth=0)
            axes[0, 2].set_xscale("log", base=2)
            axes[0, 2].set_ylim(bottom=0)
        axes[0, 2].set_xlabel("candidates drawn, K")
        axes[0, 2].set_ylabel(f"{self.metric.replace('_', ' ')}\nof the pool's best policy")
        plotting.legend_above(figure, axes[0, 0], columns=5)
        return figure

    def _at(self, kl_coef: float | None) -> pd.DataFrame:
        near = self.kl_coef if kl_coef is None else kl_coef
        rows: Any = self.frame[np.isclose(self.frame["kl_coef"], near, rtol=1e-9)]
        if rows.empty:
            raise ValueError(f"kl_coef: must be one of {self._coefficients()}, got {kl_coef}")
        return rows

    def _coefficients(self) -> list[float]:
        return sorted(set(self.frame["kl_coef"].tolist()))


def preflight(
    policy: LMPolicy,
    pool: Pool,
    judge: Judge,
    names: Sequence[str],
    *,
    kl_coef: float,
    held: Pool | None = None,
    dim: int = 8,
    law: Law = "draws",
    rounds: int = 60,
    batch_size: int = 16,
    replicates: int = 32,
    seed: int = 0,
    steps: int = 10,
    minibatch: int | None = None,
    flop_rate: float | None = None,
    progress: bool = False,
) -> Preflight:
    """Runs algorithms of the registry on a pool, judged once on all pairs of candidates, at three values of kl_coef.

    pool, held: of `drawn_pool`; `held`, fresh draws (another `purpose`), measures what the restriction to the pool's
    candidates costs. Gaps are suboptimalities where the pool has rewards that explain the judge, else duality gaps of
    the game; dim: features for the model-based algorithms, and for the direct ones, which fit log-linear policies.
    law: the reference on the candidates (`candidates.Law`).
    steps, minibatch: of the planned training run, whose rounds and batch_size are the simulated ones; flop_rate: FLOP
    per second of the machine it will run on (None: measured here). Every algorithm meets the same replicates.
    Deviation: gaps are within the pool; the cost of that is reported beside them.
    Raises ValueError for unknown names, fewer than two replicates, or a pool with nothing to choose from.
    """
    if replicates < 2:
        raise ValueError(f"replicates: an interval needs at least 2, got {replicates}")
    if len(set(names)) != len(names) or not names:
        raise ValueError(f"names: different algorithms, at least one, got {list(names)}")
    methods = {name: algorithms.create(name) for name in names}
    cached = judge if isinstance(judge, Cached) else Cached(judge)
    world = pool.world(dim, law)
    oracle = preference_table(world, cached)
    preference, ref = np.asarray(oracle.preference), np.asarray(world.ref_log_probs)
    rewarded = world.rewards is not None and explains(world.rewards, ref, preference)
    told = judged(ref, preference, kl_coef, np.asarray(world.rewards) if rewarded else None)
    test = judge_test(ref, preference, rounds * batch_size, seed=seed)
    told |= {"k": float(pool.k), "prompts": float(world.n_contexts)}
    told |= {f"test_{name}": float(value) for name, value in test._asdict().items()}
    metric = "suboptimality" if rewarded else "duality_gap"
    parts, heard = [], []
    jobs = [(name, factor * kl_coef) for name in names for factor in FACTORS]
    for name, coefficient in tqdm(jobs, unit="run", disable=None if progress else True, leave=False):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            results = simulate(
                Problem(world, oracle, coefficient),
                methods[name],
                rounds=rounds,
                batch_size=batch_size,
                replicates=replicates,
                seed=seed,
                metrics=[metric],
                record=sorted({0, rounds // 8, rounds // 4, rounds // 2, rounds}),
            )
        parts.append(results.frame().assign(algorithm=name, kl_coef=coefficient))
        if coefficient == kl_coef:
            heard += [f"{name}: {w.message}" for w in caught if "stability limit of the worst" not in str(w.message)]
    unstable = [line for name, a in methods.items() for line in step_warnings(name, a, kl_coef, told["frequency"])]
    rewards = np.asarray(world.rewards) if rewarded else None
    start = {factor * kl_coef: reference_gap(ref, preference, factor * kl_coef, rewards) for factor in FACTORS}
    cost = restriction(pool, held, cached, kl_coef, rewarded=rewarded)
    question = plans.question_seconds(cached, _questions(world))
    planned = _planned(policy, methods, plans.Run(rounds, batch_size, steps, minibatch), question, flop_rate)
    return Preflight(pd.concat(parts, ignore_index=True), told, start, cost, unstable + heard, planned, kl_coef)


def step_warnings(name: str, algorithm: Any, kl_coef: float, frequency: float) -> list[str]:
    """Where an algorithm's step is beyond what the pool's games bear, by its name. Rows that play the unregularised
    game around their last policy (sppo, spo, dno) leave an equilibrium at every step size, where the game turns."""
    limit = getattr(algorithm, "step_limit", None)
    step = None if limit is None else limit(kl_coef, frequency)
    if step is not None and step.value > step.limit:
        return [
            f"{name}: {step.name} {step.value:g} is beyond {step.limit:.3g} = {step.formula}, omega = {frequency:.3g}"
        ]
    if (
        isinstance(algorithm, Direct)
        and algorithm.anchor == "last"
        and not algorithm.optimistic
        and frequency > TURNING
    ):
        return [
            f"{name}: plays the unregularised game, whose last iterate leaves an equilibrium at every step_size "
            f"(omega = {frequency:.3g}); kl_coef plays no part"
        ]
    return []


def _planned(
    policy: LMPolicy, methods: dict[str, Any], run: plans.Run, question: float, flop_rate: float | None
) -> dict[str, Plan]:
    """For every direct row that was asked for, those of equal cost together."""
    rates, prompt, response = plans.measured(policy, question=question)
    if policy.training is not None:
        run = dataclasses.replace(run, accumulate=policy.training.accumulate)
    rows = {name: run.under(direct_row(name)) for name, method in methods.items() if isinstance(method, Direct)}
    found = {}
    for planned in dict.fromkeys(rows.values()) or [run]:
        plan = Plan(planned, plans.Size.of(policy.model), prompt, response, rates)
        if flop_rate is not None:
            plan = Plan(planned, plan.size, prompt, response, plans.given(flop_rate, plan, question))
        found[", ".join(name for name in rows if rows[name] == planned) or "any direct row"] = plan
    return found


def _questions(world: Any, most: int = 16) -> list[tuple[str, str, str]]:
    """A few of the pool's pairs, to time the judge."""
    texts = [
        (str(prompt), str(items[0]), str(items[1]))
        for prompt, items in zip(world.context_names, world.item_names, strict=True)
        if len(items) > 1
    ]
    return texts[:most]
