"""EGPO's simulations: which methods reach the regularised equilibrium of random games, at the paper's own steps.

EGPO (2503.08942), figures of the numerical simulations, and the released code: 10 games of 10 actions, P uniform on
[0, 1] for every pair, reference and start softmax of N(0, 1) logits; duality gap over updates, exact gradients at
kl_coef .001, .01, .1 (100,000, 5,000, 1,000 updates), 100 samples an update (kl_coef .01), and a small network (a
learnt input of 10 numbers, two hidden layers of 10, 100 actions; 10,000 updates at .01). Here a game is a replicate.

Learning rate. The code runs SGD on an average over pairs of actions; its gradient moves the logits by a step of mirror
descent with step_size s = 4 lr / (kl_coef A), A the number of actions: .08, .8, .4 for kl_coef .001, .01, .1, and .008
with samples. Elsewhere the code takes 2 lr / (kl_coef A) for its step, so that its Nash-MD mixes the reference with
*half* the weight s k of the paper's algorithm. `nash_md` is the paper's, `nash_md, code` has the code's weight; the
bias is measured for both, against the prediction that the mixture is the equilibrium at kl_coef / (1 - weight).

Grid. Exact, through `FullInformation`: mirror_descent (Online IPO 1), egpo (two evaluations an update), nash_md (both),
Online IPO 2 and Nash-MD-PG as the SGD that the code runs. Sampled: 100 duels an update, the first action uniform.
Neural: exact gradients of the code's loss, plain SGD.

What differs. Other games than the paper's, whose generator is PyTorch's. Sampled: hard labels of duels, where the code
looks up win probabilities of sampled pairs and samples the log-ratios too; 50,000 updates, not 100,000. Neural: every
game has a network of its own, where the code shares the layers between its games; float64. Curves are raw: the paper's
are smoothed over 10 updates and cut at 1e-6.

`solved`: the gap is at most 1e-6 at the end. `beyond`: the step exceeds the game's local threshold 2 k / (k^2 +
omega^2), so mirror descent must not get there; `beyond_and_solved` counts games that contradict this. `floor`: the mean
gap over the last fifth of a sampled run.

Found: with exact gradients all claims hold. EGPO solves all games, mirror descent 10, 5 and 0 of 10 at kl_coef .1, .01,
.001: no game beyond its threshold, and those just within it are too slow. The code's half weight divides Nash-MD's bias
by 4.1, so the plotted plateau is too low by that factor. With samples EGPO and mirror descent end at floors that ten
games do not tell apart, EGPO's the higher if anything, at twice the duels. On networks both reach rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from simbandit import plotting, plotting_games
from simbandit.algorithms.dynamics import GameDynamics, GameState, offered
from simbandit.algorithms.games import ExtraGradient, MirrorDescent, NashMD
from simbandit.draws import Draws
from simbandit.equilibrium import best_response, duality_gap, frequencies, solve
from simbandit.guarantees import Exponent, Number, Ordering
from simbandit.metrics import Snapshot, kl
from simbandit.oracles import FullInformation, UniformTriangular
from simbandit.simulate import Problem, simulate
from simbandit.study import Settings, Simulation, Study, Task
from simbandit.types import Algorithm
from simbandit.worlds import LinearWorld

N_ACTIONS = 10
EXACT = {0.001: (100_000, 2e-4), 0.01: (5_000, 0.02), 0.1: (1_000, 0.1)}  # kl_coef: updates, SGD learning rate
SAMPLED = (0.01, 50_000, 2e-4, 100)  # kl_coef, updates, learning rate, duels an update
NEURAL = (0.01, 10_000, 0.003, 100, 10)  # kl_coef, updates, learning rate, actions, width
REACHED = 1e-6


def step_size(learning_rate: float, kl_coef: float, n_actions: int = N_ACTIONS) -> float:
    return 4 * learning_rate / (kl_coef * n_actions)


@dataclass(frozen=True)
class OnlineIPO2(GameDynamics):
    """theta <- theta - 4 lr pi (r - pi'r), r = log(pi / ref) - g(pi) / k: SGD on Online IPO with on-policy pairs, as in
    EGPO's code."""

    learning_rate: float

    def query(self, state: GameState) -> Tensor:
        return state.theta

    def step(self, state: GameState, g: Tensor) -> Tensor:
        pi, r = state.theta.exp(), state.theta - state.ref - g / state.setting.kl_coef
        return state.theta - 4 * self.learning_rate * pi * (r - (pi * r).sum(-1, keepdim=True))


@dataclass(frozen=True)
class NashMDGradient(GameDynamics):
    """theta <- theta + lr pi (a - pi'a), a = g(mixture) - k log(pi / ref): Nash-MD-PG (2312.00886), by SGD as in EGPO's
    code; mixture: the weight of the reference in the opponent."""

    learning_rate: float
    mixture: float

    def query(self, state: GameState) -> Tensor:
        return offered(state, (1 - self.mixture) * state.theta + self.mixture * state.ref)

    def step(self, state: GameState, g: Tensor) -> Tensor:
        pi, a = state.theta.exp(), g - state.setting.kl_coef * (state.theta - state.ref)
        return state.theta + self.learning_rate * pi * (a - (pi * a).sum(-1, keepdim=True))


# ---------------------------------------------------------------------------------------------------------- metrics


def _table(s: Snapshot) -> Tensor:
    assert s.game is not None
    return s.game.preference


def solved(s: Snapshot) -> Tensor:
    assert s.game is not None
    gap = duality_gap(s.log_probs, _table(s), s.ref_log_probs, s.kl_coef)
    return (gap[:, 0] <= REACHED).to(gap.dtype)


def beyond(s: Snapshot, step: float) -> Tensor:
    """1 where the step exceeds the threshold of local stability of mirror descent."""
    assert s.game is not None
    omega = frequencies(s.game.nash, _table(s)).amax(-1)[:, 0]
    return (step > 2 * s.kl_coef / (s.kl_coef**2 + omega**2)).to(omega.dtype)


def beyond_and_solved(s: Snapshot, step: float) -> Tensor:
    return beyond(s, step) * solved(s)


def distance_to_predicted(s: Snapshot, mixture: float) -> Tensor:
    """KL from the predicted limit of Nash-MD: the best response to the equilibrium at kl_coef / (1 - mixture)."""
    opponent = solve(_table(s), s.ref_log_probs, s.kl_coef / (1 - mixture)).log_probs
    return s.over_contexts(kl(best_response(opponent, _table(s), s.ref_log_probs, s.kl_coef), s.log_probs))


# ------------------------------------------------------------------------------------------------------------ cells


def world(n_actions: int) -> LinearWorld:
    """One context; the reference is the softmax of N(0, 1) logits, another in every replicate. Rewards are not used."""
    return LinearWorld(n_contexts=1, n_actions=n_actions, dim=1, reference="softmax")


def exact_methods(kl_coef: float, rate: float) -> dict[str, tuple[Algorithm, int]]:
    """Name: the algorithm, and its evaluations an update."""
    s = step_size(rate, kl_coef)
    half = s * kl_coef / 2
    return {
        "mirror_descent": (MirrorDescent(s), 1),
        "egpo": (ExtraGradient(s), 2),
        "nash_md": (NashMD(s), 1),
        "nash_md, code": (NashMD(s, mixture=half), 1),
        "online_ipo_2": (OnlineIPO2(rate), 1),
        "nash_md_pg": (NashMDGradient(rate, half), 1),
    }


def cells(settings: Settings, tuned: Mapping[str, Any]) -> Sequence[Simulation | Task]:
    del tuned  # the learning rates are the paper's
    grid: list[Simulation | Task] = []
    for kl_coef, (updates, rate) in EXACT.items():
        if settings.smoke and kl_coef < 0.1:
            continue
        s = step_size(rate, kl_coef)
        for method, (algorithm, each) in exact_methods(kl_coef, rate).items():
            metrics: list[Any] = ["duality_gap", "kl_to_nash", ("solved", solved)]
            metrics += [(f.__name__, partial(f, step=s)) for f in (beyond, beyond_and_solved)]
            if isinstance(algorithm, NashMD) and kl_coef == 0.1:  # where it has converged
                weight = s * kl_coef if algorithm.mixture is None else algorithm.mixture
                metrics.append(("distance_to_predicted", partial(distance_to_predicted, mixture=weight)))
            grid.append(
                Simulation(
                    {"mode": "exact", "kl_coef": kl_coef, "method": method},
                    Problem(world(N_ACTIONS), FullInformation(UniformTriangular()), kl_coef),
                    algorithm,
                    updates * each,
                    settings.replicates,
                    seed=settings.seed,
                    metrics=metrics,
                    record=_spread(updates * each),
                )
            )
    shrink = 25 if settings.smoke else 1
    kl_coef, updates, rate, duels = SAMPLED
    updates //= shrink
    for method in ("mirror_descent", "egpo", "nash_md"):
        algorithm, each = exact_methods(kl_coef, rate)[method]
        arguments = {"algorithm": algorithm, "kl_coef": kl_coef, "rounds": updates * each, "duels": duels}
        labels = {"mode": "sampled", "kl_coef": kl_coef, "method": method}
        grid.append(Task(labels, sampled, arguments, settings.replicates, settings.seed))
    kl_coef, updates, rate, n_actions, width = NEURAL
    updates //= shrink
    for method in ("mirror_descent", "egpo", "nash_md, code"):
        arguments = {
            "method": method,
            "kl_coef": kl_coef,
            "updates": updates,
            "rate": rate,
            "n_actions": n_actions,
            "width": width,
        }
        labels = {"mode": "neural", "kl_coef": kl_coef, "method": method}
        grid.append(Task(labels, neural, arguments, settings.replicates, settings.seed))
    return grid


def _spread(rounds: int, points: int = 500) -> list[int]:
    """Evenly spaced even rounds, at which a step of two evaluations is whole."""
    return sorted({2 * int(t) for t in np.linspace(0, rounds // 2, min(points, rounds // 2) + 1).round()})


def sampled(
    algorithm: Algorithm, kl_coef: float, rounds: int, duels: int, replicates: int, seed: int, device: str
) -> pd.DataFrame:
    """A run on duels, with `floor`: the mean gap over its last fifth."""
    frame = simulate(
        Problem(world(N_ACTIONS), UniformTriangular(), kl_coef),
        algorithm,
        rounds=rounds,
        batch_size=duels,
        replicates=replicates,
        seed=seed,
        device=device,
        metrics=["duality_gap", "kl_to_nash"],
        record=_spread(rounds),
    ).frame()
    late = frame.loc[(frame["metric"] == "duality_gap") & (frame["round"] >= 0.8 * rounds)]
    mean = late.groupby("replicate")["value"].mean()
    floor = pd.DataFrame({"replicate": mean.index, "round": rounds, "metric": "floor", "value": mean.to_numpy()})
    floor["queries"] = float(rounds * duels)
    return pd.concat([frame, floor], ignore_index=True)


# ----------------------------------------------------------------------------------------------------------- neural


def network(weights: Sequence[Tensor]) -> Tensor:
    """Log-probabilities (R, A) of one small network per replicate: a learnt input, ReLU layers, logits."""
    x, *layers = weights
    for weight, bias in zip(layers[0:-2:2], layers[1:-2:2], strict=True):
        x = torch.relu(torch.einsum("rij,rj->ri", weight, x) + bias)
    return torch.log_softmax(torch.einsum("rij,rj->ri", layers[-2], x) + layers[-1], -1)


def initial(draws: Draws, n_actions: int, width: int) -> list[Tensor]:
    """Input N(0, 1), weights Xavier normal, biases 0: two hidden layers and the output."""
    weights = [draws.once("network/input", width)]
    for i, rows in enumerate((width, width, n_actions)):
        scale = (2 / (rows + width)) ** 0.5
        weights += [scale * draws.once(f"network/layer{i}", rows, width), weights[0].new_zeros(len(weights[0]), rows)]
    return weights


def neural(
    method: str,
    kl_coef: float,
    updates: int,
    rate: float,
    n_actions: int,
    width: int,
    replicates: int,
    seed: int,
    device: str,
) -> pd.DataFrame:
    """SGD on 2 Var_a[log pi / ref - P q / kl_coef], a uniform: the mean squared difference over pairs of actions.

    q, whose win rates are the target and carry no gradient: pi itself, EGPO's half step, or Nash-MD's mixture. The
    reference is the network at its start. Gap and best response are over all policies, as in the code.
    """
    draws = Draws(seed, replicates, device)
    instance = world(n_actions).instance(replicates, draws)
    table = UniformTriangular().bind(instance).win_table(instance.evaluation)[:, 0]
    weights = initial(draws, n_actions, width)
    ref = network(weights)
    mixture = step_size(rate, kl_coef, n_actions) * kl_coef / 2

    def moved(target: Tensor) -> list[Tensor]:
        """The weights after one step from `weights`, towards the target win rates."""
        leaves = [w.detach().requires_grad_() for w in weights]
        residual = network(leaves) - ref - target / kl_coef
        loss = 2 * residual.var(-1, correction=0).sum()  # games are independent, so one sum serves all
        gradients = torch.autograd.grad(loss, leaves)
        return [(w - rate * g).detach() for w, g in zip(leaves, gradients, strict=True)]

    def against(log_q: Tensor) -> Tensor:
        return (table @ log_q.exp()[..., None]).squeeze(-1)

    each = 2 if method == "egpo" else 1
    wanted = {t // each for t in _spread(updates * each)}
    parts = []
    for t in range(updates + 1):
        log_pi = network(weights)
        if t in wanted:
            gap = duality_gap(log_pi, table, ref, kl_coef).cpu().numpy()
            parts.append(
                pd.DataFrame(
                    {"replicate": range(replicates), "round": t * each, "queries": 0.0, "metric": "duality_gap"}
                ).assign(value=gap)
            )
        if method == "egpo":
            weights = moved(against(network(moved(against(log_pi)))))
        elif method == "mirror_descent":
            weights = moved(against(log_pi))
        else:
            weights = moved(against(torch.log_softmax((1 - mixture) * log_pi + mixture * ref, -1)))
    return pd.concat(parts, ignore_index=True)


# ----------------------------------------------------------------------------------------------------------- claims

NAMES = {
    "mirror_descent": "mirror descent (Online IPO 1)",
    "egpo": "EGPO",
    "nash_md": "Nash-MD, paper's mixture",
    "nash_md, code": "Nash-MD, code's mixture",
    "online_ipo_2": "Online IPO 2 (SGD)",
    "nash_md_pg": "Nash-MD-PG (SGD)",
}
PAPER, NOTES, LINEAR = "2503.08942, simulations", "own earlier runs", "own earlier runs"
ROBUST = f"{PAPER} (robust to gradient noise)"


def exact(method: str, kl_coef: float) -> dict[str, Any]:
    return {"mode": "exact", "method": method, "kl_coef": kl_coef}


def share(
    name: str, source: str, metric: str, method: str, kl_coef: float, value: float, tolerance: float = 0
) -> Number:
    """Of the games, with exact gradients."""
    return Number(f"{name}, kl_coef {kl_coef:g}", source, metric, exact(method, kl_coef), value, tolerance, exact=True)


def egpo_below(other: str, metric: str, factor: float = 1.0, source: str = PAPER, **where: Any) -> Ordering:
    text = ", ".join(f"{value:g}" if isinstance(value, float) else value for value in where.values())
    more = "" if factor == 1 else f" times {1 / factor:g}"
    name = f"{text}: EGPO's {metric.replace('_', ' ')} is below that of {other}{more}"
    return Ordering(name, source, metric, {"method": "egpo"}, {"method": other}, where, factor=factor)


claims = (
    *(share("EGPO solves every game (gap <= 1e-6)", PAPER, "solved", "egpo", k, 1) for k in EXACT),
    share("mirror descent solves every game", NOTES, "solved", "mirror_descent", 0.1, 1),
    share("mirror descent solves about half of the games", NOTES, "solved", "mirror_descent", 0.01, 0.5, 0.2),
    share("mirror descent solves no game", NOTES, "solved", "mirror_descent", 0.001, 0),
    *(
        share("mirror descent solves no game beyond its threshold", LINEAR, "beyond_and_solved", "mirror_descent", k, 0)
        for k in EXACT
    ),
    *(
        egpo_below(other, "duality_gap", mode="exact", kl_coef=k)
        for k in EXACT
        for other in ("mirror_descent", "nash_md, code", "online_ipo_2", "nash_md_pg")
        if (k, other) != (0.1, "mirror_descent")  # both end at rounding
    ),
    share("Nash-MD, code's mixture, plateaus: no game solved", NOTES, "solved", "nash_md, code", 0.1, 0),
    *(
        share(f"{NAMES[m]}: stops where predicted (KL)", LINEAR, "distance_to_predicted", m, 0.1, 0, 1e-9)
        for m in ("nash_md", "nash_md, code")
    ),
    Ordering(
        "half the mixture's weight: Nash-MD's bias is less than a third, kl_coef .1",
        f"{NOTES}; 2503.08942, released code",
        "kl_to_nash",
        {"method": "nash_md, code"},
        {"method": "nash_md"},
        {"mode": "exact", "kl_coef": 0.1},
        factor=3.0,
        exact=True,
    ),
    egpo_below("mirror_descent", "floor", 1 / 1.1, ROBUST, mode="sampled"),
    Number(
        "sampled: EGPO's floor is below .01", ROBUST, "floor", {"mode": "sampled", "method": "egpo"}, 0.01, 0, "at most"
    ),
    egpo_below("mirror_descent", "duality_gap", mode="neural"),
    egpo_below("nash_md, code", "duality_gap", mode="neural"),
    Exponent(
        "neural: EGPO's gap falls at least as t^-1 over the last nine tenths",
        PAPER,
        "duality_gap",
        {"mode": "neural", "method": "egpo"},
        -1.0,
        0.0,
        "at most",
        x="round",
        window=(NEURAL[1] // 5, 2 * NEURAL[1]),
    ),
)


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=3, rows=2, height=2.2)
    looks = plotting.lines(list(NAMES))
    shown = [("exact", k) for k in sorted(EXACT, reverse=True)] + [("sampled", SAMPLED[0]), ("neural", NEURAL[0])]
    first = None
    for ax, (mode, kl_coef), letter in zip(axes.flat, shown, "abcde", strict=False):
        rows = frame.take(np.flatnonzero(((frame["mode"] == mode) & (frame["kl_coef"] == kl_coef)).to_numpy()))
        if rows.empty:
            ax.set_axis_off()
            continue
        present = [name for name in NAMES if name in set(rows["method"])]
        plotting_games.gaps(
            ax, rows, "duality_gap", "method", lowest=1e-12, order=present, names=NAMES, looks=looks, legend=False
        )
        ax.set_title(f"({letter}) {mode}, kl_coef {kl_coef:g}")
        ax.set_ylabel("duality gap\n(lower is better)")
        if mode == "sampled":
            ax.set_xlabel("rounds of 100 duels")
        first = first or ax
    axes.flat[-1].set_axis_off()
    assert first is not None
    handles, texts = first.get_legend_handles_labels()
    axes.flat[-1].legend(handles, texts, loc="center left")
    return figure


study = Study(
    name="egpo_grid",
    title="EGPO's random games: exact, sampled and neural, at the paper's learning rates",
    source="EGPO (2503.08942), numerical simulations and released code",
    cells=cells,
    claims=claims,
    plot=plot,
    tuning_metric="duality_gap",
    replicates=10,
    smoke_replicates=10,
)
