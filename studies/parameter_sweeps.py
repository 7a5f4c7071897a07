"""Regret as a function of the problem: dimension, actions, gap, horizon, reward scale and KL coefficient, with bounds.

Sources: upper bounds of OFUL (Abbasi-Yadkori, Pal, Szepesvari 2011) and of KL-UCB (the argument of 2502.07460, with
constants); lower bounds for every algorithm: the cube (Lattimore, Szepesvari 2020, Theorem 24.1), a random best arm
(Auer et al. 2002, Theorem 5.1, for Gaussian noise), and contexts of random sign under the KL objective (derived). All
are objects of `simbandit.guarantees.bounds`, where their proofs or sources stand. No paper has this figure.

A lower bound binds on its own family of worlds, drawn as its proof draws them, so each sweep says where it runs:
"ordinary", fresh unit features, 10 actions, |theta*| = 1, noise .5 (d, reward scale); "cube", all 2^d sign vectors,
theta uniform on {-c, c}^d, c = noise / sqrt(T), noise 1 (d, T); "random arm", one-hot features, one good arm, noise 1
(K at the worst gap (1 - 1/K) sqrt(K / T), and the gap at K = 4); "signed contexts", d = 4 contexts, two actions +-e_x,
theta ~ N(0, 1/4), noise 1, the KL objective (kl_coef, and T at kl_coef = .5). Elsewhere the overlay is grey, and so is
OFUL's where rewards may exceed 1. The last panel asks duels of the signed contexts, 8 a round.

Rules, the same everywhere, not tuned to a sweep: LinUCB, LinTS and SquareCB with their defaults, OFUL with its
determinant's radius; under KL greedy sampling with the ridge noise^2 / prior variance (there the Bayes rule) and KL-UCB
with the theorem's radius (the two actions of a signed context are equally wide, so that its bonus cancels); with duels
GSHF (its enhancer), greedy (pi_t, pi_ref) and uniform duels, their defaults. Each horizon is a run of its own.
Exponents are slopes over the swept values (some over a part, as their claims say), by the bootstrap over replicates.
The duels were added after a first run, and KL-UCB with radius 1 dropped (the same numbers, for the bonus cancels).

Found (64 replicates): no bound is broken. OFUL's regret is 1 to 3 % of what Theorem 3 allows. On the cube every rule
pays d sqrt(T), with exponents of 1.0 to 1.2 in d (their intervals leave 1 +- .1: undecided) and .46 to .49 in T, at 25
to 29 times the lower bound or more. A random best arm costs 1.6 to 1.8 times its lower bound where the two are closest;
the exponent in K is .8 to .9, above the bound's .5. Over the gap regret rises in proportion while the gap is too small
to be seen, peaks near .2 and falls; OFUL's wide radius has not reached 1 / gap by .8 (exponent -.35: fails). Over the
reward scale optimism and LinTS hardly move, SquareCB grows (.7) because the range divides its gamma. Under KL the lower
bound is sharp: greed's regret is 1.07 times it where closest (interval .93 to 1.25: that it lies above is undecided, as
is 10 % at kl_coef 5, 1.80 against 1.64), falls like kl_coef^-.88 beyond 1 (undecided against -1) and grows like log T.
With duels the best rule pays 3.6 times the lower bound; GSHF's exploration costs up to three times greed's regret here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from simbandit import Problem, algorithms, plotting
from simbandit.guarantees import Bound, Exponent, GrowsLike, Number, Parameters, Respects, bounds
from simbandit.guarantees.claims import Claim
from simbandit.oracles import BradleyTerry, NoisyReward
from simbandit.study import Settings, Simulation, Study
from simbandit.worlds import LinearWorld

T, SHORT = 2000, 1000
REWARD, KL = "cumulative_reward_regret", "cumulative_suboptimality"
UCB, OFUL, TS, SQUARE = "LinUCB", "OFUL", "LinTS", "SquareCB"
GREEDY, KLUCB = "greedy (KL)", "KL-UCB, theory"
GSHF, GREEDY_DUELS, UNIFORM = "GSHF (duels)", "greedy (duels)", "uniform (duels)"
REWARDED, REGULARISED, DUELLING = (UCB, OFUL, TS, SQUARE), (GREEDY, KLUCB), (GSHF, GREEDY_DUELS, UNIFORM)
BATCH = 8  # duels a round
PRIOR, KL_DIM, KL_COEF = 0.5, 4, 0.5  # of the signed contexts


def worst_gap(arms: int, rounds: float) -> float:
    return (1 - 1 / arms) * math.sqrt(arms / rounds)


def ordinary(p: Parameters) -> LinearWorld:
    return LinearWorld(n_actions=p.n_actions, dim=p.dim, theta_norm=p.theta_norm, n_evaluation=64)


def cube(p: Parameters) -> LinearWorld:
    corners = 2.0 * (np.arange(2**p.dim)[:, None] >> np.arange(p.dim) & 1) - 1
    scale = p.theta_norm / math.sqrt(p.dim)
    return LinearWorld(features=corners[None], theta="signs", theta_norm=None, theta_scale=scale)


def random_arm(p: Parameters) -> LinearWorld:
    return LinearWorld(features=np.eye(p.n_actions)[None], theta=p.theta_norm * np.eye(p.n_actions)[0])


def signed_contexts(p: Parameters) -> LinearWorld:
    features = np.eye(p.dim)[:, None, :] * np.array([1.0, -1.0])[:, None]
    return LinearWorld(features=features, theta="gaussian", theta_norm=None, theta_scale=PRIOR)


@dataclass(frozen=True)
class Sweep:
    """One panel: what is swept, over which values, in which world."""

    title: str
    x: str
    values: tuple[float, ...]
    parameters: Callable[[float], Parameters]
    world: Callable[[Parameters], LinearWorld]
    bounds: tuple[Bound, ...]
    rules: tuple[str, ...] = REWARDED

    @property
    def metric(self) -> str:
        return REWARD if self.rules == REWARDED else KL


def of_dim(d: float) -> Parameters:
    return Parameters(SHORT, int(d), 10, noise_std=0.5)


def of_scale(scale: float) -> Parameters:
    return Parameters(SHORT, 8, 10, noise_std=0.5, theta_norm=scale)


def of_cube(d: float, rounds: float = SHORT) -> Parameters:
    c, root = 1 / math.sqrt(rounds), math.sqrt(d)
    return Parameters(
        rounds, int(d), 2 ** int(d), theta_norm=c * root, feature_norm=root, coordinate=c, family="cube", gap=2 * c
    )


def of_horizon(rounds: float) -> Parameters:
    return of_cube(4, rounds)


def of_gap(gap: float, arms: int = 4) -> Parameters:
    return Parameters(T, arms, arms, theta_norm=gap, gap=gap, family="random_arm")


def of_arms(arms: float) -> Parameters:
    return of_gap(worst_gap(int(arms), T), int(arms))


def of_kl(kl_coef: float, rounds: float = SHORT) -> Parameters:
    reach = PRIOR * (math.sqrt(KL_DIM) + 8)  # what the world tells as its bound on |theta*|
    return Parameters(rounds, KL_DIM, 2, theta_norm=reach, kl_coef=kl_coef, coordinate=PRIOR, family="signed_contexts")


def of_kl_horizon(rounds: float) -> Parameters:
    return of_kl(KL_COEF, rounds)


HORIZONS = (125, 250, 500, 1000, 2000, 4000)
SWEEPS: dict[str, Sweep] = {
    "d": Sweep("ordinary world", "dim", (2, 4, 8, 16, 32), of_dim, ordinary, (bounds.OFUL, bounds.CUBE)),
    "d, cube": Sweep("cube", "dim", (2, 3, 4, 6, 8), of_cube, cube, (bounds.OFUL, bounds.CUBE)),
    "T, cube": Sweep("cube, d = 4", "horizon", HORIZONS, of_horizon, cube, (bounds.OFUL, bounds.CUBE)),
    "K": Sweep(
        "random arm, worst gap",
        "n_actions",
        (2, 4, 8, 16, 32, 64),
        of_arms,
        random_arm,
        (bounds.OFUL, bounds.RANDOM_ARM),
    ),
    "gap": Sweep(
        "random arm, K = 4",
        "gap",
        (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8),
        of_gap,
        random_arm,
        (bounds.OFUL_GAP, bounds.RANDOM_ARM),
    ),
    "scale": Sweep("ordinary world", "scale", (0.1, 0.3, 1.0, 3.0, 10.0), of_scale, ordinary, (bounds.OFUL,)),
    "kl_coef": Sweep(
        "signed contexts, KL",
        "kl_coef",
        (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0),
        of_kl,
        signed_contexts,
        (bounds.KL_UCB, bounds.KL_CONTEXTS),
        REGULARISED,
    ),
    "T, KL": Sweep(
        "signed contexts, KL",
        "horizon",
        HORIZONS,
        of_kl_horizon,
        signed_contexts,
        (bounds.KL_UCB, bounds.KL_CONTEXTS),
        REGULARISED,
    ),
    "kl_coef, duels": Sweep(
        "signed contexts, duels",
        "kl_coef",
        (0.1, 0.2, 0.5, 1.0, 2.0, 5.0),
        of_kl,
        signed_contexts,
        (bounds.KL_DUELS,),
        DUELLING,
    ),
}


def rule(name: str, p: Parameters) -> Any:
    made: dict[str, Callable[[], Any]] = {
        UCB: lambda: algorithms.create("linucb"),
        OFUL: lambda: algorithms.create("linucb", radius="determinant", noise_std=p.noise_std),
        TS: lambda: algorithms.create("lints"),
        SQUARE: lambda: algorithms.create("squarecb"),
        GREEDY: lambda: algorithms.create("greedy", ridge=p.noise_std**2 / PRIOR**2, refit_growth=0.0),
        KLUCB: lambda: algorithms.create("kl_ucb", radius=p.radius, refit_growth=0.0),
        GSHF: lambda: algorithms.create("gshf_online"),
        GREEDY_DUELS: lambda: algorithms.create("greedy"),
        UNIFORM: lambda: algorithms.create("two_stage", first_stage=1.0),
    }
    return made[name]()


def cells(settings: Settings, tuned: Mapping[str, Any]) -> list[Simulation]:
    del tuned
    grid = []
    for name, sweep in SWEEPS.items():
        batch = BATCH if sweep.rules == DUELLING else 1
        for value in sweep.values[1:3] if settings.smoke else sweep.values:
            p = sweep.parameters(value)
            rounds = (min(40, int(p.rounds)) if settings.smoke else int(p.rounds)) // batch
            oracle = BradleyTerry() if sweep.rules == DUELLING else NoisyReward(p.noise_std)
            problem = Problem(sweep.world(p), oracle, p.kl_coef or 1.0)
            grid += [
                Simulation(
                    {"sweep": name, sweep.x: value, "rule": one},
                    problem,
                    rule(one, p),
                    rounds=rounds,
                    batch_size=batch,
                    replicates=settings.replicates,
                    seed=settings.seed,
                    metrics=[sweep.metric],
                    record=[rounds],
                )
                for one in sweep.rules
            ]
    return grid


def _exponent(sweep: str, who: str, value: float, tolerance: float, sense: Any, source: str, **more: Any) -> Exponent:
    window = more.get("window", (0.0, np.inf))
    over = "" if "window" not in more else f" for {SWEEPS[sweep].x} in [{window[0]:g}, {window[1]:g}]"
    name = f"{sweep}: exponent of {who}{over}"
    where = {"sweep": sweep, "rule": who}
    return Exponent(name, source, SWEEPS[sweep].metric, where, value, tolerance, sense, SWEEPS[sweep].x, window)


def _respects(sweep: str, who: str, bound: Bound) -> Respects:
    s = SWEEPS[sweep]
    name = f"{sweep}: {who} respects {bound.name!r} ({bound.side})"
    return Respects(name, s.metric, {"sweep": sweep, "rule": who}, bound, s.parameters, s.x)


UPPER = "OFUL (2011), Theorem 3"
LOWER = "Lattimore, Szepesvari 2020, Theorem 24.1"
CLAIMS: tuple[Claim, ...] = (
    *(_respects(sweep, OFUL, bounds.OFUL) for sweep in ("d", "d, cube", "T, cube", "K", "gap", "scale")),
    _respects("gap", OFUL, bounds.OFUL_GAP),
    *(_respects(sweep, KLUCB, bounds.KL_UCB) for sweep in ("kl_coef", "T, KL")),
    *(
        _respects(sweep, who, bound)
        for sweep, bound in (
            ("d, cube", bounds.CUBE),
            ("T, cube", bounds.CUBE),
            ("K", bounds.RANDOM_ARM),
            ("gap", bounds.RANDOM_ARM),
            ("kl_coef", bounds.KL_CONTEXTS),
            ("T, KL", bounds.KL_CONTEXTS),
            ("kl_coef, duels", bounds.KL_DUELS),
        )
        for who in SWEEPS[sweep].rules
    ),
    _exponent("d", OFUL, 1.0, 0.1, "at most", UPPER),
    *(_exponent("d, cube", who, 1.0, 0.1, "equals", f"{LOWER}; {UPPER}") for who in REWARDED),
    *(_exponent("T, cube", who, 0.5, 0.1, "equals", f"{LOWER}; {UPPER}") for who in REWARDED),
    *(_exponent("K", who, 0.5, 0.1, "at least", "Auer et al. 2002, Theorem 5.1") for who in REWARDED),
    _exponent("gap", OFUL, -1.0, 0.2, "equals", "OFUL (2011), section 5", window=(0.2, 0.8)),
    *(
        _exponent("gap", who, 1.0, 0.1, "equals", "own expectation: too small to be seen", window=(0.01, 0.02))
        for who in REWARDED
    ),
    _exponent("scale", OFUL, 1.0, 0.1, "at most", UPPER),
    *(
        _exponent("kl_coef", who, -1.0, 0.1, "equals", "2502.07460, regret bound", window=(1.0, 5.0))
        for who in (GREEDY, KLUCB)
    ),
    *(
        GrowsLike(
            f"T, KL: {who} grows like log T, not sqrt(T)",
            "2502.07460; 2510.24700",
            KL,
            {"sweep": "T, KL", "rule": who},
            "log",
            "horizon",
        )
        for who in (GREEDY, KLUCB)
    ),
    Number(
        "kl_coef = 5: greed attains the lower bound, to 10 %",
        "derived",
        KL,
        {"sweep": "kl_coef", "kl_coef": 5.0, "rule": GREEDY},
        bounds.KL_CONTEXTS(of_kl(5.0)),
        0.1 * bounds.KL_CONTEXTS(of_kl(5.0)),
    ),
)


# of the legends, clear of lines
PLACES = {"d": (0.5, 0.72), "K": (0.5, 0.56), "gap": (0.5, 0.56), "scale": (0.38, 0.45), "kl_coef, duels": (0.5, 0.1)}


def plot(frame: pd.DataFrame) -> Figure:
    figure, axes = plotting.panels(columns=3, rows=3, height=2.5)
    looks = plotting.lines((*REWARDED, *REGULARISED)) | plotting.lines(DUELLING)
    for ax, letter, (name, sweep) in zip(axes.flat, "abcdefghi", SWEEPS.items(), strict=True):
        plotting.parameter_sweep(
            ax,
            frame,
            sweep.metric,
            "rule",
            sweep.x,
            bounds=sweep.bounds,
            parameters=sweep.parameters,
            where={"sweep": name},
            order=sweep.rules,
            names=dict.fromkeys(looks, ""),
            looks=looks,
            legend=False,
        )
        ax.legend(
            loc="center",
            bbox_to_anchor=PLACES.get(name, (0.5, 0.64)),
            ncols=2 if len(sweep.rules) != 3 else 3,
            columnspacing=1.0,
            fontsize=6,
            title="exponent",
            title_fontsize=6,
        )
        if name == "kl_coef, duels":
            ax.set_ylim(bottom=0.1)  # room for the legend below the lower bound
        ax.set_title(f"({letter}) {sweep.title}")
        ax.set_ylabel("regret [reward]" if sweep.metric == REWARD else "KL regret [reward]")
    shown = {
        name: Line2D([], [], color=look.color, linestyle=look.dash, marker=look.marker) for name, look in looks.items()
    }
    shown["upper bound"] = Line2D([], [], color=plotting.GREY)
    shown["lower bound"] = Line2D([], [], color=plotting.GREY, linestyle=":")
    shown["bound, assumptions fail"] = Line2D([], [], color=plotting.FADED)
    with plotting.style():
        figure.legend(shown.values(), shown.keys(), loc="outside upper center", ncols=5)
    return figure


study = Study(
    name="parameter_sweeps",
    title="Regret as a function of the problem, with upper and lower bounds",
    source="OFUL (2011); Lattimore, Szepesvari 2020; Auer et al. 2002; 2502.07460; 2510.24700",
    cells=cells,
    claims=CLAIMS,
    plot=plot,
    replicates=64,
    smoke_replicates=6,
)
