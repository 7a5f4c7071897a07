"""Which steps converge: mirror descent (INPO's exact form) on cyclic games, against the closed-form threshold.

No paper draws this map; it explains those that do draw curves. About the KL-regularised equilibrium the update
theta <- (1 - s k) theta + s k ref + s g(pi), k = kl_coef, turns by the game's frequencies +- i omega and shrinks by
|1 - s k + i s omega|, so a constant step converges locally iff s < 2 k / (k^2 + omega^2) (derived). Beyond it
exact INPO, alias Online IPO 1, settles on a limit cycle although the equilibrium is unique. INPO's theorem (2407.00617)
uses decreasing steps, for which the question does not arise; EGPO's figures (2503.08942) run mirror descent at this
edge.

Grid. `map`: rock-paper-scissors, uniform reference, 8 coefficients x 11 steps at fractions .25 to 3 of the threshold,
started 1e-5 off the centre: the modulus per iteration, from the ratio of KL(pi* || pi) while it is above rounding and
below 1e-6 (in one plane of rotation it is geometric to first order), and by what factor the distance sqrt(KL) has
changed after 2,000 rounds. `threshold`: the step at which the measured modulus crosses 1, by bisection, on
rock-paper-scissors, COMAL's cycle, Munos' dice and two random games of 10 actions, at three coefficients, started in
the fastest plane. `far`: rock-paper-scissors at kl_coef .5, .99 of the threshold, from (.98, .01, .01): the criterion
is local. `cycle`: radius and period of the limit cycle at 1.01, 1.1 and 1.3 times the threshold. `moduli`: the
extragradient and magnetic descent, per iteration. The random games do not follow --seed.

Found: the limit cycle's period is the linearisation's to .3 % at 1.01 times the threshold; at 1.1 times it is 3 to 4 %
off, beyond the tolerance that we had guessed.

What differs from the other studies: all runs are exact and deterministic (one replicate, no intervals), and the start
is set by hand, because in `simulate` every method starts at the reference, which here is the equilibrium.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

from simbandit import plotting
from simbandit.algorithms.dynamics import GameDynamics
from simbandit.algorithms.games import ExtraGradient, MagneticDescent, MirrorDescent
from simbandit.cycles import limit_cycle
from simbandit.draws import Draws
from simbandit.equilibrium import frequencies, solve
from simbandit.guarantees import Identity, Number
from simbandit.metrics import kl
from simbandit.oracles import FullInformation, PreferenceOracle, UniformTriangular, cycle, dice, rock_paper_scissors
from simbandit.policies import Tabular
from simbandit.study import Settings, Study, Task
from simbandit.types import Setting
from simbandit.worlds import TableWorld

KL_COEFS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
FRACTIONS = (0.25, 0.5, 0.7, 0.9, 0.99, 1.01, 1.1, 1.3, 1.6, 2.0, 3.0)
GAMES: dict[str, tuple[PreferenceOracle, int]] = {
    "rock-paper-scissors": (rock_paper_scissors(), 3),
    "COMAL's cycle": (cycle(-0.4, -0.4, -0.3), 3),
    "dice": (dice(), 3),
    "random 1": (UniformTriangular(fixed=True), 10),
    "random 2": (UniformTriangular(fixed=True, variant=1), 10),
}
ROUNDS = 2000
ROUNDING, LINEAR = 1e-24, 1e-6  # of KL: the band in which the modulus is read off
METHODS = {"mirror descent": MirrorDescent, "extragradient": ExtraGradient, "magnetic descent": MagneticDescent}


def trajectory(
    rule: GameDynamics, oracle: PreferenceOracle, n_actions: int, kl_coef: float, start: Tensor, rounds: int
) -> Tensor:
    """log pi_t, t = 0 ... rounds, (rounds + 1, A), with a uniform reference, from the logits log pi* + start (A,)."""
    _, ref, star = equilibrium_of(oracle, n_actions, kl_coef)
    draws = Draws(0, 1)
    instance = TableWorld(ref.numpy()).instance(1, draws)
    pool = instance.evaluation
    setting = Setting(1, rounds, 1, n_actions, None, kl_coef, (0.0, 1.0), pool, Tabular(pool.ref_log_probs), "full", 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # steps beyond 2 / kl_coef are what the map is about
        state = rule.init(setting)
    state.theta = torch.log_softmax(star + start, -1)
    bound, seen = FullInformation(oracle).bind(instance), [state.theta[0, 0]]
    for t in range(rounds):
        now = draws.at(t)
        feedback = bound.respond(pool, rule.select(state, pool, now), now)
        state, _ = rule.update(state, pool, state.theta, feedback, now)
        seen.append(state.theta[0, 0])
    return torch.stack(seen)


def iterate(
    rule: GameDynamics, oracle: PreferenceOracle, n_actions: int, kl_coef: float, start: Tensor, rounds: int
) -> Tensor:
    """KL(pi* || pi_t), t = 0 ... rounds, of `trajectory`."""
    star = equilibrium_of(oracle, n_actions, kl_coef)[2]
    return kl(star[0, 0], trajectory(rule, oracle, n_actions, kl_coef, start, rounds))


def equilibrium_of(oracle: PreferenceOracle, n_actions: int, kl_coef: float) -> tuple[Tensor, Tensor, Tensor]:
    """The game's table (1, 1, A, A), the uniform reference (1, A), and the regularised equilibrium (1, 1, A)."""
    ref = torch.full((1, n_actions), -math.log(n_actions), dtype=torch.float64)
    instance = TableWorld(ref.numpy()).instance(1, Draws(0, 1))
    table = oracle.bind(instance).win_table(instance.evaluation)
    return table, ref, solve(table, ref[None], kl_coef).log_probs


