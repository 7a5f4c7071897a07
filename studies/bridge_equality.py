"""A table is a one-token language model: every direct row draws the same duels and learns the same policy on both.

No paper's figure: it is what a run on a language model rests on. The algorithm object, the loop and the random streams
are the same; only the policy that fits itself is another one.

Grid. `same fit`: an LM whose only parameters are the table (the prompt's last token chooses a row of logits), and the
table itself, both fitted by 12 steps of plain gradient descent from the last policy: every direct row of the registry.
`argmin`: a GPT-2 of two layers whose head is solved for the argmin over all tables, against a table that takes that
argmin: the rows whose minimiser is unique. `adamw`: as `same fit`, by AdamW, for contrast. 8 prompts, 6 tokens,
Bradley-Terry with N(0, 1) rewards, kl_coef .6, 10 rounds of 15 duels from the registry's players (offline rows: one
fit to 150 duels of the reference). Measured after every round: the duality gap and the suboptimality of both, exactly,
and the larger of their differences (relative above 1); and how many duels differ in a prompt, a response or a label.

Found: all holds, at a few units of the last digit. The first run of `argmin` failed for online_dpo: the table's fit
rounded its proximal term to float32, which after a chain of sure wins moved a log-probability by 1.6.

What differs from training: nothing here says that a language model *finds* the argmin; its weights are compared where
both sides do the same arithmetic. By AdamW they need not agree, because its step divides by the gradient's own size,
and where that is rounding noise the noise is the step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from llm_bridge import need_extra
from llm_bridge.enumerable import EnumerableLM
from simbandit import algorithms, plotting
from simbandit.algorithms.direct import Direct
from simbandit.guarantees import Identity, Number
from simbandit.guarantees.rows import pivot, select
from simbandit.objective import Descent
from simbandit.oracles import BradleyTerry
from simbandit.policies import Tabular
from simbandit.simulate import Problem, simulate
from simbandit.study import Settings, Study, Task
from simbandit.types import Policy
from studies._language import Embedded, HeadSolved, gpt2

PROMPTS, VOCABULARY, KL_COEF = 8, 6, 0.6
ROUNDS, DUELS = 10, 15
ROWS = [name for name in algorithms.names() if isinstance(algorithms.create(name), Direct)]
UNIQUE = ["online_dpo", "inpo", "online_ipo", "ipo_md", "dno", "rspo"]  # their minimiser over tables is unique
CONTRAST = ["online_dpo", "inpo"]
SMOKE = ["dpo", "inpo", "online_dpo", "sail_pr", "sppo", "xpo"]
STEPS = {
    "same fit": Descent(12, 0.1, optimiser="sgd"),
    "argmin": None,
    "adamw": Descent(12, 0.1),
}
METRICS = ["duality_gap", "suboptimality"]


def both(row: str, part: str, replicates: int, seed: int, device: str) -> pd.DataFrame:
    """One row of the registry on a one-token LM and on the table."""
    assert device == "cpu", "the two sides are compared to the last digits of one machine's arithmetic"
    numbers = np.random.default_rng(seed)
    rewards, logits = numbers.normal(size=(2, PROMPTS, VOCABULARY))
    brief = {"passes": 2} if row == "sail_dp" else {}  # 200 as registered, all alike
    algorithm = algorithms.create(row, proximal=1e-3, descent=STEPS[part], **brief)
    if part == "argmin":
        lm = EnumerableLM(gpt2(VOCABULARY, window=4), [[x % VOCABULARY, x // VOCABULARY] for x in range(PROMPTS)], 1)
        sides: dict[str, Policy] = {
            "lm": HeadSolved(lm),
            "table": Tabular(lm.table.detach().expand(replicates, -1, -1)),
        }
    else:
        lm = EnumerableLM(Embedded(logits), [[x] for x in range(PROMPTS)], 1)
        sides = {"lm": lm, "table": Tabular(lm.table.detach().expand(replicates, -1, -1))}
    problem = Problem(lm.world(rewards=rewards, reward_range=(-3.0, 3.0)), BradleyTerry(), KL_COEF)
    runs = {
        side: simulate(
            problem,
            algorithm,
            rounds=ROUNDS,
            batch_size=DUELS,
            replicates=replicates,
            seed=seed,
            policy=policy,
            metrics=METRICS,
            record="all",
            keep_data=True,
        )
        for side, policy in sides.items()
    }
    lm_rows, rows = runs["lm"].frame(), runs["table"].frame()
    values, table = lm_rows["value"].to_numpy(), rows["value"].to_numpy()
    difference = np.abs(values - table) / np.maximum(1.0, np.abs(table))
    once = select(rows, {"metric": METRICS[0]})  # the frame holds one metric after the other
    parts = [
        rows,
        rows.assign(metric=rows["metric"] + " of the LM", value=values),
        once.assign(metric="difference", value=difference.reshape(len(METRICS), -1).max(0)),
    ]
    one, other = runs["lm"].data, runs["table"].data
    assert one is not None
    assert other is not None
    if len(other):  # offline rows ask nobody
        apart = (one.to_numpy() != other.to_numpy()).any(1).reshape(ROUNDS, replicates, DUELS).sum((0, 2))
        parts.append(select(once, {"round": ROUNDS}).assign(metric="different duels", value=apart.astype(float)))
    return pd.concat(parts, ignore_index=True)


def cells(settings: Settings, tuned: Mapping[str, Any]) -> Sequence[Task]:
    del tuned
    need_extra()
    parts = {"same fit": ROWS, "argmin": UNIQUE, "adamw": CONTRAST}
    if settings.smoke:
        parts = {"same fit": SMOKE, "argmin": UNIQUE[:2], "adamw": CONTRAST[:1]}
    return [
        Task({"part": part, "row": row}, both, {"row": row, "part": part}, settings.replicates, settings.seed)
        for part, rows in parts.items()
        for row in rows
    ]


SOURCE = "own design: the same arithmetic on both sides"
claims = (
    *(
        Identity(
            f"{row}: one-token LM = table, the same fit", SOURCE, "difference", {"part": "same fit", "row": row}, 1e-12
        )
        for row in ROWS
    ),
    *(
        Identity(
            f"{row}: GPT-2 with a solved head = table, its argmin",
            SOURCE,
            "difference",
            {"part": "argmin", "row": row},
            1e-12,
        )
        for row in UNIQUE
    ),
    Identity("the same duels and labels, the same fit", SOURCE, "different duels", {"part": "same fit"}, 0.0),
    Identity("the same duels and labels, argmin", SOURCE, "different duels", {"part": "argmin"}, 0.0),
    *(
        Number(
            f"{row}: by AdamW the two part by more than 1e-12",
            "own earlier runs",
            "difference",
            {"part": "adamw", "row": row},
            1e-12,
            0.0,
            "at least",
        )
        for row in CONTRAST
    ),
)


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=2, height=3.4)
    left, right = axes[0]
    shown = [row for row in ("inpo", "online_dpo", "xpo", "sppo") if row in set(frame["row"])]
    looks = plotting.lines(shown)
    where = {"part": "same fit"}
    plotting.curves(left, frame, "duality_gap", "row", where=where, order=shown, looks=looks)
    for row in shown:
        seen = pivot(select(frame, {**where, "row": row, "metric": "duality_gap of the LM"}), "queries")
        left.plot(seen.columns, seen.to_numpy().mean(0), linestyle="", marker=looks[row].marker, color=looks[row].color)
    left.set_title("(a) table (lines), one-token LM (marks)")
    order = [row for row in ROWS if row in set(frame["row"])]
    parts = [part for part in STEPS if part in set(frame["part"])]
    for part, look in plotting.lines(parts).items():
        rows = select(frame, {"part": part, "metric": "difference"})
        there = [row for row in order if row in set(rows["row"])]
        worst = [max(1e-17, float(np.max(select(rows, {"row": row})["value"].to_numpy()))) for row in there]
        at = [order.index(row) for row in there]
        right.plot(worst, at, linestyle="", marker=look.marker, color=look.color, label=part)
    right.axvline(1e-12, color="0.5", linewidth=0.8)
    right.set_xscale("log")
    right.set_yticks(range(len(order)), order, fontsize=5.5)
    right.set_xlabel("largest difference, LM against table")
    right.set_title("(b) every row, all rounds")
    plotting.legend_above(figure, right)
    return figure


study = Study(
    name="bridge_equality",
    title="A table is a one-token language model: every direct row, to the last digits",
    source="own design; no paper's figure",
    cells=cells,
    claims=claims,
    plot=plot,
    replicates=16,
    smoke_replicates=4,
)
