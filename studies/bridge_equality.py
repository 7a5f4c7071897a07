"""A table is a one-token language model: every direct row draws the same duels and learns the same policy on both.

No paper's figure: it is what a run on a language model rests on. The algorithm object, the loop and the random streams
are the same; only the policy that fits itself is another one.

Grid. `same fit`: an LM whose only parameters are the table (the prompt's last token chooses a row of logits), and the
table itself, both fitted by 12 steps of plain gradient descent from the last policy: every direct row of the registry.
`argmin`: a GPT-2 of two layers whose head is solved for the argmin over all tables, against a table that takes that
argmin: the rows whose minimiser is unique. `adamw`: as `same fit`, by AdamW, for contrast. 8 prompts, 6 tokens,
Bradley-Terry with N(0, 1) rewards, kl_coef .6, 10 rounds of 15 duels from the registry's players (offline rows: one fit
to 150 duels of the reference). Measured in every recorded round: the duality gap and the suboptimality of both, exactly,
and their larger relative difference; and how many of the duels differ in a prompt, a response or a label.

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

from llm_bridge.enumerable import EnumerableLM
from simbandit import algorithms, plotting
from simbandit.algorithms.direct import Direct
from simbandit.guarantees import Identity, Number
from simbandit.objective import Descent
from simbandit.oracles import BradleyTerry
from simbandit.policies import Tabular
from simbandit.simulate import Problem, simulate
from simbandit.study import Settings, Study, Task
from simbandit.types import Policy
from studies._language import Embedded, HeadSolved, gpt2, needs_transformers

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
    on = ["replicate", "round", "queries"]
    frames = {side: run.frame().pivot(index=on, columns="metric", values="value") for side, run in runs.items()}
    table, lm_side = frames["table"], frames["lm"]
    difference = ((lm_side - table).abs() / table.abs().clip(lower=1.0)).max(axis=1)
    columns = {"duality_gap": table["duality_gap"], "duality_gap_lm": lm_side["duality_gap"], "difference": difference}
    one, other = (runs[side].data for side in ("lm", "table"))
    assert one is not None
    assert other is not None
    if len(other):  # offline rows ask nobody
        columns["different duels"] = (
            differing(one, other).reindex(table.index.get_level_values(0)).set_axis(table.index)
        )
    return pd.DataFrame(columns).rename_axis(columns="metric").stack().rename("value").reset_index()


def differing(one: pd.DataFrame, other: pd.DataFrame) -> pd.Series:
    """Duels that differ anywhere, per replicate."""
    return (one != other).any(axis=1).astype(float).groupby(other["replicate"]).sum()


def cells(settings: Settings, tuned: Mapping[str, Any]) -> Sequence[Task]:
    del tuned
    needs_transformers()
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
        rows = frame.query("part == 'same fit' and row == @row and metric == 'duality_gap_lm'")
        mean = rows.groupby("queries")["value"].mean()
        left.plot(mean.index, mean, linestyle="", marker=looks[row].marker, color=looks[row].color)
    left.set_title("(a) table (lines) and one-token LM (marks)")
    parts = [part for part in STEPS if part in set(frame["part"])]
    order = [row for row in ROWS if row in set(frame["row"])]
    for part, look in plotting.lines(parts).items():
        rows = frame.query("part == @part and metric == 'difference'")
        worst = rows.groupby("row")["value"].max().clip(lower=1e-17)
        at = [order.index(row) for row in worst.index]
        right.plot(worst, at, linestyle="", marker=look.marker, color=look.color, label=part)
    right.axvline(1e-12, color="0.5", linewidth=0.8)
    right.set_xscale("log")
    right.set_yticks(range(len(order)), order, fontsize=5.5)
    right.set_xlabel("largest difference between LM and table (0 drawn at 1e-17)")
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