def fastest(table: Tensor, star: Tensor) -> tuple[float, Tensor]:
    """omega, the largest frequency at the equilibrium, and a direction (A,) in its plane, of largest entry 1."""
    p = star.exp()
    values, vectors = torch.linalg.eig((table - 0.5) @ (torch.diag_embed(p) - p[..., :, None] * p[..., None, :]))
    direction = vectors[0, 0, :, values[0, 0].imag.argmax()].real
    return float(frequencies(star, table).max()), direction / direction.abs().max()


def limit(kl_coef: float, omega: float) -> float:
    return 2 * kl_coef / (kl_coef**2 + omega**2)


def local_modulus(distances: Tensor) -> float:
    """sqrt of the mean factor of KL per step, over the last two thirds of the first steps within the band."""
    inside = ((distances > ROUNDING) & (distances < LINEAR)).to(torch.int64).cumprod(0)
    last = min(400, int(inside.sum()) - 1)
    first = last // 3
    return float((distances[last] / distances[first]) ** (0.5 / (last - first)))


def spot(
    method: str, step_size: float, kl_coef: float, theory: float, replicates: int, seed: int, device: str
) -> pd.DataFrame:
    """One point of the map."""
    del device, replicates, seed  # exact and deterministic
    keeps = {"period": None} if method == "magnetic descent" else {}  # the magnet is the reference
    rule = METHODS[method](step_size=step_size, **keeps)
    each = 2 if method == "extragradient" else 1  # evaluations per iteration
    start = 1e-5 * torch.tensor([1.0, -0.5, 0.2], dtype=torch.float64)
    distances = iterate(rule, *GAMES["rock-paper-scissors"], kl_coef, start, ROUNDS)[::each]
    growth = math.sqrt(max(float(distances[-1]), ROUNDING) / float(distances[0]))
    return _rows(
        {
            "modulus": local_modulus(distances),
            "theory": theory,
            "growth": growth,
            "converged": float(growth < 1),
        }
    )


def threshold(game: str, kl_coef: float, replicates: int, seed: int, device: str) -> pd.DataFrame:
    """The step at which the iterates' distance neither falls nor rises, over its closed form."""
    del device, replicates, seed
    oracle, n_actions = GAMES[game]
    table, _, star = equilibrium_of(oracle, n_actions, kl_coef)
    omega, direction = fastest(table, star)
    low, high = (f * limit(kl_coef, omega) for f in (0.5, 1.5))
    for _ in range(12):
        middle = (low + high) / 2
        distances = iterate(MirrorDescent(middle), oracle, n_actions, kl_coef, 1e-5 * direction, 300)
        low, high = (low, middle) if local_modulus(distances) > 1 else (middle, high)
    step = (low + high) / 2
    return _rows({"ratio": step / limit(kl_coef, omega), "omega": omega, "step": step})


def far_start(kl_coef: float, fraction: float, replicates: int, seed: int, device: str) -> pd.DataFrame:
    """Rock-paper-scissors from near a corner."""
    del device, replicates, seed
    step_size = fraction * limit(kl_coef, 1 / math.sqrt(12))
    start = torch.tensor([0.98, 0.01, 0.01], dtype=torch.float64).log()  # the equilibrium is uniform
    distances = iterate(MirrorDescent(step_size), *GAMES["rock-paper-scissors"], kl_coef, start, ROUNDS)
    return _rows({"radius": math.sqrt(2 * float(distances[-200:].min()))})


