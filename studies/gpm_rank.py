"""How many dimensions a preference needs: rank of the general preference model, over truths and data.

Zhang et al. 2024 (2410.02197, GPM). Their Theorem 4.5: skew scores of n actions are embeddings of 2k numbers, exact at
2k = 2 floor(n / 2); their table on cyclic data (UltraFeedback attributes, Gemma-2B): Bradley-Terry 62.4, 61.6, 50.0 and
62.9 % right, GPM 100 % on all four. Their data and models are not reproduced; this is the statement on games.

Truths, 9 actions, 100 random games each (a replicate is a game): "random" (P ~ U[0, 1]), "rank 4" (GPM of two blocks),
"Bradley-Terry" (normal scores of deviation 1: a skew matrix of rank 2), "circle" (each beats the 4 before it, by the
same margin), and "three-cycle" (3 actions, random margins). Observed: every pair `duels` times (0 stands for
infinitely many), frequencies smoothed by one pseudo-duel; models: the spectral form of their logits cut to rank 2, 4,
6, 8, which is `low_rank.gpm_embeddings` (the paper fits embeddings by gradient descent on -log sigma(s)), and
maximum-likelihood Bradley-Terry with the same pseudo-duel.

Metrics: `score_error`, root mean square of the scores over pairs; `accuracy`, share of pairs whose favourite the model
names (1/2 for a tie), `kl`, mean over pairs of KL(true coin || model's), nats: the test loss in excess of the best.
`accuracy_above_two_thirds`: how much the accuracy of a game exceeds 2/3.

Found: all as stated. On cyclic games Bradley-Terry is right on half of the pairs (its fit of a symmetric circle is a
tie), GPM of rank 2 on all. Rank 4 beats rank 8 on its own truth by 15 % of the excess loss at 10 duels a pair and 4 %
at 1,000, less than the 10 of 36 parameters that it saves: cutting a spectrum of noisy logits is no likelihood fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from simbandit import plotting
from simbandit.draws import Draws, generator
from simbandit.guarantees import Identity, Monotone, Number, Ordering
from simbandit.guarantees.rows import select
from simbandit.low_rank import gpm_embeddings, gpm_scores
from simbandit.oracles import GPM, UniformTriangular, cycle, rock_paper_scissors
from simbandit.preferences import fit_bradley_terry, tabular_mle
from simbandit.study import Settings, Study, Task
from simbandit.worlds import TableWorld

ACTIONS = 9
TRUTHS = ("random", "rank 4", "Bradley-Terry", "circle", "three-cycle")
RANKS = (2, 4, 6, 8)
SMOOTHING = 1.0
INFINITE = 0  # label of exact probabilities


def scores(truth: str, replicates: int, seed: int) -> Tensor:
    """Logits of the true preference, (R, A, A)."""
    if truth in ("random", "rank 4"):
        instance = TableWorld(np.full((1, ACTIONS), -np.log(ACTIONS))).instance(replicates, Draws(seed, replicates))
        oracle = UniformTriangular() if truth == "random" else GPM(n_blocks=2, temperature=0.2)
        return torch.logit(oracle.bind(instance).win_table(instance.evaluation)[:, 0])
    tables = []
    for r in range(replicates):
        draws = generator(seed, r, truth)
        if truth == "Bradley-Terry":
            s = torch.from_numpy(draws.normal(size=ACTIONS))
            tables.append(s[:, None] - s)
        else:
            margins = 0.05 + 0.4 * draws.random(3)
            game = rock_paper_scissors(ACTIONS, margins[0]) if truth == "circle" else cycle(*margins)
            shape = np.shape(game.preference)[-2:]
            tables.append(torch.logit(torch.tensor(np.asarray(game.preference)).reshape(shape)))
    return torch.stack(tables)


def fitted(truth: Tensor, duels: int, model: str, seed: int) -> Tensor:
    """The model's scores (R, A, A) after `duels` duels of every pair."""
    P = torch.sigmoid(truth)
    R, A = P.shape[:2]
    if duels == INFINITE:
        wins, smoothing = P * 1e6, 0.0  # a frequency is exact whatever the number of duels
    else:
        i, j = np.triu_indices(A, 1)
        wins, smoothing = torch.zeros_like(P), SMOOTHING
        for r in range(R):
            won = torch.from_numpy(generator(seed, r, "duels", duels).binomial(duels, P[r].numpy()[i, j]).astype(float))
            wins[r, i, j], wins[r, j, i] = won, duels - won
    if model == "BT":
        fit = fit_bradley_terry(wins + smoothing / 2 * (1 - torch.eye(A, dtype=wins.dtype)))
        if not bool(fit.converged.all()):
            raise RuntimeError(f"Bradley-Terry: {int((~fit.converged).sum())} fits did not converge")
        return fit.scores[..., :, None] - fit.scores[..., None, :]
    observed = truth if duels == INFINITE else torch.logit(tabular_mle(wins, smoothing))
    return gpm_scores(gpm_embeddings(observed, int(model)))


