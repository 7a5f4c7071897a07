"""Local moduli of every update against their closed forms, stability limits, and the global bounds of the papers."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from simbandit import Problem, algorithms, simulate, worlds
from simbandit.algorithms.games import (
    BestResponse,
    Comal,
    ExtraGradient,
    MagneticDescent,
    MirrorDescent,
    MirrorProx,
    MultiplicativeWeights,
    NashMD,
    OptimisticWeights,
)
from simbandit.cycles import limit_cycle
from simbandit.equilibrium import best_response, solve
from simbandit.metrics import kl
from simbandit.oracles import FullInformation, rock_paper_scissors
from tests.driving import iterates, random_games

RPS = torch.tensor(rock_paper_scissors().preference)
UNIFORM = torch.full((1, 3), -math.log(3), dtype=torch.float64)
OMEGA = 1 / math.sqrt(12)  # of rock-paper-scissors at the uniform policy: both modes turn at this rate
NEAR = torch.tensor([[1e-5, 0.0, -0.5e-5]], dtype=torch.float64)


def modulus(rule: Any, k: float, rounds: int = 60, rounds_a_step: int = 1, settled: int = 20) -> float:
    """Per step, from the distance to the uniform policy, which in this game turns on circles."""
    theta = iterates(rule, RPS, UNIFORM, k, rounds * rounds_a_step, NEAR + UNIFORM)[::rounds_a_step, 0]
    distance = (theta - UNIFORM).norm(dim=-1)
    return float((distance[-1] / distance[settled]) ** (1 / (rounds - settled)))


def optimistic(s: float) -> float:
    z = 1j * s * OMEGA
    return float(np.abs(np.roots([1, -(1 + 2 * z), z])).max())


@pytest.mark.parametrize("k", [0.1, 0.4])
@pytest.mark.parametrize("s", [0.2, 0.7, 1.5])
def test_local_moduli_to_three_digits(k, s):
    turned, pull = 1j * s * OMEGA, 1 - s * k
    z = pull + turned
    closed_forms = [
        (MirrorDescent(s), abs(z), 1),
        (MagneticDescent(s, period=None), abs(1 + turned) / (1 + s * k), 1),
        (NashMD(s), abs(pull * (1 + turned)), 1),
        (ExtraGradient(s), abs(pull + turned * z), 2),
        (MirrorProx(s), abs(1 - s / (1 + s * k) * (k - 1j * OMEGA * (1 - s / (1 + s * k) * (k - 1j * OMEGA)))), 2),
        (MultiplicativeWeights(s), math.hypot(1, s * OMEGA), 1),
        (OptimisticWeights(s), optimistic(s), 1),
    ]
    for damping in (0.1, min(1.0, s)):
        closed_forms.append((BestResponse(damping), abs(1 - damping + 1j * damping * OMEGA / k), 1))
    checked = 0
    for rule, expected, rounds_a_step in closed_forms:
        if expected > 1.5 or expected < 0.65:  # leaves the linear range, or float64, within the window
            continue
        rounds = 30 if abs(math.log(expected)) > 0.15 else 60
        measured = modulus(rule, k, rounds, rounds_a_step, rounds // 3)
        assert measured == pytest.approx(expected, abs=5e-4), rule
        checked += 1
    assert checked >= 5


@pytest.mark.parametrize("k", [0.1, 0.3, 1.0])
def test_the_outer_factor_of_comal(k):
    """k / sqrt(k^2 + omega^2) per outer step, towards the equilibrium without KL."""
    step, inner = 1 / (1 + k), math.ceil(32 / k)
    theta = iterates(Comal(step, inner), RPS, UNIFORM, k, 2 * inner * 12, NEAR * 1e3 + UNIFORM)[:: 2 * inner, 0]
    distance = (theta - UNIFORM).norm(dim=-1)
    assert float((distance[8] / distance[4]) ** 0.25) == pytest.approx(k / math.hypot(k, OMEGA), abs=5e-4)


@pytest.mark.parametrize(
    ("rule", "limit"),
    [
        (MirrorDescent, lambda k: 2 * k / (k**2 + OMEGA**2)),
        (lambda s: MagneticDescent(s, period=None), lambda k: 2 * k / (OMEGA**2 - k**2)),
        (BestResponse, lambda k: 2 * k**2 / (k**2 + OMEGA**2)),
    ],
    ids=["mirror_descent", "mpo", "best_response"],
)
def test_steps_converge_below_the_limit_and_cycle_beyond(rule, limit):
    """At .99 and 1.01 of it, on rock-paper-scissors at kl_coef .1, from 2 % off the centre."""
    k = 0.1
    start = UNIFORM + torch.tensor([[0.02, 0.0, -0.01]], dtype=torch.float64)
    below = iterates(rule(0.99 * limit(k)), RPS, UNIFORM, k, 6000, start)[:, 0]
    assert float((below[-1] - UNIFORM).abs().max()) < 1e-4
    beyond = iterates(rule(1.01 * limit(k)), RPS, UNIFORM, k, 6000, start)[:, 0]
    cycle = limit_cycle(beyond.exp(), last=0.1)
    assert cycle.radius > 0.02
    assert cycle.growth == pytest.approx(1, abs=0.02)
    assert limit_cycle(below.exp(), last=0.1).growth < 0.9
    if rule is MirrorDescent:
        step = 1.01 * limit(k)
        turn = 2 * math.pi / math.atan2(step * OMEGA, 1 - step * k)  # of the linearisation
        assert cycle.period == pytest.approx(turn, rel=0.03)
        assert limit(k) == pytest.approx(2.142857, abs=5e-7)


def test_the_limit_is_named_and_the_run_goes_on():
    problem = Problem(worlds.TableWorld(UNIFORM.numpy()), FullInformation(rock_paper_scissors()), 0.1)
    for name, size, limit in (
        ("mirror_descent", {"step_size": 0.8}, "0.769231"),
        ("mpo", {"step_size": 0.9, "period": None}, "0.833333"),
        ("best_response", {"damping": 0.1}, "0.0769231"),
    ):
        with pytest.warns(UserWarning, match=f"{next(iter(size))}: .* is beyond {limit} = .*stability limit"):
            results = simulate(problem, algorithms.create(name, **size), rounds=3, metrics=["duality_gap"])
        assert np.isfinite(results.frame()["value"]).all()


GAMES, ACTIONS = 200, 6
COEFS = (0.01, 0.05, 0.2, 0.7, 3.0)  # 200 games each


@pytest.mark.parametrize("k", COEFS)
def test_global_bounds_on_a_thousand_games(k):
    """Extragradient and mirror prox never miss their rates, nor the half iterate its bound, nor do best responses their
    contraction in the span seminorm: 200 random and deterministic games at each of five coefficients."""
    P, ref = random_games(int(1000 * k), GAMES, ACTIONS)
    P[::2] = torch.where(torch.eye(ACTIONS, dtype=torch.bool), 0.5, (P[::2] > 0.5).double())
    solved = solve(P, ref, k)
    assert bool(solved.converged.all())
    star, rounding = solved.log_probs, 1e-13 * max(1.0, 1 / k)

    s = 1 / (1 + k)
    rule = ExtraGradient(s)
    whole = iterates(rule, P, ref, k, 80)[::2]
    distance = kl(star, whole)
    assert bool((distance[1:] <= (1 - s * k) * distance[:-1] + rounding).all())
    g = torch.einsum("gab,tgb->tga", P - 0.5, whole.exp())
    half = torch.log_softmax((1 - s * k) * whole + s * k * ref + s * g, -1)
    decay = (1 - s * k) ** torch.arange(len(half), dtype=torch.float64)[:, None]
    assert bool((kl(star, half) <= 2 * decay * distance[0] + rounding).all())

    distance = kl(star, iterates(MirrorProx(2.0), P, ref, k, 80)[::2])
    assert bool((distance[1:] <= distance[:-1] / (1 + 2 * k) + rounding).all())

    one, two = random_games(1, GAMES, ACTIONS, 3.0)[1], random_games(2, GAMES, ACTIONS, 3.0)[1]
    after = span(best_response(one, P, ref, k) - best_response(two, P, ref, k))
    assert bool((after <= span(one - two) / (2 * k) + rounding).all())


def span(x: Tensor) -> Tensor:
    return x.amax(-1) - x.amin(-1)


@pytest.mark.parametrize("rule", [MirrorDescent(schedule=True), NashMD(schedule=True)], ids=["inpo", "nash_md"])
def test_the_schedules_keep_their_theorems(rule):
    """KL(pi* || pi_t) <= c / (k^2 (t + 1)), c = 32 for INPO (2407.00617, Theorem 4), 8 for Nash-MD (2312.00886,
    Theorem 1)."""
    k, c = 0.1, 32 if isinstance(rule, MirrorDescent) else 8
    P, ref = random_games(3, 50, 7)
    star = solve(P, ref, k).log_probs
    distance = kl(star, iterates(rule, P, ref, k, 400))
    t = torch.arange(len(distance), dtype=torch.float64)[:, None]
    assert bool((distance <= c / (k**2 * (t + 1))).all())
    assert bool((distance[-1] < 1e-3 * c / (k**2 * 401)).all())  # and are far from tight here


def test_mtpo_of_one_turn_is_scheduled_mirror_descent():
    k = 0.3
    P, ref = random_games(4, 5, 4)
    theta = ref
    rule: Any = algorithms.create("mtpo")
    mine = iterates(rule, P, ref, k, 12)
    for t in range(12):
        s = 2 / (k * (t + 2))
        g = torch.einsum("gab,gb->ga", P - 0.5, theta.exp())
        theta = torch.log_softmax((1 - s * k) * theta + s * k * ref + s * g, -1)
        torch.testing.assert_close(mine[t + 1], theta, atol=1e-12, rtol=0)
    assert float((mine[12] - iterates(NashMD(schedule=True), P, ref, k, 12)[12]).abs().max()) > 1e-3
    assert float((mine[12] - iterates(MirrorDescent(), P, ref, k, 12)[12]).abs().max()) > 1e-3
