"""Do people's comparisons of passages have a reward? Bradley-Terry, curl, and whom RLHF, Nash and Borda please.

Input: a table of comparisons, one row each, with columns left, right, winner and a column of contexts that is called
context, question or prompt: --data FILE (CSV or Parquet), or `human_judgments.csv` of the folder in $SIMBANDIT_DATA
(11,681 crowdsourced judgments between passages that answer 50 questions, 5 to 130 passages each: Yan et al., SIGIR
2022). Without either a small synthetic stand-in is used (8 questions, half of them with a planted cycle); the figure
says which. No paper has this figure. A replicate is a question: all intervals resample questions.

Structure: how many pairs were compared, and whether majorities go round (`has_cycle`: a directed cycle of strict
majorities; `intransitive_triples`, of those compared in full).

Does Bradley-Terry hold? Per question the likelihood-ratio test against a free probability for each pair, 99 parametric
simulations (`rejected` at 5 %), once drawn from maximum-likelihood scores and once from scores with a standard normal
prior; both on the judgments and, for calibration, on judgments drawn from a Bradley-Terry law at the same pairs.
`curl`: share of the energy of the margins that no score explains (Hodge, pairs weighed by their comparisons). Sampling
noise has curl and makes cycles too, so both stand beside their means over 20 draws of that fitted law (`..._null`).

Policies: each question's judgments are halved at random. From the first half: Nash, the equilibrium of the estimated
preference at kl_coef = .05, uniform reference; RLHF, the Gibbs policy of Bradley-Terry scores (standard normal prior);
Borda, the Gibbs policy of the win rate against the reference (offline IPO). The two have each question's kl_coef
chosen so that all three are equally far from the reference in KL, since win rates and logits are different units. The
stated rule for pairs never compared in a half: called 1/2 ("half"), or taken from the Bradley-Terry fit
("bradley_terry"); compared pairs are smoothed by one win each way. Judged by the half they were learnt from ("fitted")
and by the other ("held out"), where `served` needs no rule: of the judgments between two passages, the share of the
policy's mass on the one that the rater preferred; `against_worst` is the win rate against the passage that beats the
policy most, `win_vs_...` against another policy.

Found on the human judgments: 96 % of the questions hold cycles, and 96 % would if Bradley-Terry held: with 1.9
judgments a pair, cycles and curl (60 % of the energy, 60 % under Bradley-Terry) are sampling noise. Drawn from
maximum-likelihood scores the test rejects 46 % of the questions, but also 38 % of those where Bradley-Terry holds; with
a prior it keeps its level and rejects 4 %, and where judgments are this few it errs towards keeping: "genuine cycles"
cannot be told from these data, nor excluded. So the three policies please the same people: held-out raters are served
alike (.60 with the Bradley-Terry rule, .54 with 1/2, where each policy stays closer to the reference), and Nash, which
wins by construction on the judgments that it was fitted to, keeps no advantage over RLHF on the others, neither on
average nor against the worst opponent. The rule for pairs never compared matters more than the solution concept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from simbandit import plotting
from simbandit.guarantees import Identity, Number, Ordering
from simbandit.guarantees.claims import Claim, Verdict
from simbandit.guarantees.rows import pivot, select
from simbandit.guarantees.statistics import mean_interval
from simbandit.study import Settings, Study, Task
from studies._judgments import FILE, LEVEL, hypothesis, load, pleased, structure

POLICIES = ("reference", "RLHF", "Borda", "Nash")
RULES = {"half": "never compared: 1/2", "bradley_terry": "never compared: Bradley-Terry"}
PRIORS = {"none": 1e-6, "standard normal": 1.0}
JUDGED = ("fitted", "held out")


def cells(settings: Settings, tuned: dict[str, Any]) -> Sequence[Task]:
    del tuned
    name, frame = load(settings.file(FILE), settings.replicates)
    n = len(frame["context"].drop_duplicates())

    def task(labels: dict[str, Any], function: Any, **arguments: Any) -> Task:
        return Task({**labels, "data": name}, function, {"frame": frame, **arguments}, n, settings.seed)

    return [
        task({"analysis": "structure"}, structure),
        *(
            task(
                {"analysis": "test", "prior": prior, "judgments": "simulated" if simulated else "observed"},
                hypothesis,
                ridge=ridge,
                simulated=simulated,
            )
            for prior, ridge in PRIORS.items()
            for simulated in (False, True)
        ),
        *(
            task(
                {"analysis": "policy", "policy": policy, "rule": rule, "judged": judged},
                pleased,
                policy=policy,
                rule=rule,
                judged=judged,
            )
            for rule in RULES
            for judged in JUDGED
            for policy in POLICIES
        ),
    ]


@dataclass(frozen=True)
class OnJudgments:
    """A statement about one data set: judged on it, undecided on any other."""

    claim: Claim

    @property
    def name(self) -> str:
        return self.claim.name

    @property
    def source(self) -> str:
        return self.claim.source

    def judge(self, frame: pd.DataFrame) -> Verdict:
        if "human judgments" not in set(frame["data"]):
            return Verdict(self.name, self.source, "human judgments only", math.nan, math.nan, math.nan, "undecided")
        return self.claim.judge(frame)


README, OWN, DERIVED = "the data's description", "own expectation", "derived"
STRUCTURE = {"analysis": "structure"}


def tests_of(prior: str, judgments: str) -> dict[str, Any]:
    return {"analysis": "test", "prior": prior, "judgments": judgments}


def policy(name: str, rule: str, judged: str = "held out") -> dict[str, Any]:
    return {"analysis": "policy", "policy": name, "rule": rule, "judged": judged}


claims = (
    *(
        OnJudgments(Number(f"{text}: {value:,}", README, metric, STRUCTURE, value, 1e-9, exact=True))
        for text, metric, value in (
            ("judgments", "all_judgments", 11_681),
            ("questions", "questions", 50),
            ("fewest passages", "fewest_passages", 5),
            ("most passages", "most_passages", 130),
        )
    ),
    OnJudgments(Number("most questions hold cycles", README, "has_cycle", STRUCTURE, 0.5, 0.0, "at least")),
    OnJudgments(
        Number(
            "and genuine ones: more questions than under Bradley-Terry, by .1",
            README,
            "has_cycle_excess",
            tests_of("standard normal", "observed"),
            0.1,
            0.0,
            "at least",
        )
    ),
    OnJudgments(
        Number(
            "Bradley-Terry is rejected in more than 5 % of the questions",
            OWN,
            "rejected",
            tests_of("standard normal", "observed"),
            LEVEL,
            0.0,
            "at least",
        )
    ),
    *(
        OnJudgments(
            Number(
                f"the test keeps its level (5 %, within 5), prior of what it draws from: {prior}",
                DERIVED,
                "rejected",
                tests_of(prior, "simulated"),
                LEVEL,
                0.05,
                "at most",
            )
        )
        for prior in PRIORS
    ),
    OnJudgments(
        Number(
            "there is more curl than Bradley-Terry's noise has",
            OWN,
            "curl_excess",
            tests_of("standard normal", "observed"),
            0.0,
            0.0,
            "at least",
        )
    ),
    *(
        Identity(
            f"{rule}: where it was fitted, Nash beats {other} at the same KL",
            DERIVED,
            "nash_shortfall",
            policy(other, rule, "fitted"),
            1e-9,
        )
        for rule in RULES
        for other in ("RLHF", "Borda")
    ),
    *(
        OnJudgments(
            Ordering(
                f"{rule}: held-out raters are served better by {name} than by the reference",
                OWN,
                "served",
                policy("reference", rule),
                policy(name, rule),
            )
        )
        for rule in RULES
        for name in ("RLHF", "Borda", "Nash")
    ),
    *(
        OnJudgments(
            Ordering(
                f"{rule}: held-out raters are served better by Nash than by {name}",
                OWN,
                "served",
                policy(name, rule),
                policy("Nash", rule),
            )
        )
        for rule in RULES
        for name in ("RLHF", "Borda")
    ),
    *(
        OnJudgments(
            Ordering(
                f"{rule}: held out, the worst opponent hurts RLHF more than Nash",
                OWN,
                "against_worst",
                policy("RLHF", rule),
                policy("Nash", rule),
            )
        )
        for rule in RULES
    ),
)


def dots(ax: Axes, frame: pd.DataFrame, metric: str) -> None:
    """Means with their 95 % intervals over questions: a policy a row, a rule a colour, held out filled."""
    looks = plotting.lines(list(RULES))
    for k, (rule, text) in enumerate(RULES.items()):
        for judged in JUDGED:
            if metric == "served" and judged == "fitted":
                continue
            where = {"rule": rule, "judged": judged, "metric": metric}
            rows = select(frame, where)
            table = pivot(rows.assign(row=[POLICIES.index(name) for name in rows["policy"]]), "row")
            found, filled = mean_interval(table.to_numpy()), judged == "held out"
            y = table.columns.to_numpy(dtype=float) + 0.2 * k + (0.1 if filled else 0.0) - 0.15
            ax.hlines(y, found.low, found.high, color=looks[rule].color, linewidth=1.0, alpha=1.0 if filled else 0.5)
            ax.plot(
                found.estimate,
                y,
                linestyle="",
                marker="o",
                color=looks[rule].color,
                markerfacecolor=looks[rule].color if filled else "white",
                label=f"{text}; {'held-out' if filled else 'its own'} judgments",
            )
    ax.set_yticks(range(len(POLICIES)), POLICIES)
    ax.invert_yaxis()


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=2, rows=2, height=2.5)
    (a, b), (c, d) = axes
    shown = select(frame, tests_of("standard normal", "observed"))
    curl, null, rejected = (
        pivot(select(shown, {"metric": metric}), "round").to_numpy()[:, 0]
        for metric in ("curl", "curl_null", "rejected")
    )
    looks = plotting.lines(["kept", "rejected"])
    for (name, look), inside in zip(looks.items(), (rejected == 0, rejected == 1), strict=True):
        a.plot(
            null[inside],
            curl[inside],
            linestyle="",
            marker=look.marker,
            color=look.color,
            alpha=0.8,
            label=f"Bradley-Terry {name} ({inside.sum()})",
        )
    low, high = min(null.min(), curl.min()), max(null.max(), curl.max())
    a.plot([low, high], [low, high], color="0.4", linewidth=0.7, linestyle=":")
    a.set_xlabel("curl share of Bradley-Terry draws")
    a.set_ylabel("curl share observed")
    a.set_title("(a) curl, a point per question")
    a.legend()
    for judgments, look in plotting.lines(["observed", "simulated"]).items():
        for prior, dash in (("none", ":"), ("standard normal", "-")):
            rows = select(frame, {**tests_of(prior, judgments), "metric": "p_value"})
            p = np.sort(rows["value"].to_numpy())
            words = {"observed": "judgments", "simulated": "BT draws"}[judgments] if dash == "-" else None
            at, share = [0.0, *p, 1.0], [0.0, *((i + 1) / len(p) for i in range(len(p))), 1.0]
            b.step(at, share, where="post", color=look.color, linestyle=dash, label=words)
    b.plot([0, 1], [0, 1], color="0.4", linewidth=0.7)
    b.set_xlabel("p-value of Bradley-Terry")
    b.set_ylabel("questions at or below")
    b.set_title("(b) does it hold? (dotted: no prior)")
    b.legend(loc="lower right")
    policies = select(frame, {"analysis": "policy"})
    dots(c, policies, "served")
    c.set_xlabel("mass on the passage that the rater preferred")
    c.set_title("(c) held-out raters served")
    dots(d, policies, "against_worst")
    d.set_xlabel("win rate against the worst opponent")
    d.set_title("(d) the strongest opposition")
    plotting.legend_above(figure, d, columns=2)
    figure.supxlabel(f"data: {frame['data'].iloc[0]}", fontsize=8)
    return figure


study = Study(
    name="human_cycles",
    title="Real comparisons: does a reward explain them, and whom do RLHF, Nash and Borda please",
    source="judgments of Yan et al. 2022 (SIGIR); no published figure",
    cells=cells,
    claims=claims,
    plot=plot,
    replicates=1000,
    smoke_replicates=8,
)