def beyond(kl_coef: float, fraction: float, replicates: int, seed: int, device: str) -> pd.DataFrame:
    """The cycle on which rock-paper-scissors ends, from 2 % off the centre; `turn` is the linearisation's period."""
    del device, replicates, seed
    omega = 1 / math.sqrt(12)
    step_size = fraction * limit(kl_coef, omega)
    start = torch.tensor([0.02, 0.0, -0.01], dtype=torch.float64)
    path = trajectory(MirrorDescent(step_size), *GAMES["rock-paper-scissors"], kl_coef, start, 3 * ROUNDS)
    cycle = limit_cycle(path.exp().numpy(), last=0.2)
    turn = 2 * math.pi / math.atan2(step_size * omega, 1 - step_size * kl_coef)
    found = {"cycle radius": cycle.radius, "cycle period": cycle.period, "turn": turn, "cycle growth": cycle.growth}
    return _rows(found | {"period / turn": cycle.period / turn})


def _rows(values: Mapping[str, float]) -> pd.DataFrame:
    table = pd.DataFrame({"metric": list(values), "value": list(values.values())})
    return table.assign(replicate=0, round=ROUNDS, queries=0.0)


def cells(settings: Settings, tuned: Mapping[str, Any]) -> Sequence[Task]:
    del tuned

    def task(labels: Mapping[str, Any], function: Any, **arguments: Any) -> Task:
        return Task(labels, function, arguments, settings.replicates, settings.seed)

    grid = []
    omega = 1 / math.sqrt(12)
    for k in (0.1, 0.3) if settings.smoke else KL_COEFS:
        for fraction in FRACTIONS:
            s = fraction * limit(k, omega)
            labels = {"part": "map", "method": "mirror descent", "kl_coef": k, "fraction": fraction, "step": s}
            theory = math.hypot(1 - s * k, s * omega)
            grid.append(task(labels, spot, method="mirror descent", step_size=s, kl_coef=k, theory=theory))
    for k in (0.1, 0.3):
        for s in (0.5, 1.0, 2.0):
            z = complex(1 - s * k, s * omega)
            theories = {
                "extragradient": abs(1 - s * k + 1j * s * omega * z),
                "magnetic descent": math.hypot(1, s * omega) / (1 + s * k),
            }
            for method, theory in theories.items():
                labels = {"part": "moduli", "method": method, "kl_coef": k, "fraction": None, "step": s}
                grid.append(task(labels, spot, method=method, step_size=s, kl_coef=k, theory=theory))
    for game in ("rock-paper-scissors",) if settings.smoke else GAMES:
        for k in (0.1,) if settings.smoke else (0.05, 0.1, 0.3):
            grid.append(task({"part": "threshold", "game": game, "kl_coef": k}, threshold, game=game, kl_coef=k))
    for k in (0.1, 0.3):
        for fraction in (1.01, 1.1, 1.3):
            labels = {"part": "cycle", "kl_coef": k, "fraction": fraction}
            grid.append(task(labels, beyond, kl_coef=k, fraction=fraction))
    for k, fraction in ((0.1, 0.99), (0.5, 0.99), (0.5, 0.5)):
        labels = {"part": "far", "kl_coef": k, "fraction": fraction}
        grid.append(task(labels, far_start, kl_coef=k, fraction=fraction))
    return grid