def compare(truth: str, duels: int, model: str, replicates: int, seed: int, device: str) -> pd.DataFrame:
    """Rows of one model on one truth and number of duels, one replicate per game."""
    del device
    true = scores(truth, replicates, seed)
    model_scores = fitted(true, duels, model, seed)
    i, j = torch.triu_indices(true.shape[-1], true.shape[-1], 1)
    s, m = true[:, i, j], model_scores[:, i, j]
    m = torch.where(m.abs() < 1e-9, 0.0, m)  # a tie is a tie, whatever its rounding
    log = torch.nn.functional.logsigmoid
    divergence = torch.sigmoid(s) * (log(s) - log(m)) + torch.sigmoid(-s) * (log(-s) - log(-m))
    accuracy = ((1 + s.sign() * m.sign()) / 2).mean(-1)
    values = {
        "score_error": (s - m).square().mean(-1).sqrt(),
        "accuracy": accuracy,
        "accuracy_above_two_thirds": (accuracy - 2 / 3 - 1e-12).clamp_min(0.0),
        "kl": divergence.clamp_min(0.0).mean(-1),
    }
    parts = [
        pd.DataFrame({"replicate": range(len(v)), "round": 0, "queries": 0.0, "metric": name, "value": v.numpy()})
        for name, v in values.items()
    ]
    return pd.concat(parts, ignore_index=True)


def cells(settings: Settings, tuned: dict[str, Any]) -> Sequence[Task]:
    del tuned
    sizes = (INFINITE, 10, 100) if settings.smoke else (INFINITE, 3, 10, 30, 100, 300, 1000)
    return [
        Task(
            {"truth": truth, "duels": duels, "model": "BT" if model == "BT" else "GPM", "rank": rank},
            compare,
            {"truth": truth, "duels": duels, "model": model},
            settings.replicates,
            settings.seed,
        )
        for truth in TRUTHS
        for duels in sizes
        for model, rank in [("BT", 1), *((str(rank), rank) for rank in RANKS if truth != "three-cycle" or rank == 2)]
    ]


PAPER, TABLE, OWN = "GPM, Theorem 4.5", "GPM, table on cyclic data", "own expectation"


def gpm(truth: str, rank: int, duels: int) -> dict[str, Any]:
    return {"truth": truth, "model": "GPM", "rank": rank, "duels": duels}


def bt(truth: str, duels: int) -> dict[str, Any]:
    return {"truth": truth, "model": "BT", "duels": duels}


