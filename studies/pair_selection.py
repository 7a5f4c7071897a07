"""Best against worst of n: what selecting pairs does to the solution of DPO and IPO, and to consistency.

Online iterations of language models draw n responses, rank them by a reward model and train on the best against the
worst (RLHFlow's iterative DPO, SELM 2405.19332, the language-model part of 2409.19605). No paper has this figure. What
it does depends on the label, in the limit of infinitely many duels:

    asked    a fresh Bradley-Terry answer about the selected pair. The label depends on the pair alone, so that DPO's
             solution is pi*, whatever the law of pairs (with the support that it needs). IPO's is not: its regression
             averages over the pairs' law, and only independent draws of the policy give the regularised equilibrium.
    implied  the best of the ranking is recorded as the winner, nobody is asked. With a ranking of noisy scores r +
             temperature * Gumbel, two responses at temperature 1 are a Bradley-Terry duel. Of more than two, the
             extremes are pairs that the noise has agreed with: the odds of (a best, b worst) to (b best, a worst)
             exceed exp(r_a - r_b), DPO learns an inflated reward, and is at a smaller coefficient than it says.

Grid. "ranked": 8 actions, r ~ U[0, 2], reference softmax(N(0, 1)), kl_coef .5, n = 2, 4, 8, 16, temperature 1 and .5,
the exact law of the extremes of n draws of pi_t by quadrature over scores, exact fits around the fixed reference, 20
rounds. `inflation`: the slope of the learnt reward on r; kl_coef / inflation is the coefficient that results. "rows":
the registry's players Best(n) and Best(n, worst), which select by the policy's own implied reward, in the population
(30 rounds) with DPO and IPO, labels asked. "sampled": the same with 32 duels a round, all data, kl_coef .3.

Found. Asked labels leave DPO's solution alone (to rounding), and selection then only helps: three in four or more duels
are of two different actions, not one in two, and the gap after 8,192 duels is a half (n = 4) or a third (n = 8) of that
of independent pairs. Implied labels inflate the reward by 1.6, 2.0 and 2.4 at n = 4, 8, 16 (temperature 1), so a
stated coefficient of .5 is one of .2 at n = 16; at n = 2 there is no bias. IPO's bias from selection is real but tiny
with these rewards, 1e-4 nats at n = 8, where we had expected more than 1e-3: Bradley-Terry win rates at gaps up to 2
are nearly linear in the scores, and then the law of pairs hardly matters; for cyclic preferences it does
(`inpo_sampling_law`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from simbandit import algorithms, plotting
from simbandit.algorithms.players import Best
from simbandit.draws import Draws
from simbandit.guarantees import Exponent, Identity, Monotone, Number, Ordering
from simbandit.metrics import kl
from simbandit.oracles import BradleyTerry, FullInformation
from simbandit.policies import gibbs
from simbandit.simulate import Problem
from simbandit.study import Settings, Simulation, Study, Task
from simbandit.worlds import LinearWorld
from studies._games import bradley_terry_limit, frame_of

ACTIONS, KL, ROUNDS = 8, 0.5, 20
COUNTS, TEMPERATURES = (2, 4, 8, 16), (1.0, 0.5)
WORLD = LinearWorld(
    n_contexts=1,
    n_actions=ACTIONS,
    dim=ACTIONS,
    features="one_hot",
    theta="box",
    theta_norm=None,
    theta_scale=2.0,
    reference="softmax",
)
PLAYERS: dict[str, Any] = {
    "independent": ("current", "current"),
    "best/worst of 2": (Best(2), Best(2, worst=True)),
    "best/worst of 4": (Best(4), Best(4, worst=True)),
    "best/worst of 8": (Best(8), Best(8, worst=True)),
}
SELECTED = tuple(PLAYERS)[1:]
BINS = 600


def extremes(log_probs: Tensor, r: Tensor, n: int, temperature: float) -> Tensor:
    """(R, A, A): the law of (best, worst) among n >= 2 draws of a policy (R, A), ranked by r + temperature * Gumbel.

    Given the two scores, the other n - 2 lie between them: the sum over bins of the scores of
    n (n - 1) pi_a f_a(s) pi_b f_b(s') (F(s) - F(s'))^(n - 2), s > s'.
    """
    edges = torch.linspace(-6 * temperature, 2 + 20 * temperature, BINS + 1, dtype=r.dtype)
    law = torch.exp(-torch.exp(-(edges - r[..., None]) / temperature))  # (R, A, BINS + 1)
    law[..., 0], law[..., -1] = 0.0, 1.0
    mass = log_probs.exp()[..., None] * law.diff(dim=-1)
    below = mass.sum(-2).cumsum(-1) - mass.sum(-2) / 2  # the mixture's law at the middle of each bin
    order = torch.tril(torch.ones(BINS, BINS, dtype=r.dtype)) - torch.eye(BINS, dtype=r.dtype) / 2
    rows = []
    for m, f in zip(mass, below, strict=True):
        between = (f[:, None] - f).clamp_min(0.0) ** (n - 2) * order
        rows.append(m @ between @ m.mT)
    return n * (n - 1) * torch.stack(rows)


def ranked(n: int, temperature: float, labels: str, replicates: int, seed: int, device: str) -> pd.DataFrame:
    instance = WORLD.instance(replicates, Draws(seed, replicates, device))
    r, ref = instance.rewards(instance.evaluation)[:, 0], instance.evaluation.ref_log_probs[:, 0]
    optimum = gibbs(r, ref, KL)
    policy, values = ref, {}
    truth = torch.sigmoid(r[..., :, None] - r[..., None, :])
    for t in range(ROUNDS + 1):
        values["distance to the optimum", t] = kl(policy, optimum)
        pairs = extremes(policy, r, n, temperature)
        both = pairs + pairs.mT
        preference = pairs / both if labels == "implied" else truth
        scores, residual = bradley_terry_limit(preference, both.log())
        centre = r - r.mean(-1, keepdim=True)
        values["inflation", t] = (scores * centre).sum(-1) / centre.square().sum(-1)
        values["residual", t] = residual
        values["mass off", t] = pairs.sum((-1, -2)) - 1
        policy = gibbs(scores, ref, KL)
    return frame_of(values)


def cells(settings: Settings, tuned: Mapping[str, Any]) -> list[Simulation | Task]:
    del tuned  # exact fits
    grid: list[Simulation | Task] = []
    for n in COUNTS[:2] if settings.smoke else COUNTS:
        for labels in ("asked", "implied"):
            for temperature in TEMPERATURES[:1] if settings.smoke else TEMPERATURES:
                how = {"n": n, "temperature": temperature, "labels": labels}
                grid.append(Task({"part": "ranked", **how}, ranked, how, settings.replicates, settings.seed))
    common = {"replicates": settings.replicates, "seed": settings.seed, "policy": "tabular"}
    metrics = ["suboptimality", "kl_to_nash", "fit_residual"]
    for loss in ("dpo", "ipo"):
        name = {"dpo": "online_dpo", "ipo": "online_ipo"}[loss]
        for chosen, players in list(PLAYERS.items())[:: 2 if settings.smoke else 1]:
            labels = {"loss": loss, "pairs": chosen}
            fresh = algorithms.create(name, players=players, data="fresh", anchor="last")
            exact = Problem(WORLD, FullInformation(BradleyTerry()), KL)
            rounds = 10 if settings.smoke else 30
            grid.append(
                Simulation({"part": "rows", **labels}, exact, fresh, rounds, metrics=metrics, batch_size=1000, **common)
            )
            if chosen != "best/worst of 2":
                grid.append(
                    Simulation(
                        {"part": "sampled", **labels},
                        Problem(WORLD, BradleyTerry(), 0.3),
                        algorithms.create(name, players=players),
                        rounds=16 if settings.smoke else 256,
                        batch_size=32,
                        metrics=[*metrics, "argmax_regret", "informative_pairs"],
                        **common,
                    )
                )
    return grid


DERIVED, OWN = "derived", "own expectation"
DISTANCE, IMPLIED = "distance to the optimum", {"part": "ranked", "labels": "implied"}


def _at_end(metric: str, name: str, where: Mapping[str, Any], value: float, sense: Any) -> Number:
    return Number(name, DERIVED, metric, where, value, 0.0, sense)


claims = (
    *(
        _at_end(
            DISTANCE,
            f"asked, best/worst of {n} (temperature {k}): DPO ends at pi* (KL < 1e-9)",
            {"part": "ranked", "labels": "asked", "n": n, "temperature": k},
            1e-9,
            "at most",
        )
        for n in COUNTS
        for k in TEMPERATURES
    ),
    _at_end(
        DISTANCE,
        "implied, two responses at temperature 1 are a duel: pi* (KL < 1e-6)",
        {**IMPLIED, "n": 2, "temperature": 1.0},
        1e-6,
        "at most",
    ),
    Number(
        "implied, two at temperature .5: the reward is doubled",
        DERIVED,
        "inflation",
        {**IMPLIED, "n": 2, "temperature": 0.5},
        2.0,
        1e-3,
    ),
    *(
        _at_end(
            DISTANCE,
            f"implied, best/worst of {n}: not pi* (KL > .01)",
            {**IMPLIED, "n": n, "temperature": 1.0},
            0.01,
            "at least",
        )
        for n in COUNTS[1:]
    ),
    *(
        Monotone(
            f"implied, temperature {k}: the reward inflates with n",
            DERIVED,
            "inflation",
            {**IMPLIED, "temperature": k},
            "n",
            "increasing",
        )
        for k in TEMPERATURES
    ),
    *(
        _at_end(
            "suboptimality",
            f"rows, DPO, {chosen}: ends at pi* (gap < 1e-6)",
            {"part": "rows", "loss": "dpo", "pairs": chosen},
            1e-6,
            "at most",
        )
        for chosen in PLAYERS
    ),
    _at_end(
        "kl_to_nash",
        "rows, IPO, independent: ends at the equilibrium (KL < 1e-6)",
        {"part": "rows", "loss": "ipo", "pairs": "independent"},
        1e-6,
        "at most",
    ),
    *(
        _at_end(
            "kl_to_nash",
            f"rows, IPO, {chosen}: not at the equilibrium (KL > .001)",
            {"part": "rows", "loss": "ipo", "pairs": chosen},
            1e-3,
            "at least",
        )
        for chosen in SELECTED
    ),
    *(
        Exponent(
            f"sampled, DPO, {chosen}: consistent, the gap falls at least like n^-1/2",
            DERIVED,
            "suboptimality",
            {"part": "sampled", "loss": "dpo", "pairs": chosen},
            -0.5,
            0.0,
            "at most",
            window=(512, 8192),
        )
        for chosen in PLAYERS
        if chosen != "best/worst of 2"
    ),
    *(
        Ordering(
            f"sampled, DPO: {chosen} ends closer than independent pairs",
            OWN,
            "suboptimality",
            {"pairs": chosen},
            {"pairs": "independent"},
            {"part": "sampled", "loss": "dpo"},
        )
        for chosen in SELECTED[1:]
    ),
    Ordering(
        "sampled, IPO: best/worst of 8 stays farther from the equilibrium than independent pairs",
        DERIVED,
        "kl_to_nash",
        {"pairs": "independent"},
        {"pairs": "best/worst of 8"},
        {"part": "sampled", "loss": "ipo"},
    ),
    Identity("the quadrature's law of pairs has mass 1 (to 1e-3)", DERIVED, "mass off", {"part": "ranked"}, 1e-3),
)


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=2, rows=2, height=2.3)
    (inflation, rows), (gap, informative) = axes
    part = frame[(frame["part"] == "ranked") & (frame["labels"] == "implied")]
    part = part.assign(name="temperature " + part["temperature"].astype(str))
    plotting.curves(inflation, part, "inflation", "name", x="n")
    inflation.axhline(1.0, color="0.5", linewidth=0.8)
    inflation.set_xscale("log", base=2)
    inflation.set_xlabel("responses ranked, n")
    inflation.set_ylabel("reward learnt / reward")
    inflation.set_title("(a) the best recorded as winner")
    looks = plotting.lines(list(PLAYERS))
    for ax, where, metric, title in (
        (rows, {"part": "rows", "loss": "ipo"}, "kl_to_nash", "(b) IPO, population, asked"),
        (gap, {"part": "sampled", "loss": "dpo"}, "suboptimality", "(c) DPO, duels asked"),
        (informative, {"part": "sampled", "loss": "dpo"}, "informative_pairs", "(d) DPO, duels asked"),
    ):
        keep = (frame[list(where)] == pd.Series(where)).all(axis=1)
        names = [name for name in PLAYERS if name in set(frame.loc[keep, "pairs"])]
        along = "round" if metric == "kl_to_nash" else "queries"
        how = {"x": along, "where": where, "order": names, "looks": looks, "loglog": metric != "kl_to_nash"}
        plotting.curves(ax, frame, metric, "pairs", legend=ax is not gap, **how)
        ax.set_title(title)
    rows.set_yscale("log")
    return figure


study = Study(
    name="pair_selection",
    title="Best against worst of n: selected pairs, their labels, and consistency",
    source="derived; practice of iterative DPO and SELM (2405.19332)",
    cells=cells,
    claims=claims,
    plot=plot,
    replicates=50,
    smoke_replicates=8,
)