NOTES, DERIVED = "own earlier runs", "derived (linearisation)"
claims = (
    Number(
        "threshold 2.142857, rock-paper-scissors, kl_coef .1",
        "own earlier runs",
        "step",
        {"part": "threshold", "game": "rock-paper-scissors", "kl_coef": 0.1},
        2.142857,
        0.0214,
        exact=True,
    ),
    *(
        Number(
            f"threshold / closed form, {game}, kl_coef {k:g}",
            NOTES,
            "ratio",
            {"part": "threshold", "game": game, "kl_coef": k},
            1.0,
            0.01,
            exact=True,
        )
        for game in GAMES
        for k in (0.05, 0.1, 0.3)
    ),
    *(
        Number(
            f"{'converges' if value else 'does not converge'} at {fraction:g} x threshold, kl_coef {k:g}",
            NOTES,
            "converged",
            {"part": "map", "kl_coef": k, "fraction": fraction},
            value,
            0.0,
            exact=True,
        )
        for k in KL_COEFS
        for fraction, value in ((0.99, 1.0), (1.01, 0.0))
    ),
    *(
        Identity(
            f"modulus of mirror descent = |1 - s k + i s omega| at {fraction:g} x threshold",
            NOTES,
            "modulus",
            {"part": "map", "fraction": fraction},
            5e-4,
            other="theory",
        )
        for fraction in (0.25, 0.5, 0.9, 0.99, 1.01, 1.6)
    ),
    Identity("modulus of the extragradient", NOTES, "modulus", {"method": "extragradient"}, 5e-4, other="theory"),
    Identity("modulus of magnetic descent", NOTES, "modulus", {"method": "magnetic descent"}, 5e-4, other="theory"),
    Number(
        "kl_coef .5, .99 x threshold, far start: a cycle coexists (radius > .1)",
        "own earlier runs",
        "radius",
        {"part": "far", "kl_coef": 0.5, "fraction": 0.99},
        0.1,
        0.0,
        "at least",
        exact=True,
    ),
    *(
        Number(
            f"the limit cycle turns as the linearisation does at {fraction:g} x threshold, kl_coef {k:g}",
            DERIVED,
            "period / turn",
            {"part": "cycle", "kl_coef": k, "fraction": fraction},
            1.0,
            0.03,
            exact=True,
        )
        for k in (0.1, 0.3)
        for fraction in (1.01, 1.1)
    ),
    *(
        Number(
            f"beyond the threshold it is a cycle: radius neither falls nor rises at {fraction:g} x, kl_coef {k:g}",
            DERIVED,
            "cycle growth",
            {"part": "cycle", "kl_coef": k, "fraction": fraction},
            1.0,
            0.02,
            exact=True,
        )
        for k in (0.1, 0.3)
        for fraction in (1.01, 1.1, 1.3)
    ),
)


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=2, height=2.8)
    left, right = axes[0]
    spots = frame.take(np.flatnonzero((frame["part"] == "map").to_numpy()))
    growth = spots.take(np.flatnonzero((spots["metric"] == "growth").to_numpy()))
    drawn = left.scatter(
        growth["kl_coef"], growth["step"], c=growth["value"], norm=LogNorm(1e-3, 1e3), cmap="RdBu_r", s=24, linewidth=0
    )
    k = np.geomspace(0.018, 0.6, 200)
    left.plot(k, 2 * k / (k**2 + 1 / 12), color="black", label=r"$2k/(k^2+\omega^2)$")
    left.set_xscale("log")
    left.set_yscale("log")
    ticks = [0.02, 0.05, 0.1, 0.2, 0.5]
    left.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    left.set_xticks([], minor=True)
    left.set_xlabel("kl_coef k")
    left.set_ylabel("step size s")
    left.set_title("(a) rock-paper-scissors, 2000 rounds")
    left.legend(loc="lower right")
    figure.colorbar(drawn, ax=left, label="final / first distance", extend="both")
    chosen = [c for c in (0.02, 0.1, 0.3, 0.5) if c in set(spots["kl_coef"])]
    for c, look in plotting.lines(chosen).items():
        rows = spots.take(np.flatnonzero((spots["kl_coef"] == c).to_numpy()))
        measured, theory = (
            rows.take(np.flatnonzero((rows["metric"] == m).to_numpy())).sort_values("fraction")
            for m in ("modulus", "theory")
        )
        right.plot(theory["fraction"], theory["value"], color=look.color, linestyle=look.dash)
        right.plot(
            measured["fraction"],
            measured["value"],
            color=look.color,
            marker=look.marker,
            linestyle="",
            label=f"k = {c:g}",
        )
    right.axhline(1, color="0.5", linewidth=0.8)
    right.axvline(1, color="0.5", linewidth=0.8)
    right.set_ylim(0.4, 1.6)
    right.set_xlabel("step size / threshold")
    right.set_ylabel("modulus per iteration")
    right.set_title("(b) measured (marks), closed form (lines)")
    right.legend(loc="lower right")
    return figure


study = Study(
    name="stability_map",
    title="Which steps converge: mirror descent on cyclic games against 2k / (k² + ω²)",
    source="own earlier runs (linearisation); no paper's figure",
    cells=cells,
    claims=claims,
    plot=plot,
    replicates=1,
    smoke_replicates=1,
)