claims = (
    *(
        Identity(f"{truth}: rank 8 = 2 floor(9 / 2) is exact", PAPER, "score_error", gpm(truth, 8, INFINITE), 1e-9)
        for truth in TRUTHS[:-1]
    ),
    Identity("rank 4: rank 4 is exact", PAPER, "score_error", gpm("rank 4", 4, INFINITE), 1e-9),
    Identity("Bradley-Terry is exact at rank 2", PAPER, "score_error", gpm("Bradley-Terry", 2, INFINITE), 1e-9),
    Identity("three-cycle: rank 2 is exact", PAPER, "score_error", gpm("three-cycle", 2, INFINITE), 1e-9),
    Monotone(
        "random: the error falls with every plane",
        PAPER,
        "score_error",
        {"truth": "random", "model": "GPM", "duels": INFINITE},
        "rank",
        "decreasing",
    ),
    Identity(
        "three-cycle: Bradley-Terry is right on at most 2/3 of the pairs",
        "2410.02197; any ranking errs once",
        "accuracy_above_two_thirds",
        bt("three-cycle", INFINITE),
        0,
    ),
    Number(
        "three-cycle: GPM of rank 2 is right on all pairs",
        TABLE,
        "accuracy",
        gpm("three-cycle", 2, INFINITE),
        1.0,
        1e-12,
        exact=True,
    ),
    Number(
        "circle: Bradley-Terry is right on at most 63 % (table: 50 to 62.9)",
        TABLE,
        "accuracy",
        bt("circle", INFINITE),
        0.63,
        0.0,
        "at most",
        exact=True,
    ),
    Number(
        "circle: GPM of rank 2 is right on all pairs",
        TABLE,
        "accuracy",
        gpm("circle", 2, INFINITE),
        1.0,
        1e-12,
        exact=True,
    ),
    Ordering(
        "Bradley-Terry truth, 10 duels a pair: the likelihood's BT fit beats GPM of rank 2",
        OWN,
        "kl",
        bt("Bradley-Terry", 10),
        gpm("Bradley-Terry", 2, 10),
    ),
    Ordering("rank 4, 10 duels a pair: rank 4 beats rank 8", OWN, "kl", gpm("rank 4", 4, 10), gpm("rank 4", 8, 10)),
    Ordering(
        "rank 4, 1000 duels a pair: rank 4 beats rank 8", OWN, "kl", gpm("rank 4", 4, 1000), gpm("rank 4", 8, 1000)
    ),
    Ordering(
        "random, 1000 duels a pair: rank 8 beats rank 4", OWN, "kl", gpm("random", 8, 1000), gpm("random", 4, 1000)
    ),
    Ordering(
        "rank 4: Bradley-Terry loses to GPM of rank 2 from 100 duels a pair on",
        OWN,
        "kl",
        gpm("rank 4", 2, 100),
        bt("rank 4", 100),
    ),
)


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=3, height=2.7)
    exact = {"duels": INFINITE, "model": "GPM"}
    truths = TRUTHS[:4]
    looks = plotting.lines(truths)
    a, b, c = axes[0]
    plotting.curves(a, frame, "score_error", "truth", x="rank", where=exact, order=truths, looks=looks, legend=False)
    a.set_xticks(RANKS)
    a.set_ylabel("error of the scores [logit]")
    a.set_xlabel("rank 2k")
    a.set_title("(a) exact probabilities, 9 actions")
    a.legend()
    models = {("BT", 1): "BT"} | {("GPM", rank): f"GPM {rank}" for rank in RANKS}
    colours = plotting.lines(list(models))
    at = np.arange(len(TRUTHS))
    for k, ((model, rank), name) in enumerate(models.items()):
        if rank not in (1, 2, 4, 8):
            continue
        where = {"metric": "accuracy", "duels": INFINITE, "model": model, "rank": rank}
        rows = select(frame, where)
        truth, value = rows["truth"].to_numpy(), rows["value"].to_numpy()
        mean = np.array([value[truth == name].mean() if (truth == name).any() else np.nan for name in TRUTHS])
        b.plot(
            at + 0.08 * (k - 2),
            mean,
            linestyle="",
            marker=colours[model, rank].marker,
            color=colours[model, rank].color,
            label=name,
        )
    b.axhline(2 / 3, color="0.4", linewidth=0.7, linestyle=":")
    b.set_xticks(at, [truth.replace("Bradley-Terry", "BT") for truth in TRUTHS], rotation=30, ha="right")
    b.set_ylabel("pairs whose favourite is right")
    b.set_title("(b) exact probabilities (dots: 2/3)")
    b.legend(loc="center right", bbox_to_anchor=(1.0, 0.6))
    rows = select(frame, {"truth": "rank 4"})
    rows = rows.take(np.flatnonzero(rows["duels"].to_numpy() != INFINITE))
    rows = rows.assign(name=[models[m, r] for m, r in zip(rows["model"], rows["rank"], strict=True)])
    plotting.curves(
        c,
        rows,
        "kl",
        "name",
        x="duels",
        loglog=True,
        order=list(models.values()),
        looks=dict(zip(models.values(), colours.values(), strict=True)),
        legend=False,
    )
    c.set_xlabel("duels of every pair")
    c.set_ylabel("excess test loss [nats per duel]\n(lower is better)")
    c.set_title("(c) a truth of rank 4")
    c.legend()
    return figure


study = Study(
    name="gpm_rank",
    title="The rank that a preference needs, and what Bradley-Terry cannot say",
    source="Zhang et al. 2024 (2410.02197), Theorem 4.5 and the table on cyclic data",
    cells=cells,
    claims=claims,
    plot=plot,
    replicates=100,
    smoke_replicates=20,
)
